//! A key's grants in memory, found by whom they concern.
//!
//! INVARIANT: whatever is looked up here finds every grant that could allow the request: a grant that is bound to a
//! context lies under one of its own pairs, so that a request whose context lacks that pair could not meet it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::record::Issued;
use crate::policy::{Grant, Grantee};
use crate::types::{Action, EncryptionContext, GrantId, Groups, Principal};

/// Grants of one grantee that are walked through rather than looked up: so few that an explanation may have them all.
const FEW: usize = 32;
/// Grants, and bytes of them, beyond which a record takes no more.
const GRANTS_IN_SHARD: usize = 64;
const BYTES_IN_SHARD: usize = 32 << 10;
/// Grants that a key may have, as in AWS KMS.
pub(super) const GRANTS_MOST: usize = 50_000;

/// The grants of one key.
#[derive(Debug, Default)]
pub(in crate::kms) struct Grants {
    book: RwLock<Book>,
    // What each decision asks, without the lock.
    any: AtomicUsize,
    constrained: AtomicUsize,
    by_group: AtomicUsize,
    expiring: AtomicUsize,
    damaged: AtomicBool,
}

/// What decisions about a caller depend on, for his grants' sake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::kms) struct Needs {
    pub(in crate::kms) context: bool,
    pub(in crate::kms) time: bool,
}

#[derive(Debug, Default)]
pub(super) struct Book {
    all: BTreeMap<GrantId, Entry>,
    held: HashMap<Grantee, Held>,
    named: HashMap<String, BTreeSet<GrantId>>,
    shards: BTreeMap<u32, Shard>,
    /// Records that take more.
    open: BTreeSet<u32>,
    expiring: BTreeSet<(i64, GrantId)>,
    constrained: usize,
    by_group: usize,
    /// Records that do not verify.
    damaged: BTreeSet<u32>,
    /// Up to when expiries are in the trail.
    told: i64,
}

#[derive(Debug)]
struct Entry {
    grant: Arc<Issued>,
    shard: u32,
    weight: usize,
}

#[derive(Debug, Default)]
struct Shard {
    ids: BTreeSet<GrantId>,
    weight: usize,
}

/// What one grantee has.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    constrained: usize,
    expiring: usize,
    /// Without a constraint.
    plain: Vec<Arc<Issued>>,
    /// Under one of the pairs that they are bound to: by its name, and by its value.
    bound: HashMap<String, HashMap<String, Vec<Arc<Issued>>>>,
}

impl Grants {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Book> {
        self.book.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Book> {
        self.book.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the book. What decides is changed when this returns; the key's generation is the caller's to bump.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = self.write();
        let result = change(&mut book);
        self.any.store(book.all.len(), Ordering::Release);
        self.constrained.store(book.constrained, Ordering::Release);
        self.by_group.store(book.by_group, Ordering::Release);
        self.expiring.store(book.expiring.len(), Ordering::Release);
        self.damaged.store(!book.damaged.is_empty(), Ordering::Release);
        result
    }

    /// Lets go of all of them; their key is no more.
    pub(in crate::kms) fn clear(&self) {
        self.change(|book| *book = Book::default());
    }

    pub(in crate::kms) fn count(&self) -> usize {
        self.any.load(Ordering::Acquire)
    }

    /// Whom they are given to.
    pub(in crate::kms) fn grantees(&self) -> Vec<Grantee> {
        self.read().held.keys().copied().collect()
    }

    /// Whether any of them is bound to a context.
    pub(in crate::kms) fn test_context(&self) -> bool {
        self.constrained.load(Ordering::Acquire) > 0
    }

    /// Whether any of them is a group's.
    pub(in crate::kms) fn use_groups(&self) -> bool {
        self.by_group.load(Ordering::Acquire) > 0
    }

    /// Whether any of them has an end.
    pub(in crate::kms) fn expire(&self) -> bool {
        self.expiring.load(Ordering::Acquire) > 0
    }

    /// Whether a record of grants does not verify: what was granted, and what was taken, is not known.
    pub(in crate::kms) fn are_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// What decisions about this caller depend on.
    pub(in crate::kms) fn needs(&self, principal: &Principal) -> Needs {
        if self.count() == 0 {
            return Needs::default();
        }
        self.read().held_by(principal).fold(Needs::default(), |needs, held| Needs {
            context: needs.context || held.constrained > 0,
            time: needs.time || held.expiring > 0,
        })
    }

    /// The grants that can concern a request; of those that cannot allow it, some that explain why.
    pub(in crate::kms) fn concerning(
        &self,
        principal: &Principal,
        action: Action,
        context: &EncryptionContext,
        now: i64,
    ) -> Vec<Grant> {
        if self.count() == 0 {
            return Vec::new();
        }
        let book = self.read();
        let mut found = Vec::new();
        for held in book.held_by(principal) {
            held.concerning(action, context, now, &mut found);
        }
        found.into_iter().map(|grant| grant.rule.clone()).collect()
    }
}

impl Book {
    /// What the caller has himself and by his groups, as far as they are known.
    fn held_by<'a>(&'a self, principal: &'a Principal) -> impl Iterator<Item = &'a Held> {
        let groups = match &principal.groups {
            Groups::Known(groups) => Some(groups.iter().copied().filter(|gid| *gid != principal.gid)),
            Groups::Unknown => None,
        };
        let gids = groups.map(|groups| groups.chain([principal.gid])).into_iter().flatten().map(Grantee::Gid);
        let grantees: BTreeSet<Grantee> = gids.chain([Grantee::Uid(principal.uid)]).collect();
        grantees.into_iter().filter_map(|grantee| self.held.get(&grantee))
    }

    pub(super) fn get(&self, id: GrantId) -> Option<&Arc<Issued>> {
        self.all.get(&id).map(|entry| &entry.grant)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Issued>> {
        self.all.values().map(|entry| &entry.grant)
    }

    /// Those of a caller, and those that he may retire.
    pub(super) fn of(&self, principal: &Principal) -> Vec<Arc<Issued>> {
        let held = self.held_by(principal).flat_map(Held::all);
        held.map(Arc::clone).collect()
    }

    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = &Arc<Issued>> {
        self.named.get(name).into_iter().flatten().filter_map(|id| self.get(*id))
    }

    /// Which record a new grant goes into, given what else goes into some before it.
    pub(super) fn place(&self, weight: usize, planned: &BTreeMap<u32, (usize, usize)>) -> u32 {
        let fits = |shard: &u32| {
            let (count, bytes) = planned.get(shard).copied().unwrap_or_default();
            let there = self.shards.get(shard);
            there.map_or(0, |there| there.ids.len()) + count < GRANTS_IN_SHARD
                && there.map_or(0, |there| there.weight) + bytes + weight <= BYTES_IN_SHARD
        };
        if let Some(shard) = self.open.iter().copied().find(fits) {
            return shard;
        }
        let taken = |shard: &u32| self.shards.contains_key(shard) || self.damaged.contains(shard);
        let fresh = (0..u32::MAX).find(|shard| !taken(shard) && (!planned.contains_key(shard) || fits(shard)));
        fresh.unwrap_or(u32::MAX)
    }

    pub(super) fn shard_of(&self, id: GrantId) -> Option<u32> {
        self.all.get(&id).map(|entry| entry.shard)
    }

    /// The grants of one record.
    pub(super) fn in_shard(&self, shard: u32) -> impl Iterator<Item = &Arc<Issued>> {
        self.shards.get(&shard).into_iter().flat_map(|shard| &shard.ids).filter_map(|id| self.get(*id))
    }

    pub(super) fn insert(&mut self, shard: u32, grant: Arc<Issued>) {
        let weight = grant.weight();
        let there = self.shards.entry(shard).or_default();
        there.ids.insert(grant.id);
        there.weight += weight;
        self.note_open(shard);
        self.constrained += usize::from(grant.rule.is_constrained());
        self.by_group += usize::from(is_group(&grant));
        self.held.entry(grant.rule.grantee).or_default().insert(&grant);
        if let Some(name) = &grant.name {
            self.named.entry(name.clone()).or_default().insert(grant.id);
        }
        if let Some(expires) = grant.rule.expires {
            self.expiring.insert((expires, grant.id));
        }
        self.all.insert(grant.id, Entry { grant, shard, weight });
    }

    pub(super) fn remove(&mut self, id: GrantId) {
        let Some(Entry { grant, shard, weight }) = self.all.remove(&id) else { return };
        if let Some(there) = self.shards.get_mut(&shard) {
            there.ids.remove(&id);
            there.weight = there.weight.saturating_sub(weight);
            if there.ids.is_empty() {
                self.shards.remove(&shard);
            }
        }
        self.note_open(shard);
        self.constrained = self.constrained.saturating_sub(usize::from(grant.rule.is_constrained()));
        self.by_group = self.by_group.saturating_sub(usize::from(is_group(&grant)));
        if let Some(held) = self.held.get_mut(&grant.rule.grantee) {
            held.remove(&grant);
            if held.count == 0 {
                self.held.remove(&grant.rule.grantee);
            }
        }
        if let Some(name) = &grant.name
            && let Some(ids) = self.named.get_mut(name)
        {
            ids.remove(&id);
            if ids.is_empty() {
                self.named.remove(name);
            }
        }
        if let Some(expires) = grant.rule.expires {
            self.expiring.remove(&(expires, id));
        }
    }

    fn note_open(&mut self, shard: u32) {
        let open = |there: &Shard| there.ids.len() < GRANTS_IN_SHARD && there.weight < BYTES_IN_SHARD;
        if self.shards.get(&shard).is_some_and(open) {
            self.open.insert(shard);
        } else {
            self.open.remove(&shard);
        }
    }

    pub(super) fn note_damaged(&mut self, shard: u32) {
        self.damaged.insert(shard);
    }

    pub(super) fn damaged(&self) -> &BTreeSet<u32> {
        &self.damaged
    }

    pub(super) fn forget_damaged(&mut self) {
        self.damaged.clear();
    }

    /// Those that have expired since this was asked last.
    pub(super) fn newly_expired(&mut self, now: i64) -> Vec<Arc<Issued>> {
        let since = std::mem::replace(&mut self.told, now);
        let ids = self.expiring.iter().skip_while(|(expires, _)| *expires <= since);
        ids.take_while(|(expires, _)| *expires <= now).filter_map(|(_, id)| self.get(*id).cloned()).collect()
    }

    /// From when on expiries are to be told.
    pub(super) fn tell_from(&mut self, now: i64) {
        self.told = now;
    }

    /// Those that expired up to `then`.
    pub(super) fn expired_by(&self, then: i64) -> Vec<Arc<Issued>> {
        let ids = self.expiring.iter().take_while(|(expires, _)| *expires <= then);
        ids.filter_map(|(_, id)| self.get(*id).cloned()).collect()
    }
}

impl Held {
    fn all(&self) -> impl Iterator<Item = &Arc<Issued>> {
        self.plain.iter().chain(self.bound.values().flat_map(HashMap::values).flatten())
    }

    fn concerning<'a>(&'a self, action: Action, context: &EncryptionContext, now: i64, found: &mut Vec<&'a Issued>) {
        let gives = |grant: &&'a Arc<Issued>| grant.rule.operations.contains(&action);
        if self.count <= FEW {
            found.extend(self.all().filter(gives).map(Arc::as_ref));
            return;
        }
        // One that is in force and bound to nothing decides as well as a thousand.
        let decisive = |grant: &&'a Arc<Issued>| gives(grant) && !grant.has_expired(now);
        if let Some(grant) = self.plain.iter().find(decisive).or_else(|| self.plain.iter().find(gives)) {
            found.push(grant);
        }
        if !action.is_cryptographic() {
            // What has no context is not bound to one.
            found.extend(self.bound.values().flat_map(HashMap::values).flatten().find(decisive).map(Arc::as_ref));
            return;
        }
        for (key, value) in context.pairs() {
            let here = self.bound.get(key).and_then(|values| values.get(value));
            found.extend(here.into_iter().flatten().filter(gives).map(Arc::as_ref));
        }
    }

    fn insert(&mut self, grant: &Arc<Issued>) {
        self.count += 1;
        self.constrained += usize::from(grant.rule.is_constrained());
        self.expiring += usize::from(grant.rule.expires.is_some());
        match self.rarest_pair(grant) {
            Some((key, value)) => {
                self.bound.entry(key).or_default().entry(value).or_default().push(Arc::clone(grant));
            }
            None => self.plain.push(Arc::clone(grant)),
        }
    }

    /// Of the pairs that a grant is bound to, the one with the fewest grants under it; none where it is bound to none.
    fn rarest_pair(&self, grant: &Issued) -> Option<(String, String)> {
        let under = |(key, value): &(&String, &String)| {
            self.bound.get(*key).and_then(|values| values.get(*value)).map_or(0, Vec::len)
        };
        let (key, value) = pairs_of(grant).min_by_key(under)?;
        Some((key.clone(), value.clone()))
    }

    fn remove(&mut self, grant: &Issued) {
        self.count = self.count.saturating_sub(1);
        self.constrained = self.constrained.saturating_sub(usize::from(grant.rule.is_constrained()));
        self.expiring = self.expiring.saturating_sub(usize::from(grant.rule.expires.is_some()));
        self.plain.retain(|other| other.id != grant.id);
        for (key, value) in pairs_of(grant) {
            let Some(values) = self.bound.get_mut(key) else { continue };
            if let Some(here) = values.get_mut(value) {
                here.retain(|other| other.id != grant.id);
                if here.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                self.bound.remove(key);
            }
        }
    }
}

fn is_group(grant: &Issued) -> bool {
    matches!(grant.rule.grantee, Grantee::Gid(_))
}

fn pairs_of(grant: &Issued) -> impl Iterator<Item = (&String, &String)> {
    [&grant.rule.context_equals, &grant.rule.context_subset].into_iter().flatten().flat_map(EncryptionContext::pairs)
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::issued;
    use super::*;

    fn who(uid: u32, groups: Groups) -> Principal {
        Principal { uid, gid: 100, groups }
    }

    fn item(name: &str) -> EncryptionContext {
        EncryptionContext::of_item("orders", name.as_bytes())
    }

    fn bound_to(mut grant: Issued, context: EncryptionContext) -> Arc<Issued> {
        grant.rule.context_subset = Some(context);
        Arc::new(grant)
    }

    fn ids(grants: &Grants, principal: &Principal, action: Action, context: &EncryptionContext) -> Vec<String> {
        let mut ids: Vec<_> = grants.concerning(principal, action, context, 50).into_iter().map(|g| g.id).collect();
        ids.sort();
        ids
    }

    #[test]
    fn a_grant_is_found_by_whom_it_concerns() {
        let grants = Grants::default();
        grants.change(|book| {
            book.insert(0, Arc::new(issued(1, "bob", 1002, &[Action::Decrypt])));
            book.insert(0, Arc::new(issued(2, "group:g", 2000, &[Action::Decrypt])));
            book.insert(0, Arc::new(issued(3, "gid:100", 100, &[Action::Encrypt])));
        });
        let found = |uid, groups: Groups, action| ids(&grants, &who(uid, groups), action, &item("x")).len();
        assert_eq!(found(1002, Groups::Unknown, Action::Decrypt), 1);
        assert_eq!(found(1002, Groups::Known(vec![2000, 2000]), Action::Decrypt), 2);
        assert_eq!(found(7, Groups::Known(vec![]), Action::Encrypt), 1, "by the primary group");
        assert_eq!(found(7, Groups::Unknown, Action::Encrypt), 0);
        assert_eq!(found(1002, Groups::Unknown, Action::Encrypt), 0);
        assert!(grants.use_groups() && !grants.test_context() && !grants.expire());
        grants.change(|book| [2, 3].map(|n| book.remove(GrantId::from_bytes([n; 16]))));
        assert!(!grants.use_groups());
    }

    #[test]
    fn among_many_the_context_leads_to_the_one() {
        let grants = Grants::default();
        let bob = who(1002, Groups::Unknown);
        grants.change(|book| {
            for number in 0..200 {
                let grant = issued(number, "bob", 1002, &[Action::Decrypt, Action::DescribeKey]);
                book.insert(u32::from(number), bound_to(grant, item(&format!("{number}.json"))));
            }
        });
        assert_eq!(grants.needs(&bob), Needs { context: true, time: false });
        assert_eq!(grants.needs(&who(5, Groups::Unknown)), Needs::default());
        assert_eq!(ids(&grants, &bob, Action::Decrypt, &item("77.json")), [GrantId::from_bytes([77; 16]).to_string()]);
        assert!(ids(&grants, &bob, Action::Decrypt, &item("777.json")).len() <= 1);
        assert_eq!(ids(&grants, &bob, Action::DescribeKey, &EncryptionContext::default()).len(), 1);
        // One for the whole table, among them.
        let table = EncryptionContext::new([("kmsfs:table".to_owned(), "orders".to_owned())].into());
        grants.change(|book| book.insert(900, bound_to(issued(250, "bob", 1002, &[Action::Decrypt]), table)));
        assert!(
            ids(&grants, &bob, Action::Decrypt, &item("9999")).contains(&GrantId::from_bytes([250; 16]).to_string())
        );
        grants.change(|book| (0..=255).for_each(|n| book.remove(GrantId::from_bytes([n; 16]))));
        let book = grants.read();
        assert!(book.held.is_empty() && book.shards.is_empty() && book.open.is_empty() && book.len() == 0);
    }

    #[test]
    fn what_is_looked_up_is_what_a_walk_would_find() {
        // Pairs of few names and values, so that most grants share some.
        let grants = Grants::default();
        let bob = who(1002, Groups::Unknown);
        let pair = |n: u8, m: u8| (format!("k{}", n % 3), format!("v{}", m % 3));
        let all: Vec<_> = (0..=255_u8)
            .map(|n| {
                let context: BTreeMap<_, _> = (0..=n % 3).map(|i| pair(n.wrapping_add(i), n / 7 + i)).collect();
                bound_to(issued(n, "bob", 1002, &[Action::Decrypt]), EncryptionContext::new(context))
            })
            .collect();
        grants.change(|book| all.iter().for_each(|grant| book.insert(0, Arc::clone(grant))));
        for n in 0..27_u8 {
            let context = EncryptionContext::new([pair(0, n), pair(1, n / 3), pair(2, n / 9)].into());
            let found = ids(&grants, &bob, Action::Decrypt, &context);
            for grant in &all {
                let wanted = grant.rule.context_subset.as_ref().unwrap().pairs();
                if wanted.iter().all(|(key, value)| context.pairs().get(key) == Some(value)) {
                    assert!(found.contains(&grant.rule.id), "{wanted:?} in {context:?}");
                }
            }
        }
    }

    #[test]
    fn records_fill_up_one_after_the_other() {
        let grants = Grants::default();
        let grant = |n| Arc::new(issued(n, "bob", 1002, &[Action::Decrypt]));
        grants.change(|book| {
            for n in 0..130_u8 {
                let shard = book.place(grant(n).weight(), &BTreeMap::new());
                assert_eq!(shard, u32::from(n) / 64);
                book.insert(shard, grant(n));
            }
            book.remove(GrantId::from_bytes([3; 16]));
            assert_eq!(book.place(100, &BTreeMap::new()), 0);
            assert_eq!(book.place(100, &[(0, (1, 100))].into()), 2);
            assert_eq!(book.place(BYTES_IN_SHARD, &BTreeMap::new()), 3);
            assert_eq!(book.place(BYTES_IN_SHARD, &[(3, (1, 100))].into()), 4);
        });
    }

    #[test]
    fn an_expiry_is_told_once() {
        let grants = Grants::default();
        grants.change(|book| {
            for (n, expires) in [(1, 10), (2, 20), (3, 30)] {
                let mut grant = issued(n, "bob", 1002, &[Action::Decrypt]);
                grant.rule.expires = Some(expires);
                book.insert(0, Arc::new(grant));
            }
            book.tell_from(10);
            assert_eq!(book.newly_expired(19).len(), 0);
            assert_eq!(book.newly_expired(20).len(), 1);
            assert_eq!(book.newly_expired(20).len(), 0);
            assert_eq!(book.newly_expired(99).len(), 1);
            assert_eq!(book.expired_by(20).len(), 2);
        });
        assert!(grants.expire());
    }
}
