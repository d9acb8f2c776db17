//! A crash, or a failing disk, at any call.

use std::io::Write;

use super::*;
use crate::store::record::{Done, Unflushed};

const WAYS: [Unflushed; 5] =
    [Unflushed::Keep, Unflushed::Drop, Unflushed::Some(1), Unflushed::Some(2), Unflushed::Some(3)];

/// What a test looks at of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    keys: Vec<(u8, u64, Vec<u8>)>,
    slots: Vec<String>,
    epoch: u64,
    trail: u64,
}

fn seen(store: &Store) -> Seen {
    let keys = store.records(RecordKind::Key).into_iter();
    let keys = keys.map(|(id, generation)| (id[0], generation, content(store, id[0]))).collect();
    let mut slots: Vec<String> = store.slots().unwrap().into_iter().map(|slot| slot.label).collect();
    slots.sort();
    Seen { keys, slots, epoch: store.epoch(), trail: store.trail_head().sequence }
}

/// A store with keys 1 and 2, not open.
fn prepared() -> Scratch {
    let scratch = Scratch::new();
    let store = create(scratch.path());
    store.commit(&[put(RecordKind::Key, 1, b"old one"), put(RecordKind::Key, 2, b"old two")], trail(1)).unwrap();
    scratch
}

/// Runs a change under a recording, crashes at every call in every way, and opens what is left: it must be one of the
/// states that the change goes through, the last one once the change has returned, and it must not look tampered with.
fn crash_everywhere(change: impl Fn(&Store) -> Result<(), StoreError>, more_states: usize) {
    let scratch = prepared();
    let base = scratch.path();
    let recording = record(base);
    let store = open_recorded(&recording, base);
    let (before, opened) = (seen(&store), recording.len());
    change(&store).unwrap();
    let after = seen(&store);
    drop(store);
    let mut states = std::collections::BTreeSet::new();
    let mut rebuilder = recording.rebuilder();
    for prefix in recording.prefixes() {
        rebuilder.advance(prefix).unwrap();
        for way in WAYS {
            let crashed = Scratch::new();
            rebuilder.make(way, crashed.path()).unwrap();
            let there = crashed.path();
            let store = open(there, &how(there)).unwrap_or_else(|error| panic!("{prefix} {way:?}: {error}"));
            let now = seen(&store);
            let allowed = |found: &&&Found| {
                matches!(found, Found::Leftovers { .. }) || matches!(found, Found::CatalogCopy { healed: true, .. })
            };
            let wrong: Vec<_> = damage(&store).into_iter().filter(|found| !allowed(&found)).cloned().collect();
            assert_eq!(wrong, [], "{prefix} {way:?}");
            states.insert(format!("{now:?}"));
            if prefix <= opened {
                assert_eq!(now, before, "{prefix} {way:?}: before the change");
            }
            if prefix == recording.len() {
                assert_eq!(now, after, "{way:?}: after the change");
            }
            // It goes on from there, and the host believes it.
            store.commit(&[put(RecordKind::Key, 3, b"further")], trail(9)).unwrap();
            drop(store);
            let store = open(there, &how(there)).unwrap();
            assert_eq!((damage(&store), content(&store, 3)), (vec![], b"further".to_vec()), "{prefix} {way:?}");
        }
    }
    assert_eq!(states.len(), 2 + more_states, "{states:#?}");
}

fn replace_two(store: &Store) -> Result<(), StoreError> {
    let gone = Change { kind: RecordKind::Key, id: [2; 16], content: None };
    store.commit(&[put(RecordKind::Key, 1, b"new one"), gone, put(RecordKind::Key, 4, b"four")], trail(2)).map(drop)
}

#[test]
fn a_crash_during_a_commit_leaves_all_of_it_or_nothing() {
    crash_everywhere(replace_two, 0);
}

#[test]
fn a_crash_while_the_catalog_is_rewritten_loses_nothing() {
    crash_everywhere(
        |store| {
            super::life::rewrite_catalog(store);
            let before = store.sequence();
            for _ in 0..9 {
                store.commit(&[], trail(1))?;
            }
            assert!(store.sequence() > before + 9, "it was rewritten");
            replace_two(store)
        },
        0,
    );
}

#[test]
fn a_crash_while_an_epoch_begins_or_ends_leaves_either() {
    crash_everywhere(|store| store.begin_epoch(trail(2)).map(drop), 0);
    crash_everywhere(
        |store| {
            store.begin_epoch(trail(2))?;
            store.close_clean(trail(3))
        },
        1,
    );
}

#[test]
fn a_crash_while_slots_change_leaves_either() {
    crash_everywhere(|store| store.add_slot(&key_file(1), &key_file(2), Argon2Params::FLOOR, "second").map(drop), 0);
    crash_everywhere(
        |store| {
            let id = store.add_slot(&key_file(1), &key_file(2), Argon2Params::FLOOR, "second")?;
            store.remove_slot(id)
        },
        0,
    );
}

/// A store that needs all that an opening can mend: a torn copy, a leftover, an anchor that is behind.
fn neglected() -> (Scratch, Seen) {
    let scratch = prepared();
    let base = scratch.path();
    let anchor = only(&base.join("anchors"), "").join("anchor");
    let old = std::fs::read(&anchor).unwrap();
    let store = open(base, &how(base)).unwrap();
    replace_two(&store).unwrap();
    let state = seen(&store);
    drop(store);
    std::fs::File::options().write(true).open(base.join("store/catalog.b")).unwrap().set_len(500).unwrap();
    std::fs::File::create(base.join(format!("store/records/{}.1.1", "07".repeat(16)))).unwrap();
    std::fs::File::create(&anchor).unwrap().write_all(&old).unwrap();
    (scratch, state)
}

#[test]
fn a_crash_while_a_store_is_mended_leaves_it_to_be_mended() {
    let (scratch, state) = neglected();
    let recording = record(scratch.path());
    drop(open_recorded(&recording, scratch.path()));
    assert!(recording.len() > 8);
    let mut rebuilder = recording.rebuilder();
    for prefix in recording.prefixes() {
        rebuilder.advance(prefix).unwrap();
        for way in WAYS {
            let crashed = Scratch::new();
            rebuilder.make(way, crashed.path()).unwrap();
            let there = crashed.path();
            let store = open(there, &how(there)).unwrap_or_else(|error| panic!("{prefix} {way:?}: {error}"));
            assert_eq!(seen(&store), state, "{prefix} {way:?}");
            drop(store);
            assert!(damage(&open(there, &how(there)).unwrap()).is_empty(), "{prefix} {way:?}");
        }
    }
}

#[test]
fn an_opening_that_fails_at_any_call_can_be_tried_again() {
    for nth in 0.. {
        let (scratch, state) = neglected();
        let base = scratch.path();
        let recording = record(base);
        recording.fail_nth(nth, rustix::io::Errno::NOSPC.raw_os_error(), Done::Half);
        let (store, anchors) = halves(&recording);
        let opened = Store::open_in(store, Some(anchors.as_ref()), &key_file(1), &how(base));
        let reached = recording.attempts() > nth;
        drop(opened);
        assert_eq!(seen(&open(base, &how(base)).unwrap()), state, "{nth}");
        if !reached {
            assert!(nth > 8);
            return;
        }
    }
}

/// Every call of a commit fails in turn, alone or with all that follow, whole or half done.
#[test]
fn a_commit_that_fails_at_any_call_leaves_the_old_state_in_force() {
    let mut poisoned = 0;
    for (errno, part, all) in [
        (rustix::io::Errno::NOSPC, Done::Nothing, false),
        (rustix::io::Errno::NOSPC, Done::Half, false),
        (rustix::io::Errno::IO, Done::All, false),
        (rustix::io::Errno::NOSPC, Done::Half, true),
        (rustix::io::Errno::IO, Done::All, true),
    ] {
        for nth in 0.. {
            let scratch = prepared();
            let base = scratch.path();
            let recording = record(base);
            let store = open_recorded(&recording, base);
            let (before, start) = (seen(&store), recording.attempts());
            if all {
                recording.fail_from(start + nth, errno.raw_os_error(), part);
            } else {
                recording.fail_nth(start + nth, errno.raw_os_error(), part);
            }
            let done = replace_two(&store);
            let tried = recording.attempts() - start;
            recording.heal();
            let what = format!("{errno:?} {part:?} all {all} at {nth}");
            let expected = if done.is_ok() { seen(&store) } else { before.clone() };
            assert_eq!(seen(&store), expected, "{what}: memory");
            let again = if done.is_ok() { Ok(()) } else { replace_two(&store) };
            let after = seen(&store);
            drop(store);
            let reopened = open(base, &how(base)).unwrap_or_else(|error| panic!("{what}: {error}"));
            let now = seen(&reopened);
            match again {
                Ok(()) => assert_eq!(now, after, "{what}: the disk has what memory had"),
                Err(StoreError::Poisoned) => {
                    poisoned += 1;
                    let new = (1, 2, b"new one".to_vec());
                    assert!(now == before || now.keys[0] == new, "{what}: {now:?}");
                }
                Err(error) => panic!("{what}: {error:?}"),
            }
            let wrong: Vec<_> =
                damage(&reopened).into_iter().filter(|found| !matches!(found, Found::Leftovers { .. })).collect();
            assert!(wrong.is_empty() || matches!(again, Err(StoreError::Poisoned)), "{what}: {wrong:?}");
            if nth >= tried {
                assert!(nth > 12, "{what}: all calls were made to fail");
                break;
            }
        }
    }
    assert!(poisoned > 0, "a disk that stays broken poisons the store");
}

/// The same for the rewriting of the catalog: the commit before it stands.
#[test]
fn a_rewriting_that_fails_at_any_call_loses_no_commit() {
    for nth in 0.. {
        let scratch = prepared();
        let base = scratch.path();
        let recording = record(base);
        let store = open_recorded(&recording, base);
        super::life::rewrite_catalog(&store);
        let mut sequence = store.sequence();
        // Up to the commit behind which the log is rewritten.
        let before = loop {
            let attempts = recording.attempts();
            store.commit(&[], trail(2)).unwrap();
            if store.sequence() != sequence + 1 {
                break attempts;
            }
            sequence += 1;
        };
        drop((store, recording));
        let scratch = prepared();
        let base = scratch.path();
        let recording = record(base);
        let store = open_recorded(&recording, base);
        super::life::rewrite_catalog(&store);
        while recording.attempts() < before {
            store.commit(&[], trail(2)).unwrap();
        }
        assert_eq!(recording.attempts(), before);
        // Behind the appends, their flushes and the anchor.
        recording.fail_nth(before + 9 + nth, rustix::io::Errno::NOSPC.raw_os_error(), Done::Half);
        let done = store.commit(&[], trail(7));
        let reached = recording.attempts() > before + 9 + nth;
        recording.heal();
        if !reached {
            assert!(nth > 6, "all calls were made to fail");
            return;
        }
        let expected = if done.is_ok() { 7 } else { 2 };
        assert_eq!(store.trail_head().sequence, expected, "{nth}");
        let next = store.commit(&[], trail(8));
        assert!(matches!(next, Ok(_) | Err(StoreError::Poisoned)), "{nth}: {next:?}");
        let expected = if next.is_ok() { 8 } else { expected };
        drop(store);
        let store = open(base, &how(base)).unwrap_or_else(|error| panic!("{nth}: {error}"));
        assert_eq!(store.trail_head().sequence, expected, "{nth}");
    }
}

#[test]
fn slots_that_fail_to_change_at_any_call_leave_a_store_that_opens() {
    for nth in 0.. {
        let scratch = prepared();
        let base = scratch.path();
        let recording = record(base);
        let store = open_recorded(&recording, base);
        let start = recording.attempts();
        recording.fail_nth(start + nth, rustix::io::Errno::NOSPC.raw_os_error(), Done::Half);
        let added = store.add_slot(&key_file(1), &key_file(2), Argon2Params::FLOOR, "second");
        let reached = recording.attempts() > start + nth;
        recording.heal();
        // Another try in the same process.
        let third = store.add_slot(&key_file(1), &key_file(3), Argon2Params::FLOOR, "third");
        assert!(matches!(third, Ok(_) | Err(StoreError::Poisoned)), "{nth}: {third:?}");
        drop(store);
        let store = open(base, &how(base)).unwrap_or_else(|error| panic!("{nth}: {error}"));
        let labels: Vec<_> = store.slots().unwrap().into_iter().map(|slot| (slot.label, slot.state)).collect();
        assert!(labels.iter().all(|(_, state)| *state == crate::store::SlotState::Intact), "{nth}: {labels:?}");
        drop(store);
        for (byte, done) in [(2, added.is_ok()), (3, third.is_ok())] {
            let opened = Store::open(&base.join("store"), &key_file(byte), &how(base));
            assert!(opened.is_ok() || !done, "{nth}: {opened:?}");
        }
        if !reached {
            assert!(nth > 10 && added.is_ok());
            return;
        }
    }
}

/// What a killed mount has written is durable before the next one counts on it; a mount that was closed has seen to that.
#[test]
fn a_mount_after_a_kill_begins_with_a_flush() {
    for killed in [true, false] {
        let scratch = prepared();
        let base = scratch.path();
        let recording = record(base);
        let store = open_recorded(&recording, base);
        store.begin_epoch(trail(2)).unwrap();
        let file = store.root_dir().create_file(OsStr::new("written"), 0o600).unwrap();
        file.write_all_at(b"by the first mount", 0).unwrap();
        if !killed {
            store.close_clean(trail(2)).unwrap();
        }
        drop(store);
        let store = open_recorded(&recording, base);
        store.begin_epoch(trail(3)).unwrap();
        drop(store);
        let crashed = Scratch::new();
        recording.rebuild(recording.len(), Unflushed::Drop, crashed.path()).unwrap();
        let found = std::fs::read(crashed.path().join("store/written")).unwrap();
        assert_eq!(found == b"by the first mount", killed);
    }
}
