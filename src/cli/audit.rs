//! `kmsfs audit`: the trail's events, chosen and printed, and the answer of its check.

use std::io::{BufRead, BufReader};
use std::path::Path;

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::args::{AuditCommand, AuditShowArgs};
use super::control::Control;
use super::exit::{CliError, Exit};
use super::output::{Output, printable};
use super::principal::identity;
use crate::policy::PForm;

/// Runs an audit command through the control tree.
pub(super) fn run(control: &Control, command: &AuditCommand, output: &mut Output<'_>) -> Result<Exit, CliError> {
    match command {
        AuditCommand::Show(args) => {
            let trail = Path::new("audit/trail.jsonl");
            show(&mut BufReader::new(control.open(trail)?), args, output)?;
            Ok(Exit::Done)
        }
        AuditCommand::Verify => {
            let answer = control.read(Path::new("audit/verify"))?;
            verified(String::from_utf8_lossy(&answer).trim_end(), output)
        }
    }
}

/// Prints what a check found: `ok: …` is [`Exit::Done`], all else [`Exit::Integrity`].
pub(super) fn verified(finding: &str, output: &mut Output<'_>) -> Result<Exit, CliError> {
    let finding = printable(finding);
    let (exit, intact) = if finding.starts_with("ok:") { (Exit::Done, true) } else { (Exit::Integrity, false) };
    if output.json() {
        output.document(&json!({ "Intact": intact, "Finding": finding }))?;
    } else {
        output.line(&finding)?;
    }
    Ok(exit)
}

/// Prints the chosen events of a trail: one JSON object a line, the form in which the trail has them, with `--json` and
/// without.
pub(super) fn show(trail: &mut dyn BufRead, args: &AuditShowArgs, output: &mut Output<'_>) -> Result<(), CliError> {
    let path = Path::new("the trail");
    let user = match &args.user {
        Some(PForm::Group(_) | PForm::Gid(_)) => {
            return Err(CliError::usage("--user takes a user name or uid:N"));
        }
        other => other.as_ref(),
    };
    let mut chosen: VecDeque<String> = VecDeque::new();
    for line in trail.lines() {
        let line = line.map_err(|error| CliError::io("read", path, error))?;
        let event: Value =
            serde_json::from_str(&line).map_err(|source| CliError::Malformed { path: path.to_owned(), source })?;
        if !chooses(args, user, &event) {
            continue;
        }
        if args.last.is_none() {
            output.line(&printable(&line))?;
            continue;
        }
        chosen.push_back(line);
        if args.last.is_some_and(|last| chosen.len() > last) {
            chosen.pop_front();
        }
    }
    chosen.iter().try_for_each(|line| output.line(&printable(line)))
}

fn chooses(args: &AuditShowArgs, user: Option<&PForm>, event: &Value) -> bool {
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    let by_event = args.events.is_empty()
        || text("eventName").is_some_and(|name| args.events.iter().any(|e| e.eq_ignore_ascii_case(name)));
    let by_time = args.since.as_deref().is_none_or(|since| text("eventTime").is_some_and(|time| time >= since));
    let by_denial = !args.denied || text("errorCode").is_some();
    let by_user = user.is_none_or(|user| acted(user, event));
    let by_resource = args.resource.as_deref().is_none_or(|resource| concerns(resource, event));
    by_event && by_time && by_denial && by_user && by_resource
}

/// Whether the user did it: by uid, where this host knows one for the name, else by the name in the trail.
fn acted(user: &PForm, event: &Value) -> bool {
    let doer = event.get("userIdentity");
    let uid = doer.and_then(|i| i.get("uid")).and_then(Value::as_u64);
    match (user, identity(user).and_then(|found| found.uid)) {
        (_, Some(wanted)) => uid == Some(u64::from(wanted)),
        (PForm::User(name), None) => {
            doer.and_then(|i| i.get("userName")).and_then(Value::as_str) == Some(name.as_str())
        }
        (PForm::Uid(_) | PForm::Group(_) | PForm::Gid(_), None) => false,
    }
}

/// Whether the event names a key, a table or an item (`TABLE/ITEM`), in its resources or its encryption context.
fn concerns(resource: &str, event: &Value) -> bool {
    let listed = event.get("resources").and_then(Value::as_array).is_some_and(|resources| {
        resources.iter().any(|r| ["name", "id"].iter().any(|m| r.get(m).and_then(Value::as_str) == Some(resource)))
    });
    let context = event.get("requestParameters").and_then(|p| p.get("encryptionContext"));
    let member = |name: &str| context.and_then(|c| c.get(name)).and_then(Value::as_str);
    let in_context = member("kmsfs:table").is_some_and(|table| match resource.strip_prefix(table) {
        Some("") => true,
        Some(rest) => rest.strip_prefix('/').is_some_and(|item| member("kmsfs:item") == Some(item)),
        None => false,
    });
    listed || in_context
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAIL: &str = r#"{"eventTime":"2026-03-01T10:00:00Z","eventName":"CreateKey","userIdentity":{"uid":0},"resources":[{"type":"key","id":"00","name":"orders"}]}
{"eventTime":"2026-03-02T10:00:00Z","eventName":"Decrypt","userIdentity":{"uid":4000000001,"userName":"gone"},"requestParameters":{"encryptionContext":{"kmsfs:table":"orders","kmsfs:item":"a/1"}}}
{"eventTime":"2026-03-03T10:00:00Z","eventName":"Decrypt","errorCode":"AccessDenied","userIdentity":{"uid":4000000001},"requestParameters":{"encryptionContext":{"kmsfs:table":"orders","kmsfs:item":"2"}}}
"#;

    fn days(args: &AuditShowArgs) -> Vec<String> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        show(&mut TRAIL.as_bytes(), args, &mut Output::new(false, &mut out, &mut err)).unwrap();
        let lines = String::from_utf8(out).unwrap();
        lines
            .lines()
            .map(|l| {
                serde_json::from_str::<Value>(l).unwrap()["eventTime"].as_str().unwrap().get(8..10).unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn each_filter_chooses_what_it_names() {
        let all = AuditShowArgs::default();
        assert_eq!(days(&all), ["01", "02", "03"]);
        assert_eq!(days(&AuditShowArgs { events: vec!["decrypt".to_owned()], ..all.clone() }), ["02", "03"]);
        assert_eq!(days(&AuditShowArgs { denied: true, ..all.clone() }), ["03"]);
        assert_eq!(days(&AuditShowArgs { since: Some("2026-03-02".to_owned()), ..all.clone() }), ["02", "03"]);
        assert_eq!(days(&AuditShowArgs { last: Some(1), ..all.clone() }), ["03"]);
        let user = |text: &str| days(&AuditShowArgs { user: Some(text.parse().unwrap()), ..all.clone() });
        assert_eq!(user("uid:4000000001"), ["02", "03"]);
        assert_eq!(user("root"), ["01"]);
        assert_eq!(user("gone"), ["02"]);
        let resource = |text: &str| days(&AuditShowArgs { resource: Some(text.to_owned()), ..all.clone() });
        assert_eq!(resource("orders"), ["01", "02", "03"]);
        assert_eq!(resource("orders/a/1"), ["02"]);
        assert_eq!(resource("orders/a"), [""; 0]);
        assert_eq!(resource("order"), [""; 0]);
    }

    #[test]
    fn only_ok_is_intact() {
        let check = |finding: &str| {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            verified(finding, &mut Output::new(false, &mut out, &mut err)).unwrap()
        };
        assert_eq!(check("ok: 12 events"), Exit::Done);
        for bad in ["", "broken at event 7", "not ok: x"] {
            assert_eq!(check(bad), Exit::Integrity);
        }
    }
}
