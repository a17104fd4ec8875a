//! Letting a node into the group: learner first, caught up, then voter.
//!
//! What must stay true: each step looks at the present membership, so that a joiner that asks again
//! goes on where it was; one node is let in at a time; a step that has begun ends, whether or not the
//! caller still waits, since half a change of voters would leave two quorums to be found.

use super::Metadata;
use super::raft_types::TypeConfig;
use super::raft_types::node_from_pb;
use crate::proto::peer::v1 as pb;
use crate::proto::state::v1::Blank;
use crate::topology::Node;
use crate::topology::NodeId;
use openraft::ChangeMembers;
use openraft::RaftMetrics;
use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

/// How long a leader waits for a learner to catch up before the joiner has to ask again.
const CATCH_UP: Duration = Duration::from_secs(45);
/// A learner that lacks so many entries or fewer delays no write when it becomes a voter.
const CAUGHT_UP: u64 = 100;
const MOST_VOTERS: usize = 7;

enum NotIn {
    NotLeader,
    /// Asking again does not help; says what does.
    Refused(String),
    Failed(String),
}

impl NotIn {
    fn failed(error: impl std::fmt::Display) -> NotIn {
        NotIn::Failed(error.to_string())
    }
}

impl Metadata {
    /// Leader only (else NotLeader). Can be repeated at any point.
    pub async fn serve_join(&self, request: pb::JoinRequest) -> pb::JoinResponse {
        use pb::join_response::Result as Answer;
        let not_leader = |leader: Option<NodeId>| {
            Answer::NotLeader(pb::NotLeader {
                leader: leader.map_or(0, |leader| leader.0),
            })
        };
        let node = NodeId(request.node);
        let result = match self.let_in(request).await {
            Ok(()) => Answer::Joined(Blank {}),
            Err(NotIn::NotLeader) => not_leader(self.other_leader()),
            Err(NotIn::Refused(why)) => Answer::Refused(why),
            Err(NotIn::Failed(why)) => {
                tracing::warn!(%node, %why, "a node is not in yet; it will ask again");
                not_leader(None)
            }
        };
        pb::JoinResponse {
            result: Some(result),
        }
    }

    async fn let_in(&self, request: pb::JoinRequest) -> Result<(), NotIn> {
        let id = NodeId(request.node);
        let info = request
            .info
            .ok_or_else(|| refused("a join without a node"))?;
        let node = node_from_pb(&info).map_err(|error| refused(error.to_string()))?;
        if id.0 == 0 || node.peer.is_empty() {
            return Err(refused("a join without a node id or an address"));
        }
        let votes = node.role.votes();
        self.step(|me| me.add_learner(id, node)).await?;
        if votes {
            self.wait_until_caught_up(id).await?;
            self.step(move |me| me.add_voter(id)).await?;
        }
        Ok(())
    }

    /// Runs to its end in a task of the node.
    async fn step<F>(&self, step: impl FnOnce(Metadata) -> F) -> Result<(), NotIn>
    where
        F: Future<Output = Result<(), NotIn>> + Send + 'static,
    {
        self.inner
            .tasks
            .spawn(step(self.clone()))
            .await
            .map_err(NotIn::failed)?
    }

    async fn add_learner(self, id: NodeId, node: Node) -> Result<(), NotIn> {
        let _one_at_a_time = self.inner.joining.lock().await;
        if self.leading().is_none() {
            return Err(NotIn::NotLeader);
        }
        // Its first node creates it while it is alone.
        if self.view().cluster().map_err(NotIn::failed)?.is_none() {
            return Err(NotIn::Failed("the cluster is not created yet".to_owned()));
        }
        if self.view().is_removed(id).map_err(NotIn::failed)? {
            return Err(refused(format!(
                "node {id} was removed from this cluster for ever; start it with an empty data \
                 directory, and so under a new id"
            )));
        }
        let status = self.status();
        check_place(id, &node, &status.members, status.voters.len()).map_err(NotIn::Refused)?;
        if !status.members.iter().any(|(member, _)| *member == id) {
            let region = node.region.clone();
            self.raft
                .add_learner(id.0, node, false)
                .await
                .map_err(NotIn::failed)?;
            tracing::info!(node = %id, %region, "a node is in, as a learner");
        }
        Ok(())
    }

    async fn wait_until_caught_up(&self, id: NodeId) -> Result<(), NotIn> {
        let decided = |metrics: &RaftMetrics<TypeConfig>| match &metrics.replication {
            Some(matching) => {
                let at = matching
                    .get(&id.0)
                    .and_then(|at| at.as_ref().map(|at| at.index));
                at.is_some_and(|at| at + CAUGHT_UP >= metrics.last_log_index.unwrap_or(0))
            }
            // It no longer leads.
            None => true,
        };
        let wait = self.raft.wait(Some(CATCH_UP));
        wait.metrics(decided, "a learner catches up")
            .await
            .map(|_| ())
            .map_err(NotIn::failed)
    }

    async fn add_voter(self, id: NodeId) -> Result<(), NotIn> {
        let _one_at_a_time = self.inner.joining.lock().await;
        if self.leading().is_none() {
            return Err(NotIn::NotLeader);
        }
        let metrics = self.raft_metrics();
        let membership = metrics.membership_config.membership();
        let is_half_done = membership.get_joint_config().len() > 1;
        if is_half_done || !membership.voter_ids().any(|voter| voter == id.0) {
            let add = ChangeMembers::AddVoterIds(BTreeSet::from([id.0]));
            self.raft
                .change_membership(add, true)
                .await
                .map_err(NotIn::failed)?;
            tracing::info!(node = %id, "a node votes");
        }
        Ok(())
    }
}

fn refused(why: impl Into<String>) -> NotIn {
    NotIn::Refused(why.into())
}

/// May `node` be a member beside these? The error says what stands in the way, and the way out.
fn check_place(
    id: NodeId,
    node: &Node,
    members: &[(NodeId, Node)],
    voters: usize,
) -> Result<(), String> {
    for (other, member) in members.iter().filter(|(other, _)| *other != id) {
        if member.region == node.region {
            return Err(format!(
                "region {} is a member already, as node {other}; remove that one first, or start \
                 this one under another region name",
                node.region
            ));
        }
        if member.peer == node.peer {
            return Err(format!(
                "{} is the peer address of region {} already; advertise another one (peer.advertise)",
                node.peer, member.region
            ));
        }
    }
    match members.iter().find(|(member, _)| *member == id) {
        Some((_, member)) if member.region != node.region => Err(format!(
            "node {id} is a member already, as region {}; start it under that name",
            member.region
        )),
        None if node.role.votes() && voters >= MOST_VOTERS => Err(format!(
            "the cluster has {voters} voters, which is the most; join region {} with role learner",
            node.region
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Role;

    fn node(region: &str) -> Node {
        let peer = format!("{region}:5010");
        Node {
            region: region.parse().unwrap(),
            peer,
            role: Role::Voter,
        }
    }

    #[test]
    fn a_region_name_and_an_address_are_taken_once_and_a_node_may_ask_again() {
        let members = [(NodeId(1), node("r1")), (NodeId(2), node("r2"))];
        assert_eq!(check_place(NodeId(3), &node("r3"), &members, 2), Ok(()));
        assert_eq!(check_place(NodeId(2), &node("r2"), &members, 2), Ok(()));
        let why = check_place(NodeId(3), &node("r1"), &members, 2).unwrap_err();
        assert!(why.contains("region r1") && why.contains("remove"), "{why}");
        let same_address = Node {
            region: "r4".parse().unwrap(),
            ..node("r1")
        };
        let why = check_place(NodeId(3), &same_address, &members, 2).unwrap_err();
        assert!(why.contains("r1:5010"), "{why}");
        let why = check_place(NodeId(1), &node("r9"), &members, 2).unwrap_err();
        assert!(why.contains("as region r1"), "{why}");
    }

    #[test]
    fn an_eighth_voter_is_refused_and_an_eighth_learner_is_not() {
        let why = check_place(NodeId(9), &node("r9"), &[], 7).unwrap_err();
        assert!(why.contains("learner"), "{why}");
        let learner = Node {
            role: Role::Learner,
            ..node("r9")
        };
        assert_eq!(check_place(NodeId(9), &learner, &[], 7), Ok(()));
    }
}
