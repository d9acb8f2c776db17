//! The life of a key: switched off and on, renamed, its deletion ordered and called off. What each state permits is AWS's
//! table (policy::of_state); the end of a life is in `destroy`, rotation in `rotate`.

use std::sync::Arc;

use super::manage::check_name;
use super::record::{DAY, Deletion};
use super::{BlastRadius, Key, KeyOrigin, Kms, KmsError, Subject};
use crate::types::{Action, KeyState};

/// Days of a deletion's window.
const WINDOW: std::ops::RangeInclusive<u32> = 7..=30;
/// The window of a deletion that says nothing else.
pub(super) const WINDOW_DEFAULT: u32 = 30;

impl Kms {
    /// Lets a key be used again.
    pub fn enable_key(&self, who: &Subject<'_>, key: &Arc<Key>) -> Result<(), KmsError> {
        self.change_state(who, key, Action::EnableKey, KeyState::Enabled)
    }

    /// Lets nobody use a key until it is enabled.
    pub fn disable_key(&self, who: &Subject<'_>, key: &Arc<Key>) -> Result<(), KmsError> {
        self.change_state(who, key, Action::DisableKey, KeyState::Disabled)
    }

    fn change_state(&self, who: &Subject<'_>, key: &Arc<Key>, action: Action, to: KeyState) -> Result<(), KmsError> {
        let _changing = self.changing();
        self.check_key(who, key, action)?;
        refuse_own(key)?;
        self.change_key(who, key, action, None, |record| record.state = to)
    }

    /// What a deletion of the key would make unreadable, for those who may order it.
    pub fn ask_blast_radius(&self, who: &Subject<'_>, key: &Arc<Key>) -> Result<BlastRadius, KmsError> {
        self.check_key_in_any_state(who, key, Action::ScheduleKeyDeletion)?;
        Ok(self.blast_radius(key))
    }

    /// Orders a key's deletion, after `days` of observed time. `name` is the key's name once more, since nothing brings
    /// back what is destroyed: a wrong one is refused with what would be lost.
    pub fn schedule_deletion(
        &self,
        who: &Subject<'_>,
        key: &Arc<Key>,
        days: u32,
        name: &str,
    ) -> Result<BlastRadius, KmsError> {
        self.check_key(who, key, Action::ScheduleKeyDeletion)?;
        refuse_own(key)?;
        if !WINDOW.contains(&days) {
            let (least, most) = (WINDOW.start(), WINDOW.end());
            return Err(KmsError::Invalid(format!("a deletion waits for {least} to {most} days")));
        }
        // Counted before the lock is taken: it may take a while.
        let radius = self.blast_radius(key);
        let _changing = self.changing();
        self.check_key(who, key, Action::ScheduleKeyDeletion)?;
        let now = key.now().ok_or(KmsError::Tampered)?;
        if now.record.name != name {
            return Err(KmsError::Invalid(format!(
                "nothing is deleted yet; it would make unreadable: {radius}. To order it, repeat the key's name: \
                 schedule-deletion {days} {}",
                now.record.name
            )));
        }
        let (observed, skipped) = self.clock.observed();
        let (by_name, reason) = match who {
            Subject::Caller { .. } => (self.user_name(who.uid()).map(|name| name.to_string()), None),
            Subject::Custodian { reason, .. } => {
                (self.user_name(who.uid()).map(|name| name.to_string()), Some(shortened(reason)))
            }
        };
        let deletion =
            Deletion { requested: self.now(), days, by: who.uid(), by_name, reason, observed, skipped, confirmed: 0 };
        let note = format!("{days} days; {radius}");
        self.change_key(who, key, Action::ScheduleKeyDeletion, Some(&note), |record| {
            record.state = KeyState::PendingDeletion;
            record.deletion = Some(deletion);
        })?;
        Ok(radius)
    }

    /// Calls a deletion off. The key is Disabled then, as in AWS KMS.
    pub fn cancel_deletion(&self, who: &Subject<'_>, key: &Arc<Key>) -> Result<(), KmsError> {
        let _changing = self.changing();
        self.check_key(who, key, Action::CancelKeyDeletion)?;
        refuse_own(key)?;
        self.change_key(who, key, Action::CancelKeyDeletion, None, |record| {
            record.state = KeyState::Disabled;
            record.deletion = None;
        })
    }

    /// Counts what passed unobserved since the deletion was ordered, for whoever may order it: time beyond a day during
    /// which the store was not served, or by which the clock has jumped. Gives the seconds.
    pub fn confirm_elapsed(&self, who: &Subject<'_>, key: &Arc<Key>, name: &str) -> Result<i64, KmsError> {
        let _changing = self.changing();
        self.check_key_in_any_state(who, key, Action::ScheduleKeyDeletion)?;
        let now = key.now().ok_or(KmsError::Tampered)?;
        let state = now.state();
        let Some(deletion) = now.record.deletion.as_ref().filter(|_| state == KeyState::PendingDeletion) else {
            return Err(KmsError::InvalidState { action: Action::ScheduleKeyDeletion, state });
        };
        let (times, days) = (self.clock.observed(), |seconds: i64| seconds.div_euclid(DAY));
        let unconfirmed = deletion.unconfirmed(times);
        if now.record.name != name {
            return Err(KmsError::Invalid(format!(
                "{} days have passed unobserved, {} of {} are left; to count them, repeat the key's name: \
                 confirm-elapsed {}",
                days(unconfirmed),
                days(deletion.left(times)),
                deletion.days,
                now.record.name
            )));
        }
        let note = format!("{unconfirmed} seconds that passed unobserved count for the deletion");
        self.change_key(who, key, Action::ScheduleKeyDeletion, Some(&note), |record| {
            if let Some(deletion) = &mut record.deletion {
                deletion.confirmed = deletion.confirmed.saturating_add(unconfirmed);
            }
        })?;
        Ok(unconfirmed)
    }

    /// Gives a key another name, in any state: its id, and so its tables, stay. Who takes a name needs the right to make
    /// a key of it.
    pub fn rename_key(&self, who: &Subject<'_>, key: &Arc<Key>, new: &str) -> Result<(), KmsError> {
        let _changing = self.changing();
        self.check_key_in_any_state(who, key, Action::PutKeyPolicy)?;
        refuse_own(key)?;
        self.check_new_key_name(new)?;
        self.check_store(who, Action::CreateKey, new)?;
        let mut record = key.now().ok_or(KmsError::Tampered)?.record.clone();
        let old = std::mem::replace(&mut record.name, new.to_owned());
        let head = self.log_key_change(who, "RenameKey", key.id(), &old, Some(&format!("to {new}")))?;
        self.commit_key(who, "RenameKey", key.id(), record, head)?;
        let mut inner = self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.key_names.remove(&old);
        inner.key_names.insert(new.to_owned(), key.id());
        Ok(())
    }

    /// A name that a customer key may take.
    pub(super) fn check_new_key_name(&self, name: &str) -> Result<(), KmsError> {
        check_name(name)?;
        if name.starts_with("kmsfs-") {
            return Err(KmsError::BadName("names that begin with kmsfs- are the store's own"));
        }
        if self.key_named(name).is_ok() { Err(KmsError::Exists) } else { Ok(()) }
    }
}

/// The store's own two keys live as long as the store.
pub(super) fn refuse_own(key: &Key) -> Result<(), KmsError> {
    match key.now().ok_or(KmsError::Tampered)?.record.origin {
        KeyOrigin::Customer => Ok(()),
        KeyOrigin::Managed | KeyOrigin::Owned => {
            Err(KmsError::Invalid("this key is the store's own, and lives as long as the store".to_owned()))
        }
    }
}

/// The trail has a reason whole; a record keeps its beginning.
fn shortened(text: &str) -> String {
    text.chars().take(1024).collect()
}
