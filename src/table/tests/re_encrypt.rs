//! Sealing items anew under another version of the table's key.

use super::super::item::Step;
use super::*;
use crate::store::XattrFlags;

/// Steps until there is nothing more to do; how many there were, and the bytes that they sealed.
fn finish(mount: &Mount, item: &Item) -> (usize, u64) {
    let (mut steps, mut bytes) = (0, 0);
    loop {
        match item.re_encrypt(&mount.re_seal()).unwrap() {
            Step::Nothing => return (steps, bytes),
            Step::Done(more) | Step::More(more) => bytes += more,
        }
        steps += 1;
    }
}

fn keep(mount: &Mount, from: u32, to: u32) {
    mount.keys.install_for_tests(versions(from, to));
}

#[test]
fn every_kind_and_layout_is_sealed_anew_and_needs_the_old_key_no_more() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    let sizes = [0, 1, 3551, 3552, 4096, 112 * 4096, 112 * 4096 + 1, 700_000];
    for (index, size) in sizes.into_iter().enumerate() {
        mount.make(&format!("item{index}"), &pattern(size, 1)).sync().unwrap();
    }
    let link = mount.name("link");
    Item::create(&mount.root, &link, 0o777, None, ItemKind::Symlink, b"target", &mount.seal).unwrap();
    keep(&mount, 1, 2);
    for (index, size) in sizes.into_iter().enumerate() {
        let item = mount.item(&format!("item{index}")).unwrap();
        let (steps, bytes) = finish(&mount, &item);
        assert_eq!((steps, bytes), (size.div_ceil(40 * 4096).max(1), size as u64));
        assert_eq!(item.table_key_version(), Some(2));
    }
    finish(&mount, &mount.item("link").unwrap());
    keep(&mount, 2, 2);
    for (index, size) in sizes.into_iter().enumerate() {
        assert!(mount.read_name(&format!("item{index}")).unwrap() == pattern(size, 1));
    }
    assert_eq!(mount.read_name("link").unwrap(), b"target");
    mount.journal.close().unwrap();
    let first = std::fs::read(mount.backing(scratch.path(), "item7")).unwrap();
    assert_eq!(first[16..20], [2, 0, 0, 0]);
    let mount = Mount::open(&root, 2, &[]);
    keep(&mount, 2, 2);
    assert!(mount.read_name("item7").unwrap() == pattern(700_000, 1));
}

#[test]
fn holes_stay_holes_and_what_is_written_between_steps_stays() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let item = mount.empty("item");
    let mut model = pattern(300 * 4096, 1);
    item.write(&mount.seal, &model, 0).unwrap();
    item.punch_hole(&mount.seal, 4096 * 50, 4096 * 120).unwrap();
    model[4096 * 50..4096 * 170].fill(0);
    item.sync().unwrap();
    let space = || item.backing().stat().unwrap().blocks;
    mount.journal.checkpoint().unwrap();
    let before = (space(), item.backing().stat().unwrap().mtime);
    keep(&mount, 1, 2);
    assert_eq!(item.re_encrypt(&mount.re_seal()).unwrap(), Step::More(40 * 4096));
    // Behind the steps, before them, and across.
    for (at, length) in [(5000, 100), (250 * 4096, 9000), (39 * 4096, 8192)] {
        let bytes = pattern(length, 7);
        item.write(&mount.seal, &bytes, at as u64).unwrap();
        model[at..at + length].copy_from_slice(&bytes);
        assert!(mount.read(&item).unwrap() == model);
    }
    // Another `Item` finds it half done, and goes on.
    item.sync().unwrap();
    drop(item);
    mount.empty("another");
    let item = mount.item("item").unwrap();
    assert!(mount.read(&item).unwrap() == model);
    finish(&mount, &item);
    keep(&mount, 2, 2);
    assert!(mount.read(&item).unwrap() == model);
    assert_eq!(item.seek(Seek::Hole, 0).unwrap(), 50 * 4096);
    assert_eq!(item.seek(Seek::Data, 50 * 4096).unwrap(), 170 * 4096);
    mount.journal.checkpoint().unwrap();
    let stat = item.backing().stat().unwrap();
    assert_eq!(stat.blocks, before.0, "holes take no space");
}

#[test]
fn a_quiet_item_keeps_its_times() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let item = mount.make("item", &pattern(500_000, 1));
    item.sync().unwrap();
    item.set_times(crate::store::SetTime::At(77, 1), crate::store::SetTime::At(99, 2)).unwrap();
    keep(&mount, 1, 2);
    finish(&mount, &item);
    mount.journal.checkpoint().unwrap();
    let stat = item.backing().stat().unwrap();
    assert_eq!(stat.mtime, (99, 2));
}

#[test]
fn attributes_are_sealed_anew() {
    let (_scratch, root) = store();
    let mount = Mount::create(&root);
    let item = mount.make("item", b"text");
    let folder = mount.root.create_folder(&mount.name("folder"), 0o700, None).unwrap();
    item.set_xattr(&mount.seal, b"author", b"alice", XattrFlags::Set).unwrap();
    folder.set_xattr(&mount.seal, b"author", b"bob", XattrFlags::Set).unwrap();
    keep(&mount, 1, 2);
    for expected in [true, false] {
        assert_eq!(item.re_encrypt_attributes(&mount.re_seal()).unwrap(), expected);
        assert_eq!(folder.re_encrypt_attributes(&mount.re_seal()).unwrap(), expected);
    }
    finish(&mount, &item);
    keep(&mount, 2, 2);
    assert_eq!(item.xattr(&mount.data, b"author").unwrap(), b"alice");
    assert_eq!(folder.xattr(&mount.data, b"author").unwrap(), b"bob");
}

#[test]
fn a_damaged_block_stops_its_item_and_nothing_is_made_worse() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    let text = pattern(100 * 4096, 1);
    mount.make("item", &text).sync().unwrap();
    mount.journal.close().unwrap();
    let path = mount.backing(scratch.path(), "item");
    let whole = std::fs::read(&path).unwrap();
    let mut bad = whole.clone();
    bad[61 * 4096 + 5] ^= 1;
    overwrite(&path, &bad);
    let mount = Mount::open(&root, 2, &[]);
    keep(&mount, 1, 2);
    let item = mount.item("item").unwrap();
    assert_eq!(item.re_encrypt(&mount.re_seal()).unwrap(), Step::More(40 * 4096));
    for _ in 0..2 {
        assert!(matches!(item.re_encrypt(&mount.re_seal()), Err(TableError::Tampered { what: "block" })));
    }
    let mut buffer = vec![0; 60 * 4096];
    assert_eq!(item.read(&mount.data, &mut buffer, 0).unwrap(), buffer.len());
    assert!(buffer == text[..60 * 4096]);
    // Put right, it goes on.
    mount.journal.close().unwrap();
    drop(item);
    let mut mended = std::fs::read(&path).unwrap();
    mended[61 * 4096..62 * 4096].copy_from_slice(&whole[61 * 4096..62 * 4096]);
    overwrite(&path, &mended);
    let mount = Mount::open(&root, 3, &[]);
    keep(&mount, 1, 2);
    let item = mount.item("item").unwrap();
    finish(&mount, &item);
    keep(&mount, 2, 2);
    assert!(mount.read(&item).unwrap() == text);
}

#[test]
fn blocks_change_places_no_more_easily_while_two_keys_hold() {
    let (scratch, root) = store();
    let mount = Mount::create(&root);
    mount.make("item", &pattern(100 * 4096, 1)).sync().unwrap();
    keep(&mount, 1, 2);
    let item = mount.item("item").unwrap();
    assert_eq!(item.re_encrypt(&mount.re_seal()).unwrap(), Step::More(40 * 4096));
    mount.journal.close().unwrap();
    drop(item);
    let path = mount.backing(scratch.path(), "item");
    let good = std::fs::read(&path).unwrap();
    // A block under the new key and one under the old change places, entries and data.
    for (one, other) in [(3, 70), (3, 4), (70, 71)] {
        let mut bad = good.clone();
        for length in [32, 4096] {
            let at = |index: usize| if length == 32 { 512 + 32 * index } else { 4096 * (1 + index) };
            let kept = bad[at(one)..at(one) + length].to_vec();
            bad.copy_within(at(other)..at(other) + length, at(one));
            bad[at(other)..at(other) + length].copy_from_slice(&kept);
        }
        overwrite(&path, &bad);
        let mount = Mount::open(&root, 2, &[]);
        keep(&mount, 1, 2);
        let item = mount.item("item").unwrap();
        let mut buffer = [0xee; 4096];
        for block in [one, other] {
            let read = item.read(&mount.data, &mut buffer, block as u64 * 4096);
            assert!(matches!(read, Err(TableError::Tampered { .. })), "{block}");
            assert_eq!(buffer, [0; 4096], "what does not verify is wiped");
        }
    }
    // Nor does the header open without the key that the rest of the blocks needs.
    overwrite(&path, &good);
    let mount = Mount::open(&root, 2, &[]);
    keep(&mount, 2, 2);
    assert!(matches!(mount.read_name("item"), Err(TableError::NoKey { version: 1 })));
}
