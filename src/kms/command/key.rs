//! Commands about one key.

use std::sync::Arc;

use super::{forms, grant, split};
use crate::kms::{Key, Kms, KmsError, Subject};

impl Kms {
    /// Runs one command line about a key; gives what was done.
    ///
    /// # Errors
    /// `Invalid` for a line that is no command; else what the call says that it stands for. Nothing is changed then.
    pub fn run_key_command(&self, who: &Subject<'_>, key: &Arc<Key>, line: &str) -> Result<String, KmsError> {
        let (verb, rest) = split(line);
        match verb {
            "add-user" | "remove-user" => {
                self.change_users(who, key, &forms(rest)?, verb == "add-user")?;
                Ok(format!("{verb} {rest}"))
            }
            "rebind" => self.rebind(who, key).map(|()| "names bound anew".to_owned()),
            "describe" => self.describe(who, key, rest).map(|()| "description set".to_owned()),
            "retire-versions" => {
                let gone = self.retire_versions(who, key, rest)?;
                let numbers: Vec<String> = gone.iter().map(u32::to_string).collect();
                Ok(format!("dropped material {}", numbers.join(", ")))
            }
            "rename" => self.rename_key(who, key, rest).map(|()| format!("the key is called {rest}")),
            _ if grant::VERBS.contains(&verb) => self.run_grant_command(who, key, (verb, rest)),
            _ => self.run_life_command(who, key, (verb, rest)),
        }
    }
}
