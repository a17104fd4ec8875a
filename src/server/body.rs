//! Bodies on their way in and out, watched for clients that keep them waiting. What a socket cannot
//! show is found here: a handler that waits for bytes that do not come, and an answer over HTTP/2
//! whose client opens no window for it while the rest of its connection goes on. What a refusal
//! leaves unread is read and thrown away, within bounds: a connection that closes on unread bytes is
//! reset, and the client would see that, not the reason.

use super::patience;
use super::patience::Patience;
use crate::tasks::Tasks;
use axum::BoxError;
use axum::body::Body;
use bytes::Bytes;
use http_body::Body as HttpBody;
use http_body::Frame;
use http_body::SizeHint;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Of an answer, what HTTP/2 is given at once; it keeps all of it as soon as there is room for one
/// byte. Of the last piece nobody sees whether it is taken, so that one is small.
const PIECE: usize = 32 << 10;
const LAST_PIECE: usize = 1 << 10;

/// Of a body whose request is refused.
const DRAINED: usize = 64 << 20;
const DRAINED_WITHIN: Duration = Duration::from_secs(2);

tokio::task_local! {
    /// Of the answer that the task at hand sends over HTTP/2.
    static TAKING: Arc<Taking>;
}

struct Taking(Mutex<Taken>);

struct Taken {
    patience: Patience,
    /// A piece has been given out, and the next was not asked for yet.
    is_waited_for: bool,
}

impl Taking {
    fn update(&self, bytes: usize, is_waited_for: bool) {
        let mut taken = self.0.lock().expect("no panic while held");
        taken.patience.moved(bytes);
        taken.is_waited_for = is_waited_for;
    }

    async fn given_up(&self) {
        poll_fn(|cx| {
            let mut taken = self.0.lock().expect("no panic while held");
            match taken.is_waited_for {
                true => taken.patience.poll_end(cx),
                false => Poll::Pending,
            }
        })
        .await
    }
}

/// Runs the answers of HTTP/2 connections, each until its client has it or is given up.
#[derive(Clone)]
pub struct Streams {
    pub tasks: Tasks,
    pub cut: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, answering: F) {
        let cut = self.cut.clone();
        let taking = Arc::new(Taking(Mutex::new(Taken {
            patience: Patience::new(patience::TAKING),
            is_waited_for: false,
        })));
        self.tasks.spawn(TAKING.scope(taking.clone(), async move {
            // Dropped, it resets its stream. It is polled first, since it says who is waited for.
            tokio::select! {
                biased;
                () = answering => {}
                () = taking.given_up() => tracing::debug!("a client takes nothing of an answer"),
                () = cut.cancelled() => {}
            }
        }));
    }
}

/// What a client sends.
pub struct Sent {
    inner: Incoming,
    patience: Patience,
}

impl Sent {
    pub fn new(inner: Incoming) -> Sent {
        Sent {
            inner,
            patience: Patience::new(patience::SENDING),
        }
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let sent = self.get_mut();
        match Pin::new(&mut sent.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                let data = frame
                    .as_ref()
                    .and_then(|frame| frame.as_ref().ok()?.data_ref());
                sent.patience.moved(data.map_or(0, Bytes::len));
                Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
            }
            Poll::Pending => {
                ready!(sent.patience.poll_end(cx));
                let told = "it came slower than 1 KiB/s";
                Poll::Ready(Some(Err(
                    io::Error::new(io::ErrorKind::TimedOut, told).into()
                )))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body in the hands of a handler. What the handler leaves can still be read.
#[derive(Clone)]
pub struct Lent(Arc<Mutex<Sent>>);

impl Lent {
    pub fn new(sent: Sent) -> Lent {
        Lent(Arc::new(Mutex::new(sent)))
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.0.lock().expect("no panic while held")
    }

    /// Not for a client that waits for `100 Continue`: reading is what asks it for the body.
    pub async fn drain(mut self) {
        let mut drained = 0;
        let draining = async {
            while let Some(Ok(frame)) = self.frame().await {
                drained += frame.data_ref().map_or(0, Bytes::len);
                if drained > DRAINED {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(DRAINED_WITHIN, draining).await;
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut *self.sent()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.sent().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.sent().size_hint()
    }
}

/// What a client gets; with it goes `held`, which is dropped when hyper has all of it.
pub struct Given<T> {
    inner: Body,
    is_http_2: bool,
    /// Of the last frame of `inner`, what was not given out yet.
    rest: Bytes,
    /// Still to be given out, `rest` included; unknown without a declared length.
    left: Option<u64>,
    last: usize,
    _held: T,
}

impl<T> Given<T> {
    pub fn new(inner: Body, length: Option<u64>, is_http_2: bool, held: T) -> Given<T> {
        Given {
            inner,
            is_http_2,
            rest: Bytes::new(),
            left: length,
            last: 0,
            _held: held,
        }
    }

    fn piece(&mut self) -> Bytes {
        let mut size = self.rest.len().min(PIECE);
        if self.left == Some(size as u64) && size > LAST_PIECE {
            size -= LAST_PIECE;
        }
        self.left = self.left.map(|left| left.saturating_sub(size as u64));
        self.last = size;
        self.rest.split_to(size)
    }
}

impl<T: Unpin> HttpBody for Given<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let given = self.get_mut();
        if !given.is_http_2 {
            return Pin::new(&mut given.inner).poll_frame(cx);
        }
        let last = std::mem::take(&mut given.last);
        let _ = TAKING.try_with(|taking| taking.update(last, false));
        if given.rest.is_empty() {
            match ready!(Pin::new(&mut given.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => given.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return Poll::Ready(other),
            }
        }
        let piece = given.piece();
        let _ = TAKING.try_with(|taking| taking.update(0, true));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match (self.rest.is_empty(), self.left) {
            (true, _) => self.inner.size_hint(),
            (false, Some(left)) => SizeHint::with_exact(left),
            (false, None) => SizeHint::default(),
        }
    }
}
