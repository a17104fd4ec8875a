//! Guessed passwords: slowed down, told nothing, and nobody else held up.

use super::{call, token, user};
use crate::harness::client::Client;
use crate::harness::cluster::Cluster;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::time::{Duration, Instant};

async fn try_login(client: &Client, name: &str, password: &str) -> (StatusCode, Duration) {
    let began = Instant::now();
    let answer = client.logged_in(name, password).get("/v2/").await.unwrap();
    (answer.status(), began.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slowed_and_does_not_lock_out_whoever_is_logged_in() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    user(&admin, "ann", "the-right-password", &["acme/*:pull"]).await;
    let robot = token(&admin, "robot", &["acme/*:pull"]).await;
    assert_eq!(try_login(&admin, "ann", "the-right-password").await.0, 200);
    let mut took = Vec::new();
    for n in 0..6 {
        let (status, time) = try_login(&admin, "ann", &format!("guess-{n}")).await;
        assert_eq!(status, 401);
        took.push(time);
    }
    // 250 and 500 ms at least for the fifth and the sixth, whatever the machine.
    assert!(took[4] >= Duration::from_millis(250), "{took:?}");
    assert!(took[5] >= Duration::from_millis(500), "{took:?}");
    // Who was right a moment ago, and a machine with a token, are not slowed.
    let (status, time) = try_login(&admin, "ann", "the-right-password").await;
    assert_eq!(status, 200);
    assert!(time < took[5], "{time:?} {took:?}");
    assert_eq!(try_login(&admin, "robot", &robot).await.0, 200);
    // A machine that goes on with a dead secret slows nobody, itself neither.
    for _ in 0..30 {
        let dead = robot.replace("rst_", "rst_A");
        assert_eq!(try_login(&admin, "robot", &dead).await.0, 401);
    }
    user(&admin, "bob", "another-right-password", &[]).await;
    let (status, time) = try_login(&admin, "bob", "another-right-password").await;
    assert_eq!(status, 200);
    assert!(time < Duration::from_secs(5), "{time:?}");
    // Each failure is in the audit log, with no password in it.
    let log = call(&admin, Method::GET, "/api/v1/audit", &Value::Null)
        .await
        .1;
    let events = log["events"].as_array().unwrap();
    let failed = events
        .iter()
        .filter(|e| e["action"] == "login" && e["who"] == "ann");
    assert_eq!(failed.count(), 6, "{log}");
    assert!(!log.to_string().contains("guess-"), "{log}");
}

/// CVE-2023-20902 (the time told whether there is such a robot).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2023_20902_a_name_that_nobody_has_takes_as_long_as_a_wrong_password() {
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let admin = cluster.client(0);
    user(&admin, "ann", "the-right-password", &[]).await;
    token(&admin, "robot", &["acme/*:pull"]).await;
    let mut told = Vec::new();
    let mut medians = Vec::new();
    for kind in ["ann", "robot", "nobody"] {
        let mut times = Vec::new();
        // Three of each name are free of any wait; so names that differ, where there may be any.
        for n in 0..3 {
            let (status, time) = try_login(&admin, kind, &format!("wrong-{n}")).await;
            assert_eq!(status, 401);
            times.push(time);
        }
        times.sort();
        medians.push(times[1]);
        let answer = admin.logged_in(kind, "wrong").get("/v2/").await.unwrap();
        let mut body: Value = answer.json().await.unwrap();
        body["errors"][0]["detail"] = Value::Null;
        told.push(body);
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0], told[2]);
    // A slow hash each time: its cost, not the noise, is what one sees.
    let least = medians.iter().min().unwrap();
    let most = medians.iter().max().unwrap();
    println!("guessing: user, token, nobody: {medians:?}");
    assert!(
        *least > Duration::from_millis(5),
        "no hash was made: {medians:?}"
    );
    assert!(*most < *least * 4, "{medians:?}");
}

/// CVE-2026-4404 (everybody knew the first password).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_4404_the_first_password_is_random_and_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::start_with_accounts(1, &[("ROADSTEAD_ADMIN_PASSWORD", "")]).await;
    let file = cluster.data_dir(0).join("admin-password");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let password = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    assert_eq!(password.len(), 32);
    let anyone = cluster.client(0).anonymous();
    assert_eq!(try_login(&anyone, "admin", &password).await.0, 200);
    for known in ["admin", "password", "Harbor12345", "roadstead", ""] {
        assert_eq!(try_login(&anyone, "admin", known).await.0, 401, "{known}");
    }
}
