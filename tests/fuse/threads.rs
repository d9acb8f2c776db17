//! Nobody waits for somebody else's long request, and nobody is left waiting.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::thread;

use crate::child;
use crate::mounted::{Mounted, directory, require_fuse};

/// More than there are cores, fewer than there are threads.
const SLOW: usize = 6;

#[test]
fn short_requests_pass_long_ones_that_nobody_announced() {
    let m = Mounted::new();
    m.write("quick", b"quick");
    for number in 0..SLOW {
        m.write(&format!("slow{number}"), b"slow");
    }
    m.settle();
    thread::scope(|scope| {
        for number in 0..SLOW {
            let path = m.join(&format!("slow{number}"));
            scope.spawn(move || assert_eq!(fs::read(path).unwrap(), b"slow"));
        }
        // All of them are in their handlers at once, ...
        m.fs.gate.wait_for(SLOW);
        // ... and this is answered all the same.
        for number in 0..200 {
            assert!(fs::metadata(m.join(&format!("nothing {number}"))).is_err());
        }
        assert_eq!(fs::read(m.join("quick")).unwrap(), b"quick");
        m.fs.gate.open();
    });
    m.settle();
}

#[test]
fn short_requests_pass_an_fsync() {
    let m = Mounted::new();
    m.write("slow", b"");
    m.settle();
    let file = fs::File::open(m.join("slow")).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| file.sync_all().unwrap());
        m.fs.gate.wait_for(1);
        for number in 0..200 {
            assert!(fs::metadata(m.join(&format!("nothing {number}"))).is_err());
        }
        m.fs.gate.open();
    });
}

#[test]
fn many_clients_with_long_and_short_requests_are_all_served() {
    let m = Mounted::new();
    let large = vec![7_u8; 300_000];
    for client in 0..8 {
        m.write(&format!("f{client}"), &large);
    }
    thread::scope(|scope| {
        for client in 0..8_u32 {
            let (m, large) = (&m, &large);
            scope.spawn(move || {
                let file = fs::File::options().read(true).write(true).open(m.join(&format!("f{client}"))).unwrap();
                let mut random = client.wrapping_mul(2_654_435_761).wrapping_add(1);
                for round in 0..400 {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    match random >> 29 {
                        0 => file.write_all_at(large, 0).unwrap(),
                        1 => file.sync_all().unwrap(),
                        2 => {
                            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                            let mut byte = [0];
                            file.read_exact_at(&mut byte, 299_999).unwrap();
                            assert_eq!(byte, [7]);
                        }
                        // A lookup that sleeps, for about as long as the watchdog takes to notice.
                        3 => assert!(fs::metadata(m.join(&format!("nap {client} {round}"))).is_err()),
                        _ => assert!(fs::metadata(m.join(&format!("no {client} {round}"))).is_err()),
                    }
                }
            });
        }
    });
    assert!(m.fs.reads.load(Ordering::SeqCst) > 0);
    m.settle();
}

/// How often a process's watchdog has gone to sleep so far.
fn wakeups_of_watchdogs(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .filter_map(|task| {
            let task = task.unwrap().path();
            // A thread may end meanwhile.
            let name = fs::read_to_string(task.join("comm")).ok()?;
            let status = fs::read_to_string(task.join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            (name.trim() == "kmsfs-watch").then(|| line.trim().parse::<u64>().unwrap())
        })
        .sum()
}

#[test]
fn an_idle_mount_wakes_nobody() {
    require_fuse();
    // In a process of its own: other tests' mounts have watchdogs, too.
    let path = directory();
    let mut child = child::serve(&path);
    for number in 0..500 {
        assert!(fs::metadata(path.join(format!("missing {number}"))).is_err());
    }
    // The watchdog falls asleep some time after the last request.
    let mut last = wakeups_of_watchdogs(child.id());
    let asleep = (0..300).any(|_| {
        thread::sleep(std::time::Duration::from_millis(200));
        let next = wakeups_of_watchdogs(child.id());
        std::mem::replace(&mut last, next) == next
    });
    child::signal(&child, rustix::process::Signal::TERM);
    assert_eq!(child::how(child.wait().unwrap()), Ok(0));
    fs::remove_dir(&path).unwrap();
    assert!(asleep, "the watchdog wakes again and again");
}
