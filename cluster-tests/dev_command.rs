//! `roadstead dev` as the README's first command and as a drill partner: what it prints works,
//! what it must refuse it refuses, and nothing is left running.

use crate::harness::client::Client;
use crate::harness::cluster::ROADSTEAD;
use crate::harness::dev::{Dev, free_base_port};
use crate::harness::images::{self, must, run};
use crate::harness::wait::eventually;
use rustix::process::Signal;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn dev_command(dir: &Path, words: &[&str]) -> std::process::Output {
    run(Command::new(ROADSTEAD)
        .arg("dev")
        .args(words)
        .arg("--data-dir")
        .arg(dir))
}

fn process_exists(pid: &Value) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn host(url: &Value) -> String {
    url.as_str()
        .expect("a URL")
        .trim_start_matches("http://")
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_regions_are_ready_and_one_can_be_lost_and_come_back() {
    let dir = tempfile::tempdir().expect("temp dir");
    let base = free_base_port();
    let mut dev = Dev::start(dir.path(), base, 3);
    let regions = dev.ready["regions"].as_array().expect("regions").clone();
    assert_eq!(regions.len(), 3);
    for (i, region) in regions.iter().enumerate() {
        assert_eq!(region["name"], format!("r{}", i + 1));
        assert_eq!(
            host(&region["registry"]),
            format!("127.0.0.1:{}", base + i as u16)
        );
        assert_eq!(
            host(&region["ops"]),
            format!("127.0.0.1:{}", base + 20 + i as u16)
        );
        assert!(region["pid"].is_u64() && region["command"].is_array());
    }
    let registry = |i: usize| host(&regions[i]["registry"]);
    let pushed = images::skopeo_push(images::busybox(), &registry(0), "team/app:v1");
    assert!(
        pushed.status.success(),
        "{}",
        String::from_utf8_lossy(&pushed.stderr)
    );

    let killed = dev_command(dir.path(), &["kill", "r1"]);
    assert!(
        killed.status.success(),
        "{}",
        String::from_utf8_lossy(&killed.stderr)
    );
    let down = dev.event("region-down");
    assert_eq!(down["name"], "r1");
    assert_eq!(down["pid"], regions[0]["pid"]);
    for i in [1, 2] {
        let (pulled, output) = images::skopeo_pull(&registry(i), "team/app:v1");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(images::same_image(images::busybox(), pulled.path()));
    }
    let status = dev_command(dir.path(), &["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("r1") && status.contains("down"), "{status}");

    let other = Client::new(&registry(1));
    let elected =
        || async { (other.json("/api/v1/status").await?["writable"] == true).then_some(()) };
    eventually("another leads", Duration::from_secs(30), elected).await;
    assert!(dev_command(dir.path(), &["start", "r1"]).status.success());
    assert_eq!(dev.event("region-up")["name"], "r1");
    // Asked at once, a region that has just started does not call the cluster broken.
    let server = format!("http://{}", registry(0));
    let status = images::run(Command::new(ROADSTEAD).args(["status", "--server", &server]));
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("pushes yes"), "{status}");
    eventually(
        "r1 serves the image again",
        Duration::from_secs(30),
        || async {
            let (_dir, output) = images::skopeo_pull(&registry(0), "team/app:v1");
            output.status.success().then_some(())
        },
    )
    .await;

    // A region that dies by itself is told of as well.
    let pid = regions[1]["pid"].as_i64().expect("a pid");
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not zero");
    rustix::process::kill_process(pid, Signal::KILL).expect("kill r2, which this test started");
    assert_eq!(dev.event("region-down")["name"], "r2");

    assert_eq!(dev.interrupt().code(), Some(0));
    assert!(
        regions.iter().all(|region| !process_exists(&region["pid"])),
        "children are left"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_kept_and_the_children_end_however_dev_ends() {
    let dir = tempfile::tempdir().expect("temp dir");
    let base = free_base_port();
    let dev = Dev::start(dir.path(), base, 1);
    let regions = dev.ready["regions"].clone();
    let registry = host(&regions[0]["registry"]);
    assert!(
        images::skopeo_push(images::busybox(), &registry, "kept:v1")
            .status
            .success()
    );
    dev.kill();
    eventually("the child has ended", Duration::from_secs(10), || async {
        (!process_exists(&regions[0]["pid"])).then_some(())
    })
    .await;
    let dev = Dev::start(dir.path(), base, 1);
    let (pulled, output) = images::skopeo_pull(&registry, "kept:v1");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(images::same_image(images::busybox(), pulled.path()));
    assert_eq!(dev.interrupt().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dev_cannot_do_it_refuses_with_a_reason() {
    let dir = tempfile::tempdir().expect("temp dir");
    let base = free_base_port();
    let refused = |args: &[&str], words: &[&str]| {
        let output = run(Command::new(ROADSTEAD).arg("dev").args(args));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?} should say {word:?}: {said}");
        }
    };
    let path = dir.path().to_str().expect("utf-8");
    let port = base.to_string();
    refused(&["--regions", "8", "--data-dir", path], &["8"]);
    let busy = std::net::TcpListener::bind(("127.0.0.1", base + 10)).expect("bind");
    refused(
        &["--regions", "1", "--base-port", &port, "--data-dir", path],
        &[&(base + 10).to_string(), "--base-port"],
    );
    drop(busy);
    let dev = Dev::start(dir.path(), base, 1);
    let other = free_base_port().to_string();
    refused(
        &["--regions", "1", "--base-port", &other, "--data-dir", path],
        &["dev"],
    );
    assert_eq!(dev.interrupt().code(), Some(0));
    refused(
        &["--regions", "2", "--base-port", &port, "--data-dir", path],
        &["--fresh"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_that_dev_prints_to_try_works_as_printed() {
    printed_lines_work(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_works_as_printed_with_accounts_too() {
    let lines = printed_lines_work(&["--auth"]).await;
    assert!(lines[0].contains(" login "), "{lines:?}");
}

/// Ends with the test, however that ends; its regions end with it.
struct Started(std::process::Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn printed_lines_work(options: &[&str]) -> Vec<String> {
    let dir = tempfile::tempdir().expect("temp dir");
    let base = free_base_port();
    let log = dir.path().join("stdout");
    let dev = Command::new(ROADSTEAD)
        .args(["dev", "--base-port", &base.to_string(), "--data-dir"])
        .arg(dir.path().join("data"))
        .args(options)
        .stdin(std::process::Stdio::null())
        .stdout(std::fs::File::create(&log).expect("create log"))
        .spawn();
    let mut dev = Started(dev.expect("start dev"));
    let lines = eventually(
        "dev has printed what to try",
        Duration::from_secs(60),
        || async {
            let text = std::fs::read_to_string(&log).ok()?;
            let lines: Vec<String> = text
                .lines()
                .filter_map(|line| Some(line.trim().strip_prefix("$ ")?.to_owned()))
                .collect();
            text.contains("Ctrl-C").then_some(lines)
        },
    )
    .await;
    assert!(lines.len() >= 4, "{lines:?}");
    for line in &lines {
        must(
            Command::new("sh")
                .args(["-c", line])
                .env("DOCKER_CONFIG", dir.path().join("docker"))
                .current_dir(dir.path()),
        );
    }
    // Starting, and what was tried, is no reason for anyone to look into the audit log.
    for region in ["r1", "r2", "r3"] {
        let log = dir.path().join("data").join(region).join("audit/audit.log");
        let log = std::fs::read_to_string(log).expect("read the audit log");
        assert!(!log.contains("denied"), "{log}");
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(dev.0.id()).expect("a pid"))
        .expect("not zero");
    rustix::process::kill_process(pid, Signal::TERM).expect("signal own child");
    assert_eq!(dev.0.wait().expect("reap own child").code(), Some(0));
    lines
}
