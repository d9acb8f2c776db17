//! Material that nothing needs any more: which versions these are, and their end.
//!
//! A rotation makes new material and leaves the old, since table keys are sealed under it. Once each table has been moved to
//! the newest by `use-key` or `re-encrypt`, the old has no use for tables. What else may need it, ciphertexts that were
//! given out, only people know: so it goes at their word alone, never by itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::key::{Key, KeyNow};
use super::update_table::needed;
use super::{Kms, KmsError, Subject};
use crate::store::RecordKind;
use crate::types::{Action, KeyState};

impl Kms {
    /// Drops the material versions of a key that no table needs. `confirmation`: the key's name. Gives the versions.
    ///
    /// # Errors
    /// `Invalid` without the right confirmation, with what would be dropped and what that means; where nothing is to be
    /// dropped; where a table's record does not verify, since what it needs is not known then.
    pub fn retire_versions(&self, who: &Subject<'_>, key: &Arc<Key>, confirmation: &str) -> Result<Vec<u32>, KmsError> {
        let _changing = self.changing();
        self.check_key(who, key, Action::ScheduleKeyDeletion)?;
        let now = key.now().ok_or(KmsError::Tampered)?;
        match now.state() {
            KeyState::Enabled | KeyState::Disabled => {}
            KeyState::PendingDeletion => return Err(KmsError::KeyRevoked(KeyState::PendingDeletion)),
            KeyState::Destroyed => return Err(KmsError::Destroyed),
        }
        if self.store().records(RecordKind::Table).len() != self.tables().len() {
            return Err(KmsError::Invalid(
                "the record of a table does not verify: which versions it needs is not known".to_owned(),
            ));
        }
        let gone = self.unneeded(key, &now);
        if gone.is_empty() {
            return Err(KmsError::Invalid(self.nothing_to_retire(key, &now)));
        }
        if confirmation != now.record.name {
            return Err(KmsError::Invalid(format!(
                "would drop material {} for ever: no table needs it, but what `kmsfs encrypt` has made under it can then \
                 never be decrypted; confirm with: retire-versions {}",
                list(&gone),
                now.record.name
            )));
        }
        let note = format!("retired material {}", list(&gone));
        self.change_key(who, key, Action::ScheduleKeyDeletion, Some(&note), |record| {
            record.material.retain(|version| !gone.contains(&version.version));
        })?;
        Ok(gone.into_iter().collect())
    }

    fn unneeded(&self, key: &Key, now: &KeyNow) -> BTreeSet<u32> {
        let newest = now.record.material.iter().map(|version| version.version).max();
        let used: BTreeSet<u32> =
            needed(&self.tables(), key).into_values().flatten().map(|(_, material)| material).collect();
        now.record
            .material
            .iter()
            .map(|version| version.version)
            .filter(|version| Some(*version) != newest && !used.contains(version))
            .collect()
    }

    fn nothing_to_retire(&self, key: &Key, now: &KeyNow) -> String {
        if now.record.material.len() < 2 {
            return "the key has one version of its material, which is in use".to_owned();
        }
        let newest = now.record.material.iter().map(|version| version.version).max().unwrap_or(0);
        let old: Vec<String> = needed(&self.tables(), key)
            .into_iter()
            .filter(|(_, versions)| versions.iter().any(|(_, material)| *material != newest))
            .map(|(table, _)| table)
            .collect();
        format!("every version is in use: first `table re-encrypt` or `table use-key` for {}", old.join(", "))
    }

    /// A key's material versions, and which tables need them. The caller has decided.
    ///
    /// # Errors
    /// `Tampered` when the key's record does not verify.
    pub fn key_status(&self, key: &Key) -> Result<Value, KmsError> {
        let now = key.now().ok_or(KmsError::Tampered)?;
        let tables = needed(&self.tables(), key);
        let unneeded = self.unneeded(key, &now);
        let newest = now.record.material.iter().map(|version| version.version).max();
        let versions: Vec<Value> = now
            .record
            .material
            .iter()
            .map(|material| {
                let users: Vec<Value> = tables
                    .iter()
                    .flat_map(|(name, versions)| versions.iter().map(move |version| (name, version)))
                    .filter(|(_, (_, of))| *of == material.version)
                    .map(|(name, (version, _))| json!({ "Table": name, "TableKeyVersion": version }))
                    .collect();
                json!({
                    "Version": material.version,
                    "CreationDate": material.created,
                    "Current": Some(material.version) == newest,
                    "Needed": !unneeded.contains(&material.version),
                    "TableKeys": users,
                })
            })
            .collect();
        Ok(json!({ "Name": now.record.name, "KeyId": key.id(), "KeyState": now.state(), "MaterialVersions": versions }))
    }
}

fn list(versions: &BTreeSet<u32>) -> String {
    let numbers: Vec<String> = versions.iter().map(u32::to_string).collect();
    format!("version{} {}", if numbers.len() == 1 { "" } else { "s" }, numbers.join(", "))
}
