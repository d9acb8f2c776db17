//! Tests of the journal on real directories: single cases here, random ones in the children.

mod cases;
mod crash;
mod model;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::store::record::Scratch;
use crate::store::storage::read_whole;
use crate::store::{DirStorage, Storage};
use crate::types::ItemId;

const STORE: StoreId = StoreId::from_bytes([3; 16]);
const FILES: usize = 2;
const START: usize = 5_000;

fn key() -> Key256 {
    Key256::from_slice(&[7; 32]).unwrap()
}

fn item(file: usize) -> ItemId {
    ItemId::from_bytes([0xa0 + u8::try_from(file).unwrap(); 16])
}

fn path_of(file: usize) -> PathBuf {
    PathBuf::from(format!("tables/t/item{file}"))
}

/// A file's bytes at the start: nothing that counts but the id.
fn start(file: usize) -> Vec<u8> {
    let mut bytes = vec![0x11; START];
    bytes[24..40].copy_from_slice(item(file).as_bytes());
    bytes
}

/// A store with `FILES` items that are durable.
fn store() -> (Scratch, DirStorage) {
    let scratch = Scratch::new().unwrap();
    let storage = DirStorage::open(scratch.path()).unwrap();
    let root = storage.root();
    root.create_dir("tables".as_ref(), 0o700).unwrap();
    let tables = root.open_dir("tables".as_ref()).unwrap();
    tables.create_dir("t".as_ref(), 0o700).unwrap();
    for file in 0..FILES {
        let name = path_of(file);
        let table = tables.open_dir("t".as_ref()).unwrap();
        let made = table.create_file(name.file_name().unwrap(), 0o600).unwrap();
        made.write_all_at(&start(file), 0).unwrap();
    }
    (scratch, storage)
}

fn open_backing(root: &Arc<dyn Dir>, path: &Path) -> Arc<dyn File> {
    let mut dir = Arc::clone(root);
    for folder in path.parent().unwrap() {
        dir = dir.open_dir(folder).unwrap();
    }
    dir.open_file(path.file_name().unwrap(), true).unwrap()
}

fn open_item(journal: &Arc<Journal>, root: &Arc<dyn Dir>, file: usize) -> Arc<JournaledFile> {
    let backing = open_backing(root, &path_of(file));
    let len = backing.stat().unwrap().size;
    JournaledFile::open(journal, backing, item(file), path_of(file), len).unwrap()
}

fn open_items(journal: &Arc<Journal>, root: &Arc<dyn Dir>) -> Vec<Arc<JournaledFile>> {
    (0..FILES).map(|file| open_item(journal, root, file)).collect()
}

fn open(root: &Arc<dyn Dir>) -> (Arc<Journal>, Replayed) {
    Journal::open(root, key(), STORE, 1, |_| true).unwrap()
}

/// What is in the backing files.
fn backing_bytes(root: &Arc<dyn Dir>) -> Vec<Vec<u8>> {
    (0..FILES).map(|file| read_whole(open_backing(root, &path_of(file)).as_ref(), 1 << 30).unwrap()).collect()
}

fn read_all(file: &JournaledFile) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(file.len()).unwrap() + 10];
    let count = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(count);
    bytes
}

/// A change as a test draws it.
#[derive(Debug, Clone)]
enum Edit {
    Write { offset: usize, length: usize, fill: u8 },
    SetLen(usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let offset = prop_oneof![40..200_usize, 3_900..4_300_usize, 40..20_000_usize];
    let length = prop_oneof![1..40_usize, 1..6_000_usize];
    let write =
        (offset.clone(), length, 1..=255_u8).prop_map(|(offset, length, fill)| Edit::Write { offset, length, fill });
    proptest::collection::vec(prop_oneof![4 => write, 1 => offset.prop_map(Edit::SetLen)], 1..4)
}

/// Makes the edits on a model; returns what to commit. Each written byte depends on its place, too.
fn edit(model: &mut Vec<u8>, edits: &[Edit]) -> Vec<(usize, Option<Vec<u8>>)> {
    let mut ops = Vec::new();
    for edit in edits {
        match *edit {
            Edit::Write { offset, length, fill } => {
                let bytes: Vec<u8> = (0..length).map(|i| fill ^ u8::try_from(i % 7).unwrap()).collect();
                if model.len() < offset + length {
                    model.resize(offset + length, 0);
                }
                model[offset..offset + length].copy_from_slice(&bytes);
                ops.push((offset, Some(bytes)));
            }
            Edit::SetLen(length) => {
                model.resize(length, 0);
                ops.push((length, None));
            }
        }
    }
    ops
}

fn commit(file: &JournaledFile, ops: &[(usize, Option<Vec<u8>>)]) -> io::Result<()> {
    let ops: Vec<Op<'_>> = ops
        .iter()
        .map(|(at, bytes)| match bytes {
            Some(bytes) => Op::Write { offset: *at as u64, bytes },
            None => Op::SetLen(*at as u64),
        })
        .collect();
    file.commit(&ops)
}
