//! The cluster's state behind one port, [`Store`], with etcd's semantics: keys, one global revision,
//! compare-and-swap transactions, watches from a revision, leases.
//!
//! [`Embedded`] keeps the state in one SQLite file, so that a server needs nothing else. What it has
//! acknowledged is on disk; what it has not may or may not be there after a crash, never half of it.
//! Everything the port promises is written down as a test in `conformance` (feature `testing`), which every
//! implementation passes.
//!
//! [`Typed`] reads and writes JSON values instead of bytes.
//!
//! How it fails: bad input is refused before anything is done; a disk that is full fails the
//! transactions at hand and no later ones; a disk that breaks in the middle of a commit stops all
//! writes until the store is opened again, since nobody can say what reached it.

mod clock;
#[cfg(feature = "testing")]
pub mod conformance;
mod embedded;
mod error;
mod port;
mod txn;
mod typed;

#[cfg(feature = "testing")]
pub use clock::ManualClock;
pub use clock::{BootClock, Clock};
pub use embedded::{Embedded, Options, restore_from};
pub use error::StoreError;
pub use port::{
    BoxFuture, Changes, Event, KeyValue, Lease, LeaseId, LeaseStatus, Range, RangeResult, Result, Revision,
    Store, Watch,
};
pub use txn::{Compare, Op, OpResult, Txn, TxnOutcome};
pub use typed::{Listing, Typed, Versioned};

/// The longest key, in bytes.
pub const KEY_LIMIT_BYTES: usize = 1024;
/// The most that the keys and values of one transaction may come to, in bytes; etcd's own default.
pub const TXN_LIMIT_BYTES: usize = 1024 * 1024 + 512 * 1024;
/// The most compares, and the most operations in either branch, of one transaction; etcd's own default.
pub const TXN_LIMIT_OPS: usize = 128;
/// The shortest lease, in seconds.
pub const LEASE_MIN_TTL_S: u64 = 1;
/// The longest lease, in seconds: thirty days.
pub const LEASE_MAX_TTL_S: u64 = 30 * 24 * 3600;
