//! HTTP/2: floods of frames cost no memory and disturb nobody.

use super::frames;
use super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, field, frame,
};
use super::wire::{LONGEST, connect};
use super::{memory, over_http_2};
use crate::harness::client::{Image, random_bytes, sha256};
use crate::harness::cluster::Cluster;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

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
async fn cve_2023_44487_floods_over_http_2_cost_no_memory_and_disturb_nobody() {
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
