//! Level 1: keys and the few primitives that use them.
//!
//! Algorithms, and what each is for: AES-256-GCM (NIST SP 800-38D) seals everything but names; AES-SIV (RFC 5297)
//! seals names; HKDF-SHA-256 (RFC 5869) derives keys; Argon2id (RFC 9106) stretches passphrases; SHA-256 and
//! HMAC-SHA-256 chain and authenticate logs. `aead` is the only file that names a cipher crate. A secret wipes itself
//! on drop, prints `[redacted]` and cannot be cloned.

mod aad;
mod aead;
mod kdf;
mod secret;

use std::fmt;

pub use aad::Aad;
#[cfg(feature = "testing")]
pub use aead::PureAeadKey;
pub use aead::{AeadKey, NONCE_LEN, NameCipher, SIV_LEN, SealedBox, TAG_LEN};
pub use kdf::{Argon2Params, Chain, Prk, argon2id, hmac_sha256, sha256};
pub use secret::{Key256, Key512, Secret, SecretBytes, equal};

/// Why a cryptographic step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CryptoError {
    /// A tag did not verify: damage, tampering, another key or another context.
    Authentication,
    /// A sealed box is shorter than its nonce and tag.
    TooShort,
    /// Argon2id parameters outside of the floor and the ceiling of docs/format.md, section 3.
    Parameters,
    /// The kernel gave no random bytes.
    Random,
    /// More bytes than the primitive takes (2^36 for AES-GCM).
    TooLong,
}

impl fmt::Display for CryptoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authentication => "authentication failed",
            Self::TooShort => "sealed data is shorter than its nonce and tag",
            Self::Parameters => "argon2id parameters outside of what is allowed",
            Self::Random => "no random bytes from the kernel",
            Self::TooLong => "too long to be sealed",
        })
    }
}

impl std::error::Error for CryptoError {}

/// `N` bytes from getrandom(2).
pub fn random<const N: usize>() -> Result<[u8; N], CryptoError> {
    let mut bytes = [0; N];
    fill_random(&mut bytes)?;
    Ok(bytes)
}

/// Fills `bytes` from getrandom(2).
pub fn fill_random(bytes: &mut [u8]) -> Result<(), CryptoError> {
    use rand::TryRng;
    rand::rngs::SysRng.try_fill_bytes(bytes).map_err(|_| CryptoError::Random)
}
