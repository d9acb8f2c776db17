//! What is written is there again; who else may open the store; epochs; snapshots.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::store::record::Done;

#[test]
fn records_survive_and_generations_count() {
    let scratch = Scratch::new();
    let store = create(scratch.path());
    assert_eq!(store.events(), [Found::NoAnchor]);
    let big = vec![b'x'; super::super::MAX_RECORD_LEN];
    let changes = [put(RecordKind::Key, 1, b"one"), put(RecordKind::Table, 1, &big)];
    assert_eq!(store.commit(&changes, trail(1)).unwrap(), [1, 1]);
    assert_eq!(store.commit(&[put(RecordKind::Key, 1, b"two")], trail(2)).unwrap(), [2]);
    assert_eq!(store.commit(&[put(RecordKind::Key, 2, b"")], trail(3)).unwrap(), [1]);
    let gone = Change { kind: RecordKind::Key, id: [2; 16], content: None };
    assert_eq!(store.commit(&[gone], trail(4)).unwrap(), [2]);
    assert!(matches!(store.commit(&[gone], trail(4)), Err(StoreError::NoSuchRecord { kind: 1 })));
    assert_eq!(store.commit(&[put(RecordKind::Key, 2, b"again")], trail(5)).unwrap(), [3]);
    let (id, sequence) = (store.id(), store.sequence());
    drop(store);

    let store = open(scratch.path(), &how(scratch.path())).unwrap();
    assert_eq!(store.events(), []);
    assert_eq!((store.id(), store.sequence(), store.trail_head()), (id, sequence, trail(5)));
    assert_eq!(store.records(RecordKind::Key), [([1; 16], 2), ([2; 16], 3)]);
    assert_eq!((content(&store, 1), content(&store, 2)), (b"two".to_vec(), b"again".to_vec()));
    assert_eq!(store.read_record(RecordKind::Table, [1; 16]).unwrap().as_slice(), big);
    assert_eq!(store.records(RecordKind::StorePolicy), []);
    assert_eq!(std::fs::read_dir(scratch.path().join("store/records")).unwrap().count(), 3, "old generations stay");
}

#[test]
fn what_cannot_be_committed_changes_nothing() {
    let scratch = Scratch::new();
    let store = create(scratch.path());
    let before = store.sequence();
    let twice = [put(RecordKind::Key, 1, b"a"), put(RecordKind::Key, 1, b"b")];
    assert!(matches!(store.commit(&twice, trail(1)), Err(StoreError::Duplicate)));
    let long = vec![0; super::super::MAX_RECORD_LEN + 1];
    let changes = [put(RecordKind::Key, 1, b"a"), put(RecordKind::Key, 2, &long)];
    assert!(matches!(store.commit(&changes, trail(1)), Err(StoreError::TooLarge { .. })));
    assert_eq!((store.sequence(), store.records(RecordKind::Key)), (before, vec![]));
    assert_eq!(std::fs::read_dir(scratch.path().join("store/records")).unwrap().count(), 0);
}

#[test]
fn only_an_empty_directory_becomes_a_store() {
    let scratch = Scratch::new();
    std::fs::create_dir_all(scratch.path().join("store/lost+found")).unwrap();
    drop(create(scratch.path()));
    let again =
        Store::create(&scratch.path().join("store"), &key_file(1), Argon2Params::FLOOR, "first", &how(scratch.path()));
    assert!(matches!(&again, Err(StoreError::NotEmpty { path }) if path.ends_with("/store")), "{again:?}");
    for (name, mode) in [("", 0o700), ("root", 0o600), ("catalog.a", 0o600), ("records", 0o700), ("audit", 0o700)] {
        let path = scratch.path().join("store").join(name);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    std::fs::create_dir(scratch.path().join("other")).unwrap();
    std::fs::File::create(scratch.path().join("other/file")).unwrap();
    let other = scratch.path().join("other");
    let refused = Store::create(&other, &key_file(1), Argon2Params::FLOOR, "", &how(scratch.path()));
    assert!(matches!(refused, Err(StoreError::NotEmpty { .. })));
    assert!(matches!(
        Store::open(&other, &key_file(1), &how(scratch.path())),
        Err(StoreError::NotAStore { path }) if path.ends_with("/other")
    ));
    assert_eq!(std::fs::read_dir(other).unwrap().count(), 1, "nothing is left in a directory that was refused");
}

#[test]
fn a_store_that_could_not_be_made_leaves_an_empty_directory() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path().join("store")).unwrap();
    std::fs::create_dir(scratch.path().join("anchors")).unwrap();
    for nth in 0.. {
        let recording = record(scratch.path());
        let (dir, anchors) = halves(&recording);
        recording.fail_nth(nth, rustix::io::Errno::NOSPC.raw_os_error(), Done::Nothing);
        let made = Store::create_in(&dir, Some(anchors.as_ref()), &key_file(1), slot("a"), &how(scratch.path()));
        if let Ok(store) = made {
            // The lock's text and the spare space are what a store can do without; then come calls that were not made
            // to fail.
            if recording.attempts() > nth {
                assert!(nth < 5 || !scratch.path().join("store/spare").exists(), "{nth}");
                drop(store);
                std::fs::remove_dir_all(scratch.path().join("store")).unwrap();
                std::fs::create_dir(scratch.path().join("store")).unwrap();
                continue;
            }
            assert!(nth > 20);
            return;
        }
        let left: Vec<_> = std::fs::read_dir(scratch.path().join("store")).unwrap().collect();
        assert!(left.is_empty(), "{nth}: {left:?}");
    }
}

#[test]
fn one_process_writes_or_several_read() {
    let scratch = Scratch::new();
    let base = scratch.path();
    let store = create(base);
    for how in [how(base), read_only(base)] {
        let second = open(base, &how);
        assert!(
            matches!(&second, Err(StoreError::Busy { holder }) if holder == "4711 testhost /mnt/kms"),
            "{second:?}"
        );
    }
    drop(store);
    let (one, two) = (open(base, &read_only(base)).unwrap(), open(base, &read_only(base)).unwrap());
    assert!(matches!(open(base, &how(base)), Err(StoreError::Busy { .. })));
    assert!(matches!(one.commit(&[], trail(1)), Err(StoreError::ReadOnly)));
    assert!(matches!(two.begin_epoch(trail(1)), Err(StoreError::ReadOnly)));
    assert!(one.close_clean(trail(1)).is_ok());
}

#[test]
fn the_holders_text_does_no_harm_to_a_terminal() {
    let scratch = Scratch::new();
    let store = create(scratch.path());
    std::fs::File::create(scratch.path().join("store/lock")).unwrap().write_all(b"1\x1b[2Jx\n").unwrap();
    let told = open(scratch.path(), &how(scratch.path())).unwrap_err().to_string();
    assert_eq!(told, "the store is in use by 1?[2Jx: unmount it there first");
    drop(store);
}

#[test]
fn reading_writes_nothing() {
    let scratch = Scratch::new();
    let base = scratch.path();
    let store = create(base);
    store.commit(&[put(RecordKind::Key, 1, b"one")], trail(1)).unwrap();
    drop(store);
    // A damaged copy, a leftover and a missing anchor are what a writable opening would see to.
    std::fs::File::options().write(true).open(base.join("store/catalog.a")).unwrap().set_len(40).unwrap();
    std::fs::File::create(base.join(format!("store/records/{}.1.9", "02".repeat(16)))).unwrap();
    std::fs::remove_dir_all(base.join("anchors")).unwrap();
    std::fs::create_dir(base.join("anchors")).unwrap();
    let recording = record(base);
    let (dir, anchors) = halves(&recording);
    let store = Store::open_in(dir, Some(anchors.as_ref()), &key_file(1), &read_only(base)).unwrap();
    assert_eq!(content(&store, 1), b"one");
    assert_eq!(store.events().len(), 3, "{:?}", store.events());
    assert!(recording.is_empty(), "{:?}", recording.calls());
}

#[test]
fn an_epoch_that_was_not_closed_stays_unclean() {
    let scratch = Scratch::new();
    let base = scratch.path();
    let store = create(base);
    assert_eq!((store.epoch(), store.begin_epoch(trail(1)).unwrap()), (0, 1));
    assert_eq!(store.begin_epoch(trail(1)).unwrap(), 1, "a process has one epoch");
    assert!(!store.unclean_epoch(1), "one's own epoch is not unclean");
    store.close_clean(trail(1)).unwrap();
    assert!(matches!(store.commit(&[], trail(1)), Err(StoreError::Closed)));
    drop(store);

    let store = open(base, &how(base)).unwrap();
    assert_eq!((store.events(), store.begin_epoch(trail(1)).unwrap()), (&[][..], 2));
    drop(store);
    let store = open(base, &read_only(base)).unwrap();
    assert_eq!(store.events(), [Found::UncleanStop { epoch: 2 }]);
    assert!(store.unclean_epoch(2) && !store.unclean_epoch(1));
    drop(store);
    // Work offline leaves the mark as it is.
    let store = open(base, &how(base)).unwrap();
    store.commit(&[], trail(2)).unwrap();
    store.close_clean(trail(2)).unwrap();
    drop(store);
    let store = open(base, &how(base)).unwrap();
    assert_eq!(store.begin_epoch(trail(1)).unwrap(), 3);
    drop(store);
    for epoch in 4..8 {
        let store = open(base, &how(base)).unwrap();
        assert_eq!(store.begin_epoch(trail(1)).unwrap(), epoch);
        rewrite_catalog(&store);
        if epoch == 5 {
            store.close_clean(trail(1)).unwrap();
        }
    }
    let store = open(base, &how(base)).unwrap();
    assert_eq!(store.begin_epoch(trail(1)).unwrap(), 8);
    let unclean: Vec<u64> = (0..12).filter(|epoch| store.unclean_epoch(*epoch)).collect();
    assert_eq!(unclean, [2, 3, 4, 6, 7]);
    assert_eq!(store.live().state.unclean, [(2, 4), (6, 7)]);
}

/// Makes the next commit rewrite the log, which a store does by itself at 1 MiB.
pub(super) fn rewrite_catalog(store: &Store) {
    store.engine.as_ref().unwrap().lock().unwrap().catalog.snapshot_floor = 0;
}

#[test]
fn a_rewritten_catalog_says_the_same() {
    let scratch = Scratch::new();
    let base = scratch.path();
    let store = create(base);
    rewrite_catalog(&store);
    let mut longest = 0;
    for round in 0..40_u8 {
        store
            .commit(&[put(RecordKind::Key, round % 7, &[round]), put(RecordKind::Grant, round, b"")], trail(1))
            .unwrap();
        if round % 3 == 0 {
            let gone = Change { kind: RecordKind::Grant, id: [round; 16], content: None };
            store.commit(&[gone], trail(u64::from(round))).unwrap();
        }
        longest = longest.max(std::fs::metadata(base.join("store/catalog.a")).unwrap().len());
    }
    let length = std::fs::metadata(base.join("store/catalog.a")).unwrap().len();
    assert!(length < longest, "it was rewritten");
    assert_eq!(
        std::fs::read(base.join("store/catalog.a")).unwrap(),
        std::fs::read(base.join("store/catalog.b")).unwrap()
    );
    let mut state = store.live().state.clone();
    state.objects.retain(|_, object| object.digest.is_some());
    drop(store);
    let store = open(base, &how(base)).unwrap();
    assert_eq!(damage(&store), Vec::<&Found>::new());
    let mut again = store.live().state.clone();
    again.objects.retain(|_, object| object.digest.is_some());
    assert_eq!(again, state);
    assert_eq!(content(&store, 3), [38]);
}

/// A commit costs what it changes, not what the store holds.
#[test]
fn a_commit_makes_as_many_calls_in_a_large_store_as_in_a_small_one() {
    let scratch = Scratch::new();
    let base = scratch.path();
    drop(create(base));
    let recording = record(base);
    let store = open_recorded(&recording, base);
    let count = |id: u8| {
        let before = recording.attempts();
        store.commit(&[put(RecordKind::Key, id, b"x")], trail(1)).unwrap();
        recording.attempts() - before
    };
    let small = count(1);
    let ids: Vec<[u8; 16]> = (0..3000_u128).map(|id| (id << 32 | 0xff).to_le_bytes()).collect();
    let many: Vec<Change<'_>> =
        ids.iter().map(|id| Change { kind: RecordKind::Grant, id: *id, content: Some(b"grant") }).collect();
    store.commit(&many, trail(1)).unwrap();
    assert_eq!(count(2), small);
    assert_eq!(store.records(RecordKind::Grant).len(), 3000);
    let length = || std::fs::metadata(base.join("store/catalog.a")).unwrap().len();
    let before = length();
    count(3);
    assert!(length() - before < 1024, "{}", length() - before);
}

#[test]
fn stores_can_be_shared_between_threads() {
    let scratch = Scratch::new();
    let store = create(scratch.path());
    std::thread::scope(|scope| {
        for id in 0..4_u8 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..20_u8 {
                    store.commit(&[put(RecordKind::Key, id, &[round])], trail(1)).unwrap();
                    assert_eq!(content(store, id), [round]);
                    // Another thread's record is always one that was committed.
                    let other = store.read_record(RecordKind::Key, [(id + 1) % 4; 16]);
                    assert!(matches!(other, Ok(_) | Err(StoreError::NoSuchRecord { .. })), "{other:?}");
                }
            });
        }
    });
    assert_eq!(store.records(RecordKind::Key), [0, 1, 2, 3].map(|id| ([id; 16], 20)));
}
