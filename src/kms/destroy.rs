//! The end of a key: what the daemon carries out when a deletion's window has passed, and what remains of it.
//!
//! In one commit the key's record loses all versions of its material, and the record of each of its tables the table keys
//! that only they opened; the files of the generations before are removed. So no file of the store holds a sealed copy any
//! more. The receipt that takes their place is sealed like any record, and the trail has its digest.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::blast::BlastRadius;
use super::grant::key_prefix;
use super::manage::to_json;
use super::record::{KeyRecord, Receipt, ReceiptTable, TableRecord, hex};
use super::{Key, Kms, KmsError, Table};
use crate::crypto::sha256;
use crate::store::{Change, RecordKind};
use crate::types::{Encryption, KeyId, KeyState, TableId};

/// Tables that a receipt lists: it must fit into the record.
const TABLES_MOST: usize = 1000;
/// After work that failed, it is tried again so many seconds later.
const RETRY_AFTER: i64 = 60;

impl Receipt {
    /// The receipt as people get it. The trail has the SHA-256 of these bytes.
    pub fn document(&self) -> Result<String, KmsError> {
        let text = serde_json::to_string_pretty(self).map_err(|error| KmsError::Invalid(error.to_string()))?;
        Ok(text + "\n")
    }
}

impl Key {
    /// What remains of a destroyed key.
    ///
    /// # Errors
    /// `NotFound` for one that is not destroyed.
    pub fn receipt(&self) -> Result<Receipt, KmsError> {
        let now = self.now().ok_or(KmsError::Tampered)?;
        now.record.receipt.as_deref().cloned().ok_or(KmsError::NotFound)
    }
}

impl Kms {
    /// Carries out what is due by the time: deletions whose window has passed, rotations. Gives the keys that are no
    /// more, whose open handles must hear of it.
    pub fn carry_out_due(&self) -> Vec<KeyId> {
        let (observed, _) = self.clock.observed();
        if self.trail.is_none() || observed < self.retry_at.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let keys: Vec<_> = self.read().keys.values().cloned().collect();
        let mut destroyed = Vec::new();
        for key in keys {
            let done = self.destroy_if_due(&key).and_then(|gone| {
                if gone {
                    destroyed.push(key.id());
                }
                self.rotate_if_due(&key)
            });
            if let Err(error) = done {
                log::error!("what is due of key {} could not be done: {error}", key.id());
                // Not where the store has been closed meanwhile.
                self.retry_at.fetch_max(observed.saturating_add(RETRY_AFTER), Ordering::Relaxed);
            }
        }
        destroyed
    }

    pub(super) fn is_closing(&self) -> bool {
        self.retry_at.load(Ordering::Relaxed) == i64::MAX
    }

    fn destroy_if_due(&self, key: &Arc<Key>) -> Result<bool, KmsError> {
        if !self.deletion_is_due(key) {
            return Ok(false);
        }
        // Counted before the lock is taken. Nobody adds or removes items of a key in this state.
        let radius = self.blast_radius(key);
        let _changing = self.changing();
        if self.is_closing() || !self.deletion_is_due(key) {
            return Ok(false);
        }
        self.destroy(key, &radius).map(|()| true)
    }

    fn deletion_is_due(&self, key: &Key) -> bool {
        key.now().filter(|now| now.state() == KeyState::PendingDeletion).is_some_and(|now| {
            now.record.deletion.as_ref().is_some_and(|deletion| deletion.left(self.clock.observed()) == 0)
        })
    }

    fn destroy(&self, key: &Arc<Key>, radius: &BlastRadius) -> Result<(), KmsError> {
        let now = key.now().ok_or(KmsError::Tampered)?;
        let tables = self.tables_under(key);
        let receipt = self.receipt_of(key, &now.record, &tables, radius)?;
        let document = receipt.document()?;
        let details = [
            ("orderedBy", format!("uid {}", receipt.ordered_by_uid)),
            ("unreadable", radius.to_string()),
            ("receiptSha256", hex(&sha256(document.as_bytes()))),
        ];
        let record = KeyRecord {
            state: KeyState::Destroyed,
            material: Vec::new(),
            rotation: None,
            receipt: Some(Box::new(receipt)),
            ..now.record.clone()
        };
        let emptied: Vec<(&Arc<Table>, TableRecord)> = tables
            .iter()
            .map(|table| {
                (table, TableRecord { table_keys: Vec::new(), re_encryption: None, ..(*table.record()).clone() })
            })
            .collect();
        let mut contents = vec![(RecordKind::Key, *key.id().as_bytes(), to_json(&record)?)];
        for (table, record) in &emptied {
            contents.push((RecordKind::Table, *table.id().as_bytes(), to_json(record)?));
        }
        let grants = self.grant_records(key);
        let without = grants.iter().map(|id| Change { kind: RecordKind::Grant, id: *id, content: None });
        let changes: Vec<_> = contents
            .iter()
            .map(|(kind, id, content)| Change { kind: *kind, id: *id, content: Some(content.as_slice()) })
            .chain(without)
            .collect();
        let gone = self.key_now(key.id(), record)?;

        let head = self.log_own_management("DeleteKey", key.id(), &now.record.name, &details)?;
        self.commit_all(&Self::itself(), "DeleteKey", &changes, head)?;
        // The key first: from here on nothing is decided by what is no more.
        key.install(gone);
        key.grants().clear();
        for (table, record) in emptied {
            table.keys.install(None);
            table.install(record);
        }
        match self.store.forget_old_records() {
            Ok(0) => {}
            Ok(left) => {
                log::error!("{left} files of old records could not be removed yet; the next change tries again");
            }
            Err(error) => log::error!("files of old records could not be removed yet: {error}"),
        }
        Ok(())
    }

    /// The records of a key's grants, those included that do not verify.
    fn grant_records(&self, key: &Key) -> Vec<[u8; 16]> {
        let (own, _) = key_prefix(key.id().as_bytes());
        let ids = self.store.records(RecordKind::Grant).into_iter().map(|(id, _)| id);
        ids.filter(|id| key_prefix(id).0 == own).collect()
    }

    fn receipt_of(
        &self,
        key: &Key,
        record: &KeyRecord,
        tables: &[Arc<Table>],
        radius: &BlastRadius,
    ) -> Result<Receipt, KmsError> {
        let deletion = record.deletion.as_ref().ok_or(KmsError::Tampered)?;
        let counted: HashMap<TableId, (u64, u64)> =
            radius.tables.iter().map(|table| (table.id, (table.items, table.bytes))).collect();
        let list = tables.iter().take(TABLES_MOST).map(|table| {
            let (items, bytes_in_store) = counted.get(&table.id()).copied().unwrap_or_default();
            let record = table.record();
            ReceiptTable {
                table_id: table.id(),
                name: record.name.clone(),
                table_key_versions: record.table_keys.iter().map(|sealed| sealed.version).collect(),
                items,
                bytes_in_store,
            }
        });
        Ok(Receipt {
            store_id: self.store_id(),
            key_id: key.id(),
            name: record.name.clone(),
            scheduled_date: deletion.requested,
            pending_deletion_window_in_days: deletion.days,
            ordered_by_uid: deletion.by,
            ordered_by_name: deletion.by_name.clone(),
            reason: deletion.reason.clone(),
            destroyed_date: self.now(),
            key_material_versions: record.material.iter().map(|version| version.version).collect(),
            items: radius.items(),
            bytes_in_store: radius.bytes(),
            grants: radius.grants,
            tables: list.collect(),
            more_tables: u64::try_from(tables.len().saturating_sub(TABLES_MOST)).unwrap_or(u64::MAX),
            counted_all: radius.complete,
        })
    }

    /// Whether a table's key is no more, so that Unix alone decides about the removal of what nobody can read.
    pub fn is_destroyed(table: &Table) -> bool {
        table.encryption() != Encryption::Owned
            && table.key().now().is_some_and(|now| now.state() == KeyState::Destroyed)
    }
}
