//! Grants made, listed, revoked, retired and run out. Each change is decided, written to the trail, committed and only
//! then put in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::book::{Book, GRANTS_MOST};
use super::record::{Issued, content_of, id_of_shard, read_content};
use super::spec::{Expiry, GrantSpec, bind, invalid};
use crate::crypto::random;
use crate::kms::record::KeyOrigin;
use crate::kms::{Key, Kms, KmsError, Subject};
use crate::policy::{Grant, Grantee};
use crate::store::{Change, RecordKind, TrailHead};
use crate::types::{Action, GrantId, Groups, KeyId, Principal};

/// For how long a grant that has expired is kept: a clock that runs ahead and is set right again has then not ended it.
const KEPT_S: i64 = 7 * 86_400;

/// A key's grants as text, one JSON object a line.
#[derive(Debug)]
pub struct GrantLines {
    key: KeyId,
    now: i64,
    grants: std::vec::IntoIter<Arc<Issued>>,
}

impl Iterator for GrantLines {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        Some(format!("{}\n", self.grants.next()?.description(self.key, self.now)).into_bytes())
    }
}

impl Kms {
    /// Makes grants, all or none; gives their ids in the order of the specs. One that has a name, and says what one of
    /// that name says already, is that one.
    pub fn create_grants(&self, who: &Subject<'_>, key: &Key, specs: &[GrantSpec]) -> Result<Vec<GrantId>, KmsError> {
        let _changing = self.changing();
        let now = key.now().ok_or(KmsError::Tampered)?;
        if now.is_owned() {
            return Err(KmsError::NotFound);
        }
        let by_policy = self.decide_management_with(who, key, Action::CreateGrant, &[]).is_ok();
        if !by_policy {
            // Before any name is looked up.
            self.may_grant(who, key)?;
        }
        let mut ids = Vec::with_capacity(specs.len());
        let mut new: Vec<Arc<Issued>> = Vec::new();
        for spec in specs {
            let mut grant = self.issue(who, spec)?;
            if !by_policy {
                grant.parent = Some(self.parent_of(who, key, &grant)?);
            }
            let same = |other: &&Arc<Issued>| other.says_the_same(&grant);
            let book = key.grants().read();
            let repeated = grant.name.as_deref().and_then(|name| book.named(name).chain(&new).find(same));
            if let Some(repeated) = repeated {
                ids.push(repeated.id);
                continue;
            }
            drop(book);
            ids.push(grant.id);
            new.push(Arc::new(grant));
        }
        if now.record.origin != KeyOrigin::Customer {
            return Err(KmsError::FixedPolicy);
        }
        if new.is_empty() {
            return Ok(ids);
        }
        let shards = place(key, &new)?;
        let head = self.log_grants(who, Action::CreateGrant, key, &new, None)?;
        self.commit_grants(who, key, Action::CreateGrant, &shards, &BTreeSet::new(), head)?;
        Ok(ids)
    }

    /// A grant as it will be, its names bound.
    fn issue(&self, who: &Subject<'_>, spec: &GrantSpec) -> Result<Issued, KmsError> {
        let id = GrantId::from_bytes(random()?);
        let created = self.now();
        let expires = match spec.expires {
            None => None,
            Some(Expiry::At(second)) if second <= created => {
                return Err(invalid("its expiry lies in the past"));
            }
            Some(Expiry::At(second)) => Some(second),
            Some(Expiry::In(seconds)) => Some(created.saturating_add(seconds)),
        };
        let grantee = bind(&spec.grantee)?;
        let rule = Grant {
            id: id.to_string(),
            // INVARIANT: a form that was bound is a form.
            grantee: grantee.grantee().ok_or(KmsError::Tampered)?,
            operations: spec.operations.clone(),
            context_equals: spec.equals.clone(),
            context_subset: spec.subset.clone(),
            expires,
        };
        let retiring = spec.retiring.as_ref().map(bind).transpose()?;
        Ok(Issued { id, name: spec.name.clone(), grantee, retiring, rule, created, creator: who.uid(), parent: None })
    }

    /// The caller's grant by which he may make this one: one with CreateGrant that allows all that the new one does.
    fn parent_of(&self, who: &Subject<'_>, key: &Key, new: &Issued) -> Result<GrantId, KmsError> {
        let Subject::Caller { principal, .. } = who else { return Err(KmsError::Tampered) };
        let own = key.grants().read().of(principal);
        let now = self.now();
        let may_create =
            |grant: &&Arc<Issued>| grant.rule.operations.contains(&Action::CreateGrant) && !grant.has_expired(now);
        let covering = own.iter().filter(may_create).find(|grant| grant.rule.covers(&new.rule));
        let scene: Vec<Grant> = covering.map(|grant| only(&grant.rule, Action::CreateGrant)).into_iter().collect();
        let decided = self.decide_management_with(who, key, Action::CreateGrant, &scene);
        match (decided, covering) {
            (Ok(()), Some(parent)) => Ok(parent.id),
            (Ok(()), None) => Err(KmsError::Tampered),
            (Err(KmsError::Denied { action, .. }), None) if own.iter().any(|grant| may_create(&grant)) => {
                let why =
                    "a grant gives at most what the grant gives by which it is made: operations, constraints, expiry";
                let error = KmsError::Denied { action, why: why.to_owned() };
                self.log_grant_refusal(who, Action::CreateGrant, key, &error)?;
                Err(error)
            }
            (Err(error), _) => {
                self.log_grant_refusal(who, Action::CreateGrant, key, &error)?;
                Err(error)
            }
        }
    }

    /// Whether the caller may make some grant of the key: by the policy, or by a grant of his own.
    pub fn may_grant(&self, who: &Subject<'_>, key: &Key) -> Result<(), KmsError> {
        let own = match who {
            Subject::Caller { principal, .. } => key.grants().read().of(principal),
            Subject::Custodian { .. } => Vec::new(),
        };
        let mut scene: Vec<Grant> = own.iter().map(|grant| only(&grant.rule, Action::CreateGrant)).collect();
        scene.retain(|rule| !rule.operations.is_empty());
        let result = self.decide_management_with(who, key, Action::CreateGrant, &scene);
        if let Err(error) = &result {
            self.log_grant_refusal(who, Action::CreateGrant, key, error)?;
        }
        result
    }

    /// Ends grants: all of them, or none.
    pub fn revoke_grants(&self, who: &Subject<'_>, key: &Key, ids: &[GrantId]) -> Result<(), KmsError> {
        let _changing = self.changing();
        self.check_key(who, key, Action::RevokeGrant)?;
        let gone = ids.iter().map(|id| known(&key.grants().read(), *id)).collect::<Result<Vec<_>, _>>()?;
        self.end_grants(who, key, Action::RevokeGrant, &gone, None)
    }

    /// Ends a grant: by its retiring principal, by its grantee if it has RetireGrant, or by whom the policy allows it.
    pub fn retire_grant(&self, who: &Subject<'_>, key: &Key, id: GrantId) -> Result<(), KmsError> {
        let _changing = self.changing();
        let grant = key.grants().read().get(id).cloned();
        let decided = self.decide_retirement(who, key, grant.as_deref());
        if let Err(error) = &decided {
            self.log_grant_refusal(who, Action::RetireGrant, key, error)?;
        }
        decided?;
        let grant = grant.ok_or(KmsError::NotFound)?;
        self.end_grants(who, key, Action::RetireGrant, &[grant], None)
    }

    /// Whether the caller may retire a grant; no event.
    pub fn may_retire(&self, who: &Subject<'_>, key: &Key, id: GrantId) -> bool {
        let grant = key.grants().read().get(id).cloned();
        grant.is_some_and(|grant| self.decide_retirement(who, key, Some(&grant)).is_ok())
    }

    fn decide_retirement(&self, who: &Subject<'_>, key: &Key, grant: Option<&Issued>) -> Result<(), KmsError> {
        let mut scene = Vec::new();
        if let Some(grant) = grant {
            scene.push(only(&grant.rule, Action::RetireGrant));
            if let Some(retiring) = grant.retiring.as_ref().and_then(super::record::Bound::grantee) {
                let operations = BTreeSet::from([Action::RetireGrant]);
                scene.push(Grant { grantee: retiring, operations, expires: None, ..scene_rule(&grant.rule) });
            }
        }
        self.decide_management_with(who, key, Action::RetireGrant, &scene)
    }

    fn end_grants(
        &self,
        who: &Subject<'_>,
        key: &Key,
        action: Action,
        gone: &[Arc<Issued>],
        note: Option<&str>,
    ) -> Result<(), KmsError> {
        let ids: BTreeSet<GrantId> = gone.iter().map(|grant| grant.id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let head = self.log_grants(who, action, key, gone, note)?;
        self.commit_grants(who, key, action, &BTreeMap::new(), &ids, head)
    }

    /// The grants that a caller may know of, in the order of their ids: all for ListGrants, else those that he may
    /// retire or has been given.
    pub fn visible_grants(&self, who: &Subject<'_>, key: &Key) -> Vec<Arc<Issued>> {
        if self.would_allow(who, key, Action::ListGrants) {
            return key.grants().read().all().cloned().collect();
        }
        let Subject::Caller { principal, .. } = who else { return Vec::new() };
        let book = key.grants().read();
        let own = |grant: &&Arc<Issued>| {
            let retiring = grant.retiring.as_ref().and_then(super::record::Bound::grantee);
            [Some(grant.rule.grantee), retiring].into_iter().flatten().any(|grantee| is(grantee, principal))
        };
        book.all().filter(own).cloned().collect()
    }

    /// One grant, for whoever may know of it; for others there is none.
    pub fn visible_grant(&self, who: &Subject<'_>, key: &Key, id: GrantId) -> Result<Arc<Issued>, KmsError> {
        let grant = key.grants().read().get(id).cloned().ok_or(KmsError::NotFound)?;
        let own = |principal: &Principal| {
            let retiring = grant.retiring.as_ref().and_then(super::record::Bound::grantee);
            [Some(grant.rule.grantee), retiring].into_iter().flatten().any(|grantee| is(grantee, principal))
        };
        let visible = match who {
            Subject::Caller { principal, .. } if own(principal) => true,
            Subject::Caller { .. } | Subject::Custodian { .. } => self.would_allow(who, key, Action::ListGrants),
        };
        if visible { Ok(grant) } else { Err(KmsError::NotFound) }
    }

    /// Those of these grants that are there.
    pub fn grants_by_id(&self, key: &Key, ids: &[GrantId]) -> Vec<Arc<Issued>> {
        let book = key.grants().read();
        ids.iter().filter_map(|id| book.get(*id).cloned()).collect()
    }

    /// What ListGrants answers, a line a grant.
    pub fn grant_lines(&self, who: &Subject<'_>, key: &Key) -> Result<GrantLines, KmsError> {
        self.check_key(who, key, Action::ListGrants)?;
        let grants: Vec<_> = key.grants().read().all().cloned().collect();
        Ok(GrantLines { key: key.id(), now: self.now(), grants: grants.into_iter() })
    }

    /// The same at once.
    pub fn list_grants(&self, who: &Subject<'_>, key: &Key) -> Result<Vec<serde_json::Value>, KmsError> {
        let GrantLines { key, now, grants } = self.grant_lines(who, key)?;
        Ok(grants.map(|grant| grant.description(key, now)).collect())
    }

    /// Lets go of the records of a key's grants that do not verify: what they granted is granted no more, and the key
    /// can be used again.
    pub fn forget_damaged_grants(&self, who: &Subject<'_>, key: &Key) -> Result<usize, KmsError> {
        let _changing = self.changing();
        self.check_key(who, key, Action::RevokeGrant)?;
        let damaged: Vec<[u8; 16]> =
            key.grants().read().damaged().iter().map(|shard| id_of_shard(key.id(), *shard)).collect();
        if damaged.is_empty() {
            return Err(KmsError::Invalid("no record of this key's grants is damaged".to_owned()));
        }
        let name = key.now().map(|now| now.record.name.clone()).unwrap_or_default();
        let note = format!("{} damaged records of grants", damaged.len());
        let head = self.log_management(who, Action::RevokeGrant, key.id(), &name, Some(&note))?;
        let changes: Vec<_> =
            damaged.iter().map(|id| Change { kind: RecordKind::Grant, id: *id, content: None }).collect();
        self.commit_all(who, Action::RevokeGrant.name(), &changes, head)?;
        key.grants().change(Book::forget_damaged);
        key.forget_decisions();
        Ok(damaged.len())
    }

    /// Tells the trail of grants that have run out, and lets go of those that did so long ago. What has expired has no
    /// effect from its second on, whether this runs or not.
    pub fn tend_grants(&self, now: i64) {
        for key in self.keys_with_grants() {
            if let Err(error) = self.tend_grants_of(&key, now) {
                log::error!("grants of key {} that have expired: {error}", key.id());
            }
        }
    }

    fn keys_with_grants(&self) -> Vec<Arc<Key>> {
        self.read().keys.values().filter(|key| key.grants().expire()).cloned().collect()
    }

    fn tend_grants_of(&self, key: &Key, now: i64) -> Result<(), KmsError> {
        for grant in key.grants().change(|book| book.newly_expired(now)) {
            self.log_expired_grant(key, &grant)?;
        }
        if self.trail.is_none() || key.grants().read().expired_by(now - KEPT_S).is_empty() {
            return Ok(());
        }
        let _changing = self.changing();
        let gone = key.grants().read().expired_by(now - KEPT_S);
        self.end_grants(&Self::itself(), key, Action::RevokeGrant, &gone, Some("expired"))
    }

    /// Commits the records that hold new grants, and those that held grants that are gone, and puts that in force.
    fn commit_grants(
        &self,
        who: &Subject<'_>,
        key: &Key,
        action: Action,
        new: &BTreeMap<u32, Vec<Arc<Issued>>>,
        gone: &BTreeSet<GrantId>,
        head: TrailHead,
    ) -> Result<(), KmsError> {
        let contents = {
            let book = key.grants().read();
            let touched: BTreeSet<u32> =
                gone.iter().filter_map(|id| book.shard_of(*id)).chain(new.keys().copied()).collect();
            touched
                .into_iter()
                .map(|shard| content_after(&book, key.id(), shard, new, gone))
                .collect::<Result<Vec<_>, _>>()?
        };
        let changes: Vec<_> = contents
            .iter()
            .map(|(id, content)| Change {
                kind: RecordKind::Grant,
                id: *id,
                content: content.as_ref().map(|c| c.as_slice()),
            })
            .collect();
        self.commit_all(who, action.name(), &changes, head)?;
        key.grants().change(|book| {
            for id in gone {
                book.remove(*id);
            }
            for (shard, grants) in new {
                for grant in grants {
                    book.insert(*shard, Arc::clone(grant));
                }
            }
        });
        key.forget_decisions();
        Ok(())
    }

    fn log_grant_refusal(
        &self,
        who: &Subject<'_>,
        action: Action,
        key: &Key,
        error: &KmsError,
    ) -> Result<(), KmsError> {
        let name = key.now().map(|now| now.record.name.clone()).unwrap_or_default();
        self.log_refusal(who, action, Some(key.id()), &name, error)
    }

    /// Reads a record of a key's grants.
    pub(in crate::kms) fn load_grants(&self, key: &Key, id: [u8; 16]) -> Result<(), KmsError> {
        let (_, shard) = super::key_prefix(&id);
        let now = self.now();
        let read = self.store.read_record(RecordKind::Grant, id).map_err(KmsError::from);
        let grants = read.and_then(|content| read_content(key.id(), &content));
        key.grants().change(|book| {
            book.tell_from(now);
            match grants {
                Ok(grants) if id == id_of_shard(key.id(), shard) => {
                    for grant in grants {
                        book.insert(shard, Arc::new(grant));
                    }
                    Ok(())
                }
                Ok(_) | Err(_) => {
                    book.note_damaged(shard);
                    Err(KmsError::Tampered)
                }
            }
        })
    }
}

/// Which records new grants go into.
fn place(key: &Key, new: &[Arc<Issued>]) -> Result<BTreeMap<u32, Vec<Arc<Issued>>>, KmsError> {
    let book = key.grants().read();
    if book.len().saturating_add(new.len()) > GRANTS_MOST {
        return Err(invalid(&format!("a key has at most {GRANTS_MOST} grants")));
    }
    let mut planned = BTreeMap::new();
    let mut shards: BTreeMap<u32, Vec<Arc<Issued>>> = BTreeMap::new();
    for grant in new {
        let weight = grant.weight();
        let shard = book.place(weight, &planned);
        let there: &mut (usize, usize) = planned.entry(shard).or_default();
        *there = (there.0 + 1, there.1 + weight);
        shards.entry(shard).or_default().push(Arc::clone(grant));
    }
    Ok(shards)
}

type Content = ([u8; 16], Option<zeroize::Zeroizing<Vec<u8>>>);

/// What a record holds after a change; nothing, where it goes.
fn content_after(
    book: &Book,
    key: KeyId,
    shard: u32,
    new: &BTreeMap<u32, Vec<Arc<Issued>>>,
    gone: &BTreeSet<GrantId>,
) -> Result<Content, KmsError> {
    let added = new.get(&shard).into_iter().flatten();
    let mut grants = book.in_shard(shard).filter(|grant| !gone.contains(&grant.id)).chain(added).peekable();
    let content = if grants.peek().is_none() { None } else { Some(content_of(key, grants.map(Arc::as_ref))?) };
    Ok((id_of_shard(key, shard), content))
}

/// A grant as far as it gives this one operation, which has no context to test.
fn only(rule: &Grant, action: Action) -> Grant {
    let mut operations = rule.operations.clone();
    operations.retain(|other| *other == action);
    Grant { operations, ..scene_rule(rule) }
}

fn scene_rule(rule: &Grant) -> Grant {
    Grant { context_equals: None, context_subset: None, ..rule.clone() }
}

fn known(book: &Book, id: GrantId) -> Result<Arc<Issued>, KmsError> {
    book.get(id).cloned().ok_or(KmsError::NotFound)
}

/// Whether the grantee is this caller, as far as his groups are known.
fn is(grantee: Grantee, principal: &Principal) -> bool {
    match (grantee, &principal.groups) {
        (Grantee::Uid(uid), _) => uid == principal.uid,
        (Grantee::Gid(gid), Groups::Known(groups)) => gid == principal.gid || groups.contains(&gid),
        (Grantee::Gid(_), Groups::Unknown) => false,
    }
}
