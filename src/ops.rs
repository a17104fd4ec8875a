//! The ops listener: what an orchestrator and a metrics collector ask. Nobody logs in here, and
//! no answer waits for another node: each says what this node knows.

use crate::telemetry::Metrics;
use axum::extract::Query;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

/// How far this node has come. The ops listener is up before anything else, so that a node that
/// waits to join can be told from one that hangs.
#[derive(Clone, Default)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Set once the node is in its cluster.
    takes: OnceLock<Box<Takes>>,
    stopping: AtomicBool,
}

/// May this node take requests of that purpose, by what it knows without asking?
type Takes = dyn Fn(Purpose) -> bool + Send + Sync;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Reads,
    Writes,
}

impl Health {
    /// From here on the node is in its cluster, and `takes` answers for it.
    pub fn entered(&self, takes: impl Fn(Purpose) -> bool + Send + Sync + 'static) {
        // A node enters once; a second call would say the same.
        let _ = self.inner.takes.set(Box::new(takes));
    }

    /// Load balancers look away before the listeners close.
    pub fn stopping(&self) {
        self.inner.stopping.store(true, Ordering::SeqCst);
    }

    fn is_started(&self) -> bool {
        self.inner.takes.get().is_some()
    }

    fn takes(&self, purpose: Purpose) -> bool {
        let stopping = self.inner.stopping.load(Ordering::SeqCst);
        !stopping && self.inner.takes.get().is_some_and(|takes| takes(purpose))
    }
}

#[derive(serde::Deserialize)]
struct Ready {
    #[serde(rename = "for")]
    purpose: Option<String>,
}

pub fn router(health: Health, metrics: Metrics) -> axum::Router {
    let live = get(|| async { answer(true, "alive", "") });
    let started = |State(health): State<Health>| async move {
        answer(
            health.is_started(),
            "started",
            "this node is not in its cluster yet",
        )
    };
    axum::Router::new()
        .route("/livez", live)
        .route("/startupz", get(started))
        .route("/readyz", get(ready))
        .with_state(health)
        .merge(
            axum::Router::new()
                .route("/metrics", get(scrape))
                .with_state(metrics),
        )
}

async fn ready(State(health): State<Health>, Query(query): Query<Ready>) -> Response {
    match query.purpose.as_deref() {
        None | Some("reads") => answer(
            health.takes(Purpose::Reads),
            "ready",
            "this node does not serve yet, or is stopping",
        ),
        Some("writes") => answer(
            health.takes(Purpose::Writes),
            "ready for writes",
            "this node takes no writes now: it knows of no leader with a quorum, drains, or is stopping",
        ),
        Some(other) => {
            let told = format!("for={other} is not known: for=reads or for=writes\n");
            (StatusCode::BAD_REQUEST, told).into_response()
        }
    }
}

fn answer(good: bool, yes: &str, no: &str) -> Response {
    if good {
        format!("{yes}\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{no}\n")).into_response()
    }
}

async fn scrape(State(metrics): State<Metrics>) -> Response {
    match metrics.encode() {
        Ok(text) => {
            let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, open_metrics)], text).into_response()
        }
        Err(error) => {
            tracing::warn!(%error, "encode the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    async fn ask(path: &str) -> StatusCode {
        let router = router(Health::default(), Metrics::new());
        let request = Request::get(path).body(Body::empty()).unwrap();
        router.oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn a_node_that_waits_to_join_is_alive_but_neither_started_nor_ready() {
        assert_eq!(ask("/livez").await, StatusCode::OK);
        assert_eq!(ask("/startupz").await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            ask("/readyz?for=writes").await,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(ask("/readyz?for=lunch").await, StatusCode::BAD_REQUEST);
        assert_eq!(ask("/metrics").await, StatusCode::OK);
    }

    #[test]
    fn a_node_that_stops_is_ready_for_nothing() {
        let health = Health::default();
        health.entered(|purpose| purpose == Purpose::Reads);
        assert!(health.takes(Purpose::Reads) && !health.takes(Purpose::Writes));
        health.stopping();
        assert!(health.is_started() && !health.takes(Purpose::Reads));
    }
}
