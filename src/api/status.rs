//! How the cluster is, as one node sees it: from its own state, and from one question to every
//! other node, all asked at once and waited for a second at most. So the answer comes in any
//! state of the cluster, which is when it is needed.

use super::Api;
use super::types::Node;
use super::types::Region;
use super::types::State;
use super::types::StateHash;
use super::types::Status;
use crate::metadata::RaftStatus;
use crate::metadata::query::NodeInfo;
use crate::metadata::query::Placement;
use crate::proto::peer::v1::NodeStatusRequest;
use crate::proto::peer::v1::NodeStatusResponse;
use crate::topology::NodeId;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(1);

/// What each node says of itself; absent for one that did not answer in time.
pub(super) type Answers = BTreeMap<NodeId, NodeStatusResponse>;

/// Asks every node but this one, and answers for this one.
pub(super) async fn ask_all(api: &Api, nodes: &[NodeId]) -> io::Result<Answers> {
    let this = api.peers.identity().node();
    let others = nodes.iter().filter(|id| **id != this).map(|id| async move {
        let answer = tokio::time::timeout(
            PATIENCE,
            api.peers.node_status(*id, NodeStatusRequest {}, PATIENCE),
        )
        .await;
        (*id, answer)
    });
    let mut answers = Answers::new();
    for (id, answer) in join_all(others).await {
        match answer {
            Ok(Ok(answer)) => drop(answers.insert(id, answer)),
            Ok(Err(error)) => tracing::debug!(%error, "a node did not tell its status"),
            Err(_) => tracing::debug!(node = %id, "a node did not tell its status in time"),
        }
    }
    answers.insert(this, api.own_status()?);
    Ok(answers)
}

pub(super) async fn status(api: &Api) -> io::Result<Status> {
    let view = api.metadata.view();
    let nodes = members(&api.metadata.status(), view.nodes()?);
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    // A node that has just started has not heard from the leader yet, and need not say so.
    let (answers, _) = tokio::join!(ask_all(api, &ids), api.metadata.hear_leader(PATIENCE));
    let (answers, raft) = (answers?, api.metadata.status());
    let (hash_index, hash) = view.state_hash()?;
    let cluster = view.cluster()?;
    let facts = Facts {
        this: api.peers.identity().node(),
        placements: view.placements()?,
        under_replicated: view.under_replicated()?,
        round_trips: ids
            .iter()
            .filter_map(|id| Some((*id, api.peers.round_trip(*id)?)))
            .collect(),
        heartbeat: api.heartbeat,
        raft,
        nodes,
        answers,
    };
    let mut status = facts.judge();
    status.state_hash = StateHash {
        index: hash_index,
        hash: hex::encode(hash),
    };
    if let Some(cluster) = cluster {
        status.cluster_id = cluster.cluster_id;
        status.lineage = cluster.lineage;
    }
    Ok(status)
}

/// The record of each node, and those that Raft knows but that have not started here yet.
fn members(raft: &RaftStatus, mut nodes: Vec<NodeInfo>) -> Vec<NodeInfo> {
    for (id, node) in &raft.members {
        if nodes.iter().any(|known| known.id == *id) {
            continue;
        }
        nodes.push(NodeInfo {
            id: *id,
            region: node.region.clone(),
            peer: node.peer.clone(),
            role: node.role,
            boot: 0,
            listed: false,
            gone: false,
            draining: false,
            version: String::new(),
        });
    }
    nodes
}

/// How many voters may still be lost: those that live beyond the quorum.
pub fn failure_tolerance(voters: usize, live_voters: usize) -> usize {
    let quorum = voters / 2 + 1;
    live_voters.saturating_sub(quorum)
}

/// All that a verdict rests on, gathered before it is given.
struct Facts {
    this: NodeId,
    raft: RaftStatus,
    nodes: Vec<NodeInfo>,
    answers: Answers,
    placements: Vec<Placement>,
    under_replicated: u64,
    round_trips: BTreeMap<NodeId, Duration>,
    heartbeat: Duration,
}

#[derive(Default)]
struct Holdings {
    blobs: u64,
    bytes: u64,
    missing: u64,
    sole: u64,
}

impl Facts {
    fn judge(&self) -> Status {
        let regions = self.regions();
        let leader = self.raft.leader.filter(|id| self.answers.contains_key(id));
        let live = self
            .raft
            .voters
            .iter()
            .filter(|id| self.answers.contains_key(id))
            .count();
        let writable = leader.is_some() && self.raft.writable;
        let reasons = self.reasons(&regions, leader, writable);
        Status {
            cluster_id: String::new(),
            lineage: String::new(),
            healthy: reasons.is_empty(),
            writable,
            reasons,
            warnings: self.warnings(),
            failure_tolerance: failure_tolerance(self.raft.voters.len(), live),
            leader: leader.and_then(|id| self.region_of(id)),
            term: self.raft.term,
            under_replicated_blobs: self.under_replicated,
            state_hash: StateHash {
                index: 0,
                hash: String::new(),
            },
            regions,
        }
    }

    fn region_of(&self, id: NodeId) -> Option<String> {
        self.nodes
            .iter()
            .find(|node| node.id == id)
            .map(|node| node.region.to_string())
    }

    fn reasons(&self, regions: &[Region], leader: Option<NodeId>, writable: bool) -> Vec<String> {
        let mut reasons = Vec::new();
        if leader.is_none() {
            reasons.push("no leader: pulls go on, pushes wait".to_owned());
        } else if !writable {
            reasons.push(
                "the leader reaches no quorum, or not this region: pulls go on, pushes wait"
                    .to_owned(),
            );
        }
        for region in regions.iter().filter(|region| region.state != State::Up) {
            reasons.push(format!("region {} is {}", region.name, region.state));
        }
        match self.under_replicated {
            0 => {}
            1 => reasons.push("1 blob has fewer copies than it should".to_owned()),
            n => reasons.push(format!("{n} blobs have fewer copies than they should")),
        }
        reasons
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (id, round_trip) in &self.round_trips {
            if *round_trip * 2 > self.heartbeat {
                let region = self.region_of(*id).unwrap_or_else(|| id.to_string());
                warnings.push(format!(
                    "the round trip to {region} is {:.0} ms: choose a raft.profile for longer distances",
                    round_trip.as_secs_f64() * 1000.0
                ));
            }
        }
        warnings
    }

    fn regions(&self) -> Vec<Region> {
        let mut by_region: BTreeMap<&str, Vec<&NodeInfo>> = BTreeMap::new();
        for node in &self.nodes {
            by_region
                .entry(node.region.as_str())
                .or_default()
                .push(node);
        }
        by_region
            .into_iter()
            .map(|(name, nodes)| self.region(name, &nodes))
            .collect()
    }

    fn region(&self, name: &str, infos: &[&NodeInfo]) -> Region {
        let furthest = self
            .answers
            .values()
            .map(|answer| answer.applied)
            .max()
            .unwrap_or(0);
        let nodes: Vec<Node> = infos.iter().map(|info| self.node(info)).collect();
        let best = nodes.iter().min_by_key(|node| node.state);
        let applied_index = best.map_or(0, |node| node.applied_index);
        let holdings = self.holdings(infos);
        let answer = infos.iter().find_map(|info| self.answers.get(&info.id));
        let round_trip = infos
            .iter()
            .filter(|info| info.id != self.this && self.answers.contains_key(&info.id))
            .find_map(|info| self.round_trips.get(&info.id));
        Region {
            name: name.to_owned(),
            role: infos[0].role,
            state: best.map_or(State::Unreachable, |node| node.state),
            applied_index,
            lag: furthest.saturating_sub(applied_index),
            round_trip_ms: round_trip.map(|rt| (rt.as_secs_f64() * 10_000.0).round() / 10.0),
            blobs_held: holdings.blobs,
            blobs_missing: holdings.missing,
            bytes_held: holdings.bytes,
            sole_copies: holdings.sole,
            disk_total: answer
                .map(|answer| answer.disk_total)
                .filter(|total| *total > 0),
            disk_free: answer
                .filter(|answer| answer.disk_total > 0)
                .map(|answer| answer.disk_free),
            version: answer
                .map_or(&infos[0].version, |answer| &answer.version)
                .clone(),
            nodes,
        }
    }

    /// What the record says of the blobs of one region.
    fn holdings(&self, infos: &[&NodeInfo]) -> Holdings {
        let here = |node: &NodeId| infos.iter().any(|info| info.id == *node);
        let keeps_blobs = infos.iter().any(|info| info.role.keeps_blobs());
        let mut holdings = Holdings::default();
        for placement in &self.placements {
            if placement.holders.iter().any(here) {
                holdings.blobs += placement.blobs;
                holdings.bytes += placement.bytes;
                if placement.holders.iter().all(here) {
                    holdings.sole += placement.blobs;
                }
            } else if keeps_blobs {
                holdings.missing += placement.blobs;
            }
        }
        holdings
    }

    fn node(&self, info: &NodeInfo) -> Node {
        let matching = || {
            self.raft
                .progress
                .iter()
                .find(|p| p.0 == info.id)
                .map(|p| p.1)
        };
        let applied = self
            .answers
            .get(&info.id)
            .map(|answer| answer.applied)
            .or_else(matching);
        let in_role = info.boot > 0 && (!info.role.votes() || self.raft.voters.contains(&info.id));
        let state = if !self.answers.contains_key(&info.id) {
            State::Unreachable
        } else if !in_role {
            State::Joining
        } else if info.draining {
            State::Draining
        } else {
            State::Up
        };
        Node {
            id: info.id.to_string(),
            role: info.role,
            state,
            applied_index: applied.unwrap_or(0),
            peer: info.peer.clone(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::policy::Wanted;
    use crate::topology::Role;

    fn info(id: u64, region: &str) -> NodeInfo {
        NodeInfo {
            id: NodeId(id),
            region: region.parse().unwrap(),
            peer: format!("127.0.0.1:501{id}"),
            role: Role::Voter,
            boot: 1,
            listed: true,
            gone: false,
            draining: false,
            version: "0.1.0".to_owned(),
        }
    }

    fn three(answering: &[u64]) -> Facts {
        let answer = |id: &u64| {
            let answer = NodeStatusResponse {
                applied: 40 + id,
                ..NodeStatusResponse::default()
            };
            (NodeId(*id), answer)
        };
        Facts {
            this: NodeId(2),
            raft: RaftStatus {
                leader: Some(NodeId(1)),
                term: 3,
                applied: 42,
                last_log: 43,
                voters: vec![NodeId(1), NodeId(2), NodeId(3)],
                members: Vec::new(),
                writable: true,
                progress: vec![(NodeId(3), 39, None)],
            },
            nodes: vec![info(1, "r1"), info(2, "r2"), info(3, "r3")],
            answers: answering.iter().map(answer).collect(),
            placements: vec![
                Placement {
                    holders: vec![NodeId(1), NodeId(2), NodeId(3)],
                    wanted: Wanted::default(),
                    blobs: 9,
                    bytes: 900,
                },
                Placement {
                    holders: vec![NodeId(1)],
                    wanted: Wanted::default(),
                    blobs: 1,
                    bytes: 50,
                },
            ],
            under_replicated: 0,
            round_trips: BTreeMap::from([(NodeId(1), Duration::from_micros(1240))]),
            heartbeat: Duration::from_millis(200),
        }
    }

    pub(crate) fn sample() -> Status {
        three(&[1, 2, 3]).judge()
    }

    pub(crate) fn sample_without_the_leader() -> Status {
        three(&[2, 3]).judge()
    }

    #[test]
    fn the_failure_tolerance_is_the_live_voters_beyond_the_quorum() {
        for (voters, live, tolerance) in [
            (1, 1, 0),
            (2, 2, 0),
            (3, 3, 1),
            (3, 2, 0),
            (3, 1, 0),
            (4, 4, 1),
            (5, 5, 2),
            (7, 6, 2),
        ] {
            assert_eq!(
                failure_tolerance(voters, live),
                tolerance,
                "{live} of {voters}"
            );
        }
    }

    #[test]
    fn three_regions_that_answer_are_healthy() {
        let status = sample();
        assert!(status.healthy && status.writable, "{status:?}");
        assert_eq!(status.failure_tolerance, 1);
        assert_eq!(status.leader.as_deref(), Some("r1"));
        assert_eq!(status.regions[0].round_trip_ms, Some(1.2));
        assert_eq!(status.regions[0].lag, 2);
        assert_eq!(status.regions[2].lag, 0);
        let blobs = |i: usize| {
            let region = &status.regions[i];
            (
                region.blobs_held,
                region.bytes_held,
                region.blobs_missing,
                region.sole_copies,
            )
        };
        assert_eq!(blobs(0), (10, 950, 0, 1));
        assert_eq!(blobs(1), (9, 900, 1, 0));
    }

    #[test]
    fn a_leader_that_does_not_answer_is_no_leader() {
        let status = sample_without_the_leader();
        assert!(!status.healthy && !status.writable);
        assert_eq!((status.failure_tolerance, status.leader), (0, None));
        assert_eq!(status.regions[0].state, State::Unreachable);
        assert_eq!(status.reasons[1], "region r1 is unreachable");
    }

    #[test]
    fn a_voter_to_be_is_joining_until_it_votes() {
        let mut facts = three(&[1, 2, 3]);
        facts.raft.voters.pop();
        let status = facts.judge();
        assert_eq!(status.regions[2].state, State::Joining);
        assert!(!status.healthy && status.writable);
    }

    #[test]
    fn the_json_has_the_documented_names() {
        let json = serde_json::to_value(sample()).unwrap();
        for name in [
            "cluster_id",
            "lineage",
            "healthy",
            "writable",
            "reasons",
            "failure_tolerance",
            "leader",
            "term",
            "under_replicated_blobs",
            "state_hash",
            "regions",
        ] {
            assert!(json.get(name).is_some(), "{name}");
        }
        for name in [
            "name",
            "role",
            "state",
            "applied_index",
            "lag",
            "round_trip_ms",
            "blobs_held",
            "blobs_missing",
            "bytes_held",
            "sole_copies",
            "version",
            "nodes",
        ] {
            assert!(json["regions"][0].get(name).is_some(), "{name}");
        }
        assert_eq!(json["regions"][0]["role"], "voter");
        assert_eq!(json["regions"][0]["state"], "up");
        assert_eq!(json["regions"][0]["nodes"][0]["id"], "0000000000000001");
    }
}
