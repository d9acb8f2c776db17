//! Why the key service said no.

use std::fmt;
use std::io;

use crate::audit::AuditError;
use crate::crypto::CryptoError;
use crate::policy::{EditError, PolicyError};
use crate::store::StoreError;
use crate::types::{Action, KeyState};

/// An error of the key service. Everything but `Denied`, `KeyRevoked`, `InvalidState` and `Destroyed` is about a request that
/// was allowed or about the store; nothing here carries a secret.
#[derive(Debug)]
pub enum KmsError {
    /// The policy does not allow it; the text says which statement, or what is missing.
    Denied {
        action: Action,
        why: String,
    },
    /// The policy allows it, the key is disabled or waits for its deletion.
    KeyRevoked(KeyState),
    /// The policy allows it, and the key's state does not know such a change.
    InvalidState {
        action: Action,
        state: KeyState,
    },
    /// The policy allows it, the key is destroyed.
    Destroyed,
    /// No key, or no table, of this name.
    NotFound,
    /// The name is taken.
    Exists,
    /// Not a name for a key or a table.
    BadName(&'static str),
    /// A name of more than 255 bytes.
    NameTooLong,
    /// A name in a policy that is no user or group of this host.
    UnknownName {
        name: String,
        line: u32,
        column: u32,
    },
    /// The policy document is refused.
    Policy(PolicyError),
    /// A user could not be added to or taken out of the document.
    Edit(EditError),
    /// The document would leave the caller without PutKeyPolicy.
    LockOut,
    /// The key's policy is fixed (the managed key's).
    FixedPolicy,
    /// The store is mounted read-only.
    ReadOnly,
    /// Not a ciphertext that this key opens in this context, with what it lacks.
    InvalidCiphertext(&'static str),
    /// The policy is not the generation any more on which a save was to build; it is this one.
    Outdated(u64),
    /// The record of the key or table does not verify.
    Tampered,
    /// A request that makes no sense, with the reason.
    Invalid(String),
    Store(StoreError),
    Audit(AuditError),
    Crypto(CryptoError),
    Io(io::Error),
}

impl fmt::Display for KmsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied { action, why } => write!(f, "{action} denied: {why}"),
            Self::KeyRevoked(state) => write!(f, "the key is in state {state}"),
            Self::InvalidState { action, state } => {
                write!(f, "the key is in state {state}, which does not allow {action}")
            }
            Self::Destroyed => f.write_str("the key is destroyed"),
            Self::NotFound => f.write_str("no such key or table"),
            Self::Exists => f.write_str("the name is taken"),
            Self::NameTooLong => f.write_str("the name is longer than 255 bytes"),
            Self::BadName(why) => write!(f, "not a usable name: {why}"),
            Self::UnknownName { name, line, column } => write!(
                f,
                "policy refused: line {line}, column {column}: no user or group '{name}' on this host (write uid:N or \
                 gid:N for one that is not)"
            ),
            Self::Policy(error) => write!(f, "policy refused: {error}"),
            Self::Edit(error) => error.fmt(f),
            Self::LockOut => f.write_str(
                "policy refused: you could not change it any more (keep a statement that allows you kms:PutKeyPolicy)",
            ),
            Self::FixedPolicy => f.write_str("the policy of this key is fixed"),
            Self::ReadOnly => f.write_str("the store is mounted read-only"),
            Self::InvalidCiphertext(why) => write!(f, "the ciphertext is not valid: {why}"),
            Self::Outdated(generation) => write!(
                f,
                "the policy has been changed meanwhile: it is generation {generation} now (read it again, and build on that)"
            ),
            Self::Tampered => f.write_str("a record in the store does not verify"),
            Self::Invalid(why) => f.write_str(why),
            Self::Store(error) => error.fmt(f),
            Self::Audit(error) => write!(f, "audit trail: {error}"),
            Self::Crypto(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for KmsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Policy(error) => Some(error),
            Self::Edit(error) => Some(error),
            Self::Store(error) => Some(error),
            Self::Audit(error) => Some(error),
            Self::Crypto(error) => Some(error),
            Self::Io(error) => Some(error),
            Self::Denied { .. }
            | Self::KeyRevoked(_)
            | Self::InvalidState { .. }
            | Self::Destroyed
            | Self::NotFound
            | Self::Exists
            | Self::BadName(_)
            | Self::NameTooLong
            | Self::UnknownName { .. }
            | Self::LockOut
            | Self::FixedPolicy
            | Self::ReadOnly
            | Self::InvalidCiphertext(_)
            | Self::Outdated(_)
            | Self::Tampered
            | Self::Invalid(_) => None,
        }
    }
}

macro_rules! from_lower {
    ($($variant:ident($error:ty)),* $(,)?) => {$(
        impl From<$error> for KmsError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}

from_lower!(
    Policy(PolicyError),
    Edit(EditError),
    Store(StoreError),
    Audit(AuditError),
    Crypto(CryptoError),
    Io(io::Error)
);
