//! The server as all its parts share it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use limosa_api::client::AgentClient;
use limosa_api::rest::HostState;
use limosa_api::tls::{Ca, Credential, Identity, TlsError, client_config};
use limosa_model::{HostId, Incarnation};
use limosa_store::{Embedded, Store as _, StoreError};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::Config;
use crate::live::Live;
use crate::records::{ClusterRecord, HostRecord};
use crate::snapshot::Snapshot;
use crate::tx::Tx;

/// The server as all its parts share it.
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) cluster: ClusterRecord,
    pub(crate) incarnation: Incarnation,
    pub(crate) ca: Ca,
    pub(crate) store: Embedded,
    started: Instant,
    /// While set, nothing is started, moved or restarted.
    pub(crate) restoring: AtomicBool,
    /// Counts what is worth looking at again for those who watch tasks.
    pub(crate) progress: watch::Sender<u64>,
    /// Something has changed: the reconcilers look again.
    pub(crate) nudge: Notify,
    credential: Credential,
    turn: tokio::sync::Mutex<()>,
    head: AtomicU64,
    cache: Mutex<Arc<Snapshot>>,
    live: Mutex<Live>,
    /// Whether the server shuts down: whoever watches is let go.
    pub(crate) closing: watch::Sender<bool>,
    at_work: Mutex<JoinSet<()>>,
    agents: Mutex<HashMap<HostId, (SocketAddr, Arc<AgentClient>)>>,
}

impl Server {
    pub(crate) async fn new(
        config: Config,
        cluster: ClusterRecord,
        ca: Ca,
        credential: Credential,
        store: Embedded,
    ) -> Result<Self, StoreError> {
        let incarnation = store.incarnation().await?;
        let restoring = cluster.restoring || cluster.incarnation != incarnation;
        let snapshot = Snapshot::read(&store).await?;
        Ok(Self {
            config,
            cluster,
            incarnation,
            ca,
            store,
            started: Instant::now(),
            restoring: AtomicBool::new(restoring),
            progress: watch::Sender::new(0),
            nudge: Notify::new(),
            credential,
            turn: tokio::sync::Mutex::new(()),
            head: AtomicU64::new(snapshot.revision),
            cache: Mutex::new(Arc::new(snapshot)),
            live: Mutex::new(Live::default()),
            closing: watch::Sender::new(false),
            at_work: Mutex::new(JoinSet::new()),
            agents: Mutex::new(HashMap::new()),
        })
    }

    pub(crate) fn credential(&self) -> &Credential {
        &self.credential
    }

    /// Begins a change, once it is its turn.
    pub(crate) async fn begin(&self) -> Tx<'_> {
        let turn = self.turn.lock().await;
        Tx::new(&self.store, turn)
    }

    /// Makes a change durable, and has everybody look at it.
    pub(crate) async fn commit(&self, tx: Tx<'_>) -> Result<(), StoreError> {
        if let Some(revision) = tx.commit().await? {
            self.head.fetch_max(revision.0, Ordering::SeqCst);
            self.changed();
        }
        Ok(())
    }

    /// Has reconcilers and watchers look again.
    pub(crate) fn changed(&self) {
        self.progress.send_modify(|count| *count += 1);
        self.nudge.notify_one();
    }

    /// The whole state, no older than the last change of this server.
    pub(crate) async fn snapshot(&self) -> Result<Arc<Snapshot>, StoreError> {
        let head = self.head.load(Ordering::SeqCst);
        let cached = lock(&self.cache).clone();
        if cached.revision >= head {
            return Ok(cached);
        }
        let read = Arc::new(Snapshot::read(&self.store).await?);
        let mut cache = lock(&self.cache);
        if cache.revision < read.revision {
            *cache = read.clone();
        }
        Ok(read)
    }

    /// Does something beside, until the server shuts down.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut at_work = lock(&self.at_work);
        while at_work.try_join_next().is_some() {}
        if !*self.closing.borrow() {
            at_work.spawn(work);
        }
    }

    /// Lets everybody go who watches, and ends what is done beside. What was on its way is done again after a start.
    pub(crate) async fn close(&self) {
        self.closing.send_replace(true);
        let mut at_work = std::mem::take(&mut *lock(&self.at_work));
        at_work.shutdown().await;
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.live)
    }

    pub(crate) fn is_restoring(&self) -> bool {
        self.restoring.load(Ordering::SeqCst)
    }

    /// How long a host may be silent until it is shown as offline.
    pub(crate) fn silence(&self) -> Duration {
        self.config.report_interval_ms.duration() * self.config.missed_reports
    }

    /// Whether a host cannot be waited for. One that this server has not had the time to hear of yet can be.
    pub(crate) fn is_away(&self, host: &HostRecord) -> bool {
        self.host_state(host) != HostState::Online && !self.may_yet_report(host)
    }

    /// Whether a server that was started a moment ago waits for the first report of a host.
    pub(crate) fn may_yet_report(&self, host: &HostRecord) -> bool {
        host.refusal().is_none()
            && host.journal.is_some()
            && self.started.elapsed() < self.silence()
            && !self.live().hosts.contains_key(&host.id)
    }

    /// Whether a host can be used. Silence says nothing about its VMs.
    pub(crate) fn host_state(&self, host: &HostRecord) -> HostState {
        if host.lost {
            return HostState::Lost;
        }
        if host.quarantined.is_some() {
            return HostState::Quarantined;
        }
        match self.live().hosts.get(&host.id) {
            Some(live) if live.heard.elapsed() <= self.silence() => HostState::Online,
            None if host.journal.is_none() => HostState::Joined,
            _ => HostState::Offline,
        }
    }

    /// The client for a host's agent, which must be that very host wherever it listens.
    pub(crate) fn agent(&self, host: HostId, address: SocketAddr) -> Result<Arc<AgentClient>, TlsError> {
        let mut agents = lock(&self.agents);
        if let Some((known, client)) = agents.get(&host)
            && *known == address
        {
            return Ok(client.clone());
        }
        let tls = client_config(Some(&self.credential), self.ca.certificate(), Identity::Host(host))?;
        let client = Arc::new(AgentClient::new(address, tls));
        agents.insert(host, (address, client.clone()));
        Ok(client)
    }
}

/// What is guarded is put right by the next report, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
