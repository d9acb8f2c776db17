//! What stands in a table: names, items, folders, attributes; and the journal's segments, which are replayed into it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use kmsfs::crypto::sha256;
use kmsfs::envelope::{open_xattr, seal_xattr};
use kmsfs::kms::{DataKey, SealKey, TableKeys};
use kmsfs::store::record::Scratch;
use kmsfs::store::{Dir, DirStorage, Journal, Replayed, Storage};
use kmsfs::table::{Folder, Item, Mounts, Names, Seek, StoredName, Table, TableError, plain_size};
use kmsfs::types::DirId;

use super::engine::{Target, Verdict, run};
use super::sealing::{self, ITEM, STORE, TABLE, names_key, root_level, table_key};
use super::store::put;

const ROOT: DirId = DirId::from_bytes(*TABLE.as_bytes());
const WORDS: &[&[u8]] = &[b"KMSFSITM", b"KMSFSDIR", b"KMSFSJNL", &[0; 16], &[0xff; 8], &[1, 0], &[2]];
/// The most that is written behind what an input is.
const READ_MOST: usize = 3 * 4096;

fn keys() -> Arc<TableKeys> {
    TableKeys::for_tests(TABLE, 1, [(1, table_key())].into())
}

/// The table as mount 9 sees it; the earlier ones ended in good order, or did not.
fn table(journal: &Arc<Journal>, unclean: bool) -> Arc<Table> {
    let unclean = if unclean { vec![(0, 8)] } else { Vec::new() };
    Table::new(names(), Arc::clone(journal), Mounts::new(9, unclean), false)
}

fn names() -> Names {
    Names::new(TABLE, names_key()).unwrap()
}

/// A store with one table, in which one item is replaced at will.
struct Bench {
    scratch: Scratch,
    root: Arc<dyn Dir>,
    data: DataKey,
    seal: SealKey,
}

impl Bench {
    fn new() -> Self {
        let scratch = Scratch::new().unwrap();
        for folder in ["journal".to_owned(), format!("tables/{TABLE}")] {
            fs::create_dir_all(scratch.path().join(folder)).unwrap();
        }
        let root = DirStorage::open(scratch.path()).unwrap().root();
        let bench = Self { scratch, root, data: DataKey::for_tests(keys()), seal: SealKey::for_tests(keys()) };
        put(&bench.path(".d"), &sealing::folder(&sealing::folder_state(&ROOT)));
        bench
    }

    fn path(&self, on_disk: &str) -> PathBuf {
        self.scratch.path().join(format!("tables/{TABLE}")).join(on_disk)
    }

    fn journal(&self) -> Arc<Journal> {
        Journal::open(&self.root, root_level("journal"), STORE, 9, |_| false).unwrap().0
    }

    fn dir(&self) -> Arc<dyn Dir> {
        let tables = self.root.open_dir(OsStr::new("tables")).unwrap();
        tables.open_dir(OsStr::new(&TABLE.to_string())).unwrap()
    }

    fn folder(&self, table: &Arc<Table>) -> Result<Arc<Folder>, TableError> {
        Folder::open_root(table, self.dir(), PathBuf::from(format!("tables/{TABLE}")))
    }

    /// Opens and uses the item. What verifies can be read, written and made durable.
    fn use_item(&self, folder: &Arc<Folder>, name: &StoredName) -> Result<(), TableError> {
        let _ = Item::peek_kind(folder, name.on_disk());
        let item = Item::open(folder, name)?;
        let _ = (item.kind()?, item.size());
        item.verify(&self.data)?;
        let size = item.size().unwrap();
        let mut buffer = vec![0; READ_MOST];
        for at in [0, 1, size.saturating_sub(5), size] {
            item.read(&self.data, &mut buffer, at)?;
        }
        let _ = (item.seek(Seek::Data, 0), item.seek(Seek::Hole, 0));
        item.write(&self.seal, b"new", size / 2)?;
        item.read(&self.data, &mut buffer[..3], size / 2)?;
        assert_eq!(&buffer[..3], b"new");
        item.truncate(&self.seal, size / 3)?;
        item.sync()?;
        item.truncate(&self.seal, 0)
    }

    /// Puts `bytes` in the item's place and uses it, after a good end and after a bad one.
    fn try_item(&self, journal: &Arc<Journal>, bytes: &[u8]) -> Verdict {
        let [_, after_a_good_end] = [true, false].map(|unclean| {
            let folder = self.folder(&table(journal, unclean)).unwrap();
            let name = folder.seal_name(b"x").unwrap();
            let path = self.path(name.on_disk().to_str().unwrap());
            put(&path, bytes);
            let used = self.use_item(&folder, &name);
            // Nothing of it is pending when the next one takes its inode.
            journal.checkpoint().unwrap();
            fs::remove_file(path).unwrap();
            Verdict::from(used)
        });
        after_a_good_end
    }
}

fn binding() -> [u8; 16] {
    names().seal_name(&ROOT, b"x").unwrap().binding()
}

fn sound_items() -> Vec<(&'static str, Vec<u8>)> {
    let text = |kind, layout, content: &[u8]| sealing::item_text(kind, layout, &binding(), content);
    vec![
        ("valid-empty", text(1, 1, b"")),
        ("valid-inline", text(1, 1, &[0x2a; 300])),
        ("valid-symlink", text(2, 1, b"../target")),
        ("valid-paged", text(1, 2, &[0x2b; 3700])),
    ]
}

#[test]
fn items() {
    let (bench, target) = (Bench::new(), Target { name: "item", longest: 16_384, words: WORDS, json: false });
    let journal = bench.journal();
    let valid = || {
        // One with pages is longer than a file of the corpus may be.
        let short = sound_items().into_iter().filter(|(name, _)| *name != "valid-paged");
        short.map(|(name, text)| (name, sealing::item(&text))).collect()
    };
    run(&target, valid, |input| bench.try_item(&journal, input));
}

/// Input: head, state and content, which are sealed.
#[test]
fn states_of_items() {
    let (bench, target) = (Bench::new(), Target { name: "item-state", longest: 16_384, words: WORDS, json: false });
    let journal = bench.journal();
    run(&target, sound_items, |input| bench.try_item(&journal, &sealing::item(input)));
}

#[test]
fn lengths_of_backing_files() {
    for length in (0..70_000).chain((0..64).flat_map(|bit| [(1_u64 << bit).wrapping_sub(1), 1 << bit])) {
        assert!(plain_size(length).is_none_or(|size| size <= length), "{length}");
    }
}

#[test]
fn folders() {
    let (bench, target) = (Bench::new(), Target { name: "folder", longest: 400, words: WORDS, json: false });
    let journal = bench.journal();
    let table = table(&journal, false);
    let valid = || vec![("valid-root", sealing::folder(&sealing::folder_state(&ROOT)))];
    run(&target, valid, |input| {
        put(&bench.path(".d"), input);
        bench.folder(&table).into()
    });
}

/// Input: what a folder's own file seals, for the table's own folder and for one in it.
#[test]
fn states_of_folders() {
    let (bench, target) = (Bench::new(), Target { name: "folder-state", longest: 400, words: WORDS, json: false });
    let journal = bench.journal();
    let table = table(&journal, false);
    let root = bench.folder(&table).unwrap();
    let name = root.seal_name(b"sub").unwrap();
    let path = bench.path(name.on_disk().to_str().unwrap());
    fs::create_dir(&path).unwrap();
    let valid = || {
        let mut sub = sealing::folder_state(&DirId::from_bytes([5; 16]));
        sub[16..32].copy_from_slice(ROOT.as_bytes());
        sub[32..48].copy_from_slice(&name.binding());
        let mut moving = sub.clone();
        moving.copy_within(16..48, 48);
        moving[16] ^= 1;
        vec![("valid-root", sealing::folder_state(&ROOT)), ("valid-sub", sub), ("valid-moving", moving)]
    };
    run(&target, valid, |input| {
        let file = sealing::folder(input);
        put(&bench.path(".d"), &file);
        put(&path.join(".d"), &file);
        let as_root = bench.folder(&table).map(|folder| folder.id());
        let as_sub = root.open_folder(&name).map(|folder| folder.id());
        assert!(as_root.is_err() || as_sub.is_err(), "one folder in two places");
        as_root.or(as_sub).into()
    });
}

/// Input: a name on disk, and behind a line's end what its sidecar holds.
#[test]
fn names_on_disk() {
    let words: &[&[u8]] = &[b".l.", b".n.", b".d", b"\n", b"=", b"A", b"_", b"-"];
    let target = Target { name: "name", longest: 1000, words, json: false };
    let names = names();
    let valid = || {
        let short = names.seal_name(&ROOT, b"1001.json").unwrap();
        let widest = names.seal_name(&ROOT, &[0xff; 175]).unwrap();
        let stored = |name: &StoredName| [name.on_disk().as_bytes(), b"\n"].concat();
        let cipher = kmsfs::crypto::NameCipher::new(names_key());
        let aad = kmsfs::crypto::Aad::new("kmsfs v1 name").bytes(ROOT.as_bytes());
        let sealed = cipher.seal(aad.as_bytes(), &[b'l'; 255]).unwrap();
        let long = [&stored(&names.seal_name(&ROOT, &[b'l'; 255]).unwrap())[..], &sealed].concat();
        vec![("valid-short", stored(&short)), ("valid-175", stored(&widest)), ("valid-long", long)]
    };
    run(&target, valid, |input| {
        let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
        let (on_disk, sidecar) = (&input[..end], input.get(end + 1..).unwrap_or_default());
        let opened = names.open_name(&ROOT, OsStr::from_bytes(on_disk), |_| Ok(sidecar.to_vec()));
        if let Ok(name) = &opened {
            assert_eq!(names.seal_name(&ROOT, name).unwrap().on_disk().as_bytes(), on_disk, "one form for a name");
        }
        let _ = names.open_xattr_name(ITEM.as_bytes(), OsStr::from_bytes(on_disk));
        opened.into()
    });
}

#[test]
fn values_of_attributes() {
    let target = Target { name: "xattr", longest: 1000, words: WORDS, json: false };
    let (data, id, binding) = (DataKey::for_tests(keys()), ITEM.as_bytes(), [6; 16]);
    let valid = || vec![("valid-value", seal_xattr(&data, id, &binding, b"a value").unwrap())];
    run(&target, valid, |input| open_xattr(&data, id, &binding, input).into());
}

/// A store whose journal is replaced at will. Beside the item that records may name stand traps.
struct Replay {
    bench: Bench,
    item: Vec<u8>,
    trap: [u8; 32],
}

const PLAIN: &str = "tables/61616161616161616161616161616161/x";

impl Replay {
    fn new() -> Self {
        let bench = Bench::new();
        let item = sealing::item(&sealing::item_text(1, 1, &binding(), &[0x2c; 900]));
        // Outside of the tables, but bearing the item's id.
        put(&bench.scratch.path().join("root"), &item);
        std::os::unix::fs::symlink("../../root", bench.path("link")).unwrap();
        std::os::unix::fs::symlink("../..", bench.path("up")).unwrap();
        let trap = sha256(&item);
        Self { bench, item, trap }
    }

    fn run(&self, segment: &[u8]) -> Verdict {
        put(&self.bench.path("x"), &self.item);
        let file = self.bench.scratch.path().join("journal/1");
        put(&file, segment);
        let pending = Journal::open_read_only(&self.bench.root, &root_level("journal"), STORE, |epoch| epoch == 1);
        let opened = Journal::open(&self.bench.root, root_level("journal"), STORE, 2, |epoch| epoch == 1);
        assert_eq!(sha256(&fs::read(self.bench.scratch.path().join("root")).unwrap()), self.trap, "outside of tables");
        match opened {
            Ok((_, replayed)) => {
                assert!(!file.exists(), "what was replayed is gone");
                let seen = replayed.applied + replayed.missing + replayed.foreign;
                assert_eq!(pending.is_err(), seen > 0, "{replayed:?}");
                let clean = Replayed { applied: replayed.applied, ..Replayed::default() };
                if seen > 0 && replayed == clean {
                    Verdict::Accepted
                } else {
                    Verdict::Refused(format!("{replayed:?}"))
                }
            }
            Err(error) => {
                fs::remove_file(&file).unwrap();
                Verdict::Refused(error.to_string())
            }
        }
    }
}

fn records() -> Vec<(&'static str, Vec<u8>)> {
    let two: &[(u8, u64, &[u8])] = &[(2, 600, b""), (1, 560, b"new bytes")];
    vec![
        ("valid-write", sealing::journal_record(PLAIN, &[(1, 700, b"bytes")])),
        ("valid-two", sealing::journal_record(PLAIN, two)),
        ("valid-nothing", sealing::journal_record(PLAIN, &[])),
    ]
}

#[test]
fn segments_of_the_journal() {
    let (replay, target) = (Replay::new(), Target { name: "journal", longest: 8192, words: WORDS, json: false });
    let valid = || {
        let records = records();
        let texts: Vec<&[u8]> = records.iter().map(|(_, text)| text.as_slice()).collect();
        vec![("valid-three", sealing::journal(&texts)), ("valid-one", sealing::journal(&texts[..1]))]
    };
    run(&target, valid, |input| replay.run(input));
}

/// Input: a record's plaintext.
#[test]
fn records_of_the_journal() {
    let words: &[&[u8]] = &[b"/", b"..", b".", b"tables/", b"link", b"up/root", b"\0", PLAIN.as_bytes(), &[1], &[2]];
    let target = Target { name: "journal-record", longest: 4096, words, json: false };
    let replay = Replay::new();
    let valid = || {
        let mut all = records();
        let table = PLAIN.strip_suffix('x').unwrap();
        for (name, path) in [
            ("link-out", format!("{table}link")),
            ("folder-out", format!("{table}up/root")),
            ("dots", format!("{table}../../root")),
            ("root", "root".to_owned()),
        ] {
            all.push((name, sealing::journal_record(&path, &[(1, 0, b"owned")])));
        }
        all
    };
    run(&target, valid, |input| replay.run(&sealing::journal(&[input])));
}
