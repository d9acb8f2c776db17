//! kmsfs: encrypted tables as folders of item files, decrypted only for the key users of a key policy.
//!
//! The layers, lowest first; a module imports only lower levels and its own children (`tests/layering.rs`).

pub mod sys;
pub mod types;

pub mod crypto;
pub mod policy;
pub mod store;

pub mod audit;

pub mod kms;

pub mod envelope;

pub mod table;

pub mod fs;

pub mod fuse;

pub mod mount;

pub mod cli;
