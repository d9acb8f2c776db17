//! Open files and folders: numbers that the kernel holds, and what each stands for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::api::{FsError, FsResult};

/// Shards, so that opens on several cores do not wait for one lock.
const SHARDS: usize = 16;

/// A table of handles. A number is used once and never again, so a late request cannot meet another's handle.
#[derive(Debug)]
pub(super) struct Handles<T> {
    next: AtomicU64,
    shards: [RwLock<HashMap<u64, Arc<T>>>; SHARDS],
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), shards: std::array::from_fn(|_| RwLock::default()) }
    }
}

impl<T> Handles<T> {
    pub(super) fn insert(&self, handle: T) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(fh).write().unwrap_or_else(PoisonError::into_inner).insert(fh, Arc::new(handle));
        fh
    }

    pub(super) fn find(&self, fh: u64) -> FsResult<Arc<T>> {
        self.shard(fh).read().unwrap_or_else(PoisonError::into_inner).get(&fh).cloned().ok_or(FsError::BadHandle)
    }

    pub(super) fn remove(&self, fh: u64) -> Option<Arc<T>> {
        self.shard(fh).write().unwrap_or_else(PoisonError::into_inner).remove(&fh)
    }

    /// Everything that is open now.
    pub(super) fn all(&self) -> Vec<Arc<T>> {
        self.shards
            .iter()
            .flat_map(|shard| {
                shard.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect::<Vec<_>>()
            })
            .collect()
    }

    fn shard(&self, fh: u64) -> &RwLock<HashMap<u64, Arc<T>>> {
        let index = usize::try_from(fh).unwrap_or(0) % SHARDS;
        // INVARIANT: index < SHARDS; the first shard would only be slower.
        self.shards.get(index).unwrap_or(&self.shards[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_number_is_not_found_and_not_used_again() {
        let handles = Handles::default();
        let first = handles.insert("a");
        assert_eq!(*handles.find(first).unwrap(), "a");
        handles.remove(first);
        assert!(matches!(handles.find(first), Err(FsError::BadHandle)));
        assert_ne!(handles.insert("b"), first);
        assert_eq!(handles.all().len(), 1);
    }
}
