//! The cluster, join tokens, datastores and networks.

use std::path::{Component, Path as FilePath};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use limosa_api::agent::DatastoreKind;
use limosa_api::http::Json;
use limosa_api::rest::{
    Cluster, ClusterState, ConfirmRestore, CreateDatastore, CreateNetwork, CreateToken, Datastore, JoinToken,
    List, Network, Subject, SubjectKind,
};
use limosa_model::{DatastoreId, Name, NetworkId};
use limosa_store::Typed as _;
use serde_json::{Value, json};

use super::Shared;
use crate::orders::datastores_of;
use crate::records::keys;
use crate::refused::{Answer, Refused};
use crate::server::Server;
use crate::{join, restore, views};

pub(super) async fn show(State(server): Shared) -> Answer<Json<Cluster>> {
    let snapshot = server.snapshot().await?;
    let restoring = server.is_restoring();
    Ok(Json(Cluster {
        name: server.cluster.name.clone(),
        state: if restoring { ClusterState::Restoring } else { ClusterState::Running },
        incarnation: server.incarnation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        missing: if restoring { restore::missing(&server, &snapshot) } else { Vec::new() },
    }))
}

pub(super) async fn confirm_restore(
    State(server): Shared,
    Json(ask): Json<ConfirmRestore>,
) -> Answer<Json<Cluster>> {
    restore::confirm(&server, ask).await?;
    show(State(server)).await
}

pub(super) async fn create_token(
    State(server): Shared,
    Json(ask): Json<CreateToken>,
) -> Answer<(StatusCode, Json<JoinToken>)> {
    Ok((StatusCode::CREATED, Json(join::create_token(&server, ask).await?)))
}

/// The state for a bug report. Tokens and keys are not among what is read.
pub(super) async fn support_bundle(State(server): Shared) -> Answer<Json<Value>> {
    let snapshot = server.snapshot().await?;
    let Json(cluster) = show(State(server.clone())).await?;
    let hosts: Vec<_> = snapshot.hosts.values().map(|host| views::host(&server, &snapshot, host)).collect();
    let events = server.store.list_json::<Value>(keys::EVENTS).await?;
    let events: Vec<_> = events.entries.into_iter().rev().take(1000).map(|(_, event)| event.value).collect();
    Ok(Json(json!({
        "cluster": cluster,
        "revision": snapshot.revision,
        "hosts": hosts,
        "datastores": snapshot.datastores.values().collect::<Vec<_>>(),
        "networks": snapshot.networks.values().collect::<Vec<_>>(),
        "vms": snapshot.vms.values().collect::<Vec<_>>(),
        "migrations": snapshot.migrations.values().collect::<Vec<_>>(),
        "tasks": snapshot.tasks.values().collect::<Vec<_>>(),
        "events_newest_first": events,
    })))
}

pub(super) async fn datastores(State(server): Shared) -> Answer<Json<List<Datastore>>> {
    let snapshot = server.snapshot().await?;
    Ok(Json(List { items: snapshot.datastores.values().cloned().collect(), revision: snapshot.revision }))
}

pub(super) async fn datastore(State(server): Shared, Path(named): Path<String>) -> Answer<Json<Datastore>> {
    let snapshot = server.snapshot().await?;
    snapshot.datastore(&named).cloned().map(Json).ok_or_else(|| Refused::unknown("datastore", named))
}

pub(super) async fn create_datastore(
    State(server): Shared,
    Json(ask): Json<CreateDatastore>,
) -> Answer<(StatusCode, Json<Datastore>)> {
    let fault = match (ask.kind, &ask.path, ask.hosts.len()) {
        (DatastoreKind::Dir, Some(_), _) => {
            Some("a dir datastore is on one host: name it, with the folder, in `hosts`")
        }
        (DatastoreKind::Dir, None, n) if n != 1 => {
            Some("a dir datastore is on exactly one host: name it in `hosts`")
        }
        (DatastoreKind::Shared, None, 0) => Some("give `path`, or the folder on each host in `hosts`"),
        _ => None,
    };
    if let Some(remedy) = fault {
        return Err(Refused::invalid(
            format!("datastore {} has no folder that makes sense", ask.name),
            remedy,
        ));
    }
    for path in ask.path.iter().chain(ask.hosts.values()) {
        check_path(path)?;
    }
    known_hosts(&server, ask.hosts.keys()).await?;
    let datastore = Datastore {
        id: DatastoreId::new(),
        name: ask.name,
        kind: ask.kind,
        path: ask.path,
        hosts: ask.hosts,
    };
    let subject = Subject {
        kind: SubjectKind::Datastore,
        id: datastore.id.to_string(),
        name: Some(datastore.name.clone()),
    };
    let key = keys::of(keys::DATASTORES, datastore.id);
    create(
        &server,
        ("datastore", keys::DATASTORES),
        &datastore.name,
        &datastore.id,
        &key,
        &datastore,
        subject,
    )
    .await?;
    Ok((StatusCode::CREATED, Json(datastore)))
}

/// An absolute path without detours.
fn check_path(path: &FilePath) -> Answer<()> {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain && path.as_os_str().len() <= 1024 {
        return Ok(());
    }
    let shown: String = path.to_string_lossy().chars().take(80).collect();
    Err(Refused::invalid(
        format!("{shown:?} cannot be a datastore's folder"),
        "give an absolute path without `..`",
    ))
}

pub(super) async fn remove_datastore(State(server): Shared, Path(named): Path<String>) -> Answer<StatusCode> {
    let mut tx = server.begin().await;
    let snapshot = server.snapshot().await?;
    let found = snapshot.datastore(&named).ok_or_else(|| Refused::unknown("datastore", &named))?;
    if let Some(vm) = snapshot.vms.values().find(|vm| datastores_of(&vm.spec).contains(&found.name)) {
        let what = format!("datastore {} is used by VM {}", found.name, vm.spec.name);
        return Err(Refused::conflict(what, "delete or change that VM first"));
    }
    tx.delete(&keys::of(keys::DATASTORES, found.id));
    tx.delete(&keys::name(keys::DATASTORES, &found.name));
    server.commit(tx).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn networks(State(server): Shared) -> Answer<Json<List<Network>>> {
    let snapshot = server.snapshot().await?;
    Ok(Json(List { items: snapshot.networks.values().cloned().collect(), revision: snapshot.revision }))
}

pub(super) async fn network(State(server): Shared, Path(named): Path<String>) -> Answer<Json<Network>> {
    let snapshot = server.snapshot().await?;
    snapshot.network(&named).cloned().map(Json).ok_or_else(|| Refused::unknown("network", named))
}

pub(super) async fn create_network(
    State(server): Shared,
    Json(ask): Json<CreateNetwork>,
) -> Answer<(StatusCode, Json<Network>)> {
    for bridge in ask.hosts.values().chain([&ask.bridge]) {
        let plain = bridge.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
        if bridge.is_empty() || bridge.len() > 15 || !plain || bridge.starts_with(['-', '.']) {
            let shown: String = bridge.chars().take(40).collect();
            let remedy = "give an interface's name: 1 to 15 letters, digits, '-', '_' and '.'";
            return Err(Refused::invalid(format!("{shown:?} cannot be a bridge"), remedy));
        }
    }
    known_hosts(&server, ask.hosts.keys()).await?;
    let network = Network {
        id: NetworkId::new(),
        name: ask.name,
        kind: ask.kind,
        bridge: ask.bridge,
        hosts: ask.hosts,
    };
    let subject =
        Subject { kind: SubjectKind::Network, id: network.id.to_string(), name: Some(network.name.clone()) };
    let key = keys::of(keys::NETWORKS, network.id);
    create(&server, ("network", keys::NETWORKS), &network.name, &network.id, &key, &network, subject).await?;
    Ok((StatusCode::CREATED, Json(network)))
}

pub(super) async fn remove_network(State(server): Shared, Path(named): Path<String>) -> Answer<StatusCode> {
    let mut tx = server.begin().await;
    let snapshot = server.snapshot().await?;
    let found = snapshot.network(&named).ok_or_else(|| Refused::unknown("network", &named))?;
    let uses = |vm: &&crate::records::VmRecord| vm.spec.nics.iter().any(|nic| nic.network == found.name);
    if let Some(vm) = snapshot.vms.values().find(uses) {
        let what = format!("network {} is used by VM {}", found.name, vm.spec.name);
        return Err(Refused::conflict(what, "delete or change that VM first"));
    }
    tx.delete(&keys::of(keys::NETWORKS, found.id));
    tx.delete(&keys::name(keys::NETWORKS, &found.name));
    server.commit(tx).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn known_hosts(server: &Server, hosts: impl Iterator<Item = &Name>) -> Answer<()> {
    let snapshot = server.snapshot().await?;
    for host in hosts {
        snapshot.host(host.as_str()).ok_or_else(|| Refused::unknown("host", host))?;
    }
    Ok(())
}

async fn create<I: serde::Serialize, T: serde::Serialize>(
    server: &Server,
    (kind, prefix): (&str, &str),
    name: &Name,
    id: &I,
    key: &str,
    value: &T,
    subject: Subject,
) -> Answer<()> {
    let mut tx = server.begin().await;
    let name_key = keys::name(prefix, name);
    if tx.get::<Value>(&name_key).await?.is_some() {
        return Err(Refused::conflict(format!("there is a {kind} {name} already"), "choose another name"));
    }
    tx.put(&name_key, id)?;
    tx.put(key, value)?;
    tx.event(&format!("{kind}-added"), subject, format!("{kind} {name} is added"))?;
    server.commit(tx).await?;
    Ok(())
}
