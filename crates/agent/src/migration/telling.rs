//! Telling facts to the other end and to the server until they have heard, and asking for theirs.

use std::sync::Arc;

use limosa_api::agent::{FactReport, MigrationStatus, Signal};
use limosa_model::Fact;

use super::{Inbox, Migration, lock};
use crate::agent::Agent;

/// Tells a fact to whoever has not heard it. Returns at once; the timer asks for it again where it fails.
pub(super) fn tell(agent: &Arc<Agent>, migration: &Arc<Migration>, fact: Fact) {
    {
        let mut live = lock(&migration.live);
        let heard = live.told_peer == Some(fact) && live.told_server == Some(fact);
        if heard || live.telling {
            return;
        }
        live.telling = true;
    }
    let (agent, migration) = (agent.clone(), migration.clone());
    tokio::spawn(async move {
        tokio::join!(tell_peer(&agent, &migration, fact), tell_server(&agent, &migration, fact));
        lock(&migration.live).telling = false;
    });
}

async fn tell_peer(agent: &Arc<Agent>, migration: &Arc<Migration>, fact: Fact) {
    if lock(&migration.live).told_peer == Some(fact) {
        return;
    }
    let record = migration.record();
    let told = record.part.ticket().tell(fact);
    let Ok(client) = agent.peer(&record.order.peer) else { return };
    match client.signal(migration.id(), &Signal::Told(told)).await {
        Ok(status) => {
            lock(&migration.live).told_peer = Some(fact);
            hear(migration, &status);
        }
        Err(error) => tracing::debug!(migration = %migration.id(), %error, %fact, "the peer has not heard"),
    }
}

async fn tell_server(agent: &Arc<Agent>, migration: &Arc<Migration>, fact: Fact) {
    if lock(&migration.live).told_server == Some(fact) {
        return;
    }
    if agent.servers.is_empty() {
        lock(&migration.live).told_server = Some(fact);
        return;
    }
    let report = FactReport { host: agent.host, status: migration.status() };
    for server in &agent.servers {
        match server.fact(&report).await {
            Ok(answer) => {
                // What was reported is the state now, which may have moved on from the fact.
                let reported = report.status.fact.map(|told| told.fact);
                lock(&migration.live).told_server = reported;
                if let Some(told) = answer.other {
                    migration.heard(told);
                }
                return;
            }
            Err(error) => {
                tracing::debug!(migration = %migration.id(), %error, %fact, "the server has not heard")
            }
        }
    }
}

/// Asks the other end, and takes what it has decided as heard.
pub(super) fn ask(agent: &Arc<Agent>, migration: &Arc<Migration>, give_up: bool) {
    {
        let mut live = lock(&migration.live);
        if live.asking {
            return;
        }
        live.asking = true;
    }
    let (agent, migration) = (agent.clone(), migration.clone());
    tokio::spawn(async move {
        let peer = migration.record().order.peer;
        if let Ok(client) = agent.peer(&peer) {
            let answer = match give_up {
                true => client.signal(migration.id(), &Signal::GiveUp).await,
                false => client.migration(migration.id()).await,
            };
            match answer {
                Ok(status) => hear(&migration, &status),
                Err(error) => {
                    tracing::debug!(migration = %migration.id(), %error, "the peer does not answer")
                }
            }
        }
        let report = FactReport { host: agent.host, status: migration.status() };
        for server in &agent.servers {
            if let Ok(answer) = server.fact(&report).await {
                if let Some(told) = answer.other {
                    migration.heard(told);
                }
                break;
            }
        }
        lock(&migration.live).asking = false;
    });
}

/// Takes what the peer's status says.
pub(super) fn hear(migration: &Migration, status: &MigrationStatus) {
    if let Some(failure) = &status.failure
        && status.fact.is_some_and(|told| told.fact == Fact::Refused)
    {
        migration.fail(failure.clone());
    }
    if let Some(told) = status.fact {
        migration.heard(told);
    }
}

impl Migration {
    fn heard(&self, told: limosa_migration::Told) {
        match self.inbox {
            Inbox::Source(_) => self.post_source(limosa_migration::source::Event::Heard(told)),
            Inbox::Destination(_) => self.post_destination(limosa_migration::destination::Event::Heard(told)),
        }
    }
}
