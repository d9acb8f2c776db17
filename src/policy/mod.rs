//! Level 1: the policy engine, a pure function from documents and a request to a decision.
//!
//! A document is that of an AWS key policy. It is parsed strictly, every fault told with line and column
//! ([`Policy::parse`]); a save binds its names to ids ([`Policy::names`], [`Bindings`]); [`evaluate`] compares ids.
//!
//! Invariants: an explicit Deny wins over everything; what cannot be known never allows and always denies; the order
//! told outward is policy first, then the key's state, so that who is denied learns nothing of the key.
//!
//! It reads no file, no clock and no user database, refuses what it does not know rather than ignoring it, and
//! executes nothing: no regular expressions, no recursion deeper than a document's 32 levels.
//!
//! Where it goes beyond AWS, or less far:
//! - a statement without `Resource` is refused (AWS KMS lets it have no effect); a `Sid` is unique;
//! - a plain operator on a key of several values holds where one of them matches, its negation where none does;
//! - a value of the request that is not of the operator's type, an unknown user name, unknown groups, and
//!   `kms:CallerAccount`, of which there is none, make a condition hold in a Deny and fail in an Allow;
//! - the account in a Deny is everyone; in `NotPrincipal` it exempts nobody.

mod actions;
mod build;
mod condition;
mod decide;
mod document;
mod edit;
mod error;
#[cfg(test)]
mod examples;
mod glob;
mod json;
mod literal;
mod principal;
mod truth;

pub use build::{ADMINISTRATORS_SID, USERS_SID, default_key_policy, default_store_policy, managed_policy};
pub use decide::{
    Decision, Document, Grant, Grantee, Missing, Reason, Request, Scene, StatementRef, Verdict, evaluate, is_grantable,
    of_state, would_lock_out,
};
pub use document::{MAX_POLICY_LEN, NameKind, NameUse, Policy, Progress, progress};
pub use edit::{EditError, add_user, remove_user};
pub use error::{PolicyError, PolicyFault};
pub use literal::{base64, format_seconds, parse_time};
pub use principal::{Bindings, PForm, PFormError};
