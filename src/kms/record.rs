//! What the sealed records of keys, tables and the store policy hold (docs/format.md, section 4).

use serde::{Deserialize, Serialize};

use crate::policy::Bindings;
use crate::types::{Encryption, KeyId, KeyState};

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
    /// Hexadecimal sealed box.
    pub sealed: String,
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

/// A scheduled deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deletion {
    pub requested: i64,
    pub days: u32,
    pub by: u32,
}

/// Automatic rotation.
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreRecord {
    pub policy: PolicyRecord,
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
