//! What an operator finds in the logs when a user quotes the id of a request.

use crate::harness::client::{Image, sha256};
use crate::harness::cluster::Cluster;
use crate::harness::wait::eventually;
use futures_util::{StreamExt, stream};
use reqwest::{Method, Response};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;
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

/// Naming thousands of blobs is one small request; what it costs the other regions is one each.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_of_thousands_of_unknown_blobs_costs_each_region_one_call() {
    let debug = ("ROADSTEAD_LOG__LEVEL", "roadstead=debug");
    let cluster = Cluster::start_with(3, &[debug]).await;
    let known = Image::small("known elsewhere");
    let first = cluster.client(0);
    for (digest, bytes) in &known.blobs {
        let pushed = first.push_blob("many/app", digest, bytes.clone()).await;
        assert_eq!(pushed.unwrap(), 201);
    }
    let mut manifest: Value = serde_json::from_slice(&known.manifest).unwrap();
    let layers = manifest["layers"].as_array_mut().unwrap();
    let unknown: Vec<String> = (0..3000u32)
        .map(|n| sha256(&n.to_be_bytes()).to_string())
        .collect();
    for digest in &unknown {
        layers.push(json!({"mediaType": "application/octet-stream", "digest": digest, "size": 4}));
    }
    let client = cluster.client(2);
    let put = client.put_manifest("many/app", "v1", manifest.to_string().into());
    let refused = put.await.unwrap();
    assert_eq!(refused.status(), 400);
    let id = id(&refused);
    let told: Value = refused.json().await.unwrap();
    let told = told["errors"].as_array().unwrap().iter();
    let told: BTreeSet<&str> = told
        .filter_map(|e| e["detail"]["digest"].as_str())
        .collect();
    assert!(
        told.iter()
            .copied()
            .eq(unknown.iter().map(String::as_str).collect::<BTreeSet<_>>())
    );
    for i in 0..2 {
        let seen = lines(&cluster, i, &id, "Blobs/Stat").await;
        let calls = seen.iter().filter(|line| line.contains("Blobs/Stat"));
        assert_eq!(calls.count(), 1, "{seen:#?}");
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A collector that hangs, with its pipe full: more than 64 KiB of lines, and more than a node keeps.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_is_stuck_stops_no_request_and_no_end() {
    const PULLS: usize = 4000;
    let mut cluster = Cluster::start(1).await;
    let (repository, tag) = (format!("log/{}", "a".repeat(90)), "v".repeat(128));
    let image = Image::small("stuck");
    let client = cluster.client(0);
    assert_eq!(client.push(&repository, &tag, &image).await.unwrap(), 201);
    cluster.stop(0);
    for is_read_later in [true, false] {
        let mut command = cluster.command(0);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut node = Killed(command.stderr(Stdio::piped()).spawn().unwrap());
        let pipe = node.0.stderr.take().unwrap();
        let limit = Duration::from_secs(30);
        eventually("it takes pushes", limit, || async {
            let health = client.get("/healthz?for=pushes").await.ok()?;
            (health.status() == 200).then_some(())
        })
        .await;
        let pulls = stream::iter(0..PULLS).map(|_| async {
            let pull = client.manifest(&repository, &tag);
            let pulled = tokio::time::timeout(Duration::from_secs(10), pull).await;
            pulled.expect("an answer").unwrap().status()
        });
        let pulls: Vec<_> = pulls.buffer_unordered(16).collect().await;
        assert!(pulls.iter().all(|status| *status == 200));
        assert_eq!(client.push(&repository, "next", &image).await.unwrap(), 201);

        let (read, is_read) = mpsc::channel();
        let mut pipe = Some(pipe);
        if is_read_later {
            let lines = BufReader::new(pipe.take().unwrap()).lines();
            let reading = move || {
                lines
                    .map_while(Result::ok)
                    .all(|line| read.send(line).is_ok())
            };
            std::thread::spawn(reading);
            let mut requests = 0;
            let dropped: usize = loop {
                let line = is_read.recv_timeout(limit).expect("another line");
                requests += usize::from(line.contains(": request "));
                if let Some((_, dropped)) = line.split_once("did not keep up lines=") {
                    break dropped.trim().parse().unwrap();
                }
            };
            assert!(dropped > 0 && requests > 100);
            assert!(requests + dropped >= PULLS, "{requests} and {dropped}");
        }
        let pid = Pid::from_raw(i32::try_from(node.0.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let node = std::sync::Mutex::new(node);
        let ended = || async { node.lock().unwrap().0.try_wait().unwrap() };
        let ended = eventually("it ends", limit, ended).await;
        assert!(ended.success());
        drop(pipe);
    }
}
