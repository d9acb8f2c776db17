//! What a crash may have left, told apart from tampering (docs/format.md, section 7).
//!
//! Only after an unclean stop, and only beyond what a header has settled, may anything fail to verify; there it is cut,
//! and told. Everywhere else a length or a block that does not fit is tampering.

use std::fmt;

use zeroize::Zeroize;

use super::super::TableError;
use super::super::format::{BLOCK, BLOCK_LEN, HEADER_LEN, INLINE_DATA_AT, Layout, backing_len, block_len, data_at};
use super::header::{Change, Way};
use super::read::Blocks;
use super::{Inner, Item, Open};
use crate::envelope::Nonces;

/// What was done to an item that an unclean stop had left in disorder. Nothing that a flush had acknowledged is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// What was written last and never flushed did not verify: the item was cut. Sizes in bytes.
    Tail { from: u64, to: u64 },
    /// Bytes behind the item's end that no header knew of were removed.
    Excess { bytes: u64 },
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tail { from, to } => write!(f, "cut from {from} to {to} bytes: the rest was never flushed"),
            Self::Excess { bytes } => write!(f, "removed {bytes} bytes of an unfinished write"),
        }
    }
}

impl Item {
    /// Takes a verified header over, if the backing file agrees with it or an unclean stop explains why not.
    pub(super) fn recover(&self, inner: &mut Inner, mut open: Open) -> Result<Option<Recovered>, TableError> {
        let (actual, expected) = (self.file.len(), backing_len(open.head.layout, open.state.size));
        let mounts = &self.table.mounts;
        let at_risk = mounts.is_unclean(open.state.mount) && open.state.settled < expected;
        let excused = at_risk || (mounts.unclean_since(open.state.mount) && actual > expected);
        if actual != expected && !excused {
            return Err(TableError::Tampered { what: "length" });
        }
        let good = if at_risk {
            Blocks { file: &self.file, page: &inner.page, open: &open }.verified_blocks(open.state.settled)?
        } else {
            open.state.extent
        };
        let size = if good < open.state.extent { good * BLOCK } else { open.state.size };
        let recovered = match open.state.size {
            from if size < from => Some(Recovered::Tail { from, to: size }),
            _ if actual > expected => Some(Recovered::Excess { bytes: actual - expected }),
            _ => None,
        };
        if open.state.mount != mounts.current {
            // That mount was closed, or this one began with a flush of what it had left.
            open.state.settled = expected;
        }
        inner.open = Some(open);
        if excused && !self.table.read_only {
            self.mend(inner, size).inspect_err(|_| inner.open = None)?;
        } else if recovered.is_some()
            && let Some(open) = &mut inner.open
        {
            // A mount that may not write shows the item as it would be.
            (open.state.size, open.state.extent) = (size, good);
        }
        Ok(recovered)
    }

    /// Cuts the item to `size`, gives the file the length that goes with it, and settles all of it.
    fn mend(&self, inner: &mut Inner, size: u64) -> Result<(), TableError> {
        let open = inner.opened()?;
        let (mut head, mut state) = (open.head.clone(), open.state.clone());
        let mut page = *inner.page;
        if size == 0 {
            head.layout = Layout::Inline;
            page = [0; BLOCK_LEN];
        }
        state.size = size;
        state.extent = state.extent.min(size.div_ceil(BLOCK));
        state.settled = u64::MAX;
        let dirty = (size == 0).then_some((HEADER_LEN, HEADER_LEN));
        let way = Way::Whole;
        let change = Change {
            head,
            state,
            cipher: None,
            nonces: Nonces::new(1),
            buffer: &mut page,
            dirty,
            run_at: BLOCK,
            run_len: 0,
            extra: vec![],
            way,
            quiet: true,
        };
        self.apply(inner, change)
    }
}

impl Blocks<'_> {
    /// How many blocks from the start verify, those that were settled taken on trust until they are read.
    fn verified_blocks(&self, settled: u64) -> Result<u64, TableError> {
        let state = &self.open.state;
        let mut text = [0; BLOCK_LEN];
        let mut good = self.first_at_risk(settled);
        while good < state.extent {
            let text = text.get_mut(..block_len(good, state.size)).unwrap_or_default();
            match self.read_block(good, text) {
                Err(TableError::Tampered { .. }) => break,
                other => other?,
            }
            good += 1;
        }
        text.zeroize();
        Ok(good)
    }

    /// The first block of which not all was settled. Later blocks stand later in the file, each behind its entry, so it
    /// is found by halving: the items are as large as they are.
    fn first_at_risk(&self, settled: u64) -> u64 {
        let state = &self.open.state;
        let is_settled = |index: u64| {
            let data = match self.open.head.layout {
                Layout::Inline => INLINE_DATA_AT as u64,
                Layout::Paged => data_at(index),
            };
            data + block_len(index, state.size) as u64 <= settled
        };
        let (mut low, mut high) = (0, state.extent);
        while low < high {
            let middle = low + (high - low) / 2;
            if is_settled(middle) { low = middle + 1 } else { high = middle }
        }
        low
    }
}
