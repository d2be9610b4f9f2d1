//! What becomes of a VM when its right changes hands or ends.
//!
//! The decisions themselves are those of `limosa_migration::custody`. Here is what follows from them: whether the VM
//! is started again, and what its task has come to.

use jiff::{SignedDuration, Timestamp};
use limosa_api::rest::DesiredPower;
use limosa_migration::custody::{At, Passage};
use limosa_model::spec::RestartPolicy;
use limosa_model::{Failure, FailureKind, HostId};
use limosa_store::StoreError;

use crate::records::{HostRecord, MigrationRecord, TaskRecord, VmRecord, Work, keys};
use crate::tasks::{self, TaskEnd};
use crate::tx::Tx;

/// How often, and within which time, the restart policy starts a VM again.
const RESTARTS: (usize, SignedDuration) = (3, SignedDuration::from_mins(10));

/// The VM has lost its right: it runs nowhere. `custody` says so already.
///
/// `failure` is why, unless its user or its guest wanted it.
pub(crate) async fn ended(
    tx: &mut Tx<'_>,
    vm: &mut VmRecord,
    host: &HostRecord,
    failure: Option<Failure>,
) -> Result<(), StoreError> {
    let booted_since = vm.boot.is_some() && vm.boot != host.boot;
    let was_confirmed = std::mem::take(&mut vm.confirmed);
    (vm.journal, vm.by_start, vm.reported, vm.changed) = (None, false, false, false);
    vm.reason = failure.as_ref().map(|failure| failure.what.clone());
    let subject = vm.subject();

    let work = match vm.task {
        Some(task) => tx.get::<TaskRecord>(&keys::of(keys::TASKS, task)).await?.map(|record| record.work),
        None => None,
    };
    let gone = || Failure::new(FailureKind::Conflict, "the VM has ended meanwhile", "start it first");
    match &work {
        Some(Work::Stop { .. } | Work::Kill { .. }) => {
            vm.desired = DesiredPower::Stopped;
            finish(tx, vm, TaskEnd::Succeeded(None)).await?;
        }
        Some(Work::Start { .. } | Work::Create { .. }) if !was_confirmed => {
            vm.desired = DesiredPower::Stopped;
            finish(tx, vm, TaskEnd::Failed(failure.clone().unwrap_or_else(gone))).await?;
        }
        Some(Work::Delete { .. }) => vm.desired = DesiredPower::Stopped,
        Some(_) => finish(tx, vm, TaskEnd::Failed(failure.clone().unwrap_or_else(gone))).await?,
        None => {}
    }
    let name = vm.spec.name.clone();
    if vm.desired == DesiredPower::Stopped {
        if !matches!(work, Some(Work::Start { .. } | Work::Create { .. })) {
            vm.reason = None;
        }
        return tx.event("vm-stopped", subject, format!("{name} is stopped"));
    }
    match failure {
        None => {
            vm.desired = DesiredPower::Stopped;
            start_at_next_boot(vm, host);
            tx.event("vm-stopped", subject, format!("{name} was shut down from inside"))
        }
        Some(failure) if may_restart(vm) => {
            vm.restarts.push(Timestamp::now());
            tx.event("vm-restarting", subject, format!("{name} ended and is started again: {}", failure.what))
        }
        Some(failure) if vm.spec.policy.start_at_boot && booted_since => {
            tx.event("vm-restarting", subject, format!("{name} is started after a boot: {}", failure.what))
        }
        Some(failure) => {
            vm.desired = DesiredPower::Stopped;
            start_at_next_boot(vm, host);
            tx.event("vm-ended", subject, format!("{name} ended: {}", failure.what))
        }
    }
}

fn start_at_next_boot(vm: &mut VmRecord, host: &HostRecord) {
    if vm.spec.policy.start_at_boot {
        vm.at_boot = host.boot.clone().map(|boot| (host.id, boot));
    }
}

fn may_restart(vm: &mut VmRecord) -> bool {
    let (times, within) = RESTARTS;
    let now = Timestamp::now();
    vm.restarts.retain(|at| now.duration_since(*at) < within);
    vm.spec.policy.restart == RestartPolicy::OnFailure && vm.restarts.len() < times
}

/// Ends the task that works on a VM.
pub(crate) async fn finish(tx: &mut Tx<'_>, vm: &mut VmRecord, end: TaskEnd) -> Result<(), StoreError> {
    match vm.task.take() {
        Some(task) => tasks::end(tx, task, end).await,
        None => Ok(()),
    }
}

/// Takes what a passage has come to hear, and what follows for its VM, in one change.
pub(crate) async fn heard(
    tx: &mut Tx<'_>,
    record: &mut MigrationRecord,
    passage: Passage,
) -> Result<(), StoreError> {
    if passage == record.passage {
        return Ok(());
    }
    let before = record.passage.end();
    record.passage = passage;
    tx.put(&keys::of(keys::MIGRATIONS, record.id()), record)?;
    if before == passage.end() {
        return Ok(());
    }
    let ticket = passage.ticket;
    let Some(mut vm) = tx.get::<VmRecord>(&keys::of(keys::VMS, ticket.vm)).await? else { return Ok(()) };
    let custody = vm.custody.follow(&passage);
    if custody == vm.custody {
        return Ok(());
    }
    vm.custody = custody;
    let name = vm.spec.name.clone();
    match vm.custody.at {
        At::On { host, .. } => {
            let arrived = host == ticket.destination;
            // The journal that has just said so, which need not be the one that the migration began with.
            vm.journal = host_record(tx, host).await?.and_then(|host| host.journal);
            (vm.by_start, vm.confirmed, vm.reported) = (false, false, false);
            if arrived {
                vm.boot = host_record(tx, host).await?.and_then(|host| host.boot);
                tx.event("vm-moved", vm.subject(), format!("{name} runs on its new host"))?;
            }
        }
        At::Nowhere => {
            if let Some(host) = host_record(tx, ticket.destination).await? {
                let what = format!("{name} ended while it moved");
                let failure = Failure::new(FailureKind::Peer, what, "look at the reports of both hosts");
                // The migration's task ends with its report.
                let (task, desired) = (vm.task.take(), vm.desired);
                ended(tx, &mut vm, &host, Some(failure)).await?;
                vm.task = task;
                if passage.source_lost || passage.destination_lost {
                    vm.desired = desired;
                }
            }
        }
        At::Moving(_) => {}
    }
    tx.put(&keys::of(keys::VMS, vm.id), &vm)
}

/// A host is gone for good, by an operator's word, which replaces the facts that it can never tell. A VM that should
/// run is started elsewhere, from its disks and at a higher epoch.
async fn host_lost(tx: &mut Tx<'_>, vm: &mut VmRecord, host: &HostRecord) -> Result<(), StoreError> {
    let custody = vm.custody.host_lost(host.id);
    if custody != vm.custody {
        vm.custody = custody;
        let what = format!("host {} is gone for good", host.name);
        let failure = Failure::new(FailureKind::Peer, what, "start the VM on another host");
        let desired = vm.desired;
        ended(tx, vm, host, Some(failure)).await?;
        vm.desired = desired;
        tx.put(&keys::of(keys::VMS, vm.id), vm)?;
    }
    Ok(())
}

/// An operator's word that a host is gone for good, for one VM: what it was, and what it was moving to.
pub(crate) async fn lost_under(
    tx: &mut Tx<'_>,
    id: limosa_model::VmId,
    migrations: impl Iterator<Item = limosa_model::MigrationId>,
    host: &HostRecord,
) -> Result<(), StoreError> {
    for migration in migrations {
        let key = keys::of(keys::MIGRATIONS, migration);
        if let Some(mut record) = tx.get::<MigrationRecord>(&key).await? {
            let passage = record.passage.host_lost(host.id);
            heard(tx, &mut record, passage).await?;
        }
    }
    match tx.get::<VmRecord>(&keys::of(keys::VMS, id)).await? {
        Some(mut vm) => host_lost(tx, &mut vm, host).await,
        None => Ok(()),
    }
}

async fn host_record(tx: &mut Tx<'_>, host: HostId) -> Result<Option<HostRecord>, StoreError> {
    tx.get(&keys::of(keys::HOSTS, host)).await
}
