//! Watching: the history first, then what the writer announces, with nothing lost or doubled between.
//!
//! ```text
//!             all of the history read
//!  Replaying ────────────────────────► Live
//!      ▲    too slow, or a large change  │
//!      └─────────────────────────────────┘
//! ```
//!
//! The announcements are subscribed to before the history is read, so that what is committed between
//! shows up in both, and `next` says which of the two to drop. A watcher holds one page of history at
//! most, and the announcements are bounded, in number and bytes: whoever falls behind goes back to
//! the history.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::history;
use super::readers::Readers;
use crate::StoreError;
use crate::port::{BoxFuture, Changes, Event, Result, Revision, Watch};

/// How many announcements are kept for watchers that are not as quick as the writer.
pub(super) const ANNOUNCEMENTS: usize = 256;
/// How large a change may be to be announced as a whole, in bytes.
const ANNOUNCED_BYTES: usize = 64 * 1024;

/// What the writer tells all watchers after a commit.
#[derive(Clone)]
pub(super) struct Announcement {
    revision: Revision,
    /// What changed; `None` when it is too much to be kept in memory.
    events: Option<Arc<[Event]>>,
}

impl Announcement {
    pub(super) fn of(changes: Changes) -> Self {
        let bytes: usize = changes.events.iter().map(Event::size_bytes).sum();
        let events = (bytes <= ANNOUNCED_BYTES).then(|| changes.events.into());
        Self { revision: changes.revision, events }
    }
}

pub(super) struct EmbeddedWatch {
    prefix: String,
    /// The first revision that has not been looked at.
    next: Revision,
    /// What has been looked at and not been told.
    ready: VecDeque<Changes>,
    mode: Mode,
    announcements: Receiver<Announcement>,
    readers: Arc<Readers>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Replaying,
    Live,
}

impl EmbeddedWatch {
    pub(super) fn new(
        prefix: &str,
        from: Revision,
        announcements: Receiver<Announcement>,
        readers: Arc<Readers>,
    ) -> Self {
        let ready = VecDeque::new();
        Self { prefix: prefix.to_owned(), next: from, ready, mode: Mode::Replaying, announcements, readers }
    }

    async fn next_changes(&mut self) -> Result<Changes> {
        loop {
            if let Some(changes) = self.ready.pop_front() {
                return Ok(changes);
            }
            match self.mode {
                Mode::Replaying => self.replay().await?,
                Mode::Live => self.listen().await?,
            }
        }
    }

    async fn replay(&mut self) -> Result<()> {
        let (prefix, from) = (self.prefix.clone(), self.next);
        let page =
            self.readers.read(move |connection| history::changes_since(connection, &prefix, from)).await?;
        // A watch may begin in the future.
        self.next = self.next.max(page.seen.next());
        self.ready.extend(page.changes);
        if page.complete {
            self.mode = Mode::Live;
        }
        Ok(())
    }

    async fn listen(&mut self) -> Result<()> {
        match self.announcements.recv().await {
            Ok(announcement) if announcement.revision < self.next => {}
            Ok(Announcement { events: None, .. }) | Err(RecvError::Lagged(_)) => self.mode = Mode::Replaying,
            Ok(Announcement { revision, events: Some(events) }) => {
                self.next = revision.next();
                let ours = events.iter().filter(|event| event.key().starts_with(&self.prefix));
                let events: Vec<Event> = ours.cloned().collect();
                if !events.is_empty() {
                    self.ready.push_back(Changes { revision, events });
                }
            }
            Err(RecvError::Closed) => return Err(StoreError::Closed),
        }
        Ok(())
    }
}

impl Watch for EmbeddedWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Changes>> {
        Box::pin(self.next_changes())
    }
}
