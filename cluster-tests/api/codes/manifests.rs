//! Codes of manifests and of their tags.

use super::with_image;
use crate::api::{index_of, with};
use crate::harness::client::{IMAGE, Image, sha256};
use crate::harness::cluster::ROADSTEAD;
use crate::harness::images::must;
use bytes::Bytes;
use reqwest::Method;
use roadstead::oci::OCI_INDEX;
use serde_json::{Value, json};
use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn code_manifest_blob_unknown_names_each_that_is_missing() {
    let (api, _) = with_image().await;
    let image = Image::new("absent", vec!["one".into(), "two".into()]);
    let [config, one, two] = [0, 1, 2].map(|i| image.blobs[i].clone());
    for (digest, bytes) in [&config, &one] {
        let pushed = api.client.push_blob("app", digest, bytes.clone());
        assert_eq!(pushed.await.unwrap(), 201);
    }
    // There, and not in this repository.
    let pushed = api.client.push_blob("other", &two.0, two.1.clone());
    assert_eq!(pushed.await.unwrap(), 201);
    let before = api.stored().await;
    let put = api.put("app", "v2", IMAGE, image.manifest.clone()).await;
    let refused = put.refused(400, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(refused.details, [json!({"digest": two.0.to_string()})]);
    let put = api.put(
        "third",
        &image.digest.to_string(),
        IMAGE,
        image.manifest.clone(),
    );
    let refused = put.await.refused(400, "MANIFEST_BLOB_UNKNOWN");
    let mut named: Vec<_> = refused
        .details
        .iter()
        .map(|d| d["digest"].to_string())
        .collect();
    let mut all: Vec<_> = image
        .blobs
        .iter()
        .map(|(d, _)| json!(d.to_string()).to_string())
        .collect();
    named.sort();
    all.sort();
    assert_eq!(named, all);
    // Of an index, what it calls no manifest.
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": two.0.to_string(), "size": 3}]});
    let put = api
        .put("app", "cache", OCI_INDEX, index.to_string().into())
        .await;
    put.refused(400, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(api.stored().await, before);
    let pushed = api.client.push_blob("app", &two.0, two.1.clone());
    assert_eq!(pushed.await.unwrap(), 201);
    api.put("app", "v2", IMAGE, image.manifest.clone())
        .await
        .is(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_manifest_invalid_of_what_has_two_readings_or_none() {
    let (api, image) = with_image().await;
    let before = api.stored().await;
    let schema_1 = json!({"schemaVersion": 1, "name": "a", "fsLayers": []}).to_string();
    let wrong_size = |by: i64| {
        let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        manifest["config"]["size"] = json!(manifest["config"]["size"].as_i64().unwrap() + by);
        Bytes::from(manifest.to_string())
    };
    for (kind, bytes, says) in [
        (IMAGE, Bytes::new(), "not a manifest"),
        (IMAGE, Bytes::from_static(b"{"), "not a manifest"),
        (OCI_INDEX, image.manifest.clone(), "mediaType"),
        (IMAGE, index_of(&[&image]), "mediaType"),
        (
            "application/vnd.docker.distribution.manifest.v2+json",
            with(&image, "mediaType", Value::Null),
            "as its mediaType too",
        ),
        (
            "text/plain",
            with(&image, "mediaType", Value::Null),
            "text/plain",
        ),
        (
            "application/vnd.oci.artifact.manifest.v1+json",
            Bytes::from_static(b"{}"),
            "artifact.manifest",
        ),
        (
            "application/vnd.docker.distribution.manifest.v1+json",
            schema_1.clone().into(),
            "schema 1",
        ),
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            schema_1.clone().into(),
            "schema 1",
        ),
        (IMAGE, schema_1.into(), "schema 1"),
        (IMAGE, with(&image, "manifests", json!([])), "two things"),
        (
            IMAGE,
            with(&image, "config", Value::Null),
            "without a config",
        ),
        (IMAGE, with(&image, "Layers", json!([])), "Layers"),
        (IMAGE, wrong_size(1), "the manifest says"),
    ] {
        let digest = sha256(&bytes);
        for reference in ["v1".to_owned(), format!("{digest}?tag=v2")] {
            let put = api.put("app", &reference, kind, bytes.clone()).await;
            put.refused(400, "MANIFEST_INVALID").says(says);
        }
        if bytes != image.manifest {
            api.head(&format!("/v2/app/manifests/{digest}"))
                .await
                .is(404);
        }
    }
    assert_eq!(api.stored().await, before);
    api.client.pull("app", "v1", &image).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn code_manifest_unknown_of_tags_digests_and_repositories() {
    let (api, image) = with_image().await;
    let before = api.stored().await;
    let elsewhere = format!("/v2/other/manifests/{}", image.digest);
    let long = format!("/v2/app/manifests/{}", "t".repeat(129));
    for path in [
        "/v2/app/manifests/none",
        "/v2/never/manifests/v1",
        &format!("/v2/app/manifests/{}", sha256(b"none")),
        &elsewhere,
        // Not a tag, so nothing was ever stored under it.
        "/v2/app/manifests/.dot",
        "/v2/app/manifests/%76%31",
        &long,
    ] {
        let get = api.get(path).await.refused(404, "MANIFEST_UNKNOWN");
        let head = api.head(path).await.is(404);
        head.has("content-length", get.answer.header("content-length"));
        api.delete(path).await.refused(404, "MANIFEST_UNKNOWN");
    }
    assert_eq!(api.stored().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_tag_invalid_of_a_push_and_of_all_its_tags() {
    let (api, image) = with_image().await;
    let before = api.stored().await;
    let long = "t".repeat(129);
    for tag in [".dot", "-dash", "a+b", "a%20b", "caf%C3%A9", &long] {
        let put = api.put("app", tag, IMAGE, image.manifest.clone()).await;
        put.refused(400, "TAG_INVALID").says("is not a tag");
        for query in [format!("tag={tag}"), format!("tag=good&tag={tag}")] {
            let reference = format!("{}?{query}", image.digest);
            let put = api.put("app", &reference, IMAGE, image.manifest.clone());
            put.await.refused(400, "TAG_INVALID");
        }
    }
    let empty = format!("{}?tag=", image.digest);
    let put = api.put("app", &empty, IMAGE, image.manifest.clone()).await;
    put.refused(400, "TAG_INVALID");
    let both = api
        .put("app", "v1?tag=v2", IMAGE, image.manifest.clone())
        .await;
    both.refused(400, "TAG_INVALID")
        .says("by digest")
        .says("v1");
    assert_eq!(api.stored().await, before);
    let longest = "t".repeat(128);
    api.put("app", &longest, IMAGE, image.manifest.clone())
        .await
        .is(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_precondition_failed_says_what_is_there() {
    let (api, image) = with_image().await;
    let other = Image::small("another");
    api.push_blobs("app", &other).await;
    let before = api.stored().await;
    let put = async |tag: &str, name: &str, value: &str| {
        let request = api.request(Method::PUT, &format!("/v2/app/manifests/{tag}"));
        let request = request.header("content-type", IMAGE).header(name, value);
        let answer = api.send(request.body(other.manifest.clone())).await;
        answer.refused(412, "PRECONDITION_FAILED")
    };
    let there = format!("tag v1 names {}", image.digest);
    put("v1", "if-none-match", "*").await.says(&there);
    put("v1", "if-none-match", &format!("\"{}\"", image.digest))
        .await
        .says(&there);
    put("v1", "if-match", &format!("\"{}\"", other.digest))
        .await
        .says(&there);
    put("v1", "if-match", "").await.says(&there);
    put("v2", "if-match", "*")
        .await
        .says("tag v2 does not exist");
    for reference in ["v1".to_owned(), image.digest.to_string()] {
        let delete = api.request(Method::DELETE, &format!("/v2/app/manifests/{reference}"));
        let delete = delete.header("if-match", format!("\"{}\"", other.digest));
        let refused = api.send(delete).await.refused(412, "PRECONDITION_FAILED");
        refused.says(&image.digest.to_string());
    }
    assert_eq!(api.stored().await, before);
    api.client.pull("app", "v1", &image).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn code_denied_says_which_policy_and_how_to_lift_it() {
    let (api, image) = with_image().await;
    let other = Image::small("another");
    api.push_blobs("app", &other).await;
    let server = format!("http://{}", api.cluster.registry(0));
    let policy = |words: &[&str]| {
        must(
            Command::new(ROADSTEAD)
                .arg("policy")
                .args(words)
                .args(["--server", &server]),
        );
    };
    policy(&["set", "app", "immutable=true"]);
    let before = api.stored().await;
    let several = format!("{}?tag=v2&tag=v1", other.digest);
    for reference in ["v1", &several] {
        let put = api
            .put("app", reference, IMAGE, other.manifest.clone())
            .await;
        let refused = put.refused(403, "DENIED");
        refused
            .says("v1")
            .says("immutable=true")
            .says("policy unset 'app' immutable");
    }
    for reference in ["v1", &image.digest.to_string()] {
        let path = format!("/v2/app/manifests/{reference}");
        api.delete(&path)
            .await
            .refused(403, "DENIED")
            .says("immutable");
    }
    assert_eq!(api.stored().await, before);
    // The same again is no change.
    api.push("app", "v1", &image).await;
    policy(&["unset", "app", "immutable"]);
    api.put("app", "v1", IMAGE, other.manifest.clone())
        .await
        .is(201);
}
