//! One backing file seen through the journal.
//!
//! Invariants of `State`: without a resizing overlay, `len == file_len`, every journaled byte lies below
//! `durable_len <= file_len`, and direct writes touch nothing below it. With one, nothing is written directly, and the
//! file's own length means nothing until a checkpoint has set it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use rustix::io::Errno;

use super::overlay::{Overlay, View};
use super::segment::{Draft, ITEM_ID_AT, ITEM_ID_END};
use super::{Journal, Op, lock};
use crate::store::storage::{File, SetTime};
use crate::types::ItemId;

/// The most that is recorded again for a rename; putting in place what is more costs less than writing it twice.
const RECORD_AGAIN_MAX: usize = 128 << 10;

/// Where a file stood before a flush of the whole file system.
#[derive(Debug, Clone, Copy)]
pub struct DurableMark {
    writes: u64,
    len: u64,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that hold independently of each other")]
struct State {
    path: PathBuf,
    /// No name of the file is known any more: its records cannot be replayed.
    pathless: bool,
    /// The backing file's length.
    file_len: u64,
    /// Bytes below were promised to be durable, or may have been.
    durable_len: u64,
    /// The length with all that is pending.
    len: u64,
    /// Oldest segment first.
    overlays: Vec<Overlay>,
    /// Direct writes since the last flush.
    direct_dirty: bool,
    /// Direct writes so far.
    writes: u64,
    /// The sequence number after the file's last record.
    next: u64,
    /// The path under which all is recorded that was pending when `next` was this.
    recorded_under: Option<(PathBuf, u64)>,
    /// A flush has promised something of the file, or is about to, or one of another mount may have.
    promised: bool,
    /// A flush of the file failed: later ones would claim what was lost.
    failed: bool,
    /// A failed direct write left another length than `len`, and that could not be undone yet.
    ragged: bool,
    discarded: bool,
}

impl State {
    fn resizes(&self) -> bool {
        self.overlays.iter().any(Overlay::resizes)
    }
}

/// One backing file seen through the journal: the only way in which items are read and written.
pub struct JournaledFile {
    journal: Arc<Journal>,
    this: Weak<Self>,
    inode: (u64, u64),
    item: ItemId,
    file: Arc<dyn File>,
    flushing: Mutex<()>,
    commits: Mutex<()>,
    /// Held while a checkpoint writes, which leaves the file's times as they are.
    times: Mutex<()>,
    state: Mutex<State>,
}

impl fmt::Debug for JournaledFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournaledFile").field("item", &self.item).field("inode", &self.inode).finish_non_exhaustive()
    }
}

impl JournaledFile {
    /// The file seen through the journal. Where this inode is already open here, that object (the arguments then do
    /// not count): what is pending is seen by all. `file` is open for writing, unless the journal is read-only.
    /// `path` is relative to the store; `durable_len`: the file's length, or 0 for one that was just created.
    ///
    /// # Errors
    /// EUCLEAN where this inode is already open as another item: its header was changed behind the daemon's back.
    pub fn open(
        journal: &Arc<Journal>,
        file: Arc<dyn File>,
        item: ItemId,
        path: PathBuf,
        durable_len: u64,
    ) -> io::Result<Arc<Self>> {
        let stat = file.stat()?;
        let inode = (stat.dev, stat.ino);
        let mut registry = lock(&journal.registry);
        if let Some(open) = registry.get(&inode).and_then(Weak::upgrade) {
            drop(registry);
            return if open.item == item { Ok(open) } else { Err(Errno::UCLEAN.into()) };
        }
        let state = State {
            path,
            pathless: false,
            file_len: stat.size,
            durable_len: durable_len.min(stat.size),
            len: stat.size,
            overlays: Vec::new(),
            direct_dirty: false,
            writes: 0,
            next: 0,
            recorded_under: None,
            promised: durable_len > 0,
            failed: false,
            ragged: false,
            discarded: false,
        };
        let open = Arc::new_cyclic(|this| Self {
            journal: Arc::clone(journal),
            this: Weak::clone(this),
            inode,
            item,
            file,
            flushing: Mutex::new(()),
            commits: Mutex::new(()),
            times: Mutex::new(()),
            state: Mutex::new(state),
        });
        registry.insert(inode, Arc::downgrade(&open));
        Ok(open)
    }

    /// The backing file's device and number there, which it keeps as long as it is open.
    pub fn inode(&self) -> (u64, u64) {
        self.inode
    }

    pub fn item(&self) -> ItemId {
        self.item
    }

    /// The backing file itself, for owners, modes, times and attributes. Its bytes and length are not to be used.
    pub fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Length in bytes with pending changes counted.
    pub fn len(&self) -> u64 {
        lock(&self.state).len
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fewer bytes than asked for only at the end. A commit that runs at the same time may be seen in part; to exclude
    /// that is the caller's.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = lock(&self.state);
        let rest = usize::try_from(state.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = buffer.len().min(rest);
        // Before the file: what a checkpoint puts in place meanwhile is the same as in the views.
        let views: Vec<View> = state.overlays.iter().map(|overlay| overlay.view(offset, count)).collect();
        drop(state);
        let buffer = buffer.get_mut(..count).ok_or(Errno::OVERFLOW)?;
        let read = self.file.read_at(buffer, offset)?;
        // The file may be shorter than what is pending makes it.
        if let Some(beyond) = buffer.get_mut(read..) {
            beyond.fill(0);
        }
        for view in &views {
            view.lay(buffer, offset);
        }
        Ok(count)
    }

    /// Applies `ops` in order. What lies at or beyond the durable length goes to the file at once, first; everything
    /// that touches durable bytes goes into one journal record, of which a crash leaves all or nothing.
    ///
    /// # Errors
    /// EINVAL for a change of the item id in bytes 24..40 of the file, or a journaled length below 40: replay knows the
    /// file by it. EFBIG for more than 64 MiB in one record. After ENOSPC or EIO nothing that is pending has changed,
    /// and the length is as before; bytes that are not durable may have been written.
    pub fn commit(&self, ops: &[Op<'_>]) -> io::Result<()> {
        self.commit_as(ops, false)
    }

    /// As `commit`, but everything goes into the record, also what lies beyond the durable length: a crash leaves all
    /// of it or nothing. Bytes that the file has now count as durable from here on, in that they change through the
    /// journal alone.
    pub fn commit_whole(&self, ops: &[Op<'_>]) -> io::Result<()> {
        self.commit_as(ops, true)
    }

    fn commit_as(&self, ops: &[Op<'_>], whole: bool) -> io::Result<()> {
        self.journal.check_open()?;
        self.journal.relieve()?;
        let _names = self.journal.names.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _commits = lock(&self.commits);
        self.even_out()?;
        if whole {
            // INVARIANT: direct writes touch no byte that a record holds.
            let mut state = lock(&self.state);
            state.durable_len = state.file_len;
        }
        let plan = self.plan(ops, whole)?;
        let draft = match plan.journaled.as_slice() {
            [] => None,
            journaled => Some(Draft::new(self.item, &lock(&self.state).path, journaled)?),
        };
        let before = self.len();
        if !plan.direct.is_empty() {
            self.write_directly(&plan.direct, before)?;
        }
        let Some(draft) = draft else { return Ok(()) };
        let this = self.this.upgrade().ok_or(Errno::IO)?;
        self.journal.append(&this, draft, &plan.journaled).inspect_err(|_| {
            if !plan.direct.is_empty() {
                self.restore_len(before);
            }
        })
    }

    /// Whether a flush has promised anything of the file, or is about to.
    pub(super) fn is_promised(&self) -> bool {
        lock(&self.state).promised
    }

    /// A flush that is not asked for by name is about to promise the file's: what it has now changes by records alone.
    pub(super) fn promise(&self) {
        let _commits = lock(&self.commits);
        let mut state = lock(&self.state);
        state.promised = true;
        if !state.resizes() {
            state.durable_len = state.file_len;
        }
    }

    /// Whether any of the file has been promised to be durable (so that changes pass through the journal).
    pub fn is_durable_at_all(&self) -> bool {
        lock(&self.state).durable_len > 0
    }

    /// Whether a change of the length is pending: until a checkpoint, nothing is written directly then.
    pub fn is_resizing(&self) -> bool {
        lock(&self.state).resizes()
    }

    /// Makes all of the file durable: bytes that were written directly, and its journal records.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_direct()?;
        self.sync_records()
    }

    /// Makes all records of the file durable.
    pub fn sync_records(&self) -> io::Result<()> {
        let state = lock(&self.state);
        let (next, in_place) = (state.next, state.pathless && !state.overlays.is_empty());
        drop(state);
        if in_place { self.journal.checkpoint() } else { self.journal.sync_to(next) }
    }

    /// Makes the bytes that were written directly durable, and so protects them from now on: to be called before a
    /// record is committed that refers to them.
    ///
    /// # Errors
    /// EIO for ever, once a flush of this file has failed: its bytes may be lost.
    pub fn sync_direct(&self) -> io::Result<()> {
        self.sync_directly(|file| file.sync_data()).map(|_| ())
    }

    /// The same, with owner, mode, times and attributes; whether it was called for, else nothing has been flushed.
    ///
    /// # Errors
    /// As `sync_direct`.
    pub fn sync_direct_all(&self) -> io::Result<bool> {
        self.sync_directly(|file| file.sync_all())
    }

    fn sync_directly(&self, flush: impl FnOnce(&dyn File) -> io::Result<()>) -> io::Result<bool> {
        lock(&self.state).promised = true;
        self.journal.settle_removals()?;
        let _flushing = lock(&self.flushing);
        {
            // No direct write is under way, and later ones below the new durable length are journaled.
            let _commits = lock(&self.commits);
            self.even_out()?;
            let mut state = lock(&self.state);
            if state.failed {
                return Err(Errno::IO.into());
            }
            if !state.direct_dirty {
                return Ok(false);
            }
            state.direct_dirty = false;
            if !state.resizes() {
                state.durable_len = state.file_len;
            }
        }
        flush(self.file.as_ref()).inspect_err(|_| lock(&self.state).failed = true)?;
        Ok(true)
    }

    /// To be taken before a flush of the whole file system, for `mark_durable` after it.
    pub fn durable_mark(&self) -> DurableMark {
        let _commits = lock(&self.commits);
        let state = lock(&self.state);
        DurableMark { writes: state.writes, len: state.file_len }
    }

    /// Counts what was there at `mark` as durable; false, and nothing is changed, if it was written to since.
    pub fn mark_durable(&self, mark: DurableMark) -> bool {
        let _commits = lock(&self.commits);
        let mut state = lock(&self.state);
        if state.writes != mark.writes || state.failed {
            return false;
        }
        if !state.resizes() {
            state.durable_len = state.durable_len.max(mark.len);
        }
        state.promised = true;
        state.direct_dirty = false;
        true
    }

    /// Nothing of this file is pending any more: before an unlink that leaves other links.
    pub fn settle(&self) -> io::Result<()> {
        if self.is_pending() { self.journal.checkpoint() } else { Ok(()) }
    }

    /// Records once more what is pending, under another path: of two records of which only one finds the file, the replay
    /// passes over the other. Much is put in place instead. Gives the sequence number below which all must be durable
    /// before the file may be found there; 0 where nothing is pending.
    pub(super) fn record_under(&self, path: &Path) -> io::Result<u64> {
        let commits = lock(&self.commits);
        let state = lock(&self.state);
        if state.overlays.is_empty() {
            return Ok(0);
        }
        if state.recorded_under.as_ref().is_some_and(|(known, next)| *next == state.next && known == path) {
            return Ok(state.next);
        }
        let much = state.overlays.iter().map(Overlay::bytes).sum::<usize>() > RECORD_AGAIN_MAX;
        if state.pathless || much {
            drop(state);
            drop(commits);
            return self.journal.checkpoint().map(|()| 0);
        }
        let overlays = state.overlays.clone();
        drop(state);
        let ops: Vec<Op<'_>> = overlays.iter().flat_map(Overlay::ops).collect();
        let this = self.this.upgrade().ok_or(Errno::IO)?;
        self.journal.append(&this, Draft::new(self.item, path, &ops)?, &ops)?;
        let mut state = lock(&self.state);
        state.recorded_under = Some((path.to_path_buf(), state.next));
        Ok(state.next)
    }

    /// Drops what is pending, after the unlink of the last link of a file that nobody reads or writes any more. (While
    /// somebody does, leave it alone: its records are harmless, a replay does not find their path.)
    pub fn discard(&self) {
        let mut state = lock(&self.state);
        state.discarded = true;
        state.overlays.clear();
        state.len = state.file_len;
    }

    /// The path for later records, after a rename (which must be durable before a later sync is acknowledged;
    /// `Journal::rename` sees to that).
    pub fn set_path(&self, path: PathBuf) {
        let mut state = lock(&self.state);
        state.path = path;
        state.pathless = false;
    }

    /// Whether no name is known under which a replay would find the file.
    pub fn is_pathless(&self) -> bool {
        lock(&self.state).pathless
    }

    /// The name that this file was known by is gone, others are left that the caller cannot tell: from now on a sync
    /// puts everything in place, since a replay would not find the file. To be preceded by `settle`.
    pub fn forget_path(&self) {
        lock(&self.state).pathless = true;
    }

    /// Up to where a crash may change nothing but by whole records; none: all of the file, its length included.
    #[cfg(test)]
    pub(super) fn protected(&self) -> Option<u64> {
        let state = lock(&self.state);
        if state.resizes() { None } else { Some(state.durable_len) }
    }

    /// The sequence number after the file's last record.
    #[cfg(test)]
    pub(super) fn next(&self) -> u64 {
        lock(&self.state).next
    }

    pub(super) fn is_discarded(&self) -> bool {
        lock(&self.state).discarded
    }

    /// Whether records of this file are not in place yet.
    pub fn is_pending(&self) -> bool {
        !lock(&self.state).overlays.is_empty()
    }

    pub(super) fn is_below(&self, path: &Path) -> bool {
        lock(&self.state).path.starts_with(path)
    }

    pub(super) fn rename(&self, from: &Path, to: &Path, exchange: bool) {
        let mut state = lock(&self.state);
        let moved = |path: &Path, from: &Path, to: &Path| match path.strip_prefix(from) {
            // Joining an empty path would append a slash.
            Ok(rest) if rest.as_os_str().is_empty() => Some(to.to_path_buf()),
            Ok(rest) => Some(to.join(rest)),
            Err(_) => None,
        };
        let renamed = moved(&state.path, from, to);
        let back = || if exchange { moved(&state.path, to, from) } else { None };
        if let Some(path) = renamed.or_else(back) {
            state.path = path;
        }
    }

    /// Takes a record that has been appended to `segment`; true if it is the file's first there.
    pub(super) fn overlay(&self, segment: u64, next: u64, ops: &[Op<'_>]) -> bool {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let first = state.overlays.last().is_none_or(|last| last.segment != segment);
        if first {
            state.overlays.push(Overlay::new(segment));
        }
        state.next = next;
        if let Some(overlay) = state.overlays.last_mut() {
            for op in ops {
                match op {
                    Op::Write { offset, bytes } => state.len = overlay.write(*offset, bytes, state.len),
                    Op::SetLen(length) => {
                        overlay.set_len(*length, state.len);
                        state.len = *length;
                    }
                }
            }
        }
        first
    }

    /// Puts the overlays of segments up to `last` in place.
    pub(super) fn apply(&self, last: u64) -> io::Result<()> {
        let state = lock(&self.state);
        let overlays: Vec<Overlay> = state.overlays.iter().filter(|o| o.segment <= last).cloned().collect();
        drop(state);
        if overlays.is_empty() {
            return Ok(());
        }
        let _times = lock(&self.times);
        let before = self.file.stat()?.mtime;
        overlays.iter().try_for_each(|overlay| overlay.apply(self.file.as_ref()))?;
        if let Err(error) = self.file.utimens(SetTime::Keep, SetTime::At(before.0, before.1)) {
            // What counts is in place.
            log::debug!("a checkpoint changed the times of item {}: {error}", self.item);
        }
        Ok(())
    }

    /// Sets the file's times. What is journaled leaves them alone, when it is committed and when it is put in place.
    pub fn utimens(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let _times = lock(&self.times);
        self.file.utimens(atime, mtime)
    }

    /// What was put in place is not flushed: as after a direct write.
    pub(super) fn note_unflushed(&self) {
        let mut state = lock(&self.state);
        state.direct_dirty = true;
        state.writes += 1;
    }

    /// Forgets the overlays of segments up to `last`, which are in place and gone from the journal; `durably` or not.
    pub(super) fn retire(&self, last: u64, durably: bool) {
        let mut state = lock(&self.state);
        let was = state.resizes();
        if let Some(length) =
            state.overlays.iter().filter(|o| o.segment <= last).filter_map(Overlay::length).next_back()
        {
            state.file_len = length;
        }
        state.overlays.retain(|overlay| overlay.segment > last);
        if was && !state.resizes() {
            state.durable_len = state.file_len;
        }
        if was && !state.resizes() && durably {
            // The checkpoint flushed the file, and nothing can have been written directly since the resizing record.
            state.direct_dirty = false;
        }
    }

    /// Divides `ops` into what is written directly and what is journaled.
    fn plan<'a>(&self, ops: &[Op<'a>], whole: bool) -> io::Result<Plan<'a>> {
        let state = lock(&self.state);
        let (mut resizes, durable) = (whole || state.resizes(), state.durable_len);
        let mut len = state.len;
        drop(state);
        let mut plan = Plan { direct: Vec::new(), journaled: Vec::new() };
        for &op in ops {
            match op {
                Op::Write { bytes: [], .. } => {}
                Op::Write { offset, bytes } => {
                    self.check_id(offset, bytes)?;
                    let end = end_of(offset, bytes)?;
                    // INVARIANT: no more than `bytes.len()`, so it fits.
                    let below = if resizes { u64::MAX } else { durable.saturating_sub(offset) };
                    let below = usize::try_from(below).unwrap_or(usize::MAX).min(bytes.len());
                    let (head, tail) = bytes.split_at(below);
                    if !head.is_empty() {
                        plan.journaled.push(Op::Write { offset, bytes: head });
                    }
                    if !tail.is_empty() {
                        plan.direct.push(Op::Write { offset: end - length_of(tail), bytes: tail });
                    }
                    len = len.max(end);
                }
                Op::SetLen(length) if length == len => {}
                Op::SetLen(length) => {
                    if resizes || length < durable {
                        if length < ITEM_ID_END {
                            return Err(Errno::INVAL.into());
                        }
                        plan.journaled.push(op);
                        resizes = true;
                    } else {
                        plan.direct.push(op);
                    }
                    len = length;
                }
            }
        }
        Ok(plan)
    }

    /// A write over bytes 24..40 must leave this item's id there.
    fn check_id(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let id = self.item.as_bytes();
        for (place, expected) in (ITEM_ID_AT..ITEM_ID_END).zip(id) {
            let inside = place.checked_sub(offset).and_then(|inside| usize::try_from(inside).ok());
            if inside.and_then(|inside| bytes.get(inside)).is_some_and(|byte| byte != expected) {
                return Err(Errno::INVAL.into());
            }
        }
        Ok(())
    }

    fn write_directly(&self, ops: &[Op<'_>], before: u64) -> io::Result<()> {
        {
            let mut state = lock(&self.state);
            state.direct_dirty = true;
            state.writes += 1;
        }
        let mut len = before;
        let written = ops.iter().try_for_each(|op| match op {
            Op::Write { offset, bytes } => {
                len = len.max(offset.saturating_add(length_of(bytes)));
                self.file.write_all_at(bytes, *offset)
            }
            Op::SetLen(length) => {
                len = *length;
                self.file.set_len(*length)
            }
        });
        if let Err(error) = written {
            self.restore_len(before);
            return Err(error);
        }
        let mut state = lock(&self.state);
        state.file_len = len;
        state.len = len;
        Ok(())
    }

    /// After a failure half-way: the length as it was, in the file now or before anything else is done with it.
    fn restore_len(&self, before: u64) {
        let restored = self.file.set_len(before);
        let mut state = lock(&self.state);
        state.file_len = before;
        state.len = before;
        state.ragged = restored.is_err();
    }

    /// The caller holds `commits`.
    fn even_out(&self) -> io::Result<()> {
        let state = lock(&self.state);
        let (ragged, len) = (state.ragged, state.file_len);
        drop(state);
        if ragged {
            // No resizing overlay can have come since: that takes a commit.
            self.file.set_len(len)?;
            lock(&self.state).ragged = false;
        }
        Ok(())
    }
}

impl Drop for JournaledFile {
    fn drop(&mut self) {
        let mut registry = lock(&self.journal.registry);
        // Another object for this inode may have taken the place.
        if registry.get(&self.inode).is_some_and(|open| open.strong_count() == 0) {
            registry.remove(&self.inode);
        }
    }
}

struct Plan<'a> {
    direct: Vec<Op<'a>>,
    journaled: Vec<Op<'a>>,
}

/// The end of a write; EFBIG beyond what a file offset can be.
fn end_of(offset: u64, bytes: &[u8]) -> io::Result<u64> {
    let end = offset.checked_add(length_of(bytes)).ok_or(Errno::FBIG)?;
    if i64::try_from(end).is_err() {
        return Err(Errno::FBIG.into());
    }
    Ok(end)
}

fn length_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
