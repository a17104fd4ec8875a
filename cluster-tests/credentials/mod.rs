//! Real clients with credentials, in three regions and then in one that is left alone: every client
//! goes through one list of situations. The accounts are made in the first region, logins and pushes
//! go to the second, and pulls come from the third.

mod clients;
mod commands;
mod situations;
mod trial;

use crate::harness::cluster::Cluster;
use crate::harness::daemons::{Containerd, Docker};
use crate::harness::tools::{Crane, Engine, Oras, Skopeo};
use clients::{Client, Helm};
use situations::Place;
use std::time::{Duration, Instant};
use trial::{Setting, Trial};

/// Those that did not go as they must.
fn go_through(trial: &Trial<'_>, place: &Place) -> Vec<String> {
    let mut failed = Vec::new();
    let name = trial.client.name();
    let whole = match place {
        Place::Alone => ", one region left",
        _ => "",
    };
    for situation in situations::ALL {
        if situation.place != Place::Anywhere && situation.place != *place {
            continue;
        }
        let began = Instant::now();
        let told = (situation.check)(trial);
        let what = format!("{name}{whole}: {}", situation.name);
        let took = began.elapsed();
        match told {
            Ok(()) => println!("credentials: {what}: ok ({took:.1?})"),
            Err(error) => {
                println!("credentials: {what}: FAILED ({took:.1?})");
                failed.push(format!("{what}: {error}"));
            }
        }
    }
    failed
}

async fn is_at_home_with_credentials(client: &dyn Client) {
    let mut cluster = Cluster::start_with_accounts(3, &[]).await;
    let setting = Setting::make(&cluster);
    let early = trial::login(client, &cluster.registry(1), &setting.robot).expect("login");
    let all = Trial {
        cluster: &cluster,
        client,
        near: 1,
        far: 2,
        setting: &setting,
        early: &early,
        early_at: 1,
    };
    for repository in ["team/app", "pub/app"] {
        all.push(&early, &setting.app, repository).expect("push");
    }
    let mut failed = go_through(&all, &Place::Together);
    cluster.wait_healthy(Duration::from_secs(60)).await;
    cluster.kill(0);
    cluster.kill(1);
    let alone = Trial {
        cluster: &cluster,
        client,
        near: 2,
        far: 2,
        setting: &setting,
        early: &early,
        early_at: 1,
    };
    failed.extend(go_through(&alone, &Place::Alone));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_is_at_home_with_credentials() {
    is_at_home_with_credentials(&Docker::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_is_at_home_with_credentials() {
    is_at_home_with_credentials(&Engine("podman")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_is_at_home_with_credentials() {
    is_at_home_with_credentials(&Skopeo).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_is_at_home_with_credentials() {
    is_at_home_with_credentials(&Containerd::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_is_at_home_with_credentials() {
    is_at_home_with_credentials(&Crane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oras_is_at_home_with_credentials() {
    is_at_home_with_credentials(&Oras).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_is_at_home_with_credentials() {
    is_at_home_with_credentials(&Helm::new()).await;
}
