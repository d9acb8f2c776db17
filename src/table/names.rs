//! Names on disk: AES-SIV under the table's names key, bound to the folder (docs/format.md, section 6.1).
//!
//! Equal names in one folder have equal ciphertexts, and a stored name opens in its own folder alone. One plain name
//! has exactly one stored form; every other spelling of it is refused, so that no two entries of a folder pass for one
//! name. What opens and is no file name (`..`, a slash) is refused as well: nothing that this table sealed.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::TableError;
use super::format::{Binding, FOLDER_STATE_LEN};
use crate::crypto::{Aad, AeadKey, Key512, NameCipher, Prk, SIV_LEN, sha256};
use crate::types::{DirId, TableId};

/// Bytes of the longest plain name, as on the host's file systems.
pub const NAME_MAX: usize = 255;
/// The file of a folder's own id.
pub(super) const FOLDER_FILE: &str = ".d";

const LONG_PREFIX: &[u8] = b".l.";
const SIDECAR_PREFIX: &[u8] = b".n.";
const TEMPORARY_PREFIX: &[u8] = b".t.";
/// The longest ciphertext whose text is a file name: 191 bytes in 255 characters.
const SHORT_MAX: usize = 191;
const XATTR_PREFIX: &[u8] = b"user.k.";

/// A sealed name, ready for the backing directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoredName {
    on_disk: OsString,
    sealed: Vec<u8>,
}

impl StoredName {
    /// The name of the backing file.
    pub fn on_disk(&self) -> &OsStr {
        &self.on_disk
    }

    /// What an item or a folder is bound to under this name.
    pub fn binding(&self) -> Binding {
        self.sealed.first_chunk().copied().unwrap_or_default()
    }

    /// Where the whole ciphertext of a long name stands, and what stands there.
    pub(super) fn sidecar(&self) -> Option<(OsString, &[u8])> {
        let hash = self.on_disk.as_bytes().strip_prefix(LONG_PREFIX)?;
        Some((OsString::from_vec([SIDECAR_PREFIX, hash].concat()), &self.sealed))
    }
}

/// What a name in a backing directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnDisk {
    /// A sealed name, whole.
    Short,
    /// The hash of a sealed name, which stands in a sidecar.
    Long,
    /// A sidecar.
    Sidecar,
    /// The folder's own file, also while it is replaced, or a folder being made or removed: nobody's entry.
    Own,
}

pub(super) fn classify(on_disk: &OsStr) -> OnDisk {
    let name = on_disk.as_bytes();
    if name.starts_with(LONG_PREFIX) {
        OnDisk::Long
    } else if name.starts_with(SIDECAR_PREFIX) {
        OnDisk::Sidecar
    } else if name == FOLDER_FILE.as_bytes()
        || (name.starts_with(b"..") && name.ends_with(b".new"))
        || name.starts_with(TEMPORARY_PREFIX)
    {
        OnDisk::Own
    } else {
        OnDisk::Short
    }
}

/// The long name whose sidecar this is.
pub(super) fn of_sidecar(on_disk: &OsStr) -> Option<OsString> {
    let hash = on_disk.as_bytes().strip_prefix(SIDECAR_PREFIX)?;
    Some(OsString::from_vec([LONG_PREFIX, hash].concat()))
}

/// A number for a stored name of a folder: the same as long as it has the name, and nearly always no other name's.
pub(super) fn number_of(on_disk: &OsStr) -> u64 {
    let text = on_disk.as_bytes();
    let text = text.strip_prefix(LONG_PREFIX).unwrap_or(text);
    // Ten characters are sixty bits of a synthetic IV or a hash.
    let digit = |character: &u8| u64::from(DIGITS.get(usize::from(*character)).copied().unwrap_or_default());
    text.iter().take(10).fold(0, |number, character| number << 6 | digit(character))
}

/// A name that no entry has, for something under way.
pub(super) fn temporary() -> Result<OsString, TableError> {
    let random: [u8; 16] = crate::crypto::random().map_err(TableError::crypto)?;
    Ok(OsString::from_vec([TEMPORARY_PREFIX, &encode(&random)].concat()))
}

/// The names key of one table, and what is derived from it.
pub struct Names {
    table: TableId,
    cipher: NameCipher,
    folder: AeadKey,
}

impl Names {
    /// # Errors
    /// `Crypto` where the cipher cannot be set up.
    pub fn new(table: TableId, key: Key512) -> Result<Self, TableError> {
        let prk = Prk::extract(table.as_bytes(), key.expose());
        let folder = prk.expand(&Aad::new("kmsfs v1 names").bytes(b"folder"));
        let folder = AeadKey::new(&folder).map_err(TableError::crypto)?;
        Ok(Self { table, cipher: NameCipher::new(key), folder })
    }

    pub fn table(&self) -> TableId {
        self.table
    }

    /// The stored form of a name in a folder.
    ///
    /// # Errors
    /// `NameTooLong` beyond `NAME_MAX`, `BadName` for what is no file name.
    pub fn seal_name(&self, folder: &DirId, name: &[u8]) -> Result<StoredName, TableError> {
        check_name(name)?;
        let sealed = self.cipher.seal(name_aad(folder).as_bytes(), name).map_err(TableError::crypto)?;
        Ok(StoredName { on_disk: on_disk(&sealed), sealed })
    }

    /// The stored form of an entry that [`Self::open_name`] has opened before.
    pub fn listed_name(&self, folder: &DirId, name: &[u8], on_disk: &OsStr) -> Result<StoredName, TableError> {
        match decode(on_disk.as_bytes()) {
            // What stands in the name itself needs no sealing again.
            Some(sealed) if classify(on_disk) == OnDisk::Short => {
                Ok(StoredName { on_disk: on_disk.to_owned(), sealed })
            }
            Some(_) | None => self.seal_name(folder, name),
        }
    }

    /// The plain name of an entry; `sidecar` gives the sidecar's bytes and is called for a long name alone.
    ///
    /// # Errors
    /// `Tampered` for what this table did not write here.
    pub fn open_name(
        &self,
        folder: &DirId,
        on_disk_name: &OsStr,
        sidecar: impl FnOnce(&OsStr) -> Result<Vec<u8>, TableError>,
    ) -> Result<Vec<u8>, TableError> {
        let damaged = TableError::Tampered { what: "name" };
        let sealed = sealed_of(on_disk_name, sidecar)?;
        let name = self.cipher.open(name_aad(folder).as_bytes(), &sealed).map_err(|_| damaged)?;
        check_name(&name).map_err(|_| TableError::Tampered { what: "name" })?;
        Ok(name)
    }

    /// The backing attribute of `user.NAME`, for an item or a folder with this id, and what its value is bound to.
    ///
    /// # Errors
    /// `NameTooLong` where the sealed name has no room, `BadName` for an empty one.
    pub fn seal_xattr_name(&self, id: &[u8; 16], name: &[u8]) -> Result<(OsString, Binding), TableError> {
        if name.is_empty() || name.contains(&0) {
            return Err(TableError::BadName);
        }
        let sealed = self.cipher.seal(xattr_aad(id).as_bytes(), name).map_err(TableError::crypto)?;
        let stored = [XATTR_PREFIX, &encode(&sealed)].concat();
        if stored.len() > NAME_MAX {
            return Err(TableError::NameTooLong);
        }
        Ok((OsString::from_vec(stored), sealed.first_chunk().copied().unwrap_or_default()))
    }

    /// The plain name, `user.` left out, of a backing attribute; none for one that is not sealed (`security.` and such).
    ///
    /// # Errors
    /// `Tampered` for what was not sealed for this item or folder.
    pub fn open_xattr_name(&self, id: &[u8; 16], stored: &OsStr) -> Result<Option<Vec<u8>>, TableError> {
        let Some(text) = stored.as_bytes().strip_prefix(XATTR_PREFIX) else { return Ok(None) };
        let opened = decode(text).and_then(|sealed| self.cipher.open(xattr_aad(id).as_bytes(), &sealed).ok());
        opened.map(Some).ok_or(TableError::Tampered { what: "attribute name" })
    }

    pub(super) fn seal_folder(&self, state: &[u8; FOLDER_STATE_LEN]) -> Result<Vec<u8>, TableError> {
        self.folder.seal_box(&self.folder_aad(), state).map_err(TableError::crypto)
    }

    pub(super) fn open_folder(&self, sealed: &[u8]) -> Result<[u8; FOLDER_STATE_LEN], TableError> {
        let damaged = TableError::Tampered { what: "folder" };
        let Ok(text) = self.folder.open_box(&self.folder_aad(), sealed) else { return Err(damaged) };
        text.as_slice().try_into().map_err(|_| damaged)
    }

    fn folder_aad(&self) -> Aad {
        Aad::new("kmsfs v1 folder").bytes(self.table.as_bytes())
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("table", &self.table).finish_non_exhaustive()
    }
}

fn name_aad(folder: &DirId) -> Aad {
    Aad::new("kmsfs v1 name").bytes(folder.as_bytes())
}

fn xattr_aad(id: &[u8; 16]) -> Aad {
    Aad::new("kmsfs v1 xattr").bytes(id)
}

fn check_name(name: &[u8]) -> Result<(), TableError> {
    if name.len() > NAME_MAX {
        return Err(TableError::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(TableError::BadName);
    }
    Ok(())
}

/// The sealed name that an entry stands for.
fn sealed_of(
    on_disk_name: &OsStr,
    sidecar: impl FnOnce(&OsStr) -> Result<Vec<u8>, TableError>,
) -> Result<Vec<u8>, TableError> {
    let damaged = || TableError::Tampered { what: "name" };
    let bytes = on_disk_name.as_bytes();
    let sealed = match bytes.strip_prefix(LONG_PREFIX) {
        Some(hash) => sidecar(OsStr::from_bytes(&[SIDECAR_PREFIX, hash].concat()))?,
        None => decode(bytes).ok_or_else(damaged)?,
    };
    if on_disk(&sealed) == on_disk_name { Ok(sealed) } else { Err(damaged()) }
}

/// What an item is bound to under the name of an entry, in whatever folder. Nothing is verified: an item whose header
/// says so is bound to it.
pub(super) fn binding_of(
    on_disk_name: &OsStr,
    sidecar: impl FnOnce(&OsStr) -> Result<Vec<u8>, TableError>,
) -> Result<Binding, TableError> {
    let sealed = sealed_of(on_disk_name, sidecar)?;
    sealed.first_chunk().copied().ok_or(TableError::Tampered { what: "name" })
}

fn on_disk(sealed: &[u8]) -> OsString {
    if sealed.len() <= SHORT_MAX {
        OsString::from_vec(encode(sealed))
    } else {
        OsString::from_vec([LONG_PREFIX, &encode(&sha256(sealed))].concat())
    }
}

/// The most that a sidecar may hold.
pub(super) const SIDECAR_MAX: u64 = (NAME_MAX + SIV_LEN) as u64;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const NO_DIGIT: u8 = 64;
const DIGITS: [u8; 256] = digits();

const fn digits() -> [u8; 256] {
    let mut table = [NO_DIGIT; 256];
    let mut digit = 0u8;
    while digit < 64 {
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
        {
            table[ALPHABET[digit as usize] as usize] = digit;
        }
        digit += 1;
    }
    table
}

/// Base64url without padding (RFC 4648, section 5).
fn encode(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let characters = [18, 12, 6, 0].map(|shift| {
            let digit = usize::try_from(word >> shift & 63).unwrap_or_default();
            ALPHABET.get(digit).copied().unwrap_or_default()
        });
        text.extend(characters.iter().take(chunk.len() + 1));
    }
    text
}

/// Strict: none for padding, other characters, a lone last character, and bits that encoding leaves zero.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for chunk in text.chunks(4) {
        let mut word = 0u32;
        for character in chunk {
            let digit = DIGITS.get(usize::from(*character)).copied().filter(|digit| *digit != NO_DIGIT)?;
            word = word << 6 | u32::from(digit);
        }
        let word = word << (6 * (4 - chunk.len()));
        let [_, three @ ..] = word.to_be_bytes();
        let count = chunk.len().checked_sub(1).filter(|count| *count > 0)?;
        let (whole, rest) = three.split_at_checked(count)?;
        if rest.iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(whole);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(byte: u8) -> Names {
        Names::new(TableId::from_bytes([byte; 16]), Key512::from_slice(&[byte; 64]).unwrap()).unwrap()
    }

    fn no_sidecar(_: &OsStr) -> Result<Vec<u8>, TableError> {
        Err(std::io::Error::from(std::io::ErrorKind::NotFound).into())
    }

    #[test]
    fn base64url_is_that_of_the_rfc_and_strict() {
        for (bytes, text) in [
            (&b""[..], &b""[..]),
            (b"f", b"Zg"),
            (b"fo", b"Zm8"),
            (b"foo", b"Zm9v"),
            (b"foob", b"Zm9vYg"),
            (b"\xfb\xff", b"-_8"),
        ] {
            assert_eq!(encode(bytes), text);
            assert_eq!(decode(text).unwrap(), bytes);
        }
        for bad in [&b"Z"[..], b"Zg=", b"Zh", b"Zm9", b"Zm9vY", b"Zm+v", b"Zm/v", b"Zm\xff8"] {
            assert_eq!(decode(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn long_names_have_a_sidecar_and_fit() {
        let (names, folder) = (names(1), DirId::from_bytes([2; 16]));
        for (length, long) in [(1, false), (175, false), (176, true), (255, true)] {
            let plain = vec![b'x'; length];
            let stored = names.seal_name(&folder, &plain).unwrap();
            assert!(stored.on_disk().len() <= 255);
            assert_eq!(stored.sidecar().is_some(), long, "{length}");
            let opened = names.open_name(&folder, stored.on_disk(), |name| {
                let (sidecar, bytes) = stored.sidecar().unwrap();
                assert_eq!(sidecar, name);
                Ok(bytes.to_vec())
            });
            assert_eq!(opened.unwrap(), plain);
        }
        assert!(matches!(names.seal_name(&folder, &[b'x'; 256]), Err(TableError::NameTooLong)));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert!(matches!(names.seal_name(&folder, bad), Err(TableError::BadName)));
        }
    }

    #[test]
    fn a_short_name_is_refused_in_the_long_form() {
        let (names, folder) = (names(1), DirId::from_bytes([2; 16]));
        let stored = names.seal_name(&folder, b"short").unwrap();
        let disguised = OsString::from_vec([LONG_PREFIX, &encode(&sha256(&stored.sealed))].concat());
        let opened = names.open_name(&folder, &disguised, |_| Ok(stored.sealed.clone()));
        assert!(matches!(opened, Err(TableError::Tampered { .. })));
    }

    #[test]
    fn a_stored_name_opens_in_its_folder_and_table_alone() {
        let folder = DirId::from_bytes([2; 16]);
        let stored = names(1).seal_name(&folder, b"1001.json").unwrap();
        assert_eq!(names(1).open_name(&folder, stored.on_disk(), no_sidecar).unwrap(), b"1001.json");
        assert!(names(1).open_name(&DirId::from_bytes([3; 16]), stored.on_disk(), no_sidecar).is_err());
        assert!(names(2).open_name(&folder, stored.on_disk(), no_sidecar).is_err());
        let text = stored.on_disk().as_bytes();
        for bit in 0..text.len() * 8 {
            let mut damaged = text.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(names(1).open_name(&folder, OsStr::from_bytes(&damaged), no_sidecar).is_err(), "{bit}");
        }
    }

    #[test]
    fn attribute_names_belong_to_their_item() {
        let names = names(1);
        let (stored, _) = names.seal_xattr_name(&[1; 16], b"author").unwrap();
        assert!(stored.as_bytes().starts_with(b"user.k."));
        assert_eq!(names.open_xattr_name(&[1; 16], &stored).unwrap().unwrap(), b"author");
        assert!(names.open_xattr_name(&[2; 16], &stored).is_err());
        assert_eq!(names.open_xattr_name(&[1; 16], OsStr::new("security.selinux")).unwrap(), None);
        assert!(matches!(names.seal_xattr_name(&[1; 16], &[b'x'; 250]), Err(TableError::NameTooLong)));
    }

    proptest! {
        #[test]
        fn random_names_in_a_directory_never_open(
            name in prop::collection::vec(any::<u8>(), 0..300),
            long in any::<bool>(),
            sidecar in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let name = if long { [LONG_PREFIX, &encode(&sha256(&sidecar))].concat() } else { encode(&name) };
            let opened = names(1).open_name(&DirId::from_bytes([2; 16]), OsStr::from_bytes(&name), |_| Ok(sidecar));
            prop_assert!(opened.is_err());
        }

        #[test]
        fn names_open_again(name in prop::collection::vec(1u8..=255, 1..=255)) {
            let folder = DirId::from_bytes([2; 16]);
            if let Ok(stored) = names(1).seal_name(&folder, &name) {
                let opened = names(1).open_name(&folder, stored.on_disk(), |_| Ok(stored.sealed.clone())).unwrap();
                prop_assert_eq!(opened, name);
            }
        }
    }
}
