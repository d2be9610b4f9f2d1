//! An agent that keeps the protocol: it listens with its certificate, and reports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::routing::{get, post, put};
use axum::{Extension, Router};
use limosa_api::Problem;
use limosa_api::agent::{
    ActOnVm, CheckOrder, CheckReport, DeleteDisks, DisksMade, HostReport, MakeDisks, MigrationOrder,
    MigrationStatus, Order, ReportAnswer, Signal, StartVm, VmAction, VmStatus,
};
use limosa_api::client::{CallError, ServerClient};
use limosa_api::http::{Caller, Json, Limits, serve};
use limosa_api::tls::{CaCertificate, ClientAuth, Credential, Identity, client_config, server_config};
use limosa_model::host::Accelerator;
use limosa_model::{
    ByteSize, Capacity, Failure, FailureKind, HostFacts, HostId, JournalId, MigrationId, PowerState, VmId,
};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::world::World;

pub(crate) struct FakeAgent {
    pub(crate) host: HostId,
    pub(crate) server: Arc<ServerClient>,
    address: SocketAddr,
    world: Arc<World>,
    at_work: Vec<JoinHandle<()>>,
}

#[derive(Clone)]
struct Shared {
    host: HostId,
    world: Arc<World>,
}

impl FakeAgent {
    pub(crate) async fn start(
        world: &Arc<World>,
        host: HostId,
        credential: Credential,
        ca: &CaCertificate,
        server: SocketAddr,
    ) -> Self {
        world.add(host);
        let tls = server_config(&credential, ca, ClientAuth::Required).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let to_server = client_config(Some(&credential), ca, Identity::Server).unwrap();
        let server = Arc::new(ServerClient::new(server.to_string(), to_server));
        let shared = Shared { host, world: world.clone() };
        let serving = serve(listener, tls, router(shared), Limits::default(), std::future::pending());
        let reporting = report(world.clone(), host, address, server.clone());
        let at_work = vec![tokio::spawn(serving), tokio::spawn(reporting)];
        Self { host, server, address, world: world.clone(), at_work }
    }

    /// One report of the host as it is, beside those that it sends by itself.
    pub(crate) async fn report_as(
        &self,
        change: impl FnOnce(&mut HostReport),
    ) -> Result<ReportAnswer, CallError> {
        let mut report = describe(&self.world, self.host, self.address);
        change(&mut report);
        self.server.report(&report).await
    }

    /// The host is gone.
    pub(crate) fn vanish(&self) {
        self.at_work.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.vanish();
    }
}

/// Reports at every change, and now and then.
async fn report(world: Arc<World>, host: HostId, address: SocketAddr, server: Arc<ServerClient>) {
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    loop {
        if !world.hosts()[&host].silent {
            let report = describe(&world, host, address);
            // A server that is away hears the next one.
            if server.report(&report).await.is_ok() {
                world.happened.notify_waiters();
            }
        }
        pace.tick().await;
    }
}

fn describe(world: &World, host: HostId, address: SocketAddr) -> HostReport {
    world_report(&mut world.hosts(), host, address)
}

fn world_report(
    hosts: &mut std::collections::BTreeMap<HostId, super::world::HostState>,
    host: HostId,
    address: SocketAddr,
) -> HostReport {
    let state = hosts.get_mut(&host).unwrap();
    state.sequence += 1;
    HostReport {
        host,
        journal: state.journal,
        boot: state.boot.clone(),
        facts: HostFacts {
            limosa_version: "0.1.0".into(),
            kernel: "6.12".into(),
            qemu_version: "10.0.2".into(),
            machine_types: state.machine_types.clone(),
            accelerator: Accelerator::Tcg,
            cpu_model: "a CPU".into(),
            cpu_flags: vec!["sse2".into()],
            capacity: Capacity { memory: ByteSize::mib(16 << 10), cpus: 16 },
        },
        taken: Capacity::default(),
        address,
        migration_address: address,
        highest_epoch: state.highest,
        vms: state.vms.values().cloned().collect(),
        migrations: state.parts.values().map(super::world::Part::status).collect(),
        sequence: state.sequence,
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/vms/{vm}", put(start_vm))
        .route("/v1/vms/{vm}/disks", put(make_disks))
        .route("/v1/vms/{vm}/delete-disks", post(delete_disks))
        .route("/v1/vms/{vm}/actions", post(act))
        .route("/v1/migrations/{migration}", put(take_part).delete(forget).get(migration))
        .route("/v1/migrations/{migration}/signals", post(signal))
        .route("/v1/migrations/{migration}/check", post(check))
        .route("/v1/host", get(|| async { "unused" }))
        .with_state(shared)
}

type Answer<T> = Result<Json<T>, Problem>;

fn for_this_journal<T>(shared: &Shared, caller: Caller, order: Order<T>) -> Result<T, Problem> {
    assert_eq!(caller.identity, Some(Identity::Server), "only the server gives orders");
    let journal: JournalId = shared.world.hosts()[&shared.host].journal;
    if order.journal != journal {
        return Err(Failure::new(FailureKind::Conflict, "the order is for another journal", "report").into());
    }
    Ok(order.order)
}

async fn start_vm(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Json(order): Json<Order<StartVm>>,
) -> Answer<VmStatus> {
    let StartVm { epoch, target } = for_this_journal(&shared, caller, order)?;
    let started = shared.world.with(shared.host, |host| {
        host.orders.push(format!("start {}", target.spec.name));
        if host.refuses_start {
            return Err(Failure::new(FailureKind::Storage, "the disk is locked", "unlock it"));
        }
        host.highest = host.highest.max(epoch);
        let status = VmStatus {
            vm: target.vm,
            name: target.spec.name.clone(),
            epoch,
            power: PowerState::Running,
            reason: None,
            migration: None,
            machine_type: target.spec.machine.machine_type.clone(),
            pid: Some(1),
            pending: Vec::new(),
        };
        if let Some(known) = host.vms.get(&target.vm).filter(|known| known.epoch >= epoch) {
            return Ok(known.clone());
        }
        host.vms.insert(target.vm, status.clone());
        Ok(status)
    });
    Ok(Json(started?))
}

async fn make_disks(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Json(order): Json<Order<MakeDisks>>,
) -> Answer<DisksMade> {
    let target = for_this_journal(&shared, caller, order)?.target;
    shared.world.with(shared.host, |host| {
        host.orders.push(format!("make-disks {}", target.spec.name));
        host.disks.insert(target.vm);
    });
    Ok(Json(DisksMade { made: target.spec.disks.iter().map(|disk| disk.name.clone()).collect() }))
}

async fn delete_disks(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Json(order): Json<Order<DeleteDisks>>,
) -> Answer<serde_json::Value> {
    let target = for_this_journal(&shared, caller, order)?.target;
    // The datastore is shared.
    shared.world.hosts().values_mut().for_each(|host| host.disks.retain(|vm| *vm != target.vm));
    shared.world.with(shared.host, |host| host.orders.push(format!("delete-disks {}", target.spec.name)));
    Ok(Json(serde_json::json!({})))
}

async fn act(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(vm): Path<VmId>,
    Json(order): Json<Order<ActOnVm>>,
) -> Answer<VmStatus> {
    let order = for_this_journal(&shared, caller, order)?;
    let done = shared.world.with(shared.host, |host| {
        let known = host.vms.get_mut(&vm).filter(|known| known.epoch == order.epoch);
        let known =
            known.ok_or_else(|| Failure::new(FailureKind::NotFound, "there is no such VM here", "none"))?;
        match order.action {
            VmAction::Stop { .. } => {
                (known.power, known.reason) = (PowerState::Stopped, Some("the guest powered off".into()));
            }
            VmAction::Kill => {
                (known.power, known.reason) = (PowerState::Stopped, Some("it was ended by force".into()));
            }
            VmAction::Pause => known.power = PowerState::Paused,
            VmAction::Resume => known.power = PowerState::Running,
            VmAction::Reboot { .. } | VmAction::Set { .. } => {}
        }
        Ok::<_, Failure>(known.clone())
    });
    Ok(Json(done?))
}

async fn take_part(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Json(order): Json<Order<MigrationOrder>>,
) -> Answer<MigrationStatus> {
    let order = for_this_journal(&shared, caller, order)?;
    Ok(Json(shared.world.take_part(shared.host, order)?))
}

fn no_such() -> Problem {
    Problem::new(FailureKind::NotFound, "there is no such migration here", "none")
}

async fn migration(State(shared): State<Shared>, Path(id): Path<MigrationId>) -> Answer<MigrationStatus> {
    shared.world.status(shared.host, id).map(Json).ok_or_else(no_such)
}

async fn forget(State(shared): State<Shared>, Path(id): Path<MigrationId>) -> Answer<serde_json::Value> {
    let known = shared.world.with(shared.host, |host| {
        host.orders.push("forget".into());
        host.parts.remove(&id)
    });
    known.map(|_| Json(serde_json::json!({}))).ok_or_else(no_such)
}

async fn signal(
    State(shared): State<Shared>,
    Path(id): Path<MigrationId>,
    Json(signal): Json<Signal>,
) -> Answer<MigrationStatus> {
    shared.world.signal(shared.host, id, &signal).map(Json).ok_or_else(no_such)
}

async fn check(State(_): State<Shared>, Json(_): Json<CheckOrder>) -> Answer<CheckReport> {
    Ok(Json(CheckReport {
        failed: Vec::new(),
        warnings: Vec::new(),
        round_trip_us: Some(100),
        path_mtu: Some(1500),
        dirty_rate: None,
    }))
}
