//! A key as the daemon holds it: its record, its parsed policy, and the decisions already made under it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::grant::Grants;
use super::record::{KeyOrigin, KeyRecord, PolicyRecord};
use crate::crypto::Key256;
use crate::policy::{Bindings, Decision, Policy, PolicyError};
use crate::types::{Action, Groups, KeyId, KeyState, Principal};

/// A policy document, parsed once, with the ids that its names are bound to.
#[derive(Debug)]
pub struct BoundPolicy {
    pub text: String,
    pub policy: Policy,
    pub bindings: Bindings,
    /// How often it was saved.
    pub generation: u64,
}

impl BoundPolicy {
    pub fn of_record(record: &PolicyRecord) -> Result<Self, PolicyError> {
        Ok(Self {
            text: record.text.clone(),
            policy: Policy::parse(&record.text)?,
            bindings: record.bindings.clone(),
            generation: record.generation,
        })
    }
}

/// What is true of a key until the next change.
#[derive(Debug)]
pub struct KeyNow {
    pub record: KeyRecord,
    pub policy: BoundPolicy,
    /// The material versions, unsealed; empty for a destroyed key.
    pub(super) material: BTreeMap<u32, Key256>,
}

impl KeyNow {
    pub fn is_owned(&self) -> bool {
        self.record.origin == KeyOrigin::Owned
    }

    pub fn state(&self) -> KeyState {
        self.record.state
    }
}

/// Generations of keys: each is drawn once, so that a decision made under one key is never taken for one made under another,
/// to which its table has moved since. From 1: 0 stands for no decision.
static GENERATIONS: AtomicU64 = AtomicU64::new(1);

fn next_generation() -> u64 {
    GENERATIONS.fetch_add(1, Ordering::Relaxed)
}

/// A key, for as long as the store is served. What it is changes under it; handles compare its generation.
#[derive(Debug)]
pub struct Key {
    id: KeyId,
    id_text: String,
    /// Another, higher one at every change that could change a decision.
    generation: AtomicU64,
    /// None: the record does not verify, so nothing is decided but denial.
    now: RwLock<Option<Arc<KeyNow>>>,
    /// They change one by one, so that they are no part of `now`, which is replaced as a whole.
    grants: Grants,
    decisions: RwLock<Decisions>,
}

/// Decisions made under one generation.
#[derive(Debug, Default)]
struct Decisions {
    generation: u64,
    made: HashMap<Asked, Arc<Decided>>,
}

/// A decision, and its reason in words, as every use of it is recorded with.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) decision: Decision,
    pub(super) reason: String,
}

impl Decided {
    pub(super) fn of(decision: Decision) -> Arc<Self> {
        let reason = decision.reason.to_string();
        Arc::new(Self { decision, reason })
    }
}

/// What a decision depends on where a policy looks at neither an item nor the time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    uid: u32,
    gid: u32,
    groups: Option<Groups>,
    action: Action,
}

impl Asked {
    pub(super) fn of(principal: &Principal, action: Action, by_groups: bool) -> Self {
        Self { uid: principal.uid, gid: principal.gid, groups: by_groups.then(|| principal.groups.clone()), action }
    }
}

/// Decisions remembered per key; beyond this the memory starts anew, so that it stays bounded.
const DECISIONS_MOST: usize = 4096;

impl Key {
    pub(super) fn new(id: KeyId, now: Option<KeyNow>) -> Arc<Self> {
        let generation = next_generation();
        Arc::new(Self {
            id,
            id_text: id.to_string(),
            generation: AtomicU64::new(generation),
            now: RwLock::new(now.map(Arc::new)),
            grants: Grants::default(),
            decisions: RwLock::new(Decisions { generation, made: HashMap::new() }),
        })
    }

    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The id as the trail has it.
    pub(super) fn id_text(&self) -> &str {
        &self.id_text
    }

    /// The generation under which a decision is made; read it before deciding.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn now(&self) -> Option<Arc<KeyNow>> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn grants(&self) -> &Grants {
        &self.grants
    }

    /// How many grants it has, those that have expired and are still kept included.
    pub fn grant_count(&self) -> usize {
        self.grants.count()
    }

    /// Puts a change in force: first what decides, then the generation, then the remembered decisions go.
    pub(super) fn install(&self, now: KeyNow) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(now));
        self.forget_decisions();
    }

    /// Something that decides beside the key has changed: the store policy, a grant.
    ///
    /// INVARIANT: under a generation nothing is remembered that was decided before it, or a handle would be marked as
    /// decided anew by a decision of the old policy, and never be asked again.
    pub(super) fn forget_decisions(&self) {
        let mut decisions = self.decisions.write().unwrap_or_else(PoisonError::into_inner);
        let generation = next_generation();
        self.generation.store(generation, Ordering::Release);
        *decisions = Decisions { generation, made: HashMap::new() };
    }

    /// A decision made under this very generation.
    pub(super) fn remembered(&self, generation: u64, asked: &Asked) -> Option<Arc<Decided>> {
        let decisions = self.decisions.read().unwrap_or_else(PoisonError::into_inner);
        if decisions.generation == generation { decisions.made.get(asked).cloned() } else { None }
    }

    /// Remembers a decision made under `generation`, unless a change has come in between.
    pub(super) fn remember(&self, generation: u64, asked: Asked, decision: Arc<Decided>) {
        let mut decisions = self.decisions.write().unwrap_or_else(PoisonError::into_inner);
        if decisions.generation != generation {
            return;
        }
        if decisions.made.len() >= DECISIONS_MOST {
            decisions.made.clear();
        }
        decisions.made.insert(asked, decision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Reason, Verdict};

    #[test]
    fn a_decision_lasts_for_its_generation_and_no_longer() {
        let key = Key::new(KeyId::from_bytes([1; 16]), None);
        let alice = Principal { uid: 1, gid: 1, groups: Groups::Unknown };
        let asked = || Asked::of(&alice, Action::Decrypt, false);
        let decision = || Decided::of(Decision { verdict: Verdict::Denied, reason: Reason::NoIdentity });
        let before = key.generation();
        key.remember(before, asked(), decision());
        assert!(key.remembered(before, &asked()).is_some());
        key.forget_decisions();
        let after = key.generation();
        assert_ne!(before, after);
        for generation in [before, after] {
            assert!(key.remembered(generation, &asked()).is_none());
        }
        // One that was made by the old policy and comes late.
        key.remember(before, asked(), decision());
        assert!(key.remembered(after, &asked()).is_none());
        key.remember(after, asked(), decision());
        assert!(key.remembered(after, &asked()).is_some());
    }
}
