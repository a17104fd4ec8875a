//! Blobs that came after the manifests that name them (`sparse=allow`): an upload links them on the
//! node that took it, for a while; here the manifest is pushed once more, so that they are linked
//! in the replicated state and held like any other.
//!
//! What must stay true: only what this node's own links vouch for is added; a manifest that was
//! deleted does not come back.

use super::manifests::Actor;
use super::{Error, Precondition, PutManifest, Registry};
use crate::access::Rights;
use crate::budget::Budget;
use crate::oci::{Digest, Reference, RepositoryName};
use std::time::Duration;

const PAGE: usize = 500;
/// For one manifest; what is not done then is done in the next round.
const HOLD: Duration = Duration::from_secs(10);

impl Registry {
    /// Looks through this node's links, where anything is missing anywhere.
    pub async fn link_arrivals(&self) -> Result<(), Error> {
        if !self.view().is_any_missing()? {
            return Ok(());
        }
        let mut after = None;
        loop {
            let page = self.links_page(after.as_deref(), PAGE)?;
            for (repository, digest) in page.iter().filter_map(|(_, link)| link.as_ref()) {
                self.link_arrival(repository, digest).await?;
            }
            match page.into_iter().nth(PAGE - 1) {
                Some((key, _)) => after = Some(key),
                None => return Ok(()),
            }
        }
    }

    async fn link_arrival(&self, repository: &RepositoryName, blob: &Digest) -> Result<(), Error> {
        let mut after: Option<Digest> = None;
        loop {
            let page = self
                .view()
                .missed_by(repository, blob, after.as_ref(), PAGE)?;
            if page.is_empty() || self.vouch(repository, blob).await?.is_none() {
                return Ok(());
            }
            for manifest in &page {
                match self.push_again(repository, manifest).await {
                    Ok(()) => {
                        tracing::info!(%repository, %manifest, "linked blobs that came after it")
                    }
                    // No quorum, or no other region: the next round tries again.
                    Err(error @ Error::Unavailable(_)) => return Err(error),
                    Err(error) => {
                        tracing::debug!(%repository, %manifest, %error, "blobs that came after it are not linked")
                    }
                }
            }
            after = page.last().cloned();
        }
    }

    async fn push_again(
        &self,
        repository: &RepositoryName,
        manifest: &Digest,
    ) -> Result<(), Error> {
        let Some(stored) = self.view().manifest(repository, manifest)? else {
            return Ok(());
        };
        let put = PutManifest {
            reference: Reference::Digest(manifest.clone()),
            tags: Vec::new(),
            content_type: Some(stored.media_type),
            bytes: stored.bytes,
            precondition: Precondition::default(),
        };
        let (name, budget) = (repository.clone(), Budget::new(HOLD));
        // Nobody pushes it now: it is there, and gets no tag.
        let actor = Actor {
            name: "anonymous".to_owned(),
            rights: Rights::ADMIN,
        };
        self.push(name, actor, put, true, budget).await?;
        Ok(())
    }
}
