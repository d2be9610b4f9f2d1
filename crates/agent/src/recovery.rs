//! What an agent does when it comes back: finds its VMs, looks what its migrations' QEMUs do, and goes on.

use std::sync::Arc;
use std::time::Duration;

use limosa_api::agent::VmOnHost;
use limosa_migration::{Ticket, destination, source};
use limosa_qemu::commands::migration::MigrationStatus;
use limosa_qemu::commands::run::RunState;
use limosa_vm::{Adopted, Vm, adopt_all, remove_runtime};

use crate::AgentError;
use crate::agent::{Agent, Silent};
use crate::guest::{self, Guest};
use crate::ledger::{MigrationRecord, Part, VmRecord};
use crate::migration::{First, Sight, take_up};

/// How long a QEMU that does not answer is left alone before it is spoken to again.
const AGAIN: Duration = Duration::from_millis(200);

/// Takes up everything that was here before.
pub(crate) async fn recover(agent: &Arc<Agent>) -> Result<(), AgentError> {
    let silent = adopt(agent).await?;
    let migrations = agent.ledger.migrations()?;
    for record in agent.ledger.vms()? {
        // What a migration has to do with is the migration's to let go.
        let moves = migrations.iter().any(|migration| migration.part.ticket().vm == record.target.vm);
        take_vm(agent, record, !moves).await;
    }
    if agent.ledger.is_fresh() {
        adopt_without_journal(agent).await;
    }
    for record in migrations {
        go_on(agent, record).await;
    }
    for adopted in silent {
        tokio::spawn(listen_for(agent.clone(), adopted));
    }
    Ok(())
}

/// Finds the QEMUs of earlier agents, and watches them. Returns those that live and do not answer: what their VMs and
/// migrations do cannot be known yet, and nothing is concluded from it.
pub(crate) async fn adopt(agent: &Arc<Agent>) -> Result<Vec<Adopted>, AgentError> {
    let mut silent = Vec::new();
    for adopted in adopt_all(&agent.runtime_root(), &agent.net).await? {
        let (vm, epoch) = (adopted.vm, adopted.epoch);
        if agent.guest(vm).is_some() || agent.silent(vm).is_some() {
            tracing::error!(%vm, %epoch, "a second QEMU of one VM was found; it is left alone");
            continue;
        }
        match adopted.handle {
            Ok(handle) => attach(agent, handle),
            Err(error) => {
                tracing::error!(%vm, %epoch, %error, "a QEMU does not answer");
                agent.note_silent(vm, Some(Silent { epoch, process: adopted.process.clone() }));
                silent.push(Adopted { handle: Err(error), ..adopted });
            }
        }
    }
    Ok(silent)
}

fn attach(agent: &Arc<Agent>, vm: Vm) {
    tracing::info!(vm = %vm.id(), epoch = %vm.epoch(), "adopted");
    let guest = Guest::new(vm);
    agent.add_guest(guest.clone());
    guest::watch(agent, &guest);
}

/// Goes on with a VM and its migration once its QEMU answers, or has ended.
async fn listen_for(agent: Arc<Agent>, mut adopted: Adopted) {
    let (vm, epoch) = (adopted.vm, adopted.epoch);
    loop {
        let process = adopted.process.clone();
        tokio::select! {
            _ = process.exited() => {
                if let Err(error) = remove_runtime(&adopted.runtime_dir) {
                    tracing::warn!(%vm, %error, "a VM has left something behind");
                }
                break;
            }
            () = adopted.try_again(&agent.net) => {}
        }
        match adopted.handle {
            Ok(handle) => {
                attach(&agent, handle);
                break;
            }
            Err(ref error) => tracing::debug!(%vm, %error, "a QEMU still does not answer"),
        }
        tokio::time::sleep(AGAIN).await;
    }
    agent.note_silent(vm, None);
    if let Some(record) = agent.record(vm).filter(|record| record.epoch == epoch) {
        let moves = agent.migrations().iter().any(|migration| migration.vm() == vm);
        take_vm(&agent, record, !moves).await;
    }
    for migration in agent.migrations().iter().filter(|m| m.vm() == vm) {
        let record = migration.record();
        let sight = sight(&agent, &record).await;
        migration.restarted(sight);
    }
}

/// A VM that the journal knows is running, or it has ended for good.
async fn take_vm(agent: &Arc<Agent>, record: VmRecord, may_start: bool) {
    let (vm, epoch) = (record.target.vm, record.epoch);
    let runs = agent.guest(vm).filter(|guest| guest.epoch() == epoch);
    let ended = record.ended.is_some();
    let rebooted = record.boot != agent.boot;
    agent.load_record(record);
    agent.see_epoch(epoch);
    if agent.silent(vm).is_some_and(|silent| silent.epoch == epoch) {
        return;
    }
    match runs {
        Some(guest) if !ended && may_start => go_on_starting(agent, &guest).await,
        Some(_) => {}
        None if ended => {}
        None if rebooted => guest::end_record(agent, vm, epoch, "the host was booted"),
        None => guest::end_record(agent, vm, epoch, "QEMU had ended when the agent came back"),
    }
}

/// A VM whose start was interrupted between its QEMU's start and its own is started now.
async fn go_on_starting(agent: &Agent, guest: &Guest) {
    let waits = guest.vm.migration().is_none()
        && guest.vm.run_state().await.is_ok_and(|state| state == RunState::Prelaunch)
        && agent.record(guest.id()).is_some_and(|record| !record.paused);
    if !waits {
        return;
    }
    if let Err(error) = guest.vm.open_ports(&agent.net).await {
        tracing::error!(vm = %guest.id(), %error, "a port of the VM could not be opened");
    }
    if let Err(error) = guest.vm.qmp().cont().await {
        tracing::error!(vm = %guest.id(), %error, "a VM that was being started does not go on");
    }
}

/// The journal is lost: what runs says itself who it is and by which right, and is this host's again. What came by a
/// migration and stands still is in doubt: the server asks for it.
async fn adopt_without_journal(agent: &Arc<Agent>) {
    for guest in agent.guests() {
        agent.see_epoch(guest.epoch());
        let state = guest.vm.run_state().await;
        let runs = state.as_ref().is_ok_and(|state| *state == RunState::Running);
        let came = guest.vm.migration().is_some();
        // A source that has sent everything may have handed over.
        if came && !runs || state.is_ok_and(|state| state == RunState::PostMigrate) {
            tracing::warn!(vm = %guest.id(), epoch = %guest.epoch(), "in doubt: the journal is lost");
            continue;
        }
        tracing::warn!(vm = %guest.id(), epoch = %guest.epoch(), "adopted without a journal");
        let spec = guest.vm.plan().spec.clone();
        let record = VmRecord {
            target: VmOnHost { vm: guest.id(), spec, datastores: vec![], networks: vec![] },
            epoch: guest.epoch(),
            boot: agent.boot.clone(),
            paused: !runs,
            ended: None,
        };
        if let Err(error) = agent.put_record(record) {
            tracing::error!(vm = %guest.id(), %error, "a VM that was adopted could not be written down");
        }
    }
}

/// Where a migration is, by what its QEMU does. Where that cannot be known yet, it is only taken up.
async fn go_on(agent: &Arc<Agent>, record: MigrationRecord) {
    let ticket = record.part.ticket();
    tracing::info!(migration = %ticket.migration, state = record.part.state_name(), "taken up again");
    let first = match agent.silent(ticket.vm) {
        Some(_) => First::Silent,
        None => First::Restarted(sight(agent, &record).await),
    };
    take_up(agent, record, first);
}

async fn sight(agent: &Agent, record: &MigrationRecord) -> Sight {
    let ticket = record.part.ticket();
    match record.part {
        Part::Source(_) => Sight::Source(source_sight(agent, &ticket).await),
        Part::Destination(_) if record.boot != agent.boot => Sight::Destination(destination::Sight::Rebooted),
        Part::Destination(_) => Sight::Destination(destination_sight(agent, &ticket).await),
    }
}

/// What the source's QEMU does.
pub(crate) async fn source_sight(agent: &Agent, ticket: &Ticket) -> source::Sight {
    let Some(guest) = agent.guest(ticket.vm).filter(|g| g.epoch() == ticket.source_epoch) else {
        return source::Sight::Gone;
    };
    let info = guest.vm.qmp().query_migrate().await;
    let state = guest.vm.run_state().await;
    match (info.map(|info| info.status), state) {
        (_, Ok(RunState::PostMigrate)) => source::Sight::PostMigrate,
        (Ok(MigrationStatus::PreSwitchover | MigrationStatus::Device), _) => source::Sight::Stopped,
        (Ok(MigrationStatus::Failed | MigrationStatus::Cancelled | MigrationStatus::Cancelling), _) => {
            source::Sight::Failed
        }
        // A QEMU that has come by a migration remembers that one as completed.
        (Ok(MigrationStatus::None | MigrationStatus::Completed), _) => source::Sight::NotMigrating,
        (Ok(_), _) => source::Sight::Sending,
        (Err(_), _) if !guest.vm.process().is_alive() => source::Sight::Gone,
        (Err(_), _) => source::Sight::Sending,
    }
}

/// What the destination's QEMU does.
pub(crate) async fn destination_sight(agent: &Agent, ticket: &Ticket) -> destination::Sight {
    let Some(guest) = agent.guest(ticket.vm).filter(|g| g.epoch() == ticket.epoch) else {
        return destination::Sight::Gone;
    };
    let state = guest.vm.run_state().await;
    let loaded = guest.vm.qmp().query_migrate().await.is_ok_and(|i| i.status == MigrationStatus::Completed);
    match state {
        Ok(RunState::Running) => destination::Sight::Running,
        Ok(RunState::InMigrate) => destination::Sight::Incoming,
        Ok(_) if !loaded => destination::Sight::Incoming,
        Ok(_) => match guest.vm.qmp().query_named_block_nodes().await {
            // Without disks, or before QEMU 10, nothing tells whether they were taken: it may have run.
            Ok(nodes) if !nodes.is_empty() && nodes.iter().all(|node| node.is_active == Some(false)) => {
                destination::Sight::Loaded
            }
            _ => destination::Sight::Activated,
        },
        Err(_) if !guest.vm.process().is_alive() => destination::Sight::Gone,
        Err(_) => destination::Sight::Incoming,
    }
}
