//! Level 7: FUSE requests decoded, answered by the file system, replied to. Nothing is decided here.
//!
//! A panic in a handler is an I/O error for its caller and a line in the log; the mount lives on. Handlers run on the
//! threads of `threads`; a reply that waits for a revocation is sent by `revoke`, so that no handler waits for one.
//!
//! What is asked of the kernel at INIT, and what is not, is in [`WANTED`] and below it.

mod errno;
mod revoke;
mod threads;

use std::cell::Cell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    Session, SessionACL, TimeOrNow, WriteFlags,
};

use crate::fs::api::{Attr, Caller, Entry, FsError, FsResult, Kind, Opened, Operations, Outcome, SetAttr, SetTime};
use errno::errno;
use revoke::{Held, Revoker};
use threads::Team;

/// What helps, as far as the kernel has it.
///
/// - `READDIRPLUS` (`AUTO`: only where attributes are asked for as well), `PARALLEL_DIROPS`, `ASYNC_READ`, `ASYNC_DIO`,
///   `BIG_WRITES`, `MAX_PAGES`: fewer requests, more at once.
/// - `ATOMIC_O_TRUNC`: one request less for `> file`, and no moment in which a file is cut and not yet opened.
/// - `HANDLE_KILLPRIV_V2`: without it the kernel asks for `security.capability` at every write.
/// - `POSIX_ACL`: the kernel asks for ACLs and heeds them, with `default_permissions`, which it implies.
/// - `DONT_MASK`: with a default ACL on the directory the umask must not be applied, and only the file system knows
///   (acl(5)); it gets the mode unmasked, and the umask.
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_DONT_MASK);

// Not wanted, each for a reason:
// ALLOW_IDMAP            all requests but creations would carry no uid
// WRITEBACK_CACHE        writes would come without their caller, after the decision
// NO_OPEN(DIR)_SUPPORT   every open is decided
// CACHE_SYMLINKS         so is every readlink
// EXPORT_SUPPORT         would make the file system look up '.' of numbers that it has forgotten; without it
//                        open_by_handle_at works while the inode is known and is ESTALE afterwards
// AUTO_INVAL_DATA        costs a request at every cached read
// DIRECT_IO_ALLOW_MMAP   shared mappings would put a table without a cache into the page cache
// SETXATTR_EXT           fuser takes setxattr's short form only
// ABORT_ERROR            an abort reads as ENODEV like any other end
// SPLICE_*               fuser has no splice

/// The largest read and write, and read-ahead.
pub const MAX_TRANSFER: u32 = 1 << 20;
/// Reads and writes from this size on are long work.
const LONG_TRANSFER: usize = 64 << 10;
/// Requests that the kernel may have under way for read-ahead and asynchronous I/O.
const MAX_BACKGROUND: u16 = 64;

/// Serves the connection `device`, on which a mount has just been made, until it ends. `started` is called when the
/// connection stands, just before requests are read.
///
/// # Errors
/// What the kernel's side says when the connection cannot be set up, and what ends it other than an unmount.
pub fn serve<F: Operations>(fs: &Arc<F>, device: OwnedFd, started: impl FnOnce()) -> io::Result<()> {
    let threads = thread_count();
    let (revoker, waiting) = Revoker::new();
    let shim = Shim { fs: Arc::clone(fs), team: Team::new(threads)?, revoker: revoker.clone() };
    let mut config = Config::default();
    config.n_threads = Some(threads);
    // Who may enter is the kernel's to check, by `allow_other`.
    config.acl = SessionACL::All;
    let session = Session::from_fd(shim, device, SessionACL::All, config)?;
    let _running = waiting.start(fs, revoker, &session.notifier())?;
    started();
    session.run()
}

/// Enough that slow storage under some requests does not starve the others.
fn thread_count() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).saturating_mul(4).clamp(8, 32)
}

thread_local! {
    /// What a read is read into, kept for the next one.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[derive(Debug)]
struct Shim<F> {
    fs: Arc<F>,
    team: Team,
    revoker: Revoker,
}

/// A reply that can be an error.
trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),* $(,)?) => {$(
        impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        }
    )*};
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr,
);

/// How long a request is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Short,
    Long,
}

impl Work {
    fn of_size(bytes: usize) -> Self {
        if bytes >= LONG_TRANSFER { Self::Long } else { Self::Short }
    }
}

impl<F: Operations> Shim<F> {
    /// Runs one handler: `body` gets the caller and has to reply. If it panics instead, the reply that it owned is
    /// dropped, which makes fuser send EIO.
    fn handle(&self, request: &Request, work: Work, body: impl FnOnce(FsResult<Caller>)) {
        let turn = self.team.turn();
        if work == Work::Long {
            turn.long_work();
        }
        let caller = caller(request);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(caller))) {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
            log::error!("a request handler has panicked: {text}");
        }
    }

    fn answer<R: Refuse, T>(
        &self,
        request: &Request,
        reply: R,
        work: Work,
        call: impl FnOnce(&F, &Caller) -> FsResult<T>,
        send: impl FnOnce(R, T),
    ) {
        self.handle(request, work, |caller| match caller.and_then(|caller| call(&self.fs, &caller)) {
            Ok(value) => send(reply, value),
            Err(error) => reply.refuse(errno(&error)),
        });
    }

    /// As [`Self::answer`], where something may have to be revoked before the reply.
    fn answer_revoking<R: Refuse, T: Send + 'static>(
        &self,
        request: &Request,
        reply: R,
        held: Held,
        work: Work,
        call: impl FnOnce(&F, &Caller) -> FsResult<Outcome<T>>,
        send: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.answer(request, reply, work, call, |reply, Outcome { value, revocation }| match revocation {
            None => send(reply, value),
            Some(revocation) => {
                self.revoker.then_reply(revocation, held, Box::new(move || send(reply, value)));
            }
        });
    }
}

/// A request without a uid that means anything in the daemon's user namespace is nobody's.
fn caller(request: &Request) -> FsResult<Caller> {
    if request.uid() == u32::MAX {
        return Err(FsError::Denied);
    }
    Ok(Caller { uid: request.uid(), gid: request.gid(), tid: request.pid() })
}

/// A name is one component of a path. The kernel sends nothing else; nothing below relies on that.
fn checked(name: &OsStr) -> FsResult<&OsStr> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(FsError::Invalid),
        bytes if bytes.contains(&b'/') || bytes.contains(&0) => Err(FsError::Invalid),
        _ => Ok(name),
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Seconds and nanoseconds, these counted forwards, to the standard library's time; 1970 for what it cannot hold.
fn system_time((seconds, nanoseconds): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|base| base.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(UNIX_EPOCH)
}

/// What a request's time was before fuser made a `SystemTime` of it. fuser takes the nanoseconds of a time before 1970
/// for counted backwards, where the kernel counts them forwards; read back the same way they come out right.
fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => match time.duration_since(UNIX_EPOCH) {
            Ok(after) => SetTime::At(i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
            Err(before) => {
                let before = before.duration();
                let seconds = 0_i64.checked_sub_unsigned(before.as_secs()).unwrap_or(i64::MIN);
                SetTime::At(seconds, before.subsec_nanos())
            }
        },
    }
}

fn open_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    // Writers of one item are kept apart below, so the kernel need not do it.
    flags.set(FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES, opened.direct_io);
    flags.set(FopenFlags::FOPEN_NOFLUSH, opened.no_flush);
    flags.set(FopenFlags::FOPEN_CACHE_DIR, opened.cache_dir);
    flags
}

fn send_entry(reply: ReplyEntry, entry: Entry) {
    reply.entry(&entry.ttl, &file_attr(&entry.attr), Generation(entry.generation));
}

fn send_opened(reply: ReplyOpen, opened: Opened) {
    reply.opened(FileHandle(opened.fh), open_flags(&opened));
}

fn send_attr(reply: ReplyAttr, (attr, ttl): (Attr, Duration)) {
    reply.attr(&ttl, &file_attr(&attr));
}

fn send_ok(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// See getxattr(2): size 0 asks for the length.
fn send_xattr(reply: ReplyXattr, room: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(length) if room == 0 => reply.size(length),
        Ok(length) if length <= room => reply.data(value),
        Ok(_) | Err(_) => reply.error(Errno::ERANGE),
    }
}

impl<F: Operations> Filesystem for Shim<F> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = WANTED & config.capabilities();
        let missing = WANTED & !wanted;
        if !missing.is_empty() {
            log::info!("this kernel's FUSE lacks {missing:?}");
        }
        config.add_capabilities(wanted).map_err(|flags| io::Error::other(format!("refused: {flags:?}")))?;
        config.set_max_write(MAX_TRANSFER).map_err(|_| io::Error::other("max_write refused"))?;
        // The kernel offers what it has; more comes by read_ahead_kb of the mount's backing device.
        if let Err(most) = config.set_max_readahead(MAX_TRANSFER) {
            config.set_max_readahead(most).map_err(|_| io::Error::other("max_readahead refused"))?;
        }
        config.set_max_background(MAX_BACKGROUND).map_err(|_| io::Error::other("max_background refused"))?;
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let call = |fs: &F, caller: &Caller| fs.lookup(caller, parent.0, checked(name)?);
        self.answer(request, reply, Work::Short, call, send_entry);
    }

    fn forget(&self, request: &Request, ino: INodeNo, lookups: u64) {
        self.handle(request, Work::Short, |_| self.fs.forget(ino.0, lookups));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let call = |fs: &F, caller: &Caller| fs.getattr(caller, ino.0, fh.map(|fh| fh.0));
        self.answer(request, reply, Work::Short, call, send_attr);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            fh: fh.map(|fh| fh.0),
            kill_suid: false,
        };
        // fuser drops FATTR_KILL_SUIDGID. The kernel sets it for every change of owner, for a change of size by those
        // without CAP_FSETID, and alone when a write or a chown(-1, -1) takes privileges away.
        let nothing_else = SetAttr { fh: change.fh, ..SetAttr::default() } == change;
        change.kill_suid = uid.is_some() || gid.is_some() || nothing_else || (size.is_some() && request.uid() != 0);
        let work = if size.is_some() { Work::Long } else { Work::Short };
        let call = |fs: &F, caller: &Caller| fs.setattr(caller, ino.0, &change);
        self.answer_revoking(request, reply, Held::Directory(ino.0), work, call, send_attr);
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let call = |fs: &F, caller: &Caller| fs.readlink(caller, ino.0);
        self.answer(request, reply, Work::Short, call, |reply, target| reply.data(&target));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let call = |fs: &F, caller: &Caller| fs.mknod(caller, parent.0, checked(name)?, mode, umask, rdev);
        self.answer(request, reply, Work::Short, call, send_entry);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let call = |fs: &F, caller: &Caller| fs.mkdir(caller, parent.0, checked(name)?, mode, umask);
        self.answer_revoking(request, reply, Held::Directory(parent.0), Work::Short, call, send_entry);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = |fs: &F, caller: &Caller| fs.unlink(caller, parent.0, checked(name)?);
        self.answer_revoking(request, reply, Held::Directory(parent.0), Work::Short, call, send_ok);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = |fs: &F, caller: &Caller| fs.rmdir(caller, parent.0, checked(name)?);
        self.answer_revoking(request, reply, Held::Directory(parent.0), Work::Short, call, send_ok);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let call = |fs: &F, caller: &Caller| fs.symlink(caller, parent.0, checked(name)?, target);
        self.answer(request, reply, Work::Short, call, send_entry);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let call = |fs: &F, caller: &Caller| {
            fs.rename(caller, parent.0, checked(name)?, new_parent.0, checked(new_name)?, flags.bits())
        };
        self.answer_revoking(request, reply, Held::Directory(parent.0), Work::Short, call, send_ok);
    }

    fn link(&self, request: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let call = |fs: &F, caller: &Caller| fs.link(caller, ino.0, new_parent.0, checked(new_name)?);
        self.answer(request, reply, Work::Short, call, send_entry);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let call = |fs: &F, caller: &Caller| fs.open(caller, ino.0, flags.0);
        self.answer(request, reply, Work::Short, call, send_opened);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size.min(MAX_TRANSFER);
        let call = |fs: &F, caller: &Caller| {
            let mut buffer = BUFFER.take();
            buffer.clear();
            let outcome = fs.read(caller, ino.0, fh.0, offset, &mut buffer, size);
            outcome.map(|()| buffer)
        };
        let send = |reply: ReplyData, buffer: Vec<u8>| {
            reply.data(&buffer);
            BUFFER.set(buffer);
        };
        self.answer(request, reply, Work::of_size(size as usize), call, send);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kill_suid = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let call = |fs: &F, caller: &Caller| fs.write(caller, ino.0, fh.0, offset, data, from_cache, kill_suid);
        let send = |reply: ReplyWrite, written| reply.written(written);
        self.answer_revoking(request, reply, Held::Pages(ino.0), Work::of_size(data.len()), call, send);
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let call = |fs: &F, caller: &Caller| fs.flush(caller, ino.0, fh.0);
        self.answer_revoking(request, reply, Held::Pages(ino.0), Work::Short, call, send_ok);
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.handle(request, Work::Short, |_| {
            self.fs.release(ino.0, fh.0);
            reply.ok();
        });
    }

    fn fsync(&self, request: &Request, ino: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let call = |fs: &F, _: &Caller| fs.fsync(ino.0, fh.0, data_only);
        self.answer(request, reply, Work::Long, call, send_ok);
    }

    fn opendir(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let call = |fs: &F, caller: &Caller| fs.opendir(caller, ino.0, flags.0);
        self.answer(request, reply, Work::Short, call, send_opened);
    }

    fn readdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.handle(request, Work::Short, |caller| {
            let listed = caller.and_then(|caller| {
                let offset = i64::try_from(offset).map_err(|_| FsError::Invalid)?;
                self.fs.readdir(&caller, ino.0, fh.0, offset, false, &mut |item| {
                    reply.add(INodeNo(item.ino), item.offset_next.cast_unsigned(), file_type(item.kind), item.name)
                })
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.refuse(errno(&error)),
            }
        });
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.handle(request, Work::Short, |caller| {
            let listed = caller.and_then(|caller| {
                let offset = i64::try_from(offset).map_err(|_| FsError::Invalid)?;
                self.fs.readdir(&caller, ino.0, fh.0, offset, true, &mut |item| {
                    let next = item.offset_next.cast_unsigned();
                    match (&item.entry, item.name.as_bytes()) {
                        // The kernel takes number and kind of these two and nothing else.
                        (_, b"." | b"..") => {
                            let attr = dot_attr(item.ino, item.kind);
                            reply.add(INodeNo(item.ino), next, item.name, &Duration::ZERO, &attr, Generation(0))
                        }
                        (Some(entry), _) => {
                            let (attr, generation) = (file_attr(&entry.attr), Generation(entry.generation));
                            reply.add(INodeNo(item.ino), next, item.name, &entry.ttl, &attr, generation)
                        }
                        // fuser cannot send a name with a number and without attributes, and a name whose attributes
                        // cannot be had has just gone.
                        (None, _) => false,
                    }
                })
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.refuse(errno(&error)),
            }
        });
    }

    fn releasedir(&self, request: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.handle(request, Work::Short, |_| {
            self.fs.releasedir(ino.0, fh.0);
            reply.ok();
        });
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let call = |fs: &F, _: &Caller| fs.fsyncdir(ino.0, fh.0, data_only);
        self.answer(request, reply, Work::Long, call, send_ok);
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let call = |fs: &F, _: &Caller| fs.statfs(ino.0);
        self.answer(request, reply, Work::Long, call, |reply, s| {
            reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize);
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let call = |fs: &F, caller: &Caller| fs.setxattr(caller, ino.0, name, value, flags);
        self.answer_revoking(request, reply, Held::Directory(ino.0), Work::Short, call, send_ok);
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let call = |fs: &F, caller: &Caller| fs.getxattr(caller, ino.0, name);
        self.answer(request, reply, Work::Short, call, |reply, value| send_xattr(reply, size, &value));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let call = |fs: &F, caller: &Caller| fs.listxattr(caller, ino.0);
        self.answer(request, reply, Work::Short, call, |reply, names| send_xattr(reply, size, &names));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let call = |fs: &F, caller: &Caller| fs.removexattr(caller, ino.0, name);
        self.answer_revoking(request, reply, Held::Directory(ino.0), Work::Short, call, send_ok);
    }

    /// Never asked with `default_permissions`.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let call = |fs: &F, caller: &Caller| fs.create(caller, parent.0, checked(name)?, mode, umask, flags);
        self.answer(request, reply, Work::Short, call, |reply, (entry, opened)| {
            let (attr, generation) = (file_attr(&entry.attr), Generation(entry.generation));
            reply.created(&entry.ttl, &attr, generation, FileHandle(opened.fh), open_flags(&opened));
        });
    }

    /// For good: there are no blocks.
    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// For good: the kernel then takes every file for ready.
    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let call = |fs: &F, _: &Caller| fs.fallocate(ino.0, fh.0, offset, length, mode);
        self.answer(request, reply, Work::Long, call, send_ok);
    }

    fn lseek(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let call = |fs: &F, _: &Caller| {
            let offset = u64::try_from(offset).map_err(|_| FsError::NoDevice)?;
            i64::try_from(fs.lseek(ino.0, fh.0, offset, whence)?).map_err(|_| FsError::TooLarge)
        };
        self.answer(request, reply, Work::Short, call, ReplyLseek::offset);
    }

    /// For good: the kernel copies by reading and writing, each of which is decided.
    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

/// Attributes of which only number and kind count.
fn dot_attr(ino: u64, kind: Kind) -> FileAttr {
    let none = (0, 0);
    let (atime, mtime, ctime) = (none, none, none);
    let (size, blocks, perm, nlink, uid, gid, rdev, blksize) = (0, 0, 0, 1, 0, 0, 0, 4096);
    file_attr(&Attr { ino, size, blocks, atime, mtime, ctime, kind, perm, nlink, uid, gid, rdev, blksize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_library_s_reading_of_them() {
        // What fuser makes of a request's time, by its own rule.
        let through_fuser = |seconds: i64, nanoseconds| {
            let length = Duration::new(seconds.unsigned_abs(), nanoseconds);
            if seconds < 0 { UNIX_EPOCH.checked_sub(length) } else { UNIX_EPOCH.checked_add(length) }.unwrap()
        };
        for (seconds, nanoseconds) in
            [(0, 0), (1, 999_999_999), (-1, 0), (-1, 1), (-2, 800_000_000), (i64::MAX, 0), (i64::MIN, 0)]
        {
            let time = TimeOrNow::SpecificTime(through_fuser(seconds, nanoseconds));
            assert_eq!(set_time(time), SetTime::At(seconds, nanoseconds));
        }
    }

    #[test]
    fn times_before_1970_go_out_as_they_are() {
        assert_eq!(system_time((-2, 800_000_000)), UNIX_EPOCH - Duration::from_millis(1200));
        assert_eq!(system_time((3, 5)), UNIX_EPOCH + Duration::new(3, 5));
        assert_eq!(system_time((i64::MIN, 0)), UNIX_EPOCH.checked_sub(Duration::from_secs(1 << 63)).unwrap());
    }

    #[test]
    fn a_path_is_not_a_name() {
        for bad in ["", ".", "..", "a/b", "/", "a\0b"] {
            assert!(checked(OsStr::new(bad)).is_err(), "{bad:?}");
        }
        for good in ["a", "...", ".a", "a b", "é"] {
            assert!(checked(OsStr::new(good)).is_ok(), "{good:?}");
        }
    }
}
