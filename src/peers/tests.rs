//! What a caller is told when there is nobody, nothing, or no answer.

use super::*;
use crate::proto::peer::v1::AppliedRequest;
use tokio::net::TcpListener;

const ME: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);

fn peers(tasks: &Tasks) -> Peers {
    let region = "r1".parse().unwrap();
    let identity = Identity::new(ME, region, Role::Voter, 1, "127.0.0.1:1".to_owned(), None);
    Peers::new(identity, Connector::tcp(None), None, None, tasks).unwrap()
}

async fn ask(peers: &Peers) -> PeerError {
    let within = Duration::from_secs(1);
    peers
        .applied(PEER, AppliedRequest { above: 0 }, within)
        .await
        .unwrap_err()
}

#[tokio::test]
async fn a_call_that_surely_did_not_happen_is_told_from_one_that_may_have() {
    let tasks = Tasks::new();
    let peers = peers(&tasks);
    assert!(
        matches!(ask(&peers).await, PeerError::Unreachable(PEER, _)),
        "no address"
    );

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let region = "r2".parse().unwrap();
    peers.learn(PEER, &region, &address);
    // Connected, and never answered: the kernel accepts for the listener.
    assert!(
        matches!(ask(&peers).await, PeerError::Unclear(PEER, _)),
        "no answer"
    );
    assert!(!peers.is_reachable(PEER));
    assert!(
        peers.is_worth_a_try(PEER),
        "there was no time to hear from it"
    );
    drop(listener);

    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    peers.learn(PEER, &region, &free.to_string());
    let error = ask(&peers).await;
    assert!(
        matches!(error, PeerError::Unreachable(PEER, _)),
        "nobody listens: {error}"
    );
    let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let error = peers.read_blob(PEER, &digest, 0).await.unwrap_err();
    assert!(
        matches!(error, PeerError::Unreachable(PEER, _)),
        "nobody listens: {error}"
    );
    tasks.stop_and_wait().await;
}

#[tokio::test]
async fn the_nearest_node_comes_first_and_this_one_never() {
    let tasks = Tasks::new();
    let peers = peers(&tasks);
    let region = "r2".parse().unwrap();
    for node in [ME, NodeId(2), NodeId(3), NodeId(4)] {
        peers.learn(node, &region, "127.0.0.1:1");
    }
    peers.heard(NodeId(3), Duration::from_millis(20));
    peers.heard(NodeId(4), Duration::from_millis(10));
    assert_eq!(peers.by_distance(), [NodeId(4), NodeId(3), NodeId(2)]);
    assert_eq!(peers.round_trip(NodeId(4)), Some(Duration::from_millis(10)));
    assert_eq!(peers.round_trip(NodeId(2)), None);
    // At another address it is another link.
    peers.learn(NodeId(4), &region, "127.0.0.1:2");
    assert_eq!(peers.round_trip(NodeId(4)), None);
    tasks.stop_and_wait().await;
}
