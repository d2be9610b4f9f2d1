//! The life of a VM on this host, apart from its migrations: started, acted on, stopped.

use std::sync::Arc;
use std::time::Duration;

use limosa_api::agent::{ActOnVm, StartVm, VmAction, VmOnHost, VmStatus};
use limosa_model::{Epoch, Failure, FailureKind, Millis, PowerState, VmId};
use limosa_qemu::commands::run::RunState;

use crate::agent::Agent;
use crate::guest::{self, Guest};
use crate::ledger::VmRecord;
use crate::resolve::launch_plan;

fn conflict(what: String, remedy: &str) -> Failure {
    Failure::new(FailureKind::Conflict, what, remedy)
}

fn vm_failure(doing: &str, error: &limosa_vm::VmError) -> Failure {
    Failure::new(error.kind(), format!("could not {doing}: {error}"), "see the log of the agent")
}

/// Starts a VM from its disks, under a right that is higher than all that this host has seen for it.
pub(crate) async fn start(agent: &Arc<Agent>, order: &StartVm) -> Result<VmStatus, Failure> {
    let vm = order.target.vm;
    let _one_at_a_time = agent.lifecycle.lock().await;
    if let Some(record) = agent.record(vm) {
        if record.epoch == order.epoch && record.ended.is_none() && agent.guest(vm).is_some() {
            return status(agent, vm).await;
        }
        if record.epoch >= order.epoch {
            return Err(conflict(
                format!(
                    "VM {} was here under epoch {}, the order is for {}",
                    record.target.spec.name, record.epoch, order.epoch
                ),
                "this order is old: wait for the server to give another",
            ));
        }
    }
    not_late(agent, vm, order.epoch)?;
    if let Some(silent) = agent.silent(vm) {
        return Err(conflict(
            format!(
                "VM {} has a QEMU here that does not answer, under epoch {}",
                order.target.spec.name, silent.epoch
            ),
            "wait until it does, or end it with `limosa vm kill`",
        ));
    }
    if let Some(guest) = agent.guest(vm) {
        return Err(conflict(
            format!("VM {} has a QEMU here already, under epoch {}", order.target.spec.name, guest.epoch()),
            "wait until it is resolved",
        ));
    }
    if let Some(migration) = agent.open_migration_of(vm) {
        return Err(conflict(
            format!("migration {} of VM {} has not ended here", migration.id(), order.target.spec.name),
            "wait for its end",
        ));
    }
    // The right is written down before anything is tried: an agent that comes back knows that the VM may be here, and
    // one that refuses says for good that it is not.
    agent.put_record(VmRecord {
        target: order.target.clone(),
        epoch: order.epoch,
        boot: agent.boot.clone(),
        paused: false,
        ended: None,
    })?;
    agent.see_epoch(order.epoch);
    let root = agent.runtime_root();
    let planned = admit(agent, &order.target).and_then(|()| {
        let mut target = order.target.clone();
        pin_machine(agent, &mut target)?;
        launch_plan(&target, order.epoch, None, &agent.place(&root))
    });
    let started = match planned {
        Ok(plan) => run(agent, plan).await,
        Err(failure) => Err(failure),
    };
    match started {
        Ok(()) => status(agent, vm).await,
        Err(failure) => {
            guest::end_record(agent, vm, order.epoch, &failure.what);
            Err(failure)
        }
    }
}

/// A VM that has left comes back under a higher right only.
pub(crate) fn not_late(agent: &Agent, vm: VmId, epoch: Epoch) -> Result<(), Failure> {
    let floor = agent.ledger.floor(vm).map_err(|error| crate::agent::journal_failure(&error))?;
    if epoch <= floor {
        return Err(conflict(
            format!("VM {vm} has left this host under epoch {floor}, the order is for {epoch}"),
            "this order is old: wait for the server to give another",
        ));
    }
    Ok(())
}

async fn run(agent: &Arc<Agent>, plan: limosa_vm::LaunchPlan) -> Result<(), Failure> {
    let vm = limosa_vm::launch(plan, &agent.net).await.map_err(|e| vm_failure("start QEMU", &e))?;
    let guest = Guest::new(vm);
    agent.add_guest(guest.clone());
    guest::watch(agent, &guest);
    let begun = async {
        guest.vm.open_ports(&agent.net).await.map_err(|e| vm_failure("open the VM's ports", &e))?;
        guest.vm.qmp().cont().await.map_err(|e| {
            Failure::new(FailureKind::Qemu, format!("QEMU does not run the VM: {e}"), "see the agent's log")
        })
    };
    let result = begun.await;
    if result.is_err() {
        if let Err(error) = guest.dismiss().await {
            tracing::error!(vm = %guest.id(), %error, "a VM that could not be started could not be ended either");
        }
        agent.remove_guest(&guest);
    }
    result
}

/// Whether there is room for one more.
pub(crate) fn admit(agent: &Agent, target: &VmOnHost) -> Result<(), Failure> {
    let spec = &target.spec;
    let free = agent.facts.capacity.less(agent.taken());
    if spec.memory > free.memory {
        return Err(Failure::new(
            FailureKind::Resource,
            format!("VM {} needs {} of memory, the host has {} left", spec.name, spec.memory, free.memory),
            "move VMs away, or choose another host",
        ));
    }
    Ok(())
}

/// The machine type that the VM keeps from its first start on: the newest of its chipset that this QEMU has.
fn pin_machine(agent: &Agent, target: &mut VmOnHost) -> Result<(), Failure> {
    use limosa_model::spec::Chipset;
    let machine = &mut target.spec.machine;
    let prefix = match machine.chipset {
        Chipset::Q35 => "pc-q35-",
        Chipset::Pc => "pc-i440fx-",
    };
    let types = &agent.facts.machine_types;
    match &machine.machine_type {
        Some(pinned) if types.contains(pinned) => Ok(()),
        Some(pinned) => Err(Failure::new(
            FailureKind::Incompatible,
            format!("this host's QEMU {} has no machine type {pinned}", agent.facts.qemu_version),
            "choose a host with the QEMU version that the VM was made for",
        )),
        None => {
            let newest = types.iter().filter(|t| t.starts_with(prefix)).max_by_key(|t| version_of(t));
            machine.machine_type = Some(newest.cloned().ok_or_else(|| {
                Failure::new(
                    FailureKind::Incompatible,
                    format!("QEMU has no machine type {prefix}*"),
                    "install QEMU 7.2 or later",
                )
            })?);
            Ok(())
        }
    }
}

/// `pc-q35-10.0` as (10, 0): numbers, since "9.2" is older than "10.0".
pub(crate) fn version_of(machine_type: &str) -> (u32, u32) {
    let version = machine_type.rsplit('-').next().unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// Does something with a VM that is here under this epoch.
pub(crate) async fn act(agent: &Arc<Agent>, vm: VmId, order: &ActOnVm) -> Result<VmStatus, Failure> {
    if let Some(silent) = agent.silent(vm).filter(|silent| silent.epoch == order.epoch) {
        if order.action != VmAction::Kill {
            return Err(Failure::new(
                FailureKind::Qemu,
                format!("the QEMU of VM {vm} does not answer"),
                "wait until it does, or end it with `limosa vm kill`",
            ));
        }
        handed_over(agent, vm)?;
        silent.process.kill().await.map_err(|error| {
            Failure::new(
                FailureKind::Qemu,
                format!("QEMU could not be ended: {error}"),
                "see the agent's log",
            )
        })?;
        agent.heard_of(vm).await;
        return status(agent, vm).await;
    }
    let guest = agent.guest(vm).filter(|guest| guest.epoch() == order.epoch).ok_or_else(|| {
        Failure::new(
            FailureKind::NotFound,
            format!("VM {vm} is not on this host under epoch {}", order.epoch),
            "look where it is now, and try again",
        )
    })?;
    let record =
        agent.record(vm).filter(|r| r.epoch == order.epoch && r.ended.is_none()).ok_or_else(|| {
            let of = agent.open_migration_of(vm).map(|m| m.id().to_string()).unwrap_or_default();
            conflict(format!("VM {vm} is on its way here in migration {of}"), "wait for its end")
        })?;
    let refused = |e: limosa_qemu::Error| {
        Failure::new(FailureKind::Qemu, format!("QEMU does not do it: {e}"), "see the agent's log")
    };
    handed_over(agent, vm)?;
    match &order.action {
        VmAction::Stop { timeout_ms } => {
            guest.vm.qmp().system_powerdown().await.map_err(refused)?;
            by_force_after(agent, &guest, *timeout_ms);
        }
        VmAction::Kill => kill(agent, &guest).await?,
        VmAction::Reboot { timeout_ms: _ } => guest.vm.qmp().system_reset().await.map_err(refused)?,
        VmAction::Pause => {
            // Written first: an agent that comes back must not let the guest go against the user's wish.
            agent.update_record(vm, record.epoch, |record| record.paused = true)?;
            guest.vm.qmp().stop().await.map_err(refused)?;
        }
        VmAction::Resume => {
            agent.update_record(vm, record.epoch, |record| record.paused = false)?;
            let state = guest.vm.run_state().await.map_err(|e| vm_failure("ask QEMU", &e))?;
            // In a switchover the guest stands still on purpose; it goes on where the migration ends.
            if !matches!(state, RunState::FinishMigrate | RunState::PostMigrate) {
                guest.vm.qmp().cont().await.map_err(refused)?;
            }
        }
        VmAction::Set { target } => {
            agent.update_record(vm, record.epoch, |record| record.target = (**target).clone())?;
        }
    }
    agent.changed.notify_one();
    status(agent, vm).await
}

/// A VM that was handed over, or that waits for the other host's word, is not this host's to act on.
fn handed_over(agent: &Agent, vm: VmId) -> Result<(), Failure> {
    match agent.open_migration_of(vm) {
        Some(migration) if !migration.is_undecided() => Err(conflict(
            format!("VM {vm} is being handed over in migration {}", migration.id()),
            "ask for it on the destination",
        )),
        _ => Ok(()),
    }
}

/// Ends a VM for good: its record says so before QEMU is gone from sight.
async fn kill(agent: &Arc<Agent>, guest: &Arc<Guest>) -> Result<(), Failure> {
    guest.dismiss().await.map_err(|e| vm_failure("end QEMU", &e))?;
    guest::end_record(agent, guest.id(), guest.epoch(), "it was ended by force");
    agent.remove_guest(guest);
    if let Some(migration) = agent.open_migration_of(guest.id()) {
        migration.qemu_gone(guest.epoch());
    }
    Ok(())
}

/// Gives the guest time to power off, then ends it.
fn by_force_after(agent: &Arc<Agent>, guest: &Arc<Guest>, timeout: Millis) {
    let (agent, guest) = (agent.clone(), guest.clone());
    tokio::spawn(async move {
        let limit = Duration::from_millis(timeout.get());
        if tokio::time::timeout(limit, guest.vm.exited()).await.is_err() {
            tracing::warn!(vm = %guest.id(), "the guest has not powered off in time: it is ended by force");
            if let Err(failure) = kill(&agent, &guest).await {
                tracing::error!(vm = %guest.id(), %failure, "the VM could not be ended");
            }
        }
    });
}

/// What is known of a VM here.
pub(crate) async fn status(agent: &Agent, vm: VmId) -> Result<VmStatus, Failure> {
    let guest = agent.guest(vm);
    let record = agent.record(vm);
    if let Some(silent) = agent.silent(vm) {
        let unnamed = || vm.to_string().parse().expect("a UUID has only letters, digits and hyphens");
        return Ok(VmStatus {
            vm,
            name: record.map_or_else(unnamed, |record| record.target.spec.name),
            epoch: silent.epoch,
            power: PowerState::Paused,
            reason: Some("its QEMU does not answer".into()),
            migration: agent.open_migration_of(vm).map(|m| m.id()),
            machine_type: None,
            pid: Some(silent.process.pid()),
            pending: vec![],
        });
    }
    let Some((name, epoch, pending)) = record
        .as_ref()
        .map(|r| (r.target.spec.name.clone(), r.epoch, pending(r, guest.as_deref())))
        .or_else(|| guest.as_ref().map(|g| (g.vm.plan().spec.name.clone(), g.epoch(), vec![])))
    else {
        return Err(Failure::new(
            FailureKind::NotFound,
            format!("VM {vm} is not known on this host"),
            "look where it is",
        ));
    };
    // What a migration brings is no VM of this host's until it has the right to run.
    let here = guest.as_ref().filter(|g| g.epoch() == epoch);
    let power = match here {
        Some(guest) => guest.power().await,
        None => PowerState::Stopped,
    };
    Ok(VmStatus {
        vm,
        name,
        epoch,
        power,
        reason: record.as_ref().and_then(|r| r.ended.clone()),
        migration: agent.open_migration_of(vm).map(|m| m.id()),
        machine_type: here.and_then(|g| g.vm.plan().spec.machine.machine_type.clone()),
        pid: here.map(|g| g.vm.pid()),
        pending,
    })
}

/// The keys of the spec that differ from what runs.
fn pending(record: &VmRecord, guest: Option<&Guest>) -> Vec<String> {
    let Some(guest) = guest else { return vec![] };
    let (wanted, runs) = (&record.target.spec, &guest.vm.plan().spec);
    let mut keys = Vec::new();
    let mut differs = |key: &str, differs: bool| {
        if differs {
            keys.push(key.to_owned());
        }
    };
    differs("cpus", wanted.cpus != runs.cpus);
    differs("memory", wanted.memory != runs.memory);
    differs("disks", wanted.disks != runs.disks);
    differs("nics", wanted.nics != runs.nics);
    differs("boot", wanted.boot != runs.boot);
    differs("machine.cpu_model", wanted.machine.cpu_model != runs.machine.cpu_model);
    keys
}
