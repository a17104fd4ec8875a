//! Writes a snapshot of the state at one index while later entries are applied.
//!
//! What must stay true: a key that the builder has not passed yet is written as it was before the
//! first later write to it, which `keep` saves before that write happens.

use super::super::kv::{Batch, Tree};
use super::super::raft_types::{SnapshotMeta, TypeConfig, applied_from_pb, invalid};
use super::super::snapshot::{self, SnapshotFile, Writer};
use super::super::state;
use super::SnapshotOf;
use crate::proto::state::v1 as pb;
use bytes::Bytes;
use openraft::RaftSnapshotBuilder;
use openraft::storage::Snapshot;
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Pairs that are read at once: at most as many manifests in memory.
const PAGE: usize = 16;

/// Pre-images for a snapshot that is being written, of keys that it has not passed yet.
#[derive(Default)]
pub(super) struct Overlay {
    passed: Option<Vec<u8>>,
    before: BTreeMap<Vec<u8>, Option<Bytes>>,
}

impl Overlay {
    pub(super) fn keep(&mut self, tree: &Tree, batch: &Batch) -> io::Result<()> {
        for (key, _) in &batch.writes {
            let is_passed = self.passed.as_ref().is_some_and(|passed| key <= passed);
            if !is_passed && !self.before.contains_key(key) {
                self.before.insert(key.clone(), tree.get(key)?);
            }
        }
        Ok(())
    }
}

pub struct Builder {
    pub(super) tree: Tree,
    pub(super) applied: pb::Applied,
    pub(super) hash: [u8; 32],
    pub(super) overlay: Arc<Mutex<Overlay>>,
    pub(super) snapshots: PathBuf,
    pub(super) is_inline: bool,
}

impl Builder {
    /// The next pairs of the state as it was, in key order; empty at the end.
    pub(super) fn next(&self) -> io::Result<Vec<(Bytes, Bytes)>> {
        let mut overlay = self.overlay.lock().expect("no panic while held");
        loop {
            let from = match &overlay.passed {
                Some(passed) => Bound::Excluded(passed.as_slice()),
                None => Bound::Unbounded,
            };
            let now = self.tree.page(from, Bound::Unbounded, PAGE)?;
            let is_last = now.len() < PAGE;
            let upto = match (is_last, now.last()) {
                (false, Some((key, _))) => Some(key.to_vec()),
                _ => None,
            };
            let mut pairs: BTreeMap<Bytes, Bytes> = now.into_iter().collect();
            // Only what this page covers: there may be as many pre-images as there are pairs.
            while let Some(first) = overlay.before.first_entry()
                && upto.as_ref().is_none_or(|upto| first.key() <= upto)
            {
                match first.remove_entry() {
                    (key, Some(value)) => pairs.insert(key.into(), value),
                    (key, None) => pairs.remove(key.as_slice()),
                };
            }
            // From now on a write there comes too late to matter.
            overlay.passed = Some(match upto {
                Some(upto) => upto,
                None => vec![0xff; 512],
            });
            if !pairs.is_empty() || is_last {
                return Ok(pairs.into_iter().collect());
            }
        }
    }

    fn write(&self) -> io::Result<SnapshotFile> {
        let name = snapshot::name(&self.applied);
        let mut header = pb::SnapshotHeader {
            format: snapshot::FORMAT,
            applied: Some(self.applied.clone()),
            ..Default::default()
        };
        let mut writer = Writer::create(&self.snapshots, &name, &header)?;
        let mut hash = state::StateHash::default();
        loop {
            let pairs = self.next()?;
            if pairs.is_empty() {
                break;
            }
            for (key, value) in &pairs {
                header.keys += 1;
                hash.add(key, value);
                writer.pair(key, value)?;
            }
        }
        if hash.as_bytes() != self.hash {
            return Err(invalid(
                "the state does not have the hash that it should have",
            ));
        }
        header.state_hash = Bytes::copy_from_slice(&self.hash);
        let file = writer.finish(&header, &name)?;
        snapshot::keep_newest(&self.snapshots, false)?;
        Ok(file)
    }
}

pub(super) fn snapshot_of(applied: &pb::Applied, file: SnapshotFile) -> io::Result<SnapshotOf> {
    let (last_log_id, last_membership) = applied_from_pb(applied)?;
    Ok(Snapshot {
        meta: SnapshotMeta {
            last_log_id,
            last_membership,
        },
        snapshot: file,
    })
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        let builder = Builder {
            tree: self.tree.clone(),
            applied: self.applied.clone(),
            hash: self.hash,
            overlay: self.overlay.clone(),
            snapshots: self.snapshots.clone(),
            is_inline: self.is_inline,
        };
        let file = if self.is_inline {
            builder.write()?
        } else {
            tokio::task::spawn_blocking(move || builder.write())
                .await
                .map_err(io::Error::other)??
        };
        snapshot_of(&self.applied, file)
    }
}
