//! A client's upload goes on wherever its next request lands, through restarts and broken
//! connections, and a request that is refused changes nothing (design 7.1).

use crate::harness::client::{Client, random_bytes, sha256};
use crate::harness::cluster::Cluster;
use crate::harness::wait::eventually;
use bytes::Bytes;
use futures_util::stream;
use reqwest::{Body, Method, Response};
use roadstead::oci::{Algorithm, Digest};
use std::io;
use std::time::Duration;

async fn start(client: &Client, query: &str) -> String {
    let path = format!("/v2/uploads/app/blobs/uploads/{query}");
    let started = client.request(Method::POST, &path).send().await.unwrap();
    assert_eq!(started.status(), 202);
    location(&started)
}

fn location(answer: &Response) -> String {
    answer.headers()["location"].to_str().unwrap().to_owned()
}

async fn patch(client: &Client, path: &str, at: usize, bytes: Bytes) -> Response {
    let range = format!("{at}-{}", at + bytes.len() - 1);
    let request = client.request(Method::PATCH, path);
    let request = request.header("content-range", range).body(bytes);
    request.send().await.unwrap()
}

async fn put(client: &Client, path: &str, digest: &Digest, bytes: Bytes) -> Response {
    let request = client.request(Method::PUT, path);
    let request = request.query(&[("digest", digest.to_string())]).body(bytes);
    request.send().await.unwrap()
}

async fn offset(client: &Client, path: &str) -> (u16, String) {
    let answer = client.get(path).await.unwrap();
    let range = answer.headers().get("range");
    let range = range.map(|range| range.to_str().unwrap().to_owned());
    (answer.status().as_u16(), range.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_in_whichever_region_its_next_request_lands() {
    let cluster = Cluster::start(3).await;
    let clients = [0, 1, 2].map(|i| cluster.client(i));
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let bytes = random_bytes(1, 3_000_000);
        let digest = Digest::of(algorithm, &bytes);
        let path = start(&clients[0], "").await;
        for (i, at) in (0..2_500_000).step_by(500_000).enumerate() {
            let client = &clients[(i + 1) % 3];
            let answer = patch(client, &path, at, bytes.slice(at..at + 500_000)).await;
            assert_eq!(answer.status(), 202, "chunk {i}");
            assert_eq!(location(&answer), path);
            let range = format!("0-{}", at + 499_999);
            assert_eq!(answer.headers()["range"].to_str().unwrap(), range);
            assert_eq!(offset(&clients[i % 3], &path).await, (204, range));
        }
        for client in &clients {
            let stale = patch(client, &path, 0, bytes.slice(..10)).await;
            assert_eq!(stale.status(), 416);
            assert_eq!(stale.headers()["range"], "0-2499999");
            assert_eq!(location(&stale), path);
        }
        let done = put(&clients[2], &path, &digest, bytes.slice(2_500_000..)).await;
        assert_eq!(done.status(), 201);
        for client in &clients {
            let again = client.blob("uploads/app", &digest).await.unwrap();
            assert_eq!(again.bytes().await.unwrap(), bytes);
            // The client did not hear of it.
            let told = put(client, &path, &digest, bytes.slice(2_500_000..)).await;
            assert_eq!(told.status(), 201);
            assert_eq!(offset(client, &path).await.0, 404);
        }
    }
    let path = start(&clients[1], "").await;
    let wrong = put(&clients[2], &path, &sha256(b"other"), Bytes::from("some")).await;
    assert_eq!(wrong.status(), 400);
    let path = start(&clients[1], "").await;
    let gone = clients[0].request(Method::DELETE, &path).send().await;
    assert_eq!(gone.unwrap().status(), 204);
    for client in &clients {
        assert_eq!(offset(client, &path).await.0, 404);
        let other = path.replace("uploads/app", "another/app");
        assert_eq!(offset(client, &other).await.0, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_survives_a_restart_of_its_node() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client(1);
    let bytes = random_bytes(2, 2_000_000);
    let path = start(&cluster.client(0), "").await;
    let empty = start(&cluster.client(0), "?digest-algorithm=sha512").await;
    let answer = patch(&client, &path, 0, bytes.slice(..1_500_000)).await;
    assert_eq!(answer.status(), 202);
    cluster.kill(0);
    // Asked while its node is away: held until that is back.
    let (held, ()) = tokio::join!(offset(&client, &path), async {
        cluster.run(0);
    });
    assert_eq!(held, (204, "0-1499999".to_owned()));
    let answer = patch(&client, &path, 1_500_000, bytes.slice(1_500_000..)).await;
    assert_eq!(answer.status(), 202);
    cluster.wait_ready(Duration::from_secs(60)).await;
    let digest = sha256(&bytes);
    let done = put(&cluster.client(0), &path, &digest, Bytes::new()).await;
    assert_eq!(done.status(), 201);
    let pulled = client.blob("uploads/app", &digest).await.unwrap();
    assert_eq!(pulled.bytes().await.unwrap(), bytes);
    let digest = Digest::of(Algorithm::Sha512, b"late");
    let done = put(&client, &empty, &digest, Bytes::from("late")).await;
    assert_eq!(done.status(), 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_node_stays_away_is_unavailable_and_not_unknown() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client(1);
    let path = start(&cluster.client(0), "").await;
    cluster.kill(0);
    let answer = patch(&client, &path, 0, Bytes::from("abc")).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "10");
    assert!(answer.text().await.unwrap().contains("region r1"));
}

/// A body that sends `bytes` and then nothing, until it is dropped.
fn stalls_after(bytes: Bytes) -> Body {
    let pieces = stream::unfold(Some(bytes), |bytes| async {
        match bytes {
            Some(bytes) => Some((Ok::<_, io::Error>(bytes), None)),
            None => std::future::pending().await,
        }
    });
    Body::wrap_stream(pieces)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_again_need_not_wait_for_its_broken_connection() {
    let cluster = Cluster::start(3).await;
    let (client, other) = (cluster.client(0), cluster.client(2));
    let path = start(&client, "").await;
    let stalled = client.request(Method::PATCH, &path);
    let stalled = stalled.body(stalls_after(Bytes::from("12345"))).send();
    let comes_again = async {
        eventually("the bytes have come", Duration::from_secs(10), || async {
            (offset(&other, &path).await.1 == "0-4").then_some(())
        })
        .await;
        patch(&other, &path, 5, Bytes::from("678")).await
    };
    let (stalled, again) = tokio::join!(stalled, comes_again);
    assert_eq!(again.status(), 202);
    assert_eq!(again.headers()["range"], "0-7");
    // Told, or cut: it is not the one that goes on.
    assert!(stalled.is_err() || stalled.unwrap().status() == 400);
}

/// Bytes of uploads that have reached the disk of region `i`.
fn staged(cluster: &Cluster, i: usize) -> u64 {
    let files = std::fs::read_dir(cluster.data_dir(i).join("blobs/staging")).unwrap();
    files
        .map(|file| file.unwrap().metadata().map_or(0, |m| m.len()))
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_broke_off_can_be_sent_again_whole() {
    let cluster = Cluster::start(3).await;
    let rest = random_bytes(3, 3 << 20);
    let digest = sha256(&[&b"12"[..], &rest].concat());
    for (method, through) in [(Method::PUT, 0), (Method::PATCH, 0), (Method::PUT, 2)] {
        let client = cluster.client(through);
        let path = start(&cluster.client(0), "").await;
        let sent = client.request(Method::PATCH, &path).body("12").send();
        assert_eq!(sent.await.unwrap().status(), 202);
        let stalled = client.request(method.clone(), &path);
        let stalled = stalled.query(&[("digest", digest.to_string())]);
        let stalled = stalled.body(stalls_after(rest.slice(..2 << 20))).send();
        let came = || async { (staged(&cluster, 0) > 1 << 20).then_some(()) };
        tokio::select! {
            _ = stalled => panic!("a body without an end was answered"),
            () = eventually("the bytes have come", Duration::from_secs(10), came) => {}
        }
        // The client does not know how far it came.
        let again = client.request(method, &path);
        let again = again.query(&[("digest", digest.to_string())]);
        let again = again.body(rest.clone()).send().await.unwrap();
        assert!(again.status().is_success(), "{:?}", again.text().await);
        let blob = put(&client, &path, &digest, Bytes::new()).await;
        assert_eq!(blob.status(), 201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asked_how_far_it_came_goes_on_from_there() {
    let cluster = Cluster::start(3).await;
    for through in [0, 2] {
        let client = cluster.client(through);
        let path = start(&cluster.client(0), "").await;
        let stalled = client.request(Method::PATCH, &path);
        let stalled = stalled.body(stalls_after(Bytes::from("12345"))).send();
        let came = || async { (offset(&client, &path).await.1 == "0-4").then_some(()) };
        tokio::select! {
            _ = stalled => panic!("a body without an end was answered"),
            () = eventually("the bytes have come", Duration::from_secs(10), came) => {}
        }
        let digest = sha256(b"12345678");
        let rest = put(&client, &path, &digest, Bytes::from("678")).await;
        assert_eq!(rest.status(), 201, "through region {through}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_another_length_than_it_says_leaves_the_upload_as_it_was() {
    let cluster = Cluster::start(2).await;
    let path = start(&cluster.client(0), "").await;
    let digest = sha256(b"12345678");
    for client in [cluster.client(0), cluster.client(1)] {
        let streamed = |range: &'static str, bytes: &'static str| {
            let pieces = stream::iter([Ok::<_, io::Error>(Bytes::from(bytes))]);
            let request = client.request(Method::PATCH, &path);
            let request = request.header("content-range", range);
            request.body(Body::wrap_stream(pieces)).send()
        };
        let (_, before) = offset(&client, &path).await;
        let at = if before == "0-0" { 0 } else { 4 };
        let (long, right) = match at {
            0 => ("0-9", "0-3"),
            _ => ("4-9", "4-7"),
        };
        let refused = streamed(long, "12").await.unwrap();
        assert_eq!(refused.status(), 400);
        assert!(refused.text().await.unwrap().contains("SIZE_INVALID"));
        assert_eq!(offset(&client, &path).await.1, before);
        let bytes = if at == 0 { "1234" } else { "5678" };
        assert_eq!(streamed(right, bytes).await.unwrap().status(), 202);
    }
    let done = put(&cluster.client(1), &path, &digest, Bytes::new()).await;
    assert_eq!(done.status(), 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_mounted_in_a_region_that_does_not_have_it() {
    let cluster = Cluster::start_with(3, &[("ROADSTEAD_TEST__REPAIR", "off")]).await;
    let bytes = Bytes::from("mounted elsewhere");
    let digest = sha256(&bytes);
    let pushed = cluster
        .client(0)
        .push_blob("mount/from", &digest, bytes.clone())
        .await;
    assert_eq!(pushed.unwrap(), 201);
    for (i, query) in [
        (0, "&from=mount/from"),
        (1, "&from=mount/from"),
        (2, ""),
        (0, ""),
    ]
    .into_iter()
    .enumerate()
    .map(|(n, (region, query))| ((n, region), query))
    {
        let (n, region) = i;
        let client = cluster.client(region);
        let to = format!("mount/to-{n}");
        let path = format!("/v2/{to}/blobs/uploads/?mount={digest}{query}");
        let mounted = client.request(Method::POST, &path).send().await.unwrap();
        assert_eq!(mounted.status(), 201, "{path} at region {region}");
        assert_eq!(location(&mounted), format!("/v2/{to}/blobs/{digest}"));
        for reader in 0..3 {
            let read = cluster.client(reader).blob(&to, &digest).await.unwrap();
            assert_eq!(read.bytes().await.unwrap(), bytes);
        }
    }
    for query in ["&from=mount/none", "&from=NOT-A-NAME"] {
        let path = format!("/v2/mount/to/blobs/uploads/?mount={digest}{query}");
        let client = cluster.client(1);
        let not = client.request(Method::POST, &path).send().await.unwrap();
        assert_eq!(not.status(), 202, "{query}");
    }
}
