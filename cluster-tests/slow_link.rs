//! A fast client, a slow link between regions: the client is slowed while it uploads, so that its
//! manifest does not wait longer than it has patience (design 7.2).

use crate::harness::client::{Image, random_bytes, sha256};
use crate::harness::cluster::Cluster;
use crate::harness::wait::eventually;
use reqwest::Method;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_large_layer_over_a_slow_link_is_acknowledged() {
    let mib: usize = std::env::var("ROADSTEAD_LAYER_MIB")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(256);
    // In CI a smaller layer over a slower link: still more than what the budget could carry alone.
    let rate: u64 = if mib >= 2048 { 20_000_000 } else { 6_000_000 };
    let cluster = Cluster::start_with(3, &[("ROADSTEAD_TEST__REPAIR", "off")]).await;
    cluster.links.limit(rate);
    let image = Image::new("slow link", vec![random_bytes(7, mib << 20)]);
    let client = cluster.client(0);
    let started = Instant::now();
    for (digest, bytes) in &image.blobs {
        assert_eq!(
            client
                .push_blob("slow/app", digest, bytes.clone())
                .await
                .unwrap(),
            201
        );
    }
    let uploaded = started.elapsed();
    let manifest = client
        .put_manifest("slow/app", "v1", image.manifest.clone())
        .await
        .unwrap();
    let total = started.elapsed();
    println!(
        "slow_link: {mib} MiB over {rate} B/s: blobs {uploaded:?}, manifest {:?}",
        total - uploaded
    );
    assert_eq!(manifest.status(), 201, "{:?}", manifest.text().await);
    cluster.links.limit(0);
    for i in 0..3 {
        cluster
            .client(i)
            .pull("slow/app", "v1", &image)
            .await
            .unwrap();
    }
}

/// The region that holds bytes of an upload in staging that is not its own.
fn receiver(cluster: &Cluster) -> Option<usize> {
    (1..cluster.len()).find(|i| {
        let staging = cluster.data_dir(*i).join("blobs/staging");
        let entries = std::fs::read_dir(staging).into_iter().flatten().flatten();
        entries
            .flat_map(|entry| entry.metadata())
            .any(|file| file.len() > 0)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_in_the_middle_of_an_upload_is_replaced() {
    let cluster = Cluster::start(3).await;
    cluster.links.limit(8_000_000);
    let image = Image::new("stuck receiver", vec![random_bytes(11, 64 << 20)]);
    let client = cluster.client(0);
    let push = client.push("stuck/app", "v1", &image);
    let hang = async {
        let within = Duration::from_secs(30);
        let hung = eventually("a copy has begun", within, || async { receiver(&cluster) }).await;
        cluster.pause(hung);
        hung
    };
    let (pushed, hung) = tokio::join!(push, hang);
    assert_eq!(pushed.unwrap(), 201);
    let other = 3 - hung;
    cluster.links.limit(0);
    let pulled = cluster.client(other).pull("stuck/app", "v1", &image).await;
    pulled.unwrap();
    let copied = cluster.metric(0, "roadstead_blob_copies_total{result=\"ok\"}");
    assert!(copied.await >= 1.0);
    cluster.resume(hung);
    cluster.wait_healthy(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_deleted_while_its_copy_is_under_way_stays_deleted() {
    let cluster = Cluster::start_with(3, &[("ROADSTEAD_TEST__REPAIR", "off")]).await;
    let bytes = random_bytes(13, 3 << 20);
    let digest = sha256(&bytes);
    let client = cluster.client(0);
    cluster.links.limit(500_000);
    let pushed = client.push_blob("deleted/app", &digest, bytes).await;
    assert_eq!(pushed.unwrap(), 201);
    let path = format!("/v2/deleted/app/blobs/{digest}");
    let deleted = client.request(Method::DELETE, &path).send().await;
    assert_eq!(deleted.unwrap().status(), 202);
    let hex = digest.hex();
    let has_copy = |i: usize| {
        let blobs = cluster.data_dir(i).join("blobs/sha256");
        blobs.join(&hex[..2]).join(hex).exists()
    };
    assert!(
        !has_copy(1) && !has_copy(2),
        "the copy is slower than the delete"
    );
    let within = Duration::from_secs(60);
    eventually("the copy is over", within, || async {
        let counted = cluster.metric(0, "roadstead_blob_copies_total{result=\"ok\"}");
        (counted.await >= 1.0).then_some(())
    })
    .await;
    assert!(has_copy(1) || has_copy(2));
    cluster.links.limit(0);
    for i in 0..3 {
        let found = cluster.client(i).blob("deleted/app", &digest).await;
        assert_eq!(found.unwrap().status(), 404, "{}", cluster.name(i));
    }
}
