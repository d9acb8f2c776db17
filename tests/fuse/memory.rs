//! A small file system in memory that keeps POSIX as far as the tests look, with a few files that behave oddly on
//! purpose: see [`Memory::gate`] and [`Memory::plan`]; a lookup of `panic` panics, one of `nap*` sleeps.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kmsfs::fs::api::{
    Attr, Caller, DirItem, Emit, Entry, FsError, FsResult, Kind, Opened, Operations, Outcome, Revocation, Revoker,
    SetAttr, SetTime, StatFs,
};

pub const ROOT: u64 = 1;
const TTL: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
struct Node {
    kind: Kind,
    perm: u16,
    nlink: u32,
    owner: (u32, u32),
    atime: (i64, u32),
    mtime: (i64, u32),
    ctime: (i64, u32),
    data: Vec<u8>,
    names: BTreeMap<OsString, u64>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    lookups: u64,
}

#[derive(Debug, Default)]
struct State {
    nodes: HashMap<u64, Node>,
    handles: HashMap<u64, u64>,
    next: u64,
}

/// A gate that reads wait at.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<(usize, bool)>,
    change: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.change.notify_all();
        let _open = self.change.wait_while(state, |(_, open)| !*open).unwrap();
    }

    /// Returns when `count` have come to the gate.
    pub fn wait_for(&self, count: usize) {
        let _state = self.change.wait_while(self.state.lock().unwrap(), |(waiting, _)| *waiting < count).unwrap();
    }

    pub fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.change.notify_all();
    }
}

#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
    /// Where reads and fsyncs of anything called `slow*`, and lookups of `gate`, wait.
    pub gate: Gate,
    /// What the next request of each kind (`write`, `unlink`, `setattr`, `flush`, ...) revokes.
    pub plan: Mutex<HashMap<&'static str, Vec<Revocation>>>,
    pub revoked: Mutex<Vec<u64>>,
    pub revoker: Mutex<Option<Revoker>>,
    pub callers: Mutex<Vec<(&'static str, Caller)>>,
    /// Mode and umask of the last creation.
    pub created: Mutex<Option<(u32, u32)>>,
    pub kills: Mutex<Vec<&'static str>>,
    pub reads: AtomicU64,
    pub shut: AtomicU64,
    /// Inodes that nobody may open or read any more.
    pub denied: Mutex<Vec<u64>>,
}

fn now() -> (i64, u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    (now.as_secs().try_into().unwrap(), now.subsec_nanos())
}

impl Node {
    fn new(kind: Kind, perm: u16, owner: (u32, u32)) -> Self {
        let time = now();
        Self {
            kind,
            perm,
            nlink: if kind == Kind::Dir { 2 } else { 1 },
            owner,
            atime: time,
            mtime: time,
            ctime: time,
            data: Vec::new(),
            names: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            lookups: 0,
        }
    }

    fn attr(&self, ino: u64) -> Attr {
        Attr {
            ino,
            size: self.data.len() as u64,
            blocks: (self.data.len() as u64).div_ceil(512),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            kind: self.kind,
            perm: self.perm,
            nlink: self.nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
        }
    }
}

impl State {
    fn node(&self, ino: u64) -> FsResult<&Node> {
        self.nodes.get(&ino).ok_or(FsError::Stale)
    }

    fn node_mut(&mut self, ino: u64) -> FsResult<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(FsError::Stale)
    }

    fn child(&self, parent: u64, name: &OsStr) -> FsResult<u64> {
        self.node(parent)?.names.get(name).copied().ok_or(FsError::NotFound)
    }

    fn entry(&mut self, ino: u64) -> FsResult<Entry> {
        let node = self.node_mut(ino)?;
        node.lookups += 1;
        Ok(Entry { attr: node.attr(ino), generation: 0, ttl: TTL })
    }

    fn add(&mut self, parent: u64, name: &OsStr, node: Node) -> FsResult<Entry> {
        if self.node(parent)?.kind != Kind::Dir {
            return Err(FsError::NotDir);
        }
        if self.child(parent, name).is_ok() {
            return Err(FsError::Exists);
        }
        self.next += 1;
        let ino = self.next;
        self.nodes.insert(ino, node);
        self.node_mut(parent)?.names.insert(name.to_owned(), ino);
        self.entry(ino)
    }

    fn remove(&mut self, parent: u64, name: &OsStr, dir: bool) -> FsResult<()> {
        let ino = self.child(parent, name)?;
        let node = self.node_mut(ino)?;
        match (node.kind == Kind::Dir, dir) {
            (true, false) => return Err(FsError::IsDir),
            (false, true) => return Err(FsError::NotDir),
            (true, true) if !node.names.is_empty() => return Err(FsError::NotEmpty),
            _ => node.nlink = if dir { 0 } else { node.nlink - 1 },
        }
        self.node_mut(parent)?.names.remove(name);
        Ok(())
    }

    fn open(&mut self, ino: u64) -> u64 {
        self.next += 1;
        let fh = self.next;
        self.handles.insert(fh, ino);
        fh
    }
}

impl Memory {
    pub fn new() -> Self {
        let fs = Self::default();
        {
            let mut state = fs.state();
            state.next = ROOT;
            state.nodes.insert(ROOT, Node::new(Kind::Dir, 0o777, (0, 0)));
        }
        fs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The inode at a path below the root.
    pub fn ino(&self, path: &str) -> u64 {
        let state = self.state();
        path.split('/').filter(|name| !name.is_empty()).fold(ROOT, |dir, name| state.child(dir, name.as_ref()).unwrap())
    }

    pub fn data(&self, path: &str) -> Vec<u8> {
        let ino = self.ino(path);
        self.state().nodes[&ino].data.clone()
    }

    /// Changes a file behind the kernel's back.
    pub fn set_data(&self, path: &str, data: &[u8]) {
        let ino = self.ino(path);
        self.state().node_mut(ino).unwrap().data = data.to_vec();
    }

    pub fn plan(&self, kind: &'static str, revocation: Revocation) {
        self.plan.lock().unwrap().entry(kind).or_default().push(revocation);
    }

    fn outcome<T>(&self, kind: &'static str, value: T) -> Outcome<T> {
        let revocation = self.plan.lock().unwrap().get_mut(kind).and_then(Vec::pop);
        Outcome { value, revocation }
    }

    fn note(&self, kind: &'static str, caller: &Caller) {
        self.callers.lock().unwrap().push((kind, *caller));
    }

    fn killed(&self, kind: &'static str, kill: bool) {
        if kill {
            self.kills.lock().unwrap().push(kind);
        }
    }

    fn created(&self, mode: u32, umask: u32) -> u16 {
        *self.created.lock().unwrap() = Some((mode, umask));
        u16::try_from(mode & 0o7777 & !umask).unwrap()
    }

    fn is_slow(&self, ino: u64) -> bool {
        self.state().nodes.values().any(|node| {
            node.names.iter().any(|(name, number)| *number == ino && name.to_string_lossy().starts_with("slow"))
        })
    }
}

impl Operations for Memory {
    fn lookup(&self, caller: &Caller, parent: u64, name: &OsStr) -> FsResult<Entry> {
        self.note("lookup", caller);
        assert_ne!(name, "panic", "as asked");
        if name == "gate" {
            self.gate.pass();
        }
        if name.to_string_lossy().starts_with("nap") {
            std::thread::sleep(Duration::from_micros(700));
        }
        let mut state = self.state();
        let ino = state.child(parent, name)?;
        state.entry(ino)
    }

    fn forget(&self, ino: u64, lookups: u64) {
        let mut state = self.state();
        if let Some(node) = state.nodes.get_mut(&ino) {
            node.lookups = node.lookups.checked_sub(lookups).expect("no more is forgotten than was looked up");
            if node.lookups == 0 && node.nlink == 0 {
                state.nodes.remove(&ino);
            }
        }
    }

    fn getattr(&self, _: &Caller, ino: u64, _: Option<u64>) -> FsResult<(Attr, Duration)> {
        Ok((self.state().node(ino)?.attr(ino), TTL))
    }

    fn setattr(&self, caller: &Caller, ino: u64, change: &SetAttr) -> FsResult<Outcome<(Attr, Duration)>> {
        self.note("setattr", caller);
        self.killed("setattr", change.kill_suid);
        let mut state = self.state();
        let node = state.node_mut(ino)?;
        if let Some(size) = change.size {
            node.data.resize(usize::try_from(size).unwrap(), 0);
            node.mtime = now();
        }
        if change.kill_suid && node.kind == Kind::File {
            node.perm &= 0o1777;
        }
        if let Some(mode) = change.mode {
            node.perm = u16::try_from(mode & 0o7777).unwrap();
        }
        node.owner = (change.uid.unwrap_or(node.owner.0), change.gid.unwrap_or(node.owner.1));
        let time = |set: SetTime| match set {
            SetTime::Now => now(),
            SetTime::At(seconds, nanoseconds) => (seconds, nanoseconds),
        };
        node.atime = change.atime.map_or(node.atime, time);
        node.mtime = change.mtime.map_or(node.mtime, time);
        node.ctime = now();
        let attr = node.attr(ino);
        drop(state);
        Ok(self.outcome("setattr", (attr, TTL)))
    }

    fn readlink(&self, _: &Caller, ino: u64) -> FsResult<Vec<u8>> {
        Ok(self.state().node(ino)?.data.clone())
    }

    fn mknod(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32, umask: u32, _: u32) -> FsResult<Entry> {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            _ => return Err(FsError::NotPermitted),
        };
        let perm = self.created(mode, umask);
        self.state().add(parent, name, Node::new(kind, perm, (caller.uid, caller.gid)))
    }

    fn mkdir(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32, umask: u32) -> FsResult<Outcome<Entry>> {
        let perm = self.created(mode, umask);
        let entry = self.state().add(parent, name, Node::new(Kind::Dir, perm, (caller.uid, caller.gid)))?;
        Ok(self.outcome("mkdir", entry))
    }

    fn unlink(&self, _: &Caller, parent: u64, name: &OsStr) -> FsResult<Outcome<()>> {
        self.state().remove(parent, name, false)?;
        Ok(self.outcome("unlink", ()))
    }

    fn rmdir(&self, _: &Caller, parent: u64, name: &OsStr) -> FsResult<Outcome<()>> {
        self.state().remove(parent, name, true)?;
        Ok(self.outcome("rmdir", ()))
    }

    fn symlink(&self, caller: &Caller, parent: u64, name: &OsStr, target: &[u8]) -> FsResult<Entry> {
        let mut node = Node::new(Kind::Symlink, 0o777, (caller.uid, caller.gid));
        node.data = target.to_vec();
        self.state().add(parent, name, node)
    }

    fn rename(
        &self,
        _: &Caller,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> FsResult<Outcome<()>> {
        let mut state = self.state();
        let ino = state.child(parent, name)?;
        match state.child(new_parent, new_name) {
            Ok(_) if flags & libc::RENAME_NOREPLACE != 0 => return Err(FsError::Exists),
            Ok(there) if flags & libc::RENAME_EXCHANGE != 0 => {
                state.node_mut(parent)?.names.insert(name.to_owned(), there);
            }
            Ok(there) => {
                let dir = state.node(there)?.kind == Kind::Dir;
                state.remove(new_parent, new_name, dir)?;
                state.node_mut(parent)?.names.remove(name);
            }
            Err(_) => {
                state.node_mut(parent)?.names.remove(name);
            }
        }
        state.node_mut(new_parent)?.names.insert(new_name.to_owned(), ino);
        drop(state);
        Ok(self.outcome("rename", ()))
    }

    fn link(&self, _: &Caller, ino: u64, new_parent: u64, new_name: &OsStr) -> FsResult<Entry> {
        let mut state = self.state();
        if state.child(new_parent, new_name).is_ok() {
            return Err(FsError::Exists);
        }
        state.node_mut(ino)?.nlink += 1;
        state.node_mut(new_parent)?.names.insert(new_name.to_owned(), ino);
        state.entry(ino)
    }

    fn open(&self, caller: &Caller, ino: u64, flags: i32) -> FsResult<Opened> {
        self.note("open", caller);
        if self.denied.lock().unwrap().contains(&ino) {
            return Err(FsError::Denied);
        }
        let mut state = self.state();
        if flags & libc::O_TRUNC != 0 {
            state.node_mut(ino)?.data.clear();
        }
        Ok(Opened { fh: state.open(ino), keep_cache: true, ..Opened::default() })
    }

    fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
    ) -> FsResult<(Entry, Opened)> {
        let perm = self.created(mode, umask);
        let mut state = self.state();
        let entry = state.add(parent, name, Node::new(Kind::File, perm, (caller.uid, caller.gid)))?;
        let fh = state.open(entry.attr.ino);
        Ok((entry, Opened { fh, keep_cache: true, ..Opened::default() }))
    }

    fn read(&self, caller: &Caller, ino: u64, fh: u64, offset: u64, buffer: &mut Vec<u8>, size: u32) -> FsResult<()> {
        assert!(buffer.is_empty());
        self.note("read", caller);
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.is_slow(ino) {
            self.gate.pass();
        }
        if self.denied.lock().unwrap().contains(&ino) {
            return Err(FsError::Denied);
        }
        let state = self.state();
        let ino = *state.handles.get(&fh).ok_or(FsError::BadHandle)?;
        let data = &state.node(ino)?.data;
        let start = usize::try_from(offset).unwrap().min(data.len());
        let end = start.saturating_add(size as usize).min(data.len());
        buffer.extend_from_slice(&data[start..end]);
        Ok(())
    }

    fn write(
        &self,
        caller: &Caller,
        ino: u64,
        fh: u64,
        offset: u64,
        data: &[u8],
        from_cache: bool,
        kill_suid: bool,
    ) -> FsResult<Outcome<u32>> {
        self.note(if from_cache { "write from cache" } else { "write" }, caller);
        self.killed("write", kill_suid);
        let mut state = self.state();
        assert_eq!(state.handles.get(&fh), Some(&ino));
        let node = state.node_mut(ino)?;
        let start = usize::try_from(offset).unwrap();
        if node.data.len() < start + data.len() {
            node.data.resize(start + data.len(), 0);
        }
        node.data[start..start + data.len()].copy_from_slice(data);
        node.mtime = now();
        if kill_suid {
            node.perm &= 0o1777;
        }
        drop(state);
        Ok(self.outcome("write", u32::try_from(data.len()).unwrap()))
    }

    fn flush(&self, _: &Caller, _: u64, _: u64) -> FsResult<Outcome<()>> {
        Ok(self.outcome("flush", ()))
    }

    fn release(&self, _: u64, fh: u64) {
        self.state().handles.remove(&fh);
    }

    fn fsync(&self, ino: u64, _: u64, _: bool) -> FsResult<()> {
        if self.is_slow(ino) {
            self.gate.pass();
        }
        Ok(())
    }

    fn opendir(&self, _: &Caller, ino: u64, _: i32) -> FsResult<Opened> {
        Ok(Opened { fh: self.state().open(ino), ..Opened::default() })
    }

    fn readdir(&self, _: &Caller, ino: u64, _: u64, offset: i64, plus: bool, emit: &mut Emit<'_>) -> FsResult<()> {
        let mut state = self.state();
        let mut items: Vec<(OsString, u64)> = vec![(".".into(), ino), ("..".into(), ROOT)];
        items.extend(state.node(ino)?.names.iter().map(|(name, ino)| (name.clone(), *ino)));
        for (place, (name, ino)) in items.iter().enumerate().skip(usize::try_from(offset).unwrap()) {
            let node = state.node_mut(*ino)?;
            let entry = (plus && place > 1).then(|| Entry { attr: node.attr(*ino), generation: 0, ttl: TTL });
            let item =
                DirItem { ino: *ino, offset_next: i64::try_from(place + 1).unwrap(), kind: node.kind, name, entry };
            if emit(item) {
                break;
            }
            node.lookups += u64::from(plus && place > 1);
        }
        Ok(())
    }

    fn releasedir(&self, _: u64, fh: u64) {
        self.state().handles.remove(&fh);
    }

    fn fsyncdir(&self, _: u64, _: u64, _: bool) -> FsResult<()> {
        Ok(())
    }

    fn statfs(&self, _: u64) -> FsResult<StatFs> {
        Ok(StatFs { blocks: 7, bfree: 5, bavail: 3, files: 2, ffree: 1, bsize: 4096, namelen: 255, frsize: 4096 })
    }

    fn setxattr(&self, _: &Caller, ino: u64, name: &OsStr, value: &[u8], _: i32) -> FsResult<Outcome<()>> {
        self.state().node_mut(ino)?.xattrs.insert(name.to_owned(), value.to_vec());
        Ok(self.outcome("setxattr", ()))
    }

    fn getxattr(&self, _: &Caller, ino: u64, name: &OsStr) -> FsResult<Vec<u8>> {
        self.state().node(ino)?.xattrs.get(name).cloned().ok_or(FsError::NoAttribute)
    }

    fn listxattr(&self, _: &Caller, ino: u64) -> FsResult<Vec<u8>> {
        use std::os::unix::ffi::OsStrExt;
        let state = self.state();
        Ok(state.node(ino)?.xattrs.keys().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect())
    }

    fn removexattr(&self, _: &Caller, ino: u64, name: &OsStr) -> FsResult<Outcome<()>> {
        self.state().node_mut(ino)?.xattrs.remove(name).ok_or(FsError::NoAttribute)?;
        Ok(self.outcome("removexattr", ()))
    }

    fn fallocate(&self, ino: u64, _: u64, offset: u64, length: u64, mode: i32) -> FsResult<()> {
        if mode != 0 {
            return Err(FsError::NotSupported);
        }
        let end = usize::try_from(offset + length).unwrap();
        let mut state = self.state();
        let data = &mut state.node_mut(ino)?.data;
        data.resize(end.max(data.len()), 0);
        Ok(())
    }

    fn lseek(&self, ino: u64, _: u64, offset: u64, whence: i32) -> FsResult<u64> {
        let size = self.state().node(ino)?.data.len() as u64;
        match whence {
            _ if offset >= size => Err(FsError::NoDevice),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(size),
            _ => Err(FsError::Invalid),
        }
    }

    fn revoked(&self, id: u64) {
        self.revoked.lock().unwrap().push(id);
    }

    fn set_revoker(&self, revoker: Revoker) {
        *self.revoker.lock().unwrap() = Some(revoker);
    }

    fn shut_down(&self) {
        self.shut.fetch_add(1, Ordering::SeqCst);
    }
}
