//! The audit trail: its segments, and the events within.

use std::fs;

use kmsfs::audit::{Event, Trail, TrailReader, UserIdentity};
use kmsfs::store::record::Scratch;
use kmsfs::store::{DirStorage, Storage, TrailHead};

use super::engine::{Target, Verdict, run};
use super::sealing::{self, STORE, root_level};
use super::store::put;

/// Reads a trail whose first segment is `segment` and goes on writing it, which must be possible whatever it is.
fn read_and_go_on(scratch: &Scratch, segment: &[u8]) -> Verdict {
    let folder = scratch.path().join("audit");
    // A trail that is opened begins a segment each time.
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir(&folder).unwrap();
    put(&folder.join("1"), segment);
    let root = DirStorage::open(scratch.path()).unwrap().root();
    let reader = TrailReader::open(root.as_ref(), &root_level("trail"), STORE).unwrap();
    let report = reader.verify(TrailHead::default()).unwrap();
    let faults: Vec<String> = report.faults.iter().map(ToString::to_string).collect();
    let unread = reader.events().unwrap().filter_map(Result::err).map(|fault| fault.to_string());
    let unread: Vec<String> = unread.collect();

    let (trail, _) = Trail::open(root.as_ref(), &root_level("trail"), STORE, [9; 16], TrailHead::default()).unwrap();
    trail.append(&Event::new("Decrypt", UserIdentity::unix(7, 7, 7))).unwrap();
    let head = trail.close().unwrap();
    let last = reader.events().unwrap().last().unwrap().unwrap();
    assert_eq!((last.position.sequence, last.event.user_identity.uid), (head.sequence, 7));
    assert!(!report.is_sound() || report.unfinished.is_some() || reader.verify(head).unwrap().is_sound());

    match report.unfinished {
        None if unread.is_empty() && faults.is_empty() => Verdict::Accepted,
        _ => Verdict::Refused(format!("{faults:?} {unread:?}")),
    }
}

fn event() -> Event {
    let event = Event::new("Decrypt", UserIdentity::unix(61_001, 61_001, 4242)).error("AccessDenied", "no statement");
    event.resource("AWS::KMS::Key", Some("63".repeat(16)), Some("orders".to_owned())).parameter("item", "a\u{fffd}ff")
}

fn text_of(event: &Event) -> Vec<u8> {
    serde_json::to_vec(event).unwrap()
}

#[test]
fn segments_of_the_trail() {
    let scratch = Scratch::new().unwrap();
    let words: &[&[u8]] = &[b"KMSFSAUD", &[0; 4], &[28, 0, 0, 0], &[0x1c, 0, 1, 0]];
    let target = Target { name: "trail", longest: 8192, words, json: false };
    let valid = || {
        let event = text_of(&event());
        let mut spare = sealing::trail(&[&event, &event]);
        spare.extend_from_slice(&[0; 300]);
        vec![("valid-three", sealing::trail(&[&event, &event, &event])), ("valid-space-behind", spare)]
    };
    run(&target, valid, |input| read_and_go_on(&scratch, input));
}

#[test]
fn events_of_the_trail() {
    let scratch = Scratch::new().unwrap();
    let words: &[&[u8]] = &[b"{", b"}", b"\"", b"null", b"1e400", b"\\ud800"];
    let target = Target { name: "trail-event", longest: 70_000, words, json: true };
    let valid = || {
        let full = event().detail("policyGeneration", 7).parameter("list", vec![1, 2]);
        let plain = Event::new("Mount", UserIdentity::daemon(0, 0, 1));
        vec![("valid-denial", text_of(&full)), ("valid-mount", text_of(&plain))]
    };
    run(&target, valid, |input| read_and_go_on(&scratch, &sealing::trail(&[&text_of(&event()), input])));
}
