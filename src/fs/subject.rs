//! Who asks: the caller of a request as the key service wants him.

use super::api::Caller;
use crate::kms::Subject;
use crate::sys;
use crate::types::{Groups, Principal};

/// A caller, kept with a handle for as long as it is open: a decision is by the opener of a handle, never by the uid
/// of a later request.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    principal: Principal,
    tid: u32,
}

impl Asker {
    /// `by_groups`: a policy in question names groups, so /proc is asked for them. They count only when the identity
    /// there is the request's; reading them costs more than the rest of an open.
    pub(super) fn of(caller: &Caller, by_groups: bool) -> Self {
        let groups = if by_groups { groups_of(caller) } else { Groups::Unknown };
        Self { principal: Principal { uid: caller.uid, gid: caller.gid, groups }, tid: caller.tid }
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        Subject::Caller { principal: &self.principal, tid: self.tid }
    }

    pub(super) fn uid(&self) -> u32 {
        self.principal.uid
    }

    pub(super) fn principal(&self) -> &Principal {
        &self.principal
    }
}

fn groups_of(caller: &Caller) -> Groups {
    match sys::thread_credentials(caller.tid) {
        Ok(found) if caller.tid != 0 && found.fsuid == caller.uid && found.fsgid == caller.gid => {
            Groups::Known(found.groups)
        }
        Ok(_) | Err(_) => Groups::Unknown,
    }
}
