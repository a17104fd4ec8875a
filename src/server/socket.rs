//! The socket of one connection, watched: bytes with two readings do not get through, a head that
//! has begun must end soon, and a client that takes nothing of its answers is given up.

use super::framing::Framing;
use super::patience;
use super::patience::Patience;
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::time::Sleep;

/// From the first byte of a request to the end of its head. An idle connection has longer.
const HEAD_WITHIN: Duration = Duration::from_secs(30);

/// No parser takes this for the rest of a head: hyper answers 400 after all that came before, and
/// closes the connection. It would take it for a chunk's extension; a body ends with an error.
const BROKEN: &[u8] = b"\0\r\n\r\n";

pub struct Socket<S> {
    inner: S,
    framing: Framing,
    /// Some once nothing more of what the client sends may get through: what is left of `BROKEN`.
    broken: Option<&'static [u8]>,
    head_timer: Option<Pin<Box<Sleep>>>,
    taking: Patience,
    is_blocked: Arc<AtomicBool>,
}

impl<S> Socket<S> {
    pub fn new(inner: S) -> Socket<S> {
        Socket {
            inner,
            framing: Framing::new(),
            broken: None,
            head_timer: None,
            taking: Patience::new(patience::TAKING),
            is_blocked: Arc::default(),
        }
    }

    /// True while the client has not taken what was written.
    pub fn is_blocked(&self) -> Arc<AtomicBool> {
        self.is_blocked.clone()
    }

    /// The rest of `BROKEN`, as far as there is room, then the end.
    fn break_off(&mut self, rest: &'static [u8], buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let is_first = self.broken.is_none();
        if !self.framing.is_in_chunks() {
            let (now, later) = rest.split_at(rest.len().min(buf.remaining()));
            buf.put_slice(now);
            self.broken = Some(later);
        } else if is_first && !buf.filled().is_empty() {
            self.broken = Some(rest);
        } else {
            let told = "its chunks are not as RFC 9112 has them";
            return Err(io::Error::new(io::ErrorKind::InvalidData, told));
        }
        Ok(())
    }

    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) => self.taking.moved(*bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                if self.taking.poll_end(cx).is_ready() {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the client takes nothing of its answers",
                    )));
                }
            }
        }
        self.is_blocked
            .store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        if let Some(rest) = socket.broken {
            return Poll::Ready(socket.break_off(rest, buf));
        }
        let before = buf.filled().len();
        match Pin::new(&mut socket.inner).poll_read(cx, buf) {
            Poll::Ready(read) => {
                read?;
                if let Err(kept) = socket.framing.take(&buf.filled()[before..]) {
                    buf.set_filled(before + kept);
                    return Poll::Ready(socket.break_off(BROKEN, buf));
                }
                if !socket.framing.is_in_head() {
                    socket.head_timer = None;
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending if socket.framing.is_in_head() => {
                let timer = socket
                    .head_timer
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(HEAD_WITHIN)));
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(socket.break_off(BROKEN, buf))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let socket = self.get_mut();
        let written = Pin::new(&mut socket.inner).poll_write(cx, buf);
        socket.wrote(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket = self.get_mut();
        let written = Pin::new(&mut socket.inner).poll_write_vectored(cx, bufs);
        socket.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
