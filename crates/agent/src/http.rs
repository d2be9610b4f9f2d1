//! The agent's side of its protocol (see [`limosa_api::agent`]): who may ask what, and who answers it.
//!
//! The server may order everything. Another host may signal, and ask about, only the migrations in which it is the
//! other end. Nobody else may do anything.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Router};
use limosa_api::Problem;
use limosa_api::agent::{
    ActOnVm, BODY_LIMIT_BYTES, CheckOrder, CheckReport, DeleteDisks, DisksMade, HostReport, MakeDisks,
    MigrationOrder, MigrationStatus, Order, Signal, StartVm, VmStatus,
};
use limosa_api::client::CONSOLE_PROTOCOL;
use limosa_api::http::{Caller, Json, upgrade};
use limosa_api::tls::Identity;
use limosa_model::{Failure, FailureKind, MigrationId, VmId};
use tokio::net::UnixStream;

use crate::agent::{Agent, journal_failure};
use crate::migration::Migration;
use crate::{check, disks, life, orders, report};

type Answer<T> = Result<Json<T>, Problem>;

/// All routes.
pub(crate) fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/host", get(host))
        .route("/v1/vms/{vm}", put(start_vm))
        .route("/v1/vms/{vm}/disks", put(make_disks))
        .route("/v1/vms/{vm}/delete-disks", post(delete_disks))
        .route("/v1/vms/{vm}/actions", post(act))
        .route("/v1/vms/{vm}/console/{kind}", get(console))
        .route("/v1/migrations/{migration}", put(put_migration).get(migration).delete(delete_migration))
        .route("/v1/migrations/{migration}/signals", post(signal))
        .route("/v1/migrations/{migration}/check", post(check_migration))
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
        .with_state(agent)
}

fn denied(what: &str) -> Problem {
    Failure::new(FailureKind::Denied, what, "this is for the cluster's own servers and hosts").into()
}

fn only_server(caller: &Caller) -> Result<(), Problem> {
    match caller.identity {
        Some(Identity::Server) => Ok(()),
        _ => Err(denied("only a server of the cluster may ask this")),
    }
}

/// Takes an order apart that was meant for this agent's journal and comes from no earlier server than was seen.
fn take<T>(agent: &Agent, caller: &Caller, order: Order<T>) -> Result<T, Problem> {
    only_server(caller)?;
    if order.journal != agent.ledger.id() {
        return Err(Failure::new(
            FailureKind::Conflict,
            format!(
                "the order is for journal {}, this host has journal {}",
                order.journal,
                agent.ledger.id()
            ),
            "wait for the host's next report",
        )
        .into());
    }
    let seen = agent.ledger.incarnation().map_err(|e| journal_failure(&e))?;
    if order.incarnation < seen {
        return Err(Failure::new(
            FailureKind::Conflict,
            format!(
                "the order is from incarnation {} of the server, {} was seen",
                order.incarnation.0, seen.0
            ),
            "stop the old server",
        )
        .into());
    }
    report::see_incarnation(agent, order.incarnation).map_err(Problem::from)?;
    Ok(order.order)
}

fn same_vm(named: VmId, ordered: VmId) -> Result<(), Problem> {
    if named == ordered {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Invalid,
        format!("the order for VM {named} is about VM {ordered}"),
        "correct it",
    )
    .into())
}

async fn host(State(agent): State<Arc<Agent>>, Extension(caller): Extension<Caller>) -> Answer<HostReport> {
    only_server(&caller)?;
    Ok(Json(report::host(&agent).await))
}

async fn start_vm(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(vm): Path<VmId>,
    Json(order): Json<Order<StartVm>>,
) -> Answer<VmStatus> {
    let order = take(&agent, &caller, order)?;
    same_vm(vm, order.target.vm)?;
    // What was begun goes on when the asker hangs up.
    let started = tokio::spawn(async move { life::start(&agent, &order).await });
    Ok(Json(joined(started).await?))
}

async fn make_disks(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(vm): Path<VmId>,
    Json(order): Json<Order<MakeDisks>>,
) -> Answer<DisksMade> {
    let order = take(&agent, &caller, order)?;
    same_vm(vm, order.target.vm)?;
    let made = tokio::spawn(async move {
        let _one_at_a_time = agent.disks.lock().await;
        disks::make(&agent, &order.target).await
    });
    Ok(Json(DisksMade { made: joined(made).await? }))
}

async fn delete_disks(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(vm): Path<VmId>,
    Json(order): Json<Order<DeleteDisks>>,
) -> Answer<serde_json::Value> {
    let order = take(&agent, &caller, order)?;
    same_vm(vm, order.target.vm)?;
    let deleted = tokio::spawn(async move {
        let _one_at_a_time = (agent.disks.lock().await, agent.lifecycle.lock().await);
        if agent.guest(vm).is_some() {
            return Err(Failure::new(
                FailureKind::Conflict,
                format!("VM {} runs on this host", order.target.spec.name),
                "stop it first",
            ));
        }
        // A VM that has just left runs elsewhere, on these very disks.
        if let Some(migration) = agent.migrations().iter().find(|migration| migration.vm() == vm) {
            return Err(Failure::new(
                FailureKind::Conflict,
                format!("migration {} of VM {} is not settled", migration.id(), order.target.spec.name),
                "wait until the server has settled it",
            ));
        }
        disks::delete(&order.target).await?;
        agent.forget_record(vm);
        Ok(())
    });
    joined(deleted).await?;
    Ok(Json(serde_json::json!({})))
}

async fn act(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(vm): Path<VmId>,
    Json(order): Json<Order<ActOnVm>>,
) -> Answer<VmStatus> {
    let order = take(&agent, &caller, order)?;
    let done = tokio::spawn(async move { life::act(&agent, vm, &order).await });
    Ok(Json(joined(done).await?))
}

async fn joined<T>(task: tokio::task::JoinHandle<Result<T, Failure>>) -> Result<T, Problem> {
    let result = task.await.map_err(|error| {
        Failure::new(
            FailureKind::Resource,
            format!("the request ended in a fault: {error}"),
            "see the agent's log",
        )
    })?;
    result.map_err(Problem::from)
}

async fn console(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path((vm, kind)): Path<(VmId, String)>,
    mut request: Request,
) -> Result<Response, Problem> {
    only_server(&caller)?;
    let guest = agent.guest(vm).ok_or_else(|| {
        Problem::from(Failure::new(
            FailureKind::NotFound,
            format!("VM {vm} does not run on this host"),
            "start it",
        ))
    })?;
    let path = match kind.as_str() {
        "serial" => guest.vm.runtime_dir().serial_socket(),
        "vnc" => guest.vm.runtime_dir().vnc_socket(),
        other => {
            let what = format!("there is no console {other:?}");
            return Err(Failure::new(FailureKind::Invalid, what, "ask for `serial` or `vnc`").into());
        }
    };
    let mut socket = UnixStream::connect(&path).await.map_err(|error| {
        Problem::from(Failure::new(
            FailureKind::Qemu,
            format!("the {kind} console of VM {vm} does not answer: {error}"),
            "is somebody else connected to it?",
        ))
    })?;
    let (answer, stream) = upgrade(&mut request, CONSOLE_PROTOCOL)?;
    tokio::spawn(async move {
        match stream.await {
            Ok(mut stream) => drop(tokio::io::copy_bidirectional(&mut stream, &mut socket).await),
            Err(error) => tracing::debug!(%vm, %error, "a console did not come about"),
        }
    });
    Ok(answer.into_response())
}

async fn put_migration(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(migration): Path<MigrationId>,
    Json(order): Json<Order<MigrationOrder>>,
) -> Answer<MigrationStatus> {
    let order = take(&agent, &caller, order)?;
    if order.ticket.migration != migration {
        return Err(
            Failure::new(FailureKind::Invalid, "the order is about another migration", "correct it").into()
        );
    }
    same_vm(order.ticket.vm, order.target.vm)?;
    let taken = tokio::spawn(async move {
        let _one_at_a_time = agent.lifecycle.lock().await;
        orders::take(&agent, order).await
    });
    Ok(Json(joined(taken).await?))
}

/// The migration, for the server and for the host that is its other end.
fn part(agent: &Agent, caller: &Caller, migration: MigrationId) -> Result<Arc<Migration>, Problem> {
    let found = agent.migration(migration);
    let may = match caller.identity {
        Some(Identity::Server) => true,
        Some(Identity::Host(host)) => found.as_ref().is_none_or(|m| m.record().order.peer.host == host),
        None => false,
    };
    if !may {
        return Err(denied("this host is not the other end of the migration"));
    }
    found.ok_or_else(|| {
        Failure::new(
            FailureKind::NotFound,
            format!("migration {migration} is not known on this host"),
            "the server will settle it",
        )
        .into()
    })
}

async fn migration(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(migration): Path<MigrationId>,
) -> Answer<MigrationStatus> {
    Ok(Json(part(&agent, &caller, migration)?.status()))
}

async fn signal(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(migration): Path<MigrationId>,
    Json(signal): Json<Signal>,
) -> Answer<MigrationStatus> {
    let part = part(&agent, &caller, migration)?;
    if matches!(signal, Signal::SourceLost | Signal::Abandon | Signal::Cancel) {
        only_server(&caller)?;
    }
    part.signal(&agent, signal).await.map_err(Problem::from)?;
    Ok(Json(part.status()))
}

async fn delete_migration(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(migration): Path<MigrationId>,
) -> Answer<serde_json::Value> {
    only_server(&caller)?;
    if let Some(found) = agent.migration(migration) {
        if !found.status().ended {
            return Err(Failure::new(
                FailureKind::Conflict,
                format!("migration {migration} has not ended on this host"),
                "wait for its end",
            )
            .into());
        }
        agent.remove_migration(migration);
    }
    Ok(Json(serde_json::json!({})))
}

async fn check_migration(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(_): Path<MigrationId>,
    Json(order): Json<CheckOrder>,
) -> Answer<CheckReport> {
    only_server(&caller)?;
    Ok(Json(check::check(&agent, &order).await))
}
