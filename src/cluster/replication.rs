//! Keeps `copies` of each referenced blob: the regions that are to take one are chosen alike
//! everywhere, by a hash of blob and region, so that nobody has to tell them. The leader brings a
//! changed number to the blobs that lie there already; each node links what came after the
//! manifests that name it.

use crate::budget::Budget;
use crate::metadata::query::NodeInfo;
use crate::oci::{Algorithm, Digest};
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use crate::registry::Registry;
use crate::tasks::Tasks;
use crate::topology::NodeId;
use std::io;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between two looks for blobs that came after their manifests.
const ARRIVALS_EVERY: Duration = Duration::from_secs(10);
const PAGE: usize = 500;
/// For tests of what is missing.
const TEST_REPAIR: &str = "ROADSTEAD_TEST__REPAIR";

/// Starts the loops, owned by the node's tasks.
pub fn start(registry: &Registry, tasks: &Tasks) {
    until_stopped(tasks, count_copies(registry.clone()));
    until_stopped(tasks, link_arrivals(registry.clone()));
    if std::env::var(TEST_REPAIR).is_ok_and(|value| value == "off") {
        return;
    }
    until_stopped(tasks, repair(registry.clone()));
}

fn until_stopped(tasks: &Tasks, work: impl Future<Output = ()> + Send + 'static) {
    let stop = tasks.stop_token();
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    });
}

/// One bounded entry after the other, until nothing lies under a changed prefix that is not counted
/// by it. Two leaders that do so for a moment take the same steps.
async fn count_copies(registry: Registry) {
    let metadata = registry.metadata();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        while metadata.leads() {
            let prefix = match metadata.view().copies_walk() {
                Ok(Some(prefix)) => prefix,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "look for policies whose copies changed");
                    break;
                }
            };
            let step = Body::CountCopies(pb::CountCopies { prefix });
            if let Err(error) = metadata.write(step, Budget::default()).await {
                tracing::info!(%error, "a changed number of copies could not be counted yet");
                break;
            }
        }
    }
}

async fn link_arrivals(registry: Registry) {
    loop {
        tokio::time::sleep(ARRIVALS_EVERY).await;
        if let Err(error) = registry.link_arrivals().await {
            tracing::info!(%error, "blobs that came after their manifests are not all linked yet");
        }
    }
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
                && is_mine(digest, me, &holders, wanted(blob.wanted), &nodes)
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
