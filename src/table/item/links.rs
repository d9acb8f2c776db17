//! The names of an item: what its header is bound to while names come and go.

use std::sync::{Arc, PoisonError};

use super::super::format::{Bindings, LINK_MAX};
use super::super::names::StoredName;
use super::super::{Binding, Folder, TableError};
use super::{Item, Open};
use crate::kms::SealKey;
use crate::store::JournaledFile;

impl Item {
    /// Gives the item one more name: its header is bound to it first.
    ///
    /// # Errors
    /// `TooManyLinks` beyond LINK_MAX; EEXIST where the name is taken.
    pub fn link(
        &self,
        keys: &SealKey,
        from: (&Arc<Folder>, &StoredName),
        to: (&Arc<Folder>, &StoredName),
    ) -> Result<(), TableError> {
        self.verify(keys)?;
        if !self.is_new() || self.file.is_durable_at_all() {
            // What was promised stays to be found, under each name that it has.
            self.table.new_folders.sync()?;
        }
        let _linking = self.linking.lock().unwrap_or_else(PoisonError::into_inner);
        let bound_before = match self.bind_link(to.1, None) {
            Err(TableError::TooManyLinks) => {
                let _paths = self.table.paths.read().unwrap_or_else(PoisonError::into_inner);
                // So that `find_name`, which would wait for `paths` again, has nothing to do.
                let _names = self.names();
                let standing = self.standing()?;
                self.find_path()?;
                self.bind_link(to.1, Some(&standing))?
            }
            bound => bound?,
        };
        if self.file.is_durable_at_all() {
            self.table.journal.sync()?;
        }
        to.0.write_sidecar(to.1)?;
        let escapes = self.table.may_escape(self.table_key_version());
        let paths = self.table.paths.read().unwrap_or_else(PoisonError::into_inner);
        let made = from.0.dir().link(from.1.on_disk(), to.0.dir().as_ref(), to.1.on_disk());
        self.table.note_move(escapes);
        drop(paths);
        if let Err(error) = made {
            if error.kind() != std::io::ErrorKind::AlreadyExists {
                to.0.remove_sidecar(to.1);
            }
            if !bound_before {
                self.unbind(&to.1.binding());
            }
            return Err(error.into());
        }
        self.known_as(to.0, to.1);
        if self.is_new() {
            self.table.new_items.add(to.0.id(), to.1);
        }
        Ok(())
    }

    /// Binds the header to one more name; true: it was already. With `standing`, it is no longer bound to any other name
    /// than these: where `unlinked` could not tell it that one has gone.
    fn bind_link(&self, name: &StoredName, standing: Option<&[Binding]>) -> Result<bool, TableError> {
        let mut inner = self.exclusive()?;
        let open = inner.opened()?;
        let bindings = match standing {
            Some(standing) => open.state.bindings.only(standing),
            None => known(open)?,
        };
        let linked = bindings.with_link(name.binding()).ok_or(TableError::TooManyLinks)?;
        let way = self.way_of_header();
        self.apply_header(&mut inner, |state| state.bindings = linked, way)?;
        Ok(bindings.contains(&name.binding()))
    }

    /// What the names that there are bind the item to; the whole table is looked through. While `Table::paths` is held, so
    /// that no name moves meanwhile.
    ///
    /// # Errors
    /// `TooManyLinks` where there is no room, or where not all were found: one that was overlooked must stay bound.
    fn standing(&self) -> Result<Vec<Binding>, TableError> {
        let stat = self.backing().stat()?;
        if usize::try_from(stat.nlink).is_ok_and(|links| links >= LINK_MAX) {
            return Err(TableError::TooManyLinks);
        }
        let found = self.home.find_bindings(stat.ino)?;
        // A name that is gone may come back in a power cut until now, and would lead to a header that does not know it.
        self.home.dir().syncfs()?;
        if found.len() as u64 == u64::from(stat.nlink) { Ok(found) } else { Err(TableError::TooManyLinks) }
    }

    /// One of several names is gone: the header is no longer bound to it. Where this fails it stays bound, which costs a
    /// place among LINK_MAX and no more: the name leads nowhere.
    pub fn unlinked(&self, folder: &Folder, name: &StoredName) {
        // The name may come back in a power cut, and must not lead to a header that does not know it.
        self.table.journal.note_names(folder.dir());
        self.lost_name(&name.binding());
    }

    /// The same after a change of names of which the journal knows.
    pub(in crate::table) fn lost_name(&self, binding: &Binding) {
        // First, so that the journal can find the item under another name.
        self.names().retain(|(_, name)| name.binding() != *binding);
        self.forget_name();
        if !self.file.is_pathless() {
            self.unbind(binding);
        }
    }

    fn unbind(&self, binding: &Binding) {
        let Ok(mut inner) = self.exclusive() else { return };
        let Some(open) = &inner.open else { return };
        let rest = open.state.bindings.without(binding);
        if rest == open.state.bindings {
            return;
        }
        let way = self.way_of_header();
        if let Err(error) = self.apply_header(&mut inner, |state| state.bindings = rest, way) {
            log::debug!("item {}: still bound to a name that is gone: {error}", self.id);
        }
    }

    /// The item was found under this name: the journal may look for it there when another one goes.
    pub fn known_as(&self, folder: &Arc<Folder>, name: &StoredName) {
        let mut names = self.names();
        if !names.iter().any(|(_, known)| known == name) {
            names.push((Arc::clone(folder), name.clone()));
        }
    }

    /// A name of the item is gone: the journal looks for it under another one that is known. Where there is none, the next
    /// change looks for one in the whole table. To be preceded by `settle`.
    pub fn forget_name(&self) {
        let _paths = self.table.paths.read().unwrap_or_else(PoisonError::into_inner);
        let names = self.names();
        let leads_here = |(folder, name): &&(Arc<Folder>, StoredName)| {
            folder.dir().stat(name.on_disk()).is_ok_and(|stat| (stat.dev, stat.ino) == self.inode())
        };
        match names.iter().find(leads_here) {
            Some((folder, name)) => self.file.set_path(folder.path_of(name.on_disk())),
            None => self.file.forget_path(),
        }
    }

    /// Before a change: where no name is known, the table's folders are looked through for one, so that a replay finds
    /// the item. Without any, as after the unlink of the last one, there is nothing to be found.
    pub(super) fn find_name(&self) -> Result<(), TableError> {
        if !self.file.is_pathless() {
            return Ok(());
        }
        let _paths = self.table.paths.read().unwrap_or_else(PoisonError::into_inner);
        self.find_path()
    }

    fn find_path(&self) -> Result<(), TableError> {
        let stat = self.backing().stat()?;
        if self.file.is_pathless()
            && stat.nlink > 0
            && let Some(path) = self.home.find_link(stat.ino)?
        {
            self.file.set_path(path);
        }
        Ok(())
    }

    pub(in crate::table) fn file(&self) -> &JournaledFile {
        &self.file
    }

    /// Binds the header to the name that is left and the one that comes. What is durable is so bound durably, once the
    /// journal has settled the item, as it does before it renames.
    pub(in crate::table) fn begin_rename(&self, from: &Binding, to: Binding) -> Result<(), TableError> {
        let mut inner = self.exclusive()?;
        let bound = known(inner.opened()?)?.renaming(from, to).ok_or(TableError::TooManyLinks)?;
        if let Some(open) = &mut inner.open {
            open.renamed = false;
        }
        let way = self.way_of_header();
        self.apply_header(&mut inner, |state| state.bindings = bound, way)
    }

    /// The rename is done. The header gives the old name up with its next change that goes through the journal, which
    /// flushes the directories first.
    pub(in crate::table) fn end_rename(&self, from: &Binding, folder: &Arc<Folder>, name: &StoredName) {
        self.names().retain(|(_, known)| known.binding() != *from);
        self.known_as(folder, name);
        if let Ok(mut inner) = self.exclusive()
            && let Some(open) = &mut inner.open
        {
            open.renamed = true;
        }
    }

    /// The rename has failed: the old name holds.
    pub(in crate::table) fn revert_rename(&self) {
        let Ok(mut inner) = self.exclusive() else { return };
        let Some(open) = &inner.open else { return };
        let reverted = open.state.bindings.reverted();
        let way = self.way_of_header();
        if let Err(error) = self.apply_header(&mut inner, |state| state.bindings = reverted.clone(), way) {
            log::debug!("item {}: still bound to a name that it did not get: {error}", self.id);
            // In the file it is bound to both; the next header says it right.
            if let Some(open) = &mut inner.open {
                open.state.bindings = reverted;
            }
        }
    }
}

/// The names that hold, as far as it is known: the one that an earlier rename has left is among them unless that rename
/// is known to have happened.
fn known(open: &Open) -> Result<Bindings, TableError> {
    let bindings = &open.state.bindings;
    if open.renamed { Ok(bindings.settled()) } else { bindings.kept().ok_or(TableError::TooManyLinks) }
}
