//! Renames: of an item or a folder, over another one, in exchange with another one.
//!
//! What moves is bound to both names before, durably where it is durable itself; then the backing entries move in one
//! step; then the old name is given up. So at every moment each entry is bound to the name that it stands under.

use std::sync::{Arc, PoisonError};

use super::names::StoredName;
use super::{Folder, Item, TableError};
use crate::store::RenameFlags;

/// A name in a folder.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub folder: &'a Arc<Folder>,
    pub name: &'a StoredName,
}

/// What stands under a name. Items have been verified with a capability to write.
#[derive(Debug, Clone, Copy)]
pub enum Moved<'a> {
    Item(&'a Arc<Item>),
    Folder(&'a Arc<Folder>),
}

/// Renames `moved` from one place of a table to another. `target` is what stands there, if anything does; with
/// `Exchange` the two change places. A replaced item that keeps other names is settled by the caller before.
///
/// # Errors
/// EXDEV between tables; EEXIST with `NoReplace`; ENOTEMPTY for a folder in the way that is not empty; ENOTDIR and
/// EISDIR for an item and a folder in each other's way.
pub fn rename(
    from: Place<'_>,
    to: Place<'_>,
    moved: Moved<'_>,
    target: Option<Moved<'_>>,
    flags: RenameFlags,
) -> Result<(), TableError> {
    use rustix::io::Errno;
    let table = from.folder.table();
    if table.id() != to.folder.table().id() {
        return Err(Errno::XDEV.into());
    }
    match (target, flags) {
        (Some(_), RenameFlags::NoReplace) => return Err(Errno::EXIST.into()),
        (None, RenameFlags::Exchange) => return Err(Errno::NOENT.into()),
        _ if from.folder.id() == to.folder.id() && from.name == to.name => return Ok(()),
        (Some(Moved::Folder(old)), RenameFlags::None) => {
            return match moved {
                Moved::Folder(folder) => replace_folder(from, to, folder, old),
                Moved::Item(_) => Err(Errno::ISDIR.into()),
            };
        }
        (Some(Moved::Item(_)), RenameFlags::None) if matches!(moved, Moved::Folder(_)) => {
            return Err(Errno::NOTDIR.into());
        }
        _ => {}
    }
    let partner = target.filter(|_| flags == RenameFlags::Exchange);
    let taken = target.is_some_and(is_promised);
    if is_promised(moved) || partner.is_some_and(is_promised) {
        // What was promised must not be lost with a folder that was not.
        table.new_folders.sync()?;
    }
    exchange_or_move(from, to, moved, partner, flags, taken)?;
    if let (Some(Moved::Item(replaced)), RenameFlags::None) = (target, flags) {
        replaced.lost_name(&to.name.binding());
    }
    Ok(())
}

/// Whether a flush may have promised what stands there. Only a name that leads to such must lead to something whole
/// whatever a power cut takes.
fn is_promised(standing: Moved<'_>) -> bool {
    match standing {
        // One that an earlier rename has flushed took such a name over, and the promise with it.
        Moved::Item(item) => !item.is_new() || item.file().is_durable_at_all(),
        Moved::Folder(_) => true,
    }
}

/// `taken`: something that was promised stands under the new name.
fn exchange_or_move(
    from: Place<'_>,
    to: Place<'_>,
    moved: Moved<'_>,
    partner: Option<Moved<'_>>,
    flags: RenameFlags,
    taken: bool,
) -> Result<(), TableError> {
    let table = from.folder.table();
    to.folder.write_sidecar(to.name)?;
    begin(moved, from, to, taken)?;
    if let Some(partner) = partner
        && let Err(error) = begin(partner, to, from, is_promised(moved))
    {
        revert(moved, from);
        return Err(error);
    }
    let escapes = std::iter::once(moved).chain(partner).any(|one| table.may_escape(version_of(one)));
    let _paths = table.paths.write().unwrap_or_else(PoisonError::into_inner);
    let (from_path, to_path) = (from.folder.path_of(from.name.on_disk()), to.folder.path_of(to.name.on_disk()));
    let dirs = [Arc::clone(from.folder.dir()), Arc::clone(to.folder.dir())];
    let act = || from.folder.dir().rename(from.name.on_disk(), to.folder.dir().as_ref(), to.name.on_disk(), flags);
    let done = match (moved, partner) {
        (Moved::Item(item), None) => table.journal.rename_files(&[(item.file(), &to_path)], &dirs, act),
        (Moved::Item(item), Some(Moved::Item(other))) => {
            table.journal.rename_files(&[(item.file(), &to_path), (other.file(), &from_path)], &dirs, act)
        }
        (Moved::Folder(_), _) | (_, Some(Moved::Folder(_))) => {
            table.journal.rename(&from_path, &to_path, partner.is_some(), &dirs, act)
        }
    };
    if let Err(error) = done {
        revert(moved, from);
        if let Some(partner) = partner {
            revert(partner, to);
        }
        return Err(error.into());
    }
    table.note_move(escapes);
    let settled =
        end(moved, from, to, &dirs).and_then(|()| partner.map_or(Ok(()), |partner| end(partner, to, from, &dirs)));
    if let Err(error) = settled {
        // Bound to both names it is as good; the next rename settles it.
        log::debug!("a folder stays bound to the name that it left: {error}");
    }
    if partner.is_none() && (from.folder.id() != to.folder.id() || from.name != to.name) {
        from.folder.remove_sidecar(from.name);
    }
    Ok(())
}

/// A folder takes the place of an empty one: they change places, and the empty one goes under the name that it then has.
fn replace_folder(from: Place<'_>, to: Place<'_>, folder: &Arc<Folder>, old: &Arc<Folder>) -> Result<(), TableError> {
    if !old.is_empty()? {
        return Err(rustix::io::Errno::NOTEMPTY.into());
    }
    exchange_or_move(from, to, Moved::Folder(folder), Some(Moved::Folder(old)), RenameFlags::Exchange, true)?;
    from.folder.remove_folder(from.name)
}

/// The version of the table's key that an item is sealed under; folders have none.
fn version_of(standing: Moved<'_>) -> Option<u32> {
    match standing {
        Moved::Item(item) => item.table_key_version(),
        Moved::Folder(_) => None,
    }
}

fn begin(moved: Moved<'_>, from: Place<'_>, to: Place<'_>, taken: bool) -> Result<(), TableError> {
    match moved {
        Moved::Item(item) => {
            let new = item.is_new();
            item.begin_rename(&from.name.binding(), to.name.binding())?;
            // A name that is there already leads to something whole whatever a power cut takes. Bound before it is
            // flushed, the item needs this one flush, and the journal none.
            if taken
                && new
                && let Err(error) = item.write_out()
            {
                item.revert_rename();
                return Err(error);
            }
            Ok(())
        }
        Moved::Folder(folder) => {
            folder.bind_both((from.folder.id(), from.name.binding()), (to.folder.id(), to.name.binding()))
        }
    }
}

fn end(
    moved: Moved<'_>,
    from: Place<'_>,
    at: Place<'_>,
    dirs: &[Arc<dyn crate::store::Dir>; 2],
) -> Result<(), TableError> {
    match moved {
        Moved::Item(item) => {
            item.end_rename(&from.name.binding(), at.folder, at.name);
            if item.is_new() {
                at.folder.table().new_items.add(at.folder.id(), at.name);
            }
            Ok(())
        }
        Moved::Folder(folder) => {
            folder.moved(at.folder, at.name);
            // What a flush promises of the items below, it promises under the new path.
            dirs.iter().try_for_each(|dir| dir.sync())?;
            folder.bind((at.folder.id(), at.name.binding()))
        }
    }
}

fn revert(moved: Moved<'_>, at: Place<'_>) {
    match moved {
        Moved::Item(item) => item.revert_rename(),
        Moved::Folder(folder) => {
            if let Err(error) = folder.bind((at.folder.id(), at.name.binding())) {
                log::debug!("a folder stays bound to a name that it did not get: {error}");
            }
        }
    }
}
