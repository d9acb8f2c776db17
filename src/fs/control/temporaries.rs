//! The files that editors keep beside a document while they save it: swap files, backups, new versions to be renamed
//! over it. They live in memory and vanish with the mount.
//!
//! INVARIANT: such a file is its maker's alone, whatever mode an editor gives it: what is in it may become the policy of
//! whoever renames it. A file is known by a number that is never used again, so that a handle or an inode of one never
//! comes to mean another of the same name.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::super::api::{FsError, FsResult};
use super::nodes::Scope;

/// Bytes that one file may hold: a vim swap file of the largest policy, with room.
const SIZE_MOST: usize = 1 << 20;
/// What one user may have in all, files that are removed and still open included.
const BYTES_MOST_OF_USER: usize = 8 << 20;
const FILES_MOST_OF_USER: usize = 128;
/// Files that one user may have in one place, and all users in all.
const FILES_MOST: usize = 64;
const FILES_MOST_IN_ALL: usize = 512;

/// One file.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) id: u64,
    pub(super) owner: u32,
    pub(super) group: u32,
    body: Mutex<Body>,
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct Body {
    bytes: Vec<u8>,
    modified: SystemTime,
}

impl Temporary {
    /// # Errors
    /// `Denied` to everybody but the maker, root included.
    pub(super) fn only_for(&self, uid: u32) -> FsResult<()> {
        if self.owner == uid { Ok(()) } else { Err(FsError::Denied) }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.body().bytes.clone()
    }

    /// Length in bytes, and when it was changed last.
    pub(super) fn stat(&self) -> (usize, SystemTime) {
        let body = self.body();
        (body.bytes.len(), body.modified)
    }

    pub(super) fn set_modified(&self, time: SystemTime) {
        self.body().modified = time;
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> FsResult<()> {
        let mut body = self.body();
        let end = end_of(offset, data.len(), SIZE_MOST)?;
        self.budget.grow(self.owner, body.bytes.len(), end.max(body.bytes.len()))?;
        body.modified = SystemTime::now();
        write_at(&mut body.bytes, offset, data, SIZE_MOST)
    }

    pub(super) fn resize(&self, size: u64) -> FsResult<()> {
        let mut body = self.body();
        let length = end_of(size, 0, SIZE_MOST)?;
        self.budget.grow(self.owner, body.bytes.len(), length)?;
        body.modified = SystemTime::now();
        resize(&mut body.bytes, size, SIZE_MOST)
    }

    fn body(&self) -> MutexGuard<'_, Body> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let length = self.body().bytes.len();
        self.budget.give_back(self.owner, length);
    }
}

/// What each user has.
#[derive(Debug, Default)]
struct Budget {
    users: Mutex<HashMap<u32, Used>>,
}

#[derive(Debug, Default)]
struct Used {
    files: usize,
    bytes: usize,
}

impl Budget {
    fn take_file(&self, uid: u32, bytes: usize) -> FsResult<()> {
        let mut users = self.lock();
        let used = users.entry(uid).or_default();
        let fits = used.files < FILES_MOST_OF_USER && used.bytes.saturating_add(bytes) <= BYTES_MOST_OF_USER;
        if fits {
            used.files += 1;
            used.bytes += bytes;
        } else if used.files == 0 {
            users.remove(&uid);
        }
        if fits { Ok(()) } else { Err(FsError::Busy) }
    }

    /// A file of `before` bytes is about to have `after`.
    fn grow(&self, uid: u32, before: usize, after: usize) -> FsResult<()> {
        let mut users = self.lock();
        let used = users.entry(uid).or_default();
        let bytes = used.bytes.saturating_sub(before).saturating_add(after);
        if after > before && bytes > BYTES_MOST_OF_USER {
            return Err(FsError::Io(io::Error::from_raw_os_error(libc::EDQUOT)));
        }
        used.bytes = bytes;
        Ok(())
    }

    fn give_back(&self, uid: u32, bytes: usize) {
        let mut users = self.lock();
        if let Some(used) = users.get_mut(&uid) {
            used.files = used.files.saturating_sub(1);
            used.bytes = used.bytes.saturating_sub(bytes);
            if used.files == 0 {
                users.remove(&uid);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Used>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(super) struct Temporaries {
    files: Mutex<Files>,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct Files {
    next: u64,
    named: HashMap<(Scope, Vec<u8>), Arc<Temporary>>,
}

impl Temporaries {
    /// A new file of `owner`'s; with `replace`, in the place of what bears the name.
    ///
    /// # Errors
    /// `Exists`; `Busy` when the user, or the mount, has too many of them.
    pub(super) fn create(
        &self,
        scope: Scope,
        name: &[u8],
        (owner, group): (u32, u32),
        bytes: Vec<u8>,
        replace: bool,
    ) -> FsResult<Arc<Temporary>> {
        let mut files = self.lock();
        let key = (scope, name.to_vec());
        if files.named.contains_key(&key) && !replace {
            return Err(FsError::Exists);
        }
        let own = files.named.iter().filter(|((at, _), other)| *at == scope && other.owner == owner).count();
        if own >= FILES_MOST || files.named.len() >= FILES_MOST_IN_ALL {
            return Err(FsError::Busy);
        }
        self.budget.take_file(owner, bytes.len())?;
        files.next += 1;
        let body = Mutex::new(Body { bytes, modified: SystemTime::now() });
        let file = Arc::new(Temporary { id: files.next, owner, group, body, budget: Arc::clone(&self.budget) });
        files.named.insert(key, Arc::clone(&file));
        Ok(file)
    }

    pub(super) fn named(&self, scope: Scope, name: &[u8]) -> FsResult<Arc<Temporary>> {
        self.lock().named.get(&(scope, name.to_vec())).cloned().ok_or(FsError::NotFound)
    }

    /// # Errors
    /// `Stale` for one that has lost its name.
    pub(super) fn numbered(&self, id: u64) -> FsResult<Arc<Temporary>> {
        self.lock().named.values().find(|file| file.id == id).cloned().ok_or(FsError::Stale)
    }

    /// Takes the name from this file, if it still bears it.
    pub(super) fn remove(&self, scope: Scope, name: &[u8], file: &Temporary) {
        let mut files = self.lock();
        let key = (scope, name.to_vec());
        if files.named.get(&key).is_some_and(|named| named.id == file.id) {
            files.named.remove(&key);
        }
    }

    /// Gives the file another name, in the place of what bears that.
    ///
    /// # Errors
    /// `Denied` where that is another user's; `NotFound` for a file that has lost its name meanwhile.
    pub(super) fn rename(&self, file: &Arc<Temporary>, from: (Scope, &[u8]), to: (Scope, &[u8])) -> FsResult<()> {
        let mut files = self.lock();
        let (old, new) = ((from.0, from.1.to_vec()), (to.0, to.1.to_vec()));
        if files.named.get(&new).is_some_and(|other| other.owner != file.owner) {
            return Err(FsError::Denied);
        }
        if files.named.get(&old).is_none_or(|named| named.id != file.id) {
            return Err(FsError::NotFound);
        }
        files.named.remove(&old);
        files.named.insert(new, Arc::clone(file));
        Ok(())
    }

    /// The files in one place, by name.
    pub(super) fn list(&self, scope: Scope) -> Vec<(Vec<u8>, u64)> {
        let files = self.lock();
        let here = files.named.iter().filter(|((at, _), _)| *at == scope);
        let mut names: Vec<_> = here.map(|((_, name), file)| (name.clone(), file.id)).collect();
        names.sort();
        names
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// # Errors
/// `TooLarge` beyond `most`.
fn end_of(offset: u64, length: usize, most: usize) -> FsResult<usize> {
    let start = usize::try_from(offset).map_err(|_| FsError::TooLarge)?;
    start.checked_add(length).filter(|end| *end <= most).ok_or(FsError::TooLarge)
}

/// Writes `data` at `offset` of `bytes`, zeros between.
///
/// # Errors
/// `TooLarge` beyond `most` bytes.
pub(super) fn write_at(bytes: &mut Vec<u8>, offset: u64, data: &[u8], most: usize) -> FsResult<()> {
    let end = end_of(offset, data.len(), most)?;
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes.get_mut(end - data.len()..end).ok_or(FsError::TooLarge)?.copy_from_slice(data);
    Ok(())
}

/// Cuts or extends to `size`.
///
/// # Errors
/// `TooLarge` beyond `most` bytes.
pub(super) fn resize(bytes: &mut Vec<u8>, size: u64, most: usize) -> FsResult<()> {
    bytes.resize(end_of(size, 0, most)?, 0);
    bytes.shrink_to_fit();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_cannot_fill_the_memory() {
        let all = Temporaries::default();
        let make = |name: &str, owner| all.create(Scope::Store, name.as_bytes(), (owner, 0), Vec::new(), false);
        for index in 0..FILES_MOST {
            make(&index.to_string(), 1).unwrap();
        }
        assert!(matches!(make("more", 1), Err(FsError::Busy)));
        let other = make("other", 2).unwrap();
        assert!(matches!(other.write(1 << 40, b"x"), Err(FsError::TooLarge)));
        other.write(2, b"ab").unwrap();
        assert_eq!(other.bytes(), b"\0\0ab");
    }

    #[test]
    fn what_is_removed_and_still_open_counts() {
        let all = Temporaries::default();
        let mut open = Vec::new();
        for index in 0..8_u32 {
            let name = index.to_string();
            let file = all.create(Scope::Store, name.as_bytes(), (1, 0), Vec::new(), false).unwrap();
            file.resize(1 << 20).unwrap();
            all.remove(Scope::Store, name.as_bytes(), &file);
            open.push(file);
        }
        let more = all.create(Scope::Store, b"more", (1, 0), Vec::new(), false).unwrap();
        assert!(matches!(more.write(0, b"x"), Err(FsError::Io(_))));
        open.pop();
        more.write(0, b"x").unwrap();
        drop((open, more));
        all.remove(Scope::Store, b"more", &all.named(Scope::Store, b"more").unwrap());
        assert!(all.budget.lock().is_empty());
    }

    #[test]
    fn a_name_may_come_to_mean_another_file_and_a_number_never() {
        let all = Temporaries::default();
        let make = |owner, replace| all.create(Scope::Store, b"x", (owner, 0), Vec::new(), replace);
        let first = make(1, false).unwrap();
        assert!(matches!(make(2, false), Err(FsError::Exists)));
        let second = make(2, true).unwrap();
        assert!(matches!(all.numbered(first.id), Err(FsError::Stale)));
        all.remove(Scope::Store, b"x", &first);
        assert_eq!(all.named(Scope::Store, b"x").unwrap().id, second.id);
        assert!(matches!(all.rename(&first, (Scope::Store, b"x"), (Scope::Store, b"y")), Err(FsError::NotFound)));
        let third = all.create(Scope::Store, b"z", (1, 0), Vec::new(), false).unwrap();
        assert!(matches!(all.rename(&third, (Scope::Store, b"z"), (Scope::Store, b"x")), Err(FsError::Denied)));
    }
}
