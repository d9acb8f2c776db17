//! Why a caller may, or may not, decrypt an item.

use std::fmt;
use std::sync::Arc;

use super::decide::ItemAsked;
use super::table::Table;
use super::{Kms, KmsError, Subject};
use crate::policy::Verdict;
use crate::types::{Action, EncryptionContext};

/// An answer for a person: its first line begins with `allowed:` or `denied:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub allowed: bool,
    pub lines: Vec<String>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Kms {
    /// Whether `who` may decrypt an item, and why. Which statement decides is told only to those who may read the
    /// policy, which grant, to those who may list them too.
    pub fn explain(&self, who: &Subject<'_>, table: &Arc<Table>, path: &[u8]) -> Explanation {
        let Subject::Caller { principal, .. } = who else {
            return plain(false, "a custodian uses no key");
        };
        let whole = || path.to_vec();
        let asked = ItemAsked { table, path: &whole };
        if table.key().now().is_some_and(|now| now.is_owned()) {
            return plain(true, "the table is encrypted with the store's own key: Unix rights alone decide");
        }
        let (now, decision) = match self.decision_about(principal, &asked, Action::Decrypt) {
            Ok(found) => found,
            Err(KmsError::Tampered) => {
                return plain(false, "the record of the key, of its grants or of the store policy does not verify");
            }
            Err(error) => return plain(false, &error.to_string()),
        };
        let allowed = decision.verdict == Verdict::Allowed && table.keys.are_there();
        let may_read_it = self.would_allow(who, table.key(), Action::GetKeyPolicy)
            || (decision.reason.names_a_grant() && self.would_allow(who, table.key(), Action::ListGrants));
        let text = if may_read_it { decision.to_string() } else { decision.public_text() };
        let mut answer = Explanation { allowed, lines: vec![text] };
        let name = self.user_name(principal.uid).map(|name| format!(" ({name})")).unwrap_or_default();
        answer.lines.push(format!("who: uid {}{name}, gid {}", principal.uid, principal.gid));
        answer.lines.push(format!("action: {}", Action::Decrypt));
        answer.lines.push(format!("key: {}, {}", now.record.name, now.state()));
        for (key, value) in EncryptionContext::of_item(&table.name(), path).pairs() {
            answer.lines.push(format!("context: {key}={}", on_one_line(value)));
        }
        answer
    }
}

/// A name may hold line feeds, and must not write lines of its own into an answer.
fn on_one_line(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, character| {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
        line
    })
}

fn plain(allowed: bool, why: &str) -> Explanation {
    Explanation { allowed, lines: vec![format!("{}: {why}", if allowed { "allowed" } else { "denied" })] }
}
