//! What has to happen though nobody asks: counts of coalesced events written, events flushed, date conditions, ends of
//! grants, rotations and deletions carried out, the time kept, the journal put in place while it is short.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, SystemTime};

use super::FileSystem;
use crate::store::Journal;

/// How often.
const PERIOD: Duration = Duration::from_secs(1);
/// Every so many ticks the journal is put in place.
const CHECKPOINT_EVERY: u32 = 10;
/// Every so many ticks the store keeps what is known of time, while something waits for it, and else.
const KEEP_TIME_EVERY: u32 = 60;
const KEEP_TIME_AT_LEAST_EVERY: u32 = 3600;

impl FileSystem {
    /// Starts the threads that work until the file system is gone: those that tick, and those that re-encrypt and put the
    /// journal in place.
    pub fn start_ticking(self: &Arc<Self>) -> std::io::Result<()> {
        self.start_re_encrypting()?;
        if !self.options.read_only {
            let (weak, journal) = (Arc::downgrade(self), Arc::clone(&self.journal));
            thread::Builder::new().name("kmsfs-journal".to_owned()).spawn(move || help_on(&weak, &journal))?;
        }
        let weak = Arc::downgrade(self);
        thread::Builder::new().name("kmsfs-tick".to_owned()).spawn(move || tick_on(&weak, FileSystem::tick))?;
        // What is due of keys may take long, since a destroyed key's items are counted; nothing else waits for it.
        let weak = Arc::downgrade(self);
        thread::Builder::new()
            .name("kmsfs-due".to_owned())
            .spawn(move || tick_on(&weak, |fs, _| fs.carry_out_due()))?;
        Ok(())
    }

    fn tick(&self, count: u32) {
        if let Some(trail) = self.kms.trail()
            && let Err(error) = trail.tick().and_then(|()| trail.sync())
        {
            log::error!("{error}");
        }
        // What the trail says has ended has been taken by then.
        let now = self.kms.now();
        self.revoke_expired();
        self.kms.tend_grants(now);
        self.keep_time(count);
        let pending = !self.options.read_only && self.journal.pending_bytes() > 0;
        if pending
            && count.is_multiple_of(CHECKPOINT_EVERY)
            && let Err(error) = self.journal.checkpoint()
        {
            log::error!("the journal could not be put in place: {error}");
        }
    }

    fn carry_out_due(&self) {
        for key in self.kms.carry_out_due() {
            self.revoke_by_itself(key);
        }
    }

    fn keep_time(&self, count: u32) {
        let due = count.is_multiple_of(KEEP_TIME_AT_LEAST_EVERY)
            || (count.is_multiple_of(KEEP_TIME_EVERY) && self.kms.waits_for_time());
        if due
            && !self.options.read_only
            && let Err(error) = self.kms.keep_time()
        {
            log::error!("the time could not be kept: {error}");
        }
    }
}

/// Writes that wait for nobody else fill the journal faster than a tick empties it.
fn help_on(weak: &Weak<FileSystem>, journal: &Journal) {
    while weak.upgrade().is_some_and(|fs| !fs.ended.load(Ordering::Acquire)) {
        if let Err(error) = journal.help(PERIOD) {
            log::error!("the journal could not be put in place: {error}");
        }
    }
}

/// Just behind the beginning of the next second of the clock, since that is when grants end.
fn until_next_second() -> Duration {
    const BEHIND: Duration = Duration::from_millis(1);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (PERIOD + BEHIND).saturating_sub(Duration::from_nanos(u64::from(since.subsec_nanos())))
}

fn tick_on(weak: &Weak<FileSystem>, act: impl Fn(&FileSystem, u32)) {
    let mut count = 0_u32;
    loop {
        thread::sleep(until_next_second());
        count = count.wrapping_add(1);
        let Some(fs) = weak.upgrade().filter(|fs| !fs.ended.load(Ordering::Acquire)) else { return };
        act(&fs, count);
    }
}
