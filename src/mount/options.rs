//! The text after `-o`, as mount(8), fstab(5) and users write it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// How to mount, and where the store's credential comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent options, each with a name")]
pub struct MountOptions {
    pub read_only: bool,
    pub no_exec: bool,
    /// Let others than the mounting user in; the default for root, whom alone the kernel lets others trust.
    pub allow_other: bool,
    /// List `.kms` at the root.
    pub show_kms: bool,
    /// Stay in the foreground and log to standard error.
    pub foreground: bool,
    pub log_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub passphrase_file: Option<PathBuf>,
    /// A program that prints the passphrase.
    pub extpass: Option<OsString>,
    /// Where the host's anchors are, if not in the default place.
    pub anchor: Option<PathBuf>,
    /// What findmnt shows as the source: the store's path.
    pub source: OsString,
}

/// Why an option was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionError {
    /// `dev` or `suid`: what lies in a store could then become root.
    AlwaysOff(&'static str),
    Unknown(String),
    NeedsValue(String),
    TakesNoValue(String),
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlwaysOff(name) => {
                write!(f, "option '{name}' is refused: the mount is always nosuid,nodev")
            }
            Self::Unknown(name) => write!(f, "unknown mount option '{name}'"),
            Self::NeedsValue(name) => write!(f, "mount option '{name}' needs a value"),
            Self::TakesNoValue(name) => write!(f, "mount option '{name}' takes no value"),
        }
    }
}

impl std::error::Error for OptionError {}

/// Who wrote the options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Author {
    /// A user, on the command line or in fstab.
    User,
    /// mount.fuse(8), which adds `dev,suid` of its own accord for root: these are then ignored.
    FuseHelper,
}

/// What mount(8) hands on although it concerns mount(8) alone, or says what is so anyway.
const IGNORED: [&str; 25] = [
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "diratime",
    "exec",
    "group",
    "iversion",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "owner",
    "relatime",
    "strictatime",
    "user",
    "users",
    "_netdev",
    "_rnetdev",
];

impl MountOptions {
    /// For a mount of `source` (the store's path) by the user that this process is, before any option.
    pub fn new(source: impl Into<OsString>) -> Self {
        Self { allow_other: rustix::process::geteuid().is_root(), source: source.into(), ..Self::default() }
    }

    /// Takes options over, separated by commas; a backslash takes a comma, or itself, into a value. Of two that
    /// contradict each other the later counts.
    pub fn parse(&mut self, text: &OsStr, author: Author) -> Result<(), OptionError> {
        split(text.as_bytes()).into_iter().filter(|option| !option.is_empty()).try_for_each(|option| {
            let mut halves = option.splitn(2, |byte| *byte == b'=');
            let name = String::from_utf8_lossy(halves.next().unwrap_or_default()).into_owned();
            self.set(&name, halves.next().map(OsStr::from_bytes), author)
        })
    }

    /// Makes all paths independent of the working directory, which a daemon leaves.
    pub fn make_paths_absolute(&mut self) -> io::Result<()> {
        let paths = [&mut self.log_file, &mut self.key_file, &mut self.passphrase_file, &mut self.anchor];
        for path in paths.into_iter().flatten() {
            *path = std::path::absolute(&*path)?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: Option<&OsStr>, author: Author) -> Result<(), OptionError> {
        if name.starts_with("x-") || name.starts_with("X-") || name == "comment" {
            return Ok(());
        }
        let needed = || match value {
            Some(value) if !value.is_empty() => Ok(value.to_owned()),
            Some(_) | None => Err(OptionError::NeedsValue(name.to_owned())),
        };
        match name {
            "key-file" => self.key_file = Some(needed()?.into()),
            "passphrase-file" => self.passphrase_file = Some(needed()?.into()),
            "extpass" => self.extpass = Some(needed()?),
            "anchor" => self.anchor = Some(needed()?.into()),
            "log-file" => self.log_file = Some(needed()?.into()),
            _ if value.is_some() => {
                let known = self.clone().set_flag(name, author).is_ok();
                let name = name.to_owned();
                return Err(if known { OptionError::TakesNoValue(name) } else { OptionError::Unknown(name) });
            }
            _ => self.set_flag(name, author)?,
        }
        Ok(())
    }

    fn set_flag(&mut self, name: &str, author: Author) -> Result<(), OptionError> {
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "exec" => self.no_exec = false,
            "noexec" => self.no_exec = true,
            "allow_other" => self.allow_other = true,
            "show-kms" => self.show_kms = true,
            "foreground" => self.foreground = true,
            "dev" | "suid" if author == Author::FuseHelper => {}
            "dev" => return Err(OptionError::AlwaysOff("dev")),
            "suid" => return Err(OptionError::AlwaysOff("suid")),
            _ if IGNORED.contains(&name) => {}
            _ => return Err(OptionError::Unknown(name.to_owned())),
        }
        Ok(())
    }
}

/// Cuts at commas that no backslash stands before.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut options = vec![Vec::new()];
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte == b',' {
            options.push(Vec::new());
        } else if let Some(option) = options.last_mut() {
            option.push(if byte == b'\\' { bytes.next().unwrap_or(b'\\') } else { byte });
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::new("/srv/store");
        options.parse(OsStr::new(text), Author::User)?;
        Ok(options)
    }

    #[test]
    fn an_fstab_line_is_understood() {
        let options = parsed(
            "rw,noauto,user,_netdev,nofail,x-systemd.requires=a\\,b,key-file=/etc/k\\,1,log-file=/var/log/k,ro,show-kms,",
        )
        .unwrap();
        assert!(options.read_only && options.show_kms && !options.foreground);
        assert_eq!(options.key_file, Some("/etc/k,1".into()));
        assert_eq!(options.log_file, Some("/var/log/k".into()));
        assert_eq!(options.source, "/srv/store");
    }

    #[test]
    fn paths_do_not_depend_on_the_directory() {
        let mut options = parsed("key-file=k,log-file=/l").unwrap();
        options.make_paths_absolute().unwrap();
        assert_eq!(options.key_file, Some(std::env::current_dir().unwrap().join("k")));
        assert_eq!((options.log_file, options.anchor), (Some("/l".into()), None));
    }

    #[test]
    fn nothing_but_the_default_without_options() {
        assert_eq!(parsed(""), Ok(MountOptions::new("/srv/store")));
        assert_eq!(parsed("defaults"), parsed(""));
    }

    #[test]
    fn root_lets_others_in_by_default() {
        assert_eq!(parsed("").unwrap().allow_other, rustix::process::geteuid().is_root());
    }

    #[test]
    fn the_later_of_two_counts() {
        assert!(!parsed("ro,rw,noexec,exec").unwrap().read_only);
        assert!(!parsed("noexec,exec").unwrap().no_exec);
        assert!(parsed("exec,noexec").unwrap().no_exec);
    }

    #[test]
    fn devices_and_set_user_id_are_refused_unless_the_helper_adds_them() {
        assert_eq!(parsed("dev"), Err(OptionError::AlwaysOff("dev")));
        assert_eq!(parsed("ro,suid"), Err(OptionError::AlwaysOff("suid")));
        let mut options = MountOptions::new("/s");
        assert_eq!(options.parse(OsStr::new("rw,dev,suid"), Author::FuseHelper), Ok(()));
    }

    #[test]
    fn what_is_unknown_is_refused_by_its_name() {
        for (text, error) in [
            ("ro,no-such", OptionError::Unknown("no-such".to_owned())),
            ("keyfile=/k", OptionError::Unknown("keyfile".to_owned())),
            ("remount", OptionError::Unknown("remount".to_owned())),
            ("key-file", OptionError::NeedsValue("key-file".to_owned())),
            ("key-file=", OptionError::NeedsValue("key-file".to_owned())),
            ("ro=1", OptionError::TakesNoValue("ro".to_owned())),
        ] {
            assert_eq!(parsed(text), Err(error.clone()), "{text}");
            assert!(
                error.to_string().contains(text.split([',', '=']).next_back().unwrap_or_default())
                    || text.contains('=')
            );
        }
        assert!(parsed("\u{fffd}").is_err());
    }

    #[test]
    fn a_backslash_at_the_end_is_itself() {
        assert_eq!(parsed(r"key-file=/a\").unwrap().key_file, Some(r"/a\".into()));
        assert_eq!(parsed(r"key-file=/a\\b").unwrap().key_file, Some(r"/a\b".into()));
    }
}
