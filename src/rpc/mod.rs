//! The peer edge: gRPC services and blob bytes on one listener. It checks who calls (gate.rs) before
//! a body is decoded, translates, and calls down; it decides nothing.

mod blobs;
mod gate;
mod services;
#[cfg(test)]
mod tests;
mod uploads;

use crate::certs::Wire;
use crate::metadata::Metadata;
use crate::peers::Peers;
use crate::proto::peer::v1::blobs_server::BlobsServer;
use crate::proto::peer::v1::cluster_server::ClusterServer;
use crate::proto::peer::v1::metadata_server::MetadataServer;
use crate::proto::peer::v1::raft_server::RaftServer;
use crate::registry::Registry;
use gate::Gate;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::util::MapRequest;

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

/// All of the peer listener. `registry` is None on a node without blobs, and in the simulation.
pub fn router(
    metadata: Metadata,
    peers: Peers,
    registry: Option<Registry>,
    raft_profile: String,
) -> axum::Router {
    let identity = metadata.identity().clone();
    let gate = Gate::new(identity.clone(), metadata.clone());
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
    router.layer(axum::middleware::from_fn_with_state(
        gate,
        gate::check_caller,
    ))
}

/// Serves one accepted connection, HTTP/1.1 or HTTP/2, until it ends; after `stop`, until the calls
/// under way have ended. `wire`: who is at its other end, by its certificate.
pub async fn serve_connection(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    wire: Wire,
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
    let service = MapRequest::new(router, move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(wire.clone());
        request
    });
    let connection = builder.serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
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
