//! Level 8: mounting: options, threads, signals, daemonising.
//!
//! The mount is always `nosuid,nodev,default_permissions`. Its end is orderly however it comes: `umount`, lazily or by
//! force, an abort of the connection, a signal; the file system is then shut down, and nothing stays mounted. It never
//! unmounts what is not its own: a path is unmounted only while the mount table has this mount there.

mod daemon;
mod logging;
mod notify;
mod options;

pub use daemon::{Daemon, Parent, Report, Side, daemonise};
pub use logging::{LogTo, start_logging};
pub use options::{Author, MountOptions, OptionError};

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::fs::api::Operations;
use crate::fuse;
use crate::sys::{self, FuseMount, MountEntry};

/// What ends the mount in good order.
const END_SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
const SUBTYPE: &str = "kmsfs";
const FS_TYPE: &str = "fuse.kmsfs";
/// How often, and after which wait, a busy mount is tried again before it is detached.
const UNMOUNT_TRIES: u32 = 20;
const UNMOUNT_WAIT: Duration = Duration::from_millis(100);
/// KiB; the kernel's default of 128 cuts every read that long.
const READ_AHEAD_KB: u32 = 1024;

/// Why there is no mount.
#[derive(Debug)]
pub enum MountError {
    /// No /dev/fuse here.
    NoFuse,
    /// /dev/fuse is there, for others.
    ClosedFuse,
    /// Neither the right to mount nor a fusermount3.
    NoHelper,
    NotADirectory(PathBuf),
    /// There is no such directory.
    NoMountPoint(PathBuf),
    /// A kmsfs is mounted there and answers.
    MountedAlready(PathBuf),
    /// Something else is mounted there that nobody serves.
    Dead(PathBuf),
    /// The mount is there, and what it shows is something else.
    Hidden(PathBuf),
    Io {
        what: &'static str,
        error: io::Error,
    },
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFuse => f.write_str("no /dev/fuse: load the fuse module or run where FUSE is allowed"),
            Self::ClosedFuse => f.write_str("/dev/fuse is closed to you: mount as root, or let root make its mode 666"),
            Self::NoHelper => {
                f.write_str("mounting and unmounting need root or fusermount3, and there is no fusermount3")
            }
            Self::NotADirectory(path) => write!(f, "{} is not a directory", path.display()),
            Self::NoMountPoint(path) => write!(f, "cannot mount at {}: No such file or directory", path.display()),
            Self::MountedAlready(path) => write!(f, "a kmsfs is mounted at {} already", path.display()),
            Self::Dead(path) => write!(f, "another file system's dead mount is at {}: unmount it", path.display()),
            Self::Hidden(path) => write!(f, "something else was mounted over {}", path.display()),
            Self::Io { what, error } => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for MountError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::NoFuse
            | Self::ClosedFuse
            | Self::NoHelper
            | Self::NotADirectory(_)
            | Self::NoMountPoint(_)
            | Self::MountedAlready(_)
            | Self::Dead(_)
            | Self::Hidden(_) => None,
        }
    }
}

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> MountError {
    move |error| MountError::Io { what, error }
}

/// Blocks the signals that end a mount, for this thread and those that it starts. To be called before the first
/// thread is started, in the daemon too: a thread that did not block them would die of them, and all with it.
pub fn block_end_signals() -> io::Result<()> {
    sys::block_signals(&END_SIGNALS)
}

/// What a daemon gives up and takes before it holds a secret or starts a thread: no core dumps, as many open files as
/// it may have, its umask, CAP_SYS_RESOURCE; and how it shares memory between threads.
pub fn harden() -> io::Result<()> {
    sys::share_memory_pools();
    sys::forbid_core_dumps()?;
    sys::raise_open_files()?;
    // Modes come with the requests.
    rustix::process::umask(rustix::fs::Mode::empty());
    sys::drop_sys_resource()
}

/// Makes `path` absolute and checks that something can be mounted there. A dead kmsfs mount is cleared away.
pub fn prepare_mount_point(path: &Path) -> Result<PathBuf, MountError> {
    let path = absolute(path).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            MountError::NoMountPoint(path.to_owned())
        } else {
            MountError::Io { what: "find the mount point", error }
        }
    })?;
    if sys::is_dead(&path) {
        let entry = sys::mount_at(&path).map_err(cannot("read the mount table"))?;
        if entry.is_none_or(|entry| entry.fs_type != FS_TYPE) {
            return Err(MountError::Dead(path));
        }
        log::info!("clearing away the dead mount at {}", path.display());
        sys::unmount(&path, true).map_err(|error| without_helper(error, "clear away the dead mount"))?;
    }
    if !std::fs::metadata(&path).map_err(cannot("find the mount point"))?.is_dir() {
        return Err(MountError::NotADirectory(path));
    }
    let entry = sys::mount_at(&path).map_err(cannot("read the mount table"))?;
    if entry.is_some_and(|entry| entry.fs_type == FS_TYPE) {
        return Err(MountError::MountedAlready(path));
    }
    Ok(path)
}

/// The path without links; its last component is not asked anything, for nobody might answer.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if !sys::is_dead(&path) {
        return path.canonicalize();
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        (_, None) | (None, _) => Ok(path),
    }
}

/// Mounts `fs` at `mount_point`, serves it until it is unmounted or a signal comes, and shuts it down, also if there
/// was no mount.
///
/// `ready` is called once: when the mount answers, or with what prevents it. [`block_end_signals`] must have been
/// called before any thread was started.
///
/// # Errors
/// What prevented the mount (`ready` has been told the same), or what ended it other than an unmount.
pub fn serve<F: Operations>(
    fs: &Arc<F>,
    mount_point: &Path,
    options: &MountOptions,
    ready: impl FnOnce(Result<(), &MountError>) + Send + 'static,
) -> Result<(), MountError> {
    let ready = Arc::new(Ready(Mutex::new(Some(ready))));
    let outcome = block_end_signals().map_err(cannot("block signals")).and_then(|()| {
        let mounted = mount(mount_point, options)?;
        run(fs, mounted, &ready)
    });
    fs.shut_down();
    if let Err(error) = &outcome {
        ready.tell(Err(error));
    }
    outcome
}

/// Who waits to hear how the mount went; told once.
struct Ready<R>(Mutex<Option<R>>);

impl<R: FnOnce(Result<(), &MountError>)> Ready<R> {
    fn tell(&self, outcome: Result<(), &MountError>) {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tell) = told {
            tell(outcome);
        }
    }
}

fn mount(mount_point: &Path, options: &MountOptions) -> Result<(OwnedFd, Mounted), MountError> {
    let path = prepare_mount_point(mount_point)?;
    let wanted = FuseMount {
        mount_point: &path,
        source: &options.source,
        subtype: SUBTYPE,
        read_only: options.read_only,
        no_exec: options.no_exec,
        allow_other: options.allow_other,
    };
    if !Path::new("/dev/fuse").exists() {
        return Err(MountError::NoFuse);
    }
    match sys::mount_fuse(&wanted) {
        Ok((device, entry)) => Ok((device, Mounted { path, device: entry.device })),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => Err(MountError::NoFuse),
        Err(error) if !sys::is_missing_helper(&error) && sys::fuse_is_closed() => Err(MountError::ClosedFuse),
        Err(error) => Err(without_helper(error, "mount")),
    }
}

fn without_helper(error: io::Error, what: &'static str) -> MountError {
    if sys::is_missing_helper(&error) { MountError::NoHelper } else { MountError::Io { what, error } }
}

/// From the mount to its end.
fn run<F: Operations, R: FnOnce(Result<(), &MountError>) + Send + 'static>(
    fs: &Arc<F>,
    (device, mounted): (OwnedFd, Mounted),
    ready: &Arc<Ready<R>>,
) -> Result<(), MountError> {
    let mounted = Arc::new(mounted);
    // Unmounted on every way out of here: an aborted connection leaves its mount behind.
    let _clear = ClearAway(Arc::clone(&mounted));
    let _signals = Signals::watch(&mounted).map_err(cannot("wait for signals"))?;
    let (stands, standing) = channel::<()>();
    let (ready, seen) = (Arc::clone(ready), Arc::clone(&mounted));
    // The check asks the mount, so it runs beside those who answer.
    let check = thread::Builder::new().name("kmsfs-ready".to_owned()).spawn(move || match standing.recv() {
        Ok(()) => announce(&seen, &ready),
        // There is no connection, and whoever tried to make it says why.
        Err(_) => Ok(()),
    });
    let check = check.map_err(cannot("start a thread"))?;
    let served = fuse::serve(fs, device, move || {
        // The receiver waits for it.
        let _ = stands.send(());
    });
    let checked = check.join().unwrap_or_else(|_| {
        log::error!("the thread that announces the mount has panicked");
        Ok(())
    });
    served.map_err(cannot("serve the mount")).and(checked)
}

fn announce<R: FnOnce(Result<(), &MountError>)>(mounted: &Mounted, ready: &Ready<R>) -> Result<(), MountError> {
    match mounted.check() {
        Ok(()) => {
            mounted.raise_read_ahead();
            log::info!("mounted at {}", mounted.path.display());
            notify::notify("READY=1");
            ready.tell(Ok(()));
            Ok(())
        }
        Err(error) => {
            ready.tell(Err(&error));
            mounted.detach("it does not answer as it should");
            Err(error)
        }
    }
}

/// This mount, told from any other by its device number, which is no other's while it lives.
#[derive(Debug)]
struct Mounted {
    path: PathBuf,
    device: (u32, u32),
}

impl Mounted {
    /// Whether the mount answers, and is what one sees at its path.
    fn check(&self) -> Result<(), MountError> {
        let root = std::fs::symlink_metadata(&self.path).map_err(cannot("reach the mount"))?;
        let device = (rustix::fs::major(root.dev()), rustix::fs::minor(root.dev()));
        if device == self.device { Ok(()) } else { Err(MountError::Hidden(self.path.clone())) }
    }

    /// The mount's line in the mount table, if it is what one sees at its path. Asks only the kernel.
    fn entry(&self) -> Option<MountEntry> {
        match sys::mount_at(&self.path) {
            Ok(entry) => entry.filter(|entry| entry.device == self.device),
            Err(error) => {
                log::error!("cannot read the mount table: {error}");
                None
            }
        }
    }

    /// Best effort: needs root and /sys.
    fn raise_read_ahead(&self) {
        let (major, minor) = self.device;
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = write_setting(&file, &READ_AHEAD_KB.to_string()) {
            log::debug!("read-ahead stays at the kernel's default: {file}: {error}");
        }
    }

    /// Unmounts; if the mount stays busy, takes it out of the tree all the same.
    fn unmount(&self) {
        for _ in 0..UNMOUNT_TRIES {
            if self.entry().is_none() {
                return;
            }
            match sys::unmount(&self.path, false) {
                Ok(()) => return,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(UNMOUNT_WAIT),
                Err(error) => log::warn!("cannot unmount {}: {error}", self.path.display()),
            }
        }
        self.detach("it is in use, and served until those who use it are done; a second signal ends it");
    }

    fn detach(&self, why: &str) {
        if self.entry().is_some() {
            log::warn!("detaching {}: {why}", self.path.display());
            if let Err(error) = sys::unmount(&self.path, true) {
                log::error!("cannot detach {}: {error}", self.path.display());
            }
        }
    }

    /// Ends the connection under those who still use it.
    fn abort(&self) {
        // The number of a connection is the device number of its mount; that of anonymous devices has major 0.
        let connection = (u64::from(self.device.0) << 20) | u64::from(self.device.1);
        let file = format!("/sys/fs/fuse/connections/{connection}/abort");
        match write_setting(&file, "1") {
            Ok(()) => log::warn!("aborted the connection"),
            Err(error) => log::error!("cannot abort the connection: {file}: {error}"),
        }
    }
}

/// A setting of the kernel: written in one go to a file that exists.
fn write_setting(file: &str, value: &str) -> io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

struct ClearAway(Arc<Mounted>);

impl Drop for ClearAway {
    fn drop(&mut self) {
        if self.0.entry().is_some()
            && let Err(error) = sys::unmount(&self.0.path, true)
        {
            log::error!("cannot clear away the mount at {}: {error}", self.0.path.display());
        }
    }
}

/// The thread that takes the signals that end a mount.
struct Signals {
    end: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    fn watch(mounted: &Arc<Mounted>) -> io::Result<Self> {
        let signals = sys::signal_descriptor(&END_SIGNALS)?;
        let (ended, end) = pipe_with(PipeFlags::CLOEXEC)?;
        let mounted = Arc::clone(mounted);
        let thread = thread::Builder::new().name("kmsfs-signals".to_owned()).spawn(move || {
            if let Err(error) = end_at_signal(&signals, &ended, &mounted) {
                log::error!("signals are not waited for any more: {error}");
            }
        })?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // The other end of the pipe hears of it.
        self.end = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that waits for signals has panicked");
        }
    }
}

/// The first signal unmounts, a second one aborts.
fn end_at_signal(signals: &OwnedFd, end: &OwnedFd, mounted: &Mounted) -> io::Result<()> {
    let mut before = false;
    loop {
        let mut waiting = [PollFd::new(signals, PollFlags::IN), PollFd::new(end, PollFlags::IN)];
        match poll(&mut waiting, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [_, ended] = &waiting;
        if ended.revents().contains(PollFlags::HUP) {
            return Ok(());
        }
        let Some(signal) = sys::next_signal(signals.as_fd())? else { continue };
        log::info!("signal {signal}: ending the mount at {}", mounted.path.display());
        if before {
            mounted.detach("a second signal came");
            mounted.abort();
        } else {
            before = true;
            notify::notify("STOPPING=1");
            mounted.unmount();
        }
    }
}

/// Unmounts the kmsfs at `path`; `lazy` as for umount(8).
///
/// # Errors
/// If no kmsfs is mounted there, or it is in use.
pub fn unmount(path: &Path, lazy: bool) -> io::Result<()> {
    let path = absolute(path)?;
    match sys::mount_at(&path)? {
        Some(entry) if entry.fs_type == FS_TYPE => sys::unmount(&path, lazy),
        Some(_) | None => Err(io::Error::new(io::ErrorKind::InvalidInput, "no kmsfs is mounted there")),
    }
}

/// The mount points of all kmsfs mounts whose source is `source`, or of all if there is none.
pub fn mount_points(source: Option<&OsStr>) -> io::Result<Vec<PathBuf>> {
    let ours = |entry: &MountEntry| entry.fs_type == FS_TYPE && source.is_none_or(|source| entry.source == source);
    Ok(sys::mounts()?.into_iter().filter(ours).map(|entry| entry.mount_point).collect())
}
