//! `lock`: one process serves a store for writing, or several for reading. flock(2), so that a lock never outlives
//! its holder.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::error::StoreError;
use super::storage::{Dir, File};

pub(super) const LOCK_FILE: &str = "lock";
/// What of the holder's text is shown.
const MAX_TEXT_LEN: usize = 512;

/// The lock is held as long as this lives.
#[derive(Debug)]
pub(super) struct StoreLock(#[expect(dead_code, reason = "the open file is the lock")] Arc<dyn File>);

impl StoreLock {
    /// Takes the lock without waiting, and writes `owner` into it if it is for writing.
    ///
    /// # Errors
    /// `Busy` with what the holder wrote.
    pub(super) fn acquire(dir: &dyn Dir, read_only: bool, owner: &str) -> Result<Option<Self>, StoreError> {
        let name = OsStr::new(LOCK_FILE);
        let opened = match dir.open_file(name, !read_only) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => dir.create_file(name, 0o600),
            opened => opened,
        };
        let file = match opened {
            Ok(file) => file,
            // A store on a read-only medium that was copied without its lock has no writer.
            Err(error) if read_only && error.kind() == io::ErrorKind::ReadOnlyFilesystem => return Ok(None),
            Err(source) => return Err(StoreError::Io { doing: "open", file: LOCK_FILE.to_owned(), source }),
        };
        let operation =
            if read_only { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
        match rustix::fs::flock(file.fd(), operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StoreError::Busy { holder: holder(file.as_ref()) }),
            Err(error) => {
                return Err(StoreError::Io { doing: "lock", file: LOCK_FILE.to_owned(), source: error.into() });
            }
        }
        if !read_only {
            // The text is for people; a full disk must not keep the store from being opened.
            let _ = file.set_len(0).and_then(|()| file.write_all_at(owner.as_bytes(), 0));
        }
        Ok(Some(Self(file)))
    }
}

/// The holder's text, fit for a terminal: whoever can write the store has written it.
fn holder(file: &dyn File) -> String {
    let mut bytes = [0; MAX_TEXT_LEN];
    let count = file.read_at(&mut bytes, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(bytes.get(..count).unwrap_or_default());
    let text: String = text.trim().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.is_empty() { "another process".to_owned() } else { text }
}
