//! The anchor (docs/format.md, section 5.3): what this host has seen of a store, kept outside of it, so that a store
//! that was put back is noticed.
//!
//! The anchor only says what was; it never makes a store newer. It is replaced in one step and authenticated under a
//! key of the store, so that a host's other users cannot move it back without being noticed either.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use super::catalog::{Failed, Log, State, TrailHead};
use super::error::StoreError;
use super::fields::Fields;
use super::storage::{Dir, read_whole, write_replace};
use crate::crypto::{Key256, equal, hmac_sha256};
use crate::types::StoreId;

pub(super) const ANCHOR_FILE: &str = "anchor";
const MAGIC: &[u8; 8] = b"KMSFSANC";
const VERSION: u16 = 1;
const AUTHENTICATED_LEN: usize = 128;
const ANCHOR_LEN: usize = 160;

/// What the host has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) store: StoreId,
    pub(super) clean: bool,
    pub(super) sequence: u64,
    pub(super) head: [u8; 32],
    pub(super) epoch: u64,
    pub(super) trail: TrailHead,
}

/// How a store compares to its anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    Same,
    /// Another host, or a commit that a crash cut short, has taken the store further.
    Newer,
    /// It is older, or has another history.
    RolledBack,
}

impl Anchor {
    /// `epoch` is the highest that the host has seen, so that numbers are not used twice after a restore.
    pub(super) fn of(store: StoreId, state: &State, epoch: u64) -> Self {
        Self {
            store,
            clean: state.clean,
            sequence: state.sequence,
            head: state.head.0,
            epoch: epoch.max(state.epoch),
            trail: state.trail,
        }
    }

    pub(super) fn encode(&self, key: &Key256) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ANCHOR_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.push(self.clean.into());
        bytes.extend_from_slice(&[0; 5]);
        bytes.extend_from_slice(self.store.as_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.head);
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.trail.segment.to_le_bytes());
        bytes.extend_from_slice(&self.trail.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.trail.head);
        bytes.extend_from_slice(&hmac_sha256(key, &bytes));
        bytes
    }

    pub(super) fn decode(bytes: &[u8], key: &Key256, store: StoreId) -> Result<Self, StoreError> {
        let damaged = |what| StoreError::AnchorDamaged { file: format!("{store}/{ANCHOR_FILE}"), what };
        let bytes: &[u8; ANCHOR_LEN] = bytes.try_into().map_err(|_| damaged("it is not 160 bytes long"))?;
        let mut at = Fields::new(bytes);
        if at.array::<8>().as_ref() != Some(MAGIC) {
            return Err(damaged("it does not start as an anchor does"));
        }
        match at.u16() {
            Some(VERSION) => {}
            found => {
                let found = found.unwrap_or(0);
                return Err(StoreError::Version { file: format!("{store}/{ANCHOR_FILE}"), found });
            }
        }
        let (authenticated, mac) = bytes.split_at(AUTHENTICATED_LEN);
        if !equal(&hmac_sha256(key, authenticated), mac) {
            return Err(damaged("it does not authenticate"));
        }
        Self::fields(at).filter(|anchor| anchor.store == store).ok_or_else(|| damaged("it is that of another store"))
    }

    fn fields(mut at: Fields<'_>) -> Option<Self> {
        let clean = match at.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        at.zeros::<5>()?;
        Some(Self {
            clean,
            store: StoreId::from_bytes(at.array()?),
            sequence: at.u64()?,
            head: at.array()?,
            epoch: at.u64()?,
            trail: TrailHead { segment: at.u64()?, sequence: at.u64()?, head: at.array()? },
        })
    }

    pub(super) fn compare(&self, log: &Log) -> Freshness {
        let (seen, now) = (self.sequence, log.state.sequence);
        match log.head_at(seen) {
            _ if now < seen => Freshness::RolledBack,
            Some(head) if head != self.head => Freshness::RolledBack,
            Some(_) if now == seen => Freshness::Same,
            // Where the log no longer reaches back to what was seen, its number alone tells.
            Some(_) | None => Freshness::Newer,
        }
    }
}

/// The anchor's place on this host.
#[derive(Debug)]
pub(super) struct AnchorFile {
    dir: Arc<dyn Dir>,
    /// What the file holds.
    bytes: Vec<u8>,
}

/// Reads the anchor, if there is one. `base` is the directory of all anchors.
pub(super) fn read(base: &dyn Dir, store: StoreId) -> Result<Option<Vec<u8>>, StoreError> {
    let name = store.to_string();
    let file = base.open_dir(OsStr::new(&name)).and_then(|dir| dir.open_file(OsStr::new(ANCHOR_FILE), false));
    match file.and_then(|file| read_whole(file.as_ref(), 4096)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // What is no regular file, or too long for one, is no anchor.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::UCLEAN.raw_os_error()) => Ok(Some(Vec::new())),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::FBIG.raw_os_error()) => Ok(Some(Vec::new())),
        Err(source) => Err(StoreError::Io { doing: "read the anchor in", file: name, source }),
    }
}

impl AnchorFile {
    /// Opens the anchor's directory, and makes it if need be. `bytes` is what `read` has found.
    pub(super) fn open(base: &dyn Dir, store: StoreId, bytes: Option<Vec<u8>>) -> Result<Self, StoreError> {
        let name = store.to_string();
        match base.create_dir(OsStr::new(&name), 0o700) {
            Ok(()) => base.sync().map_err(StoreError::io("sync the directory of", &name))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(StoreError::Io { doing: "make the anchor's directory", file: name, source });
            }
        }
        let dir = base.open_dir(OsStr::new(&name)).map_err(StoreError::io("open the anchor's directory", &name))?;
        Ok(Self { dir, bytes: bytes.unwrap_or_default() })
    }

    /// Replaces the anchor.
    ///
    /// # Errors
    /// `undone: true`: the old anchor is in force. `undone: false`: either may be.
    pub(super) fn advance(&mut self, bytes: Vec<u8>) -> Result<(), Failed> {
        if bytes == self.bytes {
            return Ok(());
        }
        match write_replace(self.dir.as_ref(), OsStr::new(ANCHOR_FILE), &bytes, 0o600) {
            Ok(()) => {
                self.bytes = bytes;
                Ok(())
            }
            Err(source) => {
                let undone = self.undo();
                let error = StoreError::Io { doing: "write", file: ANCHOR_FILE.to_owned(), source };
                Err(Failed { error, undone })
            }
        }
    }

    /// After a replacement that failed: whether the old bytes are there, or could be put back.
    fn undo(&self) -> bool {
        let name = OsStr::new(ANCHOR_FILE);
        let found = self.dir.open_file(name, false).and_then(|file| read_whole(file.as_ref(), 4096));
        match found {
            Ok(found) if found == self.bytes => true,
            Ok(_) if self.bytes.is_empty() => self.dir.remove_file(name).and_then(|()| self.dir.sync()).is_ok(),
            Ok(_) => write_replace(self.dir.as_ref(), name, &self.bytes, 0o600).is_ok(),
            // None before and none now: the rename has not happened.
            Err(error) => error.kind() == io::ErrorKind::NotFound && self.bytes.is_empty(),
        }
    }
}
