//! Sealed records (docs/format.md, section 4): one file a generation of an object, listed by the catalog with its
//! digest. A file that the catalog does not list says nothing.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::catalog::{Object, RecordKind};
use super::error::StoreError;
use super::fields::{Fields, hex, unhex};
use super::storage::{Dir, FileKind, read_whole};
use crate::crypto::{Aad, AeadKey, NONCE_LEN, TAG_LEN, sha256};
use crate::types::StoreId;

/// The most bytes that a record may hold.
pub const MAX_RECORD_LEN: usize = 1 << 20;
/// The directory's name in the store.
pub(super) const RECORDS_DIR: &str = "records";
const MAGIC: &[u8; 8] = b"KMSFSREC";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 16;
const MAX_FILE_LEN: u64 = (HEADER_LEN + NONCE_LEN + MAX_RECORD_LEN + TAG_LEN) as u64;

/// Names one generation of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordName {
    pub(super) kind: RecordKind,
    pub(super) id: [u8; 16],
    pub(super) generation: u64,
}

impl RecordName {
    pub(super) fn file(self) -> String {
        format!("{}.{}.{}", hex(&self.id), self.kind.code(), self.generation)
    }

    /// The inverse of `file`; none for any other text.
    pub(super) fn parse(name: &OsStr) -> Option<Self> {
        let mut parts = name.to_str()?.split('.');
        let id = unhex(parts.next()?)?;
        let kind = RecordKind::of_code(parts.next()?.parse().ok()?)?;
        let generation = parts.next()?.parse().ok()?;
        let parsed = Self { kind, id, generation };
        (parts.next().is_none() && OsStr::new(&parsed.file()) == name).then_some(parsed)
    }

    fn path(self) -> String {
        format!("{RECORDS_DIR}/{}", self.file())
    }

    fn aad(self, store: StoreId) -> Aad {
        Aad::new("kmsfs v1 record").bytes(store.as_bytes()).u8(self.kind.code()).bytes(&self.id).u64(self.generation)
    }
}

/// A record's file, sealed.
pub(super) fn seal(key: &AeadKey, store: StoreId, name: RecordName, content: &[u8]) -> Result<Vec<u8>, StoreError> {
    if content.len() > MAX_RECORD_LEN {
        return Err(StoreError::TooLarge { what: "a record holds at most 1 MiB" });
    }
    let mut bytes = Vec::with_capacity(HEADER_LEN + NONCE_LEN + content.len() + TAG_LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.push(name.kind.code());
    bytes.extend_from_slice(&[0; 5]);
    bytes.extend_from_slice(&key.seal_box(&name.aad(store), content)?);
    Ok(bytes)
}

fn unseal(key: &AeadKey, store: StoreId, name: RecordName, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let tampered = |what| StoreError::Tampered { file: name.path(), what };
    let mut at = Fields::new(bytes);
    if at.array::<8>().as_ref() != Some(MAGIC) {
        return Err(tampered("it does not start as a record does"));
    }
    match at.u16() {
        Some(VERSION) => {}
        found => return Err(StoreError::Version { file: name.path(), found: found.unwrap_or(0) }),
    }
    if at.u8() != Some(name.kind.code()) || at.zeros::<5>().is_none() {
        return Err(tampered("it is of another kind"));
    }
    key.open_box(&name.aad(store), at.rest()).map_err(|_| tampered("it does not authenticate"))
}

/// Reads the generation that the catalog lists, and no other bytes than those.
///
/// # Errors
/// `Tampered` when they are not there; `Io` when the file could not be read.
pub(super) fn read(
    dir: &dyn Dir,
    key: &AeadKey,
    store: StoreId,
    name: RecordName,
    digest: [u8; 32],
) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    let tampered = |what| StoreError::Tampered { file: name.path(), what };
    let file = name.file();
    let bytes = dir.open_file(OsStr::new(&file), false).and_then(|file| read_whole(file.as_ref(), MAX_FILE_LEN));
    let bytes = bytes.map_err(|error| match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOENT) => tampered("it is missing"),
        Some(rustix::io::Errno::UCLEAN) => tampered("it is not a regular file"),
        Some(rustix::io::Errno::FBIG) => tampered("it is longer than a record can be"),
        _ => StoreError::Io { doing: "read", file: name.path(), source: error },
    })?;
    if sha256(&bytes) != digest {
        return Err(tampered("it is not the one that the catalog lists"));
    }
    unseal(key, store, name, &bytes)
}

/// Writes a generation that nothing refers to yet, durably but for its name (`Dir::sync`).
pub(super) fn write(dir: &dyn Dir, name: RecordName, bytes: &[u8]) -> Result<(), StoreError> {
    let file = name.file();
    let made = match dir.create_file(OsStr::new(&file), 0o600) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Left by a commit that failed before, and never listed.
            dir.remove_file(OsStr::new(&file)).and_then(|()| dir.create_file(OsStr::new(&file), 0o600))
        }
        made => made,
    };
    made.and_then(|file| {
        file.write_all_at(bytes, 0)?;
        file.sync_data()
    })
    .map_err(StoreError::io("write", name.path()))
}

/// What `records/` holds beside what the catalog lists.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Generations that are not listed, as far as they may be removed: where the listed one is missing, nothing is.
    pub(super) leftovers: Vec<OsString>,
    /// Objects that are listed and not there.
    pub(super) missing: Vec<(RecordKind, [u8; 16])>,
}

/// Compares the directory with the catalog, by names alone; digests are compared when a record is read.
pub(super) fn survey<'a>(
    dir: &Arc<dyn Dir>,
    objects: impl Iterator<Item = (&'a (RecordKind, [u8; 16]), &'a Object)>,
) -> Result<Survey, StoreError> {
    let mut listed: std::collections::BTreeMap<(RecordKind, [u8; 16]), (u64, bool)> = objects
        .filter(|(_, object)| object.digest.is_some())
        .map(|(key, object)| (*key, (object.generation, false)))
        .collect();
    let mut unlisted = Vec::new();
    for entry in dir.list().map_err(StoreError::io("list", RECORDS_DIR))? {
        let Some(name) = RecordName::parse(&entry.name) else { continue };
        match listed.get_mut(&(name.kind, name.id)) {
            Some((generation, there)) if *generation == name.generation => *there = entry.kind == FileKind::File,
            Some(_) | None => unlisted.push((name, entry.name)),
        }
    }
    let removable = |name: &RecordName| listed.get(&(name.kind, name.id)).is_none_or(|(_, there)| *there);
    let leftovers = unlisted.into_iter().filter(|(name, _)| removable(name)).map(|(_, file)| file).collect();
    let missing = listed.iter().filter(|(_, (_, there))| !there).map(|(key, _)| *key).collect();
    Ok(Survey { leftovers, missing })
}
