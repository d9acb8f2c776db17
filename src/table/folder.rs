//! Folders: a directory and the sealed file `.d` in it that says which folder it is (docs/format.md, section 6.2).
//!
//! A folder appears under its name only when its `.d` is complete, and leaves its name before its `.d` goes, so that a
//! kill at any system call leaves no folder that cannot be read. A folder whose `.d` is not bound to the name and the
//! parent that led to it is refused.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use rustix::io::Errno;

use super::format::{self, Binding, FOLDER_LEN, FOLDER_STATE_LEN, FolderState};
use super::names::{self, FOLDER_FILE, OnDisk, SIDECAR_MAX, StoredName};
use super::{Table, TableError};
use crate::envelope::{open_xattr, seal_xattr};
use crate::kms::{DataKey, SealKey};
use crate::store::storage::{read_whole, write_replace};
use crate::store::{Dir, DirEntry, FileKind, RenameFlags, XattrFlags};
use crate::types::DirId;

const FILE_MODE: u32 = 0o600;

/// One folder of a table.
pub struct Folder {
    table: Arc<Table>,
    dir: Arc<dyn Dir>,
    id: DirId,
    place: RwLock<Place>,
    entries: SharedFlush,
}

/// Where a folder is; a rename changes it.
enum Place {
    /// The table's own folder, relative to the store.
    Root(PathBuf),
    Below(Arc<Folder>, OsString),
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: Vec<u8>,
    pub on_disk: OsString,
    /// Of the backing entry: an item is a regular file whatever its kind.
    pub kind: FileKind,
    pub ino: u64,
    /// Of sixty bits: stays the same for as long as the entry has its name, and is nearly always no other's.
    pub number: u64,
}

/// The entries of a folder, and what was left out because its name does not verify.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    pub entries: Vec<Listed>,
    pub damaged: Vec<OsString>,
}

impl Folder {
    /// Makes `dir`, an empty directory at `path` relative to the store, the table's own folder.
    pub fn create_root(table: &Arc<Table>, dir: Arc<dyn Dir>, path: PathBuf) -> Result<Arc<Self>, TableError> {
        let id = DirId::from_bytes(*table.id().as_bytes());
        let state = FolderState { id, parent: DirId::from_bytes([0; 16]), binding: [0; 16], previous: None };
        let bytes = seal_state(table, &state)?;
        write_replace(dir.as_ref(), OsStr::new(FOLDER_FILE), &bytes, FILE_MODE)?;
        Ok(Self::new(table, dir, id, Place::Root(path)))
    }

    /// The table's own folder.
    ///
    /// # Errors
    /// `Tampered` where the directory is not this table's.
    pub fn open_root(table: &Arc<Table>, dir: Arc<dyn Dir>, path: PathBuf) -> Result<Arc<Self>, TableError> {
        let state = match read_state(table, dir.as_ref()) {
            // It was durable before the table was.
            Err(TableError::Unfinished) => return Err(TableError::Tampered { what: "folder" }),
            state => state?,
        };
        let own = state.id.as_bytes() == table.id().as_bytes();
        if !own || state.parent.as_bytes() != &[0; 16] || state.binding != [0; 16] {
            return Err(TableError::Tampered { what: "folder" });
        }
        Ok(Self::new(table, dir, state.id, Place::Root(path)))
    }

    fn new(table: &Arc<Table>, dir: Arc<dyn Dir>, id: DirId, place: Place) -> Arc<Self> {
        let entries = SharedFlush::default();
        Arc::new(Self { table: Arc::clone(table), dir, id, place: RwLock::new(place), entries })
    }

    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    pub fn id(&self) -> DirId {
        self.id
    }

    /// The backing directory, for what is not sealed: owners, modes, times, access lists.
    pub fn dir(&self) -> &Arc<dyn Dir> {
        &self.dir
    }

    /// The stored form of a name in this folder.
    pub fn seal_name(&self, name: &[u8]) -> Result<StoredName, TableError> {
        self.table.names.seal_name(&self.id, name)
    }

    /// The stored form of an entry of a listing of this folder.
    pub fn listed_name(&self, name: &[u8], on_disk: &OsStr) -> Result<StoredName, TableError> {
        self.table.names.listed_name(&self.id, name, on_disk)
    }

    /// The path of an entry relative to the store. Good only while `Table::paths` is held.
    pub(super) fn path_of(&self, on_disk: &OsStr) -> PathBuf {
        let mut path = self.path();
        path.push(on_disk);
        path
    }

    /// Without recursion: folders may lie deeper than a thread's stack is high.
    fn path(&self) -> PathBuf {
        let above = |folder: &Self| match &*folder.place.read().unwrap_or_else(PoisonError::into_inner) {
            Place::Root(path) => (path.clone(), None),
            Place::Below(parent, name) => (PathBuf::from(name), Some(Arc::clone(parent))),
        };
        let (first, mut next) = above(self);
        let mut parts = vec![first];
        while let Some(folder) = next {
            let (part, parent) = above(&folder);
            parts.push(part);
            next = parent;
        }
        parts.iter().rev().collect()
    }

    /// The folder of this name.
    ///
    /// # Errors
    /// `Tampered` where it was made under another name or in another folder, or is no folder of this table;
    /// `Unfinished` where an unclean stop may have cut its making short: nothing in it was ever promised.
    pub fn open_folder(self: &Arc<Self>, name: &StoredName) -> Result<Arc<Self>, TableError> {
        let dir = self.dir.open_dir(name.on_disk())?;
        let state = read_state(&self.table, dir.as_ref())?;
        let here = (self.id, name.binding());
        if (state.parent, state.binding) != here && state.previous != Some(here) {
            return Err(TableError::Tampered { what: "folder" });
        }
        let place = Place::Below(Arc::clone(self), name.on_disk().to_owned());
        Ok(Self::new(&self.table, dir, state.id, place))
    }

    /// Makes a folder. With `owner` (uid, gid), it belongs to them before it appears.
    ///
    /// # Errors
    /// EEXIST where the name is taken.
    pub fn create_folder(
        self: &Arc<Self>,
        name: &StoredName,
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> Result<Arc<Self>, TableError> {
        let id = DirId::from_bytes(crate::crypto::random().map_err(TableError::crypto)?);
        let state = FolderState { id, parent: self.id, binding: name.binding(), previous: None };
        let bytes = seal_state(&self.table, &state)?;
        let temporary = names::temporary()?;
        self.dir.create_dir(&temporary, mode | 0o700)?;
        let made = self.dir.open_dir(&temporary).map_err(TableError::Io).and_then(|dir| {
            // Not flushed: nothing that is below is promised before the folder is (`NewFolders`).
            let file = dir.create_file(OsStr::new(FOLDER_FILE), FILE_MODE)?;
            file.write_all_at(&bytes, 0)?;
            if let Some((uid, gid)) = owner {
                dir.chown(None, Some(uid), Some(gid))?;
            }
            if owner.is_some() || mode & 0o700 != 0o700 || mode > 0o777 {
                dir.chmod(None, mode)?;
            }
            self.write_sidecar(name)?;
            // First, so that no flush of anything below can come in between.
            self.table.new_folders.add(Arc::clone(&self.dir), Arc::clone(&dir));
            self.dir.rename(&temporary, self.dir.as_ref(), name.on_disk(), RenameFlags::NoReplace)?;
            Ok(dir)
        });
        match made {
            Ok(dir) => {
                let place = Place::Below(Arc::clone(self), name.on_disk().to_owned());
                Ok(Self::new(&self.table, dir, id, place))
            }
            Err(error) => {
                // What cannot be removed now goes with the folder around it.
                let _ = remove_remains(self.dir.as_ref(), &temporary);
                Err(error)
            }
        }
    }

    /// Every entry whose name verifies, in no order.
    pub fn list(&self) -> Result<Listing, TableError> {
        let mut listing = Listing::default();
        for entry in self.dir.list()? {
            if !matches!(names::classify(&entry.name), OnDisk::Short | OnDisk::Long) {
                continue;
            }
            match self.open_name(&entry.name) {
                Ok(name) => {
                    let number = names::number_of(&entry.name);
                    listing.entries.push(Listed {
                        name,
                        on_disk: entry.name,
                        kind: entry.kind,
                        ino: entry.ino,
                        number,
                    });
                }
                Err(_) => listing.damaged.push(entry.name),
            }
        }
        Ok(listing)
    }

    /// Calls `each` with what is on disk for every name, of which none has been verified, until it says false.
    pub fn each_name(&self, each: &mut dyn FnMut(&OsStr, FileKind) -> bool) -> Result<(), TableError> {
        Ok(self.dir.each(&mut |entry| match names::classify(&entry.name) {
            OnDisk::Short | OnDisk::Long => each(&entry.name, entry.kind),
            OnDisk::Own | OnDisk::Sidecar => true,
        })?)
    }

    /// The plain name of an entry.
    ///
    /// # Errors
    /// `Tampered` for what this table did not write in this folder; ENOENT for a long name without its sidecar.
    pub fn open_name(&self, on_disk: &OsStr) -> Result<Vec<u8>, TableError> {
        self.table.names.open_name(&self.id, on_disk, |sidecar| read_sidecar(self.dir.as_ref(), sidecar))
    }

    /// Removes the name of an item, whether or not the item verifies. The caller settles an item that keeps other names
    /// first (`Item::settle`), and tells it afterwards (`Item::unlinked`).
    pub fn unlink(&self, name: &StoredName) -> Result<(), TableError> {
        self.dir.remove_file(name.on_disk())?;
        self.remove_sidecar(name);
        Ok(())
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// ENOTEMPTY where anything is in it but its own file and what a crash has left.
    pub fn remove_folder(&self, name: &StoredName) -> Result<(), TableError> {
        let dir = self.dir.open_dir(name.on_disk())?;
        if !is_empty(dir.as_ref())? {
            return Err(Errno::NOTEMPTY.into());
        }
        let temporary = names::temporary()?;
        self.dir.rename(name.on_disk(), self.dir.as_ref(), &temporary, RenameFlags::NoReplace)?;
        self.remove_sidecar(name);
        // The folder is gone under its name; what cannot be removed now goes with the folder around it.
        let _ = remove_remains(self.dir.as_ref(), &temporary);
        Ok(())
    }

    /// Takes the name from a folder of which an unclean stop has left no id. What is in it can be named by nobody; it goes
    /// with the folder around it, or at once where there is nothing.
    pub fn set_aside(&self, name: &StoredName) -> Result<(), TableError> {
        let temporary = names::temporary()?;
        self.dir.rename(name.on_disk(), self.dir.as_ref(), &temporary, RenameFlags::NoReplace)?;
        self.remove_sidecar(name);
        let _ = remove_remains(self.dir.as_ref(), &temporary);
        Ok(())
    }

    /// Removes what crashes have left: folders half made or half removed, and sidecars without their names. While nobody
    /// else uses the folder: a name that is being made has its sidecar first.
    pub fn sweep(&self) -> Result<(), TableError> {
        let entries = self.dir.list()?;
        for entry in &entries {
            let orphan = |long: &OsStr| entries.iter().all(|other| other.name != long);
            match (names::classify(&entry.name), entry.kind) {
                (OnDisk::Own, FileKind::Dir) => match remove_remains(self.dir.as_ref(), &entry.name) {
                    // Set aside, with something in it.
                    Err(TableError::Io(error)) if error.raw_os_error() == Some(Errno::NOTEMPTY.raw_os_error()) => {}
                    removed => removed?,
                },
                (OnDisk::Sidecar, _) if names::of_sidecar(&entry.name).is_some_and(|long| orphan(&long)) => {
                    self.dir.remove_file(&entry.name)?;
                }
                (OnDisk::Own, _) if entry.name != FOLDER_FILE => self.dir.remove_file(&entry.name)?,
                (OnDisk::Own | OnDisk::Sidecar | OnDisk::Short | OnDisk::Long, _) => {}
            }
        }
        Ok(())
    }

    /// A path, relative to the store, of a backing inode: anywhere in the table. Good only while `Table::paths` is held.
    pub(super) fn find_link(&self, ino: u64) -> io::Result<Option<PathBuf>> {
        let mut found = None;
        self.visit_links(ino, &mut |_, path, name| {
            found = Some(path.join(name));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// What the names of a backing inode, wherever in the table they are, bind it to. While `Table::paths` is held.
    pub(super) fn find_bindings(&self, ino: u64) -> io::Result<Vec<Binding>> {
        let mut found = Vec::new();
        self.visit_links(ino, &mut |dir, _, name| {
            found.extend(names::binding_of(name, |sidecar| read_sidecar(dir, sidecar)).ok());
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Without recursion, as `path`.
    fn visit_links(&self, ino: u64, visit: &mut Visit<'_>) -> io::Result<()> {
        let root_or_above = |folder: &Self| match &*folder.place.read().unwrap_or_else(PoisonError::into_inner) {
            Place::Root(path) => Ok((Arc::clone(&folder.dir), path.clone())),
            Place::Below(parent, _) => Err(Arc::clone(parent)),
        };
        let mut here = root_or_above(self);
        loop {
            match here {
                Ok((dir, path)) => return visit_below(dir, path, ino, visit),
                Err(above) => here = root_or_above(&above),
            }
        }
    }

    /// Whether nothing is in the folder but its own file and what a crash has left.
    pub fn is_empty(&self) -> Result<bool, TableError> {
        is_empty(self.dir.as_ref())
    }

    /// Makes the entries durable: what was created, renamed and removed here, and the folder itself. What got its name
    /// here in this mount is whole then.
    pub fn sync(self: &Arc<Self>) -> Result<(), TableError> {
        self.table.new_folders.sync()?;
        self.table.new_items.sync(self)?;
        Ok(self.sync_entries()?)
    }

    /// Makes the entries alone durable. Concurrent callers share one flush.
    pub(super) fn sync_entries(&self) -> io::Result<()> {
        self.entries.flush(|| self.dir.sync())
    }

    /// The value of the attribute `user.NAME` of the folder.
    ///
    /// # Errors
    /// ENODATA where there is none; `Tampered` where it was not sealed for this folder and name.
    pub fn xattr(&self, keys: &DataKey, name: &[u8]) -> Result<Vec<u8>, TableError> {
        self.table.check(keys)?;
        let (stored, binding) = self.table.names.seal_xattr_name(self.id.as_bytes(), name)?;
        let sealed = self.dir.getxattr(None, &stored)?;
        open_xattr(keys, self.id.as_bytes(), &binding, &sealed).map_err(|e| TableError::opening("attribute", e))
    }

    /// # Errors
    /// EEXIST and ENODATA as `flags` has it.
    pub fn set_xattr(&self, keys: &SealKey, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<(), TableError> {
        self.table.check(keys)?;
        let (stored, binding) = self.table.names.seal_xattr_name(self.id.as_bytes(), name)?;
        let _attributes = self.table.attributes.read().unwrap_or_else(PoisonError::into_inner);
        let sealed =
            seal_xattr(keys, self.id.as_bytes(), &binding, value).map_err(|e| TableError::opening("attribute", e))?;
        Ok(self.dir.setxattr(None, &stored, &sealed, flags)?)
    }

    /// # Errors
    /// ENODATA where there is none.
    pub fn remove_xattr(&self, keys: &SealKey, name: &[u8]) -> Result<(), TableError> {
        self.table.check(keys)?;
        let (stored, _) = self.table.names.seal_xattr_name(self.id.as_bytes(), name)?;
        Ok(self.dir.removexattr(None, &stored)?)
    }

    /// The names of the `user.*` attributes, `user.` left out; damaged ones are left out.
    pub fn xattr_names(&self) -> Result<Vec<Vec<u8>>, TableError> {
        let stored = self.dir.listxattr(None)?;
        let open = |name: &OsString| self.table.names.open_xattr_name(self.id.as_bytes(), name).ok().flatten();
        Ok(stored.iter().filter_map(open).collect())
    }

    /// Writes what stands beside a long name, before the name appears.
    pub(super) fn write_sidecar(&self, name: &StoredName) -> Result<(), TableError> {
        let Some((sidecar, bytes)) = name.sidecar() else { return Ok(()) };
        match self.dir.create_file(&sidecar, FILE_MODE) {
            Ok(file) => {
                file.write_all_at(bytes, 0)?;
                Ok(file.sync_data()?)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Left by a crash, perhaps cut short: its only right content is known.
                Ok(write_replace(self.dir.as_ref(), &sidecar, bytes, FILE_MODE)?)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// After the name is gone. A sidecar that stays is nobody's and goes with the folder.
    pub(super) fn remove_sidecar(&self, name: &StoredName) {
        if let Some((sidecar, _)) = name.sidecar() {
            let _ = self.dir.remove_file(&sidecar);
        }
    }

    /// Binds the folder to the name that it leaves and the one that it gets, durably.
    pub(super) fn bind_both(&self, from: (DirId, Binding), to: (DirId, Binding)) -> Result<(), TableError> {
        let state = FolderState { id: self.id, parent: to.0, binding: to.1, previous: (from != to).then_some(from) };
        self.write_state(&state)
    }

    /// Binds the folder to one name, durably.
    pub(super) fn bind(&self, to: (DirId, Binding)) -> Result<(), TableError> {
        self.write_state(&FolderState { id: self.id, parent: to.0, binding: to.1, previous: None })
    }

    fn write_state(&self, state: &FolderState) -> Result<(), TableError> {
        let bytes = seal_state(&self.table, state)?;
        Ok(write_replace(self.dir.as_ref(), OsStr::new(FOLDER_FILE), &bytes, FILE_MODE)?)
    }

    pub(super) fn moved(&self, parent: &Arc<Self>, name: &StoredName) {
        let place = Place::Below(Arc::clone(parent), name.on_disk().to_owned());
        *self.place.write().unwrap_or_else(PoisonError::into_inner) = place;
    }
}

/// A flush that concurrent callers share: who comes while one runs waits for the next one, with all others who do.
#[derive(Default)]
struct SharedFlush {
    state: Mutex<FlushState>,
    ended: Condvar,
}

#[derive(Default)]
struct FlushState {
    /// Flushes that have been begun.
    begun: u64,
    /// The last one that has succeeded.
    done: u64,
    running: bool,
}

impl SharedFlush {
    /// Returns when a flush that was begun after this call has succeeded.
    fn flush(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = state.begun + 1;
        while state.running && state.done < wanted {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.done >= wanted {
            return Ok(());
        }
        state.begun += 1;
        state.running = true;
        let number = state.begun;
        drop(state);
        let flushed = act();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = false;
        if flushed.is_ok() {
            state.done = number;
        }
        drop(state);
        self.ended.notify_all();
        flushed
    }
}

impl Drop for Folder {
    /// Without recursion, as `path`: the last one of a chain takes all above it with it.
    fn drop(&mut self) {
        let parent_of = |place: &mut RwLock<Place>| {
            let place = place.get_mut().unwrap_or_else(PoisonError::into_inner);
            match std::mem::replace(place, Place::Root(PathBuf::new())) {
                Place::Below(parent, _) => Some(parent),
                Place::Root(_) => None,
            }
        };
        let mut next = parent_of(&mut self.place);
        while let Some(mut folder) = next.and_then(Arc::into_inner) {
            next = parent_of(&mut folder.place);
        }
    }
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Folder").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Removes the folder of a table that is gone: `name` in `tables`, the store's folder of all tables.
///
/// # Errors
/// ENOTEMPTY where anything is in it but its own file and what a crash has left.
pub fn remove_root(tables: &dyn Dir, name: &OsStr) -> Result<(), TableError> {
    remove_remains(tables, name)
}

/// Makes a folder's own file and its entries durable. One that is gone is no longer of interest.
pub(super) fn sync_folder_file(dir: &dyn Dir) -> io::Result<()> {
    match dir.open_file(OsStr::new(FOLDER_FILE), false) {
        Ok(file) => file.sync_data()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    dir.sync()
}

fn seal_state(table: &Table, state: &FolderState) -> Result<[u8; FOLDER_LEN], TableError> {
    let sealed = table.names.seal_folder(&state.encode())?;
    let sealed: [u8; FOLDER_STATE_LEN + 28] =
        sealed.try_into().map_err(|_| TableError::crypto(crate::crypto::CryptoError::TooLong))?;
    Ok(format::encode_folder(&sealed))
}

fn read_state(table: &Table, dir: &dyn Dir) -> Result<FolderState, TableError> {
    let mut bytes = [0; FOLDER_LEN + 1];
    let length = match dir.open_file(OsStr::new(FOLDER_FILE), false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        file => file?.read_at(&mut bytes, 0)?,
    };
    let bytes = bytes.get(..length).unwrap_or_default();
    // A power cut leaves out what a new folder says of itself, in part or in full; no other folder loses that.
    let cut = length < FOLDER_LEN || bytes.iter().all(|byte| *byte == 0);
    if cut && table.mounts.unclean_since(0) {
        return Err(TableError::Unfinished);
    }
    let sealed = format::parse_folder(bytes);
    let sealed = sealed.map_err(|error| TableError::parsing("folder", error))?;
    let state = table.names.open_folder(&sealed)?;
    FolderState::parse(&state).map_err(|error| TableError::parsing("folder", error))
}

/// Called with the directory of an entry, its path and the entry's name.
type Visit<'a> = dyn FnMut(&dyn Dir, &Path, &OsStr) -> ControlFlow<()> + 'a;

/// How many folders deep is looked: each takes a descriptor, of which the daemon has not so many.
const LEVELS_MAX: usize = 1000;

/// Visits the entries of a backing inode, from the directory `dir` at `path` on.
fn visit_below(dir: Arc<dyn Dir>, mut path: PathBuf, ino: u64, visit: &mut Visit<'_>) -> io::Result<()> {
    let Some(folders) = visit_entries(dir.as_ref(), &path, ino, visit)? else { return Ok(()) };
    let mut levels = vec![(dir, folders)];
    while let Some((dir, folders)) = levels.last_mut() {
        let Some(name) = folders.pop() else {
            levels.pop();
            path.pop();
            continue;
        };
        // One that has gone meanwhile has nothing to be found.
        let Ok(below) = dir.open_dir(&name) else { continue };
        if levels.len() < LEVELS_MAX {
            path.push(&name);
            let Some(folders) = visit_entries(below.as_ref(), &path, ino, visit)? else { return Ok(()) };
            levels.push((below, folders));
        }
    }
    Ok(())
}

/// Visits the entries of a backing inode in one directory, and gives the names of the folders in it; none where the visitor
/// has seen enough.
fn visit_entries(dir: &dyn Dir, path: &Path, ino: u64, visit: &mut Visit<'_>) -> io::Result<Option<Vec<OsString>>> {
    let mut folders = Vec::new();
    for entry in dir.list()? {
        match (names::classify(&entry.name), entry.kind) {
            (OnDisk::Short | OnDisk::Long, FileKind::File) if entry.ino == ino => {
                if visit(dir, path, &entry.name).is_break() {
                    return Ok(None);
                }
            }
            (OnDisk::Short | OnDisk::Long, FileKind::Dir) => folders.push(entry.name),
            (OnDisk::Short | OnDisk::Long | OnDisk::Own | OnDisk::Sidecar, _) => {}
        }
    }
    Ok(Some(folders))
}

fn read_sidecar(dir: &dyn Dir, sidecar: &OsStr) -> Result<Vec<u8>, TableError> {
    let file = dir.open_file(sidecar, false)?;
    Ok(read_whole(file.as_ref(), SIDECAR_MAX)?)
}

fn is_empty(dir: &dyn Dir) -> Result<bool, TableError> {
    let entries = dir.list()?;
    Ok(entries.iter().all(|entry| matches!(names::classify(&entry.name), OnDisk::Own | OnDisk::Sidecar)))
}

/// Removes a directory that has lost its name (or never had one) and what may be left in it: its own file, orphaned
/// sidecars, and directories like itself with all that is in them. Anything else keeps it.
fn remove_remains(parent: &dyn Dir, temporary: &OsStr) -> Result<(), TableError> {
    let dir = parent.open_dir(temporary)?;
    let is_kept = |entry: &DirEntry| matches!(names::classify(&entry.name), OnDisk::Short | OnDisk::Long);
    let mut entries = dir.list()?;
    if entries.iter().any(is_kept) {
        return Err(Errno::NOTEMPTY.into());
    }
    // Without recursion: what is below comes up a step at a time, however deep it lies.
    while !entries.is_empty() {
        let mut was_flat = true;
        for DirEntry { name, kind, .. } in entries {
            if kind != FileKind::Dir {
                dir.remove_file(&name)?;
                continue;
            }
            was_flat = false;
            let below = dir.open_dir(&name)?;
            for DirEntry { name, kind, .. } in below.list()? {
                match kind {
                    FileKind::Dir => below.rename(&name, dir.as_ref(), &names::temporary()?, RenameFlags::NoReplace)?,
                    FileKind::File | FileKind::Other => below.remove_file(&name)?,
                }
            }
            dir.remove_dir(&name)?;
        }
        entries = if was_flat { Vec::new() } else { dir.list()? };
    }
    Ok(parent.remove_dir(temporary)?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::{Mounts, Names};
    use super::*;
    use crate::crypto::{Key256, Key512};
    use crate::store::record::Scratch;
    use crate::store::{DirStorage, Journal, Storage};
    use crate::types::{StoreId, TableId};

    #[test]
    fn a_shared_flush_began_after_whoever_waits_for_it_came() {
        let (shared, written, flushed) = (SharedFlush::default(), AtomicU64::new(0), AtomicU64::new(0));
        let work = || {
            for round in 0..300 {
                let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                let done = shared.flush(|| {
                    let all = written.load(Ordering::SeqCst);
                    std::thread::yield_now();
                    if round % 7 == 0 {
                        return Err(Errno::IO.into());
                    }
                    flushed.fetch_max(all, Ordering::SeqCst);
                    Ok(())
                });
                assert!(done.is_err() || flushed.load(Ordering::SeqCst) >= mine);
            }
        };
        std::thread::scope(|scope| (0..6).for_each(|_| drop(scope.spawn(work))));
        assert!(shared.state.lock().unwrap().begun <= 6 * 300);
    }

    #[test]
    fn a_path_deeper_than_the_stack_is_named_and_dropped() {
        let scratch = Scratch::new().unwrap();
        let dir = DirStorage::open(scratch.path()).unwrap().root();
        let key = Key256::from_slice(&[7; 32]).unwrap();
        let (journal, _) = Journal::open(&dir, key, StoreId::from_bytes([3; 16]), 1, |_| false).unwrap();
        let names = Names::new(TableId::from_bytes([1; 16]), Key512::from_slice(&[5; 64]).unwrap()).unwrap();
        let table = Table::new(names, Arc::clone(&journal), Mounts::new(1, Vec::new()), false);
        let small = std::thread::Builder::new().stack_size(128 << 10);
        let length = small.spawn(move || {
            let folder = |place| Folder::new(&table, Arc::clone(&dir), DirId::from_bytes([2; 16]), place);
            let root = folder(Place::Root(PathBuf::from("tables")));
            let leaf = (0..100_000).fold(root, |parent, _| folder(Place::Below(parent, OsString::from("f"))));
            leaf.path_of(OsStr::new("x")).as_os_str().len()
        });
        assert_eq!(length.unwrap().join().unwrap(), "tables".len() + 2 * 100_000 + 2);
        journal.abandon();
    }
}
