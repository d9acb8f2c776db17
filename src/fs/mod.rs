//! Level 6: the file system, without a word of FUSE.
//!
//! The root's folders are tables, a table's files are items, `.kms` is the control tree. Invariants: every open is
//! decided for its caller, and every read and write for the opener of its handle; nothing is read or made before the
//! decision; one `Item` a backing file. It refuses whatever is no part of a table.

pub mod api;
mod attributes;
mod control;
mod error;
mod folders;
mod handles;
mod inodes;
mod items;
mod known;
mod listing;
mod namespace;
mod open_file;
mod quota;
mod re_encrypt;
mod revoke;
mod roots;
mod session;
mod settle;
mod subject;
mod tick;
mod xattrs;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use api::{Attr, Caller, Emit, Entry, FsError, FsResult, Opened, Operations, Outcome, Revoker, SetAttr, StatFs};
use control::Control;
use handles::Handles;
use inodes::{CONTROL_BIT, Inodes, ROOT_INO};
use items::Items;
use listing::Listing;
use open_file::Handle;
use quota::Quota;
use re_encrypt::ReEncryptions;
use subject::Asker;

pub use session::{SessionError, open_trail};

use crate::kms::{Kms, Table};
use crate::store::{Dir, Journal};
use crate::table::{Folder, Mounts};
use crate::types::TableId;

/// How long the kernel may keep names and attributes: the daemon is the only writer and takes back what changes.
const TTL: Duration = Duration::from_secs(3600);
/// The control tree's name in the root.
const CONTROL_NAME: &[u8] = b".kms";

/// What a mount is asked to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    pub read_only: bool,
    /// List `.kms` in the root.
    pub show_kms: bool,
}

/// The file system of one store.
pub struct FileSystem {
    kms: Arc<Kms>,
    journal: Arc<Journal>,
    /// `tables` in the store, whose owner and mode are the root's.
    tables: Arc<dyn Dir>,
    options: Options,
    /// This mount's epoch, and those that were not closed in good order.
    mounts: Mounts,
    /// The folder of each table that was entered.
    folders: RwLock<HashMap<TableId, Arc<Folder>>>,
    inodes: Inodes,
    handles: Handles<Handle>,
    listings: Handles<Listing>,
    /// Names in listings under way.
    listed: Arc<Quota>,
    control: Control,
    /// Numbers revocations.
    revocations: AtomicU64,
    /// Revocations under way.
    draining: AtomicUsize,
    items: Items,
    re_encryptions: ReEncryptions,
    /// The user and group that the host gives to what the daemon makes.
    own_ids: (u32, u32),
    revoker: OnceLock<Revoker>,
    /// Everything is settled: the tick has nothing more to do.
    ended: AtomicBool,
}

impl FileSystem {
    /// Whose request about a table's items it is; groups where the key's policy names any.
    fn asker_for(&self, caller: &Caller, table: &Table) -> Asker {
        Asker::of(caller, self.kms.wants_groups(table))
    }

    fn writable(&self) -> FsResult<()> {
        if self.options.read_only { Err(FsError::ReadOnly) } else { Ok(()) }
    }
}

impl fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSystem").field("store", &self.kms.store_id()).finish_non_exhaustive()
    }
}

fn is_control(ino: u64) -> bool {
    ino & CONTROL_BIT != 0
}

impl Operations for FileSystem {
    fn lookup(&self, caller: &Caller, parent: u64, name: &OsStr) -> FsResult<Entry> {
        if is_control(parent) {
            return self.control_lookup(caller, parent, name);
        }
        if parent == ROOT_INO {
            return self.root_lookup(caller, name.as_bytes());
        }
        self.folder_lookup(caller, &self.inodes.find(parent)?, name.as_bytes())
    }

    fn forget(&self, ino: u64, lookups: u64) {
        if is_control(ino) {
            self.control.forget(ino, lookups);
        } else if let Some(inode) = self.inodes.forget(ino, lookups) {
            drop(inode.take_idle_item());
        }
    }

    fn getattr(&self, caller: &Caller, ino: u64, fh: Option<u64>) -> FsResult<(Attr, Duration)> {
        if is_control(ino) {
            return self.control_getattr(caller, ino, fh);
        }
        Ok((self.attr_of(&*self.inodes.find(ino)?)?, TTL))
    }

    fn setattr(&self, caller: &Caller, ino: u64, change: &SetAttr) -> FsResult<Outcome<(Attr, Duration)>> {
        if is_control(ino) {
            return self.control_setattr(caller, ino, change);
        }
        self.writable()?;
        let inode = self.inodes.find(ino)?;
        self.change_attributes(caller, &inode, change)?;
        Ok((self.attr_of(&inode)?, TTL).into())
    }

    fn readlink(&self, caller: &Caller, ino: u64) -> FsResult<Vec<u8>> {
        if is_control(ino) {
            return Err(FsError::Invalid);
        }
        self.read_symlink(caller, &self.inodes.find(ino)?)
    }

    fn mknod(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32, umask: u32, _rdev: u32) -> FsResult<Entry> {
        if is_control(parent) || parent == ROOT_INO {
            return Err(FsError::NotPermitted);
        }
        self.make_node(caller, &self.inodes.find(parent)?, name.as_bytes(), mode, umask)
    }

    fn mkdir(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32, umask: u32) -> FsResult<Outcome<Entry>> {
        if is_control(parent) {
            self.writable()?;
            return self.control_mkdir(caller, parent, name);
        }
        self.writable()?;
        if parent == ROOT_INO {
            let mode = folders::creation_mode(self.tables.as_ref(), mode, umask);
            return self.root_mkdir(caller, name.as_bytes(), mode).map(Outcome::from);
        }
        self.make_folder(caller, &self.inodes.find(parent)?, name.as_bytes(), mode, umask).map(Outcome::from)
    }

    fn unlink(&self, caller: &Caller, parent: u64, name: &OsStr) -> FsResult<Outcome<()>> {
        if is_control(parent) {
            return self.control_unlink(caller, parent, name);
        }
        if parent == ROOT_INO {
            return Err(FsError::NotPermitted);
        }
        self.writable()?;
        self.remove_item(caller, &self.inodes.find(parent)?, name.as_bytes()).map(Outcome::from)
    }

    fn rmdir(&self, caller: &Caller, parent: u64, name: &OsStr) -> FsResult<Outcome<()>> {
        if is_control(parent) {
            return Err(FsError::NotPermitted);
        }
        self.writable()?;
        if parent == ROOT_INO {
            return self.root_rmdir(caller, name.as_bytes()).map(Outcome::from);
        }
        self.remove_folder(caller, &self.inodes.find(parent)?, name.as_bytes()).map(Outcome::from)
    }

    fn symlink(&self, caller: &Caller, parent: u64, name: &OsStr, target: &[u8]) -> FsResult<Entry> {
        if is_control(parent) || parent == ROOT_INO {
            return Err(FsError::NotPermitted);
        }
        self.make_symlink(caller, &self.inodes.find(parent)?, name.as_bytes(), target)
    }

    fn rename(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> FsResult<Outcome<()>> {
        match (is_control(parent), is_control(new_parent)) {
            (true, true) => return self.control_rename(caller, (parent, name), (new_parent, new_name), flags),
            (false, false) => {}
            _ => return Err(FsError::CrossTable),
        }
        self.writable()?;
        if parent == ROOT_INO || new_parent == ROOT_INO {
            return Err(FsError::CrossTable);
        }
        let from = (&self.inodes.find(parent)?, name.as_bytes());
        let to = (&self.inodes.find(new_parent)?, new_name.as_bytes());
        self.rename_entry(caller, from, to, flags).map(Outcome::from)
    }

    fn link(&self, caller: &Caller, ino: u64, new_parent: u64, new_name: &OsStr) -> FsResult<Entry> {
        if is_control(ino) || is_control(new_parent) || new_parent == ROOT_INO {
            return Err(FsError::NotPermitted);
        }
        self.writable()?;
        self.link_item(caller, &self.inodes.find(ino)?, &self.inodes.find(new_parent)?, new_name.as_bytes())
    }

    fn open(&self, caller: &Caller, ino: u64, flags: i32) -> FsResult<Opened> {
        if is_control(ino) {
            return self.control_open(caller, ino, flags);
        }
        self.open_item(caller, &self.inodes.find(ino)?, flags)
    }

    fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
    ) -> FsResult<(Entry, Opened)> {
        if is_control(parent) {
            return self.control_create(caller, parent, name);
        }
        if parent == ROOT_INO {
            return Err(FsError::NotPermitted);
        }
        self.writable()?;
        self.create_item(caller, &self.inodes.find(parent)?, name.as_bytes(), (mode, umask), flags)
    }

    fn read(&self, _: &Caller, ino: u64, fh: u64, offset: u64, buffer: &mut Vec<u8>, size: u32) -> FsResult<()> {
        if is_control(ino) {
            return self.control_read(fh, offset, buffer, size);
        }
        self.read_item(fh, offset, buffer, size)
    }

    fn write(
        &self,
        _: &Caller,
        ino: u64,
        fh: u64,
        offset: u64,
        data: &[u8],
        from_cache: bool,
        kill_suid: bool,
    ) -> FsResult<Outcome<u32>> {
        if is_control(ino) {
            return self.control_write(fh, offset, data);
        }
        let written = self.write_item(fh, offset, data, from_cache)?;
        if kill_suid {
            self.kill_suid(&*self.inodes.find(ino)?)?;
        }
        Ok(written.into())
    }

    fn flush(&self, _: &Caller, ino: u64, fh: u64) -> FsResult<Outcome<()>> {
        if is_control(ino) { self.control_flush(fh) } else { Ok(().into()) }
    }

    fn release(&self, ino: u64, fh: u64) {
        if is_control(ino) {
            self.control_release(fh);
        } else {
            self.release_item(fh);
        }
    }

    fn fsync(&self, ino: u64, fh: u64, data_only: bool) -> FsResult<()> {
        if is_control(ino) {
            // What is not decided at the write is decided at the close, which can wait for a revocation.
            return Ok(());
        }
        self.sync_item(fh, data_only)
    }

    fn opendir(&self, caller: &Caller, ino: u64, _flags: i32) -> FsResult<Opened> {
        self.open_listing(caller, ino)
    }

    fn readdir(
        &self,
        caller: &Caller,
        ino: u64,
        fh: u64,
        offset: i64,
        plus: bool,
        emit: &mut Emit<'_>,
    ) -> FsResult<()> {
        self.list(caller, ino, fh, offset, plus, emit)
    }

    fn releasedir(&self, _ino: u64, fh: u64) {
        self.listings.remove(fh);
    }

    fn fsyncdir(&self, ino: u64, _fh: u64, _data_only: bool) -> FsResult<()> {
        if is_control(ino) { Ok(()) } else { self.sync_folder(&self.inodes.find(ino)?) }
    }

    fn statfs(&self, _ino: u64) -> FsResult<StatFs> {
        self.space()
    }

    fn setxattr(&self, caller: &Caller, ino: u64, name: &OsStr, value: &[u8], flags: i32) -> FsResult<Outcome<()>> {
        self.set_attribute(caller, ino, name, value, flags).map(Outcome::from)
    }

    fn getxattr(&self, caller: &Caller, ino: u64, name: &OsStr) -> FsResult<Vec<u8>> {
        self.attribute(caller, ino, name)
    }

    fn listxattr(&self, _caller: &Caller, ino: u64) -> FsResult<Vec<u8>> {
        self.attribute_names(ino)
    }

    fn removexattr(&self, caller: &Caller, ino: u64, name: &OsStr) -> FsResult<Outcome<()>> {
        self.remove_attribute(caller, ino, name).map(Outcome::from)
    }

    fn fallocate(&self, _ino: u64, fh: u64, offset: u64, length: u64, mode: i32) -> FsResult<()> {
        self.allocate(fh, offset, length, mode)
    }

    fn lseek(&self, ino: u64, fh: u64, offset: u64, whence: i32) -> FsResult<u64> {
        if is_control(ino) { Err(FsError::NotSupported) } else { self.seek(fh, offset, whence) }
    }

    fn revoked(&self, _id: u64) {
        self.revocation_done();
    }

    fn set_revoker(&self, revoker: Revoker) {
        // Called once, at the mount; a second one would change nothing.
        let _ = self.revoker.set(revoker);
    }

    fn shut_down(&self) {
        self.settle_all();
    }
}
