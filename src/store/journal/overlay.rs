//! What is pending for one file in one segment: byte ranges over pages of 4 KiB, and changes of the length. Plain
//! memory; the file itself is touched by `Overlay::apply` alone.
//!
//! Only bytes that were journaled are held, never a whole page's image, so that putting an overlay in place writes
//! nothing else. A file is read bottom up: its own bytes, then each overlay, oldest first: zeros from `floor` on, then
//! the ranges.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::Op;
use crate::store::storage::File;

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
const PAGE_U64: u64 = 4096;
/// The longest single write when an overlay is put in place.
const RUN: usize = 1 << 20;

/// A page of which some ranges are set.
#[derive(Debug, Clone)]
struct Page {
    bytes: Box<[u8; PAGE]>,
    /// `start..end`, in order, apart from each other.
    ranges: Vec<(usize, usize)>,
}

impl Page {
    fn new() -> Self {
        Self { bytes: Box::new([0; PAGE]), ranges: Vec::new() }
    }

    fn write(&mut self, start: usize, bytes: &[u8]) {
        let end = start + bytes.len();
        if let Some(room) = self.bytes.get_mut(start..end) {
            room.copy_from_slice(bytes);
            let (mut from, mut to) = (start, end);
            self.ranges.retain(|&(low, high)| {
                let apart = high < from || low > to;
                if !apart {
                    from = from.min(low);
                    to = to.max(high);
                }
                apart
            });
            let at = self.ranges.partition_point(|&(low, _)| low < from);
            self.ranges.insert(at, (from, to));
        }
    }

    /// Forgets everything from `end` on.
    fn cut(&mut self, end: usize) {
        self.ranges.retain_mut(|(low, high)| {
            *high = (*high).min(end);
            low < high
        });
    }
}

/// What one segment holds for one file.
#[derive(Debug, Clone)]
pub(super) struct Overlay {
    /// The segment.
    pub(super) segment: u64,
    /// Bytes below this overlay count up to here; from here on they are zeros. `u64::MAX`: all count.
    floor: u64,
    /// The length after this overlay, where it changes it.
    length: Option<u64>,
    pages: BTreeMap<u64, Arc<Page>>,
}

impl Overlay {
    pub(super) fn new(segment: u64) -> Self {
        Self { segment, floor: u64::MAX, length: None, pages: BTreeMap::new() }
    }

    /// The length after this overlay, where it changes it.
    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Whether it changes the length.
    pub(super) fn resizes(&self) -> bool {
        self.length.is_some()
    }

    /// `len` is the file's length before, with all that is pending; the length after is returned.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], len: u64) -> u64 {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (page, start) = split(at);
            let (now, later) = rest.split_at(rest.len().min(PAGE - start));
            Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new(Page::new()))).write(start, now);
            at = at.saturating_add(length_of(now));
            rest = later;
        }
        if at > len {
            self.length = Some(at);
        }
        len.max(at)
    }

    pub(super) fn set_len(&mut self, length: u64, len: u64) {
        if length < len {
            self.floor = self.floor.min(length);
            let (page, end) = split(length);
            let mut cut = self.pages.split_off(&page);
            if let Some(mut last) = cut.remove(&page) {
                Arc::make_mut(&mut last).cut(end);
                if !last.ranges.is_empty() {
                    self.pages.insert(page, last);
                }
            }
        }
        self.length = Some(length);
    }

    /// The part that concerns a read of `length` bytes at `offset`. The pages are shared, not copied.
    pub(super) fn view(&self, offset: u64, length: usize) -> View {
        let last = split(offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX))).0;
        let pages = self.pages.range(split(offset).0..=last).map(|(&page, bytes)| (page, Arc::clone(bytes)));
        View { floor: self.floor, pages: pages.collect() }
    }

    /// The bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        self.ranges().map(|(_, bytes)| bytes.len()).sum()
    }

    /// The changes that lead to the overlay, or once more to the same.
    pub(super) fn ops(&self) -> impl Iterator<Item = Op<'_>> {
        let floor = (self.floor != u64::MAX).then_some(self.floor);
        let lengths = floor.into_iter().chain(self.length).map(Op::SetLen);
        lengths.chain(self.ranges().map(|(offset, bytes)| Op::Write { offset, bytes }))
    }

    /// The ranges in order, each within a page.
    fn ranges(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.iter().flat_map(|(&number, page)| {
            page.ranges.iter().filter_map(move |&(low, high)| {
                // INVARIANT: a range lies in its page, and a page in a file.
                let at = number.saturating_mul(PAGE_U64).saturating_add(u64::try_from(low).ok()?);
                Some((at, page.bytes.get(low..high)?))
            })
        })
    }

    /// Puts the overlay in place. Doing it again, or again after a part of it, leaves the same bytes.
    pub(super) fn apply(&self, file: &dyn File) -> io::Result<()> {
        if self.floor != u64::MAX {
            file.set_len(self.floor)?;
        }
        if let Some(length) = self.length {
            file.set_len(length)?;
        }
        let (mut run, mut start) = (Vec::new(), 0_u64);
        for (at, bytes) in self.ranges() {
            if start.saturating_add(length_of(&run)) != at || run.len() >= RUN {
                write_run(file, &run, start)?;
                run.clear();
                start = at;
            }
            run.extend_from_slice(bytes);
        }
        write_run(file, &run, start)
    }
}

fn write_run(file: &dyn File, run: &[u8], start: u64) -> io::Result<()> {
    if run.is_empty() { Ok(()) } else { file.write_all_at(run, start) }
}

/// What an overlay says of one range of a file.
#[derive(Debug)]
pub(super) struct View {
    floor: u64,
    pages: Vec<(u64, Arc<Page>)>,
}

impl View {
    /// Lays the view over what `buffer`, read at `offset`, holds from below.
    pub(super) fn lay(&self, buffer: &mut [u8], offset: u64) {
        let below = usize::try_from(self.floor.saturating_sub(offset)).unwrap_or(usize::MAX);
        if let Some(dead) = buffer.get_mut(below..) {
            dead.fill(0);
        }
        let end = offset.saturating_add(length_of(buffer));
        for (page, bytes) in &self.pages {
            let base = page.saturating_mul(PAGE_U64);
            for &(low, high) in &bytes.ranges {
                let at = |inside: usize| base.saturating_add(u64::try_from(inside).unwrap_or(u64::MAX));
                let (from, to) = (at(low).max(offset), at(high).min(end));
                if from >= to {
                    continue;
                }
                let distance = |from: u64, to: u64| usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
                let target = buffer.get_mut(distance(offset, from)..distance(offset, to));
                let source = bytes.bytes.get(distance(base, from)..distance(base, to));
                if let (Some(target), Some(source)) = (target, source) {
                    target.copy_from_slice(source);
                }
            }
        }
    }
}

/// Page number and offset in the page.
fn split(offset: u64) -> (u64, usize) {
    // INVARIANT: a remainder by 4096 fits a usize.
    (offset / PAGE_U64, usize::try_from(offset % PAGE_U64).unwrap_or(0))
}

fn length_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(overlays: &[&Overlay], file: &[u8], len: usize) -> Vec<u8> {
        let mut buffer = vec![0; len];
        let count = len.min(file.len());
        buffer[..count].copy_from_slice(&file[..count]);
        for overlay in overlays {
            overlay.view(0, len).lay(&mut buffer, 0);
        }
        buffer
    }

    #[test]
    fn ranges_merge_and_stay_apart() {
        let mut page = Page::new();
        page.write(10, &[1; 10]);
        page.write(30, &[2; 10]);
        assert_eq!(page.ranges, [(10, 20), (30, 40)]);
        page.write(20, &[3; 10]);
        assert_eq!(page.ranges, [(10, 40)]);
        page.write(0, &[4; 2]);
        page.write(4090, &[5; 6]);
        assert_eq!(page.ranges, [(0, 2), (10, 40), (4090, 4096)]);
        page.cut(35);
        assert_eq!(page.ranges, [(0, 2), (10, 35)]);
        page.cut(0);
        assert!(page.ranges.is_empty());
    }

    #[test]
    fn what_was_cut_reads_as_zeros_after_growing() {
        let file = [7_u8; 10_000];
        let mut first = Overlay::new(1);
        assert_eq!(first.write(9_000, &[8; 500], 10_000), 10_000);
        assert!(!first.resizes());
        let mut second = Overlay::new(2);
        second.set_len(5_000, 10_000);
        second.set_len(10_000, 5_000);
        assert_eq!(second.write(6_000, &[9; 10], 10_000), 10_000);
        let mut expected = vec![7; 5_000];
        expected.resize(10_000, 0);
        expected[6_000..6_010].fill(9);
        assert_eq!(read(&[&first, &second], &file, 10_000), expected);
        // One overlay alone forgets what it held beyond the cut.
        first.set_len(9_100, 10_000);
        first.set_len(9_900, 9_100);
        let mut expected = vec![7; 9_000];
        expected.resize(9_100, 8);
        expected.resize(9_900, 0);
        assert_eq!(read(&[&first], &file, 9_900), expected);
    }
}
