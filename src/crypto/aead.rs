//! The one file that names cipher crates: AES-256-GCM for everything but names, AES-SIV for names.
//!
//! With the feature `aws-lc` (default) AES-256-GCM is aws-lc-rs, without it the pure-Rust aes-gcm; both are held to the
//! same vectors and open each other's boxes.

use std::fmt;

use super::{Aad, CryptoError, Key256, Key512, random};

/// Bytes of an AES-GCM nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of an AES-GCM tag.
pub const TAG_LEN: usize = 16;
/// Bytes by which AES-SIV lengthens a name: its synthetic IV.
pub const SIV_LEN: usize = 16;

#[cfg(feature = "aws-lc")]
mod gcm {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

    use super::{CryptoError, Key256, NONCE_LEN, TAG_LEN};

    pub(super) struct Cipher(LessSafeKey);

    impl Cipher {
        pub(super) fn new(key: &Key256) -> Result<Self, CryptoError> {
            UnboundKey::new(&AES_256_GCM, key.expose())
                .map(|unbound| Self(LessSafeKey::new(unbound)))
                .map_err(|_| CryptoError::Parameters)
        }

        pub(super) fn seal(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            buffer: &mut [u8],
        ) -> Result<[u8; TAG_LEN], CryptoError> {
            let tag = self
                .0
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), buffer)
                .map_err(|_| CryptoError::TooLong)?;
            tag.as_ref().try_into().map_err(|_| CryptoError::TooShort)
        }

        pub(super) fn open(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            buffer: &mut [u8],
            tag: &[u8; TAG_LEN],
        ) -> Result<(), CryptoError> {
            self.0
                .open_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), tag, buffer)
                .map_err(|_| CryptoError::Authentication)?;
            Ok(())
        }
    }
}

#[cfg(not(feature = "aws-lc"))]
mod gcm {
    use super::rust_gcm::RustCipher;

    pub(super) type Cipher = RustCipher;
}

#[cfg(any(test, feature = "testing", not(feature = "aws-lc")))]
mod rust_gcm {
    use aes_gcm::aead::AeadInOut;
    use aes_gcm::{Aes256Gcm, KeyInit};

    use super::{CryptoError, Key256, NONCE_LEN, TAG_LEN};

    pub(super) struct RustCipher(Box<Aes256Gcm>);

    impl RustCipher {
        pub(super) fn new(key: &Key256) -> Result<Self, CryptoError> {
            Aes256Gcm::new_from_slice(key.expose())
                .map(|cipher| Self(Box::new(cipher)))
                .map_err(|_| CryptoError::Parameters)
        }

        pub(super) fn seal(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            buffer: &mut [u8],
        ) -> Result<[u8; TAG_LEN], CryptoError> {
            self.0
                .encrypt_inout_detached(&(*nonce).into(), aad, buffer.into())
                .map(Into::into)
                .map_err(|_| CryptoError::TooLong)
        }

        pub(super) fn open(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            buffer: &mut [u8],
            tag: &[u8; TAG_LEN],
        ) -> Result<(), CryptoError> {
            self.0
                .decrypt_inout_detached(&(*nonce).into(), aad, buffer.into(), &(*tag).into())
                .map_err(|_| CryptoError::Authentication)
        }
    }
}

/// An AES-256-GCM key, ready for use.
pub struct AeadKey(gcm::Cipher);

/// AES-256-GCM in pure Rust, whatever the block path runs on: so that one build can hold both to the same vectors.
#[cfg(feature = "testing")]
pub struct PureAeadKey(rust_gcm::RustCipher);

#[cfg(feature = "testing")]
impl PureAeadKey {
    pub fn new(key: &Key256) -> Result<Self, CryptoError> {
        rust_gcm::RustCipher::new(key).map(Self)
    }

    pub fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buffer: &mut [u8]) -> Result<[u8; TAG_LEN], CryptoError> {
        self.0.seal(nonce, aad, buffer)
    }

    pub fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), CryptoError> {
        self.0.open(nonce, aad, buffer, tag)
    }
}

#[cfg(feature = "testing")]
impl fmt::Debug for PureAeadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A nonce and a tag: what stands beside a ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedBox {
    pub nonce: [u8; NONCE_LEN],
    pub tag: [u8; TAG_LEN],
}

impl AeadKey {
    pub fn new(key: &Key256) -> Result<Self, CryptoError> {
        gcm::Cipher::new(key).map(Self)
    }

    /// Encrypts `buffer` in place under `nonce`, which the caller must never use again with this key.
    pub fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buffer: &mut [u8]) -> Result<[u8; TAG_LEN], CryptoError> {
        self.0.seal(nonce, aad, buffer)
    }

    /// Encrypts `buffer` in place under a random nonce.
    pub fn seal_random(&self, aad: &[u8], buffer: &mut [u8]) -> Result<SealedBox, CryptoError> {
        let nonce = random()?;
        let tag = self.seal(&nonce, aad, buffer)?;
        Ok(SealedBox { nonce, tag })
    }

    /// Decrypts `buffer` in place. On an error the buffer holds nothing of use and must not be released.
    ///
    /// # Errors
    /// `Authentication` when the tag does not verify.
    pub fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), CryptoError> {
        self.0.open(nonce, aad, buffer, tag)
    }

    /// Seals `plaintext` into `nonce ‖ ciphertext ‖ tag`.
    pub fn seal_box(&self, aad: &Aad, plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut text = Vec::with_capacity(NONCE_LEN + plaintext.len() + TAG_LEN);
        text.extend_from_slice(&[0; NONCE_LEN]);
        text.extend_from_slice(plaintext);
        let (head, body) = text.split_at_mut(NONCE_LEN);
        let sealed = self.seal_random(aad.as_bytes(), body)?;
        head.copy_from_slice(&sealed.nonce);
        text.extend_from_slice(&sealed.tag);
        Ok(text)
    }

    /// Opens what `seal_box` made. The result wipes itself.
    pub fn open_box(&self, aad: &Aad, sealed: &[u8]) -> Result<zeroize::Zeroizing<Vec<u8>>, CryptoError> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(CryptoError::TooShort)?;
        let (body, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(CryptoError::TooShort)?;
        let mut text = zeroize::Zeroizing::new(body.to_vec());
        self.open(nonce, aad.as_bytes(), &mut text, tag)?;
        Ok(text)
    }
}

impl fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// AES-SIV-512 (RFC 5297 with two 256-bit keys) for names: equal names in one folder have equal ciphertexts, and
/// nothing else is told. Output: `V ‖ C`.
pub struct NameCipher(Key512);

impl NameCipher {
    #[must_use]
    pub fn new(key: Key512) -> Self {
        Self(key)
    }

    pub fn seal(&self, aad: &[u8], name: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.cipher()?.encrypt([aad], name).map_err(|_| CryptoError::TooLong)
    }

    /// # Errors
    /// `Authentication` when the name was not sealed under this key and this associated data.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.cipher()?.decrypt([aad], sealed).map_err(|_| CryptoError::Authentication)
    }

    /// The key, from which a table derives what belongs to its names.
    #[must_use]
    pub fn key(&self) -> &Key512 {
        &self.0
    }

    fn cipher(&self) -> Result<aes_siv::siv::Aes256Siv, CryptoError> {
        use aes_siv::KeyInit;
        aes_siv::siv::Aes256Siv::new_from_slice(self.0.expose()).map_err(|_| CryptoError::Parameters)
    }
}

impl fmt::Debug for NameCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> Key256 {
        Key256::from_slice(&[byte; 32]).unwrap()
    }

    #[test]
    fn a_box_opens_under_its_key_and_context_alone() {
        let aead = AeadKey::new(&key(1)).unwrap();
        let aad = Aad::new("t").bytes(b"context");
        let sealed = aead.seal_box(&aad, b"text").unwrap();
        assert_eq!(aead.open_box(&aad, &sealed).unwrap().as_slice(), b"text");
        assert_eq!(aead.open_box(&Aad::new("t"), &sealed), Err(CryptoError::Authentication));
        assert_eq!(AeadKey::new(&key(2)).unwrap().open_box(&aad, &sealed), Err(CryptoError::Authentication));
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(aead.open_box(&aad, &damaged), Err(CryptoError::Authentication), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(aead.open_box(&aad, &sealed[..length]).is_err());
        }
    }

    /// What one implementation seals the other opens, so that a build without aws-lc reads the same stores.
    #[test]
    fn both_implementations_agree() {
        let (nonce, aad) = ([3; NONCE_LEN], b"aad");
        for length in [0, 1, 15, 16, 17, 4096, 65_537] {
            let (mut one, mut two) = (vec![5; length], vec![5; length]);
            let tag = gcm::Cipher::new(&key(9)).unwrap().seal(&nonce, aad, &mut one).unwrap();
            let same = rust_gcm::RustCipher::new(&key(9)).unwrap().seal(&nonce, aad, &mut two).unwrap();
            assert_eq!((tag, &one), (same, &two), "{length}");
            rust_gcm::RustCipher::new(&key(9)).unwrap().open(&nonce, aad, &mut one, &tag).unwrap();
            gcm::Cipher::new(&key(9)).unwrap().open(&nonce, aad, &mut two, &tag).unwrap();
            assert_eq!((&one, &two), (&vec![5; length], &vec![5; length]));
        }
    }

    #[test]
    fn a_name_opens_in_its_own_folder_alone() {
        let names = NameCipher::new(Key512::from_slice(&[4; 64]).unwrap());
        let sealed = names.seal(b"folder", b"1001.json").unwrap();
        assert_eq!(sealed.len(), 9 + SIV_LEN);
        assert_eq!(names.open(b"folder", &sealed).unwrap(), b"1001.json");
        assert_eq!(names.open(b"other", &sealed), Err(CryptoError::Authentication));
        assert_eq!(names.seal(b"folder", b"1001.json").unwrap(), sealed);
    }
}
