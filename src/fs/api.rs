//! What the file system and its transport say to each other: plain values and the trait [`Operations`].
//!
//! Nothing here knows FUSE, and nothing here decides: who may do what is settled behind the trait. Methods take
//! `&self` and may be called from any number of threads at once.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::time::Duration;

/// Who a request is from, as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller {
    /// File system uid of the calling thread.
    pub uid: u32,
    /// File system gid of the calling thread.
    pub gid: u32,
    /// The calling thread, 0 when it is not visible in the daemon's pid namespace.
    pub tid: u32,
}

/// What an inode is. Device nodes do not exist here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
}

/// Attributes of an inode; times are seconds and nanoseconds since 1970 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    pub ino: u64,
    /// Bytes of plaintext.
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    pub kind: Kind,
    /// The low 12 bits of a mode.
    pub perm: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
}

/// A name that leads to an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub attr: Attr,
    /// Tells apart inodes that have the same number one after the other.
    pub generation: u64,
    /// How long the kernel may keep the name and the attributes.
    pub ttl: Duration,
}

impl Entry {
    /// There is no such name, and the kernel may keep that for a while: the number 0 stands for it.
    #[must_use]
    pub fn absent(ttl: Duration) -> Self {
        let none = (0, 0);
        let attr = Attr {
            ino: 0,
            size: 0,
            blocks: 0,
            atime: none,
            mtime: none,
            ctime: none,
            kind: Kind::File,
            perm: 0,
            nlink: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 0,
        };
        Self { attr, generation: 0, ttl }
    }
}

/// An open file or directory.
#[expect(clippy::struct_excessive_bools, reason = "independent flags, each with a name")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opened {
    pub fh: u64,
    /// What the kernel has cached of the inode stays valid.
    pub keep_cache: bool,
    /// Reads and writes bypass the page cache.
    pub direct_io: bool,
    /// `close` needs no `flush`. Errors of a flush would be lost: never for a file that is decided at close.
    pub no_flush: bool,
    /// A directory's listing may be cached.
    pub cache_dir: bool,
}

/// A result that may have something to be revoked before anybody hears of it.
#[derive(Debug)]
pub struct Outcome<T> {
    pub value: T,
    /// To be carried out before the reply is sent, by a thread that serves no request.
    pub revocation: Option<Revocation>,
}

impl<T> From<T> for Outcome<T> {
    fn from(value: T) -> Self {
        Self { value, revocation: None }
    }
}

/// What the kernel must forget.
///
/// So that no reply waits for itself: never a control file's inode; and of writes and changes of size only those of
/// control files give a revocation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revocation {
    /// Inodes whose cached pages and attributes go.
    pub inodes: Vec<u64>,
    /// Names, each in a directory, that go. The reply waits for them only where that cannot block: after a write or a
    /// flush, and not for long. Nothing may be denied by a name's absence alone.
    pub names: Vec<(u64, OsString)>,
    /// For [`Operations::revoked`].
    pub id: u64,
}

/// A new time for an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    Now,
    /// Seconds and nanoseconds since 1970 UTC.
    At(i64, u32),
}

/// What `setattr` is asked to change; `None` leaves as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// The open file through which it was asked (`ftruncate`).
    pub fh: Option<u64>,
    /// Clear set-user-id, and set-group-id where group execution is set, and drop file capabilities, of a regular file;
    /// a directory keeps them.
    pub kill_suid: bool,
}

/// The answer to `statfs`; see statvfs(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

/// One name of a listing.
#[derive(Debug)]
pub struct DirItem<'a> {
    pub ino: u64,
    /// Where a listing goes on after this name, whatever else comes and goes.
    pub offset_next: i64,
    pub kind: Kind,
    pub name: &'a OsStr,
    /// Where attributes are asked for (`plus`): counts as a lookup if it is taken. None for `.` and `..`, which count
    /// as no lookup. Any other name without it is left out of such a listing: its attributes could not be had because
    /// it has just gone.
    pub entry: Option<Entry>,
}

/// Why a request failed. `fuse/errno.rs` has the errno of each.
#[derive(Debug)]
pub enum FsError {
    /// A key policy or Unix denies it.
    Denied,
    NotPermitted,
    KeyRevoked,
    NoKey,
    Tampered,
    Corrupt,
    NotFound,
    Exists,
    NotDir,
    IsDir,
    NotEmpty,
    NameTooLong,
    TooLarge,
    CrossTable,
    TooManyLinks,
    Stale,
    Invalid,
    BadHandle,
    NotSupported,
    NoAttribute,
    Range,
    ReadOnly,
    Busy,
    Refused,
    NoDevice,
    /// A process runs it.
    Executed,
    Io(io::Error),
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Denied => "denied",
            Self::NotPermitted => "not permitted",
            Self::KeyRevoked => "the right to the key was revoked",
            Self::NoKey => "no such key",
            Self::Tampered => "authentication failed",
            Self::Corrupt => "malformed",
            Self::NotFound => "not found",
            Self::Exists => "exists already",
            Self::NotDir => "not a directory",
            Self::IsDir => "is a directory",
            Self::NotEmpty => "directory not empty",
            Self::NameTooLong => "name too long",
            Self::TooLarge => "too large",
            Self::CrossTable => "not within one table",
            Self::TooManyLinks => "too many links",
            Self::Stale => "stale",
            Self::Invalid => "invalid",
            Self::BadHandle => "no such open file",
            Self::NotSupported => "not supported",
            Self::NoAttribute => "no such attribute",
            Self::Range => "the buffer is too small",
            Self::ReadOnly => "mounted read-only",
            Self::Busy => "busy",
            Self::Refused => "refused",
            Self::NoDevice => "no data beyond this offset",
            Self::Executed => "it is being executed",
            Self::Io(error) => return write!(f, "the store: {error}"),
        })
    }
}

impl std::error::Error for FsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Denied
            | Self::NotPermitted
            | Self::KeyRevoked
            | Self::NoKey
            | Self::Tampered
            | Self::Corrupt
            | Self::NotFound
            | Self::Exists
            | Self::NotDir
            | Self::IsDir
            | Self::NotEmpty
            | Self::NameTooLong
            | Self::TooLarge
            | Self::CrossTable
            | Self::TooManyLinks
            | Self::Stale
            | Self::Invalid
            | Self::BadHandle
            | Self::NotSupported
            | Self::NoAttribute
            | Self::Range
            | Self::ReadOnly
            | Self::Busy
            | Self::Refused
            | Self::NoDevice
            | Self::Executed => None,
        }
    }
}

impl From<io::Error> for FsError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

pub type FsResult<T> = Result<T, FsError>;

/// Carries out a revocation that no request waits for, and then calls [`Operations::revoked`].
pub type Revoker = Box<dyn Fn(Revocation) + Send + Sync>;

/// Takes one name of a listing; true: it did not fit, and the listing ends before it.
pub type Emit<'a> = dyn FnMut(DirItem<'_>) -> bool + 'a;

/// The file system as its transport calls it. `ino` and `parent` are numbers that an earlier [`Entry`] gave, or 1 for
/// the root; a number that is not known is [`FsError::Stale`], never a panic. Names are single components, not `.` or
/// `..`.
///
/// `mode` of what is created comes unmasked, with the creator's `umask`: it applies unless the directory has a default
/// ACL, which then does (acl(5), 'Object creation and default ACLs').
pub trait Operations: Send + Sync + 'static {
    /// For a name that is not there an error, or [`Entry::absent`].
    fn lookup(&self, caller: &Caller, parent: u64, name: &OsStr) -> FsResult<Entry>;
    /// The kernel forgets `lookups` of the entries that it was given.
    fn forget(&self, ino: u64, lookups: u64);
    fn getattr(&self, caller: &Caller, ino: u64, fh: Option<u64>) -> FsResult<(Attr, Duration)>;
    fn setattr(&self, caller: &Caller, ino: u64, change: &SetAttr) -> FsResult<Outcome<(Attr, Duration)>>;
    fn readlink(&self, caller: &Caller, ino: u64) -> FsResult<Vec<u8>>;
    fn mknod(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32, umask: u32, rdev: u32) -> FsResult<Entry>;
    fn mkdir(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32, umask: u32) -> FsResult<Outcome<Entry>>;
    fn unlink(&self, caller: &Caller, parent: u64, name: &OsStr) -> FsResult<Outcome<()>>;
    fn rmdir(&self, caller: &Caller, parent: u64, name: &OsStr) -> FsResult<Outcome<()>>;
    fn symlink(&self, caller: &Caller, parent: u64, name: &OsStr, target: &[u8]) -> FsResult<Entry>;
    /// `flags`: `RENAME_NOREPLACE`, `RENAME_EXCHANGE` of renameat2(2).
    fn rename(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> FsResult<Outcome<()>>;
    fn link(&self, caller: &Caller, ino: u64, new_parent: u64, new_name: &OsStr) -> FsResult<Entry>;
    /// `flags`: see open(2). With `O_TRUNC` the file is cut, and by another than root its set-user-id and file
    /// capabilities are cleared, as for [`SetAttr::kill_suid`].
    fn open(&self, caller: &Caller, ino: u64, flags: i32) -> FsResult<Opened>;
    fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
    ) -> FsResult<(Entry, Opened)>;
    /// Reads at most `size` bytes at `offset` into `buffer`, which comes empty; fewer only at the end. Decided by
    /// `fh`, never by the caller.
    fn read(&self, caller: &Caller, ino: u64, fh: u64, offset: u64, buffer: &mut Vec<u8>, size: u32) -> FsResult<()>;
    /// `from_cache`: the page cache writes back, with any writable `fh` of the inode and no caller of its own.
    fn write(
        &self,
        caller: &Caller,
        ino: u64,
        fh: u64,
        offset: u64,
        data: &[u8],
        from_cache: bool,
        kill_suid: bool,
    ) -> FsResult<Outcome<u32>>;
    fn flush(&self, caller: &Caller, ino: u64, fh: u64) -> FsResult<Outcome<()>>;
    fn release(&self, ino: u64, fh: u64);
    fn fsync(&self, ino: u64, fh: u64, data_only: bool) -> FsResult<()>;
    fn opendir(&self, caller: &Caller, ino: u64, flags: i32) -> FsResult<Opened>;
    /// Gives the names after `offset` (0: all) to `emit` until it says that it is full.
    fn readdir(&self, caller: &Caller, ino: u64, fh: u64, offset: i64, plus: bool, emit: &mut Emit<'_>)
    -> FsResult<()>;
    fn releasedir(&self, ino: u64, fh: u64);
    fn fsyncdir(&self, ino: u64, fh: u64, data_only: bool) -> FsResult<()>;
    fn statfs(&self, ino: u64) -> FsResult<StatFs>;
    fn setxattr(&self, caller: &Caller, ino: u64, name: &OsStr, value: &[u8], flags: i32) -> FsResult<Outcome<()>>;
    fn getxattr(&self, caller: &Caller, ino: u64, name: &OsStr) -> FsResult<Vec<u8>>;
    /// Names, each ended by a zero byte.
    fn listxattr(&self, caller: &Caller, ino: u64) -> FsResult<Vec<u8>>;
    fn removexattr(&self, caller: &Caller, ino: u64, name: &OsStr) -> FsResult<Outcome<()>>;
    /// `mode`: see fallocate(2).
    fn fallocate(&self, ino: u64, fh: u64, offset: u64, length: u64, mode: i32) -> FsResult<()>;
    /// `whence`: `SEEK_DATA` or `SEEK_HOLE` of lseek(2).
    fn lseek(&self, ino: u64, fh: u64, offset: u64, whence: i32) -> FsResult<u64>;
    /// The inodes of the revocation with this id have been carried out: nothing more comes from their page cache.
    fn revoked(&self, id: u64);
    /// How to carry out revocations that no request waits for.
    fn set_revoker(&self, revoker: Revoker);
    /// Settles everything; called once, after the last request.
    fn shut_down(&self);
}
