//! A secret that is planted everywhere is found nowhere but where it belongs.

use super::{bearer, call, is_done, pushed, user};
use crate::harness::cluster::{Cluster, ROADSTEAD};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const CANARY: &str = "canary-7f3a9c51d2";

/// Files under `dir` with one of the texts in them.
fn files_with(dir: &Path, texts: &[String], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_with(&path, texts, found);
        } else if let Ok(bytes) = std::fs::read(&path) {
            for text in texts {
                if bytes
                    .windows(text.len())
                    .any(|window| window == text.as_bytes())
                {
                    found.push(format!("{} ({})", path.display(), &text[..8]));
                }
            }
        }
    }
}

/// Files under `dir` that others than their owner may open.
fn files_for_others(dir: &Path, found: &mut Vec<String>) {
    use std::os::unix::fs::PermissionsExt;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        if mode & 0o077 != 0 {
            found.push(format!("{} {mode:o}", entry.path().display()));
        }
        if entry.path().is_dir() {
            files_for_others(&entry.path(), found);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_log_a_metric_an_error_or_a_file() {
    let debug = [("ROADSTEAD_LOG__LEVEL", "trace")];
    let mut cluster = Cluster::start_with_accounts(1, &debug).await;
    let admin = cluster.client(0);
    let anyone = admin.anonymous();
    pushed(&cluster, "acme/app").await;
    let password = format!("{CANARY}-password");
    user(&admin, "ann", &password, &["acme/*:pull,push"]).await;
    let ann = admin.logged_in("ann", &password);
    let made = json!({"kind": "token", "grants": [{"grant": "acme/*:pull"}]});
    let made = call(&admin, Method::PUT, "/api/v1/accounts/robot", &made).await;
    let secret = is_done(made)["secret"].as_str().unwrap().to_owned();
    let rotated = call(
        &admin,
        Method::POST,
        "/api/v1/accounts/robot/rotate",
        &json!({"keep_old_seconds": 60}),
    )
    .await;
    let rotated = is_done(rotated)["secret"].as_str().unwrap().to_owned();
    let short = bearer(&ann, "repository:acme/app:pull,push").await;
    let offline = ann.request(Method::GET, "/token?offline_token=true");
    let offline: Value = offline.send().await.unwrap().json().await.unwrap();
    let refresh = offline["refresh_token"].as_str().unwrap().to_owned();
    // Right and wrong, in each place that a credential can be put, also where it does not belong.
    let mut told = Vec::new();
    let wrong = format!("{CANARY}-wrong");
    for request in [
        ann.request(Method::GET, "/v2/acme/app/tags/list"),
        admin
            .logged_in("robot", &secret)
            .request(Method::GET, "/v2/acme/app/tags/list"),
        anyone
            .request(Method::GET, "/v2/acme/app/tags/list")
            .bearer_auth(&secret),
        anyone
            .request(Method::GET, "/v2/acme/app/tags/list")
            .bearer_auth(&short),
        anyone
            .request(Method::GET, "/v2/acme/app/tags/list")
            .bearer_auth(&wrong),
        admin.logged_in("ann", &wrong).request(Method::GET, "/v2/"),
        admin
            .logged_in("ann", &wrong)
            .request(Method::GET, "/api/v1/status"),
        ann.request(Method::DELETE, "/v2/acme/app/manifests/v1"),
        anyone.request(Method::POST, "/token").form(&[
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh.as_str()),
        ]),
        anyone.request(Method::POST, "/token").form(&[
            ("grant_type", "password"),
            ("username", "ann"),
            ("password", wrong.as_str()),
        ]),
        anyone.request(Method::POST, "/token").form(&[
            ("grant_type", "password"),
            ("username", "ann"),
            ("password", password.as_str()),
        ]),
        admin
            .request(Method::PUT, "/api/v1/accounts/ann/password")
            .json(&json!({"password": password, "passwort": 1})),
        admin
            .request(Method::PUT, "/api/v1/accounts/ann/password")
            .json(&json!({"password": CANARY[..6]})),
        admin
            .request(Method::PUT, "/api/v1/accounts/x")
            .json(&json!({"kind": CANARY.to_owned() + "-kind", "password": password})),
        anyone.request(
            Method::GET,
            &format!("/v2/acme/app/tags/list?token={wrong}"),
        ),
    ] {
        let answer = request.send().await.unwrap();
        if answer.status().is_success() {
            continue;
        }
        told.push(answer.text().await.unwrap());
    }
    assert!(told.len() > 6, "{told:?}");
    let secrets = [&password, &secret, &rotated, &short, &refresh, &wrong].map(String::clone);
    for answer in &told {
        let is_kind = answer.contains(&format!("{CANARY}-kind"));
        assert!(is_kind || !answer.contains(CANARY), "{answer}");
    }
    let metrics = reqwest::get(format!("http://{}/metrics", cluster.ops(0)))
        .await
        .unwrap();
    let metrics = metrics.text().await.unwrap();
    let audit = call(&admin, Method::GET, "/api/v1/audit", &Value::Null)
        .await
        .1
        .to_string();
    let accounts = call(&admin, Method::GET, "/api/v1/accounts", &Value::Null)
        .await
        .1
        .to_string();
    for text in [metrics, audit, accounts] {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{text}");
        }
        assert!(!text.contains("$argon2id$"), "{text}");
    }
    cluster.stop(0);
    let mut open = Vec::new();
    files_for_others(&cluster.data_dir(0), &mut open);
    assert_eq!(open, Vec::<String>::new());
    let mut found = Vec::new();
    files_with(cluster.dir(), &secrets, &mut found);
    assert_eq!(found, Vec::<String>::new());
    let everything = std::fs::read_to_string(cluster.log_file(0)).unwrap();
    assert!(
        everything.contains("TRACE") || everything.contains("DEBUG"),
        "the log is a wordy one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_lets_its_owner_in_without_a_password_and_nobody_dumps_the_memory() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::start_with_accounts(1, &[]).await;
    let socket = cluster.data_dir(0).join("admin.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let run = |words: &[&str]| {
        let mut command = Command::new(ROADSTEAD);
        command
            .args(words)
            .arg("--data-dir")
            .arg(cluster.data_dir(0));
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    };
    assert!(run(&["whoami"]).contains("local"));
    let mut command = Command::new("sh");
    let line = format!(
        "echo a-new-first-password | {ROADSTEAD} user password admin --new-password-stdin --data-dir {}",
        cluster.data_dir(0).display()
    );
    assert!(command.args(["-c", &line]).status().unwrap().success());
    let admin = cluster.client(0).logged_in("admin", "a-new-first-password");
    assert_eq!(admin.get("/v2/").await.unwrap().status(), 200);
    assert!(run(&["audit"]).contains("user-password"));
    // The kernel calls the process undumpable: its memory is root's, and there is no core.
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", cluster.pid(0))).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let words: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core}");
}
