//! Changing a store: records, catalog, anchor, in this order (docs/format.md, section 5.2).
//!
//! Invariant: when a commit returns an error, memory has the old state in force, and so has the disk, durably; or,
//! where the disk could not be brought back, no further commit is taken (`Poisoned`) until the store is opened anew
//! and finds out which of the two the disk holds.

use std::ffi::OsStr;
use std::sync::{MutexGuard, PoisonError};

use super::anchor::{Anchor, AnchorFile};
use super::catalog::{ChangeText, EntryText, Failed, ListedSlots, RecordKind, Sealer, TrailHead, Writer};
use super::error::StoreError;
use super::fields::hex;
use super::lifecycle::{Live, Store};
use super::records::{self, RECORDS_DIR, RecordName};
use super::spare::Spare;
use crate::crypto::sha256;

/// One object of a commit.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub kind: RecordKind,
    pub id: [u8; 16],
    /// The record's new bytes, at most 1 MiB; none: the object is deleted.
    pub content: Option<&'a [u8]>,
}

/// What a commit is to say; what is none stays as it is.
#[derive(Debug, Default)]
pub(super) struct Draft<'a> {
    pub(super) changes: &'a [Change<'a>],
    pub(super) slots: Option<ListedSlots>,
    pub(super) epoch: Option<u64>,
    pub(super) clean: Option<bool>,
    pub(super) trail: Option<TrailHead>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Usable,
    Closed,
    Poisoned,
}

/// What commits write through, one at a time.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) catalog: Writer,
    anchor: AnchorFile,
    /// The highest epoch that this host has seen.
    epoch_floor: u64,
    condition: Condition,
    /// Files of old generations that could not be removed yet.
    stale: Vec<String>,
    spare: Spare,
}

impl Engine {
    pub(super) fn new(catalog: Writer, anchor: AnchorFile, epoch_floor: u64, spare: Spare) -> Self {
        Self { catalog, anchor, epoch_floor, condition: Condition::Usable, stale: Vec::new(), spare }
    }

    fn check_usable(&mut self) -> Result<(), StoreError> {
        match self.condition {
            Condition::Usable => {}
            Condition::Closed => return Err(StoreError::Closed),
            Condition::Poisoned => return Err(StoreError::Poisoned),
        }
        self.catalog.check_unchanged().inspect_err(|error| {
            if matches!(error, StoreError::Tampered { .. }) {
                self.condition = Condition::Poisoned;
            }
        })
    }

    /// Appends the entry and advances the anchor, or undoes both.
    fn write(&mut self, entry: &[u8], anchor: Vec<u8>) -> Result<(), Failed> {
        let before = self.catalog.length();
        self.catalog.append(entry)?;
        let Err(failed) = self.anchor.advance(anchor) else { return Ok(()) };
        // With the new anchor perhaps in force the catalog must stay as new as that.
        let undone = failed.undone && self.catalog.cut(before).is_ok() && self.catalog.resume_at(before).is_ok();
        Err(Failed { undone, ..failed })
    }
}

/// A change with its generation and its sealed bytes.
struct Planned {
    name: RecordName,
    sealed: Option<Vec<u8>>,
    /// The generation that it replaces.
    old: Option<RecordName>,
}

impl Store {
    /// Changes objects, all or none, and notes the trail's head, which must be durable. Gives the new generations, in
    /// the order of the changes; a deletion counts as one.
    ///
    /// # Errors
    /// `Duplicate`, `NoSuchRecord` (a deletion), `TooLarge`, `ReadOnly`, `Closed`, `Poisoned`; `Tampered` when the
    /// catalog was replaced meanwhile; `Io`. On any error the old state is in force.
    pub fn commit(&self, changes: &[Change<'_>], trail: TrailHead) -> Result<Vec<u64>, StoreError> {
        self.transact(&Draft { changes, trail: Some(trail), ..Draft::default() })
    }

    /// Begins this process's mount epoch, before anything is served, and gives its number.
    pub fn begin_epoch(&self, trail: TrailHead) -> Result<u64, StoreError> {
        let floor = self.engine()?.epoch_floor;
        let (current, begun, clean) = {
            let live = self.live();
            (live.state.epoch, live.begun, live.state.clean)
        };
        if begun {
            return Ok(current);
        }
        if !clean {
            // What a killed mount has written may be in the page cache alone, and everything that is found from here
            // on counts as durable.
            self.dir.syncfs().map_err(StoreError::io("sync", "the store"))?;
        }
        let epoch = current.max(floor).saturating_add(1);
        self.transact(&Draft { epoch: Some(epoch), clean: Some(false), trail: Some(trail), ..Draft::default() })?;
        Ok(epoch)
    }

    /// Notes that everything was written and flushed. Nothing is committed after it. Read-only it does nothing.
    pub fn close_clean(&self, trail: TrailHead) -> Result<(), StoreError> {
        if self.is_read_only() {
            return Ok(());
        }
        let clean = self.live().begun.then_some(true);
        self.transact(&Draft { clean, trail: Some(trail), ..Draft::default() })?;
        self.engine()?.condition = Condition::Closed;
        Ok(())
    }

    /// Gives up the space that is kept for changes; whether there was any.
    pub fn give_up_spare(&self) -> bool {
        self.engine().is_ok_and(|mut engine| engine.spare.give_up())
    }

    /// Looks whether the catalog's copies are those that this process has written, as each commit does.
    ///
    /// # Errors
    /// `Tampered` when one was replaced, cut or put back.
    pub fn check_unchanged(&self) -> Result<(), StoreError> {
        self.engine()?.check_usable()
    }

    fn engine(&self) -> Result<MutexGuard<'_, Engine>, StoreError> {
        // A panic during a commit leaves it open what the disk holds.
        self.engine.as_ref().ok_or(StoreError::ReadOnly)?.lock().map_err(|_| StoreError::Poisoned)
    }

    /// With a full disk the space that is kept for it is used.
    pub(super) fn transact(&self, draft: &Draft<'_>) -> Result<Vec<u64>, StoreError> {
        let mut engine = self.engine()?;
        let mut done = self.try_transact(&mut engine, draft);
        if done.as_ref().is_err_and(StoreError::is_lack_of_space) && engine.spare.give_up() {
            log::warn!("the store's disk is full: the space that is kept for changes is used");
            done = self.try_transact(&mut engine, draft);
        } else if done.is_ok() {
            engine.spare.keep();
        }
        done
    }

    fn try_transact(&self, engine: &mut Engine, draft: &Draft<'_>) -> Result<Vec<u64>, StoreError> {
        engine.check_usable()?;
        let planned = self.plan(draft.changes)?;
        let text = self.entry_text(draft, &planned);
        let (sequence, before) = {
            let live = self.live();
            (live.state.sequence.saturating_add(1), live.state.head)
        };
        let sealer = Sealer { key: &self.keys.catalog, store: self.id };
        let (entry, head) = sealer.entry(sequence, before, &text)?;
        let anchor = Anchor {
            store: self.id,
            clean: text.clean,
            sequence,
            head: head.0,
            epoch: engine.epoch_floor.max(text.epoch),
            trail: text.trail,
        };
        let anchor = anchor.encode(&self.keys.anchor);

        // What an earlier try has left under these names is replaced now, and must not be removed later.
        engine.stale.retain(|stale| planned.iter().all(|plan| plan.name.file() != *stale));
        if let Err(error) = self.write_records(&planned) {
            self.remove_records(engine, planned.iter().filter(|plan| plan.sealed.is_some()).map(|plan| plan.name));
            return Err(error);
        }
        if let Err(failed) = engine.write(&entry, anchor) {
            if failed.undone {
                let made = planned.iter().filter(|plan| plan.sealed.is_some()).map(|plan| plan.name);
                self.remove_records(engine, made);
            } else {
                engine.condition = Condition::Poisoned;
            }
            return Err(failed.error);
        }
        {
            let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
            let Live { state, begun } = &mut *live;
            if state.apply(text, sequence, head).is_none() {
                engine.condition = Condition::Poisoned;
                return Err(StoreError::Poisoned);
            }
            *begun |= draft.epoch.is_some();
        }
        self.remove_records(engine, planned.iter().filter_map(|plan| plan.old));
        self.snapshot_if_long(engine, sealer);
        Ok(planned.iter().map(|plan| plan.name.generation).collect())
    }

    /// Gives each change its generation, and seals it.
    fn plan(&self, changes: &[Change<'_>]) -> Result<Vec<Planned>, StoreError> {
        let mut seen = std::collections::BTreeSet::new();
        let live = self.live();
        let plan = |change: &Change<'_>| {
            let (kind, id) = (change.kind, change.id);
            if !seen.insert((kind, id)) {
                return Err(StoreError::Duplicate);
            }
            let object = live.state.objects.get(&(kind, id));
            let alive = object.filter(|object| object.digest.is_some());
            let old = alive.map(|object| RecordName { kind, id, generation: object.generation });
            if change.content.is_none() && old.is_none() {
                return Err(StoreError::NoSuchRecord { kind: kind.code() });
            }
            let generation = object.map_or(0, |object| object.generation).saturating_add(1);
            let name = RecordName { kind, id, generation };
            let seal = |content| records::seal(&self.keys.records, self.id, name, content);
            Ok(Planned { name, sealed: change.content.map(seal).transpose()?, old })
        };
        changes.iter().map(plan).collect()
    }

    fn entry_text(&self, draft: &Draft<'_>, planned: &[Planned]) -> EntryText {
        let live = self.live();
        let changes = planned.iter().map(|plan| ChangeText {
            kind: plan.name.kind.code(),
            id: hex(&plan.name.id),
            generation: plan.name.generation,
            digest: plan.sealed.as_deref().map(sha256),
        });
        EntryText {
            snapshot: false,
            previous: None,
            changes: changes.collect(),
            slots: draft.slots.clone(),
            epoch: draft.epoch.unwrap_or(live.state.epoch),
            clean: draft.clean.unwrap_or(live.state.clean),
            unclean: Vec::new(),
            // Two threads may bring their heads in either order; what was noted once stays noted.
            clock: self
                .clock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
                .filter(|mark| live.state.clock.as_ref() != Some(mark)),
            trail: draft.trail.filter(|head| head.sequence >= live.state.trail.sequence).unwrap_or(live.state.trail),
        }
    }

    /// Tries again to remove the files of old generations that could not be removed, and makes it durable that they are
    /// gone. Gives how many are left.
    pub fn forget_old_records(&self) -> Result<usize, StoreError> {
        let mut engine = self.engine()?;
        self.remove_records(&mut engine, std::iter::empty());
        self.records_dir.sync().map_err(StoreError::io("sync", RECORDS_DIR))?;
        Ok(engine.stale.len())
    }

    fn write_records(&self, planned: &[Planned]) -> Result<(), StoreError> {
        let mut any = false;
        for plan in planned {
            if let Some(bytes) = &plan.sealed {
                records::write(self.records_dir.as_ref(), plan.name, bytes)?;
                any = true;
            }
        }
        if any {
            self.records_dir.sync().map_err(StoreError::io("sync", RECORDS_DIR))?;
        }
        Ok(())
    }

    /// Removes files that nothing refers to any more, and those that could not be removed before.
    fn remove_records(&self, engine: &mut Engine, names: impl Iterator<Item = RecordName>) {
        engine.stale.extend(names.map(RecordName::file));
        engine.stale.retain(|name| match self.records_dir.remove_file(OsStr::new(name)) {
            Ok(()) => false,
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        });
    }

    /// Rewrites a log that has grown long. The commit before it stands whatever comes of it.
    fn snapshot_if_long(&self, engine: &mut Engine, sealer: Sealer<'_>) {
        if !engine.catalog.wants_snapshot() {
            return;
        }
        let fresh = sealer.fresh_log(&self.live().state);
        let (bytes, next) = match fresh {
            Ok(fresh) => fresh,
            Err(error) => {
                log::warn!("the catalog was not rewritten: {error}");
                return engine.catalog.put_off_snapshot();
            }
        };
        match engine.catalog.replace(&bytes) {
            Ok(()) => {
                let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
                (live.state.sequence, live.state.head) = (next.sequence, next.head);
            }
            Err(Failed { error, undone }) => {
                log::warn!("the catalog was not rewritten: {error}");
                if !undone {
                    engine.condition = Condition::Poisoned;
                }
            }
        }
    }
}
