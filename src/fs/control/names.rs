//! Names in the control tree: looked up, listed, and what editors do with the names beside a document.

#![expect(clippy::wildcard_enum_match_arm, reason = "what a call does not name is refused, or has nothing to show")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::super::FileSystem;
use super::super::api::{Caller, Entry, FsError, FsResult, Kind, Opened, Outcome};
use super::super::subject::Asker;
use super::draft::Draft;
use super::{ControlHandle, Exchange, Node, Scope, shape};
use crate::kms::KeySpec;
use crate::types::{Action, KeyId, TableId};
use std::sync::Mutex;

/// The longest name of a temporary file.
const NAME_BYTES_MOST: usize = 255;

impl FileSystem {
    pub(in crate::fs) fn control_lookup(&self, caller: &Caller, parent: u64, name: &OsStr) -> FsResult<Entry> {
        let folder = self.control.node(parent)?;
        let node = self.control_child(caller, &folder, name.as_bytes())?;
        self.control_entry(caller, &node)
    }

    fn control_child(&self, caller: &Caller, folder: &Node, name: &[u8]) -> FsResult<Node> {
        if let Some(node) = Self::fixed_child(folder, name) {
            return match node {
                Node::Policy(scope) if self.control.is_hidden(scope, caller.uid) => Err(FsError::NotFound),
                node => Ok(node),
            };
        }
        if let (Node::Key(id), b"receipt.json") = (folder, name)
            && self.has_receipt(*id)
        {
            return Ok(Node::Receipt(*id));
        }
        if let Some(scope) = folder.document_scope() {
            return Ok(Node::Temporary(scope, self.control.temporaries.named(scope, name)?.id));
        }
        let text = std::str::from_utf8(name);
        match folder {
            Node::Keys => {
                let text = text.map_err(|_| FsError::NotFound)?;
                if text == crate::kms::OWNED_KEY {
                    return Err(FsError::NotFound);
                }
                Ok(Node::Key(self.kms.key_named(text)?.id()))
            }
            Node::Grants(key) => self.grant_named(caller, *key, name),
            Node::Tables => Ok(Node::Table(self.table_id(text)?)),
            Node::Why => Ok(Node::WhyPath(self.table_id(text)?, Vec::new())),
            Node::WhyPath(table, path) => {
                let mut path = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                Ok(Node::WhyPath(*table, path))
            }
            _ => Err(FsError::NotFound),
        }
    }

    /// A receipt is there as soon as its key is destroyed.
    fn has_receipt(&self, id: KeyId) -> bool {
        self.kms.key(id).is_ok_and(|key| key.receipt().is_ok())
    }

    fn table_id(&self, name: Result<&str, std::str::Utf8Error>) -> FsResult<TableId> {
        Ok(self.kms.table_named(name.map_err(|_| FsError::NotFound)?)?.id())
    }

    /// The names that a folder always has.
    fn fixed_child(folder: &Node, name: &[u8]) -> Option<Node> {
        let fixed = fixed_names(folder).into_iter().find(|(known, _)| known.as_bytes() == name).map(|(_, node)| node);
        fixed.or_else(|| Some(Node::PolicyAt(folder.document_scope()?, generation_in(name)?)))
    }

    /// What a listing of a folder shows to this caller.
    pub(in crate::fs) fn control_list(&self, caller: &Caller, folder: &Node) -> FsResult<Vec<(Vec<u8>, Kind, u64)>> {
        let mut found: Vec<(Vec<u8>, Node)> = fixed_names(folder)
            .into_iter()
            .filter(|(_, node)| !matches!(node, Node::Policy(scope) if self.control.is_hidden(*scope, caller.uid)))
            .map(|(name, node)| (name.as_bytes().to_vec(), node))
            .collect();
        if let Some(scope) = folder.document_scope() {
            let files = self.control.temporaries.list(scope);
            found.extend(files.into_iter().map(|(name, id)| (name, Node::Temporary(scope, id))));
        }
        match folder {
            Node::Keys => {
                let keys = self.visible_keys(&Asker::of(caller, true));
                found.extend(keys.into_iter().map(|(name, id)| (name.into_bytes(), Node::Key(id))));
            }
            Node::Grants(key) => found.extend(self.grant_names(caller, *key)?),
            Node::Key(id) if self.has_receipt(*id) => found.push((b"receipt.json".to_vec(), Node::Receipt(*id))),
            Node::Tables => {
                found
                    .extend(self.kms.tables().iter().map(|table| (table.name().into_bytes(), Node::Table(table.id()))));
            }
            Node::Why => found.extend(
                self.kms
                    .tables()
                    .iter()
                    .map(|table| (table.name().into_bytes(), Node::WhyPath(table.id(), Vec::new()))),
            ),
            Node::WhyPath(table, path) => {
                if !self.may_see_names(&Asker::of(caller, true), *table, path)? {
                    return Err(FsError::Denied);
                }
                for (name, _) in self.names_in(*table, path)? {
                    let mut whole = path.clone();
                    if !whole.is_empty() {
                        whole.push(b'/');
                    }
                    whole.extend_from_slice(&name);
                    found.push((name, Node::WhyPath(*table, whole)));
                }
            }
            _ => {}
        }
        Ok(found
            .into_iter()
            .map(|(name, node)| {
                let ino = self.control.numbers.peek(&node);
                (name, shape(&node).0, ino)
            })
            .collect())
    }

    /// The keys that a caller may know of: all for those with ListKeys, else those that he may describe or whose
    /// policy he may read.
    pub(super) fn visible_keys(&self, asker: &Asker) -> Vec<(String, KeyId)> {
        let who = asker.subject();
        let all = self.kms.store_would_allow(&who, Action::ListKeys);
        self.kms
            .key_names()
            .into_iter()
            .filter(|(_, id)| {
                all || self.kms.key(*id).is_ok_and(|key| {
                    [Action::DescribeKey, Action::GetKeyPolicy]
                        .into_iter()
                        .any(|action| self.kms.would_allow(&who, &key, action))
                })
            })
            .collect()
    }

    /// Only where documents lie: a temporary file, or the document itself for whoever has just removed it.
    pub(in crate::fs) fn control_create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
    ) -> FsResult<(Entry, Opened)> {
        let folder = self.control.node(parent)?;
        if let Node::Grants(key) = folder {
            return self.begin_grant_order(caller, key, name.as_bytes());
        }
        let scope = folder.document_scope().ok_or(FsError::NotPermitted)?;
        let opener = Asker::of(caller, true);
        let (node, handle) = match Self::fixed_child(&folder, name.as_bytes()) {
            Some(node @ (Node::Policy(scope) | Node::PolicyAt(scope, _))) => {
                self.check_document_writable(&opener, scope)?;
                let expected = if let Node::PolicyAt(_, generation) = node { Some(generation) } else { None };
                self.still_at(scope, expected)?;
                self.control.show(scope, caller.uid);
                let draft = Mutex::new(Draft::new(Vec::new()));
                (node, ControlHandle::Document { scope, expected, draft, opener })
            }
            Some(_) => return Err(FsError::Exists),
            None => {
                if name.len() > NAME_BYTES_MOST {
                    return Err(FsError::NameTooLong);
                }
                self.check_editor(&opener, scope)?;
                let owner = (caller.uid, caller.gid);
                let file = self.control.temporaries.create(scope, name.as_bytes(), owner, Vec::new(), false)?;
                (Node::Temporary(scope, file.id), ControlHandle::Temporary(file))
            }
        };
        let entry = self.control_entry(caller, &node)?;
        let opened = self.control_opened(caller.uid, handle);
        let opened = opened.inspect_err(|_| self.control.forget(entry.attr.ino, 1))?;
        Ok((entry, opened))
    }

    /// Whoever may neither read nor save a document has nothing to keep beside it.
    fn check_editor(&self, opener: &Asker, scope: Scope) -> FsResult<()> {
        if self.contents(opener, &Node::Policy(scope), false).is_ok() {
            return Ok(());
        }
        self.check_document_writable(opener, scope)
    }

    /// In `keys`: a key of this name, the caller its administrator.
    pub(in crate::fs) fn control_mkdir(&self, caller: &Caller, parent: u64, name: &OsStr) -> FsResult<Outcome<Entry>> {
        let folder = self.control.node(parent)?;
        let opener = Asker::of(caller, true);
        let name = name.to_str().ok_or(FsError::Invalid)?;
        let node = match folder {
            Node::Keys => {
                let spec = KeySpec { name: name.to_owned(), ..KeySpec::default() };
                Node::Key(self.kms.create_key(&opener.subject(), &spec)?.id())
            }
            _ => return Err(FsError::NotPermitted),
        };
        Ok(self.control_entry(caller, &node)?.into())
    }

    /// A temporary file goes; a document only goes out of its remover's sight and stays in force.
    pub(in crate::fs) fn control_unlink(&self, caller: &Caller, parent: u64, name: &OsStr) -> FsResult<Outcome<()>> {
        let folder = self.control.node(parent)?;
        match self.control_child(caller, &folder, name.as_bytes())? {
            Node::Policy(scope) => {
                self.check_document_writable(&Asker::of(caller, true), scope)?;
                self.control.hide(scope, caller.uid);
                Ok(().into())
            }
            // As mv does before it writes; there is nothing to hide, since no listing shows it.
            Node::PolicyAt(scope, _) => {
                self.check_document_writable(&Asker::of(caller, true), scope).map(Outcome::from)
            }
            Node::Temporary(scope, id) => {
                let file = self.control.temporaries.numbered(id)?;
                // Root may clear away what others have left.
                if caller.uid != 0 {
                    file.only_for(caller.uid)?;
                }
                self.control.temporaries.remove(scope, name.as_bytes(), &file);
                Ok(().into())
            }
            Node::Grant(key, id) => self.end_grants(caller, key, &[id]),
            Node::GrantOrder(key, name) => self.end_ordered_grants(caller, key, &name),
            _ => Err(FsError::NotPermitted),
        }
    }

    /// A temporary file over a document is a save; a document to another name is a backup made by an editor.
    pub(in crate::fs) fn control_rename(
        &self,
        caller: &Caller,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        flags: u32,
    ) -> FsResult<Outcome<()>> {
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return Err(FsError::Invalid);
        }
        let (old_folder, new_folder) = (self.control.node(from.0)?, self.control.node(to.0)?);
        let source = self.control_child(caller, &old_folder, from.1.as_bytes())?;
        let new_name = to.1.as_bytes();
        let new_scope = new_folder.document_scope().ok_or(FsError::NotPermitted)?;
        let target = Self::fixed_child(&new_folder, new_name);
        match (source, target) {
            (Node::Temporary(at, id), Some(target @ (Node::Policy(_) | Node::PolicyAt(..)))) => {
                let file = self.control.temporaries.numbered(id)?;
                file.only_for(caller.uid)?;
                let opener = Asker::of(caller, true);
                let (scope, expected) = match target {
                    Node::PolicyAt(scope, generation) => (scope, Some(generation)),
                    _ => (new_scope, None),
                };
                // mv and sed print EBADMSG as it is; EINVAL they would explain as a move of a folder into itself.
                let saved = self.save_document(scope, expected, &opener, &file.bytes());
                let refused = matches!(saved, Err(FsError::Invalid));
                let outcome = if refused { Err(FsError::Refused) } else { saved }?;
                self.control.temporaries.remove(at, from.1.as_bytes(), &file);
                Ok(outcome)
            }
            (Node::Policy(scope), None) => {
                let opener = Asker::of(caller, true);
                self.check_document_writable(&opener, scope)?;
                self.check_editor(&opener, new_scope)?;
                let bytes = self.contents(&opener, &Node::Policy(scope), true)?;
                let owner = (caller.uid, caller.gid);
                self.control.temporaries.create(new_scope, new_name, owner, bytes, true)?;
                self.control.hide(scope, caller.uid);
                Ok(().into())
            }
            (Node::Temporary(at, id), None) => {
                let file = self.control.temporaries.numbered(id)?;
                file.only_for(caller.uid)?;
                self.check_editor(&Asker::of(caller, true), new_scope)?;
                self.control.temporaries.rename(&file, (at, from.1.as_bytes()), (new_scope, new_name))?;
                Ok(().into())
            }
            _ => Err(FsError::NotPermitted),
        }
    }
}

/// The number in `policy.json@N`, written as it is printed.
fn generation_in(name: &[u8]) -> Option<u64> {
    let number = std::str::from_utf8(name.strip_prefix(b"policy.json@")?).ok()?;
    number.parse().ok().filter(|generation: &u64| generation.to_string() == number)
}

fn fixed_names(folder: &Node) -> Vec<(&'static str, Node)> {
    match folder {
        Node::Top => vec![
            ("whoami", Node::WhoAmI),
            ("store.json", Node::StoreJson),
            ("decrypt", Node::Exchange(Exchange::Decrypt(Scope::Store))),
            ("query", Node::Exchange(Exchange::Query(Scope::Store))),
            ("policy.generation", Node::PolicyGeneration(Scope::Store)),
            ("policy.json", Node::Policy(Scope::Store)),
            ("policy.error", Node::PolicyError(Scope::Store)),
            ("ctl", Node::Ctl(Scope::Store)),
            ("ctl.result", Node::CtlResult(Scope::Store)),
            ("keys", Node::Keys),
            ("keys.jsonl", Node::KeyList),
            ("tables", Node::Tables),
            ("why", Node::Why),
            ("audit", Node::Audit),
        ],
        Node::Key(id) => vec![
            ("policy.json", Node::Policy(Scope::Key(*id))),
            ("policy.error", Node::PolicyError(Scope::Key(*id))),
            ("policy.generation", Node::PolicyGeneration(Scope::Key(*id))),
            ("key.json", Node::KeyJson(*id)),
            ("grants", Node::Grants(*id)),
            ("grants.jsonl", Node::GrantList(*id)),
            ("status.json", Node::KeyStatus(*id)),
            ("encrypt", Node::Exchange(Exchange::Encrypt(*id))),
            ("decrypt", Node::Exchange(Exchange::Decrypt(Scope::Key(*id)))),
            ("re-encrypt", Node::Exchange(Exchange::ReEncrypt(*id))),
            ("generate-data-key", Node::Exchange(Exchange::GenerateDataKey(*id))),
            ("query", Node::Exchange(Exchange::Query(Scope::Key(*id)))),
            ("ctl", Node::Ctl(Scope::Key(*id))),
            ("ctl.result", Node::CtlResult(Scope::Key(*id))),
        ],
        Node::Table(id) => vec![
            ("table.json", Node::TableJson(*id)),
            ("re-encryption.json", Node::ReEncryption(*id)),
            ("ctl", Node::Ctl(Scope::Table(*id))),
            ("ctl.result", Node::CtlResult(Scope::Table(*id))),
        ],
        Node::Audit => vec![("trail.jsonl", Node::Trail), ("verify", Node::Verify)],
        _ => Vec::new(),
    }
}
