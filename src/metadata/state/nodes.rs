//! Nodes and log time: who is a member, which start of it counts, who is live (A5, A6, G1).

use super::super::keys;
use super::{Apply, DONE, Decision, refuse};
use crate::proto::state::v1 as pb;
use crate::topology::NodeId;
use std::io;

/// A leader that was silent for longer moves log time by this much and no more (G1).
const LONGEST_TICK_MS: u64 = 120_000;

impl Apply<'_> {
    /// The members of a membership entry become the node table. A node that left is gone for ever:
    /// its id is refused from then on, and what it held no longer counts.
    pub fn membership(&mut self, membership: &pb::Membership) -> io::Result<()> {
        for (id, node) in &membership.nodes {
            let key = keys::node(NodeId(*id));
            let mut record: pb::NodeRecord = self.tx.message(&key)?.unwrap_or_default();
            record.node = Some(node.clone());
            self.tx.put_message(key, &record);
        }
        for (key, _) in self.tx.scan(keys::NODES)? {
            let Some((node, _)) = keys::take_node(&key[1..]) else {
                continue;
            };
            if !membership.nodes.contains_key(&node.0) {
                self.forget(node)?;
            }
        }
        Ok(())
    }

    fn forget(&mut self, node: NodeId) -> io::Result<()> {
        for (key, _) in self.tx.scan(&keys::held_by(node))? {
            if let Some((digest, _)) = keys::take_digest(&key[9..]) {
                self.drop_holder(&digest, node)?;
            }
        }
        for (key, _) in self.tx.scan(&keys::outcomes(node))? {
            self.tx.delete(key);
        }
        self.tx.delete(keys::requests(node));
        self.tx.delete(keys::node(node));
        self.tx
            .put(keys::removed(node), self.index.to_be_bytes().to_vec());
        Ok(())
    }

    /// Log time goes on by what the leader's clock did since its last tick.
    pub fn tick(&mut self, tick: &pb::Tick) -> io::Result<()> {
        let mut time: pb::TimeRecord = self.tx.message(keys::TIME)?.unwrap_or_default();
        let passed = match tick.term.cmp(&time.term) {
            std::cmp::Ordering::Less => return Ok(()),
            std::cmp::Ordering::Equal => tick.elapsed_ms.saturating_sub(time.elapsed_ms),
            std::cmp::Ordering::Greater => tick.elapsed_ms,
        };
        time.now_ms = time.now_ms.saturating_add(passed.min(LONGEST_TICK_MS));
        time.elapsed_ms = if tick.term == time.term {
            time.elapsed_ms.max(tick.elapsed_ms)
        } else {
            tick.elapsed_ms
        };
        time.term = tick.term;
        self.tx.put_message(keys::TIME.to_vec(), &time);
        for said in &tick.acknowledged {
            let key = keys::node(NodeId(said.node));
            let known = self.tx.message::<pb::NodeRecord>(&key)?;
            if let Some(mut record) = known.filter(|record| record.acknowledged < said.index) {
                record.acknowledged = said.index;
                self.tx.put_message(key, &record);
            }
        }
        Ok(())
    }

    pub fn log_time_ms(&self) -> io::Result<u64> {
        Ok(self
            .tx
            .message::<pb::TimeRecord>(keys::TIME)?
            .unwrap_or_default()
            .now_ms)
    }

    /// A node started: what it said before no longer counts, and neither does it, until it has
    /// listed its files.
    pub fn boot(&mut self, command: &pb::Command, boot: &pb::Boot) -> Decision {
        let id = command.request.unwrap_or_default();
        let known: Option<pb::NodeRecord> = self.tx.message(&keys::node(self.proposer))?;
        let acknowledged = known.map_or(0, |record| record.acknowledged);
        if boot.last_log < acknowledged {
            return Ok(Err(refuse(
                pb::Reason::LogLost,
                format!(
                    "its log ended at entry {} at its start, but it acknowledged entry {acknowledged}",
                    boot.last_log
                ),
            )));
        }
        self.update_proposer(|record| {
            if id.boot > record.boot {
                record.boot = id.boot;
                record.listed = false;
                record.version.clone_from(&boot.version);
            }
        })
    }

    pub fn listed(&mut self) -> Decision {
        self.update_proposer(|record| record.listed = true)
    }

    fn update_proposer(&mut self, change: impl FnOnce(&mut pb::NodeRecord)) -> Decision {
        let key = keys::node(self.proposer);
        let mut record: pb::NodeRecord = self.tx.message(&key)?.unwrap_or_default();
        change(&mut record);
        self.tx.put_message(key, &record);
        Ok(Ok(DONE))
    }

    pub fn set_gone(&mut self, node: NodeId, gone: bool) -> Decision {
        let key = keys::node(node);
        let Some(mut record) = self.tx.message::<pb::NodeRecord>(&key)? else {
            return Ok(Err(refuse(
                pb::Reason::Invalid,
                format!("node {node} is not a member"),
            )));
        };
        record.gone = gone;
        self.tx.put_message(key, &record);
        Ok(Ok(DONE))
    }
}
