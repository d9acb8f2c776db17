//! Each document of `mount-examples/policies/` does what it says.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bindings, NameKind, Policy, Request, Scene, evaluate};
use crate::types::{Action, EncryptionContext, Groups, KeyState, Principal};

const ALICE: u32 = 1001;
const BOB: u32 = 1002;
const AUDITOR: u32 = 1003;
const CONTRACTOR: u32 = 1004;
const STRANGER: u32 = 1099;
const FINANCE: u32 = 2000;
const BREAK_GLASS: u32 = 2001;
const ROOT: u32 = 0;

struct Example {
    policy: Policy,
    bindings: Bindings,
}

impl Example {
    fn new(text: &str) -> Self {
        let users = [("alice", ALICE), ("bob", BOB), ("auditor", AUDITOR), ("contractor", CONTRACTOR)];
        let groups = [("finance", FINANCE), ("break-glass", BREAK_GLASS)];
        let of =
            |list: &[(&str, u32)]| list.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect::<BTreeMap<_, _>>();
        let policy = Policy::parse(text).unwrap();
        let bindings = Bindings { users: of(&users), groups: of(&groups) };
        for name in policy.names() {
            let known = if name.kind == NameKind::User { &bindings.users } else { &bindings.groups };
            assert!(known.contains_key(&name.name), "{name:?}");
        }
        Self { policy, bindings }
    }

    fn may_at(&self, uid: u32, groups: &[u32], action: Action, item: &str, now: i64) -> bool {
        let (policy, bindings) = (&self.policy, &self.bindings);
        let scene = Scene { policy, bindings, account: None, grants: &[], state: KeyState::Enabled, resource: &[] };
        let principal = Principal { uid, gid: uid, groups: Groups::Known(groups.to_vec()) };
        let context = EncryptionContext::of_item("orders", item.as_bytes());
        let request = Request { action, principal: &principal, context: &context, direct: false, username: None, now };
        evaluate(&scene, &request).is_allowed()
    }

    fn may(&self, uid: u32, groups: &[u32]) -> BTreeSet<Action> {
        Action::ALL.into_iter().filter(|action| self.may_at(uid, groups, *action, "x", 0)).collect()
    }

    /// What every example has: an administrator who does not use the key, users who do not manage it, nobody else.
    fn has_administrator_and_user(&self) {
        let admin = self.may(ALICE, &[]);
        assert!(admin.contains(&Action::PutKeyPolicy) && admin.contains(&Action::ScheduleKeyDeletion));
        assert!(!admin.contains(&Action::Decrypt));
        let mut user: BTreeSet<Action> = Action::ALL.into_iter().filter(|action| action.is_cryptographic()).collect();
        user.insert(Action::DescribeKey);
        assert_eq!(self.may(BOB, &[]), user);
    }

    fn is_closed_to_strangers(&self) {
        assert!(self.may(STRANGER, &[]).is_empty());
        assert!(self.may(ROOT, &[]).is_empty());
    }
}

#[test]
fn team_read() {
    let example = Example::new(include_str!("../../mount-examples/policies/team-read.json"));
    example.has_administrator_and_user();
    example.is_closed_to_strangers();
    assert_eq!(example.may(STRANGER, &[FINANCE]), BTreeSet::from([Action::Decrypt, Action::DescribeKey]));
}

#[test]
fn drop_box() {
    let example = Example::new(include_str!("../../mount-examples/policies/drop-box.json"));
    // The administrator drops like everyone else, and reads as little.
    assert!(example.may(ALICE, &[]).contains(&Action::PutKeyPolicy));
    assert!(!example.may(ALICE, &[]).contains(&Action::Decrypt));
    assert!(example.may(BOB, &[]).contains(&Action::Decrypt));
    assert!(!example.may(BOB, &[]).contains(&Action::PutKeyPolicy));
    let drops = BTreeSet::from([Action::Encrypt, Action::GenerateDataKey]);
    assert_eq!(example.may(STRANGER, &[]), drops);
    assert_eq!(example.may(ROOT, &[]), drops);
}

#[test]
fn read_only_auditor() {
    let example = Example::new(include_str!("../../mount-examples/policies/read-only-auditor.json"));
    example.has_administrator_and_user();
    example.is_closed_to_strangers();
    let reads = BTreeSet::from([
        Action::Decrypt,
        Action::DescribeKey,
        Action::GetKeyPolicy,
        Action::GetKeyRotationStatus,
        Action::ListGrants,
    ]);
    assert_eq!(example.may(AUDITOR, &[]), reads);
    // Also where a grant would let him write.
    let grant = super::Grant {
        id: "g".to_owned(),
        grantee: super::Grantee::Uid(AUDITOR),
        operations: BTreeSet::from([Action::Encrypt]),
        context_equals: None,
        context_subset: None,
        expires: None,
    };
    let (policy, bindings, grants) = (&example.policy, &example.bindings, &[grant][..]);
    let scene = Scene { policy, bindings, account: None, grants, state: KeyState::Enabled, resource: &[] };
    let principal = Principal { uid: AUDITOR, gid: AUDITOR, groups: Groups::Known(vec![]) };
    let context = EncryptionContext::default();
    let action = Action::Encrypt;
    let request = Request { action, principal: &principal, context: &context, direct: false, username: None, now: 0 };
    assert!(!evaluate(&scene, &request).is_allowed());
}

#[test]
fn time_limited_contractor() {
    let example = Example::new(include_str!("../../mount-examples/policies/time-limited-contractor.json"));
    example.has_administrator_and_user();
    example.is_closed_to_strangers();
    // date -u -d 2026-07-01 +%s, and of 2026-10-01
    let (begin, end) = (1_782_864_000, 1_790_812_800);
    let may = |item, now| example.may_at(CONTRACTOR, &[], Action::Decrypt, item, now);
    assert!(!may("project-x/a", begin - 1));
    assert!(may("project-x/a", begin));
    assert!(may("project-x", end - 1));
    assert!(!may("project-x/a", end));
    assert!(!may("project-y/a", begin));
    assert!(!may("project-xy", begin));
    assert!(!example.may_at(CONTRACTOR, &[], Action::PutKeyPolicy, "project-x/a", begin));
}

#[test]
fn break_glass() {
    let example = Example::new(include_str!("../../mount-examples/policies/break-glass.json"));
    example.has_administrator_and_user();
    example.is_closed_to_strangers();
    let emergency = example.may(STRANGER, &[BREAK_GLASS]);
    assert_eq!(
        emergency,
        BTreeSet::from([
            Action::Decrypt,
            Action::DescribeKey,
            Action::EnableKey,
            Action::GetKeyPolicy,
            Action::PutKeyPolicy,
        ])
    );
}
