//! Items opened, kept for a while, reported on, and settled at the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::FileSystem;
use super::api::{FsError, FsResult};
use super::attributes::kind_of_item;
use super::inodes::{Inode, Place};
use super::open_file::{Handle, refuse_retired};
use crate::kms::{CacheMode, ItemKeySource, Kms};
use crate::store::{Dir, Journal};
use crate::table::{Folder, Item, Mounts, Recovered, Seek, StoredName, TableError};
use crate::types::text_of_path;

const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
/// Punching holes keeps the size, always (fallocate(2)).
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
const ZERO_KEEP: i32 = ZERO | KEEP_SIZE;

impl FileSystem {
    /// The file system of a store whose key service and journal are open.
    pub fn new(kms: Arc<Kms>, journal: Arc<Journal>, mounts: Mounts, options: super::Options) -> FsResult<Self> {
        let tables: Arc<dyn Dir> = kms.store().root_dir().open_dir(std::ffi::OsStr::new("tables"))?;
        Ok(Self {
            kms,
            journal,
            tables,
            options,
            mounts,
            folders: std::sync::RwLock::default(),
            inodes: super::Inodes::new(),
            handles: super::Handles::default(),
            listings: super::Handles::default(),
            listed: super::listing::quota(),
            control: super::Control::default(),
            revocations: std::sync::atomic::AtomicU64::new(1),
            draining: std::sync::atomic::AtomicUsize::new(0),
            items: super::Items::default(),
            re_encryptions: super::ReEncryptions::default(),
            own_ids: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            revoker: std::sync::OnceLock::new(),
            ended: std::sync::atomic::AtomicBool::new(false),
        })
    }

    /// Verifies an item, and that it belongs under the name that was decided about: somebody who can write the store may
    /// have linked it elsewhere.
    pub(super) fn verify(&self, inode: &Inode, at: &Place, item: &Arc<Item>, key: &impl ItemKeySource) -> FsResult<()> {
        let verified = item.verify(key);
        if matches!(verified, Err(TableError::Tampered { .. })) {
            self.let_go_unverified(inode, item);
        }
        self.take_recovered(inode, verified)?;
        self.check_name(inode, at, item)
    }

    pub(super) fn check_name(&self, inode: &Inode, at: &Place, item: &Item) -> FsResult<()> {
        if inode.is_proven(at) {
            return Ok(());
        }
        let stored = at.stored.as_ref().ok_or(FsError::IsDir)?;
        match item.check_name(stored).and_then(|()| item.kind()) {
            Ok(kind) if kind_of_item(kind) == inode.kind => {
                // So that the header can be told when this name goes, and the journal finds the item under it.
                item.known_as(at.parent.folder()?, stored);
                inode.prove(at);
                Ok(())
            }
            Ok(_) => Err(self.report(inode, TableError::Tampered { what: "kind" })),
            Err(error @ TableError::Tampered { .. }) => {
                // It may have gone meanwhile, and the header with it: that is nobody's attack.
                Self::stat_named(inode, at.parent.folder()?, stored)?;
                Err(self.report(inode, error))
            }
            Err(error) => Err(self.report(inode, error)),
        }
    }

    pub(super) fn take_recovered(&self, inode: &Inode, found: Result<Option<Recovered>, TableError>) -> FsResult<()> {
        if let Some(recovered) = found.map_err(|error| self.report(inode, error))? {
            let what = format!("{}: {recovered}", Self::describe_inode(inode));
            log::warn!("after an unclean stop, {what}");
            self.kms.log_daemon("ItemRecovered", &what)?;
        }
        Ok(())
    }

    /// What a crash has left of an item whose creation nobody was told of: it holds nothing, and goes.
    pub(super) fn remove_unfinished(&self, inode: &Inode, folder: &Folder, name: &StoredName) -> FsError {
        let what = format!("{}: removed: its creation was cut short", Self::describe_inode(inode));
        log::warn!("after an unclean stop, {what}");
        if self.options.read_only {
            return FsError::NotFound;
        }
        let removed = self.kms.log_daemon("ItemRecovered", &what).map_err(FsError::from);
        match removed.and_then(|()| Ok(folder.unlink(name)?)) {
            Ok(()) => {
                if let Some(place) = inode.place() {
                    // The kernel has not asked for it, and keeps listings.
                    self.forget_names_later(&[place]);
                }
                self.inodes.detach(inode);
                FsError::NotFound
            }
            Err(error) => error,
        }
    }

    /// The same of a folder.
    pub(super) fn set_aside_unfinished(
        &self,
        parent: &Inode,
        name: &[u8],
        (folder, stored): (&Folder, &StoredName),
    ) -> FsError {
        let parent = Self::describe_inode(parent);
        let what = format!("{} in {parent}: the folder is gone: its making was cut short", text_of_path(name));
        log::warn!("after an unclean stop, {what}");
        if self.options.read_only {
            return FsError::NotFound;
        }
        let told = self.kms.log_daemon("ItemRecovered", &what).map_err(FsError::from);
        match told.and_then(|()| Ok(folder.set_aside(stored)?)) {
            Ok(()) => FsError::NotFound,
            Err(error) => error,
        }
    }

    /// Tells the trail and the log of what does not verify, and gives the caller's error.
    pub(super) fn report(&self, inode: &Inode, error: TableError) -> FsError {
        match &error {
            TableError::Tampered { .. }
            | TableError::Version { .. }
            | TableError::NoKey { .. }
            | TableError::Unfinished => {
                self.report_tampering(inode, &format!("{}: {error}", Self::describe_inode(inode)));
            }
            TableError::Io(source) => log::debug!("{}: {source}", Self::describe_inode(inode)),
            TableError::Crypto(source) => log::error!("{}: {source}", Self::describe_inode(inode)),
            TableError::TooLarge
            | TableError::TooManyLinks
            | TableError::NameTooLong
            | TableError::BadName
            | TableError::WrongTable => {}
        }
        error.into()
    }

    /// The same for what is not an inode yet: a name in a folder.
    pub(super) fn report_in(&self, parent: &Inode, name: &[u8], error: TableError) -> FsError {
        if matches!(error, TableError::Tampered { .. } | TableError::Version { .. }) {
            let what = format!("{} in {}: {error}", text_of_path(name), Self::describe_inode(parent));
            self.report_tampering(parent, &what);
        }
        error.into()
    }

    pub(super) fn report_tampering(&self, _inode: &Inode, what: &str) {
        log::warn!("tampering or damage: {what}");
        if let Err(error) = self.kms.log_tampering(what) {
            log::error!("the audit trail does not take that: {error}");
        }
    }

    fn describe_inode(inode: &Inode) -> String {
        let table = inode.table().map(|table| table.name()).unwrap_or_default();
        format!("{table}/{}", text_of_path(&inode.path()))
    }

    /// fsync(2), or fdatasync(2) where only `data_only` is asked for: that leaves out owner, mode, times and attributes.
    pub(super) fn sync_item(&self, fh: u64, data_only: bool) -> FsResult<()> {
        let handle = self.handles.find(fh)?;
        let synced = if data_only { handle.item.sync() } else { handle.item.sync_all() };
        synced.map_err(|error| self.report(&handle.inode, error))
    }

    pub(super) fn seek(&self, fh: u64, offset: u64, whence: i32) -> FsResult<u64> {
        let handle = self.handles.find(fh)?;
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(FsError::Invalid),
        };
        // Where the holes are is told to whoever may read.
        self.check_read(&handle)?;
        refuse_retired(&handle.inode)?;
        if !self.may_be_mapped(&handle) {
            return handle.item.seek(what, offset).map_err(|error| self.report(&handle.inode, error));
        }
        let size = handle.item.size().filter(|size| offset < *size).ok_or(FsError::NoDevice)?;
        Ok(if what == Seek::Data { offset } else { size })
    }

    /// Whether a shared mapping may hold what it has not written back, of which the kernel tells nobody: any of it may be
    /// where the item has a hole.
    fn may_be_mapped(&self, handle: &Arc<Handle>) -> bool {
        let maps = |one: &Handle| one.reads() && one.writes();
        let same = |other: &Arc<Handle>| Arc::ptr_eq(&other.inode, &handle.inode);
        if handle.inode.table().is_ok_and(|table| table.settings().cache == CacheMode::None) {
            return false;
        }
        let others = || handle.inode.open_handles.load(Ordering::SeqCst) > 1;
        maps(handle) || others() && self.handles.all().iter().any(|other| same(other) && maps(other))
    }

    /// fallocate(2): plain, PUNCH_HOLE, and ZERO_RANGE, with KEEP_SIZE or without.
    pub(super) fn allocate(&self, fh: u64, offset: u64, length: u64, mode: i32) -> FsResult<()> {
        let handle = self.handles.find(fh)?;
        let key = self.check_write(&handle)?;
        refuse_retired(&handle.inode)?;
        let item = &handle.item;
        let done = match mode {
            0 => item.allocate(key, offset, length, false),
            KEEP_SIZE => item.allocate(key, offset, length, true),
            PUNCH => item.punch_hole(key, offset, length),
            ZERO => item.zero_range(key, offset, length, false),
            ZERO_KEEP => item.zero_range(key, offset, length, true),
            _ => return Err(FsError::NotSupported),
        };
        done.map_err(|error| self.report(&handle.inode, error))
    }

    /// Puts everything in place, tells the trail, and closes the mount epoch in good order.
    pub(super) fn settle_all(&self) {
        self.ended.store(true, Ordering::Release);
        if self.options.read_only {
            return;
        }
        if let Err(error) = self.close_in_order() {
            log::error!("the store was not closed in good order: {error}");
        }
    }

    fn close_in_order(&self) -> FsResult<()> {
        self.journal.close()?;
        self.tables.syncfs()?;
        self.kms.close()?;
        Ok(())
    }
}
