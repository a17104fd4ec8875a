//! Each request applied once (A10): outcomes are kept until their proposer no longer waits.

use super::super::keys;
use super::{Apply, COMMAND_VERSION, DONE, Decision, Refusal, refuse};
use crate::proto::state::v1 as pb;
use crate::topology::NodeId;
use std::io;

impl Apply<'_> {
    /// Does the bookkeeping that a command carries; Some when it has been answered before, or may
    /// not be.
    pub fn answered_before(
        &mut self,
        command: &pb::Command,
        body: &pb::command::Body,
    ) -> io::Result<Option<pb::Outcome>> {
        debug_assert!(command.version <= COMMAND_VERSION);
        let settled = |apply: &Self, what: &str| {
            let Refusal(refused) = refuse(pb::Reason::RequestSettled, what);
            Ok(Some(apply.outcome(pb::outcome::Result::Refused(refused))))
        };
        let Some(id) = command.request else {
            return settled(self, "a command without a request id");
        };
        self.proposer = NodeId(id.node);
        if !self.tx.has(&keys::node(self.proposer))? {
            return settled(self, "proposed by a node that is not a member");
        }
        let key = keys::requests(self.proposer);
        let mut requests: pb::RequestsRecord = self.tx.message(&key)?.unwrap_or_default();
        if matches!(body, pb::command::Body::Boot(_)) && id.boot > requests.boot {
            for (outcome, _) in self.tx.scan(&keys::outcomes(self.proposer))? {
                self.tx.delete(outcome);
            }
            requests = pb::RequestsRecord {
                boot: id.boot,
                settled: 0,
            };
            self.tx.put_message(key.clone(), &requests);
        }
        if id.boot != requests.boot {
            return settled(self, "proposed by another start of its node");
        }
        for seq in &command.given_up {
            let outcome = keys::outcome(self.proposer, *seq);
            if *seq >= requests.settled && !self.tx.has(&outcome)? {
                let abandoned = self.outcome(pb::outcome::Result::Abandoned(pb::Abandoned {}));
                self.tx.put_message(outcome, &abandoned);
            }
        }
        if command.settled > requests.settled {
            for (outcome, _) in self.tx.scan(&keys::outcomes(self.proposer))? {
                if outcome < keys::outcome(self.proposer, command.settled) {
                    self.tx.delete(outcome);
                }
            }
            requests.settled = command.settled;
            self.tx.put_message(key, &requests);
        }
        if id.seq < requests.settled {
            return settled(self, "answered before");
        }
        self.tx.message(&keys::outcome(self.proposer, id.seq))
    }

    /// Keeps the outcome for a repetition; not a call for receipts, which the proposer renews and
    /// proposes again under the same id.
    pub fn record(&mut self, command: &pb::Command, outcome: &pb::Outcome) {
        let is_open = matches!(outcome.result, Some(pb::outcome::Result::NeedReceipts(_)));
        if let (Some(id), false) = (command.request, is_open) {
            self.tx
                .put_message(keys::outcome(NodeId(id.node), id.seq), outcome);
        }
    }

    pub fn create_cluster(&mut self, create: &pb::CreateCluster) -> Decision {
        if self.tx.has(keys::CLUSTER)? {
            return Ok(Err(refuse(
                pb::Reason::Invalid,
                "the cluster exists already",
            )));
        }
        let record = pb::ClusterRecord {
            cluster_id: create.cluster_id.clone(),
            lineage: create.lineage.clone(),
            ack: create.ack,
            copies: create.copies,
        };
        self.tx.put_message(keys::CLUSTER.to_vec(), &record);
        Ok(Ok(DONE))
    }
}
