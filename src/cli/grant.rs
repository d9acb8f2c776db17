//! `kmsfs grant`, on a mount, and what it has in common with an unmounted store: the line for the key's `ctl`, and how
//! grants are printed.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::{Value, json};

use super::args::{GrantCommand, GrantCreateArgs};
use super::control::{Control, Object, file_name};
use super::exit::CliError;
use super::output::Output;
use crate::types::text_of_path;

/// Runs a grant command through the control tree.
pub(super) fn run(control: &Control, command: &GrantCommand, output: &mut Output<'_>) -> Result<(), CliError> {
    if let GrantCommand::List { key } = command {
        let path = Path::new("keys").join(file_name("key", key)?).join("grants.jsonl");
        return print(control.lines(&path)?, output);
    }
    let (key, line) = order(command)?;
    say(command, &control.command(Object::Key(key), &line)?, output)
}

/// The key that a command is about, and the line for its `ctl`.
pub(super) fn order(command: &GrantCommand) -> Result<(&str, String), CliError> {
    match command {
        GrantCommand::Create(create) => Ok((&create.key, format!("create-grant {}", document(create)?))),
        GrantCommand::Revoke { key, ids } => Ok((key, format!("revoke-grant {}", ids.join(" ")))),
        GrantCommand::Retire { key, id } => Ok((key, format!("retire-grant {id}"))),
        GrantCommand::List { .. } => Err(CliError::usage("a list is no change")),
    }
}

/// What was done: of a grant that was made, its id.
pub(super) fn say(command: &GrantCommand, result: &str, output: &mut Output<'_>) -> Result<(), CliError> {
    match (command, result.strip_prefix("grant ")) {
        (GrantCommand::Create(_), Some(id)) if output.json() => output.document(&json!({ "GrantId": id })),
        (GrantCommand::Create(_), Some(id)) => output.line(id),
        _ => output.result(result),
    }
}

/// Grants: as a table, or as an array.
pub(super) fn print(grants: Vec<Value>, output: &mut Output<'_>) -> Result<(), CliError> {
    let rows = if output.json() { grants } else { grants.into_iter().map(shown).collect() };
    output.table(&rows, &["GrantId", "GranteePrincipal", "Operations", "Expires", "Constraints", "Name"])
}

/// With lists as words, for a table.
fn shown(mut row: Value) -> Value {
    let words = |list: &Value| {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
    };
    let expired = row.get("Expired").and_then(Value::as_bool).unwrap_or(false);
    if let Value::Object(members) = &mut row {
        for (name, value) in members.iter_mut() {
            match name.as_str() {
                "Operations" => *value = Value::String(words(value)),
                "Expires" if expired => *value = Value::String("expired".to_owned()),
                "Constraints" if value.as_object().is_some_and(serde_json::Map::is_empty) => *value = Value::Null,
                _ => {}
            }
        }
    }
    row
}

/// AWS CreateGrant's members.
fn document(args: &GrantCreateArgs) -> Result<Value, CliError> {
    let mut document = serde_json::Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            document.insert(name.to_owned(), value);
        }
    };
    put("GranteePrincipal", Some(args.grantee.to_string().into()));
    put("RetiringPrincipal", args.retiring.as_ref().map(|form| form.to_string().into()));
    put("Operations", Some(args.operations.clone().into()));
    put("Expires", args.expires.clone().map(Value::from));
    put("Name", args.name.clone().map(Value::from));
    put("Constraints", constraints(args)?);
    Ok(Value::Object(document))
}

fn constraints(args: &GrantCreateArgs) -> Result<Option<Value>, CliError> {
    let mut subset = args.context_subset.clone();
    subset.extend(args.table.iter().map(|table| ("kmsfs:table".to_owned(), table.clone())));
    subset.extend(args.item.iter().map(|item| ("kmsfs:item".to_owned(), text_of_path(item.as_bytes()))));
    let kinds =
        [("EncryptionContextEquals", of_pairs(&args.context_equals)?), ("EncryptionContextSubset", of_pairs(&subset)?)];
    let given: serde_json::Map<_, _> =
        kinds.into_iter().filter_map(|(kind, given)| Some((kind.to_owned(), given?))).collect();
    Ok((!given.is_empty()).then_some(Value::Object(given)))
}

fn of_pairs(given: &[(String, String)]) -> Result<Option<Value>, CliError> {
    let pairs: BTreeMap<_, _> = given.iter().cloned().collect();
    if pairs.len() != given.len() {
        return Err(CliError::usage("one key of an encryption context is given twice"));
    }
    Ok((!pairs.is_empty()).then(|| json!(pairs)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command, GrantArgs};
    use super::*;

    fn line(words: &[&str]) -> String {
        let all = ["kmsfs", "grant"].iter().chain(words);
        let Command::Grant(GrantArgs { command, .. }) = Cli::try_parse_from(all).unwrap().command else {
            panic!("no grant command")
        };
        order(&command).unwrap().1
    }

    #[test]
    fn a_command_is_a_line_with_a_document_in_it() {
        let made =
            line(&["create", "k", "bob", "--operations", "Decrypt,DescribeKey", "--table", "t", "--item", "a b"]);
        let (verb, document) = made.split_once(' ').unwrap();
        let wanted = json!({
            "GranteePrincipal": "bob",
            "Operations": ["Decrypt", "DescribeKey"],
            "Constraints": {"EncryptionContextSubset": {"kmsfs:table": "t", "kmsfs:item": "a b"}},
        });
        assert_eq!((verb, serde_json::from_str::<Value>(document).unwrap()), ("create-grant", wanted));
        let plain =
            line(&["create", "k", "gid:7", "--operations", "Encrypt", "--expires", "1h", "--context-equals", "a=b=c"]);
        assert!(plain.contains(r#""Expires":"1h""#) && plain.contains(r#""EncryptionContextEquals":{"a":"b=c"}"#));
        assert_eq!(line(&["revoke", "k", "1", "2"]), "revoke-grant 1 2");
        assert_eq!(line(&["retire", "k", "1"]), "retire-grant 1");
    }

    #[test]
    fn contradicting_options_are_refused() {
        let refused = |words: &[&str]| Cli::try_parse_from(["kmsfs", "grant", "create"].iter().chain(words)).is_err();
        assert!(refused(&["k", "bob"]));
        assert!(refused(&["k", "bob", "--operations", "Decrypt", "--item", "x"]));
        assert!(refused(&["k", "bob", "--operations", "Decrypt", "--table", "t", "--context-subset", "a=b"]));
        assert!(refused(&["k", "*", "--operations", "Decrypt"]));
        assert!(refused(&["k", "bob", "--operations", "Decrypt", "--context-subset", "=b"]));
    }
}
