//! Revocation: what a changed policy takes from handles that are open (docs/semantics.md, 'Revocation').
//!
//! The key's generation is bumped already when this runs, so that nothing is decided by the old policy any more. What
//! is left is the kernel's page cache: the pages of items that a revoked handle has open must go, and where a
//! permitted handle could fill the same cache again, the inode is retired.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::FileSystem;
use super::api::{Outcome, Revocation};
use super::control::Scope;
use super::inodes::{Inode, Place};
use super::open_file::Handle;
use crate::kms::OnRevoke;

/// What has to be carried out before a save is answered; nothing, where it concerns no open handle.
#[derive(Debug, Default)]
pub(super) struct Pending(Option<Revocation>);

impl Pending {
    pub(super) fn into_outcome(self) -> Outcome<()> {
        Outcome { value: (), revocation: self.0 }
    }
}

impl FileSystem {
    /// After a change of a key's or the store's policy.
    pub(super) fn revocation_after(&self, scope: Scope) -> Pending {
        self.revocation_where(|handle| Self::concerns(scope, handle) && self.lost_something(handle))
    }

    /// What a date condition has ended, of handles that are open.
    pub(super) fn revoke_expired(&self) {
        let pending = self.revocation_where(|handle| {
            let timed = handle.inode.table().is_ok_and(|table| self.kms.depends_on_time(table));
            timed && self.has_expired(handle)
        });
        if let (Some(revocation), Some(revoke)) = (pending.0, self.revoker.get()) {
            revoke(revocation);
        }
    }

    /// The kernel is to look names up again; nobody waits for that.
    pub(super) fn forget_names_later(&self, places: &[Place]) {
        let name = |place: &Place| (place.parent.ino, OsString::from_vec(place.name.clone()));
        self.revoke_later(Vec::new(), places.iter().map(name).collect());
    }

    /// The kernel is to ask for an inode's attributes again.
    pub(super) fn forget_attributes_later(&self, inode: &Inode) {
        self.revoke_later(vec![inode.ino], Vec::new());
    }

    fn revoke_later(&self, inodes: Vec<u64>, names: Vec<(u64, OsString)>) {
        let Some(revoke) = self.revoker.get() else { return };
        let id = self.revocations.fetch_add(1, Ordering::Relaxed);
        self.draining.fetch_add(1, Ordering::AcqRel);
        revoke(Revocation { inodes, names, id });
    }

    fn revocation_where(&self, is_lost: impl Fn(&Handle) -> bool) -> Pending {
        let mut losers: HashMap<u64, Arc<Inode>> = HashMap::new();
        // From a retired inode nothing is to be had any more, once its pages are gone: those that another revocation is
        // about to drop are waited for here, too.
        let draining = self.is_draining();
        for handle in self.handles.all() {
            if (draining || !handle.inode.is_retired()) && is_lost(&handle) {
                losers.insert(handle.inode.ino, Arc::clone(&handle.inode));
            }
        }
        if losers.is_empty() {
            return Pending::default();
        }
        let mut revocation =
            Revocation { id: self.revocations.fetch_add(1, Ordering::Relaxed), ..Revocation::default() };
        for inode in losers.into_values() {
            revocation.inodes.push(inode.ino);
            let expires = inode.table().is_ok_and(|table| table.settings().on_revoke == OnRevoke::Expire);
            if expires {
                self.inodes.retire(&inode);
                if let Some(Place { parent, name, .. }) = inode.place() {
                    revocation.names.push((parent.ino, OsString::from_vec(name)));
                }
            }
        }
        // Until `revoked`, what drains from the page cache is still written.
        self.draining.fetch_add(1, Ordering::AcqRel);
        Pending(Some(revocation))
    }

    fn concerns(scope: Scope, handle: &Handle) -> bool {
        match (scope, handle.inode.table()) {
            (Scope::Store, _) => true,
            (Scope::Key(id), Ok(table)) => table.key().id() == id,
            (Scope::Key(_), Err(_)) => false,
        }
    }

    fn lost_something(&self, handle: &Handle) -> bool {
        let lost_read = handle.reads() && self.check_read(handle).is_err();
        let lost_write = handle.writes() && self.check_write(handle).is_err();
        lost_read || lost_write
    }

    /// Decides anew although the key has not changed.
    fn has_expired(&self, handle: &Handle) -> bool {
        handle.forget_decisions();
        self.lost_something(handle)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire) > 0
    }

    pub(super) fn revocation_done(&self) {
        self.draining.fetch_sub(1, Ordering::AcqRel);
    }
}
