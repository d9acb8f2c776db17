//! Malformed input for every parser: of policies, principals, commands and options; of each file of a store, as bytes
//! and, sealed anew, as what stands within the seals; of what the kernel writes in /proc.
//!
//! Each target starts from the files in tests/corpus/TARGET, changes them at random and holds the parser to three
//! promises: it does not panic; it takes no memory by a length that the input states (at most 64 times the input and
//! 1 MiB at a time); it ends in time. The changes depend on a seed alone, so that a seed repeats a run.
//!
//! - `KMSFS_FUZZ_SECONDS`: how long each target runs, 2 unless set.
//! - `KMSFS_SEED`: another seed.
//! - `KMSFS_FUZZ_WRITE=1`: writes those valid files of the corpus that are missing. They stay as they are otherwise: a
//!   version that does not read them any more has changed the format.
//!
//! A failure prints its input in hexadecimal. Once mended, the input is kept: `xxd -r -p > tests/corpus/TARGET/NAME`.

#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic, and then says so")]

mod alloc;
mod bytes;
mod control;
mod engine;
mod items;
mod json;
mod mutate;
mod sealing;
mod store;
mod text;
mod trail;
