//! What is told of keys and tables: AWS's member names, and ours (docs/semantics.md, section 8).

use serde_json::{Value, json};

use super::record::{KeyOrigin, SealedVersion, hex};
use super::{Key, Kms, KmsError, Rotation, Table};
use crate::crypto::sha256;
use crate::types::KeyState;

impl Key {
    /// What DescribeKey answers.
    ///
    /// # Errors
    /// `Tampered` when the key's record does not verify.
    pub fn description(&self) -> Result<Value, KmsError> {
        let now = self.now().ok_or(KmsError::Tampered)?;
        let record = &now.record;
        let living = matches!(record.state, KeyState::Enabled | KeyState::Disabled);
        let rotation = record.rotation.as_ref().filter(|_| living);
        Ok(json!({
            "Name": record.name,
            "KeyId": self.id(),
            "Arn": format!("arn:kmsfs:kms:::key/{}", self.id()),
            "Description": record.description,
            "KeyState": record.state,
            "Enabled": record.state == KeyState::Enabled,
            "KeyManager": if record.origin == KeyOrigin::Customer { "CUSTOMER" } else { "KMSFS" },
            "KeyUsage": "ENCRYPT_DECRYPT",
            "KeySpec": "SYMMETRIC_DEFAULT",
            "Origin": "KMSFS",
            "CreationDate": record.created,
            "Creator": record.creator,
            "CurrentKeyMaterialVersion": record.material.last().map(|version| version.version),
            "KeyMaterialVersions": record.material.iter().map(version).collect::<Vec<_>>(),
            // While a key waits for its deletion it is not rotated, and AWS says so.
            "KeyRotationEnabled": rotation.is_some(),
            "RotationPeriodInDays": rotation.map(|rotation| rotation.days),
            "NextRotationDate": rotation.map(Rotation::next),
            "PendingDeletionWindowInDays": record.deletion.as_ref().map(|deletion| deletion.days),
            "PolicyGeneration": record.policy.generation,
            "PolicySha256": hex(&sha256(record.policy.text.as_bytes())),
            "Generation": self.generation(),
        }))
    }
}

fn version(sealed: &SealedVersion) -> Value {
    json!({
        "KeyMaterialVersion": sealed.version,
        "CreationDate": sealed.created,
        "RotationType": sealed.rotation,
    })
}

impl Kms {
    /// What DescribeKey answers, and what only the time tells: when the key will be destroyed, as far as that is known,
    /// and how much of the time that has passed by the clock does not count.
    pub fn describe_key(&self, key: &Key) -> Result<Value, KmsError> {
        let mut description = key.description()?;
        let now = key.now().ok_or(KmsError::Tampered)?;
        if let (KeyState::PendingDeletion, Some(deletion), Some(members)) =
            (now.state(), &now.record.deletion, description.as_object_mut())
        {
            let times = self.observed();
            members.insert("DeletionDate".to_owned(), self.now().saturating_add(deletion.left(times)).into());
            members.insert("UnobservedSeconds".to_owned(), deletion.unconfirmed(times).into());
        }
        if let (Some(receipt), Some(members)) = (&now.record.receipt, description.as_object_mut()) {
            members.insert("DestroyedDate".to_owned(), receipt.destroyed_date.into());
            members.insert("ReceiptSha256".to_owned(), hex(&sha256(receipt.document()?.as_bytes())).into());
        }
        Ok(description)
    }
}

impl Table {
    /// A table's encryption, key and settings. An owned table's key has no name to tell.
    pub fn description(&self) -> Value {
        let record = self.record();
        let owned = self.key().now().is_some_and(|now| now.is_owned());
        let key_name = self.key().now().map(|now| now.record.name.clone());
        json!({
            "Name": record.name,
            "TableId": self.id(),
            "Encryption": record.encryption,
            "KeyName": if owned { None } else { key_name },
            "KeyId": if owned { None } else { Some(record.key) },
            "CreationDate": record.created,
            "Settings": record.settings,
        })
    }
}
