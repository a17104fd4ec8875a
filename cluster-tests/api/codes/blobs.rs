//! Codes of blobs and of their uploads.

use super::with_image;
use crate::api::Api;
use crate::harness::client::{IMAGE, sha256};
use bytes::Bytes;
use reqwest::{Body, Method};
use roadstead::oci::{Algorithm, Digest};

#[tokio::test(flavor = "multi_thread")]
async fn code_blob_unknown_also_of_what_another_repository_has() {
    let (api, image) = with_image().await;
    let before = api.stored().await;
    for (name, digest) in [
        ("app", sha256(b"none")),
        ("app", Digest::of(Algorithm::Sha512, b"none")),
        ("app", image.digest.clone()),
        ("other", image.blobs[0].0.clone()),
        ("never", image.blobs[1].0.clone()),
    ] {
        let path = format!("/v2/{name}/blobs/{digest}");
        let get = api.get(&path).await.refused(404, "BLOB_UNKNOWN");
        let head = api.head(&path).await.is(404);
        head.has("content-length", get.answer.header("content-length"));
        api.delete(&path).await.refused(404, "BLOB_UNKNOWN");
        for (header, value) in [
            ("if-none-match", "*"),
            ("range", "bytes=0-1"),
            ("range", "bytes=0-1,3-4"),
        ] {
            let request = api.request(Method::GET, &path).header(header, value);
            api.send(request).await.refused(404, "BLOB_UNKNOWN");
        }
    }
    assert_eq!(api.stored().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_blob_upload_invalid_leaves_the_session_as_it_was() {
    let api = Api::start().await;
    let upload = api.begin("app").await;
    api.patch(&upload, "0-4", "12345").await.is(202);
    for range in [
        "x-y",
        "9-5",
        "5-",
        "-5",
        "5",
        "bytes",
        "5-99999999999999999999",
        "",
    ] {
        let refused = api.patch(&upload, range, "ab").await;
        refused
            .refused(400, "BLOB_UPLOAD_INVALID")
            .says("<first>-<last>");
        let digest = sha256(b"12345ab");
        let put = api.request(Method::PUT, &format!("{upload}?digest={digest}"));
        let put = put.header("content-range", range).body("ab");
        api.send(put).await.refused(400, "BLOB_UPLOAD_INVALID");
        api.get(&upload).await.is(204).has("range", "0-4");
    }
    api.finish(&upload, &sha256(b"12345ab"), "ab").await.is(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_blob_upload_unknown_whatever_is_asked_of_it() {
    let api = Api::start().await;
    let other = api.begin("other").await.replace("/other/", "/app/");
    let forged = format!("{}0", api.begin("app").await);
    let done = api.begin("app").await;
    let digest = sha256(b"done");
    api.finish(&done, &digest, "done").await.is(201);
    let failed = api.begin("app").await;
    api.finish(&failed, &digest, "not done").await.is(400);
    let before = api.stored().await;
    let uploads = "/v2/app/blobs/uploads/";
    let long = format!("{uploads}{}", "a".repeat(600));
    let made_up = format!(
        "{uploads}0123456789abcdef-{}-{}",
        "0".repeat(32),
        "0".repeat(32)
    );
    for upload in [
        &format!("{uploads}none"),
        &long,
        &made_up,
        &other,
        &forged,
        &done,
        &failed,
    ] {
        for (method, query) in [
            (Method::GET, String::new()),
            (Method::PATCH, String::new()),
            (Method::PUT, format!("?digest={}", sha256(b"xyz"))),
            (Method::DELETE, String::new()),
        ] {
            let request = api.request(method, &format!("{upload}{query}"));
            let answer = api.send(request.body("xyz")).await;
            answer.refused(404, "BLOB_UPLOAD_UNKNOWN");
        }
        api.head(upload).await.is(404);
    }
    assert_eq!(api.stored().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_digest_invalid_by_every_way_that_a_digest_comes() {
    let (api, image) = with_image().await;
    let before = api.stored().await;
    let hex = "a".repeat(64);
    for bad in [
        "sha256:baddigeststring".to_owned(),
        format!("sha256:{}", "A".repeat(64)),
        format!("sha512:{hex}"),
        format!("md5:{}", "a".repeat(32)),
        format!("SHA256:{hex}"),
        format!("sha256:{hex}%20"),
    ] {
        for kind in ["blobs", "manifests", "referrers"] {
            let path = format!("/v2/app/{kind}/{bad}");
            api.get(&path).await.refused(400, "DIGEST_INVALID");
            api.head(&path).await.is(400);
        }
        for kind in ["blobs", "manifests"] {
            let path = format!("/v2/app/{kind}/{bad}");
            api.delete(&path).await.refused(400, "DIGEST_INVALID");
        }
        let put = api.put("app", &bad, IMAGE, image.manifest.clone()).await;
        put.refused(400, "DIGEST_INVALID");
        let post = api.post(&format!("/v2/app/blobs/uploads/?digest={bad}"));
        post.await.refused(400, "DIGEST_INVALID");
        let upload = api.begin("app").await;
        let put = api.request(Method::PUT, &format!("{upload}?digest={bad}"));
        api.send(put.body("x")).await.refused(400, "DIGEST_INVALID");
    }
    let hinted = api
        .post("/v2/app/blobs/uploads/?digest-algorithm=md5")
        .await;
    let hinted = hinted.refused(400, "DIGEST_INVALID");
    hinted.says("md5").says("sha256 or sha512");
    // Well formed, and not of these bytes.
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let other = Digest::of(algorithm, b"other bytes");
        let post = api.request(
            Method::POST,
            &format!("/v2/app/blobs/uploads/?digest={other}"),
        );
        api.send(post.body("x"))
            .await
            .refused(400, "DIGEST_INVALID");
        let upload = api.begin("app").await;
        api.patch(&upload, "0-0", "x").await.is(202);
        api.finish(&upload, &other, "y")
            .await
            .refused(400, "DIGEST_INVALID");
        api.get(&upload).await.is(404);
        api.head(&format!("/v2/app/blobs/{other}")).await.is(404);
        let put = api.put(
            "app",
            &format!("{other}?tag=v2"),
            IMAGE,
            image.manifest.clone(),
        );
        put.await.refused(400, "DIGEST_INVALID");
        api.head(&format!("/v2/app/manifests/{other}"))
            .await
            .is(404);
    }
    let upload = api.begin("app").await;
    let missing = api.ask(Method::PUT, &upload).await;
    missing.refused(400, "DIGEST_INVALID").says("?digest=");
    api.get(&upload).await.is(204);
    assert_eq!(api.stored().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_range_invalid_of_a_read_and_of_an_upload_that_goes_on() {
    let (api, image) = with_image().await;
    let (digest, bytes) = &image.blobs[1];
    let (path, size) = (format!("/v2/app/blobs/{digest}"), bytes.len());
    let beyond = format!("bytes={size}-");
    for range in [
        &beyond,
        "bytes=5000-10000",
        "bytes=5-0",
        "bytes=-0",
        "bytes=5000-,6000-6001",
    ] {
        let request = api.request(Method::GET, &path).header("range", range);
        let refused = api.send(request).await.refused(416, "RANGE_INVALID");
        refused.has("content-range", &format!("bytes */{size}"));
        refused.says(&format!("{size} bytes"));
    }

    let upload = api.begin("app").await;
    let digest = sha256(b"12345ab");
    let stale = async |method: Method, path: &str, range: &str, at: &str| {
        let request = api.request(method, path).header("content-range", range);
        let refused = api
            .send(request.body("ab"))
            .await
            .refused(416, "RANGE_INVALID");
        refused.has("location", &upload).has("range", at);
        api.get(path).await.is(204).has("range", at);
    };
    stale(Method::PATCH, &upload, "5-6", "0-0").await;
    api.patch(&upload, "0-4", "12345").await.is(202);
    let closing = format!("{upload}?digest={digest}");
    for range in ["7-8", "0-1", "4-5"] {
        stale(Method::PATCH, &upload, range, "0-4").await;
        stale(Method::PUT, &closing, range, "0-4").await;
    }
    let put = api
        .request(Method::PUT, &closing)
        .header("content-range", "5-6");
    api.send(put.body("ab")).await.is(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_size_invalid_of_a_chunk_and_of_a_manifest() {
    let (api, image) = with_image().await;
    let before = api.stored().await;
    let upload = api.begin("app").await;
    api.patch(&upload, "0-4", "12345").await.is(202);
    // By its own length, and by what came of a stream.
    api.patch(&upload, "5-9", "ab")
        .await
        .refused(400, "SIZE_INVALID");
    for piece in ["ab", "abcdefg"] {
        let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>(piece)]);
        let request = api
            .request(Method::PATCH, &upload)
            .header("content-range", "5-9");
        let request = request.body(Body::wrap_stream(pieces));
        api.send(request).await.refused(400, "SIZE_INVALID");
    }
    api.get(&upload).await.is(204).has("range", "0-4");
    api.patch(&upload, "5-6", "ab").await.is(202);
    api.delete(&upload).await.is(204);

    let space = |n: usize| {
        Bytes::from(
            [
                image.manifest.to_vec(),
                vec![b' '; n - image.manifest.len()],
            ]
            .concat(),
        )
    };
    let limit = 4 << 20;
    let large = space(limit + 1);
    let stream = Body::wrap_stream(futures_util::stream::iter([Ok::<_, std::io::Error>(
        large.clone(),
    )]));
    for body in [Body::from(large), stream] {
        let put = api.request(Method::PUT, "/v2/app/manifests/v2").body(body);
        let refused = api.send(put.header("content-type", IMAGE)).await;
        refused
            .refused(413, "SIZE_INVALID")
            .says(&limit.to_string());
    }
    assert_eq!(api.stored().await, before);
    api.put("app", "v2", IMAGE, space(limit)).await.is(201);
}
