//! Single cases.

use std::os::unix::fs::symlink;
use std::thread;

use super::*;
use crate::store::RenameFlags;
use crate::store::record::{Call, Done, RecordingStorage, Unflushed};
use crate::store::storage::Stat;

/// A store, its journal and files, recorded.
fn recorded() -> (Scratch, RecordingStorage, Arc<Journal>, Vec<Arc<JournaledFile>>) {
    let (scratch, storage) = store();
    let recording = RecordingStorage::new(&storage).unwrap();
    let root = recording.root();
    let journal = open(&root).0;
    let files = open_items(&journal, &root);
    (scratch, recording, journal, files)
}

fn write(file: &JournaledFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
    file.commit(&[Op::Write { offset, bytes }])
}

fn at(bytes: &[u8], offset: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[offset..offset + new.len()].copy_from_slice(new);
    bytes
}

fn segment_path(scratch: &Scratch, number: u64) -> PathBuf {
    scratch.path().join("journal").join(number.to_string())
}

fn errno<T: fmt::Debug>(result: io::Result<T>) -> Errno {
    Errno::from_raw_os_error(result.unwrap_err().raw_os_error().unwrap())
}

/// Puts bytes into a file of the store, past all that is under test.
fn overwrite(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    std::fs::File::create(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn durable_bytes_change_in_place_only_at_a_checkpoint() {
    let (scratch, storage) = store();
    let root = storage.root();
    let journal = open(&root).0;
    let files = open_items(&journal, &root);
    write(&files[0], 4_990, &[9; 30]).unwrap();
    // The tail beyond the durable length is there at once, the rest is not.
    let backing = &backing_bytes(&root)[0];
    assert_eq!((backing.len(), backing[4_999], backing[5_000]), (5_020, 0x11, 9));
    assert_eq!((files[0].len(), read_all(&files[0])[4_990]), (5_020, 9));
    assert!(journal.pending_bytes() > 0);
    journal.checkpoint().unwrap();
    assert_eq!(backing_bytes(&root)[0][4_990..], [9; 30]);
    assert!(!segment_path(&scratch, 1).exists());
}

/// A shrink, then anything: the bytes that were cut never come back.
#[test]
fn cut_bytes_stay_cut() {
    let (_scratch, storage) = store();
    let root = storage.root();
    let journal = open(&root).0;
    let file = open_item(&journal, &root, 0);
    file.commit(&[Op::SetLen(100)]).unwrap();
    assert_eq!((file.len(), backing_bytes(&root)[0].len()), (100, START));
    let mut buffer = [1; 10];
    assert_eq!(file.read_at(&mut buffer, 100).unwrap(), 0);
    // A write beyond the durable length would be cut off by a replay, so it is pending, too.
    write(&file, 6_000, b"tail").unwrap();
    assert_eq!(backing_bytes(&root)[0].len(), START);
    let mut expected = start(0)[..100].to_vec();
    expected.resize(6_000, 0);
    expected.extend_from_slice(b"tail");
    assert_eq!(read_all(&file), expected);
    file.sync().unwrap();
    journal.abandon();
    open(&root);
    assert_eq!(backing_bytes(&root)[0], expected);
}

#[test]
fn a_new_file_does_not_pass_through_the_journal() {
    let (_scratch, storage) = store();
    let root = storage.root();
    let journal = open(&root).0;
    let table = root.open_dir("tables".as_ref()).unwrap().open_dir("t".as_ref()).unwrap();
    let backing = table.create_file("new".as_ref(), 0o600).unwrap();
    let file = JournaledFile::open(&journal, backing, item(5), "tables/t/new".into(), 0).unwrap();
    let mut bytes = vec![1; 64];
    bytes[24..40].copy_from_slice(item(5).as_bytes());
    write(&file, 0, &bytes).unwrap();
    file.commit(&[Op::SetLen(50), Op::SetLen(64)]).unwrap();
    assert!(!file.is_durable_at_all() && journal.pending_bytes() == 0);
    file.sync().unwrap();
    assert!(file.is_durable_at_all());
    write(&file, 50, b"x").unwrap();
    assert!(journal.pending_bytes() > 0);
    journal.close().unwrap();
}

#[test]
fn the_item_id_stays() {
    let (_scratch, _recording, journal, files) = recorded();
    assert_eq!(errno(write(&files[0], 20, &[0; 8])), Errno::INVAL);
    assert_eq!(errno(files[0].commit(&[Op::SetLen(39)])), Errno::INVAL);
    write(&files[0], 0, &start(0)[..64]).unwrap();
    assert_eq!(errno(write(&files[0], u64::MAX - 3, b"more")), Errno::FBIG);
    assert_eq!(errno(write(&files[0], i64::MAX as u64, b"more")), Errno::FBIG);
    assert_eq!(read_all(&files[0]), start(0));
    journal.close().unwrap();
    assert_eq!(errno(write(&files[0], 50, b"x")), Errno::SHUTDOWN);
    assert_eq!(errno(write(&files[0], 5_000, b"x")), Errno::SHUTDOWN);
}

/// What is cut off anywhere, or flipped anywhere, costs records from there on and never shows a wrong one.
#[test]
fn a_damaged_segment_gives_its_good_beginning() {
    let (scratch, storage) = store();
    let root = storage.root();
    let journal = open(&root).0;
    let files = open_items(&journal, &root);
    let mut states = vec![backing_bytes(&root)];
    let mut ends = vec![HEADER_BYTES];
    for round in 0..4_u8 {
        let file = usize::from(round % 2);
        files[file]
            .commit(&[Op::Write { offset: 45, bytes: &[round; 20] }, Op::SetLen(4_000 + u64::from(round))])
            .unwrap();
        let mut state = states.last().unwrap().clone();
        state[file] = read_all(&files[file]);
        states.push(state);
        ends.push(std::fs::metadata(segment_path(&scratch, 1)).unwrap().len());
    }
    journal.abandon();
    let segment = std::fs::read(segment_path(&scratch, 1)).unwrap();
    let items: Vec<_> = (0..FILES).map(|file| scratch.path().join(path_of(file))).collect();
    let replay = |bytes: &[u8]| {
        for (path, bytes) in items.iter().zip(&states[0]) {
            overwrite(path, bytes);
        }
        overwrite(&segment_path(&scratch, 1), bytes);
        let replayed = open(&root).1;
        (backing_bytes(&root), replayed)
    };
    let good = |end: usize| ends.iter().filter(|at| **at <= end as u64).count().saturating_sub(1);
    for length in 0..=segment.len() {
        let (found, replayed) = replay(&segment[..length]);
        assert!(found == states[good(length)], "cut at {length}");
        assert_eq!(replayed.applied, good(length) as u64);
        assert_eq!(replayed.torn, u64::from(!ends.contains(&(length as u64))), "cut at {length}");
    }
    for bit in 0..segment.len() * 8 {
        let mut damaged = segment.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let (found, replayed) = replay(&damaged);
        let expected = if (bit / 8) < segment::HEADER_LEN { 0 } else { good(bit / 8) };
        assert!(found == states[expected], "bit {bit}");
        assert_eq!((replayed.torn, replayed.applied), (1, expected as u64));
    }
}

/// Segments that change places, are left out, or come from elsewhere.
#[test]
fn segments_are_taken_in_order_without_a_gap() {
    let (scratch, _recording, journal, files) = recorded();
    // As after checkpoints that could not be finished: three segments, two records each.
    for round in 0..3_u8 {
        write(&files[0], 100, &[round; 8]).unwrap();
        write(&files[1], 200 + u64::from(round), &[round; 8]).unwrap();
        journal.retire_current();
    }
    journal.sync().unwrap();
    journal.abandon();
    let segments: Vec<_> = (1..=3).map(|number| std::fs::read(segment_path(&scratch, number)).unwrap()).collect();
    let before: Vec<_> = (0..FILES).map(start).collect();
    let root = DirStorage::open(scratch.path()).unwrap().root();
    let replay = |present: &[(u64, usize)]| {
        for (file, bytes) in before.iter().enumerate() {
            overwrite(&scratch.path().join(path_of(file)), bytes);
        }
        for (number, segment) in present {
            overwrite(&segment_path(&scratch, *number), &segments[*segment]);
        }
        open(&root).1
    };
    let counts = |replayed: Replayed| (replayed.applied, replayed.refused, replayed.torn);
    assert_eq!(counts(replay(&[(1, 0), (2, 1), (3, 2)])), (6, 0, 0));
    assert_eq!(backing_bytes(&root)[0], at(&before[0], 100, &[2; 8]));
    assert_eq!(counts(replay(&[(1, 0), (3, 2)])), (2, 1, 0));
    assert_eq!(backing_bytes(&root)[0], at(&before[0], 100, &[0; 8]));
    // The first ones are gone when a checkpoint was cut off in removing them: everything was in place then.
    assert_eq!(counts(replay(&[(2, 1), (3, 2)])), (4, 0, 0));
    assert_eq!(counts(replay(&[(1, 1), (2, 0)])), (0, 2, 0));
    assert_eq!(counts(replay(&[(1, 0), (2, 0)])), (2, 1, 0));
    assert_eq!(counts(replay(&[(7, 0)])), (0, 1, 0));
    // Behind a segment whose start is lost nothing can be built on.
    overwrite(&segment_path(&scratch, 1), &segments[0][..segment::HEADER_LEN - 1]);
    assert_eq!(counts(replay(&[(2, 1), (3, 2)])), (0, 3, 0));
    assert_eq!(backing_bytes(&root), before);
}

/// A segment that was kept aside and put back is of an epoch that was closed, or older than the one in use.
#[test]
fn an_old_segment_is_refused() {
    let (scratch, storage) = store();
    let root = storage.root();
    let journal = open(&root).0;
    let file = open_item(&journal, &root, 0);
    write(&file, 100, b"old").unwrap();
    let kept = std::fs::read(segment_path(&scratch, 1)).unwrap();
    write(&file, 100, b"new").unwrap();
    journal.close().unwrap();
    let expected = at(&start(0), 100, b"new");
    overwrite(&segment_path(&scratch, 1), &kept);
    let (_, replayed) = Journal::open(&root, key(), STORE, 2, |epoch| epoch != 1).unwrap();
    assert_eq!((replayed.applied, replayed.refused), (0, 1));
    // Beside a segment of a later mount it is refused as well, even where its own mount was not closed.
    let (journal, _) = Journal::open(&root, key(), STORE, 2, |_| true).unwrap();
    let file = open_item(&journal, &root, 0);
    write(&file, 200, b"x").unwrap();
    journal.sync().unwrap();
    journal.abandon();
    std::fs::rename(segment_path(&scratch, 1), segment_path(&scratch, 9)).unwrap();
    overwrite(&segment_path(&scratch, 1), &kept);
    let (_, replayed) = Journal::open(&root, key(), STORE, 3, |_| true).unwrap();
    // The moved one does not bear its number; the old one alone counts as live then.
    assert_eq!((replayed.applied, replayed.refused), (1, 1));
    overwrite(&scratch.path().join(path_of(0)), &expected);
    // Another key, another store.
    overwrite(&segment_path(&scratch, 1), &kept);
    let other = Key256::from_slice(&[8; 32]).unwrap();
    assert_eq!(Journal::open(&root, other, STORE, 2, |_| true).unwrap().1.applied, 0);
    overwrite(&segment_path(&scratch, 1), &kept);
    let foreign = StoreId::from_bytes([4; 16]);
    assert_eq!(Journal::open(&root, key(), foreign, 2, |_| true).unwrap().1.refused, 1);
    assert_eq!(backing_bytes(&root)[0], expected);
}

#[test]
fn a_later_mounts_segment_makes_an_older_one_void() {
    let (scratch, storage) = store();
    let root = storage.root();
    let kept = {
        let journal = open(&root).0;
        let file = open_item(&journal, &root, 0);
        write(&file, 100, b"old").unwrap();
        let kept = std::fs::read(segment_path(&scratch, 1)).unwrap();
        journal.abandon();
        kept
    };
    // What was replayed is put back under the number that is free while the next mount uses another.
    overwrite(&segment_path(&scratch, 1), &kept);
    let (journal, replayed) = Journal::open(&root, key(), STORE, 2, |_| true).unwrap();
    assert_eq!(replayed.applied, 1);
    overwrite(&segment_path(&scratch, 1), &kept);
    let file = open_item(&journal, &root, 0);
    write(&file, 100, b"new").unwrap();
    assert!(segment_path(&scratch, 2).exists());
    journal.abandon();
    let (_, replayed) = Journal::open(&root, key(), STORE, 3, |_| true).unwrap();
    assert_eq!((replayed.applied, replayed.refused), (1, 1));
    assert_eq!(backing_bytes(&root)[0], at(&start(0), 100, b"new"));
}

/// Records that this program would not write, under its own keys.
#[test]
fn a_record_reaches_nothing_but_its_item() {
    let (scratch, storage) = store();
    let root = storage.root();
    overwrite(&scratch.path().join("root"), &start(0));
    symlink(scratch.path().join("tables"), scratch.path().join("tables/link")).unwrap();
    symlink(scratch.path().join(path_of(0)), scratch.path().join("tables/t/link")).unwrap();
    std::fs::create_dir(scratch.path().join("tables/t/dir")).unwrap();
    overwrite(&scratch.path().join("tables/t/short"), b"short");
    journal_dir(&root).unwrap();
    let before = backing_bytes(&root);
    let cases = [
        ("root", 0),
        ("tables/t/../../root", 0),
        ("tables/../root", 0),
        ("/etc/passwd", 0),
        ("", 0),
        ("tables/link/t/item0", 0),
        ("tables/t/link", 0),
        ("tables/t/dir", 0),
        ("tables/t/short", 0),
        ("tables/t/item0", 1),
        ("tables/t/none", 0),
        ("tables/t/item0/x", 0),
        ("tables/u/item0", 0),
    ];
    let header = Header { store: STORE, session: [1; 16], number: 1, first: 0, epoch: 1 };
    let mut bytes = header.encode(&key());
    let aead = header.record_key(&key()).unwrap();
    for (sequence, (path, id)) in cases.iter().enumerate() {
        let ops = [Op::Write { offset: 40, bytes: b"bad" }, Op::SetLen(50)];
        let draft = Draft::new(item(*id), Path::new(path), &ops).unwrap();
        bytes.extend(draft.seal(&aead, 1, sequence as u64).unwrap());
    }
    let good = Draft::new(item(1), &path_of(1), &[Op::Write { offset: 50, bytes: b"good" }]).unwrap();
    bytes.extend(good.seal(&aead, 1, cases.len() as u64).unwrap());
    overwrite(&segment_path(&scratch, 1), &bytes);
    let replayed = open(&root).1;
    assert_eq!((replayed.applied, replayed.foreign, replayed.missing, replayed.torn), (1, 9, 4, 0));
    assert_eq!(backing_bytes(&root), [before[0].clone(), at(&before[1], 50, b"good")]);
    assert_eq!(std::fs::read(scratch.path().join("root")).unwrap(), start(0));
}

/// An append fails and neither can its tail be cut off: the next segment makes what stands there void.
#[test]
fn a_failed_record_does_not_come_back() {
    for done in [Done::Nothing, Done::Half, Done::All] {
        let (_scratch, recording, journal, files) = recorded();
        write(&files[0], 100, b"first").unwrap();
        let next = recording.attempts();
        recording.fail_nth(next, Errno::IO.raw_os_error(), done);
        recording.fail_nth(next + 1, Errno::IO.raw_os_error(), done);
        assert_eq!(errno(write(&files[0], 100, b"fails")), Errno::IO);
        write(&files[0], 200, b"third").unwrap();
        journal.sync().unwrap();
        let expected = at(&at(&start(0), 100, b"first"), 200, b"third");
        assert_eq!(read_all(&files[0]), expected);
        journal.abandon();
        let into = Scratch::new().unwrap();
        recording.rebuild(recording.len(), Unflushed::Drop, into.path()).unwrap();
        let root = DirStorage::open(into.path()).unwrap().root();
        let replayed = open(&root).1;
        assert_eq!((replayed.applied, replayed.refused, replayed.torn), (2, 0, u64::from(done != Done::Nothing)));
        assert_eq!(backing_bytes(&root)[0], expected);
    }
}

/// A failed record was written whole and cut off: that must be durable before any later sync is acknowledged.
#[test]
fn a_sync_after_a_failed_record_flushes_the_segment() {
    let (_scratch, recording, journal, files) = recorded();
    write(&files[0], 100, b"first").unwrap();
    files[0].sync().unwrap();
    recording.fail_nth(recording.attempts(), Errno::IO.raw_os_error(), Done::All);
    assert_eq!(errno(write(&files[0], 100, b"fails")), Errno::IO);
    for expected in [1, 0] {
        let before = recording.len();
        files[0].sync().unwrap();
        let calls = recording.calls().split_off(before);
        assert_eq!(calls.iter().filter(|call| matches!(call, Call::SyncFile { .. })).count(), expected);
    }
    journal.close().unwrap();
}

/// A direct write fails, and neither can the length be restored: that is made good before anything else.
#[test]
fn a_length_that_could_not_be_restored_is_restored_later() {
    for sync in [false, true] {
        let (_scratch, recording, journal, files) = recorded();
        let full = Errno::NOSPC.raw_os_error();
        recording.fail_nth(recording.attempts(), full, Done::Half);
        recording.fail_nth(recording.attempts() + 1, full, Done::Nothing);
        assert_eq!(errno(write(&files[0], 5_000, &[7; 100])), Errno::NOSPC);
        assert_eq!((files[0].len(), backing_bytes(&recording.root())[0].len()), (5_000, 5_050));
        assert_eq!(read_all(&files[0]), start(0));
        if sync {
            files[0].sync().unwrap();
        } else {
            write(&files[0], 100, b"x").unwrap();
        }
        assert_eq!(backing_bytes(&recording.root())[0].len(), 5_000);
        journal.close().unwrap();
    }
}

/// While a checkpoint is under way a file has records in more than one segment.
#[test]
fn the_newest_of_several_segments_counts() {
    let (_scratch, recording, journal, files) = recorded();
    write(&files[0], 100, b"aaaa").unwrap();
    journal.retire_current();
    files[0].commit(&[Op::SetLen(200), Op::Write { offset: 102, bytes: b"bbbb" }]).unwrap();
    journal.retire_current();
    files[0].commit(&[Op::SetLen(300), Op::Write { offset: 104, bytes: b"cccc" }]).unwrap();
    let mut expected = at(&start(0)[..200], 100, b"aabbcccc");
    expected.resize(300, 0);
    assert_eq!(read_all(&files[0]), expected);
    journal.checkpoint().unwrap();
    assert_eq!((read_all(&files[0]), &backing_bytes(&recording.root())[0]), (expected.clone(), &expected));
    assert_eq!((files[0].protected(), files[0].is_pending()), (Some(300), false));
}

#[test]
fn a_failed_flush_is_never_followed_by_success() {
    let (_scratch, recording, journal, files) = recorded();
    write(&files[0], 100, b"x").unwrap();
    recording.fail_nth(recording.attempts(), Errno::IO.raw_os_error(), Done::Nothing);
    assert_eq!(errno(journal.sync()), Errno::IO);
    assert_eq!(errno(journal.sync()), Errno::IO);
    assert_eq!(errno(files[0].sync()), Errno::IO);
    assert_eq!(errno(journal.checkpoint()), Errno::IO);
    assert_eq!(errno(write(&files[1], 100, b"x")), Errno::IO);
    assert_eq!(read_all(&files[0])[100], b'x');
    journal.abandon();

    // A file's own flush: of this file for ever, of others not.
    let (_scratch, recording, journal, files) = recorded();
    write(&files[0], 5_000, b"tail").unwrap();
    recording.fail_nth(recording.attempts(), Errno::IO.raw_os_error(), Done::Nothing);
    assert_eq!(errno(files[0].sync()), Errno::IO);
    assert_eq!(errno(files[0].sync()), Errno::IO);
    let mark = files[0].durable_mark();
    assert!(!files[0].mark_durable(mark));
    write(&files[1], 5_000, b"tail").unwrap();
    files[1].sync().unwrap();
    journal.close().unwrap();
}

#[test]
fn a_mark_holds_only_without_writes_since() {
    let (_scratch, _recording, journal, files) = recorded();
    write(&files[0], 5_000, b"tail").unwrap();
    let mark = files[0].durable_mark();
    assert!(files[0].mark_durable(mark));
    assert_eq!(files[0].protected(), Some(5_004));
    write(&files[0], 5_004, b"more").unwrap();
    assert!(!files[0].mark_durable(mark));
    assert_eq!(files[0].protected(), Some(5_004));
    journal.close().unwrap();
}

#[test]
fn a_file_that_is_opened_again_shows_what_is_pending() {
    let (_scratch, recording, journal, mut files) = recorded();
    write(&files[0], 100, b"pending").unwrap();
    drop(files.remove(0));
    let again = open_item(&journal, &recording.root(), 0);
    assert_eq!(read_all(&again), at(&start(0), 100, b"pending"));
    let backing = open_backing(&recording.root(), &path_of(0));
    let other = JournaledFile::open(&journal, backing, item(1), path_of(0), 0);
    assert_eq!(errno(other), Errno::UCLEAN);
    drop(again);
    journal.checkpoint().unwrap();
    drop(files);
    assert!(lock(&journal.registry).is_empty());
}

#[test]
fn a_rename_settles_first_and_later_records_name_the_new_place() {
    let (_scratch, recording, journal, files) = recorded();
    let root = recording.root();
    let tables = root.open_dir("tables".as_ref()).unwrap();
    write(&files[0], 100, b"one").unwrap();
    let act = || tables.rename("t".as_ref(), tables.as_ref(), "u".as_ref(), RenameFlags::None);
    let (from, to) = (Path::new("tables/t"), Path::new("tables/u"));
    journal.rename(from, to, false, &[Arc::clone(&tables)], act).unwrap();
    assert_eq!(journal.pending_bytes(), 0);
    let before = recording.len();
    write(&files[0], 200, b"two").unwrap();
    files[0].sync().unwrap();
    // The rename is durable before the record that depends on it.
    let calls = recording.calls().split_off(before);
    let flushes: Vec<_> = calls.iter().filter(|call| call.is_flush()).collect();
    assert!(matches!(flushes[..], [Call::SyncDir { .. }, Call::SyncFile { .. }, Call::SyncDir { .. }]), "{flushes:?}");
    journal.abandon();
    assert_eq!(open(&root).1.applied, 1);
    let moved = read_whole(open_backing(&root, Path::new("tables/u/item0")).as_ref(), 1 << 20).unwrap();
    assert_eq!(moved, at(&at(&start(0), 100, b"one"), 200, b"two"));
}

/// After a kill the records are in the page cache alone; a power cut during their replay must not find an item overwritten
/// in part and no record of it.
#[test]
fn records_are_durable_before_they_are_replayed() {
    let (_scratch, recording, journal, files) = recorded();
    let new = vec![0x22; 3_000];
    write(&files[0], 1_000, &new).unwrap();
    journal.abandon();
    let start_of_replay = recording.len();
    assert_eq!(open(&recording.root()).1.applied, 1);
    let allowed = [start(0), at(&start(0), 1_000, &new)];
    for calls in start_of_replay..=recording.len() {
        for unflushed in (0..20).map(Unflushed::Some).chain([Unflushed::Keep, Unflushed::Drop]) {
            let into = Scratch::new().unwrap();
            recording.rebuild(calls, unflushed, into.path()).unwrap();
            let root = DirStorage::open(into.path()).unwrap().root();
            open(&root);
            assert!(allowed.contains(&backing_bytes(&root)[0]), "after {calls} calls, {unflushed:?}");
        }
    }
}

#[test]
fn paths_follow_a_rename_and_an_exchange() {
    let (_scratch, recording, journal, files) = recorded();
    let table = recording.root().open_dir("tables".as_ref()).unwrap().open_dir("t".as_ref()).unwrap();
    let (one, two) = (path_of(0), path_of(1));
    let act = || table.rename("item0".as_ref(), table.as_ref(), "item1".as_ref(), RenameFlags::Exchange);
    journal.rename(&one, &two, true, &[Arc::clone(&table)], act).unwrap();
    assert!(files[0].is_below(&two) && files[1].is_below(&one));
    let failed = journal.rename(&one, Path::new("tables/t/x"), false, &[], || Err(Errno::XDEV.into()));
    assert!(failed.is_err() && files[1].is_below(&one));
    // A name that merely starts the same is another.
    files[1].rename(Path::new("tables/t/item"), Path::new("tables/t/y"), false);
    assert!(files[1].is_below(&one));
    for (file, bytes) in [(&files[0], b"a"), (&files[1], b"b")] {
        write(file, 100, bytes).unwrap();
    }
    journal.sync().unwrap();
    journal.abandon();
    let root = recording.root();
    assert_eq!(open(&root).1.applied, 2);
    assert_eq!(backing_bytes(&root), [at(&start(1), 100, b"b"), at(&start(0), 100, b"a")]);
}

/// A discarded file's records go only when its unlink is durable: until then a crash brings back what was promised.
#[test]
fn discarding_waits_for_the_unlink() {
    let (_scratch, recording, journal, files) = recorded();
    let table = recording.root().open_dir("tables".as_ref()).unwrap().open_dir("t".as_ref()).unwrap();
    write(&files[0], 100, b"gone").unwrap();
    files[0].sync().unwrap();
    table.remove_file("item0".as_ref()).unwrap();
    files[0].discard();
    let before = recording.len();
    journal.checkpoint().unwrap();
    let calls = recording.calls().split_off(before);
    let flush = calls.iter().position(|call| *call == Call::SyncFs).unwrap();
    let removal = calls.iter().position(|call| matches!(call, Call::RemoveFile { .. })).unwrap();
    assert!(flush < removal && !calls.iter().any(|call| matches!(call, Call::Change { .. })));
    journal.close().unwrap();
}

#[test]
fn a_file_without_a_known_path_is_put_in_place_by_its_sync() {
    let (_scratch, recording, journal, files) = recorded();
    files[0].settle().unwrap();
    files[0].forget_path();
    write(&files[0], 100, b"here").unwrap();
    files[0].sync().unwrap();
    assert_eq!(journal.pending_bytes(), 0);
    assert_eq!(backing_bytes(&recording.root())[0], at(&start(0), 100, b"here"));
    journal.close().unwrap();
}

#[test]
fn a_read_only_mount_writes_nothing() {
    let (_scratch, recording, journal, files) = recorded();
    let root = recording.root();
    write(&files[0], 100, b"x").unwrap();
    journal.sync().unwrap();
    journal.abandon();
    let before = recording.len();
    let refused = Journal::open_read_only(&root, &key(), STORE, |_| true);
    assert!(matches!(refused, Err(JournalError::NeedsReplay)));
    let journal = Journal::open_read_only(&root, &key(), STORE, |_| false).unwrap();
    let file = open_item(&journal, &root, 1);
    assert_eq!(read_all(&file), start(1));
    assert_eq!(errno(write(&file, 100, b"x")), Errno::ROFS);
    assert_eq!(errno(write(&file, 9_000, b"x")), Errno::ROFS);
    file.sync().unwrap();
    journal.sync().unwrap();
    journal.close().unwrap();
    assert_eq!(recording.len(), before);
}

/// An owner without the right to write to his own item does not keep the store from mounting.
#[test]
fn a_replay_writes_to_items_that_are_read_only() {
    let (_scratch, storage) = store();
    let root = storage.root();
    let journal = open(&root).0;
    let file = open_item(&journal, &root, 0);
    write(&file, 100, b"x").unwrap();
    file.file().chmod(0o400).unwrap();
    journal.abandon();
    assert_eq!(open(&root).1.applied, 1);
    let stat: Stat = file.file().stat().unwrap();
    assert_eq!((stat.permissions(), backing_bytes_of(&root, 0)[100]), (0o400, b'x'));
}

fn backing_bytes_of(root: &Arc<dyn Dir>, file: usize) -> Vec<u8> {
    let path = path_of(file);
    let dir = root.open_dir("tables".as_ref()).unwrap().open_dir("t".as_ref()).unwrap();
    read_whole(dir.open_file(path.file_name().unwrap(), false).unwrap().as_ref(), 1 << 20).unwrap()
}

#[test]
fn a_checkpoint_of_many_files_flushes_once() {
    let (_scratch, storage) = store();
    let recording = RecordingStorage::new(&storage).unwrap();
    let root = recording.root();
    let journal = open(&root).0;
    let table = root.open_dir("tables".as_ref()).unwrap().open_dir("t".as_ref()).unwrap();
    let files: Vec<_> = (0..=FLUSH_EACH)
        .map(|number| {
            let name = format!("many{number}");
            let backing = table.create_file(name.as_ref(), 0o600).unwrap();
            backing.write_all_at(&start(0), 0).unwrap();
            let path = Path::new("tables/t").join(name);
            JournaledFile::open(&journal, backing, item(0), path, START as u64).unwrap()
        })
        .collect();
    for file in &files {
        write(file, 100, b"x").unwrap();
    }
    let before = recording.len();
    journal.checkpoint().unwrap();
    let calls = recording.calls().split_off(before);
    assert_eq!(calls.iter().filter(|call| **call == Call::SyncFs).count(), 1);
    assert_eq!(calls.iter().filter(|call| matches!(call, Call::SyncFile { .. })).count(), 1);
    // From here on the files may be written to directly, so the segment is gone, durably.
    assert!(matches!(calls[..], [.., Call::RemoveFile { .. }, Call::SyncDir { .. }]));
}

/// Threads that commit, read and sync, with checkpoints all the time.
#[test]
fn threads_do_not_stand_in_each_others_way() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 150;
    let (_scratch, storage) = store();
    let root = storage.root();
    let journal = open(&root).0;
    journal.set_pending_limit(3_000);
    let files = open_items(&journal, &root);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (files, journal, root) = (&files, &journal, &root);
            scope.spawn(move || {
                let file = &files[thread % FILES];
                let place = 100 + 600 * (thread / FILES);
                for round in 0..ROUNDS {
                    let bytes = [u8::try_from(round % 251).unwrap(); 500];
                    write(file, place as u64, &bytes).unwrap();
                    let mut found = [0; 500];
                    file.read_at(&mut found, place as u64).unwrap();
                    assert!(found == bytes);
                    match round % 7 {
                        0 => file.sync().unwrap(),
                        1 => journal.sync().unwrap(),
                        2 if thread == 0 => journal.checkpoint().unwrap(),
                        3 => assert_eq!(open_item(journal, root, thread % FILES).item(), file.item()),
                        4 if thread == 1 => {
                            journal.rename(Path::new("a"), Path::new("b"), false, &[], || Ok(())).unwrap();
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    journal.close().unwrap();
    for (file, bytes) in backing_bytes(&root).iter().enumerate() {
        let mut expected = start(file);
        for thread in (0..THREADS).filter(|thread| thread % FILES == file) {
            let place = 100 + 600 * (thread / FILES);
            expected[place..place + 500].fill(u8::try_from((ROUNDS - 1) % 251).unwrap());
        }
        assert!(*bytes == expected);
    }
}

/// A thread that helps puts in place what commits have left, which go on meanwhile, and never see more pending than may
/// be.
#[test]
fn a_helper_empties_the_journal_beside_the_commits() {
    let (_scratch, recording, journal, files) = recorded();
    let limit = 64 << 10;
    journal.set_pending_limit(limit);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Acquire) {
                journal.help(Duration::from_secs(10)).unwrap();
            }
        });
        // Who comes here before the helper does for himself what is to be done, so that some are enough to meet it.
        for round in 0..400_u64 {
            write(&files[0], 100 + round % 7, &[u8::try_from(round % 251).unwrap(); 1_000]).unwrap();
            assert!(journal.pending_bytes() <= limit + 3_000);
        }
        ended.store(true, Ordering::Release);
        journal.call_helper();
    });
    let put_away = recording.calls().iter().filter(|call| matches!(call, Call::RemoveFile { .. })).count();
    assert!(put_away > 3, "{put_away}");
    let content = read_all(&files[0]);
    journal.close().unwrap();
    assert_eq!(backing_bytes(&recording.root())[0], content);
}

/// Of a file that no flush has promised, a checkpoint flushes nothing; the first flush then sees to it that the segment
/// stays away, which would undo what has been written since.
#[test]
fn what_nobody_was_promised_is_put_in_place_without_a_flush() {
    let (_scratch, storage) = store();
    let recording = RecordingStorage::new(&storage).unwrap();
    let (journal, _) = open(&recording.root());
    let backing = open_backing(&recording.root(), &path_of(0));
    let file = JournaledFile::open(&journal, backing, item(0), path_of(0), 0).unwrap();
    let end = u64::try_from(START).unwrap();
    file.commit_whole(&[Op::Write { offset: end - 100, bytes: &[0x22; 100] }, Op::SetLen(end + 200)]).unwrap();
    assert!(file.is_resizing());
    // A name by which to tell: a crash may leave those of now, and with them the segment as it is.
    recording.root().create_file("other".as_ref(), 0o600).unwrap();
    let before = recording.len();
    journal.checkpoint().unwrap();
    assert!(!recording.calls()[before..].iter().any(Call::is_flush));
    assert!(!file.is_pending() && journal.pending_bytes() == 0);
    write(&file, end + 200, &[0x33; 1_000]).unwrap();
    assert!(!file.is_pending(), "written directly");
    file.sync().unwrap();
    let expected = read_all(&file);
    assert_eq!(expected.len(), START + 1_200);
    journal.abandon();
    let mut rebuilder = recording.rebuilder();
    rebuilder.advance(recording.len()).unwrap();
    for point in rebuilder.name_points() {
        for unflushed in (0..20).map(Unflushed::Some).chain([Unflushed::Keep, Unflushed::Drop]) {
            let into = Scratch::new().unwrap();
            rebuilder.make_with_names(point, unflushed, into.path()).unwrap();
            let root = DirStorage::open(into.path()).unwrap().root();
            open(&root).0.abandon();
            assert!(backing_bytes(&root)[0] == expected, "names after {point} calls, {unflushed:?}");
        }
    }
}
