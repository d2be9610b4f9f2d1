//! Brings each VM from what is to what should be: disks made, right given, started, stopped, removed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use limosa_api::agent::{ActOnVm, DeleteDisks, MakeDisks, StartVm, VmAction};
use limosa_api::client::CallError;
use limosa_api::rest::{DesiredPower, HostState, TaskResult};
use limosa_migration::custody::At;
use limosa_model::{Epoch, Failure, FailureKind, HostId, PowerState, VmId};
use limosa_store::StoreError;

use super::passages::stored;
use crate::hear;
use crate::live::OrderKey;
use crate::orders::{Done, target, was_refused};
use crate::prepare;
use crate::records::{HostRecord, VmRecord, Work, keys};
use crate::server::Server;
use crate::snapshot::Snapshot;
use crate::tasks::TaskEnd;
use crate::whereabouts;

/// How long after its time a stop may take to show, until the order is given again: the agent may have forgotten it.
const STOPPING: Duration = Duration::from_secs(10);

pub(super) async fn vms(server: &Arc<Server>) -> Result<(), StoreError> {
    let snapshot = server.snapshot().await?;
    let all_heard = !snapshot.hosts.values().any(|host| server.may_yet_report(host));
    for vm in snapshot.vms.values() {
        let work = vm.task.and_then(|task| snapshot.tasks.get(&task)).map(|record| &record.work);
        match (vm.custody.at, work) {
            (At::Moving(_), _) => {}
            (At::Nowhere, Some(Work::Delete { .. })) => delete(server, &snapshot, vm),
            (At::Nowhere, _) if !vm.disks_made && vm.spec.disks.is_empty() => {
                disks_are_made(server, vm.id).await?;
            }
            (At::Nowhere, _) if !vm.disks_made => make_disks(server, &snapshot, vm),
            (At::Nowhere, _) if vm.desired == DesiredPower::Running => {
                if all_heard {
                    give_right(server, &snapshot, vm).await?;
                }
            }
            (At::Nowhere, _) => start_after_boot(server, &snapshot, vm).await?,
            (At::On { host, epoch }, work) => {
                let Some(host) = snapshot.hosts.get(&host) else { continue };
                if vm.confirmed {
                    act(server, &snapshot, vm, host, epoch, work);
                } else if vm.by_start && vm.journal == host.journal {
                    start(server, &snapshot, vm, host, epoch);
                }
            }
        }
    }
    Ok(())
}

/// Changes a VM's record, unless `still` says that it is not as it was.
async fn change(
    server: &Server,
    id: VmId,
    still: impl Fn(&VmRecord) -> bool,
    how: impl AsyncFnOnce(&mut crate::tx::Tx<'_>, &mut VmRecord) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut tx = server.begin().await;
    let key = keys::of(keys::VMS, id);
    let Some(mut vm) = tx.get::<VmRecord>(&key).await?.filter(still) else { return Ok(()) };
    let before = vm.clone();
    how(&mut tx, &mut vm).await?;
    if vm != before {
        tx.put(&key, &vm)?;
    }
    server.commit(tx).await
}

/// Chooses a host and gives it the right to run the VM. The order leaves once that is durable.
async fn give_right(server: &Server, snapshot: &Snapshot, vm: &VmRecord) -> Result<(), StoreError> {
    let host = match prepare::place(server, snapshot, vm, vm.wanted_on) {
        Ok(host) => host,
        // What was asked for fails; what the restart policy wants waits for room.
        Err(_) if vm.task.is_none() => return Ok(()),
        Err(failure) => {
            return change(
                server,
                vm.id,
                |now| now.custody == vm.custody,
                async |tx, vm| {
                    vm.desired = DesiredPower::Stopped;
                    vm.reason = Some(failure.what.clone());
                    whereabouts::finish(tx, vm, TaskEnd::Failed(failure)).await
                },
            )
            .await;
        }
    };
    let Some(host) = snapshot.hosts.get(&host) else { return Ok(()) };
    let Ok(custody) = vm.custody.start(host.id) else { return Ok(()) };
    let right = custody.last;
    change(
        server,
        vm.id,
        |now| now == vm,
        async |_, vm| {
            vm.custody = custody;
            (vm.journal, vm.boot) = (host.journal, host.boot.clone());
            (vm.by_start, vm.confirmed, vm.reported) = (true, false, false);
            vm.at_boot = None;
            // The wish was for this start alone.
            vm.wanted_on = None;
            if vm.spec.machine.machine_type.is_none() {
                vm.spec.machine.machine_type = prepare::machine_type(server, snapshot, &vm.spec, host);
            }
            Ok(())
        },
    )
    .await?;
    server.live().clean_starts.insert((vm.id, right));
    Ok(())
}

async fn start_after_boot(server: &Server, snapshot: &Snapshot, vm: &VmRecord) -> Result<(), StoreError> {
    let Some((host, boot)) = &vm.at_boot else { return Ok(()) };
    let booted = snapshot.hosts.get(host).and_then(|host| host.boot.as_ref()).is_some_and(|now| now != boot);
    if !booted || vm.task.is_some() {
        return Ok(());
    }
    change(
        server,
        vm.id,
        |now| now == vm,
        async |_, vm| {
            (vm.desired, vm.at_boot) = (DesiredPower::Running, None);
            Ok(())
        },
    )
    .await
}

fn start(server: &Arc<Server>, snapshot: &Snapshot, vm: &VmRecord, host: &HostRecord, epoch: Epoch) {
    let (server_, host_, id) = (server.clone(), host.clone(), vm.id);
    let target = target(snapshot, vm.id, &vm.spec, host);
    server.dispatch(OrderKey::Vm(vm.id, "start"), async move {
        let (server, host) = (server_, host_);
        let order = server.order(&host, StartVm { epoch, target: target? })?;
        let agent = server.agent_of(&host)?;
        match agent.start_vm(&order).await {
            Ok(status) if status.epoch == epoch => {
                server.live().note_vm(host.id, status.clone());
                change(
                    &server,
                    id,
                    |vm| vm.on() == Some((host.id, epoch)),
                    async |tx, vm| match status.power {
                        PowerState::Stopped => hear::stopped(tx, vm, &host, status.reason.clone()).await,
                        _ => hear::shown(tx, vm, &host, &status).await,
                    },
                )
                .await
                .map_err(stored)?;
                Ok(Done::Changed)
            }
            Ok(_) => Ok(Done::Same),
            Err(error) if was_refused(&error) => {
                let clean = server.live().clean_starts.contains(&(id, epoch));
                let failure = Failure::from(error);
                let nothing_runs = make_sure(&server, &host, id, epoch, clean).await?;
                if nothing_runs {
                    change(
                        &server,
                        id,
                        |vm| vm.on() == Some((host.id, epoch)),
                        async |tx, vm| {
                            vm.custody = vm.custody.stopped(host.id, epoch);
                            whereabouts::ended(tx, vm, &host, Some(failure.clone())).await
                        },
                    )
                    .await
                    .map_err(stored)?;
                    return Ok(Done::Changed);
                }
                Err(failure)
            }
            Err(error) => {
                server.live().clean_starts.remove(&(id, epoch));
                Err(error.into())
            }
        }
    });
}

/// A start was refused. Whether that means that nothing runs, and nothing will: the host says so when it is told to
/// kill what runs under that epoch, or has never heard of it while no start is still on its way.
async fn make_sure(
    server: &Server,
    host: &HostRecord,
    vm: VmId,
    epoch: Epoch,
    clean: bool,
) -> Result<bool, Failure> {
    let order = server.order(host, ActOnVm { epoch, action: VmAction::Kill })?;
    match server.agent_of(host)?.act(vm, &order).await {
        Ok(status) => Ok(status.epoch == epoch && status.power == PowerState::Stopped),
        Err(CallError::Refused(problem)) if problem.code == FailureKind::NotFound => Ok(clean),
        Err(error) => Err(error.into()),
    }
}

/// Does with a running VM what its task or its user wants.
fn act(
    server: &Arc<Server>,
    snapshot: &Snapshot,
    vm: &VmRecord,
    host: &HostRecord,
    epoch: Epoch,
    work: Option<&Work>,
) {
    let (name, action) = match work {
        Some(Work::Stop { timeout_ms, .. }) => ("stop", VmAction::Stop { timeout_ms: *timeout_ms }),
        Some(Work::Kill { .. }) => ("kill", VmAction::Kill),
        Some(Work::Reboot { timeout_ms, .. }) => ("reboot", VmAction::Reboot { timeout_ms: *timeout_ms }),
        Some(Work::Pause { .. }) => ("pause", VmAction::Pause),
        Some(Work::Resume { .. }) => ("resume", VmAction::Resume),
        None if vm.desired == DesiredPower::Stopped => {
            ("stop", VmAction::Stop { timeout_ms: vm.spec.policy.stop_timeout_ms })
        }
        _ if vm.changed => match target(snapshot, vm.id, &vm.spec, host) {
            Ok(target) => ("set", VmAction::Set { target: Box::new(target) }),
            Err(_) => return,
        },
        _ => return,
    };
    let until_stopped = matches!(name, "stop" | "kill");
    let has_time =
        server.live().taken_on.get(&(vm.id, epoch, name)).is_some_and(|until| Instant::now() < *until);
    if until_stopped && has_time {
        return;
    }
    let patience = match &action {
        VmAction::Stop { timeout_ms } => timeout_ms.duration() + STOPPING,
        _ => STOPPING,
    };
    let (server_, host, before) = (server.clone(), host.clone(), vm.clone());
    server.dispatch(OrderKey::Vm(vm.id, name), async move {
        let server = server_;
        let order = server.order(&host, ActOnVm { epoch, action })?;
        let answer = server.agent_of(&host)?.act(before.id, &order).await;
        let still = |vm: &VmRecord| vm.on() == Some((host.id, epoch)) && vm.task == before.task;
        match answer {
            Ok(status) => {
                server.live().note_vm(host.id, status.clone());
                if until_stopped {
                    server.live().taken_on.insert((before.id, epoch, name), Instant::now() + patience);
                }
                change(&server, before.id, still, async |tx, vm| {
                    if status.epoch == epoch && status.power == PowerState::Stopped {
                        return hear::stopped(tx, vm, &host, status.reason.clone()).await;
                    }
                    if name == "set" {
                        vm.changed = vm.spec != before.spec;
                    } else if !until_stopped {
                        whereabouts::finish(tx, vm, TaskEnd::Succeeded(None)).await?;
                    }
                    Ok(())
                })
                .await
                .map_err(stored)?;
                Ok(Done::Changed)
            }
            // Where the VM is not there any more, the host's report says so.
            Err(CallError::Refused(problem))
                if name != "set"
                    && before.task.is_some()
                    && !matches!(problem.code, FailureKind::NotFound | FailureKind::Conflict) =>
            {
                let failure = Failure::from(*problem);
                change(&server, before.id, still, async |tx, vm| {
                    if until_stopped {
                        vm.desired = DesiredPower::Running;
                    }
                    whereabouts::finish(tx, vm, TaskEnd::Failed(failure)).await
                })
                .await
                .map_err(stored)?;
                Ok(Done::Changed)
            }
            Err(error) => Err(error.into()),
        }
    });
}

/// A host that reaches all disks of a VM and can be given orders.
fn host_for_disks<'s>(server: &Server, snapshot: &'s Snapshot, vm: &VmRecord) -> Option<&'s HostRecord> {
    let usable = |host: &&HostRecord| {
        server.host_state(host) == HostState::Online && target(snapshot, vm.id, &vm.spec, host).is_ok()
    };
    let wanted = vm.wanted_on.and_then(|host: HostId| snapshot.hosts.get(&host)).filter(usable);
    wanted.or_else(|| snapshot.hosts.values().find(usable))
}

/// All disks are there: a VM that is not to be started is made.
async fn disks_are_made(server: &Server, id: VmId) -> Result<(), StoreError> {
    change(
        server,
        id,
        |vm| !vm.disks_made,
        async |tx, vm| {
            vm.disks_made = true;
            if vm.desired == DesiredPower::Stopped {
                let created = TaskEnd::Succeeded(Some(TaskResult::Created(id)));
                whereabouts::finish(tx, vm, created).await?;
            }
            Ok(())
        },
    )
    .await
}

fn make_disks(server: &Arc<Server>, snapshot: &Snapshot, vm: &VmRecord) {
    let Some(host) = host_for_disks(server, snapshot, vm).cloned() else { return };
    let (server_, id, target) = (server.clone(), vm.id, target(snapshot, vm.id, &vm.spec, &host));
    server.dispatch(OrderKey::Vm(vm.id, "make-disks"), async move {
        let (server, target) = (server_, target?);
        let order = server.order(&host, MakeDisks { target: target.clone() })?;
        let agent = server.agent_of(&host)?;
        match agent.make_disks(&order).await {
            Ok(_) => disks_are_made(&server, id).await.map_err(stored)?,
            Err(CallError::Refused(problem)) => {
                // Nothing is left behind of a VM that could not be made.
                agent.delete_disks(&server.order(&host, DeleteDisks { target })?).await?;
                remove(&server, id, TaskEnd::Failed((*problem).into())).await.map_err(stored)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Done::Changed)
    });
}

fn delete(server: &Arc<Server>, snapshot: &Snapshot, vm: &VmRecord) {
    let host = host_for_disks(server, snapshot, vm).cloned();
    let (server_, id, has_disks) = (server.clone(), vm.id, !vm.spec.disks.is_empty());
    let target = host.as_ref().map(|host| target(snapshot, vm.id, &vm.spec, host));
    server.dispatch(OrderKey::Vm(vm.id, "delete-disks"), async move {
        let server = server_;
        if has_disks {
            let (Some(host), Some(target)) = (host, target) else {
                let what = "no host that reaches the VM's disks is online";
                return Err(Failure::new(FailureKind::Storage, what, "start the agent of one that does"));
            };
            let order = server.order(&host, DeleteDisks { target: target? })?;
            server.agent_of(&host)?.delete_disks(&order).await?;
        }
        remove(&server, id, TaskEnd::Succeeded(None)).await.map_err(stored)?;
        Ok(Done::Changed)
    });
}

/// The VM is no more: its record, its name and its addresses go in one change.
async fn remove(server: &Server, id: VmId, end: TaskEnd) -> Result<(), StoreError> {
    let mut tx = server.begin().await;
    let key = keys::of(keys::VMS, id);
    let Some(mut vm) = tx.get::<VmRecord>(&key).await?.filter(|vm| vm.custody.at == At::Nowhere) else {
        return Ok(());
    };
    whereabouts::finish(&mut tx, &mut vm, end).await?;
    tx.delete(&keys::name(keys::VMS, &vm.spec.name));
    for mac in vm.spec.nics.iter().filter_map(|nic| nic.mac) {
        tx.delete(&keys::mac(mac));
    }
    tx.event("vm-removed", vm.subject(), format!("{} is removed", vm.spec.name))?;
    tx.delete(&key);
    server.commit(tx).await
}
