//! The time that decides about expiry and date conditions: it never goes back.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The host's clock, with the latest time that was seen as a floor: a clock that is set back while the daemon runs
/// revives nothing that has expired.
#[derive(Debug, Default)]
pub(super) struct Clock {
    floor: AtomicI64,
}

impl Clock {
    /// Seconds since 1970 UTC, never less than what an earlier call gave.
    pub(super) fn now(&self) -> i64 {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        self.floor.fetch_max(seconds, Ordering::Relaxed).max(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_set_back_stands_still() {
        let clock = Clock { floor: AtomicI64::new(i64::MAX - 1) };
        assert_eq!(clock.now(), i64::MAX - 1);
    }
}
