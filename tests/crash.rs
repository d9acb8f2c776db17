//! Crashes of the whole file system: a kill of the daemon, a power cut, a full or failing disk.
//!
//! In process, workloads go through the file system to a storage that records every call. For each number of calls the
//! directory is made anew as a crash there may leave it, the store mounted, and everything in it read: what was flushed
//! is there, and the rest is as docs/durability.md and section 7 of docs/format.md allow. On a real mount, the daemon is
//! killed again and again while several threads write.
//!
//! `KMSFS_SEED` repeats a run, `KMSFS_CRASH_LONG=1` makes it longer.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking, and say what they did"
)]

mod common;
#[path = "common/crash.rs"]
mod crash;
#[path = "common/storm.rs"]
mod storm;

use std::error::Error;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::{Dice, Mounted};
use crash::{Client, Cut, Run, Step};
use kmsfs::store::record::{Call, Done, RecordingStorage, Scratch, Unflushed};
use kmsfs::store::{DirStorage, Storage};
use storm::Writer;

fn seed() -> u64 {
    std::env::var("KMSFS_SEED").map_or(0x6b6d_7366, |text| text.parse().unwrap())
}

fn is_long() -> bool {
    std::env::var("KMSFS_CRASH_LONG").is_ok_and(|text| text == "1")
}

/// Crashes of one run.
struct Crashes<'a> {
    name: &'a str,
    seed: u64,
    run: &'a Run,
    mounts: usize,
}

impl<'a> Crashes<'a> {
    /// Crashes after every call.
    fn everywhere(name: &'a str, seed: u64, run: &'a Run) {
        let start = Instant::now();
        let mut crashes = Self { name, seed, run, mounts: 0 };
        let mut dice = Dice(seed ^ 0xc4a5);
        let mut rebuilder = run.recording.rebuilder();
        for calls in run.recording.prefixes() {
            rebuilder.advance(calls).unwrap();
            for (names, unflushed) in ways(calls, &rebuilder.name_points(), &mut dice) {
                let into = Scratch::new().unwrap();
                if names == calls {
                    rebuilder.make(unflushed, into.path()).unwrap();
                } else {
                    rebuilder.make_with_names(names, unflushed, into.path()).unwrap();
                }
                let cut = Cut { names, ..Cut::after(calls, unflushed == Unflushed::Keep) };
                if dice.below(60) == 0 {
                    crashes.again(cut, unflushed, into.path(), &mut dice);
                }
                crashes.mount(cut, unflushed, into.path(), calls % 5 == 0);
            }
            if let Some(divided) = rebuilder.divided(dice.next()) {
                let into = Scratch::new().unwrap();
                divided.make(Unflushed::Keep, into.path()).unwrap();
                let cut = Cut { divided: true, ..Cut::after(calls, true) };
                crashes.mount(cut, Unflushed::Keep, into.path(), true);
            }
        }
        println!(
            "{name}, seed {seed}: {} prefixes, {} mounts, {:.1} s",
            run.recording.len() + 1,
            crashes.mounts,
            start.elapsed().as_secs_f64()
        );
    }

    fn mount(&mut self, cut: Cut, unflushed: Unflushed, base: &Path, thoroughly: bool) {
        self.mounts += 1;
        let told = format!("{}, seed {}: {cut:?}, {unflushed:?}", self.name, self.seed);
        let root = DirStorage::open(base).unwrap().root();
        let client = Client::open(&root).unwrap_or_else(|error| panic!("{told}: {error}: {:?}", error.source()));
        let shown = client.show();
        if let Err(why) = self.run.history.check(cut, &shown) {
            let call = format!("{:?}", self.run.recording.calls().get(cut.calls));
            panic!("{told}:\n{why}\n  next call: {}", call.get(..200).unwrap_or(&call));
        }
        let expected = client.use_on(&shown.tree);
        client.close();
        if thoroughly {
            let client = Client::open(&root).unwrap_or_else(|error| panic!("{told}, again: {error}"));
            let found = client.tree();
            assert!(found == expected, "{told}: another tree at the second mount");
            client.close();
        }
    }

    /// Another crash while the first one is being recovered from. The directory stays as it is.
    fn again(&mut self, cut: Cut, unflushed: Unflushed, base: &Path, dice: &mut Dice) {
        let copy = Scratch::new().unwrap();
        let start = RecordingStorage::new(&DirStorage::open(base).unwrap()).unwrap();
        start.rebuild(0, Unflushed::Keep, copy.path()).unwrap();
        let recording = RecordingStorage::new(&DirStorage::open(copy.path()).unwrap()).unwrap();
        let client = Client::open(&recording.root()).unwrap();
        client.show();
        let total = recording.len() as u64;
        client.close();
        for second in [Unflushed::Keep, Unflushed::Drop, Unflushed::Some(dice.next()), Unflushed::Some(dice.next())] {
            let into = Scratch::new().unwrap();
            recording.rebuild(usize::try_from(dice.below(total + 1)).unwrap(), second, into.path()).unwrap();
            self.mount(cut, unflushed, into.path(), true);
        }
    }
}

/// How what was called is lost or not: where names are cut off, and what becomes of what no flush has covered.
fn ways(calls: usize, name_points: &[usize], dice: &mut Dice) -> Vec<(usize, Unflushed)> {
    let mut ways = vec![(calls, Unflushed::Keep), (calls, Unflushed::Drop)];
    let mut others = vec![(calls, Unflushed::Some(dice.next()))];
    if let [oldest, between @ .., _] = name_points {
        others.extend([
            (*oldest, Unflushed::Drop),
            (*oldest, Unflushed::Keep),
            (*oldest, Unflushed::Some(dice.next())),
        ]);
        others.extend(between.iter().map(|point| (*point, Unflushed::Some(dice.next()))));
    }
    if is_long() {
        ways.append(&mut others);
    } else {
        ways.push(*dice.pick(&others));
    }
    ways
}

fn create(path: &str) -> Step {
    Step::Create(path.to_owned())
}

fn append(path: &str, length: usize) -> Step {
    Step::Append(path.to_owned(), length)
}

fn write(path: &str, at: usize, length: usize) -> Step {
    Step::Write { path: path.to_owned(), at, length }
}

fn fsync(path: &str) -> Step {
    Step::Fsync(path.to_owned())
}

fn fsync_folder(path: &str) -> Step {
    Step::FsyncFolder(path.to_owned())
}

fn rename(from: &str, to: &str) -> Step {
    Step::Rename(from.to_owned(), to.to_owned())
}

fn mkdir(path: &str) -> Step {
    Step::Mkdir(path.to_owned())
}

fn unlink(path: &str) -> Step {
    Step::Unlink(path.to_owned())
}

fn begin(seed: u64) -> Run {
    let mut run = Run::new(seed);
    run.step(&Step::Table("t".to_owned())).unwrap();
    run
}

#[test]
fn small_items() {
    let mut run = begin(seed());
    run.steps(&[mkdir("t/d")]);
    for number in 0..6 {
        let path = format!("t/{}i{number}", if number % 2 == 0 { "" } else { "d/" });
        run.steps(&[create(&path), append(&path, 1 + 700 * number)]);
        if number % 3 != 0 {
            run.steps(&[fsync(&path)]);
        }
        if number == 3 {
            run.steps(&[Step::Forget, fsync_folder("t/d")]);
        }
    }
    run.steps(&[write("t/i2", 10, 20), write("t/d/i1", 0, 400), append("t/i4", 30), fsync("t/i2"), unlink("t/d/i1")]);
    Crashes::everywhere("small items", seed(), &run);
}

/// Each line is flushed; the log passes from inline to paged, and over many blocks' ends.
#[test]
fn a_log() {
    let mut run = begin(seed());
    let mut dice = Dice(seed());
    run.steps(&[create("t/log"), fsync_folder("t")]);
    for number in 0..45 {
        let length = 1 + usize::try_from(dice.below(600)).unwrap();
        run.steps(&[append("t/log", length), fsync("t/log")]);
        match number {
            // What is not flushed yet may go, what was flushed stays.
            20 => run.steps(&[append("t/log", 3000), append("t/log", 9000)]),
            30 => run.steps(&[Step::Kill, append("t/log", 10)]),
            35 => run.steps(&[Step::Forget]),
            _ => {}
        }
    }
    Crashes::everywhere("log", seed(), &run);
}

/// Pages are overwritten in a preallocated item, as a database does, with a log beside it.
#[test]
fn a_database() {
    let mut run = begin(seed());
    let mut dice = Dice(seed() ^ 1);
    run.steps(&[create("t/db"), append("t/db", 64 << 10), fsync("t/db"), create("t/wal"), fsync_folder("t")]);
    for number in 0..24 {
        run.steps(&[append("t/wal", 4096 + 24), fsync("t/wal")]);
        for _ in 0..=dice.below(2) {
            let page = usize::try_from(dice.below(16)).unwrap() * 4096;
            let within = usize::try_from(dice.below(4000)).unwrap();
            let step = if dice.below(3) == 0 { write("t/db", page + within, 96) } else { write("t/db", page, 4096) };
            run.steps(&[step]);
        }
        match number % 6 {
            2 => run.steps(&[fsync("t/db")]),
            4 => run.steps(&[fsync("t/db"), Step::Truncate("t/wal".to_owned(), 0), fsync("t/wal")]),
            5 => run.steps(&[Step::Forget, append("t/db", 8192)]),
            _ => {}
        }
        if number == 13 {
            run.steps(&[Step::Kill]);
        }
    }
    Crashes::everywhere("database", seed(), &run);
}

/// Sizes at which the layout changes, holes and truncations.
#[test]
fn growth() {
    let mut run = begin(seed());
    run.steps(&[create("t/g"), append("t/g", 3000), fsync("t/g"), append("t/g", 551), append("t/g", 1), fsync("t/g")]);
    let truncate = |size: usize| Step::Truncate("t/g".to_owned(), size);
    let punch = |at, length| Step::Punch { path: "t/g".to_owned(), at, length };
    let (group, block) = (112 * 4096, 4096);
    run.steps(&[
        append("t/g", 20_000),
        write("t/g", 9 * block, 100),
        fsync("t/g"),
        truncate(5000),
        append("t/g", 5000),
        truncate(30_000),
        fsync("t/g"),
        write("t/g", 35_000, 10),
        punch(4096, 9000),
        fsync("t/g"),
        write("t/g", group - 3 * block, 7 * block),
        write("t/g", group - 10, 30),
        fsync("t/g"),
        append("t/g", 150_000),
        append("t/g", 100),
        Step::Forget,
        fsync("t/g"),
        append("t/g", 140_000),
        truncate(group + 100),
        append("t/g", 10),
        fsync("t/g"),
        punch(group - 2 * block - 5, 5 * block),
        truncate(0),
        append("t/g", 700),
        fsync("t/g"),
        Step::Rewrite("t/g".to_owned(), 9000),
        Step::Rewrite("t/g".to_owned(), 90),
        fsync("t/g"),
        // The same beside it, flushed only at the end.
        create("t/h"),
        append("t/h", 3000),
        append("t/h", 3000),
        write("t/h", 20_000, 5000),
        Step::Truncate("t/h".to_owned(), 10_000),
        write("t/h", 0, 4096),
        append("t/h", 140_001),
        append("t/h", 140_001),
        fsync("t/h"),
    ]);
    Crashes::everywhere("growth", seed(), &run);
}

/// What editors and package managers do: a new item is written, flushed or not, and renamed over the old one.
#[test]
fn saves_by_rename() {
    let mut run = begin(seed());
    let long = format!("t/{}", "long".repeat(55));
    run.steps(&[create("t/doc"), append("t/doc", 900), fsync("t/doc"), fsync_folder("t")]);
    for number in 0..8 {
        let target = if number % 4 == 3 { long.as_str() } else { "t/doc" };
        run.steps(&[create("t/.tmp"), append("t/.tmp", 100 + 1700 * number)]);
        if number % 3 == 0 {
            run.steps(&[fsync("t/.tmp")]);
        }
        run.steps(&[rename("t/.tmp", target)]);
        match number {
            0 | 4 => run.steps(&[fsync_folder("t")]),
            2 => run.steps(&[append("t/doc", 50), fsync("t/doc")]),
            3 => run.steps(&[Step::Forget, append(&long, 10), fsync(&long)]),
            5 => run.steps(&[Step::Kill]),
            6 => {
                run.steps(&[Step::Rewrite("t/doc".to_owned(), 5000), Step::Exchange("t/doc".to_owned(), long.clone())]);
            }
            _ => {}
        }
    }
    let link = |to: &str| Step::Symlink("t/.new".to_owned(), to.to_owned());
    run.steps(&[Step::Symlink("t/now".to_owned(), "one".to_owned()), fsync_folder("t")]);
    run.steps(&[link("two"), rename("t/.new", "t/now"), link("three"), rename("t/.new", "t/now"), fsync_folder("t")]);
    Crashes::everywhere("saves by rename", seed(), &run);
}

/// Folders are made, moved, replaced and removed, with items in them; items get more names.
#[test]
fn folders_and_links() {
    let mut run = begin(seed());
    let link = |from: &str, to: &str| Step::Link(from.to_owned(), to.to_owned());
    let deep = "deep".repeat(60);
    run.steps(&[
        mkdir("t/a"),
        mkdir("t/a/b"),
        create("t/a/b/x"),
        append("t/a/b/x", 5000),
        fsync("t/a/b/x"),
        create("t/a/y"),
        append("t/a/y", 50),
        rename("t/a", "t/c"),
        write("t/c/b/x", 100, 100),
        fsync("t/c/b/x"),
        mkdir("t/e"),
        rename("t/c/b", "t/e"),
        append("t/e/x", 4000),
        fsync("t/e/x"),
        fsync_folder("t"),
        mkdir(&format!("t/{deep}")),
        rename("t/e/x", &format!("t/{deep}/x")),
        append(&format!("t/{deep}/x"), 10),
        rename(&format!("t/{deep}"), "t/f"),
        Step::Forget,
        write("t/f/x", 0, 10),
        fsync("t/f/x"),
        link("t/f/x", "t/x"),
        link("t/f/x", "t/c/x"),
        append("t/x", 100),
        fsync("t/c/x"),
        fsync_folder("t/c"),
        unlink("t/f/x"),
        write("t/x", 50, 5000),
        fsync("t/x"),
        Step::Rmdir("t/f".to_owned()),
        Step::Exchange("t/c".to_owned(), "t/e".to_owned()),
        append("t/e/x", 10),
        fsync("t/x"),
        create("t/z"),
        rename("t/z", "t/e/x"),
        write("t/x", 0, 20),
        Step::Kill,
        fsync("t/x"),
        link("t/e/y", "t/y"),
        fsync_folder("t"),
        unlink("t/e/y"),
        unlink("t/x"),
        fsync_folder("t/e"),
        // Names of another mount, of which one goes.
        create("t/l"),
        append("t/l", 9000),
        link("t/l", "t/e/m"),
        link("t/l", "t/n"),
        fsync("t/l"),
        Step::Remount,
        write("t/l", 5000, 100),
        unlink("t/l"),
        write("t/n", 5000, 200),
        write("t/e/m", 100, 5000),
        fsync("t/n"),
    ]);
    Crashes::everywhere("folders and links", seed(), &run);
}

/// Policies are saved and tables made between writes.
#[test]
fn policies_and_tables() {
    let mut run = begin(seed());
    let policy = || Step::Policy("t".to_owned());
    run.steps(&[create("t/i"), append("t/i", 100), fsync("t/i"), policy(), append("t/i", 100), policy()]);
    run.steps(&[Step::Table("u".to_owned()), create("u/i"), append("u/i", 9000), policy(), fsync("u/i")]);
    run.steps(&[Step::Kill, Step::Policy("u".to_owned()), append("t/i", 4000), Step::Table("v".to_owned())]);
    run.steps(&[Step::Remount, append("u/i", 10), policy(), mkdir("v/d"), fsync_folder("v"), policy()]);
    run.steps(&[Step::Policy("v".to_owned()), fsync("t/i")]);
    Crashes::everywhere("policies and tables", seed(), &run);
}

/// Steps of all kinds, in random order.
struct Mix {
    run: Run,
    dice: Dice,
    made: usize,
}

impl Mix {
    fn record(seed: u64, steps: usize) -> Run {
        let mut mix = Self { run: begin(seed), dice: Dice(seed ^ 0x1234), made: 0 };
        for _ in 0..steps {
            let step = mix.draw();
            if let Some(step) = step {
                mix.run.steps(&[step]);
            }
        }
        mix.run
    }

    fn folder(&mut self) -> String {
        let folders = self.run.paths(|_, is_folder| is_folder);
        self.dice.pick(&folders).clone()
    }

    fn item(&mut self) -> Option<String> {
        let items = self.run.paths(|_, is_folder| !is_folder);
        (!items.is_empty()).then(|| self.dice.pick(&items).clone())
    }

    /// A name that is not there.
    fn fresh(&mut self) -> String {
        self.made += 1;
        let tail = if self.made.is_multiple_of(7) { "x".repeat(190) } else { String::new() };
        format!("{}/n{}{tail}", self.folder(), self.made)
    }

    fn length(&mut self) -> usize {
        let most = *self.dice.pick(&[60, 60, 600, 600, 6000, 6000, 20_000, 150_000]);
        1 + usize::try_from(self.dice.below(most)).unwrap()
    }

    fn spot(&mut self, path: &str) -> usize {
        usize::try_from(self.dice.below(self.run.size(path) as u64 + 1000)).unwrap()
    }

    /// A folder below the table, and where it may be moved.
    fn moved_folder(&mut self) -> Option<(String, String)> {
        let folders = self.run.paths(|path, is_folder| is_folder && path.contains('/'));
        if folders.is_empty() {
            return None;
        }
        let from = self.dice.pick(&folders).clone();
        let empty = self.run.paths(|path, is_folder| is_folder && path.contains('/') && path != from);
        let empty: Vec<_> = empty.into_iter().filter(|path| self.is_empty(path)).collect();
        let to =
            if !empty.is_empty() && self.dice.below(2) == 0 { self.dice.pick(&empty).clone() } else { self.fresh() };
        (!to.starts_with(&format!("{from}/"))).then_some((from, to))
    }

    fn is_empty(&self, folder: &str) -> bool {
        !self.run.has(|path| path.starts_with(&format!("{folder}/")))
    }

    fn draw(&mut self) -> Option<Step> {
        let drawn = self.dice.below(50);
        Some(match drawn {
            0..=4 => Step::Create(self.fresh()),
            5 | 6 => Step::Mkdir(self.fresh()),
            7 => Step::Symlink(self.fresh(), "target".repeat(3)),
            8 | 9 => Step::FsyncFolder(self.folder()),
            10 => Step::Policy("t".to_owned()),
            11 | 12 => Step::Forget,
            13 => Step::Kill,
            14 if self.dice.below(3) == 0 => Step::Remount,
            15 | 16 => {
                let (from, to) = self.moved_folder()?;
                Step::Rename(from, to)
            }
            17 => {
                let empty = self.run.paths(|path, is_folder| is_folder && path.contains('/'));
                Step::Rmdir(empty.into_iter().find(|path| self.is_empty(path))?)
            }
            _ => {
                let item = self.item()?;
                return self.draw_on(drawn, item);
            }
        })
    }

    fn draw_on(&mut self, drawn: u64, item: String) -> Option<Step> {
        Some(match drawn {
            18..=22 => Step::Write { at: self.spot(&item), length: self.length(), path: item },
            23..=28 => Step::Append(item, self.length()),
            29 => Step::Rewrite(item, self.length()),
            30 | 31 => Step::Truncate(item.clone(), self.spot(&item)),
            32 => Step::Punch { at: self.spot(&item), length: self.length(), path: item },
            33..=39 => Step::Fsync(item),
            40 | 41 => Step::Rename(item, self.fresh()),
            42 | 43 => {
                let other = self.item()?;
                if self.run.is_same(&item, &other) {
                    return None;
                }
                Step::Rename(item, other)
            }
            44 => {
                let other = self.item()?;
                if self.run.is_same(&item, &other) {
                    return None;
                }
                Step::Exchange(item, other)
            }
            45 | 46 if self.run.links(&item) < 8 => Step::Link(item, self.fresh()),
            47 | 48 => Step::Unlink(item),
            _ => return None,
        })
    }
}

#[test]
fn everything_mixed() {
    let rounds = if is_long() { 40 } else { 2 };
    for round in 0..rounds {
        let seed = seed().wrapping_add(round);
        let run = Mix::record(seed, 70);
        Crashes::everywhere("mixed", seed, &run);
    }
}

/// A short run of everything that changes the store.
fn short_work() -> Vec<Step> {
    let text = str::to_owned;
    vec![
        create("t/old"),
        append("t/old", 6000),
        fsync("t/old"),
        create("t/small"),
        append("t/small", 100),
        fsync("t/small"),
        fsync_folder("t"),
        // Up to here everything is durable.
        write("t/old", 10, 3000),
        append("t/old", 500),
        fsync("t/old"),
        append("t/small", 4000),
        create("t/new"),
        append("t/new", 10_000),
        write("t/new", 100, 100),
        fsync("t/new"),
        rename("t/new", "t/small"),
        Step::Link(text("t/old"), text("t/link")),
        append("t/link", 50),
        Step::Policy(text("t")),
        unlink("t/old"),
        mkdir("t/d"),
        rename("t/link", "t/d/link"),
        rename("t/d", "t/e"),
        Step::Truncate(text("t/e/link"), 5000),
        fsync("t/e/link"),
        Step::Symlink(text("t/s"), text("e/link")),
        Step::Table(text("u")),
        create("u/i"),
        append("u/i", 10),
        fsync("u/i"),
        Step::Punch { path: text("t/e/link"), at: 0, length: 4096 },
        Step::Rewrite(text("t/small"), 300),
        fsync_folder("t"),
    ]
}

/// How a call may fail, a write in part: all ways, or some of them in turn.
fn faults(call: &Call, nth: usize) -> Vec<(i32, Done)> {
    let (full, broken) = (libc::ENOSPC, libc::EIO);
    let whole = [(full, Done::Nothing), (broken, Done::Nothing)];
    let partial = [(full, Done::Half), (broken, Done::All)];
    match (matches!(call, Call::Change { .. }), is_long()) {
        (true, true) => [whole, partial].concat(),
        (true, false) => vec![whole[nth % 2], partial[nth / 2 % 2]],
        (false, true) => whole.to_vec(),
        (false, false) => vec![whole[nth % 2]],
    }
}

/// Makes all steps with one call failing; what was refused.
fn work_with_fault(steps: &[Step], nth: usize, (errno, done): (i32, Done)) -> (Run, Vec<String>) {
    let mut run = begin(seed());
    run.recording.fail_nth(nth, errno, done);
    let mut refused = Vec::new();
    for step in steps {
        if !run.is_dead
            && let Err(error) = run.step(step)
        {
            refused.push(format!("{step:?}: {error}"));
        }
    }
    // How many calls a step makes depends on the time, so that it may still be to come: no later call fails.
    run.recording.heal();
    (run, refused)
}

/// Each call fails once, with no space or an error of the disk: the caller hears of it or need not, nothing that was
/// there is lost, and the file system goes on.
#[test]
fn every_call_fails_once() {
    let steps = short_work();
    let mut whole = begin(seed());
    let first = whole.recording.len();
    whole.steps(&steps);
    let calls = whole.recording.calls();
    let (mut runs, mut noticed) = (0, 0);
    for (call, nth) in calls.iter().zip(whole.recording.tries()).skip(first) {
        for fault in faults(call, nth) {
            let (mut run, refused) = work_with_fault(&steps, nth, fault);
            let told = format!("try {nth} ({:.100}), {fault:?}, refused {refused:?}", format!("{call:?}"));
            (runs, noticed) = (runs + 1, noticed + usize::from(!refused.is_empty()));
            // After a failed flush nobody knows what the disk holds, so that little may be done until the next mount.
            let may_stop = run.recording.has_failed_flush();
            assert!(may_stop || (!run.is_dead && refused.len() <= steps.len() / 2), "{told}");
            if !run.is_dead {
                run.check_now().unwrap_or_else(|why| panic!("{told}: now:\n{why}"));
            }
            if !may_stop {
                for step in [create("t/after"), append("t/after", 5000), fsync("t/after")] {
                    run.step(&step).unwrap_or_else(|error| panic!("{told}: {step:?}: {error}"));
                }
            }
            let calls = run.recording.len();
            let mut crashes = Crashes { name: &told, seed: seed(), run: &run, mounts: 0 };
            let lost = if nth.is_multiple_of(2) { Unflushed::Drop } else { Unflushed::Some(seed() ^ nth as u64) };
            for unflushed in [Unflushed::Keep, lost] {
                let into = Scratch::new().unwrap();
                run.recording.rebuild(calls, unflushed, into.path()).unwrap();
                crashes.mount(Cut::after(calls, unflushed == Unflushed::Keep), unflushed, into.path(), false);
            }
        }
    }
    println!("faults, seed {}: {} calls, {runs} runs, {noticed} of them with an error", seed(), calls.len() - first);
    assert!(noticed > runs / 2);
}

/// SIGKILL at any moment, under several writers: what a call has left that has returned is there, flushed or not.
#[test]
fn a_killed_daemon_loses_nothing() {
    let (rounds, writers) = if is_long() { (200, 6) } else { (20, 4) };
    let seed = seed();
    let mut dice = Dice(seed ^ 0x5707);
    let mounted = Mounted::new("storm");
    let table = mounted.table("t");
    let mut writers: Vec<_> =
        (0..writers).map(|number| Writer::new(table.join(format!("w{number}")), seed ^ number)).collect();
    for _ in 0..rounds {
        let wait = Duration::from_millis(5 + dice.below(200));
        thread::scope(|scope| {
            for writer in &mut writers {
                scope.spawn(|| writer.work());
            }
            thread::sleep(wait);
            mounted.kill();
        });
        mounted.mount();
        writers.iter_mut().for_each(Writer::check);
    }
    let calls: u64 = writers.iter().map(|writer| writer.calls).sum();
    println!("storm, seed {seed}: {rounds} kills, {calls} steps");
    assert!(calls > rounds);
    mounted.run(["--at", common::path(&mounted.mount), "audit", "verify"]);
    mounted.remount();
    writers.iter_mut().for_each(Writer::check);
}
