//! Tables that change, on a real store: another key, another table key, material that goes.

use std::path::Path;
use std::sync::Arc;

use super::data_key::ItemKeySource;
use super::record::SealedVersion;
use super::wrap::{self, Wrapped};
use super::{ItemAsked, Key, KeySpec, Kms, KmsError, Ordered, SettingsChange, Subject, Table, TableSpec};
use crate::audit::Trail;
use crate::crypto::{Argon2Params, Key256, SecretBytes};
use crate::policy::PForm;
use crate::store::record::Scratch;
use crate::store::{Credential, Open, RecordKind, Store};
use crate::types::{Action, Encryption, Groups, Principal};

const ROOT: Principal = Principal { uid: 0, gid: 0, groups: Groups::Unknown };
const ALICE: Principal = Principal { uid: 61_001, gid: 61_001, groups: Groups::Unknown };

fn root() -> Subject<'static> {
    Subject::Caller { principal: &ROOT, tid: 0 }
}

fn alice() -> Subject<'static> {
    Subject::Caller { principal: &ALICE, tid: 0 }
}

fn credential() -> Credential {
    Credential::KeyFile(SecretBytes::new(vec![7; 64]))
}

fn how(dir: &Path) -> Open {
    Open { read_only: false, anchor_dir: dir.join("anchor"), owner: "a test".to_owned(), accept_anchor: false }
}

struct Rig {
    kms: Kms,
    scratch: Scratch,
}

impl Rig {
    fn new() -> Self {
        let scratch = Scratch::new().unwrap();
        let dir = scratch.path();
        let created = Store::create(&dir.join("store"), &credential(), Argon2Params::DEFAULT, "test", &how(dir));
        let store = Arc::new(created.unwrap());
        let kms = Kms::initialise(Arc::clone(&store), Self::trail(&store), &[PForm::Uid(0)]).unwrap();
        Self { kms, scratch }
    }

    fn trail(store: &Store) -> Arc<Trail> {
        let (keys, id) = (&store.keys().trail, store.id());
        let opened = Trail::open(store.root_dir().as_ref(), keys, id, *store.session(), store.trail_head());
        Arc::new(opened.unwrap().0)
    }

    fn reopened(self) -> Self {
        let Self { kms, scratch } = self;
        kms.close().unwrap();
        drop(kms);
        let dir = scratch.path();
        let store = Arc::new(Store::open(&dir.join("store"), &credential(), &how(dir)).unwrap());
        let (kms, damaged) = Kms::open(Arc::clone(&store), Some(Self::trail(&store))).unwrap();
        assert_eq!(damaged, []);
        Self { kms, scratch }
    }

    fn key(&self, name: &str) -> Arc<Key> {
        let users = vec![PForm::Uid(ALICE.uid)];
        let spec = KeySpec { name: name.to_owned(), admins: vec![PForm::Uid(0)], users, ..KeySpec::default() };
        self.kms.create_key(&root(), &spec).unwrap()
    }

    fn table(&self, name: &str, key: &str) -> Arc<Table> {
        let spec = TableSpec {
            name: name.to_owned(),
            encryption: Encryption::Customer,
            key: Some(key.to_owned()),
            users: Vec::new(),
        };
        self.kms.create_table(&root(), &spec, |_, _| Ok(())).unwrap()
    }

    /// What a rotation does to a key's record.
    fn add_material(&self, key: &Arc<Key>, version: u32) {
        let what = Wrapped::Material { key: key.id(), version };
        let sealed = wrap::seal(self.kms.store_id(), what, self.kms.wrap(), &Key256::random().unwrap()).unwrap();
        let mut material = key.now().unwrap().record.material[0].clone();
        material = SealedVersion { version, sealed, ..material };
        let _changing = self.kms.changing();
        let push = |record: &mut super::KeyRecord| record.material.push(material);
        self.kms.change_key(&root(), key, Action::UpdateKeyDescription, None, push).unwrap();
    }

    fn record_file(&self, id: &[u8; 16]) -> Vec<u8> {
        let id = super::hex(id);
        let records = std::fs::read_dir(self.scratch.path().join("store/records")).unwrap();
        let mut of_it =
            records.map(|entry| entry.unwrap()).filter(|e| e.file_name().to_str().unwrap().starts_with(&id));
        let only = std::fs::read(of_it.next().unwrap().path()).unwrap();
        assert!(of_it.next().is_none(), "one generation alone is kept");
        only
    }

    /// Whether any file of the store holds these bytes.
    fn is_anywhere(&self, bytes: &[u8]) -> bool {
        fn search(dir: &Path, bytes: &[u8]) -> bool {
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
                if path.is_dir() {
                    return search(&path, bytes);
                }
                std::fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes)
            })
        }
        search(&self.scratch.path().join("store"), bytes)
    }
}

fn decides(kms: &Kms, table: &Arc<Table>) -> Result<u64, KmsError> {
    let path = || b"item".to_vec();
    kms.decide_again(&alice(), &ItemAsked { table, path: &path }, Action::Decrypt).map(|standing| standing.generation)
}

#[test]
fn material_that_nothing_needs_goes_and_its_sealed_bytes_with_it() {
    let rig = Rig::new();
    let (key, table) = (rig.key("k"), rig.table("t", "k"));
    rig.add_material(&key, 2);
    let sealed = key.now().unwrap().record.material[0].sealed.clone();
    let retire = |word: &str| rig.kms.retire_versions(&root(), &key, word);
    assert!(matches!(retire("k"), Err(KmsError::Invalid(why)) if why.contains("for t")), "the table needs version 1");

    assert_eq!(rig.kms.order_re_encryption(&root(), &table).unwrap(), Ordered::New(2));
    assert!(matches!(retire("k"), Err(KmsError::Invalid(_))), "until the order is carried out");
    rig.kms.end_re_encryption(&table).unwrap();
    assert_eq!(table.record().table_keys.iter().map(|k| (k.version, k.material_version)).collect::<Vec<_>>(), [(2, 2)]);

    let before = rig.record_file(key.id().as_bytes());
    assert!(rig.is_anywhere(&before[16..80]));
    for word in ["", "t", "K"] {
        assert!(
            matches!(retire(word), Err(KmsError::Invalid(why)) if why.contains("version 1") && why.contains("encrypt"))
        );
    }
    assert!(matches!(rig.kms.retire_versions(&alice(), &key, "k"), Err(KmsError::Denied { .. })));
    assert_eq!(key.now().unwrap().record.material.len(), 2);
    assert_eq!(retire("k").unwrap(), [1]);
    for window in before[16..].windows(64).step_by(64) {
        assert!(!rig.is_anywhere(window), "the old record's bytes");
    }
    let text = rig.kms.store().read_record(RecordKind::Key, *key.id().as_bytes()).unwrap();
    assert!(!text.windows(sealed.len()).any(|window| window == sealed.as_bytes()), "the sealed material");
    assert!(matches!(retire("k"), Err(KmsError::Invalid(why)) if why.contains("one version")));

    let rig = rig.reopened();
    let table = rig.kms.table_named("t").unwrap();
    assert_eq!(
        rig.kms.decrypt(&alice(), &ItemAsked { table: &table, path: &Vec::new }).unwrap().0.current_version(),
        2
    );
}

#[test]
fn a_move_decides_anew_and_frees_the_old_key() {
    let rig = Rig::new();
    let (old, new) = (rig.key("old"), rig.key("new"));
    let table = rig.table("t", "old");
    let before = decides(&rig.kms, &table).unwrap();
    assert!(rig.kms.move_table(&alice(), &table, &new).is_err());
    rig.kms.move_table(&root(), &table, &new).unwrap();
    assert_eq!(table.key().id(), new.id());
    let after = decides(&rig.kms, &table).unwrap();
    assert_ne!(before, after, "what was decided under one key is never taken for decided under another");
    assert_ne!(old.generation(), new.generation());
    rig.kms.change_users(&root(), &new, &[PForm::Uid(ALICE.uid)], false).unwrap();
    assert!(matches!(decides(&rig.kms, &table), Err(KmsError::Denied { .. })));

    let rig = rig.reopened();
    let table = rig.kms.table_named("t").unwrap();
    assert_eq!(table.key().now().unwrap().record.name, "new");
    // Back, and to the newest material of the same key.
    let old = rig.kms.key_named("old").unwrap();
    rig.kms.move_table(&root(), &table, &old).unwrap();
    rig.add_material(&old, 2);
    rig.kms.move_table(&root(), &table, &old).unwrap();
    assert_eq!(table.record().table_keys[0].material_version, 2);
    assert_eq!(rig.kms.retire_versions(&root(), &old, "old").unwrap(), [1]);
    let rig = rig.reopened();
    assert!(decides(&rig.kms, &rig.kms.table_named("t").unwrap()).is_ok());
}

#[test]
fn an_order_is_one_until_it_is_carried_out() {
    let rig = Rig::new();
    let (key, other) = (rig.key("k"), rig.key("other"));
    let table = rig.table("t", "k");
    assert!(matches!(rig.kms.re_seal_key(&table), Err(KmsError::NotFound)), "nobody has ordered it");
    assert!(matches!(rig.kms.end_re_encryption(&table), Err(KmsError::NotFound)));
    assert!(rig.kms.order_re_encryption(&alice(), &table).is_err());
    assert_eq!(rig.kms.order_re_encryption(&root(), &table).unwrap(), Ordered::New(2));
    assert_eq!(rig.kms.order_re_encryption(&root(), &table).unwrap(), Ordered::GoesOn(2));
    let capability = rig.kms.re_seal_key(&table).unwrap();
    assert_eq!(capability.current_version(), 2);
    assert!(capability.item_prk(1, &[0; 16]).is_some());
    // A move in the middle takes both versions along.
    rig.kms.move_table(&root(), &table, &other).unwrap();
    rig.kms.stop_re_encryption(&root(), &table).unwrap();
    assert!(matches!(rig.kms.re_seal_key(&table), Err(KmsError::NotFound)), "stopped");
    assert!(matches!(rig.kms.end_re_encryption(&table), Err(KmsError::NotFound)), "stopped");
    let rig = rig.reopened();
    let table = rig.kms.table_named("t").unwrap();
    assert!(table.re_encryption().unwrap().stopped);
    assert_eq!(rig.kms.order_re_encryption(&root(), &table).unwrap(), Ordered::GoesOn(2));
    let capability = rig.kms.re_seal_key(&table).unwrap();
    rig.kms.end_re_encryption(&table).unwrap();
    assert!(capability.item_prk(1, &[0; 16]).is_none(), "whoever holds a capability loses the old key too");
    assert!(capability.item_prk(2, &[0; 16]).is_some());
    assert!(key.now().is_some());
}

#[test]
fn settings_stay_where_they_are_not_named() {
    let rig = Rig::new();
    rig.key("k");
    let table = rig.table("t", "k");
    let change = SettingsChange { names: Some(super::NamesMode::Sealed), ..SettingsChange::default() };
    let old = rig.kms.set_table(&root(), &table, change).unwrap();
    assert_eq!(old, super::Settings::default());
    assert!(rig.kms.set_table(&alice(), &table, SettingsChange::default()).is_err());
    let rig = rig.reopened();
    let table = rig.kms.table_named("t").unwrap();
    assert_eq!(table.settings(), super::Settings { names: super::NamesMode::Sealed, ..super::Settings::default() });
}
