//! Random work on a recording storage; a crash behind every call, in three ways; calls that fail.
//!
//! What is checked of what a replay leaves: there is one point of time, not before the last sync that was acknowledged
//! and not after the crash, whose protected bytes all files hold: no record is there in part, none without those before
//! it.

use super::*;
use crate::store::RenameFlags;
use crate::store::record::{Done, RecordingStorage, Unflushed};

#[derive(Debug, Clone)]
enum Step {
    Commit(usize, Vec<Edit>),
    Sync(usize),
    SyncDirect(usize),
    SyncJournal,
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    let file = || 0..FILES;
    prop_oneof![
        8 => (file(), edits()).prop_map(|(file, edits)| Step::Commit(file, edits)),
        1 => file().prop_map(Step::Sync),
        1 => file().prop_map(Step::SyncDirect),
        2 => Just(Step::SyncJournal),
        1 => Just(Step::Checkpoint),
    ]
}

/// A state of all files, and up to where each is protected (none: all of it).
#[derive(Debug, Clone)]
struct Point {
    /// Calls when it began to be possible.
    from: usize,
    /// Calls up to which it is possible.
    until: usize,
    /// A commit that failed.
    failed: bool,
    files: Vec<(Vec<u8>, Option<u64>)>,
}

impl Point {
    fn matches(&self, file: usize, found: &[u8]) -> bool {
        let (bytes, protected) = &self.files[file];
        match protected {
            None => bytes == found,
            Some(end) => {
                let end = usize::try_from(*end).unwrap();
                found.len() >= end && found[..end] == bytes[..end]
            }
        }
    }
}

/// What happened, as far as a crash must respect it.
#[derive(Debug)]
struct History {
    points: Vec<Point>,
    /// The point after each file's last record, and that record.
    records: [(usize, u64); FILES],
    acknowledged: Vec<Acknowledged>,
}

#[derive(Debug)]
struct Acknowledged {
    /// Calls when it was.
    at: usize,
    /// No point before this one comes back.
    floor: usize,
    /// These files hold at least what is protected at this point.
    files: Vec<usize>,
    point: usize,
}

impl History {
    fn allows(&self, calls: usize, found: &[Vec<u8>]) -> bool {
        let past = || self.acknowledged.iter().filter(|a| a.at <= calls);
        let floor = past().map(|a| a.floor).max().unwrap_or(0);
        // What a file's own sync protects beyond its records holds at all points since its last record before.
        let least = |file| past().filter(|a| a.files.contains(&file)).map(|a| a.point).max().unwrap_or(0);
        let least: Vec<usize> = (0..FILES).map(least).collect();
        let possible =
            |index: &usize| *index == floor || (self.points[*index].from < calls && calls <= self.points[*index].until);
        (floor..self.points.len())
            .filter(possible)
            .any(|index| (0..FILES).all(|file| self.points[index.max(least[file])].matches(file, &found[file])))
    }
}

struct Run {
    recording: RecordingStorage,
    journal: Arc<Journal>,
    files: Vec<Arc<JournaledFile>>,
    history: History,
    /// From where on a file's bytes may be lost since its own flush has failed.
    lost: [Option<u64>; FILES],
    _scratch: Scratch,
}

impl Run {
    fn new(limit: u64) -> Self {
        let (scratch, storage) = store();
        let recording = RecordingStorage::new(&storage).unwrap();
        let root = recording.root();
        let journal = open(&root).0;
        journal.set_pending_limit(limit);
        let files = open_items(&journal, &root);
        let history = History { points: Vec::new(), records: [(0, 0); FILES], acknowledged: Vec::new() };
        let mut run = Self { recording, journal, files, history, lost: [None; FILES], _scratch: scratch };
        run.point(0);
        run
    }

    fn point(&mut self, from: usize) {
        let protected = |file: &JournaledFile, lost: &Option<u64>| match lost {
            None => file.protected(),
            Some(lost) => Some(file.protected().unwrap_or(file.len()).min(*lost)),
        };
        let files = self.files.iter().zip(&self.lost).map(|(file, lost)| (read_all(file), protected(file, lost)));
        let files = files.collect();
        self.history.points.push(Point { from, until: usize::MAX, failed: false, files });
    }

    /// Does a step; what fails must have changed nothing that is protected.
    fn step(&mut self, step: &Step) -> io::Result<()> {
        let from = self.recording.len();
        if matches!(step, Step::Commit(..)) {
            // What a commit does first, here on its own: after a checkpoint other bytes are protected.
            for _ in 0..3 {
                let _ = self.journal.relieve();
            }
            self.point(from);
        }
        let outcome = match step {
            Step::Commit(file, edits) => {
                let before = (read_all(&self.files[*file]), self.files[*file].protected());
                let mut model = before.0.clone();
                let ops = edit(&mut model, edits);
                let outcome = commit(&self.files[*file], &ops);
                let now = read_all(&self.files[*file]);
                if outcome.is_ok() {
                    assert!(now == model);
                } else {
                    let end = before.1.map_or(now.len(), |end| usize::try_from(end).unwrap());
                    assert_eq!(now.len(), before.0.len());
                    assert!(now[..end] == before.0[..end]);
                    self.half_done(*file, model, edits, from);
                }
                outcome
            }
            Step::Sync(file) => self.files[*file].sync(),
            Step::SyncDirect(file) => self.files[*file].sync_direct(),
            Step::SyncJournal => self.journal.sync(),
            Step::Checkpoint => self.journal.checkpoint(),
        };
        if let (Step::Sync(file) | Step::SyncDirect(file), Err(_)) = (step, &outcome) {
            let before = self.history.points.last().unwrap().files[*file].1;
            self.lost[*file] = self.lost[*file].or(before);
        }
        self.point(from);
        let point = self.history.points.len() - 1;
        let (floor, files) = match step {
            Step::Commit(file, _) => {
                let next = self.files[*file].next();
                if self.history.records[*file].1 != next {
                    self.history.records[*file] = (point, next);
                }
                return outcome;
            }
            Step::Sync(file) => (self.history.records[*file].0, vec![*file]),
            // What it protects counts from the next point on, by itself.
            Step::SyncDirect(_) => return outcome,
            Step::SyncJournal | Step::Checkpoint => (point, Vec::new()),
        };
        if outcome.is_ok() {
            let calls = self.recording.len();
            let failed = self.history.points.iter_mut().filter(|point| point.failed);
            failed.for_each(|point| point.until = point.until.min(calls));
            self.history.acknowledged.push(Acknowledged { at: self.recording.len(), floor, files, point });
        }
        outcome
    }

    /// A commit of `file` has failed: a crash can show it all the same, but not once a later sync is acknowledged.
    fn half_done(&mut self, file: usize, model: Vec<u8>, edits: &[Edit], from: usize) {
        self.point(from);
        let point = self.history.points.last_mut().unwrap();
        point.failed = true;
        let lengths = edits.iter().filter_map(|edit| match edit {
            Edit::SetLen(length) => Some(*length as u64),
            Edit::Write { .. } => None,
        });
        let protected = lengths.chain(point.files[file].1).min();
        point.files[file] = (model, protected);
    }

    /// Crashes after each of `calls`.
    fn crash_everywhere(&self, calls: impl Iterator<Item = usize>, seed: u64) {
        let mut rebuilder = self.recording.rebuilder();
        for number in calls {
            rebuilder.advance(number).unwrap();
            for unflushed in [Unflushed::Keep, Unflushed::Drop, Unflushed::Some(seed ^ number as u64)] {
                let into = Scratch::new().unwrap();
                rebuilder.make(unflushed, into.path()).unwrap();
                let root = DirStorage::open(into.path()).unwrap().root();
                self.check(&root, number, unflushed);
            }
        }
    }

    fn check(&self, root: &Arc<dyn Dir>, number: usize, unflushed: Unflushed) {
        open(root).0.close().unwrap();
        let found = backing_bytes(root);
        assert!(
            self.history.allows(number, &found),
            "after {number} calls, {unflushed:?}: {:?}",
            self.recording.calls().get(number)
        );
        assert_eq!(root.open_dir("journal".as_ref()).unwrap().list().unwrap().len(), 0);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.journal.abandon();
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..25)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2_000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn a_crash_leaves_whole_records_and_all_that_was_acknowledged(
        steps in steps(), limit in prop_oneof![Just(u64::MAX / 4), 0..20_000_u64], seed: u64,
    ) {
        let mut run = Run::new(limit);
        for step in &steps {
            run.step(step).unwrap();
        }
        run.crash_everywhere(run.recording.prefixes(), seed);
    }

    /// Replay is interrupted behind each of its own calls, and done again.
    #[test]
    fn a_crash_during_replay_costs_nothing(steps in steps(), cut in 0..1000_usize, seed: u64) {
        let mut run = Run::new(u64::MAX / 4);
        for step in &steps {
            run.step(step).unwrap();
        }
        let number = run.recording.len() * cut / 1000;
        let first = Scratch::new().unwrap();
        run.recording.rebuild(number, Unflushed::Some(seed), first.path()).unwrap();
        let again = RecordingStorage::new(&DirStorage::open(first.path()).unwrap()).unwrap();
        open(&again.root());
        for inner in again.prefixes() {
            for unflushed in [Unflushed::Keep, Unflushed::Drop, Unflushed::Some(seed)] {
                let into = Scratch::new().unwrap();
                again.rebuild(inner, unflushed, into.path()).unwrap();
                run.check(&DirStorage::open(into.path()).unwrap().root(), number, unflushed);
            }
        }
    }

    /// One call fails, whichever it is: a commit that fails changes nothing, later ones work unless a flush has failed,
    /// and the promises hold for a crash after it.
    #[test]
    fn a_failing_call_breaks_no_promise(
        steps in steps(), which in 0..1000_usize, limit in prop_oneof![Just(u64::MAX / 4), 0..20_000_u64], seed: u64,
        errno in prop_oneof![Just(Errno::NOSPC), Just(Errno::IO)],
        done in prop_oneof![Just(Done::Nothing), Just(Done::Half), Just(Done::All)], all: bool, twice: bool,
    ) {
        let attempts = {
            let mut dry = Run::new(limit);
            for step in &steps {
                dry.step(step).unwrap();
            }
            dry.recording.attempts()
        };
        let mut run = Run::new(limit);
        let nth = attempts * which / 1000;
        if all {
            run.recording.fail_from(nth, errno.raw_os_error(), done);
        } else {
            run.recording.fail_nth(nth, errno.raw_os_error(), done);
            if twice {
                run.recording.fail_nth(nth + 1, errno.raw_os_error(), done);
            }
        }
        let mut failures = Vec::new();
        for step in &steps {
            failures.extend(run.step(step).err());
        }
        let poisoned = run.journal.poisoned.load(Ordering::Relaxed);
        let broken = run.files.iter().any(|file| file.sync_direct().is_err());
        if !all && !poisoned && !broken {
            prop_assert!(failures.len() <= 2, "{failures:?}");
            run.recording.heal();
            run.step(&Step::Checkpoint).unwrap();
        }
        let total = run.recording.len();
        run.crash_everywhere(total.saturating_sub(12)..=total, seed);
    }
}

/// Every call of one fixed work fails once with ENOSPC.
#[test]
fn a_full_disk_at_every_call() {
    let write = |file, offset, length, fill| Step::Commit(file, vec![Edit::Write { offset, length, fill }]);
    let steps = [
        write(0, 100, 300, 1),
        write(1, 4_900, 900, 2),
        Step::SyncJournal,
        Step::Commit(0, vec![Edit::SetLen(200), Edit::Write { offset: 700, length: 90, fill: 3 }]),
        write(0, 2_000, 4_000, 4),
        Step::Sync(1),
        Step::Checkpoint,
        write(0, 50, 100, 5),
        Step::Commit(1, vec![Edit::Write { offset: 5_000, length: 3_000, fill: 6 }, Edit::SetLen(6_000)]),
        Step::Sync(0),
        Step::Sync(1),
        Step::Checkpoint,
    ];
    let mut whole = Run::new(u64::MAX / 4);
    for step in &steps {
        whole.step(step).unwrap();
    }
    let expected: Vec<_> = whole.files.iter().map(|file| read_all(file)).collect();
    for nth in 0..whole.recording.attempts() {
        for done in [Done::Nothing, Done::Half, Done::All] {
            let mut run = Run::new(u64::MAX / 4);
            run.recording.fail_nth(nth, Errno::NOSPC.raw_os_error(), done);
            let mut failed = false;
            for step in &steps {
                // The disk has room again at the second try.
                if let Err(error) = run.step(step) {
                    failed = true;
                    if run.step(step).is_err() {
                        assert!(
                            run.journal.poisoned.load(Ordering::Relaxed) || run.files.iter().any(|f| f.sync().is_err())
                        );
                        break;
                    }
                    assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
                }
            }
            // Removing a segment, or its torn tail, may fail and be made good without anybody noticing.
            if run.history.acknowledged.len() == whole.history.acknowledged.len() {
                let found: Vec<_> = run.files.iter().map(|file| read_all(file)).collect();
                assert!(found == expected, "call {nth}, {done:?}, {failed}");
            }
            run.crash_everywhere(0..=run.recording.len(), nth as u64);
        }
    }
}

/// A step of an item that is given other names meanwhile.
#[derive(Debug, Clone)]
enum Moving {
    Commit(Vec<Edit>),
    Rename(usize),
    Sync,
    Checkpoint,
}

const PLACES: [&str; 3] = ["item0", "moved", "again"];

fn moving() -> impl Strategy<Value = Vec<Moving>> {
    let step = prop_oneof![
        4 => edits().prop_map(Moving::Commit),
        4 => (0..PLACES.len()).prop_map(Moving::Rename),
        2 => Just(Moving::Sync),
        1 => Just(Moving::Checkpoint),
    ];
    proptest::collection::vec(step, 2..9)
}

/// Its contents after each commit, with the calls until then, and the flushes: calls, and which content is covered.
type Moved = (RecordingStorage, Scratch, Vec<(usize, Vec<u8>)>, Vec<(usize, usize)>);

/// Where the item is new, no flush has promised anything of it before the first one that is asked for.
fn move_about(steps: &[Moving], is_new: bool) -> Moved {
    let (scratch, storage) = store();
    let recording = RecordingStorage::new(&storage).unwrap();
    let (journal, _) = open(&recording.root());
    let backing = open_backing(&recording.root(), &path_of(0));
    let durable = if is_new { 0 } else { u64::MAX };
    let file = JournaledFile::open(&journal, backing, item(0), path_of(0), durable).unwrap();
    let table = recording.root().open_dir("tables".as_ref()).unwrap().open_dir("t".as_ref()).unwrap();
    let (mut model, mut place) = (start(0), 0);
    let mut contents = vec![(recording.len(), model.clone())];
    let mut synced = if is_new { Vec::new() } else { vec![(recording.len(), 0)] };
    for step in steps {
        match step {
            Moving::Commit(edits) => {
                let ops = edit(&mut model, edits);
                let op = |(at, bytes): &(usize, Option<Vec<u8>>)| (*at as u64, bytes.clone());
                let owned: Vec<_> = ops.iter().map(op).collect();
                let ops: Vec<Op<'_>> = owned
                    .iter()
                    .map(|(at, bytes)| match bytes {
                        Some(bytes) => Op::Write { offset: *at, bytes },
                        None => Op::SetLen(*at),
                    })
                    .collect();
                file.commit_whole(&ops).unwrap();
                contents.push((recording.len(), model.clone()));
            }
            Moving::Rename(to) if *to != place => {
                let act =
                    || table.rename(PLACES[place].as_ref(), table.as_ref(), PLACES[*to].as_ref(), RenameFlags::None);
                let path = Path::new("tables/t").join(PLACES[*to]);
                journal.rename_files(&[(&file, &path)], &[Arc::clone(&table)], act).unwrap();
                place = *to;
            }
            Moving::Rename(_) => {}
            Moving::Sync => {
                file.sync().unwrap();
                synced.push((recording.len(), contents.len() - 1));
            }
            Moving::Checkpoint => journal.checkpoint().unwrap(),
        }
        assert!(read_all(&file) == model);
    }
    journal.abandon();
    (recording, scratch, contents, synced)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is pending of a file is found under each name that a crash may leave it; and what a checkpoint without a
    /// flush has put away does not come back after a flush.
    #[test]
    fn what_is_pending_follows_a_rename(steps in moving(), seed in any::<u64>(), is_new in any::<bool>()) {
        let (recording, _scratch, contents, synced) = move_about(&steps, is_new);
        let mut rebuilder = recording.rebuilder();
        for calls in contents[0].0..=recording.len() {
            rebuilder.advance(calls).unwrap();
            let oldest = rebuilder.name_points()[0];
            let some = Unflushed::Some(seed ^ calls as u64);
            for (names, unflushed) in
                [(calls, Unflushed::Keep), (calls, Unflushed::Drop), (calls, some), (oldest, Unflushed::Drop), (oldest, some)]
            {
                let into = Scratch::new().unwrap();
                if names == calls {
                    rebuilder.make(unflushed, into.path()).unwrap();
                } else {
                    rebuilder.make_with_names(names, unflushed, into.path()).unwrap();
                }
                let root = DirStorage::open(into.path()).unwrap().root();
                let (journal, _) = open(&root);
                journal.abandon();
                let table = root.open_dir("tables".as_ref()).unwrap().open_dir("t".as_ref()).unwrap();
                let found: Vec<_> = PLACES.iter().filter_map(|name| table.open_file(name.as_ref(), false).ok()).collect();
                prop_assert_eq!(found.len(), 1);
                let found = read_whole(found[0].as_ref(), 1 << 30).unwrap();
                let done = contents.partition_point(|(at, _)| *at <= calls);
                let kill = names == calls && unflushed == Unflushed::Keep;
                let promised = synced.iter().rev().find(|(at, _)| *at <= calls).map(|(_, content)| *content);
                let Some(least) = (if kill { Some(done - 1) } else { promised }) else { continue };
                // The commit under way may be there.
                let most = done.min(contents.len() - 1);
                prop_assert!(
                    contents[least..=most].iter().any(|(_, content)| *content == found),
                    "after {} calls, names after {}, {:?}: {} bytes", calls, names, unflushed, found.len()
                );
            }
        }
    }
}
