//! A few connections that read while the writer writes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::file;
use super::history::ReadError;
use crate::StoreError;
use crate::port::Result;

/// How many reads run at once.
const READERS: usize = 4;

/// The connections for reading. Each read sees one state of the store.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    slots: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), idle: Mutex::default(), slots: Arc::new(Semaphore::new(READERS)) }
    }

    /// Runs `work` in a read transaction, off the async threads.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Connection) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T> {
        let slot = self.slots.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let this = Arc::clone(self);
        let reading = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            this.read_blocking(work)
        });
        match reading.await {
            Ok(result) => result,
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            Err(_) => Err(StoreError::Closed),
        }
    }

    fn read_blocking<T>(&self, work: impl FnOnce(&Connection) -> Result<T, ReadError>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = idle.map_or_else(|| file::open_reader(&self.path), Ok)?;
        let result = match connection.unchecked_transaction() {
            Ok(snapshot) => work(&snapshot),
            Err(error) => Err(error.into()),
        };
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        result.map_err(|error| match error {
            ReadError::Refused(refusal) => refusal,
            ReadError::Sqlite(error) => file::sqlite_error(&self.path, "read")(error),
        })
    }
}
