//! Copies to other regions: while an upload arrives, its staging file is streamed to as many
//! further regions as `ack` needs (design 7.2, A12), so that its manifest does not wait for them.
//!
//! What must stay true: a receipt comes from the receiver alone, after it checked the digest; a
//! receiver that is stuck is given up, and another region gets the bytes from the
//! start; a client is read at most ten seconds ahead of the copies, and never slower than `SLOWEST`; an
//! upload that is given up takes its copies with it.

use super::going::{Copy, Going, Whole, follow, stuck, watched};
use super::{Error, Registry};
use crate::blobs::{ByteStream, Growing};
use crate::oci::{Digest, RepositoryName};
use crate::proto::state::v1::Receipt;
use crate::telemetry::CopyResult;
use crate::topology::{NodeId, RegionName};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// Bytes per second: the client's rate never drops below this.
const SLOWEST: u64 = 64 << 10;
/// Receipts of copies wait so long for the manifest that needs them; then it asks again.
const KEPT: Duration = Duration::from_secs(60);

/// Blobs that are sent at once because a manifest waits for them.
const AT_ONCE: usize = 8;

/// A copy under way, as a manifest that waits for its receipt sees it.
pub(super) struct UnderWay {
    pub to: Option<RegionName>,
    /// Another region is asked too (A12).
    pub is_late: bool,
}

fn is_over(copy: &Copy) -> bool {
    copy.borrow().is_over()
}

/// Copies of whole uploads, by digest: those under way, and for a while those that are done.
pub(super) struct Sending {
    copies: Mutex<HashMap<Digest, Vec<Copy>>>,
    at_once: Semaphore,
}

impl Default for Sending {
    fn default() -> Sending {
        Sending {
            copies: Mutex::default(),
            at_once: Semaphore::new(AT_ONCE),
        }
    }
}

impl Sending {
    fn add(&self, digest: &Digest, copies: Vec<Copy>) {
        let mut all = self.copies.lock().expect("no panic while held");
        all.entry(digest.clone()).or_default().extend(copies);
    }

    pub fn sweep(&self) {
        let is_kept = |copy: &Copy| copy.borrow().over_at.is_none_or(|at| at.elapsed() < KEPT);
        let mut all = self.copies.lock().expect("no panic while held");
        all.retain(|_, copies| {
            copies.retain(is_kept);
            !copies.is_empty()
        });
    }

    /// Receipts that came, each given out once: one that apply refuses must be asked for anew.
    pub fn take_receipts(&self, digest: &Digest) -> Vec<Receipt> {
        let mut all = self.copies.lock().expect("no panic while held");
        let Some(copies) = all.get_mut(digest) else {
            return Vec::new();
        };
        let (over, under_way): (Vec<_>, Vec<_>) =
            std::mem::take(copies).into_iter().partition(is_over);
        *copies = under_way;
        if copies.is_empty() {
            all.remove(digest);
        }
        let receipt = |copy: Copy| copy.borrow().receipt.clone();
        over.into_iter().filter_map(receipt).collect()
    }

    pub fn under_way(&self, digest: &Digest) -> Vec<UnderWay> {
        let all = self.copies.lock().expect("no panic while held");
        let copies = all.get(digest).into_iter().flatten();
        let under_way = copies.filter(|copy| !is_over(copy)).map(|copy| {
            let going = copy.borrow();
            UnderWay {
                to: going.to.clone(),
                is_late: going.is_late(),
            }
        });
        under_way.collect()
    }

    /// Returns when one of these copies is over, or none is under way.
    pub async fn one_is_over(&self, digests: &[Digest]) {
        let mut copies: Vec<Copy> = {
            let all = self.copies.lock().expect("no panic while held");
            let of = |digest: &Digest| all.get(digest).cloned().unwrap_or_default();
            digests
                .iter()
                .flat_map(of)
                .filter(|copy| !is_over(copy))
                .collect()
        };
        let over = copies.iter_mut().map(|copy| {
            Box::pin(async move {
                // An error: its task ended, which is over too.
                let _ = copy.wait_for(Going::is_over).await;
            })
        });
        let over: Vec<_> = over.collect();
        if !over.is_empty() {
            futures_util::future::select_all(over).await;
        }
    }
}

/// The copies of one upload. Dropped before `finish`, they end.
pub(super) struct Outgoing {
    registry: Registry,
    repository: RepositoryName,
    growing: Growing,
    end: watch::Sender<Option<Whole>>,
    copies: Vec<Copy>,
    /// Regions that have been given the bytes, or are tried now.
    tried: Arc<Mutex<BTreeSet<RegionName>>>,
}

impl Outgoing {
    pub fn new(registry: &Registry, repository: &RepositoryName, growing: Growing) -> Outgoing {
        Outgoing {
            registry: registry.clone(),
            repository: repository.clone(),
            growing,
            end: watch::Sender::new(None),
            copies: Vec::new(),
            tried: Arc::default(),
        }
    }

    /// Bytes are about to come: as many copies as `ack` needs besides this region's. Those that
    /// ended since, because the client paused or nobody could be reached, begin anew.
    pub fn begin(&mut self) -> Result<(), Error> {
        self.copies.retain(|copy| !is_over(copy));
        let countable = self.registry.countable()?;
        let own = countable.contains_key(&self.registry.inner.metadata.identity().node());
        let wanted = self
            .registry
            .view()
            .ack_needed(&self.repository)?
            .saturating_sub(usize::from(own));
        if self.copies.is_empty() {
            self.tried.lock().expect("no panic while held").clear();
        }
        while self.copies.len() < wanted {
            let (going, copy) = watch::channel(Going::begin(None));
            let sending = self.registry.clone().send_while_it_arrives(
                self.repository.clone(),
                self.growing.clone(),
                self.end.subscribe(),
                self.tried.clone(),
                going,
            );
            self.registry.until_stopped(sending);
            self.copies.push(copy);
        }
        Ok(())
    }

    /// Returns when no copy is further behind than it may be, `written` bytes having been taken
    /// in, the last `came` just now.
    pub async fn keep_pace(&mut self, written: u64, came: u64) {
        let in_step = |going: &Going| going.allows(written);
        if self.copies.iter().all(|copy| in_step(&copy.borrow())) {
            return;
        }
        let patience = Duration::from_micros(came.saturating_mul(1_000_000) / SLOWEST);
        let all = async {
            for copy in &mut self.copies {
                let _ = copy.wait_for(in_step).await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
    }

    /// All bytes are written, and the client says that this is what they are; the receivers find
    /// out for themselves.
    pub fn finish(self, digest: &Digest, size: u64) -> io::Result<()> {
        let whole = Whole {
            digest: digest.clone(),
            size,
            index: self.registry.view().applied_index()?,
        };
        self.registry.inner.sending.add(digest, self.copies);
        self.end.send_replace(Some(whole));
        Ok(())
    }
}

impl Registry {
    /// Nodes whose copies count, and their regions.
    pub(super) fn countable(&self) -> io::Result<BTreeMap<NodeId, RegionName>> {
        let nodes = self.view().nodes()?;
        let counts = nodes
            .into_iter()
            .filter(|node| node.role.keeps_blobs() && !node.draining);
        Ok(counts.map(|node| (node.id, node.region)).collect())
    }

    /// The nearest node that answers, or may, of a region that has not been tried; claims the region.
    fn claim_receiver(&self, tried: &Mutex<BTreeSet<RegionName>>) -> io::Result<Option<NodeId>> {
        let countable = self.countable()?;
        let mut tried = tried.lock().expect("no panic while held");
        for node in self.inner.peers.by_distance() {
            if let Some(region) = countable.get(&node)
                && self.inner.peers.is_worth_a_try(node)
                && region != self.region()
                && tried.insert(region.clone())
            {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    async fn send_while_it_arrives(
        self,
        repository: RepositoryName,
        growing: Growing,
        end: watch::Receiver<Option<Whole>>,
        tried: Arc<Mutex<BTreeSet<RegionName>>>,
        going: watch::Sender<Going>,
    ) {
        let mut receipt = None;
        let is_given_up = || end.borrow().is_none() && end.has_changed().is_err();
        while receipt.is_none() && !is_given_up() && !going.borrow().is_paused {
            let Ok(Some(to)) = self.claim_receiver(&tried) else {
                break;
            };
            let bytes = follow(growing.clone(), end.clone(), going.clone());
            let mut end = end.clone();
            let whole = async move { end.wait_for(Option::is_some).await.ok()?.clone() };
            receipt = self
                .send(to, &repository, bytes, whole, is_given_up, &going)
                .await;
        }
        going.send_modify(|going| going.end(receipt));
    }

    /// Begins to send a blob that is here to a node of another region. It goes on when nobody
    /// waits for it any more (A12). `index`: of the log, as of which the repository may read it.
    pub(super) fn begin_copy_to(
        &self,
        to: NodeId,
        repository: &RepositoryName,
        digest: &Digest,
        index: u64,
    ) {
        let region = self.inner.peers.address(to).map(|(region, _)| region);
        let going = watch::Sender::new(Going::begin(region));
        self.inner.sending.add(digest, vec![going.subscribe()]);
        let (registry, repository, digest) = (self.clone(), repository.clone(), digest.clone());
        self.until_stopped(async move {
            let receipt = registry
                .copy_to(to, &repository, &digest, index, &going)
                .await;
            going.send_modify(|going| going.end(receipt));
        });
    }

    async fn copy_to(
        &self,
        to: NodeId,
        repository: &RepositoryName,
        digest: &Digest,
        index: u64,
        going: &watch::Sender<Going>,
    ) -> Option<Receipt> {
        let _one_of_few = self.inner.sending.at_once.acquire().await.ok()?;
        let size = self.inner.blobs.stat(digest).await.ok()??;
        let bytes = self.inner.blobs.open_blob(digest, 0..size).await.ok()?;
        let whole = Whole {
            digest: digest.clone(),
            size,
            index,
        };
        let whole = std::future::ready(Some(whole));
        self.send(to, repository, bytes, whole, || false, going)
            .await
    }

    /// One copy to one node, counted; None, and a line in the log, when it fails. `is_given_up`: the
    /// client has left the upload that this is a copy of.
    async fn send(
        &self,
        to: NodeId,
        repository: &RepositoryName,
        bytes: ByteStream,
        whole: impl Future<Output = Option<Whole>>,
        is_given_up: impl Fn() -> bool,
        going: &watch::Sender<Going>,
    ) -> Option<Receipt> {
        let id = format!("{:032x}", rand::random::<u128>());
        let peers = &self.inner.peers;
        let region = peers.address(to).map(|(region, _)| region);
        going.send_replace(Going::begin(region));
        let body = reqwest::Body::wrap_stream(watched(bytes, going.clone()));
        let sent = tokio::select! {
            sent = peers.send_copy(to, &id, 0, body) => sent.map_err(|error| error.to_string()),
            () = stuck(going.subscribe()) => Err("it takes nothing any more".to_owned()),
        };
        let result = match sent {
            Ok(()) => match whole.await {
                Some(Whole {
                    digest,
                    size,
                    index,
                }) => peers
                    .finish_copy(to, &id, &digest, size, repository, index)
                    .await
                    .map_err(|error| error.to_string()),
                None => Err("the upload was given up".to_owned()),
            },
            Err(why) => Err(why),
        };
        let label = match &result {
            Ok(_) => "ok",
            // The client's doing, and not the receiver's.
            Err(_) if going.borrow().is_paused || is_given_up() => "given_up",
            Err(_) => "failed",
        };
        let label = label.to_owned();
        let copies = &self.inner.metrics.blob_copies;
        copies.get_or_create(&CopyResult { result: label }).inc();
        match result {
            Ok(receipt) => Some(receipt),
            Err(why) => {
                tracing::info!(%to, %repository, %why, "a copy to another region failed");
                peers.cancel_copy(to, &id).await;
                None
            }
        }
    }
}
