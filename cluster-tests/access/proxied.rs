//! Logging in through a proxy that ends TLS under other names: the registry names itself as its clients
//! do, and a token is good under each name.

use super::{bearer, token, user, visibility, with_bearer};
use crate::harness::client::{Client, Image};
use crate::harness::cluster::{Cluster, free_port};
use crate::harness::daemons::{Docker, TlsProxy};
use crate::harness::layouts::Layout;
use crate::harness::tools::{Tool, go, patiently, said};
use reqwest::{Certificate, Method};
use std::net::Ipv4Addr;
use std::path::Path;

const NAME: &str = "registry.example";

async fn three_behind_tls() -> (Cluster, TlsProxy) {
    let addresses: Vec<_> = (0..3).map(|_| free_port(Ipv4Addr::LOCALHOST)).collect();
    let ports = addresses.iter().map(|address| address.port());
    let urls = ports.flat_map(|port| {
        [
            format!("https://localhost:{port}"),
            format!("https://{NAME}:{port}"),
        ]
    });
    let urls = urls.collect::<Vec<_>>().join(",");
    let cluster =
        Cluster::start_with_accounts(3, &[("ROADSTEAD_REGISTRY__EXTERNAL_URLS", &urls)]).await;
    let regions: Vec<String> = (0..3).map(|i| cluster.registry(i)).collect();
    let proxy = TlsProxy::start_at(addresses, &regions, &[NAME, "localhost"]).await;
    (cluster, proxy)
}

fn outside(proxy: &TlsProxy, name: &str, i: usize) -> Client {
    let certificate = std::fs::read(proxy.certificate()).unwrap();
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([Certificate::from_pem(&certificate).unwrap()])
        .resolve(NAME, proxy.addresses[i])
        .build()
        .unwrap();
    Client::over(
        format!("https://{name}:{}", proxy.addresses[i].port()),
        http,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_challenge_shows_an_inner_address_and_one_token_is_good_under_each_name() {
    let (cluster, proxy) = three_behind_tls().await;
    let admin = cluster.client(0);
    let robot = token(&admin, "robot", &["acme/*:pull,push"]).await;
    let image = Image::small("proxied");
    let by_name = outside(&proxy, "localhost", 0).logged_in("robot", &robot);
    assert_eq!(by_name.push("acme/app", "v1", &image).await.unwrap(), 201);
    // The proxy tells the registry nothing, so it names the first of its own names.
    let told = outside(&proxy, NAME, 1)
        .get("/v2/acme/app/tags/list")
        .await
        .unwrap();
    assert_eq!(told.status(), 401);
    let challenge = told.headers()["www-authenticate"]
        .to_str()
        .unwrap()
        .to_owned();
    let own = format!(
        "realm=\"https://localhost:{}/token\"",
        proxy.addresses[0].port()
    );
    assert!(challenge.contains(&own), "{challenge}");
    let short = bearer(&by_name, "repository:acme/app:pull").await;
    for (name, i) in [("localhost", 0), (NAME, 1), (NAME, 2), ("localhost", 2)] {
        let client = outside(&proxy, name, i);
        let tags = "/v2/acme/app/tags/list";
        assert_eq!(
            with_bearer(&client, Method::GET, tags, &short).await,
            200,
            "{name} {i}"
        );
        for (header, value) in client.get(tags).await.unwrap().headers() {
            let value = value.to_str().unwrap();
            assert!(
                !value.contains("127.0.0.") && !value.contains("http:"),
                "{header}: {value}"
            );
        }
    }
}

/// A configuration of its own for a client, with the certificate of the proxy.
fn trust(dir: &Path, proxy: &TlsProxy) -> String {
    let certs = dir.join("certs");
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::copy(proxy.certificate(), certs.join("ca.crt")).unwrap();
    certs.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_podman_and_crane_log_in_push_and_pull_through_the_proxy() {
    let (cluster, proxy) = three_behind_tls().await;
    let admin = cluster.client(0);
    user(
        &admin,
        "ann",
        "the-right-password",
        &["acme/*:pull,push", "open/*:pull,push"],
    )
    .await;
    visibility(&admin, "open", "public").await;
    let dir = tempfile::tempdir().unwrap();
    let image = Layout::new(dir.path(), "proxied", &["amd64"], &[100_000, 3000]);
    let host = |i: usize| format!("localhost:{}", proxy.addresses[i].port());
    let certs = trust(dir.path(), &proxy);

    let docker = Docker::start().await;
    let wrong = docker.cli(&["login", "-u", "ann", "-p", "wrong", &host(0)]);
    assert!(wrong.unwrap_err().contains("unauthorized"));
    let to = format!("{}/acme/docker:v1", host(0));
    docker.push(&image, &to).unwrap_err();
    for i in 0..2 {
        docker
            .cli(&["login", "-u", "ann", "-p", "the-right-password", &host(i)])
            .unwrap();
    }
    docker.push(&image, &to).unwrap();
    docker
        .pull(&format!("{}/acme/docker:v1", host(1)), &image)
        .unwrap();
    docker
        .push(&image, &format!("{}/open/docker:v1", host(0)))
        .unwrap();
    docker.cli(&["logout", &host(0)]).unwrap();
    docker
        .pull(&format!("{}/open/docker:v1", host(0)), &image)
        .unwrap();
    docker.pull(&to, &image).unwrap_err();

    let auth = dir.path().join("auth.json").display().to_string();
    let podman = |words: &[&str]| {
        let mut command = patiently("podman");
        command.arg("--root").arg(dir.path().join("root"));
        command.arg("--runroot").arg(dir.path().join("run"));
        command.args(["--storage-driver", "overlay"]).args(words);
        command.args(["--authfile", &auth, "--cert-dir", &certs]);
        said(&mut command)
    };
    let login = ["login", "-u", "ann", "-p", "the-right-password", &host(2)];
    podman(&login).unwrap();
    let pulled = podman(&["pull", "-q", &format!("{}/acme/docker:v1", host(2))]).unwrap();
    podman(&[
        "push",
        pulled.trim(),
        &format!("docker://{}/acme/podman:v1", host(2)),
    ])
    .unwrap();

    let crane = |words: &[&str]| {
        let mut command = go("crane");
        command
            .env("SSL_CERT_FILE", proxy.certificate())
            .env("DOCKER_CONFIG", dir.path().join("crane"));
        said(command.args(words))
    };
    let reference = format!("{}/acme/podman:v1", host(1));
    crane(&["digest", &reference]).unwrap_err();
    crane(&[
        "auth",
        "login",
        "-u",
        "ann",
        "-p",
        "the-right-password",
        &host(1),
    ])
    .unwrap();
    crane(&["digest", &reference]).unwrap();
    let _ = said(
        std::process::Command::new("umount")
            .args(["--recursive", "--quiet"])
            .arg(dir.path().join("root/overlay")),
    );
}
