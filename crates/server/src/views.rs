//! What users see of what is kept.

use limosa_api::rest::{Host, HostState, Migration, Stray, Task, TaskState, Vm, VmRef};
use limosa_migration::custody::At;
use limosa_model::{Capacity, MigrationKind, Name, Phase, PowerState};

use crate::live::OrderKey;
use crate::prepare::{host_ref, taken};
use crate::reconcile::is_entitled;
use crate::records::{HostRecord, MigrationRecord, TaskRecord, VmRecord, Work};
use crate::server::Server;
use crate::snapshot::Snapshot;

pub(crate) fn host(server: &Server, snapshot: &Snapshot, host: &HostRecord) -> Host {
    let state = server.host_state(host);
    let taken = taken(server, snapshot, host.id);
    let live = server.live();
    let live = live.hosts.get(&host.id);
    let shown = live.map(|live| live.report.vms.as_slice()).unwrap_or_default();
    let strays = shown
        .iter()
        .filter(|status| status.power != PowerState::Stopped && !is_entitled(snapshot, host.id, status))
        .map(|status| Stray { vm: status.vm, name: status.name.clone(), epoch: status.epoch })
        .collect();
    Host {
        id: host.id,
        name: host.name.clone(),
        state,
        cordoned: host.cordoned,
        reason: host.refusal(),
        facts: host.facts.clone(),
        capacity: host.facts.as_ref().map_or(Capacity::default(), |facts| facts.capacity),
        taken,
        address: host.address,
        migration_address: host.migration_address,
        last_report: live.map(|live| live.heard_at),
        vms: u32::try_from(snapshot.vms_on(host.id).count()).unwrap_or(u32::MAX),
        strays,
        evacuation: host.evacuation,
    }
}

pub(crate) fn vm(server: &Server, snapshot: &Snapshot, vm: &VmRecord) -> Vm {
    let moving = vm.moving().and_then(|migration| snapshot.migrations.get(&migration));
    let holds = match (vm.on(), moving) {
        (Some(on), _) => Some(on),
        (None, Some(migration)) => {
            let ticket = migration.passage.ticket;
            Some((ticket.source, ticket.source_epoch))
        }
        (None, None) => None,
    };
    let host = holds.and_then(|(host, _)| snapshot.hosts.get(&host));
    let is_heard = host.is_some_and(|host| server.host_state(host) == HostState::Online);
    let ends_heard = moving.is_none_or(|migration| {
        let ends = [migration.passage.ticket.source, migration.passage.ticket.destination];
        ends.iter().all(|end| {
            let end = snapshot.hosts.get(end);
            end.is_some_and(|end| server.host_state(end) == HostState::Online)
        })
    });
    let live = server.live();
    let status = holds.and_then(|(host, epoch)| live.vm(host, vm.id).filter(|status| status.epoch == epoch));
    let power = match (holds, status) {
        (None, _) => Some(PowerState::Stopped),
        (Some(_), Some(status)) if is_heard => Some(status.power),
        (Some(_), _) => None,
    };
    let in_doubt = moving.is_some_and(|migration| {
        let passage = &migration.passage;
        let handed_over = passage.source.is_some() || passage.destination.is_some();
        passage.end().is_none() && (passage.request().is_some() || handed_over && !ends_heard)
    });
    Vm {
        id: vm.id,
        name: vm.spec.name.clone(),
        spec: vm.spec.clone(),
        desired: vm.desired,
        host: host.map(|host| host.name.clone()),
        epoch: holds.map(|(_, epoch)| epoch),
        power,
        reason: match status {
            Some(status) => status.reason.clone(),
            None => vm.reason.clone(),
        },
        in_doubt,
        migration: vm.moving(),
        task: vm.task,
        pending: status.map(|status| status.pending.clone()).unwrap_or_default(),
        addresses: vm.spec.nics.iter().flat_map(|nic| nic.addresses.clone()).collect(),
        created: vm.created,
    }
}

pub(crate) fn migration(server: &Server, snapshot: &Snapshot, record: &MigrationRecord) -> Migration {
    let ticket = record.passage.ticket;
    let named = |host| match snapshot.hosts.get(&host) {
        Some(host) => host_ref(host),
        // It has been removed since.
        None => limosa_api::rest::HostRef { id: host, name: removed() },
    };
    let live = server.live();
    let ends = live.migrations.get(&record.id());
    let phase = match (&record.report, record.passage.end()) {
        (Some(_), _) => Phase::Finish,
        (None, Some(At::On { host, .. })) if host == ticket.destination => Phase::Finish,
        (None, _) => ends.map_or(Phase::Reserve, |ends| ends.phase()),
    };
    Migration {
        id: record.id(),
        vm: VmRef { id: ticket.vm, name: record.vm_name.clone() },
        kind: MigrationKind::Live,
        source: named(ticket.source),
        source_epoch: ticket.source_epoch,
        destination: named(ticket.destination),
        epoch: ticket.epoch,
        options: record.options.clone(),
        phase,
        progress: ends.and_then(|ends| ends.progress()),
        source_fact: record.passage.source,
        destination_fact: record.passage.destination,
        cancel_asked: record.cancel_asked,
        prediction: record.prediction.clone(),
        report: record.report.clone(),
        task: record.task,
        created: record.created,
        ended: record.ended,
    }
}

fn removed() -> Name {
    "removed".parse().expect("letters make a name")
}

pub(crate) fn task(server: &Server, snapshot: &Snapshot, record: &TaskRecord) -> Task {
    let mut task = record.task.clone();
    if task.state.has_ended() {
        return task;
    }
    if let Work::Evacuate { .. } = record.work {
        let parts = snapshot.tasks.values().filter(|part| part.task.parent == Some(task.id));
        let (all, ended) =
            parts.fold((0, 0), |(all, ended), part| (all + 1, ended + u32::from(part.has_ended())));
        task.percent = u8::try_from((ended * 99u32).checked_div(all).unwrap_or(0)).unwrap_or(99);
        task.message = Some(format!("{ended} of {all} VMs are done"));
        return task;
    }
    if let Some(migration) = task.migration.filter(|_| task.state == TaskState::Running) {
        let record = snapshot.migrations.get(&migration);
        let live = server.live();
        let ends = live.migrations.get(&migration);
        task.phase = Some(ends.map_or(Phase::Reserve, |ends| ends.phase()));
        task.percent = ends.map_or(0, |ends| ends.percent());
        task.progress = ends.and_then(|ends| ends.progress());
        if record.is_some_and(|record| record.passage.end().is_some()) {
            (task.phase, task.percent) = (Some(Phase::Finish), 99);
        }
        return task;
    }
    if task.state == TaskState::Queued {
        task.phase = Some(Phase::Prepare);
    }
    let about = match &record.work {
        Work::Create { vm, .. } => Some((vm, ["make-disks", "start"].as_slice())),
        Work::Start { vm } => Some((vm, ["start"].as_slice())),
        Work::Stop { vm, .. } => Some((vm, ["stop"].as_slice())),
        Work::Kill { vm } => Some((vm, ["kill"].as_slice())),
        Work::Reboot { vm, .. } => Some((vm, ["reboot"].as_slice())),
        Work::Pause { vm } => Some((vm, ["pause"].as_slice())),
        Work::Resume { vm } => Some((vm, ["resume"].as_slice())),
        Work::Delete { vm } => Some((vm, ["delete-disks"].as_slice())),
        Work::Migrate { .. } | Work::Evacuate { .. } => None,
    };
    if let Some((vm, orders)) = about {
        let live = server.live();
        let trouble = orders.iter().find_map(|order| live.trouble(OrderKey::Vm(*vm, order)));
        task.message = trouble.map(|(failure, _)| failure.to_string());
    }
    task
}
