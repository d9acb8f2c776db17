//! What is told of keys and tables: AWS's member names, and ours (docs/semantics.md, section 8).

use serde_json::{Value, json};

use super::record::{KeyOrigin, hex};
use super::{Key, KmsError, Table};
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
            "PolicyGeneration": record.policy.generation,
            "PolicySha256": hex(&sha256(record.policy.text.as_bytes())),
            "Generation": self.generation(),
        }))
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
