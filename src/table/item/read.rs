//! Reading: whole blocks are decrypted in the caller's buffer, in runs; a part of a block beside it. Nothing stays in a
//! buffer that has not verified.

use zeroize::Zeroize;

use super::super::TableError;
use super::super::format::{
    BLOCK, BLOCK_LEN, BlockEntry, ENTRY_LEN, HEADER_LEN, INLINE_DATA_AT, Layout, block_len, data_at, entry_at,
    group_end,
};
use super::{Inner, Item, Open, Page};
use crate::envelope::{BlockKind, EnvelopeError, ItemCipher, Seal};
use crate::kms::DataKey;
use crate::store::JournaledFile;

const DAMAGED: TableError = TableError::Tampered { what: "block" };

/// The blocks of an item as they stand.
pub(super) struct Blocks<'a> {
    pub(super) file: &'a JournaledFile,
    pub(super) page: &'a Page,
    pub(super) open: &'a Open,
}

impl Item {
    /// Reads at `offset`, in bytes, as much as there is and fits; the count.
    ///
    /// # Errors
    /// `Tampered` where a block does not verify; `buffer` is wiped then.
    pub fn read(&self, keys: &DataKey, buffer: &mut [u8], offset: u64) -> Result<usize, TableError> {
        self.table.check(keys)?;
        let mut inner = self.shared()?;
        if inner.open.is_none() {
            drop(inner);
            // What was repaired is told to whoever verifies by himself; a reader finds the item whole.
            self.verify(keys)?;
            inner = self.shared()?;
        }
        self.read_ahead(inner.opened()?, offset, buffer.len());
        let count = self.blocks(&inner)?.read(buffer, offset);
        count.inspect_err(|_| buffer.zeroize())
    }

    pub(super) fn blocks<'a>(&'a self, inner: &'a Inner) -> Result<Blocks<'a>, TableError> {
        Ok(Blocks { file: &self.file, page: &inner.page, open: inner.opened()? })
    }
}

impl Blocks<'_> {
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize, TableError> {
        let size = self.open.state.size;
        let rest = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = buffer.len().min(rest);
        let mut buffer = buffer.get_mut(..count).unwrap_or_default();
        let mut at = offset;
        while !buffer.is_empty() {
            let (index, within) = (at / BLOCK, usize::try_from(at % BLOCK).unwrap_or(0));
            let length = block_len(index, size);
            let now = if within == 0 && buffer.len() >= length {
                self.read_run(index, buffer)?
            } else {
                let now = buffer.len().min(length.saturating_sub(within));
                let mut block = [0; BLOCK_LEN];
                let part = block.get_mut(..length).unwrap_or_default();
                self.read_block(index, part)?;
                let wanted = part.get(within..within + now).ok_or(DAMAGED)?;
                buffer.get_mut(..now).ok_or(DAMAGED)?.copy_from_slice(wanted);
                block.zeroize();
                now
            };
            buffer = buffer.get_mut(now..).unwrap_or_default();
            at += now as u64;
        }
        Ok(count)
    }

    /// Whole blocks from `index` on, up to the end of the group, of the buffer or of the item. The bytes read.
    fn read_run(&self, index: u64, buffer: &mut [u8]) -> Result<usize, TableError> {
        let state = &self.open.state;
        if self.open.head.layout == Layout::Inline || index >= state.extent {
            // An inline item is one block; a hole's length costs nothing.
            let length = block_len(index, state.size);
            self.read_block(index, buffer.get_mut(..length).ok_or(DAMAGED)?)?;
            return Ok(length);
        }
        let mut end = group_end(index).min(state.extent);
        let mut length = usize::try_from((end * BLOCK).min(state.size) - index * BLOCK).unwrap_or(usize::MAX);
        if length > buffer.len() {
            length = buffer.len() - buffer.len() % BLOCK_LEN;
            end = index + (length / BLOCK_LEN) as u64;
        }
        let run = buffer.get_mut(..length).ok_or(DAMAGED)?;
        let mut entries = [0; BLOCK_LEN];
        let count = usize::try_from(end - index).unwrap_or(0) * ENTRY_LEN;
        let entries = entries.get_mut(..count).ok_or(DAMAGED)?;
        self.entries(index, entries)?;
        self.data(index, run)?;
        let entries = entries.as_chunks::<ENTRY_LEN>().0;
        for ((index, entry), text) in (index..).zip(entries).zip(run.chunks_mut(BLOCK_LEN)) {
            self.open_text(index, entry, text)?;
        }
        Ok(length)
    }

    /// The text of one block; `text` is as long as the block.
    pub(super) fn read_block(&self, index: u64, text: &mut [u8]) -> Result<(), TableError> {
        if index >= self.open.state.extent {
            text.fill(0);
            return Ok(());
        }
        let mut entry = [0; ENTRY_LEN];
        self.entries(index, &mut entry)?;
        match self.open.head.layout {
            Layout::Inline => {
                let sealed = self.page.get(INLINE_DATA_AT..INLINE_DATA_AT + text.len()).ok_or(DAMAGED)?;
                text.copy_from_slice(sealed);
            }
            Layout::Paged => self.data(index, text)?,
        }
        self.open_text(index, &entry, text)
    }

    /// Whether block `index`, which has an entry, is a hole.
    pub(super) fn is_hole(&self, index: u64) -> Result<bool, TableError> {
        let mut entry = [0; ENTRY_LEN];
        self.entries(index, &mut entry)?;
        let entry = BlockEntry::parse(&entry).ok_or(DAMAGED)?;
        Ok(self.open_kind(BlockKind::Hole, index, &entry, &mut []).is_ok())
    }

    /// The first block of one group, from `index` to before `end`, that is a hole, or is none.
    pub(super) fn find(&self, index: u64, end: u64, hole: bool) -> Result<Option<u64>, TableError> {
        if self.open.head.layout == Layout::Inline {
            return Ok((!hole).then_some(index));
        }
        let mut entries = [0; BLOCK_LEN];
        let count = usize::try_from(end - index).unwrap_or(0) * ENTRY_LEN;
        let entries = entries.get_mut(..count).ok_or(DAMAGED)?;
        self.entries(index, entries)?;
        for (index, entry) in (index..).zip(entries.as_chunks::<ENTRY_LEN>().0) {
            let entry = BlockEntry::parse(entry).ok_or(DAMAGED)?;
            if self.open_kind(BlockKind::Hole, index, &entry, &mut []).is_ok() == hole {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// The entries from block `index` on, all of one page.
    pub(super) fn entries(&self, index: u64, entries: &mut [u8]) -> Result<(), TableError> {
        let at = match self.open.head.layout {
            Layout::Inline => HEADER_LEN as u64,
            Layout::Paged => entry_at(index),
        };
        if at < BLOCK {
            let from = usize::try_from(at).unwrap_or(BLOCK_LEN);
            entries.copy_from_slice(self.page.get(from..from + entries.len()).ok_or(DAMAGED)?);
        } else if self.file.read_at(entries, at)? != entries.len() {
            return Err(DAMAGED);
        }
        Ok(())
    }

    /// The sealed data from block `index` on. What the file lacks of it is zeros, which verify as nothing but a hole.
    fn data(&self, index: u64, text: &mut [u8]) -> Result<(), TableError> {
        let count = self.file.read_at(text, data_at(index))?;
        text.get_mut(count..).unwrap_or_default().fill(0);
        Ok(())
    }

    fn open_text(&self, index: u64, entry: &[u8; ENTRY_LEN], text: &mut [u8]) -> Result<(), TableError> {
        let entry = BlockEntry::parse(entry).ok_or(DAMAGED)?;
        if let Some(old) = &self.open.old {
            return self.open_either(old, index, &entry, text);
        }
        // Data is the rule. What fails as data is wiped, and is zeros if the entry says, authentically, hole.
        self.open_kind(BlockKind::Data, index, &entry, text)
            .or_else(|_| self.open_kind(BlockKind::Hole, index, &entry, &mut []))
            .map_err(|error| TableError::opening("block", error))
    }

    fn open_kind(&self, kind: BlockKind, index: u64, entry: &BlockEntry, text: &mut [u8]) -> Result<(), EnvelopeError> {
        let seal = Seal { epoch: entry.epoch, nonce: entry.nonce, tag: entry.tag };
        match (&self.open.old, self.open.cipher.open_block(kind, index, &seal, text)) {
            // Nothing was there to be wiped.
            (Some(old), Err(_)) if text.is_empty() => old.open_block(kind, index, &seal, text),
            (_, opened) => opened,
        }
    }

    /// A block of an item that is being sealed anew: under its new keys or its old ones. The likelier are tried first,
    /// since a failure wipes the text, of which a copy is kept.
    fn open_either(&self, old: &ItemCipher, index: u64, entry: &BlockEntry, text: &mut [u8]) -> Result<(), TableError> {
        let seal = Seal { epoch: entry.epoch, nonce: entry.nonce, tag: entry.tag };
        let done = self.open.state.previous.map_or(0, |previous| previous.done);
        let new = &self.open.cipher;
        let order = if index < done { [new, old] } else { [old, new] };
        let mut copy = [0; BLOCK_LEN];
        let sealed = copy.get_mut(..text.len()).ok_or(DAMAGED)?;
        sealed.copy_from_slice(text);
        for cipher in order {
            text.copy_from_slice(sealed);
            if cipher.open_block(BlockKind::Data, index, &seal, text).is_ok() {
                return Ok(());
            }
        }
        // Wiped, and so zeros.
        self.open_kind(BlockKind::Hole, index, entry, &mut []).map_err(|error| TableError::opening("block", error))
    }
}
