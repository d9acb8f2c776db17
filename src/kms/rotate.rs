//! Rotation: new material for a key, on demand or by the calendar. The old versions stay and open what they have sealed;
//! nothing is sealed anew, as in AWS KMS. New table keys are sealed under the newest version.

use std::sync::Arc;

use super::life::refuse_own;
use super::record::{DAY, Rotation, RotationType};
use super::{Key, Kms, KmsError, Subject};
use crate::types::{Action, KeyState};

/// Days between rotations, as in AWS KMS.
const PERIOD: std::ops::RangeInclusive<u32> = 90..=2560;
pub(super) const PERIOD_DEFAULT: u32 = 365;
/// The most versions that a key may have at a time: each stands in its record, which has an end.
const VERSIONS_MOST: usize = 1000;

impl Rotation {
    /// When the next one is due.
    pub fn next(&self) -> i64 {
        self.last.saturating_add(i64::from(self.days).saturating_mul(DAY))
    }
}

impl Kms {
    /// Rotates a key now; gives the new version. The calendar of automatic rotation stays as it is.
    pub fn rotate_key(&self, who: &Subject<'_>, key: &Arc<Key>) -> Result<u32, KmsError> {
        let _changing = self.changing();
        self.check_key(who, key, Action::RotateKeyOnDemand)?;
        refuse_own(key)?;
        let version = next_version(key)?;
        let material = self.new_material(key.id(), version, Some(RotationType::OnDemand))?;
        let note = format!("version {version}");
        self.change_key(who, key, Action::RotateKeyOnDemand, Some(&note), |record| record.material.push(material))?;
        Ok(version)
    }

    /// Has a key rotated every `days` days, the first time when as many have passed; without a number the period that it
    /// has already, else a year. Gives the period.
    pub fn enable_rotation(&self, who: &Subject<'_>, key: &Arc<Key>, days: Option<u32>) -> Result<u32, KmsError> {
        let _changing = self.changing();
        self.check_key(who, key, Action::EnableKeyRotation)?;
        refuse_own(key)?;
        let before = key.now().ok_or(KmsError::Tampered)?.record.rotation.clone();
        let days = days.or(before.as_ref().map(|rotation| rotation.days)).unwrap_or(PERIOD_DEFAULT);
        if !PERIOD.contains(&days) {
            let (least, most) = (PERIOD.start(), PERIOD.end());
            return Err(KmsError::Invalid(format!("keys are rotated every {least} to {most} days, or not (off)")));
        }
        // The same period again changes no date.
        let rotation = before.filter(|rotation| rotation.days == days);
        let rotation = rotation.unwrap_or(Rotation { days, last: self.now() });
        let note = format!("every {days} days");
        self.change_key(who, key, Action::EnableKeyRotation, Some(&note), |record| record.rotation = Some(rotation))?;
        Ok(days)
    }

    pub fn disable_rotation(&self, who: &Subject<'_>, key: &Arc<Key>) -> Result<(), KmsError> {
        let _changing = self.changing();
        self.check_key(who, key, Action::DisableKeyRotation)?;
        refuse_own(key)?;
        self.change_key(who, key, Action::DisableKeyRotation, None, |record| record.rotation = None)
    }

    /// Carries out a rotation that is due: once, however many were missed. Only an enabled key is rotated; one that was
    /// disabled meanwhile is when it is enabled again.
    pub(super) fn rotate_if_due(&self, key: &Arc<Key>) -> Result<(), KmsError> {
        if !self.rotation_is_due(key) {
            return Ok(());
        }
        let _changing = self.changing();
        if self.is_closing() || !self.rotation_is_due(key) {
            return Ok(());
        }
        let mut record = key.now().ok_or(KmsError::Tampered)?.record.clone();
        let now = self.now();
        let Some(rotation) = &mut record.rotation else { return Ok(()) };
        let note = if rotation.last > now {
            // The clock was ahead when this date was written.
            "the date of the last rotation is set right".to_owned()
        } else {
            let version = next_version(key)?;
            record.material.push(self.new_material(key.id(), version, Some(RotationType::Automatic))?);
            format!("version {version}")
        };
        rotation.last = now;
        let head = self.log_own_management("RotateKey", key.id(), &record.name, &[("note", note)])?;
        self.commit_key(&Self::itself(), "RotateKey", key.id(), record, head).map(|_| ())
    }

    fn rotation_is_due(&self, key: &Key) -> bool {
        key.now().filter(|now| now.state() == KeyState::Enabled).is_some_and(|now| {
            // The time is asked for those alone that have a calendar.
            now.record.rotation.as_ref().is_some_and(|rotation| {
                let (time, room) = (self.now(), now.record.material.len() < VERSIONS_MOST);
                rotation.last > time || (room && rotation.next() <= time)
            })
        })
    }
}

fn next_version(key: &Key) -> Result<u32, KmsError> {
    let now = key.now().ok_or(KmsError::Tampered)?;
    if now.record.material.len() >= VERSIONS_MOST {
        return Err(KmsError::Invalid(format!(
            "the key has {VERSIONS_MOST} versions of material, and no more fit: retire those that nothing needs"
        )));
    }
    let newest = now.record.material.iter().map(|version| version.version).max().ok_or(KmsError::Destroyed)?;
    newest.checked_add(1).ok_or_else(|| KmsError::Invalid("no more versions can be numbered".to_owned()))
}
