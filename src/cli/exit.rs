//! How a command ends: the exit codes, which scripts rely on (docs/cli.md), and the errors that lead to them.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::credentials::CredentialError;
use crate::audit::AuditError;
use crate::fs::SessionError;
use crate::kms::KmsError;
use crate::mount::MountError;
use crate::store::{JournalError, StoreError};

/// The exit codes. They never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; for `why`: allowed.
    Done = 0,
    /// The operation failed, for a reason that no other code names.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Unix or a policy does not allow it; for `why`: denied.
    Denied = 3,
    /// No credential, a wrong one, or one that others can read.
    Credential = 4,
    /// The store is served by another daemon, or the mount is in use.
    Busy = 5,
    /// Something fails authentication, is older than it may be, or `verify` found something.
    Integrity = 6,
    /// No store, no mount, no such key, table or item.
    NotFound = 7,
    /// This machine offers no FUSE to the caller.
    NoFuse = 8,
}

impl Exit {
    /// The code for an error of a system call, on a path inside of a mount or a store.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Self {
        use rustix::io::Errno;
        match Errno::from_io_error(error) {
            Some(Errno::ACCESS | Errno::PERM) => Self::Denied,
            Some(Errno::BADMSG | Errno::UCLEAN) => Self::Integrity,
            Some(Errno::NOENT | Errno::NOTDIR | Errno::NOTCONN) => Self::NotFound,
            Some(Errno::BUSY) => Self::Busy,
            Some(_) | None => Self::Failed,
        }
    }

    /// The code that a daemon has reported.
    #[must_use]
    pub fn of_code(code: u8) -> Self {
        [
            Self::Done,
            Self::Usage,
            Self::Denied,
            Self::Credential,
            Self::Busy,
            Self::Integrity,
            Self::NotFound,
            Self::NoFuse,
        ]
        .into_iter()
        .find(|exit| *exit as u8 == code)
        .unwrap_or(Self::Failed)
    }

    fn of_store(error: &StoreError) -> Self {
        match error {
            StoreError::NotAStore { .. } | StoreError::NoSuchRecord { .. } | StoreError::NoSuchSlot => Self::NotFound,
            StoreError::Busy { .. } => Self::Busy,
            StoreError::WrongCredential { .. }
            | StoreError::NoSuchCredential { .. }
            | StoreError::BadCredential { .. } => Self::Credential,
            StoreError::DamagedSlots { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Tampered { .. }
            | StoreError::RolledBack { .. }
            | StoreError::AnchorDamaged { .. } => Self::Integrity,
            StoreError::Io { source, .. } => Self::of_io(source),
            StoreError::NotEmpty { .. }
            | StoreError::Version { .. }
            | StoreError::Parameters
            | StoreError::TooManySlots
            | StoreError::LastSlot
            | StoreError::ReadOnly
            | StoreError::Closed
            | StoreError::Poisoned
            | StoreError::TooLarge { .. }
            | StoreError::Duplicate
            | StoreError::Crypto(_) => Self::Failed,
        }
    }

    fn of_kms(error: &KmsError) -> Self {
        match error {
            KmsError::Denied { .. } | KmsError::FixedPolicy => Self::Denied,
            KmsError::NotFound => Self::NotFound,
            KmsError::Tampered | KmsError::InvalidCiphertext(_) => Self::Integrity,
            KmsError::Outdated(_) => Self::Busy,
            KmsError::Store(error) => Self::of_store(error),
            KmsError::Io(error) => Self::of_io(error),
            KmsError::KeyRevoked(_)
            | KmsError::InvalidState { .. }
            | KmsError::Destroyed
            | KmsError::Exists
            | KmsError::BadName(_)
            | KmsError::NameTooLong
            | KmsError::UnknownName { .. }
            | KmsError::Policy(_)
            | KmsError::Edit(_)
            | KmsError::LockOut
            | KmsError::ReadOnly
            | KmsError::Invalid(_)
            | KmsError::Audit(_)
            | KmsError::Crypto(_) => Self::Failed,
        }
    }

    fn of_session(error: &SessionError) -> Self {
        match error {
            SessionError::Store(error) => Self::of_store(error),
            SessionError::Kms(error) => Self::of_kms(error),
            SessionError::Journal(JournalError::Io(source)) | SessionError::Audit(AuditError::Io { source, .. }) => {
                Self::of_io(source)
            }
            SessionError::Journal(_) | SessionError::Audit(_) | SessionError::Fs(_) => Self::Failed,
        }
    }

    fn of_mount(error: &MountError) -> Self {
        match error {
            MountError::NoFuse | MountError::ClosedFuse | MountError::NoHelper => Self::NoFuse,
            MountError::MountedAlready(_) | MountError::Hidden(_) => Self::Busy,
            MountError::NoMountPoint(_) => Self::NotFound,
            MountError::NotADirectory(_) | MountError::Dead(_) => Self::Failed,
            MountError::Io { error, .. } => Self::of_io(error),
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum CliError {
    /// The command line contradicts itself, or lacks something.
    Usage { reason: String },
    /// The path is on no kmsfs mount.
    NotAMount { path: PathBuf },
    /// The mount's daemon is gone.
    Stale { mountpoint: PathBuf },
    /// There is no such key or table, or none that the caller may see.
    Absent { kind: &'static str, name: String },
    /// A call on a path failed.
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// The daemon refused, and says why.
    Refused { what: String, reason: String, source: Option<io::Error> },
    /// The credential is not there, or not as it must be.
    Credential(CredentialError),
    /// The mount is in use.
    InUse { mountpoint: PathBuf },
    /// Authentication failed, or a check found something.
    Integrity { finding: String },
    /// A control file is not as this version expects it.
    Malformed { path: PathBuf, source: serde_json::Error },
    /// A program that this one needs failed.
    Program { program: &'static str, source: Option<io::Error> },
    /// A store could not be made, opened or changed.
    Session(SessionError),
    /// There is no mount.
    Mount(MountError),
    /// What a daemon has reported before it ended.
    Daemon { exit: Exit, text: String },
    /// A file holds a policy that would be refused.
    BadPolicy { path: PathBuf, reason: String },
}

impl CliError {
    /// An error of a system call.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { doing, path: path.into(), source }
    }

    /// A wrong command line.
    pub fn usage(reason: impl Into<String>) -> Self {
        Self::Usage { reason: reason.into() }
    }

    /// The exit code that says it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } => Exit::Usage,
            Self::NotAMount { .. } | Self::Stale { .. } | Self::Absent { .. } => Exit::NotFound,
            Self::Io { source, .. } | Self::Refused { source: Some(source), .. } => Exit::of_io(source),
            Self::Refused { source: None, .. }
            | Self::Malformed { .. }
            | Self::Program { .. }
            | Self::BadPolicy { .. } => Exit::Failed,
            Self::Credential(_) => Exit::Credential,
            Self::Session(error) => Exit::of_session(error),
            Self::Mount(error) => Exit::of_mount(error),
            Self::Daemon { exit, .. } => *exit,
            Self::InUse { .. } => Exit::Busy,
            Self::Integrity { .. } => Exit::Integrity,
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage { reason } => f.write_str(reason),
            Self::Session(error) => f.write_str(&plain(error)),
            Self::Mount(error) => f.write_str(&plain(error)),
            Self::Daemon { text, .. } => f.write_str(text),
            Self::NotAMount { path } => write!(f, "{} is not on a kmsfs mount", path.display()),
            Self::Stale { mountpoint } => write!(
                f,
                "the daemon that served {0} is gone; `kmsfs umount {0}` clears the mount away",
                mountpoint.display()
            ),
            Self::Absent { kind, name } => write!(f, "there is no {kind} {name:?}, or none that you may see"),
            Self::Io { doing, path, source } => write!(f, "cannot {doing} {}: {}", path.display(), plain(source)),
            Self::Refused { what, reason, .. } => write!(f, "{what}: {reason}"),
            Self::Credential(error) => error.fmt(f),
            Self::InUse { mountpoint } => {
                write!(f, "{0} is in use (`fuser -vm {0}` lists by whom)", mountpoint.display())
            }
            Self::Integrity { finding } => f.write_str(finding),
            Self::Malformed { path, source } => write!(f, "cannot make sense of {}: {source}", path.display()),
            Self::Program { program, source: Some(source) } => write!(f, "cannot run {program}: {}", plain(source)),
            Self::Program { program, source: None } => write!(f, "{program} failed"),
            Self::BadPolicy { path, reason } => write!(f, "{}: {reason}", path.display()),
        }
    }
}

impl std::error::Error for CliError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. }
            | Self::Refused { source: Some(source), .. }
            | Self::Program { source: Some(source), .. } => Some(source),
            Self::Credential(error) => Some(error),
            Self::Session(error) => error.source(),
            Self::Mount(error) => error.source(),
            Self::Malformed { source, .. } => Some(source),
            Self::Usage { .. }
            | Self::NotAMount { .. }
            | Self::Stale { .. }
            | Self::Absent { .. }
            | Self::Refused { source: None, .. }
            | Self::InUse { .. }
            | Self::Daemon { .. }
            | Self::Integrity { .. }
            | Self::Program { source: None, .. }
            | Self::BadPolicy { .. } => None,
        }
    }
}

impl From<CredentialError> for CliError {
    fn from(error: CredentialError) -> Self {
        Self::Credential(error)
    }
}

impl From<MountError> for CliError {
    fn from(error: MountError) -> Self {
        Self::Mount(error)
    }
}

impl From<SessionError> for CliError {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

macro_rules! from_session {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::Session(error.into())
            }
        }
    )*};
}

from_session!(StoreError, KmsError, AuditError, JournalError);

/// An error's text as strerror(3) has it, without the number that the standard library appends.
pub(super) fn plain(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let Some((words, rest)) = text.split_once(" (os error ") else { return text };
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{words}{}", rest.strip_prefix(')').unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn errors_lead_to_the_documented_codes() {
        for (code, exit) in [
            (libc::EACCES, 3),
            (libc::EPERM, 3),
            (libc::EBADMSG, 6),
            (libc::EUCLEAN, 6),
            (libc::ENOENT, 7),
            (libc::ENOTCONN, 7),
            (libc::EBUSY, 5),
            (libc::EINVAL, 1),
            (libc::ENOSPC, 1),
        ] {
            assert_eq!(CliError::io("read", "/x", errno(code)).exit() as u8, exit, "{code}");
            let refused = CliError::Refused { what: "x".to_owned(), reason: "y".to_owned(), source: Some(errno(code)) };
            assert_eq!(refused.exit() as u8, exit, "{code}");
        }
        assert_eq!(Exit::of_io(&io::Error::other("x")), Exit::Failed);
    }

    #[test]
    fn messages_carry_no_error_number() {
        let error = CliError::io("read", "/mnt/x", errno(libc::EACCES));
        assert_eq!(error.to_string(), "cannot read /mnt/x: Permission denied");
    }
}
