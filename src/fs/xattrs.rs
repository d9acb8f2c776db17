//! Extended attributes. `user.*` is content: sealed, and decided by the key. ACLs and `security.*` are attributes like
//! the mode: Unix decides, and the kernel fetches ACLs in the caller's name. `user.kmsfs.*` is the daemon's own.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use super::api::{Caller, FsError, FsResult, Kind};
use super::attributes::Target;
use super::control::Node;
use super::inodes::{Body, Inode, ROOT_INO};
use super::subject::Asker;
use super::{FileSystem, is_control};
use crate::store::XattrFlags;
use crate::table::TableError;

const USER: &[u8] = b"user.";
/// Attributes of which the daemon says what they are.
const OWN: &[u8] = b"user.kmsfs.";
const WHY: &[u8] = b"user.kmsfs.why";
pub(super) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
pub(super) const CAPABILITY: &[u8] = b"security.capability";
/// Of a file that has none, it is said not to be supported: `ls -l` then asks of no other file.
pub(super) const SELINUX: &[u8] = b"security.selinux";
const PASSED: [&[u8]; 3] = [b"security.", ACCESS_ACL, DEFAULT_ACL];

/// Whether an attribute passes through to the backing file as it is.
fn is_passed(name: &[u8]) -> bool {
    PASSED.iter().any(|passed| name == *passed || passed.ends_with(b".") && name.starts_with(passed))
}

fn flags_of(flags: i32) -> FsResult<XattrFlags> {
    match flags {
        0 => Ok(XattrFlags::Set),
        libc::XATTR_CREATE => Ok(XattrFlags::Create),
        libc::XATTR_REPLACE => Ok(XattrFlags::Replace),
        _ => Err(FsError::Invalid),
    }
}

impl FileSystem {
    pub(super) fn attribute(&self, caller: &Caller, ino: u64, name: &OsStr) -> FsResult<Vec<u8>> {
        let name = name.as_bytes();
        if is_control(ino) {
            return self.mirrored_acl(ino, name);
        }
        let inode = self.inodes.find(ino)?;
        if name == WHY {
            return self.why_attribute(caller, &inode);
        }
        if is_passed(name) {
            return self.passed_attribute(&inode, name);
        }
        let Some(rest) = user_name(&inode, name)? else { return Err(FsError::NotSupported) };
        match &inode.body {
            Body::Folder(folder) => {
                let key = self.right_to_read(caller, &inode)?;
                folder.xattr(&key, rest).map_err(|error| self.attribute_error(&inode, error, FsError::NoAttribute))
            }
            Body::Item(_) => {
                let _using = self.using(&inode);
                let (key, item) = self.item_to_read(caller, &inode)?;
                item.xattr(&key, rest).map_err(|error| self.attribute_error(&inode, error, FsError::NoAttribute))
            }
            Body::Root => Err(FsError::NotSupported),
        }
    }

    fn passed_attribute(&self, inode: &Arc<Inode>, name: &[u8]) -> FsResult<Vec<u8>> {
        let none = || if name == SELINUX { FsError::NotSupported } else { FsError::NoAttribute };
        // Of a retired inode's backing file another inode may change the attributes.
        let alone = !inode.is_retired();
        if alone && inode.known.lacks(name) {
            return Err(none());
        }
        let look = inode.known.look();
        let target = self.target(inode)?;
        let value = target.getxattr(OsStr::from_bytes(name));
        Self::still_there(inode, &target)?;
        match value {
            Err(error) if error.raw_os_error() == Some(libc::ENODATA) => {
                if alone {
                    inode.known.found_none(look, name);
                }
                Err(none())
            }
            value => Ok(value?),
        }
    }

    /// The mirror of a folder in the control tree has its ACL too, so that the kernel lets through the same people.
    fn mirrored_acl(&self, ino: u64, name: &[u8]) -> FsResult<Vec<u8>> {
        let Node::WhyPath(table, path) = self.control.node(ino)? else { return Err(FsError::NoAttribute) };
        if name != ACCESS_ACL {
            return Err(FsError::NoAttribute);
        }
        let folder = self.folder_at(table, &path).map_err(|_| FsError::NoAttribute)?;
        Ok(folder.dir().getxattr(None, OsStr::from_bytes(name))?)
    }

    fn why_attribute(&self, caller: &Caller, inode: &Inode) -> FsResult<Vec<u8>> {
        let table = inode.table().map_err(|_| FsError::NoAttribute)?;
        let who = Asker::of(caller, true);
        Ok(self.kms.explain(&who.subject(), table, &inode.path()).to_string().into_bytes())
    }

    pub(super) fn set_attribute(
        &self,
        caller: &Caller,
        ino: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> FsResult<()> {
        if is_control(ino) {
            // An editor that copies an ACL to its temporary file is let go on; there is nothing to keep it on.
            return if is_passed(name.as_bytes()) { Ok(()) } else { Err(FsError::NotSupported) };
        }
        self.writable()?;
        let inode = self.inodes.find(ino)?;
        let flags = flags_of(flags)?;
        if is_passed(name.as_bytes()) {
            let set = self.target(&inode)?.setxattr(name, value, flags);
            self.attributes_changed(&inode);
            return Ok(set?);
        }
        let Some(rest) = user_name(&inode, name.as_bytes())? else { return Err(FsError::NotSupported) };
        match &inode.body {
            Body::Folder(folder) => {
                let key = self.right_to_write(caller, &inode)?;
                folder
                    .set_xattr(&key, rest, value, flags)
                    .map_err(|error| self.attribute_error(&inode, error, FsError::Range))
            }
            Body::Item(_) => {
                let (key, item) = self.item_to_write(caller, &inode)?;
                item.set_xattr(&key, rest, value, flags)
                    .map_err(|error| self.attribute_error(&inode, error, FsError::Range))
            }
            Body::Root => Err(FsError::NotSupported),
        }
    }

    pub(super) fn remove_attribute(&self, caller: &Caller, ino: u64, name: &OsStr) -> FsResult<()> {
        if is_control(ino) {
            return if is_passed(name.as_bytes()) { Ok(()) } else { Err(FsError::NoAttribute) };
        }
        self.writable()?;
        let inode = self.inodes.find(ino)?;
        if is_passed(name.as_bytes()) {
            let removed = self.target(&inode)?.removexattr(name);
            self.attributes_changed(&inode);
            return Ok(removed?);
        }
        let Some(rest) = user_name(&inode, name.as_bytes())? else { return Err(FsError::NotSupported) };
        match &inode.body {
            Body::Folder(folder) => {
                let key = self.right_to_write(caller, &inode)?;
                folder
                    .remove_xattr(&key, rest)
                    .map_err(|error| self.attribute_error(&inode, error, FsError::NoAttribute))
            }
            Body::Item(_) => {
                let (key, item) = self.item_to_write(caller, &inode)?;
                item.remove_xattr(&key, rest).map_err(|error| self.attribute_error(&inode, error, FsError::NoAttribute))
            }
            Body::Root => Err(FsError::NotSupported),
        }
    }

    /// `too_long`: what is said of a name that is too long once it is sealed.
    fn attribute_error(&self, inode: &Inode, error: TableError, too_long: FsError) -> FsError {
        if matches!(error, TableError::NameTooLong) { too_long } else { self.report(inode, error) }
    }

    pub(super) fn attribute_names(&self, ino: u64) -> FsResult<Vec<u8>> {
        if is_control(ino) || ino == ROOT_INO {
            return Ok(Vec::new());
        }
        let inode = self.inodes.find(ino)?;
        let target = self.target(&inode)?;
        let mut names: Vec<Vec<u8>> =
            target.listxattr()?.into_iter().map(OsStringExt::into_vec).filter(|name| is_passed(name)).collect();
        let own = match &inode.body {
            Body::Folder(folder) => folder.xattr_names()?,
            Body::Item(_) => match self.load_item(&inode) {
                Ok(item) => item.xattr_names()?,
                // Names are told without a decision, and an item's health is not.
                Err(FsError::Tampered | FsError::Corrupt) => Vec::new(),
                Err(error) => return Err(error),
            },
            Body::Root => Vec::new(),
        };
        names.extend(own.into_iter().map(|name| [USER, &name].concat()));
        Ok(names.into_iter().flat_map(|name| [name, vec![0]].concat()).collect())
    }
}

/// What follows `user.`; none for another kind of name.
///
/// # Errors
/// `NotPermitted` for `user.*` of what is neither file nor folder, as on every Linux file system (xattr(7)), and for
/// the daemon's own names.
fn user_name<'a>(inode: &Arc<Inode>, name: &'a [u8]) -> FsResult<Option<&'a [u8]>> {
    let Some(rest) = name.strip_prefix(USER) else { return Ok(None) };
    if name.starts_with(OWN) || !matches!(inode.kind, Kind::File | Kind::Dir) {
        return Err(FsError::NotPermitted);
    }
    Ok(Some(rest))
}

impl Target {
    fn getxattr(&self, key: &OsStr) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Folder(dir) => dir.getxattr(None, key),
            Self::Open(item) => item.backing().getxattr(key),
            Self::Named(folder, name) => folder.dir().getxattr(Some(name.on_disk()), key),
        }
    }

    fn setxattr(&self, key: &OsStr, value: &[u8], flags: XattrFlags) -> std::io::Result<()> {
        match self {
            Self::Folder(dir) => dir.setxattr(None, key, value, flags),
            Self::Open(item) => item.backing().setxattr(key, value, flags),
            Self::Named(folder, name) => folder.dir().setxattr(Some(name.on_disk()), key, value, flags),
        }
    }

    fn removexattr(&self, key: &OsStr) -> std::io::Result<()> {
        match self {
            Self::Folder(dir) => dir.removexattr(None, key),
            Self::Open(item) => item.backing().removexattr(key),
            Self::Named(folder, name) => folder.dir().removexattr(Some(name.on_disk()), key),
        }
    }

    fn listxattr(&self) -> std::io::Result<Vec<std::ffi::OsString>> {
        match self {
            Self::Folder(dir) => dir.listxattr(None),
            Self::Open(item) => item.backing().listxattr(),
            Self::Named(folder, name) => folder.dir().listxattr(Some(name.on_disk())),
        }
    }
}
