//! Takes away what nobody needs any more: old events, tasks that ended long ago, tokens that expired, history.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use limosa_store::{Range, Revision, Store as _, StoreError, Typed as _};

use crate::records::{TokenRecord, keys};
use crate::server::Server;

pub(super) const INTERVAL: Duration = Duration::from_secs(60);
/// How many events are kept.
const EVENTS: usize = 10_000;
/// How long a task is kept after its end, and a migration.
const ENDED: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How many revisions a watch can begin in the past.
const REVISIONS: u64 = 50_000;
/// How much is taken away at once.
const BATCH: usize = 100;

pub(super) async fn tidy(server: &Server) -> Result<(), StoreError> {
    let now = Timestamp::now();
    let snapshot = server.snapshot().await?;
    let is_old = |ended: Option<Timestamp>| ended.is_some_and(|ended| now.duration_since(ended) > ENDED);
    server.live().tidy(|vm, epoch| {
        snapshot.vms.get(&vm).and_then(|vm| vm.on()).is_some_and(|(_, held)| held == epoch)
    });
    let mut old: Vec<String> = Vec::new();
    let tasks = snapshot.tasks.values().filter(|record| is_old(record.task.ended));
    old.extend(tasks.map(|record| keys::of(keys::TASKS, record.task.id)));
    let migrations = snapshot.migrations.values().filter(|record| record.closed && is_old(record.ended));
    old.extend(migrations.map(|record| keys::of(keys::MIGRATIONS, record.id())));
    let tokens = server.store.list_json::<TokenRecord>(keys::TOKENS).await?;
    old.extend(tokens.entries.into_iter().filter(|(_, token)| token.value.expires < now).map(|(key, _)| key));
    let events = server.store.range(Range::prefix(keys::EVENTS)).await?;
    let surplus = events.entries.len().saturating_sub(EVENTS);
    old.extend(events.entries.into_iter().take(surplus).map(|entry| entry.key));
    for batch in old.chunks(BATCH) {
        let mut tx = server.begin().await;
        batch.iter().for_each(|key| tx.delete(key));
        server.commit(tx).await?;
    }
    match snapshot.revision.checked_sub(REVISIONS) {
        Some(oldest) if oldest > 0 => match server.store.compact(Revision(oldest)).await {
            Err(StoreError::Compacted { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        },
        _ => Ok(()),
    }
}
