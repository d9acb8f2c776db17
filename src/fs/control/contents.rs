//! What the files of the control tree say, to whom.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::FileSystem;
use super::super::api::{Attr, Caller, FsError, FsResult, Kind};
use super::super::roots::perm;
use super::super::subject::Asker;
use super::trail::TrailText;
use super::{Node, Scope, lock};
use crate::kms::{Key, NamesMode, Table};
use crate::sys;
use crate::types::{Action, Groups, KeyId, TableId};

impl FileSystem {
    /// The text of a file for this caller. `for_real`: it is being opened, so a refusal is an event of the trail;
    /// otherwise only its size is wanted.
    pub(super) fn contents(&self, who: &Asker, node: &Node, for_real: bool) -> FsResult<Vec<u8>> {
        let text = match node {
            Node::WhoAmI => Self::whoami(who),
            Node::Policy(scope) => self.policy_text(who, *scope, for_real)?,
            Node::PolicyAt(scope, generation) => {
                let text = self.policy_text(who, *scope, for_real)?;
                self.still_at(*scope, Some(*generation))?;
                text
            }
            Node::PolicyGeneration(scope) => {
                self.policy_text(who, *scope, for_real)?;
                format!("{}\n", self.generation_in_force(*scope)?)
            }
            Node::PolicyError(scope) => self.refusal(who, *scope)?,
            Node::CtlResult(scope) => {
                lock(&self.control.results).get(&(*scope, who.uid())).cloned().unwrap_or_default()
            }
            Node::KeyJson(id) => {
                let key = self.kms.key(*id)?;
                self.permit(who, &key, Action::DescribeKey, for_real)?;
                pretty(&self.kms.describe_key(&key)?)?
            }
            Node::Receipt(id) => {
                let key = self.kms.key(*id)?;
                self.permit(who, &key, Action::DescribeKey, for_real)?;
                key.receipt()?.document()?
            }
            Node::StoreJson => pretty(&self.kms.store_description())?,
            Node::Grant(key, id) => self.grant_text(who, *key, *id)?,
            Node::GrantOrder(key, name) => self.order_text(who, *key, name)?,
            Node::KeyStatus(id) => self.key_status(who, *id, for_real)?,
            Node::TableJson(id) => pretty(&self.table_to_describe(who, *id, for_real)?.description())?,
            Node::ReEncryption(id) => {
                pretty(&self.describe_re_encryption(&*self.table_to_describe(who, *id, for_real)?))?
            }
            Node::WhyPath(table, path) => self.why(who, *table, path)?,
            Node::Verify => {
                self.permit_store(who, Action::ReadAudit, for_real)?;
                self.kms.verify_trail()?
            }
            Node::Top
            | Node::Ctl(_)
            | Node::Exchange(_)
            | Node::Keys
            | Node::KeyList
            | Node::Key(_)
            | Node::Grants(_)
            | Node::GrantList(_)
            | Node::Tables
            | Node::Table(_)
            | Node::Why
            | Node::Audit
            | Node::Trail
            | Node::Temporary(..) => return Err(FsError::Invalid),
        };
        Ok(text.into_bytes())
    }

    fn permit(&self, who: &Asker, key: &Key, action: Action, for_real: bool) -> FsResult<()> {
        if for_real {
            return Ok(self.kms.check_key(&who.subject(), key, action)?);
        }
        if self.kms.would_allow(&who.subject(), key, action) { Ok(()) } else { Err(FsError::Denied) }
    }

    /// The trail, for those who may read it.
    pub(super) fn open_trail(&self, who: &Asker) -> FsResult<TrailText> {
        self.permit_store(who, Action::ReadAudit, true)?;
        Ok(TrailText::new(self.kms.trail_lines()?))
    }

    fn permit_store(&self, who: &Asker, action: Action, for_real: bool) -> FsResult<()> {
        if for_real {
            return Ok(self.kms.check_store(&who.subject(), action, "")?);
        }
        if self.kms.store_would_allow(&who.subject(), action) { Ok(()) } else { Err(FsError::Denied) }
    }

    fn policy_text(&self, who: &Asker, scope: Scope, for_real: bool) -> FsResult<String> {
        match scope {
            Scope::Store => {
                self.permit_store(who, Action::GetStorePolicy, for_real)?;
                Ok(self.kms.store_policy()?.text.clone())
            }
            Scope::Key(id) => {
                let key = self.kms.key(id)?;
                self.permit(who, &key, Action::GetKeyPolicy, for_real)?;
                Ok(key.now().ok_or(FsError::Tampered)?.policy.text.clone())
            }
            Scope::Table(_) => Err(FsError::NotFound),
        }
    }

    /// Why the last save was refused: for whoever tried it, and for those who may read the policy.
    fn refusal(&self, who: &Asker, scope: Scope) -> FsResult<String> {
        let Some((uid, why)) = lock(&self.control.refusals).get(&scope).cloned() else {
            return Ok(String::new());
        };
        if uid != who.uid() {
            self.policy_text(who, scope, false)?;
        }
        Ok(why)
    }

    fn whoami(who: &Asker) -> String {
        let named = |kind: &str, id: u32, name: Option<String>| match name {
            Some(name) => format!("{kind} {id} ({name})"),
            None => format!("{kind} {id}"),
        };
        let principal = who.principal();
        let mut text = named("uid", principal.uid, sys::user_name(principal.uid));
        let _ = write!(text, "\n{}\n", named("gid", principal.gid, sys::group_name(principal.gid)));
        match &principal.groups {
            Groups::Known(groups) => {
                text.push_str("groups");
                for gid in groups {
                    match sys::group_name(*gid) {
                        Some(name) => {
                            let _ = write!(text, " {gid} ({name})");
                        }
                        None => {
                            let _ = write!(text, " {gid}");
                        }
                    }
                }
                text.push('\n');
            }
            Groups::Unknown => text.push_str("groups unknown\n"),
        }
        text
    }

    fn table_to_describe(&self, who: &Asker, id: TableId, for_real: bool) -> FsResult<Arc<Table>> {
        let table = self.kms.table(id)?;
        if self.permit(who, table.key(), Action::DescribeKey, false).is_err() {
            self.permit_store(who, Action::DescribeTable, for_real)?;
        }
        Ok(table)
    }

    /// Which material is in use where. To count items, the tables are gone through, by one caller at a time.
    fn key_status(&self, who: &Asker, id: KeyId, for_real: bool) -> FsResult<String> {
        let key = self.kms.key(id)?;
        self.permit(who, &key, Action::DescribeKey, for_real)?;
        let mut status = self.kms.key_status(&key)?;
        let _counting = self.control.counting.try_lock().map_err(|_| FsError::Busy)?;
        let mut tables = Vec::new();
        for table in self.kms.tables().iter().filter(|table| table.key().id() == id) {
            let counts = self.items_by_key_version(table)?;
            let counts: Vec<Value> = counts
                .into_iter()
                .map(|(version, items)| json!({ "TableKeyVersion": version, "Items": items }))
                .collect();
            tables.push(json!({ "Name": table.name(), "Items": counts }));
        }
        if let Value::Object(members) = &mut status {
            members.insert("Tables".to_owned(), tables.into());
        }
        pretty(&status)
    }

    /// Attributes of the mirror of a folder or an item: the folder's own rights, so that the kernel lets through whom it
    /// would let through there; an item's answer is readable for whoever gets to it.
    pub(super) fn mirror(&self, caller: &Caller, table: TableId, path: &[u8], attr: &mut Attr) -> FsResult<()> {
        let asker = Asker::of(caller, true);
        if !path.is_empty() && !self.may_see_names(&asker, table, path)? {
            // One answer for what is there and what is not.
            (attr.kind, attr.perm) = (Kind::File, 0o444);
            attr.size = super::size_of(self.why(&asker, table, path)?.as_bytes());
            return Ok(());
        }
        let (kind, real) = self.stat_of_path(table, path)?;
        attr.mtime = real.mtime;
        attr.ctime = real.ctime;
        if kind == Kind::Dir {
            (attr.kind, attr.uid, attr.gid) = (Kind::Dir, real.uid, real.gid);
            attr.perm = perm(&real) & 0o555;
        } else {
            (attr.kind, attr.perm) = (Kind::File, 0o444);
            let who = Asker::of(caller, true);
            attr.size = self.why(&who, table, path).map_or(0, |text| super::size_of(text.as_bytes()));
        }
        Ok(())
    }

    /// Whether a caller may know what names there are: where they are sealed, only who may decrypt.
    pub(super) fn may_see_names(&self, who: &Asker, table: TableId, path: &[u8]) -> FsResult<bool> {
        let table = self.kms.table(table)?;
        let sealed = table.settings().names == NamesMode::Sealed;
        Ok(!sealed || self.kms.explain(&who.subject(), &table, path).allowed)
    }

    fn why(&self, who: &Asker, table: TableId, path: &[u8]) -> FsResult<String> {
        let table = self.kms.table(table)?;
        Ok(self.kms.explain(&who.subject(), &table, path).to_string())
    }
}

pub(super) fn pretty(value: &serde_json::Value) -> FsResult<String> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|_| FsError::Invalid)
}
