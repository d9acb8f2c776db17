//! What was revoked is gone from the kernel when the reply comes, and no request waits for itself or in a ring.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::thread;

use kmsfs::fs::api::Revocation;

use crate::memory::ROOT;
use crate::mounted::{BOUND, Mounted};

fn revocation(id: u64, inodes: &[u64], names: &[(u64, &str)]) -> Revocation {
    let names = names.iter().map(|(parent, name)| (*parent, (*name).into())).collect();
    Revocation { inodes: inodes.to_vec(), names, id }
}

/// Waits until so many revocations have been reported as done, in whatever order.
fn revoked(m: &Mounted, count: usize) -> Vec<u64> {
    let mut waited = std::time::Duration::ZERO;
    loop {
        let mut ids = m.fs.revoked.lock().unwrap().clone();
        if ids.len() >= count {
            ids.sort_unstable();
            return ids;
        }
        assert!(waited < BOUND, "only {ids:?}");
        thread::sleep(std::time::Duration::from_millis(1));
        waited += std::time::Duration::from_millis(1);
    }
}

#[test]
fn cached_pages_are_gone_when_the_save_returns() {
    let m = Mounted::new();
    m.write("f", b"old");
    let reader = File::open(m.join("f")).unwrap();
    let read = || {
        let mut data = [0; 3];
        reader.read_exact_at(&mut data, 0).map(|()| data)
    };
    assert_eq!(&read().unwrap(), b"old");
    m.fs.set_data("f", b"new");
    assert_eq!(&read().unwrap(), b"old", "it is cached");
    let mut control = File::create(m.join("control")).unwrap();
    for kind in ["write", "flush"] {
        m.fs.set_data("f", b"new");
        m.fs.denied.lock().unwrap().clear();
        let _ = read();
        m.fs.plan(kind, revocation(7, &[m.fs.ino("f")], &[]));
        m.fs.denied.lock().unwrap().push(m.fs.ino("f"));
        if kind == "write" {
            control.write_all(b"policy").unwrap();
        } else {
            drop(control.try_clone().unwrap());
        }
        assert_eq!(read().unwrap_err().raw_os_error(), Some(libc::EACCES), "after {kind}");
        assert!(m.fs.revoked.lock().unwrap().contains(&7));
    }
}

#[test]
fn a_cached_name_is_looked_up_again() {
    let m = Mounted::new();
    m.write("f", b"");
    m.write("control", b"");
    let lookups = || {
        assert!(fs::metadata(m.join("f")).is_ok());
        m.fs.callers.lock().unwrap().iter().filter(|(kind, _)| *kind == "lookup").count()
    };
    let before = lookups();
    assert_eq!(lookups(), before, "it is cached");
    m.fs.plan("write", revocation(1, &[], &[(ROOT, "f"), (ROOT, "never heard of"), (99_999, "f")]));
    m.write("control", b"x");
    assert!(lookups() > before);
    assert_eq!(revoked(&m, 1), [1]);
}

#[test]
fn whoever_keeps_a_directory_s_lock_holds_up_neither_saves_nor_pages() {
    let m = Mounted::new();
    m.write("f", b"old");
    fs::create_dir(m.join("d")).unwrap();
    let (f, d) = (m.fs.ino("f"), m.fs.ino("d"));
    let file = File::open(m.join("f")).unwrap();
    let mut control = File::create(m.join("control")).unwrap();
    thread::scope(|scope| {
        let path = m.join("d/gate");
        scope.spawn(move || assert!(fs::metadata(path).is_err()));
        m.fs.gate.wait_for(1);
        for round in 1..=3_u64 {
            file.read_exact_at(&mut [0; 3], 0).unwrap();
            let new = format!("{round:3}");
            m.fs.set_data("f", new.as_bytes());
            m.fs.plan("write", revocation(round, &[f], &[(d, "x")]));
            control.write_all(b"policy").unwrap();
            let mut data = [0; 3];
            file.read_exact_at(&mut data, 0).unwrap();
            assert_eq!(data, new.as_bytes());
        }
        assert_eq!(revoked(&m, 3), [1, 2, 3]);
        m.fs.gate.open();
    });
    m.settle();
}

#[test]
fn a_revocation_without_a_request_is_carried_out() {
    let m = Mounted::new();
    m.write("f", b"old");
    let read = |file: &File| {
        let mut data = [0; 3];
        file.read_exact_at(&mut data, 0).unwrap();
        data
    };
    let file = File::open(m.join("f")).unwrap();
    read(&file);
    m.fs.set_data("f", b"new");
    m.fs.revoker.lock().unwrap().as_ref().unwrap()(revocation(5, &[m.fs.ino("f"), 12_345], &[(ROOT, "f")]));
    assert_eq!(revoked(&m, 1), [5]);
    assert_eq!(&read(&file), b"new");
}

#[test]
fn after_the_end_a_revocation_is_done_at_once() {
    let m = Mounted::new();
    let fs = std::sync::Arc::clone(&m.fs);
    kmsfs::sys::unmount(&m.path, false).unwrap();
    m.ended().unwrap();
    fs.revoker.lock().unwrap().as_ref().unwrap()(revocation(5, &[ROOT], &[]));
    assert_eq!(*fs.revoked.lock().unwrap(), [5]);
}

#[test]
fn no_request_waits_for_what_it_holds_itself() {
    let m = Mounted::new();
    m.write("f", b"data");
    m.write("g", b"data");
    fs::create_dir(m.join("d")).unwrap();
    let (f, d) = (m.fs.ino("f"), m.fs.ino("d"));
    let file = File::options().read(true).write(true).open(m.join("f")).unwrap();
    file.read_exact_at(&mut [0; 4], 0).unwrap();
    let all = |id| revocation(id, &[f, d, ROOT], &[(ROOT, "f"), (ROOT, "g"), (ROOT, "d"), (d, "x")]);
    let mut done = 0;
    let mut step = |kind: &'static str, request: &dyn Fn()| {
        done += 1;
        m.fs.plan(kind, all(done));
        request();
        assert_eq!(revoked(&m, usize::try_from(done).unwrap()).last(), Some(&done), "{kind}");
    };
    // A part of a page that is not cached: the kernel keeps it locked until the reply.
    step("write", &|| file.write_all_at(b"DATA", 8192).unwrap());
    step("flush", &|| drop(file.try_clone().unwrap()));
    step("setattr", &|| file.set_len(2).unwrap());
    step("setattr", &|| fs::set_permissions(m.join("d"), fs::metadata(&m.path).unwrap().permissions()).unwrap());
    step("setxattr", &|| {
        rustix::fs::setxattr(m.join("d"), "user.a", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    });
    step("removexattr", &|| rustix::fs::removexattr(m.join("d"), "user.a").unwrap());
    step("mkdir", &|| fs::create_dir(m.join("d/x")).unwrap());
    step("rename", &|| fs::rename(m.join("d/x"), m.join("y")).unwrap());
    step("rmdir", &|| fs::remove_dir(m.join("y")).unwrap());
    step("unlink", &|| fs::remove_file(m.join("g")).unwrap());
}

#[test]
fn requests_that_revoke_crosswise_do_not_wait_in_a_ring() {
    let m = Mounted::new();
    m.write("item", b"data");
    for name in ["d", "e"] {
        fs::create_dir(m.join(name)).unwrap();
    }
    let (item, d, e) = (m.fs.ino("item"), m.fs.ino("d"), m.fs.ino("e"));
    let rounds = 150;
    thread::scope(|scope| {
        for (here, there, name) in [(d, e, "d"), (e, d, "e")] {
            let m = &m;
            scope.spawn(move || {
                for _ in 0..rounds {
                    m.fs.plan("mkdir", revocation(1, &[item], &[(here, "x"), (there, "x")]));
                    fs::create_dir(m.join(&format!("{name}/x"))).unwrap();
                    m.fs.plan("rmdir", revocation(2, &[item, here], &[(there, "x"), (here, "x")]));
                    fs::remove_dir(m.join(&format!("{name}/x"))).unwrap();
                }
            });
        }
        for control in ["c1", "c2"] {
            let m = &m;
            scope.spawn(move || {
                let mut file = File::create(m.join(control)).unwrap();
                for _ in 0..rounds {
                    m.fs.plan("write", revocation(3, &[item], &[(d, "x"), (e, "x"), (ROOT, "item")]));
                    file.write_all(b"x").unwrap();
                }
            });
        }
        let m = &m;
        scope.spawn(move || {
            let file = File::open(m.join("item")).unwrap();
            for _ in 0..rounds * 4 {
                file.read_exact_at(&mut [0; 4], 0).unwrap();
            }
        });
    });
    m.settle();
}
