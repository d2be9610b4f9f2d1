//! Hosts.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use limosa_api::http::Json;
use limosa_api::rest::{DeclareLost, EvacuateHost, Host, HostState, List, Task};
use limosa_model::HostId;

use super::Shared;
use super::extract::{Accepted, Optional};
use super::held::refuse_while_restoring;
use crate::records::{HostRecord, Work, keys};
use crate::refused::{Answer, Refused};
use crate::server::Server;
use crate::tx::Tx;
use crate::{tasks, views};

pub(super) async fn list(State(server): Shared) -> Answer<Json<List<Host>>> {
    let snapshot = server.snapshot().await?;
    let items = snapshot.hosts.values().map(|host| views::host(&server, &snapshot, host)).collect();
    Ok(Json(List { items, revision: snapshot.revision }))
}

pub(super) async fn show(State(server): Shared, Path(named): Path<String>) -> Answer<Json<Host>> {
    let snapshot = server.snapshot().await?;
    let host = snapshot.host(&named).ok_or_else(|| Refused::unknown("host", named))?;
    Ok(Json(views::host(&server, &snapshot, host)))
}

/// The host with this name or id, and the turn to change it.
async fn open<'s>(server: &'s Arc<Server>, named: &str) -> Answer<(Tx<'s>, HostRecord)> {
    let mut tx = server.begin().await;
    let snapshot = server.snapshot().await?;
    let id: HostId = snapshot.host(named).ok_or_else(|| Refused::unknown("host", named))?.id;
    let host = tx.get(&keys::of(keys::HOSTS, id)).await?.ok_or_else(|| Refused::unknown("host", named))?;
    Ok((tx, host))
}

async fn save(server: &Arc<Server>, mut tx: Tx<'_>, host: &HostRecord) -> Answer<Json<Host>> {
    tx.put(&keys::of(keys::HOSTS, host.id), host)?;
    server.commit(tx).await?;
    show(State(server.clone()), Path(host.id.to_string())).await
}

pub(super) async fn cordon(State(server): Shared, Path(named): Path<String>) -> Answer<Json<Host>> {
    set_cordon(&server, &named, true).await
}

pub(super) async fn uncordon(State(server): Shared, Path(named): Path<String>) -> Answer<Json<Host>> {
    set_cordon(&server, &named, false).await
}

async fn set_cordon(server: &Arc<Server>, named: &str, cordoned: bool) -> Answer<Json<Host>> {
    let (mut tx, mut host) = open(server, named).await?;
    if host.cordoned != cordoned {
        let code = if cordoned { "host-cordoned" } else { "host-uncordoned" };
        let message = format!("host {} takes {}", host.name, if cordoned { "no VMs" } else { "VMs again" });
        tx.event(code, host.subject(), message)?;
    }
    host.cordoned = cordoned;
    save(server, tx, &host).await
}

pub(super) async fn evacuate(
    State(server): Shared,
    Path(named): Path<String>,
    Optional(ask): Optional<EvacuateHost>,
) -> Answer<Accepted<Task>> {
    refuse_while_restoring(&server)?;
    let (mut tx, mut host) = open(&server, &named).await?;
    if let Some(task) = host.evacuation {
        return Err(Refused::conflict(
            format!("host {} is being evacuated already, by task {task}", host.name),
            format!("watch it with `limosa task watch {task}`"),
        ));
    }
    let task =
        tasks::accept(&mut tx, host.subject(), Work::Evacuate { host: host.id, options: ask.options }, None)?;
    (host.cordoned, host.evacuation) = (true, Some(task.id));
    tx.event("host-cordoned", host.subject(), format!("host {} is evacuated", host.name))?;
    save(&server, tx, &host).await?;
    Ok(Accepted(task))
}

pub(super) async fn remove(State(server): Shared, Path(named): Path<String>) -> Answer<StatusCode> {
    let (mut tx, host) = open(&server, &named).await?;
    let snapshot = server.snapshot().await?;
    if let Some(vm) = snapshot.vms_on(host.id).next() {
        let what = format!("host {} cannot be removed: VM {} is on it, or may be", host.name, vm.spec.name);
        return Err(Refused::conflict(
            what,
            format!("evacuate it first: `limosa host evacuate {}`", host.name),
        ));
    }
    let open = snapshot.migrations.values().find(|migration| {
        let ticket = migration.passage.ticket;
        !migration.closed
            && !migration.passage.is_settled()
            && [ticket.source, ticket.destination].contains(&host.id)
    });
    if let Some(migration) = open {
        let what = format!("host {} has yet to end its part in migration {}", host.name, migration.id());
        return Err(Refused::conflict(
            what,
            "start its agent; if the host is gone for good, declare it lost",
        ));
    }
    tx.delete(&keys::of(keys::HOSTS, host.id));
    tx.delete(&keys::name(keys::HOSTS, &host.name));
    tx.event("host-removed", host.subject(), format!("host {} is removed", host.name))?;
    server.commit(tx).await?;
    server.live().hosts.remove(&host.id);
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn declare_lost(
    State(server): Shared,
    Path(named): Path<String>,
    Json(ask): Json<DeclareLost>,
) -> Answer<Json<Host>> {
    let (mut tx, mut host) = open(&server, &named).await?;
    refuse_unless_gone(&server, &host, ask.confirmed)?;
    host.lost = true;
    let message = format!("an operator declared host {} gone for good", host.name);
    tx.event("host-lost", host.subject(), message)?;
    // What follows for its VMs is the reconcilers'.
    save(&server, tx, &host).await
}

/// A host that reports is not gone, and a host that is not gone would run its VMs twice.
pub(super) fn refuse_unless_gone(server: &Server, host: &HostRecord, confirmed: bool) -> Answer<()> {
    if server.host_state(host) == HostState::Online || server.may_yet_report(host) {
        let what = format!("host {} reports, or may yet report: it is not gone", host.name);
        return Err(Refused::conflict(what, "power it off first if its VMs are to be started elsewhere"));
    }
    if !confirmed {
        return Err(Refused::invalid(
            format!("it was not confirmed that host {} is gone for good", host.name),
            "make sure that it runs no VM and never will again, then confirm; else VMs run twice",
        ));
    }
    Ok(())
}

pub(super) async fn readmit(State(server): Shared, Path(named): Path<String>) -> Answer<Json<Host>> {
    let (mut tx, mut host) = open(&server, &named).await?;
    if host.refusal().is_none() {
        let what = format!("host {} is neither lost nor quarantined", host.name);
        return Err(Refused::conflict(what, "there is nothing to readmit"));
    }
    (host.lost, host.quarantined) = (false, None);
    server.live().hosts.remove(&host.id);
    tx.event("host-readmitted", host.subject(), format!("an operator readmitted host {}", host.name))?;
    save(&server, tx, &host).await
}
