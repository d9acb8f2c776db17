//! What Encrypt and GenerateDataKey give away: a ciphertext that says which key opens it (docs/format.md, section 11).
//!
//! Each has a key of its own, derived from a version of the key's material and a random salt, so that no number of calls
//! uses up what AES-GCM's random nonces are good for. Everything before the sealed box and the whole encryption context
//! are bound to it. Nothing here decides who may open one.

use zeroize::Zeroizing;

use crate::crypto::{Aad, AeadKey, CryptoError, Key256, NONCE_LEN, Prk, TAG_LEN, random};
use crate::types::{EncryptionContext, KeyId, StoreId};

/// Bytes that Encrypt takes. Source: AWS KMS API Reference, 'Encrypt'.
pub const PLAINTEXT_MOST: usize = 4096;
/// Bytes of a ciphertext that has no plaintext.
pub const CIPHERTEXT_LEAST: usize = HEAD_LEN + NONCE_LEN + TAG_LEN;
/// Bytes of the longest ciphertext.
pub const CIPHERTEXT_MOST: usize = CIPHERTEXT_LEAST + PLAINTEXT_MOST;

/// How a ciphertext begins.
pub const CIPHERTEXT_MAGIC: [u8; 8] = *b"KMSFSCPH";
const VERSION: u16 = 1;
const HEAD_LEN: usize = 64;

/// A ciphertext, taken apart. None of it is authenticated before [`Ciphertext::open`] has opened it: until then its
/// fields only say where to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ciphertext<'a> {
    pub store: StoreId,
    pub key: KeyId,
    pub material_version: u32,
    salt: [u8; 16],
    head: &'a [u8; HEAD_LEN],
    sealed: &'a [u8],
}

impl<'a> Ciphertext<'a> {
    /// # Errors
    /// What it is that these bytes lack.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let Some((head, sealed)) = bytes.split_first_chunk::<HEAD_LEN>() else {
            return Err("it is too short for a ciphertext");
        };
        let (magic, rest) = chunk::<8>(head);
        let (version, rest) = chunk::<2>(rest);
        let (zero, rest) = chunk::<2>(rest);
        let (store, rest) = chunk::<16>(rest);
        let (key, rest) = chunk::<16>(rest);
        let (material, rest) = chunk::<4>(rest);
        let (salt, _) = chunk::<16>(rest);
        if magic != CIPHERTEXT_MAGIC {
            return Err("it is no ciphertext of kmsfs");
        }
        if u16::from_le_bytes(version) != VERSION {
            return Err("it was written by another format version, this is version 1");
        }
        if zero != [0; 2] {
            return Err("it is malformed");
        }
        if !(CIPHERTEXT_LEAST..=CIPHERTEXT_MOST).contains(&bytes.len()) {
            return Err("its length is none that a ciphertext has");
        }
        Ok(Self {
            store: StoreId::from_bytes(store),
            key: KeyId::from_bytes(key),
            material_version: u32::from_le_bytes(material),
            salt,
            head,
            sealed,
        })
    }

    /// Opens it under the material that it names.
    pub(super) fn open(
        &self,
        material: &Key256,
        context: &EncryptionContext,
    ) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        sealing_key(self.store, self.key, self.material_version, &self.salt, material)?
            .open_box(&aad(self.head, context), self.sealed)
    }
}

/// Seals at most [`PLAINTEXT_MOST`] bytes; whoever calls it has decided.
pub(super) fn seal(
    store: StoreId,
    key: KeyId,
    (version, material): (u32, &Key256),
    context: &EncryptionContext,
    plaintext: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    if plaintext.len() > PLAINTEXT_MOST {
        return Err(CryptoError::TooLong);
    }
    let salt = random()?;
    let mut head = [0; HEAD_LEN];
    let fields: [&[u8]; 7] = [
        &CIPHERTEXT_MAGIC,
        &VERSION.to_le_bytes(),
        &[0; 2],
        store.as_bytes(),
        key.as_bytes(),
        &version.to_le_bytes(),
        &salt,
    ];
    for (byte, value) in head.iter_mut().zip(fields.into_iter().flatten()) {
        *byte = *value;
    }
    let sealed = sealing_key(store, key, version, &salt, material)?.seal_box(&aad(&head, context), plaintext)?;
    Ok([&head[..], &sealed].concat())
}

fn sealing_key(
    store: StoreId,
    key: KeyId,
    version: u32,
    salt: &[u8; 16],
    material: &Key256,
) -> Result<AeadKey, CryptoError> {
    let info = Aad::new("kmsfs v1 ciphertext key").bytes(store.as_bytes()).bytes(key.as_bytes()).u32(version);
    AeadKey::new(&Prk::extract(salt, material.expose()).expand(&info))
}

fn aad(head: &[u8; HEAD_LEN], context: &EncryptionContext) -> Aad {
    let aad = Aad::new("kmsfs v1 ciphertext").bytes(head);
    context.pairs().iter().fold(aad, |aad, (name, value)| aad.bytes(name.as_bytes()).bytes(value.as_bytes()))
}

/// The first `N` bytes and the rest. INVARIANT: called within a head, whose fields fill it.
fn chunk<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    bytes.split_first_chunk().map_or(([0; N], &[]), |(first, rest)| (*first, rest))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const STORE: StoreId = StoreId::from_bytes([1; 16]);
    const KEY: KeyId = KeyId::from_bytes([2; 16]);

    fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
        EncryptionContext::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    fn material(byte: u8) -> Key256 {
        Key256::from_slice(&[byte; 32]).unwrap()
    }

    #[test]
    fn it_opens_under_its_material_and_its_whole_context_alone() {
        let right = context(&[("purpose", "backup"), ("host", "a")]);
        let sealed = seal(STORE, KEY, (3, &material(7)), &right, b"secret").unwrap();
        assert_eq!(sealed.len(), CIPHERTEXT_LEAST + 6);
        let parsed = Ciphertext::parse(&sealed).unwrap();
        assert_eq!((parsed.store, parsed.key, parsed.material_version), (STORE, KEY, 3));
        assert_eq!(parsed.open(&material(7), &right).unwrap().as_slice(), b"secret");
        let wrong = [
            context(&[]),
            context(&[("purpose", "backup")]),
            context(&[("purpose", "backup"), ("host", "b")]),
            context(&[("Purpose", "backup"), ("host", "a")]),
            context(&[("purpose", "backup"), ("host", "a"), ("x", "")]),
            // The same bytes, cut elsewhere.
            context(&[("purpose", "backuphost"), ("", "a")]),
        ];
        for wrong in wrong {
            assert_eq!(parsed.open(&material(7), &wrong).unwrap_err(), CryptoError::Authentication, "{wrong:?}");
        }
        assert_eq!(parsed.open(&material(8), &right).unwrap_err(), CryptoError::Authentication);
    }

    #[test]
    fn no_bit_and_no_byte_of_it_can_be_changed() {
        let none = EncryptionContext::new(BTreeMap::new());
        let sealed = seal(STORE, KEY, (1, &material(7)), &none, b"x").unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let opens = Ciphertext::parse(&damaged).is_ok_and(|parsed| parsed.open(&material(7), &none).is_ok());
            assert!(!opens, "bit {bit}");
        }
        for length in 0..sealed.len() {
            let cut = Ciphertext::parse(&sealed[..length]);
            assert!(cut.is_err() || cut.unwrap().open(&material(7), &none).is_err(), "{length}");
        }
    }

    #[test]
    fn two_of_the_same_have_nothing_in_common_but_what_names_their_key() {
        let none = EncryptionContext::default();
        let seal = || seal(STORE, KEY, (1, &material(7)), &none, &[0; PLAINTEXT_MOST]).unwrap();
        let (one, two) = (seal(), seal());
        assert_eq!(one.len(), CIPHERTEXT_MOST);
        assert_eq!(one[..48], two[..48]);
        assert_ne!(one[48..64], two[48..64]);
        assert!(one[64..].iter().zip(&two[64..]).filter(|(a, b)| a == b).count() < 100);
        assert!(super::seal(STORE, KEY, (1, &material(7)), &none, &[0; PLAINTEXT_MOST + 1]).is_err());
    }
}
