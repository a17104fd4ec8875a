//! Which indexes name a manifest, so that what an immutable tag names stays whole: a manifest goes
//! only when no such tag leads to it, through however many indexes of its repository.
//!
//! What must stay true: a note is there for each child of each index that a repository holds and
//! that was pushed since notes are taken (command version 3). Older pushes have none until they
//! come again; a delete decides by the notes, which all replicas have alike.

use super::super::keys;
use super::links::Held;
use super::manifests::is_held;
use super::{Apply, Refusal, refuse};
use crate::oci::{Digest, Tag};
use crate::policy::{Effective, Immutable};
use crate::proto::state::v1 as pb;
use std::collections::BTreeSet;
use std::io;

/// Since which indexes note what they name.
const NOTING: u32 = 3;
/// Indexes and their tags that one delete looks at, since an entry must not hold up the log.
const MOST: usize = 2000;

impl Apply<'_> {
    pub fn notes_children(&self) -> bool {
        self.version >= NOTING
    }

    pub fn note_children(&mut self, held: &Held, children: &BTreeSet<Digest>) {
        if self.notes_children() {
            for child in children {
                let key = keys::index(held.repository, child, held.digest);
                self.tx.put(key, Vec::new());
            }
        }
    }

    pub fn forget_children(&mut self, held: &Held, record: &pb::ManifestRecord) {
        for child in record.children.iter().flat_map(|child| child.parse()) {
            self.tx
                .delete(keys::index(held.repository, &child, held.digest));
        }
    }

    /// Some when a tag that the policy keeps leads to the manifest through indexes; also when there
    /// are too many to say.
    pub fn is_kept(
        &self,
        policy: &Effective,
        repository: &str,
        manifest: &Digest,
    ) -> io::Result<Option<Refusal>> {
        let immutable = &policy.immutable;
        if matches!(immutable.value, Immutable::None) {
            return Ok(None);
        }
        let mut left = MOST;
        let mut seen = BTreeSet::from([manifest.clone()]);
        let mut below = vec![manifest.clone()];
        while let Some(child) = below.pop() {
            let indexes = keys::indexes(repository, &child);
            for key in self.at_most(&indexes, &mut left)? {
                let Some((index, _)) = keys::take_digest(&key[indexes.len()..]) else {
                    continue;
                };
                if !seen.insert(index.clone()) {
                    continue;
                }
                let tags = keys::tags_of(repository, &index);
                for key in self.at_most(&tags, &mut left)? {
                    let tag = String::from_utf8_lossy(&key[tags.len()..]).parse::<Tag>();
                    let held = tag
                        .ok()
                        .and_then(|tag| is_held(policy, &tag, &index.to_string()));
                    if let Some(Refusal(held)) = held {
                        let message = format!("manifest {manifest} is needed: {}", held.message);
                        return Ok(Some(refuse(pb::Reason::TagImmutable, message)));
                    }
                }
                below.push(index);
            }
            if left == 0 {
                let from = immutable.from.as_deref().unwrap_or_default();
                let message = format!(
                    "more than {MOST} indexes and tags lead to manifest {manifest}, and any of them may be immutable \
                     by policy {from:?}; delete indexes that name it, or have an operator run: roadstead policy unset \
                     '{from}' immutable"
                );
                return Ok(Some(refuse(pb::Reason::TagImmutable, message)));
            }
        }
        Ok(None)
    }

    /// Keys that begin with `prefix`, as many as are left to be looked at. At zero there may be more.
    fn at_most(&self, prefix: &[u8], left: &mut usize) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        while *left > 0 {
            let after = keys.last().map_or(prefix, Vec::as_slice);
            let page = self.tx.page(prefix, after, *left)?;
            if page.is_empty() {
                break;
            }
            *left = left.saturating_sub(page.len());
            keys.extend(page.into_iter().map(|(key, _)| key));
        }
        Ok(keys)
    }
}
