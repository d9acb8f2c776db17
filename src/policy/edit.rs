//! Key users in and out of a document's text: only the bytes concerned change, so that the administrator's order,
//! layout and everything else stay as they are.

use std::fmt;
use std::ops::Range;

use super::actions::ActionSet;
use super::build::{USER_ACTIONS, USERS_SID, statement, unix};
use super::document::{Effect, Policy, Statement, parse_principal, statement_nodes};
use super::error::PolicyError;
use super::json::{self, Member, Node, Value, escaped};
use super::principal::{Named, PForm};
use crate::types::Action;

/// Why a user was not added or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EditError {
    /// The document is none, or would be none after the edit.
    Policy(PolicyError),
    /// Nothing to remove: no statement gives this principal, by this form of it, the use of the key.
    NotListed(PForm),
    /// The statement gives more than the use of the key, so that removing the principal would take away more.
    MoreThanUse { form: PForm, statement: String },
    /// The statement lets everyone use the key, or all but some: this principal with them.
    StillAllowed { form: PForm, statement: String },
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(error) => error.fmt(f),
            Self::NotListed(form) => write!(f, "no statement gives {form} the use of the key"),
            Self::MoreThanUse { form, statement } => {
                write!(f, "{statement} gives {form} more than the use of the key: edit the policy itself")
            }
            Self::StillAllowed { form, statement } => {
                write!(f, "{statement} would still let {form} use the key, among others: edit the policy itself")
            }
        }
    }
}

impl std::error::Error for EditError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Policy(error) => Some(error),
            Self::NotListed(_) | Self::MoreThanUse { .. } | Self::StillAllowed { .. } => None,
        }
    }
}

impl From<PolicyError> for EditError {
    fn from(error: PolicyError) -> Self {
        Self::Policy(error)
    }
}

/// Makes `form` a key user: in the first statement that gives exactly the use of the key without reservation, else in
/// a new one at the end. The text is unchanged where he is one already.
pub fn add_user(text: &str, form: &PForm) -> Result<String, EditError> {
    let policy = Policy::parse(text)?;
    let document = json::read(text)?;
    let mut lists = policy.statements().iter().zip(statement_nodes(&document)).filter(|(s, _)| is_user_list(s));
    if policy.statements().iter().any(|statement| is_user_list(statement) && statement.principals.names(form)) {
        return Ok(text.to_owned());
    }
    let changed = match lists.next().and_then(|(_, node)| node.member("Principal")) {
        Some(principal) => list_in_principal(text, principal, form),
        None => append_statement(text, &policy, &document, form),
    };
    Policy::parse(&changed)?;
    Ok(changed)
}

/// Takes the use of the key from `form`: out of every statement that gives it to him, whatever the form (`alice` and an
/// ARN of the user alice are one). A statement that thereby loses its last principal stays, as nobody's.
///
/// Other forms of the same person (a uid, a group he is in) are left: the caller, who knows the ids, can evaluate the
/// result.
pub fn remove_user(text: &str, form: &PForm) -> Result<String, EditError> {
    let policy = Policy::parse(text)?;
    let document = json::read(text)?;
    let mut cuts = Vec::new();
    for ((index, statement), node) in policy.statements().iter().enumerate().zip(statement_nodes(&document)) {
        if !gives_use(statement) || statement.inverted || !statement.principals.names(form) {
            continue;
        }
        if !statement.actions.without(use_of_key()).is_empty() {
            return Err(EditError::MoreThanUse { form: form.clone(), statement: called(index, statement) });
        }
        cuts.extend(node.member("Principal").map(|principal| mentions_of(principal, form)).unwrap_or_default());
    }
    let less = apply_all(&cuts, text);
    let left = Policy::parse(&less)?;
    let mut open = left.statements().iter().enumerate().filter(|(_, statement)| leaves_open(statement, form));
    match open.next() {
        Some((index, statement)) => {
            Err(EditError::StillAllowed { form: form.clone(), statement: called(index, statement) })
        }
        None if cuts.is_empty() => Err(EditError::NotListed(form.clone())),
        None => Ok(less),
    }
}

/// What a key user may do, and no more.
fn use_of_key() -> ActionSet {
    ActionSet::of(Action::ALL.into_iter().filter(|action| action.is_cryptographic() || *action == Action::DescribeKey))
}

fn gives_use(statement: &Statement) -> bool {
    let cryptographic = ActionSet::of(Action::ALL.into_iter().filter(|action| action.is_cryptographic()));
    statement.effect == Effect::Allow && !statement.actions.intersection(cryptographic).is_empty()
}

fn is_user_list(statement: &Statement) -> bool {
    gives_use(statement)
        // AWS's fifth word for a data key came later than some of these lists.
        && statement.actions.union(ActionSet::of([Action::GenerateDataKeyWithoutPlaintext])) == use_of_key()
        && statement.is_unconditional()
        && !statement.inverted
        && !statement.principals.everyone
}

fn leaves_open(statement: &Statement, form: &PForm) -> bool {
    gives_use(statement)
        && if statement.inverted { !statement.principals.names(form) } else { statement.principals.everyone }
}

fn called(index: usize, statement: &Statement) -> String {
    match &statement.sid {
        Some(sid) => format!("statement {sid:?}"),
        None => format!("statement {}", index + 1),
    }
}

/// Bytes to replace, and by what.
struct Splice {
    span: Range<usize>,
    with: String,
}

impl Splice {
    fn apply(&self, text: &str) -> String {
        let before = text.get(..self.span.start).unwrap_or_default();
        let after = text.get(self.span.end..).unwrap_or_default();
        format!("{before}{}{after}", self.with)
    }
}

/// All of them, which are in the order of the text and apart from one another.
fn apply_all(splices: &[Splice], text: &str) -> String {
    let (mut changed, mut at) = (String::with_capacity(text.len()), 0);
    for splice in splices {
        changed.push_str(text.get(at..splice.span.start).unwrap_or_default());
        changed.push_str(&splice.with);
        at = splice.span.end;
    }
    changed.push_str(text.get(at..).unwrap_or_default());
    changed
}

fn list_in_principal(text: &str, principal: &Member, form: &PForm) -> String {
    let new = escaped(&form.to_string());
    let splice = match principal.node.member("Unix") {
        Some(unix) => match (&unix.node.value, unix.node.one_or_many()) {
            (Value::Array(_), [.., last]) => after(text, last, &new),
            (Value::Array(_), []) => Splice { span: unix.node.span.clone(), with: format!("[{new}]") },
            (_, _) => {
                let old = text.get(unix.node.span.clone()).unwrap_or_default();
                Splice { span: unix.node.span.clone(), with: format!("[{old}, {new}]") }
            }
        },
        None => match principal.node.members().unwrap_or_default() {
            [.., last] => {
                let with = match line_indent(text, last.start) {
                    Some(indent) => format!(",\n{indent}\"Unix\": [{new}]"),
                    None => format!(", \"Unix\": [{new}]"),
                };
                Splice { span: last.node.span.end..last.node.span.end, with }
            }
            [] => Splice { span: principal.node.span.clone(), with: format!("{{\"Unix\": [{new}]}}") },
        },
    };
    splice.apply(text)
}

/// A new element after `last`, on a line of its own where `last` has one.
fn after(text: &str, last: &Node, new: &str) -> Splice {
    let with = match line_indent(text, last.span.start) {
        Some(indent) => format!(",\n{indent}{new}"),
        None => format!(", {new}"),
    };
    Splice { span: last.span.end..last.span.end, with }
}

/// The space before `at`, where nothing else is before it on its line and it is not the first line.
fn line_indent(text: &str, at: usize) -> Option<&str> {
    let before = text.get(..at)?;
    let (_, indent) = before.rsplit_once('\n')?;
    indent.chars().all(|c| c == ' ' || c == '\t').then_some(indent)
}

fn append_statement(text: &str, policy: &Policy, document: &Node, form: &PForm) -> String {
    let taken = |sid: &str| policy.statements().iter().any(|statement| statement.sid.as_deref() == Some(sid));
    let mut sid = USERS_SID.to_owned();
    let mut number = 2_u32;
    while taken(&sid) {
        sid = format!("{USERS_SID} {number}");
        number += 1;
    }
    let new = statement(&sid, &unix(std::slice::from_ref(form), 6), &USER_ACTIONS, None);
    let Some(list) = document.member("Statement") else { return text.to_owned() };
    if let (Value::Array(_), [.., last]) = (&list.node.value, list.node.one_or_many()) {
        let indent = line_indent(text, last.span.start).unwrap_or("    ");
        let with = format!(",\n{indent}{new}");
        return Splice { span: last.span.end..last.span.end, with }.apply(text);
    }
    let old = text.get(list.node.span.clone()).unwrap_or_default();
    Splice { span: list.node.span.clone(), with: format!("[\n    {old},\n    {new}\n  ]") }.apply(text)
}

/// How to take every mention of `form` out of a `Principal`, in the order of the text.
fn mentions_of(principal: &Member, form: &PForm) -> Vec<Splice> {
    principal.node.members().unwrap_or_default().iter().flat_map(|member| mentions_in(member, form)).collect()
}

fn mentions_in(member: &Member, form: &PForm) -> Vec<Splice> {
    let is_form = |node: &&Node| {
        let named = node.text().map(|text| parse_principal(&member.name, text));
        matches!(named, Some(Ok(Named::Unix(found))) if found == *form)
    };
    let list = member.node.one_or_many();
    let Some(kept) = list.iter().position(|node| !is_form(&node)) else {
        // Nobody is left, if anybody was there.
        let cut = Splice { span: member.node.span.clone(), with: "[]".to_owned() };
        return if list.is_empty() { Vec::new() } else { vec![cut] };
    };
    let cut = |span| Splice { span, with: String::new() };
    let start = match (list.first(), list.get(kept)) {
        (Some(first), Some(next)) if kept > 0 => Some(cut(first.span.start..next.span.start)),
        _ => None,
    };
    let behind = list.iter().zip(list.iter().skip(1)).skip(kept).filter(|(_, found)| is_form(found));
    start.into_iter().chain(behind.map(|(before, found)| cut(before.span.end..found.span.end))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::default_key_policy;
    use super::*;

    fn alice() -> PForm {
        PForm::User("alice".to_owned())
    }

    fn bob() -> PForm {
        PForm::User("bob".to_owned())
    }

    fn with_principal(principal: &str) -> String {
        let actions = USER_ACTIONS.map(|action| format!("\"{action}\"")).join(",");
        format!(
            "{{\"Version\":\"2012-10-17\",\"Statement\":[{{\"Sid\":\"u\",\"Effect\":\"Allow\",\"Principal\":{principal},\
             \"Action\":[{actions}],\"Resource\":\"*\"}}]}}"
        )
    }

    #[test]
    fn a_user_goes_in_and_out_and_the_text_is_what_it_was() {
        for admins in [&[][..], &[PForm::Uid(1)]] {
            for users in [&[][..], &[PForm::Uid(7)], &[PForm::Uid(7), alice()]] {
                let text = default_key_policy(admins, users);
                let more = add_user(&text, &bob()).unwrap();
                assert_eq!(more.replace("\"bob\"", "").len() + 5, more.len());
                assert!(Policy::parse(&more).unwrap().statements()[1].principals.names(&bob()));
                assert_eq!(remove_user(&more, &bob()).unwrap(), text);
            }
        }
        let text = default_key_policy(&[], &[PForm::Uid(7), alice(), bob()]);
        assert_eq!(add_user(&text, &alice()).unwrap(), text);
        assert_eq!(remove_user(&text, &PForm::Uid(7)).unwrap(), default_key_policy(&[], &[alice(), bob()]));
        assert_eq!(remove_user(&text, &alice()).unwrap(), default_key_policy(&[], &[PForm::Uid(7), bob()]));
    }

    #[test]
    fn each_shape_of_a_principal_is_edited_in_place() {
        for (before, after) in [
            (r#"{"Unix":"alice"}"#, r#"{"Unix":["alice", "bob"]}"#),
            (r#"{"Unix":["alice"]}"#, r#"{"Unix":["alice", "bob"]}"#),
            (r#"{"Unix":[]}"#, r#"{"Unix":["bob"]}"#),
            (
                r#"{"AWS":"arn:aws:iam::111122223333:root"}"#,
                r#"{"AWS":"arn:aws:iam::111122223333:root", "Unix": ["bob"]}"#,
            ),
            ("{\n  \"AWS\" : []\n}", "{\n  \"AWS\" : [],\n  \"Unix\": [\"bob\"]\n}"),
            ("{\"Unix\":[\n\t\"alice\"\n]}", "{\"Unix\":[\n\t\"alice\",\n\t\"bob\"\n]}"),
        ] {
            assert_eq!(add_user(&with_principal(before), &bob()).unwrap(), with_principal(after), "{before}");
        }
        for (before, after) in [
            (r#"{"Unix":"bob"}"#, r#"{"Unix":[]}"#),
            (r#"{"Unix":["bob"]}"#, r#"{"Unix":[]}"#),
            (r#"{"Unix":["alice", "bob"]}"#, r#"{"Unix":["alice"]}"#),
            (r#"{"Unix":["bob" , "alice"]}"#, r#"{"Unix":["alice"]}"#),
            (r#"{"Unix":["a","bob","b", "bob"]}"#, r#"{"Unix":["a","b"]}"#),
            (r#"{"Unix":["bob", "bob","a" , "bob" , "bob","b"]}"#, r#"{"Unix":["a","b"]}"#),
            (r#"{"Unix":["bob", "bob"]}"#, r#"{"Unix":[]}"#),
            (r#"{"AWS":["arn:aws:iam::111122223333:user/x/bob"],"Unix":["b\u006fb"]}"#, r#"{"AWS":[],"Unix":[]}"#),
        ] {
            assert_eq!(remove_user(&with_principal(before), &bob()).unwrap(), with_principal(after), "{before}");
        }
    }

    #[test]
    fn a_document_without_a_list_of_users_gets_one() {
        let admin = r#"{"Statement":{"Sid":"Key users","Effect":"Allow","Principal":{"Unix":"root"},"Action":"kms:*","Resource":"*"}}"#;
        let more = add_user(admin, &bob()).unwrap();
        let policy = Policy::parse(&more).unwrap();
        assert_eq!(policy.statements()[1].sid.as_deref(), Some("Key users 2"));
        assert_eq!(policy.statements()[1].actions, use_of_key());
        assert!(!policy.statements()[0].principals.names(&bob()));
        let again = add_user(&more, &alice()).unwrap();
        assert_eq!(Policy::parse(&again).unwrap().statement_count(), 2);
        assert_eq!(remove_user(&again, &alice()).unwrap(), more);
    }

    #[test]
    fn nobody_is_added_to_a_statement_that_says_more_or_less() {
        let plain = with_principal(r#"{"Unix":"alice"}"#);
        for (from, to) in [
            ("\"kms:DescribeKey\"", "\"kms:DescribeKey\",\"kms:PutKeyPolicy\""),
            ("\"kms:Decrypt\",", ""),
            (
                "\"Resource\":\"*\"",
                "\"Resource\":\"*\",\"Condition\":{\"DateLessThan\":{\"aws:CurrentTime\":\"2026-01-01\"}}",
            ),
            ("\"Resource\":\"*\"", "\"Resource\":\"arn:aws:kms:::key/x\""),
            ("\"Allow\"", "\"Deny\""),
            ("\"Principal\"", "\"NotPrincipal\""),
            ("{\"Unix\":\"alice\"}", "\"*\""),
        ] {
            let text = plain.replace(from, to);
            assert_ne!(text, plain);
            let more = Policy::parse(&add_user(&text, &bob()).unwrap()).unwrap();
            assert_eq!(more.statement_count(), 2, "{text}");
            assert!(!more.statements()[0].principals.names(&bob()), "{text}");
        }
    }

    #[test]
    fn a_right_that_is_not_his_alone_is_not_taken_by_halves() {
        let text = default_key_policy(&[], &[alice()]);
        assert_eq!(remove_user(&text, &bob()), Err(EditError::NotListed(bob())));
        assert_eq!(remove_user(&text, &PForm::Uid(7)), Err(EditError::NotListed(PForm::Uid(7))));
        for (principal, kind) in [(r#""*""#, "still"), (r#"{"Unix":["bob","*"]}"#, "still")] {
            let error = remove_user(&with_principal(principal), &bob()).unwrap_err();
            assert!(error.to_string().contains(kind), "{error}");
        }
        let but_alice = with_principal(r#"{"Unix":"alice"}"#).replace("\"Principal\"", "\"NotPrincipal\"");
        assert!(matches!(remove_user(&but_alice, &bob()), Err(EditError::StillAllowed { .. })));
        let all = with_principal(r#"{"Unix":"bob"}"#).replace("kms:Encrypt", "kms:*");
        assert!(matches!(remove_user(&all, &bob()), Err(EditError::MoreThanUse { .. })));
        assert!(matches!(remove_user("{", &bob()), Err(EditError::Policy(_))));
    }

    /// In one go: an administrator of one key must not keep the others waiting by a long list.
    #[test]
    fn thousands_of_mentions_go_at_once() {
        let before = |list: &str| with_principal(&format!("{{\"Unix\":[{list}]}}"));
        let often = before(&vec!["\"bob\""; 5000].join(","));
        assert_eq!(remove_user(&often, &bob()).unwrap(), before(""));
        let mixed = before(&vec!["\"bob\",\"uid:7\""; 2000].join(","));
        let start = std::time::Instant::now();
        assert_eq!(remove_user(&mixed, &bob()).unwrap(), before(&vec!["\"uid:7\""; 2000].join(",")));
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }

    #[test]
    fn an_edit_that_would_be_too_long_is_refused() {
        let text = default_key_policy(&[], &[alice()]);
        let full = format!("{text}{}", " ".repeat(32_768 - text.len()));
        assert!(matches!(add_user(&full, &bob()), Err(EditError::Policy(_))));
    }
}
