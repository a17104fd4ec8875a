//! What an operator finds in the logs when a user quotes the id of a request.

use crate::harness::client::Image;
use crate::harness::cluster::Cluster;
use crate::harness::wait::eventually;
use reqwest::{Method, Response};
use std::time::Duration;

fn id(answer: &Response) -> String {
    answer.headers()["roadstead-request"]
        .to_str()
        .unwrap()
        .to_owned()
}

/// The lines of region `i` that name the request, once one of them contains `last`.
async fn lines(cluster: &Cluster, i: usize, id: &str, last: &str) -> Vec<String> {
    let what = format!("{} logs {last:?} of request {id}", cluster.name(i));
    eventually(&what, Duration::from_secs(10), || async {
        let log = std::fs::read_to_string(cluster.log_file(i)).unwrap();
        let lines = log.lines().filter(|line| line.contains(id));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        lines
            .iter()
            .any(|line| line.contains(last))
            .then_some(lines)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_finds_a_request_in_the_logs_of_every_region_that_worked_for_it() {
    let debug = ("ROADSTEAD_LOG__LEVEL", "roadstead=debug");
    let cluster = Cluster::start_with(3, &[debug]).await;
    let (first, second) = (cluster.client(0), cluster.client(1));
    let path = "/v2/log/app/blobs/uploads/";
    let started = first.request(Method::POST, path).send().await.unwrap();
    let location = started.headers()["location"].to_str().unwrap().to_owned();
    let patch = second.request(Method::PATCH, &location).body("12345");
    let patched = patch.send().await.unwrap();
    assert_eq!(patched.status(), 202);
    let patch = id(&patched);
    assert_ne!(patch, id(&started));

    let own = lines(&cluster, 1, &patch, "received=5").await;
    let ends = own.iter().filter(|line| line.contains("status=202"));
    assert_eq!(ends.count(), 1, "{own:#?}");
    assert!(own.iter().any(|l| l.contains("route=\"append-upload\"")));
    // The node that has the upload did the work for the same request.
    lines(&cluster, 0, &patch, "/uploads/").await;

    // So did whoever made a copy for a push.
    let image = Image::small("log");
    assert_eq!(first.push("log/app", "v1", &image).await.unwrap(), 201);
    let again = first.put_manifest("log/app", "v1", image.manifest.clone());
    let put = id(&again.await.unwrap());
    lines(&cluster, 0, &put, "status=201").await;
    let receipts = async {
        tokio::select! {
            seen = lines(&cluster, 1, &put, "Receipts") => seen,
            seen = lines(&cluster, 2, &put, "Receipts") => seen,
        }
    };
    assert!(!receipts.await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_for_no_fault_of_their_own_can_quote_the_request() {
    let mut cluster = Cluster::start(3).await;
    let image = Image::small("quote");
    cluster.kill(1);
    cluster.kill(2);
    let client = cluster.client(0);
    for (digest, bytes) in &image.blobs {
        let taken = client.push_blob("quote/app", digest, bytes.clone()).await;
        assert_eq!(taken.unwrap(), 201);
    }
    let refused = client.put_manifest("quote/app", "v1", image.manifest.clone());
    let refused = refused.await.unwrap();
    assert_eq!(refused.status(), 503);
    let id = id(&refused);
    let text = refused.text().await.unwrap();
    assert!(text.contains(&format!("(request {id})")), "{text}");
    let own = lines(&cluster, 0, &id, "status=503").await;
    assert!(own.iter().any(|line| line.contains("put-manifest")));
    // A client's own mistake needs no id in its words.
    let mistaken = client.get("/v2/quote/app/blobs/none").await.unwrap();
    assert_eq!(mistaken.status(), 400);
    assert!(!mistaken.text().await.unwrap().contains("(request"));
}
