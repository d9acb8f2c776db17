//! `kmsfs table`, on a mount.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::args::{EncryptionName, TableChange, TableCommand, TableCreateArgs};
use super::control::{Control, Object, file_name};
use super::exit::{CliError, plain};
use super::key::warn_of_missing_rights;
use super::output::Output;
use super::re_encrypt;
use crate::sys;

/// Runs a table command through the control tree.
pub(super) fn run(control: &Control, command: &TableCommand, output: &mut Output<'_>) -> Result<(), CliError> {
    match command {
        TableCommand::Create(args) => create(control, args, output),
        TableCommand::List => {
            let tables: Vec<Value> = control.tables()?.iter().map(|name| described(control, name)).collect();
            output.table(&tables, &["Name", "Encryption", "KeyName"])
        }
        TableCommand::Describe { name } => output.object(&control.describe(Object::Table(name))?),
        TableCommand::Change(change) => {
            let (name, line) = order(change)?;
            output.result(&control.command(Object::Table(name), &line)?)
        }
        TableCommand::ReEncrypt { name, show: true, .. } => output.object(&re_encrypt::progress(control, name)?),
        TableCommand::ReEncrypt { name, stop: true, .. } => {
            output.result(&control.command(Object::Table(name), "re-encrypt stop")?)
        }
        TableCommand::ReEncrypt { name, no_wait, .. } => re_encrypt::run(control, name, !no_wait, output),
    }
}

/// The table that a change is about, and the line for its `ctl`.
pub(super) fn order(change: &TableChange) -> Result<(&str, String), CliError> {
    match change {
        TableChange::Set { name, cache, on_revoke, names } => {
            let word = |value: Option<clap::builder::PossibleValue>| value.map(|value| value.get_name().to_owned());
            let mut line = "set".to_owned();
            for (setting, value) in [
                ("cache", cache.and_then(|value| word(value.to_possible_value()))),
                ("on-revoke", on_revoke.and_then(|value| word(value.to_possible_value()))),
                ("names", names.and_then(|value| word(value.to_possible_value()))),
            ] {
                line.extend(value.map(|value| format!(" {setting}={value}")));
            }
            if line == "set" {
                return Err(CliError::usage("set what? --cache, --on-revoke or --names"));
            }
            Ok((name, line))
        }
        TableChange::UseKey { name, key } => Ok((name, format!("use-key {}", file_name("key", key)?))),
    }
}

/// Refuses what contradicts itself, before anything is asked of a daemon or a store.
pub(super) fn check(args: &TableCreateArgs) -> Result<(), CliError> {
    file_name("table", &args.name)?;
    args.key.as_deref().map_or(Ok(""), |key| file_name("key", key))?;
    if args.encryption != EncryptionName::Customer && (args.key.is_some() || !args.users.is_empty()) {
        return Err(CliError::usage("--key and --user are for tables with --encryption customer"));
    }
    if args.key.is_some() && !args.users.is_empty() {
        return Err(CliError::usage(
            "--user is for a table's new key; to an existing one `kmsfs key add-user` adds users",
        ));
    }
    Ok(())
}

/// A uid, from a name or a number.
pub(super) fn uid_of(text: &str) -> Result<u32, CliError> {
    sys::uid_of(text).or_else(|| id_number(text)).ok_or_else(|| CliError::usage(format!("there is no user {text:?}")))
}

/// A gid, from a name or a number.
pub(super) fn gid_of(text: &str) -> Result<u32, CliError> {
    sys::gid_of(text).or_else(|| id_number(text)).ok_or_else(|| CliError::usage(format!("there is no group {text:?}")))
}

fn id_number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&id| id != u32::MAX && text.bytes().all(|b| b.is_ascii_digit()))
}

fn create(control: &Control, args: &TableCreateArgs, output: &mut Output<'_>) -> Result<(), CliError> {
    check(args)?;
    let owner = args.owner.as_deref().map(uid_of).transpose()?;
    let group = args.group.as_deref().map(gid_of).transpose()?;
    let result = control.command(Object::Store, &create_line(args))?;
    let folder = control.folder(&args.name)?;
    if owner.is_some() || group.is_some() {
        std::os::unix::fs::chown(&folder, owner, group).map_err(|error| half_made(&args.name, "owner", error))?;
    }
    if let Some(mode) = args.mode {
        let set = std::fs::set_permissions(&folder, Permissions::from_mode(mode));
        set.map_err(|error| half_made(&args.name, "mode", error))?;
    }
    if output.json() {
        output.document(&described(control, &args.name))?;
    } else {
        output.result(&result)?;
    }
    warn_of_missing_rights(control, &args.name, &args.users, output);
    Ok(())
}

/// The table is there, since only its maker's own calls can give it away.
fn half_made(table: &str, what: &str, error: io::Error) -> CliError {
    let done = format!("table {table} is made, and its {what} stays as it is");
    CliError::Refused { what: done, reason: plain(&error), source: Some(error) }
}

fn create_line(args: &TableCreateArgs) -> String {
    let mut line = format!("create-table {} encryption={}", args.name, args.encryption.word());
    line.extend(args.key.iter().map(|key| format!(" key={key}")));
    line.extend(args.users.iter().map(|user| format!(" user={user}")));
    line
}

fn described(control: &Control, name: &str) -> Value {
    control.describe(Object::Table(name)).unwrap_or_else(|_| json!({ "Name": name }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> TableCreateArgs {
        TableCreateArgs {
            name: "orders".to_owned(),
            encryption: EncryptionName::Customer,
            key: None,
            users: Vec::new(),
            owner: None,
            group: None,
            mode: None,
        }
    }

    #[test]
    fn a_table_is_made_by_one_line() {
        let with_users = TableCreateArgs { users: vec!["alice".parse().unwrap(), "gid:7".parse().unwrap()], ..args() };
        assert_eq!(create_line(&with_users), "create-table orders encryption=customer user=alice user=gid:7");
        let with_key = TableCreateArgs { key: Some("k".to_owned()), ..args() };
        assert_eq!(create_line(&with_key), "create-table orders encryption=customer key=k");
    }

    #[test]
    fn changes_are_lines() {
        use crate::cli::args::{CacheName, NamesName, OnRevokeName};
        let set = |cache, on_revoke, names| TableChange::Set { name: "t".to_owned(), cache, on_revoke, names };
        let all = set(Some(CacheName::None), Some(OnRevokeName::Tolerate), Some(NamesName::Sealed));
        assert_eq!(order(&all).unwrap(), ("t", "set cache=none on-revoke=tolerate names=sealed".to_owned()));
        let one = set(Some(CacheName::Shared), None, None);
        assert_eq!(order(&one).unwrap().1, "set cache=shared");
        assert!(matches!(order(&set(None, None, None)), Err(CliError::Usage { .. })));
        let moved = TableChange::UseKey { name: "t".to_owned(), key: "k".to_owned() };
        assert_eq!(order(&moved).unwrap().1, "use-key k");
        for all in [
            set(None, Some(OnRevokeName::Expire), Some(NamesName::Open)),
            set(Some(CacheName::Shared), Some(OnRevokeName::Tolerate), None),
        ] {
            assert!(crate::kms::TableCommand::parse(&order(&all).unwrap().1).is_ok());
        }
    }

    #[test]
    fn contradictions_are_refused_before_anything_is_done() {
        let bad = [
            TableCreateArgs { name: "a/b".to_owned(), ..args() },
            TableCreateArgs { key: Some("x y".to_owned()), ..args() },
            TableCreateArgs { encryption: EncryptionName::Owned, key: Some("k".to_owned()), ..args() },
            TableCreateArgs { encryption: EncryptionName::Managed, users: vec!["uid:1".parse().unwrap()], ..args() },
            TableCreateArgs { key: Some("k".to_owned()), users: vec!["uid:1".parse().unwrap()], ..args() },
        ];
        for args in bad {
            assert!(matches!(check(&args), Err(CliError::Usage { .. })), "{args:?}");
        }
        check(&args()).unwrap();
    }

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!(
            (uid_of("root").unwrap(), gid_of("root").unwrap(), uid_of("4000000000").unwrap()),
            (0, 0, 4_000_000_000)
        );
        for bad in ["", "no such user", "-1", "+1", "4294967295"] {
            assert!(uid_of(bad).is_err() && gid_of(bad).is_err(), "{bad}");
        }
    }
}
