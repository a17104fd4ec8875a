//! `roadstead login` and `token create --docker-config`: what they leave is what other clients read.

use super::trial::{Setting, wait};
use crate::harness::cluster::{ADMIN_PASSWORD, Cluster, ROADSTEAD};
use crate::harness::layouts::Layout;
use crate::harness::tools::{Crane, Oras, Skopeo, Tool, go, patiently, said};
use crate::harness::user::User;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Three regions, and an image that only accounts may pull, the same in each of them.
async fn with_a_private_image() -> (Cluster, Setting) {
    let cluster = Cluster::start_with_accounts(3, &[]).await;
    let setting = Setting::make(&cluster);
    let admin = User::knowing(&cluster.registry(0), "admin", ADMIN_PASSWORD);
    admin
        .runs(|| Skopeo.push(&setting.app, &at(&cluster, 0)))
        .expect("push");
    (cluster, setting)
}

fn at(cluster: &Cluster, i: usize) -> String {
    format!("{}/team/app:1.0.0", cluster.registry(i))
}

fn servers(cluster: &Cluster) -> String {
    let server = |i| format!("http://{}", cluster.registry(i));
    (0..cluster.len()).map(server).collect::<Vec<_>>().join(",")
}

fn roadstead(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = patiently(ROADSTEAD);
    command
        .args(arguments)
        .args(["--server", &servers(cluster)])
        .env_remove("ROADSTEAD_TOKEN");
    command
}

fn pulls(tool: &dyn Tool, from: &str, image: &Layout) {
    let pulled = tool.pull(from, image);
    pulled.unwrap_or_else(|error| panic!("{}: {error}", tool.name()));
}

fn is_private(user: &User) {
    let file = user.docker_config().join("config.json");
    let mode = std::fs::metadata(file)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "config.json may be read by others");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_login_with_roadstead_serves_the_other_clients_too() {
    let (cluster, setting) = with_a_private_image().await;
    let user = User::new();
    user.write(&json!({"HttpHeaders": {"x-of-others": "stays"}, "auths": {"elsewhere": {}}}));
    let wrong = user.runs(|| {
        said(&mut roadstead(
            &cluster,
            &["login", "--user", "robot:wrong"],
        ))
    });
    assert!(wrong.is_err_and(|error| error.contains("password is wrong")));
    assert!(!user.config().contains(&cluster.registry(0)), "it was kept");
    for account in [&setting.robot, &setting.person] {
        let pair = format!("{}:{}", account.name, account.secret);
        user.runs(|| {
            said(&mut roadstead(&cluster, &["login", "--user", &pair])).expect("login");
            is_private(&user);
            for i in 0..3 {
                pulls(&Skopeo, &at(&cluster, i), &setting.app);
                pulls(&Crane, &at(&cluster, i), &setting.app);
                pulls(&Oras, &at(&cluster, i), &setting.app);
            }
            // Found by itself, where nothing says which file it is in.
            let inspect = ["inspect", "--tls-verify=false"];
            said(
                patiently("skopeo")
                    .env_remove("REGISTRY_AUTH_FILE")
                    .args(inspect)
                    .arg(format!("docker://{}", at(&cluster, 1))),
            )
            .expect("inspect");
            let me = said(&mut roadstead(&cluster, &["whoami", "-o", "json"])).expect("whoami");
            let me: Value = serde_json::from_str(&me).expect("JSON");
            assert_eq!(me["name"], *account.name);
        });
    }
    let kept: Value = serde_json::from_str(&user.config()).expect("JSON");
    assert_eq!(kept["HttpHeaders"]["x-of-others"], "stays");
    assert!(kept["auths"]["elsewhere"].is_object());
    user.runs(|| {
        said(&mut roadstead(&cluster, &["logout"])).expect("logout");
        let pulled = Crane.pull(&at(&cluster, 0), &setting.app);
        assert!(pulled.is_err(), "there was no login any more");
    });
    let kept: Value = serde_json::from_str(&user.config()).expect("JSON");
    assert_eq!(kept["auths"], json!({"elsewhere": {}}));
}

/// Keeps what it is given in a file for each registry beside itself.
const HELPER: &str = r#"#!/bin/sh
dir=$(dirname "$0")/kept
mkdir -p "$dir"
input=$(cat)
case $1 in
store) printf %s "$input" >"$dir/$(printf %s "$input" | sed 's/.*"ServerURL": *"\([^"]*\)".*/\1/')" ;;
get) cat "$dir/$input" 2>/dev/null || { echo "credentials not found in native keychain"; exit 1; } ;;
erase) rm "$dir/$input" ;;
*) exit 1 ;;
esac
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_login_goes_into_the_credential_helper_and_into_no_file() {
    let (cluster, setting) = with_a_private_image().await;
    let user = User::new();
    user.write(&json!({"credsStore": "fake"}));
    let helper = user.home().join("docker-credential-fake");
    std::fs::write(&helper, HELPER).expect("write helper");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&helper, mode).expect("make it a program");
    let old = std::env::var("PATH").expect("a path");
    let path = format!("{}:{old}", user.home().display());
    let pair = format!("robot:{}", setting.robot.secret);
    let kept = |i: usize| user.home().join("kept").join(cluster.registry(i));
    user.runs(|| {
        let roadstead =
            |arguments: &[&str]| said(roadstead(&cluster, arguments).env("PATH", &path));
        roadstead(&["login", "--user", &pair]).expect("login");
        assert_eq!(user.config(), json!({"credsStore": "fake"}).to_string());
        for i in 0..3 {
            let kept = std::fs::read_to_string(kept(i)).expect("the helper has it");
            assert!(kept.contains(&setting.robot.secret));
            said(
                go("crane")
                    .env("PATH", &path)
                    .args(["manifest", &at(&cluster, i)]),
            )
            .expect("crane asks the helper");
            let fetch = ["manifest", "fetch", "--plain-http", &at(&cluster, i)];
            said(go("oras").env("PATH", &path).args(fetch)).expect("oras asks the helper");
        }
        let me = roadstead(&["whoami"]).expect("whoami");
        assert!(me.contains("robot"), "{me}");
        roadstead(&["logout"]).expect("logout");
        assert!((0..3).all(|i| !kept(i).exists()), "it was kept");
        let crane = said(
            go("crane")
                .env("PATH", &path)
                .args(["manifest", &at(&cluster, 0)]),
        );
        assert!(crane.is_err(), "there was no login any more");
    });
}

/// As a cluster's secret is made of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_is_printed_as_the_document_that_clients_read() {
    let (cluster, setting) = with_a_private_image().await;
    let admin = format!("admin:{ADMIN_PASSWORD}");
    let create = ["token", "create", "printed", "--grant", "team/*:pull"];
    let create = [&create[..], &["--docker-config", "--user", &admin]].concat();
    let user = User::new();
    let printed = user
        .runs(|| said(&mut roadstead(&cluster, &create)))
        .expect("create");
    let document: Value = serde_json::from_str(&printed).expect("a document and nothing else");
    assert_eq!(document["auths"].as_object().expect("auths").len(), 3);
    let file = user.home().join("printed.json");
    std::fs::write(&file, &printed).expect("write");
    for i in 0..3 {
        wait(crate::harness::wait::eventually(
            "the region knows the new token",
            std::time::Duration::from_secs(10),
            || async { skopeo_inspects(&file, &at(&cluster, i)).ok() },
        ));
    }
    let other = User::new();
    other.write(&document);
    other.runs(|| {
        for i in 0..3 {
            pulls(&Crane, &at(&cluster, i), &setting.app);
        }
        let pushed = Crane.push(&setting.layout("more"), &at(&cluster, 0));
        assert!(pushed.is_err(), "it may pull only");
    });
}

fn skopeo_inspects(file: &Path, name: &str) -> Result<String, String> {
    let inspect = ["inspect", "--tls-verify=false", "--authfile"];
    said(
        patiently("skopeo")
            .args(inspect)
            .arg(file)
            .arg(format!("docker://{name}")),
    )
}
