//! Blobs: read, whole and in part; deleted; mounted from another repository.

use super::{Answer, Api};
use crate::harness::client::{IMAGE, Image, random_bytes, sha256};
use bytes::Bytes;
use reqwest::Method;
use roadstead::oci::{Algorithm, Digest};

#[tokio::test(flavor = "multi_thread")]
async fn end_2_a_blob_is_described_and_read() {
    let api = Api::start().await;
    let empty_json = Bytes::from_static(b"{}");
    for bytes in [random_bytes(1, 100_000), Bytes::new(), empty_json] {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, &bytes);
            let pushed = api.client.push_blob("blobs/app", &digest, bytes.clone());
            assert_eq!(pushed.await.unwrap(), 201);
            let (digest, length) = (digest.to_string(), bytes.len().to_string());
            let tag = format!("\"{digest}\"");
            let describes = |answer: &Answer| {
                answer.has("content-length", &length);
                answer.has("content-type", "application/octet-stream");
                answer.has("docker-content-digest", &digest);
                answer.has("etag", &tag).has("accept-ranges", "bytes");
            };
            let path = format!("/v2/blobs/app/blobs/{digest}");
            let read = api.get(&path).await.is(200);
            describes(&read);
            read.has("roadstead-source", "local");
            assert!(read.body == bytes);
            // A range of HEAD is none.
            let head = api.request(Method::HEAD, &path);
            let head = head.header("range", "bytes=0-0");
            describes(&api.send(head).await.is(200));
            let escaped = path.replace("sha256:", "sha256%3A");
            describes(
                &api.get(&escaped.replace("sha512:", "sha512%3a"))
                    .await
                    .is(200),
            );
            for known in [tag.clone(), format!("W/{tag}"), digest.clone(), "*".into()] {
                let again = api.request(Method::GET, &path);
                let again = api.send(again.header("if-none-match", known)).await;
                again
                    .is(304)
                    .has("docker-content-digest", &digest)
                    .has("etag", &tag);
            }
            // Ready to be compressed it is, and must not be.
            let packed = api.request(Method::GET, &path);
            let packed = packed.header("accept-encoding", "zstd;q=1.0, gzip;q=0.8");
            describes(&api.send(packed).await.is(200));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn end_2_ranges_are_exact() {
    let api = Api::start().await;
    let bytes = random_bytes(9, 200_000);
    let digest = sha256(&bytes);
    let pushed = api.client.push_blob("blobs/ranges", &digest, bytes.clone());
    assert_eq!(pushed.await.unwrap(), 201);
    let path = format!("/v2/blobs/ranges/blobs/{digest}");
    let range = async |range: &'static str, if_range: Option<String>| {
        let request = api.request(Method::GET, &path).header("range", range);
        let request = match if_range {
            Some(tag) => request.header("if-range", tag),
            None => request,
        };
        api.send(request).await
    };
    for (asked, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=65535-65536", 65_535, 65_537),
        ("bytes=199990-", 199_990, 200_000),
        ("bytes=-7", 199_993, 200_000),
        ("bytes=100-999999", 100, 200_000),
    ] {
        for if_range in [None, Some(format!("\"{digest}\""))] {
            let part = range(asked, if_range).await.is(206);
            part.has("content-range", &format!("bytes {from}-{}/200000", to - 1));
            part.has("content-type", "application/octet-stream");
            part.has("docker-content-digest", &digest.to_string());
            assert!(part.body == bytes.slice(from..to), "{asked}");
        }
        let changed = range(asked, Some("\"another\"".into())).await.is(200);
        assert!(changed.body == bytes, "{asked}");
    }
    for not_understood in ["lines=1-2", "bytes=x", "bytes=0-0;1-1"] {
        assert!(range(not_understood, None).await.is(200).body == bytes);
    }
    let several = range("bytes=0-9,65530-65540,-5", None).await.is(206);
    several.has("docker-content-digest", &digest.to_string());
    let boundary = several.header("content-type");
    let boundary = boundary
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
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
    assert!(several.body == expected);
    // Overlaps that make an answer larger than the blob are not paid for.
    range("bytes=0-,0-,0-", None).await.is(200);
    // A blob of nothing has no part that could be missing.
    let nothing = sha256(b"");
    let pushed = api.client.push_blob("blobs/ranges", &nothing, Bytes::new());
    assert_eq!(pushed.await.unwrap(), 201);
    for asked in ["bytes=0-", "bytes=0-9", "bytes=0-1,3-4"] {
        let request = api.request(Method::GET, &format!("/v2/blobs/ranges/blobs/{nothing}"));
        api.send(request.header("range", asked)).await.is(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn end_10_a_deleted_blob_is_gone_from_its_repository_alone() {
    let api = Api::start().await;
    let bytes = Bytes::from_static(b"in two repositories");
    let digest = sha256(&bytes);
    for name in ["one/app", "two/app"] {
        let pushed = api.client.push_blob(name, &digest, bytes.clone());
        assert_eq!(pushed.await.unwrap(), 201);
    }
    let path = format!("/v2/one/app/blobs/{digest}");
    let deleted = api.delete(&path).await.is(202);
    deleted.has("docker-content-digest", &digest.to_string());
    assert!(deleted.body.is_empty());
    api.get(&path).await.refused(404, "BLOB_UNKNOWN");
    api.head(&path).await.is(404);
    api.delete(&path).await.refused(404, "BLOB_UNKNOWN");
    let other = api
        .get(&format!("/v2/two/app/blobs/{digest}"))
        .await
        .is(200);
    assert!(other.body == bytes);

    // One that a manifest names stays, for as long as the manifest does.
    let image = Image::small("in use");
    api.push("one/app", "v1", &image).await;
    let layer = format!("/v2/one/app/blobs/{}", image.blobs[1].0);
    let refused = api.delete(&layer).await.refused(405, "UNSUPPORTED");
    refused.has("allow", "GET, HEAD").says("names this blob");
    api.client.pull("one/app", "v1", &image).await.unwrap();
    let manifest = format!("/v2/one/app/manifests/{}", image.digest);
    api.delete(&manifest).await.is(202);
    let later = api.delete(&layer).await;
    assert!([202, 404].contains(&later.status), "{}", later.status);
    api.head(&layer).await.is(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn end_11_mount_links_what_the_other_repository_has() {
    let api = Api::start().await;
    let image = Image::small("mount");
    api.push("mount/from", "v", &image).await;
    let (config, digest) = (&image.blobs[0].0, &image.blobs[1].0);
    let uploads = "/v2/mount/to/blobs/uploads/";
    let mounted = format!("/v2/mount/to/blobs/{digest}");
    api.head(&mounted).await.is(404);
    let mount = format!("{uploads}?mount={digest}&from=mount/from");
    for _again in 0..2 {
        let answer = api.post(&mount).await.is(201);
        answer.has("location", &mounted);
        answer.has("docker-content-digest", &digest.to_string());
        api.get(&mounted).await.is(200);
    }
    // Without a source, whichever repository the caller may pull from.
    let anonymous = api.post(&format!("/v2/mount/any/blobs/uploads/?mount={digest}"));
    anonymous
        .await
        .is(201)
        .has("location", &format!("/v2/mount/any/blobs/{digest}"));
    // No source is no error: an upload begins.
    for fallback in [
        format!("mount={}&from=mount/from", sha256(b"none")),
        format!("mount={}", sha256(b"none")),
        format!("mount={config}&from=mount/none"),
        format!("mount={config}&from=NO/name"),
        "mount=nonsense&from=mount/from".to_owned(),
    ] {
        let begun = api.post(&format!("{uploads}?{fallback}")).await.is(202);
        begun.has("range", "0-0").lacks("docker-content-digest");
        let upload = begun.header("location");
        api.finish(upload, &sha256(b"pushed"), "pushed")
            .await
            .is(201);
    }
    // Naming a digest gives no right to read it.
    api.get(&format!("/v2/mount/third/blobs/{digest}"))
        .await
        .is(404);
    let stolen = api.put("mount/third", "v", IMAGE, image.manifest.clone());
    stolen.await.refused(400, "MANIFEST_BLOB_UNKNOWN");
}
