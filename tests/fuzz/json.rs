//! Random changes of a JSON document that leave it one: what a parser of records or policies must look at twice.

use serde_json::{Map, Value};

use super::mutate::Dice;

/// Changes the document that `bytes` are, if they are one; `others` are where names and values are taken from.
pub(crate) fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>, others: &[Vec<u8>]) -> bool {
    let Ok(mut document) = serde_json::from_slice::<Value>(bytes) else { return false };
    let other = others.get(dice.below(others.len())).and_then(|other| serde_json::from_slice::<Value>(other).ok());
    let other = other.unwrap_or_else(|| document.clone());
    for _ in 0..=usize::from(dice.below(3) == 0) {
        let mut at = dice.below(count(&document));
        if let Some(node) = nth(&mut document, &mut at) {
            change(dice, node, &other);
        }
    }
    *bytes = serde_json::to_vec(&document).unwrap();
    true
}

/// Values in a document, itself among them.
fn count(document: &Value) -> usize {
    1 + match document {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

fn nth<'a>(document: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(document);
    }
    *at -= 1;
    match document {
        Value::Array(list) => list.iter_mut().find_map(|child| nth(child, at)),
        Value::Object(members) => members.values_mut().find_map(|child| nth(child, at)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// Any value of a document.
fn value_of(dice: &mut Dice, document: &Value) -> Value {
    let mut at = dice.below(count(document));
    nth(&mut document.clone(), &mut at).map(Value::take).unwrap_or_default()
}

/// The name of any member of a document.
fn name_of(dice: &mut Dice, document: &Value) -> String {
    fn collect(document: &Value, names: &mut Vec<String>) {
        match document {
            Value::Array(list) => list.iter().for_each(|child| collect(child, names)),
            Value::Object(members) => members.iter().for_each(|(name, child)| {
                names.push(name.clone());
                collect(child, names);
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut names = vec![String::new()];
    collect(document, &mut names);
    dice.pick(&names).clone()
}

fn change(dice: &mut Dice, node: &mut Value, other: &Value) {
    match (dice.below(12), &mut *node) {
        (0, _) => *node = value_of(dice, other),
        (1, _) => *node = extreme(dice),
        (2, _) => *node = Value::Array(vec![node.take()]),
        (_, Value::Array(list)) => change_list(dice, list, other),
        (_, Value::Object(members)) => change_members(dice, members, other),
        (_, Value::String(text)) => change_text(dice, text),
        (_, Value::Number(_)) => *node = dice.edge().into(),
        (_, Value::Bool(value)) => *value = !*value,
        (_, Value::Null) => *node = extreme(dice),
    }
}

fn extreme(dice: &mut Dice) -> Value {
    match dice.below(9) {
        0 => Value::Null,
        1 => true.into(),
        2 => dice.edge().into(),
        3 => (-1).into(),
        4 => 1e300.into(),
        5 => "".into(),
        6 => "x".repeat(dice.below(300)).into(),
        7 => Value::Array(Vec::new()),
        _ => Value::Object(Map::new()),
    }
}

fn change_list(dice: &mut Dice, list: &mut Vec<Value>, other: &Value) {
    let at = dice.below(list.len());
    match dice.below(5) {
        0 if !list.is_empty() => drop(list.remove(at)),
        1 if !list.is_empty() => {
            let (again, times) = (list[at].clone(), 1 + dice.below(5));
            list.splice(at..at, std::iter::repeat_n(again, times));
        }
        2 if !list.is_empty() => {
            let to = dice.below(list.len());
            list.swap(at, to);
        }
        3 => list.clear(),
        _ => list.insert(at, value_of(dice, other)),
    }
}

fn change_members(dice: &mut Dice, members: &mut Map<String, Value>, other: &Value) {
    let names: Vec<String> = members.keys().cloned().collect();
    let new = name_of(dice, other);
    if names.is_empty() || dice.below(3) == 0 {
        members.insert(new, value_of(dice, other));
        return;
    }
    let old = members.remove(dice.pick(&names)).unwrap_or_default();
    if dice.below(2) == 0 {
        members.insert(new, old);
    }
}

fn change_text(dice: &mut Dice, text: &mut String) {
    const PIECES: [&str; 16] =
        ["*", "?", "${", "}", ":", "/", "\0", "\u{fffd}", "é", "\u{1f600}", "0", "a", "F", " ", "\"", "\\"];
    let characters: Vec<char> = text.chars().collect();
    let at = dice.below(characters.len() + 1);
    let (before, after) = characters.split_at(at);
    let (before, after): (String, String) = (before.iter().collect(), after.iter().collect());
    *text = match dice.below(5) {
        0 => before,
        1 => format!("{before}{}{after}", dice.pick(&PIECES)),
        2 => format!("{before}{before}{after}"),
        3 => format!("{before}{}{}", dice.pick(&PIECES), after.chars().skip(1).collect::<String>()),
        _ => format!("{before}{}{after}", dice.edge()),
    };
}

#[test]
fn documents_stay_documents_and_change() {
    let mut dice = Dice(5);
    let start = br#"{"a":[1,"x",{"b":null}],"c":true}"#.to_vec();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..300 {
        let mut bytes = start.clone();
        assert!(mutate(&mut dice, &mut bytes, std::slice::from_ref(&start)));
        serde_json::from_slice::<Value>(&bytes).unwrap();
        seen.insert(bytes);
    }
    assert!(seen.len() > 150, "{}", seen.len());
    assert!(!mutate(&mut dice, &mut b"{".to_vec(), &[]));
}
