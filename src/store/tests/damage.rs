//! What somebody can do who can write the store or the anchor, and must be noticed.

use super::*;

/// A store with two keys and a table, closed in good order.
fn furnished(base: &Path) {
    let store = create(base);
    store.begin_epoch(trail(1)).unwrap();
    let changes =
        [put(RecordKind::Key, 1, b"one"), put(RecordKind::Key, 2, b"two"), put(RecordKind::Table, 3, b"three")];
    store.commit(&changes, trail(2)).unwrap();
    store.close_clean(trail(3)).unwrap();
}

/// Flips each bit of a file in turn.
fn each_bit(path: &Path, check: impl FnMut(usize)) {
    each_nth_bit(path, 1, check);
}

fn each_nth_bit(path: &Path, step: usize, mut check: impl FnMut(usize)) {
    let bytes = std::fs::read(path).unwrap();
    for bit in (0..bytes.len() * 8).step_by(step) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        overwrite(path, &flipped);
        check(bit);
    }
    overwrite(path, &bytes);
}

fn overwrite(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    std::fs::File::create(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn every_flipped_bit_of_root_is_told_from_a_wrong_passphrase() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    let mut opened = 0;
    each_bit(&base.join("store/root"), |bit| match open(base, &read_only(base)) {
        Ok(store) => {
            // Bits of the header that say nothing of the slot.
            assert!(matches!(damage(&store)[..], [Found::Slots { unknown: 0, missing: 0 }]), "bit {bit}");
            opened += 1;
        }
        Err(StoreError::DamagedSlots { .. } | StoreError::Corrupt { .. }) => {}
        Err(StoreError::Version { .. }) => assert!((64..80).contains(&bit), "bit {bit}"),
        Err(error) => panic!("bit {bit}: {error:?}"),
    });
    // The count, the zeros and the digest of the whole.
    assert_eq!(opened, 8 * (2 + 4 + 32));
    assert!(damage(&open(base, &read_only(base)).unwrap()).is_empty());
}

#[test]
fn every_flipped_bit_of_the_anchor_is_noticed() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    let anchor = only(&base.join("anchors"), "").join("anchor");
    assert_eq!(std::fs::metadata(&anchor).unwrap().len(), 160);
    each_bit(&anchor, |bit| match open(base, &how(base)) {
        Err(StoreError::AnchorDamaged { .. }) => {}
        Err(StoreError::Version { .. }) => assert!((64..80).contains(&bit), "bit {bit}"),
        other => panic!("bit {bit}: {other:?}"),
    });
    overwrite(&anchor, b"");
    assert!(matches!(open(base, &how(base)), Err(StoreError::AnchorDamaged { .. })));
    let store = open(base, &accepting(base)).unwrap();
    assert_eq!(store.events(), [Found::AnchorAccepted { store: 4, anchor: None }]);
    drop(store);
    assert_eq!(open(base, &how(base)).unwrap().events(), []);
}

#[test]
fn every_flipped_bit_of_one_catalog_is_healed_from_the_other() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    for (name, step) in [("catalog.a", 1), ("catalog.b", 11)] {
        each_nth_bit(&base.join("store").join(name), step, |bit| {
            let store = open(base, &read_only(base)).unwrap();
            let [Found::CatalogCopy { copy, healed: false, .. }] = damage(&store)[..] else {
                panic!("{name} bit {bit}: {:?}", store.events());
            };
            assert_eq!(*copy, name);
            assert_eq!((content(&store, 1), store.sequence()), (b"one".to_vec(), 4));
        });
    }
    let whole = std::fs::read(base.join("store/catalog.b")).unwrap();
    for at in [0, 9, 20, 33, 50, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        overwrite(&base.join("store/catalog.b"), &bytes);
        let store = open(base, &how(base)).unwrap();
        assert!(matches!(damage(&store)[..], [Found::CatalogCopy { copy: "catalog.b", healed: true, .. }]));
        assert_eq!(std::fs::read(base.join("store/catalog.b")).unwrap(), whole);
    }
}

#[test]
fn a_bit_flipped_in_both_catalogs_mounts_nothing() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    let (a, b) = (base.join("store/catalog.a"), base.join("store/catalog.b"));
    each_bit(&a, |bit| {
        overwrite(&b, &std::fs::read(&a).unwrap());
        match open(base, &read_only(base)) {
            Err(StoreError::Corrupt { .. }) => {}
            Err(StoreError::Version { .. }) => assert!((64..80).contains(&bit), "bit {bit}"),
            other => panic!("bit {bit}: {other:?}"),
        }
    });
}

#[test]
fn a_catalog_cut_at_any_byte_is_healed_and_two_are_noticed() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    let (a, b) = (base.join("store/catalog.a"), base.join("store/catalog.b"));
    let whole = std::fs::read(&a).unwrap();
    let mut rolled_back = 0;
    for length in 0..whole.len() {
        overwrite(&a, &whole[..length]);
        let store = open(base, &read_only(base)).unwrap();
        assert_eq!((store.sequence(), damage(&store).len()), (4, 1), "{length}");
        drop(store);
        overwrite(&b, &whole[..length]);
        match open(base, &read_only(base)) {
            Err(StoreError::Corrupt { .. }) => {}
            // Cut between two entries: whole, and older.
            Err(StoreError::RolledBack { store, anchor: 4 }) => {
                rolled_back += 1;
                assert_eq!(store, rolled_back);
            }
            other => panic!("{length}: {other:?}"),
        }
        overwrite(&b, &whole);
    }
    assert_eq!(rolled_back, 3);
    // Bytes behind the end are damage as well.
    overwrite(&a, &[&whole[..], b"\0"].concat());
    assert_eq!(damage(&open(base, &how(base)).unwrap()).len(), 1);
    assert_eq!(std::fs::read(&a).unwrap(), whole);
}

#[test]
fn a_missing_catalog_is_written_anew_and_two_are_noticed() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    let whole = std::fs::read(base.join("store/catalog.a")).unwrap();
    std::fs::remove_file(base.join("store/catalog.a")).unwrap();
    std::os::unix::fs::symlink("catalog.b", base.join("store/catalog.a")).unwrap();
    assert_eq!(damage(&open(base, &how(base)).unwrap()).len(), 1);
    assert!(std::fs::symlink_metadata(base.join("store/catalog.a")).unwrap().is_file());
    assert_eq!(std::fs::read(base.join("store/catalog.a")).unwrap(), whole);
    std::fs::remove_file(base.join("store/catalog.a")).unwrap();
    std::fs::remove_file(base.join("store/catalog.b")).unwrap();
    assert!(matches!(open(base, &how(base)), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_damaged_record_concerns_its_object_alone() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    let file = base.join(format!("store/records/{}.1.1", "01".repeat(16)));
    let whole = std::fs::read(&file).unwrap();
    let store = open(base, &how(base)).unwrap();
    let check = |what: &str| {
        let read = store.read_record(RecordKind::Key, [1; 16]);
        assert!(matches!(&read, Err(StoreError::Tampered { file, .. }) if file.contains(".1.1")), "{what}: {read:?}");
        assert_eq!(content(&store, 2), b"two");
    };
    each_bit(&file, |bit| check(&format!("bit {bit}")));
    for length in 0..whole.len() {
        overwrite(&file, &whole[..length]);
        check("cut");
    }
    overwrite(&file, &[&whole[..], b"x"].concat());
    check("extended");
    // Another object's record, and another generation's, do not pass for it.
    overwrite(&file, &std::fs::read(base.join(format!("store/records/{}.1.1", "02".repeat(16)))).unwrap());
    check("swapped");
    std::fs::remove_file(&file).unwrap();
    check("missing");
    std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
    check("a link");
    std::fs::remove_file(&file).unwrap();
    // A sparse file of any length takes no memory.
    std::fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
    check("huge");
    std::fs::remove_file(&file).unwrap();
    drop(store);
    let store = open(base, &how(base)).unwrap();
    assert_eq!(damage(&store), [&Found::RecordMissing { kind: RecordKind::Key, id: [1; 16] }]);
    // The object can be made anew.
    assert_eq!(store.commit(&[put(RecordKind::Key, 1, b"new")], trail(9)).unwrap(), [2]);
    assert_eq!(content(&store, 1), b"new");
}

#[test]
fn an_old_generation_that_is_put_back_says_nothing() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    let name = |generation: u32| base.join(format!("store/records/{}.1.{generation}", "01".repeat(16)));
    let old = std::fs::read(name(1)).unwrap();
    let store = open(base, &how(base)).unwrap();
    store.commit(&[put(RecordKind::Key, 1, b"revoked")], trail(4)).unwrap();
    assert!(!name(1).exists());
    drop(store);
    overwrite(&name(1), &old);
    let store = open(base, &how(base)).unwrap();
    assert_eq!(damage(&store), [&Found::Leftovers { count: 1 }]);
    assert!(!name(1).exists());
    assert_eq!(content(&store, 1), b"revoked");
    overwrite(&name(2), &old);
    assert!(matches!(store.read_record(RecordKind::Key, [1; 16]), Err(StoreError::Tampered { .. })));
}

#[test]
fn leftovers_stay_while_the_listed_generation_is_missing() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    let name = |generation: u32| base.join(format!("store/records/{}.1.{generation}", "01".repeat(16)));
    std::fs::rename(name(1), name(2)).unwrap();
    std::fs::File::create(base.join("store/records/notes.txt")).unwrap();
    let store = open(base, &how(base)).unwrap();
    assert_eq!(damage(&store), [&Found::RecordMissing { kind: RecordKind::Key, id: [1; 16] }]);
    assert!(name(2).exists() && base.join("store/records/notes.txt").exists());
}

#[test]
fn an_old_store_is_noticed_by_its_anchor_until_it_is_accepted() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    let old = base.join("old");
    copy_tree(&base.join("store"), &old);
    let store = open(base, &how(base)).unwrap();
    store.begin_epoch(trail(5)).unwrap();
    store.commit(&[put(RecordKind::Key, 1, b"revoked")], trail(6)).unwrap();
    drop(store);

    // One old copy: the other one counts.
    std::fs::copy(old.join("catalog.a"), base.join("store/catalog.a")).unwrap();
    let store = open(base, &how(base)).unwrap();
    assert!(matches!(damage(&store)[..], [Found::CatalogCopy { copy: "catalog.a", healed: true, .. }]));
    assert_eq!(content(&store, 1), b"revoked");
    let now = store.sequence();
    drop(store);

    // Everything.
    std::fs::remove_dir_all(base.join("store")).unwrap();
    copy_tree(&old, &base.join("store"));
    for how in [how(base), read_only(base)] {
        let refused = open(base, &how);
        assert!(matches!(refused, Err(StoreError::RolledBack { store: 4, anchor }) if anchor == now), "{refused:?}");
    }
    // Looking at it read-only accepts nothing for good.
    drop(open(base, &Open { read_only: true, ..accepting(base) }).unwrap());
    assert!(matches!(open(base, &how(base)), Err(StoreError::RolledBack { .. })));

    let store = open(base, &accepting(base)).unwrap();
    assert_eq!(store.events(), [Found::AnchorAccepted { store: 4, anchor: Some(now) }]);
    assert_eq!(content(&store, 1), b"one");
    assert_eq!(store.begin_epoch(trail(4)).unwrap(), 3, "an epoch that this host has seen is not used again");
    store.close_clean(trail(4)).unwrap();
    drop(store);
    assert_eq!(open(base, &how(base)).unwrap().events(), []);
}

/// A fork: the same number of changes, or more, since the two parted.
#[test]
fn another_history_is_noticed_by_its_anchor() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    let (fork, elsewhere) = (base.join("fork"), base.join("elsewhere"));
    copy_tree(&base.join("store"), &fork.join("store"));
    let store = open(base, &how(base)).unwrap();
    store.commit(&[put(RecordKind::Key, 1, b"here")], trail(5)).unwrap();
    drop(store);
    let store = open(&fork, &how(&elsewhere)).unwrap();
    store.commit(&[put(RecordKind::Key, 1, b"there")], trail(5)).unwrap();
    store.commit(&[put(RecordKind::Key, 1, b"there")], trail(6)).unwrap();
    drop(store);

    // One copy of the fork: the anchor knows which history is this host's.
    std::fs::copy(fork.join("store/catalog.a"), base.join("store/catalog.a")).unwrap();
    let store = open(base, &read_only(base)).unwrap();
    assert_eq!((content(&store, 1), damage(&store).len()), (b"here".to_vec(), 1));
    drop(store);
    // Without an anchor nothing decides.
    let mut nowhere = read_only(base);
    nowhere.anchor_dir = base.join("nowhere");
    assert!(matches!(open(base, &nowhere), Err(StoreError::Corrupt { .. })));
    // The whole fork.
    std::fs::remove_dir_all(base.join("store")).unwrap();
    copy_tree(&fork.join("store"), &base.join("store"));
    assert!(matches!(open(base, &how(base)), Err(StoreError::RolledBack { store: 6, anchor: 5 })));
}

/// A copy that says less than it did, but whose rewritten log no longer reaches back to what the anchor has seen.
#[test]
fn a_store_that_another_host_took_further_is_newer() {
    let scratch = Scratch::new();
    let base = scratch.path();
    furnished(base);
    let elsewhere = base.join("elsewhere");
    let store = open(base, &how(&elsewhere)).unwrap();
    assert_eq!(store.events(), [Found::NoAnchor]);
    super::life::rewrite_catalog(&store);
    for _ in 0..20 {
        store.commit(&[put(RecordKind::Key, 1, b"there")], trail(5)).unwrap();
    }
    drop(store);
    let store = open(base, &how(base)).unwrap();
    assert_eq!((store.events(), content(&store, 1)), (&[][..], b"there".to_vec()));
}

#[test]
fn a_catalog_that_is_replaced_under_a_running_store_is_noticed() {
    for attack in 0..4 {
        let scratch = Scratch::new();
        let base = scratch.path();
        furnished(base);
        let a = base.join("store/catalog.a");
        let old = std::fs::read(&a).unwrap();
        let store = open(base, &how(base)).unwrap();
        store.commit(&[put(RecordKind::Key, 1, b"new")], trail(5)).unwrap();
        assert!(store.check_unchanged().is_ok());
        match attack {
            0 => std::fs::remove_file(&a).unwrap(),
            1 => {
                let same = std::fs::read(&a).unwrap();
                std::fs::remove_file(&a).unwrap();
                overwrite(&a, &same);
            }
            2 => overwrite(&a, &old),
            _ => {
                let mut bytes = std::fs::read(&a).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                overwrite(&a, &bytes);
            }
        }
        assert!(matches!(store.check_unchanged(), Err(StoreError::Tampered { .. })), "{attack}");
        let refused = store.commit(&[put(RecordKind::Key, 1, b"newer")], trail(6));
        assert!(matches!(refused, Err(StoreError::Poisoned)), "{attack}: {refused:?}");
        assert_eq!(content(&store, 1), b"new");
        drop(store);
        assert_eq!(content(&open(base, &how(base)).unwrap(), 1), b"new", "{attack}");
    }
}

#[test]
fn files_of_another_store_are_noticed() {
    let scratch = Scratch::new();
    let (one, two) = (scratch.path().join("one"), scratch.path().join("two"));
    for base in [&one, &two] {
        std::fs::create_dir(base).unwrap();
        furnished(base);
    }
    std::fs::copy(two.join("store/catalog.a"), one.join("store/catalog.a")).unwrap();
    assert_eq!(damage(&open(&one, &read_only(&one)).unwrap()).len(), 1);
    std::fs::copy(two.join("store/catalog.b"), one.join("store/catalog.b")).unwrap();
    assert!(matches!(open(&one, &read_only(&one)), Err(StoreError::Corrupt { .. })));
}
