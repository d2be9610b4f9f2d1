//! The end of a migration: its report, made of what both ends measured, and its task.

use jiff::Timestamp;
use limosa_api::agent::{Measured, MigrationStatus};
use limosa_api::rest::TaskResult;
use limosa_migration::custody::At;
use limosa_model::migration::PhaseTime;
use limosa_model::{ByteSize, Failure, FailureKind, MigrationId, Millis, Outcome, Phase, Report};
use limosa_store::StoreError;

use crate::records::{MigrationRecord, VmRecord, keys};
use crate::server::Server;
use crate::tasks::{self, TaskEnd};

/// Writes the report and ends the task, in one change.
pub(super) async fn finish(server: &Server, id: MigrationId) -> Result<(), StoreError> {
    let mut tx = server.begin().await;
    let key = keys::of(keys::MIGRATIONS, id);
    let Some(mut record) = tx.get::<MigrationRecord>(&key).await?.filter(|record| record.report.is_none())
    else {
        return Ok(());
    };
    let (source, destination) = {
        let live = server.live();
        let ends = live.migrations.get(&id);
        (ends.and_then(|ends| ends.source.clone()), ends.and_then(|ends| ends.destination.clone()))
    };
    let ended = Timestamp::now();
    let Some(report) = compose(&record, source.as_ref(), destination.as_ref(), ended) else { return Ok(()) };
    let end = match (report.outcome, report.failure.clone()) {
        (Outcome::RunningOnDestination, _) => TaskEnd::Succeeded(Some(TaskResult::Migrated(report.clone()))),
        (_, Some(failure)) if failure.kind != FailureKind::Cancelled => TaskEnd::Failed(failure),
        _ => TaskEnd::Cancelled,
    };
    let message = match report.outcome {
        Outcome::RunningOnDestination => {
            format!("{} has moved in {}", record.vm_name, report.total_ms.human())
        }
        outcome => format!("{} has not moved; {outcome}", record.vm_name),
    };
    tx.event("migration-ended", record.subject(), message)?;
    let vm_key = keys::of(keys::VMS, record.passage.ticket.vm);
    if let Some(mut vm) = tx.get::<VmRecord>(&vm_key).await?
        && vm.task.take_if(|task| *task == record.task).is_some()
    {
        tx.put(&vm_key, &vm)?;
    }
    // Whoever has watched it does not see it go back at its end, however it ends.
    let shown = server.live().migrations.get(&id).map_or(0, |ends| ends.percent());
    tasks::reached(&mut tx, record.task, shown).await?;
    tasks::end(&mut tx, record.task, end).await?;
    (record.ended, record.report) = (Some(ended), Some(report));
    tx.put(&key, &record)?;
    server.commit(tx).await
}

/// What both ends measured, as one. `None` while the facts do not say where the VM is.
fn compose(
    record: &MigrationRecord,
    source: Option<&MigrationStatus>,
    destination: Option<&MigrationStatus>,
    ended: Timestamp,
) -> Option<Report> {
    let ticket = record.passage.ticket;
    let outcome = match record.passage.end()? {
        At::On { host, .. } if host == ticket.destination => Outcome::RunningOnDestination,
        At::On { .. } => Outcome::RunningOnSource,
        At::Nowhere | At::Moving(_) => Outcome::Stopped,
    };
    let moved = outcome == Outcome::RunningOnDestination;
    let none = Measured::default();
    let of_source = source.map_or(&none, |status| &status.measured);
    let of_destination = destination.map_or(&none, |status| &status.measured);
    let downtime_us = match (moved, of_source.stopped_us) {
        (true, Some(stopped)) => across(stopped, of_destination),
        (false, Some(stopped)) => of_source.continued_us.and_then(|continued| continued.checked_sub(stopped)),
        (_, None) => None,
    };
    Some(Report {
        migration: ticket.migration,
        vm: ticket.vm,
        epoch: ticket.epoch,
        source: ticket.source,
        destination: ticket.destination,
        stream: record.options.stream,
        outcome,
        failure: if moved { None } else { Some(failure(record, source, destination)) },
        phases: phases(record.prepare_us, of_source, of_destination),
        total_ms: Millis::new(ended.duration_since(record.created).as_millis().try_into().unwrap_or(0)),
        downtime_us,
        wire: ByteSize::bytes(of_source.wire_bytes.max(of_destination.wire_bytes)),
        memory: record.spec.memory,
        passes: of_source.passes.max(of_destination.passes),
        memory_compared: of_source.memory_compared || of_destination.memory_compared,
    })
}

/// From the source's stop to the destination's go, by the destination's clock.
fn across(stopped_us: u64, destination: &Measured) -> Option<u64> {
    let stopped = i128::from(stopped_us) - i128::from(destination.peer_clock_ahead_us?);
    u64::try_from(i128::from(destination.continued_us?) - stopped).ok()
}

/// Each phase as the end timed it that knows it best.
fn phases(prepare_us: u64, source: &Measured, destination: &Measured) -> Vec<PhaseTime> {
    let of = |measured: &Measured, phase| measured.phases.iter().find(|time| time.phase == phase).copied();
    let time = |phase| match phase {
        Phase::Prepare => Some(PhaseTime { phase, micros: prepare_us }),
        Phase::Reserve | Phase::Handover => of(destination, phase).or(of(source, phase)),
        Phase::Transfer | Phase::Switchover | Phase::Finish => of(source, phase).or(of(destination, phase)),
    };
    Phase::ALL.into_iter().filter_map(time).collect()
}

/// Why it did not succeed. An end that only saw the other one fail says less than that one.
fn failure(
    record: &MigrationRecord,
    source: Option<&MigrationStatus>,
    destination: Option<&MigrationStatus>,
) -> Failure {
    let told = [
        record.failure.as_ref(),
        source.and_then(|status| status.failure.as_ref()),
        destination.and_then(|status| status.failure.as_ref()),
    ];
    let told: Vec<_> = told.into_iter().flatten().collect();
    let says_most = |failure: &&&Failure| !matches!(failure.kind, FailureKind::Peer | FailureKind::Cancelled);
    if let Some(failure) = told.iter().find(says_most).or(told.first()) {
        return (*failure).clone();
    }
    match record.cancel_asked {
        true => Failure::new(FailureKind::Cancelled, "a user ended it", "migrate again if it is wanted"),
        false => Failure::new(
            FailureKind::Peer,
            format!("the migration of {} ended without success", record.vm_name),
            "look at the logs of both hosts, then migrate again",
        ),
    }
}
