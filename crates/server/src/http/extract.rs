//! Queries and bodies, read with a problem document where they are not what they should be.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use limosa_api::http::Json;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::refused::Refused;

/// The query of a request.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let read = Query::<T>::try_from_uri(&parts.uri);
        read.map(|Query(params)| Self(params)).map_err(|error| {
            Refused::invalid(
                format!("the query cannot be read: {error}"),
                "compare it with the API's description",
            )
        })
    }
}

/// A body that may be left out.
pub(super) struct Optional<T>(pub(super) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for Optional<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let wrong = |why: String| {
            Refused::invalid(
                format!("the body of the request is not what it should be: {why}"),
                "compare it with the API's description",
            )
        };
        let body = Bytes::from_request(request, state).await.map_err(|error| wrong(error.to_string()))?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        serde_json::from_slice(&body).map(Self).map_err(|error| wrong(error.to_string()))
    }
}

/// 202: it will be done.
pub(super) struct Accepted<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Accepted<T> {
    fn into_response(self) -> Response {
        (StatusCode::ACCEPTED, Json(self.0)).into_response()
    }
}
