//! Which kmsfs mounts there are, and which of them a path is on, by /proc/self/mountinfo.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::exit::CliError;
use crate::sys::{self, MountEntry};

/// The type that findmnt(8) shows of a kmsfs mount.
const FS_TYPE: &str = "fuse.kmsfs";

/// A place on a kmsfs mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where the file system's root is mounted.
    pub mountpoint: PathBuf,
    /// The path below that root.
    pub inside: PathBuf,
}

/// All kmsfs mounts that this process sees, in the order in which they were made.
pub fn kmsfs_mounts() -> Result<Vec<MountEntry>, CliError> {
    let mut mounts = all_mounts()?;
    mounts.retain(is_kmsfs);
    Ok(mounts)
}

/// Where on which kmsfs mount the path is. Its last component need not exist and is not followed if it is a symlink.
pub fn place_of(path: &Path) -> Result<Place, CliError> {
    let resolved = match resolve(path) {
        Ok(resolved) => resolved,
        Err(error) => match stale_or_hidden(path, &error)? {
            Some(lexical) => lexical,
            None => return Err(CliError::io("find", path, error)),
        },
    };
    place_among(&all_mounts()?, &resolved).ok_or_else(|| CliError::NotAMount { path: path.to_owned() })
}

/// Whether the error is that of a mount whose daemon is gone.
pub fn is_stale(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error())
}

fn all_mounts() -> Result<Vec<MountEntry>, CliError> {
    sys::mounts().map_err(|error| CliError::io("read", "the mount table", error))
}

fn is_kmsfs(mount: &MountEntry) -> bool {
    mount.fs_type == FS_TYPE
}

/// The absolute path with every symlink followed but the last component.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        // A trailing slash or dot asks for what a link leads to.
        (Some(parent), Some(name)) if !path.as_os_str().as_bytes().ends_with(b"/") => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            let resolved = parent.canonicalize()?.join(name);
            // A mount point, or a link to one, means what is mounted; an item's link means the link.
            match resolved.canonicalize() {
                Ok(target) if all_mounts().is_ok_and(|m| place_among(&m, &resolved).is_none()) => Ok(target),
                Err(error) if is_stale(&error) => Err(error),
                Ok(_) | Err(_) => Ok(resolved),
            }
        }
        _ => path.canonicalize(),
    }
}

/// For a path that cannot be walked: an error that says so if it is on a stale mount; the path as it is written, if it
/// is on a kmsfs mount and merely hidden from the caller or absent, since the daemon can tell him more; else none.
fn stale_or_hidden(path: &Path, error: &io::Error) -> Result<Option<PathBuf>, CliError> {
    let Ok(absolute) = std::path::absolute(path) else { return Ok(None) };
    if absolute.components().any(|c| matches!(c, Component::ParentDir)) {
        return Ok(None);
    }
    let Some(place) = place_among(&all_mounts()?, &absolute) else { return Ok(None) };
    if is_stale(error) { Err(CliError::Stale { mountpoint: place.mountpoint }) } else { Ok(Some(absolute)) }
}

fn place_among(mounts: &[MountEntry], path: &Path) -> Option<Place> {
    // The longest mount point that contains the path; of several on one directory the last covers the others.
    let mount = mounts
        .iter()
        .filter(|m| path.starts_with(&m.mount_point))
        .max_by_key(|m| m.mount_point.components().count())?;
    if !is_kmsfs(mount) {
        return None;
    }
    let below = path.strip_prefix(&mount.mount_point).ok()?;
    if mount.root == Path::new("/") {
        return Some(Place { mountpoint: mount.mount_point.clone(), inside: below.to_owned() });
    }
    let whole = mounts.iter().rfind(|m| is_kmsfs(m) && m.device == mount.device && m.root == Path::new("/"))?;
    let part = mount.root.strip_prefix("/").ok()?;
    Some(Place { mountpoint: whole.mount_point.clone(), inside: part.join(below) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(device: u32, root: &str, mount_point: &str, fs_type: &str) -> MountEntry {
        MountEntry {
            id: 1,
            device: (0, device),
            root: PathBuf::from(root),
            mount_point: PathBuf::from(mount_point),
            fs_type: fs_type.into(),
            source: "/srv/store".into(),
            options: "rw".into(),
            fs_options: "rw".into(),
        }
    }

    fn mounts() -> Vec<MountEntry> {
        vec![
            mount(1, "/", "/", "ext4"),
            mount(50, "/", "/mnt/kms", FS_TYPE),
            mount(51, "/", "/mnt/kms/over", "tmpfs"),
            mount(50, "/orders", "/srv/orders", FS_TYPE),
            mount(60, "/x", "/srv/lost", FS_TYPE),
            mount(61, "/", "/mnt/enc", "fuse.gocryptfs"),
        ]
    }

    fn place(path: &str) -> Option<(PathBuf, PathBuf)> {
        place_among(&mounts(), Path::new(path)).map(|p| (p.mountpoint, p.inside))
    }

    #[test]
    fn a_path_is_on_the_innermost_mount() {
        let kms = PathBuf::from("/mnt/kms");
        assert_eq!(place("/mnt/kms/orders/1"), Some((kms.clone(), PathBuf::from("orders/1"))));
        assert_eq!(place("/mnt/kms"), Some((kms.clone(), PathBuf::new())));
        assert_eq!(place("/srv/orders/1"), Some((kms, PathBuf::from("orders/1"))));
        for elsewhere in ["/mnt/kms2/x", "/mnt/kms/over/x", "/mnt/enc/x", "/etc", "/srv/lost/x"] {
            assert_eq!(place(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn an_ordinary_path_is_on_no_kmsfs_mount() {
        assert!(matches!(place_of(Path::new("/")), Err(CliError::NotAMount { .. })));
        assert!(matches!(place_of(Path::new("/nonexistent/x/y")), Err(CliError::Io { .. })));
    }
}
