//! Command lines written to `ctl`.

use super::super::FileSystem;
use super::super::api::{FsError, FsResult, Outcome};
use super::super::subject::Asker;
use super::Scope;
use crate::kms::{KmsError, StoreCommand};

impl FileSystem {
    /// Runs one command. What was done, or why not, is in `ctl.result`.
    pub(super) fn run_line(&self, scope: Scope, opener: &Asker, line: &[u8]) -> FsResult<Outcome<()>> {
        if line.trim_ascii().is_empty() {
            return Ok(().into());
        }
        let done = std::str::from_utf8(line)
            .map_err(|_| KmsError::Invalid("a command is UTF-8 text".to_owned()))
            .and_then(|line| self.run_command(scope, opener, line));
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
        match scope {
            Scope::Store => self.run_store_command(opener, &StoreCommand::parse(line)?),
            Scope::Key(id) => self.kms.run_key_command(&opener.subject(), &self.kms.key(id)?, line),
        }
    }

    fn run_store_command(&self, opener: &Asker, command: &StoreCommand) -> Result<String, KmsError> {
        match command {
            StoreCommand::CreateKey(spec) => {
                let key = self.kms.create_key(&opener.subject(), spec)?;
                Ok(format!("key {} has id {}", spec.name, key.id()))
            }
            StoreCommand::CreateTable(spec) => {
                let table = self.make_table(opener, spec, 0o755)?;
                Ok(format!("table {} has id {}", spec.name, table.id()))
            }
            StoreCommand::ResetClock => self.kms.reset_clock(&opener.subject()),
        }
    }
}
