//! `kmsfs why PATH`: asks the daemon, which answers for the calling user.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use serde_json::json;

use super::control::Control;
use super::exit::{CliError, Exit};
use super::mounts::{Place, place_of};
use super::output::{Output, printable};

/// Prints why the caller may or may not decrypt the item; allowed gives [`Exit::Done`], denied [`Exit::Denied`].
pub(super) fn run(path: &Path, output: &mut Output<'_>) -> Result<Exit, CliError> {
    let Place { mountpoint, inside } = place_of(path)?;
    let file = why_file(&inside).ok_or_else(|| {
        CliError::usage(format!("{} is no item: give the path of an item in a table", path.display()))
    })?;
    let answer = Control::of(mountpoint).read(&file)?;
    let text = printable(String::from_utf8_lossy(&answer).trim_end());
    let (exit, allowed) = if text.starts_with("allowed:") { (Exit::Done, true) } else { (Exit::Denied, false) };
    if output.json() {
        output.document(&json!({ "Path": path.to_string_lossy(), "Allowed": allowed, "Reason": text }))?;
    } else {
        output.line(&text)?;
    }
    Ok(exit)
}

/// `why/TABLE/ITEM` for a path in a table; none for the root, a table itself and the control tree.
fn why_file(inside: &Path) -> Option<PathBuf> {
    let mut components = inside.components();
    let plain = inside.components().all(|c| matches!(c, Component::Normal(_)));
    let in_a_table = components.next().is_some_and(|first| first.as_os_str() != OsStr::new(".kms"));
    (plain && in_a_table && components.next().is_some()).then(|| Path::new("why").join(inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_items_have_a_why() {
        assert_eq!(why_file(Path::new("orders/1001.json")), Some(PathBuf::from("why/orders/1001.json")));
        assert_eq!(why_file(Path::new("orders/2026/.x")), Some(PathBuf::from("why/orders/2026/.x")));
        for none in ["", "orders", ".kms/keys", "orders/../x", "/orders/x"] {
            assert_eq!(why_file(Path::new(none)), None, "{none}");
        }
    }
}
