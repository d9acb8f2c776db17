//! Each request gets through, with its arguments and its answer.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, XattrFlags};

use crate::mounted::Mounted;

fn errno<T: std::fmt::Debug>(outcome: io::Result<T>) -> i32 {
    outcome.unwrap_err().raw_os_error().unwrap()
}

fn run(command: &str, at: &Path) -> std::process::Output {
    Command::new("bash").args(["-c", command]).current_dir(at).output().unwrap()
}

#[test]
fn files_are_made_read_moved_linked_and_removed() {
    let m = Mounted::new();
    m.write("a", b"hello");
    assert_eq!(fs::read(m.join("a")).unwrap(), b"hello");
    fs::create_dir(m.join("d")).unwrap();
    fs::rename(m.join("a"), m.join("d/b")).unwrap();
    fs::hard_link(m.join("d/b"), m.join("c")).unwrap();
    assert_eq!(fs::metadata(m.join("c")).unwrap().nlink(), 2);
    symlink("d/b", m.join("l")).unwrap();
    assert_eq!(fs::read_link(m.join("l")).unwrap(), Path::new("d/b"));
    assert_eq!(fs::read(m.join("l")).unwrap(), b"hello");
    let mut names: Vec<_> = fs::read_dir(&m.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["c", "d", "l"]);
    assert_eq!(errno(fs::remove_dir(m.join("d"))), libc::ENOTEMPTY);
    for name in ["c", "l", "d/b"] {
        fs::remove_file(m.join(name)).unwrap();
    }
    fs::remove_dir(m.join("d")).unwrap();
    assert_eq!(fs::read_dir(&m.path).unwrap().count(), 0);
}

#[test]
fn rename_flags_get_through() {
    let m = Mounted::new();
    m.write("a", b"a");
    m.write("b", b"b");
    let rename = |flags| rustix::fs::renameat_with(CWD, m.join("a"), CWD, m.join("b"), flags);
    assert_eq!(rename(RenameFlags::NOREPLACE), Err(rustix::io::Errno::EXIST));
    rename(RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(m.join("a")).unwrap(), b"b");
    rename(RenameFlags::empty()).unwrap();
    assert_eq!(fs::read(m.join("b")).unwrap(), b"b");
}

#[test]
fn megabytes_come_and_go_in_large_requests() {
    let m = Mounted::new();
    let data: Vec<u8> = (0..5_000_003_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(m.join("f")).unwrap();
    file.write_all(&data).unwrap();
    let writes = m.fs.callers.lock().unwrap().iter().filter(|(kind, _)| *kind == "write").count();
    assert!(writes <= 8, "{writes} writes for 5 MB");
    assert_eq!(m.fs.data("f"), data);
    file.sync_all().unwrap();
    // Out of the page cache, so that it has to be asked for.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let before = m.fs.reads.load(Ordering::SeqCst);
    file.rewind().unwrap();
    let mut back = Vec::new();
    file.read_to_end(&mut back).unwrap();
    assert!(back == data);
    let reads = m.fs.reads.load(Ordering::SeqCst) - before;
    assert!((1..=12).contains(&reads), "{reads} reads for 5 MB: the read-ahead was not raised");
}

#[test]
fn offsets_sizes_and_holes_get_through() {
    let m = Mounted::new();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(m.join("f")).unwrap();
    file.write_all_at(b"xyz", 10).unwrap();
    file.set_len(12).unwrap();
    assert_eq!(m.fs.data("f"), b"\0\0\0\0\0\0\0\0\0\0xy");
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 20);
    assert_eq!(
        rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
            0,
            9
        ),
        Err(rustix::io::Errno::OPNOTSUPP)
    );
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(3)), Ok(20));
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(25)), Err(rustix::io::Errno::NXIO));
    assert_eq!((&file).seek(SeekFrom::End(0)).unwrap(), 20);
}

#[test]
fn times_get_through_before_1970_too() {
    let m = Mounted::new();
    m.write("f", b"");
    for (seconds, nanoseconds) in [(0, 0), (1_000_000_000, 999_999_999), (-1, 0), (-1, 1), (-2, 800_000_000)] {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, m.join("f"), &times, AtFlags::empty()).unwrap();
        let found = fs::metadata(m.join("f")).unwrap();
        assert_eq!((found.mtime(), found.mtime_nsec()), (seconds, nanoseconds));
        assert_eq!((found.atime(), found.atime_nsec()), (seconds, nanoseconds));
    }
}

#[test]
fn extreme_times_neither_kill_a_thread_nor_the_mount() {
    let m = Mounted::new();
    m.write("f", b"");
    // i64::MIN is left out: without overflow checks it is fine, and fuser's debug build panics on it.
    for (seconds, nanoseconds) in [(i64::MAX, 999_999_999), (i64::MIN + 1, 999_999_999), (i64::MIN + 1, 0)] {
        for _ in 0..100 {
            let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, m.join("f"), &times, AtFlags::empty()).unwrap();
        }
    }
    m.settle();
    assert_eq!(fs::read(m.join("f")).unwrap(), b"");
}

#[test]
fn modes_come_unmasked_and_the_umask_beside_them() {
    let m = Mounted::new();
    let made = |command: &str| {
        let output = run(command, &m.path);
        assert!(output.status.success(), "{command}: {output:?}");
        m.fs.created.lock().unwrap().take().unwrap()
    };
    assert_eq!(made("umask 027; mkdir d"), (0o777, 0o027));
    assert_eq!(fs::metadata(m.join("d")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(made("umask 077; : > f"), (libc::S_IFREG | 0o666, 0o077));
    assert_eq!(made("umask 002; mkfifo p"), (libc::S_IFIFO | 0o666, 0o002));
    assert!(fs::symlink_metadata(m.join("p")).unwrap().file_type().is_fifo());
    assert!(!run("mknod c c 1 3", &m.path).status.success(), "a device node");
}

#[test]
fn attributes_get_through_and_acls_bind() {
    let m = Mounted::new();
    m.write("f", b"secret");
    fs::set_permissions(m.join("f"), fs::Permissions::from_mode(0o640)).unwrap();
    let path = m.join("f");
    rustix::fs::setxattr(&path, "user.a", b"value", XattrFlags::empty()).unwrap();
    let mut room = [0_u8; 64];
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut room), Ok(5));
    assert_eq!(&room[..5], b"value");
    assert_eq!(rustix::fs::getxattr_query(&path, "user.a"), Ok(5));
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut room[..3]), Err(rustix::io::Errno::RANGE));
    assert_eq!(rustix::fs::getxattr(&path, "user.b", &mut room), Err(rustix::io::Errno::NODATA));
    assert_eq!(rustix::fs::listxattr(&path, &mut room), Ok(7));
    rustix::fs::removexattr(&path, "user.a").unwrap();
    assert_eq!(rustix::fs::listxattr(&path, &mut room), Ok(0));

    let as_daemon = |command: &str| {
        Command::new("setpriv")
            .args(["--reuid=1", "--regid=1", "--clear-groups", "bash", "-c", command])
            .current_dir(&m.path)
            .output()
            .unwrap()
    };
    assert!(!as_daemon("cat f").status.success());
    assert!(run("setfacl -m u:1:r f", &m.path).status.success());
    let output = as_daemon("cat f");
    assert_eq!(output.stdout, b"secret", "{output:?}");
    assert!(!as_daemon("echo x >> f").status.success());
}

#[test]
fn the_caller_is_who_asks() {
    let m = Mounted::new();
    m.write("f", b"x");
    let output = Command::new("setpriv")
        .args(["--reuid=1", "--regid=2", "--groups=3,4", "bash", "-c", "cat f; echo $$"])
        .current_dir(&m.path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let callers = m.fs.callers.lock().unwrap();
    let opener = callers.iter().rev().find(|(kind, caller)| *kind == "open" && caller.uid != 0).unwrap().1;
    assert_eq!((opener.uid, opener.gid), (1, 2));
    assert_ne!(opener.tid, 0);
    drop(callers);

    // While a request is under way, its thread can be asked for its groups.
    m.write("slow", b"x");
    let mut child = Command::new("setpriv")
        .args(["--reuid=1", "--regid=2", "--groups=3,4", "dd", "if=slow", "iflag=direct", "of=/dev/null"])
        .current_dir(&m.path)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    m.fs.gate.wait_for(1);
    let reader = m.fs.callers.lock().unwrap().iter().rev().find(|(kind, _)| *kind == "read").unwrap().1;
    let found = kmsfs::sys::thread_credentials(reader.tid).unwrap();
    assert_eq!((found.fsuid, found.fsgid, found.groups), (reader.uid, reader.gid, vec![3, 4]));
    m.fs.gate.open();
    assert!(child.wait().unwrap().success());
}

#[test]
fn set_user_id_is_taken_away_by_a_writer_and_a_new_owner() {
    let m = Mounted::new();
    m.write("f", b"x");
    let set = || fs::set_permissions(m.join("f"), fs::Permissions::from_mode(0o6777)).unwrap();
    let mode = || fs::metadata(m.join("f")).unwrap().permissions().mode() & 0o7777;
    let as_daemon = |command: &str| {
        let status = Command::new("setpriv")
            .args(["--reuid=1", "--regid=1", "--clear-groups", "bash", "-c", command])
            .current_dir(&m.path)
            .status();
        assert!(status.unwrap().success());
        m.fs.kills.lock().unwrap().drain(..).collect::<Vec<_>>()
    };
    set();
    assert!(as_daemon("echo y >> f").contains(&"write"));
    assert_eq!(mode(), 0o777);
    set();
    assert_eq!(as_daemon("truncate -s 1 f"), ["setattr"]);
    assert_eq!(mode(), 0o777);
    set();
    std::os::unix::fs::chown(m.join("f"), Some(5), None).unwrap();
    assert_eq!(mode(), 0o777);
    set();
    assert_eq!(mode(), 0o6777, "chmod itself takes nothing away");
    File::options().append(true).open(m.join("f")).unwrap().write_all(b"by root").unwrap();
    assert_eq!(mode(), 0o6777, "root keeps it");
}

#[test]
fn thousands_of_names_are_listed_once_each_with_and_without_attributes() {
    let m = Mounted::new();
    for number in 0..3000 {
        m.write(&format!("a name that is long enough to fill a few pages {number}"), b"");
    }
    let plain: std::collections::BTreeSet<_> =
        fs::read_dir(&m.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(plain.len(), 3000);
    let output = run("ls -lA | tail -n +2 | wc -l; ls -A | sort -u | wc -l; find . -type f | wc -l", &m.path);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "3000\n3000\n3000\n");
}

#[test]
fn statfs_gets_through() {
    let m = Mounted::new();
    let found = rustix::fs::statvfs(&m.path).unwrap();
    assert_eq!((found.f_blocks, found.f_bfree, found.f_bavail, found.f_files), (7, 5, 3, 2));
    assert_eq!((found.f_bsize, found.f_namemax), (4096, 255));
}

#[test]
fn what_is_not_offered_fails_quietly() {
    let m = Mounted::new();
    m.write("f", b"copied");
    assert!(!run("chattr +i f", &m.path).status.success());
    assert!(run("cp f g && cmp f g", &m.path).status.success(), "copy_file_range falls back");
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(m.join("f")).unwrap();
    let mut waiting = [rustix::event::PollFd::new(&file, rustix::event::PollFlags::IN)];
    let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut waiting, Some(&none)), Ok(1), "a file is always ready");
}

#[test]
fn a_panic_is_an_error_for_its_caller_alone() {
    let m = Mounted::new();
    m.settle();
    for _ in 0..100 {
        assert_eq!(errno(fs::metadata(m.join("panic"))), libc::EIO);
    }
    m.write("f", b"still there");
    assert_eq!(fs::read(m.join("f")).unwrap(), b"still there");
    m.settle();
}

#[test]
fn the_mount_table_says_what_it_is() {
    let m = Mounted::new();
    let output = Command::new("findmnt").args(["-rno", "FSTYPE,OPTIONS"]).arg(&m.path).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(line.starts_with("fuse.kmsfs rw,nosuid,nodev"), "{line}");
    assert!(line.contains("default_permissions") && line.contains("allow_other"), "{line}");
    let entry = kmsfs::sys::mount_at(&m.path).unwrap().unwrap();
    assert_eq!(entry.source, OsStr::new("/srv/a store, with #"));
    assert!(kmsfs::mount::mount_points(Some(OsStr::new("/srv/a store, with #"))).unwrap().contains(&m.path));
    let read_ahead = fs::read_to_string(format!("/sys/class/bdi/0:{}/read_ahead_kb", m.device)).unwrap();
    assert_eq!(read_ahead.trim(), "1024");
}

#[test]
fn read_only_and_noexec_bind() {
    let m = Mounted::with(|options| options.parse(OsStr::new("ro,noexec"), kmsfs::mount::Author::User).unwrap());
    assert_eq!(errno(File::create(m.join("f"))), libc::EROFS);
    let entry = kmsfs::sys::mount_at(&m.path).unwrap().unwrap();
    assert!(entry.options.to_string_lossy().starts_with("ro,nosuid,nodev,noexec"), "{:?}", entry.options);
}
