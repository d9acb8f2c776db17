//! The layers of docs/architecture.md, enforced: reads the imports of every source file and fails where a module
//! names a sibling of its own level or a higher one; and keeps `fuser`, `unsafe` and the cipher crates where they
//! belong. It reads tokens, not text: comments and strings do not count, test modules and nested paths do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Top-level modules, their levels, and the siblings that each may name all the same.
const LEVELS: &[(&str, u8, &[&str])] = &[
    ("types", 0, &[]),
    ("sys", 0, &[]),
    ("crypto", 1, &[]),
    ("policy", 1, &[]),
    ("store", 1, &["crypto"]),
    ("audit", 2, &[]),
    ("kms", 3, &[]),
    ("envelope", 4, &[]),
    ("table", 5, &[]),
    ("fs", 6, &[]),
    ("fuse", 7, &[]),
    ("mount", 8, &[]),
    ("cli", 9, &[]),
];

/// A name that only some files may use, whether it must be a path's first part to count, and who may.
const CONFINED: &[(&str, bool, &[&str])] = &[
    ("fuser", false, &["src/fuse.rs", "src/fuse/", "src/mount.rs"]),
    ("unsafe", false, &["src/sys.rs", "src/sys/"]),
    ("aes_gcm", false, &["src/crypto/aead.rs"]),
    ("aes_siv", false, &["src/crypto/aead.rs"]),
    ("aws_lc_rs", false, &["src/crypto/aead.rs"]),
    ("aes", true, &["src/crypto/aead.rs"]),
    ("chacha20poly1305", true, &["src/crypto/aead.rs"]),
    ("ring", true, &["src/crypto/aead.rs"]),
    ("openssl", true, &["src/crypto/aead.rs"]),
];

/// An identifier, `::`, or one character of punctuation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

/// The reading position in a source text.
struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn step(&mut self) -> Option<char> {
        let char = self.peek(0)?;
        self.at += 1;
        self.line += usize::from(char == '\n');
        Some(char)
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    fn skip_line(&mut self) {
        while self.peek(0).is_some_and(|c| c != '\n') {
            self.step();
        }
    }

    /// From `/*` to its own `*/`: block comments nest.
    fn skip_block_comment(&mut self) {
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => {
                    depth += 1;
                    self.skip(2);
                }
                (Some('*'), Some('/')) => {
                    depth -= 1;
                    self.skip(2);
                    if depth == 0 {
                        return;
                    }
                }
                (Some(_), _) => self.skip(1),
                (None, _) => return,
            }
        }
    }

    /// The rest of a literal whose opening quote has been taken.
    fn skip_quoted(&mut self, quote: char) {
        while let Some(char) = self.step() {
            if char == '\\' {
                self.step();
            } else if char == quote {
                return;
            }
        }
    }

    /// The rest of `r"…"` or `r##"…"##`, from its hashes or quote.
    fn skip_raw(&mut self) {
        let mut hashes = 0;
        while self.peek(0) == Some('#') {
            hashes += 1;
            self.step();
        }
        self.step();
        while let Some(char) = self.step() {
            if char == '"' && (0..hashes).all(|i| self.peek(i) == Some('#')) {
                self.skip(hashes);
                return;
            }
        }
    }

    /// A character literal, or the name of a lifetime, after its quote.
    fn skip_char_or_lifetime(&mut self) {
        if self.peek(0) == Some('\\') || self.peek(1) == Some('\'') {
            self.skip_quoted('\'');
        } else {
            self.word();
        }
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(char) = self.peek(0).filter(|c| c.is_alphanumeric() || *c == '_') {
            word.push(char);
            self.step();
        }
        word
    }

    /// A word, or nothing where it was the prefix of a literal, which is skipped.
    fn word_or_literal(&mut self) -> Option<String> {
        let word = self.word();
        let raw = matches!(word.as_str(), "r" | "br" | "cr");
        match (self.peek(0), self.peek(1)) {
            (Some('"'), _) | (Some('#'), Some('"' | '#')) if raw => self.skip_raw(),
            // A raw identifier, r#type.
            (Some('#'), Some(_)) if word == "r" => {
                self.step();
                return Some(self.word());
            }
            (Some('"'), _) if matches!(word.as_str(), "b" | "c") => {
                self.step();
                self.skip_quoted('"');
            }
            (Some('\''), _) if word == "b" => {
                self.step();
                self.skip_quoted('\'');
            }
            _ => return Some(word),
        }
        None
    }
}

fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { chars: source.chars().collect(), at: 0, line: 1 };
    let mut tokens = Vec::new();
    while let Some(char) = lexer.peek(0) {
        let line = lexer.line;
        match (char, lexer.peek(1)) {
            ('/', Some('/')) => lexer.skip_line(),
            ('/', Some('*')) => lexer.skip_block_comment(),
            ('"', _) => {
                lexer.step();
                lexer.skip_quoted('"');
            }
            ('\'', _) => {
                lexer.step();
                lexer.skip_char_or_lifetime();
            }
            (':', Some(':')) => {
                lexer.skip(2);
                tokens.push(Token { text: "::".to_owned(), line });
            }
            (c, _) if c.is_alphanumeric() || c == '_' => {
                tokens.extend(lexer.word_or_literal().map(|text| Token { text, line }));
            }
            (c, _) => {
                lexer.step();
                if !c.is_whitespace() {
                    tokens.push(Token { text: c.to_string(), line });
                }
            }
        }
    }
    tokens
}

fn text(tokens: &[Token], at: usize) -> &str {
    tokens.get(at).map_or("", |token| token.text.as_str())
}

/// What follows `crate::` at `at`: one name, or the first name of each member of a group.
fn heads(tokens: &[Token], at: usize) -> Vec<Token> {
    if text(tokens, at) != "{" {
        return tokens.get(at).cloned().into_iter().collect();
    }
    let mut found = Vec::new();
    let (mut depth, mut first) = (0_usize, false);
    for token in tokens.iter().skip(at) {
        match token.text.as_str() {
            "{" => {
                depth += 1;
                first = depth == 1;
            }
            "}" => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            "," => first = depth == 1,
            _ if first => {
                found.push(token.clone());
                first = false;
            }
            _ => {}
        }
    }
    found
}

/// Module names from the crate's root down to the file: none for `src/lib.rs`, one for `src/types.rs`, two for
/// `src/store/journal.rs`.
fn module_path(file: &str) -> Vec<&str> {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut parts: Vec<&str> = path.split('/').collect();
    if matches!(parts.last(), Some(&"mod" | &"lib" | &"main")) {
        parts.pop();
    }
    parts
}

/// The top-level modules that a file names, with the token that names each: by `crate::`, by enough `super::`, or, from the
/// binary, by the library's name.
fn imports(file: &str, tokens: &[Token]) -> Vec<Token> {
    let file_depth = module_path(file).len();
    let mut inline: Vec<usize> = Vec::new();
    let mut braces = 0_usize;
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => {
                braces += 1;
                if at >= 2 && text(tokens, at - 2) == "mod" {
                    inline.push(braces);
                }
            }
            "}" => {
                if inline.last() == Some(&braces) {
                    inline.pop();
                }
                braces = braces.saturating_sub(1);
            }
            "crate" | "kmsfs" => match text(tokens, at + 1) {
                "::" => found.extend(heads(tokens, at + 2)),
                // `use crate as other` would hide what is named through it.
                "as" => found.push(token.clone()),
                _ => {}
            },
            "super" if !(at >= 2 && text(tokens, at - 2) == "super" && text(tokens, at - 1) == "::") => {
                let mut ups = 1;
                let mut next = at + 1;
                while text(tokens, next) == "::" && text(tokens, next + 1) == "super" {
                    ups += 1;
                    next += 2;
                }
                if ups == file_depth + inline.len() && text(tokens, next) == "::" {
                    found.extend(heads(tokens, next + 1));
                }
            }
            _ => {}
        }
    }
    found
}

/// Why a file of the module `from` may not name `to`.
fn refusal(from: &str, to: &str) -> Option<String> {
    let level_of = |name: &str| LEVELS.iter().find(|(module, ..)| *module == name);
    let Some((_, level, _)) = level_of(to) else {
        return Some(format!("`{to}` has no level in tests/layering.rs"));
    };
    let Some((_, own, siblings)) = level_of(from) else {
        return Some(format!("`{from}` has no level in tests/layering.rs"));
    };
    let fine = from == to || level < own || siblings.contains(&to);
    (!fine).then(|| format!("`{from}` (level {own}) names `{to}` (level {level})"))
}

/// Every violation in one file, as `file:line: reason`. The root files may name all modules.
fn violations(file: &str, source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    if let Some(from) = module_path(file).first() {
        for import in imports(file, &tokens) {
            let reason = refusal(from, &import.text);
            found.extend(reason.map(|reason| format!("{file}:{}: {reason}", import.line)));
        }
    }
    for (at, token) in tokens.iter().enumerate() {
        let begins_path = text(&tokens, at + 1) == "::" && (at == 0 || text(&tokens, at - 1) != "::");
        for (name, path_only, homes) in CONFINED {
            let home = homes.iter().any(|home| file == *home || (home.ends_with('/') && file.starts_with(home)));
            if token.text == *name && !home && (begins_path || !path_only) {
                found.push(format!("{file}:{}: `{name}` belongs in {} alone", token.line, homes.join(", ")));
            }
        }
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every `.rs` file below `folder`.
fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[test]
fn every_module_names_lower_levels_only() {
    let files = sources(&root().join("src")).unwrap();
    assert!(files.len() > LEVELS.len(), "the sources were not found");
    let found: Vec<String> = files
        .iter()
        .flat_map(|path| {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
            violations(name, &fs::read_to_string(path).unwrap())
        })
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_table_of_levels_is_that_of_the_sources() {
    let mut modules: Vec<String> = fs::read_dir(root().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| !matches!(name.as_str(), "lib" | "main"))
        .collect();
    modules.sort();
    modules.dedup();
    let mut named: Vec<&str> = LEVELS.iter().map(|(name, ..)| *name).collect();
    named.sort_unstable();
    assert_eq!(modules, named);
}

/// One offending source each: file, text, and what the one violation must say.
const OFFENDERS: &[(&str, &str, &str)] = &[
    ("src/types.rs", "use crate::sys;", "src/types.rs:1: `types` (level 0) names `sys` (level 0)"),
    ("src/policy/mod.rs", "\nuse crate::crypto::Key256;", "src/policy/mod.rs:2: `policy` (level 1)"),
    ("src/crypto/kdf.rs", "fn f() { crate::store::open() }", ":1: `crypto` (level 1) names `store`"),
    (
        "src/table/item.rs",
        "use crate::{types::ItemId,\n  kms::{DataKey, fs},\n  fs::api};",
        ":3: `table` (level 5) names `fs`",
    ),
    ("src/kms/mod.rs", "#[cfg(test)]\nmod tests {\n use crate::table::Item;\n}", ":3: `kms` (level 3) names `table`"),
    ("src/kms/mod.rs", "use super::fuse::X;", "names `fuse` (level 7)"),
    ("src/kms/mod.rs", "mod tests { use super::super::cli::run; }", "names `cli` (level 9)"),
    ("src/store/journal.rs", "use super::super::audit;", "names `audit` (level 2)"),
    ("src/store/journal.rs", "use super::super::{crypto, policy};", "names `policy` (level 1)"),
    ("src/audit/mod.rs", "macro_rules! m { () => { $crate::mount::go() } }", "names `mount` (level 8)"),
    ("src/fs/mod.rs", "use crate::*;", "`*` has no level"),
    ("src/fs/mod.rs", "use crate as top;", "`crate` has no level"),
    ("src/fs/mod.rs", "use crate::helpers::x;", "`helpers` has no level"),
    ("src/helpers.rs", "use crate::types::X;", "`helpers` has no level"),
    (
        "src/fs/mod.rs",
        "\n\nuse fuser::Errno;",
        "src/fs/mod.rs:3: `fuser` belongs in src/fuse.rs, src/fuse/, src/mount.rs alone",
    ),
    ("src/cli/mod.rs", "extern crate fuser;", "`fuser` belongs in"),
    ("src/main.rs", "fn main() { fuser::mount() }", "`fuser` belongs in"),
    ("src/fuse/threads.rs", "let x = unsafe { y() };", "`unsafe` belongs in"),
    ("src/crypto/kdf.rs", "use aws_lc_rs::hmac;", "`aws_lc_rs` belongs in src/crypto/aead.rs alone"),
    ("src/envelope.rs", "use aes_gcm::Aes256Gcm;", "`aes_gcm` belongs in"),
    ("src/envelope.rs", "let k = ring::aead::K;", "`ring` belongs in"),
    ("src/types.rs", "const A: &[u8] = br#\"\"#; const B: char = '\"'; use crate::cli;", "names `cli`"),
    ("src/types.rs", "fn f<'a>(x: &'a str) -> char { '\\'' } /* /* */ */ use crate::cli;", "names `cli`"),
];

/// Sources that must pass.
const INNOCENT: &[(&str, &str)] = &[
    ("src/store/mod.rs", "use crate::crypto::Key256; use crate::types::StoreId; use crate::store::root;"),
    ("src/table/item.rs", "use super::names; use crate::{envelope, kms::DataKey, sys};"),
    ("src/kms/mod.rs", "mod tests { use super::fuse::X; }"),
    ("src/fs/mod.rs", "// use crate::fuse;\n/* crate::cli:: /* fuser */ unsafe */ const X: &str = \"crate::fuse::\";"),
    ("src/fs/mod.rs", "//! fuser\nconst X: &str = r#\"use crate::mount; \"unsafe\" \"#; pub(crate) fn f() {}"),
    ("src/fs/mod.rs", "const C: &CStr = c\"crate::cli\"; const B: &[u8] = b\"\\\"crate::cli\"; const Q: u8 = b'\\'';"),
    ("src/fuse/mod.rs", "use fuser::Errno; use crate::fs::api; pub(super) fn f() {}"),
    ("src/sys.rs", "// SAFETY: fine\nunsafe { f() }"),
    ("src/lib.rs", "pub mod types; pub use crate::cli::run;"),
    ("src/main.rs", "fn main() { kmsfs::cli::main() }"),
    ("src/envelope.rs", "let ring = 1; let aes = ring; #[expect(unsafe_code)] fn r#type() {}"),
];

#[test]
fn each_offence_is_found_once_at_its_line() {
    for (file, source, expected) in OFFENDERS {
        let found = violations(file, source);
        assert_eq!(found.len(), 1, "{file}: {source}\n{found:?}");
        assert!(found[0].contains(expected), "{file}: {source}\n{found:?}");
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    for (file, source) in INNOCENT {
        assert_eq!(violations(file, source), Vec::<String>::new(), "{file}: {source}");
    }
}
