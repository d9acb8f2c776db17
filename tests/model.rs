//! Random operations on a real mount against a model in memory: contents, sizes, listings and outcomes agree, with
//! remounts and kills of the daemon in between. Several workers at once, each in a folder of its own.
//!
//! `KMSFS_SEED` repeats a run, `KMSFS_OPERATIONS` changes its length.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test may panic, and then says so"
)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use common::{Dice, Mounted};

const WORKERS: u64 = 4;
const ROUNDS: u64 = 10;

#[derive(Debug, Clone)]
enum Node {
    Folder,
    Item(Vec<u8>),
    Link(String),
}

/// What a folder should hold, by path relative to it.
#[derive(Debug, Default)]
struct Model(BTreeMap<String, Node>);

impl Model {
    fn children(&self, of: &str) -> Vec<String> {
        let prefix = if of.is_empty() { String::new() } else { format!("{of}/") };
        self.0
            .keys()
            .filter_map(|path| path.strip_prefix(&prefix))
            .filter(|rest| !rest.is_empty() && !rest.contains('/'))
            .map(str::to_owned)
            .collect()
    }

    fn parent_is_folder(&self, path: &str) -> bool {
        path.rsplit_once('/').is_none_or(|(parent, _)| matches!(self.0.get(parent), Some(Node::Folder)))
    }
}

struct Worker {
    root: PathBuf,
    model: Model,
    dice: Dice,
    done: u64,
}

const NAMES: [&str; 7] = ["a", "b", "c", "d.json", "ü", "\u{fffd}", "long"];
/// The only name that symlinks have, and never that of a folder on the way: the model follows links at the end alone.
const LINK: &str = "ln";
/// Sizes around which the layout changes.
const EDGES: [u64; 10] = [0, 1, 512, 3551, 3552, 4095, 4096, 4097, 112 * 4096, 113 * 4096];

impl Worker {
    fn path(&mut self) -> String {
        let depth = 1 + self.dice.below(3);
        let mut names: Vec<String> = (0..depth).map(|_| (*self.dice.pick(&NAMES)).to_owned()).collect();
        let is_link = self.dice.below(8) == 0;
        if let Some(last) = names.last_mut() {
            if is_link {
                LINK.clone_into(last);
            } else if last == "long" {
                *last = "l".repeat(200);
            }
        }
        names.join("/")
    }

    fn size(&mut self) -> u64 {
        let edge = *self.dice.pick(&EDGES);
        match self.dice.below(4) {
            0 => self.dice.below(300),
            1 => self.dice.below(20_000),
            2 => edge,
            _ => (edge + self.dice.below(9)).saturating_sub(4),
        }
    }

    fn step(&mut self) {
        let path = self.path();
        let real = self.root.join(&path);
        match self.dice.below(12) {
            0..=2 => self.write(&path, &real),
            3 => self.truncate(&path, &real),
            4 | 5 => self.read(&path, &real),
            6 => self.remove(&path, &real),
            7 => self.make_folder(&path, &real),
            8 => self.rename(&path, &real),
            9 => self.list(&path, &real),
            10 => self.link(&path, &real),
            _ => self.create_anew(&path, &real),
        }
        self.done += 1;
    }

    fn write(&mut self, path: &str, real: &Path) {
        let (offset, length) = (self.size(), usize::try_from(self.size() % 70_000).unwrap());
        let data = self.dice.bytes(length);
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(real);
        let node = self.follow(path);
        match node {
            Target::Item(path) => {
                let file = opened.unwrap();
                file.write_all_at(&data, offset).unwrap();
                if self.dice.below(20) == 0 {
                    file.sync_all().unwrap();
                }
                let Some(Node::Item(bytes)) = self.model.0.get_mut(&path) else { unreachable!() };
                let offset = usize::try_from(offset).unwrap();
                if !data.is_empty() && bytes.len() < offset + data.len() {
                    bytes.resize(offset + data.len(), 0);
                }
                if !data.is_empty() {
                    bytes[offset..offset + data.len()].copy_from_slice(&data);
                }
            }
            Target::New(path) => {
                let file = opened.unwrap();
                file.write_all_at(&data, offset).unwrap();
                let mut bytes = vec![0; if data.is_empty() { 0 } else { usize::try_from(offset).unwrap() }];
                bytes.extend_from_slice(&data);
                self.model.0.insert(path, Node::Item(bytes));
            }
            Target::Nothing => assert!(opened.is_err(), "{path}"),
        }
    }

    fn truncate(&mut self, path: &str, real: &Path) {
        let size = self.size();
        let opened = OpenOptions::new().write(true).open(real);
        match self.follow(path) {
            Target::Item(path) => {
                opened.unwrap().set_len(size).unwrap();
                let Some(Node::Item(bytes)) = self.model.0.get_mut(&path) else { unreachable!() };
                bytes.resize(usize::try_from(size).unwrap(), 0);
            }
            Target::New(_) | Target::Nothing => assert!(opened.is_err(), "{path}"),
        }
    }

    fn read(&mut self, path: &str, real: &Path) {
        let found = fs::read(real);
        match self.follow(path) {
            Target::Item(path) => {
                let Some(Node::Item(bytes)) = self.model.0.get(&path) else { unreachable!() };
                let found = found.unwrap();
                assert_eq!(found.len(), bytes.len(), "{path}");
                assert!(found == *bytes, "{path}: contents differ");
                assert_eq!(fs::metadata(real).unwrap().size(), bytes.len() as u64);
            }
            Target::New(_) | Target::Nothing => assert!(found.is_err(), "{path}"),
        }
    }

    fn remove(&mut self, path: &str, real: &Path) {
        match self.model.0.get(path) {
            Some(Node::Folder) => {
                let result = fs::remove_dir(real);
                if self.model.children(path).is_empty() {
                    result.unwrap();
                    self.model.0.remove(path);
                } else {
                    assert_eq!(result.unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
                }
            }
            Some(_) => {
                fs::remove_file(real).unwrap();
                self.model.0.remove(path);
            }
            None => assert!(fs::remove_file(real).is_err(), "{path}"),
        }
    }

    fn make_folder(&mut self, path: &str, real: &Path) {
        let result = fs::create_dir(real);
        if self.model.parent_is_folder(path) && !self.model.0.contains_key(path) {
            result.unwrap();
            self.model.0.insert(path.to_owned(), Node::Folder);
        } else {
            assert!(result.is_err(), "{path}");
        }
    }

    fn rename(&mut self, path: &str, real: &Path) {
        let to = self.path();
        if path.ends_with(LINK) != to.ends_with(LINK) {
            return;
        }
        let result = fs::rename(real, self.root.join(&to));
        let Some(node) = self.model.0.get(path).cloned() else {
            assert!(result.is_err(), "{path} to {to}");
            return;
        };
        if path == to {
            result.unwrap();
            return;
        }
        let inside = to.starts_with(&format!("{path}/"));
        let allowed = self.model.parent_is_folder(&to)
            && !inside
            && match (&node, self.model.0.get(&to)) {
                (Node::Folder, Some(Node::Folder)) => self.model.children(&to).is_empty(),
                (Node::Folder, Some(_)) | (_, Some(Node::Folder)) => false,
                _ => true,
            };
        assert_eq!(result.is_ok(), allowed, "{path} to {to}: {result:?}");
        if allowed {
            let moved: Vec<_> = self
                .model
                .0
                .keys()
                .filter(|key| *key == path || key.starts_with(&format!("{path}/")))
                .cloned()
                .collect();
            for key in moved {
                let node = self.model.0.remove(&key).unwrap();
                self.model.0.insert(format!("{to}{}", &key[path.len()..]), node);
            }
        }
    }

    fn list(&mut self, path: &str, real: &Path) {
        let mut expected = match self.model.0.get(path) {
            Some(Node::Folder) => self.model.children(path),
            _ => return,
        };
        let mut found: Vec<_> =
            fs::read_dir(real).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{path}");
    }

    fn link(&mut self, path: &str, real: &Path) {
        if !path.ends_with(LINK) {
            return;
        }
        let target = (*self.dice.pick(&NAMES)).to_owned();
        let result = symlink(&target, real);
        if self.model.parent_is_folder(path) && !self.model.0.contains_key(path) {
            result.unwrap();
            assert_eq!(fs::read_link(real).unwrap(), Path::new(&target));
            self.model.0.insert(path.to_owned(), Node::Link(target));
        } else {
            assert!(result.is_err(), "{path}");
        }
    }

    fn create_anew(&mut self, path: &str, real: &Path) {
        let length = usize::try_from(self.size() % 10_000).unwrap();
        let data = self.dice.bytes(length);
        let result = fs::remove_file(real)
            .or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) });
        match self.model.0.get(path) {
            Some(Node::Folder) => assert!(result.is_err()),
            Some(_) => {
                self.model.0.remove(path);
            }
            None => {}
        }
        let can = self.model.parent_is_folder(path) && !self.model.0.contains_key(path);
        let written =
            OpenOptions::new().write(true).create_new(true).open(real).and_then(|file| file.write_all_at(&data, 0));
        assert_eq!(written.is_ok(), can, "{path}: {written:?}");
        if can {
            self.model.0.insert(path.to_owned(), Node::Item(data));
        }
    }

    /// Where an open of `path` arrives, symlinks followed as far as this model's are: one name in the same folder.
    fn follow(&self, path: &str) -> Target {
        let mut path = path.to_owned();
        for _ in 0..10 {
            if !self.model.parent_is_folder(&path) {
                return Target::Nothing;
            }
            match self.model.0.get(&path) {
                Some(Node::Item(_)) => return Target::Item(path),
                Some(Node::Folder) => return Target::Nothing,
                None => return Target::New(path),
                Some(Node::Link(target)) => {
                    path = match path.rsplit_once('/') {
                        Some((parent, _)) => format!("{parent}/{target}"),
                        None => target.clone(),
                    };
                }
            }
        }
        Target::Nothing
    }

    fn check_all(&mut self) {
        let paths: Vec<_> = self.model.0.keys().cloned().collect();
        for path in paths {
            let real = self.root.join(&path);
            match self.model.0[&path].clone() {
                Node::Folder => self.list(&path, &real),
                Node::Item(bytes) => assert!(fs::read(&real).unwrap() == bytes, "{path}: contents differ"),
                Node::Link(target) => assert_eq!(fs::read_link(&real).unwrap(), Path::new(&target)),
            }
        }
        let root = self.root.clone();
        let mut found: Vec<_> =
            fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        assert_eq!(found, self.model.children(""));
    }
}

enum Target {
    Item(String),
    /// Not there, in a folder that is.
    New(String),
    Nothing,
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn random_operations_agree_with_a_model_through_remounts_and_kills() {
    let seed = setting("KMSFS_SEED", 20_261_124);
    let operations = setting("KMSFS_OPERATIONS", 100_000);
    let store = Mounted::new("model");
    let table = store.table("t");
    let mut workers: Vec<Worker> = (0..WORKERS)
        .map(|number| {
            let root = table.join(format!("worker{number}"));
            fs::create_dir(&root).unwrap();
            Worker { root, model: Model::default(), dice: Dice(seed + number), done: 0 }
        })
        .collect();
    for round in 0..ROUNDS {
        std::thread::scope(|scope| {
            for worker in &mut workers {
                scope.spawn(|| {
                    for _ in 0..operations / ROUNDS / WORKERS {
                        worker.step();
                    }
                });
            }
        });
        if round % 2 == 0 {
            store.remount();
        } else {
            // Everything that was answered is in the kernel's hands, which outlives the daemon.
            store.kill();
            store.mount();
        }
        println!("round {round}, seed {seed}");
        workers.iter_mut().for_each(Worker::check_all);
    }
    assert!(workers.iter().map(|worker| worker.done).sum::<u64>() >= operations - WORKERS * ROUNDS);
}
