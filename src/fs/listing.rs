//! Listings: read whole at their beginning, so that a name is given once however the folder changes meanwhile, and let
//! go at their end. rewinddir(3) begins anew.
//!
//! The kernel keeps listings of folders whose names everybody may know whom Unix lets. INVARIANT: such a listing is read
//! when the kernel asks for it, never before: the kernel takes what it gets for the folder as it is while it asks, during
//! which nobody can change it. Where a listing goes on is told by the name before, not by a count: the kernel may have
//! given the beginning from what it kept, and the folder may have changed since.

use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::api::{Attr, Caller, DirItem, Emit, Entry, FsError, FsResult, Kind, Opened};
use super::control::Node;
use super::inodes::{Body, CONTROL_BIT, Inode, ROOT_INO};
use super::quota::{Quota, Share};
use super::{CONTROL_NAME, FileSystem, TTL, is_control};
use crate::kms::NamesMode;
use crate::store::FileKind;
use crate::table::Folder;
use crate::types::TableId;

/// Names that one user may have in listings that are not at their end, beyond which no more are begun.
const NAMES_MOST: usize = 1 << 20;

/// The offset after `.` and `..`.
const DOTS_END: i64 = 2;

/// An open folder.
#[derive(Debug)]
pub(super) struct Listing {
    opener: u32,
    state: Mutex<Progress>,
}

#[derive(Debug)]
enum Progress {
    /// Not read yet.
    Opened,
    /// Read, and nothing given yet.
    Fresh(Arc<Names>),
    Begun(Arc<Names>),
    /// All of it was given, the last name with this offset.
    Ended(i64),
}

#[derive(Debug)]
struct Names {
    entries: Vec<ListedName>,
    _share: Share,
}

impl Listing {
    /// What a listing that goes on at `offset` is given from; none for one that is at its end.
    fn names(&self, offset: i64, read: impl FnOnce() -> FsResult<Arc<Names>>) -> FsResult<Option<Arc<Names>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let names = match &*state {
            Progress::Fresh(names) => Arc::clone(names),
            Progress::Begun(names) if offset != 0 => Arc::clone(names),
            Progress::Ended(end) if offset >= *end => return Ok(None),
            Progress::Opened | Progress::Begun(_) | Progress::Ended(_) => read()?,
        };
        *state = Progress::Begun(Arc::clone(&names));
        Ok(Some(names))
    }

    fn end(&self, offset: i64) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Progress::Ended(offset);
    }
}

/// The quota for [`FileSystem`]'s listings.
pub(super) fn quota() -> Arc<Quota> {
    Quota::new(NAMES_MOST)
}

#[derive(Debug)]
struct ListedName {
    /// Where a listing goes on after it; greater than that of the name before.
    next: i64,
    name: Vec<u8>,
    kind: Kind,
    ino: u64,
    /// Of an item's or a folder's entry: the name in the backing directory, to look at it without sealing again.
    on_disk: Option<OsString>,
}

impl FileSystem {
    pub(super) fn open_listing(&self, caller: &Caller, ino: u64) -> FsResult<Opened> {
        let kept = !is_control(ino) && ino != ROOT_INO && Self::is_open_to_all(&*self.inodes.find(ino)?)?;
        let state = if kept { Progress::Opened } else { Progress::Fresh(self.read_names(caller, ino, caller.uid)?) };
        let listing = Listing { opener: caller.uid, state: Mutex::new(state) };
        Ok(Opened { fh: self.listings.insert(listing), keep_cache: kept, cache_dir: kept, ..Opened::default() })
    }

    fn read_names(&self, caller: &Caller, ino: u64, opener: u32) -> FsResult<Arc<Names>> {
        let too_many = || FsError::Io(io::Error::from_raw_os_error(libc::ENOMEM));
        drop(self.listed.take(opener, 0).ok_or_else(too_many)?);
        let entries = if is_control(ino) {
            in_order(self.control_names(caller, &self.control.node(ino)?)?)
        } else if ino == ROOT_INO {
            in_order(self.table_names())
        } else {
            let inode = self.inodes.find(ino)?;
            inode.used.store(true, Ordering::Relaxed);
            if inode.table()?.settings().names == NamesMode::Sealed {
                match self.right_to_read(caller, &inode) {
                    // As for a lookup.
                    Ok(_) | Err(FsError::NoKey) => {}
                    Err(error) => return Err(error),
                }
            }
            self.entry_names(&inode)?
        };
        let share = self.listed.take(opener, entries.len()).ok_or_else(too_many)?;
        Ok(Arc::new(Names { entries, _share: share }))
    }

    fn control_names(&self, caller: &Caller, node: &Node) -> FsResult<Vec<ListedName>> {
        let found = self.control_list(caller, node)?;
        Ok(found.into_iter().map(|(name, kind, ino)| ListedName { next: 0, name, kind, ino, on_disk: None }).collect())
    }

    fn table_names(&self) -> Vec<ListedName> {
        let tables = self.kms.tables();
        let mut names: Vec<_> = tables
            .iter()
            .map(|table| ListedName {
                next: 0,
                name: table.name().into_bytes(),
                kind: Kind::Dir,
                ino: self
                    .table_folder(table)
                    .ok()
                    .and_then(|folder| folder.dir().stat_self().ok())
                    .map_or(ROOT_INO, |stat| stat.ino),
                on_disk: None,
            })
            .collect();
        if self.options.show_kms {
            let name = CONTROL_NAME.to_vec();
            names.push(ListedName { next: 0, name, kind: Kind::Dir, ino: ROOT_INO, on_disk: None });
        }
        names
    }

    /// The entries of a folder; names that do not verify are left out, with an event.
    fn entry_names(&self, inode: &Inode) -> FsResult<Vec<ListedName>> {
        let mut found = inode.folder()?.list()?;
        if !found.damaged.is_empty() {
            self.report_damaged_names(inode, &found.damaged);
        }
        found.entries.sort_unstable_by(|one, other| (one.number, &one.name).cmp(&(other.number, &other.name)));
        let mut before = DOTS_END;
        Ok(found
            .entries
            .into_iter()
            .map(|entry| ListedName {
                next: {
                    // Of two names with one number the second takes the next.
                    before = i64::try_from(entry.number).unwrap_or(i64::MAX).saturating_add(DOTS_END).max(before) + 1;
                    before
                },
                name: entry.name,
                kind: if entry.kind == FileKind::Dir { Kind::Dir } else { Kind::File },
                ino: entry.ino,
                on_disk: Some(entry.on_disk),
            })
            .collect())
    }

    /// Plain names of what is in a folder of a table, for the control tree's mirror.
    pub(super) fn names_in(&self, table: TableId, path: &[u8]) -> FsResult<Vec<(Vec<u8>, Kind)>> {
        let folder = self.folder_at(table, path)?;
        let kind = |kind| if kind == FileKind::Dir { Kind::Dir } else { Kind::File };
        Ok(folder.list()?.entries.into_iter().map(|entry| (entry.name, kind(entry.kind))).collect())
    }

    /// The folder at a path inside a table.
    pub(super) fn folder_at(&self, table: TableId, path: &[u8]) -> FsResult<Arc<Folder>> {
        let mut folder = self.table_folder(&self.kms.table(table)?)?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            folder = folder.open_folder(&folder.seal_name(name)?)?;
        }
        Ok(folder)
    }

    pub(super) fn list(
        &self,
        caller: &Caller,
        ino: u64,
        fh: u64,
        offset: i64,
        plus: bool,
        emit: &mut Emit<'_>,
    ) -> FsResult<()> {
        let listing = self.listings.find(fh)?;
        let names = listing.names(offset, || self.read_names(caller, ino, listing.opener))?;
        let Some(names) = names else { return Ok(()) };
        if offset < 0 {
            return Err(FsError::Invalid);
        }
        let dots = [(".", ino, 1), ("..", self.parent_ino(ino), DOTS_END)];
        for (name, number, offset_next) in dots.into_iter().filter(|(_, _, next)| *next > offset) {
            let item = DirItem { ino: number, offset_next, kind: Kind::Dir, name: OsStr::new(name), entry: None };
            if emit(item) {
                return Ok(());
            }
        }
        let folder = if is_control(ino) || ino == ROOT_INO { None } else { Some(self.inodes.find(ino)?) };
        let start = names.entries.partition_point(|listed| listed.next <= offset);
        for listed in names.entries.iter().skip(start) {
            let entry = match plus.then(|| self.listed_entry(caller, ino, folder.as_ref(), listed)) {
                None => None,
                Some(Ok(entry)) => Some(entry),
                Some(Err(error)) if has_gone(&error) => continue,
                Some(Err(_)) => Some(unusable(ino, listed)),
            };
            let kind = match &entry {
                Some(entry) => entry.attr.kind,
                None => Self::listed_kind(folder.as_ref(), listed),
            };
            let number = entry.as_ref().map_or(listed.ino, |entry| entry.attr.ino);
            let name = OsStr::from_bytes(&listed.name);
            let full = emit(DirItem { ino: number, offset_next: listed.next, kind, name, entry });
            if full {
                if let Some(entry) = entry {
                    self.uncount(&entry);
                }
                return Ok(());
            }
        }
        listing.end(names.entries.last().map_or(DOTS_END, |last| last.next));
        Ok(())
    }

    /// The kind that a plain listing shows: a marked file is looked at, everything else is told by the directory.
    fn listed_kind(folder: Option<&Arc<Inode>>, listed: &ListedName) -> Kind {
        let looked_at = || {
            let folder = folder?.folder().ok()?;
            let on_disk = listed.on_disk.as_deref()?;
            let stat = folder.dir().stat(on_disk).ok()?;
            Self::kind_of(folder, on_disk, &stat).ok()
        };
        if listed.kind == Kind::File { looked_at().unwrap_or(Kind::File) } else { listed.kind }
    }

    fn listed_entry(
        &self,
        caller: &Caller,
        ino: u64,
        folder: Option<&Arc<Inode>>,
        listed: &ListedName,
    ) -> FsResult<Entry> {
        if is_control(ino) {
            return self.control_lookup(caller, ino, OsStr::from_bytes(&listed.name));
        }
        let Some(folder) = folder else {
            return self.root_lookup(caller, &listed.name);
        };
        let on_disk = listed.on_disk.as_deref().ok_or(FsError::NotFound)?;
        self.entry_on_disk(folder, &listed.name, on_disk)
    }

    /// A name that did not fit into the reply: its lookup does not count.
    fn uncount(&self, entry: &Entry) {
        if is_control(entry.attr.ino) {
            self.control.forget(entry.attr.ino, 1);
        } else {
            self.inodes.forget(entry.attr.ino, 1);
        }
        debug_assert!(entry.ttl <= TTL);
    }

    fn parent_ino(&self, ino: u64) -> u64 {
        if is_control(ino) {
            return match self.control.node(ino) {
                Ok(Node::Top) | Err(_) => ROOT_INO,
                Ok(node) => self.control.number(&node.parent()),
            };
        }
        self.inodes.find(ino).ok().and_then(|inode| inode.place()).map_or(ROOT_INO, |place| place.parent.ino)
    }

    fn report_damaged_names(&self, inode: &Inode, damaged: &[OsString]) {
        for name in damaged {
            let what = format!("a name in the folder /{}", crate::types::text_of_path(&inode.path()));
            log::warn!("{what} does not verify: {}", crate::types::text_of_path(&name.clone().into_vec()));
            self.report_tampering(inode, &what);
        }
        debug_assert!(matches!(inode.body, Body::Folder(_)));
    }
}

/// Gives names their offsets one after the other.
fn in_order(mut names: Vec<ListedName>) -> Vec<ListedName> {
    for (name, next) in names.iter_mut().zip(DOTS_END + 1..) {
        name.next = next;
    }
    names
}

/// Whether a name has gone since the listing was read.
fn has_gone(error: &FsError) -> bool {
    matches!(error, FsError::NotFound | FsError::Stale)
        || matches!(error, FsError::Io(error) if error.kind() == io::ErrorKind::NotFound)
}

/// What stands in a listing for a name that is there and cannot be looked up, such as a damaged folder's. The kernel keeps
/// nothing of it, and whoever asks for it gets the lookup's error. Its number is no inode's.
fn unusable(folder: u64, listed: &ListedName) -> Entry {
    let mut hasher = DefaultHasher::new();
    (folder, &listed.name).hash(&mut hasher);
    let none = (0, 0);
    let attr = Attr {
        ino: hasher.finish() | CONTROL_BIT,
        size: 0,
        blocks: 0,
        atime: none,
        mtime: none,
        ctime: none,
        kind: listed.kind,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
    };
    Entry { attr, generation: 0, ttl: Duration::ZERO }
}
