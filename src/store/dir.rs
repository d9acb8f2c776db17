//! The real storage: a directory of the host, through file descriptors.
//!
//! Every open is `openat` with `O_NOFOLLOW | O_CLOEXEC` and one component; what a name leads to is looked at before it
//! is opened, so that a device node that someone put into the store is not touched. Attributes and modes by name go
//! through an `O_PATH` descriptor and `/proc/self/fd`, which follows nothing and needs no right to read, where the kernel
//! has no call that takes a directory and a name.

use std::ffi::{OsStr, OsString};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self as sys, Advice, AtFlags, FallocateFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::storage::{Dir, DirEntry, File, FileKind, RenameFlags, SetTime, Stat, StatVfs, Storage, XattrFlags};
use crate::sys as host;

const DIR_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE_FLAGS: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// A directory of the host as a storage.
#[derive(Debug)]
pub struct DirStorage(Arc<HostDir>);

impl DirStorage {
    /// Opens the directory at `path`. This one path is the operator's and so may lead through links.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self(Arc::new(HostDir(sys::open(path, flags, Mode::empty())?))))
    }
}

impl Storage for DirStorage {
    fn root(&self) -> Arc<dyn Dir> {
        Arc::clone(&self.0) as Arc<dyn Dir>
    }
}

/// One component, or EINVAL.
fn component(name: &OsStr) -> io::Result<&OsStr> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Err(Errno::INVAL.into());
    }
    Ok(name)
}

#[derive(Debug)]
struct HostDir(OwnedFd);

impl HostDir {
    /// An `O_PATH` descriptor of what a name leads to (a symbolic link itself), or of the directory.
    fn handle(&self, name: Option<&OsStr>) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = name.map_or(Ok(OsStr::new(".")), component)?;
        Ok(sys::openat(&self.0, name, flags, Mode::empty())?)
    }

    /// The same, for directories and regular files alone.
    fn plain_handle(&self, name: Option<&OsStr>) -> io::Result<OwnedFd> {
        let fd = self.handle(name)?;
        if stat_fd(fd.as_fd())?.kind() == FileKind::Other {
            return Err(Errno::UCLEAN.into());
        }
        Ok(fd)
    }

    /// Without opening it, whatever it is.
    fn getxattr_at(&self, name: &OsStr, key: &OsStr) -> io::Result<Vec<u8>> {
        sized(|buffer| {
            let length = host::getxattr_at(self.fd(), name, key, buffer);
            length.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })
    }
}

impl Dir for HostDir {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>> {
        let name = component(name)?;
        let fd = match sys::openat(&self.0, name, DIR_FLAGS | OFlags::RDONLY, Mode::empty()) {
            // A folder that may be searched but not listed; listing it then fails by itself.
            Err(Errno::ACCESS) => sys::openat(&self.0, name, DIR_FLAGS | OFlags::PATH, Mode::empty())?,
            other => other?,
        };
        Ok(Arc::new(HostDir(fd)))
    }

    fn open_file(&self, name: &OsStr, writable: bool) -> io::Result<Arc<dyn File>> {
        if self.stat(name)?.kind() != FileKind::File {
            return Err(Errno::UCLEAN.into());
        }
        let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let fd = match sys::openat(&self.0, component(name)?, FILE_FLAGS | access, Mode::empty()) {
            Err(Errno::LOOP) => return Err(Errno::UCLEAN.into()),
            other => other?,
        };
        if stat_fd(fd.as_fd())?.kind() != FileKind::File {
            return Err(Errno::UCLEAN.into());
        }
        Ok(Arc::new(HostFile(fd)))
    }

    fn create_file(&self, name: &OsStr, mode: u32) -> io::Result<Arc<dyn File>> {
        let flags = FILE_FLAGS | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        Ok(Arc::new(HostFile(sys::openat(&self.0, component(name)?, flags, permissions(mode))?)))
    }

    fn create_dir(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        Ok(sys::mkdirat(&self.0, component(name)?, permissions(mode))?)
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        Ok(sys::unlinkat(&self.0, component(name)?, AtFlags::empty())?)
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        Ok(sys::unlinkat(&self.0, component(name)?, AtFlags::REMOVEDIR)?)
    }

    fn rename(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr, flags: RenameFlags) -> io::Result<()> {
        let (from, to) = (component(from)?, component(to)?);
        let flags = match flags {
            // Not every file system has renameat2.
            RenameFlags::None => return Ok(sys::renameat(&self.0, from, to_dir.fd(), to)?),
            RenameFlags::NoReplace => sys::RenameFlags::NOREPLACE,
            RenameFlags::Exchange => sys::RenameFlags::EXCHANGE,
        };
        Ok(sys::renameat_with(&self.0, from, to_dir.fd(), to, flags)?)
    }

    fn link(&self, from: &OsStr, to_dir: &dyn Dir, to: &OsStr) -> io::Result<()> {
        // Without AT_SYMLINK_FOLLOW linkat links a symbolic link itself.
        Ok(sys::linkat(&self.0, component(from)?, to_dir.fd(), component(to)?, AtFlags::empty())?)
    }

    fn stat(&self, name: &OsStr) -> io::Result<Stat> {
        stat_at(self.fd(), component(name)?, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn stat_self(&self) -> io::Result<Stat> {
        stat_fd(self.fd())
    }

    fn each(&self, each: &mut dyn FnMut(DirEntry) -> bool) -> io::Result<()> {
        for entry in sys::Dir::read_from(&self.0)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                sys::FileType::Directory => FileKind::Dir,
                sys::FileType::RegularFile => FileKind::File,
                sys::FileType::Unknown => match self.stat(name) {
                    Ok(stat) => stat.kind(),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                },
                sys::FileType::Symlink
                | sys::FileType::Fifo
                | sys::FileType::Socket
                | sys::FileType::CharacterDevice
                | sys::FileType::BlockDevice => FileKind::Other,
            };
            if !each(DirEntry { name: name.to_os_string(), ino: entry.ino(), kind }) {
                break;
            }
        }
        Ok(())
    }

    fn chmod(&self, name: Option<&OsStr>, mode: u32) -> io::Result<()> {
        let fd = self.plain_handle(name)?;
        Ok(sys::chmod(proc_path(&fd), permissions(mode))?)
    }

    fn chown(&self, name: Option<&OsStr>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let fd = self.plain_handle(name)?;
        let (uid, gid) = owners(uid, gid)?;
        Ok(sys::chownat(&fd, "", uid, gid, AtFlags::EMPTY_PATH)?)
    }

    fn utimens(&self, name: Option<&OsStr>, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let name = name.map_or(Ok(OsStr::new(".")), component)?;
        Ok(sys::utimensat(&self.0, name, &timestamps(atime, mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn getxattr(&self, name: Option<&OsStr>, key: &OsStr) -> io::Result<Vec<u8>> {
        if name.is_none() {
            match sized(|buffer| sys::fgetxattr(&self.0, key, buffer)) {
                // Opened as a path alone, since it may not be listed: as by name.
                Err(error) if error.raw_os_error() == Some(Errno::BADF.raw_os_error()) => {}
                done => return done,
            }
        }
        if let Some(name) = name {
            match self.getxattr_at(component(name)?, key) {
                Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {}
                done => return done,
            }
        }
        let fd = self.plain_handle(name)?;
        let path = proc_path(&fd);
        sized(|buffer| sys::getxattr(&path, key, buffer))
    }

    fn setxattr(&self, name: Option<&OsStr>, key: &OsStr, value: &[u8], flags: XattrFlags) -> io::Result<()> {
        let fd = self.plain_handle(name)?;
        Ok(sys::setxattr(proc_path(&fd), key, value, xattr_flags(flags))?)
    }

    fn listxattr(&self, name: Option<&OsStr>) -> io::Result<Vec<OsString>> {
        let fd = self.plain_handle(name)?;
        let path = proc_path(&fd);
        sized(|buffer| sys::listxattr(&path, buffer)).map(|list| names(&list))
    }

    fn removexattr(&self, name: Option<&OsStr>, key: &OsStr) -> io::Result<()> {
        let fd = self.plain_handle(name)?;
        Ok(sys::removexattr(proc_path(&fd), key)?)
    }

    fn sync(&self) -> io::Result<()> {
        match sys::fsync(&self.0) {
            // A file system that has no fsync for directories has no other way to ask for it either.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn statvfs(&self) -> io::Result<StatVfs> {
        let stat = sys::fstatvfs(&self.0)?;
        Ok(StatVfs {
            block_size: stat.f_bsize,
            fragment_size: stat.f_frsize,
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            files_available: stat.f_favail,
            name_max: stat.f_namemax,
        })
    }

    fn syncfs(&self) -> io::Result<()> {
        Ok(sys::syncfs(&self.0)?)
    }
}

#[derive(Debug)]
struct HostFile(OwnedFd);

impl File for HostFile {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let (mut rest, mut done) = (buffer, 0_usize);
        while !rest.is_empty() {
            let at = offset.checked_add(u64::try_from(done).map_err(|_| Errno::OVERFLOW)?).ok_or(Errno::OVERFLOW)?;
            match rustix::io::pread(&self.0, &mut *rest, at) {
                Ok(0) => break,
                Ok(count) => {
                    done += count;
                    rest = rest.get_mut(count..).ok_or(Errno::IO)?;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut rest, mut at) = (bytes, offset);
        while !rest.is_empty() {
            match rustix::io::pwrite(&self.0, rest, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    rest = rest.get(count..).ok_or(Errno::IO)?;
                    at = at.saturating_add(u64::try_from(count).map_err(|_| Errno::OVERFLOW)?);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| sys::ftruncate(&self.0, length))?)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(sys::fdatasync(&self.0)?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(sys::fsync(&self.0)?)
    }

    fn stat(&self) -> io::Result<Stat> {
        stat_fd(self.fd())
    }

    fn chmod(&self, mode: u32) -> io::Result<()> {
        Ok(sys::fchmod(&self.0, permissions(mode))?)
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = owners(uid, gid)?;
        Ok(sys::fchown(&self.0, uid, gid)?)
    }

    fn utimens(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        Ok(sys::futimens(&self.0, &timestamps(atime, mtime))?)
    }

    fn getxattr(&self, key: &OsStr) -> io::Result<Vec<u8>> {
        sized(|buffer| sys::fgetxattr(&self.0, key, buffer))
    }

    fn setxattr(&self, key: &OsStr, value: &[u8], flags: XattrFlags) -> io::Result<()> {
        Ok(sys::fsetxattr(&self.0, key, value, xattr_flags(flags))?)
    }

    fn listxattr(&self) -> io::Result<Vec<OsString>> {
        sized(|buffer| sys::flistxattr(&self.0, buffer)).map(|list| names(&list))
    }

    fn removexattr(&self, key: &OsStr) -> io::Result<()> {
        Ok(sys::fremovexattr(&self.0, key)?)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| sys::fallocate(&self.0, FallocateFlags::KEEP_SIZE, offset, length))?)
    }

    fn will_need(&self, offset: u64, length: u64) {
        if let Some(length) = NonZeroU64::new(length) {
            let _ = sys::fadvise(&self.0, offset, Some(length), Advice::WillNeed);
        }
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        Ok(rustix::io::retry_on_intr(|| sys::fallocate(&self.0, flags, offset, length))?)
    }
}

fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}

/// EINVAL for the id -1, which chown(2) would take for 'leave it'.
fn owners(uid: Option<u32>, gid: Option<u32>) -> io::Result<(Option<Uid>, Option<Gid>)> {
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::INVAL.into());
    }
    Ok((uid.map(Uid::from_raw), gid.map(Gid::from_raw)))
}

fn timestamps(atime: SetTime, mtime: SetTime) -> Timestamps {
    let spec = |time| match time {
        SetTime::Keep => Timespec { tv_sec: 0, tv_nsec: sys::UTIME_OMIT },
        SetTime::Now => Timespec { tv_sec: 0, tv_nsec: sys::UTIME_NOW },
        SetTime::At(seconds, nanoseconds) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    };
    Timestamps { last_access: spec(atime), last_modification: spec(mtime) }
}

fn xattr_flags(flags: XattrFlags) -> sys::XattrFlags {
    match flags {
        XattrFlags::Set => sys::XattrFlags::empty(),
        XattrFlags::Create => sys::XattrFlags::CREATE,
        XattrFlags::Replace => sys::XattrFlags::REPLACE,
    }
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn stat_fd(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    stat_at(fd, OsStr::new(""), AtFlags::EMPTY_PATH)
}

fn stat_at(fd: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> io::Result<Stat> {
    use sys::StatxFlags;
    let stat = sys::statx(fd, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    let time = |time: sys::StatxTimestamp| (time.tv_sec, time.tv_nsec);
    let known = StatxFlags::from_bits_retain(stat.stx_mask);
    Ok(Stat {
        dev: sys::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        mode: stat.stx_mode.into(),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: time(stat.stx_atime),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
        btime: known.contains(StatxFlags::BTIME).then(|| time(stat.stx_btime)),
    })
}

/// Runs a call that fills a buffer of at most 64 KiB (the kernel's `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`).
fn sized(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    // Mostly there is nothing, or little: clearing 64 KiB would cost more than the call.
    let mut little = [0; 256];
    match call(&mut little) {
        Ok(count) => return Ok(little.get(..count).unwrap_or_default().to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error.into()),
    }
    let mut buffer = vec![0; 1 << 16];
    let count = call(&mut buffer)?;
    buffer.truncate(count);
    Ok(buffer)
}

/// The names in what listxattr(2) gives: each ends in a zero byte.
fn names(list: &[u8]) -> Vec<OsString> {
    let parts = list.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    parts.map(|name| OsString::from_vec(name.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::super::record::Scratch;
    use super::super::storage::{read_whole, write_replace};
    use super::*;

    fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Errno {
        Errno::from_raw_os_error(result.unwrap_err().raw_os_error().unwrap())
    }

    fn open() -> (Scratch, Arc<dyn Dir>) {
        let scratch = Scratch::new().unwrap();
        let root = DirStorage::open(scratch.path()).unwrap().root();
        (scratch, root)
    }

    #[test]
    fn names_that_are_not_one_component_are_refused() {
        let (_scratch, root) = open();
        root.create_dir("d".as_ref(), 0o700).unwrap();
        for name in ["", ".", "..", "/", "d/x", "../x", "/etc", "x\0y"] {
            let name = OsStr::new(name);
            assert_eq!(errno(root.open_dir(name)), Errno::INVAL, "{name:?}");
            assert_eq!(errno(root.open_file(name, false)), Errno::INVAL);
            assert_eq!(errno(root.create_file(name, 0o600)), Errno::INVAL);
            assert_eq!(errno(root.create_dir(name, 0o700)), Errno::INVAL);
            assert_eq!(errno(root.remove_file(name)), Errno::INVAL);
            assert_eq!(errno(root.remove_dir(name)), Errno::INVAL);
            assert_eq!(errno(root.rename(name, root.as_ref(), "y".as_ref(), RenameFlags::None)), Errno::INVAL);
            assert_eq!(errno(root.rename("d".as_ref(), root.as_ref(), name, RenameFlags::None)), Errno::INVAL);
            assert_eq!(errno(root.link(name, root.as_ref(), "y".as_ref())), Errno::INVAL);
            assert_eq!(errno(root.stat(name)), Errno::INVAL);
            assert_eq!(errno(root.chmod(Some(name), 0o600)), Errno::INVAL);
            assert_eq!(errno(root.utimens(Some(name), SetTime::Now, SetTime::Now)), Errno::INVAL);
            assert_eq!(errno(root.listxattr(Some(name))), Errno::INVAL);
        }
    }

    #[test]
    fn links_and_special_files_are_not_entered() {
        let (scratch, root) = open();
        let path = scratch.path();
        root.create_dir("d".as_ref(), 0o700).unwrap();
        root.create_file("f".as_ref(), 0o600).unwrap();
        symlink("d", path.join("to-d")).unwrap();
        symlink("f", path.join("to-f")).unwrap();
        assert!(Command::new("mkfifo").arg(path.join("fifo")).status().unwrap().success());
        for name in ["to-d", "to-f", "fifo"] {
            assert_eq!(errno(root.open_dir(name.as_ref())), Errno::NOTDIR, "{name}");
            assert_eq!(errno(root.open_file(name.as_ref(), true)), Errno::UCLEAN, "{name}");
            assert_eq!(errno(root.chmod(Some(name.as_ref()), 0o777)), Errno::UCLEAN);
            assert_eq!(errno(root.chown(Some(name.as_ref()), Some(0), None)), Errno::UCLEAN);
            assert_eq!(
                errno(root.setxattr(Some(name.as_ref()), "user.x".as_ref(), b"", XattrFlags::Set)),
                Errno::UCLEAN
            );
            assert_eq!(root.stat(name.as_ref()).unwrap().kind(), FileKind::Other);
        }
        assert_eq!(errno(root.open_file("d".as_ref(), false)), Errno::UCLEAN);
        assert_eq!(root.stat("f".as_ref()).unwrap().permissions(), 0o600);
        let mut kinds: Vec<_> = root.list().unwrap().into_iter().map(|e| (e.name, e.kind)).collect();
        kinds.sort();
        let expected = [
            ("d", FileKind::Dir),
            ("f", FileKind::File),
            ("fifo", FileKind::Other),
            ("to-d", FileKind::Other),
            ("to-f", FileKind::Other),
        ];
        assert_eq!(kinds, expected.map(|(name, kind)| (OsString::from(name), kind)));
    }

    #[test]
    fn attributes_of_entries_and_of_the_directory_itself() {
        let (_scratch, root) = open();
        let file = root.create_file("f".as_ref(), 0o600).unwrap();
        let name = OsStr::new("f");
        root.chmod(Some(name), 0o640).unwrap();
        root.chmod(None, 0o750).unwrap();
        assert_eq!((file.stat().unwrap().permissions(), root.stat_self().unwrap().permissions()), (0o640, 0o750));
        // Without any right of the owner's it can still be named.
        file.chmod(0).unwrap();
        root.chmod(Some(name), 0o600).unwrap();
        root.utimens(Some(name), SetTime::At(5, 6), SetTime::At(-7, 8)).unwrap();
        root.utimens(Some(name), SetTime::Keep, SetTime::Keep).unwrap();
        let stat = root.stat(name).unwrap();
        assert_eq!((stat.atime, stat.mtime), ((5, 6), (-7, 8)));
        file.utimens(SetTime::Keep, SetTime::Now).unwrap();
        assert!(file.stat().unwrap().mtime.0 > 1_600_000_000 && file.stat().unwrap().atime == (5, 6));
        assert_eq!(errno(root.chown(Some(name), Some(u32::MAX), None)), Errno::INVAL);
        root.chown(Some(name), None, Some(stat.gid)).unwrap();
    }

    #[test]
    fn attributes_by_name_and_by_file_are_the_same() {
        let (_scratch, root) = open();
        let file = root.create_file("f".as_ref(), 0o600).unwrap();
        let (name, key) = (OsStr::new("f"), OsStr::new("user.key"));
        if file.setxattr(key, b"value", XattrFlags::Create).is_err() {
            // tmpfs has user attributes from Linux 6.6 on.
            return;
        }
        assert_eq!(root.getxattr(Some(name), key).unwrap(), b"value");
        assert_eq!(errno(root.setxattr(Some(name), key, b"x", XattrFlags::Create)), Errno::EXIST);
        root.setxattr(Some(name), key, b"", XattrFlags::Replace).unwrap();
        assert_eq!(file.getxattr(key).unwrap(), b"");
        assert_eq!(root.listxattr(Some(name)).unwrap(), file.listxattr().unwrap());
        assert!(file.listxattr().unwrap().iter().any(|listed| listed == key));
        root.removexattr(Some(name), key).unwrap();
        assert_eq!(errno(file.getxattr(key)), Errno::NODATA);
        root.setxattr(None, key, b"dir", XattrFlags::Set).unwrap();
        assert_eq!(root.getxattr(None, key).unwrap(), b"dir");
    }

    #[test]
    fn attributes_of_any_length_come_whole_also_of_a_directory_that_is_open_as_a_path() {
        let (scratch, root) = open();
        let file = root.create_file("f".as_ref(), 0o600).unwrap();
        let key = OsStr::new("user.key");
        if file.setxattr(key, b"", XattrFlags::Set).is_err() {
            // tmpfs has user attributes from Linux 6.6 on.
            return;
        }
        let path = sys::open(scratch.path(), DIR_FLAGS | OFlags::PATH, Mode::empty()).unwrap();
        let as_path = HostDir(path);
        for length in [0, 1, 255, 256, 257, 1000] {
            let value = vec![7; length];
            file.setxattr(key, &value, XattrFlags::Set).unwrap();
            root.setxattr(None, key, &value, XattrFlags::Set).unwrap();
            assert_eq!(file.getxattr(key).unwrap(), value, "{length}");
            assert_eq!(root.getxattr(None, key).unwrap(), value, "{length}");
            assert_eq!(as_path.getxattr(None, key).unwrap(), value, "{length}");
        }
        for number in 0..30 {
            file.setxattr(OsStr::new(&format!("user.key-{number}")), b"", XattrFlags::Set).unwrap();
        }
        assert_eq!(file.listxattr().unwrap().iter().filter(|name| name.as_bytes().starts_with(b"user.")).count(), 31);
    }

    #[test]
    fn files_read_write_and_rename() {
        let (_scratch, root) = open();
        let file = root.create_file("f".as_ref(), 0o600).unwrap();
        assert_eq!(errno(root.create_file("f".as_ref(), 0o600)), Errno::EXIST);
        file.write_all_at(b"abcdef", 4).unwrap();
        file.set_len(8).unwrap();
        let mut buffer = [9; 16];
        assert_eq!(file.read_at(&mut buffer, 2).unwrap(), 6);
        assert_eq!(&buffer[..7], b"\0\0abcd\x09");
        assert_eq!(file.read_exact_at(&mut buffer, 0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        file.allocate(0, 1 << 16).unwrap();
        assert_eq!((file.stat().unwrap().size, errno(read_whole(file.as_ref(), 7))), (8, Errno::FBIG));
        root.create_dir("d".as_ref(), 0o700).unwrap();
        let dir = root.open_dir("d".as_ref()).unwrap();
        root.link("f".as_ref(), dir.as_ref(), "g".as_ref()).unwrap();
        let flags = RenameFlags::NoReplace;
        assert_eq!(errno(root.rename("f".as_ref(), dir.as_ref(), "g".as_ref(), flags)), Errno::EXIST);
        root.rename("d".as_ref(), root.as_ref(), "f".as_ref(), RenameFlags::Exchange).unwrap();
        assert_eq!(root.stat("f".as_ref()).unwrap().kind(), FileKind::Dir);
        assert_eq!(root.stat("d".as_ref()).unwrap().nlink, 2);
        root.sync().unwrap();
        assert!(root.statvfs().unwrap().name_max >= 255);
    }

    #[test]
    fn replacing_is_in_one_step() {
        let (_scratch, root) = open();
        for bytes in [b"one".as_slice(), b"three"] {
            // What a crash has left in the way is replaced.
            root.create_file(".f.new".as_ref(), 0o600).unwrap();
            write_replace(root.as_ref(), "f".as_ref(), bytes, 0o600).unwrap();
            let file = root.open_file("f".as_ref(), false).unwrap();
            assert_eq!(read_whole(file.as_ref(), 100).unwrap(), bytes);
            assert_eq!(root.list().unwrap().len(), 1);
        }
    }
}
