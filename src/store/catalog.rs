//! The catalog (docs/format.md, section 5): what the store holds, in which generation, and what each record's bytes
//! must hash to. Two copies of one log of sealed, chained entries.
//!
//! Invariants: an entry is used only after its tag has verified under the head of the entry before it; both copies
//! hold the same bytes whenever no commit is under way; a log starts with a snapshot and holds no other. No length
//! that a file states is trusted further than the file is long, nor beyond `MAX_ENTRY_LEN`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::fields::{Fields, hex, hex32, hex32_or_null, unhex};
use super::storage::{Dir, File, RenameFlags};
use crate::crypto::{Aad, AeadKey, Chain, NONCE_LEN, TAG_LEN};
use crate::types::StoreId;

/// The two copies, in the order in which a commit writes them.
pub(super) const COPIES: [&str; 2] = ["catalog.a", "catalog.b"];
/// What is prefixed to a sealed box: its length and the sequence number.
const PREFIX_LEN: usize = 12;
const HEADER_LEN: usize = 32;
const MAGIC: &[u8; 8] = b"KMSFSCAT";
const VERSION: u16 = 1;
/// The longest sealed box: a snapshot of some 400,000 objects.
const MAX_ENTRY_LEN: usize = 64 << 20;
/// A log is rewritten when it is longer than this and than four times its snapshot.
const SNAPSHOT_FLOOR: u64 = 1 << 20;

/// What a record describes; the digit in its file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// A KMS key with its policy, state and sealed material.
    Key,
    /// A table with its sealed keys and settings.
    Table,
    /// The store's own policy.
    StorePolicy,
    /// A grant.
    Grant,
}

impl RecordKind {
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Key => 1,
            Self::Table => 2,
            Self::StorePolicy => 3,
            Self::Grant => 4,
        }
    }

    pub(super) const fn of_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Key),
            2 => Some(Self::Table),
            3 => Some(Self::StorePolicy),
            4 => Some(Self::Grant),
            _ => None,
        }
    }
}

/// A point in the audit trail: everything up to record `sequence`, in which segment it stands, and the chain's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrailHead {
    pub segment: u64,
    /// The last record's number; 0 before the first.
    pub sequence: u64,
    #[serde(with = "hex32")]
    pub head: [u8; 32],
}

/// What a store knows of time, in milliseconds (docs/format.md, section 5.4). The store keeps it; what it means is the key
/// service's affair.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockMark {
    /// The time below which no decision goes, since 1970.
    pub floor: i64,
    /// The latest time that the host's clock has claimed, since 1970.
    pub high: i64,
    /// How much time was observed since the store was made.
    pub observed: i64,
    /// How much the clock has claimed beyond that.
    pub skipped: i64,
    /// What the host's clock said, since 1970.
    pub wall: i64,
    /// Which boot of which host it was, and how long ago that was.
    pub boot: String,
    pub since_boot: i64,
}

/// A slot as the catalog lists it: what the slot's own ciphertext says of itself can be read with its secret alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListedSlot {
    pub(super) id: String,
    pub(super) kind: u8,
    #[serde(with = "hex32")]
    pub(super) digest: [u8; 32],
    pub(super) label: String,
    pub(super) created: i64,
}

/// The slots that `root` holds, and while it is being replaced those that it is about to hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListedSlots {
    pub(super) now: Vec<ListedSlot>,
    pub(super) next: Option<Vec<ListedSlot>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeText {
    pub(super) kind: u8,
    pub(super) id: String,
    pub(super) generation: u64,
    #[serde(with = "hex32_or_null")]
    pub(super) digest: Option<[u8; 32]>,
}

/// An entry's plaintext.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EntryText {
    pub(super) snapshot: bool,
    /// Of a snapshot: the head of the entry before it, which stood in the log that it replaces.
    #[serde(with = "hex32_or_null")]
    pub(super) previous: Option<[u8; 32]>,
    pub(super) changes: Vec<ChangeText>,
    /// Absent where they stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) slots: Option<ListedSlots>,
    pub(super) epoch: u64,
    pub(super) clean: bool,
    /// Of a snapshot: the epochs before `epoch` that were not closed in good order, as inclusive ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) unclean: Vec<(u64, u64)>,
    pub(super) trail: TrailHead,
    /// Absent where it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) clock: Option<ClockMark>,
}

/// One object: the generation that counts, and its record's digest; no digest: it was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) generation: u64,
    pub(super) digest: Option<[u8; 32]>,
}

/// All that the catalog says, as of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct State {
    pub(super) sequence: u64,
    pub(super) head: Chain,
    pub(super) epoch: u64,
    pub(super) clean: bool,
    pub(super) unclean: Vec<(u64, u64)>,
    pub(super) trail: TrailHead,
    pub(super) slots: ListedSlots,
    pub(super) clock: Option<ClockMark>,
    pub(super) objects: BTreeMap<(RecordKind, [u8; 16]), Object>,
}

impl State {
    pub(super) fn is_unclean(&self, epoch: u64) -> bool {
        self.unclean.iter().any(|&(first, last)| (first..=last).contains(&epoch))
    }

    /// Takes an entry's facts over. None, and the state is of no use, if they contradict one another.
    pub(super) fn apply(&mut self, text: EntryText, sequence: u64, head: Chain) -> Option<()> {
        if text.epoch < self.epoch {
            return None;
        }
        if text.snapshot {
            self.unclean = text.unclean;
        } else if text.epoch > self.epoch && !self.clean {
            match self.unclean.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(self.epoch) => *last = self.epoch,
                _ => self.unclean.push((self.epoch, self.epoch)),
            }
        }
        for change in text.changes {
            let key = (RecordKind::of_code(change.kind)?, unhex(&change.id)?);
            self.objects.insert(key, Object { generation: change.generation, digest: change.digest });
        }
        if let Some(slots) = text.slots {
            self.slots = slots;
        }
        if text.clock.is_some() {
            self.clock = text.clock;
        }
        (self.epoch, self.clean, self.trail) = (text.epoch, text.clean, text.trail);
        (self.sequence, self.head) = (sequence, head);
        Some(())
    }

    /// A snapshot of this state, the next entry after it.
    pub(super) fn snapshot(&self) -> EntryText {
        let alive = self.objects.iter().filter(|(_, object)| object.digest.is_some());
        let changes = alive.map(|(&(kind, id), object)| ChangeText {
            kind: kind.code(),
            id: hex(&id),
            generation: object.generation,
            digest: object.digest,
        });
        EntryText {
            snapshot: true,
            previous: Some(self.head.0),
            changes: changes.collect(),
            slots: Some(self.slots.clone()),
            epoch: self.epoch,
            clean: self.clean,
            unclean: self.unclean.clone(),
            trail: self.trail,
            clock: self.clock.clone(),
        }
    }
}

/// What seals and opens entries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sealer<'a> {
    pub(super) key: &'a AeadKey,
    pub(super) store: StoreId,
}

impl Sealer<'_> {
    fn aad(self, sequence: u64, before: Chain) -> Aad {
        Aad::new("kmsfs v1 catalog").bytes(self.store.as_bytes()).u64(sequence).bytes(&before.0)
    }

    /// An entry's bytes and its head.
    pub(super) fn entry(self, sequence: u64, before: Chain, text: &EntryText) -> Result<(Vec<u8>, Chain), StoreError> {
        let too_large = || StoreError::TooLarge { what: "the catalog holds more objects than an entry can list" };
        // INVARIANT: the text is of strings, numbers and lists, which JSON can always express.
        let json = serde_json::to_vec(text).map_err(|_| too_large())?;
        let sealed = self.key.seal_box(&self.aad(sequence, before), &json)?;
        let length = u32::try_from(sealed.len()).ok().filter(|_| sealed.len() <= MAX_ENTRY_LEN);
        let mut bytes = Vec::with_capacity(PREFIX_LEN + sealed.len());
        bytes.extend_from_slice(&length.ok_or_else(too_large)?.to_le_bytes());
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&sealed);
        Ok((bytes, before.extended(&sealed)))
    }

    fn open(self, sequence: u64, before: Chain, sealed: &[u8]) -> Option<EntryText> {
        let text = self.key.open_box(&self.aad(sequence, before), sealed).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// A whole log: header and one snapshot, which follows `state`.
    pub(super) fn fresh_log(self, state: &State) -> Result<(Vec<u8>, State), StoreError> {
        let text = state.snapshot();
        let sequence = state.sequence.saturating_add(1);
        let (entry, head) = self.entry(sequence, Chain::default(), &text)?;
        let mut bytes = Vec::with_capacity(HEADER_LEN + entry.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(self.store.as_bytes());
        bytes.extend_from_slice(&entry);
        let mut next = State::default();
        next.apply(text, sequence, head)
            .ok_or(StoreError::Corrupt { file: "catalog".to_owned(), what: "a state that cannot be listed" })?;
        Ok((bytes, next))
    }
}

/// What is wrong with a copy.
#[derive(Debug)]
pub(super) struct CopyFault {
    pub(super) what: &'static str,
    version: Option<u16>,
    io: Option<io::Error>,
}

impl CopyFault {
    fn of(what: &'static str) -> Self {
        Self { what, version: None, io: None }
    }

    fn io(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::of("it is cut");
        }
        let what = if error.kind() == io::ErrorKind::NotFound { "it is missing" } else { "it cannot be read" };
        Self { what, version: None, io: Some(error) }
    }
}

/// The part of a copy that verifies.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) state: State,
    /// The first entry's number, and the head before it.
    first: u64,
    previous: [u8; 32],
    /// The head after each entry.
    heads: Vec<[u8; 32]>,
    /// Bytes that verify.
    pub(super) length: u64,
    snapshot_length: u64,
}

impl Log {
    /// The head after entry `sequence`, as far back as the log reaches.
    pub(super) fn head_at(&self, sequence: u64) -> Option<[u8; 32]> {
        if sequence.checked_add(1) == Some(self.first) {
            return Some(self.previous);
        }
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.heads.get(index).copied()
    }

    /// Whether the two tell one history, as far as it can be seen.
    fn agrees(&self, other: &Self) -> bool {
        let common = self.state.sequence.min(other.state.sequence);
        match (self.head_at(common), other.head_at(common)) {
            (Some(one), Some(two)) => one == two,
            // The longer one starts after the shorter one's end, which is then just old.
            (None, _) | (_, None) => true,
        }
    }

    fn same_bytes(&self, other: &Self) -> bool {
        (self.first, self.length, self.state.head) == (other.first, other.length, other.state.head)
    }
}

/// A copy as read: what verifies of it, and what does not.
#[derive(Debug)]
pub(super) struct CopyRead {
    pub(super) log: Option<Log>,
    pub(super) fault: Option<CopyFault>,
}

/// Reads a copy up to the first entry that does not verify.
pub(super) fn read_copy(dir: &dyn Dir, name: &str, sealer: Sealer<'_>) -> CopyRead {
    let opened = dir.open_file(OsStr::new(name), false).and_then(|file| Ok((file.stat()?.size, file)));
    match opened {
        Ok((size, file)) => read_log(file.as_ref(), size, sealer),
        Err(error) => CopyRead { log: None, fault: Some(CopyFault::io(error)) },
    }
}

fn read_log(file: &dyn File, size: u64, sealer: Sealer<'_>) -> CopyRead {
    if let Err(fault) = check_header(file, sealer.store) {
        return CopyRead { log: None, fault: Some(fault) };
    }
    let mut log: Option<Log> = None;
    let mut at = HEADER_LEN as u64;
    while at < size {
        match read_entry(file, size, at, &mut log, sealer) {
            Ok(end) => at = end,
            Err(fault) => return CopyRead { log, fault: Some(fault) },
        }
    }
    let fault = log.is_none().then(|| CopyFault::of("it holds no entry"));
    CopyRead { log, fault }
}

fn check_header(file: &dyn File, store: StoreId) -> Result<(), CopyFault> {
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0).map_err(CopyFault::io)?;
    let mut at = Fields::new(&header);
    if at.array::<8>().as_ref() != Some(MAGIC) {
        return Err(CopyFault::of("it does not start as a catalog does"));
    }
    match at.u16() {
        Some(VERSION) => {}
        version => return Err(CopyFault { what: "it has another format version", version, io: None }),
    }
    if at.zeros::<6>().is_none() || at.array::<16>().as_ref() != Some(store.as_bytes()) {
        return Err(CopyFault::of("its header is that of another store"));
    }
    Ok(())
}

/// Reads the entry at `at` and adds it to the log; gives the offset of its end.
fn read_entry(
    file: &dyn File,
    size: u64,
    at: u64,
    log: &mut Option<Log>,
    sealer: Sealer<'_>,
) -> Result<u64, CopyFault> {
    let (text, sequence, head, end) = open_entry(file, size, at, log.as_ref(), sealer)?;
    match (log.as_mut(), text.snapshot, text.previous) {
        (None, true, Some(previous)) => {
            let mut state = State::default();
            state.apply(text, sequence, head).ok_or_else(|| CopyFault::of("its snapshot contradicts itself"))?;
            let heads = vec![head.0];
            *log = Some(Log { state, first: sequence, previous, heads, length: end, snapshot_length: end });
        }
        (Some(longer), false, None) => {
            if longer.state.apply(text, sequence, head).is_none() {
                // An authentic entry that contradicts its log was never written by this program.
                *log = None;
                return Err(CopyFault::of("an entry contradicts the ones before it"));
            }
            longer.heads.push(head.0);
            longer.length = end;
        }
        (_, _, _) => return Err(CopyFault::of("a snapshot does not stand where it must")),
    }
    Ok(end)
}

fn open_entry(
    file: &dyn File,
    size: u64,
    at: u64,
    log: Option<&Log>,
    sealer: Sealer<'_>,
) -> Result<(EntryText, u64, Chain, u64), CopyFault> {
    let mut prefix = [0; PREFIX_LEN];
    file.read_exact_at(&mut prefix, at).map_err(CopyFault::io)?;
    let mut fields = Fields::new(&prefix);
    let (length, sequence) = fields.u32().zip(fields.u64()).ok_or_else(|| CopyFault::of("its last entry is cut"))?;
    let start = at.saturating_add(PREFIX_LEN as u64);
    let end = start.saturating_add(u64::from(length));
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if end > size || !(NONCE_LEN + TAG_LEN..=MAX_ENTRY_LEN).contains(&length) {
        return Err(CopyFault::of("its last entry is cut, or its length is damaged"));
    }
    let expected = log.map(|log| log.state.sequence.saturating_add(1));
    if expected.is_some_and(|expected| expected != sequence) {
        return Err(CopyFault::of("an entry's number does not follow the one before it"));
    }
    let before = log.map_or_else(Chain::default, |log| log.state.head);
    let mut sealed = vec![0; length];
    file.read_exact_at(&mut sealed, start).map_err(CopyFault::io)?;
    let text = sealer.open(sequence, before, &sealed).ok_or_else(|| CopyFault::of("an entry does not authenticate"))?;
    Ok((text, sequence, before.extended(&sealed), end))
}

/// The copy that counts, and what is wrong with the two.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) log: Log,
    /// Its number in `COPIES`.
    pub(super) copy: usize,
    /// For each copy: why it must be rewritten.
    pub(super) faults: [Option<&'static str>; 2],
}

/// Chooses the longer of two copies. `anchored` is the sequence and head that this host has seen: where the two tell
/// different histories, the one that holds it counts.
///
/// # Errors
/// `Corrupt` when neither copy is whole, or when they contradict one another and nothing decides.
pub(super) fn choose(copies: [CopyRead; 2], anchored: Option<(u64, [u8; 32])>) -> Result<Chosen, StoreError> {
    let [one, two] = copies;
    let mut faults = [one.fault.as_ref().map(|fault| fault.what), two.fault.as_ref().map(|fault| fault.what)];
    if let (Some(first), Some(second)) = (one.fault, two.fault) {
        return Err(both_damaged(first, &second));
    }
    let (log, copy, other) = match (one.log, two.log) {
        (Some(one), Some(two)) => {
            let first = prefer_first(&one, &two, anchored)?;
            if first { (one, 0, Some(two)) } else { (two, 1, Some(one)) }
        }
        (Some(log), None) => (log, 0, None),
        (None, Some(log)) => (log, 1, None),
        (None, None) => {
            return Err(StoreError::Corrupt { file: "catalog.a and catalog.b".to_owned(), what: "both are empty" });
        }
    };
    if let (Some(other), Some(fault)) = (other, faults.get_mut(1 - copy))
        && fault.is_none()
        && !log.same_bytes(&other)
    {
        *fault = Some("it is older than the other copy");
    }
    Ok(Chosen { log, copy, faults })
}

/// Whether the first copy counts.
fn prefer_first(one: &Log, two: &Log, anchored: Option<(u64, [u8; 32])>) -> Result<bool, StoreError> {
    if one.agrees(two) {
        return Ok(one.state.sequence >= two.state.sequence);
    }
    let holds = |log: &Log| anchored.is_some_and(|(sequence, head)| log.head_at(sequence) == Some(head));
    match (holds(one), holds(two)) {
        (true, false) => Ok(true),
        (false, true) => Ok(false),
        (true, true) | (false, false) => Err(StoreError::Corrupt {
            file: "catalog.a and catalog.b".to_owned(),
            what: "they tell different histories",
        }),
    }
}

fn both_damaged(first: CopyFault, second: &CopyFault) -> StoreError {
    let file = "catalog.a and catalog.b".to_owned();
    match (first.version, second.version, first.io) {
        (Some(found), Some(_), _) => StoreError::Version { file, found },
        (_, _, Some(source)) if source.kind() != io::ErrorKind::NotFound => {
            StoreError::Io { doing: "read", file, source }
        }
        _ => StoreError::Corrupt { file, what: first.what },
    }
}

/// What came of an append that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: StoreError,
    /// Whether the disk holds the old state again, durably. If not, it holds the old one or the new one.
    pub(super) undone: bool,
}

/// The two copies, open for appending, both as long as `length`.
#[derive(Debug)]
pub(super) struct Writer {
    dir: Arc<dyn Dir>,
    copies: [Arc<dyn File>; 2],
    length: u64,
    snapshot_length: u64,
    /// `SNAPSHOT_FLOOR`, but for tests.
    pub(super) snapshot_floor: u64,
    /// No snapshot is tried below this length: the last one failed for want of space.
    retry_at: u64,
    /// The last entry, to notice that it was replaced.
    last: Vec<u8>,
}

impl Writer {
    /// Opens both copies, which hold the log's bytes (`heal` has seen to that).
    pub(super) fn open(dir: Arc<dyn Dir>, log: &Log) -> Result<Self, StoreError> {
        let open = |name: &'static str| dir.open_file(OsStr::new(name), true).map_err(StoreError::io("open", name));
        let copies = [open(COPIES[0])?, open(COPIES[1])?];
        let mut writer = Self {
            dir,
            copies,
            length: log.length,
            snapshot_length: log.snapshot_length,
            snapshot_floor: SNAPSHOT_FLOOR,
            retry_at: 0,
            last: Vec::new(),
        };
        writer.last = writer.tail(0, 64)?;
        writer.check_unchanged()?;
        Ok(writer)
    }

    /// The last `count` bytes of a copy.
    fn tail(&self, copy: usize, count: u64) -> Result<Vec<u8>, StoreError> {
        let (Some(file), Some(name)) = (self.copies.get(copy), COPIES.get(copy)) else { return Ok(Vec::new()) };
        let count = count.min(self.length);
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0)];
        file.read_exact_at(&mut bytes, self.length - count).map_err(StoreError::io("read", *name))?;
        Ok(bytes)
    }

    /// Notices a copy that was put back, cut or replaced while the store is open.
    ///
    /// # Errors
    /// `Tampered`; `Io` if it could not be found out.
    pub(super) fn check_unchanged(&self) -> Result<(), StoreError> {
        for (index, (file, name)) in self.copies.iter().zip(COPIES).enumerate() {
            let tampered = |what| StoreError::Tampered { file: name.to_owned(), what };
            let ours = file.stat().map_err(StoreError::io("stat", name))?;
            match self.dir.stat(OsStr::new(name)) {
                Ok(named) if (named.dev, named.ino) == (ours.dev, ours.ino) => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::Io { doing: "stat", file: name.to_owned(), source: error });
                }
                Ok(_) | Err(_) => return Err(tampered("it was replaced while the store was in use")),
            }
            if ours.size != self.length || self.tail(index, self.last.len() as u64)? != self.last {
                return Err(tampered("it was changed while the store was in use"));
            }
        }
        Ok(())
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Appends to both copies, each flushed before the next.
    pub(super) fn append(&mut self, entry: &[u8]) -> Result<(), Failed> {
        for (file, name) in self.copies.iter().zip(COPIES) {
            let written = file.write_all_at(entry, self.length).and_then(|()| file.sync_data());
            if let Err(source) = written {
                let error = StoreError::Io { doing: "append to", file: name.to_owned(), source };
                return Err(Failed { error, undone: self.cut(self.length).is_ok() });
            }
        }
        self.length = self.length.saturating_add(entry.len() as u64);
        let tail = entry.len().saturating_sub(64);
        self.last = entry.get(tail..).unwrap_or_default().to_vec();
        Ok(())
    }

    /// Takes the last entry back: both copies are `length` bytes again, durably. The second copy first, so that a crash
    /// in between leaves the longer one to count, as it would have before.
    pub(super) fn cut(&self, length: u64) -> io::Result<()> {
        for file in self.copies.iter().rev() {
            file.set_len(length)?;
            file.sync_data()?;
        }
        Ok(())
    }

    /// After `cut`: goes on from there.
    pub(super) fn resume_at(&mut self, length: u64) -> Result<(), StoreError> {
        self.length = length;
        self.last = self.tail(0, 64)?;
        Ok(())
    }

    pub(super) fn wants_snapshot(&self) -> bool {
        self.length > self.snapshot_floor
            && self.length > self.snapshot_length.saturating_mul(4)
            && self.length >= self.retry_at
    }

    /// Tries no snapshot before the log has grown by as much again as makes one worth while.
    pub(super) fn put_off_snapshot(&mut self) {
        self.retry_at = self.length.saturating_add(self.snapshot_floor);
    }

    /// Replaces both logs by a fresh one. Everything that may fail for want of space comes before the first rename.
    ///
    /// # Errors
    /// `undone: true`: nothing has changed, the log goes on as it is. `undone: false`: the copies may differ.
    pub(super) fn replace(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let waiting = COPIES.map(|name| format!(".{name}.new"));
        let prepared = waiting.iter().try_fold(Vec::new(), |mut files, name| {
            let name = OsStr::new(name);
            match self.dir.remove_file(name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let file = self.dir.create_file(name, 0o600)?;
            file.write_all_at(bytes, 0)?;
            file.sync_data()?;
            files.push(file);
            Ok(files)
        });
        let failed = |source, undone| Failed {
            error: StoreError::Io { doing: "replace", file: "catalog".to_owned(), source },
            undone,
        };
        let files: Result<[Arc<dyn File>; 2], _> = match prepared {
            Ok(files) => files.try_into(),
            Err(error) => {
                for name in &waiting {
                    // What cannot be removed is replaced by the next try.
                    let _ = self.dir.remove_file(OsStr::new(name));
                }
                self.put_off_snapshot();
                return Err(failed(error, true));
            }
        };
        let renamed = waiting.iter().zip(COPIES).try_for_each(|(from, to)| {
            self.dir.rename(OsStr::new(from), self.dir.as_ref(), OsStr::new(to), RenameFlags::None)
        });
        renamed.and_then(|()| self.dir.sync()).map_err(|error| failed(error, false))?;
        if let Ok(files) = files {
            self.copies = files;
        }
        self.length = bytes.len() as u64;
        self.snapshot_length = self.length;
        let tail = bytes.len().saturating_sub(64);
        self.last = bytes.get(tail..).unwrap_or_default().to_vec();
        Ok(())
    }
}
