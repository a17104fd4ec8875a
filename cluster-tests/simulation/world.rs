//! Machines, disks and links of a simulated run.

use futures_util::future::BoxFuture;
use roadstead::certs::Wire;
use roadstead::clock::Clock;
use roadstead::config::Entrance;
use roadstead::config::Profile;
use roadstead::metadata::Kv;
use roadstead::metadata::Metadata;
use roadstead::node::certificates::Certificates;
use roadstead::node::member::Member;
use roadstead::node::member::Parts;
use roadstead::node::member::Place;
use roadstead::peers::Connector;
use roadstead::peers::Io;
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

/// One machine, from power on: a whole member, on parts of the simulation.
pub async fn machine(world: Arc<World>, name: &'static str) -> Result<(), Failure> {
    let tasks = Tasks::new();
    let disk = world.disks.lock().unwrap().get(name).cloned();
    let snapshots = world.scratch.join(name);
    std::fs::create_dir_all(&snapshots)?;
    let parts = Parts {
        kv: disk.ok_or("no disk")?,
        clock: Clock::simulated(),
        connector: connector(),
        source: None,
        snapshots,
        metrics: Metrics::new(),
        tasks: tasks.clone(),
        certificates: Certificates::Plain,
    };
    let place = Place {
        region: Some(name.parse()?),
        role: Role::Voter,
        peer_address: format!("{name}:{PORT}"),
        entrance: match name == REGIONS[0] {
            true => Entrance::Bootstrap,
            false => Entrance::Join(vec![format!("{}:{PORT}", REGIONS[0])]),
        },
        profile: Profile::Local,
    };
    let member = Member::start(place, parts).await?;
    tasks.spawn(listen(member.router(None), tasks.clone()));
    member.enter().await?;
    let (door, mut jobs) = mpsc::unbounded_channel::<Job>();
    world.doors.lock().unwrap().insert(name, door);
    while let Some(job) = jobs.recv().await {
        tasks.spawn(job(member.metadata().clone()));
    }
    Ok(())
}

async fn listen(router: axum::Router, tasks: Tasks) -> io::Result<()> {
    let listener = turmoil::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tasks.spawn(rpc::serve_connection(
            stream,
            Wire::Plain,
            router.clone(),
            tasks.stop_token(),
        ));
    }
}
