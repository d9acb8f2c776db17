//! What is written to the control tree: command lines, through the file system, by an administrator and by a stranger.

use std::ffi::OsStr;

use kmsfs::crypto::{Argon2Params, SecretBytes};
use kmsfs::fs::api::{Caller, FsError, Operations};
use kmsfs::fs::{FileSystem, Options, open_trail};
use kmsfs::kms::Kms;
use kmsfs::policy::PForm;
use kmsfs::store::record::Scratch;
use kmsfs::store::{Credential, Open, Store};

use super::engine::{Target, Verdict, run};

const ROOT: Caller = Caller { uid: 0, gid: 0, tid: 0 };
const STRANGER: Caller = Caller { uid: 61_001, gid: 61_001, tid: 0 };
/// Commands that were done: each makes or changes a key or a table, so that a store is good for so many.
const DONE_MOST: u32 = 100;

struct Bench {
    fs: FileSystem,
    done: u32,
    _scratch: Scratch,
}

impl Bench {
    fn new() -> Self {
        let scratch = Scratch::new().unwrap();
        let anchor_dir = scratch.path().join("anchors");
        let how = Open { read_only: false, anchor_dir, owner: "fuzz".to_owned(), accept_anchor: false };
        let credential = Credential::KeyFile(SecretBytes::new(vec![1; 64]));
        let path = scratch.path().join("store");
        let store = Store::create(&path, &credential, Argon2Params::DEFAULT, "", &how).unwrap();
        let (trail, _) = open_trail(&store).unwrap();
        Kms::initialise(store.into(), trail.into(), &[PForm::Uid(0)]).unwrap().close().unwrap();
        let store = Store::open(&path, &credential, &how).unwrap();
        let bench = Self { fs: FileSystem::open(store, Options::default()).unwrap(), done: 0, _scratch: scratch };
        bench.command(ROOT, &["ctl"], b"create-key k admin=root user=root").unwrap();
        bench.command(ROOT, &["ctl"], b"create-table t key=k").unwrap();
        bench
    }

    fn find(&self, caller: Caller, path: &[&str]) -> u64 {
        let kms = self.fs.lookup(&caller, 1, OsStr::new(".kms")).unwrap().attr.ino;
        path.iter().fold(kms, |folder, name| self.fs.lookup(&caller, folder, OsStr::new(name)).unwrap().attr.ino)
    }

    fn command(&self, caller: Caller, path: &[&str], line: &[u8]) -> Result<(), FsError> {
        let ino = self.find(caller, path);
        let fh = self.fs.open(&caller, ino, libc::O_WRONLY)?.fh;
        let mut written = self.fs.write(&caller, ino, fh, 0, line, false, false).map(|_| ());
        if written.is_ok() {
            written = self.fs.flush(&caller, ino, fh).map(|_| ());
        }
        self.fs.release(ino, fh);
        written
    }

    /// One request and its answer.
    fn exchange(&self, caller: Caller, path: &[&str], request: &[u8]) -> Result<Vec<u8>, FsError> {
        let ino = self.find(caller, path);
        let fh = self.fs.open(&caller, ino, libc::O_RDWR)?.fh;
        let written = self.fs.write(&caller, ino, fh, 0, request, false, false);
        let mut answer = Vec::new();
        let end = request.len() as u64;
        let read = written.and_then(|_| self.fs.read(&caller, ino, fh, end, &mut answer, 1 << 17));
        self.fs.release(ino, fh);
        read.map(|()| answer)
    }

    fn result(&self, caller: Caller, path: &[&str]) -> String {
        let ino = self.find(caller, path);
        let fh = self.fs.open(&caller, ino, libc::O_RDONLY).unwrap().fh;
        let mut text = Vec::new();
        self.fs.read(&caller, ino, fh, 0, &mut text, 1 << 16).unwrap();
        self.fs.release(ino, fh);
        String::from_utf8(text).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.fs.shut_down();
    }
}

/// What command lines are made of.
const WORDS: &[&[u8]] = &[
    b"key: ",
    b"create-key ",
    b"create-table ",
    b"add-user ",
    b"remove-user ",
    b"rebind",
    b"describe ",
    b"admin=",
    b"user=root ",
    b"encryption=owned ",
    b"encryption=customer ",
    b"key=k ",
    b"description=",
    b"uid:1 ",
    b"enable",
    b"disable",
    b"rotate",
    b"auto-rotate ",
    b"schedule-deletion ",
    b"cancel-deletion",
    b"confirm-elapsed ",
    b"reset-clock",
    b"group:root ",
    b"\n",
    b"\xc2\x85",
    b"..",
    b"/",
];

/// Input: a line for the store's `ctl`, or behind `key: ` for that of a key.
#[test]
fn command_lines() {
    let target = Target { name: "ctl", longest: 17_000, words: WORDS, json: false };
    let valid = || {
        [
            ("valid-key", "create-key a admin=root user=uid:7 description=for the shop"),
            ("valid-table", "create-table b encryption=managed"),
            ("valid-customer", "create-table c user=root"),
            ("valid-add", "key: add-user uid:7 group:root"),
            ("valid-remove", "key: remove-user root"),
            ("valid-rebind", "key: rebind\n"),
            ("valid-describe", "key: describe a few words"),
            ("valid-auto-rotate", "key: auto-rotate 90"),
            ("valid-blast-radius", "key: blast-radius"),
            ("valid-clock", "reset-clock"),
            ("valid-rotate", "key: rotate"),
            // The corpus is taken in the order of its names.
            ("valid-z1-disable", "key: disable"),
            ("valid-z2-deletion", "key: schedule-deletion 7 k"),
            ("valid-z3-cancel", "key: cancel-deletion"),
            ("valid-z4-enable", "key: enable"),
        ]
        .map(|(name, line)| (name, line.as_bytes().to_vec()))
        .into()
    };
    let mut bench = Bench::new();
    run(&target, valid, |input| {
        let (path, line): (&[&str], &[u8]) = match input.strip_prefix(b"key: ") {
            Some(line) => (&["keys", "k"], line),
            None => (&[], input),
        };
        let (ctl, result) = ([path, &["ctl"]].concat(), [path, &["ctl.result"]].concat());
        // Whoever has no right learns nothing of a policy, and changes nothing.
        let stranger = bench.command(STRANGER, &ctl, line);
        let told = bench.result(STRANGER, &result);
        let first = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        assert!(stranger.is_err() || first.trim_ascii().is_empty(), "a stranger: {told}");
        let of_policy = ["gives", "edit the policy itself", "policy.json", "would not be able"];
        assert!(!of_policy.iter().any(|words| told.contains(words)), "a stranger is told: {told}");

        let done = bench.command(ROOT, &ctl, line);
        bench.done += u32::from(done.is_ok());
        let said = bench.result(ROOT, &result);
        if bench.done >= DONE_MOST {
            bench = Bench::new();
        }
        match done {
            Ok(()) => Verdict::Accepted,
            Err(_) => Verdict::Refused(said),
        }
    });
}

/// Input: the file, `: `, and what is written to it.
#[test]
fn requests() {
    const FILES: [(&str, &[&str]); 6] = [
        ("encrypt", &["keys", "k", "encrypt"]),
        ("decrypt", &["decrypt"]),
        ("re-encrypt", &["keys", "k", "re-encrypt"]),
        ("data-key", &["keys", "k", "generate-data-key"]),
        ("query", &["keys", "k", "query"]),
        ("store-query", &["query"]),
    ];
    let words: &[&[u8]] = &[
        b"encrypt: ",
        b"decrypt: ",
        b"data-key: ",
        b"query: ",
        b"store-query: ",
        br#"{"EncryptionContext": {"a": "b"}}"#,
        br#"{"SourceEncryptionContext": {}}"#,
        br#"{"NumberOfBytes": 7}"#,
        br#"{"Simulate": {"As": "root", "Action": "kms:Decrypt", "Table": "t", "Item": "x"}}"#,
        br#"{"WhoCan": {"Action": "CreateKey"}}"#,
        br#"{"PolicyDiff": {}}"#,
        br#"{"Version": "2012-10-17", "Statement": []}"#,
        b"uid:7",
        b"group:root",
        b"\n",
        b"KMSFSCPH",
    ];
    let target = Target { name: "request", longest: 70_000, words, json: false };
    let policy = r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Unix": "root"}, "Action": "*", "Resource": "*"}]}"#;
    let diff = format!("query: {{\"PolicyDiff\": {{}}}}\n{policy}");
    let valid = || {
        [
            ("valid-encrypt", "encrypt: {\"EncryptionContext\": {\"a\": \"b\"}}\nsome bytes"),
            ("valid-blank", "encrypt: \n"),
            ("valid-data-key", "data-key: {\"NumberOfBytes\": 7, \"WithoutPlaintext\": true}"),
            (
                "valid-simulate",
                "query: {\"Simulate\": {\"As\": \"root\", \"Action\": \"Decrypt\", \"Table\": \"t\"}}\n",
            ),
            ("valid-who-can", "store-query: {\"WhoCan\": {\"Action\": \"kmsfs:CreateTable\"}}\n"),
            ("valid-diff", diff.as_str()),
        ]
        .map(|(name, text)| (name, text.as_bytes().to_vec()))
        .into()
    };
    let bench = Bench::new();
    run(&target, valid, |input| {
        let split = input.windows(2).position(|pair| pair == b": ").unwrap_or(0);
        let (file, request) = (&input[..split], input.get(split + 2..).unwrap_or_default());
        let path = FILES.iter().find(|(name, _)| name.as_bytes() == file).map_or(FILES[0].1, |(_, path)| *path);
        // Who has no right gets no answer.
        assert!(bench.exchange(STRANGER, path, request).is_err());
        match bench.exchange(ROOT, path, request) {
            Ok(answer) => {
                assert!(!answer.is_empty());
                Verdict::Accepted
            }
            Err(error) => Verdict::Refused(error.to_string()),
        }
    });
}
