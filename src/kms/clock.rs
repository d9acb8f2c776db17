//! The time that decides: about expiry and date conditions, about rotations, and about how long a deletion has waited.
//!
//! The host's clock is not trusted alone, since whoever sets it back would revive what has expired, and whoever sets it
//! ahead would destroy keys. So the store keeps a mark (docs/format.md, section 5.4) and two times follow from it:
//!
//! - `now`, the clock or the floor, whichever is later. The floor goes with the time since boot, which nobody sets, and
//!   follows the clock where that is ahead: by what has passed, and by at most a day a jump, so that a clock that was
//!   once far ahead does not close things for ever.
//! - `observed`, which only counts what passed between two observations, and of each such gap a day at most: a store
//!   that lay in a drawer for a month has been there for a day to whoever could have cancelled a deletion.
//!
//! It refuses to go back, but for an administrator's word (`reset`).

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::store::ClockMark;
use crate::sys;

/// Names a file that holds by how many seconds a test's clock is ahead of the host's; only for stores made for tests.
pub(super) const TEST_VARIABLE: &str = "KMSFS_TEST_CLOCK";
/// What one jump of the clock, or one gap between observations, counts for at most: a day, in milliseconds.
const JUMP_MOST: i64 = 24 * 3600 * 1000;

#[derive(Debug)]
pub(super) struct Clock {
    source: Source,
    /// The floor less the time since boot, in milliseconds.
    ahead: AtomicI64,
    /// The second that the clock said at the last observation.
    seen: AtomicI64,
    mark: Mutex<ClockMark>,
}

/// Where time comes from.
#[derive(Debug)]
struct Source {
    /// Empty where the host does not tell: then nothing is known of what passed before.
    boot: String,
    test_file: Option<PathBuf>,
    /// The offset that was last read from it, in seconds.
    test_offset: AtomicI64,
}

/// Both clocks at one moment, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Reading {
    /// Since 1970, as the host says.
    wall: i64,
    /// Since boot, suspended time included.
    since_boot: i64,
}

impl Source {
    fn read(&self) -> Reading {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| millis(since.as_millis()));
        let wall = wall.saturating_add(self.offset().saturating_mul(1000));
        Reading { wall, since_boot: millis(sys::boot_time().as_millis()) }
    }

    /// A file that is being replaced says what it said before.
    fn offset(&self) -> i64 {
        let Some(file) = &self.test_file else { return 0 };
        let found = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
        if let Some(seconds) = found {
            self.test_offset.store(seconds, Ordering::Relaxed);
        }
        self.test_offset.load(Ordering::Relaxed)
    }
}

impl Clock {
    /// Goes on from the store's mark, if it has one. With a test's file, its offset is added to the host's clock.
    pub(super) fn new(mark: Option<ClockMark>, test_file: Option<PathBuf>) -> Self {
        let boot = sys::boot_id().map_or_else(|_| String::new(), |id| id.to_string_lossy().into_owned());
        let source = Source { boot, test_file, test_offset: AtomicI64::new(0) };
        let mark = mark.unwrap_or_else(|| first(source.read(), &source.boot));
        let clock = Self { source, ahead: AtomicI64::new(0), seen: AtomicI64::new(i64::MIN), mark: Mutex::new(mark) };
        clock.observe();
        clock
    }

    /// Seconds since 1970 UTC: the clock's, or the floor's if that is later.
    pub(super) fn now(&self) -> i64 {
        let read = self.source.read();
        if read.wall.div_euclid(1000) > self.seen.load(Ordering::Relaxed) {
            self.observe();
        }
        self.later(read).div_euclid(1000)
    }

    /// What the host's clock says alone, in seconds since 1970.
    pub(super) fn wall(&self) -> i64 {
        self.source.read().wall.div_euclid(1000)
    }

    /// Seconds that were observed, and those that the clock has claimed beyond them, since the store was made.
    pub(super) fn observed(&self) -> (i64, i64) {
        let mark = self.observe();
        (mark.observed.div_euclid(1000), mark.skipped.div_euclid(1000))
    }

    /// Takes the present into account; gives the mark to be kept.
    pub(super) fn observe(&self) -> ClockMark {
        let mut mark = self.lock();
        // Read under the lock, so that an older reading never follows a newer one.
        let read = self.source.read();
        *mark = advanced(&mark, read, &self.source.boot);
        self.put(&mark, read);
        mark.clone()
    }

    /// The mark with the floor where the host's clock is, further back included.
    pub(super) fn reset_mark(&self) -> ClockMark {
        let mark = self.observe();
        ClockMark { floor: mark.wall, high: mark.wall, ..mark }
    }

    /// Puts a mark in force that was committed.
    pub(super) fn install(&self, new: ClockMark) {
        let mut mark = self.lock();
        *mark = new;
        let read = self.source.read();
        *mark = advanced(&mark, read, &self.source.boot);
        self.put(&mark, read);
    }

    fn put(&self, mark: &ClockMark, read: Reading) {
        self.ahead.store(mark.floor.saturating_sub(read.since_boot), Ordering::Relaxed);
        self.seen.store(read.wall.div_euclid(1000), Ordering::Relaxed);
    }

    fn later(&self, read: Reading) -> i64 {
        read.wall.max(read.since_boot.saturating_add(self.ahead.load(Ordering::Relaxed)))
    }

    fn lock(&self) -> MutexGuard<'_, ClockMark> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(count: u128) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A store that knows nothing of time believes the clock.
fn first(read: Reading, boot: &str) -> ClockMark {
    ClockMark {
        floor: read.wall,
        high: read.wall,
        observed: 0,
        skipped: 0,
        wall: read.wall,
        boot: boot.to_owned(),
        since_boot: read.since_boot,
    }
}

/// The mark after one more observation.
fn advanced(mark: &ClockMark, read: Reading, boot: &str) -> ClockMark {
    let same_boot = !boot.is_empty() && mark.boot == boot && read.since_boot >= mark.since_boot;
    // What has certainly passed. After another boot nothing is certain.
    let passed = if same_boot { read.since_boot.saturating_sub(mark.since_boot) } else { 0 };
    let jump = read.wall.saturating_sub(mark.wall).saturating_sub(passed);

    let floor = mark.floor.saturating_add(passed);
    let behind = read.wall.saturating_sub(floor).max(0);
    // A clock that stays ahead is caught up with at twice its speed.
    let floor = floor.saturating_add(behind.min(jump.clamp(0, JUMP_MOST).saturating_add(passed)));

    let high = mark.high.saturating_add(passed).max(read.wall);
    let claimed = high.saturating_sub(mark.high);
    let counted = claimed.min(JUMP_MOST);
    ClockMark {
        floor,
        high,
        observed: mark.observed.saturating_add(counted),
        skipped: mark.skipped.saturating_add(claimed.saturating_sub(counted)),
        wall: read.wall,
        boot: boot.to_owned(),
        since_boot: read.since_boot,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const HOUR: i64 = 3600 * 1000;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;

    /// A host and what the store knows of its time.
    struct Host {
        mark: ClockMark,
        read: Reading,
        boot: &'static str,
    }

    impl Host {
        fn new() -> Self {
            let read = Reading { wall: 1000 * DAY, since_boot: HOUR };
            Self { mark: first(read, "one"), read, boot: "one" }
        }

        /// Time passes, and somebody moves the clock by `jump`; then it is looked at.
        fn passes(&mut self, time: i64, jump: i64) -> &mut Self {
            self.read.since_boot += time;
            self.read.wall += time + jump;
            self.mark = advanced(&self.mark, self.read, self.boot);
            self
        }

        /// The host is off for `time`, or the store elsewhere.
        fn is_off(&mut self, time: i64) -> &mut Self {
            self.boot = if self.boot == "one" { "two" } else { "one" };
            self.read = Reading { wall: self.read.wall + time, since_boot: 1000 };
            self.mark = advanced(&self.mark, self.read, self.boot);
            self
        }

        fn now(&self) -> i64 {
            self.read.wall.max(self.mark.floor)
        }
    }

    #[test]
    fn a_clock_that_runs_is_followed() {
        let mut host = Host::new();
        for _ in 0..100 {
            host.passes(1000, 0);
        }
        assert_eq!((host.mark.floor, host.mark.high), (host.read.wall, host.read.wall));
        assert_eq!((host.mark.observed, host.mark.skipped), (100_000, 0));
        // Seen at last after ten days without a boot in between: nobody can have moved the time since boot.
        host.passes(10 * DAY, 0);
        assert_eq!(host.mark.floor, host.read.wall);
    }

    #[test]
    fn a_clock_set_back_revives_nothing() {
        let mut host = Host::new();
        let expiry = host.passes(2 * HOUR, 0).now() - 1;
        for (time, jump) in [(1000, -HOUR), (1000, -YEAR), (HOUR, 0)] {
            let before = host.now();
            host.passes(time, jump);
            assert!(host.now() >= before + time && host.now() > expiry);
        }
        // Nor over a boot, after which nothing of what has passed is certain.
        host.is_off(-2 * YEAR);
        assert!(host.now() > expiry);
    }

    #[test]
    fn a_clock_that_was_far_ahead_closes_nothing_for_ever() {
        let mut host = Host::new();
        let right = host.read.wall;
        assert_eq!(host.passes(1000, YEAR).now(), right + YEAR + 1000);
        assert_eq!(host.mark.floor, right + DAY + 1000 + 1000);
        host.passes(1000, -YEAR);
        assert!(host.now() <= right + DAY + HOUR, "{}", host.now() - right);
        // Where it stays, it is believed in the end.
        host.passes(1000, YEAR);
        for _ in 0..2 * 365 {
            host.passes(12 * HOUR, 0);
        }
        assert_eq!(host.mark.floor, host.read.wall);
    }

    #[test]
    fn a_gap_counts_for_a_day_at_most() {
        for (gap, counted) in [(HOUR, HOUR), (DAY, DAY), (5 * DAY, DAY), (YEAR, DAY)] {
            let mut host = Host::new();
            assert_eq!(host.is_off(gap).mark.observed, counted);
            assert_eq!(host.mark.skipped, gap - counted);
            // The same without a boot: the daemon was away, or the host asleep.
            let mut host = Host::new();
            assert_eq!(host.passes(gap, 0).mark.observed, counted);
            let mut host = Host::new();
            assert_eq!(host.passes(0, gap).mark.observed, counted);
        }
    }

    #[test]
    fn the_same_time_counts_once() {
        let mut host = Host::new();
        for _ in 0..30 {
            host.passes(0, 12 * HOUR).passes(0, -12 * HOUR);
        }
        assert_eq!((host.mark.observed, host.mark.skipped), (12 * HOUR, 0));
        for _ in 0..30 {
            host.is_off(-DAY).is_off(DAY);
        }
        assert_eq!((host.mark.observed, host.mark.skipped), (12 * HOUR, 0));
    }

    #[test]
    fn nothing_ever_goes_back() {
        let mut host = Host::new();
        let mut seed = 1_u64;
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let time = i64::try_from(seed >> 40).unwrap();
            let jump = i64::try_from(seed >> 20 & 0xffff_ffff).unwrap() - (1 << 31);
            let before = host.mark.clone();
            if seed.is_multiple_of(7) {
                host.is_off(jump)
            } else {
                host.passes(time, jump)
            };
            let after = &host.mark;
            assert!(after.floor >= before.floor && after.high >= before.high);
            assert!(after.observed >= before.observed && after.observed - before.observed <= JUMP_MOST);
            assert!(after.skipped >= before.skipped);
        }
        // Numbers that only damage could bring end nothing.
        let far =
            ClockMark { floor: i64::MAX, high: i64::MAX, wall: i64::MIN, since_boot: i64::MIN, ..ClockMark::default() };
        advanced(&far, host.read, "");
        advanced(&ClockMark { boot: "one".into(), ..far }, Reading { wall: i64::MAX, since_boot: i64::MAX }, "one");
    }

    #[test]
    fn a_reset_takes_the_host_s_word() {
        let ahead = ClockMark { floor: i64::MAX / 4, ..first(Clock::new(None, None).source.read(), "elsewhere") };
        let clock = Clock::new(Some(ahead), None);
        assert!(clock.now() > clock.wall() + 1000);
        clock.install(clock.reset_mark());
        assert!((0..=1).contains(&(clock.now() - clock.wall())));
    }

    #[test]
    fn a_test_s_file_moves_the_clock() {
        let dir = std::env::temp_dir().join(format!("kmsfs-clock.{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("offset");
        let write = |text: &str| std::fs::File::create(&file).unwrap().write_all(text.as_bytes()).unwrap();
        write("86400\n");
        let clock = Clock::new(None, Some(file.clone()));
        let plain = Clock::new(None, None);
        assert!((86_400..86_410).contains(&(clock.wall() - plain.wall())));
        // Half written.
        write("");
        assert!((86_400..86_410).contains(&(clock.wall() - plain.wall())));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
