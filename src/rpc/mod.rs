//! The peer edge: gRPC services and blob bytes on one listener. It checks who calls (peers/
//! envelope.rs) before a body is decoded, translates, and calls down; it decides nothing.

mod blobs;
mod services;
#[cfg(test)]
mod tests;
mod uploads;

use crate::metadata::Metadata;
use crate::peers::Identity;
use crate::peers::Peers;
use crate::peers::envelope;
use crate::peers::envelope::Guard;
use crate::proto::peer::v1::blobs_server::BlobsServer;
use crate::proto::peer::v1::cluster_server::ClusterServer;
use crate::proto::peer::v1::metadata_server::MetadataServer;
use crate::proto::peer::v1::raft_server::RaftServer;
use crate::registry::Registry;
use crate::topology::NodeId;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// As in peers/calls.rs.
const MAX_MESSAGE: usize = 32 << 20;

/// What a connection may have under way, and what it may be sent before it is read: enough for a
/// wide link.
const MOST_STREAMS: u32 = 256;
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// A caller that is gone is noticed after both together.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);
/// Longer than callers keep an idle HTTP/1.1 connection (90 s), so that none is cut just as a
/// request begins on it.
const HEADER_READ: Duration = Duration::from_secs(120);

/// Who calls, by its checked headers.
#[derive(Clone, Copy, Debug)]
struct Caller(NodeId);

#[derive(Clone)]
struct Gate {
    identity: Identity,
    metadata: Metadata,
    guard: Arc<Guard>,
}

/// All of the peer listener. `registry` is None on a node without blobs, and in the simulation.
pub fn router(
    metadata: Metadata,
    peers: Peers,
    registry: Option<Registry>,
    raft_profile: String,
) -> axum::Router {
    let identity = metadata.identity().clone();
    let gate = Gate {
        identity: identity.clone(),
        metadata: metadata.clone(),
        guard: Arc::default(),
    };
    let raft = RaftServer::new(services::RaftService {
        metadata: metadata.clone(),
    })
    .max_decoding_message_size(MAX_MESSAGE)
    .max_encoding_message_size(MAX_MESSAGE);
    let meta = services::MetadataService {
        metadata: metadata.clone(),
        registry: registry.clone(),
    };
    let meta = MetadataServer::new(meta).max_decoding_message_size(MAX_MESSAGE);
    let cluster = services::ClusterService {
        identity,
        metadata,
        peers,
        raft_profile,
    };
    let mut routes = Routes::new(raft)
        .add_service(meta)
        .add_service(ClusterServer::new(cluster));
    if let Some(registry) = &registry {
        routes = routes.add_service(BlobsServer::new(services::BlobsService {
            registry: registry.clone(),
        }));
    }
    let mut router = routes.into_axum_router();
    if let Some(registry) = registry {
        router = router
            .merge(blobs::routes(registry.clone()))
            .merge(uploads::routes(registry));
    }
    router.layer(axum::middleware::from_fn_with_state(gate, check_caller))
}

/// Serves one accepted connection, HTTP/1.1 or HTTP/2, until it ends; after `stop`, until the calls
/// under way have ended.
pub async fn serve_connection(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: axum::Router,
    stop: CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .max_concurrent_streams(MOST_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let connection = builder.serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = error.as_ref(), "a peer's connection broke");
    }
}

/// A client's request is behind this call: a line of its own.
async fn told(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = Instant::now();
    let response = next.run(request).await;
    let (status, ms) = (response.status().as_u16(), began.elapsed().as_millis());
    tracing::debug!(%method, path, status, ms, "answered a node");
    response
}

async fn check_caller(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let is_grpc = request
        .headers()
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    // A node that joins does not know the cluster yet.
    let is_open = request
        .uri()
        .path()
        .starts_with("/roadstead.peer.v1.Cluster/");
    let checked = gate.guard.check(request.headers(), &gate.identity, is_open);
    let refusal = match checked {
        Err(mismatch) => mismatch.to_string(),
        Ok(node) => match gate.metadata.view().is_removed(node) {
            Ok(true) => format!(
                "node {node} was removed from this cluster for ever; join again with an empty data directory"
            ),
            Ok(false) => {
                request.extensions_mut().insert(Caller(node));
                return match envelope::request(request.headers()) {
                    Some(id) => id.serve(&node.to_string(), told(request, next)).await,
                    None => next.run(request).await,
                };
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "read whether a caller was removed"
                );
                "this node cannot read its metadata store".to_owned()
            }
        },
    };
    if is_grpc {
        tonic::Status::failed_precondition(refusal).into_http()
    } else {
        (StatusCode::MISDIRECTED_REQUEST, refusal).into_response()
    }
}
