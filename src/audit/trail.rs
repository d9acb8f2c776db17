//! Writing the trail.
//!
//! Invariants: an event stands in the file, whole, before `append` returns, and the tip only ever moves to what was
//! written whole; what a write that failed has left is removed, or no more events are taken. Space is reserved in
//! steps of 1 MiB; the last 128 KiB of it are for urgent events, so that those who free space can be written down when
//! everybody else is refused.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime};

use rustix::io::Errno;

use super::error::AuditError;
use super::event::{Event, OpenedItem};
use super::flood::{Floods, Verdict};
use super::segment::{Draft, END_MARK, HEADER_LEN, Header, MAX_EVENT_LEN, RECORD_OVERHEAD};
use super::verify::{AUDIT_DIR, Fault, Report, TrailReader, Walk};
use crate::crypto::{AeadKey, Chain, Key256};
use crate::store::storage::write_replace;
use crate::store::{Dir, File, TrailHead};
use crate::types::StoreId;

/// Space is reserved in steps of this.
const STEP: u64 = 1 << 20;
/// What is kept of the reserved space for urgent events.
const RESERVE: u64 = 128 << 10;
/// A segment that is longer than this is followed by a new one.
const ROTATE_AT: u64 = 16 << 20;

/// What opening a trail found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrailFound {
    /// The last segment ended in bytes that do not verify, after what was anchored; they were cut.
    Torn { segment: u64, bytes: u64 },
    /// The trail was tampered with, or damaged, from the anchored record on. It goes on behind it.
    Faulty(Fault),
}

impl fmt::Display for TrailFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Torn { segment, bytes } => {
                write!(f, "{AUDIT_DIR}/{segment} ended in {bytes} bytes of an unfinished record, which were cut")
            }
            Self::Faulty(fault) => write!(f, "{fault}"),
        }
    }
}

/// The trail of one process, open for writing. Shared between threads.
#[derive(Debug)]
pub struct Trail {
    dir: Arc<dyn Dir>,
    key: Key256,
    store: StoreId,
    session: [u8; 16],
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    segment: Option<Segment>,
    /// The number of the segment that comes next.
    next_number: u64,
    /// The last record that was written.
    tip: TrailHead,
    /// The last record that is durable.
    durable: TrailHead,
    /// Where the current segment is long enough to be followed by another.
    rotate_at: u64,
    floods: Floods,
    closed: bool,
}

#[derive(Debug)]
struct Segment {
    file: Arc<dyn File>,
    key: AeadKey,
    number: u64,
    /// Where the next record goes.
    at: u64,
    /// Space up to here is reserved.
    reserved: u64,
}

impl Trail {
    /// Opens the trail in the store's directory `root`, finds where it ends and begins a new segment. `key` is the
    /// store's `RootKeys::trail`, `session` is new with each opening, `anchored` the head that the store has noted.
    ///
    /// # Errors
    /// `Io`. A trail that was tampered with is no error: it is told of, and goes on.
    pub fn open(
        root: &dyn Dir,
        key: &Key256,
        store: StoreId,
        session: [u8; 16],
        anchored: TrailHead,
    ) -> Result<(Self, Vec<TrailFound>), AuditError> {
        let dir = root.open_dir(OsStr::new(AUDIT_DIR)).map_err(AuditError::io("open"))?;
        let reader = TrailReader::of(Arc::clone(&dir), key, store, None)?;
        let Survey { report, numbers, end, authentic } = survey(&reader, anchored)?;
        if let (Some(&segment), Some(end)) = (numbers.last(), end) {
            // An unfinished record goes, and the space that a killed process had reserved.
            cut(dir.as_ref(), segment, end)?;
        }
        let torn = report.unfinished.map(|(segment, bytes)| TrailFound::Torn { segment, bytes });
        let mut found: Vec<TrailFound> = torn.into_iter().collect();
        found.extend(report.faults.iter().cloned().map(TrailFound::Faulty));
        // A header must not become durable that continues records which are not.
        for number in numbers.iter().filter(|number| **number >= anchored.segment) {
            flush(dir.as_ref(), *number)?;
        }
        let end = if report.end.sequence < anchored.sequence { anchored } else { report.end };
        let inner = Inner {
            segment: None,
            // A name that somebody has put there does not count; `begin_segment` passes it over.
            next_number: authentic.max(anchored.segment).saturating_add(1),
            tip: end,
            durable: end,
            rotate_at: ROTATE_AT,
            floods: Floods::default(),
            closed: false,
        };
        let key = Key256::from_slice(key.expose()).ok_or(AuditError::Closed)?;
        let trail = Self { dir, key, store, session, inner: Mutex::new(inner) };
        let mut inner = trail.lock()?;
        // On a full disk the store must still open, so that somebody can free some of it; events are refused then.
        match trail.begin_segment(&mut inner) {
            Ok(()) | Err(AuditError::NoSpace) => {}
            Err(error) => return Err(error),
        }
        drop(inner);
        Ok((trail, found))
    }

    /// Whether events can be written: no, if there was no space when it was opened.
    pub fn has_room(&self) -> Result<bool, AuditError> {
        Ok(self.lock()?.segment.is_some())
    }

    /// Begins a segment after all, space having been made.
    pub fn use_room(&self) -> Result<(), AuditError> {
        let mut inner = self.lock()?;
        if inner.segment.is_some() { Ok(()) } else { self.begin_segment(&mut inner) }
    }

    /// Writes an event down: it is in the file when this returns, not yet flushed. Denials (events with an error) that
    /// flood are counted instead, and written with their count within a second (`tick`).
    ///
    /// # Errors
    /// On any error the event is not in the trail, and what it tells of must not be done.
    pub fn append(&self, event: &Event) -> Result<(), AuditError> {
        self.append_at(event, Instant::now(), false)
    }

    /// The same for what must be possible when the disk is full: management, and whatever frees space.
    pub fn append_urgent(&self, event: &Event) -> Result<(), AuditError> {
        self.append_at(event, Instant::now(), true)
    }

    pub(super) fn append_at(&self, event: &Event, now: Instant, urgent: bool) -> Result<(), AuditError> {
        with_draft(|draft| {
            write_text(draft, event)?;
            let mut inner = self.lock()?;
            self.write_counted(&mut inner, now, false)?;
            match inner.floods.judge(event, now) {
                Verdict::Write => self.put(&mut inner, draft, urgent),
                Verdict::Counted => Ok(()),
            }
        })
    }

    /// The same for an open that decrypts.
    pub fn append_opened(&self, opened: &OpenedItem<'_>) -> Result<(), AuditError> {
        with_draft(|draft| {
            opened.write_to(SystemTime::now(), draft.clear());
            if draft.text_len() > MAX_EVENT_LEN {
                return Err(AuditError::TooLarge);
            }
            let mut inner = self.lock()?;
            self.write_counted(&mut inner, Instant::now(), false)?;
            self.put(&mut inner, draft, false)
        })
    }

    /// Writes the counts of floods that are over. To be called about once a second.
    pub fn tick(&self) -> Result<(), AuditError> {
        let mut inner = self.lock()?;
        self.write_counted(&mut inner, Instant::now(), false)
    }

    /// Makes everything durable that was appended before, and gives its head, which may be anchored.
    ///
    /// # Errors
    /// After a flush that failed nobody knows what the disk holds: the trail takes no more events.
    pub fn sync(&self) -> Result<TrailHead, AuditError> {
        let (tip, file) = {
            let inner = self.lock()?;
            match &inner.segment {
                Some(segment) if inner.durable != inner.tip => (inner.tip, Arc::clone(&segment.file)),
                Some(_) | None => return Ok(inner.durable),
            }
        };
        // Not under the lock: others append meanwhile. Segments before this one were flushed when it was begun.
        let flushed = file.sync_data();
        let mut inner = self.lock()?;
        if let Err(source) = flushed {
            inner.closed = true;
            return Err(AuditError::Io { doing: "flush", source });
        }
        if inner.durable.sequence < tip.sequence {
            inner.durable = tip;
        }
        Ok(inner.durable)
    }

    /// The last record that is durable: what may be anchored.
    pub fn head(&self) -> TrailHead {
        self.inner.lock().map_or_else(|poisoned| poisoned.get_ref().durable, |inner| inner.durable)
    }

    /// Writes all counts, flushes, gives reserved space back. Nothing can be appended after that.
    pub fn close(&self) -> Result<TrailHead, AuditError> {
        {
            let mut inner = self.lock()?;
            self.write_counted(&mut inner, Instant::now(), true)?;
            if let Some(segment) = &inner.segment {
                segment.give_back().map_err(AuditError::io("end"))?;
            }
        }
        let head = self.sync()?;
        self.lock()?.closed = true;
        Ok(head)
    }

    /// Verifies what is written up to now; `anchored` as in `TrailReader::verify`.
    pub fn verify(&self, anchored: TrailHead) -> Result<Report, AuditError> {
        self.reader()?.verify(anchored)
    }

    /// Reads what is written up to now.
    pub fn reader(&self) -> Result<TrailReader, AuditError> {
        let inner = self.lock()?;
        let limit = inner.segment.as_ref().map(|segment| (segment.number, segment.at));
        TrailReader::of(Arc::clone(&self.dir), &self.key, self.store, limit)
    }

    fn lock(&self) -> Result<MutexGuard<'_, Inner>, AuditError> {
        let inner = self.inner.lock().map_err(|_| AuditError::Closed)?;
        if inner.closed { Err(AuditError::Closed) } else { Ok(inner) }
    }

    fn write_counted(&self, inner: &mut Inner, now: Instant, all: bool) -> Result<(), AuditError> {
        let mut events = inner.floods.over(now, all).into_iter();
        while let Some(event) = events.next() {
            let mut draft = Draft::default();
            let written = write_text(&mut draft, &event).and_then(|()| self.put(inner, &mut draft, true));
            if let Err(error) = written {
                for event in std::iter::once(event).chain(events) {
                    inner.floods.put_back(&event, now);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Seals and writes one record at the tip.
    fn put(&self, inner: &mut Inner, draft: &mut Draft, urgent: bool) -> Result<(), AuditError> {
        let needed = (RECORD_OVERHEAD + draft.text_len() + END_MARK.len()) as u64;
        let at = inner.segment.as_ref().map(|segment| segment.at);
        if at.is_none_or(|at| at.saturating_add(needed) > inner.rotate_at) {
            match (self.begin_segment(inner), at) {
                (Ok(()), _) => {}
                // It goes on in the old one, as long as there is room, and tries again a little later.
                (Err(AuditError::NoSpace), Some(at)) => inner.rotate_at = at.saturating_add(RESERVE / 2),
                (Err(error), _) => return Err(error),
            }
        }
        let tip = inner.tip;
        let segment = inner.segment.as_mut().ok_or(AuditError::NoSpace)?;
        segment.reserve(needed, if urgent { 0 } else { RESERVE })?;
        let sequence = tip.sequence.saturating_add(1);
        let head = draft.seal(&segment.key, segment.number, sequence, Chain(tip.head))?;
        if let Err(source) = segment.file.write_all_at(draft.bytes(), segment.at) {
            // Whatever was written of it must be gone, or it would look like tampering later.
            if segment.wipe(needed).is_err() {
                inner.closed = true;
            }
            return Err(no_space_or(source, "write"));
        }
        segment.at = segment.at.saturating_add(needed - END_MARK.len() as u64);
        inner.tip = TrailHead { segment: segment.number, sequence, head: head.0 };
        Ok(())
    }

    /// Begins a new segment behind the tip. On an error everything is as it was.
    fn begin_segment(&self, inner: &mut Inner) -> Result<(), AuditError> {
        // Its header is durable at once, and must not continue records that are not.
        if let Some(segment) = inner.segment.as_ref().filter(|_| inner.durable != inner.tip) {
            if let Err(source) = segment.file.sync_data() {
                inner.closed = true;
                return Err(AuditError::Io { doing: "flush", source });
            }
            inner.durable = inner.tip;
        }
        while self.dir.stat(OsStr::new(&inner.next_number.to_string())).is_ok() {
            inner.next_number = inner.next_number.checked_add(1).ok_or(AuditError::NoSpace)?;
        }
        let header = Header {
            store: self.store,
            session: self.session,
            number: inner.next_number,
            first: inner.tip.sequence.saturating_add(1),
            before: Chain(inner.tip.head),
        };
        let name = header.number.to_string();
        let name = OsStr::new(&name);
        let made = write_replace(self.dir.as_ref(), name, &header.encode(&self.key), 0o600)
            .and_then(|()| self.dir.open_file(name, true));
        let file = made.map_err(|error| no_space_or(error, "begin a segment of"))?;
        // A number that was used is not used again, whatever comes of it.
        inner.next_number = inner.next_number.saturating_add(1);
        let at = HEADER_LEN as u64;
        let key = header.record_key(&self.key)?;
        let mut segment = Segment { file, key, number: header.number, at, reserved: at };
        if let Err(error) = segment.reserve(0, RESERVE) {
            // It has no record, so that nothing is missing when it is gone.
            inner.next_number = header.number;
            let _ = self.dir.remove_file(name);
            return Err(error);
        }
        inner.rotate_at = ROTATE_AT;
        if let Some(old) = inner.segment.replace(segment) {
            // What cannot be given back is only space.
            let _ = old.give_back();
        }
        Ok(())
    }
}

impl Segment {
    /// Makes sure of space for `needed` bytes and `spare` more behind them.
    fn reserve(&mut self, needed: u64, spare: u64) -> Result<(), AuditError> {
        let end = self.at.saturating_add(needed);
        if end.saturating_add(spare) <= self.reserved {
            return Ok(());
        }
        let target = end.saturating_add(spare).div_ceil(STEP).saturating_mul(STEP);
        match self.file.allocate(self.reserved, target - self.reserved) {
            Ok(()) => self.reserved = target,
            Err(error) => match Errno::from_io_error(&error) {
                // Nothing can be reserved on this file system; writes find out for themselves.
                Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => self.reserved = u64::MAX,
                _ => return Err(no_space_or(error, "reserve space for")),
            },
        }
        Ok(())
    }

    /// Removes what a write that failed has left behind the last record.
    fn wipe(&mut self, length: u64) -> io::Result<()> {
        if self.file.set_len(self.at).is_ok() {
            self.reserved = self.reserved.min(self.at);
            return Ok(());
        }
        let zeros = vec![0; usize::try_from(length).unwrap_or(MAX_EVENT_LEN)];
        self.file.write_all_at(&zeros, self.at)
    }

    /// Gives the space back that was reserved behind the last record and its end mark.
    fn give_back(&self) -> io::Result<()> {
        self.file.set_len(self.at)
    }
}

/// What an opening looks at.
struct Survey {
    report: Report,
    numbers: Vec<u64>,
    /// Where the last segment ends, unless it is faulty.
    end: Option<u64>,
    /// The last segment with an authentic header.
    authentic: u64,
}

/// Walks from the anchored segment on: what was there before it was looked at when it was anchored, and `verify` looks
/// at all.
fn survey(reader: &TrailReader, anchored: TrailHead) -> Result<Survey, AuditError> {
    let numbers = reader.numbers()?;
    let from: Vec<u64> = numbers.iter().copied().filter(|number| *number >= anchored.segment).collect();
    let expected = (anchored.segment == 0).then(|| (1, Chain::default()));
    let mut walk = Walk::new(reader, anchored, expected, anchored.segment.max(1));
    for (index, &number) in from.iter().enumerate() {
        walk.segment(number, index + 1 == from.len());
    }
    let (end, authentic) = (walk.end, walk.authentic);
    Ok(Survey { report: walk.finish(), numbers, end, authentic })
}

fn cut(dir: &dyn Dir, segment: u64, length: u64) -> Result<(), AuditError> {
    let file = dir.open_file(OsStr::new(&segment.to_string()), true).map_err(AuditError::io("open"))?;
    file.set_len(length).and_then(|()| file.sync_data()).map_err(AuditError::io("cut"))
}

fn flush(dir: &dyn Dir, segment: u64) -> Result<(), AuditError> {
    let file = dir.open_file(OsStr::new(&segment.to_string()), false);
    match file.and_then(|file| file.sync_data()) {
        // What is no file is told of by the walk.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::UCLEAN) => Ok(()),
        other => other.map_err(AuditError::io("flush")),
    }
}

thread_local! {
    /// What a record is written in, kept for the next one.
    static DRAFT: Cell<Draft> = const { Cell::new(Draft::new()) };
}

fn with_draft<T>(work: impl FnOnce(&mut Draft) -> T) -> T {
    let mut draft = DRAFT.take();
    let done = work(&mut draft);
    DRAFT.set(draft);
    done
}

fn write_text(draft: &mut Draft, event: &Event) -> Result<(), AuditError> {
    // INVARIANT: an event is of strings, numbers and maps with string keys, which JSON can always express.
    serde_json::to_writer(draft.clear(), event).map_err(|_| AuditError::TooLarge)?;
    if draft.text_len() > MAX_EVENT_LEN { Err(AuditError::TooLarge) } else { Ok(()) }
}

fn no_space_or(error: io::Error, doing: &'static str) -> AuditError {
    match Errno::from_io_error(&error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => AuditError::NoSpace,
        _ => AuditError::Io { doing, source: error },
    }
}
