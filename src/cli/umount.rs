//! `kmsfs umount`: detaches a mount and waits until its daemon has written everything and is gone, so that the store
//! may be copied, or mounted elsewhere, when the command returns.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::Timespec;

use super::exit::CliError;
use super::mounts::kmsfs_mounts;
use super::output::{Output, shown};
use crate::mount::MountError;
use crate::sys::{self, MountEntry};

/// How long a daemon may take to write what it holds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Unmounts.
pub(super) fn run(mountpoint: &Path, output: &mut Output<'_>) -> Result<(), CliError> {
    let mount = mount_at(mountpoint)?;
    let daemon = daemon_of(Path::new(&mount.source));
    detach(&mount.mount_point)?;
    if let Some(daemon) = daemon {
        let ended = ends_within(&daemon, PATIENCE)
            .map_err(|e| CliError::io("wait for the daemon of", &mount.mount_point, e))?;
        if !ended {
            let what = format!("{} is unmounted, but its daemon", shown(&mount.mount_point));
            let reason = format!("is still writing after {} s", PATIENCE.as_secs());
            return Err(CliError::Refused { what, reason, source: None });
        }
    }
    output.result(&format!("{} is unmounted", shown(&mount.mount_point)))
}

/// The process that holds a store's lock, by the text `pid host mountpoint` in it.
pub(super) fn daemon_pid(store: &Path) -> Option<i32> {
    let text = std::fs::read(store.join("lock")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut words = text.split_whitespace();
    let (pid, host) = (words.next()?.parse().ok()?, words.next()?);
    (rustix::system::uname().nodename().to_bytes() == host.as_bytes()).then_some(pid)
}

/// The kmsfs mount at exactly this path. The path of a stale mount cannot be resolved; it is taken as it is written.
fn mount_at(path: &Path) -> Result<MountEntry, CliError> {
    let asked: PathBuf = path
        .canonicalize()
        .or_else(|_| std::path::absolute(path))
        .map_err(|error| CliError::io("find", path, error))?;
    let found = kmsfs_mounts()?.into_iter().rfind(|mount| mount.mount_point == asked);
    found.ok_or_else(|| CliError::NotAMount { path: path.to_owned() })
}

/// A handle on the daemon's process; none if it is gone, hidden from the caller, or another program by now.
fn daemon_of(store: &Path) -> Option<OwnedFd> {
    let pid = daemon_pid(store)?;
    let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // After the handle is there, the number cannot come to mean another process.
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.starts_with("kmsfs") || name.starts_with("mount.")).then_some(handle)
}

fn detach(mountpoint: &Path) -> Result<(), CliError> {
    sys::unmount(mountpoint, false).map_err(|error| {
        if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) {
            CliError::InUse { mountpoint: mountpoint.to_owned() }
        } else if sys::is_missing_helper(&error) {
            MountError::NoHelper.into()
        } else {
            CliError::io("unmount", mountpoint, error)
        }
    })
}

fn ends_within(process: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kmsfs_mount_is_left_alone() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for path in ["/", "/proc", "/nonexistent"] {
            let result = run(Path::new(path), &mut Output::new(false, &mut out, &mut err));
            assert!(matches!(result, Err(CliError::NotAMount { .. })), "{path}: {result:?}");
        }
    }

    #[test]
    fn the_end_of_a_process_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("0.2").spawn().unwrap();
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        assert!(!ends_within(&handle, Duration::from_millis(1)).unwrap());
        assert!(ends_within(&handle, Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
    }
}
