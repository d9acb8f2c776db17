//! Level 1: the store on disk: storage, journal, root, records, catalog and anchor.

mod anchor;
mod catalog;
mod commit;
mod dir;
mod error;
pub(crate) mod fields;
mod journal;
mod lifecycle;
mod lock;
#[cfg(any(test, feature = "testing"))]
pub mod record;
mod records;
mod root;
mod slots;
mod spare;
pub mod storage;
#[cfg(test)]
mod tests;

pub use catalog::{ClockMark, RecordKind, TrailHead};
pub use commit::Change;
pub use dir::DirStorage;
pub use error::StoreError;
pub use journal::{DurableMark, Journal, JournalError, JournaledFile, Op, Replayed};
pub use lifecycle::{Found, Open, Store};
pub use records::MAX_RECORD_LEN;
pub use root::{Credential, MAX_LABEL_LEN, MAX_SLOTS, RootKeys, SlotId, SlotKind};
pub use slots::{SlotInfo, SlotState};
pub use storage::{Dir, DirEntry, File, FileKind, RenameFlags, SetTime, Stat, StatVfs, Storage, XattrFlags};
