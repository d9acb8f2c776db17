//! Streams: bytes of any number, sealed in segments under a data key that a key of a store seals (docs/format.md,
//! section 11.2). A pure codec: where the data key comes from, and who may have it, is the daemon's to say.
//!
//! INVARIANT: of a segment nothing is given out before its tag has verified, and of a stream nothing at all before its
//! commitment has. It refuses to open a stream of which a segment is missing, doubled or in another place.

use std::fmt;
use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use crate::crypto::{Aad, AeadKey, CryptoError, Key256, NONCE_LEN, Prk, Secret, TAG_LEN, equal, random};
use crate::kms::{CIPHERTEXT_LEAST, Ciphertext};

/// Bytes of plaintext in each segment that is written.
pub const SEGMENT_SIZE: u32 = 64 << 10;
/// The largest segment that is read, so that no stream can ask for more memory.
const SEGMENT_SIZE_MOST: u32 = 1 << 20;
/// How a stream begins.
pub const STREAM_MAGIC: [u8; 8] = *b"KMSFSSTR";
const VERSION: u16 = 1;
const SUITE: u8 = 1;
const FIXED_LEN: usize = 32;
const DATA_KEY_LEN: usize = 32;
/// Bytes of the sealed data key.
pub const SEALED_KEY_LEN: usize = CIPHERTEXT_LEAST + DATA_KEY_LEN;
/// Bytes before the first segment.
pub const HEADER_LEN: usize = FIXED_LEN + 32 + 2 + SEALED_KEY_LEN;

/// Why a stream could not be written or read.
#[derive(Debug)]
pub enum StreamError {
    /// It is not what a stream is; with what it lacks.
    Malformed(&'static str),
    /// The data key is not the one that the stream was sealed under.
    WrongKey,
    /// A segment does not verify: its number.
    Damaged(u64),
    /// It ends before its end: after so many segments.
    CutShort(u64),
    Crypto(CryptoError),
    Read(io::Error),
    Write(io::Error),
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => f.write_str(why),
            Self::WrongKey => f.write_str("the stream was not sealed under the data key that is in it"),
            Self::Damaged(number) => {
                write!(f, "segment {number} of the stream does not verify: it is damaged or out of place")
            }
            Self::CutShort(number) => write!(f, "the stream is cut short after {number} segments"),
            Self::Crypto(error) => error.fmt(f),
            Self::Read(error) | Self::Write(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StreamError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Crypto(error) => Some(error),
            Self::Read(error) | Self::Write(error) => Some(error),
            Self::Malformed(_) | Self::WrongKey | Self::Damaged(_) | Self::CutShort(_) => None,
        }
    }
}

impl From<CryptoError> for StreamError {
    fn from(error: CryptoError) -> Self {
        Self::Crypto(error)
    }
}

/// What stands before the segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    segment_size: u32,
    fixed: [u8; FIXED_LEN],
    commitment: [u8; 32],
    sealed_key: Vec<u8>,
}

impl Header {
    /// The header of a new stream under a data key, and what seals its segments.
    pub fn new(data_key: &Key256, sealed_key: &[u8]) -> Result<(Self, Segments), StreamError> {
        if sealed_key.len() != SEALED_KEY_LEN {
            return Err(StreamError::Malformed("the sealed data key has another length than that of 32 bytes"));
        }
        let mut fixed = [0; FIXED_LEN];
        let salt: [u8; 16] = random()?;
        let fields: [&[u8]; 5] =
            [&STREAM_MAGIC, &VERSION.to_le_bytes(), &[SUITE, 0], &SEGMENT_SIZE.to_le_bytes(), &salt];
        for (byte, value) in fixed.iter_mut().zip(fields.into_iter().flatten()) {
            *byte = *value;
        }
        let (commitment, segments) = derive(data_key, &fixed, SEGMENT_SIZE)?;
        let commitment = *commitment.expose();
        Ok((Self { segment_size: SEGMENT_SIZE, fixed, commitment, sealed_key: sealed_key.to_vec() }, segments))
    }

    /// Reads a header from the start of a stream; nothing of it is authenticated yet.
    pub fn read(from: &mut impl Read) -> Result<Self, StreamError> {
        let mut bytes = [0; HEADER_LEN];
        if fill(from, &mut bytes)? != HEADER_LEN {
            return Err(StreamError::Malformed("the stream ends within its header"));
        }
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, StreamError> {
        let malformed = StreamError::Malformed;
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_LEN>().ok_or(malformed("too short"))?;
        let (commitment, rest) = rest.split_first_chunk::<32>().ok_or(malformed("too short"))?;
        let (length, sealed_key) = rest.split_first_chunk::<2>().ok_or(malformed("too short"))?;
        let (magic, rest) = fixed.split_first_chunk::<8>().ok_or(malformed("too short"))?;
        let (version, rest) = rest.split_first_chunk::<2>().ok_or(malformed("too short"))?;
        let (suite, rest) = rest.split_first_chunk::<2>().ok_or(malformed("too short"))?;
        let (segment_size, _) = rest.split_first_chunk::<4>().ok_or(malformed("too short"))?;
        if *magic != STREAM_MAGIC {
            return Err(malformed("it is no stream of kmsfs"));
        }
        if u16::from_le_bytes(*version) != VERSION {
            return Err(malformed("the stream was written by another format version, this is version 1"));
        }
        let segment_size = u32::from_le_bytes(*segment_size);
        if *suite != [SUITE, 0] || !(1..=SEGMENT_SIZE_MOST).contains(&segment_size) {
            return Err(malformed("the header of the stream is malformed"));
        }
        if usize::from(u16::from_le_bytes(*length)) != SEALED_KEY_LEN {
            return Err(malformed("the header of the stream is malformed"));
        }
        Ciphertext::parse(sealed_key).map_err(malformed)?;
        Ok(Self { segment_size, fixed: *fixed, commitment: *commitment, sealed_key: sealed_key.to_vec() })
    }

    /// The data key as the store's key sealed it.
    pub fn sealed_key(&self) -> &[u8] {
        &self.sealed_key
    }

    /// The same stream's header with the data key sealed anew.
    pub fn with_sealed_key(mut self, sealed_key: &[u8]) -> Result<Self, StreamError> {
        if sealed_key.len() != SEALED_KEY_LEN {
            return Err(StreamError::Malformed("the sealed data key has another length than that of 32 bytes"));
        }
        self.sealed_key = sealed_key.to_vec();
        Ok(self)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u16::try_from(self.sealed_key.len()).unwrap_or(u16::MAX).to_le_bytes();
        [&self.fixed[..], &self.commitment, &length, &self.sealed_key].concat()
    }

    /// What opens the segments.
    ///
    /// # Errors
    /// `WrongKey` for another data key than the stream's.
    pub fn unlock(&self, data_key: &Key256) -> Result<Segments, StreamError> {
        let (commitment, segments) = derive(data_key, &self.fixed, self.segment_size)?;
        if equal(commitment.expose(), &self.commitment) { Ok(segments) } else { Err(StreamError::WrongKey) }
    }
}

fn derive(
    data_key: &Key256,
    fixed: &[u8; FIXED_LEN],
    segment_size: u32,
) -> Result<(Secret<32>, Segments), StreamError> {
    let salt = fixed.split_last_chunk::<16>().map_or([0; 16], |(_, salt)| *salt);
    let prk = Prk::extract(&salt, data_key.expose());
    let info = |label: &[u8]| Aad::new("kmsfs v1 stream").bytes(label).bytes(fixed);
    let key = AeadKey::new(&prk.expand(&info(b"segments")))?;
    let size = usize::try_from(segment_size).map_err(|_| StreamError::Malformed("a segment is too long"))?;
    Ok((prk.expand(&info(b"commitment")), Segments { key, size }))
}

/// Seals and opens the segments of one stream.
#[derive(Debug)]
pub struct Segments {
    key: AeadKey,
    size: usize,
}

impl Segments {
    /// Seals all that `from` gives: `begun`, and then the rest.
    pub fn seal(&self, from: &mut impl Read, to: &mut impl Write) -> Result<(), StreamError> {
        let mut reader = Lookahead::new(from, self.size);
        let mut number = 0;
        loop {
            let (mut segment, last) = reader.next()?;
            let tag = self.key.seal(&nonce(number, last), &[], &mut segment)?;
            to.write_all(&segment).and_then(|()| to.write_all(&tag)).map_err(StreamError::Write)?;
            if last {
                return to.flush().map_err(StreamError::Write);
            }
            number += 1;
        }
    }

    /// Opens one segment after the other, and hands each on once it has verified.
    pub fn open(
        &self,
        from: &mut impl Read,
        mut take: impl FnMut(&[u8]) -> Result<(), StreamError>,
    ) -> Result<(), StreamError> {
        let mut reader = Lookahead::new(from, self.size + TAG_LEN);
        let mut number = 0;
        loop {
            let (mut segment, last) = reader.next()?;
            if segment.is_empty() && number == 0 {
                return Err(StreamError::CutShort(0));
            }
            take(self.open_one(&mut segment, number, last)?)?;
            if last {
                return Ok(());
            }
            number += 1;
        }
    }

    fn open_one<'a>(&self, segment: &'a mut [u8], number: u64, last: bool) -> Result<&'a [u8], StreamError> {
        let Some(length) = segment.len().checked_sub(TAG_LEN) else { return Err(StreamError::CutShort(number)) };
        // A stream ends in an empty segment only where there is no other.
        if length == 0 && number != 0 {
            return Err(StreamError::Damaged(number));
        }
        let whole = last && length == self.size;
        let before = whole.then(|| Zeroizing::new(segment.to_vec()));
        let (text, tag) = segment.split_last_chunk_mut::<TAG_LEN>().ok_or(StreamError::CutShort(number))?;
        if self.key.open(&nonce(number, last), &[], text, tag).is_ok() {
            return Ok(text);
        }
        // One that is whole and verifies as no last one tells that what followed it is gone.
        let cut = before.is_some_and(|mut copy| {
            let parts = copy.split_last_chunk_mut::<TAG_LEN>();
            parts.is_some_and(|(text, tag)| self.key.open(&nonce(number, false), &[], text, tag).is_ok())
        });
        Err(if cut { StreamError::CutShort(number.saturating_add(1)) } else { StreamError::Damaged(number) })
    }
}

fn nonce(number: u64, last: bool) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    let fields = number.to_le_bytes().into_iter().chain([u8::from(last)]);
    for (byte, value) in nonce.iter_mut().skip(3).zip(fields) {
        *byte = value;
    }
    nonce
}

/// Reads pieces of one size, and knows of each whether another follows.
struct Lookahead<'a, R> {
    from: &'a mut R,
    size: usize,
    next: Option<u8>,
    begun: bool,
}

impl<'a, R: Read> Lookahead<'a, R> {
    fn new(from: &'a mut R, size: usize) -> Self {
        Self { from, size, next: None, begun: false }
    }

    fn next(&mut self) -> Result<(Zeroizing<Vec<u8>>, bool), StreamError> {
        if !std::mem::replace(&mut self.begun, true) {
            self.next = self.byte()?;
        }
        let mut piece = Zeroizing::new(vec![0; self.size]);
        let Some(first) = self.next else {
            piece.truncate(0);
            return Ok((piece, true));
        };
        let length = match piece.split_first_mut() {
            Some((place, rest)) => {
                *place = first;
                1 + fill(self.from, rest)?
            }
            None => 0,
        };
        piece.truncate(length);
        self.next = if length == self.size { self.byte()? } else { None };
        Ok((piece, self.next.is_none()))
    }

    fn byte(&mut self) -> Result<Option<u8>, StreamError> {
        let mut byte = [0];
        Ok((fill(self.from, &mut byte)? == 1).then_some(byte[0]))
    }
}

/// Reads until the buffer is full or the input ends; gives how much it was.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, StreamError> {
    let mut have = 0;
    while let Some(rest) = buffer.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StreamError::Read(error)),
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = SEGMENT_SIZE as usize;

    fn key(byte: u8) -> Key256 {
        Key256::from_slice(&[byte; 32]).unwrap()
    }

    /// A sealed data key as far as a header looks at it.
    fn sealed_key() -> Vec<u8> {
        let mut sealed = [&b"KMSFSCPH"[..], &[1, 0, 0, 0]].concat();
        sealed.resize(SEALED_KEY_LEN, 7);
        sealed
    }

    fn sealed(text: &[u8]) -> Vec<u8> {
        let (header, segments) = Header::new(&key(1), &sealed_key()).unwrap();
        let mut stream = header.to_bytes();
        segments.seal(&mut &*text, &mut stream).unwrap();
        stream
    }

    fn open_with(key: &Key256, mut stream: &[u8]) -> (Vec<u8>, Result<(), StreamError>) {
        let mut text = Vec::new();
        let opened = Header::read(&mut stream).and_then(|header| header.unlock(key)).and_then(|segments| {
            segments.open(&mut stream, |segment| {
                text.extend_from_slice(segment);
                Ok(())
            })
        });
        (text, opened)
    }

    fn opened(stream: &[u8]) -> Result<Vec<u8>, StreamError> {
        let (text, opened) = open_with(&key(1), stream);
        opened.map(|()| text)
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[test]
    fn what_is_sealed_opens_whatever_its_length() {
        for length in [0, 1, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE, 3 * SIZE + 5] {
            let stream = sealed(&text(length));
            let segments = length.div_ceil(SIZE).max(1);
            assert_eq!(stream.len(), HEADER_LEN + length + segments * TAG_LEN, "{length}");
            assert_eq!(opened(&stream).unwrap(), text(length), "{length}");
        }
    }

    /// Reads that come byte by byte, as from a pipe.
    #[test]
    fn pieces_do_not_depend_on_how_reads_come() {
        struct Slowly<'a>(&'a [u8]);
        impl Read for Slowly<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = buffer.len().min(1000);
                self.0.read(&mut buffer[..count])
            }
        }
        let text = text(2 * SIZE + 9);
        let (header, segments) = Header::new(&key(1), &sealed_key()).unwrap();
        let mut stream = header.to_bytes();
        segments.seal(&mut Slowly(&text), &mut stream).unwrap();
        let mut slow = Slowly(&stream);
        let segments = Header::read(&mut slow).unwrap().unlock(&key(1)).unwrap();
        let mut out = Vec::new();
        let take = |segment: &[u8]| {
            out.extend_from_slice(segment);
            Ok(())
        };
        segments.open(&mut slow, take).unwrap();
        assert!(out == text);
    }

    #[test]
    fn another_data_key_opens_nothing() {
        let (text, result) = open_with(&key(2), &sealed(&text(10)));
        assert!(text.is_empty() && matches!(result, Err(StreamError::WrongKey)));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let stream = sealed(b"a few words");
        // The sealed data key answers for itself.
        let own = (0..stream.len()).filter(|at| !(66..HEADER_LEN).contains(at));
        for at in own.flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut damaged = stream.clone();
            damaged[at.0] ^= 1 << at.1;
            assert!(opened(&damaged).is_err(), "{at:?}");
        }
    }

    #[test]
    fn a_cut_anywhere_is_found() {
        let stream = sealed(&text(2 * SIZE + 100));
        let end = |segments: usize| HEADER_LEN + segments * (SIZE + TAG_LEN);
        for (length, cut) in [(end(0), 0), (end(0) + 5, 0), (end(1), 1), (end(2), 2), (end(1) + 3, 1)] {
            let result = opened(&stream[..length]);
            assert!(matches!(result, Err(StreamError::CutShort(at)) if at == cut), "{length}: {result:?}");
        }
        for length in [end(0) + 100, end(2) + 60, stream.len() - 1] {
            assert!(matches!(opened(&stream[..length]), Err(StreamError::Damaged(_))), "{length}");
        }
        assert!(matches!(opened(&stream[..HEADER_LEN - 1]), Err(StreamError::Malformed(_))));
        let longer = [&stream[..], b"x"].concat();
        assert!(opened(&longer).is_err());
    }

    #[test]
    fn segments_have_their_places() {
        let stream = sealed(&text(4 * SIZE));
        let header = &stream[..HEADER_LEN];
        let parts: Vec<&[u8]> = stream[HEADER_LEN..].chunks(SIZE + TAG_LEN).collect();
        let joined = |order: &[usize]| {
            let body: Vec<&[u8]> = order.iter().map(|at| parts[*at]).collect();
            [header, &body.concat()].concat()
        };
        assert!(opened(&joined(&[0, 1, 2, 3])).is_ok());
        for order in
            [&[1, 0, 2, 3][..], &[0, 2, 1, 3], &[0, 1, 3], &[0, 0, 1, 2, 3], &[0, 1, 2, 3, 3], &[3], &[0, 1, 2]]
        {
            let stream = joined(order);
            let (out, result) = open_with(&key(1), &stream);
            assert!(result.is_err(), "{order:?}");
            assert!(out.len() <= 3 * SIZE && text(4 * SIZE).starts_with(&out), "{order:?}");
        }
        // Those of another stream under the same data key.
        let other = sealed(&text(4 * SIZE));
        let mixed = [header, &other[HEADER_LEN..]].concat();
        assert!(matches!(opened(&mixed), Err(StreamError::Damaged(0))));
    }

    #[test]
    fn an_empty_end_is_none() {
        let (header, segments) = Header::new(&key(1), &sealed_key()).unwrap();
        let mut stream = header.to_bytes();
        let mut first = text(SIZE);
        let tag = segments.key.seal(&nonce(0, false), &[], &mut first).unwrap();
        stream.extend_from_slice(&first);
        stream.extend_from_slice(&tag);
        stream.extend_from_slice(&segments.key.seal(&nonce(1, true), &[], &mut []).unwrap());
        assert!(matches!(opened(&stream), Err(StreamError::Damaged(1))));
    }

    #[test]
    fn the_data_key_is_sealed_anew_and_the_rest_stays() {
        let stream = sealed(&text(SIZE + 1));
        let mut again = sealed_key();
        again[100] ^= 1;
        let header = Header::read(&mut &*stream).unwrap().with_sealed_key(&again).unwrap();
        let moved = [&header.to_bytes()[..], &stream[HEADER_LEN..]].concat();
        assert_eq!(moved.iter().zip(&stream).filter(|(a, b)| a != b).count(), 1);
        assert!(opened(&moved).unwrap() == text(SIZE + 1));
        assert!(header.with_sealed_key(&again[1..]).is_err());
    }

    #[test]
    fn a_header_asks_for_no_more_memory_than_a_segment() {
        let stream = sealed(b"x");
        for (size, taken) in [(0_u32, false), (1, true), (SEGMENT_SIZE_MOST, true), (SEGMENT_SIZE_MOST + 1, false)] {
            let mut other = stream.clone();
            other[12..16].copy_from_slice(&size.to_le_bytes());
            assert_eq!(Header::read(&mut &*other).is_ok(), taken, "{size}");
        }
    }
}
