//! The store's time, as its administrators see and mend it.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::clock::TEST_VARIABLE;
use super::{Kms, KmsError, Subject};
use crate::types::Action;

impl Kms {
    /// Whether the store was made for tests, which may move its clock.
    pub fn is_for_tests(&self) -> bool {
        self.read().for_tests
    }

    /// The file that moves the clock of a store made for tests, if there is one.
    ///
    /// # Errors
    /// `Invalid` where the variable is set for a store that was made for use.
    pub(super) fn test_clock(for_tests: bool) -> Result<Option<PathBuf>, KmsError> {
        match std::env::var_os(TEST_VARIABLE).filter(|file| !file.is_empty()) {
            None => Ok(None),
            Some(file) if for_tests => Ok(Some(file.into())),
            Some(_) => Err(KmsError::Invalid(format!(
                "{TEST_VARIABLE} is set, and this store was not made for tests (kmsfs init --for-tests): unset it"
            ))),
        }
    }

    /// Takes the host's clock for right, further back included: the remedy for a clock that was once ahead. What has
    /// expired by that time only is good again.
    pub fn reset_clock(&self, who: &Subject<'_>) -> Result<String, KmsError> {
        let _changing = self.changing();
        self.check_store(who, Action::ResetClock, "")?;
        let (before, mark) = (self.now(), self.clock.reset_mark());
        let back = before.saturating_sub(mark.wall.div_euclid(1000)).max(0);
        let head = self.log_store_with(who, Action::ResetClock, &[("secondsBack", back.to_string())])?;
        self.store.note_clock(mark.clone());
        self.store.commit(&[], head).inspect_err(|_| self.store.note_clock(self.clock.observe()))?;
        self.clock.install(mark);
        // What is open by the old time's leave is looked at again, and so is what was closed.
        let keys: Vec<_> = self.read().keys.values().cloned().collect();
        for key in keys {
            key.forget_decisions();
        }
        Ok(format!("the clock counts as the host has it, {back} seconds back"))
    }

    /// Seconds that were observed, and those that the clock has claimed beyond them.
    pub(super) fn observed(&self) -> (i64, i64) {
        self.clock.observed()
    }

    /// Has the store keep what is known of time. The caller sees to it that this is not done too often.
    pub fn keep_time(&self) -> Result<(), KmsError> {
        let Some(trail) = &self.trail else { return Ok(()) };
        let head = trail.sync()?;
        self.store.note_clock(self.clock.observe());
        self.store.commit(&[], head)?;
        Ok(())
    }

    /// Whether anything here may end, or begin, by the time alone.
    pub fn waits_for_time(&self) -> bool {
        let inner = self.read();
        inner.policy.as_ref().is_some_and(|policy| policy.policy.depends_on_time())
            || inner.keys.values().any(|key| {
                key.grants().expire()
                    || key.now().is_some_and(|now| {
                        now.record.deletion.is_some()
                            || now.record.rotation.is_some()
                            || now.policy.policy.depends_on_time()
                    })
            })
    }

    /// What everyone may know of the store.
    pub fn store_description(&self) -> Value {
        let now = self.now();
        json!({
            "StoreId": self.store_id(),
            "ForTests": self.is_for_tests(),
            "ReadOnly": self.trail.is_none(),
            "Time": now,
            "TimeAheadOfClock": now.saturating_sub(self.clock.wall()).max(0),
        })
    }
}
