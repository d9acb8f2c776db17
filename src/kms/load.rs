//! The key service as a store's records have it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, RwLock};

use super::clock::Clock;
use super::grant::key_prefix;
use super::key::{BoundPolicy, Key};
use super::record::{KeyRecord, PolicyRecord, StoreRecord, TableRecord};
use super::table::Table;
use super::wrap::{self, Wrapped};
use super::{Inner, Kms, KmsError, Subject};
use crate::audit::Trail;
use crate::policy::{self, Bindings, PForm, Policy};
use crate::store::{Change, RecordKind, Store};
use crate::types::{KeyId, TableId};

/// What is wrong with an object's record; the rest of the store is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    pub kind: RecordKind,
    pub id: [u8; 16],
}

impl Kms {
    /// A new store's key service: its own keys, and a policy that makes `administrators` administrators.
    pub fn initialise(store: Arc<Store>, trail: Arc<Trail>, administrators: &[PForm]) -> Result<Self, KmsError> {
        Self::make(store, trail, administrators, false)
    }

    /// The same for a store that is not for use: its clock may be moved.
    pub fn initialise_for_tests(
        store: Arc<Store>,
        trail: Arc<Trail>,
        administrators: &[PForm],
    ) -> Result<Self, KmsError> {
        Self::make(store, trail, administrators, true)
    }

    fn make(store: Arc<Store>, trail: Arc<Trail>, administrators: &[PForm], for_tests: bool) -> Result<Self, KmsError> {
        let clock = Clock::new(store.clock(), Self::test_clock(for_tests)?);
        let kms = Self::empty(store, Some(trail), clock);
        let policy = PolicyRecord {
            text: policy::default_store_policy(administrators),
            bindings: Bindings::default(),
            generation: 1,
        };
        let mut contents = vec![(
            RecordKind::StorePolicy,
            *kms.store_id().as_bytes(),
            super::manage::to_json(&StoreRecord { policy: bound(policy)?, for_tests })?,
        )];
        for (id, record) in kms.own_key_records()? {
            contents.push((RecordKind::Key, *id.as_bytes(), super::manage::to_json(&record)?));
        }
        let changes: Vec<_> = contents
            .iter()
            .map(|(kind, id, content)| Change { kind: *kind, id: *id, content: Some(content.as_slice()) })
            .collect();
        kms.log_daemon("CreateStore", &format!("store {}", kms.store_id()))?;
        let head = kms.trail.as_ref().map_or(Ok(kms.store.trail_head()), |trail| trail.sync())?;
        kms.store.note_clock(kms.clock.observe());
        kms.store.commit(&changes, head)?;
        kms.load_all();
        Ok(kms)
    }

    /// The key service of an existing store, and what in its records does not verify.
    /// Without a trail: for a read-only mount.
    pub fn open(store: Arc<Store>, trail: Option<Arc<Trail>>) -> Result<(Self, Vec<Damaged>), KmsError> {
        let clock = Clock::new(store.clock(), Self::clock_of(&store)?);
        let kms = Self::empty(store, trail, clock);
        let damaged = kms.load_all();
        for damage in &damaged {
            kms.log_tampering(&format!("record {} of kind {:?}", super::record::hex(&damage.id), damage.kind))?;
        }
        Ok((kms, damaged))
    }

    /// Refuses a store for use where a test's clock is asked for; else gives the file that moves it, if there is one.
    /// To be asked before anything is written.
    pub fn clock_of(store: &Store) -> Result<Option<PathBuf>, KmsError> {
        // A record that does not verify says nothing, so that the clock is the host's.
        Self::test_clock(store_record(store).is_ok_and(|record| record.for_tests))
    }

    fn empty(store: Arc<Store>, trail: Option<Arc<Trail>>, clock: Clock) -> Self {
        Self {
            store,
            trail,
            clock,
            inner: RwLock::new(Inner {
                keys: HashMap::new(),
                key_names: BTreeMap::new(),
                tables: HashMap::new(),
                table_names: BTreeMap::new(),
                policy: None,
                for_tests: false,
            }),
            changes: Mutex::new(()),
            names: RwLock::default(),
            retry_at: AtomicI64::new(i64::MIN),
        }
    }

    fn load_all(&self) -> Vec<Damaged> {
        let mut damaged = Vec::new();
        let mut note = |kind, id| damaged.push(Damaged { kind, id });
        let record = store_record(&self.store);
        let for_tests = record.as_ref().is_ok_and(|record| record.for_tests);
        let policy = record.and_then(|record| Ok(Arc::new(BoundPolicy::of_record(&record.policy)?))).ok();
        if policy.is_none() {
            note(RecordKind::StorePolicy, *self.store_id().as_bytes());
        }
        let mut keys = HashMap::new();
        let mut key_names = BTreeMap::new();
        for (id, _) in self.store.records(RecordKind::Key) {
            let key_id = KeyId::from_bytes(id);
            let now = self.load_key(key_id).ok();
            match &now {
                Some(now) => {
                    key_names.insert(now.record.name.clone(), key_id);
                }
                None => note(RecordKind::Key, id),
            }
            keys.insert(key_id, Key::new(key_id, now));
        }
        self.load_all_grants(&keys, &mut note);
        let mut tables = HashMap::new();
        let mut table_names = BTreeMap::new();
        for (id, _) in self.store.records(RecordKind::Table) {
            match self.load_table(TableId::from_bytes(id), &keys) {
                Ok(table) => {
                    table_names.insert(table.name(), table.id());
                    tables.insert(table.id(), table);
                }
                Err(_) => note(RecordKind::Table, id),
            }
        }
        *self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Inner { keys, key_names, tables, table_names, policy, for_tests };
        damaged
    }

    /// The grants of all keys. A record that does not verify marks its key, so that none of its material is used.
    fn load_all_grants(&self, keys: &HashMap<KeyId, Arc<Key>>, note: &mut impl FnMut(RecordKind, [u8; 16])) {
        let records = self.store.records(RecordKind::Grant);
        if records.is_empty() {
            return;
        }
        let by_prefix: HashMap<_, _> = keys.iter().map(|(id, key)| (key_prefix(id.as_bytes()).0, key)).collect();
        for (id, _) in records {
            let loaded = by_prefix.get(&key_prefix(&id).0).is_some_and(|key| self.load_grants(key, id).is_ok());
            if !loaded {
                note(RecordKind::Grant, id);
            }
        }
    }

    fn load_key(&self, id: KeyId) -> Result<super::KeyNow, KmsError> {
        let text = self.store.read_record(RecordKind::Key, *id.as_bytes())?;
        self.key_now(id, from_json::<KeyRecord>(&text)?)
    }

    fn load_table(&self, id: TableId, keys: &HashMap<KeyId, Arc<Key>>) -> Result<Arc<Table>, KmsError> {
        let text = self.store.read_record(RecordKind::Table, *id.as_bytes())?;
        let record: TableRecord = from_json(&text)?;
        let key = keys.get(&record.key).cloned().unwrap_or_else(|| Key::new(record.key, None));
        let names = wrap::open(self.store_id(), Wrapped::Names { table: id }, self.wrap(), &record.names_key)?;
        let table_keys = self.unwrap_table_keys(id, &record, &key);
        Ok(Table::new(id, record, key, names, table_keys))
    }

    /// The subject for what the daemon does by itself.
    pub fn itself() -> Subject<'static> {
        Subject::Custodian { uid: 0, reason: "the daemon itself" }
    }
}

fn bound(mut policy: PolicyRecord) -> Result<PolicyRecord, KmsError> {
    policy.bindings = super::manage::bind(&Policy::parse(&policy.text)?, &Bindings::default())?;
    Ok(policy)
}

fn store_record(store: &Store) -> Result<StoreRecord, KmsError> {
    from_json(&store.read_record(RecordKind::StorePolicy, *store.id().as_bytes())?)
}

fn from_json<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, KmsError> {
    serde_json::from_slice(text).map_err(|_| KmsError::Tampered)
}
