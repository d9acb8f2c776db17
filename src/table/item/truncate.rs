//! Changes of the size, and of what has space: truncation, reserved ranges, punched holes.

use super::super::TableError;
use super::super::format::{
    BLOCK, BLOCK_LEN, HEADER_LEN, INLINE_MAX, Layout, SIZE_MAX, backing_len, block_count, block_len, data_at, entry_at,
};
use super::header::{self, Change, Way};
use super::write::seal;
use super::{Inner, Item};
use crate::crypto::random;
use crate::envelope::{BlockKind, Nonces};
use crate::kms::SealKey;
use crate::store::Op;

const TOO_LARGE: TableError = TableError::TooLarge;

impl Item {
    /// Cuts the item, or grows it by a hole. At zero it gets a new salt and the table's current key.
    ///
    /// # Errors
    /// `TooLarge` beyond SIZE_MAX.
    pub fn truncate(&self, keys: &SealKey, size: u64) -> Result<(), TableError> {
        self.verify(keys)?;
        if size > SIZE_MAX {
            return Err(TOO_LARGE);
        }
        let mut inner = self.exclusive()?;
        self.resize(&mut inner, keys, size)
    }

    fn resize(&self, inner: &mut Inner, keys: &SealKey, size: u64) -> Result<(), TableError> {
        let open = inner.opened()?;
        let old = open.state.size;
        match open.head.layout {
            _ if size == old => Ok(()),
            _ if size == 0 => self.empty(inner, keys),
            Layout::Inline if size <= INLINE_MAX as u64 => self.write_inline(inner, size, &[], old.min(size)),
            Layout::Inline if old == 0 => self.resize_paged(inner, size),
            Layout::Inline => {
                self.convert(inner)?;
                self.resize_paged(inner, size)
            }
            Layout::Paged => self.resize_paged(inner, size),
        }
    }

    fn empty(&self, inner: &mut Inner, keys: &SealKey) -> Result<(), TableError> {
        let open = inner.opened()?;
        let (head, cipher) = header::fresh(open.head.kind, self.id, random().map_err(TableError::crypto)?, keys)?;
        let mut state = open.state.clone();
        (state.size, state.extent, state.previous) = (0, 0, None);
        let mut page = [0; BLOCK_LEN];
        let way = self.way_of_header();
        self.apply(
            inner,
            Change {
                head,
                state,
                cipher: Some(cipher),
                nonces: Nonces::new(1),
                buffer: &mut page,
                dirty: None,
                run_at: BLOCK,
                run_len: 0,
                extra: Vec::new(),
                way,
                quiet: false,
            },
        )
    }

    /// A paged item, or one that becomes paged from empty. The last block is sealed anew where its length changes.
    fn resize_paged(&self, inner: &mut Inner, size: u64) -> Result<(), TableError> {
        inner.begin(1)?;
        let blocks = self.blocks(inner)?;
        let (mut head, mut state) = (blocks.open.head.clone(), blocks.open.state.clone());
        let old = state.size;
        let mut page = if head.layout == Layout::Paged { *blocks.page } else { [0; BLOCK_LEN] };
        head.layout = Layout::Paged;
        // The block that is partial before or after; all others keep their length.
        let index = (old.min(size).max(1) - 1) / BLOCK;
        let (was, is) = (block_len(index, old), block_len(index, size));
        let mut nonces = Nonces::new(2);
        let mut way = self.way_of_header();
        let (mut extra, mut dirty) = (Vec::new(), None);
        if was != is && index < state.extent && !blocks.is_hole(index)? {
            let mut text = vec![0; BLOCK_LEN];
            blocks.read_block(index, text.get_mut(..was).ok_or(TOO_LARGE)?)?;
            text.get_mut(is.min(was)..).unwrap_or_default().fill(0);
            text.truncate(is);
            let entry = seal(&blocks.open.cipher, &mut nonces, BlockKind::Data, index, &mut text)?;
            extra.push((data_at(index), text));
            match usize::try_from(entry_at(index)) {
                Ok(at) if at < BLOCK_LEN => {
                    page.get_mut(at..at + entry.len()).ok_or(TOO_LARGE)?.copy_from_slice(&entry);
                    dirty = Some((at, at + entry.len()));
                }
                Ok(_) | Err(_) => extra.push((entry_at(index), entry.to_vec())),
            }
            way = Way::Whole;
        }
        state.size = size;
        state.extent = state.extent.min(block_count(size));
        let change = Change {
            head,
            state,
            cipher: None,
            nonces,
            buffer: &mut page,
            dirty,
            run_at: BLOCK,
            run_len: 0,
            extra,
            way,
            quiet: false,
        };
        self.apply(inner, change)
    }

    /// Reserves space for a range of the item (fallocate(2)); the size grows to its end unless `keep_size`.
    ///
    /// # Errors
    /// ENOSPC where there is none.
    pub fn allocate(&self, keys: &SealKey, offset: u64, length: u64, keep_size: bool) -> Result<(), TableError> {
        let end = offset.checked_add(length).filter(|end| *end <= SIZE_MAX).ok_or(TOO_LARGE)?;
        self.verify(keys)?;
        let mut inner = self.exclusive()?;
        let open = inner.opened()?;
        let paged = open.head.layout == Layout::Paged || end > INLINE_MAX as u64;
        if paged && length > 0 {
            let (from, to) = (data_at(offset / BLOCK), backing_len(Layout::Paged, end));
            self.backing().allocate(from, to.saturating_sub(from))?;
        }
        if !keep_size && end > open.state.size {
            self.resize(&mut inner, keys, end)?;
        }
        Ok(())
    }

    /// Makes a range of the item a hole (fallocate(2), FALLOC_FL_PUNCH_HOLE): it reads as zeros and the space of its
    /// whole blocks is given back. The size stays.
    pub fn punch_hole(&self, keys: &SealKey, offset: u64, length: u64) -> Result<(), TableError> {
        self.verify(keys)?;
        let size = self.size().unwrap_or(0);
        let end = offset.saturating_add(length).min(size);
        if offset >= end {
            return Ok(());
        }
        let zeros = [0; BLOCK_LEN];
        // A last block that ends with the item is whole, too.
        let (first, last) = (offset.div_ceil(BLOCK), if end == size { end.div_ceil(BLOCK) } else { end / BLOCK });
        let inline = self.shared()?.opened()?.head.layout == Layout::Inline;
        if inline || first >= last {
            for (at, part) in parts(offset, end) {
                self.write(keys, zeros.get(..part).unwrap_or_default(), at)?;
            }
            return Ok(());
        }
        for (at, part) in parts(offset, first * BLOCK).chain(parts(last * BLOCK, end)) {
            self.write(keys, zeros.get(..part).unwrap_or_default(), at)?;
        }
        self.punch_blocks(first, last)
    }

    /// Makes a range of the item zeros that have their space (fallocate(2), FALLOC_FL_ZERO_RANGE); the size grows to its
    /// end unless `keep_size`.
    ///
    /// # Errors
    /// ENOSPC where there is no space, before anything has changed.
    pub fn zero_range(&self, keys: &SealKey, offset: u64, length: u64, keep_size: bool) -> Result<(), TableError> {
        self.allocate(keys, offset, length, keep_size)?;
        self.punch_hole(keys, offset, length)?;
        // The hole has given the space of whole blocks back.
        self.allocate(keys, offset, length, true)
    }

    fn punch_blocks(&self, first: u64, last: u64) -> Result<(), TableError> {
        let mut inner = self.exclusive()?;
        let last = last.min(inner.opened()?.state.extent);
        let mut index = first;
        while index < last {
            let end = super::super::format::group_end(index).min(last);
            self.punch_group(&mut inner, index, end)?;
            index = end;
        }
        // The space goes only when no crash can bring the old entries back, and nothing that waits in the journal would
        // take it again.
        self.file.settle()?;
        self.file.sync()?;
        let mut index = first;
        while index < last {
            let end = super::super::format::group_end(index).min(last);
            self.backing().punch_hole(data_at(index), (end - index) * BLOCK)?;
            index = end;
        }
        Ok(())
    }

    /// Entries of holes for blocks of one group: each takes the place of another in one piece.
    fn punch_group(&self, inner: &mut Inner, first: u64, end: u64) -> Result<(), TableError> {
        inner.begin(end - first)?;
        let mut nonces = Nonces::new(end - first);
        let mut entries = Vec::with_capacity(BLOCK_LEN);
        let Inner { page, open: Some(open), touched, .. } = inner else { return Err(rustix::io::Errno::IO.into()) };
        for index in first..end {
            entries.extend_from_slice(&seal(&open.cipher, &mut nonces, BlockKind::Hole, index, &mut [])?);
        }
        let offset = entry_at(first);
        let write = [Op::Write { offset, bytes: &entries }];
        self.commit(&write, Way::Whole, false, touched)?;
        let from = usize::try_from(offset).map_err(|_| TOO_LARGE)?;
        if let Some(place) = page.get_mut(from..from + entries.len()) {
            debug_assert!(from >= HEADER_LEN);
            place.copy_from_slice(&entries);
        }
        Ok(())
    }
}

/// A range in parts of at most a block.
fn parts(from: u64, to: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut at = from;
    std::iter::from_fn(move || {
        let part = to.saturating_sub(at).min(BLOCK - at % BLOCK);
        let here = at;
        at += part;
        (part > 0).then(|| (here, usize::try_from(part).unwrap_or(BLOCK_LEN)))
    })
}
