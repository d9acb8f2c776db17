//! Grants against a store of their own: who may make and end them, what they allow, and what a store that was tampered
//! with gives away.

use std::borrow::Borrow;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::GrantSpec;
use crate::audit::Trail;
use crate::crypto::{Argon2Params, SecretBytes};
use crate::kms::{ItemAsked, Key, KeySpec, Kms, KmsError, Subject, Table, TableSpec};
use crate::policy::PForm;
use crate::store::{Credential, Open, Store};
use crate::types::{Action, Encryption, GrantId, Groups, Principal};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A store with a key `k`, its table `t`, root its administrator and uid 1 its only user.
struct Rig {
    dir: PathBuf,
    /// Always there but while it is opened again.
    kms: Option<Kms>,
}

fn caller(uid: u32) -> Principal {
    Principal { uid, gid: uid, groups: Groups::Known(vec![]) }
}

fn as_uid<T>(uid: u32, call: impl FnOnce(&Subject<'_>) -> T) -> T {
    let principal = caller(uid);
    call(&Subject::Caller { principal: &principal, tid: 0 })
}

fn put(path: &Path, bytes: &[u8]) {
    std::fs::File::create(path).unwrap().write_all(bytes).unwrap();
}

impl Rig {
    fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("kmsfs-grants-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let store = Store::create(&dir.join("store"), &credential(), Argon2Params::DEFAULT, "", &how(&dir)).unwrap();
        let store = Arc::new(store);
        let kms = Kms::initialise(Arc::clone(&store), trail(&store), &[PForm::Uid(0)]).unwrap();
        let rig = Self { dir, kms: Some(kms) };
        let spec = KeySpec {
            name: "k".to_owned(),
            admins: vec![PForm::Uid(0)],
            users: vec![PForm::Uid(1)],
            description: String::new(),
        };
        as_uid(0, |who| rig.kms().create_key(who, &spec).map(|_| ())).unwrap();
        let spec = TableSpec {
            name: "t".to_owned(),
            encryption: Encryption::Customer,
            key: Some("k".to_owned()),
            users: vec![],
        };
        as_uid(0, |who| rig.kms().create_table(who, &spec, |_, _| Ok(())).map(|_| ())).unwrap();
        rig
    }

    /// The same store opened again, after something was done to its files.
    fn reopened(mut self, tamper: impl FnOnce(&Path)) -> Self {
        let kms = self.kms.take().unwrap();
        kms.close().unwrap();
        drop(kms);
        tamper(&self.dir.join("store/records"));
        let store = Arc::new(Store::open(&self.dir.join("store"), &credential(), &how(&self.dir)).unwrap());
        self.kms = Some(Kms::open(Arc::clone(&store), Some(trail(&store))).unwrap().0);
        self
    }

    fn kms(&self) -> &Kms {
        self.kms.as_ref().unwrap()
    }

    fn key(&self) -> Arc<Key> {
        self.kms().key_named("k").unwrap()
    }

    fn table(&self) -> Arc<Table> {
        self.kms().table_named("t").unwrap()
    }

    fn grant(&self, uid: u32, document: &str) -> Result<GrantId, KmsError> {
        let specs = GrantSpec::parse(document).unwrap();
        as_uid(uid, |who| self.kms().create_grants(who, &self.key(), &specs)).map(|ids| ids[0])
    }

    fn revoke(&self, uid: u32, id: GrantId) -> Result<(), KmsError> {
        as_uid(uid, |who| self.kms().revoke_grants(who, &self.key(), &[id]))
    }

    fn retire(&self, uid: u32, id: GrantId) -> Result<(), KmsError> {
        as_uid(uid, |who| self.kms().retire_grant(who, &self.key(), id))
    }

    fn decrypt(&self, uid: u32, item: &str) -> Result<(), KmsError> {
        let table = self.table();
        let path = || item.as_bytes().to_vec();
        as_uid(uid, |who| self.kms().decrypt(who, &ItemAsked { table: &table, path: &path })).map(|_| ())
    }

    fn policy(&self, edit: impl FnOnce(String) -> String) {
        let text = edit(self.key().now().unwrap().policy.text.clone());
        as_uid(0, |who| self.kms().put_key_policy(who, &self.key(), &text)).unwrap();
    }
}

fn credential() -> Credential {
    Credential::KeyFile(SecretBytes::new(vec![7; 64]))
}

fn how(dir: &Path) -> Open {
    Open { read_only: false, anchor_dir: dir.join("anchor"), owner: "test".to_owned(), accept_anchor: false }
}

fn trail(store: &Store) -> Arc<Trail> {
    let key = &store.keys().trail;
    let (trail, _) =
        Trail::open(store.root_dir().as_ref(), key, store.id(), *store.session(), store.trail_head()).unwrap();
    Arc::new(trail)
}

fn denied<T: std::fmt::Debug>(result: impl Borrow<Result<T, KmsError>>) {
    let result = result.borrow();
    assert!(matches!(result, Err(KmsError::Denied { .. })), "{result:?}");
}

fn tampered<T: std::fmt::Debug>(result: impl Borrow<Result<T, KmsError>>) {
    let result = result.borrow();
    assert!(matches!(result, Err(KmsError::Tampered)), "{result:?}");
}

const BOTH: &str = r#"{"Grantee": "uid:2", "Operations": ["Decrypt"]}"#;

#[test]
fn a_grant_opens_what_it_is_bound_to_and_ends_with_its_revocation() {
    let rig = Rig::new();
    denied(rig.decrypt(2, "a"));
    let one = r#"{"Grantee": "uid:2", "Operations": ["Decrypt"],
        "Constraints": {"EncryptionContextSubset": {"kmsfs:table": "t", "kmsfs:item": "a"}}}"#;
    denied(rig.grant(2, one));
    denied(rig.grant(1, one));
    let id = rig.grant(0, one).unwrap();
    rig.decrypt(2, "a").unwrap();
    for item in ["b", "a/b", "A", ""] {
        denied(rig.decrypt(2, item));
    }
    denied(rig.decrypt(3, "a"));
    assert!(rig.kms().tests_items(&rig.table()));
    denied(rig.revoke(2, id));
    denied(rig.retire(2, id));
    rig.revoke(0, id).unwrap();
    denied(rig.decrypt(2, "a"));
    assert!(matches!(rig.revoke(0, id), Err(KmsError::NotFound)));
    assert!(!rig.kms().tests_items(&rig.table()));
}

#[test]
fn a_deny_beats_every_grant() {
    let rig = Rig::new();
    rig.grant(0, BOTH).unwrap();
    rig.decrypt(2, "a").unwrap();
    rig.policy(|text| {
        let deny = r#""Statement": [{"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"},"#;
        text.replacen("\"Statement\": [", deny, 1)
    });
    denied(rig.decrypt(2, "a"));
    denied(rig.decrypt(1, "a"));
}

#[test]
fn who_grants_by_a_grant_gives_no_more_than_he_has() {
    let rig = Rig::new();
    let parent = r#"{"Grantee": "uid:2", "Operations": ["Decrypt", "CreateGrant"], "Expires": "1h",
        "Constraints": {"EncryptionContextSubset": {"kmsfs:table": "t"}}}"#;
    rig.grant(0, parent).unwrap();
    let child = |operations: &str, rest: &str| {
        rig.grant(2, &format!(r#"{{"Grantee": "uid:3", "Operations": [{operations}]{rest}}}"#))
    };
    let table = r#""Constraints": {"EncryptionContextSubset": {"kmsfs:table": "t"}}"#;
    let item = r#""Constraints": {"EncryptionContextEquals": {"kmsfs:table": "t", "kmsfs:item": "a"}}"#;
    let other = r#""Constraints": {"EncryptionContextSubset": {"kmsfs:table": "u"}}"#;
    denied(child("\"Decrypt\"", ""));
    denied(child("\"Decrypt\"", r#", "Expires": "30m""#));
    denied(child("\"Decrypt\"", &format!(", {table}")));
    denied(child("\"Decrypt\"", &format!(r#", {table}, "Expires": "2h""#)));
    denied(child("\"Decrypt\"", &format!(r#", {other}, "Expires": "30m""#)));
    denied(child("\"Decrypt\", \"Encrypt\"", &format!(r#", {table}, "Expires": "30m""#)));
    denied(rig.decrypt(3, "a"));
    child("\"Decrypt\"", &format!(r#", {item}, "Expires": "30m""#)).unwrap();
    rig.decrypt(3, "a").unwrap();
    denied(rig.decrypt(3, "b"));
    // uid 3 was not given CreateGrant.
    denied(rig.grant(3, &format!(r#"{{"Grantee": "uid:4", "Operations": ["Decrypt"], {item}, "Expires": "1m"}}"#)));
    // Nor may who makes grants by a grant end others.
    let others = rig.grant(0, BOTH).unwrap();
    denied(rig.revoke(2, others));
}

#[test]
fn a_grant_is_retired_by_whom_it_names_and_no_other() {
    let rig = Rig::new();
    let retiring = r#"{"Grantee": "uid:2", "Operations": ["Decrypt"], "RetiringPrincipal": "uid:5"}"#;
    let by_grantee = r#"{"Grantee": "uid:2", "Operations": ["Decrypt", "RetireGrant"]}"#;
    let (one, two) = (rig.grant(0, retiring).unwrap(), rig.grant(0, by_grantee).unwrap());
    // RetireGrant of one grant is no right to retire another.
    denied(rig.retire(2, one));
    denied(rig.retire(5, two));
    denied(rig.retire(5, GrantId::from_bytes([9; 16])));
    rig.retire(5, one).unwrap();
    rig.decrypt(2, "a").unwrap();
    rig.retire(2, two).unwrap();
    denied(rig.decrypt(2, "a"));
    let three = rig.grant(0, BOTH).unwrap();
    rig.retire(0, three).unwrap_err();
    rig.policy(|text| text.replacen("kms:Revoke*", "kms:Retire*", 1));
    rig.retire(0, three).unwrap();
}

#[test]
fn a_name_makes_one_grant_of_the_same_words() {
    let rig = Rig::new();
    let named = r#"{"Grantee": "uid:2", "Operations": ["Decrypt"], "Name": "n"}"#;
    let id = rig.grant(0, named).unwrap();
    assert_eq!(rig.grant(0, named).unwrap(), id);
    assert_ne!(rig.grant(0, &named.replace("Decrypt", "Encrypt")).unwrap(), id);
    assert_ne!(rig.grant(0, BOTH).unwrap(), rig.grant(0, BOTH).unwrap());
    assert_eq!(rig.key().grant_count(), 4);
    let twice = format!(r#"{{"Grants": [{0}, {0}]}}"#, named.replace("\"n\"", "\"m\""));
    let ids = as_uid(0, |who| rig.kms().create_grants(who, &rig.key(), &GrantSpec::parse(&twice).unwrap())).unwrap();
    assert_eq!(ids[0], ids[1]);
    assert_eq!(rig.key().grant_count(), 5);
}

#[test]
fn somebody_else_s_grants_keep_decisions_remembered() {
    let rig = Rig::new();
    let bound = r#"{"Grantee": "uid:2", "Operations": ["Decrypt"], "Expires": "1h",
        "Constraints": {"EncryptionContextSubset": {"kmsfs:item": "a"}}}"#;
    rig.grant(0, bound).unwrap();
    let remembered = |uid| {
        rig.decrypt(uid, "a").unwrap();
        let asked = crate::kms::key::Asked::of(&caller(uid), Action::Decrypt, false);
        rig.key().remembered(rig.key().generation(), &asked).is_some()
    };
    assert!(remembered(1));
    assert!(!remembered(2));
}

#[test]
fn a_decision_by_a_grant_that_ends_says_when() {
    let rig = Rig::new();
    rig.grant(0, &BOTH.replace('}', r#", "Expires": "1h"}"#)).unwrap();
    let table = rig.table();
    let path = || b"a".to_vec();
    let until = |uid| {
        let standing = as_uid(uid, |who| rig.kms().decrypt(who, &ItemAsked { table: &table, path: &path }));
        standing.unwrap().1.until
    };
    assert!((1..=3_600).contains(&(until(2) - rig.kms().now())));
    assert_eq!(until(1), i64::MAX);
}

#[test]
fn grants_outlive_a_restart_and_fit_into_few_records() {
    let rig = Rig::new();
    let many: Vec<String> = (10..210).map(|uid| BOTH.replace("uid:2", &format!("uid:{uid}"))).collect();
    let batch = GrantSpec::parse(&format!(r#"{{"Grants": [{}]}}"#, many.join(","))).unwrap();
    let before = rig.kms().store().sequence();
    let ids = as_uid(0, |who| rig.kms().create_grants(who, &rig.key(), &batch)).unwrap();
    assert_eq!(rig.kms().store().sequence(), before + 1, "one commit");
    let rig = rig.reopened(|records| assert!(grant_files(records).len() < 10));
    assert_eq!(rig.key().grant_count(), 200);
    rig.decrypt(209, "a").unwrap();
    as_uid(0, |who| rig.kms().revoke_grants(who, &rig.key(), &ids)).unwrap();
    let rig = rig.reopened(|records| assert_eq!(grant_files(records), Vec::<PathBuf>::new()));
    denied(rig.decrypt(209, "a"));
}

fn grant_files(records: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(records).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.file_name().unwrap().to_str().unwrap().split('.').nth(1) == Some("4")).collect()
}

/// Grants that were tampered with while nobody served the store: the key is not used until they are let go.
fn noticed(tamper: impl FnOnce(&Path)) {
    let rig = Rig::new();
    rig.grant(0, BOTH).unwrap();
    let rig = rig.reopened(tamper);
    for uid in [1, 2, 3] {
        tampered(rig.decrypt(uid, "a"));
    }
    denied(as_uid(2, |who| rig.kms().forget_damaged_grants(who, &rig.key())));
    assert_eq!(as_uid(0, |who| rig.kms().forget_damaged_grants(who, &rig.key())).unwrap(), 1);
    rig.decrypt(1, "a").unwrap();
    denied(rig.decrypt(2, "a"));
    rig.grant(0, BOTH).unwrap();
    let rig = rig.reopened(|_| ());
    rig.decrypt(2, "a").unwrap();
}

#[test]
fn a_record_of_grants_that_is_changed_cut_or_gone_is_noticed() {
    let only = |records: &Path| grant_files(records).pop().unwrap();
    noticed(|records| std::fs::remove_file(only(records)).unwrap());
    noticed(|records| {
        let mut bytes = std::fs::read(only(records)).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        put(&only(records), &bytes);
    });
    noticed(|records| put(&only(records), b""));
}

#[test]
fn an_older_or_another_key_s_record_of_grants_is_noticed() {
    let rig = Rig::new();
    let id = rig.grant(0, BOTH).unwrap();
    let records = rig.dir.join("store/records");
    let old = grant_files(&records).pop().unwrap();
    let bytes = std::fs::read(&old).unwrap();
    // An older one in the place of the newer, under either name.
    rig.grant(0, BOTH).unwrap();
    let new = grant_files(&records).pop().unwrap();
    assert_ne!(old, new);
    let rig = rig.reopened(|_| {
        put(&new, &bytes);
        put(&old, &bytes);
    });
    tampered(rig.decrypt(1, "a"));
    as_uid(0, |who| rig.kms().forget_damaged_grants(who, &rig.key())).unwrap();
    assert!(matches!(rig.revoke(0, id), Err(KmsError::NotFound)));
    // One that was revoked, put back beside the catalog that lists none: it says nothing, and nobody is disturbed.
    let rig = rig.reopened(|_| put(&old, &bytes));
    rig.decrypt(1, "a").unwrap();
    denied(rig.decrypt(2, "a"));
    // Two keys' records exchanged.
    let spec = KeySpec { name: "other".to_owned(), users: vec![PForm::Uid(2)], ..KeySpec::default() };
    let other = as_uid(0, |who| rig.kms().create_key(who, &spec)).unwrap();
    let document = GrantSpec::parse(BOTH).unwrap();
    as_uid(0, |who| rig.kms().create_grants(who, &other, &document)).unwrap();
    rig.grant(0, BOTH).unwrap();
    let rig = rig.reopened(|records| {
        let [one, two] = grant_files(records).try_into().unwrap();
        let (first, second) = (std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
        put(&one, &second);
        put(&two, &first);
    });
    tampered(rig.decrypt(1, "a"));
}

#[test]
fn the_keys_that_are_not_a_user_s_take_no_grants() {
    let rig = Rig::new();
    for (name, grantor) in [(crate::kms::MANAGED_KEY, 0), (crate::kms::OWNED_KEY, 0)] {
        let key = rig.kms().key_named(name).unwrap();
        let specs = GrantSpec::parse(BOTH).unwrap();
        assert!(as_uid(grantor, |who| rig.kms().create_grants(who, &key, &specs)).is_err(), "{name}");
        assert_eq!(key.grant_count(), 0);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
