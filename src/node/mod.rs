//! Builds every part of a node, starts every task, and stops them in reverse. The only module that
//! sees every layer.
//!
//! A listener is bound before anything is written, so that a wrong address costs nothing. The
//! ops listener answers from the start; the peer listener before the node asks to be let in,
//! since a leader then calls back.

pub mod certificates;
mod error;
pub mod member;

pub use error::NodeError;

use crate::api;
use crate::audit::Audit;
use crate::blobs::BlobStore;
use crate::certs::ListenerTls;
use crate::certs::PeerTls;
use crate::certs::Wire;
use crate::certs::refusal;
use crate::clock::Clock;
use crate::cluster::replication;
use crate::config::Config;
use crate::http;
use crate::login;
use crate::login::Front;
use crate::login::Login;
use crate::metadata::Kv;
use crate::metadata::kv;
use crate::ops;
use crate::ops::Health;
use crate::ops::Purpose;
use crate::peers::Connector;
use crate::registry;
use crate::registry::Registry;
use crate::rpc;
use crate::server;
use crate::server::Connection;
use crate::server::Limits;
use crate::server::ListenError;
use crate::server::Server;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use certificates::Certificates;
use member::Member;
use member::Parts;
use member::Place;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

/// For the requests under way when the node is told to stop.
const FINISH: Duration = Duration::from_secs(10);
/// For loops to notice that they are to stop, and for peers' transfers to end.
const WIND_DOWN: Duration = Duration::from_secs(5);

/// Total and free bytes of the blob volume.
type Disk = Arc<dyn Fn() -> io::Result<(u64, u64)> + Send + Sync>;

/// A node that runs, and all that must be stopped again.
pub struct Node {
    member: Member,
    registry: Option<Registry>,
    health: Health,
    servers: Servers,
    tasks: Tasks,
    /// Held until the process ends.
    _lock: File,
}

struct Servers {
    /// Absent on a witness.
    registry: Option<Server>,
    peer: Server,
    ops: Server,
}

/// Runs a node until the process is told to stop.
pub async fn run(config: Config) -> Result<(), NodeError> {
    let stopped = stop_signal().map_err(NodeError::Serve)?;
    let mut stopped = std::pin::pin!(stopped);
    let tasks = Tasks::new();
    let started = tokio::select! {
        started = Node::start(config, tasks.clone()) => started,
        () = &mut stopped => {
            wind_down(&tasks).await;
            return Ok(());
        }
    };
    let node = started?;
    let entered = tokio::select! {
        entered = node.enter() => entered,
        () = &mut stopped => {
            node.stop().await;
            return Ok(());
        }
    };
    if entered.is_ok() {
        stopped.await;
    }
    node.stop().await;
    entered
}

/// Ends on the first TERM or INT.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

impl Node {
    /// Everything runs when this returns; the node may not be in its cluster yet.
    pub async fn start(config: Config, tasks: Tasks) -> Result<Node, NodeError> {
        let lock = lock_data_dir(&config.data_dir)?;
        let listeners = Listeners::bind(&config).await?;
        let metrics = Metrics::new();
        let health = Health::default();
        let ops = Server::http(
            "ops",
            listeners.ops,
            Limits::ops(),
            None,
            ops::router(health.clone(), metrics.clone()),
        )
        .map_err(NodeError::Serve)?;

        let peer_address = match &config.peer_advertise {
            Some(address) => address.clone(),
            None => {
                let bound = listeners.peer.local_addr().map_err(NodeError::Serve)?;
                bound.to_string()
            }
        };
        let place = Place {
            region: config.region.clone(),
            role: config.role,
            peer_address,
            entrance: config.entrance.clone(),
            profile: config.profile,
        };
        let source = Some(config.peer_listen.ip()).filter(|ip| !ip.is_unspecified());
        let parts = Parts {
            kv: open_store(&config, &tasks).await?,
            clock: Clock::System,
            connector: Connector::tcp(source),
            source,
            snapshots: config.data_dir.join("meta").join("snapshots"),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            certificates: Certificates::of(&config),
        };
        // Before it waits for others: a wrong file is told at once.
        let registry_tls = match &config.registry_tls {
            Some(files) => Some(ListenerTls::open(files.clone(), &tasks)?),
            None => None,
        };
        let member = Member::start(place, parts).await?;
        let (metadata, peers) = (member.metadata(), member.peers());
        let identity = member.identity();

        let audit = Audit::open(&config.data_dir.join("audit"), identity.region().as_str());
        let audit = audit.map_err(NodeError::Audit)?;
        let proxies = config.trusted_proxies.clone();
        let login = Login::start(login::Parts {
            metadata: metadata.clone(),
            audit,
            front: Front {
                external_urls: config.external_urls.clone(),
                is_proxy: Arc::new(move |ip| proxies.contains(ip)),
            },
            tasks: tasks.clone(),
            has_accounts: config.accounts,
            data_dir: config.data_dir.clone(),
            max_stale: config.auth_max_stale,
        });
        if !config.accounts {
            tracing::warn!(
                registry = %config.registry_listen,
                "there are no accounts (--no-auth): whoever reaches the registry may do everything"
            );
        }
        let api = |disk: Disk| api::Api {
            metadata: metadata.clone(),
            peers: peers.clone(),
            disk,
            heartbeat: config.profile.timing().heartbeat,
            raft_profile: config.profile.as_str(),
            login: login.clone(),
            tasks: tasks.clone(),
        };
        let no_disk: Disk = Arc::new(|| Ok((0, 0)));

        // A witness keeps no blobs and serves no registry. The directory knows its role best.
        let (registry, registry_server, peer_router, api) = match identity.role().keeps_blobs() {
            false => (None, None, member.router(None), api(no_disk)),
            true => {
                let listener = server::bind("registry", config.registry_listen).await?;
                let root = config.data_dir.join("blobs");
                let (blobs, bad_copies) =
                    BlobStore::open(&root, identity.node(), metrics.clone()).await?;
                let registry = Registry::start(registry::Parts {
                    metadata: metadata.clone(),
                    blobs: blobs.clone(),
                    bad_copies,
                    peers: peers.clone(),
                    metrics: metrics.clone(),
                    tasks: tasks.clone(),
                    has_accounts: config.accounts,
                });
                let registry = registry.map_err(NodeError::State)?;
                let api = api(Arc::new(move || blobs.disk()));
                let routes = http::router(registry.clone(), login.clone());
                let routes = api::router(api.clone(), routes);
                let limits = Limits::registry(config.connections_per_address);
                warn_if_open(&config);
                let server = Server::http("registry", listener, limits, registry_tls, routes)
                    .map_err(NodeError::Serve)?;
                let peer_router = member.router(Some(registry.clone()));
                (Some(registry), Some(server), peer_router, api)
            }
        };
        let socket = server::local::socket_in(&config.data_dir);
        if let Err(error) = server::local::serve(&socket, api::routes(api), &tasks) {
            // Mostly a path that is too long for a socket; all else goes on without it.
            tracing::warn!(%error, socket = %socket.display(), "open the node's own socket; `--data-dir` will not reach this node");
        }
        let peer = Server::start("peer", listeners.peer, Limits::peer(), {
            let tls = member.tls().cloned();
            move |stream, connection| {
                serve_peer(tls.clone(), stream, connection, peer_router.clone())
            }
        })
        .map_err(NodeError::Serve)?;
        let servers = Servers {
            registry: registry_server,
            peer,
            ops,
        };
        Ok(Node {
            member,
            registry,
            health,
            servers,
            tasks,
            _lock: lock,
        })
    }

    /// Gets the node into its cluster, which may take as long as its peers let it wait.
    pub async fn enter(&self) -> Result<(), NodeError> {
        self.member.enter().await?;
        let registry = self.registry.clone();
        if let Some(registry) = &registry {
            replication::start(registry, &self.tasks);
        }
        let metadata = self.member.metadata().clone();
        self.health
            .entered(move |purpose| match (&registry, purpose) {
                (Some(registry), Purpose::Reads) => registry.takes_pulls(),
                (Some(registry), Purpose::Writes) => registry.takes_pushes(),
                (None, _) => metadata.status().leader.is_some(),
            });
        let identity = self.member.identity();
        tracing::info!(
            node = %identity.node(),
            region = %identity.region(),
            role = %identity.role(),
            registry = self.servers.registry.as_ref().map(|s| s.address().to_string()),
            peer = %self.servers.peer.address(),
            ops = %self.servers.ops.address(),
            "this node is in its cluster"
        );
        Ok(())
    }

    /// Stops in the order in which clients and the cluster notice least: no new requests, those
    /// under way end, another node leads, then everything else.
    pub async fn stop(self) {
        tracing::info!("stopping");
        self.health.stopping();
        if let Some(server) = self.servers.registry {
            server.stop(FINISH).await;
        }
        self.member.metadata().shutdown().await;
        wind_down(&self.tasks).await;
        self.servers.peer.stop(WIND_DOWN).await;
        self.servers.ops.stop(WIND_DOWN).await;
        if let Err(error) = self.member.metadata().sync().await {
            tracing::warn!(%error, "sync the metadata store before the end");
        }
        tracing::info!("stopped");
    }
}

/// One connection of another node.
async fn serve_peer(
    tls: Option<PeerTls>,
    stream: TcpStream,
    connection: Connection,
    router: axum::Router,
) {
    let Some(tls) = tls else {
        return rpc::serve_connection(stream, Wire::Plain, router, connection.stop).await;
    };
    let client = connection.client;
    let shaken = tokio::select! {
        shaken = tls.accept(stream) => shaken,
        () = connection.stop.cancelled() => return,
    };
    match shaken {
        Ok((stream, wire)) => {
            rpc::serve_connection(stream, wire, router, connection.stop).await;
        }
        Err(error) => match refusal(&error) {
            Some(why) => tracing::info!(%client, why, "a caller's certificate is not accepted"),
            None => tracing::debug!(%client, %error, "a connection did not become one of a node"),
        },
    }
}

/// There may be a proxy with TLS before it: told, not refused.
fn warn_if_open(config: &Config) {
    let address = config.registry_listen;
    if !address.ip().is_loopback() && config.registry_tls.is_none() {
        tracing::warn!(
            %address,
            "the registry speaks plain HTTP where other machines reach it: set registry.cert and registry.key, or put a proxy with TLS before it"
        );
    }
}

async fn wind_down(tasks: &Tasks) {
    if tokio::time::timeout(WIND_DOWN, tasks.stop_and_wait())
        .await
        .is_err()
    {
        tracing::warn!("some tasks did not stop in time");
    }
}

struct Listeners {
    peer: TcpListener,
    ops: TcpListener,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Listeners, ListenError> {
        Ok(Listeners {
            peer: server::bind("peer", config.peer_listen).await?,
            ops: server::bind("ops", config.ops_listen).await?,
        })
    }
}

/// Creates the directory, readable by its owner only, and claims it for this process.
fn lock_data_dir(path: &Path) -> Result<File, NodeError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |source| NodeError::DataDir {
        path: path.to_owned(),
        source,
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join("lock"))
        .map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(NodeError::InUse {
            path: path.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

async fn open_store(config: &Config, tasks: &Tasks) -> Result<Kv, NodeError> {
    let (path, cache_mib) = (config.data_dir.join("meta"), config.cache_mib);
    let opened = tasks
        .spawn_blocking(move || Kv::open_sled(&path, cache_mib))
        .await;
    match opened {
        Ok(opened) => Ok(opened?),
        // The store's reader gave up on what it found: the same news for an operator.
        Err(_) => Err(NodeError::Store(kv::OpenError::Damaged {
            path: config.data_dir.join("meta"),
            what: "it cannot be read".to_owned(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_serves_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new").join("node");
        let held = lock_data_dir(&path).unwrap();
        assert!(matches!(lock_data_dir(&path), Err(NodeError::InUse { .. })));
        drop(held);
        lock_data_dir(&path).unwrap();
    }
}
