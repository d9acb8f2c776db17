//! The bound: a file system in memory behind the same transport, on one thread, that does no work. What a load takes
//! here no daemon can do in less; what ends on a disk takes at least this and the disk's time (bench/report.py).
//!
//! `limit MOUNTPOINT` serves until it is unmounted. It asks of the kernel what kmsfs asks, but for access lists and
//! attributes, which it has not, and lets it cache all that can be cached. What is written is kept, as the load checks
//! what it reads.

#![expect(clippy::unwrap_used, reason = "a tool for measuring, whose panics end the measurement")]

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, SessionACL,
    TimeOrNow, WriteFlags,
};

const TTL: Duration = Duration::from_secs(3600);
const ROOT: u64 = 1;
const ONE_TRANSFER: u32 = 1 << 20;

#[derive(Debug)]
enum Node {
    Folder(BTreeMap<OsString, u64>),
    File { bytes: Vec<u8> },
    Link(Vec<u8>),
}

#[derive(Debug)]
struct State {
    nodes: HashMap<u64, Node>,
    next: u64,
}

#[derive(Debug)]
struct Limit(Mutex<State>);

impl State {
    fn folder(&mut self, ino: INodeNo) -> &mut BTreeMap<OsString, u64> {
        match self.nodes.get_mut(&ino.0) {
            Some(Node::Folder(names)) => names,
            Some(Node::File { .. } | Node::Link(_)) | None => unreachable!("the kernel asks of folders it was given"),
        }
    }

    fn make(&mut self, parent: INodeNo, name: &OsStr, node: Node) -> FileAttr {
        self.next += 1;
        let ino = self.next;
        let attr = attr_of(ino, &node);
        self.nodes.insert(ino, node);
        self.folder(parent).insert(name.to_owned(), ino);
        attr
    }

    fn remove(&mut self, parent: INodeNo, name: &OsStr) -> bool {
        // A file that is open may be read on: what is asked of a number that is gone is answered as of an empty file.
        let ino = self.folder(parent).remove(name);
        ino.is_some_and(|ino| self.nodes.remove(&ino).is_some())
    }

    fn attr(&self, ino: u64) -> Option<FileAttr> {
        self.nodes.get(&ino).map(|node| attr_of(ino, node))
    }
}

fn attr_of(ino: u64, node: &Node) -> FileAttr {
    let (kind, size) = match node {
        Node::Folder(_) => (FileType::Directory, 4096),
        Node::File { bytes } => (FileType::RegularFile, bytes.len() as u64),
        Node::Link(target) => (FileType::Symlink, target.len() as u64),
    };
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: 0o777,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Limit {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn opened() -> FopenFlags {
        FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
    }
}

impl Filesystem for Limit {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        // What this kernel lacks it lacks for kmsfs too.
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_write(ONE_TRANSFER);
        let _ = config.set_max_readahead(ONE_TRANSFER);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.state();
        let found = state.folder(parent).get(name).copied();
        match found.and_then(|ino| state.attr(ino)) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.state().attr(ino.0) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.state();
        if let (Some(size), Some(Node::File { bytes })) = (size, state.nodes.get_mut(&ino.0)) {
            bytes.resize(usize::try_from(size).unwrap(), 0);
        }
        match state.attr(ino.0) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.state().nodes.get(&ino.0) {
            Some(Node::Link(target)) => reply.data(target),
            Some(Node::File { .. } | Node::Folder(_)) | None => reply.error(Errno::EINVAL),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let attr = self.state().make(parent, name, Node::Folder(BTreeMap::new()));
        reply.entry(&TTL, &attr, Generation(0));
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &std::path::Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_encoded_bytes().to_vec();
        let attr = self.state().make(parent, name, Node::Link(target));
        reply.entry(&TTL, &attr, Generation(0));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.state().remove(parent, name) { reply.ok() } else { reply.error(Errno::ENOENT) }
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.state();
        let found = state.folder(parent).get(name).copied();
        if found.is_some_and(|ino| !state.folder(INodeNo(ino)).is_empty()) {
            reply.error(Errno::ENOTEMPTY);
        } else if state.remove(parent, name) {
            reply.ok();
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.state();
        let Some(ino) = state.folder(parent).remove(name) else { return reply.error(Errno::ENOENT) };
        if let Some(replaced) = state.folder(new_parent).insert(new_name.to_owned(), ino) {
            state.nodes.remove(&replaced);
        }
        reply.ok();
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_TRUNC != 0
            && let Some(Node::File { bytes }) = self.state().nodes.get_mut(&ino.0)
        {
            bytes.clear();
        }
        reply.opened(FileHandle(ino.0), Self::opened());
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let attr = self.state().make(parent, name, Node::File { bytes: Vec::new() });
        reply.created(&TTL, &attr, Generation(0), FileHandle(attr.ino.0), Self::opened());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.state();
        let Some(Node::File { bytes }) = state.nodes.get(&ino.0) else { return reply.data(&[]) };
        let start = usize::try_from(offset).unwrap().min(bytes.len());
        let end = start.saturating_add(size as usize).min(bytes.len());
        reply.data(bytes.get(start..end).unwrap());
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Some(Node::File { bytes }) = self.state().nodes.get_mut(&ino.0) {
            let start = usize::try_from(offset).unwrap();
            if bytes.len() == start {
                bytes.extend_from_slice(data);
            } else {
                let end = start + data.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes.get_mut(start..end).unwrap().copy_from_slice(data);
            }
        }
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut state = self.state();
        let names = state.folder(ino).iter().enumerate().skip(usize::try_from(offset).unwrap());
        for (index, (name, ino)) in names {
            if reply.add(INodeNo(*ino), index as u64 + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let state = self.state();
        let Some(Node::Folder(names)) = state.nodes.get(&ino.0) else { return reply.error(Errno::ENOTDIR) };
        for (index, (name, ino)) in names.iter().enumerate().skip(usize::try_from(offset).unwrap()) {
            let attr = state.attr(*ino).unwrap();
            if reply.add(INodeNo(*ino), index as u64 + 1, name, &TTL, &attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
    }

    /// For good: the kernel asks no more.
    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

fn main() -> std::io::Result<()> {
    let Some(mount_point) = std::env::args_os().nth(1) else {
        return Err(std::io::Error::other("usage: limit MOUNTPOINT"));
    };
    let root = Node::Folder(BTreeMap::new());
    let limit = Limit(Mutex::new(State { nodes: HashMap::from([(ROOT, root)]), next: ROOT }));
    let mut config = Config::default();
    config.mount_options = vec![MountOption::DefaultPermissions, MountOption::FSName("limit".to_owned())];
    config.acl = SessionACL::All;
    config.n_threads = Some(1);
    fuser::Session::new(limit, mount_point, &config)?.run()
}
