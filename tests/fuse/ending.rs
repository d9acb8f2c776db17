//! However a mount ends, its process ends in order, and nothing else is unmounted; and how one begins.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kmsfs::mount::{self, MountError, MountOptions};
use kmsfs::sys;
use rustix::process::Signal;

use crate::child;
use crate::memory::Memory;
use crate::mounted::{BOUND, Mounted, abort, abort_device, bounded, directory, require_fuse};

fn umount(arguments: &[&str], path: &Path) -> bool {
    Command::new("umount").args(arguments).arg(path).stderr(Stdio::null()).status().unwrap().success()
}

#[test]
fn umount_ends_it() {
    for settled in [false, true] {
        let m = Mounted::new();
        if settled {
            m.settle();
        }
        assert!(umount(&[], &m.path));
        m.ended().unwrap();
    }
}

#[test]
fn fusermount_ends_it() {
    let m = Mounted::new();
    m.settle();
    assert!(Command::new("fusermount3").arg("-u").arg(&m.path).status().unwrap().success());
    m.ended().unwrap();
}

#[test]
fn a_busy_mount_is_not_unmounted_and_a_lazy_one_ends_with_its_last_file() {
    let m = Mounted::new();
    m.write("f", b"data");
    m.settle();
    let mut file = File::open(m.join("f")).unwrap();
    assert!(!umount(&[], &m.path));
    assert!(umount(&["-l"], &m.path));
    let mut data = Vec::new();
    file.read_to_end(&mut data).unwrap();
    assert_eq!(data, b"data", "it is still served");
    drop(file);
    m.ended().unwrap();
}

#[test]
fn a_forced_umount_ends_it() {
    let m = Mounted::new();
    m.write("f", b"data");
    m.settle();
    let file = File::open(m.join("f")).unwrap();
    // The connection ends, although the mount itself is busy.
    assert!(!umount(&["-f"], &m.path));
    m.ended().unwrap();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
}

#[test]
fn an_abort_ends_it_in_the_midst_of_requests() {
    let m = Mounted::new();
    for number in 0..4 {
        m.write(&format!("slow{number}"), b"slow");
    }
    m.settle();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let path = m.join(&format!("slow{number}"));
            scope.spawn(move || assert!(fs::read(path).is_err()));
        }
        m.fs.gate.wait_for(4);
        abort(&m.path);
        m.fs.gate.open();
    });
    m.ended().unwrap();
}

#[test]
fn an_abort_ends_it_at_rest() {
    for settled in [false, true] {
        let m = Mounted::new();
        if settled {
            m.settle();
        }
        abort(&m.path);
        m.ended().unwrap();
    }
}

#[test]
fn another_s_mount_over_it_is_left_alone() {
    let m = Mounted::new();
    let path = m.path.clone();
    let device = m.device;
    assert!(Command::new("mount").args(["-t", "tmpfs", "over"]).arg(&path).status().unwrap().success());
    abort_device(device);
    let server = std::thread::spawn(move || m.ended());
    assert!(server.join().unwrap().is_ok());
    let there = sys::mount_at(&path).unwrap().unwrap();
    assert_eq!(there.fs_type, "tmpfs");
    assert!(umount(&[], &path));
    // What lay under it could not be reached; it is dead, and the next mount clears it away.
    assert!(sys::is_dead(&path));
    drop(Mounted::at(path, |_| {}).unwrap());
}

#[test]
fn signals_end_it_in_order() {
    require_fuse();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let path = directory();
        let mut child = child::serve(&path);
        let rescue = path.clone();
        bounded(
            move || abort(&rescue),
            || {
                child::signal(&child, signal);
                assert_eq!(child::how(child.wait().unwrap()), Ok(0));
            },
        );
        assert_eq!(sys::mount_at(&path).unwrap(), None);
        fs::remove_dir(&path).unwrap();
    }
}

#[test]
fn a_signal_detaches_a_busy_mount_and_a_second_one_ends_it() {
    require_fuse();
    let path = directory();
    let mut child = child::serve(&path);
    fs::File::create(path.join("f")).unwrap();
    let device = sys::mount_at(&path).unwrap().unwrap().device.1;
    bounded(
        move || abort_device(device),
        || {
            let file = File::open(path.join("f")).unwrap();
            child::signal(&child, Signal::TERM);
            // Nothing is measured: it is detached, or the child ends.
            while sys::mount_at(&path).unwrap().is_some() && child.try_wait().unwrap().is_none() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            assert!(child.try_wait().unwrap().is_none(), "it serves the open file");
            file.sync_all().unwrap();
            child::signal(&child, Signal::TERM);
            assert_eq!(child::how(child.wait().unwrap()), Ok(0));
            assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
        },
    );
    fs::remove_dir(&path).unwrap();
}

#[test]
fn the_dead_mount_of_a_killed_daemon_is_cleared_away() {
    require_fuse();
    let path = directory();
    let mut child = child::serve(&path);
    child.kill().unwrap();
    assert_eq!(child::how(child.wait().unwrap()), Err(libc::SIGKILL));
    assert!(sys::is_dead(&path));
    let m = Mounted::at(path.clone(), |_| {}).unwrap();
    m.write("f", b"served again");
    drop(m);
    assert_eq!(sys::mount_at(&path).unwrap(), None);
}

#[test]
fn a_serving_process_cannot_be_dumped() {
    require_fuse();
    let path = directory();
    let mut child = child::serve(&path);
    let of = |file: &str| format!("/proc/{}/{file}", child.id());
    let limits = fs::read_to_string(of("limits")).unwrap();
    let line =
        |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(line("Max core file size")[4..6], ["0", "0"]);
    let files = line("Max open files");
    assert_eq!(files[3], files[4]);
    let status = fs::read_to_string(of("status")).unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    assert_eq!(u64::from_str_radix(effective, 16).unwrap() & (1 << 24), 0, "CAP_SYS_RESOURCE");
    assert!(status.contains("\nUmask:\t0000\n"));
    child::signal(&child, Signal::TERM);
    assert_eq!(child::how(child.wait().unwrap()), Ok(0));
    fs::remove_dir(&path).unwrap();
}

#[test]
fn the_parent_of_a_daemon_returns_when_the_mount_answers() {
    require_fuse();
    let path = directory();
    let before = fs::metadata(&path).unwrap().dev();
    let output = child::daemon(&path);
    assert!(String::from_utf8_lossy(&output.stdout).contains("report 0 \n"), "{output:?}");
    assert_ne!(fs::metadata(&path).unwrap().dev(), before);
    fs::File::create(path.join("f")).unwrap();
    mount::unmount(&path, false).unwrap();
    fs::remove_dir(&path).unwrap();
}

#[test]
fn the_parent_of_a_daemon_says_why_there_is_no_mount() {
    require_fuse();
    let path = directory();
    File::create(path.join("file")).unwrap();
    let output = child::daemon(&path.join("file"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("report 8 ") && text.contains("is not a directory\n"), "{output:?}");
    let output = child::daemon(Path::new("/die"));
    assert!(String::from_utf8_lossy(&output.stdout).contains("report 1 the daemon ended before"), "{output:?}");
    fs::remove_dir_all(&path).unwrap();
}

/// In a mount namespace of its own, in which /dev/fuse is everybody's, as udev makes it.
#[test]
fn a_user_mounts_through_fusermount3() {
    require_fuse();
    let path = directory();
    let script = r#"
        set -e
        mkdir user; chown 1:1 user; mknod -m 0666 fuse c 10 229; mount --bind fuse /dev/fuse
        setpriv --reuid=1 --regid=1 --clear-groups "$0" serve user > said &
        until grep -q . said; do kill -0 $!; sleep 0.01; done
        cat said
        findmnt -rno FSTYPE,SOURCE,OPTIONS user
        ls user 2> /dev/null && echo "root entered"
        setpriv --reuid=1 --regid=1 --clear-groups ls user && echo "the user entered"
        kill -TERM $!
        wait $! && echo "ended in order"
        mountpoint -q user || echo "unmounted"
    "#;
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &BOUND.as_secs().to_string(), "unshare", "--mount", "bash", "-c", script]);
    let output = command.arg(child::program()).current_dir(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "ready", "{output:?}");
    assert!(lines[1].starts_with("fuse.kmsfs /srv/store rw,nosuid,nodev"), "{output:?}");
    assert!(lines[1].contains("user_id=1") && !lines[1].contains("allow_other"), "{output:?}");
    assert_eq!(lines[2..], ["the user entered", "ended in order", "unmounted"], "{output:?}");
    fs::remove_dir_all(&path).unwrap();
}

#[test]
fn what_cannot_be_mounted_on_is_refused() {
    require_fuse();
    let path = directory();
    File::create(path.join("file")).unwrap();
    assert!(matches!(mount::prepare_mount_point(&path.join("file")), Err(MountError::NotADirectory(_))));
    let missing = mount::prepare_mount_point(&path.join("missing")).unwrap_err();
    assert!(missing.to_string().contains("No such file"), "{missing}");
    let m = Mounted::new();
    assert!(matches!(mount::prepare_mount_point(&m.path), Err(MountError::MountedAlready(_))));
    let told = Mounted::at(m.path.clone(), |_| {}).err().expect("it is not mounted twice");
    assert!(told.contains("is mounted at"), "{told}");
    let memory = Arc::new(Memory::new());
    let refused = mount::serve(&memory, &m.path, &MountOptions::new("/s"), |told| assert!(told.is_err()));
    assert!(matches!(refused, Err(MountError::MountedAlready(_))));
    assert_eq!(memory.shut.load(Ordering::SeqCst), 1, "it is shut down all the same");
    assert!(mount::unmount(&path, false).is_err(), "nothing of ours is mounted there");
    assert!(mount::unmount(Path::new("/proc"), false).is_err(), "that is not ours");
    fs::remove_dir_all(&path).unwrap();
}
