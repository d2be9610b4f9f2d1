//! Migrations, tasks, and the word of an operator where no fact can come.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use limosa_api::http::Json;
use limosa_api::rest::{DesiredPower, List, MigrateRequest, Migration, ResolveVm, Task, TaskState, Vm};
use limosa_migration::custody::At;
use limosa_model::{Fact, MigrationId, TaskId};

use super::Shared;
use super::extract::Accepted;
use super::held::Held;
use super::hosts::refuse_unless_gone;
use crate::records::{HostRecord, MigrationRecord, TaskRecord, VmRecord, Work, keys};
use crate::refused::{Answer, Refused};
use crate::tasks::{self, TaskEnd};
use crate::tx::Tx;
use crate::{prepare, views, whereabouts};

pub(super) async fn migrate(
    State(server): Shared,
    Path(named): Path<String>,
    Json(ask): Json<MigrateRequest>,
) -> Answer<Response> {
    let held = Held::open(&server, &named).await?;
    if ask.to.is_some() == ask.best {
        let what = format!("it is not clear where VM {} is to go", held.name());
        return Err(Refused::invalid(what, "name a host in `to`, or set `best` to have one chosen"));
    }
    held.be_free()?;
    let snapshot = held.snapshot.clone();
    let named_host = |named| snapshot.host(named).ok_or_else(|| Refused::unknown("host", named));
    let to = ask.to.as_deref().map(named_host).transpose()?;
    let source = held.running_on()?;
    let mut plan = prepare::plan(&server, &snapshot, &held.vm, &source, to);
    if ask.dry_run {
        let vm = held.vm.clone();
        // Others may change things while hosts are asked.
        drop(held);
        if plan.failed.is_empty() {
            prepare::ask_hosts(&server, &snapshot, &vm, ask.options.bandwidth, &mut plan).await;
        }
        return Ok(Json(plan).into_response());
    }
    if let Some(refused) = prepare::refusal(&plan) {
        return Err(refused);
    }
    let (vm, to) = (held.vm.id, to.map(|host| host.id));
    let work = Work::Migrate { vm, migration: MigrationId::new(), to, options: ask.options };
    Ok(Accepted(held.accept(work).await?).into_response())
}

pub(super) async fn list(State(server): Shared) -> Answer<Json<List<Migration>>> {
    let snapshot = server.snapshot().await?;
    let items =
        snapshot.migrations.values().map(|record| views::migration(&server, &snapshot, record)).collect();
    Ok(Json(List { items, revision: snapshot.revision }))
}

pub(super) async fn show(State(server): Shared, Path(id): Path<String>) -> Answer<Json<Migration>> {
    let snapshot = server.snapshot().await?;
    let record = id.parse::<MigrationId>().ok().and_then(|id| snapshot.migrations.get(&id));
    let record = record.ok_or_else(|| Refused::unknown("migration", id))?;
    Ok(Json(views::migration(&server, &snapshot, record)))
}

pub(super) async fn tasks(State(server): Shared) -> Answer<Json<List<Task>>> {
    let snapshot = server.snapshot().await?;
    let items = snapshot.tasks.values().map(|record| views::task(&server, &snapshot, record)).collect();
    Ok(Json(List { items, revision: snapshot.revision }))
}

pub(super) async fn cancel(State(server): Shared, Path(id): Path<String>) -> Answer<Json<Task>> {
    let mut tx = server.begin().await;
    let snapshot = server.snapshot().await?;
    let unknown = || Refused::unknown("task", &id);
    let task: TaskId = id.parse().map_err(|_| unknown())?;
    let mut record: TaskRecord = tx.get(&keys::of(keys::TASKS, task)).await?.ok_or_else(unknown)?;
    if record.has_ended() {
        let what = format!("too late: task {task} has ended, it {}", ended(record.task.state));
        return Err(Refused::conflict(what, "there is nothing to cancel"));
    }
    match record.work.clone() {
        Work::Migrate { migration, .. } => cancel_migration(&mut tx, &mut record, migration).await?,
        Work::Evacuate { .. } => {
            record.task.cancel_asked = true;
            tx.put(&keys::of(keys::TASKS, task), &record)?;
            for part in
                snapshot.tasks.values().filter(|part| part.task.parent == Some(task) && !part.has_ended())
            {
                let mut part = part.clone();
                if let Some(migration) = part.task.migration {
                    // One that has handed over goes on to its end.
                    let _ = cancel_migration(&mut tx, &mut part, migration).await;
                }
            }
        }
        Work::Start { vm } => {
            let key = keys::of(keys::VMS, vm);
            let mut vm: VmRecord = tx.get(&key).await?.ok_or_else(unknown)?;
            vm.desired = DesiredPower::Stopped;
            whereabouts::finish(&mut tx, &mut vm, TaskEnd::Cancelled).await?;
            tx.put(&key, &vm)?;
        }
        work => {
            let what = format!("a task of kind {} cannot be cancelled", work.kind().name());
            return Err(Refused::conflict(
                what,
                "wait for it; `limosa vm kill` ends a VM that does not stop",
            ));
        }
    }
    server.commit(tx).await?;
    let snapshot = server.snapshot().await?;
    let record = snapshot.tasks.get(&task).ok_or_else(unknown)?;
    Ok(Json(views::task(&server, &snapshot, record)))
}

fn ended(state: TaskState) -> &'static str {
    match state {
        TaskState::Succeeded => "succeeded",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "was cancelled",
        TaskState::Queued | TaskState::Running => "goes on",
    }
}

async fn cancel_migration(tx: &mut Tx<'_>, record: &mut TaskRecord, migration: MigrationId) -> Answer<()> {
    let key = keys::of(keys::MIGRATIONS, migration);
    let task_key = keys::of(keys::TASKS, record.task.id);
    let Some(mut begun) = tx.get::<MigrationRecord>(&key).await? else {
        if let Work::Migrate { vm, .. } = record.work {
            let vm_key = keys::of(keys::VMS, vm);
            if let Some(mut vm) = tx.get::<VmRecord>(&vm_key).await? {
                vm.task.take_if(|task| *task == record.task.id);
                tx.put(&vm_key, &vm)?;
            }
        }
        tasks::end(tx, record.task.id, TaskEnd::Cancelled).await?;
        return Ok(());
    };
    let handed_over = matches!(begun.passage.source, Some(Fact::HandedOver { .. } | Fact::Released));
    if handed_over || begun.passage.end().is_some() {
        return Err(Refused::conflict(
            format!("too late: migration {migration} of VM {} is behind its handover", begun.vm_name),
            "migrate the VM back when this has ended",
        ));
    }
    (begun.cancel_asked, record.task.cancel_asked) = (true, true);
    tx.put(&key, &begun)?;
    tx.put(&task_key, record)?;
    Ok(())
}

/// An operator's word that a VM's host is gone for good. Recorded with what it does.
pub(super) async fn resolve(
    State(server): Shared,
    Path(named): Path<String>,
    Json(ask): Json<ResolveVm>,
) -> Answer<Json<Vm>> {
    let mut held = Held::open(&server, &named).await?;
    let snapshot = held.snapshot.clone();
    let host: &HostRecord =
        snapshot.host(&ask.host_lost).ok_or_else(|| Refused::unknown("host", &ask.host_lost))?;
    let id = held.vm.id;
    let open: Vec<_> = snapshot
        .migrations
        .values()
        .filter(|m| !m.closed && m.passage.ticket.vm == id)
        .filter(|m| [m.passage.ticket.source, m.passage.ticket.destination].contains(&host.id))
        .map(MigrationRecord::id)
        .collect();
    let concerned = match held.vm.custody.at {
        At::On { host: on, .. } => on == host.id,
        At::Moving(migration) => open.contains(&migration),
        At::Nowhere => false,
    };
    if !concerned {
        let what = format!("VM {} is not on host {}, and does not move there", held.name(), host.name);
        return Err(Refused::conflict(what, format!("see where it is: `limosa vm show {}`", held.name())));
    }
    refuse_unless_gone(&server, host, ask.confirmed)?;
    let message = format!("an operator resolved {}: host {} is gone for good", held.name(), host.name);
    held.tx.event("vm-resolved", held.vm.subject(), message)?;
    whereabouts::lost_under(&mut held.tx, id, open.into_iter(), host).await?;
    server.commit(held.tx).await?;
    super::vms::show(State(server.clone()), Path(id.to_string())).await
}
