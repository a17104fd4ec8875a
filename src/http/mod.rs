//! The public edge: the OCI distribution API, and health for load balancers. It parses, calls the
//! registry, and writes the answer; it decides nothing. Each handler has its repository from
//! `authorize`.

mod body;
mod error;
mod handlers;
mod headers;
mod query;
mod range;
mod route;

use crate::registry::Registry;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use body::Incoming;
use error::Failure;
use http::{HeaderValue, Method, StatusCode, header};
use route::Route;
use std::time::Instant;

/// `/v2/…` and `/healthz`. axum only carries: routing is by `route.rs`, from the raw path.
pub fn router(registry: Registry) -> Router {
    Router::new().fallback(serve).with_state(registry)
}

async fn serve(State(registry): State<Registry>, request: Request) -> Response {
    let began = Instant::now();
    let (request, body) = request.into_parts();
    let body = Incoming::new(body);
    let method = request.method.clone();
    let path = request.uri.path().to_owned();
    let is_head = method == Method::HEAD;
    let routed = Route::parse(&method, &path);
    let name = routed.as_ref().map_or("none", Route::name);
    let repository = routed
        .as_ref()
        .ok()
        .and_then(Route::repository)
        .map(ToString::to_string);
    let reference = routed
        .as_ref()
        .ok()
        .and_then(Route::reference)
        .map(|r| r.to_string());
    let (repository, reference) = (
        repository.unwrap_or_default(),
        reference.unwrap_or_default(),
    );
    let answer = match routed {
        Ok(route) => handlers::handle(&registry, route, &request, body.clone()).await,
        Err(refused) => Err(Failure::from(refused)),
    };
    let mut cause = None;
    let mut response = answer.unwrap_or_else(|mut failure| {
        cause = failure.take_cause();
        failure.into_response()
    });
    let set = response.headers_mut();
    set.insert(
        headers::API_VERSION,
        HeaderValue::from_static("registry/2.0"),
    );
    set.insert(
        headers::REGION,
        headers::value(registry.region().to_string()),
    );
    set.insert(headers::INDEX, headers::value(registry.index_token()));
    let status = response.status();
    let is_refused = status.is_client_error() || status.is_server_error();
    if is_refused && !request.headers.contains_key(header::EXPECT) {
        body.drain().await;
    }
    let ms = began.elapsed().as_millis();
    match cause {
        Some(cause) => {
            tracing::error!(%method, route = name, repository, reference, %status, ms, cause, "request failed inside")
        }
        None => {
            tracing::debug!(%method, route = name, repository, reference, %status, ms, "request")
        }
    }
    if is_head && status != StatusCode::OK {
        *response.body_mut() = Body::empty();
    }
    response
}
