//! Tasks and events, as they are and as they come (server-sent events).

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response, sse};
use futures_util::stream;
use limosa_api::http::Json;
use limosa_api::rest::{Event, List, Task};
use limosa_model::TaskId;
use limosa_store::{Event as Change, KeyValue, Range, Revision, Store as _, StoreError};
use serde::{Deserialize, Serialize};

use super::Shared;
use super::extract::Params;
use crate::records::{EventRecord, keys};
use crate::refused::{Answer, Refused};
use crate::server::Server;
use crate::views;

/// How many events one answer has at most.
const EVENTS: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchTask {
    #[serde(default)]
    watch: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchEvents {
    #[serde(default)]
    watch: bool,
    from: Option<u64>,
}

pub(super) async fn task(
    State(server): Shared,
    Path(id): Path<String>,
    Params(params): Params<WatchTask>,
) -> Answer<Response> {
    let known = id.parse::<TaskId>().map_err(|_| Refused::unknown("task", &id))?;
    let task = look(&server, known).await?.ok_or_else(|| Refused::unknown("task", &id))?;
    if !params.watch {
        return Ok(Json(task).into_response());
    }
    let mut closing = server.closing.subscribe();
    let progress = server.progress.subscribe();
    let seen: Option<Task> = None;
    let tasks = stream::unfold(Some((server, progress, seen)), move |watch| async move {
        let (server, mut progress, seen) = watch?;
        loop {
            progress.mark_unchanged();
            // A task that was tidied away has ended long ago.
            let task = look(&server, known).await.ok().flatten()?;
            if seen.as_ref() != Some(&task) {
                let event = event("task", &task)?;
                let next = (!task.state.has_ended()).then_some((server, progress, Some(task)));
                return Some((Ok::<_, Infallible>(event), next));
            }
            progress.changed().await.ok()?;
        }
    });
    let closed = async move { drop(closing.wait_for(|closing| *closing).await) };
    Ok(answer(futures_util::StreamExt::take_until(tasks, Box::pin(closed))))
}

async fn look(server: &Arc<Server>, id: TaskId) -> Result<Option<Task>, StoreError> {
    let snapshot = server.snapshot().await?;
    Ok(snapshot.tasks.get(&id).map(|record| views::task(server, &snapshot, record)))
}

pub(super) async fn events(State(server): Shared, Params(params): Params<WatchEvents>) -> Answer<Response> {
    if !params.watch {
        let from = params.from.unwrap_or(0);
        let found = server.store.range(Range::prefix(keys::EVENTS)).await?;
        let entries = found.entries.iter().filter(|entry| entry.mod_revision.0 >= from).take(EVENTS);
        let items = entries.map(shown).collect::<Result<Vec<_>, _>>()?;
        return Ok(Json(List { items, revision: found.revision.0 }).into_response());
    }
    let first = server.store.range(Range::prefix(keys::EVENTS).limit(1)).await?;
    let from = match (params.from, first.entries.first()) {
        (Some(0), Some(oldest)) => oldest.mod_revision,
        (Some(from), _) if from > 0 => Revision(from),
        _ => first.revision.next(),
    };
    let watch = server.store.watch(keys::EVENTS, from).await?;
    let mut closing = server.closing.subscribe();
    let came = stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        loop {
            let changes = match watch.next().await {
                Ok(changes) => changes,
                Err(error) => {
                    // Too slow, or from too far in the past: the reader has to begin anew.
                    let Refused(problem) = error.into();
                    let told = event("problem", &problem).map(Ok::<_, Infallible>);
                    return Some((stream::iter(Vec::from_iter(told)), None));
                }
            };
            let put = changes.events.iter().filter_map(|change| match change {
                Change::Put(entry) => shown(entry).ok(),
                Change::Delete { .. } => None,
            });
            let events: Vec<_> =
                put.filter_map(|shown| event("event", &shown)).map(Ok::<_, Infallible>).collect();
            if !events.is_empty() {
                return Some((stream::iter(events), Some(watch)));
            }
        }
    });
    let closed = async move { drop(closing.wait_for(|closing| *closing).await) };
    let came = futures_util::StreamExt::flatten(came);
    Ok(answer(futures_util::StreamExt::take_until(came, Box::pin(closed))))
}

fn shown(entry: &KeyValue) -> Result<Event, StoreError> {
    let record = entry.json::<EventRecord>()?;
    let EventRecord { time, code, subject, message } = record.value;
    Ok(Event { revision: record.revision.0, time, code, subject, message })
}

fn event(name: &str, value: &impl Serialize) -> Option<sse::Event> {
    sse::Event::default().event(name).json_data(value).ok()
}

fn answer(
    events: impl futures_util::Stream<Item = Result<sse::Event, Infallible>> + Send + 'static,
) -> Response {
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}
