//! Bad input: a 4xx with an OCI error body, nothing stored, nothing logged as an error, never a
//! 5xx and never a panic (the cluster's end checks the logs).

use crate::harness::client::{Client, IMAGE, Image, sha256};
use crate::harness::cluster::Cluster;
use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A request and what must come back.
struct Bad {
    what: &'static str,
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    status: &'static [u16],
    code: &'static str,
}

fn bad(
    what: &'static str,
    method: Method,
    path: impl Into<String>,
    status: &'static [u16],
    code: &'static str,
) -> Bad {
    Bad {
        what,
        method,
        path: path.into(),
        headers: Vec::new(),
        body: Bytes::new(),
        status,
        code,
    }
}

impl Bad {
    fn header(mut self, name: &'static str, value: impl Into<String>) -> Bad {
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: impl Into<Bytes>) -> Bad {
        self.body = body.into();
        self
    }
}

fn names() -> Vec<Bad> {
    let long = "a".repeat(300);
    [
        ("upper case", "/v2/Bad/tags/list".to_owned()),
        ("leading dash", "/v2/-bad/tags/list".to_owned()),
        ("trailing dot", "/v2/bad./tags/list".to_owned()),
        ("double dot", "/v2/a..b/tags/list".to_owned()),
        ("three underscores", "/v2/a___b/tags/list".to_owned()),
        ("empty component", "/v2/a//b/tags/list".to_owned()),
        ("percent-encoded slash", "/v2/a%2fb/tags/list".to_owned()),
        ("percent-encoded dots", "/v2/%2e%2e/tags/list".to_owned()),
        ("too long", format!("/v2/{long}/tags/list")),
        ("not ASCII", "/v2/caf%C3%A9/tags/list".to_owned()),
        ("a NUL", "/v2/a%00b/tags/list".to_owned()),
        ("a colon", "/v2/a:b/tags/list".to_owned()),
    ]
    .into_iter()
    .map(|(what, path)| bad(what, Method::GET, path, &[400, 404], "NAME_INVALID"))
    .collect()
}

fn digests() -> Vec<Bad> {
    let hex = "a".repeat(64);
    [
        ("short", "sha256:abc".to_owned()),
        ("upper case", format!("sha256:{}", "A".repeat(64))),
        ("long", format!("sha256:{hex}a")),
        ("not hex", format!("sha256:{}", "g".repeat(64))),
        (
            "unknown algorithm",
            "md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        ),
        ("no algorithm", format!(":{hex}")),
        ("no hex", "sha256:".to_owned()),
        ("sha512 with a sha256's length", format!("sha512:{hex}")),
        ("upper-case algorithm", format!("SHA256:{hex}")),
        ("two colons", format!("sha256:sha256:{hex}")),
    ]
    .into_iter()
    .map(|(what, digest)| {
        bad(
            what,
            Method::GET,
            format!("/v2/bad/app/blobs/{digest}"),
            &[400, 404],
            "DIGEST_INVALID",
        )
    })
    .collect()
}

fn manifests() -> Vec<Bad> {
    let put = |what, body: Bytes, status, code| {
        bad(what, Method::PUT, "/v2/bad/app/manifests/v1", status, code)
            .header("content-type", IMAGE)
            .body(body)
    };
    let descriptor = |size: Value| json!({"mediaType": "application/octet-stream", "digest": sha256(b"x").to_string(), "size": size});
    let image = |config: Value, layers: Value| {
        Bytes::from(
            json!({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": layers})
                .to_string(),
        )
    };
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let mut all = vec![
        put("empty", Bytes::new(), &[400], "MANIFEST_INVALID"),
        put("not JSON", "{".into(), &[400], "MANIFEST_INVALID"),
        put("not UTF-8", vec![0xff, 0xfe].into(), &[400], "MANIFEST_INVALID"),
        put("an array", "[]".into(), &[400], "MANIFEST_INVALID"),
        put("a string", "\"x\"".into(), &[400], "MANIFEST_INVALID"),
        put("deeply nested", deep.into(), &[400], "MANIFEST_INVALID"),
        put("no config", json!({"schemaVersion": 2, "layers": []}).to_string().into(), &[400], "MANIFEST_INVALID"),
        put("layers not a list", image(descriptor(1.into()), "x".into()), &[400], "MANIFEST_INVALID"),
        put("a negative size", image(descriptor((-1).into()), json!([])), &[400], "MANIFEST_INVALID"),
        put("a huge size", image(descriptor(json!(1e300)), json!([])), &[400], "MANIFEST_INVALID"),
        put("a size that is text", image(descriptor("1".into()), json!([])), &[400], "MANIFEST_INVALID"),
        put("a bad digest inside", image(json!({"mediaType": "a/b", "digest": "sha256:zz", "size": 1}), json!([])), &[400], "MANIFEST_INVALID"),
        put("image and index at once", json!({"schemaVersion": 2, "config": descriptor(1.into()), "layers": [], "manifests": []}).to_string().into(), &[400], "MANIFEST_INVALID"),
        put("media types that disagree", json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}).to_string().into(), &[400], "MANIFEST_INVALID"),
        put("schema 1", json!({"schemaVersion": 1, "name": "a", "fsLayers": []}).to_string().into(), &[400], "MANIFEST_INVALID"),
        put("blobs that are unknown here", image(descriptor(1.into()), json!([])), &[400], "MANIFEST_BLOB_UNKNOWN"),
        put("too large", vec![b' '; (4 << 20) + 1].into(), &[413], "SIZE_INVALID"),
    ];
    let small = Image::small("never stored");
    let other = sha256(b"another");
    all.extend([
        bad(
            "a digest that is not the manifest's",
            Method::PUT,
            format!("/v2/bad/app/manifests/{other}"),
            &[400],
            "DIGEST_INVALID",
        )
        .header("content-type", IMAGE)
        .body(small.manifest.clone()),
        bad(
            "a bad digest as reference",
            Method::PUT,
            "/v2/bad/app/manifests/sha256:zz",
            &[400],
            "DIGEST_INVALID",
        )
        .header("content-type", IMAGE)
        .body(small.manifest.clone()),
        bad(
            "a bad tag",
            Method::PUT,
            "/v2/bad/app/manifests/.dot",
            &[400, 404],
            "TAG_INVALID",
        )
        .header("content-type", IMAGE)
        .body(small.manifest.clone()),
        bad(
            "a tag that is too long",
            Method::PUT,
            format!("/v2/bad/app/manifests/{}", "t".repeat(129)),
            &[400, 404],
            "TAG_INVALID",
        )
        .header("content-type", IMAGE)
        .body(small.manifest.clone()),
        bad(
            "an unknown media type",
            Method::PUT,
            "/v2/bad/app/manifests/v1",
            &[400],
            "MANIFEST_INVALID",
        )
        .header("content-type", "text/plain")
        .body(small.manifest),
    ]);
    all
}

fn misses_and_methods() -> Vec<Bad> {
    let digest = sha256(b"not there");
    vec![
        bad(
            "an unknown blob",
            Method::GET,
            format!("/v2/bad/app/blobs/{digest}"),
            &[404],
            "BLOB_UNKNOWN",
        ),
        bad(
            "delete of an unknown blob",
            Method::DELETE,
            format!("/v2/bad/app/blobs/{digest}"),
            &[404],
            "BLOB_UNKNOWN",
        ),
        bad(
            "an unknown tag",
            Method::GET,
            "/v2/bad/app/manifests/none",
            &[404],
            "MANIFEST_UNKNOWN",
        ),
        bad(
            "an unknown manifest",
            Method::GET,
            format!("/v2/bad/app/manifests/{digest}"),
            &[404],
            "MANIFEST_UNKNOWN",
        ),
        bad(
            "delete of an unknown tag",
            Method::DELETE,
            "/v2/bad/app/manifests/none",
            &[404],
            "MANIFEST_UNKNOWN",
        ),
        bad(
            "tags of an unknown repository",
            Method::GET,
            "/v2/bad/none/tags/list",
            &[404],
            "NAME_UNKNOWN",
        ),
        bad(
            "a negative page",
            Method::GET,
            "/v2/bad/app/tags/list?n=-1",
            &[400, 404],
            "PAGINATION_NUMBER_INVALID",
        ),
        bad(
            "a page that is no number",
            Method::GET,
            "/v2/bad/app/tags/list?n=ten",
            &[400, 404],
            "PAGINATION_NUMBER_INVALID",
        ),
        bad(
            "a wrong method on a blob",
            Method::PUT,
            format!("/v2/bad/app/blobs/{digest}"),
            &[405],
            "UNSUPPORTED",
        ),
        bad(
            "a wrong method on tags",
            Method::POST,
            "/v2/bad/app/tags/list",
            &[405],
            "UNSUPPORTED",
        ),
        bad(
            "the health of something else",
            Method::GET,
            "/healthz?for=lunch",
            &[400],
            "UNSUPPORTED",
        ),
        bad(
            "an unknown path",
            Method::GET,
            "/v2/bad/app/nothing/here",
            &[404],
            "",
        ),
        bad(
            "an upload that never was",
            Method::GET,
            "/v2/bad/app/blobs/uploads/none",
            &[404],
            "BLOB_UPLOAD_UNKNOWN",
        ),
        bad(
            "bytes for an upload that never was",
            Method::PATCH,
            "/v2/bad/app/blobs/uploads/none",
            &[404],
            "BLOB_UPLOAD_UNKNOWN",
        )
        .body("x"),
        bad(
            "the end of an upload that never was",
            Method::PUT,
            format!("/v2/bad/app/blobs/uploads/none?digest={digest}"),
            &[404],
            "BLOB_UPLOAD_UNKNOWN",
        ),
        bad(
            "cancel of an upload that never was",
            Method::DELETE,
            "/v2/bad/app/blobs/uploads/none",
            &[404],
            "BLOB_UPLOAD_UNKNOWN",
        ),
        bad(
            "a monolithic upload with another digest",
            Method::POST,
            format!("/v2/bad/app/blobs/uploads/?digest={digest}"),
            &[400],
            "DIGEST_INVALID",
        )
        .body("x"),
        bad(
            "a monolithic upload with no digest's grammar",
            Method::POST,
            "/v2/bad/app/blobs/uploads/?digest=zz",
            &[400],
            "DIGEST_INVALID",
        )
        .body("x"),
        bad(
            "an unknown digest algorithm",
            Method::POST,
            "/v2/bad/app/blobs/uploads/?digest-algorithm=md5",
            &[400],
            "DIGEST_INVALID",
        ),
    ]
}

async fn started(client: &Client) -> String {
    let answer = client
        .request(Method::POST, "/v2/bad/app/blobs/uploads/")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 202);
    answer.headers()["location"].to_str().unwrap().to_owned()
}

/// Against a live session that holds 5 bytes.
async fn uploads(client: &Client) -> Vec<Bad> {
    let mut all = Vec::new();
    let session = |path: String| async {
        let sent = client
            .request(Method::PATCH, &path)
            .body("12345")
            .send()
            .await
            .unwrap();
        assert_eq!(sent.status(), 202);
        path
    };
    for (what, range, status, code) in [
        (
            "a chunk that leaves a hole",
            "7-8",
            &[416][..],
            "RANGE_INVALID",
        ),
        ("a chunk that comes again", "0-1", &[416], "RANGE_INVALID"),
        ("a chunk range that is no range", "x-y", &[400, 416], ""),
        ("a chunk range backwards", "9-5", &[400, 416], ""),
        (
            "a chunk of another length than it says",
            "5-9",
            &[400],
            "SIZE_INVALID",
        ),
    ] {
        let path = session(started(client).await).await;
        all.push(
            bad(what, Method::PATCH, path, status, code)
                .header("content-range", range)
                .body("ab"),
        );
    }
    let path = session(started(client).await).await;
    all.push(bad(
        "no digest at the end",
        Method::PUT,
        path,
        &[400],
        "DIGEST_INVALID",
    ));
    let path = session(started(client).await).await;
    all.push(bad(
        "another digest at the end",
        Method::PUT,
        format!("{path}?digest={}", sha256(b"x")),
        &[400],
        "DIGEST_INVALID",
    ));
    let path = session(started(client).await).await;
    all.push(
        bad(
            "a hole before the end",
            Method::PUT,
            format!("{path}?digest={}", sha256(b"x")),
            &[416],
            "RANGE_INVALID",
        )
        .header("content-range", "9-9")
        .body("x"),
    );
    let path = started(client)
        .await
        .replace("/v2/bad/app/", "/v2/bad/other/");
    all.push(
        bad(
            "a session of another repository",
            Method::PATCH,
            path,
            &[404],
            "BLOB_UPLOAD_UNKNOWN",
        )
        .body("x"),
    );
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_a_4xx_with_a_reason_and_changes_nothing() {
    let cluster = Cluster::start_with(1, &[]).await;
    let client = cluster.client(0);
    let mut all = names();
    all.extend(digests());
    all.extend(manifests());
    all.extend(misses_and_methods());
    all.extend(uploads(&client).await);
    assert!(all.len() >= 60, "only {}", all.len());
    let count = all.len();
    for bad in all {
        let mut request = client.request(bad.method.clone(), &bad.path);
        for (name, value) in &bad.headers {
            request = request.header(*name, value);
        }
        let answer = request
            .body(bad.body)
            .timeout(Duration::from_secs(20))
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let content_type = answer.headers().get("content-type").cloned();
        let text = answer.text().await.unwrap();
        assert!(
            bad.status.contains(&status.as_u16()),
            "{}: {status} {text}",
            bad.what
        );
        assert_eq!(content_type.unwrap(), "application/json", "{}", bad.what);
        let body: Value =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}: {text}", bad.what));
        let code = body["errors"][0]["code"].as_str().unwrap_or_default();
        assert!(
            !code.is_empty() && body["errors"][0]["message"].is_string(),
            "{}: {text}",
            bad.what
        );
        // A status that the page leaves open may come with the code that fits it.
        if bad.status.len() == 1 && !bad.code.is_empty() {
            assert_eq!(code, bad.code, "{}: {text}", bad.what);
        }
    }
    let stored = blobs_stored(&cluster);
    println!("bad_input: {count} requests, all 4xx with an OCI body");
    assert!(stored.is_empty(), "stored: {stored:?}");
    assert_eq!(
        client.get("/v2/bad/app/tags/list").await.unwrap().status(),
        StatusCode::NOT_FOUND
    );
    let catalog: Value = client.json("/v2/_catalog").await.unwrap();
    assert_eq!(catalog["repositories"], json!([]));
}

fn blobs_stored(cluster: &Cluster) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let root = cluster.data_dir(0).join("blobs/sha256");
    for prefix in std::fs::read_dir(root).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(prefix.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            found.push(file.path());
        }
    }
    found
}

/// What a client library would never send.
#[tokio::test(flavor = "multi_thread")]
async fn broken_http_is_refused_and_the_server_lives() {
    let cluster = Cluster::start_with(1, &[]).await;
    let client = cluster.client(0);
    for raw in [
        &b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"[..],
        b"GET /v2/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\nHost: x\r\n\r\n",
        b"PUT /v2/bad/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\ntruncated",
        b"POST /v2/bad/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v2/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(cluster.registry(0)).await.unwrap();
        stream.write_all(raw).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(15), read).await.expect("an end");
        let first = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
        assert!(!first.contains(" 5"), "{first} for {}", String::from_utf8_lossy(raw));
    }
    // An upload whose client goes away in the middle keeps nothing under a digest.
    let path = started(&client).await;
    let mut stream = TcpStream::connect(cluster.registry(0)).await.unwrap();
    let head = format!("PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf");
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    assert_eq!(client.get("/v2/").await.unwrap().status(), 200);
    assert!(blobs_stored(&cluster).is_empty());
}
