//! What hosts ask for.

use axum::Extension;
use axum::extract::State;
use limosa_api::agent::{FactAnswer, FactReport, HostReport, ReportAnswer};
use limosa_api::http::{Caller, Json};
use limosa_api::rest::{JoinHost, JoinedHost};

use super::{Shared, host_of};
use crate::refused::Answer;
use crate::{hear, join};

pub(super) async fn report(
    State(server): Shared,
    Extension(caller): Extension<Caller>,
    Json(report): Json<HostReport>,
) -> Answer<Json<ReportAnswer>> {
    hear::report(&server, host_of(caller)?, report).await.map(Json)
}

pub(super) async fn fact(
    State(server): Shared,
    Extension(caller): Extension<Caller>,
    Json(report): Json<FactReport>,
) -> Answer<Json<FactAnswer>> {
    hear::fact(&server, host_of(caller)?, report).await.map(Json)
}

pub(super) async fn join(State(server): Shared, Json(ask): Json<JoinHost>) -> Answer<Json<JoinedHost>> {
    join::join(&server, ask).await.map(Json)
}
