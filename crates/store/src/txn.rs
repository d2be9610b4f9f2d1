//! Transactions: compares, and what to do when they hold and when they do not.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::port::{KeyValue, LeaseId, Range, RangeResult, Result, Revision, check_key};
use crate::{StoreError, TXN_LIMIT_BYTES, TXN_LIMIT_OPS};

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key exists.
    Exists(String),
    /// The key does not exist.
    Absent(String),
    /// The key was last changed at this revision.
    ModRevision(String, Revision),
    /// The key came to be at this revision: it is the same one still, whatever was written to it.
    CreateRevision(String, Revision),
    /// The key was written this often.
    Version(String, u64),
    /// The key has this value.
    Value(String, Vec<u8>),
}

impl Compare {
    /// The key that is looked at.
    pub fn key(&self) -> &str {
        match self {
            Self::Exists(key)
            | Self::Absent(key)
            | Self::ModRevision(key, _)
            | Self::CreateRevision(key, _)
            | Self::Version(key, _)
            | Self::Value(key, _) => key,
        }
    }

    /// Whether it holds for what is at the key. A key that does not exist fails every compare but
    /// [`Compare::Absent`].
    pub fn holds(&self, found: Option<&KeyValue>) -> bool {
        match (self, found) {
            (Self::Absent(_), found) => found.is_none(),
            (_, None) => false,
            (Self::Exists(_), Some(_)) => true,
            (Self::ModRevision(_, revision), Some(found)) => found.mod_revision == *revision,
            (Self::CreateRevision(_, revision), Some(found)) => found.create_revision == *revision,
            (Self::Version(_, version), Some(found)) => found.version == *version,
            (Self::Value(_, value), Some(found)) => found.value == *value,
        }
    }

    fn size_bytes(&self) -> usize {
        self.key().len() + if let Self::Value(_, value) = self { value.len() } else { 0 }
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Write a key. Without a lease, it is taken off the one that it was on.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The lease whose end deletes it.
        lease: Option<LeaseId>,
    },
    /// Delete a key, if it exists.
    Delete(String),
    /// Read a key, after the operations before this one.
    Get(String),
    /// Read keys, after the operations before this one.
    Range(Range),
}

impl Op {
    /// Writes `value` at `key`.
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: None }
    }

    /// Writes `value` at `key`, to be deleted at the end of `lease`.
    pub fn put_leased(key: impl Into<String>, value: impl Into<Vec<u8>>, lease: LeaseId) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: Some(lease) }
    }

    /// Writes `value` as JSON at `key`.
    ///
    /// # Errors
    /// [`StoreError::Unencodable`].
    pub fn put_json<T: Serialize + ?Sized>(key: impl Into<String>, value: &T) -> Result<Self> {
        let key = key.into();
        match serde_json::to_vec(value) {
            Ok(value) => Ok(Self::Put { key, value, lease: None }),
            Err(source) => Err(StoreError::Unencodable { key, source }),
        }
    }

    /// Deletes `key`.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete(key.into())
    }

    /// Reads `key`.
    pub fn get(key: impl Into<String>) -> Self {
        Self::Get(key.into())
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Put { key, .. } | Self::Delete(key) | Self::Get(key) => check_key(key),
            Self::Range(range) => range.check(),
        }
    }

    fn written_key(&self) -> Option<&str> {
        match self {
            Self::Put { key, .. } | Self::Delete(key) => Some(key),
            Self::Get(_) | Self::Range(_) => None,
        }
    }

    fn size_bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete(key) | Self::Get(key) => key.len(),
            Self::Range(range) => range.prefix.len() + range.after.as_ref().map_or(0, String::len),
        }
    }
}

/// A transaction: if all compares hold, the first branch, else the other one.
///
/// ```
/// use limosa_store::{Compare, Op, Txn};
/// let claim = Txn::new()
///     .when(Compare::Absent("leader".into()))
///     .then(Op::put("leader", "server-1"))
///     .otherwise(Op::get("leader"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions; none means that they hold.
    pub compares: Vec<Compare>,
    /// What is done when they hold.
    pub then: Vec<Op>,
    /// What is done when they do not.
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// A transaction that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds an operation for when all conditions hold.
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    /// Adds an operation for when a condition does not hold.
    pub fn otherwise(mut self, op: Op) -> Self {
        self.otherwise.push(op);
        self
    }

    /// Checks the transaction against the limits; every implementation does so first.
    ///
    /// # Errors
    /// [`StoreError::InvalidKey`], [`StoreError::TooManyOps`], [`StoreError::TooLarge`],
    /// [`StoreError::DuplicateKey`].
    pub fn check(&self) -> Result<()> {
        let counts =
            [("compares", self.compares.len()), ("operations", self.then.len().max(self.otherwise.len()))];
        for (what, count) in counts {
            if count > TXN_LIMIT_OPS {
                return Err(StoreError::TooManyOps { what, count, limit: TXN_LIMIT_OPS });
            }
        }
        let bytes = self.size_bytes();
        if bytes > TXN_LIMIT_BYTES {
            return Err(StoreError::TooLarge { bytes, limit: TXN_LIMIT_BYTES });
        }
        for compare in &self.compares {
            check_key(compare.key())?;
        }
        for branch in [&self.then, &self.otherwise] {
            let mut written = BTreeSet::new();
            for op in branch {
                op.check()?;
                if let Some(key) = op.written_key()
                    && !written.insert(key)
                {
                    return Err(StoreError::DuplicateKey { key: key.to_owned() });
                }
            }
        }
        Ok(())
    }

    pub(crate) fn size_bytes(&self) -> usize {
        let ops = self.then.iter().chain(&self.otherwise);
        self.compares.iter().map(Compare::size_bytes).sum::<usize>() + ops.map(Op::size_bytes).sum::<usize>()
    }
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnOutcome {
    /// Whether the compares held, so that the first branch was run.
    pub succeeded: bool,
    /// The newest revision: the transaction's own if it changed anything.
    pub revision: Revision,
    /// One result for each operation of the branch that was run.
    pub results: Vec<OpResult>,
}

/// What one operation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// The key was written.
    Put,
    /// The key was deleted, or was not there.
    Delete {
        /// Whether it had existed.
        existed: bool,
    },
    /// What was at the key.
    Get(Option<KeyValue>),
    /// What was in the range.
    Range(RangeResult),
}
