//! What was taken away is gone, everywhere, at once; what was not, goes on.

use super::{bearer, call, is_done, pushed, token, user, with_bearer};
use crate::harness::client::Client;
use crate::harness::cluster::Cluster;
use crate::harness::wait::eventually;
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const MANIFEST: &str = "/v2/acme/app/manifests/v1";

/// Pulls until it is told to stop; what did not answer 200.
async fn pull_on(client: Client, stop: Arc<AtomicBool>, pulls: Arc<AtomicUsize>) -> Vec<String> {
    let mut failed = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match client.get(MANIFEST).await {
            Ok(answer) if answer.status() == 200 => {}
            Ok(answer) => failed.push(answer.status().to_string()),
            Err(error) => failed.push(error.to_string()),
        }
        pulls.fetch_add(1, Ordering::Relaxed);
    }
    failed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_refused_in_every_region_and_the_others_pull_on() {
    let cluster = Cluster::start_with_accounts(3, &[]).await;
    let admin = cluster.client(0);
    pushed(&cluster, "acme/app").await;
    let kept = token(&admin, "kept", &["acme/*:pull"]).await;
    let (stop, pulls) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    for i in 0..3 {
        let client = cluster.client(i).logged_in("kept", &kept);
        eventually("it is known there", Duration::from_secs(5), || async {
            (client.get(MANIFEST).await.ok()?.status() == 200).then_some(())
        })
        .await;
    }
    let load: Vec<_> = (0..3)
        .map(|i| {
            let client = cluster.client(i).logged_in("kept", &kept);
            roadstead::tasks::Tasks::new().spawn(pull_on(client, stop.clone(), pulls.clone()))
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for n in 0..10 {
        let name = format!("t{n}");
        let secret = token(&admin, &name, &["acme/*:pull"]).await;
        let clients: Vec<Client> = (0..3)
            .map(|i| cluster.client(i).logged_in(&name, &secret))
            .collect();
        let mut shorts = Vec::new();
        for client in &clients {
            eventually("it is known there", Duration::from_secs(5), || async {
                (client.get(MANIFEST).await.ok()?.status() == 200).then_some(())
            })
            .await;
            shorts.push(bearer(client, "repository:acme/app:pull").await);
        }
        let at = format!("/api/v1/accounts/{name}");
        is_done(call(&admin, Method::DELETE, &at, &Value::Null).await);
        let revoked = Instant::now();
        for (client, short) in clients.iter().zip(&shorts) {
            eventually("it is refused there", Duration::from_secs(5), || async {
                let by_secret = client.get(MANIFEST).await.ok()?.status();
                let by_token = with_bearer(client, Method::GET, MANIFEST, short).await;
                (by_secret == 401 && by_token == 401).then_some(())
            })
            .await;
        }
        slowest = slowest.max(revoked.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    for load in load {
        assert_eq!(load.await.unwrap(), Vec::<String>::new());
    }
    let pulls = pulls.load(Ordering::Relaxed);
    println!(
        "revoked: 10 tokens, refused in all regions after {slowest:?} at most; {pulls} other pulls, 0 failed"
    );
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(pulls > 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_a_rotated_secret_and_a_lost_grant_end_what_they_opened() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    pushed(&cluster, "acme/app").await;
    user(&admin, "ann", "the-first-password", &["acme/*:pull"]).await;
    let ann = admin.logged_in("ann", "the-first-password");
    let short = bearer(&ann, "repository:acme/app:pull").await;
    let status = |token: String| {
        let admin = admin.clone();
        async move {
            with_bearer(&admin, Method::GET, MANIFEST, &token)
                .await
                .as_u16()
        }
    };
    assert_eq!(status(short.clone()).await, 200);
    // By herself, with the password that she has.
    let path = "/api/v1/accounts/ann/password";
    let weak = call(&ann, Method::PUT, path, &json!({"password": "short"})).await;
    assert_eq!(weak.0, 400);
    is_done(
        call(
            &ann,
            Method::PUT,
            path,
            &json!({"password": "the-second-password"}),
        )
        .await,
    );
    assert_eq!(ann.get(MANIFEST).await.unwrap().status(), 401);
    assert_eq!(status(short).await, 401);
    let ann = admin.logged_in("ann", "the-second-password");
    let short = bearer(&ann, "repository:acme/app:pull").await;
    let none = "/api/v1/accounts/ann/grants?pattern=acme/*";
    is_done(call(&admin, Method::DELETE, none, &Value::Null).await);
    assert_eq!(
        status(short).await,
        401,
        "the token is good, its account may not any more"
    );
    assert_eq!(ann.get(MANIFEST).await.unwrap().status(), 403);

    let old = token(&admin, "ci", &["acme/*:pull"]).await;
    let rotate = |body: Value| {
        let admin = admin.clone();
        async move { is_done(call(&admin, Method::POST, "/api/v1/accounts/ci/rotate", &body).await) }
    };
    let by = |secret: &str| {
        let client = admin.logged_in("ci", secret);
        async move { client.get(MANIFEST).await.unwrap().status().as_u16() }
    };
    let new = rotate(json!({"keep_old_seconds": 3600})).await["secret"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!((by(&old).await, by(&new).await), (200, 200));
    let of_old = bearer(&admin.logged_in("ci", &old), "repository:acme/app:pull").await;
    let newest = rotate(json!({})).await["secret"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        (by(&old).await, by(&new).await, by(&newest).await),
        (401, 401, 200)
    );
    assert_eq!(status(of_old).await, 401, "made from a secret that is gone");
    is_done(call(&admin, Method::POST, "/api/v1/signing-keys", &Value::Null).await);
    let signed = bearer(&admin.logged_in("ci", &newest), "repository:acme/app:pull").await;
    is_done(call(&admin, Method::POST, "/api/v1/signing-keys", &Value::Null).await);
    assert_eq!(
        status(signed).await,
        200,
        "the key that signed it is retired, and known"
    );
    // One that leaked signs for whoever has it: it is dropped, with all that it signed.
    let signed = bearer(&admin.logged_in("ci", &newest), "repository:acme/app:pull").await;
    assert_eq!(status(signed.clone()).await, 200);
    let drop = "/api/v1/signing-keys?drop_old=true";
    let keys = is_done(call(&admin, Method::POST, drop, &Value::Null).await);
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
    assert_eq!(status(signed).await, 401);
    assert_eq!(by(&newest).await, 200);
}

/// A region that stands alone checks passwords, gives tokens and serves private images.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_stands_alone_knows_its_users() {
    let mut cluster = Cluster::start_with_accounts(3, &[]).await;
    let admin = cluster.client(0);
    pushed(&cluster, "acme/app").await;
    user(&admin, "ann", "the-right-password", &["acme/*:pull"]).await;
    let robot = token(&admin, "robot", &["acme/*:pull"]).await;
    let alone = cluster.client(2);
    for (name, secret) in [("ann", "the-right-password"), ("robot", robot.as_str())] {
        let client = alone.logged_in(name, secret);
        eventually("it is known there", Duration::from_secs(5), || async {
            (client.get(MANIFEST).await.ok()?.status() == 200).then_some(())
        })
        .await;
    }
    let before = bearer(
        &admin.logged_in("robot", &robot),
        "repository:acme/app:pull",
    )
    .await;
    // Two regions have the blobs when a push is acknowledged, and the third soon after.
    cluster.wait_healthy(Duration::from_secs(30)).await;
    cluster.kill(0);
    cluster.kill(1);
    for (name, secret) in [("ann", "the-right-password"), ("robot", robot.as_str())] {
        let client = alone.logged_in(name, secret);
        assert_eq!(client.get(MANIFEST).await.unwrap().status(), 200);
        let short = bearer(&client, "repository:acme/app:pull").await;
        assert_eq!(
            with_bearer(&alone, Method::GET, MANIFEST, &short).await,
            200
        );
        let image = client
            .manifest("acme/app", "v1")
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        let manifest: Value = serde_json::from_slice(&image).unwrap();
        let digest = manifest["config"]["digest"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(
            client.blob("acme/app", &digest).await.unwrap().status(),
            200
        );
    }
    assert_eq!(
        with_bearer(&alone, Method::GET, MANIFEST, &before).await,
        200,
        "of a region that is lost"
    );
    assert_eq!(
        alone
            .logged_in("ann", "wrong")
            .get(MANIFEST)
            .await
            .unwrap()
            .status(),
        401
    );
    assert_eq!(alone.anonymous().get(MANIFEST).await.unwrap().status(), 401);
    let other = alone
        .logged_in("ann", "the-right-password")
        .get("/v2/other/tags/list")
        .await;
    assert_eq!(other.unwrap().status(), 403);
}

/// Off by default; an operator who sets it would rather have no answer than one by what is too old.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_cut_off_for_too_long_serves_what_is_public_and_nothing_else() {
    let bound = [("ROADSTEAD_REGISTRY__AUTH_MAX_STALE", "1")];
    let mut cluster = Cluster::start_with_accounts(3, &bound).await;
    let admin = cluster.client(0);
    pushed(&cluster, "acme/app").await;
    pushed(&cluster, "open/app").await;
    super::visibility(&admin, "open", "public").await;
    user(&admin, "ann", "the-right-password", &["*:pull"]).await;
    let ann = cluster.client(2).logged_in("ann", "the-right-password");
    let public = "/v2/open/app/manifests/v1";
    let status = |path: &'static str| {
        let ann = ann.clone();
        async move { ann.get(path).await.unwrap().status().as_u16() }
    };
    eventually("it is known there", Duration::from_secs(5), || async {
        (status(MANIFEST).await == 200 && status(public).await == 200).then_some(())
    })
    .await;
    cluster.kill(0);
    cluster.kill(1);
    eventually("it is too old", Duration::from_secs(20), || async {
        (status(MANIFEST).await == 503).then_some(())
    })
    .await;
    assert_eq!(status(public).await, 200);
    let token = bearer(&ann.anonymous(), "repository:open/app:pull").await;
    assert_eq!(with_bearer(&ann, Method::GET, public, &token).await, 200);
}
