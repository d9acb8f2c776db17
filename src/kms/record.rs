//! What the sealed records of keys, tables and the store policy hold (docs/format.md, section 4).

use serde::{Deserialize, Serialize};

use crate::policy::Bindings;
use crate::types::{Encryption, KeyId, KeyState, StoreId, TableId};

/// Where a key comes from, and so who decides about its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyOrigin {
    Customer,
    Managed,
    Owned,
}

/// A version of a key's material, sealed under the root's 'wrap' key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedVersion {
    pub version: u32,
    /// Seconds since 1970.
    pub created: i64,
    /// What it came of; none for the key's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationType>,
    /// Hexadecimal sealed box.
    pub sealed: String,
}

/// How a rotation came about, in AWS's words (ListKeyRotations).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RotationType {
    Automatic,
    OnDemand,
}

/// A version of a table key, sealed under a version of the key's material.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedTableKey {
    pub version: u32,
    pub material_version: u32,
    /// Hexadecimal sealed box.
    pub sealed: String,
}

/// A policy document with the ids that its names were bound to when it was saved.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRecord {
    pub text: String,
    pub bindings: Bindings,
    /// How often it was saved, from 1.
    pub generation: u64,
}

/// A scheduled deletion. Its window is counted in observed time (`clock`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deletion {
    /// Seconds since 1970.
    pub requested: i64,
    pub days: u32,
    /// The uid that ordered it, its name then, and as a custodian his reason.
    pub by: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The seconds that had been observed when it was ordered, and those that had been left out.
    #[serde(default)]
    pub observed: i64,
    #[serde(default)]
    pub skipped: i64,
    /// Seconds of those left out since, which an administrator has confirmed.
    #[serde(default)]
    pub confirmed: i64,
}

impl Deletion {
    /// Seconds of the window that have passed, when `observed` and `skipped` are what they are now.
    pub(super) fn waited(&self, (observed, _): (i64, i64)) -> i64 {
        observed.saturating_sub(self.observed).max(0).saturating_add(self.confirmed)
    }

    /// Seconds that have passed by the clock alone, and count for nothing until they are confirmed.
    pub(super) fn unconfirmed(&self, (_, skipped): (i64, i64)) -> i64 {
        skipped.saturating_sub(self.skipped).saturating_sub(self.confirmed).max(0)
    }

    /// Seconds of the window that are left.
    pub(super) fn left(&self, now: (i64, i64)) -> i64 {
        (i64::from(self.days) * DAY).saturating_sub(self.waited(now)).max(0)
    }
}

/// Seconds.
pub(super) const DAY: i64 = 24 * 3600;

/// What is left of a destroyed key: sealed in its record, and shown as it stands here. Members are in the words of AWS
/// where it has any; times in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub struct Receipt {
    pub store_id: StoreId,
    pub key_id: KeyId,
    pub name: String,
    /// When its deletion was ordered, for when, and by whom.
    pub scheduled_date: i64,
    pub pending_deletion_window_in_days: u32,
    pub ordered_by_uid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_by_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub destroyed_date: i64,
    /// The versions of the key's material that were destroyed.
    pub key_material_versions: Vec<u32>,
    /// What became unreadable.
    pub items: u64,
    pub bytes_in_store: u64,
    pub grants: u64,
    pub tables: Vec<ReceiptTable>,
    /// Tables beyond those.
    pub more_tables: u64,
    /// False: a part of the store could not be counted.
    pub counted_all: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub struct ReceiptTable {
    pub table_id: TableId,
    pub name: String,
    /// The versions of the table's key that were destroyed.
    pub table_key_versions: Vec<u32>,
    pub items: u64,
    pub bytes_in_store: u64,
}

/// Automatic rotation: every so many days since it was switched on, or last carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    pub days: u32,
    pub last: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    pub name: String,
    pub origin: KeyOrigin,
    pub description: String,
    pub state: KeyState,
    /// Seconds since 1970.
    pub created: i64,
    /// The uid that made it.
    pub creator: u32,
    pub material: Vec<SealedVersion>,
    pub policy: PolicyRecord,
    /// Digests of the grants bound to the key, hexadecimal.
    pub grants: Vec<String>,
    pub deletion: Option<Deletion>,
    pub rotation: Option<Rotation>,
    /// Of a destroyed key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Box<Receipt>>,
}

/// How the kernel may cache a table's items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// As for any file system.
    Shared,
    /// Direct I/O: every read(2) is decided.
    None,
}

/// What becomes of an inode that a revoked and a permitted handle share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRevoke {
    /// It is retired: later opens get a new one, the permitted handle opens again.
    Expire,
    /// Permitted handles live on; what they read, the revoked handle may see.
    Tolerate,
}

/// Whether names may be listed without Decrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamesMode {
    Open,
    Sealed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub cache: CacheMode,
    pub on_revoke: OnRevoke,
    pub names: NamesMode,
}

impl Default for Settings {
    fn default() -> Self {
        Self { cache: CacheMode::Shared, on_revoke: OnRevoke::Expire, names: NamesMode::Open }
    }
}

/// An order to seal a table's items anew, under its newest table key, until it is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReEncryption {
    /// Seconds since 1970.
    pub started: i64,
    /// The uid that ordered it.
    pub by: u32,
    pub stopped: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableRecord {
    pub name: String,
    pub encryption: Encryption,
    pub key: KeyId,
    pub created: i64,
    pub creator: u32,
    /// Hexadecimal sealed box of 64 bytes under 'wrap'.
    pub names_key: String,
    pub table_keys: Vec<SealedTableKey>,
    pub settings: Settings,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub re_encryption: Option<ReEncryption>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreRecord {
    pub policy: PolicyRecord,
    /// The store was made for tests: they may move its clock.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub for_tests: bool,
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of lower-case hexadecimal text.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}
