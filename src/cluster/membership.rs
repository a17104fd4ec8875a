//! How a node gets into a cluster: it meets one of its members, learns which cluster that is, and
//! asks to be let in until the leader has done so. Every step can be repeated.

use crate::certs::FileError;
use crate::metadata::Metadata;
use crate::metadata::identity::belong_to;
use crate::metadata::kv::Kv;
use crate::peers::Identity;
use crate::peers::PeerError;
use crate::peers::Peers;
use crate::proto::peer::v1 as pb;
use crate::proto::state::v1 as state;
use crate::tasks::Tasks;
use std::time::Duration;

const HELLO: Duration = Duration::from_secs(3);
const JOIN: Duration = Duration::from_secs(60);
pub(super) const PAUSE: Duration = Duration::from_millis(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("the cluster refused this node: {0}")]
    Refused(String),
    #[error("the node was told to stop before it was let in")]
    Stopped,
    #[error(transparent)]
    Certificate(#[from] FileError),
    #[error("metadata store")]
    Io(#[from] std::io::Error),
}

/// Which cluster is it? Asks each address in turn, until one knows.
pub async fn meet(
    kv: &Kv,
    identity: &Identity,
    peers: &Peers,
    addresses: &[String],
    profile: &str,
    tasks: &Tasks,
) -> Result<(), JoinError> {
    let mut pause = PAUSE;
    loop {
        for address in addresses {
            match peers.hello(address, HELLO).await {
                Ok(hello) if hello.cluster_id.is_empty() => {
                    tracing::info!(address, "that node does not belong to a cluster yet");
                }
                Ok(hello) if hello.raft_profile != profile => {
                    return Err(JoinError::Refused(format!(
                        "it runs raft profile {:?}, this node {profile:?}: set [raft] profile alike",
                        hello.raft_profile
                    )));
                }
                Ok(hello) => {
                    return Ok(belong_to(kv, identity, &hello.cluster_id, &hello.lineage).await?);
                }
                Err(PeerError::Refused(_, why)) => return Err(JoinError::Refused(why)),
                Err(error) => tracing::info!(address, %error, "no answer yet"),
            }
        }
        wait(&mut pause, tasks).await?;
    }
}

/// Asks to be let in, until this node is a member with the role that it asked for.
pub async fn join(
    metadata: &Metadata,
    peers: &Peers,
    addresses: &[String],
    profile: &str,
    tasks: &Tasks,
) -> Result<(), JoinError> {
    use pb::join_response::Result as Answer;
    let identity = metadata.identity();
    let info = state::Node {
        region: identity.region().to_string(),
        peer: identity.peer_address().to_owned(),
        role: state::Role::from(identity.role()).into(),
    };
    let request = pb::JoinRequest {
        node: identity.node().0,
        info: Some(info),
        raft_profile: profile.to_owned(),
    };
    let mut pause = PAUSE;
    loop {
        for address in addresses {
            match peers
                .join(address, request.clone(), JOIN)
                .await
                .map(|response| response.result)
            {
                Ok(Some(Answer::Joined(_))) => return Ok(()),
                Ok(Some(Answer::Refused(why))) | Err(PeerError::Refused(_, why)) => {
                    return Err(JoinError::Refused(why));
                }
                Ok(_) => tracing::info!(address, "not let in yet"),
                Err(error) => tracing::info!(address, %error, "not let in yet"),
            }
        }
        wait(&mut pause, tasks).await?;
    }
}

pub(super) async fn wait(pause: &mut Duration, tasks: &Tasks) -> Result<(), JoinError> {
    tokio::select! {
        () = tasks.stopped() => return Err(JoinError::Stopped),
        () = tokio::time::sleep(*pause) => {}
    }
    *pause = (*pause * 2).min(LONGEST_PAUSE);
    Ok(())
}
