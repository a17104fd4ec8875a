//! Steps of uploads that another node took a request for, and handed to this one, which has their
//! sessions.

use crate::budget::Budget;
use crate::oci::{Digest, RepositoryName};
use crate::registry::{self, ByteStream, Chunk, Error, Registry, Step};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::StreamExt;
use http::{Method, StatusCode};
use prost::Message;
use serde::Deserialize;
use std::io;
use std::time::Duration;

/// Of a peer that sends a body, and that itself waits for its client no longer than a minute.
const NOTHING_CAME: Duration = Duration::from_secs(90);

pub fn routes(registry: Registry) -> Router {
    let step = get(step).patch(step).put(step).delete(step);
    Router::new()
        .route("/uploads/{id}", step)
        .with_state(registry)
}

/// A body whose sender has gone without a word ends in an error.
pub fn patient(body: Body) -> ByteStream {
    let bytes = body.into_data_stream();
    Box::pin(futures_util::stream::unfold(bytes, |mut bytes| async {
        let piece = match tokio::time::timeout(NOTHING_CAME, bytes.next()).await {
            Ok(piece) => piece?.map_err(io::Error::other),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        Some((piece, bytes))
    }))
}

#[derive(Deserialize)]
struct Asked {
    repository: String,
    principal: String,
    before_body: bool,
    at: Option<u64>,
    length: Option<u64>,
    digest: Option<String>,
}

async fn step(
    State(registry): State<Registry>,
    Path(id): Path<String>,
    Query(asked): Query<Asked>,
    method: Method,
    body: Body,
) -> Response {
    let name = asked.repository.parse::<RepositoryName>().ok();
    let repository = name.and_then(|name| registry.for_peer(&asked.principal, &name));
    let digest = asked.digest.map(|digest| digest.parse::<Digest>());
    let chunk = Chunk {
        at: asked.at,
        length: asked.length,
    };
    let step = match (method, digest) {
        (Method::GET, None) if asked.before_body => Some(Step::Length),
        (Method::GET, None) => Some(Step::Offset),
        (Method::DELETE, None) => Some(Step::Cancel),
        (Method::PATCH, None) => Some(Step::Append(chunk, patient(body))),
        (Method::PUT, Some(Ok(digest))) => Some(Step::Finish(chunk, patient(body), digest)),
        _ => None,
    };
    let (Some(repository), Some(step)) = (repository, step) else {
        return (StatusCode::BAD_REQUEST, "not a step of an upload").into_response();
    };
    match registry::answer(
        repository
            .upload_step_here(&id, step, Budget::default())
            .await,
    ) {
        Ok(answer) => answer.encode_to_vec().into_response(),
        Err(error) => {
            let cause = &error as &dyn std::error::Error;
            tracing::error!(error = cause, "serve an upload that a peer handed over");
            let text = match error {
                Error::Internal(_) => "it failed inside".to_owned(),
                other => other.to_string(),
            };
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}
