//! Floods of equal denials: within a second the first five are written one by one, the rest is counted and written as
//! one event with its count when the second is over. A user who hammers at a closed door so fills neither the trail
//! nor its disk, and every denial is still accounted for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::event::Event;

/// How long equal denials are counted together.
const WINDOW: Duration = Duration::from_secs(1);
/// How many of them are written in full.
const IN_FULL: u32 = 5;
/// The most kinds of denial that are told apart at a time; beyond that each is written in full.
const MAX_WINDOWS: usize = 1024;

/// What makes two denials equal.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    uid: u32,
    event: String,
    error: String,
    /// Resources and encryption context, as JSON.
    item: String,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    seen: u32,
    first_time: String,
    /// The last one that was not written, and how many.
    counted: Option<(Event, u32)>,
}

/// What to do with an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Write,
    Counted,
}

/// The denials of the last second.
#[derive(Debug, Default)]
pub(super) struct Floods {
    windows: HashMap<Key, Window>,
    /// No window ends before this.
    next_end: Option<Instant>,
}

impl Floods {
    /// Counts a denial in. Windows that are over must have been taken out before (`over`).
    pub(super) fn judge(&mut self, event: &Event, now: Instant) -> Verdict {
        let Some(key) = key(event) else { return Verdict::Write };
        if let Some(window) = self.windows.get_mut(&key) {
            window.seen = window.seen.saturating_add(1);
            if window.seen <= IN_FULL {
                return Verdict::Write;
            }
            let count = window.counted.take().map_or(0, |(_, count)| count);
            if count == 0 {
                window.first_time.clone_from(&event.event_time);
            }
            window.counted = Some((event.clone(), count.saturating_add(1)));
            return Verdict::Counted;
        }
        if self.windows.len() < MAX_WINDOWS {
            let first_time = event.event_time.clone();
            self.windows.insert(key, Window { since: now, seen: 1, first_time, counted: None });
            let end = now + WINDOW;
            self.next_end = Some(self.next_end.map_or(end, |next| next.min(end)));
        }
        Verdict::Write
    }

    /// Takes out the windows that are over, or all of them, and gives an event for each that has counted any.
    pub(super) fn over(&mut self, now: Instant, all: bool) -> Vec<Event> {
        if !all && self.next_end.is_none_or(|end| now < end) {
            return Vec::new();
        }
        let ended = |window: &Window| all || now.duration_since(window.since) >= WINDOW;
        let events = self.windows.extract_if(|_, window| ended(window)).filter_map(|(_, window)| summary(window));
        let events = events.collect();
        self.next_end = self.windows.values().map(|window| window.since + WINDOW).min();
        events
    }

    /// Puts back what could not be written, to be tried again.
    pub(super) fn put_back(&mut self, event: &Event, now: Instant) {
        let Some(key) = key(event) else { return };
        let count = event.additional_event_data.get("count").and_then(serde_json::Value::as_u64).unwrap_or(1);
        let first = event.additional_event_data.get("firstTime").and_then(serde_json::Value::as_str);
        let first_time = first.unwrap_or(&event.event_time).to_owned();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let window = self.windows.entry(key).or_insert(Window { since: now, seen: IN_FULL, first_time, counted: None });
        let already = window.counted.as_ref().map_or(0, |(_, count)| *count);
        window.counted = Some((event.clone(), count.saturating_add(already)));
        self.next_end = Some(now + WINDOW);
    }
}

fn summary(window: Window) -> Option<Event> {
    let (event, count) = window.counted?;
    Some(event.detail("count", count).detail("firstTime", window.first_time))
}

/// None for what is no denial.
fn key(event: &Event) -> Option<Key> {
    let error = event.error_code.clone()?;
    // The context of a direct call is the caller's own words, and makes no two of his denials different.
    let of_item = event.resources.iter().any(|resource| resource.r#type == "kmsfs::Table");
    let context = event.request_parameters.get("encryptionContext").filter(|_| of_item);
    let item = serde_json::to_string(&(&event.resources, context)).ok()?;
    Some(Key { uid: event.user_identity.uid, event: event.event_name.clone(), error, item })
}
