//! A document while it is being written: when it is complete, and what may still follow it.
//!
//! A shell does not report an error of close(2), so a document is decided at the write that completes it, and one that
//! cannot become valid any more at the write that makes this plain. Only a document that simply stops is left to the close.

use super::super::api::{FsError, FsResult};
use super::temporaries::{resize, write_at};
use crate::policy::{Progress, progress};

/// Bytes that a handle may take, whatever it is that is written: the largest policy, with room for what comes behind.
const SIZE_MOST: usize = 64 << 10;

/// What is written through one handle.
#[derive(Debug)]
pub(super) struct Draft {
    bytes: Vec<u8>,
    /// Whether it began empty: only then can the first complete document be told from half an overwrite.
    from_empty: bool,
    /// Something was written that has not been decided.
    undecided: bool,
    /// Where the document that was saved through this handle ends.
    saved_to: Option<usize>,
}

/// What is to be done after a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing yet.
    Wait,
    /// This text is the document: save it.
    Save(Vec<u8>),
}

impl Draft {
    /// Starts with what the document is now, or with nothing after a truncation.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let from_empty = bytes.is_empty();
        Self { bytes, from_empty, undecided: false, saved_to: None }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn truncate(&mut self, size: u64) -> FsResult<()> {
        resize(&mut self.bytes, size, SIZE_MOST)?;
        // Emptying alone decides nothing: a shell closes a duplicate of its descriptor before it writes.
        self.from_empty = size == 0;
        self.undecided = size != 0;
        self.saved_to = None;
        Ok(())
    }

    /// # Errors
    /// `Invalid` for text after a document that was saved through this handle.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> FsResult<Step> {
        if let Some(end) = self.saved_to {
            let starts_behind = usize::try_from(offset).is_ok_and(|offset| offset >= end);
            if starts_behind && data.iter().all(u8::is_ascii_whitespace) {
                return Ok(Step::Wait);
            }
            if starts_behind {
                return Err(FsError::Invalid);
            }
            self.saved_to = None;
        }
        write_at(&mut self.bytes, offset, data, SIZE_MOST)?;
        self.undecided = true;
        if !self.from_empty {
            return Ok(Step::Wait);
        }
        match progress(&self.bytes) {
            Progress::Blank | Progress::Incomplete => Ok(Step::Wait),
            Progress::Complete(_) | Progress::Broken(_) => Ok(self.decide()),
        }
    }

    /// At fsync and close: whatever is there is the document.
    pub(super) fn finish(&mut self) -> Step {
        if self.undecided { self.decide() } else { Step::Wait }
    }

    /// The save of what `Step::Save` gave was refused: what comes next may still make it right.
    pub(super) fn refused(&mut self) {
        self.saved_to = None;
    }

    fn decide(&mut self) -> Step {
        self.undecided = false;
        self.saved_to = Some(self.bytes.len());
        Step::Save(self.bytes.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_saved_by_the_write_that_completes_it() {
        let mut draft = Draft::new(Vec::new());
        assert_eq!(draft.write(0, b"{\"a\": [\"}").unwrap(), Step::Wait);
        assert_eq!(draft.write(9, b"\"]}").unwrap(), Step::Save(b"{\"a\": [\"}\"]}".to_vec()));
        assert_eq!(draft.write(12, b"\n").unwrap(), Step::Wait);
        assert!(matches!(draft.write(13, b"{}"), Err(FsError::Invalid)));
        assert_eq!(draft.finish(), Step::Wait);
    }

    #[test]
    fn what_cannot_become_valid_is_decided_at_once() {
        for text in [&b"hello"[..], b"{\"a\": [1}", b"]"] {
            assert!(matches!(Draft::new(Vec::new()).write(0, text), Ok(Step::Save(_))), "{text:?}");
        }
    }

    #[test]
    fn a_document_that_stops_short_is_decided_at_the_close() {
        let mut draft = Draft::new(Vec::new());
        assert_eq!(draft.write(0, b"{\"a\": 1").unwrap(), Step::Wait);
        assert_eq!(draft.finish(), Step::Save(b"{\"a\": 1".to_vec()));
        assert_eq!(draft.finish(), Step::Wait);
    }

    #[test]
    fn an_overwrite_in_place_is_decided_at_the_close() {
        let mut draft = Draft::new(b"{\"a\": 1}".to_vec());
        assert_eq!(draft.write(6, b"2").unwrap(), Step::Wait);
        assert_eq!(draft.finish(), Step::Save(b"{\"a\": 2}".to_vec()));
        draft.truncate(0).unwrap();
        assert_eq!(draft.write(0, b"{}").unwrap(), Step::Save(b"{}".to_vec()));
    }

    #[test]
    fn emptying_alone_is_no_save() {
        let mut draft = Draft::new(b"{}".to_vec());
        draft.truncate(0).unwrap();
        assert_eq!(draft.finish(), Step::Wait);
        assert_eq!(draft.write(0, b"\n").unwrap(), Step::Wait);
        assert_eq!(draft.finish(), Step::Save(b"\n".to_vec()));
    }
}
