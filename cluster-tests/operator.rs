//! The commands of an operator: status, verify, selftest, config check, and what `serve` refuses.

use crate::harness::client::Image;
use crate::harness::cluster::{Cluster, ROADSTEAD};
use crate::harness::images::run;
use serde_json::Value;
use std::process::{Command, Output};
use std::time::Duration;

fn roadstead(args: &[&str]) -> Output {
    run(Command::new(ROADSTEAD)
        .args(args)
        .env_remove("ROADSTEAD_SERVER"))
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_who_leads_what_is_missing_and_what_can_be_lost() {
    let mut cluster = Cluster::start(3).await;
    let image = Image::small("status");
    assert_eq!(
        cluster
            .client(0)
            .push("status/app", "v1", &image)
            .await
            .unwrap(),
        201
    );
    let servers = (0..3)
        .map(|i| format!("http://{}", cluster.registry(i)))
        .collect::<Vec<_>>()
        .join(",");
    let healthy = roadstead(&[
        "status",
        "--server",
        &servers,
        "--wait-healthy",
        "--timeout",
        "60s",
    ]);
    assert_eq!(healthy.status.code(), Some(0), "{}", stderr(&healthy));
    assert!(
        stdout(&healthy).starts_with("HEALTHY"),
        "{}",
        stdout(&healthy)
    );
    let json = roadstead(&["status", "--server", &servers, "-o", "json"]);
    let status: Value = serde_json::from_str(&stdout(&json)).expect("JSON");
    assert_eq!(status["healthy"], true);
    assert_eq!(status["writable"], true);
    assert_eq!(status["failure_tolerance"], 1);
    assert_eq!(status["under_replicated_blobs"], 0);
    for key in [
        "cluster_id",
        "lineage",
        "reasons",
        "leader",
        "term",
        "state_hash",
    ] {
        assert!(!status[key].is_null(), "{key}: {status}");
    }
    let regions = status["regions"].as_array().expect("regions");
    assert_eq!(regions.len(), 3);
    for region in regions {
        for key in [
            "name",
            "role",
            "state",
            "applied_index",
            "lag",
            "blobs_held",
            "blobs_missing",
            "bytes_held",
            "sole_copies",
            "version",
            "nodes",
        ] {
            assert!(!region[key].is_null(), "{key}: {region}");
        }
        assert_eq!(
            region["blobs_held"], 2,
            "three regions keep three copies: {region}"
        );
        assert_eq!(region["nodes"][0]["id"].as_str().expect("id").len(), 16);
    }
    // One region lost: said, and still exit 0.
    let lost = cluster.leader().await;
    cluster.kill(lost);
    let name = cluster.name(lost).to_owned();
    crate::harness::wait::eventually("status sees the loss", Duration::from_secs(30), || async {
        let json = roadstead(&["status", "--server", &servers, "-o", "json"]);
        assert_eq!(json.status.code(), Some(0), "{}", stderr(&json));
        let status: Value = serde_json::from_str(&stdout(&json)).ok()?;
        let region = status["regions"]
            .as_array()?
            .iter()
            .find(|r| r["name"] == name.as_str())?
            .clone();
        let seen = status["healthy"] == false
            && status["failure_tolerance"] == 0
            && region["state"] == "unreachable"
            && status["leader"].is_string();
        seen.then_some(())
    })
    .await;
    let waiting = roadstead(&[
        "status",
        "--server",
        &servers,
        "--wait-healthy",
        "--timeout",
        "1s",
    ]);
    assert_eq!(waiting.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_is_exit_3_and_says_what_to_do() {
    let output = roadstead(&["status", "--server", "http://127.0.0.1:9", "-o", "json"]);
    assert_eq!(output.status.code(), Some(3));
    let error: Value = serde_json::from_str(&stderr(&output)).expect("JSON on stderr");
    for key in ["code", "message", "next"] {
        assert!(error["error"][key].is_string(), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_and_selftest_pass_on_a_healthy_cluster() {
    let cluster = Cluster::start(3).await;
    for i in 0..5 {
        let image = Image::small(&format!("verify {i}"));
        assert_eq!(
            cluster
                .client(i % 3)
                .push("verify/app", "v", &image)
                .await
                .unwrap(),
            201
        );
    }
    let server = format!("http://{}", cluster.registry(1));
    let verify = roadstead(&["verify", "--metadata", "--server", &server]);
    assert_eq!(
        verify.status.code(),
        Some(0),
        "{}{}",
        stdout(&verify),
        stderr(&verify)
    );
    let selftest = roadstead(&["selftest", "--server", &server]);
    assert_eq!(
        selftest.status.code(),
        Some(0),
        "{}{}",
        stdout(&selftest),
        stderr(&selftest)
    );
}

#[test]
fn serve_refuses_what_it_cannot_do_safely() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().to_str().expect("utf-8");
    let base = ["serve", "--region", "r1", "--data-dir", path];
    let local = [
        "--registry-listen",
        "127.0.0.1:0",
        "--peer-listen",
        "127.0.0.1:0",
        "--ops-listen",
        "127.0.0.1:0",
    ];
    for (more, word) in [
        (vec!["--no-auth"], "--bootstrap"),
        (
            vec![
                "--no-auth",
                "--join",
                "127.0.0.1:1",
                "--peer-listen",
                "0.0.0.0:0",
                "--peer-advertise",
                "127.0.0.1:1",
            ],
            "no certificate",
        ),
        (
            vec!["--no-auth", "--bootstrap", "--join", "127.0.0.1:1"],
            "join",
        ),
    ] {
        let mut args = base.to_vec();
        if !more.iter().any(|word| word.ends_with("-listen")) {
            args.extend(local);
        }
        args.extend(&more);
        let output = roadstead(&args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(word),
            "{args:?} should name {word}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn config_check_names_the_line_and_the_nearest_key() {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("roadstead.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).expect("write config");
        roadstead(&["config", "check", file.to_str().expect("utf-8")])
    };
    let good = check(&format!(
        "[node]\ndata_dir = \"{}\"\nregion = \"eu-west\"\n[cluster]\nbootstrap = true\n",
        dir.path().join("data").display()
    ));
    assert_eq!(good.status.code(), Some(0), "{}", stderr(&good));
    let typo = check("[node]\nregion = \"eu-west\"\ndata_dri = \"/x\"\n");
    assert_eq!(typo.status.code(), Some(2));
    assert!(
        stderr(&typo).contains("data_dir") && stderr(&typo).contains('3'),
        "{}",
        stderr(&typo)
    );
    let value =
        check("[node]\nregion = \"EU West\"\ndata_dir = \"/x\"\n[cluster]\nbootstrap = true\n");
    assert_eq!(value.status.code(), Some(2));
    assert!(stderr(&value).contains("EU West"), "{}", stderr(&value));
    let neither = check(&format!(
        "[node]\nregion = \"a\"\ndata_dir = \"{}\"\n",
        dir.path().join("empty").display()
    ));
    assert_eq!(neither.status.code(), Some(2));
    assert!(
        stderr(&neither).contains("bootstrap"),
        "{}",
        stderr(&neither)
    );
}

#[test]
fn version_and_completions_are_there() {
    assert!(stdout(&roadstead(&["version"])).contains("0.1.0"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            stdout(&roadstead(&["completions", shell])).contains("roadstead"),
            "{shell}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ops_listener_says_alive_ready_and_started() {
    let mut cluster = Cluster::start(3).await;
    for i in 0..3 {
        for path in ["livez", "readyz", "startupz", "readyz?for=writes"] {
            let url = format!("http://{}/{path}", cluster.ops(i));
            assert_eq!(reqwest::get(&url).await.unwrap().status(), 200, "{url}");
        }
        for name in [
            "roadstead_held_requests",
            "roadstead_applied_index",
            "roadstead_leader_changes_total",
        ] {
            let text = reqwest::get(format!("http://{}/metrics", cluster.ops(i)))
                .await
                .unwrap()
                .text()
                .await
                .unwrap();
            assert!(text.contains(name), "{name} is not in {text}");
        }
    }
    // Without a quorum: alive, ready for reads, not for writes.
    cluster.kill(1);
    cluster.kill(2);
    let status = |path: &'static str| {
        let url = format!("http://{}/{path}", cluster.ops(0));
        async move { reqwest::get(url).await.unwrap().status().as_u16() }
    };
    crate::harness::wait::eventually("not ready for writes", Duration::from_secs(20), || async {
        (status("readyz?for=writes").await == 503).then_some(())
    })
    .await;
    assert_eq!(status("livez").await, 200);
    assert_eq!(status("readyz").await, 200);
    let healthz = cluster.client(0);
    assert_eq!(
        healthz.get("/healthz?for=pulls").await.unwrap().status(),
        200
    );
    assert_eq!(
        healthz.get("/healthz?for=pushes").await.unwrap().status(),
        503
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_metadata_store_ends_in_a_clear_error_and_the_others_go_on() {
    let mut cluster = Cluster::start(3).await;
    let image = Image::small("damaged");
    assert_eq!(
        cluster
            .client(0)
            .push("damaged/app", "v1", &image)
            .await
            .unwrap(),
        201
    );
    cluster.wait_healthy(Duration::from_secs(60)).await;
    cluster.stop(2);
    let store = cluster.data_dir(2).join("meta");
    let db = find_db(&store).expect("the store's file");
    let length = std::fs::metadata(&db).expect("stat").len();
    let file = std::fs::File::options()
        .write(true)
        .open(&db)
        .expect("open");
    use std::os::unix::fs::FileExt;
    file.write_all_at(
        &vec![0xa5; usize::try_from(length / 2).expect("fits")],
        length / 4,
    )
    .expect("damage it");
    cluster.allow_error("metadata store");
    cluster.run(2);
    // Either it refuses with the way out, or it starts and agrees with the others.
    crate::harness::wait::eventually("it refuses or agrees", Duration::from_secs(60), || async {
        let log = std::fs::read_to_string(cluster.log_file(2)).ok()?;
        let refused = log.contains("damaged") && log.contains("rejoin");
        let served = cluster
            .client(2)
            .pull("damaged/app", "v1", &image)
            .await
            .is_ok();
        (refused || served).then_some(())
    })
    .await;
    cluster
        .client(0)
        .pull("damaged/app", "v1", &image)
        .await
        .unwrap();
    assert_eq!(
        cluster
            .client(1)
            .push("damaged/app", "v2", &Image::small("after"))
            .await
            .unwrap(),
        201
    );
}

/// A volume restored from a copy made earlier, or a disk that dropped what it had confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_store_went_back_in_time_stops_and_says_why() {
    let mut cluster = Cluster::start(3).await;
    let before = Image::small("before");
    cluster
        .client(0)
        .push("back/app", "v1", &before)
        .await
        .unwrap();
    cluster.wait_healthy(Duration::from_secs(60)).await;
    cluster.stop(2);
    let meta = cluster.data_dir(2).join("meta");
    let copy = cluster.data_dir(2).join("meta-copy");
    let run = |program: &str, arguments: &[&std::path::Path]| {
        let status = std::process::Command::new(program)
            .arg("-r")
            .args(arguments)
            .status();
        assert!(status.expect("it runs").success(), "{program}");
    };
    run("cp", &[&meta, &copy]);
    cluster.run(2);
    cluster.wait_healthy(Duration::from_secs(60)).await;
    let after = Image::small("after");
    cluster
        .client(0)
        .push("back/app", "v2", &after)
        .await
        .unwrap();
    cluster
        .client(2)
        .pull("back/app", "v2", &after)
        .await
        .unwrap();
    cluster.stop(2);
    run("rm", &[&meta]);
    run("cp", &[&copy, &meta]);
    cluster.allow_error("metadata store of this node is damaged");
    cluster.run(2);
    crate::harness::wait::eventually("it stops", Duration::from_secs(60), || async {
        let log = std::fs::read_to_string(cluster.log_file(2)).ok()?;
        (log.contains("is damaged") && log.contains("rejoin")).then_some(())
    })
    .await;
    for region in [0, 1] {
        let client = cluster.client(region);
        client.pull("back/app", "v2", &after).await.unwrap();
    }
    let third = Image::small("third");
    let pushed = cluster.client(1).push("back/app", "v3", &third).await;
    assert_eq!(pushed.unwrap(), 201);
}

fn find_db(dir: &std::path::Path) -> Option<std::path::PathBuf> {
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir()
            && let Some(found) = find_db(&path)
        {
            return Some(found);
        }
        if path.file_name().is_some_and(|name| name == "db") && path.is_file() {
            return Some(path);
        }
    }
    None
}
