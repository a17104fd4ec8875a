//! "This repository may read this blob", noted on this node by an upload, a copy or a mount, until
//! a manifest carries the link into the replicated state (design 7.3, A8, A21).
//!
//! What must stay true: a local link vouches only while this node has the file, it has not expired
//! in log time, and no later DeleteBlob of the pair is applied; it is on disk before anyone is told.
//! A link that a copy brings is as old as the upload that it is a copy of.

use super::Registry;
use crate::metadata::kv::Batch;
use crate::oci::Digest;
use crate::oci::RepositoryName;
use crate::proto::state::v1::LinkRecord;
use bytes::Bytes;
use prost::Message;
use std::io;

/// In the tree of this node's own notes: `link/DIGEST 0 REPOSITORY`.
const PREFIX: &[u8] = b"link/";

const HOUR_MS: u64 = 60 * 60 * 1000;
/// A link lives this long, in log time, and whoever asks for the blob renews it (A8).
const TTL_MS: u64 = 48 * HOUR_MS;
/// Renewed when less is left: well above the 12 h that a yes promises, so that a renewal that is
/// lost in a crash breaks no promise and needs no sync.
const RENEW_MS: u64 = 36 * HOUR_MS;
/// The key of a link, and what it links when it is one of this release.
pub(super) type Noted = (Bytes, Option<(RepositoryName, Digest)>);

const SWEEP_PAGE: usize = 500;
/// Of the repositories that share a blob so many are looked at for one that a caller may pull from.
const ANY: usize = 100;

fn key(repository: &RepositoryName, digest: &Digest) -> Vec<u8> {
    let mut key = prefix(digest);
    key.extend_from_slice(repository.as_str().as_bytes());
    key
}

/// Of all links of one blob.
fn prefix(digest: &Digest) -> Vec<u8> {
    let mut key = PREFIX.to_vec();
    key.extend_from_slice(digest.to_string().as_bytes());
    key.push(0);
    key
}

fn is_alive(link: &LinkRecord, now_ms: u64, unlinked_at: u64) -> bool {
    link.expires_at_ms > now_ms && link.index >= unlinked_at
}

impl Registry {
    /// Notes the link, as of that index of the log; one that is newer stays so. Alone with the
    /// digest. Not yet on disk: `Metadata::sync` follows, once for several notes.
    fn note_link(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        index: u64,
    ) -> io::Result<()> {
        let before = self.noted_link(repository, digest)?;
        let link = LinkRecord {
            expires_at_ms: self.view().log_time_ms()? + TTL_MS,
            index: before.map_or(index, |before| before.index.max(index)),
        };
        let mut batch = Batch::default();
        batch.put(key(repository, digest), link.encode_to_vec());
        self.inner.metadata.local().apply(batch)
    }

    /// Notes the link, on disk when this returns. `index`: of the log, as of which the repository may
    /// read the blob; a delete behind it ends the link, also one that this node has applied already.
    pub(super) async fn link(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        index: u64,
    ) -> io::Result<()> {
        let alone = self.inner.blobs.lock(digest).await;
        self.note_link(repository, digest, index)?;
        drop(alone);
        self.inner.metadata.sync().await
    }

    fn noted_link(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> io::Result<Option<LinkRecord>> {
        let noted = self.inner.metadata.local().get(&key(repository, digest))?;
        let link = noted.map(LinkRecord::decode).transpose();
        link.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn live_link(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> io::Result<Option<LinkRecord>> {
        let Some(link) = self.noted_link(repository, digest)? else {
            return Ok(None);
        };
        let view = self.view();
        let unlinked_at = view.blob_unlinked_at(repository, digest)?;
        Ok(is_alive(&link, view.log_time_ms()?, unlinked_at).then_some(link))
    }

    /// The size of the blob, when this node vouches for it in the repository by its own link: then
    /// it has the file, and the link has at least half a day left.
    pub(super) async fn vouch(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> io::Result<Option<u64>> {
        let Some(link) = self.live_link(repository, digest)? else {
            return Ok(None);
        };
        let _unchanged = self.inner.blobs.lock(digest).await;
        let Some(size) = self.inner.blobs.stat(digest).await? else {
            return Ok(None);
        };
        if link.expires_at_ms < self.view().log_time_ms()? + RENEW_MS {
            // As of when it was: a delete may have come since it was looked at.
            self.note_link(repository, digest, link.index)?;
        }
        Ok(Some(size))
    }

    /// Repositories that the blob may be linked to, by the state and by this node's own links; to be
    /// asked for by name.
    pub(super) fn may_be_linked_to(&self, digest: &Digest) -> io::Result<Vec<RepositoryName>> {
        let own = prefix(digest);
        let noted = self.inner.metadata.local().prefix_page(&own, None, ANY)?;
        let noted = noted
            .iter()
            .map(|(key, _)| String::from_utf8_lossy(&key[own.len()..]).into_owned());
        let replicated = self.view().repositories_with(digest, ANY)?;
        let names = replicated.into_iter().chain(noted);
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// The keys of this node's links after the key `after`, and what each links, also those that have
    /// expired.
    pub(super) fn links_page(&self, after: Option<&[u8]>, limit: usize) -> io::Result<Vec<Noted>> {
        let page = self
            .inner
            .metadata
            .local()
            .prefix_page(PREFIX, after, limit)?;
        let parse = |key: &[u8]| {
            let text = std::str::from_utf8(&key[PREFIX.len()..]).ok()?;
            let (digest, repository) = text.split_once('\0')?;
            Some((repository.parse().ok()?, digest.parse().ok()?))
        };
        let keys = page.into_iter().map(|(key, _)| key);
        Ok(keys.map(|key| (key.clone(), parse(&key))).collect())
    }

    /// Forgets links that have expired.
    pub(super) fn sweep_links(&self) -> io::Result<()> {
        let now_ms = self.view().log_time_ms()?;
        let local = self.inner.metadata.local();
        let mut after: Option<Bytes> = None;
        loop {
            let page = local.prefix_page(PREFIX, after.as_deref(), SWEEP_PAGE)?;
            let mut batch = Batch::default();
            for (key, value) in &page {
                if LinkRecord::decode(value.clone()).is_ok_and(|l| !is_alive(&l, now_ms, 0)) {
                    batch.delete(key.to_vec());
                }
            }
            if !batch.is_empty() {
                local.apply(batch)?;
            }
            match page.last() {
                Some((key, _)) if page.len() == SWEEP_PAGE => after = Some(key.clone()),
                _ => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_dies_with_its_time_and_with_a_later_delete() {
        let link = LinkRecord {
            expires_at_ms: 100,
            index: 7,
        };
        assert!(is_alive(&link, 99, 0));
        assert!(!is_alive(&link, 100, 0), "expired");
        assert!(!is_alive(&link, 0, 8), "deleted after it was written");
        assert!(
            is_alive(&link, 0, 7),
            "written after the delete was applied"
        );
    }

    #[test]
    fn keys_of_two_repositories_never_meet() {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"x");
        let name = |text: &str| text.parse::<RepositoryName>().unwrap();
        assert_ne!(key(&name("a"), &digest), key(&name("a/b"), &digest));
        assert!(key(&name("a"), &digest).starts_with(&prefix(&digest)));
    }
}
