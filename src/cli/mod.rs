//! Level 9: the command line. One file a command group. On a mount each works through the control tree, as the calling
//! user, and decides nothing by itself; on an unmounted store (`offline`) whoever holds its credential is custodian.
//! docs/cli.md is the contract that scripts rely on.

pub mod args;
mod audit;
mod bytes;
pub mod control;
pub mod credentials;
pub mod exit;
mod grant;
mod key;
pub mod mounts;
mod offline;
pub mod output;
mod policy;
pub mod principal;
mod re_encrypt;
mod serve;
mod status;
pub mod stream;
mod table;
mod umount;
mod why;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use clap::Parser;

use args::{Cli, Command, MountHelper, PolicyArgs, PolicyCommand};
use control::{Control, Object};
use exit::{CliError, Exit};
use output::Output;

use crate::kms::KmsError;
use crate::mount::Author;
use crate::types::Action;

const AT_VARIABLE: &str = "KMSFS_AT";
/// The names by which mount(8) calls a helper.
const HELPER_NAMES: [&str; 2] = ["mount.kmsfs", "mount.fuse.kmsfs"];

/// Runs the command line: `arguments` with the program's name in front.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let parsed = match helper_called_by(&arguments) {
        Some(author) => MountHelper::try_parse_from(arguments).map(|args| {
            let mut output = Output::new(false, &mut out, &mut err);
            let result = serve::mount_helper(&args, author, &mut output);
            end(result, &mut output)
        }),
        None => Cli::try_parse_from(arguments).map(|cli| {
            let mut output = Output::new(cli.json, &mut out, &mut err);
            let result = dispatch(&cli, &mut output);
            end(result, &mut output)
        }),
    };
    parsed.unwrap_or_else(|error| {
        // Help and version are no errors and go to standard output; what cannot be printed has nobody to tell.
        let _ = error.print();
        if error.use_stderr() { Exit::Usage } else { Exit::Done }
    })
}

fn end(result: Result<Exit, CliError>, output: &mut Output<'_>) -> Exit {
    result.unwrap_or_else(|error| {
        output.error(&error);
        error.exit()
    })
}

/// Whether this is a call of mount(8), by the program's name, or of mount.fuse3(8), which runs `kmsfs STORE …` with the
/// store's path where else a command stands.
fn helper_called_by(arguments: &[OsString]) -> Option<Author> {
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    if name.is_some_and(|name| HELPER_NAMES.iter().any(|helper| name == OsStr::new(helper))) {
        return Some(Author::User);
    }
    arguments.get(1).filter(|first| Path::new(first).is_absolute()).map(|_| Author::FuseHelper)
}

fn dispatch(cli: &Cli, output: &mut Output<'_>) -> Result<Exit, CliError> {
    match &cli.command {
        Command::Init(args) => serve::init(args, output)?,
        Command::Mount(args) => return serve::mount(args, output),
        Command::Umount(args) => umount::run(&args.mountpoint, output)?,
        Command::Key(args) => match target(cli)? {
            Target::Mount(control) => key::run(&control, &args.command, output)?,
            Target::Store(store) => offline::key_command(&store, &args.offline, &args.command, output)?,
        },
        Command::Table(args) => match target(cli)? {
            Target::Mount(control) => table::run(&control, &args.command, output)?,
            Target::Store(store) => offline::table(&store, &args.offline, &args.command, output)?,
        },
        Command::Policy(PolicyArgs { command: PolicyCommand::Check { file }, .. }) => policy::check(file, output)?,
        Command::Policy(args) => match target(cli)? {
            Target::Mount(control) => return policy::run(&control, &args.command, output),
            Target::Store(store) => return offline::policy(&store, &args.offline, &args.command, output),
        },
        Command::Grant(args) => match target(cli)? {
            Target::Mount(control) => grant::run(&control, &args.command, output)?,
            Target::Store(store) => offline::grant(&store, &args.offline, &args.command, output)?,
        },
        Command::Encrypt(args) => bytes::encrypt(&on_mount(cli, Action::Encrypt)?, args, output)?,
        Command::Decrypt(args) => bytes::decrypt(&on_mount(cli, Action::Decrypt)?, args, output)?,
        Command::ReEncrypt(args) => bytes::re_encrypt(&on_mount(cli, Action::ReEncryptFrom)?, args, output)?,
        Command::GenerateDataKey(args) => {
            bytes::generate_data_key(&on_mount(cli, Action::GenerateDataKey)?, args, output)?;
        }
        Command::Why(args) => return why::run(&args.path, output),
        Command::Audit(args) => {
            return match target(cli)? {
                Target::Mount(control) => audit::run(&control, &args.command, output),
                Target::Store(store) => offline::audit(&store, &args.offline, &args.command, output),
            };
        }
        Command::Slot(args) => {
            let store = store(cli, args.command.store())?;
            offline::slot(&store, &args.offline, &args.command, output)?;
        }
        Command::Anchor(args) => {
            let args::AnchorCommand::Accept { store: named } = &args.command;
            offline::accept_anchor(&store(cli, named.as_ref())?, &args.offline, output)?;
        }
        Command::ResetClock(args) => match target(cli)? {
            Target::Mount(control) => output.result(&control.command(Object::Store, "reset-clock")?)?,
            Target::Store(store) => offline::reset_clock(&store, &args.offline, output)?,
        },
        // By --at alone: who has set the variable still wants to see what else is mounted.
        Command::Status => match &cli.at {
            Some(path) => status::one(&Control::at(path)?, output)?,
            None => status::list(output)?,
        },
    }
    Ok(Exit::Done)
}

/// What `--at` leads to.
enum Target {
    Mount(Control),
    /// An unmounted store; whether it is served elsewhere, its lock tells.
    Store(PathBuf),
}

fn target(cli: &Cli) -> Result<Target, CliError> {
    let path = required_at(cli)?;
    match Control::at(&path) {
        Ok(control) => Ok(Target::Mount(control)),
        Err(CliError::NotAMount { .. }) if path.join("root").is_file() => Ok(Target::Store(path)),
        Err(error) => Err(error),
    }
}

/// The mount, for what uses a key: whoever holds a store's credential manages its keys and uses none.
fn on_mount(cli: &Cli, action: Action) -> Result<Control, CliError> {
    match target(cli)? {
        Target::Mount(control) => Ok(control),
        Target::Store(_) => {
            let why = "a custodian uses no key: mount the store, and do it as a key user".to_owned();
            Err(KmsError::Denied { action, why }.into())
        }
    }
}

fn store(cli: &Cli, named: Option<&PathBuf>) -> Result<PathBuf, CliError> {
    named.cloned().map_or_else(|| required_at(cli), Ok)
}

/// The path to work on, from `--at` or the environment.
fn at(cli: &Cli) -> Option<PathBuf> {
    cli.at.clone().or_else(|| std::env::var_os(AT_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from))
}

fn required_at(cli: &Cli) -> Result<PathBuf, CliError> {
    // No guess: a file system that calls itself kmsfs can be mounted by any user.
    at(cli).ok_or_else(|| CliError::usage(format!("say where: --at PATH, or set {AT_VARIABLE}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_of_mount_are_told_by_their_name_or_first_argument() {
        let called = |words: &[&str]| helper_called_by(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(called(&["/sbin/mount.kmsfs", "store", "/mnt"]), Some(Author::User));
        assert_eq!(called(&["mount.fuse.kmsfs", "/s", "/mnt"]), Some(Author::User));
        assert_eq!(called(&["kmsfs", "/srv/store", "/mnt", "-o", "rw"]), Some(Author::FuseHelper));
        assert_eq!(called(&["kmsfs", "mount", "/srv/store", "/mnt"]), None);
        assert_eq!(called(&["kmsfs"]), None);
        assert_eq!(called(&[]), None);
    }
}
