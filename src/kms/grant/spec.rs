//! Grants to be made, as a document says them: AWS CreateGrant's members, and an expiry.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::record::{Bound, operation};
use crate::kms::KmsError;
use crate::policy::{PForm, is_grantable, parse_time};
use crate::sys;
use crate::types::{Action, EncryptionContext};

/// Pairs that one constraint may have, as in AWS KMS.
const PAIRS_MOST: usize = 8;
/// Bytes of all their names and values together: the longest path, and as much again.
const CONTEXT_BYTES_MOST: usize = 6_000;
const NAME_BYTES_MOST: usize = 256;

/// A grant to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantSpec {
    pub(super) name: Option<String>,
    pub(super) grantee: PForm,
    pub(super) retiring: Option<PForm>,
    pub(super) operations: BTreeSet<Action>,
    pub(super) equals: Option<EncryptionContext>,
    pub(super) subset: Option<EncryptionContext>,
    pub(super) expires: Option<Expiry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// Seconds since 1970.
    At(i64),
    /// Seconds from the moment at which it is made.
    In(i64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "GranteePrincipal", alias = "Grantee")]
    grantee: String,
    #[serde(rename = "RetiringPrincipal", alias = "Retiring", default)]
    retiring: Option<String>,
    #[serde(rename = "Operations")]
    operations: Vec<String>,
    #[serde(rename = "Constraints", default)]
    constraints: Option<Constraints>,
    #[serde(rename = "Expires", default)]
    expires: Option<String>,
    #[serde(rename = "Name", default)]
    name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Constraints {
    #[serde(rename = "EncryptionContextEquals", default)]
    equals: Option<Pairs>,
    #[serde(rename = "EncryptionContextSubset", default)]
    subset: Option<Pairs>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    #[serde(rename = "Grants")]
    grants: Vec<Document>,
}

/// The names of an object's members.
struct Names(BTreeSet<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut names = BTreeSet::new();
                while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    names.insert(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Pairs of which none is given twice.
struct Pairs(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;
        impl<'de> Visitor<'de> for Unique {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if pairs.contains_key(&key) {
                        return Err(A::Error::custom(format!("duplicate key {key:?}")));
                    }
                    pairs.insert(key, value);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Unique)
    }
}

impl GrantSpec {
    /// The grants that a document asks for: one, or those of `{"Grants": [...]}`.
    ///
    /// # Errors
    /// `Invalid`, with the reason, and for text that is no such JSON with line and column.
    pub fn parse(text: &str) -> Result<Vec<Self>, KmsError> {
        let refused = |error: serde_json::Error| KmsError::Invalid(format!("grant refused: {error}"));
        let members: Names = serde_json::from_str(text).map_err(refused)?;
        if !members.0.contains("Grants") {
            return Ok(vec![Self::of(serde_json::from_str(text).map_err(refused)?)?]);
        }
        let batch: Batch = serde_json::from_str(text).map_err(refused)?;
        if batch.grants.is_empty() {
            return Err(invalid("\"Grants\" is empty"));
        }
        batch.grants.into_iter().map(Self::of).collect()
    }

    fn of(document: Document) -> Result<Self, KmsError> {
        let constraints = document.constraints.unwrap_or_default();
        let spec = Self {
            name: document.name,
            grantee: form("GranteePrincipal", &document.grantee)?,
            retiring: document.retiring.as_deref().map(|text| form("RetiringPrincipal", text)).transpose()?,
            operations: document.operations.iter().map(|name| known_operation(name)).collect::<Result<_, _>>()?,
            equals: constraints.equals.map(|pairs| EncryptionContext::new(pairs.0)),
            subset: constraints.subset.map(|pairs| EncryptionContext::new(pairs.0)),
            expires: document.expires.as_deref().map(expiry).transpose()?,
        };
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), KmsError> {
        if self.operations.is_empty() {
            return Err(invalid("\"Operations\" is empty"));
        }
        let contexts = [&self.equals, &self.subset].into_iter().flatten();
        let bytes = |context: &EncryptionContext| context.pairs().iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
        for context in contexts.clone() {
            if context.pairs().is_empty() || context.pairs().len() > PAIRS_MOST {
                return Err(invalid(&format!("a constraint has 1 to {PAIRS_MOST} pairs")));
            }
        }
        if contexts.map(bytes).sum::<usize>() > CONTEXT_BYTES_MOST {
            return Err(invalid(&format!("constraints have at most {CONTEXT_BYTES_MOST} bytes")));
        }
        let sound = |c: char| c.is_ascii_alphanumeric() || ":/_-".contains(c);
        match &self.name {
            Some(name) if name.is_empty() || name.len() > NAME_BYTES_MOST || !name.chars().all(sound) => {
                Err(invalid("a name has 1 to 256 characters: letters, digits, ':', '/', '_' and '-'"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Binds a user or a group to its id, now and for good.
pub(super) fn bind(form: &PForm) -> Result<Bound, KmsError> {
    let (id, kind) = match form {
        PForm::User(name) => (sys::uid_of(name), "user"),
        PForm::Group(name) => (sys::gid_of(name), "group"),
        PForm::Uid(id) | PForm::Gid(id) => (Some(*id), "id"),
    };
    let unknown = || invalid(&format!("no {kind} '{form}' on this host (write uid:N or gid:N for one that is not)"));
    Ok(Bound { form: form.to_string(), id: id.ok_or_else(unknown)? })
}

fn form(what: &str, text: &str) -> Result<PForm, KmsError> {
    PForm::parse(text).map_err(|error| invalid(&format!("{what} {text:?}: {error}")))
}

fn known_operation(name: &str) -> Result<Action, KmsError> {
    operation(name).ok_or_else(|| {
        let known = Action::ALL.into_iter().filter(|action| is_grantable(*action));
        let known: Vec<_> = known.map(|action| action.name().trim_start_matches("kms:")).collect();
        invalid(&format!("{name:?} is nothing that a grant can give; it can give {}", known.join(", ")))
    })
}

/// `90s`, `30m`, `1h`, `7d`, or a date as a policy writes it.
fn expiry(text: &str) -> Result<Expiry, KmsError> {
    let wrong = || invalid(&format!("Expires {text:?}: write 90s, 30m, 1h, 7d or a date such as 2026-03-02T09:30:00Z"));
    let unit = match text.as_bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3_600,
        Some(b'd') => 86_400,
        _ => return parse_time(text).map(Expiry::At).ok_or_else(wrong),
    };
    let count = text.get(..text.len() - 1).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let seconds = count.and_then(|digits| digits.parse::<i64>().ok()?.checked_mul(unit)).filter(|seconds| *seconds > 0);
    seconds.map(Expiry::In).ok_or_else(wrong)
}

pub(super) fn invalid(why: &str) -> KmsError {
    KmsError::Invalid(format!("grant refused: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        GrantSpec::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_document_is_aws_s_with_an_expiry() {
        let text = r#"{"Grantee": "bob", "RetiringPrincipal": "gid:7", "Operations": ["Decrypt", "kms:DescribeKey"],
            "Constraints": {"EncryptionContextSubset": {"kmsfs:table": "orders"}}, "Expires": "1h", "Name": "a/b"}"#;
        let [spec] = GrantSpec::parse(text).unwrap().try_into().unwrap();
        assert_eq!((&spec.grantee, &spec.retiring), (&PForm::User("bob".to_owned()), &Some(PForm::Gid(7))));
        assert_eq!(spec.operations, BTreeSet::from([Action::Decrypt, Action::DescribeKey]));
        assert_eq!(spec.subset.unwrap().pairs().len(), 1);
        assert_eq!((spec.equals, spec.expires), (None, Some(Expiry::In(3_600))));
        let many = r#"{"Grants": [{"GranteePrincipal": "uid:1", "Operations": ["Encrypt"]},
            {"GranteePrincipal": "uid:2", "Operations": ["Encrypt"], "Constraints": null, "Expires": null}]}"#;
        assert_eq!(GrantSpec::parse(many).unwrap().len(), 2);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_place() {
        assert!(refusal("{\"Grantee\": \"bob\",\n\"Operation\": []}").contains("unknown field `Operation`"));
        assert!(refusal("{\n\"Grantee\": }").contains("line 2 column 12"));
        let with = |member: &str| format!(r#"{{"Grantee": "bob", "Operations": ["Decrypt"], {member}}}"#);
        for (member, why) in [
            (r#""GranteePrincipal": "carol""#, "duplicate field"),
            (r#""Grantee": "*""#, "duplicate field"),
            (r#""Expires": "0h""#, "Expires"),
            (r#""Expires": "-1h""#, "Expires"),
            (r#""Expires": "tomorrow""#, "Expires"),
            (r#""Expires": "99999999999999999999d""#, "Expires"),
            (r#""Expires": 5"#, "invalid type"),
            (r#""Name": "a b""#, "a name has"),
            (r#""Constraints": {"EncryptionContextEquals": {}}"#, "1 to 8 pairs"),
            (r#""Constraints": {"EncryptionContextEquals": {"a": "1", "a": "2"}}"#, "duplicate key"),
            (r#""Constraints": {"SourceArn": "x"}"#, "unknown field"),
            (r#""RetiringPrincipal": "7""#, "RetiringPrincipal"),
            (r#""Grants": []"#, "unknown field"),
        ] {
            assert!(refusal(&with(member)).contains(why), "{member}: {}", refusal(&with(member)));
        }
        assert!(refusal(r#"{"Grantee": "*", "Operations": ["Decrypt"]}"#).contains("GranteePrincipal"));
        assert!(refusal(r#"{"Grantee": "bob", "Operations": []}"#).contains("empty"));
        assert!(refusal(r#"{"Grantee": "bob", "Operations": ["PutKeyPolicy"]}"#).contains("CreateGrant"));
        assert!(refusal(r#"{"Grants": []}"#).contains("empty"));
        let long = "x".repeat(CONTEXT_BYTES_MOST);
        let long = with(&format!(r#""Constraints": {{"EncryptionContextSubset": {{"k": "{long}"}}}}"#));
        assert!(refusal(&long).contains("at most 6000 bytes"));
    }

    #[test]
    fn durations_and_dates() {
        assert_eq!(expiry("90s").unwrap(), Expiry::In(90));
        assert_eq!(expiry("2d").unwrap(), Expiry::In(172_800));
        assert_eq!(expiry("1970-01-02").unwrap(), Expiry::At(86_400));
        assert_eq!(expiry("1970-01-01T01:00:00+01:00").unwrap(), Expiry::At(0));
    }
}
