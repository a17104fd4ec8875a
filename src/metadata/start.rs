//! Starting and stopping Raft, and the first node of a new cluster.
//!
//! What must stay true: a restarted leader stands for election again, since what it told whom is
//! forgotten (A9); the cluster that a node belongs to is on disk before the node votes in it.

use super::Error;
use super::Inner;
use super::Metadata;
use super::Parts;
use super::StartError;
use super::Timing;
use super::follow::Leader;
use super::freshness::Freshness;
use super::identity;
use super::in_flight::InFlight;
use super::log_store::LogStore;
use super::network::Network;
use super::propose::PROPOSALS_KIB;
use super::raft_types::Raft;
use super::read::QUESTIONS_WAITING;
use super::state_machine::StateMachine;
use crate::budget::Budget;
use crate::proto::state::v1 as pb;
use crate::proto::state::v1::command::Body;
use crate::topology::Node;
use openraft::Config;
use openraft::SnapshotPolicy;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::watch;

const LOCAL_TREE: &str = "local";

/// Defaults of a new cluster (design: `ack`, `copies`).
const ACK: u32 = 2;
const COPIES: u32 = 3;

/// Log time moves this often.
const TICK: Duration = Duration::from_secs(10);
/// Milliseconds between ticks, for tests that cannot wait.
const TEST_TICK: &str = "ROADSTEAD_TEST__TICK";

impl Metadata {
    /// Opens log and state, starts Raft (empty, if the node is new) and its loops. Does not wait
    /// for a leader.
    pub async fn start(parts: Parts) -> Result<Metadata, StartError> {
        let Parts {
            kv,
            snapshots,
            identity,
            peers,
            clock,
            timing,
            metrics,
            tasks,
        } = parts;
        let config = config(timing).map_err(|error| StartError::Raft(error.to_string()))?;
        let log = LogStore::open(&kv)?;
        let extent = log.extent();
        let machine = StateMachine::open(&kv, &snapshots, metrics.clone())?;
        let state = machine.handle();
        let network = Network::new(peers.clone());
        let id = identity.node().0;
        let began_at = extent.last().max(*state.applied().borrow());
        let raft = Raft::new(id, Arc::new(config), network, log, machine)
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;

        let (questions, asked) = mpsc::channel(QUESTIONS_WAITING);
        let inner = Inner {
            local: kv.tree(LOCAL_TREE)?,
            kv,
            state,
            began_at,
            log: extent,
            identity,
            peers,
            clock,
            timing,
            metrics,
            stop: tasks.stop_token().child_token(),
            tasks,
            leader: watch::Sender::new(Leader::default()),
            boot_applied: watch::Sender::new(false),
            in_flight: Mutex::new(InFlight::default()),
            giving_up: Mutex::new(false),
            proposals: Arc::new(Semaphore::new(PROPOSALS_KIB as usize)),
            joining: tokio::sync::Mutex::new(()),
            snapshots,
            leadership: Mutex::new(None),
            freshness: Mutex::new(Freshness::new(clock.now())),
            questions,
        };
        let metadata = Metadata {
            raft,
            inner: Arc::new(inner),
        };
        metadata.spawn(Metadata::follow);
        metadata.spawn(Metadata::watch_members);
        metadata.spawn(|me| me.keep_log_time(tick()));
        metadata.spawn(|me| me.send_questions(asked));
        metadata.spawn(Metadata::keep_fresh);
        metadata.spawn(Metadata::announce_start);
        metadata.spawn(Metadata::keep_log_small);
        Ok(metadata)
    }

    fn spawn<F>(&self, run: impl FnOnce(Metadata) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.inner.tasks.spawn(run(self.clone()));
    }

    /// First node of a new cluster: itself the only voter, then CreateCluster (which
    /// `announce_start` proposes, so that a crash in between is made good). Refused when there is
    /// state.
    pub async fn bootstrap(&self) -> Result<(), Error> {
        let identity = &self.inner.identity;
        let kv = &self.inner.kv;
        match identity.cluster() {
            None => {
                let new = identity::new_cluster();
                identity::found(kv, identity, &new.cluster_id, &new.lineage).await?;
            }
            // A crash came between this note and the first entry.
            Some(_) if identity::is_founder(kv)? => {}
            Some(cluster) => {
                return Err(Error::Unavailable(format!(
                    "this data directory belongs to cluster {} already; bootstrap needs an empty one",
                    cluster.cluster_id
                )));
            }
        }
        if self.raft.is_initialized().await.map_err(unavailable)? {
            return self.wait_for_cluster(Budget::default()).await;
        }
        let node = Node {
            region: identity.region().clone(),
            peer: identity.peer_address().to_owned(),
            role: identity.role(),
        };
        let members = BTreeMap::from([(identity.node().0, node)]);
        self.raft.initialize(members).await.map_err(unavailable)?;
        self.wait_for_cluster(Budget::default()).await
    }

    async fn wait_for_cluster(&self, budget: Budget) -> Result<(), Error> {
        let mut applied = self.applied();
        while self.view().cluster()?.is_none() {
            match tokio::time::timeout_at(budget.deadline(), applied.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::Stopping),
                Err(_) => {
                    return Err(Error::Unavailable(
                        "the cluster is not created yet".to_owned(),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The first command of a cluster, from its only member.
    pub(super) async fn create_cluster(&self) -> Result<(), Error> {
        let alone = self.members() == [self.id()];
        let Some(cluster) = self.inner.identity.cluster().filter(|_| alone) else {
            return Ok(());
        };
        if self.view().cluster()?.is_none() {
            let create = pb::CreateCluster {
                cluster_id: cluster.cluster_id,
                lineage: cluster.lineage,
                ack: ACK,
                copies: COPIES,
            };
            self.write(Body::CreateCluster(create), Budget::default())
                .await?;
        }
        Ok(())
    }

    /// Hands leadership over if it has it, stops Raft and its loops, flushes.
    pub async fn shutdown(&self) {
        self.hand_over().await;
        self.inner.stop.cancel();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not end cleanly");
        }
        if let Err(error) = self.inner.kv.sync().await {
            tracing::warn!(%error, "sync the metadata store");
        }
    }
}

fn unavailable(error: impl std::error::Error) -> Error {
    Error::Unavailable(error.to_string())
}

fn tick() -> Duration {
    let milliseconds = std::env::var(TEST_TICK)
        .ok()
        .and_then(|text| text.parse().ok());
    milliseconds
        .filter(|ms| *ms > 0)
        .map_or(TICK, Duration::from_millis)
}

fn config(timing: Timing) -> Result<Config, openraft::ConfigError> {
    let milliseconds = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: "roadstead".to_owned(),
        heartbeat_interval: milliseconds(timing.heartbeat),
        election_timeout_min: milliseconds(timing.election_min),
        election_timeout_max: milliseconds(timing.election_max),
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        allow_log_reversion: Some(false),
        // An old leader that reaches one voter only must not block the others for ever.
        quorum_loss_probe_interval: Some(milliseconds(timing.election_max) * 5 / 2),
        max_payload_entries: 300,
        install_snapshot_timeout: 120_000,
        // Snapshots and purges are decided by `log_size`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        purge_batch_size: 256,
        replication_lag_threshold: 1000,
        backoff: "200ms 400ms ...5s".to_owned(),
        ..Config::default()
    }
    .validate()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::metadata::Kv;
    use crate::peers::Connector;
    use crate::peers::Identity;
    use crate::peers::Peers;
    use crate::tasks::Tasks;
    use crate::telemetry::Metrics;
    use crate::topology::Role;
    use std::path::Path;

    async fn identity(kv: &Kv) -> Identity {
        let region = Some("r1".parse().unwrap());
        let loaded = identity::load_or_create(kv, region, Role::Voter, "127.0.0.1:1".to_owned());
        loaded.await.unwrap()
    }

    async fn start(kv: Kv, snapshots: &Path, tasks: &Tasks) -> Metadata {
        let identity = identity(&kv).await;
        let parts = Parts {
            snapshots: snapshots.to_owned(),
            peers: Peers::new(identity.clone(), Connector::tcp(None), None, None, tasks).unwrap(),
            kv,
            identity,
            clock: Clock::System,
            timing: Timing {
                heartbeat: Duration::from_millis(100),
                election_min: Duration::from_millis(300),
                election_max: Duration::from_millis(600),
            },
            metrics: Metrics::new(),
            tasks: tasks.clone(),
        };
        Metadata::start(parts).await.unwrap()
    }

    #[tokio::test]
    async fn a_bootstrap_that_a_crash_cut_short_is_completed_by_the_next_start() {
        let (dir, tasks, kv) = (tempfile::tempdir().unwrap(), Tasks::new(), Kv::memory());
        let first = identity(&kv).await;
        identity::found(&kv, &first, "c", "l").await.unwrap();
        let after_crash = kv.after_power_cut().unwrap();
        let metadata = start(after_crash, dir.path(), &tasks).await;
        metadata.bootstrap().await.unwrap();
        let cluster = metadata.view().cluster().unwrap().unwrap();
        assert_eq!(cluster.cluster_id, "c");
        metadata.shutdown().await;
        tasks.stop_and_wait().await;
    }

    #[tokio::test]
    async fn a_directory_that_has_met_a_cluster_does_not_begin_another() {
        let (dir, tasks, kv) = (tempfile::tempdir().unwrap(), Tasks::new(), Kv::memory());
        let first = identity(&kv).await;
        identity::belong_to(&kv, &first, "c", "l").await.unwrap();
        let metadata = start(kv, dir.path(), &tasks).await;
        assert!(metadata.bootstrap().await.is_err());
        metadata.shutdown().await;
        tasks.stop_and_wait().await;
    }

    #[test]
    fn the_timing_of_each_profile_is_accepted() {
        for (heartbeat, min, max) in [(200, 1000, 2000), (500, 2000, 3000), (1000, 4000, 6000)] {
            let ms = Duration::from_millis;
            let timing = Timing {
                heartbeat: ms(heartbeat),
                election_min: ms(min),
                election_max: ms(max),
            };
            config(timing).unwrap();
        }
    }
}
