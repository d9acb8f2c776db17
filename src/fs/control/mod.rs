//! The control tree `.kms`: what an administrator does, with `cat`, `echo`, `mkdir`, `rm` and an editor.
//!
//! Access is decided by the key service for the caller that the kernel names; the modes shown here only let the request
//! through to that decision. Nothing of it is on disk: documents are the key service's, temporary files live in memory.

#![expect(clippy::wildcard_enum_match_arm, reason = "what is neither a document nor a command file is content")]

mod command;
mod contents;
mod draft;
mod exchange;
mod grants;
mod lists;
mod names;
mod nodes;
mod temporaries;
mod trail;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::FileSystem;
use super::api::{Attr, Caller, Entry, FsError, FsResult, Kind, Opened, Outcome, SetAttr, SetTime};
use super::handles::Handles;
use super::quota::{Quota, Share};
use super::subject::Asker;
use draft::{Draft, Step};
use exchange::Transaction;
use lists::ListLines;
use nodes::Exchange;
use nodes::Numbers;
pub(super) use nodes::{Node, Scope};
use temporaries::{Temporaries, Temporary};
use trail::{Lines, TrailText};

use crate::policy::Policy;

/// For how long a removed document stays out of its remover's sight.
const HIDDEN_FOR: Duration = Duration::from_secs(60);
/// The longest command line: one for a description of 8,192 bytes.
const COMMAND_BYTES_MOST: usize = 16 * 1024;
/// Files here that one user may have open.
const HANDLES_MOST: usize = 256;
/// Results that are remembered; beyond this the memory starts anew, so that it stays bounded.
const RESULTS_MOST: usize = 4096;
const RESULT_CHARS_MOST: usize = 2048;
/// Nothing here may be remembered by the kernel: it changes with every save and differs between callers.
const TTL: Duration = Duration::ZERO;

#[derive(Debug)]
pub(super) struct Control {
    numbers: Numbers,
    temporaries: Temporaries,
    handles: Handles<OpenControl>,
    opened: Arc<Quota>,
    questions: Arc<Quota>,
    answers: Arc<Quota>,
    /// Why the last save in a place was refused, and whose it was.
    refusals: Mutex<HashMap<Scope, (u32, String)>>,
    /// What each caller's last command did.
    results: Mutex<HashMap<(Scope, u32), String>>,
    /// Who has removed a document, and when.
    hidden: Mutex<HashMap<(Scope, u32), Instant>>,
    orders: grants::Orders,
    /// When a document was last saved through this mount.
    saved: Mutex<HashMap<Scope, SystemTime>>,
    started: SystemTime,
    /// Held while somebody counts items.
    counting: Mutex<()>,
}

#[derive(Debug)]
struct OpenControl {
    handle: ControlHandle,
    _share: Share,
}

#[derive(Debug)]
enum ControlHandle {
    /// What a file says, as it was at the open.
    Content(Vec<u8>),
    Document {
        scope: Scope,
        /// The generation on which the save is to build.
        expected: Option<u64>,
        draft: Mutex<Draft>,
        opener: Asker,
    },
    Command {
        scope: Scope,
        line: Mutex<Vec<u8>>,
        opener: Asker,
    },
    Temporary(Arc<Temporary>),
    Trail(Mutex<TrailText>),
    /// A list as long as it may be, as it was at the open.
    List {
        node: Node,
        lines: Mutex<Lines<ListLines>>,
        opener: Asker,
    },
    GrantOrder(grants::Order),
    Exchange {
        what: Exchange,
        transaction: Mutex<Transaction>,
        opener: Asker,
    },
}

impl Default for Control {
    fn default() -> Self {
        Self {
            numbers: Numbers::default(),
            temporaries: Temporaries::default(),
            handles: Handles::default(),
            opened: Quota::new(HANDLES_MOST),
            questions: Quota::new(exchange::QUESTIONS_MOST),
            answers: Quota::new(exchange::ANSWER_BYTES_MOST),
            refusals: Mutex::default(),
            results: Mutex::default(),
            hidden: Mutex::default(),
            orders: grants::Orders::default(),
            saved: Mutex::default(),
            started: SystemTime::now(),
            counting: Mutex::default(),
        }
    }
}

impl Control {
    pub(super) fn node(&self, ino: u64) -> FsResult<Node> {
        self.numbers.node(ino)
    }

    /// The number of a node, for a listing.
    pub(super) fn number(&self, node: &Node) -> u64 {
        self.numbers.peek(node)
    }

    pub(super) fn forget(&self, ino: u64, lookups: u64) {
        self.numbers.forget(ino, lookups);
    }

    fn is_hidden(&self, scope: Scope, uid: u32) -> bool {
        let mut hidden = lock(&self.hidden);
        hidden.retain(|_, since| since.elapsed() < HIDDEN_FOR);
        hidden.contains_key(&(scope, uid))
    }

    fn hide(&self, scope: Scope, uid: u32) {
        lock(&self.hidden).insert((scope, uid), Instant::now());
    }

    fn show(&self, scope: Scope, uid: u32) {
        lock(&self.hidden).remove(&(scope, uid));
    }

    fn set_result(&self, scope: Scope, uid: u32, text: &str) {
        let mut results = lock(&self.results);
        if results.len() >= RESULTS_MOST {
            results.clear();
        }
        let cut = text.char_indices().nth(RESULT_CHARS_MOST).map_or(text, |(end, _)| text.split_at(end).0);
        results.insert((scope, uid), format!("{cut}\n"));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FileSystem {
    pub(super) fn control_entry(&self, caller: &Caller, node: &Node) -> FsResult<Entry> {
        let ino = self.control.numbers.looked_up(node);
        match self.control_attr(caller, ino, node) {
            Ok(attr) => Ok(Entry { attr, generation: 0, ttl: TTL }),
            Err(error) => {
                self.control.forget(ino, 1);
                Err(error)
            }
        }
    }

    pub(super) fn control_getattr(&self, caller: &Caller, ino: u64, fh: Option<u64>) -> FsResult<(Attr, Duration)> {
        let node = self.control.node(ino)?;
        let handle = fh.and_then(|fh| self.control.handles.find(fh).ok());
        if let Some(ControlHandle::Temporary(file)) = handle.as_deref().map(|open| &open.handle) {
            return Ok((self.temporary_attr(ino, &node, file), TTL));
        }
        let mut attr = self.control_attr(caller, ino, &node)?;
        match handle.as_deref().map(|open| &open.handle) {
            Some(ControlHandle::Document { draft, .. }) => attr.size = size_of(lock(draft).bytes()),
            Some(ControlHandle::GrantOrder(order)) => attr.size = size_of(&order.bytes()),
            _ => {}
        }
        Ok((attr, TTL))
    }

    fn control_attr(&self, caller: &Caller, ino: u64, node: &Node) -> FsResult<Attr> {
        let mut attr = self.plain_attr(ino, node);
        match node {
            Node::WhyPath(table, path) => self.mirror(caller, *table, path, &mut attr)?,
            Node::Temporary(_, id) => {
                return Ok(self.temporary_attr(ino, node, &*self.control.temporaries.numbered(*id)?));
            }
            Node::Policy(scope) => {
                let saved = lock(&self.control.saved).get(scope).copied().unwrap_or(self.control.started);
                attr.mtime = seconds(saved);
                attr.ctime = attr.mtime;
                attr.size = self.content_size(caller, node);
                // It is everybody's own: tools that set a mode or an owner are let go on, and change nothing.
                (attr.uid, attr.gid) = (caller.uid, caller.gid);
            }
            _ if attr.kind == Kind::File => attr.size = self.content_size(caller, node),
            _ => {}
        }
        Ok(attr)
    }

    fn temporary_attr(&self, ino: u64, node: &Node, file: &Temporary) -> Attr {
        let (length, modified) = file.stat();
        let time = seconds(modified);
        let size = u64::try_from(length).unwrap_or(u64::MAX);
        Attr { size, uid: file.owner, gid: file.group, mtime: time, ctime: time, ..self.plain_attr(ino, node) }
    }

    /// The size of what a file would say to this caller; 0 where he may not read it or where only reading tells.
    fn content_size(&self, caller: &Caller, node: &Node) -> u64 {
        let only_read = matches!(
            node,
            Node::Trail | Node::Verify | Node::GrantList(_) | Node::KeyList | Node::KeyStatus(_) | Node::Exchange(_)
        );
        if only_read {
            return 0;
        }
        self.contents(&Asker::of(caller, true), node, false).map_or(0, |text| size_of(&text))
    }

    fn plain_attr(&self, ino: u64, node: &Node) -> Attr {
        let (kind, perm) = shape(node);
        let time = seconds(self.control.started);
        Attr {
            ino,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            kind,
            perm,
            nlink: if kind == Kind::Dir { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
        }
    }

    pub(super) fn control_open(&self, caller: &Caller, ino: u64, flags: i32) -> FsResult<Opened> {
        let node = self.control.node(ino)?;
        let handle = self.control_handle(caller, &node, flags)?;
        self.control_opened(caller.uid, handle)
    }

    /// # Errors
    /// EMFILE for a user who has too many of them open: what each says, or is told, is kept in memory.
    fn control_opened(&self, uid: u32, handle: ControlHandle) -> FsResult<Opened> {
        let share = self.control.opened.take(uid, 1);
        let share = share.ok_or_else(|| FsError::Io(io::Error::from_raw_os_error(libc::EMFILE)))?;
        let fh = self.control.handles.insert(OpenControl { handle, _share: share });
        Ok(Opened { fh, direct_io: true, ..Opened::default() })
    }

    fn control_handle(&self, caller: &Caller, node: &Node, flags: i32) -> FsResult<ControlHandle> {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let reads = flags & libc::O_ACCMODE != libc::O_WRONLY;
        let opener = Asker::of(caller, true);
        match node {
            Node::Policy(scope) | Node::PolicyAt(scope, _) if writes => {
                self.check_document_writable(&opener, *scope)?;
                let expected = if let Node::PolicyAt(_, generation) = node { Some(*generation) } else { None };
                self.still_at(*scope, expected)?;
                let text =
                    if flags & libc::O_TRUNC != 0 && !reads { Vec::new() } else { self.contents(&opener, node, true)? };
                let mut draft = Draft::new(text);
                if flags & libc::O_TRUNC != 0 {
                    draft.truncate(0)?;
                }
                Ok(ControlHandle::Document { scope: *scope, expected, draft: Mutex::new(draft), opener })
            }
            Node::Exchange(what) if reads && writes => {
                Ok(ControlHandle::Exchange { what: *what, transaction: Mutex::default(), opener })
            }
            // One descriptor is the request and the answer: half of it is of no use.
            Node::Exchange(_) => Err(FsError::Invalid),
            Node::Ctl(scope) => {
                if self.options.read_only {
                    return Err(FsError::ReadOnly);
                }
                Ok(ControlHandle::Command { scope: *scope, line: Mutex::default(), opener })
            }
            Node::GrantOrder(key, name) if writes => self.grant_order(opener, *key, name),
            Node::Temporary(_, id) => {
                let file = self.control.temporaries.numbered(*id)?;
                file.only_for(caller.uid)?;
                if flags & libc::O_TRUNC != 0 {
                    file.resize(0)?;
                }
                Ok(ControlHandle::Temporary(file))
            }
            _ if writes => Err(FsError::NotPermitted),
            Node::GrantList(_) | Node::KeyList => {
                let lines = Mutex::new(Lines::new(self.list_lines(&opener, node)?));
                Ok(ControlHandle::List { node: node.clone(), lines, opener })
            }
            Node::Trail => Ok(ControlHandle::Trail(Mutex::new(self.open_trail(&opener)?))),
            _ => Ok(ControlHandle::Content(self.contents(&opener, node, true)?)),
        }
    }

    fn check_document_writable(&self, opener: &Asker, scope: Scope) -> FsResult<()> {
        if self.options.read_only {
            return Err(FsError::ReadOnly);
        }
        match scope {
            Scope::Store => self.kms.may_put_store_policy(&opener.subject())?,
            Scope::Key(id) => self.kms.may_put_key_policy(&opener.subject(), &*self.kms.key(id)?)?,
            Scope::Table(_) => return Err(FsError::NotPermitted),
        }
        Ok(())
    }

    pub(super) fn control_read(&self, fh: u64, offset: u64, buffer: &mut Vec<u8>, size: u32) -> FsResult<()> {
        let handle = self.control.handles.find(fh)?;
        match &handle.handle {
            ControlHandle::Content(text) => take(text, offset, size, buffer),
            ControlHandle::Document { draft, .. } => take(lock(draft).bytes(), offset, size, buffer),
            ControlHandle::Temporary(file) => take(&file.bytes(), offset, size, buffer),
            ControlHandle::Trail(text) => lock(text).read(offset, size, buffer, || self.kms.trail_lines())?,
            ControlHandle::List { node, lines, opener } => {
                let mut lines = lock(lines);
                if !lines.reaches(offset) {
                    *lines = Lines::new(self.list_lines(opener, node)?);
                }
                lines.read(offset, usize::try_from(size).map_err(|_| FsError::Invalid)?, buffer);
            }
            ControlHandle::GrantOrder(order) => take(&order.bytes(), offset, size, buffer),
            ControlHandle::Exchange { what, transaction, opener } => {
                lock(transaction).read(offset, size, buffer, |request| self.exchange(*what, opener, request))?;
            }
            ControlHandle::Command { .. } => return Err(FsError::BadHandle),
        }
        Ok(())
    }

    pub(super) fn control_write(&self, fh: u64, offset: u64, data: &[u8]) -> FsResult<Outcome<u32>> {
        let handle = self.control.handles.find(fh)?;
        let written = u32::try_from(data.len()).map_err(|_| FsError::TooLarge)?;
        match &handle.handle {
            ControlHandle::Content(_) | ControlHandle::Trail(_) | ControlHandle::List { .. } => Err(FsError::BadHandle),
            ControlHandle::GrantOrder(order) => {
                let outcome = self.write_order(order, offset, data)?;
                Ok(Outcome { value: written, revocation: outcome.revocation })
            }
            ControlHandle::Temporary(file) => {
                file.write(offset, data)?;
                Ok(written.into())
            }
            ControlHandle::Exchange { what, transaction, .. } => {
                lock(transaction).write(offset, data, exchange::request_most(*what))?;
                Ok(written.into())
            }
            ControlHandle::Document { scope, expected, draft, opener } => {
                let mut draft = lock(draft);
                let step = draft.write(offset, data)?;
                let outcome = self.take_step((*scope, *expected), &mut draft, opener, step)?;
                Ok(Outcome { value: written, revocation: outcome.revocation })
            }
            ControlHandle::Command { scope, line, opener } => {
                let mut line = lock(line);
                // One command a write: what stands behind it is the writer's to write again, so that each is answered
                // for itself.
                let end = data.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
                let taken = data.get(..end.unwrap_or(data.len())).unwrap_or_default();
                if line.len() + taken.len() > COMMAND_BYTES_MOST {
                    return Err(FsError::TooLarge);
                }
                line.extend_from_slice(taken);
                let value = u32::try_from(taken.len()).map_err(|_| FsError::TooLarge)?;
                if end.is_none() {
                    return Ok(value.into());
                }
                let revocation = self.run_line(*scope, opener, &std::mem::take(&mut *line))?.revocation;
                Ok(Outcome { value, revocation })
            }
        }
    }

    /// At close and fsync: what has not been decided is decided now.
    pub(super) fn control_flush(&self, fh: u64) -> FsResult<Outcome<()>> {
        let handle = self.control.handles.find(fh)?;
        match &handle.handle {
            ControlHandle::Content(_)
            | ControlHandle::Temporary(_)
            | ControlHandle::Trail(_)
            | ControlHandle::List { .. }
            | ControlHandle::Exchange { .. } => Ok(().into()),
            ControlHandle::GrantOrder(order) => self.finish_order(order),
            ControlHandle::Document { scope, expected, draft, opener } => {
                let mut draft = lock(draft);
                let step = draft.finish();
                self.take_step((*scope, *expected), &mut draft, opener, step)
            }
            ControlHandle::Command { scope, line, opener } => {
                let rest = std::mem::take(&mut *lock(line));
                self.run_line(*scope, opener, &rest)
            }
        }
    }

    pub(super) fn control_release(&self, fh: u64) {
        self.control.handles.remove(fh);
    }

    fn take_step(
        &self,
        (scope, expected): (Scope, Option<u64>),
        draft: &mut Draft,
        opener: &Asker,
        step: Step,
    ) -> FsResult<Outcome<()>> {
        match step {
            Step::Wait => Ok(().into()),
            Step::Save(text) => self.save_document(scope, expected, opener, &text).inspect_err(|_| draft.refused()),
        }
    }

    /// Saves a policy document. A refusal is kept for `policy.error` until something else is saved: an editor whose save
    /// was refused may put back what was there, and is to find the reason all the same.
    pub(super) fn save_document(
        &self,
        scope: Scope,
        expected: Option<u64>,
        opener: &Asker,
        text: &[u8],
    ) -> FsResult<Outcome<()>> {
        let put_back = self.text_in_force(scope).is_some_and(|now| now.as_bytes() == text);
        match self.try_save(scope, expected, opener, text) {
            Ok(outcome) => {
                if !put_back {
                    lock(&self.control.refusals).remove(&scope);
                }
                lock(&self.control.saved).insert(scope, SystemTime::now());
                self.control.show(scope, opener.uid());
                Ok(outcome)
            }
            Err((error, why)) => {
                // Who may not save has no say in what those who may are told.
                if !matches!(error, FsError::Denied) {
                    lock(&self.control.refusals).insert(scope, (opener.uid(), format!("{why}\n")));
                }
                Err(error)
            }
        }
    }

    fn text_in_force(&self, scope: Scope) -> Option<String> {
        match scope {
            Scope::Store => self.kms.store_policy().ok().map(|policy| policy.text.clone()),
            Scope::Key(id) => Some(self.kms.key(id).ok()?.now()?.policy.text.clone()),
            Scope::Table(_) => None,
        }
    }

    /// Whether the document still has the generation on which a save is to build; the save asks once more, when no
    /// other can come in between.
    fn still_at(&self, scope: Scope, expected: Option<u64>) -> FsResult<()> {
        match expected {
            Some(expected) if self.generation_in_force(scope)? != expected => Err(FsError::Busy),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn generation_in_force(&self, scope: Scope) -> FsResult<u64> {
        match scope {
            Scope::Store => Ok(self.kms.store_policy()?.generation),
            Scope::Key(id) => Ok(self.kms.key(id)?.now().ok_or(FsError::Tampered)?.policy.generation),
            // A table has no policy of its own.
            Scope::Table(_) => Err(FsError::NotFound),
        }
    }

    fn try_save(
        &self,
        scope: Scope,
        expected: Option<u64>,
        opener: &Asker,
        text: &[u8],
    ) -> Result<Outcome<()>, (FsError, String)> {
        if self.options.read_only {
            return Err((FsError::ReadOnly, "the store is mounted read-only".to_owned()));
        }
        let text = match std::str::from_utf8(text) {
            Ok(text) => text,
            Err(error) => {
                let why = Policy::parse_bytes(text).err().map_or_else(|| error.to_string(), |fault| fault.to_string());
                return Err((FsError::Invalid, format!("policy.json: {why}")));
            }
        };
        let saved = match scope {
            Scope::Store => self.kms.put_store_policy_if(&opener.subject(), text, expected),
            Scope::Key(id) => {
                let put = |key| self.kms.put_key_policy_if(&opener.subject(), &key, text, expected);
                self.kms.key(id).and_then(put)
            }
            Scope::Table(_) => Err(crate::kms::KmsError::NotFound),
        };
        match saved {
            Ok(()) => Ok(self.revocation_after(scope).into_outcome()),
            Err(error) => {
                let why = format!("policy.json: {error}");
                Err((FsError::from(error), why))
            }
        }
    }

    pub(super) fn control_setattr(
        &self,
        caller: &Caller,
        ino: u64,
        change: &SetAttr,
    ) -> FsResult<Outcome<(Attr, Duration)>> {
        let node = self.control.node(ino)?;
        let handle = change.fh.and_then(|fh| self.control.handles.find(fh).ok());
        match (handle.as_deref().map(|open| &open.handle), &node) {
            (Some(ControlHandle::Temporary(file)), _) => change_temporary(file, caller, change)?,
            (_, Node::Temporary(_, id)) => {
                change_temporary(&*self.control.temporaries.numbered(*id)?, caller, change)?;
            }
            (Some(ControlHandle::GrantOrder(order)), _) => {
                if let Some(size) = change.size {
                    order.truncate(size)?;
                }
            }
            (Some(ControlHandle::Document { draft, .. }), _) => {
                if let Some(size) = change.size {
                    lock(draft).truncate(size)?;
                }
            }
            _ => {}
        }
        // Modes and owners here, and a document's times, are not an editor's to set; those that try are let go on.
        self.control_getattr(caller, ino, change.fh).map(Outcome::from)
    }
}

/// A handle on a temporary file is its maker's; without one he is asked for again.
fn change_temporary(file: &Temporary, caller: &Caller, change: &SetAttr) -> FsResult<()> {
    if let Some(size) = change.size {
        if change.fh.is_none() {
            file.only_for(caller.uid)?;
        }
        file.resize(size)?;
    }
    if let Some(SetTime::At(seconds, nanos)) = change.mtime {
        let since = Duration::new(u64::try_from(seconds).unwrap_or(0), nanos.min(999_999_999));
        if let Some(time) = SystemTime::UNIX_EPOCH.checked_add(since) {
            file.set_modified(time);
        }
    }
    Ok(())
}

/// Kind and mode of a node. The key service decides; these modes let requests through to it.
fn shape(node: &Node) -> (Kind, u16) {
    match node {
        Node::Top | Node::Key(_) | Node::Keys | Node::Grants(_) => (Kind::Dir, 0o777),
        Node::Tables | Node::Table(_) | Node::Why | Node::WhyPath(..) | Node::Audit => (Kind::Dir, 0o555),
        Node::Policy(_) | Node::PolicyAt(..) | Node::Exchange(_) | Node::GrantOrder(..) => (Kind::File, 0o666),
        Node::Ctl(_) => (Kind::File, 0o222),
        Node::WhoAmI
        | Node::CtlResult(_)
        | Node::PolicyError(_)
        | Node::StoreJson
        | Node::PolicyGeneration(_)
        | Node::KeyJson(_)
        | Node::KeyList
        | Node::Receipt(_)
        | Node::GrantList(_)
        | Node::Grant(..)
        | Node::KeyStatus(_)
        | Node::TableJson(_)
        | Node::ReEncryption(_)
        | Node::Trail
        | Node::Verify => (Kind::File, 0o444),
        Node::Temporary(..) => (Kind::File, 0o600),
    }
}

fn take(text: &[u8], offset: u64, size: u32, buffer: &mut Vec<u8>) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let end = start.saturating_add(usize::try_from(size).unwrap_or(0)).min(text.len());
    buffer.extend_from_slice(text.get(start..end).unwrap_or_default());
}

fn size_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

pub(super) fn seconds(time: SystemTime) -> (i64, u32) {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or((0, 0), |since| (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos()))
}
