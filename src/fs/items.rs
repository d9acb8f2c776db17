//! Open items: one a backing file, however many inodes lead to it, and not too many that nobody uses.
//!
//! INVARIANT: while an `Item` of a backing file is alive, no other is made: each holds the file's header and first page
//! in memory, and a second one would write over what the first one wrote.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::FileSystem;
use super::api::{FsError, FsResult};
use super::inodes::{Backing, Inode};
use crate::table::{Item, TableError};

/// Items that stay open though no handle has them: an open of a warm item then needs no system call.
const WARM_MOST: usize = 4096;
/// Of the files that the daemon may have open, the part that may wait open for one reason.
const SHARE: u64 = 4;
#[derive(Debug)]
pub(super) struct Items {
    alive: Mutex<Alive>,
    /// Inodes whose items are open here, those that were not used for longest first.
    warm: Mutex<VecDeque<Arc<Inode>>>,
    /// How many files may wait open, for each of three reasons: to be used again, to be put in place by the journal,
    /// and for the kernel to forget a folder.
    share: usize,
    /// Files opened since the journal was put in place for their sake.
    opened: AtomicUsize,
}

#[derive(Debug, Default)]
struct Alive {
    items: HashMap<Backing, Weak<Item>>,
    /// How many entries there may be before those of dropped items go.
    sweep_at: usize,
}

impl Default for Items {
    fn default() -> Self {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let share = files.map_or(1 << 20, |files| usize::try_from(files / SHARE).unwrap_or(usize::MAX));
        Self { alive: Mutex::default(), warm: Mutex::default(), share, opened: AtomicUsize::new(0) }
    }
}

impl Items {
    /// The item of a backing file: the one that is alive, else what `open` opens.
    pub(super) fn shared(&self, backing: Backing, open: impl FnOnce() -> FsResult<Arc<Item>>) -> FsResult<Arc<Item>> {
        if let Some(item) = self.alive().get(backing) {
            return Ok(item);
        }
        let item = open()?;
        if Backing::of_item(&item) != backing {
            // The name has come to mean another file since it was looked up.
            return Err(FsError::Stale);
        }
        let mut alive = self.alive();
        // Another one may have been faster; nothing has been done with this one.
        Ok(alive.get(backing).unwrap_or_else(|| alive.insert(backing, item)))
    }

    /// How many folders may be known, each an open file.
    pub(super) fn folders_most(&self) -> usize {
        self.share
    }

    /// An item that has just been created.
    pub(super) fn add(&self, backing: Backing, item: &Arc<Item>) {
        self.alive().insert(backing, Arc::clone(item));
    }

    fn forget(&self, backing: Backing) {
        self.alive().items.remove(&backing);
    }

    /// Notes a use. What has not been used for long comes back, to be let go.
    fn warm_up(&self, inode: &Arc<Inode>) -> Vec<Arc<Inode>> {
        let Ok(body) = inode.item_body() else { return Vec::new() };
        body.used.store(true, Ordering::Relaxed);
        if body.warm.swap(true, Ordering::AcqRel) {
            return Vec::new();
        }
        let mut warm = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        warm.push_back(Arc::clone(inode));
        let mut cold = Vec::new();
        let mut chances = warm.len();
        while warm.len() > self.share.min(WARM_MOST) {
            let Some(oldest) = warm.pop_front() else { break };
            let Ok(body) = oldest.item_body() else { continue };
            if chances > 0 && body.used.swap(false, Ordering::Relaxed) {
                chances -= 1;
                warm.push_back(oldest);
            } else {
                body.warm.store(false, Ordering::Release);
                cold.push(oldest);
            }
        }
        cold
    }

    fn alive(&self) -> MutexGuard<'_, Alive> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Alive {
    fn get(&self, backing: Backing) -> Option<Arc<Item>> {
        self.items.get(&backing).and_then(Weak::upgrade)
    }

    fn insert(&mut self, backing: Backing, item: Arc<Item>) -> Arc<Item> {
        if self.items.len() >= self.sweep_at {
            self.items.retain(|_, item| item.strong_count() > 0);
            self.sweep_at = (2 * self.items.len()).max(WARM_MOST);
        }
        self.items.insert(backing, Arc::downgrade(&item));
        item
    }
}

impl FileSystem {
    /// The item of an inode, opened at first use. Nothing of it is trusted before it is verified.
    pub(super) fn load_item(&self, inode: &Arc<Inode>) -> FsResult<Arc<Item>> {
        let item = {
            let mut slot = inode.item_body()?.slot();
            if let Some(item) = &*slot {
                return Ok(Arc::clone(item));
            }
            let item = self.items.shared(inode.backing, || {
                let (folder, name) = Self::whereabouts(inode)?;
                self.count_open()?;
                match Item::open(&folder, &name) {
                    Err(TableError::Unfinished) => Err(self.remove_unfinished(inode, &folder, &name)),
                    item => item.map_err(|error| self.report(inode, error)),
                }
            })?;
            *slot = Some(Arc::clone(&item));
            item
        };
        self.keep_warm(inode);
        Ok(item)
    }

    /// The item stays open for the next one; beyond a number of such, those are let go that were not used for longest.
    pub(super) fn keep_warm(&self, inode: &Arc<Inode>) {
        for cold in self.items.warm_up(inode) {
            drop(cold.take_idle_item());
        }
    }

    /// A file was opened, or is about to be. What is pending in the journal keeps files open whatever else lets go of
    /// them: before these are too many, all of it is put in place.
    pub(super) fn count_open(&self) -> FsResult<()> {
        if self.items.opened.fetch_add(1, Ordering::Relaxed) < self.items.share {
            return Ok(());
        }
        self.items.opened.store(0, Ordering::Relaxed);
        Ok(self.journal.checkpoint()?)
    }

    /// What did not verify was perhaps opened by a name that is not its own: the next open begins anew, by another name.
    /// Nothing was done with it, and nothing can be.
    pub(super) fn let_go_unverified(&self, inode: &Inode, item: &Arc<Item>) {
        if let Ok(body) = inode.item_body() {
            body.slot().take_if(|open| Arc::ptr_eq(open, item));
        }
        let mut alive = self.items.alive();
        if alive.get(inode.backing).is_some_and(|other| Arc::ptr_eq(&other, item)) {
            alive.items.remove(&inode.backing);
        }
    }

    /// The last name is gone: what is pending is of no use any more, and the space is to be free, once nobody has it open.
    pub(super) fn drop_unlinked(&self, inode: &Arc<Inode>) {
        if let Some(item) = inode.take_idle_item() {
            item.discard();
            self.items.forget(inode.backing);
        }
    }

    /// Keeps an item from being dropped as unlinked while it is being opened or read without a handle.
    pub(super) fn using<'a>(&'a self, inode: &'a Arc<Inode>) -> InUse<'a> {
        inode.open_handles.fetch_add(1, Ordering::SeqCst);
        InUse { fs: self, inode }
    }

    pub(super) fn no_more_used(&self, inode: &Arc<Inode>) {
        if inode.open_handles.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        if inode.is_unlinked() { self.drop_unlinked(inode) } else { self.keep_warm(inode) }
    }
}

/// One use of an inode's item; a handle is one as long as it is open.
pub(super) struct InUse<'a> {
    fs: &'a FileSystem,
    inode: &'a Arc<Inode>,
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.fs.no_more_used(self.inode);
    }
}
