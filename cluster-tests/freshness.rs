//! A tag read that starts after a push was acknowledged returns that push or a later one, or says
//! that it cannot know (P3), whichever region is asked and whatever state it is in.

use crate::harness::client::{Client, Image};
use crate::harness::cluster::Cluster;
use crate::harness::{rounds, seed};
use rand::{RngExt, SeedableRng};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const REPOSITORY: &str = "fresh/app";

/// A read after the acknowledgement of a write.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Current,
    /// Older than what was acknowledged, and said so.
    Marked,
    /// Older, and did not say so: the promise is broken.
    Stale,
    /// No answer within the deadline: a paused region.
    None,
}

async fn read(client: &Client, tag: &str, expected: Option<&Image>) -> Seen {
    let path = format!("/v2/{REPOSITORY}/manifests/{tag}");
    let request = client
        .request(reqwest::Method::GET, &path)
        .timeout(Duration::from_millis(1500));
    let Ok(answer) = request.send().await else {
        return Seen::None;
    };
    let is_marked = answer.headers().contains_key("roadstead-staleness-ms");
    let status = answer.status().as_u16();
    let Ok(bytes) = answer.bytes().await else {
        return Seen::None;
    };
    let is_current = match expected {
        Some(image) => status == 200 && bytes == image.manifest,
        None => status == 404,
    };
    match (is_current, is_marked) {
        (true, _) => Seen::Current,
        (false, true) => Seen::Marked,
        // Held until the budget ended, since nobody could confirm a miss: it says so.
        (false, false) if status == 503 => Seen::Marked,
        (false, false) => Seen::Stale,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Paused(usize),
    CutOff(usize),
}

#[tokio::test(flavor = "multi_thread")]
async fn no_unmarked_answer_is_older_than_an_acknowledged_push() {
    let writes = rounds(200);
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed("freshness"));
    let cluster = Cluster::start(3).await;
    let images: Vec<Image> = (0..4)
        .map(|i| Image::small(&format!("version {i}")))
        .collect();
    for image in &images {
        assert_eq!(
            cluster
                .client(0)
                .push(REPOSITORY, "base", image)
                .await
                .unwrap(),
            201
        );
    }
    // Load beside it: other tags of other repositories, at every region that answers.
    let stop = CancellationToken::new();
    let load = TaskTracker::new();
    for i in 0..3 {
        let (client, stop) = (cluster.client(i), stop.clone());
        load.spawn(async move {
            let image = Image::small(&format!("load {i}"));
            let tag = format!("l{i}");
            while !stop.is_cancelled() {
                tokio::select! {
                    _ = client.push("fresh/load", &tag, &image) => {}
                    () = stop.cancelled() => {}
                }
            }
        });
    }
    let (mut current, mut marked, mut unanswered, mut not_acknowledged) = (0, 0, 0, 0);
    let mut fault = Fault::None;
    for write in 0..writes {
        // A new fault every twenty writes, none every other time.
        if write % 20 == 0 {
            match fault {
                Fault::Paused(i) => cluster.resume(i),
                Fault::CutOff(_) => cluster.heal(),
                Fault::None => {}
            }
            fault = match (write / 20) % 4 {
                1 => Fault::Paused(rng.random_range(0..3)),
                3 => Fault::CutOff(rng.random_range(0..3)),
                _ => Fault::None,
            };
            match fault {
                Fault::Paused(i) => cluster.pause(i),
                Fault::CutOff(i) => cluster.cut_off(i),
                Fault::None => {}
            }
        }
        let broken = match fault {
            Fault::Paused(i) | Fault::CutOff(i) => Some(i),
            Fault::None => None,
        };
        let healthy: Vec<usize> = (0..3).filter(|i| Some(*i) != broken).collect();
        let writer = cluster.client(healthy[rng.random_range(0..healthy.len())]);
        let tag = format!("t{}", rng.random_range(0..5));
        let image = &images[rng.random_range(0..images.len())];
        let is_delete = rng.random_ratio(1, 5);
        let acknowledged = if is_delete {
            let path = format!("/v2/{REPOSITORY}/manifests/{tag}");
            let answer = writer
                .request(reqwest::Method::DELETE, &path)
                .send()
                .await
                .unwrap();
            // 404: it was not there, which is as good to know.
            [202, 404].contains(&answer.status().as_u16())
        } else {
            let put = writer
                .put_manifest(REPOSITORY, &tag, image.manifest.clone())
                .await
                .unwrap();
            put.status() == 201
        };
        if !acknowledged {
            not_acknowledged += 1;
            continue;
        }
        let expected = (!is_delete).then_some(image);
        for i in 0..3 {
            match read(&cluster.client(i), &tag, expected).await {
                Seen::Current => current += 1,
                Seen::Marked => marked += 1,
                Seen::None => unanswered += 1,
                Seen::Stale => panic!(
                    "write {write} ({fault:?}): {} served an old {tag}, unmarked",
                    cluster.name(i)
                ),
            }
        }
    }
    stop.cancel();
    load.close();
    match fault {
        Fault::Paused(i) => cluster.resume(i),
        Fault::CutOff(_) => cluster.heal(),
        Fault::None => {}
    }
    load.wait().await;
    println!(
        "freshness: {writes} writes ({not_acknowledged} not acknowledged), reads: {current} current, {marked} marked, {unanswered} unanswered, 0 stale"
    );
    assert_eq!(not_acknowledged, 0, "a majority was up all the time");
    assert!(current > writes, "most reads are answered unmarked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_region_answers_without_asking_the_leader() {
    let cluster = Cluster::start(3).await;
    let image = Image::small("healthy");
    assert_eq!(
        cluster
            .client(0)
            .push(REPOSITORY, "v1", &image)
            .await
            .unwrap(),
        201
    );
    for i in 0..3 {
        let client = cluster.client(i);
        let asked = "roadstead_leader_questions_total{kind=\"read\"}";
        // Right after its start a region asks for each read, until its first question for
        // freshness is answered; such reads are unmarked too.
        crate::harness::wait::eventually(
            "the region is fresh",
            Duration::from_secs(10),
            || async {
                let before = cluster.metric(i, asked).await;
                let answer = client.manifest(REPOSITORY, "v1").await.ok()?;
                let is_marked = answer.headers().contains_key("roadstead-staleness-ms");
                (!is_marked && cluster.metric(i, asked).await == before).then_some(())
            },
        )
        .await;
        let before = cluster.metric(i, asked).await;
        for _ in 0..200 {
            assert_eq!(read(&client, "v1", Some(&image)).await, Seen::Current);
        }
        assert_eq!(
            cluster.metric(i, asked).await,
            before,
            "{} asked",
            cluster.name(i)
        );
    }
}
