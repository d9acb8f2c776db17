//! The inodes that the kernel knows, found by number and by backing inode.
//!
//! A number is the backing inode's, so that it survives a remount. When that number is still in use by an inode that
//! is retired or unlinked, the new one gets the same low bits and a count above them. Numbers with the top bit belong
//! to the control tree.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use super::api::{FsError, FsResult, Kind};
use super::known::Known;
use crate::kms::Table;
use crate::store::Stat;
use crate::table::{Folder, Item, StoredName};

/// The mount's root.
pub(super) const ROOT_INO: u64 = 1;
/// Set in the numbers of the control tree.
pub(super) const CONTROL_BIT: u64 = 1 << 63;
/// Above the backing number: how often it was in use already.
const COUNT_SHIFT: u32 = 48;

/// A file or directory of the store: its device and number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Backing {
    device: u64,
    number: u64,
}

impl Backing {
    pub(super) fn of(stat: &Stat) -> Self {
        Self { device: stat.dev, number: stat.ino }
    }

    pub(super) fn of_item(item: &Item) -> Self {
        let (device, number) = item.inode();
        Self { device, number }
    }
}

/// Where an inode is: a name in a folder. A hard link's other names are known to the store alone.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) parent: Arc<Inode>,
    pub(super) name: Vec<u8>,
    /// The name as it is stored; none for a table in the root.
    pub(super) stored: Option<Arc<StoredName>>,
}

impl Place {
    pub(super) fn path(&self) -> Vec<u8> {
        self.parent.path_of(&self.name)
    }
}

#[derive(Debug, Default)]
struct Site {
    last: Option<Place>,
    lost: bool,
    /// The item's header has said that this is a name of its own.
    proven: bool,
}

impl Site {
    fn is_at(&self, place: &Place) -> bool {
        self.last.as_ref().is_some_and(|last| last.parent.ino == place.parent.ino && last.name == place.name)
    }
}

/// What an inode stands for.
#[derive(Debug)]
pub(super) enum Body {
    /// The mount's root, whose folders are the tables.
    Root,
    Folder(Arc<Folder>),
    Item(ItemBody),
}

/// An item's inode: the item itself is opened at the first open.
#[derive(Debug, Default)]
pub(super) struct ItemBody {
    /// Held while the item is being opened, so that there is one `Item` a backing file.
    item: Mutex<Option<Arc<Item>>>,
    /// Whether it is among the warm ones, and whether it was used since it was looked at there.
    pub(super) warm: AtomicBool,
    pub(super) used: AtomicBool,
}

impl ItemBody {
    pub(super) fn of(item: Arc<Item>) -> Self {
        Self { item: Mutex::new(Some(item)), ..Self::default() }
    }

    pub(super) fn slot(&self) -> MutexGuard<'_, Option<Arc<Item>>> {
        self.item.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) ino: u64,
    pub(super) generation: u64,
    pub(super) kind: Kind,
    /// None for the root alone.
    pub(super) table: Option<Arc<Table>>,
    pub(super) body: Body,
    pub(super) backing: Backing,
    pub(super) known: Known,
    site: RwLock<Site>,
    lookups: AtomicU64,
    retired: AtomicBool,
    unlinked: AtomicBool,
    /// Of a folder: looked into since it was last asked.
    pub(super) used: AtomicBool,
    /// Handles open on it, and opens under way.
    pub(super) open_handles: AtomicU32,
}

impl Inode {
    /// Where the inode stands; none for the root, and for what has lost the name that it was found under.
    pub(super) fn place(&self) -> Option<Place> {
        let site = self.site();
        if site.lost { None } else { site.last.clone() }
    }

    pub(super) fn set_place(&self, place: Place) {
        let mut site = self.site.write().unwrap_or_else(PoisonError::into_inner);
        let proven = site.proven && !site.lost && site.is_at(&place);
        *site = Site { last: Some(place), lost: false, proven };
    }

    /// The inode has been given a name, and its header is bound to it.
    pub(super) fn settle_at(&self, place: Place) {
        let site = Site { last: Some(place), lost: false, proven: true };
        *self.site.write().unwrap_or_else(PoisonError::into_inner) = site;
    }

    /// Whether an item's header has said that `place` is a name of its own. It stays so when the name goes: the handles
    /// that were opened by it are judged by it.
    pub(super) fn is_proven(&self, place: &Place) -> bool {
        let site = self.site();
        site.proven && site.is_at(place)
    }

    pub(super) fn prove(&self, place: &Place) {
        let mut site = self.site.write().unwrap_or_else(PoisonError::into_inner);
        if site.is_at(place) {
            site.proven = true;
        }
    }

    /// The name is gone. Decisions go on by it: a handle, or a path that was opened without a decision, is judged as
    /// before.
    pub(super) fn lose_place(&self) {
        self.site.write().unwrap_or_else(PoisonError::into_inner).lost = true;
    }

    fn site(&self) -> RwLockReadGuard<'_, Site> {
        self.site.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place that decisions go by: that of now, or that which was lost.
    pub(super) fn last_place(&self) -> Option<Place> {
        self.site().last.clone()
    }

    pub(super) fn folder(&self) -> FsResult<&Arc<Folder>> {
        match &self.body {
            Body::Folder(folder) => Ok(folder),
            Body::Root | Body::Item(_) => Err(FsError::NotDir),
        }
    }

    pub(super) fn item_body(&self) -> FsResult<&ItemBody> {
        match &self.body {
            Body::Item(body) => Ok(body),
            Body::Root | Body::Folder(_) => Err(FsError::IsDir),
        }
    }

    /// The item, if it is open.
    pub(super) fn open_item(&self) -> Option<Arc<Item>> {
        match &self.body {
            Body::Item(body) => body.slot().clone(),
            Body::Root | Body::Folder(_) => None,
        }
    }

    /// Lets the open item go, unless somebody uses it; the next open finds it again or reads it anew.
    pub(super) fn take_idle_item(&self) -> Option<Arc<Item>> {
        let Body::Item(body) = &self.body else { return None };
        let mut slot = body.slot();
        if self.open_handles.load(Ordering::SeqCst) == 0 { slot.take() } else { None }
    }

    /// Whether this is the name under which the inode was found last.
    pub(super) fn is_at(&self, parent: &Self, name: &[u8]) -> bool {
        self.place().is_some_and(|place| place.parent.ino == parent.ino && place.name == name)
    }

    pub(super) fn table(&self) -> FsResult<&Arc<Table>> {
        self.table.as_ref().ok_or(FsError::NotPermitted)
    }

    /// The path inside the table, names joined by '/'; empty for the table's own folder. Of what has lost its name, the
    /// path that it had.
    pub(super) fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut place = self.last_place();
        while let Some(Place { parent, name, .. }) = place {
            if parent.ino == ROOT_INO {
                break;
            }
            names.push(name);
            place = parent.last_place();
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The path that a name in this folder has.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = self.path();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// Whether the last name of the backing file is gone.
    pub(super) fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::SeqCst)
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// From now on lookups of the name make a new inode, and this one answers ESTALE.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }
}

impl Drop for Inode {
    /// Without recursion: the last inode of a path takes with it all above that the kernel has forgotten, and these may
    /// be more than a thread's stack has room for.
    fn drop(&mut self) {
        let parent_of = |site: &mut RwLock<Site>| {
            let site = site.get_mut().unwrap_or_else(PoisonError::into_inner);
            site.last.take().map(|place| place.parent)
        };
        let mut next = parent_of(&mut self.site);
        while let Some(mut inode) = next.and_then(Arc::into_inner) {
            next = parent_of(&mut inode.site);
        }
    }
}

/// What a new inode is made of.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) backing: Backing,
    pub(super) kind: Kind,
    pub(super) table: Arc<Table>,
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) struct Inodes {
    maps: RwLock<Maps>,
    generation: AtomicU64,
}

#[derive(Debug)]
struct Maps {
    by_ino: HashMap<u64, Arc<Inode>>,
    by_backing: HashMap<Backing, Arc<Inode>>,
    /// Folders below tables in the order in which they are to be looked at, and how many of them there are.
    folders: VecDeque<u64>,
    folder_count: usize,
    /// Folders that came since some were last taken for cold.
    folders_new: usize,
}

impl Inodes {
    pub(super) fn new() -> Self {
        let root = Arc::new(Inode {
            ino: ROOT_INO,
            generation: 0,
            kind: Kind::Dir,
            table: None,
            body: Body::Root,
            backing: Backing { device: 0, number: 0 },
            known: Known::default(),
            site: RwLock::default(),
            lookups: AtomicU64::new(1),
            retired: AtomicBool::new(false),
            unlinked: AtomicBool::new(false),
            used: AtomicBool::new(true),
            open_handles: AtomicU32::new(0),
        });
        Self {
            maps: RwLock::new(Maps {
                by_ino: HashMap::from([(ROOT_INO, root)]),
                by_backing: HashMap::new(),
                folders: VecDeque::new(),
                folder_count: 0,
                folders_new: 0,
            }),
            generation: AtomicU64::new(1),
        }
    }

    pub(super) fn find(&self, ino: u64) -> FsResult<Arc<Inode>> {
        self.read().by_ino.get(&ino).cloned().ok_or(FsError::Stale)
    }

    /// The inode of a backing inode, if it is known and in use.
    pub(super) fn find_backing(&self, backing: Backing) -> Option<Arc<Inode>> {
        self.read().by_backing.get(&backing).cloned()
    }

    /// The same, its lookups one more; it stays where it was found last.
    pub(super) fn known(&self, backing: Backing) -> Option<Arc<Inode>> {
        let maps = self.write();
        let inode = maps.by_backing.get(&backing)?;
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(inode))
    }

    /// The places of all inodes of a table that have a name.
    pub(super) fn places_in(&self, table: crate::types::TableId) -> Vec<Place> {
        let of_table = |inode: &&Arc<Inode>| inode.table.as_ref().is_some_and(|of| of.id() == table);
        self.read().by_ino.values().filter(of_table).filter_map(|inode| inode.place()).collect()
    }

    /// The inode of what a lookup or a creation found, its lookups one more. `body` is called for a new one, with no
    /// lock held.
    pub(super) fn ensure(&self, found: Found, body: impl FnOnce() -> FsResult<Body>) -> FsResult<Arc<Inode>> {
        if let Some(inode) = self.write().known(&found, Checked::No) {
            return Ok(inode);
        }
        // Of a folder that is known under another name, this finds out whether this name is its own, too.
        let body = body()?;
        let mut maps = self.write();
        // Another lookup of the same name may have been faster.
        if let Some(inode) = maps.known(&found, Checked::Yes) {
            return Ok(inode);
        }
        let ino = (0..u64::from(u16::MAX >> 1))
            .map(|count| (found.backing.number & ((1 << COUNT_SHIFT) - 1)) | (count << COUNT_SHIFT))
            .find(|ino| *ino > ROOT_INO && !maps.by_ino.contains_key(ino))
            .ok_or(FsError::Busy)?;
        let inode = Arc::new(Inode {
            ino,
            generation: self.generation.fetch_add(1, Ordering::Relaxed),
            kind: found.kind,
            table: Some(found.table),
            body,
            backing: found.backing,
            known: Known::default(),
            site: RwLock::new(Site { last: Some(found.place), ..Site::default() }),
            lookups: AtomicU64::new(1),
            retired: AtomicBool::new(false),
            unlinked: AtomicBool::new(false),
            used: AtomicBool::new(true),
            open_handles: AtomicU32::new(0),
        });
        maps.by_ino.insert(ino, Arc::clone(&inode));
        maps.by_backing.insert(found.backing, Arc::clone(&inode));
        if inode.kind == Kind::Dir {
            maps.folders.push_back(ino);
            maps.folder_count += 1;
            maps.folders_new += 1;
        }
        Ok(inode)
    }

    /// Where more than `most` folders are known: the places of some that were not looked into for longest. Each keeps a
    /// file open, and the kernel remembers folders without end.
    pub(super) fn cold_folders(&self, most: usize) -> Vec<Place> {
        const BATCH: usize = 64;
        let due = |maps: &Maps| maps.folder_count > most && maps.folders_new >= BATCH / 2;
        if !due(&self.read()) {
            return Vec::new();
        }
        let mut maps = self.write();
        if !due(&maps) {
            return Vec::new();
        }
        maps.folders_new = 0;
        let mut cold = Vec::new();
        // Each at most twice: once to find that it was used, once to take it.
        for _ in 0..2 * maps.folders.len() {
            let Some(ino) = maps.folders.pop_front() else { break };
            let Some(inode) = maps.by_ino.get(&ino).cloned() else { continue };
            // One that the kernel holds on to comes round again.
            maps.folders.push_back(ino);
            if !inode.used.swap(false, Ordering::Relaxed)
                && let Some(place) = inode.place().filter(|place| place.parent.ino != ROOT_INO)
            {
                cold.push(place);
                if cold.len() == BATCH {
                    break;
                }
            }
        }
        cold
    }

    /// The kernel forgets `lookups`. Gives the inode if these were the last ones: it is not known any more. An item may
    /// go with its inode at any time: the journal keeps what is pending.
    pub(super) fn forget(&self, ino: u64, lookups: u64) -> Option<Arc<Inode>> {
        if ino == ROOT_INO {
            return None;
        }
        let mut maps = self.write();
        let inode = maps.by_ino.get(&ino)?;
        let before = inode.lookups.load(Ordering::Relaxed);
        inode.lookups.store(before.saturating_sub(lookups), Ordering::Relaxed);
        if before <= lookups { maps.drop_inode(ino) } else { None }
    }

    /// The backing file has lost its last name: its number may come back for another file.
    pub(super) fn detach(&self, inode: &Inode) {
        inode.unlinked.store(true, Ordering::SeqCst);
        inode.lose_place();
        self.write().forget_backing(inode);
    }

    /// A later lookup shall make a new inode.
    pub(super) fn retire(&self, inode: &Inode) {
        inode.retire();
        self.write().forget_backing(inode);
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Maps> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a folder has been found to belong under the name that leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checked {
    No,
    Yes,
}

impl Maps {
    /// The inode that is found again, its lookups one more. A folder found under another name than before only where
    /// that has been checked: paths lead through it. An item's name is checked at its open.
    fn known(&mut self, found: &Found, checked: Checked) -> Option<Arc<Inode>> {
        let inode = self.by_backing.get(&found.backing)?;
        if inode.kind != found.kind {
            return None;
        }
        let moved = inode.kind == Kind::Dir && !inode.is_at(&found.place.parent, &found.place.name);
        if moved && checked == Checked::No {
            return None;
        }
        inode.set_place(found.place.clone());
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(inode))
    }

    fn drop_inode(&mut self, ino: u64) -> Option<Arc<Inode>> {
        let inode = self.by_ino.remove(&ino)?;
        self.forget_backing(&inode);
        if inode.kind == Kind::Dir {
            self.folder_count = self.folder_count.saturating_sub(1);
            if self.folders.len() > 2 * self.folder_count + 64 {
                let by_ino = &self.by_ino;
                self.folders.retain(|ino| by_ino.contains_key(ino));
            }
        }
        Some(inode)
    }

    fn forget_backing(&mut self, inode: &Inode) {
        if self.by_backing.get(&inode.backing).is_some_and(|known| known.ino == inode.ino) {
            self.by_backing.remove(&inode.backing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_deeper_than_the_stack_is_named_and_dropped() {
        let leaf_of = |inodes: &Inodes| {
            (0..200_000_u64).fold(inodes.find(ROOT_INO).unwrap(), |parent, number| {
                let place = Place { parent, name: b"f".to_vec(), stored: None };
                Arc::new(Inode {
                    ino: number + 2,
                    generation: 0,
                    kind: Kind::File,
                    table: None,
                    body: Body::Item(ItemBody::default()),
                    backing: Backing { device: 0, number },
                    known: Known::default(),
                    site: RwLock::new(Site { last: Some(place), ..Site::default() }),
                    lookups: AtomicU64::new(0),
                    retired: AtomicBool::new(false),
                    unlinked: AtomicBool::new(false),
                    used: AtomicBool::new(true),
                    open_handles: AtomicU32::new(0),
                })
            })
        };
        let small = std::thread::Builder::new().stack_size(128 << 10);
        let length = small.spawn(move || {
            let inodes = Inodes::new();
            let leaf = leaf_of(&inodes);
            leaf.path().len()
        });
        // The table's own folder is the path's beginning, and no part of it.
        assert_eq!(length.unwrap().join().unwrap(), 2 * 199_999 - 1);
    }
}
