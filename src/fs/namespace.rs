//! Names of items: made, removed, renamed, linked.
//!
//! Where decisions look at the item, a name is a right: what moves must be readable under the old name and writable under the
//! new, else `mv secret/x public/` would launder a right; a folder does not move then (EXDEV), so that `mv` copies item by item.

use std::sync::Arc;

use super::FileSystem;
use super::api::{Caller, Entry, FsError, FsResult, Kind, Opened};
use super::attributes::kind_of_item;
use super::folders::place_at;
use super::inodes::{Backing, Body, Inode, ItemBody, Place};
use super::open_file::Wanted;
use super::subject::Asker;
use super::xattrs::CAPABILITY;
use crate::kms::{ItemAsked, Kms, KmsError, SealKey};
use crate::store::{RenameFlags, Stat};
use crate::table::{self, Item, ItemKind, Moved, StoredName};
use crate::types::Action;

const TYPE_MASK: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const FIFO: u32 = 0o010_000;
const SOCKET: u32 = 0o140_000;

/// A name in a folder, as a caller gave it.
type Named<'a> = (&'a Arc<Inode>, &'a [u8]);

impl FileSystem {
    pub(super) fn create_item(
        &self,
        caller: &Caller,
        parent: &Arc<Inode>,
        name: &[u8],
        (mode, umask): (u32, u32),
        flags: i32,
    ) -> FsResult<(Entry, Opened)> {
        let wanted = Wanted::of(flags);
        let opener = self.asker_for(caller, parent.table()?);
        let creation = self.decide_creation(&opener, parent, name, wanted)?;
        let (entry, inode, item) =
            self.make_item(caller, parent, name, (mode, umask), ItemKind::Regular, &[], creation.seal_key())?;
        let opened = self.open_created(opener, &inode, item, creation, wanted);
        let opened = opened.inspect_err(|_| drop(self.inodes.forget(entry.attr.ino, 1)))?;
        Ok((entry, opened))
    }

    /// Makes an item and its inode, which has one lookup: the one of the entry.
    fn make_item(
        &self,
        caller: &Caller,
        parent: &Arc<Inode>,
        name: &[u8],
        (mode, umask): (u32, u32),
        kind: ItemKind,
        content: &[u8],
        key: &SealKey,
    ) -> FsResult<(Entry, Arc<Inode>, Arc<Item>)> {
        let folder = parent.folder()?;
        let stored = folder.seal_name(name)?;
        let owned = Self::ownership(caller, parent, mode, umask)?;
        self.count_open()?;
        let creating = folder.table().creating();
        // What the daemon makes is its own already, but for folders that hand down their group.
        let given = (owned.heritage.gid.is_some() || owned.owner != self.own_ids).then_some(owned.owner);
        let item = Item::create(folder, &stored, owned.mode, given, kind, content, key)?;
        let stat = Self::owned_by(&item, owned.owner).inspect_err(|_| drop(folder.unlink(&stored)))?;
        let backing = Backing::of(&stat);
        self.items.add(backing, &item);
        let body = ItemBody::of(Arc::clone(&item));
        let found = Self::found(parent, name, kind_of_item(kind), backing, &stored)?;
        let inode = self.inodes.ensure(found, || Ok(Body::Item(body)))?;
        drop(creating);
        // At the first write the kernel wants to know.
        inode.known.found_none(inode.known.look(), CAPABILITY);
        inode.settle_at(place_at(parent, name, &stored));
        self.keep_warm(&inode);
        Ok((self.entry(&inode, &stat)?, inode, item))
    }

    /// The attributes of a new item, which is made its owner's if it is not: some file systems take the group from the
    /// folder, whatever its mode.
    fn owned_by(item: &Item, owner: (u32, u32)) -> FsResult<Stat> {
        let stat = item.backing().stat()?;
        if (stat.uid, stat.gid) == owner {
            return Ok(stat);
        }
        item.backing().chown(Some(owner.0), Some(owner.1))?;
        Ok(item.backing().stat()?)
    }

    pub(super) fn make_node(
        &self,
        caller: &Caller,
        parent: &Arc<Inode>,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> FsResult<Entry> {
        self.writable()?;
        let kind = match mode & TYPE_MASK {
            REGULAR | 0 => ItemKind::Regular,
            FIFO => ItemKind::Fifo,
            SOCKET => ItemKind::Socket,
            _ => return Err(FsError::NotPermitted),
        };
        self.make_special(caller, parent, name, (mode, umask), kind, &[])
    }

    pub(super) fn make_symlink(
        &self,
        caller: &Caller,
        parent: &Arc<Inode>,
        name: &[u8],
        target: &[u8],
    ) -> FsResult<Entry> {
        self.writable()?;
        self.make_special(caller, parent, name, (0o777, 0), ItemKind::Symlink, target)
    }

    fn make_special(
        &self,
        caller: &Caller,
        parent: &Arc<Inode>,
        name: &[u8],
        modes: (u32, u32),
        kind: ItemKind,
        content: &[u8],
    ) -> FsResult<Entry> {
        let opener = self.asker_for(caller, parent.table()?);
        let creation = self.decide_creation(&opener, parent, name, Wanted::creation())?;
        Ok(self.make_item(caller, parent, name, modes, kind, content, creation.seal_key())?.0)
    }

    pub(super) fn read_symlink(&self, caller: &Caller, inode: &Arc<Inode>) -> FsResult<Vec<u8>> {
        if inode.kind != Kind::Symlink {
            return Err(FsError::Invalid);
        }
        let _using = self.using(inode);
        let (key, item) = self.item_to_read(caller, inode)?;
        let size = item.size().and_then(|size| usize::try_from(size).ok()).ok_or(FsError::Tampered)?;
        let mut target = vec![0; size.min(table::INLINE_MAX)];
        let read = item.read(&key, &mut target, 0).map_err(|error| self.report(inode, error))?;
        target.truncate(read);
        Ok(target)
    }

    /// kms:Encrypt for a name, as a capability where the table's keys are there; none for a destroyed key, whose items
    /// Unix alone protects from removal.
    fn right_to_remove(&self, who: &Asker, named: Named<'_>) -> FsResult<Option<SealKey>> {
        let path = || named.0.path_of(named.1);
        let asked = ItemAsked { table: named.0.table()?, path: &path };
        if Kms::is_destroyed(asked.table) {
            return Ok(None);
        }
        match self.kms.seal_key(&who.subject(), &asked, Action::Encrypt) {
            Ok((key, _)) => Ok(Some(key)),
            Err(KmsError::Destroyed | KmsError::Tampered) => {
                self.may_remove(who, &asked)?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn remove_item(&self, caller: &Caller, parent: &Arc<Inode>, name: &[u8]) -> FsResult<()> {
        let folder = parent.folder()?;
        let who = self.asker_for(caller, parent.table()?);
        let key = self.right_to_remove(&who, (parent, name))?;
        let stored = folder.seal_name(name)?;
        let stat = folder.dir().stat(stored.on_disk())?;
        let backing = Backing::of(&stat);
        let inode = self.inodes.find_backing(backing);
        if stat.nlink > 1 {
            self.remove_one_link(parent, name, (&stored, backing), inode.as_deref(), key.as_ref())
        } else {
            folder.unlink(&stored)?;
            if let Some(inode) = inode {
                self.gone(&inode);
            }
            Ok(())
        }
    }

    /// The last name is gone: whoever has the item open goes on, and its number is free.
    fn gone(&self, inode: &Arc<Inode>) {
        self.inodes.detach(inode);
        self.drop_unlinked(inode);
    }

    /// One of several names goes: what waits in the journal is put in place first, and the header is told.
    fn remove_one_link(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
        (stored, backing): (&StoredName, Backing),
        inode: Option<&Inode>,
        key: Option<&SealKey>,
    ) -> FsResult<()> {
        let folder = parent.folder()?;
        let item = self.items.shared(backing, || Ok(Item::open(folder, stored)?));
        if let (Ok(item), Some(key)) = (&item, key) {
            // An item that does not verify may be unlinked all the same.
            if item.verify(key).is_ok() {
                item.known_as(folder, stored);
            }
            item.settle()?;
        }
        folder.unlink(stored)?;
        if let Ok(item) = item {
            item.unlinked(folder, stored);
            item.forget_name();
        }
        if let Some(inode) = inode
            && inode.is_at(parent, name)
        {
            // Its other names are known to the store alone; the next lookup of one tells.
            inode.lose_place();
        }
        Ok(())
    }

    pub(super) fn link_item(
        &self,
        caller: &Caller,
        inode: &Arc<Inode>,
        new_parent: &Arc<Inode>,
        new_name: &[u8],
    ) -> FsResult<Entry> {
        let table = new_parent.table()?;
        if inode.table()?.id() != table.id() {
            return Err(FsError::CrossTable);
        }
        let at = inode.place().ok_or(FsError::Stale)?;
        let who = self.asker_for(caller, table);
        self.may_move(&who, (&at.parent, &at.name), (new_parent, new_name))?;
        let key = self.right_to_remove(&who, (new_parent, new_name))?.ok_or(FsError::NoKey)?;
        let item = self.load_item(inode)?;
        self.verify(inode, &at, &item, &key)?;
        let (from, to) = (at.parent.folder()?, new_parent.folder()?);
        let from_name = at.stored.as_ref().ok_or(FsError::IsDir)?;
        let to_name = to.seal_name(new_name)?;
        item.link(&key, (from, from_name), (to, &to_name)).map_err(|error| self.report(inode, error))?;
        let (linked, stat) = self.inode_named(new_parent, new_name, &to_name)?;
        let entry = self.entry(&linked, &stat)?;
        if linked.backing == inode.backing {
            linked.settle_at(place_at(new_parent, new_name, &to_name));
        }
        // The kernel keeps the first name as one that need not be looked up: not any more, now that there are two.
        self.forget_names_later(&[at]);
        Ok(entry)
    }

    /// Whether a name may be given to what has another: kms:Encrypt for both, and kms:Decrypt for the old one where a
    /// decision looks at the item.
    fn may_move(&self, who: &Asker, from: Named<'_>, to: Named<'_>) -> FsResult<()> {
        let table = from.0.table()?;
        let old = || from.0.path_of(from.1);
        let new = || to.0.path_of(to.1);
        let (old, new) = (ItemAsked { table, path: &old }, ItemAsked { table, path: &new });
        if self.kms.tests_items(table) {
            self.kms.decide_again(&who.subject(), &old, Action::Decrypt)?;
        }
        self.kms.decide_again(&who.subject(), &old, Action::Encrypt)?;
        self.kms.decide_again(&who.subject(), &new, Action::Encrypt)?;
        Ok(())
    }

    pub(super) fn rename_entry(&self, caller: &Caller, from: Named<'_>, to: Named<'_>, flags: u32) -> FsResult<()> {
        let flags = match flags {
            0 => RenameFlags::None,
            libc::RENAME_NOREPLACE => RenameFlags::NoReplace,
            libc::RENAME_EXCHANGE => RenameFlags::Exchange,
            _ => return Err(FsError::Invalid),
        };
        if from.0.table()?.id() != to.0.table()?.id() {
            return Err(FsError::CrossTable);
        }
        let (old_folder, new_folder) = (from.0.folder()?, to.0.folder()?);
        let (old, new) = (old_folder.seal_name(from.1)?, new_folder.seal_name(to.1)?);
        let who = self.asker_for(caller, from.0.table()?);
        self.right_to_remove(&who, from)?.ok_or(FsError::NoKey)?;
        let key = self.right_to_remove(&who, to)?.ok_or(FsError::NoKey)?;
        let moved = self.named_now(from, &old)?.ok_or(FsError::NotFound)?;
        let target = self.named_now(to, &new)?;
        self.refuse_folders_by_item(&moved, target.as_deref(), flags)?;
        // Nothing of an item's health is told before this.
        self.may_move(&who, from, to)?;
        if flags == RenameFlags::Exchange {
            self.may_move(&who, to, from)?;
        }
        let moved = self.standing(moved, &place_at(from.0, from.1, &old), &key)?;
        let target = target.map(|target| self.standing(target, &place_at(to.0, to.1, &new), &key)).transpose()?;
        if std::ptr::eq(Arc::as_ptr(from.0), Arc::as_ptr(to.0)) && from.1 == to.1 {
            return Ok(());
        }
        if target.as_ref().is_some_and(|target| target.inode.ino == moved.inode.ino) && flags == RenameFlags::None {
            // Two names of one item: nothing happens (rename(2)).
            return Ok(());
        }
        let replaced_links = Self::settle_replaced(&new, new_folder, target.as_ref(), flags)?;
        table::rename(
            table::Place { folder: old_folder, name: &old },
            table::Place { folder: new_folder, name: &new },
            moved.as_moved(),
            target.as_ref().map(Standing::as_moved),
            flags,
        )
        .map_err(|error| self.report(&moved.inode, error))?;
        moved.inode.settle_at(place_at(to.0, to.1, &new));
        match &target {
            Some(target) if flags == RenameFlags::Exchange => target.inode.settle_at(place_at(from.0, from.1, &old)),
            Some(target) => self.after_replacement(target, to, replaced_links),
            None => {}
        }
        Ok(())
    }

    /// A folder's items would change their context with it: it is copied item by item.
    fn refuse_folders_by_item(&self, moved: &Inode, target: Option<&Inode>, flags: RenameFlags) -> FsResult<()> {
        let folder_moves = moved.kind == Kind::Dir
            || flags == RenameFlags::Exchange && target.is_some_and(|target| target.kind == Kind::Dir);
        if folder_moves && self.kms.tests_items(moved.table()?) {
            return Err(FsError::CrossTable);
        }
        Ok(())
    }

    /// A replaced item that keeps other names has everything put in place first. Gives the links that it has.
    fn settle_replaced(
        new: &StoredName,
        folder: &table::Folder,
        target: Option<&Standing>,
        flags: RenameFlags,
    ) -> FsResult<u64> {
        let Some(target) = target.filter(|_| flags == RenameFlags::None) else { return Ok(0) };
        let links = folder.dir().stat(new.on_disk())?.nlink;
        if links > 1
            && let StandingAs::Item(item) = &target.found
        {
            item.settle()?;
        }
        Ok(u64::from(links))
    }

    fn after_replacement(&self, target: &Standing, to: Named<'_>, links: u64) {
        if target.inode.kind == Kind::Dir || links <= 1 {
            self.gone(&target.inode);
        } else {
            if let StandingAs::Item(item) = &target.found {
                item.forget_name();
            }
            if target.inode.is_at(to.0, to.1) {
                target.inode.lose_place();
            }
        }
    }

    /// The inode that stands under a name; none where nothing does.
    fn named_now(&self, at: Named<'_>, stored: &StoredName) -> FsResult<Option<Arc<Inode>>> {
        let (inode, _) = match self.inode_named(at.0, at.1, stored) {
            Ok(found) => found,
            Err(FsError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // The lookup counted for the kernel, which has not asked; the Arc keeps the inode meanwhile.
        self.inodes.forget(inode.ino, 1);
        Ok(Some(inode))
    }

    /// An inode ready for a rename: an item is opened and verified.
    fn standing(&self, inode: Arc<Inode>, at: &Place, key: &SealKey) -> FsResult<Standing> {
        let found = match &inode.body {
            Body::Folder(folder) => StandingAs::Folder(Arc::clone(folder)),
            Body::Item(_) => {
                let item = self.load_item(&inode)?;
                self.verify(&inode, at, &item, key)?;
                StandingAs::Item(item)
            }
            Body::Root => return Err(FsError::NotPermitted),
        };
        Ok(Standing { inode, found })
    }
}

/// What stands under a name.
struct Standing {
    inode: Arc<Inode>,
    found: StandingAs,
}

enum StandingAs {
    Item(Arc<Item>),
    Folder(Arc<table::Folder>),
}

impl Standing {
    fn as_moved(&self) -> Moved<'_> {
        match &self.found {
            StandingAs::Item(item) => Moved::Item(item),
            StandingAs::Folder(folder) => Moved::Folder(folder),
        }
    }
}
