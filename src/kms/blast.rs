//! What becomes unreadable with a key: counted from the store's own directories, before a deletion is ordered and again
//! when it is carried out. Nothing is opened and nothing decrypted: names on disk tell items from what kmsfs keeps beside
//! them (docs/format.md, section 6.1).

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::{Key, Kms, Table};
use crate::store::{Dir, FileKind};
use crate::types::TableId;

/// Tables that an answer names.
const NAMED_MOST: usize = 5;

/// What depends on a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlastRadius {
    pub tables: Vec<TableRadius>,
    pub grants: u64,
    /// False: a part of the store could not be counted.
    pub complete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRadius {
    pub id: TableId,
    pub name: String,
    pub items: u64,
    /// Of the files in the store.
    pub bytes: u64,
}

impl BlastRadius {
    pub fn items(&self) -> u64 {
        self.tables.iter().map(|table| table.items).fold(0, u64::saturating_add)
    }

    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes).fold(0, u64::saturating_add)
    }
}

impl fmt::Display for BlastRadius {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: u64, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
        let tables = u64::try_from(self.tables.len()).unwrap_or(u64::MAX);
        write!(f, "{}", plural(tables, "table"))?;
        for (number, table) in self.tables.iter().take(NAMED_MOST).enumerate() {
            write!(f, "{}{}", if number == 0 { " (" } else { ", " }, table.name)?;
        }
        match self.tables.len() {
            0 => {}
            1..=NAMED_MOST => f.write_str(")")?,
            _ => f.write_str(", ...)")?,
        }
        let (items, grants) = (plural(self.items(), "item"), plural(self.grants, "grant"));
        write!(f, ", {items}, {} in the store, {grants}", plural(self.bytes(), "byte"))?;
        if self.complete { Ok(()) } else { f.write_str("; not all of it could be counted") }
    }
}

impl Kms {
    /// Counts what is encrypted under a key. It looks at every file of the tables, so it is never called under a lock.
    pub fn blast_radius(&self, key: &Key) -> BlastRadius {
        let grants = u64::try_from(key.grant_count()).unwrap_or(u64::MAX);
        let mut radius = BlastRadius { complete: true, grants, ..BlastRadius::default() };
        for table in self.tables_under(key) {
            let mut count = Count { items: 0, bytes: 0, linked: HashSet::new() };
            if let Err(error) = self.count_table(&table, &mut count) {
                log::warn!("table {} could not be counted: {error}", table.name());
                radius.complete = false;
            }
            let (items, bytes) = (count.items, count.bytes);
            radius.tables.push(TableRadius { id: table.id(), name: table.name(), items, bytes });
        }
        radius
    }

    /// The tables that a key protects, sorted by name.
    pub(super) fn tables_under(&self, key: &Key) -> Vec<Arc<Table>> {
        let mut tables = self.tables();
        tables.retain(|table| table.key().id() == key.id());
        tables
    }

    fn count_table(&self, table: &Table, count: &mut Count) -> io::Result<()> {
        let tables = self.store.root_dir().open_dir(OsStr::new("tables"))?;
        // One directory of each level is open at a time.
        let root = tables.open_dir(OsStr::new(&table.id().to_string()))?;
        let mut levels = vec![(Arc::clone(&root), count.folder(root.as_ref())?)];
        while let Some((dir, folders)) = levels.last_mut() {
            match folders.pop() {
                None => drop(levels.pop()),
                Some(name) => {
                    let below = dir.open_dir(&name)?;
                    let folders = count.folder(below.as_ref())?;
                    levels.push((below, folders));
                }
            }
        }
        Ok(())
    }
}

struct Count {
    items: u64,
    bytes: u64,
    /// Items with several names that were counted.
    linked: HashSet<(u64, u64)>,
}

impl Count {
    /// Counts a directory's items; gives its folders.
    fn folder(&mut self, dir: &dyn Dir) -> io::Result<Vec<OsString>> {
        let mut folders = Vec::new();
        for entry in dir.list()? {
            match entry.kind {
                FileKind::Dir if is_entry(&entry.name) => folders.push(entry.name),
                FileKind::File if is_entry(&entry.name) => {
                    let stat = dir.stat(&entry.name)?;
                    if stat.nlink == 1 || self.linked.insert((stat.dev, stat.ino)) {
                        self.items = self.items.saturating_add(1);
                        self.bytes = self.bytes.saturating_add(stat.size);
                    }
                }
                // Nothing that kmsfs has made.
                FileKind::Dir | FileKind::File | FileKind::Other => {}
            }
        }
        Ok(folders)
    }
}

/// Whether a name on disk is that of an item or a folder: the alphabet of sealed names has no dot, and of the names with
/// one only those that stand for a long name are somebody's.
fn is_entry(on_disk: &OsStr) -> bool {
    !on_disk.as_bytes().starts_with(b".") || on_disk.as_bytes().starts_with(b".l.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_radius_reads_as_a_sentence() {
        let table = |name: &str, items| TableRadius {
            id: TableId::from_bytes([1; 16]),
            name: name.to_owned(),
            items,
            bytes: items * 600,
        };
        let none = BlastRadius { complete: true, ..BlastRadius::default() };
        assert_eq!(none.to_string(), "0 tables, 0 items, 0 bytes in the store, 0 grants");
        let one = BlastRadius { tables: vec![table("orders", 1)], grants: 1, complete: true };
        assert_eq!(one.to_string(), "1 table (orders), 1 item, 600 bytes in the store, 1 grant");
        let names = ["a", "b", "c", "d", "e", "f"];
        let many = BlastRadius { tables: names.map(|name| table(name, 2)).into(), grants: 0, complete: false };
        assert_eq!(
            many.to_string(),
            "6 tables (a, b, c, d, e, ...), 12 items, 7200 bytes in the store, 0 grants; not all of it could be counted"
        );
    }

    #[test]
    fn items_are_told_from_what_stands_beside_them() {
        for name in ["Zm9v", ".l.Zm9v", "_-"] {
            assert!(is_entry(OsStr::new(name)), "{name}");
        }
        for name in [".d", ".n.Zm9v", ".t.Zm9v", "..d.new", ".Zm9v.new"] {
            assert!(!is_entry(OsStr::new(name)), "{name}");
        }
    }
}
