//! Speaking to other nodes: who we are, where they are, connections kept per peer and use, round
//! trips measured. Every call has a deadline and says what became of it (`PeerError`).

mod blobs;
mod calls;
mod dialing;
pub mod envelope;
#[cfg(test)]
mod tests;
mod uploads;

pub use blobs::SIZE_HEADER;
pub use calls::Channel;
pub use uploads::{UploadCall, UploadVerb};

use crate::certs::PeerTls;
use crate::oci::Digest;
use crate::tasks::Tasks;
use crate::topology::{NodeId, RegionName, Role};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};

/// A peer that answered within this time is reachable.
const REACHABLE: Duration = Duration::from_secs(3);
const PING_EVERY: Duration = Duration::from_secs(1);
const CONNECT: Duration = Duration::from_secs(2);
/// A connection on which the other side's kernel answers nothing for so long.
const DEAD_AFTER: Duration = Duration::from_secs(30);

/// This node, as it introduces itself. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<IdentityInner>,
}

struct IdentityInner {
    node: NodeId,
    region: RegionName,
    role: Role,
    boot: u64,
    peer_address: String,
    cluster: RwLock<Option<ClusterIdentity>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterIdentity {
    pub cluster_id: String,
    pub lineage: String,
}

impl Identity {
    /// `peer_address`: host:port at which others reach it.
    pub fn new(
        node: NodeId,
        region: RegionName,
        role: Role,
        boot: u64,
        peer_address: String,
        cluster: Option<ClusterIdentity>,
    ) -> Identity {
        let cluster = RwLock::new(cluster);
        Identity {
            inner: Arc::new(IdentityInner {
                node,
                region,
                role,
                boot,
                peer_address,
                cluster,
            }),
        }
    }

    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    pub fn region(&self) -> &RegionName {
        &self.inner.region
    }

    pub fn role(&self) -> Role {
        self.inner.role
    }

    pub fn boot(&self) -> u64 {
        self.inner.boot
    }

    pub fn peer_address(&self) -> &str {
        &self.inner.peer_address
    }

    /// None until bootstrapped or joined.
    pub fn cluster(&self) -> Option<ClusterIdentity> {
        self.inner
            .cluster
            .read()
            .expect("no panic while held")
            .clone()
    }

    pub fn set_cluster(&self, cluster: ClusterIdentity) {
        *self.inner.cluster.write().expect("no panic while held") = Some(cluster);
    }
}

/// A byte stream to or from a peer: TCP, or a simulated one.
pub trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

type Connecting = BoxFuture<'static, io::Result<Box<dyn Io>>>;

/// How to reach `host:port`. Injected, so that a simulation brings its own network.
#[derive(Clone)]
pub struct Connector(pub Arc<dyn Fn(String) -> Connecting + Send + Sync>);

impl Connector {
    /// Calls leave from `source`, when given: the address of the peer listener, so that a firewall
    /// can know a node by one address.
    pub fn tcp(source: Option<IpAddr>) -> Connector {
        Connector(Arc::new(move |address| Box::pin(connect(address, source))))
    }
}

async fn connect(address: String, source: Option<IpAddr>) -> io::Result<Box<dyn Io>> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
    for target in tokio::net::lookup_host(&address).await? {
        let socket = match target {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        if let Some(source) = source.filter(|source| source.is_ipv4() == target.is_ipv4()) {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        match socket.connect(target).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(Box::new(stream));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What became of a call to a peer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It surely did not happen: no connection, or no address.
    #[error("peer {0} cannot be reached: {1}")]
    Unreachable(NodeId, String),
    /// It may have happened: the deadline passed, or the connection broke.
    #[error("peer {0} did not answer: {1}")]
    Unclear(NodeId, String),
    /// It answered, and refused.
    #[error("peer {0} refused: {1}")]
    Refused(NodeId, String),
    /// It answered that it does not have this blob.
    #[error("peer {0} does not have {1}")]
    NotThere(NodeId, Digest),
}

struct Known {
    region: RegionName,
    address: String,
    round_trip: Option<Duration>,
    heard_at: Option<Instant>,
    known_at: Instant,
}

#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    connector: Connector,
    /// None: nodes speak plain, on loopback or in a simulation.
    tls: Option<PeerTls>,
    /// To read blobs, and to send them: a receiver answers only when it has all, so there the
    /// sender watches its own progress.
    reading: reqwest::Client,
    sending: reqwest::Client,
    known: Arc<RwLock<BTreeMap<NodeId, Known>>>,
    channels: Mutex<HashMap<(NodeId, Channel), (String, tonic::transport::Channel)>>,
}

impl Peers {
    /// `source`: the address that blob transfers leave from, as with `Connector::tcp`.
    pub fn new(
        identity: Identity,
        connector: Connector,
        source: Option<IpAddr>,
        tls: Option<PeerTls>,
        tasks: &Tasks,
    ) -> reqwest::Result<Peers> {
        let known = Arc::default();
        let http = || {
            let builder = reqwest::Client::builder().no_proxy();
            let builder = match &tls {
                // A machine without CA certificates must not matter.
                None => builder.tls_certs_only([]),
                Some(tls) => builder
                    .tls_backend_preconfigured(tls.client())
                    .dns_resolver(dialing::Names::new(&known)),
            };
            builder
                .http1_only()
                .tcp_nodelay(true)
                .connect_timeout(CONNECT)
                .pool_max_idle_per_host(8)
                .local_address(source)
        };
        let (reading, sending) = (http(), http());
        let inner = Inner {
            identity,
            connector,
            tls: tls.clone(),
            reading: reading.read_timeout(blobs::NO_PROGRESS).build()?,
            // Its calls last as long as a body does. A peer that died without a word is noticed.
            sending: sending
                .tcp_keepalive(DEAD_AFTER / 3)
                .tcp_keepalive_interval(DEAD_AFTER / 6)
                .tcp_keepalive_retries(4)
                .tcp_user_timeout(DEAD_AFTER)
                .build()?,
            known: known.clone(),
            channels: Mutex::default(),
        };
        let peers = Peers {
            inner: Arc::new(inner),
        };
        let (pinging, stop) = (peers.clone(), tasks.stop_token());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = pinging.ping_all() => {}
            }
        });
        Ok(peers)
    }

    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// Whether certificates that this CA signs are taken by this node.
    pub fn trusts(&self, ca: &[u8]) -> bool {
        let tls = self.inner.tls.as_ref();
        tls.is_some_and(|tls| tls.material().ca().iter().any(|trusted| **trusted == *ca))
    }

    /// Where another node is. A changed address takes new connections.
    pub fn learn(&self, node: NodeId, region: &RegionName, address: &str) {
        if node == self.inner.identity.node() {
            return;
        }
        let mut known = self.inner.known.write().expect("no panic while held");
        if known
            .get(&node)
            .is_none_or(|known| known.address != address || known.region != *region)
        {
            let (region, address) = (region.clone(), address.to_owned());
            known.insert(
                node,
                Known {
                    region,
                    address,
                    round_trip: None,
                    heard_at: None,
                    known_at: Instant::now(),
                },
            );
        }
    }

    pub fn address(&self, node: NodeId) -> Option<(RegionName, String)> {
        let known = self.inner.known.read().expect("no panic while held");
        known
            .get(&node)
            .map(|known| (known.region.clone(), known.address.clone()))
    }

    /// Smoothed; None while unknown or unreachable.
    pub fn round_trip(&self, node: NodeId) -> Option<Duration> {
        let known = self.inner.known.read().expect("no panic while held");
        known
            .get(&node)
            .filter(|known| is_recent(known))
            .and_then(|known| known.round_trip)
    }

    pub fn is_reachable(&self, node: NodeId) -> bool {
        let known = self.inner.known.read().expect("no panic while held");
        known.get(&node).is_some_and(is_recent)
    }

    /// The same, and of one that there was no time to hear from yet: this node has just started.
    pub fn is_worth_a_try(&self, node: NodeId) -> bool {
        let known = self.inner.known.read().expect("no panic while held");
        known.get(&node).is_some_and(|known| {
            is_recent(known) || known.heard_at.is_none() && known.known_at.elapsed() < REACHABLE
        })
    }

    /// Known nodes but this one: nearest first, unreachable ones last.
    pub fn by_distance(&self) -> Vec<NodeId> {
        let known = self.inner.known.read().expect("no panic while held");
        let mut nodes: Vec<_> = known
            .iter()
            .map(|(id, known)| {
                (
                    !is_recent(known),
                    known.round_trip.unwrap_or(Duration::MAX),
                    *id,
                )
            })
            .collect();
        nodes.sort();
        nodes.into_iter().map(|(_, _, id)| id).collect()
    }

    fn heard(&self, node: NodeId, took: Duration) {
        let mut known = self.inner.known.write().expect("no panic while held");
        if let Some(known) = known.get_mut(&node) {
            known.heard_at = Some(Instant::now());
            known.round_trip = Some(
                known
                    .round_trip
                    .map_or(took, |before| (before * 7 + took) / 8),
            );
        }
    }

    /// One ping a second to each node, whether or not another one answers.
    async fn ping_all(&self) {
        let mut tick = tokio::time::interval(PING_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut under_way = BTreeSet::new();
        let mut pings = FuturesUnordered::new();
        let mut seen = BTreeMap::new();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    self.say_changes(&mut seen);
                    let idle = self.by_distance().into_iter().filter(|node| under_way.insert(*node));
                    pings.extend(idle.map(|node| self.measure(node)));
                }
                Some(node) = pings.next() => {
                    under_way.remove(&node);
                }
            }
        }
    }

    /// One line when a node is lost, and one when it is back.
    fn say_changes(&self, seen: &mut BTreeMap<NodeId, bool>) {
        let known = self.inner.known.read().expect("no panic while held");
        for (node, known) in known.iter() {
            let now = is_recent(known);
            let (region, address) = (&known.region, &known.address);
            match (seen.insert(*node, now), now) {
                (Some(true), false) => {
                    tracing::warn!(%node, %region, address, "a node does not answer any more")
                }
                (Some(false), true) => tracing::info!(%node, %region, address, "a node answers"),
                _ => {}
            }
        }
    }

    async fn measure(&self, node: NodeId) -> NodeId {
        let sent = Instant::now();
        if self.ping(node, CONNECT).await.is_ok() {
            self.heard(node, sent.elapsed());
        }
        node
    }
}

fn is_recent(known: &Known) -> bool {
    known.heard_at.is_some_and(|at| at.elapsed() < REACHABLE)
}
