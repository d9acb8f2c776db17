//! The program: parses, runs, and ends here and nowhere else.

use std::process::ExitCode;

fn main() -> ExitCode {
    kmsfs::cli::run(std::env::args_os()).into()
}
