//! Where results go: standard output, in one of two forms; warnings go to standard error, and a pipe that nobody reads
//! any more is no failure.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use serde_json::Value;

use super::exit::CliError;

/// What a command prints to.
pub struct Output<'a> {
    json: bool,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl std::fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("json", &self.json).finish_non_exhaustive()
    }
}

impl<'a> Output<'a> {
    /// Prints to `out`, warns to `err`.
    pub const fn new(json: bool, out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self { json, out, err }
    }

    /// Whether JSON is asked for.
    #[must_use]
    pub const fn json(&self) -> bool {
        self.json
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        match self.out.write_all(bytes).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(CliError::io("write to", "standard output", error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Some of these bytes, as write(2) has it: whoever writes without end wants to know that nobody reads.
    pub fn write_raw(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.out.flush()?;
        Ok(count)
    }

    /// A line of text.
    pub fn line(&mut self, text: &str) -> Result<(), CliError> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// A JSON document, indented.
    pub fn document(&mut self, value: &Value) -> Result<(), CliError> {
        self.line(&format!("{value:#}"))
    }

    /// What a command did: a line, or `{"Result": ...}`.
    pub fn result(&mut self, text: &str) -> Result<(), CliError> {
        match (self.json, text.is_empty()) {
            (true, _) => self.document(&serde_json::json!({ "Result": text })),
            (false, true) => Ok(()),
            (false, false) => self.line(text),
        }
    }

    /// An object: JSON, or one member a line with its name in front.
    pub fn object(&mut self, value: &Value) -> Result<(), CliError> {
        let Value::Object(members) = value else { return self.document(value) };
        if self.json {
            return self.document(value);
        }
        let width = members.keys().map(String::len).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in members {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:width$}  {}", words(value));
        }
        self.bytes(text.as_bytes())
    }

    /// Objects: a JSON array, or a table with these members as columns.
    pub fn table(&mut self, rows: &[Value], columns: &[&str]) -> Result<(), CliError> {
        if self.json {
            return self.document(&Value::Array(rows.to_vec()));
        }
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| columns.iter().map(|&c| row.get(c).map_or_else(String::new, words)).collect())
            .collect();
        let widths: Vec<usize> = (0..columns.len())
            .map(|i| cells.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &cells {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        self.bytes(text.as_bytes())
    }

    /// A warning; nothing depends on whether it is read.
    pub fn warn(&mut self, text: &str) {
        let _ = writeln!(self.err, "kmsfs: warning: {text}");
    }

    /// The error that ends the command.
    pub fn error(&mut self, error: &CliError) {
        let _ = writeln!(self.err, "kmsfs: {}", printable(&error.to_string()));
    }
}

/// A path for a message.
pub fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

/// Text from elsewhere, without the control characters by which it could write over the terminal; newlines stay.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

fn words(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn printed(json: bool, print: impl FnOnce(&mut Output<'_>) -> Result<(), CliError>) -> String {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        print(&mut Output::new(json, &mut out, &mut err)).unwrap();
        String::from_utf8([out, err].concat()).unwrap()
    }

    #[test]
    fn objects_and_tables_line_up() {
        let key = json!({"Name": "orders", "KeyState": "Enabled", "Grants": null});
        assert_eq!(printed(false, |o| o.object(&key)), "Grants    -\nKeyState  Enabled\nName      orders\n");
        let rows = [json!({"a": "x", "b": 1}), json!({"a": "long", "c": 2})];
        assert_eq!(printed(false, |o| o.table(&rows, &["a", "b"])), "x     1\nlong\n");
    }

    #[test]
    fn json_is_one_document() {
        let rows = [json!({"a": 1}), json!({"a": 2})];
        let text = printed(true, |o| o.table(&rows, &["a"]));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!([{"a": 1}, {"a": 2}]));
        let text = printed(true, |o| o.result("done"));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({"Result": "done"}));
    }

    #[test]
    fn nothing_printed_can_steer_a_terminal() {
        let text = printed(false, |o| o.object(&json!({"Name": "\u{1b}[2Jx"})));
        assert_eq!(text, "Name  \u{fffd}[2Jx\n");
        let text = printed(false, |o| {
            o.error(&CliError::usage("\u{1b}]0;x\u{7}"));
            Ok(())
        });
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'));
    }
}
