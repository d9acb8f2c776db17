//! `kmsfs init` and `kmsfs mount`: a store made, a store served.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::{CredentialArgs, InitArgs, MountArgs, MountHelper};
use super::credentials::{Asking, SecretInput};
use super::exit::{CliError, Exit};
use super::output::{Output, shown};
use crate::crypto::Argon2Params;
use crate::fs::{FileSystem, Options, SessionError, open_trail};
use crate::kms::Kms;
use crate::mount::{self, Author, LogTo, MountError, MountOptions, Report, Side};
use crate::policy::PForm;
use crate::store::{Credential, Open, Store, StoreError};
use crate::sys;

/// Where this host keeps the newest state that it has seen of each store.
const ANCHOR_VARIABLE: &str = "KMSFS_ANCHOR";
const ANCHOR_DIR: &str = "/var/lib/kmsfs";

/// The directory of the host's anchors: as asked, else as the environment says, else the system's or the user's own.
pub(super) fn anchor_dir(asked: Option<&Path>) -> Result<PathBuf, CliError> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = match asked.map(Path::to_owned).or_else(|| from(ANCHOR_VARIABLE)) {
        Some(dir) => dir,
        None if rustix::process::geteuid().is_root() => PathBuf::from(ANCHOR_DIR),
        None => from("XDG_STATE_HOME")
            .or_else(|| home(from("HOME")).map(|home| home.join(".local/state")))
            .ok_or_else(|| CliError::usage(format!("say where the anchor is: --anchor DIR, or set {ANCHOR_VARIABLE}")))?
            .join("kmsfs"),
    };
    std::path::absolute(&dir).map_err(|error| CliError::io("find", dir, error))
}

/// The directory that `$HOME` names, if it is the user's own, else that of his account: sudo may leave another's, and
/// mount(8) takes the variable away.
fn home(named: Option<PathBuf>) -> Option<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let own = |home: &PathBuf| std::fs::metadata(home).is_ok_and(|found| found.uid() == uid);
    named.clone().filter(own).or_else(|| sys::home_of(uid)).or(named)
}

/// 'pid host what', for whoever finds the store locked.
pub(super) fn owner_text(what: &OsStr) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{} {host} {}", std::process::id(), what.to_string_lossy())
}

pub(super) fn credential_of(input: SecretInput) -> Credential {
    match input {
        SecretInput::Passphrase(secret) => Credential::Passphrase(secret),
        SecretInput::KeyFile(secret) => Credential::KeyFile(secret),
    }
}

/// Makes a store. Whoever makes it administers it.
pub(super) fn init(args: &InitArgs, output: &mut Output<'_>) -> Result<(), CliError> {
    let path = std::path::absolute(&args.store).map_err(|error| CliError::io("find", &args.store, error))?;
    let credential = credential_of(args.credential.read(Asking::New).map_err(CliError::Credential)?);
    let params = Argon2Params { memory_kib: args.kdf_memory.saturating_mul(1024), ..Argon2Params::DEFAULT };
    let how = Open {
        read_only: false,
        anchor_dir: anchor_dir(None)?,
        owner: owner_text(OsStr::new("init")),
        accept_anchor: false,
    };
    let store = Store::create(&path, &credential, params, &args.label, &how).map_err(SessionError::Store)?;
    fill(Arc::new(store), args.for_tests).inspect_err(|_| {
        // A store without its own keys is of no use to anybody; what was there before was empty.
        let _ = std::fs::remove_dir_all(&path);
    })?;
    output.result(&format!("{} is a store; mount it with: kmsfs mount {0} MOUNTPOINT", shown(&path)))
}

/// The store's own keys and its policy.
fn fill(store: Arc<Store>, for_tests: bool) -> Result<(), SessionError> {
    let (trail, _) = open_trail(&store)?;
    let uid = rustix::process::geteuid().as_raw();
    let administrator = sys::user_name(uid).map_or(PForm::Uid(uid), PForm::User);
    let make = if for_tests { Kms::initialise_for_tests } else { Kms::initialise };
    make(store, Arc::new(trail), &[administrator])?.close()?;
    Ok(())
}

/// What a mount needs, its paths absolute, since the daemon leaves its directory.
struct Plan {
    store: PathBuf,
    mount_point: PathBuf,
    options: MountOptions,
    log: LogTo,
    anchor: PathBuf,
}

/// `kmsfs mount`: returns when the mount answers, or, in the foreground, when it has ended.
pub(super) fn mount(args: &MountArgs, output: &mut Output<'_>) -> Result<Exit, CliError> {
    let mut options = MountOptions::new(absolute(&args.store)?);
    for text in &args.options {
        options.parse(OsStr::new(text), Author::User).map_err(|error| CliError::usage(error.to_string()))?;
    }
    options.read_only |= args.read_only;
    options.foreground |= args.foreground;
    let log_file = args.log_file.clone().or_else(|| options.log_file.take());
    options.log_file = log_file;
    let anchor = args.anchor.clone().or_else(|| options.anchor.take());
    start(&args.store, &args.mountpoint, options, &args.credential, anchor.as_deref(), output)
}

/// `mount.kmsfs STORE MOUNTPOINT -o …`; `author` is who added options of its own.
pub(super) fn mount_helper(args: &MountHelper, author: Author, output: &mut Output<'_>) -> Result<Exit, CliError> {
    if args.namespace.is_some() {
        return Err(CliError::usage("-N is mount(8)'s own to handle"));
    }
    let mut options = MountOptions::new(absolute(&args.store)?);
    for option in args.options.iter().flat_map(|text| options_of(text)) {
        match options.parse(option, author) {
            Err(mount::OptionError::Unknown(_)) if args.sloppy => {}
            result => result.map_err(|error| CliError::usage(error.to_string()))?,
        }
    }
    if args.fake {
        return Ok(Exit::Done);
    }
    let anchor = options.anchor.take();
    start(&args.store, &args.mountpoint, options, &CredentialArgs::default(), anchor.as_deref(), output)
}

/// The options between commas that no backslash stands before, as they are written.
fn options_of(text: &str) -> Vec<&OsStr> {
    let mut escaped = false;
    let parts = text.as_bytes().split(move |byte| {
        let ends = *byte == b',' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    parts.map(OsStr::from_bytes).collect()
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    path.canonicalize().map_err(|error| CliError::io("find", path, error))
}

fn start(
    store: &Path,
    mount_point: &Path,
    options: MountOptions,
    credential: &CredentialArgs,
    anchor: Option<&Path>,
    output: &mut Output<'_>,
) -> Result<Exit, CliError> {
    let credential = with_options(credential, &options);
    let log = match &options.log_file {
        Some(path) => LogTo::File(std::path::absolute(path).map_err(|error| CliError::io("find", path, error))?),
        None if options.foreground => LogTo::StandardError,
        None => LogTo::Syslog,
    };
    let plan = Plan {
        store: absolute(store)?,
        mount_point: mount::prepare_mount_point(mount_point)?,
        log,
        anchor: anchor_dir(anchor)?,
        options,
    };
    // What can be told without a secret is told before one is asked for.
    if !plan.store.join("root").exists() {
        return Err(StoreError::NotAStore { path: plan.store.display().to_string() }.into());
    }
    if !Path::new("/dev/fuse").exists() {
        return Err(MountError::NoFuse.into());
    }
    // Asked for before the fork: the daemon has no terminal.
    let secret = credential_of(credential.read(Asking::Existing).map_err(CliError::Credential)?);
    if plan.options.foreground {
        serve(&plan, &secret, |_| {})?;
        return Ok(Exit::Done);
    }
    match mount::daemonise().map_err(|error| CliError::io("start a daemon for", &plan.mount_point, error))? {
        Side::Parent(parent) => {
            drop(secret);
            let report = parent.wait().map_err(|error| CliError::io("hear of", &plan.mount_point, error))?;
            finish(&report, &plan, output)
        }
        Side::Daemon(daemon) => {
            let daemon = Arc::new(std::sync::Mutex::new(Some(daemon)));
            let teller = Arc::clone(&daemon);
            let tell = move |report: &Report| {
                if let Some(daemon) = teller.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
                    daemon.report(report);
                }
            };
            let ready = tell.clone();
            let ended = serve(&plan, &secret, move |failed: Option<&CliError>| ready(&report_of(failed)));
            match ended {
                Ok(()) => Ok(Exit::Done),
                Err(error) => {
                    log::error!("{error}");
                    tell(&report_of(Some(&error)));
                    Ok(error.exit())
                }
            }
        }
    }
}

fn report_of(failed: Option<&CliError>) -> Report {
    match failed {
        None => Report { code: 0, text: String::new() },
        Some(error) => Report { code: error.exit() as u8, text: error.to_string() },
    }
}

fn finish(report: &Report, plan: &Plan, output: &mut Output<'_>) -> Result<Exit, CliError> {
    let exit = Exit::of_code(report.code);
    if exit != Exit::Done {
        return Err(CliError::Daemon { exit, text: report.text.clone() });
    }
    output.result(&format!("{} is mounted at {}", shown(&plan.store), shown(&plan.mount_point)))?;
    Ok(Exit::Done)
}

/// Options of fstab name credentials too; what the command line says comes first.
fn with_options(args: &CredentialArgs, options: &MountOptions) -> CredentialArgs {
    let mut credential = args.clone();
    if credential.key_file.is_none() && credential.passphrase_file.is_none() && credential.extpass.is_empty() {
        credential.key_file.clone_from(&options.key_file);
        credential.passphrase_file.clone_from(&options.passphrase_file);
        credential.extpass =
            options.extpass.iter().map(|program: &OsString| program.to_string_lossy().into_owned()).collect();
    }
    credential
}

/// In the daemon: opens the store and serves it until it is unmounted. `ready` is called when the mount answers.
fn serve(
    plan: &Plan,
    secret: &Credential,
    ready: impl FnOnce(Option<&CliError>) + Send + 'static,
) -> Result<(), CliError> {
    mount::block_end_signals().map_err(|error| CliError::io("block signals for", &plan.mount_point, error))?;
    mount::start_logging(&plan.log).map_err(|error| CliError::io("log for", &plan.mount_point, error))?;
    mount::harden().map_err(|error| CliError::io("harden the daemon of", &plan.mount_point, error))?;
    let how = Open {
        read_only: plan.options.read_only,
        anchor_dir: plan.anchor.clone(),
        owner: owner_text(plan.mount_point.as_os_str()),
        accept_anchor: false,
    };
    let store = Store::open(&plan.store, secret, &how).map_err(SessionError::Store)?;
    let options = Options { read_only: plan.options.read_only, show_kms: plan.options.show_kms };
    let fs = Arc::new(FileSystem::open(store, options)?);
    fs.start_ticking().map_err(|error| CliError::io("start a thread for", &plan.mount_point, error))?;
    let told = move |outcome: Result<(), &MountError>| {
        if outcome.is_ok() {
            ready(None);
        }
    };
    mount::serve(&fs, &plan.mount_point, &plan.options, told)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_cut_at_commas_that_no_backslash_keeps() {
        assert_eq!(options_of(r"ro,key-file=/a\,b,x"), ["ro", r"key-file=/a\,b", "x"]);
        assert_eq!(options_of(r"a\\,b"), [r"a\\", "b"]);
        assert_eq!(options_of(""), [""]);
    }

    #[test]
    fn a_credential_of_the_command_line_goes_before_that_of_the_options() {
        let mut options = MountOptions::new("/srv/store");
        options.parse(OsStr::new("key-file=/a"), Author::User).unwrap();
        let given = CredentialArgs { passphrase_file: Some("/p".into()), ..CredentialArgs::default() };
        let credential = with_options(&given, &options);
        assert_eq!((credential.key_file, credential.passphrase_file), (None, Some("/p".into())));
        assert_eq!(with_options(&CredentialArgs::default(), &options).key_file, Some("/a".into()));
    }
}
