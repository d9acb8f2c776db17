//! `kmsfs key`, on a mount.

use std::path::Path;

use serde_json::{Value, json};

use super::args::{KeyChange, KeyCommand};
use super::control::{Control, Object, file_name};
use super::exit::CliError;
use super::output::Output;
use super::principal::identity;
use crate::policy::PForm;
use crate::sys;

/// Runs a key command through the control tree.
pub(super) fn run(control: &Control, command: &KeyCommand, output: &mut Output<'_>) -> Result<(), CliError> {
    match command {
        KeyCommand::Create { name, admins, users, description } => {
            let line = create_line(name, admins, users, description.as_deref())?;
            let result = control.command(Object::Store, &line)?;
            if output.json() { output.document(&described(control, name)) } else { output.result(&result) }
        }
        KeyCommand::List => {
            let keys = control.lines(Path::new("keys.jsonl"))?;
            output.table(&keys, &["Name", "KeyState", "KeyManager", "Description"])
        }
        KeyCommand::Describe { name } => output.object(&control.describe(Object::Key(name))?),
        KeyCommand::Receipt { name } => output.bytes(&control.receipt(name)?),
        KeyCommand::Status { name } => output.document(&control.status(name)?),
        KeyCommand::Change(change) => {
            let (name, line) = order(change)?;
            output.result(&control.command(Object::Key(name), &line)?)?;
            if let KeyChange::AddUser { principals, .. } = change {
                for table in tables_under(control, name) {
                    warn_of_missing_rights(control, &table, principals, output);
                }
            }
            Ok(())
        }
    }
}

/// The key that a change is about, and the line for its `ctl`.
pub(super) fn order(change: &KeyChange) -> Result<(&str, String), CliError> {
    let confirmed = |confirm: &Option<String>| confirm.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    Ok(match change {
        KeyChange::AddUser { name, principals } => (name, line_of("add-user", principals)),
        KeyChange::RemoveUser { name, principals } => (name, line_of("remove-user", principals)),
        KeyChange::Enable { name } => (name, "enable".to_owned()),
        KeyChange::Disable { name } => (name, "disable".to_owned()),
        KeyChange::Rotate { name } => (name, "rotate".to_owned()),
        KeyChange::AutoRotate { name, days } => (name, format!("auto-rotate {}", days.as_deref().unwrap_or_default())),
        KeyChange::ScheduleDeletion { name, days, confirm } => {
            (name, format!("schedule-deletion {days}{}", confirmed(confirm)))
        }
        KeyChange::CancelDeletion { name } => (name, "cancel-deletion".to_owned()),
        KeyChange::ConfirmElapsed { name, confirm } => (name, format!("confirm-elapsed{}", confirmed(confirm))),
        KeyChange::BlastRadius { name } => (name, "blast-radius".to_owned()),
        KeyChange::Rename { name, new_name } => (name, format!("rename {}", file_name("key", new_name)?)),
        KeyChange::SetDescription { name, text } if text.contains('\n') => {
            return Err(CliError::usage(format!("the description of {name} is to be one line")));
        }
        KeyChange::SetDescription { name, text } => (name, format!("describe {text}")),
        KeyChange::RetireVersions { name, confirm } => {
            (name, format!("retire-versions {}", confirm.as_deref().unwrap_or_default()).trim_end().to_owned())
        }
    })
}

/// Warns of principals who have the key but may not enter or list the table's folder: the key alone opens nothing.
pub(super) fn warn_of_missing_rights(control: &Control, table: &str, principals: &[PForm], output: &mut Output<'_>) {
    // Who may not see the folder cannot tell; that is no reason to fail what has been done.
    let (Ok(rights), Ok(folder)) = (control.folder_rights(table), control.folder(table)) else { return };
    for principal in principals {
        let Some(identity) = identity(principal) else { continue };
        if let Some(missing) = missing(rights.of(&identity)) {
            output.warn(&format!(
                "{principal} may not {missing} {} (mode {:04o}, owner {}, group {}): the key alone does not open it",
                folder.display(),
                rights.mode,
                sys::user_name(rights.uid).unwrap_or_else(|| rights.uid.to_string()),
                sys::group_name(rights.gid).unwrap_or_else(|| rights.gid.to_string()),
            ));
        }
    }
}

/// `add-user alice group:finance`.
pub(super) fn line_of(verb: &str, principals: &[PForm]) -> String {
    principals.iter().fold(verb.to_owned(), |line, principal| format!("{line} {principal}"))
}

fn create_line(name: &str, admins: &[PForm], users: &[PForm], description: Option<&str>) -> Result<String, CliError> {
    let mut line = format!("create-key {}", file_name("key", name)?);
    line.extend(admins.iter().map(|admin| format!(" admin={admin}")));
    line.extend(users.iter().map(|user| format!(" user={user}")));
    // Last: it takes the rest of the line.
    line.extend(description.map(|text| format!(" description={text}")));
    Ok(line)
}

/// A key's description, or its name alone where the caller may not see more.
fn described(control: &Control, name: &str) -> Value {
    control.describe(Object::Key(name)).unwrap_or_else(|_| json!({ "Name": name }))
}

/// The tables under a key, as far as the caller may see them.
fn tables_under(control: &Control, key: &str) -> Vec<String> {
    let mut tables = control.tables().unwrap_or_default();
    tables.retain(|table| {
        control.describe(Object::Table(table)).is_ok_and(|t| t.get("KeyName").and_then(Value::as_str) == Some(key))
    });
    tables
}

fn missing(bits: u32) -> Option<&'static str> {
    match (bits & 4 != 0, bits & 1 != 0) {
        (true, true) => None,
        (false, true) => Some("list"),
        (true, false) => Some("enter"),
        (false, false) => Some("enter or list"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principals(texts: &[&str]) -> Vec<PForm> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_key_is_made_by_one_line() {
        let line = create_line("orders", &principals(&["carol"]), &principals(&["alice", "gid:7"]), Some("a b  c"));
        assert_eq!(line.unwrap(), "create-key orders admin=carol user=alice user=gid:7 description=a b  c");
        assert_eq!(create_line("orders", &[], &[], None).unwrap(), "create-key orders");
        assert!(matches!(create_line("a b", &[], &[], None), Err(CliError::Usage { .. })));
    }

    #[test]
    fn rights_are_missed_by_their_names() {
        assert_eq!([7, 5, 4, 1, 2].map(missing), [None, None, Some("enter"), Some("list"), Some("enter or list")]);
    }
}
