//! One change of the state: read, decide, write, all or nothing.
//!
//! A [`Tx`] holds the server's turn to write, so within one server no change is lost to another. What it has read
//! is compared once more by the store itself when it commits: should another server have become the leader
//! meanwhile, the commit fails and nothing has happened.

use std::collections::BTreeMap;

use jiff::Timestamp;
use limosa_api::rest::Subject;
use limosa_store::{Compare, Op, Revision, Store, StoreError, Txn, Typed as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::MutexGuard;

use crate::records::{EventRecord, keys};

/// A change under way. Dropped without [`commit`](Self::commit), it has never been.
pub(crate) struct Tx<'s> {
    store: &'s dyn Store,
    _turn: MutexGuard<'s, ()>,
    read: BTreeMap<String, Compare>,
    write: BTreeMap<String, Op>,
}

impl<'s> Tx<'s> {
    pub(crate) fn new(store: &'s dyn Store, turn: MutexGuard<'s, ()>) -> Self {
        Self { store, _turn: turn, read: BTreeMap::new(), write: BTreeMap::new() }
    }

    /// What is at `key`, or will be after this change.
    pub(crate) async fn get<T: DeserializeOwned + Send>(
        &mut self,
        key: &str,
    ) -> Result<Option<T>, StoreError> {
        match self.write.get(key) {
            Some(Op::Put { value, .. }) => {
                let read = serde_json::from_slice(value);
                return read.map(Some).map_err(|source| StoreError::Undecodable {
                    key: key.to_owned(),
                    wanted: std::any::type_name::<T>(),
                    source,
                });
            }
            Some(Op::Delete(_)) => return Ok(None),
            _ => {}
        }
        let found = self.store.get_json::<T>(key).await?;
        let compare = match &found {
            Some(found) => Compare::ModRevision(key.to_owned(), found.revision),
            None => Compare::Absent(key.to_owned()),
        };
        self.read.insert(key.to_owned(), compare);
        Ok(found.map(|found| found.value))
    }

    pub(crate) fn put<T: Serialize>(&mut self, key: &str, value: &T) -> Result<(), StoreError> {
        self.write.insert(key.to_owned(), Op::put_json(key, value)?);
        Ok(())
    }

    pub(crate) fn delete(&mut self, key: &str) {
        self.write.insert(key.to_owned(), Op::delete(key));
    }

    /// Tells users what happens, with the change itself.
    pub(crate) fn event(
        &mut self,
        code: &str,
        subject: Subject,
        message: impl Into<String>,
    ) -> Result<(), StoreError> {
        let message = message.into();
        tracing::info!(code, subject = subject.id, "{message}");
        let event = EventRecord { time: Timestamp::now(), code: code.to_owned(), subject, message };
        self.put(&keys::of(keys::EVENTS, uuid::Uuid::now_v7()), &event)
    }

    /// Makes it durable. `None`: there was nothing to write.
    ///
    /// # Errors
    /// [`StoreError::Contended`] if somebody else has changed what was read; nothing was done then.
    pub(crate) async fn commit(self) -> Result<Option<Revision>, StoreError> {
        if self.write.is_empty() {
            return Ok(None);
        }
        let key = self.write.keys().next().cloned().unwrap_or_default();
        let txn = Txn {
            compares: self.read.into_values().collect(),
            then: self.write.into_values().collect(),
            otherwise: Vec::new(),
        };
        let done = self.store.txn(txn).await?;
        match done.succeeded {
            true => Ok(Some(done.revision)),
            false => Err(StoreError::Contended { key, attempts: 1 }),
        }
    }
}
