//! Carries out revocations: makes the kernel forget pages, attributes and names, on threads that serve no request.
//!
//! An invalidation waits in the kernel for requests in flight: that of an inode's pages for reads, writes and size
//! changes of the inode, that of a name for whatever holds its directory's lock (a lookup, a listing, a creation, a
//! removal). A request whose reply waits for a revocation is itself such a request. So that none waits for itself or
//! in a ring, and nobody can hold up a revocation:
//!
//! - `kmsfs-names` alone touches names. Whoever lists a directory into memory that never becomes ready keeps its lock
//!   for as long as he likes; so a save waits for names for [`NAMES_WAIT`] at most, and pages do not wait for names.
//! - `kmsfs-revoke` invalidates pages for control files' saves, `kmsfs-pages` for requests that hold a directory's
//!   lock, which do not wait for names at all.
//! - What the request itself holds, its own inode's pages, is invalidated after its reply.
//! - The file system keeps to what [`Revocation`] asks of it.
//!
//! [`Operations::revoked`] is called when the pages are gone. An inode or name that the kernel does not know is done.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use crate::fs::api::{Operations, Revocation};

/// How long a save waits for names.
const NAMES_WAIT: Duration = Duration::from_secs(1);

/// What a request holds in the kernel until it is replied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// Nothing, or the pages of this inode: FLUSH, WRITE.
    Pages(u64),
    /// The lock of a directory, and perhaps the pages of this inode: all that creates, removes or changes.
    Directory(u64),
}

type Reply = Box<dyn FnOnce() + Send>;

struct Job {
    revocation: Revocation,
    /// The inode that is left for after the reply.
    own: Option<u64>,
    reply: Option<Reply>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("revocation", &self.revocation).field("own", &self.own).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Message {
    Do(Job),
    Stop,
}

/// Takes revocations; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Revoker {
    any: Sender<Message>,
    pages: Sender<Message>,
}

/// The receiving ends, until the connection is there to start with.
#[derive(Debug)]
pub(super) struct Waiting {
    any: Receiver<Message>,
    pages: Receiver<Message>,
}

/// The threads; dropped, they end.
#[derive(Debug)]
pub(super) struct Running {
    revoker: Revoker,
    threads: Vec<JoinHandle<()>>,
}

impl Revoker {
    pub(super) fn new() -> (Self, Waiting) {
        let (any, any_end) = channel();
        let (pages, pages_end) = channel();
        (Self { any, pages }, Waiting { any: any_end, pages: pages_end })
    }

    /// Carries out `revocation`, of which a request is the cause, and then sends its reply. Dropped without being
    /// called, `reply` sends an error; that happens only when the connection has ended.
    pub(super) fn then_reply(&self, revocation: Revocation, held: Held, reply: Reply) {
        let (queue, own) = match held {
            Held::Pages(ino) => (&self.any, ino),
            Held::Directory(ino) => (&self.pages, ino),
        };
        if queue.send(Message::Do(Job { revocation, own: Some(own), reply: Some(reply) })).is_err() {
            log::debug!("a revocation after the end of the connection");
        }
    }

    /// Carries out a revocation that nobody waits for; false if the connection has ended, and with it all that the
    /// kernel knew.
    fn in_background(&self, revocation: Revocation) -> bool {
        self.any.send(Message::Do(Job { revocation, own: None, reply: None })).is_ok()
    }
}

impl Waiting {
    /// Starts the threads and tells the file system how to reach them.
    pub(super) fn start<F: Operations>(
        self,
        fs: &Arc<F>,
        revoker: Revoker,
        notifier: &Notifier,
    ) -> io::Result<Running> {
        let mut running = Running { revoker: revoker.clone(), threads: Vec::new() };
        let (names, names_end) = channel();
        let stuck = Arc::new(AtomicBool::new(false));
        let (notify, unstuck) = (notifier.clone(), Arc::clone(&stuck));
        let forgetting = move || forget_names(&names_end, &notify, &unstuck);
        running.threads.push(thread::Builder::new().name("kmsfs-names".to_owned()).spawn(forgetting)?);
        for (name, queue, waits) in [("kmsfs-revoke", self.any, true), ("kmsfs-pages", self.pages, false)] {
            let (fs, notifier, names, stuck) = (Arc::clone(fs), notifier.clone(), names.clone(), Arc::clone(&stuck));
            let worker = Worker { fs, notifier, names, waits, stuck };
            running.threads.push(worker.spawn(name, queue)?);
        }
        let weak: Weak<F> = Arc::downgrade(fs);
        fs.set_revoker(Box::new(move |revocation| {
            let id = revocation.id;
            if !revoker.in_background(revocation)
                && let Some(fs) = weak.upgrade()
            {
                fs.revoked(id);
            }
        }));
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for queue in [&self.revoker.pages, &self.revoker.any] {
            // A thread that has ended needs no word.
            let _ = queue.send(Message::Stop);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a revoking thread has panicked");
            }
        }
    }
}

/// Names to forget, and who is to hear of it.
struct Names {
    names: Vec<(u64, OsString)>,
    done: Sender<()>,
}

fn forget_names(queue: &Receiver<Names>, notifier: &Notifier, stuck: &AtomicBool) {
    while let Ok(Names { names, done }) = queue.recv() {
        for (parent, name) in names {
            report("a name", notifier.inval_entry(INodeNo(parent), &name));
        }
        stuck.store(false, Ordering::SeqCst);
        // It may have stopped waiting.
        let _ = done.send(());
    }
}

struct Worker<F> {
    fs: Arc<F>,
    notifier: Notifier,
    names: Sender<Names>,
    /// Whether replies wait for names.
    waits: bool,
    /// Whether somebody has waited for names in vain, and none have been forgotten since.
    stuck: Arc<AtomicBool>,
}

impl<F: Operations> Worker<F> {
    fn spawn(self, name: &str, queue: Receiver<Message>) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Ok(Message::Do(job)) = queue.recv() {
                // A panic costs this job, whose reply is an error then, and not the thread.
                if catch_unwind(AssertUnwindSafe(|| self.carry_out(job))).is_err() {
                    log::error!("a revocation has panicked");
                }
            }
        })
    }

    fn carry_out(&self, job: Job) {
        let Job { revocation: Revocation { inodes, names, id }, own, reply } = job;
        let (after, before): (Vec<u64>, Vec<u64>) = inodes.into_iter().partition(|ino| Some(*ino) == own);
        self.forget_inodes(&before);
        if after.is_empty() {
            self.fs.revoked(id);
        }
        self.forget_names(names);
        if let Some(reply) = reply {
            reply();
        }
        if !after.is_empty() {
            self.forget_inodes(&after);
            self.fs.revoked(id);
        }
    }

    fn forget_inodes(&self, inodes: &[u64]) {
        for ino in inodes {
            // Offset 0 and length 0: every page, and the attributes.
            report("an inode", self.notifier.inval_inode(INodeNo(*ino), 0, 0));
        }
    }

    fn forget_names(&self, names: Vec<(u64, OsString)>) {
        if names.is_empty() {
            return;
        }
        let (done, wait) = channel();
        if self.names.send(Names { names, done }).is_err() {
            log::error!("names are not forgotten any more");
            return;
        }
        if self.waits && !self.stuck.load(Ordering::SeqCst) && wait.recv_timeout(NAMES_WAIT).is_err() {
            self.stuck.store(true, Ordering::SeqCst);
            log::warn!("somebody keeps a directory's lock: names in it are forgotten later than the save returns");
        }
    }
}

fn report(what: &str, outcome: io::Result<()>) {
    match outcome {
        Ok(()) => {}
        // The connection has ended, and with it what the kernel knew.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOTCONN | libc::EPERM)) => {
            log::debug!("cannot invalidate {what}: {error}");
        }
        // Not a directory: there are no names in it.
        Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => {}
        Err(error) => log::error!("cannot invalidate {what}, cached data may outlive a revocation: {error}"),
    }
}
