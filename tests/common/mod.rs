//! A store and its mount for tests in Rust: real daemon, real FUSE, everything removed at the end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A store in a directory of its own, mounted or not.
pub(crate) struct Mounted {
    pub(crate) base: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) mount: PathBuf,
    /// The options that open the store.
    credential: Vec<String>,
}

impl Mounted {
    /// A new store, mounted.
    pub(crate) fn new(name: &str) -> Self {
        let store = Self::made_by(name, |base| {
            write_key(&base.join("key"));
            vec!["--key-file".to_owned(), path(&base.join("key")).to_owned()]
        });
        let credential = store.credential.iter().map(String::as_str);
        store.run(["init", path(&store.store)].into_iter().chain(credential));
        store.mount();
        store
    }

    /// A store that `make` puts at `store` in a new directory, or that is made there later; not mounted. `make` gives
    /// the options that open it.
    pub(crate) fn made_by(name: &str, make: impl FnOnce(&Path) -> Vec<String>) -> Self {
        assert!(Path::new("/dev/fuse").exists(), "no /dev/fuse: these tests need FUSE");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let base = std::env::temp_dir().join(format!("kmsfs-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(base.join("mnt")).unwrap();
        let credential = make(&base);
        Self { store: base.join("store"), mount: base.join("mnt"), credential, base }
    }

    /// Runs the program; its failure fails the test.
    pub(crate) fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> String {
        let output = self.try_run(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn try_run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Output {
        Command::new(env!("CARGO_BIN_EXE_kmsfs"))
            .args(args.into_iter().map(OsStr::new))
            .env("KMSFS_ANCHOR", self.base.join("anchor"))
            .output()
            .unwrap()
    }

    pub(crate) fn mount(&self) {
        let output = self.try_mount(&[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Mounts with these options beside the usual ones.
    pub(crate) fn try_mount(&self, options: &[&str]) -> Output {
        let log = self.base.join("log");
        let usual = ["mount", path(&self.store), path(&self.mount), "--log-file", path(&log)];
        let credential = self.credential.iter().map(String::as_str);
        self.try_run(usual.into_iter().chain(credential).chain(options.iter().copied()))
    }

    pub(crate) fn umount(&self) {
        let start = Instant::now();
        while !self.try_run(["umount", path(&self.mount)]).status.success() {
            assert!(start.elapsed() < PATIENCE, "the mount stays busy");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.wait_for_end();
    }

    pub(crate) fn remount(&self) {
        self.umount();
        self.mount();
    }

    /// The daemon's pid, as the store's lock names it.
    pub(crate) fn pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.store.join("lock")).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// SIGKILL, and the dead mount taken away.
    pub(crate) fn kill(&self) {
        let pid = self.pid();
        Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        // A process is dead before the last of its threads has let the lock go.
        self.wait_for_end();
        Command::new("umount").arg("-l").arg(&self.mount).status().unwrap();
        // Its other threads may hold the store a little longer.
        self.wait_for_end();
    }

    pub(crate) fn table(&self, name: &str) -> PathBuf {
        self.run(["--at", path(&self.mount), "table", "create", name, "--user", "root"]);
        self.mount.join(name)
    }

    fn wait_for_end(&self) {
        let start = Instant::now();
        let lock = self.store.join("lock");
        loop {
            let free = Command::new("flock").arg("-n").arg(&lock).arg("true").status().unwrap();
            if free.success() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(log) = std::fs::read_to_string(self.base.join("log"))
        {
            eprintln!("--- the daemon's log\n{log}---");
        }
        let ended = self.try_run(["umount", path(&self.mount)]).status.success();
        if !ended {
            let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
        }
        std::fs::remove_dir_all(&self.base).ok();
    }
}

fn write_key(file: &Path) {
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;
    let mut key = [0; 64];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut key).unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).unwrap();
    file.write_all(&key).unwrap();
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A small generator of pseudorandom numbers (SplitMix64), so that a seed repeats a run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}
