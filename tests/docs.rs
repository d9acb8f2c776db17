//! The documents, held to what can be checked: sizes recomputed, errnos that exist, links and references that lead
//! somewhere, commands that are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_default()
}

/// Files below `folder` whose names end in `ending`, relative to the project.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root().join(folder)) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.strip_prefix(root()).unwrap_or(&path).to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(files(&name, ending));
        } else if name.ends_with(ending) {
            found.push(name);
        }
    }
    found.sort();
    found
}

fn documents() -> Vec<String> {
    let mut all = files("docs", ".md");
    all.extend(["README.md".to_owned(), "CHANGELOG.md".to_owned()]);
    all
}

/// A backing file's length, by laying the item out page by page as docs/format.md, section 6.4 tells it.
fn backing_length(size: u64) -> u64 {
    const PAGE: u64 = 4096;
    if size == 0 {
        return 512;
    }
    if 512 + 32 + size < PAGE {
        return 512 + 32 + size;
    }
    let blocks = size.div_ceil(PAGE);
    let mut next_page = 1;
    for block in 0..blocks {
        let entries_first = block >= 112 && (block - 112).is_multiple_of(128);
        next_page += u64::from(entries_first) + 1;
    }
    let last_block = size - (blocks - 1) * PAGE;
    (next_page - 1) * PAGE + last_block
}

/// `458,752 (112 blocks)`, `5 GiB`, `0` as a number of bytes.
fn bytes(text: &str) -> Option<u64> {
    let text = text.split('(').next()?.trim();
    match text.strip_suffix(" GiB") {
        Some(gib) => gib.parse::<u64>().ok()?.checked_shl(30),
        None => text.replace(',', "").parse().ok(),
    }
}

#[test]
fn the_worked_sizes_are_right() {
    let format = read("docs/format.md");
    let rows = format.lines().skip_while(|line| !line.starts_with("| size | layout | backing length |")).skip(2);
    let rows: Vec<Vec<&str>> = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() >= 9, "the table of worked sizes was not found: {rows:?}");
    for row in rows {
        let (size, backing) = (bytes(row[0]).unwrap(), bytes(row[2]).unwrap());
        assert_eq!(backing, backing_length(size), "size {}", row[0]);
        assert_eq!(row[1], if backing < 4096 { "inline" } else { "paged" }, "size {}", row[0]);
    }
}

#[test]
fn no_two_sizes_share_a_backing_length() {
    let mut before = 0;
    for size in 0..1_200_000_u64 {
        let length = backing_length(size);
        assert!(length > before, "size {size}");
        before = length;
    }
}

macro_rules! errnos {
    ($($name:ident),* $(,)?) => {
        /// Each name is one of libc's, or this file does not compile.
        const ERRNOS: &[(&str, i32)] = &[$((stringify!($name), libc::$name)),*];
    };
}

errnos!(
    E2BIG,
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EADV,
    EAFNOSUPPORT,
    EAGAIN,
    EALREADY,
    EBADE,
    EBADF,
    EBADFD,
    EBADMSG,
    EBADR,
    EBADRQC,
    EBADSLT,
    EBFONT,
    EBUSY,
    ECANCELED,
    ECHILD,
    ECHRNG,
    ECOMM,
    ECONNABORTED,
    ECONNREFUSED,
    ECONNRESET,
    EDEADLK,
    EDESTADDRREQ,
    EDOM,
    EDOTDOT,
    EDQUOT,
    EEXIST,
    EFAULT,
    EFBIG,
    EHOSTDOWN,
    EHOSTUNREACH,
    EIDRM,
    EILSEQ,
    EINPROGRESS,
    EINTR,
    EINVAL,
    EIO,
    EISCONN,
    EISDIR,
    EISNAM,
    EKEYEXPIRED,
    EKEYREJECTED,
    EKEYREVOKED,
    EL2HLT,
    EL2NSYNC,
    EL3HLT,
    EL3RST,
    ELIBACC,
    ELIBBAD,
    ELIBEXEC,
    ELIBMAX,
    ELIBSCN,
    ELNRNG,
    ELOOP,
    EMEDIUMTYPE,
    EMFILE,
    EMLINK,
    EMSGSIZE,
    EMULTIHOP,
    ENAMETOOLONG,
    ENAVAIL,
    ENETDOWN,
    ENETRESET,
    ENETUNREACH,
    ENFILE,
    ENOANO,
    ENOBUFS,
    ENOCSI,
    ENODATA,
    ENODEV,
    ENOENT,
    ENOEXEC,
    ENOKEY,
    ENOLCK,
    ENOLINK,
    ENOMEDIUM,
    ENOMEM,
    ENOMSG,
    ENONET,
    ENOPKG,
    ENOPROTOOPT,
    ENOSPC,
    ENOSR,
    ENOSTR,
    ENOSYS,
    ENOTBLK,
    ENOTCONN,
    ENOTDIR,
    ENOTEMPTY,
    ENOTNAM,
    ENOTRECOVERABLE,
    ENOTSOCK,
    ENOTSUP,
    ENOTTY,
    ENOTUNIQ,
    ENXIO,
    EOPNOTSUPP,
    EOVERFLOW,
    EOWNERDEAD,
    EPERM,
    EPFNOSUPPORT,
    EPIPE,
    EPROTO,
    EPROTONOSUPPORT,
    EPROTOTYPE,
    ERANGE,
    EREMCHG,
    EREMOTE,
    EREMOTEIO,
    ERESTART,
    ERFKILL,
    EROFS,
    ESHUTDOWN,
    ESOCKTNOSUPPORT,
    ESPIPE,
    ESRCH,
    ESRMNT,
    ESTALE,
    ESTRPIPE,
    ETIME,
    ETIMEDOUT,
    ETOOMANYREFS,
    ETXTBSY,
    EUCLEAN,
    EUNATCH,
    EUSERS,
    EWOULDBLOCK,
    EXDEV,
    EXFULL,
);

/// Words of capitals and digits that begin with an E and are no errnos.
const NO_ERRNOS: &[&str] = &["EDITOR", "EOF", "EXCHANGE"];

/// The words of a text that look like errnos: `EACCES`, not `RENAME_EXCHANGE` nor `README`.
fn errno_words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.len() > 3 && word.starts_with('E'))
        .filter(|word| word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()))
        .filter(|word| !word.bytes().skip(1).all(|b| b.is_ascii_digit()) && !NO_ERRNOS.contains(word))
        .collect()
}

#[test]
fn every_errno_in_the_documents_is_real() {
    let mut seen = 0;
    for document in documents() {
        let text = read(&document);
        for word in errno_words(&text) {
            assert!(ERRNOS.iter().any(|(name, _)| *name == word), "{document}: {word} is no errno");
            seen += 1;
        }
    }
    assert!(seen > 40, "the documents were not found");
    assert!(ERRNOS.iter().all(|(_, number)| *number > 0));
}

#[test]
fn errno_words_are_told_from_other_capitals() {
    let text = "EACCES, `EBADMSG`; RENAME_EXCHANGE EXCHANGE README E514 E2BIG EACCESS";
    assert_eq!(errno_words(text), BTreeSet::from(["EACCES", "EBADMSG", "E2BIG", "EACCESS"]));
}

/// What the transport can answer is written down: an errno that appears in its sources is in docs/semantics.md.
#[test]
fn every_errno_that_is_answered_is_documented() {
    let semantics = read("docs/semantics.md");
    let documented = errno_words(&semantics);
    for file in files("src/fuse", ".rs") {
        let source = read(&file);
        for line in source.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for word in line.split("Errno::").skip(1).chain(line.split("libc::").skip(1)) {
                let end = word.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(word.len());
                for errno in errno_words(word.get(..end).unwrap_or_default()) {
                    assert!(documented.contains(errno), "{file}: {errno} is not in docs/semantics.md");
                }
            }
        }
    }
}

/// The targets of a text's Markdown links, those of other sites left out.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .collect()
}

/// A heading as GitHub names it in a link: lower case, spaces to hyphens, other punctuation gone.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
        })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for document in documents() {
        let folder = root().join(&document).parent().map(PathBuf::from).unwrap_or_default();
        for link in links(&read(&document)) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { root().join(&document) } else { folder.join(path) };
            assert!(target.exists(), "{document}: {link}");
            if !anchor.is_empty() {
                let headings = anchors(&fs::read_to_string(&target).unwrap());
                assert!(headings.contains(anchor), "{document}: {link}");
            }
            seen += 1;
        }
    }
    assert!(seen > 15, "the documents were not found");
}

/// References of the form `format.md, section 6.4` in a text: the document's name and the section.
fn references(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(".md") {
        let (before, after) = text.split_at(at);
        let name: String = before.chars().rev().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
        let words = after.trim_start_matches(".md").trim_start_matches([')', '`', ',', ' ', '\n', '/', '!']);
        let Some(number) = words.strip_prefix("section ").or_else(|| words.strip_prefix("sections ")) else { continue };
        let section: String = number.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        found.push((name.chars().rev().collect(), section.trim_end_matches('.').to_owned()));
    }
    found
}

#[test]
fn references_are_read_in_every_form_that_is_used() {
    let text = "docs/format.md, section 6.4. ([format.md](format.md), sections 7 and 8) docs/semantics.md,\n/// section 9; README.md";
    let expected = [("format", "6.4"), ("format", "7"), ("semantics", "9")];
    assert_eq!(references(text), expected.map(|(name, section)| (name.to_owned(), section.to_owned())));
}

#[test]
fn every_section_that_is_referred_to_exists() {
    let mut seen = 0;
    let places = documents().into_iter().chain(files("src", ".rs")).chain(files("tests", ".rs"));
    for place in places.filter(|place| place != "tests/docs.rs") {
        for (name, section) in references(&read(&place)) {
            let target = read(&format!("docs/{name}.md"));
            let there = target.lines().filter_map(|line| line.strip_prefix('#')).any(|heading| {
                let heading = heading.trim_start_matches('#').trim();
                heading.split_whitespace().next().is_some_and(|number| number.trim_end_matches('.') == section)
            });
            assert!(there, "{place}: docs/{name}.md has no section {section}");
            seen += 1;
        }
    }
    assert!(seen > 5, "no references were found");
}

#[test]
fn the_two_commands_of_the_readme_are_there() {
    use std::os::unix::fs::PermissionsExt;
    let readme = read("README.md");
    for command in ["mount-examples/quickstart.sh", "tests/run.sh"] {
        assert!(readme.contains(command), "README.md does not name {command}");
        let mode = fs::metadata(root().join(command)).map(|m| m.permissions().mode());
        assert!(mode.is_ok_and(|mode| mode & 0o111 != 0), "{command} is not an executable file");
    }
}
