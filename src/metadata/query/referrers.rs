//! The manifests that name a subject: signatures, lists of contents. There may be many, so they are
//! read page by page.

use super::{Referrer, View};
use crate::metadata::keys;
use crate::oci::{Digest, RepositoryName};
use crate::proto::state::v1 as pb;
use std::io;

/// Of a page, before it is cut: clients read 4 MiB at most, and one entry may be nearly as large.
const PAGE_BYTES: usize = 3 << 20;
/// Of one entry, besides its annotations.
const ENTRY_BYTES: usize = 512;
/// For a page of one artifact type among many others.
const LOOKED_AT: usize = 10_000;

impl View {
    /// Manifests that name `subject`, after `after`, of one of the `wanted` artifact types, or of any
    /// when none is given. As many as fit a page; with them, the last one looked at when
    /// there is more.
    pub fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        wanted: &[String],
        after: Option<&Digest>,
    ) -> io::Result<(Vec<Referrer>, Option<Digest>)> {
        let prefix = keys::referrers(repository.as_str(), subject);
        let after = after.map(|after| keys::referrer(repository.as_str(), subject, after));
        let mut found = Vec::new();
        let mut bytes = 0;
        let keys = self
            .tree
            .prefix_page(&prefix, after.as_deref(), LOOKED_AT + 1)?;
        let mut last = None;
        for (n, (key, _)) in keys.iter().enumerate() {
            let Some((digest, _)) = keys::take_digest(&key[prefix.len()..]) else {
                continue;
            };
            if n == LOOKED_AT {
                return Ok((found, last));
            }
            let is_wanted = |record: &pb::ManifestRecord| {
                wanted.is_empty() || wanted.contains(&record.artifact_type)
            };
            if let Some(record) = self.manifest_record(&digest)?.filter(is_wanted) {
                bytes += record.annotations_json.len() + ENTRY_BYTES;
                if bytes > PAGE_BYTES && !found.is_empty() {
                    return Ok((found, last));
                }
                found.push(Referrer {
                    media_type: record.media_type,
                    digest: digest.clone(),
                    size: record.size,
                    artifact_type: record.artifact_type,
                    annotations_json: record.annotations_json,
                });
            }
            last = Some(digest);
        }
        Ok((found, None))
    }
}
