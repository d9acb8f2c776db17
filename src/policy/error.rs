//! Why a document is refused, and where.

use std::fmt;

use super::json::Pos;

/// A refusal of a policy document at a place in it.
///
/// Lines and columns count from 1; a column counts characters, not bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    pub line: u32,
    pub column: u32,
    pub reason: PolicyFault,
}

impl PolicyError {
    pub(super) const fn at(pos: Pos, reason: PolicyFault) -> Self {
        Self { line: pos.line, column: pos.column, reason }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.reason)
    }
}

impl std::error::Error for PolicyError {}

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyFault {
    // JSON (RFC 8259)
    TooLong,
    NotUtf8,
    UnexpectedEnd,
    Unexpected { found: char, expected: &'static str },
    ControlCharacter,
    InvalidEscape,
    InvalidNumber,
    TooDeep,
    DuplicateMember(String),
    TrailingText,
    // The shape of a policy
    WrongType { what: String, expected: &'static str },
    UnknownMember { name: String, within: &'static str, nearest: Option<&'static str> },
    MissingMember { name: &'static str, within: &'static str },
    Exclusive { first: &'static str, second: &'static str },
    Empty(String),
    UnknownVersion(String),
    UnknownEffect(String),
    InvalidSid,
    DuplicateSid(String),
    // Its words
    UnknownAction { name: String, nearest: Option<&'static str> },
    UnknownPrincipalType { name: String, nearest: Option<&'static str> },
    InvalidPrincipal { text: String, expected: &'static str },
    InvalidResource(String),
    UnknownOperator { name: String, nearest: Option<&'static str> },
    UnknownConditionKey { name: String, nearest: Option<&'static str> },
    DuplicateConditionKey(String),
    UnsuitedOperator { operator: String, key: String },
    InvalidValue { text: String, expected: &'static str },
    UnknownVariable(String),
}

impl fmt::Display for PolicyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => f.write_str("a policy has at most 32768 bytes"),
            Self::NotUtf8 => f.write_str("not UTF-8"),
            Self::UnexpectedEnd => f.write_str("the document ends too early"),
            Self::Unexpected { found, expected } => write!(f, "expected {expected}, found {found:?}"),
            Self::ControlCharacter => f.write_str("a control character in a string must be escaped"),
            Self::InvalidEscape => f.write_str("invalid escape in a string"),
            Self::InvalidNumber => f.write_str("invalid number"),
            Self::TooDeep => f.write_str("nested too deep"),
            Self::DuplicateMember(name) => write!(f, "duplicate member {}", quote(name)),
            Self::TrailingText => f.write_str("text after the end of the document"),
            Self::WrongType { what, expected } => write!(f, "{} must be {expected}", quote(what)),
            Self::UnknownMember { name, within, nearest } => {
                write!(f, "unknown member {} in {within}{}", quote(name), hint(*nearest))
            }
            Self::MissingMember { name, within } => write!(f, "{within} needs {name:?}"),
            Self::Exclusive { first, second } => write!(f, "{first:?} and {second:?} exclude each other"),
            Self::Empty(what) => write!(f, "{} is empty", quote(what)),
            Self::UnknownVersion(text) => {
                write!(f, "unknown version {}: \"2012-10-17\" or \"2008-10-17\"", quote(text))
            }
            Self::UnknownEffect(text) => write!(f, "unknown effect {}: \"Allow\" or \"Deny\"", quote(text)),
            Self::InvalidSid => f.write_str("a Sid has 1 to 128 characters and no control character"),
            Self::DuplicateSid(sid) => write!(f, "two statements have the Sid {}", quote(sid)),
            Self::UnknownAction { name, nearest } => write!(f, "unknown action {}{}", quote(name), hint(*nearest)),
            Self::UnknownPrincipalType { name, nearest } => {
                write!(f, "unknown kind of principal {}{}", quote(name), hint(*nearest))
            }
            Self::InvalidPrincipal { text, expected } => write!(f, "principal {}: {expected}", quote(text)),
            Self::InvalidResource(text) => {
                write!(f, "resource {} is neither \"*\" nor an ARN of kms or kmsfs", quote(text))
            }
            Self::UnknownOperator { name, nearest } => {
                write!(f, "unknown condition operator {}{}", quote(name), hint(*nearest))
            }
            Self::UnknownConditionKey { name, nearest } => {
                write!(f, "unknown condition key {}{}", quote(name), hint(*nearest))
            }
            Self::DuplicateConditionKey(name) => write!(f, "condition key {} stands twice", quote(name)),
            Self::UnsuitedOperator { operator, key } => {
                write!(f, "the operator {} does not suit the condition key {}", quote(operator), quote(key))
            }
            Self::InvalidValue { text, expected } => write!(f, "value {} is not {expected}", quote(text)),
            Self::UnknownVariable(name) => write!(f, "unknown policy variable {}", quote(name)),
        }
    }
}

/// Quoted, escaped and cut: the text comes from the document and goes to a terminal.
fn quote(text: &str) -> String {
    const LONGEST: usize = 120;
    let cut: String = text.chars().take(LONGEST).collect();
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("{cut:?}{more}")
}

fn hint(nearest: Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean {name:?}?"))
}

/// The candidate that `name` is most likely a misspelling of: at most two edits away, letter case apart.
pub(super) fn nearest(name: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    const FARTHEST: usize = 2;
    const LONGEST: usize = 64;
    let name: Vec<char> = name.to_lowercase().chars().collect();
    if name.len() > LONGEST {
        return None;
    }
    candidates
        .map(|candidate| (edits(&name, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= FARTHEST && distance * 2 < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, one row at a time.
fn edits(from: &[char], to: &str) -> usize {
    let mut row: Vec<usize> = (0..=from.len()).collect();
    for (y, target) in to.chars().enumerate() {
        let mut left = y + 1;
        let mut next = Vec::with_capacity(row.len());
        next.push(left);
        for (source, pair) in from.iter().zip(row.windows(2)) {
            let &[diagonal, above] = pair else { continue };
            left = (diagonal + usize::from(*source != target)).min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_is_recognised_and_a_stranger_is_not() {
        let names = || ["kms:Decrypt", "kms:Encrypt", "Sid"].into_iter();
        assert_eq!(nearest("kms:Decyrpt", names()), Some("kms:Decrypt"));
        assert_eq!(nearest("KMS:ENCRYPT", names()), Some("kms:Encrypt"));
        assert_eq!(nearest("s3:GetObject", names()), None);
        assert_eq!(nearest("xyz", names()), None);
    }

    #[test]
    fn text_from_the_document_cannot_steer_a_terminal() {
        assert_eq!(quote("a\u{1b}[2Jb"), "\"a\\u{1b}[2Jb\"");
        assert!(quote(&"x".repeat(500)).len() < 140);
    }
}
