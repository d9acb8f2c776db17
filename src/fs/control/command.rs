//! Command lines written to `ctl`.

use super::super::FileSystem;
use super::super::api::{FsError, FsResult, Outcome};
use super::super::subject::Asker;
use super::Scope;
use crate::kms::{KeySpec, KmsError, TableSpec};
use crate::policy::PForm;
use crate::types::Encryption;

impl FileSystem {
    /// Runs one command. What was done, or why not, is in `ctl.result`.
    pub(super) fn run_line(&self, scope: Scope, opener: &Asker, line: &[u8]) -> FsResult<Outcome<()>> {
        if line.trim_ascii().is_empty() {
            return Ok(().into());
        }
        let done = std::str::from_utf8(line)
            .map_err(|_| KmsError::Invalid("a command is UTF-8 text".to_owned()))
            .and_then(|line| self.run_command(scope, opener, line.trim()));
        match done {
            Ok(said) => {
                self.control.set_result(scope, opener.uid(), &format!("done: {said}"));
                Ok(self.revocation_after(scope).into_outcome())
            }
            Err(error) => {
                self.control.set_result(scope, opener.uid(), &format!("refused: {error}"));
                Err(FsError::from(error))
            }
        }
    }

    fn run_command(&self, scope: Scope, opener: &Asker, line: &str) -> Result<String, KmsError> {
        let (verb, rest) = line.split_once(char::is_whitespace).map_or((line, ""), |(verb, rest)| (verb, rest.trim()));
        match scope {
            Scope::Store => self.run_store_command(opener, verb, rest),
            Scope::Key(id) => {
                let key = self.kms.key(id)?;
                let who = opener.subject();
                match verb {
                    "add-user" | "remove-user" => {
                        self.kms.change_users(&who, &key, &forms(rest.split_whitespace())?, verb == "add-user")?;
                        Ok(format!("{verb} {rest}"))
                    }
                    "rebind" => self.kms.rebind(&who, &key).map(|()| "names bound anew".to_owned()),
                    "describe" => self.kms.describe(&who, &key, rest).map(|()| "description set".to_owned()),
                    _ => Err(unknown(verb, "add-user P..., remove-user P..., rebind, describe TEXT")),
                }
            }
        }
    }

    fn run_store_command(&self, opener: &Asker, verb: &str, rest: &str) -> Result<String, KmsError> {
        match verb {
            "create-key" => {
                let spec = key_spec(rest)?;
                let key = self.kms.create_key(&opener.subject(), &spec)?;
                Ok(format!("key {} has id {}", spec.name, key.id()))
            }
            "create-table" => {
                let spec = table_spec(rest)?;
                let table = self.make_table(opener, &spec, 0o755)?;
                Ok(format!("table {} has id {}", spec.name, table.id()))
            }
            _ => Err(unknown(verb, "create-key NAME ..., create-table NAME ...")),
        }
    }
}

fn unknown(verb: &str, known: &str) -> KmsError {
    KmsError::Invalid(format!("no command '{verb}' here; there are: {known}"))
}

fn forms<'a>(words: impl Iterator<Item = &'a str>) -> Result<Vec<PForm>, KmsError> {
    let forms: Vec<_> = words
        .map(|word| PForm::parse(word).map_err(|error| KmsError::Invalid(error.to_string())))
        .collect::<Result<_, _>>()?;
    if forms.is_empty() {
        return Err(KmsError::Invalid("who? name a user, uid:N, group:NAME or gid:N".to_owned()));
    }
    Ok(forms)
}

/// `NAME [admin=P]... [user=P]... [description=REST OF THE LINE]`
fn key_spec(text: &str) -> Result<KeySpec, KmsError> {
    let (words, description) = match text.split_once("description=") {
        Some((before, description)) => (before, description),
        None => (text, ""),
    };
    let mut words = words.split_whitespace();
    let mut spec = KeySpec {
        name: words.next().unwrap_or_default().to_owned(),
        description: description.to_owned(),
        ..KeySpec::default()
    };
    for word in words {
        match word.split_once('=') {
            Some(("admin", form)) => spec.admins.extend(forms(std::iter::once(form))?),
            Some(("user", form)) => spec.users.extend(forms(std::iter::once(form))?),
            _ => return Err(unknown(word, "admin=P, user=P, description=TEXT")),
        }
    }
    Ok(spec)
}

/// `NAME [encryption=owned|managed|customer] [key=KEY] [user=P]...`
fn table_spec(text: &str) -> Result<TableSpec, KmsError> {
    let mut words = text.split_whitespace();
    let mut spec = TableSpec {
        name: words.next().unwrap_or_default().to_owned(),
        encryption: Encryption::Customer,
        key: None,
        users: Vec::new(),
    };
    for word in words {
        match word.split_once('=') {
            Some(("encryption", "owned")) => spec.encryption = Encryption::Owned,
            Some(("encryption", "managed")) => spec.encryption = Encryption::Managed,
            Some(("encryption", "customer")) => spec.encryption = Encryption::Customer,
            Some(("key", name)) => spec.key = Some(name.to_owned()),
            Some(("user", form)) => spec.users.extend(forms(std::iter::once(form))?),
            _ => return Err(unknown(word, "encryption=owned|managed|customer, key=KEY, user=P")),
        }
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_specs() {
        let key = key_spec("orders admin=root user=alice user=gid:7 description=for the shop = all of it").unwrap();
        assert_eq!((key.name.as_str(), key.admins.len(), key.users.len()), ("orders", 1, 2));
        assert_eq!(key.description, "for the shop = all of it");
        let table = table_spec("t encryption=managed").unwrap();
        assert_eq!((table.name.as_str(), table.encryption), ("t", Encryption::Managed));
        assert!(table_spec("t encryption=none").is_err());
        assert!(key_spec("k owner=root").is_err());
    }
}
