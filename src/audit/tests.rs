//! Tests of the trail on real directories.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::io::Errno;

use super::segment::{HEADER_LEN, Header, SegmentReader, Step};
use super::*;
use crate::crypto::{Chain, Key256};
use crate::store::record::{Done, RecordingStorage, Unflushed};
use crate::store::{Dir, DirStorage, Storage, TrailHead};
use crate::types::StoreId;

const STORE: StoreId = StoreId::from_bytes([1; 16]);

#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let scratch = Self::bare();
        fs::create_dir(scratch.0.join("audit")).unwrap();
        scratch
    }

    fn bare() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = Some(PathBuf::from("/dev/shm")).filter(|path| path.is_dir()).unwrap_or_else(std::env::temp_dir);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("kmsfs-audit-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn root(&self) -> Arc<dyn Dir> {
        DirStorage::open(&self.0).unwrap().root()
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.0.join("audit").join(number.to_string())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn key() -> Key256 {
    Key256::from_slice(&[7; 32]).unwrap()
}

fn open(root: &Arc<dyn Dir>, session: u8, anchored: TrailHead) -> (Trail, Vec<TrailFound>) {
    Trail::open(root.as_ref(), &key(), STORE, [session; 16], anchored).unwrap()
}

fn reader(scratch: &Scratch) -> TrailReader {
    TrailReader::open(scratch.root().as_ref(), &key(), STORE).unwrap()
}

fn verify(scratch: &Scratch, anchored: TrailHead) -> Report {
    reader(scratch).verify(anchored).unwrap()
}

fn event(number: u32) -> Event {
    Event::new("Decrypt", UserIdentity::unix(1000, 1000, 1)).parameter("number", number)
}

fn numbers(scratch: &Scratch) -> Vec<u64> {
    let reader = reader(scratch);
    let events = reader.events().unwrap().map(|event| event.unwrap());
    events.map(|found| found.event.request_parameters["number"].as_u64().unwrap()).collect()
}

/// Segments 1 and 2, of two sessions, with three events each; gives the last head and the head after event 4.
fn two_segments(scratch: &Scratch) -> (TrailHead, TrailHead) {
    let root = scratch.root();
    let (trail, found) = open(&root, 1, TrailHead::default());
    assert_eq!(found, []);
    (0..3).for_each(|number| trail.append(&event(number)).unwrap());
    let head = trail.close().unwrap();
    assert!(matches!(trail.append(&event(9)), Err(AuditError::Closed)));
    let (trail, found) = open(&root, 2, head);
    assert_eq!(found, []);
    trail.append(&event(3)).unwrap();
    let middle = trail.sync().unwrap();
    (4..6).for_each(|number| trail.append(&event(number)).unwrap());
    let last = trail.close().unwrap();
    assert_eq!((middle.segment, middle.sequence, last.segment, last.sequence), (2, 4, 2, 6));
    (last, middle)
}

/// Where each record of a segment begins, and where the last one ends.
fn record_starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![HEADER_LEN];
    while let Some(length) = bytes.get(starts[starts.len() - 1]..).and_then(|rest| rest.first_chunk::<4>()) {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap();
        if length == 0 {
            break;
        }
        starts.push(starts[starts.len() - 1] + 4 + length);
    }
    starts
}

#[test]
fn events_are_read_as_they_were_written() {
    let scratch = Scratch::new();
    let (last, _) = two_segments(&scratch);
    assert_eq!(numbers(&scratch), [0, 1, 2, 3, 4, 5]);
    let reader = reader(&scratch);
    let places: Vec<_> = reader.events().unwrap().map(|event| event.unwrap().position).collect();
    assert_eq!(places[4], Position { segment: 2, record: 2, sequence: 5 });
    let report = verify(&scratch, last);
    assert_eq!((report.segments, report.records, report.end, report.is_sound()), (2, 6, last, true));
    assert_eq!(report.unfinished, None);
    // Nothing of the events is readable in the files.
    for number in [1, 2] {
        let bytes = fs::read(scratch.segment(number)).unwrap();
        assert!(!bytes.windows(7).any(|part| part == b"Decrypt"));
    }
}

#[test]
fn an_event_is_in_the_file_when_append_returns() {
    let scratch = Scratch::new();
    let (trail, _) = open(&scratch.root(), 1, TrailHead::default());
    for number in 0..10 {
        trail.append(&event(number)).unwrap();
        assert_eq!(numbers(&scratch).len(), usize::try_from(number).unwrap() + 1);
    }
    assert_eq!(trail.head(), TrailHead::default(), "what is not flushed is not given out for anchoring");
    let head = trail.sync().unwrap();
    assert_eq!((head.sequence, trail.head()), (10, head));
    assert_eq!(trail.verify(head).unwrap().records, 10);
    // A kill: nothing is closed, and the next process goes on behind it.
    std::mem::forget(trail);
    let (trail, found) = open(&scratch.root(), 2, head);
    assert_eq!(found, []);
    trail.append(&event(10)).unwrap();
    assert!(verify(&scratch, head).is_sound());
    assert_eq!(numbers(&scratch).len(), 11);
}

#[test]
fn every_flipped_bit_is_found_where_it_is() {
    let scratch = Scratch::new();
    let (last, _) = two_segments(&scratch);
    for number in [1, 2] {
        let path = scratch.segment(number);
        let whole = fs::read(&path).unwrap();
        let starts = record_starts(&whole);
        assert_eq!(starts.len(), 4);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::File::create(&path).unwrap().write_all_at(&bytes, 0).unwrap();
            let report = verify(&scratch, last);
            let first = report.faults.first().unwrap_or_else(|| panic!("segment {number} bit {bit}"));
            let record = starts.iter().filter(|start| **start <= bit / 8).count() as u64;
            let record = (record > 0).then_some(record);
            assert_eq!((first.segment, first.record), (number, record), "bit {bit}: {report:?}");
            if bit % 8 != 3 {
                continue;
            }
            // What stands before the fault, and in the other segment, is still read.
            let read = reader(&scratch);
            let (good, bad): (Vec<_>, Vec<_>) = read.events().unwrap().partition(Result::is_ok);
            assert_eq!((good.len() as u64, bad.len()), (3 + record.map_or(0, |record| record - 1), 1), "bit {bit}");
        }
        fs::File::create(&path).unwrap().write_all_at(&whole, 0).unwrap();
    }
    assert!(verify(&scratch, last).is_sound());
}

#[test]
fn a_cut_is_found_up_to_the_anchored_head() {
    let scratch = Scratch::new();
    let (last, middle) = two_segments(&scratch);
    for number in [1, 2] {
        let path = scratch.segment(number);
        let whole = fs::read(&path).unwrap();
        let starts = record_starts(&whole);
        for length in 0..whole.len() {
            fs::File::create(&path).unwrap().write_all_at(&whole[..length], 0).unwrap();
            assert!(!verify(&scratch, last).is_sound(), "segment {number} cut to {length}");
            // Behind an older anchor a cut is not noticed; before it, it is.
            let anchored_there = number == 2 && length >= starts[1];
            assert_eq!(verify(&scratch, middle).is_sound(), anchored_there, "segment {number} cut to {length}");
        }
        fs::File::create(&path).unwrap().write_all_at(&whole, 0).unwrap();
    }
    let report = {
        let whole = fs::read(scratch.segment(2)).unwrap();
        fs::File::create(scratch.segment(2)).unwrap().write_all_at(&whole[..record_starts(&whole)[2]], 0).unwrap();
        verify(&scratch, last)
    };
    assert_eq!(report.faults[0].kind, FaultKind::AnchorNotReached { anchored: 6, end: 5 });
    assert_eq!(report.faults[0].to_string(), "audit/2: the trail ends with event 5, the store has noted event 6");
}

#[test]
fn records_and_segments_that_change_places_are_found() {
    let scratch = Scratch::new();
    let (last, _) = two_segments(&scratch);
    let whole = fs::read(scratch.segment(2)).unwrap();
    let starts = record_starts(&whole);
    let part = |from: usize, to: usize| &whole[starts[from]..starts[to]];
    let head = &whole[..HEADER_LEN];
    for (what, bytes) in [
        ("swapped", [head, part(1, 2), part(0, 1), part(2, 3)].concat()),
        ("dropped", [head, part(0, 1), part(2, 3)].concat()),
        ("doubled", [head, part(0, 1), part(0, 1), part(1, 2), part(2, 3)].concat()),
        ("hidden behind an end mark", [head, part(0, 1), &[0; 4], part(1, 3)].concat()),
    ] {
        fs::File::create(scratch.segment(2)).unwrap().write_all_at(&bytes, 0).unwrap();
        let report = verify(&scratch, last);
        assert_eq!(report.faults[0].segment, 2, "{what}");
        assert!(report.faults[0].record.is_some(), "{what}: {report:?}");
    }
    fs::File::create(scratch.segment(2)).unwrap().write_all_at(&whole, 0).unwrap();

    let (one, two) = (scratch.segment(1), scratch.segment(2));
    let aside = scratch.0.join("aside");
    fs::rename(&one, &aside).unwrap();
    assert_eq!(verify(&scratch, last).faults[0].kind, FaultKind::Missing { from: 1, to: 1 });
    fs::rename(&two, &one).unwrap();
    fs::rename(&aside, &two).unwrap();
    let kinds: Vec<_> = verify(&scratch, last).faults.into_iter().map(|fault| fault.kind).collect();
    assert_eq!(kinds[..2], [FaultKind::Header, FaultKind::Header]);
    fs::remove_file(&one).unwrap();
    fs::remove_file(&two).unwrap();
    assert_eq!(verify(&scratch, last).faults[0].kind, FaultKind::AnchorNotReached { anchored: 6, end: 0 });
}

#[test]
fn another_history_of_the_same_length_is_found() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    let (last, _) = two_segments(&scratch);
    two_segments(&other);
    for number in [1, 2] {
        fs::copy(other.segment(number), scratch.segment(number)).unwrap();
    }
    let report = verify(&scratch, last);
    assert_eq!(report.faults[0], Fault { segment: 2, record: Some(3), kind: FaultKind::AnchorDiffers });
}

#[test]
fn a_trail_goes_on_behind_what_was_tampered_with_and_shows_it_ever_after() {
    for attack in 0..3 {
        let scratch = Scratch::new();
        let (last, _) = two_segments(&scratch);
        let path = scratch.segment(2);
        let whole = fs::read(&path).unwrap();
        match attack {
            0 => fs::File::create(&path).unwrap().write_all_at(&whole[..record_starts(&whole)[1]], 0).unwrap(),
            1 => fs::File::options().write(true).open(&path).unwrap().write_all_at(b"x", 400).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        let (trail, found) = open(&scratch.root(), 3, last);
        assert!(!found.is_empty() && found.iter().all(|found| matches!(found, TrailFound::Faulty(_))), "{found:?}");
        trail.append(&event(6)).unwrap();
        let last = trail.close().unwrap();
        assert_eq!((last.segment, last.sequence), (3, 7), "{attack}");
        let report = verify(&scratch, last);
        assert!(!report.is_sound(), "{attack}");
        assert!(report.faults.iter().any(|fault| fault.segment >= 2), "{attack}: {report:?}");
        // From here on it is whole again.
        let (trail, found) = open(&scratch.root(), 4, last);
        assert_eq!(found, [], "{attack}");
        drop(trail);
    }
}

#[test]
fn an_unfinished_record_is_cut_and_told_of() {
    let scratch = Scratch::new();
    let root = scratch.root();
    let (trail, _) = open(&root, 1, TrailHead::default());
    trail.append(&event(0)).unwrap();
    let head = trail.sync().unwrap();
    trail.append(&event(1)).unwrap();
    std::mem::forget(trail);
    let path = scratch.segment(1);
    let whole = fs::read(&path).unwrap();
    let second = record_starts(&whole)[1];
    for length in second + 4..whole.len() - 4 {
        fs::File::create(&path).unwrap().write_all_at(&whole[..length], 0).unwrap();
        let report = verify(&scratch, head);
        let bytes = (length - second) as u64;
        assert_eq!((report.is_sound(), report.unfinished), (true, Some((1, bytes))));
        let (trail, found) = open(&root, 2, head);
        assert_eq!(found, [TrailFound::Torn { segment: 1, bytes }]);
        trail.append(&event(2)).unwrap();
        drop(trail);
        assert!(verify(&scratch, head).is_sound());
        assert_eq!(numbers(&scratch), [0, 2]);
        fs::remove_file(scratch.segment(2)).unwrap();
    }
}

/// After a crash at any call, whatever was flushed is there, and nothing looks tampered with.
#[test]
fn a_crash_at_any_call_costs_nothing_that_was_flushed() {
    let scratch = Scratch::new();
    let recording = RecordingStorage::new(&DirStorage::open(&scratch.0).unwrap()).unwrap();
    let mut flushed = vec![(0, TrailHead::default())];
    let mut head = TrailHead::default();
    for session in 1..4 {
        let (trail, found) = open(&recording.root(), session, head);
        assert_eq!(found, []);
        for number in 0..4 {
            trail.append(&event(number)).unwrap();
            if number % 2 == 1 {
                head = trail.sync().unwrap();
                flushed.push((recording.len(), head));
            }
        }
        if session == 2 {
            head = trail.close().unwrap();
        }
    }
    let mut rebuilder = recording.rebuilder();
    for prefix in recording.prefixes() {
        rebuilder.advance(prefix).unwrap();
        let anchored = flushed.iter().rev().find(|(calls, _)| *calls <= prefix).unwrap().1;
        for way in [Unflushed::Keep, Unflushed::Drop, Unflushed::Some(1), Unflushed::Some(2), Unflushed::Some(3)] {
            let crashed = Scratch::bare();
            rebuilder.make(way, &crashed.0).unwrap();
            let what = format!("{prefix} {way:?}");
            assert!(verify(&crashed, anchored).is_sound(), "{what}: {:?}", verify(&crashed, anchored));
            let (trail, found) = open(&crashed.root(), 9, anchored);
            assert!(found.iter().all(|found| matches!(found, TrailFound::Torn { .. })), "{what}: {found:?}");
            trail.append(&event(99)).unwrap();
            let last = trail.close().unwrap();
            assert!(last.sequence > anchored.sequence, "{what}");
            let report = verify(&crashed, last);
            assert!(report.is_sound() && report.unfinished.is_none(), "{what}: {report:?}");
        }
    }
}

/// Every call fails in turn: an event is in the trail if and only if `append` said so.
#[test]
fn an_event_that_could_not_be_written_is_not_there() {
    for part in [Done::Nothing, Done::Half, Done::All] {
        for nth in 0.. {
            let scratch = Scratch::new();
            let recording = RecordingStorage::new(&DirStorage::open(&scratch.0).unwrap()).unwrap();
            recording.fail_nth(nth, Errno::NOSPC.raw_os_error(), part);
            let (trail, _) = open(&recording.root(), 1, TrailHead::default());
            let mut written: Vec<u64> = Vec::new();
            for number in 0..4 {
                match trail.append(&event(number)) {
                    Ok(()) => written.push(number.into()),
                    Err(AuditError::NoSpace) => {}
                    Err(error) => panic!("{nth}: {error}"),
                }
                assert_eq!(numbers(&scratch), written, "{part:?} at {nth}");
            }
            assert!(written.len() >= 3);
            let closed = trail.close();
            let reached = recording.attempts() > nth;
            if let Ok(head) = closed {
                assert!(verify(&scratch, head).is_sound(), "{part:?} at {nth}");
                assert_eq!(verify(&scratch, head).unfinished, None);
            }
            let (trail, found) = open(&scratch.root(), 2, TrailHead::default());
            assert_eq!(found, [], "{part:?} at {nth}");
            drop(trail);
            if !reached {
                assert!(nth > 9);
                break;
            }
        }
    }
}

#[test]
fn the_last_of_the_space_is_for_urgent_events() {
    let scratch = Scratch::new();
    let recording = RecordingStorage::new(&DirStorage::open(&scratch.0).unwrap()).unwrap();
    let (trail, _) = open(&recording.root(), 1, TrailHead::default());
    let large = event(1).detail("filler", "x".repeat(60_000));
    let mut count = 0;
    // The disk is full: nothing more can be reserved. What is reserved already is written to all the same.
    loop {
        let before = recording.attempts();
        recording.fail_nth(before, Errno::NOSPC.raw_os_error(), Done::Half);
        let next = trail.append(&large);
        let failed_at_reserving = recording.attempts() == before + 1 && next.is_err();
        recording.heal();
        if failed_at_reserving && count >= 14 {
            assert!(matches!(next, Err(AuditError::NoSpace)));
            break;
        }
        // It was the write that failed: not what is looked for here.
        trail.append(&large).unwrap();
        count += 1;
        assert!(count < 30);
    }
    assert!(count * 60_000 < (1 << 20) - (128 << 10));
    for _ in 0..2 {
        let before = recording.attempts();
        trail.append_urgent(&large).unwrap();
        assert_eq!(recording.attempts(), before + 1, "a write, and nothing to be reserved");
    }
    trail.append(&large).unwrap();
    assert!(verify(&scratch, trail.sync().unwrap()).is_sound());
}

fn denial(uid: u32, item: &str) -> Event {
    Event::new("Decrypt", UserIdentity::unix(uid, uid, 1))
        .context(&crate::types::EncryptionContext::of_item("t", item.as_bytes()))
        .resource("kmsfs::Table", None, Some("t".to_owned()))
        .error("AccessDenied", "no statement allows it")
}

fn counts(scratch: &Scratch) -> Vec<Option<u64>> {
    let reader = reader(scratch);
    let events = reader.events().unwrap().map(|event| event.unwrap().event);
    events.map(|event| event.additional_event_data.get("count").and_then(serde_json::Value::as_u64)).collect()
}

#[test]
fn a_flood_of_equal_denials_is_counted() {
    let scratch = Scratch::new();
    let (trail, _) = open(&scratch.root(), 1, TrailHead::default());
    let start = Instant::now();
    let after = |milliseconds| start + Duration::from_millis(milliseconds);
    for number in 0..100 {
        trail.append_at(&denial(1, "a"), after(number * 9), false).unwrap();
    }
    assert_eq!(counts(&scratch), [None; 5]);
    // Another user, another item and what was allowed are no part of it.
    trail.append_at(&denial(2, "a"), after(950), false).unwrap();
    trail.append_at(&denial(1, "b"), after(951), false).unwrap();
    trail.append_at(&event(1), after(952), false).unwrap();
    assert_eq!(counts(&scratch), [None; 8]);
    // The next event of any kind brings the count out once the second is over.
    trail.append_at(&event(2), after(1001), false).unwrap();
    assert_eq!(counts(&scratch)[8..], [Some(95), None]);
    // A new second starts in full again, and closing brings everything out.
    for number in 0..7 {
        trail.append_at(&denial(1, "a"), after(2000 + number), false).unwrap();
    }
    assert_eq!(counts(&scratch).len(), 15);
    let head = trail.close().unwrap();
    assert_eq!(counts(&scratch)[15..], [Some(2)]);
    assert!(verify(&scratch, head).is_sound());
}

/// Whoever may not use a key could otherwise fill the trail with words of his own.
#[test]
fn a_flood_of_denied_direct_calls_is_counted_whatever_their_contexts() {
    let scratch = Scratch::new();
    let (trail, _) = open(&scratch.root(), 1, TrailHead::default());
    let start = Instant::now();
    for number in 0..100 {
        let denied = Event { resources: Vec::new(), ..denial(1, &number.to_string()) };
        trail.append_at(&denied, start, false).unwrap();
    }
    assert_eq!(counts(&scratch), [None; 5]);
    trail.close().unwrap();
    assert_eq!(counts(&scratch)[5..], [Some(95)]);
}

#[test]
fn a_count_that_could_not_be_written_is_kept() {
    let scratch = Scratch::new();
    let recording = RecordingStorage::new(&DirStorage::open(&scratch.0).unwrap()).unwrap();
    let (trail, _) = open(&recording.root(), 1, TrailHead::default());
    let start = Instant::now();
    for _ in 0..9 {
        trail.append_at(&denial(1, "a"), start, false).unwrap();
    }
    recording.fail_nth(recording.attempts(), Errno::NOSPC.raw_os_error(), Done::Half);
    let refused = trail.append_at(&event(1), start + Duration::from_secs(2), false);
    assert!(matches!(refused, Err(AuditError::NoSpace)));
    recording.heal();
    trail.append_at(&denial(1, "a"), start + Duration::from_secs(2), false).unwrap();
    trail.close().unwrap();
    let counted: u64 = counts(&scratch).into_iter().flatten().sum();
    assert_eq!(counted, 5, "four of the first second, one of the next");
}

#[test]
fn the_number_of_floods_that_are_told_apart_is_bounded() {
    let scratch = Scratch::new();
    let (trail, _) = open(&scratch.root(), 1, TrailHead::default());
    let now = Instant::now();
    for item in 0..1030 {
        for _ in 0..6 {
            trail.append_at(&denial(1, &item.to_string()), now, false).unwrap();
        }
    }
    trail.close().unwrap();
    let counts = counts(&scratch);
    assert_eq!(counts.iter().flatten().count(), 1024);
    assert_eq!(counts.iter().filter(|count| count.is_none()).count(), 1024 * 5 + 6 * 6);
}

#[test]
fn a_long_segment_is_followed_by_another() {
    let scratch = Scratch::new();
    let (trail, _) = open(&scratch.root(), 1, TrailHead::default());
    let large = event(1).detail("filler", "x".repeat(60_000));
    for _ in 0..300 {
        trail.append(&large).unwrap();
    }
    assert!(matches!(trail.append(&large.clone().detail("more", "x".repeat(6_000))), Err(AuditError::TooLarge)));
    let head = trail.close().unwrap();
    assert_eq!((head.segment, head.sequence), (2, 300));
    let length = fs::metadata(scratch.segment(1)).unwrap().len();
    assert!(length <= 16 << 20 && length > (16 << 20) - 100_000);
    for number in [1, 2] {
        let metadata = fs::metadata(scratch.segment(number)).unwrap();
        assert!(metadata.blocks() * 512 < metadata.len() + 8192, "reserved space was given back");
    }
    let report = verify(&scratch, head);
    assert_eq!((report.records, report.is_sound()), (300, true));
}

#[test]
fn threads_share_one_chain() {
    let scratch = Scratch::new();
    let (trail, _) = open(&scratch.root(), 1, TrailHead::default());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let trail = &trail;
            scope.spawn(move || {
                for number in 0..200 {
                    trail.append(&event(thread * 1000 + number)).unwrap();
                    if number % 50 == 0 {
                        let head = trail.sync().unwrap();
                        assert!(trail.verify(head).unwrap().is_sound(), "also while others write");
                    }
                }
            });
        }
    });
    let head = trail.close().unwrap();
    assert_eq!((head.sequence, verify(&scratch, head).records), (800, 800));
    let mut all = numbers(&scratch);
    for thread in 0..4 {
        let own: Vec<u64> = all.iter().copied().filter(|number| number / 1000 == thread).collect();
        assert!(own.is_sorted(), "each thread's events are in order");
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 800);
}

fn valid_segment(records: &[u8]) -> Vec<u8> {
    let header = Header { store: STORE, session: [1; 16], number: 1, first: 1, before: Chain::default() };
    [&header.encode(&key())[..], records].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_no_header(bytes in prop::array::uniform32(any::<[u8; 4]>())) {
        let mut header: [u8; HEADER_LEN] = bytes.concat().try_into().unwrap();
        prop_assert!(Header::decode(&header, &key(), STORE, 1).is_err());
        header[..10].copy_from_slice(b"KMSFSAUD\x01\0");
        prop_assert!(Header::decode(&header, &key(), STORE, 1).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_no_record(bytes in prop::collection::vec(any::<u8>(), 1..600)) {
        let scratch = Scratch::new();
        fs::File::create(scratch.segment(1)).unwrap().write_all_at(&valid_segment(&bytes), 0).unwrap();
        let report = verify(&scratch, TrailHead { segment: 1, sequence: 1, head: [0; 32] });
        prop_assert_eq!((report.records, report.is_sound()), (0, false));
        let events = reader(&scratch);
        prop_assert!(events.events().unwrap().all(|event| event.is_err()));
    }
}

/// A length of 4 GiB, and a segment of a TiB of zeros, cost neither memory nor time.
#[test]
fn stated_lengths_cost_nothing() {
    let scratch = Scratch::new();
    let path = scratch.segment(1);
    for records in [&[0xff_u8; 4][..], &[0; 4]] {
        let file = fs::File::create(&path).unwrap();
        file.write_all_at(&valid_segment(records), 0).unwrap();
        file.set_len(1 << 40).unwrap();
        let file = scratch.root().open_dir(OsStr::new("audit")).unwrap().open_file(OsStr::new("1"), false).unwrap();
        let (mut reader, _) = SegmentReader::open(file, &key(), STORE, 1, None).unwrap().unwrap();
        let before = Instant::now();
        assert!(matches!(reader.next().unwrap(), Step::Unverified(_)));
        assert!(before.elapsed() < Duration::from_secs(1));
    }
}

#[test]
fn a_trail_of_another_key_or_store_is_not_read() {
    let scratch = Scratch::new();
    two_segments(&scratch);
    let other = Key256::from_slice(&[8; 32]).unwrap();
    for reader in [
        TrailReader::open(scratch.root().as_ref(), &other, STORE),
        TrailReader::open(scratch.root().as_ref(), &key(), StoreId::from_bytes([2; 16])),
    ] {
        let reader = reader.unwrap();
        assert_eq!(reader.verify(TrailHead::default()).unwrap().records, 0);
        assert!(reader.events().unwrap().all(|event| event.is_err()));
    }
}

/// No file is written over, whatever it is called, and the real segments stay next to one another.
#[test]
fn a_segment_that_somebody_has_made_up_does_no_harm() {
    let scratch = Scratch::new();
    let (last, _) = two_segments(&scratch);
    for number in [3, u64::MAX] {
        fs::File::create(scratch.segment(number)).unwrap().write_all_at(b"x", 0).unwrap();
    }
    let (trail, found) = open(&scratch.root(), 3, last);
    assert!(!found.is_empty());
    trail.append(&event(6)).unwrap();
    let last = trail.close().unwrap();
    assert_eq!((last.segment, last.sequence), (4, 7));
    assert_eq!(fs::read(scratch.segment(3)).unwrap(), b"x");
    assert_eq!(fs::read(scratch.segment(u64::MAX)).unwrap(), b"x");
    fs::remove_file(scratch.segment(u64::MAX)).unwrap();
    let report = verify(&scratch, last);
    assert_eq!(report.faults, [Fault { segment: 3, record: None, kind: FaultKind::Header }]);
}

#[test]
fn what_is_no_segment_is_left_alone() {
    let scratch = Scratch::new();
    let (last, _) = two_segments(&scratch);
    for name in ["007", "0", "x", "-1", "99999999999999999999999"] {
        fs::File::create(scratch.0.join("audit").join(name)).unwrap();
    }
    assert!(verify(&scratch, last).is_sound());
}
