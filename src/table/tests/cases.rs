//! Single cases.

use super::*;
use crate::store::{FileKind, SetTime, XattrFlags};
use crate::types::DirId;

#[test]
fn sizes_on_disk_are_those_of_the_format() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    for (size, backing) in [
        (0, 512),
        (1, 545),
        (1024, 1568),
        (3551, 4095),
        (3552, 7648),
        (4096, 8192),
        (458_752, 462_848),
        (458_753, 466_945),
    ] {
        let name = format!("item{size}");
        let item = mount.make(&name, &pattern(size, 1));
        assert_eq!(std::fs::metadata(mount.backing(scratch.path(), &name)).unwrap().len(), backing, "{size}");
        assert_eq!(item.size(), Some(size as u64));
        drop(item);
        let item = mount.item(&name).unwrap();
        assert_eq!(item.size(), Some(size as u64), "before any key");
        assert_eq!(mount.read(&item).unwrap(), pattern(size, 1));
    }
}

#[test]
fn growing_by_truncation_is_cheap_and_reads_as_zeros() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let item = mount.make("sparse", b"start");
    item.truncate(&mount.seal, 1 << 40).unwrap();
    assert_eq!(item.size(), Some(1 << 40));
    let mut buffer = [1; 10_000];
    assert_eq!(item.read(&mount.data, &mut buffer, 0).unwrap(), 10_000);
    assert_eq!((&buffer[..5], buffer[5..].iter().any(|b| *b != 0)), (&b"start"[..], false));
    assert_eq!(item.read(&mount.data, &mut buffer, (1 << 40) - 10).unwrap(), 10);
    item.write(&mount.seal, b"far", (4_194_304 - 1) * 4096).unwrap();
    assert!(matches!(item.write(&mount.seal, b"too far", 1 << 39), Err(TableError::TooLarge)));
    assert!(matches!(item.write(&mount.seal, b"x", SIZE_MAX), Err(TableError::TooLarge)));
    assert!(matches!(item.truncate(&mount.seal, SIZE_MAX + 1), Err(TableError::TooLarge)));
    let allocated = item.backing().stat().unwrap().blocks * 512;
    assert!(allocated < 200 << 20, "{allocated} bytes");
    drop(item);
    let item = mount.item("sparse").unwrap();
    item.verify(&mount.data).unwrap();
    assert_eq!(item.seek(Seek::Hole, 0).unwrap(), 4096);
    assert_eq!(item.seek(Seek::Data, 4096).unwrap(), (4_194_304 - 1) * 4096);
    assert_eq!(item.seek(Seek::Hole, (4_194_304 - 1) * 4096).unwrap(), 4_194_304 * 4096);
    assert!(item.seek(Seek::Data, 1 << 39).is_err());
    item.truncate(&mount.seal, 3).unwrap();
    assert_eq!(mount.read(&item).unwrap(), b"sta");
}

#[test]
fn truncation_to_zero_renews_the_salt_and_takes_the_current_key() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    let item = mount.make("item", &pattern(9000, 1));
    let salt = |scratch: &Scratch| std::fs::read(mount.backing(scratch.path(), "item")).unwrap()[16..56].to_vec();
    let before = salt(&scratch);
    let newer = SealKey::for_tests(table_keys(TABLE, 2));
    item.set_xattr(&mount.seal, b"author", b"alice", XattrFlags::Set).unwrap();
    item.truncate(&newer, 0).unwrap();
    item.write(&newer, b"anew", 0).unwrap();
    let after = salt(&scratch);
    assert_eq!((before[..4].to_vec(), after[..4].to_vec()), (vec![1, 0, 0, 0], vec![2, 0, 0, 0]));
    assert_eq!(before[8..24], after[8..24], "the item's id stays");
    assert_ne!(before[24..], after[24..]);
    assert_eq!(item.xattr(&mount.data, b"author").unwrap(), b"alice", "attributes outlive the salt");
    drop(item);
    let newer = DataKey::for_tests(table_keys(TABLE, 2));
    assert_eq!(read_all(&mount.item("item").unwrap(), &newer).unwrap(), b"anew");
    // Without version 2 there is no such version: whoever wrote it is not this table.
    assert!(matches!(mount.read_name("item"), Err(TableError::Tampered { .. })));
}

#[test]
fn a_destroyed_key_is_told_from_damage() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    mount.make("item", b"text");
    let versions = BTreeMap::from([(2, Key256::from_slice(&[2; 32]).unwrap())]);
    let keys = DataKey::for_tests(TableKeys::for_tests(TABLE, 2, versions));
    let found = mount.item("item").unwrap().verify(&keys);
    assert!(matches!(found, Err(TableError::NoKey { version: 1 })), "{found:?}");
}

#[test]
fn another_tables_capability_is_refused_even_where_keys_are_cached() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let item = mount.make("item", b"text");
    let other = TableId::from_bytes([1; 16]);
    let (data, seal) = (DataKey::for_tests(table_keys(other, 1)), SealKey::for_tests(table_keys(other, 1)));
    assert!(matches!(item.read(&data, &mut [0; 4], 0), Err(TableError::WrongTable)));
    assert!(matches!(item.write(&seal, b"x", 0), Err(TableError::WrongTable)));
    assert!(matches!(item.truncate(&seal, 0), Err(TableError::WrongTable)));
    assert_eq!(mount.read(&item).unwrap(), b"text");
}

#[test]
fn equal_items_share_no_ciphertext() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    for (one, two, size) in [("a", "b", 3000), ("c", "d", 20_000)] {
        mount.make(one, &vec![0; size]);
        mount.make(two, &vec![0; size]);
        let [one, two] = [one, two].map(|name| std::fs::read(mount.backing(scratch.path(), name)).unwrap());
        let zeros = 372..512;
        for at in (544..one.len() - 16).step_by(16) {
            let page = one[at..at + 16].to_vec();
            if page != [0; 16] && !zeros.contains(&at) {
                assert!(!two.windows(16).any(|window| window == page), "at {at}");
                assert_eq!(one.windows(16).filter(|window| *window == page).count(), 1, "at {at}");
            }
        }
    }
}

#[test]
fn kinds_and_targets_are_kept() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    for (index, length) in [5, 3551, 4095].into_iter().enumerate() {
        let name = mount.name(&format!("link{index}"));
        let target = vec![b't'; length];
        Item::create(&mount.root, &name, 0o777, None, ItemKind::Symlink, &target, &mount.seal).unwrap();
        assert_eq!(Item::peek_kind(&mount.root, name.on_disk()).unwrap(), ItemKind::Symlink);
        assert_eq!(mount.root.dir().stat(name.on_disk()).unwrap().permissions(), 0o1777);
        assert_eq!(mount.read_name(&format!("link{index}")).unwrap(), target);
    }
    for kind in [ItemKind::Fifo, ItemKind::Socket] {
        let name = mount.name(&format!("{kind:?}"));
        Item::create(&mount.root, &name, 0o600, None, kind, &[], &mount.seal).unwrap();
        let item = Item::open(&mount.root, &name).unwrap();
        item.verify(&mount.data).unwrap();
        assert_eq!(item.kind().unwrap(), kind);
    }
}

#[test]
fn an_item_has_nine_names_and_loses_them_one_by_one() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let item = mount.make("name1", b"shared");
    item.sync().unwrap();
    let first = mount.name("name1");
    for number in 2..=9 {
        let name = mount.name(&format!("name{number}"));
        item.link(&mount.seal, (&mount.root, &first), (&mount.root, &name)).unwrap();
    }
    let tenth = mount.name("name10");
    let refused = item.link(&mount.seal, (&mount.root, &first), (&mount.root, &tenth));
    assert!(matches!(refused, Err(TableError::TooManyLinks)));
    let exists = item.link(&mount.seal, (&mount.root, &first), (&mount.root, &mount.name("name2")));
    assert!(matches!(exists, Err(TableError::TooManyLinks | TableError::Io(_))));
    for number in 1..=9 {
        let name = mount.name(&format!("name{number}"));
        assert_eq!(mount.read_name(&format!("name{number}")).unwrap(), b"shared");
        item.settle().unwrap();
        mount.root.unlink(&name).unwrap();
        item.unlinked(&mount.root, &name);
    }
    assert!(names_of(&mount.root).is_empty());
}

/// Names of an earlier mount are not known to an item that is opened by another one.
#[test]
fn a_name_that_goes_makes_room_for_another_whoever_gave_it() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let names: Vec<_> = (1..=9).map(|number| mount.name(&format!("name{number}"))).collect();
    let item = mount.make("name1", b"shared");
    for name in &names[1..] {
        item.link(&mount.seal, (&mount.root, &names[0]), (&mount.root, name)).unwrap();
    }
    drop((item, mount));
    let mount = Mount::open(&root, 2, &[]);
    let item = mount.item("name1").unwrap();
    item.verify(&mount.seal).unwrap();
    for round in 0..20 {
        let new = mount.name(&format!("new{round}"));
        let gone = if round < 8 { names[1 + round].clone() } else { mount.name(&format!("new{}", round - 8)) };
        item.settle().unwrap();
        mount.root.unlink(&gone).unwrap();
        item.unlinked(&mount.root, &gone);
        item.link(&mount.seal, (&mount.root, &names[0]), (&mount.root, &new)).unwrap();
        assert_eq!(mount.read_name(&format!("new{round}")).unwrap(), b"shared");
    }
}

#[test]
fn names_of_which_the_header_could_not_be_told_that_they_are_gone_leave_room_for_others() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let folder = mount.root.create_folder(&mount.name("folder"), 0o700, None).unwrap();
    let first = mount.name("first");
    mount.make("first", b"shared").sync().unwrap();
    let long = "n".repeat(200);
    for round in 0..20 {
        let item = mount.item("first").unwrap();
        let name = folder.seal_name(format!("{long}{round}").as_bytes()).unwrap();
        item.link(&mount.seal, (&mount.root, &first), (&folder, &name)).unwrap();
        assert_eq!(mount.read(&Item::open(&folder, &name).unwrap()).unwrap(), b"shared");
        // As when it goes while nobody has the item open.
        if round >= 2 {
            folder.unlink(&name).unwrap();
        }
    }
    for round in 0..2 {
        let kept = folder.seal_name(format!("{long}{round}").as_bytes()).unwrap();
        assert_eq!(mount.read(&Item::open(&folder, &kept).unwrap()).unwrap(), b"shared");
    }
    assert_eq!(mount.read_name("first").unwrap(), b"shared");
}

/// Folders may lie deeper than a thread's stack is high.
#[test]
fn a_name_is_found_however_deep_it_lies() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let mut folder = Arc::clone(&mount.root);
    for _ in 0..900 {
        folder = folder.create_folder(&folder.seal_name(b"below").unwrap(), 0o700, None).unwrap();
    }
    let (first, deep) = (mount.name("first"), folder.seal_name(b"deep").unwrap());
    mount.make("first", b"shared").link(&mount.seal, (&mount.root, &first), (&folder, &deep)).unwrap();
    let item = mount.item("first").unwrap();
    item.verify(&mount.data).unwrap();
    mount.root.unlink(&first).unwrap();
    item.unlinked(&mount.root, &first);
    assert!(item.file().is_pathless());
    let (seal, writer) = (seal_key(), Arc::clone(&item));
    let small = std::thread::Builder::new().stack_size(128 << 10);
    small.spawn(move || writer.write(&seal, b"SHARED", 0).unwrap()).unwrap().join().unwrap();
    assert!(!item.file().is_pathless());
    assert_eq!(mount.read(&Item::open(&folder, &deep).unwrap()).unwrap(), b"SHARED");
}

/// Somebody who can write the store makes the count of names wrong: then none is given up.
#[test]
fn no_name_is_given_up_while_one_may_have_been_overlooked() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    let first = mount.name("name1");
    mount.make("name1", b"shared").sync().unwrap();
    for number in 2..=9 {
        let name = mount.name(&format!("name{number}"));
        mount.item("name1").unwrap().link(&mount.seal, (&mount.root, &first), (&mount.root, &name)).unwrap();
    }
    mount.root.unlink(&mount.name("name2")).unwrap();
    mount.root.unlink(&mount.name("name3")).unwrap();
    let elsewhere = scratch.path().join("elsewhere");
    std::fs::hard_link(mount.backing(scratch.path(), "name1"), &elsewhere).unwrap();
    let tenth = mount.name("name10");
    let link = || mount.item("name1").unwrap().link(&mount.seal, (&mount.root, &first), (&mount.root, &tenth));
    assert!(matches!(link(), Err(TableError::TooManyLinks)));
    std::fs::remove_file(elsewhere).unwrap();
    link().unwrap();
    for number in [1, 4, 5, 6, 7, 8, 9, 10] {
        assert_eq!(mount.read_name(&format!("name{number}")).unwrap(), b"shared", "name{number}");
    }
}

#[test]
fn a_name_that_is_another_items_does_not_bind_by_a_failed_link() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let (item, _other) = (mount.make("one", b"one"), mount.make("two", b"two"));
    let linked = item.link(&mount.seal, (&mount.root, &mount.name("one")), (&mount.root, &mount.name("two")));
    assert!(matches!(linked, Err(TableError::Io(error)) if error.kind() == std::io::ErrorKind::AlreadyExists));
    drop(item);
    let dir = mount.root.dir();
    dir.rename(mount.name("one").on_disk(), dir.as_ref(), mount.name("two").on_disk(), RenameFlags::None).unwrap();
    assert!(matches!(mount.read_name("two"), Err(TableError::Tampered { .. })));
}

#[test]
fn renames_keep_items_and_forget_the_old_name() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    for (index, synced) in [false, true].into_iter().enumerate() {
        let [a, b, c] = ["a", "b", "c"].map(|letter| format!("{letter}{index}"));
        let item = mount.make(&a, b"text");
        if synced {
            item.sync().unwrap();
        }
        rename_item(&mount, &a, &b, &item, None);
        assert_eq!(mount.read_name(&b).unwrap(), b"text");
        item.sync().unwrap();
        item.settle().unwrap();
        drop(item);
        let item = mount.item(&b).unwrap();
        assert_eq!(mount.read(&item).unwrap(), b"text");
        // Put back under the old name, it is not accepted any more.
        let (dir, old) = (mount.root.dir(), mount.name(&a));
        dir.rename(mount.name(&b).on_disk(), dir.as_ref(), old.on_disk(), RenameFlags::None).unwrap();
        drop(item);
        assert!(matches!(mount.read_name(&a), Err(TableError::Tampered { .. })), "synced: {synced}");
        dir.rename(old.on_disk(), dir.as_ref(), mount.name(&b).on_disk(), RenameFlags::None).unwrap();
        let (item, over) = (mount.item(&b).unwrap(), mount.make(&c, b"replaced"));
        rename_item(&mount, &b, &c, &item, Some(&over));
        assert_eq!(mount.read_name(&c).unwrap(), b"text");
        assert_eq!(mount.read(&over).unwrap(), b"replaced", "who has it open still reads it");
    }
}

#[test]
fn exchanges_keep_both() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let long = "n".repeat(200);
    let (one, two) = (mount.make("one", b"one"), mount.make(&long, b"two"));
    one.sync().unwrap();
    let (first, second) = (mount.name("one"), mount.name(&long));
    let exchange = |moved, target| {
        rename(place(&mount.root, &first), place(&mount.root, &second), moved, target, RenameFlags::Exchange)
    };
    exchange(Moved::Item(&one), Some(Moved::Item(&two))).unwrap();
    assert_eq!((mount.read_name("one").unwrap(), mount.read_name(&long).unwrap()), (b"two".into(), b"one".into()));
    let folder = mount.root.create_folder(&mount.name("folder"), 0o700, None).unwrap();
    let name = mount.name("folder");
    rename(
        place(&mount.root, &name),
        place(&mount.root, &first),
        Moved::Folder(&folder),
        Some(Moved::Item(&two)),
        RenameFlags::Exchange,
    )
    .unwrap();
    assert_eq!(mount.read_name("folder").unwrap(), b"two");
    mount.root.open_folder(&first).unwrap();
}

#[test]
fn folders_are_made_renamed_and_removed() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    let long = "f".repeat(255);
    let [one, two, deep] = [long.as_str(), "two", "deep"].map(|name| mount.name(name));
    let folder = mount.root.create_folder(&one, 0o750, None).unwrap();
    assert_eq!(mount.root.dir().stat(one.on_disk()).unwrap().permissions(), 0o750);
    assert!(mount.root.create_folder(&one, 0o700, None).is_err());
    let inside = folder.seal_name(b"inside").unwrap();
    let item = Item::create(&folder, &inside, 0o600, None, ItemKind::Regular, b"text", &mount.seal).unwrap();
    item.sync().unwrap();
    item.write(&mount.seal, b"TEXT", 0).unwrap();
    let target = mount.root.create_folder(&two, 0o700, None).unwrap();
    let sub = target.create_folder(&target.seal_name(b"full").unwrap(), 0o700, None).unwrap();
    let over = || {
        let moved = Moved::Folder(&folder);
        let target = Some(Moved::Folder(&target));
        rename(place(&mount.root, &one), place(&mount.root, &two), moved, target, RenameFlags::None)
    };
    assert!(over().is_err(), "the target is not empty");
    drop(sub);
    target.remove_folder(&target.seal_name(b"full").unwrap()).unwrap();
    over().unwrap();
    assert_eq!(names_of(&mount.root).into_keys().collect::<Vec<_>>(), [b"two"]);
    // The open item goes on under the new path: what it journals is found by a replay.
    item.write(&mount.seal, b"more", 4).unwrap();
    item.sync().unwrap();
    let opened = mount.root.open_folder(&two).unwrap();
    assert_eq!(opened.id(), folder.id());
    let below = opened.create_folder(&opened.seal_name(b"below").unwrap(), 0o700, None).unwrap();
    let from = opened.seal_name(b"below").unwrap();
    rename(place(&opened, &from), place(&mount.root, &deep), Moved::Folder(&below), None, RenameFlags::NoReplace)
        .unwrap();
    assert!(mount.root.remove_folder(&two).is_err());
    mount.root.remove_folder(&deep).unwrap();
    drop((item, folder, target, opened, below));
    drop(mount);
    let mount = Mount::open(&root, 2, &[1]);
    let folder = mount.root.open_folder(&mount.name("two")).unwrap();
    let item = Item::open(&folder, &folder.seal_name(b"inside").unwrap()).unwrap();
    assert_eq!(mount.read(&item).unwrap(), b"TEXTmore");
    folder.unlink(&folder.seal_name(b"inside").unwrap()).unwrap();
    mount.root.remove_folder(&mount.name("two")).unwrap();
    let left = std::fs::read_dir(scratch.path().join(table_path(TABLE))).unwrap().count();
    assert_eq!(left, 1, "the table's own file alone");
}

#[test]
fn what_crashes_have_left_is_swept_and_nothing_else() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    let long = "x".repeat(255);
    mount.make(&long, b"text");
    mount.root.create_folder(&mount.name("folder"), 0o700, None).unwrap();
    let base = scratch.path().join(table_path(TABLE));
    let count = || std::fs::read_dir(&base).unwrap().count();
    let before = count();
    std::fs::create_dir_all(base.join(".t.half/.t.deeper")).unwrap();
    for left in [".t.half/.d", ".t.half/.n.orphan", ".n.orphan", "..d.new"] {
        overwrite(&base.join(left), b"left");
    }
    assert!(mount.root.list().unwrap().damaged.is_empty());
    mount.root.sweep().unwrap();
    assert_eq!((count(), mount.root.list().unwrap().entries.len()), (before, 2));
    assert_eq!(mount.read_name(&long).unwrap(), b"text");
}

#[test]
fn damaged_names_are_left_out_of_listings_and_told() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    let long = "x".repeat(255);
    for name in ["good", &long, "bad"] {
        mount.make(name, b"text");
    }
    let folder = scratch.path().join(table_path(TABLE));
    let bad = mount.backing(scratch.path(), "bad");
    std::fs::rename(&bad, folder.join("bm9uc2Vuc2U")).unwrap();
    std::fs::rename(folder.join(mount.name(&long).sidecar().unwrap().0), folder.join(".n.elsewhere")).unwrap();
    let listing = mount.root.list().unwrap();
    assert_eq!(listing.entries.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>(), [b"good"]);
    assert!(listing.entries.iter().all(|entry| entry.kind == FileKind::File && entry.ino > 0));
    let damaged: BTreeSet<_> = listing.damaged.into_iter().collect();
    assert_eq!(damaged, BTreeSet::from(["bm9uc2Vuc2U".into(), mount.name(&long).on_disk().to_owned()]));
    // A name whose sidecar is gone still leads to its item, and can be unlinked.
    assert_eq!(mount.read_name(&long).unwrap(), b"text");
    mount.root.unlink(&mount.name(&long)).unwrap();
    assert_eq!(mount.root.open_name("bm9uc2Vuc2U".as_ref()).ok(), None);
}

#[test]
fn times_tell_when_the_content_changed() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let item = mount.make("item", &pattern(10_000, 1));
    let past = (1_000_000_000, 7);
    let mtime = |item: &Item| item.backing().stat().unwrap().mtime;
    let age = |item: &Item| item.set_times(SetTime::Keep, SetTime::At(past.0, past.1)).unwrap();
    age(&item);
    rename_item(&mount, "item", "renamed", &item, None);
    assert_eq!(mtime(&item), past, "a rename of what was never flushed");
    item.sync().unwrap();
    mount.journal.checkpoint().unwrap();
    assert_eq!(mtime(&item), past, "a flush and a checkpoint");
    rename_item(&mount, "renamed", "again", &item, None);
    assert_eq!(mtime(&item), past, "a rename of what is durable");
    item.write(&mount.seal, b"new", 5).unwrap();
    let written = mtime(&item);
    assert!(written > past, "a journaled write");
    mount.journal.checkpoint().unwrap();
    assert_eq!(mtime(&item), written, "a checkpoint of content");
}

#[test]
fn what_is_pending_counts_for_the_size() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let item = mount.make("item", b"text");
    item.sync().unwrap();
    item.write(&mount.seal, &pattern(3000, 1), 0).unwrap();
    drop(item);
    let stat = mount.root.dir().stat(mount.name("item").on_disk()).unwrap();
    assert_eq!((plain_size(stat.size), mount.root.table().size_of(&stat)), (Some(4), Some(3000)));
    mount.journal.checkpoint().unwrap();
    let stat = mount.root.dir().stat(mount.name("item").on_disk()).unwrap();
    assert_eq!((plain_size(stat.size), mount.root.table().size_of(&stat)), (Some(3000), Some(3000)));
}

#[test]
fn an_open_item_is_not_taken_for_what_a_link_in_the_store_says() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let (item, name, other) = (mount.make("item", b"text"), mount.name("item"), mount.name("other"));
    let dir = mount.root.dir();
    dir.link(name.on_disk(), dir.as_ref(), other.on_disk()).unwrap();
    item.check_name(&name).unwrap();
    assert!(matches!(item.check_name(&other), Err(TableError::Tampered { .. })));
    drop(item);
    assert!(matches!(mount.read_name("other"), Err(TableError::Tampered { .. })));
}

#[test]
fn a_read_only_mount_reads_and_writes_nothing() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    drop(mount.make("item", &pattern(9000, 1)));
    mount.journal.close().unwrap();
    drop(mount);
    let (key, store) = (Key256::from_slice(&[7; 32]).unwrap(), StoreId::from_bytes([3; 16]));
    let journal = Journal::open_read_only(&root, &key, store, |_| false).unwrap();
    let table = Table::new(Mount::names(), journal, Mounts::new(1, Vec::new()), true);
    let dir = root.open_dir("tables".as_ref()).unwrap().open_dir(TABLE.to_string().as_ref()).unwrap();
    let folder = Folder::open_root(&table, dir, table_path(TABLE)).unwrap();
    let item = Item::open(&folder, &folder.seal_name(b"item").unwrap()).unwrap();
    assert_eq!(read_all(&item, &data_key()).unwrap(), pattern(9000, 1));
    assert!(item.write(&seal_key(), b"x", 0).is_err());
    assert_eq!(read_all(&item, &data_key()).unwrap(), pattern(9000, 1));
}

#[test]
fn attributes_are_sealed_for_items_and_folders() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let (one, two) = (mount.make("one", b""), mount.make("two", b""));
    one.set_xattr(&mount.seal, b"author", b"alice", XattrFlags::Create).unwrap();
    assert!(one.set_xattr(&mount.seal, b"author", b"bob", XattrFlags::Create).is_err());
    assert_eq!(one.xattr(&mount.data, b"author").unwrap(), b"alice");
    assert_eq!(one.xattr_names().unwrap(), [b"author"]);
    let raw = one.backing().listxattr().unwrap();
    let value = one.backing().getxattr(&raw[0]).unwrap();
    assert!(!value.windows(5).any(|window| window == b"alice"));
    two.backing().setxattr(&raw[0], &value, XattrFlags::Set).unwrap();
    assert!(two.xattr(&mount.data, b"author").is_err());
    assert!(two.xattr_names().unwrap().is_empty(), "another item's attribute is left out");
    one.remove_xattr(&mount.seal, b"author").unwrap();
    assert!(one.xattr(&mount.data, b"author").is_err());
    mount.root.set_xattr(&mount.seal, b"purpose", b"tests", XattrFlags::Set).unwrap();
    assert_eq!(mount.root.xattr(&mount.data, b"purpose").unwrap(), b"tests");
    assert_eq!(mount.root.xattr_names().unwrap(), [b"purpose"]);
    mount.root.remove_xattr(&mount.seal, b"purpose").unwrap();
    assert!(mount.root.xattr_names().unwrap().is_empty());
}

#[test]
fn a_table_is_not_taken_for_another() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let folder = mount.root.create_folder(&mount.name("folder"), 0o700, None).unwrap();
    assert_ne!(folder.id(), DirId::from_bytes(*TABLE.as_bytes()));
    let as_root = Folder::open_root(mount.root.table(), Arc::clone(folder.dir()), table_path(TABLE));
    assert!(matches!(as_root, Err(TableError::Tampered { .. })));
    let names = Names::new(TableId::from_bytes([9; 16]), Key512::from_slice(&[5; 64]).unwrap()).unwrap();
    let table = Table::new(names, Arc::clone(&mount.journal), Mounts::default(), false);
    let opened = Folder::open_root(&table, Arc::clone(mount.root.dir()), table_path(TABLE));
    assert!(matches!(opened, Err(TableError::Tampered { .. })));
}

#[test]
fn punched_ranges_read_as_zeros_and_give_their_space_back() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let mut model = pattern(600_000, 3);
    let item = mount.make("item", &model);
    item.sync().unwrap();
    let before = item.backing().stat().unwrap().blocks;
    // Over what a flush has promised: it waits in the journal.
    item.write(&mount.seal, &pattern(200_000, 9), 50_000).unwrap();
    item.punch_hole(&mount.seal, 5000, 500_000).unwrap();
    model[5000..505_000].fill(0);
    assert_eq!(mount.read(&item).unwrap(), model);
    mount.journal.checkpoint().unwrap();
    assert!(item.backing().stat().unwrap().blocks * 512 + 480_000 < before * 512);
    item.punch_hole(&mount.seal, 599_000, 1 << 40).unwrap();
    model[599_000..].fill(0);
    item.write(&mount.seal, b"again", 100_000).unwrap();
    model[100_000..100_005].copy_from_slice(b"again");
    drop(item);
    assert_eq!(mount.read_name("item").unwrap(), model);
    let small = mount.make("small", &pattern(3000, 1));
    small.punch_hole(&mount.seal, 10, 20).unwrap();
    let mut model = pattern(3000, 1);
    model[10..30].fill(0);
    assert_eq!(mount.read(&small).unwrap(), model);
    small.allocate(&mount.seal, 0, 100_000, false).unwrap();
    model.resize(100_000, 0);
    assert_eq!(mount.read(&small).unwrap(), model);
}

#[test]
fn an_unfinished_creation_is_told_from_tampering_by_an_unclean_stop() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    drop(mount.make("item", b"text"));
    for bytes in [&[][..], &[1; 511], &[0; 2000]] {
        overwrite(&mount.backing(scratch.path(), "item"), bytes);
        assert!(matches!(mount.read_name("item"), Err(TableError::Tampered { .. })));
        let later = Mount::open(&root, 2, &[1]);
        assert!(matches!(later.read_name("item"), Err(TableError::Unfinished)));
    }
}

#[test]
fn a_mount_that_was_killed_leaves_what_was_written() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    mount.make("new", &pattern(700_000, 1));
    let synced = mount.make("synced", &pattern(10_000, 2));
    synced.sync().unwrap();
    synced.write(&mount.seal, &pattern(300_000, 3), 9_000).unwrap();
    drop(synced);
    drop(mount);
    let mount = Mount::open(&root, 2, &[1]);
    assert_eq!(mount.read_name("new").unwrap(), pattern(700_000, 1));
    let mut model = pattern(9_000, 2);
    model.extend(pattern(300_000, 3));
    assert_eq!(mount.read_name("synced").unwrap(), model);
}

#[test]
fn readers_see_whole_writes_while_checkpoints_run() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let item = mount.make("item", &vec![0; 20_000]);
    item.sync().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let finished = || done.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !finished() {
                    let mut text = vec![0; 20_000];
                    let count = item.read(&mount.data, &mut text, 0).unwrap();
                    assert!(text[..count].iter().all(|byte| *byte == text[0]), "a write in part");
                }
            });
        }
        scope.spawn(|| {
            while !finished() {
                mount.journal.checkpoint().unwrap();
                item.sync().unwrap();
            }
        });
        for round in 0..300_usize {
            let fill = u8::try_from(round % 256).unwrap();
            item.write(&mount.seal, &vec![fill; 20_000], 0).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(mount.read(&item).unwrap(), vec![43; 20_000]);
}
