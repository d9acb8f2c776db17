//! Re-encryption on a real mount: killed at random points it loses nothing and goes on by itself; readers and writers see
//! right contents meanwhile; what it is not to touch stays.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking, and its helpers with it")]

#[expect(dead_code, reason = "other tests need more of it")]
mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Dice, Mounted, path};

const BOUND: Duration = Duration::from_secs(120);

fn put(item: &Path, content: &[u8]) {
    File::create(item).unwrap().write_all(content).unwrap();
}

fn order(m: &Mounted, line: &str) {
    let ctl = m.mount.join(".kms/tables/t/ctl");
    let mut file = File::options().write(true).open(ctl).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn progress(m: &Mounted) -> String {
    fs::read_to_string(m.mount.join(".kms/tables/t/re-encryption.json")).unwrap()
}

fn wait_until_done(m: &Mounted) {
    let start = Instant::now();
    loop {
        let text = progress(m);
        // After a remount nobody remembers that it was done.
        if text.contains("\"State\": \"done\"") || text.contains("\"State\": \"none\"") {
            return;
        }
        assert!(start.elapsed() < BOUND, "{text}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The version of the table's key that each backing file's header names.
fn versions(m: &Mounted) -> BTreeMap<u32, usize> {
    fn walk(dir: &Path, found: &mut BTreeMap<u32, usize>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), found);
            } else if fs::read(entry.path()).is_ok_and(|bytes| bytes.starts_with(b"KMSFSITM")) {
                let mut version = [0; 4];
                File::open(entry.path()).unwrap().read_exact_at(&mut version, 16).unwrap();
                *found.entry(u32::from_le_bytes(version)).or_default() += 1;
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&m.store.join("tables"), &mut found);
    found
}

/// What must stay.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    content: Vec<u8>,
    mode: u32,
    inode: u64,
    links: u64,
    modified: (i64, i64),
    attribute: Option<Vec<u8>>,
}

fn kept(item: &Path) -> Kept {
    let stat = fs::symlink_metadata(item).unwrap();
    let content = if stat.file_type().is_symlink() {
        path(&fs::read_link(item).unwrap()).as_bytes().to_vec()
    } else {
        fs::read(item).unwrap()
    };
    let mut buffer = vec![0; 100];
    let attribute = rustix::fs::lgetxattr(item, "user.note", buffer.as_mut_slice()).ok();
    Kept {
        content,
        mode: stat.mode(),
        inode: stat.ino(),
        links: stat.nlink(),
        modified: (stat.mtime(), stat.mtime_nsec()),
        attribute: attribute.map(|length| buffer[..length].to_vec()),
    }
}

/// A table with items of all kinds: small, large, with holes, linked, in folders, with attributes.
fn fill(table: &Path, dice: &mut Dice) -> Vec<PathBuf> {
    let mut items = Vec::new();
    for folder in ["", "folder", "folder/deeper"] {
        let folder = table.join(folder);
        fs::create_dir_all(&folder).unwrap();
        for (number, size) in [0, 1, 3000, 3552, 20_000, 500_000, 3_000_000].into_iter().enumerate() {
            let item = folder.join(format!("item{number}"));
            put(&item, &dice.bytes(size));
            if number % 2 == 0 {
                rustix::fs::setxattr(
                    &item,
                    "user.note",
                    item.as_os_str().as_encoded_bytes(),
                    rustix::fs::XattrFlags::empty(),
                )
                .unwrap();
                let link = folder.join(format!("link{number}"));
                fs::hard_link(&item, &link).unwrap();
                items.push(link);
            }
            items.push(item);
        }
        let sparse = folder.join("sparse");
        let file = File::create(&sparse).unwrap();
        file.write_all_at(&dice.bytes(100_000), 2_000_000).unwrap();
        file.set_len(5_000_000).unwrap();
        items.push(sparse);
        let long = folder.join("n".repeat(250));
        put(&long, &dice.bytes(1000));
        items.push(long);
        let link = folder.join("symlink");
        std::os::unix::fs::symlink("to somewhere", &link).unwrap();
        items.push(link);
        File::open(&folder).unwrap().sync_all().unwrap();
    }
    rustix::fs::sync();
    items
}

#[test]
fn killed_at_twenty_random_points_it_loses_nothing_and_goes_on() {
    let m = Mounted::new("reencrypt-kill");
    let table = m.table("t");
    let mut dice = Dice(77);
    let items = fill(&table, &mut dice);
    m.remount();
    let before: Vec<Kept> = items.iter().map(|item| kept(item)).collect();
    let (mut kills, mut halfway) = (0, 0);
    while kills < 20 {
        // A new order where the last one is done, else it has gone on by itself.
        order(&m, "re-encrypt");
        thread::sleep(Duration::from_millis(dice.below(150)));
        m.kill();
        kills += 1;
        halfway += usize::from(versions(&m).len() > 1);
        m.mount();
        if dice.below(3) == 0 {
            for (item, before) in items.iter().zip(&before) {
                assert_eq!(kept(item), *before, "{}", item.display());
            }
        }
    }
    assert!(halfway > 3, "only {halfway} kills came in the middle");
    wait_until_done(&m);
    for (item, before) in items.iter().zip(&before) {
        assert_eq!(kept(item), *before, "{}", item.display());
    }
    m.umount();
    let found = versions(&m);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found.keys().all(|version| *version > 1), "{found:?}");
    m.mount();
    for (item, before) in items.iter().zip(&before) {
        assert_eq!(kept(item), *before, "{}", item.display());
    }
}

/// How many items several threads use at once.
const SHARED: usize = 12;

/// Items that several threads use, and what they must hold.
struct Load {
    table: PathBuf,
    contents: Vec<Mutex<Vec<u8>>>,
    stop: AtomicBool,
}

impl Load {
    fn new(table: &Path) -> Self {
        let mut dice = Dice(5);
        let contents: Vec<_> = (0..SHARED).map(|n| dice.bytes(if n % 3 == 0 { 3000 } else { 800_000 })).collect();
        fs::create_dir(table.join("other")).unwrap();
        for (number, content) in contents.iter().enumerate() {
            put(&table.join(format!("f{number}")), content);
        }
        let contents = contents.into_iter().map(Mutex::new).collect();
        Self { table: table.to_owned(), contents, stop: AtomicBool::new(false) }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Reads, writes, cuts and moves, through handles that were opened before the first order and stay.
    fn use_items(&self, seed: u64) {
        let mut dice = Dice(seed);
        let open = |n| File::options().read(true).write(true).open(self.table.join(format!("f{n}"))).unwrap();
        let files: Vec<File> = (0..SHARED).map(open).collect();
        while self.goes_on() {
            let number = usize::try_from(dice.below(SHARED as u64)).unwrap();
            let mut content = self.contents[number].lock().unwrap();
            let at = usize::try_from(dice.below(content.len() as u64)).unwrap();
            let length = (1 + usize::try_from(dice.below(12_000)).unwrap()).min(content.len() - at);
            match dice.below(4) {
                0 => {
                    let bytes = dice.bytes(length);
                    files[number].write_all_at(&bytes, at as u64).unwrap();
                    content[at..at + length].copy_from_slice(&bytes);
                }
                // What is found by another name is the same file.
                1 if number < 3 => self.move_and_back(number, &content),
                2 => {
                    content.truncate(at);
                    files[number].set_len(at as u64).unwrap();
                    content.resize(at + length, 0);
                    files[number].set_len((at + length) as u64).unwrap();
                }
                _ => {
                    let mut found = vec![0; length];
                    files[number].read_exact_at(&mut found, at as u64).unwrap();
                    assert!(found == content[at..at + length], "f{number} at {at}");
                }
            }
        }
    }

    fn move_and_back(&self, number: usize, content: &[u8]) {
        let here = self.table.join(format!("f{number}"));
        let there = self.table.join(format!("other/f{number}"));
        fs::rename(&here, &there).unwrap();
        assert!(fs::read(&there).unwrap() == content);
        fs::rename(&there, &here).unwrap();
    }

    /// Items that come and go, and names that come and go beside one that stays.
    fn make_and_remove(&self) {
        let text = vec![1; 50_000];
        for round in 0_u64.. {
            let link = self.table.join("other/link");
            let new = self.table.join(format!("other/new{}", round % 7));
            put(&new, &text);
            fs::hard_link(&new, &link).unwrap();
            let (first, last) = if round % 2 == 0 { (new, link) } else { (link, new) };
            fs::remove_file(first).unwrap();
            assert!(fs::read(&last).unwrap() == text);
            fs::remove_file(last).unwrap();
            if !self.goes_on() {
                break;
            }
        }
    }
}

/// However a test ends, those who use the items do.
struct Stopping<'a>(&'a Load);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_writers_and_movers_go_on_meanwhile() {
    let m = Mounted::new("reencrypt-load");
    let load = Load::new(&m.table("t"));
    let orders = thread::scope(|scope| {
        let load = &load;
        let _stopping = Stopping(load);
        for seed in 100..103 {
            scope.spawn(move || load.use_items(seed));
        }
        scope.spawn(|| load.make_and_remove());
        let start = Instant::now();
        let mut orders = 0;
        while start.elapsed() < Duration::from_secs(6) || orders < 3 {
            order(&m, "re-encrypt");
            wait_until_done(&m);
            orders += 1;
        }
        orders
    });
    m.remount();
    for (number, content) in load.contents.iter().enumerate() {
        let found = fs::read(load.table.join(format!("f{number}"))).unwrap();
        assert!(found == *content.lock().unwrap(), "f{number}");
    }
    m.umount();
    assert_eq!(versions(&m).into_keys().collect::<Vec<_>>(), [orders + 1]);
}

#[test]
fn stopped_it_goes_on_at_the_next_order_alone() {
    let m = Mounted::new("reencrypt-stop");
    let table = m.table("t");
    for number in 0..300 {
        put(&table.join(format!("item{number}")), &vec![7; 60_000]);
    }
    order(&m, "re-encrypt");
    order(&m, "re-encrypt stop");
    let stopped = versions(&m);
    m.remount();
    assert!(progress(&m).contains("\"State\": \"stopped\""), "{}", progress(&m));
    thread::sleep(Duration::from_millis(300));
    let later = versions(&m);
    assert!(later.contains_key(&1), "{stopped:?}, {later:?}");
    for number in 0..300 {
        assert_eq!(fs::read(table.join(format!("item{number}"))).unwrap(), vec![7; 60_000]);
    }
    order(&m, "re-encrypt");
    wait_until_done(&m);
    m.umount();
    assert_eq!(versions(&m).into_keys().collect::<Vec<_>>(), [2], "the order that was stopped, and no newer one");
}
