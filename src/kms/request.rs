//! What is asked of a key through one descriptor: a line of JSON, then bytes (docs/semantics.md, section 13). The member
//! names are AWS's; what is not known is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Key, Kms, KmsError, Subject};
use crate::types::EncryptionContext;

/// Bytes that the line of a request may have: a context of 8,192 bytes, each escaped or not.
pub const REQUEST_LINE_MOST: usize = 16 << 10;
/// Bytes of a data key, unless another number is asked for.
const DATA_KEY_BYTES: usize = 32;

/// The line of Encrypt and Decrypt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "PascalCase")]
pub struct ContextRequest {
    pub encryption_context: BTreeMap<String, String>,
}

/// The line of ReEncrypt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "PascalCase")]
pub struct ReEncryptRequest {
    pub source_encryption_context: BTreeMap<String, String>,
    pub destination_encryption_context: BTreeMap<String, String>,
}

/// The line of GenerateDataKey.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "PascalCase")]
pub struct DataKeyRequest {
    pub encryption_context: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number_of_bytes: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub without_plaintext: bool,
}

/// The direct calls, each with the key that is named with it.
#[derive(Debug, Clone)]
pub enum DirectRequest {
    Encrypt(Arc<Key>),
    /// With a key: what was sealed under any other is refused.
    Decrypt(Option<Arc<Key>>),
    /// To this key.
    ReEncrypt(Arc<Key>),
    GenerateDataKey(Arc<Key>),
}

impl Kms {
    /// Runs a direct call as it was written; gives what is to be read.
    ///
    /// # Errors
    /// `Invalid` for a line that is no request; else what the call says.
    pub fn run_direct(
        &self,
        who: &Subject<'_>,
        request: &DirectRequest,
        written: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        let (line, data) = line_and_data(written);
        match request {
            DirectRequest::Encrypt(key) => {
                let asked: ContextRequest = parse_line(line)?;
                let context = EncryptionContext::new(asked.encryption_context);
                Ok(self.encrypt(who, key, &context, data)?.into())
            }
            DirectRequest::Decrypt(only) => {
                let asked: ContextRequest = parse_line(line)?;
                let context = EncryptionContext::new(asked.encryption_context);
                self.decrypt_ciphertext(who, only.as_ref(), &context, data)
            }
            DirectRequest::ReEncrypt(to) => {
                let asked: ReEncryptRequest = parse_line(line)?;
                let from_context = EncryptionContext::new(asked.source_encryption_context);
                let to_context = EncryptionContext::new(asked.destination_encryption_context);
                Ok(self.re_encrypt(who, &from_context, data, to, &to_context)?.into())
            }
            DirectRequest::GenerateDataKey(key) => {
                let asked: DataKeyRequest = parse_line(line)?;
                if !data.is_empty() {
                    return Err(KmsError::Invalid("GenerateDataKey takes no bytes behind its line".to_owned()));
                }
                self.data_key_document(who, key, asked)
            }
        }
    }

    /// AWS's answer to GenerateDataKey, in base 64.
    fn data_key_document(
        &self,
        who: &Subject<'_>,
        key: &Arc<Key>,
        asked: DataKeyRequest,
    ) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        let context = EncryptionContext::new(asked.encryption_context);
        let bytes = asked.number_of_bytes.map_or(Ok(DATA_KEY_BYTES), usize::try_from);
        let bytes = bytes.map_err(|_| KmsError::Invalid("a data key is not so long".to_owned()))?;
        let made = self.generate_data_key(who, key, &context, bytes, !asked.without_plaintext)?;
        // Put together by hand, in one buffer: serde_json would leave copies of the key behind.
        let mut text = Zeroizing::new(Vec::with_capacity(8192));
        text.extend_from_slice(format!("{{\"KeyId\": \"{}\", ", key.id()).as_bytes());
        if let Some(plaintext) = &made.plaintext {
            text.extend_from_slice(b"\"Plaintext\": \"");
            base64_into(&mut text, plaintext);
            text.extend_from_slice(b"\", ");
        }
        text.extend_from_slice(b"\"CiphertextBlob\": \"");
        base64_into(&mut text, &made.ciphertext);
        text.extend_from_slice(b"\"}\n");
        Ok(text)
    }
}

/// The first line, without its end, and what stands behind it. Without a line feed all of it is the line.
pub fn line_and_data(written: &[u8]) -> (&[u8], &[u8]) {
    match written.iter().position(|byte| *byte == b'\n').and_then(|end| written.split_at_checked(end)) {
        Some((line, rest)) => (line, rest.split_first().map_or(&[], |(_, rest)| rest)),
        None => (written, &[]),
    }
}

/// A request's line; a blank one asks for nothing in particular.
pub fn parse_line<T: DeserializeOwned + Default>(line: &[u8]) -> Result<T, KmsError> {
    if line.len() > REQUEST_LINE_MOST {
        return Err(KmsError::Invalid(format!("the line of a request has at most {REQUEST_LINE_MOST} bytes")));
    }
    if line.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    // A list of values would pass for an object otherwise.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err(KmsError::Invalid("the line of the request is no JSON object".to_owned()));
    }
    serde_json::from_slice(line).map_err(|error| KmsError::Invalid(format!("the line of the request: {error}")))
}

/// Base 64 with padding (RFC 4648, section 4), appended.
pub fn base64_into(text: &mut Vec<u8>, bytes: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let digit = usize::try_from(word >> shift & 63).unwrap_or_default();
            let character = ALPHABET.get(digit).copied().filter(|_| place <= chunk.len());
            text.push(character.unwrap_or(b'='));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, wanted) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foobar", "Zm9vYmFy"),
            (b"\xff\xfe\xfd", "//79"),
        ] {
            let mut text = Vec::new();
            base64_into(&mut text, bytes);
            assert_eq!(text, wanted.as_bytes());
        }
    }

    #[test]
    fn a_line_is_read_strictly() {
        let parse = |line: &[u8]| parse_line::<DataKeyRequest>(line);
        assert_eq!(parse(b" ").unwrap(), DataKeyRequest::default());
        let asked = parse(br#"{"EncryptionContext": {"a": "b"}, "WithoutPlaintext": true}"#).unwrap();
        assert!(asked.without_plaintext && asked.encryption_context["a"] == "b");
        for bad in [
            &b"{"[..],
            b"[]",
            b"{\"encryptionContext\": {}}",
            b"{\"EncryptionContext\": {\"a\": 1}}",
            b"{\"EncryptionContext\": {}} x",
            b"{\"EncryptionContext\": {}, \"EncryptionContext\": {}}",
            b"{\"NumberOfBytes\": -1}",
            b"\xff",
            &vec![b' '; REQUEST_LINE_MOST + 1],
        ] {
            assert!(matches!(parse(bad), Err(KmsError::Invalid(_))), "{}", bad.escape_ascii());
        }
        assert_eq!(line_and_data(b"{}\n\nx"), (&b"{}"[..], &b"\nx"[..]));
        assert_eq!(line_and_data(b"{}"), (&b"{}"[..], &b""[..]));
        assert_eq!(line_and_data(b"\n"), (&b""[..], &b""[..]));
    }
}
