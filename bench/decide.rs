//! What a decision costs by itself, without an open, a record or an item: a key whose policy, with the store policy that
//! is always asked besides, has 1,000 statements, among 10,000 keys; the caller is in 50 groups, none of which is named.
//! Statements that deny are looked at to the last.
//!
//! `decide DIRECTORY` makes a store in an empty directory (better one in memory: making the keys flushes three times for
//! each), and prints the microseconds of a decision that is remembered, and of one that is made anew.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for measuring, whose panics end the measurement")]

use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kmsfs::crypto::{Argon2Params, SecretBytes};
use kmsfs::fs::api::{Caller, Operations};
use kmsfs::fs::{FileSystem, Options, open_trail};
use kmsfs::kms::{ItemAsked, KeySpec, Kms, Subject, Table};
use kmsfs::policy::PForm;
use kmsfs::store::{Credential, Open, Store};
use kmsfs::types::{Action, Groups, Principal};

const KEYS: u32 = 10_000;
/// In each of the two documents, and how many of these name a group: more would not fit into the length of one.
const STATEMENTS: u32 = 500;
const BY_GROUP: u32 = 16;
const GROUPS: u32 = 50;
const REMEMBERED: u32 = 1_000_000;
const ANEW: u32 = 5_000;
const CUSTODIAN: Subject<'static> = Subject::Custodian { uid: 0, reason: "to measure" };

fn store(dir: &Path) -> Store {
    let (path, credential) = (dir.join("store"), Credential::KeyFile(SecretBytes::new(vec![7; 64])));
    let how =
        Open { read_only: false, anchor_dir: dir.join("anchor"), owner: "decide".to_owned(), accept_anchor: false };
    let store = Arc::new(Store::create(&path, &credential, Argon2Params::DEFAULT, "decide", &how).unwrap());
    let (trail, _) = open_trail(&store).unwrap();
    let kms = Kms::initialise(Arc::clone(&store), Arc::new(trail), &[PForm::Uid(0)]).unwrap();
    kms.close().unwrap();
    drop((kms, store));
    Store::open(&path, &credential, &how).unwrap()
}

/// All but the last deny something to a group that the caller is not in, or to all an action that is not asked for.
fn policy() -> String {
    let mut text = String::from(r#"{"Version":"2012-10-17","Statement":["#);
    for number in 1..STATEMENTS {
        if number <= BY_GROUP {
            let group = format!(r#"{{"Unix":"gid:{number}"}}"#);
            write!(text, r#"{{"Effect":"Deny","Principal":{group},"Action":"*","Resource":"*"}},"#).unwrap();
        } else {
            text.push_str(r#"{"Effect":"Deny","Principal":"*","Action":"*G*","Resource":"*"},"#);
        }
    }
    text.push_str(r#"{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}]}"#);
    text
}

fn decide(kms: &Kms, table: &Arc<Table>, principal: &Principal) {
    let path = || b"folder/item".to_vec();
    let who = Subject::Caller { principal, tid: 0 };
    kms.decide_again(&who, &ItemAsked { table, path: &path }, Action::Encrypt).unwrap();
}

fn main() {
    let dir = PathBuf::from(std::env::args_os().nth(1).unwrap());
    let fs = FileSystem::open(store(&dir), Options::default()).unwrap();
    let kms = Arc::clone(fs.kms());
    for number in 0..KEYS {
        let spec = KeySpec {
            name: format!("key-{number}"),
            admins: vec![PForm::Uid(0)],
            users: Vec::new(),
            description: String::new(),
        };
        kms.create_key(&CUSTODIAN, &spec).unwrap();
    }
    fs.mkdir(&Caller { uid: 0, gid: 0, tid: 0 }, 1, OsStr::new("table"), 0o755, 0).unwrap();
    let table = kms.table_named("table").unwrap();
    kms.put_store_policy(&CUSTODIAN, &policy()).unwrap();
    kms.put_key_policy(&CUSTODIAN, table.key(), &policy()).unwrap();

    let asking = |uid| Principal { uid, gid: 9_000, groups: Groups::Known((9_000..9_000 + GROUPS).collect()) };
    let one = asking(1);
    decide(&kms, &table, &one);
    let start = Instant::now();
    for _ in 0..REMEMBERED {
        decide(&kms, &table, &one);
    }
    let remembered = start.elapsed() / REMEMBERED;
    let others: Vec<_> = (2..2 + ANEW).map(asking).collect();
    let start = Instant::now();
    for other in &others {
        decide(&kms, &table, other);
    }
    let anew = start.elapsed() / ANEW;
    println!("{:.3} {:.2}", remembered.as_secs_f64() * 1e6, anew.as_secs_f64() * 1e6);
    fs.shut_down();
}
