//! The mount table, and mounting and unmounting a FUSE file system.
//!
//! Unmounting goes by path, so that it asks the mount table first: what is mounted there may be another's by now.

use std::ffi::{CString, OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags, UnmountFlags};

/// One line of /proc/self/mountinfo; see proc_pid_mountinfo(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    pub id: u64,
    /// Major and minor number of the `st_dev` of what is mounted.
    pub device: (u32, u32),
    /// What of the file system is mounted there: `/`, unless it is a bind mount of a part.
    pub root: PathBuf,
    pub mount_point: PathBuf,
    pub fs_type: OsString,
    pub source: OsString,
    /// Options of this mount, and of the file system, as the kernel writes them.
    pub options: OsString,
    pub fs_options: OsString,
}

/// The mount table, in the kernel's order: of two mounts at one path the later hides the earlier.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parse_table(&std::fs::read("/proc/self/mountinfo")?))
}

pub(super) fn parse_table(table: &[u8]) -> Vec<MountEntry> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// What is mounted at `path`, which is absolute and without links, `.` and `..`.
pub fn mount_at(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(mounts()?.into_iter().rfind(|entry| entry.mount_point == path))
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = number(words.next()?)?;
    let (_parent, device, root) = (words.next()?, words.next()?, words.next()?);
    let (mount_point, options) = (words.next()?, words.next()?);
    words.by_ref().find(|word| *word == b"-")?;
    let (fs_type, source) = (words.next()?, words.next()?);
    let mut halves = device.splitn(2, |byte| *byte == b':');
    let mut half = || u32::try_from(number(halves.next()?)?).ok();
    Some(MountEntry {
        id,
        device: (half()?, half()?),
        root: PathBuf::from(unescape(root)),
        mount_point: PathBuf::from(unescape(mount_point)),
        fs_type: unescape(fs_type),
        source: unescape(source),
        options: unescape(options),
        fs_options: unescape(words.next().unwrap_or_default()),
    })
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Undoes the kernel's escapes: a backslash and three octal digits.
fn unescape(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = rest {
            plain.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            plain.push(*byte);
            rest = after;
        }
    }
    OsString::from_vec(plain)
}

/// Whether a FUSE file system is mounted at `path` that nobody serves any more. Attributes that the kernel has cached
/// outlive the daemon, so it is made to ask.
pub fn is_dead(path: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(CWD, path, flags, StatxFlags::BASIC_STATS).is_err_and(|error| error == Errno::NOTCONN)
}

/// What to mount.
#[derive(Debug, Clone)]
pub struct FuseMount<'a> {
    /// Absolute, a directory.
    pub mount_point: &'a Path,
    /// What findmnt shows as the source.
    pub source: &'a OsStr,
    /// Makes the type `fuse.SUBTYPE`.
    pub subtype: &'a str,
    pub read_only: bool,
    pub no_exec: bool,
    /// Whether others than the mounting user may enter.
    pub allow_other: bool,
}

/// Mounts, with `nosuid,nodev,default_permissions`, and gives the connection's device and what was mounted: by
/// mount(2), or by fusermount3 for those who may not.
///
/// # Errors
/// `NotFound` if there is no /dev/fuse (or no fusermount3 where it is needed), and what mount(2) says.
pub fn mount_fuse(wanted: &FuseMount<'_>) -> io::Result<(OwnedFd, MountEntry)> {
    let device = match mount_directly(wanted) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => mount_by_helper(wanted)?,
        outcome => outcome?,
    };
    let entry = mount_at(wanted.mount_point)?;
    let entry = entry.filter(|entry| entry.fs_type.as_bytes() == format!("fuse.{}", wanted.subtype).as_bytes());
    entry.map(|entry| (device, entry)).ok_or_else(|| io::Error::other("mounted, and not in the mount table"))
}

/// Whether there is a /dev/fuse that this user may not open. fusermount3 opens it as the user who runs it.
pub fn fuse_is_closed() -> bool {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    opened.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn mount_directly(wanted: &FuseMount<'_>) -> io::Result<OwnedFd> {
    let device: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/fuse")?.into();
    let mode = std::fs::metadata(wanted.mount_point)?.mode();
    let data = format!(
        "fd={},rootmode={mode:o},user_id={},group_id={},default_permissions{}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        if wanted.allow_other { ",allow_other" } else { "" }
    );
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, wanted.read_only);
    flags.set(MountFlags::NOEXEC, wanted.no_exec);
    let kind = format!("fuse.{}", wanted.subtype);
    rustix::mount::mount(wanted.source, wanted.mount_point, kind, flags, CString::new(data)?.as_c_str())?;
    Ok(device)
}

/// fusermount3, which is set-user-id, mounts and sends the device back over the socket that `_FUSE_COMMFD` names.
fn mount_by_helper(wanted: &FuseMount<'_>) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut options = OsString::from("nosuid,nodev,default_permissions,subtype=");
    options.push(wanted.subtype);
    options.push(if wanted.read_only { ",ro" } else { "" });
    options.push(if wanted.no_exec { ",noexec" } else { "" });
    options.push(if wanted.allow_other { ",allow_other" } else { "" });
    options.push(",fsname=");
    options.push(escape_option(wanted.source));
    // The helper must inherit it; nothing else is started here at this time.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let helper = Command::new("fusermount3")
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(wanted.mount_point)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| no_helper(&error))?;
    drop(theirs);
    let received = super::receive_descriptor(ours.as_fd());
    drop(ours);
    let output = helper.wait_with_output()?;
    received.map_err(|_| helper_error(&output.stderr))
}

/// Whether it is this error: a call needed fusermount3, and there is none.
pub fn is_missing_helper(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && error.raw_os_error().is_none()
}

fn no_helper(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("fusermount3: {error}"))
}

fn helper_error(stderr: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(stderr);
    io::Error::other(text.lines().next_back().unwrap_or("fusermount3 failed").to_owned())
}

/// fusermount3 takes a comma for the end of an option unless a backslash stands before it.
fn escape_option(text: &OsStr) -> OsString {
    let mut escaped = Vec::new();
    for byte in text.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    OsString::from_vec(escaped)
}

/// Unmounts what is mounted at `path`. `lazy`: at once out of the tree, and for good when nobody uses it any more.
///
/// # Errors
/// As umount2(2): EBUSY while in use, EINVAL if nothing is mounted there.
pub fn unmount(path: &Path, lazy: bool) -> io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazy);
    match rustix::mount::unmount(path, flags) {
        Err(Errno::PERM) => unmount_by_helper(path, lazy),
        outcome => Ok(outcome?),
    }
}

fn unmount_by_helper(path: &Path, lazy: bool) -> io::Result<()> {
    let mut helper = Command::new("fusermount3");
    helper.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(path);
    let output = helper.stdin(Stdio::null()).stdout(Stdio::null()).output().map_err(|error| no_helper(&error))?;
    if output.status.success() {
        return Ok(());
    }
    if String::from_utf8_lossy(&output.stderr).contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(helper_error(&output.stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes() {
        let line = br"36 35 0:98 /mnt1 /mnt/a\040b\134\012 rw,noatime master:1 shared:2 - fuse.kmsfs /srv/a\011\043x rw,user_id=0";
        let entry = parse_line(line).unwrap();
        assert_eq!((entry.id, entry.device), (36, (0, 98)));
        assert_eq!(entry.mount_point, Path::new("/mnt/a b\\\n"));
        assert_eq!((entry.fs_type.as_bytes(), entry.source.as_bytes()), (&b"fuse.kmsfs"[..], &b"/srv/a\t#x"[..]));
        assert_eq!((entry.options.as_bytes(), entry.fs_options.as_bytes()), (&b"rw,noatime"[..], &b"rw,user_id=0"[..]));
    }

    #[test]
    fn what_is_no_line_is_skipped() {
        for line in ["", "36 35 0:98 / /mnt rw", "x 35 0:98 / /mnt rw - a b c", "36 35 98 / /mnt rw - a b c"] {
            assert_eq!(parse_line(line.as_bytes()), None, "{line:?}");
        }
        // Not an escape.
        assert_eq!(unescape(br"\04\400a\"), OsStr::new(r"\04\400a\"));
    }

    #[test]
    fn proc_is_mounted_and_this_directory_is_not() {
        assert_eq!(mount_at(Path::new("/proc")).unwrap().unwrap().fs_type, "proc");
        assert_eq!(mount_at(&std::env::current_dir().unwrap().join("src")).unwrap(), None);
        assert!(!is_dead(Path::new("/proc")));
    }

    #[test]
    fn commas_in_a_source_stay_in_it() {
        assert_eq!(escape_option(OsStr::new(r"/a,b\c")), OsStr::new(r"/a\,b\\c"));
    }
}
