//! The `Condition` of a statement: every operator of IAM over the condition keys that kmsfs knows.
//!
//! Within a key the values are alternatives; keys and operators must all hold. A negated operator holds where none of
//! its values matches, and where the key is absent. A test that cannot be decided (unknown groups or user name, a
//! value of the request that is not of the operator's type) is [`Truth::Unknown`].
//!
//! Source: IAM User Guide, 'Condition operators', 'Single-valued vs. multivalued context keys'; AWS KMS Developer
//! Guide, 'Condition keys for AWS KMS'.

use std::borrow::Cow;

use super::error::{PolicyError, PolicyFault, nearest};
use super::glob::{Budget, Language, Pattern, Style, Variables, folded};
use super::json::{Member, Node, Value};
use super::literal::{Network, base64, date, decimal, iso8601};
use super::principal::{ACCOUNT, Identity, is_account, principal_arn};
use super::truth::Truth;
use crate::types::EncryptionContext;

/// What a condition may ask about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) asker: Identity<'a>,
    pub(super) username: Option<&'a str>,
    pub(super) context: &'a EncryptionContext,
    /// The key is called for itself, not for a table: no service stands in between.
    pub(super) direct: bool,
    pub(super) now: i64,
    pub(super) budget: &'a Budget,
}

impl<'a> Facts<'a> {
    pub(super) const fn variables(&self) -> Variables<'a> {
        Variables { uid: self.asker.uid, username: self.username, budget: self.budget }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    /// `kms:EncryptionContext:KEY`, the key without letter case.
    Context(String),
    ContextKeys,
    CurrentTime,
    EpochTime,
    Username,
    PrincipalArn,
    ViaService,
    CallerAccount,
    GrantIsForAwsResource,
    SourceIp,
    Uid,
    Gid,
    Groups,
}

const KEYS: [(&str, Key); 12] = [
    ("kms:EncryptionContextKeys", Key::ContextKeys),
    ("aws:CurrentTime", Key::CurrentTime),
    ("aws:EpochTime", Key::EpochTime),
    ("aws:username", Key::Username),
    ("aws:PrincipalArn", Key::PrincipalArn),
    ("kms:ViaService", Key::ViaService),
    ("kms:CallerAccount", Key::CallerAccount),
    ("kms:GrantIsForAWSResource", Key::GrantIsForAwsResource),
    ("aws:SourceIp", Key::SourceIp),
    ("kmsfs:Uid", Key::Uid),
    ("kmsfs:Gid", Key::Gid),
    ("kmsfs:Groups", Key::Groups),
];

const CONTEXT_PREFIX: &str = "kms:EncryptionContext:";

/// What a request says of a key.
enum Found<'a> {
    Absent,
    Unknown,
    Values(Vec<Cow<'a, str>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text(Style),
    Number(Order),
    Date(Order),
    Bool,
    Binary,
    Ip,
    Arn,
}

/// Name, kind, and whether it is the negation of that kind.
const OPERATORS: [(&str, Kind, bool); 26] = [
    ("StringEquals", Kind::Text(Style::Exact), false),
    ("StringNotEquals", Kind::Text(Style::Exact), true),
    ("StringEqualsIgnoreCase", Kind::Text(Style::Folded), false),
    ("StringNotEqualsIgnoreCase", Kind::Text(Style::Folded), true),
    ("StringLike", Kind::Text(Style::Wild), false),
    ("StringNotLike", Kind::Text(Style::Wild), true),
    ("NumericEquals", Kind::Number(Order::Equal), false),
    ("NumericNotEquals", Kind::Number(Order::Equal), true),
    ("NumericLessThan", Kind::Number(Order::Less), false),
    ("NumericLessThanEquals", Kind::Number(Order::LessEqual), false),
    ("NumericGreaterThan", Kind::Number(Order::Greater), false),
    ("NumericGreaterThanEquals", Kind::Number(Order::GreaterEqual), false),
    ("DateEquals", Kind::Date(Order::Equal), false),
    ("DateNotEquals", Kind::Date(Order::Equal), true),
    ("DateLessThan", Kind::Date(Order::Less), false),
    ("DateLessThanEquals", Kind::Date(Order::LessEqual), false),
    ("DateGreaterThan", Kind::Date(Order::Greater), false),
    ("DateGreaterThanEquals", Kind::Date(Order::GreaterEqual), false),
    ("Bool", Kind::Bool, false),
    ("BinaryEquals", Kind::Binary, false),
    ("IpAddress", Kind::Ip, false),
    ("NotIpAddress", Kind::Ip, true),
    ("ArnEquals", Kind::Arn, false),
    ("ArnLike", Kind::Arn, false),
    ("ArnNotEquals", Kind::Arn, true),
    ("ArnNotLike", Kind::Arn, true),
];

const ANY_PREFIX: &str = "ForAnyValue:";
const ALL_PREFIX: &str = "ForAllValues:";
const IF_EXISTS: &str = "IfExists";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantifier {
    /// None given: the key has one value. Of a key with several, one that matches is enough, and a negated operator
    /// is still the opposite of the plain one.
    One,
    Any,
    All,
}

#[derive(Debug, Clone, Copy)]
enum Operator {
    Null,
    Compare { kind: Kind, negated: bool, quantifier: Quantifier, if_exists: bool },
}

/// A value of the document, ready to be compared with one of the request.
#[derive(Debug, Clone)]
enum Matcher {
    Text(Pattern),
    Number(Order, i128),
    Date(Order, i128),
    Bool(bool),
    Binary(Vec<u8>),
    Ip(Network),
    /// Six fields.
    Arn(Vec<Pattern>),
}

/// One key under one operator.
#[derive(Debug, Clone)]
pub(super) struct Test {
    key: Key,
    check: Check,
}

#[derive(Debug, Clone)]
enum Check {
    Null { absent: Vec<bool> },
    Compare { negated: bool, quantifier: Quantifier, if_exists: bool, matchers: Vec<Matcher> },
}

/// Reads the value of `Condition`.
pub(super) fn parse(node: &Node, language: Language) -> Result<Vec<Test>, PolicyError> {
    let mut tests = Vec::new();
    for block in members(node, "Condition")? {
        let operator = parse_operator(&block.name).map_err(|fault| PolicyError::at(block.pos, fault))?;
        let start = tests.len();
        for member in members(&block.node, &block.name)? {
            let test = parse_test(&block.name, operator, member, language)?;
            if tests.iter().skip(start).any(|earlier: &Test| earlier.key == test.key) {
                return Err(PolicyError::at(member.pos, PolicyFault::DuplicateConditionKey(member.name.clone())));
            }
            tests.push(test);
        }
        if tests.len() == start {
            return Err(PolicyError::at(block.node.pos, PolicyFault::Empty(block.name.clone())));
        }
    }
    Ok(tests)
}

fn members<'a>(node: &'a Node, what: &str) -> Result<&'a [Member], PolicyError> {
    node.members().ok_or_else(|| {
        PolicyError::at(node.pos, PolicyFault::WrongType { what: what.to_owned(), expected: "an object" })
    })
}

fn parse_operator(name: &str) -> Result<Operator, PolicyFault> {
    if name == "Null" {
        return Ok(Operator::Null);
    }
    let (quantifier, rest) = if let Some(rest) = name.strip_prefix(ANY_PREFIX) {
        (Quantifier::Any, rest)
    } else if let Some(rest) = name.strip_prefix(ALL_PREFIX) {
        (Quantifier::All, rest)
    } else {
        (Quantifier::One, name)
    };
    let (if_exists, base) = rest.strip_suffix(IF_EXISTS).map_or((false, rest), |base| (true, base));
    let known = OPERATORS.iter().find(|(known, ..)| *known == base);
    let Some((_, kind, negated)) = known else {
        let names = OPERATORS.iter().map(|(name, ..)| *name).chain(["Null"]);
        return Err(PolicyFault::UnknownOperator { name: name.to_owned(), nearest: nearest(base, names) });
    };
    Ok(Operator::Compare { kind: *kind, negated: *negated, quantifier, if_exists })
}

fn parse_key(name: &str) -> Result<Key, PolicyFault> {
    if let Some((prefix, key)) = name.split_at_checked(CONTEXT_PREFIX.len())
        && prefix.eq_ignore_ascii_case(CONTEXT_PREFIX)
        && !key.is_empty()
    {
        return Ok(Key::Context(folded(key)));
    }
    if let Some((_, key)) = KEYS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        return Ok(key.clone());
    }
    let names = KEYS.iter().map(|(name, _)| *name).chain([CONTEXT_PREFIX]);
    Err(PolicyFault::UnknownConditionKey { name: name.to_owned(), nearest: nearest(name, names) })
}

fn parse_test(
    operator_name: &str,
    operator: Operator,
    member: &Member,
    language: Language,
) -> Result<Test, PolicyError> {
    let key = parse_key(&member.name).map_err(|fault| PolicyError::at(member.pos, fault))?;
    let values = member.node.one_or_many();
    if values.is_empty() {
        return Err(PolicyError::at(member.node.pos, PolicyFault::Empty(member.name.clone())));
    }
    let check = match operator {
        Operator::Null => {
            let absent = values.iter().map(|node| at(node, scalar(node).and_then(|text| parse_bool(&text))));
            Check::Null { absent: absent.collect::<Result<_, _>>()? }
        }
        Operator::Compare { kind, negated, quantifier, if_exists } => {
            if !key.suits(kind) {
                let (operator, key) = (operator_name.to_owned(), member.name.clone());
                return Err(PolicyError::at(member.pos, PolicyFault::UnsuitedOperator { operator, key }));
            }
            let matchers = values
                .iter()
                .map(|node| at(node, scalar(node).and_then(|text| parse_matcher(&text, &key, kind, language))));
            Check::Compare { negated, quantifier, if_exists, matchers: matchers.collect::<Result<_, _>>()? }
        }
    };
    Ok(Test { key, check })
}

fn at<T>(node: &Node, result: Result<T, PolicyFault>) -> Result<T, PolicyError> {
    result.map_err(|fault| PolicyError::at(node.pos, fault))
}

/// A value of a condition is a string, or a number or a truth value that stands for its text.
fn scalar(node: &Node) -> Result<Cow<'_, str>, PolicyFault> {
    match &node.value {
        Value::String(text) | Value::Number(text) => Ok(Cow::Borrowed(text)),
        Value::Bool(value) => Ok(Cow::Borrowed(if *value { "true" } else { "false" })),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(PolicyFault::WrongType {
            what: "a condition's value".to_owned(),
            expected: "a string, a number or a truth value",
        }),
    }
}

fn parse_bool(text: &str) -> Result<bool, PolicyFault> {
    bool_of(text).ok_or_else(|| invalid(text, "\"true\" or \"false\""))
}

fn bool_of(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

fn invalid(text: &str, expected: &'static str) -> PolicyFault {
    PolicyFault::InvalidValue { text: text.to_owned(), expected }
}

fn parse_matcher(text: &str, key: &Key, kind: Kind, language: Language) -> Result<Matcher, PolicyFault> {
    let text = if *key == Key::PrincipalArn { localised(text) } else { Cow::Borrowed(text) };
    Ok(match kind {
        Kind::Text(style) => {
            let pattern = Pattern::parse(&text, language, style)?;
            if key.is_id() && !pattern.is_numeric() {
                return Err(invalid(&text, "a numeric id; a Principal takes names of users and groups"));
            }
            Matcher::Text(pattern)
        }
        Kind::Number(order) => {
            Matcher::Number(order, decimal(&text).ok_or_else(|| invalid(&text, "a decimal number"))?)
        }
        Kind::Date(order) => Matcher::Date(
            order,
            date(&text)
                .ok_or_else(|| invalid(&text, "a date such as 2026-12-31 or 2026-12-31T23:59:59Z, or epoch seconds"))?,
        ),
        Kind::Bool => Matcher::Bool(parse_bool(&text)?),
        Kind::Binary => Matcher::Binary(base64(&text).ok_or_else(|| invalid(&text, "base 64"))?),
        Kind::Ip => Matcher::Ip(Network::parse(&text).ok_or_else(|| invalid(&text, "an address or a network"))?),
        Kind::Arn => {
            let pattern = Pattern::parse(&text, language, Style::Wild)?;
            Matcher::Arn(pattern.arn_fields().ok_or_else(|| invalid(&text, "an ARN of six fields"))?)
        }
    })
}

/// An ARN of a user as this store writes it: an account of twelve digits is the store's, and a path before the name
/// does not count, as in a `Principal`.
fn localised(text: &str) -> Cow<'_, str> {
    let fields: Vec<&str> = text.splitn(6, ':').collect();
    let &[arn, partition, service, region, account, rest] = fields.as_slice() else { return Cow::Borrowed(text) };
    let account = if is_account(account) { ACCOUNT } else { account };
    let partition = if partition.starts_with("aws-") { "aws" } else { partition };
    let rest = match rest.rsplit_once('/') {
        Some((path, name)) if path.starts_with("user/") && !rest.contains(['*', '?', '$']) => format!("user/{name}"),
        _ => rest.to_owned(),
    };
    Cow::Owned(format!("{arn}:{partition}:{service}:{region}:{account}:{rest}"))
}

impl Key {
    const fn is_id(&self) -> bool {
        matches!(self, Self::Uid | Self::Gid | Self::Groups)
    }

    const fn suits(&self, kind: Kind) -> bool {
        match self {
            Self::Context(_) | Self::ContextKeys => true,
            Self::CurrentTime => matches!(kind, Kind::Date(_) | Kind::Text(_)),
            Self::EpochTime => matches!(kind, Kind::Date(_) | Kind::Number(_) | Kind::Text(_)),
            Self::Username => matches!(kind, Kind::Text(_) | Kind::Binary),
            Self::PrincipalArn => matches!(kind, Kind::Text(_) | Kind::Arn),
            Self::ViaService => matches!(kind, Kind::Text(_)),
            Self::CallerAccount | Self::Uid | Self::Gid | Self::Groups => {
                matches!(kind, Kind::Text(_) | Kind::Number(_))
            }
            Self::GrantIsForAwsResource => matches!(kind, Kind::Bool | Kind::Text(_)),
            Self::SourceIp => matches!(kind, Kind::Ip | Kind::Text(_)),
        }
    }

    fn find<'a>(&self, facts: &Facts<'a>) -> Found<'a> {
        let one = |text: String| Found::Values(vec![Cow::Owned(text)]);
        match self {
            Self::Context(key) => context_value(key, facts.context),
            Self::ContextKeys => {
                let keys: Vec<_> = facts.context.pairs().keys().map(|key| Cow::Borrowed(key.as_str())).collect();
                if keys.is_empty() { Found::Absent } else { Found::Values(keys) }
            }
            Self::CurrentTime => one(iso8601(facts.now)),
            Self::EpochTime => one(facts.now.to_string()),
            Self::Username => facts.username.map_or(Found::Unknown, |name| Found::Values(vec![Cow::Borrowed(name)])),
            Self::PrincipalArn => facts.username.map_or(Found::Unknown, |name| one(principal_arn(name))),
            Self::ViaService if facts.direct => Found::Absent,
            Self::ViaService => Found::Values(vec![Cow::Borrowed("kmsfs")]),
            // There is no account to compare with: no Allow may count on it, and no Deny be escaped by it.
            Self::CallerAccount => Found::Unknown,
            Self::GrantIsForAwsResource => Found::Values(vec![Cow::Borrowed("false")]),
            Self::SourceIp => Found::Absent,
            Self::Uid => one(facts.asker.uid.to_string()),
            Self::Gid => match facts.asker.groups {
                Some(_) => one(facts.asker.gid.to_string()),
                None => Found::Unknown,
            },
            Self::Groups => match facts.asker.groups {
                Some(groups) => {
                    let others = groups.iter().filter(|gid| **gid != facts.asker.gid);
                    let all = std::iter::once(&facts.asker.gid).chain(others);
                    Found::Values(all.map(|gid| Cow::Owned(gid.to_string())).collect())
                }
                None => Found::Unknown,
            },
        }
    }
}

/// Letter case of the key does not count, as in AWS KMS. A context with two keys that differ in nothing else could
/// answer both ways.
fn context_value<'a>(key: &str, context: &'a EncryptionContext) -> Found<'a> {
    let same = |other: &str| other.chars().flat_map(char::to_lowercase).eq(key.chars());
    let mut values = context.pairs().iter().filter(|(other, _)| same(other)).map(|(_, value)| value);
    match (values.next(), values.next()) {
        (None, _) => Found::Absent,
        (Some(value), None) => Found::Values(vec![Cow::Borrowed(value)]),
        (Some(_), Some(_)) => Found::Unknown,
    }
}

impl Test {
    pub(super) fn holds(&self, facts: &Facts<'_>) -> Truth {
        let found = self.key.find(facts);
        match &self.check {
            Check::Null { absent } => match found {
                Found::Unknown => Truth::Unknown,
                Found::Absent => Truth::from(absent.contains(&true)),
                Found::Values(_) => Truth::from(absent.contains(&false)),
            },
            Check::Compare { negated, quantifier, if_exists, matchers } => {
                let values = match found {
                    Found::Unknown => return Truth::Unknown,
                    Found::Absent => return Truth::from(holds_for_absent(*quantifier, *negated, *if_exists)),
                    Found::Values(values) => values,
                };
                let turn = |truth: Truth| if *negated { !truth } else { truth };
                let matched =
                    values.iter().map(|value| Truth::any(matchers.iter().map(|matcher| matcher.matches(value, facts))));
                match quantifier {
                    Quantifier::One => turn(Truth::any(matched)),
                    Quantifier::Any => Truth::any(matched.map(turn)),
                    Quantifier::All => Truth::all(matched.map(turn)),
                }
            }
        }
    }

    pub(super) const fn tests_context(&self) -> bool {
        matches!(self.key, Key::Context(_) | Key::ContextKeys)
    }

    pub(super) const fn depends_on_time(&self) -> bool {
        matches!(self.key, Key::CurrentTime | Key::EpochTime)
    }

    pub(super) const fn uses_groups(&self) -> bool {
        matches!(self.key, Key::Gid | Key::Groups)
    }

    pub(super) fn uses_username(&self) -> bool {
        let in_value = match &self.check {
            Check::Null { .. } => false,
            Check::Compare { matchers, .. } => matchers.iter().any(Matcher::uses_username),
        };
        in_value || matches!(self.key, Key::Username | Key::PrincipalArn)
    }
}

/// `ForAnyValue` asks for a value, whatever else is said.
const fn holds_for_absent(quantifier: Quantifier, negated: bool, if_exists: bool) -> bool {
    match quantifier {
        Quantifier::All => true,
        Quantifier::Any => false,
        Quantifier::One => negated || if_exists,
    }
}

impl Order {
    fn holds(self, value: i128, bound: i128) -> bool {
        match self {
            Self::Equal => value == bound,
            Self::Less => value < bound,
            Self::LessEqual => value <= bound,
            Self::Greater => value > bound,
            Self::GreaterEqual => value >= bound,
        }
    }
}

impl Matcher {
    fn uses_username(&self) -> bool {
        match self {
            Self::Text(pattern) => pattern.uses_username(),
            Self::Arn(fields) => fields.iter().any(Pattern::uses_username),
            Self::Number(..) | Self::Date(..) | Self::Bool(_) | Self::Binary(_) | Self::Ip(_) => false,
        }
    }

    fn matches(&self, value: &str, facts: &Facts<'_>) -> Truth {
        let known = |answer: Option<bool>| answer.map_or(Truth::Unknown, Truth::from);
        match self {
            Self::Text(pattern) => pattern.matches(value, &facts.variables()),
            Self::Number(order, bound) => known(decimal(value).map(|value| order.holds(value, *bound))),
            Self::Date(order, bound) => known(date(value).map(|value| order.holds(value, *bound))),
            Self::Bool(wanted) => known(bool_of(value).map(|value| value == *wanted)),
            Self::Binary(bytes) => Truth::from(value.as_bytes() == bytes),
            Self::Ip(network) => known(network.contains(value)),
            Self::Arn(fields) => {
                let parts: Vec<&str> = value.splitn(fields.len(), ':').collect();
                if parts.len() != fields.len() {
                    return Truth::Unknown;
                }
                let variables = facts.variables();
                Truth::all(fields.iter().zip(parts).map(|(field, part)| field.matches(part, &variables)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::Truth::{No, Unknown, Yes};
    use super::*;

    const NOW: i64 = 1_785_542_399; // 2026-07-31T23:59:59Z

    fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
        EncryptionContext::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    fn parsed(condition: &str) -> Result<Vec<Test>, PolicyError> {
        parse(&json::read(condition).unwrap(), Language::V2012)
    }

    /// alice, uid 1001, gid 100, groups 7 and 2000, over an item of the table `orders`.
    fn holds(condition: &str) -> Truth {
        let context =
            context(&[("kmsfs:table", "orders"), ("kmsfs:item", "2026/x.json"), ("Level", "7"), ("ip", "10.1.2.3")]);
        holds_in(condition, &context, Some(&[7, 2000]), Some("alice"))
    }

    fn holds_in(condition: &str, context: &EncryptionContext, groups: Option<&[u32]>, username: Option<&str>) -> Truth {
        holds_when(condition, context, groups, username, false)
    }

    fn holds_when(
        condition: &str,
        context: &EncryptionContext,
        groups: Option<&[u32]>,
        username: Option<&str>,
        direct: bool,
    ) -> Truth {
        let facts = Facts {
            asker: Identity { uid: 1001, gid: 100, groups },
            username,
            context,
            direct,
            now: NOW,
            budget: &Budget::new(),
        };
        Truth::all(parsed(condition).expect(condition).iter().map(|test| test.holds(&facts)))
    }

    fn check(table: &[(&str, Truth)]) {
        for (condition, expected) in table {
            assert_eq!(holds(condition), *expected, "{condition}");
        }
    }

    #[test]
    fn strings() {
        check(&[
            (r#"{"StringEquals":{"kms:EncryptionContext:kmsfs:table":"orders"}}"#, Yes),
            (r#"{"StringEquals":{"kms:EncryptionContext:kmsfs:table":"Orders"}}"#, No),
            (r#"{"StringEquals":{"kms:EncryptionContext:kmsfs:table":"ord*"}}"#, No),
            (r#"{"StringEquals":{"KMS:encryptioncontext:KMSFS:Table":["x","orders"]}}"#, Yes),
            (r#"{"StringNotEquals":{"kms:EncryptionContext:kmsfs:table":["x","orders"]}}"#, No),
            (r#"{"StringNotEquals":{"kms:EncryptionContext:kmsfs:table":["x","y"]}}"#, Yes),
            (r#"{"StringEqualsIgnoreCase":{"kms:EncryptionContext:kmsfs:table":"ORDERS"}}"#, Yes),
            (r#"{"StringNotEqualsIgnoreCase":{"kms:EncryptionContext:kmsfs:table":"ORDERS"}}"#, No),
            (r#"{"StringLike":{"kms:EncryptionContext:kmsfs:item":"2026/*"}}"#, Yes),
            (r#"{"StringLike":{"kms:EncryptionContext:kmsfs:item":"2025/*"}}"#, No),
            (r#"{"StringNotLike":{"kms:EncryptionContext:kmsfs:item":"*.json"}}"#, No),
            (r#"{"StringLike":{"aws:username":"al?ce"}}"#, Yes),
            (r#"{"StringEquals":{"aws:username":"${aws:username}"}}"#, Yes),
            (r#"{"StringEquals":{"kms:ViaService":"kmsfs"}}"#, Yes),
            (r#"{"StringEquals":{"kms:ViaService":"ec2.us-west-2.amazonaws.com"}}"#, No),
            (r#"{"StringLike":{"aws:CurrentTime":"2026-07-*"}}"#, Yes),
        ]);
    }

    #[test]
    fn a_direct_call_comes_by_no_service() {
        for (condition, direct, by_table) in [
            (r#"{"StringEquals":{"kms:ViaService":"kmsfs"}}"#, No, Yes),
            (r#"{"StringNotEquals":{"kms:ViaService":"kmsfs"}}"#, Yes, No),
            (r#"{"StringEqualsIfExists":{"kms:ViaService":"kmsfs"}}"#, Yes, Yes),
            (r#"{"Null":{"kms:ViaService":true}}"#, Yes, No),
        ] {
            let holds = |direct| holds_when(condition, &context(&[]), Some(&[]), Some("alice"), direct);
            assert_eq!((holds(true), holds(false)), (direct, by_table), "{condition}");
        }
    }

    #[test]
    fn an_absent_key() {
        check(&[
            (r#"{"StringEquals":{"kms:EncryptionContext:x":"a"}}"#, No),
            (r#"{"StringNotEquals":{"kms:EncryptionContext:x":"a"}}"#, Yes),
            (r#"{"StringNotLike":{"kms:EncryptionContext:x":"*"}}"#, Yes),
            (r#"{"NumericLessThan":{"kms:EncryptionContext:x":"5"}}"#, No),
            (r#"{"NumericNotEquals":{"kms:EncryptionContext:x":"5"}}"#, Yes),
            (r#"{"ArnNotLike":{"kms:EncryptionContext:x":"*"}}"#, Yes),
            (r#"{"Bool":{"kms:EncryptionContext:x":"false"}}"#, No),
            (r#"{"StringEqualsIfExists":{"kms:EncryptionContext:x":"a"}}"#, Yes),
            (r#"{"StringEqualsIfExists":{"kms:EncryptionContext:kmsfs:table":"a"}}"#, No),
            (r#"{"NumericLessThanIfExists":{"kms:EncryptionContext:x":"5"}}"#, Yes),
            (r#"{"Null":{"kms:EncryptionContext:x":"true"}}"#, Yes),
            (r#"{"Null":{"kms:EncryptionContext:x":false}}"#, No),
            (r#"{"Null":{"kms:EncryptionContext:kmsfs:table":"true"}}"#, No),
            (r#"{"Null":{"kms:EncryptionContext:kmsfs:table":"False"}}"#, Yes),
            (r#"{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}"#, No),
            (r#"{"NotIpAddress":{"aws:SourceIp":"10.0.0.0/8"}}"#, Yes),
            (r#"{"IpAddressIfExists":{"aws:SourceIp":"10.0.0.0/8"}}"#, Yes),
        ]);
    }

    #[test]
    fn sets() {
        let keys = r#""kms:EncryptionContextKeys""#;
        let all = r#"["kmsfs:table","kmsfs:item","Level","ip"]"#;
        check(&[
            (&format!(r#"{{"ForAllValues:StringEquals":{{{keys}:{all}}}}}"#), Yes),
            (&format!(r#"{{"ForAllValues:StringEquals":{{{keys}:"kmsfs:table"}}}}"#), No),
            (&format!(r#"{{"ForAnyValue:StringEquals":{{{keys}:"kmsfs:table"}}}}"#), Yes),
            (&format!(r#"{{"ForAnyValue:StringEquals":{{{keys}:"x"}}}}"#), No),
            (&format!(r#"{{"ForAnyValue:StringEquals":{{{keys}:"level"}}}}"#), No),
            (&format!(r#"{{"ForAnyValue:StringNotEquals":{{{keys}:"kmsfs:table"}}}}"#), Yes),
            (&format!(r#"{{"ForAnyValue:StringNotEquals":{{{keys}:{all}}}}}"#), No),
            (&format!(r#"{{"ForAllValues:StringNotEquals":{{{keys}:"kmsfs:table"}}}}"#), No),
            (&format!(r#"{{"ForAllValues:StringNotEquals":{{{keys}:["x","y"]}}}}"#), Yes),
            (&format!(r#"{{"StringEquals":{{{keys}:"kmsfs:table"}}}}"#), Yes),
            (&format!(r#"{{"StringNotEquals":{{{keys}:"kmsfs:table"}}}}"#), No),
        ]);
        let none = EncryptionContext::default();
        for (operator, expected) in [
            ("ForAllValues:StringEquals", Yes),
            ("ForAllValues:StringNotEquals", Yes),
            ("ForAllValues:StringEqualsIfExists", Yes),
            ("ForAnyValue:StringEquals", No),
            ("ForAnyValue:StringNotEquals", No),
            ("ForAnyValue:StringEqualsIfExists", No),
            ("StringEquals", No),
            ("StringNotEquals", Yes),
            ("StringEqualsIfExists", Yes),
        ] {
            let condition = format!(r#"{{"{operator}":{{{keys}:"x"}}}}"#);
            assert_eq!(holds_in(&condition, &none, None, None), expected, "{condition}");
        }
    }

    #[test]
    fn numbers() {
        check(&[
            (r#"{"NumericEquals":{"kms:EncryptionContext:Level":7}}"#, Yes),
            (r#"{"NumericEquals":{"kms:EncryptionContext:Level":"7.0"}}"#, Yes),
            (r#"{"NumericNotEquals":{"kms:EncryptionContext:Level":[6,7]}}"#, No),
            (r#"{"NumericLessThan":{"kms:EncryptionContext:Level":7}}"#, No),
            (r#"{"NumericLessThanEquals":{"kms:EncryptionContext:Level":7}}"#, Yes),
            (r#"{"NumericGreaterThan":{"kms:EncryptionContext:Level":"6.9"}}"#, Yes),
            (r#"{"NumericGreaterThanEquals":{"kms:EncryptionContext:Level":10}}"#, No),
            // A string that is no number answers neither way.
            (r#"{"NumericEquals":{"kms:EncryptionContext:kmsfs:table":7}}"#, Unknown),
            (r#"{"NumericNotEquals":{"kms:EncryptionContext:kmsfs:table":7}}"#, Unknown),
            (r#"{"NumericEquals":{"kmsfs:Uid":1001}}"#, Yes),
            (r#"{"StringLike":{"kmsfs:Uid":"10??"}}"#, Yes),
            (r#"{"NumericEquals":{"kmsfs:Gid":100}}"#, Yes),
            (r#"{"NumericEquals":{"kmsfs:Groups":2000}}"#, Yes),
            (r#"{"NumericEquals":{"kmsfs:Groups":100}}"#, Yes),
            (r#"{"NumericNotEquals":{"kmsfs:Groups":2000}}"#, No),
            (r#"{"ForAllValues:NumericLessThan":{"kmsfs:Groups":2000}}"#, No),
            (r#"{"ForAnyValue:StringEquals":{"kmsfs:Groups":["8","7"]}}"#, Yes),
        ]);
    }

    #[test]
    fn dates() {
        check(&[
            (r#"{"DateLessThan":{"aws:CurrentTime":"2026-08-01"}}"#, Yes),
            (r#"{"DateLessThan":{"aws:CurrentTime":"2026-07-31T23:59:59Z"}}"#, No),
            (r#"{"DateLessThanEquals":{"aws:CurrentTime":"2026-07-31T23:59:59Z"}}"#, Yes),
            (r#"{"DateEquals":{"aws:CurrentTime":"2026-08-01T01:59:59+02:00"}}"#, Yes),
            (r#"{"DateNotEquals":{"aws:CurrentTime":"2026-08-01T01:59:59+02:00"}}"#, No),
            (r#"{"DateGreaterThan":{"aws:EpochTime":"1785542398"}}"#, Yes),
            (r#"{"DateGreaterThanEquals":{"aws:EpochTime":"2026-08-01"}}"#, No),
            (r#"{"NumericGreaterThan":{"aws:EpochTime":1785542398}}"#, Yes),
            (
                r#"{"DateGreaterThan":{"aws:CurrentTime":"2026-01-01"},"DateLessThan":{"aws:CurrentTime":"2026-02-01"}}"#,
                No,
            ),
            (r#"{"DateGreaterThan":{"aws:CurrentTime":"2026-07"},"DateLessThan":{"aws:CurrentTime":"2026-08"}}"#, Yes),
            (r#"{"DateLessThan":{"kms:EncryptionContext:kmsfs:table":"2026-08"}}"#, Unknown),
        ]);
    }

    #[test]
    fn the_other_types() {
        check(&[
            (r#"{"Bool":{"kms:GrantIsForAWSResource":"true"}}"#, No),
            (r#"{"Bool":{"kms:GrantIsForAWSResource":true}}"#, No),
            (r#"{"Bool":{"kms:GrantIsForAWSResource":"false"}}"#, Yes),
            (r#"{"Bool":{"kms:EncryptionContext:kmsfs:table":"true"}}"#, Unknown),
            (r#"{"BinaryEquals":{"kms:EncryptionContext:kmsfs:table":"b3JkZXJz"}}"#, Yes),
            (r#"{"BinaryEquals":{"kms:EncryptionContext:kmsfs:table":"b3JkZXI="}}"#, No),
            (r#"{"IpAddress":{"kms:EncryptionContext:ip":["192.168.0.0/16","10.0.0.0/8"]}}"#, Yes),
            (r#"{"NotIpAddress":{"kms:EncryptionContext:ip":"10.1.2.3"}}"#, No),
            (r#"{"IpAddress":{"kms:EncryptionContext:kmsfs:table":"10.0.0.0/8"}}"#, Unknown),
            (r#"{"ArnEquals":{"aws:PrincipalArn":"arn:aws:iam::111122223333:user/alice"}}"#, Yes),
            (r#"{"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::111122223333:user/div/alice"}}"#, Yes),
            (r#"{"ArnLike":{"aws:PrincipalArn":"arn:*:iam::*:user/al*"}}"#, Yes),
            (r#"{"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::111122223333:role/alice"}}"#, No),
            (r#"{"ArnNotEquals":{"aws:PrincipalArn":"arn:aws:iam::111122223333:user/bob"}}"#, Yes),
            (r#"{"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::111122223333:user/${aws:username}"}}"#, Yes),
            (r#"{"StringEquals":{"aws:PrincipalArn":"arn:aws:iam::111122223333:user/alice"}}"#, Yes),
            (r#"{"ArnLike":{"kms:EncryptionContext:kmsfs:table":"*"}}"#, Unknown),
            (r#"{"StringEquals":{"kms:CallerAccount":"111122223333"}}"#, Unknown),
            (r#"{"StringNotEquals":{"kms:CallerAccount":"111122223333"}}"#, Unknown),
        ]);
    }

    #[test]
    fn every_operator_of_iam_is_known() {
        for (name, ..) in OPERATORS {
            for prefix in ["", ANY_PREFIX, ALL_PREFIX] {
                for suffix in ["", IF_EXISTS] {
                    assert!(parse_operator(&format!("{prefix}{name}{suffix}")).is_ok());
                }
            }
        }
        for unknown in [
            "NullIfExists",
            "ForAnyValue:Null",
            "stringequals",
            "StringEqual",
            "",
            "IfExists",
            "StringEqualsIfExistsIfExists",
        ] {
            assert!(parse_operator(unknown).is_err(), "{unknown}");
        }
    }

    #[test]
    fn what_is_unknown_of_the_asker_is_unknown_in_every_test() {
        let none = EncryptionContext::default();
        for (condition, groups, username) in [
            (r#"{"NumericEquals":{"kmsfs:Gid":100}}"#, None, Some("alice")),
            (r#"{"NumericNotEquals":{"kmsfs:Groups":100}}"#, None, Some("alice")),
            (r#"{"ForAllValues:NumericNotEquals":{"kmsfs:Groups":100}}"#, None, Some("alice")),
            (r#"{"Null":{"kmsfs:Groups":"true"}}"#, None, Some("alice")),
            (r#"{"StringEquals":{"aws:username":"alice"}}"#, Some(&[7][..]), None),
            (r#"{"StringNotEquals":{"aws:username":"alice"}}"#, Some(&[7]), None),
            (r#"{"Null":{"aws:username":"true"}}"#, Some(&[7]), None),
            (r#"{"ArnLike":{"aws:PrincipalArn":"*"}}"#, Some(&[7]), None),
            (r#"{"StringEquals":{"kms:ViaService":"${aws:username}"}}"#, Some(&[7]), None),
        ] {
            assert_eq!(holds_in(condition, &none, groups, username), Unknown, "{condition}");
        }
        // What is false anyway stays false.
        let both = r#"{"NumericEquals":{"kmsfs:Gid":100},"StringEquals":{"kms:ViaService":"x"}}"#;
        assert_eq!(holds_in(both, &none, None, None), No);
    }

    #[test]
    fn two_context_keys_that_differ_in_case_answer_neither_way() {
        let context = context(&[("App", "x"), ("app", "y")]);
        for operator in ["StringEquals", "StringNotEquals", "ForAnyValue:StringEquals"] {
            let condition = format!(r#"{{"{operator}":{{"kms:EncryptionContext:APP":"x"}}}}"#);
            assert_eq!(holds_in(&condition, &context, None, None), Unknown, "{condition}");
        }
    }

    #[test]
    fn letter_case_of_a_context_key_does_not_count_in_any_alphabet() {
        let condition = r#"{"StringEquals":{"kms:EncryptionContext:ΟΔΟΣ":"x"}}"#;
        for key in ["ΟΔΟΣ", "οδοσ"] {
            assert_eq!(holds_in(condition, &context(&[(key, "x")]), None, None), Yes, "{key}");
        }
    }

    #[test]
    fn faults_tell_their_place() {
        for (condition, column, part) in [
            (r#"{"StringEqual":{"aws:username":"a"}}"#, 2, "unknown condition operator"),
            (r#"{"StringEquals":{"aws:userid":"a"}}"#, 18, "unknown condition key"),
            (r#"{"StringEquals":{"kms:EncryptionContext:":"a"}}"#, 18, "unknown condition key"),
            (r#"{"StringEquals":{"aws:username":["a",{}]}}"#, 38, "must be a string"),
            (r#"{"StringEquals":{"aws:username":[]}}"#, 33, "is empty"),
            (r#"{"StringEquals":{}}"#, 17, "is empty"),
            (r#"{"StringEquals":"x"}"#, 17, "must be an object"),
            (r#"{"StringEquals":{"aws:username":"a","AWS:UserName":"b"}}"#, 37, "stands twice"),
            (r#"{"StringEquals":{"aws:username":"${aws:userid}"}}"#, 33, "unknown policy variable"),
            (r#"{"NumericEquals":{"kmsfs:Uid":"alice"}}"#, 31, "decimal number"),
            (r#"{"NumericEquals":{"kmsfs:Uid":1e3}}"#, 31, "decimal number"),
            (r#"{"StringEquals":{"kmsfs:Groups":["7","finance"]}}"#, 38, "numeric id"),
            (r#"{"DateLessThan":{"aws:CurrentTime":"tomorrow"}}"#, 36, "not a date"),
            (r#"{"DateLessThan":{"aws:CurrentTime":2026}}"#, 36, "not a date"),
            (r#"{"DateLessThan":{"aws:username":"2026-01-01"}}"#, 18, "does not suit"),
            (r#"{"NumericEquals":{"aws:CurrentTime":1}}"#, 19, "does not suit"),
            (r#"{"Bool":{"kms:GrantIsForAWSResource":"yes"}}"#, 38, "\"true\" or \"false\""),
            (r#"{"Null":{"aws:username":"maybe"}}"#, 25, "\"true\" or \"false\""),
            (r#"{"BinaryEquals":{"aws:username":"x"}}"#, 33, "base 64"),
            (r#"{"IpAddress":{"aws:SourceIp":"10.0.0.0/64"}}"#, 30, "address or a network"),
            (r#"{"ArnEquals":{"aws:PrincipalArn":"alice"}}"#, 34, "six fields"),
        ] {
            let error = parsed(condition).expect_err(condition);
            assert_eq!((error.line, error.column), (1, column), "{condition}: {error}");
            assert!(error.to_string().contains(part), "{condition}: {error}");
        }
    }
}
