//! A TCP proxy in front of each node's peer listener: links between two nodes can be cut, and
//! slowed. A caller is known by its source address, since each node calls from the address that
//! its own peer listener has.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a link that was idle passes on at once is what it carries in this time.
const BURST: Duration = Duration::from_millis(10);

/// What every proxy of a cluster obeys.
#[derive(Clone)]
pub struct Links {
    cut: watch::Sender<HashSet<(IpAddr, IpAddr)>>,
    /// Bytes per second of each connection's each direction; 0 is unlimited.
    rate: Arc<Mutex<u64>>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Links {
    pub fn new() -> Links {
        Links {
            cut: watch::Sender::new(HashSet::new()),
            rate: Arc::new(Mutex::new(0)),
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// From now on nothing passes from `a` to `b` or back: bytes are swallowed, as on a dead
    /// link, and connections stay open.
    pub fn cut(&self, a: IpAddr, b: IpAddr) {
        self.cut.send_modify(|cut| {
            cut.insert((a, b));
            cut.insert((b, a));
        });
    }

    pub fn heal(&self) {
        self.cut.send_modify(HashSet::clear);
    }

    pub fn limit(&self, bytes_per_second: u64) {
        *self.rate.lock().expect("no panic while held") = bytes_per_second;
    }

    /// Listens on an own port and passes on to `target`.
    pub async fn proxy_to(&self, target: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind proxy");
        let address = listener.local_addr().expect("has an address");
        let links = self.clone();
        self.tracker.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = links.stop.cancelled() => return,
                };
                let Ok((near, from)) = accepted else { continue };
                let serve = links.clone().connection(near, from.ip(), target);
                links.tracker.spawn(serve);
            }
        });
        address
    }

    async fn connection(self, near: TcpStream, from: IpAddr, target: SocketAddr) {
        let pair = (from, target.ip());
        let mut cut = self.cut.subscribe();
        // A link that is down swallows the attempt as well: the caller times out.
        while cut.borrow_and_update().contains(&pair) {
            tokio::select! {
                changed = cut.changed() => if changed.is_err() { return },
                () = self.stop.cancelled() => return,
            }
        }
        let Ok(far) = TcpStream::connect(target).await else {
            return;
        };
        let _ = near.set_nodelay(true);
        let _ = far.set_nodelay(true);
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        tokio::select! {
            () = self.pump(near_read, far_write, pair) => {}
            () = self.pump(far_read, near_write, pair) => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn pump(
        &self,
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
        pair: (IpAddr, IpAddr),
    ) {
        let mut cut = self.cut.subscribe();
        let mut buffer = vec![0; 64 * 1024];
        let mut was_cut = false;
        let mut free_at = Instant::now();
        loop {
            let Ok(n) = from.read(&mut buffer).await else {
                return;
            };
            if n == 0 {
                return;
            }
            while cut.borrow_and_update().contains(&pair) {
                was_cut = true;
                if cut.changed().await.is_err() {
                    return;
                }
            }
            // A real link would have lost the segments and the connection with them.
            if was_cut {
                return;
            }
            let rate = *self.rate.lock().expect("no panic while held");
            if let Some(nanos) = (n as u64 * 1_000_000_000).checked_div(rate) {
                // From when the link was free, not from now: sleeps are late, and would add up.
                let idle_since = Instant::now() - BURST;
                free_at = free_at.max(idle_since) + Duration::from_nanos(nanos);
                tokio::time::sleep_until(free_at).await;
            }
            if to.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if Arc::strong_count(&self.rate) == 1 {
            self.stop.cancel();
        }
    }
}
