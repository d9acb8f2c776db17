//! What the key service writes to the audit trail, before anybody hears of it.
//!
//! A read-only mount writes nothing to its store, the trail included: its events go to the daemon's log.

use std::sync::Arc;

use super::decide::ItemAsked;
use super::direct::DirectCall;
use super::grant::Issued;
use super::key::Decided;
use super::record::hex;
use super::{Key, Kms, KmsError, Subject, Table};
use crate::audit::{Event, Events, OpenedItem, TrailReader, UserIdentity};
use crate::crypto::sha256;
use crate::policy::Decision;
use crate::store::TrailHead;
use crate::sys;
use crate::types::{Action, EncryptionContext, KeyId, TableId, text_of_path_in};

/// What an event holds of an item's path: in JSON a byte may become six, and an event has 64 KiB.
const PATH_BYTES_MOST: usize = 4096;

/// What an event holds of a context that a caller gives, as JSON.
const CONTEXT_BYTES_MOST: usize = 2048;

/// How much is told of a caller: reading /proc costs more than the open of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detail {
    Plain,
    WithProcess,
}

impl Kms {
    /// An open that decrypts.
    pub(super) fn log_decrypt(
        &self,
        who: &Subject<'_>,
        item: &ItemAsked<'_>,
        decided: &Decided,
    ) -> Result<(), KmsError> {
        let path = (item.path)();
        if let (Subject::Caller { principal, tid }, Some(trail)) = (who, &self.trail)
            && path.len() <= PATH_BYTES_MOST
            && let Some(now) = item.table.key().now()
        {
            let (table, user_name) = (item.table.record(), self.user_name(principal.uid));
            return Ok(trail.append_opened(&OpenedItem {
                uid: principal.uid,
                gid: principal.gid,
                pid: *tid,
                user_name: user_name.as_deref(),
                key: (item.table.key().id_text(), &now.record.name),
                table: (item.table.id_text(), &table.name),
                item: &text_of_path_in(&path),
                decided_by: &decided.reason,
            })?);
        }
        let event = self.item_event(who, item, Action::Decrypt, Detail::Plain);
        self.append(&event.detail("decidedBy", decided.reason.clone()), false)
    }

    pub(super) fn log_denial(
        &self,
        who: &Subject<'_>,
        item: &ItemAsked<'_>,
        action: Action,
        error: &KmsError,
    ) -> Result<(), KmsError> {
        let event = self.item_event(who, item, action, Detail::WithProcess);
        self.append(&event.error(code_of(error), error.to_string()), false)
    }

    fn item_event(&self, who: &Subject<'_>, item: &ItemAsked<'_>, action: Action, detail: Detail) -> Event {
        let key = item.table.key();
        let name = key.now().map(|now| now.record.name.clone());
        let path = (item.path)();
        let event = Event::new(short(action), self.identity(who, detail));
        // An event has an end, a path has none; what cannot be written would not be done, nor refused on record.
        let event = match path.get(..PATH_BYTES_MOST).filter(|start| start.len() < path.len()) {
            None => event.context(&EncryptionContext::of_item(&item.table.name(), &path)),
            Some(start) => event
                .context(&EncryptionContext::of_item(&item.table.name(), start))
                .detail("itemPathLength", path.len().to_string())
                .detail("itemPathSha256", hex(&sha256(&path))),
        };
        event.resource("kmsfs::Key", Some(key.id().to_string()), name).resource(
            "kmsfs::Table",
            Some(item.table.id().to_string()),
            Some(item.table.name()),
        )
    }

    /// A direct call that was decided and done, and is about to be answered.
    pub(super) fn log_direct(
        &self,
        who: &Subject<'_>,
        call: &DirectCall<'_>,
        decision: &Decision,
    ) -> Result<(), KmsError> {
        let event = self.direct_event(who, call, Detail::Plain);
        self.append(&event.detail("decidedBy", decision.reason.to_string()), false)
    }

    pub(super) fn log_direct_refusal(
        &self,
        who: &Subject<'_>,
        call: &DirectCall<'_>,
        error: &KmsError,
    ) -> Result<(), KmsError> {
        let event = self.direct_event(who, call, Detail::WithProcess);
        self.append(&event.error(code_of(error), error.to_string()), false)
    }

    fn direct_event(&self, who: &Subject<'_>, call: &DirectCall<'_>, detail: Detail) -> Event {
        let event = Event::new(call.event, self.identity(who, detail));
        let event = call.keys.iter().fold(event, |event, key| {
            let name = key.now().map(|now| now.record.name.clone());
            event.resource("kmsfs::Key", Some(key.id().to_string()), name)
        });
        call.contexts.iter().fold(event, |event, (name, context)| event.parameter(name, told_of(context)))
    }

    /// A change of a key that is about to be made.
    pub(super) fn log_management(
        &self,
        who: &Subject<'_>,
        action: Action,
        key: KeyId,
        name: &str,
        detail: Option<&str>,
    ) -> Result<TrailHead, KmsError> {
        self.log_key_change(who, short(action), key, name, detail)
    }

    /// The same for what AWS has no action of its own for.
    pub(super) fn log_key_change(
        &self,
        who: &Subject<'_>,
        event_name: &str,
        key: KeyId,
        name: &str,
        detail: Option<&str>,
    ) -> Result<TrailHead, KmsError> {
        let mut event = Event::new(event_name, self.identity(who, Detail::WithProcess)).resource(
            "kmsfs::Key",
            Some(key.to_string()),
            Some(name.to_owned()),
        );
        if let Some(detail) = detail {
            event = event.detail("note", detail);
        }
        self.append_and_sync(&with_reason(event, who))
    }

    /// What the daemon is about to do to a key by itself. `details` are members of the event's additional data.
    pub(super) fn log_own_management(
        &self,
        name: &str,
        key: KeyId,
        key_name: &str,
        details: &[(&str, String)],
    ) -> Result<TrailHead, KmsError> {
        let event = Event::new(name, daemon()).resource("kmsfs::Key", Some(key.to_string()), Some(key_name.to_owned()));
        self.append_and_sync(&with_details(event, details))
    }

    /// Grants that are about to be made or ended, an event each.
    pub(super) fn log_grants(
        &self,
        who: &Subject<'_>,
        action: Action,
        key: &Key,
        grants: &[Arc<Issued>],
        note: Option<&str>,
    ) -> Result<TrailHead, KmsError> {
        for grant in grants {
            let event =
                self.grant_event(Event::new(short(action), self.identity(who, Detail::WithProcess)), key, grant);
            let event = note.map_or_else(|| event.clone(), |note| event.clone().detail("note", note));
            // What a mere grantee does must not use up the trail's reserve.
            let urgent = action != Action::CreateGrant || grant.parent().is_none();
            self.append(&with_reason(event, who), urgent)?;
        }
        match &self.trail {
            Some(trail) => Ok(trail.sync()?),
            None => Err(KmsError::ReadOnly),
        }
    }

    /// A grant that has run out.
    pub(super) fn log_expired_grant(&self, key: &Key, grant: &Issued) -> Result<(), KmsError> {
        self.append(&self.grant_event(Event::new("ExpireGrant", daemon()), key, grant), true)
    }

    fn grant_event(&self, mut event: Event, key: &Key, grant: &Issued) -> Event {
        let name = key.now().map(|now| now.record.name.clone());
        // What is null, the grant does not have; whose it is, the event's resources say.
        if let serde_json::Value::Object(members) = grant.description(key.id(), self.now()) {
            let wanted = |name: &str| !matches!(name, "KeyId" | "GrantId" | "CreationDate" | "Creator" | "Expired");
            for (name, value) in members.into_iter().filter(|(name, value)| wanted(name) && !value.is_null()) {
                event = event.parameter(&camel(&name), value);
            }
        }
        event.resource("kmsfs::Key", Some(key.id().to_string()), name).resource(
            "kmsfs::Grant",
            Some(grant.id().to_string()),
            None,
        )
    }

    /// A change of the store's own policy that is about to be made.
    pub(super) fn log_store(&self, who: &Subject<'_>, action: Action) -> Result<TrailHead, KmsError> {
        self.log_store_with(who, action, &[])
    }

    /// The same, or of the store itself, with members of the event's additional data.
    pub(super) fn log_store_with(
        &self,
        who: &Subject<'_>,
        action: Action,
        details: &[(&str, String)],
    ) -> Result<TrailHead, KmsError> {
        let event = Event::new(short(action), self.identity(who, Detail::WithProcess));
        self.append_and_sync(&with_reason(with_details(event, details), who))
    }

    /// A table that is about to be made or removed.
    pub(super) fn log_table(
        &self,
        who: &Subject<'_>,
        event_name: &str,
        table: TableId,
        name: &str,
    ) -> Result<TrailHead, KmsError> {
        let event = Event::new(event_name, self.identity(who, Detail::WithProcess)).resource(
            "kmsfs::Table",
            Some(table.to_string()),
            Some(name.to_owned()),
        );
        self.append_and_sync(&with_reason(event, who))
    }

    /// A change of a table that is about to be made.
    pub(super) fn log_table_change(
        &self,
        who: &Subject<'_>,
        event_name: &str,
        table: &Table,
        parameters: &[(&str, serde_json::Value)],
    ) -> Result<TrailHead, KmsError> {
        let event = table_event(Event::new(event_name, self.identity(who, Detail::WithProcess)), table, parameters);
        self.append_and_sync(&with_reason(event, who))
    }

    /// A change of a table that the daemon makes, at an order that the trail has.
    pub(super) fn log_table_by_itself(
        &self,
        event_name: &str,
        table: &Table,
        parameters: &[(&str, serde_json::Value)],
    ) -> Result<TrailHead, KmsError> {
        self.append_and_sync(&table_event(Event::new(event_name, daemon()), table, parameters))
    }

    /// A change that was announced and could not be made.
    pub(super) fn log_failure(&self, who: &Subject<'_>, event_name: &str, error: &KmsError) {
        let event = Event::new(event_name, self.identity(who, Detail::Plain)).error(code_of(error), error.to_string());
        if let Err(second) = self.append(&event, true) {
            log::error!("{event_name} failed ({error}), and the trail does not take that: {second}");
        }
    }

    /// A management call that was refused.
    pub(super) fn log_refusal(
        &self,
        who: &Subject<'_>,
        action: Action,
        key: Option<KeyId>,
        name: &str,
        error: &KmsError,
    ) -> Result<(), KmsError> {
        let mut event = Event::new(short(action), self.identity(who, Detail::WithProcess));
        if let Some(key) = key {
            event = event.resource("kmsfs::Key", Some(key.to_string()), Some(name.to_owned()));
        }
        self.append(&event.error(code_of(error), error.to_string()), false)
    }

    /// Something in the store that does not verify.
    pub fn log_tampering(&self, what: &str) -> Result<(), KmsError> {
        self.log_daemon("TamperingFound", what)
    }

    /// Something that the daemon did or found by itself: a mount, an unmount, what an unclean stop has left.
    pub fn log_daemon(&self, name: &str, what: &str) -> Result<(), KmsError> {
        self.append(&Event::new(name, daemon()).detail("what", what), true)
    }

    /// Something that a store's custodian does to the store itself: its unlock slots, its anchor.
    pub fn log_custodian(&self, name: &str, reason: &str, what: &str) -> Result<(), KmsError> {
        let who = Subject::Custodian { uid: rustix::process::geteuid().as_raw(), reason };
        let event = Event::new(name, self.identity(&who, Detail::Plain)).detail("what", what);
        self.append_and_sync(&with_reason(event, &who)).map(|_| ())
    }

    fn identity(&self, who: &Subject<'_>, detail: Detail) -> UserIdentity {
        match who {
            Subject::Caller { principal, tid } => {
                let mut identity = UserIdentity::unix(principal.uid, principal.gid, *tid);
                identity.user_name = self.user_name(principal.uid).map(|name| name.to_string());
                if detail == Detail::WithProcess && *tid != 0 {
                    identity.login_uid = sys::login_uid(*tid).ok().flatten();
                    identity.executable = sys::executable(*tid).ok().map(|path| path.display().to_string());
                }
                identity
            }
            Subject::Custodian { uid, .. } => {
                let mut identity = UserIdentity::custodian(*uid, 0, std::process::id());
                identity.user_name = self.user_name(*uid).map(|name| name.to_string());
                identity
            }
        }
    }

    fn append(&self, event: &Event, urgent: bool) -> Result<(), KmsError> {
        match &self.trail {
            Some(trail) if urgent => Ok(trail.append_urgent(event)?),
            Some(trail) => Ok(trail.append(event)?),
            None => {
                log::info!(target: "kmsfs::audit", "{} by uid {}", event.event_name, event.user_identity.uid);
                Ok(())
            }
        }
    }

    /// Makes an event durable: the head that comes back may be anchored with the change that it tells of.
    fn append_and_sync(&self, event: &Event) -> Result<TrailHead, KmsError> {
        self.append(event, true)?;
        match &self.trail {
            Some(trail) => Ok(trail.sync()?),
            None => Err(KmsError::ReadOnly),
        }
    }

    /// The whole trail up to now, one event a line.
    pub fn trail_lines(&self) -> Result<TrailLines, KmsError> {
        let trail = self.trail.as_ref().ok_or(KmsError::ReadOnly)?;
        Ok(TrailLines(trail.reader()?.into_events()?))
    }

    /// `ok: ...`, or what is wrong with the trail, a fault a line.
    pub fn verify_trail(&self) -> Result<String, KmsError> {
        let trail = self.trail.as_ref().ok_or(KmsError::ReadOnly)?;
        let report = trail.verify(self.store.trail_head())?;
        if report.is_sound() {
            return Ok(format!("ok: {} records in {} segments\n", report.records, report.segments));
        }
        Ok(report.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n") + "\n")
    }
}

/// The trail's events as text, each with its line feed. What does not verify is left out, and said in the log.
#[derive(Debug)]
pub struct TrailLines(Events<Box<TrailReader>>);

impl Iterator for TrailLines {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.0.next()? {
                Ok(recorded) => {
                    // INVARIANT: what was read from JSON can be written as JSON.
                    let mut line = serde_json::to_vec(&recorded.event).ok()?;
                    line.push(b'\n');
                    return Some(line);
                }
                Err(fault) => log::warn!("the audit trail does not verify: {fault}"),
            }
        }
    }
}

/// A context is the caller's own words: what is long stands in the trail by its length and digest.
fn told_of(context: &EncryptionContext) -> serde_json::Value {
    let pairs = serde_json::json!(context.pairs());
    let text = pairs.to_string();
    if text.len() <= CONTEXT_BYTES_MOST {
        return pairs;
    }
    serde_json::json!({ "kmsfs:length": text.len().to_string(), "kmsfs:sha256": hex(&sha256(text.as_bytes())) })
}

fn daemon() -> UserIdentity {
    UserIdentity::daemon(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw(), std::process::id())
}

fn with_details(event: Event, details: &[(&str, String)]) -> Event {
    details.iter().fold(event, |event, (name, value)| event.detail(name, value.as_str()))
}

fn table_event(event: Event, table: &Table, parameters: &[(&str, serde_json::Value)]) -> Event {
    let key = table.key();
    let key_name = key.now().map(|now| now.record.name.clone());
    let event = event.resource("kmsfs::Table", Some(table.id().to_string()), Some(table.name())).resource(
        "kmsfs::Key",
        Some(key.id().to_string()),
        key_name,
    );
    parameters.iter().fold(event, |event, (name, value)| event.parameter(name, value.clone()))
}

fn with_reason(event: Event, who: &Subject<'_>) -> Event {
    match who {
        Subject::Caller { .. } => event,
        Subject::Custodian { reason, .. } => event.parameter("reason", *reason),
    }
}

/// CloudTrail's names of parameters begin small.
fn camel(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
}

/// CloudTrail's event names have no prefix.
fn short(action: Action) -> &'static str {
    action.name().split_once(':').map_or(action.name(), |(_, name)| name)
}

/// CloudTrail's error codes for AWS KMS, where there is one.
fn code_of(error: &KmsError) -> &'static str {
    match error {
        KmsError::Denied { .. } | KmsError::FixedPolicy => "AccessDenied",
        KmsError::KeyRevoked(_) | KmsError::InvalidState { .. } => "KMSInvalidStateException",
        KmsError::Destroyed | KmsError::NotFound => "NotFoundException",
        KmsError::Exists => "AlreadyExistsException",
        KmsError::Policy(_) | KmsError::UnknownName { .. } | KmsError::LockOut | KmsError::Edit(_) => {
            "MalformedPolicyDocumentException"
        }
        KmsError::BadName(_) | KmsError::NameTooLong | KmsError::Invalid(_) => "ValidationException",
        KmsError::InvalidCiphertext(_) => "InvalidCiphertextException",
        KmsError::Outdated(_) => "ConflictException",
        KmsError::Tampered => "TamperingFound",
        KmsError::ReadOnly | KmsError::Store(_) | KmsError::Audit(_) | KmsError::Crypto(_) | KmsError::Io(_) => {
            "KMSInternalException"
        }
    }
}
