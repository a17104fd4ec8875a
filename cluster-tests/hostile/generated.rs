//! Thousands of bad requests of every kind, with a good client beside them.

use super::bad_requests::Generator;
use super::frames;
use super::frames::{GOAWAY, HEADERS, RST_STREAM};
use super::memory;
use super::wire::{LONGEST, connect, statuses};
use crate::harness::client::{Client, Image};
use crate::harness::cluster::Cluster;
use crate::harness::{rounds, seed};
use reqwest::Method;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

/// What came back of one conversation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Came {
    /// The first digit of a status.
    Answer(u16),
    /// Over HTTP/2: frames, and no answer.
    Refusal,
    Nothing,
}

/// Mostly long enough for an answer.
const ANSWERED: Duration = Duration::from_millis(100);

/// Sends one conversation. Every answer counts; the server must end it within ten seconds of the
/// end of what this side has to say.
async fn converse(address: &str, bytes: &[u8]) -> Vec<Came> {
    let mut stream = connect(address).await;
    let mut all = Vec::new();
    let talk = async {
        let (mut read, mut write) = stream.split();
        let sending = async {
            // The server may refuse it before it has all.
            let _ = write.write_all(bytes).await;
        };
        let reading = async {
            let mut buf = [0; 16 << 10];
            while let Ok(size @ 1..) = read.read(&mut buf).await {
                all.extend_from_slice(&buf[..size]);
            }
        };
        tokio::pin!(reading);
        tokio::select! {
            () = &mut reading => return,
            () = sending => {}
        }
        // To whoever waits for more it is said that nothing comes.
        if timeout(ANSWERED, &mut reading).await.is_err() {
            let _ = write.shutdown().await;
            reading.await;
        }
    };
    let ended = timeout(LONGEST, talk).await;
    assert!(ended.is_ok(), "no end of {}", bytes.escape_ascii());
    let mut came: Vec<Came> = match bytes.starts_with(b"PRI ") {
        false => statuses(&all)
            .into_iter()
            .map(|status| Came::Answer(status / 100))
            .collect(),
        true => frames::frames(&all)
            .into_iter()
            .filter_map(|(kind, _, _, payload)| match kind {
                HEADERS => frames::status_class(&payload).map(|class| Came::Answer(class.into())),
                RST_STREAM | GOAWAY => Some(Came::Refusal),
                _ => None,
            })
            .collect(),
    };
    assert!(
        !came.contains(&Came::Answer(5)),
        "{} answers {}",
        bytes.escape_ascii(),
        all.escape_ascii()
    );
    if came.is_empty() {
        came.push(Came::Nothing);
    }
    came
}

/// Opens some uploads for the generator to play with, in place of those before.
async fn new_uploads(client: &Client, generator: &Mutex<Generator>) {
    let old = std::mem::take(&mut generator.lock().unwrap().uploads);
    for path in old {
        client.request(Method::DELETE, &path).send().await.unwrap();
    }
    let mut new = Vec::new();
    for _ in 0..8 {
        let start = client.request(Method::POST, "/v2/bad/app/blobs/uploads/");
        let answer = start.send().await.unwrap();
        assert_eq!(answer.status(), 202);
        new.push(answer.headers()["location"].to_str().unwrap().to_owned());
    }
    generator.lock().unwrap().uploads = new;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_move_nothing() {
    const WORKERS: usize = 32;
    let rounds = rounds(10_000);
    let seed = seed("hostile");
    let cluster = Cluster::start_with(1, &[("ROADSTEAD_META__CACHE_MIB", "8")]).await;
    let address = cluster.registry(0);
    let client = cluster.client(0);
    let image = Image::small("good");
    assert_eq!(client.push("good/app", "v1", &image).await.unwrap(), 201);
    let blob = image.blobs[1].0.to_string();
    let generator = Mutex::new(Generator::new(seed, image.digest.to_string(), blob));
    let left = AtomicUsize::new(rounds);
    let counts = [(); 2].map(|()| Mutex::new(BTreeMap::<Came, usize>::new()));
    let warm = std::sync::OnceLock::new();
    let worker = || async {
        loop {
            let n = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
            let Ok(n) = n else { return };
            if n == rounds - rounds / 5 {
                warm.set(memory(&cluster, 0)).unwrap();
            }
            if n % 500 == 0 {
                new_uploads(&client, &generator).await;
            }
            let is_http_2 = n % 4 == 0;
            let bytes = match is_http_2 {
                true => generator.lock().unwrap().http_2(),
                false => generator.lock().unwrap().http_1(),
            };
            for came in converse(&address, &bytes).await {
                let mut counts = counts[usize::from(is_http_2)].lock().unwrap();
                *counts.entry(came).or_default() += 1;
            }
        }
    };
    let (mut good, mut slowest) = (0, Duration::ZERO);
    let bad = futures_util::future::join_all((0..WORKERS).map(|_| worker()));
    let well = async {
        loop {
            let began = Instant::now();
            let tag = format!("v{}", 1 + good % 5);
            assert_eq!(client.push("good/app", &tag, &image).await.unwrap(), 201);
            client.pull("good/app", &tag, &image).await.unwrap();
            good += 1;
            slowest = slowest.max(began.elapsed());
        }
    };
    let began = Instant::now();
    tokio::select! {
        _ = bad => {}
        () = well => unreachable!(),
    }
    let (warm, now) = (*warm.get().unwrap(), memory(&cluster, 0));
    let counts = counts.map(|counts| counts.into_inner().unwrap());
    println!(
        "hostile: {rounds} bad requests in {:?}, 0 answered 5xx, 0 open after 10 s\nhostile: HTTP/1.1 {:?}, HTTP/2 {:?}\nhostile: {good} good pushes and pulls beside them, the slowest in {slowest:?}; {warm} MiB after a fifth, {now} MiB at the end",
        began.elapsed(),
        counts[0],
        counts[1],
    );
    assert!(now < warm + 32, "{warm} MiB grew to {now}");
    assert!(
        good > 0 && slowest < LONGEST,
        "{good} good ones, the slowest in {slowest:?}"
    );
    let bad = counts.each_ref().map(|counts| counts[&Came::Answer(4)]);
    assert!(
        bad[0] > rounds / 3 && bad[1] > rounds / 20,
        "they were not bad: {counts:?}"
    );
    // What the wire does not show plainly of HTTP/2.
    let log = std::fs::read_to_string(cluster.log_file(0)).unwrap();
    let failed = log.lines().find(|line| line.contains(" status=5"));
    assert!(failed.is_none() && log.contains(" status=4"), "{failed:?}");
    let catalog = client.json("/v2/_catalog").await.unwrap();
    assert_eq!(catalog["repositories"], json!(["good/app"]));
    client.pull("good/app", "v1", &image).await.unwrap();
    for n in 1..=5.min(good) {
        client
            .pull("good/app", &format!("v{n}"), &image)
            .await
            .unwrap();
    }
    let tags = client.json("/v2/good/app/tags/list").await.unwrap();
    assert_eq!(tags["tags"].as_array().unwrap().len(), 5.min(good));
}
