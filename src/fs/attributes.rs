//! Attributes: what stat(2) tells and chmod, chown, truncate and utimensat change.
//!
//! They are the backing file's, by Unix rights alone, except the size, which is the plaintext's. Symlinks, FIFOs and sockets
//! are regular files in the store; the sticky bit marks a file whose header has to be looked at for its kind, so that
//! stat of everything else stays one system call.

use std::ffi::OsStr;
use std::sync::Arc;

use super::FileSystem;
use super::api::{Attr, Caller, FsError, FsResult, Kind, SetAttr, SetTime, StatFs};
use super::inodes::{Backing, Body, Inode, Place};
use super::open_file::refuse_retired;
use super::roots::{folder_attr, perm};
use crate::store::{Dir, FileKind, Stat};
use crate::table::{Folder, Item, ItemKind, StoredName};
use crate::types::TableId;

/// The sticky bit, with which the table layer marks a file whose header has a kind to tell.
const MARKED: u32 = 0o1000;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

pub(super) fn kind_of_item(kind: ItemKind) -> Kind {
    match kind {
        ItemKind::Regular => Kind::File,
        ItemKind::Symlink => Kind::Symlink,
        ItemKind::Fifo => Kind::Fifo,
        ItemKind::Socket => Kind::Socket,
    }
}

impl FileSystem {
    /// What a backing entry is. The header's kind is taken unverified here, as the mode is: whoever reads the item's
    /// content finds out.
    pub(super) fn kind_of(folder: &Folder, on_disk: &OsStr, stat: &Stat) -> FsResult<Kind> {
        match stat.kind() {
            FileKind::Dir => Ok(Kind::Dir),
            FileKind::Other => Err(FsError::Corrupt),
            FileKind::File if stat.mode & MARKED == 0 => Ok(Kind::File),
            FileKind::File => Ok(Item::peek_kind(folder, on_disk).map_or(Kind::File, kind_of_item)),
        }
    }

    pub(super) fn attr_of(&self, inode: &Inode) -> FsResult<Attr> {
        let stat = match &inode.body {
            Body::Root => self.tables.stat_self()?,
            Body::Folder(folder) => folder.dir().stat_self()?,
            Body::Item(_) => Self::stat_item(inode)?,
        };
        Self::attr_from(inode, &stat)
    }

    /// The attributes of an inode, from the stat of what is behind it.
    pub(super) fn attr_from(inode: &Inode, stat: &Stat) -> FsResult<Attr> {
        let size = match (&inode.body, inode.open_item()) {
            (Body::Root | Body::Folder(_), _) => return Ok(folder_attr(inode.ino, stat)),
            (Body::Item(_), Some(item)) => item.size(),
            (Body::Item(_), None) => Self::whereabouts(inode)?.0.table().size_of(stat),
        };
        // Of a malformed length nothing is known; the open says what is wrong.
        Ok(item_attr(inode, stat, size.unwrap_or(0)))
    }

    /// The backing file's stat: by its name, or by the open item, which may have no name.
    fn stat_item(inode: &Inode) -> FsResult<Stat> {
        if let Some(item) = inode.open_item() {
            return Ok(item.backing().stat()?);
        }
        let (folder, name) = Self::whereabouts(inode)?;
        Self::stat_named(inode, &folder, &name)
    }

    /// # Errors
    /// `Stale` where the name means another file by now, or none: the kernel then looks it up again.
    pub(super) fn stat_named(inode: &Inode, folder: &Folder, name: &StoredName) -> FsResult<Stat> {
        match folder.dir().stat(name.on_disk()) {
            Ok(stat) if Backing::of(&stat) == inode.backing => Ok(stat),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(_) | Err(_) => Err(FsError::Stale),
        }
    }

    /// Whether the name under which a target was found still leads to the inode: to be asked after a call that the
    /// kernel does not keep apart from renames.
    pub(super) fn still_there(inode: &Inode, target: &Target) -> FsResult<()> {
        match target {
            Target::Named(folder, name) => Self::stat_named(inode, folder, name).map(|_| ()),
            Target::Folder(_) | Target::Open(_) => Ok(()),
        }
    }

    /// The folder and the stored name that lead to an inode.
    pub(super) fn whereabouts(inode: &Inode) -> FsResult<(Arc<Folder>, Arc<StoredName>)> {
        let Place { parent, stored, .. } = inode.place().ok_or(FsError::Stale)?;
        Ok((Arc::clone(parent.folder()?), stored.ok_or(FsError::IsDir)?))
    }

    pub(super) fn change_attributes(&self, caller: &Caller, inode: &Arc<Inode>, change: &SetAttr) -> FsResult<()> {
        let done = self.try_change_attributes(caller, inode, change);
        // Folders alone hand anything down, and a folder's inode is never retired.
        inode.known.owner_or_mode_changed();
        done
    }

    /// What was known of the extended attributes of a backing file is not known any more. To be called after every change
    /// of them, before it is answered.
    pub(super) fn attributes_changed(&self, inode: &Inode) {
        inode.known.attributes_changed();
        // By an open file of a retired inode, what has taken its place is changed.
        if inode.is_retired()
            && let Some(current) = self.inodes.find_backing(inode.backing)
        {
            current.known.attributes_changed();
        }
    }

    fn try_change_attributes(&self, caller: &Caller, inode: &Arc<Inode>, change: &SetAttr) -> FsResult<()> {
        if let Some(size) = change.size {
            self.change_size(caller, inode, size, change.fh)?;
        }
        let target = self.target(inode)?;
        if change.uid.is_some() || change.gid.is_some() {
            target.chown(change.uid, change.gid)?;
        }
        if let Some(mode) = change.mode {
            target.chmod(Self::mode_for(inode, mode))?;
        } else if change.kill_suid {
            self.kill_suid(inode)?;
        }
        let time = |time: Option<SetTime>| match time {
            None => crate::store::SetTime::Keep,
            Some(SetTime::Now) => crate::store::SetTime::Now,
            Some(SetTime::At(seconds, nanos)) => crate::store::SetTime::At(seconds, nanos),
        };
        if change.atime.is_some() || change.mtime.is_some() {
            target.utimens(time(change.atime), time(change.mtime))?;
        }
        Ok(())
    }

    fn mode_for(inode: &Inode, mode: u32) -> u32 {
        match inode.kind {
            Kind::File | Kind::Dir => mode & 0o7777,
            Kind::Symlink | Kind::Fifo | Kind::Socket => (mode & 0o777) | MARKED,
        }
    }

    fn change_size(&self, caller: &Caller, inode: &Arc<Inode>, size: u64, fh: Option<u64>) -> FsResult<()> {
        if let Some(fh) = fh {
            let handle = self.handles.find(fh)?;
            let key = self.check_write(&handle)?;
            refuse_retired(inode)?;
            return handle.item.truncate(key, size).map_err(|error| self.report(inode, error));
        }
        if inode.is_retired() {
            return Err(FsError::Stale);
        }
        let (key, item) = self.item_to_write(caller, inode)?;
        item.truncate(&key, size).map_err(|error| self.report(inode, error))
    }

    /// Clears set-user-id, and set-group-id of what its group may execute, after a write or a change of owner.
    /// True: there was something to clear.
    pub(super) fn kill_suid(&self, inode: &Inode) -> FsResult<bool> {
        if inode.kind != Kind::File {
            return Ok(false);
        }
        let target = self.target(inode)?;
        let mode = target.stat()?.permissions();
        let mut kept = mode & !SET_UID;
        if mode & GROUP_EXEC != 0 {
            kept &= !SET_GID;
        }
        if kept == mode {
            return Ok(false);
        }
        target.chmod(kept)?;
        Ok(true)
    }

    /// What chmod and its like are to act on.
    pub(super) fn target(&self, inode: &Inode) -> FsResult<Target> {
        match &inode.body {
            Body::Root => Ok(Target::Folder(Arc::clone(&self.tables))),
            Body::Folder(folder) => Ok(Target::Folder(Arc::clone(folder.dir()))),
            Body::Item(_) => {
                if let Some(item) = inode.open_item() {
                    return Ok(Target::Open(item));
                }
                let (folder, name) = Self::whereabouts(inode)?;
                Ok(Target::Named(folder, name))
            }
        }
    }

    pub(super) fn space(&self) -> FsResult<StatFs> {
        let found = self.tables.statvfs()?;
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(StatFs {
            blocks: found.blocks,
            bfree: found.blocks_free,
            bavail: found.blocks_available,
            files: found.files,
            ffree: found.files_free,
            bsize: small(found.block_size),
            namelen: 255,
            frsize: small(found.fragment_size),
        })
    }

    /// What is at a path inside a table: of a folder, it and its attributes. Found without inodes: a look from the control
    /// tree moves none of those that the kernel knows by a name of its own.
    pub(super) fn stat_of_path(&self, table: TableId, path: &[u8]) -> FsResult<(Kind, Stat)> {
        let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(end) => (path.get(..end).unwrap_or_default(), path.get(end + 1..).unwrap_or_default()),
            None => (&[][..], path),
        };
        let folder = self.folder_at(table, above)?;
        if name.is_empty() {
            return Ok((Kind::Dir, folder.dir().stat_self()?));
        }
        let stored = folder.seal_name(name)?;
        let stat = folder.dir().stat(stored.on_disk())?;
        match Self::kind_of(&folder, stored.on_disk(), &stat)? {
            Kind::Dir => Ok((Kind::Dir, folder.open_folder(&stored)?.dir().stat_self()?)),
            kind @ (Kind::File | Kind::Symlink | Kind::Fifo | Kind::Socket) => Ok((kind, stat)),
        }
    }
}

/// Attributes of an item from its backing file.
fn item_attr(inode: &Inode, stat: &Stat, size: u64) -> Attr {
    let perm = match inode.kind {
        Kind::File | Kind::Dir => perm(stat),
        Kind::Symlink => 0o777,
        Kind::Fifo | Kind::Socket => perm(stat) & 0o777,
    };
    Attr {
        ino: inode.ino,
        size,
        blocks: stat.blocks,
        atime: stat.atime,
        mtime: stat.mtime,
        ctime: stat.ctime,
        kind: inode.kind,
        perm,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: 0,
        blksize: 4096,
    }
}

/// A backing file or directory as chmod, chown, utimensat and the xattr calls take it.
#[derive(Debug)]
pub(super) enum Target {
    Folder(Arc<dyn Dir>),
    Open(Arc<Item>),
    Named(Arc<Folder>, Arc<StoredName>),
}

impl Target {
    pub(super) fn stat(&self) -> std::io::Result<Stat> {
        match self {
            Self::Folder(dir) => dir.stat_self(),
            Self::Open(item) => item.backing().stat(),
            Self::Named(folder, name) => folder.dir().stat(name.on_disk()),
        }
    }

    pub(super) fn chmod(&self, mode: u32) -> std::io::Result<()> {
        match self {
            Self::Folder(dir) => dir.chmod(None, mode),
            Self::Open(item) => item.backing().chmod(mode),
            Self::Named(folder, name) => folder.dir().chmod(Some(name.on_disk()), mode),
        }
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> std::io::Result<()> {
        match self {
            Self::Folder(dir) => dir.chown(None, uid, gid),
            Self::Open(item) => item.backing().chown(uid, gid),
            Self::Named(folder, name) => folder.dir().chown(Some(name.on_disk()), uid, gid),
        }
    }

    fn utimens(&self, atime: crate::store::SetTime, mtime: crate::store::SetTime) -> FsResult<()> {
        match self {
            Self::Folder(dir) => dir.utimens(None, atime, mtime)?,
            Self::Open(item) => item.set_times(atime, mtime)?,
            Self::Named(folder, name) => folder.dir().utimens(Some(name.on_disk()), atime, mtime)?,
        }
        Ok(())
    }
}
