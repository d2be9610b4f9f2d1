//! Empties hosts: a migration for each VM, until none is left or one cannot leave.

use std::sync::Arc;

use limosa_api::agent::MigrationOptions;
use limosa_api::rest::{TaskResult, TaskState};
use limosa_model::{Failure, FailureKind, HostId, MigrationId, TaskId, VmId};
use limosa_store::StoreError;

use crate::records::{HostRecord, TaskRecord, VmRecord, Work, keys};
use crate::server::Server;
use crate::tasks::{self, TaskEnd};

pub(super) async fn evacuations(server: &Arc<Server>) -> Result<(), StoreError> {
    let snapshot = server.snapshot().await?;
    for record in snapshot.tasks.values().filter(|record| !record.has_ended()) {
        let Work::Evacuate { host, options } = &record.work else { continue };
        let id = record.task.id;
        let parts: Vec<_> = snapshot.tasks.values().filter(|part| part.task.parent == Some(id)).collect();
        let tried = |vm: VmId| {
            parts.iter().any(|part| matches!(part.work, Work::Migrate { vm: tried, .. } if tried == vm))
        };
        let mut left = 0;
        for vm in snapshot.vms_on(*host) {
            left += 1;
            if vm.task.is_none() && vm.on().is_some() && !tried(vm.id) && !record.task.cancel_asked {
                migrate(server, id, *host, vm.id, options).await?;
            }
        }
        if parts.iter().any(|part| !part.has_ended()) {
            continue;
        }
        let failed: Vec<_> = parts.iter().filter(|part| part.task.state != TaskState::Succeeded).collect();
        let moved = u32::try_from(parts.len() - failed.len()).unwrap_or(u32::MAX);
        let ended = match (left, failed.first()) {
            (0, _) => TaskEnd::Succeeded(Some(TaskResult::Evacuated(moved))),
            (_, _) if record.task.cancel_asked => TaskEnd::Cancelled,
            (_, Some(first)) => TaskEnd::Failed(not_empty(&snapshot.host_name(*host), left, first)),
            // Those that are left are still at something else, or have only just been found.
            (_, None) => continue,
        };
        let mut tx = server.begin().await;
        let key = keys::of(keys::HOSTS, host);
        if let Some(mut host) = tx.get::<HostRecord>(&key).await?
            && host.evacuation.take_if(|task| *task == id).is_some()
        {
            tx.put(&key, &host)?;
        }
        tasks::end(&mut tx, id, ended).await?;
        server.commit(tx).await?;
    }
    Ok(())
}

fn not_empty(host: &str, left: usize, first: &TaskRecord) -> Failure {
    let why = first.task.failure.as_ref().map(|failure| failure.what.clone()).unwrap_or_default();
    let kind = first.task.failure.as_ref().map_or(FailureKind::Conflict, |failure| failure.kind);
    let name = first.task.subject.name.as_ref().map(ToString::to_string).unwrap_or_default();
    Failure::new(
        kind,
        format!("{left} VMs are left on host {host}; {name}: {why}"),
        "remove what holds them, then evacuate again; the host stays cordoned",
    )
}

async fn migrate(
    server: &Server,
    parent: TaskId,
    host: HostId,
    vm: VmId,
    options: &MigrationOptions,
) -> Result<(), StoreError> {
    let mut tx = server.begin().await;
    let key = keys::of(keys::VMS, vm);
    let free = |vm: &VmRecord| vm.task.is_none() && vm.on().is_some_and(|(on, _)| on == host);
    let Some(mut vm) = tx.get::<VmRecord>(&key).await?.filter(free) else { return Ok(()) };
    let work = Work::Migrate { vm: vm.id, migration: MigrationId::new(), to: None, options: options.clone() };
    vm.task = Some(tasks::accept(&mut tx, vm.subject(), work, Some(parent))?.id);
    tx.put(&key, &vm)?;
    server.commit(tx).await
}
