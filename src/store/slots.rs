//! The unlock slots of an open store: what the catalog knows of them, and how they change.
//!
//! `root` and the catalog cannot be replaced in one step. So the catalog first says what `root` is about to hold, then
//! `root` is replaced, then the catalog says that it is so; after a crash in between either is right, and the next
//! opening settles it.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use super::catalog::{ListedSlot, ListedSlots};
use super::commit::Draft;
use super::error::StoreError;
use super::lifecycle::{Found, Store, now, read_root};
use super::root::{Credential, NewSlot, ROOT_FILE, RootFile, SlotId, SlotKind};
use super::storage::write_replace;
use crate::crypto::Argon2Params;

/// Whether a slot can still be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    Intact,
    /// `root` does not hold it as it was written.
    Damaged,
    /// `root` holds it, but the store does not list it: it was put back, or forged.
    Unknown,
}

/// An unlock slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotInfo {
    pub id: SlotId,
    pub kind: SlotKind,
    pub label: String,
    /// Seconds since 1970.
    pub created: i64,
    /// Of a passphrase slot that is intact.
    pub params: Option<Argon2Params>,
    pub state: SlotState,
}

/// What the catalog has to say to `root`.
pub(super) struct Judged {
    pub(super) found: Vec<Found>,
    /// What the catalog should say from now on.
    pub(super) settle: Option<ListedSlots>,
}

/// Compares `root` with what the catalog lists. `opened` is the slot that gave the root key.
///
/// # Errors
/// `Tampered` when that slot is not listed: somebody put it back who could write the store.
pub(super) fn judge(
    file: &RootFile,
    opened: &ListedSlot,
    listed: &ListedSlots,
    accept: bool,
) -> Result<Judged, StoreError> {
    let digests = |slots: &[ListedSlot]| slots.iter().map(|slot| slot.digest).collect::<BTreeSet<_>>();
    let there: BTreeSet<_> = file.slots.iter().map(super::root::Slot::digest).collect();
    let now = digests(&listed.now);
    let next = listed.next.as_deref().map(digests);
    let mut found = Vec::new();
    let known = |digest: &[u8; 32]| now.contains(digest) || next.as_ref().is_some_and(|next| next.contains(digest));
    if !known(&opened.digest) {
        if !accept {
            return Err(StoreError::Tampered {
                file: ROOT_FILE.to_owned(),
                what: "the unlock slot that this credential opens was removed from the store and put back \
                       ('kmsfs anchor accept' takes it)",
            });
        }
        found.push(Found::SlotAccepted);
        let all = listed.now.iter().chain(listed.next.iter().flatten());
        let mut kept: Vec<ListedSlot> = Vec::new();
        for slot in all.filter(|slot| there.contains(&slot.digest)) {
            if !kept.contains(slot) {
                kept.push(slot.clone());
            }
        }
        kept.push(opened.clone());
        return Ok(Judged { found, settle: Some(ListedSlots { now: kept, next: None }) });
    }
    let settle = match (&next, &listed.next) {
        (Some(_), _) if there == now => Some(ListedSlots { now: listed.now.clone(), next: None }),
        (Some(next), Some(slots)) if there == *next => Some(ListedSlots { now: slots.clone(), next: None }),
        (Some(_) | None, _) => None,
    };
    let unknown = there.iter().filter(|digest| !known(digest)).count();
    let missing = now.difference(&there).count();
    if settle.is_none() && (unknown > 0 || missing > 0) || !file.intact {
        found.push(Found::Slots { unknown, missing: if settle.is_none() { missing } else { 0 } });
    }
    Ok(Judged { found, settle })
}

impl Store {
    /// The store's slots, those that `root` holds and should not included.
    pub fn slots(&self) -> Result<Vec<SlotInfo>, StoreError> {
        let file = read_root(self.dir.as_ref())?;
        let listed = self.listed_slots();
        let mut slots = Vec::with_capacity(listed.len());
        for slot in &listed {
            let there = file.slots.iter().find(|there| there.digest() == slot.digest);
            slots.push(SlotInfo {
                id: slot.id.parse()?,
                kind: SlotKind::of_code(slot.kind).ok_or(StoreError::NoSuchSlot)?,
                label: slot.label.clone(),
                created: slot.created,
                params: there.and_then(super::root::Slot::params),
                state: if there.is_some() { SlotState::Intact } else { SlotState::Damaged },
            });
        }
        let unlisted = |slot: &&super::root::Slot| !listed.iter().any(|listed| listed.digest == slot.digest());
        for slot in file.slots.iter().filter(unlisted) {
            // One that is damaged is told of above already, under the id that it had.
            if let (Some(id), Some(kind)) = (slot.id(), slot.kind()) {
                let (label, params) = (String::new(), slot.params());
                slots.push(SlotInfo { id, kind, label, created: 0, params, state: SlotState::Unknown });
            }
        }
        Ok(slots)
    }

    /// Adds a slot for `new`. `existing` is a credential of the store's: the root key is not kept in memory.
    ///
    /// # Errors
    /// `TooManySlots`, `WrongCredential`, `BadCredential`, `Parameters`, and those of a commit.
    pub fn add_slot(
        &self,
        existing: &Credential,
        new: &Credential,
        params: Argon2Params,
        label: &str,
    ) -> Result<SlotId, StoreError> {
        let _one_at_a_time = self.slots.lock().map_err(|_| StoreError::Poisoned)?;
        let (mut file, mut listed) = self.usable_slots()?;
        let root = file.unlock(existing)?.root;
        let slot = file.add(&root, new, NewSlot { params, label, created: now() })?;
        let id = slot.id.parse()?;
        listed.push(slot);
        self.replace_slots(&file, listed)?;
        Ok(id)
    }

    /// Removes a slot. Slots that are damaged or unknown go with it.
    ///
    /// # Errors
    /// `LastSlot`, `NoSuchSlot`, and those of a commit.
    pub fn remove_slot(&self, id: SlotId) -> Result<(), StoreError> {
        let _one_at_a_time = self.slots.lock().map_err(|_| StoreError::Poisoned)?;
        let (mut file, mut listed) = self.usable_slots()?;
        let named = id.to_string();
        let known = self.listed_slots().iter().any(|slot| slot.id == named);
        match file.remove(id) {
            // A damaged slot is taken off the list.
            Err(StoreError::NoSuchSlot) if known && !listed.is_empty() => {}
            other => other?,
        }
        listed.retain(|slot| slot.id != named);
        self.replace_slots(&file, listed)
    }

    /// All that the catalog lists: while `root` is being replaced, of both lists.
    fn listed_slots(&self) -> Vec<ListedSlot> {
        let ListedSlots { mut now, next } = self.live().state.slots.clone();
        for slot in next.into_iter().flatten() {
            if !now.contains(&slot) {
                now.push(slot);
            }
        }
        now
    }

    /// Ends a replacement of `root` that has failed half way in this process.
    fn settle_slots(&self) -> Result<(), StoreError> {
        if self.live().state.slots.next.is_none() {
            return Ok(());
        }
        // From here on `root` is durably what it looks like.
        self.dir.sync().map_err(StoreError::io("sync", "the store"))?;
        let file = read_root(self.dir.as_ref())?;
        let mut now = self.listed_slots();
        now.retain(|slot| file.slots.iter().any(|there| there.digest() == slot.digest));
        self.transact(&Draft { slots: Some(ListedSlots { now, next: None }), ..Draft::default() })?;
        Ok(())
    }

    /// The slots that `root` holds as the catalog lists them, and nothing else.
    fn usable_slots(&self) -> Result<(RootFile, Vec<ListedSlot>), StoreError> {
        self.settle_slots()?;
        let mut file = read_root(self.dir.as_ref())?;
        if file.store != self.id {
            return Err(StoreError::Tampered { file: ROOT_FILE.to_owned(), what: "it is that of another store" });
        }
        let mut listed = self.listed_slots();
        listed.retain(|slot| file.slots.iter().any(|there| there.digest() == slot.digest));
        file.slots.retain(|there| listed.iter().any(|slot| slot.digest == there.digest()));
        Ok((file, listed))
    }

    fn replace_slots(&self, file: &RootFile, next: Vec<ListedSlot>) -> Result<(), StoreError> {
        let now = self.live().state.slots.now.clone();
        let announced = ListedSlots { now, next: Some(next.clone()) };
        self.transact(&Draft { slots: Some(announced), ..Draft::default() })?;
        // On an error either may be in force; the catalog allows both until the next change or opening settles it.
        write_replace(self.dir.as_ref(), OsStr::new(ROOT_FILE), &file.encode(), 0o600)
            .map_err(StoreError::io("write", ROOT_FILE))?;
        self.transact(&Draft { slots: Some(ListedSlots { now: next, next: None }), ..Draft::default() })?;
        Ok(())
    }
}
