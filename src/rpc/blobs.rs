//! Blob bytes between nodes, over HTTP: read by digest and range, and copies being pushed. A peer
//! is answered from local bytes only, so fetches never chain (F5).

use super::uploads::patient;
use crate::oci::{Digest, RepositoryName};
use crate::peers::SIZE_HEADER;
use crate::registry::{Error, Registry};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use prost::Message;
use serde::Deserialize;

pub fn routes(registry: Registry) -> Router {
    Router::new()
        .route("/blobs/{digest}", get(read))
        .route("/blobs/{digest}/check", post(check))
        .route("/copies/{id}", post(receive).delete(cancel))
        .route("/copies/{id}/finish", post(finish))
        .with_state(registry)
}

fn refuse(error: &Error) -> Response {
    let status = match error {
        Error::BlobUnknown | Error::UploadUnknown => StatusCode::NOT_FOUND,
        Error::UploadOffset { .. } | Error::DigestMismatch(_) | Error::SizeMismatch(_) => {
            StatusCode::CONFLICT
        }
        Error::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        Error::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        Error::ClientGone(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(error = error as &dyn std::error::Error, "serve a peer");
    }
    (status, error.to_string()).into_response()
}

fn bad(error: impl std::fmt::Display) -> Response {
    (StatusCode::BAD_REQUEST, error.to_string()).into_response()
}

/// `Range: bytes=N-`, the only form that nodes send.
fn offset(headers: &HeaderMap) -> u64 {
    let range = headers
        .get(http::header::RANGE)
        .and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    start.and_then(|start| start.parse().ok()).unwrap_or(0)
}

async fn read(
    State(registry): State<Registry>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Response {
    let digest: Digest = match digest.parse() {
        Ok(digest) => digest,
        Err(error) => return bad(error),
    };
    match registry.local_blob(&digest, offset(&headers)).await {
        Ok((size, body)) => {
            let headers = [(http::HeaderName::from_static(SIZE_HEADER), size.to_string())];
            (headers, Body::from_stream(body)).into_response()
        }
        Err(error) => refuse(&error),
    }
}

/// Whole and good, or 404: not here, or not any more.
async fn check(State(registry): State<Registry>, Path(digest): Path<String>) -> Response {
    let digest: Digest = match digest.parse() {
        Ok(digest) => digest,
        Err(error) => return bad(error),
    };
    match registry.check_blob(&digest).await {
        Ok(true) => StatusCode::NO_CONTENT.into_response(),
        Ok(false) => refuse(&Error::BlobUnknown),
        Err(error) => refuse(&error),
    }
}

#[derive(Deserialize)]
struct Offset {
    offset: u64,
}

async fn receive(
    State(registry): State<Registry>,
    Path(id): Path<String>,
    Query(at): Query<Offset>,
    body: Body,
) -> Response {
    match registry.receive_copy(&id, at.offset, patient(body)).await {
        Ok(received) => received.to_string().into_response(),
        Err(error) => refuse(&error),
    }
}

#[derive(Deserialize)]
struct Finish {
    digest: String,
    size: u64,
    repository: String,
    index: u64,
}

async fn finish(
    State(registry): State<Registry>,
    Path(id): Path<String>,
    Query(finish): Query<Finish>,
) -> Response {
    let digest: Digest = match finish.digest.parse() {
        Ok(digest) => digest,
        Err(error) => return bad(error),
    };
    let repository: RepositoryName = match finish.repository.parse() {
        Ok(repository) => repository,
        Err(error) => return bad(error),
    };
    match registry
        .finish_copy(&id, &digest, finish.size, &repository, finish.index)
        .await
    {
        Ok(receipt) => receipt.encode_to_vec().into_response(),
        Err(error) => refuse(&error),
    }
}

async fn cancel(State(registry): State<Registry>, Path(id): Path<String>) -> StatusCode {
    registry.cancel_copy(&id).await;
    StatusCode::NO_CONTENT
}
