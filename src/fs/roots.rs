//! The root: its folders are tables, made with `mkdir` and removed with `rmdir`.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::api::{Attr, Caller, Entry, FsError, FsResult, Kind};
use super::control::Node;
use super::inodes::{Backing, Body, Found, Inode, Place, ROOT_INO};
use super::subject::Asker;
use super::{CONTROL_NAME, FileSystem, TTL};
use crate::kms::{ItemAsked, Kms, KmsError, NamesMode, Table, TableSpec};
use crate::store::Stat;
use crate::table::{Folder, Names};
use crate::types::{Action, Encryption, TableId};

impl FileSystem {
    pub(super) fn root_lookup(&self, caller: &Caller, name: &[u8]) -> FsResult<Entry> {
        if name == CONTROL_NAME {
            return self.control_entry(caller, &Node::Top);
        }
        let name = std::str::from_utf8(name).map_err(|_| FsError::NotFound)?;
        let (inode, stat) = self.table_inode(&self.kms.table_named(name)?)?;
        self.entry(&inode, &stat)
    }

    /// The inode of a table's folder, one lookup more, and the stat of the folder.
    pub(super) fn table_inode(&self, table: &Arc<Table>) -> FsResult<(Arc<Inode>, Stat)> {
        let folder = self.table_folder(table)?;
        let stat = folder.dir().stat_self()?;
        let place = Place { parent: self.inodes.find(ROOT_INO)?, name: table.name().into_bytes(), stored: None };
        let found = Found { backing: Backing::of(&stat), kind: Kind::Dir, table: Arc::clone(table), place };
        Ok((self.inodes.ensure(found, || Ok(Body::Folder(folder)))?, stat))
    }

    /// A table's own folder, opened at first use.
    pub(super) fn table_folder(&self, table: &Arc<Table>) -> FsResult<Arc<Folder>> {
        if let Some(folder) = self.folders.read().unwrap_or_else(PoisonError::into_inner).get(&table.id()) {
            return Ok(Arc::clone(folder));
        }
        let shared = self.shared_table(table.id(), table.names_key())?;
        let (dir, path) = self.table_dir(table.id())?;
        let root = self.inodes.find(ROOT_INO)?;
        let folder = Folder::open_root(&shared, dir, path)
            .map_err(|error| self.report_in(&root, table.name().as_bytes(), error))?;
        let mut folders = self.folders.write().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(folders.entry(table.id()).or_insert(folder)))
    }

    fn shared_table(&self, id: TableId, key: &crate::crypto::Key512) -> FsResult<Arc<crate::table::Table>> {
        let key = crate::crypto::Key512::from_slice(key.expose()).ok_or(FsError::Corrupt)?;
        let names = Names::new(id, key)?;
        let journal = Arc::clone(&self.journal);
        Ok(crate::table::Table::new(names, journal, self.mounts.clone(), self.options.read_only))
    }

    fn table_dir(&self, id: TableId) -> FsResult<(Arc<dyn crate::store::Dir>, PathBuf)> {
        let name = id.to_string();
        let dir = self.tables.open_dir(OsStr::new(&name))?;
        Ok((dir, PathBuf::from("tables").join(name)))
    }

    /// `mkdir` at the root: a table with a key of its own.
    pub(super) fn root_mkdir(&self, caller: &Caller, name: &[u8], mode: u32) -> FsResult<Entry> {
        let name = std::str::from_utf8(name).map_err(|_| FsError::Invalid)?.to_owned();
        let spec = TableSpec { name, encryption: Encryption::Customer, key: None, users: Vec::new() };
        let table = self.make_table(&Asker::of(caller, true), &spec, mode)?;
        let (inode, stat) = self.table_inode(&table)?;
        self.entry(&inode, &stat)
    }

    /// Makes a table and its folder, which belongs to who made it.
    pub(super) fn make_table(&self, who: &Asker, spec: &TableSpec, mode: u32) -> Result<Arc<Table>, KmsError> {
        if self.options.read_only {
            return Err(KmsError::ReadOnly);
        }
        self.kms.create_table(&who.subject(), spec, |id, names_key| {
            let made = || -> FsResult<()> {
                let name = id.to_string();
                self.tables.create_dir(OsStr::new(&name), 0o700)?;
                let (dir, path) = self.table_dir(id)?;
                let folder = Folder::create_root(&self.shared_table(id, names_key)?, dir, path)?;
                folder.dir().chown(None, Some(who.uid()), Some(who.principal().gid))?;
                folder.dir().chmod(None, mode & 0o7777)?;
                folder.sync()?;
                Ok(self.tables.sync()?)
            };
            made().map_err(|error| KmsError::Invalid(format!("the table's folder could not be made: {error}")))
        })
    }

    /// `rmdir` of an empty table: the table goes, its key stays.
    pub(super) fn root_rmdir(&self, caller: &Caller, name: &[u8]) -> FsResult<()> {
        if name == CONTROL_NAME {
            return Err(FsError::NotPermitted);
        }
        let name = std::str::from_utf8(name).map_err(|_| FsError::NotFound)?;
        let table = self.kms.table_named(name)?;
        let folder = self.table_folder(&table)?;
        let listing = folder.list()?;
        if !listing.entries.is_empty() || !listing.damaged.is_empty() {
            return Err(FsError::NotEmpty);
        }
        let asker = Asker::of(caller, true);
        self.may_remove_table(&asker, &table)?;
        let stored = table.id().to_string();
        let backing = Backing::of(&folder.dir().stat_self()?);
        self.kms.delete_table(&asker.subject(), &table, || {
            crate::table::remove_root(self.tables.as_ref(), OsStr::new(&stored))
                .map_err(|error| KmsError::Invalid(format!("the table's folder could not be removed: {error}")))
        })?;
        self.folders.write().unwrap_or_else(PoisonError::into_inner).remove(&table.id());
        if let Some(inode) = self.inodes.find_backing(backing) {
            self.inodes.detach(&inode);
        }
        Ok(())
    }

    /// An empty table holds nothing of anybody's: its key's administrators may remove it, and its users.
    fn may_remove_table(&self, who: &Asker, table: &Arc<Table>) -> FsResult<()> {
        if self.kms.would_allow(&who.subject(), table.key(), Action::PutKeyPolicy) {
            return Ok(());
        }
        let here = Vec::new;
        self.may_remove(who, &ItemAsked { table, path: &here })
    }

    /// Whether items may be removed: kms:Encrypt, except where the key is destroyed, when Unix alone decides.
    pub(super) fn may_remove(&self, who: &Asker, asked: &ItemAsked<'_>) -> FsResult<()> {
        if Kms::is_destroyed(asked.table) {
            return Ok(());
        }
        match self.kms.decide_again(&who.subject(), asked, Action::Encrypt) {
            Ok(_) | Err(KmsError::Destroyed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The entry of an inode that a lookup has counted already, from the stat by which it was found; uncounted again
    /// where its attributes cannot be had.
    pub(super) fn entry(&self, inode: &Arc<Inode>, stat: &Stat) -> FsResult<Entry> {
        match Self::attr_from(inode, stat) {
            Ok(attr) => {
                // Of one that has several names, the kernel says by each lookup which one a call comes by.
                let several = inode.kind != Kind::Dir && attr.nlink > 1;
                // Where names are sealed, every lookup is decided.
                let sealed = inode.table().is_ok_and(|table| table.settings().names == NamesMode::Sealed);
                let ttl = if several || sealed { Duration::ZERO } else { TTL };
                Ok(Entry { attr, generation: inode.generation, ttl })
            }
            Err(error) => {
                self.inodes.forget(inode.ino, 1);
                Err(error)
            }
        }
    }
}

/// Attributes of a folder from its backing directory.
pub(super) fn folder_attr(ino: u64, stat: &Stat) -> Attr {
    Attr {
        ino,
        size: 4096,
        blocks: 8,
        atime: stat.atime,
        mtime: stat.mtime,
        ctime: stat.ctime,
        kind: Kind::Dir,
        perm: perm(stat),
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: 0,
        blksize: 4096,
    }
}

/// The low twelve bits of a mode.
pub(super) fn perm(stat: &Stat) -> u16 {
    u16::try_from(stat.mode & 0o7777).unwrap_or(0)
}
