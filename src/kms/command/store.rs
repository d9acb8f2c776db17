//! Commands about the store: what makes keys and tables.

use super::{form, split, unknown};
use crate::kms::{KeySpec, KmsError, TableSpec};
use crate::types::Encryption;

/// A command about the store. A table has a folder, which only who serves the store can make, so that these are
/// parsed here and run there.
#[derive(Debug, Clone)]
pub enum StoreCommand {
    CreateKey(KeySpec),
    CreateTable(TableSpec),
    ResetClock,
}

impl StoreCommand {
    /// # Errors
    /// `Invalid` for a line that is no command.
    pub fn parse(line: &str) -> Result<Self, KmsError> {
        let (verb, rest) = split(line);
        match verb {
            "create-key" => key_spec(rest).map(Self::CreateKey),
            "create-table" => table_spec(rest).map(Self::CreateTable),
            "reset-clock" if rest.is_empty() => Ok(Self::ResetClock),
            _ => Err(unknown(verb, "create-key NAME ..., create-table NAME ..., reset-clock")),
        }
    }
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
            Some(("admin", who)) => spec.admins.push(form(who)?),
            Some(("user", who)) => spec.users.push(form(who)?),
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
            Some(("user", who)) => spec.users.push(form(who)?),
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
