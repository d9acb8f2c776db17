//! The redo journal (docs/format.md, section 8): bytes of an item that were promised to be durable are overwritten in
//! place only after sealed records with the new ones are durable, so that a crash leaves each record's changes wholly
//! or not at all, and costs nothing that a sync has acknowledged.
//!
//! A record is appended to the current segment by one write and kept in memory as an `Overlay` of its file, through
//! which reads see it. A checkpoint retires the segment (the next commit starts another), flushes it, puts the overlays
//! in place, flushes the files and only then removes the segment. While a pending record shortens a file, or lengthens
//! it after that, every change of this file is journaled: what a direct write put there, a replay would cut off again.
//! This ends only when the segment is gone, durably; of files of which no flush has promised anything, when it is gone.
//!
//! **Locks**, in the order in which they are taken: `names` (read by a commit, written by a rename), `turn` (one
//! checkpoint at a time), a file's `flushing`, a file's `commits` (one commit of a file at a time), `append` (segments
//! and sequence numbers), `registry`, a file's `state`. `flush` (the group flush) and `removed` are held while none of the others is
//! taken. A checkpoint takes no `names`, `flushing` or `commits`, so a committer may wait for one, which it does
//! before it takes any lock. `call` is held while none of the others is taken. System calls under a lock: the append of
//! a record (`append`; it orders the records), a direct write (`commits`, of this file alone), a file's own flush
//! (`flushing`), a checkpoint (`turn`), the rename (`names`). Reads hold none.
//!
//! **Failures.** A failed append changes nothing: its torn bytes are cut off, else a new segment is started; where
//! neither works, and after any failed flush, the journal is poisoned: every later commit, sync and checkpoint fails
//! with EIO, since a second flush would report success for pages that the kernel has dropped. Segments then stay for
//! the next mount.

mod file;
mod overlay;
mod replay;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, TryLockError, Weak};
use std::time::Duration;

use rustix::io::Errno;

pub use file::{DurableMark, JournaledFile};
pub use replay::Replayed;
use segment::{Draft, HEADER_BYTES, Header};

use super::storage::{Dir, File};
use crate::crypto::{AeadKey, CryptoError, Key256, random};
use crate::types::StoreId;

/// Pending bytes from which on a commit runs a checkpoint first; from twice as many on it waits for one. Where a thread
/// helps, it runs one from half as many on, and a commit waits for one from this on.
const PENDING_LIMIT: u64 = 64 << 20;
/// Files with pending records from which on the same happens: each holds a descriptor.
const PENDING_FILES: usize = 512;
/// Files above which a checkpoint flushes the file system instead of each.
const FLUSH_EACH: usize = 32;
/// Segment numbers that are tried where something that is no segment stands in the way.
const NUMBER_TRIES: usize = 64;

/// Why a journal could not be opened.
#[derive(Debug)]
pub enum JournalError {
    Io(io::Error),
    Crypto(CryptoError),
    /// The journal holds records and the mount is read-only: a writable mount must put them in place first.
    NeedsReplay,
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io(_) => "the journal could not be read or applied",
            Self::Crypto(_) => "the journal's keys could not be made",
            Self::NeedsReplay => "the journal holds changes that only a writable mount can put in place",
        })
    }
}

impl std::error::Error for JournalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Crypto(error) => Some(error),
            Self::NeedsReplay => None,
        }
    }
}

impl From<io::Error> for JournalError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<CryptoError> for JournalError {
    fn from(error: CryptoError) -> Self {
        Self::Crypto(error)
    }
}

/// One change of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<'a> {
    Write { offset: u64, bytes: &'a [u8] },
    SetLen(u64),
}

impl<'a> Op<'a> {
    fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Write { bytes, .. } => bytes,
            Self::SetLen(_) => &[],
        }
    }
}

/// A segment of this mount.
#[derive(Debug)]
struct Segment {
    number: u64,
    file: Arc<dyn File>,
    key: Arc<AeadKey>,
    /// Where the next record goes.
    end: u64,
    /// All records are durable (of a retired segment).
    flushed: bool,
    /// The segment's name is durable.
    named: bool,
    /// Bytes of its records.
    pending: u64,
    dirty: Vec<Arc<JournaledFile>>,
}

#[derive(Debug)]
struct Append {
    current: Option<Segment>,
    /// Oldest first; what they hold is not all in place.
    retired: Vec<Segment>,
    /// The next record's sequence number.
    next: u64,
    next_number: u64,
    /// Directories with renames that must be durable before any later record counts as durable.
    renamed: Vec<Arc<dyn Dir>>,
    /// The place of a failed record was put in order since the last flush.
    mended: bool,
}

#[derive(Debug, Default)]
struct Flush {
    /// Records below are durable.
    durable: u64,
    /// A thread is flushing.
    leading: bool,
}

/// Who may write, and under what.
#[derive(Debug)]
struct Writer {
    key: Key256,
    store: StoreId,
    epoch: u64,
    dir: Arc<dyn Dir>,
}

/// The journal of one mount.
#[derive(Debug)]
pub struct Journal {
    root: Arc<dyn Dir>,
    /// None: the mount is read-only.
    writer: Option<Writer>,
    names: RwLock<()>,
    turn: Mutex<()>,
    append: Mutex<Append>,
    flush: Mutex<Flush>,
    flushed: Condvar,
    /// Open files by device and inode.
    registry: Mutex<HashMap<(u64, u64), Weak<JournaledFile>>>,
    pending: AtomicU64,
    pending_files: AtomicU64,
    limit: AtomicU64,
    /// Somebody waits in `help`, or comes back to it.
    helped: AtomicBool,
    /// Whether he is called.
    call: Mutex<bool>,
    called: Condvar,
    /// A checkpoint without a flush is under way.
    removing: AtomicBool,
    /// One has removed segments, and that is not durable yet. Held while it is being made so.
    removed: Mutex<bool>,
    poisoned: AtomicBool,
    /// `Append::mended`, until a flush is done. Changed with `append` held.
    flush_due: AtomicBool,
    /// Set with `append` held.
    closed: AtomicBool,
}

impl Journal {
    /// Puts in place what earlier mounts have left, then starts anew. `unclean` says whether a mount epoch was not
    /// closed in good order: segments of other epochs are refused (they can only have been put back).
    ///
    /// # Errors
    /// `Io` where a record could not be put in place; the segments are kept then.
    pub fn open(
        root: &Arc<dyn Dir>,
        key: Key256,
        store: StoreId,
        epoch: u64,
        unclean: impl Fn(u64) -> bool,
    ) -> Result<(Arc<Self>, Replayed), JournalError> {
        let dir = journal_dir(root)?;
        let replayed = replay::replay(root, dir.as_ref(), &key, store, &unclean)?;
        Ok((Self::assemble(root, Some(Writer { key, store, epoch, dir })), replayed))
    }

    /// For a read-only mount: writes nothing; commits fail with EROFS.
    ///
    /// # Errors
    /// `NeedsReplay` where there is anything to be put in place.
    pub fn open_read_only(
        root: &Arc<dyn Dir>,
        key: &Key256,
        store: StoreId,
        unclean: impl Fn(u64) -> bool,
    ) -> Result<Arc<Self>, JournalError> {
        match root.open_dir(JOURNAL.as_ref()) {
            Ok(dir) => replay::refuse_pending(dir.as_ref(), key, store, &unclean)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self::assemble(root, None))
    }

    fn assemble(root: &Arc<dyn Dir>, writer: Option<Writer>) -> Arc<Self> {
        let append =
            Append { current: None, retired: Vec::new(), next: 0, next_number: 1, renamed: Vec::new(), mended: false };
        Arc::new(Self {
            root: Arc::clone(root),
            writer,
            names: RwLock::new(()),
            turn: Mutex::new(()),
            append: Mutex::new(append),
            flush: Mutex::new(Flush::default()),
            flushed: Condvar::new(),
            registry: Mutex::new(HashMap::new()),
            pending: AtomicU64::new(0),
            pending_files: AtomicU64::new(0),
            limit: AtomicU64::new(PENDING_LIMIT),
            helped: AtomicBool::new(false),
            call: Mutex::new(false),
            called: Condvar::new(),
            removing: AtomicBool::new(false),
            removed: Mutex::new(false),
            poisoned: AtomicBool::new(false),
            flush_due: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    /// Makes every record that was committed before this call durable. Concurrent callers share one flush.
    pub fn sync(&self) -> io::Result<()> {
        let target = lock(&self.append).next;
        self.sync_to(target)
    }

    /// Puts all that is pending in place, durably, and drops the segments that held it. Commits go on meanwhile.
    pub fn checkpoint(&self) -> io::Result<()> {
        let _turn = lock(&self.turn);
        self.checkpoint_in_turn()
    }

    /// Bytes of records that are not in place yet.
    pub fn pending_bytes(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// The length of a file (by device and inode) with all that is pending, where anything is: its own length then does
    /// not count.
    pub fn pending_len(&self, dev: u64, ino: u64) -> Option<u64> {
        if self.pending_files.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let open = lock(&self.registry).get(&(dev, ino)).and_then(Weak::upgrade)?;
        open.is_pending().then(|| open.len())
    }

    /// How many bytes may be pending before a commit runs a checkpoint; 64 MiB unless set.
    pub fn set_pending_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// For a thread that runs checkpoints beside the commits: waits until half of what may be pending is, but no longer
    /// than `period`, and then runs one. Once a thread has been here, commits call it, and wait at the limit themselves.
    pub fn help(&self, period: Duration) -> io::Result<()> {
        self.helped.store(true, Ordering::Release);
        let call = lock(&self.call);
        let waited = self.called.wait_timeout_while(call, period, |called| !*called);
        let (mut call, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let called = std::mem::take(&mut *call);
        drop(call);
        if called { self.checkpoint() } else { Ok(()) }
    }

    fn call_helper(&self) {
        let mut call = lock(&self.call);
        if !*call {
            *call = true;
            self.called.notify_one();
        }
    }

    /// Renames what is at `from`, a file or a folder (paths are relative to the store): settles whatever is pending at
    /// or below `from` and `to`, runs `act` while no commit can come in between, and where it succeeds gives the open
    /// files at or below their new paths (both ways where `exchange`). `dirs` are those that `act` changes: they are
    /// flushed before any later record counts as durable, since a replay looks under the new name.
    pub fn rename(
        &self,
        from: &Path,
        to: &Path,
        exchange: bool,
        dirs: &[Arc<dyn Dir>],
        act: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        // First without the lock that holds all commits up: mostly nothing is pending then.
        self.settle_below(&[from, to])?;
        let _names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        self.settle_below(&[from, to])?;
        act()?;
        self.note_renamed(dirs);
        for file in self.open_files() {
            file.rename(from, to, exchange);
        }
        Ok(())
    }

    /// As `rename`, of files alone, which are given with their new paths; no other open file is looked at, however many
    /// there are. What is pending of them need not be put in place: it is recorded once more, under the new path. A file
    /// that is replaced is not among them: what is pending of it goes with its name, so where it keeps another name, the
    /// caller settles it before.
    pub fn rename_files(
        &self,
        files: &[(&JournaledFile, &Path)],
        dirs: &[Arc<dyn Dir>],
        act: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        // First without the lock that holds all commits up: mostly nothing comes in between.
        self.record_under(files)?;
        let _names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        self.record_under(files)?;
        act()?;
        self.note_renamed(dirs);
        for (file, path) in files {
            file.set_path(path.to_path_buf());
        }
        Ok(())
    }

    /// What is pending of the files is durable afterwards under the paths given as well, so that a replay finds it
    /// wherever it finds the file.
    fn record_under(&self, files: &[(&JournaledFile, &Path)]) -> io::Result<()> {
        let mut target = 0;
        for (file, path) in files {
            target = target.max(file.record_under(path)?);
        }
        if target == 0 { Ok(()) } else { self.sync_to(target) }
    }

    /// Names in this directory have changed, and what is committed from here on takes that for granted: it is flushed
    /// before any later record counts as durable.
    pub fn note_names(&self, dir: &Arc<dyn Dir>) {
        self.note_renamed(std::slice::from_ref(dir));
    }

    fn note_renamed(&self, dirs: &[Arc<dyn Dir>]) {
        let mut append = lock(&self.append);
        for dir in dirs {
            // One more than are flushed one by one stands for all.
            if append.renamed.len() <= FLUSH_EACH && !append.renamed.iter().any(|known| Arc::ptr_eq(known, dir)) {
                append.renamed.push(Arc::clone(dir));
            }
        }
    }

    /// Checkpoints, leaves no segment, and fails all later commits. On an error segments are left for a replay.
    pub fn close(&self) -> io::Result<()> {
        {
            let _append = lock(&self.append);
            self.closed.store(true, Ordering::Release);
        }
        self.checkpoint()?;
        self.flush_removals()
    }

    /// Forgets everything, as a crash does.
    #[cfg(test)]
    pub(crate) fn abandon(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
        let mut append = lock(&self.append);
        let gone = (append.current.take(), std::mem::take(&mut append.retired));
        drop(append);
        drop(gone);
    }

    fn check(&self) -> io::Result<()> {
        if self.poisoned.load(Ordering::Acquire) { Err(Errno::IO.into()) } else { Ok(()) }
    }

    fn poison(&self, error: &io::Error) {
        log::error!("the journal takes no more changes: {error}");
        self.poisoned.store(true, Ordering::Release);
    }

    fn writer(&self) -> io::Result<&Writer> {
        self.writer.as_ref().ok_or_else(|| Errno::ROFS.into())
    }

    /// Whether commits are taken at all.
    fn check_open(&self) -> io::Result<()> {
        self.writer()?;
        self.check()?;
        if self.closed.load(Ordering::Acquire) { Err(Errno::SHUTDOWN.into()) } else { Ok(()) }
    }

    /// Runs a checkpoint where much is pending. Called with no lock held.
    fn relieve(&self) -> io::Result<()> {
        let (limit, files) = (self.limit.load(Ordering::Relaxed), self.pending_files.load(Ordering::Relaxed));
        let load = self.pending_bytes();
        let many = u64::try_from(PENDING_FILES).unwrap_or(u64::MAX);
        let helped = self.helped.load(Ordering::Acquire);
        if helped && (load > limit / 2 || files > many / 2) {
            self.call_helper();
        }
        if load <= limit && files <= many {
            return Ok(());
        }
        if helped || load > limit.saturating_mul(2) || files > many * 2 {
            let _turn = lock(&self.turn);
            // Whoever had the turn may have done it.
            return if self.pending_bytes() > limit || self.pending_files.load(Ordering::Relaxed) > many {
                self.checkpoint_in_turn()
            } else {
                Ok(())
            };
        }
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        if let Err(error) = self.checkpoint_in_turn() {
            // The commit at hand does not depend on it; twice the limit does.
            log::warn!("a checkpoint of the journal failed: {error}");
        }
        Ok(())
    }

    /// Appends one record for `file`; then it is pending.
    fn append(&self, file: &Arc<JournaledFile>, draft: Draft, ops: &[Op<'_>]) -> io::Result<()> {
        let writer = self.writer()?;
        let mut append = lock(&self.append);
        self.check_open()?;
        let sequence = append.next;
        let mut current = match append.current.take() {
            Some(current) => current,
            None => self.new_segment(writer, &mut append)?,
        };
        let outcome = append_to(&mut current, draft, sequence);
        if let Err(error) = &outcome {
            self.mend(writer, &mut append, current, error);
            return outcome;
        }
        append.next += 1;
        if file.overlay(current.number, append.next, ops) {
            current.dirty.push(Arc::clone(file));
            self.pending_files.fetch_add(1, Ordering::Relaxed);
        }
        let bytes = current.end.saturating_sub(HEADER_BYTES);
        self.pending.fetch_add(bytes.saturating_sub(current.pending), Ordering::Relaxed);
        current.pending = bytes;
        append.current = Some(current);
        Ok(())
    }

    /// Makes the next segment, header written, nothing flushed: that is for the first flush of its records.
    fn new_segment(&self, writer: &Writer, append: &mut Append) -> io::Result<Segment> {
        for _ in 0..NUMBER_TRIES {
            let number = append.next_number;
            append.next_number = number.checked_add(1).ok_or(Errno::OVERFLOW)?;
            let name = OsString::from(number.to_string());
            let session = random().map_err(|_| Errno::IO)?;
            let header = Header { store: writer.store, session, number, first: append.next, epoch: writer.epoch };
            let key = Arc::new(header.record_key(&writer.key).map_err(|_| Errno::IO)?);
            let file = match writer.dir.create_file(&name, 0o600) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other?,
            };
            if let Err(error) = file.write_all_at(&header.encode(&writer.key), 0) {
                // A replay would stop at a segment without a header.
                writer.dir.remove_file(&name).inspect_err(|error| self.poison(error))?;
                return Err(error);
            }
            let (flushed, named, end) = (false, false, HEADER_BYTES);
            return Ok(Segment { number, file, key, end, flushed, named, pending: 0, dirty: Vec::new() });
        }
        Err(Errno::EXIST.into())
    }

    /// After a failed append: no torn record may stand before later good ones.
    fn mend(&self, writer: &Writer, append: &mut Append, torn: Segment, error: &io::Error) {
        // Nor may a crash bring it back once any later sync is acknowledged, even one that has nothing else to flush.
        append.mended = true;
        self.flush_due.store(true, Ordering::Release);
        if torn.file.set_len(torn.end).is_ok() {
            append.current = Some(torn);
            return;
        }
        // The next segment says with which sequence number it starts, so what stands behind in this one is void.
        append.retired.push(torn);
        match self.new_segment(writer, append) {
            Ok(segment) => append.current = Some(segment),
            Err(_) => self.poison(error),
        }
    }

    /// Makes all records below `target` durable: the first caller flushes for those that come meanwhile.
    fn sync_to(&self, target: u64) -> io::Result<()> {
        let mut flush = lock(&self.flush);
        loop {
            self.check()?;
            if flush.durable >= target && !self.flush_due.load(Ordering::Acquire) {
                return Ok(());
            }
            if flush.leading {
                flush = self.flushed.wait(flush).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            flush.leading = true;
            drop(flush);
            let done = self.flush_segments();
            flush = lock(&self.flush);
            flush.leading = false;
            match &done {
                Ok(durable) => flush.durable = flush.durable.max(*durable),
                Err(error) => self.poison(error),
            }
            self.flushed.notify_all();
            done?;
        }
    }

    /// Flushes what has been appended so far; one thread at a time. Returns the sequence number below which all is
    /// durable.
    fn flush_segments(&self) -> io::Result<u64> {
        let writer = self.writer()?;
        let mut append = lock(&self.append);
        let durable = append.next;
        let mended = std::mem::take(&mut append.mended);
        let renamed = std::mem::take(&mut append.renamed);
        let all = append.retired.iter().filter(|segment| !segment.flushed).chain(&append.current);
        let files: Vec<_> = all.map(|segment| (segment.number, Arc::clone(&segment.file), segment.named)).collect();
        let retired: HashSet<u64> = append.retired.iter().map(|segment| segment.number).collect();
        drop(append);
        // A segment that comes back without its end would keep those behind it from being replayed.
        self.flush_removals()?;
        if renamed.len() > FLUSH_EACH {
            self.root.syncfs()?;
        } else {
            renamed.iter().try_for_each(|dir| dir.sync())?;
        }
        // Oldest first: no record is durable before those that it follows, as far as that is ours to say.
        for (_, file, _) in &files {
            file.sync_data()?;
        }
        if files.iter().any(|(_, _, named)| !named) {
            writer.dir.sync()?;
        }
        let done: HashSet<u64> = files.iter().map(|(number, _, _)| *number).collect();
        let mut append = lock(&self.append);
        let Append { current, retired: all, .. } = &mut *append;
        for segment in all.iter_mut().chain(current).filter(|segment| done.contains(&segment.number)) {
            segment.named = true;
            // What was current at the start may have grown since.
            segment.flushed = retired.contains(&segment.number);
        }
        if mended && !append.mended {
            self.flush_due.store(false, Ordering::Release);
        }
        Ok(durable)
    }

    /// The checkpoint; the caller holds `turn`.
    fn checkpoint_in_turn(&self) -> io::Result<()> {
        let Ok(writer) = self.writer() else { return Ok(()) };
        let (next, numbers, dirty) = self.retire_current();
        if let Some(last) = numbers.last().copied()
            && self.put_in_place_unflushed(writer, &numbers, last, &dirty)?
        {
            return Ok(());
        }
        self.sync_to(next)?;
        let Some(last) = numbers.last().copied() else { return Ok(()) };
        for file in &dirty {
            file.apply(last)?;
        }
        self.flush_items(&dirty).inspect_err(|error| self.poison(error))?;
        remove_segments(writer, &numbers)?;
        writer.dir.sync().inspect_err(|error| self.poison(error))?;
        for file in &dirty {
            file.retire(last, true);
        }
        self.forget(last);
        Ok(())
    }

    /// The checkpoint of files of which no flush has promised anything: there a kill alone counts, and of a kill nothing
    /// needs to be flushed. Whether it was one. Whoever promises anything later first makes durable that the segments are
    /// gone (`settle_removals`): come back, they would undo what was written since.
    fn put_in_place_unflushed(
        &self,
        writer: &Writer,
        numbers: &[u64],
        last: u64,
        dirty: &[Arc<JournaledFile>],
    ) -> io::Result<bool> {
        self.removing.store(true, Ordering::SeqCst);
        let done = self.put_in_place_if_unpromised(writer, numbers, last, dirty);
        self.removing.store(false, Ordering::SeqCst);
        done
    }

    fn put_in_place_if_unpromised(
        &self,
        writer: &Writer,
        numbers: &[u64],
        last: u64,
        dirty: &[Arc<JournaledFile>],
    ) -> io::Result<bool> {
        let is_due = self.flush_due.load(Ordering::Acquire) || self.closed.load(Ordering::Acquire);
        // After `removing` was set: who promises something now waits for the end of this, or is seen here.
        if is_due || dirty.iter().any(|file| file.is_promised()) {
            return Ok(false);
        }
        self.check()?;
        for file in dirty {
            file.apply(last)?;
            file.note_unflushed();
        }
        let gone = remove_segments(writer, numbers);
        *lock(&self.removed) = true;
        gone?;
        for file in dirty {
            file.retire(last, false);
        }
        self.forget(last);
        Ok(true)
    }

    /// Before anything is promised: no segment that was removed without a flush comes back after it. Called with no lock
    /// held.
    fn settle_removals(&self) -> io::Result<()> {
        if self.removing.load(Ordering::SeqCst) {
            drop(lock(&self.turn));
        }
        self.flush_removals()
    }

    fn flush_removals(&self) -> io::Result<()> {
        let mut removed = lock(&self.removed);
        if *removed {
            self.writer()?.dir.sync().inspect_err(|error| self.poison(error))?;
            *removed = false;
        }
        Ok(())
    }

    /// Before a flush of the whole file system that promises the names of files, of which it is not known which: from
    /// here on all that are open change through the journal alone.
    pub fn promise_all(&self) -> io::Result<()> {
        for file in self.open_files() {
            file.promise();
        }
        self.settle_removals()
    }

    /// Takes the current segment out of use. Returns the next sequence number, the retired segments' numbers in order,
    /// and the files with records in them.
    fn retire_current(&self) -> (u64, Vec<u64>, Vec<Arc<JournaledFile>>) {
        let mut append = lock(&self.append);
        if let Some(current) = append.current.take() {
            append.retired.push(current);
        }
        let numbers = append.retired.iter().map(|segment| segment.number).collect();
        let mut seen = HashSet::new();
        let all = append.retired.iter().flat_map(|segment| &segment.dirty);
        let dirty = all.filter(|file| seen.insert(Arc::as_ptr(file))).map(Arc::clone).collect();
        (append.next, numbers, dirty)
    }

    fn flush_items(&self, dirty: &[Arc<JournaledFile>]) -> io::Result<()> {
        // The records of a discarded file may go only when its unlink is durable.
        if dirty.len() > FLUSH_EACH || dirty.iter().any(|file| file.is_discarded()) {
            return self.root.syncfs();
        }
        dirty.iter().try_for_each(|file| file.file().sync_data())
    }

    fn forget(&self, last: u64) {
        let mut append = lock(&self.append);
        let (gone, kept) = std::mem::take(&mut append.retired).into_iter().partition(|segment| segment.number <= last);
        append.retired = kept;
        drop(append);
        // Outside of the lock: the last reference to a file may go here.
        let gone: Vec<Segment> = gone;
        for segment in gone {
            self.pending.fetch_sub(segment.pending, Ordering::Relaxed);
            let files = u64::try_from(segment.dirty.len()).unwrap_or(0);
            self.pending_files.fetch_sub(files, Ordering::Relaxed);
        }
    }

    fn settle_below(&self, paths: &[&Path]) -> io::Result<()> {
        let pending = |file: &Arc<JournaledFile>| file.is_pending() && paths.iter().any(|path| file.is_below(path));
        if self.open_files().iter().any(pending) { self.checkpoint() } else { Ok(()) }
    }

    fn open_files(&self) -> Vec<Arc<JournaledFile>> {
        // The references are dropped by the caller: dropping the last of a file takes this lock.
        lock(&self.registry).values().filter_map(Weak::upgrade).collect()
    }
}

const JOURNAL: &str = "journal";

/// The journal's directory, made where it is missing.
fn journal_dir(root: &Arc<dyn Dir>) -> io::Result<Arc<dyn Dir>> {
    match root.open_dir(JOURNAL.as_ref()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            root.create_dir(JOURNAL.as_ref(), 0o700)?;
            root.sync()?;
            root.open_dir(JOURNAL.as_ref())
        }
        other => other,
    }
}

fn remove_segments(writer: &Writer, numbers: &[u64]) -> io::Result<()> {
    for number in numbers {
        match writer.dir.remove_file(number.to_string().as_ref()) {
            // Removed by an earlier checkpoint that failed later.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn append_to(segment: &mut Segment, draft: Draft, sequence: u64) -> io::Result<()> {
    let record = draft.seal(&segment.key, segment.number, sequence).map_err(|_| Errno::IO)?;
    segment.file.write_all_at(&record, segment.end)?;
    segment.end = segment.end.saturating_add(u64::try_from(record.len()).map_err(|_| Errno::OVERFLOW)?);
    Ok(())
}

/// A lock whose holder panicked is taken all the same: each holder leaves what it guards whole between statements.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
