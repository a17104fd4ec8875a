//! The admin API, `/api/v1` on the registry listener: the one that the command line uses, and
//! any other client. Every error is `{"error":{"code","message","next"}}`.

mod accounts;
mod door;
mod error;
mod groups;
mod policies;
mod regions;
mod security;
mod status;
pub mod types;
mod verify;

pub use status::failure_tolerance;

use crate::budget::Budget;
use crate::login::Login;
use crate::metadata::Metadata;
use crate::peers::Peers;
use crate::proto::peer::v1::NodeStatusResponse;
use crate::proto::state::v1 as pb;
use crate::tasks::Tasks;
use axum::Json;
use axum::extract::FromRequest;
use axum::extract::Request;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;
use axum::routing::put;
use bytes::Bytes;
use door::Caller;
use error::Refused;
use error::failed;
use serde::de::DeserializeOwned;
use std::io;
use std::sync::Arc;
use std::time::Duration;
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
    pub login: Login,
    pub tasks: Tasks,
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

/// The routes under `/api`; everything else goes to `registry`. Each handler takes a `Caller`.
pub fn router(api: Api, registry: axum::Router) -> axum::Router {
    routes(api).fallback_service(registry)
}

/// Without the registry: for the socket in the data directory.
pub fn routes(api: Api) -> axum::Router {
    axum::Router::new()
        .route("/api/v1/status", get(answer_status))
        .route("/api/v1/verify/metadata", get(answer_verify))
        .route("/api/v1/probe", post(answer_probe))
        .route("/api/v1/whoami", get(accounts::who_am_i))
        .route("/api/v1/policies", get(policies::list))
        .route(
            "/api/v1/policies/{*prefix}",
            get(policies::show)
                .put(policies::set)
                .delete(policies::unset),
        )
        .route("/api/v1/accounts", get(accounts::list))
        .route(
            "/api/v1/accounts/{name}",
            get(accounts::show)
                .put(accounts::create)
                .delete(accounts::remove),
        )
        .route(
            "/api/v1/accounts/{name}/password",
            put(accounts::set_password),
        )
        .route("/api/v1/accounts/{name}/rotate", post(accounts::rotate))
        .route(
            "/api/v1/accounts/{name}/grants",
            put(groups::give_account).delete(groups::take_account),
        )
        .route("/api/v1/groups", get(groups::list))
        .route(
            "/api/v1/groups/{name}",
            put(groups::create).delete(groups::remove),
        )
        .route(
            "/api/v1/groups/{name}/grants",
            put(groups::give_group).delete(groups::take_group),
        )
        .route(
            "/api/v1/groups/{name}/members/{account}",
            put(groups::join).delete(groups::leave),
        )
        .route(
            "/api/v1/signing-keys",
            get(security::signing_keys).post(security::rotate_signing_key),
        )
        .route("/api/v1/audit", get(security::audit))
        .route(
            "/api/v1/regions/{name}/join-token",
            post(regions::join_token).delete(regions::cancel),
        )
        .route("/api/{*rest}", axum::routing::any(unknown))
        .with_state(api)
}

async fn answer_status(State(api): State<Api>, _caller: Caller) -> Result<Response, Refused> {
    let status = status::status(&api).await;
    let status = status.map_err(|error| failed("read the state for a status", &error))?;
    Ok(Json(status).into_response())
}

async fn answer_verify(State(api): State<Api>, caller: Caller) -> Result<Response, Refused> {
    caller.must_admin_all("verify")?;
    let verified = verify::metadata(&api).await;
    let verified = verified.map_err(|error| failed("read the state to verify it", &error))?;
    Ok(Json(verified).into_response())
}

/// A proposal that changes nothing, and so shows that others would go through.
async fn answer_probe(State(api): State<Api>, caller: Caller) -> Result<Response, Refused> {
    caller.must_admin_all("probe")?;
    let probe = pb::command::Body::Probe(pb::Probe {});
    let outcome = api.metadata.write(probe, Budget::default()).await?;
    let index = outcome.index;
    Ok(Json(Probe { index }).into_response())
}

async fn unknown(_caller: Caller) -> Refused {
    Refused::new(
        StatusCode::NOT_FOUND,
        "UNKNOWN",
        "this server has no such call",
        "compare the versions of client and server with `roadstead version` and `roadstead status`",
    )
}

const BODY_MAX: usize = 256 << 10;

/// The body of a request: JSON, small, and as documented.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _api: &Api) -> Result<Body<T>, Refused> {
        let next = "see the command's --help";
        let collected = axum::body::to_bytes(request.into_body(), BODY_MAX).await;
        let bytes = collected
            .map_err(|error| Refused::invalid(format!("the body was not taken: {error}"), next))?;
        let parsed = serde_json::from_slice(&bytes);
        // The text of an error names keys and places, and may name a value: none is repeated.
        parsed.map(Body).map_err(|error| {
            let told = format!(
                "the body is not what this call takes (line {}, column {})",
                error.line(),
                error.column()
            );
            Refused::invalid(told, next)
        })
    }
}
