//! `kmsfs encrypt`, `decrypt`, `re-encrypt` and `generate-data-key`, on a mount.
//!
//! Up to 4,096 bytes go to the daemon and are sealed there. More are sealed here, as a stream under a data key that the
//! daemon gives. What is printed has verified: where the input is a file all of it before the first byte, else up to
//! [`SPOOL_MOST`] bytes before the first and each segment before itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::args::{DataKeyArgs, DecryptArgs, EncryptArgs, ReEncryptArgs};
use super::control::{Control, Object};
use super::exit::CliError;
use super::output::Output;
use super::stream::{HEADER_LEN, Header, Segments, StreamError};
use crate::crypto::Key256;
use crate::kms::{
    CIPHERTEXT_MAGIC, CIPHERTEXT_MOST, Ciphertext, ContextRequest, DataKeyRequest, PLAINTEXT_MOST, ReEncryptRequest,
    base64_into,
};
use crate::policy::base64;

/// Plaintext of a stream from a pipe that is held back until the stream has ended, in bytes.
const SPOOL_MOST: usize = 16 << 20;

/// `kmsfs encrypt`.
pub(super) fn encrypt(control: &Control, args: &EncryptArgs, output: &mut Output<'_>) -> Result<(), CliError> {
    refuse_terminal(output)?;
    let mut input = Input::open(args.file.as_deref())?;
    let context = pairs(&args.context)?;
    let start = input.up_to(PLAINTEXT_MOST + 1)?;
    let key = Object::Key(&args.key);
    if start.len() <= PLAINTEXT_MOST {
        let asked = line(&ContextRequest { encryption_context: context })?;
        let sealed = control.exchange(key, "encrypt", &asked, &start)?;
        return print_sealed(&sealed, output);
    }
    if output.json() {
        return Err(CliError::usage("what has more than 4,096 bytes becomes a stream, which is no JSON"));
    }
    let asked = line(&DataKeyRequest { encryption_context: context, ..DataKeyRequest::default() })?;
    let made = DataKey::parse(&control.exchange(key, "generate-data-key", &asked, &[])?)?;
    let (header, segments) = Header::new(&made.plaintext()?, &made.ciphertext()?).map_err(|e| input.told(e))?;
    let mut printer = Printer(output);
    let written = printer.write_all(&header.to_bytes()).map_err(StreamError::Write);
    let mut whole = start.as_slice().chain(&mut input.file);
    ended(written.and_then(|()| segments.seal(&mut whole, &mut printer)), &input)
}

/// `kmsfs decrypt`.
pub(super) fn decrypt(control: &Control, args: &DecryptArgs, output: &mut Output<'_>) -> Result<(), CliError> {
    let mut input = Input::open(args.file.as_deref())?;
    let asked = line(&ContextRequest { encryption_context: pairs(&args.context)? })?;
    let object = args.key.as_deref().map_or(Object::Store, Object::Key);
    let open = |sealed: &[u8]| control.exchange(object, "decrypt", &asked, sealed);
    match input.sealed()? {
        Sealed::Ciphertext(sealed) => {
            let text = open(&sealed)?;
            if output.json() {
                let mut plain = Zeroizing::new(Vec::with_capacity(text.len() * 2 + 4));
                base64_into(&mut plain, &text);
                return output
                    .document(&json!({ "KeyId": key_id(&sealed), "Plaintext": String::from_utf8_lossy(&plain) }));
            }
            output.bytes(&text)
        }
        Sealed::Stream(header) => {
            if output.json() {
                return Err(CliError::usage("a stream is not printed as JSON"));
            }
            let data_key = Key256::from_slice(&open(header.sealed_key())?);
            let data_key = data_key.ok_or_else(|| input.told(StreamError::WrongKey))?;
            let segments = header.unlock(&data_key).map_err(|error| input.told(error))?;
            let opened = open_stream(&segments, &mut input, output);
            ended(opened, &input)
        }
    }
}

/// `kmsfs re-encrypt`.
pub(super) fn re_encrypt(control: &Control, args: &ReEncryptArgs, output: &mut Output<'_>) -> Result<(), CliError> {
    refuse_terminal(output)?;
    let mut input = Input::open(args.file.as_deref())?;
    let asked = line(&ReEncryptRequest {
        source_encryption_context: pairs(&args.context)?,
        destination_encryption_context: pairs(&args.to_context)?,
    })?;
    let again = |sealed: &[u8]| control.exchange(Object::Key(&args.to), "re-encrypt", &asked, sealed);
    match input.sealed()? {
        Sealed::Ciphertext(sealed) => print_sealed(&again(&sealed)?, output),
        Sealed::Stream(header) => {
            let sealed = again(header.sealed_key())?;
            let header = header.with_sealed_key(&sealed).map_err(|error| input.told(error))?;
            let mut printer = Printer(output);
            let written = printer.write_all(&header.to_bytes()).map_err(StreamError::Write);
            let copied = written.and_then(|()| copy(&mut input.file, &mut printer));
            ended(copied, &input)
        }
    }
}

/// `kmsfs generate-data-key`.
pub(super) fn generate_data_key(
    control: &Control,
    args: &DataKeyArgs,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let asked = line(&DataKeyRequest {
        encryption_context: pairs(&args.context)?,
        number_of_bytes: args.bytes,
        without_plaintext: args.without_plaintext,
    })?;
    let answer = control.exchange(Object::Key(&args.key), "generate-data-key", &asked, &[])?;
    let value: Value = serde_json::from_slice(&answer)
        .map_err(|source| CliError::Malformed { path: "generate-data-key".into(), source })?;
    output.object(&value)
}

/// Opens a stream, and prints of it what has verified.
fn open_stream(segments: &Segments, input: &mut Input, output: &mut Output<'_>) -> Result<(), StreamError> {
    let mut printer = Printer(output);
    let begin = input.begin.filter(|_| input.is_file);
    if let Some(begin) = begin {
        segments.open(&mut input.file, |_| Ok(()))?;
        let body = begin.saturating_add(u64::try_from(HEADER_LEN).unwrap_or(u64::MAX));
        input.file.seek(SeekFrom::Start(body)).map_err(StreamError::Read)?;
        // Each segment once more: a file may be changed between two readings.
        return segments.open(&mut input.file, |text| printer.write_all(text).map_err(StreamError::Write));
    }
    let mut spool = Zeroizing::new(Vec::new());
    let mut spooling = true;
    segments.open(&mut input.file, |text| {
        if spooling && spool.len() + text.len() <= SPOOL_MOST {
            if spool.capacity() == 0 {
                *spool = Vec::with_capacity(SPOOL_MOST);
            }
            spool.extend_from_slice(text);
            return Ok(());
        }
        if std::mem::replace(&mut spooling, false) {
            printer.write_all(&spool).map_err(StreamError::Write)?;
            spool = Zeroizing::default();
        }
        printer.write_all(text).map_err(StreamError::Write)
    })?;
    printer.write_all(&spool).map_err(StreamError::Write)
}

fn copy(from: &mut File, to: &mut Printer<'_, '_>) -> Result<(), StreamError> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StreamError::Read(error)),
        };
        to.write_all(buffer.get(..count).unwrap_or_default()).map_err(StreamError::Write)?;
    }
}

/// What a stream came to. That nobody reads any more is no failure.
fn ended(result: Result<(), StreamError>, input: &Input) -> Result<(), CliError> {
    match result {
        Err(StreamError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(input.told(error)),
        Ok(()) => Ok(()),
    }
}

/// Where the bytes come from.
struct Input {
    file: File,
    name: String,
    is_file: bool,
    /// Where it was when it was opened; none where that cannot be said.
    begin: Option<u64>,
}

/// What an input begins as.
enum Sealed {
    Ciphertext(Vec<u8>),
    Stream(Header),
}

impl Input {
    /// A file, or standard input for none and for `-`.
    fn open(path: Option<&Path>) -> Result<Self, CliError> {
        let (opened, name) = match path.filter(|path| *path != Path::new("-")) {
            Some(path) => (File::open(path), path.display().to_string()),
            // Not through the standard library's buffer, which would read ahead.
            None => (io::stdin().as_fd().try_clone_to_owned().map(File::from), "standard input".to_owned()),
        };
        let mut file = opened.map_err(|error| CliError::io("read", &name, error))?;
        let is_file = file.metadata().is_ok_and(|stat| stat.is_file());
        let begin = file.stream_position().ok();
        Ok(Self { file, name, is_file, begin })
    }

    fn up_to(&mut self, most: usize) -> Result<Zeroizing<Vec<u8>>, CliError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(most));
        let limit = u64::try_from(most).unwrap_or(u64::MAX);
        let read = (&mut self.file).take(limit).read_to_end(&mut bytes);
        read.map_err(|error| CliError::io("read", &self.name, error))?;
        Ok(bytes)
    }

    fn sealed(&mut self) -> Result<Sealed, CliError> {
        let start = self.up_to(CIPHERTEXT_MAGIC.len())?;
        if start.as_slice() != CIPHERTEXT_MAGIC {
            let mut whole = start.as_slice().chain(&mut self.file);
            let header = Header::read(&mut whole);
            return header.map(Sealed::Stream).map_err(|error| self.told(error));
        }
        let rest = self.up_to(CIPHERTEXT_MOST)?;
        let sealed = [&start[..], &rest].concat();
        // Said here what the daemon would say, so that it need not hear of it.
        Ciphertext::parse(&sealed).map_err(|why| self.told(StreamError::Malformed(why)))?;
        Ok(Sealed::Ciphertext(sealed))
    }

    fn told(&self, error: StreamError) -> CliError {
        match error {
            StreamError::Read(source) => CliError::io("read", &self.name, source),
            StreamError::Write(source) => CliError::io("write to", "standard output", source),
            error @ (StreamError::Malformed(_)
            | StreamError::WrongKey
            | StreamError::Damaged(_)
            | StreamError::CutShort(_)
            | StreamError::Crypto(_)) => CliError::Integrity { finding: format!("{}: {error}", self.name) },
        }
    }
}

/// The daemon's answer to GenerateDataKey.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DataKey {
    plaintext: String,
    ciphertext_blob: String,
}

impl Drop for DataKey {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.plaintext);
    }
}

impl DataKey {
    fn parse(answer: &[u8]) -> Result<Self, CliError> {
        serde_json::from_slice(answer)
            .map_err(|source| CliError::Malformed { path: "generate-data-key".into(), source })
    }

    fn plaintext(&self) -> Result<Key256, CliError> {
        let bytes = base64(&self.plaintext).map(Zeroizing::new);
        bytes.and_then(|bytes| Key256::from_slice(&bytes)).ok_or_else(Self::odd)
    }

    fn ciphertext(&self) -> Result<Vec<u8>, CliError> {
        base64(&self.ciphertext_blob).ok_or_else(Self::odd)
    }

    fn odd() -> CliError {
        CliError::Integrity { finding: "the daemon's data key is none of 32 bytes".to_owned() }
    }
}

/// Standard output, as it is; unlike [`Output::bytes`] it says when nobody reads.
struct Printer<'a, 'o>(&'a mut Output<'o>);

impl Write for Printer<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_raw(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn print_sealed(sealed: &[u8], output: &mut Output<'_>) -> Result<(), CliError> {
    if !output.json() {
        return output.bytes(sealed);
    }
    let mut text = Vec::new();
    base64_into(&mut text, sealed);
    output.document(&json!({ "KeyId": key_id(sealed), "CiphertextBlob": String::from_utf8_lossy(&text) }))
}

fn key_id(sealed: &[u8]) -> Option<String> {
    Ciphertext::parse(sealed).ok().map(|sealed| sealed.key.to_string())
}

/// Bytes that nobody can read do not belong on a terminal.
fn refuse_terminal(output: &Output<'_>) -> Result<(), CliError> {
    if !output.json() && io::stdout().is_terminal() {
        return Err(CliError::usage("the result is no text: send it to a file or a pipe, or use --json"));
    }
    Ok(())
}

fn line<T: Serialize>(request: &T) -> Result<String, CliError> {
    serde_json::to_string(request).map_err(|source| CliError::Malformed { path: "the request".into(), source })
}

/// `NAME=VALUE`, each name once.
pub(super) fn pairs(words: &[(String, String)]) -> Result<BTreeMap<String, String>, CliError> {
    let mut pairs = BTreeMap::new();
    for (name, value) in words {
        if pairs.insert(name.clone(), value.clone()).is_some() {
            return Err(CliError::usage(format!("the context names {name:?} twice")));
        }
    }
    Ok(pairs)
}
