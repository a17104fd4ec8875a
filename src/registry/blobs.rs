//! Blobs as a repository sees them: there when linked, from this disk, else from another region.

use super::{BlobBody, BlobStat, Error, RangeSpec, Registry, Repository, Source};
use crate::blobs::{ByteStream, ReadError};
use crate::budget::Budget;
use crate::oci::{Digest, RepositoryName};
use crate::proto::peer::v1 as peer;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use crate::topology::NodeId;
use std::io;
use std::ops::Range;
use std::time::Duration;
use tokio::time::Instant;

/// A blob that nobody knows is asked for no longer than this (A19).
const ASK: Duration = Duration::from_millis(300);
/// And of many, so much longer for each.
const ASK_EACH: Duration = Duration::from_millis(1);

/// What of `size` bytes a range asks for (RFC 9110, 14.1.2).
fn resolve(spec: Option<RangeSpec>, size: u64) -> Result<Range<u64>, Error> {
    let range = match spec {
        None => 0..size,
        Some(_) if size == 0 => 0..0,
        Some(RangeSpec::FromTo(from, to)) if from <= to => from..to.saturating_add(1).min(size),
        Some(RangeSpec::FromTo(..)) => size..size,
        Some(RangeSpec::From(from)) => from..size,
        Some(RangeSpec::Last(n)) => size - n.min(size)..size,
    };
    if range.start >= range.end && size > 0 {
        return Err(Error::RangeNotSatisfiable { size });
    }
    Ok(range)
}

/// Several ranges of `size` bytes, those left out that no byte is in. They are more than one blob
/// holds when they overlap, which only a client that means harm asks for: then all of it is `None`.
pub fn resolve_all(specs: &[RangeSpec], size: u64) -> Result<Option<Vec<Range<u64>>>, Error> {
    let resolved = specs.iter().map(|spec| resolve(Some(*spec), size));
    let ranges: Vec<_> = resolved.flatten().collect();
    if ranges.is_empty() {
        return Err(Error::RangeNotSatisfiable { size });
    }
    let lengths = ranges
        .iter()
        .map(|range| u128::from(range.end - range.start));
    let is_paid_for = lengths.sum::<u128>() <= u128::from(size) && size > 0;
    Ok(is_paid_for.then_some(ranges))
}

impl Registry {
    /// The size of a blob that may be read in the repository: by the replicated link, by this
    /// node's own, or by a peer's.
    pub(super) async fn linked_size(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        let sizes = self.linked_sizes(repository, std::slice::from_ref(digest));
        Ok(sizes.await?.pop().flatten())
    }

    /// The same of several, in their order: one call a peer for all that are not known here.
    pub(super) async fn linked_sizes(
        &self,
        repository: &RepositoryName,
        digests: &[Digest],
    ) -> Result<Vec<Option<u64>>, Error> {
        let mut sizes = Vec::new();
        for digest in digests {
            let view = self.view();
            sizes.push(match view.is_blob_linked(repository, digest)? {
                true => view.blob_size(digest)?,
                false => self.vouch(repository, digest).await?,
            });
        }
        let mut asked = Vec::new();
        for (at, digest) in digests.iter().enumerate() {
            if sizes[at].is_none() {
                asked.push((at, digest.to_string()));
            }
        }
        if asked.is_empty() {
            return Ok(sizes);
        }
        let names: Vec<String> = asked.iter().map(|(_, name)| name.clone()).collect();
        let until = Instant::now()
            + self.ask_within()
            + ASK_EACH * u32::try_from(names.len()).unwrap_or(u32::MAX);
        let peers = self.inner.peers.by_distance().into_iter();
        let answers = peers.map(|node| self.stats_of(node, repository, &names, until));
        for stats in futures_util::future::join_all(answers).await {
            for ((at, _), stat) in asked.iter().zip(stats) {
                if stat.linked && stat.has_file {
                    sizes[*at].get_or_insert(stat.size);
                }
            }
        }
        Ok(sizes)
    }

    /// What a peer says of blobs, in their order, as far as it has answered.
    async fn stats_of(
        &self,
        node: NodeId,
        repository: &RepositoryName,
        digests: &[String],
        until: Instant,
    ) -> Vec<peer::StatResponse> {
        let mut stats: Vec<peer::StatResponse> = Vec::new();
        while let Some((digest, further)) = digests[stats.len()..].split_first() {
            let request = peer::StatRequest {
                repository: repository.to_string(),
                digest: digest.clone(),
                further: further.to_vec(),
            };
            let within = until.saturating_duration_since(Instant::now());
            let Ok(mut stat) = self.inner.peers.stat(node, request, within).await else {
                break;
            };
            let mut more = std::mem::take(&mut stat.further);
            more.truncate(further.len());
            stats.push(stat);
            stats.append(&mut more);
        }
        stats
    }

    /// How long peers are asked about a blob.
    fn ask_within(&self) -> Duration {
        let peers = &self.inner.peers;
        let nodes = peers.by_distance().into_iter();
        let slowest = nodes.filter_map(|node| peers.round_trip(node)).max();
        ASK.max(slowest.unwrap_or_default() * 2)
    }

    /// What this node says of a blob to a peer, by its own files and links only.
    pub async fn local_stat(
        &self,
        repository: Option<&RepositoryName>,
        digest: &Digest,
    ) -> peer::StatResponse {
        let size = self.inner.blobs.stat(digest).await.ok().flatten();
        let linked = match repository {
            Some(repository) => self
                .vouch(repository, digest)
                .await
                .ok()
                .flatten()
                .is_some(),
            None => false,
        };
        peer::StatResponse {
            has_file: size.is_some(),
            size: size.unwrap_or(0),
            linked,
            further: Vec::new(),
        }
    }

    /// Local bytes only (F5).
    pub async fn local_blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<(u64, ByteStream), Error> {
        let size = self
            .inner
            .blobs
            .stat(digest)
            .await?
            .ok_or(Error::BlobUnknown)?;
        match self
            .inner
            .blobs
            .open_blob(digest, offset.min(size)..size)
            .await
        {
            Ok(bytes) => Ok((size, bytes)),
            Err(ReadError::Unknown) => Err(Error::BlobUnknown),
            // Just now found bad, and out of the way.
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                Err(Error::BlobUnknown)
            }
            Err(ReadError::Io(error)) => Err(error.into()),
        }
    }

    /// A peer got bytes of another digest from here. False: the copy was bad, and does not count
    /// any more.
    pub async fn check_blob(&self, digest: &Digest) -> Result<bool, Error> {
        let _alone = self.inner.checking.lock().await;
        match self.inner.blobs.check(digest).await {
            Ok(is_good) => Ok(is_good),
            Err(ReadError::Unknown) => Err(Error::BlobUnknown),
            Err(ReadError::Io(error)) => Err(error.into()),
        }
    }
}

impl Repository {
    /// There, or not: a miss is asked of the peers, and needs no leader (A19).
    pub async fn stat_blob(&self, digest: &Digest, _budget: Budget) -> Result<BlobStat, Error> {
        match self.registry.linked_size(&self.name, digest).await? {
            Some(size) => Ok(BlobStat {
                size,
                source: Source::Local,
            }),
            None => Err(Error::BlobUnknown),
        }
    }

    pub async fn open_blob(
        &self,
        digest: &Digest,
        range: Option<RangeSpec>,
        budget: Budget,
    ) -> Result<BlobBody, Error> {
        let registry = &self.registry;
        let size = match registry.linked_size(&self.name, digest).await? {
            Some(size) => size,
            None => {
                let linked = registry
                    .inner
                    .metadata
                    .confirm(budget, |view| view.is_blob_linked(&self.name, digest))
                    .await?;
                let blob = if linked {
                    registry.view().blob(digest)?
                } else {
                    None
                };
                blob.ok_or(Error::BlobUnknown)?.size
            }
        };
        let range = resolve(range, size)?;
        match registry.inner.blobs.open_blob(digest, range.clone()).await {
            Ok(bytes) => {
                let body = registry.or_else_from_peer(digest, range.clone(), size, bytes);
                return Ok(BlobBody {
                    size,
                    range,
                    source: Source::Local,
                    body,
                });
            }
            Err(ReadError::Unknown) => {}
            Err(ReadError::Io(error)) => {
                tracing::warn!(%digest, %error, "a local copy cannot be read")
            }
        }
        let (region, body) = registry
            .read_from_peer(digest, range.clone(), size, budget)
            .await?;
        Ok(BlobBody {
            size,
            range,
            source: Source::Peer(region),
            body,
        })
    }

    /// The entry of the log that did it.
    pub async fn delete_blob(&self, digest: &Digest, budget: Budget) -> Result<u64, Error> {
        if self
            .registry
            .linked_size(&self.name, digest)
            .await?
            .is_none()
        {
            return Err(Error::BlobUnknown);
        }
        let delete = pb::DeleteBlob {
            repository: self.name.to_string(),
            digest: digest.to_string(),
            actor: self.principal.as_str().to_owned(),
        };
        // Local links from before it are dead with it, everywhere; one that came since is not.
        self.registry.decide(Body::DeleteBlob(delete), budget).await
    }

    /// True: linked now, here or where the blob is. False: an ordinary upload is to follow (G8).
    /// `from`: None is any repository that the caller may pull from.
    pub async fn mount_blob(
        &self,
        digest: &Digest,
        from: Option<&Repository>,
    ) -> Result<bool, Error> {
        if self.mount_here(digest, from).await? {
            return Ok(true);
        }
        // What a short-lived token is good for stays here: a peer would go by all that its account may.
        if from.is_none() && self.principal.scopes.is_some() {
            return Ok(false);
        }
        let peers = &self.registry.inner.peers;
        let asked = peers.by_distance().into_iter().map(|node| {
            let request = peer::MountRequest {
                repository: self.name.to_string(),
                digest: digest.to_string(),
                from: from.map(|from| from.name.to_string()).unwrap_or_default(),
                principal: self.principal.as_str().to_owned(),
            };
            async move { peers.mount(node, request, self.registry.ask_within()).await }
        });
        let answers = futures_util::future::join_all(asked).await;
        Ok(answers.into_iter().flatten().any(|answer| answer.mounted))
    }

    /// A link vouches only where the file is (A8): nothing is linked where it is not.
    pub async fn mount_here(
        &self,
        digest: &Digest,
        from: Option<&Repository>,
    ) -> Result<bool, Error> {
        let registry = &self.registry;
        if registry.inner.blobs.stat(digest).await?.is_none() {
            return Ok(false);
        }
        let sources = match from {
            Some(from) => vec![from.clone()],
            None => {
                let names = registry.may_be_linked_to(digest)?;
                let pullable =
                    |name| registry.authorize(&self.principal, super::Action::Pull, name);
                names.iter().flat_map(pullable).collect()
            }
        };
        // Before it is looked whether the sources have it.
        let index = registry.view().applied_index()?;
        for source in sources {
            let name = &source.name;
            if registry.view().is_blob_linked(name, digest)?
                || registry.vouch(name, digest).await?.is_some()
            {
                registry.link(&self.name, digest, index).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_ranges_those_that_are_there_are_sent_and_overlaps_are_not_paid_for() {
        let all = |specs: &[RangeSpec], size| resolve_all(specs, size);
        let (first, last) = (RangeSpec::FromTo(0, 1), RangeSpec::Last(2));
        let beyond = RangeSpec::From(10);
        assert_eq!(
            all(&[first, beyond, last], 10).unwrap(),
            Some(vec![0..2, 8..10])
        );
        assert!(all(&[beyond, beyond], 10).is_err());
        assert_eq!(all(&[RangeSpec::From(0), first], 10).unwrap(), None);
        assert_eq!(all(&[first, last], 0).unwrap(), None);
        let whole = RangeSpec::From(0);
        assert_eq!(all(&[whole, whole], u64::MAX).unwrap(), None);
    }

    #[test]
    fn ranges_are_clamped_or_refused() {
        let ok = |spec, size| resolve(Some(spec), size).unwrap();
        assert_eq!(ok(RangeSpec::FromTo(0, 0), 10), 0..1);
        assert_eq!(ok(RangeSpec::FromTo(5, 99), 10), 5..10);
        assert_eq!(ok(RangeSpec::From(9), 10), 9..10);
        assert_eq!(ok(RangeSpec::Last(3), 10), 7..10);
        assert_eq!(ok(RangeSpec::Last(30), 10), 0..10);
        assert_eq!(ok(RangeSpec::From(5), 0), 0..0);
        for bad in [
            RangeSpec::From(10),
            RangeSpec::FromTo(5, 4),
            RangeSpec::Last(0),
            RangeSpec::FromTo(u64::MAX, u64::MAX),
        ] {
            assert!(resolve(Some(bad), 10).is_err(), "{bad:?}");
        }
    }
}
