//! A grant as it is kept, and the records that hold them (docs/format.md, section 4): some grants of one key a record.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kms::KmsError;
use crate::policy::{Grant, Grantee, PForm, format_seconds, is_grantable};
use crate::types::{Action, EncryptionContext, GrantId, KeyId};

/// Bytes of a key's id with which the ids of its records begin.
const PREFIX_LEN: usize = 12;

/// A user or a group as it was named, and the id that it was bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bound {
    pub(super) form: String,
    pub(super) id: u32,
}

impl Bound {
    /// None for a form that is none.
    pub(super) fn grantee(&self) -> Option<Grantee> {
        match PForm::parse(&self.form).ok()? {
            PForm::User(_) | PForm::Uid(_) => Some(Grantee::Uid(self.id)),
            PForm::Group(_) | PForm::Gid(_) => Some(Grantee::Gid(self.id)),
        }
    }

    fn id_text(&self) -> Option<String> {
        Some(match self.grantee()? {
            Grantee::Uid(uid) => format!("uid:{uid}"),
            Grantee::Gid(gid) => format!("gid:{gid}"),
        })
    }
}

type Pairs = BTreeMap<String, String>;

/// A grant in a record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    id: GrantId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    grantee: Bound,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retiring: Option<Bound>,
    operations: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    equals: Option<Pairs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subset: Option<Pairs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<i64>,
    created: i64,
    creator: u32,
    /// The grant by which it was made, if it was not the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<GrantId>,
}

/// A record: some grants of one key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shard {
    key: KeyId,
    grants: Vec<Kept>,
}

/// A grant that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub(super) id: GrantId,
    pub(super) name: Option<String>,
    pub(super) grantee: Bound,
    pub(super) retiring: Option<Bound>,
    /// What decisions look at.
    pub(super) rule: Grant,
    pub(super) created: i64,
    pub(super) creator: u32,
    pub(super) parent: Option<GrantId>,
}

impl Issued {
    pub fn id(&self) -> GrantId {
        self.id
    }

    pub fn expires(&self) -> Option<i64> {
        self.rule.expires
    }

    /// The grant by which it was made; none: by the policy.
    pub fn parent(&self) -> Option<GrantId> {
        self.parent
    }

    /// AWS's members of an entry of ListGrants, and ours.
    pub fn description(&self, key: KeyId, now: i64) -> Value {
        let pairs = |context: &Option<EncryptionContext>| context.as_ref().map(|context| json!(context.pairs()));
        let mut constraints = serde_json::Map::new();
        let kinds = [
            ("EncryptionContextEquals", pairs(&self.rule.context_equals)),
            ("EncryptionContextSubset", pairs(&self.rule.context_subset)),
        ];
        constraints.extend(kinds.into_iter().filter_map(|(kind, pairs)| Some((kind.to_owned(), pairs?))));
        json!({
            "GrantId": self.id,
            "KeyId": key,
            "Name": self.name,
            "CreationDate": self.created,
            "Creator": self.creator,
            "ParentGrantId": self.parent,
            "GranteePrincipal": self.grantee.form,
            "GranteeId": self.grantee.id_text(),
            "RetiringPrincipal": self.retiring.as_ref().map(|retiring| &retiring.form),
            "RetiringId": self.retiring.as_ref().and_then(Bound::id_text),
            "Operations": self.operations(),
            "Constraints": constraints,
            "Expires": self.rule.expires.map(format_seconds),
            "Expired": self.has_expired(now),
        })
    }

    pub(super) fn has_expired(&self, now: i64) -> bool {
        self.rule.expires.is_some_and(|expires| now >= expires)
    }

    /// Whether it was made by the same words: what a name makes a repetition of.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let rule = |grant: &Self| Grant { id: String::new(), ..grant.rule.clone() };
        (&self.name, &self.grantee, &self.retiring) == (&other.name, &other.grantee, &other.retiring)
            && rule(self) == rule(other)
    }

    /// AWS's names, without a prefix.
    pub(super) fn operations(&self) -> Vec<&'static str> {
        self.rule.operations.iter().map(|action| short(*action)).collect()
    }

    fn kept(&self) -> Kept {
        let pairs = |context: &Option<EncryptionContext>| context.as_ref().map(|context| context.pairs().clone());
        Kept {
            id: self.id,
            name: self.name.clone(),
            grantee: self.grantee.clone(),
            retiring: self.retiring.clone(),
            operations: self.operations().into_iter().map(str::to_owned).collect(),
            equals: pairs(&self.rule.context_equals),
            subset: pairs(&self.rule.context_subset),
            expires: self.rule.expires,
            created: self.created,
            creator: self.creator,
            parent: self.parent,
        }
    }

    fn of_kept(kept: Kept) -> Option<Self> {
        let operations: BTreeSet<Action> = kept.operations.iter().map(|name| operation(name)).collect::<Option<_>>()?;
        if let Some(retiring) = &kept.retiring {
            retiring.grantee()?;
        }
        let rule = Grant {
            id: kept.id.to_string(),
            grantee: kept.grantee.grantee()?,
            operations,
            context_equals: kept.equals.map(EncryptionContext::new),
            context_subset: kept.subset.map(EncryptionContext::new),
            expires: kept.expires,
        };
        Some(Self {
            id: kept.id,
            name: kept.name,
            grantee: kept.grantee,
            retiring: kept.retiring,
            rule,
            created: kept.created,
            creator: kept.creator,
            parent: kept.parent,
        })
    }

    /// How many bytes it takes of a record, and hardly fewer.
    pub(super) fn weight(&self) -> usize {
        /// All members but the texts, with the longest numbers.
        const FRAME: usize = 360;
        let contexts = [&self.rule.context_equals, &self.rule.context_subset].into_iter().flatten();
        let pairs = contexts.flat_map(EncryptionContext::pairs);
        let texts =
            [Some(&self.grantee.form), self.retiring.as_ref().map(|retiring| &retiring.form), self.name.as_ref()];
        let texts = texts.into_iter().flatten().chain(pairs.flat_map(|(key, value)| [key, value]));
        let operations: usize = self.rule.operations.iter().map(|action| short(*action).len() + 3).sum();
        FRAME + operations + texts.map(|text| in_json(text)).sum::<usize>()
    }
}

/// The operation of this name, with `kms:` or without, in any letter case.
pub(super) fn operation(name: &str) -> Option<Action> {
    let bare =
        if name.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case("kms:")) { name.get(4..)? } else { name };
    Action::ALL.into_iter().find(|action| is_grantable(*action) && short(*action).eq_ignore_ascii_case(bare))
}

/// Bytes of a text in JSON, with its quotes and what stands behind them.
fn in_json(text: &str) -> usize {
    let of = |byte: u8| match byte {
        0..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    text.bytes().map(of).sum::<usize>() + 4
}

fn short(action: Action) -> &'static str {
    action.name().split_once(':').map_or(action.name(), |(_, name)| name)
}

/// The object id of a record of a key's grants.
pub(in crate::kms) fn id_of_shard(key: KeyId, number: u32) -> [u8; 16] {
    let mut id = *key.as_bytes();
    for (place, byte) in id.iter_mut().skip(PREFIX_LEN).zip(number.to_be_bytes()) {
        *place = byte;
    }
    id
}

/// What the ids of all records of a key's grants begin with, so that a record that cannot be read still says whose it
/// is; and the record's number.
pub(in crate::kms) fn key_prefix(id: &[u8; 16]) -> ([u8; PREFIX_LEN], u32) {
    let [prefix @ .., a, b, c, d] = *id;
    (prefix, u32::from_be_bytes([a, b, c, d]))
}

/// A record's content.
pub(super) fn content_of<'a>(
    key: KeyId,
    grants: impl Iterator<Item = &'a Issued>,
) -> Result<zeroize::Zeroizing<Vec<u8>>, KmsError> {
    crate::kms::manage::to_json(&Shard { key, grants: grants.map(Issued::kept).collect() })
}

/// The grants of a record.
///
/// # Errors
/// `Tampered` for another key's, and for what this program never writes.
pub(super) fn read_content(key: KeyId, content: &[u8]) -> Result<Vec<Issued>, KmsError> {
    let shard: Shard = serde_json::from_slice(content).map_err(|_| KmsError::Tampered)?;
    if shard.key != key {
        return Err(KmsError::Tampered);
    }
    shard.grants.into_iter().map(|kept| Issued::of_kept(kept).ok_or(KmsError::Tampered)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn issued(number: u8, grantee: &str, id: u32, operations: &[Action]) -> Issued {
        let id_of_grant = GrantId::from_bytes([number; 16]);
        let grantee = Bound { form: grantee.to_owned(), id };
        let rule = Grant {
            id: id_of_grant.to_string(),
            grantee: grantee.grantee().unwrap(),
            operations: operations.iter().copied().collect(),
            context_equals: None,
            context_subset: None,
            expires: None,
        };
        Issued { id: id_of_grant, name: None, grantee, retiring: None, rule, created: 7, creator: 8, parent: None }
    }

    #[test]
    fn a_record_gives_back_what_was_put_in_and_to_no_other_key() {
        let key = KeyId::from_bytes([3; 16]);
        let mut one = issued(1, "bob", 1002, &[Action::Decrypt, Action::DescribeKey]);
        one.rule.context_subset = Some(EncryptionContext::of_item("orders", b"a\nb"));
        one.rule.expires = Some(99);
        one.retiring = Some(Bound { form: "gid:7".to_owned(), id: 7 });
        one.name = Some("n".to_owned());
        one.parent = Some(GrantId::from_bytes([9; 16]));
        let two = issued(2, "group:finance", 2000, &[Action::Encrypt]);
        let content = content_of(key, [&one, &two].into_iter()).unwrap();
        assert!(content.len() < one.weight() + two.weight() + 100);
        assert_eq!(read_content(key, &content).unwrap(), [one, two]);
        assert!(matches!(read_content(KeyId::from_bytes([4; 16]), &content), Err(KmsError::Tampered)));
        let text = String::from_utf8(content.to_vec()).unwrap();
        for (from, to) in [("Decrypt", "PutKeyPolicy"), ("\"bob\"", "\"uid:x\""), ("\"created\"", "\"made\"")] {
            let changed = text.replacen(from, to, 1);
            assert!(read_content(key, changed.as_bytes()).is_err(), "{from}");
        }
    }

    #[test]
    fn no_grant_is_longer_than_it_weighs() {
        let mut heavy = issued(1, "gid:4294967294", u32::MAX - 1, &Action::ALL);
        heavy.rule.operations.retain(|action| is_grantable(*action));
        heavy.rule.context_equals = Some(EncryptionContext::new([("\u{1}\"\\".repeat(900), "é".repeat(99))].into()));
        heavy.rule.context_subset = heavy.rule.context_equals.clone();
        heavy.rule.expires = Some(i64::MIN);
        (heavy.created, heavy.creator) = (i64::MIN, u32::MAX);
        heavy.retiring = Some(heavy.grantee.clone());
        heavy.name = Some("n".repeat(256));
        heavy.parent = Some(heavy.id);
        for grant in [heavy, issued(1, "b", 1, &[Action::Decrypt])] {
            let length = serde_json::to_vec(&grant.kept()).unwrap().len();
            assert!((length..length + 300).contains(&grant.weight()), "{length} {}", grant.weight());
        }
    }

    #[test]
    fn the_id_of_a_record_says_whose_it_is() {
        let key = KeyId::from_bytes(*b"0123456789abcdef");
        assert_eq!(key_prefix(&id_of_shard(key, 0x0102_0304)), (*b"0123456789ab", 0x0102_0304));
        assert_eq!(key_prefix(key.as_bytes()).0, *b"0123456789ab");
    }

    #[test]
    fn operations_are_those_that_a_grant_can_give() {
        for name in ["Decrypt", "kms:decrypt", "KMS:Decrypt"] {
            assert_eq!(operation(name), Some(Action::Decrypt));
        }
        for name in ["", "kms:", "PutKeyPolicy", "RevokeGrant", "kmsfs:CreateTable", "Decrypt ", "*", "Sign"] {
            assert_eq!(operation(name), None, "{name}");
        }
    }
}
