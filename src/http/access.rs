//! One line in the log for each request, when it is over: the last byte of its answer was handed
//! to the connection, or the client has left.

use crate::request_id::RequestId;
use crate::topology::Client;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;
use tracing::field;

/// The client left before there was an answer (as others write it, since HTTP has no word for it).
pub const NO_ANSWER: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => panic!("a number of three digits"),
};

/// What the line says. Written when it is dropped.
pub struct Line {
    pub id: RequestId,
    pub began: Instant,
    pub client: Option<Client>,
    /// The account; empty where nobody had to say.
    pub who: String,
    pub method: Method,
    pub route: &'static str,
    pub repository: String,
    /// Tag or digest.
    pub reference: String,
    pub status: StatusCode,
    /// Why it failed inside; for the log only.
    pub cause: Option<String>,
    /// Bytes of its body, which may still come after the answer.
    pub received: Arc<AtomicU64>,
    pub sent: u64,
    /// Bytes of the answer that the client did not take.
    pub unsent: u64,
}

impl Drop for Line {
    fn drop(&mut self) {
        let Line {
            id,
            who,
            method,
            route,
            repository,
            reference,
            sent,
            ..
        } = self;
        let (status, ms) = (self.status.as_u16(), self.began.elapsed().as_millis());
        let received = self.received.load(Ordering::Relaxed);
        let is_cut = self.unsent > 0;
        // Of a proxy, when one is in between.
        let client = self.client.map(|Client(address)| field::display(address));
        if let Some(cause) = &self.cause {
            tracing::error!(%id, client, who, %method, route, repository, reference, status, ms, received, sent, is_cut, cause, "request failed inside");
        } else if *route == "health" {
            tracing::debug!(%id, client, %method, route, status, ms, "request");
        } else {
            tracing::info!(%id, client, who, %method, route, repository, reference, status, ms, received, sent, is_cut, "request");
        }
    }
}

/// The answer, whose line is written when its body is over.
pub fn logged(response: Response, mut line: Line) -> Response {
    let declared = response.headers().get(CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse().ok());
    response.map(|body| {
        // A blob is a stream, whose length only the header knows; of HEAD there is no body.
        line.unsent = match body.is_end_stream() {
            true => 0,
            false => declared.unwrap_or(body.size_hint().lower()),
        };
        Body::new(Logged { body, line })
    })
}

struct Logged {
    body: Body,
    line: Line,
}

impl HttpBody for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(bytes) = frame.data_ref()
        {
            let taken = bytes.len() as u64;
            self.line.sent += taken;
            self.line.unsent = self.line.unsent.saturating_sub(taken);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::sync::Mutex;
    use tracing_subscriber::fmt::MakeWriter;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Log;

        fn make_writer(&self) -> Log {
            self.clone()
        }
    }

    impl Log {
        /// What was logged by `work`.
        fn of(work: impl FnOnce()) -> String {
            let log = Log::default();
            let to = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_writer(log.clone())
                .finish();
            tracing::subscriber::with_default(to, work);
            let bytes = log.0.lock().unwrap().clone();
            String::from_utf8(bytes).unwrap()
        }
    }

    fn line(route: &'static str) -> Line {
        Line {
            id: "00000000000000ab".parse().unwrap(),
            began: Instant::now(),
            client: Some(Client(([192, 0, 2, 7], 40).into())),
            who: "ann".to_owned(),
            method: Method::GET,
            route,
            repository: "team/app".to_owned(),
            reference: "v1".to_owned(),
            status: StatusCode::OK,
            cause: None,
            received: Arc::new(AtomicU64::new(3)),
            sent: 0,
            unsent: 0,
        }
    }

    #[test]
    fn the_line_comes_when_the_answer_is_over() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let log = Log::of(|| {
            let answer = logged(Response::new(Body::from("12345")), line("get-manifest"));
            tracing::info!("answered");
            let taken = runtime.block_on(answer.into_body().collect());
            assert_eq!(taken.unwrap().to_bytes(), "12345");
        });
        let (before, line) = log.split_once("answered").unwrap();
        assert!(!before.contains("request"), "{log}");
        for said in [
            "id=00000000000000ab",
            "client=192.0.2.7:40",
            "who=\"ann\"",
            "method=GET",
            "route=\"get-manifest\"",
            "repository=\"team/app\"",
            "reference=\"v1\"",
            "status=200",
            "received=3",
            "sent=5",
            "is_cut=false",
        ] {
            assert!(line.contains(said), "{said} is not in {line}");
        }
        assert_eq!(line.matches("request").count(), 1, "{line}");
    }

    #[test]
    fn a_client_that_leaves_is_told_apart_and_health_checks_are_not_shown() {
        let left = Log::of(|| drop(logged(Response::new(Body::from("12345")), line("get-blob"))));
        assert!(left.contains("sent=0 is_cut=true"), "{left}");
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>("12")]);
        let mut blob = Response::new(Body::from_stream(stream));
        blob.headers_mut().insert(CONTENT_LENGTH, 5.into());
        let left = Log::of(|| drop(logged(blob, line("get-blob"))));
        assert!(left.contains("sent=0 is_cut=true"), "{left}");
        let mut head = Response::new(Body::empty());
        head.headers_mut().insert(CONTENT_LENGTH, 5.into());
        let told = Log::of(|| drop(logged(head, line("get-blob"))));
        assert!(told.contains("sent=0 is_cut=false"), "{told}");
        let without_answer = Log::of(|| {
            let mut line = line("put-manifest");
            line.status = NO_ANSWER;
            drop(line);
        });
        assert!(without_answer.contains("status=499"), "{without_answer}");
        let health = Log::of(|| drop(logged(Response::new(Body::empty()), line("health"))));
        assert_eq!(health, "");
    }
}
