//! A file system in memory behind kmsfs's transport: how little it takes, and what the tests of mounting signal and
//! kill.
//!
//! `memory serve DIRECTORY` serves in the foreground; `memory daemon DIRECTORY` goes into the background.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    reason = "of use to tests only, which its panics fail"
)]

#[path = "../tests/fuse/memory.rs"]
mod memory;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kmsfs::mount::{self, MountError, MountOptions, Report, Side};

fn serve(path: &Path, ready: impl FnOnce(Result<(), &MountError>) + Send + 'static) {
    let fs = Arc::new(memory::Memory::new());
    mount::serve(&fs, path, &MountOptions::new("/srv/store"), ready).unwrap();
    assert_eq!(fs.shut.load(Ordering::SeqCst), 1);
}

fn main() {
    let arguments: Vec<_> = std::env::args_os().collect();
    let path = Path::new(&arguments[2]);
    match arguments[1].to_str() {
        Some("serve") => {
            mount::block_end_signals().unwrap();
            mount::harden().unwrap();
            mount::start_logging(&mount::LogTo::StandardError).unwrap();
            serve(path, |outcome| println!("{}", outcome.map_or_else(ToString::to_string, |()| "ready".to_owned())));
        }
        Some("daemon") => match mount::daemonise().unwrap() {
            Side::Parent(parent) => {
                let Report { code, text } = parent.wait().unwrap();
                println!("report {code} {text}");
            }
            Side::Daemon(daemon) => {
                mount::block_end_signals().unwrap();
                assert_ne!(path, Path::new("/die"), "before any report");
                serve(path, move |outcome| {
                    daemon.report(&match outcome {
                        Ok(()) => Report { code: 0, text: String::new() },
                        Err(error) => Report { code: 8, text: error.to_string() },
                    });
                });
            }
        },
        _ => panic!("serve or daemon"),
    }
}
