//! `kmsfs policy`, on a mount, and the check of a file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};

use super::args::{AboutArgs, PolicyCommand, key_and_word};
use super::control::{Control, Object};
use super::exit::{CliError, Exit};
use super::output::{Output, printable};
use crate::kms::{About, PolicyDiff, Query, Simulate, WhoCan};
use crate::policy::{NameKind, Policy};
use crate::sys;

/// Longest document that is read of a file, in bytes: the daemon takes 32 KiB and says so of a longer one.
const MAX_DOCUMENT: u64 = 64 << 10;

/// Runs a policy command through the control tree.
pub(super) fn run(control: &Control, command: &PolicyCommand, output: &mut Output<'_>) -> Result<Exit, CliError> {
    match command {
        PolicyCommand::Get { key, generation: true, .. } => {
            output.bytes(&control.policy_generation(object(key.as_deref()))?)?;
        }
        PolicyCommand::Get { key, .. } => output.bytes(&control.policy(object(key.as_deref()))?)?,
        PolicyCommand::Put { words, store, if_generation } => {
            let (key, file) = key_and_word(*store, words, "a file")?;
            let document = read_document(Path::new(file))?;
            let object = object(key);
            match if_generation {
                Some(generation) => control.put_policy_at(object, &document, *generation)?,
                None => control.put_policy(object, &document)?,
            }
            output.result("the policy is in force")?;
        }
        PolicyCommand::Check { file } => check(file, output)?,
        PolicyCommand::Rebind { key } => {
            let result = control.command(Object::Key(key), "rebind")?;
            output.result(&result)?;
        }
        PolicyCommand::Simulate { .. } | PolicyCommand::WhoCan { .. } | PolicyCommand::Diff { .. } => {
            let asked = asked(command)?;
            let line = serde_json::to_string(&asked.query)
                .map_err(|source| CliError::Malformed { path: "the request".into(), source })?;
            let answer = control.exchange(object(asked.key.as_deref()), "query", &line, &asked.document)?;
            let answer = serde_json::from_slice(&answer)
                .map_err(|source| CliError::Malformed { path: "query".into(), source })?;
            return print_answer(&asked.query, &answer, output);
        }
    }
    Ok(Exit::Done)
}

/// A question about the policy of a key, without one of the store, and the document that it comes with.
pub(super) struct Asked {
    pub(super) key: Option<String>,
    pub(super) query: Query,
    pub(super) document: Vec<u8>,
}

/// The question that a command asks.
pub(super) fn asked(command: &PolicyCommand) -> Result<Asked, CliError> {
    let of = |key: Option<&str>, query| Asked { key: key.map(str::to_owned), query, document: Vec::new() };
    match command {
        PolicyCommand::Simulate { key, who, action, about } => {
            let asked = Simulate { r#as: who.to_string(), action: action.clone(), about: about_of(about)? };
            Ok(of(key.as_deref(), Query::Simulate(asked)))
        }
        PolicyCommand::WhoCan { words, about } => {
            let (key, action) = key_and_word(about.store, words, "an action")?;
            Ok(of(key, Query::WhoCan(WhoCan { action: action.to_owned(), about: about_of(about)? })))
        }
        PolicyCommand::Diff { words, store, item } => {
            let (key, file) = key_and_word(*store, words, "a file")?;
            let document = read_document(Path::new(file))?;
            Ok(Asked { document, ..of(key, Query::PolicyDiff(PolicyDiff { item: item.clone() })) })
        }
        PolicyCommand::Get { .. }
        | PolicyCommand::Put { .. }
        | PolicyCommand::Check { .. }
        | PolicyCommand::Rebind { .. } => Err(CliError::usage("this asks nothing")),
    }
}

fn about_of(about: &AboutArgs) -> Result<About, CliError> {
    let encryption_context = super::bytes::pairs(&about.context)?;
    Ok(About { table: about.table.clone(), item: about.item.clone(), encryption_context })
}

/// Prints what a question came to.
pub(super) fn print_answer(query: &Query, answer: &Value, output: &mut Output<'_>) -> Result<Exit, CliError> {
    let denied = matches!(query, Query::Simulate(_)) && answer.get("Allowed") != Some(&Value::Bool(true));
    let exit = if denied { Exit::Denied } else { Exit::Done };
    if output.json() {
        output.document(answer)?;
        return Ok(exit);
    }
    match query {
        Query::Simulate(_) => print_simulation(answer, output)?,
        Query::WhoCan(_) => print_who_can(answer, output)?,
        Query::PolicyDiff(_) => print_diff(answer, output)?,
    }
    Ok(exit)
}

fn print_simulation(answer: &Value, output: &mut Output<'_>) -> Result<(), CliError> {
    output.line(&format!("{}: {}", text(answer, "Verdict"), text(answer, "Reason")))?;
    let who = answer.get("Who").map_or_else(String::new, named);
    output.line(&format!("who: {} ({who})", text(answer, "As")))?;
    output.line(&format!("action: {}", text(answer, "Action")))?;
    if answer.get("KeyName").is_some() {
        output.line(&format!("key: {}, {}", text(answer, "KeyName"), text(answer, "KeyState")))?;
    }
    for (name, value) in answer.get("EncryptionContext").and_then(Value::as_object).into_iter().flatten() {
        output.line(&format!("context: {}={}", one_line(name), one_line(value.as_str().unwrap_or_default())))?;
    }
    Ok(())
}

fn print_who_can(answer: &Value, output: &mut Output<'_>) -> Result<(), CliError> {
    let rows: Vec<Value> = rows(answer, "Principals")
        .map(|row| json!({ "Who": named(row), "Reason": text(row, "Reason") }))
        .chain(
            answer
                .get("AnyoneElse")
                .and_then(Value::as_str)
                .map(|reason| json!({ "Who": "anyone else", "Reason": reason })),
        )
        .collect();
    output.table(&rows, &["Who", "Reason"])?;
    warn_if_incomplete(answer, output);
    Ok(())
}

fn print_diff(answer: &Value, output: &mut Output<'_>) -> Result<(), CliError> {
    let list = |row: &Value, member: &str| {
        let words = row.get(member).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        words.map(one_line).collect::<Vec<_>>().join(" ")
    };
    let rows: Vec<Value> = rows(answer, "Changes")
        .map(|row| {
            let tables = list(row, "Tables");
            let direct = row.get("DirectCalls") == Some(&Value::Bool(true));
            let places =
                [(!tables.is_empty()).then(|| format!("tables {tables}")), direct.then(|| "direct calls".to_owned())];
            let places = places.into_iter().flatten().collect::<Vec<_>>().join(", ");
            let places = if places.is_empty() { String::new() } else { format!("({places})") };
            let who = row.get("Who").map_or_else(String::new, named);
            json!({ "Who": who, "Change": text(row, "Change"), "Actions": list(row, "Actions"), "Where": places })
        })
        .collect();
    if rows.is_empty() {
        output.line("nobody gains or loses anything")?;
    }
    output.table(&rows, &["Who", "Change", "Actions", "Where"])?;
    if answer.get("LockOut") == Some(&Value::Bool(true)) {
        output.warn("the save would be refused: you could not change the policy any more");
    }
    if answer.get("TestsItems") == Some(&Value::Bool(true)) {
        output.warn("a statement tests what is asked about, the item or a context: --item says what changes for one");
    }
    warn_if_incomplete(answer, output);
    Ok(())
}

fn warn_if_incomplete(answer: &Value, output: &mut Output<'_>) {
    if answer.get("Complete") != Some(&Value::Bool(true)) {
        output.warn("there are more accounts on this host than were gone through");
    }
}

fn rows<'a>(answer: &'a Value, member: &str) -> impl Iterator<Item = &'a Value> {
    answer.get(member).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value.get(member).and_then(Value::as_str).unwrap_or_default()
}

/// `bob`, `uid 1002`, or `anyone else`.
fn named(who: &Value) -> String {
    match (who.get("UserName").and_then(Value::as_str), who.get("Uid").and_then(Value::as_u64)) {
        (Some(name), _) => one_line(name),
        (None, Some(uid)) => format!("uid {uid}"),
        (None, None) => "anyone else".to_owned(),
    }
}

/// A name from elsewhere must not write lines of its own.
fn one_line(text: &str) -> String {
    printable(text).replace(['\n', '\t'], "\u{fffd}")
}

/// A policy's text from a file, or from standard input for `-`.
pub(super) fn read_document(file: &Path) -> Result<Vec<u8>, CliError> {
    let mut document = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(MAX_DOCUMENT).read_to_end(&mut document)
    } else {
        File::open(file).and_then(|file| file.take(MAX_DOCUMENT).read_to_end(&mut document))
    };
    read.map_err(|error| CliError::io("read", file, error))?;
    Ok(document)
}

/// A document as text.
pub(super) fn text_of<'a>(document: &'a [u8], file: &Path) -> Result<&'a str, CliError> {
    std::str::from_utf8(document).map_err(|_| {
        let reason = Policy::parse_bytes(document).err().map_or_else(String::new, |error| error.to_string());
        CliError::BadPolicy { path: file.to_owned(), reason }
    })
}

/// Checks a file as a save would, but for what depends on who saves it where: the grammar, and that this host knows
/// each name. Needs neither a mount nor a store.
pub(super) fn check(file: &Path, output: &mut Output<'_>) -> Result<(), CliError> {
    let bad = |reason: String| CliError::BadPolicy { path: file.to_owned(), reason };
    let policy = Policy::parse_bytes(&read_document(file)?).map_err(|error| bad(error.to_string()))?;
    let unknown: Vec<String> = policy
        .names()
        .iter()
        .filter_map(|used| {
            let (found, what) = match used.kind {
                NameKind::User => (sys::uid_of(&used.name), "user"),
                NameKind::Group => (sys::gid_of(&used.name), "group"),
            };
            let place = format!("line {}, column {}", used.line, used.column);
            found.is_none().then(|| format!("{place}: no {what} '{}' on this host", used.name))
        })
        .collect();
    if !unknown.is_empty() {
        return Err(bad(unknown.join("\n")));
    }
    output.result(&format!("ok: {} statements", policy.statement_count()))
}

fn object(key: Option<&str>) -> Object<'_> {
    key.map_or(Object::Store, Object::Key)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use super::*;

    fn checked(document: &str) -> Result<String, CliError> {
        let name = format!("kmsfs-policy-{:032x}", u128::from_le_bytes(crate::crypto::random().unwrap()));
        let path: PathBuf = std::env::temp_dir().join(name);
        File::create(&path).unwrap().write_all(document.as_bytes()).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let result = check(&path, &mut Output::new(false, &mut out, &mut err));
        std::fs::remove_file(&path).unwrap();
        result.map(|()| String::from_utf8(out).unwrap())
    }

    fn policy_for(principal: &str) -> String {
        format!(
            r#"{{"Version": "2012-10-17", "Statement": [{{"Effect": "Allow",
 "Principal": {{"Unix": ["{principal}"]}}, "Action": "kms:Decrypt", "Resource": "*"}}]}}"#
        )
    }

    #[test]
    fn a_check_finds_what_a_save_would_refuse() {
        assert_eq!(checked(&policy_for("root")).unwrap(), "ok: 1 statements\n");
        let unknown = checked(&policy_for("no-such-user")).unwrap_err().to_string();
        assert!(unknown.contains("line 2, column") && unknown.contains("no user 'no-such-user'"), "{unknown}");
        let broken = checked(r#"{"Version": "2012-10-17", "Statement": ["#).unwrap_err();
        assert!(broken.to_string().contains("line 1, column"), "{broken}");
        assert_eq!(broken.exit() as u8, 1);
    }
}
