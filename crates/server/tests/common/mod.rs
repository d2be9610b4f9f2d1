//! A cluster for tests: the real server over real TLS, and agents that play their part of the protocol with the real
//! cores of `limosa-migration`, without any VM behind.

#![allow(dead_code, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

pub(crate) mod agent;
pub(crate) mod world;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use hyper::Method;
use limosa_api::Problem;
use limosa_api::agent::DatastoreKind;
use limosa_api::client::{CallError, HttpClient};
use limosa_api::rest::{
    CreateDatastore, CreateNetwork, CreateToken, CreateVm, Event, Host, JoinHost, JoinToken, JoinedHost,
    List, MigrateRequest, NetworkKind, Task, TaskState, Vm,
};
use limosa_api::tls::{CaCertificate, CertificateRequest, Identity, client_config, client_config_pinned};
use limosa_model::{HostId, Millis, Name, VmSpec};
use limosa_server::{Config, Running};
use serde::Serialize;
use serde::de::DeserializeOwned;

use agent::FakeAgent;
use world::World;

/// Ends a test that hangs. No test depends on how long anything takes.
const HANGS: Duration = Duration::from_secs(60);

pub(crate) struct Cluster {
    pub(crate) config: Config,
    pub(crate) world: Arc<World>,
    pub(crate) user: HttpClient,
    pub(crate) token: String,
    pub(crate) ca: CaCertificate,
    pub(crate) agents: BTreeMap<String, FakeAgent>,
    server: Option<Running>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    /// A server without hosts.
    pub(crate) async fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            state_dir: dir.path().join("state"),
            report_interval_ms: Millis::new(200),
            missed_reports: 20,
            reconcile_interval_ms: Millis::new(20),
            ..Config::default()
        };
        let made = limosa_server::init(&config).await.unwrap();
        let server = limosa_server::start(config.clone()).await.unwrap();
        config.listen = server.address();
        let token = made.admin_token.reveal().to_owned();
        let tls = client_config_pinned(made.ca_fingerprint).unwrap();
        let user = HttpClient::new(config.listen.to_string(), tls).with_token(&token).unwrap();
        let text = std::fs::read_to_string(config.state_dir.join("ca.pem")).unwrap();
        let ca = CaCertificate::from_pem(&text).unwrap();
        let world = World::new();
        Self { config, world, user, token, ca, agents: BTreeMap::new(), server: Some(server), _dir: dir }
    }

    /// Hosts with 16 GiB and 16 CPUs each, a shared datastore `fast`, a network `lan`.
    pub(crate) async fn with_hosts(names: &[&str]) -> Self {
        let mut cluster = Self::empty().await;
        for name in names {
            cluster.add_host(name).await;
        }
        let datastore = CreateDatastore {
            name: name("fast"),
            kind: DatastoreKind::Shared,
            path: Some(PathBuf::from("/srv/fast")),
            hosts: BTreeMap::new(),
        };
        let _: serde_json::Value = cluster.post("/v1/datastores", &datastore).await.unwrap();
        let network = CreateNetwork {
            name: name("lan"),
            kind: NetworkKind::Bridge,
            bridge: "br0".into(),
            hosts: BTreeMap::new(),
        };
        let _: serde_json::Value = cluster.post("/v1/networks", &network).await.unwrap();
        cluster
    }

    pub(crate) async fn add_host(&mut self, host: &str) -> HostId {
        let token: JoinToken = self.token_for(host).await;
        let (joined, credential) = self.join(host, &token.token).await.unwrap();
        let agent =
            FakeAgent::start(&self.world, joined.host, credential, &self.ca, self.config.listen).await;
        self.agents.insert(host.to_owned(), agent);
        self.host_until(host, |host| host.state == limosa_api::rest::HostState::Online).await;
        joined.host
    }

    pub(crate) async fn token_for(&self, host: &str) -> JoinToken {
        let ask = CreateToken { host: name(host), valid_for_ms: Millis::new(60_000) };
        self.post("/v1/tokens", &ask).await.unwrap()
    }

    pub(crate) async fn join(
        &self,
        host: &str,
        token: &str,
    ) -> Result<(JoinedHost, limosa_api::tls::Credential), Problem> {
        let request = CertificateRequest::new().unwrap();
        let ask = JoinHost { name: name(host), token: token.into(), request_pem: request.to_pem().into() };
        let joined: JoinedHost = self.post("/agent/v1/join", &ask).await?;
        let identity = Identity::Host(joined.host);
        let credential = request.complete(&joined.certificate_pem, &self.ca, identity).unwrap();
        Ok((joined, credential))
    }

    pub(crate) fn agent(&self, host: &str) -> &FakeAgent {
        &self.agents[host]
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.config.listen
    }

    /// Ends the server as it stands, and starts it again on what it has written.
    pub(crate) async fn restart_server(&mut self) {
        self.stop_server().await;
        self.start_server().await;
    }

    pub(crate) async fn stop_server(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    pub(crate) async fn start_server(&mut self) {
        self.server = Some(limosa_server::start(self.config.clone()).await.unwrap());
    }

    pub(crate) async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, Problem> {
        refused(self.user.call(Method::GET, path, None::<&()>, HANGS).await)
    }

    pub(crate) async fn post<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<A, Problem> {
        refused(self.user.call(Method::POST, path, Some(body), HANGS).await)
    }

    pub(crate) async fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, Problem> {
        refused(self.user.call(Method::DELETE, path, None::<&()>, HANGS).await)
    }

    /// Makes and starts a VM, and waits until it runs.
    pub(crate) async fn run(&self, vm: &str, host: &str) -> Vm {
        let ask = CreateVm { spec: spec(vm), start: true, host: Some(host.into()) };
        let task: Task = self.post("/v1/vms", &ask).await.unwrap();
        let task = self.end_of(&task).await;
        assert_eq!(task.state, TaskState::Succeeded, "{:?}", task.failure);
        self.vm(vm).await
    }

    pub(crate) async fn vm(&self, vm: &str) -> Vm {
        self.get(&format!("/v1/vms/{vm}")).await.unwrap()
    }

    pub(crate) async fn host(&self, host: &str) -> Host {
        self.get(&format!("/v1/hosts/{host}")).await.unwrap()
    }

    pub(crate) async fn migrate(&self, vm: &str, to: &str) -> Result<Task, Problem> {
        let ask = MigrateRequest { to: Some(to.into()), ..MigrateRequest::default() };
        self.post(&format!("/v1/vms/{vm}/migrate"), &ask).await
    }

    /// Watches a task until it has ended.
    pub(crate) async fn end_of(&self, task: &Task) -> Task {
        self.task_until(task, |task| task.state.has_ended()).await
    }

    /// Watches a task until it is as it should be.
    pub(crate) async fn task_until(&self, task: &Task, is_so: impl Fn(&Task) -> bool) -> Task {
        let path = format!("/v1/tasks/{}?watch=true", task.id);
        self.watch(&path, is_so).await
    }

    /// Watches events from the beginning until one has this code.
    pub(crate) async fn event(&self, code: &str) -> Event {
        self.watch("/v1/events?watch=true&from=0", |event: &Event| event.code == code).await
    }

    pub(crate) async fn codes(&self) -> Vec<String> {
        let events: List<Event> = self.get("/v1/events").await.unwrap();
        events.items.into_iter().map(|event| event.code).collect()
    }

    /// Waits for a state of a VM. Each look waits for something to have happened.
    pub(crate) async fn vm_until(&self, vm: &str, is_so: impl Fn(&Vm) -> bool) -> Vm {
        let look = async {
            loop {
                let happens = self.world.happened.notified();
                let vm = self.vm(vm).await;
                if is_so(&vm) {
                    return vm;
                }
                happens.await;
            }
        };
        tokio::time::timeout(HANGS, look).await.expect("the VM comes to that state")
    }

    pub(crate) async fn host_until(&self, host: &str, is_so: impl Fn(&Host) -> bool) -> Host {
        let look = async {
            loop {
                let happens = self.world.happened.notified();
                let host = self.host(host).await;
                if is_so(&host) {
                    return host;
                }
                happens.await;
            }
        };
        tokio::time::timeout(HANGS, look).await.expect("the host comes to that state")
    }

    /// Waits until the server has heard of a host as it is now. (The first report may have been on its way.)
    pub(crate) async fn heard_anew(&self, host: &str) {
        for _ in 0..2 {
            let before = self.host(host).await.last_report;
            self.host_until(host, |host| host.last_report > before).await;
        }
    }

    async fn watch<T: DeserializeOwned>(&self, path: &str, is_so: impl Fn(&T) -> bool) -> T {
        let look = async {
            let mut bytes = self.user.stream(path, HANGS).await.expect("a stream");
            let mut text = String::new();
            while let Some(more) = bytes.next().await {
                text.push_str(std::str::from_utf8(&more.expect("the stream goes on")).unwrap());
                while let Some((event, rest)) =
                    text.split_once("\n\n").map(|(a, b)| (a.to_owned(), b.to_owned()))
                {
                    text = rest;
                    let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) else {
                        continue;
                    };
                    let value: T = serde_json::from_str(data).unwrap();
                    if is_so(&value) {
                        return value;
                    }
                }
            }
            panic!("the stream {path} ended before it was so");
        };
        tokio::time::timeout(HANGS, look).await.unwrap_or_else(|_| panic!("{path} never came to be so"))
    }

    /// A client that shows another host's certificate.
    pub(crate) fn as_host(&self, credential: &limosa_api::tls::Credential) -> HttpClient {
        let tls = client_config(Some(credential), &self.ca, Identity::Server).unwrap();
        HttpClient::new(self.config.listen.to_string(), tls)
    }
}

pub(crate) fn refused<A>(answer: Result<A, CallError>) -> Result<A, Problem> {
    answer.map_err(|error| match error {
        CallError::Refused(problem) => *problem,
        other => panic!("the call failed: {other}"),
    })
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn spec(vm: &str) -> VmSpec {
    let text = format!(
        r#"
        name = "{vm}"
        cpus = 2
        memory = "1GiB"
        [[disks]]
        name = "root"
        datastore = "fast"
        size = "1GiB"
        [[nics]]
        network = "lan"
        "#
    );
    limosa_model::toml_spec::from_toml(&text).unwrap()
}
