//! Writing: the blocks of a request are sealed in one pass into one buffer, which holds the first page and then the run
//! of pages as it stands in the file, and go out with one pwrite for the run.
//!
//! INVARIANT: bytes that were visible before (a block that held data) change in one journal record with their entries,
//! or in one system call; a hole that is filled, and all beyond the extent, becomes visible by its entry or the header,
//! which is written after it.

use std::cell::RefCell;

use zeroize::Zeroize;

use super::super::TableError;
use super::super::format::{
    BLOCK, BLOCK_LEN, BlockEntry, ENTRY_LEN, HEADER_LEN, HOLES_MAX, INLINE_DATA_AT, INLINE_MAX, Layout, SIZE_MAX,
    backing_len, block_count, block_len, data_at, entry_at, group_end, starts_group,
};
use super::header::{Change, Way};
use super::read::Blocks;
use super::{Inner, Item, Page};
use crate::envelope::{BlockKind, ItemCipher, Nonces};
use crate::kms::SealKey;
use crate::store::Op;

/// The most that is sealed at once.
const CHUNK: usize = 1 << 20;
/// From here on an append to a durable item is a stream: it is written directly, not through the journal.
const STREAM: usize = 128 << 10;
/// Pages of entries of holes that go into one commit.
const HOLE_PAGES: usize = 64;

const TOO_LARGE: TableError = TableError::TooLarge;

thread_local! {
    /// The buffer of this thread's writes; between them it holds ciphertext.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Item {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// `TooLarge` beyond SIZE_MAX, or where more than 4,194,304 blocks of hole would need an entry.
    pub fn write(&self, keys: &SealKey, bytes: &[u8], offset: u64) -> Result<(), TableError> {
        self.verify(keys)?;
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= SIZE_MAX).ok_or(TOO_LARGE)?;
        let mut inner = self.exclusive()?;
        let extent = inner.opened()?.state.extent;
        if !bytes.is_empty() && (offset / BLOCK).saturating_sub(extent) > HOLES_MAX {
            return Err(TOO_LARGE);
        }
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let step = self.step(&inner, at, end, rest.len())?;
            let (now, later) = rest.split_at(step.min(rest.len()));
            if let Err(error) = self.write_chunk(&mut inner, now, at) {
                self.cut_back(&inner);
                return Err(error);
            }
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// After a failure: entries of holes may stand behind the end.
    fn cut_back(&self, inner: &Inner) {
        let Ok(open) = inner.opened() else { return };
        let length = backing_len(open.head.layout, open.state.size);
        if self.file.len() != length
            && let Err(error) = self.file.commit(&[Op::SetLen(length)])
        {
            log::debug!("item {}: a write that failed left bytes behind the end: {error}", self.id());
        }
    }

    /// How much is written at once from `at` on. What is long is aligned first, and a stream behind what is durable is
    /// not held up by a pending change of the length.
    fn step(&self, inner: &Inner, at: u64, end: u64, rest: usize) -> Result<usize, TableError> {
        let stream = rest >= STREAM && end > inner.opened()?.state.size;
        let within = usize::try_from(at % BLOCK).unwrap_or(0);
        if within > 0 && (stream || rest > CHUNK) {
            return Ok(BLOCK_LEN - within);
        }
        if stream && self.file.is_resizing() {
            self.file.settle()?;
        }
        Ok(CHUNK)
    }

    fn write_chunk(&self, inner: &mut Inner, bytes: &[u8], offset: u64) -> Result<(), TableError> {
        let open = inner.opened()?;
        let size = open.state.size.max(offset + bytes.len() as u64);
        if open.head.layout == Layout::Inline {
            if size <= INLINE_MAX as u64 {
                return self.write_inline(inner, size, bytes, offset);
            }
            if open.state.size > 0 {
                self.convert(inner)?;
            }
        }
        BUFFER.with_borrow_mut(|buffer| {
            let written = self.write_paged(inner, buffer, size, bytes, offset);
            if written.is_err() {
                // A block may have been left before it was sealed.
                buffer.zeroize();
            }
            written
        })
    }

    /// An inline item anew, as a whole: `size` bytes, of which `bytes` at `offset` are new; what is between is zeros.
    pub(super) fn write_inline(
        &self,
        inner: &mut Inner,
        size: u64,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(), TableError> {
        let length = usize::try_from(size).map_err(|_| TOO_LARGE)?;
        let at = usize::try_from(offset).map_err(|_| TOO_LARGE)?;
        let mut page = [0; BLOCK_LEN];
        let blocks = self.blocks(inner)?;
        let old = block_len(0, blocks.open.state.size);
        let (_, data) = page.split_at_mut(INLINE_DATA_AT);
        if old > 0 && !(at == 0 && bytes.len() >= old.min(length)) {
            let text = data.get_mut(..old).ok_or(TOO_LARGE)?;
            blocks.read_block(0, text)?;
            data.get_mut(length.min(old)..).unwrap_or_default().zeroize();
        }
        data.get_mut(at..at + bytes.len()).ok_or(TOO_LARGE)?.copy_from_slice(bytes);
        let (head, mut state) = (blocks.open.head.clone(), blocks.open.state.clone());
        (state.size, state.extent) = (size, block_count(size));
        let (mut nonces, mut dirty) = (Nonces::new(2), (HEADER_LEN, HEADER_LEN));
        if length > 0 {
            let cipher = inner.begin(1)?;
            let text = data.get_mut(..length).ok_or(TOO_LARGE)?;
            let entry = seal(cipher, &mut nonces, BlockKind::Data, 0, text)?;
            page.get_mut(HEADER_LEN..INLINE_DATA_AT).ok_or(TOO_LARGE)?.copy_from_slice(&entry);
            dirty.1 = INLINE_DATA_AT + length;
        }
        let way = self.way_of_header();
        self.apply(
            inner,
            Change {
                head,
                state,
                cipher: None,
                nonces,
                buffer: &mut page,
                dirty: Some(dirty),
                run_at: BLOCK,
                run_len: 0,
                extra: Vec::new(),
                way,
                quiet: false,
            },
        )
    }

    /// An inline item becomes a paged one of the same size: the new first page and the first data page in one.
    pub(super) fn convert(&self, inner: &mut Inner) -> Result<(), TableError> {
        let mut buffer = [0; 2 * BLOCK_LEN];
        let blocks = self.blocks(inner)?;
        let (mut head, state) = (blocks.open.head.clone(), blocks.open.state.clone());
        head.layout = Layout::Paged;
        let (page, data) = buffer.split_at_mut(BLOCK_LEN);
        let length = block_len(0, state.size);
        let text = data.get_mut(..length).ok_or(TOO_LARGE)?;
        blocks.read_block(0, text)?;
        let mut nonces = Nonces::new(2);
        let entry = seal(inner.begin(1)?, &mut nonces, BlockKind::Data, 0, text)?;
        page.get_mut(HEADER_LEN..HEADER_LEN + ENTRY_LEN).ok_or(TOO_LARGE)?.copy_from_slice(&entry);
        let way = self.way_of_header();
        self.apply(
            inner,
            Change {
                head,
                state,
                cipher: None,
                nonces,
                buffer: &mut buffer,
                dirty: Some((HEADER_LEN, HEADER_LEN + ENTRY_LEN)),
                run_at: BLOCK,
                run_len: length,
                extra: Vec::new(),
                way,
                quiet: false,
            },
        )
    }

    fn write_paged(
        &self,
        inner: &mut Inner,
        buffer: &mut Vec<u8>,
        size: u64,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(), TableError> {
        let (first, end) = (offset / BLOCK, offset + bytes.len() as u64);
        let last = (end - 1) / BLOCK;
        let open = inner.opened()?;
        let (mut head, old) = (open.head.clone(), open.state.clone());
        head.layout = Layout::Paged;
        let holes = first.saturating_sub(old.extent);
        inner.begin(last - first + holes + 2)?;
        let blocks = self.blocks(inner)?;
        let mut sealed = Sealed::new(buffer, first, last, block_len(last, size))?;
        if open_layout(&blocks) == Layout::Paged {
            sealed.page()?.copy_from_slice(blocks.page);
        } else {
            sealed.page()?.fill(0);
        }
        let mut nonces = Nonces::new(last - first + holes + 2);
        let mut extra = Vec::new();
        let padded = pad(&blocks, &mut sealed, &mut nonces, first.min(block_count(size)), &mut extra)?;
        if holes > 0 {
            self.seal_holes(&blocks, &mut sealed, &mut nonces, old.extent, first)?;
        }
        sealed.keep_entries(&blocks, last)?;
        for index in first..=last {
            let text = sealed.text(index, block_len(index, size))?;
            fill_block(&blocks, index, text, bytes, offset)?;
            let entry = seal(&blocks.open.cipher, &mut nonces, BlockKind::Data, index, text)?;
            sealed.put(index, &entry)?;
        }
        let way = self.way_of_blocks(&blocks, (first, last), end, padded, sealed.run_len)?;
        let mut state = old;
        state.size = size;
        state.extent = state.extent.max(last + 1);
        let Sealed { run_at, run_len, dirty, first_entries, .. } = sealed;
        extra.extend(first_entries);
        let buffer = buffer.get_mut(..BLOCK_LEN + run_len).ok_or(TOO_LARGE)?;
        self.apply(
            inner,
            Change { head, state, cipher: None, nonces, buffer, dirty, run_at, run_len, extra, way, quiet: false },
        )
    }

    /// Whether a write of blocks goes into the journal as a whole.
    fn way_of_blocks(
        &self,
        blocks: &Blocks<'_>,
        (first, last): (u64, u64),
        end: u64,
        padded: bool,
        run_len: usize,
    ) -> Result<Way, TableError> {
        let old = &blocks.open.state;
        let durable = self.file.is_durable_at_all();
        if durable {
            // The last block's page may be durable in part: it must not be divided.
            let straddles = !old.size.is_multiple_of(BLOCK) && first <= old.size / BLOCK && last >= old.size / BLOCK;
            let grows = end > old.size;
            let whole = padded || straddles || first < old.extent || (grows && run_len < STREAM);
            return Ok(if whole { Way::Whole } else { Way::Plain });
        }
        // Holes that are filled become visible with their entries: those of two pages not at once.
        if padded || (first < old.extent && last >= group_end(first) && run_len < STREAM) {
            return Ok(Way::Whole);
        }
        for index in first..old.extent.min(last + 1) {
            if !blocks.is_hole(index)? {
                return Ok(Way::Whole);
            }
        }
        Ok(Way::Plain)
    }

    /// Entries of holes for the blocks from `from` to `to`, which are beyond the extent and so not visible yet: those
    /// of later pages are written at once, those of the first page and of the run go with it.
    fn seal_holes(
        &self,
        blocks: &Blocks<'_>,
        sealed: &mut Sealed<'_>,
        nonces: &mut Nonces,
        from: u64,
        to: u64,
    ) -> Result<(), TableError> {
        let mut pages: Vec<(u64, Vec<u8>)> = Vec::new();
        for index in from..to {
            let entry = seal(&blocks.open.cipher, nonces, BlockKind::Hole, index, &mut [])?;
            if entry_at(index) < BLOCK {
                sealed.put(index, &entry)?;
                continue;
            }
            if pages.is_empty() || starts_group(index) {
                self.write_holes(&mut pages, HOLE_PAGES)?;
                pages.push((entry_at(index), Vec::with_capacity(BLOCK_LEN)));
            }
            if let Some((_, entries)) = pages.last_mut() {
                entries.extend_from_slice(&entry);
            }
        }
        self.write_holes(&mut pages, 1)
    }

    /// Writes pages of entries that nobody sees yet, where there are `least` or more.
    fn write_holes(&self, pages: &mut Vec<(u64, Vec<u8>)>, least: usize) -> Result<(), TableError> {
        if pages.len() < least {
            return Ok(());
        }
        let ops: Vec<Op<'_>> = pages.iter().map(|(offset, bytes)| Op::Write { offset: *offset, bytes }).collect();
        self.file.commit(&ops)?;
        pages.clear();
        Ok(())
    }
}

fn open_layout(blocks: &Blocks<'_>) -> Layout {
    blocks.open.head.layout
}

/// The last block, where it is not full, holds data and is not written to itself, gets zeros up to `limit` blocks.
/// Whether there was one.
fn pad(
    blocks: &Blocks<'_>,
    sealed: &mut Sealed<'_>,
    nonces: &mut Nonces,
    limit: u64,
    extra: &mut Vec<(u64, Vec<u8>)>,
) -> Result<bool, TableError> {
    let old = &blocks.open.state;
    let (index, length) = (old.size / BLOCK, block_len(old.size / BLOCK, old.size));
    if old.size.is_multiple_of(BLOCK) || index >= limit || index >= old.extent || blocks.is_hole(index)? {
        return Ok(false);
    }
    let mut text = vec![0; BLOCK_LEN];
    blocks.read_block(index, text.get_mut(..length).ok_or(TOO_LARGE)?)?;
    let entry = seal(&blocks.open.cipher, nonces, BlockKind::Data, index, &mut text)?;
    extra.push((data_at(index), text));
    if entry_at(index) < BLOCK {
        sealed.put(index, &entry)?;
    } else {
        extra.push((entry_at(index), entry.to_vec()));
    }
    Ok(true)
}

/// The new text of one block: `bytes` at `offset` of the item over what is there.
fn fill_block(blocks: &Blocks<'_>, index: u64, text: &mut [u8], bytes: &[u8], offset: u64) -> Result<(), TableError> {
    let (start, end) = (index * BLOCK, offset + bytes.len() as u64);
    let from = usize::try_from(offset.saturating_sub(start)).unwrap_or(0);
    let to = usize::try_from(end - start).unwrap_or(usize::MAX).min(text.len());
    if from > 0 || to < text.len() {
        let old = block_len(index, blocks.open.state.size).min(text.len());
        let (front, rest) = text.split_at_mut(old);
        if old > 0 {
            blocks.read_block(index, front)?;
        }
        rest.fill(0);
    }
    let source = usize::try_from(start.saturating_sub(offset)).unwrap_or(usize::MAX);
    let source = bytes.get(source..source + (to - from)).ok_or(TOO_LARGE)?;
    text.get_mut(from..to).ok_or(TOO_LARGE)?.copy_from_slice(source);
    Ok(())
}

/// Seals a block in place; its entry.
pub(super) fn seal(
    cipher: &ItemCipher,
    nonces: &mut Nonces,
    kind: BlockKind,
    index: u64,
    text: &mut [u8],
) -> Result<[u8; ENTRY_LEN], TableError> {
    let sealed = nonces.take().and_then(|nonce| cipher.seal_block(kind, index, nonce, text));
    let sealed = sealed.map_err(|error| TableError::opening("block", error))?;
    Ok(BlockEntry { nonce: sealed.nonce, epoch: sealed.epoch, tag: sealed.tag }.encode())
}

/// The buffer of a write: the first page, then the pages of the file from `run_at` on, entry pages included.
struct Sealed<'a> {
    buffer: &'a mut [u8],
    first: u64,
    run_at: u64,
    run_len: usize,
    /// Bytes of the first page that changed, behind the header.
    dirty: Option<(usize, usize)>,
    /// Entries of the first block and those after it, where they are in a page of entries outside of the run.
    first_entries: Option<(u64, Vec<u8>)>,
}

impl<'a> Sealed<'a> {
    fn new(buffer: &'a mut Vec<u8>, first: u64, last: u64, last_len: usize) -> Result<Self, TableError> {
        let run_at = if starts_group(first) { data_at(first) - BLOCK } else { data_at(first) };
        let run_len = usize::try_from(data_at(last) - run_at).map_err(|_| TOO_LARGE)? + last_len;
        if buffer.len() < BLOCK_LEN + run_len {
            buffer.resize(BLOCK_LEN + run_len, 0);
        }
        let first_entries = (entry_at(first) >= BLOCK && !starts_group(first)).then(|| (entry_at(first), Vec::new()));
        Ok(Self { buffer, first, run_at, run_len, dirty: None, first_entries })
    }

    fn page(&mut self) -> Result<&mut Page, TableError> {
        self.buffer.first_chunk_mut().ok_or(TOO_LARGE)
    }

    /// Before its own entries are put there: what a page of entries in the run says of blocks beyond `last`.
    fn keep_entries(&mut self, blocks: &Blocks<'_>, last: u64) -> Result<(), TableError> {
        let mut index = self.first;
        while index <= last {
            if starts_group(index) {
                let at = entry_at(index);
                let kept = blocks.open.state.extent.min(group_end(index));
                let page = self.run(at, BLOCK_LEN)?;
                page.fill(0);
                if kept > index && kept > last + 1 {
                    let count = usize::try_from(kept - index).unwrap_or(0) * ENTRY_LEN;
                    blocks.entries(index, page.get_mut(..count).ok_or(TOO_LARGE)?)?;
                }
            }
            index = group_end(index);
        }
        Ok(())
    }

    /// Bytes of the run at `at` of the file.
    fn run(&mut self, at: u64, length: usize) -> Result<&mut [u8], TableError> {
        let from = at.checked_sub(self.run_at).and_then(|from| usize::try_from(from).ok()).ok_or(TOO_LARGE)?;
        self.buffer.get_mut(BLOCK_LEN + from..BLOCK_LEN + from + length).ok_or(TOO_LARGE)
    }

    fn text(&mut self, index: u64, length: usize) -> Result<&mut [u8], TableError> {
        self.run(data_at(index), length)
    }

    fn put(&mut self, index: u64, entry: &[u8; ENTRY_LEN]) -> Result<(), TableError> {
        let at = entry_at(index);
        if at < BLOCK {
            let from = usize::try_from(at).map_err(|_| TOO_LARGE)?;
            let to = from + ENTRY_LEN;
            self.page()?.get_mut(from..to).ok_or(TOO_LARGE)?.copy_from_slice(entry);
            let (low, high) = self.dirty.unwrap_or((from, to));
            self.dirty = Some((low.min(from), high.max(to)));
        } else if index < group_end(self.first)
            && let Some((_, entries)) = &mut self.first_entries
        {
            entries.extend_from_slice(entry);
        } else {
            self.run(at, ENTRY_LEN)?.copy_from_slice(entry);
        }
        Ok(())
    }
}
