//! A whole cluster in a lab: the server in its room, an agent on every host, joined as an administrator would.
//!
//! Everything is done with the program itself (`limosa server init`, `limosa token create`, `limosa host join`), so
//! that a cluster that comes up here is one that comes up anywhere. What it takes to use it lies in the lab's folder
//! ([`Access`]), for whoever finds the lab later.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use limosa_api::agent::{AGENT_PORT, DatastoreKind, MigrationOptions};
use limosa_api::client::HttpClient;
use limosa_api::rest::{
    CreateDatastore, CreateNetwork, CreateVm, HostState, MigrateRequest, Migration, NetworkKind, SERVER_PORT,
    Task, TaskState, Vm,
};
use limosa_api::tls::client_config_pinned;
use limosa_cli::cluster::Cluster as Client;
use limosa_cli::error::CliError;
use limosa_cli::watch::{Show, follow};
use limosa_model::{Failure, FailureKind, VmSpec};
use serde::{Deserialize, Serialize};

use crate::assets::Assets;
use crate::bare::program;
use crate::command::output;
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::names::{Network, Room};
use crate::process::Process;
use crate::runtime::NamespaceRuntime;
use crate::topology::HOST_BRIDGE;
use crate::wait;

/// How long a daemon may take to come up on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// What `limosa token create` prints has a word that begins so.
const JOIN_TOKEN: &str = "limosa-join/";
/// What its one datastore is called, which all hosts share.
pub const DATASTORE: &str = "shared";
/// What its one network is called.
pub const NETWORK: &str = "lan";

/// A cluster in a lab. Dropping it leaves it running.
pub struct Cluster<'l> {
    lab: &'l Lab,
    program: PathBuf,
    access: Access,
    runtime: NamespaceRuntime,
    client: Arc<Client>,
    server: Process,
    agents: Vec<Process>,
}

/// What it takes to use a cluster, as `limosa server init` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Where its server listens; reached from the server's room and from the hosts.
    pub server: SocketAddr,
    /// The file with the administrator's token.
    pub admin_token_file: PathBuf,
    /// By what its server is known.
    pub ca_fingerprint: String,
}

impl Access {
    /// Of the cluster in a lab; none if the lab has none.
    pub fn find(lab: &Lab) -> Option<Self> {
        serde_json::from_slice(&fs::read(file(lab)).ok()?).ok()
    }

    /// The variables with which every `limosa` command finds the cluster.
    ///
    /// # Errors
    /// When the token cannot be read.
    pub fn environment(&self) -> Result<[(&'static str, String); 3]> {
        let token = fs::read_to_string(&self.admin_token_file)
            .map_err(Error::path("read", &self.admin_token_file))?;
        Ok([
            ("LIMOSA_SERVER", self.server.to_string()),
            ("LIMOSA_CA", self.ca_fingerprint.clone()),
            ("LIMOSA_TOKEN", token.trim().to_owned()),
        ])
    }

    fn client(&self) -> std::result::Result<Client, CliError> {
        let fingerprint =
            self.ca_fingerprint.parse().map_err(|_| CliError::invalid("the fingerprint is none", ""))?;
        let [_, _, (_, token)] =
            self.environment().map_err(|error| CliError::invalid(error.with_cause(), ""))?;
        let http = HttpClient::new(self.server.to_string(), client_config_pinned(fingerprint)?);
        Ok(Client::new(http.with_token(&token)?))
    }
}

fn file(lab: &Lab) -> PathBuf {
    lab.directory().join("cluster.json")
}

impl<'l> Cluster<'l> {
    /// Makes a cluster of a lab's rooms: server, agents, a datastore that all hosts share, a network.
    ///
    /// # Errors
    /// When a file cannot be written, or something does not come up.
    pub fn start(lab: &'l Lab, assets: &Assets) -> Result<Self> {
        let program = program()?;
        let access = init(lab, &program)?;
        let client = Arc::new(access.client().map_err(failed("call the server"))?);
        let runtime = NamespaceRuntime::start(&lab.namespace(Room::Server)?)?;
        let server = spawn_server(lab, &program)?;
        let mut cluster = Self { lab, program, access, runtime, client, server, agents: Vec::new() };
        cluster.await_server()?;
        for host in lab.hosts() {
            cluster.join(host)?;
            let agent = cluster.spawn_agent(host)?;
            cluster.agents.push(agent);
        }
        cluster.await_hosts()?;
        cluster.furnish(assets)?;
        Ok(cluster)
    }

    /// What it takes to use it.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Asks the server something, from its own room.
    ///
    /// # Errors
    /// As the server answers.
    pub fn call<T, F>(&self, doing: &str, ask: impl FnOnce(Arc<Client>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = std::result::Result<T, CliError>> + Send + 'static,
    {
        self.runtime.call(ask(self.client.clone())).map_err(failed(doing))
    }

    /// Waits for the end of a task. A server that is started again meanwhile is waited for.
    ///
    /// # Errors
    /// When it fails.
    pub fn see_through(&self, doing: &str, task: Task) -> Result<Task> {
        self.call(doing, |client| async move {
            let ended = follow(&client, vec![task], Show::Nobody).await?.pop().expect("one task was given");
            match ended.state {
                TaskState::Succeeded => Ok(ended),
                _ => Err(failure_of(ended)),
            }
        })
    }

    /// Makes a VM and starts it on a host.
    ///
    /// # Errors
    /// As the server answers.
    pub fn create_vm(&self, spec: &VmSpec, host: Room) -> Result<Vm> {
        let name = spec.name.to_string();
        let doing = format!("start {name} on {host}");
        let request = CreateVm { spec: spec.clone(), start: true, host: Some(host.to_string()) };
        let task = self.call(&doing, |client| async move { client.create_vm(&request).await })?;
        self.see_through(&doing, task)?;
        self.vm(&name)
    }

    /// A VM as the server knows it.
    ///
    /// # Errors
    /// As the server answers.
    pub fn vm(&self, name: &str) -> Result<Vm> {
        let asked = name.to_owned();
        self.call(&format!("look at {name}"), |client| async move { client.vm(&asked).await })
    }

    /// Has a VM moved. Where it is then is for [`Self::await_migration`] to say.
    ///
    /// # Errors
    /// As the server answers.
    pub fn migrate(&self, vm: &str, to: Room, options: &MigrationOptions) -> Result<Task> {
        let request = MigrateRequest {
            to: Some(to.to_string()),
            options: options.clone(),
            ..MigrateRequest::default()
        };
        let name = vm.to_owned();
        self.call(
            &format!("move {vm} to {to}"),
            |client| async move { client.migrate(&name, &request).await },
        )
    }

    /// Waits until a VM has moved, and gives the whole record of it.
    ///
    /// # Errors
    /// When it has not moved.
    pub fn await_migration(&self, task: Task) -> Result<Migration> {
        let ended = self.see_through("move a VM", task)?;
        let migration = ended.migration.expect("a migration's task names it");
        self.call("look at a migration", |client| async move { client.migration(migration).await })
    }

    /// The server's process.
    pub fn server(&self) -> &Process {
        &self.server
    }

    /// Starts the server again, after its end, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart_server(&mut self) -> Result<()> {
        self.server = spawn_server(self.lab, &self.program)?;
        self.await_server()
    }

    /// The process of a host's agent.
    ///
    /// # Panics
    /// When the lab has no such host.
    pub fn agent(&self, host: Room) -> &Process {
        &self.agents[self.number(host)]
    }

    /// Starts the agent of a host again, after its end.
    ///
    /// # Errors
    /// When it cannot be started.
    ///
    /// # Panics
    /// When the lab has no such host.
    pub fn restart_agent(&mut self, host: Room) -> Result<()> {
        let number = self.number(host);
        self.agents[number] = self.spawn_agent(host)?;
        Ok(())
    }

    fn number(&self, host: Room) -> usize {
        self.lab.hosts().position(|room| room == host).expect("the lab has the host")
    }

    fn await_server(&self) -> Result<()> {
        self.await_up("the server", slice::from_ref(&self.server), |client| async move {
            Ok(client.cluster().await.is_ok())
        })
    }

    /// Waits until the server has heard of every host.
    ///
    /// # Errors
    /// When one stays away.
    pub fn await_hosts(&self) -> Result<()> {
        let wanted = self.agents.len();
        self.await_up("the agents", &self.agents, move |client| async move {
            let hosts = client.hosts().await?;
            Ok(hosts.items.iter().filter(|host| host.state == HostState::Online).count() == wanted)
        })
    }

    fn await_up<F>(
        &self,
        what: &str,
        daemons: &[Process],
        mut is_up: impl FnMut(Arc<Client>) -> F,
    ) -> Result<()>
    where
        F: Future<Output = std::result::Result<bool, CliError>> + Send + 'static,
    {
        wait::until(&format!("the start of {what}"), LIMIT, || {
            for daemon in daemons {
                if !daemon.is_alive()? {
                    let log = daemon.log();
                    let why = format!("it has ended; its log is {}", log.display());
                    return Err(Error::answer(what, &last_line(log), why));
                }
            }
            Ok(self.call("ask the server", &mut is_up)?.then_some(()))
        })
    }

    /// Makes a host of a room, with a token that is for it alone.
    fn join(&self, room: Room) -> Result<()> {
        let directory = self.lab.room_directory(room)?;
        let path = directory.join("agent.toml");
        let management = address(room, Network::Management)?;
        let config = format!(
            "name = \"{room}\"\nlisten = \"{}\"\nmigration_address = \"{}\"\nstate_dir = \"{}\"\nruntime_dir = \"{}\"\n\
             [capacity]\nmemory = \"4GiB\"\ncpus = 8\n",
            SocketAddr::new(management, AGENT_PORT),
            address(room, Network::Migration)?,
            directory.join("state").display(),
            directory.join("run").display(),
        );
        fs::write(&path, config).map_err(Error::path("write", &path))?;
        let mut create = Command::new(&self.program);
        create.args(["token", "create", &room.to_string()]).envs(self.access.environment()?);
        let told = run_in(self.lab, Room::Server, &mut create)?;
        let token = told.split_whitespace().find(|word| word.starts_with(JOIN_TOKEN));
        let token =
            token.ok_or_else(|| Error::answer("`limosa token create`", &told, "there is no token in it"))?;
        let mut join = Command::new(&self.program);
        join.args(["host", "join", token, "--config"]).arg(&path);
        run_in(self.lab, room, &mut join).map(drop)
    }

    fn spawn_agent(&self, room: Room) -> Result<Process> {
        let mut command = Command::new(&self.program);
        command.arg("agent").arg("--config").arg(self.lab.room_directory(room)?.join("agent.toml"));
        self.lab.spawn(room, "agent", command)
    }

    /// Makes known what guests need: a folder that all hosts see, with a kernel in it, and the hosts' bridge.
    fn furnish(&self, assets: &Assets) -> Result<()> {
        let shared = self.lab.directory().join(DATASTORE);
        let templates = shared.join("templates");
        fs::create_dir_all(&templates).map_err(Error::path("create", &templates))?;
        for (from, name) in [(&assets.kernel, "vmlinuz"), (&assets.initramfs, "initramfs")] {
            fs::copy(from, templates.join(name)).map_err(Error::path("copy", from))?;
        }
        let datastore = CreateDatastore {
            name: DATASTORE.parse().expect("a name"),
            kind: DatastoreKind::Shared,
            path: Some(shared),
            hosts: Default::default(),
        };
        let network = CreateNetwork {
            name: NETWORK.parse().expect("a name"),
            kind: NetworkKind::Bridge,
            bridge: HOST_BRIDGE.into(),
            hosts: Default::default(),
        };
        self.call("make the datastore and the network known", |client| async move {
            client.create_datastore(&datastore).await?;
            client.create_network(&network).await.map(drop)
        })
    }
}

/// Makes the cluster's state, and remembers what it takes to use it.
fn init(lab: &Lab, program: &Path) -> Result<Access> {
    let directory = lab.room_directory(Room::Server)?;
    let path = directory.join("server.toml");
    let listen = SocketAddr::new(address(Room::Server, Network::Management)?, SERVER_PORT);
    let config = format!(
        "listen = \"{listen}\"\nstate_dir = \"{}\"\ncluster = \"{}\"\n",
        directory.join("state").display(),
        lab.name()
    );
    fs::write(&path, config).map_err(Error::path("write", &path))?;
    let mut init = Command::new(program);
    init.args(["--output", "json", "server", "init", "--config"]).arg(&path);
    let told = run_in(lab, Room::Server, &mut init)?;
    let access: Access =
        serde_json::from_str(&told).map_err(|error| Error::answer("`limosa server init`", &told, error))?;
    let file = file(lab);
    fs::write(&file, &told).map_err(Error::path("write", &file))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).map_err(Error::path("protect", &file))?;
    Ok(access)
}

fn spawn_server(lab: &Lab, program: &Path) -> Result<Process> {
    let mut command = Command::new(program);
    command.arg("server").arg("--config").arg(lab.room_directory(Room::Server)?.join("server.toml"));
    lab.spawn(Room::Server, "server", command)
}

fn run_in(lab: &Lab, room: Room, command: &mut Command) -> Result<String> {
    lab.namespace(room)?.run_as_host(|| output(command))
}

fn address(room: Room, network: Network) -> Result<IpAddr> {
    let address = network.address(room);
    address
        .map(IpAddr::V4)
        .ok_or_else(|| Error::invalid("room", &room.to_string(), "it has no address there"))
}

fn failed(doing: impl Into<String>) -> impl FnOnce(CliError) -> Error {
    let doing = doing.into();
    move |source| Error::Cluster { doing, source: Box::new(source) }
}

fn failure_of(task: Task) -> CliError {
    let untold = || Failure::new(FailureKind::Cancelled, "it did not succeed", "look at `limosa events`");
    let failure = task.failure.clone().unwrap_or_else(untold);
    CliError::Failed { doing: task.kind.name().into(), failure, outcome: None }
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().next_back().unwrap_or_default().to_owned()
}
