//! Items: one encrypted file each (docs/format.md, sections 6.3 to 6.6 and 7).
//!
//! An `Item` stands for one backing inode and is shared by all who have it open: readers at once, one writer. It is
//! opened without trust; the first use of a capability derives the keys and verifies the header, and every block is
//! verified when it is read. `read` alone gives plaintext, and takes a `DataKey`; with a `SealKey` partial blocks are
//! opened and sealed anew inside, and nothing comes out.
//!
//! INVARIANT: memory holds nothing of an item that its file, seen through the journal, does not hold too: each change
//! is one commit, header included, so an `Item` may be dropped and opened again at any time.
//!
//! INVARIANT: what a commit writes directly is invisible until the header, the entry or the hole's entry that makes it
//! visible is written, by one system call or one journal record; where bytes that are visible change, they and their
//! entries go into one journal record. So a kill between any two system calls leaves the item as before or as after.

mod ahead;
mod header;
mod links;
mod re_encrypt;
mod read;
mod recover;
mod seek;
mod truncate;
mod write;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use rustix::io::Errno;

use super::format::{self, BLOCK_LEN, Binding, HEADER_LEN, Head, ItemKind, State};
use super::names::StoredName;
use super::{Folder, Table, TableError};
use crate::envelope::{ItemCipher, open_xattr, seal_xattr};
use crate::kms::{DataKey, ItemKeySource, SealKey};
use crate::store::{File, JournaledFile, SetTime, XattrFlags};
use crate::types::ItemId;

use ahead::ReadAhead;
pub use re_encrypt::Step;
pub use recover::Recovered;
pub use seek::Seek;

/// One item.
pub struct Item {
    table: Arc<Table>,
    id: ItemId,
    file: Arc<JournaledFile>,
    /// The name that the item was opened under, to which its header must be bound.
    opened_as: Binding,
    /// A folder of its table.
    home: Arc<Folder>,
    /// The names by which it is known in this mount. It may have others, known to the store alone.
    names: Mutex<Vec<(Arc<Folder>, StoredName)>>,
    /// Held while it gets one more name: between the header that is bound to it and the entry.
    linking: Mutex<()>,
    inner: RwLock<Inner>,
    ahead: ReadAhead,
}

struct Inner {
    /// The first page of the file as it stands; zeros beyond the file's end.
    page: Box<Page>,
    /// How much of the page the file had when it was opened.
    page_len: usize,
    /// When a change that went through the journal last set the file's time.
    touched: Option<Instant>,
    /// Keys and header, once they are verified.
    open: Option<Open>,
    /// Bytes of the file, by offset, that a change which failed half-way has yet to put back.
    owed: Vec<(u64, Vec<u8>)>,
}

type Page = [u8; BLOCK_LEN];

struct Open {
    head: Head,
    state: State,
    cipher: ItemCipher,
    /// The keys of blocks that have not been sealed anew yet; none where all are under `cipher`.
    old: Option<ItemCipher>,
    /// Bytes beyond the settled length may have been written by an earlier `Item` of this mount, and not flushed.
    unsynced: bool,
    /// The rename for which the header is bound to one more name has happened: that name is gone.
    renamed: bool,
}

impl Item {
    /// Makes an item. A symlink's target is given as `content`; for all else it is empty. With `owner` (uid, gid), the
    /// item belongs to them before it holds anything.
    ///
    /// # Errors
    /// EEXIST where the name is taken.
    pub fn create(
        folder: &Arc<Folder>,
        name: &StoredName,
        mode: u32,
        owner: Option<(u32, u32)>,
        kind: ItemKind,
        content: &[u8],
        keys: &SealKey,
    ) -> Result<Arc<Self>, TableError> {
        let table = folder.table();
        table.check(keys)?;
        let _paths = table.paths.read().unwrap_or_else(PoisonError::into_inner);
        let (open, page) = header::first(table, kind, name.binding(), keys)?;
        folder.write_sidecar(name)?;
        // The sticky bit says that the header has a kind to tell (docs/format.md, section 6.5).
        let special = if kind == ItemKind::Regular { mode } else { mode | format::STICKY };
        let backing = folder.dir().create_file(name.on_disk(), special)?;
        let made = Self::fill(folder, name, &backing, special, owner, open, page);
        let made = made.and_then(|item| {
            if !content.is_empty() {
                item.write(keys, content, 0)?;
            }
            if kind != ItemKind::Regular {
                // Nobody can flush it later: it has no contents that could be opened.
                item.file.sync_direct()?;
            }
            Ok(item)
        });
        match &made {
            Ok(_) if kind == ItemKind::Regular => table.new_items.add(folder.id(), name),
            Ok(_) => {}
            // Best effort: what stays is shorter than a header, or an empty item.
            Err(_) => drop(folder.unlink(name)),
        }
        made
    }

    fn fill(
        folder: &Arc<Folder>,
        name: &StoredName,
        backing: &Arc<dyn File>,
        mode: u32,
        owner: Option<(u32, u32)>,
        open: Open,
        page: Box<Page>,
    ) -> Result<Arc<Self>, TableError> {
        if let Some((uid, gid)) = owner {
            backing.chown(Some(uid), Some(gid))?;
        }
        if mode > 0o777 {
            // chown(2) clears set-id bits, and a umask may have.
            backing.chmod(mode)?;
        }
        let (table, id) = (folder.table(), open.head.item);
        let path = folder.path_of(name.on_disk());
        let file = JournaledFile::open(&table.journal, Arc::clone(backing), id, path, 0)?;
        let header = page.get(..HEADER_LEN).unwrap_or_default();
        file.commit(&[crate::store::Op::Write { offset: 0, bytes: header }])?;
        let inner = Inner { page, page_len: HEADER_LEN, touched: None, open: Some(open), owed: Vec::new() };
        Ok(Self::assemble(folder, name, id, file, inner))
    }

    fn assemble(
        folder: &Arc<Folder>,
        name: &StoredName,
        id: ItemId,
        file: Arc<JournaledFile>,
        inner: Inner,
    ) -> Arc<Self> {
        Arc::new(Self {
            table: Arc::clone(folder.table()),
            id,
            file,
            opened_as: name.binding(),
            home: Arc::clone(folder),
            names: Mutex::new(vec![(Arc::clone(folder), name.clone())]),
            linking: Mutex::default(),
            inner: RwLock::new(inner),
            ahead: ReadAhead::default(),
        })
    }

    /// Opens the item of this name. Nothing is trusted yet: `verify` comes first, by itself or with the first read or
    /// write.
    ///
    /// # Errors
    /// EUCLEAN for what is no regular file; `Unfinished` where an unclean stop may have cut its creation short,
    /// `Tampered` for any other file that does not begin as an item does.
    pub fn open(folder: &Arc<Folder>, name: &StoredName) -> Result<Arc<Self>, TableError> {
        let table = folder.table();
        let _paths = table.paths.read().unwrap_or_else(PoisonError::into_inner);
        let backing = open_backing(folder, name, !table.read_only)?;
        let mut page = Box::new([0; BLOCK_LEN]);
        let length = backing.read_at(page.as_mut_slice(), 0)?;
        let (id, _) = header::peek(table, page.get(..length).unwrap_or_default())?;
        let path = folder.path_of(name.on_disk());
        let file = JournaledFile::open(&table.journal, backing, id, path, u64::MAX)?;
        // What is pending in the journal counts; the first look was only for the id.
        let page_len = if file.is_pending() { read_pending(&file, &mut page)? } else { length };
        let inner = Inner { page, page_len, touched: None, open: None, owed: Vec::new() };
        Ok(Self::assemble(folder, name, id, file, inner))
    }

    /// The kind that the header of a backing file tells, before anything has been authenticated: for stat, where the
    /// mode has the sticky bit. A read or write finds out if it is wrong.
    pub fn peek_kind(folder: &Folder, on_disk: &OsStr) -> Result<ItemKind, TableError> {
        let file = folder.dir().open_file(on_disk, false)?;
        let mut header = [0; HEADER_LEN];
        let length = file.read_at(&mut header, 0)?;
        Ok(header::peek(folder.table(), header.get(..length).unwrap_or_default())?.1)
    }

    /// The version of the table's key that the header of a backing file names, before anything has been authenticated:
    /// for counting.
    pub fn peek_key_version(folder: &Folder, on_disk: &OsStr) -> Result<u32, TableError> {
        let file = folder.dir().open_file(on_disk, false)?;
        let mut header = [0; HEADER_LEN];
        let length = file.read_at(&mut header, 0)?;
        let version = format::peek_version(header.get(..length).unwrap_or_default());
        version.map_err(|error| TableError::parsing("header", error))
    }

    /// Derives the keys and verifies the header: key, names, kind, and size against the backing file's length. After an
    /// unclean stop, what may have been lost is verified too, and cut where it is bad; what was done is returned, once.
    ///
    /// # Errors
    /// `Tampered`, `Version`, `NoKey`; `WrongTable` for another table's capability.
    pub fn verify(&self, keys: &impl ItemKeySource) -> Result<Option<Recovered>, TableError> {
        self.table.check(keys)?;
        if self.shared()?.open.is_some() {
            return Ok(None);
        }
        let mut inner = self.exclusive()?;
        self.verify_inner(&mut inner, keys)
    }

    /// Whether this is one of the item's names: an inode that is open already may turn up under any other name, if
    /// somebody has linked it there in the store. After `verify`, at each open by a name.
    ///
    /// # Errors
    /// `Tampered` where the header is not bound to the name.
    pub fn check_name(&self, name: &StoredName) -> Result<(), TableError> {
        let inner = self.shared()?;
        if inner.opened()?.state.bindings.contains(&name.binding()) {
            return Ok(());
        }
        Err(TableError::Tampered { what: "name of the item" })
    }

    pub fn id(&self) -> ItemId {
        self.id
    }

    /// The kind, as the header tells it; authentic once the item has been verified.
    pub fn kind(&self) -> Result<ItemKind, TableError> {
        let inner = self.shared()?;
        match &inner.open {
            Some(open) => Ok(open.head.kind),
            None => Ok(header::peek(&self.table, inner.page.get(..inner.page_len).unwrap_or_default())?.1),
        }
    }

    /// Bytes of plaintext: the sealed size, or before the item has been verified, what the backing file's length says.
    /// None where no item has that length.
    pub fn size(&self) -> Option<u64> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        match &inner.open {
            Some(open) => Some(open.state.size),
            None => format::plain_size(self.file.len()),
        }
    }

    /// The backing file, for what is not sealed: owner, mode, access lists; times by `set_times`. Its bytes and its
    /// length are not to be used.
    pub fn backing(&self) -> &Arc<dyn File> {
        self.file.file()
    }

    /// The backing file's device and number there.
    pub fn inode(&self) -> (u64, u64) {
        self.file.inode()
    }

    /// Sets the times of the backing file.
    pub fn set_times(&self, atime: SetTime, mtime: SetTime) -> Result<(), TableError> {
        Ok(self.file.utimens(atime, mtime)?)
    }

    /// Makes everything that has been written durable, and the folders without which it could not be read; the first
    /// time also the name of an item that was made in this mount.
    pub fn sync(&self) -> Result<(), TableError> {
        self.flush(false)
    }

    /// The same, with owner, mode, times and attributes.
    pub fn sync_all(&self) -> Result<(), TableError> {
        self.flush(true)
    }

    fn flush(&self, attributes: bool) -> Result<(), TableError> {
        self.settle_debt()?;
        self.table.new_folders.sync()?;
        let (generation, first) = {
            let inner = self.shared()?;
            let open = inner.open.as_ref();
            // Before the header is verified, an earlier `Item` of this mount may have left anything.
            if open.is_none_or(|open| open.unsynced) {
                self.file.file().sync_data()?;
            }
            (open.map(|open| open.state.generation), open.is_some_and(|open| self.is_never_flushed(open)))
        };
        if attributes {
            // One flush for both, where there is anything to flush here at all but the attributes.
            let flushed = self.file.sync_direct_all()?;
            self.file.sync_records()?;
            if !flushed {
                self.file.file().sync_all()?;
            }
        } else {
            self.file.sync()?;
        }
        if first {
            // After the content: on a journaling file system the name has then gone with it, and this costs no second
            // flush, as the other way round it would.
            let folders: Vec<_> = self.names().iter().map(|(folder, _)| Arc::clone(folder)).collect();
            folders.iter().try_for_each(|folder| folder.sync_entries())?;
        }
        generation.map_or(Ok(()), |generation| self.flushed(generation))
    }

    /// What a failed change has left is not flushed, nor reported as flushed.
    fn settle_debt(&self) -> Result<(), TableError> {
        let owes = !self.shared()?.owed.is_empty();
        if owes { self.put_back(&mut *self.exclusive()?) } else { Ok(()) }
    }

    /// Whether it was made in this mount and no flush has covered any of it yet.
    pub(in crate::table) fn is_new(&self) -> bool {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.open.as_ref().is_some_and(|open| self.is_never_flushed(open))
    }

    fn is_never_flushed(&self, open: &Open) -> bool {
        open.state.settled == 0 && open.state.mount == self.table.mounts.current
    }

    /// Makes what was written durable, without a word in the header.
    pub(in crate::table) fn write_out(&self) -> Result<(), TableError> {
        self.settle_debt()?;
        // Before the header is verified, an earlier `Item` of this mount may have left anything.
        if self.shared()?.open.as_ref().is_none_or(|open| open.unsynced) {
            self.file.file().sync_data()?;
        }
        Ok(self.file.sync_direct()?)
    }

    /// Nothing of the item is pending in the journal afterwards: before an unlink that leaves it other names.
    pub fn settle(&self) -> Result<(), TableError> {
        Ok(self.file.settle()?)
    }

    /// After the unlink of its last name, when nobody has it open: what is pending is dropped.
    pub fn discard(&self) {
        self.file.discard();
    }

    /// The value of the attribute `user.NAME`.
    ///
    /// # Errors
    /// ENODATA where there is none; `Tampered` where it was not sealed for this item and name.
    pub fn xattr(&self, keys: &DataKey, name: &[u8]) -> Result<Vec<u8>, TableError> {
        self.verify(keys)?;
        let (stored, binding) = self.table.names.seal_xattr_name(self.id.as_bytes(), name)?;
        let sealed = self.backing().getxattr(&stored)?;
        open_xattr(keys, self.id.as_bytes(), &binding, &sealed).map_err(|e| TableError::opening("attribute", e))
    }

    /// # Errors
    /// EEXIST and ENODATA as `flags` has it.
    pub fn set_xattr(&self, keys: &SealKey, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<(), TableError> {
        self.verify(keys)?;
        let (stored, binding) = self.table.names.seal_xattr_name(self.id.as_bytes(), name)?;
        let _attributes = self.table.attributes.read().unwrap_or_else(PoisonError::into_inner);
        let sealed =
            seal_xattr(keys, self.id.as_bytes(), &binding, value).map_err(|e| TableError::opening("attribute", e))?;
        Ok(self.backing().setxattr(&stored, &sealed, flags)?)
    }

    /// # Errors
    /// ENODATA where there is none.
    pub fn remove_xattr(&self, keys: &SealKey, name: &[u8]) -> Result<(), TableError> {
        self.verify(keys)?;
        let (stored, _) = self.table.names.seal_xattr_name(self.id.as_bytes(), name)?;
        Ok(self.backing().removexattr(&stored)?)
    }

    /// The names of the `user.*` attributes, `user.` left out; damaged ones are left out.
    pub fn xattr_names(&self) -> Result<Vec<Vec<u8>>, TableError> {
        let stored = self.backing().listxattr()?;
        let open = |name| self.table.names.open_xattr_name(self.id.as_bytes(), name).ok().flatten();
        Ok(stored.iter().filter_map(|name| open(name)).collect())
    }

    fn names(&self) -> MutexGuard<'_, Vec<(Arc<Folder>, StoredName)>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> Result<RwLockReadGuard<'_, Inner>, TableError> {
        // A writer that panicked may have left memory and file apart: the item is not used any more.
        self.inner.read().map_err(|_| Errno::IO.into())
    }

    fn exclusive(&self) -> Result<RwLockWriteGuard<'_, Inner>, TableError> {
        self.inner.write().map_err(|_| Errno::IO.into())
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Inner {
    /// What is verified. Callers have called `verify` before.
    fn opened(&self) -> Result<&Open, TableError> {
        self.open.as_ref().ok_or(TableError::Io(Errno::IO.into()))
    }

    /// Counts seals and gives the cipher for them.
    fn begin(&mut self, seals: u64) -> Result<&ItemCipher, TableError> {
        let Some(open) = &mut self.open else { return Err(Errno::IO.into()) };
        open.cipher.begin(seals).map_err(|error| TableError::opening("block", error))?;
        Ok(&open.cipher)
    }
}

/// A daemon without privileges may own an item that its owner may only read; it opens it all the same, since the header
/// changes with a rename, and who may do what has been decided before.
fn open_backing(folder: &Folder, name: &StoredName, writable: bool) -> io::Result<Arc<dyn File>> {
    let (dir, name) = (folder.dir(), name.on_disk());
    let error = match dir.open_file(name, writable) {
        Err(error) if error.raw_os_error() == Some(Errno::ACCESS.raw_os_error()) => error,
        opened => return opened,
    };
    let mode = dir.stat(name)?.permissions();
    if mode & 0o600 == 0o600 || dir.chmod(Some(name), mode | 0o600).is_err() {
        return Err(error);
    }
    let opened = dir.open_file(name, writable);
    dir.chmod(Some(name), mode)?;
    opened
}

fn read_pending(file: &JournaledFile, page: &mut Page) -> io::Result<usize> {
    *page = [0; BLOCK_LEN];
    file.read_at(page, 0)
}
