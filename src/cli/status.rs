//! `kmsfs status`: the mounts that the caller sees, or one of them.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::control::Control;
use super::exit::CliError;
use super::mounts::{is_stale, kmsfs_mounts};
use super::output::Output;
use super::umount::daemon_pid;

/// How long a mount may take to answer before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(5);

/// Lists all mounts.
pub(super) fn list(output: &mut Output<'_>) -> Result<(), CliError> {
    let mounts = kmsfs_mounts()?;
    let rows: Vec<Value> = mounts.iter().map(|mount| row(&mount.mount_point, Path::new(&mount.source))).collect();
    output.table(&rows, &["Mountpoint", "Store", "State", "Pid"])
}

/// Describes one mount, and whom its daemon takes the caller for.
pub(super) fn one(control: &Control, output: &mut Output<'_>) -> Result<(), CliError> {
    let mounts = kmsfs_mounts()?;
    let mount = mounts.iter().rfind(|mount| mount.mount_point == control.mountpoint());
    let mount = mount.ok_or_else(|| CliError::NotAMount { path: control.mountpoint().to_owned() })?;
    let whoami = control.read(Path::new("whoami"))?;
    let store = control.read(Path::new("store.json"))?;
    let store: Value = serde_json::from_slice(&store)
        .map_err(|source| CliError::Malformed { path: PathBuf::from("store.json"), source })?;
    let mut value = row(&mount.mount_point, Path::new(&mount.source));
    if let (Some(members), Some(known)) = (value.as_object_mut(), store.as_object()) {
        members.extend(known.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    if let Some(members) = value.as_object_mut() {
        let text = String::from_utf8_lossy(&whoami).trim_end().replace('\n', ", ");
        members.insert("Caller".to_owned(), Value::String(text));
    }
    output.object(&value)
}

fn row(mountpoint: &Path, store: &Path) -> Value {
    json!({
        "Mountpoint": mountpoint.to_string_lossy(),
        "Store": store.to_string_lossy(),
        "State": state(mountpoint),
        "Pid": daemon_pid(store),
    })
}

/// Asks the mount from a thread, since one that hangs would keep the caller for ever.
fn state(mountpoint: &Path) -> &'static str {
    let (answer, answered) = mpsc::channel();
    let path: PathBuf = mountpoint.join(".kms/whoami");
    std::thread::spawn(move || {
        // Nobody listens any more once the patience is over.
        let _ = answer.send(std::fs::read(path));
    });
    match answered.recv_timeout(PATIENCE) {
        Ok(Ok(_)) => "serving",
        Ok(Err(error)) if is_stale(&error) => "stale",
        Ok(Err(_)) => "closed to you",
        Err(_) => "no answer",
    }
}
