//! The folder of a key's grants: `ID.json` is a grant, removing it ends it, and a new file is an order to make some.
//!
//! A file that is written there becomes the grants that it asks for at the write that completes it. It has its own name
//! only for its maker, and for a while, so that whoever has just written it can look at what came of it, or write it
//! again: then it says what was made. In listings there are grants alone.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::super::FileSystem;
use super::super::api::{Caller, Entry, FsError, FsResult, Opened, Outcome};
use super::super::subject::Asker;
use super::contents::pretty;
use super::draft::{Draft, Step};
use super::{ControlHandle, Node, Scope, lock};
use crate::kms::{GrantSpec, KmsError};
use crate::types::{Action, GrantId, KeyId};

/// What the names of grants and of orders end with.
const ENDING: &str = ".json";
const NAME_BYTES_MOST: usize = 255;
/// For how long an order keeps its name.
const NAMED_FOR: Duration = Duration::from_secs(60);
/// Orders that are remembered; beyond this the memory starts anew, so that it stays bounded.
const ORDERS_MOST: usize = 1024;

/// The orders that have a name: whose, and what was made by them.
#[derive(Debug, Default)]
pub(super) struct Orders {
    named: Mutex<HashMap<Name, Done>>,
}

/// The key, whose order, and what he called it.
type Name = (KeyId, u32, Vec<u8>);

#[derive(Debug)]
struct Done {
    since: Instant,
    made: Vec<GrantId>,
}

impl Orders {
    fn note(&self, key: KeyId, uid: u32, name: &[u8], made: Vec<GrantId>) {
        let mut named = lock(&self.named);
        named.retain(|_, done| done.since.elapsed() < NAMED_FOR);
        if named.len() >= ORDERS_MOST {
            named.clear();
        }
        named.insert((key, uid, name.to_vec()), Done { since: Instant::now(), made });
    }

    fn made_by(&self, key: KeyId, uid: u32, name: &[u8]) -> Option<Vec<GrantId>> {
        let named = lock(&self.named);
        let done = named.get(&(key, uid, name.to_vec()))?;
        (done.since.elapsed() < NAMED_FOR).then(|| done.made.clone())
    }

    fn forget(&self, key: KeyId, uid: u32, name: &[u8]) {
        lock(&self.named).remove(&(key, uid, name.to_vec()));
    }
}

/// An order while it is being written.
#[derive(Debug)]
pub(super) struct Order {
    key: KeyId,
    name: Vec<u8>,
    draft: Mutex<Draft>,
    opener: Asker,
}

impl Order {
    pub(super) fn bytes(&self) -> Vec<u8> {
        lock(&self.draft).bytes().to_vec()
    }

    pub(super) fn truncate(&self, size: u64) -> FsResult<()> {
        lock(&self.draft).truncate(size)
    }
}

impl FileSystem {
    /// A name in the folder: an order of the caller's, or a grant that he may know of.
    pub(super) fn grant_named(&self, caller: &Caller, key: KeyId, name: &[u8]) -> FsResult<Node> {
        if self.control.orders.made_by(key, caller.uid, name).is_some() {
            return Ok(Node::GrantOrder(key, name.to_vec()));
        }
        let id = std::str::from_utf8(name).ok().and_then(|name| name.strip_suffix(ENDING)?.parse().ok());
        let id: GrantId = id.ok_or(FsError::NotFound)?;
        self.kms.visible_grant(&Asker::of(caller, true).subject(), &*self.kms.key(key)?, id)?;
        Ok(Node::Grant(key, id))
    }

    pub(super) fn grant_names(&self, caller: &Caller, key: KeyId) -> FsResult<Vec<(Vec<u8>, Node)>> {
        let grants = self.kms.visible_grants(&Asker::of(caller, true).subject(), &*self.kms.key(key)?);
        let name = |id: GrantId| format!("{id}{ENDING}").into_bytes();
        Ok(grants.iter().map(|grant| (name(grant.id()), Node::Grant(key, grant.id()))).collect())
    }

    pub(super) fn grant_text(&self, who: &Asker, key: KeyId, id: GrantId) -> FsResult<String> {
        let grant = self.kms.visible_grant(&who.subject(), &*self.kms.key(key)?, id)?;
        pretty(&grant.description(key, self.kms.now()))
    }

    /// What was made by an order: one grant, or a list of those that are still there.
    pub(super) fn order_text(&self, who: &Asker, key: KeyId, name: &[u8]) -> FsResult<String> {
        let made = self.control.orders.made_by(key, who.uid(), name).ok_or(FsError::NotFound)?;
        if made.is_empty() {
            // It is being written, perhaps behind its end.
            return Ok(String::new());
        }
        let (object, now) = (self.kms.key(key)?, self.kms.now());
        // By whom they were made: he knows them.
        let grants = self.kms.grants_by_id(&object, &made);
        match grants.as_slice() {
            [grant] if made.len() == 1 => pretty(&grant.description(key, now)),
            grants => pretty(&grants.iter().map(|grant| grant.description(key, now)).collect()),
        }
    }

    /// # Errors
    /// `NotPermitted` for names that editors give to files of their own: a grant cannot be edited.
    pub(super) fn begin_grant_order(&self, caller: &Caller, key: KeyId, name: &[u8]) -> FsResult<(Entry, Opened)> {
        if name.len() > NAME_BYTES_MOST {
            return Err(FsError::NameTooLong);
        }
        if name.starts_with(b".") || !name.ends_with(ENDING.as_bytes()) {
            return Err(FsError::NotPermitted);
        }
        let handle = self.grant_order(Asker::of(caller, true), key, name)?;
        self.control.orders.note(key, caller.uid, name, Vec::new());
        let entry = self.control_entry(caller, &Node::GrantOrder(key, name.to_vec()))?;
        let opened = self.control_opened(caller.uid, handle);
        let opened = opened.inspect_err(|_| self.control.forget(entry.attr.ino, 1))?;
        Ok((entry, opened))
    }

    /// A handle by which grants are ordered, for whoever may make some.
    pub(super) fn grant_order(&self, opener: Asker, key: KeyId, name: &[u8]) -> FsResult<ControlHandle> {
        if self.options.read_only {
            return Err(FsError::ReadOnly);
        }
        self.kms.may_grant(&opener.subject(), &*self.kms.key(key)?)?;
        let draft = Mutex::new(Draft::new(Vec::new()));
        Ok(ControlHandle::GrantOrder(Order { key, name: name.to_vec(), draft, opener }))
    }

    pub(super) fn write_order(&self, order: &Order, offset: u64, data: &[u8]) -> FsResult<Outcome<()>> {
        let mut draft = lock(&order.draft);
        let step = draft.write(offset, data)?;
        self.fill_order(order, &mut draft, step)
    }

    pub(super) fn finish_order(&self, order: &Order) -> FsResult<Outcome<()>> {
        let mut draft = lock(&order.draft);
        let step = draft.finish();
        self.fill_order(order, &mut draft, step)
    }

    /// What was made, or why nothing was, is in the key's `ctl.result`.
    fn fill_order(&self, order: &Order, draft: &mut Draft, step: Step) -> FsResult<Outcome<()>> {
        let Step::Save(text) = step else { return Ok(().into()) };
        let scope = Scope::Key(order.key);
        match self.make_grants(order, &text) {
            Ok(made) => {
                let ids: Vec<String> = made.iter().map(ToString::to_string).collect();
                self.control.set_result(scope, order.opener.uid(), &format!("done: grant {}", ids.join(" ")));
                self.control.orders.note(order.key, order.opener.uid(), &order.name, made);
                // Nobody has lost anything.
                Ok(().into())
            }
            Err(error) => {
                draft.refused();
                self.control.set_result(scope, order.opener.uid(), &format!("refused: {error}"));
                self.control.orders.forget(order.key, order.opener.uid(), &order.name);
                Err(FsError::from(error))
            }
        }
    }

    fn make_grants(&self, order: &Order, text: &[u8]) -> Result<Vec<GrantId>, KmsError> {
        let text = std::str::from_utf8(text).map_err(|_| KmsError::Invalid("grant refused: not UTF-8".to_owned()))?;
        let specs = GrantSpec::parse(text)?;
        self.kms.create_grants(&order.opener.subject(), &*self.kms.key(order.key)?, &specs)
    }

    /// Revokes grants, or retires the one of somebody who may do only that.
    pub(super) fn end_grants(&self, caller: &Caller, key: KeyId, ids: &[GrantId]) -> FsResult<Outcome<()>> {
        if self.options.read_only {
            return Err(FsError::ReadOnly);
        }
        let (who, object) = (Asker::of(caller, true), self.kms.key(key)?);
        let may_revoke = self.kms.would_allow(&who.subject(), &object, Action::RevokeGrant);
        match ids {
            [id] if !may_revoke && self.kms.may_retire(&who.subject(), &object, *id) => {
                self.kms.retire_grant(&who.subject(), &object, *id)?;
            }
            ids => self.kms.revoke_grants(&who.subject(), &object, ids)?,
        }
        Ok(self.revocation_after(Scope::Key(key)).into_outcome())
    }

    /// The grants that an order has made, and its name.
    pub(super) fn end_ordered_grants(&self, caller: &Caller, key: KeyId, name: &[u8]) -> FsResult<Outcome<()>> {
        let made = self.control.orders.made_by(key, caller.uid, name).ok_or(FsError::NotFound)?;
        let left: Vec<GrantId> = self.kms.grants_by_id(&*self.kms.key(key)?, &made).iter().map(|g| g.id()).collect();
        let outcome = if left.is_empty() { ().into() } else { self.end_grants(caller, key, &left)? };
        self.control.orders.forget(key, caller.uid, name);
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_its_maker_s_and_the_memory_has_an_end() {
        let orders = Orders::default();
        let key = KeyId::from_bytes([1; 16]);
        let made = vec![GrantId::from_bytes([2; 16])];
        orders.note(key, 7, b"a.json", made.clone());
        assert_eq!(orders.made_by(key, 7, b"a.json"), Some(made));
        assert_eq!(orders.made_by(key, 8, b"a.json"), None);
        assert_eq!(orders.made_by(KeyId::from_bytes([2; 16]), 7, b"a.json"), None);
        orders.forget(key, 7, b"a.json");
        assert_eq!(orders.made_by(key, 7, b"a.json"), None);
        for number in 0..=ORDERS_MOST {
            orders.note(key, 7, number.to_string().as_bytes(), Vec::new());
        }
        assert!(lock(&orders.named).len() <= ORDERS_MOST);
    }
}
