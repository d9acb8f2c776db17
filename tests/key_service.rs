//! The key service called as a mount calls it, without one: direct calls, questions about a policy, saves that build on a
//! generation. What the trail says of each is read back.

#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic, and then says so")]

use std::sync::{Arc, Barrier};

use kmsfs::crypto::{Argon2Params, SecretBytes};
use kmsfs::fs::open_trail;
use kmsfs::kms::{
    About, CIPHERTEXT_MOST, DirectRequest, Key, KeySpec, Kms, KmsError, PLAINTEXT_MOST, PolicyDiff, Query, Simulate,
    Subject, WhoCan,
};
use kmsfs::policy::{PForm, base64};
use kmsfs::store::record::Scratch;
use kmsfs::store::{Credential, Open, Store};
use kmsfs::types::{EncryptionContext, Groups, Principal};
use serde_json::{Value, json};

const ROOT: u32 = 0;
const ALICE: u32 = 61_001;
const BOB: u32 = 61_002;

struct Bench {
    kms: Kms,
    key: Arc<Key>,
    other: Arc<Key>,
    _scratch: Scratch,
}

fn principal(uid: u32) -> Principal {
    Principal { uid, gid: uid, groups: Groups::Known(Vec::new()) }
}

fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
    EncryptionContext::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

impl Bench {
    /// Root administers the keys `orders` and `backup`, alice uses both.
    fn new() -> Self {
        let scratch = Scratch::new().unwrap();
        let anchor_dir = scratch.path().join("anchors");
        let how = Open { read_only: false, anchor_dir, owner: "test".to_owned(), accept_anchor: false };
        let credential = Credential::KeyFile(SecretBytes::new(vec![1; 64]));
        let path = scratch.path().join("store");
        let store = Store::create(&path, &credential, Argon2Params::DEFAULT, "", &how).unwrap();
        let (trail, _) = open_trail(&store).unwrap();
        let kms = Kms::initialise(store.into(), trail.into(), &[PForm::Uid(ROOT)]).unwrap();
        let root = principal(ROOT);
        let key = |name: &str| {
            let users = vec![PForm::Uid(ALICE)];
            let spec = KeySpec { name: name.to_owned(), admins: vec![PForm::Uid(ROOT)], users, ..KeySpec::default() };
            kms.create_key(&Subject::Caller { principal: &root, tid: 0 }, &spec).unwrap()
        };
        let (key, other) = (key("orders"), key("backup"));
        Self { kms, key, other, _scratch: scratch }
    }

    fn as_user<T>(&self, uid: u32, call: impl FnOnce(&Kms, &Subject<'_>) -> T) -> T {
        call(&self.kms, &Subject::Caller { principal: &principal(uid), tid: 0 })
    }

    fn encrypt(&self, uid: u32, context: &EncryptionContext, text: &[u8]) -> Result<Vec<u8>, KmsError> {
        self.as_user(uid, |kms, who| kms.encrypt(who, &self.key, context, text))
    }

    fn decrypt(&self, uid: u32, context: &EncryptionContext, sealed: &[u8]) -> Result<Vec<u8>, KmsError> {
        self.as_user(uid, |kms, who| kms.decrypt_ciphertext(who, None, context, sealed).map(|text| text.to_vec()))
    }

    fn policy(&self, key: &Arc<Key>, statements: &Value) {
        let mut policy: Value = serde_json::from_str(&key.now().unwrap().policy.text).unwrap();
        policy["Statement"].as_array_mut().unwrap().extend(statements.as_array().unwrap().clone());
        self.as_user(ROOT, |kms, who| kms.put_key_policy(who, key, &policy.to_string())).unwrap();
    }

    fn last_event(&self) -> Value {
        let line = self.kms.trail_lines().unwrap().last().unwrap();
        serde_json::from_slice(&line).unwrap()
    }

    fn query(&self, uid: u32, query: &Query, document: &[u8]) -> Result<Value, KmsError> {
        self.as_user(uid, |kms, who| kms.query(who, Some(&self.key), query, document))
    }
}

#[test]
fn a_user_encrypts_and_decrypts_and_nobody_else_does() {
    let bench = Bench::new();
    let backup = context(&[("purpose", "backup")]);
    let sealed = bench.encrypt(ALICE, &backup, b"secret").unwrap();
    assert_eq!(bench.last_event()["eventName"], "Encrypt");
    assert_eq!(bench.decrypt(ALICE, &backup, &sealed).unwrap(), b"secret");
    let event = bench.last_event();
    assert_eq!((&event["eventName"], &event["errorCode"]), (&json!("Decrypt"), &Value::Null));
    assert_eq!(event["requestParameters"]["encryptionContext"], json!({"purpose": "backup"}));
    assert_eq!(event["resources"], json!([{"type": "kmsfs::Key", "id": bench.key.id(), "name": "orders"}]));
    for uid in [ROOT, BOB] {
        assert!(matches!(bench.encrypt(uid, &backup, b"x"), Err(KmsError::Denied { .. })));
        assert!(matches!(bench.decrypt(uid, &backup, &sealed), Err(KmsError::Denied { .. })));
        let event = bench.last_event();
        assert_eq!((&event["errorCode"], &event["userIdentity"]["uid"]), (&json!("AccessDenied"), &json!(uid)));
    }
    // Policy before authentication: who may not decrypt does not learn that the context is wrong.
    assert!(matches!(bench.decrypt(BOB, &context(&[]), &sealed), Err(KmsError::Denied { .. })));
    assert!(matches!(bench.decrypt(ALICE, &context(&[]), &sealed), Err(KmsError::InvalidCiphertext(_))));
    assert_eq!(bench.last_event()["errorCode"], "InvalidCiphertextException");
}

#[test]
fn lengths_and_contexts_have_their_limits() {
    let bench = Bench::new();
    let none = context(&[]);
    let longest = bench.encrypt(ALICE, &none, &[7; PLAINTEXT_MOST]).unwrap();
    assert_eq!(longest.len(), CIPHERTEXT_MOST);
    assert_eq!(bench.decrypt(ALICE, &none, &longest).unwrap(), [7; PLAINTEXT_MOST]);
    let empty = bench.encrypt(ALICE, &none, b"").unwrap();
    assert_eq!(bench.decrypt(ALICE, &none, &empty).unwrap(), b"");
    assert!(matches!(bench.encrypt(ALICE, &none, &[7; PLAINTEXT_MOST + 1]), Err(KmsError::Invalid(_))));
    let long = "x".repeat(8192);
    assert!(matches!(bench.encrypt(ALICE, &context(&[("y", &long)]), b""), Err(KmsError::Invalid(_))));
    assert!(matches!(bench.encrypt(ALICE, &context(&[("", "x")]), b""), Err(KmsError::Invalid(_))));
    // A context as long as it may be is not repeated by every event.
    let long = context(&[("y", long.get(1..).unwrap())]);
    let sealed = bench.encrypt(ALICE, &long, b"x").unwrap();
    assert_eq!(bench.decrypt(ALICE, &long, &sealed).unwrap(), b"x");
    assert!(bench.last_event().to_string().len() < 2048);
}

#[test]
fn a_policy_may_test_the_context_and_whether_a_call_is_direct() {
    let bench = Bench::new();
    bench.policy(
        &bench.key,
        &json!([
            {"Sid": "Backups", "Effect": "Allow", "Principal": {"Unix": "uid:61002"}, "Action": "kms:Decrypt",
             "Resource": "*", "Condition": {"StringEquals": {"kms:EncryptionContext:purpose": "backup"}}},
            {"Sid": "Tables alone", "Effect": "Deny", "Principal": {"Unix": "uid:61001"}, "Action": "kms:Encrypt",
             "Resource": "*", "Condition": {"StringNotEquals": {"kms:ViaService": "kmsfs"},
             "Null": {"kms:EncryptionContext:purpose": "true"}}}
        ]),
    );
    let backup = context(&[("purpose", "backup")]);
    let sealed = bench.encrypt(ALICE, &backup, b"x").unwrap();
    assert_eq!(bench.decrypt(BOB, &backup, &sealed).unwrap(), b"x");
    let other = context(&[("purpose", "other")]);
    let sealed = bench.encrypt(ALICE, &other, b"x").unwrap();
    assert!(matches!(bench.decrypt(BOB, &other, &sealed), Err(KmsError::Denied { .. })));
    assert!(matches!(bench.encrypt(ALICE, &context(&[]), b"x"), Err(KmsError::Denied { .. })));
}

/// As AWS's managed keys: they serve their service and no direct call.
#[test]
fn the_store_s_own_keys_take_no_direct_calls() {
    let bench = Bench::new();
    let managed = bench.kms.key_named("kmsfs-managed").unwrap();
    let owned = bench.kms.key_named("kmsfs-owned").unwrap();
    bench.as_user(ALICE, |kms, who| {
        let none = context(&[]);
        assert!(matches!(kms.encrypt(who, &managed, &none, b"x"), Err(KmsError::Denied { .. })));
        assert!(matches!(kms.encrypt(who, &owned, &none, b"x"), Err(KmsError::NotFound)));
        assert!(matches!(kms.generate_data_key(who, &owned, &none, 32, true), Err(KmsError::NotFound)));
    });
    let custodian = Subject::Custodian { uid: ROOT, reason: "none" };
    assert!(matches!(bench.kms.encrypt(&custodian, &bench.key, &context(&[]), b"x"), Err(KmsError::Denied { .. })));
}

#[test]
fn a_changed_ciphertext_is_one_clear_error() {
    let bench = Bench::new();
    let none = context(&[]);
    let sealed = bench.encrypt(ALICE, &none, b"secret").unwrap();
    for bit in 0..sealed.len() * 8 {
        let mut damaged = sealed.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let opened = bench.decrypt(ALICE, &none, &damaged);
        assert!(matches!(opened, Err(KmsError::InvalidCiphertext(_))), "bit {bit}: {opened:?}");
    }
    // The other key's id in its place: alice may use that one too, and it does not open it.
    let mut moved = sealed.clone();
    moved[28..44].copy_from_slice(bench.other.id().as_bytes());
    assert!(matches!(bench.decrypt(ALICE, &none, &moved), Err(KmsError::InvalidCiphertext(_))));
    bench.as_user(ALICE, |kms, who| {
        let with = |key| kms.decrypt_ciphertext(who, Some(key), &none, &sealed);
        assert!(with(&bench.key).is_ok());
        assert!(matches!(with(&bench.other), Err(KmsError::InvalidCiphertext(_))));
    });
}

#[test]
fn re_encryption_takes_a_right_to_both_keys_and_gives_no_plaintext() {
    let bench = Bench::new();
    let (from, to) = (context(&[("a", "1")]), context(&[("b", "2")]));
    let sealed = bench.encrypt(ALICE, &from, b"secret").unwrap();
    let again = |uid| bench.as_user(uid, |kms, who| kms.re_encrypt(who, &from, &sealed, &bench.other, &to));
    let moved = again(ALICE).unwrap();
    let event = bench.last_event();
    assert_eq!(event["eventName"], "ReEncrypt");
    assert_eq!(event["requestParameters"]["sourceEncryptionContext"], json!({"a": "1"}));
    assert_eq!(event["requestParameters"]["destinationEncryptionContext"], json!({"b": "2"}));
    assert_eq!(event["resources"].as_array().unwrap().len(), 2);
    assert_eq!(bench.decrypt(ALICE, &to, &moved).unwrap(), b"secret");
    // bob may re-encrypt from the one key, and then to the other; neither lets him decrypt.
    let allow = |action: &str| json!([{"Effect": "Allow", "Principal": {"Unix": "uid:61002"}, "Action": action, "Resource": "*"}]);
    assert!(matches!(again(BOB), Err(KmsError::Denied { .. })));
    bench.policy(&bench.key, &allow("kms:ReEncryptFrom"));
    assert!(matches!(again(BOB), Err(KmsError::Denied { .. })));
    bench.policy(&bench.other, &allow("kms:ReEncryptTo"));
    let moved = again(BOB).unwrap();
    assert!(matches!(bench.decrypt(BOB, &to, &moved), Err(KmsError::Denied { .. })));
    assert_eq!(bench.decrypt(ALICE, &to, &moved).unwrap(), b"secret");
    bench.as_user(ALICE, |kms, who| {
        let wrong = kms.re_encrypt(who, &to, &sealed, &bench.other, &to);
        assert!(matches!(wrong, Err(KmsError::InvalidCiphertext(_))));
    });
}

#[test]
fn a_data_key_comes_plain_and_sealed_or_sealed_alone() {
    let bench = Bench::new();
    let asked = DirectRequest::GenerateDataKey(Arc::clone(&bench.key));
    let ask = |uid, line: &[u8]| -> Result<Value, KmsError> {
        let text = bench.as_user(uid, |kms, who| kms.run_direct(who, &asked, line))?;
        Ok(serde_json::from_slice(&text).unwrap())
    };
    let made = ask(ALICE, br#"{"EncryptionContext": {"a": "1"}}"#).unwrap();
    let part = |name: &str| base64(made[name].as_str().unwrap()).unwrap();
    assert_eq!(part("Plaintext").len(), 32);
    assert_eq!(bench.decrypt(ALICE, &context(&[("a", "1")]), &part("CiphertextBlob")).unwrap(), part("Plaintext"));
    let sealed = ask(ALICE, br#"{"WithoutPlaintext": true, "NumberOfBytes": 7}"#).unwrap();
    assert_eq!(sealed.get("Plaintext"), None);
    assert_eq!(bench.last_event()["eventName"], "GenerateDataKeyWithoutPlaintext");
    let blob = base64(sealed["CiphertextBlob"].as_str().unwrap()).unwrap();
    assert_eq!(bench.decrypt(ALICE, &context(&[]), &blob).unwrap().len(), 7);
    for line in [&br#"{"NumberOfBytes": 0}"#[..], br#"{"NumberOfBytes": 1025}"#, b"{}\nmore", b"[]"] {
        assert!(matches!(ask(ALICE, line), Err(KmsError::Invalid(_))), "{}", line.escape_ascii());
    }
    assert!(matches!(ask(BOB, b""), Err(KmsError::Denied { .. })));
    // Two actions: who may have it sealed may not have it plain.
    bench.policy(
        &bench.key,
        &json!([{"Effect": "Allow", "Principal": {"Unix": "uid:61002"}, "Resource": "*",
            "Action": "kms:GenerateDataKeyWithoutPlaintext"}]),
    );
    assert!(matches!(ask(BOB, b""), Err(KmsError::Denied { .. })));
    assert!(ask(BOB, br#"{"WithoutPlaintext": true}"#).is_ok());
}

#[test]
fn the_reason_of_a_denial_is_for_those_who_may_read_the_policy() {
    let bench = Bench::new();
    let deny = json!([{"Sid": "Not bob", "Effect": "Deny", "Principal": {"Unix": ["uid:61002", "uid:0"]},
        "Action": ["kms:Encrypt", "kms:UpdateKeyDescription"], "Resource": "*"}]);
    bench.policy(&bench.key, &deny);
    let told = |uid| bench.encrypt(uid, &context(&[]), b"x").unwrap_err().to_string();
    assert!(!told(BOB).contains("Not bob"), "{}", told(BOB));
    assert!(told(ROOT).contains("Not bob"), "{}", told(ROOT));
    assert!(bench.last_event()["errorMessage"].as_str().unwrap().contains("Not bob"));
    let described = bench.as_user(BOB, |kms, who| kms.describe(who, &bench.key, "x")).unwrap_err().to_string();
    assert!(!described.contains("Not bob"), "{described}");
}

#[test]
fn a_grant_counts_for_direct_calls_and_in_answers() {
    let bench = Bench::new();
    let backup = context(&[("purpose", "backup")]);
    let sealed = bench.encrypt(ALICE, &backup, b"x").unwrap();
    let other = bench.encrypt(ALICE, &context(&[]), b"x").unwrap();
    assert!(matches!(bench.decrypt(BOB, &backup, &sealed), Err(KmsError::Denied { .. })));
    let line = r#"create-grant {"GranteePrincipal": "uid:61002", "Operations": ["Decrypt"], "Constraints": {"EncryptionContextSubset": {"purpose": "backup"}}}"#;
    bench.as_user(ROOT, |kms, who| kms.run_key_command(who, &bench.key, line)).unwrap();
    assert_eq!(bench.decrypt(BOB, &backup, &sealed).unwrap(), b"x");
    assert!(matches!(bench.decrypt(BOB, &context(&[]), &other), Err(KmsError::Denied { .. })));
    let simulate = |pairs| {
        let asked = Simulate { r#as: "uid:61002".to_owned(), action: "Decrypt".to_owned(), about: about(pairs) };
        bench.query(ROOT, &Query::Simulate(asked), b"").unwrap()["Reason"].as_str().unwrap().to_owned()
    };
    assert!(simulate(&[("purpose", "backup")]).contains("by grant"), "{}", simulate(&[("purpose", "backup")]));
    assert!(simulate(&[]).contains("constraint of grant"), "{}", simulate(&[]));
    let asked = WhoCan { action: "Decrypt".to_owned(), about: about(&[("purpose", "backup")]) };
    let answer = bench.query(ROOT, &Query::WhoCan(asked), b"").unwrap();
    let uids: Vec<_> = answer["Principals"].as_array().unwrap().iter().map(|row| row["Uid"].clone()).collect();
    assert_eq!(uids, [json!(ALICE), json!(BOB)]);
}

fn about(pairs: &[(&str, &str)]) -> About {
    About { encryption_context: context(pairs).pairs().clone(), ..About::default() }
}

#[test]
fn a_simulation_says_what_a_call_would_meet() {
    let bench = Bench::new();
    bench.policy(
        &bench.key,
        &json!([{"Sid": "Backups", "Effect": "Allow", "Principal": {"Unix": "uid:61002"}, "Action": "kms:Decrypt",
            "Resource": "*", "Condition": {"StringEquals": {"kms:EncryptionContext:purpose": "backup"}}}]),
    );
    for (who, action, pairs, allowed, reason) in [
        ("uid:61001", "kms:Decrypt", &[][..], true, "\"Key users\""),
        ("uid:61001", "putkeypolicy", &[], false, "no statement"),
        ("uid:61002", "Decrypt", &[("purpose", "backup")], true, "\"Backups\""),
        ("uid:61002", "Decrypt", &[], false, "condition or the resource of statement \"Backups\""),
        ("uid:61002", "Encrypt", &[("purpose", "backup")], false, "no statement"),
        ("root", "PutKeyPolicy", &[], true, "\"Key administrators\""),
        ("group:root", "Decrypt", &[], false, "no statement"),
    ] {
        let asked = Simulate { r#as: who.to_owned(), action: action.to_owned(), about: about(pairs) };
        let answer = bench.query(ROOT, &Query::Simulate(asked), b"").unwrap();
        assert_eq!(answer["Allowed"], allowed, "{who} {action}: {answer}");
        assert!(answer["Reason"].as_str().unwrap().contains(reason), "{who} {action}: {answer}");
        assert_eq!(answer["KeyState"], "Enabled");
    }
    for (who, action, about) in [
        ("no-such-user", "Decrypt", About::default()),
        ("1001", "Decrypt", About::default()),
        ("root", "Decypt", About::default()),
        ("root", "Decrypt", About { item: Some("x".to_owned()), ..About::default() }),
    ] {
        let asked = Simulate { r#as: who.to_owned(), action: action.to_owned(), about };
        assert!(matches!(bench.query(ROOT, &Query::Simulate(asked), b""), Err(KmsError::Invalid(_))), "{who} {action}");
    }
    // Who may not read the policy learns nothing of it.
    let asked =
        Query::Simulate(Simulate { r#as: "root".to_owned(), action: "Decrypt".to_owned(), ..Simulate::default() });
    assert!(matches!(bench.query(ALICE, &asked, b""), Err(KmsError::Denied { .. })));
    assert_eq!(bench.last_event()["eventName"], "GetKeyPolicy");
}

#[test]
fn who_can_lists_accounts_numbers_and_everyone() {
    let bench = Bench::new();
    let ask = |action: &str| {
        let asked = WhoCan { action: action.to_owned(), about: About::default() };
        bench.query(ROOT, &Query::WhoCan(asked), b"").unwrap()
    };
    let answer = ask("Decrypt");
    assert_eq!(answer["Principals"][0]["Uid"], 61_001);
    assert!(answer["Principals"][0]["Reason"].as_str().unwrap().contains("\"Key users\""));
    assert_eq!((answer["Principals"].as_array().unwrap().len(), &answer["AnyoneElse"]), (1, &Value::Null));
    assert_eq!(ask("PutKeyPolicy")["Principals"][0]["UserName"], "root");
    bench.policy(
        &bench.key,
        &json!([{"Sid": "All", "Effect": "Allow", "Principal": "*", "Action": "kms:DescribeKey", "Resource": "*"}]),
    );
    let answer = ask("DescribeKey");
    assert!(answer["AnyoneElse"].as_str().unwrap().contains("\"All\""), "{answer}");
    assert!(answer["Principals"].as_array().unwrap().len() > 2, "the host's accounts: {answer}");
    assert_eq!(answer["Complete"], true);
}

#[test]
fn a_diff_says_who_gains_and_who_loses_and_saves_nothing() {
    let bench = Bench::new();
    let before = bench.key.now().unwrap().policy.text.clone();
    let after = before.replace("uid:61001", "uid:61002").replace("\"kms:RotateKeyOnDemand\"", "\"kms:RetireGrant\"");
    let ask = |document: &str| bench.query(ROOT, &Query::PolicyDiff(PolicyDiff::default()), document.as_bytes());
    assert_eq!(ask(&before).unwrap()["Changes"], json!([]));
    let answer = ask(&after).unwrap();
    let found = |uid: u32, change: &str| {
        let rows = answer["Changes"].as_array().unwrap();
        let of = |row: &&Value| row["Who"]["Uid"] == uid && row["Change"] == change;
        rows.iter().filter(of).flat_map(|row| row["Actions"].as_array().unwrap().clone()).collect::<Vec<_>>()
    };
    assert!(found(ALICE, "loses").contains(&json!("kms:Decrypt")) && found(ALICE, "gains").is_empty());
    assert!(found(BOB, "gains").contains(&json!("kms:DescribeKey")) && found(BOB, "loses").is_empty());
    assert_eq!(found(ROOT, "loses"), [json!("kms:RotateKeyOnDemand")]);
    assert_eq!(found(ROOT, "gains"), [json!("kms:RetireGrant")]);
    assert_eq!((&answer["LockOut"], &answer["PolicyGeneration"]), (&json!(false), &json!(1)));
    assert_eq!(ask(&before.replace("\"kms:Put*\",", "")).unwrap()["LockOut"], true);
    assert!(matches!(ask("{"), Err(KmsError::Policy(_))));
    assert!(matches!(ask(&before.replace("uid:61001", "no-such-user")), Err(KmsError::UnknownName { .. })));
    assert_eq!(bench.key.now().unwrap().policy.text, before);
}

#[test]
fn of_two_saves_on_one_generation_one_is_refused() {
    let bench = Bench::new();
    let text = bench.key.now().unwrap().policy.text.clone();
    let put = |expected| bench.as_user(ROOT, |kms, who| kms.put_key_policy_if(who, &bench.key, &text, Some(expected)));
    put(1).unwrap();
    assert!(matches!(put(1), Err(KmsError::Outdated(2))));
    assert!(matches!(put(3), Err(KmsError::Outdated(2))));
    // Who may not save is not told the generation.
    let stranger = bench.as_user(BOB, |kms, who| kms.put_key_policy_if(who, &bench.key, &text, Some(1)));
    assert!(matches!(stranger, Err(KmsError::Denied { .. })));
    for round in 2..22 {
        let start = Barrier::new(4);
        let saved = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        put(round).is_ok()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(saved, 1, "round {round}");
    }
}

#[test]
fn a_request_has_the_documented_members_and_no_others() {
    let parse = |text: &str| serde_json::from_str::<Query>(text);
    let whole = r#"{"Simulate": {"As": "bob", "Action": "Decrypt", "Table": "t", "Item": "x"}}"#;
    let Query::Simulate(asked) = parse(whole).unwrap() else { unreachable!() };
    assert_eq!((asked.about.table.as_deref(), asked.about.item.as_deref()), (Some("t"), Some("x")));
    assert!(parse(r#"{"WhoCan": {"Action": "Decrypt", "EncryptionContext": {"a": "b"}}}"#).is_ok());
    assert!(parse(r#"{"PolicyDiff": {}}"#).is_ok());
    for bad in [
        r#"{"Simulate": {"As": "bob", "Action": "Decrypt", "Tabel": "t"}}"#,
        r#"{"WhoCan": {"As": "bob", "Action": "Decrypt"}}"#,
        r#"{"Drop": {}}"#,
        r#"{"PolicyDiff": {}, "WhoCan": {}}"#,
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
