//! Brings each migration to its end.

use std::sync::Arc;

use limosa_api::agent::{MigrationOrder, Peer, Role, Signal};
use limosa_api::client::CallError;
use limosa_model::{Failure, FailureKind, HostId, MigrationId, Phase};
use limosa_store::StoreError;

use super::passage::{Ask, asks};
use super::report;
use crate::hear;
use crate::live::{Ends, OrderKey};
use crate::orders::{Done, target};
use crate::records::{HostRecord, MigrationRecord, keys};
use crate::server::Server;
use crate::snapshot::Snapshot;

/// How often a host that still reports may fail to answer the first order until the migration is given up.
const FIRST_ORDERS: u32 = 10;

pub(super) async fn passages(server: &Arc<Server>) -> Result<(), StoreError> {
    let snapshot = server.snapshot().await?;
    for record in snapshot.migrations.values().filter(|record| !record.closed) {
        if record.report.is_none() && is_through(server, &snapshot, record) {
            report::finish(server, record.id()).await?;
            continue;
        }
        let journal_of = |host: HostId| snapshot.hosts.get(&host).and_then(|host| host.journal);
        let asked = {
            let live = server.live();
            let none = Ends::default();
            asks(record, live.migrations.get(&record.id()).unwrap_or(&none), journal_of)
        };
        for ask in asked {
            perform(server, &snapshot, record, ask);
        }
    }
    Ok(())
}

/// Whether the facts say where the VM is, and both ends have done what they had to or cannot be waited for.
fn is_through(server: &Server, snapshot: &Snapshot, record: &MigrationRecord) -> bool {
    let passage = &record.passage;
    if passage.end().is_none() {
        return false;
    }
    let away = |host: HostId| {
        let host = snapshot.hosts.get(&host);
        host.is_none_or(|host| server.is_away(host))
    };
    let (source_away, destination_away) = (away(passage.ticket.source), away(passage.ticket.destination));
    let live = server.live();
    let ends = live.migrations.get(&record.id());
    let ended = |status: Option<bool>| status.unwrap_or(false);
    let source = ended(ends.and_then(|ends| ends.source.as_ref()).map(|status| status.ended));
    let destination = ended(ends.and_then(|ends| ends.destination.as_ref()).map(|status| status.ended));
    (source || source_away) && (destination || destination_away)
}

fn perform(server: &Arc<Server>, snapshot: &Arc<Snapshot>, record: &MigrationRecord, ask: Ask) {
    let (role, what) = match &ask {
        Ask::TakePart { role, recover: false, .. } => (*role, "take-part"),
        Ask::TakePart { role, recover: true, .. } => (*role, "recover"),
        Ask::Hear(role, signal) => (*role, signal_name(signal)),
        Ask::Forget(role) => (*role, "forget"),
    };
    let ticket = record.passage.ticket;
    let (host, peer) = match role {
        Role::Source => (ticket.source, ticket.destination),
        Role::Destination => (ticket.destination, ticket.source),
    };
    let Some(host) = snapshot.hosts.get(&host).cloned() else { return };
    let peer = snapshot.hosts.get(&peer).cloned();
    let key = OrderKey::Migration(ticket.migration, role, what);
    let (server, snapshot, record) = (server.clone(), snapshot.clone(), record.clone());
    let order = Order { server: server.clone(), snapshot, record, host, peer };
    server.dispatch(key, async move {
        match ask {
            Ask::TakePart { recover, fingerprint, .. } => order.take_part(key, recover, fingerprint).await,
            Ask::Hear(_, signal) => order.hear(signal).await,
            Ask::Forget(_) => order.forget(role).await,
        }
    });
}

fn signal_name(signal: &Signal) -> &'static str {
    match signal {
        Signal::Ready { .. } | Signal::Loaded { .. } | Signal::GiveUp => "relay",
        Signal::Told(_) => "told",
        Signal::SourceLost => "source-lost",
        Signal::Abandon => "abandon",
        Signal::Cancel => "cancel",
    }
}

/// One order to one end.
struct Order {
    server: Arc<Server>,
    snapshot: Arc<Snapshot>,
    record: MigrationRecord,
    host: HostRecord,
    peer: Option<HostRecord>,
}

impl Order {
    fn id(&self) -> MigrationId {
        self.record.id()
    }

    async fn take_part(
        self,
        key: OrderKey,
        recover: bool,
        peer_fingerprint: Option<String>,
    ) -> Result<Done, Failure> {
        let ticket = self.record.passage.ticket;
        let peer = self.peer.as_ref().and_then(|peer| Some(Peer { host: peer.id, address: peer.address? }));
        let peer = peer.ok_or_else(|| {
            Failure::new(FailureKind::Peer, "the other host has never reported", "start its agent")
        })?;
        let order = MigrationOrder {
            ticket,
            target: target(&self.snapshot, ticket.vm, &self.record.spec, &self.host)?,
            peer,
            options: self.record.options.clone(),
            peer_fingerprint,
            recover,
        };
        let order = self.server.order(&self.host, order)?;
        let answer = match self.server.agent_of(&self.host) {
            Ok(agent) => agent.put_migration(&order).await.map_err(Box::new),
            Err(failure) => return self.unreachable(key, recover, failure).await,
        };
        match answer.map_err(|error| *error) {
            Ok(status) => {
                hear::answered(&self.server, self.host.id, status).await.map_err(stored)?;
                Ok(Done::Changed)
            }
            Err(CallError::Refused(problem)) if !recover => {
                self.give_up(Failure::from(*problem)).await?;
                Ok(Done::Changed)
            }
            Err(error) => self.unreachable(key, recover, error.into()).await,
        }
    }

    /// A host that does not answer the first order is not waited for: nothing has begun.
    async fn unreachable(&self, key: OrderKey, recover: bool, failure: Failure) -> Result<Done, Failure> {
        let times = self.server.live().trouble_before(key);
        if !recover && (self.server.is_away(&self.host) || times + 1 >= FIRST_ORDERS) {
            self.give_up(failure.clone()).await?;
            return Ok(Done::Changed);
        }
        Err(failure)
    }

    async fn give_up(&self, failure: Failure) -> Result<(), Failure> {
        let mut tx = self.server.begin().await;
        let key = keys::of(keys::MIGRATIONS, self.id());
        let Some(mut record) = tx.get::<MigrationRecord>(&key).await.map_err(stored)? else { return Ok(()) };
        if record.failure.is_none() && record.report.is_none() {
            record.failure = Some(failure.during(Phase::Reserve));
            tx.put(&key, &record).map_err(stored)?;
            self.server.commit(tx).await.map_err(stored)?;
        }
        Ok(())
    }

    async fn hear(self, signal: Signal) -> Result<Done, Failure> {
        let status = self.server.agent_of(&self.host)?.signal(self.id(), &signal).await?;
        match hear::answered(&self.server, self.host.id, status).await.map_err(stored)? {
            true => Ok(Done::Changed),
            false => Ok(Done::Same),
        }
    }

    async fn forget(self, role: Role) -> Result<Done, Failure> {
        match self.server.agent_of(&self.host)?.delete_migration(self.id()).await {
            Ok(()) => {}
            Err(CallError::Refused(problem)) if problem.code == FailureKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let passage = self.record.passage;
        let both = {
            let mut live = self.server.live();
            let ends = live.migrations.entry(self.id()).or_default();
            match role {
                Role::Source => ends.source_forgot = true,
                Role::Destination => ends.destination_forgot = true,
            }
            (ends.source_forgot || passage.source_lost)
                && (ends.destination_forgot || passage.destination_lost)
        };
        if !both {
            return Ok(Done::Same);
        }
        let mut tx = self.server.begin().await;
        let key = keys::of(keys::MIGRATIONS, self.id());
        if let Some(record) = tx.get::<MigrationRecord>(&key).await.map_err(stored)? {
            tx.put(&key, &MigrationRecord { closed: true, ..record }).map_err(stored)?;
            self.server.commit(tx).await.map_err(stored)?;
        }
        self.server.live().migrations.remove(&self.id());
        Ok(Done::Changed)
    }
}

/// The store's word as the failure of an order: it is tried again.
pub(super) fn stored(error: StoreError) -> Failure {
    Failure::new(FailureKind::Storage, error.to_string(), "look at the server's disk")
}
