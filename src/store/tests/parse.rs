//! Parsers and arbitrary bytes: an error, never a panic, never memory for a length that is only stated.

use std::io::Write;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::crypto::Key256;
use crate::store::anchor::Anchor;
use crate::store::catalog::{COPIES, Sealer, read_copy};
use crate::store::records::RecordName;
use crate::store::root::{RootFile, RootKeys};
use crate::types::StoreId;

fn keys() -> RootKeys {
    RootKeys::derive(StoreId::from_bytes([5; 16]), &Key256::from_slice(&[6; 32]).unwrap()).unwrap()
}

/// Arbitrary bytes, or such that start as the file should.
fn bytes(start: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let tail = prop::collection::vec(any::<u8>(), 0..1200);
    (any::<bool>(), tail).prop_map(move |(started, tail)| if started { [start, &tail].concat() } else { tail })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn root(bytes in bytes(b"KMSFSROT\x01\0")) {
        if let Ok(file) = RootFile::parse(&bytes) {
            prop_assert!(file.unlock(&key_file(1)).is_err());
        }
    }

    #[test]
    fn anchor(bytes in bytes(b"KMSFSANC\x01\0")) {
        prop_assert!(Anchor::decode(&bytes, &keys().anchor, StoreId::from_bytes([5; 16])).is_err());
    }

    #[test]
    fn catalog(bytes in bytes(b"KMSFSCAT\x01\0\0\0\0\0\0\0\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05")) {
        let scratch = Scratch::new();
        std::fs::File::create(scratch.path().join(COPIES[0])).unwrap().write_all(&bytes).unwrap();
        let dir = DirStorage::open(scratch.path()).unwrap().root();
        let keys = keys();
        let sealer = Sealer { key: &keys.catalog, store: StoreId::from_bytes([5; 16]) };
        let read = read_copy(dir.as_ref(), COPIES[0], sealer);
        prop_assert!(read.log.is_none() && read.fault.is_some());
    }

    #[test]
    fn record_names(name in "[0-9a-f]{30,34}\\.[0-9]{1,2}\\.[+0-9]{0,22}") {
        if let Some(parsed) = RecordName::parse(OsStr::new(&name)) {
            prop_assert_eq!(parsed.file(), name);
        }
    }
}

/// A length of 4 GiB in a sparse file of 5 GiB: the bound on entries holds, whatever the file's size.
#[test]
fn a_stated_length_takes_no_memory() {
    let scratch = Scratch::new();
    let file = std::fs::File::create(scratch.path().join(COPIES[0])).unwrap();
    file.write_all_at(b"KMSFSCAT\x01\0\0\0\0\0\0\0\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05", 0)
        .unwrap();
    file.write_all_at(&[0xff; 4], 32).unwrap();
    file.set_len(5 << 30).unwrap();
    let dir = DirStorage::open(scratch.path()).unwrap().root();
    let keys = keys();
    let read = read_copy(dir.as_ref(), COPIES[0], Sealer { key: &keys.catalog, store: StoreId::from_bytes([5; 16]) });
    assert_eq!(read.fault.unwrap().what, "its last entry is cut, or its length is damaged");
}
