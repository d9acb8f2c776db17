//! Tests of a store's life on real directories: what is written, what damage and put-back files give, what a crash or
//! a full disk at any call leaves.

mod crash;
mod damage;
mod life;
mod parse;
mod slots;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::lifecycle::{Found, Open, Store};
use super::record::RecordingStorage;
use super::root::NewSlot;
use super::storage::{Dir, Storage};
use super::{Change, Credential, DirStorage, RecordKind, StoreError, TrailHead};
use crate::crypto::{Argon2Params, SecretBytes};

/// A directory of this test's own, removed with what is in it.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = Some(PathBuf::from("/dev/shm")).filter(|path| path.is_dir()).unwrap_or_else(std::env::temp_dir);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("kmsfs-store-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn key_file(byte: u8) -> Credential {
    Credential::KeyFile(SecretBytes::new(vec![byte; 32]))
}

pub(super) fn slot(label: &str) -> NewSlot<'_> {
    NewSlot { params: Argon2Params::FLOOR, label, created: 1_700_000_000 }
}

pub(super) fn how(base: &Path) -> Open {
    Open {
        read_only: false,
        anchor_dir: base.join("anchors"),
        owner: "4711 testhost /mnt/kms".to_owned(),
        accept_anchor: false,
    }
}

pub(super) fn read_only(base: &Path) -> Open {
    Open { read_only: true, ..how(base) }
}

pub(super) fn accepting(base: &Path) -> Open {
    Open { accept_anchor: true, ..how(base) }
}

/// A new store in `base/store`, its anchors in `base/anchors`.
pub(super) fn create(base: &Path) -> Store {
    Store::create(&base.join("store"), &key_file(1), Argon2Params::FLOOR, "first", &how(base)).unwrap()
}

pub(super) fn open(base: &Path, how: &Open) -> Result<Store, StoreError> {
    Store::open(&base.join("store"), &key_file(1), how)
}

/// The same through a recording of everything below `base`.
pub(super) fn open_recorded(recording: &RecordingStorage, base: &Path) -> Store {
    let (store, anchors) = halves(recording);
    Store::open_in(store, Some(anchors.as_ref()), &key_file(1), &how(base)).unwrap()
}

pub(super) fn halves(recording: &RecordingStorage) -> (Arc<dyn Dir>, Arc<dyn Dir>) {
    let root = recording.root();
    (root.open_dir(OsStr::new("store")).unwrap(), root.open_dir(OsStr::new("anchors")).unwrap())
}

pub(super) fn record(base: &Path) -> RecordingStorage {
    RecordingStorage::new(&DirStorage::open(base).unwrap()).unwrap()
}

pub(super) fn trail(sequence: u64) -> TrailHead {
    TrailHead { segment: 1, sequence, head: [u8::try_from(sequence % 256).unwrap(); 32] }
}

pub(super) const fn put(kind: RecordKind, id: u8, content: &[u8]) -> Change<'_> {
    Change { kind, id: [id; 16], content: Some(content) }
}

pub(super) fn content(store: &Store, id: u8) -> Vec<u8> {
    store.read_record(RecordKind::Key, [id; 16]).unwrap().to_vec()
}

/// The one file that some text is in the name of.
pub(super) fn only(dir: &Path, part: &str) -> PathBuf {
    let mut found: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().to_str().unwrap().contains(part));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

pub(super) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What a first opening on this host always finds, and an unclean stop, left out.
pub(super) fn damage(store: &Store) -> Vec<&Found> {
    let harmless = |found: &&Found| !matches!(found, Found::NoAnchor | Found::UncleanStop { .. });
    store.events().iter().filter(harmless).collect()
}
