//! Level 4: seals and opens one item under its keys (docs/format.md, sections 2 and 6).
//!
//! An `ItemCipher` comes out of a capability of the key service alone, and serves one item under one salt. A block key
//! and a header key serve one epoch: 32 random bits, chosen when something is first sealed and renewed after 2^31
//! seals, so that no key sees NIST SP 800-38D's 2^32 random nonces, whatever a rollback of the store resets. No text
//! leaves here before its tag has verified: what fails to open is wiped.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroize;

use crate::crypto::{Aad, AeadKey, CryptoError, NONCE_LEN, Prk, Secret, TAG_LEN, equal, fill_random, random};
use crate::kms::ItemKeySource;
use crate::types::{ItemId, TableId};

/// After this many seals an epoch's keys are renewed.
const SEALS_MAX: u64 = 1 << 31;
/// Epoch keys that are kept for reading: most items were written in one or two mounts.
const EPOCHS_KEPT: usize = 4;
/// AES-256-GCM with HKDF-SHA-256.
const SUITE: u8 = 1;

const BLOCK_AAD_LEN: usize = 32;
const HEADER_AAD_LEN: usize = 1 + 15 + 4 + 88;

/// Why something of an item could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvelopeError {
    /// The capability has no table key of this version.
    NoKey { version: u32 },
    /// The keys are not those that the header is committed to.
    Commitment,
    /// A tag did not verify, or the cipher or the random generator failed.
    Crypto(CryptoError),
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey { version } => write!(f, "the table has no key of version {version}"),
            Self::Commitment => f.write_str("the item is committed to another key"),
            Self::Crypto(_) => f.write_str("the item's cryptography failed"),
        }
    }
}

impl std::error::Error for EnvelopeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Crypto(error) => Some(error),
            Self::NoKey { .. } | Self::Commitment => None,
        }
    }
}

impl From<CryptoError> for EnvelopeError {
    fn from(error: CryptoError) -> Self {
        Self::Crypto(error)
    }
}

/// What a block's entry says of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    Data,
    /// No text: the block reads as zeros.
    Hole,
}

/// A seal that stands apart from its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    pub epoch: u32,
    pub nonce: [u8; NONCE_LEN],
    pub tag: [u8; TAG_LEN],
}

/// The keys of one item under one salt.
pub struct ItemCipher {
    table: TableId,
    item: ItemId,
    version: u32,
    prk: Prk,
    sealing: Option<Sealing>,
    /// Random bits for the first epoch, where they were drawn with others.
    first_epoch: Option<u32>,
    opening: Mutex<Vec<(u32, Arc<AeadKey>)>>,
}

/// The keys of the epoch in which this mount seals.
struct Sealing {
    epoch: u32,
    seals: u64,
    block: Arc<AeadKey>,
    header: AeadKey,
}

impl ItemCipher {
    /// The keys of `item` under `salt` and the table key's `version`.
    ///
    /// # Errors
    /// `NoKey` where the table has no such version.
    pub fn derive(
        keys: &impl ItemKeySource,
        version: u32,
        item: ItemId,
        salt: &[u8; 16],
    ) -> Result<Self, EnvelopeError> {
        let prk = keys.item_prk(version, salt).ok_or(EnvelopeError::NoKey { version })?;
        Ok(Self {
            table: keys.table(),
            item,
            version,
            prk,
            sealing: None,
            first_epoch: None,
            opening: Mutex::new(Vec::new()),
        })
    }

    /// Random bits for the first epoch, drawn by the caller along with others that the item needs.
    #[must_use]
    pub fn with_first_epoch(mut self, epoch: u32) -> Self {
        self.first_epoch = Some(epoch);
        self
    }

    pub fn table(&self) -> TableId {
        self.table
    }

    /// The 32 bytes that a header carries so that it opens under one key alone (AES-GCM by itself does not commit).
    pub fn commitment(&self) -> [u8; 32] {
        *self.prk.expand::<32>(&self.info("commitment")).expose()
    }

    /// # Errors
    /// `Commitment` where the header was made under other keys. Compares in constant time.
    pub fn check_commitment(&self, found: &[u8; 32]) -> Result<(), EnvelopeError> {
        if equal(&self.commitment(), found) { Ok(()) } else { Err(EnvelopeError::Commitment) }
    }

    /// The epoch under which the next `seals` seals are made.
    ///
    /// # Errors
    /// `Crypto` where the kernel gives no random bytes.
    pub fn begin(&mut self, seals: u64) -> Result<u32, EnvelopeError> {
        if let Some(sealing) = &mut self.sealing
            && sealing.seals + seals <= SEALS_MAX
        {
            sealing.seals += seals;
            return Ok(sealing.epoch);
        }
        let epoch = match self.first_epoch.take() {
            Some(epoch) => epoch,
            None => u32::from_le_bytes(random()?),
        };
        let block = Arc::new(self.key("block", epoch)?);
        let header = self.key("header", epoch)?;
        self.sealing = Some(Sealing { epoch, seals, block, header });
        Ok(epoch)
    }

    /// Seals `state` in place, bound to the header's part in clear, which must name the epoch that `begin` gave, within
    /// what that has counted, under a nonce of `Nonces`.
    pub fn seal_header(
        &self,
        head: &[u8; 88],
        nonce: [u8; NONCE_LEN],
        state: &mut [u8],
    ) -> Result<Seal, EnvelopeError> {
        let sealing = self.sealing()?;
        let tag = sealing.header.seal(&nonce, &header_aad(head), state)?;
        Ok(Seal { epoch: sealing.epoch, nonce, tag })
    }

    /// Opens a header's state in place.
    ///
    /// # Errors
    /// `Crypto(Authentication)`; the state is wiped then.
    pub fn open_header(&self, head: &[u8; 88], seal: &Seal, state: &mut [u8]) -> Result<(), EnvelopeError> {
        let opened = self
            .key("header", seal.epoch)
            .and_then(|key| Ok(key.open(&seal.nonce, &header_aad(head), state, &seal.tag)?));
        opened.inspect_err(|_| state.zeroize())
    }

    /// Seals block `index` in place, within what `begin` has counted, under a nonce of `Nonces`.
    pub fn seal_block(
        &self,
        kind: BlockKind,
        index: u64,
        nonce: [u8; NONCE_LEN],
        text: &mut [u8],
    ) -> Result<Seal, EnvelopeError> {
        let sealing = self.sealing()?;
        let tag = sealing.block.seal(&nonce, &block_aad(kind, index), text)?;
        Ok(Seal { epoch: sealing.epoch, nonce, tag })
    }

    /// Opens block `index` in place.
    ///
    /// # Errors
    /// `Crypto(Authentication)`; the text is wiped then.
    pub fn open_block(&self, kind: BlockKind, index: u64, seal: &Seal, text: &mut [u8]) -> Result<(), EnvelopeError> {
        let opened = self
            .epoch_key(seal.epoch)
            .and_then(|key| Ok(key.open(&seal.nonce, &block_aad(kind, index), text, &seal.tag)?));
        opened.inspect_err(|_| text.zeroize())
    }

    fn sealing(&self) -> Result<&Sealing, EnvelopeError> {
        // INVARIANT: callers have called `begin`.
        self.sealing.as_ref().ok_or(EnvelopeError::Crypto(CryptoError::Parameters))
    }

    fn epoch_key(&self, epoch: u32) -> Result<Arc<AeadKey>, EnvelopeError> {
        if let Some(sealing) = self.sealing.as_ref().filter(|sealing| sealing.epoch == epoch) {
            return Ok(Arc::clone(&sealing.block));
        }
        let mut kept = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, key)) = kept.iter().find(|(one, _)| *one == epoch) {
            return Ok(Arc::clone(key));
        }
        let key = Arc::new(self.key("block", epoch)?);
        if kept.len() == EPOCHS_KEPT {
            kept.remove(0);
        }
        kept.push((epoch, Arc::clone(&key)));
        Ok(key)
    }

    fn key(&self, label: &'static str, epoch: u32) -> Result<AeadKey, EnvelopeError> {
        let key: Secret<32> = self.prk.expand(&self.info(label).u32(epoch));
        Ok(AeadKey::new(&key)?)
    }

    fn info(&self, label: &'static str) -> Aad {
        item_info(label, self.table, self.version, self.item)
    }
}

impl fmt::Debug for ItemCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemCipher").field("item", &self.item).finish_non_exhaustive()
    }
}

fn item_info(label: &'static str, table: TableId, version: u32, item: ItemId) -> Aad {
    Aad::new("kmsfs v1 item")
        .bytes(label.as_bytes())
        .u8(SUITE)
        .bytes(table.as_bytes())
        .u32(version)
        .bytes(item.as_bytes())
}

/// AAD('kmsfs v1 block', [kind, index]), on the stack: it is made once a block.
fn block_aad(kind: BlockKind, index: u64) -> [u8; BLOCK_AAD_LEN] {
    let mut aad = *b"\x0ekmsfs v1 block\x01\0\0\0?\x08\0\0\0????????";
    let (front, number) = aad.split_at_mut(BLOCK_AAD_LEN - 8);
    number.copy_from_slice(&index.to_le_bytes());
    let kind = match kind {
        BlockKind::Data => 0,
        BlockKind::Hole => 1,
    };
    if let Some(place) = front.get_mut(19) {
        *place = kind;
    }
    aad
}

/// AAD('kmsfs v1 header', [the 88 bytes in clear]), on the stack.
fn header_aad(head: &[u8; 88]) -> [u8; HEADER_AAD_LEN] {
    let mut aad = [0; HEADER_AAD_LEN];
    let (front, rest) = aad.split_at_mut(HEADER_AAD_LEN - 88);
    front.copy_from_slice(b"\x0fkmsfs v1 header\x58\0\0\0");
    rest.copy_from_slice(head);
    aad
}

/// Random nonces for the blocks of one request: one system call for up to 64 of them.
#[derive(Debug)]
pub struct Nonces {
    pool: [u8; Self::POOL * NONCE_LEN],
    next: usize,
    wanted: u64,
}

impl Nonces {
    const POOL: usize = 64;

    /// `wanted` is how many will be taken; more may be.
    pub fn new(wanted: u64) -> Self {
        Self { pool: [0; Self::POOL * NONCE_LEN], next: Self::POOL * NONCE_LEN, wanted }
    }

    /// # Errors
    /// `Crypto` where the kernel gives no random bytes.
    pub fn take(&mut self) -> Result<[u8; NONCE_LEN], EnvelopeError> {
        loop {
            let rest = self.pool.get(self.next..).unwrap_or_default();
            if let Some(nonce) = rest.first_chunk::<NONCE_LEN>() {
                self.next += NONCE_LEN;
                self.wanted = self.wanted.saturating_sub(1);
                return Ok(*nonce);
            }
            // What will be taken stands at the pool's end, so that nothing is drawn that is not used.
            let count = usize::try_from(self.wanted.max(1)).unwrap_or(Self::POOL).min(Self::POOL);
            self.next = (Self::POOL - count) * NONCE_LEN;
            fill_random(self.pool.get_mut(self.next..).unwrap_or_default())?;
        }
    }
}

/// Seals the value of a `user.*` attribute of an item or a folder: `version (4) ‖ epoch (4) ‖ nonce ‖ ciphertext ‖ tag`,
/// under the table key's current version and an epoch, and so a key, of its own. The key does not depend on an item's
/// salt, which a truncation renews while attributes stay. `binding` is that of the sealed attribute name.
pub fn seal_xattr(
    keys: &impl ItemKeySource,
    id: &[u8; 16],
    binding: &[u8; 16],
    value: &[u8],
) -> Result<Vec<u8>, EnvelopeError> {
    let version = keys.current_version();
    let epoch: [u8; 4] = random()?;
    let text = xattr_key(keys, version, id, epoch)?.seal_box(&xattr_aad(binding), value)?;
    let mut sealed = Vec::with_capacity(8 + text.len());
    sealed.extend_from_slice(&version.to_le_bytes());
    sealed.extend_from_slice(&epoch);
    sealed.extend_from_slice(&text);
    Ok(sealed)
}

/// Opens what `seal_xattr` made.
///
/// # Errors
/// `NoKey`, or `Crypto` where the value was not sealed for this item or folder and this attribute.
pub fn open_xattr(
    keys: &impl ItemKeySource,
    id: &[u8; 16],
    binding: &[u8; 16],
    sealed: &[u8],
) -> Result<Vec<u8>, EnvelopeError> {
    let short = EnvelopeError::Crypto(CryptoError::TooShort);
    let (version, rest) = sealed.split_first_chunk::<4>().ok_or(short)?;
    let (epoch, text) = rest.split_first_chunk::<4>().ok_or(short)?;
    let key = xattr_key(keys, u32::from_le_bytes(*version), id, *epoch)?;
    Ok(std::mem::take(&mut *key.open_box(&xattr_aad(binding), text)?))
}

fn xattr_key(keys: &impl ItemKeySource, version: u32, id: &[u8; 16], epoch: [u8; 4]) -> Result<AeadKey, EnvelopeError> {
    let prk = keys.item_prk(version, id).ok_or(EnvelopeError::NoKey { version })?;
    let info = item_info("xattr", keys.table(), version, ItemId::from_bytes(*id)).bytes(&epoch);
    Ok(AeadKey::new(&prk.expand(&info))?)
}

fn xattr_aad(binding: &[u8; 16]) -> Aad {
    Aad::new("kmsfs v1 xattr value").bytes(binding)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::crypto::Key256;
    use crate::kms::{DataKey, TableKeys};

    fn keys(table: u8, secret: u8) -> DataKey {
        let versions = BTreeMap::from([(1, Key256::from_slice(&[secret; 32]).unwrap())]);
        DataKey::for_tests(TableKeys::for_tests(TableId::from_bytes([table; 16]), 1, versions))
    }

    fn cipher(table: u8, secret: u8, item: u8, salt: u8) -> ItemCipher {
        ItemCipher::derive(&keys(table, secret), 1, ItemId::from_bytes([item; 16]), &[salt; 16]).unwrap()
    }

    #[test]
    fn associated_data_on_the_stack_is_that_of_the_format() {
        for (kind, code) in [(BlockKind::Data, 0), (BlockKind::Hole, 1)] {
            let same = Aad::new("kmsfs v1 block").u8(code).u64(0x0102_0304_0506_0708);
            assert_eq!(block_aad(kind, 0x0102_0304_0506_0708), same.as_bytes());
        }
        assert_eq!(header_aad(&[7; 88]), Aad::new("kmsfs v1 header").bytes(&[7; 88]).as_bytes());
    }

    #[test]
    fn a_block_opens_under_its_keys_index_and_kind_alone() {
        let mut one = cipher(1, 1, 1, 1);
        one.begin(1).unwrap();
        let mut text = *b"text";
        let seal = one.seal_block(BlockKind::Data, 7, [9; 12], &mut text).unwrap();
        let open = |cipher: &ItemCipher, kind, index, seal: Seal| {
            let mut copy = text;
            let opened = cipher.open_block(kind, index, &seal, &mut copy);
            assert_eq!(copy == *b"text", opened.is_ok());
            assert!(opened.is_ok() || copy == [0; 4], "what does not verify is wiped");
            opened.is_ok()
        };
        assert!(open(&one, BlockKind::Data, 7, seal));
        assert!(open(&cipher(1, 1, 1, 1), BlockKind::Data, 7, seal), "a later mount");
        assert!(!open(&one, BlockKind::Data, 8, seal));
        assert!(!open(&one, BlockKind::Hole, 7, seal));
        assert!(!open(&one, BlockKind::Data, 7, Seal { epoch: seal.epoch ^ 1, ..seal }));
        for other in [cipher(2, 1, 1, 1), cipher(1, 2, 1, 1), cipher(1, 1, 2, 1), cipher(1, 1, 1, 2)] {
            assert!(!open(&other, BlockKind::Data, 7, seal));
            assert_eq!(other.check_commitment(&one.commitment()), Err(EnvelopeError::Commitment));
        }
        assert_eq!(cipher(1, 1, 1, 1).check_commitment(&one.commitment()), Ok(()));
    }

    #[test]
    fn epochs_end_before_their_keys_wear_out() {
        let mut one = cipher(1, 1, 1, 1);
        let first = one.begin(SEALS_MAX).unwrap();
        assert_ne!(one.begin(1).unwrap(), first);
        let second = one.begin(SEALS_MAX - 1).unwrap();
        assert_eq!(one.begin(0).unwrap(), second);
        assert_ne!(one.begin(1).unwrap(), second);
    }

    #[test]
    fn a_table_without_the_version_has_no_key() {
        let found = ItemCipher::derive(&keys(1, 1), 2, ItemId::from_bytes([1; 16]), &[1; 16]);
        assert_eq!(found.unwrap_err(), EnvelopeError::NoKey { version: 2 });
        let mut sealed = seal_xattr(&keys(1, 1), &[1; 16], &[2; 16], b"value").unwrap();
        sealed[0] = 2;
        assert_eq!(open_xattr(&keys(1, 1), &[1; 16], &[2; 16], &sealed), Err(EnvelopeError::NoKey { version: 2 }));
    }

    #[test]
    fn an_attribute_opens_where_it_was_sealed_alone() {
        let sealed = seal_xattr(&keys(1, 1), &[1; 16], &[2; 16], b"value").unwrap();
        assert_eq!(open_xattr(&keys(1, 1), &[1; 16], &[2; 16], &sealed).unwrap(), b"value");
        assert!(open_xattr(&keys(1, 1), &[3; 16], &[2; 16], &sealed).is_err());
        assert!(open_xattr(&keys(1, 1), &[1; 16], &[3; 16], &sealed).is_err());
        assert!(open_xattr(&keys(2, 1), &[1; 16], &[2; 16], &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open_xattr(&keys(1, 1), &[1; 16], &[2; 16], &damaged).is_err(), "{bit}");
        }
        for length in 0..sealed.len() {
            assert!(open_xattr(&keys(1, 1), &[1; 16], &[2; 16], &sealed[..length]).is_err());
        }
    }

    #[test]
    fn nonces_differ_across_refills() {
        let mut nonces = Nonces::new(3);
        let drawn: std::collections::BTreeSet<_> = (0..200).map(|_| nonces.take().unwrap()).collect();
        assert_eq!(drawn.len(), 200);
        assert!(!drawn.contains(&[0; 12]));
    }

    #[test]
    fn nothing_secret_prints() {
        assert!(!format!("{:?}", cipher(1, 1, 1, 1)).contains("prk"));
    }
}
