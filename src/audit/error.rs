//! Why an event could not be written down; what can't be written down must not be done.

use std::fmt;
use std::io;

use crate::crypto::CryptoError;

/// An error of the audit trail.
#[derive(Debug)]
pub enum AuditError {
    /// A call to the operating system failed.
    Io { doing: &'static str, source: io::Error },
    /// No space could be reserved, and what is left is kept for the events of those who free some.
    NoSpace,
    /// The event is longer than 64 KiB.
    TooLarge,
    /// The trail was closed, or an earlier flush of it failed, after which nobody knows what the disk holds.
    Closed,
    /// A cryptographic step failed that does not depend on what the trail holds.
    Crypto(CryptoError),
}

impl AuditError {
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { doing, source } => write!(f, "cannot {doing} the audit trail: {source}"),
            Self::NoSpace => f.write_str("no space is left for the audit trail: free some on the store's disk"),
            Self::TooLarge => f.write_str("an event for the audit trail is longer than 64 KiB"),
            Self::Closed => f.write_str("the audit trail takes no events: it was closed, or a flush of it failed"),
            Self::Crypto(error) => write!(f, "the audit trail could not be sealed: {error}"),
        }
    }
}

impl std::error::Error for AuditError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Crypto(error) => Some(error),
            Self::NoSpace | Self::TooLarge | Self::Closed => None,
        }
    }
}

impl From<CryptoError> for AuditError {
    fn from(error: CryptoError) -> Self {
        Self::Crypto(error)
    }
}
