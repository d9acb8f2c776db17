//! Folders inside tables: looked into, made, removed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::api::{Caller, Entry, FsError, FsResult, Kind};
use super::attributes::kind_of_item;
use super::inodes::{Backing, Body, Found, Inode, ItemBody, Place};
use super::known::Heritage;
use super::subject::Asker;
use super::xattrs::DEFAULT_ACL;
use super::{FileSystem, TTL};
use crate::kms::{ItemAsked, KmsError, NamesMode};
use crate::store::{Dir, Stat};
use crate::table::{Item, StoredName, TableError};
use crate::types::Action;

const SET_GID: u32 = 0o2000;

impl FileSystem {
    pub(super) fn folder_lookup(&self, caller: &Caller, parent: &Arc<Inode>, name: &[u8]) -> FsResult<Entry> {
        parent.used.store(true, std::sync::atomic::Ordering::Relaxed);
        let table = parent.table()?;
        if table.settings().names == NamesMode::Sealed {
            // Before anything tells whether there is such a name.
            let path = || parent.path_of(name);
            let who = self.asker_for(caller, table);
            match self.kms.decide_again(&who.subject(), &ItemAsked { table, path: &path }, Action::Decrypt) {
                // What a destroyed key has left is removed by Unix rights alone.
                Ok(_) | Err(KmsError::Destroyed) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let folder = parent.folder()?;
        let stored = folder.seal_name(name)?;
        let stat = match folder.dir().stat(stored.on_disk()) {
            // A name appears in a folder by calls that the kernel makes, and it knows then.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && Self::is_open_to_all(parent)? => {
                return Ok(Entry::absent(TTL));
            }
            stat => stat?,
        };
        let inode = self.inode_of(parent, name, &stored, &stat)?;
        self.entry(&inode, &stat)
    }

    /// Whether everybody whom Unix lets is told the same of a folder's names.
    pub(super) fn is_open_to_all(folder: &Inode) -> FsResult<bool> {
        Ok(folder.table()?.record().settings.names == NamesMode::Open)
    }

    /// An entry whose name in the backing directory is known from a listing.
    pub(super) fn entry_on_disk(&self, parent: &Arc<Inode>, name: &[u8], on_disk: &OsStr) -> FsResult<Entry> {
        let stored = parent.folder()?.listed_name(name, on_disk)?;
        let (inode, stat) = self.inode_named(parent, name, &stored)?;
        self.entry(&inode, &stat)
    }

    /// The inode of a name, one lookup more, and the stat of what is behind it.
    pub(super) fn inode_named(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
        stored: &StoredName,
    ) -> FsResult<(Arc<Inode>, Stat)> {
        let stat = parent.folder()?.dir().stat(stored.on_disk())?;
        Ok((self.inode_of(parent, name, stored, &stat)?, stat))
    }

    fn inode_of(&self, parent: &Arc<Inode>, name: &[u8], stored: &StoredName, stat: &Stat) -> FsResult<Arc<Inode>> {
        let folder = parent.folder()?;
        let kind = match Self::kind_of(folder, stored.on_disk(), stat)? {
            told @ (Kind::Fifo | Kind::Socket) => {
                self.verified_kind(told, (parent, name), stored, Backing::of(stat))?
            }
            told @ (Kind::File | Kind::Dir | Kind::Symlink) => told,
        };
        let found = Self::found(parent, name, kind, Backing::of(stat), stored)?;
        if kind == Kind::Dir {
            self.spare_folders();
        }
        self.inodes.ensure(found, || match kind {
            Kind::Dir => match folder.open_folder(stored) {
                Err(TableError::Unfinished) => Err(self.set_aside_unfinished(parent, name, (folder, stored))),
                opened => opened.map(Body::Folder).map_err(|error| self.report_in(parent, name, error)),
            },
            Kind::File | Kind::Symlink | Kind::Fifo | Kind::Socket => Ok(Body::Item(ItemBody::default())),
        })
    }

    /// FIFOs and sockets are the kernel's own affair, nobody opens them here, and what is written into one is for those
    /// whom Unix lets read it. So the header is verified, and bound to the name, before either is shown. What does not
    /// verify is shown as a regular item, whose open says what is wrong to those who may know.
    fn verified_kind(
        &self,
        told: Kind,
        at: (&Arc<Inode>, &[u8]),
        stored: &StoredName,
        backing: Backing,
    ) -> FsResult<Kind> {
        let (parent, name) = at;
        let Some(key) = parent.table()?.header_key() else { return Ok(Kind::File) };
        self.count_open()?;
        let item = self.items.shared(backing, || {
            Item::open(parent.folder()?, stored).map_err(|error| self.report_in(parent, name, error))
        });
        let verified = item.and_then(|item| {
            let checked = item.verify(&key).and_then(|_| item.check_name(stored)).and_then(|()| item.kind());
            checked.map_err(|error| self.report_in(parent, name, error))
        });
        match verified {
            Ok(kind) if kind_of_item(kind) == told => Ok(told),
            Ok(_) | Err(FsError::Tampered | FsError::Corrupt | FsError::NoKey) => Ok(Kind::File),
            Err(error) => Err(error),
        }
    }

    pub(super) fn found(
        parent: &Arc<Inode>,
        name: &[u8],
        kind: Kind,
        backing: Backing,
        stored: &StoredName,
    ) -> FsResult<Found> {
        let table = Arc::clone(parent.table()?);
        Ok(Found { backing, kind, table, place: place_at(parent, name, stored) })
    }

    /// Who owns what a caller makes in a folder, and its mode: of the folder's group where that is set-group-id.
    pub(super) fn ownership(caller: &Caller, parent: &Inode, mode: u32, umask: u32) -> FsResult<Ownership> {
        let heritage = Self::heritage(parent)?;
        let gid = heritage.gid.unwrap_or(caller.gid);
        let mode = limited_mode(heritage.limit, mode, umask);
        Ok(Ownership { owner: (caller.uid, gid), mode, heritage })
    }

    fn heritage(parent: &Inode) -> FsResult<Heritage> {
        if let Some(heritage) = parent.known.heritage() {
            return Ok(heritage);
        }
        let look = parent.known.look();
        let dir = parent.folder()?.dir();
        let stat = dir.stat_self()?;
        let gid = (stat.mode & SET_GID != 0).then_some(stat.gid);
        let acl = dir.getxattr(None, OsStr::from_bytes(DEFAULT_ACL));
        let lasting = acl.as_ref().map_or_else(is_no_acl, |_| true);
        let heritage = Heritage { gid, limit: acl.ok().as_deref().and_then(acl_limit) };
        if lasting {
            parent.known.found_heritage(look, heritage);
        }
        Ok(heritage)
    }

    pub(super) fn make_folder(
        &self,
        caller: &Caller,
        parent: &Arc<Inode>,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> FsResult<Entry> {
        let folder = parent.folder()?;
        self.may_create(&self.asker_for(caller, parent.table()?), parent, name)?;
        let stored = folder.seal_name(name)?;
        let owned = Self::ownership(caller, parent, mode, umask)?;
        let mode = if owned.heritage.gid.is_some() { owned.mode | SET_GID } else { owned.mode };
        let made = folder.create_folder(&stored, mode, Some(owned.owner))?;
        self.spare_folders();
        let stat = made.dir().stat_self()?;
        let found = Self::found(parent, name, Kind::Dir, Backing::of(&stat), &stored)?;
        let inode = self.inodes.ensure(found, || Ok(Body::Folder(made)))?;
        self.entry(&inode, &stat)
    }

    /// Has the kernel forget folders that nobody has looked into for long, before the daemon has no file left to open.
    fn spare_folders(&self) {
        let cold = self.inodes.cold_folders(self.items.folders_most());
        if !cold.is_empty() {
            self.forget_names_later(&cold);
        }
    }

    /// kms:GenerateDataKey for a new name.
    pub(super) fn may_create(&self, who: &Asker, parent: &Arc<Inode>, name: &[u8]) -> FsResult<()> {
        let path = || parent.path_of(name);
        let asked = ItemAsked { table: parent.table()?, path: &path };
        self.kms.decide_again(&who.subject(), &asked, Action::GenerateDataKey)?;
        Ok(())
    }

    pub(super) fn remove_folder(&self, caller: &Caller, parent: &Arc<Inode>, name: &[u8]) -> FsResult<()> {
        let folder = parent.folder()?;
        let path = || parent.path_of(name);
        let asked = ItemAsked { table: parent.table()?, path: &path };
        self.may_remove(&self.asker_for(caller, parent.table()?), &asked)?;
        let stored = folder.seal_name(name)?;
        let backing = Backing::of(&folder.dir().stat(stored.on_disk())?);
        folder.remove_folder(&stored)?;
        if let Some(inode) = self.inodes.find_backing(backing) {
            self.inodes.detach(&inode);
        }
        Ok(())
    }

    pub(super) fn sync_folder(&self, inode: &Arc<Inode>) -> FsResult<()> {
        match &inode.body {
            Body::Root => Ok(self.tables.sync()?),
            Body::Folder(folder) => Ok(folder.sync()?),
            Body::Item(_) => Err(FsError::NotDir),
        }
    }
}

/// A name in a folder of a table.
pub(super) fn place_at(parent: &Arc<Inode>, name: &[u8], stored: &StoredName) -> Place {
    Place { parent: Arc::clone(parent), name: name.to_vec(), stored: Some(Arc::new(stored.clone())) }
}

/// Whose a new file or folder is.
#[derive(Debug)]
pub(super) struct Ownership {
    pub(super) owner: (u32, u32),
    pub(super) mode: u32,
    pub(super) heritage: Heritage,
}

/// The mode of what is made in `dir`: where that has a default ACL, it limits the mode, and the umask does not (acl(5),
/// 'Object creation and default ACLs'). The store's file system lets the ACL be inherited; a mode that is set afterwards
/// must not widen it.
pub(super) fn creation_mode(dir: &dyn Dir, mode: u32, umask: u32) -> u32 {
    let acl = dir.getxattr(None, OsStr::from_bytes(DEFAULT_ACL)).ok();
    limited_mode(acl.as_deref().and_then(acl_limit), mode, umask)
}

fn limited_mode(limit: Option<u32>, mode: u32, umask: u32) -> u32 {
    mode & (limit.unwrap_or(!umask) | 0o7000) & 0o7777
}

/// Whether the host says that there is no ACL, or can be none, rather than that it cannot tell.
fn is_no_acl(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP))
}

/// What an ACL, as the kernel hands it out, lets owner, group class and others have. Source: `posix_acl_create_masq`
/// and `struct posix_acl_xattr_header` of Linux.
fn acl_limit(acl: &[u8]) -> Option<u32> {
    const VERSION: u32 = 2;
    const OWNER: u16 = 0x01;
    const GROUP: u16 = 0x04;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    let (version, entries) = acl.split_first_chunk()?;
    if u32::from_le_bytes(*version) != VERSION {
        return None;
    }
    let granted = |wanted: u16| {
        entries.chunks_exact(8).find_map(|entry| {
            let (tag, rest) = entry.split_first_chunk()?;
            let bits = u32::from(u16::from_le_bytes(*rest.first_chunk()?)) & 0o7;
            (u16::from_le_bytes(*tag) == wanted).then_some(bits)
        })
    };
    Some(granted(OWNER)? << 6 | granted(MASK).or_else(|| granted(GROUP))? << 3 | granted(OTHER)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
        let entry = |(tag, bits): &(u16, u16)| [tag.to_le_bytes(), bits.to_le_bytes(), [0xff; 2], [0xff; 2]].concat();
        [2_u32.to_le_bytes().to_vec(), entries.iter().flat_map(entry).collect()].concat()
    }

    #[test]
    fn a_default_acl_limits_by_its_mask_where_it_has_one() {
        assert_eq!(acl_limit(&acl(&[(1, 7), (2, 7), (4, 5), (0x10, 4), (0x20, 1)])), Some(0o741));
        assert_eq!(acl_limit(&acl(&[(1, 6), (4, 5), (0x20, 0)])), Some(0o650));
        assert_eq!(acl_limit(&acl(&[(1, 6)])), None);
        assert_eq!(acl_limit(&[2, 0, 0]), None);
        assert_eq!(acl_limit(&[1, 0, 0, 0]), None);
    }
}
