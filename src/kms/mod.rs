//! Level 3: keys, their states, and every decision about them.
//!
//! The only caller of the policy engine and of the audit trail. Invariants: a `DataKey` exists only after a decision to
//! Decrypt that the trail has; a change is in force only after the catalog and the anchor have it; every error
//! on the way to a decision denies. It refuses to hand out raw key bytes.

mod blast;
mod ciphertext;
mod clock;
mod command;
mod data_key;
mod decide;
mod describe;
mod destroy;
mod direct;
mod error;
mod events;
mod explain;
mod grant;
mod key;
mod life;
mod load;
mod manage;
mod query;
mod record;
mod request;
mod retire;
mod rotate;
mod table;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
mod time;
mod update_table;
mod wrap;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use crate::audit::Trail;
use crate::crypto::AeadKey;
use crate::store::Store;
use crate::types::{KeyId, Principal, StoreId, TableId};

pub use blast::{BlastRadius, TableRadius};
pub use ciphertext::{CIPHERTEXT_LEAST, CIPHERTEXT_MAGIC, CIPHERTEXT_MOST, Ciphertext, PLAINTEXT_MOST};
pub use command::{StoreCommand, TableCommand};
pub use data_key::{DataKey, HeaderKey, ItemKeySource, ReSealKey, SealKey, TableKeys};
pub use decide::{ItemAsked, Standing};
pub use direct::GeneratedKey;
pub use error::KmsError;
pub use events::TrailLines;
pub use explain::Explanation;
pub use grant::{GrantLines, GrantSpec, Issued};
pub use key::{BoundPolicy, Key, KeyNow};
pub use load::Damaged;
pub use manage::{KeySpec, TableSpec};
pub use query::{About, PolicyDiff, Query, Simulate, WhoCan};
pub use record::{
    CacheMode, Deletion, KeyOrigin, KeyRecord, NamesMode, OnRevoke, ReEncryption, Receipt, ReceiptTable, Rotation,
    RotationType, Settings, TableRecord, hex,
};
pub use request::{
    ContextRequest, DataKeyRequest, DirectRequest, REQUEST_LINE_MOST, ReEncryptRequest, base64_into, line_and_data,
    parse_line,
};
pub use table::Table;
pub use update_table::{Ordered, SettingsChange};

/// The name of the managed key.
pub const MANAGED_KEY: &str = "kmsfs-managed";
/// The name of the owned key, which no listing shows.
pub const OWNED_KEY: &str = "kmsfs-owned";

/// Who asks, and how he came.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A caller of the mount; `tid` is for the trail.
    Caller { principal: &'a Principal, tid: u32 },
    /// Whoever holds the root of trust and works on an unmounted store: allowed every management action, audited
    /// with the reason, and no cryptographic one.
    Custodian { uid: u32, reason: &'a str },
}

impl Subject<'_> {
    pub fn uid(&self) -> u32 {
        match self {
            Self::Caller { principal, .. } => principal.uid,
            Self::Custodian { uid, .. } => *uid,
        }
    }
}

/// The key service of one store.
#[derive(Debug)]
pub struct Kms {
    store: Arc<Store>,
    /// None: mounted read-only.
    trail: Option<Arc<Trail>>,
    clock: clock::Clock,
    inner: RwLock<Inner>,
    /// Held through a change, so that changes come one after the other.
    changes: Mutex<()>,
    names: RwLock<HashMap<u32, Option<Arc<str>>>>,
    /// When the daemon's own work, which has failed, is tried again: seconds of the observed time.
    retry_at: std::sync::atomic::AtomicI64,
}

#[derive(Debug)]
struct Inner {
    keys: HashMap<KeyId, Arc<Key>>,
    key_names: BTreeMap<String, KeyId>,
    tables: HashMap<TableId, Arc<Table>>,
    table_names: BTreeMap<String, TableId>,
    /// None: its record does not verify, so nothing that needs it is allowed.
    policy: Option<Arc<BoundPolicy>>,
    /// The store was made for tests.
    for_tests: bool,
}

impl Kms {
    pub fn store_id(&self) -> StoreId {
        self.store.id()
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub fn trail(&self) -> Option<&Arc<Trail>> {
        self.trail.as_ref()
    }

    /// The keys that have a name to be listed by: all but the owned one and those whose record does not verify.
    pub fn key_names(&self) -> Vec<(String, KeyId)> {
        self.read()
            .key_names
            .iter()
            .filter(|(name, _)| name.as_str() != OWNED_KEY)
            .map(|(name, id)| (name.clone(), *id))
            .collect()
    }

    pub fn key(&self, id: KeyId) -> Result<Arc<Key>, KmsError> {
        self.read().keys.get(&id).cloned().ok_or(KmsError::NotFound)
    }

    pub fn key_named(&self, name: &str) -> Result<Arc<Key>, KmsError> {
        let inner = self.read();
        let id = inner.key_names.get(name).ok_or(KmsError::NotFound)?;
        inner.keys.get(id).cloned().ok_or(KmsError::NotFound)
    }

    pub fn tables(&self) -> Vec<Arc<Table>> {
        let inner = self.read();
        inner.table_names.values().filter_map(|id| inner.tables.get(id).cloned()).collect()
    }

    pub fn table_named(&self, name: &str) -> Result<Arc<Table>, KmsError> {
        let inner = self.read();
        let id = inner.table_names.get(name).ok_or(KmsError::NotFound)?;
        inner.tables.get(id).cloned().ok_or(KmsError::NotFound)
    }

    pub fn table(&self, id: TableId) -> Result<Arc<Table>, KmsError> {
        self.read().tables.get(&id).cloned().ok_or(KmsError::NotFound)
    }

    /// The store's own policy.
    pub fn store_policy(&self) -> Result<Arc<BoundPolicy>, KmsError> {
        self.read().policy.clone().ok_or(KmsError::Tampered)
    }

    /// Ends the trail and closes the mount epoch in good order; called once, when everything else is in place.
    pub fn close(&self) -> Result<(), KmsError> {
        if let Some(trail) = &self.trail {
            // Nothing that is due is begun any more, and what is under way is waited for.
            self.retry_at.store(i64::MAX, std::sync::atomic::Ordering::Relaxed);
            let _changing = self.changing();
            let head = trail.close()?;
            self.store.note_clock(self.clock.observe());
            self.store.close_clean(head)?;
        }
        Ok(())
    }

    /// Seconds since 1970, never going back but for `reset_clock`.
    pub fn now(&self) -> i64 {
        self.clock.now()
    }

    /// Seals key material and names keys.
    fn wrap(&self) -> &AeadKey {
        &self.store.keys().wrap
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
