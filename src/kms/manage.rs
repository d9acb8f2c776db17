//! Changes: keys made, policies saved, tables made and removed. Each is decided, written to the trail, committed and only
//! then put in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::key::{BoundPolicy, Key, KeyNow};
use super::record::{
    KeyOrigin, KeyRecord, PolicyRecord, RotationType, SealedTableKey, SealedVersion, Settings, StoreRecord, TableRecord,
};
use super::table::Table;
use super::wrap::{self, Wrapped};
use super::{Kms, KmsError, MANAGED_KEY, OWNED_KEY, Subject};
use crate::crypto::{AeadKey, Key256, Key512, random};
use crate::policy::{self, Bindings, NameKind, PForm, Policy};
use crate::store::{Change, RecordKind, TrailHead};
use crate::sys;
use crate::types::{Action, Encryption, KeyId, KeyState, TableId};

/// Bytes that a name of a key or a table may have, as for any file.
const NAME_BYTES_MOST: usize = 255;

/// A key to be made.
#[derive(Debug, Clone, Default)]
pub struct KeySpec {
    pub name: String,
    pub admins: Vec<PForm>,
    pub users: Vec<PForm>,
    pub description: String,
}

/// A table to be made.
#[derive(Debug, Clone)]
pub struct TableSpec {
    pub name: String,
    pub encryption: Encryption,
    /// For `customer`: the key's name; none: the key of the table's name, made when there is none.
    pub key: Option<String>,
    /// Key users of a key that is made with the table.
    pub users: Vec<PForm>,
}

impl Kms {
    /// Makes a customer key. Without administrators, the caller is one; without users there are none.
    pub fn create_key(&self, who: &Subject<'_>, spec: &KeySpec) -> Result<Arc<Key>, KmsError> {
        let _changing = self.changing();
        self.check_store(who, Action::CreateKey, &spec.name)?;
        self.make_customer_key(who, spec)
    }

    fn make_customer_key(&self, who: &Subject<'_>, spec: &KeySpec) -> Result<Arc<Key>, KmsError> {
        self.check_new_key_name(&spec.name)?;
        let admins = if spec.admins.is_empty() { vec![self.form_of(who.uid())] } else { spec.admins.clone() };
        let text = policy::default_key_policy(&admins, &spec.users);
        let parsed = Policy::parse(&text)?;
        let bindings = bind(&parsed, &Bindings::default())?;
        let id = KeyId::from_bytes(random()?);
        let record = KeyRecord {
            name: spec.name.clone(),
            origin: KeyOrigin::Customer,
            description: spec.description.clone(),
            state: KeyState::Enabled,
            created: self.now(),
            creator: who.uid(),
            material: vec![self.new_material(id, 1, None)?],
            policy: PolicyRecord { text, bindings, generation: 1 },
            grants: Vec::new(),
            deletion: None,
            rotation: None,
            receipt: None,
        };
        let head = self.log_management(who, Action::CreateKey, id, &spec.name, None)?;
        self.commit_key(who, Action::CreateKey.name(), id, record, head)
    }

    /// The two keys that every store has: the owned and the managed one.
    pub(super) fn own_key_records(&self) -> Result<Vec<(KeyId, KeyRecord)>, KmsError> {
        [(OWNED_KEY, KeyOrigin::Owned), (MANAGED_KEY, KeyOrigin::Managed)]
            .into_iter()
            .map(|(name, origin)| {
                let id = KeyId::from_bytes(random()?);
                let record = KeyRecord {
                    name: name.to_owned(),
                    origin,
                    description: String::new(),
                    state: KeyState::Enabled,
                    created: self.now(),
                    creator: 0,
                    material: vec![self.new_material(id, 1, None)?],
                    policy: PolicyRecord {
                        text: policy::managed_policy(),
                        bindings: Bindings::default(),
                        generation: 1,
                    },
                    grants: Vec::new(),
                    deletion: None,
                    rotation: None,
                    receipt: None,
                };
                Ok((id, record))
            })
            .collect()
    }

    /// A version of a key's material; `rotation`: what it comes of.
    pub(super) fn new_material(
        &self,
        key: KeyId,
        version: u32,
        rotation: Option<RotationType>,
    ) -> Result<SealedVersion, KmsError> {
        let what = Wrapped::Material { key, version };
        let sealed = wrap::seal(self.store_id(), what, self.wrap(), &Key256::random()?)?;
        Ok(SealedVersion { version, created: self.now(), rotation, sealed })
    }

    /// Saves a key's policy: parsed, its names bound, the caller not locked out; in force when this returns.
    pub fn put_key_policy(&self, who: &Subject<'_>, key: &Arc<Key>, text: &str) -> Result<(), KmsError> {
        self.put_key_policy_if(who, key, text, None)
    }

    /// The same, if the policy has the generation that is expected, if one is.
    ///
    /// # Errors
    /// `Outdated` if another save has come in between.
    pub fn put_key_policy_if(
        &self,
        who: &Subject<'_>,
        key: &Arc<Key>,
        text: &str,
        expected: Option<u64>,
    ) -> Result<(), KmsError> {
        let _changing = self.changing();
        // Before the generation is told: it is for those who may know of the policy.
        self.check_key(who, key, Action::PutKeyPolicy)?;
        let now = key.now().ok_or(KmsError::Tampered)?;
        refuse_outdated(expected, now.policy.generation)?;
        self.put_key_policy_in_change(who, key, text)
    }

    fn put_key_policy_in_change(&self, who: &Subject<'_>, key: &Arc<Key>, text: &str) -> Result<(), KmsError> {
        self.check_key(who, key, Action::PutKeyPolicy)?;
        let now = key.now().ok_or(KmsError::Tampered)?;
        if now.record.origin != KeyOrigin::Customer {
            return Err(KmsError::FixedPolicy);
        }
        let parsed = Policy::parse(text)?;
        let bindings = bind(&parsed, &now.policy.bindings)?;
        self.refuse_lock_out(who, key, &parsed, &bindings)?;
        let generation = now.policy.generation.saturating_add(1);
        self.change_key(who, key, Action::PutKeyPolicy, None, |record| {
            record.policy = PolicyRecord { text: text.to_owned(), bindings, generation };
        })
    }

    /// Adds principals to the key's users, or takes them out: all of them, or none.
    pub fn change_users(&self, who: &Subject<'_>, key: &Arc<Key>, forms: &[PForm], add: bool) -> Result<(), KmsError> {
        let _changing = self.changing();
        // Before the document is looked at: what an edit is refused for tells what is in it.
        self.check_key(who, key, Action::PutKeyPolicy)?;
        let mut text = key.now().ok_or(KmsError::Tampered)?.policy.text.clone();
        for form in forms {
            text = if add { policy::add_user(&text, form)? } else { policy::remove_user(&text, form)? };
        }
        self.put_key_policy_in_change(who, key, &text)
    }

    /// Binds the names of a key's policy anew, for a host on which they have other ids.
    pub fn rebind(&self, who: &Subject<'_>, key: &Arc<Key>) -> Result<(), KmsError> {
        let _changing = self.changing();
        self.check_key(who, key, Action::PutKeyPolicy)?;
        let now = key.now().ok_or(KmsError::Tampered)?;
        let bindings = bind(&now.policy.policy, &Bindings::default())?;
        self.refuse_lock_out(who, key, &now.policy.policy, &bindings)?;
        self.change_key(who, key, Action::PutKeyPolicy, Some("rebind"), |record| {
            record.policy.bindings = bindings;
            record.policy.generation = record.policy.generation.saturating_add(1);
        })
    }

    pub fn describe(&self, who: &Subject<'_>, key: &Arc<Key>, description: &str) -> Result<(), KmsError> {
        let _changing = self.changing();
        self.check_key(who, key, Action::UpdateKeyDescription)?;
        if description.len() > 8192 {
            return Err(KmsError::Invalid("a description has at most 8,192 bytes".to_owned()));
        }
        self.change_key(who, key, Action::UpdateKeyDescription, None, |record| {
            description.clone_into(&mut record.description);
        })
    }

    /// Changes a key's record: in the trail first, then committed, then in force. Whoever calls it has decided, and holds
    /// `changes`.
    pub(super) fn change_key(
        &self,
        who: &Subject<'_>,
        key: &Key,
        action: Action,
        note: Option<&str>,
        edit: impl FnOnce(&mut KeyRecord),
    ) -> Result<(), KmsError> {
        let mut record = key.now().ok_or(KmsError::Tampered)?.record.clone();
        edit(&mut record);
        let head = self.log_management(who, action, key.id(), &record.name, note)?;
        self.commit_key(who, action.name(), key.id(), record, head).map(|_| ())
    }

    /// Saves the store's own policy.
    pub fn put_store_policy(&self, who: &Subject<'_>, text: &str) -> Result<(), KmsError> {
        self.put_store_policy_if(who, text, None)
    }

    /// The same, if the policy has the generation that is expected, if one is.
    ///
    /// # Errors
    /// `Outdated` if another save has come in between.
    pub fn put_store_policy_if(&self, who: &Subject<'_>, text: &str, expected: Option<u64>) -> Result<(), KmsError> {
        let _changing = self.changing();
        self.check_store(who, Action::PutStorePolicy, "")?;
        let old = self.store_policy();
        refuse_outdated(expected, old.as_ref().map_or(0, |old| old.generation))?;
        let parsed = Policy::parse(text)?;
        let (bindings, generation) = match &old {
            Ok(old) => (bind(&parsed, &old.bindings)?, old.generation),
            Err(_) => (bind(&parsed, &Bindings::default())?, 0),
        };
        self.refuse_store_lock_out(who, &parsed, &bindings)?;
        let record = StoreRecord {
            policy: PolicyRecord { text: text.to_owned(), bindings, generation: generation.saturating_add(1) },
            for_tests: self.is_for_tests(),
        };
        let policy = Arc::new(BoundPolicy::of_record(&record.policy)?);
        let content = to_json(&record)?;
        let head = self.log_store(who, Action::PutStorePolicy)?;
        let id = *self.store_id().as_bytes();
        let change = Change { kind: RecordKind::StorePolicy, id, content: Some(&content) };
        self.commit(who, "PutStorePolicy", change, head)?;
        self.forget_user_names();
        let mut inner = self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.policy = Some(policy);
        inner.keys.values().for_each(|key| key.forget_decisions());
        Ok(())
    }

    /// Makes a table. `make_folder` makes its folder in the store, before the table is committed.
    pub fn create_table(
        &self,
        who: &Subject<'_>,
        spec: &TableSpec,
        make_folder: impl FnOnce(TableId, &Key512) -> Result<(), KmsError>,
    ) -> Result<Arc<Table>, KmsError> {
        let _changing = self.changing();
        self.check_store(who, Action::CreateTable, &spec.name)?;
        check_name(&spec.name)?;
        if self.table_named(&spec.name).is_ok() {
            return Err(KmsError::Exists);
        }
        let key = self.key_for(who, spec)?;
        let id = TableId::from_bytes(random()?);
        let (record, names) = self.new_table_record(who, spec, &key, id)?;
        make_folder(id, &names)?;
        let content = to_json(&record)?;
        let head = self.log_table(who, "CreateTable", id, &spec.name)?;
        let change = Change { kind: RecordKind::Table, id: *id.as_bytes(), content: Some(&content) };
        self.commit(who, "CreateTable", change, head)?;
        let keys = self.unwrap_table_keys(id, &record, &key);
        let table = Table::new(id, record, key, names, keys);
        let mut inner = self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.table_names.insert(spec.name.clone(), id);
        inner.tables.insert(id, Arc::clone(&table));
        Ok(table)
    }

    fn key_for(&self, who: &Subject<'_>, spec: &TableSpec) -> Result<Arc<Key>, KmsError> {
        match (spec.encryption, &spec.key) {
            (Encryption::Owned | Encryption::Managed, Some(_)) => {
                Err(KmsError::Invalid("only a customer table takes a key of its own".to_owned()))
            }
            (Encryption::Owned, None) => self.key_named(OWNED_KEY),
            (Encryption::Managed, None) => self.key_named(MANAGED_KEY),
            (Encryption::Customer, Some(name)) => {
                let key = self.key_named(name)?;
                self.usable_for_table(who, &key)?;
                Ok(key)
            }
            (Encryption::Customer, None) => match self.key_named(&spec.name) {
                Ok(key) => {
                    self.usable_for_table(who, &key)?;
                    Ok(key)
                }
                Err(_) => self.make_key_with_table(who, spec),
            },
        }
    }

    /// A key that exists already protects a new table only at the word of one of its administrators.
    pub(super) fn usable_for_table(&self, who: &Subject<'_>, key: &Arc<Key>) -> Result<(), KmsError> {
        let now = key.now().ok_or(KmsError::Tampered)?;
        if now.record.origin != KeyOrigin::Customer {
            return Err(KmsError::Invalid("only a customer key protects a customer table".to_owned()));
        }
        self.check_key(who, key, Action::PutKeyPolicy)?;
        match now.state() {
            KeyState::Enabled => Ok(()),
            KeyState::Destroyed => Err(KmsError::Destroyed),
            state @ (KeyState::Disabled | KeyState::PendingDeletion) => Err(KmsError::KeyRevoked(state)),
        }
    }

    /// A new key of the table's name: its creator is administrator and, unless it is root, key user too.
    fn make_key_with_table(&self, who: &Subject<'_>, spec: &TableSpec) -> Result<Arc<Key>, KmsError> {
        let mut users = spec.users.clone();
        if who.uid() != 0 && matches!(who, Subject::Caller { .. }) {
            users.push(self.form_of(who.uid()));
        }
        let key = KeySpec { name: spec.name.clone(), admins: Vec::new(), users, description: String::new() };
        self.check_store(who, Action::CreateKey, &spec.name)?;
        self.make_customer_key(who, &key)
    }

    fn new_table_record(
        &self,
        who: &Subject<'_>,
        spec: &TableSpec,
        key: &Arc<Key>,
        id: TableId,
    ) -> Result<(TableRecord, Key512), KmsError> {
        let now = key.now().ok_or(KmsError::Tampered)?;
        let names = Key512::random()?;
        let names_key = wrap::seal(self.store_id(), Wrapped::Names { table: id }, self.wrap(), &names)?;
        let (material, secret) = now.material.last_key_value().ok_or(KmsError::Destroyed)?;
        let what = Wrapped::Table { table: id, key: key.id(), material: *material, version: 1 };
        let sealed = wrap::seal(self.store_id(), what, &AeadKey::new(secret)?, &Key256::random()?)?;
        let record = TableRecord {
            name: spec.name.clone(),
            encryption: spec.encryption,
            key: key.id(),
            created: self.now(),
            creator: who.uid(),
            names_key,
            table_keys: vec![SealedTableKey { version: 1, material_version: *material, sealed }],
            settings: Settings::default(),
            re_encryption: None,
        };
        Ok((record, names))
    }

    /// The unwrapped table keys; none when the material is gone or a sealed key does not verify.
    pub(super) fn unwrap_table_keys(
        &self,
        table: TableId,
        record: &TableRecord,
        key: &Arc<Key>,
    ) -> Option<BTreeMap<u32, Key256>> {
        let now = key.now()?;
        let mut versions = BTreeMap::new();
        for sealed in &record.table_keys {
            let material = now.material.get(&sealed.material_version)?;
            let what =
                Wrapped::Table { table, key: key.id(), material: sealed.material_version, version: sealed.version };
            let opened = wrap::open(self.store_id(), what, &AeadKey::new(material).ok()?, &sealed.sealed).ok()?;
            versions.insert(sealed.version, opened);
        }
        Some(versions)
    }

    /// Removes an empty table, its key stays. `remove_folder` removes the folder, once the record is gone.
    pub fn delete_table(
        &self,
        who: &Subject<'_>,
        table: &Arc<Table>,
        remove_folder: impl FnOnce() -> Result<(), KmsError>,
    ) -> Result<(), KmsError> {
        let _changing = self.changing();
        let name = table.name();
        let head = self.log_table(who, "DeleteTable", table.id(), &name)?;
        let change = Change { kind: RecordKind::Table, id: *table.id().as_bytes(), content: None };
        self.commit(who, "DeleteTable", change, head)?;
        {
            let mut inner = self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            inner.table_names.remove(&name);
            inner.tables.remove(&table.id());
        }
        remove_folder()
    }

    /// Commits one change that the trail has; a failure is told to the trail too.
    pub(super) fn commit(
        &self,
        who: &Subject<'_>,
        event: &str,
        change: Change<'_>,
        head: TrailHead,
    ) -> Result<(), KmsError> {
        self.commit_all(who, event, &[change], head)
    }

    /// The same for several, all or none.
    pub(super) fn commit_all(
        &self,
        who: &Subject<'_>,
        event: &str,
        changes: &[Change<'_>],
        head: TrailHead,
    ) -> Result<(), KmsError> {
        self.store.note_clock(self.clock.observe());
        self.store.commit(changes, head).map(|_| ()).map_err(KmsError::from).inspect_err(|error| {
            self.log_failure(who, event, error);
        })
    }

    pub(super) fn commit_key(
        &self,
        who: &Subject<'_>,
        event: &str,
        id: KeyId,
        record: KeyRecord,
        head: TrailHead,
    ) -> Result<Arc<Key>, KmsError> {
        let now = self.key_now(id, record)?;
        let name = now.record.name.clone();
        let content = to_json(&now.record)?;
        let change = Change { kind: RecordKind::Key, id: *id.as_bytes(), content: Some(&content) };
        self.commit(who, event, change, head)?;
        self.forget_user_names();
        let mut inner = self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(key) = inner.keys.get(&id) {
            key.install(now);
            return Ok(Arc::clone(key));
        }
        let key = Key::new(id, Some(now));
        inner.key_names.insert(name, id);
        inner.keys.insert(id, Arc::clone(&key));
        Ok(key)
    }

    /// A key's record made usable: policy parsed, material unsealed.
    pub(super) fn key_now(&self, id: KeyId, record: KeyRecord) -> Result<KeyNow, KmsError> {
        let material = record
            .material
            .iter()
            .map(|sealed| {
                let what = Wrapped::Material { key: id, version: sealed.version };
                Ok((sealed.version, wrap::open(self.store_id(), what, self.wrap(), &sealed.sealed)?))
            })
            .collect::<Result<_, KmsError>>()?;
        Ok(KeyNow { policy: BoundPolicy::of_record(&record.policy)?, record, material })
    }

    /// How a policy that the daemon writes names a uid: by name where it has one.
    fn form_of(&self, uid: u32) -> PForm {
        self.user_name(uid).map_or(PForm::Uid(uid), |name| PForm::User(name.to_string()))
    }

    /// Policy texts are shown as they were written; `check` parses one and reports unknown names, saving nothing.
    pub fn check_policy(&self, text: &str) -> Result<(), KmsError> {
        bind(&Policy::parse(text)?, &Bindings::default()).map(|_| ())
    }
}

/// Binds each name of a policy to its id: what was bound before keeps its id, what is new is looked up.
pub(super) fn bind(policy: &Policy, old: &Bindings) -> Result<Bindings, KmsError> {
    let mut bindings = Bindings::default();
    for used in policy.names() {
        let (bound, before, found) = match used.kind {
            NameKind::User => (&mut bindings.users, &old.users, sys::uid_of(&used.name)),
            NameKind::Group => (&mut bindings.groups, &old.groups, sys::gid_of(&used.name)),
        };
        let id = before.get(&used.name).copied().or(found).ok_or_else(|| KmsError::UnknownName {
            name: used.name.clone(),
            line: used.line,
            column: used.column,
        })?;
        bound.insert(used.name.clone(), id);
    }
    Ok(bindings)
}

fn refuse_outdated(expected: Option<u64>, now: u64) -> Result<(), KmsError> {
    if expected.is_some_and(|expected| expected != now) { Err(KmsError::Outdated(now)) } else { Ok(()) }
}

/// A name of a key or a table: a file name that a person can type.
pub(super) fn check_name(name: &str) -> Result<(), KmsError> {
    if name.len() > NAME_BYTES_MOST {
        return Err(KmsError::NameTooLong);
    }
    if name.is_empty() {
        return Err(KmsError::BadName("it must not be empty"));
    }
    if name.starts_with('.') {
        return Err(KmsError::BadName("it must not begin with a dot"));
    }
    if name.contains('/') || name.chars().any(char::is_control) {
        return Err(KmsError::BadName("no slash and no control characters"));
    }
    Ok(())
}

pub(super) fn to_json<T: serde::Serialize>(record: &T) -> Result<zeroize::Zeroizing<Vec<u8>>, KmsError> {
    serde_json::to_vec(record).map(zeroize::Zeroizing::new).map_err(|error| KmsError::Invalid(error.to_string()))
}
