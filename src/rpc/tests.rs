//! The peer listener as peers see it: real sockets on loopback.

use super::router;
use super::serve_connection;
use crate::budget::Budget;
use crate::certs::Wire;
use crate::clock::Clock;
use crate::cluster::membership;
use crate::metadata::Kv;
use crate::metadata::Metadata;
use crate::metadata::Parts;
use crate::metadata::Timing;
use crate::metadata::identity;
use crate::peers::Connector;
use crate::peers::Identity;
use crate::peers::PeerError;
use crate::peers::Peers;
use crate::proto::peer::v1::NodeStatusRequest;
use crate::proto::state::v1::Probe;
use crate::proto::state::v1::command::Body;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::topology::NodeId;
use crate::topology::Role;
use std::time::Duration;
use tokio::net::TcpListener;

const PROFILE: &str = "local";
const LIMIT: Duration = Duration::from_secs(30);

struct Node {
    kv: Kv,
    identity: Identity,
    peers: Peers,
    metadata: Metadata,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

async fn node(region: &str, role: Role, seeds: &[String]) -> Node {
    let tasks = Tasks::new();
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let kv = Kv::memory();
    let name = Some(region.parse().unwrap());
    let identity = identity::load_or_create(&kv, name, role, address)
        .await
        .unwrap();
    let peers = Peers::new(identity.clone(), Connector::tcp(None), None, None, &tasks).unwrap();
    if !seeds.is_empty() {
        membership::meet(&kv, &identity, &peers, seeds, PROFILE, &tasks)
            .await
            .unwrap();
    }
    let metadata = Metadata::start(Parts {
        kv: kv.clone(),
        snapshots: dir.path().to_owned(),
        identity: identity.clone(),
        peers: peers.clone(),
        clock: Clock::System,
        timing: Timing {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_secs(1),
            election_max: Duration::from_secs(2),
        },
        metrics: Metrics::new(),
        tasks: tasks.clone(),
    });
    let metadata = metadata.await.unwrap();
    let routes = router(metadata.clone(), peers.clone(), None, PROFILE.to_owned());
    let owner = tasks.clone();
    tasks.spawn(async move {
        loop {
            let (stream, _) = tokio::select! {
                () = owner.stopped() => return,
                accepted = listener.accept() => accepted.unwrap(),
            };
            let stop = owner.stop_token();
            owner.spawn(serve_connection(stream, Wire::Plain, routes.clone(), stop));
        }
    });
    Node {
        kv,
        identity,
        peers,
        metadata,
        tasks,
        _dir: dir,
    }
}

impl Node {
    async fn join(&self, seed: &Node) -> Result<(), membership::JoinError> {
        let seeds = [seed.identity.peer_address().to_owned()];
        membership::join(&self.metadata, &self.peers, &seeds, PROFILE, &self.tasks).await
    }

    async fn probe(&self) -> u64 {
        self.metadata
            .write(Body::Probe(Probe {}), Budget::default())
            .await
            .unwrap()
            .index
    }

    async fn wait_applied(&self, index: u64) {
        let mut applied = self.metadata.applied();
        tokio::time::timeout(LIMIT, applied.wait_for(|at| *at >= index))
            .await
            .unwrap()
            .unwrap();
    }

    async fn stop(&self) {
        self.metadata.shutdown().await;
        self.tasks.stop_and_wait().await;
    }
}

async fn first() -> Node {
    let first = node("r1", Role::Voter, &[]).await;
    first.metadata.bootstrap().await.unwrap();
    first
}

async fn next(seed: &Node, region: &str, role: Role) -> Node {
    node(region, role, &[seed.identity.peer_address().to_owned()]).await
}

#[tokio::test]
async fn nodes_join_and_each_applies_what_any_of_them_writes() {
    let first = first().await;
    let second = next(&first, "r2", Role::Voter).await;
    second.join(&first).await.unwrap();
    let learner = next(&second, "r3", Role::Learner).await;
    // Through a node that does not lead, and a second time: both end as the first one did.
    learner.join(&second).await.unwrap();
    learner.join(&first).await.unwrap();

    let status = first.metadata.status();
    let mut voters = [first.identity.node(), second.identity.node()];
    voters.sort();
    assert_eq!(status.voters, voters);
    assert_eq!(status.members.len(), 3);
    for node in [&first, &second, &learner] {
        let index = node.probe().await;
        for other in [&first, &second, &learner] {
            other.wait_applied(index).await;
        }
    }
    for node in [&learner, &second, &first] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_region_name_that_is_taken_and_another_profile_are_refused_with_the_way_out() {
    let first = first().await;
    let same = next(&first, "r1", Role::Voter).await;
    match same.join(&first).await {
        Err(membership::JoinError::Refused(why)) => {
            assert!(why.contains("region r1") && why.contains("remove"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    let seeds = [first.identity.peer_address().to_owned()];
    let (kv, identity, peers) = (&same.kv, &same.identity, &same.peers);
    match membership::meet(kv, identity, peers, &seeds, "global", &same.tasks).await {
        Err(membership::JoinError::Refused(why)) => assert!(why.contains("profile"), "{why}"),
        other => panic!("{other:?}"),
    }
    same.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn a_call_that_is_meant_for_another_node_is_refused_before_it_is_read() {
    let first = first().await;
    let second = next(&first, "r2", Role::Learner).await;
    let region = "r9".parse().unwrap();
    let stranger = NodeId(0xbad);
    second
        .peers
        .learn(stranger, &region, first.identity.peer_address());
    match second
        .peers
        .node_status(stranger, NodeStatusRequest {}, LIMIT)
        .await
    {
        Err(PeerError::Refused(_, why)) => {
            assert!(why.contains(&first.identity.node().to_string()), "{why}");
        }
        other => panic!("{other:?}"),
    }
    // The same for blobs, which are not gRPC, and for the ping that says who is reachable.
    let url = format!("http://{}/blobs/x", first.identity.peer_address());
    let answer = reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .get(url)
        .send();
    assert_eq!(
        answer.await.unwrap().status(),
        http::StatusCode::MISDIRECTED_REQUEST
    );
    assert!(!second.peers.is_reachable(stranger));
    second.stop().await;
    first.stop().await;
}
