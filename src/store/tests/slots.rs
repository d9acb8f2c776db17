//! Unlock slots: who opens the store.

use super::*;
use crate::store::SlotState;

fn passphrase(text: &str) -> Credential {
    Credential::Passphrase(SecretBytes::new(text.as_bytes().to_vec()))
}

fn open_with(base: &Path, credential: &Credential, how: &Open) -> Result<Store, StoreError> {
    Store::open(&base.join("store"), credential, how)
}

#[test]
fn slots_come_and_go() {
    let scratch = Scratch::new();
    let base = scratch.path();
    let store = create(base);
    let first = store.slots().unwrap();
    assert_eq!((first.len(), first[0].label.as_str(), first[0].state), (1, "first", SlotState::Intact));
    assert!(matches!(store.remove_slot(first[0].id), Err(StoreError::LastSlot)));
    let second = store.add_slot(&key_file(1), &key_file(2), Argon2Params::FLOOR, "zweite Schlüsseldatei").unwrap();
    assert!(matches!(
        store.add_slot(&key_file(9), &key_file(3), Argon2Params::FLOOR, ""),
        Err(StoreError::WrongCredential { kind: "key file" })
    ));
    drop(store);

    let store = open_with(base, &key_file(2), &how(base)).unwrap();
    assert_eq!(store.events(), []);
    assert_eq!(store.slots().unwrap().iter().map(|slot| slot.id).collect::<Vec<_>>(), [first[0].id, second]);
    store.remove_slot(first[0].id).unwrap();
    assert!(matches!(store.remove_slot(first[0].id), Err(StoreError::NoSuchSlot)));
    drop(store);
    assert!(matches!(open(base, &how(base)), Err(StoreError::WrongCredential { .. })));
    let store = open_with(base, &key_file(2), &how(base)).unwrap();
    assert_eq!(store.slots().unwrap()[0].label, "zweite Schlüsseldatei");
    assert_eq!(store.slots().unwrap()[0].params, None);
}

#[test]
fn there_are_sixteen_slots_at_most() {
    let scratch = Scratch::new();
    let base = scratch.path();
    let store = create(base);
    for byte in 2..=16 {
        store.add_slot(&key_file(1), &key_file(byte), Argon2Params::FLOOR, "").unwrap();
    }
    let more = store.add_slot(&key_file(1), &key_file(17), Argon2Params::FLOOR, "");
    assert!(matches!(more, Err(StoreError::TooManySlots)));
    assert_eq!(std::fs::metadata(base.join("store/root")).unwrap().len(), 64 + 16 * 320);
    drop(store);
    assert!(open_with(base, &key_file(16), &how(base)).unwrap().events().is_empty());
}

#[test]
fn passphrases_open_and_parameters_are_bounded() {
    let scratch = Scratch::new();
    let base = scratch.path();
    let store = create(base);
    let cheap = Argon2Params { memory_kib: 1024, ..Argon2Params::FLOOR };
    assert!(matches!(store.add_slot(&key_file(1), &passphrase("x"), cheap, ""), Err(StoreError::Parameters)));
    let empty = store.add_slot(&key_file(1), &passphrase(""), Argon2Params::FLOOR, "");
    assert!(matches!(empty, Err(StoreError::BadCredential { .. })));
    let long = "x".repeat(super::super::MAX_LABEL_LEN + 1);
    let refused = store.add_slot(&key_file(1), &passphrase("x"), Argon2Params::FLOOR, &long);
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
    for length in [0, 31, 4097] {
        let file = Credential::KeyFile(SecretBytes::new(vec![7; length]));
        let refused = store.add_slot(&key_file(1), &file, Argon2Params::FLOOR, "");
        assert!(matches!(refused, Err(StoreError::BadCredential { .. })), "{length}");
    }
    let longest = long.strip_prefix('x').unwrap();
    store.add_slot(&key_file(1), &passphrase("correct horse"), Argon2Params::FLOOR, longest).unwrap();
    drop(store);
    let store = open_with(base, &passphrase("correct horse"), &how(base)).unwrap();
    let slots = store.slots().unwrap();
    assert_eq!((slots[1].label.as_str(), slots[1].params), (longest, Some(Argon2Params::FLOOR)));
    drop(store);
    assert!(matches!(
        open_with(base, &passphrase("Correct horse"), &how(base)),
        Err(StoreError::WrongCredential { kind: "passphrase" })
    ));

    // A slot that asks for more than the ceiling is refused at once, its digests being right.
    let mut bytes = std::fs::read(base.join("store/root")).unwrap();
    bytes[64 + 320 + 20..64 + 320 + 24].copy_from_slice(&(8_u32 << 20).to_le_bytes());
    forge_digests(&mut bytes);
    write_root(base, &bytes);
    let before = std::time::Instant::now();
    let refused = open_with(base, &passphrase("correct horse"), &how(base));
    assert!(matches!(refused, Err(StoreError::DamagedSlots { damaged: 1, of: 2 })), "{refused:?}");
    assert!(before.elapsed() < std::time::Duration::from_millis(50), "no work was done");
}

fn write_root(base: &Path, bytes: &[u8]) {
    use std::io::Write;
    std::fs::File::create(base.join("store/root")).unwrap().write_all(bytes).unwrap();
}

/// Whoever can write `root` can make its digests right.
fn forge_digests(bytes: &mut [u8]) {
    for slot in bytes[64..].chunks_mut(320) {
        let digest = crate::crypto::sha256(&slot[..284]);
        slot[284..316].copy_from_slice(&digest);
    }
    let digest = crate::crypto::sha256(&[&bytes[..32], &bytes[64..]].concat());
    bytes[32..64].copy_from_slice(&digest);
}

#[test]
fn no_kind_of_slot_is_told_from_a_wrong_one() {
    let scratch = Scratch::new();
    let base = scratch.path();
    drop(create(base));
    let refused = open_with(base, &passphrase("x"), &how(base));
    assert!(matches!(refused, Err(StoreError::NoSuchCredential { kind: "passphrase" })), "{refused:?}");
}

/// With forged digests a changed slot does not open either, whatever bit was changed.
#[test]
fn a_forged_slot_does_not_open() {
    let scratch = Scratch::new();
    let base = scratch.path();
    drop(create(base));
    let whole = std::fs::read(base.join("store/root")).unwrap();
    // The slot's fields, without its digest and its zeros; and the store's id.
    for byte in (16..32).chain(64..64 + 284) {
        let mut bytes = whole.clone();
        bytes[byte] ^= 0x10;
        forge_digests(&mut bytes);
        write_root(base, &bytes);
        match open(base, &read_only(base)) {
            Err(StoreError::DamagedSlots { .. } | StoreError::WrongCredential { .. }) => {}
            other => panic!("byte {byte}: {other:?}"),
        }
    }
}

#[test]
fn a_damaged_slot_leaves_the_others_open() {
    let scratch = Scratch::new();
    let base = scratch.path();
    let store = create(base);
    let second = store.add_slot(&key_file(1), &key_file(2), Argon2Params::FLOOR, "second").unwrap();
    drop(store);
    let mut bytes = std::fs::read(base.join("store/root")).unwrap();
    bytes[64 + 320 + 120] ^= 1;
    write_root(base, &bytes);
    assert!(matches!(open_with(base, &key_file(2), &how(base)), Err(StoreError::DamagedSlots { damaged: 1, of: 2 })));
    let store = open(base, &how(base)).unwrap();
    assert_eq!(damage(&store), [&Found::Slots { unknown: 1, missing: 1 }]);
    let states: Vec<_> = store.slots().unwrap().iter().map(|slot| (slot.id, slot.state)).collect();
    assert_eq!(states[1], (second, SlotState::Damaged));
    store.remove_slot(second).unwrap();
    assert_eq!(store.slots().unwrap().len(), 1);
    drop(store);
    assert!(open(base, &how(base)).unwrap().events().is_empty());
}

#[test]
fn a_slot_that_was_put_back_does_not_open_the_store() {
    let scratch = Scratch::new();
    let base = scratch.path();
    let store = create(base);
    let first = store.slots().unwrap()[0].id;
    store.add_slot(&key_file(1), &key_file(2), Argon2Params::FLOOR, "second").unwrap();
    let old = std::fs::read(base.join("store/root")).unwrap();
    store.remove_slot(first).unwrap();
    drop(store);
    write_root(base, &old);
    assert!(matches!(open(base, &how(base)), Err(StoreError::Tampered { file, .. }) if file == "root"));
    let store = open_with(base, &key_file(2), &how(base)).unwrap();
    assert_eq!(damage(&store), [&Found::Slots { unknown: 1, missing: 0 }]);
    assert_eq!(store.slots().unwrap()[1].state, SlotState::Unknown);
    // The next change of the slots drops it.
    store.add_slot(&key_file(2), &key_file(3), Argon2Params::FLOOR, "third").unwrap();
    assert_eq!(store.slots().unwrap().len(), 2);
    drop(store);
    assert!(matches!(open(base, &how(base)), Err(StoreError::WrongCredential { .. })));

    // A backup of `root` that is restored on purpose.
    write_root(base, &old);
    let store = open(base, &accepting(base)).unwrap();
    assert_eq!(store.events(), [Found::SlotAccepted]);
    drop(store);
    let store = open(base, &how(base)).unwrap();
    assert_eq!(store.events(), []);
    assert_eq!(store.slots().unwrap().iter().filter(|slot| slot.label == "first").count(), 1);
}
