//! A second, naive evaluator, written from AWS's rules and our own over `serde_json::Value`, agrees with the policy
//! engine on every pair of statements from a small alphabet and on generated documents, requests and grants; and no
//! text whatever makes the engine panic.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::wildcard_enum_match_arm,
    reason = "test code: what fails is to fail at once"
)]

use std::collections::{BTreeMap, BTreeSet};

use kmsfs::policy::{
    Bindings, Grant, Grantee, NameKind, PForm, Policy, Progress, Reason, Request, Scene, Verdict, add_user,
    default_key_policy, default_store_policy, evaluate, managed_policy, progress, remove_user,
};
use kmsfs::types::{Action, EncryptionContext, Groups, KeyState, Principal};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Everything that a decision may rest on, as the oracle sees it.
#[derive(Debug, Clone)]
struct World {
    policy: Value,
    account: Option<Value>,
    grants: Vec<Given>,
    uid: u32,
    gid: u32,
    groups: Option<Vec<u32>>,
    username: Option<&'static str>,
    context: BTreeMap<String, String>,
    direct: bool,
    now: i64,
    action: Action,
    state: KeyState,
}

/// A grant of one operation, in the oracle's own words.
#[derive(Debug, Clone)]
struct Given {
    to_group: bool,
    id: u32,
    action: Action,
    expires: Option<i64>,
    /// Whether it must be the whole context, and the pairs.
    bound: Option<(bool, BTreeMap<String, String>)>,
}

const USERS: [(&str, u32); 2] = [("alice", 1001), ("bob", 1002)];
const GROUPS: [(&str, u32); 1] = [("finance", 2000)];

/// The oracle. `None` is 'cannot be known'.
mod oracle {
    use super::{GROUPS, KeyState, USERS, Value, World};

    type Maybe = Option<bool>;

    fn any(list: impl IntoIterator<Item = Maybe>) -> Maybe {
        let list: Vec<Maybe> = list.into_iter().collect();
        if list.contains(&Some(true)) {
            Some(true)
        } else if list.contains(&None) {
            None
        } else {
            Some(false)
        }
    }

    fn not(maybe: Maybe) -> Maybe {
        maybe.map(|value| !value)
    }

    fn all(list: impl IntoIterator<Item = Maybe>) -> Maybe {
        not(any(list.into_iter().map(not)))
    }

    fn list(value: &Value) -> Vec<Value> {
        value.as_array().cloned().unwrap_or_else(|| vec![value.clone()])
    }

    fn glob(pattern: &str, text: &str) -> bool {
        match (pattern.chars().next(), text.chars().next()) {
            (None, None) => true,
            (Some('*'), _) => glob(&pattern[1..], text) || (!text.is_empty() && glob(pattern, &text[1..])),
            (Some(p), Some(t)) if p == '?' || p == t => glob(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    fn is_in(world: &World, gid: u32) -> Maybe {
        world.groups.as_ref().map(|groups| groups.contains(&gid) || world.gid == gid)
    }

    fn principal(name: &str, world: &World) -> Maybe {
        let name = name.rsplit_once(":user/").map_or(name, |(_, user)| user.rsplit('/').next().unwrap());
        let id = |table: &[(&str, u32)], name: &str| table.iter().find(|(known, _)| *known == name).map(|(_, id)| *id);
        match name.split_once(':') {
            None if name == "*" => Some(true),
            None => id(&USERS, name).map(|uid| uid == world.uid),
            Some(("uid", uid)) => Some(uid == world.uid.to_string()),
            Some(("gid", gid)) => is_in(world, gid.parse().unwrap()),
            Some(("group", group)) => is_in(world, id(&GROUPS, group)?),
            Some(_) => Some(false),
        }
    }

    fn names(value: &Value) -> Vec<String> {
        match value {
            Value::Object(kinds) => {
                kinds.values().flat_map(list).map(|name| name.as_str().unwrap().to_owned()).collect()
            }
            everyone => vec![everyone.as_str().unwrap().to_owned()],
        }
    }

    fn found(key: &str, world: &World) -> Option<Vec<String>> {
        Some(match key {
            "aws:username" => vec![world.username?.to_owned()],
            "aws:EpochTime" => vec![world.now.to_string()],
            "kmsfs:Uid" => vec![world.uid.to_string()],
            "kmsfs:Groups" => world.groups.as_ref()?.iter().chain([&world.gid]).map(u32::to_string).collect(),
            "kms:ViaService" if world.direct => Vec::new(),
            "kms:ViaService" => vec!["kmsfs".to_owned()],
            "kms:CallerAccount" => return None,
            "kms:EncryptionContextKeys" => world.context.keys().cloned().collect(),
            key => {
                world.context.get(key.strip_prefix("kms:EncryptionContext:").unwrap()).into_iter().cloned().collect()
            }
        })
    }

    fn compare(operator: &str, have: &str, want: &str, world: &World) -> Maybe {
        let want = if want.contains("${aws:username}") {
            want.replace("${aws:username}", world.username?)
        } else {
            want.to_owned()
        };
        let numbers = || Some((have.parse::<f64>().ok()?, want.parse::<f64>().ok()?));
        Some(match operator {
            "StringEquals" => have == want,
            "StringEqualsIgnoreCase" => have.eq_ignore_ascii_case(&want),
            "StringLike" => glob(&want, have),
            "NumericEquals" => numbers()?.0.total_cmp(&numbers()?.1).is_eq(),
            "NumericLessThan" | "DateLessThan" => numbers()?.0 < numbers()?.1,
            "NumericLessThanEquals" | "DateLessThanEquals" => numbers()?.0 <= numbers()?.1,
            "NumericGreaterThan" | "DateGreaterThan" => numbers()?.0 > numbers()?.1,
            "NumericGreaterThanEquals" | "DateGreaterThanEquals" => numbers()?.0 >= numbers()?.1,
            other => unreachable!("{other}"),
        })
    }

    fn test(operator: &str, key: &str, wanted: &Value, world: &World) -> Maybe {
        let have = found(key, world)?;
        if operator == "Null" {
            return Some(list(wanted).contains(&Value::from(if have.is_empty() { "true" } else { "false" })));
        }
        let (set, operator) = operator.split_once(':').unwrap_or(("", operator));
        let (operator, if_exists) = operator.strip_suffix("IfExists").map_or((operator, false), |base| (base, true));
        let (operator, negated) = (operator.replace("Not", ""), operator.contains("Not"));
        let matched = |have: &String| {
            any(list(wanted).iter().map(|want| compare(&operator, have, want.as_str().unwrap(), world)))
        };
        let turned = |have: &String| if negated { not(matched(have)) } else { matched(have) };
        match set {
            "ForAllValues" => all(have.iter().map(turned)),
            "ForAnyValue" => any(have.iter().map(turned)),
            _ if have.is_empty() => Some(negated || if_exists),
            _ if negated => not(any(have.iter().map(matched))),
            _ => any(have.iter().map(matched)),
        }
    }

    /// Whether the statement holds for who asks, and whether it holds for the account.
    fn holds(statement: &Value, world: &World) -> (Maybe, bool) {
        let named = |action: &Value| {
            let action = action.as_str().unwrap().to_lowercase();
            let full = if action.contains(':') || action == "*" { action } else { format!("kms:{action}") };
            glob(&full, &world.action.name().to_lowercase())
        };
        let actions = |member: &str| list(&statement[member]).iter().any(named);
        let action = if statement["NotAction"].is_null() { actions("Action") } else { !actions("NotAction") };
        let conditions = statement["Condition"].as_object().into_iter().flatten().flat_map(|(operator, keys)| {
            keys.as_object().unwrap().iter().map(move |(key, wanted)| test(operator, key, wanted, world))
        });
        let rest = all(conditions.chain([Some(action)]));
        let among = |member: &str| any(names(&statement[member]).iter().map(|name| principal(name, world)));
        if statement["Principal"].is_null() {
            return (all([not(among("NotPrincipal")), rest]), false);
        }
        let account = names(&statement["Principal"]).iter().any(|name| name.ends_with(":root"));
        (
            all([among("Principal"), rest]),
            account && rest != Some(false) && (rest == Some(true) || statement["Effect"] == "Deny"),
        )
    }

    /// `deny` (explicit), `allow` or neither, and whether something is left to the account.
    fn say(document: &Value, world: &World) -> (&'static str, bool) {
        let of = |effect: &str| -> Vec<(Maybe, bool)> {
            list(&document["Statement"]).iter().filter(|s| s["Effect"] == effect).map(|s| holds(s, world)).collect()
        };
        if of("Deny").iter().any(|(who, account)| *who != Some(false) || *account) {
            return ("deny", false);
        }
        let allowed = of("Allow").iter().any(|(who, _)| *who == Some(true));
        (if allowed { "allow" } else { "" }, of("Allow").iter().any(|(_, account)| *account))
    }

    pub(super) fn decide(world: &World) -> &'static str {
        let (own, delegates) = say(&world.policy, world);
        let account = world.account.as_ref().map_or("", |account| say(account, world).0);
        let granted = world.grants.iter().any(|given| {
            let theirs = if given.to_group {
                world.groups.as_ref().is_some_and(|groups| world.gid == given.id || groups.contains(&given.id))
            } else {
                world.uid == given.id
            };
            let context = &world.context;
            let met = match &given.bound {
                None => true,
                Some((true, wanted)) => wanted == context,
                Some((false, wanted)) => wanted.iter().all(|(key, value)| context.get(key) == Some(value)),
            };
            let met = met || !world.action.is_cryptographic();
            theirs && given.action == world.action && met && given.expires.is_none_or(|expires| world.now < expires)
        });
        if own == "deny" || account == "deny" {
            return "explicit deny";
        }
        if own != "allow" && !(delegates && account == "allow") && !granted {
            return "implicit deny";
        }
        match world.state {
            KeyState::Disabled | KeyState::PendingDeletion if world.action.is_cryptographic() => "revoked",
            KeyState::Destroyed if world.action.is_cryptographic() => "no key",
            _ => "allow",
        }
    }
}

fn bindings() -> Bindings {
    let of = |list: &[(&str, u32)]| list.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect();
    Bindings { users: of(&USERS), groups: of(&GROUPS) }
}

/// The engine's word for the same world.
fn engine(world: &World, policy: &Policy, account: Option<&Policy>) -> &'static str {
    let bindings = bindings();
    let grants: Vec<Grant> = world.grants.iter().map(grant).collect();
    let account = account.map(|account| (account, &bindings));
    let scene = Scene { policy, bindings: &bindings, account, grants: &grants, state: world.state, resource: &[] };
    let groups = world.groups.clone().map_or(Groups::Unknown, Groups::Known);
    let principal = Principal { uid: world.uid, gid: world.gid, groups };
    let context = EncryptionContext::new(world.context.clone());
    let (action, username, direct, now) = (world.action, world.username, world.direct, world.now);
    let decision =
        evaluate(&scene, &Request { action, principal: &principal, context: &context, direct, username, now });
    match (decision.verdict, decision.reason) {
        (Verdict::Denied, Reason::DeniedBy { .. }) => "explicit deny",
        (Verdict::Denied, _) => "implicit deny",
        (Verdict::Allowed, _) => "allow",
        (Verdict::KeyRevoked, _) => "revoked",
        (Verdict::NoKey, _) => "no key",
        (Verdict::InvalidState, _) => "invalid state",
    }
}

fn grant(given: &Given) -> Grant {
    let bound = |equals| {
        let bound = given.bound.as_ref().filter(|(kind, _)| *kind == equals);
        bound.map(|(_, pairs)| EncryptionContext::new(pairs.clone()))
    };
    Grant {
        id: "g".to_owned(),
        grantee: if given.to_group { Grantee::Gid(given.id) } else { Grantee::Uid(given.id) },
        operations: BTreeSet::from([given.action]),
        context_equals: bound(true),
        context_subset: bound(false),
        expires: given.expires,
    }
}

fn document(statements: &[Value]) -> Value {
    json!({"Version": "2012-10-17", "Statement": statements})
}

fn parsed(value: &Value) -> Policy {
    Policy::parse(&value.to_string()).unwrap_or_else(|error| panic!("{value}: {error}"))
}

fn statement(effect: &str, principal: (&str, Value), action: (&str, Value), condition: &Value) -> Value {
    let mut statement = json!({"Effect": effect, "Resource": "*"});
    statement[principal.0] = principal.1;
    statement[action.0] = action.1;
    if !condition.is_null() {
        statement["Condition"] = condition.clone();
    }
    statement
}

fn world(policy: Value, uid: u32, action: Action) -> World {
    World {
        policy,
        account: Some(document(&[json!({
            "Effect": "Allow", "Principal": {"Unix": "alice"}, "Action": "kms:*", "Resource": "*"
        })])),
        grants: Vec::new(),
        uid,
        gid: 100,
        groups: Some(vec![]),
        username: Some("alice"),
        context: BTreeMap::from([("kmsfs:table".to_owned(), "orders".to_owned())]),
        direct: false,
        now: 100_000,
        action,
        state: KeyState::Enabled,
    }
}

/// All documents of two statements over a small alphabet, each asked by everyone who makes a difference.
#[test]
fn agrees_with_the_oracle_on_every_pair_of_statements() {
    let mut alphabet = Vec::new();
    for effect in ["Allow", "Deny"] {
        for principal in [
            ("Principal", json!("*")),
            ("Principal", json!({"Unix": "alice"})),
            ("Principal", json!({"Unix": ["ghost", "group:finance"]})),
            ("Principal", json!({"AWS": "arn:aws:iam::111122223333:root"})),
            ("NotPrincipal", json!({"Unix": ["alice", "gid:7"]})),
        ] {
            for action in [("Action", json!("kms:Decrypt")), ("NotAction", json!(["Enc*", "kms:Put*"]))] {
                for condition in [
                    Value::Null,
                    json!({"StringNotEquals": {"kms:EncryptionContext:kmsfs:table": "orders"}}),
                    json!({"ForAnyValue:NumericEquals": {"kmsfs:Groups": "2000"}}),
                    json!({"DateLessThan": {"aws:EpochTime": "100000"}, "Null": {"aws:username": "false"}}),
                ] {
                    alphabet.push(statement(effect, principal.clone(), action.clone(), &condition));
                }
            }
        }
    }
    let mut askers = Vec::new();
    for (uid, groups) in [(1001, Some(vec![])), (1001, None), (1002, Some(vec![2000])), (1003, Some(vec![7]))] {
        for (action, now) in [(Action::Decrypt, 99_999), (Action::Decrypt, 100_000), (Action::Encrypt, 99_999)] {
            let mut world = world(Value::Null, uid, action);
            (world.groups, world.now) = (groups.clone(), now);
            askers.push(world);
        }
    }
    let account = parsed(askers[0].account.as_ref().unwrap());
    let (mut cases, mut seen) = (0, BTreeMap::<&str, u32>::new());
    for (index, first) in alphabet.iter().enumerate() {
        for second in alphabet.iter().skip(index) {
            let policy = document(&[first.clone(), second.clone()]);
            let engine_policy = parsed(&policy);
            for asker in &mut askers {
                asker.policy = policy.clone();
                let expected = oracle::decide(asker);
                assert_eq!(engine(asker, &engine_policy, Some(&account)), expected, "{asker:#?}");
                *seen.entry(expected).or_default() += 1;
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 80 * 81 / 2 * 12);
    // Each answer is common enough to mean something.
    for answer in ["allow", "explicit deny", "implicit deny"] {
        assert!(seen[answer] > 1000, "{seen:?}");
    }
}

const CONTEXT_KEY: &str = "kms:EncryptionContext:kmsfs:table";

fn any_of(list: &[&'static str]) -> impl Strategy<Value = String> + Clone + use<> {
    proptest::sample::select(list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
}

fn one_or_some(list: &[&'static str]) -> impl Strategy<Value = Value> + Clone + use<> {
    let one = any_of(list);
    let some = proptest::collection::vec(any_of(list), 1..4);
    prop_oneof![one.prop_map(Value::from), some.prop_map(Value::from)]
}

fn principals() -> impl Strategy<Value = (&'static str, Value)> {
    let unix =
        one_or_some(&["alice", "bob", "ghost", "uid:1001", "uid:1003", "group:finance", "group:ghosts", "gid:100"]);
    let aws = one_or_some(&[
        "*",
        "arn:aws:iam::111122223333:user/alice",
        "arn:aws:iam::111122223333:user/staff/bob",
        "arn:aws:iam::111122223333:root",
        "arn:aws:iam::111122223333:role/alice",
    ]);
    let value = prop_oneof![
        Just(json!("*")),
        unix.clone().prop_map(|unix| json!({"Unix": unix})),
        aws.clone().prop_map(|aws| json!({"AWS": aws})),
        (unix, aws).prop_map(|(unix, aws)| json!({"Unix": unix, "AWS": aws})),
    ];
    (prop_oneof![4 => Just("Principal"), 1 => Just("NotPrincipal")], value)
}

fn actions() -> impl Strategy<Value = (&'static str, Value)> {
    let names = one_or_some(&[
        "*",
        "kms:*",
        "kms:Decrypt",
        "encrypt",
        "KMS:ReEncrypt*",
        "kms:Get*",
        "kmsfs:*",
        "kms:Tag*",
        "Decryp?",
    ]);
    (prop_oneof![4 => Just("Action"), 1 => Just("NotAction")], names)
}

fn condition() -> impl Strategy<Value = (String, String, Value)> {
    let text = [
        "StringEquals",
        "StringNotEquals",
        "StringLike",
        "StringNotLike",
        "StringEqualsIgnoreCase",
        "StringNotEqualsIgnoreCase",
    ];
    let number = [
        "NumericEquals",
        "NumericNotEquals",
        "NumericLessThan",
        "NumericLessThanEquals",
        "NumericGreaterThan",
        "NumericGreaterThanEquals",
    ];
    let set = || any_of(&["", "ForAnyValue:", "ForAllValues:"]);
    let exists = || any_of(&["", "IfExists"]);
    let operator = |names: &[&'static str]| (set(), any_of(names), exists()).prop_map(|(a, b, c)| format!("{a}{b}{c}"));
    let texts =
        one_or_some(&["orders", "ORDERS", "ord*", "alice", "kmsfs:table", "${aws:username}", "kmsfs", "7", "2000"]);
    let text_keys = any_of(&[
        "aws:username",
        CONTEXT_KEY,
        "kms:EncryptionContext:level",
        "kms:EncryptionContextKeys",
        "kms:ViaService",
        "kms:CallerAccount",
    ]);
    let numbers = one_or_some(&["7", "1001", "2000", "99999", "100000", "100"]);
    let number_keys =
        any_of(&["kmsfs:Uid", "kmsfs:Groups", "aws:EpochTime", "kms:EncryptionContext:level", CONTEXT_KEY]);
    let dates = any_of(&["DateLessThan", "DateLessThanEquals", "DateGreaterThan", "DateGreaterThanEquals"]);
    prop_oneof![
        (operator(&text), text_keys.clone(), texts),
        (operator(&number), number_keys, numbers),
        (dates, Just("aws:EpochTime".to_owned()), one_or_some(&["99999", "100000", "100001"])),
        (Just("Null".to_owned()), text_keys, one_or_some(&["true", "false"])),
    ]
}

fn statements() -> impl Strategy<Value = Value> {
    let conditions = proptest::collection::vec(condition(), 0..3).prop_map(|list| {
        let mut all = Value::Null;
        for (operator, key, values) in list {
            all[operator][key] = values;
        }
        all
    });
    (any_of(&["Allow", "Allow", "Deny"]), principals(), actions(), conditions)
        .prop_map(|(effect, principal, action, condition)| statement(&effect, principal, action, &condition))
}

fn documents() -> impl Strategy<Value = Value> {
    proptest::collection::vec(statements(), 1..5).prop_map(|list| document(&list))
}

fn worlds() -> impl Strategy<Value = World> {
    let action = proptest::sample::select(vec![
        Action::Decrypt,
        Action::Encrypt,
        Action::ReEncryptTo,
        Action::DescribeKey,
        Action::GetKeyPolicy,
        Action::PutKeyPolicy,
        Action::ListTables,
    ]);
    let who = (
        proptest::sample::select(vec![0_u32, 1001, 1002, 1003]),
        proptest::sample::select(vec![100_u32, 2000, 7]),
        proptest::sample::select(vec![None, Some(vec![]), Some(vec![2000]), Some(vec![9, 7, 100])]),
        proptest::sample::select(vec![None, Some("alice"), Some("orders")]),
    );
    let what = (
        (
            proptest::collection::btree_map(
                any_of(&["kmsfs:table", "level"]),
                any_of(&["orders", "Orders", "7", "99999"]),
                0..3,
            ),
            any::<bool>(),
        ),
        99_999_i64..100_002,
        action,
        proptest::sample::select(vec![KeyState::Enabled, KeyState::Enabled, KeyState::Disabled, KeyState::Destroyed]),
    );
    let pairs = proptest::collection::btree_map(any_of(&["kmsfs:table", "level"]), any_of(&["orders", "7"]), 1..3);
    let given = (
        proptest::sample::select(vec![(false, 1001_u32), (false, 1003), (true, 2000), (true, 100)]),
        proptest::sample::select(vec![Action::Decrypt, Action::Encrypt, Action::DescribeKey]),
        proptest::sample::select(vec![None, Some(100_000_i64)]),
        proptest::option::of((proptest::bool::ANY, pairs)),
    )
        .prop_map(|((to_group, id), action, expires, bound)| Given { to_group, id, action, expires, bound });
    let grants = proptest::collection::vec(given, 0..3);
    (documents(), proptest::option::of(documents()), grants, who, what).prop_map(
        |(policy, account, grants, (uid, gid, groups, username), ((context, direct), now, action, state))| World {
            policy,
            account,
            grants,
            uid,
            gid,
            groups,
            username,
            context,
            direct,
            now,
            action,
            state,
        },
    )
}

/// For management actions, which the oracle leaves alone, the key is as good as enabled.
fn with_plain_state(mut world: World) -> World {
    if !world.action.is_cryptographic() {
        world.state = KeyState::Enabled;
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_oracle_on_generated_worlds(world in worlds().prop_map(with_plain_state)) {
        let account = world.account.as_ref().map(parsed);
        prop_assert_eq!(engine(&world, &parsed(&world.policy), account.as_ref()), oracle::decide(&world));
    }

    /// Whatever the policy says, a user who is added is allowed unless something denies, and nobody else notices;
    /// taken out again, he has what he had.
    #[test]
    fn adding_a_user_changes_nothing_for_others(world in worlds().prop_map(with_plain_state)) {
        let text = serde_json::to_string_pretty(&world.policy).unwrap();
        let form = PForm::Uid(4242);
        let more = add_user(&text, &form).unwrap();
        let (before, after) = (Policy::parse(&text).unwrap(), Policy::parse(&more).unwrap());
        prop_assert_eq!(engine(&world, &before, None), engine(&world, &after, None));
        let mut his = World { uid: 4242, action: Action::Decrypt, state: KeyState::Enabled, ..world };
        let had = engine(&his, &before, None);
        let has = engine(&his, &after, None);
        prop_assert_eq!(has, if had == "explicit deny" { had } else { "allow" });
        let serde: Value = serde_json::from_str(&more).unwrap();
        his.policy = serde;
        his.account = None;
        prop_assert_eq!(has, oracle::decide(&his));
        if let Ok(less) = remove_user(&more, &form) {
            let less = Policy::parse(&less).unwrap();
            prop_assert_eq!(had, engine(&his, &less, None));
            let asker = World { uid: 1001, ..his };
            prop_assert_eq!(engine(&asker, &before, None), engine(&asker, &less, None));
        }
    }
}

/// The documents that mutation starts from.
fn seeds() -> Vec<String> {
    let admin = [PForm::User("alice".to_owned()), PForm::Group("finance".to_owned())];
    let mut seeds = vec![default_key_policy(&admin, &[PForm::Uid(7)]), default_store_policy(&admin), managed_policy()];
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/mount-examples/policies")).unwrap() {
        seeds.push(std::fs::read_to_string(file.unwrap().path()).unwrap());
    }
    assert!(seeds.len() >= 8);
    seeds
}

/// What holds for any bytes: no panic, a place for each refusal, and the same idea of JSON as `serde_json`.
fn check_bytes(bytes: &[u8]) {
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    match Policy::parse_bytes(bytes) {
        Err(error) => {
            let line = usize::try_from(error.line).unwrap();
            assert!((1..=lines.len()).contains(&line), "{error}");
            let longest = String::from_utf8_lossy(lines[line - 1]).chars().count() + 1;
            assert!((1..=longest).contains(&usize::try_from(error.column).unwrap()), "{error}");
            assert!(!error.to_string().chars().any(char::is_control), "{error}");
        }
        Ok(policy) => {
            assert!(matches!(progress(bytes), Progress::Complete(_)));
            let value: Value = serde_json::from_slice(bytes).unwrap();
            for name in policy.names() {
                let line = String::from_utf8_lossy(lines[usize::try_from(name.line).unwrap() - 1]).into_owned();
                let rest: String = line.chars().skip(usize::try_from(name.column).unwrap() - 1).collect();
                assert!(rest.starts_with('"'), "{name:?} {rest}");
                assert!(matches!(name.kind, NameKind::User | NameKind::Group));
            }
            for uid in [0, 1001] {
                let _ = engine(&world(value.clone(), uid, Action::Decrypt), &policy, Some(&policy));
            }
            let text = std::str::from_utf8(bytes).unwrap();
            for form in [PForm::Uid(7), PForm::User("alice".to_owned())] {
                if let Ok(more) = add_user(text, &form) {
                    Policy::parse(&more).unwrap();
                }
                if let Ok(less) = remove_user(text, &form) {
                    Policy::parse(&less).unwrap();
                }
            }
        }
    }
    let _ = progress(bytes);
}

fn mutate(mut bytes: Vec<u8>, edits: &[(u16, u8, Vec<u8>)]) -> Vec<u8> {
    for (at, kind, insert) in edits {
        let at = usize::from(*at) % (bytes.len() + 1);
        let end = (at + insert.len()).min(bytes.len());
        match kind % 4 {
            0 => drop(bytes.splice(at..at, insert.iter().copied())),
            1 => drop(bytes.splice(at..end, insert.iter().copied())),
            2 => drop(bytes.drain(at..end)),
            _ => {
                let copy = bytes[at..end].to_vec();
                let to = usize::from(insert.first().copied().unwrap_or(0)) * 7 % (bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check_bytes(&bytes);
    }

    #[test]
    fn random_json_like_text_never_panics(text in "[\\[\\]{}:,\"\\\\*?$a-f0-9 \nuSidEffectAllowé-]{0,200}") {
        check_bytes(text.as_bytes());
    }

    #[test]
    fn mutated_documents_never_panic(
        seed in any::<proptest::sample::Index>(),
        edits in proptest::collection::vec((any::<u16>(), any::<u8>(), proptest::collection::vec(
            prop_oneof![proptest::sample::select(b"\"\\{}[]:,*?$-0129eEtfnu \n\xc3\xa9".to_vec()), any::<u8>()], 0..12)), 1..4),
    ) {
        let seeds = seeds();
        check_bytes(&mutate(seed.get(&seeds).clone().into_bytes(), &edits));
    }

    #[test]
    fn a_document_cut_short_is_unfinished_or_refused(seed in any::<proptest::sample::Index>(), cut in any::<u16>()) {
        let seeds = seeds();
        let text = seed.get(&seeds).trim_end();
        let cut = usize::from(cut) % text.len();
        let part = &text.as_bytes()[..cut];
        check_bytes(part);
        prop_assert!(Policy::parse_bytes(part).is_err());
        let open = matches!(progress(part), Progress::Blank | Progress::Incomplete);
        prop_assert!(open, "{:?}", progress(part));
    }
}
