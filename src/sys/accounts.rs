//! Users and groups by name and by number, from the host's account database (nsswitch.conf).
//!
//! A name that is not UTF-8 is no name here: a policy could not write it.

use std::ffi::CString;
use std::path::PathBuf;

/// An account of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account {
    pub uid: u32,
    pub name: String,
    pub gid: u32,
}

pub(super) fn of_users(users: impl Iterator<Item = users::User>, most: usize) -> Vec<Account> {
    let accounts = users.filter_map(|user| {
        Some(Account { uid: user.uid(), name: user.name().to_str()?.to_owned(), gid: user.primary_group_id() })
    });
    let mut accounts: Vec<Account> = accounts.take(most).collect();
    accounts.sort();
    accounts.dedup();
    accounts
}

/// The name of a uid.
pub fn user_name(uid: u32) -> Option<String> {
    users::get_user_by_uid(uid)?.name().to_str().map(str::to_owned)
}

/// The home directory of a uid.
pub fn home_of(uid: u32) -> Option<PathBuf> {
    use users::os::unix::UserExt;
    Some(users::get_user_by_uid(uid)?.home_dir().to_owned())
}

/// The name of a gid.
pub fn group_name(gid: u32) -> Option<String> {
    users::get_group_by_gid(gid)?.name().to_str().map(str::to_owned)
}

/// The uid of a name.
pub fn uid_of(name: &str) -> Option<u32> {
    // A name with a zero byte in it would be looked up as what stands before it.
    if name.contains('\0') {
        return None;
    }
    users::get_user_by_name(name).map(|user| user.uid())
}

/// The gid of a name.
pub fn gid_of(name: &str) -> Option<u32> {
    if name.contains('\0') {
        return None;
    }
    users::get_group_by_name(name).map(|group| group.gid())
}

/// The gids of all groups that a user is in by the account database, the primary one included; none if there is no
/// such user. A running thread may have others: see [`super::thread_credentials`].
pub fn groups_of_user(name: &str) -> Option<Vec<u32>> {
    let name = CString::new(name).ok()?;
    let user = users::get_user_by_name(name.to_str().ok()?)?;
    super::group_list(&name, user.primary_group_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_both_ways() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(uid_of("root"), Some(0));
        assert_eq!(group_name(0).as_deref(), Some("root"));
        assert_eq!(gid_of("root"), Some(0));
        assert_eq!(groups_of_user("root"), Some(vec![0]));
        assert!(home_of(0).is_some_and(|home| home.is_absolute()));
    }

    #[test]
    fn all_accounts_are_those_that_are_found_one_by_one() {
        let all = super::super::all_accounts(10_000);
        assert!(all.iter().any(|account| account.uid == 0 && account.name == "root"));
        assert!(all.iter().all(|account| uid_of(&account.name) == Some(account.uid)));
        assert_eq!(super::super::all_accounts(1).len(), 1);
    }

    #[test]
    fn nobody_else_is_taken_for_root() {
        for name in ["", "root\0x", "no-such-user-here", "0"] {
            assert_eq!((uid_of(name), gid_of(name), groups_of_user(name)), (None, None, None), "{name:?}");
        }
        assert_eq!(user_name(0xffff_fff0), None);
        assert_eq!(home_of(0xffff_fff0), None);
        assert_eq!(group_name(0xffff_fff0), None);
    }

    #[test]
    fn root_is_not_added_to_other_lists() {
        let groups = groups_of_user("daemon").unwrap();
        assert!(!groups.is_empty() && !groups.contains(&0), "{groups:?}");
    }
}
