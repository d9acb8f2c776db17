//! Command lines written to `ctl`.

use std::sync::Arc;

use super::super::FileSystem;
use super::super::api::{FsError, FsResult, Outcome};
use super::super::revoke::Pending;
use super::super::subject::Asker;
use super::Scope;
use crate::kms::{KmsError, Ordered, StoreCommand, Table, TableCommand};

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
            Ok((said, pending)) => {
                self.control.set_result(scope, opener.uid(), &format!("done: {said}"));
                Ok(pending.into_outcome())
            }
            Err(error) => {
                self.control.set_result(scope, opener.uid(), &format!("refused: {error}"));
                Err(FsError::from(error))
            }
        }
    }

    /// What was done, and what it takes from whom.
    fn run_command(&self, scope: Scope, opener: &Asker, line: &str) -> Result<(String, Pending), KmsError> {
        let said = match scope {
            Scope::Store => self.run_store_command(opener, &StoreCommand::parse(line)?)?,
            Scope::Key(id) => self.kms.run_key_command(&opener.subject(), &self.kms.key(id)?, line)?,
            Scope::Table(id) => {
                return self.run_table_command(opener, &self.kms.table(id)?, TableCommand::parse(line)?);
            }
        };
        Ok((said, self.revocation_after(scope)))
    }

    fn run_table_command(
        &self,
        opener: &Asker,
        table: &Arc<Table>,
        command: TableCommand,
    ) -> Result<(String, Pending), KmsError> {
        let who = opener.subject();
        match command {
            TableCommand::Set(change) => {
                let old = self.kms.set_table(&who, table, change)?;
                Ok(("the settings are in force".to_owned(), self.revocation_after_settings(table, old)))
            }
            TableCommand::UseKey(name) => {
                self.kms.move_table(&who, table, &self.kms.key_named(&name)?)?;
                Ok((format!("protected by key {name}"), self.revocation_after(Scope::Table(table.id()))))
            }
            TableCommand::ReEncrypt => {
                let ordered = self.kms.order_re_encryption(&who, table)?;
                self.re_encryption_ordered(table);
                let (Ordered::New(version) | Ordered::GoesOn(version)) = ordered;
                Ok((format!("re-encrypting under table key version {version}"), Pending::default()))
            }
            TableCommand::StopReEncryption => {
                self.kms.stop_re_encryption(&who, table)?;
                Ok(("stopped; re-encrypt goes on with it".to_owned(), Pending::default()))
            }
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
