//! Policy documents as text: those that kmsfs writes itself.

use std::fmt::Write;

use super::json::escaped;
use super::principal::PForm;

/// The Sid of the statement for administrators in what [`default_key_policy`] writes.
pub const ADMINISTRATORS_SID: &str = "Key administrators";
/// The Sid of the statement for users in what [`default_key_policy`] and [`add_user`](super::add_user) write.
pub const USERS_SID: &str = "Key users";

/// What the AWS console gives a key user, symmetric keys. Source: AWS KMS Developer Guide, 'Allows key users to use
/// the KMS key'.
pub(super) const USER_ACTIONS: [&str; 5] =
    ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"];

/// What the AWS console gives a key administrator. Source: AWS KMS Developer Guide, 'Allows key administrators to
/// administer the KMS key'.
const ADMINISTRATOR_ACTIONS: [&str; 15] = [
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
    "kms:RotateKeyOnDemand",
];

/// A policy whose administrators manage the key without using it and whose users use it without managing it. A list
/// may be empty: its statement is then nobody's, with its place kept for whoever is added.
#[must_use]
pub fn default_key_policy(admins: &[PForm], users: &[PForm]) -> String {
    document(&[
        statement(ADMINISTRATORS_SID, &unix(admins, 6), &ADMINISTRATOR_ACTIONS, None),
        statement(USERS_SID, &unix(users, 6), &USER_ACTIONS, None),
    ])
}

/// A store policy whose administrators have every management action and no cryptographic one.
#[must_use]
pub fn default_store_policy(admins: &[PForm]) -> String {
    let mut actions = ADMINISTRATOR_ACTIONS.to_vec();
    actions.extend(["kms:RetireGrant", "kmsfs:*"]);
    document(&[statement("Store administrators", &unix(admins, 6), &actions, None)])
}

/// The policy of the key `kmsfs-managed`: whoever has the Unix rights uses it, through kmsfs; everyone may read about
/// it; nobody manages it. After the policies of AWS managed keys.
#[must_use]
pub fn managed_policy() -> String {
    let via = "{\n        \"StringEquals\": {\n          \"kms:ViaService\": \"kmsfs\"\n        }\n      }";
    document(&[
        statement("Use through kmsfs by all whom Unix permits", "\"*\"", &USER_ACTIONS, Some(via)),
        statement("Reading of the key's description", "\"*\"", &["kms:Describe*", "kms:Get*", "kms:List*"], None),
    ])
}

fn document(statements: &[String]) -> String {
    let list: Vec<String> = statements.iter().map(|statement| format!("    {statement}")).collect();
    format!("{{\n  \"Version\": \"2012-10-17\",\n  \"Statement\": [\n{}\n  ]\n}}\n", list.join(",\n"))
}

/// A statement as [`document`] indents it, by four spaces, the first line's left out.
pub(super) fn statement(sid: &str, principal: &str, actions: &[&str], condition: Option<&str>) -> String {
    let actions = list(actions.iter().copied(), 6);
    let mut text = String::from("{\n");
    // Writing to a String cannot fail.
    let _ = write!(text, "      \"Sid\": {},\n      \"Effect\": \"Allow\",\n", escaped(sid));
    let _ = write!(text, "      \"Principal\": {principal},\n      \"Action\": {actions},\n      \"Resource\": \"*\"");
    if let Some(condition) = condition {
        let _ = write!(text, ",\n      \"Condition\": {condition}");
    }
    text.push_str("\n    }");
    text
}

/// `{"Unix": [...]}`, the closing brace indented by `indent`.
pub(super) fn unix(list_of: &[PForm], indent: usize) -> String {
    let names: Vec<String> = list_of.iter().map(PForm::to_string).collect();
    let list = list(names.iter().map(String::as_str), indent + 2);
    format!("{{\n{:width$}\"Unix\": {list}\n{:indent$}}}", "", "", width = indent + 2)
}

/// One element a line, so that an editor and a diff show one person a line.
fn list<'a>(elements: impl Iterator<Item = &'a str>, indent: usize) -> String {
    let lines: Vec<String> =
        elements.map(|element| format!("\n{:width$}{}", "", escaped(element), width = indent + 2)).collect();
    if lines.is_empty() { "[]".to_owned() } else { format!("[{}\n{:indent$}]", lines.join(","), "") }
}

#[cfg(test)]
mod tests {
    use super::super::{Bindings, Grant, Policy, Request, Scene, evaluate};
    use super::*;
    use crate::types::{Action, EncryptionContext, Groups, KeyState, Principal};

    fn allowed(text: &str, uid: u32) -> Vec<Action> {
        let policy = Policy::parse(text).expect(text);
        let bindings = Bindings::default();
        let grants: &[Grant] = &[];
        let state = KeyState::Enabled;
        let scene = Scene { policy: &policy, bindings: &bindings, account: None, grants, state, resource: &[] };
        let principal = Principal { uid, gid: uid, groups: Groups::Known(vec![]) };
        let context = EncryptionContext::default();
        Action::ALL
            .into_iter()
            .filter(|action| *action != Action::CancelKeyDeletion)
            .filter(|action| {
                let request = Request {
                    action: *action,
                    principal: &principal,
                    context: &context,
                    direct: false,
                    username: None,
                    now: 0,
                };
                evaluate(&scene, &request).is_allowed()
            })
            .collect()
    }

    #[test]
    fn administrators_manage_and_users_use() {
        let text = default_key_policy(&[PForm::Uid(1), PForm::Uid(2)], &[PForm::Uid(3), PForm::Uid(2)]);
        let admin = allowed(&text, 1);
        let user = allowed(&text, 3);
        assert!(admin.iter().all(|action| !action.is_cryptographic()));
        for action in [Action::PutKeyPolicy, Action::CreateGrant, Action::RotateKeyOnDemand, Action::DescribeKey] {
            assert!(admin.contains(&action), "{action}");
        }
        assert_eq!(
            user,
            [
                Action::Decrypt,
                Action::Encrypt,
                Action::GenerateDataKey,
                Action::GenerateDataKeyWithoutPlaintext,
                Action::ReEncryptFrom,
                Action::ReEncryptTo,
                Action::DescribeKey,
            ]
        );
        assert_eq!(allowed(&text, 2).len(), admin.len() + user.len() - 1);
        assert!(allowed(&text, 4).is_empty());
        assert!(allowed(&default_key_policy(&[], &[]), 0).is_empty());
    }

    #[test]
    fn a_store_administrator_has_every_management_action_and_no_cryptographic_one() {
        let text = default_store_policy(&[PForm::Uid(0)]);
        let management: Vec<Action> = Action::ALL
            .into_iter()
            .filter(|action| !action.is_cryptographic() && *action != Action::CancelKeyDeletion)
            .collect();
        assert_eq!(allowed(&text, 0), management);
        assert!(text.contains("kms:CancelKeyDeletion"));
        assert!(allowed(&text, 1).is_empty());
    }

    #[test]
    fn everyone_uses_the_managed_key_and_nobody_manages_it() {
        let actions = allowed(&managed_policy(), 1234);
        assert!(Action::ALL.iter().filter(|action| action.is_cryptographic()).all(|action| actions.contains(action)));
        for action in [Action::PutKeyPolicy, Action::ScheduleKeyDeletion, Action::DisableKey, Action::CreateGrant] {
            assert!(!actions.contains(&action), "{action}");
        }
        assert!(actions.contains(&Action::GetKeyPolicy));
    }

    #[test]
    fn the_text_is_pretty_json() {
        let text = default_key_policy(&[PForm::Uid(1)], &[PForm::User("a\"\\b".replace('"', "'"))]);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["Statement"][1]["Principal"]["Unix"][0], "a'\\b");
        let expected = "    {\n      \"Sid\": \"Key administrators\",\n      \"Effect\": \"Allow\",\n      \"Principal\": {\n        \
                        \"Unix\": [\n          \"uid:1\"\n        ]\n      },\n      \"Action\": [\n        \"kms:Create*\",\n";
        assert!(text.contains(expected), "{text}");
        assert!(default_key_policy(&[], &[]).contains("\"Unix\": []"));
    }
}
