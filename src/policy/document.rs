//! A policy document, parsed: the grammar of AWS key policies.
//!
//! Source: IAM User Guide, 'Grammar of the IAM JSON policy language'; AWS KMS Developer Guide, 'Key policies'.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::actions::{self, ActionSet};
use super::condition::{self, Facts, Test};
use super::error::{PolicyError, PolicyFault, nearest};
use super::glob::{Language, Pattern, Style};
use super::json::{self, Member, Node, Pos, Value};
use super::principal::{Named, PForm, Principals, parse_aws, parse_unix};
use super::truth::Truth;

/// The longest document, in bytes. Source: AWS KMS Developer Guide, 'Resource quotas'.
pub const MAX_POLICY_LEN: usize = 32_768;

/// A valid policy document. It knows names, not ids: see [`Bindings`](super::Bindings).
#[derive(Debug, Clone)]
pub struct Policy {
    id: Option<String>,
    statements: Vec<Statement>,
    names: Vec<NameUse>,
    uses: Uses,
}

/// A name of a document that has to be bound to an id when the document is saved, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameUse {
    pub kind: NameKind,
    pub name: String,
    pub line: u32,
    pub column: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NameKind {
    User,
    Group,
}

/// How far a document, or the text so far of one that is still being written, has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing but space.
    Blank,
    /// More is needed.
    Incomplete,
    /// The first document ends before this byte. It is well-formed JSON; whether it is a policy, [`Policy::parse`]
    /// tells.
    Complete(usize),
    /// No continuation could make it a document.
    Broken(PolicyError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Allow,
    Deny,
}

#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub(super) sid: Option<Arc<str>>,
    pub(super) effect: Effect,
    pub(super) principals: Principals,
    /// `NotPrincipal`.
    pub(super) inverted: bool,
    /// `NotAction` is already turned round.
    pub(super) actions: ActionSet,
    resources: Resources,
    pub(super) conditions: Vec<Test>,
}

/// What a decision by the document may depend on, besides uid and action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts")]
pub(super) struct Uses {
    pub(super) groups: bool,
    pub(super) time: bool,
    pub(super) context: bool,
    pub(super) username: bool,
}

impl Policy {
    /// Parses a whole document.
    ///
    /// A document without `Version` is one of 2008-10-17, as in AWS. `Principal`, `Action` and `Resource` are needed in
    /// each statement; an empty `Principal` list is nobody. `Allow` with `NotPrincipal` is accepted, as AWS accepts it:
    /// it allows everyone else.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > MAX_POLICY_LEN {
            return Err(PolicyError::at(START, PolicyFault::TooLong));
        }
        Reading::default().document(&json::read(text)?)
    }

    /// [`Self::parse`] of bytes that may not even be text.
    pub fn parse_bytes(bytes: &[u8]) -> Result<Self, PolicyError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::parse(text),
            Err(error) => Err(PolicyError::at(end_of(valid_part(bytes, &error)), PolicyFault::NotUtf8)),
        }
    }

    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    pub fn statement_count(&self) -> usize {
        self.statements.len()
    }

    /// Every use of a user's or a group's name, in the order of the document.
    pub fn names(&self) -> &[NameUse] {
        &self.names
    }

    /// The uids that statements name as numbers.
    pub fn uids(&self) -> impl Iterator<Item = u32> {
        self.statements.iter().flat_map(|statement| statement.principals.uids().iter().copied())
    }

    /// Whether a decision may depend on the asker's groups (or gid, which is unknown where they are).
    pub const fn uses_groups(&self) -> bool {
        self.uses.groups
    }

    /// Whether a decision may depend on the time.
    pub const fn depends_on_time(&self) -> bool {
        self.uses.time
    }

    /// Whether a decision may depend on the encryption context.
    pub const fn tests_context(&self) -> bool {
        self.uses.context
    }

    /// Whether a decision may depend on the asker's user name.
    pub const fn uses_username(&self) -> bool {
        self.uses.username
    }

    pub(super) const fn own_uses(&self) -> Uses {
        self.uses
    }

    pub(super) fn statements(&self) -> &[Statement] {
        &self.statements
    }
}

/// How far `bytes` has come: whether a write has completed a document, so that it can be taken or refused at once.
pub fn progress(bytes: &[u8]) -> Progress {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = valid_part(bytes, &error);
            return match progress_of(valid) {
                // A character may be cut in two by the end of a write.
                open @ (Progress::Blank | Progress::Incomplete) if error.error_len().is_some() => {
                    let at = if open == Progress::Blank { START } else { end_of(valid) };
                    Progress::Broken(PolicyError::at(at, PolicyFault::NotUtf8))
                }
                Progress::Blank => Progress::Incomplete,
                settled @ (Progress::Incomplete | Progress::Complete(_) | Progress::Broken(_)) => settled,
            };
        }
    };
    progress_of(text)
}

fn progress_of(text: &str) -> Progress {
    const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];
    let too_long = Progress::Broken(PolicyError::at(START, PolicyFault::TooLong));
    let document = text.trim_start_matches(SPACE);
    if !document.is_empty() && !document.starts_with('{') {
        let space = text.get(..text.len() - document.len()).unwrap_or_default();
        return Progress::Broken(PolicyError::at(end_of(space), wrong("a policy", "an object")));
    }
    match json::read_first(text) {
        Ok(node) if node.span.end <= MAX_POLICY_LEN => Progress::Complete(node.span.end),
        Err(error) if error.reason != PolicyFault::UnexpectedEnd => Progress::Broken(error),
        _ if text.len() > MAX_POLICY_LEN => too_long,
        _ if document.is_empty() => Progress::Blank,
        _ => Progress::Incomplete,
    }
}

const START: Pos = Pos { line: 1, column: 1 };

fn valid_part<'a>(bytes: &'a [u8], error: &std::str::Utf8Error) -> &'a str {
    bytes.get(..error.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok()).unwrap_or_default()
}

fn end_of(text: &str) -> Pos {
    text.chars().fold(START, |pos, character| {
        if character == '\n' {
            Pos { line: pos.line.saturating_add(1), column: 1 }
        } else {
            Pos { line: pos.line, column: pos.column.saturating_add(1) }
        }
    })
}

fn wrong(what: &str, expected: &'static str) -> PolicyFault {
    PolicyFault::WrongType { what: what.to_owned(), expected }
}

fn text_of<'a>(node: &'a Node, what: &str) -> Result<&'a str, PolicyError> {
    node.text().ok_or_else(|| PolicyError::at(node.pos, wrong(what, "a string")))
}

/// A string or a list of strings, not empty.
fn texts_of<'a>(node: &'a Node, what: &str) -> Result<Vec<(&'a str, Pos)>, PolicyError> {
    let nodes = node.one_or_many();
    if nodes.is_empty() {
        return Err(PolicyError::at(node.pos, PolicyFault::Empty(what.to_owned())));
    }
    nodes.iter().map(|node| Ok((text_of(node, what)?, node.pos))).collect()
}

/// The nodes of the document's statements, in order.
pub(super) fn statement_nodes(document: &Node) -> &[Node] {
    document.member("Statement").map(|member| member.node.one_or_many()).unwrap_or_default()
}

const DOCUMENT_MEMBERS: [&str; 3] = ["Version", "Id", "Statement"];
const STATEMENT_MEMBERS: [&str; 9] =
    ["Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition"];
const PRINCIPAL_TYPES: [&str; 5] = ["Unix", "AWS", "Service", "Federated", "CanonicalUser"];

fn known_members(members: &[Member], known: &'static [&'static str], within: &'static str) -> Result<(), PolicyError> {
    match members.iter().find(|member| !known.contains(&member.name.as_str())) {
        None => Ok(()),
        Some(member) => {
            let (name, nearest) = (member.name.clone(), nearest(&member.name, known.iter().copied()));
            Err(PolicyError::at(member.pos, PolicyFault::UnknownMember { name, within, nearest }))
        }
    }
}

/// The one of two members that exclude each other, and whether it is the second.
fn either<'a>(statement: &'a Node, plain: &'static str, not: &'static str) -> Result<(&'a Node, bool), PolicyError> {
    match (statement.member(plain), statement.member(not)) {
        (Some(member), None) => Ok((&member.node, false)),
        (None, Some(member)) => Ok((&member.node, true)),
        (Some(first), Some(second)) => {
            let later = if second.node.span.start > first.node.span.start { second } else { first };
            Err(PolicyError::at(later.pos, PolicyFault::Exclusive { first: plain, second: not }))
        }
        (None, None) => {
            Err(PolicyError::at(statement.pos, PolicyFault::MissingMember { name: plain, within: "a statement" }))
        }
    }
}

/// The state of parsing: what has been seen of the document.
#[derive(Default)]
struct Reading {
    names: Vec<NameUse>,
    sids: BTreeSet<String>,
}

impl Reading {
    fn document(mut self, node: &Node) -> Result<Policy, PolicyError> {
        let members = node.members().ok_or_else(|| PolicyError::at(node.pos, wrong("a policy", "an object")))?;
        known_members(members, &DOCUMENT_MEMBERS, "a policy")?;
        let language = match node.member("Version") {
            None => Language::V2008,
            Some(member) => match text_of(&member.node, "Version")? {
                "2012-10-17" => Language::V2012,
                "2008-10-17" => Language::V2008,
                other => return Err(PolicyError::at(member.node.pos, PolicyFault::UnknownVersion(other.to_owned()))),
            },
        };
        let id = node.member("Id").map(|member| text_of(&member.node, "Id").map(str::to_owned)).transpose()?;
        let Some(list) = node.member("Statement") else {
            let fault = PolicyFault::MissingMember { name: "Statement", within: "a policy" };
            return Err(PolicyError::at(node.pos, fault));
        };
        let nodes = statement_nodes(node);
        if nodes.is_empty() {
            return Err(PolicyError::at(list.node.pos, PolicyFault::Empty("Statement".to_owned())));
        }
        let statements: Vec<Statement> =
            nodes.iter().map(|node| self.statement(node, language)).collect::<Result<_, _>>()?;
        let uses = statements.iter().fold(Uses::default(), |uses, statement| uses.and(statement.uses()));
        Ok(Policy { id, statements, names: self.names, uses })
    }

    fn statement(&mut self, node: &Node, language: Language) -> Result<Statement, PolicyError> {
        let members = node.members().ok_or_else(|| PolicyError::at(node.pos, wrong("a statement", "an object")))?;
        known_members(members, &STATEMENT_MEMBERS, "a statement")?;
        let sid = node.member("Sid").map(|member| self.sid(&member.node)).transpose()?;
        let Some(effect) = node.member("Effect") else {
            let fault = PolicyFault::MissingMember { name: "Effect", within: "a statement" };
            return Err(PolicyError::at(node.pos, fault));
        };
        let effect = match text_of(&effect.node, "Effect")? {
            "Allow" => Effect::Allow,
            "Deny" => Effect::Deny,
            other => return Err(PolicyError::at(effect.node.pos, PolicyFault::UnknownEffect(other.to_owned()))),
        };
        let (principal, inverted) = either(node, "Principal", "NotPrincipal")?;
        let principals = self.principals(principal, inverted)?;
        let (action, not_action) = either(node, "Action", "NotAction")?;
        let actions = parse_actions(action, not_action)?;
        let (resource, not_resource) = either(node, "Resource", "NotResource")?;
        let resources = Resources::parse(resource, not_resource, language)?;
        let conditions = match node.member("Condition") {
            Some(member) => condition::parse(&member.node, language)?,
            None => Vec::new(),
        };
        Ok(Statement { sid, effect, principals, inverted, actions, resources, conditions })
    }

    fn sid(&mut self, node: &Node) -> Result<Arc<str>, PolicyError> {
        const LONGEST: usize = 128;
        let sid = text_of(node, "Sid")?;
        if sid.is_empty() || sid.chars().count() > LONGEST || sid.chars().any(char::is_control) {
            return Err(PolicyError::at(node.pos, PolicyFault::InvalidSid));
        }
        if !self.sids.insert(sid.to_owned()) {
            return Err(PolicyError::at(node.pos, PolicyFault::DuplicateSid(sid.to_owned())));
        }
        Ok(Arc::from(sid))
    }

    fn principals(&mut self, node: &Node, inverted: bool) -> Result<Principals, PolicyError> {
        let what = if inverted { "NotPrincipal" } else { "Principal" };
        let members = match &node.value {
            Value::String(text) if text == "*" => return Ok(Principals::of([Named::Everyone])),
            Value::Object(members) => members,
            Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                return Err(PolicyError::at(node.pos, wrong(what, "\"*\" or an object such as {\"Unix\": \"alice\"}")));
            }
        };
        let mut list = Vec::new();
        for member in members {
            parse_type(member)?;
            for node in member.node.one_or_many() {
                let text = text_of(node, what)?;
                let named = parse_principal(&member.name, text).map_err(|fault| PolicyError::at(node.pos, fault))?;
                self.note_name(&named, node.pos);
                list.push(named);
            }
        }
        if members.is_empty() || (inverted && list.is_empty()) {
            return Err(PolicyError::at(node.pos, PolicyFault::Empty(what.to_owned())));
        }
        Ok(Principals::of(list))
    }

    fn note_name(&mut self, named: &Named, pos: Pos) {
        let (kind, name) = match named {
            Named::Unix(PForm::User(name)) => (NameKind::User, name),
            Named::Unix(PForm::Group(name)) => (NameKind::Group, name),
            Named::Unix(PForm::Uid(_) | PForm::Gid(_)) | Named::Everyone | Named::Account | Named::Nobody => return,
        };
        self.names.push(NameUse { kind, name: name.clone(), line: pos.line, column: pos.column });
    }
}

fn parse_type(member: &Member) -> Result<(), PolicyError> {
    if PRINCIPAL_TYPES.contains(&member.name.as_str()) {
        return Ok(());
    }
    let (name, nearest) = (member.name.clone(), nearest(&member.name, PRINCIPAL_TYPES.into_iter()));
    Err(PolicyError::at(member.pos, PolicyFault::UnknownPrincipalType { name, nearest }))
}

/// One string under a known kind of principal.
pub(super) fn parse_principal(kind: &str, text: &str) -> Result<Named, PolicyFault> {
    match kind {
        "Unix" => parse_unix(text),
        "AWS" => parse_aws(text),
        _ => Ok(Named::Nobody),
    }
}

fn parse_actions(node: &Node, inverted: bool) -> Result<ActionSet, PolicyError> {
    let mut set = ActionSet::EMPTY;
    for (text, pos) in texts_of(node, if inverted { "NotAction" } else { "Action" })? {
        set = set.union(actions::parse(text).map_err(|fault| PolicyError::at(pos, fault))?);
    }
    Ok(if inverted { ActionSet::every().without(set) } else { set })
}

/// Which keys and tables a statement is about. `*` in a key policy is the key itself.
#[derive(Debug, Clone)]
struct Resources {
    inverted: bool,
    any: bool,
    /// The last fields of ARNs: `key/ID`, `key/NAME`, `table/NAME`. Region and account are of no account here.
    patterns: Vec<Pattern>,
}

impl Resources {
    fn parse(node: &Node, inverted: bool, language: Language) -> Result<Self, PolicyError> {
        let mut result = Self { inverted, any: false, patterns: Vec::new() };
        for (text, pos) in texts_of(node, if inverted { "NotResource" } else { "Resource" })? {
            if text == "*" {
                result.any = true;
                continue;
            }
            let invalid = || PolicyError::at(pos, PolicyFault::InvalidResource(text.to_owned()));
            let mut fields = text.splitn(6, ':');
            let is_arn = fields.next() == Some("arn") && fields.next().is_some();
            if !is_arn || !matches!(fields.next(), Some("kms" | "kmsfs" | "*")) {
                return Err(invalid());
            }
            let pattern = Pattern::parse(text, language, Style::Wild).map_err(|fault| PolicyError::at(pos, fault))?;
            let last = pattern.arn_fields().and_then(|mut fields| fields.pop()).ok_or_else(invalid)?;
            result.patterns.push(last);
        }
        Ok(result)
    }

    fn include(&self, resource: &[&str], facts: &Facts<'_>) -> Truth {
        let included = if self.any {
            Truth::Yes
        } else if resource.is_empty() {
            Truth::Unknown
        } else {
            let variables = facts.variables();
            let matched =
                |name: &&str| Truth::any(self.patterns.iter().map(|pattern| pattern.matches(name, &variables)));
            Truth::any(resource.iter().map(matched))
        };
        if self.inverted { !included } else { included }
    }
}

impl Statement {
    /// Whether resource and conditions hold: all but principal and action.
    pub(super) fn applies(&self, resource: &[&str], facts: &Facts<'_>) -> Truth {
        let resource = std::iter::once_with(|| self.resources.include(resource, facts));
        Truth::all(resource.chain(self.conditions.iter().map(|test| test.holds(facts))))
    }

    /// Whether it speaks of the key without any reservation.
    pub(super) fn is_unconditional(&self) -> bool {
        self.conditions.is_empty() && self.resources.any && !self.resources.inverted
    }

    fn uses(&self) -> Uses {
        let of = |test: fn(&Test) -> bool| self.conditions.iter().any(test);
        Uses {
            groups: self.principals.uses_groups() || of(Test::uses_groups),
            time: of(Test::depends_on_time),
            context: of(Test::tests_context),
            username: of(Test::uses_username) || self.resources.patterns.iter().any(Pattern::uses_username),
        }
    }
}

impl Uses {
    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            groups: self.groups || other.groups,
            time: self.time || other.time,
            context: self.context || other.context,
            username: self.username || other.username,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(members: &str) -> String {
        format!("{{\"Version\":\"2012-10-17\",\"Statement\":{{{members}}}}}")
    }

    const PLAIN: &str = r#""Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*""#;

    fn refusal(text: &str) -> String {
        Policy::parse(text).expect_err(text).to_string()
    }

    /// Takes the marks `¶` out of a text and tells where they were.
    fn unmarked(text: &str) -> (String, Vec<(u32, u32)>) {
        let (mut plain, mut marks, mut line, mut column) = (String::new(), Vec::new(), 1, 1);
        for character in text.chars() {
            match character {
                '¶' => marks.push((line, column)),
                '\n' => (line, column) = (line + 1, 1),
                _ => column += 1,
            }
            if character != '¶' {
                plain.push(character);
            }
        }
        (plain, marks)
    }

    #[track_caller]
    fn refused(marked: &str, message: &str) {
        let (text, marks) = unmarked(marked);
        let error = Policy::parse(&text).expect_err(&text);
        assert_eq!((error.line, error.column), marks[0], "{text}: {error}");
        assert_eq!(error.reason.to_string(), message, "{text}");
    }

    #[test]
    fn the_whole_grammar_is_read() {
        let (text, marks) = unmarked(
            r#"{
          "Version": "2012-10-17", "Id": "x",
          "Statement": [
            {"Sid": "a b", "Effect": "Allow", "Principal": {"Unix": [¶"alice", "uid:7", ¶"group:staff", "gid:8"],
             "AWS": "*", "Service": "ec2.amazonaws.com", "Federated": ["x"], "CanonicalUser": "y"},
             "Action": ["Decrypt", "kms:Tag*"], "Resource": ["*", "arn:aws:kms:*:111122223333:key/x-*"], "Condition": {}},
            {"Effect": "Deny", "NotPrincipal": {"AWS": [¶"arn:aws:iam::111122223333:user/div/bob"]}, "NotAction": "kms:Get*",
             "NotResource": "arn:aws:kms:::key/y", "Condition": {"Bool": {"kms:GrantIsForAWSResource": true}}}
          ]}"#,
        );
        let policy = Policy::parse(&text).unwrap();
        assert_eq!((policy.id(), policy.statement_count()), (Some("x"), 2));
        let names: Vec<_> = policy.names().iter().map(|n| (n.kind, n.name.as_str(), (n.line, n.column))).collect();
        assert_eq!(
            names,
            [
                (NameKind::User, "alice", marks[0]),
                (NameKind::Group, "staff", marks[1]),
                (NameKind::User, "bob", marks[2]),
            ]
        );
        let single = Policy::parse(&statement(PLAIN)).unwrap();
        assert_eq!(single.statement_count(), 1);
        assert!(Policy::parse(&statement(PLAIN).replace("\"Version\":\"2012-10-17\",", "")).is_ok());
    }

    #[test]
    fn a_document_of_another_shape_is_refused_at_its_place() {
        for (text, message) in [
            ("¶", "the document ends too early"),
            ("¶[]", "\"a policy\" must be an object"),
            ("\n ¶{}", "a policy needs \"Statement\""),
            ("{\"Statement\":¶[]}", "\"Statement\" is empty"),
            ("{\"Statement\":¶7}", "\"a statement\" must be an object"),
            ("{\"Statement\":[\n¶{}]}", "a statement needs \"Effect\""),
            ("{\n ¶\"Statment\":[]}", "unknown member \"Statment\" in a policy, did you mean \"Statement\"?"),
            (
                "{\"Version\":¶\"2020-01-01\",\"Statement\":[]}",
                "unknown version \"2020-01-01\": \"2012-10-17\" or \"2008-10-17\"",
            ),
            ("{\"Version\":¶7,\"Statement\":[]}", "\"Version\" must be a string"),
            ("{\"Id\":¶7,\"Statement\":[]}", "\"Id\" must be a string"),
        ] {
            refused(text, message);
        }
        refused(
            &format!("{{\"Statement\":[{{\"Sid\":\"x\",{PLAIN}}},\n{{\"Sid\":¶\"x\",{PLAIN}}}]}}"),
            "two statements have the Sid \"x\"",
        );
    }

    #[test]
    fn each_fault_of_a_statement_is_refused_at_its_place() {
        let refused_with = |from: &str, to: &str, message: &str| {
            refused(&statement(&PLAIN.replacen(from, to, 1)), message);
        };
        refused_with("\"Allow\"", "¶\"allow\"", "unknown effect \"allow\": \"Allow\" or \"Deny\"");
        let resource = "\"Resource\":\"*\"";
        for (with, message) in [
            ("¶\"Principle\":7", "unknown member \"Principle\" in a statement, did you mean \"Principal\"?"),
            ("\"Sid\":¶\"\"", "a Sid has 1 to 128 characters and no control character"),
            ("\"Sid\":¶\"\\u0007\"", "a Sid has 1 to 128 characters and no control character"),
            ("¶\"NotResource\":\"*\"", "\"Resource\" and \"NotResource\" exclude each other"),
            ("¶\"NotAction\":\"*\"", "\"Action\" and \"NotAction\" exclude each other"),
            ("\"Condition\":¶[]", "\"Condition\" must be an object"),
        ] {
            refused_with(resource, &format!("{resource},{with}"), message);
        }
        for (member, name) in [
            ("\"Principal\":\"*\",", "Principal"),
            ("\"Action\":\"kms:*\",", "Action"),
            (",\"Resource\":\"*\"", "Resource"),
        ] {
            let text = statement(&PLAIN.replacen(member, "", 1)).replace("{\"Effect\"", "¶{\"Effect\"");
            refused(&text, &format!("a statement needs {name:?}"));
        }
        for (principal, message) in [
            ("¶\"alice\"", "\"Principal\" must be \"*\" or an object such as {\"Unix\": \"alice\"}"),
            ("¶{}", "\"Principal\" is empty"),
            ("{¶\"unix\":\"a\"}", "unknown kind of principal \"unix\", did you mean \"Unix\"?"),
            ("{¶\"Linux\":[]}", "unknown kind of principal \"Linux\""),
            ("{\"Unix\":[\"a\",¶7]}", "\"Principal\" must be a string"),
            ("{\"Unix\":¶\"uid:-1\"}", "principal \"uid:-1\": an id is a number from 0 to 4294967294"),
            (
                "{\"AWS\":[\"*\",\n ¶\"arn:aws:iam::111122223333:user/*\"]}",
                "principal \"arn:aws:iam::111122223333:user/*\": a principal has no wildcards",
            ),
        ] {
            refused_with("\"Principal\":\"*\"", &format!("\"Principal\":{principal}"), message);
        }
        refused_with("\"Principal\":\"*\"", "\"NotPrincipal\":¶{\"Unix\":[]}", "\"NotPrincipal\" is empty");
        refused_with("\"kms:*\"", "¶[]", "\"Action\" is empty");
        let misspelt = "unknown action \"kms:Decyrpt\", did you mean \"kms:Decrypt\"?";
        refused_with("\"kms:*\"", "[\"kms:*\",¶\"kms:Decyrpt\"]", misspelt);
        for arn in ["arn:aws:s3:::x", "arn:aws:kms", "key/x", "arn"] {
            let message = format!("resource {arn:?} is neither \"*\" nor an ARN of kms or kmsfs");
            refused_with(resource, &format!("\"Resource\":[\"*\",¶{arn:?}]"), &message);
        }
    }

    #[test]
    fn a_document_without_a_version_is_one_of_2008() {
        let with = |version: &str| {
            let text = format!("{{{version}\"Statement\":{{{PLAIN}}}}}");
            Policy::parse(&text.replace("\"Resource\":\"*\"", "\"Resource\":\"arn:aws:kms:::key/${x}\""))
        };
        assert!(with("").is_ok());
        assert!(with("\"Version\":\"2008-10-17\",").is_ok());
        assert!(matches!(with("\"Version\":\"2012-10-17\",").unwrap_err().reason, PolicyFault::UnknownVariable(_)));
    }

    #[test]
    fn the_length_limit_is_that_of_aws() {
        let text = statement(PLAIN);
        let fill = |to: usize| format!("{text}{}", " ".repeat(to - text.len()));
        assert!(Policy::parse(&fill(32_768)).is_ok());
        assert_eq!(refusal(&fill(32_769)), "line 1, column 1: a policy has at most 32768 bytes");
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_where_they_stand() {
        let error = Policy::parse_bytes(b"{\n \"\xc3\xa9\xff").unwrap_err();
        assert_eq!(error.to_string(), "line 2, column 4: not UTF-8");
        assert!(Policy::parse_bytes(statement(PLAIN).as_bytes()).is_ok());
    }

    #[test]
    fn uses_are_what_the_document_tests() {
        let uses = |from: &str, to: &str| Policy::parse(&statement(&PLAIN.replacen(from, to, 1))).unwrap().uses;
        let condition = |text: &str| uses("\"Resource\":\"*\"", &format!("\"Resource\":\"*\",\"Condition\":{text}"));
        let none = Uses::default();
        assert_eq!(uses("x", "x"), none);
        assert_eq!(uses("\"*\"", "{\"Unix\":[\"alice\",\"uid:1\"]}"), none);
        assert_eq!(uses("\"*\"", "{\"Unix\":\"group:a\"}"), Uses { groups: true, ..none });
        assert_eq!(uses("\"*\"", "{\"Unix\":[\"gid:1\"]}"), Uses { groups: true, ..none });
        assert_eq!(condition(r#"{"Null":{"kmsfs:Gid":true}}"#), Uses { groups: true, ..none });
        assert_eq!(condition(r#"{"Null":{"kms:EncryptionContext:x":true}}"#), Uses { context: true, ..none });
        assert_eq!(condition(r#"{"DateLessThan":{"aws:EpochTime":1}}"#), Uses { time: true, ..none });
        assert_eq!(
            condition(r#"{"StringLike":{"kms:ViaService":"${aws:username}"}}"#),
            Uses { username: true, ..none }
        );
        assert_eq!(condition(r#"{"ArnLike":{"aws:PrincipalArn":"*"}}"#), Uses { username: true, ..none });
        let resource = uses("\"Resource\":\"*\"", "\"Resource\":\"arn:aws:kms:::key/${aws:username}\"");
        assert_eq!(resource, Uses { username: true, ..none });
    }

    #[test]
    fn progress_tells_when_the_first_document_is_whole() {
        let text = statement(PLAIN);
        for cut in 1..text.len() {
            assert_eq!(progress(&text.as_bytes()[..cut]), Progress::Incomplete, "{cut}");
        }
        assert_eq!(progress(text.as_bytes()), Progress::Complete(text.len()));
        assert_eq!(progress(format!("{text}\n{{\"x\"").as_bytes()), Progress::Complete(text.len()));
        assert_eq!(progress(b""), Progress::Blank);
        assert_eq!(progress(b" \n\t"), Progress::Blank);
        assert_eq!(progress(b"{\"\xc3"), Progress::Incomplete);
        let mut with_more = text.clone().into_bytes();
        with_more.push(0xff);
        assert_eq!(progress(&with_more), Progress::Complete(text.len()));
        for broken in [&b"x"[..], b"[", b"{]", b"{\"\xff", b"\xff", b"7", b"\"a\"", b"{\"a\":01"] {
            assert!(matches!(progress(broken), Progress::Broken(_)), "{broken:?}");
        }
        assert!(matches!(progress(&[b'{'; 3]), Progress::Broken(_)));
        assert!(matches!(progress(" ".repeat(MAX_POLICY_LEN + 1).as_bytes()), Progress::Broken(_)));
        let long = format!("{{\"Id\":\"{}\"}}", "x".repeat(MAX_POLICY_LEN));
        assert!(matches!(progress(long.as_bytes()), Progress::Broken(_)));
    }
}
