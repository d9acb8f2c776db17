//! What the layers below say, in the words that the transport has an errno for.

use std::io;

use super::api::FsError;
use crate::audit::AuditError;
use crate::kms::KmsError;
use crate::store::StoreError;
use crate::table::TableError;

impl From<KmsError> for FsError {
    fn from(error: KmsError) -> Self {
        match error {
            KmsError::Denied { .. } | KmsError::FixedPolicy => Self::Denied,
            KmsError::KeyRevoked(_) => Self::KeyRevoked,
            KmsError::Destroyed => Self::NoKey,
            KmsError::NotFound => Self::NotFound,
            KmsError::Exists => Self::Exists,
            KmsError::NameTooLong => Self::NameTooLong,
            KmsError::BadName(_)
            | KmsError::UnknownName { .. }
            | KmsError::Policy(_)
            | KmsError::Edit(_)
            | KmsError::LockOut
            | KmsError::InvalidState { .. }
            | KmsError::Invalid(_) => Self::Invalid,
            KmsError::ReadOnly => Self::ReadOnly,
            // Opening fails because of damage alone.
            KmsError::Tampered | KmsError::InvalidCiphertext(_) | KmsError::Crypto(_) => Self::Tampered,
            KmsError::Outdated(_) => Self::Busy,
            KmsError::Store(error) => of_store(error),
            KmsError::Audit(error) => of_audit(error),
            KmsError::Io(error) => Self::Io(error),
        }
    }
}

/// A change that the store could not take.
#[expect(clippy::wildcard_enum_match_arm, reason = "what is left is a store that takes no changes any more")]
fn of_store(error: StoreError) -> FsError {
    match error {
        StoreError::Io { source, .. } => FsError::Io(source),
        StoreError::ReadOnly => FsError::ReadOnly,
        StoreError::Tampered { .. } => FsError::Tampered,
        StoreError::TooLarge { .. } => FsError::TooLarge,
        other => {
            log::error!("the store: {other}");
            FsError::Corrupt
        }
    }
}

/// What cannot be written to the trail is not done; the errno says why it could not.
fn of_audit(error: AuditError) -> FsError {
    log::error!("{error}");
    match error {
        AuditError::Io { source, .. } => FsError::Io(source),
        AuditError::NoSpace => FsError::Io(io::Error::from_raw_os_error(libc::ENOSPC)),
        AuditError::TooLarge | AuditError::Closed | AuditError::Crypto(_) => {
            FsError::Io(io::Error::from_raw_os_error(libc::EIO))
        }
    }
}

impl From<TableError> for FsError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Io(error) => Self::Io(error),
            TableError::Tampered { .. } | TableError::WrongTable => Self::Tampered,
            TableError::NoKey { .. } => Self::NoKey,
            TableError::Unfinished => Self::NotFound,
            TableError::Version { .. } => Self::Corrupt,
            TableError::TooLarge => Self::TooLarge,
            TableError::TooManyLinks => Self::TooManyLinks,
            TableError::NameTooLong => Self::NameTooLong,
            TableError::BadName => Self::Invalid,
            TableError::Crypto(_) => Self::Io(io::Error::from_raw_os_error(libc::EIO)),
        }
    }
}
