//! The file system called from several threads at once, without FUSE between, so that races that the kernel makes rare
//! come often: decisions against changes of the policy, one item against itself, what is remembered against what is.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers with it")]

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use kmsfs::crypto::{Argon2Params, SecretBytes};
use kmsfs::fs::api::{Caller, FsError, FsResult, Operations, Outcome, SetAttr};
use kmsfs::fs::{FileSystem, Options, open_trail};
use kmsfs::kms::Kms;
use kmsfs::policy::PForm;
use kmsfs::store::{Credential, Open, Store};

const ROOT: Caller = Caller { uid: 0, gid: 0, tid: 0 };
const ALICE: Caller = Caller { uid: 61_001, gid: 61_001, tid: 0 };
const BOB: Caller = Caller { uid: 61_002, gid: 61_002, tid: 0 };

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A store of its own with a table `t`, alice its key user.
struct Rig {
    fs: Arc<FileSystem>,
    table: u64,
    dir: PathBuf,
}

impl Rig {
    fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("kmsfs-races-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (path, credential) = (dir.join("store"), Credential::KeyFile(SecretBytes::new(vec![7; 64])));
        let how = || Open {
            read_only: false,
            anchor_dir: dir.join("anchor"),
            owner: "test".to_owned(),
            accept_anchor: false,
        };
        let store = Arc::new(Store::create(&path, &credential, Argon2Params::DEFAULT, "test", &how()).unwrap());
        let (trail, _) = open_trail(&store).unwrap();
        let kms = Kms::initialise(Arc::clone(&store), Arc::new(trail), &[PForm::Uid(0)]).unwrap();
        kms.close().unwrap();
        drop((kms, store));
        let store = Store::open(&path, &credential, &how()).unwrap();
        let mut rig = Self { fs: Arc::new(FileSystem::open(store, Options::default()).unwrap()), table: 0, dir };
        rig.command(&[".kms", "ctl"], "create-table t user=uid:61001").unwrap();
        rig.table = rig.find(&["t"]);
        rig
    }

    fn find(&self, path: &[&str]) -> u64 {
        path.iter().fold(1, |parent, name| self.fs.lookup(&ROOT, parent, OsStr::new(name)).unwrap().attr.ino)
    }

    fn command(&self, path: &[&str], line: &str) -> FsResult<Outcome<u32>> {
        let ino = self.find(path);
        let fh = self.fs.open(&ROOT, ino, libc::O_WRONLY).unwrap().fh;
        let done = self.fs.write(&ROOT, ino, fh, 0, format!("{line}\n").as_bytes(), false, false);
        self.fs.release(ino, fh);
        done
    }

    /// A command for the table's key, with what it revokes.
    fn key(&self, line: &str) -> Vec<u64> {
        let outcome = self.command(&[".kms", "keys", "t", "ctl"], line).unwrap();
        outcome.revocation.map_or_else(Vec::new, |revocation| {
            self.fs.revoked(revocation.id);
            revocation.inodes
        })
    }

    fn item(&self, name: &str, text: &[u8]) -> u64 {
        let (entry, opened) = self.fs.create(&ALICE, self.table, OsStr::new(name), 0o666, 0, libc::O_RDWR).unwrap();
        self.fs.write(&ALICE, entry.attr.ino, opened.fh, 0, text, false, false).unwrap();
        self.fs.release(entry.attr.ino, opened.fh);
        entry.attr.ino
    }

    fn lookup(&self, name: &str) -> u64 {
        self.fs.lookup(&ALICE, self.table, OsStr::new(name)).unwrap().attr.ino
    }

    fn read(&self, ino: u64, fh: u64) -> FsResult<Vec<u8>> {
        let mut buffer = Vec::new();
        self.fs.read(&ALICE, ino, fh, 0, &mut buffer, 1 << 20)?;
        Ok(buffer)
    }

    /// What alice reads of an item.
    fn contents(&self, ino: u64) -> FsResult<Vec<u8>> {
        let fh = self.fs.open(&ALICE, ino, libc::O_RDONLY)?.fh;
        let read = self.read(ino, fh);
        self.fs.release(ino, fh);
        read
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.fs.shut_down();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

#[test]
fn no_handle_slips_through_a_revocation() {
    let rig = Rig::new();
    for round in 0..60 {
        rig.key("add-user uid:61002");
        let ino = rig.item(&format!("item-{round}"), b"secret");
        let (saved, start) = (AtomicBool::new(false), Barrier::new(2));
        let (held, revoked) = thread::scope(|scope| {
            let bob = scope.spawn(|| {
                start.wait();
                let mut held = None;
                while !saved.load(Ordering::SeqCst) {
                    if let Some(fh) = held.take() {
                        rig.fs.release(ino, fh);
                    }
                    match rig.fs.open(&BOB, ino, libc::O_RDONLY) {
                        Ok(opened) => held = Some(opened.fh),
                        Err(_) => break,
                    }
                }
                held
            });
            start.wait();
            let revoked = rig.key("remove-user uid:61002");
            saved.store(true, Ordering::SeqCst);
            (bob.join().unwrap(), revoked)
        });
        if let Some(fh) = held {
            assert!(revoked.contains(&ino), "round {round}: a handle that no revocation has seen");
            assert!(rig.read(ino, fh).is_err(), "round {round}: a handle that reads on");
            rig.fs.release(ino, fh);
        }
    }
}

#[test]
fn an_item_that_is_let_go_while_it_is_opened_is_still_one() {
    const ROUNDS: u64 = 20_000;
    let rig = Rig::new();
    let (ino, other) = (rig.item("x", b""), rig.item("y", b"other"));
    thread::scope(|scope| {
        let write = |writer: u64| {
            let rig = &rig;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let fh = rig.fs.open(&ALICE, ino, libc::O_WRONLY).unwrap().fh;
                    let (at, bytes) = (round * 16 + writer * 8, round.to_le_bytes());
                    let written = rig.fs.write(&ALICE, ino, fh, at, &bytes, false, false);
                    assert_eq!(written.unwrap().value, 8);
                    rig.fs.release(ino, fh);
                }
            })
        };
        let writers = [write(0), write(1)];
        // Others come and go, so that the item is let go again and again.
        while writers.iter().any(|writer| !writer.is_finished()) {
            rig.contents(other).unwrap();
        }
    });
    let expected: Vec<u8> = (0..ROUNDS).flat_map(|round| [round.to_le_bytes(); 2].concat()).collect();
    assert!(rig.contents(ino).unwrap() == expected, "an item with two memories");
}

#[test]
fn what_drains_into_a_retired_inode_and_what_is_written_to_the_new_one_is_one_item() {
    let rig = Rig::new();
    rig.key("add-user uid:61002");
    let old = rig.item("x", b"first");
    let alice = rig.fs.open(&ALICE, old, libc::O_RDWR).unwrap().fh;
    rig.fs.open(&BOB, old, libc::O_RDONLY).unwrap();
    let outcome = rig.command(&[".kms", "keys", "t", "ctl"], "remove-user uid:61002").unwrap();
    let revocation = outcome.revocation.unwrap();
    let new = rig.lookup("x");
    assert_ne!(old, new);
    let again = rig.fs.open(&ALICE, new, libc::O_RDWR).unwrap().fh;
    for block in 0..4 {
        let at = block * 8192;
        rig.fs.write(&ALICE, new, again, at, b"new", false, false).unwrap();
        rig.fs.write(&ALICE, old, alice, at + 4096, b"old", true, false).unwrap();
    }
    rig.fs.revoked(revocation.id);
    let mut expected = b"newst".to_vec();
    for block in 0..4 {
        expected.resize(block * 8192 + if block == 0 { 5 } else { 0 }, 0);
        if block > 0 {
            expected.extend(b"new");
        }
        expected.resize(block * 8192 + 4096, 0);
        expected.extend(b"old");
    }
    assert!(rig.read(new, again).unwrap() == expected);
    rig.fs.release(new, again);
    rig.fs.release(old, alice);
    assert!(rig.contents(new).unwrap() == expected);
    assert!(matches!(rig.fs.open(&ALICE, old, libc::O_RDONLY), Err(FsError::Stale)));
}

#[test]
fn an_inode_stays_its_own_file_while_names_move() {
    let rig = Rig::new();
    let (a, b) = (rig.item("a", b"A"), rig.item("b", b"B"));
    for (ino, mode) in [(a, 0o600), (b, 0o644)] {
        let change = SetAttr { mode: Some(mode), ..SetAttr::default() };
        rig.fs.setattr(&ALICE, ino, &change).unwrap();
    }
    thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for _ in 0..2000 {
                let (old, new) = (OsStr::new("a"), OsStr::new("b"));
                rig.fs.rename(&ALICE, rig.table, old, rig.table, new, libc::RENAME_EXCHANGE).unwrap();
            }
        });
        let (mut looked, mut opened) = (0, 0);
        while !mover.is_finished() {
            for (ino, perm, text) in [(a, 0o600, b"A"), (b, 0o644, b"B")] {
                if let Ok((attr, _)) = rig.fs.getattr(&ALICE, ino, None) {
                    assert_eq!(attr.perm, perm);
                    looked += 1;
                }
                if let Ok(contents) = rig.contents(ino) {
                    assert_eq!(contents, text);
                    opened += 1;
                }
                // As when it has not been used for long.
                rig.fs.forget(ino, u64::MAX);
                for name in ["a", "b"] {
                    // The kernel would let neither a lookup nor a rename come between the other.
                    let _ = rig.fs.lookup(&ALICE, rig.table, OsStr::new(name));
                }
            }
        }
        assert!(looked > 0 && opened > 0);
    });
}

#[test]
fn a_revocation_waits_for_pages_that_another_one_drops() {
    const CAROL: Caller = Caller { uid: 61_003, gid: 61_003, tid: 0 };
    let rig = Rig::new();
    rig.key("add-user uid:61002 uid:61003");
    let ino = rig.item("x", b"secret");
    for reader in [BOB, CAROL] {
        rig.fs.open(&reader, ino, libc::O_RDONLY).unwrap();
    }
    let first = rig.command(&[".kms", "keys", "t", "ctl"], "remove-user uid:61002").unwrap().revocation.unwrap();
    assert_eq!(first.inodes, [ino]);
    // carol's save must not return before the pages are gone, either.
    assert_eq!(rig.key("remove-user uid:61003"), [ino]);
    rig.fs.revoked(first.id);
    // Once they are, nobody need wait for them.
    assert!(rig.key("describe nothing to revoke").is_empty());
}

#[test]
fn a_retired_inode_changes_nothing_that_its_successor_has() {
    let rig = Rig::new();
    rig.key("add-user uid:61002");
    let old = rig.item("x", &[1; 10_000]);
    let fh = rig.fs.open(&ALICE, old, libc::O_RDWR).unwrap().fh;
    rig.fs.open(&BOB, old, libc::O_RDONLY).unwrap();
    rig.key("remove-user uid:61002");
    let new = rig.lookup("x");
    let cut = SetAttr { size: Some(1), fh: Some(fh), ..SetAttr::default() };
    assert!(matches!(rig.fs.setattr(&ALICE, old, &cut), Err(FsError::Stale)));
    assert!(matches!(rig.fs.fallocate(old, fh, 0, 20_000, 0), Err(FsError::Stale)));
    assert!(matches!(rig.fs.lseek(old, fh, 0, libc::SEEK_HOLE), Err(FsError::Stale)));
    assert!(matches!(rig.fs.write(&ALICE, old, fh, 0, b"x", false, false), Err(FsError::Stale)));
    assert!(matches!(rig.read(old, fh), Err(FsError::Stale)));
    assert!(rig.contents(new).unwrap() == [1; 10_000]);
}

#[test]
fn no_name_that_goes_is_taken_for_tampering() {
    let rig = Rig::new();
    // A name of two goes, and what was opened by it is decided anew.
    rig.item("y", b"text");
    let ino = rig.lookup("y");
    rig.fs.link(&ALICE, ino, rig.table, OsStr::new("z")).unwrap();
    assert_eq!(rig.lookup("y"), ino);
    let fh = rig.fs.open(&ALICE, ino, libc::O_RDWR).unwrap().fh;
    rig.fs.unlink(&ALICE, rig.table, OsStr::new("y")).unwrap();
    rig.key("describe decided anew");
    assert_eq!(rig.read(ino, fh).unwrap(), b"text");
    rig.fs.write(&ALICE, ino, fh, 0, b"TEXT", false, false).unwrap();
    rig.fs.release(ino, fh);
    // The same of one that was never opened by the name that goes.
    let (entry, opened) = rig.fs.create(&ALICE, rig.table, OsStr::new("m"), 0o666, 0, libc::O_RDWR).unwrap();
    rig.fs.link(&ALICE, entry.attr.ino, rig.table, OsStr::new("n")).unwrap();
    rig.fs.unlink(&ALICE, rig.table, OsStr::new("n")).unwrap();
    rig.key("describe decided anew once more");
    rig.fs.write(&ALICE, entry.attr.ino, opened.fh, 0, b"text", false, false).unwrap();
    // Names move while items are opened by them.
    let ino = rig.item("a", b"text");
    let (opened, moved) = thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for round in 0..3000_u32 {
                let (old, new) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
                rig.fs.rename(&ALICE, rig.table, OsStr::new(old), rig.table, OsStr::new(new), 0).unwrap();
                // The header gives the old name up with its next change.
                let change = SetAttr { size: Some(u64::from(round) + 1), ..SetAttr::default() };
                rig.fs.setattr(&ALICE, ino, &change).unwrap();
            }
        });
        let mut opened = 0;
        while !mover.is_finished() {
            match rig.fs.open(&ALICE, ino, libc::O_RDONLY) {
                Ok(handle) => {
                    rig.fs.fsync(ino, handle.fh, false).unwrap();
                    rig.fs.release(ino, handle.fh);
                    opened += 1;
                }
                Err(error) => assert!(matches!(error, FsError::Stale), "{error}"),
            }
        }
        (opened, mover.join())
    });
    moved.unwrap();
    assert!(opened > 0);
}

const ACCESS_ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// An ACL as the kernel hands it out: owner, group and others, and bob, with a mask.
fn acl(owner: u16, group: u16, mask: u16, others: u16) -> Vec<u8> {
    let none = u32::MAX;
    let entries = [(1, owner, none), (2, 4, BOB.uid), (4, group, none), (0x10, mask, none), (0x20, others, none)];
    let entry = |(tag, bits, id): (u16, u16, u32)| {
        [tag.to_le_bytes().as_slice(), &bits.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    [2_u32.to_le_bytes().to_vec(), entries.into_iter().flat_map(entry).collect()].concat()
}

#[test]
fn an_attribute_that_comes_by_a_retired_inode_is_seen_by_its_successor() {
    let rig = Rig::new();
    rig.key("add-user uid:61002");
    let old = rig.item("x", b"text");
    rig.fs.open(&BOB, old, libc::O_RDONLY).unwrap();
    rig.key("remove-user uid:61002");
    let new = rig.lookup("x");
    assert_ne!(old, new);
    let name = OsStr::new(ACCESS_ACL);
    for _ in 0..2 {
        for ino in [old, new] {
            assert!(matches!(rig.fs.getxattr(&ALICE, ino, name), Err(FsError::NoAttribute)));
        }
        rig.fs.setxattr(&ALICE, old, name, &acl(7, 5, 5, 0), 0).unwrap();
        for ino in [old, new] {
            assert_eq!(rig.fs.getxattr(&ALICE, ino, name).unwrap(), acl(7, 5, 5, 0));
        }
        rig.fs.removexattr(&ALICE, new, name).unwrap();
    }
}

#[test]
fn an_attribute_that_is_set_while_it_is_asked_for_is_not_remembered_as_missing() {
    let rig = Rig::new();
    let ino = rig.item("x", b"text");
    let name = OsStr::new(ACCESS_ACL);
    let ask = || rig.fs.getxattr(&ALICE, ino, name);
    for _ in 0..2000 {
        let both = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                both.wait();
                let _ = ask();
            });
            both.wait();
            rig.fs.setxattr(&ALICE, ino, name, &acl(7, 5, 5, 0), 0).unwrap();
        });
        ask().expect("it was set before");
        rig.fs.removexattr(&ALICE, ino, name).unwrap();
    }
}

#[test]
fn what_a_folder_hands_down_follows_its_changes() {
    let rig = Rig::new();
    let folder = rig.fs.mkdir(&ALICE, rig.table, OsStr::new("d"), 0o755, 0).unwrap().value.attr.ino;
    let made = |name: &str| {
        let (entry, opened) = rig.fs.create(&ALICE, folder, OsStr::new(name), 0o666, 0o022, libc::O_WRONLY).unwrap();
        rig.fs.release(entry.attr.ino, opened.fh);
        (entry.attr.perm, entry.attr.uid, entry.attr.gid)
    };
    let change = |mode, gid| {
        let change = SetAttr { mode, gid, ..SetAttr::default() };
        rig.fs.setattr(&ROOT, folder, &change).unwrap();
    };
    assert_eq!(made("plain"), (0o644, ALICE.uid, ALICE.gid));
    change(None, Some(62_000));
    assert_eq!(made("of another group, which it does not hand down"), (0o644, ALICE.uid, ALICE.gid));
    change(Some(0o2775), None);
    assert_eq!(made("of its group"), (0o644, ALICE.uid, 62_000));
    rig.fs.setxattr(&ROOT, folder, OsStr::new(DEFAULT_ACL), &acl(7, 7, 6, 0), 0).unwrap();
    assert_eq!(made("by its ACL, whatever the umask"), (0o660, ALICE.uid, 62_000));
    rig.fs.removexattr(&ROOT, folder, OsStr::new(DEFAULT_ACL)).unwrap();
    change(Some(0o755), None);
    assert_eq!(made("plain again"), (0o644, ALICE.uid, ALICE.gid));
}

/// Names and where the listing goes on after each, at most `most` of them.
fn page(rig: &Rig, fh: u64, offset: i64, most: usize) -> Vec<(String, i64)> {
    let mut page = Vec::new();
    rig.fs
        .readdir(&ALICE, rig.table, fh, offset, false, &mut |item| {
            if page.len() == most {
                return true;
            }
            page.push((item.name.to_str().unwrap().to_owned(), item.offset_next));
            false
        })
        .unwrap();
    page
}

/// As where the kernel gives the beginning of a listing from what it kept, and asks for the rest.
#[test]
fn a_listing_goes_on_after_the_same_name_whatever_came_and_went() {
    let rig = Rig::new();
    for number in 0..60 {
        rig.item(&format!("item {number}"), b"");
    }
    let first = rig.fs.opendir(&ALICE, rig.table, 0).unwrap();
    assert!(first.cache_dir && first.keep_cache);
    let begun = page(&rig, first.fh, 0, 22);
    let whole = page(&rig, first.fh, begun.last().unwrap().1, usize::MAX);
    assert_eq!(begun.len() + whole.len(), 62);
    let held = rig.fs.opendir(&ALICE, rig.table, 0).unwrap();
    assert_eq!(page(&rig, held.fh, 0, 22), begun);
    // All that was given is removed but the last, some of the rest too, and others come.
    for (name, _) in begun.iter().skip(2).take(19).chain(whole.iter().step_by(5)) {
        rig.fs.unlink(&ALICE, rig.table, OsStr::new(name)).unwrap();
    }
    for number in 0..30 {
        rig.item(&format!("new {number}"), b"");
    }
    let second = rig.fs.opendir(&ALICE, rig.table, 0).unwrap();
    let rest = page(&rig, second.fh, begun.last().unwrap().1, usize::MAX);
    let old: Vec<_> = rest.iter().filter(|(name, _)| name.starts_with("item")).collect();
    let expected: Vec<_> = whole.iter().enumerate().filter(|(index, _)| index % 5 != 0).map(|(_, name)| name).collect();
    assert_eq!(old, expected);
    // The one that had begun gives what was there when it began, each once.
    assert_eq!(page(&rig, held.fh, begun.last().unwrap().1, usize::MAX), whole);
    assert!(page(&rig, second.fh, rest.last().unwrap().1, usize::MAX).is_empty());
}

#[test]
fn a_name_that_is_missing_may_be_remembered_as_such() {
    let rig = Rig::new();
    let entry = rig.fs.lookup(&ALICE, rig.table, OsStr::new("x")).unwrap();
    assert!(entry.attr.ino == 0 && !entry.ttl.is_zero());
    // Where names come without the kernel's doing, it is an error, of which the kernel keeps nothing.
    for (parent, name) in [(1, "no-table"), (rig.find(&[".kms"]), "nothing"), (rig.find(&[".kms", "keys"]), "no-key")] {
        assert!(matches!(rig.fs.lookup(&ROOT, parent, OsStr::new(name)), Err(FsError::NotFound)), "{name}");
    }
}
