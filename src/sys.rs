//! Level 0: every system call that the standard library and rustix lack; the only file with `unsafe`.
//!
//! Its children hold what needs no `unsafe`: `accounts` (names and numbers of users and groups), `process` (who a
//! thread is, and what this process gives up), `mounts` (the mount table, mounting and unmounting). Nothing here knows
//! what a store or a key is, and nothing here decides.

mod accounts;
mod mounts;
mod process;

pub use accounts::{Account, gid_of, group_name, groups_of_user, home_of, uid_of, user_name};
pub use mounts::{
    FuseMount, MountEntry, fuse_is_closed, is_dead, is_missing_helper, mount_at, mount_fuse, mounts, unmount,
};
pub use process::{
    ThreadCredentials, boot_id, boot_time, drop_sys_resource, executable, forbid_core_dumps, login_uid,
    raise_open_files, thread_credentials,
};

use std::ffi::{CString, OsStr};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

/// Which of two processes [`fork`] returned in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    Parent,
    Child,
}

/// fork(2). Refused while the process has more than one thread: the child would have but one, and the locks that the
/// others held would never be released.
#[expect(unsafe_code, reason = "fork(2)")]
pub fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("fork with more than one thread"));
    }
    // SAFETY: no memory is passed, and there is only this thread, so that the child finds every lock as it left it.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        _ => Ok(Fork::Parent),
    }
}

/// The accounts of the host's user database, as `getent passwd` lists them, at most `most` of them.
#[expect(unsafe_code, reason = "getpwent(3)")]
pub fn all_accounts(most: usize) -> Vec<Account> {
    /// getpwent(3) has one place in the database, for the whole process.
    static WALK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _walking = WALK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: nothing else in this process walks the database, and the lock lets one walk at a time.
    let users = unsafe { users::all_users() };
    accounts::of_users(users, most)
}

/// Ends the process at once: no destructor runs, no buffer is flushed. For the middle process of a double fork.
#[expect(unsafe_code, reason = "_exit(2)")]
pub fn leave_now() -> ! {
    // SAFETY: _exit(2) takes a number and does not return.
    unsafe { libc::_exit(0) }
}

/// Makes standard input, output and error the same as `replacement`; see dup2(2).
#[expect(unsafe_code, reason = "dup2(2)")]
pub fn replace_standard_streams(replacement: BorrowedFd<'_>) -> io::Result<()> {
    for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: nobody owns the standard streams, so that none is closed under its owner.
        if unsafe { libc::dup2(replacement.as_raw_fd(), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "sigset_t")]
fn signal_set(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigemptyset writes the whole set (all zeros are a valid one before that), sigaddset adds to it; both
    // get a pointer to it that is valid throughout.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// Blocks `signals` for this thread and those that it starts from now on.
#[expect(unsafe_code, reason = "pthread_sigmask(3)")]
pub fn block_signals(signals: &[i32]) -> io::Result<()> {
    let set = signal_set(signals);
    // SAFETY: `set` is an initialised set, and a null old set is allowed.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A descriptor that becomes readable when one of `signals`, which must be blocked, is pending; see signalfd(2).
#[expect(unsafe_code, reason = "signalfd(2)")]
pub fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = signal_set(signals);
    // SAFETY: `set` is an initialised set; -1 asks for a new descriptor.
    let descriptor = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Takes one pending signal from what [`signal_descriptor`] gave; none if none is pending.
#[expect(unsafe_code, reason = "signalfd_siginfo")]
pub fn next_signal(descriptor: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    // SAFETY: all zeros are a valid signalfd_siginfo, which is plain integers.
    let mut info: libc::signalfd_siginfo = unsafe { mem::zeroed() };
    let size = mem::size_of_val(&info);
    // SAFETY: the buffer is `info`, of that size and writable.
    let read = unsafe { libc::read(descriptor.as_raw_fd(), (&raw mut info).cast(), size) };
    match usize::try_from(read) {
        Ok(read) if read == size => Ok(i32::try_from(info.ssi_signo).ok()),
        Ok(_) => Ok(None),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        },
    }
}

/// Receives one descriptor over a Unix socket (`SCM_RIGHTS`, unix(7)), closed on exec.
#[expect(unsafe_code, reason = "recvmsg(2) with a control message")]
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // Room for one descriptor, aligned for a cmsghdr: CMSG_SPACE(4) is 24 bytes on 64-bit Linux.
    let mut control = [0_u64; 8];
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: all zeros are a valid msghdr: no name, no parts, no control data.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control);
    loop {
        // SAFETY: `message` points to `part`, `byte` and `control`, which outlive the call, with their true sizes.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match got {
            1.. => break,
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    // SAFETY: `message` is as recvmsg left it; CMSG_FIRSTHDR gives null or a header that lies in `control`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: a header that is not null is a valid cmsghdr within `control`, which is aligned for it.
    let Some(kind) = (unsafe { header.as_ref() }) else {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    };
    // SAFETY: CMSG_LEN only computes.
    let enough = kind.cmsg_len >= unsafe { libc::CMSG_LEN(4) } as usize;
    if kind.cmsg_level != libc::SOL_SOCKET || kind.cmsg_type != libc::SCM_RIGHTS || !enough {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    // SAFETY: the header says that at least one descriptor, a possibly unaligned int, follows it in `control`.
    let descriptor: libc::c_int = unsafe { ptr::read_unaligned(libc::CMSG_DATA(header).cast()) };
    // SAFETY: the kernel has just installed the descriptor for this process; nobody else has its number.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// getxattrat(2), which Linux has from 6.13 on: an attribute of `name` in `dir`, of a symbolic link itself. Gives the
/// value's length.
///
/// # Errors
/// ENOSYS where the kernel has no such call.
#[expect(unsafe_code, reason = "getxattrat(2)")]
pub fn getxattr_at(dir: BorrowedFd<'_>, name: &OsStr, key: &OsStr, buffer: &mut [u8]) -> io::Result<usize> {
    #[repr(C, align(8))]
    struct Arguments {
        value: u64,
        size: u32,
        flags: u32,
    }
    // Newer than the libc crate's list; the same on every architecture.
    const GETXATTRAT: libc::c_long = 464;
    let (name, key) = (CString::new(name.as_bytes())?, CString::new(key.as_bytes())?);
    let mut arguments = Arguments {
        value: buffer.as_mut_ptr().expose_provenance() as u64,
        size: u32::try_from(buffer.len()).unwrap_or(u32::MAX),
        flags: 0,
    };
    // SAFETY: both strings end in a zero byte; `arguments` has the layout of struct xattr_args and is as long as said; the
    // kernel writes at most `size` bytes to `value`, which is `buffer`, borrowed for the call.
    let length = unsafe {
        libc::syscall(
            GETXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            key.as_ptr(),
            &raw mut arguments,
            mem::size_of::<Arguments>(),
        )
    };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// Few of the pools from which the C library gives memory to threads: each keeps what its threads have given back, and
/// threads here take turns. What is larger than any transfer comes from the kernel each time, untouched until it is used;
/// what a transfer needs stays for the next one. To be called before other threads are started.
#[expect(unsafe_code, reason = "mallopt(3)")]
pub fn share_memory_pools() {
    #[cfg(target_env = "gnu")]
    for (setting, value) in
        [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, 4 << 20), (libc::M_TRIM_THRESHOLD, 8 << 20)]
    {
        // SAFETY: takes two numbers; what it cannot do it leaves as it is.
        unsafe { libc::mallopt(setting, value) };
    }
}

/// Keeps `bytes` from being swapped out; see mlock(2). Undone by [`unlock_memory`].
#[expect(unsafe_code, reason = "mlock(2)")]
pub fn lock_memory(bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the range is that of a live slice; mlock changes no memory.
    match unsafe { libc::mlock(bytes.as_ptr().cast(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// See munlock(2). Locks do not nest: it unlocks whole pages, whatever else lies on them.
#[expect(unsafe_code, reason = "munlock(2)")]
pub fn unlock_memory(bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the range is that of a live slice; munlock changes no memory.
    match unsafe { libc::munlock(bytes.as_ptr().cast(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The gids of every group that the account database has the user in, `primary` included; see getgrouplist(3).
#[expect(unsafe_code, reason = "getgrouplist(3)")]
fn group_list(user: &CString, primary: u32) -> Option<Vec<u32>> {
    // NGROUPS_MAX of Linux is 65536, and the primary group may come on top.
    for room in [64_u16, 4096, u16::MAX] {
        let mut gids = vec![0; usize::from(room)];
        let mut count = libc::c_int::from(room);
        // SAFETY: `user` is a C string, `gids` has room for `count` gids, and `count` is written with their number.
        let outcome = unsafe { libc::getgrouplist(user.as_ptr(), primary, gids.as_mut_ptr(), &raw mut count) };
        if outcome >= 0 {
            gids.truncate(usize::try_from(count).ok()?);
            return Some(gids);
        }
    }
    None
}

/// The parsers of what the kernel writes, for any bytes.
#[cfg(feature = "testing")]
pub mod fuzzing {
    use super::{MountEntry, ThreadCredentials};

    /// As of /proc/TID/status.
    pub fn thread_status(text: &[u8]) -> Option<ThreadCredentials> {
        super::process::parse_status(text)
    }

    /// As of /proc/self/mountinfo.
    pub fn mount_table(text: &[u8]) -> Vec<MountEntry> {
        super::mounts::parse_table(text)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn fork_is_refused_beside_other_threads() {
        // The test runner itself has a thread beside this one, but be sure.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv());
        assert!(fork().is_err());
        drop(stop);
        assert!(other.join().unwrap().is_err());
    }

    #[test]
    #[expect(unsafe_code, reason = "pthread_kill(3)")]
    fn a_blocked_signal_is_read_from_its_descriptor() {
        std::thread::spawn(|| {
            block_signals(&[libc::SIGUSR2]).unwrap();
            let descriptor = signal_descriptor(&[libc::SIGUSR2]).unwrap();
            assert_eq!(next_signal(descriptor.as_fd()).unwrap(), None);
            // SAFETY: the thread is this one, and the signal is blocked in it.
            assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) }, 0);
            assert_eq!(next_signal(descriptor.as_fd()).unwrap(), Some(libc::SIGUSR2));
            assert_eq!(next_signal(descriptor.as_fd()).unwrap(), None);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn bytes_without_a_descriptor_are_refused() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"x").unwrap();
        assert_eq!(receive_descriptor(far.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(near);
        assert_eq!(receive_descriptor(far.as_fd()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn memory_is_locked_and_unlocked() {
        let bytes = vec![1_u8; 64];
        lock_memory(&bytes).unwrap();
        unlock_memory(&bytes).unwrap();
    }
}
