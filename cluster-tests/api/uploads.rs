//! Uploads of blobs, by every way that the spec has, and what becomes of a session.

use super::{Answer, Api};
use crate::harness::client::{random_bytes, sha256};
use bytes::Bytes;
use reqwest::{Body, Method};
use roadstead::oci::{Algorithm, Digest};

const UPLOADS: &str = "/v2/up/app/blobs/uploads/";

/// What a session answers that has so many bytes; where it is.
fn at(answer: &Answer, length: u64) -> &str {
    let location = answer.header("location");
    let id = location.strip_prefix(UPLOADS).unwrap();
    assert!(!id.contains(['/', '?']), "{location}");
    answer.has("docker-upload-uuid", id);
    answer.has("range", &format!("0-{}", length.saturating_sub(1)));
    assert!(answer.body.is_empty());
    location
}

/// A blob that is there now, and is read where the answer says.
async fn created(api: &Api, answer: Answer, digest: &Digest, bytes: &[u8]) {
    let answer = answer.is(201);
    answer.has("docker-content-digest", &digest.to_string());
    answer.has("location", &format!("/v2/up/app/blobs/{digest}"));
    let location = answer.header("location");
    let head = api.head(location).await.is(200);
    head.has("content-length", &bytes.len().to_string());
    let read = api.get(location).await.is(200);
    read.has("docker-content-digest", &digest.to_string());
    assert!(read.body == bytes, "{}", answer.what);
}

/// A body whose length is not told.
fn streamed(bytes: Bytes) -> Body {
    let pieces: Vec<_> = bytes.chunks(10_000).map(Bytes::copy_from_slice).collect();
    let pieces = pieces.into_iter().map(Ok::<_, std::io::Error>);
    Body::wrap_stream(futures_util::stream::iter(pieces))
}

#[tokio::test(flavor = "multi_thread")]
async fn end_4a_an_upload_begins_in_a_repository_that_never_was() {
    let api = Api::start().await;
    let mut seen = Vec::new();
    for path in [
        UPLOADS,
        UPLOADS.trim_end_matches('/'),
        "/v2/up/app/blobs/uploads/?unknown=x",
    ] {
        let begun = api.post(path).await.is(202);
        let upload = at(&begun, 0).to_owned();
        assert!(!seen.contains(&upload));
        begun.lacks("oci-chunk-min-length");
        let digest = sha256(upload.as_bytes());
        let done = api.finish(&upload, &digest, upload.clone()).await;
        created(&api, done, &digest, upload.as_bytes()).await;
        seen.push(upload);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn end_4b_a_blob_comes_in_one_request() {
    let api = Api::start().await;
    let bytes = random_bytes(2, 50_000);
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, &bytes);
        let path = format!("{UPLOADS}?digest={digest}");
        for body in [Body::from(bytes.clone()), streamed(bytes.clone())] {
            let post = api.request(Method::POST, &path).body(body);
            created(&api, api.send(post).await, &digest, &bytes).await;
        }
        let empty = Digest::of(algorithm, b"");
        let post = api.post(&format!("{UPLOADS}?digest={empty}")).await;
        created(&api, post, &empty, b"").await;
    }
    // One that only names its digest is about to send it.
    let digest = sha256(b"to come");
    let begun = api
        .post(&format!("{UPLOADS}?digest={digest}"))
        .await
        .is(202);
    let upload = at(&begun, 0);
    let done = api.finish(upload, &digest, "to come").await;
    created(&api, done, &digest, b"to come").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn end_4c_the_hint_of_an_algorithm_binds_nobody() {
    let api = Api::start().await;
    for hint in ["?digest-algorithm=sha256", "?digest-algorithm=sha512", ""] {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let begun = api.post(&format!("{UPLOADS}{hint}")).await.is(202);
            let upload = at(&begun, 0).to_owned();
            let bytes = format!("{hint} {algorithm:?}");
            let digest = Digest::of(algorithm, bytes.as_bytes());
            let done = api.finish(&upload, &digest, bytes.clone()).await;
            created(&api, done, &digest, bytes.as_bytes()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn end_5_bytes_are_appended_as_a_stream_or_in_chunks() {
    let api = Api::start().await;
    let bytes = random_bytes(3, 100_000);
    let digest = sha256(&bytes);
    // docker and podman stream, and say nothing of the length.
    let begun = api.post(UPLOADS).await.is(202);
    let first = at(&begun, 0).to_owned();
    let patch = |body: Body| api.send(api.request(Method::PATCH, &first).body(body));
    at(&patch(Body::from("")).await.is(202), 0);
    at(
        &patch(streamed(bytes.slice(..60_000))).await.is(202),
        60_000,
    );
    at(
        &patch(Body::from(bytes.slice(60_000..))).await.is(202),
        100_000,
    );
    let done = api.finish(&first, &digest, "").await;
    created(&api, done, &digest, &bytes).await;
    // Chunks say where they lie, in the form of the spec or in that of HTTP.
    let mut upload = api.begin("up/app").await;
    for (from, to, form) in [
        (0, 10, "0-9"),
        (10, 60_000, "bytes 10-59999/100000"),
        (60_000, 100_000, "60000-99999"),
    ] {
        for body in [
            Body::from(bytes.slice(from..to)),
            streamed(bytes.slice(from..to)),
        ] {
            let request = api.request(Method::PATCH, &upload);
            let request = request.header("content-range", form).body(body);
            let answer = api.send(request).await;
            // What has come already does not come again.
            if answer.status == 416 {
                answer.has("location", &upload);
                answer.has("range", &format!("0-{}", to - 1));
                continue;
            }
            let answer = answer.is(202);
            upload = at(&answer, to as u64).to_owned();
        }
    }
    let done = api.finish(&upload, &digest, "").await;
    created(&api, done, &digest, &bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn end_6_blobs_come_back_by_every_way_of_upload() {
    let api = Api::start().await;
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let bytes = random_bytes(4, 100_000);
        // How much comes before the closing request, and how that is sent.
        for (before, is_streamed, is_ranged) in [
            (0, false, false),
            (0, true, false),
            (40_000, false, true),
            (40_000, true, true),
            (40_000, false, false),
            (100_000, false, false),
        ] {
            let upload = api.begin("up/app").await;
            let digest = Digest::of(algorithm, &bytes);
            if before > 0 {
                let patch = api
                    .request(Method::PATCH, &upload)
                    .body(bytes.slice(..before));
                at(&api.send(patch).await.is(202), before as u64);
            }
            let rest = bytes.slice(before..);
            let put = api.request(Method::PUT, &format!("{upload}?digest={digest}"));
            let put = match is_ranged {
                true => put.header("content-range", format!("{before}-99999")),
                false => put,
            };
            let put = match is_streamed {
                true => put.body(streamed(rest)),
                false => put.body(rest),
            };
            created(&api, api.send(put).await, &digest, &bytes).await;
            // Who did not hear of it may ask again.
            let again = api.finish(&upload, &digest, "").await;
            created(&api, again, &digest, &bytes).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn end_13_a_session_says_how_far_it_is() {
    let api = Api::start().await;
    let upload = api.begin("up/app").await;
    at(&api.get(&upload).await.is(204), 0);
    for length in [3, 6, 9] {
        let patch = api.request(Method::PATCH, &upload).body("abc");
        at(&api.send(patch).await.is(202), length);
        at(&api.get(&upload).await.is(204), length);
        at(&api.head(&upload).await.is(204), length);
        let over_http_2 = api.over_http_2(Method::GET, &upload);
        at(&api.send(over_http_2).await.is(204), length);
    }
    let digest = sha256(b"other");
    let of_put = api.get(&format!("{upload}?digest={digest}")).await.is(204);
    at(&of_put, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn end_14_a_cancelled_upload_is_gone() {
    let api = Api::start().await;
    for bytes in ["", "abc"] {
        let before = api.stored().await;
        let upload = api.begin("up/app").await;
        let patch = api.request(Method::PATCH, &upload).body(bytes);
        api.send(patch).await.is(202);
        assert!(api.delete(&upload).await.is(204).body.is_empty());
        for (method, query) in [
            (Method::GET, String::new()),
            (Method::PATCH, String::new()),
            (Method::PUT, format!("?digest={}", sha256(b"abc"))),
            (Method::DELETE, String::new()),
        ] {
            let path = format!("{upload}{query}");
            let request = api.request(method, &path).body("abc");
            api.send(request).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
        }
        assert_eq!(api.stored().await, before);
    }
}
