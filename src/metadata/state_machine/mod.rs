//! openraft's state machine on the `Kv`: entries that are committed together are one atomic batch;
//! snapshots are built while apply goes on (`build.rs`), and installed into a new tree that one
//! write switches to.
//!
//! What must stay true: the tree, its applied record and its hash always belong together (one
//! batch); a crash during an installation leaves the old state or the new one. Nothing is synced per
//! entry, nor given to the store at once: the log is the durable part, and what a crash takes back is
//! applied again from it. So no entry leaves the log before the store has what it did: a snapshot
//! begins by giving it all, and only what a snapshot has is purged, once the store is synced.

mod build;

use build::{Builder, Overlay, snapshot_of};

use super::keys;
use super::kv::{Batch, Kv, Tree};
use super::raft_types::{
    LogId, SnapshotMeta, StoredMembership, TypeConfig, applied_from_pb, entry_to_pb, invalid,
};
use super::snapshot::{self, Reader, SnapshotFile};
use super::state;
use super::state::Pending;
use crate::oci::Digest;
use crate::proto::state::v1 as pb;
use crate::telemetry::Metrics;
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftStateMachine};
use prost::Message;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::{broadcast, watch};

/// Which tree is the state, in `raft_meta`.
const POINTER: &[u8] = b"state_tree";
/// Entries are applied as one write until they have this size.
const GROUP_BYTES: usize = 1 << 20;
const LOAD_BYTES: usize = 1 << 20;

type SnapshotOf = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;

/// What an applied entry changed, for those who keep copies in order. A receiver that lags looks
/// at everything.
#[derive(Clone, Debug)]
pub struct AppliedEvent {
    pub index: u64,
    /// Blobs whose references or holders changed.
    pub blobs: Vec<Digest>,
}

/// The current state tree, which an installation switches.
type Current = Arc<RwLock<Tree>>;

/// What others see of the state machine. Cheap to clone.
#[derive(Clone)]
pub struct StateHandle {
    tree: Current,
    progress: Progress,
}

impl StateHandle {
    pub fn current(&self) -> Tree {
        current(&self.tree)
    }

    /// Index of the last entry whose effects every read that begins now sees.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.progress.applied.subscribe()
    }

    /// Rises with each installed snapshot.
    pub fn installed(&self) -> watch::Receiver<u64> {
        self.progress.installed.subscribe()
    }

    pub fn events(&self) -> broadcast::Receiver<AppliedEvent> {
        self.progress.events.subscribe()
    }
}

fn current(tree: &Current) -> Tree {
    tree.read().expect("no panic while held").clone()
}

#[derive(Clone)]
struct Progress {
    applied: watch::Sender<u64>,
    installed: watch::Sender<u64>,
    events: broadcast::Sender<AppliedEvent>,
}

pub struct StateMachine {
    kv: Kv,
    meta: Tree,
    tree: Current,
    number: u64,
    snapshots: PathBuf,
    build: Option<Arc<Mutex<Overlay>>>,
    progress: Progress,
    metrics: Metrics,
}

fn tree_name(number: u64) -> String {
    format!("state-{number}")
}

impl StateMachine {
    pub fn open(kv: &Kv, snapshots: &Path, metrics: Metrics) -> io::Result<StateMachine> {
        std::fs::create_dir_all(snapshots)?;
        snapshot::keep_newest(snapshots, true)?;
        let meta = kv.tree("raft_meta")?;
        let number = match meta.get(POINTER)? {
            Some(bytes) => u64::from_be_bytes(
                bytes
                    .as_ref()
                    .try_into()
                    .map_err(|_| invalid("state pointer"))?,
            ),
            None => 0,
        };
        // Trees of an installation that was cut short, or of the state before the last one.
        let current = tree_name(number);
        for name in kv.tree_names() {
            if name.starts_with("state-") && name != current {
                kv.drop_tree(&name)?;
            }
        }
        let tree = kv.tree(&current)?.deferred(keys::FEW)?;
        let (applied, _) = state::state_hash(&tree)?;
        metrics
            .applied_index
            .set(i64::try_from(applied).unwrap_or(i64::MAX));
        Ok(StateMachine {
            kv: kv.clone(),
            meta,
            tree: Arc::new(RwLock::new(tree)),
            number,
            snapshots: snapshots.to_owned(),
            build: None,
            progress: Progress {
                applied: watch::Sender::new(applied),
                installed: watch::Sender::new(0),
                events: broadcast::Sender::new(4096),
            },
            metrics,
        })
    }

    pub fn handle(&self) -> StateHandle {
        StateHandle {
            tree: self.tree.clone(),
            progress: self.progress.clone(),
        }
    }

    /// Applies entries as one write, whole or not at all; what came of each.
    fn apply_group(&self, entries: &[pb::Entry]) -> Result<Vec<pb::Outcome>, state::ApplyError> {
        let tree = current(&self.tree);
        let mut pending = Pending::new(&tree);
        let (mut outcomes, mut events) = (Vec::new(), Vec::new());
        let mut index = 0;
        for entry in entries {
            let applied = state::apply(&pending, entry)?;
            pending.add(applied.batch);
            index = entry.id.unwrap_or_default().index;
            outcomes.push(applied.outcome.unwrap_or(pb::Outcome {
                index,
                result: None,
            }));
            if !applied.blobs.is_empty() {
                events.push(AppliedEvent {
                    index,
                    blobs: applied.blobs,
                });
            }
        }
        let batch = pending.into_batch();
        match &self.build {
            Some(overlay) => {
                let mut overlay = overlay.lock().expect("no panic while held");
                overlay.keep(&tree, &batch)?;
                tree.apply(batch)?;
            }
            None => tree.apply(batch)?,
        }
        self.publish(index);
        for event in events {
            // Nobody listens yet while the node starts.
            let _ = self.progress.events.send(event);
        }
        Ok(outcomes)
    }

    fn publish(&self, index: u64) {
        self.metrics
            .applied_index
            .set(i64::try_from(index).unwrap_or(i64::MAX));
        self.progress.applied.send_replace(index);
    }

    /// Loads a snapshot, checked first as a whole, into a new tree, and switches to it.
    fn install(&mut self, file: &SnapshotFile) -> io::Result<u64> {
        let trailer = verify(file)?;
        let number = self.number + 1;
        let name = tree_name(number);
        self.kv.drop_tree(&name)?;
        let tree = self.kv.tree(&name)?;
        load(file, &tree)?;
        let (index, hash) = state::state_hash(&tree)?;
        if hash.as_slice() != trailer.state_hash.as_ref() {
            return Err(invalid(
                "a snapshot whose state has another hash than it says",
            ));
        }
        let tree = tree.deferred(keys::FEW)?;
        self.number = number;
        // A build of the old state goes on alone: nothing writes to that tree any more. It is
        // dropped at the next start, since dropping it under its reader would fail that one.
        self.build = None;
        *self.tree.write().expect("no panic while held") = tree;
        Ok(index)
    }
}

/// Checks every frame, the count of keys and their hash.
pub(super) fn verify(file: &SnapshotFile) -> io::Result<pb::SnapshotHeader> {
    let mut reader = Reader::open(file)?;
    let mut keys = 0;
    let mut hash = state::StateHash::default();
    loop {
        let pairs = reader.pairs()?;
        if let Some(trailer) = reader.trailer.take() {
            if trailer.keys != keys || trailer.state_hash.as_ref() != hash.as_bytes().as_slice() {
                return Err(invalid("a snapshot with other content than it says"));
            }
            return Ok(trailer);
        }
        for (key, value) in &pairs {
            keys += 1;
            hash.add(key, value);
        }
    }
}

fn load(file: &SnapshotFile, tree: &Tree) -> io::Result<()> {
    let mut reader = Reader::open(file)?;
    let mut batch = Batch::default();
    let mut bytes = 0;
    loop {
        let pairs = reader.pairs()?;
        if pairs.is_empty() {
            return tree.apply(batch);
        }
        for (key, value) in pairs {
            bytes += key.len() + value.len();
            batch.put(key, value);
            if bytes >= LOAD_BYTES {
                bytes = 0;
                tree.apply(std::mem::take(&mut batch))?;
            }
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        applied_from_pb(&state::applied(&current(&self.tree))?)
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        if self
            .build
            .as_ref()
            .is_some_and(|build| Arc::strong_count(build) == 1)
        {
            self.build = None;
        }
        let mut stream = entries.fuse();
        loop {
            let mut next = stream.try_next().await?;
            if next.is_none() {
                return Ok(());
            }
            // All that is there already shares one write.
            let (mut entries, mut responders, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some((entry, responder)) = next {
                let entry = entry_to_pb(&entry);
                bytes += entry.encoded_len();
                entries.push(entry);
                responders.push(responder);
                next = match bytes < GROUP_BYTES {
                    true => stream.try_next().now_or_never().transpose()?.flatten(),
                    false => None,
                };
            }
            let outcomes = self.apply_group(&entries).map_err(io::Error::other)?;
            for (responder, outcome) in responders.into_iter().zip(outcomes) {
                if let Some(responder) = responder {
                    responder.send(outcome);
                }
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let tree = current(&self.tree);
        let overlay = Arc::new(Mutex::new(Overlay::default()));
        self.build = Some(overlay.clone());
        let read = tree
            .settle()
            .and_then(|()| Ok((state::applied(&tree)?, state::state_hash(&tree)?.1)));
        // A store that cannot be read is found out by the build, whose hash then does not fit.
        let (applied, hash) = read.unwrap_or_default();
        Builder {
            tree,
            applied,
            hash,
            overlay,
            snapshots: self.snapshots.clone(),
            is_inline: matches!(self.kv, Kv::Memory(_)),
        }
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> io::Result<()> {
        let index = self.install(&file)?;
        self.kv.sync().await?;
        let mut pointer = Batch::default();
        pointer.put(POINTER, self.number.to_be_bytes().to_vec());
        self.meta.apply(pointer)?;
        self.kv.sync().await?;
        let applied = state::applied(&current(&self.tree))?;
        snapshot::adopt(&self.snapshots, &file, &applied)?;
        snapshot::keep_newest(&self.snapshots, false)?;
        self.progress.installed.send_modify(|count| *count += 1);
        self.publish(index);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        for file in snapshot::list(&self.snapshots)? {
            match Reader::open(&file) {
                Ok(reader) => {
                    let applied = reader.header.applied.unwrap_or_default();
                    return snapshot_of(&applied, file).map(Some);
                }
                Err(error) => {
                    tracing::warn!(path = %file.path.display(), %error, "a snapshot cannot be read; it is left out");
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
