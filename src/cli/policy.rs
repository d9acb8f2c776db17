//! `kmsfs policy`, on a mount, and the check of a file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::args::PolicyCommand;
use super::control::{Control, Object};
use super::exit::CliError;
use super::output::Output;
use crate::policy::{NameKind, Policy};
use crate::sys;

/// Longest document that is read of a file, in bytes: the daemon takes 32 KiB and says so of a longer one.
const MAX_DOCUMENT: u64 = 64 << 10;

/// Runs a policy command through the control tree.
pub(super) fn run(control: &Control, command: &PolicyCommand, output: &mut Output<'_>) -> Result<(), CliError> {
    match command {
        PolicyCommand::Get { key, store: _ } => output.bytes(&control.policy(object(key.as_deref()))?),
        PolicyCommand::Put { key, file, store: _ } => {
            let document = read_document(file)?;
            control.put_policy(object(key.as_deref()), &document)?;
            output.result("the policy is in force")
        }
        PolicyCommand::Check { file } => check(file, output),
        PolicyCommand::Rebind { key } => {
            let result = control.command(Object::Key(key), "rebind")?;
            output.result(&result)
        }
    }
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
