//! What this node knows of the Raft group, for `status` and readiness.

use super::Metadata;
use super::raft_types::TypeConfig;
use crate::proto::state::v1 as pb;
use crate::topology::Node;
use crate::topology::NodeId;
use openraft::RaftMetrics;
use openraft::alias::LogIdOf;
use openraft::async_runtime::Instant;
use std::collections::BTreeSet;
use std::time::Duration;

/// A leader that answered within this time, after a round of a quorum, can take writes.
const ANSWERED: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub struct RaftStatus {
    pub leader: Option<NodeId>,
    pub term: u64,
    pub applied: u64,
    pub last_log: u64,
    pub voters: Vec<NodeId>,
    pub members: Vec<(NodeId, Node)>,
    /// Whether this node, as leader or by its last answer, knows of a quorum that answers.
    pub writable: bool,
    /// Per member, on the leader: last known matching index and time since it last answered.
    pub progress: Vec<(NodeId, u64, Option<Duration>)>,
}

impl Metadata {
    pub fn status(&self) -> RaftStatus {
        let metrics = self.raft_metrics();
        let membership = &metrics.membership_config;
        let leader = metrics.current_leader.map(NodeId);
        let answered = self
            .freshness()
            .answered_within(ANSWERED, self.inner.clock.now());
        RaftStatus {
            leader,
            term: metrics.current_term,
            applied: *self.applied().borrow(),
            last_log: metrics.last_log_index.unwrap_or(0),
            voters: membership.voter_ids().map(NodeId).collect(),
            members: membership
                .nodes()
                .map(|(id, node)| (NodeId(*id), node.clone()))
                .collect(),
            writable: leader.is_some() && answered,
            progress: progress(&metrics),
        }
    }

    /// As far as this node knows.
    pub fn leads(&self) -> bool {
        self.leader() == Some(self.id())
    }

    /// What each member has in its log of what this node has applied, for the next tick.
    pub(super) fn acknowledged(&self) -> Vec<pb::Acknowledged> {
        let applied = *self.applied().borrow();
        let of = |(node, at, _): (NodeId, u64, _)| pb::Acknowledged {
            node: node.0,
            index: at.min(applied),
        };
        progress(&self.raft_metrics()).into_iter().map(of).collect()
    }

    /// Is the entry in the logs of so many regions, as this leader knows?
    pub(super) fn is_logged(&self, index: u64, regions: usize) -> bool {
        let metrics = self.raft_metrics();
        let membership = &metrics.membership_config;
        if membership.voter_ids().count() / 2 + 1 >= regions {
            return true;
        }
        let has_it = |id: &u64| {
            *id == metrics.id
                || progress(&metrics)
                    .iter()
                    .any(|(node, at, _)| node.0 == *id && *at >= index)
        };
        let with_it = membership.nodes().filter(|(id, _)| has_it(id));
        with_it
            .map(|(_, node)| &node.region)
            .collect::<BTreeSet<_>>()
            .len()
            >= regions
    }

    /// The voter to lead next: of those that answered lately, the one with most of the log.
    pub(super) fn successor(&self) -> Option<NodeId> {
        let metrics = self.raft_metrics();
        let lately = self.inner.timing.heartbeat * 4;
        let me = self.id();
        let voters: Vec<NodeId> = metrics.membership_config.voter_ids().map(NodeId).collect();
        progress(&metrics)
            .into_iter()
            .filter(|(node, ..)| *node != me && voters.contains(node))
            .filter(|(_, _, silent)| silent.is_some_and(|silent| silent < lately))
            .max_by_key(|(_, matching, _)| *matching)
            .map(|(node, ..)| node)
    }
}

fn progress(metrics: &RaftMetrics<TypeConfig>) -> Vec<(NodeId, u64, Option<Duration>)> {
    let Some(replication) = &metrics.replication else {
        return Vec::new();
    };
    let silent = |id: &u64| {
        let heard = metrics.heartbeat.as_ref()?.get(id)?.as_ref()?;
        Some(heard.elapsed())
    };
    let of = |(id, at): (&u64, &Option<LogIdOf<TypeConfig>>)| {
        (
            NodeId(*id),
            at.as_ref().map_or(0, |at| at.index),
            silent(id),
        )
    };
    replication.iter().map(of).collect()
}
