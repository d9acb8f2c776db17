//! The store's life: made, opened, served, closed.
//!
//! Opening takes the lock, opens a slot, reads the anchor, chooses the catalog's copy and compares the three, in this
//! order; nothing is written before all of that has held. A store that is older than its anchor does not open unless
//! the caller accepts it. Read-only, nothing is ever written, the anchor included. What opening found and mended is
//! kept for the audit trail (`events`), since no trail is open yet.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use zeroize::Zeroizing;

use super::DirStorage;
use super::anchor::{self, Anchor, AnchorFile, Freshness};
use super::catalog::{
    COPIES, Chosen, ClockMark, ListedSlot, ListedSlots, RecordKind, Sealer, State, TrailHead, Writer, choose, read_copy,
};
use super::commit::{Draft, Engine};
use super::error::StoreError;
use super::lock::{LOCK_FILE, StoreLock};
use super::records::{self, RECORDS_DIR, RecordName};
use super::root::{Credential, MAX_ROOT_LEN, NewSlot, ROOT_FILE, RootFile, RootKeys, Unlocked};
use super::slots;
use super::spare::Spare;
use super::storage::{Dir, Storage, read_whole, write_replace};
use crate::crypto::{Argon2Params, Key256, random};
use crate::types::StoreId;

/// The directories of a store, beside `records`.
const OTHER_DIRS: [&str; 3] = ["journal", "audit", TABLES_DIR];
/// What a mount shows.
const TABLES_DIR: &str = "tables";

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Open {
    /// Write nothing: no anchor, no lock text, no mending.
    pub read_only: bool,
    /// The directory that holds this host's anchors; made if it is missing and the store is opened for writing.
    pub anchor_dir: PathBuf,
    /// 'pid host mountpoint': what another process is told that finds the store locked.
    pub owner: String,
    /// Take the store as it is although it is older than its anchor, or its anchor is damaged, or a slot was put back.
    pub accept_anchor: bool,
}

/// What opening a store found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A copy of the catalog was damaged, missing or behind; it was written anew from the other, unless read-only.
    CatalogCopy { copy: &'static str, why: &'static str, healed: bool },
    /// `root` is damaged, or its slots are not those that the catalog lists.
    Slots { unknown: usize, missing: usize },
    /// Generations of records that no commit has listed: a crash has left them; removed, unless read-only.
    Leftovers { count: usize },
    /// An object's record is missing: its key, table or policy cannot be read.
    RecordMissing { kind: RecordKind, id: [u8; 16] },
    /// This host has not seen the store before.
    NoAnchor,
    /// The store is older than its anchor, or the anchor was damaged, and the caller accepted that.
    AnchorAccepted { store: u64, anchor: Option<u64> },
    /// A slot that the catalog does not list opened the store, and the caller accepted that.
    SlotAccepted,
    /// The last mount did not stop in good order.
    UncleanStop { epoch: u64 },
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CatalogCopy { copy, why, healed } => {
                let done = if *healed { "it was written anew" } else { "it was left, being opened read-only" };
                write!(f, "{copy} was not used: {why}; {done}")
            }
            Self::Slots { unknown, missing } => write!(
                f,
                "root is damaged or was replaced: {missing} unlock slots are not as they were written, {unknown} are \
                 not ones that the store knows"
            ),
            Self::Leftovers { count } => write!(f, "{count} record files that no change has listed"),
            Self::RecordMissing { kind, id } => {
                write!(f, "the record {}.{} is missing", super::fields::hex(id), kind.code())
            }
            Self::NoAnchor => f.write_str("this host has not seen the store before"),
            Self::AnchorAccepted { store, anchor: Some(anchor) } => {
                write!(f, "the store at change {store} was accepted although this host has seen change {anchor}")
            }
            Self::AnchorAccepted { store, anchor: None } => {
                write!(f, "the store at change {store} was accepted although its anchor is damaged")
            }
            Self::SlotAccepted => f.write_str("an unlock slot that the store does not list was accepted"),
            Self::UncleanStop { epoch } => write!(f, "mount epoch {epoch} did not end in good order"),
        }
    }
}

/// What changes with each commit.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) state: State,
    /// Whether `state.epoch` is this process's own.
    pub(super) begun: bool,
}

/// An open store. Shared between threads; commits run one after the other.
#[derive(Debug)]
pub struct Store {
    pub(super) id: StoreId,
    pub(super) keys: RootKeys,
    pub(super) dir: Arc<dyn Dir>,
    pub(super) records_dir: Arc<dyn Dir>,
    pub(super) live: RwLock<Live>,
    /// None: read-only.
    pub(super) engine: Option<Mutex<Engine>>,
    /// What the next commit is to say of time.
    pub(super) clock: Mutex<Option<ClockMark>>,
    /// Held while `root` is read, changed and written.
    pub(super) slots: Mutex<()>,
    session: [u8; 16],
    events: Vec<Found>,
    _lock: Option<StoreLock>,
}

/// What is known once a slot is open.
struct Opened {
    dir: Arc<dyn Dir>,
    lock: Option<StoreLock>,
    file: RootFile,
    listed: ListedSlot,
    keys: RootKeys,
}

impl Store {
    /// Makes a store, with one unlock slot, in a directory that is absent or empty, and opens it for writing.
    ///
    /// # Errors
    /// `NotEmpty`; `Parameters`, `BadCredential`, `TooLarge` for what the slot cannot be made of. What was made so far
    /// is removed again.
    pub fn create(
        path: &Path,
        credential: &Credential,
        params: Argon2Params,
        label: &str,
        how: &Open,
    ) -> Result<Self, StoreError> {
        let text = path.display().to_string();
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(StoreError::Io { doing: "make", file: text, source }),
        }
        let dir = DirStorage::open(path).map_err(StoreError::io("open", &text))?.root();
        let anchors = anchor_base(how)?;
        let slot = NewSlot { params, label, created: now() };
        let made = Self::create_in(&dir, anchors.as_deref(), credential, slot, how);
        let store = made.map_err(|error| error.at(&text))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = std::fs::File::open(parent).and_then(|dir| dir.sync_all());
        synced.map_err(StoreError::io("sync", parent.display().to_string()))?;
        Ok(store)
    }

    /// Opens the store at `path`.
    ///
    /// # Errors
    /// `Busy` when another process serves it; `WrongCredential` and `DamagedSlots`; `RolledBack` when this host has
    /// seen a newer one; `Corrupt` when neither copy of the catalog can be read.
    pub fn open(path: &Path, credential: &Credential, how: &Open) -> Result<Self, StoreError> {
        let text = path.display().to_string();
        let dir = DirStorage::open(path).map_err(StoreError::io("open", &text))?.root();
        let anchors = anchor_base(how)?;
        Self::open_in(dir, anchors.as_deref(), credential, how).map_err(|error| error.at(&text))
    }

    /// Opens the store in `dir`, its anchor in `anchors`: for tests that record what reaches the disk, or make it fail.
    #[cfg(feature = "testing")]
    pub fn open_on(
        dir: Arc<dyn Dir>,
        anchors: &dyn Dir,
        credential: &Credential,
        how: &Open,
    ) -> Result<Self, StoreError> {
        Self::open_in(dir, Some(anchors), credential, how)
    }

    pub(super) fn create_in(
        dir: &Arc<dyn Dir>,
        anchors: Option<&dyn Dir>,
        credential: &Credential,
        slot: NewSlot<'_>,
        how: &Open,
    ) -> Result<Self, StoreError> {
        check_empty(dir.as_ref())?;
        let lock = StoreLock::acquire(dir.as_ref(), false, &how.owner)?;
        // Whoever held the lock until now may have made a store here.
        check_empty(dir.as_ref())?;
        let id = StoreId::from_bytes(random()?);
        let root = Key256::random()?;
        let mut file = RootFile::new(id);
        let listed = file.add(&root, credential, slot)?;
        let keys = RootKeys::derive(id, &root)?;
        let made = lay_out(dir.as_ref(), &file, &keys, &listed)
            .and_then(|()| Self::assemble(Opened { dir: Arc::clone(dir), lock, file, listed, keys }, anchors, how));
        if made.is_err() {
            clear_away(dir.as_ref());
        }
        made
    }

    pub(super) fn open_in(
        dir: Arc<dyn Dir>,
        anchors: Option<&dyn Dir>,
        credential: &Credential,
        how: &Open,
    ) -> Result<Self, StoreError> {
        let file = read_root(dir.as_ref())?;
        let lock = StoreLock::acquire(dir.as_ref(), how.read_only, &how.owner)?;
        // Read again: it may have been replaced by the process that held the lock.
        let file = if how.read_only { file } else { read_root(dir.as_ref())? };
        let Unlocked { root, listed } = file.unlock(credential)?;
        let keys = RootKeys::derive(file.store, &root)?;
        drop(root);
        Self::assemble(Opened { dir, lock, file, listed, keys }, anchors, how)
    }

    /// Everything after the unlocking.
    fn assemble(opened: Opened, anchors: Option<&dyn Dir>, how: &Open) -> Result<Self, StoreError> {
        let Opened { dir, lock, file, listed, keys } = opened;
        let id = file.store;
        let mut events = Vec::new();
        let anchor_bytes = anchors.map(|base| anchor::read(base, id)).transpose()?.flatten();
        let anchor = known_anchor(anchor_bytes.as_deref(), &keys, id, how)?;
        let seen = anchor.as_ref().map(|anchor| (anchor.sequence, anchor.head));
        let sealer = Sealer { key: &keys.catalog, store: id };
        let chosen = choose(COPIES.map(|name| read_copy(dir.as_ref(), name, sealer)), seen)?;
        let state = &chosen.log.state;
        match (&anchor, anchor_bytes.is_some()) {
            (Some(anchor), _) if anchor.compare(&chosen.log) == Freshness::RolledBack => {
                if !how.accept_anchor {
                    return Err(StoreError::RolledBack { store: state.sequence, anchor: anchor.sequence });
                }
                events.push(Found::AnchorAccepted { store: state.sequence, anchor: Some(anchor.sequence) });
            }
            (Some(_), _) => {}
            (None, true) => events.push(Found::AnchorAccepted { store: state.sequence, anchor: None }),
            (None, false) => events.push(Found::NoAnchor),
        }
        let judged = slots::judge(&file, &listed, &state.slots, how.accept_anchor)?;
        events.extend(judged.found);
        if !state.clean {
            events.push(Found::UncleanStop { epoch: state.epoch });
        }
        let records_dir = dir.open_dir(OsStr::new(RECORDS_DIR)).map_err(StoreError::io("open", RECORDS_DIR))?;

        let floor = anchor.map_or(0, |anchor| anchor.epoch);
        let engine = if how.read_only {
            events.extend(faults(&chosen, false));
            None
        } else {
            events.extend(faults(&chosen, true));
            heal(dir.as_ref(), &chosen)?;
            let base = anchors.ok_or_else(|| {
                let file = how.anchor_dir.display().to_string();
                StoreError::io("open the anchors' directory", file)(io::ErrorKind::NotFound.into())
            })?;
            let mut anchor = AnchorFile::open(base, id, anchor_bytes)?;
            let bytes = Anchor::of(id, state, floor).encode(&keys.anchor);
            anchor.advance(bytes).map_err(|failed| failed.error)?;
            Some(Mutex::new(Engine::new(
                Writer::open(Arc::clone(&dir), &chosen.log)?,
                anchor,
                floor,
                Spare::of(Arc::clone(&dir)),
            )))
        };
        events.extend(sweep(&records_dir, state, !how.read_only && !how.accept_anchor)?);
        let live = RwLock::new(Live { state: chosen.log.state, begun: false });
        let session = random()?;
        let (clock, slots) = (Mutex::new(None), Mutex::new(()));
        let store = Self { id, keys, dir, records_dir, live, engine, clock, slots, session, events, _lock: lock };
        if let (Some(slots), false) = (judged.settle, how.read_only) {
            store.transact(&Draft { slots: Some(slots), ..Draft::default() })?;
        }
        Ok(store)
    }

    pub fn id(&self) -> StoreId {
        self.id
    }

    /// The store's own directory.
    pub fn root_dir(&self) -> Arc<dyn Dir> {
        Arc::clone(&self.dir)
    }

    pub fn keys(&self) -> &RootKeys {
        &self.keys
    }

    /// Random for each opening: the journal's and the trail's keys are derived with it.
    pub fn session(&self) -> &[u8; 16] {
        &self.session
    }

    pub fn is_read_only(&self) -> bool {
        self.engine.is_none()
    }

    /// What opening found, for the trail.
    pub fn events(&self) -> &[Found] {
        &self.events
    }

    /// The mount epoch that the catalog says.
    pub fn epoch(&self) -> u64 {
        self.live().state.epoch
    }

    /// Whether a mount epoch was not closed in good order. The epoch of this process's own mount is not unclean.
    pub fn unclean_epoch(&self, epoch: u64) -> bool {
        let live = self.live();
        live.state.is_unclean(epoch) || (epoch == live.state.epoch && !live.state.clean && !live.begun)
    }

    /// The mount epochs that were not closed in good order, as inclusive ranges; this process's own is left out.
    pub fn unclean_epochs(&self) -> Vec<(u64, u64)> {
        let live = self.live();
        let last = (!live.state.clean && !live.begun && live.state.epoch > 0).then_some(live.state.epoch);
        live.state.unclean.iter().copied().chain(last.map(|last| (last, last))).collect()
    }

    /// The trail's head as of the last commit.
    pub fn trail_head(&self) -> TrailHead {
        self.live().state.trail
    }

    /// What the store knows of time, as of the last commit.
    pub fn clock(&self) -> Option<ClockMark> {
        self.live().state.clock.clone()
    }

    /// Has every commit from here on say this of time, until something newer is noted.
    pub fn note_clock(&self, mark: ClockMark) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(mark);
    }

    /// The number of the last change.
    pub fn sequence(&self) -> u64 {
        self.live().state.sequence
    }

    /// The objects of one kind, with their generations, in the order of their ids.
    pub fn records(&self, kind: RecordKind) -> Vec<([u8; 16], u64)> {
        let live = self.live();
        let of_kind = live.state.objects.range((kind, [0; 16])..=(kind, [u8::MAX; 16]));
        let alive = of_kind.filter(|(_, object)| object.digest.is_some());
        alive.map(|(&(_, id), object)| (id, object.generation)).collect()
    }

    /// An object's generation, if it is listed.
    pub fn generation(&self, kind: RecordKind, id: [u8; 16]) -> Option<u64> {
        self.live().state.objects.get(&(kind, id)).filter(|o| o.digest.is_some()).map(|o| o.generation)
    }

    /// The bytes of an object's record, as last committed.
    ///
    /// # Errors
    /// `Tampered` when the file is not the one that was committed; it concerns this object alone.
    pub fn read_record(&self, kind: RecordKind, id: [u8; 16]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let listed = || {
            let object = self.live().state.objects.get(&(kind, id)).copied();
            object.and_then(|object| Some((object.generation, object.digest?)))
        };
        let (mut generation, mut digest) = listed().ok_or(StoreError::NoSuchRecord { kind: kind.code() })?;
        loop {
            let name = RecordName { kind, id, generation };
            let read = records::read(self.records_dir.as_ref(), &self.keys.records, self.id, name, digest);
            match (read, listed()) {
                // A commit has replaced it while it was read.
                (Err(_), Some(newer)) if newer.0 != generation => (generation, digest) = newer,
                (read, _) => return read,
            }
        }
    }

    pub(super) fn live(&self) -> RwLockReadGuard<'_, Live> {
        // A commit changes this in one call that cannot panic half way.
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(0)
}

fn anchor_base(how: &Open) -> Result<Option<Arc<dyn Dir>>, StoreError> {
    let text = how.anchor_dir.display().to_string();
    if !how.read_only {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&how.anchor_dir);
        made.map_err(StoreError::io("make the anchors' directory", &text))?;
    }
    match DirStorage::open(&how.anchor_dir) {
        Ok(storage) => Ok(Some(storage.root())),
        Err(error) if how.read_only && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { doing: "open the anchors' directory", file: text, source }),
    }
}

pub(super) fn read_root(dir: &dyn Dir) -> Result<RootFile, StoreError> {
    let name = OsStr::new(ROOT_FILE);
    // One byte more than the longest, so that a longer file is seen to be damaged.
    let limit = MAX_ROOT_LEN as u64 + 1;
    match dir.open_file(name, false).and_then(|file| read_whole(file.as_ref(), limit)) {
        Ok(bytes) => RootFile::parse(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(StoreError::NotAStore { path: "the directory".to_owned() })
        }
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::FBIG.raw_os_error()) => {
            Err(StoreError::Corrupt { file: ROOT_FILE.to_owned(), what: "it is longer than 16 slots" })
        }
        Err(source) => Err(StoreError::Io { doing: "read", file: ROOT_FILE.to_owned(), source }),
    }
}

/// Writes a new store's files; `root`, which makes it one, last.
fn lay_out(dir: &dyn Dir, file: &RootFile, keys: &RootKeys, listed: &ListedSlot) -> Result<(), StoreError> {
    dir.chmod(None, 0o700).map_err(StoreError::io("chmod", "the store"))?;
    for name in [RECORDS_DIR].iter().chain(&OTHER_DIRS) {
        dir.create_dir(OsStr::new(name), 0o700).map_err(StoreError::io("make", *name))?;
    }
    // The owner and mode of a mount's root; who comes by way of the store itself is stopped by the directory above.
    let tables = OsStr::new(TABLES_DIR);
    dir.chmod(Some(tables), 0o755).map_err(StoreError::io("chmod", TABLES_DIR))?;
    let slots = ListedSlots { now: vec![listed.clone()], next: None };
    let state = State { clean: true, slots, ..State::default() };
    let (bytes, _) = Sealer { key: &keys.catalog, store: file.store }.fresh_log(&state)?;
    for name in COPIES {
        write_replace(dir, OsStr::new(name), &bytes, 0o600).map_err(StoreError::io("write", name))?;
    }
    write_replace(dir, OsStr::new(ROOT_FILE), &file.encode(), 0o600).map_err(StoreError::io("write", ROOT_FILE))
}

/// Refuses a directory that holds anything but what a new file system and a store in the making have.
fn check_empty(dir: &dyn Dir) -> Result<(), StoreError> {
    let entries = dir.list().map_err(StoreError::io("list", "the store"))?;
    if entries.iter().all(|entry| entry.name == "lost+found" || entry.name == LOCK_FILE) {
        return Ok(());
    }
    Err(StoreError::NotEmpty { path: "the directory".to_owned() })
}

/// Removes what `lay_out` has made, as far as that goes: the error that led here is the one that is told.
fn clear_away(dir: &dyn Dir) {
    for name in [ROOT_FILE, COPIES[0], COPIES[1], LOCK_FILE] {
        let _ = dir.remove_file(OsStr::new(name));
    }
    for name in [RECORDS_DIR].iter().chain(&OTHER_DIRS) {
        let _ = dir.remove_dir(OsStr::new(name));
    }
}

/// The anchor as far as it counts: none if there is none, or if it is damaged and that is accepted.
fn known_anchor(
    bytes: Option<&[u8]>,
    keys: &RootKeys,
    store: StoreId,
    how: &Open,
) -> Result<Option<Anchor>, StoreError> {
    match bytes.map(|bytes| Anchor::decode(bytes, &keys.anchor, store)).transpose() {
        Err(StoreError::AnchorDamaged { .. }) if how.accept_anchor => Ok(None),
        Err(StoreError::AnchorDamaged { file, what }) => {
            Err(StoreError::AnchorDamaged { file: how.anchor_dir.join(file).display().to_string(), what })
        }
        other => other,
    }
}

fn faults(chosen: &Chosen, healed: bool) -> impl Iterator<Item = Found> {
    let named = COPIES.into_iter().zip(chosen.faults);
    named.filter_map(move |(copy, why)| why.map(|why| Found::CatalogCopy { copy, why, healed }))
}

/// Makes both copies hold the chosen log and nothing else: the other one first, so that one is whole at any time.
fn heal(dir: &dyn Dir, chosen: &Chosen) -> Result<(), StoreError> {
    if chosen.faults == [None, None] {
        return Ok(());
    }
    let [source, other] = if chosen.copy == 0 { COPIES } else { [COPIES[1], COPIES[0]] };
    // Authenticated bytes that are there, so their number may be trusted.
    let mut whole = vec![0; usize::try_from(chosen.log.length).unwrap_or(usize::MAX)];
    let file = dir.open_file(OsStr::new(source), false).map_err(StoreError::io("open", source))?;
    file.read_exact_at(&mut whole, 0).map_err(StoreError::io("read", source))?;
    for name in [other, source] {
        let faulty = COPIES.iter().zip(chosen.faults).any(|(copy, fault)| *copy == name && fault.is_some());
        if faulty {
            write_replace(dir, OsStr::new(name), &whole, 0o600).map_err(StoreError::io("write", name))?;
        }
    }
    Ok(())
}

/// Looks for records that are missing and for files that no change has listed, and removes those.
fn sweep(dir: &Arc<dyn Dir>, state: &State, remove: bool) -> Result<Vec<Found>, StoreError> {
    let survey = records::survey(dir, state.objects.iter())?;
    let mut found: Vec<Found> = survey.missing.iter().map(|&(kind, id)| Found::RecordMissing { kind, id }).collect();
    if !survey.leftovers.is_empty() {
        found.push(Found::Leftovers { count: survey.leftovers.len() });
    }
    if remove {
        for name in &survey.leftovers {
            // It says nothing, so it may stay until the next time.
            let _ = dir.remove_file(name);
        }
    }
    Ok(found)
}
