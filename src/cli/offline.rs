//! An unmounted store: its custodian, who holds the credential, changes keys and policies without a mount, and manages
//! unlock slots, the anchor and the trail.
//!
//! A change takes the store's lock for writing, needs a reason, and stands in the trail with it before it is made; a
//! look takes the lock for reading and leaves the store as it is. No call here decrypts an item.

use std::ffi::OsStr;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::geteuid;
use serde_json::{Value, json};

use super::args::{
    AuditCommand, CredentialArgs, GrantCommand, KeyCommand, OfflineArgs, PolicyCommand, SlotAddArgs, SlotCommand,
    TableCommand, TableCreateArgs, key_and_word,
};
use super::credentials::Asking;
use super::exit::{CliError, Exit};
use super::output::Output;
use super::serve::{anchor_dir, credential_of, owner_text};
use super::{audit, grant, key, policy, table};
use crate::audit::{TrailReader, format_time};
use crate::crypto::{Argon2Params, Key256, Key512};
use crate::fs::open_trail;
use crate::kms::{self, Key, KeySpec, Kms, KmsError, Subject, TableSpec};
use crate::store::{Credential, Found, Journal, Open, SlotId, SlotInfo, SlotKind, SlotState, Store};
use crate::table::{Folder, Mounts, Names, TableError};
use crate::types::TableId;

/// The directory of a store that holds a directory for each table.
const TABLES: &str = "tables";

/// Whether the store is to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intent {
    Look,
    Change,
}

/// `kmsfs key` on an unmounted store.
pub(super) fn key_command(
    store: &Path,
    args: &OfflineArgs,
    command: &KeyCommand,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    match command {
        KeyCommand::List => {
            let custody = Custody::open(store, args, Intent::Look)?;
            let keys = custody.kms.key_names().into_iter().filter_map(|(_, id)| custody.kms.key(id).ok());
            let rows: Vec<Value> = keys.filter_map(|key| key.description().ok()).collect();
            output.table(&rows, &["Name", "KeyState", "KeyManager", "Description"])
        }
        KeyCommand::Describe { name } => {
            let custody = Custody::open(store, args, Intent::Look)?;
            output.object(&custody.kms.describe_key(&*custody.key(name)?)?)
        }
        KeyCommand::Receipt { name } => {
            let custody = Custody::open(store, args, Intent::Look)?;
            output.bytes(custody.key(name)?.receipt()?.document()?.as_bytes())
        }
        KeyCommand::Create { name, admins, users, description } => as_custodian(store, args, |custody, who| {
            let description = description.clone().unwrap_or_default();
            let spec = KeySpec { name: name.clone(), admins: admins.clone(), users: users.clone(), description };
            let key = custody.kms.create_key(who, &spec)?;
            if output.json() {
                output.document(&key.description()?)
            } else {
                output.line(&format!("key {name} has id {}", key.id()))
            }
        }),
        KeyCommand::Status { name } => {
            let custody = Custody::open(store, args, Intent::Look)?;
            output.document(&custody.kms.key_status(&*custody.key(name)?)?)
        }
        KeyCommand::Change(change) => {
            let (name, line) = key::order(change)?;
            as_custodian(store, args, |custody, who| {
                output.result(&custody.kms.run_key_command(who, &custody.key(name)?, &line)?)
            })
        }
    }
}

/// `kmsfs grant` on an unmounted store.
pub(super) fn grant(
    store: &Path,
    args: &OfflineArgs,
    command: &GrantCommand,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    if let GrantCommand::List { key } = command {
        let custody = Custody::open(store, args, Intent::Look)?;
        let who = Subject::Custodian { uid: geteuid().as_raw(), reason: "" };
        return grant::print(custody.kms.list_grants(&who, &*custody.key(key)?)?, output);
    }
    let (name, line) = grant::order(command)?;
    as_custodian(store, args, |custody, who| {
        grant::say(command, &custody.kms.run_key_command(who, &custody.key(name)?, &line)?, output)
    })
}

/// `kmsfs table` on an unmounted store.
pub(super) fn table(
    store: &Path,
    args: &OfflineArgs,
    command: &TableCommand,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    match command {
        TableCommand::List => {
            let custody = Custody::open(store, args, Intent::Look)?;
            let rows: Vec<Value> = custody.kms.tables().iter().map(|table| table.description()).collect();
            output.table(&rows, &["Name", "Encryption", "KeyName"])
        }
        TableCommand::Describe { name } => {
            let custody = Custody::open(store, args, Intent::Look)?;
            let table = custody.kms.table_named(name).map_err(|error| absent(error, "table", name))?;
            output.object(&table.description())
        }
        TableCommand::Change(change) => {
            let (name, line) = table::order(change)?;
            as_custodian(store, args, |custody, who| {
                let table = custody.kms.table_named(name).map_err(|error| absent(error, "table", name))?;
                custody.change_table(who, &table, kms::TableCommand::parse(&line)?, output)
            })
        }
        TableCommand::ReEncrypt { name, .. } => Err(CliError::usage(format!(
            "the items of {name} are rewritten by the daemon that serves the store: mount it, and re-encrypt it there"
        ))),
        TableCommand::Create(create) => {
            table::check(create)?;
            as_custodian(store, args, |custody, who| custody.create_table(who, create, output))
        }
    }
}

/// `kmsfs reset-clock` on an unmounted store.
pub(super) fn reset_clock(store: &Path, args: &OfflineArgs, output: &mut Output<'_>) -> Result<(), CliError> {
    as_custodian(store, args, |custody, who| output.result(&custody.kms.reset_clock(who)?))
}

/// `kmsfs policy` on an unmounted store.
pub(super) fn policy(
    store: &Path,
    args: &OfflineArgs,
    command: &PolicyCommand,
    output: &mut Output<'_>,
) -> Result<Exit, CliError> {
    match command {
        PolicyCommand::Check { file } => policy::check(file, output)?,
        PolicyCommand::Get { key, generation, .. } => {
            let custody = Custody::open(store, args, Intent::Look)?;
            let (text, saved) = if let Some(name) = key {
                let now = custody.key(name)?.now().ok_or(KmsError::Tampered)?;
                (now.policy.text.clone(), now.policy.generation)
            } else {
                let policy = custody.kms.store_policy()?;
                (policy.text.clone(), policy.generation)
            };
            output.bytes(if *generation { format!("{saved}\n") } else { text }.as_bytes())?;
        }
        PolicyCommand::Put { words, store: of_store, if_generation } => {
            let (key, file) = key_and_word(*of_store, words, "a file")?;
            let document = policy::read_document(Path::new(file))?;
            let text = policy::text_of(&document, Path::new(file))?;
            as_custodian(store, args, |custody, who| {
                match key {
                    Some(name) => custody.kms.put_key_policy_if(who, &custody.key(name)?, text, *if_generation)?,
                    None => custody.kms.put_store_policy_if(who, text, *if_generation)?,
                }
                output.result("the policy is in force")
            })?;
        }
        PolicyCommand::Rebind { key } => as_custodian(store, args, |custody, who| {
            custody.kms.rebind(who, &custody.key(key)?)?;
            output.result("names bound anew")
        })?,
        PolicyCommand::Simulate { .. } | PolicyCommand::WhoCan { .. } | PolicyCommand::Diff { .. } => {
            let asked = policy::asked(command)?;
            let custody = Custody::open(store, args, Intent::Look)?;
            let key = asked.key.as_deref().map(|name| custody.key(name)).transpose()?;
            let who = Subject::Custodian { uid: geteuid().as_raw(), reason: optional_reason(args) };
            let answer = custody.kms.query(&who, key.as_ref(), &asked.query, &asked.document)?;
            return policy::print_answer(&asked.query, &answer, output);
        }
    }
    Ok(Exit::Done)
}

/// `kmsfs audit` on an unmounted store.
pub(super) fn audit(
    store: &Path,
    args: &OfflineArgs,
    command: &AuditCommand,
    output: &mut Output<'_>,
) -> Result<Exit, CliError> {
    let store = open_store(store, args, Intent::Look)?;
    let reader = TrailReader::open(store.root_dir().as_ref(), &store.keys().trail, store.id())?;
    match command {
        AuditCommand::Verify => {
            let report = reader.verify(store.trail_head())?;
            let finding = if report.is_sound() {
                format!("ok: {} records in {} segments", report.records, report.segments)
            } else {
                let faults: Vec<String> = report.faults.iter().map(ToString::to_string).collect();
                faults.join("\n")
            };
            audit::verified(&finding, output)
        }
        AuditCommand::Show(show) => {
            let mut text = Vec::new();
            for event in reader.events()? {
                match event {
                    Ok(recorded) => {
                        let written = serde_json::to_writer(&mut text, &recorded.event);
                        written.map_err(|source| CliError::Malformed { path: PathBuf::from("the trail"), source })?;
                        text.push(b'\n');
                    }
                    Err(fault) => output.warn(&format!("the trail does not verify: {fault}")),
                }
            }
            audit::show(&mut BufReader::new(text.as_slice()), show, output)?;
            Ok(Exit::Done)
        }
    }
}

/// `kmsfs slot`.
pub(super) fn slot(
    store: &Path,
    args: &OfflineArgs,
    command: &SlotCommand,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    match command {
        SlotCommand::List { .. } => {
            let store = open_store(store, args, Intent::Look)?;
            let rows: Vec<Value> = store.slots()?.iter().map(describe_slot).collect();
            output.table(&rows, &["SlotId", "Kind", "State", "CreationDate", "Label"])
        }
        SlotCommand::Add(add) => {
            let existing = credential(&args.credential, Asking::Existing)?;
            let custody = Custody::of(Store::open(store, &existing, &how(args, Intent::Change)?)?)?;
            let result = add_slot(&custody, &existing, args, add, output);
            custody.close(result)
        }
        SlotCommand::Remove { id, .. } => {
            let slot: SlotId = id.parse()?;
            let custody = Custody::open(store, args, Intent::Change)?;
            let mut remove = || {
                custody.kms.log_custodian("RemoveSlot", optional_reason(args), &format!("slot {slot}"))?;
                custody.store.remove_slot(slot)?;
                output.result(&format!("slot {slot} is removed"))
            };
            let result = remove();
            custody.close(result)
        }
    }
}

/// `kmsfs anchor accept`: takes the store as it is for the newest, and says so in the trail.
pub(super) fn accept_anchor(store: &Path, args: &OfflineArgs, output: &mut Output<'_>) -> Result<(), CliError> {
    let how = Open { accept_anchor: true, ..how(args, Intent::Change)? };
    let custody = Custody::of(Store::open(store, &credential(&args.credential, Asking::Existing)?, &how)?)?;
    let mut tell = || {
        let accepted = |found: &&Found| matches!(found, Found::AnchorAccepted { .. } | Found::SlotAccepted);
        let mut any = false;
        for found in custody.store.events().iter().filter(accepted) {
            custody.kms.log_custodian("AcceptAnchor", optional_reason(args), &found.to_string())?;
            output.result(&found.to_string())?;
            any = true;
        }
        if any { Ok(()) } else { output.result("the store is not older than its anchor: there is nothing to accept") }
    };
    let result = tell();
    custody.close(result)
}

/// A store in the hands of whoever holds its credential.
struct Custody {
    store: Arc<Store>,
    kms: Kms,
}

impl Custody {
    fn open(store: &Path, args: &OfflineArgs, intent: Intent) -> Result<Self, CliError> {
        Self::of(open_store(store, args, intent)?)
    }

    fn of(store: Store) -> Result<Self, CliError> {
        let store = Arc::new(store);
        let trail = if store.is_read_only() { None } else { Some(Arc::new(open_trail(&store)?.0)) };
        let (kms, _) = Kms::open(Arc::clone(&store), trail)?;
        Ok(Self { store, kms })
    }

    fn key(&self, name: &str) -> Result<Arc<Key>, CliError> {
        self.kms.key_named(name).map_err(|error| absent(error, "key", name))
    }

    fn create_table(&self, who: &Subject<'_>, args: &TableCreateArgs, output: &mut Output<'_>) -> Result<(), CliError> {
        let owner = args.owner.as_deref().map(table::uid_of).transpose()?;
        let group = args.group.as_deref().map(table::gid_of).transpose()?;
        let spec = TableSpec {
            name: args.name.clone(),
            encryption: args.encryption.into(),
            key: args.key.clone(),
            users: args.users.clone(),
        };
        let key = Key256::from_slice(self.store.keys().journal.expose()).ok_or(KmsError::Tampered)?;
        let unclean = |epoch| self.store.unclean_epoch(epoch);
        let journal = Journal::open_read_only(&self.store.root_dir(), &key, self.store.id(), unclean)?;
        let table = self.kms.create_table(who, &spec, |id, names| {
            let made = || -> Result<(), TableError> {
                let folder = make_folder(&self.store, &journal, id, names)?;
                folder.dir().chown(None, owner, group)?;
                folder.dir().chmod(None, args.mode.unwrap_or(0o755))?;
                folder.sync()
            };
            made().map_err(|error| KmsError::Invalid(format!("the table's folder could not be made: {error}")))
        })?;
        if output.json() {
            output.document(&table.description())
        } else {
            output.line(&format!("table {} has id {}", args.name, table.id()))
        }
    }

    /// Carries out a change of a table that needs nobody to serve the store.
    fn change_table(
        &self,
        who: &Subject<'_>,
        table: &Arc<kms::Table>,
        command: kms::TableCommand,
        output: &mut Output<'_>,
    ) -> Result<(), CliError> {
        match command {
            kms::TableCommand::Set(change) => {
                self.kms.set_table(who, table, change)?;
                output.result("the settings are in force")
            }
            kms::TableCommand::UseKey(name) => {
                self.kms.move_table(who, table, &self.key(&name)?)?;
                output.result(&format!("protected by key {name}"))
            }
            kms::TableCommand::ReEncrypt | kms::TableCommand::StopReEncryption => {
                Err(KmsError::Invalid("only on a mount".to_owned()).into())
            }
        }
    }

    /// Ends the work on a store: whatever became of it stands in the trail, and the catalog notes the trail's end.
    fn close<T>(self, result: Result<T, CliError>) -> Result<T, CliError> {
        let closed = self.kms.close();
        // The first error is the one to be told.
        result.and_then(|value| Ok(closed.map(|()| value)?))
    }
}

/// Changes a store as its custodian.
fn as_custodian<T>(
    store: &Path,
    args: &OfflineArgs,
    change: impl FnOnce(&Custody, &Subject<'_>) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let reason = args.reason.as_deref().filter(|reason| !reason.trim().is_empty()).ok_or_else(|| {
        CliError::usage("a change of an unmounted store goes past its policies: say why, with --reason TEXT")
    })?;
    let custody = Custody::open(store, args, Intent::Change)?;
    let result = change(&custody, &Subject::Custodian { uid: geteuid().as_raw(), reason });
    custody.close(result)
}

fn open_store(store: &Path, args: &OfflineArgs, intent: Intent) -> Result<Store, CliError> {
    let credential = credential(&args.credential, Asking::Existing)?;
    Ok(Store::open(store, &credential, &how(args, intent)?)?)
}

fn credential(args: &CredentialArgs, asking: Asking) -> Result<Credential, CliError> {
    Ok(credential_of(args.read(asking)?))
}

fn how(args: &OfflineArgs, intent: Intent) -> Result<Open, CliError> {
    Ok(Open {
        read_only: intent == Intent::Look,
        anchor_dir: anchor_dir(args.anchor.as_deref())?,
        owner: owner_text(OsStr::new("(a command on the unmounted store)")),
        accept_anchor: false,
    })
}

const fn kind_of(credential: &Credential) -> &'static str {
    match credential {
        Credential::Passphrase(_) => SlotKind::Passphrase.name(),
        Credential::KeyFile(_) => SlotKind::KeyFile.name(),
    }
}

fn optional_reason(args: &OfflineArgs) -> &str {
    args.reason.as_deref().unwrap_or("(none given)")
}

fn add_slot(
    custody: &Custody,
    existing: &Credential,
    args: &OfflineArgs,
    add: &SlotAddArgs,
    output: &mut Output<'_>,
) -> Result<(), CliError> {
    let new = CredentialArgs {
        key_file: add.new_key_file.clone(),
        passphrase_file: add.new_passphrase_file.clone(),
        extpass: Vec::new(),
    };
    let new = credential(&new, Asking::New)?;
    let params = Argon2Params { memory_kib: add.kdf_memory * 1024, ..Argon2Params::DEFAULT };
    let what = format!("a {} called {:?}", kind_of(&new), add.label);
    custody.kms.log_custodian("AddSlot", optional_reason(args), &what)?;
    let id = custody.store.add_slot(existing, &new, params, &add.label)?;
    output.result(&format!("slot {id} opens the store with {what}"))
}

fn make_folder(store: &Store, journal: &Arc<Journal>, id: TableId, names: &Key512) -> Result<Arc<Folder>, TableError> {
    let names = Key512::from_slice(names.expose()).ok_or(TableError::Tampered { what: "names key" })?;
    let shared = crate::table::Table::new(Names::new(id, names)?, Arc::clone(journal), Mounts::default(), false);
    let stored = id.to_string();
    let tables = store.root_dir().open_dir(OsStr::new(TABLES))?;
    tables.create_dir(OsStr::new(&stored), 0o700)?;
    tables.sync()?;
    let dir = tables.open_dir(OsStr::new(&stored))?;
    Folder::create_root(&shared, dir, Path::new(TABLES).join(&stored))
}

fn absent(error: KmsError, kind: &'static str, name: &str) -> CliError {
    if matches!(error, KmsError::NotFound) {
        return CliError::Absent { kind, name: name.to_owned() };
    }
    error.into()
}

fn describe_slot(slot: &SlotInfo) -> Value {
    let made = u64::try_from(slot.created).ok().and_then(|s| UNIX_EPOCH.checked_add(Duration::from_secs(s)));
    json!({
        "SlotId": slot.id.to_string(),
        "Kind": match slot.kind {
            SlotKind::Passphrase => "passphrase",
            SlotKind::KeyFile => "key-file",
        },
        "State": match slot.state {
            SlotState::Intact => "intact",
            SlotState::Damaged => "damaged",
            SlotState::Unknown => "unknown",
        },
        "CreationDate": made.map(format_time),
        "Label": slot.label,
        "KdfMemoryMib": slot.params.map(|params| params.memory_kib / 1024),
    })
}
