//! Puts in place what a mount has left in the journal when it stopped without a checkpoint.
//!
//! Refuses: segments whose header does not verify or whose epoch was closed in good order; segments behind a gap in the
//! sequence; records that do not verify, and all after them; paths that are not plainly below `tables/`; files that do
//! not bear the record's item id. Segments are durable before anything is put in place, and removed only when all that
//! they hold is durably there.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;

use super::JournalError;
use super::segment::{
    HEADER_BYTES, HEADER_LEN, Header, ITEM_ID_AT, MAX_BOX_LEN, PREFIX_LEN, Record, RecordOp, safe_components,
};
use crate::crypto::Key256;
use crate::store::storage::{Dir, File, FileKind, SetTime};
use crate::types::{ItemId, StoreId};

/// Files that are kept open during a replay.
const OPEN_FILES: usize = 128;

/// What a replay found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replayed {
    /// Records that were applied.
    pub applied: u64,
    /// Records whose file is gone.
    pub missing: u64,
    /// Records whose path is not acceptable, or leads to another item or to no regular file.
    pub foreign: u64,
    /// Segments that ended in bytes that do not verify: torn by a crash, or damaged.
    pub torn: u64,
    /// Segments that were not used: of a mount that was closed in good order, damaged at the start, or behind a gap.
    pub refused: u64,
}

/// Replays everything and leaves `dir` without segments.
pub(super) fn replay(
    root: &Arc<dyn Dir>,
    dir: &dyn Dir,
    key: &Key256,
    store: StoreId,
    unclean: &dyn Fn(u64) -> bool,
) -> Result<Replayed, JournalError> {
    let found = Found::list(dir, key, store, unclean)?;
    // After a kill the records may be in the page cache alone: nothing is overwritten before they are durable.
    found.flush(dir)?;
    let mut target = Target { root: Arc::clone(root), open: HashMap::new(), foreign: 0, missing: 0, applied: 0 };
    let mut replayed = found.read(key, &mut |record| target.apply(&record).map_err(JournalError::from))?;
    target.flush()?;
    (replayed.applied, replayed.missing, replayed.foreign) = (target.applied, target.missing, target.foreign);
    if !found.names.is_empty() {
        for name in &found.names {
            dir.remove_file(name)?;
        }
        dir.sync()?;
    }
    if replayed != Replayed::default() {
        log::info!("journal replayed: {replayed:?}");
    }
    Ok(replayed)
}

/// For a read-only mount: an error if there is any record to be replayed.
pub(super) fn refuse_pending(
    dir: &dyn Dir,
    key: &Key256,
    store: StoreId,
    unclean: &dyn Fn(u64) -> bool,
) -> Result<(), JournalError> {
    Found::list(dir, key, store, unclean)?.read(key, &mut |_| Err(JournalError::NeedsReplay)).map(|_| ())
}

/// The segments of a journal.
struct Found {
    /// In order; all of the last unclean mount that left any.
    segments: Vec<(Header, Arc<dyn File>)>,
    /// Everything that looks like a segment, in order.
    names: Vec<OsString>,
    refused: u64,
    torn: u64,
}

impl Found {
    fn list(dir: &dyn Dir, key: &Key256, store: StoreId, unclean: &dyn Fn(u64) -> bool) -> Result<Self, JournalError> {
        let mut numbers: Vec<u64> = Vec::new();
        for entry in dir.list()? {
            let number = entry.name.to_str().and_then(|name| name.parse::<u64>().ok());
            // Only as this program writes it: no sign, no leading zero.
            let number = number.filter(|number| entry.name == *number.to_string() && entry.kind == FileKind::File);
            numbers.extend(number);
        }
        numbers.sort_unstable();
        let names = numbers.iter().map(|number| OsString::from(number.to_string())).collect();
        let mut found = Self { segments: Vec::new(), names, refused: 0, torn: 0 };
        for &number in &numbers {
            let file = dir.open_file(number.to_string().as_ref(), false)?;
            match read_header(file.as_ref(), key)? {
                Some(header) if header.store == store && header.number == number && unclean(header.epoch) => {
                    found.segments.push((header, file));
                }
                Some(_) => found.refused += 1,
                // The last one may have been cut off in the making. Any other: what comes behind builds on what is lost.
                None if numbers.last() == Some(&number) => found.torn += 1,
                None => {
                    found.refused += count(numbers.iter().filter(|later| **later >= number).count());
                    break;
                }
            }
        }
        // A mount starts its first segment when it has removed all older ones, so those were put back.
        let epoch = found.segments.iter().map(|(header, _)| header.epoch).max();
        let before = found.segments.len();
        found.segments.retain(|(header, _)| Some(header.epoch) == epoch);
        found.refused += count(before - found.segments.len());
        Ok(found)
    }

    /// Makes the segments durable.
    fn flush(&self, dir: &dyn Dir) -> io::Result<()> {
        if self.segments.is_empty() {
            return Ok(());
        }
        self.segments.iter().try_for_each(|(_, file)| file.sync_data())?;
        dir.sync()
    }

    /// Gives the records that count to `apply`, in order.
    fn read(
        &self,
        key: &Key256,
        apply: &mut dyn FnMut(Record) -> Result<(), JournalError>,
    ) -> Result<Replayed, JournalError> {
        let mut replayed = Replayed { refused: self.refused, torn: self.torn, ..Replayed::default() };
        let mut expected = self.segments.first().map_or(0, |(header, _)| header.first);
        for (index, (header, file)) in self.segments.iter().enumerate() {
            if header.first != expected {
                replayed.refused += count(self.segments.len() - index);
                break;
            }
            // Where the next segment starts, what stands behind in this one is a record that failed.
            let limit = self.segments.get(index + 1).map_or(u64::MAX, |(next, _)| next.first);
            let aead = header.record_key(key)?;
            let mut at = HEADER_BYTES;
            let size = file.stat()?.size;
            while expected < limit && at < size {
                let Some(sealed) = read_box(file.as_ref(), at, size)? else { break };
                let Some(record) = Record::open(&aead, header.number, expected, &sealed) else { break };
                apply(record)?;
                at += count(PREFIX_LEN + sealed.len());
                expected += 1;
            }
            replayed.torn += u64::from(at < size);
        }
        Ok(replayed)
    }
}

fn read_header(file: &dyn File, key: &Key256) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_LEN];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(Header::decode(&bytes, key)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The sealed box at `at`; none where its length does not fit into the file of `size` bytes.
fn read_box(file: &dyn File, at: u64, size: u64) -> io::Result<Option<Vec<u8>>> {
    let mut prefix = [0; PREFIX_LEN];
    let rest = size.saturating_sub(at);
    if rest < count(PREFIX_LEN) {
        return Ok(None);
    }
    file.read_exact_at(&mut prefix, at)?;
    let length = u64::from(u32::from_le_bytes(prefix));
    if length > rest - count(PREFIX_LEN) || length > count(MAX_BOX_LEN) {
        return Ok(None);
    }
    let mut sealed = vec![0; usize::try_from(length).map_err(|_| Errno::FBIG)?];
    file.read_exact_at(&mut sealed, at + count(PREFIX_LEN))?;
    Ok(Some(sealed))
}

/// Why a record is passed over.
enum Skip {
    Missing,
    Foreign,
}

/// A file with its modification time, which the replay gives back: the content changed before the crash.
type Opened = (Arc<dyn File>, (i64, u32));

/// The items that a replay writes to.
struct Target {
    root: Arc<dyn Dir>,
    open: HashMap<(PathBuf, ItemId), Opened>,
    applied: u64,
    missing: u64,
    foreign: u64,
}

impl Target {
    fn apply(&mut self, record: &Record) -> io::Result<()> {
        let file = match self.file(record)? {
            Ok(file) => file,
            Err(Skip::Missing) => {
                self.missing += 1;
                return Ok(());
            }
            Err(Skip::Foreign) => {
                self.foreign += 1;
                return Ok(());
            }
        };
        for op in &record.ops {
            match op {
                RecordOp::Write { offset, bytes } => file.write_all_at(bytes, *offset)?,
                RecordOp::SetLen(length) => file.set_len(*length)?,
            }
        }
        self.applied += 1;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open.drain().try_for_each(|(_, (file, (seconds, nanos)))| {
            let _ = file.utimens(SetTime::Keep, SetTime::At(seconds, nanos));
            file.sync_data()
        })
    }

    fn file(&mut self, record: &Record) -> io::Result<Result<Arc<dyn File>, Skip>> {
        let key = (record.path.clone(), record.item);
        if let Some((file, _)) = self.open.get(&key) {
            return Ok(Ok(Arc::clone(file)));
        }
        let file = match self.open_item(record) {
            Ok(file) => file,
            Err(error) => {
                return match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::NOENT | Errno::NOTDIR) => Ok(Err(Skip::Missing)),
                    Some(Errno::UCLEAN | Errno::INVAL) => Ok(Err(Skip::Foreign)),
                    Some(_) | None => Err(error),
                };
            }
        };
        if !bears_id(file.as_ref(), record.item)? {
            return Ok(Err(Skip::Foreign));
        }
        if self.open.len() >= OPEN_FILES {
            self.flush()?;
        }
        let modified = file.stat()?.mtime;
        self.open.insert(key, (Arc::clone(&file), modified));
        Ok(Ok(file))
    }

    /// Opens the record's file, a component at a time. EINVAL for a path that no record may name.
    fn open_item(&self, record: &Record) -> io::Result<Arc<dyn File>> {
        let components = safe_components(&record.path).ok_or(Errno::INVAL)?;
        let (name, folders) = components.split_last().ok_or(Errno::INVAL)?;
        let mut dir = Arc::clone(&self.root);
        for folder in folders {
            dir = dir.open_dir(folder)?;
        }
        match dir.open_file(name, true) {
            // An item whose owner took his own right to write away, under a daemon without privileges.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let mode = dir.stat(name)?.permissions();
                dir.chmod(Some(name), mode | 0o600)?;
                let file = dir.open_file(name, true);
                dir.chmod(Some(name), mode)?;
                file
            }
            other => other,
        }
    }
}

/// Whether the file is the item's: its header holds the id (docs/format.md, section 6.3).
fn bears_id(file: &dyn File, item: ItemId) -> io::Result<bool> {
    let mut id = [0; 16];
    match file.read_exact_at(&mut id, ITEM_ID_AT) {
        Ok(()) => Ok(id == *item.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
