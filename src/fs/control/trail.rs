//! The audit trail while it is being read: put into text as far as its reader has come, never all of it.

use super::super::api::{FsError, FsResult};
use crate::kms::{KmsError, TrailLines};

/// Text behind the reader's place that is kept, for one who steps back a little.
const KEPT: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct TrailText {
    lines: Lines<TrailLines>,
}

/// Lines as one text, of which only a window is kept.
#[derive(Debug)]
pub(super) struct Lines<L> {
    rest: L,
    /// Where in the text the window begins.
    start: u64,
    window: Vec<u8>,
}

impl TrailText {
    pub(super) fn new(lines: TrailLines) -> Self {
        Self { lines: Lines::new(lines) }
    }

    /// Reads at `offset`; fewer bytes only at the end. Whoever goes back further than is kept has the trail begun again,
    /// by `again`: what was in it is in it still, since it only grows.
    pub(super) fn read(
        &mut self,
        offset: u64,
        size: u32,
        buffer: &mut Vec<u8>,
        again: impl FnOnce() -> Result<TrailLines, KmsError>,
    ) -> FsResult<()> {
        if !self.lines.reaches(offset) {
            self.lines = Lines::new(again()?);
        }
        let size = usize::try_from(size).map_err(|_| FsError::Invalid)?;
        self.lines.read(offset, size, buffer);
        Ok(())
    }
}

impl<L: Iterator<Item = Vec<u8>>> Lines<L> {
    pub(super) fn new(rest: L) -> Self {
        Self { rest, start: 0, window: Vec::new() }
    }

    /// Whether what begins at `offset` is still to be had.
    pub(super) fn reaches(&self, offset: u64) -> bool {
        offset >= self.start
    }

    /// Reads at `offset`; fewer bytes only at the end.
    pub(super) fn read(&mut self, offset: u64, size: usize, buffer: &mut Vec<u8>) {
        loop {
            let from = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX);
            let there = self.window.len().saturating_sub(from);
            if there < size
                && let Some(line) = self.rest.next()
            {
                self.window.extend_from_slice(&line);
                self.forget(from);
                continue;
            }
            let end = from.saturating_add(size).min(self.window.len());
            buffer.extend_from_slice(self.window.get(from..end).unwrap_or_default());
            return;
        }
    }

    /// Lets go of what lies far enough before `from`.
    fn forget(&mut self, from: usize) {
        let gone = from.min(self.window.len()).saturating_sub(KEPT);
        if gone >= KEPT {
            self.window.drain(..gone);
            self.start += gone as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Lines<impl Iterator<Item = Vec<u8>>> {
        Lines::new((0..500_000).map(|number| format!("{number:09}\n").into_bytes()))
    }

    fn at(text: &mut Lines<impl Iterator<Item = Vec<u8>>>, offset: u64, size: usize) -> String {
        let mut buffer = Vec::new();
        text.read(offset, size, &mut buffer);
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn a_text_is_read_through_a_window() {
        let mut text = lines();
        assert_eq!(at(&mut text, 0, 25), "000000000\n000000001\n00000");
        assert_eq!(at(&mut text, 4_000_005, 10), "0000\n00040");
        assert!(text.window.len() < 3 * KEPT && text.start > 0);
        assert_eq!(at(&mut text, 3_990_000, 9), "000399000");
        assert_eq!(at(&mut text, 4_999_990, 100), "000499999\n");
        assert_eq!(at(&mut text, 5_000_000, 100), "");
        assert_eq!(at(&mut text, u64::MAX, 100), "");
    }
}
