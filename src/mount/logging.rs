//! Where the log goes: syslog for a daemon, standard error in the foreground, or a file.
//!
//! What is logged is chosen as env_logger does, by `KMSFS_LOG` or else `RUST_LOG`; without either, warnings of all and
//! what kmsfs itself says from `info` on.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use env_logger::{Builder, Logger, Target};
use log::{Level, Log, Metadata, Record};

const DEFAULT_FILTER: &str = "warn,kmsfs=info";
/// See syslog(3): LOG_DAEMON.
const FACILITY: u8 = 3 << 3;

/// Where to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTo {
    StandardError,
    File(PathBuf),
    Syslog,
}

/// Sets the process's logger; once.
///
/// # Errors
/// If the file cannot be opened, or a logger is set already. Without a syslog the log is lost, and that is no error.
pub fn start_logging(to: &LogTo) -> io::Result<()> {
    let mut builder = Builder::new();
    builder.parse_filters(&filters());
    match to {
        LogTo::StandardError => {
            builder.target(Target::Stderr);
            install(Box::new(builder.build()))
        }
        LogTo::File(path) => {
            builder.target(Target::Pipe(Box::new(open_log(path)?)));
            install(Box::new(builder.build()))
        }
        LogTo::Syslog => install(Box::new(Syslog::new(builder.build(), Path::new("/dev/log"))?)),
    }
}

fn filters() -> String {
    ["KMSFS_LOG", "RUST_LOG"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .unwrap_or_else(|| DEFAULT_FILTER.to_owned())
}

fn install(logger: Box<dyn Log>) -> io::Result<()> {
    log::set_boxed_logger(logger).map_err(io::Error::other)?;
    log::set_max_level(log::LevelFilter::Trace);
    Ok(())
}

/// For the owner only: at `debug` it names items.
fn open_log(path: &Path) -> io::Result<std::fs::File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Sends to the local syslog, or to the journal in its place, in the form of syslog(3).
struct Syslog {
    filter: Logger,
    socket: UnixDatagram,
    address: PathBuf,
}

impl Syslog {
    fn new(filter: Logger, address: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A syslog that does not keep up loses lines; it does not hold up the file system.
        socket.set_nonblocking(true)?;
        Ok(Self { filter, socket, address: address.to_owned() })
    }
}

impl Log for Syslog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let line = line(record.level(), std::process::id(), &record.args().to_string());
        // To the address each time, not connected once: a syslog that is started anew is found again. If there is
        // none, there is nobody to tell.
        let _ = self.socket.send_to(line.as_bytes(), &self.address);
    }

    fn flush(&self) {}
}

/// Line ends would begin a line of somebody else's making.
fn line(level: Level, pid: u32, text: &str) -> String {
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("<{}>kmsfs[{pid}]: {text}", FACILITY | severity)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_record_reaches_syslog_as_one_line() {
        let path = std::env::temp_dir().join(format!("kmsfs-syslog-{}", std::process::id()));
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut builder = Builder::new();
        builder.parse_filters("info");
        let syslog = Syslog::new(builder.build(), &path).unwrap();
        let send = |level, text: &str| {
            syslog.log(&Record::builder().level(level).target("kmsfs").args(format_args!("{text}")).build());
        };
        send(Level::Debug, "not wanted");
        send(Level::Warn, "a\n<0>kernel: b");
        let mut buffer = [0; 256];
        let length = daemon.recv(&mut buffer).unwrap();
        let expected = format!("<28>kmsfs[{}]: a <0>kernel: b", std::process::id());
        assert_eq!(std::str::from_utf8(&buffer[..length]), Ok(expected.as_str()));
        drop(daemon);
        std::fs::remove_file(&path).unwrap();
        send(Level::Error, "nobody listens, and nothing happens");
    }

    #[test]
    fn a_log_file_is_its_owner_s_and_grows() {
        let path = std::env::temp_dir().join(format!("kmsfs-log-{}", std::process::id()));
        for text in ["a", "b"] {
            open_log(&path).unwrap().write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "ab");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&path).unwrap();
    }
}
