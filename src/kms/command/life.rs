//! Commands about the life of a key: its states, its rotation, its end.

use std::sync::Arc;

use super::unknown;
use crate::kms::life::WINDOW_DEFAULT;
use crate::kms::{Key, Kms, KmsError, Subject};

/// The commands about a key, for who has written something else.
const KNOWN: &str = "add-user P..., remove-user P..., rebind, describe TEXT, rename NAME, enable, disable, rotate, \
                     auto-rotate [DAYS|off], schedule-deletion DAYS NAME, cancel-deletion, blast-radius, \
                     confirm-elapsed NAME, retire-versions NAME, create-grant JSON, revoke-grant ID..., \
                     retire-grant ID, forget-damaged-grants";

impl Kms {
    pub(super) fn run_life_command(
        &self,
        who: &Subject<'_>,
        key: &Arc<Key>,
        (verb, rest): (&str, &str),
    ) -> Result<String, KmsError> {
        match (verb, rest) {
            ("enable", "") => self.enable_key(who, key).map(|()| "the key is enabled".to_owned()),
            ("disable", "") => self.disable_key(who, key).map(|()| "the key is disabled".to_owned()),
            ("rotate", "") => {
                self.rotate_key(who, key).map(|version| format!("new items' tables use version {version}"))
            }
            ("auto-rotate", "off") | ("disable-rotation", "") => {
                self.disable_rotation(who, key).map(|()| "the key is no longer rotated by itself".to_owned())
            }
            ("auto-rotate" | "enable-rotation", days) => {
                let days = if days.is_empty() { None } else { Some(number_of_days(days)?) };
                self.enable_rotation(who, key, days).map(|days| format!("the key is rotated every {days} days"))
            }
            ("schedule-deletion", rest) => {
                let (days, name) = deletion_words(rest);
                let radius = self.schedule_deletion(who, key, days, name)?;
                Ok(format!("the key is destroyed in {days} days, and with it become unreadable: {radius}"))
            }
            ("cancel-deletion", "") => {
                self.cancel_deletion(who, key).map(|()| "the deletion is called off; the key is disabled".to_owned())
            }
            ("blast-radius", "") => {
                self.ask_blast_radius(who, key).map(|radius| format!("a deletion would make unreadable: {radius}"))
            }
            ("confirm-elapsed", name) => {
                let seconds = self.confirm_elapsed(who, key, name)?;
                Ok(format!("{seconds} seconds that passed unobserved count for the deletion"))
            }
            ("enable" | "disable" | "rotate" | "disable-rotation" | "cancel-deletion" | "blast-radius", _) => {
                Err(KmsError::Invalid(format!("{verb} takes no words behind it")))
            }
            _ => Err(unknown(verb, KNOWN)),
        }
    }
}

fn number_of_days(word: &str) -> Result<u32, KmsError> {
    word.parse().map_err(|_| KmsError::Invalid(format!("'{word}' is no number of days")))
}

/// `[DAYS] [NAME]`: a key may be called by a number, so that a number alone is the days.
fn deletion_words(rest: &str) -> (u32, &str) {
    let (first, name) = super::split(rest);
    first.parse().map_or((WINDOW_DEFAULT, rest), |days| (days, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_is_ordered_in_words() {
        assert_eq!(deletion_words("7 orders"), (7, "orders"));
        assert_eq!(deletion_words("orders"), (WINDOW_DEFAULT, "orders"));
        assert_eq!(deletion_words("10  all orders"), (10, "all orders"));
        assert_eq!(deletion_words("7"), (7, ""));
        assert_eq!(deletion_words("7 7"), (7, "7"));
        assert_eq!(deletion_words(""), (WINDOW_DEFAULT, ""));
    }
}
