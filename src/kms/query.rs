//! Questions about a policy: what it would say to somebody, whom it lets do something, what another document in its place
//! would change (docs/semantics.md, section 14).
//!
//! Each is answered by the same engine, clock, bindings and grants that decide, for accounts as the host's user database
//! has them. Unix rights, the other layer, are no part of an answer. Asking is for those who may read the policy, and
//! changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::decide::{resource_of, scene};
use super::key::{BoundPolicy, Key, KeyNow};
use super::{Kms, KmsError, Subject};
use crate::policy::{Bindings, Grantee, PForm, Policy, Scene};
use crate::sys;
use crate::types::{Action, EncryptionContext, Groups, KeyState, Principal, TableId};

/// Accounts that are gone through; a host has rarely more, and the answer says when it has.
const ACCOUNTS_MOST: usize = 65_536;
/// Nobody's uid: stands for anyone whom neither a policy nor an account names.
const STRANGER: u32 = u32::MAX - 1;

/// What is asked of a key, or of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Query {
    Simulate(Simulate),
    WhoCan(WhoCan),
    /// The document stands behind the line.
    PolicyDiff(PolicyDiff),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "PascalCase")]
pub struct Simulate {
    /// A user, `uid:N`, `group:NAME` or `gid:N`: of a group somebody of whom nothing else is known.
    pub r#as: String,
    pub action: String,
    #[serde(flatten)]
    pub about: About,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "PascalCase")]
pub struct WhoCan {
    pub action: String,
    #[serde(flatten)]
    pub about: About,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "PascalCase")]
pub struct PolicyDiff {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
}

/// What is to be decided about: an item of a table, or a direct call in a context. With neither, the key itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct About {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub encryption_context: BTreeMap<String, String>,
}

/// What decides: a key's policy with what stands beside it, or the store's alone.
struct Ground {
    key: Option<(Arc<Key>, Arc<KeyNow>)>,
    store: Arc<BoundPolicy>,
    resource: Vec<String>,
}

impl Ground {
    fn with<T>(&self, policy: Option<(&Policy, &Bindings)>, ask: impl FnOnce(&Scene<'_>) -> T) -> T {
        let resource: Vec<&str> = self.resource.iter().map(String::as_str).collect();
        let mut scene = match &self.key {
            Some((_, now)) => scene(now, Some(&self.store), &[], &resource),
            None => Scene {
                policy: &self.store.policy,
                bindings: &self.store.bindings,
                account: None,
                grants: &[],
                state: KeyState::Enabled,
                resource: &resource,
            },
        };
        if let Some((policy, bindings)) = policy {
            (scene.policy, scene.bindings) = (policy, bindings);
        }
        ask(&scene)
    }

    /// The same with the grants that concern an asker. Of grants of grants, which say something of some grants alone,
    /// nothing is said.
    fn judged<T>(
        &self,
        policy: Option<(&Policy, &Bindings)>,
        (principal, action, context): (&Principal, Action, &EncryptionContext),
        now: i64,
        ask: impl FnOnce(&Scene<'_>) -> T,
    ) -> T {
        let grants = match &self.key {
            Some((key, _)) if !matches!(action, Action::CreateGrant | Action::RetireGrant) => {
                key.grants().concerning(principal, action, context, now)
            }
            Some(_) | None => Vec::new(),
        };
        self.with(policy, |scene| ask(&Scene { grants: &grants, ..*scene }))
    }

    /// Whom the key's grants are given to, beside those whom the policies name.
    fn grantees(&self) -> Vec<Grantee> {
        self.key.as_ref().map_or_else(Vec::new, |(key, _)| key.grants().grantees())
    }

    /// Whether any grant of the key is bound to a context.
    fn grants_test_context(&self) -> bool {
        self.key.as_ref().is_some_and(|(key, _)| key.grants().test_context())
    }

    fn in_force(&self) -> &BoundPolicy {
        self.key.as_ref().map_or(&self.store, |(_, now)| &now.policy)
    }
}

/// Somebody about whom is asked.
struct Account {
    name: Option<String>,
    principal: Principal,
}

impl Account {
    fn is_stranger(&self) -> bool {
        self.principal.uid == STRANGER
    }

    fn described(&self) -> Value {
        let groups = match &self.principal.groups {
            Groups::Known(groups) => json!(groups),
            Groups::Unknown => Value::Null,
        };
        if self.is_stranger() {
            return json!({ "Uid": null, "UserName": null, "Groups": groups });
        }
        json!({ "Uid": self.principal.uid, "UserName": self.name, "Groups": groups })
    }
}

impl Kms {
    /// Answers a question about a key's policy, or without one about the store's.
    pub fn query(
        &self,
        who: &Subject<'_>,
        key: Option<&Arc<Key>>,
        query: &Query,
        document: &[u8],
    ) -> Result<Value, KmsError> {
        match key {
            Some(key) => self.check_key(who, key, Action::GetKeyPolicy)?,
            None => self.check_store(who, Action::GetStorePolicy, "")?,
        }
        if !document.is_empty() && !matches!(query, Query::PolicyDiff(_)) {
            return Err(KmsError::Invalid("only a policy diff takes bytes behind its line".to_owned()));
        }
        match query {
            Query::Simulate(asked) => self.simulate(key, asked),
            Query::WhoCan(asked) => self.who_can(key, asked),
            Query::PolicyDiff(asked) => self.policy_diff(who, key, asked, document),
        }
    }

    fn simulate(&self, key: Option<&Arc<Key>>, asked: &Simulate) -> Result<Value, KmsError> {
        let action = action_named(&asked.action)?;
        let ground = self.ground(key, asked.about.table.as_deref())?;
        let account = account_of(&asked.r#as)?;
        let (context, direct) = self.context_of(key, action, &asked.about)?;
        let asker = (&account.principal, action, &context);
        let decision = ground
            .judged(None, asker, self.now(), |scene| self.judge(scene, &account.principal, action, &context, direct));
        let mut answer = json!({
            "Allowed": decision.is_allowed(),
            "Verdict": decision.verdict.to_string(),
            "Reason": decision.reason.to_string(),
            "As": asked.r#as,
            "Who": account.described(),
            "Action": action.name(),
            "EncryptionContext": context.pairs(),
        });
        if let (Some((_, now)), Some(members)) = (&ground.key, answer.as_object_mut()) {
            members.insert("KeyName".to_owned(), json!(now.record.name));
            members.insert("KeyState".to_owned(), json!(now.state()));
        }
        Ok(answer)
    }

    fn who_can(&self, key: Option<&Arc<Key>>, asked: &WhoCan) -> Result<Value, KmsError> {
        let action = action_named(&asked.action)?;
        let ground = self.ground(key, asked.about.table.as_deref())?;
        let (context, direct) = self.context_of(key, action, &asked.about)?;
        let (accounts, complete) = ground.with(None, |scene| accounts_for(&[scene], &ground.grantees()));
        let mut everyone = Value::Null;
        let mut principals = Vec::new();
        for account in &accounts {
            let asker = (&account.principal, action, &context);
            let decision = ground.judged(None, asker, self.now(), |scene| {
                self.judge(scene, &account.principal, action, &context, direct)
            });
            match (decision.is_allowed(), account.is_stranger()) {
                (false, _) => {}
                (true, true) => everyone = json!(decision.reason.to_string()),
                (true, false) => principals.push(json!({
                    "Uid": account.principal.uid,
                    "UserName": account.name,
                    "Reason": decision.reason.to_string(),
                })),
            }
        }
        Ok(json!({
            "Action": action.name(),
            "EncryptionContext": context.pairs(),
            "Principals": principals,
            "AnyoneElse": everyone,
            "Complete": complete,
        }))
    }

    fn policy_diff(
        &self,
        who: &Subject<'_>,
        key: Option<&Arc<Key>>,
        asked: &PolicyDiff,
        document: &[u8],
    ) -> Result<Value, KmsError> {
        let ground = self.ground(key, None)?;
        let (new, bindings) = parse_document(document, ground.in_force())?;
        let locked_out = match key {
            Some(key) => self.refuse_lock_out(who, key, &new, &bindings),
            None => self.refuse_store_lock_out(who, &new, &bindings),
        }
        .is_err();
        let places = self.places(key, &ground, &new, asked.item.as_deref());
        let (accounts, complete) = ground.with(None, |old| {
            ground.with(Some((&new, &bindings)), |new| accounts_for(&[old, new], &ground.grantees()))
        });
        let mut changes = Vec::new();
        for account in &accounts {
            let allowed = |policy: Option<(&Policy, &Bindings)>, action: Action, place: &Place| {
                let direct = place.direct && action.is_cryptographic();
                let judge = |scene: &Scene<'_>| self.judge(scene, &account.principal, action, &place.context, direct);
                let asker = (&account.principal, action, &place.context);
                ground.judged(policy, asker, self.now(), judge).is_allowed()
            };
            changes.extend(changes_of(account, &places, key.is_some(), |action, place| {
                (allowed(None, action, place), allowed(Some((&new, &bindings)), action, place))
            }));
        }
        Ok(json!({
            "PolicyGeneration": ground.in_force().generation,
            "Changes": changes,
            "LockOut": locked_out,
            "TestsItems": asked.item.is_none()
                && (new.tests_context() || ground.in_force().policy.tests_context() || ground.grants_test_context()),
            "Complete": complete,
        }))
    }

    fn ground(&self, key: Option<&Arc<Key>>, made: Option<&str>) -> Result<Ground, KmsError> {
        let store = self.store_policy()?;
        let Some(key) = key else {
            return Ok(Ground {
                key: None,
                store,
                resource: made.map(|name| format!("table/{name}")).into_iter().collect(),
            });
        };
        let now = key.now().ok_or(KmsError::Tampered)?;
        if now.is_owned() {
            return Err(KmsError::NotFound);
        }
        if key.grants().are_damaged() {
            return Err(KmsError::Tampered);
        }
        let resource = resource_of(key, &now).to_vec();
        Ok(Ground { key: Some((Arc::clone(key), now)), store, resource })
    }

    /// The context of what is asked about, and whether that would be a direct call.
    fn context_of(
        &self,
        key: Option<&Arc<Key>>,
        action: Action,
        about: &About,
    ) -> Result<(EncryptionContext, bool), KmsError> {
        let Some(key) = key else { return Ok((EncryptionContext::default(), false)) };
        if about.item.is_some() && about.table.is_none() {
            return Err(KmsError::Invalid("an item is one of a table: name the table too".to_owned()));
        }
        if !action.is_cryptographic() {
            return Ok((EncryptionContext::default(), false));
        }
        let Some(name) = &about.table else {
            return Ok((EncryptionContext::new(about.encryption_context.clone()), true));
        };
        if !about.encryption_context.is_empty() {
            return Err(KmsError::Invalid(
                "a table's items have a context of their own: give one or the other".to_owned(),
            ));
        }
        let table = self.table_named(name)?;
        if table.key().id() != key.id() {
            return Err(KmsError::Invalid(format!("the table {name} is under another key")));
        }
        Ok((of_table(name, about.item.as_deref()), false))
    }

    /// Where a key is used: in each of its tables, if decisions may differ there, and for itself.
    fn places(&self, key: Option<&Arc<Key>>, ground: &Ground, new: &Policy, item: Option<&str>) -> Vec<Place> {
        let Some(key) = key else { return vec![Place::direct()] };
        let mut tables: Vec<(TableId, String)> = self
            .tables()
            .iter()
            .filter(|table| table.key().id() == key.id())
            .map(|table| (table.id(), table.name()))
            .collect();
        tables.sort_by(|one, other| one.1.cmp(&other.1));
        let mut differ = new.tests_context();
        ground.with(None, |old| differ |= old.tests_context() || ground.grants_test_context());
        let of = |names: Vec<String>, context| Place { tables: names, context, direct: false };
        let mut places = if differ || tables.len() < 2 {
            tables.into_iter().map(|(_, name)| of(vec![name.clone()], of_table(&name, item))).collect()
        } else {
            vec![of(tables.into_iter().map(|(_, name)| name).collect(), EncryptionContext::default())]
        };
        places.push(Place::direct());
        places
    }
}

/// Somewhere a key is used.
struct Place {
    /// None: in direct calls.
    tables: Vec<String>,
    context: EncryptionContext,
    direct: bool,
}

impl Place {
    fn direct() -> Self {
        Self { tables: Vec::new(), context: EncryptionContext::default(), direct: true }
    }
}

/// What one account gains and loses: a row for each set of actions that change in the same places.
fn changes_of(
    account: &Account,
    places: &[Place],
    of_key: bool,
    before_and_after: impl Fn(Action, &Place) -> (bool, bool),
) -> Vec<Value> {
    let mut rows: BTreeMap<(bool, BTreeSet<&str>, bool), Vec<&'static str>> = BTreeMap::new();
    for action in Action::ALL {
        let mut changed: BTreeMap<bool, (BTreeSet<&str>, bool)> = BTreeMap::new();
        // Managing a key is the same wherever it is used.
        let relevant = places.iter().filter(|place| place.direct || of_key && action.is_cryptographic());
        for place in relevant {
            let (before, after) = before_and_after(action, place);
            if before != after {
                let (tables, direct) = changed.entry(after).or_default();
                tables.extend(place.tables.iter().map(String::as_str));
                *direct |= place.direct;
            }
        }
        for (gains, (tables, direct)) in changed {
            let direct = direct && action.is_cryptographic();
            rows.entry((gains, tables, direct)).or_default().push(action.name());
        }
    }
    rows.into_iter()
        .map(|((gains, tables, direct), actions)| {
            json!({
                "Change": if gains { "gains" } else { "loses" },
                "Who": account.described(),
                "Actions": actions,
                "Tables": tables,
                "DirectCalls": direct,
            })
        })
        .collect()
}

fn of_table(table: &str, item: Option<&str>) -> EncryptionContext {
    match item {
        Some(item) => EncryptionContext::of_item(table, item.as_bytes()),
        None => EncryptionContext::new(BTreeMap::from([("kmsfs:table".to_owned(), table.to_owned())])),
    }
}

/// A document as a save would take it.
fn parse_document(document: &[u8], now: &BoundPolicy) -> Result<(Policy, Bindings), KmsError> {
    let new = Policy::parse_bytes(document)?;
    let bindings = super::manage::bind(&new, &now.bindings)?;
    Ok((new, bindings))
}

/// An action by its name, with or without its prefix, in any letter case.
fn action_named(name: &str) -> Result<Action, KmsError> {
    let is = |action: &Action| {
        let full = action.name();
        full.eq_ignore_ascii_case(name)
            || full.split_once(':').is_some_and(|(_, short)| short.eq_ignore_ascii_case(name))
    };
    Action::ALL
        .into_iter()
        .find(is)
        .ok_or_else(|| KmsError::Invalid(format!("no action {name:?}: give one, as kms:Decrypt or kmsfs:CreateTable")))
}

/// Somebody by a principal's form: with the groups that the host gives him.
fn account_of(text: &str) -> Result<Account, KmsError> {
    let unknown = || KmsError::Invalid(format!("no user or group '{text}' on this host"));
    let form = PForm::parse(text).map_err(|error| KmsError::Invalid(error.to_string()))?;
    let of_group =
        |gid| Account { name: None, principal: Principal { uid: STRANGER, gid, groups: Groups::Known(vec![gid]) } };
    Ok(match form {
        PForm::User(name) => of_user(sys::uid_of(&name).ok_or_else(unknown)?, Some(name)),
        PForm::Uid(uid) => of_user(uid, sys::user_name(uid)),
        PForm::Group(name) => of_group(sys::gid_of(&name).ok_or_else(unknown)?),
        PForm::Gid(gid) => of_group(gid),
    })
}

fn of_user(uid: u32, name: Option<String>) -> Account {
    // The primary group comes first; of a uid without an account nothing is known.
    let groups = name.as_deref().and_then(sys::groups_of_user).map_or(Groups::Unknown, Groups::Known);
    let gid = match &groups {
        Groups::Known(groups) => groups.first().copied().unwrap_or(u32::MAX),
        Groups::Unknown => u32::MAX,
    };
    Account { name, principal: Principal { uid, gid, groups } }
}

/// Everybody whom a policy may speak of: the host's accounts, the uids that policies and grants name beside them, and one
/// who is neither. The groups are asked for where they count. False: there are more accounts than are gone through.
fn accounts_for(scenes: &[&Scene<'_>], grantees: &[Grantee]) -> (Vec<Account>, bool) {
    let by_grant = grantees.iter().any(|grantee| matches!(grantee, Grantee::Gid(_)));
    let by_groups = by_grant || scenes.iter().any(|scene| scene.uses_groups());
    let known = sys::all_accounts(ACCOUNTS_MOST);
    let complete = known.len() < ACCOUNTS_MOST;
    let mut named = BTreeSet::from([STRANGER]);
    for scene in scenes {
        let documents = [Some((scene.policy, scene.bindings)), scene.account];
        for (policy, bindings) in documents.into_iter().flatten() {
            named.extend(policy.uids());
            named.extend(bindings.users.values());
        }
    }
    named.extend(grantees.iter().filter_map(|grantee| match grantee {
        Grantee::Uid(uid) => Some(*uid),
        Grantee::Gid(_) => None,
    }));
    let mut accounts = Vec::with_capacity(known.len());
    for account in known {
        named.remove(&account.uid);
        let groups = if by_groups { sys::groups_of_user(&account.name).unwrap_or_default() } else { Vec::new() };
        let principal = Principal { uid: account.uid, gid: account.gid, groups: Groups::Known(groups) };
        accounts.push(Account { name: Some(account.name), principal });
    }
    let no_groups = |uid| {
        let groups = if uid == STRANGER { Groups::Known(Vec::new()) } else { Groups::Unknown };
        Account { name: None, principal: Principal { uid, gid: STRANGER, groups } }
    };
    accounts.extend(named.into_iter().map(no_groups));
    (accounts, complete)
}
