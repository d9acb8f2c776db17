//! The transport on real mounts: a small file system in memory behind it. Needs root and /dev/fuse.
//!
//! A mount that hangs is aborted after [`mounted::BOUND`], so that the test fails instead of hanging; no other time is
//! measured.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "a test fails by panicking, and its helpers with it"
)]

mod child;
mod ending;
mod memory;
mod mounted;
mod operations;
mod revocation;
mod threads;
