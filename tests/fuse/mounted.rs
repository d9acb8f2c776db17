//! A mount for one test.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Once};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kmsfs::mount::{self, MountError, MountOptions};
use kmsfs::sys;

use crate::memory::Memory;

/// After this a mount is taken to hang.
pub const BOUND: Duration = Duration::from_secs(90);

/// Fails unless FUSE can be mounted and aborted here.
pub fn require_fuse() {
    static READY: Once = Once::new();
    READY.call_once(|| {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse");
        let control = Path::new("/sys/fs/fuse/connections");
        if sys::mount_at(control).unwrap().is_none() {
            let done = Command::new("mount").args(["-t", "fusectl", "fusectl"]).arg(control).status().unwrap();
            assert!(done.success(), "cannot mount fusectl");
        }
    });
}

/// A fresh directory, with a space in its name.
pub fn directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::SeqCst);
    let path = std::env::temp_dir().join(format!("kmsfs fuse {} {number}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    path.canonicalize().unwrap()
}

/// Aborts the connection of the mount at `path`, if there is one.
pub fn abort(path: &Path) {
    if let Some(entry) = sys::mount_at(path).unwrap().filter(|entry| entry.fs_type == "fuse.kmsfs") {
        abort_device(entry.device.1);
    }
}

/// Aborts the connection whose mount has this minor device number.
pub fn abort_device(minor: u32) {
    use std::io::Write;
    let file = format!("/sys/fs/fuse/connections/{minor}/abort");
    // It may have ended by itself just now.
    if let Ok(mut file) = std::fs::OpenOptions::new().write(true).open(file) {
        let _ = file.write_all(b"1");
    }
}

/// Runs `work`; if it takes longer than [`BOUND`], calls `rescue`, and fails.
pub fn bounded<T>(rescue: impl FnOnce() + Send + 'static, work: impl FnOnce() -> T) -> T {
    let (done, finished) = channel::<()>();
    let guard = thread::spawn(move || {
        let hangs = finished.recv_timeout(BOUND) == Err(RecvTimeoutError::Timeout);
        if hangs {
            rescue();
        }
        hangs
    });
    let value = work();
    drop(done);
    assert!(!guard.join().unwrap(), "it hung, and was aborted");
    value
}

pub struct Mounted {
    pub fs: Arc<Memory>,
    pub path: PathBuf,
    /// Minor device number, which is the connection's number.
    pub device: u32,
    server: Option<JoinHandle<Result<(), MountError>>>,
    guard: Option<JoinHandle<bool>>,
    done: Option<Sender<()>>,
}

impl Mounted {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut MountOptions)) -> Self {
        require_fuse();
        Self::at(directory(), change).unwrap()
    }

    /// Mounts at `path`.
    pub fn at(path: PathBuf, change: impl FnOnce(&mut MountOptions)) -> Result<Self, String> {
        let mut options = MountOptions::new(OsString::from("/srv/a store, with #"));
        change(&mut options);
        let fs = Arc::new(Memory::new());
        let (tell, told) = channel();
        let (served, target) = (Arc::clone(&fs), path.clone());
        let server = thread::spawn(move || {
            mount::serve(&served, &target, &options, move |outcome| {
                tell.send(outcome.map_err(ToString::to_string)).unwrap();
            })
        });
        told.recv_timeout(BOUND).expect("the mount tells how it went")?;
        let device = sys::mount_at(&path).unwrap().unwrap().device.1;
        let (done, finished) = channel::<()>();
        let guard = thread::spawn(move || {
            let hangs = finished.recv_timeout(BOUND) == Err(RecvTimeoutError::Timeout);
            if hangs {
                abort_device(device);
            }
            hangs
        });
        Ok(Self { fs, path, device, server: Some(server), guard: Some(guard), done: Some(done) })
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn write(&self, name: &str, data: &[u8]) {
        use std::io::Write;
        std::fs::File::create(self.join(name)).unwrap().write_all(data).unwrap();
    }

    /// Requests enough that every thread has served some, so that all but one are parked.
    pub fn settle(&self) {
        for number in 0..500 {
            assert!(std::fs::metadata(self.join(&format!("missing {number}"))).is_err());
        }
    }

    /// Waits until the serving thread is done. Nothing must be mounted then, and the file system be shut down.
    pub fn ended(mut self) -> Result<(), MountError> {
        let outcome = self.server.take().unwrap().join().unwrap();
        drop(self.done.take());
        assert!(!self.guard.take().unwrap().join().unwrap(), "the mount hung, and was aborted");
        let there = sys::mount_at(&self.path).unwrap();
        assert!(there.is_none_or(|entry| entry.device.1 != self.device), "still mounted");
        assert_eq!(self.fs.shut.load(Ordering::SeqCst), 1);
        // Still a mount point if somebody else's mount is there.
        let _ = std::fs::remove_dir(&self.path);
        outcome
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.fs.gate.open();
            if sys::mount_at(&self.path).unwrap().is_some_and(|entry| entry.device.1 == self.device) {
                sys::unmount(&self.path, true).unwrap();
            }
            let outcome = server.join();
            drop(self.done.take());
            let hung = self.guard.take().unwrap().join().unwrap();
            let _ = std::fs::remove_dir(&self.path);
            if !thread::panicking() {
                outcome.unwrap().unwrap();
                assert!(!hung, "the mount hung, and was aborted");
            }
        }
    }
}
