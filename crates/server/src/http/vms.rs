//! VMs: made, changed, started, stopped, removed.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use jiff::Timestamp;
use limosa_api::client::{CONSOLE_PROTOCOL, ConsoleKind};
use limosa_api::http::{Json, upgrade};
use limosa_api::rest::{CreateVm, DesiredPower, List, SetVm, StartVm, StopVm, Task, Vm};
use limosa_migration::Custody;
use limosa_migration::custody::At;
use limosa_model::{Failure, HostId, Mac, VmId, VmSpec};

use super::Shared;
use super::extract::{Accepted, Optional};
use super::held::{Held, refuse_while_restoring};
use crate::orders::datastores_of;
use crate::prepare;
use crate::records::{TaskRecord, VmRecord, Work, keys};
use crate::refused::{Answer, Refused};
use crate::server::Server;
use crate::snapshot::Snapshot;
use crate::tasks::{self, TaskEnd};
use crate::tx::Tx;
use crate::views;

pub(super) async fn list(State(server): Shared) -> Answer<Json<List<Vm>>> {
    let snapshot = server.snapshot().await?;
    let items = snapshot.vms.values().map(|vm| views::vm(&server, &snapshot, vm)).collect();
    Ok(Json(List { items, revision: snapshot.revision }))
}

pub(super) async fn show(State(server): Shared, Path(named): Path<String>) -> Answer<Json<Vm>> {
    let snapshot = server.snapshot().await?;
    let vm = snapshot.vm(&named).ok_or_else(|| Refused::unknown("VM", named))?;
    Ok(Json(views::vm(&server, &snapshot, vm)))
}

pub(super) async fn create(State(server): Shared, Json(ask): Json<CreateVm>) -> Answer<Accepted<Task>> {
    refuse_while_restoring(&server)?;
    let mut tx = server.begin().await;
    let snapshot = server.snapshot().await?;
    let id = VmId::new();
    let mut spec = ask.spec;
    check_spec(&snapshot, &spec)?;
    let name_key = keys::name(keys::VMS, &spec.name);
    if tx.get::<VmId>(&name_key).await?.is_some() {
        let remedy = "choose another name, or delete that one first";
        return Err(Refused::conflict(format!("there is a VM {} already", spec.name), remedy));
    }
    take_macs(&mut tx, &snapshot, id, &mut spec).await?;
    let vm = VmRecord {
        id,
        custody: Custody::new(id, server.incarnation),
        desired: if ask.start { DesiredPower::Running } else { DesiredPower::Stopped },
        created: Timestamp::now(),
        task: None,
        disks_made: false,
        wanted_on: named_host(&snapshot, ask.host.as_deref())?,
        journal: None,
        by_start: false,
        confirmed: false,
        reported: false,
        boot: None,
        at_boot: None,
        restarts: Vec::new(),
        reason: None,
        changed: false,
        spec,
    };
    if ask.start {
        prepare::place(&server, &snapshot, &vm, vm.wanted_on)?;
    }
    tx.put(&name_key, &id)?;
    let message = format!("{} is made", vm.spec.name);
    tx.event("vm-created", vm.subject(), message)?;
    let held = Held { server: &server, snapshot, tx, vm };
    Ok(Accepted(held.accept(Work::Create { vm: id, start: ask.start }).await?))
}

/// What a spec needs of the cluster.
fn check_spec(snapshot: &Snapshot, spec: &VmSpec) -> Answer<()> {
    spec.validate().map_err(|invalid| Refused::invalid(invalid.to_string(), "correct the spec"))?;
    for name in datastores_of(spec) {
        snapshot.datastore(name.as_str()).ok_or_else(|| Refused::unknown("datastore", name))?;
    }
    for nic in &spec.nics {
        snapshot.network(nic.network.as_str()).ok_or_else(|| Refused::unknown("network", &nic.network))?;
    }
    Ok(())
}

/// Gives every NIC an address that no other VM has.
async fn take_macs(tx: &mut Tx<'_>, snapshot: &Snapshot, vm: VmId, spec: &mut VmSpec) -> Answer<()> {
    let given: Vec<_> = spec.nics.iter().filter_map(|nic| nic.mac).collect();
    for n in 0..spec.nics.len() {
        let mac = match spec.nics[n].mac {
            Some(mac) => mac,
            None => derived(tx, &given, vm, n).await?,
        };
        let key = keys::mac(mac);
        if let Some(owner) = tx.get::<VmId>(&key).await?.filter(|owner| *owner != vm) {
            let owner =
                snapshot.vms.get(&owner).map_or_else(|| owner.to_string(), |vm| vm.spec.name.to_string());
            return Err(Refused::conflict(
                format!("nics[{n}].mac: {mac} is in use by VM {owner}"),
                "leave the address out to have one derived, or choose another",
            ));
        }
        tx.put(&key, &vm)?;
        spec.nics[n].mac = Some(mac);
    }
    Ok(())
}

async fn derived(tx: &mut Tx<'_>, given: &[Mac], vm: VmId, nic: usize) -> Answer<Mac> {
    let first = u8::try_from(nic).unwrap_or(u8::MAX);
    for number in (first..=u8::MAX).chain(0..first) {
        let mac = Mac::derived(vm, number);
        if !given.contains(&mac) && tx.get::<VmId>(&keys::mac(mac)).await?.is_none() {
            return Ok(mac);
        }
    }
    Err(Refused::conflict("no address is left for the VM's NICs", "give the addresses in the spec"))
}

fn named_host(snapshot: &Snapshot, named: Option<&str>) -> Answer<Option<HostId>> {
    let Some(named) = named else { return Ok(None) };
    snapshot.host(named).map(|host| Some(host.id)).ok_or_else(|| Refused::unknown("host", named))
}

pub(super) async fn set(
    State(server): Shared,
    Path(named): Path<String>,
    Json(ask): Json<SetVm>,
) -> Answer<Json<Vm>> {
    let mut held = Held::open(&server, &named).await?;
    held.be_free()?;
    let before = held.vm.spec.clone();
    let mut spec = before.clone();
    spec.name = ask.name.unwrap_or(spec.name);
    spec.cpus = ask.cpus.unwrap_or(spec.cpus);
    spec.memory = ask.memory.unwrap_or(spec.memory);
    spec.policy = ask.policy.unwrap_or(spec.policy);
    spec.nics = ask.nics.unwrap_or(spec.nics);
    for (key, value) in ask.labels {
        match value {
            Some(value) => spec.labels.insert(key, value),
            None => spec.labels.remove(&key),
        };
    }
    check_spec(&held.snapshot, &spec)?;
    let snapshot = held.snapshot.clone();
    take_macs(&mut held.tx, &snapshot, held.vm.id, &mut spec).await?;
    for mac in before.nics.iter().filter_map(|nic| nic.mac) {
        if !spec.nics.iter().any(|nic| nic.mac == Some(mac)) {
            held.tx.delete(&keys::mac(mac));
        }
    }
    if spec.name != before.name {
        let key = keys::name(keys::VMS, &spec.name);
        if held.tx.get::<VmId>(&key).await?.is_some() {
            let what = format!("there is a VM {} already", spec.name);
            return Err(Refused::conflict(what, "choose another name"));
        }
        held.tx.put(&key, &held.vm.id)?;
        held.tx.delete(&keys::name(keys::VMS, &before.name));
    }
    let id = held.vm.id;
    held.vm.changed |= spec != before && held.vm.on().is_some();
    held.vm.spec = spec;
    held.save().await?;
    show(State(server), Path(id.to_string())).await
}

pub(super) async fn start(
    State(server): Shared,
    Path(named): Path<String>,
    Optional(ask): Optional<StartVm>,
) -> Answer<Accepted<Task>> {
    let mut held = Held::open(&server, &named).await?;
    held.be_free()?;
    if let At::On { host, .. } = held.vm.custody.at {
        let what = format!("VM {} is on host {} already", held.name(), held.snapshot.host_name(host));
        return Err(Refused::conflict(what, "there is nothing to do; `limosa vm resume` if it is paused"));
    }
    held.vm.wanted_on = named_host(&held.snapshot, ask.host.as_deref())?;
    prepare::place(&server, &held.snapshot, &held.vm, held.vm.wanted_on)?;
    (held.vm.desired, held.vm.reason, held.vm.at_boot) = (DesiredPower::Running, None, None);
    let work = Work::Start { vm: held.vm.id };
    Ok(Accepted(held.accept(work).await?))
}

pub(super) async fn stop(
    State(server): Shared,
    Path(named): Path<String>,
    Optional(ask): Optional<StopVm>,
) -> Answer<Accepted<Task>> {
    let mut held = running(&server, &named).await?;
    held.vm.desired = DesiredPower::Stopped;
    let timeout_ms = ask.timeout_ms.unwrap_or(held.vm.spec.policy.stop_timeout_ms);
    let work = Work::Stop { vm: held.vm.id, timeout_ms };
    Ok(Accepted(held.accept(work).await?))
}

pub(super) async fn reboot(
    State(server): Shared,
    Path(named): Path<String>,
    Optional(ask): Optional<StopVm>,
) -> Answer<Accepted<Task>> {
    let held = running(&server, &named).await?;
    let timeout_ms = ask.timeout_ms.unwrap_or(held.vm.spec.policy.stop_timeout_ms);
    let work = Work::Reboot { vm: held.vm.id, timeout_ms };
    Ok(Accepted(held.accept(work).await?))
}

pub(super) async fn pause(State(server): Shared, Path(named): Path<String>) -> Answer<Accepted<Task>> {
    let held = running(&server, &named).await?;
    let work = Work::Pause { vm: held.vm.id };
    Ok(Accepted(held.accept(work).await?))
}

pub(super) async fn resume(State(server): Shared, Path(named): Path<String>) -> Answer<Accepted<Task>> {
    let held = running(&server, &named).await?;
    let work = Work::Resume { vm: held.vm.id };
    Ok(Accepted(held.accept(work).await?))
}

/// A VM that runs within reach, and that nobody else is at work on.
async fn running<'s>(server: &'s Arc<Server>, named: &str) -> Answer<Held<'s>> {
    let held = Held::open(server, named).await?;
    held.be_free()?;
    held.running_on()?;
    Ok(held)
}

pub(super) async fn kill(State(server): Shared, Path(named): Path<String>) -> Answer<Accepted<Task>> {
    let mut held = Held::open(&server, &named).await?;
    // A kill is for when nothing else helps: it takes the place of whatever else is done with the running VM.
    if let Some(task) = held.vm.task {
        let record: Option<TaskRecord> = held.tx.get(&keys::of(keys::TASKS, task)).await?;
        let gives_way = |work: &Work| {
            matches!(work, Work::Stop { .. } | Work::Reboot { .. } | Work::Pause { .. } | Work::Resume { .. })
        };
        if record.is_some_and(|record| gives_way(&record.work)) {
            tasks::end(&mut held.tx, task, TaskEnd::Cancelled).await?;
            held.vm.task = None;
        }
    }
    held.be_free()?;
    held.running_on()?;
    held.vm.desired = DesiredPower::Stopped;
    let work = Work::Kill { vm: held.vm.id };
    Ok(Accepted(held.accept(work).await?))
}

pub(super) async fn delete(State(server): Shared, Path(named): Path<String>) -> Answer<Accepted<Task>> {
    let held = Held::open(&server, &named).await?;
    held.be_free()?;
    if let At::On { host, .. } = held.vm.custody.at {
        let what = format!("VM {} is on host {}", held.name(), held.snapshot.host_name(host));
        return Err(Refused::conflict(what, format!("stop it first with `limosa vm stop {}`", held.name())));
    }
    let work = Work::Delete { vm: held.vm.id };
    Ok(Accepted(held.accept(work).await?))
}

/// The bytes of a console, passed on from the VM's host.
pub(super) async fn console(
    State(server): Shared,
    Path((named, kind)): Path<(String, String)>,
    mut request: Request,
) -> Answer<Response> {
    let kind = match kind.as_str() {
        "serial" => ConsoleKind::Serial,
        "vnc" => ConsoleKind::Vnc,
        _ => return Err(Refused::invalid("there is no such console", "ask for `serial` or `vnc`")),
    };
    let snapshot = server.snapshot().await?;
    let vm = snapshot.vm(&named).ok_or_else(|| Refused::unknown("VM", &named))?;
    let host = snapshot
        .host_of(vm)
        .and_then(|host| snapshot.hosts.get(&host))
        .ok_or_else(|| Refused::conflict(format!("VM {} does not run", vm.spec.name), "start it first"))?;
    let (answer, user) = upgrade(&mut request, CONSOLE_PROTOCOL)?;
    let console = server.agent_of(host)?.console(vm.id, kind).await.map_err(Failure::from)?;
    server.spawn(async move {
        let mut console = console;
        match user.await {
            Ok(mut user) => {
                // Either side may leave at any time: that is how a console ends.
                let _ = tokio::io::copy_bidirectional(&mut user, &mut console).await;
            }
            Err(error) => tracing::debug!(%error, "a console was asked for and not taken"),
        }
    });
    Ok(answer)
}
