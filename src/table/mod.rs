//! Level 5: tables: names, folders and items (docs/format.md, sections 6 and 7).
//!
//! A `Table` is what all folders and items of one table share. A `Folder` is a directory whose sealed id binds the names
//! in it; an `Item` is a file whose sealed header binds its blocks. Names need the table's names key, which the daemon
//! holds; an item's contents need a capability of the key service: `DataKey` to read, `SealKey` to write. Nothing here
//! decides who may do what, and nothing that is read from the store is used before it has been authenticated.

mod folder;
mod format;
mod item;
mod names;
mod rename;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use folder::{Folder, Listed, Listing, remove_root};
pub use format::{Binding, INLINE_MAX, ItemKind, LINK_MAX, SIZE_MAX, plain_size};
pub use item::{Item, Recovered, Seek, Step};
pub use names::{NAME_MAX, Names, StoredName};
pub use rename::{Moved, Place, rename};

use crate::crypto::CryptoError;
use crate::envelope::EnvelopeError;
use crate::store::{Dir, Journal, Stat};
use crate::types::{DirId, TableId};

use format::FormatError;

/// Why a table, a folder or an item could not be used.
#[derive(Debug)]
pub enum TableError {
    /// The backing file system refused; its errno stands.
    Io(io::Error),
    /// Something does not verify: it was not written by this table, not there, or not as it is.
    Tampered {
        what: &'static str,
    },
    /// Written by another version of the format.
    Version {
        found: u16,
    },
    /// The table no longer has the key that seals this item.
    NoKey {
        version: u32,
    },
    /// An unclean stop came before the item's creation was complete: it holds nothing and may be removed.
    Unfinished,
    /// Beyond what an item can hold, or more hole than one write may leave.
    TooLarge,
    /// The item has as many names as it can have.
    TooManyLinks,
    NameTooLong,
    /// No file name, or no attribute name.
    BadName,
    /// The capability is another table's.
    WrongTable,
    /// The cipher or the random generator failed.
    Crypto(CryptoError),
}

impl TableError {
    fn crypto(error: CryptoError) -> Self {
        Self::Crypto(error)
    }

    /// A failure to open `what`.
    fn opening(what: &'static str, error: EnvelopeError) -> Self {
        match error {
            EnvelopeError::NoKey { version } => Self::NoKey { version },
            EnvelopeError::Commitment => Self::Tampered { what: "key commitment" },
            EnvelopeError::Crypto(CryptoError::Authentication | CryptoError::TooShort) => Self::Tampered { what },
            EnvelopeError::Crypto(error @ (CryptoError::Parameters | CryptoError::Random | CryptoError::TooLong)) => {
                Self::Crypto(error)
            }
        }
    }

    /// A failure to parse `what`.
    fn parsing(what: &'static str, error: FormatError) -> Self {
        match error {
            FormatError::Version(found) => Self::Version { found },
            FormatError::Magic | FormatError::Malformed => Self::Tampered { what },
        }
    }
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_) => f.write_str("the store could not be read or written"),
            Self::Tampered { what } => write!(f, "the {what} does not verify"),
            Self::Version { found } => write!(f, "written by format version {found}, this is version 1"),
            Self::NoKey { version } => write!(f, "the table has no key of version {version}"),
            Self::Unfinished => f.write_str("the item's creation was cut short"),
            Self::TooLarge => f.write_str("beyond what an item can hold"),
            Self::TooManyLinks => write!(f, "an item has at most {LINK_MAX} names"),
            Self::NameTooLong => f.write_str("the name is too long"),
            Self::BadName => f.write_str("not a name"),
            Self::WrongTable => f.write_str("the key is that of another table"),
            Self::Crypto(_) => f.write_str("the item's cryptography failed"),
        }
    }
}

impl std::error::Error for TableError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Crypto(error) => Some(error),
            Self::Tampered { .. }
            | Self::Version { .. }
            | Self::NoKey { .. }
            | Self::Unfinished
            | Self::TooLarge
            | Self::TooManyLinks
            | Self::NameTooLong
            | Self::BadName
            | Self::WrongTable => None,
        }
    }
}

impl From<io::Error> for TableError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for TableError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

/// The mounts of a store: the epoch of this one, and those that were not closed in good order. Both come from the
/// catalog and the anchor, where a writer of the store cannot forge them.
#[derive(Debug, Clone, Default)]
pub struct Mounts {
    current: u64,
    /// Inclusive ranges.
    unclean: Vec<(u64, u64)>,
}

impl Mounts {
    /// `unclean` are inclusive ranges.
    pub fn new(current: u64, unclean: Vec<(u64, u64)>) -> Self {
        Self { current, unclean }
    }

    /// Whether this mount ended without being closed.
    fn is_unclean(&self, epoch: u64) -> bool {
        self.unclean.iter().any(|&(first, last)| (first..=last).contains(&epoch))
    }

    /// Whether this mount or a later one ended without being closed.
    fn unclean_since(&self, epoch: u64) -> bool {
        self.unclean.iter().any(|&(_, last)| last >= epoch)
    }
}

/// What the folders and items of one table share.
#[derive(Debug)]
pub struct Table {
    names: Names,
    journal: Arc<Journal>,
    mounts: Mounts,
    read_only: bool,
    /// Held for writing while a rename changes paths, for reading while a path is taken from a folder and put to use.
    paths: RwLock<()>,
    /// Held for writing while a value is sealed anew, for reading while one is set: none is lost by the other.
    attributes: RwLock<()>,
    new_folders: NewFolders,
    new_items: NewItems,
    walk: Walk,
    /// Held for reading by who makes an item, until it is known to all.
    creations: RwLock<()>,
}

/// What a walk through the table may miss.
#[derive(Debug, Default)]
struct Walk {
    /// The key version that the walk gives to all items; 0: there is no walk.
    version: AtomicU32,
    /// Names that were given since to what has another one. Changed with `paths` held.
    moves: AtomicU64,
}

impl Table {
    pub fn new(names: Names, journal: Arc<Journal>, mounts: Mounts, read_only: bool) -> Arc<Self> {
        Arc::new(Self {
            names,
            journal,
            mounts,
            read_only,
            paths: RwLock::new(()),
            attributes: RwLock::new(()),
            new_folders: NewFolders::default(),
            new_items: NewItems::default(),
            walk: Walk::default(),
            creations: RwLock::new(()),
        })
    }

    pub fn id(&self) -> TableId {
        self.names.table()
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The size of the item with this backing file, without any key: from the file's length, as the journal will leave
    /// it. None where no item has that length.
    pub fn size_of(&self, backing: &Stat) -> Option<u64> {
        plain_size(self.journal.pending_len(backing.dev, backing.ino).unwrap_or(backing.size))
    }

    /// Begins a walk that seals everything anew under the key version `version`. What was being made when it was called has
    /// its name when it returns; what comes later is sealed under the keys that are there now. Gives what `end_walk` does
    /// if the walk has missed nothing.
    pub fn begin_walk(&self, version: u32) -> u64 {
        drop(self.without_creations());
        self.walk.version.store(version, Ordering::SeqCst);
        self.end_walk()
    }

    /// How often something was given a name, since the first walk, that a walk may have passed by already.
    pub fn end_walk(&self) -> u64 {
        drop(self.paths.write().unwrap_or_else(PoisonError::into_inner));
        self.walk.moves.load(Ordering::SeqCst)
    }

    /// To be held while an item is made and made known: who walks through the folders could else meet it half made, or
    /// make a second `Item` of it.
    pub fn creating(&self) -> RwLockReadGuard<'_, ()> {
        self.creations.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// While this is held, every item that has a name is whole.
    pub fn without_creations(&self) -> RwLockWriteGuard<'_, ()> {
        self.creations.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what has this key version, or is a folder, may escape a walk if it is given another name now.
    fn may_escape(&self, version: Option<u32>) -> bool {
        let walk = self.walk.version.load(Ordering::SeqCst);
        walk != 0 && version != Some(walk)
    }

    /// It was given a name. The caller holds `paths`.
    fn note_move(&self, escapes: bool) {
        if escapes {
            self.walk.moves.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn check(&self, keys: &impl crate::kms::ItemKeySource) -> Result<(), TableError> {
        if keys.table() == self.id() { Ok(()) } else { Err(TableError::WrongTable) }
    }
}

/// Folders that were made in this mount and that no flush has covered: an item in one of them is durable only with
/// its folder, without which nobody can read its name.
#[derive(Debug, Default)]
struct NewFolders {
    any: AtomicBool,
    list: Mutex<Vec<NewFolder>>,
}

#[derive(Debug)]
struct NewFolder {
    parent: Arc<dyn Dir>,
    dir: Arc<dyn Dir>,
}

impl NewFolders {
    /// Beyond this many, one flush of the file system is cheaper, and descriptors are not for keeping.
    const MAX: usize = 64;

    fn add(&self, parent: Arc<dyn Dir>, dir: Arc<dyn Dir>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() <= Self::MAX {
            list.push(NewFolder { parent, dir });
        }
        self.any.store(true, Ordering::Release);
    }

    /// Makes them durable. Who comes while another flushes waits for that flush.
    fn sync(&self) -> io::Result<()> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() > Self::MAX {
            if let Some(one) = list.first() {
                one.dir.syncfs()?;
            }
        } else {
            for new in list.iter() {
                folder::sync_folder_file(new.dir.as_ref())?;
                new.parent.sync()?;
            }
        }
        list.clear();
        self.any.store(false, Ordering::Release);
        Ok(())
    }
}

/// Names that folders have been given in this mount for items that no flush had covered then: a flush of such a folder
/// promises the names, and a name without a whole header leads nowhere.
#[derive(Debug, Default)]
struct NewItems(Mutex<NewNames>);

#[derive(Debug, Default)]
struct NewNames {
    by_folder: HashMap<DirId, Vec<StoredName>>,
    count: usize,
    /// There were too many to keep.
    many: bool,
}

/// Whether opening an item says that none is there: the name has gone, or it is a folder's by now.
fn is_no_item(error: &io::Error) -> bool {
    let clean = rustix::io::Errno::UCLEAN.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(clean)
}

impl NewItems {
    /// Beyond this many, a folder's flush is one of the file system.
    const MAX: usize = if cfg!(test) { 20 } else { 4096 };

    fn lock(&self) -> MutexGuard<'_, NewNames> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, folder: DirId, name: &StoredName) {
        let mut new = self.lock();
        if new.count >= Self::MAX {
            *new = NewNames { many: true, ..NewNames::default() };
        }
        new.by_folder.entry(folder).or_default().push(name.clone());
        new.count += 1;
    }

    /// Makes the items durable that `folder` has got. What is no item any more is left alone.
    fn sync(&self, folder: &Arc<Folder>) -> Result<(), TableError> {
        let names = {
            let new = self.lock();
            if new.many { None } else { Some(new.by_folder.get(&folder.id()).cloned().unwrap_or_default()) }
        };
        let Some(names) = names else {
            let before = std::mem::take(&mut *self.lock());
            let promised = folder.table().journal.promise_all();
            return promised.and_then(|()| folder.dir().syncfs()).map_err(|error| {
                // Others are told the same until it succeeds.
                *self.lock() = NewNames { many: true, ..before };
                error.into()
            });
        };
        for name in &names {
            match Item::open(folder, name) {
                Ok(item) => item.sync()?,
                Err(TableError::Io(error)) if !is_no_item(&error) => return Err(error.into()),
                Err(_) => {}
            }
        }
        let mut new = self.lock();
        // What has come meanwhile stays.
        if let Some(all) = new.by_folder.get_mut(&folder.id()) {
            let done = names.len().min(all.len());
            all.drain(..done);
            if all.is_empty() {
                new.by_folder.remove(&folder.id());
            }
            new.count = new.count.saturating_sub(done);
        }
        Ok(())
    }
}
