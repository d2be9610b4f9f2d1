//! The embedded store: one SQLite file, one thread that writes, a few connections that read.
//!
//! The file is written through SQLite's write-ahead log with `synchronous=FULL`: what is acknowledged
//! has been fsynced. One process at a time may have it open; the kernel's lock on `FILE.lock` holds
//! that. A file that is damaged, from a newer version or not ours is refused, never repaired in secret.

mod apply;
mod backup;
mod deadlines;
mod file;
mod history;
mod readers;
mod schema;
mod watch;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use limosa_model::Incarnation;
use tokio::sync::{Semaphore, broadcast, oneshot};

pub use backup::restore_from;

use self::deadlines::Deadlines;
use self::file::{StoreLock, file_error, sqlite_error};
use self::readers::Readers;
use self::watch::{ANNOUNCEMENTS, Announcement, EmbeddedWatch};
use self::writer::{Reply, Request, Writer};
use crate::clock::{BootClock, Clock};
use crate::port::{
    BoxFuture, KeyValue, Lease, LeaseId, LeaseStatus, Range, RangeResult, Result, Revision, Store, Watch,
    check_key, check_prefix,
};
use crate::txn::{Txn, TxnOutcome};
use crate::{LEASE_MAX_TTL_S, LEASE_MIN_TTL_S, StoreError};

/// How much may wait for the writer: each request counts 1 KiB and its keys and values.
const QUEUE_LIMIT_KIB: usize = 16 * 1024;

/// What can be chosen when a store is opened.
pub struct Options {
    /// The clock by which leases run out.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Self { clock: Arc::new(BootClock) }
    }
}

/// The embedded store. Dropping it finishes what was asked for, waits for that, and closes the file.
pub struct Embedded {
    path: PathBuf,
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    announcements: broadcast::Sender<Announcement>,
    readers: Arc<Readers>,
    writer: Option<JoinHandle<()>>,
    /// Given up last.
    _lock: StoreLock,
}

impl Embedded {
    /// Opens the store in the file `path`, and makes it if there is none; its folder must exist.
    /// Leases begin their time anew. Blocks for the time it takes to look through the file.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Corrupted`], [`StoreError::NewerSchema`],
    /// [`StoreError::File`], [`StoreError::Full`], [`StoreError::Backend`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, Options::default())
    }

    /// [`Embedded::open`], with a choice.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let path = std::path::absolute(path.as_ref()).map_err(file_error("find", path.as_ref()))?;
        let lock = StoreLock::take(&path)?;
        let connection = file::open_writer(&path)?;
        let (announcements, _) = broadcast::channel(ANNOUNCEMENTS);
        let (requests, queue) = mpsc::channel();
        let wake = requests.clone();
        options.clock.on_move(Box::new(move || {
            // The writer is gone when the clock outlives the store.
            let _ = wake.send(Request::Tick);
        }));
        let deadlines = Deadlines::new(options.clock);
        let writer = Writer::new(path.clone(), connection, deadlines, announcements.clone())
            .map_err(sqlite_error(&path, "start its writer"))?;
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(file_error("start the writer of", &path))?;
        let readers = Arc::new(Readers::new(&path));
        let room = Arc::new(Semaphore::new(QUEUE_LIMIT_KIB));
        Ok(Self { path, requests, room, announcements, readers, writer: Some(writer), _lock: lock })
    }

    /// Writes a backup of the store, as it is at one moment, to the file `to`, which gets its name
    /// when it is whole and on disk. The store works on meanwhile.
    ///
    /// # Errors
    /// [`StoreError::BackupExists`], [`StoreError::File`], [`StoreError::Full`], [`StoreError::Backend`].
    pub async fn backup_to(&self, to: impl Into<PathBuf>) -> Result<()> {
        let (store, to) = (self.path.clone(), to.into());
        let copying = tokio::task::spawn_blocking(move || backup::backup(&store, &to));
        copying.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn ask<T>(&self, size_bytes: usize, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let kib = u32::try_from(1 + size_bytes / 1024).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(kib).await.map_err(|_| StoreError::Closed)?;
        let (to, answer) = oneshot::channel();
        self.requests.send(request(Reply { to, _room: room })).map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // An error says that the writer has ended already.
        let _ = self.requests.send(Request::Stop);
        if let Some(Err(_)) = self.writer.take().map(JoinHandle::join) {
            tracing::error!(path = %self.path.display(), "the store's writer had panicked");
        }
    }
}

impl Store for Embedded {
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeResult>> {
        Box::pin(async move {
            range.check()?;
            let read = move |connection: &_| history::range(connection, history::head(connection)?, &range);
            self.readers.read(read).await
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>>> {
        Box::pin(async move {
            check_key(key)?;
            let key = key.to_owned();
            self.readers.read(move |connection| Ok(history::get(connection, &key)?)).await
        })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome>> {
        Box::pin(async move {
            txn.check()?;
            self.ask(txn.size_bytes(), |reply| Request::Txn(txn, reply)).await
        })
    }

    fn watch(&self, prefix: &str, from: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>>> {
        let watch = check_prefix(prefix).map(|()| {
            let announcements = self.announcements.subscribe();
            let watch = EmbeddedWatch::new(prefix, from, announcements, self.readers.clone());
            Box::new(watch) as Box<dyn Watch>
        });
        Box::pin(std::future::ready(watch))
    }

    fn compact(&self, oldest: Revision) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.ask(0, move |reply| Request::Compact(oldest, reply)))
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        let ttl_s = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
        Box::pin(async move {
            if !(LEASE_MIN_TTL_S..=LEASE_MAX_TTL_S).contains(&ttl_s) {
                let (min_s, max_s) = (LEASE_MIN_TTL_S, LEASE_MAX_TTL_S);
                return Err(StoreError::InvalidTtl { ttl_s, min_s, max_s });
            }
            self.ask(0, |reply| Request::GrantLease(ttl_s, reply)).await
        })
    }

    fn keep_lease_alive(&self, id: LeaseId) -> BoxFuture<'_, Result<Duration>> {
        Box::pin(self.ask(0, move |reply| Request::KeepLeaseAlive(id, reply)))
    }

    fn revoke_lease(&self, id: LeaseId) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.ask(0, move |reply| Request::RevokeLease(id, reply)))
    }

    fn lease(&self, id: LeaseId) -> BoxFuture<'_, Result<LeaseStatus>> {
        Box::pin(self.ask(0, move |reply| Request::Lease(id, reply)))
    }

    fn incarnation(&self) -> BoxFuture<'_, Result<Incarnation>> {
        Box::pin(self.readers.read(|connection| Ok(history::incarnation(connection)?)))
    }
}
