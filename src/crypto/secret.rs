//! Secrets: wiped on drop, printed as `[redacted]`, never cloned.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::{CryptoError, fill_random};

/// `N` secret bytes on the heap (so that a move leaves no copy behind), wiped on drop.
pub struct Secret<const N: usize>(Box<[u8; N]>);

/// A 256-bit key.
pub type Key256 = Secret<32>;
/// A 512-bit key: the two halves of AES-SIV.
pub type Key512 = Secret<64>;

impl<const N: usize> Secret<N> {
    /// Takes the bytes over and wipes the caller's copy.
    #[must_use]
    pub fn take(bytes: &mut [u8; N]) -> Self {
        let mut secret = Self::zeroed();
        secret.0.copy_from_slice(bytes);
        bytes.zeroize();
        secret
    }

    /// Copies `bytes`; none if they are not `N`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut secret = Self::zeroed();
        if bytes.len() != N {
            return None;
        }
        secret.0.copy_from_slice(bytes);
        Some(secret)
    }

    /// Fresh random bytes.
    pub fn random() -> Result<Self, CryptoError> {
        let mut secret = Self::zeroed();
        fill_random(secret.0.as_mut())?;
        Ok(secret)
    }

    /// The bytes, for the one call that needs them.
    #[must_use]
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    pub(super) fn zeroed() -> Self {
        Self(Box::new([0; N]))
    }

    pub(super) fn expose_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Secret bytes of any length (a passphrase, a key file), wiped on drop.
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes the buffer over; what it holds beyond its length is the caller's concern.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Whether two byte strings are equal, in a time that depends on their lengths alone.
#[must_use]
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let key = Key256::from_slice(&[7; 32]).unwrap();
        assert_eq!(format!("{key:?} {:?}", SecretBytes::new(b"pass".to_vec())), "[redacted] [redacted]");
    }

    #[test]
    fn taking_wipes_the_source() {
        let mut bytes = [9; 32];
        let key = Key256::take(&mut bytes);
        assert_eq!((bytes, *key.expose()), ([0; 32], [9; 32]));
    }
}
