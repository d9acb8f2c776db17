//! `kmsfs table re-encrypt`: gives the order and shows how far the daemon is. The work is the daemon's: that nobody watches
//! does not stop it, but Ctrl-C here does.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::control::{Control, Object, file_name};
use super::exit::CliError;
use super::output::Output;
use crate::sys;

/// How often the daemon is asked.
const ASK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// The signals that stop what is shown, and the work.
const STOPPING: [i32; 2] = [libc::SIGINT, libc::SIGTERM];

/// Orders a table to be re-encrypted, and waits until it is.
pub(super) fn run(control: &Control, name: &str, wait: bool, output: &mut Output<'_>) -> Result<(), CliError> {
    // Before the order: what stops it must not come too early.
    let signals =
        if wait { Some(stopping_signals().map_err(|e| CliError::io("wait for signals at", name, e))?) } else { None };
    let said = control.command(Object::Table(name), "re-encrypt")?;
    match signals {
        None => output.result(&said),
        Some(signals) => watch(control, name, &signals, output),
    }
}

/// What the daemon tells of a table's re-encryption.
pub(super) fn progress(control: &Control, name: &str) -> Result<Value, CliError> {
    let path = Path::new("tables").join(file_name("table", name)?).join("re-encryption.json");
    let bytes = control.read(&path)?;
    serde_json::from_slice(&bytes).map_err(|source| CliError::Malformed { path, source })
}

fn watch(control: &Control, name: &str, signals: &OwnedFd, output: &mut Output<'_>) -> Result<(), CliError> {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg:10} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        bar.set_style(style.progress_chars("#> "));
    }
    let ended = loop {
        let now = progress(control, name)?;
        if let Some(ended) = Ended::of(&now) {
            break ended;
        }
        show(&bar, &now);
        if stop_is_asked_for(signals).map_err(|error| CliError::io("wait for signals at", name, error))? {
            control.command(Object::Table(name), "re-encrypt stop")?;
            break Ended::Stopped;
        }
    };
    bar.finish_and_clear();
    match ended {
        Ended::Done if output.json() => output.document(&progress(control, name)?),
        Ended::Done => output.line(&format!("table {name} is re-encrypted")),
        Ended::Stopped => Err(not_done(name, "stopped; the same command goes on with it".to_owned())),
        Ended::Blocked(why) => Err(not_done(name, why)),
    }
}

enum Ended {
    Done,
    Stopped,
    Blocked(String),
}

impl Ended {
    fn of(progress: &Value) -> Option<Self> {
        match progress.get("State").and_then(Value::as_str)? {
            // Done, or done so long ago that the daemon has forgotten.
            "done" | "none" => Some(Self::Done),
            "stopped" => Some(Self::Stopped),
            "blocked" => Some(Self::Blocked(format!(
                "{} {}",
                progress.get("Damaged").and_then(Value::as_u64).unwrap_or(0),
                progress.get("Reason").and_then(Value::as_str).unwrap_or("items are left"),
            ))),
            _ => None,
        }
    }
}

fn not_done(name: &str, reason: String) -> CliError {
    CliError::Refused { what: format!("table {name} is not re-encrypted"), reason, source: None }
}

fn show(bar: &ProgressBar, progress: &Value) {
    let number = |member: &str| progress.get(member).and_then(Value::as_u64).unwrap_or(0);
    bar.set_length(number("Bytes"));
    bar.set_position(number("BytesDone"));
    let state = progress.get("State").and_then(Value::as_str).unwrap_or_default();
    match progress.get("Reason").and_then(Value::as_str) {
        Some(reason) => bar.set_message(format!("{state}: {reason}")),
        None => bar.set_message(state.to_owned()),
    }
    bar.tick();
}

fn stopping_signals() -> std::io::Result<OwnedFd> {
    sys::block_signals(&STOPPING)?;
    sys::signal_descriptor(&STOPPING)
}

/// Waits for a while; true where the work is to stop.
fn stop_is_asked_for(signals: &OwnedFd) -> std::io::Result<bool> {
    let mut waiting = [PollFd::new(signals, PollFlags::IN)];
    match poll(&mut waiting, Some(&ASK_EVERY)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(sys::next_signal(signals.as_fd())?.is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ends_are_told_from_what_goes_on() {
        for state in ["counting", "running", "waiting"] {
            assert!(Ended::of(&json!({ "State": state })).is_none(), "{state}");
        }
        for state in ["done", "none"] {
            assert!(matches!(Ended::of(&json!({ "State": state })), Some(Ended::Done)), "{state}");
        }
        assert!(matches!(Ended::of(&json!({ "State": "stopped" })), Some(Ended::Stopped)));
        let blocked = json!({ "State": "blocked", "Damaged": 2, "Reason": "items do not verify" });
        assert!(matches!(Ended::of(&blocked), Some(Ended::Blocked(why)) if why == "2 items do not verify"));
    }
}
