//! A proxy between clients and the registry listeners, that does what proxies do to clients:
//! it spreads requests over the regions, or closes a connection in the middle of a blob.

use super::cluster::free_port;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub struct Proxy {
    pub address: SocketAddr,
    work: Arc<Work>,
    stop: CancellationToken,
}

struct Work {
    targets: Vec<SocketAddr>,
    does: Does,
    connections: AtomicUsize,
    has_cut: AtomicBool,
    /// Bytes to the targets, and back, of all connections.
    sent: AtomicU64,
    answered: AtomicU64,
}

enum Does {
    Spread,
    Cut { after: u64 },
}

/// The connection is to be closed at once.
struct Cut;

impl Proxy {
    /// Each connection goes to the next target and carries one request, so that the requests of
    /// one upload session reach all targets in turn.
    pub async fn spread(targets: &[String]) -> Proxy {
        Proxy::start(targets, Does::Spread).await
    }

    /// When so many bytes went in one direction, the connection that carries them is closed; no
    /// other is.
    pub async fn cutting(target: &str, after: u64) -> Proxy {
        Proxy::start(&[target.to_owned()], Does::Cut { after }).await
    }

    async fn start(targets: &[String], does: Does) -> Proxy {
        let parse = |target: &String| target.parse().expect("an address");
        let address = free_port(Ipv4Addr::LOCALHOST);
        let listener = TcpListener::bind(address).await.expect("bind proxy");
        let work = Arc::new(Work {
            targets: targets.iter().map(parse).collect(),
            does,
            connections: AtomicUsize::new(0),
            has_cut: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        let proxy = Proxy {
            address,
            work: work.clone(),
            stop: stop.clone(),
        };
        let tracker = TaskTracker::new();
        let connections = tracker.clone();
        tracker.spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else {
                    continue;
                };
                let work = work.clone();
                let serve = async move { work.connection(near).await };
                connections.spawn(stop.clone().run_until_cancelled_owned(serve));
            }
        }));
        proxy
    }

    pub fn registry(&self) -> String {
        self.address.to_string()
    }

    pub fn connections(&self) -> usize {
        self.work.connections.load(Ordering::Relaxed)
    }

    pub fn has_cut(&self) -> bool {
        self.work.has_cut.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Work {
    async fn connection(&self, mut near: TcpStream) {
        let nth = self.connections.fetch_add(1, Ordering::Relaxed);
        let Ok(mut far) = TcpStream::connect(self.targets[nth % self.targets.len()]).await else {
            return;
        };
        let _ = near.set_nodelay(true);
        let _ = far.set_nodelay(true);
        if matches!(self.does, Does::Spread) && one_request(&mut near, &mut far).await.is_err() {
            return;
        }
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        // Dropped when cut, as the sockets of a process that dies are.
        let _ = tokio::try_join!(
            self.pump(near_read, far_write, &self.sent),
            self.pump(far_read, near_write, &self.answered)
        );
    }

    /// Until there is no more to read. What the other side no longer takes is read all the same,
    /// so that an answer that is on its way back is not lost to a reset.
    async fn pump(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        carried: &AtomicU64,
    ) -> Result<(), Cut> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let Ok(n @ 1..) = from.read(&mut buffer).await else {
                let _ = to.shutdown().await;
                return Ok(());
            };
            let _ = to.write_all(&buffer[..n]).await;
            let carried = carried.fetch_add(n as u64, Ordering::Relaxed) + n as u64;
            if let Does::Cut { after } = self.does
                && carried >= after
                && !self.has_cut.swap(true, Ordering::Relaxed)
            {
                return Err(Cut);
            }
        }
    }
}

/// Passes on the head of a request with `Connection: close` in it: the client's next request comes
/// by a new connection.
async fn one_request(near: &mut TcpStream, far: &mut TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    let after_first_line = loop {
        if near.read_buf(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = head.windows(2).position(|two| two == b"\r\n") {
            break end + 2;
        }
    };
    head.splice(
        after_first_line..after_first_line,
        *b"Connection: close\r\n",
    );
    far.write_all(&head).await
}
