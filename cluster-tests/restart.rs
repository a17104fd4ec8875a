//! Power and pauses: what was acknowledged is there after every process died at once, and a
//! region that slept never serves an old tag as if it were new (P1, P3).

use crate::harness::client::{Client, Image};
use crate::harness::cluster::Cluster;
use crate::harness::rounds;
use crate::harness::wait::eventually;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What was acknowledged: tag → image.
type Acknowledged = Arc<Mutex<BTreeMap<String, Image>>>;

/// Manifests so long that the store is given some in each round, and is killed while it takes them.
const LONG: usize = 40_000;

/// Pushes image after image to one region until told to stop; notes what was acknowledged.
async fn push_steadily(
    client: Client,
    name: String,
    acknowledged: Acknowledged,
    stop: CancellationToken,
) {
    for i in 0.. {
        let tag = format!("{name}-{i}");
        let image = Image::with_long_manifest(&tag, LONG);
        let pushed = tokio::select! {
            pushed = client.push("restart/all", &tag, &image) => pushed,
            () = stop.cancelled() => return,
        };
        match pushed {
            Ok(status) if status == 201 => {
                acknowledged.lock().unwrap().insert(tag, image);
            }
            // The region is going down: unknown outcome, no promise.
            _ => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_survives_the_death_of_all_regions_at_once() {
    let rounds = rounds(3);
    let mut cluster = Cluster::start(3).await;
    let acknowledged: Acknowledged = Arc::default();
    for round in 0..rounds {
        let stop = CancellationToken::new();
        let pushers = TaskTracker::new();
        let before = acknowledged.lock().unwrap().len();
        for i in 0..3 {
            let name = format!("r{round}-c{i}");
            let push = push_steadily(cluster.client(i), name, acknowledged.clone(), stop.clone());
            pushers.spawn(push);
        }
        eventually(
            "thirty pushes are acknowledged",
            Duration::from_secs(30),
            || async { (acknowledged.lock().unwrap().len() >= before + 30).then_some(()) },
        )
        .await;
        for i in 0..3 {
            cluster.kill(i);
        }
        stop.cancel();
        pushers.close();
        pushers.wait().await;
        for i in 0..3 {
            cluster.run(i);
        }
        cluster.wait_ready(Duration::from_secs(60)).await;
        let now = acknowledged.lock().unwrap().clone();
        for i in 0..3 {
            let client = cluster.client(i);
            for (tag, image) in &now {
                if let Err(lost) = client.pull("restart/all", tag, image).await {
                    panic!(
                        "round {round}, {}: {tag} was acknowledged: {lost}",
                        cluster.name(i)
                    );
                }
            }
        }
        assert_equal_hashes(&cluster).await;
    }
    let total = acknowledged.lock().unwrap().len();
    println!(
        "restart: {rounds} times all regions killed, {total} pushes acknowledged, 0 lost, hashes equal"
    );
}

/// Every region has the same state hash at the same index.
async fn assert_equal_hashes(cluster: &Cluster) {
    eventually(
        "all regions stand at one index",
        Duration::from_secs(20),
        || async {
            let mut hashes = Vec::new();
            for i in 0..cluster.len() {
                hashes.push(cluster.status(i).await?["state_hash"].clone());
            }
            let same_index = hashes.iter().all(|h| h["index"] == hashes[0]["index"]);
            if !same_index {
                return None;
            }
            assert!(
                hashes.iter().all(|h| *h == hashes[0]),
                "state hashes differ: {hashes:?}"
            );
            Some(())
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_slept_never_serves_an_old_tag_unmarked() {
    let cluster = Cluster::start(3).await;
    let old = Image::small("before the sleep");
    let new = Image::small("during the sleep");
    let near = cluster.client(0);
    assert_eq!(near.push("sleep/app", "latest", &old).await.unwrap(), 201);
    for sleeper in [1, 2] {
        assert_eq!(near.push("sleep/app", "latest", &old).await.unwrap(), 201);
        cluster.pause(sleeper);
        assert_eq!(near.push("sleep/app", "latest", &new).await.unwrap(), 201);
        // The others go on for the whole 20 s of the sleep.
        let asleep = tokio::time::Instant::now();
        let mut pushes = 0;
        while asleep.elapsed() < Duration::from_secs(20) {
            let image = Image::small(&format!("{sleeper}-{pushes}"));
            assert_eq!(near.push("sleep/others", "v", &image).await.unwrap(), 201);
            pushes += 1;
        }
        let awake = cluster.client(sleeper);
        cluster.resume(sleeper);
        eventually(
            "the sleeper serves the new tag, unmarked",
            Duration::from_secs(20),
            || async {
                let answer = awake.manifest("sleep/app", "latest").await.ok()?;
                let is_marked = answer.headers().contains_key("roadstead-staleness-ms");
                let bytes = answer.bytes().await.ok()?;
                let is_new = bytes == new.manifest;
                assert!(is_new || is_marked, "an old tag, unmarked");
                (is_new && !is_marked).then_some(())
            },
        )
        .await;
        println!(
            "sleep: {pushes} pushes went on while {} slept",
            cluster.name(sleeper)
        );
    }
}
