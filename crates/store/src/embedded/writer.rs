//! The one thread that writes.
//!
//! ```text
//!  requests ──► take all that wait ──► BEGIN ──► leases that ran out, then each request
//!     ▲                                          in a savepoint: done, or as if never asked
//!     └── answers ◄── changes to watchers ◄── COMMIT (one fsync for all of them)
//! ```
//!
//! Nobody is answered before the commit. When it fails, nothing of the batch happened, as far as can
//! be known: a full disk is certain, and writing goes on; any other failure is not, and the writer
//! refuses everything from then on.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{OwnedSemaphorePermit, broadcast, oneshot};

use super::apply::Batch;
use super::deadlines::Deadlines;
use super::file;
use super::history::{self, ReadError};
use super::watch::Announcement;
use crate::StoreError;
use crate::port::{Lease, LeaseId, LeaseStatus, Result, Revision};
use crate::txn::{Txn, TxnOutcome};

/// How many requests share one commit at most.
const BATCH_LIMIT: usize = 128;
/// How long the writer sleeps at most while there are leases: a thread's timer stands still while the
/// machine is suspended, the leases' clock does not.
const GLANCE: Duration = Duration::from_secs(1);

/// What the writer can be asked for.
pub(super) enum Request {
    Txn(Txn, Reply<TxnOutcome>),
    Compact(Revision, Reply<()>),
    GrantLease(u64, Reply<Lease>),
    KeepLeaseAlive(LeaseId, Reply<Duration>),
    RevokeLease(LeaseId, Reply<()>),
    Lease(LeaseId, Reply<LeaseStatus>),
    /// Look at the clock.
    Tick,
    /// End, after everything asked before.
    Stop,
}

/// Where the answer goes. Holds the request's place in the queue until then.
pub(super) struct Reply<T> {
    pub(super) to: oneshot::Sender<Result<T>>,
    pub(super) _room: OwnedSemaphorePermit,
}

impl<T> Reply<T> {
    fn send(self, answer: Result<T>) {
        // Nobody listens when the caller has dropped its future.
        let _ = self.to.send(answer);
    }
}

/// The writer's state.
pub(super) struct Writer {
    path: PathBuf,
    connection: Connection,
    deadlines: Deadlines,
    announcements: broadcast::Sender<Announcement>,
    head: Revision,
    /// The failure after which nobody knows what is on the disk.
    broken: Option<Arc<rusqlite::Error>>,
    /// Whether the last batch failed, so that leases that ran out wait in peace.
    struggling: bool,
}

/// What is done once it is known whether the batch was committed.
type Answer = Box<dyn FnOnce(Result<()>, &mut Deadlines)>;

impl Writer {
    pub(super) fn new(
        path: PathBuf,
        connection: Connection,
        mut deadlines: Deadlines,
        announcements: broadcast::Sender<Announcement>,
    ) -> rusqlite::Result<Self> {
        let head = history::head(&connection)?;
        let leases: Vec<(i64, i64)> = connection
            .prepare("SELECT id, ttl_s FROM leases")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (id, ttl_s) in leases {
            deadlines.start(LeaseId(id), Duration::from_secs(ttl_s as u64));
        }
        Ok(Self { path, connection, deadlines, announcements, head, broken: None, struggling: false })
    }

    /// Serves requests until it is told to stop.
    pub(super) fn run(mut self, requests: &mpsc::Receiver<Request>) {
        loop {
            let Some(first) = self.wait(requests) else { return };
            let mut batch = vec![first];
            while batch.len() < BATCH_LIMIT
                && let Ok(request) = requests.try_recv()
            {
                batch.push(request);
            }
            let stop = batch.iter().any(|request| matches!(request, Request::Stop));
            self.serve(batch);
            if stop {
                return;
            }
        }
    }

    fn wait(&self, requests: &Receiver<Request>) -> Option<Request> {
        let Some(until_next) = self.deadlines.until_next() else { return requests.recv().ok() };
        let pause = if self.struggling { GLANCE } else { until_next.min(GLANCE) };
        match requests.recv_timeout(pause) {
            Ok(request) => Some(request),
            Err(RecvTimeoutError::Timeout) => Some(Request::Tick),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    fn serve(&mut self, requests: Vec<Request>) {
        let mut group = Group::begin(&self.path, &self.connection, self.head, self.broken.clone());
        let mut answers: Vec<Answer> = Vec::new();
        for lease in self.deadlines.due() {
            if group.step(|batch| batch.revoke(lease)).is_ok() {
                answers.push(Box::new(move |committed, deadlines| {
                    if committed.is_ok() {
                        deadlines.forget(lease);
                    }
                }));
            }
        }
        for request in requests {
            answers.extend(group.serve(request, &mut self.deadlines));
        }
        let (batch, committed) = group.commit();
        let (head, changes) = (batch.head, batch.changes);
        self.struggling = committed.is_err();
        match &committed {
            Ok(()) => {
                self.head = head;
                for changes in changes {
                    // An error says that nobody watches.
                    let _ = self.announcements.send(Announcement::of(changes));
                }
            }
            Err(Failure { error, certain }) => {
                tracing::error!(path = %self.path.display(), %error, "a commit of the store failed");
                if !certain {
                    self.broken.get_or_insert_with(|| error.clone());
                }
            }
        }
        for answer in answers {
            let committed = committed
                .as_ref()
                .copied()
                .map_err(|failure| file::shared_sqlite_error(&self.path, "write", &failure.error));
            answer(committed, &mut self.deadlines);
        }
    }
}

/// A commit that failed.
struct Failure {
    error: Arc<rusqlite::Error>,
    /// Whether it is certain that nothing was written.
    certain: bool,
}

/// The requests that share one commit.
struct Group<'a> {
    path: &'a Path,
    batch: Batch<'a>,
    failure: Option<Failure>,
}

impl<'a> Group<'a> {
    fn begin(
        path: &'a Path,
        connection: &'a Connection,
        head: Revision,
        broken: Option<Arc<rusqlite::Error>>,
    ) -> Self {
        let failure = match broken {
            Some(error) => Some(Failure { error, certain: false }),
            None => connection
                .execute_batch("BEGIN IMMEDIATE")
                .err()
                .map(|error| Failure { error: Arc::new(error), certain: true }),
        };
        Self { path, batch: Batch { connection, head, changes: Vec::new() }, failure }
    }

    /// Does one request; the answer waits for the commit.
    fn serve(&mut self, request: Request, deadlines: &mut Deadlines) -> Option<Answer> {
        match request {
            Request::Txn(txn, reply) => {
                let done = self.step(|batch| batch.txn(txn));
                Some(after_commit(reply, done))
            }
            Request::Compact(oldest, reply) => {
                let done = self.step(|batch| batch.compact(oldest));
                Some(after_commit(reply, done))
            }
            Request::GrantLease(ttl_s, reply) => {
                let done = self.step(|batch| batch.grant(ttl_s));
                Some(Box::new(move |committed, deadlines| {
                    let granted = committed.and(done).map(|id| {
                        let ttl = Duration::from_secs(ttl_s);
                        deadlines.start(id, ttl);
                        Lease { id, ttl }
                    });
                    reply.send(granted);
                }))
            }
            Request::KeepLeaseAlive(id, reply) => {
                let kept = deadlines.keep_alive(id).ok_or(StoreError::LeaseNotFound { lease: id });
                reply.send(kept);
                None
            }
            Request::RevokeLease(id, reply) => {
                let done = self.step(|batch| match batch.revoke(id)? {
                    true => Ok(()),
                    false => Err(ReadError::Refused(StoreError::LeaseNotFound { lease: id })),
                });
                Some(Box::new(move |committed, deadlines| {
                    let revoked = committed.and(done);
                    if revoked.is_ok() {
                        deadlines.forget(id);
                    }
                    reply.send(revoked);
                }))
            }
            Request::Lease(id, reply) => {
                let found = deadlines.of(id);
                let done = self.step(|batch| {
                    let (ttl, remaining) =
                        found.ok_or(ReadError::Refused(StoreError::LeaseNotFound { lease: id }))?;
                    Ok(LeaseStatus { ttl, remaining, keys: batch.leased_keys(id)? })
                });
                Some(after_commit(reply, done))
            }
            Request::Tick | Request::Stop => None,
        }
    }

    /// Runs `work` whole or not at all.
    fn step<T>(&mut self, work: impl FnOnce(&mut Batch<'a>) -> Result<T, ReadError>) -> Result<T> {
        if let Some(failure) = &self.failure {
            return Err(file::shared_sqlite_error(self.path, "write", &failure.error));
        }
        let connection = self.batch.connection;
        let (head, known) = (self.batch.head, self.batch.changes.len());
        let done = connection
            .execute_batch("SAVEPOINT step")
            .map_err(ReadError::from)
            .and_then(|()| work(&mut self.batch))
            .and_then(|done| Ok(connection.execute_batch("RELEASE step").map(|()| done)?));
        let error = match done {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        self.batch.head = head;
        self.batch.changes.truncate(known);
        let (answer, cause) = match error {
            ReadError::Refused(refusal) => (refusal, None),
            ReadError::Sqlite(error) => {
                let error = Arc::new(error);
                (file::shared_sqlite_error(self.path, "write", &error), Some(error))
            }
        };
        // SQLite gives up the whole transaction by itself when the disk fails: no savepoint is left then.
        if let Err(lost) = connection.execute_batch("ROLLBACK TO step; RELEASE step") {
            let error = cause.unwrap_or_else(|| Arc::new(lost));
            self.failure = Some(Failure { error, certain: true });
        }
        Err(answer)
    }

    fn commit(self) -> (Batch<'a>, Result<(), Failure>) {
        let Self { batch, failure, .. } = self;
        let connection = batch.connection;
        let failure = match failure {
            Some(failure) => failure,
            None => match connection.execute_batch("COMMIT") {
                Ok(()) => return (batch, Ok(())),
                Err(error) => {
                    let certain = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
                    Failure { error: Arc::new(error), certain }
                }
            },
        };
        let certain = connection.is_autocommit() || connection.execute_batch("ROLLBACK").is_ok();
        let failure = Failure { certain: failure.certain && certain, ..failure };
        (batch, Err(failure))
    }
}

fn after_commit<T: 'static>(reply: Reply<T>, done: Result<T>) -> Answer {
    Box::new(move |committed, _| reply.send(committed.and(done)))
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::clock::BootClock;
    use crate::txn::Op;

    /// Puts to be served in one batch, and where their answers arrive.
    type Asked = (Vec<Request>, Vec<oneshot::Receiver<Result<TxnOutcome>>>);

    fn puts(sizes: &[usize]) -> Asked {
        let room = Arc::new(Semaphore::new(100));
        let put = |(n, size): (usize, &usize)| {
            let (to, answer) = oneshot::channel();
            let reply = Reply { to, _room: room.clone().try_acquire_owned().unwrap() };
            let txn = Txn::new().then(Op::put(format!("key/{n}"), vec![1; *size]));
            (Request::Txn(txn, reply), answer)
        };
        sizes.iter().enumerate().map(put).unzip()
    }

    fn answers(asked: Vec<oneshot::Receiver<Result<TxnOutcome>>>) -> Vec<Result<Revision>> {
        asked.into_iter().map(|mut answer| answer.try_recv().unwrap().map(|done| done.revision)).collect()
    }

    #[test]
    fn a_full_disk_fails_what_does_not_fit_and_nothing_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let connection = file::open_writer(&path).unwrap();
        connection.pragma_update(None, "max_page_count", 40).unwrap();
        let (announcements, mut announced) = broadcast::channel(16);
        let deadlines = Deadlines::new(Arc::new(BootClock));
        let mut writer = Writer::new(path, connection, deadlines, announcements).unwrap();
        let before = writer.head;

        let (requests, asked) = puts(&[10, 1_000_000, 10]);
        writer.serve(requests);
        let told = answers(asked);
        assert!(matches!(told[1], Err(StoreError::Full { .. })), "{told:?}");
        let kept = told.iter().flatten().count() as u64;
        assert_eq!(writer.head, Revision(before.0 + kept), "{told:?}");

        let (requests, asked) = puts(&[10]);
        writer.serve(requests);
        let told = answers(asked);
        assert!(matches!(told[..], [Ok(revision)] if revision == writer.head), "{told:?}");
        assert_eq!(history::head(&writer.connection).unwrap(), writer.head);
        let announcements = std::iter::from_fn(|| announced.try_recv().ok()).count() as u64;
        assert_eq!(announcements, kept + 1, "only what was committed is announced");
    }
}
