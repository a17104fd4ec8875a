//! A pull of bytes that live only elsewhere (P2, P8): they come through while they arrive, once,
//! from whoever has good ones.

use crate::harness::client::{Client, Image, random_bytes};
use crate::harness::cluster::Cluster;
use crate::harness::wait::eventually;
use bytes::Bytes;
use futures_util::StreamExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const REPOSITORY: &str = "lazy/app";
pub const MIB: usize = 1 << 20;

/// Three regions that copy nothing in the background, and an image with one layer of `size` that
/// two of them hold. Returns who does, and who does not.
pub async fn held_by_two(cluster: &Cluster, image: &Image) -> (usize, usize, usize) {
    assert_eq!(
        cluster
            .client(0)
            .push(REPOSITORY, "v1", image)
            .await
            .unwrap(),
        201
    );
    let layer = image.blobs[1].0.clone();
    eventually(
        "two regions hold the layer",
        Duration::from_secs(30),
        || async {
            let holders: Vec<usize> = (0..3)
                .filter(|i| blob_file(cluster, *i, layer.hex()).exists())
                .collect();
            let without = (0..3).find(|i| !holders.contains(i))?;
            (holders.len() == 2).then(|| (holders[0], holders[1], without))
        },
    )
    .await
}

pub fn blob_file(cluster: &Cluster, i: usize, hex: &str) -> PathBuf {
    cluster
        .data_dir(i)
        .join("blobs/sha256")
        .join(&hex[..2])
        .join(hex)
}

/// Other bytes in the place of a blob, whose block checksums fit: only the digest tells.
pub fn replace_with_other_bytes(file: &Path, len: usize) {
    let bytes = random_bytes(99, len);
    let mut checksums = b"RSBLOCK1".to_vec();
    checksums.extend_from_slice(&(len as u64).to_be_bytes());
    for block in bytes.chunks(64 << 10) {
        checksums.extend_from_slice(&crc32fast::hash(block).to_be_bytes());
    }
    let own = crc32fast::hash(&checksums);
    checksums.extend_from_slice(&own.to_be_bytes());
    std::fs::write(file, &bytes).unwrap();
    std::fs::write(file.with_extension("crc"), checksums).unwrap();
}

async fn quiet_cluster() -> Cluster {
    Cluster::start_with(3, &[("ROADSTEAD_TEST__REPAIR", "off")]).await
}

pub async fn body(client: &Client, image: &Image) -> Result<Bytes, reqwest::Error> {
    client
        .blob(REPOSITORY, &image.blobs[1].0)
        .await?
        .bytes()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_byte_comes_before_the_transfer_is_complete() {
    let cluster = quiet_cluster().await;
    let image = Image::new("first byte", vec![random_bytes(1, 24 * MIB)]);
    let (_, _, without) = held_by_two(&cluster, &image).await;
    cluster.links.limit(4 << 20);
    let answer = cluster
        .client(without)
        .blob(REPOSITORY, &image.blobs[1].0)
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let source = answer.headers()["roadstead-source"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(source.starts_with("peer:"), "{source}");
    let mut body = answer.bytes_stream();
    let first = body.next().await.expect("a first piece").unwrap();
    let staged: u64 = std::fs::read_dir(cluster.data_dir(without).join("blobs/staging"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().map(|m| m.len()).unwrap_or(0))
        .sum();
    assert!(
        staged < 24 * MIB as u64,
        "the first byte came after the last was fetched"
    );
    let mut received = first.to_vec();
    while let Some(piece) = body.next().await {
        received.extend_from_slice(&piece.unwrap());
    }
    assert!(received == image.blobs[1].1, "other bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_survives_the_loss_of_the_region_that_serves_it() {
    let mut cluster = quiet_cluster().await;
    let image = Image::new("two holders", vec![random_bytes(2, 24 * MIB)]);
    let (a, b, without) = held_by_two(&cluster, &image).await;
    cluster.links.limit(4 << 20);
    let answer = cluster
        .client(without)
        .blob(REPOSITORY, &image.blobs[1].0)
        .await
        .unwrap();
    let source = answer.headers()["roadstead-source"]
        .to_str()
        .unwrap()
        .to_owned();
    let serving = [a, b]
        .into_iter()
        .find(|i| source == format!("peer:{}", cluster.name(*i)))
        .expect(&source);
    let mut body = answer.bytes_stream();
    let mut received = body.next().await.expect("a first piece").unwrap().to_vec();
    cluster.kill(serving);
    cluster.links.limit(0);
    while let Some(piece) = body.next().await {
        received.extend_from_slice(&piece.expect("the body goes on"));
    }
    assert!(received == image.blobs[1].1, "other bytes");
    assert!(
        cluster
            .metric(
                without,
                "roadstead_blob_fetches_total{result=\"next_holder\"}"
            )
            .await
            >= 1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_clients_at_once_cost_one_transfer() {
    let cluster = quiet_cluster().await;
    let image = Image::new("ten clients", vec![random_bytes(3, 8 * MIB)]);
    let (_, _, without) = held_by_two(&cluster, &image).await;
    cluster.links.limit(8 << 20);
    let client = cluster.client(without);
    let pulls = (0..10).map(|_| body(&client, &image));
    for pulled in futures_util::future::join_all(pulls).await {
        assert!(pulled.unwrap() == image.blobs[1].1, "other bytes");
    }
    let ok = "roadstead_blob_fetches_total{result=\"ok\"}";
    assert_eq!(cluster.metric(without, ok).await, 1.0);
    // Kept from now on: the next pull is local.
    let again = client.blob(REPOSITORY, &image.blobs[1].0).await.unwrap();
    assert_eq!(again.headers()["roadstead-source"], "local");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_went_bad_on_disk_is_never_served() {
    let cluster = quiet_cluster().await;
    let image = Image::new("bad copy", vec![random_bytes(4, 2 * MIB)]);
    let (a, b, without) = held_by_two(&cluster, &image).await;
    let hex = image.blobs[1].0.hex().to_owned();
    let flip = |i: usize| {
        let file = std::fs::File::options()
            .write(true)
            .read(true)
            .open(blob_file(&cluster, i, &hex))
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 1_000_000).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 1_000_000).unwrap();
    };
    flip(a);
    // The region with the bad copy serves good bytes, from another.
    let pulled = body(&cluster.client(a), &image).await.unwrap();
    assert!(
        pulled == image.blobs[1].1,
        "other bytes from the region with the bad copy"
    );
    flip_is_not_served(&cluster, without, &image).await;
    assert!(cluster.metric(a, "roadstead_blob_blocks_bad_total").await >= 1.0);
    let _ = b;
}

async fn flip_is_not_served(cluster: &Cluster, i: usize, image: &Image) {
    let pulled = body(&cluster.client(i), image).await.unwrap();
    assert!(
        pulled == image.blobs[1].1,
        "other bytes from {}",
        cluster.name(i)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_blob_that_is_elsewhere_are_exact() {
    let cluster = quiet_cluster().await;
    let image = Image::new("ranges", vec![random_bytes(5, 3 * MIB + 17)]);
    let (_, _, without) = held_by_two(&cluster, &image).await;
    let (digest, bytes) = &image.blobs[1];
    let len = bytes.len();
    for (range, from, to) in [
        ("bytes=0-9".to_owned(), 0, 10),
        (format!("bytes={}-", len - 5), len - 5, len),
        ("bytes=-70000".to_owned(), len - 70_000, len),
        ("bytes=65535-65537".to_owned(), 65_535, 65_538),
    ] {
        let answer = cluster
            .client(without)
            .request(
                reqwest::Method::GET,
                &format!("/v2/{REPOSITORY}/blobs/{digest}"),
            )
            .header("range", &range)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 206, "{range}");
        let expected = format!("bytes {from}-{}/{len}", to - 1);
        assert_eq!(answer.headers()["content-range"], expected.as_str());
        assert!(
            answer.bytes().await.unwrap() == bytes.slice(from..to),
            "{range}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_no_reachable_region_has_are_503_and_not_404() {
    let mut cluster = quiet_cluster().await;
    let image = Image::new("unreachable", vec![random_bytes(6, MIB)]);
    let (a, b, without) = held_by_two(&cluster, &image).await;
    cluster.kill(a);
    cluster.kill(b);
    let answer = cluster
        .client(without)
        .blob(REPOSITORY, &image.blobs[1].0)
        .await
        .unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "10");
    // What is here is still served, marked with its age.
    eventually(
        "the manifest is served, marked",
        Duration::from_secs(10),
        || async {
            let manifest = cluster
                .client(without)
                .manifest(REPOSITORY, "v1")
                .await
                .ok()?;
            assert_eq!(manifest.status(), 200);
            manifest
                .headers()
                .contains_key("roadstead-staleness-ms")
                .then_some(())
        },
    )
    .await;
}

/// The holder that can be reached has other bytes than it should, and the good one comes back when
/// that is found out: meanwhile `without` pulls, and gets the right bytes or an end that shows.
pub async fn a_bad_copy_is_found_out(
    cluster: &mut Cluster,
    image: &Image,
    [good, bad, without]: [usize; 3],
) {
    let (digest, bytes) = &image.blobs[1];
    let file = blob_file(cluster, bad, digest.hex());
    replace_with_other_bytes(&file, bytes.len());
    cluster.kill(good);
    let client = cluster.client(without);
    let mend = async {
        let gone = || async { (!file.exists()).then_some(()) };
        let limit = Duration::from_secs(20);
        eventually("the bad copy is out of the way", limit, gone).await;
        cluster.run(good);
    };
    let (pulled, ()) = tokio::join!(body(&client, image), mend);
    if bytes.len() > MIB {
        assert!(pulled.is_err(), "wrong bytes began to come, and were cut");
        assert!(body(&client, image).await.unwrap() == *bytes, "other bytes");
    } else {
        assert!(pulled.unwrap() == *bytes, "other bytes");
    }
}

/// A small blob is held back whole until its digest is known, a large one all but its end.
#[tokio::test]
async fn a_holder_that_sends_wrong_bytes_is_found_out_and_the_next_one_is_asked() {
    for len in [1000, 8 * MIB] {
        let mut cluster = quiet_cluster().await;
        let image = Image::new("wrong bytes", vec![random_bytes(7, len)]);
        let (good, bad, without) = held_by_two(&cluster, &image).await;
        a_bad_copy_is_found_out(&mut cluster, &image, [good, bad, without]).await;
        // Whoever had the bad copy says so, and the cluster counts one holder less until it fetches.
        let bad_client = cluster.client(bad);
        assert!(body(&bad_client, &image).await.unwrap() == image.blobs[1].1);
    }
}
