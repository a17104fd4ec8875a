//! Whether every node has the same state. Hashes can only be compared at the same index, and
//! nodes apply at their own pace: so all are asked again until their answers meet.

use super::Api;
use super::status::Answers;
use super::status::ask_all;
use super::types::MetadataVerification;
use super::types::NodeHash;
use super::types::Verdict;
use crate::metadata::query::NodeInfo;
use crate::topology::NodeId;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::time::Duration;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn metadata(api: &Api) -> io::Result<MetadataVerification> {
    let nodes = api.metadata.view().nodes()?;
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Seen::default();
    loop {
        let answers = ask_all(api, &ids).await?;
        seen.add(&answers);
        let (verdict, index) = seen.verdict(&ids);
        if verdict != Verdict::Unknown || Instant::now() >= deadline {
            return Ok(MetadataVerification {
                verdict,
                index,
                nodes: seen.report(&nodes, index),
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Each hash that each node has told, by index.
#[derive(Default)]
struct Seen {
    by_index: BTreeMap<u64, BTreeMap<NodeId, Bytes>>,
}

impl Seen {
    fn add(&mut self, answers: &Answers) {
        for (node, answer) in answers {
            let at = self.by_index.entry(answer.state_hash_index).or_default();
            at.insert(*node, answer.state_hash.clone());
        }
    }

    /// One difference is enough; equality takes an answer from every node at one index.
    fn verdict(&self, nodes: &[NodeId]) -> (Verdict, Option<u64>) {
        let differ =
            |hashes: &BTreeMap<NodeId, Bytes>| hashes.values().collect::<BTreeSet<_>>().len() > 1;
        if let Some((index, _)) = self.by_index.iter().find(|(_, hashes)| differ(hashes)) {
            return (Verdict::Different, Some(*index));
        }
        let complete = |hashes: &BTreeMap<NodeId, Bytes>| {
            !nodes.is_empty() && nodes.iter().all(|node| hashes.contains_key(node))
        };
        match self
            .by_index
            .iter()
            .rev()
            .find(|(_, hashes)| complete(hashes))
        {
            Some((index, _)) => (Verdict::Equal, Some(*index)),
            None => (Verdict::Unknown, None),
        }
    }

    /// What each node told at `index`, or else at last.
    fn report(&self, nodes: &[NodeInfo], index: Option<u64>) -> Vec<NodeHash> {
        let told = |node: NodeId| {
            let at = |(index, hashes): (&u64, &BTreeMap<NodeId, Bytes>)| {
                Some((*index, hex::encode(hashes.get(&node)?)))
            };
            let chosen = index
                .and_then(|index| self.by_index.get_key_value(&index))
                .and_then(at);
            chosen.or_else(|| self.by_index.iter().rev().find_map(at))
        };
        nodes
            .iter()
            .map(|node| {
                let (index, hash) = told(node.id).unzip();
                NodeHash {
                    node: node.id.to_string(),
                    region: node.region.to_string(),
                    index,
                    hash,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::peer::v1::NodeStatusResponse;

    fn seen(told: &[(u64, u64, u8)]) -> Seen {
        let mut seen = Seen::default();
        for (node, index, hash) in told {
            let answer = NodeStatusResponse {
                state_hash_index: *index,
                state_hash: Bytes::copy_from_slice(&[*hash]),
                ..NodeStatusResponse::default()
            };
            seen.add(&Answers::from([(NodeId(*node), answer)]));
        }
        seen
    }

    #[test]
    fn states_are_compared_at_one_index_only() {
        let nodes = [NodeId(1), NodeId(2)];
        assert_eq!(
            seen(&[(1, 5, 7), (2, 6, 8)]).verdict(&nodes),
            (Verdict::Unknown, None)
        );
        let met = seen(&[(1, 5, 7), (2, 6, 8), (1, 6, 8)]);
        assert_eq!(met.verdict(&nodes), (Verdict::Equal, Some(6)));
        let differ = seen(&[(1, 6, 7), (2, 6, 8)]);
        assert_eq!(differ.verdict(&nodes), (Verdict::Different, Some(6)));
    }

    #[test]
    fn a_node_that_is_silent_is_not_taken_as_equal() {
        assert_eq!(
            seen(&[(1, 5, 7)]).verdict(&[NodeId(1), NodeId(2)]).0,
            Verdict::Unknown
        );
    }
}
