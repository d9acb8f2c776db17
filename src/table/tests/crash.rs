//! A crash behind every call that changes the store: a kill, which loses nothing that was written, and a power cut,
//! which loses all or an arbitrary part of what was not flushed.
//!
//! What must hold. After a kill the item is as before the step under way or as after it. After a power cut it is as it
//! was at the last flush that was acknowledged or after any later step, perhaps cut short beyond what was flushed; an
//! item that no flush ever promised may be gone, but it never holds anything else.

use proptest::prelude::*;

use super::model::{Run, Step, spot};
use super::*;
use crate::store::record::{Done, RecordingStorage, Unflushed};

/// The item between two steps.
struct Point {
    /// Calls when it began to hold.
    calls: usize,
    content: Vec<u8>,
    names: Vec<String>,
    /// The step that led here may be done in part: a stream, or a hole with ragged ends.
    in_parts: bool,
    /// Everything up to here was acknowledged to be durable.
    synced: bool,
}

impl Point {
    /// `length` bytes at `at`, zeros beyond the end.
    fn block(&self, at: usize, length: usize) -> Vec<u8> {
        let rest = self.content.get(at..).unwrap_or_default();
        let mut block = rest[..rest.len().min(length)].to_vec();
        block.resize(length, 0);
        block
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (spot(), prop_oneof![1usize..6000, Just(4096), Just(200_000)])
            .prop_map(|(offset, length)| Step::Write { offset: offset.min(500_000), length }),
        2 => spot().prop_map(|size| Step::Truncate(size.min(500_000))),
        1 => (spot(), 1u64..20_000).prop_map(|(offset, length)| Step::Punch { offset, length }),
        4 => Just(Step::Sync),
        2 => Just(Step::Reopen),
        1 => Just(Step::Checkpoint),
        2 => Just(Step::Rename),
        1 => Just(Step::Link),
        1 => Just(Step::Unlink),
        3 => Just(Step::ReEncrypt),
    ];
    prop::collection::vec(step, 1..9)
}

/// More versions of the table's key than so many steps make.
const KEYS_MOST: u32 = 12;

fn record(steps: &[Step]) -> (RecordingStorage, Vec<Point>, Scratch) {
    let scratch = Scratch::new().unwrap();
    let recording = RecordingStorage::new(&DirStorage::open(scratch.path()).unwrap()).unwrap();
    let mut run = Run::new(&recording.root());
    let mut points = Vec::new();
    let point = |run: &Run, synced| Point {
        calls: recording.len(),
        content: run.model.clone(),
        names: run.names.clone(),
        in_parts: false,
        synced,
    };
    points.push(point(&run, false));
    for step in steps {
        run.step(step);
        let long = matches!(step, Step::Write { length, .. } if *length >= 131_072);
        let in_parts = long || matches!(step, Step::Punch { .. });
        points.push(Point { in_parts, ..point(&run, matches!(step, Step::Sync)) });
    }
    drop(run);
    (recording, points, scratch)
}

/// What is found after a crash, under any of these names.
fn found(root: &Arc<dyn Dir>, names: &[String]) -> Vec<(String, Result<Vec<u8>, TableError>)> {
    let mount = Mount::open(root, 2, &[1]);
    mount.keys.install_for_tests(versions(1, KEYS_MOST));
    let there = names_of(&mount.root);
    let names = names.iter().filter(|name| there.contains_key(name.as_bytes()));
    let found: Vec<_> = names.map(|name| (name.clone(), mount.read_name(name))).collect();
    drop(mount);
    // What was recovered once is in order from then on.
    let mount = Mount::open(root, 3, &[1, 2]);
    mount.keys.install_for_tests(versions(1, KEYS_MOST));
    for (name, text) in &found {
        if let Ok(text) = text {
            assert!(mount.read_name(name).unwrap() == *text, "another text at the second mount");
        }
    }
    found
}

/// The names of an item before and after a step.
fn all_names(points: &[Point]) -> Vec<String> {
    let names: BTreeSet<String> = points.iter().flat_map(|point| point.names.iter().cloned()).collect();
    names.into_iter().collect()
}

fn check_kill(recording: &RecordingStorage, points: &[Point], every: usize) {
    let mut rebuilder = recording.rebuilder();
    let start = points[0].calls;
    for calls in (start..=recording.len()).step_by(every) {
        rebuilder.advance(calls).unwrap();
        let scratch = Scratch::new().unwrap();
        rebuilder.make(Unflushed::Keep, scratch.path()).unwrap();
        let root = DirStorage::open(scratch.path()).unwrap().root();
        let next = points.iter().position(|point| point.calls >= calls).unwrap();
        // As before the step under way, as after it, and between two steps either's.
        let from = if points[next].calls == calls { next } else { next - 1 };
        let until = points.iter().rposition(|point| point.calls <= calls.max(points[next].calls)).unwrap();
        let allowed = &points[from..=until];
        let found = found(&root, &all_names(allowed));
        assert!(!found.is_empty(), "after {calls} calls: no name is left");
        for (name, text) in found {
            let text = text.unwrap_or_else(|error| panic!("after {calls} calls: {name:.20}: {error:?}"));
            assert!(
                allowed.iter().any(|point| point.content == text)
                    || (allowed.iter().any(|point| point.in_parts) && mixed(&text, allowed)),
                "after {calls} calls: {} bytes that were never there, of {:?}",
                text.len(),
                allowed.iter().map(|point| point.content.len()).collect::<Vec<_>>()
            );
        }
    }
}

fn check_power_cut(recording: &RecordingStorage, points: &[Point], every: usize, how: &dyn Fn(usize) -> Unflushed) {
    let mut rebuilder = recording.rebuilder();
    for calls in (points[0].calls..=recording.len()).step_by(every) {
        rebuilder.advance(calls).unwrap();
        let scratch = Scratch::new().unwrap();
        rebuilder.make(how(calls), scratch.path()).unwrap();
        let root = DirStorage::open(scratch.path()).unwrap().root();
        let synced = points.iter().rposition(|point| point.synced && point.calls <= calls);
        let until = points.iter().position(|point| point.calls >= calls).unwrap();
        let until = points.iter().rposition(|point| point.calls == points[until].calls).unwrap();
        let allowed = &points[synced.unwrap_or(0)..=until];
        let found = found(&root, &all_names(allowed));
        assert!(synced.is_none() || !found.is_empty(), "after {calls} calls: no name is left");
        for (name, text) in found {
            let text = match text {
                Ok(text) => text,
                Err(_) if synced.is_none() => continue,
                Err(error) => panic!("after {calls} calls: {name:.20}: {error:?}"),
            };
            let least = synced.map_or(0, |synced| points[synced].content.len());
            let sizes = || allowed.iter().map(|point| point.content.len()).collect::<Vec<_>>();
            assert!(survives(&text, least, allowed), "after {calls} calls: {} bytes, of {:?}", text.len(), sizes());
        }
    }
}

/// Whether every byte is that of one of the points: what steps leave that are done in part.
fn mixed(text: &[u8], allowed: &[Point]) -> bool {
    text.iter().enumerate().all(|(at, found)| allowed.iter().any(|point| point.block(at, 1) == [*found]))
}

/// Whether a power cut may leave `text`: up to `least`, which a flush has covered, one of the points; beyond, blocks of
/// any of them, cut short or not.
fn survives(text: &[u8], least: usize, allowed: &[Point]) -> bool {
    if allowed.iter().any(|point| point.in_parts) {
        let shortest = allowed.iter().map(|point| point.content.len()).min().unwrap_or(0);
        return text.len() >= least.min(shortest) && mixed(text, allowed);
    }
    let beyond = (0..text.len()).step_by(4096).filter(|at| *at >= least).all(|at| {
        let found = &text[at..text.len().min(at + 4096)];
        allowed.iter().any(|point| point.block(at, found.len()) == found)
    });
    let flushed = |point: &Point| {
        let covered = least.next_multiple_of(4096).min(text.len()).min(point.content.len());
        text.len() >= least.min(point.content.len()) && text[..covered] == point.content[..covered]
    };
    beyond && allowed.iter().any(|point| point.content == text || flushed(point))
}

/// Steps one by one, in each of which one call fails: what fails changes nothing, or does a part of what it was to do,
/// and memory and file agree on which.
fn check_faults(steps: &[Step], number: usize, errno: i32, done: Done) {
    let scratch = Scratch::new().unwrap();
    let recording = RecordingStorage::new(&DirStorage::open(scratch.path()).unwrap()).unwrap();
    let mut run = Run::new(&recording.root());
    for step in steps {
        recording.fail_nth(recording.attempts() + number, errno, done);
        let result = run.try_step(step);
        recording.heal();
        if result.is_err() {
            let state = |content, in_parts| Point { calls: 0, content, names: Vec::new(), in_parts, synced: false };
            let allowed = [state(run.model.clone(), false), state(run.after(step), true)];
            let held = run.mount.read(&run.item).unwrap();
            if !run.goes_on() {
                return;
            }
            let found = run.mount.read(&run.item).unwrap();
            assert!(matches!(step, Step::Reopen) || held == found, "{step:?}: memory and file differ");
            assert!(mixed(&found, &allowed), "{step:?}: {} bytes that are of neither", found.len());
            run.model = found;
        } else {
            run.check();
        }
        if !run.goes_on() {
            return;
        }
        run.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_kill_leaves_the_item_as_before_or_as_after(steps in steps()) {
        let (recording, points, _scratch) = record(&steps);
        check_kill(&recording, &points, 1);
    }

    #[test]
    fn a_power_cut_keeps_what_was_flushed(steps in steps(), seed in any::<u64>()) {
        let (recording, points, _scratch) = record(&steps);
        check_power_cut(&recording, &points, 1, &|_| Unflushed::Drop);
        check_power_cut(&recording, &points, 1, &|calls| Unflushed::Some(seed ^ calls as u64));
    }

    #[test]
    fn a_call_that_fails_leaves_the_item_in_use(steps in steps(), number in 0usize..6, half in any::<bool>()) {
        let done = if half { Done::Half } else { Done::Nothing };
        check_faults(&steps, number, rustix::io::Errno::NOSPC.raw_os_error(), done);
    }
}
