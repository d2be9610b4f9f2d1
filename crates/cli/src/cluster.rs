//! The server's REST API as typed calls.

mod events;

use std::time::Duration;

use futures_util::StreamExt as _;
use hyper::Method;
use limosa_api::client::{CONSOLE_PROTOCOL, CallError, ConsoleKind, HttpClient};
use limosa_api::http::UpgradedStream;
use limosa_api::rest::{
    self, ConfirmRestore, CreateDatastore, CreateNetwork, CreateToken, CreateVm, Datastore, DeclareLost,
    EvacuateHost, Event, Host, JoinToken, List, MigrateRequest, Migration, MigrationPlan, Network, ResolveVm,
    SetVm, StartVm, StopVm, Task, Vm,
};
use limosa_model::{MigrationId, Name, TaskId, VmId};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use events::EventStream;

use crate::error::CliError;

/// How long the server has for an answer.
const LIMIT: Duration = Duration::from_secs(30);
/// How long it has where it asks hosts before it answers.
const ASKS_HOSTS: Duration = Duration::from_secs(90);

/// The server of one cluster.
#[derive(Debug)]
pub struct Cluster {
    http: HttpClient,
}

type Answer<T> = Result<T, CliError>;

/// # Errors
/// Every call: [`CliError::Refused`] if the server says no, [`CliError::Call`] if it cannot be asked,
/// [`CliError::Invalid`] if a name could not be one.
impl Cluster {
    /// The cluster behind a connection.
    pub fn new(http: HttpClient) -> Self {
        Self { http }
    }

    /// Where its server is.
    pub fn address(&self) -> &str {
        self.http.address()
    }

    /// The cluster as a whole.
    pub async fn cluster(&self) -> Answer<rest::Cluster> {
        self.get("/cluster").await
    }

    /// After a restore.
    pub async fn confirm_restore(&self, request: &ConfirmRestore) -> Answer<rest::Cluster> {
        self.post("/cluster/confirm-restore", request).await
    }

    /// Makes a join token.
    pub async fn create_token(&self, request: &CreateToken) -> Answer<JoinToken> {
        self.post("/tokens", request).await
    }

    /// All hosts.
    pub async fn hosts(&self) -> Answer<List<Host>> {
        self.get("/hosts").await
    }

    /// One host.
    pub async fn host(&self, host: &str) -> Answer<Host> {
        self.get(&format!("/hosts/{}", word(host)?)).await
    }

    /// `cordon`, `uncordon` or `readmit`.
    pub async fn host_verb(&self, host: &str, verb: &str) -> Answer<Host> {
        self.post(&format!("/hosts/{}/{verb}", word(host)?), &Nothing {}).await
    }

    /// Empties a host.
    pub async fn evacuate(&self, host: &str, request: &EvacuateHost) -> Answer<Task> {
        self.post(&format!("/hosts/{}/evacuate", word(host)?), request).await
    }

    /// An operator's word.
    pub async fn declare_lost(&self, host: &str, request: &DeclareLost) -> Answer<Host> {
        self.post(&format!("/hosts/{}/declare-lost", word(host)?), request).await
    }

    /// Takes a host out.
    pub async fn remove_host(&self, host: &str) -> Answer<()> {
        self.delete(&format!("/hosts/{}", word(host)?)).await
    }

    /// All datastores.
    pub async fn datastores(&self) -> Answer<List<Datastore>> {
        self.get("/datastores").await
    }

    /// One datastore.
    pub async fn datastore(&self, datastore: &str) -> Answer<Datastore> {
        self.get(&format!("/datastores/{}", word(datastore)?)).await
    }

    /// Makes one known.
    pub async fn create_datastore(&self, request: &CreateDatastore) -> Answer<Datastore> {
        self.post("/datastores", request).await
    }

    /// Forgets one.
    pub async fn remove_datastore(&self, datastore: &str) -> Answer<()> {
        self.delete(&format!("/datastores/{}", word(datastore)?)).await
    }

    /// All networks.
    pub async fn networks(&self) -> Answer<List<Network>> {
        self.get("/networks").await
    }

    /// Makes one known.
    pub async fn create_network(&self, request: &CreateNetwork) -> Answer<Network> {
        self.post("/networks", request).await
    }

    /// Forgets one.
    pub async fn remove_network(&self, network: &str) -> Answer<()> {
        self.delete(&format!("/networks/{}", word(network)?)).await
    }

    /// All VMs.
    pub async fn vms(&self) -> Answer<List<Vm>> {
        self.get("/vms").await
    }

    /// One VM.
    pub async fn vm(&self, vm: &str) -> Answer<Vm> {
        self.get(&format!("/vms/{}", word(vm)?)).await
    }

    /// Makes a VM.
    pub async fn create_vm(&self, request: &CreateVm) -> Answer<Task> {
        self.post("/vms", request).await
    }

    /// Changes a VM.
    pub async fn set_vm(&self, vm: &str, request: &SetVm) -> Answer<Vm> {
        self.call(Method::PATCH, &format!("/vms/{}", word(vm)?), Some(request), LIMIT).await
    }

    /// Removes a VM.
    pub async fn delete_vm(&self, vm: &str) -> Answer<Task> {
        self.delete(&format!("/vms/{}", word(vm)?)).await
    }

    /// Starts a VM.
    pub async fn start_vm(&self, vm: &str, request: &StartVm) -> Answer<Task> {
        self.post(&format!("/vms/{}/start", word(vm)?), request).await
    }

    /// `stop` or `reboot`.
    pub async fn stop_vm(&self, vm: &str, verb: &str, request: &StopVm) -> Answer<Task> {
        self.post(&format!("/vms/{}/{verb}", word(vm)?), request).await
    }

    /// `kill`, `pause` or `resume`.
    pub async fn vm_verb(&self, vm: &str, verb: &str) -> Answer<Task> {
        self.post(&format!("/vms/{}/{verb}", word(vm)?), &Nothing {}).await
    }

    /// Moves a VM.
    pub async fn migrate(&self, vm: &str, request: &MigrateRequest) -> Answer<Task> {
        self.call(Method::POST, &format!("/vms/{}/migrate", word(vm)?), Some(request), ASKS_HOSTS).await
    }

    /// What moving a VM would be: `request.dry_run` must be set.
    pub async fn plan_migration(&self, vm: &str, request: &MigrateRequest) -> Answer<MigrationPlan> {
        self.call(Method::POST, &format!("/vms/{}/migrate", word(vm)?), Some(request), ASKS_HOSTS).await
    }

    /// An operator's word.
    pub async fn resolve_vm(&self, vm: &str, request: &ResolveVm) -> Answer<Vm> {
        self.post(&format!("/vms/{}/resolve", word(vm)?), request).await
    }

    /// A console's bytes.
    pub async fn console(&self, vm: &str, kind: ConsoleKind) -> Answer<UpgradedStream> {
        let path = format!("{}/vms/{}/console/{}", rest::ROOT, word(vm)?, kind.name());
        Ok(self.http.upgrade(&path, CONSOLE_PROTOCOL, LIMIT).await?)
    }

    /// One migration.
    pub async fn migration(&self, migration: MigrationId) -> Answer<Migration> {
        self.get(&format!("/migrations/{migration}")).await
    }

    /// All tasks that are kept.
    pub async fn tasks(&self) -> Answer<List<Task>> {
        self.get("/tasks").await
    }

    /// One task.
    pub async fn task(&self, task: TaskId) -> Answer<Task> {
        self.get(&format!("/tasks/{task}")).await
    }

    /// Asks for a task to be ended.
    pub async fn cancel_task(&self, task: TaskId) -> Answer<Task> {
        self.post(&format!("/tasks/{task}/cancel"), &Nothing {}).await
    }

    /// A task each time that it changes, until it has ended.
    pub async fn watch_task(&self, task: TaskId) -> Answer<EventStream<Task>> {
        self.follow(&format!("/tasks/{task}?watch=true")).await
    }

    /// What has happened since a revision.
    pub async fn events(&self, from: u64) -> Answer<List<Event>> {
        self.get(&format!("/events?from={from}")).await
    }

    /// What happens from a revision on.
    pub async fn watch_events(&self, from: u64) -> Answer<EventStream<Event>> {
        self.follow(&format!("/events?watch=true&from={from}")).await
    }

    /// The whole state without secrets.
    pub async fn support_bundle(&self) -> Answer<serde_json::Value> {
        self.get("/support-bundle").await
    }

    async fn follow<T: DeserializeOwned>(&self, path: &str) -> Answer<EventStream<T>> {
        let pieces = self.http.stream(&format!("{}{path}", rest::ROOT), LIMIT).await?;
        Ok(EventStream::new(self.address(), pieces.boxed()))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        self.call(Method::GET, path, None::<&Nothing>, LIMIT).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> Answer<T> {
        self.call(Method::POST, path, Some(body), LIMIT).await
    }

    async fn delete<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        self.call(Method::DELETE, path, None::<&Nothing>, LIMIT).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        limit: Duration,
    ) -> Answer<T> {
        let answer: Result<T, CallError> =
            self.http.call(method, &format!("{}{path}", rest::ROOT), body, limit).await;
        Ok(answer?)
    }
}

/// A body with nothing in it.
#[derive(Serialize)]
struct Nothing {}

/// A name or an id, which can stand in a path as it is.
fn word(text: &str) -> Result<&str, CliError> {
    if text.parse::<Name>().is_ok() || text.parse::<VmId>().is_ok() {
        return Ok(text);
    }
    Err(CliError::invalid(
        format!("{text:?} is neither a name nor an id"),
        "names have a-z, 0-9, '-', '_' and '.', and begin with a letter or a digit",
    ))
}
