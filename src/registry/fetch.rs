//! A blob that is elsewhere: one fetch per digest however many readers wait, each following the
//! growing file at its own pace, from any offset; the next holder at the same offset when one
//! fails; the last 64 KiB held back until the digest is right (design 8.3). What the disk has no
//! room for is passed on instead, and not kept (passing.rs).

use super::passing::Turns;
use super::{Error, Registry};
use crate::blobs::{ByteStream, Growing, Progress};
use crate::budget::Budget;
use crate::oci::Digest;
use crate::proto::peer::v1 as peer;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use crate::telemetry::FetchResult;
use crate::topology::{NodeId, RegionName};
use futures_util::{FutureExt, StreamExt, stream};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Not handed out before the digest of the whole is known to be right.
pub(super) const HELD_BACK: u64 = 64 << 10;
const PIECE: u64 = 256 << 10;
const ASK: Duration = Duration::from_secs(1);
pub(super) const PAUSE: Duration = Duration::from_millis(300);

/// A holder whose bytes were wrong is asked last for so long, unless it proves them good.
const SUSPECT: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct Fetches {
    running: Mutex<HashMap<Digest, Arc<Fetch>>>,
    suspects: Mutex<HashMap<(NodeId, Digest), Instant>>,
    pub(super) passing: Turns,
}

impl Fetches {
    fn suspect(&self, node: NodeId, digest: &Digest) {
        let mut suspects = self.suspects.lock().expect("no panic while held");
        suspects.retain(|_, since| since.elapsed() < SUSPECT);
        suspects.insert((node, digest.clone()), Instant::now());
    }

    fn trust(&self, node: NodeId, digest: &Digest) {
        let mut suspects = self.suspects.lock().expect("no panic while held");
        suspects.remove(&(node, digest.clone()));
    }

    fn is_suspect(&self, node: NodeId, digest: &Digest) -> bool {
        let suspects = self.suspects.lock().expect("no panic while held");
        let since = suspects.get(&(node, digest.clone()));
        since.is_some_and(|since| since.elapsed() < SUSPECT)
    }
}

/// One transfer under way.
pub(super) struct Fetch {
    growing: Growing,
    source: watch::Receiver<Option<RegionName>>,
    end: watch::Receiver<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Running,
    Good,
    /// The disk of this node has no room for it.
    Full,
    Failed,
}

impl Registry {
    pub(super) fn count_fetch(&self, result: &str) {
        self.inner
            .metrics
            .blob_fetches
            .get_or_create(&FetchResult {
                result: result.to_owned(),
            })
            .inc();
    }

    /// The fetch of this digest that runs, or a new one, in a task of the node.
    async fn fetch(&self, digest: &Digest, size: u64) -> Result<Arc<Fetch>, Error> {
        let find = || {
            self.inner
                .fetches
                .running
                .lock()
                .expect("no panic while held")
                .get(digest)
                .cloned()
        };
        if let Some(fetch) = find() {
            return Ok(fetch);
        }
        let staging = self.inner.blobs.staging();
        staging.check_room_for(size)?;
        let upload = staging.create(digest.algorithm()).await?;
        let (source, source_seen) = watch::channel(None);
        let (end, end_seen) = watch::channel(End::Running);
        let fetch = Arc::new(Fetch {
            growing: upload.follow(),
            source: source_seen,
            end: end_seen,
        });
        {
            let mut running = self
                .inner
                .fetches
                .running
                .lock()
                .expect("no panic while held");
            if let Some(other) = running.get(digest) {
                return Ok(other.clone());
            }
            running.insert(digest.clone(), fetch.clone());
        }
        let (registry, digest) = (self.clone(), digest.clone());
        self.inner.tasks.spawn(async move {
            let result = registry.transfer(upload, &digest, size, &source).await;
            registry
                .inner
                .fetches
                .running
                .lock()
                .expect("no panic while held")
                .remove(&digest);
            registry.count_fetch(match &result {
                Ok(()) => "ok",
                Err(Error::DigestMismatch(_)) => "bad_digest",
                Err(_) => "failed",
            });
            if let Err(error) = &result {
                tracing::info!(%digest, %error, "a fetch from other regions failed");
            }
            end.send_replace(match &result {
                Ok(()) => End::Good,
                Err(Error::DiskFull) => End::Full,
                Err(_) => End::Failed,
            });
            if result.is_ok() {
                let cached = pb::Cached {
                    digests: vec![digest.to_string()],
                };
                // A hint: who asks finds out anyway.
                let _ = registry
                    .inner
                    .metadata
                    .write(Body::Cached(cached), Budget::new(ASK * 5))
                    .await;
            }
        });
        Ok(fetch)
    }

    /// From one holder after the other, at the offset that was reached.
    async fn transfer(
        &self,
        mut upload: crate::blobs::Upload,
        digest: &Digest,
        size: u64,
        source: &watch::Sender<Option<RegionName>>,
    ) -> Result<(), Error> {
        let mut sources = Vec::new();
        for (turn, node) in self.holders(digest).await?.into_iter().enumerate() {
            let offset = upload.flush().await?;
            if offset == size && size > 0 {
                break;
            }
            let Ok((_, response)) = self.inner.peers.read_blob(node, digest, offset).await else {
                continue;
            };
            if turn > 0 && offset > 0 {
                self.count_fetch("next_holder");
            }
            if let Some((region, _)) = self.inner.peers.address(node) {
                source.send_replace(Some(region));
            }
            sources.push(node);
            let mut bytes = response.bytes_stream();
            loop {
                let piece = match bytes.next().now_or_never() {
                    Some(piece) => piece,
                    None => {
                        // Readers see all that came before more of it is waited for.
                        upload.flush().await?;
                        bytes.next().await
                    }
                };
                match piece {
                    Some(Ok(piece)) if upload.len() + piece.len() as u64 <= size => {
                        upload.append(piece).await?;
                    }
                    _ => break,
                }
            }
            if upload.flush().await? == size {
                break;
            }
        }
        if upload.len() < size {
            return Err(Error::Unavailable(format!(
                "no reachable region has all of {digest}"
            )));
        }
        let kept = self.keep(upload, digest).await.map(|_| ());
        if let Err(Error::DigestMismatch(_)) = &kept {
            self.suspect(sources, digest);
        }
        kept
    }

    /// One of these sent wrong bytes: each is to read its copy again, and is asked last meanwhile.
    pub(super) fn suspect(&self, sources: Vec<NodeId>, digest: &Digest) {
        for node in sources {
            self.inner.fetches.suspect(node, digest);
            let (registry, digest) = (self.clone(), digest.clone());
            self.until_stopped(async move {
                match registry.inner.peers.check_blob(node, &digest).await {
                    Ok(true) => registry.inner.fetches.trust(node, &digest),
                    Ok(false) => {
                        tracing::warn!(%node, %digest, "the copy of another region was bad; it does not count any more")
                    }
                    Err(error) => {
                        tracing::info!(%node, %digest, %error, "a suspect copy could not be checked")
                    }
                }
            });
        }
    }

    /// On record first, counted before hints, nearest first; then whoever says that it has it; and
    /// last those whose bytes were wrong before.
    pub(super) async fn holders(&self, digest: &Digest) -> Result<Vec<NodeId>, Error> {
        let recorded = self
            .view()
            .blob(digest)?
            .map(|blob| blob.holders)
            .unwrap_or_default();
        let by_distance = self.inner.peers.by_distance();
        let mut nodes: Vec<NodeId> = Vec::new();
        for counted in [true, false] {
            let of_kind = |node: &&NodeId| {
                recorded
                    .iter()
                    .any(|h| h.node == **node && h.counted == counted)
            };
            nodes.extend(by_distance.iter().filter(of_kind));
        }
        let others = by_distance
            .into_iter()
            .filter(|node| !nodes.contains(node))
            .map(|node| async move {
                let request = peer::StatRequest {
                    repository: String::new(),
                    digest: digest.to_string(),
                    further: Vec::new(),
                };
                let stat = self.inner.peers.stat(node, request, ASK).await;
                stat.is_ok_and(|stat| stat.has_file).then_some(node)
            });
        let others: Vec<_> = futures_util::future::join_all(others).await;
        nodes.extend(others.into_iter().flatten());
        nodes.sort_by_key(|node| self.inner.fetches.is_suspect(*node, digest));
        Ok(nodes)
    }

    /// Waits for the first byte; held within the budget while no holder can be reached.
    pub(super) async fn read_from_peer(
        &self,
        digest: &Digest,
        range: Range<u64>,
        size: u64,
        budget: Budget,
    ) -> Result<(RegionName, ByteStream), Error> {
        let mut held = None;
        loop {
            let fetch = match self.fetch(digest, size).await {
                Err(Error::DiskFull) => return self.pass_on(digest, range, size, budget).await,
                fetch => fetch?,
            };
            let mut source = fetch.source.clone();
            let mut end = fetch.end.clone();
            let began = async {
                if size <= HELD_BACK {
                    // Nothing goes out before the digest is known: another holder can be asked yet.
                    let mut progress = fetch.growing.progress();
                    let is_over = |now: &Progress| !matches!(now, Progress::Growing { .. });
                    let over = progress.wait_for(is_over).await.ok().map(|now| *now);
                    return match over {
                        Some(Progress::Done { .. }) => source.borrow().clone(),
                        _ => None,
                    };
                }
                tokio::select! {
                    biased;
                    _ = end.wait_for(|end| matches!(end, End::Failed | End::Full)) => None,
                    region = source.wait_for(Option::is_some) => region.ok().and_then(|region| region.clone()),
                }
            };
            if let Ok(Some(region)) = tokio::time::timeout_at(budget.deadline(), began).await {
                return Ok((region, self.follow(fetch, digest, range, size)));
            }
            if budget.is_spent() {
                return Err(out_of_reach(digest));
            }
            held.get_or_insert_with(|| self.inner.metrics.hold());
            tokio::time::sleep(PAUSE.min(budget.remaining())).await;
        }
    }

    /// `range` of a fetch, as it arrives. When the disk gets full on the way the rest is passed on.
    fn follow(
        &self,
        fetch: Arc<Fetch>,
        digest: &Digest,
        range: Range<u64>,
        size: u64,
    ) -> ByteStream {
        let (registry, digest) = (self.clone(), digest.clone());
        let passed: Option<ByteStream> = None;
        Box::pin(stream::unfold(
            (range.start, passed),
            move |(at, mut passed)| {
                let (registry, digest) = (registry.clone(), digest.clone());
                let (fetch, range) = (fetch.clone(), range.clone());
                async move {
                    if let Some(rest) = &mut passed {
                        let piece = rest.next().await?;
                        return Some((piece, (at, passed)));
                    }
                    if at >= range.end {
                        return None;
                    }
                    match next_piece(&fetch, at, range.end, size).await {
                        Ok(piece) => {
                            let next = at + piece.len() as u64;
                            Some((Ok(piece), (next, None)))
                        }
                        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                            let rest = registry.pass_rest(&fetch.growing, &digest, at, range, size);
                            let mut rest = rest.await;
                            let piece = rest.next().await?;
                            Some((piece, (at, Some(rest))))
                        }
                        Err(error) => Some((Err(error), (range.end, None))),
                    }
                }
            },
        ))
    }

    /// A local copy that proves bad on the way is taken over by another region's, at the same byte.
    pub(super) fn or_else_from_peer(
        &self,
        digest: &Digest,
        range: Range<u64>,
        size: u64,
        bytes: ByteStream,
    ) -> ByteStream {
        let (registry, digest) = (self.clone(), digest.clone());
        Box::pin(stream::unfold(
            (bytes, range.start, false),
            move |(mut bytes, at, taken)| {
                let (registry, digest, end) = (registry.clone(), digest.clone(), range.end);
                async move {
                    match bytes.next().await? {
                        Ok(piece) => {
                            let at = at + piece.len() as u64;
                            Some((Ok(piece), (bytes, at, taken)))
                        }
                        Err(error) if error.kind() == io::ErrorKind::InvalidData && !taken => {
                            match registry
                                .read_from_peer(&digest, at..end, size, Budget::default())
                                .await
                            {
                                Ok((_, mut rest)) => {
                                    let piece = rest.next().await?;
                                    let at =
                                        at + piece.as_ref().map_or(0, |piece| piece.len() as u64);
                                    Some((piece, (rest, at, true)))
                                }
                                Err(error) => {
                                    Some((Err(io::Error::other(error)), (bytes, at, true)))
                                }
                            }
                        }
                        Err(error) => Some((Err(error), (bytes, at, true))),
                    }
                }
            },
        ))
    }

    pub(super) async fn fetch_whole(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        let fetch = self.fetch(digest, size).await?;
        let mut end = fetch.end.clone();
        let ended = end
            .wait_for(|end| *end != End::Running)
            .await
            .map(|end| *end);
        match ended {
            Ok(End::Good) => Ok(()),
            _ => Err(Error::Unavailable(format!("{digest} could not be fetched"))),
        }
    }
}

/// Held for as long as a client waits, and still no holder.
pub(super) fn out_of_reach(digest: &Digest) -> Error {
    Error::Unavailable(format!(
        "the regions that hold {digest} cannot be reached; try again when `roadstead status` shows them up"
    ))
}

async fn next_piece(
    fetch: &Fetch,
    at: u64,
    end_of_range: u64,
    size: u64,
) -> io::Result<bytes::Bytes> {
    let mut progress = fetch.growing.progress();
    loop {
        let readable = match *progress.borrow_and_update() {
            Progress::Growing { len } => len.min(size.saturating_sub(HELD_BACK)),
            // The digest is right; whether it can be kept does not matter to a reader.
            Progress::Done { len } => len,
            Progress::Failed => break,
        };
        let upto = readable.min(end_of_range);
        if at < upto {
            let len = usize::try_from((upto - at).min(PIECE)).map_err(io::Error::other)?;
            return fetch.growing.read_at(at, len).await;
        }
        if progress.changed().await.is_err() {
            break;
        }
    }
    let mut end = fetch.end.clone();
    let ended = end.wait_for(|end| *end != End::Running).await;
    Err(match ended.map(|end| *end) {
        Ok(End::Full) => io::ErrorKind::StorageFull.into(),
        _ => io::Error::other("the transfer from another region failed"),
    })
}
