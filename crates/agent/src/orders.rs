//! Taking the server's orders for migrations.

use std::sync::Arc;

use limosa_api::agent::{MigrationOrder, MigrationStatus, Role};
use limosa_migration::{Destination, Source};
use limosa_model::{Fact, Failure, FailureKind};

use crate::agent::{Agent, journal_failure};
use crate::ledger::{MigrationRecord, Part, VmRecord};
use crate::migration::{First, Sight, take_up};
use crate::recovery::{destination_sight, source_sight};
use crate::worker::{self, Worker};

fn conflict(what: String, remedy: &str) -> Failure {
    Failure::new(FailureKind::Conflict, what, remedy)
}

/// Takes part in a migration. An order that was taken before is answered with how far it is.
pub(crate) async fn take(agent: &Arc<Agent>, order: MigrationOrder) -> Result<MigrationStatus, Failure> {
    let ticket = order.ticket;
    let role = if ticket.source == agent.host { Role::Source } else { Role::Destination };
    if role == Role::Destination && ticket.destination != agent.host || ticket.source == ticket.destination {
        return Err(Failure::new(
            FailureKind::Invalid,
            format!("migration {} is not one of this host", ticket.migration),
            "this is a fault of the server",
        ));
    }
    if let Some(known) = agent.migration(ticket.migration) {
        return Ok(known.status());
    }
    let mut record = MigrationRecord {
        part: match role {
            Role::Source => Part::Source(Source::planned(ticket)),
            Role::Destination => Part::Destination(Destination::reserving(ticket)),
        },
        boot: agent.boot.clone(),
        fingerprint: None,
        stream: None,
        failure: None,
        measured: Default::default(),
        order,
    };
    if record.order.recover {
        return recover(agent, record, role).await;
    }
    if let Some(other) = agent.open_migration_of(ticket.vm) {
        return Err(conflict(
            format!("migration {} of the VM has not ended on this host", other.id()),
            "wait for its end, or cancel it",
        ));
    }
    match role {
        Role::Source => {
            let here = agent.guest(ticket.vm).filter(|g| g.epoch() == ticket.source_epoch);
            let ours =
                agent.record(ticket.vm).is_some_and(|r| r.epoch == ticket.source_epoch && r.ended.is_none());
            if here.is_none() || !ours {
                return Err(conflict(
                    format!("the VM is not on this host under epoch {}", ticket.source_epoch),
                    "look where it is now, and try again",
                ));
            }
            record.fingerprint = Some(start_worker(agent, &record).await?);
        }
        Role::Destination => {
            if let Some(guest) = agent.guest(ticket.vm) {
                return Err(conflict(
                    format!("the VM has a QEMU on this host already, under epoch {}", guest.epoch()),
                    "wait until it is gone",
                ));
            }
            crate::life::not_late(agent, ticket.vm, ticket.epoch)?;
            crate::life::admit(agent, &record.order.target)?;
        }
    }
    if let Err(failure) = begin(agent, &record) {
        worker::dismiss(&agent.worker_dir(ticket.migration)).await;
        return Err(failure);
    }
    Ok(take_up(agent, record, First::Begun).status())
}

fn begin(agent: &Agent, record: &MigrationRecord) -> Result<(), Failure> {
    tokio::task::block_in_place(|| agent.ledger.begin_migration(record))
        .map_err(|error| journal_failure(&error))?;
    agent.see_epoch(record.part.ticket().epoch);
    Ok(())
}

/// The source's worker waits for QEMU from the beginning: its fingerprint is part of the destination's order.
async fn start_worker(agent: &Agent, record: &MigrationRecord) -> Result<String, Failure> {
    let dir = agent.worker_dir(record.part.ticket().migration);
    worker::dismiss(&dir).await;
    let started = async {
        dir.create(&agent.config)?;
        let control = worker::listen_unix(&dir.control(), &agent.config)?;
        let stream = worker::listen_unix(&dir.stream(), &agent.config)?;
        worker::spawn(&dir, control.into(), stream.into(), &agent.config)?;
        Worker::connect(&dir).await?.fingerprint().await
    };
    let fingerprint = started.await;
    if fingerprint.is_err() {
        worker::dismiss(&dir).await;
    }
    fingerprint.map_err(|error| worker::failure("started", &error))
}

/// Finds out this host's part in a migration that its journal does not know.
async fn recover(
    agent: &Arc<Agent>,
    mut record: MigrationRecord,
    role: Role,
) -> Result<MigrationStatus, Failure> {
    let ticket = record.part.ticket();
    if agent.silent(ticket.vm).is_some() {
        return Err(Failure::new(
            FailureKind::Qemu,
            "the VM's QEMU does not answer: what it does is not known",
            "ask again until it does, or end it with `limosa vm kill`",
        ));
    }
    let first = match role {
        Role::Source => {
            let sight = source_sight(agent, &ticket).await;
            record.part = Part::Source(Source::orphaned(ticket, sight));
            Sight::Source(sight)
        }
        Role::Destination => {
            let sight = destination_sight(agent, &ticket).await;
            record.part = Part::Destination(Destination::orphaned(ticket, sight));
            Sight::Destination(sight)
        }
    };
    begin(agent, &record)?;
    if matches!(record.part.fact().map(|told| told.fact), Some(Fact::Running)) {
        // It runs here, and has no record: it is this host's to act on.
        agent.put_record(VmRecord {
            target: record.order.target.clone(),
            epoch: ticket.epoch,
            boot: agent.boot.clone(),
            paused: false,
            ended: None,
        })?;
    }
    Ok(take_up(agent, record, First::Restarted(first)).status())
}
