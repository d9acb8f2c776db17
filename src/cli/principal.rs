//! Who is meant on the command line, and which Unix rights they have to a folder.
//!
//! The daemon resolves names by itself; what is resolved here only serves a warning.

use crate::policy::PForm;
use crate::sys;

/// Reads `alice`, `uid:1001`, `group:finance` or `gid:2000`.
///
/// # Errors
/// What is wrong with the text, for the person who wrote it.
pub fn principal(text: &str) -> Result<PForm, String> {
    // A blank would end the word in a control line.
    if text.contains(char::is_whitespace) {
        return Err("no blanks: name one user, uid:N, group:NAME or gid:N".to_owned());
    }
    text.parse().map_err(|error: crate::policy::PFormError| error.to_string())
}

/// What Unix compares: a uid, if the principal is a user, and groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixIdentity {
    pub uid: Option<u32>,
    pub gids: Vec<u32>,
}

/// The identity by this host's account data; none if it knows no such name.
#[must_use]
pub fn identity(who: &PForm) -> Option<UnixIdentity> {
    let gids_of = |name: &str| sys::groups_of_user(name).unwrap_or_default();
    match who {
        PForm::User(name) => sys::uid_of(name).map(|uid| UnixIdentity { uid: Some(uid), gids: gids_of(name) }),
        PForm::Uid(uid) => {
            let gids = sys::user_name(*uid).map(|name| gids_of(&name)).unwrap_or_default();
            Some(UnixIdentity { uid: Some(*uid), gids })
        }
        PForm::Group(name) => sys::gid_of(name).map(|gid| UnixIdentity { uid: None, gids: vec![gid] }),
        PForm::Gid(gid) => Some(UnixIdentity { uid: None, gids: vec![*gid] }),
    }
}

/// What a folder grants: its owner, group and mode, and the entries of its ACL for others than these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderRights {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub acl: Option<Acl>,
}

impl FolderRights {
    /// The permission bits (r 4, w 2, x 1) that the identity has. Source: acl(5), 'access check algorithm'.
    #[must_use]
    pub fn of(&self, who: &UnixIdentity) -> u32 {
        let (owner, group, other) = (self.mode >> 6 & 7, self.mode >> 3 & 7, self.mode & 7);
        if who.uid == Some(0) {
            return 7;
        }
        if who.uid == Some(self.uid) {
            return owner;
        }
        let Some(acl) = &self.acl else {
            return if who.gids.contains(&self.gid) { group } else { other };
        };
        if let Some((_, bits)) = acl.users.iter().find(|(uid, _)| who.uid == Some(*uid)) {
            return bits & acl.mask;
        }
        let owning = who.gids.contains(&self.gid).then_some(acl.owning_group);
        let named = acl.groups.iter().filter(|(gid, _)| who.gids.contains(gid)).map(|(_, bits)| *bits);
        // The algorithm asks whether one entry grants all that is wanted; the union is right for the single entry
        // that nearly every ACL has, and errs only towards staying silent.
        owning.into_iter().chain(named).reduce(|a, b| a | b).map_or(other, |bits| bits & acl.mask)
    }
}

/// The entries of a POSIX ACL that the mode does not show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    pub users: Vec<(u32, u32)>,
    pub groups: Vec<(u32, u32)>,
    pub owning_group: u32,
    pub mask: u32,
}

impl Acl {
    /// Reads `system.posix_acl_access`: version 2, then entries of tag (u16), bits (u16), id (u32), little-endian.
    /// Source: linux/posix_acl_xattr.h. None if it is anything else.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        const USER: u16 = 0x02;
        const GROUP_OBJ: u16 = 0x04;
        const GROUP: u16 = 0x08;
        const MASK: u16 = 0x10;
        let (version, entries) = bytes.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != 2 {
            return None;
        }
        let mut acl = Self { users: Vec::new(), groups: Vec::new(), owning_group: 0, mask: 7 };
        for entry in entries.chunks(8) {
            let &[t0, t1, b0, b1, i0, i1, i2, i3] = entry else { return None };
            let (bits, id) = (u32::from(u16::from_le_bytes([b0, b1])), u32::from_le_bytes([i0, i1, i2, i3]));
            match u16::from_le_bytes([t0, t1]) {
                USER => acl.users.push((id, bits)),
                GROUP => acl.groups.push((id, bits)),
                GROUP_OBJ => acl.owning_group = bits,
                MASK => acl.mask = bits,
                _ => {}
            }
        }
        Some(acl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_is_one_word() {
        for text in ["alice", "uid:0", "group:finance", "gid:2000"] {
            assert_eq!(principal(text).map(|p| p.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "1001", "alice bob", "alice\nremove-user carol", "domain\u{a0}users", "uid:4294967295"] {
            assert!(principal(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn identities_come_from_the_account_data() {
        assert_eq!(identity(&PForm::User("root".to_owned())).and_then(|i| i.uid), Some(0));
        assert_eq!(identity(&PForm::User("no-such-user".to_owned())), None);
        let unknown = UnixIdentity { uid: Some(4_000_000_000), gids: Vec::new() };
        assert_eq!(identity(&PForm::Uid(4_000_000_000)), Some(unknown));
    }

    fn user(uid: u32, gids: &[u32]) -> UnixIdentity {
        UnixIdentity { uid: Some(uid), gids: gids.to_vec() }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let folder = FolderRights { uid: 10, gid: 20, mode: 0o074, acl: None };
        assert_eq!(folder.of(&user(10, &[20])), 0, "the owner has the owner's bits alone");
        assert_eq!(folder.of(&user(11, &[5, 20])), 7);
        assert_eq!(folder.of(&user(11, &[5])), 4);
        assert_eq!(folder.of(&user(0, &[])), 7);
        assert_eq!(folder.of(&UnixIdentity { uid: None, gids: vec![20] }), 7);
    }

    #[test]
    fn an_acl_is_evaluated_with_its_mask() {
        let mut bytes = vec![2, 0, 0, 0];
        for (tag, bits, id) in [
            (1_u16, 7_u16, u32::MAX),
            (2, 7, 42),
            (4, 0, u32::MAX),
            (8, 5, 30),
            (0x10, 5, u32::MAX),
            (0x20, 0, u32::MAX),
        ] {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&bits.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        let folder = FolderRights { uid: 10, gid: 20, mode: 0o750, acl: Acl::parse(&bytes) };
        assert_eq!(folder.of(&user(42, &[])), 5, "the mask takes w away");
        assert_eq!(folder.of(&user(43, &[30])), 5);
        assert_eq!(folder.of(&user(43, &[20])), 0, "the mode's group bits are the mask, not the group's");
        assert_eq!(folder.of(&user(43, &[])), 0);
        assert_eq!(Acl::parse(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Acl::parse(&[1, 0, 0, 0]), None);
    }
}
