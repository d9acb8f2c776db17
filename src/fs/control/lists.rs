//! Lists of any length, one JSON object a line: made line by line as they are read, so that nobody fills the memory by
//! opening them.

use std::fmt;
use std::sync::Arc;

use serde_json::json;

use super::super::FileSystem;
use super::super::api::{FsError, FsResult};
use super::super::subject::Asker;
use super::Node;
use crate::kms::Key;
use crate::types::Action;

/// The lines of a list.
pub(super) struct ListLines(Box<dyn Iterator<Item = Vec<u8>> + Send>);

impl fmt::Debug for ListLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListLines").finish_non_exhaustive()
    }
}

impl Iterator for ListLines {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        self.0.next()
    }
}

impl FileSystem {
    pub(super) fn list_lines(&self, who: &Asker, node: &Node) -> FsResult<ListLines> {
        match node {
            Node::GrantList(key) => {
                let lines = self.kms.grant_lines(&who.subject(), &*self.kms.key(*key)?)?;
                Ok(ListLines(Box::new(lines)))
            }
            Node::KeyList => Ok(self.key_lines(who)),
            _ => Err(FsError::Invalid),
        }
    }

    /// The keys that `keys/` lists: what DescribeKey says of each, or its name alone for whom that is denied.
    fn key_lines(&self, who: &Asker) -> ListLines {
        let told = |(name, id)| {
            let key =
                self.kms.key(id).ok().filter(|key| self.kms.would_allow(&who.subject(), key, Action::DescribeKey));
            (name, key)
        };
        let keys: Vec<_> = self.visible_keys(who).into_iter().map(told).collect();
        let kms = Arc::clone(&self.kms);
        let line = move |(name, key): (String, Option<Arc<Key>>)| {
            let described = key.and_then(|key| kms.describe_key(&key).ok());
            format!("{}\n", described.unwrap_or_else(|| json!({ "Name": name }))).into_bytes()
        };
        ListLines(Box::new(keys.into_iter().map(line)))
    }
}
