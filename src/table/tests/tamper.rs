//! Whoever can write the store, without its keys: every change is noticed, and never gives other plaintext.

use std::fs;

use proptest::prelude::*;

use super::*;

/// Whether an error says that something is not as this table wrote it.
fn is_noticed(error: &TableError) -> bool {
    matches!(error, TableError::Tampered { .. } | TableError::Version { .. } | TableError::NoKey { .. })
}

fn noticed(mount: &Mount, name: &str, what: &str) {
    match mount.read_name(name) {
        Err(error) => assert!(is_noticed(&error), "{what}: {error:?}"),
        Ok(text) => panic!("{what}: {} bytes were read", text.len()),
    }
}

/// A store that was closed in good order, and mounted again.
fn closed(items: &[(&str, Vec<u8>)]) -> (Scratch, Mount) {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    for (name, content) in items {
        mount.make(name, content);
    }
    mount.journal.close().unwrap();
    drop(mount);
    let mount = Mount::open(&root, 2, &[]);
    (scratch, mount)
}

#[test]
fn every_bit_of_a_small_item_counts() {
    let (scratch, mount) = closed(&[("item", pattern(40, 1))]);
    let path = mount.backing(scratch.path(), "item");
    let good = fs::read(&path).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        overwrite(&path, &bad);
        noticed(&mount, "item", &format!("bit {bit}"));
    }
    overwrite(&path, &good);
    assert_eq!(mount.read_name("item").unwrap(), pattern(40, 1));
}

#[test]
fn every_bit_of_a_large_item_counts() {
    let (scratch, mount) = closed(&[("item", pattern(4100, 1))]);
    let path = mount.backing(scratch.path(), "item");
    let good = fs::read(&path).unwrap();
    // Room for entries that no block has is not read.
    let unused = 512 + 2 * 32..4096;
    for bit in (0..good.len() * 8).filter(|bit| !unused.contains(&(bit / 8))) {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        overwrite(&path, &bad);
        noticed(&mount, "item", &format!("bit {bit}"));
    }
    for at in unused {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        overwrite(&path, &bad);
        assert_eq!(mount.read_name("item").unwrap(), pattern(4100, 1));
    }
}

#[test]
fn every_cut_and_extension_is_noticed() {
    for size in [40, 4100] {
        let (scratch, mount) = closed(&[("item", pattern(size, 1))]);
        let path = mount.backing(scratch.path(), "item");
        let good = fs::read(&path).unwrap();
        for length in (0..good.len()).chain(good.len() + 1..good.len() + 600).chain([12_288, 500_000]) {
            let mut bad = good.clone();
            bad.resize(length, 0);
            overwrite(&path, &bad);
            noticed(&mount, "item", &format!("{size} bytes in {length}"));
        }
    }
}

#[test]
fn blocks_entries_and_headers_do_not_change_places() {
    let size = 120 * 4096;
    let (scratch, mount) = closed(&[("one", pattern(size, 1)), ("two", pattern(size, 2))]);
    let [path, other] = ["one", "two"].map(|name| mount.backing(scratch.path(), name));
    let (good, second) = (fs::read(&path).unwrap(), fs::read(&other).unwrap());
    let attack = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bad = good.clone();
        change(&mut bad);
        assert_ne!(bad, good, "{what} changes nothing");
        overwrite(&path, &bad);
        noticed(&mount, "one", what);
    };
    let swap = |bytes: &mut Vec<u8>, a: usize, b: usize, length: usize| {
        for index in 0..length {
            bytes.swap(a + index, b + index);
        }
    };
    attack("swapped data", &|bytes| swap(bytes, 4096, 8192, 4096));
    attack("swapped entries", &|bytes| swap(bytes, 512, 544, 32));
    attack("swapped blocks", &|bytes| {
        swap(bytes, 4096, 8192, 4096);
        swap(bytes, 512, 544, 32);
    });
    attack("swapped blocks of two groups", &|bytes| {
        swap(bytes, 4096, 114 * 4096, 4096);
        swap(bytes, 512, 113 * 4096, 32);
    });
    attack("swapped pages", &|bytes| swap(bytes, 113 * 4096, 4096, 4096));
    attack("zeroed data", &|bytes| bytes[4096..8192].fill(0));
    attack("a zeroed entry", &|bytes| bytes[512..544].fill(0));
    attack("a zeroed block", &|bytes| {
        bytes[4096..8192].fill(0);
        bytes[512..544].fill(0);
    });
    attack("a zeroed page of entries", &|bytes| bytes[113 * 4096..114 * 4096].fill(0));
    attack("another item's header", &|bytes| bytes[..512].copy_from_slice(&second[..512]));
    attack("another item's sealed state", &|bytes| bytes[88..372].copy_from_slice(&second[88..372]));
    attack("another item's block", &|bytes| {
        bytes[4096..8192].copy_from_slice(&second[4096..8192]);
        bytes[512..544].copy_from_slice(&second[512..544]);
    });
    attack("another item", &|bytes| bytes.copy_from_slice(&second));
    overwrite(&path, &good);
    assert_eq!(mount.read_name("one").unwrap(), pattern(size, 1));
    let middle = mount.backing(scratch.path(), "three");
    fs::rename(&path, &middle).unwrap();
    noticed(&mount, "three", "another name");
    fs::rename(&other, &path).unwrap();
    fs::rename(&middle, &other).unwrap();
    noticed(&mount, "one", "swapped names");
    noticed(&mount, "two", "swapped names");
}

#[test]
fn a_hole_is_no_data_and_data_no_hole() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    let item = mount.make("item", &pattern(8192, 1));
    item.write(&mount.seal, b"far", 5 * 4096).unwrap();
    mount.journal.close().unwrap();
    drop((item, mount));
    let mount = Mount::open(&root, 2, &[]);
    let path = mount.backing(scratch.path(), "item");
    let good = fs::read(&path).unwrap();
    assert!(good[3 * 4096..6 * 4096].iter().all(|byte| *byte == 0), "a hole has no data");
    // What stands in a hole's page does not count.
    let mut other = good.clone();
    other[3 * 4096..4 * 4096].fill(7);
    overwrite(&path, &other);
    let text = mount.read_name("item").unwrap();
    assert_eq!((&text[..8192], &text[8192..20480]), (&pattern(8192, 1)[..], &[0; 12288][..]));
    for (from, to, what) in
        [(2, 1, "a hole's entry for data"), (2, 3, "another hole's entry"), (1, 2, "data's for a hole")]
    {
        let mut bad = good.clone();
        bad.copy_within(512 + 32 * from..544 + 32 * from, 512 + 32 * to);
        overwrite(&path, &bad);
        noticed(&mount, "item", what);
    }
}

#[test]
fn folders_do_not_change_places() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    let [one, two] = ["one", "two"].map(|name| mount.name(name));
    let folder = mount.root.create_folder(&one, 0o700, None).unwrap();
    mount.root.create_folder(&two, 0o700, None).unwrap();
    let deep = folder.seal_name(b"deep").unwrap();
    folder.create_folder(&deep, 0o700, None).unwrap();
    let base = scratch.path().join(table_path(TABLE));
    let refused = |folder: &Arc<Folder>, name: &StoredName, what: &str| match folder.open_folder(name) {
        Err(error) => assert!(is_noticed(&error), "{what}: {error:?}"),
        Ok(_) => panic!("{what}: opened"),
    };
    let file = base.join(one.on_disk()).join(".d");
    let good = fs::read(&file).unwrap();
    assert_eq!(good.len(), 160);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        overwrite(&file, &bad);
        refused(&mount.root, &one, &format!("bit {bit}"));
    }
    for length in (0..160).chain([161, 400]) {
        let mut bad = good.clone();
        bad.resize(length, 0);
        overwrite(&file, &bad);
        refused(&mount.root, &one, &format!("{length} bytes"));
    }
    overwrite(&file, &fs::read(base.join(two.on_disk()).join(".d")).unwrap());
    refused(&mount.root, &one, "another folder's file");
    fs::remove_file(&file).unwrap();
    refused(&mount.root, &one, "no file");
    overwrite(&file, &good);
    let (a, b) = (base.join(one.on_disk()), base.join(two.on_disk()));
    fs::rename(&a, base.join("aside")).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(base.join("aside"), &b).unwrap();
    refused(&mount.root, &one, "swapped folders");
    refused(&mount.root, &two, "swapped folders");
    fs::rename(&a, base.join("aside")).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(base.join("aside"), &b).unwrap();
    fs::rename(a.join(deep.on_disk()), b.join(deep.on_disk())).unwrap();
    let other = mount.root.open_folder(&two).unwrap();
    refused(&other, &deep, "a folder in another one");
}

/// An item and a name of another folder, moved in the store.
#[test]
fn items_do_not_change_folders() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    let [one, two] = ["one", "two"].map(|name| mount.name(name));
    let [from, to] = [&one, &two].map(|name| mount.root.create_folder(name, 0o700, None).unwrap());
    let name = from.seal_name(b"item").unwrap();
    drop(Item::create(&from, &name, 0o600, None, ItemKind::Regular, b"text", &mount.seal).unwrap());
    let base = scratch.path().join(table_path(TABLE));
    let moved = base.join(two.on_disk()).join(name.on_disk());
    fs::rename(base.join(one.on_disk()).join(name.on_disk()), &moved).unwrap();
    let listing = to.list().unwrap();
    assert_eq!((listing.entries.len(), listing.damaged.len()), (0, 1));
    let disguised = to.seal_name(b"item").unwrap();
    fs::rename(&moved, base.join(two.on_disk()).join(disguised.on_disk())).unwrap();
    assert_eq!(to.list().unwrap().entries.len(), 1, "the name is known");
    let opened = Item::open(&to, &disguised).unwrap().verify(&mount.data);
    assert!(opened.is_err_and(|error| is_noticed(&error)));
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    drop(mount.make("item", b"text"));
    let path = mount.backing(scratch.path(), "item");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(mount.read_name("item"), Err(TableError::Io(_))));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(mount.read_name("item"), Err(TableError::Io(_))));
    assert!(matches!(mount.root.open_folder(&mount.name("item")), Err(TableError::Tampered { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_files_never_open(
        bytes in prop::collection::vec(any::<u8>(), 0..9000), magic in any::<bool>(), unclean in any::<bool>()
    ) {
        let (scratch, root) = store();
        let mount = Mount::create(&root);
        drop(mount.make("item", b"text"));
        let mut bytes = bytes;
        if magic && bytes.len() >= 512 {
            bytes[..24].copy_from_slice(b"KMSFSITM\x01\0\x01\x01\x02\0\0\0\x01\0\0\0\0\0\0\0");
            bytes[372..512].fill(0);
        }
        overwrite(&mount.backing(scratch.path(), "item"), &bytes);
        let mount = Mount::open(&root, 2, if unclean { &[1] } else { &[] });
        match mount.read_name("item") {
            Ok(_) => prop_assert!(false, "opened"),
            Err(error) => prop_assert!(is_noticed(&error) || matches!(error, TableError::Unfinished), "{error:?}"),
        }
    }

    #[test]
    fn random_damage_never_gives_other_text(
        size in 1usize..600_000, damage in prop::collection::vec((any::<prop::sample::Index>(), 1u8..=255), 1..4),
        unclean in any::<bool>(),
    ) {
        let (scratch, root) = store();
        let mount = Mount::create(&root);
        let item = mount.make("item", &pattern(size, 1));
        item.sync().unwrap();
        mount.journal.close().unwrap();
        drop((item, mount));
        let unclean: &[u64] = if unclean { &[1] } else { &[] };
        let mount = Mount::open(&root, 2, unclean);
        let path = mount.backing(scratch.path(), "item");
        let mut bytes = fs::read(&path).unwrap();
        for (place, mask) in damage {
            let place = place.index(bytes.len());
            bytes[place] ^= mask;
        }
        overwrite(&path, &bytes);
        match mount.read_name("item") {
            Ok(text) => prop_assert!(text == pattern(size, 1), "other text"),
            Err(error) => prop_assert!(is_noticed(&error), "{error:?}"),
        }
    }
}
