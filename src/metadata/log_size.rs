//! When to take a snapshot, and how much of the log to keep (A14). openraft's own policies count
//! entries, and an entry may be 4 MiB; here bytes count too.
//!
//! What must stay true: nothing is purged that the last snapshot does not cover; entries that a live
//! member still needs, or will need after the snapshot on its way to it, are kept up to `MOST_KEPT`.

use super::Metadata;
use super::raft_types::TypeConfig;
use super::snapshot;
use openraft::alias::LogIdOf;
use openraft::async_runtime::Instant;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A snapshot writes the whole state, so the log has to grow by as much as the last one took, too:
/// what snapshots cost each entry stays the same however large the state is.
const SNAPSHOT_ENTRIES: u64 = 20_000;
/// Is enough, whatever the last snapshot took.
const SNAPSHOT_BYTES: u64 = 256 << 20;

/// Kept for members that are away for a while.
const KEPT: u64 = 1 << 30;
/// Kept at most, whoever needs more.
const MOST_KEPT: u64 = 4 << 30;

/// A member that was heard from within this time is live.
const LIVE: Duration = Duration::from_secs(30);

/// Pure: what to do about the log, from what is known of it.
#[derive(Debug, Default)]
struct Plan {
    snapshot: Option<u64>,
    /// Bytes of log kept that the last snapshot covers.
    covered: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Log {
    applied: u64,
    /// Last index that the newest snapshot covers.
    snapshot: Option<u64>,
    snapshot_bytes: u64,
    purged: u64,
    kept_bytes: u64,
    /// Lowest matching index of any member, and of the live ones; none when this node does not lead.
    lowest: Option<u64>,
    lowest_live: Option<u64>,
}

impl Plan {
    /// Notes what changed since the last look. True: it is time for a snapshot.
    fn wants_snapshot(&mut self, log: &Log) -> bool {
        if self.snapshot != log.snapshot {
            self.snapshot = log.snapshot;
            self.covered = covered(log);
        }
        self.covered = self.covered.min(log.kept_bytes);
        let entries = log.applied.saturating_sub(log.snapshot.unwrap_or(0));
        let bytes = log.kept_bytes - self.covered;
        (entries >= SNAPSHOT_ENTRIES && bytes >= log.snapshot_bytes)
            || (entries > 0 && bytes >= SNAPSHOT_BYTES)
    }
}

/// Bytes of the kept log that the snapshot covers, by its share of the entries: after a start nobody
/// knows better, and a node that restarts often must not begin to count anew each time.
fn covered(log: &Log) -> u64 {
    let upto = |index: u64| u128::from(index.saturating_sub(log.purged));
    let (covered, kept) = (upto(log.snapshot.unwrap_or(0)), upto(log.applied).max(1));
    let bytes = u128::from(log.kept_bytes) * covered.min(kept) / kept;
    u64::try_from(bytes).unwrap_or(log.kept_bytes)
}

/// The index up to which to purge, if that is more than was purged.
fn purge_to(log: &Log) -> Option<u64> {
    let snapshot = log.snapshot?;
    let needed = if log.kept_bytes > MOST_KEPT {
        None
    } else if log.kept_bytes > KEPT {
        log.lowest_live
    } else {
        // A follower does not know what others need, and may lead next.
        Some(
            log.lowest
                .unwrap_or(snapshot.saturating_sub(SNAPSHOT_ENTRIES)),
        )
    };
    let to = needed.map_or(snapshot, |needed| needed.min(snapshot));
    (to > log.purged).then_some(to)
}

impl Metadata {
    pub(super) async fn keep_log_small(self) {
        let mut plan = Plan::default();
        loop {
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let log = self.look_at_log();
            // Both only fail when Raft has ended, which `follow` handles.
            if plan.wants_snapshot(&log) {
                let _ = self.raft.trigger().snapshot().await;
            }
            if let Some(to) = purge_to(&log) {
                tracing::debug!(to, kept_bytes = log.kept_bytes, "purging the log");
                let _ = self.raft.trigger().purge_log(to).await;
            }
        }
    }

    fn look_at_log(&self) -> Log {
        let metrics = self.raft_metrics();
        let replication = metrics.replication.unwrap_or_default();
        let heard = metrics.heartbeat.unwrap_or_default();
        let is_live = |id: &u64| {
            let at = heard.get(id).and_then(|at| at.as_ref());
            *id == metrics.id || at.is_some_and(|at| at.elapsed() < LIVE)
        };
        let matching = |(_, at): (&u64, &Option<LogIdOf<TypeConfig>>)| index(at);
        let kept_bytes = self.inner.log.bytes();
        Log {
            applied: index(&metrics.last_applied),
            snapshot: metrics.snapshot.map(|at| at.index),
            snapshot_bytes: snapshot::newest_bytes(&self.inner.snapshots),
            purged: index(&metrics.purged),
            kept_bytes,
            lowest: replication.iter().map(matching).min(),
            lowest_live: replication
                .iter()
                .filter(|(id, _)| is_live(id))
                .map(matching)
                .min(),
        }
    }
}

fn index(at: &Option<LogIdOf<TypeConfig>>) -> u64 {
    at.as_ref().map_or(0, |at| at.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_entries_bring_a_snapshot_before_there_are_many() {
        let mut plan = Plan::default();
        let mut log = Log {
            applied: 10,
            kept_bytes: SNAPSHOT_BYTES - 1,
            ..Log::default()
        };
        assert!(!plan.wants_snapshot(&log));
        log.kept_bytes += 1;
        assert!(plan.wants_snapshot(&log));
        log.snapshot = Some(10);
        assert!(!plan.wants_snapshot(&log));
        // Purged, then as much again.
        log.kept_bytes = 1000;
        assert!(!plan.wants_snapshot(&log));
        log.applied = 20;
        log.kept_bytes = 1000 + SNAPSHOT_BYTES;
        assert!(plan.wants_snapshot(&log));
    }

    #[test]
    fn many_entries_bring_a_snapshot() {
        let mut plan = Plan::default();
        let log = Log {
            applied: 25_000,
            snapshot: Some(5_000),
            ..Log::default()
        };
        assert!(plan.wants_snapshot(&log));
    }

    #[test]
    fn many_small_entries_wait_until_they_are_as_much_as_the_last_snapshot() {
        let mut plan = Plan::default();
        let mut log = Log {
            applied: 5_000,
            snapshot: Some(5_000),
            snapshot_bytes: 1000,
            kept_bytes: 100,
            ..Log::default()
        };
        assert!(!plan.wants_snapshot(&log));
        log.applied = 90_000;
        log.kept_bytes = 1099;
        assert!(!plan.wants_snapshot(&log));
        log.kept_bytes = 1100;
        assert!(plan.wants_snapshot(&log));
    }

    #[test]
    fn a_restart_does_not_forget_how_much_came_since_the_snapshot() {
        let log = Log {
            applied: 90_000,
            snapshot: Some(30_000),
            snapshot_bytes: 500,
            purged: 10_000,
            kept_bytes: 800,
            ..Log::default()
        };
        assert!(Plan::default().wants_snapshot(&log), "600 bytes since");
        let more = Log {
            snapshot_bytes: 601,
            ..log
        };
        assert!(!Plan::default().wants_snapshot(&more));
    }

    #[test]
    fn nothing_is_purged_without_a_snapshot() {
        assert_eq!(
            purge_to(&Log {
                kept_bytes: u64::MAX,
                ..Log::default()
            }),
            None
        );
    }

    #[test]
    fn entries_are_kept_for_members_that_are_away_until_they_are_too_many() {
        let mut log = Log {
            snapshot: Some(100),
            purged: 10,
            lowest: Some(20),
            lowest_live: Some(90),
            ..Log::default()
        };
        assert_eq!(purge_to(&log), Some(20));
        log.kept_bytes = KEPT + 1;
        assert_eq!(purge_to(&log), Some(90));
        log.kept_bytes = MOST_KEPT + 1;
        assert_eq!(purge_to(&log), Some(100));
    }

    #[test]
    fn nothing_is_purged_while_a_live_member_receives_a_snapshot() {
        let log = Log {
            snapshot: Some(100),
            purged: 50,
            kept_bytes: KEPT + 1,
            lowest: Some(0),
            lowest_live: Some(0),
            ..Log::default()
        };
        assert_eq!(purge_to(&log), None);
    }
}
