//! Space that is kept for changes: with a full disk an administrator can still take a right away.
//!
//! One file without contents, for which blocks are allocated. A commit that finds no space gives it up and is tried once
//! more; the next one that succeeds keeps it again. It holds nothing, so nothing is read from it, and a store without it
//! is a whole store.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use super::storage::{Dir, File};

/// The file's name in the store.
pub(super) const SPARE_FILE: &str = "spare";
/// Several commits of the largest records.
const SPARE_BYTES: u64 = 4 << 20;

#[derive(Debug)]
pub(super) struct Spare {
    dir: Arc<dyn Dir>,
    kept: bool,
}

impl Spare {
    /// That of the store in `dir`, kept from here on if there is space for it.
    pub(super) fn of(dir: Arc<dyn Dir>) -> Self {
        let mut spare = Self { dir, kept: false };
        spare.keep();
        spare
    }

    /// Keeps the space again if it was given up; as far as there is any.
    pub(super) fn keep(&mut self) {
        if self.kept {
            return;
        }
        match self.create().and_then(|file| file.allocate(0, SPARE_BYTES)) {
            Ok(()) => self.kept = true,
            Err(error) => {
                let _ = self.dir.remove_file(OsStr::new(SPARE_FILE));
                log::warn!("no space is kept for changes of keys and policies: {error}");
            }
        }
    }

    fn create(&self) -> io::Result<Arc<dyn File>> {
        let name = OsStr::new(SPARE_FILE);
        match self.dir.create_file(name, 0o600) {
            // An earlier process's, or whatever else was put there: nothing that anybody needs.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.dir.remove_file(name)?;
                self.dir.create_file(name, 0o600)
            }
            made => made,
        }
    }

    /// Gives the space up; whether there was any.
    pub(super) fn give_up(&mut self) -> bool {
        std::mem::take(&mut self.kept) && self.dir.remove_file(OsStr::new(SPARE_FILE)).is_ok()
    }
}
