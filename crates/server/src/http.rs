//! The HTTP side: users under `/v1` by token, hosts under `/agent/v1` by certificate.

mod agents;
mod cluster;
mod extract;
mod held;
mod hosts;
mod migrations;
pub(crate) mod openapi;
mod vms;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use limosa_api::Problem;
use limosa_api::http::Caller;
use limosa_api::tls::Identity;
use limosa_model::FailureKind;

use crate::refused::Refused;
use crate::server::Server;

/// What the handlers share.
pub(crate) type Shared = State<Arc<Server>>;

/// All paths.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let users = Router::new()
        .route("/v1/cluster", get(cluster::show))
        .route("/v1/cluster/confirm-restore", post(cluster::confirm_restore))
        .route("/v1/support-bundle", get(cluster::support_bundle))
        .route("/v1/tokens", post(cluster::create_token))
        .route("/v1/datastores", get(cluster::datastores).post(cluster::create_datastore))
        .route("/v1/datastores/{datastore}", get(cluster::datastore).delete(cluster::remove_datastore))
        .route("/v1/networks", get(cluster::networks).post(cluster::create_network))
        .route("/v1/networks/{network}", get(cluster::network).delete(cluster::remove_network))
        .route("/v1/hosts", get(hosts::list))
        .route("/v1/hosts/{host}", get(hosts::show).delete(hosts::remove))
        .route("/v1/hosts/{host}/cordon", post(hosts::cordon))
        .route("/v1/hosts/{host}/uncordon", post(hosts::uncordon))
        .route("/v1/hosts/{host}/evacuate", post(hosts::evacuate))
        .route("/v1/hosts/{host}/declare-lost", post(hosts::declare_lost))
        .route("/v1/hosts/{host}/readmit", post(hosts::readmit))
        .route("/v1/vms", get(vms::list).post(vms::create))
        .route("/v1/vms/{vm}", get(vms::show).patch(vms::set).delete(vms::delete))
        .route("/v1/vms/{vm}/start", post(vms::start))
        .route("/v1/vms/{vm}/stop", post(vms::stop))
        .route("/v1/vms/{vm}/kill", post(vms::kill))
        .route("/v1/vms/{vm}/reboot", post(vms::reboot))
        .route("/v1/vms/{vm}/pause", post(vms::pause))
        .route("/v1/vms/{vm}/resume", post(vms::resume))
        .route("/v1/vms/{vm}/console/{kind}", get(vms::console))
        .route("/v1/vms/{vm}/migrate", post(migrations::migrate))
        .route("/v1/vms/{vm}/resolve", post(migrations::resolve))
        .route("/v1/migrations", get(migrations::list))
        .route("/v1/migrations/{migration}", get(migrations::show))
        .route("/v1/tasks", get(migrations::tasks))
        .route("/v1/tasks/{task}", get(watch::task))
        .route("/v1/tasks/{task}/cancel", post(migrations::cancel))
        .route("/v1/events", get(watch::events))
        .route_layer(middleware::from_fn_with_state(server.clone(), by_token));
    let hosts = Router::new()
        .route("/agent/v1/reports", post(agents::report))
        .route("/agent/v1/facts", post(agents::fact))
        .route("/agent/v1/join", post(agents::join));
    users
        .merge(hosts)
        .route("/v1/openapi.json", get(openapi::show))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(server)
}

/// Users bring the administrator's token.
async fn by_token(State(server): Shared, request: Request, next: Next) -> Response {
    let bearer = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|value| value.strip_prefix("Bearer "));
    match token {
        Some(token) if server.cluster.admin_token.is_of(token.trim()) => next.run(request).await,
        given => {
            let what = match given {
                Some(_) => "the token is not one of this cluster",
                None => "the request has no token",
            };
            let remedy = "send `Authorization: Bearer TOKEN`; `limosa server init` showed the token";
            Problem::new(FailureKind::Denied, what, remedy)
                .with_status(StatusCode::UNAUTHORIZED)
                .into_response()
        }
    }
}

/// The host that speaks, by its certificate.
fn host_of(caller: Caller) -> Result<limosa_model::HostId, Refused> {
    match caller.identity {
        Some(Identity::Host(host)) => Ok(host),
        Some(Identity::Server) | None => Err(Refused::denied(
            "only hosts of the cluster may say this, and they show a certificate",
            "join the host with `limosa host join`",
        )),
    }
}

async fn no_such_path(uri: Uri) -> Refused {
    let path: String = uri.path().chars().take(80).collect();
    Refused(Problem::new(
        FailureKind::NotFound,
        format!("there is no path {path:?}"),
        "`/v1/openapi.json` names those that there are",
    ))
}

async fn no_such_method(method: Method, uri: Uri) -> Refused {
    let path: String = uri.path().chars().take(80).collect();
    let problem = Problem::new(
        FailureKind::Invalid,
        format!("{path:?} does not take {method}"),
        "`/v1/openapi.json` names the methods that it takes",
    );
    Refused(problem.with_status(StatusCode::METHOD_NOT_ALLOWED))
}
