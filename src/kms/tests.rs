//! The life of keys, on real stores with a clock that the test moves.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::clock::Clock;
use super::record::hex;
use super::{Deletion, GrantSpec, ItemAsked, Key, KeySpec, Kms, KmsError, RotationType, Subject, Table, TableSpec};
use crate::audit::Trail;
use crate::crypto::{Argon2Params, SecretBytes, sha256};
use crate::policy::PForm;
use crate::store::record::Scratch;
use crate::store::{Credential, Open, RecordKind, Store};
use crate::types::{Action, Encryption, Groups, KeyState, Principal};

const DAY: i64 = 24 * 3600;
const ROOT: Principal = Principal { uid: 0, gid: 0, groups: Groups::Unknown };
const ALICE: Principal = Principal { uid: 61_001, gid: 61_001, groups: Groups::Unknown };

fn root() -> Subject<'static> {
    Subject::Caller { principal: &ROOT, tid: 0 }
}

fn alice() -> Subject<'static> {
    Subject::Caller { principal: &ALICE, tid: 0 }
}

fn custodian() -> Subject<'static> {
    Subject::Custodian { uid: 0, reason: "a test" }
}

/// A store of the test's own.
struct Rig {
    kms: Kms,
    scratch: Arc<Scratch>,
}

impl Rig {
    fn new() -> Self {
        let scratch = Arc::new(Scratch::new().unwrap());
        let dir = scratch.path();
        let params = Argon2Params::DEFAULT;
        let store = Arc::new(Store::create(&dir.join("store"), &credential(), params, "test", &how(dir)).unwrap());
        let kms = Kms::initialise_for_tests(Arc::clone(&store), trail(&store), &[PForm::Uid(0)]).unwrap();
        let mut rig = Self { kms, scratch };
        rig.kms.clock = Clock::new(rig.kms.store.clock(), Some(rig.clock_file()));
        rig
    }

    /// Closes the store in good order, or as a kill does, and opens it anew.
    fn reopened(self, in_order: bool) -> Self {
        if in_order {
            self.kms.close().unwrap();
        }
        let (scratch, clock_file) = (Arc::clone(&self.scratch), self.clock_file());
        // The lock must be free.
        drop(self);
        let dir = scratch.path();
        let store = Arc::new(Store::open(&dir.join("store"), &credential(), &how(dir)).unwrap());
        let trail = trail(&store);
        let (mut kms, damaged) = Kms::open(Arc::clone(&store), Some(trail)).unwrap();
        assert_eq!(damaged, []);
        kms.clock = Clock::new(store.clock(), Some(clock_file));
        Self { kms, scratch }
    }

    fn clock_file(&self) -> PathBuf {
        self.scratch.path().join("clock")
    }

    /// Sets the clock so many seconds ahead of the host's.
    fn set_clock(&self, seconds: i64) {
        let mut file = std::fs::File::create(self.clock_file()).unwrap();
        file.write_all(seconds.to_string().as_bytes()).unwrap();
    }

    /// A key of root's, who may do everything with it.
    fn key(&self, name: &str) -> Arc<Key> {
        let spec = KeySpec { name: name.to_owned(), ..KeySpec::default() };
        let key = self.kms.create_key(&root(), &spec).unwrap();
        let all = r#"{"Statement": [{"Sid": "All", "Effect": "Allow", "Principal": {"Unix": "uid:0"}, "Action": "kms:*",
            "Resource": "*"}]}"#;
        self.kms.put_key_policy(&root(), &key, all).unwrap();
        key
    }

    fn table(&self, name: &str, key: &Key) -> Arc<Table> {
        let spec = TableSpec {
            name: name.to_owned(),
            encryption: Encryption::Customer,
            key: Some(key.now().unwrap().record.name.clone()),
            users: Vec::new(),
        };
        let tables = self.scratch.path().join("store/tables");
        let folder = |id: crate::types::TableId, _: &crate::crypto::Key512| {
            std::fs::create_dir(tables.join(id.to_string())).map_err(KmsError::Io)
        };
        self.kms.create_table(&root(), &spec, folder).unwrap()
    }

    /// A key in a state, reached as it is in life.
    fn key_in(&self, state: KeyState, name: &str) -> Arc<Key> {
        let key = self.key(name);
        self.table(&format!("table-{name}"), &key);
        match state {
            KeyState::Enabled => {}
            KeyState::Disabled => self.kms.disable_key(&root(), &key).unwrap(),
            KeyState::PendingDeletion => drop(self.kms.schedule_deletion(&root(), &key, 7, name).unwrap()),
            KeyState::Destroyed => {
                self.kms.schedule_deletion(&root(), &key, 7, name).unwrap();
                self.let_pass(7);
                assert!(self.kms.carry_out_due().contains(&key.id()));
            }
        }
        assert_eq!(key.now().unwrap().state(), state);
        key
    }

    /// Days pass, each of them observed.
    fn let_pass(&self, days: i64) {
        for _ in 0..days {
            self.set_clock(self.kms.clock.wall() - Clock::new(None, None).wall() + DAY);
            self.kms.clock.observe();
        }
    }

    fn use_key(&self, key: &Key, who: &Subject<'_>, action: Action) -> Result<(), KmsError> {
        let tables = self.kms.tables_under(key);
        let path = || b"1001.json".to_vec();
        let item = ItemAsked { table: &tables[0], path: &path };
        if action == Action::Decrypt {
            return self.kms.decrypt(who, &item).map(|_| ());
        }
        self.kms.seal_key(who, &item, action).map(|_| ())
    }

    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut dirs = vec![self.scratch.path().join("store")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path());
                } else {
                    found.push((entry.path(), std::fs::read(entry.path()).unwrap()));
                }
            }
        }
        found
    }

    /// What all records say, one after the other.
    fn plaintexts(&self) -> String {
        let kinds = [RecordKind::Key, RecordKind::Table, RecordKind::StorePolicy, RecordKind::Grant];
        let ids = kinds.into_iter().flat_map(|kind| {
            self.kms.store.records(kind).into_iter().map(move |(id, _)| (kind, id)).collect::<Vec<_>>()
        });
        ids.map(|(kind, id)| String::from_utf8(self.kms.store.read_record(kind, id).unwrap().to_vec()).unwrap())
            .collect()
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
    let opened = Trail::open(store.root_dir().as_ref(), key, store.id(), *store.session(), store.trail_head());
    Arc::new(opened.unwrap().0)
}

/// What AWS answers, and what a destroyed key does here, which AWS no longer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes,
    /// Footnote 1: DisabledException; of cryptographic operations also footnotes 2 and 3.
    Off,
    /// Footnotes 2, 3 and 4: KMSInvalidStateException.
    Invalid,
    Gone,
}

impl Answer {
    fn of(result: &Result<(), KmsError>) -> Self {
        match result {
            Ok(()) => Self::Yes,
            Err(KmsError::KeyRevoked(_)) => Self::Off,
            Err(KmsError::InvalidState { .. }) => Self::Invalid,
            Err(KmsError::Destroyed) => Self::Gone,
            Err(other) => panic!("{other}"),
        }
    }
}

type Call = fn(&Rig, &Subject<'_>, &Arc<Key>) -> Result<(), KmsError>;

fn decided(action: Action) -> impl Fn(&Rig, &Subject<'_>, &Arc<Key>) -> Result<(), KmsError> {
    move |rig, who, key| rig.kms.check_key(who, key, action)
}

fn name_of(key: &Key) -> String {
    key.now().unwrap().record.name.clone()
}

/// The columns Enabled, Disabled and PendingDeletion of the table in the AWS KMS Developer Guide, 'Key states of AWS KMS
/// keys', for symmetric keys whose material AWS has made; then our own.
const KEY_STATE_TABLE: &[(&str, [Answer; 4], Call)] = {
    use Answer::{Gone, Invalid, Off, Yes};
    &[
        ("CancelKeyDeletion", [Invalid, Invalid, Yes, Gone], |rig, who, key| rig.kms.cancel_deletion(who, key)),
        ("CreateGrant", [Yes, Off, Invalid, Gone], |rig, who, key| decided(Action::CreateGrant)(rig, who, key)),
        ("Decrypt", [Yes, Off, Off, Gone], |rig, who, key| rig.use_key(key, who, Action::Decrypt)),
        ("DescribeKey", [Yes, Yes, Yes, Yes], |rig, who, key| {
            rig.kms.check_key(who, key, Action::DescribeKey)?;
            rig.kms.describe_key(key).map(|_| ())
        }),
        ("DisableKey", [Yes, Yes, Invalid, Gone], |rig, who, key| rig.kms.disable_key(who, key)),
        ("DisableKeyRotation", [Yes, Off, Invalid, Gone], |rig, who, key| rig.kms.disable_rotation(who, key)),
        ("EnableKey", [Yes, Yes, Invalid, Gone], |rig, who, key| rig.kms.enable_key(who, key)),
        ("EnableKeyRotation", [Yes, Off, Invalid, Gone], |rig, who, key| {
            rig.kms.enable_rotation(who, key, None).map(|_| ())
        }),
        ("Encrypt", [Yes, Off, Off, Gone], |rig, who, key| rig.use_key(key, who, Action::Encrypt)),
        ("GenerateDataKey", [Yes, Off, Off, Gone], |rig, who, key| rig.use_key(key, who, Action::GenerateDataKey)),
        ("GetKeyPolicy", [Yes, Yes, Yes, Yes], |rig, who, key| decided(Action::GetKeyPolicy)(rig, who, key)),
        ("GetKeyRotationStatus", [Yes, Yes, Yes, Yes], |rig, who, key| {
            decided(Action::GetKeyRotationStatus)(rig, who, key)
        }),
        ("ListGrants", [Yes, Yes, Yes, Yes], |rig, who, key| decided(Action::ListGrants)(rig, who, key)),
        ("PutKeyPolicy", [Yes, Yes, Yes, Gone], |rig, who, key| {
            let text = key.now().unwrap().policy.text.clone();
            rig.kms.put_key_policy(who, key, &text)
        }),
        ("ReEncrypt, from", [Yes, Off, Off, Gone], |rig, who, key| decided(Action::ReEncryptFrom)(rig, who, key)),
        ("ReEncrypt, to", [Yes, Off, Off, Gone], |rig, who, key| decided(Action::ReEncryptTo)(rig, who, key)),
        ("RetireGrant", [Yes, Yes, Yes, Gone], |rig, who, key| decided(Action::RetireGrant)(rig, who, key)),
        ("RevokeGrant", [Yes, Yes, Yes, Gone], |rig, who, key| decided(Action::RevokeGrant)(rig, who, key)),
        ("RotateKeyOnDemand", [Yes, Off, Invalid, Gone], |rig, who, key| rig.kms.rotate_key(who, key).map(|_| ())),
        ("ScheduleKeyDeletion", [Yes, Yes, Invalid, Gone], |rig, who, key| {
            rig.kms.schedule_deletion(who, key, 30, &name_of(key)).map(|_| ())
        }),
        ("UpdateKeyDescription", [Yes, Yes, Invalid, Gone], |rig, who, key| rig.kms.describe(who, key, "text")),
    ]
};

const STATES: [KeyState; 4] = [KeyState::Enabled, KeyState::Disabled, KeyState::PendingDeletion, KeyState::Destroyed];

#[test]
fn every_state_answers_every_operation_as_aws_does() {
    let rig = Rig::new();
    for (number, state) in STATES.into_iter().enumerate() {
        for (name, answers, call) in KEY_STATE_TABLE {
            for (who, subject) in [("root", root()), ("custodian", custodian())] {
                // A custodian uses no key, whatever its state.
                let uses = ["Decrypt", "Encrypt", "GenerateDataKey"].contains(name) || name.starts_with("ReEncrypt");
                if uses && who == "custodian" {
                    continue;
                }
                let key = rig.key_in(state, &format!("{who} {number} {name}"));
                assert_eq!(
                    Answer::of(&call(&rig, &subject, &key)),
                    answers[number],
                    "{name} of a {state} key by {who}"
                );
            }
            // Whom the policy denies learns no state.
            let key = rig.kms.key_named(&format!("root {number} {name}")).unwrap();
            let denied = call(&rig, &alice(), &key);
            let is_denied = matches!(denied, Err(KmsError::Denied { .. }));
            assert!(is_denied, "{name} of a {state} key by alice: {denied:?}");
        }
    }
}

#[test]
fn the_store_s_own_keys_cannot_be_ended() {
    let rig = Rig::new();
    let managed = rig.kms.key_named(super::MANAGED_KEY).unwrap();
    for line in ["disable", "rotate", "auto-rotate", "schedule-deletion 7 kmsfs-managed", "rename mine"] {
        for who in [root(), custodian()] {
            let refused = rig.kms.run_key_command(&who, &managed, line);
            assert!(matches!(refused, Err(KmsError::Denied { .. } | KmsError::Invalid(_))), "{line}: {refused:?}");
        }
    }
    assert_eq!(managed.now().unwrap().state(), KeyState::Enabled);
}

#[test]
fn a_deletion_is_ordered_by_name_and_tells_what_is_lost() {
    let rig = Rig::new();
    let key = rig.key("orders");
    rig.table("a", &key);
    for (days, name) in [(6, "orders"), (31, "orders"), (7, "order"), (7, "")] {
        let refused = rig.kms.schedule_deletion(&root(), &key, days, name).unwrap_err();
        assert!(matches!(&refused, KmsError::Invalid(_)), "{refused:?}");
        if days == 7 {
            let said = refused.to_string();
            assert!(said.contains("1 table (a), 0 items") && said.contains("schedule-deletion 7 orders"), "{said}");
        }
    }
    assert_eq!(key.now().unwrap().state(), KeyState::Enabled);
    rig.kms.disable_key(&root(), &key).unwrap();
    rig.kms.run_key_command(&root(), &key, "schedule-deletion orders").unwrap();
    let described = rig.kms.describe_key(&key).unwrap();
    assert_eq!(described["PendingDeletionWindowInDays"], 30);
    assert!((30 * DAY - 5..=30 * DAY).contains(&(described["DeletionDate"].as_i64().unwrap() - rig.kms.now())));
    rig.kms.cancel_deletion(&root(), &key).unwrap();
    let described = rig.kms.describe_key(&key).unwrap();
    assert_eq!(described["KeyState"], "Disabled");
    assert!(described.get("DeletionDate").is_none() && described["PendingDeletionWindowInDays"].is_null());
    rig.let_pass(40);
    assert_eq!(rig.kms.carry_out_due(), []);
}

#[test]
fn a_window_is_counted_in_observed_time() {
    let rig = Rig::new();
    let key = rig.key("orders");
    rig.kms.schedule_deletion(&root(), &key, 7, "orders").unwrap();
    // A jump of a year, and a month without the store, are a day each; and what was jumped over is no time when it comes.
    rig.set_clock(365 * DAY);
    assert_eq!(rig.kms.carry_out_due(), []);
    let rig = rig.reopened(true);
    rig.set_clock(395 * DAY);
    assert_eq!(rig.kms.carry_out_due(), []);
    let key = rig.kms.key_named("orders").unwrap();
    let left = |rig: &Rig, key: &Key| {
        let deletion: Deletion = key.now().unwrap().record.deletion.clone().unwrap();
        deletion.left(rig.kms.observed()).div_euclid(DAY)
    };
    assert!((4..=5).contains(&left(&rig, &key)));
    rig.set_clock(0);
    rig.let_pass(300);
    assert!((4..=5).contains(&left(&rig, &key)));
    // Without the name it is only told; with it, it counts, and once.
    rig.kms.confirm_elapsed(&root(), &key, "").unwrap_err();
    assert!(matches!(rig.kms.confirm_elapsed(&alice(), &key, "orders"), Err(KmsError::Denied { .. })));
    assert_eq!(rig.kms.carry_out_due(), []);
    assert!(rig.kms.confirm_elapsed(&root(), &key, "orders").unwrap() > 390 * DAY);
    assert_eq!(rig.kms.carry_out_due(), [key.id()]);
    let again = rig.kms.confirm_elapsed(&root(), &key, "orders");
    assert!(matches!(again, Err(KmsError::InvalidState { .. })));
}

#[test]
fn what_passed_before_a_deletion_was_ordered_cannot_be_confirmed() {
    let rig = Rig::new();
    let key = rig.key("orders");
    rig.set_clock(365 * DAY);
    rig.kms.clock.observe();
    rig.kms.schedule_deletion(&root(), &key, 7, "orders").unwrap();
    assert_eq!(rig.kms.confirm_elapsed(&root(), &key, "orders").unwrap(), 0);
    assert_eq!(rig.kms.carry_out_due(), []);
}

#[test]
fn a_destroyed_key_leaves_nothing_but_its_receipt() {
    let rig = Rig::new();
    let (key, other) = (rig.key("orders"), rig.key("other"));
    let (a, b) = (rig.table("a", &key), rig.table("b", &key));
    let rest = rig.table("rest", &other);
    rig.kms.rotate_key(&root(), &key).unwrap();
    for (folder, name) in [(&a, "aXRlbQ"), (&a, ".l.aXRlbQ"), (&a, ".n.aXRlbQ"), (&b, "aXRlbQ"), (&rest, "aXRlbQ")] {
        let path = rig.scratch.path().join("store/tables").join(folder.id().to_string()).join(name);
        std::fs::File::create(path).unwrap().write_all(&[0; 600]).unwrap();
    }
    let sealed: Vec<String> = {
        let of_key = key.now().unwrap();
        let tables = [a.record(), b.record()];
        let of_tables = tables.iter().flat_map(|table| table.table_keys.iter().map(|sealed| sealed.sealed.clone()));
        of_key.record.material.iter().map(|version| version.sealed.clone()).chain(of_tables).collect()
    };
    let grant = GrantSpec::parse(r#"{"Grantee": "uid:4711", "Operations": ["Decrypt"]}"#).unwrap();
    rig.kms.create_grants(&root(), &key, &grant).unwrap();
    rig.kms.create_grants(&root(), &other, &grant).unwrap();
    assert_eq!(rig.kms.blast_radius(&key).grants, 1);
    assert_eq!(sealed.len(), 4);
    assert!(sealed.iter().all(|sealed| rig.plaintexts().contains(sealed)));
    rig.kms.schedule_deletion(&root(), &key, 7, "orders").unwrap();
    // The last files that hold them, sealed once more.
    let records: Vec<(PathBuf, Vec<u8>)> = rig
        .files()
        .into_iter()
        .filter(|(path, _)| {
            let name = path.file_name().unwrap().to_str().unwrap();
            [*key.id().as_bytes(), *a.id().as_bytes(), *b.id().as_bytes()].iter().any(|id| name.starts_with(&hex(id)))
                && path.parent().unwrap().ends_with("records")
        })
        .collect();
    assert_eq!(records.len(), 3);
    rig.let_pass(6);
    assert_eq!(rig.kms.carry_out_due(), []);
    rig.let_pass(1);
    assert_eq!(rig.kms.carry_out_due(), [key.id()]);
    assert_eq!(rig.kms.carry_out_due(), []);

    let check = |rig: &Rig| {
        let key = rig.kms.key_named("orders").unwrap();
        assert!(sealed.iter().all(|sealed| !rig.plaintexts().contains(sealed)));
        for (path, bytes) in rig.files() {
            for (record, old) in &records {
                assert_ne!(&path, record);
                let part = &old[old.len() / 2..old.len() / 2 + 32];
                assert!(
                    !bytes.windows(32).any(|window| window == part),
                    "{} holds {}",
                    path.display(),
                    record.display()
                );
            }
        }
        assert!(key.now().unwrap().material.is_empty());
        assert!(matches!(rig.use_key(&key, &root(), Action::Decrypt), Err(KmsError::Destroyed)));
        let table = rig.kms.table_named("a").unwrap();
        assert!(!table.keys.are_there() && Kms::is_destroyed(&table));
        let other = rig.kms.key_named("other").unwrap();
        // Its grants have gone with it, those of others have not.
        assert_eq!((key.grants().count(), other.grants().count()), (0, 1));
        assert_eq!(rig.kms.store().records(RecordKind::Grant).len(), 1);
        rig.use_key(&other, &root(), Action::Decrypt).unwrap();

        check_receipt(rig, &key);
    };
    check(&rig);
    let rig = rig.reopened(false);
    check(&rig);
    // Its name can be given away, and the tables that it leaves may go.
    rig.kms.rename_key(&root(), &rig.kms.key_named("orders").unwrap(), "late orders").unwrap();
    rig.key("orders");
    assert!(rig.kms.key_named("late orders").unwrap().receipt().is_ok());
    rig.reopened(true);
}

fn check_receipt(rig: &Rig, key: &Key) {
    let receipt = key.receipt().unwrap();
    assert_eq!((receipt.items, receipt.bytes_in_store, receipt.grants), (3, 1800, 1));
    assert_eq!(receipt.key_material_versions, [1, 2]);
    let tables: Vec<_> = receipt.tables.iter().map(|table| (table.name.as_str(), table.items)).collect();
    assert_eq!(tables, [("a", 2), ("b", 1)]);
    assert_eq!((receipt.ordered_by_uid, receipt.pending_deletion_window_in_days), (0, 7));
    assert!(receipt.counted_all && receipt.destroyed_date >= receipt.scheduled_date + 7 * DAY);
    // The trail has the digest of the very bytes that are shown.
    let digest = hex(&sha256(receipt.document().unwrap().as_bytes()));
    let trail: Vec<u8> = rig.kms.trail_lines().unwrap().flatten().collect();
    let lines = String::from_utf8(trail).unwrap();
    let events: Vec<_> = lines.lines().filter(|line| line.contains("\"DeleteKey\"")).collect();
    assert!(events.len() == 1 && events[0].contains(&digest), "{events:?}");
}

#[test]
fn what_every_version_has_sealed_stays_readable() {
    let rig = Rig::new();
    let key = rig.key("orders");
    rig.table("t0", &key);
    for version in 2..=26 {
        assert_eq!(rig.kms.rotate_key(&root(), &key).unwrap(), version);
        let table = rig.table(&format!("t{version}"), &key);
        assert_eq!(table.record().table_keys[0].material_version, version);
    }
    let check = |rig: &Rig| {
        let key = rig.kms.key_named("orders").unwrap();
        let used: BTreeSet<u32> =
            rig.kms.tables_under(&key).iter().map(|table| table.record().table_keys[0].material_version).collect();
        assert_eq!(used, [1].into_iter().chain(2..=26).collect());
        assert!(rig.kms.tables_under(&key).iter().all(|table| table.keys.are_there()));
        let described = key.description().unwrap();
        assert_eq!(described["CurrentKeyMaterialVersion"], 26);
        assert_eq!(described["KeyMaterialVersions"].as_array().unwrap().len(), 26);
        assert_eq!(described["KeyMaterialVersions"][25]["RotationType"], "ON_DEMAND");
        assert!(described["KeyMaterialVersions"][0]["RotationType"].is_null());
    };
    check(&rig);
    check(&rig.reopened(false));
}

#[test]
fn rotation_follows_the_calendar() {
    let rig = Rig::new();
    let key = rig.key("orders");
    let newest = |key: &Key| key.now().unwrap().record.material.last().cloned().unwrap();
    for days in [89, 2561] {
        assert!(matches!(rig.kms.enable_rotation(&root(), &key, Some(days)), Err(KmsError::Invalid(_))));
    }
    assert_eq!(rig.kms.enable_rotation(&root(), &key, None).unwrap(), 365);
    assert_eq!(rig.kms.enable_rotation(&root(), &key, Some(90)).unwrap(), 90);
    let next = key.description().unwrap()["NextRotationDate"].as_i64().unwrap();
    assert!((0..=5).contains(&(next - rig.kms.now() - 90 * DAY).abs()));
    // One on demand changes no date.
    rig.kms.rotate_key(&root(), &key).unwrap();
    assert_eq!(key.description().unwrap()["NextRotationDate"], next);
    rig.set_clock(90 * DAY - 60);
    rig.kms.carry_out_due();
    assert_eq!(newest(&key).version, 2);
    rig.set_clock(90 * DAY + 60);
    rig.kms.carry_out_due();
    assert_eq!((newest(&key).version, newest(&key).rotation), (3, Some(RotationType::Automatic)));
    // However many were missed, it is one; and none while the key is disabled.
    rig.kms.disable_key(&root(), &key).unwrap();
    let rig = rig.reopened(true);
    let key = rig.kms.key_named("orders").unwrap();
    rig.set_clock(1000 * DAY);
    rig.kms.carry_out_due();
    assert_eq!(newest(&key).version, 3);
    rig.kms.enable_key(&root(), &key).unwrap();
    rig.kms.carry_out_due();
    rig.kms.carry_out_due();
    assert_eq!(newest(&key).version, 4);
    // A clock that was ahead puts off none: the next is due a period after it is right again.
    rig.set_clock(500 * DAY);
    rig.kms.reset_clock(&root()).unwrap();
    rig.kms.carry_out_due();
    assert_eq!(newest(&key).version, 4);
    let next = key.description().unwrap()["NextRotationDate"].as_i64().unwrap();
    assert!((0..=5).contains(&(next - rig.kms.now() - 90 * DAY).abs()));
    rig.kms.disable_rotation(&root(), &key).unwrap();
    rig.set_clock(2000 * DAY);
    rig.kms.carry_out_due();
    assert_eq!(newest(&key).version, 4);
}

#[test]
fn a_renamed_key_keeps_its_tables_and_its_id() {
    let rig = Rig::new();
    let (key, taken) = (rig.key("orders"), rig.key("taken"));
    let table = rig.table("t", &key);
    for (name, expected) in
        [("taken", "Exists"), ("kmsfs-x", "BadName"), (".x", "BadName"), ("a/b", "BadName"), ("", "BadName")]
    {
        let refused = format!("{:?}", rig.kms.rename_key(&root(), &key, name).unwrap_err());
        assert!(refused.starts_with(expected), "{name}: {refused}");
    }
    // The key's administrator alone may not take a name, as he may not make a key.
    let text = r#"{"Statement": [{"Sid": "All", "Effect": "Allow", "Principal": {"Unix": ["uid:0", "uid:61001"]},
        "Action": "kms:*", "Resource": "*"}]}"#;
    rig.kms.put_key_policy(&root(), &key, text).unwrap();
    assert!(matches!(rig.kms.rename_key(&alice(), &key, "hers"), Err(KmsError::Denied { .. })));
    rig.kms.run_key_command(&root(), &key, "rename all orders").unwrap();
    let rig = rig.reopened(false);
    assert!(matches!(rig.kms.key_named("orders"), Err(KmsError::NotFound)));
    assert_eq!(rig.kms.key_named("all orders").unwrap().id(), key.id());
    assert_eq!(rig.kms.key_named("taken").unwrap().id(), taken.id());
    assert_eq!(rig.kms.table_named("t").unwrap().key().id(), key.id());
    assert_eq!(rig.kms.table_named("t").unwrap().description()["KeyName"], "all orders");
    drop(table);
}

#[test]
fn a_clock_set_back_revives_nothing_over_a_remount_and_a_kill() {
    let rig = Rig::new();
    rig.set_clock(10 * 3600);
    let before = rig.kms.now();
    rig.kms.keep_time().unwrap();
    rig.set_clock(-1000 * DAY);
    assert!(rig.kms.now() >= before);
    let rig = rig.reopened(false);
    assert!(rig.kms.now() >= before);
    let rig = rig.reopened(true);
    assert!(rig.kms.now() >= before);
    assert!(matches!(rig.kms.reset_clock(&alice()), Err(KmsError::Denied { .. })));
    rig.kms.reset_clock(&root()).unwrap();
    assert!(rig.kms.now() < before - 900 * DAY);
    let rig = rig.reopened(false);
    assert!(rig.kms.now() < before - 900 * DAY);
}

#[test]
fn a_store_made_for_tests_stays_one() {
    let rig = Rig::new();
    let text = rig.kms.store_policy().unwrap().text.clone();
    rig.kms.put_store_policy(&root(), &text).unwrap();
    let rig = rig.reopened(true);
    assert!(rig.kms.is_for_tests());
    assert_eq!(rig.kms.store_description()["ForTests"], true);
}
