//! The bytes of an item and of a folder's file, and the geometry of blocks: a pure codec of docs/format.md, section 6.
//!
//! Nothing here holds a key or reads a file, and nothing that is parsed here is authentic: the caller verifies the
//! commitment and the seal before it uses a field. A parser takes exact lengths, allocates nothing, and refuses
//! whatever version 1 does not write.

use crate::types::{DirId, ItemId};

/// Bytes of plaintext in a block, and of a page of the backing file.
pub(super) const BLOCK_LEN: usize = 4096;
/// Bytes of an item's header.
pub(super) const HEADER_LEN: usize = 512;
/// Bytes of the header's part in clear, which is the associated data of the state.
pub(super) const HEAD_LEN: usize = 88;
/// Bytes of the header's sealed state.
pub(super) const STATE_LEN: usize = 256;
/// Bytes of a block's entry.
pub(super) const ENTRY_LEN: usize = 32;
/// Where an inline item's ciphertext starts: after the header and the one entry.
pub(super) const INLINE_DATA_AT: usize = HEADER_LEN + ENTRY_LEN;
/// The longest inline item, so that its file stays shorter than a page.
pub const INLINE_MAX: usize = BLOCK_LEN - 1 - INLINE_DATA_AT;
/// Names that may lead to one item.
pub const LINK_MAX: usize = 9;
/// The most entries of holes that one write may need: 16 GiB of hole.
pub(super) const HOLES_MAX: u64 = 4_194_304;
/// The longest item, so that the backing file's length is an `i64`.
pub const SIZE_MAX: u64 = 1 << 62;
/// Bytes of a folder's `.d`.
pub(super) const FOLDER_LEN: usize = 160;
/// Bytes of the plaintext in a folder's `.d`.
pub(super) const FOLDER_STATE_LEN: usize = 80;
/// Bytes of a name's binding, and of a salt.
pub(super) const BINDING_LEN: usize = 16;

pub(super) const BLOCK: u64 = 4096;
const FIRST_GROUP: u64 = 112;
const GROUP: u64 = 128;
const ENTRY: u64 = 32;
const HEADER: u64 = 512;
/// Room for the root of a tree over the entries: zeros in version 1.
const TREE_ROOT_LEN: usize = 32;
const INLINE_DATA: u64 = 544;

const ITEM_MAGIC: [u8; 8] = *b"KMSFSITM";
const FOLDER_MAGIC: [u8; 8] = *b"KMSFSDIR";
const VERSION: u16 = 1;
const SUITE: u8 = 1;

/// The mode bit (`S_ISVTX`) by which a backing file says that its header has a kind to tell.
pub(super) const STICKY: u32 = 0o1000;

/// What binds an item or a folder to one of its names: the synthetic IV of the sealed name.
pub type Binding = [u8; BINDING_LEN];

/// Why bytes are not those of a version 1 item or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FormatError {
    /// No magic: not an item, or not a folder's file.
    Magic,
    /// Written by another version of the format.
    Version(u16),
    /// A field has a value that version 1 does not write.
    Malformed,
}

/// What an item is to those who use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ItemKind {
    Regular,
    Symlink,
    Fifo,
    Socket,
}

impl ItemKind {
    const fn code(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Symlink => 2,
            Self::Fifo => 3,
            Self::Socket => 4,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Regular),
            2 => Some(Self::Symlink),
            3 => Some(Self::Fifo),
            4 => Some(Self::Socket),
            _ => None,
        }
    }
}

/// Where an item's blocks stand in its backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Header, one entry, ciphertext: shorter than a page.
    Inline,
    /// Pages of entries and pages of data.
    Paged,
}

/// The header's part in clear. It is authenticated by the state's seal, and by the commitment for the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: ItemKind,
    pub(super) layout: Layout,
    /// The table key's version.
    pub(super) version: u32,
    /// The key epoch of the state's seal.
    pub(super) epoch: u32,
    pub(super) item: ItemId,
    pub(super) salt: [u8; 16],
    pub(super) commitment: [u8; 32],
}

/// A header as it stands in the file: the head, and the state still sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SealedHeader {
    pub(super) head: Head,
    pub(super) nonce: [u8; 12],
    pub(super) state: [u8; STATE_LEN],
    pub(super) tag: [u8; 16],
}

/// The item id of a header that nothing has authenticated: good for looking something up, and for nothing else.
pub(super) fn peek_item(header: &[u8]) -> Result<(ItemId, ItemKind), FormatError> {
    let header = header.first_chunk::<HEADER_LEN>().ok_or(FormatError::Malformed)?;
    Head::parse(header).map(|head| (head.item, head.kind))
}

/// The version of the table's key that a header names, which nothing has authenticated.
pub(super) fn peek_version(header: &[u8]) -> Result<u32, FormatError> {
    let header = header.first_chunk::<HEADER_LEN>().ok_or(FormatError::Malformed)?;
    Head::parse(header).map(|head| head.version)
}

impl Head {
    /// The 88 bytes, which are also the associated data of the state's seal.
    pub(super) fn encode(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        let mut out = Writer(&mut bytes);
        out.put(&ITEM_MAGIC);
        out.put(&VERSION.to_le_bytes());
        let layout = match self.layout {
            Layout::Inline => 1,
            Layout::Paged => 2,
        };
        out.put(&[SUITE, self.kind.code(), layout, 0, 0, 0]);
        out.put(&self.version.to_le_bytes());
        out.put(&self.epoch.to_le_bytes());
        out.put(self.item.as_bytes());
        out.put(&self.salt);
        out.put(&self.commitment);
        bytes
    }

    fn parse(header: &[u8; HEADER_LEN]) -> Result<Self, FormatError> {
        let mut input = Reader(header);
        check_magic(&mut input, ITEM_MAGIC)?;
        let [suite, kind, layout, a, b, c] = input.take()?;
        let layout = match layout {
            1 => Layout::Inline,
            2 => Layout::Paged,
            _ => return Err(FormatError::Malformed),
        };
        let kind = ItemKind::from_code(kind).ok_or(FormatError::Malformed)?;
        if suite != SUITE || [a, b, c] != [0; 3] {
            return Err(FormatError::Malformed);
        }
        Ok(Self {
            kind,
            layout,
            version: u32::from_le_bytes(input.take()?),
            epoch: u32::from_le_bytes(input.take()?),
            item: ItemId::from_bytes(input.take()?),
            salt: input.take()?,
            commitment: input.take()?,
        })
    }
}

impl SealedHeader {
    pub(super) fn parse(header: &[u8; HEADER_LEN]) -> Result<Self, FormatError> {
        let head = Head::parse(header)?;
        let mut input = Reader(header);
        input.take::<HEAD_LEN>()?;
        let (nonce, state, tag) = (input.take()?, input.take()?, input.take()?);
        input.zeros()?;
        Ok(Self { head, nonce, state, tag })
    }

    pub(super) fn encode(&self, header: &mut [u8; HEADER_LEN]) {
        *header = [0; HEADER_LEN];
        let mut out = Writer(header);
        out.put(&self.head.encode());
        out.put(&self.nonce);
        out.put(&self.state);
        out.put(&self.tag);
    }
}

/// The names that lead to an item: one binding for each, at least one, and for a rename that is not settled, last, the
/// binding of the name that is being left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bindings {
    list: [Binding; LINK_MAX + 1],
    count: usize,
    leaving: bool,
}

impl Bindings {
    pub(super) fn new(binding: Binding) -> Self {
        let mut list = [[0; BINDING_LEN]; LINK_MAX + 1];
        list[0] = binding;
        Self { list, count: 1, leaving: false }
    }

    fn all(&self) -> &[Binding] {
        let places = self.count + usize::from(self.leaving);
        self.list.get(..places).unwrap_or(&self.list)
    }

    /// The names that hold, without the one that is being left.
    pub(super) fn links(&self) -> &[Binding] {
        self.list.get(..self.count).unwrap_or(&self.list)
    }

    pub(super) fn contains(&self, binding: &Binding) -> bool {
        self.all().contains(binding)
    }

    /// The binding of the name that is being left.
    pub(super) fn leaving(&self) -> Option<&Binding> {
        self.leaving.then(|| self.all().last()).flatten()
    }

    /// One more link. None when there are `LINK_MAX`.
    pub(super) fn with_link(&self, binding: Binding) -> Option<Self> {
        let mut links: Vec<Binding> = self.links().to_vec();
        if !links.contains(&binding) {
            links.push(binding);
        }
        Self::collect(&links, self.leaving().copied())
    }

    /// Without one of several links; the last one stays.
    pub(super) fn without(&self, binding: &Binding) -> Self {
        let links: Vec<Binding> = self.links().iter().filter(|one| *one != binding).copied().collect();
        let leaving = self.leaving().filter(|one| *one != binding).copied();
        if links.is_empty() { self.clone() } else { Self::collect(&links, leaving).unwrap_or_else(|| self.clone()) }
    }

    /// Of all names those that are among `standing`, and the one that a rename is about to give.
    pub(super) fn only(&self, standing: &[Binding]) -> Self {
        let stands = |one: &&Binding| standing.contains(one) || self.is_new(one);
        let links: Vec<Binding> = self.all().iter().filter(stands).copied().collect();
        Self::collect(&links, None).unwrap_or_else(|| self.clone())
    }

    /// Bound to both names while `from` becomes `to`.
    pub(super) fn renaming(&self, from: &Binding, to: Binding) -> Option<Self> {
        let mut links: Vec<Binding> = self.links().iter().filter(|one| *one != from && **one != to).copied().collect();
        links.push(to);
        Self::collect(&links, (*from != to).then_some(*from))
    }

    /// The rename has become durable: the name that was left no longer holds.
    pub(super) fn settled(&self) -> Self {
        Self { leaving: false, ..self.clone() }.zeroed()
    }

    /// Nobody knows whether the rename happened: both names hold. None when there are `LINK_MAX` without it.
    pub(super) fn kept(&self) -> Option<Self> {
        let links: Vec<Binding> = self.all().to_vec();
        Self::collect(&links, None)
    }

    /// Whether this is the name that a rename that is not settled gives.
    pub(super) fn is_new(&self, binding: &Binding) -> bool {
        self.leaving && self.links().last() == Some(binding)
    }

    /// The rename never happened, or was lost: the name that was being left holds, and the new one does not.
    pub(super) fn reverted(&self) -> Self {
        let Some(old) = self.leaving().copied() else { return self.clone() };
        let mut links = self.links().to_vec();
        links.pop();
        links.push(old);
        Self::collect(&links, None).unwrap_or_else(|| self.clone())
    }

    fn collect(links: &[Binding], leaving: Option<Binding>) -> Option<Self> {
        if links.is_empty() || links.len() > LINK_MAX {
            return None;
        }
        let mut list = [[0; BINDING_LEN]; LINK_MAX + 1];
        for (place, binding) in list.iter_mut().zip(links.iter().chain(leaving.as_ref())) {
            *place = *binding;
        }
        Some(Self { list, count: links.len(), leaving: leaving.is_some() })
    }

    fn zeroed(mut self) -> Self {
        let places = self.all().len();
        self.list.iter_mut().skip(places).for_each(|place| *place = [0; BINDING_LEN]);
        self
    }
}

/// The header's sealed part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    /// Bytes of plaintext.
    pub(super) size: u64,
    /// How much of the backing file was durable, or went into the journal with this header. Bytes from here on may be
    /// lost by a crash; 0 for an item that was never flushed.
    pub(super) settled: u64,
    /// The mount epoch in which this header was written.
    pub(super) mount: u64,
    /// One more at each header of this item.
    pub(super) generation: u64,
    /// The number of blocks that have an entry; from there to the size all is hole.
    pub(super) extent: u64,
    pub(super) bindings: Bindings,
    /// While the blocks are being sealed anew under the head's table key.
    pub(super) previous: Option<Previous>,
}

/// The table key under which the blocks of an item were sealed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Previous {
    /// Its version, not 0.
    pub(super) version: u32,
    /// Blocks below are sealed under the head's table key; each from there on under one of the two.
    pub(super) done: u64,
}

impl State {
    pub(super) fn encode(&self) -> [u8; STATE_LEN] {
        let mut bytes = [0; STATE_LEN];
        let mut out = Writer(&mut bytes);
        for number in [self.size, self.settled, self.mount, self.generation, self.extent] {
            out.put(&number.to_le_bytes());
        }
        let count = u16::try_from(self.bindings.count).unwrap_or(0);
        out.put(&count.to_le_bytes());
        out.put(&u16::from(self.bindings.leaving).to_le_bytes());
        out.put(&self.previous.map_or(0, |previous| previous.version).to_le_bytes());
        for binding in &self.bindings.list {
            out.put(binding);
        }
        out.put(&[0; TREE_ROOT_LEN]);
        out.put(&self.previous.map_or(0, |previous| previous.done).to_le_bytes());
        bytes
    }

    /// Of bytes that the seal has authenticated; checked all the same.
    pub(super) fn parse(bytes: &[u8; STATE_LEN], layout: Layout) -> Result<Self, FormatError> {
        let mut input = Reader(bytes);
        let mut number = || input.take().map(u64::from_le_bytes);
        let (size, settled, mount, generation, extent) = (number()?, number()?, number()?, number()?, number()?);
        let count = usize::from(u16::from_le_bytes(input.take()?));
        let leaving = match u16::from_le_bytes(input.take()?) {
            0 => false,
            1 => true,
            _ => return Err(FormatError::Malformed),
        };
        let version = u32::from_le_bytes(input.take()?);
        if count == 0 || count > LINK_MAX {
            return Err(FormatError::Malformed);
        }
        let mut list = [[0; BINDING_LEN]; LINK_MAX + 1];
        for binding in &mut list {
            *binding = input.take()?;
        }
        let tree = input.take::<TREE_ROOT_LEN>()?;
        let done = u64::from_le_bytes(input.take()?);
        input.zeros()?;
        if tree != [0; TREE_ROOT_LEN] || (version == 0 && done != 0) {
            return Err(FormatError::Malformed);
        }
        let previous = (version != 0).then_some(Previous { version, done });
        let bindings = Bindings { list, count, leaving };
        let fits = match layout {
            Layout::Inline => size <= INLINE_MAX as u64,
            Layout::Paged => size > 0 && size <= SIZE_MAX,
        };
        if !fits || extent > block_count(size) || bindings.clone().zeroed() != bindings {
            return Err(FormatError::Malformed);
        }
        Ok(Self { size, settled, mount, generation, extent, bindings, previous })
    }
}

/// The number of blocks of an item of `size` bytes.
pub(super) const fn block_count(size: u64) -> u64 {
    size.div_ceil(BLOCK)
}

/// Bytes of block `index` in an item of `size` bytes.
pub(super) const fn block_len(index: u64, size: u64) -> usize {
    let rest = size.saturating_sub(index.saturating_mul(BLOCK));
    if rest < BLOCK { to_usize(rest) } else { BLOCK_LEN }
}

const fn to_usize(small: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "below BLOCK_LEN by the caller's comparison")]
    let number = small as usize;
    number
}

/// Where block `index` of a paged item has its entry, in bytes of the backing file.
pub(super) const fn entry_at(index: u64) -> u64 {
    if index < FIRST_GROUP {
        HEADER + ENTRY * index
    } else {
        let j = index - FIRST_GROUP;
        entry_page(j / GROUP) * BLOCK + ENTRY * (j % GROUP)
    }
}

/// Where block `index` of a paged item has its data, in bytes of the backing file.
pub(super) const fn data_at(index: u64) -> u64 {
    if index < FIRST_GROUP {
        (1 + index) * BLOCK
    } else {
        let j = index - FIRST_GROUP;
        (entry_page(j / GROUP) + 1 + j % GROUP) * BLOCK
    }
}

const fn entry_page(group: u64) -> u64 {
    113 + 129 * group
}

/// The first block after `index` whose entry is in another page: a run of data pages ends there.
pub(super) const fn group_end(index: u64) -> u64 {
    if index < FIRST_GROUP { FIRST_GROUP } else { index + GROUP - (index - FIRST_GROUP) % GROUP }
}

/// Whether `index` is the first block of a group with an entry page of its own, which stands just before its data.
pub(super) const fn starts_group(index: u64) -> bool {
    index >= FIRST_GROUP && (index - FIRST_GROUP).is_multiple_of(GROUP)
}

/// The length of the backing file of an item of `size` bytes.
pub(super) const fn backing_len(layout: Layout, size: u64) -> u64 {
    match layout {
        Layout::Inline if size == 0 => HEADER,
        Layout::Inline => INLINE_DATA + size,
        Layout::Paged if size == 0 => BLOCK,
        Layout::Paged => data_at((size - 1) / BLOCK) + (size - 1) % BLOCK + 1,
    }
}

/// The size of the item whose backing file has this length, without any key: what stat(2) shows. None for a length
/// that no item has.
pub const fn plain_size(backing_len: u64) -> Option<u64> {
    if backing_len == HEADER {
        return Some(0);
    }
    if backing_len < BLOCK {
        return if backing_len > INLINE_DATA { Some(backing_len - INLINE_DATA) } else { None };
    }
    let data = backing_len - BLOCK;
    if data <= FIRST_GROUP * BLOCK {
        return if data == 0 { None } else { Some(data) };
    }
    let rest = data - FIRST_GROUP * BLOCK;
    let whole = (FIRST_GROUP + rest / ((GROUP + 1) * BLOCK) * GROUP) * BLOCK;
    match rest % ((GROUP + 1) * BLOCK) {
        0 => Some(whole),
        part if part > BLOCK => Some(whole + part - BLOCK),
        _ => None,
    }
}

/// A block's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockEntry {
    pub(super) nonce: [u8; 12],
    /// The key epoch of the block's seal.
    pub(super) epoch: u32,
    pub(super) tag: [u8; 16],
}

impl BlockEntry {
    pub(super) fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        let mut out = Writer(&mut bytes);
        out.put(&self.nonce);
        out.put(&self.epoch.to_le_bytes());
        out.put(&self.tag);
        bytes
    }

    /// None for zeros, which are never an entry.
    pub(super) fn parse(bytes: &[u8; ENTRY_LEN]) -> Option<Self> {
        let mut input = Reader(bytes);
        if bytes == &[0; ENTRY_LEN] {
            return None;
        }
        let nonce = input.take().ok()?;
        let epoch = u32::from_le_bytes(input.take().ok()?);
        Some(Self { nonce, epoch, tag: input.take().ok()? })
    }
}

/// What a folder's `.d` seals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FolderState {
    pub(super) id: DirId,
    pub(super) parent: DirId,
    pub(super) binding: Binding,
    /// Parent and binding of the name that is being left by a rename.
    pub(super) previous: Option<(DirId, Binding)>,
}

impl FolderState {
    pub(super) fn encode(&self) -> [u8; FOLDER_STATE_LEN] {
        let mut bytes = [0; FOLDER_STATE_LEN];
        let mut out = Writer(&mut bytes);
        out.put(self.id.as_bytes());
        out.put(self.parent.as_bytes());
        out.put(&self.binding);
        if let Some((parent, binding)) = &self.previous {
            out.put(parent.as_bytes());
            out.put(binding);
        }
        bytes
    }

    pub(super) fn parse(bytes: &[u8; FOLDER_STATE_LEN]) -> Result<Self, FormatError> {
        let mut input = Reader(bytes);
        let (id, parent, binding) = (input.take()?, input.take()?, input.take()?);
        let (old_parent, old_binding): ([u8; 16], Binding) = (input.take()?, input.take()?);
        let settled = old_parent == [0; 16] && old_binding == [0; BINDING_LEN];
        Ok(Self {
            id: DirId::from_bytes(id),
            parent: DirId::from_bytes(parent),
            binding,
            previous: (!settled).then(|| (DirId::from_bytes(old_parent), old_binding)),
        })
    }
}

/// The bytes of a `.d` around its sealed box.
pub(super) fn encode_folder(sealed: &[u8; FOLDER_STATE_LEN + 28]) -> [u8; FOLDER_LEN] {
    let mut bytes = [0; FOLDER_LEN];
    let mut out = Writer(&mut bytes);
    out.put(&FOLDER_MAGIC);
    out.put(&VERSION.to_le_bytes());
    out.put(&[0; 6]);
    out.put(sealed);
    bytes
}

/// The sealed box of a `.d`.
pub(super) fn parse_folder(bytes: &[u8]) -> Result<[u8; FOLDER_STATE_LEN + 28], FormatError> {
    let bytes: &[u8; FOLDER_LEN] = bytes.try_into().map_err(|_| FormatError::Malformed)?;
    let mut input = Reader(bytes);
    check_magic(&mut input, FOLDER_MAGIC)?;
    if input.take()? != [0; 6] {
        return Err(FormatError::Malformed);
    }
    let sealed = input.take()?;
    input.zeros()?;
    Ok(sealed)
}

fn check_magic(input: &mut Reader<'_>, magic: [u8; 8]) -> Result<(), FormatError> {
    if input.take::<8>()? != magic {
        return Err(FormatError::Magic);
    }
    match u16::from_le_bytes(input.take()?) {
        VERSION => Ok(()),
        other => Err(FormatError::Version(other)),
    }
}

/// Takes fields off the front of a byte string.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(FormatError::Malformed)?;
        self.0 = rest;
        Ok(*field)
    }

    fn zeros(&self) -> Result<(), FormatError> {
        if self.0.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(FormatError::Malformed) }
    }
}

/// Puts fields at the front of a buffer that is long enough by construction: the callers' arrays are those of the format.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, field: &[u8]) {
        let buffer = std::mem::take(&mut self.0);
        debug_assert!(field.len() <= buffer.len());
        let (place, rest) = buffer.split_at_mut(field.len().min(buffer.len()));
        place.copy_from_slice(field);
        self.0 = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn worked_sizes_are_those_of_the_format() {
        for (size, layout, backing) in [
            (0, Layout::Inline, 512),
            (1, Layout::Inline, 545),
            (1024, Layout::Inline, 1568),
            (3551, Layout::Inline, 4095),
            (3552, Layout::Paged, 7648),
            (4096, Layout::Paged, 8192),
            (458_752, Layout::Paged, 462_848),
            (458_753, Layout::Paged, 466_945),
            (5 << 30, Layout::Paged, 5_410_656_256),
            (1, Layout::Paged, 4097),
        ] {
            assert_eq!(backing_len(layout, size), backing, "{size}");
            assert_eq!(plain_size(backing), Some(size), "{size}");
        }
        for malformed in [0, 1, 511, 513, 543, 544, 4096, 462_849, 466_944, 466_944 + 129 * 4096] {
            assert_eq!(plain_size(malformed), None, "{malformed}");
        }
        assert_eq!(INLINE_MAX, 3551);
        assert!(i64::try_from(backing_len(Layout::Paged, SIZE_MAX)).is_ok());
    }

    #[test]
    fn no_two_blocks_share_a_place_and_entries_stay_in_a_sector() {
        let mut places = std::collections::BTreeSet::new();
        for index in 0..1000 {
            assert!(places.insert(data_at(index)));
            assert_eq!(data_at(index) % BLOCK, 0);
            assert_eq!(entry_at(index) / 512, (entry_at(index) + 31) / 512);
            assert!(entry_at(index) >= HEADER);
        }
        for index in 0..1000 {
            assert!(!places.contains(&(entry_at(index) / BLOCK * BLOCK)), "an entry of {index} in a data page");
            assert_eq!(starts_group(index), index > 0 && group_end(index - 1) == index, "{index}");
            if starts_group(index) {
                assert_eq!(entry_at(index) + BLOCK, data_at(index));
            }
        }
    }

    fn header() -> SealedHeader {
        let head = Head {
            kind: ItemKind::Regular,
            layout: Layout::Paged,
            version: 7,
            epoch: 8,
            item: ItemId::from_bytes([1; 16]),
            salt: [2; 16],
            commitment: [3; 32],
        };
        SealedHeader { head, nonce: [4; 12], state: [5; STATE_LEN], tag: [6; 16] }
    }

    #[test]
    fn a_header_parses_back_and_refuses_other_versions() {
        let mut bytes = [0; HEADER_LEN];
        header().encode(&mut bytes);
        assert_eq!(SealedHeader::parse(&bytes), Ok(header()));
        assert_eq!(peek_item(&bytes), Ok((ItemId::from_bytes([1; 16]), ItemKind::Regular)));
        bytes[8] = 2;
        assert_eq!(SealedHeader::parse(&bytes), Err(FormatError::Version(2)));
        bytes[0] = 0;
        assert_eq!(SealedHeader::parse(&bytes), Err(FormatError::Magic));
    }

    #[test]
    fn states_keep_their_bindings() {
        let one = Bindings::new([1; 16]);
        let renaming = one.renaming(&[1; 16], [2; 16]).unwrap();
        assert_eq!((renaming.links(), renaming.leaving()), (&[[2; 16]][..], Some(&[1; 16])));
        assert_eq!(renaming.settled(), Bindings::new([2; 16]));
        assert_eq!(renaming.reverted(), one);
        assert_eq!(renaming.kept().unwrap().links(), &[[2; 16], [1; 16]]);
        assert!(renaming.is_new(&[2; 16]) && !renaming.is_new(&[1; 16]) && !one.is_new(&[1; 16]));
        let mut full = one.clone();
        for byte in 2..=9 {
            full = full.with_link([byte; 16]).unwrap();
        }
        assert_eq!(full.with_link([10; 16]), None);
        assert_eq!(full.links().len(), LINK_MAX);
        let renaming = full.renaming(&[3; 16], [11; 16]).unwrap();
        assert_eq!((renaming.links().len(), renaming.leaving()), (LINK_MAX, Some(&[3; 16])));
        assert!(!renaming.settled().contains(&[3; 16]) && renaming.contains(&[3; 16]));
        assert_eq!(one.without(&[1; 16]), one);
        for bindings in [one, full, renaming] {
            for previous in [None, Some(Previous { version: 3, done: 0 }), Some(Previous { version: 1, done: 1 })] {
                let bindings = bindings.clone();
                let state = State { size: 9, settled: 8, mount: 7, generation: 6, extent: 1, bindings, previous };
                assert_eq!(State::parse(&state.encode(), Layout::Paged), Ok(state));
            }
        }
    }

    #[test]
    fn a_place_of_the_last_re_encryption_without_one_is_malformed() {
        let bindings = Bindings::new([1; 16]);
        let state = State { size: 9, settled: 8, mount: 7, generation: 6, extent: 1, bindings, previous: None };
        for place in [208, 239, 240, 247, 248, 255] {
            let mut bytes = state.encode();
            bytes[place] = 1;
            assert_eq!(State::parse(&bytes, Layout::Paged), Err(FormatError::Malformed), "{place}");
        }
    }

    proptest! {
        #[test]
        fn sizes_and_lengths_determine_each_other(length in 0u64..2_000_000, size in 1..SIZE_MAX) {
            prop_assert_eq!(plain_size(backing_len(Layout::Paged, size)), Some(size));
            if let Some(size) = plain_size(length) {
                let layout = if length < BLOCK { Layout::Inline } else { Layout::Paged };
                prop_assert_eq!(backing_len(layout, size), length);
            }
        }

        #[test]
        fn random_bytes_are_refused_or_parse_to_what_encodes_them(
            bytes in prop::collection::vec(any::<u8>(), HEADER_LEN), magic in any::<bool>(), cut in 0..HEADER_LEN
        ) {
            let mut bytes: [u8; HEADER_LEN] = bytes.try_into().unwrap();
            if magic {
                bytes[..16].copy_from_slice(b"KMSFSITM\x01\0\x01\x01\x01\0\0\0");
                bytes[372..].fill(0);
            }
            match SealedHeader::parse(&bytes) {
                Ok(header) => {
                    let mut again = [0; HEADER_LEN];
                    header.encode(&mut again);
                    prop_assert_eq!(bytes, again);
                }
                Err(_) => prop_assert!(!magic),
            }
            prop_assert!(peek_item(&bytes[..cut]).is_err());
            prop_assert!(parse_folder(&bytes[..cut.min(FOLDER_LEN)]).is_err());
            let state: [u8; STATE_LEN] = bytes[..STATE_LEN].try_into().unwrap();
            if let Ok(state) = State::parse(&state, Layout::Inline) {
                prop_assert!(state.size <= INLINE_MAX as u64);
            }
        }
    }
}
