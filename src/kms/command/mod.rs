//! Command lines: what is written to a `ctl` file, and what the command line tool does with an unmounted store, are the
//! same words. One command a line, words between blanks (docs/semantics.md, section 8).
//!
//! A command is decided, logged and committed by the call that it stands for; nothing here decides.

mod grant;
mod key;
mod life;
mod store;
mod table;

pub use store::StoreCommand;
pub use table::TableCommand;

use super::KmsError;
use crate::policy::PForm;

/// A line's verb, and the rest of it.
fn split(line: &str) -> (&str, &str) {
    let line = line.trim();
    line.split_once(char::is_whitespace).map_or((line, ""), |(verb, rest)| (verb, rest.trim()))
}

fn unknown(verb: &str, known: &str) -> KmsError {
    KmsError::Invalid(format!("no command '{verb}' here; there are: {known}"))
}

fn form(word: &str) -> Result<PForm, KmsError> {
    PForm::parse(word).map_err(|error| KmsError::Invalid(error.to_string()))
}

/// Principals, one at least.
fn forms(words: &str) -> Result<Vec<PForm>, KmsError> {
    let forms: Vec<_> = words.split_whitespace().map(form).collect::<Result<_, _>>()?;
    if forms.is_empty() {
        return Err(KmsError::Invalid("who? name a user, uid:N, group:NAME or gid:N".to_owned()));
    }
    Ok(forms)
}
