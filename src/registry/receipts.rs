//! "I have this blob, synced, and keep it until then": given for what is here, and gathered from
//! enough regions before a manifest that names it is proposed (D2, D3, A5).

use super::{Error, Registry};
use crate::budget::Budget;
use crate::oci::{Descriptor, Digest, RepositoryName};
use crate::proto::peer::v1 as peer;
use crate::proto::state::v1::Receipt;
use crate::topology::{NodeId, RegionName};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

const ASK: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// While copies are under way; one that is over is noticed at once.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Receipts for the blobs of one push, and the regions that they come from.
#[derive(Default)]
pub(super) struct Gathered {
    by_blob: BTreeMap<Digest, BTreeMap<NodeId, Receipt>>,
}

impl Gathered {
    fn add(&mut self, receipt: Receipt) {
        if let Ok(digest) = receipt.digest.parse() {
            self.by_blob
                .entry(digest)
                .or_default()
                .insert(NodeId(receipt.node), receipt);
        }
    }

    pub fn into_receipts(self) -> Vec<Receipt> {
        self.by_blob
            .into_values()
            .flat_map(BTreeMap::into_values)
            .collect()
    }

    fn regions<'a>(
        &self,
        digest: &Digest,
        region_of: &'a BTreeMap<NodeId, RegionName>,
    ) -> BTreeSet<&'a RegionName> {
        let nodes = self
            .by_blob
            .get(digest)
            .into_iter()
            .flat_map(BTreeMap::keys);
        nodes.filter_map(|node| region_of.get(node)).collect()
    }
}

impl Registry {
    /// This node's own receipt; None when it does not have the blob, or may not vouch yet.
    pub(super) async fn own_receipt(&self, digest: &Digest) -> io::Result<Option<Receipt>> {
        if !*self.inner.metadata.boot_applied().borrow() || !self.is_compared() {
            return Ok(None);
        }
        let _unchanged = self.inner.blobs.lock(digest).await;
        let Some(size) = self.inner.blobs.stat(digest).await? else {
            return Ok(None);
        };
        let identity = self.inner.metadata.identity();
        let Some(cluster) = identity.cluster() else {
            return Ok(None);
        };
        let pins = self.inner.blobs.pins();
        let expires_at_ms = self.view().log_time_ms()? + pins.ttl_ms();
        pins.pin(digest, expires_at_ms);
        Ok(Some(Receipt {
            digest: digest.to_string(),
            size,
            node: identity.node().0,
            boot: identity.boot(),
            expires_at_ms,
            lineage: cluster.lineage,
        }))
    }

    /// Receipts for those that are here; the others are left out.
    pub async fn receipts_for(&self, digests: &[Digest]) -> Vec<Receipt> {
        let mut receipts = Vec::new();
        for digest in digests {
            match self.own_receipt(digest).await {
                Ok(receipt) => receipts.extend(receipt),
                Err(error) => {
                    tracing::warn!(%digest, %error, "look for a blob that a receipt is asked for")
                }
            }
        }
        receipts
    }

    /// Until every blob has receipts from `ack` regions: own ones, those of whoever has it already,
    /// and of regions that it is copied to now. Held within the budget, then 503. `index`: of the
    /// log, as of which the repository may read the blobs.
    pub(super) async fn gather(
        &self,
        repository: &RepositoryName,
        blobs: &[Descriptor],
        index: u64,
        budget: Budget,
    ) -> Result<Gathered, Error> {
        let mut gathered = Gathered::default();
        let mut held = None;
        loop {
            let needed = self.view().ack_needed(repository)?;
            let me = self.inner.metadata.identity().node();
            let regions = self.countable()?;
            for blob in blobs {
                for receipt in self.inner.sending.take_receipts(&blob.digest) {
                    gathered.add(receipt);
                }
                if !gathered
                    .by_blob
                    .get(&blob.digest)
                    .is_some_and(|nodes| nodes.contains_key(&me))
                    && let Some(receipt) = self.own_receipt(&blob.digest).await?
                {
                    gathered.add(receipt);
                }
            }
            let short = |gathered: &Gathered| -> Vec<Descriptor> {
                let is_short =
                    |blob: &&Descriptor| gathered.regions(&blob.digest, &regions).len() < needed;
                blobs.iter().filter(is_short).cloned().collect()
            };
            let missing = short(&gathered);
            if missing.is_empty() {
                return Ok(gathered);
            }
            self.ask_peers(&missing, &regions, &mut gathered).await;
            let missing = short(&gathered);
            if missing.is_empty() {
                return Ok(gathered);
            }
            let mut under_way = Vec::new();
            for blob in missing.iter().map(|blob| &blob.digest) {
                let have = gathered.regions(blob, &regions);
                if self.send_where_needed(repository, blob, index, &have, &regions, needed) {
                    under_way.push(blob.clone());
                }
            }
            if budget.is_spent() {
                let why = match under_way.len() {
                    0 => {
                        "no further region could be reached; push again when `roadstead status` shows more regions up"
                    }
                    _ => "their copies are still under way and go on; push again in a while",
                };
                return Err(Error::Unavailable(format!(
                    "{} of {} blobs are in fewer than {needed} regions: {why}",
                    missing.len(),
                    blobs.len()
                )));
            }
            held.get_or_insert_with(|| self.inner.metrics.hold());
            let pause = if under_way.is_empty() {
                PAUSE
            } else {
                LOOK_AGAIN
            };
            tokio::select! {
                () = tokio::time::sleep(pause.min(budget.remaining())) => {}
                () = self.inner.sending.one_is_over(&under_way), if !under_way.is_empty() => {}
            }
        }
    }

    /// Copies to as many further regions as are needed, besides those under way that are not late.
    /// Is any under way?
    fn send_where_needed(
        &self,
        repository: &RepositoryName,
        blob: &Digest,
        index: u64,
        have: &BTreeSet<&RegionName>,
        regions: &BTreeMap<NodeId, RegionName>,
        needed: usize,
    ) -> bool {
        let under_way = self.inner.sending.under_way(blob);
        let in_time = under_way.iter().filter(|copy| !copy.is_late).count();
        let mut taken = have.clone();
        taken.extend(under_way.iter().filter_map(|copy| copy.to.as_ref()));
        let targets = self.targets(&taken, regions);
        let more = needed.saturating_sub(have.len() + in_time);
        let mut is_any = !under_way.is_empty();
        for to in targets.into_iter().take(more) {
            self.begin_copy_to(to, repository, blob, index);
            is_any = true;
        }
        is_any
    }

    /// One call a peer for all blobs.
    async fn ask_peers(
        &self,
        blobs: &[Descriptor],
        regions: &BTreeMap<NodeId, RegionName>,
        gathered: &mut Gathered,
    ) {
        let digests: Vec<String> = blobs.iter().map(|blob| blob.digest.to_string()).collect();
        let peers = self.inner.peers.by_distance();
        let asked = peers
            .into_iter()
            .filter(|node| regions.contains_key(node) && self.inner.peers.is_reachable(*node));
        let answers = asked.map(|node| {
            let request = peer::ReceiptsRequest {
                digests: digests.clone(),
            };
            async move { self.inner.peers.receipts(node, request, ASK).await }
        });
        for answer in futures_util::future::join_all(answers)
            .await
            .into_iter()
            .flatten()
        {
            answer
                .receipts
                .into_iter()
                .for_each(|receipt| gathered.add(receipt));
        }
    }

    /// Nodes of further regions that answer, nearest first.
    fn targets(
        &self,
        have: &BTreeSet<&RegionName>,
        regions: &BTreeMap<NodeId, RegionName>,
    ) -> Vec<NodeId> {
        let mut seen: BTreeSet<&RegionName> = have.clone();
        let mut targets = Vec::new();
        for node in self.inner.peers.by_distance() {
            if let Some(region) = regions.get(&node)
                && self.inner.peers.is_reachable(node)
                && seen.insert(region)
            {
                targets.push(node);
            }
        }
        targets
    }
}
