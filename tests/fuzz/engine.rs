//! Runs one target: its corpus as it is, then changed, until the time is over.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::alloc::measure;
use super::json;
use super::mutate::Dice;

/// What a parse may have at once: so many times its input, and so much beside.
const MEMORY_TIMES: usize = 64;
const MEMORY_BESIDE: usize = 1 << 20;
/// The processor time that a parse may take, and what each byte of the input adds to it.
const TIME: Duration = Duration::from_secs(1);
const TIME_PER_BYTE: Duration = Duration::from_micros(200);
/// A parse that has not ended by then hangs, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(120);
/// Inputs that were kept for something new that a parser said of them.
const KEPT_MOST: usize = 300;
/// The longest file of the corpus.
const FILE_MOST: usize = 4096;

/// What a parser says of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    Refused(String),
}

impl<T, E: Display> From<Result<T, E>> for Verdict {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Accepted,
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

impl<T> From<Option<T>> for Verdict {
    fn from(result: Option<T>) -> Self {
        match result {
            Some(_) => Self::Accepted,
            None => Self::Refused(String::new()),
        }
    }
}

/// What is fuzzed, and with what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// The folder below tests/corpus. Files whose names begin with `valid` must be accepted.
    pub(crate) name: &'static str,
    /// Bytes that an input may grow to.
    pub(crate) longest: usize,
    /// What the format is made of.
    pub(crate) words: &'a [&'a [u8]],
    /// It is one JSON document, which is mostly changed as such.
    pub(crate) json: bool,
}

/// The input that a thread is at, for those who look from outside.
#[derive(Debug, Default)]
struct Running {
    name: &'static str,
    since: Option<Instant>,
    input: Vec<u8>,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Mutex<Running>>>> = const { RefCell::new(None) };
}

/// Runs a target. `valid` makes the valid part of the corpus, by name.
pub(crate) fn run(
    target: &Target<'_>,
    valid: impl FnOnce() -> Vec<(&'static str, Vec<u8>)>,
    mut parse: impl FnMut(&[u8]) -> Verdict,
) {
    if std::env::var_os("KMSFS_FUZZ_WRITE").is_some() {
        write_missing(target.name, valid());
    }
    let mut run = Run::new(target);
    let corpus = corpus(target.name);
    let mut pool: Vec<Vec<u8>> = Vec::new();
    for (name, bytes) in corpus {
        let verdict = run.parse(&bytes, &mut parse);
        if name.starts_with("valid") {
            assert_eq!(verdict, Verdict::Accepted, "{}/{name} is valid", target.name);
        }
        run.is_new(&verdict);
        pool.push(bytes);
    }
    let start = pool.len();
    while run.began.elapsed() < run.seconds {
        // Half of what is tried begins with the corpus itself, however much was kept.
        let from = if run.dice.below(2) == 0 { start } else { pool.len() };
        let mut input = pool[run.dice.below(from)].clone();
        let as_document = target.json && run.dice.below(4) > 0 && json::mutate(&mut run.dice, &mut input, &pool);
        if !as_document || run.dice.below(8) == 0 {
            run.dice.mutate(&mut input, &pool, target.words, target.longest);
        }
        input.truncate(target.longest);
        let verdict = run.parse(&input, &mut parse);
        if run.is_new(&verdict) && pool.len() < start + KEPT_MOST {
            pool.push(input);
        }
    }
    eprintln!(
        "fuzz {}: seed {}, {} inputs, {} accepted, {} kept; at most {} bytes, {:?}",
        target.name,
        run.seed,
        run.inputs,
        run.accepted,
        pool.len() - start,
        run.memory,
        run.time
    );
}

struct Run {
    name: &'static str,
    seed: u64,
    dice: Dice,
    began: Instant,
    seconds: Duration,
    inputs: u64,
    accepted: u64,
    said: BTreeSet<String>,
    /// The most that any parse took.
    memory: usize,
    time: Duration,
    current: Arc<Mutex<Running>>,
    watch: Option<JoinHandle<()>>,
}

impl Run {
    fn new(target: &Target<'_>) -> Self {
        let seed = setting("KMSFS_SEED").unwrap_or(20_261_124);
        let own = target.name.bytes().fold(seed, |sum, byte| sum.wrapping_mul(257).wrapping_add(byte.into()));
        let current = Arc::new(Mutex::new(Running { name: target.name, ..Running::default() }));
        CURRENT.set(Some(Arc::clone(&current)));
        let watched = Arc::downgrade(&current);
        let watch = std::thread::spawn(move || {
            while let Some(running) = watched.upgrade() {
                let since = lock(&running).since;
                if since.is_some_and(|since| since.elapsed() > PATIENCE) {
                    CURRENT.set(Some(running));
                    give_up("does not end");
                }
                drop(running);
                std::thread::park_timeout(Duration::from_secs(1));
            }
        });
        Self {
            name: target.name,
            seed,
            dice: Dice(own),
            began: Instant::now(),
            seconds: Duration::from_secs(setting("KMSFS_FUZZ_SECONDS").unwrap_or(2)),
            inputs: 0,
            accepted: 0,
            said: BTreeSet::new(),
            memory: 0,
            time: Duration::ZERO,
            current,
            watch: Some(watch),
        }
    }

    /// One input, held to the three promises.
    fn parse(&mut self, input: &[u8], parse: &mut impl FnMut(&[u8]) -> Verdict) -> Verdict {
        self.inputs += 1;
        {
            let mut running = lock(&self.current);
            running.input.clear();
            running.input.extend_from_slice(input);
            running.since = Some(Instant::now());
        }
        let before = processor_time();
        let (result, memory) = measure(|| catch_unwind(AssertUnwindSafe(|| parse(input))));
        let time = processor_time().saturating_sub(before);
        lock(&self.current).since = None;
        let Ok(verdict) = result else { self.fail(input, "the parser panicked") };
        if memory > MEMORY_TIMES * input.len() + MEMORY_BESIDE {
            self.fail(input, &format!("the parser took {memory} bytes at once"));
        }
        if time > TIME + TIME_PER_BYTE * u32::try_from(input.len()).unwrap() {
            self.fail(input, &format!("the parser took {time:?}"));
        }
        (self.memory, self.time) = (self.memory.max(memory), self.time.max(time));
        self.accepted += u64::from(verdict == Verdict::Accepted);
        verdict
    }

    fn fail(&self, input: &[u8], what: &str) -> ! {
        panic!("{}: {what}, at input {} of seed {}:\n{}", self.name, self.inputs, self.seed, hexadecimal(input));
    }

    /// Whether a parser has said this for the first time, up to what it quotes and without what it counts.
    fn is_new(&mut self, verdict: &Verdict) -> bool {
        let said = match verdict {
            Verdict::Accepted => String::new(),
            Verdict::Refused(why) => {
                let unquoted = why.split(['"', '\'']).next().unwrap_or_default();
                unquoted.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').take(120).collect()
            }
        };
        self.said.insert(said)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        CURRENT.set(None);
        self.current = Arc::default();
        if let Some(watch) = self.watch.take() {
            watch.thread().unpark();
            // It only looks on, so it cannot have failed.
            let _ = watch.join();
        }
    }
}

/// Ends the process where a panic is not possible, and says for which input.
pub(crate) fn give_up(what: &str) -> ! {
    let current = CURRENT.take();
    if let Some(running) = current {
        let running = lock(&running);
        eprintln!("{}: the parser {what}:\n{}", running.name, hexadecimal(&running.input));
    }
    std::process::abort()
}

fn lock(running: &Mutex<Running>) -> std::sync::MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}

fn hexadecimal(bytes: &[u8]) -> String {
    kmsfs::kms::hex(bytes)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// A target's files, by name, in the order of their names.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder().join(target))
        .unwrap_or_else(|error| panic!("the corpus of {target}: {error}"))
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    assert!(files.iter().any(|(name, _)| name.starts_with("valid")), "no valid file in the corpus of {target}");
    for (name, bytes) in &files {
        assert!(bytes.len() <= FILE_MOST, "{target}/{name} is longer than {FILE_MOST} bytes");
    }
    files
}

#[expect(clippy::disallowed_methods, reason = "a new file of the sources, which a developer looks at")]
fn write_missing(target: &str, files: Vec<(&'static str, Vec<u8>)>) {
    let folder = folder().join(target);
    std::fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in files {
        let file = folder.join(name);
        if !file.exists() {
            std::fs::write(file, bytes).unwrap();
        }
    }
}

/// A parser that breaks each promise is found out; else the targets prove nothing.
#[test]
fn broken_parsers_are_found() {
    let target = Target { name: "pform", longest: 64, words: &[], json: false };
    let found = |parse: &mut dyn FnMut(&[u8]) -> Verdict| {
        let mut run = Run::new(&target);
        let outcome = catch_unwind(AssertUnwindSafe(|| run.parse(b"input", &mut |input: &[u8]| parse(input))));
        outcome.err().map(|panic| panic.downcast_ref::<String>().unwrap().clone())
    };
    assert_eq!(found(&mut |_| Verdict::Accepted), None);
    let panicked = found(&mut |input| panic!("{}", input.len())).unwrap();
    assert!(panicked.contains("pform: the parser panicked") && panicked.ends_with(":\n696e707574"), "{panicked}");
    let greedy = found(&mut |_| Verdict::from(Some(vec![0_u8; 2 << 20]))).unwrap();
    assert!(greedy.contains("bytes at once"), "{greedy}");
    let slow = found(&mut |_| {
        let start = processor_time();
        while processor_time().saturating_sub(start) < TIME * 2 {}
        Verdict::Accepted
    });
    assert!(slow.unwrap().contains("took"));
}
