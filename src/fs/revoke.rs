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
use super::api::{FsError, FsResult, Outcome, Revocation};
use super::control::Scope;
use super::inodes::{Inode, Place};
use super::open_file::Handle;
use crate::kms::{CacheMode, NamesMode, OnRevoke, Settings, Table};
use crate::types::KeyId;

/// What has to be carried out before a save is answered; nothing, where it concerns no open handle.
#[derive(Debug, Default)]
pub(super) struct Pending(Option<Revocation>);

impl Pending {
    pub(super) fn into_outcome(self) -> Outcome<()> {
        Outcome { value: (), revocation: self.0 }
    }
}

/// What a handle has lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lost {
    Nothing,
    /// Its key's service, as everybody has: nobody can fill the cache that it reads from. When the key is enabled again,
    /// it goes on, unless its opener has lost his right by then, which that change finds out.
    Service,
    /// Its opener's right.
    Right,
    /// How it was opened: whoever has it is to open it anew, whatever his table says of revocations.
    Opening,
}

impl Lost {
    fn of<T>(checked: &FsResult<T>) -> Self {
        match checked {
            Ok(_) => Self::Nothing,
            Err(FsError::KeyRevoked | FsError::NoKey) => Self::Service,
            Err(_) => Self::Right,
        }
    }
}

impl FileSystem {
    /// After a change of a key's or the store's policy.
    pub(super) fn revocation_after(&self, scope: Scope) -> Pending {
        self.revocation_where(|handle| if Self::concerns(scope, handle) { self.lost(handle) } else { Lost::Nothing })
    }

    /// After a change of a table's settings. Those that say how an item is opened hold for later opens: where it must be
    /// said anew at once, what is open is retired, and opened again by whoever uses it.
    pub(super) fn revocation_after_settings(&self, table: &Table, old: Settings) -> Pending {
        let new = table.settings();
        let of_table = |handle: &Handle| handle.inode.table().is_ok_and(|of| of.id() == table.id());
        let uncached = new.cache == CacheMode::None && old.cache != CacheMode::None;
        let mut pending = self.revocation_where(|handle| match of_table(handle) {
            false => Lost::Nothing,
            true if uncached => Lost::Opening,
            true => self.lost(handle),
        });
        if new.names == NamesMode::Sealed && old.names != NamesMode::Sealed {
            let revocation = pending.0.get_or_insert_with(|| {
                self.draining.fetch_add(1, Ordering::AcqRel);
                Revocation { id: self.revocations.fetch_add(1, Ordering::Relaxed), ..Revocation::default() }
            });
            let name = |place: Place| (place.parent.ino, OsString::from_vec(place.name));
            revocation.names.extend(self.inodes.places_in(table.id()).into_iter().map(name));
        }
        pending
    }

    /// What a date condition or the end of a grant has ended, of handles that are open.
    pub(super) fn revoke_expired(&self) {
        let now = self.kms.now();
        let pending = self.revocation_where(|handle| {
            let timed = || handle.inode.table().is_ok_and(|table| self.kms.depends_on_time(table));
            if handle.has_ended(now) || timed() { self.lost_by_time(handle) } else { Lost::Nothing }
        });
        self.carry_out(pending);
    }

    /// What the daemon has done to a key by itself: nobody waits for it.
    pub(super) fn revoke_by_itself(&self, key: KeyId) {
        let pending = self.revocation_after(Scope::Key(key));
        self.carry_out(pending);
    }

    fn carry_out(&self, pending: Pending) {
        match (pending.0, self.revoker.get()) {
            (Some(revocation), Some(revoke)) => revoke(revocation),
            // Before the mount is there the kernel has cached nothing.
            (Some(_), None) => self.revocation_done(),
            (None, _) => {}
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

    fn revocation_where(&self, lost: impl Fn(&Handle) -> Lost) -> Pending {
        let mut losers: HashMap<u64, (Arc<Inode>, Lost)> = HashMap::new();
        // From a retired inode nothing is to be had any more, once its pages are gone: those that another revocation is
        // about to drop are waited for here, too.
        let draining = self.is_draining();
        for handle in self.handles.all() {
            if !draining && handle.inode.is_retired() {
                continue;
            }
            let lost = lost(&handle);
            if lost != Lost::Nothing {
                let known = losers.entry(handle.inode.ino).or_insert_with(|| (Arc::clone(&handle.inode), lost));
                known.1 = known.1.max(lost);
            }
        }
        if losers.is_empty() {
            return Pending::default();
        }
        let mut revocation =
            Revocation { id: self.revocations.fetch_add(1, Ordering::Relaxed), ..Revocation::default() };
        for (inode, lost) in losers.into_values() {
            revocation.inodes.push(inode.ino);
            let expires = || inode.table().is_ok_and(|table| table.settings().on_revoke == OnRevoke::Expire);
            if lost == Lost::Opening || lost == Lost::Right && expires() {
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
            (Scope::Table(id), Ok(table)) => table.id() == id,
            (Scope::Key(_) | Scope::Table(_), Err(_)) => false,
        }
    }

    fn lost(&self, handle: &Handle) -> Lost {
        let read = if handle.reads() { Lost::of(&self.check_read(handle)) } else { Lost::Nothing };
        let write = if handle.writes() { Lost::of(&self.check_write(handle)) } else { Lost::Nothing };
        read.max(write)
    }

    /// Decides anew although the key has not changed. What is lost is found once: the next use decides for itself.
    fn lost_by_time(&self, handle: &Handle) -> Lost {
        handle.forget_decisions();
        self.lost(handle)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire) > 0
    }

    pub(super) fn revocation_done(&self) {
        self.draining.fetch_sub(1, Ordering::AcqRel);
    }
}
