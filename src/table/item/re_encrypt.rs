//! Sealing an item anew under the table's current key, in place and in steps, while readers and writers go on.
//!
//! A step is one journal record: some blocks, their entries, and the header, which then names the new key, and, as long as
//! there are blocks under the old one, that one too and how far the steps have come (docs/format.md, section 6.3). So a
//! crash leaves whole steps, and the next one goes on where the last ended. What is written in between is sealed under
//! the new key, wherever it is. The file stays the same one: names, links, owner, times and handles have no part in it.
//!
//! INVARIANT: no plaintext leaves here: a step takes a `ReSealKey`, and wipes what it has not sealed.

use zeroize::Zeroize;

use super::super::format::{
    BLOCK, BLOCK_LEN, ENTRY_LEN, HEADER_LEN, INLINE_DATA_AT, Layout, Previous, data_at, entry_at, group_end,
};
use super::super::{Folder, Names, TableError};
use super::header::{Change, Way};
use super::read::Blocks;
use super::write::seal;
use super::{Item, Page};
use crate::envelope::{BlockKind, ItemCipher, Nonces, open_xattr, seal_xattr};
use crate::kms::{ItemKeySource, ReSealKey};
use crate::store::XattrFlags;

/// Blocks that one step seals, at most: a reader of the item waits for as long.
const STEP_BLOCKS: u64 = if cfg!(test) { 40 } else { 256 };

const DAMAGED: TableError = TableError::Tampered { what: "block" };

/// What one step has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing was to be done.
    Nothing,
    /// This was the last one; bytes of plaintext that were sealed anew.
    Done(u64),
    /// There is more to be done.
    More(u64),
}

/// The blocks of a step, sealed: what goes into the first page, and what goes elsewhere.
struct Anew {
    page: Box<Page>,
    dirty: Option<(usize, usize)>,
    extra: Vec<(u64, Vec<u8>)>,
    nonces: Nonces,
}

impl Item {
    /// Seals some of the item anew under the table's current key.
    ///
    /// # Errors
    /// `Tampered` where a block does not verify: it stays as it is, and so do all behind it. `NoKey` where the key that
    /// seals the item, or the rest of it, is not the table's any more.
    pub fn re_encrypt(&self, keys: &ReSealKey) -> Result<Step, TableError> {
        self.verify(keys)?;
        let mut inner = self.exclusive()?;
        let current = keys.current_version();
        let open = inner.opened()?;
        let (mut head, mut state) = (open.head.clone(), open.state.clone());
        if head.version == current && state.previous.is_none() {
            return Ok(Step::Nothing);
        }
        let extent = state.extent;
        let (from, old) = match state.previous {
            Some(Previous { version, done }) if head.version == current => (done.min(extent), version),
            // Under two keys already, neither of which is the current one.
            Some(Previous { version, .. }) => return Err(TableError::NoKey { version }),
            None => (0, head.version),
        };
        let end = from.saturating_add(STEP_BLOCKS).min(extent);
        let mut cipher = None;
        if head.version == current {
            inner.begin(end - from + 1)?;
        } else {
            let failed = |error| TableError::opening("header", error);
            let mut new = ItemCipher::derive(keys, current, head.item, &head.salt).map_err(failed)?;
            new.begin(end - from + 1).map_err(failed)?;
            (head.version, head.commitment) = (current, new.commitment());
            cipher = Some(new);
        }
        let blocks = self.blocks(&inner)?;
        let sealing = cipher.as_ref().unwrap_or(&blocks.open.cipher);
        let Anew { mut page, dirty, extra, nonces } = Anew::of(&blocks, sealing, from, end)?;
        state.previous = (end < extent).then_some(Previous { version: old, done: end });
        let bytes = (end * BLOCK).min(state.size).saturating_sub(from * BLOCK);
        let more = state.previous.is_some();
        self.apply(
            &mut inner,
            Change {
                head,
                state,
                cipher,
                nonces,
                buffer: page.as_mut_slice(),
                dirty,
                run_at: BLOCK,
                run_len: 0,
                extra,
                way: Way::Whole,
                quiet: true,
            },
        )?;
        Ok(if more { Step::More(bytes) } else { Step::Done(bytes) })
    }

    /// The version of the table's key that the item's header is sealed under; none before it has been verified.
    pub fn table_key_version(&self) -> Option<u32> {
        self.shared().ok()?.open.as_ref().map(|open| open.head.version)
    }

    /// Seals the values of the item's attributes anew that are not under the table's current key. Whether there were any.
    ///
    /// # Errors
    /// `Tampered` where one does not verify.
    pub fn re_encrypt_attributes(&self, keys: &ReSealKey) -> Result<bool, TableError> {
        let _attributes = self.table.attributes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let backing = self.backing();
        seal_attributes(
            &self.table.names,
            self.id.as_bytes(),
            keys,
            &backing.listxattr()?,
            |stored| backing.getxattr(stored),
            |stored, value| backing.setxattr(stored, value, XattrFlags::Replace),
        )
    }
}

impl Folder {
    /// As for an item.
    pub fn re_encrypt_attributes(&self, keys: &ReSealKey) -> Result<bool, TableError> {
        self.table().check(keys)?;
        let _attributes = self.table().attributes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        seal_attributes(
            self.table().names(),
            self.id().as_bytes(),
            keys,
            &self.dir().listxattr(None)?,
            |stored| self.dir().getxattr(None, stored),
            |stored, value| self.dir().setxattr(None, stored, value, XattrFlags::Replace),
        )
    }
}

fn seal_attributes(
    names: &Names,
    id: &[u8; 16],
    keys: &ReSealKey,
    all: &[std::ffi::OsString],
    read: impl Fn(&std::ffi::OsStr) -> std::io::Result<Vec<u8>>,
    write: impl Fn(&std::ffi::OsStr, &[u8]) -> std::io::Result<()>,
) -> Result<bool, TableError> {
    let failed = |error| TableError::opening("attribute", error);
    let mut any = false;
    for stored in all {
        let Some(name) = names.open_xattr_name(id, stored)? else { continue };
        let (_, binding) = names.seal_xattr_name(id, &name)?;
        let sealed = read(stored)?;
        if sealed.first_chunk::<4>().map(|version| u32::from_le_bytes(*version)) == Some(keys.current_version()) {
            continue;
        }
        let mut value = open_xattr(keys, id, &binding, &sealed).map_err(failed)?;
        let anew = seal_xattr(keys, id, &binding, &value);
        value.zeroize();
        write(stored, &anew.map_err(failed)?)?;
        any = true;
    }
    Ok(any)
}

impl Anew {
    /// Blocks from `from` to before `end`, all of which have entries.
    fn of(blocks: &Blocks<'_>, cipher: &ItemCipher, from: u64, end: u64) -> Result<Self, TableError> {
        let mut anew =
            Self { page: Box::new(*blocks.page), dirty: None, extra: Vec::new(), nonces: Nonces::new(end - from + 1) };
        let mut index = from;
        while index < end {
            let stop = group_end(index).min(end);
            let hole = blocks.find(index, stop, true)?.unwrap_or(stop);
            index = if hole > index {
                anew.data(blocks, cipher, index, hole)?;
                hole
            } else {
                let data = blocks.find(index, stop, false)?.unwrap_or(stop);
                anew.holes(blocks, cipher, index, data)?;
                data
            };
        }
        Ok(anew)
    }

    /// A run of data, all of one group.
    fn data(&mut self, blocks: &Blocks<'_>, cipher: &ItemCipher, from: u64, to: u64) -> Result<(), TableError> {
        let length = (to * BLOCK).min(blocks.open.state.size).saturating_sub(from * BLOCK);
        let mut text = vec![0; usize::try_from(length).map_err(|_| DAMAGED)?];
        let sealed = self.seal_run(blocks, cipher, from, &mut text);
        let entries = sealed.inspect_err(|_| text.zeroize())?;
        match blocks.open.head.layout {
            Layout::Inline => {
                let place = self.page.get_mut(INLINE_DATA_AT..INLINE_DATA_AT + text.len()).ok_or(DAMAGED)?;
                place.copy_from_slice(&text);
                self.entries(HEADER_LEN as u64, &entries)?;
                self.mark(INLINE_DATA_AT, INLINE_DATA_AT + text.len());
            }
            Layout::Paged => {
                self.extra.push((data_at(from), text));
                self.entries(entry_at(from), &entries)?;
            }
        }
        Ok(())
    }

    /// Reads a run, seals it in place, and gives its entries.
    fn seal_run(
        &mut self,
        blocks: &Blocks<'_>,
        cipher: &ItemCipher,
        from: u64,
        text: &mut [u8],
    ) -> Result<Vec<u8>, TableError> {
        if blocks.read(text, from * BLOCK)? != text.len() {
            return Err(DAMAGED);
        }
        let mut entries = Vec::with_capacity(text.len().div_ceil(BLOCK_LEN) * ENTRY_LEN);
        for (index, block) in (from..).zip(text.chunks_mut(BLOCK_LEN)) {
            entries.extend_from_slice(&seal(cipher, &mut self.nonces, BlockKind::Data, index, block)?);
        }
        Ok(entries)
    }

    /// A run of holes, all of one group.
    fn holes(&mut self, _: &Blocks<'_>, cipher: &ItemCipher, from: u64, to: u64) -> Result<(), TableError> {
        let mut entries = Vec::new();
        for index in from..to {
            entries.extend_from_slice(&seal(cipher, &mut self.nonces, BlockKind::Hole, index, &mut [])?);
        }
        self.entries(entry_at(from), &entries)
    }

    /// Entries that stand one after the other, at `at` of the file.
    fn entries(&mut self, at: u64, entries: &[u8]) -> Result<(), TableError> {
        match usize::try_from(at) {
            Ok(at) if at < BLOCK_LEN => {
                self.page.get_mut(at..at + entries.len()).ok_or(DAMAGED)?.copy_from_slice(entries);
                self.mark(at, at + entries.len());
            }
            Ok(_) | Err(_) => self.extra.push((at, entries.to_vec())),
        }
        Ok(())
    }

    fn mark(&mut self, from: usize, to: usize) {
        let (low, high) = self.dirty.unwrap_or((from, to));
        self.dirty = Some((low.min(from), high.max(to)));
    }
}
