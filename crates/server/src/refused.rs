//! Why a request is refused: always a problem document.

use std::fmt::Display;

use axum::body::Body;
use axum::http::Response;
use axum::response::IntoResponse;
use limosa_api::Problem;
use limosa_model::{Failure, FailureKind};
use limosa_store::StoreError;

/// A refusal, on its way to whoever asked.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Problem);

pub(crate) type Answer<T> = Result<T, Refused>;

impl Refused {
    pub(crate) fn invalid(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self(Problem::new(FailureKind::Invalid, what, remedy))
    }

    pub(crate) fn conflict(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self(Problem::new(FailureKind::Conflict, what, remedy))
    }

    pub(crate) fn denied(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self(Problem::new(FailureKind::Denied, what, remedy))
    }

    /// There is no `kind` called `named`.
    pub(crate) fn unknown(kind: &str, named: impl Display) -> Self {
        let named: String = named.to_string().chars().take(80).collect();
        let list = match kind {
            "VM" => "limosa vm list".to_owned(),
            other => format!("limosa {other} list"),
        };
        Self(Problem::new(
            FailureKind::NotFound,
            format!("there is no {kind} {named:?}"),
            format!("`{list}` shows those that there are"),
        ))
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self(failure.into())
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let what = error.to_string();
        tracing::error!(error = what, "the store refused");
        Self(match error {
            StoreError::Contended { .. } => Problem::new(
                FailureKind::Conflict,
                "somebody else changed the same thing meanwhile",
                "try again",
            ),
            StoreError::Compacted { oldest } => Problem::new(
                FailureKind::Invalid,
                format!("what was before revision {oldest} has been forgotten"),
                format!("read again, then watch from revision {oldest}"),
            )
            .with_status(axum::http::StatusCode::GONE),
            StoreError::Full { .. } => {
                Problem::new(FailureKind::Resource, what, "free some space on the server")
            }
            _ => Problem::new(FailureKind::Storage, what, "look at the server's log and at its disk"),
        })
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response<Body> {
        self.0.into_response()
    }
}
