//! A region is lost the instant it has acknowledged a push. The image must be there (P1, P2).

use crate::harness::client::Image;
use crate::harness::cluster::Cluster;
use crate::harness::wait::eventually;
use crate::harness::{images, rounds, seed};
use rand::{RngExt, SeedableRng};
use std::time::{Duration, Instant};

/// What a round counts; all must be zero.
#[derive(Debug, Default, PartialEq, Eq)]
struct Failures {
    pushes_failed: usize,
    images_lost: usize,
    pulls_failed: usize,
}

fn pull_and_compare(registry: &str, name: &str, image: &std::path::Path, failures: &mut Failures) {
    let (pulled, output) = images::skopeo_pull(registry, name);
    if !output.status.success() {
        eprintln!(
            "pull {name} from {registry}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        failures.pulls_failed += 1;
    } else if !images::same_image(image, pulled.path()) {
        failures.images_lost += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_survives_the_loss_of_the_region_that_took_it() {
    let rounds = rounds(5);
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed("region_loss"));
    let mut cluster = Cluster::start(3).await;
    let mut failures = Failures::default();
    let mut slowest_write = Duration::ZERO;
    for round in 0..rounds {
        let lost = rng.random_range(0..3);
        // One in ten with the large image; in a short run the last one.
        let is_large = if rounds >= 10 {
            round % 10 == 9
        } else {
            round + 1 == rounds
        };
        let image = if is_large {
            images::large()
        } else {
            images::busybox()
        };
        let name = format!("loss/round{round}:v1");
        let push = images::skopeo_push(image, &cluster.registry(lost), &name);
        cluster.kill(lost);
        let killed = Instant::now();
        if !push.status.success() {
            eprintln!("push {name}: {}", String::from_utf8_lossy(&push.stderr));
            failures.pushes_failed += 1;
        }
        let survivors: Vec<usize> = (0..3).filter(|i| *i != lost).collect();
        for survivor in &survivors {
            pull_and_compare(&cluster.registry(*survivor), &name, image, &mut failures);
        }
        let next = format!("loss/round{round}:v2");
        let push = images::skopeo_push(images::busybox(), &cluster.registry(survivors[0]), &next);
        slowest_write = slowest_write.max(killed.elapsed());
        if !push.status.success() {
            eprintln!("push {next}: {}", String::from_utf8_lossy(&push.stderr));
            failures.pushes_failed += 1;
        }
        assert!(
            killed.elapsed() < Duration::from_secs(60),
            "no push within the minute"
        );
        cluster.run(lost);
        cluster.wait_ready(Duration::from_secs(60)).await;
        pull_and_compare(&cluster.registry(lost), &name, image, &mut failures);
        pull_and_compare(
            &cluster.registry(lost),
            &next,
            images::busybox(),
            &mut failures,
        );
    }
    println!(
        "region_loss: {rounds} rounds, {failures:?}, slowest from kill to the next acknowledged push {slowest_write:?}"
    );
    assert_eq!(failures, Failures::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_pulls_are_marked_blobs_are_taken_in_and_a_manifest_waits_for_one() {
    let mut cluster = Cluster::start(3).await;
    let (old, new) = (Image::small("before"), Image::small("after"));
    let client = cluster.client(0);
    assert_eq!(client.push("quorum/app", "v1", &old).await.unwrap(), 201);
    let layer = &old.blobs[1].0;
    // Wherever it was copied to, it is here too.
    assert_eq!(
        client.blob("quorum/app", layer).await.unwrap().status(),
        200
    );
    cluster.kill(1);
    cluster.kill(2);

    let read = || async {
        let read = client.manifest("quorum/app", "v1").await.unwrap();
        assert_eq!(read.status(), 200, "what is here is served");
        read.headers()
            .contains_key("roadstead-staleness-ms")
            .then_some(())
    };
    eventually("reads are marked", Duration::from_secs(20), read).await;
    client.pull("quorum/app", "v1", &old).await.unwrap();
    for (digest, bytes) in &new.blobs {
        let pushed = client.push_blob("quorum/app", digest, bytes.clone()).await;
        assert_eq!(pushed.unwrap(), 201);
    }

    let held = client.put_manifest("quorum/app", "v2", new.manifest.clone());
    let recover = async {
        let waits =
            || async { (cluster.metric(0, "roadstead_held_requests").await > 0.0).then_some(()) };
        eventually("the push is held", Duration::from_secs(10), waits).await;
        cluster.run(1);
    };
    let (held, ()) = tokio::join!(held, recover);
    assert_eq!(held.unwrap().status(), 201);
    cluster
        .client(1)
        .pull("quorum/app", "v2", &new)
        .await
        .unwrap();
}
