//! JSON values instead of bytes.

use std::any::type_name;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::StoreError;
use crate::port::{BoxFuture, KeyValue, Range, Result, Revision, Store};
use crate::txn::{Compare, Op, Txn};

/// How often [`Typed::update`] tries before it gives up.
const UPDATE_LIMIT_ATTEMPTS: usize = 32;

/// A value and the revision of its last change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// The revision at which it was written.
    pub revision: Revision,
}

/// All values under a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<T> {
    /// The keys and their values, sorted by key.
    pub entries: Vec<(String, Versioned<T>)>,
    /// The store's revision when they were read: a watch from the next one misses nothing.
    pub revision: Revision,
}

impl KeyValue {
    /// The value, read as JSON.
    ///
    /// # Errors
    /// [`StoreError::Undecodable`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<Versioned<T>> {
        match serde_json::from_slice(&self.value) {
            Ok(value) => Ok(Versioned { value, revision: self.mod_revision }),
            Err(source) => {
                Err(StoreError::Undecodable { key: self.key.clone(), wanted: type_name::<T>(), source })
            }
        }
    }
}

/// Reads and writes JSON values; every [`Store`] has these.
pub trait Typed: Store {
    /// The value at `key`.
    ///
    /// # Errors
    /// [`StoreError::Undecodable`], and those of [`Store::get`].
    fn get_json<'a, T>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Versioned<T>>>>
    where
        T: DeserializeOwned + Send + 'a,
    {
        Box::pin(async move { self.get(key).await?.map(|found| found.json()).transpose() })
    }

    /// All values whose keys begin with `prefix`.
    ///
    /// # Errors
    /// [`StoreError::Undecodable`], and those of [`Store::range`].
    fn list_json<'a, T>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing<T>>>
    where
        T: DeserializeOwned + Send + 'a,
    {
        Box::pin(async move {
            let found = self.range(Range::prefix(prefix)).await?;
            let entries: Result<Vec<_>> =
                found.entries.into_iter().map(|entry| Ok((entry.key.clone(), entry.json()?))).collect();
            Ok(Listing { entries: entries?, revision: found.revision })
        })
    }

    /// Writes `value` at `key`, whatever was there.
    ///
    /// # Errors
    /// [`StoreError::Unencodable`], and those of [`Store::txn`].
    fn put_json<'a, T: Serialize + Sync>(
        &'a self,
        key: &'a str,
        value: &'a T,
    ) -> BoxFuture<'a, Result<Revision>> {
        Box::pin(async move {
            let done = self.txn(Txn::new().then(Op::put_json(key, value)?)).await?;
            Ok(done.revision)
        })
    }

    /// Replaces the value at `key` by what `change` makes of it; `None` stands for no value. When
    /// somebody else changes the key meanwhile, `change` is asked again about the newer value.
    /// Returns what is there at the end.
    ///
    /// # Errors
    /// [`StoreError::Contended`] after 32 attempts, and those of reading and writing.
    fn update<'a, T, F>(&'a self, key: &'a str, mut change: F) -> BoxFuture<'a, Result<Option<Versioned<T>>>>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'a,
        F: FnMut(Option<T>) -> Option<T> + Send + 'a,
    {
        self.try_update(key, move |old| Ok(change(old)))
    }

    /// [`Typed::update`], with a `change` that can refuse: its error is returned and nothing changes.
    ///
    /// # Errors
    /// Those of `change`, [`StoreError::Contended`] after 32 attempts, and those of reading and writing.
    fn try_update<'a, T, F, E>(
        &'a self,
        key: &'a str,
        mut change: F,
    ) -> BoxFuture<'a, Result<Option<Versioned<T>>, E>>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'a,
        F: FnMut(Option<T>) -> Result<Option<T>, E> + Send + 'a,
        E: From<StoreError> + Send + 'a,
    {
        Box::pin(async move {
            for _ in 0..UPDATE_LIMIT_ATTEMPTS {
                let found = self.get_json::<T>(key).await?;
                let (unchanged, old) = match found {
                    Some(found) => (Compare::ModRevision(key.to_owned(), found.revision), Some(found.value)),
                    None => (Compare::Absent(key.to_owned()), None),
                };
                let value = change(old)?;
                let op = match &value {
                    Some(value) => Op::put_json(key, value)?,
                    None => Op::delete(key),
                };
                let done = self.txn(Txn::new().when(unchanged).then(op)).await?;
                if done.succeeded {
                    return Ok(value.map(|value| Versioned { value, revision: done.revision }));
                }
            }
            Err(StoreError::Contended { key: key.to_owned(), attempts: UPDATE_LIMIT_ATTEMPTS }.into())
        })
    }
}

impl<S: Store + ?Sized> Typed for S {}
