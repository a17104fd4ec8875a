//! A blob that is elsewhere, at a node whose disk has no room for it: passed on while it arrives,
//! and not kept. Each reader has a transfer of its own, from the next holder at the same byte when
//! one fails.
//!
//! What must stay true: of a whole blob the last 64 KiB go out only when the digest of all of it is
//! right; of a blob that is smaller nothing does. A part of a larger one is as good as a part that
//! is read from this disk would be: its holder checks each block (P8).

use super::fetch::{HELD_BACK, PAUSE, out_of_reach};
use super::{Error, Registry};
use crate::blobs::{ByteStream, Growing};
use crate::budget::Budget;
use crate::oci::{Digest, Hasher};
use crate::topology::{NodeId, RegionName};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Each has a connection to another region, and up to 64 KiB in memory.
const AT_ONCE: usize = 256;

/// Who may pass on a blob now.
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Turns {
        Turns(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Turns {
    async fn take(&self, budget: Budget) -> Result<OwnedSemaphorePermit, Error> {
        let turn = self.0.clone().acquire_owned();
        let turn = tokio::time::timeout_at(budget.deadline(), turn).await;
        turn.ok().and_then(Result::ok).ok_or_else(|| {
            Error::Unavailable(
                "the disk of this node is nearly full, and it passes on as many blobs of other regions as it can; \
                 pull from another region, or make its volume larger"
                    .to_owned(),
            )
        })
    }
}

/// One blob on its way through.
struct Passing {
    registry: Registry,
    digest: Digest,
    size: u64,
    wanted: Range<u64>,
    /// Received so far, and to be received.
    at: u64,
    end: u64,
    /// Of all before `at`, when the blob is read to its last byte from its first.
    sum: Option<Hasher>,
    held_back: BytesMut,
    bytes: Option<ByteStream>,
    region: Option<RegionName>,
    /// Who sent any of it.
    sources: Vec<NodeId>,
    /// Not asked yet.
    holders: VecDeque<NodeId>,
    /// Bytes came since the holders were listed, or they never were.
    has_moved: bool,
}

impl Passing {
    /// `before`: the sum of what the reader of a whole blob has already.
    fn new(
        registry: &Registry,
        digest: &Digest,
        wanted: Range<u64>,
        size: u64,
        before: Option<Hasher>,
    ) -> Passing {
        let is_whole = wanted == (0..size) || size <= HELD_BACK;
        let (at, end, sum) = match before {
            Some(sum) => (wanted.start, size, Some(sum)),
            None if is_whole => (0, size, Some(Hasher::new(digest.algorithm()))),
            None => (wanted.start, wanted.end, None),
        };
        Passing {
            registry: registry.clone(),
            digest: digest.clone(),
            size,
            wanted,
            at,
            end,
            sum,
            held_back: BytesMut::new(),
            bytes: None,
            region: None,
            sources: Vec::new(),
            holders: VecDeque::new(),
            has_moved: true,
        }
    }

    /// From the next holder that answers, at the byte that was reached. All are asked again as long
    /// as bytes came since.
    async fn open(&mut self) -> Result<(), Error> {
        let peers = &self.registry.inner.peers;
        loop {
            let Some(node) = self.holders.pop_front() else {
                if !std::mem::take(&mut self.has_moved) {
                    return Err(out_of_reach(&self.digest));
                }
                self.holders = self.registry.holders(&self.digest).await?.into();
                continue;
            };
            let Ok((size, response)) = peers.read_blob(node, &self.digest, self.at).await else {
                continue;
            };
            if size != self.size {
                continue;
            }
            if !self.sources.is_empty() {
                self.registry.count_fetch("next_holder");
            }
            self.region = peers.address(node).map(|(region, _)| region);
            self.sources.push(node);
            let bytes = response.bytes_stream();
            self.bytes = Some(Box::pin(bytes.map(|piece| piece.map_err(io::Error::other))));
            return Ok(());
        }
    }

    async fn receive(&mut self) -> Result<Bytes, Error> {
        loop {
            if let Some(bytes) = &mut self.bytes {
                if let Some(Ok(mut piece)) = bytes.next().await {
                    let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
                    piece.truncate(left);
                    self.at += piece.len() as u64;
                    self.has_moved = true;
                    return Ok(piece);
                }
                self.bytes = None;
            }
            self.open().await?;
        }
    }

    /// The next bytes that may go out; None: those were all.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let free = self.size.saturating_sub(HELD_BACK);
        loop {
            if self.at == self.end {
                let Some(sum) = self.sum.take() else {
                    return Ok(None);
                };
                if sum.finish() == self.digest {
                    let within = |at: u64| usize::try_from(at.saturating_sub(free));
                    let from = within(self.wanted.start).map_err(Error::internal)?;
                    let to = within(self.wanted.end).map_err(Error::internal)?;
                    let last = self.held_back.split().freeze().slice(from..to);
                    return Ok((!last.is_empty()).then_some(last));
                }
                self.start_again()?;
            }
            let from = self.at;
            let mut piece = self.receive().await?;
            let Some(sum) = &mut self.sum else {
                return Ok(Some(piece));
            };
            sum.update(&piece);
            let goes_out = usize::try_from(free.saturating_sub(from)).unwrap_or(usize::MAX);
            self.held_back
                .extend_from_slice(&piece.split_off(goes_out.min(piece.len())));
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    /// Wrong bytes came. Of a small blob nobody has seen them: the holders that are left are asked.
    fn start_again(&mut self) -> Result<(), Error> {
        self.registry.count_fetch("bad_digest");
        let sources = std::mem::take(&mut self.sources);
        self.registry.suspect(sources, &self.digest);
        if self.size > HELD_BACK {
            let told = format!("other bytes than {} came from another region", self.digest);
            return Err(Error::DigestMismatch(told));
        }
        self.bytes = None;
        self.held_back.clear();
        self.sum = Some(Hasher::new(self.digest.algorithm()));
        self.at = 0;
        self.has_moved = false;
        Ok(())
    }
}

impl Registry {
    /// Waits for the first byte; held within the budget while no holder can be reached.
    pub(super) async fn pass_on(
        &self,
        digest: &Digest,
        wanted: Range<u64>,
        size: u64,
        budget: Budget,
    ) -> Result<(RegionName, ByteStream), Error> {
        self.pass(digest, wanted, size, None, budget).await
    }

    /// For a reader of `range` that has all before `at` from a file that could not grow.
    pub(super) async fn pass_rest(
        &self,
        had: &Growing,
        digest: &Digest,
        at: u64,
        range: Range<u64>,
        size: u64,
    ) -> ByteStream {
        let passed = async {
            let before = match range == (0..size) {
                true => Some(had.sum(at, digest.algorithm()).await?),
                false => None,
            };
            let budget = Budget::default();
            self.pass(digest, at..range.end, size, before, budget).await
        };
        match passed.await {
            Ok((_, rest)) => rest,
            Err(error) => Box::pin(stream::iter([Err(io::Error::other(error))])),
        }
    }

    async fn pass(
        &self,
        digest: &Digest,
        wanted: Range<u64>,
        size: u64,
        before: Option<Hasher>,
        budget: Budget,
    ) -> Result<(RegionName, ByteStream), Error> {
        let turn = self.inner.fetches.passing.take(budget).await?;
        let mut held = None;
        loop {
            let mut passing = Passing::new(self, digest, wanted.clone(), size, before.clone());
            let began = async {
                passing.open().await?;
                passing.next().await
            };
            match tokio::time::timeout_at(budget.deadline(), began).await {
                Ok(Ok(first)) => {
                    self.count_fetch("passed");
                    let region = passing.region.clone();
                    let region = region.ok_or_else(|| out_of_reach(digest))?;
                    let first = stream::iter(first.map(Ok));
                    return Ok((region, Box::pin(first.chain(rest(passing, turn)))));
                }
                Ok(Err(Error::Unavailable(_) | Error::DigestMismatch(_))) | Err(_) => {}
                Ok(Err(error)) => return Err(error),
            }
            if budget.is_spent() {
                return Err(out_of_reach(digest));
            }
            held.get_or_insert_with(|| self.inner.metrics.hold());
            tokio::time::sleep(PAUSE.min(budget.remaining())).await;
        }
    }
}

fn rest(
    passing: Passing,
    turn: OwnedSemaphorePermit,
) -> impl stream::Stream<Item = io::Result<Bytes>> + Send {
    stream::unfold(Some((passing, turn)), |state| async move {
        let (mut passing, turn) = state?;
        match passing.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some((passing, turn)))),
            Ok(None) => None,
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    })
}
