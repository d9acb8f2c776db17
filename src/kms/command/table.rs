//! Commands about one table.

use super::{split, unknown};
use crate::kms::{CacheMode, KmsError, NamesMode, OnRevoke, SettingsChange};

/// A command about a table. What is sealed anew, and what is to be revoked, only who serves the store can see to, so that
/// these are parsed here and run there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableCommand {
    Set(SettingsChange),
    UseKey(String),
    ReEncrypt,
    StopReEncryption,
}

impl TableCommand {
    /// # Errors
    /// `Invalid` for a line that is no command.
    pub fn parse(line: &str) -> Result<Self, KmsError> {
        let (verb, rest) = split(line);
        match (verb, rest) {
            ("set", _) => settings(rest).map(Self::Set),
            ("use-key", "") => Err(KmsError::Invalid("which key? use-key KEY".to_owned())),
            ("use-key", _) => Ok(Self::UseKey(rest.to_owned())),
            ("re-encrypt", "") => Ok(Self::ReEncrypt),
            ("re-encrypt", "stop") => Ok(Self::StopReEncryption),
            ("re-encrypt", _) => Err(unknown(rest, "re-encrypt, re-encrypt stop")),
            _ => Err(unknown(verb, "set SETTING=VALUE..., use-key KEY, re-encrypt [stop]")),
        }
    }
}

/// `[cache=shared|none] [on-revoke=expire|tolerate] [names=open|sealed]`, one at least.
fn settings(text: &str) -> Result<SettingsChange, KmsError> {
    const KNOWN: &str = "cache=shared|none, on-revoke=expire|tolerate, names=open|sealed";
    let mut change = SettingsChange::default();
    for word in text.split_whitespace() {
        match word.split_once('=') {
            Some(("cache", "shared")) => change.cache = Some(CacheMode::Shared),
            Some(("cache", "none")) => change.cache = Some(CacheMode::None),
            Some(("on-revoke", "expire")) => change.on_revoke = Some(OnRevoke::Expire),
            Some(("on-revoke", "tolerate")) => change.on_revoke = Some(OnRevoke::Tolerate),
            Some(("names", "open")) => change.names = Some(NamesMode::Open),
            Some(("names", "sealed")) => change.names = Some(NamesMode::Sealed),
            _ => return Err(unknown(word, KNOWN)),
        }
    }
    if change == SettingsChange::default() {
        return Err(KmsError::Invalid(format!("nothing to set; there are: {KNOWN}")));
    }
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_commands() {
        let cache = SettingsChange { cache: Some(CacheMode::None), ..SettingsChange::default() };
        assert_eq!(TableCommand::parse("set cache=none").unwrap(), TableCommand::Set(cache));
        let both = SettingsChange {
            on_revoke: Some(OnRevoke::Tolerate),
            names: Some(NamesMode::Sealed),
            ..Default::default()
        };
        assert_eq!(TableCommand::parse("set on-revoke=tolerate  names=sealed ").unwrap(), TableCommand::Set(both));
        assert_eq!(TableCommand::parse("use-key other").unwrap(), TableCommand::UseKey("other".to_owned()));
        assert_eq!(TableCommand::parse("re-encrypt").unwrap(), TableCommand::ReEncrypt);
        assert_eq!(TableCommand::parse("re-encrypt stop").unwrap(), TableCommand::StopReEncryption);
        for bad in ["", "set", "set cache=some", "set cache", "use-key", "re-encrypt now", "rebind"] {
            assert!(matches!(TableCommand::parse(bad), Err(KmsError::Invalid(_))), "{bad}");
        }
    }
}
