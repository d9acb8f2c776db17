//! Changes of a table that is there: its settings, the key that protects it, and the order to seal its items anew.
//!
//! All are the word of whoever administers the table's key, since all bear on who may read it and for how long; where the
//! key is the store's own, that of whoever may kmsfs:UpdateTable in the store policy. A move to another key passes the
//! power over the items from one policy to another, and so needs the administrators of both.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::data_key::ReSealKey;
use super::key::Key;
use super::manage::to_json;
use super::record::{CacheMode, NamesMode, OnRevoke, ReEncryption, SealedTableKey, Settings, TableRecord};
use super::table::Table;
use super::wrap::{self, Wrapped};
use super::{Kms, KmsError, Subject};
use crate::crypto::{AeadKey, Key256};
use crate::store::{Change, RecordKind, TrailHead};
use crate::types::{Action, Encryption, KeyState};

/// Settings to be changed; what is none stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SettingsChange {
    pub cache: Option<CacheMode>,
    pub on_revoke: Option<OnRevoke>,
    pub names: Option<NamesMode>,
}

impl SettingsChange {
    fn applied_to(self, old: Settings) -> Settings {
        Settings {
            cache: self.cache.unwrap_or(old.cache),
            on_revoke: self.on_revoke.unwrap_or(old.on_revoke),
            names: self.names.unwrap_or(old.names),
        }
    }
}

/// What became of an order to seal a table's items anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordered {
    /// The table has a new key, of this version.
    New(u32),
    /// An earlier order, which had been stopped or is under way, goes on, to this version.
    GoesOn(u32),
}

impl Kms {
    /// Changes a table's settings. Gives those that were in force.
    pub fn set_table(
        &self,
        who: &Subject<'_>,
        table: &Arc<Table>,
        change: SettingsChange,
    ) -> Result<Settings, KmsError> {
        let _changing = self.changing();
        self.check_update(who, table)?;
        let old = table.settings();
        let new = change.applied_to(old);
        let mut record = TableRecord::clone(&table.record());
        record.settings = new;
        let settings = serde_json::to_value(new).unwrap_or_default();
        let head = self.log_table_change(who, "UpdateTable", table, &[("settings", settings)])?;
        self.commit_table(who, "UpdateTable", table, &record, head)?;
        table.install(record);
        Ok(old)
    }

    /// Has another key protect a table, or the same one with its newest material: the table keys are sealed anew, the
    /// items stay as they are.
    ///
    /// # Errors
    /// `KeyRevoked` or `Destroyed` where one of the keys is not enabled.
    pub fn move_table(&self, who: &Subject<'_>, table: &Arc<Table>, key: &Arc<Key>) -> Result<(), KmsError> {
        let _changing = self.changing();
        self.check_update(who, table)?;
        self.usable_for_table(who, key)?;
        enabled(table.key())?;
        let mut record = TableRecord::clone(&table.record());
        record.table_keys = self.seal_anew(table, key)?;
        record.key = key.id();
        record.encryption = Encryption::Customer;
        let details =
            [("sourceKeyId", table.key().id().to_string().into()), ("destinationKeyId", key.id().to_string().into())];
        let head = self.log_table_change(who, "ReEncrypt", table, &details)?;
        self.commit_table(who, "ReEncrypt", table, &record, head)?;
        if Arc::ptr_eq(table.key(), key) {
            table.install(record);
        } else {
            table.move_to(Arc::clone(key), record);
        }
        Ok(())
    }

    /// Every version of the table's keys, sealed under the newest material of `key`.
    fn seal_anew(&self, table: &Table, key: &Key) -> Result<Vec<SealedTableKey>, KmsError> {
        let mut sealed = Vec::new();
        if !table.keys.are_there() {
            return Err(KmsError::Tampered);
        }
        table.keys.each(|version, secret| -> Result<(), KmsError> {
            sealed.push(self.seal_table_key(table, key, version, secret)?);
            Ok(())
        })?;
        Ok(sealed)
    }

    fn seal_table_key(
        &self,
        table: &Table,
        key: &Key,
        version: u32,
        secret: &Key256,
    ) -> Result<SealedTableKey, KmsError> {
        let now = key.now().ok_or(KmsError::Tampered)?;
        let (material, by) = now.material.last_key_value().ok_or(KmsError::Destroyed)?;
        let what = Wrapped::Table { table: table.id(), key: key.id(), material: *material, version };
        let sealed = wrap::seal(self.store_id(), what, &AeadKey::new(by)?, secret)?;
        Ok(SealedTableKey { version, material_version: *material, sealed })
    }

    /// Orders a table's items to be sealed anew: under a new version of the table's key, or, where an earlier order has not
    /// been carried out, under the version of that one. Whoever serves the store carries it out.
    pub fn order_re_encryption(&self, who: &Subject<'_>, table: &Arc<Table>) -> Result<Ordered, KmsError> {
        let _changing = self.changing();
        self.check_update(who, table)?;
        enabled(table.key())?;
        let mut record = TableRecord::clone(&table.record());
        let newest = record.table_keys.iter().map(|sealed| sealed.version).max().unwrap_or(0);
        if let Some(order) = &mut record.re_encryption {
            if order.stopped {
                order.stopped = false;
                self.commit_order(who, table, &record, newest, "resumed")?;
                table.install(record);
            }
            return Ok(Ordered::GoesOn(newest));
        }
        let version =
            newest.checked_add(1).ok_or_else(|| KmsError::Invalid("no version numbers are left".to_owned()))?;
        let mut keys = self.unwrap_table_keys(table.id(), &record, table.key()).ok_or(KmsError::Tampered)?;
        let secret = Key256::random()?;
        record.table_keys.push(self.seal_table_key(table, table.key(), version, &secret)?);
        record.re_encryption = Some(ReEncryption { started: self.now(), by: who.uid(), stopped: false });
        self.commit_order(who, table, &record, version, "ordered")?;
        keys.insert(version, secret);
        table.keys.install(Some(keys));
        table.install(record);
        Ok(Ordered::New(version))
    }

    /// Stops the work on an order until the next one.
    pub fn stop_re_encryption(&self, who: &Subject<'_>, table: &Arc<Table>) -> Result<(), KmsError> {
        let _changing = self.changing();
        self.check_update(who, table)?;
        let mut record = TableRecord::clone(&table.record());
        let newest = record.table_keys.iter().map(|sealed| sealed.version).max().unwrap_or(0);
        match &mut record.re_encryption {
            None => return Err(KmsError::Invalid("the table is not being re-encrypted".to_owned())),
            Some(order) if order.stopped => return Ok(()),
            Some(order) => order.stopped = true,
        }
        self.commit_order(who, table, &record, newest, "stopped")?;
        table.install(record);
        Ok(())
    }

    fn commit_order(
        &self,
        who: &Subject<'_>,
        table: &Table,
        record: &TableRecord,
        version: u32,
        note: &str,
    ) -> Result<(), KmsError> {
        let details = [("tableKeyVersion", version.into()), ("reEncryption", note.into())];
        let head = self.log_table_change(who, "ReEncrypt", table, &details)?;
        self.commit_table(who, "ReEncrypt", table, record, head)
    }

    /// What an order that stands lets the daemon do: seal items anew, and no more.
    ///
    /// # Errors
    /// `NotFound` without an order; `KeyRevoked` or `Destroyed` while the key is not enabled.
    pub fn re_seal_key(&self, table: &Arc<Table>) -> Result<ReSealKey, KmsError> {
        table.re_encryption().filter(|order| !order.stopped).ok_or(KmsError::NotFound)?;
        enabled(table.key())?;
        if table.keys.are_there() { Ok(ReSealKey::new(Arc::clone(&table.keys))) } else { Err(KmsError::Tampered) }
    }

    /// The order is carried out: no item needs an older version of the table's key, durably, so that these go.
    pub fn end_re_encryption(&self, table: &Arc<Table>) -> Result<(), KmsError> {
        let _changing = self.changing();
        self.refuse_gone(table)?;
        let mut record = TableRecord::clone(&table.record());
        let order = record.re_encryption.take().filter(|order| !order.stopped).ok_or(KmsError::NotFound)?;
        let newest = record.table_keys.iter().map(|sealed| sealed.version).max().ok_or(KmsError::Tampered)?;
        record.table_keys.retain(|sealed| sealed.version == newest);
        let keys = self.unwrap_table_keys(table.id(), &record, table.key()).ok_or(KmsError::Tampered)?;
        let details =
            [("tableKeyVersion", newest.into()), ("reEncryption", "done".into()), ("orderedByUid", order.by.into())];
        let head = self.log_table_by_itself("ReEncrypt", table, &details)?;
        self.commit_table(&Self::itself(), "ReEncrypt", table, &record, head)?;
        table.keys.install(Some(keys));
        table.install(record);
        Ok(())
    }

    /// Tells the trail that the work on an order begins, or goes on, in this mount.
    pub fn log_re_encryption(&self, table: &Arc<Table>) -> Result<(), KmsError> {
        let order = table.re_encryption().ok_or(KmsError::NotFound)?;
        let newest = table.record().table_keys.iter().map(|sealed| sealed.version).max().unwrap_or(0);
        let details =
            [("tableKeyVersion", newest.into()), ("reEncryption", "begun".into()), ("orderedByUid", order.by.into())];
        self.log_table_by_itself("ReEncrypt", table, &details).map(|_| ())
    }

    /// Whether `who` may change a table; a denial is an event.
    fn check_update(&self, who: &Subject<'_>, table: &Table) -> Result<(), KmsError> {
        self.refuse_gone(table)?;
        match table.encryption() {
            Encryption::Customer => self.check_key(who, table.key(), Action::PutKeyPolicy),
            Encryption::Owned | Encryption::Managed => self.check_store(who, Action::UpdateTable, &table.name()),
        }
    }

    /// A table that was removed meanwhile must not come back by a change of its record.
    fn refuse_gone(&self, table: &Table) -> Result<(), KmsError> {
        self.table(table.id()).map(|_| ())
    }

    fn commit_table(
        &self,
        who: &Subject<'_>,
        event: &str,
        table: &Table,
        record: &TableRecord,
        head: TrailHead,
    ) -> Result<(), KmsError> {
        let content = to_json(record)?;
        let change = Change { kind: RecordKind::Table, id: *table.id().as_bytes(), content: Some(&content) };
        self.commit(who, event, change, head)
    }
}

/// # Errors
/// `KeyRevoked` or `Destroyed` where the key's material is not to be used.
fn enabled(key: &Key) -> Result<(), KmsError> {
    match key.now().ok_or(KmsError::Tampered)?.state() {
        KeyState::Enabled => Ok(()),
        KeyState::Destroyed => Err(KmsError::Destroyed),
        state @ (KeyState::Disabled | KeyState::PendingDeletion) => Err(KmsError::KeyRevoked(state)),
    }
}

/// The material versions that tables under a key need, by table name: table key version and material version.
pub(super) fn needed(tables: &[Arc<Table>], key: &Key) -> BTreeMap<String, Vec<(u32, u32)>> {
    tables
        .iter()
        .filter(|table| table.key().id() == key.id())
        .map(|table| {
            let record = table.record();
            let versions = record.table_keys.iter().map(|sealed| (sealed.version, sealed.material_version)).collect();
            (record.name.clone(), versions)
        })
        .collect()
}
