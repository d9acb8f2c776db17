//! Open items: decided at the open, checked by one comparison at each read and write, decided anew when the key has
//! changed since.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::FileSystem;
use super::api::{Caller, FsError, FsResult, Opened};
use super::inodes::{Inode, Place};
use super::subject::Asker;
use crate::kms::{CacheMode, DataKey, ItemAsked, SealKey, Standing};
use crate::table::Item;
use crate::types::Action;

/// A right that a handle was opened with, and how it was last found good.
#[derive(Debug)]
struct Right<K> {
    key: K,
    action: Action,
    /// Under which generation of the key.
    decided: AtomicU64,
    /// Before which second, where a grant gives it that ends.
    until: AtomicI64,
    /// Held while the two are changed.
    deciding: Mutex<()>,
}

impl<K> Right<K> {
    fn new(key: K, action: Action, found: Standing) -> Self {
        let (decided, until) = (AtomicU64::new(found.generation), AtomicI64::new(found.until));
        Self { key, action, decided, until, deciding: Mutex::new(()) }
    }

    /// Whether it still stands. `now` is asked only for what ends.
    fn stands(&self, generation: u64, now: impl FnOnce() -> i64) -> bool {
        // In this order: whoever sees a generation sees the end that was decided with it, or a later decision's.
        self.decided.load(Ordering::Acquire) == generation && !self.has_ended(now)
    }

    fn has_ended(&self, now: impl FnOnce() -> i64) -> bool {
        let until = self.until.load(Ordering::Acquire);
        until != i64::MAX && now() >= until
    }

    /// Notes a new decision, unless the key has changed since: then the next use decides once more.
    fn found_good(&self, found: Standing, generation: impl FnOnce() -> u64) {
        let _deciding = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        if generation() == found.generation {
            self.until.store(found.until, Ordering::Release);
            self.decided.store(found.generation, Ordering::Release);
        }
    }

    /// No key has generation 0, so that the next use decides.
    fn forget(&self) {
        let _deciding = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        self.until.store(i64::MAX, Ordering::Release);
        self.decided.store(0, Ordering::Release);
    }
}

/// An open item: what its opener may do with it.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) inode: Arc<Inode>,
    pub(super) item: Arc<Item>,
    opener: Asker,
    read: Option<Right<DataKey>>,
    write: Option<Right<SealKey>>,
    /// Opened by execve(2): open as long as a process runs it.
    executes: bool,
}

impl Handle {
    pub(super) fn reads(&self) -> bool {
        self.read.is_some()
    }

    pub(super) fn writes(&self) -> bool {
        self.write.is_some()
    }

    /// The next use decides anew.
    pub(super) fn forget_decisions(&self) {
        self.read.iter().for_each(Right::forget);
        self.write.iter().for_each(Right::forget);
    }

    /// Whether a grant that gave it a right has run out.
    pub(super) fn has_ended(&self, now: i64) -> bool {
        self.read.as_ref().is_some_and(|right| right.has_ended(|| now))
            || self.write.as_ref().is_some_and(|right| right.has_ended(|| now))
    }
}

/// What flags of open(2) ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) truncate: bool,
}

/// `__FMODE_EXEC` of the kernel, which programs cannot set.
const FMODE_EXEC: i32 = 0o40;

impl Wanted {
    pub(super) fn of(flags: i32) -> Self {
        let mode = flags & libc::O_ACCMODE;
        let truncate = flags & libc::O_TRUNC != 0;
        Self { read: mode != libc::O_WRONLY, write: mode != libc::O_RDONLY || truncate, truncate }
    }

    /// What is made without being opened.
    pub(super) fn creation() -> Self {
        Self { read: false, write: true, truncate: false }
    }
}

impl FileSystem {
    /// Decides, in this order: whether the inode may be opened at all, the key policy, the key's state, the item's
    /// authenticity. Whoever may not decrypt learns nothing of an item's health.
    pub(super) fn open_item(&self, caller: &Caller, inode: &Arc<Inode>, flags: i32) -> FsResult<Opened> {
        if inode.is_retired() {
            return Err(FsError::Stale);
        }
        let wanted = Wanted::of(flags);
        if wanted.write && self.options.read_only {
            return Err(FsError::ReadOnly);
        }
        let opener = self.asker_for(caller, inode.table()?);
        let at = inode.last_place().ok_or(FsError::Stale)?;
        let read = if wanted.read { Some(self.decide_read(&opener, inode, &at)?) } else { None };
        let write = if wanted.write { Some(self.decide_write(&opener, inode, &at)?) } else { None };
        let _using = self.using(inode);
        let item = self.load_item(inode)?;
        match (&read, &write) {
            (Some(right), _) => self.verify(inode, &at, &item, &right.key)?,
            (None, Some(right)) => self.verify(inode, &at, &item, &right.key)?,
            (None, None) => return Err(FsError::Invalid),
        }
        if wanted.truncate
            && let Some(right) = &write
        {
            self.refuse_executed(inode, flags)?;
            item.truncate(&right.key, 0).map_err(|error| self.report(inode, error))?;
            if caller.uid != 0 {
                // The kernel leaves this to the file system, as with every write (HANDLE_KILLPRIV_V2).
                if self.kill_suid(inode)? {
                    // Of which the kernel takes no notice at an open.
                    self.forget_attributes_later(inode);
                }
            }
        }
        let executes = flags & FMODE_EXEC != 0;
        self.opened(inode, Handle { inode: Arc::clone(inode), item, opener, read, write, executes })
    }

    /// The kernel looks whether a process runs what is to be opened for writing before it asks, but with
    /// `O_RDONLY | O_TRUNC` only when all is cut.
    fn refuse_executed(&self, inode: &Arc<Inode>, flags: i32) -> FsResult<()> {
        let executed = |handle: &Arc<Handle>| handle.executes && Arc::ptr_eq(&handle.inode, inode);
        let asks_late = flags & libc::O_ACCMODE == libc::O_RDONLY;
        if asks_late && self.handles.all().iter().any(executed) { Err(FsError::Executed) } else { Ok(()) }
    }

    /// The rights that a creation needs, before anything is made: GenerateDataKey for the name, and Decrypt where it is
    /// opened for reading too.
    pub(super) fn decide_creation(
        &self,
        opener: &Asker,
        parent: &Arc<Inode>,
        name: &[u8],
        wanted: Wanted,
    ) -> FsResult<Creation> {
        let table = parent.table()?;
        let path = || parent.path_of(name);
        let asked = ItemAsked { table, path: &path };
        let who = opener.subject();
        let read = if wanted.read {
            let (key, found) = self.kms.decrypt(&who, &asked)?;
            Some(Right::new(key, Action::Decrypt, found))
        } else {
            None
        };
        let (key, found) = self.kms.seal_key(&who, &asked, Action::GenerateDataKey)?;
        Ok(Creation { read, write: Right::new(key, Action::GenerateDataKey, found) })
    }

    /// The handle of an item that was just created.
    pub(super) fn open_created(
        &self,
        opener: Asker,
        inode: &Arc<Inode>,
        item: Arc<Item>,
        creation: Creation,
        wanted: Wanted,
    ) -> FsResult<Opened> {
        let write = wanted.write.then_some(creation.write);
        self.opened(
            inode,
            Handle { inode: Arc::clone(inode), item, opener, read: creation.read, write, executes: false },
        )
    }

    /// Lists the handle, and then looks once more: a revocation either finds it, or has changed by now what is looked at.
    /// Otherwise a handle that was decided just before could read cached pages of which nobody asks the daemon.
    fn opened(&self, inode: &Arc<Inode>, handle: Handle) -> FsResult<Opened> {
        inode.open_handles.fetch_add(1, Ordering::SeqCst);
        let fh = self.handles.insert(handle);
        if let Err(error) = self.handles.find(fh).and_then(|handle| self.still_good(&handle)) {
            self.release_item(fh);
            return Err(error);
        }
        let direct = inode.table().is_ok_and(|table| table.settings().cache == CacheMode::None);
        Ok(Opened { fh, keep_cache: !direct, direct_io: direct, no_flush: true, cache_dir: false })
    }

    fn still_good(&self, handle: &Handle) -> FsResult<()> {
        if handle.reads() {
            self.check_read(handle)?;
        }
        if handle.writes() {
            self.check_write(handle)?;
        }
        refuse_retired(&handle.inode)
    }

    fn decide_read(&self, opener: &Asker, inode: &Arc<Inode>, at: &Place) -> FsResult<Right<DataKey>> {
        let path = || at.path();
        let asked = ItemAsked { table: inode.table()?, path: &path };
        let (key, found) = self.kms.decrypt(&opener.subject(), &asked)?;
        Ok(Right::new(key, Action::Decrypt, found))
    }

    fn decide_write(&self, opener: &Asker, inode: &Arc<Inode>, at: &Place) -> FsResult<Right<SealKey>> {
        let path = || at.path();
        let asked = ItemAsked { table: inode.table()?, path: &path };
        let (key, found) = self.kms.seal_key(&opener.subject(), &asked, Action::Encrypt)?;
        Ok(Right::new(key, Action::Encrypt, found))
    }

    /// An item for one request of a caller who has no handle, decided, verified, and bound to the name that was decided
    /// about.
    pub(super) fn item_to_read(&self, caller: &Caller, inode: &Arc<Inode>) -> FsResult<(DataKey, Arc<Item>)> {
        let at = inode.last_place().ok_or(FsError::Stale)?;
        let key = self.decide_read(&self.asker_for(caller, inode.table()?), inode, &at)?.key;
        let item = self.load_item(inode)?;
        self.verify(inode, &at, &item, &key)?;
        Ok((key, item))
    }

    /// The same for a change.
    pub(super) fn item_to_write(&self, caller: &Caller, inode: &Arc<Inode>) -> FsResult<(SealKey, Arc<Item>)> {
        self.writable()?;
        let at = inode.last_place().ok_or(FsError::Stale)?;
        let key = self.decide_write(&self.asker_for(caller, inode.table()?), inode, &at)?.key;
        let item = self.load_item(inode)?;
        self.verify(inode, &at, &item, &key)?;
        Ok((key, item))
    }

    /// A right to change a folder's attributes.
    pub(super) fn right_to_write(&self, caller: &Caller, inode: &Arc<Inode>) -> FsResult<SealKey> {
        self.writable()?;
        let at = inode.last_place().ok_or(FsError::Stale)?;
        Ok(self.decide_write(&self.asker_for(caller, inode.table()?), inode, &at)?.key)
    }

    /// A right to read a folder's attributes, or its names where they are sealed.
    pub(super) fn right_to_read(&self, caller: &Caller, inode: &Arc<Inode>) -> FsResult<DataKey> {
        let at = inode.last_place().ok_or(FsError::Stale)?;
        Ok(self.decide_read(&self.asker_for(caller, inode.table()?), inode, &at)?.key)
    }

    /// Whether the handle's right to read still holds.
    pub(super) fn check_read<'a>(&self, handle: &'a Handle) -> FsResult<&'a DataKey> {
        let right = handle.read.as_ref().ok_or(FsError::BadHandle)?;
        self.check_right(handle, right)
    }

    /// Whether the handle's right to write still holds.
    pub(super) fn check_write<'a>(&self, handle: &'a Handle) -> FsResult<&'a SealKey> {
        let right = handle.write.as_ref().ok_or(FsError::BadHandle)?;
        self.check_right(handle, right)
    }

    /// One comparison where nothing has changed and nothing ends, else a new decision about the opener.
    fn check_right<'a, K>(&self, handle: &'a Handle, right: &'a Right<K>) -> FsResult<&'a K> {
        let table = handle.inode.table()?;
        if !right.stands(table.key().generation(), || self.kms.now()) {
            let at = handle.inode.last_place().ok_or(FsError::Stale)?;
            let path = || at.path();
            let asked = ItemAsked { table, path: &path };
            let found = self.kms.decide_again(&handle.opener.subject(), &asked, right.action)?;
            self.check_name(&handle.inode, &at, &handle.item)?;
            right.found_good(found, || table.key().generation());
        }
        Ok(&right.key)
    }

    pub(super) fn read_item(&self, fh: u64, offset: u64, buffer: &mut Vec<u8>, size: u32) -> FsResult<()> {
        let handle = self.handles.find(fh)?;
        let key = self.check_read(&handle)?;
        refuse_retired(&handle.inode)?;
        let size = usize::try_from(size).map_err(|_| FsError::Invalid)?;
        buffer.resize(size, 0);
        let read = handle.item.read(key, buffer, offset);
        let read = read.map_err(|error| self.report(&handle.inode, error))?;
        buffer.truncate(read);
        // A right that was taken while the block was being decrypted: nothing is released.
        self.check_read(&handle)?;
        refuse_retired(&handle.inode)
    }

    pub(super) fn write_item(&self, fh: u64, offset: u64, data: &[u8], from_cache: bool) -> FsResult<u32> {
        let mut handle = self.handles.find(fh)?;
        let draining = from_cache && self.is_draining();
        if from_cache && !draining && self.check_write(&handle).is_err() {
            // The page cache writes back under any writable handle's number: some other may still write.
            handle = self.other_writer(&handle).ok_or(FsError::Denied)?;
        }
        let key = match self.check_write(&handle) {
            Ok(key) => key,
            Err(_) if draining => &handle.write.as_ref().ok_or(FsError::BadHandle)?.key,
            Err(error) => return Err(error),
        };
        if !draining {
            refuse_retired(&handle.inode)?;
        }
        handle.item.write(key, data, offset).map_err(|error| self.report(&handle.inode, error))?;
        u32::try_from(data.len()).map_err(|_| FsError::TooLarge)
    }

    /// A handle on the same inode whose right to write holds.
    fn other_writer(&self, handle: &Handle) -> Option<Arc<Handle>> {
        let same = |other: &Arc<Handle>| Arc::ptr_eq(&other.inode, &handle.inode) && self.check_write(other).is_ok();
        self.handles.all().into_iter().find(same)
    }

    pub(super) fn release_item(&self, fh: u64) {
        let Some(handle) = self.handles.remove(fh) else { return };
        self.no_more_used(&handle.inode);
    }
}

/// The rights with which an item is created.
#[derive(Debug)]
pub(super) struct Creation {
    read: Option<Right<DataKey>>,
    write: Right<SealKey>,
}

impl Creation {
    pub(super) fn seal_key(&self) -> &SealKey {
        &self.write.key
    }
}

/// What a retired inode has cached would be seen by who lost his right, and what it changes by nobody else's inode.
pub(super) fn refuse_retired(inode: &Inode) -> FsResult<()> {
    if inode.is_retired() { Err(FsError::Stale) } else { Ok(()) }
}
