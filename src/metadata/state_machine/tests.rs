//! openraft's own storage suite on both engines; and snapshots that are the state at their index,
//! whatever is applied while they are built, and wherever a restart falls.

use super::super::kv::OpenError;
use super::super::log_store::LogStore;
use super::*;
use crate::metadata::raft_types::entry_from_pb;
use bytes::Bytes;
use openraft::RaftLogReader;
use openraft::RaftSnapshotBuilder;
use openraft::StorageError;
use openraft::StorageHelper;
use openraft::storage::RaftLogStorage;
use openraft::storage::RaftLogStorageExt;
use openraft::testing::log::{StoreBuilder, Suite};
use proptest::prelude::{any, proptest};
use std::ops::Bound;

struct OnMemory;
struct OnSled;

fn stores(kv: &Kv, dir: &Path) -> (LogStore, StateMachine) {
    let log = LogStore::open(kv).unwrap();
    let machine = StateMachine::open(kv, &dir.join("snapshots"), Metrics::new()).unwrap();
    (log, machine)
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for OnMemory {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = stores(&Kv::memory(), dir.path());
        Ok((dir, log, machine))
    }
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for OnSled {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let kv = Kv::open_sled(&dir.path().join("store"), 16).unwrap();
        let (log, machine) = stores(&kv, dir.path());
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_storage_suite_passes_on_memory() {
    Suite::test_all(OnMemory).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_storage_suite_passes_on_sled() {
    Suite::test_all(OnSled).await.unwrap();
}

fn membership(index: u64) -> pb::Entry {
    let node = pb::Node {
        region: "r1".to_owned(),
        peer: "p".to_owned(),
        role: pb::Role::Voter.into(),
    };
    let membership = pb::Membership {
        configs: vec![pb::VoterSet { nodes: vec![1] }],
        nodes: [(1, node)].into(),
    };
    entry(index, pb::entry::Payload::Membership(membership))
}

fn entry(index: u64, payload: pb::entry::Payload) -> pb::Entry {
    pb::Entry {
        id: Some(pb::LogId {
            term: 1,
            node: 1,
            index,
        }),
        payload: Some(payload),
    }
}

/// A push of a manifest without blobs, or the delete of one: keys come, change and go.
fn write(index: u64, n: u8, is_delete: bool) -> pb::Entry {
    let digest = crate::oci::Digest::of(crate::oci::Algorithm::Sha256, &[n]).to_string();
    let body = if is_delete {
        pb::command::Body::DeleteManifest(pb::DeleteManifest {
            repository: "a".into(),
            digest,
            ..Default::default()
        })
    } else {
        let bytes = Bytes::from(vec![n; usize::from(n) * 40]);
        let tags = vec![format!("t{}", n % 5)];
        pb::command::Body::PutManifest(pb::PutManifest {
            repository: "a".into(),
            digest,
            bytes,
            tags,
            ..Default::default()
        })
    };
    let request = Some(pb::RequestId {
        node: 1,
        boot: 0,
        seq: index,
    });
    let command = pb::Command {
        version: 1,
        request,
        settled: index,
        body: Some(body),
        ..Default::default()
    };
    entry(index, pb::entry::Payload::Command(command))
}

fn bytes(machine: &StateMachine) -> Vec<(Bytes, Bytes)> {
    current(&machine.tree)
        .page(Bound::Unbounded, Bound::Unbounded, usize::MAX)
        .unwrap()
}

async fn check(
    kv: Kv,
    reopen: impl Fn(Kv) -> Kv,
    writes: Vec<(u8, bool)>,
    build_at: usize,
    pages: usize,
    restart_at: usize,
) {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machine) = stores(&kv, dir.path());
    machine.apply_group(&[membership(0)]).unwrap();
    let mut kv = kv;
    let mut snapshot = None;
    for (i, (n, is_delete)) in writes.iter().enumerate() {
        if i == restart_at {
            drop(machine);
            kv = reopen(kv);
            machine = stores(&kv, dir.path()).1;
        }
        if i == build_at {
            let expected = bytes(&machine);
            let builder = machine.get_snapshot_builder().await;
            // Some of it is read before what follows is applied, the rest after.
            let mut read: Vec<(Bytes, Bytes)> = Vec::new();
            for _ in 0..pages {
                read.extend(builder.next().unwrap());
            }
            snapshot = Some((builder, read, expected));
        }
        machine
            .apply_group(&[write(i as u64 + 1, *n, *is_delete)])
            .unwrap();
    }
    if let Some((builder, mut read, expected)) = snapshot {
        loop {
            let pairs = builder.next().unwrap();
            if pairs.is_empty() {
                break;
            }
            read.extend(pairs);
        }
        assert_eq!(read, expected, "the state at its index");
    }
    // A snapshot of the end, installed elsewhere, gives the same bytes.
    let file = machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    let other_dir = tempfile::tempdir().unwrap();
    let (_, mut other) = stores(&Kv::memory(), other_dir.path());
    other.apply_group(&[write(1, 200, false)]).unwrap();
    let copy = other_dir.path().join("snapshots/copy.snap");
    std::fs::copy(&file.snapshot.path, &copy).unwrap();
    other
        .install_snapshot(&file.meta, SnapshotFile { path: copy })
        .await
        .unwrap();
    assert_eq!(bytes(&other), bytes(&machine));
    assert_eq!(
        *other.progress.applied.borrow(),
        *machine.progress.applied.borrow()
    );
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    #[test]
    fn a_snapshot_is_the_state_at_its_index(writes in proptest::collection::vec((0u8..60, any::<bool>()), 1..80),
            build_at in 0usize..80, pages in 0usize..12, restart_at in 0usize..80) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // A build does not outlive a restart.
        let build_at = build_at.max(restart_at);
        runtime.block_on(check(Kv::memory(), |kv| kv, writes, build_at, pages, restart_at));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_from_sled_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let kv = Kv::open_sled(dir.path(), 16).unwrap();
    let writes = (0..200u8).map(|n| (n % 90, n % 7 == 0)).collect();
    check(kv, |kv| kv, writes, 100, 4, 50).await;
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machine) = stores(&Kv::memory(), dir.path());
    machine.apply_group(&[membership(0)]).unwrap();
    for n in 1..40 {
        machine
            .apply_group(&[write(u64::from(n), n, false)])
            .unwrap();
    }
    let built = machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    let good = std::fs::read(&built.snapshot.path).unwrap();
    let other_dir = tempfile::tempdir().unwrap();
    let (_, mut other) = stores(&Kv::memory(), other_dir.path());
    other.apply_group(&[membership(0)]).unwrap();
    let before = bytes(&other);
    let path = other_dir.path().join("snapshots/bad.snap");
    for at in (0..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert!(
            other
                .install_snapshot(&built.meta, SnapshotFile { path: path.clone() })
                .await
                .is_err(),
            "byte {at}"
        );
        assert_eq!(bytes(&other), before);
    }
    std::fs::write(&path, &good[..good.len() - 9]).unwrap();
    assert!(
        other
            .install_snapshot(&built.meta, SnapshotFile { path })
            .await
            .is_err(),
        "cut short"
    );
}

#[test]
fn entries_survive_their_encoding() {
    for entry in [
        membership(3),
        write(4, 5, true),
        entry(5, pb::entry::Payload::Blank(pb::Blank {})),
    ] {
        assert_eq!(entry_to_pb(&entry_from_pb(entry.clone()).unwrap()), entry);
    }
    assert!(entry_from_pb(pb::Entry::default()).is_err());
}

/// Log and state of a node with ten entries after a power cut: the state has `applied` of them, the
/// log the first `logged`, and all ten were committed.
async fn after_a_power_cut(dir: &Path, applied: u64, logged: u64) -> (LogStore, StateMachine) {
    let entry_of = |index| match index {
        0 => membership(0),
        _ => write(index, u8::try_from(index).unwrap(), false),
    };
    let kv = Kv::open_sled(&dir.join("store"), 16).unwrap();
    let (mut log, machine) = stores(&kv, dir);
    let entries = (0..10).map(|index| entry_from_pb(entry_of(index)).unwrap());
    log.blocking_append(entries).await.unwrap();
    let last = log.get_log_state().await.unwrap().last_log_id;
    log.save_committed(last).await.unwrap();
    for index in 0..applied {
        machine.apply_group(&[entry_of(index)]).unwrap();
    }
    current(&machine.tree).settle().unwrap();
    kv.sync().await.unwrap();
    drop((log, machine, kv));
    let file = std::fs::read_dir(dir.join("store/log")).unwrap().next();
    let path = file.unwrap().unwrap().path();
    let mut bytes = std::fs::read(&path).unwrap();
    let mut end = 0;
    for _ in 0..logged {
        let length = u32::from_le_bytes(bytes[end..end + 4].try_into().unwrap());
        end += 8 + length as usize;
    }
    bytes.truncate(end + 5);
    std::fs::write(&path, bytes).unwrap();
    // It is never synced, and may say less.
    std::fs::remove_file(dir.join("store/acknowledged")).unwrap();
    // Its thread for syncs may still be ending.
    let kv = loop {
        match Kv::open_sled(&dir.join("store"), 16) {
            Err(OpenError::Busy { .. }) => tokio::task::yield_now().await,
            opened => break opened.unwrap(),
        }
    };
    stores(&kv, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_state_is_ahead_of_its_log_goes_on_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, mut machine) = after_a_power_cut(dir.path(), 10, 7).await;
    let before = bytes(&machine);
    let mut helper = StorageHelper::new(&mut log, &mut machine).with_id(1);
    helper.get_initial_state().await.unwrap();
    let last = log.get_log_state().await.unwrap().last_log_id;
    assert_eq!(last.map(|id| id.index), Some(9));
    assert_eq!(bytes(&machine), before);
    let next = entry_from_pb(write(10, 10, false)).unwrap();
    log.blocking_append([next]).await.unwrap();
    let found = log.try_get_log_entries(0..20).await.unwrap();
    let found: Vec<u64> = found.iter().map(|entry| entry.log_id.index).collect();
    assert_eq!(found, [10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_noted_more_as_committed_than_its_log_has_applies_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, mut machine) = after_a_power_cut(dir.path(), 3, 7).await;
    let mut helper = StorageHelper::new(&mut log, &mut machine).with_id(1);
    helper.get_initial_state().await.unwrap();
    let last = log.get_log_state().await.unwrap().last_log_id;
    assert_eq!(last.map(|id| id.index), Some(6));
    let applied = state::applied(&current(&machine.tree)).unwrap();
    assert_eq!(applied.last.unwrap().index, 6);
}
