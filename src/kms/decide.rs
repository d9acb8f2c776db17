//! Decisions: who may use a key for an item, who may manage a key or the store.
//!
//! The order is policy, then key state. What is allowed to decrypt is in the trail before the capability exists; what
//! is denied is in the trail before the caller hears of it. A decision that looks at neither item nor time is
//! remembered until the key or the store policy changes.

use std::sync::{Arc, PoisonError};

use super::data_key::{DataKey, SealKey, TableKeys};
use super::key::{Asked, BoundPolicy, Decided, Key, KeyNow};
use super::table::Table;
use super::{Kms, KmsError, Subject};
use crate::policy::{self, Bindings, Decision, Grant, Policy, Reason, Request, Scene, Verdict};
use crate::sys;
use crate::types::{Action, EncryptionContext, KeyState, Principal};

/// The item that a request is about. Its path is put together only where a policy or the trail wants it.
#[derive(Clone, Copy)]
pub struct ItemAsked<'a> {
    pub table: &'a Arc<Table>,
    pub path: &'a dyn Fn() -> Vec<u8>,
}

/// For how long a decision stands: while the key is of this generation, and before this second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub generation: u64,
    /// Seconds since 1970; far away unless a grant allows it that ends.
    pub until: i64,
}

impl std::fmt::Debug for ItemAsked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ItemAsked").field("table", &self.table.id()).finish_non_exhaustive()
    }
}

impl ItemAsked<'_> {
    pub(super) fn context(&self) -> EncryptionContext {
        EncryptionContext::of_item(&self.table.name(), &(self.path)())
    }
}

impl Kms {
    /// Whether the groups of a caller are needed for decisions about a table's items.
    pub fn wants_groups(&self, table: &Table) -> bool {
        let account = self.read().policy.clone();
        let key = table.key();
        key.now().is_some_and(|now| {
            !now.is_owned()
                && (now.policy.policy.uses_groups()
                    || key.grants().use_groups()
                    || account.is_some_and(|account| account.policy.uses_groups()))
        })
    }

    /// Whether decisions about a table's items look at the item, so that a rename could launder a right.
    pub fn tests_items(&self, table: &Table) -> bool {
        let account = self.read().policy.clone();
        let key = table.key();
        key.now().is_none_or(|now| {
            !now.is_owned()
                && (now.policy.policy.tests_context()
                    || key.grants().test_context()
                    || account.is_some_and(|account| account.policy.tests_context()))
        })
    }

    /// Whether decisions about a table's items may change with the time, for the policies' sake: what a grant allows says
    /// itself for how long ([`Standing`]).
    pub fn depends_on_time(&self, table: &Table) -> bool {
        let account = self.read().policy.clone();
        table.key().now().is_some_and(|now| {
            !now.is_owned()
                && (now.policy.policy.depends_on_time()
                    || account.is_some_and(|account| account.policy.depends_on_time()))
        })
    }

    /// kms:Decrypt for one item. Also gives for how long the decision stands.
    pub fn decrypt(&self, who: &Subject<'_>, item: &ItemAsked<'_>) -> Result<(DataKey, Standing), KmsError> {
        let (keys, standing) = self.use_key(who, item, Action::Decrypt)?;
        Ok((DataKey::new(keys), standing))
    }

    /// kms:Encrypt or kms:GenerateDataKey for one item.
    pub fn seal_key(
        &self,
        who: &Subject<'_>,
        item: &ItemAsked<'_>,
        action: Action,
    ) -> Result<(SealKey, Standing), KmsError> {
        let (keys, standing) = self.use_key(who, item, action)?;
        Ok((SealKey::new(keys), standing))
    }

    /// A right that was decided before, decided anew under the key as it is now. A denial is an event; that the right
    /// still holds is none.
    pub fn decide_again(&self, who: &Subject<'_>, item: &ItemAsked<'_>, action: Action) -> Result<Standing, KmsError> {
        self.decide_item(who, item, action).map(|(standing, _)| standing)
    }

    fn use_key(
        &self,
        who: &Subject<'_>,
        item: &ItemAsked<'_>,
        action: Action,
    ) -> Result<(Arc<TableKeys>, Standing), KmsError> {
        let (standing, decision) = self.decide_item(who, item, action)?;
        if !item.table.keys.are_there() {
            return Err(KmsError::Tampered);
        }
        if action == Action::Decrypt
            && let Some(decision) = decision
        {
            self.log_decrypt(who, item, &decision)?;
        }
        Ok((Arc::clone(&item.table.keys), standing))
    }

    /// Decides about an item. No decision is given for the owned key, of which Unix alone decides.
    fn decide_item(
        &self,
        who: &Subject<'_>,
        item: &ItemAsked<'_>,
        action: Action,
    ) -> Result<(Standing, Option<Arc<Decided>>), KmsError> {
        let key = item.table.key();
        let generation = key.generation();
        let now = key.now().ok_or(KmsError::Tampered)?;
        let Subject::Caller { principal, .. } = who else {
            return Err(KmsError::Denied { action, why: "a custodian uses no key".to_owned() });
        };
        if now.is_owned() {
            return Ok((Standing { generation, until: i64::MAX }, None));
        }
        if key.grants().are_damaged() {
            return Err(KmsError::Tampered);
        }
        let asked = Asked::of(principal, action, self.wants_groups(item.table));
        let (decision, until) = match key.remembered(generation, &asked) {
            Some(decision) => (decision, i64::MAX),
            None => self.decide_anew(key, &now, principal, asked, generation, item, action)?,
        };
        match verdict(&decision.decision, action, now.state()) {
            Ok(()) => Ok((Standing { generation, until }, Some(decision))),
            Err(error) => {
                self.log_denial(who, item, action, &error)?;
                Err(error)
            }
        }
    }

    fn decide_anew(
        &self,
        key: &Key,
        now: &KeyNow,
        principal: &Principal,
        asked: Asked,
        generation: u64,
        item: &ItemAsked<'_>,
        action: Action,
    ) -> Result<(Arc<Decided>, i64), KmsError> {
        let account = self.store_policy()?;
        let policies = scene(now, Some(&account), &[], &[]);
        // Somebody else's grants make nobody's decision look at the item or the time.
        let needs = key.grants().needs(principal);
        let by_item = policies.tests_context() || needs.context;
        let lasting = !by_item && !policies.depends_on_time() && !needs.time;
        let context = if by_item { item.context() } else { EncryptionContext::default() };
        let time = self.now();
        let grants = key.grants().concerning(principal, action, &context, time);
        let resource = resource_of(key, now);
        let decision = Decided::of(self.evaluate(now, Some(&account), &grants, &resource, principal, action, &context));
        let until = stands_until(&decision.decision, &grants);
        if lasting {
            key.remember(generation, asked, Arc::clone(&decision));
        }
        Ok((decision, until))
    }

    fn evaluate(
        &self,
        now: &KeyNow,
        account: Option<&BoundPolicy>,
        grants: &[Grant],
        resource: &[String],
        principal: &Principal,
        action: Action,
        context: &EncryptionContext,
    ) -> Decision {
        let resource: Vec<&str> = resource.iter().map(String::as_str).collect();
        self.judge(&scene(now, account, grants, &resource), principal, action, context, false)
    }

    /// Puts a question to the policy engine, with what it has to be told: the time, and a user name where one counts.
    pub(super) fn judge(
        &self,
        scene: &Scene<'_>,
        principal: &Principal,
        action: Action,
        context: &EncryptionContext,
        direct: bool,
    ) -> Decision {
        let username = if scene.uses_username() { self.user_name(principal.uid) } else { None };
        let request = Request { action, principal, context, direct, username: username.as_deref(), now: self.now() };
        policy::evaluate(scene, &request)
    }

    /// Decides about managing a key; a denial is an event.
    pub fn check_key(&self, who: &Subject<'_>, key: &Key, action: Action) -> Result<(), KmsError> {
        let result = self.decide_management(who, key, action);
        if let Err(error) = &result {
            let name = key.now().map(|now| now.record.name.clone()).unwrap_or_default();
            self.log_refusal(who, action, Some(key.id()), &name, error)?;
        }
        result.map_err(|error| self.told(who, key, error))
    }

    /// An error as a caller may hear it: which statement denies is for those who may read the policy.
    pub(super) fn told(&self, who: &Subject<'_>, key: &Key, error: KmsError) -> KmsError {
        if let KmsError::Denied { action, .. } = error
            && matches!(who, Subject::Caller { .. })
            && !self.would_allow(who, key, Action::GetKeyPolicy)
        {
            return KmsError::Denied { action, why: "the policy does not allow it".to_owned() };
        }
        error
    }

    /// The same where the key's state is no reason to refuse: what is asked for is possible in every state.
    pub(super) fn check_key_in_any_state(&self, who: &Subject<'_>, key: &Key, action: Action) -> Result<(), KmsError> {
        let by_state = |error: &KmsError| {
            matches!(error, KmsError::KeyRevoked(_) | KmsError::InvalidState { .. } | KmsError::Destroyed)
        };
        // The policy is asked first: a state that refuses says that the policy would not have.
        match self.decide_management(who, key, action) {
            Err(error) if by_state(&error) => Ok(()),
            Ok(()) => Ok(()),
            Err(_) => self.check_key(who, key, action),
        }
    }

    /// The same question without an event, for listings and sizes.
    pub fn would_allow(&self, who: &Subject<'_>, key: &Key, action: Action) -> bool {
        self.decide_management(who, key, action).is_ok()
    }

    /// What a grant says of grants, it says of some: that is decided where those are known.
    fn decide_management(&self, who: &Subject<'_>, key: &Key, action: Action) -> Result<(), KmsError> {
        let grants = match who {
            Subject::Caller { principal, .. } if !matches!(action, Action::CreateGrant | Action::RetireGrant) => {
                key.grants().concerning(principal, action, &EncryptionContext::default(), self.now())
            }
            Subject::Caller { .. } | Subject::Custodian { .. } => Vec::new(),
        };
        self.decide_management_with(who, key, action, &grants)
    }

    /// The same with these grants and no others.
    pub(super) fn decide_management_with(
        &self,
        who: &Subject<'_>,
        key: &Key,
        action: Action,
        grants: &[Grant],
    ) -> Result<(), KmsError> {
        let now = key.now().ok_or(KmsError::Tampered)?;
        if now.is_owned() {
            return Err(KmsError::NotFound);
        }
        match who {
            Subject::Custodian { .. } if action.is_cryptographic() => {
                Err(KmsError::Denied { action, why: "a custodian uses no key".to_owned() })
            }
            Subject::Custodian { .. } => {
                of_verdict(policy::of_state(action, now.state()), action, now.state(), String::new)
            }
            Subject::Caller { principal, .. } => {
                let account = self.store_policy()?;
                let resource = resource_of(key, &now);
                let context = EncryptionContext::default();
                let decision = self.evaluate(&now, Some(&account), grants, &resource, principal, action, &context);
                verdict(&decision, action, now.state())
            }
        }
    }

    /// The decision about an item in full, for an explanation.
    pub(super) fn decision_about(
        &self,
        principal: &Principal,
        item: &ItemAsked<'_>,
        action: Action,
    ) -> Result<(Arc<KeyNow>, Decision), KmsError> {
        let key = item.table.key();
        let now = key.now().ok_or(KmsError::Tampered)?;
        let account = self.store_policy()?;
        if key.grants().are_damaged() {
            return Err(KmsError::Tampered);
        }
        let context = item.context();
        let grants = key.grants().concerning(principal, action, &context, self.now());
        let resource = resource_of(key, &now);
        let decision = self.evaluate(&now, Some(&account), &grants, &resource, principal, action, &context);
        Ok((now, decision))
    }

    /// Decides about the store itself by the store policy; a denial is an event. `name`: what is to be made.
    pub fn check_store(&self, who: &Subject<'_>, action: Action, name: &str) -> Result<(), KmsError> {
        let result = self.decide_store(who, action, name);
        if let Err(error) = &result {
            self.log_refusal(who, action, None, name, error)?;
        }
        result
    }

    pub fn store_would_allow(&self, who: &Subject<'_>, action: Action) -> bool {
        self.decide_store(who, action, "").is_ok()
    }

    fn decide_store(&self, who: &Subject<'_>, action: Action, name: &str) -> Result<(), KmsError> {
        match who {
            Subject::Custodian { .. } => Ok(()),
            Subject::Caller { principal, .. } => {
                let policy = self.store_policy()?;
                let resource = format!("table/{name}");
                let decision = self.evaluate_store(
                    &policy.policy,
                    &policy.bindings,
                    if name.is_empty() { &[] } else { std::slice::from_ref(&resource) },
                    principal,
                    action,
                );
                verdict(&decision, action, KeyState::Enabled)
            }
        }
    }

    fn evaluate_store(
        &self,
        policy: &Policy,
        bindings: &Bindings,
        resource: &[String],
        principal: &Principal,
        action: Action,
    ) -> Decision {
        let resource: Vec<&str> = resource.iter().map(String::as_str).collect();
        let scene =
            Scene { policy, bindings, account: None, grants: &[], state: KeyState::Enabled, resource: &resource };
        self.judge(&scene, principal, action, &EncryptionContext::default(), false)
    }

    /// Whether a caller may save a key's policy, asked when a document is opened for writing.
    pub fn may_put_key_policy(&self, who: &Subject<'_>, key: &Key) -> Result<(), KmsError> {
        self.check_key(who, key, Action::PutKeyPolicy)
    }

    pub fn may_put_store_policy(&self, who: &Subject<'_>) -> Result<(), KmsError> {
        self.check_store(who, Action::PutStorePolicy, "")
    }

    /// Refuses a key policy under which its saver could not save another.
    pub(super) fn refuse_lock_out(
        &self,
        who: &Subject<'_>,
        key: &Key,
        policy: &Policy,
        bindings: &Bindings,
    ) -> Result<(), KmsError> {
        let Subject::Caller { principal, .. } = who else { return Ok(()) };
        let account = self.store_policy()?;
        let now = key.now().ok_or(KmsError::Tampered)?;
        let resource = resource_of(key, &now);
        let resource: Vec<&str> = resource.iter().map(String::as_str).collect();
        let account = Some((&account.policy, &account.bindings));
        let scene = Scene { policy, bindings, account, grants: &[], state: KeyState::Enabled, resource: &resource };
        self.refuse_if_out(&scene, principal, Action::PutKeyPolicy)
    }

    pub(super) fn refuse_store_lock_out(
        &self,
        who: &Subject<'_>,
        policy: &Policy,
        bindings: &Bindings,
    ) -> Result<(), KmsError> {
        let Subject::Caller { principal, .. } = who else { return Ok(()) };
        let scene = Scene { policy, bindings, account: None, grants: &[], state: KeyState::Enabled, resource: &[] };
        self.refuse_if_out(&scene, principal, Action::PutStorePolicy)
    }

    fn refuse_if_out(&self, scene: &Scene<'_>, principal: &Principal, action: Action) -> Result<(), KmsError> {
        let username = if scene.uses_username() { self.user_name(principal.uid) } else { None };
        let context = EncryptionContext::default();
        let request = Request {
            action,
            principal,
            context: &context,
            direct: false,
            username: username.as_deref(),
            now: self.now(),
        };
        if policy::would_lock_out(scene, &request) { Err(KmsError::LockOut) } else { Ok(()) }
    }

    /// Names of users may have changed: an account made or renamed counts at the latest from the next save on.
    pub(super) fn forget_user_names(&self) {
        self.names.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A uid's name, remembered until a policy is saved.
    pub fn user_name(&self, uid: u32) -> Option<Arc<str>> {
        if let Some(known) = self.names.read().unwrap_or_else(PoisonError::into_inner).get(&uid) {
            return known.clone();
        }
        let name: Option<Arc<str>> = sys::user_name(uid).map(Arc::from);
        self.names.write().unwrap_or_else(PoisonError::into_inner).insert(uid, name.clone());
        name
    }
}

pub(super) fn scene<'a>(
    now: &'a KeyNow,
    account: Option<&'a BoundPolicy>,
    grants: &'a [Grant],
    resource: &'a [&'a str],
) -> Scene<'a> {
    Scene {
        policy: &now.policy.policy,
        bindings: &now.policy.bindings,
        account: account.map(|account| (&account.policy, &account.bindings)),
        grants,
        state: now.state(),
        resource,
    }
}

/// Until when what a grant allows is allowed; what else decides says nothing of an end.
fn stands_until(decision: &Decision, grants: &[Grant]) -> i64 {
    let Reason::Granted { id } = &decision.reason else { return i64::MAX };
    grants.iter().find(|grant| grant.id == *id).and_then(|grant| grant.expires).unwrap_or(i64::MAX)
}

/// What a key is called in an ARN.
pub(super) fn resource_of(key: &Key, now: &KeyNow) -> [String; 2] {
    [format!("key/{}", key.id()), format!("key/{}", now.record.name)]
}

pub(super) fn verdict(decision: &Decision, action: Action, state: KeyState) -> Result<(), KmsError> {
    of_verdict(decision.verdict, action, state, || decision.reason.to_string())
}

fn of_verdict(verdict: Verdict, action: Action, state: KeyState, why: impl FnOnce() -> String) -> Result<(), KmsError> {
    match verdict {
        Verdict::Allowed => Ok(()),
        Verdict::Denied => Err(KmsError::Denied { action, why: why() }),
        Verdict::KeyRevoked => Err(KmsError::KeyRevoked(state)),
        Verdict::InvalidState => Err(KmsError::InvalidState { action, state }),
        Verdict::NoKey => Err(KmsError::Destroyed),
    }
}
