//! Follows what Raft says of itself: who leads, who is a member and where, and whether it still
//! runs. A node whose Raft has ended is of no use and may do harm, so the process ends with it.

use super::Metadata;
use super::raft_types::TypeConfig;
use crate::stderr;
use crate::topology::NodeId;
use openraft::RaftMetrics;
use openraft::async_runtime::WatchReceiver;
use std::collections::BTreeMap;
use tokio::sync::watch;

/// The leader as this node knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leader {
    pub node: Option<NodeId>,
    pub term: u64,
}

impl Metadata {
    pub(super) fn raft_metrics(&self) -> RaftMetrics<TypeConfig> {
        self.raft.metrics().borrow_watched().clone()
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        self.inner.leader.borrow().node
    }

    /// Wakes when another leader is known, or none.
    pub(super) fn leader_changes(&self) -> watch::Receiver<Leader> {
        self.inner.leader.subscribe()
    }

    /// Members by the newest membership in the log, or by the newest committed one.
    pub(super) fn members(&self) -> Vec<NodeId> {
        let metrics = self.raft_metrics();
        let newest = metrics.membership_config.nodes();
        let committed = metrics.committed_membership_config.nodes();
        let all: BTreeMap<u64, ()> = newest.chain(committed).map(|(id, _)| (*id, ())).collect();
        all.into_keys().map(NodeId).collect()
    }

    /// A member that no entry in the log removes, by a membership that is committed.
    pub(super) fn is_member(&self, node: NodeId) -> bool {
        let metrics = self.raft_metrics();
        let newest = metrics
            .membership_config
            .nodes()
            .any(|(id, _)| *id == node.0);
        newest
            && metrics
                .committed_membership_config
                .nodes()
                .any(|(id, _)| *id == node.0)
    }

    pub(super) async fn follow(self) {
        let mut updates = self.raft.metrics();
        let mut installed = self.inner.state.installed();
        let mut membership = None;
        loop {
            let metrics = self.raft_metrics();
            self.end_with_raft(&metrics);
            self.publish_leader(&metrics);
            if installed.has_changed().unwrap_or(false) {
                installed.mark_unchanged();
                self.freshness().forget();
            }
            if membership.as_ref() != Some(&metrics.membership_config) {
                self.learn_addresses(&metrics);
                membership = Some(metrics.membership_config);
            }
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                changed = updates.changed() => if changed.is_err() {
                    self.end_with_raft(&self.raft_metrics());
                    return;
                }
            }
        }
    }

    fn publish_leader(&self, metrics: &RaftMetrics<TypeConfig>) {
        let now = Leader {
            node: metrics.current_leader.map(NodeId),
            term: metrics.current_term,
        };
        let before = *self.inner.leader.borrow();
        if before == now {
            return;
        }
        self.inner.leader.send_replace(now);
        if let Some(leader) = now.node.filter(|_| now.node != before.node) {
            self.inner.metrics.leader_changes.inc();
            tracing::info!(%leader, term = now.term, "another leader");
        }
    }

    fn learn_addresses(&self, metrics: &RaftMetrics<TypeConfig>) {
        let me = self.id();
        for (id, node) in metrics.membership_config.nodes() {
            if NodeId(*id) != me {
                self.inner
                    .peers
                    .learn(NodeId(*id), &node.region, &node.peer);
            }
        }
    }

    fn end_with_raft(&self, metrics: &RaftMetrics<TypeConfig>) {
        if let Err(error) = &metrics.running_state
            && !self.inner.stop.is_cancelled()
        {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "Raft has ended, so this process does too; the error says what to repair before it is started again"
            );
            stderr::exit(1);
        }
    }
}
