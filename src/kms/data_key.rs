//! Capabilities: what a decision of the key service hands out, and the only way to a table's keys.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::crypto::{Key256, Prk};
use crate::types::TableId;

/// A table's unwrapped keys, one a version. Only a capability leads to them.
///
/// They are those of now: a new version is there for whoever has a capability already, so that a handle goes on while
/// the table's items are sealed anew.
#[derive(Debug)]
pub struct TableKeys {
    table: TableId,
    /// None: the key's material is gone, or a sealed table key does not verify.
    versions: RwLock<Option<Arc<Versions>>>,
}

#[derive(Debug)]
struct Versions {
    current: u32,
    keys: BTreeMap<u32, Key256>,
}

impl TableKeys {
    /// The newest of `versions` is the current one.
    pub(super) fn new(table: TableId, versions: Option<BTreeMap<u32, Key256>>) -> Arc<Self> {
        let keys = Arc::new(Self { table, versions: RwLock::default() });
        keys.install(versions);
        keys
    }

    /// Keys for the tests of the layers above, which have no key service below them.
    #[cfg(any(test, feature = "testing"))]
    pub fn for_tests(table: TableId, current: u32, versions: BTreeMap<u32, Key256>) -> Arc<Self> {
        Arc::new(Self { table, versions: RwLock::new(Some(Arc::new(Versions { current, keys: versions }))) })
    }

    /// Other keys in the place of these, for whoever has a capability too.
    pub(super) fn install(&self, versions: Option<BTreeMap<u32, Key256>>) {
        let versions = versions.and_then(|keys| {
            let current = *keys.last_key_value()?.0;
            Some(Arc::new(Versions { current, keys }))
        });
        *self.versions.write().unwrap_or_else(PoisonError::into_inner) = versions;
    }

    #[cfg(any(test, feature = "testing"))]
    pub fn install_for_tests(&self, versions: BTreeMap<u32, Key256>) {
        self.install(Some(versions));
    }

    /// Whether there are any.
    pub(super) fn are_there(&self) -> bool {
        self.now().is_some()
    }

    /// Each version's key, for sealing it anew under other material.
    pub(super) fn each<E>(&self, mut with: impl FnMut(u32, &Key256) -> Result<(), E>) -> Result<(), E> {
        self.now().map_or(Ok(()), |now| now.keys.iter().try_for_each(|(version, key)| with(*version, key)))
    }

    fn now(&self) -> Option<Arc<Versions>> {
        self.versions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where there are none, a version that no key has.
    fn current(&self) -> u32 {
        self.now().map_or(u32::MAX, |now| now.current)
    }

    fn item_prk(&self, version: u32, salt: &[u8; 16]) -> Option<Prk> {
        self.now()?.keys.get(&version).map(|key| Prk::extract(salt, key.expose()))
    }
}

/// The capabilities, as far as deriving an item's keys is concerned.
pub trait ItemKeySource {
    fn table(&self) -> TableId;
    /// The version under which new items are sealed.
    fn current_version(&self) -> u32;
    /// The item's pseudorandom key (docs/format.md, section 2); none for a version that the table does not have.
    fn item_prk(&self, version: u32, salt: &[u8; 16]) -> Option<Prk>;
}

macro_rules! capability {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(Arc<TableKeys>);

        impl $name {
            pub(super) fn new(keys: Arc<TableKeys>) -> Self {
                Self(keys)
            }

            #[cfg(any(test, feature = "testing"))]
            pub fn for_tests(keys: Arc<TableKeys>) -> Self {
                Self::new(keys)
            }
        }

        impl ItemKeySource for $name {
            fn table(&self) -> TableId {
                self.0.table
            }

            fn current_version(&self) -> u32 {
                self.0.current()
            }

            fn item_prk(&self, version: u32, salt: &[u8; 16]) -> Option<Prk> {
                self.0.item_prk(version, salt)
            }
        }
    };
}

capability! {
    /// Proof of an audited decision to Decrypt: items may be read with it.
    DataKey
}

capability! {
    /// What the daemon itself has to find authentic before it shows it, whoever asks: no decision stands behind it. With
    /// it a header is verified, and nothing of an item comes out or is sealed.
    HeaderKey
}

capability! {
    /// Proof of a decision to Encrypt or to GenerateDataKey: items may be written with it, a partial block's rest
    /// sealed anew included, and no plaintext comes out.
    SealKey
}

capability! {
    /// Proof of an administrator's order, which the trail has, to seal a table's items anew under its current key: no
    /// plaintext comes out.
    ReSealKey
}
