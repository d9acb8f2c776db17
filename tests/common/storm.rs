//! Writers on a real mount, each in a folder of its own, and what must be there when the daemon was killed under them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::common::Dice;

/// The most that is written at once.
const WRITE_MOST: u64 = 60_000;
/// Items that a writer keeps.
const ITEMS: usize = 12;

/// What the kill has interrupted.
#[derive(Debug, Clone)]
enum Flight {
    Nothing,
    Made(String),
    /// Contents that it may have, one after the other.
    Changed(String, Vec<Vec<u8>>),
    Moved(String, String),
    Removed(String),
}

pub(crate) struct Writer {
    folder: PathBuf,
    dice: Dice,
    /// What every call that has returned has left.
    now: BTreeMap<String, Vec<u8>>,
    flight: Flight,
    made: u64,
    pub(crate) calls: u64,
}

impl Writer {
    /// A writer with an item that it never touches again.
    pub(crate) fn new(folder: PathBuf, seed: u64) -> Self {
        fs::create_dir(&folder).unwrap();
        let mut dice = Dice(seed);
        let kept = dice.bytes(10_000);
        let file = File::create_new(folder.join("kept")).unwrap();
        file.write_all_at(&kept, 0).unwrap();
        file.sync_all().unwrap();
        let now = BTreeMap::from([("kept".to_owned(), kept)]);
        Self { folder, dice, now, flight: Flight::Nothing, made: 0, calls: 0 }
    }

    /// Writes until the mount answers no more.
    pub(crate) fn work(&mut self) {
        while self.step().is_ok() {
            self.calls += 1;
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn pick(&mut self) -> Option<String> {
        let names: Vec<_> = self.now.keys().filter(|name| *name != "kept").cloned().collect();
        (!names.is_empty()).then(|| self.dice.pick(&names).clone())
    }

    fn bytes(&mut self) -> Vec<u8> {
        let most = *self.dice.pick(&[50, 500, 5000, WRITE_MOST]);
        let length = 1 + self.dice.below(most);
        self.dice.bytes(usize::try_from(length).unwrap())
    }

    fn step(&mut self) -> io::Result<()> {
        let Some(name) = self.pick() else { return self.make() };
        match self.dice.below(20) {
            0..=2 if self.now.len() < ITEMS => self.make(),
            0..=2 => self.remove(&name),
            3..=7 => {
                let (at, bytes) = (self.now[&name].len(), self.bytes());
                self.write(&name, at, &bytes, true)
            }
            8..=12 => {
                let size = self.now[&name].len() as u64;
                let (at, bytes) = (usize::try_from(self.dice.below(size + 1)).unwrap(), self.bytes());
                let flush = self.dice.below(2) == 0;
                self.write(&name, at, &bytes, flush)
            }
            13 | 14 => self.truncate(&name),
            15..=17 => self.save(&name),
            _ => self.rename(&name),
        }
    }

    fn make(&mut self) -> io::Result<()> {
        self.made += 1;
        let name =
            format!("{}{}", if self.made.is_multiple_of(5) { "long".repeat(50) } else { String::new() }, self.made);
        self.flight = Flight::Made(name.clone());
        File::create_new(self.path(&name))?;
        self.landed(name, Vec::new());
        Ok(())
    }

    fn write(&mut self, name: &str, at: usize, bytes: &[u8], flush: bool) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        let contents = written(&self.now[name], at, bytes);
        let content = contents.last().unwrap().clone();
        self.flight = Flight::Changed(name.to_owned(), contents);
        file.write_all_at(bytes, at as u64)?;
        self.landed(name.to_owned(), content);
        if flush { file.sync_data() } else { Ok(()) }
    }

    fn truncate(&mut self, name: &str) -> io::Result<()> {
        let mut content = self.now[name].clone();
        let size = self.dice.below(content.len() as u64 + 5000);
        content.resize(usize::try_from(size).unwrap(), 0);
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        self.flight = Flight::Changed(name.to_owned(), vec![content.clone()]);
        file.set_len(size)?;
        self.landed(name.to_owned(), content);
        Ok(())
    }

    /// A new item, flushed, over the old one.
    fn save(&mut self, name: &str) -> io::Result<()> {
        let bytes = self.bytes();
        self.flight = Flight::Made("saving".to_owned());
        let file = File::create_new(self.path("saving"))?;
        self.landed("saving".to_owned(), Vec::new());
        self.flight = Flight::Changed("saving".to_owned(), written(&[], 0, &bytes));
        file.write_all_at(&bytes, 0)?;
        self.landed("saving".to_owned(), bytes);
        file.sync_all()?;
        self.move_over("saving", name)
    }

    fn rename(&mut self, name: &str) -> io::Result<()> {
        self.made += 1;
        self.move_over(name, &format!("moved{}", self.made))
    }

    fn move_over(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.flight = Flight::Moved(from.to_owned(), to.to_owned());
        fs::rename(self.path(from), self.path(to))?;
        let content = self.now.remove(from).unwrap();
        self.landed(to.to_owned(), content);
        if self.dice.below(2) == 0 { File::open(&self.folder)?.sync_all() } else { Ok(()) }
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.flight = Flight::Removed(name.to_owned());
        fs::remove_file(self.path(name))?;
        self.now.remove(name);
        self.flight = Flight::Nothing;
        Ok(())
    }

    fn landed(&mut self, name: String, content: Vec<u8>) {
        self.now.insert(name, content);
        self.flight = Flight::Nothing;
    }

    /// What is there is what the calls that have returned have left, with or without the one that was interrupted.
    pub(crate) fn check(&mut self) {
        let after = self.interrupted();
        let found: BTreeMap<String, io::Result<Vec<u8>>> = read_folder(&self.folder);
        let matches = |expected: &BTreeMap<String, Vec<u8>>| {
            expected.keys().eq(found.keys())
                && expected
                    .iter()
                    .zip(found.values())
                    .all(|((_, expected), found)| found.as_ref().is_ok_and(|found| found == expected))
        };
        let now = [self.now.clone()].into_iter().chain(after).find(|expected| matches(expected));
        if let Some(now) = now {
            self.now = now;
        } else {
            let half_made = matches!(&self.flight, Flight::Made(name) if found.get(name).is_some_and(Result::is_err));
            assert!(half_made, "{}", self.difference(&found));
            let Flight::Made(name) = &self.flight else { unreachable!() };
            match fs::remove_file(self.path(name)) {
                // It may have gone when it was opened.
                Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{name}: {error}"),
                Ok(()) | Err(_) => {}
            }
        }
        self.flight = Flight::Nothing;
        if self.now.remove("saving").is_some() {
            fs::remove_file(self.path("saving")).unwrap();
        }
    }

    /// What the interrupted call may have left.
    fn interrupted(&self) -> Vec<BTreeMap<String, Vec<u8>>> {
        let mut after = self.now.clone();
        match &self.flight {
            Flight::Nothing => {}
            Flight::Made(name) => drop(after.insert(name.clone(), Vec::new())),
            Flight::Changed(name, contents) => {
                let with = |content: &Vec<u8>| {
                    after.insert(name.clone(), content.clone());
                    after.clone()
                };
                return contents.iter().map(with).collect();
            }
            Flight::Moved(from, to) => {
                let content = after.remove(from).unwrap();
                after.insert(to.clone(), content);
            }
            Flight::Removed(name) => drop(after.remove(name)),
        }
        vec![after]
    }

    fn difference(&self, found: &BTreeMap<String, io::Result<Vec<u8>>>) -> String {
        let shorten = |name: &str| name[name.len().saturating_sub(20)..].to_owned();
        let sizes: Vec<_> = found
            .iter()
            .map(|(name, found)| {
                let same = found.as_ref().ok() == self.now.get(name);
                (shorten(name), found.as_ref().map(Vec::len).map_err(ToString::to_string), same)
            })
            .collect();
        let expected: Vec<_> = self.now.iter().map(|(name, content)| (shorten(name), content.len())).collect();
        let flight = format!("{:.80}", format!("{:?}", self.flight));
        format!("{}: found {sizes:?}, expected {expected:?}, under way {flight}", self.folder.display())
    }
}

/// Contents as a write is made: the kernel divides it between pages.
fn written(old: &[u8], at: usize, bytes: &[u8]) -> Vec<Vec<u8>> {
    let ends = (1..bytes.len()).filter(|end| (at + end).is_multiple_of(4096)).chain([bytes.len()]);
    let put = |end: usize| {
        let mut content = old.to_vec();
        content.resize(content.len().max(at + end), 0);
        content[at..at + end].copy_from_slice(&bytes[..end]);
        content
    };
    ends.map(put).collect()
}

fn read_folder(folder: &Path) -> BTreeMap<String, io::Result<Vec<u8>>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()))).collect()
}
