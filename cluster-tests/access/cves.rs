//! What other registries got wrong, each by its name; those about one thing are beside its tests.

use super::{call, is_done, pushed, user};
use crate::harness::client::{IMAGE, Image, sha256};
use crate::harness::cluster::Cluster;
use crate::hostile::wire::ask;
use reqwest::Method;
use serde_json::{Value, json};

/// What comes back on a connection of its own.
async fn send(address: &str, bytes: &[u8]) -> String {
    String::from_utf8_lossy(&ask(address, bytes, "raw").await).into_owned()
}

/// distribution: a huge `n` made the catalog take all memory.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2023_2253_a_huge_page_is_not_made_room_for() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    pushed(&cluster, "a").await;
    for n in [
        "1000000000",
        "9223372036854775807",
        "18446744073709551615",
        "99999999999999999999999999",
    ] {
        for path in ["/v2/_catalog", "/v2/a/tags/list"] {
            let answer = admin.get(&format!("{path}?n={n}")).await.unwrap();
            assert_eq!(answer.status(), 200, "{path} {n}");
        }
    }
    for n in ["-1", "1e9"] {
        let answer = admin.get(&format!("/v2/_catalog?n={n}")).await.unwrap();
        assert_eq!(answer.status(), 400, "{n}");
    }
}

/// distribution: a manifest of any size was read into memory.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2017_11468_a_manifest_of_any_size_is_not_read() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    let huge = vec![b' '; (4 << 20) + 1];
    let answer = admin.put_manifest("a", "v1", huge.into()).await.unwrap();
    assert_eq!(answer.status(), 413);
}

/// distribution, zot, Nexus: a way out of the directory.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_4956_no_path_leads_out_of_the_registry() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    pushed(&cluster, "a").await;
    let address = cluster.registry(0);
    let login = "Authorization: Basic YWRtaW46dGhlLWZpcnN0LXBhc3N3b3Jk\r\n";
    for path in [
        "/%2F%2F%2F%2F..%2F..%2Fetc/passwd",
        "//..//../etc/passwd",
        "/v2/../../etc/passwd",
        "/v2/%2e%2e/%2e%2e/etc/passwd/manifests/v1",
        "/v2/a/blobs/sha256:../../../../etc/passwd",
        "/v2/a/blobs/..%2f..%2fmeta",
        "/v2/a/manifests/..%2f..%2f..%2fadmin-password",
        "/v2/a/blobs/uploads/..%2f..%2fadmin-password",
        "/v2/a/blobs/uploads/../../../admin-password",
        "/v2/a\0/tags/list",
        "/api/v1/policies/../accounts",
        "/api/v1/policies/..%2f..%2fetc",
        "/api/v1/accounts/..%2f..%2fadmin-password",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{login}Connection: close\r\n\r\n");
        let answer = send(&address, request.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["400", "404"].contains(&status), "{path}: {answer}");
        assert!(!answer.contains("root:"), "{path}: {answer}");
    }
    assert_eq!(admin.get("/v2/a/tags/list").await.unwrap().status(), 200);
}

/// The specification: one manifest that two clients read as two things.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_41190_a_manifest_has_one_reading() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    let image = pushed(&cluster, "a").await;
    let mut both: Value = serde_json::from_slice(&image.manifest).unwrap();
    both["manifests"] = json!([]);
    let answer = admin
        .put_manifest("a", "both", both.to_string().into())
        .await
        .unwrap();
    assert_eq!(answer.status(), 400);
    let index = "application/vnd.oci.image.index.v1+json";
    let other = admin
        .request(Method::PUT, "/v2/a/manifests/other")
        .header("content-type", index);
    assert_eq!(
        other
            .body(image.manifest.clone())
            .send()
            .await
            .unwrap()
            .status(),
        400
    );
}

/// containerd: credentials went to wherever `urls` of a layer led. We follow none, and answer with the
/// bytes that were pushed and no redirect.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2020_15157_urls_of_layers_are_never_followed() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image = Image::small("urls");
    assert_eq!(admin.push("a", "v1", &image).await.unwrap(), 201);
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let foreign = sha256(b"somewhere else");
    let url = format!("http://{}/layer", listener.local_addr().unwrap());
    let layers = manifest["layers"].as_array_mut().unwrap();
    layers.push(json!({
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "digest": foreign.to_string(), "size": 14, "urls": [url],
    }));
    let put = admin
        .put_manifest("a", "foreign", manifest.to_string().into())
        .await
        .unwrap();
    assert!(
        [201, 400].contains(&put.status().as_u16()),
        "{}",
        put.status()
    );
    assert_eq!(admin.blob("a", &foreign).await.unwrap().status(), 404);
    let asked = tokio::time::timeout(std::time::Duration::from_millis(500), listener.accept());
    assert!(asked.await.is_err(), "somebody followed it");
}

/// Harbor: who ran a project could change what must not change.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_31669_an_admin_of_a_prefix_does_not_lift_what_is_immutable() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    pushed(&cluster, "acme/app").await;
    user(&admin, "owner", "a-long-password", &["acme/*:admin"]).await;
    let owner = admin.logged_in("owner", "a-long-password");
    let immutable = json!({"immutable": "v*"});
    is_done(call(&admin, Method::PUT, "/api/v1/policies/acme", &immutable).await);
    for (method, path, body) in [
        (
            Method::PUT,
            "/api/v1/policies/acme",
            json!({"immutable": false}),
        ),
        (
            Method::PUT,
            "/api/v1/policies/acme",
            json!({"immutable": "false", "visibility": "public"}),
        ),
        (
            Method::PUT,
            "/api/v1/policies/acme/app",
            json!({"immutable": "false"}),
        ),
        (
            Method::DELETE,
            "/api/v1/policies/acme?key=immutable",
            Value::Null,
        ),
        (
            Method::DELETE,
            "/api/v1/policies/acme?key=visibility&key=immutable",
            Value::Null,
        ),
        (Method::PUT, "/api/v1/policies/acme", json!({"ack": 1})),
        (
            Method::PUT,
            "/api/v1/policies/other",
            json!({"visibility": "public"}),
        ),
        (
            Method::PUT,
            "/api/v1/policies/*",
            json!({"visibility": "public"}),
        ),
    ] {
        let (status, told) = call(&owner, method.clone(), path, &body).await;
        assert_eq!(status, 403, "{method} {path} {told}");
    }
    let other = Image::small("another");
    for (digest, bytes) in &other.blobs {
        assert_eq!(
            owner
                .push_blob("acme/app", digest, bytes.clone())
                .await
                .unwrap(),
            201
        );
    }
    let moved = owner
        .put_manifest("acme/app", "v1", other.manifest)
        .await
        .unwrap();
    assert_eq!(moved.status(), 403);
    let gone = owner
        .request(Method::DELETE, "/v2/acme/app/manifests/v1")
        .header("accept", IMAGE);
    assert_eq!(gone.send().await.unwrap().status(), 403);
    let visible = json!({"visibility": "public"});
    is_done(call(&owner, Method::PUT, "/api/v1/policies/acme", &visible).await);
}

/// distribution: a blob that was deleted could be read again, by what another repository had.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_35172_a_deleted_blob_stays_deleted_where_it_was_deleted() {
    let cluster = Cluster::start_with_accounts(2, &[]).await;
    let admin = cluster.client(0);
    let image = Image::small("shared");
    for repository in ["a", "b"] {
        assert_eq!(admin.push(repository, "v1", &image).await.unwrap(), 201);
    }
    let (layer, manifest) = (image.blobs[1].0.clone(), image.digest.clone());
    for path in [
        format!("/v2/a/manifests/{manifest}"),
        format!("/v2/a/blobs/{layer}"),
    ] {
        let gone = admin.request(Method::DELETE, &path).send().await.unwrap();
        assert_eq!(gone.status(), 202);
    }
    for i in 0..2 {
        let client = cluster.client(i);
        assert_eq!(client.blob("b", &layer).await.unwrap().status(), 200);
        assert_eq!(client.blob("a", &layer).await.unwrap().status(), 404);
    }
}

/// BBOT: a scanner trusted whatever realm a registry named. Ours names its own origin and no other.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_12566_the_realm_is_where_the_client_is_already() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let address = cluster.registry(0);
    for host in ["registry.example", "registry.example:8443", "[::1]:5000"] {
        let request = format!("GET /v2/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = send(&address, request.as_bytes()).await;
        assert!(
            answer.contains(&format!("realm=\"http://{host}/token\"")),
            "{answer}"
        );
    }
    let request = "GET /v2/ HTTP/1.1\r\nHost: a\",x=\"b\r\nConnection: close\r\n\r\n";
    let answer = send(&address, request.as_bytes()).await;
    assert!(!answer.contains("x=\"b"), "{answer}");
}
