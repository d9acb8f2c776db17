//! What a kill, a power cut and a failed write leave, case by case.

use super::*;
use crate::store::record::{Call, Done, RecordingStorage, Unflushed};

struct Recorded {
    recording: RecordingStorage,
    mount: Mount,
    _scratch: Scratch,
}

/// A new table in a recording.
fn recorded() -> Recorded {
    let scratch = Scratch::new().unwrap();
    let recording = RecordingStorage::new(&DirStorage::open(scratch.path()).unwrap()).unwrap();
    let mount = Mount::create(&recording.root());
    Recorded { recording, mount, _scratch: scratch }
}

impl Recorded {
    /// Mounts what a power cut leaves now: the names as they are, or as they were when a directory was flushed last.
    fn cut(&self, all_names: bool) -> (Scratch, Mount) {
        self.crash(Unflushed::Drop, all_names, 2)
    }

    /// The same for any crash; all epochs before `epoch` are unclean then.
    fn crash(&self, unflushed: Unflushed, all_names: bool, epoch: u64) -> (Scratch, Mount) {
        let mut rebuilder = self.recording.rebuilder();
        rebuilder.advance(self.recording.len()).unwrap();
        let into = Scratch::new().unwrap();
        if all_names {
            rebuilder.make(unflushed, into.path()).unwrap();
        } else {
            rebuilder.make_with_names(rebuilder.name_points()[0], unflushed, into.path()).unwrap();
        }
        let unclean: Vec<u64> = (1..epoch).collect();
        let mount = Mount::open(&DirStorage::open(into.path()).unwrap().root(), epoch, &unclean);
        (into, mount)
    }
}

/// A new folder costs no flush. What a power cut leaves of it gives its name free, also where items are in it, and goes
/// with the folder around it.
#[test]
fn a_new_folder_that_a_power_cut_has_emptied_is_set_aside() {
    let long = "long".repeat(60);
    for (name, deep) in [("folder", 0), (long.as_str(), 0), ("folder", 3)] {
        let run = recorded();
        let above = run.mount.root.create_folder(&run.mount.name("above"), 0o700, None).unwrap();
        above.sync().unwrap();
        let before = run.recording.len();
        let folder = above.create_folder(&above.seal_name(name.as_bytes()).unwrap(), 0o700, None).unwrap();
        let flushed = |call: &Call| matches!(call, Call::SyncDir { .. } | Call::SyncFile { .. });
        assert!(name == long || !run.recording.calls()[before..].iter().any(flushed));
        let mut inner = Arc::clone(&folder);
        for _ in 0..deep {
            let name = inner.seal_name(b"inner").unwrap();
            let key = &run.mount.seal;
            Item::create(&inner, &inner.seal_name(b"item").unwrap(), 0o600, None, ItemKind::Regular, &[], key).unwrap();
            inner = inner.create_folder(&name, 0o700, None).unwrap();
        }
        let (_scratch, mount) = run.cut(true);
        let above = mount.root.open_folder(&mount.name("above")).unwrap();
        let name = above.seal_name(name.as_bytes()).unwrap();
        assert!(matches!(above.open_folder(&name), Err(TableError::Unfinished)));
        above.set_aside(&name).unwrap();
        assert!(above.is_empty().unwrap());
        above.create_folder(&name, 0o700, None).unwrap();
        above.open_folder(&name).unwrap();
        above.remove_folder(&name).unwrap();
        above.sweep().unwrap();
        mount.root.remove_folder(&mount.name("above")).unwrap();
        mount.root.sweep().unwrap();
        let left: Vec<_> = mount.root.dir().list().unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(left, [".d"]);
    }
}

/// Without an unclean stop a folder that has lost its id is tampering, and so is one that has another.
#[test]
fn a_folder_is_unfinished_after_an_unclean_stop_alone() {
    let run = recorded();
    run.mount.root.create_folder(&run.mount.name("folder"), 0o700, None).unwrap();
    let (scratch, mount) = run.crash(Unflushed::Keep, true, 2);
    let file = mount.backing(scratch.path(), "folder").join(".d");
    drop(mount);
    let open = |unclean: &[u64]| {
        let mount = Mount::open(&DirStorage::open(scratch.path()).unwrap().root(), 3, unclean);
        mount.root.open_folder(&mount.name("folder")).map(drop)
    };
    for (text, unfinished) in [(vec![], true), (vec![0; 100], true), (vec![0; 160], true), (vec![1; 160], false)] {
        overwrite(&file, &text);
        assert!(matches!(open(&[]), Err(TableError::Tampered { .. })), "{}", text.len());
        assert_eq!(matches!(open(&[1]), Err(TableError::Unfinished)), unfinished, "{}", text.len());
        assert!(open(&[1]).is_err());
    }
}

/// What was flushed is not lost with a folder that was made later and never flushed.
#[test]
fn what_was_flushed_moves_into_new_folders_with_them() {
    for how in ["rename", "link", "exchange"] {
        let run = recorded();
        let item = run.mount.make("item", b"flushed");
        item.sync().unwrap();
        run.mount.root.sync().unwrap();
        let folder = run.mount.root.create_folder(&run.mount.name("new"), 0o700, None).unwrap();
        let (from, to) = (run.mount.name("item"), folder.seal_name(b"moved").unwrap());
        let (here, there) = (place(&run.mount.root, &from), place(&folder, &to));
        match how {
            "link" => item.link(&run.mount.seal, (&run.mount.root, &from), (&folder, &to)).unwrap(),
            "rename" => rename(here, there, Moved::Item(&item), None, RenameFlags::None).unwrap(),
            _ => {
                let key = &run.mount.seal;
                let other = Item::create(&folder, &to, 0o600, None, ItemKind::Regular, &[], key).unwrap();
                let flags = RenameFlags::Exchange;
                rename(there, here, Moved::Item(&other), Some(Moved::Item(&item)), flags).unwrap();
            }
        }
        let (_scratch, mount) = run.cut(true);
        let folder = mount.root.open_folder(&mount.name("new")).unwrap();
        let moved = Item::open(&folder, &folder.seal_name(b"moved").unwrap()).unwrap();
        assert_eq!(mount.read(&moved).unwrap(), b"flushed", "{how}");
    }
}

#[test]
fn the_first_flush_of_an_item_keeps_its_name() {
    let run = recorded();
    run.mount.root.sync().unwrap();
    let item = run.mount.make("item", b"flushed");
    item.sync().unwrap();
    assert_eq!(run.cut(false).1.read_name("item").unwrap(), b"flushed");
    // The name is not paid for again: the journal's own is flushed once, and then no directory is.
    let flush = || {
        let before = run.recording.len();
        item.write(&run.mount.seal, b"again", 0).unwrap();
        item.sync().unwrap();
        let calls = run.recording.calls().split_off(before);
        calls.iter().filter(|call| matches!(call, Call::SyncDir { .. })).count()
    };
    assert_eq!([flush(), flush()], [1, 0]);
}

#[test]
fn the_first_flush_after_a_rename_keeps_the_new_name() {
    let run = recorded();
    let folder = run.mount.root.create_folder(&run.mount.name("folder"), 0o700, None).unwrap();
    folder.sync().unwrap();
    let item = run.mount.make("item", b"flushed");
    let (from, to) = (run.mount.name("item"), folder.seal_name(b"moved").unwrap());
    rename(place(&run.mount.root, &from), place(&folder, &to), Moved::Item(&item), None, RenameFlags::None).unwrap();
    item.sync().unwrap();
    let (_scratch, mount) = run.cut(false);
    let folder = mount.root.open_folder(&mount.name("folder")).unwrap();
    let moved = Item::open(&folder, &folder.seal_name(b"moved").unwrap()).unwrap();
    assert_eq!(mount.read(&moved).unwrap(), b"flushed");
}

#[test]
fn what_cannot_be_flushed_is_whole_from_the_start() {
    let run = recorded();
    for (name, kind) in [("link", ItemKind::Symlink), ("pipe", ItemKind::Fifo), ("socket", ItemKind::Socket)] {
        let content: &[u8] = if kind == ItemKind::Symlink { b"target" } else { b"" };
        Item::create(&run.mount.root, &run.mount.name(name), 0o600, None, kind, content, &run.mount.seal).unwrap();
        let (_scratch, mount) = run.cut(true);
        assert_eq!(mount.read_name(name).unwrap(), content, "{name}");
    }
}

#[test]
fn a_flushed_folder_has_whole_items() {
    // Few enough to be flushed one by one, and too many for that.
    for count in [3, NewItems::MAX + 3] {
        let run = recorded();
        for number in 0..count {
            run.mount.make(&format!("made{number}"), b"text");
        }
        let other = run.mount.make("linked", b"text");
        let (from, to) = (run.mount.name("linked"), run.mount.name("link"));
        other.link(&run.mount.seal, (&run.mount.root, &from), (&run.mount.root, &to)).unwrap();
        rename_item(&run.mount, "linked", "renamed", &other, None);
        drop(other);
        run.mount.root.unlink(&run.mount.name("made1")).unwrap();
        run.mount.root.sync().unwrap();
        let (_scratch, mount) = run.cut(false);
        for name in ["made0", "made2", "link", "renamed"] {
            assert_eq!(mount.read_name(name).unwrap(), b"text", "{name} of {count}");
        }
        assert!(mount.item("made1").is_err());
    }
}

#[test]
fn a_name_that_was_there_leads_to_the_old_or_the_new_item() {
    for flags in [RenameFlags::None, RenameFlags::Exchange] {
        let run = recorded();
        let old = run.mount.make("name", b"old");
        old.sync().unwrap();
        let new = run.mount.make("new", b"new");
        let (from, to) = (run.mount.name("new"), run.mount.name("name"));
        let (moved, target) = (Moved::Item(&new), Some(Moved::Item(&old)));
        let before = run.recording.len();
        rename(place(&run.mount.root, &from), place(&run.mount.root, &to), moved, target, flags).unwrap();
        if flags == RenameFlags::None {
            // One flush, of the new item; none of the journal, nor of a directory.
            let calls = run.recording.calls().split_off(before);
            let flush = |call: &&Call| matches!(call, Call::SyncFile { .. } | Call::SyncDir { .. } | Call::SyncFs);
            assert_eq!(calls.iter().filter(flush).count(), 1);
        }
        assert_eq!(run.cut(true).1.read_name("name").unwrap(), b"new");
        assert_eq!(run.cut(false).1.read_name("name").unwrap(), b"old");
        // What has taken its place is no more at risk than it was; in an exchange whichever of the two moves.
        let newer = run.mount.make("newer", b"newer");
        let (other, to) = (run.mount.name("newer"), run.mount.name("name"));
        let (moved, target) = (Moved::Item(&newer), Some(Moved::Item(&new)));
        if flags == RenameFlags::Exchange {
            let (moved, target) = (Moved::Item(&new), Some(Moved::Item(&newer)));
            rename(place(&run.mount.root, &to), place(&run.mount.root, &other), moved, target, flags).unwrap();
        } else {
            rename(place(&run.mount.root, &other), place(&run.mount.root, &to), moved, target, flags).unwrap();
        }
        assert_eq!(run.cut(true).1.read_name("name").unwrap(), b"newer");
    }
}

#[test]
fn an_item_is_found_by_another_name_when_one_goes() {
    let run = recorded();
    let item = run.mount.make("first", &pattern(9000, 1));
    item.sync().unwrap();
    let names = ["first", "second", "third"].map(|name| run.mount.name(name));
    let root = &run.mount.root;
    item.link(&run.mount.seal, (root, &names[0]), (root, &names[1])).unwrap();
    item.link(&run.mount.seal, (root, &names[0]), (root, &names[2])).unwrap();
    let mut expected = pattern(9000, 1);
    for (gone, at) in [(0, 10), (2, 5000)] {
        item.settle().unwrap();
        root.unlink(&names[gone]).unwrap();
        item.unlinked(root, &names[gone]);
        item.forget_name();
        item.write(&run.mount.seal, b"after", at).unwrap();
        expected[usize::try_from(at).unwrap()..][..5].copy_from_slice(b"after");
        // A kill loses nothing that was written, and the journal has to find it.
        let (_scratch, mount) = run.crash(Unflushed::Keep, true, 2);
        assert!(mount.read_name("second").unwrap() == expected, "without {:?}", names[gone]);
        item.sync().unwrap();
        let (_scratch, mount) = run.cut(true);
        assert!(mount.read_name("second").unwrap() == expected, "flushed, without {:?}", names[gone]);
    }
}

/// An unlink that no flush has covered may be undone by a power cut: the name then leads to the item as before.
#[test]
fn a_name_that_comes_back_leads_to_its_item() {
    let run = recorded();
    let (item, other) = (run.mount.make("first", b"text"), run.mount.make("other", b"more"));
    let names = ["first", "second"].map(|name| run.mount.name(name));
    let root = &run.mount.root;
    item.link(&run.mount.seal, (root, &names[0]), (root, &names[1])).unwrap();
    item.sync().unwrap();
    other.sync().unwrap();
    // A segment is there, so that no flush of the journal's own directory comes in between.
    run.mount.journal.checkpoint().unwrap();
    other.write(&run.mount.seal, b"most", 0).unwrap();
    other.sync().unwrap();
    root.sync().unwrap();
    item.settle().unwrap();
    root.unlink(&names[1]).unwrap();
    item.unlinked(root, &names[1]);
    // Whoever flushes the journal, it holds the header.
    other.write(&run.mount.seal, b"last", 0).unwrap();
    other.sync().unwrap();
    for all_names in [false, true] {
        let (_scratch, mount) = run.cut(all_names);
        for name in ["first", "second"] {
            assert!(mount.item(name).is_err() || mount.read_name(name).unwrap() == b"text", "{name}");
        }
    }
}

/// The same where the names were given in another mount, so that none is known but the one that goes.
#[test]
fn an_item_is_looked_for_when_no_other_name_is_known() {
    let run = recorded();
    let folder = run.mount.root.create_folder(&run.mount.name("folder"), 0o700, None).unwrap();
    let (first, second) = (run.mount.name("first"), folder.seal_name(b"second").unwrap());
    let item = run.mount.make("first", &pattern(9000, 1));
    item.link(&run.mount.seal, (&run.mount.root, &first), (&folder, &second)).unwrap();
    item.sync().unwrap();
    drop((item, folder));
    run.mount.journal.close().unwrap();
    let run = Recorded { mount: Mount::open(&run.recording.root(), 2, &[]), ..run };
    let item = run.mount.item("first").unwrap();
    item.verify(&run.mount.seal).unwrap();
    item.settle().unwrap();
    run.mount.root.unlink(&first).unwrap();
    item.unlinked(&run.mount.root, &first);
    item.write(&run.mount.seal, b"after", 5000).unwrap();
    let mut expected = pattern(9000, 1);
    expected[5000..5005].copy_from_slice(b"after");
    let found = |unflushed| {
        let (_scratch, mount) = run.crash(unflushed, true, 3);
        let folder = mount.root.open_folder(&mount.name("folder")).unwrap();
        mount.read(&Item::open(&folder, &folder.seal_name(b"second").unwrap()).unwrap()).unwrap()
    };
    assert!(found(Unflushed::Keep) == expected);
    item.sync().unwrap();
    assert!(found(Unflushed::Drop) == expected);
    // Without any name it is read and written as before.
    let folder = run.mount.root.open_folder(&run.mount.name("folder")).unwrap();
    item.settle().unwrap();
    folder.unlink(&second).unwrap();
    item.unlinked(&folder, &second);
    item.write(&run.mount.seal, b"alone", 0).unwrap();
    expected[..5].copy_from_slice(b"alone");
    assert!(run.mount.read(&item).unwrap() == expected);
    item.sync().unwrap();
}

/// A kill may end a write between two pages of the file: what was there before the write is not lost with it.
#[test]
fn a_divided_write_costs_only_itself() {
    for (first, offset) in [(3000_u64, 3000), (3000, 0), (9000, 100), (0, 0)] {
        let run = recorded();
        let before = pattern(usize::try_from(first).unwrap(), 1);
        let item = run.mount.make("item", &before);
        if first == 0 {
            item.truncate(&run.mount.seal, 20_000).unwrap();
        }
        let before = run.mount.read(&item).unwrap();
        let start = run.recording.len();
        item.write(&run.mount.seal, &pattern(9000, 2), offset).unwrap();
        let after = run.mount.read(&item).unwrap();
        let mut rebuilder = run.recording.rebuilder();
        let mut divided = 0;
        for calls in start..run.recording.len() {
            rebuilder.advance(calls).unwrap();
            for at in 0..4 {
                let Some(image) = rebuilder.divided(at) else { continue };
                let into = Scratch::new().unwrap();
                image.make(Unflushed::Keep, into.path()).unwrap();
                let mount = Mount::open(&DirStorage::open(into.path()).unwrap().root(), 2, &[1]);
                let found = mount.read_name("item").unwrap();
                assert!(found == before || found == after, "{first}, {offset}: {} bytes", found.len());
                divided += 1;
            }
        }
        assert!(divided > 0);
    }
}

/// A write that fails half-way leaves a new item as it was, also where that cannot be put right at once.
#[test]
fn a_failed_write_leaves_a_new_item_whole() {
    let full = rustix::io::Errno::NOSPC.raw_os_error();
    for (length, lasting) in [(0, false), (0, true), (100, false), (100, true)] {
        let run = recorded();
        let item = run.mount.make("item", &pattern(length, 1));
        let next = run.recording.attempts();
        if lasting {
            run.recording.fail_from(next, full, Done::Half);
        } else {
            run.recording.fail_nth(next, full, Done::Half);
        }
        // Of an empty item the new first page is written with the pages behind it, of another one by itself.
        let more = if length == 0 { 9000 } else { 200 };
        assert!(item.write(&run.mount.seal, &pattern(more, 2), 0).is_err());
        assert_eq!(item.sync().is_err(), lasting);
        run.recording.heal();
        assert!(run.mount.read(&item).unwrap() == pattern(length, 1));
        item.sync().unwrap();
        let (_scratch, mount) = run.cut(true);
        assert!(mount.read_name("item").unwrap() == pattern(length, 1), "{length}, {lasting}");
        item.write(&run.mount.seal, &pattern(more, 3), 0).unwrap();
        assert!(run.mount.read(&item).unwrap() == pattern(more, 3));
    }
}

/// The same where the header could not be told, and has given the name up to make room for another.
#[test]
fn a_name_that_comes_back_after_its_room_was_given_away_leads_to_its_item() {
    let run = recorded();
    let root = &run.mount.root;
    let names: Vec<StoredName> = (0..10).map(|number| run.mount.name(&format!("name{number}"))).collect();
    let item = run.mount.make("name0", b"text");
    for name in &names[1..9] {
        item.link(&run.mount.seal, (root, &names[0]), (root, name)).unwrap();
    }
    item.sync().unwrap();
    root.sync().unwrap();
    drop(item);
    root.unlink(&names[8]).unwrap();
    let item = run.mount.item("name0").unwrap();
    item.link(&run.mount.seal, (root, &names[0]), (root, &names[9])).unwrap();
    item.sync().unwrap();
    for all_names in [false, true] {
        let (_scratch, mount) = run.cut(all_names);
        for number in [0, 5, 8, 9] {
            match mount.read_name(&format!("name{number}")) {
                Ok(content) => assert_eq!(content, b"text"),
                Err(TableError::Io(error)) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
                Err(error) => panic!("name{number}, {all_names}: {error}"),
            }
        }
        assert_eq!(mount.read_name("name5").unwrap(), b"text");
    }
}
