//! What leaves a store and comes back: ciphertexts and streams, as anybody may have changed them.

use kmsfs::cli::stream::{HEADER_LEN, Header, StreamError};
use kmsfs::kms::{CIPHERTEXT_LEAST, CIPHERTEXT_MOST, Ciphertext};

use super::engine::{Target, Verdict, run};
use super::sealing;

#[test]
fn ciphertexts() {
    let words: &[&[u8]] = &[b"KMSFSCPH", &[1, 0, 0, 0], sealing::STORE.as_bytes(), sealing::KEY.as_bytes()];
    let target = Target { name: "ciphertext", longest: 5000, words, json: false };
    let valid = || {
        [("valid-empty", &b""[..]), ("valid-words", b"a few words"), ("valid-key", &[7; 32])]
            .map(|(name, text)| (name, sealing::ciphertext(text)))
            .into()
    };
    run(&target, valid, |input| match Ciphertext::parse(input) {
        Ok(parsed) => {
            assert!((CIPHERTEXT_LEAST..=CIPHERTEXT_MOST).contains(&input.len()));
            assert_eq!(parsed.store.as_bytes(), &input[12..28]);
            assert_eq!(parsed.key.as_bytes(), &input[28..44]);
            Verdict::Accepted
        }
        Err(why) => Verdict::Refused(why.to_owned()),
    });
}

/// Whatever is opened is a beginning of what was sealed, in whole segments, and with success all of it.
#[test]
fn streams() {
    const SEGMENT: u32 = 16;
    let text: Vec<u8> = (0..100).collect();
    let sealed = [
        ("valid-empty-end", sealing::stream(&text[..96], SEGMENT)),
        ("valid-one", sealing::stream(&text[..5], SEGMENT)),
        ("valid-seven", sealing::stream(&text, SEGMENT)),
    ];
    let part = usize::try_from(SEGMENT).unwrap() + 16;
    let mut words: Vec<&[u8]> = vec![b"KMSFSSTR", b"KMSFSCPH", &[16, 0, 0, 0], &[0, 0, 16, 0], &[1, 0, 16, 0]];
    words.extend(sealed[2].1[HEADER_LEN..].chunks(part));
    words.push(&sealed[1].1[..HEADER_LEN]);
    let target = Target { name: "stream", longest: 2000, words: &words, json: false };
    run(
        &target,
        || sealed.clone().into(),
        |input| {
            let mut from = input;
            let mut opened = Vec::new();
            let done =
                Header::read(&mut from).and_then(|header| header.unlock(&sealing::table_key())).and_then(|segments| {
                    segments.open(&mut from, |segment| {
                        opened.extend_from_slice(segment);
                        Ok(())
                    })
                });
            assert!(text.starts_with(&opened));
            match done {
                Ok(()) => {
                    assert!([5, 96, 100].contains(&opened.len()), "{}", opened.len());
                    Verdict::Accepted
                }
                Err(error) => {
                    assert!(opened.len() < 100 && opened.len().is_multiple_of(16), "{}", opened.len());
                    assert!(!matches!(error, StreamError::Read(_) | StreamError::Write(_)));
                    Verdict::Refused(error.to_string())
                }
            }
        },
    );
}
