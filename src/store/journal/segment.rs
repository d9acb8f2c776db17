//! The bytes of a segment: a pure codec, no input or output (docs/format.md, section 8).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::Op;
use crate::crypto::{Aad, AeadKey, CryptoError, Key256, NONCE_LEN, Prk, Secret, TAG_LEN, equal, hmac_sha256};
use crate::types::{ItemId, StoreId};

const MAGIC: [u8; 8] = *b"KMSFSJNL";
const VERSION: u16 = 1;
const MAC_LEN: usize = 32;
/// Bytes of a segment's header.
pub(super) const HEADER_LEN: usize = 104;
pub(super) const HEADER_BYTES: u64 = HEADER_LEN as u64;
/// Bytes before a record's sealed box: the box's length.
pub(super) const PREFIX_LEN: usize = 4;
/// The longest sealed box.
pub(super) const MAX_BOX_LEN: usize = 64 << 20;
/// Where an item's header holds its id (docs/format.md, section 6.3).
pub(super) const ITEM_ID_AT: u64 = 24;
/// The end of the item id: no file that the journal names is shorter.
pub(super) const ITEM_ID_END: u64 = 40;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) store: StoreId,
    /// Random, drawn anew for each segment: the records' key is derived from it.
    pub(super) session: [u8; 16],
    pub(super) number: u64,
    /// Sequence number of the first record.
    pub(super) first: u64,
    /// The mount epoch that wrote it.
    pub(super) epoch: u64,
}

impl Header {
    pub(super) fn encode(&self, key: &Key256) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(self.store.as_bytes());
        bytes.extend_from_slice(&self.session);
        for number in [self.number, self.first, self.epoch] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&mac(key, &bytes));
        bytes
    }

    /// None unless every byte is as this key wrote it.
    pub(super) fn decode(bytes: &[u8; HEADER_LEN], key: &Key256) -> Option<Self> {
        let (body, tag) = bytes.split_last_chunk::<MAC_LEN>()?;
        if !equal(&mac(key, body), tag) {
            return None;
        }
        let mut fields = Fields(body);
        if fields.array()? != MAGIC || u16::from_le_bytes(fields.array()?) != VERSION || fields.array()? != [0; 6] {
            return None;
        }
        Some(Self {
            store: StoreId::from_bytes(fields.array()?),
            session: fields.array()?,
            number: u64::from_le_bytes(fields.array()?),
            first: u64::from_le_bytes(fields.array()?),
            epoch: u64::from_le_bytes(fields.array()?),
        })
    }

    /// The key of this segment's records.
    pub(super) fn record_key(&self, key: &Key256) -> Result<AeadKey, CryptoError> {
        AeadKey::new(&Prk::extract(&self.session, key.expose()).expand(&Aad::new("kmsfs v1 journal key")))
    }
}

/// The header's MAC has a key of its own: 'journal' itself keys nothing but derivations.
fn mac(key: &Key256, body: &[u8]) -> [u8; MAC_LEN] {
    let mac_key: Secret<32> = Prk::extract(&[], key.expose()).expand(&Aad::new("kmsfs v1 journal header"));
    hmac_sha256(&mac_key, body)
}

fn aad(number: u64, sequence: u64) -> Aad {
    Aad::new("kmsfs v1 journal").u64(number).u64(sequence)
}

/// A record before it is sealed: room for prefix and nonce, then the plaintext.
#[derive(Debug)]
pub(super) struct Draft(Vec<u8>);

impl Draft {
    /// # Errors
    /// EFBIG for more than a record can hold.
    pub(super) fn new(item: ItemId, path: &Path, ops: &[Op<'_>]) -> Result<Self, Errno> {
        let data: usize = ops.iter().map(|op| 13 + op.bytes().len()).sum();
        let path = path.as_os_str().as_bytes();
        let length = NONCE_LEN + 20 + path.len() + data + TAG_LEN;
        if length > MAX_BOX_LEN {
            return Err(Errno::FBIG);
        }
        let mut bytes = Vec::with_capacity(PREFIX_LEN + length);
        bytes.extend_from_slice(&u32::try_from(length).map_err(|_| Errno::FBIG)?.to_le_bytes());
        bytes.extend_from_slice(&[0; NONCE_LEN]);
        bytes.extend_from_slice(item.as_bytes());
        bytes.extend_from_slice(&u16::try_from(path.len()).map_err(|_| Errno::NAMETOOLONG)?.to_le_bytes());
        bytes.extend_from_slice(path);
        bytes.extend_from_slice(&u16::try_from(ops.len()).map_err(|_| Errno::FBIG)?.to_le_bytes());
        for op in ops {
            let (kind, at) = match op {
                Op::Write { offset, .. } => (1_u8, *offset),
                Op::SetLen(length) => (2, *length),
            };
            bytes.push(kind);
            bytes.extend_from_slice(&at.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(op.bytes().len()).map_err(|_| Errno::FBIG)?.to_le_bytes());
            bytes.extend_from_slice(op.bytes());
        }
        Ok(Self(bytes))
    }

    /// The record as it stands in a segment: prefix and sealed box.
    pub(super) fn seal(mut self, key: &AeadKey, number: u64, sequence: u64) -> Result<Vec<u8>, CryptoError> {
        let start = PREFIX_LEN + NONCE_LEN;
        let (head, body) = self.0.split_at_mut_checked(start).ok_or(CryptoError::TooShort)?;
        let sealed = key.seal_random(aad(number, sequence).as_bytes(), body)?;
        head.get_mut(PREFIX_LEN..).ok_or(CryptoError::TooShort)?.copy_from_slice(&sealed.nonce);
        self.0.extend_from_slice(&sealed.tag);
        Ok(self.0)
    }
}

/// A record that has been verified.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) item: ItemId,
    pub(super) path: PathBuf,
    pub(super) ops: Vec<RecordOp>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum RecordOp {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
}

impl Record {
    /// None unless the box verifies as this record of this segment, and is well-formed.
    pub(super) fn open(key: &AeadKey, number: u64, sequence: u64, sealed: &[u8]) -> Option<Self> {
        let text = key.open_box(&aad(number, sequence), sealed).ok()?;
        let mut fields = Fields(&text);
        let item = ItemId::from_bytes(fields.array()?);
        let path_len = u16::from_le_bytes(fields.array()?);
        let path = PathBuf::from(OsStr::from_bytes(fields.take(path_len.into())?));
        let count = u16::from_le_bytes(fields.array()?);
        let mut ops = Vec::new();
        for _ in 0..count {
            let [kind] = fields.array()?;
            let at = u64::from_le_bytes(fields.array()?);
            let length = u32::from_le_bytes(fields.array()?);
            let bytes = fields.take(usize::try_from(length).ok()?)?;
            ops.push(match kind {
                1 => RecordOp::Write { offset: at, bytes: bytes.to_vec() },
                2 if bytes.is_empty() => RecordOp::SetLen(at),
                _ => return None,
            });
        }
        fields.0.is_empty().then_some(Self { item, path, ops })
    }
}

/// The components of a path that a record may name: below `tables/`, none of them special.
pub(super) fn safe_components(path: &Path) -> Option<Vec<&OsStr>> {
    // Components would drop a '.', a double slash and a trailing one, so what it gives is held against the bytes.
    let components: Option<Vec<&OsStr>> = path
        .components()
        .map(|component| match component {
            Component::Normal(name) => Some(name),
            Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
        })
        .collect();
    let components = components?;
    let plain = components.iter().map(|name| name.as_bytes()).collect::<Vec<_>>().join(&b'/');
    let below = components.first().is_some_and(|name| *name == "tables") && components.len() >= 3;
    (below && plain == path.as_os_str().as_bytes() && !plain.contains(&0)).then_some(components)
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key256 {
        Key256::from_slice(&[7; 32]).unwrap()
    }

    fn header() -> Header {
        let store = StoreId::from_bytes([1; 16]);
        Header { store, session: [2; 16], number: 3, first: 4, epoch: 5 }
    }

    #[test]
    fn a_header_verifies_as_a_whole() {
        let bytes: [u8; HEADER_LEN] = header().encode(&key()).try_into().unwrap();
        assert_eq!(Header::decode(&bytes, &key()), Some(header()));
        for bit in 0..HEADER_LEN * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&damaged, &key()), None, "bit {bit}");
        }
        assert_eq!(Header::decode(&bytes, &Key256::from_slice(&[8; 32]).unwrap()), None);
    }

    #[test]
    fn a_record_opens_in_its_place_alone() {
        let aead = header().record_key(&key()).unwrap();
        let item = ItemId::from_bytes([9; 16]);
        let ops = [Op::Write { offset: 5, bytes: b"abc" }, Op::SetLen(1 << 40)];
        let sealed = Draft::new(item, Path::new("tables/t/x"), &ops).unwrap().seal(&aead, 3, 4).unwrap();
        assert_eq!(sealed.len(), PREFIX_LEN + 12 + 16 + 2 + 10 + 2 + 13 + 3 + 13 + 16);
        let sealed = &sealed[PREFIX_LEN..];
        let record = Record::open(&aead, 3, 4, sealed).unwrap();
        assert_eq!((record.item, record.path), (item, PathBuf::from("tables/t/x")));
        let expected = [RecordOp::Write { offset: 5, bytes: b"abc".to_vec() }, RecordOp::SetLen(1 << 40)];
        assert_eq!(record.ops, expected);
        assert_eq!(Record::open(&aead, 3, 5, sealed), None);
        assert_eq!(Record::open(&aead, 4, 4, sealed), None);
        let other = Header { session: [3; 16], ..header() }.record_key(&key()).unwrap();
        assert_eq!(Record::open(&other, 3, 4, sealed), None);
        for length in 0..sealed.len() {
            assert_eq!(Record::open(&aead, 3, 4, &sealed[..length]), None);
        }
    }

    #[test]
    fn paths_that_leave_the_tables_are_refused() {
        assert_eq!(safe_components(Path::new("tables/t/a/b")).map(|c| c.len()), Some(4));
        for bad in [
            "",
            "/",
            "tables",
            "tables/t",
            "/tables/t/x",
            "root",
            "tables/../root",
            "tables/t/..",
            "tables/t/../../catalog.a",
            "./tables/t/x",
            "tables/./t/x",
            "tables//t/x",
            "tables/t/x/",
            "records/t/x",
            "tables/t/x\0",
            "../tables/t/x",
        ] {
            assert_eq!(safe_components(Path::new(bad)), None, "{bad:?}");
        }
    }
}
