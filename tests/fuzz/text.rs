//! What people and the kernel write: policies, principals, commands, options, /proc.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use kmsfs::mount::{Author, MountOptions};
use kmsfs::policy::{
    Bindings, EditError, PForm, Policy, Progress, Request, Scene, add_user, evaluate, progress, remove_user,
};
use kmsfs::sys::fuzzing::{mount_table, thread_status};
use kmsfs::types::{Action, EncryptionContext, Groups, KeyState, Principal};

use super::engine::{Target, Verdict, run};

const POLICY_WORDS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"\\u0000",
    b"\\ud83d\\ude00",
    b"\\",
    b"\n",
    b"\"*\"",
    b"\"Version\":\"2012-10-17\",",
    b"\"Statement\":",
    b"\"Sid\":\"x\",",
    b"\"Effect\":\"Deny\"",
    b"\"NotPrincipal\":",
    b"\"Principal\":{\"Unix\":[\"bob\"]},",
    b"\"AWS\":\"arn:aws:iam::111122223333:root\",",
    b"\"NotAction\":",
    b"\"kms:*\"",
    b"\"NotResource\":",
    b"\"arn:aws:kms:::key/${aws:username}\"",
    b"${kms:EncryptionContext:kmsfs:item}",
    b"\"Condition\":{\"StringLike\":{\"kms:EncryptionContext:kmsfs:item\":\"*a*b*\"}},",
    b"\"ForAllValues:StringEqualsIfExists\":",
    b"\"IpAddress\":{\"aws:SourceIp\":\"::/0\"},",
    b"\"DateLessThan\":{\"aws:CurrentTime\":\"2026-01-01T00:00:00Z\"},",
    b"\"NumericLessThan\":{\"kmsfs:Uid\":1e309},",
    b"\"Null\":{\"kmsfs:Gid\":true},",
    b"\"BinaryEquals\":",
    b"\"Bool\":",
    b"\"bob\",",
    b"group:",
    b"uid:4294967295",
];

/// One request by whom the documents of the corpus name, one by somebody else.
fn decide(policy: &Policy) {
    let bindings = Bindings { users: [("bob".to_owned(), 7)].into(), ..Bindings::default() };
    let context = EncryptionContext::of_item("t", b"a/\xffb");
    for (uid, groups) in [(7, Groups::Known(vec![8])), (9, Groups::Unknown)] {
        let scene = Scene {
            policy,
            bindings: &bindings,
            account: Some((policy, &bindings)),
            grants: &[],
            state: KeyState::Enabled,
            resource: &["key/x", "table/t"],
        };
        let principal = Principal { uid, gid: 7, groups };
        let request = Request {
            action: Action::Decrypt,
            principal: &principal,
            context: &context,
            direct: false,
            username: Some("b*b"),
            now: 1_800_000_000,
        };
        let decision = evaluate(&scene, &request);
        assert!(!decision.public_text().is_empty());
    }
}

/// A user who is added is there, once, and can be taken out again.
fn edit(text: &str) {
    let bob = PForm::User("bob".to_owned());
    let Ok(more) = add_user(text, &bob) else { return };
    assert_eq!(add_user(&more, &bob).unwrap(), more);
    match remove_user(&more, &bob) {
        Ok(less) => {
            Policy::parse(&less).unwrap();
        }
        Err(EditError::MoreThanUse { .. } | EditError::StillAllowed { .. }) => {}
        Err(error @ (EditError::Policy(_) | EditError::NotListed(_))) => panic!("{error}"),
    }
}

#[test]
fn policies() {
    let target = Target { name: "policy", longest: 34_000, words: POLICY_WORDS, json: true };
    let valid = || {
        vec![
            ("valid-key", kmsfs::policy::default_key_policy(&[PForm::Uid(0)], &[PForm::Gid(7)]).into_bytes()),
            ("valid-store", kmsfs::policy::default_store_policy(&[PForm::User("root".to_owned())]).into_bytes()),
            ("valid-managed", kmsfs::policy::managed_policy().into_bytes()),
            ("valid-conditions", include_bytes!("../../mount-examples/policies/time-limited-contractor.json").to_vec()),
            ("valid-team", include_bytes!("../../mount-examples/policies/team-read.json").to_vec()),
            ("valid-drop-box", include_bytes!("../../mount-examples/policies/drop-box.json").to_vec()),
            ("valid-glass", include_bytes!("../../mount-examples/policies/break-glass.json").to_vec()),
        ]
    };
    run(&target, valid, |input| {
        let so_far = progress(input);
        if let Progress::Complete(end) = so_far {
            assert!(end <= input.len());
        }
        let parsed = Policy::parse_bytes(input);
        if let Ok(policy) = &parsed {
            assert!(matches!(so_far, Progress::Complete(_)), "{so_far:?}");
            decide(policy);
        }
        if let Ok(text) = std::str::from_utf8(input) {
            edit(text);
        }
        parsed.into()
    });
}

#[test]
fn principals() {
    let words: &[&[u8]] = &[b"uid:", b"gid:", b"group:", b"4294967295", b"0", b"\\", b"@", b"\xc2\xa0"];
    let target = Target { name: "pform", longest: 400, words, json: false };
    let valid = || {
        ["alice", "uid:1001", "group:finance", "gid:2000", "DOM\\user"]
            .into_iter()
            .zip(["valid-user", "valid-uid", "valid-group", "valid-gid", "valid-domain"])
            .map(|(text, name)| (name, text.into()))
            .collect()
    };
    run(&target, valid, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused("no text".to_owned()) };
        let parsed = PForm::parse(text);
        if let Ok(form) = &parsed {
            assert_eq!(form.to_string(), text);
        }
        parsed.into()
    });
}

#[test]
fn mount_options() {
    let words: &[&[u8]] = &[
        b",",
        b"=",
        b"\\",
        b"\\,",
        b"key-file=",
        b"x-a",
        b"comment=",
        b"dev",
        b"suid",
        b"ro",
        b"extpass=",
        b"anchor=",
    ];
    let target = Target { name: "mount-options", longest: 4096, words, json: false };
    let valid = || {
        vec![
            ("valid-fstab", b"rw,noauto,user,_netdev,nofail,x-systemd.requires=a\\,b,key-file=/etc/k\\,1".to_vec()),
            ("valid-all", b"ro,noexec,allow_other,show-kms,foreground,log-file=/l,passphrase-file=/p".to_vec()),
            ("valid-empty", b",,".to_vec()),
        ]
    };
    run(&target, valid, |input| {
        let text = OsStr::from_bytes(input);
        let mut options = MountOptions::new("/srv/store");
        let parsed = options.parse(text, Author::User);
        let by_helper = MountOptions::new("/srv/store").parse(text, Author::FuseHelper);
        assert!(parsed.is_err() || by_helper.is_ok(), "what a user may write, mount(8) may");
        if parsed.is_ok() {
            options.make_paths_absolute().unwrap();
        }
        parsed.into()
    });
}

#[test]
fn mount_table_of_the_kernel() {
    let words: &[&[u8]] = &[b" ", b"\n", b" - ", b"\\040", b"\\", b"0:98", b":", b"fuse.kmsfs"];
    let target = Target { name: "mountinfo", longest: 8192, words, json: false };
    let valid = || {
        vec![
            (
                "valid-fuse",
                b"36 35 0:98 / /mnt/a\\040b rw,noatime shared:1 - fuse.kmsfs /srv/a rw,user_id=0\n".to_vec(),
            ),
            (
                "valid-two",
                b"1 0 8:1 / / rw - ext4 /dev/root rw\n2 1 0:5 /x /dev rw master:1 - devtmpfs none rw\n".to_vec(),
            ),
        ]
    };
    run(&target, valid, |input| {
        let table = mount_table(input);
        assert!(table.len() <= input.split(|byte| *byte == b'\n').count());
        table.first().into()
    });
}

#[test]
fn status_of_a_thread() {
    let words: &[&[u8]] = &[b"\n", b"\t", b"Uid:", b"Gid:", b"Groups:", b"4294967296", b"-1"];
    let target = Target { name: "proc-status", longest: 8192, words, json: false };
    let valid = || {
        let text =
            b"Name:\tcat\nUmask:\t0022\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nFDSize:\t64\nGroups:\t9 10 \nNgid:\t0\n";
        vec![("valid-cat", text.to_vec())]
    };
    run(&target, valid, |input| thread_status(input).into());
}
