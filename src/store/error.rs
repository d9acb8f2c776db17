//! Why a store could not be made, opened or changed. Each message names the file and, where there is one, the remedy.

use std::fmt;
use std::io;

use crate::crypto::CryptoError;

/// An error of the store's lifecycle, its records and its catalog.
#[derive(Debug)]
pub enum StoreError {
    /// A call to the operating system failed.
    Io { doing: &'static str, file: String, source: io::Error },
    /// There is no `root` file: not a store.
    NotAStore { path: String },
    /// A store is made in a new or an empty directory only.
    NotEmpty { path: String },
    /// Another process serves the store; the text is what it wrote into `lock`.
    Busy { holder: String },
    /// The file was written by another version of the format.
    Version { file: String, found: u16 },
    /// The file's structure cannot be read, and there is no other copy.
    Corrupt { file: String, what: &'static str },
    /// The file does not authenticate, or is not the one that the catalog lists. The rest of the store is served.
    Tampered { file: String, what: &'static str },
    /// No slot opens with this credential, and all slots of its kind are intact.
    WrongCredential { kind: &'static str },
    /// No slot opens with this credential, and some slots are damaged, perhaps the one that it belongs to.
    DamagedSlots { damaged: usize, of: usize },
    /// The store has no slot of the credential's kind.
    NoSuchCredential { kind: &'static str },
    /// A credential that no slot can be made of.
    BadCredential { why: &'static str },
    /// Argon2id parameters outside of floor and ceiling.
    Parameters,
    /// There are 16 slots already.
    TooManySlots,
    /// The last slot stays: without one, nobody could open the store again.
    LastSlot,
    /// No slot has this id.
    NoSuchSlot,
    /// The catalog lists no such object.
    NoSuchRecord { kind: u8 },
    /// The store is older than what this host has seen, or has another history.
    RolledBack { store: u64, anchor: u64 },
    /// The anchor does not authenticate.
    AnchorDamaged { file: String, what: &'static str },
    /// The store was opened for reading only.
    ReadOnly,
    /// The store was closed in good order; nothing can be changed after that.
    Closed,
    /// An earlier failure left it open which state the disk holds, so no further change is taken.
    Poisoned,
    /// A record of more than 1 MiB, a label of more than 119 bytes, a catalog beyond its bound.
    TooLarge { what: &'static str },
    /// A commit that names an object twice.
    Duplicate,
    /// A cryptographic step failed that does not depend on what the store holds.
    Crypto(CryptoError),
}

impl StoreError {
    pub(crate) fn io(doing: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { doing, file, source }
    }

    /// Whether there was no room on the disk, or in a quota.
    pub(super) fn is_lack_of_space(&self) -> bool {
        let full = [libc::ENOSPC, libc::EDQUOT];
        matches!(self, Self::Io { source, .. } if source.raw_os_error().is_some_and(|errno| full.contains(&errno)))
    }

    /// Names the store's path where the error was made without knowing it.
    pub(super) fn at(mut self, here: &str) -> Self {
        if let Self::NotAStore { path } | Self::NotEmpty { path } = &mut self {
            here.clone_into(path);
        }
        self
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { doing, file, source } => write!(f, "cannot {doing} {file}: {source}"),
            Self::NotAStore { path } => {
                write!(f, "{path} is not a kmsfs store: it has no file 'root' (kmsfs init makes a store)")
            }
            Self::NotEmpty { path } => write!(f, "{path} is not empty: a store is made in a new or an empty directory"),
            Self::Busy { holder } => write!(f, "the store is in use by {holder}: unmount it there first"),
            Self::Version { file, found } => {
                write!(
                    f,
                    "{file} was written by format version {found}, this is version 1: use a program of that version"
                )
            }
            Self::Corrupt { file, what } => {
                write!(f, "{file} is damaged: {what}; restore the store's metadata from a backup")
            }
            Self::Tampered { file, what } => {
                write!(f, "{file} is damaged or was tampered with: {what}; restore it from a backup")
            }
            Self::WrongCredential { kind } => write!(f, "no unlock slot opens with this {kind}"),
            Self::DamagedSlots { damaged, of } => write!(
                f,
                "no unlock slot opens with this credential, and {damaged} of {of} slots in 'root' are damaged: \
                 try another slot's credential, or restore 'root' from a backup"
            ),
            Self::NoSuchCredential { kind } => write!(f, "the store has no unlock slot for a {kind}"),
            Self::BadCredential { why } => f.write_str(why),
            Self::Parameters => {
                f.write_str("argon2id parameters must be 64 MiB to 2 GiB of memory, 3 to 16 passes and 1 to 16 lanes")
            }
            Self::TooManySlots => f.write_str("the store has 16 unlock slots already: remove one first"),
            Self::LastSlot => f.write_str("the last unlock slot cannot be removed: add another one first"),
            Self::NoSuchSlot => f.write_str("the store has no unlock slot of this id"),
            Self::NoSuchRecord { kind } => write!(f, "the catalog lists no such object of kind {kind}"),
            Self::RolledBack { store, anchor } => write!(
                f,
                "the store is at change {store}, but this host has seen change {anchor} of it, or another history: \
                 an older copy was put in its place; if you restored a backup on purpose, run 'kmsfs anchor accept'"
            ),
            Self::AnchorDamaged { file, what } => write!(
                f,
                "{file} cannot be trusted: {what}; if you know that the store is the newest one, \
                 run 'kmsfs anchor accept'"
            ),
            Self::ReadOnly => f.write_str("the store was opened read-only"),
            Self::Closed => f.write_str("the store was closed"),
            Self::Poisoned => f.write_str(
                "an earlier write error left it open which state the disk holds: \
                 unmount, see to the disk, and mount again",
            ),
            Self::TooLarge { what } => write!(f, "{what}"),
            Self::Duplicate => f.write_str("one change names an object twice"),
            Self::Crypto(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Crypto(error) => Some(error),
            Self::NotAStore { .. }
            | Self::NotEmpty { .. }
            | Self::Busy { .. }
            | Self::Version { .. }
            | Self::Corrupt { .. }
            | Self::Tampered { .. }
            | Self::WrongCredential { .. }
            | Self::DamagedSlots { .. }
            | Self::NoSuchCredential { .. }
            | Self::BadCredential { .. }
            | Self::Parameters
            | Self::TooManySlots
            | Self::LastSlot
            | Self::NoSuchSlot
            | Self::NoSuchRecord { .. }
            | Self::RolledBack { .. }
            | Self::AnchorDamaged { .. }
            | Self::ReadOnly
            | Self::Closed
            | Self::Poisoned
            | Self::TooLarge { .. }
            | Self::Duplicate => None,
        }
    }
}

impl From<CryptoError> for StoreError {
    fn from(error: CryptoError) -> Self {
        Self::Crypto(error)
    }
}
