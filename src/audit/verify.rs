//! Reading the trail: all events, and whether they are all there and as they were written.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use super::error::AuditError;
use super::event::Event;
use super::segment::{HeaderFault, SegmentReader, Step};
use crate::crypto::{Chain, Key256};
use crate::store::{Dir, TrailHead};
use crate::types::StoreId;

/// The directory's name in the store.
pub(super) const AUDIT_DIR: &str = "audit";
/// The most faults that a report lists.
const MAX_FAULTS: usize = 100;

/// Where an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The file is `audit/SEGMENT`.
    pub segment: u64,
    /// Its number in the file, from 1.
    pub record: u64,
    /// Its number in the trail, from 1.
    pub sequence: u64,
}

/// What is wrong at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// Segments before this one are not there.
    Missing {
        from: u64,
        to: u64,
    },
    /// The file could not be read.
    Unreadable(String),
    Version(u16),
    /// The segment's header does not authenticate, or is that of another segment.
    Header,
    /// The segment does not go on where the one before it ends.
    Discontinuity {
        expected: u64,
        found: u64,
    },
    /// What stands here is no record of the trail.
    Record(&'static str),
    /// The record that was anchored is another one.
    AnchorDiffers,
    /// The trail ends before the record that was anchored.
    AnchorNotReached {
        anchored: u64,
        end: u64,
    },
    /// The record is authentic, and no event that this version knows.
    NoEvent,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub segment: u64,
    /// Number in the file, from 1, of the record that it concerns; none: the whole file.
    pub record: Option<u64>,
    pub kind: FaultKind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{AUDIT_DIR}/{}", self.segment)?;
        if let Some(record) = self.record {
            write!(f, ", record {record}")?;
        }
        match &self.kind {
            FaultKind::Missing { from, to } if from == to => write!(f, ": segment {from} before it is missing"),
            FaultKind::Missing { from, to } => write!(f, ": segments {from} to {to} before it are missing"),
            FaultKind::Unreadable(error) => write!(f, ": it cannot be read: {error}"),
            FaultKind::Version(found) => write!(f, ": written by format version {found}, this is version 1"),
            FaultKind::Header => f.write_str(": its header is damaged or was tampered with"),
            FaultKind::Discontinuity { expected, found } if found > expected => {
                write!(f, ": events {expected} to {} before it are missing", found - 1)
            }
            FaultKind::Discontinuity { .. } => f.write_str(": it does not go on where the segment before it ends"),
            FaultKind::Record(what) => write!(f, ": {what}"),
            FaultKind::AnchorDiffers => f.write_str(": it is not the event that the store has noted"),
            FaultKind::AnchorNotReached { anchored, end } => {
                write!(f, ": the trail ends with event {end}, the store has noted event {anchored}")
            }
            FaultKind::NoEvent => f.write_str(": an event that this version does not know"),
        }
    }
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    pub segments: u64,
    /// Records that verify.
    pub records: u64,
    /// In the order of the files; at most 100.
    pub faults: Vec<Fault>,
    /// Bytes behind the last record of the last segment, beyond what was anchored: a kill or a power cut has left
    /// them, or somebody has edited events that were not anchored yet.
    pub unfinished: Option<(u64, u64)>,
    /// The last record that verifies.
    pub end: TrailHead,
}

impl Report {
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

/// An event with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    pub position: Position,
    pub event: Event,
}

/// Reads a trail, written to or not.
#[derive(Debug)]
pub struct TrailReader {
    dir: Arc<dyn Dir>,
    key: Key256,
    store: StoreId,
    /// Of the segment that is being written: its number and its complete length.
    limit: Option<(u64, u64)>,
}

impl TrailReader {
    /// `key` is the store's `RootKeys::trail`.
    pub fn open(root: &dyn Dir, key: &Key256, store: StoreId) -> Result<Self, AuditError> {
        let dir = root.open_dir(OsStr::new(AUDIT_DIR)).map_err(AuditError::io("open"))?;
        Self::of(dir, key, store, None)
    }

    pub(super) fn of(
        dir: Arc<dyn Dir>,
        key: &Key256,
        store: StoreId,
        limit: Option<(u64, u64)>,
    ) -> Result<Self, AuditError> {
        let key = Key256::from_slice(key.expose()).ok_or(AuditError::Closed)?;
        Ok(Self { dir, key, store, limit })
    }

    /// The segments' numbers, in order.
    pub(super) fn numbers(&self) -> Result<Vec<u64>, AuditError> {
        let entries = self.dir.list().map_err(AuditError::io("list"))?;
        let number = |name: &OsStr| {
            let number: u64 = name.to_str()?.parse().ok()?;
            (OsStr::new(&number.to_string()) == name && number > 0).then_some(number)
        };
        let mut numbers: Vec<u64> = entries.iter().filter_map(|entry| number(&entry.name)).collect();
        // What was begun after `limit` was taken is not looked at.
        numbers.retain(|number| self.limit.is_none_or(|(last, _)| *number <= last));
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Walks all segments. `anchored` is the head that the store has noted last (`Store::trail_head`): a trail that
    /// ends before it was cut.
    pub fn verify(&self, anchored: TrailHead) -> Result<Report, AuditError> {
        let numbers = self.numbers()?;
        let mut walk = Walk::new(self, anchored, Some((1, Chain::default())), 1);
        for (index, &number) in numbers.iter().enumerate() {
            walk.segment(number, index + 1 == numbers.len());
        }
        Ok(walk.finish())
    }

    /// All events from the first to the last. What does not verify comes as a fault, and the next segment goes on.
    pub fn events(&self) -> Result<Events<&Self>, AuditError> {
        Events::of(self)
    }

    /// The same, to be kept.
    pub fn into_events(self) -> Result<Events<Box<Self>>, AuditError> {
        Events::of(Box::new(self))
    }

    fn segment(&self, number: u64) -> io::Result<Result<(SegmentReader, super::segment::Header), HeaderFault>> {
        let file = self.dir.open_file(OsStr::new(&number.to_string()), false)?;
        let limit = self.limit.filter(|(segment, _)| *segment == number).map(|(_, length)| length);
        SegmentReader::open(file, &self.key, self.store, number, limit)
    }
}

fn header_fault(fault: HeaderFault) -> FaultKind {
    match fault {
        HeaderFault::Version(found) => FaultKind::Version(found),
        HeaderFault::Damaged => FaultKind::Header,
    }
}

/// A walk over segments in order.
pub(super) struct Walk<'a> {
    reader: &'a TrailReader,
    anchored: TrailHead,
    /// Whether the anchored record was met, or stands to be met no more.
    met: bool,
    /// The next record's number and the head before it; none after a fault, until a header tells.
    expected: Option<(u64, Chain)>,
    next_segment: u64,
    report: Report,
    /// Of the last segment, unless it is faulty: where its verified part ends.
    pub(super) end: Option<u64>,
    /// The last segment whose header is authentic.
    pub(super) authentic: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        reader: &'a TrailReader,
        anchored: TrailHead,
        expected: Option<(u64, Chain)>,
        next_segment: u64,
    ) -> Self {
        let met = anchored.sequence == 0;
        Self { reader, anchored, met, expected, next_segment, report: Report::default(), end: None, authentic: 0 }
    }

    fn fault(&mut self, segment: u64, record: Option<u64>, kind: FaultKind) {
        if self.report.faults.len() < MAX_FAULTS {
            self.report.faults.push(Fault { segment, record, kind });
        }
    }

    pub(super) fn segment(&mut self, number: u64, last: bool) {
        if number > self.next_segment {
            self.fault(number, None, FaultKind::Missing { from: self.next_segment, to: number - 1 });
        }
        self.next_segment = number.saturating_add(1);
        self.report.segments += 1;
        self.end = None;
        let (reader, header) = match self.reader.segment(number) {
            Ok(Ok(opened)) => opened,
            Ok(Err(fault)) => {
                self.expected = None;
                return self.fault(number, None, header_fault(fault));
            }
            Err(error) => {
                self.expected = None;
                return self.fault(number, None, FaultKind::Unreadable(error.to_string()));
            }
        };
        self.authentic = number;
        if let Some((sequence, head)) = self.expected
            && (sequence, head) != (header.first, header.before)
        {
            let kind = FaultKind::Discontinuity { expected: sequence, found: header.first };
            self.fault(number, None, kind);
        }
        self.meet(number, None, header.first - 1, header.before);
        self.report.end = TrailHead { segment: number, sequence: header.first - 1, head: header.before.0 };
        self.records(number, reader, last);
    }

    fn records(&mut self, number: u64, mut reader: SegmentReader, last: bool) {
        let mut record = 0;
        loop {
            record += 1;
            match reader.next() {
                Ok(Step::Record { sequence, head, text: _ }) => {
                    self.report.records += 1;
                    self.report.end = TrailHead { segment: number, sequence, head: head.0 };
                    self.meet(number, Some(record), sequence, head);
                }
                Ok(Step::End) => break,
                Ok(Step::Unverified(what)) => {
                    if last && self.met {
                        self.report.unfinished = Some((number, reader.remaining()));
                        break;
                    }
                    self.expected = None;
                    return self.fault(number, Some(record), FaultKind::Record(what));
                }
                Err(error) => {
                    self.expected = None;
                    return self.fault(number, Some(record), FaultKind::Unreadable(error.to_string()));
                }
            }
        }
        self.end = Some(reader.verified());
        self.expected = Some((self.report.end.sequence.saturating_add(1), Chain(self.report.end.head)));
    }

    /// Compares a record with the anchored one.
    fn meet(&mut self, segment: u64, record: Option<u64>, sequence: u64, head: Chain) {
        if self.met || sequence != self.anchored.sequence {
            return;
        }
        self.met = true;
        if head.0 != self.anchored.head {
            self.fault(segment, record, FaultKind::AnchorDiffers);
        }
    }

    pub(super) fn finish(mut self) -> Report {
        if !self.met {
            let (anchored, end) = (self.anchored.sequence, self.report.end);
            let segment = end.segment.max(self.anchored.segment);
            self.fault(segment, None, FaultKind::AnchorNotReached { anchored, end: end.sequence });
        }
        self.report
    }
}

/// An iterator over the trail's events.
#[derive(Debug)]
pub struct Events<R> {
    reader: R,
    /// Segments to come, the next one last.
    numbers: Vec<u64>,
    current: Option<(u64, u64, SegmentReader)>,
}

impl<R: Deref<Target = TrailReader>> Events<R> {
    fn of(reader: R) -> Result<Self, AuditError> {
        let mut numbers = reader.numbers()?;
        numbers.reverse();
        Ok(Self { reader, numbers, current: None })
    }
}

impl<R: Deref<Target = TrailReader>> Iterator for Events<R> {
    type Item = Result<Recorded, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((segment, record, reader)) = &mut self.current else {
                let segment = self.numbers.pop()?;
                let kind = match self.reader.segment(segment) {
                    Ok(Ok((reader, _))) => {
                        self.current = Some((segment, 0, reader));
                        continue;
                    }
                    Ok(Err(fault)) => header_fault(fault),
                    Err(error) => FaultKind::Unreadable(error.to_string()),
                };
                return Some(Err(Fault { segment, record: None, kind }));
            };
            *record += 1;
            let (segment, record) = (*segment, *record);
            let kind = match reader.next() {
                Ok(Step::Record { sequence, text, .. }) => {
                    let position = Position { segment, record, sequence };
                    let event = serde_json::from_slice(&text);
                    let fault = |_| Fault { segment, record: Some(record), kind: FaultKind::NoEvent };
                    return Some(event.map(|event| Recorded { position, event }).map_err(fault));
                }
                Ok(Step::End) => {
                    self.current = None;
                    continue;
                }
                Ok(Step::Unverified(what)) => FaultKind::Record(what),
                Err(error) => FaultKind::Unreadable(error.to_string()),
            };
            self.current = None;
            return Some(Err(Fault { segment, record: Some(record), kind }));
        }
    }
}
