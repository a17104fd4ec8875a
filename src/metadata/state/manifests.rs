//! Manifests, tags, referrers, references and links: a push and a delete, all or nothing (D4).
//!
//! What must stay true (I2, I5, I6): a tag names a manifest that its repository holds; `refs` of a
//! blob is the number of manifests that name it, each counted once however many repositories hold
//! it; a link counts the manifests of its repository that name the blob.

use super::super::keys;
use super::{Apply, DONE, Decision, Refusal, refuse};
use crate::oci::{Digest, RepositoryName, Tag};
use crate::proto::state::v1 as pb;
use std::collections::BTreeSet;
use std::io;

/// What one push may carry: its bytes, and the blobs and tags that it names. With these, no entry
/// touches more keys than A25 allows.
const MAX_BYTES: usize = 4 << 20;
const MAX_NAMES: usize = 4096;

/// A push with every name in it parsed.
struct Push {
    repository: RepositoryName,
    digest: Digest,
    tags: Vec<Tag>,
    blobs: Vec<(Digest, u64)>,
    subject: Option<Digest>,
}

fn invalid<E: std::fmt::Display>(error: E) -> Refusal {
    refuse(pb::Reason::Invalid, error.to_string())
}

impl Push {
    fn parse(put: &pb::PutManifest) -> Result<Push, Refusal> {
        let mut blobs = Vec::new();
        for blob in &put.blobs {
            blobs.push((blob.digest.parse().map_err(invalid)?, blob.size));
        }
        let digest: Digest = put.digest.parse().map_err(invalid)?;
        // The proposer checked it; a tag must not be able to name other bytes whoever proposes.
        if Digest::of(digest.algorithm(), &put.bytes) != digest {
            return Err(invalid("the bytes do not have this digest"));
        }
        if put.bytes.len() > MAX_BYTES || blobs.len() > MAX_NAMES || put.tags.len() > MAX_NAMES {
            return Err(invalid("more than one entry may carry"));
        }
        let distinct: BTreeSet<&Digest> = blobs.iter().map(|(digest, _)| digest).collect();
        if distinct.len() != blobs.len() {
            return Err(invalid("a blob is named twice"));
        }
        for child in &put.children {
            child.parse::<Digest>().map_err(invalid)?;
        }
        Ok(Push {
            repository: put.repository.parse().map_err(invalid)?,
            digest,
            tags: put
                .tags
                .iter()
                .map(|tag| tag.parse().map_err(invalid))
                .collect::<Result<_, _>>()?,
            blobs,
            subject: match put.subject.as_str() {
                "" => None,
                subject => Some(subject.parse().map_err(invalid)?),
            },
        })
    }
}

/// RFC 9110, 13.1: does what the tag names now meet the conditions?
fn is_met(precondition: &pb::Precondition, current: Option<&str>) -> bool {
    let names = |list: &[String]| match current {
        Some(current) => list.iter().any(|wanted| wanted == "*" || wanted == current),
        None => false,
    };
    let matches = precondition.if_match.is_empty() || names(&precondition.if_match);
    matches && !names(&precondition.if_none_match)
}

impl Apply<'_> {
    fn tag_record(&self, repository: &str, tag: &str) -> io::Result<Option<pb::TagRecord>> {
        self.tx.message(&keys::tag(repository, tag))
    }

    pub fn put_manifest(&mut self, put: &pb::PutManifest) -> Decision {
        let push = match Push::parse(put) {
            Ok(push) => push,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if let (Some(precondition), Some(tag)) = (&put.precondition, push.tags.first()) {
            let current = self
                .tag_record(push.repository.as_str(), tag.as_str())?
                .map(|t| t.digest);
            // A repeated write whose result stands already is done (A25).
            let stands = current.as_ref() == Some(&put.digest) && !precondition.if_match.is_empty();
            if !stands && !is_met(precondition, current.as_deref()) {
                let message = match current {
                    Some(current) => format!("tag {tag} names {current}"),
                    None => format!("tag {tag} does not exist"),
                };
                return Ok(Err(refuse(pb::Reason::PreconditionFailed, message)));
            }
        }
        let judge = self.judge()?;
        let mut holders = Vec::new();
        let mut short = Vec::new();
        for (digest, size) in &push.blobs {
            let text = digest.to_string();
            let (nodes, regions) = judge.holders(&text, *size, &put.receipts);
            if regions < judge.needed {
                short.push(text);
            }
            holders.push(nodes);
        }
        if !short.is_empty() {
            let need = pb::NeedReceipts { digests: short };
            return Ok(Ok(pb::outcome::Result::NeedReceipts(need)));
        }
        let created = self.store_manifest(put, &push)?;
        for ((digest, size), nodes) in push.blobs.iter().zip(holders) {
            self.moving(digest, |apply| {
                if created {
                    apply.reference(digest, *size, &push.digest)?;
                }
                for node in nodes {
                    apply.set_holder(digest, node, true)?;
                }
                Ok(())
            })?;
        }
        self.link_manifest(put, &push)?;
        for tag in &push.tags {
            self.move_tag(put, &push, tag)?;
        }
        Ok(Ok(pb::outcome::Result::Done(pb::Done { created })))
    }

    /// The record and the bytes, once per digest over all repositories; whether it is new.
    fn store_manifest(&mut self, put: &pb::PutManifest, push: &Push) -> io::Result<bool> {
        let key = keys::manifest(&push.digest);
        if self.tx.has(&key)? {
            return Ok(false);
        }
        let record = pb::ManifestRecord {
            media_type: put.media_type.clone(),
            size: put.bytes.len() as u64,
            blobs: put.blobs.clone(),
            children: put.children.clone(),
            subject: put.subject.clone(),
            artifact_type: put.artifact_type.clone(),
            annotations_json: put.annotations_json.clone(),
            repositories: 0,
        };
        self.tx.put_message(key, &record);
        self.tx
            .put(keys::manifest_bytes(&push.digest), put.bytes.clone());
        Ok(true)
    }

    fn reference(&mut self, blob: &Digest, size: u64, manifest: &Digest) -> io::Result<()> {
        let key = keys::blob(blob);
        let mut record: pb::BlobRecord = self.tx.message(&key)?.unwrap_or_default();
        if record.refs == 0 {
            self.empty_holders(blob)?;
        }
        record.refs += 1;
        record.size = size;
        record.zero_since_ms = 0;
        self.tx.put_message(key, &record);
        self.tx.put(keys::named_by(blob, manifest), Vec::new());
        Ok(())
    }

    /// The repository holds the manifest, may read its blobs, and lists it as a referrer.
    fn link_manifest(&mut self, put: &pb::PutManifest, push: &Push) -> io::Result<()> {
        let name = push.repository.as_str();
        let key = keys::repository_manifest(name, &push.digest);
        if self.tx.has(&key)? {
            return Ok(());
        }
        let record = pb::RepositoryManifestRecord {
            pushed_at_ms: put.pushed_at_ms,
            actor: put.actor.clone(),
            index: self.index,
        };
        self.tx.put_message(key, &record);
        self.change_manifest(&push.digest, |manifest| manifest.repositories += 1)?;
        let repository = keys::repository(name);
        let mut record: pb::RepositoryRecord = self.tx.message(&repository)?.unwrap_or_default();
        record.manifests += 1;
        self.tx.put_message(repository, &record);
        for (blob, _) in &push.blobs {
            let links = self.links(name, blob)? + 1;
            self.tx
                .put(keys::link(name, blob), links.to_be_bytes().to_vec());
        }
        if let Some(subject) = &push.subject {
            self.tx
                .put(keys::referrer(name, subject, &push.digest), Vec::new());
        }
        Ok(())
    }

    fn change_manifest(
        &mut self,
        digest: &Digest,
        change: impl FnOnce(&mut pb::ManifestRecord),
    ) -> io::Result<pb::ManifestRecord> {
        let key = keys::manifest(digest);
        let mut record: pb::ManifestRecord = self.tx.message(&key)?.unwrap_or_default();
        change(&mut record);
        self.tx.put_message(key, &record);
        Ok(record)
    }

    fn links(&self, repository: &str, blob: &Digest) -> io::Result<u32> {
        let stored = self.tx.get(&keys::link(repository, blob))?;
        Ok(stored
            .and_then(|bytes| bytes.as_ref().try_into().ok())
            .map_or(0, u32::from_be_bytes))
    }

    fn move_tag(&mut self, put: &pb::PutManifest, push: &Push, tag: &Tag) -> io::Result<()> {
        let name = push.repository.as_str();
        let before = self.tag_record(name, tag.as_str())?;
        if before
            .as_ref()
            .is_some_and(|before| before.digest == put.digest)
        {
            return Ok(());
        }
        if let Some(before) = before {
            self.remove_tag(name, tag.as_str(), &before)?;
        }
        let record = pb::TagRecord {
            digest: put.digest.clone(),
            index: self.index,
            moved_at_ms: put.pushed_at_ms,
            actor: put.actor.clone(),
        };
        self.tx.put_message(keys::tag(name, tag.as_str()), &record);
        self.tx
            .put_message(keys::tag_history(name, tag.as_str(), self.index), &record);
        self.tx
            .put(keys::tag_of(name, &push.digest, tag.as_str()), Vec::new());
        Ok(())
    }

    fn remove_tag(
        &mut self,
        repository: &str,
        tag: &str,
        record: &pb::TagRecord,
    ) -> io::Result<()> {
        self.tx.delete(keys::tag(repository, tag));
        if let Ok(digest) = record.digest.parse::<Digest>() {
            self.tx.delete(keys::tag_of(repository, &digest, tag));
        }
        Ok(())
    }

    pub fn delete_tag(&mut self, delete: &pb::DeleteTag) -> Decision {
        let (Ok(repository), Ok(tag)) = (
            delete.repository.parse::<RepositoryName>(),
            delete.tag.parse::<Tag>(),
        ) else {
            return Ok(Err(refuse(
                pb::Reason::Invalid,
                "not a repository name and tag",
            )));
        };
        let Some(record) = self.tag_record(repository.as_str(), tag.as_str())? else {
            return Ok(Err(refuse(pb::Reason::TagUnknown, format!("tag {tag}"))));
        };
        let unmet = delete
            .precondition
            .as_ref()
            .is_some_and(|p| !is_met(p, Some(&record.digest)));
        if unmet {
            let message = format!("tag {tag} names {}", record.digest);
            return Ok(Err(refuse(pb::Reason::PreconditionFailed, message)));
        }
        self.remove_tag(repository.as_str(), tag.as_str(), &record)?;
        let gone = pb::TagRecord {
            index: self.index,
            actor: delete.actor.clone(),
            ..Default::default()
        };
        self.tx.put_message(
            keys::tag_history(repository.as_str(), tag.as_str(), self.index),
            &gone,
        );
        Ok(Ok(DONE))
    }

    pub fn delete_manifest(&mut self, delete: &pb::DeleteManifest) -> Decision {
        let (Ok(repository), Ok(digest)) = (
            delete.repository.parse::<RepositoryName>(),
            delete.digest.parse::<Digest>(),
        ) else {
            return Ok(Err(refuse(
                pb::Reason::Invalid,
                "not a repository name and digest",
            )));
        };
        let name = repository.as_str();
        let key = keys::repository_manifest(name, &digest);
        if !self.tx.has(&key)? {
            return Ok(Err(refuse(
                pb::Reason::ManifestUnknown,
                format!("manifest {digest}"),
            )));
        }
        let unmet = delete
            .precondition
            .as_ref()
            .is_some_and(|p| !is_met(p, Some(&delete.digest)));
        if unmet {
            return Ok(Err(refuse(
                pb::Reason::PreconditionFailed,
                format!("manifest {digest}"),
            )));
        }
        self.tx.delete(key);
        let prefix = keys::tags_of(name, &digest);
        for (key, _) in self.tx.scan(&prefix)? {
            let tag = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
            if let Some(record) = self.tag_record(name, &tag)? {
                self.remove_tag(name, &tag, &record)?;
            }
        }
        let record = self.change_manifest(&digest, |manifest| {
            manifest.repositories = manifest.repositories.saturating_sub(1);
        })?;
        if let Ok(subject) = record.subject.parse::<Digest>() {
            self.tx.delete(keys::referrer(name, &subject, &digest));
        }
        for blob in &record.blobs {
            if let Ok(blob) = blob.digest.parse::<Digest>() {
                match self.links(name, &blob)? {
                    0 | 1 => self.tx.delete(keys::link(name, &blob)),
                    n => self
                        .tx
                        .put(keys::link(name, &blob), (n - 1).to_be_bytes().to_vec()),
                }
            }
        }
        self.shrink_repository(name)?;
        if record.repositories == 0 {
            self.forget_manifest(&digest, &record)?;
        }
        Ok(Ok(DONE))
    }

    /// A repository is there while it holds a manifest.
    fn shrink_repository(&mut self, name: &str) -> io::Result<()> {
        let key = keys::repository(name);
        let mut record: pb::RepositoryRecord = self.tx.message(&key)?.unwrap_or_default();
        record.manifests = record.manifests.saturating_sub(1);
        if record.manifests == 0 {
            self.tx.delete(key);
        } else {
            self.tx.put_message(key, &record);
        }
        Ok(())
    }

    /// No repository holds it any more: its references go, and holders of blobs that nobody names.
    fn forget_manifest(&mut self, digest: &Digest, record: &pb::ManifestRecord) -> io::Result<()> {
        self.tx.delete(keys::manifest(digest));
        self.tx.delete(keys::manifest_bytes(digest));
        let now_ms = self.log_time_ms()?;
        for blob in &record.blobs {
            let Ok(blob) = blob.digest.parse::<Digest>() else {
                continue;
            };
            self.moving(&blob, |apply| {
                apply.tx.delete(keys::named_by(&blob, digest));
                let key = keys::blob(&blob);
                let mut record: pb::BlobRecord = apply.tx.message(&key)?.unwrap_or_default();
                record.refs = record.refs.saturating_sub(1);
                if record.refs == 0 {
                    record.zero_since_ms = now_ms;
                    apply.empty_holders(&blob)?;
                }
                apply.tx.put_message(key, &record);
                Ok(())
            })?;
        }
        Ok(())
    }

    pub fn delete_blob(&mut self, delete: &pb::DeleteBlob) -> Decision {
        let (Ok(repository), Ok(digest)) = (
            delete.repository.parse::<RepositoryName>(),
            delete.digest.parse::<Digest>(),
        ) else {
            return Ok(Err(refuse(
                pb::Reason::Invalid,
                "not a repository name and digest",
            )));
        };
        if self.links(repository.as_str(), &digest)? > 0 {
            return Ok(Err(refuse(
                pb::Reason::BlobInUse,
                format!("a manifest names {digest}"),
            )));
        }
        let key = keys::unlinked(repository.as_str(), &digest);
        self.tx.put(key, self.index.to_be_bytes().to_vec());
        Ok(Ok(DONE))
    }
}
