//! A strict JSON reader (RFC 8259) that knows where each value stands, so that a fault of meaning can be reported at
//! its line and column, and an edit can change one value and leave every other byte.
//!
//! It refuses duplicate members, text after the document, lone surrogates, and nesting beyond 32 levels.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::Range;

use super::error::{PolicyError, PolicyFault};

const DEEPEST: u32 = 32;

/// A place in the text: both count from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pos {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// A value, where it begins, and its bytes in the text.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) pos: Pos,
    pub(super) span: Range<usize>,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// As written.
    Number(String),
    String(String),
    Array(Vec<Node>),
    Object(Vec<Member>),
}

#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) pos: Pos,
    /// The byte at which its name begins.
    pub(super) start: usize,
    pub(super) name: String,
    pub(super) node: Node,
}

impl Node {
    pub(super) fn text(&self) -> Option<&str> {
        if let Value::String(text) = &self.value { Some(text) } else { None }
    }

    pub(super) fn members(&self) -> Option<&[Member]> {
        if let Value::Object(members) = &self.value { Some(members) } else { None }
    }

    pub(super) fn member(&self, name: &str) -> Option<&Member> {
        self.members()?.iter().find(|member| member.name == name)
    }

    /// The elements of an array, or the value itself: what AWS calls 'a value or a list of values'.
    pub(super) fn one_or_many(&self) -> &[Self] {
        if let Value::Array(nodes) = &self.value { nodes } else { std::slice::from_ref(self) }
    }
}

/// Reads a whole document.
pub(super) fn read(text: &str) -> Result<Node, PolicyError> {
    let mut reader = Reader { text, at: 0, pos: Pos { line: 1, column: 1 } };
    reader.skip_space();
    let node = reader.value(0)?;
    reader.skip_space();
    if reader.peek().is_some() { Err(reader.fault(PolicyFault::TrailingText)) } else { Ok(node) }
}

/// Reads the document that `text` begins with and leaves what follows.
pub(super) fn read_first(text: &str) -> Result<Node, PolicyError> {
    let mut reader = Reader { text, at: 0, pos: Pos { line: 1, column: 1 } };
    reader.skip_space();
    reader.value(0)
}

/// A string as JSON writes it.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    pos: Pos,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.at += character.len_utf8();
        if character == '\n' {
            self.pos = Pos { line: self.pos.line + 1, column: 1 };
        } else {
            self.pos.column += 1;
        }
        Some(character)
    }

    fn fault(&self, reason: PolicyFault) -> PolicyError {
        PolicyError::at(self.pos, reason)
    }

    fn expected(&self, expected: &'static str) -> PolicyError {
        match self.peek() {
            Some(found) => self.fault(PolicyFault::Unexpected { found, expected }),
            None => self.fault(PolicyFault::UnexpectedEnd),
        }
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\r' | '\n')) {
            self.bump();
        }
    }

    fn value(&mut self, depth: u32) -> Result<Node, PolicyError> {
        if depth > DEEPEST {
            return Err(self.fault(PolicyFault::TooDeep));
        }
        let (pos, start) = (self.pos, self.at);
        let value = match self.peek() {
            Some('{') => self.object(depth)?,
            Some('[') => self.array(depth)?,
            Some('"') => Value::String(self.string()?),
            Some('-' | '0'..='9') => self.number()?,
            Some('t') => self.word("true", Value::Bool(true))?,
            Some('f') => self.word("false", Value::Bool(false))?,
            Some('n') => self.word("null", Value::Null)?,
            _ => return Err(self.expected("a value")),
        };
        Ok(Node { pos, span: start..self.at, value })
    }

    fn word(&mut self, word: &'static str, value: Value) -> Result<Value, PolicyError> {
        for expected in word.chars() {
            if self.peek() != Some(expected) {
                return Err(self.expected(word));
            }
            self.bump();
        }
        Ok(value)
    }

    fn object(&mut self, depth: u32) -> Result<Value, PolicyError> {
        self.bump();
        let mut members = Vec::new();
        let mut names = BTreeSet::new();
        self.skip_space();
        if self.peek() == Some('}') {
            self.bump();
            return Ok(Value::Object(members));
        }
        loop {
            self.skip_space();
            if self.peek() != Some('"') {
                return Err(self.expected("a member's name in quotes"));
            }
            let (pos, start) = (self.pos, self.at);
            let name = self.string()?;
            if !names.insert(name.clone()) {
                return Err(PolicyError::at(pos, PolicyFault::DuplicateMember(name)));
            }
            self.skip_space();
            if self.peek() != Some(':') {
                return Err(self.expected("':'"));
            }
            self.bump();
            self.skip_space();
            let node = self.value(depth + 1)?;
            members.push(Member { pos, start, name, node });
            self.skip_space();
            match self.peek() {
                Some(',') => self.bump(),
                Some('}') => break,
                _ => return Err(self.expected("',' or '}'")),
            };
        }
        self.bump();
        Ok(Value::Object(members))
    }

    fn array(&mut self, depth: u32) -> Result<Value, PolicyError> {
        self.bump();
        let mut nodes = Vec::new();
        self.skip_space();
        if self.peek() == Some(']') {
            self.bump();
            return Ok(Value::Array(nodes));
        }
        loop {
            self.skip_space();
            nodes.push(self.value(depth + 1)?);
            self.skip_space();
            match self.peek() {
                Some(',') => self.bump(),
                Some(']') => break,
                _ => return Err(self.expected("',' or ']'")),
            };
        }
        self.bump();
        Ok(Value::Array(nodes))
    }

    fn string(&mut self) -> Result<String, PolicyError> {
        self.bump();
        let mut text = String::new();
        loop {
            match self.peek() {
                None => return Err(self.fault(PolicyFault::UnexpectedEnd)),
                Some('"') => break,
                Some('\\') => text.push(self.escape()?),
                Some(c) if c < ' ' => return Err(self.fault(PolicyFault::ControlCharacter)),
                Some(c) => {
                    text.push(c);
                    self.bump();
                }
            }
        }
        self.bump();
        Ok(text)
    }

    fn escape(&mut self) -> Result<char, PolicyError> {
        let invalid = self.fault(PolicyFault::InvalidEscape);
        self.bump();
        let Some(kind) = self.bump() else { return Err(self.fault(PolicyFault::UnexpectedEnd)) };
        Ok(match kind {
            '"' | '\\' | '/' => kind,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let first = self.four_digits(&invalid)?;
                let code = if (0xd800..0xdc00).contains(&first) {
                    if self.bump() != Some('\\') || self.bump() != Some('u') {
                        return Err(self.at_end_or(invalid));
                    }
                    let second = self.four_digits(&invalid)?;
                    if !(0xdc00..0xe000).contains(&second) {
                        return Err(invalid);
                    }
                    0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
                } else {
                    first
                };
                char::from_u32(code).ok_or(invalid)?
            }
            _ => return Err(invalid),
        })
    }

    fn four_digits(&mut self, invalid: &PolicyError) -> Result<u32, PolicyError> {
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|c| c.to_digit(16)) else {
                return Err(self.at_end_or(invalid.clone()));
            };
            self.bump();
            code = code * 16 + digit;
        }
        Ok(code)
    }

    /// A text that stops within an escape is unfinished rather than wrong.
    fn at_end_or(&self, error: PolicyError) -> PolicyError {
        if self.peek().is_none() { self.fault(PolicyFault::UnexpectedEnd) } else { error }
    }

    fn number(&mut self) -> Result<Value, PolicyError> {
        let start = self.at;
        if self.peek() == Some('-') {
            self.bump();
        }
        if self.peek() == Some('0') {
            self.bump();
        } else {
            self.digits()?;
        }
        if self.peek() == Some('.') {
            self.bump();
            self.digits()?;
        }
        if matches!(self.peek(), Some('e' | 'E')) {
            self.bump();
            if matches!(self.peek(), Some('+' | '-')) {
                self.bump();
            }
            self.digits()?;
        }
        if matches!(self.peek(), Some('0'..='9')) {
            return Err(self.fault(PolicyFault::InvalidNumber));
        }
        Ok(Value::Number(self.text.get(start..self.at).unwrap_or_default().to_owned()))
    }

    fn digits(&mut self) -> Result<(), PolicyError> {
        if !matches!(self.peek(), Some('0'..='9')) {
            return Err(self.at_end_or(self.fault(PolicyFault::InvalidNumber)));
        }
        while matches!(self.peek(), Some('0'..='9')) {
            self.bump();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> (u32, u32, PolicyFault) {
        let error = read(text).expect_err(text);
        (error.line, error.column, error.reason)
    }

    #[test]
    fn agrees_with_serde_json_on_what_is_json() {
        let good = [
            "{}",
            " [] ",
            "\"\"",
            "-0.5e+3",
            "0",
            "[1,2.0,-3e2]",
            "true",
            "null",
            "[[[]]]",
            "\t{\"a\" : [1 , {}]}\r\n",
            r#""\ud83d\ude00\n\/""#,
            "\"é€😀\"",
        ];
        let bad = [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "01",
            "-",
            "1.",
            "1e",
            "+1",
            ".5",
            "tru",
            "nul",
            "[1 2]",
            "{1:2}",
            "\"a",
            "\"\u{1}\"",
            r#""\x""#,
            r#""\ud800""#,
            r#""\udc00""#,
            r#""\ud800A""#,
            r#""\u12"#,
            "{} {}",
            "[]x",
            "'a'",
            "\u{feff}{}",
            "{\"a\" 1}",
            "//x\n{}",
            "NaN",
            "\"\\u00g0\"",
        ];
        for text in good {
            assert!(read(text).is_ok(), "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
        }
        for text in bad {
            assert!(read(text).is_err(), "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn tells_line_and_column_in_characters() {
        assert_eq!(fault("{\n  \"é\": 1,\n  \"é\": 2\n}"), (3, 3, PolicyFault::DuplicateMember("é".to_owned())));
        assert_eq!(fault("[\"é\" x]"), (1, 6, PolicyFault::Unexpected { found: 'x', expected: "',' or ']'" }));
        assert_eq!(fault("[1,\n2"), (2, 2, PolicyFault::UnexpectedEnd));
        assert_eq!(fault("{}\n\n {}"), (3, 2, PolicyFault::TrailingText));
        assert_eq!(fault("\"a\tb\""), (1, 3, PolicyFault::ControlCharacter));
    }

    #[test]
    fn deep_nesting_is_refused_before_the_stack_is() {
        let (_, column, reason) = fault(&"[".repeat(30_000));
        assert_eq!((column, reason), (34, PolicyFault::TooDeep));
    }

    #[test]
    fn a_duplicate_that_is_written_with_escapes_is_one() {
        assert_eq!(fault(r#"{"a":1,"\u0061":2}"#).2, PolicyFault::DuplicateMember("a".to_owned()));
    }

    #[test]
    fn a_span_is_the_value_in_the_text() {
        let text = "{ \"a\" : [ 1, \"x\" ] }";
        let node = read(text).unwrap();
        let list = &node.member("a").unwrap().node;
        assert_eq!(text.get(list.span.clone()).unwrap(), "[ 1, \"x\" ]");
        assert_eq!(text.get(list.one_or_many()[1].span.clone()).unwrap(), "\"x\"");
    }

    #[test]
    fn what_is_escaped_reads_back() {
        for text in ["", "a\"b\\c", "\n\t\u{7f}\u{1}", "é😀\u{85}"] {
            assert_eq!(read(&escaped(text)).unwrap().text(), Some(text));
        }
    }
}
