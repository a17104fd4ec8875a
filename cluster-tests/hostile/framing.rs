//! Requests that two parsers read differently, odd ones, and refusals while a client still sends.

use super::over_http_2;
use super::wire::{LONGEST, ask, connect, statuses, until_closed};
use crate::harness::client::sha256;
use crate::harness::cluster::Cluster;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

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
