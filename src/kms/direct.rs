//! Direct calls: Encrypt, Decrypt, ReEncrypt and GenerateDataKey for bytes that are the caller's own, in an encryption
//! context of his choice, as in AWS KMS. No table is concerned, so that `kms:ViaService` is absent.
//!
//! The order is policy, key state, authentication; each call, done or refused, is in the trail before its answer is
//! given. Plaintext that was opened to be sealed anew stays in here.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::ciphertext::{self, Ciphertext, PLAINTEXT_MOST};
use super::decide::{resource_of, scene, verdict};
use super::key::{Key, KeyNow};
use super::{Kms, KmsError, Subject};
use crate::crypto::{Key256, fill_random};
use crate::policy::Decision;
use crate::types::{Action, EncryptionContext};

/// Bytes that the names and values of an encryption context may have together. Source: AWS KMS Developer Guide,
/// 'Encryption context'.
const CONTEXT_BYTES_MOST: usize = 8192;
/// Bytes that GenerateDataKey gives. Source: AWS KMS API Reference, 'GenerateDataKey', `NumberOfBytes`.
const DATA_KEY_MOST: usize = 1024;

/// A data key that was generated.
#[derive(Debug)]
pub struct GeneratedKey {
    /// None where only the sealed form was asked for.
    pub plaintext: Option<Zeroizing<Vec<u8>>>,
    pub ciphertext: Vec<u8>,
}

/// One call as the trail has it: what AWS calls it, the keys, the contexts by their parameters' names.
#[derive(Debug, Clone)]
pub(super) struct DirectCall<'a> {
    pub(super) event: &'static str,
    pub(super) keys: Vec<&'a Arc<Key>>,
    pub(super) contexts: Vec<(&'static str, &'a EncryptionContext)>,
}

impl<'a> DirectCall<'a> {
    fn of(event: &'static str, key: &'a Arc<Key>, context: &'a EncryptionContext) -> Self {
        Self { event, keys: vec![key], contexts: vec![("encryptionContext", context)] }
    }
}

impl Kms {
    /// kms:Encrypt.
    pub fn encrypt(
        &self,
        who: &Subject<'_>,
        key: &Arc<Key>,
        context: &EncryptionContext,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, KmsError> {
        check_context(context)?;
        check_length(plaintext)?;
        let call = DirectCall::of("Encrypt", key, context);
        self.recorded(who, &call, || {
            let (now, decision) = self.decide_direct(who, key, Action::Encrypt, context)?;
            Ok((self.seal_direct(key, &now, context, plaintext)?, decision))
        })
    }

    /// kms:Decrypt. The key is found from the ciphertext; with `only`, another than that is refused.
    pub fn decrypt_ciphertext(
        &self,
        who: &Subject<'_>,
        only: Option<&Arc<Key>>,
        context: &EncryptionContext,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KmsError> {
        check_context(context)?;
        let ciphertext = parse(ciphertext)?;
        let key = self.key_of(&ciphertext)?;
        if only.is_some_and(|only| only.id() != key.id()) {
            return Err(KmsError::InvalidCiphertext("it was sealed under another key"));
        }
        let call = DirectCall::of("Decrypt", &key, context);
        self.recorded(who, &call, || {
            let (now, decision) = self.decide_direct(who, &key, Action::Decrypt, context)?;
            Ok((open_direct(&now, &ciphertext, context)?, decision))
        })
    }

    /// kms:ReEncryptFrom on the key of the ciphertext and kms:ReEncryptTo on `to`.
    pub fn re_encrypt(
        &self,
        who: &Subject<'_>,
        from_context: &EncryptionContext,
        ciphertext: &[u8],
        to: &Arc<Key>,
        to_context: &EncryptionContext,
    ) -> Result<Vec<u8>, KmsError> {
        check_context(from_context)?;
        check_context(to_context)?;
        let ciphertext = parse(ciphertext)?;
        let from = self.key_of(&ciphertext)?;
        let call = DirectCall {
            event: "ReEncrypt",
            keys: vec![&from, to],
            contexts: vec![("sourceEncryptionContext", from_context), ("destinationEncryptionContext", to_context)],
        };
        self.recorded(who, &call, || {
            let (from_now, decision) = self.decide_direct(who, &from, Action::ReEncryptFrom, from_context)?;
            let (to_now, _) = self.decide_direct(who, to, Action::ReEncryptTo, to_context)?;
            let plaintext = open_direct(&from_now, &ciphertext, from_context)?;
            Ok((self.seal_direct(to, &to_now, to_context, &plaintext)?, decision))
        })
    }

    /// kms:GenerateDataKey, or kms:GenerateDataKeyWithoutPlaintext.
    pub fn generate_data_key(
        &self,
        who: &Subject<'_>,
        key: &Arc<Key>,
        context: &EncryptionContext,
        bytes: usize,
        with_plaintext: bool,
    ) -> Result<GeneratedKey, KmsError> {
        check_context(context)?;
        if !(1..=DATA_KEY_MOST).contains(&bytes) {
            return Err(KmsError::Invalid(format!("a data key has 1 to {DATA_KEY_MOST} bytes")));
        }
        let (event, action) = if with_plaintext {
            ("GenerateDataKey", Action::GenerateDataKey)
        } else {
            ("GenerateDataKeyWithoutPlaintext", Action::GenerateDataKeyWithoutPlaintext)
        };
        self.recorded(who, &DirectCall::of(event, key, context), || {
            let (now, decision) = self.decide_direct(who, key, action, context)?;
            let mut plaintext = Zeroizing::new(vec![0; bytes]);
            fill_random(&mut plaintext)?;
            let ciphertext = self.seal_direct(key, &now, context, &plaintext)?;
            Ok((GeneratedKey { plaintext: with_plaintext.then_some(plaintext), ciphertext }, decision))
        })
    }

    /// Writes to the trail what became of a call, before the caller hears of it.
    fn recorded<T>(
        &self,
        who: &Subject<'_>,
        call: &DirectCall<'_>,
        run: impl FnOnce() -> Result<(T, Decision), KmsError>,
    ) -> Result<T, KmsError> {
        match run() {
            Ok((value, decision)) => {
                self.log_direct(who, call, &decision)?;
                Ok(value)
            }
            Err(error) => {
                self.log_direct_refusal(who, call, &error)?;
                Err(call.keys.iter().fold(error, |error, key| self.told(who, key, error)))
            }
        }
    }

    /// Policy, then state; what comes back is the key as it was when it was decided.
    fn decide_direct(
        &self,
        who: &Subject<'_>,
        key: &Arc<Key>,
        action: Action,
        context: &EncryptionContext,
    ) -> Result<(Arc<KeyNow>, Decision), KmsError> {
        let now = key.now().ok_or(KmsError::Tampered)?;
        if now.is_owned() {
            return Err(KmsError::NotFound);
        }
        let Subject::Caller { principal, .. } = who else {
            return Err(KmsError::Denied { action, why: "a custodian uses no key".to_owned() });
        };
        if key.grants().are_damaged() {
            return Err(KmsError::Tampered);
        }
        let account = self.store_policy()?;
        let resource = resource_of(key, &now);
        let resource: Vec<&str> = resource.iter().map(String::as_str).collect();
        let grants = key.grants().concerning(principal, action, context, self.now());
        let scene = scene(&now, Some(&account), &grants, &resource);
        let decision = self.judge(&scene, principal, action, context, true);
        verdict(&decision, action, now.state())?;
        Ok((now, decision))
    }

    fn seal_direct(
        &self,
        key: &Arc<Key>,
        now: &KeyNow,
        context: &EncryptionContext,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, KmsError> {
        let (version, material) = newest(now)?;
        Ok(ciphertext::seal(self.store_id(), key.id(), (version, material), context, plaintext)?)
    }

    /// The key that a ciphertext names, which nothing vouches for yet.
    fn key_of(&self, ciphertext: &Ciphertext<'_>) -> Result<Arc<Key>, KmsError> {
        if ciphertext.store != self.store_id() {
            return Err(KmsError::InvalidCiphertext("it was sealed by another store, or is damaged"));
        }
        let key = self.key(ciphertext.key).ok().filter(|key| key.now().is_none_or(|now| !now.is_owned()));
        key.ok_or(KmsError::InvalidCiphertext("no key of this store has sealed it, or it is damaged"))
    }
}

fn newest(now: &KeyNow) -> Result<(u32, &Key256), KmsError> {
    now.material.last_key_value().map(|(version, material)| (*version, material)).ok_or(KmsError::Destroyed)
}

fn open_direct(
    now: &KeyNow,
    ciphertext: &Ciphertext<'_>,
    context: &EncryptionContext,
) -> Result<Zeroizing<Vec<u8>>, KmsError> {
    let material = now
        .material
        .get(&ciphertext.material_version)
        .ok_or(KmsError::InvalidCiphertext("it names a version of the key's material that the key does not have"))?;
    ciphertext
        .open(material, context)
        .map_err(|_| KmsError::InvalidCiphertext("it does not verify: another encryption context, or damage"))
}

fn parse(ciphertext: &[u8]) -> Result<Ciphertext<'_>, KmsError> {
    Ciphertext::parse(ciphertext).map_err(KmsError::InvalidCiphertext)
}

fn check_length(plaintext: &[u8]) -> Result<(), KmsError> {
    if plaintext.len() > PLAINTEXT_MOST {
        return Err(KmsError::Invalid(format!(
            "Encrypt takes at most {PLAINTEXT_MOST} bytes: seal more under a data key, as `kmsfs encrypt` does"
        )));
    }
    Ok(())
}

fn check_context(context: &EncryptionContext) -> Result<(), KmsError> {
    let bytes: usize = context.pairs().iter().map(|(name, value)| name.len().saturating_add(value.len())).sum();
    if bytes > CONTEXT_BYTES_MOST {
        return Err(KmsError::Invalid(format!("an encryption context has at most {CONTEXT_BYTES_MOST} bytes")));
    }
    if context.pairs().keys().any(String::is_empty) {
        return Err(KmsError::Invalid("a name in an encryption context must not be empty".to_owned()));
    }
    Ok(())
}
