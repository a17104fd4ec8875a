//! Two tenants on one registry: what one has, the other learns nothing of.

use super::{pushed, user};
use crate::harness::client::{Client, Image, sha256};
use crate::harness::cluster::Cluster;
use bytes::Bytes;
use reqwest::{Method, Response};
use serde_json::Value;

const PASSWORD: &str = "a-password-of-its-own";

async fn two_tenants(cluster: &Cluster) -> (Client, Client, Image) {
    let admin = cluster.client(0);
    user(&admin, "ann", PASSWORD, &["ann/*:admin"]).await;
    user(&admin, "eve", PASSWORD, &["eve/*:admin"]).await;
    let image = pushed(cluster, "ann/app").await;
    pushed(cluster, "eve/own").await;
    (
        admin.logged_in("ann", PASSWORD),
        admin.logged_in("eve", PASSWORD),
        image,
    )
}

/// All of an answer that could tell something, but what differs by itself.
async fn told(answer: Response) -> (u16, Vec<(String, String)>, String) {
    let status = answer.status().as_u16();
    let own = ["date", "roadstead-request", "roadstead-index"];
    let mut headers: Vec<(String, String)> = answer
        .headers()
        .iter()
        .filter(|(name, _)| !own.contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort();
    (status, headers, answer.text().await.unwrap())
}

/// CVE-2019-19030 and CVE-2022-46463 (what exists showed in the answers).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_19030_what_another_has_and_what_nobody_has_look_the_same() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let (_, eve, image) = two_tenants(&cluster).await;
    let (there, nowhere) = (image.blobs[1].0.clone(), sha256(b"nobody has this"));
    let digest = image.digest.clone();
    for (method, one, other) in [
        (
            Method::GET,
            "/v2/ann/app/tags/list".to_owned(),
            "/v2/ann/app".replace("app", "nothing") + "/tags/list",
        ),
        (
            Method::GET,
            format!("/v2/ann/app/manifests/{digest}"),
            format!("/v2/ann/app/manifests/{nowhere}"),
        ),
        (
            Method::HEAD,
            "/v2/ann/app/manifests/v1".to_owned(),
            "/v2/ann/app/manifests/v2".to_owned(),
        ),
        (
            Method::GET,
            format!("/v2/ann/app/blobs/{there}"),
            format!("/v2/ann/app/blobs/{nowhere}"),
        ),
        (
            Method::HEAD,
            format!("/v2/eve/own/blobs/{there}"),
            format!("/v2/eve/own/blobs/{nowhere}"),
        ),
        (
            Method::GET,
            format!("/v2/eve/own/blobs/{there}"),
            format!("/v2/eve/own/blobs/{nowhere}"),
        ),
        (
            Method::GET,
            format!("/v2/eve/own/manifests/{digest}"),
            format!("/v2/eve/own/manifests/{nowhere}"),
        ),
        (
            Method::GET,
            format!("/v2/eve/own/referrers/{digest}"),
            format!("/v2/eve/own/referrers/{nowhere}"),
        ),
        (
            Method::DELETE,
            format!("/v2/eve/own/blobs/{there}"),
            format!("/v2/eve/own/blobs/{nowhere}"),
        ),
        (
            Method::DELETE,
            format!("/v2/eve/own/manifests/{digest}"),
            format!("/v2/eve/own/manifests/{nowhere}"),
        ),
        (
            Method::POST,
            format!("/v2/eve/own/blobs/uploads/?mount={there}&from=ann/app"),
            format!("/v2/eve/own/blobs/uploads/?mount={nowhere}&from=ann/app"),
        ),
        (
            Method::POST,
            format!("/v2/eve/own/blobs/uploads/?mount={there}"),
            format!("/v2/eve/own/blobs/uploads/?mount={nowhere}"),
        ),
        (
            Method::POST,
            format!("/v2/eve/own/blobs/uploads/?mount={there}&from=ann/app"),
            format!("/v2/eve/own/blobs/uploads/?mount={there}&from=ann/nothing"),
        ),
    ] {
        let one_told = told(eve.request(method.clone(), &one).send().await.unwrap()).await;
        let other_told = told(eve.request(method.clone(), &other).send().await.unwrap()).await;
        // The names that were asked for come back; upload sessions have ids of their own.
        let plain = |(status, headers, body): (u16, Vec<(String, String)>, String)| {
            let body = body
                .replace(&there.to_string(), "D")
                .replace(&nowhere.to_string(), "D")
                .replace(&digest.to_string(), "D")
                .replace("ann/nothing", "ann/app");
            let headers: Vec<_> = headers
                .into_iter()
                .filter(|(name, _)| {
                    !["location", "docker-upload-uuid", "content-length"].contains(&name.as_str())
                })
                .map(|(name, value)| (name, value.replace("ann/nothing", "ann/app")))
                .collect();
            (status, headers, body)
        };
        assert_eq!(plain(one_told), plain(other_told), "{method} {one}");
    }
}

/// And take as long: medians of many, in turns, within what two of the same differ by.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_has_and_what_nobody_has_take_as_long() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let (_, eve, image) = two_tenants(&cluster).await;
    let (there, nowhere) = (image.blobs[1].0.clone(), sha256(b"nobody has this"));
    for (what, one, other) in [
        (
            "a blob that another has",
            format!("/v2/eve/own/blobs/{there}"),
            format!("/v2/eve/own/blobs/{nowhere}"),
        ),
        (
            "a repository that another has",
            "/v2/ann/app/tags/list".to_owned(),
            "/v2/ann/xyz/tags/list".to_owned(),
        ),
    ] {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..300 {
            for (path, times) in [&one, &other].into_iter().zip(&mut times) {
                let began = std::time::Instant::now();
                drop(eve.get(path).await.unwrap().bytes().await.unwrap());
                times.push(began.elapsed());
            }
        }
        let medians = times.map(|mut times| {
            times.sort();
            times[times.len() / 2]
        });
        println!("tenants: {what}: {medians:?}");
        let (least, most) = (medians[0].min(medians[1]), medians[0].max(medians[1]));
        assert!(most < least * 2, "{what}: {medians:?}");
    }
}

/// CVE-2024-39897 (a mount from anywhere, by a cache of all digests) and CVE-2026-35172 (a blob that was
/// deleted came back so).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_39897_naming_a_digest_gives_no_right_to_it() {
    let cluster = Cluster::start_with_accounts(2, &[]).await;
    let (ann, eve, image) = two_tenants(&cluster).await;
    let layer = image.blobs[1].0.clone();
    let eve_2 = cluster.client(1).logged_in("eve", PASSWORD);
    for client in [&eve, &eve_2] {
        for from in ["&from=ann/app", ""] {
            let path = format!("/v2/eve/own/blobs/uploads/?mount={layer}{from}");
            let mounted = client.request(Method::POST, &path).send().await.unwrap();
            assert_eq!(mounted.status(), 202, "an upload is begun instead");
        }
        assert_eq!(client.blob("eve/own", &layer).await.unwrap().status(), 404);
        let named = client
            .put_manifest("eve/own", "stolen", image.manifest.clone())
            .await
            .unwrap();
        assert_eq!(named.status(), 400);
        let body: Value = named.json().await.unwrap();
        assert_eq!(body["errors"][0]["code"], "MANIFEST_BLOB_UNKNOWN");
        assert_eq!(client.blob("eve/own", &layer).await.unwrap().status(), 404);
    }
    // Ann mounts her own, in the other region too.
    let path = format!("/v2/ann/other/blobs/uploads/?mount={layer}&from=ann/app");
    let mounted = ann.request(Method::POST, &path).send().await.unwrap();
    assert_eq!(mounted.status(), 201);
    // With the bytes Eve has it, of her own right: they are the same.
    let bytes: Bytes = image.blobs[1].1.clone();
    assert_eq!(eve.push_blob("eve/own", &layer, bytes).await.unwrap(), 201);
    assert_eq!(eve.blob("eve/own", &layer).await.unwrap().status(), 200);
}

/// CVE-2026-32589 (uploads of others could be read and cancelled).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_32589_an_upload_is_of_who_began_it_and_where() {
    let cluster = Cluster::start_with_accounts(2, &[]).await;
    let (ann, eve, _) = two_tenants(&cluster).await;
    let admin = cluster.client(0);
    user(&admin, "bob", PASSWORD, &["ann/*:pull,push"]).await;
    let bob = admin.logged_in("bob", PASSWORD);
    let begun = ann
        .request(Method::POST, "/v2/ann/app/blobs/uploads/")
        .send()
        .await
        .unwrap();
    let location = begun.headers()["location"].to_str().unwrap().to_owned();
    let appended = ann
        .request(Method::PATCH, &location)
        .body("abc")
        .send()
        .await
        .unwrap();
    assert_eq!(appended.status(), 202);
    let elsewhere = location.replace("/ann/app/", "/eve/own/");
    let there = cluster.client(1);
    for (who, client, place, status) in [
        ("eve, as it is", &eve, &location, 403),
        ("eve, under her own name", &eve, &elsewhere, 404),
        ("bob, who may push there", &bob, &location, 404),
        (
            "bob, in the other region",
            &there.logged_in("bob", PASSWORD),
            &location,
            404,
        ),
        (
            "ann, under another name",
            &ann,
            &location.replace("/app/", "/other/"),
            404,
        ),
    ] {
        for method in [Method::GET, Method::PATCH, Method::PUT, Method::DELETE] {
            let path = match method {
                Method::PUT => format!("{place}?digest={}", sha256(b"abcd")),
                _ => place.clone(),
            };
            let answer = client
                .request(method.clone(), &path)
                .body("d")
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status().as_u16(), status, "{who} {method}");
        }
    }
    // It is as Ann left it; she ends it, in whatever region.
    let ann_2 = there.logged_in("ann", PASSWORD);
    let put = ann_2
        .request(Method::PUT, &location)
        .query(&[("digest", sha256(b"abc").to_string())]);
    assert_eq!(put.send().await.unwrap().status(), 201);
}
