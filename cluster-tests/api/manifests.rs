//! Manifests: pushed by tag, by digest, and with tags beside it; read; deleted.

use super::{Answer, Api, index_of, with};
use crate::harness::client::{IMAGE, Image, sha256};
use bytes::Bytes;
use reqwest::Method;
use roadstead::oci::{Algorithm, Digest, OCI_INDEX};
use serde_json::{Value, json};

const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What describes a manifest.
fn describes(answer: &Answer, kind: &str, digest: &Digest, bytes: &[u8]) {
    answer.has("content-type", kind);
    answer.has("content-length", &bytes.len().to_string());
    answer.has("docker-content-digest", &digest.to_string());
    answer.has("etag", &format!("\"{digest}\""));
    assert!(answer.body.is_empty() || answer.body == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn end_3_a_manifest_is_read_by_tag_and_by_digest_as_it_was_pushed() {
    let api = Api::start().await;
    let image = Image::small("read");
    api.push("read/app", "v1", &image).await;
    let (digest, bytes) = (&image.digest, &image.manifest);
    for reference in [
        "v1".to_owned(),
        digest.to_string(),
        digest.to_string().replace(':', "%3A"),
    ] {
        let path = format!("/v2/read/app/manifests/{reference}");
        // Whatever a client would rather have: what was pushed has one form.
        for accept in ["*/*", DOCKER_IMAGE, "text/html;q=0.5, application/json"] {
            for method in [Method::GET, Method::HEAD] {
                let has_body = method == Method::GET;
                let request = api.request(method, &path).header("accept", accept);
                let request = request.header("accept-encoding", "gzip");
                let answer = api.send(request.header("accept", OCI_INDEX)).await.is(200);
                describes(&answer, IMAGE, digest, bytes);
                answer.lacks("cache-control");
                assert_eq!(answer.body.is_empty(), !has_body);
            }
        }
        let tag = format!("\"{digest}\"");
        for known in [
            &tag,
            &format!("W/{tag}"),
            &format!("\"x\", {tag}"),
            &digest.to_string(),
            "*",
        ] {
            for request in [
                api.request(Method::GET, &path),
                api.request(Method::HEAD, &path),
                api.over_http_2(Method::GET, &path),
            ] {
                let request = request.header("if-none-match", known);
                let answer = api.send(request).await.is(304);
                answer.has("etag", &tag);
                answer.has("docker-content-digest", &digest.to_string());
            }
        }
        let other = api.request(Method::GET, &path);
        let other = other.header("if-none-match", "\"sha256:other\"");
        describes(&api.send(other).await.is(200), IMAGE, digest, bytes);
    }
    // By the algorithm that is asked with, and by no other than it was pushed with.
    let other = Digest::of(Algorithm::Sha512, bytes).to_string();
    api.get(&format!("/v2/read/app/manifests/{other}"))
        .await
        .is(404);
    api.put("read/app", &other, IMAGE, bytes.clone())
        .await
        .is(201);
    let answer = api.get(&format!("/v2/read/app/manifests/{other}")).await;
    answer.is(200).has("docker-content-digest", &other);
    // A manifest is no blob.
    api.get(&format!("/v2/read/app/blobs/{digest}"))
        .await
        .is(404);
}

/// What is pushed with which Content-Type, and what that is read with.
fn of_every_kind(image: &Image) -> Vec<(&'static str, Option<String>, &'static str, Bytes)> {
    let docker = |kind: &str| {
        let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        manifest["mediaType"] = json!(kind);
        manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
        manifest["layers"][0]["mediaType"] =
            json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
        Bytes::from(manifest.to_string())
    };
    let text = |value: Value| Bytes::from(value.to_string());
    let inner = index_of(&[image]);
    let nested =
        json!({"mediaType": OCI_INDEX, "digest": sha256(&inner).to_string(), "size": inner.len()});
    let absent = json!({"mediaType": IMAGE, "digest": sha256(b"absent").to_string(), "size": 6});
    let absent_layer = |kind: &str| json!([{"mediaType": kind, "digest": sha256(b"absent").to_string(), "size": 6, "urls": ["https://example.com/layer"]}]);
    let oci = || Some(IMAGE.to_owned());
    let index = || Some(OCI_INDEX.to_owned());
    vec![
        ("an image", oci(), IMAGE, image.manifest.clone()),
        (
            "parameters",
            Some(format!("{IMAGE}; charset=utf-8")),
            IMAGE,
            image.manifest.clone(),
        ),
        (
            "a type that only the body has",
            None,
            IMAGE,
            image.manifest.clone(),
        ),
        (
            "of docker",
            Some(DOCKER_IMAGE.into()),
            DOCKER_IMAGE,
            docker(DOCKER_IMAGE),
        ),
        ("an index", index(), OCI_INDEX, inner),
        (
            "an index in an index",
            index(),
            OCI_INDEX,
            text(json!({"schemaVersion": 2, "manifests": [nested]})),
        ),
        ("an index of nothing", index(), OCI_INDEX, index_of(&[])),
        (
            "an index whose type is its shape",
            None,
            OCI_INDEX,
            text(json!({"schemaVersion": 2, "manifests": [], "a": 1})),
        ),
        (
            "an index of what is absent",
            index(),
            OCI_INDEX,
            text(json!({"schemaVersion": 2, "manifests": [absent]})),
        ),
        (
            "a list of docker",
            Some(DOCKER_LIST.into()),
            DOCKER_LIST,
            text(json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": []})),
        ),
        (
            "without layers",
            oci(),
            IMAGE,
            with(image, "layers", json!([])),
        ),
        (
            "unknown names",
            oci(),
            IMAGE,
            with(image, "org.example.new", json!({"a": [1, null]})),
        ),
        (
            "annotations of null",
            oci(),
            IMAGE,
            with(image, "annotations", Value::Null),
        ),
        (
            "an unknown artifact",
            oci(),
            IMAGE,
            with(image, "artifactType", json!("what/ever")),
        ),
        (
            "a subject that is absent",
            oci(),
            IMAGE,
            with(image, "subject", absent),
        ),
        (
            "a foreign layer",
            oci(),
            IMAGE,
            with(
                image,
                "layers",
                absent_layer("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
            ),
        ),
        (
            "a foreign layer of docker",
            oci(),
            IMAGE,
            with(
                image,
                "layers",
                absent_layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            ),
        ),
        (
            "a line break at its end",
            oci(),
            IMAGE,
            Bytes::from([&image.manifest, &b" \r\n"[..]].concat()),
        ),
        (
            "large",
            oci(),
            IMAGE,
            with(image, "annotations", json!({"a": "x".repeat(4_000_000)})),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn end_7a_manifests_of_every_kind_are_taken_and_come_back_as_they_were_pushed() {
    let api = Api::start().await;
    let image = Image::small("kinds");
    api.push_blobs("put/app", &image).await;
    // One tag, which moves from kind to kind.
    for (what, content_type, kind, bytes) in of_every_kind(&image) {
        let digest = sha256(&bytes);
        let subject: Value = serde_json::from_slice(&bytes).unwrap();
        let subject = subject["subject"]["digest"].as_str();
        for (reference, is_streamed) in [("latest".to_owned(), false), (digest.to_string(), true)] {
            let request = api.request(Method::PUT, &format!("/v2/put/app/manifests/{reference}"));
            let request = match &content_type {
                Some(content_type) => request.header("content-type", content_type),
                None => request,
            };
            let body = match is_streamed {
                true => {
                    reqwest::Body::wrap_stream(futures_util::stream::iter([
                        Ok::<_, std::io::Error>(bytes.clone()),
                    ]))
                }
                false => bytes.clone().into(),
            };
            let put = api.send(request.body(body)).await.is(201);
            put.has("docker-content-digest", &digest.to_string());
            put.has("location", &format!("/v2/put/app/manifests/{digest}"));
            put.lacks("oci-tag").lacks("warning");
            match subject {
                Some(subject) => put.has("oci-subject", subject),
                None => put.lacks("oci-subject"),
            };
            for path in [put.header("location"), "/v2/put/app/manifests/latest"] {
                let read = api.get(path).await.is(200);
                describes(&read, kind, &digest, &bytes);
                assert!(read.body == bytes, "{what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn end_7a_conditions_on_a_tag_are_decided_by_the_log() {
    let api = Api::start().await;
    let (one, two) = (Image::small("one"), Image::small("two"));
    api.push_blobs("cas/app", &one).await;
    api.push_blobs("cas/app", &two).await;
    let put = async |image: &Image, name: &str, value: &str| {
        let request = api.request(Method::PUT, "/v2/cas/app/manifests/v");
        let request = request.header("content-type", IMAGE).header(name, value);
        api.send(request.body(image.manifest.clone())).await
    };
    let (tag_one, tag_two) = (format!("\"{}\"", one.digest), format!("\"{}\"", two.digest));
    put(&one, "if-none-match", "*").await.is(201);
    put(&two, "if-match", &tag_one).await.is(201);
    // Repeated after an unclear answer: its result already stands.
    put(&two, "if-match", &tag_one).await.is(201);
    put(&one, "if-match", &format!("\"x\", W/{tag_two}"))
        .await
        .is(201);
    put(&two, "if-none-match", &tag_two).await.is(201);
    let read = api.get("/v2/cas/app/manifests/v").await.is(200);
    read.has("docker-content-digest", &two.digest.to_string());
    let delete = api.request(Method::DELETE, "/v2/cas/app/manifests/v");
    api.send(delete.header("if-match", &tag_two)).await.is(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn end_7b_a_push_by_digest_sets_many_tags_at_once() {
    let api = Api::start().await;
    let image = Image::small("many tags");
    api.push_blobs("put/app", &image).await;
    for (algorithm, prefix) in [(Algorithm::Sha256, "a"), (Algorithm::Sha512, "b")] {
        let digest = Digest::of(algorithm, &image.manifest).to_string();
        let tags: Vec<String> = (0..100).map(|i| format!("{prefix}{i}")).collect();
        let path = format!("{digest}?tag={}", tags.join("&tag="));
        let put = api
            .put("put/app", &path, IMAGE, image.manifest.clone())
            .await
            .is(201);
        put.has("docker-content-digest", &digest);
        put.has("location", &format!("/v2/put/app/manifests/{digest}"));
        put.has("oci-tag", &tags.join(", "));
        for tag in [&tags[0], &tags[99]] {
            let read = api
                .head(&format!("/v2/put/app/manifests/{tag}"))
                .await
                .is(200);
            read.has("docker-content-digest", &digest);
        }
    }
    let list = api.get("/v2/put/app/tags/list").await.is(200).json();
    assert_eq!(list["tags"].as_array().unwrap().len(), 200);
    // More than that are too many for one request.
    let tags = "tag=c&".repeat(101);
    let path = format!("{}?{tags}", image.digest);
    let put = api
        .put("put/app", &path, IMAGE, image.manifest.clone())
        .await;
    put.refused(414, "UNSUPPORTED").says("at most 100");
    api.head("/v2/put/app/manifests/c").await.is(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn end_9_a_tag_goes_alone_and_a_digest_takes_its_tags_along() {
    let api = Api::start().await;
    let (image, other) = (Image::small("deleted"), Image::small("kept"));
    for (tag, image) in [
        ("a", &image),
        ("b", &image),
        ("c", &image),
        ("other", &other),
    ] {
        api.push("del/app", tag, image).await;
    }
    api.push("del/elsewhere", "a", &image).await;
    let index = index_of(&[&image]);
    api.put("del/app", "index", OCI_INDEX, index).await.is(201);
    let path = |reference: &str| format!("/v2/del/app/manifests/{reference}");
    let by_digest = path(&image.digest.to_string());

    assert!(api.delete(&path("a")).await.is(202).body.is_empty());
    api.get(&path("a")).await.refused(404, "MANIFEST_UNKNOWN");
    api.delete(&path("a"))
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    for kept in [path("b"), by_digest.clone()] {
        api.get(&kept).await.is(200);
    }
    // An index that names it does not keep it.
    assert!(api.delete(&by_digest).await.is(202).body.is_empty());
    for gone in [path("b"), path("c"), by_digest.clone()] {
        api.get(&gone).await.refused(404, "MANIFEST_UNKNOWN");
        api.head(&gone).await.is(404);
    }
    api.delete(&by_digest)
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    let list = api.get("/v2/del/app/tags/list").await.is(200).json();
    assert_eq!(list["tags"], json!(["index", "other"]));
    api.client.pull("del/app", "other", &other).await.unwrap();
    api.client.pull("del/elsewhere", "a", &image).await.unwrap();
}
