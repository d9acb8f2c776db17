//! What one user may have of something that costs the daemon memory: without it, one could take it from all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts by uid.
#[derive(Debug)]
pub(super) struct Quota {
    most: usize,
    used: Mutex<HashMap<u32, usize>>,
}

/// A part of a user's quota, for as long as it is kept.
#[derive(Debug)]
pub(super) struct Share {
    quota: Arc<Quota>,
    uid: u32,
    amount: usize,
}

impl Quota {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, used: Mutex::default() })
    }

    /// None when the user has as much as he may have already. What he asks for is not limited beyond that, so that
    /// something that is larger than all of the quota can be had, once.
    pub(super) fn take(self: &Arc<Self>, uid: u32, amount: usize) -> Option<Share> {
        let mut used = self.lock();
        let now = used.get(&uid).copied().unwrap_or(0);
        if now >= self.most {
            return None;
        }
        used.insert(uid, now.saturating_add(amount));
        Some(Share { quota: Arc::clone(self), uid, amount })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.quota.lock();
        if let Some(now) = used.get_mut(&self.uid) {
            *now = now.saturating_sub(self.amount);
            if *now == 0 {
                used.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_s_share_is_none_of_another_s() {
        let quota = Quota::new(2);
        let shares = [quota.take(1, 1).unwrap(), quota.take(1, 1).unwrap()];
        assert!(quota.take(1, 1).is_none());
        let large = quota.take(2, 100).unwrap();
        assert!(quota.take(2, 1).is_none());
        drop((shares, large));
        assert!(quota.take(1, 1).is_some() && quota.take(2, 1).is_some());
        assert!(quota.lock().is_empty());
    }
}
