//! The region that leads is lost while clients of another one push and pull: they see a slow
//! answer, not an error (P5).

use crate::harness::cluster::Cluster;
use crate::harness::{images, rounds};
use std::process::Command;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn podman_pushes_and_pulls_while_the_leader_is_killed() {
    let rounds = rounds(3);
    let mut cluster = Cluster::start(3).await;
    let storage = tempfile::tempdir().expect("temp dir");
    let podman = || images::podman(storage.path());
    let source = format!("dir:{}", images::busybox().display());
    let pulled = images::must(podman().args(["pull", "-q", &source]));
    let mut failed = 0;
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let leader = cluster.leader().await;
        let near = (leader + 1) % 3;
        let name = format!("{}/held/podman:{round}", cluster.registry(near));
        let push = |name: &str| -> Command {
            let mut command = podman();
            command.args(["push", "-q", "--tls-verify=false", &pulled, name]);
            command
        };
        // The push is under way when the leader goes: its manifest finds none.
        let mut pushing = push(&name).spawn().expect("start podman");
        let started = Instant::now();
        cluster.kill(leader);
        let pushed = pushing.wait().expect("podman ends");
        slowest = slowest.max(started.elapsed());
        images::must(podman().args(["rmi", "-f", &name]).arg("--ignore"));
        let pull = images::run(podman().args(["pull", "-q", "--tls-verify=false", &name]));
        if !pushed.success() || !pull.status.success() {
            eprintln!(
                "round {round}: push {pushed}, pull {}",
                String::from_utf8_lossy(&pull.stderr)
            );
            failed += 1;
        }
        images::must(podman().args(["pull", "-q", &source]));
        cluster.run(leader);
        cluster.wait_ready(Duration::from_secs(60)).await;
    }
    println!("leader_loss: {rounds} rounds, {failed} failed, slowest push {slowest:?}");
    assert_eq!(failed, 0);
}
