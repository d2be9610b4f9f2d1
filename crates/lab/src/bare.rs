//! Agents without a server: whoever holds a [`BareCluster`] is the server, and can order, delay and forget what no
//! server would.
//!
//! Used by tests that must reach every state of a migration; [`crate::cluster`] starts the real thing.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use limosa_api::agent::{
    AGENT_PORT, ActOnVm, DatastoreAt, DatastoreKind, DeleteDisks, HostReport, MigrationOptions,
    MigrationOrder, MigrationStatus, NetworkAt, Order, Peer, Role, Signal, StartVm, VmAction, VmOnHost,
    VmStatus,
};
use limosa_api::client::{AgentClient, CallError};
use limosa_api::tls::{Ca, Credential, Identity, TlsError, client_config};
use limosa_migration::Ticket;
use limosa_model::{DatastoreId, Epoch, HostId, Incarnation, MigrationId, NetworkId, VmId, VmSpec};

use crate::assets::Assets;
use crate::error::{Error, Result};
use crate::guest::GuestConfig;
use crate::lab::Lab;
use crate::names::{Network, Room};
use crate::process::Process;
use crate::runtime::NamespaceRuntime;
use crate::topology::HOST_BRIDGE;
use crate::wait;

/// How long an agent may take to come up, or a call to be answered, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The agents of a lab, with a server's credential in the caller's hand.
pub struct BareCluster<'l> {
    lab: &'l Lab,
    program: PathBuf,
    ca: Ca,
    credential: Credential,
    runtime: NamespaceRuntime,
    incarnation: Incarnation,
    shared: PathBuf,
    datastore: DatastoreId,
    network: NetworkId,
    hosts: Vec<BareHost>,
    epoch: u64,
}

/// A host of the lab with its agent.
pub struct BareHost {
    /// Where it is in the lab.
    pub room: Room,
    /// Its identity.
    pub id: HostId,
    /// Its agent's process.
    pub agent: Process,
    client: Arc<AgentClient>,
}

/// The program under test: `LIMOSA_PROGRAM`, or `limosa` in the folder that this program is in, or in the one above
/// it (where cargo puts programs, beside the folder of the tests).
///
/// # Errors
/// When there is none.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LIMOSA_PROGRAM") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().map_err(Error::io("find the own program"))?;
    let found =
        own.ancestors().skip(1).take(2).map(|folder| folder.join("limosa")).find(|path| path.is_file());
    found.ok_or_else(|| Error::invalid("program", "limosa", "build it first: cargo build --bins"))
}

fn tls_failed(doing: &'static str) -> impl FnOnce(TlsError) -> Error {
    move |error| Error::io(doing)(std::io::Error::other(error))
}

impl<'l> BareCluster<'l> {
    /// Starts an agent on every host of the lab, and makes a datastore that all of them share.
    ///
    /// # Errors
    /// When a file cannot be written, or an agent does not come up.
    pub fn start(lab: &'l Lab, assets: &Assets) -> Result<Self> {
        let ca = Ca::create("lab").map_err(tls_failed("make a CA"))?;
        let credential = ca.issue(Identity::Server, &[]).map_err(tls_failed("make a server's credential"))?;
        let shared = lab.directory().join("shared");
        let templates = shared.join("templates");
        fs::create_dir_all(&templates).map_err(Error::path("create", &templates))?;
        for (from, name) in [(&assets.kernel, "vmlinuz"), (&assets.initramfs, "initramfs")] {
            fs::copy(from, templates.join(name)).map_err(Error::path("copy", from))?;
        }
        let mut cluster = Self {
            lab,
            program: program()?,
            ca,
            credential,
            runtime: NamespaceRuntime::start(&lab.namespace(Room::Server)?)?,
            incarnation: Incarnation(1),
            shared,
            datastore: DatastoreId::new(),
            network: NetworkId::new(),
            hosts: Vec::new(),
            epoch: 0,
        };
        for room in lab.hosts() {
            let host = cluster.join(room)?;
            cluster.hosts.push(host);
        }
        for n in 0..cluster.hosts.len() {
            cluster.await_agent(n)?;
        }
        Ok(cluster)
    }

    fn join(&self, room: Room) -> Result<BareHost> {
        let id = HostId::new();
        let directory = self.lab.room_directory(room)?;
        let state = directory.join("state");
        fs::create_dir_all(&state).map_err(Error::path("create", &state))?;
        let credential =
            self.ca.issue(Identity::Host(id), &[]).map_err(tls_failed("make a host's credential"))?;
        credential.store(&state.join("host.pem")).map_err(tls_failed("store a host's credential"))?;
        self.ca
            .certificate()
            .store(&state.join("ca.pem"))
            .map_err(tls_failed("store the CA's certificate"))?;
        let address = |network: Network| {
            network
                .address(room)
                .ok_or_else(|| Error::invalid("host", &room.to_string(), "it has no address"))
        };
        let listen = SocketAddr::new(IpAddr::V4(address(Network::Management)?), AGENT_PORT);
        let config = format!(
            "name = \"{room}\"\nlisten = \"{listen}\"\nmigration_address = \"{}\"\nstate_dir = \"{}\"\nruntime_dir = \"{}\"\nprogram = \"{}\"\n[capacity]\nmemory = \"4GiB\"\ncpus = 8\n",
            address(Network::Migration)?,
            state.display(),
            directory.join("run").display(),
            self.program.display(),
        );
        let path = directory.join("agent.toml");
        fs::write(&path, config).map_err(Error::path("write", &path))?;
        let tls = client_config(Some(&self.credential), self.ca.certificate(), Identity::Host(id))
            .map_err(tls_failed("set up TLS"))?;
        let client = Arc::new(AgentClient::new(listen, tls));
        Ok(BareHost { room, id, agent: self.spawn_agent(room)?, client })
    }

    fn spawn_agent(&self, room: Room) -> Result<Process> {
        let mut command = Command::new(&self.program);
        command.arg("agent").arg("--config").arg(self.lab.room_directory(room)?.join("agent.toml"));
        command.env("RUST_LOG", "info,limosa=debug");
        self.lab.spawn(room, "agent", command)
    }

    /// Starts the agent of a host again, after its end, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart_agent(&mut self, n: usize) -> Result<()> {
        self.hosts[n].agent = self.spawn_agent(self.hosts[n].room)?;
        self.await_agent(n)
    }

    fn await_agent(&self, n: usize) -> Result<()> {
        let what =
            format!("the agent of {} (see {})", self.hosts[n].room, self.hosts[n].agent.log().display());
        wait::until(&what, LIMIT, || {
            if !self.hosts[n].agent.is_alive()? {
                return Err(Error::invalid("agent", &what, "it has ended"));
            }
            Ok(self.report(n).ok().map(drop))
        })
    }

    /// The hosts, in the lab's order.
    pub fn hosts(&self) -> &[BareHost] {
        &self.hosts
    }

    /// The folder that all hosts share.
    pub fn shared(&self) -> &Path {
        &self.shared
    }

    /// What an agent reports.
    ///
    /// # Errors
    /// As it answers.
    pub fn report(&self, n: usize) -> std::result::Result<HostReport, CallError> {
        let client = self.hosts[n].client.clone();
        self.runtime.call(async move { client.host().await })
    }

    fn order<T>(&self, n: usize, order: T) -> std::result::Result<Order<T>, CallError> {
        Ok(Order { journal: self.report(n)?.journal, incarnation: self.incarnation, order })
    }

    /// An epoch never given before.
    pub fn next_epoch(&mut self) -> Epoch {
        self.epoch += 1;
        Epoch((self.incarnation.0 << 20) + self.epoch)
    }

    /// A VM as the hosts see it.
    pub fn target(&self, vm: VmId, spec: &VmSpec) -> VmOnHost {
        VmOnHost {
            vm,
            spec: spec.clone(),
            datastores: vec![DatastoreAt {
                id: self.datastore,
                name: "shared".parse().expect("a name"),
                kind: DatastoreKind::Shared,
                path: self.shared.clone(),
            }],
            networks: vec![NetworkAt {
                id: self.network,
                name: "lan".parse().expect("a name"),
                bridge: HOST_BRIDGE.into(),
            }],
        }
    }

    /// Makes the disks of a VM and starts it.
    ///
    /// # Errors
    /// As the agent answers.
    pub fn start_vm(&mut self, n: usize, target: &VmOnHost) -> std::result::Result<VmStatus, CallError> {
        let epoch = self.next_epoch();
        self.start_vm_under(n, target, epoch)
    }

    /// Makes the disks of a VM and starts it under this epoch, which no server would give twice.
    ///
    /// # Errors
    /// As the agent answers.
    pub fn start_vm_under(
        &self,
        n: usize,
        target: &VmOnHost,
        epoch: Epoch,
    ) -> std::result::Result<VmStatus, CallError> {
        let make = self.order(n, limosa_api::agent::MakeDisks { target: target.clone() })?;
        let start = self.order(n, StartVm { epoch, target: target.clone() })?;
        let client = self.hosts[n].client.clone();
        self.runtime.call(async move {
            client.make_disks(&make).await?;
            client.start_vm(&start).await
        })
    }

    /// A migration that nobody has heard of.
    pub fn ticket(&mut self, from: usize, to: usize, target: &VmOnHost, source_epoch: Epoch) -> Ticket {
        Ticket {
            migration: MigrationId::new(),
            vm: target.vm,
            source: self.hosts[from].id,
            source_epoch,
            destination: self.hosts[to].id,
            epoch: self.next_epoch(),
        }
    }

    /// Orders both ends of a migration. What comes after that is between the two.
    ///
    /// # Errors
    /// As the agents answer.
    pub fn migrate(
        &mut self,
        from: usize,
        to: usize,
        target: &VmOnHost,
        source_epoch: Epoch,
        options: &MigrationOptions,
    ) -> std::result::Result<Ticket, CallError> {
        let ticket = self.ticket(from, to, target, source_epoch);
        let fingerprint = self.order_end(from, to, ticket, target, options, None)?.fingerprint;
        self.order_end(to, from, ticket, target, options, fingerprint)?;
        Ok(ticket)
    }

    /// Orders one end of a migration.
    ///
    /// # Errors
    /// As the agent answers.
    pub fn order_end(
        &self,
        at: usize,
        peer: usize,
        ticket: Ticket,
        target: &VmOnHost,
        options: &MigrationOptions,
        peer_fingerprint: Option<String>,
    ) -> std::result::Result<MigrationStatus, CallError> {
        let room = self.hosts[peer].room;
        let address = Network::Management.address(room).expect("hosts are on the management network");
        let order = self.order(
            at,
            MigrationOrder {
                ticket,
                target: target.clone(),
                peer: Peer {
                    host: self.hosts[peer].id,
                    address: SocketAddr::new(address.into(), AGENT_PORT),
                },
                options: options.clone(),
                peer_fingerprint,
                recover: false,
            },
        )?;
        let client = self.hosts[at].client.clone();
        self.runtime.call(async move { client.put_migration(&order).await })
    }

    /// Acts on a VM as the server.
    ///
    /// # Errors
    /// As the agent answers.
    pub fn act(
        &self,
        n: usize,
        vm: VmId,
        epoch: Epoch,
        action: VmAction,
    ) -> std::result::Result<VmStatus, CallError> {
        let order = self.order(n, ActOnVm { epoch, action })?;
        let client = self.hosts[n].client.clone();
        self.runtime.call(async move { client.act(vm, &order).await })
    }

    /// Removes the disks of a VM that runs nowhere.
    ///
    /// # Errors
    /// As the agent answers.
    pub fn delete_disks(&self, n: usize, target: &VmOnHost) -> std::result::Result<(), CallError> {
        let order = self.order(n, DeleteDisks { target: target.clone() })?;
        let client = self.hosts[n].client.clone();
        self.runtime.call(async move { client.delete_disks(&order).await })
    }

    /// Forgets a migration that has ended.
    ///
    /// # Errors
    /// As the agent answers.
    pub fn forget(&self, n: usize, migration: MigrationId) -> std::result::Result<(), CallError> {
        let client = self.hosts[n].client.clone();
        self.runtime.call(async move { client.delete_migration(migration).await })
    }

    /// How one end of a migration stands.
    ///
    /// # Errors
    /// As the agent answers.
    pub fn migration(
        &self,
        n: usize,
        migration: MigrationId,
    ) -> std::result::Result<MigrationStatus, CallError> {
        let client = self.hosts[n].client.clone();
        self.runtime.call(async move { client.migration(migration).await })
    }

    /// Sends a signal as the server.
    ///
    /// # Errors
    /// As the agent answers.
    pub fn signal(
        &self,
        n: usize,
        migration: MigrationId,
        signal: Signal,
    ) -> std::result::Result<MigrationStatus, CallError> {
        let client = self.hosts[n].client.clone();
        self.runtime.call(async move { client.signal(migration, &signal).await })
    }

    /// Waits until both ends have ended, and says how.
    ///
    /// # Errors
    /// When they have not after a minute.
    pub fn await_end(
        &self,
        from: usize,
        to: usize,
        ticket: Ticket,
    ) -> Result<(MigrationStatus, MigrationStatus)> {
        wait::until("both ends of the migration to end", LIMIT, || {
            let source = self.migration(from, ticket.migration);
            let destination = self.migration(to, ticket.migration);
            Ok(match (source, destination) {
                (Ok(source), Ok(destination)) if source.ended && destination.ended => {
                    Some((source, destination))
                }
                _ => None,
            })
        })
    }
}

/// The spec of the page-stamping guest, for an agent to start.
pub fn guest_spec(config: &GuestConfig) -> VmSpec {
    limosa_model::toml_spec::from_toml(&guest_spec_as_toml(config)).expect("it is a spec")
}

/// The same as a user writes it.
pub fn guest_spec_as_toml(config: &GuestConfig) -> String {
    let disk = if config.disk.is_some() {
        "[[disks]]\nname = \"root\"\ndatastore = \"shared\"\nformat = \"raw\"\nsize = \"64MiB\"\n"
    } else {
        ""
    };
    format!(
        "name = \"{}\"\ncpus = 1\nmemory = \"{}MiB\"\n{disk}[[nics]]\nnetwork = \"lan\"\nmac = \"{}\"\naddresses = [\"{}\"]\n[boot.kernel]\ndatastore = \"shared\"\nimage = \"vmlinuz\"\ninitrd = \"initramfs\"\ncommand_line = \"{}\"\n",
        config.name,
        config.memory_mib,
        config.mac(),
        config.address,
        config.command_line(),
    )
}

/// The end of a migration that a status is of, for messages.
pub fn end_name(status: &MigrationStatus) -> &'static str {
    match status.role {
        Role::Source => "source",
        Role::Destination => "destination",
    }
}
