//! Writes every file of a store as docs/format.md has it, independently of the library, under constant keys and with
//! nonces that depend on what is sealed: so that the corpus can hold sealed files, and so that a plaintext can be
//! changed and sealed again.

use kmsfs::crypto::{Aad, AeadKey, Chain, Key256, Key512, Prk, Secret, hmac_sha256, sha256};
use kmsfs::store::RecordKind;
use kmsfs::types::{DirId, ItemId, KeyId, StoreId, TableId};

pub(crate) const STORE: StoreId = StoreId::from_bytes([0x51; 16]);
pub(crate) const TABLE: TableId = TableId::from_bytes([0x61; 16]);
pub(crate) const ITEM: ItemId = ItemId::from_bytes([0x62; 16]);
pub(crate) const KEY: KeyId = KeyId::from_bytes([0x63; 16]);
/// The key file.
pub(crate) const SECRET: [u8; 64] = [0x64; 64];
const ROOT_KEY: [u8; 32] = [0x65; 32];
const MATERIAL: [u8; 32] = [0x66; 32];
const TABLE_KEY: [u8; 32] = [0x67; 32];
const NAMES_KEY: [u8; 64] = [0x68; 64];

fn key(bytes: &[u8; 32]) -> Key256 {
    Key256::from_slice(bytes).unwrap()
}

fn aead(key: &Key256) -> AeadKey {
    AeadKey::new(key).unwrap()
}

pub(crate) fn names_key() -> Key512 {
    Key512::from_slice(&NAMES_KEY).unwrap()
}

pub(crate) fn table_key() -> Key256 {
    key(&TABLE_KEY)
}

/// A key of section 2 below the root key.
pub(crate) fn root_level(label: &str) -> Key256 {
    Prk::extract(STORE.as_bytes(), &ROOT_KEY).expand(&Aad::new("kmsfs v1 root").bytes(label.as_bytes()))
}

/// `nonce ‖ ciphertext ‖ tag`.
fn seal_box(key: &AeadKey, aad: &Aad, text: &[u8]) -> Vec<u8> {
    let (nonce, sealed, tag) = seal_apart(key, aad, text);
    [&nonce[..], &sealed, &tag].concat()
}

fn seal_apart(key: &AeadKey, aad: &Aad, text: &[u8]) -> ([u8; 12], Vec<u8>, [u8; 16]) {
    let nonce = *sha256(&[aad.as_bytes(), text].concat()).first_chunk().unwrap();
    let mut sealed = text.to_vec();
    let tag = key.seal(&nonce, aad.as_bytes(), &mut sealed).unwrap();
    (nonce, sealed, tag)
}

fn length_of(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap().to_le_bytes()
}

/// Section 3: one slot for the key file.
pub(crate) fn root_file() -> Vec<u8> {
    let salt = [0x70; 32];
    let prk = Prk::extract(&salt, &SECRET);
    let of = |label: &str| prk.expand::<32>(&Aad::new("kmsfs v1 slot").bytes(label.as_bytes()));
    let mut slot = [&[0x71; 16][..], &[2, 0, 0, 0], &[0; 12], &salt].concat();
    slot.extend_from_slice(of("commitment").expose());
    let mut text = [&ROOT_KEY[..], &1_700_000_000_i64.to_le_bytes(), &[4], b"disk"].concat();
    text.resize(160, 0);
    slot.extend(seal_box(
        &aead(&of("seal")),
        &Aad::new("kmsfs v1 slot").bytes(STORE.as_bytes()).bytes(&slot[..96]),
        &text,
    ));
    slot.extend_from_slice(&[0; 36]);
    let mut file = [&b"KMSFSROT"[..], &[1, 0, 1, 0, 0, 0, 0, 0], STORE.as_bytes(), &[0; 32], &slot].concat();
    digest_root(&mut file);
    file
}

/// Puts the digests of slots and file right.
pub(crate) fn digest_root(file: &mut [u8]) {
    if file.len() < 64 {
        return;
    }
    for slot in file[64..].chunks_exact_mut(320) {
        let digest = sha256(&slot[..284]);
        slot[284..316].copy_from_slice(&digest);
    }
    let digest = sha256(&[&file[..32], &file[64..]].concat());
    file[32..64].copy_from_slice(&digest);
}

/// Section 4, with its name.
pub(crate) fn record(kind: RecordKind, id: &[u8; 16], text: &[u8]) -> Vec<u8> {
    let aad = Aad::new("kmsfs v1 record").bytes(STORE.as_bytes()).u8(kind.code()).bytes(id).u64(1);
    let sealed = seal_box(&aead(&root_level("records")), &aad, text);
    [&b"KMSFSREC"[..], &[1, 0, kind.code(), 0, 0, 0, 0, 0], &sealed].concat()
}

/// Section 5.1: entries from number 1 on.
pub(crate) fn catalog(entries: &[&[u8]]) -> Vec<u8> {
    let mut file = [&b"KMSFSCAT"[..], &[1, 0, 0, 0, 0, 0, 0, 0], STORE.as_bytes()].concat();
    let mut head = Chain::default();
    let key = aead(&root_level("catalog"));
    for (sequence, text) in (1_u64..).zip(entries) {
        let aad = Aad::new("kmsfs v1 catalog").bytes(STORE.as_bytes()).u64(sequence).bytes(&head.0);
        let sealed = seal_box(&key, &aad, text);
        head = head.extended(&sealed);
        file.extend_from_slice(&length_of(&sealed));
        file.extend_from_slice(&sequence.to_le_bytes());
        file.extend_from_slice(&sealed);
    }
    file
}

/// Section 5.3: the first 128 bytes, to be authenticated by `authenticate_anchor`. Head and trail are zeros.
pub(crate) fn anchor(sequence: u64, epoch: u64) -> Vec<u8> {
    let mut file = [&b"KMSFSANC"[..], &[1, 0, 1, 0, 0, 0, 0, 0], STORE.as_bytes()].concat();
    file.extend_from_slice(&sequence.to_le_bytes());
    file.extend_from_slice(&[0; 32]);
    file.extend_from_slice(&epoch.to_le_bytes());
    file.extend_from_slice(&[0; 48]);
    file
}

/// The anchor with its MAC put right.
pub(crate) fn authenticate_anchor(file: &[u8]) -> Vec<u8> {
    let fields = &file[..file.len().min(128)];
    [fields, &hmac_sha256(&root_level("anchor"), fields)].concat()
}

/// Section 8: segment 1, of mount epoch 1, with these plaintexts.
pub(crate) fn journal(records: &[&[u8]]) -> Vec<u8> {
    let session = [0x72; 16];
    let mut file = [&b"KMSFSJNL"[..], &[1, 0, 0, 0, 0, 0, 0, 0], STORE.as_bytes(), &session].concat();
    for number in [1_u64, 0, 1] {
        file.extend_from_slice(&number.to_le_bytes());
    }
    let journal = root_level("journal");
    let mac: Secret<32> = Prk::extract(&[], journal.expose()).expand(&Aad::new("kmsfs v1 journal header"));
    file.extend_from_slice(&hmac_sha256(&mac, &file));
    let key = aead(&Prk::extract(&session, journal.expose()).expand(&Aad::new("kmsfs v1 journal key")));
    for (sequence, text) in (0_u64..).zip(records) {
        let sealed = seal_box(&key, &Aad::new("kmsfs v1 journal").u64(1).u64(sequence), text);
        file.extend_from_slice(&length_of(&sealed));
        file.extend_from_slice(&sealed);
    }
    file
}

/// A record's plaintext, of section 8.
pub(crate) fn journal_record(path: &str, operations: &[(u8, u64, &[u8])]) -> Vec<u8> {
    let mut text = ITEM.as_bytes().to_vec();
    text.extend_from_slice(&u16::try_from(path.len()).unwrap().to_le_bytes());
    text.extend_from_slice(path.as_bytes());
    text.extend_from_slice(&u16::try_from(operations.len()).unwrap().to_le_bytes());
    for (kind, at, bytes) in operations {
        text.push(*kind);
        text.extend_from_slice(&at.to_le_bytes());
        text.extend_from_slice(&length_of(bytes));
        text.extend_from_slice(bytes);
    }
    text
}

/// Section 9: segment 1, with these events.
pub(crate) fn trail(events: &[&[u8]]) -> Vec<u8> {
    let session = [0x73; 16];
    let mut file = [&b"KMSFSAUD"[..], &[1, 0, 0, 0, 0, 0, 0, 0], STORE.as_bytes(), &session].concat();
    for number in [1_u64, 1] {
        file.extend_from_slice(&number.to_le_bytes());
    }
    file.extend_from_slice(&[0; 32]);
    let trail = root_level("trail");
    file.extend_from_slice(&hmac_sha256(&trail, &file));
    let key = aead(&Prk::extract(&session, trail.expose()).expand(&Aad::new("kmsfs v1 trail key")));
    let mut head = Chain::default();
    for (sequence, text) in (1_u64..).zip(events) {
        let sealed = seal_box(&key, &Aad::new("kmsfs v1 trail").u64(1).u64(sequence).bytes(&head.0), text);
        head = head.extended(&sealed);
        file.extend_from_slice(&length_of(&sealed));
        file.extend_from_slice(&sealed);
    }
    file
}

/// Section 11.1: a ciphertext under the material's version 1, in the context a=b.
pub(crate) fn ciphertext(text: &[u8]) -> Vec<u8> {
    let salt = [0x75; 16];
    let mut file = [&b"KMSFSCPH"[..], &[1, 0, 0, 0], STORE.as_bytes(), KEY.as_bytes()].concat();
    file.extend_from_slice(&1_u32.to_le_bytes());
    file.extend_from_slice(&salt);
    let info = Aad::new("kmsfs v1 ciphertext key").bytes(STORE.as_bytes()).bytes(KEY.as_bytes()).u32(1);
    let key = aead(&Prk::extract(&salt, &MATERIAL).expand(&info));
    let aad = Aad::new("kmsfs v1 ciphertext").bytes(&file).bytes(b"a").bytes(b"b");
    file.extend(seal_box(&key, &aad, text));
    file
}

/// Section 11.2: a stream under the table key as its data key, in segments of so many bytes.
pub(crate) fn stream(text: &[u8], segment_size: u32) -> Vec<u8> {
    let mut file = [&b"KMSFSSTR"[..], &[1, 0, 1, 0], &segment_size.to_le_bytes(), &[0x76; 16]].concat();
    let prk = Prk::extract(&[0x76; 16], &TABLE_KEY);
    let of = |label: &[u8]| prk.expand::<32>(&Aad::new("kmsfs v1 stream").bytes(label).bytes(&file[..32]));
    let (commitment, key) = (of(b"commitment"), aead(&of(b"segments")));
    let sealed_key = ciphertext(&TABLE_KEY);
    file.extend_from_slice(commitment.expose());
    file.extend_from_slice(&u16::try_from(sealed_key.len()).unwrap().to_le_bytes());
    file.extend_from_slice(&sealed_key);
    let parts: Vec<&[u8]> = text.chunks(usize::try_from(segment_size).unwrap()).collect();
    for (number, part) in (0_u64..).zip(&parts) {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&number.to_le_bytes());
        nonce[11] = u8::from(number + 1 == parts.len() as u64);
        let mut sealed = part.to_vec();
        let tag = key.seal(&nonce, &[], &mut sealed).unwrap();
        file.extend_from_slice(&sealed);
        file.extend_from_slice(&tag);
    }
    file
}

/// Section 6.2: a folder's own file.
pub(crate) fn folder(state: &[u8]) -> Vec<u8> {
    let key: Key256 = Prk::extract(TABLE.as_bytes(), &NAMES_KEY).expand(&Aad::new("kmsfs v1 names").bytes(b"folder"));
    let sealed = seal_box(&aead(&key), &Aad::new("kmsfs v1 folder").bytes(TABLE.as_bytes()), state);
    let mut file = [&b"KMSFSDIR"[..], &[1, 0, 0, 0, 0, 0, 0, 0], &sealed].concat();
    file.resize(file.len() + 36, 0);
    file
}

/// The plaintext of the table's own folder.
pub(crate) fn folder_state(id: &DirId) -> Vec<u8> {
    let mut state = id.as_bytes().to_vec();
    state.resize(80, 0);
    state
}

const HEAD_LEN: usize = 88;
const STATE_LEN: usize = 256;

/// Sections 6.3 and 6.4: an item of `text`, which is a head (88 bytes, its commitment is put right), a state (256) and
/// the content. What is missing is zeros.
pub(crate) fn item(text: &[u8]) -> Vec<u8> {
    let mut text = text.to_vec();
    text.resize(text.len().max(HEAD_LEN + STATE_LEN), 0);
    let (head, rest) = text.split_at_mut(HEAD_LEN);
    let (state, content) = rest.split_at(STATE_LEN);
    let number = |at: usize| u32::from_le_bytes(*head[at..].first_chunk().unwrap());
    let (version, epoch) = (number(16), number(20));
    let (id, salt) = (head[24..40].to_vec(), head[40..56].to_vec());
    let prk = Prk::extract(&salt, &TABLE_KEY);
    let info = |label: &str| {
        let info = Aad::new("kmsfs v1 item").bytes(label.as_bytes()).u8(1).bytes(TABLE.as_bytes());
        info.u32(version).bytes(&id)
    };
    head[56..88].copy_from_slice(prk.expand::<32>(&info("commitment")).expose());
    let header_key = aead(&prk.expand(&info("header").u32(epoch)));
    let (nonce, sealed, tag) = seal_apart(&header_key, &Aad::new("kmsfs v1 header").bytes(head), state);
    let paged = head[12] == 2;
    let mut file = [&*head, &nonce, &sealed, &tag, &[0; 140]].concat();
    let block_key = aead(&prk.expand(&info("block").u32(epoch)));
    let mut data = Vec::new();
    for (index, block) in (0_u64..).zip(content.chunks(4096)) {
        let (nonce, sealed, tag) = seal_apart(&block_key, &Aad::new("kmsfs v1 block").u8(0).u64(index), block);
        file.extend_from_slice(&nonce);
        file.extend_from_slice(&epoch.to_le_bytes());
        file.extend_from_slice(&tag);
        data.extend_from_slice(&sealed);
    }
    if paged {
        file.resize(file.len().max(4096), 0);
    }
    file.extend_from_slice(&data);
    file
}

/// What `item` seals, for a sound item.
pub(crate) fn item_text(kind: u8, layout: u8, binding: &[u8; 16], content: &[u8]) -> Vec<u8> {
    let mut text = [&b"KMSFSITM"[..], &[1, 0, 1, kind, layout, 0, 0, 0]].concat();
    text.extend_from_slice(&1_u32.to_le_bytes());
    text.extend_from_slice(&7_u32.to_le_bytes());
    text.extend_from_slice(ITEM.as_bytes());
    text.extend_from_slice(&[0x74; 16]);
    text.resize(HEAD_LEN, 0);
    let size = content.len() as u64;
    for number in [size, 0, 1, 3, size.div_ceil(4096)] {
        text.extend_from_slice(&number.to_le_bytes());
    }
    text.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    text.extend_from_slice(binding);
    text.resize(HEAD_LEN + STATE_LEN, 0);
    text.extend_from_slice(content);
    text
}

/// What a sealed key is bound to (section 2).
fn wrapped(kind: &str, table: &[u8; 16], key: &[u8; 16], material: u32) -> Aad {
    let aad = Aad::new("kmsfs v1 key").bytes(STORE.as_bytes()).bytes(kind.as_bytes());
    aad.bytes(table).bytes(key).u32(material).u32(1)
}

/// The sealed material of a key, in hexadecimal.
pub(crate) fn material(key: KeyId) -> String {
    let aad = wrapped("material", &[0; 16], key.as_bytes(), 0);
    kmsfs::kms::hex(&seal_box(&aead(&root_level("wrap")), &aad, &MATERIAL))
}

/// The sealed names key of the table.
pub(crate) fn sealed_names_key() -> String {
    let aad = wrapped("names", TABLE.as_bytes(), &[0; 16], 0);
    kmsfs::kms::hex(&seal_box(&aead(&root_level("wrap")), &aad, &NAMES_KEY))
}

/// The table's sealed key.
pub(crate) fn sealed_table_key(under: KeyId) -> String {
    let aad = wrapped("table", TABLE.as_bytes(), under.as_bytes(), 1);
    kmsfs::kms::hex(&seal_box(&aead(&key(&MATERIAL)), &aad, &TABLE_KEY))
}
