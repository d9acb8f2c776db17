//! The nodes of the control tree and their numbers.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{PoisonError, RwLock};

use super::super::api::{FsError, FsResult};
use super::super::inodes::CONTROL_BIT;
use crate::types::{GrantId, KeyId, TableId};

/// A place in `.kms`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::fs) enum Node {
    /// `.kms` itself.
    Top,
    WhoAmI,
    StoreJson,
    Ctl(Scope),
    CtlResult(Scope),
    /// The policy document of the store or of a key.
    Policy(Scope),
    PolicyError(Scope),
    /// The document as long as it has this generation: a save on top of any other is refused.
    PolicyAt(Scope, u64),
    PolicyGeneration(Scope),
    /// A file of which one descriptor is one request and its answer.
    Exchange(Exchange),
    Keys,
    /// All keys that the caller may know of, as lines of one file.
    KeyList,
    Key(KeyId),
    KeyJson(KeyId),
    /// What remains of a destroyed key.
    Receipt(KeyId),
    /// The folder of a key's grants, and all of them as lines of one file.
    Grants(KeyId),
    GrantList(KeyId),
    Grant(KeyId, GrantId),
    /// A file by which grants were made a moment ago, or are being made, by its name.
    GrantOrder(KeyId, Vec<u8>),
    KeyStatus(KeyId),
    Tables,
    Table(TableId),
    TableJson(TableId),
    ReEncryption(TableId),
    Why,
    /// The mirror of a folder or an item of a table, by its path inside of it.
    WhyPath(TableId, Vec<u8>),
    Audit,
    Trail,
    Verify,
    /// A file that an editor keeps beside a document, in memory alone, by its number.
    Temporary(Scope, u64),
}

/// What can be asked through one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::fs) enum Exchange {
    Encrypt(KeyId),
    /// Of the store: the key is found from the ciphertext. Of a key: that key or none.
    Decrypt(Scope),
    /// To this key.
    ReEncrypt(KeyId),
    GenerateDataKey(KeyId),
    Query(Scope),
}

impl Exchange {
    pub(in crate::fs) const fn scope(self) -> Scope {
        match self {
            Self::Encrypt(id) | Self::ReEncrypt(id) | Self::GenerateDataKey(id) => Scope::Key(id),
            Self::Decrypt(scope) | Self::Query(scope) => scope,
        }
    }
}

/// Whose document or command file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::fs) enum Scope {
    Store,
    Key(KeyId),
    Table(TableId),
}

impl Scope {
    /// The folder in which the scope's documents lie.
    pub(in crate::fs) fn folder(self) -> Node {
        match self {
            Self::Store => Node::Top,
            Self::Key(id) => Node::Key(id),
            Self::Table(id) => Node::Table(id),
        }
    }
}

impl Node {
    pub(in crate::fs) fn parent(&self) -> Self {
        match self {
            Self::Top
            | Self::WhoAmI
            | Self::StoreJson
            | Self::Keys
            | Self::KeyList
            | Self::Tables
            | Self::Why
            | Self::Audit => Self::Top,
            Self::Ctl(scope)
            | Self::CtlResult(scope)
            | Self::Policy(scope)
            | Self::PolicyError(scope)
            | Self::PolicyAt(scope, _)
            | Self::PolicyGeneration(scope)
            | Self::Temporary(scope, _) => scope.folder(),
            Self::Exchange(exchange) => exchange.scope().folder(),
            Self::Key(_) => Self::Keys,
            Self::KeyJson(id) | Self::KeyStatus(id) | Self::Receipt(id) | Self::Grants(id) | Self::GrantList(id) => {
                Self::Key(*id)
            }
            Self::Grant(id, _) | Self::GrantOrder(id, _) => Self::Grants(*id),
            Self::Table(_) => Self::Tables,
            Self::TableJson(id) | Self::ReEncryption(id) => Self::Table(*id),
            Self::WhyPath(table, path) => match path.iter().rposition(|byte| *byte == b'/') {
                _ if path.is_empty() => Self::Why,
                Some(end) => Self::WhyPath(*table, path.get(..end).unwrap_or_default().to_vec()),
                None => Self::WhyPath(*table, Vec::new()),
            },
            Self::Trail | Self::Verify => Self::Audit,
        }
    }

    /// The folder in whose place editors keep their files: the scope whose documents lie there.
    pub(in crate::fs) fn document_scope(&self) -> Option<Scope> {
        match self {
            Self::Top => Some(Scope::Store),
            Self::Key(id) => Some(Scope::Key(*id)),
            Self::WhoAmI
            | Self::StoreJson
            | Self::Ctl(_)
            | Self::CtlResult(_)
            | Self::Policy(_)
            | Self::PolicyError(_)
            | Self::PolicyAt(..)
            | Self::PolicyGeneration(_)
            | Self::Exchange(_)
            | Self::Keys
            | Self::KeyList
            | Self::KeyJson(_)
            | Self::Receipt(_)
            | Self::Grants(_)
            | Self::GrantList(_)
            | Self::Grant(..)
            | Self::GrantOrder(..)
            | Self::KeyStatus(_)
            | Self::Tables
            | Self::Table(_)
            | Self::TableJson(_)
            | Self::ReEncryption(_)
            | Self::Why
            | Self::WhyPath(..)
            | Self::Audit
            | Self::Trail
            | Self::Verify
            | Self::Temporary(..) => None,
        }
    }
}

/// Numbers for nodes. A node's number comes from what it is, so that a listing can tell it without keeping anything: who
/// lists a mirrored folder of a million items costs no memory. What the kernel has looked up is kept until it forgets.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    maps: RwLock<Maps>,
}

#[derive(Debug, Default)]
struct Maps {
    numbers: HashMap<Node, u64>,
    nodes: HashMap<u64, (Node, u64)>,
}

impl Numbers {
    pub(super) fn node(&self, ino: u64) -> FsResult<Node> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.nodes.get(&ino).map(|(node, _)| node.clone()).ok_or(FsError::Stale)
    }

    /// The number that a node has, or will have as far as one can tell: for listings.
    pub(super) fn peek(&self, node: &Node) -> u64 {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        maps.numbers.get(node).copied().unwrap_or_else(|| first_choice(node))
    }

    /// The number of a node, one lookup more.
    pub(super) fn looked_up(&self, node: &Node) -> u64 {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let ino = maps.number(node);
        if let Some((_, lookups)) = maps.nodes.get_mut(&ino) {
            *lookups += 1;
        }
        ino
    }

    pub(super) fn forget(&self, ino: u64, lookups: u64) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let Some((node, count)) = maps.nodes.get_mut(&ino) else { return };
        *count = count.saturating_sub(lookups);
        if *count == 0 {
            let node = node.clone();
            maps.nodes.remove(&ino);
            maps.numbers.remove(&node);
        }
    }
}

impl Maps {
    fn number(&mut self, node: &Node) -> u64 {
        if let Some(ino) = self.numbers.get(node) {
            return *ino;
        }
        let mut ino = first_choice(node);
        while self.nodes.contains_key(&ino) {
            ino = ino.wrapping_add(1) | CONTROL_BIT;
        }
        self.numbers.insert(node.clone(), ino);
        self.nodes.insert(ino, (node.clone(), 0));
        ino
    }
}

fn first_choice(node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    hasher.finish() | CONTROL_BIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_lasts_until_it_is_forgotten() {
        let numbers = Numbers::default();
        let ino = numbers.looked_up(&Node::Keys);
        assert_eq!(numbers.looked_up(&Node::Keys), ino);
        numbers.forget(ino, 1);
        assert_eq!(numbers.node(ino).unwrap(), Node::Keys);
        numbers.forget(ino, 1);
        assert!(matches!(numbers.node(ino), Err(FsError::Stale)));
    }

    #[test]
    fn a_listing_tells_the_numbers_and_keeps_nothing() {
        let numbers = Numbers::default();
        let told = numbers.peek(&Node::Keys);
        assert!(numbers.maps.read().unwrap().nodes.is_empty());
        assert_eq!(numbers.looked_up(&Node::Keys), told);
        // One that another node has already goes to the next.
        numbers.maps.write().unwrap().nodes.insert(first_choice(&Node::Tables), (Node::Audit, 1));
        assert_eq!(numbers.looked_up(&Node::Tables), first_choice(&Node::Tables) + 1);
        assert_eq!(numbers.peek(&Node::Tables), first_choice(&Node::Tables) + 1);
    }

    #[test]
    fn parents_of_mirrored_paths() {
        let table = TableId::from_bytes([1; 16]);
        assert_eq!(Node::WhyPath(table, b"a/b".to_vec()).parent(), Node::WhyPath(table, b"a".to_vec()));
        assert_eq!(Node::WhyPath(table, b"a".to_vec()).parent(), Node::WhyPath(table, Vec::new()));
        assert_eq!(Node::WhyPath(table, Vec::new()).parent(), Node::Why);
    }
}
