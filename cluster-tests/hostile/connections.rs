//! Connections: how many one address has, and how long one that does nothing is kept.

use super::memory;
use super::wire::{LONGEST, connect, until_closed};
use crate::harness::client::{random_bytes, sha256};
use crate::harness::cluster::Cluster;
use crate::harness::wait::eventually;
use std::net::IpAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_connections() {
    let share = [("ROADSTEAD_REGISTRY__CONNECTIONS_PER_ADDRESS", "20")];
    let cluster = Cluster::start_with(1, &share).await;
    let address = cluster.registry(0);
    // Those that the start of the cluster used may still be open.
    let mut held = Vec::new();
    let is_closed = |stream: &TcpStream| matches!(stream.try_read(&mut [0]), Ok(0));
    for _ in 0..30 {
        held.push(connect(&address).await);
    }
    eventually("the excess is closed", LONGEST, || async {
        let open = held.iter().filter(|stream| !is_closed(stream)).count();
        (open <= 20).then_some(())
    })
    .await;
    let elsewhere = reqwest::Client::builder().no_proxy();
    let elsewhere = elsewhere
        .local_address(IpAddr::from([127, 0, 0, 2]))
        .build()
        .unwrap();
    let ping = format!("http://{address}/v2/");
    assert_eq!(elsewhere.get(&ping).send().await.unwrap().status(), 200);
    drop(held);
    eventually("there is room again", LONGEST, || async {
        cluster
            .client(0)
            .get("/v2/")
            .await
            .ok()
            .filter(|answer| answer.status() == 200)
    })
    .await;
    let told = || async {
        let log = std::fs::read_to_string(cluster.log_file(0)).unwrap();
        let times = log.matches("registry.connections_per_address").count();
        (times > 0).then_some(times)
    };
    assert_eq!(
        eventually("the log tells", Duration::from_secs(5), told).await,
        1
    );
}

/// The seconds until the server has ended it. `drip` is sent each second.
async fn ends_after(address: &str, bytes: &[u8], drip: &[u8]) -> u64 {
    let (mut read, mut write) = connect(address).await.into_split();
    write.write_all(bytes).await.unwrap();
    let began = Instant::now();
    let dripping = async {
        let mut each = tokio::time::interval(Duration::from_secs(1));
        loop {
            each.tick().await;
            if write.write_all(drip).await.is_err() {
                return;
            }
        }
    };
    let reading = async {
        let mut buf = [0; 16 << 10];
        while let Ok(1..) = read.read(&mut buf).await {}
    };
    let ended = async {
        tokio::select! {
            () = dripping => {}
            () = reading => {}
        }
    };
    timeout(Duration::from_secs(300), ended)
        .await
        .expect("an end");
    began.elapsed().as_secs()
}

/// The same for an answer over HTTP/2 that its client opens no window for.
async fn no_window_ends_after(address: &str, path: &str) -> u64 {
    let mut builder = h2::client::Builder::new();
    let handshake = builder
        .initial_window_size(0)
        .handshake::<_, bytes::Bytes>(connect(address).await);
    let (mut send, connection) = handshake.await.unwrap();
    let url = format!("http://x{path}");
    let began = Instant::now();
    let ended = async {
        let get = http::Request::get(url).body(()).unwrap();
        let (answer, _) = send.send_request(get, true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        let error = body.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "{error}");
    };
    tokio::select! {
        ended = timeout(Duration::from_secs(300), ended) => ended.expect("an end"),
        ended = connection => panic!("the connection, and not the answer: {ended:?}"),
    }
    began.elapsed().as_secs()
}

fn extremes(seconds: &[u64]) -> (u64, u64) {
    (
        *seconds.iter().min().unwrap(),
        *seconds.iter().max().unwrap(),
    )
}

/// With the clock as it is: what `server` tests with one of its own, on a real socket.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_hold_a_connection_and_do_nothing_with_it_lose_it() {
    const EACH: usize = 50;
    let cluster = Cluster::start_with(1, &[]).await;
    let address = cluster.registry(0);
    let client = cluster.client(0);
    let blob = random_bytes(2, 64 << 20);
    let digest = sha256(&blob);
    let size = blob.len();
    assert_eq!(
        client.push_blob("good/app", &digest, blob).await.unwrap(),
        201
    );
    let files = || {
        std::fs::read_dir(format!("/proc/{}/fd", cluster.pid(0)))
            .unwrap()
            .count()
    };
    let (files_before, memory_before) = (files(), memory(&cluster, 0));
    let path = format!("/v2/good/app/blobs/{digest}");
    let post = format!(
        "POST /v2/good/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    );
    let head = "GET /v2/ HTTP/1.1\r\nA: b";
    let each = 0..EACH;
    let heads = each
        .clone()
        .map(|_| ends_after(&address, head.as_bytes(), b"b"));
    let bodies = each
        .clone()
        .map(|_| ends_after(&address, post.as_bytes(), b"b"));
    let no_windows = each.map(|_| no_window_ends_after(&address, &path));
    // These take nothing of what they asked for.
    let mut held = Vec::new();
    for _ in 0..EACH {
        let mut stream = connect(&address).await;
        let pull = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(pull.as_bytes()).await.unwrap();
        held.push(stream);
    }
    let all = async {
        let ended = tokio::join!(
            futures_util::future::join_all(heads),
            futures_util::future::join_all(bodies),
            futures_util::future::join_all(no_windows),
        );
        eventually("all files are closed", Duration::from_secs(60), || async {
            (files() <= files_before + 5).then_some(())
        })
        .await;
        ended
    };
    let good = async {
        let mut each = tokio::time::interval(Duration::from_millis(500));
        loop {
            each.tick().await;
            let answer = timeout(Duration::from_secs(2), client.get("/v2/")).await;
            assert_eq!(answer.expect("an answer").unwrap().status(), 200);
        }
    };
    let (head, body, no_window) = tokio::select! {
        ended = all => ended,
        () = good => unreachable!(),
    };
    let (head, body, no_window) = (extremes(&head), extremes(&body), extremes(&no_window));
    for mut stream in held {
        let got = until_closed(&mut stream, "an answer that was not taken").await;
        assert!(got.len() < size, "{}", got.len());
    }
    // The allocator gives back what was not used for a second.
    let memory_now = || memory(&cluster, 0);
    eventually(
        "the memory is given back",
        Duration::from_secs(10),
        || async { (memory_now() < memory_before + 64).then_some(()) },
    )
    .await;
    let memory_now = memory_now();
    println!(
        "hostile: {EACH} each, seconds until the end: head {head:?}, body {body:?}, no window {no_window:?}; {memory_before} then {memory_now} MiB"
    );
    assert!((30..45).contains(&head.0) && head.1 < 45, "{head:?}");
    assert!((60..75).contains(&body.0) && body.1 < 75, "{body:?}");
    assert!(
        (120..135).contains(&no_window.0) && no_window.1 < 135,
        "{no_window:?}"
    );
}
