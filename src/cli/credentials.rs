//! Where the secret that opens a store comes from: a key file, a file or a program with the passphrase, a systemd
//! credential, the terminal.
//!
//! A file that group or others can read or write is refused, as the opened file tells it, so that no rename slips in
//! between. Secrets live in buffers that are wiped and that are never grown, since growing leaves a copy behind.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::args::CredentialArgs;
use super::exit::plain;
use crate::crypto::{SecretBytes, equal};

/// The longest passphrase, and the longest key file, in bytes (docs/format.md, section 3).
const MAX_BYTES: usize = 4096;
/// The shortest key file, in bytes.
const MIN_KEY_BYTES: usize = 32;
const PASSPHRASE_CREDENTIAL: &str = "kmsfs.passphrase";
const KEY_CREDENTIAL: &str = "kmsfs.key";

/// What opens a slot.
#[derive(Debug)]
pub enum SecretInput {
    Passphrase(SecretBytes),
    KeyFile(SecretBytes),
}

/// What the prompt asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// An existing passphrase: once.
    Existing,
    /// A new one: twice.
    New,
}

/// Why there is no usable credential.
#[derive(Debug)]
pub enum CredentialError {
    /// More than one source was named.
    Several,
    /// The file cannot be read.
    Unreadable { path: PathBuf, source: io::Error },
    /// Group or others may read or write the file.
    Exposed { path: PathBuf, mode: u32 },
    /// Neither a file nor a pipe.
    NotAFile { path: PathBuf },
    /// An empty passphrase.
    Empty,
    /// More bytes than a credential may have.
    TooLong,
    /// Fewer bytes than a key file must have.
    TooShort { path: PathBuf },
    /// The program could not be run.
    Program { program: String, source: io::Error },
    /// The program failed.
    ProgramFailed { program: String },
    /// Nothing was given and there is no terminal to ask on.
    NoTerminal { source: io::Error },
    /// The two entries differ.
    Mismatch,
    /// No slot of the store opens with it.
    Wrong,
}

impl fmt::Display for CredentialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Several => f.write_str("give one of --key-file, --passphrase-file and --extpass, not several"),
            Self::Unreadable { path, source } => write!(f, "cannot read {}: {}", path.display(), plain(source)),
            Self::Exposed { path, mode } => {
                write!(f, "{0} is open to others (mode {mode:04o}), so it is no secret: chmod 600 {0}", path.display())
            }
            Self::NotAFile { path } => write!(f, "{} is neither a file nor a pipe", path.display()),
            Self::Empty => f.write_str("the passphrase is empty"),
            Self::TooLong => write!(f, "a passphrase or key file has at most {MAX_BYTES} bytes"),
            Self::TooShort { path } => {
                write!(f, "{} is too short: a key file has at least {MIN_KEY_BYTES} random bytes", path.display())
            }
            Self::Program { program, source } => write!(f, "cannot run {program}: {}", plain(source)),
            Self::ProgramFailed { program } => write!(f, "{program} failed and gave no passphrase"),
            Self::NoTerminal { .. } => {
                f.write_str("there is no terminal to ask for the passphrase: give --key-file or --passphrase-file")
            }
            Self::Mismatch => f.write_str("the two passphrases differ"),
            Self::Wrong => f.write_str("no unlock slot of the store opens with this passphrase or key file"),
        }
    }
}

impl std::error::Error for CredentialError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } | Self::Program { source, .. } | Self::NoTerminal { source } => {
                Some(source)
            }
            Self::Several
            | Self::Exposed { .. }
            | Self::NotAFile { .. }
            | Self::Empty
            | Self::TooLong
            | Self::TooShort { .. }
            | Self::ProgramFailed { .. }
            | Self::Mismatch
            | Self::Wrong => None,
        }
    }
}

impl CredentialArgs {
    /// Reads the secret from where the arguments say, else from systemd's credentials, else from the terminal.
    pub fn read(&self, asking: Asking) -> Result<SecretInput, CredentialError> {
        self.read_with(asking, std::env::var_os("CREDENTIALS_DIRECTORY").as_deref())
    }

    fn read_with(&self, asking: Asking, credentials: Option<&OsStr>) -> Result<SecretInput, CredentialError> {
        match (&self.key_file, &self.passphrase_file, self.extpass.as_slice()) {
            (Some(path), None, []) => key_file(path, Trust::Owner).map(SecretInput::KeyFile),
            (None, Some(path), []) => {
                let secret = if path == Path::new("-") { from_stdin()? } else { from_file(path, Trust::Owner)? };
                passphrase(secret).map(SecretInput::Passphrase)
            }
            (None, None, [_, ..]) => from_program(&self.extpass).and_then(passphrase).map(SecretInput::Passphrase),
            (None, None, []) => match credentials.and_then(systemd_credential) {
                Some(secret) => secret,
                None => from_terminal(asking).map(SecretInput::Passphrase),
            },
            (_, _, _) => Err(CredentialError::Several),
        }
    }
}

/// Who vouches for a file's secrecy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Its mode.
    Owner,
    /// The directory that systemd made for the service. With `User=` its files carry an ACL, whose mask shows as
    /// group bits.
    Systemd,
}

fn systemd_credential(directory: &OsStr) -> Option<Result<SecretInput, CredentialError>> {
    let directory = Path::new(directory);
    let (key, words) = (directory.join(KEY_CREDENTIAL), directory.join(PASSPHRASE_CREDENTIAL));
    if key.exists() {
        Some(key_file(&key, Trust::Systemd).map(SecretInput::KeyFile))
    } else if words.exists() {
        Some(from_file(&words, Trust::Systemd).and_then(passphrase).map(SecretInput::Passphrase))
    } else {
        None
    }
}

fn key_file(path: &Path, trust: Trust) -> Result<SecretBytes, CredentialError> {
    let secret = from_file(path, trust)?;
    if secret.expose().len() < MIN_KEY_BYTES {
        return Err(CredentialError::TooShort { path: path.to_owned() });
    }
    Ok(secret)
}

fn from_file(path: &Path, trust: Trust) -> Result<SecretBytes, CredentialError> {
    let unreadable = |source| CredentialError::Unreadable { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(unreadable)?;
    let stat = file.metadata().map_err(unreadable)?;
    let kind = stat.file_type();
    if kind.is_file() {
        if trust == Trust::Owner && stat.mode() & 0o066 != 0 {
            return Err(CredentialError::Exposed { path: path.to_owned(), mode: stat.mode() & 0o7777 });
        }
    } else if !kind.is_fifo() && !kind.is_socket() && !kind.is_char_device() {
        return Err(CredentialError::NotAFile { path: path.to_owned() });
    }
    bounded(&mut file).map_err(unreadable)?.ok_or(CredentialError::TooLong)
}

fn from_stdin() -> Result<SecretBytes, CredentialError> {
    // The descriptor itself: std's Stdin would keep a copy in its buffer.
    let unreadable = |source| CredentialError::Unreadable { path: PathBuf::from("standard input"), source };
    let mut stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from).map_err(unreadable)?;
    bounded(&mut stdin).map_err(unreadable)?.ok_or(CredentialError::TooLong)
}

/// Runs the program, without a shell; its standard output is the passphrase.
fn from_program(words: &[String]) -> Result<SecretBytes, CredentialError> {
    let argv: Vec<&str> = match words {
        [one] => one.split_whitespace().collect(),
        several => several.iter().map(String::as_str).collect(),
    };
    let (program, arguments) = argv.split_first().ok_or(CredentialError::Empty)?;
    let unusable = |source| CredentialError::Program { program: (*program).to_owned(), source };
    let mut child = Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().map_err(unusable)?;
    let secret = match child.stdout.take() {
        Some(mut output) => bounded(&mut output),
        None => Ok(None),
    };
    let status = child.wait().map_err(unusable)?;
    match secret.map_err(unusable)? {
        None => Err(CredentialError::TooLong),
        Some(_) if !status.success() => Err(CredentialError::ProgramFailed { program: (*program).to_owned() }),
        Some(secret) => Ok(secret),
    }
}

fn from_terminal(asking: Asking) -> Result<SecretBytes, CredentialError> {
    let ask = |prompt: &str| {
        rpassword::prompt_password(prompt)
            .map(|text| SecretBytes::new(text.into_bytes()))
            .map_err(|source| CredentialError::NoTerminal { source })
    };
    let first = ask(if asking == Asking::New { "New passphrase: " } else { "Passphrase: " })?;
    if asking == Asking::New && !equal(first.expose(), ask("The same again: ")?.expose()) {
        return Err(CredentialError::Mismatch);
    }
    if first.expose().is_empty() { Err(CredentialError::Empty) } else { Ok(first) }
}

/// All that the source gives, none if that passes what a credential may have, a last newline included.
fn bounded(source: &mut dyn Read) -> io::Result<Option<SecretBytes>> {
    let mut buffer = vec![0; MAX_BYTES + 2];
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match source.read(room) {
            Ok(0) => {
                buffer.truncate(filled);
                return Ok(Some(SecretBytes::new(buffer)));
            }
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                drop(SecretBytes::new(buffer));
                return Err(error);
            }
        }
    }
    drop(SecretBytes::new(buffer));
    Ok(None)
}

/// A passphrase without the newline that ends its file.
fn passphrase(secret: SecretBytes) -> Result<SecretBytes, CredentialError> {
    let stripped = secret.expose().strip_suffix(b"\n").unwrap_or(secret.expose());
    match stripped.len() {
        0 => Err(CredentialError::Empty),
        n if n > MAX_BYTES => Err(CredentialError::TooLong),
        n if n == secret.expose().len() => Ok(secret),
        _ => Ok(SecretBytes::new(stripped.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    struct TempDir(PathBuf);

    impl TempDir {
        fn new() -> Self {
            let name = format!("kmsfs-credentials-{:032x}", u128::from_le_bytes(crate::crypto::random().unwrap()));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, mode: u32, content: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            let mut file = File::options().create_new(true).write(true).mode(0o600).open(&path).unwrap();
            file.write_all(content).unwrap();
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn words(input: Result<SecretInput, CredentialError>) -> Vec<u8> {
        match input.unwrap() {
            SecretInput::Passphrase(secret) => secret.expose().to_vec(),
            SecretInput::KeyFile(_) => panic!("a key file"),
        }
    }

    fn passphrase_file(path: PathBuf) -> CredentialArgs {
        CredentialArgs { passphrase_file: Some(path), ..CredentialArgs::default() }
    }

    fn extpass(argv: &[&str]) -> CredentialArgs {
        CredentialArgs { extpass: argv.iter().map(|&a| a.to_owned()).collect(), ..CredentialArgs::default() }
    }

    #[test]
    fn one_newline_at_the_end_does_not_count() {
        let dir = TempDir::new();
        for (name, content, secret) in
            [("a", &b"pass word\n"[..], &b"pass word"[..]), ("b", b"pass\n\n", b"pass\n"), ("c", b"pass\r", b"pass\r")]
        {
            let args = passphrase_file(dir.file(name, 0o600, content));
            assert_eq!(words(args.read_with(Asking::New, None)), secret);
        }
    }

    #[test]
    fn files_that_others_can_reach_are_refused() {
        let dir = TempDir::new();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644, 0o666] {
            let path = dir.file(&format!("{mode:o}"), mode, &[b'k'; 64]);
            for args in [
                passphrase_file(path.clone()),
                CredentialArgs { key_file: Some(path.clone()), ..CredentialArgs::default() },
            ] {
                let error = args.read_with(Asking::Existing, None).unwrap_err();
                assert!(matches!(error, CredentialError::Exposed { mode: found, .. } if found == mode), "{error}");
            }
        }
        for mode in [0o400, 0o600, 0o700] {
            let args = passphrase_file(dir.file(&format!("{mode:o}"), mode, b"x"));
            assert_eq!(words(args.read_with(Asking::Existing, None)), b"x");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let dir = TempDir::new();
        let read = |name: &str, len: usize| {
            let path = dir.file(name, 0o600, &vec![b'x'; len]);
            let key = CredentialArgs { key_file: Some(path.clone()), ..CredentialArgs::default() };
            (passphrase_file(path).read_with(Asking::New, None), key.read_with(Asking::New, None))
        };
        assert!(matches!(read("none", 0), (Err(CredentialError::Empty), Err(CredentialError::TooShort { .. }))));
        assert!(matches!(read("31", 31), (Ok(_), Err(CredentialError::TooShort { .. }))));
        assert!(matches!(read("32", 32), (Ok(_), Ok(SecretInput::KeyFile(_)))));
        assert!(matches!(read("4096", 4096), (Ok(_), Ok(_))));
        assert!(matches!(read("4097", 4097).0, Err(CredentialError::TooLong)));
        assert!(matches!(read("endless", 100_000), (Err(CredentialError::TooLong), Err(CredentialError::TooLong))));
    }

    #[test]
    fn a_program_runs_without_a_shell() {
        assert_eq!(words(extpass(&["echo  a $HOME;b"]).read_with(Asking::Existing, None)), b"a $HOME;b");
        assert_eq!(words(extpass(&["printf", "%s", "two words"]).read_with(Asking::Existing, None)), b"two words");
        let failing = extpass(&["sh", "-c", "echo secret; exit 3"]).read_with(Asking::Existing, None);
        assert!(matches!(failing, Err(CredentialError::ProgramFailed { .. })));
        let absent = extpass(&["/nonexistent/program"]).read_with(Asking::Existing, None);
        assert!(matches!(absent, Err(CredentialError::Program { .. })));
    }

    #[test]
    fn sources_exclude_one_another() {
        let dir = TempDir::new();
        let path = dir.file("k", 0o600, &[1; 32]);
        let both = CredentialArgs { key_file: Some(path.clone()), ..passphrase_file(path) };
        assert!(matches!(both.read_with(Asking::Existing, None), Err(CredentialError::Several)));
    }

    #[test]
    fn systemd_credentials_are_found_and_an_option_goes_before_them() {
        let dir = TempDir::new();
        dir.file(PASSPHRASE_CREDENTIAL, 0o440, b"from systemd\n");
        let from = |args: &CredentialArgs| args.read_with(Asking::Existing, Some(dir.0.as_os_str()));
        assert_eq!(words(from(&CredentialArgs::default())), b"from systemd");
        assert_eq!(words(from(&extpass(&["echo x"]))), b"x");
        dir.file(KEY_CREDENTIAL, 0o440, &[5; 32]);
        assert!(matches!(from(&CredentialArgs::default()), Ok(SecretInput::KeyFile(_))));
    }
}
