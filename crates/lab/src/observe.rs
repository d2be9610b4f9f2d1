//! What a guest's users would notice, watched from the client's namespace: pings, a TCP connection,
//! and what hosts announce.
//!
//! Each observer is a thread that ends by itself after [`TIME_LIMIT`] if nobody stops it.

mod announcements;
mod echo;
mod ping;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use announcements::Announcements;
pub use echo::{EchoConnection, EchoSummary};
pub use ping::{PingSummary, Pinger};

use crate::error::{Error, Result};

/// An observer that nobody stops ends after this.
pub const TIME_LIMIT: Duration = Duration::from_secs(30 * 60);

/// A thread that watches, and what it has seen.
#[derive(Debug)]
struct Watch<S> {
    seen: Arc<Seen<S>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and its owner share.
#[derive(Debug, Default)]
struct Seen<S> {
    summary: Mutex<S>,
    stop: AtomicBool,
}

impl<S: Clone + Default + Send + 'static> Watch<S> {
    fn start(name: &str, body: impl FnOnce(&Seen<S>) + Send + 'static) -> Result<Self> {
        let seen = Arc::new(Seen { summary: Mutex::new(S::default()), stop: AtomicBool::new(false) });
        let shared = Arc::clone(&seen);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || body(&shared));
        let thread = thread.map_err(Error::io(format!("start the thread {name}")))?;
        Ok(Self { seen, thread: Some(thread) })
    }

    fn snapshot(&self) -> S {
        self.seen.read(S::clone)
    }

    fn stop(&mut self) -> S {
        self.seen.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
        self.snapshot()
    }
}

impl<S> Seen<S> {
    fn read<T>(&self, body: impl FnOnce(&S) -> T) -> T {
        body(&self.summary.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn update<T>(&self, body: impl FnOnce(&mut S) -> T) -> T {
        body(&mut self.summary.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_over(&self, start: Instant) -> bool {
        self.stop.load(Ordering::Relaxed) || start.elapsed() > TIME_LIMIT
    }
}

impl<S> Drop for Watch<S> {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
