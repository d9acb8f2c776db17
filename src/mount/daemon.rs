//! Going into the background, such that the parent knows how it went: it returns only when the mount answers, or with
//! the one line that says why it does not.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::sys::{self, Fork};

/// The longest report that the parent takes.
const REPORT_BYTES: u64 = 4096;

/// Which process [`daemonise`] returned in.
#[derive(Debug)]
pub enum Side {
    /// The one that was called; to [`Parent::wait`] and exit.
    Parent(Parent),
    /// The daemon; to serve, and to [`Daemon::report`] once.
    Daemon(Daemon),
}

/// The waiting end.
#[derive(Debug)]
pub struct Parent(File);

/// The end that reports.
#[derive(Debug)]
pub struct Daemon(File);

/// What the daemon has to say about itself: an exit code, and for another than 0 one line that says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub code: u8,
    pub text: String,
}

/// Forks twice: the daemon has no terminal, no standard streams and the root as its working directory. Paths must have
/// been made absolute and secrets asked for before; threads must be started after.
pub fn daemonise() -> io::Result<Side> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    if sys::fork()? == Fork::Parent {
        drop(writer);
        return Ok(Side::Parent(Parent(reader.into())));
    }
    drop(reader);
    rustix::process::setsid()?;
    if sys::fork()? == Fork::Parent {
        // Not a session leader, the daemon can never get a terminal.
        sys::leave_now();
    }
    rustix::process::chdir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    sys::replace_standard_streams(null.as_fd())?;
    Ok(Side::Daemon(Daemon(writer.into())))
}

impl Parent {
    /// Waits for the daemon's report. A daemon that ends without one, killed for example, is reported with code 1.
    pub fn wait(self) -> io::Result<Report> {
        let mut bytes = Vec::new();
        self.0.take(REPORT_BYTES).read_to_end(&mut bytes)?;
        Ok(match bytes.as_slice() {
            [] => Report { code: 1, text: "the daemon ended before the mount answered; see its log".to_owned() },
            [code, text @ ..] => Report { code: *code, text: String::from_utf8_lossy(text).into_owned() },
        })
    }
}

impl Daemon {
    /// Lets the parent go. A parent that has gone already, interrupted for example, is no error.
    pub fn report(mut self, report: &Report) {
        let mut bytes = vec![report.code];
        bytes.extend(report.text.bytes().map(|byte| if byte == b'\n' { b' ' } else { byte }));
        bytes.truncate(usize::try_from(REPORT_BYTES).unwrap_or(usize::MAX));
        if let Err(error) = self.0.write_all(&bytes) {
            log::info!("nobody waits for the mount any more: {error}");
        }
    }
}
