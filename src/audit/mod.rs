//! Level 2: the audit trail: sealed, chained segments of JSON events (docs/format.md, section 9).
//!
//! What an append has returned for is in the segment's file, so it survives a kill of the process; `sync` makes it
//! survive a power cut. Only a head that `sync` has made durable is given out for anchoring: an anchor must never
//! promise what a power cut may take back. A reader is told of everything that does not verify: nothing is skipped
//! silently, and what stands before and after a fault is still read.

mod error;
mod event;
mod flood;
mod segment;
#[cfg(test)]
mod tests;
mod trail;
mod verify;

pub use error::AuditError;
pub use event::{Event, OpenedItem, Resource, UserIdentity, format_time};
pub use trail::{Trail, TrailFound};
pub use verify::{Events, Fault, FaultKind, Position, Recorded, Report, TrailReader};
