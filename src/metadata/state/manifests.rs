//! Manifests, tags, referrers, references and links: a push and a delete, all or nothing (D4).
//!
//! What must stay true (I5, I6): a tag names a manifest that its repository holds; a tag that its
//! policy calls immutable names what it named first, until the policy says otherwise, and so does
//! what it names through indexes (indexes.rs).

use super::super::keys;
use super::links::Held;
use super::{Apply, DONE, Decision, Refusal, refuse};
use crate::oci::{Digest, RepositoryName, Tag};
use crate::policy::Effective;
use crate::proto::state::v1 as pb;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
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
    /// Of `blobs`.
    absent: BTreeSet<Digest>,
    children: BTreeSet<Digest>,
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
        let mut absent = BTreeSet::new();
        for digest in &put.absent {
            let digest: Digest = digest.parse().map_err(invalid)?;
            if !distinct.contains(&digest) {
                return Err(invalid("absent is a blob that the manifest does not name"));
            }
            absent.insert(digest);
        }
        let mut children = BTreeSet::new();
        for child in &put.children {
            children.insert(child.parse().map_err(invalid)?);
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
            absent,
            children,
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

/// Some when the policy keeps the tag at the digest that it names.
pub fn is_held(policy: &Effective, tag: &Tag, digest: &str) -> Option<Refusal> {
    let immutable = &policy.immutable;
    immutable.value.holds(tag).then(|| {
        let from = immutable.from.as_deref().unwrap_or_default();
        let message = format!(
            "tag {tag} is immutable and stays at {digest}: policy {from:?} sets immutable={}; push under another \
             tag, or have an operator run: roadstead policy unset '{from}' immutable",
            immutable.value.as_str()
        );
        refuse(pb::Reason::TagImmutable, message)
    })
}

/// Some when the pusher may not name this tag, as things are: whether it makes or moves the tag is
/// known only here.
fn exceeds_rights(
    put: &pb::PutManifest,
    tag: &Tag,
    current: Option<&pb::TagRecord>,
) -> Option<Refusal> {
    let (is_over, what, right) = match current {
        None => (put.may_not_create, "does not exist", "create"),
        Some(current) if current.digest == put.digest => (false, "", ""),
        Some(_) => (put.may_not_overwrite, "exists", "overwrite"),
    };
    is_over.then(|| {
        let message = format!(
            "tag {tag} of {} {what}, and {} has no right to {right} tags there",
            put.repository, put.actor
        );
        refuse(pb::Reason::NotAllowed, message)
    })
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
        if self.notes_children() && push.children.len() > MAX_NAMES {
            return Ok(Err(invalid("more than one entry may carry")));
        }
        let held = keys::repository_manifest(push.repository.as_str(), &push.digest);
        if put.again && !self.tx.has(&held)? {
            let gone = format!("manifest {} was deleted", push.digest);
            return Ok(Err(refuse(pb::Reason::ManifestUnknown, gone)));
        }
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
        let policy = self.policy(&(&push.repository).into())?;
        for tag in &push.tags {
            let current = self.tag_record(push.repository.as_str(), tag.as_str())?;
            if let Some(refusal) = exceeds_rights(put, tag, current.as_ref()) {
                return Ok(Err(refusal));
            }
            if let Some(current) = current.filter(|current| current.digest != put.digest)
                && let Some(refusal) = is_held(&policy, tag, &current.digest)
            {
                return Ok(Err(refusal));
            }
        }
        if let Some(refusal) = self.refuse_absent(&push, &policy)? {
            return Ok(Err(refusal));
        }
        let judge = self.judge(policy.ack.value)?;
        let mut holders = BTreeMap::new();
        let mut short = Vec::new();
        for (digest, size) in &push.blobs {
            if push.absent.contains(digest) {
                continue;
            }
            let text = digest.to_string();
            let (nodes, regions) = judge.holders(&text, *size, &put.receipts);
            if regions < judge.needed {
                short.push(text);
            }
            holders.insert(digest.clone(), nodes);
        }
        if !short.is_empty() {
            let need = pb::NeedReceipts { digests: short };
            return Ok(Ok(pb::outcome::Result::NeedReceipts(need)));
        }
        let created = self.store_manifest(put, &push)?;
        let record = pb::RepositoryManifestRecord {
            pushed_at_ms: put.pushed_at_ms,
            actor: put.actor.clone(),
            index: self.index,
            absent: Vec::new(),
            copies: policy.copies_by_prefix(),
        };
        let held = Held {
            repository: push.repository.as_str(),
            digest: &push.digest,
        };
        let taken = self.take_in(&held, record, &push.absent)?;
        self.note_children(&held, &push.children);
        for (digest, size) in &push.blobs {
            if !taken.links(digest) {
                continue;
            }
            self.moving(digest, |apply| {
                apply.reference(digest, *size, &push.digest, created)?;
                apply.count_wanted(digest, &taken)?;
                for node in holders.remove(digest).unwrap_or_default() {
                    apply.set_holder(digest, node, true)?;
                }
                Ok(())
            })?;
        }
        if let Some(subject) = &push.subject {
            let key = keys::referrer(held.repository, subject, &push.digest);
            self.tx.put(key, Vec::new());
        }
        for tag in &push.tags {
            self.move_tag(put, &push, tag)?;
        }
        Ok(Ok(pb::outcome::Result::Done(pb::Done { created })))
    }

    /// What is absent needs a policy that allows it; a manifest that an index calls something else
    /// is not absent.
    fn refuse_absent(&self, push: &Push, policy: &Effective) -> io::Result<Option<Refusal>> {
        if policy.sparse.value {
            return Ok(None);
        }
        for digest in &push.absent {
            let key = keys::repository_manifest(push.repository.as_str(), digest);
            if !self.tx.has(&key)? {
                return Ok(Some(refuse(
                    pb::Reason::BlobsAbsent,
                    format!("{digest} is not a blob of {}", push.repository),
                )));
            }
        }
        Ok(None)
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
            absent: Vec::new(),
        };
        self.tx.put_message(key, &record);
        self.tx
            .put_new(keys::manifest_bytes(&push.digest), put.bytes.clone());
        Ok(true)
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
        let history = keys::tag_history(name, tag.as_str(), self.index);
        self.tx.put_new(history, record.encode_to_vec());
        self.tx
            .put_new(keys::tag_of(name, &push.digest, tag.as_str()), Vec::new());
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
        let policy = self.policy(&(&repository).into())?;
        if let Some(refusal) = is_held(&policy, &tag, &record.digest) {
            return Ok(Err(refusal));
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
        if !self.tx.has(&keys::repository_manifest(name, &digest))? {
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
        let policy = self.policy(&(&repository).into())?;
        let prefix = keys::tags_of(name, &digest);
        let mut tags = Vec::new();
        for (key, _) in self.tx.scan(&prefix)? {
            let tag = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
            if let Ok(tag) = tag.parse::<Tag>()
                && let Some(refusal) = is_held(&policy, &tag, &delete.digest)
            {
                return Ok(Err(refusal));
            }
            tags.push(tag);
        }
        if let Some(refusal) = self.is_kept(&policy, name, &digest)? {
            return Ok(Err(refusal));
        }
        for tag in tags {
            if let Some(record) = self.tag_record(name, &tag)? {
                self.remove_tag(name, &tag, &record)?;
            }
        }
        let held = Held {
            repository: name,
            digest: &digest,
        };
        let record = self.let_go(&held)?;
        self.forget_children(&held, &record);
        if let Ok(subject) = record.subject.parse::<Digest>() {
            self.tx.delete(keys::referrer(name, &subject, &digest));
        }
        Ok(Ok(DONE))
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
