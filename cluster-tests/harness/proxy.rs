//! A proxy between clients and the registry listeners, that spreads requests over the
//! regions.

use super::cluster::free_port;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    connections: AtomicUsize,
}

impl Proxy {
    /// Each connection goes to the next target and carries one request, so that the requests of
    /// one upload session reach all targets in turn.
    pub async fn spread(targets: &[String]) -> Proxy {
        let parse = |target: &String| target.parse().expect("an address");
        let address = free_port(Ipv4Addr::LOCALHOST);
        let listener = TcpListener::bind(address).await.expect("bind proxy");
        let work = Arc::new(Work {
            targets: targets.iter().map(parse).collect(),
            connections: AtomicUsize::new(0),
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
        if one_request(&mut near, &mut far).await.is_err() {
            return;
        }
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        tokio::join!(pump(near_read, far_write), pump(far_read, near_write));
    }
}

/// Until there is no more to read. What the other side no longer takes is read all the same, so
/// that an answer that is on its way back is not lost to a reset.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let _ = to.write_all(&buffer[..n]).await;
    }
    let _ = to.shutdown().await;
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
