//! What is known of a backing file without asking the host again: attributes that it lacks, and what it hands down to
//! what is made in it.
//!
//! The kernel asks for some attributes again and again that nearly no file has. The daemon is the only writer of the
//! store, so that what one look has not found is not there until a call through the daemon puts it there. INVARIANT: a
//! change is told here after it was made on the host and before it is answered; a look that was begun before a change
//! was told is not remembered after it. What is known is of one inode, and goes with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// Attributes of which it is worth remembering that they are not there: those that the kernel and `ls -l` ask for.
const ASKED_FOR: [&[u8]; 4] =
    [super::xattrs::CAPABILITY, super::xattrs::ACCESS_ACL, super::xattrs::DEFAULT_ACL, super::xattrs::SELINUX];
/// Above the bits of [`ASKED_FOR`]: how many changes there were.
const CHANGE: u64 = 1 << 8;

/// What a folder hands down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heritage {
    /// Of a set-group-id folder: its group.
    pub(super) gid: Option<u32>,
    /// What the default ACL lets through, of a folder that has one.
    pub(super) limit: Option<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    /// The number of changes, and a bit for each attribute that is not there.
    state: AtomicU64,
    /// With the number of changes at the time.
    heritage: RwLock<Option<(u64, Heritage)>>,
}

/// The state of knowledge at the beginning of a look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look(u64);

impl Known {
    /// Whether the file is known not to have an attribute.
    pub(super) fn lacks(&self, name: &[u8]) -> bool {
        bit(name).is_some_and(|bit| self.state.load(Ordering::Acquire) & bit != 0)
    }

    /// To be called before the host is asked.
    pub(super) fn look(&self) -> Look {
        Look(self.state.load(Ordering::Acquire) / CHANGE)
    }

    /// The host has said that there is no such attribute.
    pub(super) fn found_none(&self, look: Look, name: &[u8]) {
        let Some(bit) = bit(name) else { return };
        // If it fails, there was a change: nothing is known then.
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            (state / CHANGE == look.0).then_some(state | bit)
        });
    }

    pub(super) fn heritage(&self) -> Option<Heritage> {
        let (changes, heritage) = (*self.heritage.read().unwrap_or_else(PoisonError::into_inner))?;
        (changes == self.look().0).then_some(heritage)
    }

    pub(super) fn found_heritage(&self, look: Look, heritage: Heritage) {
        *self.heritage.write().unwrap_or_else(PoisonError::into_inner) = Some((look.0, heritage));
    }

    /// Attributes have been changed, or may have been.
    pub(super) fn attributes_changed(&self) {
        let next = |state: u64| Some((state / CHANGE).wrapping_add(1).wrapping_mul(CHANGE));
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }

    /// Owner or mode have been changed, or may have been: that puts no attribute there, but is handed down.
    pub(super) fn owner_or_mode_changed(&self) {
        self.state.fetch_add(CHANGE, Ordering::AcqRel);
    }
}

fn bit(name: &[u8]) -> Option<u64> {
    ASKED_FOR.iter().position(|asked| *asked == name).map(|index| 1 << index)
}

#[cfg(test)]
mod tests {
    use super::super::xattrs::{ACCESS_ACL, CAPABILITY};
    use super::*;

    const PLAIN: Heritage = Heritage { gid: None, limit: None };

    #[test]
    fn what_was_not_found_is_remembered_until_a_change() {
        let known = Known::default();
        assert!(!known.lacks(CAPABILITY));
        known.found_none(known.look(), CAPABILITY);
        known.found_heritage(known.look(), PLAIN);
        assert!(known.lacks(CAPABILITY) && !known.lacks(ACCESS_ACL));
        known.found_none(known.look(), ACCESS_ACL);
        assert!(known.lacks(CAPABILITY) && known.lacks(ACCESS_ACL));
        assert_eq!(known.heritage(), Some(PLAIN));
        known.owner_or_mode_changed();
        assert!(known.lacks(CAPABILITY) && known.lacks(ACCESS_ACL));
        assert_eq!(known.heritage(), None);
        known.found_heritage(known.look(), PLAIN);
        known.attributes_changed();
        assert!(!known.lacks(CAPABILITY) && !known.lacks(ACCESS_ACL));
        assert_eq!(known.heritage(), None);
    }

    #[test]
    fn a_look_from_before_a_change_is_not_remembered_after_it() {
        let known = Known::default();
        for change in [Known::attributes_changed, Known::owner_or_mode_changed] {
            let look = known.look();
            change(&known);
            known.found_none(look, CAPABILITY);
            known.found_heritage(look, PLAIN);
            assert!(!known.lacks(CAPABILITY));
            assert_eq!(known.heritage(), None);
        }
    }

    #[test]
    fn attributes_that_nobody_asks_for_are_not_remembered() {
        let known = Known::default();
        known.found_none(known.look(), b"security.other");
        assert!(!known.lacks(b"security.other"));
    }
}
