//! HTTP/1.1 and HTTP/2 on one connection: what a client may have under way, and what it may make
//! this node keep in memory for it. A connection on which nothing happens ends.

use super::Connection;
use super::body::Given;
use super::body::Lent;
use super::body::Sent;
use super::body::Streams;
use super::socket::Socket;
use crate::certs::ListenerTls;
use crate::topology::Client;
use crate::topology::Secure;
use axum::body::Body;
use http::Request;
use http::Response;
use http::StatusCode;
use http::Version;
use http::header::CONTENT_LENGTH;
use http::header::EXPECT;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tower::Service;

/// Request line and fields together. Tokens with many scopes are the longest of what comes.
const HEAD_MAX: usize = 32 << 10;

/// Of one connection over HTTP/2. A proxy sends what many clients ask for over a few.
const STREAMS: u32 = 128;
/// What may come before a handler takes it: of one request, and of all on a connection.
const WINDOW: u32 = 1 << 20;
/// What is kept of one answer for a client that does not take it.
const SEND_BUFFER: usize = 128 << 10;
/// Streams that a client opened and reset before this node had looked at them; more end the
/// connection ("rapid reset"), as do more resets by this node, which only a broken client brings on.
const RESETS_WAITING: usize = 32;
const RESETS_OWN: usize = 128;
/// A client that is gone is noticed after both together.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(20);

/// Longer than clients keep a connection that they do not use (90 s), so that none is cut just as
/// a request begins on it.
const IDLE: Duration = Duration::from_secs(100);
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Plain, or after a handshake that must end soon.
pub(super) async fn either(
    stream: TcpStream,
    tls: Option<ListenerTls>,
    router: axum::Router,
    mut connection: Connection,
) {
    let Some(tls) = tls else {
        return http(stream, router, connection).await;
    };
    let shaken = tokio::select! {
        shaken = tls.accept(stream) => shaken,
        () = connection.stop.cancelled() => return,
    };
    match shaken {
        Ok(stream) => {
            connection.is_secure = true;
            http(stream, router, connection).await;
        }
        Err(error) => {
            let client = connection.client;
            tracing::debug!(%client, %error, "a connection did not come to speak TLS");
        }
    }
}

/// Serves requests with `router` until the client leaves, or keeps still for too long.
pub(super) async fn http<S>(io: S, router: axum::Router, connection: Connection)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let socket = Socket::new(io);
    let is_blocked = socket.is_blocked();
    let requests = Arc::new(Requests::default());
    let mut builder = auto::Builder::new(Streams {
        tasks: connection.tasks.clone(),
        cut: connection.cut.clone(),
    });
    builder
        .http1()
        // The socket and the look at idle connections do better.
        .header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEAD_MAX as u32)
        .max_pending_accept_reset_streams(RESETS_WAITING)
        .max_local_error_reset_streams(RESETS_OWN);
    let stop = connection.stop.clone();
    let service = hyper::service::service_fn({
        let requests = requests.clone();
        move |request| {
            answer(
                request,
                router.clone(),
                connection.clone(),
                requests.begin(),
            )
        }
    });
    let serving = builder.serve_connection(TokioIo::new(socket), service);
    let mut serving = pin!(serving);
    let kept_still = async {
        let first = tokio::time::Instant::now() + LOOK_EVERY;
        let mut look = tokio::time::interval_at(first, LOOK_EVERY);
        let (mut still, mut seen) = (Duration::ZERO, 0);
        while still < IDLE {
            look.tick().await;
            let is_busy = requests.under_way() > 0 || is_blocked.load(Ordering::Relaxed);
            let begun = requests.begun.load(Ordering::Relaxed);
            still = match is_busy || begun != seen {
                true => Duration::ZERO,
                false => still + LOOK_EVERY,
            };
            seen = begun;
        }
    };
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = kept_still => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(LOOK_EVERY, serving).await.unwrap_or(Ok(()))
        }
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = error.as_ref(), "a connection broke");
    }
}

/// Those of one connection.
#[derive(Default)]
struct Requests {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// Until the answer is given out.
struct UnderWay(Arc<Requests>);

impl Requests {
    fn begin(self: &Arc<Requests>) -> UnderWay {
        self.begun.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    fn under_way(&self) -> u64 {
        let ended = self.ended.load(Ordering::Relaxed);
        self.begun.load(Ordering::Relaxed).saturating_sub(ended)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

async fn answer(
    mut request: Request<Incoming>,
    mut router: axum::Router,
    connection: Connection,
    under_way: UnderWay,
) -> Result<Response<Body>, Infallible> {
    if head_size(&request) > HEAD_MAX {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Ok(response);
    }
    let is_http_2 = request.version() == Version::HTTP_2;
    // With HTTP/1.1 the bounds on connections are bounds on requests. The semaphores are never
    // closed.
    let turn = match is_http_2 {
        true => Some((
            connection.requests_of_client.acquire_owned().await,
            connection.requests.acquire_owned().await,
        )),
        false => None,
    };
    request.extensions_mut().insert(Client(connection.client));
    if connection.is_secure {
        request.extensions_mut().insert(Secure);
    }
    let is_asked_for = request.headers().contains_key(EXPECT);
    let (head, sent) = request.into_parts();
    let lent = Lent::new(Sent::new(sent));
    let request = Request::from_parts(head, Body::new(lent.clone()));
    let Ok(response) = router.call(request).await;
    let is_refused = response.status().is_client_error() || response.status().is_server_error();
    if is_refused && !is_asked_for {
        lent.drain().await;
    }
    let (head, body) = response.into_parts();
    let declared = head.headers.get(CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse().ok());
    let length = body.size_hint().exact().or(declared);
    let body = Given::new(body, length, is_http_2, (turn, under_way));
    Ok(Response::from_parts(head, Body::new(body)))
}

fn head_size<B>(request: &Request<B>) -> usize {
    let fields = request.headers().iter();
    let fields: usize = fields
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    let target = request.uri().path_and_query();
    fields + target.map_or(0, |target| target.as_str().len())
}
