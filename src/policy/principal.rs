//! Who a statement speaks of: Unix users and groups, by name or id, and the principals of AWS that stand for them.
//!
//! A decision compares ids only. A name counts as the id that it was bound to when the document was saved; one that
//! was bound to none is unknown, which an Allow does not count on and a Deny does.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::PolicyFault;
use super::truth::Truth;

/// The account that every ARN of this store has in [`principal_arn`]; a document may give any.
pub(super) const ACCOUNT: &str = "000000000000";

/// A user or a group as a document's `Unix` principals write it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PForm {
    /// `alice`
    User(String),
    /// `uid:1001`
    Uid(u32),
    /// `group:finance`
    Group(String),
    /// `gid:2000`
    Gid(u32),
}

/// Text that is no user or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PFormError {
    /// Not a name: empty, with a control character, a colon, a slash, a comma or a `*`, or with space at an end.
    Name,
    /// Digits alone: `uid:N` says what is meant.
    Number,
    /// Not an id from 0 to 4294967294.
    Id,
}

impl fmt::Display for PFormError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected())
    }
}

impl std::error::Error for PFormError {}

impl PFormError {
    const fn expected(self) -> &'static str {
        match self {
            Self::Name => "not a user NAME, uid:N, group:NAME or gid:N",
            Self::Number => "a number is no name: write uid:N or gid:N",
            Self::Id => "an id is a number from 0 to 4294967294",
        }
    }
}

impl PForm {
    pub fn parse(text: &str) -> Result<Self, PFormError> {
        if let Some(id) = text.strip_prefix("uid:") {
            return Ok(Self::Uid(parse_id(id)?));
        }
        if let Some(id) = text.strip_prefix("gid:") {
            return Ok(Self::Gid(parse_id(id)?));
        }
        if let Some(name) = text.strip_prefix("group:") {
            return Ok(Self::Group(parse_name(name)?));
        }
        Ok(Self::User(parse_name(text)?))
    }
}

impl FromStr for PForm {
    type Err = PFormError;

    fn from_str(text: &str) -> Result<Self, PFormError> {
        Self::parse(text)
    }
}

impl fmt::Display for PForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => f.write_str(name),
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Group(name) => write!(f, "group:{name}"),
            Self::Gid(gid) => write!(f, "gid:{gid}"),
        }
    }
}

/// Id -1 stands for 'no id' in the kernel's interfaces.
fn parse_id(text: &str) -> Result<u32, PFormError> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = plain && (text == "0" || !text.starts_with('0'));
    match text.parse() {
        Ok(id) if canonical && id != u32::MAX => Ok(id),
        _ => Err(PFormError::Id),
    }
}

/// What a directory service may call a user (`DOM\user`, `user@dom`, names with spaces inside), but nothing that
/// could be taken for another form.
fn parse_name(text: &str) -> Result<String, PFormError> {
    const LONGEST: usize = 256;
    if text.is_empty() || text.len() > LONGEST || text.trim() != text {
        return Err(PFormError::Name);
    }
    if text.chars().any(|c| c.is_control() || matches!(c, ':' | '/' | ',' | '*' | '?' | '"')) {
        return Err(PFormError::Name);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PFormError::Number);
    }
    Ok(text.to_owned())
}

/// What one string of a `Principal` stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    Everyone,
    /// The account: whoever the store policy speaks for.
    Account,
    Unix(PForm),
    /// A principal of AWS that has no counterpart here.
    Nobody,
}

pub(super) fn parse_unix(text: &str) -> Result<Named, PolicyFault> {
    if text == "*" {
        return Ok(Named::Everyone);
    }
    PForm::parse(text)
        .map(Named::Unix)
        .map_err(|error| PolicyFault::InvalidPrincipal { text: text.to_owned(), expected: error.expected() })
}

/// Source: IAM User Guide, 'AWS JSON policy elements: Principal'.
pub(super) fn parse_aws(text: &str) -> Result<Named, PolicyFault> {
    let invalid = |expected| PolicyFault::InvalidPrincipal { text: text.to_owned(), expected };
    if text == "*" {
        return Ok(Named::Everyone);
    }
    if is_account(text) {
        return Ok(Named::Account);
    }
    if is_deleted_id(text) {
        return Ok(Named::Nobody);
    }
    let mut fields = text.splitn(6, ':');
    let mut field = || fields.next().unwrap_or_default();
    let (arn, partition, service, region, account, rest) = (field(), field(), field(), field(), field(), field());
    if arn != "arn" {
        return Err(invalid("expected an ARN, an account or \"*\"; a Unix user is {\"Unix\": \"NAME\"}"));
    }
    let known_partition = partition == "aws" || partition.starts_with("aws-");
    if !known_partition || !region.is_empty() || !is_account(account) {
        return Err(invalid("expected arn:aws:iam::ACCOUNT:... with an account of 12 digits"));
    }
    if rest.contains(['*', '?']) {
        return Err(invalid("a principal has no wildcards"));
    }
    let (kind, name) = rest.split_once('/').unwrap_or((rest, ""));
    match (service, kind) {
        ("iam", "root") if rest == "root" => Ok(Named::Account),
        ("iam", "user") => {
            let name = name.rsplit('/').next().unwrap_or_default();
            let name = parse_name(name).map_err(|error| invalid(error.expected()))?;
            Ok(Named::Unix(PForm::User(name)))
        }
        ("iam", "role" | "saml-provider" | "oidc-provider") | ("sts", "assumed-role" | "federated-user")
            if !name.is_empty() =>
        {
            Ok(Named::Nobody)
        }
        _ => Err(invalid("expected a user, a role or the root of an account")),
    }
}

pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What AWS shows for a user or a role that was deleted after the document was written.
fn is_deleted_id(text: &str) -> bool {
    let prefixed = text.starts_with("AIDA") || text.starts_with("AROA");
    prefixed && text.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
}

/// The value of `aws:PrincipalArn` for a user.
pub(super) fn principal_arn(username: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:user/{username}")
}

/// Names of users and groups, each with the id that it had when the document was saved.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bindings {
    pub users: BTreeMap<String, u32>,
    pub groups: BTreeMap<String, u32>,
}

/// The asker's identity, groups sorted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity<'a> {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Sorted; None where they are unknown, and the gid with them.
    pub(super) groups: Option<&'a [u32]>,
}

impl Identity<'_> {
    pub(super) fn is_in(&self, gid: u32) -> Truth {
        match self.groups {
            None => Truth::Unknown,
            Some(groups) => Truth::from(gid == self.gid || groups.binary_search(&gid).is_ok()),
        }
    }
}

/// A `Principal` or `NotPrincipal` in the form in which it is compared: ids sorted.
#[derive(Debug, Clone, Default)]
pub(super) struct Principals {
    pub(super) everyone: bool,
    pub(super) account: bool,
    uids: Vec<u32>,
    gids: Vec<u32>,
    users: Vec<String>,
    groups: Vec<String>,
}

impl Principals {
    pub(super) fn of(list: impl IntoIterator<Item = Named>) -> Self {
        let mut result = Self::default();
        for named in list {
            match named {
                Named::Everyone => result.everyone = true,
                Named::Account => result.account = true,
                Named::Nobody => {}
                Named::Unix(PForm::Uid(uid)) => result.uids.push(uid),
                Named::Unix(PForm::Gid(gid)) => result.gids.push(gid),
                Named::Unix(PForm::User(name)) => result.users.push(name),
                Named::Unix(PForm::Group(name)) => result.groups.push(name),
            }
        }
        result.uids.sort_unstable();
        result.gids.sort_unstable();
        result.users.sort_unstable();
        result.groups.sort_unstable();
        result
    }

    pub(super) fn uids(&self) -> &[u32] {
        &self.uids
    }

    pub(super) fn uses_groups(&self) -> bool {
        !self.gids.is_empty() || !self.groups.is_empty()
    }

    pub(super) fn names(&self, form: &PForm) -> bool {
        match form {
            PForm::User(name) => self.users.binary_search(name).is_ok(),
            PForm::Group(name) => self.groups.binary_search(name).is_ok(),
            PForm::Uid(uid) => self.uids.binary_search(uid).is_ok(),
            PForm::Gid(gid) => self.gids.binary_search(gid).is_ok(),
        }
    }

    /// Whether the asker is among them, the account apart.
    pub(super) fn include(&self, asker: &Identity<'_>, bindings: &Bindings) -> Truth {
        if self.everyone || self.uids.binary_search(&asker.uid).is_ok() {
            return Truth::Yes;
        }
        let users = self.users.iter().map(|name| match bindings.users.get(name) {
            Some(uid) => Truth::from(*uid == asker.uid),
            None => Truth::Unknown,
        });
        let groups = self.groups.iter().map(|name| match bindings.groups.get(name) {
            Some(gid) => asker.is_in(*gid),
            None => Truth::Unknown,
        });
        let gids = self.gids.iter().map(|gid| asker.is_in(*gid));
        Truth::any(users.chain(groups).chain(gids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_forms_parse_and_print_back() {
        for text in
            ["alice", "uid:1001", "uid:0", "group:finance", "gid:2000", "DOM\\bob", "bob@dom", "group:domain users"]
        {
            assert_eq!(PForm::parse(text).unwrap().to_string(), text);
        }
        for (bad, error) in [
            ("", PFormError::Name),
            ("group:", PFormError::Name),
            ("a:b", PFormError::Name),
            (" a", PFormError::Name),
            ("a\nb", PFormError::Name),
            ("a*", PFormError::Name),
            ("group:gid:1", PFormError::Name),
            ("1001", PFormError::Number),
            ("group:7", PFormError::Number),
            ("uid:", PFormError::Id),
            ("uid:-1", PFormError::Id),
            ("uid:+1", PFormError::Id),
            ("uid:01", PFormError::Id),
            ("uid:4294967295", PFormError::Id),
            ("gid:4294967296", PFormError::Id),
        ] {
            assert_eq!(PForm::parse(bad), Err(error), "{bad}");
        }
    }

    #[test]
    fn arns_stand_for_unix_users_the_account_or_nobody() {
        let user = |name: &str| Ok(Named::Unix(PForm::User(name.to_owned())));
        assert_eq!(parse_aws("arn:aws:iam::111122223333:user/alice"), user("alice"));
        assert_eq!(parse_aws("arn:aws:iam::111122223333:user/div/team/alice"), user("alice"));
        assert_eq!(parse_aws("arn:aws-us-gov:iam::111122223333:user/alice"), user("alice"));
        assert_eq!(parse_aws("arn:aws:iam::111122223333:root"), Ok(Named::Account));
        assert_eq!(parse_aws("111122223333"), Ok(Named::Account));
        assert_eq!(parse_aws("*"), Ok(Named::Everyone));
        for nobody in [
            "arn:aws:iam::111122223333:role/admin",
            "arn:aws:iam::111122223333:role/aws-service-role/x.amazonaws.com/y",
            "arn:aws:sts::111122223333:assumed-role/admin/alice",
            "arn:aws:sts::111122223333:federated-user/alice",
            "arn:aws:iam::111122223333:saml-provider/x",
            "AIDACKCEVSQ6C2EXAMPLE",
        ] {
            assert_eq!(parse_aws(nobody), Ok(Named::Nobody), "{nobody}");
        }
        for bad in [
            "alice",
            "",
            "11112222333",
            "arn:aws:iam::111122223333:user/",
            "arn:aws:iam::111122223333:user/*",
            "arn:aws:iam::111122223333:group/finance",
            "arn:aws:iam::1:user/alice",
            "arn:aws:iam:eu:111122223333:user/a",
            "arn:aws:iam::111122223333:root/x",
            "arn:gcp:iam::111122223333:root",
            "arn:aws:iam::111122223333:user/1001",
            "arn:aws:s3:::bucket",
            "arn:aws:iam::111122223333:user/a:b",
            "arn:aws:iam::111122223333:role",
        ] {
            assert!(parse_aws(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_compared_and_the_unbound_is_unknown() {
        let bindings = Bindings {
            users: BTreeMap::from([("alice".to_owned(), 1001)]),
            groups: BTreeMap::from([("staff".to_owned(), 50)]),
        };
        let parse = |list: &[&str]| Principals::of(list.iter().map(|text| parse_unix(text).unwrap()));
        let asker = |uid, gid, groups| Identity { uid, gid, groups };
        let is = |list: &[&str], who: Identity<'_>| parse(list).include(&who, &bindings);
        assert_eq!(is(&["alice"], asker(1001, 0, None)), Truth::Yes);
        assert_eq!(is(&["alice"], asker(1002, 0, None)), Truth::No);
        assert_eq!(is(&["bob"], asker(1002, 0, None)), Truth::Unknown);
        assert_eq!(is(&["bob", "alice"], asker(1001, 0, None)), Truth::Yes);
        assert_eq!(is(&["group:staff"], asker(1, 50, Some(&[]))), Truth::Yes);
        assert_eq!(is(&["group:staff"], asker(1, 2, Some(&[7, 50]))), Truth::Yes);
        assert_eq!(is(&["gid:50"], asker(1, 2, Some(&[7]))), Truth::No);
        assert_eq!(is(&["gid:50"], asker(1, 50, None)), Truth::Unknown);
        assert_eq!(is(&["group:nobody"], asker(1, 50, Some(&[50]))), Truth::Unknown);
        assert_eq!(is(&["*"], asker(9, 9, None)), Truth::Yes);
        assert_eq!(is(&[], asker(9, 9, None)), Truth::No);
    }

    #[test]
    fn bindings_take_no_unknown_member() {
        let text = r#"{"users":{"alice":1001},"groups":{}}"#;
        let bindings: Bindings = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&bindings).unwrap(), text);
        assert!(serde_json::from_str::<Bindings>(r#"{"users":{},"groups":{},"x":1}"#).is_err());
    }
}
