//! A table as the key service holds it: which key protects it, its names key, its unwrapped table keys.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::data_key::{HeaderKey, TableKeys};
use super::key::Key;
use super::record::{ReEncryption, Settings, TableRecord};
use crate::crypto::{Key256, Key512};
use crate::types::{Encryption, TableId};

#[derive(Debug)]
pub struct Table {
    id: TableId,
    id_text: String,
    record: RwLock<Arc<TableRecord>>,
    bound: Bound,
    names: Key512,
    pub(super) keys: Arc<TableKeys>,
}

/// The key that protects a table, and the one that came after it: a table that moves to another key adds to the end, so
/// that to find the key of now takes no lock.
#[derive(Debug)]
struct Bound {
    key: Arc<Key>,
    next: OnceLock<Box<Self>>,
}

impl Bound {
    const fn to(key: Arc<Key>) -> Self {
        Self { key, next: OnceLock::new() }
    }

    fn last(&self) -> &Self {
        let mut last = self;
        while let Some(next) = last.next.get() {
            last = next;
        }
        last
    }
}

impl Drop for Bound {
    /// Without recursion: nobody counts how often a table moves.
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut bound) = next {
            next = bound.next.take();
        }
    }
}

impl Table {
    /// Without `keys`: the key's material is gone, or a sealed table key does not verify.
    pub(super) fn new(
        id: TableId,
        record: TableRecord,
        key: Arc<Key>,
        names: Key512,
        keys: Option<BTreeMap<u32, Key256>>,
    ) -> Arc<Self> {
        let keys = TableKeys::new(id, keys);
        Arc::new(Self {
            id,
            id_text: id.to_string(),
            record: RwLock::new(Arc::new(record)),
            bound: Bound::to(key),
            names,
            keys,
        })
    }

    pub fn id(&self) -> TableId {
        self.id
    }

    /// The id as the trail has it.
    pub(super) fn id_text(&self) -> &str {
        &self.id_text
    }

    pub fn record(&self) -> Arc<TableRecord> {
        Arc::clone(&self.record.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn name(&self) -> String {
        self.record().name.clone()
    }

    pub fn encryption(&self) -> Encryption {
        self.record().encryption
    }

    pub fn settings(&self) -> Settings {
        self.record.read().unwrap_or_else(PoisonError::into_inner).settings
    }

    /// The order to seal its items anew that is not carried out yet.
    pub fn re_encryption(&self) -> Option<ReEncryption> {
        self.record.read().unwrap_or_else(PoisonError::into_inner).re_encryption
    }

    /// The key that protects it.
    pub fn key(&self) -> &Arc<Key> {
        &self.bound.last().key
    }

    /// With what headers are verified; none where there are no keys to be had.
    pub fn header_key(&self) -> Option<HeaderKey> {
        self.keys.are_there().then(|| HeaderKey::new(Arc::clone(&self.keys)))
    }

    /// The key of its names: it needs no decision, since names are listed by Unix rights alone.
    pub fn names_key(&self) -> &Key512 {
        &self.names
    }

    pub(super) fn install(&self, record: TableRecord) {
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(record);
    }

    /// From now on another key protects it. Whatever was decided under the old one is decided anew, since no two keys
    /// have a generation in common. The caller holds `changes`, so that nobody else adds.
    pub(super) fn move_to(&self, key: Arc<Key>, record: TableRecord) {
        let moved = self.bound.last().next.set(Box::new(Bound::to(key)));
        debug_assert!(moved.is_ok());
        self.install(record);
    }
}
