//! The command line: its words, its options and its help texts. Nothing here does anything.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::exit::CliError;
use super::principal::principal;
use crate::policy::PForm;
use crate::types::Encryption;

const EXAMPLES: &str = "\
Examples:
  kmsfs init /srv/store                         make a store; asks for a passphrase, twice
  kmsfs mount /srv/store /mnt/kms               serve it
  export KMSFS_AT=/mnt/kms
  kmsfs table create orders --user alice        a table, a key of the same name, alice its user
  kmsfs why /mnt/kms/orders/1001.json           may I read it, and why (not)?
  kmsfs policy get orders > p.json; $EDITOR p.json; kmsfs policy put orders p.json

The same with a shell alone:
  mkdir /mnt/kms/orders
  $EDITOR /mnt/kms/.kms/keys/orders/policy.json
  cat /mnt/kms/.kms/why/orders/1001.json

Exit codes: 0 done, 1 failed, 2 usage, 3 denied, 4 credential, 5 busy, 6 integrity, 7 not found, 8 no FUSE.";

/// Encrypted tables as folders: items that only the key users of a key policy can read.
///
/// A store holds ciphertext. Mounted, each table is a folder and each item a file in it; whether a caller may read
/// or write one is decided twice: by Unix (owner, group, mode) and by the policy of the table's key, which an
/// administrator edits as a file, MOUNT/.kms/keys/NAME/policy.json.
#[derive(Debug, Parser)]
#[command(name = "kmsfs", version, after_help = EXAMPLES, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// A mount, or an unmounted store, to work on (else $KMSFS_AT).
    ///
    /// On a mount the daemon decides what you may do, by your uid. An unmounted store takes its credential and, for a
    /// change, --reason: whoever has the credential is its custodian.
    #[arg(long, global = true, value_name = "PATH")]
    pub at: Option<PathBuf>,

    /// Print JSON, one document.
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a store.
    ///
    /// A store is a directory of ciphertext. Whoever makes it administers it; what opens it later is the passphrase or
    /// the key file that is given now. Nobody can recover a store whose last passphrase or key file is lost.
    Init(InitArgs),

    /// Serve a store at a mount point; returns when the mount answers, or says in one line why it does not.
    Mount(MountArgs),

    /// Unmount; returns when the daemon has written everything and is gone.
    ///
    /// The mount of a killed daemon is cleared away. As root through umount(2), else through fusermount3.
    Umount(UmountArgs),

    /// Make, list and describe keys, and say who may use them.
    Key(KeyArgs),

    /// Make, list and describe tables.
    Table(TableArgs),

    /// Read, check and replace the policy of a key, or of the store.
    Policy(PolicyArgs),

    /// Give somebody operations of a key beside its policy, for a while or for some items; list, revoke, retire that.
    Grant(GrantArgs),
    /// Seal bytes under a key: up to 4,096 in the daemon, more as a stream under a data key.
    ///
    /// What comes out says by itself which key opens it, and opens in the same --context alone. Give --context the words
    /// that say what the bytes are: a policy can test them, and the audit trail has them.
    Encrypt(EncryptArgs),

    /// Open what `encrypt` sealed. Nothing is printed that has not verified.
    ///
    /// The key is found from the ciphertext. A stream from a file is verified whole before its first byte is printed; of
    /// one from a pipe the first 16 MiB are held back until they have verified, and what follows is printed segment by
    /// segment, each verified: with an exit code other than 0 what was printed is not all.
    Decrypt(DecryptArgs),

    /// Seal a ciphertext anew under another key, another context or the newest material; the plaintext stays in the
    /// daemon. Of a stream the data key is sealed anew, and the rest is copied as it is.
    ReEncrypt(ReEncryptArgs),

    /// Print a new random key, in plain and sealed under a key, in base 64.
    GenerateDataKey(DataKeyArgs),

    /// Say why you may or may not decrypt an item.
    ///
    /// Prints the deciding statement, the key's state or what is missing. Exit code 0: allowed, 3: denied.
    Why(WhyArgs),

    /// Read and verify the audit trail.
    Audit(AuditArgs),

    /// Manage what opens an unmounted store: more than one passphrase or key file.
    Slot(SlotArgs),

    /// This host's memory of the newest state of a store.
    Anchor(AnchorArgs),

    /// List the mounts of this machine, or describe one (--at).
    Status,

    /// Take the host's clock for right, though it is behind what the store has seen.
    ///
    /// A store's time never goes back, so that a clock set back revives nothing that has expired. After a clock that was
    /// ahead by mistake this is the remedy. It stands in the audit trail.
    ResetClock(ResetClockArgs),
}

/// `NAME=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("a pair of the context is NAME=VALUE".to_owned()),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tar c /srv/www | kmsfs encrypt backup --context what=www --context host=$HOSTNAME > www.tar.kmsfs
  kmsfs encrypt backup --context what=token < token > token.kmsfs")]
pub struct EncryptArgs {
    /// The key.
    pub key: String,
    /// What to seal; without it, and for '-', standard input.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A pair of the encryption context. Again for each.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub context: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kmsfs decrypt --context what=www --context host=web1 www.tar.kmsfs | tar x
  kmsfs decrypt --key backup --context what=token token.kmsfs")]
pub struct DecryptArgs {
    /// What to open; without it, and for '-', standard input.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A pair of the encryption context: all of those that were given to `encrypt`. Again for each.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub context: Vec<(String, String)>,
    /// Open what this key has sealed, and nothing else.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kmsfs re-encrypt --to backup2 --context what=www --to-context what=www www.tar.kmsfs > www2.tar.kmsfs")]
pub struct ReEncryptArgs {
    /// What to seal anew; without it, and for '-', standard input.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The key that opens the result.
    #[arg(long, value_name = "KEY")]
    pub to: String,
    /// A pair of the context in which it was sealed. Again for each.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub context: Vec<(String, String)>,
    /// A pair of the context of the result, which has none unless it is given here. Again for each.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub to_context: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kmsfs --json generate-data-key backup --context what=disk | jq -r .CiphertextBlob > disk.key.sealed
  base64 -d disk.key.sealed | kmsfs decrypt --context what=disk | cryptsetup open /dev/sdb1 disk -d -")]
pub struct DataKeyArgs {
    /// The key.
    pub key: String,
    /// A pair of the encryption context. Again for each.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub context: Vec<(String, String)>,
    /// Bytes that it has: 1 to 1024.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub bytes: Option<u32>,
    /// Give the sealed form alone.
    #[arg(long)]
    pub without_plaintext: bool,
}

/// Where the secret that opens a store comes from. None of them given: the systemd credential `kmsfs.passphrase` or
/// `kmsfs.key`, if there is one, else the terminal is asked.
#[derive(Debug, Default, Clone, Args)]
pub struct CredentialArgs {
    /// A key file: 32 to 4096 random bytes, which nobody else can read.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Credential")]
    pub key_file: Option<PathBuf>,

    /// A file that holds the passphrase, which nobody else can read; '-' is standard input. One newline at its end
    /// does not count.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Credential")]
    pub passphrase_file: Option<PathBuf>,

    /// A program that prints the passphrase. Given once it is split at spaces; given several times each is one
    /// argument. There is no shell in between.
    #[arg(long, global = true, value_name = "PROGRAM", help_heading = "Credential", allow_hyphen_values = true)]
    pub extpass: Vec<String>,
}

/// What an unmounted store wants to know besides its credential.
#[derive(Debug, Default, Clone, Args)]
pub struct OfflineArgs {
    #[command(flatten)]
    pub credential: CredentialArgs,

    /// Why you change an unmounted store; it stands in the audit trail.
    #[arg(long, global = true, value_name = "TEXT", help_heading = "Unmounted store")]
    pub reason: Option<String>,

    /// Where this host keeps the newest state it saw of each store (else $KMSFS_ANCHOR, else /var/lib/kmsfs).
    #[arg(long, global = true, value_name = "DIR", help_heading = "Unmounted store")]
    pub anchor: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kmsfs init /srv/store                         asks for a passphrase, twice
  (umask 077; head -c 64 /dev/urandom > k); kmsfs init /srv/store --key-file k")]
pub struct InitArgs {
    /// The directory to make; it may exist if it is empty.
    #[arg(value_name = "STORE")]
    pub store: PathBuf,

    #[command(flatten)]
    pub credential: CredentialArgs,

    /// Make a store that is not for use: its clock may be moved by $KMSFS_TEST_CLOCK, a file that holds seconds.
    #[arg(long, hide = true)]
    pub for_tests: bool,

    /// What the first unlock slot is called.
    #[arg(long, value_name = "TEXT", default_value = "first")]
    pub label: String,

    /// Memory that each try of a passphrase takes, in MiB: 64 to 2048.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=2048))]
    pub kdf_memory: u32,

    /// Where this host keeps the newest state it saw of each store (else $KMSFS_ANCHOR, else /var/lib/kmsfs).
    #[arg(long, value_name = "DIR")]
    pub anchor: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kmsfs mount /srv/store /mnt/kms
  kmsfs mount /srv/store /mnt/kms --key-file /etc/kmsfs/key --log-file /var/log/kmsfs.log
  /srv/store  /mnt/kms  fuse.kmsfs  key-file=/etc/kmsfs/key,nofail  0 0        (a line of /etc/fstab)

Options of -o: key-file=F, passphrase-file=F, extpass=PROGRAM, ro, show-kms, anchor=DIR, log-file=F; those that only
mount(8) and systemd mean (nofail, noauto, _netdev, x-...) are passed over. A mount is always nosuid and nodev.")]
pub struct MountArgs {
    /// The store.
    #[arg(value_name = "STORE")]
    pub store: PathBuf,

    /// Where to mount it: an empty directory, best an immutable one (chattr +i), so that nothing is written there in
    /// clear while the store is not mounted.
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,

    #[command(flatten)]
    pub credential: CredentialArgs,

    /// Stay in the foreground, log to standard error.
    #[arg(long, short = 'f')]
    pub foreground: bool,

    /// Options as in fstab, separated by commas.
    #[arg(short = 'o', value_name = "OPTS")]
    pub options: Vec<String>,

    /// Serve the store without writing to it.
    #[arg(long)]
    pub read_only: bool,

    /// Log to this file, not to syslog. What is logged, $RUST_LOG says (default: info).
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// Where this host keeps the newest state it saw of each store (else $KMSFS_ANCHOR, else /var/lib/kmsfs).
    #[arg(long, value_name = "DIR")]
    pub anchor: Option<PathBuf>,
}

/// `mount.kmsfs STORE MOUNTPOINT [-sfnv] [-N NS] [-o OPTS] [-t TYPE]`, as mount(8) calls it.
///
/// fstab: /srv/store /mnt/kms fuse.kmsfs key-file=/etc/kmsfs/key,nofail 0 0
#[derive(Debug, Parser)]
#[command(name = "mount.kmsfs", version, max_term_width = 100)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of mount(8)")]
pub struct MountHelper {
    #[arg(value_name = "STORE")]
    pub store: PathBuf,
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
    /// Options, separated by commas.
    #[arg(short = 'o', value_name = "OPTS")]
    pub options: Vec<String>,
    /// Pass over unknown options.
    #[arg(short = 's')]
    pub sloppy: bool,
    /// Do everything but the mount.
    #[arg(short = 'f')]
    pub fake: bool,
    /// Accepted: there is no mtab to leave alone.
    #[arg(short = 'n')]
    pub no_mtab: bool,
    /// Say what is done.
    #[arg(short = 'v')]
    pub verbose: bool,
    /// Not supported: mount(8) enters the namespace itself.
    #[arg(short = 'N', value_name = "NS")]
    pub namespace: Option<PathBuf>,
    /// The type by which mount(8) was called.
    #[arg(short = 't', value_name = "TYPE")]
    pub kind: Option<String>,
}

#[derive(Debug, Args)]
pub struct ResetClockArgs {
    #[command(flatten)]
    pub offline: OfflineArgs,
}

#[derive(Debug, Args)]
pub struct UmountArgs {
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "P is a Unix user name, uid:N, group:NAME or gid:N.

Examples:
  kmsfs --at /mnt/kms key create orders --admin carol --user alice --user group:finance
  kmsfs --at /mnt/kms key add-user orders bob
  kmsfs --at /mnt/kms key schedule-deletion orders --days 7 --confirm orders
  kmsfs --at /srv/store key add-user orders dora --key-file k --reason 'the last administrator left'")]
pub struct KeyArgs {
    #[command(flatten)]
    pub offline: OfflineArgs,
    #[command(subcommand)]
    pub command: KeyCommand,
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key. Without --admin you administer it.
    Create {
        /// What it is called.
        name: String,
        /// May edit the policy, not decrypt. Again for each.
        #[arg(long = "admin", value_name = "P", value_parser = principal)]
        admins: Vec<PForm>,
        /// May encrypt and decrypt. Again for each.
        #[arg(long = "user", value_name = "P", value_parser = principal)]
        users: Vec<PForm>,
        /// What it is for.
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// List the keys that you may list.
    List,
    /// Print what AWS calls DescribeKey.
    Describe {
        /// The key.
        name: String,
    },
    /// Print what remains of a destroyed key: what was destroyed, when, by whose order. The audit trail has the SHA-256 of
    /// these bytes.
    Receipt {
        /// The key.
        name: String,
    },
    #[command(flatten)]
    Change(KeyChange),
    /// Say which versions of the key's material are in use, by which tables, for how many items.
    Status {
        /// The key.
        name: String,
    },
}

/// What changes a key: each is one line for its `ctl`.
#[derive(Debug, Subcommand)]
pub enum KeyChange {
    /// Let them encrypt and decrypt with the key: adds them to the policy's statement 'Key users'.
    AddUser {
        /// The key.
        name: String,
        /// A user name, uid:N, group:NAME or gid:N.
        #[arg(value_name = "P", required = true, value_parser = principal)]
        principals: Vec<PForm>,
    },
    /// Drop the versions of the key's material that no table needs any more, for ever.
    ///
    /// What `kmsfs encrypt` has made under them can then never be decrypted: the daemon cannot know of it, so that the
    /// key's name is asked for again.
    RetireVersions {
        /// The key.
        name: String,
        /// The key's name again. Without it, says what would be dropped.
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
    /// Take them out of the policy's statement 'Key users'; files that they have open stop being readable.
    RemoveUser {
        /// The key.
        name: String,
        /// A user name, uid:N, group:NAME or gid:N.
        #[arg(value_name = "P", required = true, value_parser = principal)]
        principals: Vec<PForm>,
    },
    /// Let a key be used again that was disabled, or whose deletion was called off.
    Enable {
        /// The key.
        name: String,
    },
    /// Let nobody use the key, whatever its policy says, until it is enabled; files that are open stop being readable.
    Disable {
        /// The key.
        name: String,
    },
    /// Make new material for the key. What there is stays readable; new tables use it.
    Rotate {
        /// The key.
        name: String,
    },
    /// Rotate the key every so many days by itself, or no longer.
    AutoRotate {
        /// The key.
        name: String,
        /// 90 to 2560, or 'off'; a year, if nothing is said.
        #[arg(value_name = "DAYS|off", value_parser = rotation_period)]
        days: Option<String>,
    },
    /// Have the key destroyed after 7 to 30 days, and with it everything that is encrypted under it.
    ///
    /// Without --confirm it only says what would become unreadable. Until the window has passed, cancel-deletion calls it
    /// off. Days count in which the store is served; a time in which it is not counts for a day at most.
    ScheduleDeletion {
        /// The key.
        name: String,
        /// Days until then.
        #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(7..=30))]
        days: u32,
        /// The key's name once more.
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
    /// Call the key's deletion off. The key is disabled then.
    CancelDeletion {
        /// The key.
        name: String,
    },
    /// Count the time in which the store was not served towards the key's deletion; without --confirm only say how much.
    ConfirmElapsed {
        /// The key.
        name: String,
        /// The key's name once more.
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
    /// Say what would become unreadable with the key.
    BlastRadius {
        /// The key.
        name: String,
    },
    /// Give the key another name; its tables stay its own.
    Rename {
        /// The key.
        name: String,
        /// What it is to be called.
        #[arg(value_name = "NEW-NAME")]
        new_name: String,
    },
    /// Say what the key is for.
    SetDescription {
        /// The key.
        name: String,
        /// One line.
        #[arg(value_name = "TEXT")]
        text: String,
    },
}

/// `off`, or a number of days, which the daemon judges.
fn rotation_period(text: &str) -> Result<String, String> {
    if text == "off" || text.parse::<u32>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("a number of days, or 'off'".to_owned())
}

/// The three kinds of encryption, as words of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EncryptionName {
    /// The store's own key: no policy; Unix alone decides.
    Owned,
    /// The key kmsfs-managed: its policy is fixed, its use is audited.
    Managed,
    /// A key of yours, with its policy.
    Customer,
}

impl From<EncryptionName> for Encryption {
    fn from(name: EncryptionName) -> Self {
        match name {
            EncryptionName::Owned => Self::Owned,
            EncryptionName::Managed => Self::Managed,
            EncryptionName::Customer => Self::Customer,
        }
    }
}

impl EncryptionName {
    /// The word, as the control tree takes it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Owned => "owned",
            Self::Managed => "managed",
            Self::Customer => "customer",
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "P is a Unix user name, uid:N, group:NAME or gid:N.

Examples:
  kmsfs --at /mnt/kms table create orders --user alice --group finance --mode 2770
  kmsfs --at /mnt/kms table create scratch --encryption owned
  kmsfs --at /mnt/kms table create returns --key orders       (a second table under the same key)
  kmsfs --at /mnt/kms table set orders --cache none
  kmsfs --at /mnt/kms table use-key returns returns-2027
  kmsfs --at /mnt/kms table re-encrypt orders")]
pub struct TableArgs {
    #[command(flatten)]
    pub offline: OfflineArgs,
    #[command(subcommand)]
    pub command: TableCommand,
}

#[derive(Debug, Subcommand)]
pub enum TableCommand {
    /// Make a table: a folder at the root of the mount, with an encryption of its own.
    Create(TableCreateArgs),
    /// List the tables that you may list.
    List,
    /// Print a table's encryption, key and settings.
    Describe {
        /// The table.
        name: String,
    },
    #[command(flatten)]
    Change(TableChange),
    /// Give a table a new table key, and have the daemon rewrite its items under it, while they are in use.
    ///
    /// Shows how far it is. Ctrl-C stops the work, and the same command goes on with it; the daemon goes on by itself
    /// after a crash or a remount, and when nobody watches any more.
    ReEncrypt {
        /// The table.
        name: String,
        /// Give the order and do not wait.
        #[arg(long, conflicts_with_all = ["stop", "show"])]
        no_wait: bool,
        /// Stop the work.
        #[arg(long, conflicts_with = "show")]
        stop: bool,
        /// Say how far it is.
        #[arg(long)]
        show: bool,
    },
}

/// What changes a table: each is one line for its `ctl`.
#[derive(Debug, Subcommand)]
pub enum TableChange {
    /// Change a table's settings; what is not named stays.
    Set {
        /// The table.
        name: String,
        /// Whether the kernel may cache items in clear.
        #[arg(long, value_enum)]
        cache: Option<CacheName>,
        /// What becomes of an open file that a revoked and a permitted user share.
        #[arg(long, value_enum)]
        on_revoke: Option<OnRevokeName>,
        /// Whether names can be listed without the key.
        #[arg(long, value_enum)]
        names: Option<NamesName>,
    },
    /// Have another key protect a table; its items stay as they are. With the same key: its newest material.
    UseKey {
        /// The table.
        name: String,
        /// The key.
        key: String,
    },
}

/// How the kernel may cache a table's items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheName {
    /// As for any file system.
    Shared,
    /// Not at all: every read is decided.
    None,
}

/// What becomes of an open file that a revoked and a permitted user share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnRevokeName {
    /// The permitted one opens it again.
    Expire,
    /// It stays open, and the revoked one may see what the permitted one reads.
    Tolerate,
}

/// Whether names can be listed without the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NamesName {
    /// By Unix rights alone.
    Open,
    /// By who may decrypt.
    Sealed,
}

#[derive(Debug, Clone, Args)]
pub struct TableCreateArgs {
    /// What it is called.
    pub name: String,
    /// What protects it.
    #[arg(long, value_enum, default_value_t = EncryptionName::Customer)]
    pub encryption: EncryptionName,
    /// An existing key to use; without it a customer table gets a new key of its own name.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// A user of the table's new key. Again for each.
    #[arg(long = "user", value_name = "P", value_parser = principal)]
    pub users: Vec<PForm>,
    /// The folder's owner, a name or a uid.
    #[arg(long, value_name = "U")]
    pub owner: Option<String>,
    /// The folder's group, a name or a gid.
    #[arg(long, value_name = "G")]
    pub group: Option<String>,
    /// The folder's mode, in octal.
    #[arg(long, value_name = "MODE", value_parser = octal_mode)]
    pub mode: Option<u32>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kmsfs --at /mnt/kms policy get orders > p.json
  kmsfs policy check p.json
  kmsfs --at /mnt/kms policy put orders p.json
  jq '...' p.json | kmsfs --at /mnt/kms policy put orders -
  n=$(kmsfs policy get orders --generation); kmsfs policy get orders > p.json
  $EDITOR p.json; kmsfs policy diff orders p.json; kmsfs policy put orders p.json --if-generation $n
  kmsfs --at /mnt/kms policy simulate orders --as bob --action Decrypt --table orders --item 1001.json
  kmsfs --at /mnt/kms policy who-can orders Decrypt --table orders
  kmsfs --at /mnt/kms policy get --store")]
pub struct PolicyArgs {
    #[command(flatten)]
    pub offline: OfflineArgs,
    #[command(subcommand)]
    pub command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print a policy, byte for byte as it was saved.
    Get {
        /// The key.
        #[arg(required_unless_present = "store", conflicts_with = "store")]
        key: Option<String>,
        /// The store's policy: who may make keys and tables, and read the trail.
        #[arg(long)]
        store: bool,
        /// Print the number of its generation instead, for `put --if-generation`.
        #[arg(long)]
        generation: bool,
    },
    /// Replace a policy. What is refused changes nothing; the reason names line and column.
    #[command(
        override_usage = "kmsfs policy put [OPTIONS] <KEY> <FILE>\n       kmsfs policy put [OPTIONS] --store <FILE>"
    )]
    Put {
        /// The key, unless it is --store, and the document; '-' is standard input.
        #[arg(value_name = "KEY FILE", required = true)]
        words: Vec<String>,
        /// The store's policy.
        #[arg(long)]
        store: bool,
        /// Only if this is still its generation (as `get --generation` prints it): no save of somebody else is undone
        /// unseen. Exit code 5: it is not.
        #[arg(long, value_name = "N")]
        if_generation: Option<u64>,
    },
    /// Say what the policy would say to somebody, and which statement, grant or state decides. Exit code 0: allowed, 3:
    /// denied.
    Simulate {
        /// The key.
        #[arg(required_unless_present = "store", conflicts_with = "store")]
        key: Option<String>,
        /// Who would ask: a user name, uid:N, group:NAME or gid:N.
        #[arg(long = "as", value_name = "P", value_parser = principal)]
        who: PForm,
        /// What for: kms:Decrypt, PutKeyPolicy, kmsfs:CreateTable and the like.
        #[arg(long, value_name = "ACTION")]
        action: String,
        #[command(flatten)]
        about: AboutArgs,
    },
    /// List every account that may do something, and why. Unix rights are another question.
    #[command(
        override_usage = "kmsfs policy who-can [OPTIONS] <KEY> <ACTION>\n       kmsfs policy who-can [OPTIONS] --store <ACTION>"
    )]
    WhoCan {
        /// The key, unless it is --store, and what: kms:Decrypt, PutKeyPolicy, kmsfs:CreateTable and the like.
        #[arg(value_name = "KEY ACTION", required = true)]
        words: Vec<String>,
        #[command(flatten)]
        about: AboutArgs,
    },
    /// Say who would gain and who would lose what if a document took the policy's place. Nothing is saved.
    #[command(
        override_usage = "kmsfs policy diff [OPTIONS] <KEY> <FILE>\n       kmsfs policy diff [OPTIONS] --store <FILE>"
    )]
    Diff {
        /// The key, unless it is --store, and the document; '-' is standard input.
        #[arg(value_name = "KEY FILE", required = true)]
        words: Vec<String>,
        /// The store's policy.
        #[arg(long)]
        store: bool,
        /// Compare for this item of each table: a statement that tests the item decides otherwise for another.
        #[arg(long, value_name = "ITEM")]
        item: Option<String>,
    },
    /// Check a file as a save would, without saving it: grammar, actions, operators, names.
    Check {
        /// The document; '-' is standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Resolve a policy's user and group names anew, as after a move to another host.
    Rebind {
        /// The key.
        key: String,
    },
}

/// A key, none with --store, and the word behind it. By hand: an option between the two would make clap take the first
/// for the second.
///
/// # Errors
/// A usage error for too few or too many words.
pub fn key_and_word<'a>(store: bool, words: &'a [String], what: &str) -> Result<(Option<&'a str>, &'a str), CliError> {
    match (store, words) {
        (false, [key, word]) => Ok((Some(key), word)),
        (true, [word]) => Ok((None, word)),
        (false, _) => Err(CliError::usage(format!("give the key, or --store, and {what}"))),
        (true, _) => Err(CliError::usage(format!("--store takes {what} and no key"))),
    }
}

/// What a policy is asked about.
#[derive(Debug, Default, Clone, Args)]
pub struct AboutArgs {
    /// The store's policy.
    #[arg(long)]
    pub store: bool,
    /// An item of this table; without it and the next a direct call, as `kmsfs encrypt` makes it.
    #[arg(long, value_name = "TABLE")]
    pub table: Option<String>,
    /// This item of the table.
    #[arg(long, value_name = "ITEM", requires = "table")]
    pub item: Option<String>,
    /// A pair of the encryption context of a direct call. Again for each.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, conflicts_with = "table")]
    pub context: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[command(after_help = "P is a Unix user name, uid:N, group:NAME or gid:N. A Deny in the policy beats every grant.

Examples:
  kmsfs --at /mnt/kms grant create orders bob --operations Decrypt --table orders --item 1001.json --expires 1h
  kmsfs --at /mnt/kms grant create orders group:audit --operations Decrypt,DescribeKey --name audit-2026
  kmsfs --at /mnt/kms grant list orders
  kmsfs --at /mnt/kms grant revoke orders 0123456789abcdef0123456789abcdef")]
pub struct GrantArgs {
    #[command(flatten)]
    pub offline: OfflineArgs,
    #[command(subcommand)]
    pub command: GrantCommand,
}

#[derive(Debug, Subcommand)]
pub enum GrantCommand {
    /// Make a grant; prints its id.
    Create(Box<GrantCreateArgs>),
    /// List a key's grants.
    List {
        /// The key.
        key: String,
    },
    /// End grants; files that their grantees have open stop being readable.
    Revoke {
        /// The key.
        key: String,
        /// As `grant list` prints them.
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
    /// End a grant that is yours to end: as its retiring principal, or as its grantee if it has RetireGrant.
    Retire {
        /// The key.
        key: String,
        /// The grant.
        #[arg(value_name = "ID")]
        id: String,
    },
}

#[derive(Debug, Clone, Args)]
pub struct GrantCreateArgs {
    /// The key.
    pub key: String,
    /// Who is given them: a user name, uid:N, group:NAME or gid:N.
    #[arg(value_name = "P", value_parser = principal)]
    pub grantee: PForm,
    /// Decrypt, Encrypt, GenerateDataKey, ReEncryptFrom, ReEncryptTo, DescribeKey, CreateGrant, RetireGrant.
    #[arg(long, value_name = "LIST", required = true, value_delimiter = ',')]
    pub operations: Vec<String>,
    /// Only for items of this table.
    #[arg(long, value_name = "TABLE", conflicts_with_all = ["context_equals", "context_subset"])]
    pub table: Option<String>,
    /// Only for this item of it, its path inside of the table.
    #[arg(long, value_name = "ITEM", requires = "table")]
    pub item: Option<std::ffi::OsString>,
    /// Only where the encryption context is just this. Again for each pair.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub context_equals: Vec<(String, String)>,
    /// Only where the encryption context has this pair. Again for each.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub context_subset: Vec<(String, String)>,
    /// Until when: 90s, 30m, 1h, 7d, or a date such as 2026-03-02T09:30:00Z.
    #[arg(long, value_name = "WHEN")]
    pub expires: Option<String>,
    /// Who else may retire it.
    #[arg(long, value_name = "P", value_parser = principal)]
    pub retiring: Option<PForm>,
    /// What it is called: the same command again with the same name makes no second grant.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct WhyArgs {
    /// An item, or where one would be.
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kmsfs slot list /srv/store
  kmsfs slot add /srv/store --key-file k --label recovery               asks for the new passphrase, twice
  kmsfs slot add /srv/store --new-key-file k2 --label 'the vault'       asks for the old one
  kmsfs slot remove /srv/store 0123456789abcdef0123456789abcdef --key-file k2")]
pub struct SlotArgs {
    #[command(flatten)]
    pub offline: OfflineArgs,
    #[command(subcommand)]
    pub command: SlotCommand,
}

#[derive(Debug, Subcommand)]
pub enum SlotCommand {
    /// List the slots; needs a credential, since their labels are sealed.
    List {
        /// The store (else --at).
        #[arg(value_name = "STORE")]
        store: Option<PathBuf>,
    },
    /// Let another passphrase or key file open the store. --key-file and the like name an existing one.
    Add(SlotAddArgs),
    /// Take a slot away. The last one stays.
    #[command(allow_missing_positional = true)]
    Remove {
        /// The store (else --at).
        #[arg(value_name = "STORE")]
        store: Option<PathBuf>,
        /// As `slot list` prints it.
        #[arg(value_name = "SLOT")]
        id: String,
    },
}

impl SlotCommand {
    /// The store, where it is named.
    #[must_use]
    pub fn store(&self) -> Option<&PathBuf> {
        match self {
            Self::List { store } | Self::Remove { store, .. } => store.as_ref(),
            Self::Add(add) => add.store.as_ref(),
        }
    }
}

#[derive(Debug, Args)]
pub struct SlotAddArgs {
    /// The store (else --at).
    #[arg(value_name = "STORE")]
    pub store: Option<PathBuf>,

    /// The new key file; without this and the next the terminal is asked for a new passphrase.
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,

    /// A file with the new passphrase.
    #[arg(long, value_name = "FILE")]
    pub new_passphrase_file: Option<PathBuf>,

    /// What the slot is called.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub label: String,

    /// Memory that each try of a passphrase takes, in MiB: 64 to 2048.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=2048))]
    pub kdf_memory: u32,
}

#[derive(Debug, Args)]
pub struct AnchorArgs {
    #[command(flatten)]
    pub offline: OfflineArgs,
    #[command(subcommand)]
    pub command: AnchorCommand,
}

#[derive(Debug, Subcommand)]
pub enum AnchorCommand {
    /// Take an older store for the newest, as after its restore from a backup.
    ///
    /// A host that has seen a newer state of a store does not mount an older one: policies that were changed since
    /// would be undone. This accepts that, and says so in the trail.
    Accept {
        /// The store (else --at).
        #[arg(value_name = "STORE")]
        store: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(flatten)]
    pub offline: OfflineArgs,
    #[command(subcommand)]
    pub command: AuditCommand,
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Print events, oldest first.
    #[command(after_help = "\
Examples:
  kmsfs --at /mnt/kms audit show --denied --user bob
  kmsfs --at /mnt/kms audit show --event Decrypt --resource orders --since 2026-03-02")]
    Show(AuditShowArgs),
    /// Check that nothing was cut, changed or reordered. Exit code 6: something was.
    Verify,
}

#[derive(Debug, Default, Clone, Args)]
pub struct AuditShowArgs {
    /// Only events of this name, such as Decrypt or PutKeyPolicy. Again for more.
    #[arg(long = "event", value_name = "NAME")]
    pub events: Vec<String>,
    /// Only what this user did, a name or uid:N.
    #[arg(long, value_name = "U", value_parser = principal)]
    pub user: Option<PForm>,
    /// Only events of this key, table or item (`TABLE` or `TABLE/ITEM`).
    #[arg(long, value_name = "NAME")]
    pub resource: Option<String>,
    /// Only what was refused.
    #[arg(long)]
    pub denied: bool,
    /// Only from this moment on: 2026-03-02 or 2026-03-02T09:30:00Z, UTC.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<String>,
    /// Only the last N of them.
    #[arg(long, short = 'n', value_name = "N")]
    pub last: Option<usize>,
}

/// A mode in octal, 0 to 7777.
fn octal_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(mode),
        Ok(_) | Err(_) => Err("a mode is up to four octal digits, such as 2770".to_owned()),
    }
}

/// A moment as the trail writes it, or a beginning of one: such texts compare as the moments do.
fn moment(text: &str) -> Result<String, String> {
    const SHAPE: &[u8] = b"dddd-dd-ddTdd:dd:dd";
    let digits = text.strip_suffix('Z').unwrap_or(text);
    let fits =
        digits.bytes().zip(SHAPE).all(|(b, shape)| if *shape == b'd' { b.is_ascii_digit() } else { b == *shape });
    if fits && [10, 13, 16, 19].contains(&digits.len()) {
        Ok(digits.to_owned())
    } else {
        Err("a moment is a date or a date and a time, as 2026-03-02 or 2026-03-02T09:30:00Z".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
        MountHelper::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_and_behind_the_command() {
        for args in [
            &["kmsfs", "--at", "/mnt", "--json", "key", "list"][..],
            &["kmsfs", "key", "list", "--json", "--at", "/mnt"],
        ] {
            let cli = Cli::try_parse_from(args).unwrap();
            assert_eq!((cli.at.as_deref(), cli.json), (Some(std::path::Path::new("/mnt")), true));
        }
    }

    #[test]
    fn the_store_policy_needs_no_key() {
        let put = |args: &[&str]| {
            let cli = Cli::try_parse_from(["kmsfs", "policy", "put"].iter().chain(args)).ok()?;
            let Command::Policy(PolicyArgs { command: PolicyCommand::Put { words, store, .. }, .. }) = cli.command
            else {
                return None;
            };
            let (key, file) = key_and_word(store, &words, "a file").ok()?;
            Some((key.map(str::to_owned), file.to_owned()))
        };
        let orders = Some((Some("orders".to_owned()), "p".to_owned()));
        assert_eq!(put(&["orders", "p"]), orders);
        assert_eq!(put(&["orders", "--if-generation", "3", "p"]), orders);
        assert_eq!(put(&["--store", "p"]), Some((None, "p".to_owned())));
        for bad in [&["p"][..], &[], &["--store"], &["--store", "orders", "p"], &["a", "b", "c"]] {
            assert_eq!(put(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn offline_options_stand_behind_the_subcommand() {
        let args = ["kmsfs", "--at", "/s", "key", "add-user", "k", "bob", "--key-file", "f", "--reason", "r"];
        let Command::Key(key) = Cli::try_parse_from(args).unwrap().command else { panic!("not a key command") };
        assert_eq!(key.offline.credential.key_file, Some(PathBuf::from("f")));
        assert_eq!(key.offline.reason.as_deref(), Some("r"));
    }

    #[test]
    fn modes_and_moments_are_read_strictly() {
        assert_eq!(octal_mode("2770"), Ok(0o2770));
        for bad in ["", "8", "+7", "17777", "rwx"] {
            assert!(octal_mode(bad).is_err(), "{bad}");
        }
        assert_eq!(moment("2026-03-02T09:30:00Z").as_deref(), Ok("2026-03-02T09:30:00"));
        assert_eq!(moment("2026-03-02").as_deref(), Ok("2026-03-02"));
        for bad in ["", "2026", "2026-3-2", "yesterday", "2026-03-02T09:30:00+01:00"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }
}
