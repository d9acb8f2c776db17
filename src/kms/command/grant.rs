//! Commands about a key's grants.

use std::sync::Arc;

use crate::kms::{GrantSpec, Key, Kms, KmsError, Subject};
use crate::types::GrantId;

/// The verbs of this file.
pub(super) const VERBS: [&str; 4] = ["create-grant", "revoke-grant", "retire-grant", "forget-damaged-grants"];

impl Kms {
    pub(super) fn run_grant_command(
        &self,
        who: &Subject<'_>,
        key: &Arc<Key>,
        (verb, rest): (&str, &str),
    ) -> Result<String, KmsError> {
        match verb {
            "create-grant" => {
                let ids = self.create_grants(who, key, &GrantSpec::parse(rest)?)?;
                Ok(format!("grant {}", list(&ids)))
            }
            "revoke-grant" => {
                let ids = grant_ids(rest)?;
                self.revoke_grants(who, key, &ids)?;
                Ok(format!("revoked grant {}", list(&ids)))
            }
            "retire-grant" => match grant_ids(rest)?.as_slice() {
                [id] => self.retire_grant(who, key, *id).map(|()| format!("retired grant {id}")),
                _ => Err(KmsError::Invalid("retire-grant takes one ID".to_owned())),
            },
            _ => {
                let count = self.forget_damaged_grants(who, key)?;
                Ok(format!("{count} damaged records of grants are forgotten"))
            }
        }
    }
}

/// Ids of grants, one at least.
fn grant_ids(words: &str) -> Result<Vec<GrantId>, KmsError> {
    let parse = |word: &str| word.parse().map_err(|_| KmsError::Invalid(format!("{word:?} is no id of a grant")));
    let ids: Vec<_> = words.split_whitespace().map(parse).collect::<Result<_, _>>()?;
    if ids.is_empty() { Err(KmsError::Invalid("which grant? name its id".to_owned())) } else { Ok(ids) }
}

fn list(ids: &[GrantId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
