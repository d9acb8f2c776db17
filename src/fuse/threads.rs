//! Who reads the next request: one thread leads, the others wait; it costs a short request nothing, and a long one
//! holds nobody up.
//!
//! The session's threads all do the same: read a request from the kernel, handle it, reply, read again. Were several
//! of them to wait in read(2) at once, requests would wander from core to core; so one reads, and the others are
//! parked inside the handler of the last request they served, after their reply. The reader serves what it has read
//! itself. It calls a parked thread to read in its place when it knows that its work takes long ([`Turn::long_work`]);
//! when it does not know and it takes long all the same, a watchdog does.
//!
//! INVARIANT: if a thread is parked, another one reads, is bound to read, or is in a handler and will either read or
//! find somebody who does. A thread decides to park, and is called, under one lock.
//!
//! Callers are served fastest by a leader on their own core, where it is likelier to stay if the other cores sleep. The
//! watchdog therefore does its looking on the leader's core: its ticks would keep another one awake.
//!
//! Threads park only after all have come by once. From then on every thread that ends tells so ([`Member`]), which
//! lets all parked ones go: the connection is over, or the session has lost a thread, and the rest had better all
//! read. So nothing needs to watch the connection.

use std::cell::OnceCell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};

/// How often the watchdog looks. What takes longer than two of these with nobody reading is long work.
const TICK: Duration = Duration::from_millis(1);
/// After so many ticks without a request the watchdog sleeps until the next one.
const QUIET_TICKS: u32 = 40;

thread_local! {
    static MEMBER: OnceCell<Member> = const { OnceCell::new() };
}

/// The threads of one session, and the watchdog over them.
#[derive(Debug)]
pub(super) struct Team {
    shared: Arc<Shared>,
    watchdog: Watchdog,
}

#[derive(Debug)]
struct Shared {
    /// Threads in read(2), or bound to go there without waiting for anything.
    reading: AtomicUsize,
    /// Threads that have not served a request yet. Nobody parks before there are none.
    newcomers: AtomicUsize,
    /// Requests taken.
    taken: AtomicU64,
    /// The core on which the last one was.
    core: AtomicUsize,
    /// Whether the watchdog is awake.
    watching: AtomicBool,
    bench: Mutex<Bench>,
    call: Condvar,
}

#[derive(Debug, Default)]
struct Bench {
    parked: usize,
    /// Parked threads that have been called and are not up yet.
    called: usize,
    /// Nobody parks any more.
    closed: bool,
}

/// A thread of the session; its end lets the others go.
#[derive(Debug)]
struct Member(Arc<Shared>);

impl Drop for Member {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// One request in its handler. Its end, after the reply, is where the thread parks.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Shared);

impl Team {
    /// For a session of `threads` threads, all of them on their way to read.
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(threads));
        let watchdog = Watchdog::start(&shared)?;
        Ok(Self { shared, watchdog })
    }

    /// To be called first of all in every handler, and its result kept until the reply is sent.
    pub(super) fn turn(&self) -> Turn<'_> {
        let shared = &self.shared;
        MEMBER.with(|member| {
            member.get_or_init(|| {
                shared.newcomers.fetch_sub(1, Ordering::SeqCst);
                Member(Arc::clone(shared))
            });
        });
        shared.reading.fetch_sub(1, Ordering::SeqCst);
        shared.taken.fetch_add(1, Ordering::SeqCst);
        shared.core.store(rustix::thread::sched_getcpu(), Ordering::Relaxed);
        // Either this sees that the watchdog went to sleep, or the watchdog sees the request just counted.
        if !shared.watching.load(Ordering::SeqCst) {
            self.watchdog.wake(shared);
        }
        Turn(shared)
    }
}

impl Turn<'_> {
    /// Says that what follows takes long: somebody else reads meanwhile.
    pub(super) fn long_work(&self) {
        self.0.call_reader();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.end_turn();
    }
}

impl Shared {
    fn new(threads: usize) -> Self {
        Self {
            reading: AtomicUsize::new(threads),
            newcomers: AtomicUsize::new(threads),
            taken: AtomicU64::new(0),
            core: AtomicUsize::new(usize::MAX),
            watching: AtomicBool::new(false),
            bench: Mutex::default(),
            call: Condvar::new(),
        }
    }

    /// Goes back to read if nobody does, else parks until called.
    fn end_turn(&self) {
        if self.newcomers.load(Ordering::SeqCst) > 0 {
            self.reading.fetch_add(1, Ordering::SeqCst);
        } else if !self.become_reader() {
            self.park();
        }
    }

    fn become_reader(&self) -> bool {
        self.reading.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn park(&self) {
        let mut bench = self.bench();
        if bench.closed {
            self.reading.fetch_add(1, Ordering::SeqCst);
            return;
        }
        // Again, now that nobody can be called: the reader may have taken a request, found nobody parked and gone
        // into long work since.
        if self.become_reader() {
            return;
        }
        bench.parked += 1;
        while bench.called == 0 && !bench.closed {
            bench = self.call.wait(bench).unwrap_or_else(PoisonError::into_inner);
        }
        if bench.called > 0 {
            // The caller has counted this thread among the readers.
            bench.called -= 1;
        } else {
            bench.parked -= 1;
            self.reading.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Calls a parked thread to read, if nobody reads and one is parked.
    fn call_reader(&self) {
        if self.reading.load(Ordering::SeqCst) > 0 {
            return;
        }
        let mut bench = self.bench();
        if bench.parked > 0 && self.reading.load(Ordering::SeqCst) == 0 {
            bench.parked -= 1;
            bench.called += 1;
            self.reading.fetch_add(1, Ordering::SeqCst);
            self.call.notify_one();
        }
    }

    fn close(&self) {
        self.bench().closed = true;
        self.call.notify_all();
    }

    fn bench(&self) -> MutexGuard<'_, Bench> {
        // Nothing panics while it is held.
        self.bench.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody reads although somebody could.
    fn starved(&self) -> bool {
        self.reading.load(Ordering::SeqCst) == 0 && self.bench().parked > 0
    }
}

/// Calls a reader when a handler takes long without having said so. Asleep while there are no requests.
#[derive(Debug)]
struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(shared), Arc::clone(&stop));
        let thread = thread::Builder::new().name("kmsfs-watch".to_owned()).spawn(move || watch(&shared, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    fn wake(&self, shared: &Shared) {
        if !shared.watching.swap(true, Ordering::SeqCst)
            && let Some(handle) = &self.thread
        {
            handle.thread().unpark();
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(handle) = self.thread.take() {
            handle.thread().unpark();
            if handle.join().is_err() {
                log::error!("the watchdog of the request threads has panicked");
            }
        }
    }
}

fn watch(shared: &Shared, stop: &AtomicBool) {
    let (mut seen, mut quiet, mut core) = (0, 0, usize::MAX);
    while !stop.load(Ordering::SeqCst) {
        if !shared.watching.load(Ordering::SeqCst) {
            thread::park();
            continue;
        }
        follow(&mut core, shared.core.load(Ordering::Relaxed));
        thread::sleep(TICK);
        let taken = shared.taken.load(Ordering::SeqCst);
        if taken != seen {
            (seen, quiet) = (taken, 0);
        } else if shared.starved() {
            // Nobody has taken a request since the last look, and nobody reads: the same handler has run throughout.
            shared.call_reader();
            quiet = 0;
        } else {
            quiet += 1;
        }
        if quiet >= QUIET_TICKS {
            quiet = 0;
            shared.watching.store(false, Ordering::SeqCst);
            if shared.taken.load(Ordering::SeqCst) != seen {
                shared.watching.store(true, Ordering::SeqCst);
            }
        }
    }
}

/// Moves this thread to the leader's core. Where that is not allowed it stays where it is, and is only more of a nuisance.
fn follow(core: &mut usize, leader: usize) {
    if *core == leader || leader >= CpuSet::MAX_CPU {
        return;
    }
    let mut there = CpuSet::new();
    there.set(leader);
    let _ = sched_setaffinity(None, &there);
    *core = leader;
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// After this the threads are taken to hang.
    const BOUND: Duration = Duration::from_secs(60);

    /// What a request of the tests does in its handler.
    type Handler = Box<dyn FnOnce(&Turn<'_>) + Send>;

    /// In place of the kernel: a queue from which threads take requests as the session's do, and that can end.
    #[derive(Default)]
    struct Kernel {
        queue: Mutex<(VecDeque<Handler>, bool)>,
        change: Condvar,
    }

    impl Kernel {
        fn send(&self, handler: Handler) {
            self.queue.lock().unwrap().0.push_back(handler);
            self.change.notify_one();
        }

        /// Sends a request; what it gives tells when it is done.
        fn request(&self, handler: impl FnOnce(&Turn<'_>) + Send + 'static) -> Receiver<()> {
            let (done, wait) = channel();
            self.send(Box::new(move |turn| {
                handler(turn);
                done.send(()).unwrap();
            }));
            wait
        }

        fn end(&self) {
            self.queue.lock().unwrap().1 = true;
            self.change.notify_all();
        }

        fn read(&self) -> Option<Handler> {
            let mut queue = self.queue.lock().unwrap();
            loop {
                if queue.1 {
                    return None;
                }
                match queue.0.pop_front() {
                    Some(handler) => return Some(handler),
                    None => queue = self.change.wait(queue).unwrap(),
                }
            }
        }
    }

    struct Session {
        team: Arc<Team>,
        kernel: Arc<Kernel>,
        ended: Receiver<()>,
        threads: usize,
    }

    impl Session {
        fn start(threads: usize) -> Self {
            let (team, kernel) = (Arc::new(Team::new(threads).unwrap()), Arc::new(Kernel::default()));
            let (tell, ended) = channel();
            for _ in 0..threads {
                let (team, kernel, tell) = (Arc::clone(&team), Arc::clone(&kernel), tell.clone());
                thread::spawn(move || {
                    while let Some(handler) = kernel.read() {
                        let turn = team.turn();
                        handler(&turn);
                    }
                    tell.send(()).unwrap();
                });
            }
            Self { team, kernel, ended, threads }
        }

        /// Requests until all but one thread are parked.
        fn settle(&self) {
            for _ in 0..self.threads * 1000 {
                self.kernel.request(|_| {}).recv_timeout(BOUND).unwrap();
                if self.parked() + 1 == self.threads {
                    return;
                }
                thread::yield_now();
            }
            panic!("{} of {} parked", self.parked(), self.threads);
        }

        fn parked(&self) -> usize {
            self.team.shared.bench().parked
        }

        fn end(self) {
            self.kernel.end();
            for _ in 0..self.threads {
                self.ended.recv_timeout(BOUND).expect("every thread ends");
            }
        }
    }

    #[test]
    fn all_but_one_park_and_all_end() {
        for threads in [1, 2, 8] {
            let session = Session::start(threads);
            session.settle();
            session.end();
        }
    }

    #[test]
    fn threads_that_have_served_nothing_end_too() {
        for requests in [0, 1, 3] {
            let session = Session::start(8);
            for _ in 0..requests {
                session.kernel.request(|_| {}).recv_timeout(BOUND).unwrap();
            }
            session.end();
        }
    }

    #[test]
    fn announced_long_work_hands_over_at_once() {
        let session = Session::start(4);
        session.settle();
        let (release, held) = channel::<()>();
        let (reading, seen) = channel();
        let team = Arc::clone(&session.team);
        let long = session.kernel.request(move |turn| {
            turn.long_work();
            // By now, not after some time.
            reading.send(team.shared.reading.load(Ordering::SeqCst)).unwrap();
            assert!(held.recv().is_err());
        });
        assert_eq!(seen.recv_timeout(BOUND), Ok(1));
        session.kernel.request(|_| {}).recv_timeout(BOUND).unwrap();
        drop(release);
        long.recv_timeout(BOUND).unwrap();
        session.end();
    }

    #[test]
    fn the_watchdog_hands_over_for_as_long_as_somebody_is_parked() {
        let session = Session::start(4);
        session.settle();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let mut long = Vec::new();
        for _ in 0..3 {
            let (started, begun) = channel();
            let gate = Arc::clone(&gate);
            long.push(session.kernel.request(move |_| {
                started.send(()).unwrap();
                drop(gate.1.wait_while(gate.0.lock().unwrap(), |open| !*open).unwrap());
            }));
            begun.recv_timeout(BOUND).expect("somebody reads although nobody said that it takes long");
        }
        session.kernel.request(|_| {}).recv_timeout(BOUND).unwrap();
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        for request in long {
            request.recv_timeout(BOUND).unwrap();
        }
        session.end();
    }

    #[test]
    fn nobody_parks_when_the_reader_has_gone_into_long_work() {
        // Between the look at who reads and the decision to park.
        let shared = Arc::new(Shared::new(2));
        shared.reading.store(0, Ordering::SeqCst);
        shared.call_reader();
        let (tell, told) = channel();
        let parking = Arc::clone(&shared);
        thread::spawn(move || {
            parking.park();
            tell.send(()).unwrap();
        });
        assert_eq!(told.recv_timeout(BOUND), Ok(()));
        assert_eq!(shared.reading.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn when_one_thread_dies_the_others_go_on() {
        let session = Session::start(4);
        session.settle();
        let team = Arc::clone(&session.team);
        // A thread of the session that ends with the connection alive.
        thread::spawn(move || drop(team.turn())).join().unwrap();
        let waits: Vec<_> = (0..1000).map(|_| session.kernel.request(|_| {})).collect();
        for wait in waits {
            wait.recv_timeout(BOUND).unwrap();
        }
        assert_eq!(session.parked(), 0);
        session.end();
    }

    #[test]
    fn random_long_and_short_work_of_many_clients_is_all_done() {
        for threads in [2, 3, 8] {
            let session = Session::start(threads);
            session.settle();
            let clients: Vec<_> = (0..6_u32)
                .map(|client| {
                    let kernel = Arc::clone(&session.kernel);
                    thread::spawn(move || {
                        let mut random = client.wrapping_mul(2_654_435_761) | 1;
                        for _ in 0..1500 {
                            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                            let sort = random >> 28;
                            let done = kernel.request(move |turn| match sort {
                                0 => thread::sleep(Duration::from_micros(700)),
                                1 => {
                                    turn.long_work();
                                    thread::sleep(Duration::from_micros(100));
                                }
                                2 => turn.long_work(),
                                3 => thread::yield_now(),
                                _ => {}
                            });
                            done.recv_timeout(BOUND).expect("somebody reads");
                        }
                    })
                })
                .collect();
            for client in clients {
                client.join().unwrap();
            }
            session.settle();
            session.end();
        }
    }
}
