//! Policies: what an operator sets for a prefix holds in every region, and what is not understood
//! changes nothing.

use crate::harness::client::{Client, Image, random_bytes, sha256};
use crate::harness::cluster::{Cluster, ROADSTEAD};
use crate::harness::images::run;
use crate::harness::wait::eventually;
use bytes::Bytes;
use reqwest::{Method, StatusCode};
use roadstead::oci::Digest;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// `roadstead policy …` through region `i`.
fn policy(cluster: &Cluster, i: usize, words: &[&str]) -> Output {
    let mut command = Command::new(ROADSTEAD);
    command.arg("policy").args(words);
    command.args(["--server", &format!("http://{}", cluster.registry(i))]);
    run(&mut command)
}

fn set(cluster: &Cluster, i: usize, words: &[&str]) -> String {
    let output = policy(cluster, i, words);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{words:?}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

async fn delete(client: &Client, repository: &str, reference: &str) -> (StatusCode, String) {
    let path = format!("/v2/{repository}/manifests/{reference}");
    let answer = client.request(Method::DELETE, &path).send().await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

async fn digest_of(client: &Client, repository: &str, tag: &str) -> String {
    let answer = client.manifest(repository, tag).await.unwrap();
    assert_eq!(answer.status(), 200);
    let digest = &answer.headers()["docker-content-digest"];
    digest.to_str().unwrap().to_owned()
}

/// An index of one manifest: its digest and bytes. An index may say of another what it likes.
fn index_of(digest: &str, size: usize) -> (String, String) {
    let named = json!([{"mediaType": INDEX, "digest": digest, "size": size}]);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": named}).to_string();
    (sha256(index.as_bytes()).to_string(), index)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_tag_is_never_moved() {
    let cluster = Cluster::start(3).await;
    let told = set(&cluster, 1, &["set", "team", "immutable=v*"]);
    assert!(told.contains("team: immutable=v*"), "{told}");
    assert!(
        told.contains("undo: roadstead policy unset team immutable"),
        "{told}"
    );
    let (first, second) = (Image::small("first"), Image::small("second"));
    let near = cluster.client(0);
    assert_eq!(near.push("team/app", "v1", &first).await.unwrap(), 201);
    for i in 0..3 {
        let client = cluster.client(i);
        assert_eq!(
            client.push("team/app", "v1", &first).await.unwrap(),
            201,
            "the same again"
        );
        for (digest, bytes) in &second.blobs {
            client
                .push_blob("team/app", digest, bytes.clone())
                .await
                .unwrap();
        }
        let refused = client
            .put_manifest("team/app", "v1", second.manifest.clone())
            .await
            .unwrap();
        assert_eq!(refused.status(), 403);
        let body: Value = refused.json().await.unwrap();
        assert_eq!(body["errors"][0]["code"], "DENIED");
        let message = body["errors"][0]["message"].as_str().unwrap();
        for part in [
            "v1",
            "immutable=v*",
            "roadstead policy unset 'team' immutable",
        ] {
            assert!(message.contains(part), "{message}");
        }
        // All or nothing: of several tags none is set.
        let path = format!("/v2/team/app/manifests/{}?tag=other&tag=v1", second.digest);
        let several = client
            .request(Method::PUT, &path)
            .body(second.manifest.clone());
        let several = several.header("content-type", crate::harness::client::IMAGE);
        assert_eq!(several.send().await.unwrap().status(), 403);
        assert_eq!(
            client.manifest("team/app", "other").await.unwrap().status(),
            404
        );
        for reference in ["v1", &first.digest.to_string()] {
            let (status, body) = delete(&client, "team/app", reference).await;
            assert_eq!(status, 403, "{reference}: {body}");
            assert!(body.contains("DENIED"), "{body}");
        }
        // A condition that is not met is said first.
        let path = "/v2/team/app/manifests/v1";
        let put = client
            .request(Method::PUT, path)
            .header("if-none-match", "*");
        let put = put.header("content-type", crate::harness::client::IMAGE);
        let put = put.body(second.manifest.clone()).send().await.unwrap();
        assert_eq!(put.status(), 412);
        client.pull("team/app", "v1", &first).await.unwrap();
    }
    assert_eq!(near.push("team/app", "latest", &first).await.unwrap(), 201);
    assert_eq!(
        near.push("team/app", "latest", &second).await.unwrap(),
        201,
        "no v, so it moves"
    );
    // What a released index names stays too, at the end of however many indexes.
    let third = Image::small("third");
    assert_eq!(near.push("team/app", "tmp", &third).await.unwrap(), 201);
    let (inner, inner_bytes) = index_of(&third.digest.to_string(), third.manifest.len());
    let (outer, outer_bytes) = index_of(&inner, inner_bytes.len());
    for (reference, bytes) in [(inner.as_str(), inner_bytes), ("v2", outer_bytes)] {
        let path = format!("/v2/team/app/manifests/{reference}");
        let put = near
            .request(Method::PUT, &path)
            .header("content-type", INDEX);
        assert_eq!(put.body(bytes).send().await.unwrap().status(), 201);
    }
    let far = cluster.client(1);
    for needed in [&outer, &inner, &third.digest.to_string()] {
        let (status, body) = delete(&far, "team/app", needed).await;
        assert_eq!(status, 403, "{needed}: {body}");
        assert!(body.contains("DENIED") && body.contains("tag v2"), "{body}");
    }
    near.pull("team/app", "tmp", &third).await.unwrap();
    assert_eq!(near.push("teams", "v1", &first).await.unwrap(), 201);
    assert_eq!(
        near.push("teams", "v1", &second).await.unwrap(),
        201,
        "another prefix"
    );
    let told = set(&cluster, 2, &["unset", "team", "immutable"]);
    assert!(
        told.contains("immutable=false counts, from default"),
        "{told}"
    );
    assert_eq!(near.push("team/app", "v1", &second).await.unwrap(), 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_writes_of_one_released_tag_one_wins_everywhere() {
    let cluster = Cluster::start(3).await;
    set(&cluster, 0, &["set", "*", "immutable=true"]);
    for round in 0..crate::harness::rounds(1) {
        let tag = format!("v{round}");
        let writes = (0..100).map(|n| {
            let (client, tag) = (cluster.client(n % 3), tag.clone());
            async move {
                // Twenty images, each written five times.
                let image = Image::small(&format!("race {round} {}", n % 20));
                let status = client.push("race/app", &tag, &image).await.unwrap();
                (status, image)
            }
        });
        let ended = futures_util::future::join_all(writes).await;
        let won: Vec<_> = ended.iter().filter(|(status, _)| *status == 201).collect();
        assert!(!won.is_empty());
        let winner = &won[0].1;
        assert!(
            won.iter().all(|(_, image)| image.digest == winner.digest),
            "two winners"
        );
        for (status, image) in &ended {
            let expected = if image.digest == winner.digest {
                201
            } else {
                403
            };
            assert_eq!(status.as_u16(), expected, "{}", image.digest);
        }
        for i in 0..3 {
            let client = cluster.client(i);
            assert_eq!(
                digest_of(&client, "race/app", &tag).await,
                winner.digest.to_string()
            );
            client.pull("race/app", &tag, winner).await.unwrap();
        }
        println!(
            "race: 100 writes, {} won with one digest, {} refused",
            won.len(),
            100 - won.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_for_sparse_images_takes_them_and_gives_no_right_to_what_they_name() {
    let cluster = Cluster::start(3).await;
    set(&cluster, 0, &["set", "mirror", "sparse=allow"]);
    let secret = Image::new("secret", vec![Bytes::from_static(b"only for the owner")]);
    let owner = cluster.client(1);
    assert_eq!(owner.push("owner/app", "v1", &secret).await.unwrap(), 201);
    let put = |client: Client, repository: &'static str| {
        let manifest = secret.manifest.clone();
        async move {
            client
                .put_manifest(repository, "v1", manifest)
                .await
                .unwrap()
        }
    };
    let refused = put(cluster.client(0), "other/app").await;
    assert_eq!(refused.status(), 400);
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["errors"][0]["code"], "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(body["errors"].as_array().unwrap().len(), 2);
    assert_eq!(put(cluster.client(0), "mirror/app").await.status(), 201);
    for i in 0..3 {
        let client = cluster.client(i);
        assert_eq!(
            digest_of(&client, "mirror/app", "v1").await,
            secret.digest.to_string()
        );
        for (digest, _) in &secret.blobs {
            let path = format!("/v2/mirror/app/blobs/{digest}");
            for method in [Method::GET, Method::HEAD] {
                let answer = client.request(method, &path).send().await.unwrap();
                assert_eq!(answer.status(), 404, "the name gives no right to it");
            }
            let mount = format!("/v2/thief/blobs/uploads/?mount={digest}&from=mirror/app");
            let answer = client.request(Method::POST, &mount).send().await.unwrap();
            assert_eq!(answer.status(), 202, "nothing to mount");
        }
    }
    // What is absent is not missing: nothing is short of copies.
    cluster.wait_healthy(Duration::from_secs(30)).await;
    let status = cluster.status(2).await.unwrap();
    assert_eq!(status["under_replicated_blobs"], 0);
    assert_eq!(status["regions"][0]["blobs_missing"], 0);
    // A layer of the wrong size is refused also here.
    let (digest, bytes) = &secret.blobs[1];
    let mut lie: Value = serde_json::from_slice(&secret.manifest).unwrap();
    lie["layers"][0]["size"] = json!(bytes.len() + 1);
    let client = cluster.client(2);
    assert_eq!(
        client
            .push_blob("mirror/lie", digest, bytes.clone())
            .await
            .unwrap(),
        201
    );
    let lie = Bytes::from(lie.to_string());
    assert_eq!(
        client
            .put_manifest("mirror/lie", "v1", lie)
            .await
            .unwrap()
            .status(),
        400
    );
    // Deleted, it leaves nothing behind.
    let (status, _) = delete(&client, "mirror/app", &secret.digest.to_string()).await;
    assert_eq!(status, 202);
    owner.pull("owner/app", "v1", &secret).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_blobs_of_a_cache_index_survive_the_loss_of_the_region_that_took_them() {
    let mut cluster = Cluster::start(3).await;
    let layers: Vec<Bytes> = (0..3).map(|n| random_bytes(n, 100_000)).collect();
    let config = Bytes::from_static(b"{\"layers\":[]}");
    let describe = |bytes: &Bytes, media_type: &str| json!({"mediaType": media_type, "digest": sha256(bytes).to_string(), "size": bytes.len()});
    let mut children: Vec<Value> = layers
        .iter()
        .map(|layer| describe(layer, "application/vnd.oci.image.layer.v1.tar+gzip"))
        .collect();
    children.push(describe(&config, "application/vnd.buildkit.cacheconfig.v0"));
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": children});
    let near = cluster.client(0);
    let put = |client: Client, index: Value| async move {
        let put = client.request(Method::PUT, "/v2/cache/app/manifests/main");
        let put = put.header("content-type", INDEX).body(index.to_string());
        put.send().await.unwrap().status().as_u16()
    };
    assert_eq!(
        put(near.clone(), index.clone()).await,
        400,
        "its blobs are not there"
    );
    for blob in layers.iter().chain([&config]) {
        assert_eq!(
            near.push_blob("cache/app", &sha256(blob), blob.clone())
                .await
                .unwrap(),
            201
        );
    }
    assert_eq!(put(near.clone(), index).await, 201);
    cluster.kill(0);
    for i in 1..3 {
        for blob in layers.iter().chain([&config]) {
            let answer = cluster
                .client(i)
                .blob("cache/app", &sha256(blob))
                .await
                .unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.bytes().await.unwrap(), *blob);
        }
    }
    // An index may still name manifests that are not there.
    let absent = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": crate::harness::client::IMAGE, "digest": sha256(b"absent").to_string(), "size": 7},
    ]});
    assert_eq!(put(cluster.client(1), absent).await, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_reach_every_region_and_survive_the_death_of_all() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    set(
        &cluster,
        follower,
        &["set", "team", "ack=1", "copies=2", "immutable=v*"],
    );
    set(&cluster, leader, &["set", "*", "sparse=refuse"]);
    set(&cluster, follower, &["set", "team/app", "sparse=allow"]);
    let expected = json!({
        "ack": {"value": 1, "from": "team"},
        "copies": {"value": 2, "from": "team"},
        "sparse": {"value": "allow", "from": "team/app"},
        "immutable": {"value": "v*", "from": "team"},
        "visibility": {"value": "private", "from": null},
    });
    let told_alike = |cluster: &Cluster| {
        for i in 0..3 {
            let shown = policy(cluster, i, &["show", "team/app/x", "-o", "json"]);
            let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
            assert_eq!(shown["effective"], expected, "{}", cluster.name(i));
            let all = policy(cluster, i, &["show", "-o", "json"]);
            let all: Value = serde_json::from_slice(&all.stdout).unwrap();
            let prefixes: Vec<_> = all["policies"]
                .as_array()
                .unwrap()
                .iter()
                .map(|p| p["prefix"].clone())
                .collect();
            assert_eq!(prefixes, ["*", "team", "team/app"]);
            assert_eq!(all["defaults"]["ack"], 2);
        }
    };
    told_alike(&cluster);
    for i in 0..3 {
        cluster.kill(i);
    }
    for i in 0..3 {
        cluster.run(i);
    }
    cluster.wait_ready(Duration::from_secs(60)).await;
    told_alike(&cluster);
    let mut verify = Command::new(ROADSTEAD);
    verify.args([
        "verify",
        "--metadata",
        "--server",
        &format!("http://{}", cluster.registry(0)),
    ]);
    assert_eq!(run(&mut verify).status.code(), Some(0));
    let shown = set(&cluster, follower, &["show", "team/app"]);
    assert!(shown.contains("sparse      allow    team/app"), "{shown}");
    let shown = set(&cluster, follower, &["show"]);
    assert!(
        shown.contains("team       ack=1 copies=2 immutable=v*"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_policy_does_not_take_is_refused_with_the_nearest_word_and_changes_nothing() {
    let cluster = Cluster::start(1).await;
    set(&cluster, 0, &["set", "team", "sparse=allow"]);
    let before = cluster.client(0).json("/api/v1/policies").await.unwrap();
    for (words, told) in [
        (
            vec!["set", "team", "imutable=true"],
            "did you mean immutable?",
        ),
        (vec!["set", "team", "ack=8"], "from 1 to 7"),
        (vec!["set", "team", "ack=two"], "from 1 to 7"),
        (
            vec!["set", "team", "copies=0", "sparse=refuse"],
            "from 1 to 7",
        ),
        (vec!["set", "team", "sparse=yes"], "refuse or allow"),
        (vec!["set", "team", "immutable=^v.*$"], "pattern"),
        (vec!["set", "team", "immutable="], "pattern"),
        (vec!["set", "team", "ack"], "KEY=VALUE"),
        (vec!["set", "team"], "KEY=VALUE"),
        (vec!["set", "Team", "ack=1"], "prefix"),
        (vec!["set", "team/", "ack=1"], "prefix"),
        (vec!["set", "team*", "ack=1"], "prefix"),
        (vec!["unset", "team", "sparce"], "did you mean sparse?"),
        (vec!["unset", "team"], "KEY"),
        (vec!["show", "a//b"], "prefix"),
    ] {
        let refused = policy(&cluster, 0, &words);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{words:?}: {error}");
        assert!(error.contains(told), "{words:?}: {error}");
    }
    let client = cluster.client(0);
    for (method, path, body) in [
        (Method::PUT, "team", "{\"ack\": 9}"),
        (Method::PUT, "team", "{\"ack\": 1, \"acks\": 1}"),
        (Method::PUT, "team", "{}"),
        (Method::PUT, "team", "not json"),
        (Method::PUT, "team", ""),
        (Method::PUT, "team%2f", "{\"ack\": 1}"),
        (Method::PUT, "%ff", "{\"ack\": 1}"),
        (Method::PUT, "Team", "{\"ack\": 1}"),
        (Method::DELETE, "team", ""),
        (Method::DELETE, "team?key=acks", ""),
        (Method::DELETE, "team?keys=ack", ""),
        (Method::GET, "te am", ""),
    ] {
        let path = format!("/api/v1/policies/{path}");
        let answer = client
            .request(method.clone(), &path)
            .body(body)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 400, "{method} {path} {body}");
        let told: Value = answer.json().await.unwrap();
        for field in ["code", "message", "next"] {
            assert!(told["error"][field].is_string(), "{told}");
        }
    }
    // However much comes, and whether or not it is looked at, the client sees why it is refused.
    for (path, status) in [
        ("policies/team", 400),
        ("policies/Team", 400),
        ("none", 404),
    ] {
        for size in [100 << 10, 32 << 20] {
            let path = format!("/api/v1/{path}");
            let huge = client.request(Method::PUT, &path).body(vec![b' '; size]);
            assert_eq!(huge.send().await.unwrap().status(), status, "{path} {size}");
        }
    }
    assert_eq!(client.json("/api/v1/policies").await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_decides_how_many_regions_a_push_waits_for() {
    let mut cluster = Cluster::start_with(3, &[("ROADSTEAD_TEST__REPAIR", "off")]).await;
    let told = set(&cluster, 0, &["set", "scratch", "ack=1", "copies=1"]);
    assert!(told.contains("warning: with ack=1"), "{told}");
    let told = set(&cluster, 0, &["set", "careful", "ack=3", "copies=2"]);
    assert!(told.contains("warning: copies=2 is below ack=3"), "{told}");
    let client = cluster.client(0);
    for (repository, regions) in [("scratch/app", 1), ("usual/app", 2), ("careful/app", 3)] {
        let image = Image::small(repository);
        assert_eq!(client.push(repository, "v1", &image).await.unwrap(), 201);
        for (digest, _) in &image.blobs {
            assert_eq!(holders(&cluster, digest), regions, "{repository}");
        }
    }
    // With a region down, whoever needs all three waits, and says so; the others go on.
    let lost = (cluster.leader().await + 1) % 3;
    let up = (lost + 1) % 3;
    cluster.kill(lost);
    let client = cluster.client(up);
    eventually(
        "a push is taken with a region down",
        Duration::from_secs(40),
        || async {
            let image = Image::small("with two");
            (client.push("scratch/app", "v2", &image).await.ok()? == 201).then_some(())
        },
    )
    .await;
    let image = Image::small("needs three");
    assert_eq!(client.push("careful/app", "v2", &image).await.unwrap(), 503);
    let told = set(&cluster, up, &["set", "careful", "ack=2"]);
    assert!(
        told.contains("undo: roadstead policy set careful ack=3"),
        "{told}"
    );
    assert_eq!(client.push("careful/app", "v2", &image).await.unwrap(), 201);
}

/// How many regions have the file of a blob.
fn holders(cluster: &Cluster, digest: &Digest) -> usize {
    let text = digest.to_string();
    let (algorithm, hex) = text.split_once(':').unwrap();
    let path = Path::new("blobs").join(algorithm).join(&hex[..2]).join(hex);
    let has_it = |i: &usize| cluster.data_dir(*i).join(&path).exists();
    (0..cluster.len()).filter(has_it).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_come_after_their_sparse_image_are_held_like_any_other() {
    let mut cluster = Cluster::start(3).await;
    set(&cluster, 0, &["set", "mirror", "sparse=allow"]);
    let image = Image::small("late");
    let client = cluster.client(0);
    let put = client
        .put_manifest("mirror/app", "v1", image.manifest.clone())
        .await
        .unwrap();
    assert_eq!(put.status(), 201);
    let gone = Image::new("late too", vec![image.blobs[1].1.clone()]);
    let put = client
        .put_manifest("mirror/app", "gone", gone.manifest.clone())
        .await
        .unwrap();
    assert_eq!(put.status(), 201);
    let (status, _) = delete(&client, "mirror/app", &gone.digest.to_string()).await;
    assert_eq!(status, 202);
    for (digest, bytes) in &image.blobs {
        let pushed = client
            .push_blob("mirror/app", digest, bytes.clone())
            .await
            .unwrap();
        assert_eq!(pushed, 201);
    }
    // Readable at once, in every region; held a while later, without another push.
    for i in 0..3 {
        cluster
            .client(i)
            .pull("mirror/app", "v1", &image)
            .await
            .unwrap();
    }
    eventually(
        "the blobs are on record",
        Duration::from_secs(60),
        || async {
            let status = cluster.status(1).await?;
            let held = |i: usize| status["regions"][i]["blobs_held"] == 2;
            (held(0) && held(1) && held(2)).then_some(())
        },
    )
    .await;
    cluster.kill(0);
    for i in 1..3 {
        cluster
            .client(i)
            .pull("mirror/app", "v1", &image)
            .await
            .unwrap();
    }
    let digest = gone.digest.to_string();
    let deleted = cluster
        .client(1)
        .manifest("mirror/app", &digest)
        .await
        .unwrap();
    assert_eq!(deleted.status(), 404, "what was deleted did not come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_prefix_are_kept_also_of_what_lies_there_already() {
    let cluster = Cluster::start(3).await;
    set(&cluster, 0, &["set", "*", "ack=1", "copies=1"]);
    let client = cluster.client(0);
    let images = ["prod/app", "products", "scratch"].map(|name| (name, Image::small(name)));
    for (name, image) in &images {
        assert_eq!(client.push(name, "v1", image).await.unwrap(), 201);
    }
    let status = cluster.status(1).await.unwrap();
    assert_eq!(
        status["under_replicated_blobs"], 0,
        "one copy is what was asked for"
    );
    set(&cluster, 1, &["set", "prod", "copies=3"]);
    let config = &images[0].1.blobs[0].0;
    eventually(
        "what lies there has three copies",
        Duration::from_secs(40),
        || async { (holders(&cluster, config) == 3).then_some(()) },
    )
    .await;
    cluster.wait_healthy(Duration::from_secs(30)).await;
    let later = Image::small("later");
    assert_eq!(client.push("prod/other", "v1", &later).await.unwrap(), 201);
    eventually(
        "what came later has three copies",
        Duration::from_secs(40),
        || async { (holders(&cluster, &later.blobs[1].0) == 3).then_some(()) },
    )
    .await;
    cluster.wait_healthy(Duration::from_secs(30)).await;
    for (_, image) in &images[1..] {
        for (digest, _) in &image.blobs {
            assert_eq!(holders(&cluster, digest), 1, "another prefix");
        }
    }
}
