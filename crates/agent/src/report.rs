//! What the server is told unasked: how the host and its VMs are, at every change and at least every second.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use limosa_api::agent::HostReport;
use limosa_model::{Epoch, Fact, Failure, Incarnation};

use crate::agent::{Agent, journal_failure};
use crate::guest::Guest;
use crate::life;
use crate::migration::Migration;

/// The longest silence.
const EVERY: Duration = Duration::from_secs(1);

/// The shortest distance between two reports.
const AT_MOST_EVERY: Duration = Duration::from_millis(50);

/// How the host is.
pub(crate) async fn host(agent: &Agent) -> HostReport {
    let mut known: Vec<_> = agent.records().iter().map(|record| record.target.vm).collect();
    known.extend(agent.guests().iter().filter(|g| is_ours_without_record(agent, g)).map(|g| g.id()));
    known.extend(agent.silent_vms().into_iter().filter(|vm| agent.open_migration_of(*vm).is_none()));
    known.sort_unstable();
    known.dedup();
    let statuses = known.into_iter().map(|vm| life::status(agent, vm));
    let vms = join_all(statuses).await.into_iter().flatten().collect();
    HostReport {
        host: agent.host,
        journal: agent.ledger.id(),
        boot: agent.boot.clone(),
        facts: agent.facts.clone(),
        taken: agent.taken(),
        address: agent.config.listen,
        migration_address: SocketAddr::new(agent.config.migration_address(), 0),
        highest_epoch: agent.ledger.highest_epoch().unwrap_or(Epoch(0)),
        vms,
        migrations: agent.migrations().iter().map(|m| m.status()).collect(),
        sequence: agent.next_sequence(),
    }
}

/// A QEMU without a record that is this host's all the same: its journal was lost, or a migration has just left or
/// brought the VM here for good. One that a migration has yet to decide about is not shown as this host's.
fn is_ours_without_record(agent: &Agent, guest: &Guest) -> bool {
    let ours = |migration: Arc<Migration>| {
        let fact = migration.record().part.fact().map(|told| told.fact);
        matches!(fact, Some(Fact::Resumed | Fact::Running))
    };
    agent.record(guest.id()).is_none() && agent.open_migration_of(guest.id()).is_none_or(ours)
}

/// Takes note of the server's incarnation. What is ordered by an earlier one is refused from here on.
pub(crate) fn see_incarnation(agent: &Agent, incarnation: Incarnation) -> Result<(), Failure> {
    let seen = agent.ledger.incarnation().map_err(|e| journal_failure(&e))?;
    if incarnation > seen {
        let first = limosa_migration::custody::first_epoch(incarnation);
        tokio::task::block_in_place(|| agent.ledger.put_incarnation(incarnation))
            .map_err(|e| journal_failure(&e))?;
        agent.see_epoch(first);
    }
    Ok(())
}

/// Reports for as long as the agent lives.
pub(crate) async fn keep_reporting(agent: Arc<Agent>) {
    let mut silent = true;
    loop {
        let report = host(&agent).await;
        let mut answered = false;
        for server in &agent.servers {
            match server.report(&report).await {
                Ok(answer) => {
                    answered = true;
                    if let Err(failure) = see_incarnation(&agent, answer.incarnation) {
                        tracing::error!(%failure, "the server's incarnation could not be noted");
                    }
                    break;
                }
                Err(error) if answered || !silent => {
                    tracing::warn!(%error, "the server does not take the report")
                }
                Err(error) => tracing::debug!(%error, "the server does not take the report"),
            }
        }
        if answered && silent {
            tracing::info!("the server hears this host");
        }
        silent = !answered;
        tokio::time::sleep(AT_MOST_EVERY).await;
        let _ = tokio::time::timeout(EVERY, agent.changed.notified()).await;
    }
}
