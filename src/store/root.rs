//! `root`: the store's id and its unlock slots (docs/format.md, section 3), and the keys below the root key.
//!
//! A slot gives the root key to whoever has its passphrase or key file. The file is not authenticated, since nothing
//! is known before a slot is open: its digests only tell damage from a wrong passphrase. What makes a slot that was
//! put back visible is the catalog, which lists every slot's digest. No Argon2id work is done for parameters outside
//! of floor and ceiling, and the root key is not kept: adding a slot takes a credential again.

use std::fmt;

use zeroize::Zeroizing;

use super::catalog::ListedSlot;
use super::error::StoreError;
use super::fields::{Fields, hex, unhex};
use crate::crypto::{
    Aad, AeadKey, Argon2Params, CryptoError, Key256, NONCE_LEN, Prk, SecretBytes, TAG_LEN, argon2id, equal, random,
    sha256,
};
use crate::types::StoreId;

/// The file's name in the store.
pub(super) const ROOT_FILE: &str = "root";
/// The most slots that a store may have.
pub const MAX_SLOTS: usize = 16;
/// The most bytes of a slot's label.
pub const MAX_LABEL_LEN: usize = 119;
/// The longest `root` there is.
pub(super) const MAX_ROOT_LEN: usize = HEADER_LEN + MAX_SLOTS * SLOT_LEN;

const MAGIC: &[u8; 8] = b"KMSFSROT";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 64;
const SLOT_LEN: usize = 320;
/// Root key, time, length of the label, label.
const SEALED_LEN: usize = 32 + 8 + 1 + MAX_LABEL_LEN;

/// What opens a slot.
#[derive(Debug)]
pub enum Credential {
    /// 1 byte or more.
    Passphrase(SecretBytes),
    /// 32 to 4,096 bytes, which are taken to be random.
    KeyFile(SecretBytes),
}

impl Credential {
    fn kind(&self) -> SlotKind {
        match self {
            Self::Passphrase(_) => SlotKind::Passphrase,
            Self::KeyFile(_) => SlotKind::KeyFile,
        }
    }

    fn check(&self) -> Result<(), StoreError> {
        match self {
            Self::Passphrase(secret) if secret.expose().is_empty() => {
                Err(StoreError::BadCredential { why: "the passphrase is empty" })
            }
            Self::KeyFile(secret) if !(32..=4096).contains(&secret.expose().len()) => {
                Err(StoreError::BadCredential { why: "a key file holds 32 to 4096 bytes" })
            }
            Self::Passphrase(_) | Self::KeyFile(_) => Ok(()),
        }
    }

    /// The slot's pseudorandom key. Parameters are checked before any work is done.
    fn prk(&self, salt: &[u8; 32], params: Argon2Params) -> Result<Prk, CryptoError> {
        Ok(match self {
            Self::Passphrase(secret) => Prk::extract(salt, argon2id(secret.expose(), salt, params)?.expose()),
            Self::KeyFile(secret) => Prk::extract(salt, secret.expose()),
        })
    }
}

/// What a slot takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    Passphrase,
    KeyFile,
}

impl SlotKind {
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Passphrase => 1,
            Self::KeyFile => 2,
        }
    }

    pub(super) const fn of_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Passphrase),
            2 => Some(Self::KeyFile),
            _ => None,
        }
    }

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passphrase => "passphrase",
            Self::KeyFile => "key file",
        }
    }
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names an unlock slot; 32 hexadecimal digits as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub(super) [u8; 16]);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl std::str::FromStr for SlotId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        unhex(text).map(Self).ok_or(StoreError::NoSuchSlot)
    }
}

/// The keys below the root key (docs/format.md, section 2), one a purpose.
#[derive(Debug)]
pub struct RootKeys {
    /// Seals records.
    pub records: AeadKey,
    /// Seals the catalog.
    pub catalog: AeadKey,
    /// The journal's sealing keys are derived from it, one a mount.
    pub journal: Key256,
    /// The trail's sealing keys are derived from it, one a mount.
    pub trail: Key256,
    /// Authenticates the anchor.
    pub anchor: Key256,
    /// Seals key material and names keys.
    pub wrap: AeadKey,
}

impl RootKeys {
    pub(super) fn derive(store: StoreId, root: &Key256) -> Result<Self, CryptoError> {
        let prk = Prk::extract(store.as_bytes(), root.expose());
        let key = |label: &str| prk.expand::<32>(&Aad::new("kmsfs v1 root").bytes(label.as_bytes()));
        Ok(Self {
            records: AeadKey::new(&key("records"))?,
            catalog: AeadKey::new(&key("catalog"))?,
            journal: key("journal"),
            trail: key("trail"),
            anchor: key("anchor"),
            wrap: AeadKey::new(&key("wrap"))?,
        })
    }
}

/// What a slot is made with, beside the credential.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewSlot<'a> {
    pub(super) params: Argon2Params,
    pub(super) label: &'a str,
    /// Seconds since 1970.
    pub(super) created: i64,
}

/// One slot's bytes.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Slot([u8; SLOT_LEN]);

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", hex(&self.digest()))
    }
}

/// A slot's fields; what they say is not authenticated until the slot is open.
#[derive(Debug)]
struct SlotFields {
    id: SlotId,
    kind: u8,
    params: Argon2Params,
    salt: [u8; 32],
    bound: [u8; 96],
    commitment: [u8; 32],
    nonce: [u8; NONCE_LEN],
    ciphertext: [u8; SEALED_LEN],
    tag: [u8; TAG_LEN],
}

impl Slot {
    /// What the catalog lists.
    pub(super) fn digest(&self) -> [u8; 32] {
        sha256(&self.0)
    }

    pub(super) fn id(&self) -> Option<SlotId> {
        self.fields().map(|fields| fields.id)
    }

    pub(super) fn kind(&self) -> Option<SlotKind> {
        self.fields().and_then(|fields| SlotKind::of_code(fields.kind))
    }

    /// Argon2id's, of a passphrase slot.
    pub(super) fn params(&self) -> Option<Argon2Params> {
        self.fields().filter(|fields| fields.kind == SlotKind::Passphrase.code()).map(|fields| fields.params)
    }

    /// Reads the fields; none if the slot's own digest or a zero does not hold.
    fn fields(&self) -> Option<SlotFields> {
        let (summed, _) = self.0.split_first_chunk::<284>()?;
        let mut at = Fields::new(&self.0);
        let bound = Fields::new(&self.0).array::<96>()?;
        let fields = SlotFields {
            id: SlotId(at.array()?),
            kind: at.u8()?,
            params: {
                at.zeros::<3>()?;
                Argon2Params { memory_kib: at.u32()?, passes: at.u32()?, lanes: at.u32()? }
            },
            salt: at.array()?,
            commitment: at.array()?,
            bound,
            nonce: at.array()?,
            ciphertext: at.array()?,
            tag: at.array()?,
        };
        let digest = at.array::<32>()?;
        at.zeros::<4>()?;
        (digest == sha256(summed)).then_some(fields)
    }

    /// Seals the root key under a credential.
    fn seal(store: StoreId, root: &Key256, credential: &Credential, new: NewSlot<'_>) -> Result<Self, StoreError> {
        credential.check()?;
        let label_len = u8::try_from(new.label.len()).ok().filter(|len| usize::from(*len) <= MAX_LABEL_LEN);
        let label_len = label_len.ok_or(StoreError::TooLarge { what: "a slot's label has at most 119 bytes" })?;
        let params = match credential {
            Credential::Passphrase(_) if !new.params.is_acceptable() => return Err(StoreError::Parameters),
            Credential::Passphrase(_) => new.params,
            Credential::KeyFile(_) => Argon2Params { memory_kib: 0, passes: 0, lanes: 0 },
        };
        let salt = random::<32>()?;
        let prk = credential.prk(&salt, params)?;

        let mut bytes = Vec::with_capacity(SLOT_LEN);
        bytes.extend_from_slice(&random::<16>()?);
        bytes.extend_from_slice(&[credential.kind().code(), 0, 0, 0]);
        for cost in [params.memory_kib, params.passes, params.lanes] {
            bytes.extend_from_slice(&cost.to_le_bytes());
        }
        bytes.extend_from_slice(&salt);
        bytes.extend_from_slice(commitment(&prk).expose());

        let mut secret = Zeroizing::new(Vec::with_capacity(SEALED_LEN));
        secret.extend_from_slice(root.expose());
        secret.extend_from_slice(&new.created.to_le_bytes());
        secret.push(label_len);
        secret.extend_from_slice(new.label.as_bytes());
        secret.resize(SEALED_LEN, 0);
        let sealed = sealing_key(&prk)?.seal_box(&slot_aad(store, &bytes), &secret)?;
        bytes.extend_from_slice(&sealed);
        bytes.extend_from_slice(&sha256(&bytes));
        bytes.extend_from_slice(&[0; 4]);
        bytes.try_into().map(Self).map_err(|_| StoreError::TooLarge { what: "a slot has 320 bytes" })
    }

    /// Tries a credential of the slot's kind.
    fn open(&self, store: StoreId, credential: &Credential) -> Result<Unlocked, Closed> {
        let fields = self.fields().ok_or(Closed::Damaged)?;
        let kind = SlotKind::of_code(fields.kind).ok_or(Closed::Damaged)?;
        if kind != credential.kind() {
            return Err(Closed::OtherKind);
        }
        let prk = credential.prk(&fields.salt, fields.params).map_err(|error| {
            if error == CryptoError::Parameters { Closed::Damaged } else { Closed::Failed(error.into()) }
        })?;
        if !equal(commitment(&prk).expose(), &fields.commitment) {
            return Err(Closed::Wrong);
        }
        let key = sealing_key(&prk).map_err(|error| Closed::Failed(error.into()))?;
        let mut secret = Zeroizing::new(fields.ciphertext);
        key.open(&fields.nonce, slot_aad(store, &fields.bound).as_bytes(), secret.as_mut_slice(), &fields.tag)
            .map_err(|_| Closed::Damaged)?;
        let mut at = Fields::new(secret.as_slice());
        let mut read = || {
            let root = at.slice(32).and_then(Key256::from_slice)?;
            let created = at.i64()?;
            let length = at.u8()?;
            let label = std::str::from_utf8(at.slice(length.into())?).ok()?.to_owned();
            let listed = ListedSlot { id: hex(&fields.id.0), kind: fields.kind, digest: self.digest(), label, created };
            Some(Unlocked { root, listed })
        };
        read().ok_or(Closed::Damaged)
    }
}

/// Why a slot did not open.
#[derive(Debug)]
enum Closed {
    OtherKind,
    Wrong,
    /// A digest, a zero, a parameter or the tag does not hold.
    Damaged,
    Failed(StoreError),
}

fn commitment(prk: &Prk) -> Key256 {
    prk.expand(&Aad::new("kmsfs v1 slot").bytes(b"commitment"))
}

fn sealing_key(prk: &Prk) -> Result<AeadKey, CryptoError> {
    AeadKey::new(&prk.expand(&Aad::new("kmsfs v1 slot").bytes(b"seal")))
}

/// Binds a slot's ciphertext to the store and to the slot's bytes 0..96.
fn slot_aad(store: StoreId, bound: &[u8]) -> Aad {
    Aad::new("kmsfs v1 slot").bytes(store.as_bytes()).bytes(bound)
}

/// The parsed file.
#[derive(Debug, Clone)]
pub(super) struct RootFile {
    pub(super) store: StoreId,
    pub(super) slots: Vec<Slot>,
    /// Whether the file's digest, length and zeros hold.
    pub(super) intact: bool,
}

/// What an open slot gave.
#[derive(Debug)]
pub(super) struct Unlocked {
    pub(super) root: Key256,
    /// The slot that opened, as the catalog lists it.
    pub(super) listed: ListedSlot,
}

impl RootFile {
    pub(super) fn new(store: StoreId) -> Self {
        Self { store, slots: Vec::new(), intact: true }
    }

    /// Reads what can be read: a damaged file may still hold an intact slot.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, StoreError> {
        let corrupt = |what| StoreError::Corrupt { file: ROOT_FILE.to_owned(), what };
        let mut at = Fields::new(bytes);
        if at.array::<8>().as_ref() != Some(MAGIC) {
            return Err(corrupt("it does not start as such a file does"));
        }
        let version = at.u16().ok_or_else(|| corrupt("it is cut"))?;
        if version != VERSION {
            return Err(StoreError::Version { file: ROOT_FILE.to_owned(), found: version });
        }
        let mut header = || Some((at.u16()?, at.zeros::<4>(), StoreId::from_bytes(at.array()?), at.array::<32>()?));
        let (count, zeros, store, digest) = header().ok_or_else(|| corrupt("it is cut"))?;
        let body = at.rest();
        let (slots, remainder) = body.as_chunks::<SLOT_LEN>();
        if slots.is_empty() {
            return Err(corrupt("it holds no whole slot"));
        }
        let intact = remainder.is_empty()
            && zeros.is_some()
            && slots.len() <= MAX_SLOTS
            && usize::from(count) == slots.len()
            && bytes.first_chunk::<32>().is_some_and(|head| digest == file_digest(head, body));
        let slots = slots.iter().take(MAX_SLOTS).map(|slot| Slot(*slot)).collect();
        Ok(Self { store, slots, intact })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let body: Vec<u8> = self.slots.iter().flat_map(|slot| slot.0).collect();
        // INVARIANT: `add` keeps the number of slots at 16 or below.
        let count = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(self.store.as_bytes());
        let digest = bytes.first_chunk::<32>().map_or([0; 32], |head| file_digest(head, &body));
        bytes.extend_from_slice(&digest);
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Tries the credential on every slot of its kind.
    ///
    /// # Errors
    /// `WrongCredential` when all slots of that kind are intact, `DamagedSlots` when one that might have opened is
    /// not; `NoSuchCredential` when there is no slot of the kind at all.
    pub(super) fn unlock(&self, credential: &Credential) -> Result<Unlocked, StoreError> {
        credential.check()?;
        let (mut tried, mut damaged) = (0, 0);
        for slot in &self.slots {
            match slot.open(self.store, credential) {
                Ok(unlocked) => return Ok(unlocked),
                Err(Closed::OtherKind) => {}
                Err(Closed::Wrong) => tried += 1,
                Err(Closed::Damaged) => damaged += 1,
                Err(Closed::Failed(error)) => return Err(error),
            }
        }
        let kind = credential.kind().name();
        if damaged > 0 || !self.intact {
            return Err(StoreError::DamagedSlots { damaged: damaged.max(1), of: self.slots.len() });
        }
        if tried == 0 { Err(StoreError::NoSuchCredential { kind }) } else { Err(StoreError::WrongCredential { kind }) }
    }

    /// Adds a slot; the file that holds it is the caller's to write.
    pub(super) fn add(
        &mut self,
        root: &Key256,
        credential: &Credential,
        new: NewSlot<'_>,
    ) -> Result<ListedSlot, StoreError> {
        if self.slots.len() >= MAX_SLOTS {
            return Err(StoreError::TooManySlots);
        }
        let slot = Slot::seal(self.store, root, credential, new)?;
        let id = slot.id().map(|id| id.to_string()).unwrap_or_default();
        let listed = ListedSlot {
            id,
            kind: credential.kind().code(),
            digest: slot.digest(),
            label: new.label.to_owned(),
            created: new.created,
        };
        self.slots.push(slot);
        Ok(listed)
    }

    pub(super) fn remove(&mut self, id: SlotId) -> Result<(), StoreError> {
        if !self.slots.iter().any(|slot| slot.id() == Some(id)) {
            return Err(StoreError::NoSuchSlot);
        }
        if self.slots.len() == 1 {
            return Err(StoreError::LastSlot);
        }
        self.slots.retain(|slot| slot.id() != Some(id));
        Ok(())
    }
}

fn file_digest(head: &[u8; 32], slots: &[u8]) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(32 + slots.len());
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(slots);
    sha256(&bytes)
}
