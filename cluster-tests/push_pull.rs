//! What every client does, on one region: the endpoints of the distribution spec, one test each.

use crate::harness::client::{Client, IMAGE, Image, random_bytes, sha256};
use crate::harness::cluster::Cluster;
use crate::harness::images;
use bytes::Bytes;
use reqwest::Method;
use roadstead::oci::{Algorithm, Digest};
use serde_json::{Value, json};
use std::collections::BTreeSet;

async fn one() -> (Cluster, Client) {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    (cluster, client)
}

async fn start_upload(client: &Client, repository: &str) -> String {
    let answer = client
        .request(Method::POST, &format!("/v2/{repository}/blobs/uploads/"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 202);
    assert_eq!(answer.headers()["range"], "0-0");
    assert!(answer.headers().contains_key("docker-upload-uuid"));
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    assert!(
        location.starts_with("/v2/") && !location.contains('?'),
        "{location}"
    );
    location
}

#[tokio::test(flavor = "multi_thread")]
async fn end_1_the_api_says_that_it_is_there() {
    let (_cluster, client) = one().await;
    for path in ["/v2/", "/v2"] {
        let answer = client.get(path).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(
            answer.headers()["docker-distribution-api-version"],
            "registry/2.0"
        );
        assert_eq!(answer.headers()["roadstead-region"], "r1");
        assert!(
            answer.headers()["roadstead-index"]
                .to_str()
                .unwrap()
                .contains(':')
        );
        assert_eq!(answer.text().await.unwrap(), "{}");
    }
    for purpose in ["pulls", "pushes"] {
        assert_eq!(
            client
                .get(&format!("/healthz?for={purpose}"))
                .await
                .unwrap()
                .status(),
            200
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn end_2_to_6_blobs_come_back_by_every_way_of_upload() {
    let (_cluster, client) = one().await;
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for way in ["monolithic", "put", "stream", "chunks"] {
            let bytes = Bytes::from(format!("{way} by {algorithm:?}").repeat(20_000));
            let digest = Digest::of(algorithm, &bytes);
            let put = match way {
                "monolithic" => {
                    let path = format!("/v2/blobs/app/blobs/uploads/?digest={digest}");
                    client
                        .request(Method::POST, &path)
                        .body(bytes.clone())
                        .send()
                        .await
                        .unwrap()
                }
                "put" => {
                    let path = start_upload(&client, "blobs/app").await;
                    client
                        .request(Method::PUT, &format!("{path}?digest={digest}"))
                        .body(bytes.clone())
                        .send()
                        .await
                        .unwrap()
                }
                "stream" => {
                    let path = start_upload(&client, "blobs/app").await;
                    let sent = client
                        .request(Method::PATCH, &path)
                        .body(bytes.clone())
                        .send()
                        .await
                        .unwrap();
                    assert_eq!(sent.status(), 202);
                    assert_eq!(
                        sent.headers()["range"],
                        format!("0-{}", bytes.len() - 1).as_str()
                    );
                    client
                        .request(Method::PUT, &format!("{path}?digest={digest}"))
                        .send()
                        .await
                        .unwrap()
                }
                _ => {
                    let path = start_upload(&client, "blobs/app").await;
                    let half = bytes.len() / 2;
                    for (from, to) in [(0, half), (half, bytes.len())] {
                        let sent = client
                            .request(Method::PATCH, &path)
                            .header("content-range", format!("{from}-{}", to - 1))
                            .body(bytes.slice(from..to))
                            .send()
                            .await
                            .unwrap();
                        assert_eq!(sent.status(), 202);
                    }
                    // end-13
                    let status = client.get(&path).await.unwrap();
                    assert_eq!(status.status(), 204);
                    assert_eq!(
                        status.headers()["range"],
                        format!("0-{}", bytes.len() - 1).as_str()
                    );
                    client
                        .request(Method::PUT, &format!("{path}?digest={digest}"))
                        .send()
                        .await
                        .unwrap()
                }
            };
            assert_eq!(put.status(), 201, "{way} {algorithm:?}");
            assert_eq!(
                put.headers()["docker-content-digest"],
                digest.to_string().as_str()
            );
            let location = put.headers()["location"].to_str().unwrap().to_owned();
            let head = client
                .request(Method::HEAD, &location)
                .send()
                .await
                .unwrap();
            assert_eq!(head.status(), 200);
            assert_eq!(
                head.headers()["content-length"],
                bytes.len().to_string().as_str()
            );
            let got = client.get(&location).await.unwrap();
            assert_eq!(
                got.headers()["docker-content-digest"],
                digest.to_string().as_str()
            );
            assert_eq!(got.headers()["roadstead-source"], "local");
            assert!(got.bytes().await.unwrap() == bytes);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn end_2_ranges_are_exact() {
    let (_cluster, client) = one().await;
    let bytes = random_bytes(9, 200_000);
    let digest = sha256(&bytes);
    assert_eq!(
        client
            .push_blob("blobs/ranges", &digest, bytes.clone())
            .await
            .unwrap(),
        201
    );
    let path = format!("/v2/blobs/ranges/blobs/{digest}");
    let range = |range: &'static str| {
        client
            .request(Method::GET, &path)
            .header("range", range)
            .send()
    };
    for (asked, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=65535-65536", 65_535, 65_537),
        ("bytes=199990-", 199_990, 200_000),
        ("bytes=-7", 199_993, 200_000),
        ("bytes=100-999999", 100, 200_000),
    ] {
        let answer = range(asked).await.unwrap();
        assert_eq!(answer.status(), 206, "{asked}");
        assert_eq!(
            answer.headers()["content-range"],
            format!("bytes {from}-{}/200000", to - 1).as_str()
        );
        assert!(
            answer.bytes().await.unwrap() == bytes.slice(from..to),
            "{asked}"
        );
    }
    for unsatisfiable in ["bytes=200000-", "bytes=500-0"] {
        let answer = range(unsatisfiable).await.unwrap();
        assert_eq!(answer.status(), 416, "{unsatisfiable}");
        assert_eq!(answer.headers()["content-range"], "bytes */200000");
    }
    let several = range("bytes=0-9,65530-65540,-5").await.unwrap();
    assert_eq!(several.status(), 206);
    let kind = several.headers()["content-type"].to_str().unwrap();
    let boundary = kind
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let boundary = boundary.to_owned();
    let length = several.content_length().unwrap();
    let mut expected = Vec::new();
    for (from, to) in [(0, 10), (65_530, 65_541), (199_995, 200_000)] {
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n\
             Content-Range: bytes {from}-{}/200000\r\n\r\n",
            to - 1
        );
        expected.extend_from_slice(head.as_bytes());
        expected.extend_from_slice(&bytes[from..to]);
    }
    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert_eq!(length, expected.len() as u64);
    assert!(several.bytes().await.unwrap() == expected);
    // Overlaps that make an answer larger than the blob are not paid for.
    let overlapping = range("bytes=0-,0-,0-").await.unwrap();
    assert_eq!(overlapping.status(), 200);
    assert_eq!(overlapping.content_length(), Some(200_000));
    let beyond = range("bytes=200000-,300000-300001").await.unwrap();
    assert_eq!(beyond.status(), 416);
    let same = client
        .request(Method::GET, &path)
        .header("if-none-match", format!("\"{digest}\""))
        .send()
        .await
        .unwrap();
    assert_eq!(same.status(), 304);
}

#[tokio::test(flavor = "multi_thread")]
async fn end_3_7_8_9_manifests_and_tags() {
    let (_cluster, client) = one().await;
    let image = Image::small("tags");
    for tag in ["b", "a", "C"] {
        assert_eq!(client.push("tags/app", tag, &image).await.unwrap(), 201);
    }
    let by_tag = client.manifest("tags/app", "a").await.unwrap();
    assert_eq!(
        by_tag.headers()["docker-content-digest"],
        image.digest.to_string().as_str()
    );
    assert_eq!(by_tag.headers()["content-type"], IMAGE);
    assert_eq!(
        by_tag.headers()["etag"],
        format!("\"{}\"", image.digest).as_str()
    );
    assert!(by_tag.bytes().await.unwrap() == image.manifest);
    let list: Value = client.json("/v2/tags/app/tags/list").await.unwrap();
    assert_eq!(list, json!({"name": "tags/app", "tags": ["C", "a", "b"]}));
    let page = client.get("/v2/tags/app/tags/list?n=2").await.unwrap();
    let link = page.headers()["link"].to_str().unwrap().to_owned();
    assert!(
        link.contains("last=a") && link.contains("rel=\"next\""),
        "{link}"
    );
    assert_eq!(
        page.json::<Value>().await.unwrap()["tags"],
        json!(["C", "a"])
    );
    let rest: Value = client
        .json("/v2/tags/app/tags/list?n=2&last=a")
        .await
        .unwrap();
    assert_eq!(rest["tags"], json!(["b"]));
    let catalog: Value = client.json("/v2/_catalog").await.unwrap();
    assert_eq!(catalog["repositories"], json!(["tags/app"]));
    // A tag goes alone; a digest takes its tags along.
    let delete = |reference: String| {
        client
            .request(
                Method::DELETE,
                &format!("/v2/tags/app/manifests/{reference}"),
            )
            .send()
    };
    assert_eq!(delete("b".into()).await.unwrap().status(), 202);
    assert_eq!(
        client.manifest("tags/app", "b").await.unwrap().status(),
        404
    );
    assert_eq!(
        client
            .manifest("tags/app", &image.digest.to_string())
            .await
            .unwrap()
            .status(),
        200
    );
    let in_use = client
        .request(
            Method::DELETE,
            &format!("/v2/tags/app/blobs/{}", image.blobs[1].0),
        )
        .send()
        .await
        .unwrap();
    assert_eq!(in_use.status(), 405);
    assert_eq!(
        delete(image.digest.to_string()).await.unwrap().status(),
        202
    );
    assert_eq!(
        delete(image.digest.to_string()).await.unwrap().status(),
        404
    );
    assert_eq!(
        client.manifest("tags/app", "a").await.unwrap().status(),
        404
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn end_7_conditions_on_a_tag_are_decided_by_the_log() {
    let (_cluster, client) = one().await;
    let (one, two) = (Image::small("one"), Image::small("two"));
    assert_eq!(client.push("cas/app", "v", &one).await.unwrap(), 201);
    assert_eq!(client.push("cas/app", "other", &two).await.unwrap(), 201);
    let put = |image: &Image, name: &'static str, value: String| {
        client
            .request(Method::PUT, "/v2/cas/app/manifests/v")
            .header("content-type", IMAGE)
            .header(name, value)
            .body(image.manifest.clone())
            .send()
    };
    let new_only = put(&two, "if-none-match", "*".into()).await.unwrap();
    assert_eq!(new_only.status(), 412);
    let wrong = put(&two, "if-match", format!("\"{}\"", two.digest))
        .await
        .unwrap();
    assert!([201, 412].contains(&wrong.status().as_u16()));
    let right = put(&two, "if-match", format!("\"{}\"", one.digest))
        .await
        .unwrap();
    assert_eq!(right.status(), 201);
    // Repeated after an unclear answer: its result already stands.
    let again = put(&two, "if-match", format!("\"{}\"", one.digest))
        .await
        .unwrap();
    assert_eq!(again.status(), 201);
    let head = client.manifest("cas/app", "v").await.unwrap();
    assert_eq!(
        head.headers()["docker-content-digest"],
        two.digest.to_string().as_str()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn end_11_mount_links_what_the_other_repository_has() {
    let (_cluster, client) = one().await;
    let image = Image::small("mount");
    assert_eq!(client.push("mount/from", "v", &image).await.unwrap(), 201);
    let digest = &image.blobs[1].0;
    let mount = |path: String| client.request(Method::POST, &path).send();
    let mounted = mount(format!(
        "/v2/mount/to/blobs/uploads/?mount={digest}&from=mount/from"
    ))
    .await
    .unwrap();
    assert_eq!(mounted.status(), 201);
    assert_eq!(client.blob("mount/to", digest).await.unwrap().status(), 200);
    for fallback in [
        format!(
            "/v2/mount/to/blobs/uploads/?mount={}&from=mount/from",
            sha256(b"none")
        ),
        format!(
            "/v2/mount/to/blobs/uploads/?mount={}&from=mount/none",
            image.blobs[0].0
        ),
    ] {
        assert_eq!(mount(fallback).await.unwrap().status(), 202);
    }
    // Naming a digest gives no right to read it.
    assert_eq!(
        client.blob("mount/third", digest).await.unwrap().status(),
        404
    );
    let stolen = client
        .put_manifest("mount/third", "v", image.manifest.clone())
        .await
        .unwrap();
    assert_eq!(stolen.status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn end_12_referrers_of_a_subject() {
    let (_cluster, client) = one().await;
    let image = Image::small("subject");
    assert_eq!(client.push("refs/app", "v", &image).await.unwrap(), 201);
    let mut signature: Value = serde_json::from_slice(&image.manifest).unwrap();
    signature["artifactType"] = "application/vnd.example.signature".into();
    signature["subject"] = json!({"mediaType": IMAGE, "digest": image.digest.to_string(), "size": image.manifest.len()});
    let signature = Bytes::from(signature.to_string());
    let put = client
        .put_manifest(
            "refs/app",
            &sha256(&signature).to_string(),
            signature.clone(),
        )
        .await
        .unwrap();
    assert_eq!(put.status(), 201);
    assert_eq!(
        put.headers()["oci-subject"],
        image.digest.to_string().as_str()
    );
    let answer = client
        .get(&format!("/v2/refs/app/referrers/{}", image.digest))
        .await
        .unwrap();
    assert_eq!(
        answer.headers()["content-type"],
        "application/vnd.oci.image.index.v1+json"
    );
    let index: Value = answer.json().await.unwrap();
    assert_eq!(
        index["manifests"][0]["digest"],
        sha256(&signature).to_string()
    );
    assert_eq!(
        index["manifests"][0]["artifactType"],
        "application/vnd.example.signature"
    );
    // More than an answer may hold, of two kinds.
    for i in 0..5 {
        let mut artifact: Value = serde_json::from_slice(&signature).unwrap();
        artifact["annotations"] = json!({"n": i.to_string(), "long": "x".repeat(1 << 20)});
        artifact["artifactType"] = format!("application/vnd.example.kind-{}+json", i % 2).into();
        let artifact = Bytes::from(artifact.to_string());
        let digest = sha256(&artifact).to_string();
        let put = client.put_manifest("refs/app", &digest, artifact).await;
        assert_eq!(put.unwrap().status(), 201);
    }
    for (filter, total) in [
        ("", 6),
        ("?artifactType=application/vnd.example.kind-0%2Bjson", 3),
        (
            "?artifactType=application/vnd.example.kind-1%2Bjson&artifactType=none",
            2,
        ),
        ("?artifactType=none", 0),
    ] {
        let mut path = Some(format!("/v2/refs/app/referrers/{}{filter}", image.digest));
        let (mut seen, mut pages) = (BTreeSet::new(), 0);
        while let Some(page) = path {
            let answer = client.get(&page).await.unwrap();
            assert_eq!(answer.status(), 200, "{page}");
            let headers = answer.headers().clone();
            assert_eq!(
                headers.contains_key("oci-filters-applied"),
                !filter.is_empty()
            );
            let bytes = answer.bytes().await.unwrap();
            assert!(bytes.len() <= 4 << 20, "clients read no more");
            let index: Value = serde_json::from_slice(&bytes).unwrap();
            for entry in index["manifests"].as_array().unwrap() {
                assert!(seen.insert(entry["digest"].to_string()), "twice: {entry}");
            }
            path = headers.get("link").map(|link| {
                let link = link.to_str().unwrap();
                let (next, rel) = link.strip_prefix('<').unwrap().split_once('>').unwrap();
                assert_eq!(rel, "; rel=\"next\"");
                next.to_owned()
            });
            pages += 1;
        }
        assert_eq!((seen.len(), pages > 1), (total, total > 2), "{filter}");
    }
    let none: Value = client
        .json(&format!("/v2/refs/never/referrers/{}", image.digest))
        .await
        .unwrap();
    assert_eq!(none["manifests"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn end_4b_a_post_that_only_names_its_digest_begins_an_upload() {
    let (_cluster, client) = one().await;
    let (digest, empty) = (sha256(b"to come"), sha256(b""));
    let post = |digest: &Digest| {
        let uploads = format!("/v2/post/app/blobs/uploads/?digest={digest}");
        client.request(Method::POST, &uploads).send()
    };
    assert_eq!(post(&empty).await.unwrap().status(), 201);
    let begun = post(&digest).await.unwrap();
    assert_eq!(begun.status(), 202);
    let location = begun.headers()["location"].to_str().unwrap().to_owned();
    let put = client
        .request(Method::PUT, &location)
        .query(&[("digest", digest.to_string())])
        .body("to come");
    assert_eq!(put.send().await.unwrap().status(), 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn end_5_a_chunk_of_another_length_than_it_says_leaves_the_upload_as_it_was() {
    let (_cluster, client) = one().await;
    let path = start_upload(&client, "chunk/app").await;
    let patch = |range: &'static str, body: &'static str| {
        let request = client.request(Method::PATCH, &path);
        request.header("content-range", range).body(body).send()
    };
    assert_eq!(patch("0-4", "12345").await.unwrap().status(), 202);
    assert_eq!(patch("5-9", "ab").await.unwrap().status(), 400);
    let at = client.get(&path).await.unwrap();
    assert_eq!(at.headers()["range"], "0-4");
    assert_eq!(patch("5-6", "ab").await.unwrap().status(), 202);
    let digest = sha256(b"12345ab");
    let put = client.request(Method::PUT, &path);
    let put = put.query(&[("digest", digest.to_string())]).send().await;
    assert_eq!(put.unwrap().status(), 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn end_14_a_cancelled_upload_is_gone() {
    let (_cluster, client) = one().await;
    let path = start_upload(&client, "cancel/app").await;
    assert_eq!(
        client
            .request(Method::PATCH, &path)
            .body("abc")
            .send()
            .await
            .unwrap()
            .status(),
        202
    );
    assert_eq!(
        client
            .request(Method::DELETE, &path)
            .send()
            .await
            .unwrap()
            .status(),
        204
    );
    assert_eq!(client.get(&path).await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn real_clients_push_and_pull_real_images() {
    let (cluster, _client) = one().await;
    let registry = cluster.registry(0);
    for image in [images::busybox(), images::large()] {
        let name = format!("real/{}:v1", image.file_name().unwrap().to_str().unwrap());
        let pushed = images::skopeo_push(image, &registry, &name);
        assert!(
            pushed.status.success(),
            "{}",
            String::from_utf8_lossy(&pushed.stderr)
        );
        let (pulled, output) = images::skopeo_pull(&registry, &name);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(images::same_image(image, pulled.path()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_to_one_region_is_read_from_the_next_at_once() {
    let cluster = Cluster::start(3).await;
    for i in 0..30 {
        let (near, far) = (i % 3, (i + 1) % 3);
        let image = Image::small(&format!("at once {i}"));
        assert_eq!(
            cluster
                .client(near)
                .push("at/once", "latest", &image)
                .await
                .unwrap(),
            201
        );
        cluster
            .client(far)
            .pull("at/once", "latest", &image)
            .await
            .unwrap();
    }
    // A blob before its manifest: any region knows of it.
    let bytes = Bytes::from_static(b"just uploaded");
    let digest = sha256(&bytes);
    assert_eq!(
        cluster
            .client(0)
            .push_blob("at/once", &digest, bytes.clone())
            .await
            .unwrap(),
        201
    );
    for i in 0..3 {
        let got = cluster.client(i).blob("at/once", &digest).await.unwrap();
        assert_eq!(got.status(), 200, "{}", cluster.name(i));
        assert!(got.bytes().await.unwrap() == bytes);
    }
}
