//! Keeps `copies` of each referenced blob: the regions that are to take one are chosen alike
//! everywhere, by a hash of blob and region, so that nobody has to tell them.

use crate::metadata::query::NodeInfo;
use crate::oci::{Algorithm, Digest};
use crate::registry::Registry;
use crate::tasks::Tasks;
use crate::topology::NodeId;
use std::io;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(2);
const PAGE: usize = 500;
/// For tests of what is missing.
const TEST_REPAIR: &str = "ROADSTEAD_TEST__REPAIR";

/// Starts the loop, owned by the node's tasks.
pub fn start(registry: &Registry, tasks: &Tasks) {
    if std::env::var(TEST_REPAIR).is_ok_and(|value| value == "off") {
        return;
    }
    let (registry, stop) = (registry.clone(), tasks.stop_token());
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = repair(registry) => {}
        }
    });
}

async fn repair(registry: Registry) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match registry.metadata().view().under_replicated() {
            Ok(0) => {}
            Ok(_) => {
                if let Err(error) = take_own_share(&registry).await {
                    tracing::warn!(%error, "look for blobs that are short of copies");
                }
            }
            Err(error) => tracing::warn!(%error, "count blobs that are short of copies"),
        }
    }
}

async fn take_own_share(registry: &Registry) -> io::Result<()> {
    let metadata = registry.metadata();
    let me = metadata.identity().node();
    let mut after: Option<Digest> = None;
    loop {
        let view = metadata.view();
        let (wanted, nodes) = (view.copies_wanted()?, view.nodes()?);
        let page = view.blobs(after.as_ref(), PAGE)?;
        for (digest, blob) in &page {
            let holders: Vec<NodeId> = blob
                .holders
                .iter()
                .filter(|h| h.counted)
                .map(|h| h.node)
                .collect();
            if blob.refs > 0
                && is_mine(digest, me, &holders, wanted, &nodes)
                && let Err(error) = registry.fetch_and_hold(digest, blob.size).await
            {
                tracing::info!(%digest, %error, "a copy could not be made yet");
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => after = Some(last.clone()),
            _ => return Ok(()),
        }
    }
}

/// Is this node one of those that the blob is to be copied to?
fn is_mine(
    digest: &Digest,
    me: NodeId,
    holders: &[NodeId],
    wanted: usize,
    nodes: &[NodeInfo],
) -> bool {
    let live = |id: &NodeId| nodes.iter().any(|node| node.id == *id && node.is_live());
    let missing = wanted.saturating_sub(holders.iter().filter(|id| live(id)).count());
    let mut candidates: Vec<_> = nodes
        .iter()
        .filter(|node| node.is_live() && !holders.contains(&node.id))
        .map(|node| {
            (
                Digest::of(
                    Algorithm::Sha256,
                    format!("{digest} {}", node.region).as_bytes(),
                ),
                node.id,
            )
        })
        .collect();
    candidates.sort();
    candidates.iter().take(missing).any(|(_, id)| *id == me)
}
