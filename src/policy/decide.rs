//! The decision: an explicit Deny, then an Allow (of the policy, of the store policy where the policy delegates to the
//! account, or of a grant), else an implicit deny; and only for whom that allows, the state of the key.
//!
//! What cannot be known denies: an Allow that might hold does not count, a Deny that might hold does. Nothing here
//! reads a clock or a user database.
//!
//! Source: IAM User Guide, 'Policy evaluation logic'; AWS KMS Developer Guide, 'Grants', 'Key states'.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::condition::Facts;
use super::document::{Effect, Policy, Statement, Uses};
use super::glob::Budget;
use super::principal::{Bindings, Identity};
use super::truth::Truth;
use crate::types::{Action, EncryptionContext, Groups, KeyState, Principal};

/// What a request is decided by.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    pub policy: &'a Policy,
    pub bindings: &'a Bindings,
    /// The account's own policy, here the store policy: what it denies is denied, and it allows what `policy`
    /// delegates to the account. None where `policy` is the store policy itself.
    pub account: Option<(&'a Policy, &'a Bindings)>,
    pub grants: &'a [Grant],
    pub state: KeyState,
    /// What the thing asked about is called, as in the last field of an ARN: `key/ID`, `key/NAME`, `table/NAME`. Where
    /// none is given, only the `Resource` `*` can allow, and every `Resource` can deny.
    pub resource: &'a [&'a str],
}

/// Who asks for what.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub action: Action,
    pub principal: &'a Principal,
    /// Empty where the action has none.
    pub context: &'a EncryptionContext,
    /// The key is called for itself, as `kmsfs encrypt` does, and not for a table: `kms:ViaService` is absent.
    pub direct: bool,
    /// The name that the user database gives the asker's uid, now: unlike a `Principal`, a condition on it is bound to
    /// no id. Needed where [`Scene::uses_username`]. Without one, no Allow that depends on it
    /// holds and every Deny does.
    pub username: Option<&'a str>,
    /// Seconds since 1970.
    pub now: i64,
}

/// A right given to one user or group, beside the policy. Source: AWS KMS Developer Guide, 'Grants in AWS KMS'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub id: String,
    pub grantee: Grantee,
    /// Those that are not [grantable](is_grantable) have no effect.
    pub operations: BTreeSet<Action>,
    /// Both must hold. They bind cryptographic operations; DescribeKey and RetireGrant have no context to test, and a
    /// constrained grant never allows CreateGrant by itself, which could shed the constraint: whoever makes a grant by
    /// a grant asks first whether the old one [covers](Self::covers) the new.
    pub context_equals: Option<EncryptionContext>,
    pub context_subset: Option<EncryptionContext>,
    /// Seconds since 1970: from then on the grant has no effect.
    pub expires: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grantee {
    Uid(u32),
    Gid(u32),
}

/// Whether a grant may hold the action. Source: AWS KMS API Reference, 'CreateGrant', `Operations`.
#[must_use]
pub const fn is_grantable(action: Action) -> bool {
    action.is_cryptographic() || matches!(action, Action::DescribeKey | Action::CreateGrant | Action::RetireGrant)
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// By a policy, or for want of one.
    Denied,
    /// Allowed, but the key is disabled or pending deletion, and its material is not used.
    KeyRevoked,
    /// Allowed, but the key is destroyed.
    NoKey,
    /// Allowed, but not something that can be done to a key in this state.
    InvalidState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    pub verdict: Verdict,
    pub reason: Reason,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    AllowedBy(StatementRef),
    /// The policy's statement delegates to the account, and the store policy's allows.
    Delegated {
        by: StatementRef,
        to: StatementRef,
    },
    Granted {
        id: String,
    },
    DeniedBy {
        statement: StatementRef,
        /// It could not be ruled out: a name without an id, unknown groups, an unknown user name, a value of the
        /// wrong type.
        unknown: bool,
    },
    NotAllowed(Missing),
    State(KeyState),
    /// The caller has no uid (-1).
    NoIdentity,
}

/// The nearest that an implicitly denied request came to being allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// No statement and no grant speaks of the asker and the action.
    Statement,
    /// This statement does, but a condition, or its resource, does not hold.
    Condition(StatementRef),
    /// This statement might, were something known that is not: an id, the groups, the user name.
    Knowledge(StatementRef),
    /// This statement delegates to the store policy, which does not allow it.
    StorePolicy(StatementRef),
    /// The grant has expired.
    GrantExpired { id: String },
    /// The grant's constraint does not hold.
    GrantConstraint { id: String },
}

/// A statement of one of the two documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementRef {
    pub document: Document,
    /// From 1.
    pub number: usize,
    pub sid: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// [`Scene::policy`].
    Policy,
    /// [`Scene::account`].
    StorePolicy,
}

impl Scene<'_> {
    fn uses(&self) -> Uses {
        let grants = Uses {
            groups: self.grants.iter().any(|grant| matches!(grant.grantee, Grantee::Gid(_))),
            time: self.grants.iter().any(|grant| grant.expires.is_some()),
            context: self.grants.iter().any(Grant::is_constrained),
            username: false,
        };
        let account = self.account.map_or_else(Uses::default, |(policy, _)| policy.own_uses());
        self.policy.own_uses().and(account).and(grants)
    }

    /// Whether a decision may depend on the asker's groups and gid: whether the caller has to find them out.
    pub fn uses_groups(&self) -> bool {
        self.uses().groups
    }

    /// Whether a decision may change with the time.
    pub fn depends_on_time(&self) -> bool {
        self.uses().time
    }

    /// Whether decisions may differ between items.
    pub fn tests_context(&self) -> bool {
        self.uses().context
    }

    /// Whether a decision may depend on the asker's user name.
    pub fn uses_username(&self) -> bool {
        self.uses().username
    }
}

/// Decides a request.
pub fn evaluate(scene: &Scene<'_>, request: &Request<'_>) -> Decision {
    if request.principal.uid == u32::MAX {
        return Decision { verdict: Verdict::Denied, reason: Reason::NoIdentity };
    }
    let groups = sorted_groups(scene, request.principal);
    let facts = Facts {
        asker: Identity { uid: request.principal.uid, gid: request.principal.gid, groups: groups.as_deref() },
        username: request.username,
        context: request.context,
        direct: request.direct,
        now: request.now,
        budget: &Budget::new(),
    };
    let reason = match permit(scene, request, &facts) {
        Ok(reason) => reason,
        Err(reason) => return Decision { verdict: Verdict::Denied, reason },
    };
    match of_state(request.action, scene.state) {
        Verdict::Allowed => Decision { verdict: Verdict::Allowed, reason },
        verdict @ (Verdict::Denied | Verdict::KeyRevoked | Verdict::NoKey | Verdict::InvalidState) => {
            Decision { verdict, reason: Reason::State(scene.state) }
        }
    }
}

/// Whether the asker could no longer make the request, grants and the key's state apart: ask it of a new document with
/// PutKeyPolicy (of a store policy: PutStorePolicy) before it takes the place of the old.
pub fn would_lock_out(scene: &Scene<'_>, request: &Request<'_>) -> bool {
    let scene = Scene { grants: &[], state: KeyState::Enabled, ..*scene };
    evaluate(&scene, request).verdict != Verdict::Allowed
}

/// The groups in order, or none where they are unknown; not copied where no rule looks at them.
fn sorted_groups(scene: &Scene<'_>, principal: &Principal) -> Option<Vec<u32>> {
    match &principal.groups {
        Groups::Unknown => None,
        Groups::Known(_) if !scene.uses_groups() => Some(Vec::new()),
        Groups::Known(groups) => {
            let mut groups = groups.clone();
            groups.sort_unstable();
            groups.dedup();
            Some(groups)
        }
    }
}

/// Policies and grants: the reason to allow, or the reason to deny.
fn permit(scene: &Scene<'_>, request: &Request<'_>, facts: &Facts<'_>) -> Result<Reason, Reason> {
    let own = Scan::of(scene.policy, scene.bindings, Document::Policy, scene, request.action, facts)?;
    let account = match scene.account {
        Some((policy, bindings)) => {
            Some(Scan::of(policy, bindings, Document::StorePolicy, scene, request.action, facts)?)
        }
        None => None,
    };
    if let Some(statement) = own.allow {
        return Ok(Reason::AllowedBy(statement));
    }
    let mut missing = own.near;
    if let Some(by) = own.delegate {
        match account.and_then(|account| account.allow) {
            Some(to) => return Ok(Reason::Delegated { by, to }),
            None => missing = missing.or(Some(Missing::StorePolicy(by))),
        }
    }
    for grant in scene.grants {
        match grant.permits(request, facts) {
            Ok(true) => return Ok(Reason::Granted { id: grant.id.clone() }),
            Ok(false) => {}
            Err(near) => missing = missing.or(Some(near)),
        }
    }
    Err(Reason::NotAllowed(missing.unwrap_or(Missing::Statement)))
}

/// What one document says of a request that it does not deny.
#[derive(Default)]
struct Scan {
    allow: Option<StatementRef>,
    delegate: Option<StatementRef>,
    near: Option<Missing>,
}

impl Scan {
    fn of(
        policy: &Policy,
        bindings: &Bindings,
        document: Document,
        scene: &Scene<'_>,
        action: Action,
        facts: &Facts<'_>,
    ) -> Result<Self, Reason> {
        let mut scan = Self::default();
        let mut possible = None;
        for (index, statement) in policy.statements().iter().enumerate() {
            if !statement.actions.contains(action) {
                continue;
            }
            let name = || StatementRef { document, number: index + 1, sid: statement.sid.clone() };
            match statement.effect {
                Effect::Deny => {
                    let matched = match statement.speaks_of(bindings, facts) {
                        Truth::No => Truth::No,
                        spoken_of @ (Truth::Unknown | Truth::Yes) => {
                            spoken_of.min(statement.applies(scene.resource, facts))
                        }
                    };
                    match matched {
                        Truth::No => {}
                        Truth::Unknown => possible = possible.or_else(|| Some(name())),
                        Truth::Yes => return Err(Reason::DeniedBy { statement: name(), unknown: false }),
                    }
                }
                Effect::Allow => scan.allow(statement, bindings, scene.resource, facts, name),
            }
        }
        match possible {
            Some(statement) => Err(Reason::DeniedBy { statement, unknown: true }),
            None => Ok(scan),
        }
    }

    fn allow(
        &mut self,
        statement: &Statement,
        bindings: &Bindings,
        resource: &[&str],
        facts: &Facts<'_>,
        name: impl Fn() -> StatementRef,
    ) {
        if self.allow.is_some() {
            return;
        }
        let spoken_of = statement.speaks_of(bindings, facts);
        let delegates = statement.delegates();
        if spoken_of == Truth::No && !delegates {
            return;
        }
        let applies = statement.applies(resource, facts);
        match (spoken_of, applies) {
            (Truth::Yes, Truth::Yes) => self.allow = Some(name()),
            (_, Truth::Yes) if delegates => {
                self.delegate.get_or_insert_with(&name);
            }
            (Truth::Unknown, Truth::Yes | Truth::Unknown) | (_, Truth::Unknown) => {
                self.near.get_or_insert_with(|| Missing::Knowledge(name()));
            }
            (Truth::Yes, Truth::No) => {
                self.near.get_or_insert_with(|| Missing::Condition(name()));
            }
            (Truth::No | Truth::Unknown, _) => {}
        }
    }
}

impl Statement {
    /// Whether it speaks of the asker, by himself: in a Deny the account is everyone in it, and as an exception from
    /// one it is nobody.
    fn speaks_of(&self, bindings: &Bindings, facts: &Facts<'_>) -> Truth {
        if self.effect == Effect::Deny && self.principals.account && !self.inverted {
            return Truth::Yes;
        }
        let included = self.principals.include(&facts.asker, bindings);
        if self.inverted { !included } else { included }
    }

    const fn delegates(&self) -> bool {
        self.principals.account && !self.inverted
    }
}

impl Grant {
    /// Whether decisions by it differ between contexts.
    #[must_use]
    pub const fn is_constrained(&self) -> bool {
        self.context_equals.is_some() || self.context_subset.is_some()
    }

    /// Whether `new` allows nothing that this one does not: no other operation, no other context, no longer.
    /// Source: AWS KMS Developer Guide, 'Granting CreateGrant permission'.
    #[must_use]
    pub fn covers(&self, new: &Self) -> bool {
        let equals = |wanted: &EncryptionContext| new.context_equals.as_ref() == Some(wanted);
        let holds = |wanted: &EncryptionContext| {
            let given = [&new.context_equals, &new.context_subset];
            given.into_iter().flatten().any(|given| is_subset(wanted, given))
        };
        new.operations.is_subset(&self.operations)
            && self.context_equals.as_ref().is_none_or(equals)
            && self.context_subset.as_ref().is_none_or(holds)
            && self.expires.is_none_or(|end| new.expires.is_some_and(|new_end| new_end <= end))
    }

    /// Err where nothing but its expiry or its constraint stands in the way.
    fn permits(&self, request: &Request<'_>, facts: &Facts<'_>) -> Result<bool, Missing> {
        let is_grantee = match self.grantee {
            Grantee::Uid(uid) => Truth::from(uid == facts.asker.uid),
            Grantee::Gid(gid) => facts.asker.is_in(gid),
        };
        if is_grantee != Truth::Yes || !self.operations.contains(&request.action) || !is_grantable(request.action) {
            return Ok(false);
        }
        if self.expires.is_some_and(|expires| request.now >= expires) {
            return Err(Missing::GrantExpired { id: self.id.clone() });
        }
        let constraint_holds = if request.action.is_cryptographic() {
            self.context_holds(request.context)
        } else {
            request.action != Action::CreateGrant || !self.is_constrained()
        };
        if constraint_holds { Ok(true) } else { Err(Missing::GrantConstraint { id: self.id.clone() }) }
    }

    fn context_holds(&self, context: &EncryptionContext) -> bool {
        let equal = self.context_equals.as_ref().is_none_or(|wanted| wanted == context);
        let subset = self.context_subset.as_ref().is_none_or(|wanted| is_subset(wanted, context));
        equal && subset
    }
}

fn is_subset(wanted: &EncryptionContext, of: &EncryptionContext) -> bool {
    wanted.pairs().iter().all(|(key, value)| of.pairs().get(key) == Some(value))
}

/// What a key in `state` lets be done with it. Source: AWS KMS Developer Guide, 'Key state table'; of a destroyed key,
/// which AWS no longer has, what is on record can still be read.
pub fn of_state(action: Action, state: KeyState) -> Verdict {
    if !concerns_key(action) {
        return Verdict::Allowed;
    }
    let changes_rotation =
        matches!(action, Action::EnableKeyRotation | Action::DisableKeyRotation | Action::RotateKeyOnDemand);
    let changes_state = matches!(action, Action::EnableKey | Action::DisableKey | Action::ScheduleKeyDeletion);
    let describes = matches!(
        action,
        Action::DescribeKey | Action::GetKeyPolicy | Action::GetKeyRotationStatus | Action::ListGrants
    );
    match state {
        KeyState::Destroyed if describes => Verdict::Allowed,
        KeyState::Destroyed => Verdict::NoKey,
        KeyState::Disabled | KeyState::PendingDeletion if action.is_cryptographic() => Verdict::KeyRevoked,
        KeyState::Disabled if changes_rotation || action == Action::CreateGrant => Verdict::KeyRevoked,
        KeyState::PendingDeletion if changes_rotation || changes_state => Verdict::InvalidState,
        KeyState::PendingDeletion if matches!(action, Action::CreateGrant | Action::UpdateKeyDescription) => {
            Verdict::InvalidState
        }
        KeyState::Enabled | KeyState::Disabled if action == Action::CancelKeyDeletion => Verdict::InvalidState,
        KeyState::Enabled | KeyState::Disabled | KeyState::PendingDeletion => Verdict::Allowed,
    }
}

/// Whether the action is done to an existing key, rather than to the store or a table.
const fn concerns_key(action: Action) -> bool {
    !matches!(
        action,
        Action::CreateKey
            | Action::ListKeys
            | Action::CreateTable
            | Action::UpdateTable
            | Action::DescribeTable
            | Action::ListTables
            | Action::ReadAudit
            | Action::GetStorePolicy
            | Action::PutStorePolicy
            | Action::ReadStats
            | Action::ResetClock
    )
}

impl Reason {
    /// Whether it is a grant, and no statement, that this speaks of.
    pub const fn names_a_grant(&self) -> bool {
        matches!(
            self,
            Self::Granted { .. } | Self::NotAllowed(Missing::GrantExpired { .. } | Missing::GrantConstraint { .. })
        )
    }
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allowed
    }

    /// The decision in words, without what only those who may read the policy are to know: Sids, statement numbers
    /// and grant ids, and whether it was close.
    pub fn public_text(&self) -> String {
        let why = match &self.reason {
            Reason::AllowedBy(_) => "by the policy",
            Reason::Delegated { .. } => "by the store policy",
            Reason::Granted { .. } => "by a grant",
            Reason::DeniedBy { .. } | Reason::NotAllowed(_) => "the policy does not allow it",
            Reason::State(state) => return format!("{}: the key is {state}", self.verdict),
            Reason::NoIdentity => "the caller has no uid",
        };
        format!("{}: {why}", self.verdict)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.verdict, self.reason)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::KeyRevoked => "key revoked",
            Self::NoKey => "no key",
            Self::InvalidState => "invalid key state",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delegated { by, to } => write!(f, "by {to}, to which {by} delegates"),
            Self::Granted { id } => write!(f, "by grant {id}"),
            Self::AllowedBy(statement) | Self::DeniedBy { statement, unknown: false } => write!(f, "by {statement}"),
            Self::DeniedBy { statement, unknown: true } => {
                write!(f, "by {statement}, which could not be ruled out")
            }
            Self::NotAllowed(missing) => missing.fmt(f),
            Self::State(state) => write!(f, "the key is {state}"),
            Self::NoIdentity => f.write_str("the caller has no uid"),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Statement => f.write_str("no statement and no grant allows it"),
            Self::Condition(statement) => write!(f, "a condition or the resource of {statement} does not hold"),
            Self::Knowledge(statement) => {
                write!(f, "{statement} depends on a name, group or value that is not known")
            }
            Self::StorePolicy(statement) => {
                write!(f, "{statement} delegates to the store policy, which does not allow it")
            }
            Self::GrantExpired { id } => write!(f, "grant {id} has expired"),
            Self::GrantConstraint { id } => write!(f, "the constraint of grant {id} does not hold"),
        }
    }
}

impl fmt::Display for StatementRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let document = match self.document {
            Document::Policy => "policy",
            Document::StorePolicy => "store policy",
        };
        match &self.sid {
            Some(sid) => write!(f, "statement {sid:?} of the {document}"),
            None => write!(f, "statement {} of the {document}", self.number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const NOW: i64 = 1_800_000_000;

    fn bindings() -> Bindings {
        Bindings {
            users: BTreeMap::from([("alice".to_owned(), 1001), ("bob".to_owned(), 1002)]),
            groups: BTreeMap::from([("finance".to_owned(), 2000)]),
        }
    }

    /// A document of statements given as `EFFECT|PRINCIPAL|ACTION|CONDITION`, the Sid being the number as a word.
    fn policy(statements: &[&str]) -> Policy {
        const SIDS: [&str; 5] = ["one", "two", "three", "four", "five"];
        let list: Vec<String> = statements
            .iter()
            .zip(SIDS)
            .map(|(text, sid)| {
                let part: Vec<&str> = text.split('|').collect();
                let condition = part.get(3).map_or_else(String::new, |text| format!(",\"Condition\":{text}"));
                let principal = part[1].strip_prefix('!').map_or_else(
                    || format!("\"Principal\":{}", part[1]),
                    |rest| format!("\"NotPrincipal\":{rest}"),
                );
                format!(
                    "{{\"Sid\":\"{sid}\",\"Effect\":\"{}\",{principal},\"Action\":\"{}\",\"Resource\":\"*\"{condition}}}",
                    part[0], part[2]
                )
            })
            .collect();
        Policy::parse(&format!("{{\"Version\":\"2012-10-17\",\"Statement\":[{}]}}", list.join(","))).unwrap()
    }

    fn who(uid: u32, groups: Groups) -> Principal {
        Principal { uid, gid: 100, groups }
    }

    fn alice() -> Principal {
        who(1001, Groups::Known(vec![2000]))
    }

    struct Case {
        policy: Policy,
        account: Option<Policy>,
        grants: Vec<Grant>,
        state: KeyState,
        resource: Vec<&'static str>,
        context: EncryptionContext,
        username: Option<&'static str>,
        now: i64,
    }

    impl Case {
        fn new(statements: &[&str]) -> Self {
            Self {
                policy: policy(statements),
                account: None,
                grants: Vec::new(),
                state: KeyState::Enabled,
                resource: Vec::new(),
                context: EncryptionContext::of_item("orders", b"1.json"),
                username: Some("alice"),
                now: NOW,
            }
        }

        fn decide(&self, principal: &Principal, action: Action) -> Decision {
            let bindings = bindings();
            let scene = Scene {
                policy: &self.policy,
                bindings: &bindings,
                account: self.account.as_ref().map(|policy| (policy, &bindings)),
                grants: &self.grants,
                state: self.state,
                resource: &self.resource,
            };
            let request = Request {
                action,
                principal,
                context: &self.context,
                direct: false,
                username: self.username,
                now: self.now,
            };
            evaluate(&scene, &request)
        }

        fn says(&self, principal: &Principal, action: Action) -> String {
            self.decide(principal, action).to_string()
        }
    }

    fn grant(grantee: Grantee, operations: &[Action]) -> Grant {
        Grant {
            id: "g1".to_owned(),
            grantee,
            operations: operations.iter().copied().collect(),
            context_equals: None,
            context_subset: None,
            expires: None,
        }
    }

    #[test]
    fn deny_wins_then_allow_then_nothing() {
        let mut case = Case::new(&[r#"Allow|{"Unix":["alice","bob"]}|kms:Decrypt"#, r#"Deny|{"Unix":"bob"}|kms:*"#]);
        case.grants = vec![grant(Grantee::Uid(1002), &[Action::Decrypt])];
        assert_eq!(case.says(&alice(), Action::Decrypt), "allowed: by statement \"one\" of the policy");
        assert_eq!(
            case.says(&who(1002, Groups::Known(vec![])), Action::Decrypt),
            "denied: by statement \"two\" of the policy"
        );
        let nothing = "denied: no statement and no grant allows it";
        assert_eq!(case.says(&alice(), Action::Encrypt), nothing);
        assert_eq!(case.says(&who(0, Groups::Known(vec![])), Action::Decrypt), nothing);
    }

    #[test]
    fn names_count_as_the_ids_they_were_bound_to() {
        let case = Case::new(&[r#"Allow|{"Unix":["alice","group:finance","uid:7","gid:8"]}|kms:Decrypt"#]);
        let allowed = |uid, groups| case.decide(&who(uid, Groups::Known(groups)), Action::Decrypt).is_allowed();
        assert!(allowed(1001, vec![]));
        assert!(!allowed(1002, vec![]));
        assert!(allowed(1002, vec![5, 9000, 2000, 3]));
        assert!(allowed(7, vec![]));
        assert!(allowed(9, vec![8]));
        assert!(!case.decide(&who(u32::MAX, Groups::Known(vec![2000])), Action::Decrypt).is_allowed());
        // The user name that the caller has looked up does not make the principal.
        let mut case = case;
        case.username = Some("alice");
        assert!(!case.decide(&who(1003, Groups::Known(vec![])), Action::Decrypt).is_allowed());
    }

    #[test]
    fn an_unbound_name_allows_nobody_and_denies_everybody() {
        let case = Case::new(&[r#"Allow|{"Unix":["carol","alice"]}|kms:Decrypt"#]);
        assert!(case.decide(&alice(), Action::Decrypt).is_allowed());
        assert_eq!(
            case.says(&who(1003, Groups::Known(vec![])), Action::Decrypt),
            "denied: statement \"one\" of the policy depends on a name, group or value that is not known"
        );
        let case = Case::new(&[r#"Allow|"*"|kms:*"#, r#"Deny|{"Unix":"group:ghosts"}|kms:Decrypt"#]);
        let by = "denied: by statement \"two\" of the policy, which could not be ruled out";
        assert_eq!(case.says(&alice(), Action::Decrypt), by);
        assert!(case.decide(&alice(), Action::Encrypt).is_allowed());
        for effect in ["Allow", "Deny"] {
            let case =
                Case::new(&[r#"Allow|{"Unix":"uid:1"}|kms:*"#, &format!(r#"{effect}|!{{"Unix":"carol"}}|kms:*"#)]);
            assert!(!case.decide(&alice(), Action::Decrypt).is_allowed(), "{effect}");
        }
    }

    #[test]
    fn unknown_groups_allow_nothing_and_deny_everything() {
        let unknown = who(1001, Groups::Unknown);
        for principal in [r#"{"Unix":"group:finance"}"#, r#"{"Unix":"gid:100"}"#] {
            let case = Case::new(&[&format!("Allow|{principal}|kms:*")]);
            assert!(!case.decide(&unknown, Action::Decrypt).is_allowed(), "{principal}");
            let case = Case::new(&[r#"Allow|"*"|kms:*"#, &format!("Deny|{principal}|kms:*")]);
            assert!(!case.decide(&unknown, Action::Decrypt).is_allowed(), "{principal}");
            let case = Case::new(&[r#"Allow|"*"|kms:*"#, &format!("Deny|!{principal}|kms:*")]);
            assert!(!case.decide(&unknown, Action::Decrypt).is_allowed(), "{principal}");
            let case = Case::new(&[&format!("Allow|!{principal}|kms:*")]);
            assert!(!case.decide(&unknown, Action::Decrypt).is_allowed(), "{principal}");
        }
        for condition in [
            r#"{"NumericEquals":{"kmsfs:Gid":100}}"#,
            r#"{"NumericNotEquals":{"kmsfs:Gid":100}}"#,
            r#"{"ForAnyValue:NumericEquals":{"kmsfs:Groups":5}}"#,
            r#"{"ForAllValues:NumericNotEquals":{"kmsfs:Groups":5}}"#,
        ] {
            let case = Case::new(&[&format!(r#"Allow|"*"|kms:*|{condition}"#)]);
            assert!(!case.decide(&unknown, Action::Decrypt).is_allowed(), "{condition}");
            let case = Case::new(&[r#"Allow|"*"|kms:*"#, &format!(r#"Deny|"*"|kms:*|{condition}"#)]);
            assert!(!case.decide(&unknown, Action::Decrypt).is_allowed(), "{condition}");
        }
        let mut case = Case::new(&[r#"Allow|{"Unix":"alice"}|kms:Encrypt"#]);
        case.grants = vec![grant(Grantee::Gid(100), &[Action::Decrypt])];
        assert!(!case.decide(&unknown, Action::Decrypt).is_allowed());
        assert!(case.decide(&alice(), Action::Decrypt).is_allowed());
        assert!(case.decide(&unknown, Action::Encrypt).is_allowed());
    }

    #[test]
    fn a_certain_deny_is_told_before_a_possible_one() {
        let case = Case::new(&[r#"Deny|{"Unix":"carol"}|kms:*"#, r#"Deny|{"Unix":"alice"}|kms:*"#]);
        assert_eq!(case.says(&alice(), Action::Decrypt), "denied: by statement \"two\" of the policy");
    }

    #[test]
    fn the_account_is_the_store_policy() {
        let root = r#"Allow|{"AWS":"arn:aws:iam::111122223333:root"}|kms:*"#;
        let mut case = Case::new(&[root]);
        assert_eq!(
            case.says(&alice(), Action::DescribeKey),
            "denied: statement \"one\" of the policy delegates to the store policy, which does not allow it"
        );
        case.account = Some(policy(&[r#"Allow|{"Unix":"alice"}|kms:Describe*"#]));
        assert_eq!(
            case.says(&alice(), Action::DescribeKey),
            "allowed: by statement \"one\" of the store policy, to which statement \"one\" of the policy delegates"
        );
        assert!(!case.decide(&alice(), Action::Decrypt).is_allowed());
        assert!(!case.decide(&who(1002, Groups::Known(vec![])), Action::DescribeKey).is_allowed());
        // What the policy does not delegate, the store policy does not allow.
        let mut case = Case::new(&[r#"Allow|{"AWS":"111122223333"}|kms:Get*"#]);
        case.account = Some(policy(&[r#"Allow|{"Unix":"alice"}|kms:*"#]));
        assert!(case.decide(&alice(), Action::GetKeyPolicy).is_allowed());
        assert!(!case.decide(&alice(), Action::DescribeKey).is_allowed());
        // The account delegates to nobody further.
        let mut case = Case::new(&[root]);
        case.account = Some(policy(&[root]));
        assert!(!case.decide(&alice(), Action::DescribeKey).is_allowed());
    }

    #[test]
    fn the_store_policy_denies_whatever_the_policy_says() {
        let mut case = Case::new(&[r#"Allow|{"Unix":"alice"}|kms:*"#]);
        case.grants = vec![grant(Grantee::Uid(1001), &[Action::Decrypt])];
        case.account = Some(policy(&[r#"Deny|{"Unix":"alice"}|kms:Decrypt"#]));
        assert_eq!(case.says(&alice(), Action::Decrypt), "denied: by statement \"one\" of the store policy");
        assert!(case.decide(&alice(), Action::Encrypt).is_allowed());
    }

    #[test]
    fn the_account_in_a_deny_is_everyone_and_exempts_nobody() {
        let case = Case::new(&[r#"Allow|"*"|kms:*"#, r#"Deny|{"AWS":"111122223333"}|kms:Decrypt"#]);
        assert!(!case.decide(&alice(), Action::Decrypt).is_allowed());
        let case = Case::new(&[
            r#"Allow|"*"|kms:*"#,
            r#"Deny|!{"AWS":["arn:aws:iam::111122223333:root","arn:aws:iam::111122223333:user/bob"]}|kms:Decrypt"#,
        ]);
        assert!(!case.decide(&alice(), Action::Decrypt).is_allowed());
        assert!(case.decide(&who(1002, Groups::Known(vec![])), Action::Decrypt).is_allowed());
        let case = Case::new(&[r#"Allow|!{"Unix":"bob"}|kms:*"#]);
        assert!(case.decide(&alice(), Action::Decrypt).is_allowed());
        assert!(!case.decide(&who(1002, Groups::Known(vec![])), Action::Decrypt).is_allowed());
    }

    #[test]
    fn roles_and_services_are_nobody() {
        for nobody in [
            r#"{"AWS":"arn:aws:iam::111122223333:role/alice"}"#,
            r#"{"AWS":"arn:aws:sts::111122223333:assumed-role/x/alice"}"#,
            r#"{"Service":"*"}"#,
            r#"{"Federated":"*"}"#,
            r#"{"Unix":[]}"#,
        ] {
            let case = Case::new(&[&format!("Allow|{nobody}|kms:*")]);
            assert!(!case.decide(&alice(), Action::Decrypt).is_allowed(), "{nobody}");
            let case = Case::new(&[r#"Allow|"*"|kms:*"#, &format!("Deny|{nobody}|kms:*")]);
            assert!(case.decide(&alice(), Action::Decrypt).is_allowed(), "{nobody}");
        }
    }

    #[test]
    fn a_condition_that_fails_is_named() {
        let late = r#"Allow|{"Unix":"alice"}|kms:*|{"DateLessThan":{"aws:CurrentTime":"2026-01-01"}}"#;
        let mut case = Case::new(&[late]);
        assert_eq!(
            case.says(&alice(), Action::Decrypt),
            "denied: a condition or the resource of statement \"one\" of the policy does not hold"
        );
        case.now = 0;
        assert!(case.decide(&alice(), Action::Decrypt).is_allowed());
    }

    #[test]
    fn an_unknown_user_name_allows_nothing_and_denies_everything() {
        for condition in [
            r#"{"StringEquals":{"aws:username":"alice"}}"#,
            r#"{"StringNotEquals":{"aws:username":"bob"}}"#,
            r#"{"StringLike":{"kms:EncryptionContext:kmsfs:item":"${aws:username}*"}}"#,
        ] {
            let mut case = Case::new(&[&format!(r#"Allow|"*"|kms:*|{condition}"#)]);
            case.username = None;
            assert!(!case.decide(&alice(), Action::Decrypt).is_allowed(), "{condition}");
            let mut case = Case::new(&[r#"Allow|"*"|kms:*"#, &format!(r#"Deny|"*"|kms:*|{condition}"#)]);
            case.username = None;
            assert!(!case.decide(&alice(), Action::Decrypt).is_allowed(), "{condition}");
        }
    }

    #[test]
    fn resources_are_compared_by_their_last_field() {
        let text = |member: &str, arn: &str, effect: &str| {
            format!(
                "{{\"Statement\":[{{\"Effect\":\"Allow\",\"Principal\":\"*\",\"Action\":\"kms:Encrypt\",\"Resource\":\"*\"}},\
                 {{\"Effect\":\"{effect}\",\"Principal\":\"*\",\"Action\":\"kms:*\",\"{member}\":\"{arn}\"}}]}}"
            )
        };
        let arn = "arn:aws:kms:eu-west-1:111122223333:key/orders*";
        for (member, effect, resource, decrypt, encrypt) in [
            ("Resource", "Allow", &["key/00", "key/orders-eu"][..], true, true),
            ("Resource", "Allow", &["key/bills"], false, true),
            ("Resource", "Allow", &["table/orders"], false, true),
            ("Resource", "Allow", &[], false, true),
            ("NotResource", "Allow", &["key/orders"], false, true),
            ("NotResource", "Allow", &["key/bills"], true, true),
            ("NotResource", "Allow", &[], false, true),
            ("Resource", "Deny", &["key/orders"], false, false),
            ("Resource", "Deny", &["key/bills"], false, true),
            ("Resource", "Deny", &[], false, false),
            ("NotResource", "Deny", &[], false, false),
        ] {
            let mut case = Case::new(&[r#"Allow|"*"|kms:*"#]);
            case.policy = Policy::parse(&text(member, arn, effect)).unwrap();
            case.resource = resource.to_vec();
            let said = |action| case.decide(&alice(), action).is_allowed();
            assert_eq!(said(Action::Decrypt), decrypt, "{member} {effect} {resource:?}");
            assert_eq!(said(Action::Encrypt), encrypt, "{member} {effect} {resource:?}");
        }
    }

    #[test]
    fn a_grant_allows_its_operations_to_its_grantee_until_it_expires() {
        let mut case = Case::new(&[r#"Allow|{"Unix":"uid:1"}|kms:*"#]);
        case.grants = vec![grant(Grantee::Uid(1001), &[Action::Decrypt, Action::PutKeyPolicy])];
        assert_eq!(case.says(&alice(), Action::Decrypt), "allowed: by grant g1");
        assert!(!case.decide(&alice(), Action::Encrypt).is_allowed());
        assert!(!case.decide(&alice(), Action::PutKeyPolicy).is_allowed(), "not grantable");
        assert!(!case.decide(&who(1002, Groups::Known(vec![])), Action::Decrypt).is_allowed());
        case.grants[0].expires = Some(NOW + 1);
        assert!(case.decide(&alice(), Action::Decrypt).is_allowed());
        case.grants[0].expires = Some(NOW);
        assert_eq!(case.says(&alice(), Action::Decrypt), "denied: grant g1 has expired");
        case.grants[0] = grant(Grantee::Gid(2000), &[Action::Decrypt]);
        assert!(case.decide(&alice(), Action::Decrypt).is_allowed());
        assert!(!case.decide(&who(1001, Groups::Known(vec![])), Action::Decrypt).is_allowed());
    }

    #[test]
    fn a_grant_is_bound_to_its_context() {
        let context = |pairs: &[(&str, &str)]| {
            EncryptionContext::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
        };
        let operations = [Action::Decrypt, Action::DescribeKey, Action::CreateGrant, Action::RetireGrant];
        let mut case = Case::new(&[r#"Allow|{"Unix":"uid:1"}|kms:*"#]);
        case.grants = vec![grant(Grantee::Uid(1001), &operations)];
        assert!(case.decide(&alice(), Action::CreateGrant).is_allowed());
        case.grants[0].context_subset = Some(context(&[("kmsfs:table", "orders")]));
        assert!(case.decide(&alice(), Action::Decrypt).is_allowed());
        assert!(!case.decide(&alice(), Action::CreateGrant).is_allowed());
        case.grants[0].context_subset = Some(context(&[("kmsfs:table", "bills")]));
        assert_eq!(case.says(&alice(), Action::Decrypt), "denied: the constraint of grant g1 does not hold");
        assert!(case.decide(&alice(), Action::DescribeKey).is_allowed());
        assert!(case.decide(&alice(), Action::RetireGrant).is_allowed());
        case.grants[0].context_subset = None;
        case.grants[0].context_equals = Some(context(&[("kmsfs:table", "orders")]));
        assert!(!case.decide(&alice(), Action::Decrypt).is_allowed());
        case.grants[0].context_equals = Some(EncryptionContext::of_item("orders", b"1.json"));
        assert!(case.decide(&alice(), Action::Decrypt).is_allowed());
        // Case counts here, as in AWS KMS.
        case.grants[0].context_equals = None;
        case.grants[0].context_subset = Some(context(&[("KMSFS:table", "orders")]));
        assert!(!case.decide(&alice(), Action::Decrypt).is_allowed());
    }

    /// The table of the AWS KMS Developer Guide, 'Key state table', for what kmsfs has, and our own last column.
    #[test]
    fn the_key_state_decides_after_the_policy() {
        use Verdict::{Allowed as Ok, InvalidState as Bad, KeyRevoked as Off, NoKey as No};
        let table: &[(Action, [Verdict; 4])] = &[
            (Action::Decrypt, [Ok, Off, Off, No]),
            (Action::Encrypt, [Ok, Off, Off, No]),
            (Action::GenerateDataKey, [Ok, Off, Off, No]),
            (Action::GenerateDataKeyWithoutPlaintext, [Ok, Off, Off, No]),
            (Action::ReEncryptFrom, [Ok, Off, Off, No]),
            (Action::ReEncryptTo, [Ok, Off, Off, No]),
            (Action::DescribeKey, [Ok, Ok, Ok, Ok]),
            (Action::GetKeyPolicy, [Ok, Ok, Ok, Ok]),
            (Action::PutKeyPolicy, [Ok, Ok, Ok, No]),
            (Action::EnableKey, [Ok, Ok, Bad, No]),
            (Action::DisableKey, [Ok, Ok, Bad, No]),
            (Action::ScheduleKeyDeletion, [Ok, Ok, Bad, No]),
            (Action::CancelKeyDeletion, [Bad, Bad, Ok, No]),
            (Action::EnableKeyRotation, [Ok, Off, Bad, No]),
            (Action::DisableKeyRotation, [Ok, Off, Bad, No]),
            (Action::GetKeyRotationStatus, [Ok, Ok, Ok, Ok]),
            (Action::RotateKeyOnDemand, [Ok, Off, Bad, No]),
            (Action::UpdateKeyDescription, [Ok, Ok, Bad, No]),
            (Action::CreateGrant, [Ok, Off, Bad, No]),
            (Action::ListGrants, [Ok, Ok, Ok, Ok]),
            (Action::RevokeGrant, [Ok, Ok, Ok, No]),
            (Action::RetireGrant, [Ok, Ok, Ok, No]),
            (Action::CreateKey, [Ok, Ok, Ok, Ok]),
            (Action::ListKeys, [Ok, Ok, Ok, Ok]),
            (Action::CreateTable, [Ok, Ok, Ok, Ok]),
            (Action::UpdateTable, [Ok, Ok, Ok, Ok]),
            (Action::DescribeTable, [Ok, Ok, Ok, Ok]),
            (Action::ListTables, [Ok, Ok, Ok, Ok]),
            (Action::ReadAudit, [Ok, Ok, Ok, Ok]),
            (Action::GetStorePolicy, [Ok, Ok, Ok, Ok]),
            (Action::PutStorePolicy, [Ok, Ok, Ok, Ok]),
            (Action::ReadStats, [Ok, Ok, Ok, Ok]),
            (Action::ResetClock, [Ok, Ok, Ok, Ok]),
        ];
        assert_eq!(table.len(), Action::ALL.len());
        let states = [KeyState::Enabled, KeyState::Disabled, KeyState::PendingDeletion, KeyState::Destroyed];
        let mut case = Case::new(&[r#"Allow|{"Unix":"alice"}|*"#]);
        for (action, verdicts) in table {
            for (state, verdict) in states.into_iter().zip(verdicts) {
                case.state = state;
                assert_eq!(case.decide(&alice(), *action).verdict, *verdict, "{action} {state}");
                // Whoever is not allowed does not learn the state.
                let stranger = case.says(&who(9, Groups::Known(vec![])), *action);
                assert_eq!(stranger, "denied: no statement and no grant allows it");
            }
        }
        case.state = KeyState::Disabled;
        assert_eq!(case.says(&alice(), Action::Decrypt), "key revoked: the key is Disabled");
    }

    #[test]
    fn an_editor_who_would_lock_himself_out_is_told() {
        let asks = |statements: &[&str], account: Option<&[&str]>, grants: &[Grant], state| {
            let (own, account, bindings) = (policy(statements), account.map(policy), bindings());
            let account = account.as_ref().map(|policy| (policy, &bindings));
            let scene = Scene { policy: &own, bindings: &bindings, account, grants, state, resource: &[] };
            let (principal, context) = (alice(), EncryptionContext::default());
            let action = Action::PutKeyPolicy;
            let request = Request {
                action,
                principal: &principal,
                context: &context,
                direct: false,
                username: Some("alice"),
                now: NOW,
            };
            would_lock_out(&scene, &request)
        };
        let enabled = KeyState::Enabled;
        assert!(!asks(&[r#"Allow|{"Unix":"alice"}|kms:Put*"#], None, &[], enabled));
        assert!(!asks(&[r#"Allow|{"Unix":"alice"}|kms:Put*"#], None, &[], KeyState::Destroyed));
        assert!(!asks(&[r#"Allow|{"Unix":"group:finance"}|kms:*"#], None, &[], enabled));
        assert!(asks(&[r#"Allow|{"Unix":"alice"}|kms:Decrypt"#], None, &[], enabled));
        assert!(asks(&[r#"Allow|{"Unix":"bob"}|kms:*"#], None, &[], enabled));
        assert!(asks(&[r#"Allow|"*"|kms:*"#, r#"Deny|{"Unix":"alice"}|kms:Put*"#], None, &[], enabled));
        let root = r#"Allow|{"AWS":"111122223333"}|kms:*"#;
        assert!(asks(&[root], None, &[], enabled));
        assert!(!asks(&[root], Some(&[r#"Allow|{"Unix":"alice"}|kms:*"#]), &[], enabled));
        let all: Vec<Action> = Action::ALL.to_vec();
        assert!(asks(&[r#"Allow|{"Unix":"bob"}|kms:*"#], None, &[grant(Grantee::Uid(1001), &all)], enabled));
    }

    #[test]
    fn a_scene_tells_what_its_decisions_depend_on() {
        let bindings = bindings();
        let facts = |statements: &[&str], account: &[&str], grants: &[Grant]| {
            let (own, account) = (policy(statements), policy(account));
            let account = Some((&account, &bindings));
            let state = KeyState::Enabled;
            let scene = Scene { policy: &own, bindings: &bindings, account, grants, state, resource: &[] };
            (scene.uses_groups(), scene.depends_on_time(), scene.tests_context(), scene.uses_username())
        };
        let plain = &[r#"Allow|{"Unix":"alice"}|kms:*"#][..];
        assert_eq!(facts(plain, plain, &[]), (false, false, false, false));
        let group = &[r#"Deny|{"Unix":"group:finance"}|kms:*"#][..];
        assert_eq!(facts(plain, group, &[]), (true, false, false, false));
        let time = &[r#"Allow|"*"|kms:*|{"DateLessThan":{"aws:CurrentTime":"2026-01-01"}}"#][..];
        assert_eq!(facts(time, plain, &[]), (false, true, false, false));
        let name = &[r#"Allow|"*"|kms:*|{"StringLike":{"kms:EncryptionContext:kmsfs:item":"${aws:username}/*"}}"#][..];
        assert_eq!(facts(name, plain, &[]), (false, false, true, true));
        let mut grants = [grant(Grantee::Gid(5), &[])];
        assert_eq!(facts(plain, plain, &grants), (true, false, false, false));
        grants[0] = grant(Grantee::Uid(5), &[]);
        grants[0].expires = Some(7);
        grants[0].context_subset = Some(EncryptionContext::default());
        assert_eq!(facts(plain, plain, &grants), (false, true, true, false));
    }

    #[test]
    fn what_everyone_may_know_names_no_statement() {
        let mut case = Case::new(&[
            r#"Allow|{"Unix":"alice"}|kms:Encrypt"#,
            r#"Deny|{"Unix":"alice"}|kms:Decrypt"#,
            r#"Allow|"*"|kms:Describe*|{"Null":{"aws:username":"true"}}"#,
        ]);
        let public = |case: &Case, action| case.decide(&alice(), action).public_text();
        let denied = "denied: the policy does not allow it";
        assert_eq!(public(&case, Action::Decrypt), denied);
        assert_eq!(public(&case, Action::DescribeKey), denied);
        assert_eq!(public(&case, Action::PutKeyPolicy), denied);
        assert_eq!(public(&case, Action::Encrypt), "allowed: by the policy");
        case.state = KeyState::Destroyed;
        assert_eq!(public(&case, Action::Encrypt), "no key: the key is Destroyed");
    }

    /// The real thing: what the AWS console writes, with Unix users in its ARNs.
    const CONSOLE_POLICY: &str = r#"{
    "Version": "2012-10-17",
    "Id": "key-consolepolicy-3",
    "Statement": [
        {
            "Sid": "Enable IAM User Permissions",
            "Effect": "Allow",
            "Principal": {
                "AWS": "arn:aws:iam::111122223333:root"
            },
            "Action": "kms:*",
            "Resource": "*"
        },
        {
            "Sid": "Allow access for Key Administrators",
            "Effect": "Allow",
            "Principal": {
                "AWS": [
                    "arn:aws:iam::111122223333:user/bob",
                    "arn:aws:iam::111122223333:role/KMSAdminRole"
                ]
            },
            "Action": [
                "kms:Create*",
                "kms:Describe*",
                "kms:Enable*",
                "kms:List*",
                "kms:Put*",
                "kms:Update*",
                "kms:Revoke*",
                "kms:Disable*",
                "kms:Get*",
                "kms:Delete*",
                "kms:TagResource",
                "kms:UntagResource",
                "kms:ScheduleKeyDeletion",
                "kms:CancelKeyDeletion",
                "kms:RotateKeyOnDemand"
            ],
            "Resource": "*"
        },
        {
            "Sid": "Allow use of the key",
            "Effect": "Allow",
            "Principal": {
                "AWS": "arn:aws:iam::111122223333:user/staff/alice"
            },
            "Action": [
                "kms:Encrypt",
                "kms:Decrypt",
                "kms:ReEncrypt*",
                "kms:GenerateDataKey*",
                "kms:DescribeKey"
            ],
            "Resource": "*"
        },
        {
            "Sid": "Allow attachment of persistent resources",
            "Effect": "Allow",
            "Principal": {
                "AWS": "arn:aws:iam::111122223333:user/staff/alice"
            },
            "Action": [
                "kms:CreateGrant",
                "kms:ListGrants",
                "kms:RevokeGrant"
            ],
            "Resource": "*",
            "Condition": {
                "Bool": {
                    "kms:GrantIsForAWSResource": "true"
                }
            }
        }
    ]
}"#;

    #[test]
    fn the_default_policy_of_the_aws_console_works_unchanged() {
        let mut case = Case::new(&[r#"Allow|"*"|kms:*"#]);
        case.policy = Policy::parse(CONSOLE_POLICY).unwrap();
        case.account = Some(policy(&[r#"Allow|{"Unix":"uid:0"}|kms:Describe*"#]));
        let bob = who(1002, Groups::Known(vec![]));
        let root = who(0, Groups::Known(vec![]));
        assert_eq!(
            case.says(&alice(), Action::Decrypt),
            "allowed: by statement \"Allow use of the key\" of the policy"
        );
        assert!(!case.decide(&alice(), Action::PutKeyPolicy).is_allowed());
        assert_eq!(
            case.decide(&alice(), Action::CreateGrant).reason.to_string(),
            "a condition or the resource of statement \"Allow attachment of persistent resources\" of the policy does not hold"
        );
        assert!(case.decide(&bob, Action::PutKeyPolicy).is_allowed());
        assert!(case.decide(&bob, Action::RotateKeyOnDemand).is_allowed());
        assert!(!case.decide(&bob, Action::Decrypt).is_allowed());
        assert!(case.decide(&root, Action::DescribeKey).is_allowed());
        assert!(!case.decide(&root, Action::Decrypt).is_allowed());
        assert!(!case.decide(&who(1003, Groups::Known(vec![])), Action::DescribeKey).is_allowed());
    }

    #[test]
    fn the_console_policy_takes_and_loses_users() {
        use super::super::{PForm, add_user, remove_user};
        let carol = PForm::Uid(1003);
        let more = add_user(CONSOLE_POLICY, &carol).unwrap();
        assert!(more.contains("user/staff/alice\",\n                \"Unix\": [\"uid:1003\"]"), "{more}");
        let less = remove_user(&more, &PForm::User("alice".to_owned())).unwrap();
        let mut case = Case::new(&[r#"Allow|"*"|kms:*"#]);
        case.policy = Policy::parse(&less).unwrap();
        assert!(!case.decide(&alice(), Action::Decrypt).is_allowed());
        assert!(case.decide(&who(1003, Groups::Known(vec![])), Action::Decrypt).is_allowed());
    }

    #[test]
    fn a_policy_cannot_keep_the_process_busy() {
        let costly = format!(r#"{{"StringLike":{{"kms:EncryptionContext:kmsfs:item":"*{}b"}}}}"#, "a".repeat(3000));
        let started = std::time::Instant::now();
        for effect in ["Allow", "Deny"] {
            let costly = format!(r#"{effect}|"*"|kms:Decrypt|{costly}"#);
            let mut case = Case::new(&[r#"Allow|"*"|kms:Encrypt"#, &costly, &costly, &costly, &costly]);
            case.context = EncryptionContext::of_item("orders", "a".repeat(4095).as_bytes());
            assert!(!case.decide(&alice(), Action::Decrypt).is_allowed());
            assert!(case.decide(&alice(), Action::Encrypt).is_allowed());
        }
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }

    /// The bound is for a release build; the longest documents are decided well within it.
    #[test]
    fn a_document_full_of_statements_is_decided_quickly() {
        let one = |name: usize| {
            format!(
                "{{\"Effect\":\"Deny\",\"Principal\":{{\"Unix\":\"u{name}\"}},\"Action\":\"kms:D*\",\"Resource\":\"*\"}}"
            )
        };
        let mut list: Vec<String> = (0..400).map(one).collect();
        list.push(r#"{"Effect":"Allow","Principal":{"Unix":"alice"},"Action":"kms:*","Resource":"*"}"#.to_owned());
        let text = format!("{{\"Statement\":[{}]}}", list.join(","));
        let policy = Policy::parse(&text).unwrap();
        let mut bindings = bindings();
        bindings.users.extend((0_u32..400).map(|n| (format!("u{n}"), 5000 + n)));
        let state = KeyState::Enabled;
        let scene = Scene { policy: &policy, bindings: &bindings, account: None, grants: &[], state, resource: &[] };
        let (principal, context) = (alice(), EncryptionContext::default());
        let action = Action::Decrypt;
        let request =
            Request { action, principal: &principal, context: &context, direct: false, username: None, now: 0 };
        let started = std::time::Instant::now();
        let rounds = 100;
        for _ in 0..rounds {
            assert!(evaluate(&scene, &request).is_allowed());
        }
        let each = started.elapsed() / rounds;
        let bound_us = if cfg!(debug_assertions) { 5_000 } else { 100 };
        println!("{} bytes, {} statements: {each:?}", text.len(), policy.statement_count());
        assert!(each.as_micros() < bound_us, "{each:?}");
    }
}
