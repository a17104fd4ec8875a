//! What a manifest brings into its repository: references, links, and what it names in vain.
//!
//! What must stay true (I2): naming a blob gives no right to it, so that a repository links only
//! what its push vouched for; a manifest references a blob, once, while a repository that holds the
//! manifest links it; a link counts the manifests of its repository that link the blob.

use super::super::keys;
use super::Apply;
use crate::oci::Digest;
use crate::policy;
use crate::proto::state::v1 as pb;
use std::collections::BTreeSet;
use std::io;

/// A manifest of a repository, as its record names it.
pub struct Held<'a> {
    pub repository: &'a str,
    pub digest: &'a Digest,
}

fn digests(texts: &[String]) -> BTreeSet<Digest> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

pub fn blobs(record: &pb::ManifestRecord) -> impl Iterator<Item = Digest> {
    record
        .blobs
        .iter()
        .filter_map(|blob| blob.digest.parse().ok())
}

/// How many repositories that hold the manifest do not link the blob.
fn missed_by(record: &pb::ManifestRecord, blob: &Digest) -> u32 {
    let text = blob.to_string();
    let found = record.absent.binary_search_by(|a| a.digest.cmp(&text));
    found.map_or(0, |at| record.absent[at].repositories)
}

/// In the order of the digests, without those that nobody misses: equal states are equal bytes.
fn count_absence(record: &mut pb::ManifestRecord, blob: &Digest, is_missed: bool) {
    let text = blob.to_string();
    match record.absent.binary_search_by(|a| a.digest.cmp(&text)) {
        Ok(at) if is_missed => record.absent[at].repositories += 1,
        Ok(at) if record.absent[at].repositories > 1 => record.absent[at].repositories -= 1,
        Ok(at) => drop(record.absent.remove(at)),
        Err(at) if is_missed => record.absent.insert(
            at,
            pb::Absence {
                digest: text,
                repositories: 1,
            },
        ),
        Err(_) => {}
    }
}

/// What a repository links of a manifest that it has taken in.
pub struct Taken {
    linked_now: BTreeSet<Digest>,
    missed: BTreeSet<Digest>,
    /// Counted with what it linked before, and with all that it links now.
    copies_before: u32,
    copies: u32,
}

impl Taken {
    pub fn links(&self, blob: &Digest) -> bool {
        !self.missed.contains(blob)
    }
}

impl Apply<'_> {
    /// The repository holds the manifest from now on, and links what it names but `absent`. One
    /// that holds it already gets links to what it missed, and loses none. The caller references
    /// what is linked, and counts it.
    pub fn take_in(
        &mut self,
        held: &Held,
        new: pb::RepositoryManifestRecord,
        absent: &BTreeSet<Digest>,
    ) -> io::Result<Taken> {
        let copies = new.copies;
        let key = keys::repository_manifest(held.repository, held.digest);
        let before: Option<pb::RepositoryManifestRecord> = self.tx.message(&key)?;
        let is_new = before.is_none();
        let mut record = before.unwrap_or(new);
        let mut manifest = self.manifest_record(held.digest)?;
        let missed_before = digests(&record.absent);
        let linked: BTreeSet<Digest> = blobs(&manifest)
            .filter(|blob| !absent.contains(blob) && (is_new || missed_before.contains(blob)))
            .collect();
        if is_new {
            manifest.repositories += 1;
            self.grow_repository(held.repository)?;
            record.absent = absent.iter().map(Digest::to_string).collect();
            for blob in absent {
                count_absence(&mut manifest, blob, true);
                let key = keys::missing_in(held.repository, blob, held.digest);
                self.tx.put(key, Vec::new());
            }
        } else {
            let missed = missed_before.intersection(absent);
            record.absent = missed.map(Digest::to_string).collect();
            for blob in &linked {
                count_absence(&mut manifest, blob, false);
                let key = keys::missing_in(held.repository, blob, held.digest);
                self.tx.delete(key);
            }
        }
        for blob in &linked {
            let links = self.links(held.repository, blob)? + 1;
            self.put_links(held.repository, blob, links);
        }
        let copies_before = std::mem::replace(&mut record.copies, copies);
        self.tx.put_message(key, &record);
        self.tx.put_message(keys::manifest(held.digest), &manifest);
        Ok(Taken {
            linked_now: linked,
            missed: digests(&record.absent),
            copies_before,
            copies,
        })
    }

    /// Notes how many copies the repository wants of a blob that it links, within `moving`.
    pub fn count_wanted(&mut self, blob: &Digest, taken: &Taken) -> io::Result<()> {
        let is_new = taken.linked_now.contains(blob);
        let before = (!is_new).then_some(taken.copies_before);
        self.change_wanted(blob, before, Some(taken.copies))
    }

    fn change_wanted(
        &mut self,
        blob: &Digest,
        before: Option<u32>,
        now: Option<u32>,
    ) -> io::Result<()> {
        if before == now {
            return Ok(());
        }
        let mut record = self.blob_record(blob)?.unwrap_or_default();
        policy::count_copies(&mut record, before, now);
        self.tx.put_message(keys::blob(blob), &record);
        Ok(())
    }

    /// The policy of a repository asks for another number of copies of what it links by the
    /// manifest; how many blobs that changed.
    pub fn want_copies(&mut self, held: &Held, copies: u32) -> io::Result<usize> {
        let key = keys::repository_manifest(held.repository, held.digest);
        let Some(mut record) = self.tx.message::<pb::RepositoryManifestRecord>(&key)? else {
            return Ok(0);
        };
        let before = std::mem::replace(&mut record.copies, copies);
        if before == copies {
            return Ok(0);
        }
        let missed = digests(&record.absent);
        let manifest = self.manifest_record(held.digest)?;
        let linked: Vec<Digest> = blobs(&manifest).filter(|b| !missed.contains(b)).collect();
        for blob in &linked {
            self.moving(blob, |apply| {
                apply.change_wanted(blob, Some(before), Some(copies))
            })?;
        }
        self.tx.put_message(key, &record);
        Ok(linked.len())
    }

    /// The repository holds it no more; references that no repository needs go, and with the last
    /// repository the manifest itself.
    pub fn let_go(&mut self, held: &Held) -> io::Result<pb::ManifestRecord> {
        let key = keys::repository_manifest(held.repository, held.digest);
        let record: pb::RepositoryManifestRecord = self.tx.message(&key)?.unwrap_or_default();
        self.tx.delete(key);
        let mut manifest = self.manifest_record(held.digest)?;
        manifest.repositories = manifest.repositories.saturating_sub(1);
        let missed = digests(&record.absent);
        for blob in blobs(&manifest).collect::<Vec<_>>() {
            if missed.contains(&blob) {
                count_absence(&mut manifest, &blob, false);
                let key = keys::missing_in(held.repository, &blob, held.digest);
                self.tx.delete(key);
            } else {
                let links = self.links(held.repository, &blob)?.saturating_sub(1);
                self.put_links(held.repository, &blob, links);
            }
        }
        for blob in blobs(&manifest) {
            let is_needed = missed_by(&manifest, &blob) < manifest.repositories;
            let before = (!missed.contains(&blob) && record.copies > 0).then_some(record.copies);
            if is_needed && before.is_none() {
                continue;
            }
            self.moving(&blob, |apply| {
                apply.change_wanted(&blob, before, None)?;
                if is_needed {
                    return Ok(());
                }
                apply.unreference(&blob, held.digest)
            })?;
        }
        self.shrink_repository(held.repository)?;
        if manifest.repositories == 0 {
            self.tx.delete(keys::manifest(held.digest));
            self.tx.delete(keys::manifest_bytes(held.digest));
        } else {
            self.tx.put_message(keys::manifest(held.digest), &manifest);
        }
        Ok(manifest)
    }

    fn manifest_record(&self, digest: &Digest) -> io::Result<pb::ManifestRecord> {
        Ok(self
            .tx
            .message(&keys::manifest(digest))?
            .unwrap_or_default())
    }

    /// Once for each manifest, whoever pushes it. What is wanted of it is counted next.
    pub fn reference(
        &mut self,
        blob: &Digest,
        size: u64,
        manifest: &Digest,
        is_new: bool,
    ) -> io::Result<()> {
        let named_by = keys::named_by(blob, manifest);
        if !is_new && self.tx.has(&named_by)? {
            return Ok(());
        }
        let key = keys::blob(blob);
        let mut record: pb::BlobRecord = self.tx.message(&key)?.unwrap_or_default();
        if record.refs == 0 {
            self.empty_holders(blob)?;
            record.only_by_prefix = true;
        }
        record.refs += 1;
        record.size = size;
        record.zero_since_ms = 0;
        self.tx.put_message(key, &record);
        self.tx.put_new(named_by, Vec::new());
        Ok(())
    }

    /// Holders of a blob that nobody names any more go with the last reference.
    fn unreference(&mut self, blob: &Digest, manifest: &Digest) -> io::Result<()> {
        let named_by = keys::named_by(blob, manifest);
        if !self.tx.has(&named_by)? {
            return Ok(());
        }
        self.tx.delete(named_by);
        let key = keys::blob(blob);
        let mut record: pb::BlobRecord = self.tx.message(&key)?.unwrap_or_default();
        record.refs = record.refs.saturating_sub(1);
        if record.refs == 0 {
            record.zero_since_ms = self.log_time_ms()?;
            record.wanted.clear();
            record.only_by_prefix = false;
            self.empty_holders(blob)?;
        }
        self.tx.put_message(key, &record);
        Ok(())
    }

    pub fn links(&self, repository: &str, blob: &Digest) -> io::Result<u32> {
        let stored = self.tx.get(&keys::link(repository, blob))?;
        Ok(stored
            .and_then(|bytes| bytes.as_ref().try_into().ok())
            .map_or(0, u32::from_be_bytes))
    }

    fn put_links(&mut self, repository: &str, blob: &Digest, links: u32) {
        let key = keys::link(repository, blob);
        match links {
            0 => self.tx.delete(key),
            n => self.tx.put(key, n.to_be_bytes().to_vec()),
        }
    }

    fn grow_repository(&mut self, name: &str) -> io::Result<()> {
        let key = keys::repository(name);
        let mut record: pb::RepositoryRecord = self.tx.message(&key)?.unwrap_or_default();
        record.manifests += 1;
        self.tx.put_message(key, &record);
        Ok(())
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
}
