//! A pull at a node whose disk is nearly full, of what only other regions have: it goes through, and
//! nothing is kept until there is room.

use crate::full_disk::{Filler, GIB, free};
use crate::harness::client::{Client, Image, random_bytes};
use crate::harness::cluster::Cluster;
use crate::harness::wait::eventually;
use crate::lazy_fetch::{MIB, REPOSITORY, a_bad_copy_is_found_out, blob_file, held_by_two};
use futures_util::StreamExt;
use reqwest::Method;
use std::time::Duration;

const PASSED: &str = "roadstead_blob_fetches_total{result=\"passed\"}";

/// Regions that copy nothing in the background, and are full as soon as there is a filler.
async fn nearly_full() -> Cluster {
    let reserve = ((free() - GIB) / 2).to_string();
    let set = [
        ("ROADSTEAD_TEST__REPAIR", "off"),
        ("ROADSTEAD_TEST__RESERVE", &reserve),
    ];
    Cluster::start_with(3, &set).await
}

fn blob_path(image: &Image, blob: usize) -> String {
    format!("/v2/{REPOSITORY}/blobs/{}", image.blobs[blob].0)
}

async fn is_unknown(client: &Client) -> bool {
    let nobody = crate::harness::client::sha256(b"of nobody");
    client.blob(REPOSITORY, &nobody).await.unwrap().status() == 404
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_of_what_other_regions_have_goes_through_a_full_disk() {
    let cluster = nearly_full().await;
    let image = Image::new("passed on", vec![random_bytes(1, 8 * MIB + 17)]);
    let (_, _, without) = held_by_two(&cluster, &image).await;
    let client = cluster.client(without);
    let filler = Filler::new(&cluster);
    let path = blob_path(&image, 1);
    let bytes = &image.blobs[1].1;

    let head = client.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["content-length"], bytes.len().to_string());
    let whole = client.get(&path).await.unwrap();
    assert_eq!(whole.status(), 200);
    let source = whole.headers()["roadstead-source"].to_str().unwrap();
    assert!(source.starts_with("peer:"), "{source}");
    assert!(whole.bytes().await.unwrap() == bytes, "other bytes");
    client.pull(REPOSITORY, "v1", &image).await.unwrap();

    let len = bytes.len();
    for (range, from, to) in [
        ("bytes=0-9".to_owned(), 0, 10),
        ("bytes=0-".to_owned(), 0, len),
        ("bytes=65535-65537".to_owned(), 65_535, 65_538),
        (format!("bytes={}-", len - 5), len - 5, len),
        (format!("bytes=1000000-{}", len - 2), 1_000_000, len - 1),
    ] {
        let part = client.request(Method::GET, &path).header("range", &range);
        let part = part.send().await.unwrap();
        assert_eq!(part.status(), 206, "{range}");
        let told = format!("bytes {from}-{}/{len}", to - 1);
        assert_eq!(part.headers()["content-range"], told.as_str());
        let part = part.bytes().await.unwrap();
        assert!(part == bytes.slice(from..to), "{range}");
    }
    let config = &image.blobs[0].1;
    let part = client.request(Method::GET, &blob_path(&image, 0));
    let part = part.header("range", "bytes=2-8").send().await.unwrap();
    assert_eq!(part.bytes().await.unwrap(), config.slice(2..9));
    let parts = client.request(Method::GET, &path);
    let parts = parts.header("range", "bytes=1-2,70000-70001").send();
    let parts = parts.await.unwrap().text().await;
    assert!(parts.is_ok(), "several ranges at once");
    assert!(is_unknown(&client).await, "what nobody has is 404");

    assert!(cluster.metric(without, PASSED).await >= 9.0);
    let file = blob_file(&cluster, without, image.blobs[1].0.hex());
    assert!(!file.exists(), "it was kept");
    drop(filler);
    client.pull(REPOSITORY, "v1", &image).await.unwrap();
    let limit = Duration::from_secs(10);
    let kept = || async { file.exists().then_some(()) };
    eventually("there is room, and it is kept", limit, kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_when_the_disk_gets_full_in_the_middle_of_it() {
    let cluster = nearly_full().await;
    let image = Image::new("full on the way", vec![random_bytes(2, 24 * MIB)]);
    let (_, _, without) = held_by_two(&cluster, &image).await;
    let client = cluster.client(without);
    let bytes = &image.blobs[1].1;
    cluster.links.limit(4 << 20);
    let whole = client.blob(REPOSITORY, &image.blobs[1].0).await.unwrap();
    let part = client.request(Method::GET, &blob_path(&image, 1));
    let part = part.header("range", "bytes=1000-").send().await.unwrap();
    assert_eq!(cluster.metric(without, PASSED).await, 0.0);
    let _filler = Filler::new(&cluster);
    cluster.links.limit(0);
    let (whole, part) = tokio::join!(whole.bytes(), part.bytes());
    assert!(whole.unwrap() == bytes, "other bytes");
    assert!(part.unwrap() == bytes.slice(1000..), "other bytes");
    assert_eq!(cluster.metric(without, PASSED).await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_through_a_full_disk_survives_the_loss_of_the_region_that_serves_it() {
    let mut cluster = nearly_full().await;
    let image = Image::new("two holders", vec![random_bytes(3, 24 * MIB)]);
    let (a, b, without) = held_by_two(&cluster, &image).await;
    let _filler = Filler::new(&cluster);
    cluster.links.limit(4 << 20);
    let client = cluster.client(without);
    let answer = client.blob(REPOSITORY, &image.blobs[1].0).await.unwrap();
    let source = answer.headers()["roadstead-source"].to_str().unwrap();
    let is_source = |i: &usize| source == format!("peer:{}", cluster.name(*i));
    let serving = [a, b].into_iter().find(is_source).expect(source);
    let mut body = answer.bytes_stream();
    let mut received = body.next().await.expect("a first piece").unwrap().to_vec();
    cluster.kill(serving);
    cluster.links.limit(0);
    while let Some(piece) = body.next().await {
        received.extend_from_slice(&piece.expect("the body goes on"));
    }
    assert!(received == image.blobs[1].1, "other bytes");
    let next = "roadstead_blob_fetches_total{result=\"next_holder\"}";
    assert!(cluster.metric(without, next).await >= 1.0);
}

/// A small blob comes from the next holder unseen, a large one breaks off before its end.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_through_a_full_disk_never_look_like_a_whole_blob() {
    for len in [1000, 8 * MIB] {
        let mut cluster = nearly_full().await;
        let image = Image::new("wrong bytes", vec![random_bytes(7, len)]);
        let (good, bad, without) = held_by_two(&cluster, &image).await;
        let holders = [good, bad, without];
        let _filler = Filler::new(&cluster);
        a_bad_copy_is_found_out(&mut cluster, &image, holders).await;
    }
}
