//! Manifests, tags and referrers: read from local state and confirmed when missing; written
//! through the log once the blobs that they name are in enough regions.

use super::{Error, ManifestPut, Precondition, PutManifest, Read, Registry, Repository};
use crate::access::Rights;
use crate::budget::Budget;
use crate::clock::wall_ms;
use crate::metadata::query::{Referrer, StoredManifest};
use crate::oci::{Algorithm, Descriptor, Digest, Manifest, Reference, RepositoryName};
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use crate::proto::state::v1::outcome::Result as Outcome;

/// Who pushes, and what they may do there.
pub(super) struct Actor {
    pub name: String,
    pub rights: Rights,
}

fn precondition(p: Precondition) -> Option<pb::Precondition> {
    (!p.if_match.is_empty() || !p.if_none_match.is_empty()).then_some(pb::Precondition {
        if_match: p.if_match,
        if_none_match: p.if_none_match,
    })
}

fn refused(refused: pb::Refused) -> Error {
    match refused.reason() {
        pb::Reason::PreconditionFailed => Error::PreconditionFailed(refused.message),
        pb::Reason::ManifestUnknown | pb::Reason::TagUnknown => Error::ManifestUnknown,
        pb::Reason::RepositoryUnknown => Error::RepositoryUnknown,
        pb::Reason::BlobInUse => Error::BlobInUse,
        pb::Reason::DiskFull => Error::DiskFull,
        pb::Reason::TagImmutable | pb::Reason::NotAllowed => Error::Denied(refused.message),
        pb::Reason::RequestSettled => {
            Error::Unavailable("this write was given up before; repeat it".to_owned())
        }
        pb::Reason::Invalid
        | pb::Reason::NameTaken
        | pb::Reason::NameUnknown
        | pb::Reason::BlobsAbsent
        | pb::Reason::LogLost
        | pb::Reason::JoinToken
        | pb::Reason::NoCa
        | pb::Reason::Unspecified => Error::ManifestInvalid(refused.message),
    }
}

impl Registry {
    /// The entry that did it.
    pub(super) async fn decide(&self, body: Body, budget: Budget) -> Result<u64, Error> {
        let outcome = self.inner.metadata.write(body, budget).await?;
        match outcome.result {
            Some(Outcome::Done(_)) => Ok(outcome.index),
            Some(Outcome::Refused(no)) => Err(refused(no)),
            _ => Err(Error::Unavailable(
                "outcome unknown: the write may still take effect".to_owned(),
            )),
        }
    }

    /// Which blobs may be read in the repository, and which not: naming a digest gives no right to
    /// it. Those must be allowed to be absent by the policy, or be manifests of the repository that
    /// an index calls something else.
    async fn sort_out(
        &self,
        repository: &RepositoryName,
        manifest: &Manifest,
    ) -> Result<(Vec<Descriptor>, Vec<Digest>), Error> {
        let digests = manifest.blobs.iter().map(|blob| blob.digest.clone());
        let digests: Vec<Digest> = digests.collect();
        let sizes = self.linked_sizes(repository, &digests).await?;
        let (mut present, mut absent) = (Vec::new(), Vec::new());
        for (blob, size) in manifest.blobs.iter().cloned().zip(sizes) {
            match size {
                None => absent.push(blob.digest),
                Some(size) if size != blob.size => {
                    return Err(Error::ManifestInvalid(format!(
                        "{} has {size} bytes, the manifest says {}",
                        blob.digest, blob.size
                    )));
                }
                Some(_) => present.push(blob),
            }
        }
        if absent.is_empty() || self.view().policy(&repository.into())?.sparse.value {
            return Ok((present, absent));
        }
        let view = self.view();
        let mut unknown = Vec::new();
        for digest in &absent {
            if !(manifest.is_index && view.has_manifest(repository, digest)?) {
                unknown.push(digest.clone());
            }
        }
        if unknown.is_empty() {
            Ok((present, absent))
        } else {
            Err(Error::ReferencesUnknown(unknown))
        }
    }

    /// `again`: for blobs that came after it, and only while the repository holds it.
    pub(super) async fn push(
        &self,
        name: RepositoryName,
        actor: Actor,
        put: PutManifest,
        again: bool,
        budget: Budget,
    ) -> Result<ManifestPut, Error> {
        let manifest = Manifest::parse(put.content_type.as_deref(), &put.bytes)
            .map_err(|error| Error::ManifestInvalid(error.to_string()))?;
        let (digest, mut tags) = match &put.reference {
            Reference::Digest(given) => {
                let actual = Digest::of(given.algorithm(), &put.bytes);
                if actual != *given {
                    return Err(Error::DigestMismatch(format!(
                        "the manifest has digest {actual}, not {given}"
                    )));
                }
                (actual, Vec::new())
            }
            Reference::Tag(tag) => (Digest::of(Algorithm::Sha256, &put.bytes), vec![tag.clone()]),
        };
        tags.extend(put.tags.iter().cloned());
        let index = self.view().applied_index()?;
        let (present, absent) = self.sort_out(&name, &manifest).await?;
        let annotations_json = match manifest.annotations.is_empty() {
            true => String::new(),
            false => serde_json::to_string(&manifest.annotations).map_err(Error::internal)?,
        };
        let subject = manifest
            .subject
            .as_ref()
            .map(|subject| subject.digest.clone());
        let mut command = pb::PutManifest {
            repository: name.to_string(),
            digest: digest.to_string(),
            media_type: manifest.media_type.clone(),
            bytes: put.bytes,
            tags: tags.iter().map(ToString::to_string).collect(),
            blobs: manifest
                .blobs
                .iter()
                .map(|b| pb::BlobRef {
                    digest: b.digest.to_string(),
                    size: b.size,
                })
                .collect(),
            children: manifest
                .children
                .iter()
                .map(|child| child.digest.to_string())
                .collect(),
            subject: subject
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            artifact_type: manifest.artifact_type.clone().unwrap_or_default(),
            annotations_json,
            receipts: Vec::new(),
            precondition: precondition(put.precondition),
            may_not_create: !actor.rights.has(Rights::CREATE),
            may_not_overwrite: !actor.rights.has(Rights::OVERWRITE),
            actor: actor.name,
            pushed_at_ms: wall_ms(),
            absent: absent.iter().map(Digest::to_string).collect(),
            again,
        };
        loop {
            command.receipts = self
                .gather(&name, &present, index, budget)
                .await?
                .into_receipts();
            let outcome = self
                .inner
                .metadata
                .write(Body::PutManifest(command.clone()), budget)
                .await?;
            match outcome.result {
                Some(Outcome::Done(_)) => {
                    return Ok(ManifestPut {
                        digest,
                        subject,
                        tags,
                        warnings: Vec::new(),
                    });
                }
                // The policy has changed since they were looked for.
                Some(Outcome::Refused(no)) if no.reason() == pb::Reason::BlobsAbsent => {
                    return Err(Error::ReferencesUnknown(absent));
                }
                Some(Outcome::Refused(no)) => return Err(refused(no)),
                Some(Outcome::NeedReceipts(_)) if !budget.is_spent() => {
                    tracing::info!(%digest, "receipts ran out before they were counted; they are renewed");
                }
                _ => {
                    return Err(Error::Unavailable(
                        "outcome unknown: the push may still take effect".to_owned(),
                    ));
                }
            }
        }
    }
}

impl Repository {
    fn actor(&self) -> Actor {
        Actor {
            name: self.principal.as_str().to_owned(),
            rights: self.rights,
        }
    }

    /// A hit is never refused; a miss is one only when the leader confirms it.
    pub async fn manifest(
        &self,
        reference: &Reference,
        budget: Budget,
    ) -> Result<Read<StoredManifest>, Error> {
        let look = |view: &crate::metadata::View| match reference {
            Reference::Tag(tag) => view.manifest_by_tag(&self.name, tag),
            Reference::Digest(digest) => view.manifest(&self.name, digest),
        };
        let metadata = &self.registry.inner.metadata;
        let read = metadata.read(look).await?;
        if let Some(value) = read.value {
            return Ok(Read {
                value,
                staleness: read.staleness,
                applied_index: read.applied_index,
            });
        }
        match metadata.confirm(budget, look).await? {
            Some(value) => Ok(Read {
                value,
                staleness: None,
                applied_index: read.applied_index,
            }),
            None => Err(Error::ManifestUnknown),
        }
    }

    pub async fn put_manifest(
        &self,
        put: PutManifest,
        budget: Budget,
    ) -> Result<ManifestPut, Error> {
        let registry = self.registry.clone();
        let (name, actor) = (self.name.clone(), self.actor());
        let push = async move { registry.push(name, actor, put, false, budget).await };
        self.registry.owned(push).await
    }

    /// By tag only the tag goes; by digest the manifest, and all tags to it. The entry that did it.
    pub async fn delete_manifest(
        &self,
        reference: &Reference,
        condition: Precondition,
        budget: Budget,
    ) -> Result<u64, Error> {
        let (repository, actor) = (self.name.to_string(), self.principal.as_str().to_owned());
        let precondition = precondition(condition);
        let body = match reference {
            Reference::Tag(tag) => Body::DeleteTag(pb::DeleteTag {
                repository,
                tag: tag.to_string(),
                precondition,
                actor,
            }),
            Reference::Digest(digest) => Body::DeleteManifest(pb::DeleteManifest {
                repository,
                digest: digest.to_string(),
                precondition,
                actor,
            }),
        };
        self.registry.decide(body, budget).await
    }

    /// At most `limit` after `after`, and whether more remain.
    pub async fn tags(
        &self,
        after: Option<&str>,
        limit: usize,
        budget: Budget,
    ) -> Result<Read<(Vec<String>, bool)>, Error> {
        let metadata = &self.registry.inner.metadata;
        let known = metadata
            .read(|view| view.has_repository(&self.name))
            .await?
            .value;
        if !known
            && !metadata
                .confirm(budget, |view| view.has_repository(&self.name))
                .await?
        {
            return Err(Error::RepositoryUnknown);
        }
        let page =
            |view: &crate::metadata::View| view.tags(&self.name, after, limit.saturating_add(1));
        let read = metadata.read(page).await?;
        let mut tags = read.value;
        let more = tags.len() > limit && limit > 0;
        tags.truncate(limit);
        Ok(Read {
            value: (tags, more),
            staleness: read.staleness,
            applied_index: read.applied_index,
        })
    }

    /// A page of them, and where the next one begins. `wanted`: artifact types, or none for all.
    pub async fn referrers(
        &self,
        subject: &Digest,
        wanted: &[String],
        after: Option<&Digest>,
    ) -> Result<Read<(Vec<Referrer>, Option<Digest>)>, Error> {
        Ok(self
            .registry
            .inner
            .metadata
            .read(|view| view.referrers(&self.name, subject, wanted, after))
            .await?)
    }
}
