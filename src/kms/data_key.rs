//! Capabilities: what a decision of the key service hands out, and the only way to a table's keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::crypto::{Key256, Prk};
use crate::types::TableId;

/// A table's unwrapped keys, one a version. Only a `DataKey` or a `SealKey` leads to them.
#[derive(Debug)]
pub struct TableKeys {
    table: TableId,
    current: u32,
    versions: BTreeMap<u32, Key256>,
}

impl TableKeys {
    pub(super) fn new(table: TableId, current: u32, versions: BTreeMap<u32, Key256>) -> Arc<Self> {
        Arc::new(Self { table, current, versions })
    }

    /// Keys for the tests of the layers above, which have no key service below them.
    #[cfg(any(test, feature = "testing"))]
    pub fn for_tests(table: TableId, current: u32, versions: BTreeMap<u32, Key256>) -> Arc<Self> {
        Self::new(table, current, versions)
    }

    fn item_prk(&self, version: u32, salt: &[u8; 16]) -> Option<Prk> {
        self.versions.get(&version).map(|key| Prk::extract(salt, key.expose()))
    }
}

/// The two capabilities, as far as deriving an item's keys is concerned.
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
                self.0.current
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
    /// Proof of a decision to Encrypt or to GenerateDataKey: items may be written with it, a partial block's rest
    /// sealed anew included, and no plaintext comes out.
    SealKey
}
