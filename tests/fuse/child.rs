//! Processes of their own for what cannot be done in the test's: being signalled, being killed, forking.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;

/// The example that serves a file system in memory, built as these tests are.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let tests = std::env::current_exe().unwrap();
        let profile = tests.parent().unwrap().parent().unwrap();
        let name = profile.file_name().unwrap().to_str().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", "memory", "--profile"]);
        build.arg(if name == "debug" { "dev" } else { name }).arg("--target-dir").arg(profile.parent().unwrap());
        assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success());
        profile.join("examples/memory")
    })
}

/// Starts a child that serves a mount at `path`, and waits until it answers.
pub fn serve(path: &Path) -> Child {
    let mut child = Command::new(program()).arg("serve").arg(path).stdout(Stdio::piped()).spawn().unwrap();
    wait_for_line(&mut child, "ready");
    child
}

/// Runs a child that becomes a daemon, until its parent returns.
pub fn daemon(path: &Path) -> Output {
    Command::new(program()).arg("daemon").arg(path).output().unwrap()
}

pub fn wait_for_line(child: &mut Child, line: &str) {
    use std::io::{BufRead, BufReader};
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|found| found == line), "the child does not say '{line}'");
}

pub fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

/// How the child ended: in order, or by a signal.
pub fn how(status: ExitStatus) -> Result<i32, i32> {
    status.code().ok_or_else(|| status.signal().unwrap())
}
