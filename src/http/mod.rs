//! The public edge: the OCI distribution API, and health for load balancers. It parses, calls the
//! registry, and writes the answer; it decides nothing. Each handler has its repository from
//! `authorize`.

mod access;
mod auth;
mod body;
mod door;
mod error;
mod handlers;
mod headers;
mod parts;
mod query;
mod range;
mod route;
mod token;

/// What the fuzz targets reach, and nobody else may.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::headers::{add_warnings, allows_range, entity_tags, etag, is_not_modified};
    pub use super::query::{Page, Query, next_referrers};
    pub use super::range::{parse_chunk, parse_ranges};
    pub use super::route::Route;
}

use crate::login::Login;
use crate::registry::Registry;
use crate::request_id::RequestId;
use access::Line;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use body::Incoming;
use bytes::Bytes;
use error::Failure;
use futures_util::stream;
use http::{HeaderValue, Method, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use route::Route;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// `/v2/…`, `/token` and `/healthz`. axum only carries: routing is by `route.rs`, from the raw path.
pub fn router(registry: Registry, login: Login) -> Router {
    Router::new().fallback(serve).with_state((registry, login))
}

async fn serve(State((registry, login)): State<(Registry, Login)>, request: Request) -> Response {
    let id = RequestId::random();
    let (request, body) = request.into_parts();
    let received = Arc::new(AtomicU64::new(0));
    let declared = body.size_hint().exact();
    let body = Incoming::new(counted(body, received.clone()), declared);
    let method = request.method.clone();
    let routed = Route::of(&method, &request.uri);
    let named = routed.as_ref().ok();
    let text = |named: Option<String>| named.unwrap_or_default();
    let mut line = Line {
        id,
        began: Instant::now(),
        client: request.extensions.get().copied(),
        who: String::new(),
        method: method.clone(),
        route: named.map_or("none", Route::name),
        repository: text(named.and_then(Route::repository).map(ToString::to_string)),
        reference: text(named.and_then(Route::reference).map(|r| r.to_string())),
        // Until there is an answer: the client has left before it.
        status: access::NO_ANSWER,
        cause: None,
        received,
        sent: 0,
        unsent: 0,
    };
    let answering = async {
        let answer = match routed {
            Ok(route) => {
                let door = door::Door {
                    registry: &registry,
                    login: &login,
                };
                door.handle(route, &request, body, &mut line.who).await
            }
            Err(refused) => Err(Failure::from(refused)),
        };
        answer.unwrap_or_else(|mut failure| {
            line.cause = failure.take_cause();
            failure.into_response(id)
        })
    };
    let mut response = id.serve("client", answering).await;
    line.status = response.status();
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
    set.insert(headers::REQUEST, headers::value(id.to_string()));
    let has_no_body = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&line.status);
    if has_no_body || method == Method::HEAD && line.status != StatusCode::OK {
        leave_out_body(&mut response);
    }
    access::logged(response, line)
}

/// Its length stays, for HEAD; where there was nothing to leave out there is none (RFC 9110, 8.6).
fn leave_out_body(response: &mut Response) {
    match response.body().size_hint().exact() {
        Some(length) if length > 0 => {
            let length = HeaderValue::from(length);
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length);
            *response.body_mut() = Body::empty();
        }
        // Of a length that axum does not know, or it would write one of 0.
        _ => *response.body_mut() = Body::from_stream(stream::empty::<io::Result<Bytes>>()),
    }
}

/// The body, whose bytes are counted as they come.
fn counted(body: Body, received: Arc<AtomicU64>) -> Body {
    Body::new(body.map_frame(move |frame| {
        if let Some(bytes) = frame.data_ref() {
            received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        frame
    }))
}
