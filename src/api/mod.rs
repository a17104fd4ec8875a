//! The admin API, `/api/v1` on the registry listener: the one that the command line uses, and
//! any other client. Every error is `{"error":{"code","message","next"}}`.

mod policies;
mod regions;
mod status;
pub mod types;
mod verify;

pub use status::failure_tolerance;

use crate::budget::Budget;
use crate::metadata::Error as MetadataError;
use crate::metadata::Metadata;
use crate::peers::Peers;
use crate::proto::peer::v1::NodeStatusResponse;
use crate::proto::state::v1 as pb;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use types::ErrorBody;
use types::ErrorDetail;
use types::Probe;

/// What the answers are made of. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub metadata: Metadata,
    pub peers: Peers,
    /// Total and free bytes of the volume that blobs are on; zeros on a witness.
    pub disk: Arc<dyn Fn() -> io::Result<(u64, u64)> + Send + Sync>,
    /// Of this node's profile, which round trips must fit.
    pub heartbeat: Duration,
    /// The name of that profile, which a new region has to run too.
    pub raft_profile: &'static str,
}

impl Api {
    /// What this node says of itself: the same as peers hear from it.
    fn own_status(&self) -> io::Result<NodeStatusResponse> {
        let (state_hash_index, state_hash) = self.metadata.view().state_hash()?;
        let (disk_total, disk_free) = (self.disk)()?;
        Ok(NodeStatusResponse {
            applied: *self.metadata.applied().borrow(),
            state_hash_index,
            state_hash: Bytes::copy_from_slice(&state_hash),
            disk_total,
            disk_free,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

/// The routes under `/api`; everything else goes to `registry`.
pub fn router(api: Api, registry: axum::Router) -> axum::Router {
    axum::Router::new()
        .route("/api/v1/status", get(answer_status))
        .route("/api/v1/verify/metadata", get(answer_verify))
        .route("/api/v1/probe", post(answer_probe))
        .route("/api/v1/policies", get(policies::list))
        .route(
            "/api/v1/policies/{*prefix}",
            get(policies::show)
                .put(policies::set)
                .delete(policies::unset),
        )
        .route(
            "/api/v1/regions/{name}/join-token",
            post(regions::join_token),
        )
        .route("/api/{*rest}", axum::routing::any(unknown))
        .with_state(api)
        .fallback_service(registry)
}

async fn answer_status(State(api): State<Api>) -> Response {
    match status::status(&api).await {
        Ok(status) => Json(status).into_response(),
        Err(error) => failed("read the state for a status", &error),
    }
}

async fn answer_verify(State(api): State<Api>) -> Response {
    match verify::metadata(&api).await {
        Ok(verification) => Json(verification).into_response(),
        Err(error) => failed("read the state to verify it", &error),
    }
}

/// A proposal that changes nothing, and so shows that others would go through.
async fn answer_probe(State(api): State<Api>) -> Response {
    let probe = pb::command::Body::Probe(pb::Probe {});
    match api.metadata.write(probe, Budget::default()).await {
        Ok(outcome) => Json(Probe {
            index: outcome.index,
        })
        .into_response(),
        Err(MetadataError::Io(error)) => failed("propose a probe", &error),
        Err(error) => unavailable(&error.to_string()),
    }
}

async fn unknown() -> Response {
    let told = refusal(
        "UNKNOWN",
        "this server has no such call".to_owned(),
        "compare the versions of client and server with `roadstead version` and `roadstead status`",
    );
    (StatusCode::NOT_FOUND, Json(told)).into_response()
}

fn refusal(code: &str, message: String, next: &str) -> ErrorBody {
    ErrorBody {
        error: ErrorDetail {
            code: code.to_owned(),
            message,
            next: next.to_owned(),
        },
    }
}

/// A write without a leader or a quorum.
fn unavailable(message: &str) -> Response {
    let next = "try again; `roadstead status` says why there is no leader";
    let told = refusal("UNAVAILABLE", message.to_owned(), next);
    let headers = [(header::RETRY_AFTER, "10")];
    (StatusCode::SERVICE_UNAVAILABLE, headers, Json(told)).into_response()
}

/// The cause is logged here, and not shown.
fn failed(what: &str, error: &io::Error) -> Response {
    tracing::error!(%error, "{what}");
    let told = refusal(
        "INTERNAL",
        format!("could not {what}"),
        "look into the log of this node",
    );
    (StatusCode::INTERNAL_SERVER_ERROR, Json(told)).into_response()
}
