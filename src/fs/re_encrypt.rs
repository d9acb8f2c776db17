//! Carries out orders to re-encrypt a table: a thread walks the table's folders and has each item sealed anew, a step at a
//! time, while everybody else goes on.
//!
//! What is left to do, the items' own headers tell, and the order stands in the table's record: so after a kill the next
//! mount goes on where this one was. Passes are made until one finds nothing to do, while nothing was moved that it might
//! have missed; then all is made durable, and the older versions of the table's key go. An item that does not verify
//! is left as it is, and keeps them.
//!
//! The thread takes no more than half of one core's time, and rests after a burst of bytes for as long as keeps it below
//! [`BYTES_PER_SECOND`]; it keeps in memory a step's blocks and the names of the folders beside its path. It puts the
//! journal in place for what it has written itself, so that no one else waits for that.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::FileSystem;
use super::api::{FsError, FsResult};
use super::inodes::{Backing, Body, Inode};
use crate::kms::{ItemKeySource, KmsError, ReSealKey, Table};
use crate::store::{FileKind, SetTime};
use crate::table::{Folder, Item, Step, StoredName, TableError};
use crate::types::TableId;

/// How often the thread looks whether there is something to do.
const PERIOD: Duration = Duration::from_secs(1);
/// What it seals in a second, at most.
const BYTES_PER_SECOND: u64 = 128 << 20;
/// It does not rest for less than this.
const REST_LEAST: Duration = Duration::from_millis(2);
/// Nor for longer at once.
const REST_MOST: Duration = Duration::from_millis(500);
/// After so many bytes or items it puts the journal in place.
const CHECKPOINT_BYTES: u64 = 16 << 20;
const CHECKPOINT_ITEMS: u64 = 256;
/// After a failure of the store, as when it is full, it tries again.
const RETRY: Duration = Duration::from_secs(30);

/// The work on orders in this mount.
#[derive(Debug, Default)]
pub(super) struct ReEncryptions {
    jobs: Mutex<HashMap<TableId, Arc<Job>>>,
    worker: OnceLock<Thread>,
}

/// One table's.
#[derive(Debug, Default)]
struct Job {
    items: AtomicU64,
    bytes: AtomicU64,
    items_done: AtomicU64,
    bytes_done: AtomicU64,
    damaged: AtomicU64,
    /// Everything was counted, and the trail knows.
    begun: AtomicBool,
    phase: Mutex<Phase>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
enum Phase {
    #[default]
    Waiting,
    Counting,
    Running,
    /// Damaged items are left.
    Blocked,
    /// The key is not enabled.
    NoKey(String),
    /// Until then; the store could not take something.
    Failed(Instant, String),
    Done,
}

impl Job {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        *self.phase() = phase;
    }

    /// Another order: one that is being carried out goes on, any other begins anew.
    fn order_again(&self) {
        let mut phase = self.phase();
        if !matches!(&*phase, Phase::Counting | Phase::Running) {
            *phase = Phase::Waiting;
            self.begun.store(false, Ordering::Release);
        }
    }

    fn is_due(&self) -> bool {
        match &*self.phase() {
            Phase::Blocked | Phase::Done => false,
            Phase::Failed(until, _) => *until <= Instant::now(),
            Phase::Waiting | Phase::Counting | Phase::Running | Phase::NoKey(_) => true,
        }
    }
}

/// Why a pass ended early.
#[derive(Debug)]
enum Ended {
    /// The order was stopped, the table is gone, or the mount ends.
    Stopped,
    NoKey(String),
    Failed(FsError),
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what is neither an answer nor about the key is a failure")]
impl From<KmsError> for Ended {
    fn from(error: KmsError) -> Self {
        match FsError::from(error) {
            FsError::NotFound => Self::Stopped,
            error @ (FsError::KeyRevoked | FsError::NoKey | FsError::Tampered) => Self::NoKey(error.to_string()),
            error => Self::Failed(error),
        }
    }
}

/// What a pass has found.
#[derive(Debug, Default)]
struct Pass {
    worked: bool,
    damaged: u64,
    /// Since the journal was put in place.
    pending_bytes: u64,
    pending_items: u64,
    /// Time that is owed to others.
    debt: Duration,
}

/// A folder on the path of a walk, and the folders in it that are still to be walked.
type Level<'a> = (Known<'a>, Vec<OsString>);

impl FileSystem {
    /// Starts the thread, which ends with the file system.
    pub(super) fn start_re_encrypting(self: &Arc<Self>) -> std::io::Result<()> {
        let weak = Arc::downgrade(self);
        let started = thread::Builder::new().name("kmsfs-reencrypt".to_owned()).spawn(move || work_on(&weak))?;
        // A second one would find nothing to do.
        let _ = self.re_encryptions.worker.set(started.thread().clone());
        Ok(())
    }

    /// There is a new order, or an old one that goes on.
    pub(super) fn re_encryption_ordered(&self, table: &Table) {
        if let Some(job) = self.re_encryptions.jobs().get(&table.id()) {
            job.order_again();
        }
        if let Some(worker) = self.re_encryptions.worker.get() {
            worker.unpark();
        }
    }

    /// Carries out every order that is due, until it is done or stopped.
    pub fn re_encrypt_tables(&self) {
        if self.options.read_only {
            return;
        }
        self.re_encryptions.jobs().retain(|id, _| self.kms.table(*id).is_ok());
        for table in self.kms.tables() {
            if table.re_encryption().is_none_or(|order| order.stopped) {
                continue;
            }
            let job = Arc::clone(self.re_encryptions.jobs().entry(table.id()).or_default());
            if !job.is_due() {
                continue;
            }
            let phase = match self.re_encrypt_table(&table, &job) {
                Ok(phase) => phase,
                Err(Ended::Stopped) => Phase::Waiting,
                Err(Ended::NoKey(why)) => Phase::NoKey(why),
                Err(Ended::Failed(error)) => {
                    log::warn!("the re-encryption of table {} waits: {error}", table.name());
                    Phase::Failed(Instant::now() + RETRY, error.to_string())
                }
            };
            job.enter(phase);
        }
    }

    fn re_encrypt_table(&self, table: &Arc<Table>, job: &Job) -> Result<Phase, Ended> {
        self.order_of(table)?;
        if !job.begun.load(Ordering::Acquire) {
            job.enter(Phase::Counting);
            self.kms.log_re_encryption(table)?;
            let (items, bytes) = self.count_items(table).map_err(Ended::Failed)?;
            job.items.store(items, Ordering::Relaxed);
            job.bytes.store(bytes, Ordering::Relaxed);
            job.begun.store(true, Ordering::Release);
        }
        job.enter(Phase::Running);
        let mut damaged_before = false;
        loop {
            let folder = self.table_folder(table).map_err(Ended::Failed)?;
            let moves = folder.table().begin_walk(self.order_of(table)?.current_version());
            for counter in [&job.items_done, &job.bytes_done, &job.damaged] {
                counter.store(0, Ordering::Relaxed);
            }
            let pass = self.pass(table, job)?;
            if pass.worked || folder.table().end_walk() != moves {
                continue;
            }
            if pass.damaged > 0 {
                if damaged_before {
                    return Ok(Phase::Blocked);
                }
                // A name that was removed and made anew meanwhile may have looked like it.
                damaged_before = true;
                continue;
            }
            // Nothing that a crash could bring back is under an older version from here on.
            self.journal.checkpoint().and_then(|()| self.tables.syncfs()).map_err(|e| Ended::Failed(e.into()))?;
            self.kms.end_re_encryption(table)?;
            log::info!("table {} is re-encrypted", table.name());
            return Ok(Phase::Done);
        }
    }

    /// Whether the order stands, and what it lets the daemon do.
    fn order_of(&self, table: &Arc<Table>) -> Result<ReSealKey, Ended> {
        if self.ended.load(Ordering::Acquire) || self.kms.table(table.id()).is_err() {
            return Err(Ended::Stopped);
        }
        Ok(self.kms.re_seal_key(table)?)
    }

    fn pass(&self, table: &Arc<Table>, job: &Job) -> Result<Pass, Ended> {
        let mut pass = Pass::default();
        let top = self.table_inode(table).map_err(Ended::Failed)?.0;
        let folder = self.table_folder(table).map_err(Ended::Failed)?;
        let top = Known { fs: self, inode: top, folder };
        let inside = self.pass_folder(table, job, &mut pass, &top.inode)?;
        let mut path: Vec<Level<'_>> = vec![(top, inside)];
        while let Some((parent, folders)) = path.last_mut() {
            let Some(on_disk) = folders.pop() else {
                path.pop();
                continue;
            };
            let parent = Arc::clone(&parent.inode);
            match self.known_entry(&parent, &on_disk) {
                Ok((folder, _)) => {
                    let inside = self.pass_folder(table, job, &mut pass, &folder.inode)?;
                    path.push((folder, inside));
                }
                Err(error) => note(job, &mut pass, error)?,
            }
        }
        Ok(pass)
    }

    /// The items of one folder, and the folder's own attributes. Gives the folders in it.
    fn pass_folder(
        &self,
        table: &Arc<Table>,
        job: &Job,
        pass: &mut Pass,
        inode: &Arc<Inode>,
    ) -> Result<Vec<OsString>, Ended> {
        let folder = inode.folder().map_err(Ended::Failed)?;
        match folder.re_encrypt_attributes(&self.order_of(table)?) {
            Ok(any) => pass.worked |= any,
            Err(error) => note(job, pass, self.report(inode, error))?,
        }
        let (mut folders, mut failed) = (Vec::new(), None);
        let listed = folder.each_name(&mut |on_disk, kind| {
            if kind == FileKind::Dir {
                folders.push(on_disk.to_owned());
                return true;
            }
            let done = self.known_entry(inode, on_disk).map(|(item, name)| {
                job.items_done.fetch_add(1, Ordering::Relaxed);
                self.re_encrypt_item(table, job, pass, &item, &name)
            });
            let done = match done {
                Ok(done) => done,
                Err(error) => note(job, pass, error),
            };
            failed = done.err();
            failed.is_none()
        });
        if let Some(failed) = failed {
            return Err(failed);
        }
        listed.map_err(|error| Ended::Failed(error.into()))?;
        Ok(folders)
    }

    /// The inode of an entry of a folder. One that is known already stays where it was found last: by that name its
    /// handles are judged.
    fn known_entry(&self, parent: &Arc<Inode>, on_disk: &std::ffi::OsStr) -> FsResult<(Known<'_>, StoredName)> {
        let folder = parent.folder()?;
        let name = folder.open_name(on_disk)?;
        let stored = folder.seal_name(&name)?;
        let stat = folder.dir().stat(on_disk)?;
        let inode = match self.inodes.known(Backing::of(&stat)) {
            Some(inode) if !matches!(inode.body, Body::Folder(_)) => inode,
            found => {
                if let Some(folder) = found {
                    self.inodes.forget(folder.ino, 1);
                }
                self.inode_named(parent, &name, &stored)?.0
            }
        };
        Ok((Known { fs: self, inode, folder: Arc::clone(folder) }, stored))
    }

    fn re_encrypt_item(
        &self,
        table: &Arc<Table>,
        job: &Job,
        pass: &mut Pass,
        known: &Known<'_>,
        name: &StoredName,
    ) -> Result<(), Ended> {
        let inode = &known.inode;
        let _held = Held::of(self, inode);
        let began = Instant::now();
        let mut sealed = 0;
        let item = match self.verified(table, known, name)? {
            Ok(item) => item,
            Err(error) => return note(job, pass, error),
        };
        let accessed = item.backing().stat().map_err(|error| Ended::Failed(error.into()))?.atime;
        loop {
            let step = item.re_encrypt(&self.order_of(table)?);
            let bytes = match step {
                Ok(Step::Nothing) => break,
                Ok(Step::Done(bytes) | Step::More(bytes)) => bytes,
                Err(error) => return note(job, pass, self.report(inode, error)),
            };
            sealed += bytes;
            job.bytes_done.fetch_add(bytes, Ordering::Relaxed);
            self.rest(pass, began, bytes).map_err(|error| Ended::Failed(error.into()))?;
        }
        match item.re_encrypt_attributes(&self.order_of(table)?) {
            Ok(any) => pass.worked |= any,
            Err(error) => note(job, pass, self.report(inode, error))?,
        }
        if sealed > 0 {
            // Nobody has read it. That the time cannot be set is no reason to stop.
            let _ = item.set_times(SetTime::At(accessed.0, accessed.1), SetTime::Keep);
        }
        job.bytes_done.fetch_add(item.size().unwrap_or(0).saturating_sub(sealed), Ordering::Relaxed);
        pass.debt += began.elapsed();
        self.pay(pass, 0);
        Ok(())
    }

    /// An item, verified, that is not kept open for later. What does not verify may be half made yet: before anybody is told,
    /// it is looked at once more while nothing is being made. What a crash has left half made is for its next opener to
    /// remove.
    fn verified(&self, table: &Arc<Table>, known: &Known<'_>, name: &StoredName) -> Result<FsResult<Arc<Item>>, Ended> {
        let key = self.order_of(table)?;
        let (inode, folder) = (&known.inode, &known.folder);
        let open = |tell: &dyn Fn(TableError) -> FsError| {
            let item = self.items.shared(inode.backing, || {
                self.count_open()?;
                Item::open(folder, name).map_err(tell)
            })?;
            let recovered = item.verify(&key).map_err(tell)?;
            item.check_name(name).map_err(tell)?;
            self.take_recovered(inode, Ok(recovered))?;
            Ok(item)
        };
        match open(&FsError::from) {
            Err(FsError::Tampered | FsError::Corrupt | FsError::NoKey) => {
                let _whole = folder.table().without_creations();
                Ok(open(&|error| self.report(inode, error)))
            }
            opened => Ok(opened),
        }
    }

    /// After a step: others have their turn, and what is pending is put in place from time to time.
    fn rest(&self, pass: &mut Pass, began: Instant, bytes: u64) -> std::io::Result<()> {
        pass.worked = true;
        pass.pending_bytes += bytes;
        pass.pending_items += 1;
        if pass.pending_bytes >= CHECKPOINT_BYTES || pass.pending_items >= CHECKPOINT_ITEMS {
            (pass.pending_bytes, pass.pending_items) = (0, 0);
            self.journal.checkpoint()?;
        }
        pass.debt += began.elapsed();
        self.pay(pass, bytes);
        Ok(())
    }

    fn pay(&self, pass: &mut Pass, bytes: u64) {
        pass.debt = pass.debt.max(Duration::from_micros(bytes.saturating_mul(1_000_000) / BYTES_PER_SECOND));
        if pass.debt >= REST_LEAST && !self.ended.load(Ordering::Acquire) {
            thread::sleep(pass.debt.min(REST_MOST));
            pass.debt = Duration::ZERO;
        }
    }

    /// How many items a table has, and how many bytes they hold, as their files' lengths tell.
    fn count_items(&self, table: &Arc<Table>) -> FsResult<(u64, u64)> {
        let (mut items, mut bytes) = (0, 0);
        self.each_item(table, &mut |folder, on_disk| {
            items += 1;
            bytes += folder.dir().stat(on_disk).ok().and_then(|stat| folder.table().size_of(&stat)).unwrap_or(0);
        })?;
        Ok((items, bytes))
    }

    /// Calls `each` for every name of an item in a table.
    fn each_item(&self, table: &Arc<Table>, each: &mut dyn FnMut(&Folder, &std::ffi::OsStr)) -> FsResult<()> {
        let mut path = vec![(self.table_folder(table)?, None::<Vec<OsString>>)];
        while let Some((folder, folders)) = path.last_mut() {
            let folder = Arc::clone(folder);
            if folders.is_none() {
                let mut inside = Vec::new();
                folder.each_name(&mut |on_disk, kind| {
                    if kind == FileKind::Dir {
                        inside.push(on_disk.to_owned());
                    } else {
                        each(&folder, on_disk);
                    }
                    true
                })?;
                *folders = Some(inside);
            }
            let Some(on_disk) = folders.as_mut().and_then(Vec::pop) else {
                path.pop();
                continue;
            };
            // One that has gone, or does not verify, has nothing to be counted.
            let inside = folder.open_name(&on_disk).and_then(|name| folder.open_folder(&folder.seal_name(&name)?));
            if let Ok(inside) = inside {
                path.push((inside, None));
            }
        }
        Ok(())
    }

    /// How many names of items there are under each version of the table's key, as the headers say that nobody has
    /// authenticated: for a report, and nothing else.
    pub(super) fn items_by_key_version(&self, table: &Arc<Table>) -> FsResult<std::collections::BTreeMap<u32, u64>> {
        let mut counts = std::collections::BTreeMap::new();
        self.each_item(table, &mut |folder, on_disk| {
            if let Ok(version) = Item::peek_key_version(folder, on_disk) {
                *counts.entry(version).or_default() += 1;
            }
        })?;
        Ok(counts)
    }

    /// What is told of a table's re-encryption.
    pub(super) fn describe_re_encryption(&self, table: &Table) -> Value {
        let job = self.re_encryptions.jobs().get(&table.id()).cloned();
        let order = table.re_encryption();
        let versions: Vec<u32> = table.record().table_keys.iter().map(|sealed| sealed.version).collect();
        let phase = job.as_ref().map(|job| job.phase().clone()).unwrap_or_default();
        let (state, why) = match (&order, phase) {
            (None, Phase::Done) => ("done", None),
            (None, _) => ("none", None),
            (Some(order), _) if order.stopped => ("stopped", None),
            (Some(_), Phase::Counting) => ("counting", None),
            (Some(_), Phase::Running) => ("running", None),
            (Some(_), Phase::Blocked) => {
                ("blocked", Some("items do not verify; remove or restore them, then order it again".to_owned()))
            }
            (Some(_), Phase::NoKey(why)) => ("waiting", Some(format!("the key cannot be used: {why}"))),
            (Some(_), Phase::Failed(_, why)) => ("waiting", Some(why)),
            (Some(_), Phase::Waiting | Phase::Done) => ("waiting", None),
        };
        let count = |of: fn(&Job) -> &AtomicU64| job.as_deref().map(|job| of(job).load(Ordering::Relaxed));
        json!({
            "Name": table.name(),
            "State": state,
            "Reason": why,
            "TableKeyVersions": versions,
            "OrderedBy": order.map(|order| order.by),
            "OrderedAt": order.map(|order| order.started),
            "Items": count(|job| &job.items),
            "ItemsDone": count(|job| &job.items_done),
            "Bytes": count(|job| &job.bytes),
            "BytesDone": count(|job| &job.bytes_done),
            "Damaged": count(|job| &job.damaged),
        })
    }
}

/// An item that could not be sealed anew: one that has gone is nobody's loss, one that is damaged is counted; anything
/// else ends the pass.
#[expect(clippy::wildcard_enum_match_arm, reason = "what is not about the item is a failure")]
fn note(job: &Job, pass: &mut Pass, error: FsError) -> Result<(), Ended> {
    match error {
        FsError::NotFound | FsError::Stale => Ok(()),
        FsError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        FsError::Tampered | FsError::Corrupt | FsError::NoKey => {
            pass.damaged += 1;
            job.damaged.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        error => Err(Ended::Failed(error)),
    }
}

/// An inode whose lookup is taken back.
struct Known<'a> {
    fs: &'a FileSystem,
    inode: Arc<Inode>,
    /// Where it was met.
    folder: Arc<Folder>,
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        if let Some(inode) = self.fs.inodes.forget(self.inode.ino, 1) {
            drop(inode.take_idle_item());
        }
    }
}

/// Keeps an item from being dropped as unlinked, and does not count as a use of it.
struct Held<'a> {
    fs: &'a FileSystem,
    inode: &'a Arc<Inode>,
}

impl<'a> Held<'a> {
    fn of(fs: &'a FileSystem, inode: &'a Arc<Inode>) -> Self {
        inode.open_handles.fetch_add(1, Ordering::SeqCst);
        Self { fs, inode }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.inode.open_handles.fetch_sub(1, Ordering::SeqCst) == 1 && self.inode.is_unlinked() {
            self.fs.drop_unlinked(self.inode);
        }
    }
}

impl ReEncryptions {
    fn jobs(&self) -> MutexGuard<'_, HashMap<TableId, Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work_on(weak: &Weak<FileSystem>) {
    loop {
        {
            let Some(fs) = weak.upgrade().filter(|fs| !fs.ended.load(Ordering::Acquire)) else { return };
            fs.re_encrypt_tables();
        }
        thread::park_timeout(PERIOD);
    }
}
