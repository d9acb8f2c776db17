//! Files that answer: what is written through a descriptor is a request, what is read from it the answer. A descriptor is
//! one transaction of its opener.
//!
//! The first read ends the request and runs it. The answer stands where the request ended, so that whoever writes and
//! then reads, and moves nothing in between, finds it. A request is bounded, and wiped like the answer.

use zeroize::Zeroizing;

use super::super::FileSystem;
use super::super::api::{FsError, FsResult};
use super::super::quota::Share;
use super::super::subject::Asker;
use super::{Exchange, Scope, take};
use crate::kms::{
    CIPHERTEXT_MOST, DirectRequest, KmsError, Query, REQUEST_LINE_MOST, Subject, line_and_data, parse_line,
};
use crate::policy::MAX_POLICY_LEN;

/// A request while it is being written, then its answer.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    request: Zeroizing<Vec<u8>>,
    /// Where the answer begins.
    length: u64,
    answer: Option<Answer>,
}

/// What is to be read, and its part of what the opener may have of such memory.
#[derive(Debug)]
pub(super) struct Answer {
    bytes: Zeroizing<Vec<u8>>,
    _share: Option<Share>,
}

/// Bytes of answers that one user may have open. One alone may be longer.
pub(super) const ANSWER_BYTES_MOST: usize = 4 << 20;
/// Questions of one user that are answered at a time: each goes through the host's accounts, and holds a thread.
pub(super) const QUESTIONS_MOST: usize = 4;

/// Bytes that a request may have: its line, and what stands behind that.
pub(super) fn request_most(what: Exchange) -> usize {
    let data = match what {
        Exchange::Encrypt(_) | Exchange::Decrypt(_) | Exchange::ReEncrypt(_) | Exchange::GenerateDataKey(_) => {
            CIPHERTEXT_MOST
        }
        Exchange::Query(_) => MAX_POLICY_LEN,
    };
    // One byte more than can be right, so that the one who is to judge hears of it.
    REQUEST_LINE_MOST + 1 + data + 1
}

impl Transaction {
    /// # Errors
    /// `Invalid` for anything but more of the request; `TooLarge` for too much of it.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], most: usize) -> FsResult<()> {
        if self.answer.is_some() || offset != self.length {
            return Err(FsError::Invalid);
        }
        let length = self.request.len().saturating_add(data.len());
        if length > most {
            return Err(FsError::TooLarge);
        }
        // All of it at once: growing would leave copies behind.
        if self.request.capacity() == 0 {
            self.request = Zeroizing::new(Vec::with_capacity(most));
        }
        self.request.extend_from_slice(data);
        self.length = super::size_of(&self.request);
        Ok(())
    }

    /// Reads of the answer, which `run` gives when it is first asked for. What fails may be asked again.
    pub(super) fn read(
        &mut self,
        offset: u64,
        size: u32,
        buffer: &mut Vec<u8>,
        run: impl FnOnce(&[u8]) -> FsResult<Answer>,
    ) -> FsResult<()> {
        // Nothing written is no request: whoever only looks into every file asks for nothing.
        let offset = offset.checked_sub(self.length).filter(|_| self.length != 0).ok_or(FsError::Invalid)?;
        let answer = match self.answer.take() {
            Some(answer) => answer,
            None => run(&self.request)?,
        };
        self.request = Zeroizing::default();
        take(&answer.bytes, offset, size, buffer);
        self.answer = Some(answer);
        Ok(())
    }
}

impl FileSystem {
    /// Runs a request. What it came to, in words, is in the caller's `ctl.result` beside it.
    ///
    /// # Errors
    /// `Busy` for a user who has too many questions, or too much of their answers, at once; else what the call says.
    pub(super) fn exchange(&self, what: Exchange, opener: &Asker, request: &[u8]) -> FsResult<Answer> {
        let who = opener.subject();
        let _asking = match what {
            Exchange::Query(_) => Some(self.control.questions.take(opener.uid(), 1).ok_or(FsError::Busy)?),
            Exchange::Encrypt(_) | Exchange::Decrypt(_) | Exchange::ReEncrypt(_) | Exchange::GenerateDataKey(_) => None,
        };
        let answer = match what {
            Exchange::Query(scope) => self.answer_query(&who, scope, request),
            Exchange::Encrypt(_) | Exchange::Decrypt(_) | Exchange::ReEncrypt(_) | Exchange::GenerateDataKey(_) => {
                self.direct(what).and_then(|direct| self.kms.run_direct(&who, &direct, request))
            }
        };
        let said = match &answer {
            Ok(_) => "done: answered".to_owned(),
            Err(error) => format!("refused: {error}"),
        };
        self.control.set_result(what.scope(), opener.uid(), &said);
        let bytes = answer?;
        // A direct call's answer is as short as its request.
        let share = match what {
            Exchange::Query(_) => Some(self.control.answers.take(opener.uid(), bytes.len()).ok_or(FsError::Busy)?),
            Exchange::Encrypt(_) | Exchange::Decrypt(_) | Exchange::ReEncrypt(_) | Exchange::GenerateDataKey(_) => None,
        };
        Ok(Answer { bytes, _share: share })
    }

    fn direct(&self, what: Exchange) -> Result<DirectRequest, KmsError> {
        Ok(match what {
            Exchange::Encrypt(id) => DirectRequest::Encrypt(self.kms.key(id)?),
            Exchange::Decrypt(Scope::Key(id)) => DirectRequest::Decrypt(Some(self.kms.key(id)?)),
            Exchange::Decrypt(Scope::Store | Scope::Table(_)) | Exchange::Query(_) => DirectRequest::Decrypt(None),
            Exchange::ReEncrypt(id) => DirectRequest::ReEncrypt(self.kms.key(id)?),
            Exchange::GenerateDataKey(id) => DirectRequest::GenerateDataKey(self.kms.key(id)?),
        })
    }

    fn answer_query(&self, who: &Subject<'_>, scope: Scope, request: &[u8]) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        let key = match scope {
            Scope::Store => None,
            Scope::Key(id) => Some(self.kms.key(id)?),
            Scope::Table(_) => return Err(KmsError::NotFound),
        };
        let (line, document) = line_and_data(request);
        let query: Option<Query> = parse_line(line)?;
        let query = query.ok_or_else(|| KmsError::Invalid("the request is empty".to_owned()))?;
        let answer = self.kms.query(who, key.as_ref(), &query, document)?;
        Ok(Zeroizing::new(format!("{answer:#}\n").into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(transaction: &mut Transaction, offset: u64, size: u32) -> FsResult<Vec<u8>> {
        let mut buffer = Vec::new();
        let echo = |request: &[u8]| {
            let bytes = Zeroizing::new([b"answer to ", request].concat());
            Ok(Answer { bytes, _share: None })
        };
        transaction.read(offset, size, &mut buffer, echo)?;
        Ok(buffer)
    }

    #[test]
    fn the_answer_stands_where_the_request_ended() {
        let mut transaction = Transaction::default();
        transaction.write(0, b"{}\n", 9).unwrap();
        transaction.write(3, b"xy", 9).unwrap();
        assert_eq!(read(&mut transaction, 5, 8).unwrap(), b"answer t");
        assert_eq!(read(&mut transaction, 13, 100).unwrap(), b"o {}\nxy");
        assert_eq!(read(&mut transaction, 20, 100).unwrap(), b"");
        assert_eq!(read(&mut transaction, u64::MAX, 100).unwrap(), b"");
        assert!(transaction.request.is_empty());
    }

    #[test]
    fn nothing_is_written_but_at_the_end_of_the_request() {
        let mut transaction = Transaction::default();
        assert!(matches!(transaction.write(1, b"x", 9), Err(FsError::Invalid)));
        assert!(matches!(read(&mut transaction, 0, 1), Err(FsError::Invalid)));
        transaction.write(0, b"12345678", 9).unwrap();
        assert!(matches!(transaction.write(0, b"x", 9), Err(FsError::Invalid)));
        assert!(matches!(transaction.write(8, b"xy", 9), Err(FsError::TooLarge)));
        assert!(matches!(read(&mut transaction, 7, 1), Err(FsError::Invalid)));
        read(&mut transaction, 8, 1).unwrap();
        assert!(matches!(transaction.write(8, b"x", 9), Err(FsError::Invalid)));
    }

    #[test]
    fn what_failed_may_be_asked_again() {
        let mut transaction = Transaction::default();
        transaction.write(0, b"x", 9).unwrap();
        let mut buffer = Vec::new();
        assert!(matches!(transaction.read(1, 9, &mut buffer, |_| Err(FsError::Denied)), Err(FsError::Denied)));
        assert_eq!(read(&mut transaction, 1, 100).unwrap(), b"answer to x");
    }
}
