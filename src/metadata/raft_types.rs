//! Where openraft's types meet ours. Everything stored or sent is our own protobuf, so that a new
//! openraft changes this folder and no byte on disk or wire. Decoding never panics: bytes that make
//! no sense are `InvalidData`.

use crate::proto::state::v1 as pb;
use crate::topology::{Node, Role};
use openraft::entry::RaftEntry;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;

openraft::declare_raft_types!(
    pub TypeConfig:
        D = pb::Command,
        R = pb::Outcome,
        NodeId = u64,
        Node = Node
);

pub type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub type Membership = openraft::Membership<u64, Node>;
type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;

impl fmt::Display for pb::Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.request {
            Some(id) => write!(f, "command {:016x}/{}/{}", id.node, id.boot, id.seq),
            None => f.write_str("command"),
        }
    }
}

pub fn invalid(what: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

pub fn decode<T: Message + Default>(what: &str, bytes: &[u8]) -> io::Result<T> {
    T::decode(bytes).map_err(|error| invalid(format!("{what}: {error}")))
}

pub fn log_id_to_pb(id: &LogId) -> pb::LogId {
    let leader = id.committed_leader_id();
    pb::LogId {
        term: leader.term,
        node: leader.node_id,
        index: id.index(),
    }
}

pub fn log_id_from_pb(id: &pb::LogId) -> LogId {
    LogId::new(
        LeaderId {
            term: id.term,
            node_id: id.node,
        },
        id.index,
    )
}

pub fn vote_to_pb(vote: &Vote) -> pb::Vote {
    pb::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

pub fn vote_from_pb(vote: &pb::Vote) -> Vote {
    Vote {
        leader_id: LeaderId {
            term: vote.term,
            node_id: vote.node,
        },
        committed: vote.committed,
    }
}

/// A message without its vote is refused; there is no sensible default.
pub fn required_vote(vote: Option<&pb::Vote>) -> io::Result<Vote> {
    vote.map(vote_from_pb)
        .ok_or_else(|| invalid("a Raft message without a vote"))
}

pub fn node_to_pb(node: &Node) -> pb::Node {
    pb::Node {
        region: node.region.to_string(),
        peer: node.peer.clone(),
        role: pb::Role::from(node.role).into(),
    }
}

pub fn node_from_pb(node: &pb::Node) -> io::Result<Node> {
    let role = pb::Role::try_from(node.role).unwrap_or(pb::Role::Unspecified);
    let region = node.region.parse().map_err(invalid)?;
    Ok(Node {
        region,
        peer: node.peer.clone(),
        role: Role::from(role),
    })
}

pub fn membership_to_pb(membership: &Membership) -> pb::Membership {
    pb::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| pb::VoterSet {
                nodes: voters.iter().copied().collect(),
            })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| (*id, node_to_pb(node)))
            .collect(),
    }
}

pub fn membership_from_pb(membership: &pb::Membership) -> io::Result<Membership> {
    let configs: Vec<BTreeSet<u64>> = membership
        .configs
        .iter()
        .map(|set| set.nodes.iter().copied().collect())
        .collect();
    let mut nodes = BTreeMap::new();
    for (id, node) in &membership.nodes {
        nodes.insert(*id, node_from_pb(node)?);
    }
    Membership::new(configs, nodes).map_err(invalid)
}

pub fn stored_membership_to_pb(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        id: stored.log_id().as_ref().map(log_id_to_pb),
        membership: Some(membership_to_pb(stored.membership())),
    }
}

pub fn stored_membership_from_pb(stored: &pb::StoredMembership) -> io::Result<StoredMembership> {
    match &stored.membership {
        Some(membership) if !(membership.configs.is_empty() && membership.nodes.is_empty()) => {
            let membership = membership_from_pb(membership)?;
            Ok(StoredMembership::new(
                stored.id.as_ref().map(log_id_from_pb),
                membership,
            ))
        }
        _ => Ok(StoredMembership::default()),
    }
}

pub fn entry_to_pb(entry: &Entry) -> pb::Entry {
    use pb::entry::Payload;
    let payload = match &entry.payload {
        openraft::EntryPayload::Blank => Payload::Blank(pb::Blank {}),
        openraft::EntryPayload::Normal(command) => Payload::Command(command.clone()),
        openraft::EntryPayload::Membership(membership) => {
            Payload::Membership(membership_to_pb(membership))
        }
    };
    pb::Entry {
        id: Some(log_id_to_pb(&entry.log_id())),
        payload: Some(payload),
    }
}

pub fn entry_from_pb(entry: pb::Entry) -> io::Result<Entry> {
    use pb::entry::Payload;
    let id = entry
        .id
        .ok_or_else(|| invalid("a log entry without an id"))?;
    let payload = match entry.payload {
        Some(Payload::Blank(_)) => openraft::EntryPayload::Blank,
        Some(Payload::Command(command)) => openraft::EntryPayload::Normal(command),
        Some(Payload::Membership(membership)) => {
            openraft::EntryPayload::Membership(membership_from_pb(&membership)?)
        }
        None => {
            let index = id.index;
            return Err(invalid(format!(
                "log entry {index} is of a kind that this release does not know"
            )));
        }
    };
    Ok(Entry::new(log_id_from_pb(&id), payload))
}

pub fn applied_to_pb(last: Option<&LogId>, membership: &StoredMembership) -> pb::Applied {
    pb::Applied {
        last: last.map(log_id_to_pb),
        membership: Some(stored_membership_to_pb(membership)),
    }
}

pub fn applied_from_pb(applied: &pb::Applied) -> io::Result<(Option<LogId>, StoredMembership)> {
    let membership = match &applied.membership {
        Some(stored) => stored_membership_from_pb(stored)?,
        None => StoredMembership::default(),
    };
    Ok((applied.last.as_ref().map(log_id_from_pb), membership))
}
