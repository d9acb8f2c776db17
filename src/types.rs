//! Level 0: the words that every layer shares. Plain values without behaviour of their own; nothing here reads
//! a file, a clock or a key.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

/// A malformed textual id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdParseError;

impl fmt::Display for IdParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id is 32 hexadecimal digits")
    }
}

impl std::error::Error for IdParseError {}

/// Ids are written by the ten thousand: in one piece.
fn hexadecimal<'a>(id: &[u8; 16], text: &'a mut [u8; 32]) -> &'a str {
    let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' - 10 + value };
    for (pair, byte) in text.chunks_exact_mut(2).zip(id) {
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
    // INVARIANT: digits are ASCII.
    std::str::from_utf8(text).unwrap_or_default()
}

macro_rules! id_newtype {
    ($(#[$doc:meta] $name:ident),* $(,)?) => {$(
        #[$doc]
        ///
        /// 16 random bytes; written as 32 lower-case hexadecimal digits.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(hexadecimal(&self.0, &mut [0; 32]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdParseError;

            fn from_str(text: &str) -> Result<Self, IdParseError> {
                let mut bytes = [0; 16];
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
                    return Err(IdParseError);
                }
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
                    let digits = std::str::from_utf8(pair).map_err(|_| IdParseError)?;
                    *byte = u8::from_str_radix(digits, 16).map_err(|_| IdParseError)?;
                }
                Ok(Self(bytes))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdParseError;

            fn try_from(text: String) -> Result<Self, IdParseError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    )*};
}

id_newtype!(
    /// Names a store.
    StoreId,
    /// Names a KMS key.
    KeyId,
    /// Names a grant of a key.
    GrantId,
    /// Names a table, whatever it is called.
    TableId,
    /// Names a folder inside a table; the table's own folder has the table's id.
    DirId,
    /// Names an item's contents, whatever name leads to them.
    ItemId,
);

/// What a request asks of a key, a table or the store. The names are those of AWS KMS where AWS has the action,
/// `kmsfs:` where it has none.
///
/// Source: AWS KMS Developer Guide, 'AWS KMS permissions'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    Decrypt,
    Encrypt,
    GenerateDataKey,
    /// A data key in sealed form alone, for whoever is to open it later.
    GenerateDataKeyWithoutPlaintext,
    ReEncryptFrom,
    ReEncryptTo,
    DescribeKey,
    GetKeyPolicy,
    PutKeyPolicy,
    CreateKey,
    ListKeys,
    EnableKey,
    DisableKey,
    ScheduleKeyDeletion,
    CancelKeyDeletion,
    EnableKeyRotation,
    DisableKeyRotation,
    GetKeyRotationStatus,
    RotateKeyOnDemand,
    UpdateKeyDescription,
    CreateGrant,
    ListGrants,
    RevokeGrant,
    RetireGrant,
    /// `kmsfs:CreateTable`: make a table (in the store policy).
    CreateTable,
    /// `kmsfs:UpdateTable`: change a table's settings.
    UpdateTable,
    /// `kmsfs:DescribeTable`: read a table's description.
    DescribeTable,
    /// `kmsfs:ListTables`.
    ListTables,
    /// `kmsfs:ReadAudit`: read the audit trail.
    ReadAudit,
    /// `kmsfs:GetStorePolicy` and `kmsfs:PutStorePolicy`: the store's own policy.
    GetStorePolicy,
    PutStorePolicy,
    /// `kmsfs:ReadStats`.
    ReadStats,
    /// `kmsfs:ResetClock`: take the host's clock for right, though it is behind what the store has seen.
    ResetClock,
}

impl Action {
    pub const ALL: [Self; 33] = [
        Self::Decrypt,
        Self::Encrypt,
        Self::GenerateDataKey,
        Self::GenerateDataKeyWithoutPlaintext,
        Self::ReEncryptFrom,
        Self::ReEncryptTo,
        Self::DescribeKey,
        Self::GetKeyPolicy,
        Self::PutKeyPolicy,
        Self::CreateKey,
        Self::ListKeys,
        Self::EnableKey,
        Self::DisableKey,
        Self::ScheduleKeyDeletion,
        Self::CancelKeyDeletion,
        Self::EnableKeyRotation,
        Self::DisableKeyRotation,
        Self::GetKeyRotationStatus,
        Self::RotateKeyOnDemand,
        Self::UpdateKeyDescription,
        Self::CreateGrant,
        Self::ListGrants,
        Self::RevokeGrant,
        Self::RetireGrant,
        Self::CreateTable,
        Self::UpdateTable,
        Self::DescribeTable,
        Self::ListTables,
        Self::ReadAudit,
        Self::GetStorePolicy,
        Self::PutStorePolicy,
        Self::ReadStats,
        Self::ResetClock,
    ];

    /// The full name, prefix included, as a policy writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decrypt => "kms:Decrypt",
            Self::Encrypt => "kms:Encrypt",
            Self::GenerateDataKey => "kms:GenerateDataKey",
            Self::GenerateDataKeyWithoutPlaintext => "kms:GenerateDataKeyWithoutPlaintext",
            Self::ReEncryptFrom => "kms:ReEncryptFrom",
            Self::ReEncryptTo => "kms:ReEncryptTo",
            Self::DescribeKey => "kms:DescribeKey",
            Self::GetKeyPolicy => "kms:GetKeyPolicy",
            Self::PutKeyPolicy => "kms:PutKeyPolicy",
            Self::CreateKey => "kms:CreateKey",
            Self::ListKeys => "kms:ListKeys",
            Self::EnableKey => "kms:EnableKey",
            Self::DisableKey => "kms:DisableKey",
            Self::ScheduleKeyDeletion => "kms:ScheduleKeyDeletion",
            Self::CancelKeyDeletion => "kms:CancelKeyDeletion",
            Self::EnableKeyRotation => "kms:EnableKeyRotation",
            Self::DisableKeyRotation => "kms:DisableKeyRotation",
            Self::GetKeyRotationStatus => "kms:GetKeyRotationStatus",
            Self::RotateKeyOnDemand => "kms:RotateKeyOnDemand",
            Self::UpdateKeyDescription => "kms:UpdateKeyDescription",
            Self::CreateGrant => "kms:CreateGrant",
            Self::ListGrants => "kms:ListGrants",
            Self::RevokeGrant => "kms:RevokeGrant",
            Self::RetireGrant => "kms:RetireGrant",
            Self::CreateTable => "kmsfs:CreateTable",
            Self::UpdateTable => "kmsfs:UpdateTable",
            Self::DescribeTable => "kmsfs:DescribeTable",
            Self::ListTables => "kmsfs:ListTables",
            Self::ReadAudit => "kmsfs:ReadAudit",
            Self::GetStorePolicy => "kmsfs:GetStorePolicy",
            Self::PutStorePolicy => "kmsfs:PutStorePolicy",
            Self::ReadStats => "kmsfs:ReadStats",
            Self::ResetClock => "kmsfs:ResetClock",
        }
    }

    /// Whether the action uses key material (as against managing a key).
    #[must_use]
    pub const fn is_cryptographic(self) -> bool {
        matches!(
            self,
            Self::Decrypt
                | Self::Encrypt
                | Self::GenerateDataKey
                | Self::GenerateDataKeyWithoutPlaintext
                | Self::ReEncryptFrom
                | Self::ReEncryptTo
        )
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A caller's supplementary groups, as far as they are known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Groups {
    /// As the kernel tells them of the calling thread, the primary gid not necessarily among them.
    Known(Vec<u32>),
    /// They could not be tied to the request: no Allow by group holds, every Deny by group does.
    Unknown,
}

/// Who asks: the uid and gid of the request and the groups of the calling thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    pub uid: u32,
    pub gid: u32,
    pub groups: Groups,
}

/// The encryption context: what a cryptographic operation is bound to, as in AWS KMS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EncryptionContext(BTreeMap<String, String>);

impl EncryptionContext {
    #[must_use]
    pub fn new(pairs: BTreeMap<String, String>) -> Self {
        Self(pairs)
    }

    /// The context of an item: `kmsfs:table` and `kmsfs:item`, the path inside the table.
    #[must_use]
    pub fn of_item(table: &str, item: &[u8]) -> Self {
        Self(BTreeMap::from([
            ("kmsfs:table".to_owned(), table.to_owned()),
            ("kmsfs:item".to_owned(), text_of_path(item)),
        ]))
    }

    #[must_use]
    pub fn pairs(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

/// [`text_of_path`], borrowed where the path is its own text.
#[must_use]
pub fn text_of_path_in(path: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(path) {
        Ok(text) if !text.contains('\u{fffd}') => Cow::Borrowed(text),
        Ok(_) | Err(_) => Cow::Owned(text_of_path(path)),
    }
}

/// A path as text, one to one: valid UTF-8 stands as it is; each byte that is not part of valid UTF-8, and each byte
/// of a real U+FFFD, becomes U+FFFD and two hexadecimal digits. Two paths never give the same text, so that no odd
/// name can pass for another in a policy's condition.
#[must_use]
pub fn text_of_path(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    let escape = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            // Writing to a String cannot fail.
            let _ = write!(text, "\u{fffd}{byte:02x}");
        }
    };
    for chunk in path.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character == '\u{fffd}' {
                escape(&mut text, "\u{fffd}".as_bytes());
            } else {
                text.push(character);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

/// The state of a KMS key. Source: AWS KMS Developer Guide, 'Key states of AWS KMS keys'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion,
    Destroyed,
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
            Self::Destroyed => "Destroyed",
        })
    }
}

/// Which kind of key protects a table, as DynamoDB's three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// The store's own key: no policy, not listed; Unix alone decides.
    Owned,
    /// The key `kmsfs-managed`: listed, its policy readable and fixed.
    Managed,
    /// A key of the user's, with its policy.
    Customer,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse_back() {
        let id = KeyId::from_bytes(*b"0123456789abcdef");
        assert_eq!(id.to_string(), "30313233343536373839616263646566");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "3031", "3031323334353637383961626364656G", "30313233343536373839616263646566a"] {
            assert_eq!(bad.parse::<KeyId>(), Err(IdParseError));
        }
    }

    #[test]
    fn no_two_paths_share_a_text() {
        assert_eq!(text_of_path(b"a/b"), "a/b");
        assert_eq!(text_of_path(b"a\xff"), "a\u{fffd}ff");
        assert_eq!(text_of_path("a\u{fffd}".as_bytes()), "a\u{fffd}ef\u{fffd}bf\u{fffd}bd");
        assert_ne!(text_of_path("a\u{fffd}ff".as_bytes()), text_of_path(b"a\xff"));
        for path in [b"a/b".as_slice(), b"", b"a\xff", "\u{fffd}".as_bytes(), "\u{e9}".as_bytes()] {
            assert_eq!(text_of_path_in(path), text_of_path(path));
        }
    }

    #[test]
    fn every_action_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Action::ALL.iter().map(|a| a.name()).collect();
        assert_eq!(names.len(), Action::ALL.len());
    }
}
