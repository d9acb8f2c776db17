//! Tests of the item layer on real directories: single cases and attacks here and in `tamper`, random work against a
//! model in `model`, crashes at every call in `crash`, single crashes in `durable`.

mod cases;
mod crash;
mod durable;
mod model;
mod re_encrypt;
mod tamper;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::crypto::{Key256, Key512};
use crate::kms::{DataKey, ReSealKey, SealKey, TableKeys};
use crate::store::record::Scratch;
use crate::store::{DirStorage, RenameFlags, Storage};
use crate::types::StoreId;

const TABLE: TableId = TableId::from_bytes([0x7a; 16]);

fn table_keys(table: TableId, current: u32) -> Arc<TableKeys> {
    TableKeys::for_tests(table, current, versions(1, current))
}

/// The keys of these versions.
fn versions(from: u32, to: u32) -> BTreeMap<u32, Key256> {
    let secret = |version: u32| Key256::from_slice(&[u8::try_from(version).unwrap(); 32]).unwrap();
    (from..=to).map(|version| (version, secret(version))).collect()
}

fn data_key() -> DataKey {
    DataKey::for_tests(table_keys(TABLE, 1))
}

fn seal_key() -> SealKey {
    SealKey::for_tests(table_keys(TABLE, 1))
}

fn table_path(table: TableId) -> PathBuf {
    PathBuf::from(format!("tables/{table}"))
}

/// One mount of a store with one table.
struct Mount {
    journal: Arc<Journal>,
    root: Arc<Folder>,
    keys: Arc<TableKeys>,
    data: DataKey,
    seal: SealKey,
}

impl Mount {
    fn names() -> Names {
        Names::new(TABLE, Key512::from_slice(&[5; 64]).unwrap()).unwrap()
    }

    fn journal(root: &Arc<dyn Dir>, epoch: u64, unclean: &BTreeSet<u64>) -> Arc<Journal> {
        let (key, store) = (Key256::from_slice(&[7; 32]).unwrap(), StoreId::from_bytes([3; 16]));
        Journal::open(root, key, store, epoch, |epoch| unclean.contains(&epoch)).unwrap().0
    }

    /// Makes the table and mounts it, as epoch 1.
    fn create(root: &Arc<dyn Dir>) -> Self {
        root.create_dir("tables".as_ref(), 0o700).unwrap();
        let tables = root.open_dir("tables".as_ref()).unwrap();
        tables.create_dir(TABLE.to_string().as_ref(), 0o700).unwrap();
        let dir = tables.open_dir(TABLE.to_string().as_ref()).unwrap();
        let journal = Self::journal(root, 1, &BTreeSet::new());
        let table = Table::new(Self::names(), Arc::clone(&journal), Mounts::new(1, Vec::new()), false);
        let root = Folder::create_root(&table, dir, table_path(TABLE)).unwrap();
        Self::of(journal, root)
    }

    fn of(journal: Arc<Journal>, root: Arc<Folder>) -> Self {
        let keys = table_keys(TABLE, 1);
        let (data, seal) = (DataKey::for_tests(Arc::clone(&keys)), SealKey::for_tests(Arc::clone(&keys)));
        Self { journal, root, keys, data, seal }
    }

    /// What re-encryption works with.
    fn re_seal(&self) -> ReSealKey {
        ReSealKey::for_tests(Arc::clone(&self.keys))
    }

    fn open(root: &Arc<dyn Dir>, epoch: u64, unclean: &[u64]) -> Self {
        let unclean: BTreeSet<u64> = unclean.iter().copied().collect();
        let journal = Self::journal(root, epoch, &unclean);
        let table = Table::new(
            Self::names(),
            Arc::clone(&journal),
            Mounts::new(epoch, unclean.into_iter().map(|epoch| (epoch, epoch)).collect()),
            false,
        );
        let tables = root.open_dir("tables".as_ref()).unwrap();
        let dir = tables.open_dir(TABLE.to_string().as_ref()).unwrap();
        let root = Folder::open_root(&table, dir, table_path(TABLE)).unwrap();
        Self::of(journal, root)
    }

    fn name(&self, name: &str) -> StoredName {
        self.root.seal_name(name.as_bytes()).unwrap()
    }

    fn make(&self, name: &str, content: &[u8]) -> Arc<Item> {
        let item = self.empty(name);
        item.write(&self.seal, content, 0).unwrap();
        item
    }

    fn empty(&self, name: &str) -> Arc<Item> {
        Item::create(&self.root, &self.name(name), 0o600, None, ItemKind::Regular, &[], &self.seal).unwrap()
    }

    fn item(&self, name: &str) -> Result<Arc<Item>, TableError> {
        Item::open(&self.root, &self.name(name))
    }

    fn read(&self, item: &Item) -> Result<Vec<u8>, TableError> {
        read_all(item, &self.data)
    }

    fn read_name(&self, name: &str) -> Result<Vec<u8>, TableError> {
        self.read(self.item(name)?.as_ref())
    }

    /// Where an item's backing file is, in a store at `store`.
    fn backing(&self, store: &std::path::Path, name: &str) -> PathBuf {
        store.join(table_path(TABLE)).join(self.name(name).on_disk())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Nothing is closed in good order here; what is, was before.
        self.journal.abandon();
    }
}

/// All of an item, read in two sizes that must agree.
fn read_all(item: &Item, key: &DataKey) -> Result<Vec<u8>, TableError> {
    item.verify(key)?;
    let size = usize::try_from(item.size().unwrap()).unwrap();
    let mut whole = vec![0xee; size + 10];
    let count = item.read(key, &mut whole, 0)?;
    assert_eq!(count, size);
    assert!(whole[size..].iter().all(|byte| *byte == 0xee));
    whole.truncate(size);
    let (mut at, mut piece) = (0, vec![0; 5000]);
    while at < size {
        let count = item.read(key, &mut piece, at as u64)?;
        assert_eq!(piece[..count], whole[at..at + count], "at {at}");
        at += count;
    }
    assert_eq!(item.read(key, &mut piece, size as u64)?, 0);
    Ok(whole)
}

/// `length` bytes that differ from place to place.
fn pattern(length: usize, seed: u8) -> Vec<u8> {
    let byte = |index: usize| u8::try_from((index * 7 + index / 251 + usize::from(seed) * 31) % 256).unwrap();
    (0..length).map(byte).collect()
}

/// A store in a directory of its own.
fn store() -> (Scratch, Arc<dyn Dir>) {
    let scratch = Scratch::new().unwrap();
    let root = DirStorage::open(scratch.path()).unwrap().root();
    (scratch, root)
}

fn names_of(folder: &Folder) -> BTreeMap<Vec<u8>, OsString> {
    folder.list().unwrap().entries.into_iter().map(|entry| (entry.name, entry.on_disk)).collect()
}

fn place<'a>(folder: &'a Arc<Folder>, name: &'a StoredName) -> Place<'a> {
    Place { folder, name }
}

fn rename_item(mount: &Mount, from: &str, to: &str, item: &Arc<Item>, target: Option<&Arc<Item>>) {
    try_rename_item(mount, from, to, item, target).unwrap();
}

fn try_rename_item(
    mount: &Mount,
    from: &str,
    to: &str,
    item: &Arc<Item>,
    target: Option<&Arc<Item>>,
) -> Result<(), TableError> {
    let (from, to) = (mount.name(from), mount.name(to));
    item.verify(&mount.seal)?;
    let (from, to) = (place(&mount.root, &from), place(&mount.root, &to));
    rename(from, to, Moved::Item(item), target.map(Moved::Item), RenameFlags::None)
}

/// Puts an attacker's bytes in place of a file's.
#[expect(clippy::disallowed_methods, reason = "an attacker writes past the storage")]
fn overwrite(path: &std::path::Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}
