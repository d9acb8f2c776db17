//! One event, in the field names of AWS CloudTrail ('CloudTrail record contents'), so that what reads those reads
//! these. No event ever holds a key or an item's plaintext.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::types::EncryptionContext;

const VERSION: &str = "1.0";
const SOURCE: &str = "kmsfs";
const UNIX_USER: &str = "UnixUser";

/// What is written to the trail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub event_version: String,
    /// ISO 8601, UTC, milliseconds.
    pub event_time: String,
    pub event_source: String,
    /// The action's name as AWS KMS has it, without its prefix, or one of kmsfs's own.
    pub event_name: String,
    pub user_identity: UserIdentity,
    /// Absent: it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub request_parameters: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<Resource>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub additional_event_data: Map<String, Value>,
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserIdentity {
    /// `UnixUser`: through a mount. `Custodian`: offline, with the root of trust. `Daemon`: kmsfs itself.
    pub r#type: String,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_name: Option<String>,
    /// The uid that logged in, which su and sudo leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
}

impl UserIdentity {
    /// A caller of a mount.
    #[must_use]
    pub fn unix(uid: u32, gid: u32, pid: u32) -> Self {
        Self::of(UNIX_USER, uid, gid, pid)
    }

    /// Somebody who holds the root of trust and works on the store itself.
    #[must_use]
    pub fn custodian(uid: u32, gid: u32, pid: u32) -> Self {
        Self::of("Custodian", uid, gid, pid)
    }

    /// The daemon, on its own account.
    #[must_use]
    pub fn daemon(uid: u32, gid: u32, pid: u32) -> Self {
        Self::of("Daemon", uid, gid, pid)
    }

    fn of(r#type: &str, uid: u32, gid: u32, pid: u32) -> Self {
        Self { r#type: r#type.to_owned(), uid, gid, pid, user_name: None, login_uid: None, executable: None }
    }
}

/// What it was done to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// `kmsfs::Key`, `kmsfs::Table`, `kmsfs::Item` and the like.
    pub r#type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Event {
    /// An event that has just happened.
    #[must_use]
    pub fn new(name: &str, user_identity: UserIdentity) -> Self {
        Self {
            event_version: VERSION.to_owned(),
            event_time: format_time(SystemTime::now()),
            event_source: SOURCE.to_owned(),
            event_name: name.to_owned(),
            user_identity,
            error_code: None,
            error_message: None,
            request_parameters: Map::new(),
            resources: Vec::new(),
            additional_event_data: Map::new(),
        }
    }

    #[must_use]
    pub fn at(mut self, time: SystemTime) -> Self {
        self.event_time = format_time(time);
        self
    }

    /// It was refused, or it failed: `AccessDenied` and the like. Such events are coalesced when they flood.
    #[must_use]
    pub fn error(mut self, code: &str, message: impl Into<String>) -> Self {
        self.error_code = Some(code.to_owned());
        self.error_message = Some(message.into());
        self
    }

    #[must_use]
    pub fn resource(mut self, r#type: &str, id: Option<String>, name: Option<String>) -> Self {
        self.resources.push(Resource { r#type: r#type.to_owned(), id, name });
        self
    }

    #[must_use]
    pub fn context(self, context: &EncryptionContext) -> Self {
        let pairs = context.pairs().iter().map(|(key, value)| (key.clone(), Value::from(value.clone())));
        let pairs: Map<String, Value> = pairs.collect();
        self.parameter("encryptionContext", pairs)
    }

    #[must_use]
    pub fn parameter(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.request_parameters.insert(name.to_owned(), value.into());
        self
    }

    /// What is neither asked for nor acted on, but worth knowing.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.additional_event_data.insert(name.to_owned(), value.into());
        self
    }
}

/// An open that decrypts, told from where its parts stand. Most opens are followed by nothing that costs more than their
/// record, so that this one is written without an [`Event`] being made first; its text is the same.
#[derive(Debug, Clone, Copy)]
pub struct OpenedItem<'a> {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub user_name: Option<&'a str>,
    /// Id and name, as of the table.
    pub key: (&'a str, &'a str),
    pub table: (&'a str, &'a str),
    /// The path inside the table.
    pub item: &'a str,
    pub decided_by: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OpenedText<'a> {
    event_version: &'a str,
    event_time: &'a str,
    event_source: &'a str,
    event_name: &'a str,
    user_identity: IdentityText<'a>,
    request_parameters: ParametersText<'a>,
    resources: [ResourceText<'a>; 2],
    additional_event_data: DataText<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IdentityText<'a> {
    r#type: &'a str,
    uid: u32,
    gid: u32,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ParametersText<'a> {
    encryption_context: ContextText<'a>,
}

#[derive(Serialize)]
struct ContextText<'a> {
    #[serde(rename = "kmsfs:item")]
    item: &'a str,
    #[serde(rename = "kmsfs:table")]
    table: &'a str,
}

#[derive(Serialize)]
struct ResourceText<'a> {
    r#type: &'a str,
    id: &'a str,
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DataText<'a> {
    decided_by: &'a str,
}

impl OpenedItem<'_> {
    /// Appends the event's text.
    pub(super) fn write_to(&self, time: SystemTime, text: &mut Vec<u8>) {
        let resource = |r#type, (id, name)| ResourceText { r#type, id, name };
        let time = TimeText::of(time);
        let event = OpenedText {
            event_version: VERSION,
            event_time: time.as_str(),
            event_source: SOURCE,
            event_name: "Decrypt",
            user_identity: IdentityText {
                r#type: UNIX_USER,
                uid: self.uid,
                gid: self.gid,
                pid: self.pid,
                user_name: self.user_name,
            },
            request_parameters: ParametersText {
                encryption_context: ContextText { item: self.item, table: self.table.1 },
            },
            resources: [resource("kmsfs::Key", self.key), resource("kmsfs::Table", self.table)],
            additional_event_data: DataText { decided_by: self.decided_by },
        };
        // Writing to a Vec cannot fail, and strings and numbers are always JSON.
        let _ = serde_json::to_writer(text, &event);
    }
}

/// A time as ISO 8601 in UTC with milliseconds: `2026-01-31T23:59:59.000Z`. What lies before 1970 is 1970.
#[must_use]
pub fn format_time(time: SystemTime) -> String {
    TimeText::of(time).as_str().to_owned()
}

/// The text of a time, made without an allocation.
struct TimeText([u8; 36], usize);

impl TimeText {
    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second_of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
        let mut text = Self([0; 36], 0);
        text.number(year, (year.checked_ilog10().unwrap_or(0) + 1).max(4));
        let parts = [(b'-', month, 2), (b'-', day, 2), (b'T', hour, 2), (b':', minute, 2), (b':', second, 2)];
        for (before, number, digits) in parts.into_iter().chain([(b'.', since.subsec_millis().into(), 3)]) {
            text.push(before);
            text.number(number, digits);
        }
        text.push(b'Z');
        text
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.0.get_mut(self.1) {
            *place = byte;
            self.1 += 1;
        }
    }

    fn number(&mut self, number: u64, digits: u32) {
        for power in (0..digits).rev() {
            self.push(b'0' + u8::try_from(number / 10_u64.pow(power) % 10).unwrap_or_default());
        }
    }

    fn as_str(&self) -> &str {
        // INVARIANT: digits and signs of ASCII.
        self.0.get(..self.1).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
    }
}

/// Year, month and day, of a number of days since 1970-01-01 in the Gregorian calendar: years are counted from March,
/// so that the leap day comes last, in cycles of 400 years of 146,097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days / 146_097, days % 146_097);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (cycle * 400 + year_of_cycle + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Against `date -u -d @N +%FT%T`.
    #[test]
    fn times_are_those_of_date() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799, "9999-12-31T23:59:59.000Z"),
            (253_402_300_800, "10000-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(format_time(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        assert_eq!(format_time(UNIX_EPOCH + Duration::from_millis(1)), "1970-01-01T00:00:00.001Z");
        assert_eq!(format_time(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn the_text_of_an_open_is_that_of_its_event() {
        for (user_name, item) in [(Some("alice"), "a/b \"c\"\n\u{fffd}ff"), (None, "")] {
            let time = UNIX_EPOCH + Duration::from_millis(1_735_689_599_123);
            let opened = OpenedItem {
                uid: 1001,
                gid: 100,
                pid: 7,
                user_name,
                key: ("6b", "key of \\orders"),
                table: ("74", "orders"),
                item,
                decided_by: "Key users (statement 2 of the key policy)",
            };
            let mut identity = UserIdentity::unix(opened.uid, opened.gid, opened.pid);
            identity.user_name = user_name.map(ToOwned::to_owned);
            let resource = |(id, name): (&str, &str)| (Some(id.to_owned()), Some(name.to_owned()));
            let ((key, key_name), (table, table_name)) = (resource(opened.key), resource(opened.table));
            let event = Event::new("Decrypt", identity)
                .at(time)
                .parameter("encryptionContext", serde_json::json!({"kmsfs:item": item, "kmsfs:table": opened.table.1}))
                .resource("kmsfs::Key", key, key_name)
                .resource("kmsfs::Table", table, table_name)
                .detail("decidedBy", opened.decided_by);
            let mut text = b"before".to_vec();
            opened.write_to(time, &mut text);
            let expected = serde_json::to_string(&event).unwrap();
            assert_eq!(std::str::from_utf8(&text).unwrap(), format!("before{expected}"));
        }
    }

    #[test]
    fn fields_have_cloudtrails_names() {
        let context = EncryptionContext::of_item("orders", b"1001");
        let event = Event::new("Decrypt", UserIdentity::unix(1001, 100, 7))
            .at(UNIX_EPOCH)
            .error("AccessDenied", "no statement allows it")
            .context(&context)
            .resource("kmsfs::Key", Some("ab".to_owned()), Some("orders".to_owned()))
            .detail("count", 3);
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(
            json,
            r#"{"eventVersion":"1.0","eventTime":"1970-01-01T00:00:00.000Z","eventSource":"kmsfs","#.to_owned()
                + r#""eventName":"Decrypt","userIdentity":{"type":"UnixUser","uid":1001,"gid":100,"pid":7},"#
                + r#""errorCode":"AccessDenied","errorMessage":"no statement allows it","#
                + r#""requestParameters":{"encryptionContext":{"kmsfs:item":"1001","kmsfs:table":"orders"}},"#
                + r#""resources":[{"type":"kmsfs::Key","id":"ab","name":"orders"}],"#
                + r#""additionalEventData":{"count":3}}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }
}
