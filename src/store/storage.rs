//! The edge to the backing file system: every call that reads or changes the store goes through these traits, so that
//! it can be recorded, replayed up to any point and made to fail (`record`), and so that no code above names a path.
//!
//! A directory is held open and entered a component at a time; a name is one component, and whatever is not (`..`, a
//! slash, an empty name) is refused with EINVAL. No call follows a symbolic link.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;

/// A whole storage: the directory that it starts from.
pub trait Storage: Send + Sync + fmt::Debug {
    /// The store's own directory.
    fn root(&self) -> Arc<dyn Dir>;
}

/// What kind of thing a name leads to. Stores hold nothing but directories and regular files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    Dir,
    File,
    Other,
}

/// What stat(2) tells. Times are seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// Birth, where the file system knows it.
    pub btime: Option<(i64, u32)>,
}

impl Stat {
    #[must_use]
    pub const fn kind(&self) -> FileKind {
        match self.mode & 0o170_000 {
            0o040_000 => FileKind::Dir,
            0o100_000 => FileKind::File,
            _ => FileKind::Other,
        }
    }

    /// The permission bits, set-id and sticky bits included.
    #[must_use]
    pub const fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }
}

/// What statvfs(3) tells; counts of blocks are in units of `fragment_size` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatVfs {
    pub block_size: u64,
    pub fragment_size: u64,
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub files_available: u64,
    pub name_max: u64,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub name: OsString,
    pub ino: u64,
    pub kind: FileKind,
}

/// What a rename does where the new name exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameFlags {
    /// Replace it.
    None,
    /// Fail with EEXIST.
    NoReplace,
    /// Exchange the two; both must exist.
    Exchange,
}

/// What setxattr(2) does where the attribute exists, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrFlags {
    Set,
    /// Fail with EEXIST where it exists.
    Create,
    /// Fail with ENODATA where it does not.
    Replace,
}

/// A time to set, as utimensat(2) takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// `UTIME_OMIT`.
    Keep,
    /// `UTIME_NOW`.
    Now,
    /// Seconds since 1970, nanoseconds.
    At(i64, u32),
}

/// An open directory. Where a call takes `name: Option<&OsStr>`, `None` means the directory itself.
pub trait Dir: Send + Sync + fmt::Debug {
    fn fd(&self) -> BorrowedFd<'_>;

    /// # Errors
    /// ENOTDIR for anything but a directory, a symbolic link included.
    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>>;

    /// Opens a regular file for reading, or for reading and writing.
    ///
    /// # Errors
    /// EUCLEAN for anything but a regular file, a symbolic link included.
    fn open_file(&self, name: &OsStr, writable: bool) -> io::Result<Arc<dyn File>>;

    /// Makes a regular file that must not exist, open for reading and writing. The process's umask applies to `mode`.
    fn create_file(&self, name: &OsStr, mode: u32) -> io::Result<Arc<dyn File>>;

    /// Makes a directory. The process's umask applies to `mode`.
    fn create_dir(&self, name: &OsStr, mode: u32) -> io::Result<()>;

    fn remove_file(&self, name: &OsStr) -> io::Result<()>;

    fn remove_dir(&self, name: &OsStr) -> io::Result<()>;

    fn rename(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr, flags: RenameFlags) -> io::Result<()>;

    fn link(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()>;

    /// Of what the name leads to; of a symbolic link itself.
    fn stat(&self, name: &OsStr) -> io::Result<Stat>;

    fn stat_self(&self) -> io::Result<Stat>;

    /// All entries but `.` and `..`, in no order.
    fn list(&self) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        self.each(&mut |entry| {
            entries.push(entry);
            true
        })?;
        Ok(entries)
    }

    /// The same one by one, however many there are, until `each` says false.
    fn each(&self, each: &mut dyn FnMut(DirEntry) -> bool) -> io::Result<()>;

    /// Sets the permission bits. EUCLEAN for anything but a directory or a regular file.
    fn chmod(&self, name: Option<&OsStr>, mode: u32) -> io::Result<()>;

    fn chown(&self, name: Option<&OsStr>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;

    fn utimens(&self, name: Option<&OsStr>, atime: SetTime, mtime: SetTime) -> io::Result<()>;

    /// # Errors
    /// ENODATA where there is no such attribute.
    fn getxattr(&self, name: Option<&OsStr>, key: &OsStr) -> io::Result<Vec<u8>>;

    fn setxattr(&self, name: Option<&OsStr>, key: &OsStr, value: &[u8], flags: XattrFlags) -> io::Result<()>;

    fn listxattr(&self, name: Option<&OsStr>) -> io::Result<Vec<OsString>>;

    fn removexattr(&self, name: Option<&OsStr>, key: &OsStr) -> io::Result<()>;

    /// Makes the entries durable: what was created, renamed and removed here.
    fn sync(&self) -> io::Result<()>;

    fn statvfs(&self) -> io::Result<StatVfs>;

    /// Makes all of the file system durable, data and entries.
    fn syncfs(&self) -> io::Result<()>;
}

/// An open regular file. Offsets and lengths are in bytes.
pub trait File: Send + Sync + fmt::Debug {
    fn fd(&self) -> BorrowedFd<'_>;

    /// Fewer bytes than asked for only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes`; with one pwrite(2) unless the kernel takes fewer.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// ftruncate(2): cuts, or grows by a hole.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// fdatasync(2): bytes and length are durable.
    fn sync_data(&self) -> io::Result<()>;

    /// fsync(2): owner, mode, times and attributes as well.
    fn sync_all(&self) -> io::Result<()>;

    fn stat(&self) -> io::Result<Stat>;

    fn chmod(&self, mode: u32) -> io::Result<()>;

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;

    fn utimens(&self, atime: SetTime, mtime: SetTime) -> io::Result<()>;

    /// # Errors
    /// ENODATA where there is no such attribute.
    fn getxattr(&self, key: &OsStr) -> io::Result<Vec<u8>>;

    fn setxattr(&self, key: &OsStr, value: &[u8], flags: XattrFlags) -> io::Result<()>;

    fn listxattr(&self) -> io::Result<Vec<OsString>>;

    fn removexattr(&self, key: &OsStr) -> io::Result<()>;

    /// Reserves space for a range; the length stays (`FALLOC_FL_KEEP_SIZE`).
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Gives the space of a range back, which then reads as zeros; the length stays.
    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Says that a range will be read soon. A hint, of which nothing is told.
    fn will_need(&self, _offset: u64, _length: u64) {}

    /// Fills the buffer.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let count = match self.read_at(rest, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            rest = rest.get_mut(count..).ok_or(Errno::IO)?;
            at = at.saturating_add(u64::try_from(count).map_err(|_| Errno::OVERFLOW)?);
        }
        Ok(())
    }
}

/// The whole of a file that is at most `limit` bytes long.
///
/// # Errors
/// EFBIG for a longer one, before memory is taken for it.
pub fn read_whole(file: &dyn File, limit: u64) -> io::Result<Vec<u8>> {
    let size = file.stat()?.size;
    if size > limit {
        return Err(Errno::FBIG.into());
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Errno::FBIG)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Replaces a file in one step, durably: a crash leaves the old bytes or the new, and once this has returned, the new.
/// The new bytes wait under `.NAME.new`, which is replaced where a crash has left one. The file gets `mode` (0600 and
/// the like: it is not kept from the old file).
pub fn write_replace(dir: &dyn Dir, name: &OsStr, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    match dir.remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let file = dir.create_file(&temporary, mode)?;
    let written = file
        .write_all_at(bytes, 0)
        .and_then(|()| file.sync_data())
        .and_then(|()| dir.rename(&temporary, dir, name, RenameFlags::None));
    if let Err(error) = written {
        // What is left under the temporary name is replaced by the next call.
        let _ = dir.remove_file(&temporary);
        return Err(error);
    }
    dir.sync()
}
