//! The file system driven in process over a storage that records every call, and what must hold of it after a crash.
//!
//! A `Run` makes steps and keeps a `History` of them: after how many calls each began and ended, and what the store
//! showed then. A crash is a `Cut`: a number of calls of which something is left. `History::check` says whether what is
//! found after it may be found, by docs/durability.md and section 7 of docs/format.md.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use kmsfs::crypto::{Argon2Params, SecretBytes};
use kmsfs::fs::api::{Caller, FsError, FsResult, Kind, Operations, SetAttr};
use kmsfs::fs::{FileSystem, Options, SessionError, open_trail};
use kmsfs::kms::Kms;
use kmsfs::policy::PForm;
use kmsfs::store::record::{RecordingStorage, Scratch};
use kmsfs::store::{Credential, Dir, DirStorage, Open, Storage, Store, StoreError};

use crate::common::Dice;

const ROOT: Caller = Caller { uid: 0, gid: 0, tid: 0 };
const ROOT_INO: u64 = 1;
const BLOCK: usize = 4096;
/// A write of this many bytes or more behind the end comes in two parts where it does not begin with a block.
const STREAM: usize = 128 << 10;
const STORE: &str = "store";
const ANCHOR: &str = "anchor";

fn credential() -> Credential {
    Credential::KeyFile(SecretBytes::new(vec![0x4b; 64]))
}

fn how(base: &Path) -> Open {
    Open { read_only: false, anchor_dir: base.join(ANCHOR), owner: "a test".to_owned(), accept_anchor: false }
}

/// Makes a store and its anchor below `base`.
fn make_store(base: &Path) {
    let store = Store::create(&base.join(STORE), &credential(), Argon2Params::FLOOR, "", &how(base)).unwrap();
    let store = Arc::new(store);
    let (trail, _) = open_trail(&store).unwrap();
    Kms::initialise(store, Arc::new(trail), &[PForm::Uid(0)]).unwrap().close().unwrap();
}

/// A mounted store, without the kernel.
pub(crate) struct Client {
    fs: FileSystem,
    /// One for each lookup that the kernel would remember.
    known: RefCell<Vec<u64>>,
}

/// What stands under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Folder,
    Item(Result<Vec<u8>, String>),
    Link(Result<Vec<u8>, String>),
}

pub(crate) type Tree = BTreeMap<String, Node>;

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) tree: Tree,
    /// The policies of the tables' keys.
    policies: BTreeMap<String, String>,
    /// The trail's own check of itself.
    verified: String,
    trail: String,
}

impl Client {
    /// Opens the store below `root`, as a mount does.
    pub(crate) fn open(root: &Arc<dyn Dir>) -> Result<Self, SessionError> {
        let (dir, anchors) = (root.open_dir(STORE.as_ref()).unwrap(), root.open_dir(ANCHOR.as_ref()).unwrap());
        let mut tries = 0;
        let store = loop {
            match Store::open_on(Arc::clone(&dir), anchors.as_ref(), &credential(), &how(Path::new("/nowhere"))) {
                // A process that another test has just started has all open files for a moment, the lock among them.
                Err(StoreError::Busy { .. }) if tries < 100 => tries += 1,
                opened => break opened?,
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        Ok(Self { fs: FileSystem::open(store, Options::default())?, known: RefCell::default() })
    }

    /// Ends as `umount` does.
    pub(crate) fn close(self) {
        self.fs.shut_down();
    }

    /// What the kernel does when it needs memory.
    pub(crate) fn forget_all(&self) {
        for ino in self.known.borrow_mut().drain(..) {
            self.fs.forget(ino, 1);
        }
    }

    fn find(&self, path: &str) -> FsResult<u64> {
        let mut ino = ROOT_INO;
        for name in path.split('/') {
            ino = self.fs.lookup(&ROOT, ino, name.as_ref())?.attr.ino;
            self.known.borrow_mut().push(ino);
        }
        Ok(ino)
    }

    /// The folder around a path, and the last name.
    fn parent<'a>(&self, path: &'a str) -> FsResult<(u64, &'a OsStr)> {
        let (parent, name) = path.rsplit_once('/').unwrap();
        Ok((self.find(parent)?, name.as_ref()))
    }

    fn with<T>(&self, path: &str, flags: i32, act: impl FnOnce(u64, u64) -> FsResult<T>) -> FsResult<T> {
        let ino = self.find(path)?;
        let opened = self.fs.open(&ROOT, ino, flags)?;
        let done = act(ino, opened.fh);
        self.fs.release(ino, opened.fh);
        done
    }

    fn put(&self, ino: u64, fh: u64, offset: u64, data: &[u8]) -> FsResult<()> {
        let done = self.fs.write(&ROOT, ino, fh, offset, data, false, false)?;
        if let Some(revocation) = done.revocation {
            self.fs.revoked(revocation.id);
        }
        assert_eq!(done.value as usize, data.len());
        Ok(())
    }

    /// Writes a control file, as `echo TEXT >PATH` does.
    fn control(&self, path: &str, text: &str, flags: i32) -> FsResult<()> {
        self.with(path, flags, |ino, fh| {
            self.put(ino, fh, 0, text.as_bytes())?;
            if let Some(revocation) = self.fs.flush(&ROOT, ino, fh)?.revocation {
                self.fs.revoked(revocation.id);
            }
            Ok(())
        })
    }

    fn create(&self, path: &str) -> FsResult<()> {
        let (parent, name) = self.parent(path)?;
        let (entry, opened) = self.fs.create(&ROOT, parent, name, 0o600, 0o022, libc::O_RDWR)?;
        self.known.borrow_mut().push(entry.attr.ino);
        self.fs.release(entry.attr.ino, opened.fh);
        Ok(())
    }

    fn mkdir(&self, path: &str) -> FsResult<()> {
        let (parent, name) = self.parent(path)?;
        let made = self.fs.mkdir(&ROOT, parent, name, 0o700, 0o022)?;
        self.known.borrow_mut().push(made.value.attr.ino);
        Ok(())
    }

    fn write(&self, path: &str, offset: usize, data: &[u8]) -> FsResult<()> {
        self.with(path, libc::O_WRONLY, |ino, fh| self.put(ino, fh, offset as u64, data))
    }

    fn sync(&self, path: &str) -> FsResult<()> {
        self.with(path, libc::O_RDONLY, |ino, fh| self.fs.fsync(ino, fh, false))
    }

    fn unlink(&self, path: &str) -> FsResult<()> {
        let (parent, name) = self.parent(path)?;
        self.fs.unlink(&ROOT, parent, name).map(drop)
    }

    fn rename(&self, from: &str, to: &str, flags: u32) -> FsResult<()> {
        let ((old, from), (new, to)) = (self.parent(from)?, self.parent(to)?);
        self.fs.rename(&ROOT, old, from, new, to, flags).map(drop)
    }

    /// The whole of an item or of a control file.
    pub(crate) fn read(&self, path: &str) -> FsResult<Vec<u8>> {
        self.with(path, libc::O_RDONLY, |ino, fh| {
            let mut whole = Vec::new();
            loop {
                let mut piece = Vec::new();
                self.fs.read(&ROOT, ino, fh, whole.len() as u64, &mut piece, 128 << 10)?;
                if piece.is_empty() {
                    return Ok(whole);
                }
                whole.extend_from_slice(&piece);
            }
        })
    }

    fn text(&self, path: &str) -> String {
        let text = self.read(path).unwrap_or_else(|error| panic!("{path} cannot be read: {error}"));
        String::from_utf8(text).unwrap()
    }

    fn list(&self, ino: u64) -> FsResult<Vec<(String, Kind)>> {
        let opened = self.fs.opendir(&ROOT, ino, 0)?;
        let mut names = Vec::new();
        self.fs.readdir(&ROOT, ino, opened.fh, 0, false, &mut |item| {
            if item.name != "." && item.name != ".." {
                names.push((item.name.to_str().unwrap().to_owned(), item.kind));
            }
            false
        })?;
        self.fs.releasedir(ino, opened.fh);
        Ok(names)
    }

    /// Everything in the tables.
    pub(crate) fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        self.walk(ROOT_INO, "", &mut tree);
        tree
    }

    /// The same; none where no item can be read, because the trail takes no events.
    fn try_tree(&self) -> Option<Tree> {
        let tree = self.tree();
        let items = || tree.values().filter(|node| matches!(node, Node::Item(_)));
        let dead = items().count() > 0 && items().all(|node| matches!(node, Node::Item(Err(_))));
        (!dead).then_some(tree)
    }

    fn walk(&self, ino: u64, path: &str, tree: &mut Tree) {
        let names = self.list(ino).unwrap_or_else(|error| panic!("'{path}' cannot be listed: {error}"));
        for (name, kind) in names {
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            let node = match kind {
                Kind::Dir => {
                    match self.find(&path) {
                        Ok(ino) => self.walk(ino, &path, tree),
                        // What a power cut has left of a new folder goes when it is looked for.
                        Err(FsError::NotFound) => continue,
                        Err(error) => panic!("the folder {path}: {error}"),
                    }
                    Node::Folder
                }
                Kind::Symlink => {
                    let target = self.find(&path).and_then(|ino| self.fs.readlink(&ROOT, ino));
                    Node::Link(target.map_err(|error| error.to_string()))
                }
                Kind::File | Kind::Fifo | Kind::Socket => {
                    Node::Item(self.read(&path).map_err(|error| error.to_string()))
                }
            };
            tree.insert(path, node);
        }
    }

    pub(crate) fn show(&self) -> Shown {
        let tree = self.tree();
        let tables = tree.keys().filter(|path| !path.contains('/'));
        let policies = tables.map(|table| (table.clone(), self.text(&policy_of(table)))).collect();
        let (verified, trail) = (self.text(".kms/audit/verify"), self.text(".kms/audit/trail.jsonl"));
        Shown { tree, policies, verified, trail }
    }

    /// The store takes new writes, also to what is there, and what cannot be read can be removed. Gives what is there
    /// then.
    pub(crate) fn use_on(&self, tree: &Tree) -> Tree {
        let mut expected = tree.clone();
        let mut written: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (path, node) in tree {
            match node {
                Node::Item(Ok(content)) => {
                    // Another name of the same item may have been here before.
                    let after = written.entry(self.find(path).unwrap()).or_insert_with(|| {
                        let more = b"written after the crash";
                        self.write(path, content.len(), more).unwrap_or_else(|error| panic!("{path}: {error}"));
                        [content, more.as_slice()].concat()
                    });
                    expected.insert(path.clone(), Node::Item(Ok(after.clone())));
                }
                Node::Item(Err(_)) | Node::Link(Err(_)) => {
                    // What was cut short at its creation goes at the first open.
                    match self.unlink(path) {
                        Err(FsError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
                        other => other.unwrap_or_else(|error| panic!("{path} cannot be removed: {error}")),
                    }
                    expected.remove(path);
                }
                Node::Folder | Node::Link(Ok(_)) => {}
            }
        }
        if let Some(table) = tree.keys().find(|path| !path.contains('/')) {
            let (made, content) = (format!("{table}/made after the crash"), vec![0x6e; 5000]);
            self.create(&made).and_then(|()| self.write(&made, 0, &content)).and_then(|()| self.sync(&made)).unwrap();
            expected.insert(made, Node::Item(Ok(content)));
        }
        expected
    }
}

fn policy_of(table: &str) -> String {
    format!(".kms/keys/{table}/policy.json")
}

/// One step of a workload. Paths begin with the table's name; offsets, lengths and sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Table(String),
    Mkdir(String),
    Create(String),
    Write {
        path: String,
        at: usize,
        length: usize,
    },
    Append(String, usize),
    /// Opened with `O_TRUNC` and written anew.
    Rewrite(String, usize),
    Truncate(String, usize),
    Punch {
        path: String,
        at: usize,
        length: usize,
    },
    Fsync(String),
    FsyncFolder(String),
    Rename(String, String),
    Exchange(String, String),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Symlink(String, String),
    /// Saves the policy of the table's key.
    Policy(String),
    /// The kernel forgets all names, so that items are opened anew.
    Forget,
    /// The daemon is killed and the store mounted again.
    Kill,
    /// Unmounted and mounted again.
    Remount,
}

/// What the model knows of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// A folder, by its number.
    Folder(usize),
    /// An item or a symlink, by its place in `History::objects`.
    Object(usize),
}

type Names = BTreeMap<String, Named>;

/// What an object held from some step on.
#[derive(Debug)]
struct Version {
    /// Calls when the step that led here began, and when it had ended.
    from: usize,
    to: usize,
    content: Vec<u8>,
    /// The step failed, and nothing tells whether this came of it.
    unsure: bool,
}

#[derive(Debug, Default)]
struct Object {
    is_link: bool,
    versions: Vec<Version>,
    /// Flushes that were acknowledged: calls then, and which version is covered.
    synced: Vec<(usize, usize)>,
    /// Flushes of a folder that has it, and renames over what was promised: calls then.
    named: Vec<usize>,
}

impl Object {
    /// Whether so many calls have promised that it is there.
    fn is_promised(&self, calls: usize) -> bool {
        self.synced.iter().map(|(at, _)| at).chain(&self.named).any(|at| *at <= calls)
    }
}

/// The store after a step.
#[derive(Debug)]
struct Point {
    start: usize,
    end: usize,
    what: String,
    names: Names,
    /// Names as they may be while the step is under way; also after it where it failed and nothing tells.
    between: Vec<Names>,
    unsure: bool,
    policies: BTreeMap<String, String>,
    /// Saves of policies until now.
    saves: usize,
    /// The folder of which the step has made the names durable.
    flushed: Option<usize>,
}

/// A crash: what was called, and what of it is left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) calls: usize,
    /// Of one more, which is a write, only the beginning was done.
    pub(crate) divided: bool,
    /// Names are as after this many calls.
    pub(crate) names: usize,
    /// Nothing of it was lost: the process was killed.
    pub(crate) kill: bool,
}

/// Everything that a run has done.
#[derive(Debug)]
pub(crate) struct History {
    objects: Vec<Object>,
    /// Folders that cannot be lost any more: calls when a flush had covered them.
    folders: BTreeMap<usize, usize>,
    points: Vec<Point>,
}

/// What a step is to change.
#[derive(Debug, Default)]
struct Effect {
    names: Option<Names>,
    between: Vec<Names>,
    /// Contents that an object has one after the other.
    contents: Option<(usize, Vec<Vec<u8>>)>,
    policy: Option<(String, String)>,
    /// Objects that are durable then.
    synced: Vec<usize>,
    flushed: Option<usize>,
    data: Vec<u8>,
    /// Whether all of this came about is not known.
    unsure: bool,
}

/// A run of steps over a recording.
pub(crate) struct Run {
    pub(crate) recording: RecordingStorage,
    pub(crate) history: History,
    client: Option<Client>,
    dice: Dice,
    folders: usize,
    /// After a failed flush the file system answers with errors alone, until it is mounted again.
    pub(crate) is_dead: bool,
    _scratch: Scratch,
}

impl Run {
    pub(crate) fn new(seed: u64) -> Self {
        let scratch = Scratch::new().unwrap();
        make_store(scratch.path());
        let recording = RecordingStorage::new(&DirStorage::open(scratch.path()).unwrap()).unwrap();
        let client = Client::open(&recording.root()).unwrap();
        let start = Point {
            start: 0,
            end: 0,
            what: "the start".to_owned(),
            names: Names::new(),
            between: Vec::new(),
            unsure: false,
            policies: BTreeMap::new(),
            saves: 0,
            flushed: None,
        };
        let history = History { objects: Vec::new(), folders: BTreeMap::new(), points: vec![start] };
        Self {
            recording,
            history,
            client: Some(client),
            dice: Dice(seed),
            folders: 0,
            is_dead: false,
            _scratch: scratch,
        }
    }

    pub(crate) fn client(&self) -> &Client {
        self.client.as_ref().unwrap()
    }

    pub(crate) fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step).unwrap_or_else(|error| panic!("{step:?}: {error}"));
        }
    }

    /// Makes one step. Where it fails, what came of it is looked up, and must be what was or what was to be.
    pub(crate) fn step(&mut self, step: &Step) -> FsResult<()> {
        assert!(!self.is_dead);
        let effect = self.effect(step).ok_or(FsError::NotFound)?;
        let start = self.recording.len();
        let done = self.act(step, &effect);
        let end = self.recording.len();
        let effect = if done.is_ok() { effect } else { self.after_failure(step, effect) };
        self.note(step, effect, (start, end), done.is_ok());
        done
    }

    fn names(&self) -> &Names {
        &self.history.points.last().unwrap().names
    }

    pub(crate) fn paths(&self, wanted: impl Fn(&str, bool) -> bool) -> Vec<String> {
        let named = |(path, named): (&String, &Named)| {
            let is_folder = matches!(named, Named::Folder(_));
            let is_link = matches!(named, Named::Object(object) if self.history.objects[*object].is_link);
            (!is_link && wanted(path, is_folder)).then(|| path.clone())
        };
        self.names().iter().filter_map(named).collect()
    }

    pub(crate) fn has(&self, wanted: impl Fn(&str) -> bool) -> bool {
        self.names().keys().any(|path| wanted(path))
    }

    /// Whether both are names of one item.
    pub(crate) fn is_same(&self, one: &str, other: &str) -> bool {
        self.names().get(one) == self.names().get(other)
    }

    pub(crate) fn links(&self, path: &str) -> usize {
        let named = self.names().get(path);
        self.names().values().filter(|other| Some(*other) == named).count()
    }

    pub(crate) fn size(&self, path: &str) -> usize {
        self.object(path).map_or(0, |object| self.content(object).len())
    }

    fn object(&self, path: &str) -> Option<usize> {
        match self.names().get(path)? {
            Named::Object(object) => Some(*object),
            Named::Folder(_) => None,
        }
    }

    fn content(&self, object: usize) -> Vec<u8> {
        self.history.objects[object].versions.last().map_or_else(Vec::new, |version| version.content.clone())
    }

    fn new_object(&mut self, is_link: bool) -> usize {
        self.history.objects.push(Object { is_link, ..Object::default() });
        self.history.objects.len() - 1
    }

    fn new_folder(&mut self) -> Named {
        self.folders += 1;
        Named::Folder(self.folders)
    }

    /// What a step is to change; none where the model has not what it is about.
    fn effect(&mut self, step: &Step) -> Option<Effect> {
        let mut names = self.names().clone();
        let mut effect = Effect::default();
        match step {
            Step::Table(path) | Step::Mkdir(path) => {
                names.insert(path.clone(), self.new_folder());
            }
            Step::Create(path) => {
                let object = self.new_object(false);
                names.insert(path.clone(), Named::Object(object));
                effect.contents = Some((object, vec![Vec::new()]));
            }
            Step::Symlink(path, target) => {
                let object = self.new_object(true);
                names.insert(path.clone(), Named::Object(object));
                effect.contents = Some((object, vec![target.clone().into_bytes()]));
            }
            Step::Write { path, .. }
            | Step::Append(path, _)
            | Step::Rewrite(path, _)
            | Step::Truncate(path, _)
            | Step::Punch { path, .. } => return self.effect_on_content(step, path),
            Step::Fsync(path) => effect.synced = vec![self.object(path)?],
            Step::FsyncFolder(path) => match names.get(path)? {
                Named::Folder(folder) => effect.flushed = Some(*folder),
                Named::Object(_) => return None,
            },
            Step::Rename(from, to) => effect.between = rename(&mut names, from, to)?,
            Step::Exchange(from, to) => exchange(&mut names, from, to)?,
            Step::Link(from, to) => {
                names.insert(to.clone(), *names.get(from)?);
            }
            Step::Unlink(path) | Step::Rmdir(path) => {
                names.remove(path)?;
            }
            Step::Policy(table) => {
                let old = self.history.points.last().unwrap().policies.get(table)?;
                // White space behind the document belongs to it.
                effect.policy = Some((table.clone(), format!("{old} ")));
            }
            Step::Remount => effect.synced = (0..self.history.objects.len()).collect(),
            Step::Forget | Step::Kill => {}
        }
        effect.names = Some(names);
        Some(effect)
    }

    /// The same for a step that changes the content of the item at `path`.
    fn effect_on_content(&mut self, step: &Step, path: &str) -> Option<Effect> {
        let object = self.object(path)?;
        let old = self.content(object);
        let mut effect = Effect::default();
        if let Step::Write { length, .. } | Step::Append(_, length) | Step::Rewrite(_, length) = step {
            effect.data = self.dice.bytes(*length);
        }
        let contents = if let Step::Write { at, .. } = step {
            after_write(&old, *at, &effect.data)
        } else if let Step::Rewrite(..) = step {
            vec![Vec::new(), effect.data.clone()]
        } else if let Step::Truncate(_, size) = step {
            let mut new = old;
            new.resize(*size, 0);
            vec![new]
        } else if let Step::Punch { at, length, .. } = step {
            after_punch(&old, *at, *length)
        } else {
            after_write(&old, old.len(), &effect.data)
        };
        effect.contents = Some((object, contents));
        Some(effect)
    }

    fn act(&mut self, step: &Step, effect: &Effect) -> FsResult<()> {
        let client = self.client();
        match step {
            Step::Table(name) => {
                client.control(".kms/ctl", &format!("create-table {name} user=uid:0\n"), libc::O_WRONLY)
            }
            Step::Mkdir(path) => client.mkdir(path),
            Step::Create(path) => client.create(path),
            Step::Write { path, at, .. } => client.write(path, *at, &effect.data),
            Step::Append(path, _) => client.write(path, self.size(path), &effect.data),
            Step::Rewrite(path, _) => {
                client.with(path, libc::O_WRONLY | libc::O_TRUNC, |ino, fh| client.put(ino, fh, 0, &effect.data))
            }
            Step::Truncate(path, size) => {
                let change = SetAttr { size: Some(*size as u64), ..SetAttr::default() };
                client.find(path).and_then(|ino| client.fs.setattr(&ROOT, ino, &change)).map(drop)
            }
            Step::Punch { path, at, length } => client.with(path, libc::O_WRONLY, |ino, fh| {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                client.fs.fallocate(ino, fh, *at as u64, *length as u64, mode)
            }),
            Step::Fsync(path) => client.sync(path),
            Step::FsyncFolder(path) => {
                let ino = client.find(path)?;
                let opened = client.fs.opendir(&ROOT, ino, 0)?;
                let done = client.fs.fsyncdir(ino, opened.fh, false);
                client.fs.releasedir(ino, opened.fh);
                done
            }
            Step::Rename(from, to) => client.rename(from, to, 0),
            Step::Exchange(from, to) => client.rename(from, to, libc::RENAME_EXCHANGE),
            Step::Link(from, to) => {
                let (ino, (parent, name)) = (client.find(from)?, client.parent(to)?);
                client.fs.link(&ROOT, ino, parent, name).map(|entry| client.known.borrow_mut().push(entry.attr.ino))
            }
            Step::Unlink(path) => client.unlink(path),
            Step::Rmdir(path) => {
                let (parent, name) = client.parent(path)?;
                client.fs.rmdir(&ROOT, parent, name).map(drop)
            }
            Step::Symlink(path, target) => {
                let (parent, name) = client.parent(path)?;
                let made = client.fs.symlink(&ROOT, parent, name, target.as_bytes());
                made.map(|entry| client.known.borrow_mut().push(entry.attr.ino))
            }
            Step::Policy(table) => {
                let (_, text) = effect.policy.as_ref().unwrap();
                client.control(&policy_of(table), text, libc::O_WRONLY | libc::O_TRUNC)
            }
            Step::Forget => {
                client.forget_all();
                Ok(())
            }
            Step::Kill => {
                self.client = None;
                self.reopen();
                Ok(())
            }
            Step::Remount => {
                self.client.take().unwrap().close();
                self.reopen();
                Ok(())
            }
        }
    }

    fn reopen(&mut self) {
        self.client = Some(Client::open(&self.recording.root()).unwrap());
    }

    /// After a step that has failed: what it has changed is what is there now. A file system that shows nothing any more
    /// leaves it open.
    fn after_failure(&mut self, step: &Step, mut effect: Effect) -> Effect {
        (effect.synced, effect.flushed) = (Vec::new(), None);
        let Some(now) = self.client().try_tree() else {
            self.is_dead = true;
            effect.unsure = true;
            effect.between.extend(effect.names.take());
            return effect;
        };
        if let Some(names) = effect.names.take() {
            let candidates = [self.names().clone(), names.clone()].into_iter().chain(effect.between.iter().cloned());
            let found = candidates.into_iter().find(|names| names.keys().eq(now.keys()));
            effect.names =
                Some(found.unwrap_or_else(|| panic!("{step:?} has failed, and the names are {:?}", now.keys())));
            effect.between.push(names);
        }
        if let Some((object, contents)) = &mut effect.contents {
            let names = effect.names.as_ref().unwrap_or(self.names());
            let path = names.iter().find(|(_, named)| **named == Named::Object(*object)).map(|(path, _)| path);
            if let Some(path) = path {
                let (Node::Item(found) | Node::Link(found)) = &now[path] else { panic!("{path} is a folder") };
                let found = found.clone().unwrap_or_else(|error| panic!("{step:?} has failed, and {path}: {error}"));
                let known = found == self.content(*object) || contents.contains(&found);
                assert!(known, "{step:?} has failed, and {path} has {} bytes that it never had", found.len());
                contents.push(found);
            }
        }
        if let Some((table, text)) = &mut effect.policy {
            let now = self.client().text(&policy_of(table));
            let old = self.history.points.last().unwrap().policies.get(table);
            assert!(now == *text || Some(&now) == old, "{step:?} has failed, and the policy is another one");
            *text = now;
        }
        effect
    }

    /// Whether the file system shows what the steps have made.
    pub(crate) fn check_now(&self) -> Result<(), String> {
        let calls = self.recording.len();
        self.history.check(Cut::after(calls, true), &self.client().show())
    }

    fn note(&mut self, step: &Step, effect: Effect, (start, end): (usize, usize), done: bool) {
        let unsure = effect.unsure;
        if let Some((object, contents)) = effect.contents {
            let version = |content| Version { from: start, to: end, content, unsure };
            self.history.objects[object].versions.extend(contents.into_iter().map(version));
        }
        for object in &effect.synced {
            let object = &mut self.history.objects[*object];
            if let Some(last) = object.versions.len().checked_sub(1) {
                object.synced.push((end, last));
                object.named.push(end);
            }
        }
        let last = self.history.points.last().unwrap();
        let names = effect.names.unwrap_or_else(|| last.names.clone());
        let (mut policies, mut saves) = (last.policies.clone(), last.saves);
        if let Some((table, text)) = effect.policy.filter(|_| !unsure) {
            policies.insert(table, text);
            saves += usize::from(done);
        }
        if let (Step::Table(name), true) = (step, done) {
            policies.insert(name.clone(), self.client().text(&policy_of(name)));
        }
        if done && let Step::Rename(from, to) | Step::Exchange(from, to) = step {
            // What takes the place of something that was promised is whole.
            let object = |path| last.names.get(path).copied().and_then(as_object);
            let over = |moved, target: usize| self.history.objects[target].is_promised(end).then_some(moved);
            let mut whole = Vec::new();
            if let (Some(moved), Some(target)) = (object(from), object(to)) {
                whole.extend(over(moved, target));
                if matches!(step, Step::Exchange(..)) {
                    whole.extend(over(target, moved));
                }
            }
            for object in whole {
                self.history.objects[object].named.push(end);
            }
        }
        // The first flush in a table takes its new folders with it.
        let of = |named: Named| names.iter().find(|(_, other)| **other == named).map(|(path, _)| table_of(path));
        let synced = effect.synced.iter().map(|object| Named::Object(*object));
        let flushed = synced.chain(effect.flushed.map(Named::Folder)).filter_map(of).collect::<BTreeSet<_>>();
        for (path, named) in &names {
            if let Named::Folder(folder) = named
                && (!path.contains('/') || flushed.contains(table_of(path)))
            {
                self.history.folders.entry(*folder).or_insert(end);
            }
        }
        if let Some(folder) = effect.flushed {
            for object in children(&names, folder).into_values().filter_map(as_object) {
                let object = &mut self.history.objects[object];
                object.named.push(end);
                if object.is_link {
                    object.synced.push((end, object.versions.len() - 1));
                }
            }
        }
        let what = format!("{step:.200?}");
        let (between, flushed) = (effect.between, effect.flushed);
        self.history.points.push(Point { start, end, what, names, between, unsure, policies, saves, flushed });
    }
}

fn as_object(named: Named) -> Option<usize> {
    match named {
        Named::Object(object) => Some(object),
        Named::Folder(_) => None,
    }
}

fn table_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

/// The names in a folder; nothing where the folder is not there.
fn children(names: &Names, folder: usize) -> BTreeMap<String, Named> {
    let Some((path, _)) = names.iter().find(|(_, named)| **named == Named::Folder(folder)) else {
        return BTreeMap::new();
    };
    let below = |(name, named): (&String, &Named)| {
        let rest = name.strip_prefix(path)?.strip_prefix('/')?;
        (!rest.contains('/')).then(|| (rest.to_owned(), *named))
    };
    names.iter().filter_map(below).collect()
}

/// Moves a name and everything below it. Gives the names as they may be on the way: a folder changes places with the
/// empty one that it replaces, which then goes.
fn rename(names: &mut Names, from: &str, to: &str) -> Option<Vec<Names>> {
    let replaced = names.remove(to);
    let moved: Vec<_> = subtree(names, from);
    if moved.is_empty() {
        return None;
    }
    for (path, named) in moved {
        names.remove(&path);
        names.insert(format!("{to}{}", &path[from.len()..]), named);
    }
    let mut between = Vec::new();
    if let Some(folder @ Named::Folder(_)) = replaced {
        let mut exchanged = names.clone();
        exchanged.insert(from.to_owned(), folder);
        between.push(exchanged);
    }
    Some(between)
}

fn exchange(names: &mut Names, one: &str, other: &str) -> Option<()> {
    let (ones, others) = (subtree(names, one), subtree(names, other));
    if ones.is_empty() || others.is_empty() {
        return None;
    }
    for (path, _) in ones.iter().chain(&others) {
        names.remove(path);
    }
    names.extend(ones.into_iter().map(|(path, named)| (format!("{other}{}", &path[one.len()..]), named)));
    names.extend(others.into_iter().map(|(path, named)| (format!("{one}{}", &path[other.len()..]), named)));
    Some(())
}

fn subtree(names: &Names, top: &str) -> Vec<(String, Named)> {
    let within = |path: &str| path == top || path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'));
    names.iter().filter(|(path, _)| within(path)).map(|(path, named)| (path.clone(), *named)).collect()
}

/// Contents one after the other as a write is made.
fn after_write(old: &[u8], at: usize, data: &[u8]) -> Vec<Vec<u8>> {
    let put = |length: usize| {
        let mut new = old.to_vec();
        if length > 0 && new.len() < at + length {
            new.resize(at + length, 0);
        }
        new[at..at + length].copy_from_slice(&data[..length]);
        new
    };
    let mut contents = Vec::new();
    if data.len() >= STREAM && !at.is_multiple_of(BLOCK) {
        contents.push(put(BLOCK - at % BLOCK));
    }
    contents.push(put(data.len()));
    contents
}

/// Contents one after the other as a hole is made: its ragged ends are written block by block, then whole blocks go by
/// groups.
fn after_punch(old: &[u8], at: usize, length: usize) -> Vec<Vec<u8>> {
    let end = old.len().min(at + length);
    let mut contents = vec![old.to_vec()];
    let mut zero = |from: usize, to: usize| {
        if from < to {
            let mut new = contents.last().unwrap().clone();
            new[from..to].fill(0);
            contents.push(new);
        }
    };
    let first = at.next_multiple_of(BLOCK).min(end);
    let last = if end == old.len() { end } else { (end / BLOCK * BLOCK).max(first) };
    zero(at, first);
    zero(last, end);
    let group_end = |from: usize| {
        let block = from / BLOCK;
        let end = if block < 112 { 112 } else { 112 + ((block - 112) / 128 + 1) * 128 };
        (end * BLOCK).min(last)
    };
    let mut from = first;
    while from < last {
        zero(from, group_end(from));
        from = group_end(from);
    }
    contents
}

impl Cut {
    /// After that many calls nothing of the next one is done.
    pub(crate) fn after(calls: usize, kill: bool) -> Self {
        Self { calls, divided: false, names: calls, kill }
    }

    /// Where a step has begun that began before this many calls.
    fn begun(&self) -> usize {
        self.calls + usize::from(self.divided)
    }
}

impl History {
    /// The last step that had ended after so many calls, and the one that was under way.
    fn at(&self, calls: usize, begun: usize) -> (usize, Option<&Point>) {
        let last = self.points.partition_point(|point| point.end <= calls) - 1;
        (last, self.points.get(last + 1).filter(|point| point.start < begun))
    }

    /// Whether what is shown after a crash may be shown.
    pub(crate) fn check(&self, cut: Cut, shown: &Shown) -> Result<(), String> {
        let begun = if cut.names == cut.calls { cut.begun() } else { cut.names };
        let (last, under_way) = self.at(cut.names, begun);
        let candidates = [&self.points[last].names]
            .into_iter()
            .chain(under_way.iter().flat_map(|point| point.between.iter().chain([&point.names])));
        let mut why = String::new();
        let mut found = false;
        for names in candidates {
            match self.check_tree(cut, names, &shown.tree) {
                Ok(()) => found = true,
                Err(error) => writeln!(why, "  not as {} names: {error}", names.len()).unwrap(),
            }
        }
        let found = if found { Ok(()) } else { Err(why) };
        found.and_then(|()| self.check_rest(cut, shown)).map_err(|why| {
            let (done, under_way) = self.at(cut.calls, cut.begun());
            let done = &self.points[done];
            let under_way = under_way.map(|point| (point.start..=point.end, &point.what));
            format!("{why}  last step: {} (until {}); under way: {under_way:?}", done.what, done.end)
        })
    }

    /// Whether the tree may be found where the names are these.
    fn check_tree(&self, cut: Cut, all: &Names, tree: &Tree) -> Result<(), String> {
        // What was half made goes when it is found, which may have been in a mount that was cut short, too.
        let may_go = |named: &Named| match named {
            Named::Object(object) => self.may_be_nothing(cut, *object),
            Named::Folder(folder) => !cut.kill && self.folders.get(folder).is_none_or(|calls| *calls > cut.calls),
        };
        let gone = |path: &String, named: &Named| !tree.contains_key(path) && may_go(named);
        let names: Vec<_> = all.iter().filter(|(path, named)| !gone(path, named)).collect();
        if !names.iter().map(|(path, _)| *path).eq(tree.keys()) {
            let (expected, found): (BTreeSet<_>, BTreeSet<_>) =
                (names.iter().map(|(path, _)| *path).collect(), tree.keys().collect());
            let missing: Vec<_> = expected.difference(&found).collect();
            let added: Vec<_> = found.difference(&expected).collect();
            return Err(format!("missing {missing:.200?}, and there are {added:.200?}"));
        }
        for ((path, named), node) in names.into_iter().zip(tree.values()) {
            let found = match (named, node) {
                (Named::Folder(_), Node::Folder) => continue,
                (Named::Object(object), Node::Item(found) | Node::Link(found)) => {
                    let is_link = matches!(node, Node::Link(_));
                    if found.is_ok() && is_link != self.objects[*object].is_link {
                        return Err(format!("{path:.60} is of another kind"));
                    }
                    self.check_object(cut, *object, found)
                }
                _ => Err("of another kind".to_owned()),
            };
            found.map_err(|why| format!("{path:.60}: {why}"))?;
        }
        self.check_names(cut, all)
    }

    /// Whether an object may be there without a header, or be gone for that reason: nothing had promised it.
    fn may_be_nothing(&self, cut: Cut, object: usize) -> bool {
        let object = &self.objects[object];
        if cut.kill && cut.names == cut.calls {
            return !object.versions.iter().any(|version| version.to <= cut.calls && !version.unsure);
        }
        let promised =
            object.synced.iter().map(|(calls, _)| calls).chain(&object.named).any(|calls| *calls <= cut.calls);
        !promised
    }

    fn check_object(&self, cut: Cut, number: usize, found: &Result<Vec<u8>, String>) -> Result<(), String> {
        let object = &self.objects[number];
        let ended = object.versions.iter().rposition(|version| version.to <= cut.calls && !version.unsure);
        // A step that makes no call has begun when it has ended.
        let begun =
            object.versions.partition_point(|version| version.from < cut.begun()).max(ended.map_or(0, |at| at + 1));
        let sizes =
            |from: usize| object.versions[from..begun].iter().map(|version| version.content.len()).collect::<Vec<_>>();
        if cut.kill && cut.names == cut.calls {
            // Created by the step under way, it may be nothing yet.
            let Some(now) = ended else { return Ok(()) };
            let Ok(found) = found else { return Err(format!("{found:?} after a kill")) };
            let versions = &object.versions[now..begun];
            let known = versions.iter().any(|version| version.content == *found);
            let known = known || (cut.divided && survives(found, versions, true));
            return if known { Ok(()) } else { Err(format!("{} bytes, not of {:?}", found.len(), sizes(now))) };
        }
        let synced = object.synced.iter().rev().find(|(calls, _)| *calls <= cut.calls).map(|(_, version)| *version);
        let from = synced.unwrap_or(0);
        match found {
            Err(_) if self.may_be_nothing(cut, number) => Ok(()),
            Err(error) if synced.is_none() => Err(format!("{error}, though its name was promised")),
            Err(error) => Err(format!("{error}, though it was flushed")),
            Ok(found) if survives(found, &object.versions[from..begun], synced.is_some()) => Ok(()),
            Ok(found) => Err(format!("{} bytes, not of {:?}, flushed {}", found.len(), sizes(from), synced.is_some())),
        }
    }

    /// No name is missing that was promised.
    fn check_names(&self, cut: Cut, names: &Names) -> Result<(), String> {
        let (last, under_way) = self.at(cut.calls, cut.begun());
        let until = last + usize::from(under_way.is_some());
        let there: BTreeSet<usize> = names.values().copied().filter_map(as_object).collect();
        for (number, object) in self.objects.iter().enumerate() {
            let Some((flushed, _)) = object.synced.iter().rev().find(|(calls, _)| *calls <= cut.calls) else {
                continue;
            };
            let (since, _) = self.at(*flushed, *flushed);
            let stayed = self.points[since..=until].iter().all(|point| {
                let has = |names: &Names| names.values().any(|named| *named == Named::Object(number));
                has(&point.names) && point.between.iter().all(has)
            });
            if stayed && !there.contains(&number) {
                let name = self.points[since].names.iter().find(|(_, named)| **named == Named::Object(number));
                return Err(format!(
                    "lost: {:.60?}, which was flushed after {flushed} calls",
                    name.map(|(name, _)| name)
                ));
            }
        }
        let mut seen = BTreeSet::new();
        for (number, point) in self.points[..=last].iter().enumerate().rev() {
            let Some(folder) = point.flushed.filter(|folder| seen.insert(*folder)) else { continue };
            let since = &self.points[number..=until];
            let all = since.iter().flat_map(|point| point.between.iter().chain([&point.names]));
            if !all.into_iter().any(|then| children(then, folder) == children(names, folder)) {
                return Err(format!("the names of a folder are older than its flush after {} calls", point.end));
            }
        }
        Ok(())
    }

    fn check_rest(&self, cut: Cut, shown: &Shown) -> Result<(), String> {
        let (last, under_way) = self.at(cut.calls, cut.begun());
        let done = &self.points[last];
        for (table, policy) in &shown.policies {
            let known = |point: &Point| point.policies.get(table) == Some(policy);
            let new = !done.policies.contains_key(table);
            if !new && !known(done) && !under_way.is_some_and(known) && !done.unsure {
                return Err(format!("the policy of {table} is neither the old nor the new one\n"));
            }
        }
        if !shown.verified.starts_with("ok:") {
            return Err(format!("the trail: {}", shown.verified));
        }
        let saves = count(&shown.trail, "\"PutKeyPolicy\"");
        if saves < done.saves {
            return Err(format!("the trail has {saves} of {} saves of a policy\n", done.saves));
        }
        let unreadable = |node: &Node| matches!(node, Node::Item(Err(_)) | Node::Link(Err(_)));
        if shown.trail.contains("\"TamperingFound\"") && !shown.tree.values().any(unreadable) {
            let found = shown.trail.lines().find(|line| line.contains("\"TamperingFound\""));
            return Err(format!("the trail tells of tampering: {found:?}\n"));
        }
        Ok(())
    }
}

fn count(text: &str, what: &str) -> usize {
    text.lines().filter(|line| line.contains(what)).count()
}

/// Whether a power cut may leave `found` of an object that went through these contents since its last flush: one of
/// them, or the beginning of one, cut at a block behind what had been flushed and stayed.
fn survives(found: &[u8], versions: &[Version], flushed: bool) -> bool {
    let mut least = if flushed { usize::MAX } else { 0 };
    versions.iter().any(|Version { content, .. }| {
        least = least.min(content.len());
        let cut = found.len() < content.len() && found.len().is_multiple_of(BLOCK) && found.len() >= least;
        content == found || (cut && content.starts_with(found))
    }) || (!flushed && found.is_empty())
}
