//! A storage for tests: passes every call on to another one, writes down what changes anything, rebuilds the directory
//! as it would be after a crash behind any of these calls, and makes chosen calls fail.
//!
//! A crash keeps calls on names in order, as a journaling file system does: all of them, or those up to some point
//! behind the last flush of a directory (`Rebuilder::make_with_names`), beyond which no file has grown either that was not
//! flushed; and of what was written to a file since its last flush, all, nothing, or an arbitrary part: `Unflushed`. Calls are written down in the order in which they reach the
//! storage below, one at a time.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::storage::{
    Dir, DirEntry, File, FileKind, RenameFlags, SetTime, Stat, StatVfs, Storage, XattrFlags, read_whole,
};

/// Bytes of a page of the page cache.
const PAGE: u64 = 4096;
/// The largest file that may be there at the start.
const INITIAL_LIMIT: u64 = 1 << 30;

/// What a crash leaves of writes, truncations and hole punches since the file's last flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unflushed {
    Keep,
    Drop,
    /// An arbitrary part of them, in order, chosen by the seed; a write may be kept up to any byte.
    Some(u64),
}

type Node = usize;
/// What a journaling file system keeps in order: the entries of directories, and the lengths of files.
#[derive(Debug, Clone, Default)]
struct Metadata {
    entries: BTreeMap<Node, BTreeMap<OsString, Node>>,
    lengths: BTreeMap<Node, usize>,
}

const ROOT: Node = 0;

/// A call that changed something, or a flush.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    CreateFile { dir: usize, name: OsString, node: usize, mode: u32 },
    CreateDir { dir: usize, name: OsString, node: usize, mode: u32 },
    RemoveFile { dir: usize, name: OsString },
    RemoveDir { dir: usize, name: OsString },
    Rename { dir: usize, from: OsString, to_dir: usize, to: OsString, exchange: bool },
    Link { dir: usize, from: OsString, to_dir: usize, to: OsString },
    Change { node: usize, change: Change },
    Allocate { node: usize },
    Chmod { node: usize, mode: u32 },
    Chown { node: usize },
    Utimens { node: usize },
    SetXattr { node: usize, key: OsString, value: Vec<u8> },
    RemoveXattr { node: usize, key: OsString },
    SyncFile { node: usize },
    SyncDir { node: usize },
    SyncFs,
}

/// A change of a file's bytes, which is lost in a crash unless the file is flushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen { length: u64 },
    PunchHole { offset: u64, length: u64 },
}

impl Change {
    /// Makes the change; of a write at most `most` bytes.
    fn apply(&self, file: &mut Vec<u8>, most: usize) -> io::Result<()> {
        let place = |offset: u64| usize::try_from(offset).map_err(|_| io::Error::from(Errno::FBIG));
        match self {
            Self::Write { offset, bytes } => {
                let bytes = bytes.get(..most.min(bytes.len())).unwrap_or(bytes);
                let start = place(*offset)?;
                let end = start.checked_add(bytes.len()).ok_or(Errno::FBIG)?;
                if file.len() < end {
                    file.resize(end, 0);
                }
                file.get_mut(start..end).ok_or(Errno::FBIG)?.copy_from_slice(bytes);
            }
            Self::SetLen { length } => file.resize(place(*length)?, 0),
            Self::PunchHole { offset, length } => {
                let start = place(*offset)?.min(file.len());
                let end = place(offset.saturating_add(*length))?.min(file.len());
                file.get_mut(start..end).ok_or(Errno::FBIG)?.fill(0);
            }
        }
        Ok(())
    }
}

impl Call {
    /// Whether it makes something durable, as against changing it.
    #[must_use]
    pub const fn is_flush(&self) -> bool {
        matches!(self, Self::SyncFile { .. } | Self::SyncDir { .. } | Self::SyncFs)
    }

    const fn is_on_names(&self) -> bool {
        matches!(
            self,
            Self::CreateFile { .. }
                | Self::CreateDir { .. }
                | Self::RemoveFile { .. }
                | Self::RemoveDir { .. }
                | Self::Rename { .. }
                | Self::Link { .. }
        )
    }
}

#[derive(Debug)]
struct Fault {
    first: usize,
    last: usize,
    errno: i32,
    done: Done,
}

/// How much of a write is done before it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Nothing,
    Half,
    All,
}

#[derive(Debug)]
struct Log {
    initial: Image,
    calls: Vec<Call>,
    /// Of each call, which try it was.
    tries: Vec<usize>,
    /// Whether any try that was made to fail was a flush.
    failed_flush: bool,
    /// By device and inode.
    nodes: HashMap<(u64, u64), Node>,
    next_node: Node,
    /// Calls that were tried, failed ones included.
    attempts: usize,
    faults: Vec<Fault>,
}

impl Log {
    fn node_of(&self, stat: &Stat) -> io::Result<Node> {
        // Something that did not come about through this storage.
        self.nodes.get(&(stat.dev, stat.ino)).copied().ok_or_else(|| Errno::STALE.into())
    }

    fn new_node(&mut self, stat: &Stat) -> Node {
        let node = self.next_node;
        self.next_node += 1;
        self.nodes.insert((stat.dev, stat.ino), node);
        node
    }

    /// Writes a call down, which was tried last.
    fn note(&mut self, call: Call) {
        self.calls.push(call);
        self.tries.push(self.attempts.saturating_sub(1));
    }

    /// Counts a try; the fault that it is to meet.
    fn attempt(&mut self) -> Option<(io::Error, Done)> {
        let number = self.attempts;
        self.attempts += 1;
        let fault = self.faults.iter().find(|fault| (fault.first..=fault.last).contains(&number))?;
        Some((io::Error::from_raw_os_error(fault.errno), fault.done))
    }
}

#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<Log>>);

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one call, unless it is to fail, and writes it down if it succeeds.
    fn call(
        &self,
        act: impl FnOnce() -> io::Result<()>,
        describe: impl FnOnce(&mut Log) -> io::Result<Call>,
    ) -> io::Result<()> {
        let mut log = self.log();
        let fault = log.attempt();
        // What the call is about can only be told before it is done.
        let call = describe(&mut log);
        if let Some((error, _)) = fault {
            log.failed_flush |= call.is_ok_and(|call| call.is_flush());
            return Err(error);
        }
        let call = call?;
        act()?;
        log.note(call);
        Ok(())
    }
}

/// The recording storage.
#[derive(Debug)]
pub struct RecordingStorage {
    shared: Shared,
    root: Arc<RecordingDir>,
}

impl RecordingStorage {
    /// Records on top of `inner`; what is there now is the start.
    pub fn new(inner: &dyn Storage) -> io::Result<Self> {
        let root = inner.root();
        let stat = root.stat_self()?;
        let mut log = Log {
            initial: Image { nodes: BTreeMap::new() },
            calls: Vec::new(),
            tries: Vec::new(),
            failed_flush: false,
            nodes: HashMap::new(),
            next_node: ROOT,
            attempts: 0,
            faults: Vec::new(),
        };
        let node = log.new_node(&stat);
        let entries = scan(root.as_ref(), &mut log)?;
        log.initial.nodes.insert(node, ImageNode::new(&stat, Body::Dir(entries)));
        let shared = Shared(Arc::new(Mutex::new(log)));
        Ok(Self { root: Arc::new(RecordingDir { shared: shared.clone(), inner: root, node }), shared })
    }

    /// What was written down so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.shared.log().calls.clone()
    }

    /// How many calls were written down so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.log().calls.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers that `rebuild` takes: after no call, after the first, … after all.
    #[must_use]
    pub fn prefixes(&self) -> std::ops::RangeInclusive<usize> {
        0..=self.len()
    }

    /// How many changing calls and flushes were tried so far, those included that were made to fail.
    #[must_use]
    pub fn attempts(&self) -> usize {
        self.shared.log().attempts
    }

    /// Which try each call was that was written down: for `fail_nth`.
    #[must_use]
    pub fn tries(&self) -> Vec<usize> {
        self.shared.log().tries.clone()
    }

    /// Whether a flush was among the tries that were made to fail.
    #[must_use]
    pub fn has_failed_flush(&self) -> bool {
        self.shared.log().failed_flush
    }

    /// The `number`th try (from 0, see `attempts`) will fail with `errno`; if it is a write, after `done` of it.
    pub fn fail_nth(&self, number: usize, errno: i32, done: Done) {
        self.shared.log().faults.push(Fault { first: number, last: number, errno, done });
    }

    /// All tries from the `number`th on will fail with `errno`, writes after `done` of them.
    pub fn fail_from(&self, number: usize, errno: i32, done: Done) {
        self.shared.log().faults.push(Fault { first: number, last: usize::MAX, errno, done });
    }

    /// No try fails any more.
    pub fn heal(&self) {
        self.shared.log().faults.clear();
    }

    /// Makes at `into`, which must not exist or be an empty directory, what a crash leaves after the first `number`
    /// calls.
    pub fn rebuild(&self, number: usize, unflushed: Unflushed, into: &Path) -> io::Result<()> {
        let mut rebuilder = self.rebuilder();
        rebuilder.advance(number)?;
        rebuilder.make(unflushed, into)
    }

    /// For many rebuilds in order: each call is replayed once.
    #[must_use]
    pub fn rebuilder(&self) -> Rebuilder {
        let log = self.shared.log();
        let names = vec![(0, log.initial.metadata())];
        Rebuilder { image: log.initial.clone(), names, shared: self.shared.clone(), done: 0 }
    }
}

impl Storage for RecordingStorage {
    fn root(&self) -> Arc<dyn Dir> {
        Arc::clone(&self.root) as Arc<dyn Dir>
    }
}

/// Goes through the calls of a recording, in memory.
#[derive(Debug, Clone)]
pub struct Rebuilder {
    shared: Shared,
    image: Image,
    /// The names as they were at the last flush of a directory, and after each call on names since, with the number of
    /// calls until then.
    names: Vec<(usize, Metadata)>,
    done: usize,
}

impl Rebuilder {
    /// Goes on until `number` calls are done; EINVAL for going back or beyond the end.
    pub fn advance(&mut self, number: usize) -> io::Result<()> {
        let log = self.shared.log();
        let calls = log.calls.get(self.done..number).ok_or(Errno::INVAL)?;
        for (call, done) in calls.iter().zip(self.done + 1..) {
            self.image.apply(call)?;
            if matches!(call, Call::SyncDir { .. } | Call::SyncFs) {
                self.names = vec![(done, self.image.metadata())];
            } else if call.is_on_names() {
                self.names.push((done, self.image.metadata()));
            }
        }
        self.done = number;
        Ok(())
    }

    /// The same with a part of the next call done, where that is a write of more than one page: a kill may divide it
    /// between any two pages of the file; `at` chooses the place.
    #[must_use]
    pub fn divided(&self, at: u64) -> Option<Self> {
        let log = self.shared.log();
        let Call::Change { node, change: Change::Write { offset, bytes } } = log.calls.get(self.done)? else {
            return None;
        };
        let pages: Vec<usize> = (1..bytes.len()).filter(|end| (offset + *end as u64).is_multiple_of(PAGE)).collect();
        let end = *pages.get(usize::try_from(at.checked_rem(pages.len() as u64)?).ok()?)?;
        let change = Change::Write { offset: *offset, bytes: bytes.get(..end)?.to_vec() };
        let call = Call::Change { node: *node, change };
        drop(log);
        let mut divided = self.clone();
        divided.image.apply(&call).ok()?;
        Some(divided)
    }

    /// Makes at `into`, which must not exist or be an empty directory, what a crash leaves now.
    pub fn make(&self, unflushed: Unflushed, into: &Path) -> io::Result<()> {
        Maker { image: &self.image, names: None, unflushed, made: HashMap::new() }.make_all(into)
    }

    /// The numbers of calls after which names may stand as they are found after a crash: since the last flush of a
    /// directory, oldest first.
    #[must_use]
    pub fn name_points(&self) -> Vec<usize> {
        self.names.iter().map(|(done, _)| *done).collect()
    }

    /// As `make`, with the names as they were after `point` calls, one of `name_points`; what was created since is gone.
    pub fn make_with_names(&self, point: usize, unflushed: Unflushed, into: &Path) -> io::Result<()> {
        let (_, names) = self.names.iter().find(|(done, _)| *done == point).ok_or(Errno::INVAL)?;
        Maker { image: &self.image, names: Some(names), unflushed, made: HashMap::new() }.make_all(into)
    }
}

/// A directory of one's own that is removed with everything in it when this is dropped; in memory where the host has
/// /dev/shm, since a test of thousands of crashes flushes a lot.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> io::Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let shared = Path::new("/dev/shm");
        let base = if shared.is_dir() { shared.to_path_buf() } else { std::env::temp_dir() };
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = base.join(format!("kmsfs-test.{}.{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                // Left by a process that had the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left in a place for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everything below a directory, taken down; numbers are given to all nodes.
fn scan(dir: &dyn Dir, log: &mut Log) -> io::Result<BTreeMap<OsString, Node>> {
    let mut entries = BTreeMap::new();
    for entry in dir.list()? {
        let stat = dir.stat(&entry.name)?;
        if let Ok(node) = log.node_of(&stat) {
            // Another link of a file.
            entries.insert(entry.name, node);
            continue;
        }
        let node = log.new_node(&stat);
        let body = if stat.kind() == FileKind::Dir {
            Body::Dir(scan(dir.open_dir(&entry.name)?.as_ref(), log)?)
        } else {
            Body::file(read_whole(dir.open_file(&entry.name, false)?.as_ref(), INITIAL_LIMIT)?)
        };
        let mut made = ImageNode::new(&stat, body);
        for key in dir.listxattr(Some(&entry.name))?.into_iter().filter(|key| key.as_bytes().starts_with(b"user.")) {
            let value = dir.getxattr(Some(&entry.name), &key)?;
            made.xattrs.insert(key, value);
        }
        log.initial.nodes.insert(node, made);
        entries.insert(entry.name, node);
    }
    Ok(entries)
}

/// A directory tree in memory.
#[derive(Debug, Clone)]
struct Image {
    nodes: BTreeMap<Node, ImageNode>,
}

#[derive(Debug, Clone)]
struct ImageNode {
    mode: u32,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Dir(BTreeMap<OsString, Node>),
    File {
        bytes: Vec<u8>,
        /// As of the last flush.
        durable: Vec<u8>,
        /// Since then.
        changes: Vec<Change>,
    },
}

impl Body {
    fn file(bytes: Vec<u8>) -> Self {
        Self::File { durable: bytes.clone(), bytes, changes: Vec::new() }
    }

    fn flush(&mut self) {
        if let Self::File { bytes, durable, changes } = self
            && !changes.is_empty()
        {
            durable.clone_from(bytes);
            changes.clear();
        }
    }
}

impl ImageNode {
    fn new(stat: &Stat, body: Body) -> Self {
        Self { mode: stat.permissions(), xattrs: BTreeMap::new(), body }
    }
}

impl Image {
    fn apply(&mut self, call: &Call) -> io::Result<()> {
        match call {
            Call::CreateFile { dir, name, node, mode } => {
                let body = Body::file(Vec::new());
                self.nodes.insert(*node, ImageNode { mode: *mode, xattrs: BTreeMap::new(), body });
                self.entries(*dir)?.insert(name.clone(), *node);
            }
            Call::CreateDir { dir, name, node, mode } => {
                let body = Body::Dir(BTreeMap::new());
                self.nodes.insert(*node, ImageNode { mode: *mode, xattrs: BTreeMap::new(), body });
                self.entries(*dir)?.insert(name.clone(), *node);
            }
            Call::RemoveFile { dir, name } | Call::RemoveDir { dir, name } => {
                self.entries(*dir)?.remove(name).ok_or(Errno::NOENT)?;
            }
            Call::Rename { dir, from, to_dir, to, exchange } => {
                let node = *self.entries(*dir)?.get(from).ok_or(Errno::NOENT)?;
                if self.entries(*to_dir)?.get(to) == Some(&node) {
                    // Two links of one file: rename(2) does nothing.
                    return Ok(());
                }
                self.entries(*dir)?.remove(from);
                let old = self.entries(*to_dir)?.insert(to.clone(), node);
                if *exchange {
                    self.entries(*dir)?.insert(from.clone(), old.ok_or(Errno::NOENT)?);
                }
            }
            Call::Link { dir, from, to_dir, to } => {
                let node = *self.entries(*dir)?.get(from).ok_or(Errno::NOENT)?;
                self.entries(*to_dir)?.insert(to.clone(), node);
            }
            Call::Change { node, change } => {
                if let Body::File { bytes, changes, .. } = &mut self.node(*node)?.body {
                    change.apply(bytes, usize::MAX)?;
                    changes.push(change.clone());
                }
            }
            Call::Chmod { node, mode } => self.node(*node)?.mode = *mode,
            Call::SetXattr { node, key, value } => {
                self.node(*node)?.xattrs.insert(key.clone(), value.clone());
            }
            Call::RemoveXattr { node, key } => {
                self.node(*node)?.xattrs.remove(key);
            }
            Call::SyncFile { node } => self.node(*node)?.body.flush(),
            Call::SyncFs => self.nodes.values_mut().for_each(|node| node.body.flush()),
            Call::SyncDir { .. } | Call::Chown { .. } | Call::Utimens { .. } | Call::Allocate { .. } => {}
        }
        Ok(())
    }

    fn node(&mut self, node: Node) -> io::Result<&mut ImageNode> {
        self.nodes.get_mut(&node).ok_or_else(|| Errno::STALE.into())
    }

    fn entries(&mut self, dir: Node) -> io::Result<&mut BTreeMap<OsString, Node>> {
        match &mut self.node(dir)?.body {
            Body::Dir(entries) => Ok(entries),
            Body::File { .. } => Err(Errno::NOTDIR.into()),
        }
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::default();
        for (node, this) in &self.nodes {
            match &this.body {
                Body::Dir(entries) => drop(metadata.entries.insert(*node, entries.clone())),
                Body::File { bytes, .. } => drop(metadata.lengths.insert(*node, bytes.len())),
            }
        }
        metadata
    }
}

/// Makes real files and directories of an image.
struct Maker<'a> {
    image: &'a Image,
    /// Where the names are not those of the image.
    names: Option<&'a Metadata>,
    unflushed: Unflushed,
    /// Files that are there under another name already.
    made: HashMap<Node, PathBuf>,
}

impl Maker<'_> {
    fn make_all(&mut self, into: &Path) -> io::Result<()> {
        match std::fs::read_dir(into).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => return Err(Errno::NOTEMPTY.into()),
            Err(_) => DirBuilder::new().create(into)?,
        }
        self.make(ROOT, into)
    }

    fn make(&mut self, node: Node, path: &Path) -> io::Result<()> {
        let this = self.image.nodes.get(&node).ok_or(Errno::STALE)?;
        match &this.body {
            Body::Dir(entries) => {
                if node != ROOT {
                    DirBuilder::new().mode(0o700).create(path)?;
                }
                let entries = self.names.map_or(Ok(entries), |names| names.entries.get(&node).ok_or(Errno::STALE))?;
                for (name, child) in entries {
                    self.make(*child, &path.join(name))?;
                }
            }
            Body::File { .. } if self.made.contains_key(&node) => {
                return std::fs::hard_link(self.made.get(&node).ok_or(Errno::STALE)?, path);
            }
            Body::File { bytes, durable, changes } => {
                let mut left = match self.unflushed {
                    Unflushed::Keep => bytes.clone(),
                    Unflushed::Drop => durable.clone(),
                    Unflushed::Some(seed) => some(durable, changes, seed, node)?,
                };
                if let Some(names) = self.names {
                    // It did not grow after what is lost of the names, unless it was flushed.
                    let grown = names.lengths.get(&node).copied().unwrap_or(0).max(durable.len());
                    left.truncate(grown);
                }
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
                file.write_all(&left)?;
                self.made.insert(node, path.to_path_buf());
            }
        }
        for (key, value) in &this.xattrs {
            rustix::fs::setxattr(path, key, value, rustix::fs::XattrFlags::empty())?;
        }
        std::fs::set_permissions(path, Permissions::from_mode(this.mode))
    }
}

/// `durable` with an arbitrary part of `changes`.
fn some(durable: &[u8], changes: &[Change], seed: u64, node: Node) -> io::Result<Vec<u8>> {
    let mut bytes = durable.to_vec();
    // SplitMix64: any stream will do, as long as it is the same each time.
    let mut state = seed ^ u64::try_from(node).unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    for change in changes {
        match next() % 5 {
            0 | 1 => {}
            2 => change.apply(&mut bytes, usize::try_from(next() % 5000).unwrap_or(0))?,
            _ => change.apply(&mut bytes, usize::MAX)?,
        }
    }
    Ok(bytes)
}

#[derive(Debug)]
struct RecordingDir {
    shared: Shared,
    inner: Arc<dyn Dir>,
    node: Node,
}

impl RecordingDir {
    fn stat_of(&self, name: Option<&OsStr>) -> io::Result<Stat> {
        name.map_or_else(|| self.inner.stat_self(), |name| self.inner.stat(name))
    }

    /// A call on what `name` leads to.
    fn call_on(
        &self,
        name: Option<&OsStr>,
        act: impl FnOnce() -> io::Result<()>,
        call: impl FnOnce(Node) -> Call,
    ) -> io::Result<()> {
        self.shared.call(act, |log| Ok(call(log.node_of(&self.stat_of(name)?)?)))
    }
}

impl Dir for RecordingDir {
    fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd()
    }

    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>> {
        let inner = self.inner.open_dir(name)?;
        let node = self.shared.log().node_of(&inner.stat_self()?)?;
        Ok(Arc::new(RecordingDir { shared: self.shared.clone(), inner, node }))
    }

    fn open_file(&self, name: &OsStr, writable: bool) -> io::Result<Arc<dyn File>> {
        let inner = self.inner.open_file(name, writable)?;
        let node = self.shared.log().node_of(&inner.stat()?)?;
        Ok(Arc::new(RecordingFile { shared: self.shared.clone(), inner, node }))
    }

    fn create_file(&self, name: &OsStr, mode: u32) -> io::Result<Arc<dyn File>> {
        let mut log = self.shared.log();
        if let Some((error, _)) = log.attempt() {
            return Err(error);
        }
        let inner = self.inner.create_file(name, mode)?;
        let stat = inner.stat()?;
        let node = log.new_node(&stat);
        log.note(Call::CreateFile { dir: self.node, name: name.into(), node, mode: stat.permissions() });
        Ok(Arc::new(RecordingFile { shared: self.shared.clone(), inner, node }))
    }

    fn create_dir(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        let mut log = self.shared.log();
        if let Some((error, _)) = log.attempt() {
            return Err(error);
        }
        self.inner.create_dir(name, mode)?;
        let stat = self.inner.stat(name)?;
        let node = log.new_node(&stat);
        log.note(Call::CreateDir { dir: self.node, name: name.into(), node, mode: stat.permissions() });
        Ok(())
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        let call = Call::RemoveFile { dir: self.node, name: name.into() };
        self.shared.call(|| self.inner.remove_file(name), |_| Ok(call))
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        let call = Call::RemoveDir { dir: self.node, name: name.into() };
        self.shared.call(|| self.inner.remove_dir(name), |_| Ok(call))
    }

    fn rename(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr, flags: RenameFlags) -> io::Result<()> {
        self.shared.call(
            || self.inner.rename(from, to_dir, to, flags),
            |log| {
                let to_node = log.node_of(&to_dir.stat_self()?)?;
                let exchange = flags == RenameFlags::Exchange;
                Ok(Call::Rename { dir: self.node, from: from.into(), to_dir: to_node, to: to.into(), exchange })
            },
        )
    }

    fn link(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()> {
        self.shared.call(
            || self.inner.link(from, to_dir, to),
            |log| {
                let to_node = log.node_of(&to_dir.stat_self()?)?;
                Ok(Call::Link { dir: self.node, from: from.into(), to_dir: to_node, to: to.into() })
            },
        )
    }

    fn stat(&self, name: &OsStr) -> io::Result<Stat> {
        self.inner.stat(name)
    }

    fn stat_self(&self) -> io::Result<Stat> {
        self.inner.stat_self()
    }

    fn each(&self, each: &mut dyn FnMut(DirEntry) -> bool) -> io::Result<()> {
        self.inner.each(each)
    }

    fn chmod(&self, name: Option<&OsStr>, mode: u32) -> io::Result<()> {
        let call = |node| Call::Chmod { node, mode: mode & 0o7777 };
        self.call_on(name, || self.inner.chmod(name, mode), call)
    }

    fn chown(&self, name: Option<&OsStr>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.call_on(name, || self.inner.chown(name, uid, gid), |node| Call::Chown { node })
    }

    fn utimens(&self, name: Option<&OsStr>, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        self.call_on(name, || self.inner.utimens(name, atime, mtime), |node| Call::Utimens { node })
    }

    fn getxattr(&self, name: Option<&OsStr>, key: &OsStr) -> io::Result<Vec<u8>> {
        self.inner.getxattr(name, key)
    }

    fn setxattr(&self, name: Option<&OsStr>, key: &OsStr, value: &[u8], flags: XattrFlags) -> io::Result<()> {
        let call = |node| Call::SetXattr { node, key: key.into(), value: value.to_vec() };
        self.call_on(name, || self.inner.setxattr(name, key, value, flags), call)
    }

    fn listxattr(&self, name: Option<&OsStr>) -> io::Result<Vec<OsString>> {
        self.inner.listxattr(name)
    }

    fn removexattr(&self, name: Option<&OsStr>, key: &OsStr) -> io::Result<()> {
        let call = |node| Call::RemoveXattr { node, key: key.into() };
        self.call_on(name, || self.inner.removexattr(name, key), call)
    }

    fn sync(&self) -> io::Result<()> {
        self.shared.call(|| self.inner.sync(), |_| Ok(Call::SyncDir { node: self.node }))
    }

    fn statvfs(&self) -> io::Result<StatVfs> {
        self.inner.statvfs()
    }

    fn syncfs(&self) -> io::Result<()> {
        // The real call would wait for everybody else's files; a crash here is made from the recording alone.
        self.shared.call(|| Ok(()), |_| Ok(Call::SyncFs))
    }
}

#[derive(Debug)]
struct RecordingFile {
    shared: Shared,
    inner: Arc<dyn File>,
    node: Node,
}

impl RecordingFile {
    fn call(&self, act: impl FnOnce() -> io::Result<()>, call: Call) -> io::Result<()> {
        self.shared.call(act, |_| Ok(call))
    }
}

impl File for RecordingFile {
    fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut log = self.shared.log();
        let fault = log.attempt();
        let done = match &fault {
            None | Some((_, Done::All)) => bytes,
            Some((_, Done::Half)) => bytes.get(..bytes.len() / 2).unwrap_or(bytes),
            Some((_, Done::Nothing)) => &[],
        };
        if !done.is_empty() {
            self.inner.write_all_at(done, offset)?;
            let change = Change::Write { offset, bytes: done.to_vec() };
            log.note(Call::Change { node: self.node, change });
        }
        fault.map_or(Ok(()), |(error, _)| Err(error))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let change = Change::SetLen { length };
        self.call(|| self.inner.set_len(length), Call::Change { node: self.node, change })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.call(|| self.inner.sync_data(), Call::SyncFile { node: self.node })
    }

    fn sync_all(&self) -> io::Result<()> {
        self.call(|| self.inner.sync_all(), Call::SyncFile { node: self.node })
    }

    fn stat(&self) -> io::Result<Stat> {
        self.inner.stat()
    }

    fn chmod(&self, mode: u32) -> io::Result<()> {
        self.call(|| self.inner.chmod(mode), Call::Chmod { node: self.node, mode: mode & 0o7777 })
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.call(|| self.inner.chown(uid, gid), Call::Chown { node: self.node })
    }

    fn utimens(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        self.call(|| self.inner.utimens(atime, mtime), Call::Utimens { node: self.node })
    }

    fn getxattr(&self, key: &OsStr) -> io::Result<Vec<u8>> {
        self.inner.getxattr(key)
    }

    fn setxattr(&self, key: &OsStr, value: &[u8], flags: XattrFlags) -> io::Result<()> {
        let call = Call::SetXattr { node: self.node, key: key.into(), value: value.to_vec() };
        self.call(|| self.inner.setxattr(key, value, flags), call)
    }

    fn listxattr(&self) -> io::Result<Vec<OsString>> {
        self.inner.listxattr()
    }

    fn removexattr(&self, key: &OsStr) -> io::Result<()> {
        self.call(|| self.inner.removexattr(key), Call::RemoveXattr { node: self.node, key: key.into() })
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.call(|| self.inner.allocate(offset, length), Call::Allocate { node: self.node })
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let change = Change::PunchHole { offset, length };
        self.call(|| self.inner.punch_hole(offset, length), Call::Change { node: self.node, change })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DirStorage;

    fn recording(scratch: &Scratch) -> RecordingStorage {
        RecordingStorage::new(&DirStorage::open(scratch.path()).unwrap()).unwrap()
    }

    /// Every prefix of a recording, as a list of paths with contents.
    fn tree(path: &Path, base: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(base).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                into.insert(name, b"<dir>".to_vec());
                tree(&path, base, into);
            } else {
                into.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }

    fn contents(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        tree(path, path, &mut all);
        all
    }

    #[test]
    fn a_rebuild_is_what_was_there() {
        let scratch = Scratch::new().unwrap();
        std::fs::create_dir(scratch.path().join("old")).unwrap();
        std::fs::File::create(scratch.path().join("old/x")).unwrap().write_all(b"before").unwrap();
        let recording = recording(&scratch);
        let root = recording.root();
        let mut seen = vec![(0, contents(scratch.path()))];
        let mut see = || seen.push((recording.len(), contents(scratch.path())));
        root.create_dir("d".as_ref(), 0o700).unwrap();
        see();
        let dir = root.open_dir("d".as_ref()).unwrap();
        let file = dir.create_file("a".as_ref(), 0o600).unwrap();
        see();
        file.write_all_at(b"hello", 3).unwrap();
        see();
        file.set_len(6).unwrap();
        file.punch_hole(4, 1).unwrap();
        see();
        dir.link("a".as_ref(), root.as_ref(), "b".as_ref()).unwrap();
        root.rename("b".as_ref(), dir.as_ref(), "a".as_ref(), RenameFlags::None).unwrap();
        see();
        let old = root.open_dir("old".as_ref()).unwrap();
        dir.rename("a".as_ref(), old.as_ref(), "x".as_ref(), RenameFlags::Exchange).unwrap();
        see();
        old.rename("x".as_ref(), root.as_ref(), "y".as_ref(), RenameFlags::None).unwrap();
        dir.remove_file("a".as_ref()).unwrap();
        root.remove_dir("d".as_ref()).unwrap();
        root.open_file("y".as_ref(), true).unwrap().write_all_at(b"!", 0).unwrap();
        see();
        assert_eq!(recording.len(), 12);
        for (number, expected) in seen {
            let into = Scratch::new().unwrap();
            recording.rebuild(number, Unflushed::Keep, into.path()).unwrap();
            assert_eq!(contents(into.path()), expected, "after {number}");
        }
    }

    #[test]
    fn what_was_not_flushed_is_lost() {
        let scratch = Scratch::new().unwrap();
        let recording = recording(&scratch);
        let root = recording.root();
        let file = root.create_file("a".as_ref(), 0o600).unwrap();
        file.write_all_at(b"one", 0).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(b"two!", 0).unwrap();
        file.set_len(2).unwrap();
        root.syncfs().unwrap();
        let at = |number, unflushed| {
            let into = Scratch::new().unwrap();
            recording.rebuild(number, unflushed, into.path()).unwrap();
            std::fs::read(into.path().join("a")).unwrap()
        };
        assert_eq!((at(2, Unflushed::Keep), at(2, Unflushed::Drop)), (b"one".to_vec(), b"".to_vec()));
        assert_eq!((at(5, Unflushed::Keep), at(5, Unflushed::Drop)), (b"tw".to_vec(), b"one".to_vec()));
        assert_eq!((at(6, Unflushed::Keep), at(6, Unflushed::Drop)), (b"tw".to_vec(), b"tw".to_vec()));
        let parts: std::collections::BTreeSet<_> = (0..50).map(|seed| at(5, Unflushed::Some(seed))).collect();
        for expected in ["one", "on", "two!", "tw"] {
            assert!(parts.contains(expected.as_bytes()), "{expected} not in {parts:?}");
        }
    }

    #[test]
    fn a_write_of_several_pages_may_be_divided() {
        let scratch = Scratch::new().unwrap();
        let recording = recording(&scratch);
        let file = recording.root().create_file("a".as_ref(), 0o600).unwrap();
        file.write_all_at(b"old", 0).unwrap();
        file.write_all_at(&[7; 10_000], 100).unwrap();
        let mut rebuilder = recording.rebuilder();
        assert!(rebuilder.divided(0).is_none());
        rebuilder.advance(1).unwrap();
        assert!(rebuilder.divided(0).is_none());
        rebuilder.advance(2).unwrap();
        for (at, length) in [(0, 4096), (1, 8192), (2, 4096)] {
            let into = Scratch::new().unwrap();
            rebuilder.divided(at).unwrap().make(Unflushed::Keep, into.path()).unwrap();
            let found = std::fs::read(into.path().join("a")).unwrap();
            assert_eq!((found.len(), &found[..3], found.last()), (length, &b"old"[..], Some(&7)));
        }
        rebuilder.advance(3).unwrap();
        assert!(rebuilder.divided(0).is_none());
    }

    #[test]
    fn names_may_stand_as_at_any_point_since_a_directory_was_flushed() {
        let scratch = Scratch::new().unwrap();
        let recording = recording(&scratch);
        let root = recording.root();
        let file = root.create_file("a".as_ref(), 0o600).unwrap();
        root.sync().unwrap();
        root.rename("a".as_ref(), root.as_ref(), "b".as_ref(), RenameFlags::None).unwrap();
        root.create_file("c".as_ref(), 0o600).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        file.sync_data().unwrap();
        let mut rebuilder = recording.rebuilder();
        rebuilder.advance(recording.len()).unwrap();
        let points = rebuilder.name_points();
        assert_eq!(points, [2, 3, 4]);
        for (point, expected) in points.into_iter().zip([&["a"][..], &["b"], &["b", "c"]]) {
            let into = Scratch::new().unwrap();
            rebuilder.make_with_names(point, Unflushed::Drop, into.path()).unwrap();
            let found = contents(into.path());
            assert_eq!(found.keys().collect::<Vec<_>>(), expected, "after {point}");
            assert_eq!(found.get(expected[0]).unwrap(), b"x");
        }
        // What was not flushed is no longer than it was then.
        file.write_all_at(b"yz", 0).unwrap();
        rebuilder.advance(recording.len()).unwrap();
        let into = Scratch::new().unwrap();
        rebuilder.make_with_names(2, Unflushed::Keep, into.path()).unwrap();
        assert_eq!(contents(into.path()).get("a").unwrap(), b"y");
        root.sync().unwrap();
        rebuilder.advance(recording.len()).unwrap();
        assert_eq!(rebuilder.name_points(), [recording.len()]);
    }

    #[test]
    fn chosen_calls_fail_and_are_not_recorded() {
        let scratch = Scratch::new().unwrap();
        let recording = recording(&scratch);
        let root = recording.root();
        let full = Errno::NOSPC.raw_os_error();
        recording.fail_nth(0, full, Done::Nothing);
        recording.fail_nth(2, full, Done::Half);
        assert_eq!(root.create_file("a".as_ref(), 0o600).unwrap_err().raw_os_error(), Some(full));
        let file = root.create_file("a".as_ref(), 0o600).unwrap();
        assert_eq!(file.write_all_at(b"abcd", 0).unwrap_err().raw_os_error(), Some(full));
        assert_eq!(file.stat().unwrap().size, 2);
        recording.fail_from(3, full, Done::Nothing);
        assert!(!recording.has_failed_flush());
        assert!(file.sync_data().is_err() && root.sync().is_err() && root.syncfs().is_err());
        assert!(recording.has_failed_flush());
        assert_eq!((recording.len(), recording.attempts(), recording.tries()), (2, 6, vec![1, 2]));
        recording.heal();
        file.sync_data().unwrap();
        assert!(recording.calls().last().unwrap().is_flush());
    }
}
