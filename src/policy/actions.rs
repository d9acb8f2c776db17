//! Sets of actions, and the names and patterns by which a document gives them.
//!
//! Names are matched without regard to letter case. A name without a prefix is one of `kms:`; a lone `*` is every
//! action. Source: IAM User Guide, 'IAM JSON policy elements: Action'; AWS KMS Developer Guide, 'AWS KMS permissions'.

use super::error::{PolicyFault, nearest};
use super::glob::wild;
use crate::types::Action;

/// Actions of AWS KMS that kmsfs has not: a document may name them, and they match no request.
const ABSENT: [&str; 31] = [
    "kms:ConnectCustomKeyStore",
    "kms:CreateAlias",
    "kms:CreateCustomKeyStore",
    "kms:DeleteAlias",
    "kms:DeleteCustomKeyStore",
    "kms:DeleteImportedKeyMaterial",
    "kms:DeriveSharedSecret",
    "kms:DescribeCustomKeyStores",
    "kms:DisconnectCustomKeyStore",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateMac",
    "kms:GenerateRandom",
    "kms:GetParametersForImport",
    "kms:GetPublicKey",
    "kms:ImportKeyMaterial",
    "kms:ListAliases",
    "kms:ListKeyPolicies",
    "kms:ListKeyRotations",
    "kms:ListResourceTags",
    "kms:ListRetirableGrants",
    "kms:ReplicateKey",
    "kms:Sign",
    "kms:SynchronizeMultiRegionKey",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateAlias",
    "kms:UpdateCustomKeyStore",
    "kms:UpdatePrimaryRegion",
    "kms:Verify",
    "kms:VerifyMac",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ActionSet(u64);

impl ActionSet {
    pub(super) const EMPTY: Self = Self(0);

    pub(super) fn of(actions: impl IntoIterator<Item = Action>) -> Self {
        Self(actions.into_iter().fold(0, |bits, action| bits | bit(action)))
    }

    pub(super) fn every() -> Self {
        Self::of(Action::ALL)
    }

    pub(super) const fn contains(self, action: Action) -> bool {
        self.0 & bit(action) != 0
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

const fn bit(action: Action) -> u64 {
    1 << (action as u32)
}

/// The actions that a name or pattern of a document stands for; empty for what only AWS has.
pub(super) fn parse(text: &str) -> Result<ActionSet, PolicyFault> {
    if text == "*" {
        return Ok(ActionSet::every());
    }
    let full =
        if text.contains(':') { text.to_ascii_lowercase() } else { format!("kms:{}", text.to_ascii_lowercase()) };
    let set = ActionSet::of(Action::ALL.into_iter().filter(|action| named(&full, action.name())));
    if set.is_empty() && !ABSENT.iter().any(|name| named(&full, name)) {
        return Err(PolicyFault::UnknownAction { name: text.to_owned(), nearest: suggestion(text) });
    }
    Ok(set)
}

/// Whether a pattern in small letters matches a name. Nearly all are names, or the beginnings of some.
fn named(pattern: &str, name: &str) -> bool {
    let (start, rest) = pattern.split_at(pattern.find(['*', '?']).unwrap_or(pattern.len()));
    match rest {
        "" => name.eq_ignore_ascii_case(start),
        "*" => name.get(..start.len()).is_some_and(|of_name| of_name.eq_ignore_ascii_case(start)),
        _ => wild(pattern, &name.to_ascii_lowercase()),
    }
}

fn suggestion(text: &str) -> Option<&'static str> {
    let known = || Action::ALL.into_iter().map(Action::name).chain(ABSENT);
    if text.contains(':') {
        return nearest(text, known());
    }
    nearest(&format!("kms:{text}"), known()).or_else(|| nearest(&format!("kmsfs:{text}"), known()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> Vec<Action> {
        let set = parse(text).unwrap();
        Action::ALL.into_iter().filter(|action| set.contains(*action)).collect()
    }

    #[test]
    fn every_action_has_a_bit_of_its_own() {
        let mut all = ActionSet::EMPTY;
        for action in Action::ALL {
            assert!(!all.contains(action), "{action}");
            all = all.union(ActionSet::of([action]));
        }
        assert_eq!(all, ActionSet::every());
    }

    #[test]
    fn names_match_in_any_case_with_and_without_prefix() {
        for name in ["kms:Decrypt", "KMS:DECRYPT", "decrypt", "Decrypt", "kms:Decryp?"] {
            assert_eq!(set(name), [Action::Decrypt], "{name}");
        }
        assert_eq!(set("kms:ReEncrypt*"), [Action::ReEncryptFrom, Action::ReEncryptTo]);
        assert_eq!(set("kmsfs:createtable"), [Action::CreateTable]);
        assert_eq!(set("*").len(), Action::ALL.len());
        assert_eq!(set("*:*").len(), Action::ALL.len());
    }

    #[test]
    fn the_prefix_keeps_the_two_services_apart() {
        assert!(set("kms:*").iter().all(|action| action.name().starts_with("kms:")));
        assert!(set("kmsfs:*").iter().all(|action| action.name().starts_with("kmsfs:")));
        assert!(!set("List*").contains(&Action::ListTables));
        assert_eq!(set("kms:*").len() + set("kmsfs:*").len(), Action::ALL.len());
    }

    #[test]
    fn what_only_aws_has_is_recognised_and_matches_nothing() {
        for name in ABSENT.into_iter().chain(["kms:Tag*", "kms:Delete*", "sign", "kms:GenerateDataKeyPair*"]) {
            assert!(set(name).is_empty(), "{name}");
        }
        assert!(ABSENT.iter().all(|absent| Action::ALL.iter().all(|have| !have.name().eq_ignore_ascii_case(absent))));
    }

    #[test]
    fn strangers_are_refused() {
        for name in ["", "kms:", "kms:Decyrpt", "s3:GetObject", "s3:*", "kms:ReEncrypt", "CreateTable", "kms:Decrypt "]
        {
            assert!(parse(name).is_err(), "{name}");
        }
        let hint = |name| match parse(name) {
            Err(PolicyFault::UnknownAction { nearest, .. }) => nearest,
            other => panic!("{other:?}"),
        };
        assert_eq!(hint("Decyrpt"), Some("kms:Decrypt"));
        assert_eq!(hint("CreateTable"), Some("kmsfs:CreateTable"));
    }
}
