//! What hosts say: reports and facts. What decides is durable before it is acknowledged; progress is not.

use std::time::Instant;

use jiff::Timestamp;
use limosa_api::agent::{
    FactAnswer, FactReport, HostReport, MigrationStatus, Peer, ReportAnswer, Role, VmStatus,
};
use limosa_migration::custody::At;
use limosa_model::{Fact, Failure, FailureKind, HostId, PowerState};
use limosa_store::StoreError;

use crate::live::{Attempt, Claim, Live, LiveHost, OrderKey};
use crate::records::{HostRecord, MigrationRecord, TaskRecord, VmRecord, Work, keys};
use crate::refused::{Answer, Refused};
use crate::server::Server;
use crate::tasks::TaskEnd;
use crate::tx::Tx;
use crate::whereabouts;

/// How often a machine must have reported without another one between, after it differed from the one before,
/// until conclusions are drawn from what it does not run: a cloned disk would speak for its twin.
const SETTLED_REPORTS: u64 = 3;

/// How often two machines have to take turns until both are quarantined.
const ALTERNATIONS: u32 = 2;

/// What an agent gives as the reason where the guest wanted its own end.
const POWERED_OFF: &str = "the guest powered off";

/// A host reports.
pub(crate) async fn report(server: &Server, caller: HostId, report: HostReport) -> Answer<ReportAnswer> {
    if report.host != caller {
        return Err(Refused::denied(
            format!("host {caller} reports as host {}", report.host),
            "give each host a state directory of its own",
        ));
    }
    let mut tx = server.begin().await;
    let mut host = known(&mut tx, caller).await?;
    let before = host.clone();
    let standing = claim(&mut server.live(), &host, &report);
    if standing.two_machines && host.quarantined.is_none() {
        let why = format!("two machines report as host {}", host.name);
        tx.event("host-quarantined", host.subject(), format!("{why}; neither is given orders"))?;
        host.quarantined = Some(why);
        tx.put(&keys::of(keys::HOSTS, host.id), &host)?;
    }
    if let Some(why) = host.quarantined.clone() {
        server.commit(tx).await?;
        let remedy = format!(
            "stop one of them, give it a fresh state directory, then `limosa host readmit {}`",
            host.name
        );
        return Err(Refused::conflict(why, remedy));
    }
    if host.journal.is_some_and(|journal| journal != report.journal) {
        let message = format!("host {} has lost its journal; its VMs are taken over by what runs", host.name);
        tx.event("journal-lost", host.subject(), message)?;
        server.live().forget_ends(caller);
    }
    host.journal = Some(report.journal);
    host.boot = Some(report.boot.clone());
    host.address = Some(report.address);
    host.migration_address = Some(report.migration_address);
    host.facts = Some(report.facts.clone());
    if host != before {
        tx.put(&keys::of(keys::HOSTS, host.id), &host)?;
    }
    let mut told = Vec::new();
    for status in &report.migrations {
        match hear(&mut tx, caller, status).await? {
            Ok(()) => told.push(status.clone()),
            Err(why) => tracing::warn!(host = %host.name, migration = %status.ticket.migration, "{why}"),
        }
    }
    if !server.is_restoring() {
        conclude(server, &mut tx, &host, &report, &standing).await?;
    }
    server.commit(tx).await?;

    let snapshot = server.snapshot().await?;
    {
        let mut live = server.live();
        for status in told {
            live.note_migration(status);
        }
        if !standing.late
            && let Some(known) = live.hosts.get_mut(&caller)
        {
            (known.report, known.heard, known.heard_at) = (report, Instant::now(), Timestamp::now());
        }
    }
    server.changed();
    let peers = snapshot.hosts.values().filter(|peer| peer.id != caller && peer.refusal().is_none());
    let peers = peers.filter_map(|peer| Some(Peer { host: peer.id, address: peer.address? })).collect();
    Ok(ReportAnswer { incarnation: server.incarnation, peers })
}

/// One end of a migration has decided something.
pub(crate) async fn fact(server: &Server, caller: HostId, report: FactReport) -> Answer<FactAnswer> {
    if report.host != caller {
        let what = format!("host {caller} tells facts of host {}", report.host);
        return Err(Refused::denied(what, "give each host a state directory of its own"));
    }
    let mut tx = server.begin().await;
    let host = known(&mut tx, caller).await?;
    if let Some(why) = host.quarantined {
        return Err(Refused::conflict(
            why,
            format!("`limosa host readmit {}`, once it is one machine", host.name),
        ));
    }
    let heard = hear(&mut tx, caller, &report.status).await?;
    let key = keys::of(keys::MIGRATIONS, report.status.ticket.migration);
    let record: Option<MigrationRecord> = tx.get(&key).await?;
    server.commit(tx).await?;
    heard.map_err(|why| Refused::invalid(why, "check that both ends run the same version of Limosa"))?;
    server.live().note_migration(report.status);
    server.changed();
    Ok(FactAnswer { other: record.and_then(|record| record.passage.for_host(caller)) })
}

/// What an order was answered with counts like a report. Whether it said anything new.
pub(crate) async fn answered(
    server: &Server,
    host: HostId,
    status: MigrationStatus,
) -> Result<bool, StoreError> {
    let mut tx = server.begin().await;
    if let Err(why) = hear(&mut tx, host, &status).await? {
        tracing::warn!(%host, migration = %status.ticket.migration, "{why}");
    }
    server.commit(tx).await?;
    Ok(server.live().note_migration(status))
}

async fn known(tx: &mut Tx<'_>, caller: HostId) -> Answer<HostRecord> {
    let host: Option<HostRecord> = tx.get(&keys::of(keys::HOSTS, caller)).await?;
    match host {
        None => Err(Refused::denied(
            format!("host {caller} is not one of this cluster any more"),
            "join it anew with a token from `limosa token create`",
        )),
        Some(host) if host.lost => Err(Refused::denied(
            format!("host {} was declared lost: its VMs may run elsewhere", host.name),
            format!("make sure that it runs none of them, then `limosa host readmit {}`", host.name),
        )),
        Some(host) => Ok(host),
    }
}

/// Takes the fact in a status into the migration's record. The inner error says why it was not taken.
async fn hear(
    tx: &mut Tx<'_>,
    caller: HostId,
    status: &MigrationStatus,
) -> Result<Result<(), String>, StoreError> {
    let key = keys::of(keys::MIGRATIONS, status.ticket.migration);
    let Some(mut record) = tx.get::<MigrationRecord>(&key).await? else { return Ok(Ok(())) };
    let ticket = record.passage.ticket;
    let end = match status.role {
        Role::Source => ticket.source,
        Role::Destination => ticket.destination,
    };
    if status.ticket != ticket || end != caller {
        return Ok(Err(format!("host {caller} speaks of migration {} as it never was", ticket.migration)));
    }
    let Some(told) = status.fact else { return Ok(Ok(())) };
    let may_say = match told.fact {
        Fact::HandedOver { .. } | Fact::Resumed | Fact::Released => status.role == Role::Source,
        Fact::Running | Fact::Refused | Fact::Lost => status.role == Role::Destination,
    };
    if !may_say || !ticket.concerns(&told) {
        return Ok(Err(format!("host {caller} says {} where it cannot", told.fact)));
    }
    let passage = record.passage.hear(told);
    whereabouts::heard(tx, &mut record, passage).await?;
    Ok(Ok(()))
}

/// How a report stands among those before it.
struct Standing {
    two_machines: bool,
    /// An earlier one of the same machine, that came late.
    late: bool,
    /// Whether what the report does not show may be concluded from.
    settled: bool,
}

/// Notes who says that it is this host.
fn claim(live: &mut Live, host: &HostRecord, report: &HostReport) -> Standing {
    let claim = Claim { journal: report.journal, boot: report.boot.clone(), address: report.address };
    let as_recorded = host.journal.is_none()
        || host.journal == Some(claim.journal)
            && host.boot.as_ref() == Some(&claim.boot)
            && host.address == Some(claim.address);
    let known = live.hosts.entry(host.id).or_insert_with(|| LiveHost {
        report: report.clone(),
        heard: Instant::now(),
        heard_at: Timestamp::now(),
        claims: Vec::new(),
        alternations: 0,
        in_a_row: if as_recorded { SETTLED_REPORTS } else { 0 },
    });
    let earlier = known.claims.iter().position(|(other, _)| *other == claim);
    let counted = earlier.map_or(0, |n| known.claims[n].1);
    let is_last = earlier.is_some_and(|n| n + 1 == known.claims.len());
    let is_first = known.claims.is_empty();
    if let Some(n) = earlier.filter(|_| !is_last) {
        known.claims.remove(n);
        if report.sequence > counted || known.claims.iter().any(|(other, _)| other.journal != claim.journal) {
            known.alternations += 1;
        }
    }
    // A count that begins anew is an agent that was started anew.
    let late = is_last && report.sequence <= counted && report.sequence > 1;
    if is_last {
        known.in_a_row += 1;
        if let Some((_, count)) = known.claims.last_mut().filter(|_| !late) {
            *count = report.sequence;
        }
    } else {
        known.in_a_row = if is_first { known.in_a_row } else { 0 };
        known.claims.push((claim, report.sequence));
        let surplus = known.claims.len().saturating_sub(8);
        known.claims.drain(..surplus);
    }
    Standing {
        two_machines: known.alternations >= ALTERNATIONS,
        late,
        settled: !late && known.in_a_row >= SETTLED_REPORTS,
    }
}

/// Takes over what a host shows, and does not show, of the VMs that it has the right to run.
async fn conclude(
    server: &Server,
    tx: &mut Tx<'_>,
    host: &HostRecord,
    report: &HostReport,
    standing: &Standing,
) -> Result<(), StoreError> {
    let snapshot = server.snapshot().await?;
    for id in snapshot.vms_on(host.id).map(|vm| vm.id) {
        let Some(mut vm) = tx.get::<VmRecord>(&keys::of(keys::VMS, id)).await? else { continue };
        let At::On { host: on, epoch } = vm.custody.at else { continue };
        if on != host.id {
            continue;
        }
        let starting =
            matches!(server.live().orders.get(&OrderKey::Vm(id, "start")), Some(Attempt::UnderWay { .. }));
        let status = report.vms.iter().find(|status| status.vm == id && status.epoch == epoch);
        let before = vm.clone();
        match status {
            // Without a reason it has yet to be started: the host writes down why each VM ended, for good.
            Some(status) if status.power == PowerState::Stopped => {
                if standing.settled && !starting && status.reason.is_some() {
                    stopped(tx, &mut vm, host, status.reason.clone()).await?;
                }
            }
            Some(status) => {
                shown(tx, &mut vm, host, status).await?;
                vm.reported |= !standing.late;
            }
            None => {
                // It cannot be on its way: the host has had it, or never hears of it.
                let gone = vm.reported || vm.journal != Some(report.journal);
                if gone && standing.settled && !starting {
                    let why = format!("host {} does not show it any more", host.name);
                    stopped(tx, &mut vm, host, Some(why)).await?;
                }
            }
        }
        if vm != before {
            tx.put(&keys::of(keys::VMS, id), &vm)?;
        }
    }
    Ok(())
}

/// The host with the right says that the VM has ended under it, or shows that it cannot be there.
pub(crate) async fn stopped(
    tx: &mut Tx<'_>,
    vm: &mut VmRecord,
    host: &HostRecord,
    reason: Option<String>,
) -> Result<(), StoreError> {
    let Some((_, epoch)) = vm.on() else { return Ok(()) };
    vm.custody = vm.custody.stopped(host.id, epoch);
    let failure = reason.filter(|why| why != POWERED_OFF).map(|why| {
        let remedy = format!("look at the log of {} on host {}", vm.spec.name, host.name);
        Failure::new(
            FailureKind::Qemu,
            format!("{} ended on host {}: {why}", vm.spec.name, host.name),
            remedy,
        )
    });
    whereabouts::ended(tx, vm, host, failure).await
}

/// The host shows the VM under its right.
pub(crate) async fn shown(
    tx: &mut Tx<'_>,
    vm: &mut VmRecord,
    host: &HostRecord,
    status: &VmStatus,
) -> Result<(), StoreError> {
    if !vm.confirmed {
        vm.confirmed = true;
        vm.reason = None;
        if vm.by_start {
            let message = format!("{} runs on host {}", vm.spec.name, host.name);
            tx.event("vm-started", vm.subject(), message)?;
        }
    }
    vm.journal = host.journal;
    vm.boot = host.boot.clone();
    if vm.spec.machine.machine_type.is_none() {
        vm.spec.machine.machine_type = status.machine_type.clone();
    }
    let work = match vm.task {
        Some(task) => tx.get::<TaskRecord>(&keys::of(keys::TASKS, task)).await?.map(|record| record.work),
        None => None,
    };
    match work {
        Some(Work::Start { .. }) => whereabouts::finish(tx, vm, TaskEnd::Succeeded(None)).await,
        Some(Work::Create { .. }) => {
            let result = limosa_api::rest::TaskResult::Created(vm.id);
            whereabouts::finish(tx, vm, TaskEnd::Succeeded(Some(result))).await
        }
        _ => Ok(()),
    }
}
