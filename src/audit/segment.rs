//! A segment's bytes: header and sealed, chained records, read one at a time.

use std::io;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::crypto::{Aad, AeadKey, Chain, CryptoError, Key256, NONCE_LEN, Prk, TAG_LEN, equal, hmac_sha256};
use crate::store::File;
use crate::store::fields::Fields;
use crate::types::StoreId;

pub(super) const HEADER_LEN: usize = 128;
/// The most bytes of an event.
pub(super) const MAX_EVENT_LEN: usize = 64 << 10;
/// What a record has beside its event: length, nonce, tag.
pub(super) const RECORD_OVERHEAD: usize = 4 + NONCE_LEN + TAG_LEN;
/// A length of zero: nothing follows.
pub(super) const END_MARK: [u8; 4] = [0; 4];

const MAGIC: &[u8; 8] = b"KMSFSAUD";
const VERSION: u16 = 1;
const AUTHENTICATED_LEN: usize = 96;
const MAX_SPARE_LEN: u64 = 32 << 20;
const BUFFER_LEN: usize = 128 << 10;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) store: StoreId,
    pub(super) session: [u8; 16],
    pub(super) number: u64,
    /// The number of the first record that it will hold.
    pub(super) first: u64,
    /// The chain's head before that.
    pub(super) before: Chain,
}

/// Why a header is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderFault {
    Version(u16),
    Damaged,
}

impl Header {
    pub(super) fn encode(&self, key: &Key256) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(self.store.as_bytes());
        bytes.extend_from_slice(&self.session);
        bytes.extend_from_slice(&self.number.to_le_bytes());
        bytes.extend_from_slice(&self.first.to_le_bytes());
        bytes.extend_from_slice(&self.before.0);
        bytes.extend_from_slice(&hmac_sha256(key, &bytes));
        bytes
    }

    pub(super) fn decode(
        bytes: &[u8; HEADER_LEN],
        key: &Key256,
        store: StoreId,
        number: u64,
    ) -> Result<Self, HeaderFault> {
        let mut at = Fields::new(bytes);
        if at.array::<8>().as_ref() != Some(MAGIC) {
            return Err(HeaderFault::Damaged);
        }
        match at.u16() {
            Some(VERSION) => {}
            found => return Err(HeaderFault::Version(found.unwrap_or(0))),
        }
        let (authenticated, mac) = bytes.split_at(AUTHENTICATED_LEN);
        if !equal(&hmac_sha256(key, authenticated), mac) {
            return Err(HeaderFault::Damaged);
        }
        let mut fields = || {
            at.zeros::<6>()?;
            Some(Self {
                store: StoreId::from_bytes(at.array()?),
                session: at.array()?,
                number: at.u64()?,
                first: at.u64()?,
                before: Chain(at.array()?),
            })
        };
        fields()
            .filter(|header| header.store == store && header.number == number && header.first > 0)
            .ok_or(HeaderFault::Damaged)
    }

    /// The key of this session's records.
    pub(super) fn record_key(&self, key: &Key256) -> Result<AeadKey, CryptoError> {
        AeadKey::new(&Prk::extract(&self.session, key.expose()).expand(&Aad::new("kmsfs v1 trail key")))
    }
}

fn aad(segment: u64, sequence: u64, before: Chain) -> Aad {
    Aad::new("kmsfs v1 trail").u64(segment).u64(sequence).bytes(&before.0)
}

/// A record on its way into a segment: first an event's text, with room before it, then sealed where it stands.
#[derive(Debug, Default)]
pub(super) struct Draft(Vec<u8>);

/// What stands before a record's text.
const LENGTH_LEN: usize = 4;
const TEXT_AT: usize = LENGTH_LEN + NONCE_LEN;

impl Draft {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Starts anew, keeping the memory.
    pub(super) fn clear(&mut self) -> &mut Vec<u8> {
        self.0.clear();
        self.0.resize(TEXT_AT, 0);
        &mut self.0
    }

    pub(super) fn text_len(&self) -> usize {
        self.0.len().saturating_sub(TEXT_AT)
    }

    /// Seals the text. Afterwards the draft is the record's bytes and the end mark after it; gives its head.
    pub(super) fn seal(
        &mut self,
        key: &AeadKey,
        segment: u64,
        sequence: u64,
        before: Chain,
    ) -> Result<Chain, CryptoError> {
        let (prefix, text) = self.0.split_at_mut_checked(TEXT_AT).ok_or(CryptoError::TooShort)?;
        let sealed = key.seal_random(aad(segment, sequence, before).as_bytes(), text)?;
        let length = u32::try_from(NONCE_LEN + text.len() + TAG_LEN).map_err(|_| CryptoError::TooLong)?;
        let (length_at, nonce_at) = prefix.split_at_mut(LENGTH_LEN);
        length_at.copy_from_slice(&length.to_le_bytes());
        nonce_at.copy_from_slice(&sealed.nonce);
        self.0.extend_from_slice(&sealed.tag);
        let head = before.extended(self.0.get(LENGTH_LEN..).unwrap_or_default());
        self.0.extend_from_slice(&END_MARK);
        Ok(head)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What stands at a place in a segment.
#[derive(Debug)]
pub(super) enum Step {
    Record {
        sequence: u64,
        head: Chain,
        text: Zeroizing<Vec<u8>>,
    },
    /// Nothing more, and nothing but zeros behind it.
    End,
    /// What stands here is no record of the trail.
    Unverified(&'static str),
}

/// Reads a segment's records in order. Memory is bounded by the longest record, whatever the file says.
#[derive(Debug)]
pub(super) struct SegmentReader {
    file: Arc<dyn File>,
    key: AeadKey,
    number: u64,
    /// The file's length, or how much of it is complete.
    length: u64,
    /// Where the next record starts, its number and the head before it.
    at: u64,
    sequence: u64,
    head: Chain,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl SegmentReader {
    /// Reads the header. `limit` cuts off what is being written at the moment.
    pub(super) fn open(
        file: Arc<dyn File>,
        key: &Key256,
        store: StoreId,
        number: u64,
        limit: Option<u64>,
    ) -> io::Result<Result<(Self, Header), HeaderFault>> {
        let length = file.stat()?.size.min(limit.unwrap_or(u64::MAX));
        let mut bytes = [0; HEADER_LEN];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Err(HeaderFault::Damaged)),
            other => other?,
        }
        let header = match Header::decode(&bytes, key, store, number) {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let key = header.record_key(key).map_err(io::Error::other)?;
        let (sequence, head) = (header.first, header.before);
        let at = HEADER_LEN as u64;
        Ok(Ok((Self { file, key, number, length, at, sequence, head, buffer: Vec::new(), buffer_at: 0 }, header)))
    }

    /// Where the verified part ends.
    pub(super) fn verified(&self) -> u64 {
        self.at
    }

    /// The file's bytes from `verified` on.
    pub(super) fn remaining(&self) -> u64 {
        self.length.saturating_sub(self.at)
    }

    pub(super) fn next(&mut self) -> io::Result<Step> {
        let Some(prefix) = self.bytes(self.at, 4)? else {
            // Fewer bytes than a length: the rest of an end mark, or of a write that was cut.
            return self.end();
        };
        let length = Fields::new(prefix).u32().unwrap_or(0);
        if length == 0 {
            return self.end();
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if !(NONCE_LEN + TAG_LEN..=MAX_EVENT_LEN + NONCE_LEN + TAG_LEN).contains(&length) {
            return Ok(Step::Unverified("a record's length is damaged"));
        }
        let associated = aad(self.number, self.sequence, self.head);
        let start = self.at.saturating_add(4);
        let Some(sealed) = self.bytes(start, length)? else {
            return Ok(Step::Unverified("a record is cut"));
        };
        let head = sealed.to_vec();
        let Ok(text) = self.key.open_box(&associated, &head) else {
            return Ok(Step::Unverified("a record does not authenticate"));
        };
        self.head = self.head.extended(&head);
        self.at = start.saturating_add(length as u64);
        let sequence = self.sequence;
        self.sequence = sequence.saturating_add(1);
        Ok(Step::Record { sequence, head: self.head, text })
    }

    /// After the last record: whether there is nothing but zeros.
    fn end(&mut self) -> io::Result<Step> {
        // No more than was ever reserved is looked through: a file can be of any length.
        if self.remaining() > MAX_SPARE_LEN {
            return Ok(Step::Unverified("there are bytes behind the last record"));
        }
        let mut at = self.at;
        while at < self.length {
            let count = usize::try_from(self.length - at).unwrap_or(BUFFER_LEN).min(BUFFER_LEN);
            match self.bytes(at, count)? {
                Some(bytes) if bytes.iter().all(|byte| *byte == 0) => at = at.saturating_add(count as u64),
                Some(_) => return Ok(Step::Unverified("there are bytes behind the last record")),
                None => break,
            }
        }
        Ok(Step::End)
    }

    /// `count` bytes at an offset, at most the longest record; none if the file ends before.
    fn bytes(&mut self, at: u64, count: usize) -> io::Result<Option<&[u8]>> {
        if at.saturating_add(count as u64) > self.length {
            return Ok(None);
        }
        let within = at.checked_sub(self.buffer_at).and_then(|start| usize::try_from(start).ok());
        let start = match within {
            Some(start) if start.saturating_add(count) <= self.buffer.len() => start,
            Some(_) | None => {
                let left = usize::try_from(self.length.saturating_sub(at)).unwrap_or(BUFFER_LEN);
                self.buffer.resize(BUFFER_LEN.min(left).max(count), 0);
                let read = self.file.read_at(&mut self.buffer, at)?;
                self.buffer.truncate(read);
                self.buffer_at = at;
                0
            }
        };
        Ok(self.buffer.get(start..start.saturating_add(count)))
    }
}
