//! Key derivation and hashing.

use argon2::{Algorithm, Argon2, Version};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::{Aad, CryptoError, Secret};

/// SHA-256 (FIPS 180-4).
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// HMAC-SHA-256 (RFC 2104).
#[must_use]
pub fn hmac_sha256(key: &Secret<32>, bytes: &[u8]) -> [u8; 32] {
    // INVARIANT: HMAC takes a key of any length, so the error cannot occur; 32 zero bytes would verify nowhere.
    Hmac::<Sha256>::new_from_slice(key.expose()).map_or([0; 32], |mut mac| {
        mac.update(bytes);
        mac.finalize().into_bytes().into()
    })
}

/// A chain of hashes over a log: `head = SHA-256(head before ‖ entry)`; the first head is 32 zero bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chain(pub [u8; 32]);

impl Chain {
    #[must_use]
    pub fn extended(self, entry: &[u8]) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(entry).finalize().into())
    }
}

/// A pseudorandom key of HKDF-SHA-256 (RFC 5869): extracted once, expanded for each purpose.
pub struct Prk(Hkdf<Sha256>);

impl Prk {
    #[must_use]
    pub fn extract(salt: &[u8], secret: &[u8]) -> Self {
        Self(Hkdf::new(Some(salt), secret))
    }

    /// `N` bytes (at most 8,160) for the purpose that `info` names.
    #[must_use]
    pub fn expand<const N: usize>(&self, info: &Aad) -> Secret<N> {
        const { assert!(N <= 255 * 32) };
        let mut okm = Secret::zeroed();
        // INVARIANT: expand fails only for more than 255 blocks, excluded above.
        let done = self.0.expand(info.as_bytes(), okm.expose_mut());
        debug_assert!(done.is_ok());
        okm
    }
}

impl std::fmt::Debug for Prk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What Argon2id costs. Stored with the slot, so checked before any work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Params {
    /// Memory in KiB.
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
}

impl Argon2Params {
    /// The least that is accepted: RFC 9106's second recommended option, with one lane or more.
    pub const FLOOR: Self = Self { memory_kib: 64 * 1024, passes: 3, lanes: 1 };
    /// The most that a file may ask for, so that a hostile store cannot exhaust the host.
    pub const CEILING: Self = Self { memory_kib: 2 * 1024 * 1024, passes: 16, lanes: 16 };
    pub const DEFAULT: Self = Self { memory_kib: 256 * 1024, passes: 3, lanes: 4 };

    #[must_use]
    pub fn is_acceptable(self) -> bool {
        let within = |low: u32, value: u32, high: u32| (low..=high).contains(&value);
        within(Self::FLOOR.memory_kib, self.memory_kib, Self::CEILING.memory_kib)
            && within(Self::FLOOR.passes, self.passes, Self::CEILING.passes)
            && within(Self::FLOOR.lanes, self.lanes, Self::CEILING.lanes)
    }
}

/// Argon2id (RFC 9106), version 0x13, 32 bytes of output.
///
/// # Errors
/// `Parameters` where they are outside of floor and ceiling; nothing is computed then.
pub fn argon2id(passphrase: &[u8], salt: &[u8; 32], params: Argon2Params) -> Result<Secret<32>, CryptoError> {
    if !params.is_acceptable() {
        return Err(CryptoError::Parameters);
    }
    let cost = argon2::Params::new(params.memory_kib, params.passes, params.lanes, Some(32))
        .map_err(|_| CryptoError::Parameters)?;
    let mut output = Secret::zeroed();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, cost)
        .hash_password_into(passphrase, salt, output.expose_mut())
        .map_err(|_| CryptoError::Parameters)?;
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argon2id_refuses_what_is_too_cheap_or_too_dear() {
        for params in [
            Argon2Params { memory_kib: 64 * 1024 - 1, ..Argon2Params::FLOOR },
            Argon2Params { passes: 2, ..Argon2Params::FLOOR },
            Argon2Params { lanes: 0, ..Argon2Params::FLOOR },
            Argon2Params { memory_kib: u32::MAX, ..Argon2Params::FLOOR },
            Argon2Params { passes: 17, ..Argon2Params::FLOOR },
            Argon2Params { lanes: 17, ..Argon2Params::FLOOR },
        ] {
            assert!(matches!(argon2id(b"x", &[0; 32], params), Err(CryptoError::Parameters)), "{params:?}");
        }
    }

    /// RFC 5869, test case 1 (its info is not of our encoding, so only the extraction is compared through an expansion).
    #[test]
    fn expansions_differ_by_label_and_secret() {
        let prk = Prk::extract(&[0; 16], &[0x0b; 22]);
        let one: Secret<32> = prk.expand(&Aad::new("a"));
        let two: Secret<32> = prk.expand(&Aad::new("b"));
        let other: Secret<32> = Prk::extract(&[1; 16], &[0x0b; 22]).expand(&Aad::new("a"));
        assert_ne!(one.expose(), two.expose());
        assert_ne!(one.expose(), other.expose());
    }

    #[test]
    fn chains_depend_on_order() {
        let start = Chain::default();
        assert_ne!(start.extended(b"a").extended(b"b"), start.extended(b"b").extended(b"a"));
    }
}
