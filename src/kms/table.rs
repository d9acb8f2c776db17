//! A table as the key service holds it: which key protects it, its names key, its unwrapped table keys.

use std::sync::{Arc, PoisonError, RwLock};

use super::data_key::TableKeys;
use super::key::Key;
use super::record::{Settings, TableRecord};
use crate::crypto::Key512;
use crate::types::{Encryption, TableId};

#[derive(Debug)]
pub struct Table {
    id: TableId,
    record: RwLock<Arc<TableRecord>>,
    key: Arc<Key>,
    names: Key512,
    /// None: the key's material is gone, or a sealed table key does not verify.
    keys: RwLock<Option<Arc<TableKeys>>>,
}

impl Table {
    pub(super) fn new(
        id: TableId,
        record: TableRecord,
        key: Arc<Key>,
        names: Key512,
        keys: Option<Arc<TableKeys>>,
    ) -> Arc<Self> {
        Arc::new(Self { id, record: RwLock::new(Arc::new(record)), key, names, keys: RwLock::new(keys) })
    }

    pub fn id(&self) -> TableId {
        self.id
    }

    pub fn record(&self) -> Arc<TableRecord> {
        Arc::clone(&self.record.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its unwrapped keys, as far as they are there.
    pub(super) fn keys(&self) -> Option<Arc<TableKeys>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a change in force that was committed.
    pub(super) fn install(&self, record: TableRecord, keys: Option<Arc<TableKeys>>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(record);
    }

    pub fn name(&self) -> String {
        self.record().name.clone()
    }

    pub fn encryption(&self) -> Encryption {
        self.record().encryption
    }

    pub fn settings(&self) -> Settings {
        self.record().settings.clone()
    }

    /// The key that protects it.
    pub fn key(&self) -> &Arc<Key> {
        &self.key
    }

    /// The key of its names: it needs no decision, since names are listed by Unix rights alone.
    pub fn names_key(&self) -> &Key512 {
        &self.names
    }
}
