//! The replicated state: everything Raft. `Metadata` is the only door; only this folder names
//! openraft.
//!
//! What must stay true: a write is answered only when it is applied here and no fresh node can miss
//! it (F4, A9); a read is unmarked only when no push acknowledged before it began is missing from it;
//! nothing but this start's Boot is proposed before that Boot is applied (A10).

use crate::clock::Clock;
use crate::peers::Identity;
use crate::peers::Peers;
use crate::tasks::Tasks;
use crate::telemetry::Metrics;
use crate::topology::NodeId;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::broadcast;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub mod accounts;
mod acknowledged;
mod answers;
mod boot;
mod follow;
mod freshness;
mod group_commit;
pub mod identity;
mod in_flight;
mod join;
mod joining;
pub mod keys;
pub mod kv;
mod leader;
mod log;
mod log_size;
pub mod log_store;
pub mod network;
mod policies;
mod propose;
pub mod query;
pub mod raft_types;
mod read;
pub mod serve;
pub mod snapshot;
mod start;
pub mod state;
pub mod state_machine;
mod status;
mod write;

pub use kv::Kv;
pub use query::View;
pub use state_machine::AppliedEvent;
pub use status::RaftStatus;

/// Cheap to clone.
#[derive(Clone)]
pub struct Metadata {
    raft: raft_types::Raft,
    inner: Arc<Inner>,
}

struct Inner {
    kv: Kv,
    local: kv::Tree,
    state: state_machine::StateHandle,
    log: log_store::LogExtent,
    /// Where log or snapshot ended when this process began (A18).
    began_at: u64,
    identity: Identity,
    peers: Peers,
    clock: Clock,
    timing: Timing,
    metrics: Metrics,
    tasks: Tasks,
    /// Ends this node's Raft, before or with the other tasks.
    stop: CancellationToken,
    leader: watch::Sender<follow::Leader>,
    boot_applied: watch::Sender<bool>,
    in_flight: Mutex<in_flight::InFlight>,
    giving_up: Mutex<bool>,
    /// KiB of proposals that this node, as leader, has under way (A13).
    proposals: Arc<Semaphore>,
    /// One node is let in at a time.
    joining: tokio::sync::Mutex<()>,
    snapshots: PathBuf,
    leadership: Mutex<Option<Arc<leader::Leadership>>>,
    freshness: Mutex<freshness::Freshness>,
    questions: mpsc::Sender<read::Question>,
}

pub struct Parts {
    pub kv: Kv,
    /// DATA_DIR/meta/snapshots
    pub snapshots: PathBuf,
    pub identity: Identity,
    pub peers: Peers,
    pub clock: Clock,
    pub timing: Timing,
    pub metrics: Metrics,
    pub tasks: Tasks,
}

/// Raft's timing for one profile: local (dev: 200 ms, 1–2 s), continental, global.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

/// What a read found, and how sure this node is of it.
#[derive(Debug)]
pub struct Read<T> {
    pub value: T,
    /// None: no push acknowledged before the read began is missing from it. Some(age): this node
    /// could not confirm that; the time since it last could.
    pub staleness: Option<Duration>,
    pub applied_index: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No leader or quorum within the budget. Nothing was written.
    #[error("no leader answered in time: {0}")]
    Unavailable(String),
    /// The proposal went out, its outcome is not known.
    #[error("outcome unknown: the write may still take effect")]
    OutcomeUnknown,
    #[error("the node is stopping")]
    Stopping,
    #[error("metadata store")]
    Io(#[from] io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("open the metadata store")]
    Kv(#[from] kv::OpenError),
    #[error("start Raft: {0}")]
    Raft(String),
    #[error("metadata store")]
    Io(#[from] io::Error),
}

impl Metadata {
    /// Local state as it is applied now, unconfirmed.
    pub fn view(&self) -> View {
        View::new(self.inner.state.current())
    }

    /// Tree of this node's own notes (links, upload sessions), not replicated.
    pub fn local(&self) -> kv::Tree {
        self.inner.local.clone()
    }

    /// Syncs what was written to `local` (and all else in the store).
    pub async fn sync(&self) -> io::Result<()> {
        self.inner.kv.sync().await
    }

    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    pub fn applied(&self) -> watch::Receiver<u64> {
        self.inner.state.applied()
    }

    pub fn events(&self) -> broadcast::Receiver<AppliedEvent> {
        self.inner.state.events()
    }

    /// This start's own Boot is applied: receipts may be given (A5).
    pub fn boot_applied(&self) -> watch::Receiver<bool> {
        self.inner.boot_applied.subscribe()
    }

    /// Rises with each snapshot that took the place of the state.
    pub fn snapshots_installed(&self) -> watch::Receiver<u64> {
        self.inner.state.installed()
    }

    /// Is this node fresh now (A9)?
    pub fn is_fresh(&self) -> bool {
        self.freshness().is_fresh(self.inner.clock.now())
    }

    fn id(&self) -> NodeId {
        self.inner.identity.node()
    }

    fn freshness(&self) -> MutexGuard<'_, freshness::Freshness> {
        self.inner.freshness.lock().expect("no panic while held")
    }

    /// Waits until this node has applied `index`, visible to every read that begins from then on.
    async fn wait_applied(&self, index: u64, deadline: tokio::time::Instant) -> bool {
        let mut applied = self.applied();
        let reached = tokio::time::timeout_at(deadline, applied.wait_for(|at| *at >= index)).await;
        matches!(reached, Ok(Ok(_)))
    }
}

/// What the fuzz targets reach, and nobody else may.
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::acknowledged::Acknowledged;
    use super::snapshot::SnapshotFile;
    use super::{network, state_machine};
    use crate::proto::peer::v1::AppendResponse;
    use crate::proto::state::v1::SnapshotHeader;
    use std::io;

    /// The same record, encoded again.
    pub fn read_acknowledged(file: &[u8]) -> Option<Vec<u8>> {
        Acknowledged::decode(file).map(|record| record.encode().to_vec())
    }

    pub fn is_append_answer(response: AppendResponse) -> bool {
        network::append_response(response, None).is_ok()
    }

    pub fn verify_snapshot(file: &SnapshotFile) -> io::Result<SnapshotHeader> {
        state_machine::verify(file)
    }
}
