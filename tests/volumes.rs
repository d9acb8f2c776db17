//! Stores that were made once and are kept (tests/volumes): this program still reads, verifies and goes on writing what
//! an earlier one has written, and puts in place what one has left that was killed.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers fail the test by panicking")]

#[expect(dead_code, reason = "other tests need more of it")]
mod common;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use common::{Mounted, path};
use kmsfs::crypto::sha256;
use serde_json::Value;

const POLICY: &str = include_str!("volumes/orders.policy.json");
const PASSPHRASE: &str = "a frozen pässphrase\n";
/// The owner of what is not root's; this host need not know him.
const OWNER: u32 = 61_001;
const SPARSE_LEN: u64 = 64 << 20;

/// The pseudorandom bytes of a name: SHA-256 of 'NAME:0', 'NAME:1' and so on, one after the other, cut.
fn stream(name: &str, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length.div_ceil(32)).flat_map(|i| sha256(format!("{name}:{i}").as_bytes())).collect();
    bytes.truncate(length);
    bytes
}

fn secret_file(file: &Path, secret: &[u8]) -> String {
    let mut opened = File::options().write(true).create_new(true).mode(0o600).open(file).unwrap();
    opened.write_all(secret).unwrap();
    path(file).to_owned()
}

/// Unpacks a copy of a frozen store.
fn frozen(name: &str) -> Mounted {
    Mounted::made_by(name, |base| {
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/volumes/v1/{name}.tar.gz"));
        let tar = ["--extract", "--gzip", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--file"];
        let unpacked = Command::new("tar").arg("-C").arg(base).args(tar).arg(archive).status().unwrap();
        assert!(unpacked.success());
        if name == "passphrase" {
            vec!["--passphrase-file".to_owned(), secret_file(&base.join("secret"), PASSPHRASE.as_bytes())]
        } else {
            vec!["--key-file".to_owned(), secret_file(&base.join("secret"), &stream("key", 64))]
        }
    })
}

/// How the killed store differs from the others, all of it by changes that only its journal, or no flush, has.
struct Left {
    size_3551: Vec<u8>,
    size_3552: Vec<u8>,
    size_4096: Vec<u8>,
    links: Vec<u8>,
    orders: Vec<(&'static str, Vec<u8>)>,
}

impl Left {
    fn in_order() -> Self {
        Self {
            size_3551: stream("size-3551", 3551),
            size_3552: stream("size-3552", 3552),
            size_4096: stream("size-4096", 4096),
            links: stream("links", 600),
            orders: vec![("1001.json", stream("1001", 1001)), ("1002.json", stream("1002", 600))],
        }
    }

    fn by_a_kill() -> Self {
        let mut left = Self::in_order();
        left.size_3551[1000..1100].copy_from_slice(&stream("size-3551 again", 100));
        left.size_3552.truncate(1000);
        left.size_4096 = stream("size-4096 again", 4096);
        left.links.extend(stream("one more", 3000));
        left.orders[1].0 = "renamed.json";
        left.orders.push(("new.json", stream("new", 700)));
        left
    }
}

fn names_in(folder: &Path) -> BTreeSet<OsString> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

fn attribute(file: &Path, name: &str) -> Vec<u8> {
    let mut value = [0; 100];
    let length = rustix::fs::getxattr(file, name, &mut value).unwrap();
    value[..length].to_vec()
}

/// All of the table `plain`.
fn check_plain(plain: &Path, left: &Left) {
    let long = OsString::from("n".repeat(255));
    let latin = OsStr::from_bytes(b"caf\xe9");
    let names = [
        "size-0",
        "size-1",
        "size-3551",
        "size-3552",
        "size-4096",
        "size-458753",
        "sparse",
        "folder",
        "symlink",
        "fifo",
        "one",
        "two",
    ];
    let mut expected: BTreeSet<OsString> = names.iter().map(OsString::from).collect();
    expected.extend([long.clone(), latin.to_owned()]);
    assert_eq!(names_in(plain), expected);

    let read = |name: &str| fs::read(plain.join(name)).unwrap();
    assert_eq!(read("size-0"), b"");
    assert_eq!(read("size-1"), stream("size-1", 1));
    assert!(read("size-3551") == left.size_3551 && read("size-3552") == left.size_3552);
    assert!(read("size-4096") == left.size_4096);
    let mut large = vec![0; 454_656];
    large.extend(stream("size-458753", 4097));
    assert!(read("size-458753") == large);
    assert_eq!(fs::read(plain.join(long)).unwrap(), stream("long", 20));
    assert_eq!(fs::read(plain.join(latin)).unwrap(), stream("latin", 20));
    assert_eq!(fs::read_link(plain.join("symlink")).unwrap(), Path::new("folder/deeper/item"));
    assert_eq!(read("symlink"), stream("deeper", 100));
    assert!(fs::symlink_metadata(plain.join("fifo")).unwrap().file_type().is_fifo());

    assert_eq!(names_in(&plain.join("folder")), BTreeSet::from(["deeper".into(), "three".into()]));
    let links = ["one", "two", "folder/three"].map(|name| {
        assert!(read(name) == left.links, "{name}");
        let found = fs::metadata(plain.join(name)).unwrap();
        assert_eq!(found.nlink(), 3, "{name}");
        found.ino()
    });
    assert_eq!(BTreeSet::from(links).len(), 1);

    assert_eq!(attribute(&plain.join("size-1"), "user.author"), b"Ada");
    assert_eq!(attribute(&plain.join("folder"), "user.note"), b"of a folder");
    for (name, owner, mode) in
        [("size-0", 0, 0o644), ("size-1", OWNER, 0o640), ("folder", OWNER, 0o2750), ("fifo", OWNER, 0o644)]
    {
        let found = fs::symlink_metadata(plain.join(name)).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (owner, owner, mode), "{name}");
    }
    check_sparse(&plain.join("sparse"));
}

fn check_sparse(sparse: &Path) {
    let mut file = File::open(sparse).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SPARSE_LEN);
    let mut start = vec![0; 10_000];
    file.read_exact(&mut start).unwrap();
    assert!(start[..10] == stream("sparse", 10) && start[10..].iter().all(|byte| *byte == 0));
    file.seek(SeekFrom::End(-5000)).unwrap();
    let mut end = Vec::new();
    file.read_to_end(&mut end).unwrap();
    assert_eq!(end, [0; 5000]);
    assert!(file.metadata().unwrap().blocks() < 100);
}

fn check_orders(orders: &Path, left: &Left) {
    assert_eq!(names_in(orders), left.orders.iter().map(|(name, _)| OsString::from(name)).collect());
    for (name, content) in &left.orders {
        assert!(fs::read(orders.join(name)).unwrap() == *content, "{name}");
    }
    assert_eq!(fs::metadata(orders).unwrap().uid(), OWNER);
    // Only the changed policy lets him.
    let uid = OWNER.to_string();
    let read_by = |name: &str| {
        let as_him = ["--reuid", &uid, "--regid", &uid, "--clear-groups", "cat"];
        Command::new("setpriv").args(as_him).arg(orders.join(name)).output().unwrap()
    };
    assert_eq!(read_by("1001.json").stdout, left.orders[0].1);
    fs::copy(orders.join("1001.json"), orders.join("draft-1")).unwrap();
    std::os::unix::fs::chown(orders.join("draft-1"), Some(OWNER), Some(OWNER)).unwrap();
    assert!(!read_by("draft-1").status.success(), "the policy denies drafts");
    fs::remove_file(orders.join("draft-1")).unwrap();
}

fn members(text: &str, name: &str) -> Vec<String> {
    let list: Vec<Value> = serde_json::from_str(text).unwrap();
    list.iter().map(|entry| entry[name].as_str().unwrap_or("-").to_owned()).collect()
}

/// Tables, keys, policies and the trail, as the program tells them.
fn check_control(store: &Mounted) {
    let ask = |args: &[&str]| store.run(["--at", path(&store.mount)].iter().chain(args).copied());
    let tables = ask(&["table", "list", "--json"]);
    assert_eq!(members(&tables, "Name"), ["orders", "plain", "shared"]);
    assert_eq!(members(&tables, "Encryption"), ["customer", "owned", "managed"]);
    assert_eq!(members(&tables, "KeyName"), ["orders", "-", "kmsfs-managed"]);
    let keys = ask(&["key", "list", "--json"]);
    assert_eq!(members(&keys, "Name"), ["kmsfs-managed", "orders", "spare"]);
    assert_eq!(members(&keys, "KeyState"), ["Enabled"; 3]);
    assert_eq!(members(&keys, "Description"), ["", "for the orders", ""]);
    assert_eq!(ask(&["policy", "get", "orders"]), POLICY);
    assert!(ask(&["policy", "get", "spare"]).contains(r#""uid:61001""#));
    let denied = ask(&["audit", "show", "--denied"]);
    let denied: Value = serde_json::from_str(denied.lines().next().unwrap()).unwrap();
    assert_eq!((&denied["userIdentity"]["uid"], &denied["eventName"]), (&OWNER.into(), &"Decrypt".into()));
    assert_eq!(denied["requestParameters"]["encryptionContext"]["kmsfs:item"], "1001.json");
    assert!(ask(&["audit", "verify"]).starts_with("ok: "));
}

/// Everything in the store, then a mount that goes on with it.
fn check_all(store: &Mounted, left: &Left) {
    check_control(store);
    check_plain(&store.mount.join("plain"), left);
    assert_eq!(fs::read(store.mount.join("shared/item")).unwrap(), stream("managed", 2000));
    check_orders(&store.mount.join("orders"), left);

    let item = store.mount.join("plain/size-3551");
    File::options().append(true).open(&item).unwrap().write_all(b"more").unwrap();
    store.remount();
    let more = [&left.size_3551[..], b"more"].concat();
    assert!(fs::read(&item).unwrap() == more, "an item that has outgrown its layout");
    check_control(store);
}

#[test]
fn a_store_with_a_key_file_is_what_it_was() {
    let store = frozen("key-file");
    assert!(store.try_mount(&["--read-only"]).status.success());
    check_plain(&store.mount.join("plain"), &Left::in_order());
    store.umount();
    store.mount();
    check_all(&store, &Left::in_order());
}

#[test]
fn a_store_with_a_passphrase_is_what_it_was() {
    let store = frozen("passphrase");
    store.mount();
    check_all(&store, &Left::in_order());
}

#[test]
fn a_store_whose_daemon_was_killed_is_put_in_order() {
    let store = frozen("killed");
    let journal = store.store.join("journal");
    let segments = names_in(&journal);
    assert!(!segments.is_empty());
    let refused = store.try_mount(&["--read-only"]);
    assert!(!refused.status.success() && names_in(&journal) == segments);
    store.mount();
    let at = path(&store.mount);
    let replayed = store.run(["--at", at, "audit", "show", "--event", "JournalReplayed"]);
    assert!(replayed.contains("missing: 0, foreign: 0, torn: 0, refused: 0"), "{replayed}");
    check_all(&store, &Left::by_a_kill());
    store.umount();
    assert_eq!(names_in(&journal), BTreeSet::new());
    store.mount();
}

/// A file that somebody has made anew, or changed, is noticed here at least.
#[test]
fn what_is_frozen_is_as_it_was_frozen() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/volumes/v1");
    let digests = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    let mut named = BTreeSet::new();
    for line in digests.lines() {
        let (digest, name) = line.split_once("  ").unwrap();
        assert_eq!(kmsfs::kms::hex(&sha256(&fs::read(folder.join(name)).unwrap())), digest, "{name}");
        named.insert(OsString::from(name));
    }
    named.insert("SHA256SUMS".into());
    assert_eq!(names_in(&folder), named);
}
