//! Who a thread is, as /proc tells it, and what this process gives up before it holds a secret.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::CapabilitySet;

/// The file system identity of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadCredentials {
    pub fsuid: u32,
    pub fsgid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// Reads /proc/TID/status. The thread may have changed since it asked for something, or be another one of the same
/// number: the caller compares `fsuid` and `fsgid` with those of the request.
pub fn thread_credentials(tid: u32) -> io::Result<ThreadCredentials> {
    let mut file = std::fs::File::open(format!("/proc/{tid}/status"))?;
    // One read takes it whole, unless there are hundreds of groups; the library would begin with small pieces.
    let mut text = [0; 4096];
    let length = file.read(&mut text)?;
    let text = text.get(..length).unwrap_or_default();
    if length < 4096 {
        return parse_status(text).ok_or_else(|| io::ErrorKind::InvalidData.into());
    }
    let mut text = text.to_vec();
    file.read_to_end(&mut text)?;
    parse_status(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// `Uid:` and `Gid:` are real, effective, saved, file system. The kernel escapes line ends in the name, which comes
/// first (proc_pid_status(5)), so that a thread cannot forge a line.
pub(super) fn parse_status(status: &[u8]) -> Option<ThreadCredentials> {
    let numbers = |label: &[u8]| -> Option<Vec<u32>> {
        let rest = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(label))?;
        std::str::from_utf8(rest).ok()?.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
    };
    let fourth = |label: &[u8]| numbers(label)?.get(3).copied();
    Some(ThreadCredentials { fsuid: fourth(b"Uid:")?, fsgid: fourth(b"Gid:")?, groups: numbers(b"Groups:")? })
}

/// The uid that a process logged in with, whatever it has become; none if it never did.
pub fn login_uid(pid: u32) -> io::Result<Option<u32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/loginuid"))?;
    let uid: u32 = text.trim_end().parse().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((uid != u32::MAX).then_some(uid))
}

/// The file that a process runs.
pub fn executable(pid: u32) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe"))
}

/// No core dump of this process, and no tracing of it by others than root: its memory holds keys and plaintext.
pub fn forbid_core_dumps() -> io::Result<()> {
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// As many open files as the hard limit allows; the number, none if there is no limit.
pub fn raise_open_files() -> io::Result<Option<u64>> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum)
}

/// Gives up CAP_SYS_RESOURCE for this thread and those that it starts, for good, so that disk quotas and reserved
/// blocks bind whoever writes through the mount. To be called before other threads are started.
pub fn drop_sys_resource() -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    if !sets.permitted.contains(CapabilitySet::SYS_RESOURCE) {
        return Ok(());
    }
    if sets.effective.contains(CapabilitySet::SETPCAP) {
        rustix::thread::remove_capability_from_bounding_set(CapabilitySet::SYS_RESOURCE)?;
    }
    sets.permitted.remove(CapabilitySet::SYS_RESOURCE);
    sets.effective.remove(CapabilitySet::SYS_RESOURCE);
    sets.inheritable.remove(CapabilitySet::SYS_RESOURCE);
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// What tells this boot of the host from every other.
pub fn boot_id() -> io::Result<OsString> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().into())
}

/// Time since the host booted, suspended time included; never goes back.
pub fn boot_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_is_who_it_is() {
        let tid = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let found = thread_credentials(tid).unwrap();
        assert_eq!(found.fsuid, rustix::process::geteuid().as_raw());
        assert_eq!(found.fsgid, rustix::process::getegid().as_raw());
        let mut groups: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        groups.sort_unstable();
        let mut told = found.groups;
        told.sort_unstable();
        assert_eq!(told, groups);
    }

    #[test]
    fn the_file_system_ids_and_all_groups_are_read() {
        let text = b"Name:\tx\\nUid:\t0\t0\t0\t0\nUmask:\t0022\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nNgid:\t0\n";
        let found = parse_status(text).unwrap();
        assert_eq!(found, ThreadCredentials { fsuid: 4, fsgid: 8, groups: vec![9, 10] });
    }

    #[test]
    fn what_is_not_a_status_is_refused() {
        for text in [
            "",
            "Uid:\t1\t2\t3\nGid:\t5\t6\t7\t8\nGroups:\t\n",
            "Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n",
            "Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t1 x\n",
            "Uid:\t1\t2\t3\t-4\nGid:\t5\t6\t7\t8\nGroups:\t1\n",
        ] {
            assert_eq!(parse_status(text.as_bytes()), None, "{text:?}");
        }
        assert!(thread_credentials(0).is_err());
    }

    #[test]
    fn this_process_is_described() {
        let pid = std::process::id();
        assert_eq!(executable(pid).unwrap(), std::env::current_exe().unwrap());
        assert_eq!(boot_id().unwrap().len(), 36);
        let first = boot_time();
        assert!(first > Duration::ZERO && boot_time() >= first);
    }

    #[test]
    fn a_thread_that_gives_up_sys_resource_cannot_have_it_back() {
        std::thread::spawn(|| {
            drop_sys_resource().unwrap();
            let sets = rustix::thread::capabilities(None).unwrap();
            assert!(!(sets.permitted | sets.effective | sets.inheritable).contains(CapabilitySet::SYS_RESOURCE));
            assert!(!rustix::thread::capability_is_in_bounding_set(CapabilitySet::SYS_RESOURCE).unwrap());
            drop_sys_resource().unwrap();
        })
        .join()
        .unwrap();
    }
}
