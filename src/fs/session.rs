//! A store made ready to be served: journal replayed, trail open, keys loaded, in this order.

use std::fmt;
use std::sync::Arc;

use super::api::FsError;
use super::{FileSystem, Options};
use crate::audit::{AuditError, Trail};
use crate::crypto::Key256;
use crate::kms::{Kms, KmsError};
use crate::store::{Journal, JournalError, Replayed, Store, StoreError};
use crate::table::Mounts;

/// Why a store cannot be served.
#[derive(Debug)]
pub enum SessionError {
    Store(StoreError),
    Journal(JournalError),
    Audit(AuditError),
    Kms(KmsError),
    Fs(FsError),
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Journal(error) => error.fmt(f),
            Self::Audit(error) => error.fmt(f),
            Self::Kms(error) => error.fmt(f),
            Self::Fs(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SessionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Journal(error) => Some(error),
            Self::Audit(error) => Some(error),
            Self::Kms(error) => Some(error),
            Self::Fs(error) => Some(error),
        }
    }
}

macro_rules! from_lower {
    ($($variant:ident($error:ty)),* $(,)?) => {$(
        impl From<$error> for SessionError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}

from_lower!(Store(StoreError), Journal(JournalError), Audit(AuditError), Kms(KmsError), Fs(FsError));

impl FileSystem {
    /// Makes a store ready to be served. A writable one begins a mount epoch; what it finds on the way, in the journal,
    /// the trail and the records, goes to the trail and the log.
    pub fn open(store: Store, options: Options) -> Result<Self, SessionError> {
        let store = Arc::new(store);
        Kms::clock_of(&store)?;
        if options.read_only {
            return Self::open_read_only(store, options);
        }
        let epoch = store.begin_epoch(store.trail_head())?;
        let unclean = store.unclean_epochs();
        let (trail, found) = open_trail(&store)?;
        let key = journal_key(&store)?;
        let (journal, replayed) =
            Journal::open(&store.root_dir(), key, store.id(), epoch, |epoch| store.unclean_epoch(epoch))?;
        let (kms, _) = Kms::open(Arc::clone(&store), Some(Arc::new(trail)))?;
        kms.log_daemon("Mount", &format!("epoch {epoch}"))?;
        for found in store.events() {
            log::warn!("{found}");
            kms.log_daemon("StoreFound", &found.to_string())?;
        }
        for found in found {
            log::warn!("the audit trail: {found}");
            kms.log_daemon("TrailFound", &found.to_string())?;
        }
        if replayed != Replayed::default() {
            log::warn!("the journal was replayed: {replayed:?}");
            kms.log_daemon("JournalReplayed", &format!("{replayed:?}"))?;
        }
        Ok(Self::new(Arc::new(kms), journal, Mounts::new(epoch, unclean), options)?)
    }

    fn open_read_only(store: Arc<Store>, options: Options) -> Result<Self, SessionError> {
        let unclean = store.unclean_epochs();
        let key = journal_key(&store)?;
        let journal = Journal::open_read_only(&store.root_dir(), &key, store.id(), |epoch| store.unclean_epoch(epoch))?;
        let mounts = Mounts::new(store.epoch(), unclean);
        let (kms, _) = Kms::open(store, None)?;
        Ok(Self::new(Arc::new(kms), journal, mounts, options)?)
    }

    /// The key service, for work on a store that is not mounted.
    pub fn kms(&self) -> &Arc<Kms> {
        &self.kms
    }
}

/// The trail of a store that is open for writing.
pub fn open_trail(store: &Store) -> Result<(Trail, Vec<crate::audit::TrailFound>), AuditError> {
    let root = store.root_dir();
    let opened = Trail::open(root.as_ref(), &store.keys().trail, store.id(), *store.session(), store.trail_head())?;
    // A store on a full disk must be served, so that its administrators can take rights and remove items.
    if !opened.0.has_room()? && store.give_up_spare() {
        opened.0.use_room()?;
    }
    Ok(opened)
}

fn journal_key(store: &Store) -> Result<Key256, SessionError> {
    Key256::from_slice(store.keys().journal.expose()).ok_or(SessionError::Store(StoreError::Closed))
}
