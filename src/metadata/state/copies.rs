//! Who has which blob: receipts judged, holders counted, and the placements that follow (D4, A2,
//! A3, A16). Counted holders are what a push or a repair vouched for; other copies are hints.

use super::super::keys;
use super::{Apply, DONE, Decision, refuse};
use crate::oci::Digest;
use crate::policy::Wanted;
use crate::proto::state::v1 as pb;
use crate::topology::{NodeId, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// Referenced blob: its counted holders in order, how many are wanted, and its size.
type Placement = Option<(Vec<NodeId>, Wanted, u64)>;

/// What receipts are judged by, read once per command.
pub struct Judge {
    now_ms: u64,
    lineage: String,
    nodes: BTreeMap<NodeId, pb::NodeRecord>,
    /// Distinct regions that must hold a blob.
    pub needed: usize,
}

pub fn role(record: &pb::NodeRecord) -> Role {
    let node = record.node.as_ref();
    let role = node.map(|node| pb::Role::try_from(node.role).unwrap_or(pb::Role::Unspecified));
    Role::from(role.unwrap_or(pb::Role::Unspecified))
}

pub fn region(record: &pb::NodeRecord) -> &str {
    record.node.as_ref().map_or("", |node| node.region.as_str())
}

impl Judge {
    /// The region that a receipt vouches for, when it counts: unexpired, of this lineage, from the
    /// current boot of a member that keeps blobs and is not draining.
    fn region_of(&self, receipt: &pb::Receipt) -> Option<&str> {
        let record = self.nodes.get(&NodeId(receipt.node))?;
        let counts = receipt.expires_at_ms > self.now_ms
            && receipt.lineage == self.lineage
            && receipt.boot == record.boot
            && role(record).keeps_blobs()
            && !record.draining;
        counts.then(|| region(record))
    }

    /// The nodes whose receipts for `digest` count, and over how many regions they are spread.
    pub fn holders(
        &self,
        digest: &str,
        size: u64,
        receipts: &[pb::Receipt],
    ) -> (BTreeSet<NodeId>, usize) {
        let mut nodes = BTreeSet::new();
        let mut regions = BTreeSet::new();
        for receipt in receipts
            .iter()
            .filter(|r| r.digest == digest && r.size == size)
        {
            if let Some(region) = self.region_of(receipt) {
                nodes.insert(NodeId(receipt.node));
                regions.insert(region);
            }
        }
        (nodes, regions.len())
    }
}

impl Apply<'_> {
    pub fn judge(&self, ack: u32) -> io::Result<Judge> {
        let cluster: pb::ClusterRecord = self.tx.message(keys::CLUSTER)?.unwrap_or_default();
        let mut nodes = BTreeMap::new();
        for (key, value) in self.tx.scan(keys::NODES)? {
            if let Some((node, _)) = keys::take_node(&key[1..]) {
                nodes.insert(
                    node,
                    super::decode::<pb::NodeRecord>("node record", &value)?,
                );
            }
        }
        let data_regions: BTreeSet<&str> = nodes
            .values()
            .filter(|n| role(n).keeps_blobs())
            .map(region)
            .collect();
        let needed = data_regions.len().min(ack as usize).max(1);
        Ok(Judge {
            now_ms: self.log_time_ms()?,
            lineage: cluster.lineage,
            nodes,
            needed,
        })
    }

    pub fn blob_record(&self, digest: &Digest) -> io::Result<Option<pb::BlobRecord>> {
        self.tx.message(&keys::blob(digest))
    }

    fn counted_holders(&self, digest: &Digest) -> io::Result<Vec<NodeId>> {
        let prefix = keys::holders(digest);
        let mut holders = Vec::new();
        for (key, value) in self.tx.scan(&prefix)? {
            let record: pb::HolderRecord = super::decode("holder record", &value)?;
            if let (true, Some((node, _))) = (record.counted, keys::take_node(&key[prefix.len()..]))
            {
                holders.push(node);
            }
        }
        Ok(holders)
    }

    fn placement(&self, digest: &Digest) -> io::Result<Placement> {
        match self.blob_record(digest)? {
            Some(record) if record.refs > 0 => {
                let holders = self.counted_holders(digest)?;
                Ok(Some((holders, Wanted::of(&record), record.size)))
            }
            _ => Ok(None),
        }
    }

    /// Runs a change of a blob's references or holders, and moves the blob from the placement that
    /// it had to the one that it has then.
    pub fn moving<T>(
        &mut self,
        digest: &Digest,
        change: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        let before = self.placement(digest)?;
        let result = change(self)?;
        let after = self.placement(digest)?;
        if before != after {
            if let Some((holders, wanted, size)) = before {
                self.count(&holders, wanted, |record| {
                    record.blobs = record.blobs.saturating_sub(1);
                    record.bytes = record.bytes.saturating_sub(size);
                })?;
            }
            if let Some((holders, wanted, size)) = after {
                self.count(&holders, wanted, |record| {
                    record.blobs += 1;
                    record.bytes = record.bytes.saturating_add(size);
                })?;
            }
        }
        self.blobs.insert(digest.clone());
        Ok(result)
    }

    fn count(
        &mut self,
        holders: &[NodeId],
        wanted: Wanted,
        change: impl FnOnce(&mut pb::PlacementRecord),
    ) -> io::Result<()> {
        let key = keys::placement(holders, wanted);
        let mut record: pb::PlacementRecord = self.tx.message(&key)?.unwrap_or_default();
        change(&mut record);
        if record.blobs == 0 {
            self.tx.delete(key);
        } else {
            self.tx.put_message(key, &record);
        }
        Ok(())
    }

    /// Counted, or a hint; a hint never takes the place of a counted copy.
    pub fn set_holder(&mut self, digest: &Digest, node: NodeId, counted: bool) -> io::Result<()> {
        let key = keys::holder(digest, node);
        if !counted && self.tx.has(&key)? {
            return Ok(());
        }
        self.tx.put_message(key, &pb::HolderRecord { counted });
        self.tx
            .put(keys::held(node, digest), vec![u8::from(counted)]);
        Ok(())
    }

    fn remove_holder(&mut self, digest: &Digest, node: NodeId) {
        self.tx.delete(keys::holder(digest, node));
        self.tx.delete(keys::held(node, digest));
    }

    pub fn drop_holder(&mut self, digest: &Digest, node: NodeId) -> io::Result<()> {
        self.moving(digest, |apply| {
            apply.remove_holder(digest, node);
            Ok(())
        })
    }

    /// A blob that nobody references has no holders (A2): who has it must say so again.
    pub fn empty_holders(&mut self, digest: &Digest) -> io::Result<()> {
        let prefix = keys::holders(digest);
        for (key, _) in self.tx.scan(&prefix)? {
            if let Some((node, _)) = keys::take_node(&key[prefix.len()..]) {
                self.remove_holder(digest, node);
            }
        }
        Ok(())
    }

    /// Verified copies that count from now on; nothing where nobody references the blob.
    pub fn hold(&mut self, hold: &pb::Hold) -> Decision {
        // How many are needed is asked by pushes only.
        let judge = self.judge(1)?;
        for receipt in &hold.receipts {
            let Ok(digest) = receipt.digest.parse::<Digest>() else {
                return Ok(Err(refuse(
                    pb::Reason::Invalid,
                    format!("digest {:?}", receipt.digest),
                )));
            };
            let is_referenced = self
                .blob_record(&digest)?
                .is_some_and(|blob| blob.refs > 0 && blob.size == receipt.size);
            if is_referenced && judge.region_of(receipt).is_some() {
                let node = NodeId(receipt.node);
                self.moving(&digest, |apply| apply.set_holder(&digest, node, true))?;
            }
        }
        Ok(Ok(DONE))
    }

    /// The proposer does not have these. Always accepted, from nobody but the holder itself.
    pub fn lost(&mut self, lost: &pb::Lost) -> Decision {
        for digest in &lost.digests {
            if let Ok(digest) = digest.parse::<Digest>() {
                self.drop_holder(&digest, self.proposer)?;
            }
        }
        Ok(Ok(DONE))
    }

    pub fn cached(&mut self, cached: &pb::Cached) -> Decision {
        for digest in &cached.digests {
            let Ok(digest) = digest.parse::<Digest>() else {
                continue;
            };
            if self.blob_record(&digest)?.is_some_and(|blob| blob.refs > 0) {
                self.set_holder(&digest, self.proposer, false)?;
            }
        }
        Ok(Ok(DONE))
    }
}
