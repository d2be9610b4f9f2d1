//! Refusals as problem documents (RFC 9457, `application/problem+json`).
//!
//! ```json
//! {"type": "urn:limosa:problem:conflict", "title": "The request collides with something under way", "status": 409,
//!  "detail": "VM web is being migrated already, by 0196…", "code": "conflict",
//!  "remedy": "wait for it, or cancel it with `limosa task cancel 0196…`", "outcome": "unchanged"}
//! ```
//!
//! `code` is stable and says what kind of failure it is; `detail` and `remedy` are for people. The HTTP status
//! follows from the code, save where HTTP itself has a more exact one.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use limosa_model::{Failure, FailureKind, Outcome, Phase};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The media type of problem documents.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Why a request was refused, where the VM is, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{detail} ({code}); {remedy}")]
pub struct Problem {
    /// `urn:limosa:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the code means.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was being done and what happened, naming the object and its values.
    pub detail: String,
    /// The stable code.
    pub code: FailureKind,
    /// What to do next.
    pub remedy: String,
    /// The phase of the migration in which it happened, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Where the VM is now, where one is concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

impl Problem {
    /// A problem of this kind.
    pub fn new(code: FailureKind, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (status, title) = meaning(code);
        Self {
            kind: format!("urn:limosa:problem:{code}"),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            code,
            remedy: remedy.into(),
            phase: None,
            outcome: None,
        }
    }

    /// The same problem with a more exact HTTP status than its code implies.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status.as_u16();
        self
    }

    /// The same problem, with where the VM is now.
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self { phase: failure.phase, ..Self::new(failure.kind, failure.what, failure.remedy) }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { kind: problem.code, phase: problem.phase, what: problem.detail, remedy: problem.remedy }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).expect("texts and numbers are always JSON");
        (status, [(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))], body).into_response()
    }
}

fn meaning(code: FailureKind) -> (StatusCode, &'static str) {
    match code {
        FailureKind::Incompatible => (StatusCode::UNPROCESSABLE_ENTITY, "The two ends do not fit each other"),
        FailureKind::Resource => (StatusCode::SERVICE_UNAVAILABLE, "There is not enough of something"),
        FailureKind::Peer => (StatusCode::BAD_GATEWAY, "The other host, or the way to it, does not work"),
        FailureKind::Qemu => (StatusCode::INTERNAL_SERVER_ERROR, "QEMU refused or died"),
        FailureKind::Storage => (StatusCode::INTERNAL_SERVER_ERROR, "A disk or a datastore does not work"),
        FailureKind::NotConverging => {
            (StatusCode::UNPROCESSABLE_ENTITY, "The guest dirties memory faster than the link carries it")
        }
        FailureKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, "Something took longer than its limit"),
        FailureKind::Cancelled => (StatusCode::CONFLICT, "A user ended it"),
        FailureKind::Denied => (StatusCode::FORBIDDEN, "Whoever asked may not do this"),
        FailureKind::Invalid => (StatusCode::BAD_REQUEST, "The request makes no sense as it stands"),
        FailureKind::NotFound => (StatusCode::NOT_FOUND, "What the request names does not exist"),
        FailureKind::Conflict => (StatusCode::CONFLICT, "The request collides with something under way"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_way_through_a_problem_document() {
        let failure =
            Failure::new(FailureKind::NotConverging, "the guest is too busy", "allow more downtime")
                .during(Phase::Transfer);
        let problem = Problem::from(failure.clone()).with_outcome(Outcome::RunningOnSource);
        let json = serde_json::to_string(&problem).unwrap();
        let read: Problem = serde_json::from_str(&json).unwrap();
        assert_eq!(read, problem);
        assert_eq!((read.status, read.kind.as_str()), (422, "urn:limosa:problem:not-converging"));
        assert_eq!(Failure::from(read), failure);
    }

    #[test]
    fn a_problem_is_answered_with_its_status_and_media_type() {
        let problem =
            Problem::new(FailureKind::Denied, "no token", "log in").with_status(StatusCode::UNAUTHORIZED);
        let response = problem.into_response();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()[CONTENT_TYPE], MEDIA_TYPE);
    }
}
