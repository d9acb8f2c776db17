//! The files of a store: root, catalog, anchor, records, and the documents within their seals.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kmsfs::crypto::{SecretBytes, sha256};
use kmsfs::kms::{Kms, Subject, hex};
use kmsfs::policy::{default_key_policy, default_store_policy, managed_policy};
use kmsfs::store::record::Scratch;
use kmsfs::store::{Credential, Open, RecordKind, Store, StoreError};
use kmsfs::types::{Action, Groups, KeyId, Principal};
use serde_json::{Value, json};

use super::engine::{Target, Verdict, run};
use super::sealing::{self, KEY, SECRET, STORE, TABLE};

const OWNED: KeyId = KeyId::from_bytes([0x01; 16]);
const MANAGED: KeyId = KeyId::from_bytes([0x02; 16]);
/// What a format's numbers and lengths may be confused with.
const WORDS: &[&[u8]] = &[b"KMSFSROT", b"KMSFSCAT", b"KMSFSREC", b"KMSFSANC", &[0; 8], &[0xff; 8], &[1, 0]];
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A store in memory whose files are replaced at will.
struct Disk {
    scratch: Scratch,
}

#[expect(clippy::disallowed_methods, reason = "nobody else looks at these files meanwhile")]
pub(crate) fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

impl Disk {
    fn new() -> Self {
        let disk = Self { scratch: Scratch::new().unwrap() };
        for folder in ["records", "journal", "audit", "tables"] {
            fs::create_dir_all(disk.path(folder)).unwrap();
        }
        fs::create_dir_all(disk.anchor().parent().unwrap()).unwrap();
        put(&disk.path("root"), &sealing::root_file());
        let mut changes = Vec::new();
        for (kind, id, text) in sound_records() {
            changes.push(disk.put_record(kind, &id, &sealing::record(kind, &id, text.to_string().as_bytes())));
        }
        disk.put_catalog(&sealing::catalog(&[snapshot(&changes).to_string().as_bytes()]));
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join("store").join(name)
    }

    fn anchor(&self) -> PathBuf {
        self.scratch.path().join("anchors").join(STORE.to_string()).join("anchor")
    }

    fn put_catalog(&self, bytes: &[u8]) {
        put(&self.path("catalog.a"), bytes);
        put(&self.path("catalog.b"), bytes);
    }

    /// Writes a record's file and gives the change that lists it.
    fn put_record(&self, kind: RecordKind, id: &[u8; 16], bytes: &[u8]) -> Value {
        put(&self.path(&format!("records/{}.{}.1", hex(id), kind.code())), bytes);
        json!({"kind": kind.code(), "id": hex(id), "generation": 1, "digest": hex(&sha256(bytes))})
    }

    /// One record is other bytes, which the catalog lists.
    fn replace_record(&self, kind: RecordKind, id: &[u8; 16], bytes: &[u8]) {
        let mut changes = Vec::new();
        for (other, other_id, text) in sound_records() {
            let digest = sha256(&sealing::record(other, &other_id, text.to_string().as_bytes()));
            if (other, &other_id) != (kind, id) {
                let (id, digest) = (hex(&other_id), hex(&digest));
                changes.push(json!({"kind": other.code(), "id": id, "generation": 1, "digest": digest}));
            }
        }
        changes.push(self.put_record(kind, id, bytes));
        self.put_catalog(&sealing::catalog(&[snapshot(&changes).to_string().as_bytes()]));
    }

    /// Opens the store without writing anything.
    fn open(&self, accept_anchor: bool) -> Result<Store, StoreError> {
        let anchor_dir = self.scratch.path().join("anchors");
        let how = Open { read_only: true, anchor_dir, owner: "fuzz".to_owned(), accept_anchor };
        Store::open(&self.path(""), &Credential::KeyFile(SecretBytes::new(SECRET.to_vec())), &how)
    }

    /// Loads all keys and tables; what does not verify is refused.
    fn load(&self) -> Verdict {
        let (kms, damaged) = Kms::open(Arc::new(self.open(false).unwrap()), None).unwrap();
        let principal = Principal { uid: 0, gid: 0, groups: Groups::Unknown };
        let who = Subject::Caller { principal: &principal, tid: 0 };
        for (_, id) in kms.key_names() {
            kms.would_allow(&who, kms.key(id).unwrap().as_ref(), Action::Decrypt);
        }
        for table in kms.tables() {
            assert!(!kms.explain(&who, &table, b"a/\xff").lines.is_empty());
        }
        if damaged.is_empty() { Verdict::Accepted } else { Verdict::Refused(format!("{damaged:?}")) }
    }
}

fn slots() -> Value {
    let slot = &sealing::root_file()[64..];
    let (id, digest) = (hex(&slot[..16]), hex(&sha256(slot)));
    json!({"now": [{"id": id, "kind": 2, "digest": digest, "label": "disk", "created": 1_700_000_000}], "next": null})
}

/// The first entry of a catalog, which lists these changes.
fn snapshot(changes: &[Value]) -> Value {
    json!({
        "snapshot": true, "previous": ZEROS, "changes": changes, "slots": slots(), "epoch": 3, "clean": true,
        "unclean": [[1, 2]], "trail": {"segment": 0, "sequence": 0, "head": ZEROS}
    })
}

/// An entry behind it.
fn change(epoch: u64, clean: bool) -> Value {
    json!({
        "snapshot": false, "previous": null, "changes": [], "epoch": epoch, "clean": clean,
        "trail": {"segment": 0, "sequence": 0, "head": ZEROS}
    })
}

fn key_record(id: KeyId, name: &str, origin: &str, policy: &str) -> Value {
    json!({
        "name": name, "origin": origin, "description": "of the corpus", "state": "Enabled", "created": 1_700_000_000,
        "creator": 0, "material": [{"version": 1, "created": 1_700_000_000, "sealed": sealing::material(id)}],
        "policy": {"text": policy, "bindings": {"users": {}, "groups": {}}, "generation": 1}, "grants": [],
        "deletion": null, "rotation": null
    })
}

fn table_record() -> Value {
    json!({
        "name": "orders", "encryption": "customer", "key": KEY, "created": 1_700_000_000, "creator": 0,
        "names_key": sealing::sealed_names_key(),
        "table_keys": [{"version": 1, "material_version": 1, "sealed": sealing::sealed_table_key(KEY)}],
        "settings": {"cache": "shared", "on_revoke": "expire", "names": "open"}
    })
}

fn store_record() -> Value {
    let policy = default_store_policy(&[]);
    json!({"policy": {"text": policy, "bindings": {"users": {}, "groups": {}}, "generation": 1}})
}

fn sound_records() -> Vec<(RecordKind, [u8; 16], Value)> {
    let customer = default_key_policy(&[], &[kmsfs::policy::PForm::Uid(0)]);
    vec![
        (RecordKind::Key, *OWNED.as_bytes(), key_record(OWNED, "kmsfs-owned", "owned", &managed_policy())),
        (RecordKind::Key, *MANAGED.as_bytes(), key_record(MANAGED, "kmsfs-managed", "managed", &managed_policy())),
        (RecordKind::Key, *KEY.as_bytes(), key_record(KEY, "orders", "customer", &customer)),
        (RecordKind::Table, *TABLE.as_bytes(), table_record()),
        (RecordKind::StorePolicy, *STORE.as_bytes(), store_record()),
    ]
}

#[test]
fn root_files() {
    let disk = Disk::new();
    let target = Target { name: "root", longest: 6000, words: WORDS, json: false };
    let valid = || {
        let one = sealing::root_file();
        let slot = one[64..].to_vec();
        let mut two = [&one[..], &slot, &slot].concat();
        two[10] = 3;
        sealing::digest_root(&mut two);
        vec![("valid-one-slot", one), ("valid-slot-thrice", two)]
    };
    run(&target, valid, |input| {
        put(&disk.path("root"), input);
        let opened = disk.open(false);
        if let Ok(store) = &opened {
            assert!(!store.slots().unwrap().is_empty());
        }
        let mut mended = input.to_vec();
        sealing::digest_root(&mut mended);
        put(&disk.path("root"), &mended);
        if let Ok(store) = disk.open(true) {
            store.slots().unwrap();
        }
        opened.into()
    });
}

#[test]
fn catalogs() {
    let disk = Disk::new();
    let good = fs::read(disk.path("catalog.a")).unwrap();
    let target = Target { name: "catalog", longest: 8192, words: WORDS, json: false };
    let valid = || {
        let entries = [snapshot(&[]), change(4, false), change(4, true)].map(|entry| entry.to_string());
        let entries: Vec<&[u8]> = entries.iter().map(String::as_bytes).collect();
        vec![("valid-one", good.clone()), ("valid-three", sealing::catalog(&entries))]
    };
    run(&target, valid, |input| {
        // Whatever one copy is, the other one is enough, unless it is authentic and tells another history.
        disk.put_catalog(&good);
        put(&disk.path("catalog.b"), input);
        let beside_a_sound_one = disk.open(false);
        disk.put_catalog(input);
        let alone = disk.open(false);
        if let (Err(_), Err(error)) = (&alone, beside_a_sound_one) {
            assert!(error.to_string().contains("different histories"), "{error}");
        }
        alone.into()
    });
}

/// Input: an array of entries, or else one entry.
#[test]
fn entries_of_a_catalog() {
    let disk = Disk::new();
    let words: &[&[u8]] = &[b"[", b"]", b",", b"18446744073709551615", b"\"digest\":null", b"true"];
    let target = Target { name: "catalog-entries", longest: 8192, words, json: true };
    let valid = || {
        let deleted = json!({"kind": 1, "id": hex(KEY.as_bytes()), "generation": 7, "digest": null});
        let mut with_deletion = change(5, false);
        with_deletion["changes"] = json!([deleted]);
        let entries = json!([snapshot(&[]), change(4, false), with_deletion, change(9, true)]);
        let mut with_clock = change(9, true);
        with_clock["clock"] =
            json!({"floor": 4, "high": 5, "observed": 6, "skipped": 7, "wall": 8, "boot": "b", "since_boot": 9});
        let clocked = json!([snapshot(&[]), with_clock, change(9, true)]);
        vec![("valid-history", entries.to_string().into_bytes()), ("valid-clock", clocked.to_string().into_bytes())]
    };
    run(&target, valid, |input| {
        let parsed: Result<Vec<&serde_json::value::RawValue>, _> = serde_json::from_slice(input);
        let entries: Vec<&[u8]> = match &parsed {
            Ok(entries) => entries.iter().map(|entry| entry.get().as_bytes()).collect(),
            Err(_) => vec![input],
        };
        disk.put_catalog(&sealing::catalog(&entries));
        let opened = disk.open(false);
        if let Ok(store) = &opened {
            store.unclean_epochs();
            store.records(RecordKind::Key);
            // Slots that are listed and cannot be are an error of their own.
            let _ = store.slots();
        }
        opened.into()
    });
}

#[test]
fn anchors() {
    let disk = Disk::new();
    let target = Target { name: "anchor", longest: 400, words: WORDS, json: false };
    let valid = || {
        vec![
            ("valid-older", sealing::authenticate_anchor(&sealing::anchor(0, 2))),
            ("valid-epoch-ahead", sealing::authenticate_anchor(&sealing::anchor(0, u64::MAX))),
        ]
    };
    run(&target, valid, |input| {
        put(&disk.anchor(), input);
        let opened = disk.open(false);
        if let Err(error) = disk.open(true) {
            assert!(matches!(error, StoreError::Version { .. }), "{error}");
        }
        put(&disk.anchor(), &sealing::authenticate_anchor(input));
        if let Ok(store) = disk.open(false) {
            store.unclean_epochs();
        }
        opened.into()
    });
}

#[test]
fn files_of_records() {
    let disk = Disk::new();
    let target = Target { name: "record", longest: 8192, words: WORDS, json: false };
    let valid = || {
        let text = key_record(KEY, "orders", "customer", &managed_policy()).to_string();
        vec![("valid-key", sealing::record(RecordKind::Key, KEY.as_bytes(), text.as_bytes()))]
    };
    run(&target, valid, |input| {
        disk.replace_record(RecordKind::Key, KEY.as_bytes(), input);
        disk.load()
    });
}

fn receipt() -> Value {
    json!({
        "StoreId": STORE, "KeyId": KEY, "Name": "orders", "ScheduledDate": 1_700_000_000, "PendingDeletionWindowInDays": 7,
        "OrderedByUid": 61_001, "OrderedByName": "alice", "Reason": "why not", "DestroyedDate": 1_700_700_000,
        "KeyMaterialVersions": [1], "Items": 3, "BytesInStore": 1800, "Grants": 0,
        "Tables": [{"TableId": TABLE, "Name": "orders", "TableKeyVersions": [1], "Items": 3, "BytesInStore": 1800}],
        "MoreTables": 0, "CountedAll": true
    })
}

#[test]
fn documents_of_keys() {
    let disk = Disk::new();
    let target = Target { name: "key-record", longest: 34_000, words: &[b"\"", b"{", b"}", b"1"], json: true };
    let valid = || {
        let mut full = key_record(KEY, "orders", "customer", &managed_policy());
        full["state"] = "PendingDeletion".into();
        full["deletion"] = json!({"requested": 1_700_000_000, "days": 7, "by": 61_001});
        full["rotation"] = json!({"days": 365, "last": 1_700_000_000});
        full["grants"] = json!([ZEROS]);
        full["policy"]["bindings"]["users"] = json!({"alice": 61_001});
        let mut destroyed = key_record(KEY, "orders", "customer", &managed_policy());
        destroyed["state"] = "Destroyed".into();
        destroyed["material"] = json!([]);
        let plain = key_record(KEY, "orders", "customer", &managed_policy());
        let mut waiting = full.clone();
        waiting["deletion"] = json!({"requested": 1_700_000_000, "days": 7, "by": 61_001, "by_name": "alice",
            "reason": "why not", "observed": 5, "skipped": 6, "confirmed": 7});
        waiting["material"][0]["rotation"] = "AUTOMATIC".into();
        let mut with_receipt = destroyed.clone();
        with_receipt["deletion"] = waiting["deletion"].clone();
        with_receipt["receipt"] = receipt();
        let documents = [
            ("valid-plain", plain),
            ("valid-full", full),
            ("valid-destroyed", destroyed),
            ("valid-waiting", waiting),
            ("valid-receipt", with_receipt),
        ];
        documents.map(|(name, value)| (name, value.to_string().into_bytes())).into()
    };
    run(&target, valid, |input| {
        disk.replace_record(RecordKind::Key, KEY.as_bytes(), &sealing::record(RecordKind::Key, KEY.as_bytes(), input));
        disk.load()
    });
}

#[test]
fn documents_of_tables() {
    let disk = Disk::new();
    let target = Target { name: "table-record", longest: 8192, words: &[b"\"", b"{", b"}", b"1"], json: true };
    let valid = || vec![("valid-customer", table_record().to_string().into_bytes())];
    run(&target, valid, |input| {
        disk.replace_record(
            RecordKind::Table,
            TABLE.as_bytes(),
            &sealing::record(RecordKind::Table, TABLE.as_bytes(), input),
        );
        disk.load()
    });
}

#[test]
fn documents_of_store_policies() {
    let disk = Disk::new();
    let target = Target { name: "store-record", longest: 34_000, words: &[b"\"", b"{", b"}", b"1"], json: true };
    let valid = || {
        let mut for_tests = store_record();
        for_tests["for_tests"] = true.into();
        vec![
            ("valid-default", store_record().to_string().into_bytes()),
            ("valid-for-tests", for_tests.to_string().into_bytes()),
        ]
    };
    run(&target, valid, |input| {
        disk.replace_record(
            RecordKind::StorePolicy,
            STORE.as_bytes(),
            &sealing::record(RecordKind::StorePolicy, STORE.as_bytes(), input),
        );
        disk.load()
    });
}
