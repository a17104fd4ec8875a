//! A proposal at the leader: appended, committed, applied here, and answered only once no fresh node
//! can miss it, also when it was found applied already (A9, A13, A15).

use super::Metadata;
use super::answers::Wait;
use super::leader::pointer;
use crate::durability;
use crate::durability::Room;
use crate::oci::RepositoryName;
use crate::proto::peer::v1 as peer;
use crate::proto::peer::v1::propose_response::Result as Proposal;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use crate::topology::NodeId;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::errors::RaftError;
use prost::Message;
use std::io;
use std::time::Duration;

/// How much may be under way at the leader at once (A13).
pub(super) const PROPOSALS_KIB: u32 = 32 * 1024;

/// A proposer that asks for more is cut to this.
const LONGEST_PROPOSAL: Duration = Duration::from_secs(120);

/// What became of a proposal at this node.
pub(super) enum Proposed {
    Decided(pb::Outcome),
    /// Nothing was proposed.
    NotLeader(Option<NodeId>),
    /// It may have been proposed.
    Unknown,
}

impl Metadata {
    pub async fn serve_propose(
        &self,
        from: NodeId,
        request: peer::ProposeRequest,
    ) -> peer::ProposeResponse {
        let Some(command) = request.command.filter(|c| is_from(c, from)) else {
            let message = "a proposal carries the request id of the node that sends it".to_owned();
            let refused = pb::Refused {
                reason: pb::Reason::Invalid.into(),
                message,
            };
            let result = Some(pb::outcome::Result::Refused(refused));
            let outcome = pb::Outcome { index: 0, result };
            return peer::ProposeResponse {
                result: Some(Proposal::Outcome(outcome)),
            };
        };
        let limit = Duration::from_millis(request.deadline_ms).min(LONGEST_PROPOSAL);
        let proposed = tokio::time::timeout(limit, self.propose_here(command)).await;
        let result = match proposed.unwrap_or(Proposed::Unknown) {
            Proposed::Decided(outcome) => Some(Proposal::Outcome(outcome)),
            Proposed::NotLeader(leader) => Some(not_leader(leader)),
            // No result says that the outcome is not known.
            Proposed::Unknown => None,
        };
        peer::ProposeResponse { result }
    }

    /// Proposes as the leader, and waits until no fresh node can miss the outcome.
    pub(super) async fn propose_here(&self, command: pb::Command) -> Proposed {
        if self.leading().is_none() {
            return Proposed::NotLeader(self.other_leader());
        }
        // The repository that is pushed to.
        let pushed = match &command.body {
            Some(Body::PutManifest(put)) => Some(put.repository.clone()),
            _ => None,
        };
        if pushed.is_some()
            && let Err(error) = self.check_room()
        {
            return Proposed::Decided(disk_full(&error));
        }
        let outcome = match self.append(command).await {
            Proposed::Decided(outcome) => outcome,
            other => return other,
        };
        // Receipts to renew are not recorded: there is nothing that a reader could miss.
        if matches!(outcome.result, Some(pb::outcome::Result::NeedReceipts(_))) {
            return Proposed::Decided(outcome);
        }
        let logged = match pushed.and_then(|name| name.parse().ok()) {
            Some(repository) => self.wait_logged(outcome.index, &repository).await,
            None => true,
        };
        match logged && self.wait_visible(outcome.index).await {
            true => Proposed::Decided(outcome),
            false => Proposed::Unknown,
        }
    }

    /// Pushes end before the volume of the metadata store is full; what makes room goes on (A14).
    pub(super) fn check_room(&self) -> io::Result<()> {
        durability::check_room(&self.inner.snapshots, Room::Manifests)
    }

    /// A push is answered only when as many regions have it in their logs as have to hold its
    /// blobs; where a majority of the voters is as many, being committed says it (A15).
    async fn wait_logged(&self, index: u64, repository: &RepositoryName) -> bool {
        let mut updates = self.raft.metrics();
        loop {
            let Ok(needed) = self.view().ack_needed(repository) else {
                return false;
            };
            if self.is_logged(index, needed) {
                return true;
            }
            if self.leading().is_none() || updates.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Runs to its end, so that what is under way stays counted when the proposer no longer waits.
    pub(super) async fn append(&self, command: pb::Command) -> Proposed {
        let kib = u32::try_from(command.encoded_len() / 1024 + 1).unwrap_or(PROPOSALS_KIB);
        let room = self
            .inner
            .proposals
            .clone()
            .acquire_many_owned(kib.min(PROPOSALS_KIB))
            .await;
        let Ok(room) = room else {
            return Proposed::NotLeader(None);
        };
        let raft = self.raft.clone();
        let write = self.inner.tasks.to_the_end(async move {
            let written = raft.client_write(command).await;
            drop(room);
            written
        });
        match write.await {
            Ok(response) => {
                let mut outcome = response.data;
                if outcome.index == 0 {
                    outcome.index = response.log_id.index;
                }
                Proposed::Decided(outcome)
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Proposed::NotLeader(forward.leader_id.map(NodeId))
            }
            Err(_) => Proposed::Unknown,
        }
    }

    /// False when this node stopped leading first: the next leader has to wait for it again.
    async fn wait_visible(&self, index: u64) -> bool {
        // A wait belongs to one leadership; the next one begins its own.
        let mut wait = (0, Wait::new(index));
        loop {
            let Some(leadership) = self.leading() else {
                return false;
            };
            if wait.0 != leadership.term {
                wait = (leadership.term, Wait::new(index));
            }
            let mut news = leadership.news.subscribe();
            let mut leader = self.leader_changes();
            leadership.heard(self.id(), *self.applied().borrow());
            let members = self.members();
            let now = self.inner.clock.now();
            let visible = leadership.answers().visible(&mut wait.1, &members, now);
            let Err(look_again) = visible else {
                return true;
            };
            tokio::select! {
                () = tokio::time::sleep(look_again.saturating_sub(now)) => {}
                _ = news.changed() => {}
                _ = leader.changed() => {}
            }
        }
    }
}

fn disk_full(error: &io::Error) -> pb::Outcome {
    let refused = pb::Refused {
        reason: pb::Reason::DiskFull.into(),
        message: format!("the metadata volume of the leader: {error}"),
    };
    pb::Outcome {
        index: 0,
        result: Some(pb::outcome::Result::Refused(refused)),
    }
}

fn is_from(command: &pb::Command, from: NodeId) -> bool {
    command
        .request
        .as_ref()
        .is_some_and(|request| request.node == from.0)
}

fn not_leader(leader: Option<NodeId>) -> Proposal {
    Proposal::NotLeader(pointer(leader))
}
