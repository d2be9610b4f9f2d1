//! What the parts of an agent share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use limosa_api::agent::Peer;
use limosa_api::client::{AgentClient, ServerClient};
use limosa_api::tls::{CaCertificate, Credential, Identity, client_config};
use limosa_model::{BootId, Capacity, Epoch, Failure, FailureKind, HostFacts, HostId, MigrationId, VmId};
use limosa_net::Net;
use limosa_vm::Process;
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::guest::Guest;
use crate::ledger::{Ledger, MigrationRecord, VmRecord};
use crate::migration::Migration;
use crate::resolve::Place;
use crate::worker::WorkerDir;

/// An agent: everything that its requests and migrations share.
pub(crate) struct Agent {
    pub config: Config,
    pub host: HostId,
    pub boot: BootId,
    pub facts: HostFacts,
    pub net: Net,
    pub ledger: Ledger,
    pub credential: Credential,
    pub ca: CaCertificate,
    pub servers: Vec<ServerClient>,
    /// The VMs that have a QEMU here, incoming ones included.
    guests: Mutex<HashMap<VmId, Arc<Guest>>>,
    /// The VMs whose QEMU lives and does not answer. It may run them: they are neither gone nor anybody else's.
    silent: watch::Sender<HashMap<VmId, Silent>>,
    /// The VMs that the journal knows.
    records: Mutex<HashMap<VmId, VmRecord>>,
    migrations: Mutex<HashMap<MigrationId, Arc<Migration>>>,
    peers: Mutex<HashMap<SocketAddr, (HostId, Arc<AgentClient>)>>,
    /// One VM's beginning and end is looked after by one request at a time.
    pub lifecycle: tokio::sync::Mutex<()>,
    /// Disks are made by one request at a time: it may take long, and starts need not wait for it.
    pub disks: tokio::sync::Mutex<()>,
    /// Something that the server should hear of has changed.
    pub changed: Notify,
    sequence: AtomicU64,
}

/// A QEMU that lives and does not answer.
#[derive(Debug, Clone)]
pub(crate) struct Silent {
    pub epoch: Epoch,
    pub process: Process,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The clock, in microseconds since 1970.
pub(crate) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |span| span.as_micros() as u64)
}

/// What an agent is made of at its start.
pub(crate) struct Parts {
    pub config: Config,
    pub host: HostId,
    pub boot: BootId,
    pub facts: HostFacts,
    pub net: Net,
    pub ledger: Ledger,
    pub credential: Credential,
    pub ca: CaCertificate,
    pub servers: Vec<ServerClient>,
}

impl Agent {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { config, host, boot, facts, net, ledger, credential, ca, servers } = parts;
        Self {
            config,
            host,
            boot,
            facts,
            net,
            ledger,
            credential,
            ca,
            servers,
            guests: Mutex::default(),
            silent: watch::Sender::new(HashMap::new()),
            records: Mutex::default(),
            migrations: Mutex::default(),
            peers: Mutex::default(),
            lifecycle: tokio::sync::Mutex::new(()),
            disks: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
            sequence: AtomicU64::new(now_us()),
        }
    }

    pub(crate) fn runtime_root(&self) -> PathBuf {
        self.config.runtime_dir.join("vms")
    }

    pub(crate) fn worker_dir(&self, migration: MigrationId) -> WorkerDir {
        WorkerDir::at(self.config.runtime_dir.join("migrations").join(migration.to_string()))
    }

    /// What a launch plan needs to know.
    pub(crate) fn place<'a>(&'a self, runtime_root: &'a std::path::Path) -> Place<'a> {
        Place { config: &self.config, runtime_root, accelerator: self.facts.accelerator }
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn guest(&self, vm: VmId) -> Option<Arc<Guest>> {
        lock(&self.guests).get(&vm).cloned()
    }

    pub(crate) fn guests(&self) -> Vec<Arc<Guest>> {
        lock(&self.guests).values().cloned().collect()
    }

    pub(crate) fn add_guest(&self, guest: Arc<Guest>) {
        lock(&self.guests).insert(guest.id(), guest);
        self.changed.notify_one();
    }

    /// Forgets a guest, if it still is this one.
    pub(crate) fn remove_guest(&self, guest: &Arc<Guest>) {
        let mut guests = lock(&self.guests);
        if guests.get(&guest.id()).is_some_and(|current| Arc::ptr_eq(current, guest)) {
            guests.remove(&guest.id());
        }
        self.changed.notify_one();
    }

    /// The QEMU of a VM that lives and does not answer, if that is how it is.
    pub(crate) fn silent(&self, vm: VmId) -> Option<Silent> {
        self.silent.borrow().get(&vm).cloned()
    }

    pub(crate) fn silent_vms(&self) -> Vec<VmId> {
        self.silent.borrow().keys().copied().collect()
    }

    pub(crate) fn note_silent(&self, vm: VmId, silent: Option<Silent>) {
        self.silent.send_modify(|all| {
            match silent {
                Some(silent) => all.insert(vm, silent),
                None => all.remove(&vm),
            };
        });
        self.changed.notify_one();
    }

    /// Returns once it is known whether the VM has a QEMU here, and it can be spoken to.
    pub(crate) async fn heard_of(&self, vm: VmId) {
        let mut silent = self.silent.subscribe();
        // The sender is this agent's own: it is there.
        let _ = silent.wait_for(|all| !all.contains_key(&vm)).await;
    }

    /// Ends a QEMU that does not answer, if the VM has one under this epoch. Returns when it is gone.
    pub(crate) async fn end_silent(&self, vm: VmId, epoch: Epoch) -> std::io::Result<()> {
        match self.silent(vm).filter(|silent| silent.epoch == epoch) {
            Some(silent) => silent.process.kill().await.map(drop),
            None => Ok(()),
        }
    }

    pub(crate) fn record(&self, vm: VmId) -> Option<VmRecord> {
        lock(&self.records).get(&vm).cloned()
    }

    pub(crate) fn records(&self) -> Vec<VmRecord> {
        lock(&self.records).values().cloned().collect()
    }

    /// Makes a VM's record durable. With an error, the old one stands.
    pub(crate) fn put_record(&self, record: VmRecord) -> Result<(), Failure> {
        tokio::task::block_in_place(|| self.ledger.put_vm(&record))
            .map_err(|error| journal_failure(&error))?;
        lock(&self.records).insert(record.target.vm, record);
        self.changed.notify_one();
        Ok(())
    }

    /// Changes the record of a VM that is here under this epoch and has not ended. Nothing else changes it meanwhile.
    pub(crate) fn update_record(
        &self,
        vm: VmId,
        epoch: Epoch,
        change: impl FnOnce(&mut VmRecord),
    ) -> Result<(), Failure> {
        tokio::task::block_in_place(|| {
            let mut records = lock(&self.records);
            let known = records.get(&vm).filter(|record| record.epoch == epoch && record.ended.is_none());
            let mut record = known.cloned().ok_or_else(|| {
                Failure::new(
                    FailureKind::NotFound,
                    format!("VM {vm} is not here any more"),
                    "look where it is",
                )
            })?;
            change(&mut record);
            self.ledger.put_vm(&record).map_err(|error| journal_failure(&error))?;
            records.insert(vm, record);
            Ok::<(), Failure>(())
        })?;
        self.changed.notify_one();
        Ok(())
    }

    /// Takes a record as it was found in the journal.
    pub(crate) fn load_record(&self, record: VmRecord) {
        lock(&self.records).insert(record.target.vm, record);
    }

    pub(crate) fn forget_record(&self, vm: VmId) {
        if let Err(error) = self.ledger.remove_vm(vm) {
            tracing::warn!(%error, %vm, "a VM's record could not be removed");
        }
        lock(&self.records).remove(&vm);
        self.changed.notify_one();
    }

    pub(crate) fn migration(&self, id: MigrationId) -> Option<Arc<Migration>> {
        lock(&self.migrations).get(&id).cloned()
    }

    pub(crate) fn migrations(&self) -> Vec<Arc<Migration>> {
        lock(&self.migrations).values().cloned().collect()
    }

    pub(crate) fn add_migration(&self, migration: Arc<Migration>) {
        lock(&self.migrations).insert(migration.id(), migration);
        self.changed.notify_one();
    }

    pub(crate) fn remove_migration(&self, id: MigrationId) {
        lock(&self.migrations).remove(&id);
        if let Err(error) = self.ledger.remove_migration(id) {
            tracing::warn!(%error, migration = %id, "a migration's record could not be removed");
        }
        self.changed.notify_one();
    }

    /// The migration that a VM has a part in here and that has not ended.
    pub(crate) fn open_migration_of(&self, vm: VmId) -> Option<Arc<Migration>> {
        lock(&self.migrations).values().find(|m| m.vm() == vm && !m.record().part.has_ended()).cloned()
    }

    /// A connection to another host's agent, kept for the next time.
    pub(crate) fn peer(&self, peer: &Peer) -> Result<Arc<AgentClient>, Failure> {
        let mut peers = lock(&self.peers);
        if let Some((host, client)) = peers.get(&peer.address)
            && *host == peer.host
        {
            return Ok(client.clone());
        }
        let tls =
            client_config(Some(&self.credential), &self.ca, Identity::Host(peer.host)).map_err(|error| {
                Failure::new(
                    FailureKind::Peer,
                    format!("TLS to host {}: {error}", peer.host),
                    "join the host again",
                )
            })?;
        let client = Arc::new(AgentClient::new(peer.address, tls));
        peers.insert(peer.address, (peer.host, client.clone()));
        Ok(client)
    }

    /// Sees an epoch; whatever is ordered later must be above it.
    pub(crate) fn see_epoch(&self, epoch: Epoch) {
        match self.ledger.highest_epoch() {
            Ok(highest) if highest >= epoch => {}
            _ => {
                if let Err(error) = self.ledger.put_highest_epoch(epoch) {
                    tracing::warn!(%error, "the highest epoch could not be noted");
                }
            }
        }
    }

    /// What VMs and reservations take here.
    pub(crate) fn taken(&self) -> Capacity {
        let mut taken: HashMap<VmId, Capacity> = HashMap::new();
        for guest in self.guests() {
            let spec = &guest.vm.plan().spec;
            taken.insert(guest.id(), Capacity { memory: spec.memory, cpus: spec.cpus.into() });
        }
        for migration in self.migrations() {
            let MigrationRecord { order, part, .. } = migration.record();
            if part.role() == limosa_api::agent::Role::Destination && !part.has_ended() {
                let spec = &order.target.spec;
                taken.insert(order.target.vm, Capacity { memory: spec.memory, cpus: spec.cpus.into() });
            }
        }
        taken.into_values().fold(Capacity::default(), Capacity::plus)
    }
}

/// The journal's failure, as a request is answered with it.
pub(crate) fn journal_failure(error: &limosa_journal::JournalError) -> Failure {
    Failure::new(
        FailureKind::Resource,
        error.to_string(),
        "free space on the file system of the agent's state directory",
    )
}
