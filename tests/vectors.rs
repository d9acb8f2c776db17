//! The primitives against vectors that others have made: Wycheproof, RFC 5869, the reference implementation of Argon2.
//!
//! Run it with `--features testing` to hold the pure-Rust AES-GCM to the same vectors as the default one.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers fail the test by panicking"
)]

use hmac::{Hmac, KeyInit, Mac};
use kmsfs::crypto::{Aad, AeadKey, Argon2Params, Key256, Key512, NameCipher, Prk, Secret, argon2id, hmac_sha256};
use serde::Deserialize;
use sha2::Sha256;
use wycheproof::TestResult;

/// One implementation of AES-256-GCM: seals, and opens what was sealed.
trait Gcm {
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> Option<[u8; 16]>;
    fn open(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8], tag: &[u8; 16]) -> bool;
}

impl Gcm for AeadKey {
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> Option<[u8; 16]> {
        AeadKey::seal(self, nonce, aad, text).ok()
    }

    fn open(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8], tag: &[u8; 16]) -> bool {
        AeadKey::open(self, nonce, aad, text, tag).is_ok()
    }
}

#[cfg(feature = "testing")]
impl Gcm for kmsfs::crypto::PureAeadKey {
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> Option<[u8; 16]> {
        Self::seal(self, nonce, aad, text).ok()
    }

    fn open(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8], tag: &[u8; 16]) -> bool {
        Self::open(self, nonce, aad, text, tag).is_ok()
    }
}

fn check_gcm(implementation: impl Fn(&Key256) -> Box<dyn Gcm>) {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
    let groups = set.test_groups.iter().filter(|g| (g.key_size, g.nonce_size, g.tag_size) == (256, 96, 128));
    let (mut valid, mut invalid) = (0, 0);
    for test in groups.flat_map(|group| &group.tests) {
        let key = implementation(&Key256::from_slice(&test.key).unwrap());
        let (nonce, tag) = (test.nonce[..].try_into().unwrap(), test.tag[..].try_into().unwrap());
        let mut text = test.ct.to_vec();
        let opened = key.open(nonce, &test.aad, &mut text, tag);
        match test.result {
            TestResult::Valid => {
                assert!(opened && text == test.pt[..], "{}", test.tc_id);
                let mut text = test.pt.to_vec();
                let sealed = key.seal(nonce, &test.aad, &mut text);
                assert_eq!((sealed.as_ref(), &text[..]), (Some(tag), &test.ct[..]), "{}", test.tc_id);
                valid += 1;
            }
            TestResult::Invalid => {
                assert!(!opened, "{}", test.tc_id);
                invalid += 1;
            }
            TestResult::Acceptable => panic!("{}: what is acceptable must be decided here", test.tc_id),
        }
    }
    assert!(valid > 30 && invalid > 20, "{valid} {invalid}");
}

#[test]
fn aes_256_gcm_as_wycheproof_has_it() {
    check_gcm(|key| Box::new(AeadKey::new(key).unwrap()));
}

#[cfg(feature = "testing")]
#[test]
fn aes_256_gcm_in_pure_rust_as_wycheproof_has_it() {
    check_gcm(|key| Box::new(kmsfs::crypto::PureAeadKey::new(key).unwrap()));
}

#[derive(Deserialize)]
struct SivFile {
    tests: Vec<SivTest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SivTest {
    tc_id: u32,
    key: String,
    aad: String,
    msg: String,
    ct: String,
    result: String,
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// RFC 5297 with two 256-bit keys and one field of associated data, as names are sealed.
#[test]
fn aes_siv_512_as_wycheproof_has_it() {
    let file: SivFile = serde_json::from_str(include_str!("vectors/aes_siv_512.json")).unwrap();
    assert_eq!(file.tests.len(), 147);
    let mut valid = 0;
    for test in &file.tests {
        let cipher = NameCipher::new(Key512::from_slice(&unhex(&test.key)).unwrap());
        let (aad, text, sealed) = (unhex(&test.aad), unhex(&test.msg), unhex(&test.ct));
        let opened = cipher.open(&aad, &sealed);
        if test.result == "valid" {
            assert_eq!(opened.unwrap(), text, "{}", test.tc_id);
            assert_eq!(cipher.seal(&aad, &text).unwrap(), sealed, "{}", test.tc_id);
            valid += 1;
        } else {
            assert_eq!(test.result, "invalid");
            assert!(opened.is_err(), "{}", test.tc_id);
        }
    }
    assert_eq!(valid, 39);
}

#[test]
fn hmac_sha256_as_wycheproof_has_it() {
    let set = wycheproof::mac::TestSet::load(wycheproof::mac::TestName::HmacSha256).unwrap();
    let groups = set.test_groups.iter().filter(|group| (group.key_size, group.tag_size) == (256, 256));
    let mut count = 0;
    for test in groups.flat_map(|group| &group.tests) {
        let mac = hmac_sha256(&Key256::from_slice(&test.key).unwrap(), &test.msg);
        assert_eq!(mac[..] == test.tag[..], test.result == TestResult::Valid, "{}", test.tc_id);
        count += 1;
    }
    assert!(count > 50, "{count}");
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

/// HKDF as RFC 5869, section 2, says it, by HMAC alone.
fn hkdf(salt: &[u8], secret: &[u8], info: &[u8], length: usize) -> Vec<u8> {
    let prk = hmac(salt, &[secret]);
    let (mut okm, mut block) = (Vec::new(), Vec::new());
    for number in 1_u8.. {
        block = hmac(&prk, &[&block, info, &[number]]);
        okm.extend_from_slice(&block);
        if okm.len() >= length {
            break;
        }
    }
    okm.truncate(length);
    okm
}

/// The infos of RFC 5869's cases are not of our injective encoding. So they hold the few lines above to the RFC, and
/// those hold `Prk` to them.
#[test]
fn hkdf_sha256_as_rfc_5869_has_it() {
    let okm = unhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865");
    let (salt, info) = (unhex("000102030405060708090a0b0c"), unhex("f0f1f2f3f4f5f6f7f8f9"));
    assert_eq!(hkdf(&salt, &[0x0b; 22], &info, 42), okm);
    let okm = unhex(
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f0\
         9b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    );
    let bytes = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
    assert_eq!(hkdf(&bytes(0x60, 0xaf), &bytes(0, 0x4f), &bytes(0xb0, 0xff), 82), okm);

    for (salt, secret) in [(&b"salt"[..], &b"secret"[..]), (&[0; 16], &[7; 32]), (&[1; 200], &[9; 4096])] {
        let info = Aad::new("kmsfs v1 item").bytes(b"block").u32(7);
        let prk = Prk::extract(salt, secret);
        let (short, long): (Secret<32>, Secret<64>) = (prk.expand(&info), prk.expand(&info));
        assert_eq!(short.expose()[..], hkdf(salt, secret, info.as_bytes(), 32));
        assert_eq!(long.expose()[..], hkdf(salt, secret, info.as_bytes(), 64));
    }
}

/// RFC 9106's own vectors are of parameters below the floor. These are what the reference implementation prints:
/// `printf 'correct horse battery staple' | argon2 0123456789abcdef0123456789abcdef -id -k 65536 -t 3 -p LANES -l 32 -r`
#[test]
fn argon2id_as_the_reference_implementation_has_it() {
    for (lanes, expected) in [
        (1, "d12ac228e1566ecd9f80cf05621657ee1b5b34e40133438917d7ed334641f455"),
        (4, "b7d5f94a21635fd43604b240e4548b011d05768a9da8636498071ef4e3ee08d4"),
    ] {
        let params = Argon2Params { lanes, ..Argon2Params::FLOOR };
        let salt = b"0123456789abcdef0123456789abcdef";
        let output = argon2id(b"correct horse battery staple", salt, params).unwrap();
        assert_eq!(output.expose()[..], unhex(expected), "{lanes}");
    }
}
