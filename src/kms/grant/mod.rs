//! Grants of keys, as in AWS KMS: a right given to one user or group, beside the policy and bounded by it, since an
//! explicit Deny beats every grant.
//!
//! Invariants: a grant is in force only after the catalog has it, and out of force before its revocation returns; whom a
//! grant concerns is found without a walk over the key's grants; whoever makes a grant by a grant gives away nothing that
//! he does not have. A key of whose grants any does not verify uses no material until an administrator has let them go.

mod book;
mod manage;
mod record;
mod spec;
#[cfg(test)]
mod tests;

pub(super) use book::Grants;
pub use manage::GrantLines;
pub use record::Issued;
pub(super) use record::key_prefix;
pub use spec::GrantSpec;
