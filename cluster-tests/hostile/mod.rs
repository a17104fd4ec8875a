//! Clients that mean harm, or are broken: what they send has one reading or is refused, and what
//! they hold is bounded, so that everybody else is served.

mod bad_requests;
mod frames;
mod wire;

use crate::harness::client::{Client, Image, random_bytes, sha256};
use crate::harness::cluster::Cluster;
use crate::harness::wait::eventually;
use crate::harness::{rounds, seed};
use bad_requests::Generator;
use frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, field, frame,
};
use reqwest::Method;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use wire::{LONGEST, ask, connect, statuses, until_closed};

/// Resident memory of region `i`, in MiB.
fn memory(cluster: &Cluster, i: usize) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid(i))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() / 1024
}

/// What must not be answered, behind what must be refused.
const SMUGGLED: &str = "GET /v2/smuggled/tags/list HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_two_readings_is_refused_and_nothing_behind_it_is_answered() {
    let cluster = Cluster::start_with(1, &[]).await;
    let address = cluster.registry(0);
    let post = "POST /v2/bad/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n";
    let read = post.replace("uploads/", &format!("uploads/?digest={}", sha256(b"x")));
    let chunked = format!("{read}Transfer-Encoding: chunked\r\n\r\n");
    let chunks = |body: &str| format!("{chunked}{body}{SMUGGLED}");
    let fields = |fields: &str| format!("{post}{fields}\r\n0\r\n\r\n{SMUGGLED}");
    let whole = |request: &str| format!("{request}{SMUGGLED}");
    let cases = [
        (
            "length, then chunked",
            fields("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n"),
        ),
        (
            "chunked, then length",
            fields("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n"),
        ),
        (
            "one length twice",
            fields("Content-Length: 5\r\nContent-Length: 5\r\n"),
        ),
        (
            "two lengths",
            fields("Content-Length: 5\r\nContent-Length: 6\r\n"),
        ),
        ("a list of lengths", fields("Content-Length: 5, 5\r\n")),
        ("a length with a sign", fields("Content-Length: +5\r\n")),
        ("a length below zero", fields("Content-Length: -5\r\n")),
        (
            "a length that is no number",
            fields("Content-Length: five\r\n"),
        ),
        (
            "a length of 70 bits",
            fields("Content-Length: 1000000000000000000000\r\n"),
        ),
        (
            "an unknown coding",
            fields("Transfer-Encoding: xchunked\r\n"),
        ),
        (
            "a coding after chunked",
            fields("Transfer-Encoding: chunked, identity\r\n"),
        ),
        (
            "a coding before chunked",
            fields("Transfer-Encoding: gzip, chunked\r\n"),
        ),
        (
            "chunked twice",
            fields("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ),
        (
            "chunked, hidden by a tab",
            fields("Transfer-Encoding:\x0bchunked\r\n"),
        ),
        ("a space before the colon", fields("Content-Length : 5\r\n")),
        ("a folded line", fields("A: b\r\n Content-Length: 5\r\n")),
        ("a folded first line", fields(" A: b\r\n")),
        (
            "a line that ends without CR",
            fields("A: b\nContent-Length: 5\r\n"),
        ),
        ("a CR inside a line", fields("A: b\rContent-Length: 5\r\n")),
        ("a NUL inside a line", fields("A: b\0\r\n")),
        ("a line without a colon", fields("nonsense\r\n")),
        ("a line without a name", fields(": b\r\n")),
        ("two hosts", fields("Host: y\r\n")),
        ("no host", whole("GET /v2/ HTTP/1.1\r\n\r\n")),
        ("a head without CR", whole("GET /v2/ HTTP/1.1\nHost: x\n\n")),
        (
            "chunks over HTTP/1.0",
            whole("POST /v2/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        ("HTTP/0.9", whole("GET /v2/\r\n")),
        (
            "HTTP/2 without its preface",
            whole("GET /v2/ HTTP/2.0\r\nHost: x\r\n\r\n"),
        ),
        ("HTTP/1.2", whole("GET /v2/ HTTP/1.2\r\nHost: x\r\n\r\n")),
        (
            "a preface that goes on as something else",
            whole("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
        ),
        (
            "two spaces in the first line",
            whole("GET  /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        ),
        (
            "a space in the path",
            whole("GET /v2/ x HTTP/1.1\r\nHost: x\r\n\r\n"),
        ),
        (
            "a method that is none",
            whole("G@T /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        ),
        ("a chunk that is no number", chunks("x\r\n")),
        ("a chunk without a size", chunks("\r\n")),
        ("a chunk size with a sign", chunks("-1\r\n")),
        ("a chunk size of 70 bits", chunks("1ffffffffffffffff\r\n")),
        ("a chunk size without CR", chunks("0\n\r\n")),
        ("a chunk extension with a LF", chunks("0;a\nb\r\n\r\n")),
        (
            "a chunk longer than it says",
            chunks("1\r\nabc\r\n0\r\n\r\n"),
        ),
        ("a trailer without CR", chunks("0\r\nA: b\n\r\n")),
    ];
    for (what, bytes) in &cases {
        let answers = ask(&address, bytes.as_bytes(), what).await;
        let answers = statuses(&answers);
        assert!(answers.len() <= 1, "{what}: {answers:?}");
        // A preface is no request that could be answered.
        let is_told = what.starts_with("a preface") || answers == [400];
        assert!(is_told, "{what}: {answers:?}");
    }
    println!(
        "hostile: {} requests with two readings, each refused alone",
        cases.len()
    );
    assert_eq!(cluster.client(0).get("/v2/").await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_with_one_reading_are_answered_each_once() {
    let cluster = Cluster::start_with(1, &[]).await;
    let address = cluster.registry(0);
    let last = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let many = |fields: usize| "A: b\r\n".repeat(fields);
    let long = |size: usize| {
        format!(
            "GET /v2/{} HTTP/1.1\r\nHost: x\r\n\r\n",
            "a/".repeat(size / 2)
        )
    };
    let head = |fields: &str| format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    for (what, request, expected) in [
        ("three in a row", head("").repeat(3), &[200, 200, 200, 200][..]),
        ("one after empty lines", format!("\r\n\r\n{}", head("")), &[200, 200]),
        ("a body where none is looked for", "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".into(), &[200, 200]),
        ("a body that looks like a request", format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len()), &[200, 200]),
        ("chunks with extensions and trailers", "POST /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n".into(), &[405, 200]),
        ("the name of a proxy's target", "GET http://elsewhere/v2/ HTTP/1.1\r\nHost: x\r\n\r\n".into(), &[200, 200]),
        ("the server as a whole", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".into(), &[404, 200]),
        ("a tunnel", "CONNECT elsewhere:443 HTTP/1.1\r\nHost: x\r\n\r\n".into(), &[404, 200]),
        ("an upgrade", head("Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"), &[200, 200]),
        ("a long path", long(9 << 10), &[414, 200]),
        ("a path that is no name", long(4 << 10), &[404, 200]),
        ("many fields", head(&many(90)), &[200, 200]),
        ("large fields", head(&format!("A: {}\r\n", "b".repeat(30 << 10))), &[200, 200]),
        ("fields that are too large", head(&format!("A: {}\r\n", "b".repeat(40 << 10))), &[431, 200]),
    ] {
        let answers = ask(&address, format!("{request}{last}").as_bytes(), what).await;
        assert_eq!(statuses(&answers), expected, "{what}: {}", answers.escape_ascii());
    }
    for (what, request, expected) in [
        ("too many fields", head(&many(200)), 431),
        (
            "fields of half a megabyte",
            head(&format!("A: {}\r\n", "b".repeat(500)).repeat(1000)),
            431,
        ),
        (
            "a line that never ends",
            head(&format!("A: {}\r\n", "b".repeat(1 << 20))),
            400,
        ),
    ] {
        let answers = ask(&address, format!("{request}{last}").as_bytes(), what).await;
        assert_eq!(statuses(&answers), [expected], "{what}");
    }
    let answer = cluster
        .client(0)
        .get(&format!("/v2/{}", "a/".repeat(5000)))
        .await
        .unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_client_that_still_sends() {
    let cluster = Cluster::start_with(1, &[]).await;
    let address = cluster.registry(0);
    let large = vec![b' '; 5 << 20];
    let put = "PUT /v2/bad/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let declared = format!("{put}Content-Length: {}\r\n\r\n", large.len());
    let answer = ask(
        &address,
        &[declared.as_bytes(), &large].concat(),
        "declared",
    )
    .await;
    assert_eq!(statuses(&answer), [413]);
    let chunked = format!(
        "{put}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n",
        large.len()
    );
    let chunked = [chunked.as_bytes(), &large, b"\r\n0\r\n\r\n"].concat();
    assert_eq!(statuses(&ask(&address, &chunked, "chunked").await), [413]);

    // One that waits to be asked for its body is refused without being asked, or is asked.
    let expecting = format!(
        "{put}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        large.len()
    );
    assert_eq!(
        statuses(&ask(&address, expecting.as_bytes(), "expecting").await),
        [413]
    );
    let expecting = format!("{put}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    let mut stream = connect(&address).await;
    stream.write_all(expecting.as_bytes()).await.unwrap();
    let mut asked = [0; 25];
    timeout(LONGEST, stream.read_exact(&mut asked))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{}").await.unwrap();
    assert_eq!(statuses(&until_closed(&mut stream, "asked").await), [400]);

    let http_2 = over_http_2();
    let url = format!("http://{address}/v2/bad/app/manifests/v1");
    for body in [
        reqwest::Body::from(large.clone()),
        reqwest::Body::wrap_stream(tokio_stream(large)),
    ] {
        let answer = http_2
            .put(&url)
            .body(body)
            .timeout(LONGEST)
            .send()
            .await
            .unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.version()),
            (413, http::Version::HTTP_2)
        );
        assert!(answer.text().await.unwrap().contains("SIZE_INVALID"));
    }
}

fn tokio_stream(bytes: Vec<u8>) -> impl futures_util::Stream<Item = std::io::Result<Vec<u8>>> {
    let pieces: Vec<_> = bytes
        .chunks(100_000)
        .map(|piece| Ok(piece.to_vec()))
        .collect();
    futures_util::stream::iter(pieces)
}

fn over_http_2() -> reqwest::Client {
    let client = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge();
    client.build().unwrap()
}

/// A flood: what opens it, and what is sent again and again.
struct Flood {
    what: &'static str,
    opening: Vec<u8>,
    round: Box<dyn Fn(u32) -> Vec<u8> + Send>,
    /// The server must end the connection itself.
    ends: bool,
}

fn flood(what: &'static str, ends: bool, round: impl Fn(u32) -> Vec<u8> + Send + 'static) -> Flood {
    Flood {
        what,
        opening: frames::opening(&[]),
        round: Box::new(round),
        ends,
    }
}

/// Streams of clients have odd numbers.
fn stream(n: u32) -> u32 {
    2 * n + 1
}

fn get(n: u32, path: &str) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream(n),
        &frames::request("GET", path),
    )
}

fn floods(manifest: &str) -> Vec<Flood> {
    let reset = |n| frame(RST_STREAM, 0, stream(n), &[0, 0, 0, 8]);
    let upload = || frames::request("POST", "/v2/bad/app/blobs/uploads/");
    let manifest = manifest.to_owned();
    let bomb = {
        // An entry of the table that is named over and over: little on the wire, much when read.
        let mut entry = vec![0x40, 1, b'a', 127, 0x81, 0x1e];
        entry.extend([b'b'; 4000]);
        entry
    };
    let mut continued = flood("CONTINUATION without end", true, |n| {
        frame(
            CONTINUATION,
            0,
            1,
            &field("a", &"b".repeat(n as usize % 100)),
        )
    });
    continued
        .opening
        .extend(frame(HEADERS, 0, 1, &frames::request("GET", "/v2/")));
    let mut empty = flood("empty CONTINUATION without end", true, |_| {
        frame(CONTINUATION, 0, 1, &[])
    });
    empty
        .opening
        .extend(frame(HEADERS, 0, 1, &frames::request("GET", "/v2/")));
    let mut drops = flood("empty DATA", false, |_| frame(DATA, 0, 1, &[]));
    drops
        .opening
        .extend(frame(HEADERS, END_HEADERS, 1, &upload()));
    let mut crumbs = flood("DATA of a byte", false, |_| frame(DATA, 0, 1, b"x"));
    crumbs
        .opening
        .extend(frame(HEADERS, END_HEADERS, 1, &upload()));
    let mut bombs = flood("a field that grows in the table", true, move |n| {
        frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream(n + 1),
            &[frames::request("GET", "/v2/"), vec![0xbe; 10_000]].concat(),
        )
    });
    bombs.opening.extend(frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &[frames::request("GET", "/v2/"), bomb].concat(),
    ));
    vec![
        continued,
        empty,
        drops,
        crumbs,
        bombs,
        flood("requests that are reset at once", false, move |n| {
            [get(n, "/v2/"), reset(n)].concat()
        }),
        flood("large answers that are reset at once", false, move |n| {
            [get(n, &manifest), reset(n)].concat()
        }),
        flood("uploads that are reset at once", false, move |n| {
            [frame(HEADERS, END_HEADERS, stream(n), &upload()), reset(n)].concat()
        }),
        flood("resets by the server, provoked", true, |n| {
            [get(n, "/v2/"), frame(WINDOW_UPDATE, 0, stream(n), &[0; 4])].concat()
        }),
        flood("more streams than allowed", false, |n| {
            frame(
                HEADERS,
                END_HEADERS,
                stream(n),
                &frames::request("PUT", "/v2/bad/app/manifests/v1"),
            )
        }),
        flood("PING", false, |n| {
            frame(PING, 0, 0, &u64::from(n).to_be_bytes())
        }),
        flood("SETTINGS", false, |_| {
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])
        }),
        flood("acknowledged SETTINGS", true, |_| {
            frame(SETTINGS, ACK, 0, &[])
        }),
        flood("PRIORITY", false, |n| {
            frame(PRIORITY, 0, stream(n), &[0, 0, 0, 0, 16])
        }),
        flood("WINDOW_UPDATE beyond all windows", true, |_| {
            frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffffu32.to_be_bytes())
        }),
        flood("frames of an unknown kind", false, |n| {
            frame(200, 0, stream(n), &[0; 1000])
        }),
        flood("frames that are too large", true, |n| {
            frame(DATA, 0, stream(n), &[0; 1 << 20])
        }),
    ]
}

const ROUNDS: u32 = 100_000;
const FLOODED: usize = 64 << 20;
const FLOODING: Duration = Duration::from_secs(2);
const SHORTEST: Duration = Duration::from_millis(500);

/// Sends rounds until there were enough, or the server takes no more; whether it ended the
/// connection. `reads`: what comes back is taken.
async fn run(address: &str, flood: &Flood, reads: bool) -> bool {
    let (mut read, mut write) = connect(address).await.into_split();
    write.write_all(&flood.opening).await.unwrap();
    let sending = async {
        let mut sent = 0;
        for n in 0..ROUNDS / 100 {
            let rounds = (n * 100..(n + 1) * 100).flat_map(|n| (flood.round)(n));
            let rounds: Vec<u8> = rounds.collect();
            sent += rounds.len();
            if write.write_all(&rounds).await.is_err() {
                return true;
            }
            if sent > FLOODED {
                break;
            }
        }
        std::future::pending().await
    };
    let reading = async {
        let mut all = Vec::new();
        let mut buf = [0; 16 << 10];
        while let Ok(size @ 1..) = read.read(&mut buf).await {
            all.extend_from_slice(&buf[..size]);
            all.drain(..all.len().saturating_sub(1 << 20));
        }
    };
    let both = async {
        tokio::select! {
            _ = sending => {}
            () = reading, if reads => {}
        }
    };
    timeout(FLOODING, both).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_over_http_2_cost_no_memory_and_disturb_nobody() {
    let cluster = Cluster::start_with(1, &[]).await;
    let address = cluster.registry(0);
    let client = cluster.client(0);
    let image = Image::small("good");
    assert_eq!(client.push("good/app", "v1", &image).await.unwrap(), 201);
    let before = memory(&cluster, 0);
    for flood in floods("/v2/good/app/manifests/v1") {
        for reads in [true, false] {
            let slowest = std::cell::Cell::new(Duration::ZERO);
            let good = async {
                loop {
                    let began = Instant::now();
                    client.pull("good/app", "v1", &image).await.unwrap();
                    slowest.set(slowest.get().max(began.elapsed()));
                }
            };
            // Those that the server ends at once would show nothing.
            let many = async {
                let began = Instant::now();
                loop {
                    let ended = run(&address, &flood, reads).await;
                    if !ended || began.elapsed() > SHORTEST {
                        return ended;
                    }
                }
            };
            let ended = tokio::select! {
                ended = many => ended,
                () = good => unreachable!(),
            };
            let took = slowest.get();
            let now = memory(&cluster, 0);
            println!(
                "hostile: {} {}: ended {ended}, good pull {took:?}, {now} MiB",
                flood.what,
                if reads { "" } else { "unread" }
            );
            assert!(ended || !flood.ends || !reads, "{}: still open", flood.what);
            assert!(took < LONGEST, "{}: a good pull took {took:?}", flood.what);
            assert!(
                now < before + 64,
                "{}: {before} MiB grew to {now}",
                flood.what
            );
        }
    }
    client.pull("good/app", "v1", &image).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_carries_pushes_and_pulls_side_by_side() {
    let cluster = Cluster::start_with(1, &[]).await;
    let client = over_http_2();
    let base = format!("http://{}", cluster.registry(0));
    let bytes = random_bytes(1, 8 << 20);
    let push = |n: usize| {
        let (client, base, bytes) = (client.clone(), base.clone(), bytes.slice(n..));
        async move {
            let digest = sha256(&bytes);
            let uploads = format!("{base}/v2/good/app/blobs/uploads/?digest={digest}");
            let answer = client
                .post(uploads)
                .body(bytes.clone())
                .send()
                .await
                .unwrap();
            assert_eq!(
                (answer.status().as_u16(), answer.version()),
                (201, http::Version::HTTP_2)
            );
            let blob = format!("{base}/v2/good/app/blobs/{digest}");
            let answer = client.get(blob).send().await.unwrap();
            assert_eq!(answer.content_length(), Some(bytes.len() as u64));
            assert!(answer.bytes().await.unwrap() == bytes);
        }
    };
    futures_util::future::join_all((0..8).map(push)).await;
}

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
    let log = std::fs::read_to_string(cluster.log_file(0)).unwrap();
    assert_eq!(log.matches("registry.connections_per_address").count(), 1);
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
    let memory_now = memory(&cluster, 0);
    println!(
        "hostile: {EACH} each, seconds until the end: head {head:?}, body {body:?}, no window {no_window:?}; {memory_before} then {memory_now} MiB"
    );
    assert!((30..45).contains(&head.0) && head.1 < 45, "{head:?}");
    assert!((60..75).contains(&body.0) && body.1 < 75, "{body:?}");
    assert!(
        (120..135).contains(&no_window.0) && no_window.1 < 135,
        "{no_window:?}"
    );
    assert!(
        memory_now < memory_before + 64,
        "{memory_before} MiB grew to {memory_now}"
    );
}

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

#[ignore = "takes minutes: just long bad-requests"]
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
