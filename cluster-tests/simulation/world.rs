//! Machines, disks and links of a simulated run.

use futures_util::future::BoxFuture;
use roadstead::clock::Clock;
use roadstead::cluster::membership;
use roadstead::metadata::Kv;
use roadstead::metadata::Metadata;
use roadstead::metadata::Parts;
use roadstead::metadata::Timing;
use roadstead::metadata::identity;
use roadstead::peers::Connector;
use roadstead::peers::Io;
use roadstead::peers::Peers;
use roadstead::rpc;
use roadstead::tasks::Tasks;
use roadstead::telemetry::Metrics;
use roadstead::topology::Role;
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

pub const REGIONS: [&str; 3] = ["r1", "r2", "r3"];
pub const PAUSE: Duration = Duration::from_millis(100);
const PORT: u16 = 5010;
const PROFILE: &str = "local";

pub type Failure = Box<dyn std::error::Error>;
/// Something to do on a node, in its own runtime.
type Job = Box<dyn FnOnce(Metadata) -> BoxFuture<'static, ()> + Send>;

/// What outlives a machine: its disk, the way to reach it, and what its operator wants.
#[derive(Default)]
pub struct World {
    pub disks: Mutex<BTreeMap<&'static str, Kv>>,
    pub doors: Mutex<BTreeMap<&'static str, mpsc::UnboundedSender<Job>>>,
    pub power: Mutex<Vec<Power>>,
    pub scratch: PathBuf,
}

pub enum Power {
    Cut(&'static str),
    On(&'static str),
}

impl World {
    /// Runs `job` on the node; None when the node is down, or went down meanwhile.
    pub async fn on<T, F>(
        &self,
        node: &'static str,
        job: impl FnOnce(Metadata) -> F + Send + 'static,
    ) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |metadata| {
            Box::pin(async move {
                let _ = answer.send(job(metadata).await);
            })
        });
        let door = self.doors.lock().unwrap().get(node).cloned()?;
        door.send(job).ok()?;
        answered.await.ok()
    }

    pub async fn leader(&self) -> &'static str {
        loop {
            for node in REGIONS {
                let leads = self.on(node, |metadata| async move {
                    metadata.status().leader == Some(metadata.identity().node())
                });
                if leads.await == Some(true) {
                    return node;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn connector() -> Connector {
    Connector(Arc::new(|address| {
        Box::pin(async move {
            let stream = turmoil::net::TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }))
}

/// One machine, from power on. Like `node.rs`, without blobs.
pub async fn machine(world: Arc<World>, name: &'static str) -> Result<(), Failure> {
    let tasks = Tasks::new();
    let kv = world
        .disks
        .lock()
        .unwrap()
        .get(name)
        .cloned()
        .ok_or("no disk")?;
    let region = Some(name.parse()?);
    let address = format!("{name}:{PORT}");
    let identity = identity::load_or_create(&kv, region, Role::Voter, address).await?;
    let peers = Peers::new(identity.clone(), connector(), None, &tasks)?;
    let (is_first, is_new) = (name == REGIONS[0], identity.cluster().is_none());
    let seeds = [format!("{}:{PORT}", REGIONS[0])];
    if is_new && !is_first {
        membership::meet(&kv, &identity, &peers, &seeds, PROFILE, &tasks).await?;
    }
    let snapshots = world.scratch.join(name);
    std::fs::create_dir_all(&snapshots)?;
    let metadata = Metadata::start(Parts {
        kv,
        snapshots,
        identity,
        peers: peers.clone(),
        clock: Clock::simulated(),
        timing: Timing {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_secs(1),
            election_max: Duration::from_secs(2),
        },
        metrics: Metrics::new(),
        tasks: tasks.clone(),
    })
    .await?;
    tasks.spawn(listen(metadata.clone(), peers.clone(), tasks.clone()));
    if is_new && is_first {
        metadata.bootstrap().await?;
    } else if is_new {
        membership::join(&metadata, &peers, &seeds, PROFILE, &tasks).await?;
    }
    let (door, mut jobs) = mpsc::unbounded_channel::<Job>();
    world.doors.lock().unwrap().insert(name, door);
    while let Some(job) = jobs.recv().await {
        tasks.spawn(job(metadata.clone()));
    }
    Ok(())
}

async fn listen(metadata: Metadata, peers: Peers, tasks: Tasks) -> io::Result<()> {
    let router = rpc::router(metadata, peers, None, PROFILE.to_owned());
    let listener = turmoil::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tasks.spawn(rpc::serve_connection(
            stream,
            router.clone(),
            tasks.stop_token(),
        ));
    }
}
