//! Reading ahead in the backing file: who reads a large item from one end to the other has the storage busy with what
//! comes next while the last blocks are being decrypted. The kernel's own read-ahead knows one request at a time.
//!
//! Hints alone: nothing that is read depends on them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::format::{BLOCK, Layout, block_count, data_at};
use super::{Item, Open};

/// Requests from here on are parts of a stream, if they follow each other.
const LARGE: u64 = 64 << 10;
/// Bytes of the item that are asked for beyond the request at hand: what the kernel asks for in the next two.
const AHEAD: u64 = 2 << 20;

/// How far an item has been read, and asked for.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// The end of the last large read.
    end: AtomicU64,
    /// The end, in the backing file, of what was asked for.
    asked: AtomicU64,
}

impl ReadAhead {
    /// The range of the backing file to be asked for before a read at `offset` of an item of so many bytes. Requests of
    /// one reader are answered by several threads, and so not always in their order.
    fn range(&self, offset: u64, length: u64, size: u64) -> Option<(u64, u64)> {
        if length < LARGE {
            return None;
        }
        let end = offset.saturating_add(length).min(size);
        let last = self.end.swap(end, Ordering::Relaxed);
        let from = data_at(offset / BLOCK);
        if last.abs_diff(offset) > AHEAD {
            self.asked.store(from, Ordering::Relaxed);
            return None;
        }
        let to = data_at(block_count(end.saturating_add(AHEAD).min(size)));
        let asked = self.asked.fetch_max(to, Ordering::Relaxed);
        // Less than was asked for is the same stream once more: of that the storage has what it could keep.
        let from = from.max(asked);
        (from < to).then(|| (from, to - from))
    }
}

impl Item {
    pub(super) fn read_ahead(&self, open: &Open, offset: u64, length: usize) {
        if open.head.layout != Layout::Paged {
            return;
        }
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        if let Some((from, length)) = self.ahead.range(offset, length, open.state.size) {
            self.backing().will_need(from, length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_stream_is_asked_for_once() {
        let (ahead, size) = (ReadAhead::default(), 10 * MIB + 5);
        let mut reached = 0;
        // Requests change places, as they do.
        for request in [1, 0, 2, 3, 5, 4, 6, 7, 8, 9, 10] {
            if let Some((from, length)) = ahead.range(request * MIB, MIB, size) {
                assert!(from >= reached, "asked for twice");
                assert!(length <= 5 * MIB);
                reached = from + length;
            }
            assert!(reached >= data_at(((request + 1) * MIB).min(size) / BLOCK));
        }
        assert_eq!(reached, data_at(block_count(size)));
    }

    #[test]
    fn small_and_scattered_reads_are_left_alone() {
        let (ahead, size) = (ReadAhead::default(), 1000 * MIB);
        assert_eq!(ahead.range(0, 4096, size), None);
        for place in [500, 100, 900, 300] {
            assert_eq!(ahead.range(place * MIB, 64 << 10, size), None);
        }
        // From where one goes on, it is a stream.
        assert!(ahead.range(300 * MIB + (64 << 10), 64 << 10, size).is_some());
    }
}
