//! The header of an item: made, verified, changed. Every change of an item that changes its size, its names or its keys
//! goes through `Item::apply`, which seals the header that goes with it.

use std::time::{Duration, Instant};

use super::super::format::{
    BLOCK, BLOCK_LEN, Bindings, HEADER_LEN, Head, ItemKind, Layout, Previous, SealedHeader, State, backing_len,
};
use super::super::{Binding, Table, TableError, format};
use super::{Inner, Item, Open, Page, Recovered};
use crate::crypto::{CryptoError, NONCE_LEN, random};
use crate::envelope::{ItemCipher, Nonces, Seal};
use crate::kms::{ItemKeySource, SealKey};
use crate::store::{Op, SetTime};
use crate::types::ItemId;

const SHORT: TableError = TableError::Crypto(CryptoError::TooShort);

/// No file system tells times of change apart that are closer to each other.
const TICK: Duration = Duration::from_millis(4);

/// How a change becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Durable bytes through the journal, new ones directly.
    Plain,
    /// All in one journal record.
    Whole,
}

/// A change that is ready to be committed: `buffer` holds the new first page and behind it a run of data (and entry)
/// pages for the file at `run_at`.
pub(super) struct Change<'a> {
    pub(super) head: Head,
    pub(super) state: State,
    /// The keys, where the salt is renewed.
    pub(super) cipher: Option<ItemCipher>,
    /// One for the header, at least.
    pub(super) nonces: Nonces,
    pub(super) buffer: &'a mut [u8],
    /// Bytes of the first page behind the header that changed.
    pub(super) dirty: Option<(usize, usize)>,
    pub(super) run_at: u64,
    pub(super) run_len: usize,
    /// Other bytes that change with them.
    pub(super) extra: Vec<(u64, Vec<u8>)>,
    pub(super) way: Way,
    /// The content stays as it is: so does the time of its last change.
    pub(super) quiet: bool,
}

/// Keys, header and first page of a new, empty item.
pub(super) fn first(
    table: &Table,
    kind: ItemKind,
    binding: Binding,
    keys: &SealKey,
) -> Result<(Open, Box<Page>), TableError> {
    // One system call for all that is random in a new item.
    let drawn: [u8; 48] = random().map_err(TableError::crypto)?;
    let (id, rest) = drawn.split_first_chunk().ok_or(SHORT)?;
    let (salt, rest) = rest.split_first_chunk().ok_or(SHORT)?;
    let (epoch, rest) = rest.split_first_chunk().ok_or(SHORT)?;
    let nonce = *rest.first_chunk().ok_or(SHORT)?;
    let id = ItemId::from_bytes(*id);
    let bindings = Bindings::new(binding);
    let state =
        State { size: 0, settled: 0, mount: table.mounts.current, generation: 1, extent: 0, bindings, previous: None };
    let (head, cipher) = fresh(kind, id, *salt, keys)?;
    let mut cipher = cipher.with_first_epoch(u32::from_le_bytes(*epoch));
    let mut page = Box::new([0; BLOCK_LEN]);
    let head = seal(&mut cipher, head, &state, nonce, page.as_mut_slice())?;
    Ok((Open { head, state, cipher, old: None, unsynced: false, renamed: false }, page))
}

/// The head of an empty item under a new, random salt and the table's current key.
pub(super) fn fresh(
    kind: ItemKind,
    item: ItemId,
    salt: [u8; 16],
    keys: &SealKey,
) -> Result<(Head, ItemCipher), TableError> {
    let version = keys.current_version();
    let cipher = ItemCipher::derive(keys, version, item, &salt).map_err(|e| TableError::opening("header", e))?;
    let commitment = cipher.commitment();
    Ok((Head { kind, layout: Layout::Inline, version, epoch: 0, item, salt, commitment }, cipher))
}

/// Seals a header into the first bytes of `page`. Counts one seal.
fn seal(
    cipher: &mut ItemCipher,
    mut head: Head,
    state: &State,
    nonce: [u8; NONCE_LEN],
    page: &mut [u8],
) -> Result<Head, TableError> {
    let failed = |error| TableError::opening("header", error);
    head.epoch = cipher.begin(1).map_err(failed)?;
    let mut text = state.encode();
    let seal = cipher.seal_header(&head.encode(), nonce, &mut text).map_err(failed)?;
    let place = page.first_chunk_mut::<HEADER_LEN>().ok_or(TableError::Tampered { what: "header" })?;
    let sealed = SealedHeader { head, nonce: seal.nonce, state: text, tag: seal.tag };
    sealed.encode(place);
    Ok(sealed.head)
}

/// What a header tells before it is authenticated.
///
/// # Errors
/// `Unfinished` for a file that a crash may have left, `Tampered` or `Version` for one that is no item.
pub(super) fn peek(table: &Table, start: &[u8]) -> Result<(ItemId, ItemKind), TableError> {
    let header = start.get(..HEADER_LEN).unwrap_or(start);
    // A crash leaves a creation's header out, in part or in full; no other item loses its own.
    let cut = header.len() < HEADER_LEN || header.iter().all(|byte| *byte == 0);
    if cut && table.mounts.unclean_since(0) {
        return Err(TableError::Unfinished);
    }
    format::peek_item(header).map_err(|error| TableError::parsing("header", error))
}

impl Item {
    /// See `Item::verify`.
    pub(super) fn verify_inner(
        &self,
        inner: &mut Inner,
        keys: &impl ItemKeySource,
    ) -> Result<Option<Recovered>, TableError> {
        if inner.open.is_some() {
            return Ok(None);
        }
        let header = inner.page.get(..inner.page_len).and_then(<[u8]>::first_chunk);
        let header = header.ok_or(TableError::Tampered { what: "header" })?;
        let (head, mut state, cipher) = open_header(header, keys)?;
        let old = older_cipher(&head, &state, keys)?;
        if head.item != self.id || !state.bindings.contains(&self.opened_as) {
            return Err(TableError::Tampered { what: "name of the item" });
        }
        if state.bindings.leaving() == Some(&self.opened_as) {
            state.bindings = state.bindings.reverted();
        }
        let renamed = state.bindings.is_new(&self.opened_as);
        let unsynced = state.mount == self.table.mounts.current && state.settled < backing_len(head.layout, state.size);
        let recovered = self.recover(inner, Open { head, state, cipher, old, unsynced, renamed })?;
        Ok(recovered)
    }

    /// Commits a change of the header alone.
    pub(super) fn apply_header(
        &self,
        inner: &mut Inner,
        change: impl FnOnce(&mut State),
        way: Way,
    ) -> Result<(), TableError> {
        let open = inner.opened()?;
        let (head, mut state) = (open.head.clone(), open.state.clone());
        change(&mut state);
        let mut page = *inner.page;
        self.apply(
            inner,
            Change {
                head,
                state,
                cipher: None,
                nonces: Nonces::new(1),
                buffer: &mut page,
                dirty: None,
                run_at: BLOCK,
                run_len: 0,
                extra: Vec::new(),
                way,
                quiet: true,
            },
        )
    }

    /// Seals the header that goes with a change, where it changes, and commits all of it at once. Memory follows only
    /// when the file has it.
    pub(super) fn apply(&self, inner: &mut Inner, change: Change<'_>) -> Result<(), TableError> {
        self.find_name()?;
        self.put_back(inner)?;
        let before = self.file.len();
        let Inner { page, open: Some(open), touched, owed, .. } = inner else {
            return Err(rustix::io::Errno::IO.into());
        };
        let Change { mut head, mut state, cipher, mut nonces, buffer, dirty, run_at, run_len, extra, way, quiet } =
            change;
        let after = backing_len(head.layout, state.size);
        if open.renamed && state.bindings.leaving().is_some() && self.file.is_durable_at_all() {
            // The record counts only when the rename is durable: the journal flushes the directories first.
            state.bindings = state.bindings.settled();
        }
        let changed = state != open.state || head != open.head;
        if changed {
            settle(&mut state, before, after, way);
            state.generation = state.generation.wrapping_add(1);
            state.mount = self.table.mounts.current;
        }
        let mut cipher = cipher;
        if changed {
            let sealing = cipher.as_mut().unwrap_or(&mut open.cipher);
            let nonce = nonces.take().map_err(|error| TableError::opening("header", error))?;
            head = seal(sealing, head, &state, nonce, buffer)?;
        }
        let together = way == Way::Plain && open.state.size == 0 && run_at == BLOCK && run_len > 0;
        let ops = lay_out(buffer, dirty, (changed, way), (run_at, run_len), &extra, (before, after), together)?;
        let undo = if way == Way::Plain { self.undo(&extra, page, before)? } else { Vec::new() };
        if let Err(error) = self.commit(&ops, way, quiet, touched) {
            *owed = undo;
            // Where this fails too, the next use tries again: no flush reports success before.
            let _ = self.put_back(inner);
            return Err(error);
        }
        if let Some(first) = buffer.first_chunk::<BLOCK_LEN>() {
            **page = *first;
        }
        (open.head, open.state) = (head, state);
        if let Some(cipher) = cipher {
            open.old = Some(std::mem::replace(&mut open.cipher, cipher));
        }
        if open.state.previous.is_none() {
            open.old = None;
        }
        Ok(())
    }

    /// What stands where a direct change is visible at once: the first page, and entries elsewhere.
    fn undo(&self, extra: &[(u64, Vec<u8>)], page: &Page, before: u64) -> Result<Vec<(u64, Vec<u8>)>, TableError> {
        let mut undo = Vec::new();
        if self.file.is_durable_at_all() {
            return Ok(undo);
        }
        for (offset, bytes) in extra.iter().filter(|(offset, _)| *offset < before) {
            let mut old = vec![0; bytes.len()];
            let count = self.file.read_at(&mut old, *offset)?;
            old.truncate(count);
            undo.push((*offset, old));
        }
        let first = usize::try_from(before).unwrap_or(BLOCK_LEN).min(BLOCK_LEN);
        undo.push((0, page.get(..first).unwrap_or_default().to_vec()));
        Ok(undo)
    }

    /// Puts back what a change that failed half-way may have left otherwise.
    pub(super) fn put_back(&self, inner: &mut Inner) -> Result<(), TableError> {
        while let Some((offset, bytes)) = inner.owed.last() {
            self.file.commit(&[Op::Write { offset: *offset, bytes }])?;
            inner.owed.pop();
        }
        Ok(())
    }

    /// Commits, and sees to the time of the last change: a direct write sets it though the content may stay, and what
    /// is journaled does not though the content may change.
    pub(super) fn commit(
        &self,
        ops: &[Op<'_>],
        way: Way,
        quiet: bool,
        touched: &mut Option<Instant>,
    ) -> Result<(), TableError> {
        let direct = way == Way::Plain && !self.file.is_durable_at_all();
        let before = if direct && quiet { Some(self.backing().stat()?.mtime) } else { None };
        match way {
            Way::Plain => self.file.commit(ops)?,
            Way::Whole => self.file.commit_whole(ops)?,
        }
        let mtime = match before {
            Some((seconds, nanoseconds)) => SetTime::At(seconds, nanoseconds),
            None if !direct && !quiet && touched.is_none_or(|last| last.elapsed() >= TICK) => {
                *touched = Some(Instant::now());
                SetTime::Now
            }
            None => return Ok(()),
        };
        if let Err(error) = self.file.utimens(SetTime::Keep, mtime) {
            // The change itself is done.
            log::debug!("item {}: its time was not set: {error}", self.id);
        }
        Ok(())
    }

    /// After a flush that covered all that was there at `generation`: the header may say so. It says it through the
    /// journal, and whether that lasts is of no moment to what was flushed.
    pub(super) fn flushed(&self, generation: u64) -> Result<(), TableError> {
        let mut inner = self.exclusive()?;
        let length = self.file.len();
        let Some(open) = &mut inner.open else { return Ok(()) };
        if open.state.generation != generation {
            return Ok(());
        }
        open.unsynced = false;
        if open.state.settled < length || (open.state.bindings.leaving().is_some() && open.renamed) {
            let written = self.apply_header(&mut inner, |state| state.settled = length, Way::Whole);
            if let Err(error) = written {
                log::debug!("item {}: the settled length was not noted: {error}", self.id);
            }
        }
        Ok(())
    }

    pub(super) fn way_of_header(&self) -> Way {
        if self.file.is_durable_at_all() { Way::Whole } else { Way::Plain }
    }
}

/// Derives the keys and opens a header: commitment first, then the seal, then the fields.
fn open_header(header: &[u8; HEADER_LEN], keys: &impl ItemKeySource) -> Result<(Head, State, ItemCipher), TableError> {
    let parsed = SealedHeader::parse(header).map_err(|error| TableError::parsing("header", error))?;
    let SealedHeader { head, nonce, mut state, tag } = parsed;
    if head.version == 0 || head.version > keys.current_version() {
        return Err(TableError::Tampered { what: "header" });
    }
    let opening = |error| TableError::opening("header", error);
    let cipher = ItemCipher::derive(keys, head.version, head.item, &head.salt).map_err(opening)?;
    cipher.check_commitment(&head.commitment).map_err(opening)?;
    let seal = Seal { epoch: head.epoch, nonce, tag };
    cipher.open_header(&head.encode(), &seal, &mut state).map_err(opening)?;
    let state = State::parse(&state, head.layout).map_err(|error| TableError::parsing("header", error))?;
    Ok((head, state, cipher))
}

/// The keys under which the blocks were sealed that have not been sealed anew.
fn older_cipher(head: &Head, state: &State, keys: &impl ItemKeySource) -> Result<Option<ItemCipher>, TableError> {
    let derive = |previous: Previous| ItemCipher::derive(keys, previous.version, head.item, &head.salt);
    state.previous.map(derive).transpose().map_err(|error| TableError::opening("header", error))
}

/// How far the file is settled with this change: all of it, if it was and the change goes into the journal as a whole.
fn settle(state: &mut State, before: u64, after: u64, way: Way) {
    let all = state.settled >= before && way == Way::Whole;
    state.settled = if all { after } else { state.settled.min(after) };
}

/// The operations of a change, in the order in which a kill may cut them short: what is not visible yet first, then
/// the entries and the header that make it visible, then what is no longer of use.
fn lay_out<'a>(
    buffer: &'a [u8],
    dirty: Option<(usize, usize)>,
    (header, way): (bool, Way),
    (run_at, run_len): (u64, usize),
    extra: &'a [(u64, Vec<u8>)],
    (before, after): (u64, u64),
    together: bool,
) -> Result<Vec<Op<'a>>, TableError> {
    let part = |from: usize, to: usize| buffer.get(from..to).ok_or(TableError::TooLarge);
    let mut ops = Vec::with_capacity(6 + extra.len());
    let mut grown = before;
    // The first page and the run behind it in one call, where nothing was there before: the header is good also unchanged,
    // and a call that a kill has divided leaves the beginning of what it was to write.
    if together {
        ops.push(Op::Write { offset: 0, bytes: part(0, BLOCK_LEN + run_len)? });
    } else if run_len > 0 {
        ops.push(Op::Write { offset: run_at, bytes: part(BLOCK_LEN, BLOCK_LEN + run_len)? });
    }
    if run_len > 0 {
        grown = grown.max(run_at + run_len as u64);
    }
    for (offset, bytes) in extra {
        ops.push(Op::Write { offset: *offset, bytes });
        grown = grown.max(offset + bytes.len() as u64);
    }
    if together {
        grown = grown.max(BLOCK);
    } else {
        grown = grown.max(dirty.map_or(HEADER_LEN, |(_, to)| to) as u64);
        match (header, dirty) {
            // One call, unless the bytes between would swell the journal.
            (true, Some((from, to))) if way == Way::Plain || from <= 2 * HEADER_LEN => {
                ops.push(Op::Write { offset: 0, bytes: part(0, to)? });
            }
            (true, Some((from, to))) => {
                ops.push(Op::Write { offset: from as u64, bytes: part(from, to)? });
                ops.push(Op::Write { offset: 0, bytes: part(0, HEADER_LEN)? });
            }
            (true, None) => ops.push(Op::Write { offset: 0, bytes: part(0, HEADER_LEN)? }),
            (false, Some((from, to))) => ops.push(Op::Write { offset: from as u64, bytes: part(from, to)? }),
            (false, None) => {}
        }
    }
    if after > grown {
        // The file is as long as the header says before the header says it.
        ops.insert(0, Op::SetLen(after));
    } else if after < grown {
        ops.push(Op::SetLen(after));
    }
    Ok(ops)
}
