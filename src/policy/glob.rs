//! Text patterns with `*`, `?` and policy variables.
//!
//! What a variable stands for is plain text: a user whose name is `*` matches only himself.

use std::borrow::Cow;
use std::cell::Cell;

use super::error::PolicyFault;
use super::truth::Truth;

/// The policy language, by the document's `Version`. Source: IAM User Guide, 'IAM JSON policy elements: Version'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    /// `2008-10-17`, also where no version is given: `${...}` is plain text.
    V2008,
    /// `2012-10-17`: policy variables.
    V2012,
}

/// How a pattern reads its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// `*` and `?` are plain.
    Exact,
    /// `*` and `?` are plain, letter case does not count.
    Folded,
    /// `*` is any text, `?` any one character.
    Wild,
}

/// What variables stand for, and the work that is left to spend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variables<'a> {
    pub(super) uid: u32,
    /// Unknown where nobody could tell.
    pub(super) username: Option<&'a str>,
    pub(super) budget: &'a Budget,
}

/// How many steps of matching one decision may take: a pattern of many `*` against a long text would else let the
/// author of one policy keep the process busy. What cannot be matched within it is unknown.
#[derive(Debug)]
pub(super) struct Budget(Cell<u32>);

impl Budget {
    /// Tens of milliseconds at worst; a thousand patterns over the longest path that the kernel takes.
    const STEPS: u32 = 1 << 22;

    pub(super) const fn new() -> Self {
        Self(Cell::new(Self::STEPS))
    }

    fn spend(&self) -> Option<()> {
        self.0.set(self.0.get().checked_sub(1)?);
        Some(())
    }
}

/// Letter case taken away, one character at a time, so that equal texts stay equal wherever they stand (a word's last
/// sigma is lowered otherwise than one inside).
pub(super) fn folded(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Character(char),
    One,
    Many,
    Username,
    Uid,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    elements: Vec<Element>,
    is_folded: bool,
}

impl Pattern {
    pub(super) fn parse(text: &str, language: Language, style: Style) -> Result<Self, PolicyFault> {
        let is_folded = style == Style::Folded;
        let text = if is_folded { Cow::Owned(folded(text)) } else { Cow::Borrowed(text) };
        let mut elements = Vec::with_capacity(text.len());
        let mut rest = text.as_ref();
        while let Some(character) = rest.chars().next() {
            if language == Language::V2012
                && let Some(after) = rest.strip_prefix("${")
            {
                let (name, after) =
                    after.split_once('}').ok_or_else(|| PolicyFault::UnknownVariable(rest.to_owned()))?;
                elements.push(variable(name)?);
                rest = after;
                continue;
            }
            elements.push(match character {
                '*' if style == Style::Wild => Element::Many,
                '?' if style == Style::Wild => Element::One,
                plain => Element::Character(plain),
            });
            rest = rest.get(character.len_utf8()..).unwrap_or_default();
        }
        Ok(Self { elements, is_folded })
    }

    /// Everything matches.
    pub(super) fn any() -> Self {
        Self { elements: vec![Element::Many], is_folded: false }
    }

    pub(super) fn uses_username(&self) -> bool {
        self.elements.contains(&Element::Username)
    }

    /// Whether the pattern could only ever match decimal digits.
    pub(super) fn is_numeric(&self) -> bool {
        !self.elements.is_empty()
            && self.elements.iter().all(|element| match element {
                Element::Character(c) => c.is_ascii_digit(),
                Element::One | Element::Many | Element::Uid => true,
                Element::Username => false,
            })
    }

    fn ends_in_many(&self) -> bool {
        self.elements.last() == Some(&Element::Many)
    }

    /// The six fields of an ARN, the last with whatever colons it has. One that stops early, in `*`, has `*` for the
    /// fields that are left.
    pub(super) fn arn_fields(self) -> Option<Vec<Self>> {
        const FIELDS: usize = 6;
        let is_folded = self.is_folded;
        let mut fields: Vec<Self> = self
            .elements
            .splitn(FIELDS, |element| *element == Element::Character(':'))
            .map(|elements| Self { elements: elements.to_vec(), is_folded })
            .collect();
        if fields.len() < FIELDS {
            if !fields.last().is_some_and(Self::ends_in_many) {
                return None;
            }
            fields.resize_with(FIELDS, Self::any);
        }
        Some(fields)
    }

    /// Unknown where the pattern has a variable that nobody knows, or the budget is spent.
    pub(super) fn matches(&self, text: &str, variables: &Variables<'_>) -> Truth {
        let Some(elements) = self.expanded(variables) else { return Truth::Unknown };
        let text = if self.is_folded { Cow::Owned(folded(text)) } else { Cow::Borrowed(text) };
        glob(&elements, &text, variables.budget).map_or(Truth::Unknown, Truth::from)
    }

    fn expanded(&self, variables: &Variables<'_>) -> Option<Cow<'_, [Element]>> {
        if !self.elements.iter().any(|element| matches!(element, Element::Username | Element::Uid)) {
            return Some(Cow::Borrowed(&self.elements));
        }
        let mut elements = Vec::with_capacity(self.elements.len() + 32);
        for element in &self.elements {
            match element {
                Element::Username => {
                    let name = variables.username?;
                    let name = if self.is_folded { folded(name) } else { name.to_owned() };
                    elements.extend(name.chars().map(Element::Character));
                }
                Element::Uid => elements.extend(variables.uid.to_string().chars().map(Element::Character)),
                Element::Character(_) | Element::One | Element::Many => elements.push(*element),
            }
        }
        Some(Cow::Owned(elements))
    }
}

/// Source: IAM User Guide, 'IAM policy elements: Variables and tags'. `${kmsfs:Uid}` is our own.
fn variable(name: &str) -> Result<Element, PolicyFault> {
    match name {
        "*" => Ok(Element::Character('*')),
        "?" => Ok(Element::Character('?')),
        "$" => Ok(Element::Character('$')),
        _ if name.eq_ignore_ascii_case("aws:username") => Ok(Element::Username),
        _ if name.eq_ignore_ascii_case("kmsfs:Uid") => Ok(Element::Uid),
        _ => Err(PolicyFault::UnknownVariable(format!("${{{name}}}"))),
    }
}

/// Walks both once, going back only to the last `*`. None where the budget is spent.
fn glob(pattern: &[Element], text: &str, budget: &Budget) -> Option<bool> {
    let mut pattern = pattern.iter();
    let mut text = text.chars();
    let mut retry = None;
    loop {
        budget.spend()?;
        let (mut next_pattern, mut next_text) = (pattern.clone(), text.clone());
        match (next_pattern.next(), next_text.next()) {
            (None, None) => return Some(true),
            (Some(Element::Many), _) => {
                pattern = next_pattern;
                retry = Some((pattern.clone(), text.clone()));
            }
            (Some(_), None) => return Some(false),
            (Some(element), Some(character))
                if matches!(element, Element::One) || *element == Element::Character(character) =>
            {
                pattern = next_pattern;
                text = next_text;
            }
            _ => {
                let Some((from, rest)) = retry.as_mut() else { return Some(false) };
                if rest.next().is_none() {
                    return Some(false);
                }
                pattern = from.clone();
                text = rest.clone();
            }
        }
    }
}

/// `*` and `?` over plain text, without variables: for names that are no secret, such as those of actions.
pub(super) fn wild(pattern: &str, text: &str) -> bool {
    let elements: Vec<Element> = pattern
        .chars()
        .map(|character| match character {
            '*' => Element::Many,
            '?' => Element::One,
            plain => Element::Character(plain),
        })
        .collect();
    glob(&elements, text, &Budget::new()).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(pattern: &Pattern, text: &str, username: Option<&str>) -> Truth {
        pattern.matches(text, &Variables { uid: 1001, username, budget: &Budget::new() })
    }

    fn matches(pattern: &str, style: Style, text: &str) -> Truth {
        known(&Pattern::parse(pattern, Language::V2012, style).unwrap(), text, Some("alice"))
    }

    #[test]
    fn wildcards_match_what_they_say() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "a/b", true),
            ("?", "", false),
            ("?", "é", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("*.json", "x.json.json", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("a?c*", "abc", true),
            ("**", "x", true),
            ("*?", "", false),
            ("?*?", "a", false),
            ("?*?", "ab", true),
        ] {
            assert_eq!(wild(pattern, text), expected, "{pattern} {text}");
            assert_eq!(matches(pattern, Style::Wild, text), Truth::from(expected), "{pattern} {text}");
        }
    }

    #[test]
    fn only_a_wild_pattern_has_wildcards() {
        assert_eq!(matches("a*", Style::Exact, "ab"), Truth::No);
        assert_eq!(matches("a*", Style::Exact, "a*"), Truth::Yes);
        assert_eq!(matches("A?", Style::Folded, "a?"), Truth::Yes);
        assert_eq!(matches("${*}${?}${$}", Style::Wild, "*?$"), Truth::Yes);
        assert_eq!(matches("${*}", Style::Wild, "x"), Truth::No);
    }

    #[test]
    fn a_variable_is_plain_text() {
        assert_eq!(matches("home/${aws:username}/*", Style::Wild, "home/alice/x"), Truth::Yes);
        assert_eq!(matches("${AWS:UserName}-${kmsfs:Uid}", Style::Exact, "alice-1001"), Truth::Yes);
        assert_eq!(matches("${aws:username}", Style::Folded, "ALICE"), Truth::Yes);
        let pattern = Pattern::parse("home/${aws:username}/*", Language::V2012, Style::Wild).unwrap();
        assert_eq!(known(&pattern, "home/alice/x", Some("*")), Truth::No);
        assert_eq!(known(&pattern, "home/*/x", Some("*")), Truth::Yes);
        assert_eq!(known(&pattern, "home/alice/x", None), Truth::Unknown);
    }

    #[test]
    fn the_old_language_has_no_variables() {
        let pattern = Pattern::parse("${aws:username}", Language::V2008, Style::Exact).unwrap();
        assert_eq!(known(&pattern, "${aws:username}", Some("alice")), Truth::Yes);
        assert_eq!(known(&pattern, "alice", Some("alice")), Truth::No);
        for unknown in ["${aws:userid}", "${", "${aws:username", "${}"] {
            assert!(Pattern::parse(unknown, Language::V2012, Style::Wild).is_err(), "{unknown}");
        }
    }

    #[test]
    fn letter_case_goes_wherever_a_letter_stands() {
        assert_eq!(matches("ΟΔΟΣ", Style::Folded, "οδοσ"), Truth::Yes);
        assert_eq!(matches("ΟΔΟΣ", Style::Folded, "ΟΔΟΣ"), Truth::Yes);
        let pattern = Pattern::parse("${aws:username}x", Language::V2012, Style::Folded).unwrap();
        assert_eq!(known(&pattern, "ΣX", Some("Σ")), Truth::Yes);
    }

    #[test]
    fn work_without_end_is_cut_short_and_unknown() {
        let pattern = |text: &str| Pattern::parse(text, Language::V2012, Style::Wild).unwrap();
        let (costly, cheap) = (pattern(&format!("*{}b", "a".repeat(3000))), pattern("*.json"));
        let text = "a".repeat(8000);
        assert_eq!(known(&costly, &text, None), Truth::Unknown);
        // What one match has spent, the next one lacks.
        let budget = Budget::new();
        let variables = Variables { uid: 1, username: None, budget: &budget };
        assert_eq!(cheap.matches("x.json", &variables), Truth::Yes);
        assert_eq!(costly.matches(&text, &variables), Truth::Unknown);
        assert_eq!(cheap.matches("x.json", &variables), Truth::Unknown);
        // Many patterns of the usual kind over a long path are no trouble.
        let budget = Budget::new();
        let variables = Variables { uid: 1, username: None, budget: &budget };
        let path = format!("{}.json", "a/".repeat(2000));
        for _ in 0..400 {
            assert_eq!(cheap.matches(&path, &variables), Truth::Yes);
        }
    }

    #[test]
    fn an_arn_has_six_fields() {
        let fields = |text: &str| Pattern::parse(text, Language::V2012, Style::Wild).unwrap().arn_fields();
        assert_eq!(fields("arn:aws:iam::1:user/${aws:username}").unwrap().len(), 6);
        assert_eq!(fields("a:b:c:d:e:f:g:h").unwrap().len(), 6);
        assert_eq!(fields("*").unwrap(), vec![Pattern::any(); 6]);
        assert!(fields("arn:aws:kms").is_none());
    }
}
