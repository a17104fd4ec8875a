//! The API itself, and what lists: tags, repositories, referrers.

use super::{Answer, Api, index_of, with};
use crate::harness::client::{IMAGE, Image, sha256};
use reqwest::Method;
use roadstead::oci::{Algorithm, Digest, OCI_INDEX};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Where `Link` leads, which must be on this host.
fn next(answer: &Answer) -> Option<String> {
    answer.headers.get("link")?;
    let (path, rel) = answer.header("link").split_once('>').unwrap();
    assert_eq!(rel, "; rel=\"next\"");
    let path = path.strip_prefix('<').unwrap();
    assert!(path.starts_with("/v2/"), "{path}");
    Some(path.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn end_1_the_api_says_that_it_is_there() {
    let api = Api::start().await;
    for path in ["/v2/", "/v2"] {
        for answer in [api.get(path).await.is(200), api.head(path).await.is(200)] {
            answer.has("content-type", "application/json");
            answer.has("content-length", "2");
            answer.lacks("www-authenticate");
            // It would make podman look for signatures here.
            answer.lacks("x-registry-supports-signatures");
        }
        assert_eq!(api.get(path).await.json(), json!({}));
        let options = api.ask(Method::OPTIONS, path).await.is(200);
        options.has("allow", "GET, HEAD, OPTIONS");
    }
    for purpose in ["", "?for=pulls", "?for=pushes"] {
        api.get(&format!("/healthz{purpose}")).await.is(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn end_8a_tags_are_listed_in_the_order_of_their_bytes() {
    let api = Api::start().await;
    let image = Image::small("tags");
    for tag in ["b", "a", "_", "C", "1.10", "1.9", "a-b"] {
        api.push("tags/app", tag, &image).await;
    }
    let path = "/v2/tags/app/tags/list";
    let tags = json!(["1.10", "1.9", "C", "_", "a", "a-b", "b"]);
    let list = api.get(path).await.is(200);
    list.has("content-type", "application/json").lacks("link");
    assert_eq!(list.json(), json!({"name": "tags/app", "tags": tags}));
    let head = api.head(path).await.is(200);
    head.has("content-length", list.header("content-length"));
    // Without its tags it is still there, with an empty list and no null.
    for tag in tags.as_array().unwrap() {
        let tag = tag.as_str().unwrap();
        let path = format!("/v2/tags/app/manifests/{tag}");
        api.delete(&path).await.is(202);
    }
    let empty = api.get(path).await.is(200);
    assert_eq!(empty.json(), json!({"name": "tags/app", "tags": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn end_8b_pages_of_tags_lead_to_the_next_and_miss_none() {
    let api = Api::start().await;
    let image = Image::small("pages");
    for tag in ["a", "b", "c", "d", "e"] {
        api.push("tags/app", tag, &image).await;
    }
    let list = "/v2/tags/app/tags/list";
    for (query, tags, link) in [
        ("?n=0", json!([]), None),
        ("?n=2", json!(["a", "b"]), Some("?n=2&last=b")),
        ("?n=2&last=b", json!(["c", "d"]), Some("?n=2&last=d")),
        ("?n=2&last=d", json!(["e"]), None),
        ("?n=5", json!(["a", "b", "c", "d", "e"]), None),
        ("?n=1000000", json!(["a", "b", "c", "d", "e"]), None),
        // The last one need not exist, and is no number.
        ("?last=bb", json!(["c", "d", "e"]), None),
        ("?n=1&last=0", json!(["a"]), Some("?n=1&last=a")),
        ("?last=z", json!([]), None),
        (
            "?n=3&ns=registry.example",
            json!(["a", "b", "c"]),
            Some("?n=3&last=c"),
        ),
    ] {
        let page = api.get(&format!("{list}{query}")).await.is(200);
        assert_eq!(page.json()["tags"], tags, "{query}");
        let link = link.map(|link| format!("{list}{link}"));
        assert_eq!(next(&page), link, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ext_catalog_lists_repositories_in_pages() {
    let api = Api::start().await;
    let empty = api.get("/v2/_catalog").await.is(200);
    assert_eq!(empty.json(), json!({"repositories": []}));
    for name in ["b", "a/b", "a", "a/a"] {
        api.push(name, "v1", &Image::small(name)).await;
    }
    // Bytes alone make no repository.
    api.push_blobs("blobs/only", &Image::small("alone")).await;
    let mut path = "/v2/_catalog?n=3".to_owned();
    let mut pages = Vec::new();
    loop {
        let page = api.get(&path).await.is(200);
        page.has("content-type", "application/json");
        pages.push(page.json()["repositories"].clone());
        match next(&page) {
            Some(next) => path = next,
            None => break,
        }
    }
    assert_eq!(pages, [json!(["a", "a/a", "a/b"]), json!(["b"])]);
    let after = api.get("/v2/_catalog?last=a/a").await.is(200);
    assert_eq!(after.json()["repositories"], json!(["a/b", "b"]));
    let none = api.get("/v2/_catalog?n=0").await.is(200);
    none.lacks("link");
    assert_eq!(none.json()["repositories"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn ext_discover_is_not_there_and_says_so() {
    let api = Api::start().await;
    let path = "/v2/_oci/ext/discover";
    api.get(path).await.refused(404, "UNSUPPORTED");
}

#[tokio::test(flavor = "multi_thread")]
async fn end_12a_referrers_of_a_subject_are_listed_whether_or_not_it_is_there() {
    let api = Api::start().await;
    let list = |subject: &Digest| format!("/v2/refs/app/referrers/{subject}");
    let empty = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
    // oras asks for this one to see whether there are referrers at all.
    let zero = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let other = Digest::of(Algorithm::Sha512, b"never");
    for subject in [&zero, &other] {
        let none = api.get(&list(subject)).await.is(200);
        none.has("content-type", OCI_INDEX);
        assert_eq!(none.json(), empty);
    }

    let image = Image::small("subject");
    let subject = json!({"mediaType": IMAGE, "digest": image.digest.to_string(), "size": image.manifest.len()});
    api.push_blobs("refs/app", &image).await;
    let mut signature: Value =
        serde_json::from_slice(&with(&image, "subject", subject.clone())).unwrap();
    signature["artifactType"] = json!("application/vnd.example.signature");
    signature["annotations"] = json!({"by": "me"});
    let plain = with(&image, "subject", subject.clone());
    let mut index: Value = serde_json::from_slice(&index_of(&[])).unwrap();
    index["subject"] = subject;
    let manifests = [
        (IMAGE, signature.to_string().into()),
        (IMAGE, plain),
        (OCI_INDEX, index.to_string().into()),
    ];
    for (kind, bytes) in &manifests {
        let digest = sha256(bytes).to_string();
        let put = api.put("refs/app", &digest, kind, bytes.clone()).await;
        put.is(201).has("oci-subject", &image.digest.to_string());
    }
    let expected = |missing: Option<usize>| {
        let types = [
            json!("application/vnd.example.signature"),
            json!("application/vnd.oci.image.config.v1+json"),
            Value::Null,
        ];
        let all = manifests.iter().zip(types).enumerate();
        let kept = all.filter(|(i, _)| Some(*i) != missing);
        let entries = kept.map(|(i, ((kind, bytes), artifact_type))| {
            let mut entry = json!({"mediaType": kind, "digest": sha256(bytes).to_string(), "size": bytes.len()});
            if !artifact_type.is_null() {
                entry["artifactType"] = artifact_type;
            }
            if i == 0 {
                entry["annotations"] = json!({"by": "me"});
            }
            entry.to_string()
        });
        entries.collect::<BTreeSet<String>>()
    };
    let listed = async || {
        let answer = api.get(&list(&image.digest)).await.is(200);
        answer.has("content-type", OCI_INDEX).lacks("link");
        answer.lacks("oci-filters-applied");
        let body = answer.json();
        assert_eq!(body["mediaType"], OCI_INDEX);
        let entries = body["manifests"].as_array().unwrap();
        entries
            .iter()
            .map(Value::to_string)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(listed().await, expected(None), "the subject is not there");
    api.push("refs/app", "v1", &image).await;
    assert_eq!(listed().await, expected(None));
    let subject = format!("/v2/refs/app/manifests/{}", image.digest);
    api.delete(&subject).await.is(202);
    assert_eq!(listed().await, expected(None), "the subject is gone");
    let first = sha256(&manifests[0].1);
    let referrer = format!("/v2/refs/app/manifests/{first}");
    api.delete(&referrer).await.is(202);
    assert_eq!(listed().await, expected(Some(0)));
    let elsewhere = format!("/v2/refs/other/referrers/{}", image.digest);
    assert_eq!(api.get(&elsewhere).await.is(200).json(), empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn end_12b_referrers_of_a_kind_come_in_pages_that_clients_can_read() {
    let api = Api::start().await;
    let image = Image::small("kinds");
    api.push("refs/app", "v1", &image).await;
    let subject = json!({"mediaType": IMAGE, "digest": image.digest.to_string(), "size": image.manifest.len()});
    // More than an answer may hold, of two kinds.
    for i in 0..6 {
        let artifact = with(&image, "subject", subject.clone());
        let mut artifact: Value = serde_json::from_slice(&artifact).unwrap();
        artifact["annotations"] = json!({"n": i.to_string(), "long": "x".repeat(1 << 20)});
        artifact["artifactType"] = format!("application/vnd.example.kind-{}+json", i % 2).into();
        let artifact = artifact.to_string();
        let digest = sha256(artifact.as_bytes()).to_string();
        api.put("refs/app", &digest, IMAGE, artifact.into())
            .await
            .is(201);
    }
    for (filter, total) in [
        ("", 6),
        ("?artifactType=application/vnd.example.kind-0%2Bjson", 3),
        (
            "?artifactType=application/vnd.example.kind-1+json&artifactType=none",
            3,
        ),
        ("?artifactType=none", 0),
    ] {
        let mut path = Some(format!("/v2/refs/app/referrers/{}{filter}", image.digest));
        let (mut seen, mut pages) = (BTreeSet::new(), 0);
        while let Some(page) = path {
            let answer = api.get(&page).await.is(200);
            match filter {
                "" => answer.lacks("oci-filters-applied"),
                _ => answer.has("oci-filters-applied", "artifactType"),
            };
            answer.has("content-type", OCI_INDEX);
            assert!(answer.body.len() <= 4 << 20, "clients read no more");
            for entry in answer.json()["manifests"].as_array().unwrap() {
                assert!(seen.insert(entry["digest"].to_string()), "twice: {entry}");
            }
            path = next(&answer);
            pages += 1;
        }
        assert_eq!((seen.len(), pages > 1), (total, total > 2), "{filter}");
    }
}
