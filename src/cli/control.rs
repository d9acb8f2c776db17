//! A mount's control tree, as the calling user: ctl lines, documents, lists. Nothing here decides anything; the daemon
//! does, by the uid that the kernel tells it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use zeroize::Zeroizing;

use super::exit::{CliError, plain};
use super::mounts::{is_stale, place_of};
use super::principal::{Acl, FolderRights};

/// Longest answer that is read of a control file that is no list and no trail, in bytes.
const MAX_ANSWER: u64 = 4 << 20;

/// Room for an answer that holds a secret, so that it need not grow and leave copies behind.
const ANSWER_LIKELY: usize = 16 << 10;

/// What a ctl line or a document belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object<'a> {
    Store,
    Key(&'a str),
    Table(&'a str),
}

impl Object<'_> {
    const fn kind(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Key(_) => "key",
            Self::Table(_) => "table",
        }
    }

    const fn name(&self) -> &str {
        match self {
            Self::Store => "",
            Self::Key(name) | Self::Table(name) => name,
        }
    }
}

/// The control tree of one mount.
#[derive(Debug)]
pub struct Control {
    mountpoint: PathBuf,
}

impl Control {
    /// The control tree of the mount that the path is on.
    pub fn at(path: &Path) -> Result<Self, CliError> {
        Ok(Self::of(place_of(path)?.mountpoint))
    }

    /// The control tree of the mount at a mount point.
    #[must_use]
    pub const fn of(mountpoint: PathBuf) -> Self {
        Self { mountpoint }
    }

    /// Where the mount is.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Writes one line to an object's `ctl`; gives what `ctl.result` says of it.
    pub fn command(&self, object: Object<'_>, line: &str) -> Result<String, CliError> {
        if line.contains('\n') {
            return Err(CliError::usage("a newline cannot stand in a control line"));
        }
        let directory = self.directory(object)?;
        let (ctl, result) = (directory.join("ctl"), directory.join("ctl.result"));
        let mut file = self.open_for_writing(object, &ctl, false)?;
        let written = file.write_all(format!("{line}\n").as_bytes()).and_then(|()| file.sync_all());
        drop(file);
        let answer = read_answer(&result).map(|bytes| without_verdict(one_text(&bytes)));
        match written {
            Ok(()) => Ok(answer.unwrap_or_default()),
            Err(error) => Err(self.refusal(object, line, answer.ok(), error)),
        }
    }

    /// One request and its answer, through one descriptor: a line, then bytes.
    pub fn exchange(
        &self,
        object: Object<'_>,
        file: &str,
        line: &str,
        data: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, CliError> {
        let directory = self.directory(object)?;
        let path = directory.join(file);
        let opened = File::options().read(true).write(true).open(&path);
        let mut exchange = opened.map_err(|error| self.absent_or(object, "write", &path, error))?;
        let request = Zeroizing::new([line.as_bytes(), b"\n", data].concat());
        let mut answer = Zeroizing::new(Vec::with_capacity(ANSWER_LIKELY));
        let done = exchange
            .write_all(&request)
            .and_then(|()| Read::by_ref(&mut exchange).take(MAX_ANSWER).read_to_end(&mut answer).map(|_| ()));
        match done {
            Ok(()) => Ok(answer),
            Err(error) => {
                let reason = read_answer(&directory.join("ctl.result")).ok();
                let reason = reason.map(|bytes| without_verdict(one_text(&bytes)));
                Err(self.refusal(object, file, reason, error))
            }
        }
    }

    /// The policy of a key or of the store, byte for byte.
    pub fn policy(&self, object: Object<'_>) -> Result<Vec<u8>, CliError> {
        self.document(object, "policy.json")
    }

    /// How often the policy was saved, in a line.
    pub fn policy_generation(&self, object: Object<'_>) -> Result<Vec<u8>, CliError> {
        self.document(object, "policy.generation")
    }

    /// Saves a policy, if it still has the generation on which the document builds.
    pub fn put_policy_at(&self, object: Object<'_>, document: &[u8], generation: u64) -> Result<(), CliError> {
        let directory = self.directory(object)?;
        let what = "the policy is refused";
        if document.trim_ascii().is_empty() {
            let reason = "the document is empty".to_owned();
            return Err(CliError::Refused { what: what.to_owned(), reason, source: None });
        }
        let path = directory.join(format!("policy.json@{generation}"));
        let opened = File::options().write(true).truncate(true).open(&path);
        let written = opened.and_then(|mut file| {
            file.write_all(document)?;
            file.sync_all()
        });
        written.map_err(|error| {
            if error.kind() == io::ErrorKind::ResourceBusy {
                let reason = format!("it is not generation {generation} any more: read it again, and build on that");
                return CliError::Refused { what: what.to_owned(), reason, source: Some(error) };
            }
            if error.kind() == io::ErrorKind::InvalidInput {
                let reason = read_answer(&directory.join("policy.error")).map(|bytes| one_text(&bytes)).ok();
                return self.refusal(object, what, reason, error);
            }
            self.absent_or(object, "write", &path, error)
        })
    }

    /// Saves a policy in one write. What the daemon refuses comes back with its reason.
    pub fn put_policy(&self, object: Object<'_>, document: &[u8]) -> Result<(), CliError> {
        let directory = self.directory(object)?;
        let mut file = self.open_for_writing(object, &directory.join("policy.json"), true)?;
        // A document that ends too early is found at fsync or close; what close(2) returns, no Rust program learns.
        let written = file.write_all(document).and_then(|()| file.sync_all());
        drop(file);
        let reason = read_answer(&directory.join("policy.error")).map(|bytes| one_text(&bytes)).unwrap_or_default();
        let what = "the policy is refused";
        match (written, self.policy(object)) {
            (Err(error), _) => Err(self.refusal(object, what, Some(reason), error)),
            // What is in force tells; a reason may be that of an earlier save.
            (Ok(()), Ok(saved)) if saved.trim_ascii() == document.trim_ascii() => Ok(()),
            // Who may save and not read has the reason alone to go by.
            (Ok(()), Err(_)) if reason.is_empty() => Ok(()),
            (Ok(()), _) => Err(CliError::Refused { what: what.to_owned(), reason, source: None }),
        }
    }

    /// A key's or a table's description, as JSON.
    pub fn describe(&self, object: Object<'_>) -> Result<Value, CliError> {
        let name = if matches!(object, Object::Table(_)) { "table.json" } else { "key.json" };
        let bytes = self.document(object, name)?;
        let path = self.directory(object)?.join(name);
        serde_json::from_slice(&bytes).map_err(|source| CliError::Malformed { path, source })
    }

    /// What remains of a destroyed key, byte for byte.
    pub fn receipt(&self, key: &str) -> Result<Vec<u8>, CliError> {
        self.document(Object::Key(key), "receipt.json")
    }

    /// Which versions of a key's material are in use where, as JSON.
    pub fn status(&self, key: &str) -> Result<Value, CliError> {
        let object = Object::Key(key);
        let bytes = self.document(object, "status.json")?;
        let path = self.directory(object)?.join("status.json");
        serde_json::from_slice(&bytes).map_err(|source| CliError::Malformed { path, source })
    }

    /// The names of all keys that the caller may list, sorted.
    pub fn keys(&self) -> Result<Vec<String>, CliError> {
        self.names("keys")
    }

    /// The names of all tables that the caller may list, sorted.
    pub fn tables(&self) -> Result<Vec<String>, CliError> {
        self.names("tables")
    }

    /// A control file by its path below `.kms`, whole.
    pub fn read(&self, path: &Path) -> Result<Vec<u8>, CliError> {
        let path = self.root().join(path);
        read_answer(&path).map_err(|error| self.io_error("read", &path, error))
    }

    /// A control file by its path below `.kms`, to be read bit by bit.
    pub fn open(&self, path: &Path) -> Result<File, CliError> {
        let path = self.root().join(path);
        File::open(&path).map_err(|error| self.io_error("read", &path, error))
    }

    /// A list by its path below `.kms`: the JSON objects of its lines.
    pub fn lines(&self, path: &Path) -> Result<Vec<Value>, CliError> {
        let lines = BufReader::new(self.open(path)?).split(b'\n');
        let parse = |line: io::Result<Vec<u8>>| {
            let line = line.map_err(|error| CliError::io("read", path, error))?;
            serde_json::from_slice(&line).map_err(|source| CliError::Malformed { path: path.to_owned(), source })
        };
        lines.map(parse).collect()
    }

    /// Who may do what with a table's folder, by Unix.
    pub fn folder_rights(&self, table: &str) -> Result<FolderRights, CliError> {
        let path = self.folder(table)?;
        let stat = std::fs::metadata(&path).map_err(|error| self.io_error("look at", &path, error))?;
        let mut buffer = vec![0; 4096];
        // No ACL, no support for ACLs and an ACL beyond any sense come to the same: the mode is all that is known.
        let acl = rustix::fs::getxattr(&path, "system.posix_acl_access", buffer.as_mut_slice())
            .ok()
            .and_then(|len| Acl::parse(buffer.get(..len)?));
        Ok(FolderRights { uid: stat.uid(), gid: stat.gid(), mode: stat.mode() & 0o7777, acl })
    }

    /// A table's folder.
    pub fn folder(&self, table: &str) -> Result<PathBuf, CliError> {
        Ok(self.mountpoint.join(file_name("table", table)?))
    }

    fn root(&self) -> PathBuf {
        self.mountpoint.join(".kms")
    }

    fn directory(&self, object: Object<'_>) -> Result<PathBuf, CliError> {
        Ok(match object {
            Object::Store => self.root(),
            Object::Key(name) => self.root().join("keys").join(file_name("key", name)?),
            Object::Table(name) => self.root().join("tables").join(file_name("table", name)?),
        })
    }

    fn document(&self, object: Object<'_>, name: &str) -> Result<Vec<u8>, CliError> {
        let path = self.directory(object)?.join(name);
        read_answer(&path).map_err(|error| self.absent_or(object, "read", &path, error))
    }

    fn names(&self, of: &str) -> Result<Vec<String>, CliError> {
        let path = self.root().join(of);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(|error| self.io_error("list", &path, error))? {
            let entry = entry.map_err(|error| self.io_error("list", &path, error))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn open_for_writing(&self, object: Object<'_>, path: &Path, truncate: bool) -> Result<File, CliError> {
        let opened = File::options().write(true).truncate(truncate).open(path);
        opened.map_err(|error| self.absent_or(object, "write", path, error))
    }

    fn absent_or(&self, object: Object<'_>, doing: &'static str, path: &Path, error: io::Error) -> CliError {
        if error.kind() == io::ErrorKind::NotFound && object != Object::Store {
            CliError::Absent { kind: object.kind(), name: object.name().to_owned() }
        } else {
            self.io_error(doing, path, error)
        }
    }

    fn refusal(&self, object: Object<'_>, what: &str, reason: Option<String>, error: io::Error) -> CliError {
        match reason.filter(|reason| !reason.is_empty()) {
            Some(reason) => CliError::Refused { what: what.to_owned(), reason, source: Some(error) },
            None if is_stale(&error) => CliError::Stale { mountpoint: self.mountpoint.clone() },
            None if error.kind() == io::ErrorKind::NotFound && object != Object::Store => {
                CliError::Absent { kind: object.kind(), name: object.name().to_owned() }
            }
            None => CliError::Refused { what: what.to_owned(), reason: plain(&error), source: Some(error) },
        }
    }

    fn io_error(&self, doing: &'static str, path: &Path, error: io::Error) -> CliError {
        if is_stale(&error) {
            CliError::Stale { mountpoint: self.mountpoint.clone() }
        } else {
            CliError::io(doing, path, error)
        }
    }
}

/// A name that can stand in a path and in a control line.
pub fn file_name<'a>(kind: &str, name: &'a str) -> Result<&'a str, CliError> {
    let odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name == "." || name == ".." || name.contains(odd) {
        return Err(CliError::usage(format!(
            "{name:?} cannot be a {kind}'s name here: no slash, blank or control character, and not empty"
        )));
    }
    Ok(name)
}

fn read_answer(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_ANSWER).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn one_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// What `ctl.result` says, without the word that the exit code says too.
fn without_verdict(text: String) -> String {
    let plain = text.strip_prefix("done: ").or_else(|| text.strip_prefix("refused: ")).map(str::to_owned);
    plain.unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory with the shape of a control tree: shows paths and errors, not decisions.
    struct Tree(PathBuf);

    impl Tree {
        fn new() -> Self {
            let name = format!("kmsfs-control-{:032x}", u128::from_le_bytes(crate::crypto::random().unwrap()));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(path.join(".kms/keys/orders")).unwrap();
            std::fs::create_dir_all(path.join(".kms/tables")).unwrap();
            Self(path)
        }

        fn put(&self, path: &str, content: &str) {
            File::create(self.0.join(path)).unwrap().write_all(content.as_bytes()).unwrap();
        }

        fn get(&self, path: &str) -> String {
            std::fs::read_to_string(self.0.join(path)).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_command_is_one_line_and_its_result_comes_back() {
        let tree = Tree::new();
        tree.put(".kms/keys/orders/ctl", "");
        tree.put(".kms/keys/orders/ctl.result", "done: added bob\n");
        let control = Control::of(tree.0.clone());
        assert_eq!(control.command(Object::Key("orders"), "add-user bob").unwrap(), "added bob");
        assert_eq!(tree.get(".kms/keys/orders/ctl"), "add-user bob\n");
        assert!(matches!(control.command(Object::Key("orders"), "a\nb"), Err(CliError::Usage { .. })));
    }

    #[test]
    fn an_absent_key_is_named() {
        let tree = Tree::new();
        let control = Control::of(tree.0.clone());
        for result in [
            control.command(Object::Key("none"), "rebind").map(|_| ()),
            control.policy(Object::Key("none")).map(|_| ()),
            control.put_policy(Object::Key("none"), b"{}"),
            control.describe(Object::Key("none")).map(|_| ()),
        ] {
            assert!(matches!(result, Err(CliError::Absent { kind: "key", .. })), "{result:?}");
        }
    }

    #[test]
    fn a_policy_save_is_judged_by_what_is_in_force() {
        let tree = Tree::new();
        tree.put(".kms/keys/orders/policy.json", "a longer document than the new one");
        tree.put(".kms/keys/orders/policy.error", "of an earlier save\n");
        let control = Control::of(tree.0.clone());
        control.put_policy(Object::Key("orders"), b"{}\n").unwrap();
        assert_eq!(tree.get(".kms/keys/orders/policy.json"), "{}\n");
    }

    #[test]
    fn a_policy_save_that_is_not_taken_gives_the_daemon_s_reason() {
        let tree = Tree::new();
        std::os::unix::fs::symlink("/dev/null", tree.0.join(".kms/keys/orders/policy.json")).unwrap();
        tree.put(".kms/keys/orders/policy.error", "line 1, column 3: expected a brace\n");
        let control = Control::of(tree.0.clone());
        let error = control.put_policy(Object::Key("orders"), b"{").unwrap_err();
        assert_eq!(error.to_string(), "the policy is refused: line 1, column 3: expected a brace");
        assert_eq!(error.exit() as u8, 1);
    }

    #[test]
    fn names_cannot_leave_their_directory_or_their_line() {
        let tree = Tree::new();
        let control = Control::of(tree.0.clone());
        for name in ["", ".", "..", "a/b", "../orders", "a b", "a\nb", "a\tb", "a\u{a0}b"] {
            assert!(matches!(control.policy(Object::Key(name)), Err(CliError::Usage { .. })), "{name:?}");
            assert!(control.folder(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn names_are_listed_in_order_and_a_folder_tells_its_rights() {
        let tree = Tree::new();
        std::fs::create_dir(tree.0.join(".kms/keys/a")).unwrap();
        std::fs::create_dir(tree.0.join("orders")).unwrap();
        std::fs::set_permissions(tree.0.join("orders"), PermissionsExt::from_mode(0o2750)).unwrap();
        let control = Control::of(tree.0.clone());
        assert_eq!(control.keys().unwrap(), ["a", "orders"]);
        let rights = control.folder_rights("orders").unwrap();
        assert_eq!((rights.mode, rights.acl), (0o2750, None));
    }
}
