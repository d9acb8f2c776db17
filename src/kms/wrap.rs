//! Sealed keys: each bound to its whole context (docs/format.md, section 2).

use super::KmsError;
use super::record::{hex, unhex};
use crate::crypto::{Aad, AeadKey, Secret};
use crate::types::{KeyId, StoreId, TableId};

/// What a sealed key is, and so what its associated data say.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wrapped {
    /// A version of a key's material, under 'wrap'.
    Material { key: KeyId, version: u32 },
    /// A version of a table key, under a version of the key's material.
    Table { table: TableId, key: KeyId, material: u32, version: u32 },
    /// A table's names key, under 'wrap'.
    Names { table: TableId },
}

fn aad(store: StoreId, what: Wrapped) -> Aad {
    let none = [0; 16];
    let fields = |kind: &[u8], table: &[u8; 16], key: &[u8; 16], material: u32, version: u32| {
        Aad::new("kmsfs v1 key").bytes(store.as_bytes()).bytes(kind).bytes(table).bytes(key).u32(material).u32(version)
    };
    match what {
        Wrapped::Material { key, version } => fields(b"material", &none, key.as_bytes(), 0, version),
        Wrapped::Table { table, key, material, version } => {
            fields(b"table", table.as_bytes(), key.as_bytes(), material, version)
        }
        Wrapped::Names { table } => fields(b"names", table.as_bytes(), &none, 0, 1),
    }
}

/// Seals `secret` under `by`; the result is hexadecimal.
pub(super) fn seal<const N: usize>(
    store: StoreId,
    what: Wrapped,
    by: &AeadKey,
    secret: &Secret<N>,
) -> Result<String, KmsError> {
    Ok(hex(&by.seal_box(&aad(store, what), secret.expose())?))
}

/// Opens what `seal` made.
///
/// # Errors
/// `Tampered` when it does not verify in this context.
pub(super) fn open<const N: usize>(
    store: StoreId,
    what: Wrapped,
    by: &AeadKey,
    sealed: &str,
) -> Result<Secret<N>, KmsError> {
    let sealed = unhex(sealed).ok_or(KmsError::Tampered)?;
    let opened = by.open_box(&aad(store, what), &sealed).map_err(|_| KmsError::Tampered)?;
    Secret::from_slice(&opened).ok_or(KmsError::Tampered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Key256;

    #[test]
    fn a_key_opens_in_its_own_context_alone() {
        let store = StoreId::from_bytes([1; 16]);
        let by = AeadKey::new(&Key256::from_slice(&[2; 32]).unwrap()).unwrap();
        let key = KeyId::from_bytes([3; 16]);
        let table = TableId::from_bytes([4; 16]);
        let secret = Key256::from_slice(&[5; 32]).unwrap();
        let right = Wrapped::Table { table, key, material: 1, version: 1 };
        let sealed = seal(store, right, &by, &secret).unwrap();
        assert_eq!(open::<32>(store, right, &by, &sealed).unwrap().expose(), secret.expose());
        let others = [
            (StoreId::from_bytes([9; 16]), right),
            (store, Wrapped::Table { table: TableId::from_bytes([9; 16]), key, material: 1, version: 1 }),
            (store, Wrapped::Table { table, key: KeyId::from_bytes([9; 16]), material: 1, version: 1 }),
            (store, Wrapped::Table { table, key, material: 2, version: 1 }),
            (store, Wrapped::Table { table, key, material: 1, version: 2 }),
            (store, Wrapped::Material { key, version: 1 }),
            (store, Wrapped::Names { table }),
        ];
        for (store, what) in others {
            assert!(matches!(open::<32>(store, what, &by, &sealed), Err(KmsError::Tampered)), "{what:?}");
        }
    }
}
