//! Regions on machines of their own: who may join, who gets nothing, and certificates that are
//! replaced while the registry is used.

mod machines;

use crate::harness::client::{Client, Image};
use crate::harness::wait::eventually;
use machines::Machines;
use roadstead::certs::Authority;
use roadstead::certs::JoinToken;
use secrecy::{ExposeSecret, SecretBox};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(40);

fn client(machines: &Machines, i: usize) -> Client {
    Client::new(&machines.registry(i))
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_on_other_machines_join_by_the_printed_commands_alone() {
    let mut machines = Machines::new(3, &[]);
    machines.found();
    machines.wait_voters(0, 1).await;
    let second = machines.printed(0, 1);
    machines.start(1, &second);
    machines.wait_voters(1, 2).await;
    // Any member signs, also one that joined itself.
    let third = machines.printed(1, 2);
    machines.start(2, &third);
    for i in 0..3 {
        machines.wait_voters(i, 3).await;
        let dir = machines.data_dir(i).join("peer");
        assert_eq!(mode(&dir), 0o700);
        for file in ["ca.pem", "cert.pem", "key.pem"] {
            assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
        }
        assert!(
            !dir.join("ca-key.pem").exists(),
            "its key is in the replicated state"
        );
    }
    for n in 0..6 {
        let image = Image::small(&format!("machines {n}"));
        let pushed = client(&machines, n % 3)
            .push("on/machines", "v1", &image)
            .await;
        assert_eq!(pushed.unwrap(), 201);
        for i in 0..3 {
            client(&machines, i)
                .pull("on/machines", "v1", &image)
                .await
                .unwrap();
        }
    }
    // The same command does for every later start, also without its token.
    machines.stop(1);
    let at = second
        .iter()
        .position(|word| word == "--join-token")
        .unwrap();
    let mut without = second.clone();
    without.drain(at..at + 2);
    machines.start(1, &without);
    machines.wait_voters(1, 3).await;
    machines.stop(2);
    machines.start(2, &third);
    machines.wait_voters(2, 3).await;
}

/// The token in a printed command.
fn token(command: &[String]) -> JoinToken {
    let at = command
        .iter()
        .position(|word| word == "--join-token")
        .unwrap();
    command[at + 1].parse().unwrap()
}

fn with_token(command: &[String], token: &JoinToken) -> Vec<String> {
    let mut command = command.to_vec();
    let at = command
        .iter()
        .position(|word| word == "--join-token")
        .unwrap();
    command[at + 1] = token.expose();
    command
}

/// The process ends by itself, with exit code 2, and says each of `expected`.
fn refused(machines: &Machines, i: usize, command: &[String], expected: &[&str]) {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let output = machines.run(i, &words);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    for word in expected {
        assert!(told.contains(word), "{word:?} is not in {told}");
    }
    let _ = std::fs::remove_dir_all(machines.data_dir(i));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_does_not_fit_is_refused_with_what_was_expected() {
    let mut machines = Machines::new(3, &[]);
    machines.found();
    machines.wait_voters(0, 1).await;
    let told = machines.run(0, &["region", "add", "r1"]);
    assert_eq!(told.status.code(), Some(1));
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.contains("region r1 is a member already"), "{told}");

    let command = machines.printed(0, 1);
    let change = |change: &dyn Fn(&mut JoinToken)| {
        let mut token = token(&command);
        change(&mut token);
        with_token(&command, &token)
    };
    let other = Authority::create("another").unwrap();
    let wrong_ca = change(&|token| token.ca = other.certificate().to_vec());
    refused(
        &machines,
        1,
        &wrong_ca,
        &["not signed by a CA that this node trusts", "CN=another"],
    );
    let wrong_secret = change(&|token| token.secret = SecretBox::new(Box::new([7; 32])));
    refused(
        &machines,
        1,
        &wrong_secret,
        &["the secret of join token", "roadstead region add"],
    );
    let unknown = change(&|token| token.id = "ffff".to_owned());
    refused(&machines, 1, &unknown, &["\"ffff\" is not known here"]);
    let wrong_lineage = change(&|token| token.lineage = "another".to_owned());
    refused(
        &machines,
        1,
        &wrong_lineage,
        &["lineage \"another\" is not this node's, which is"],
    );
    let wrong_cluster = change(&|token| token.cluster_id = "another".to_owned());
    refused(&machines, 1, &wrong_cluster, &["cluster \"another\""]);
    let mut wrong_region = command.clone();
    let at = wrong_region
        .iter()
        .position(|word| word == "--region")
        .unwrap();
    wrong_region[at + 1] = "r9".to_owned();
    refused(
        &machines,
        1,
        &wrong_region,
        &["for region r2, and this node is of region r9"],
    );
    let mut wrong_role = command.clone();
    let role = wrong_role.iter().position(|word| word == "--role").unwrap();
    wrong_role[role + 1] = "learner".to_owned();
    refused(
        &machines,
        1,
        &wrong_role,
        &["for a voter, and this node is to be a learner"],
    );
    let mut lying = change(&|token| token.region = "r9".parse().unwrap());
    lying[at + 1] = "r9".to_owned();
    refused(
        &machines,
        1,
        &lying,
        &["for region r2, and this node is of region r9"],
    );
    let mut broken = command.clone();
    let at = broken
        .iter()
        .position(|word| word == "--join-token")
        .unwrap();
    broken[at + 1].truncate(60);
    refused(&machines, 1, &broken, &["not a join token"]);

    machines.start(1, &command);
    machines.wait_voters(1, 2).await;
    // Copied to another machine.
    let mut copied = command.clone();
    for word in &mut copied {
        *word = word.replace(&machines.peer(1), &machines.peer(2));
        *word = word.replace("/r2", "/r3");
    }
    refused(
        &machines,
        2,
        &copied,
        &["used already, by node", "with another key"],
    );
    // A token whose words were changed: the members know what they gave out.
    let third = machines.printed(0, 2);
    let mut lying = with_token(&third, &{
        let mut token = token(&third);
        token.role = roadstead::topology::Role::Learner;
        token
    });
    lying[role + 1] = "learner".to_owned();
    refused(&machines, 2, &lying, &["its join token is for a voter"]);
    let told = machines.log(0);
    let secret = hex::encode(token(&command).secret.expose_secret());
    assert!(!told.contains(&secret) && !machines.log(1).contains(&secret));
    assert!(!told.contains("rsj_") && !machines.log(1).contains("rsj_"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expired_is_refused() {
    let mut machines = Machines::new(2, &[("ROADSTEAD_TEST__JOIN_TOKEN_SECONDS", "1")]);
    machines.found();
    machines.wait_voters(0, 1).await;
    let command = machines.printed(0, 1);
    let expires = token(&command).expires_at_ms;
    eventually("the token has expired", LIMIT, || async move {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        (now.unwrap().as_millis() as u64 > expires).then_some(())
    })
    .await;
    refused(
        &machines,
        1,
        &command,
        &["the join token expired", "roadstead region add"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_certificate_gets_nothing_from_a_peer_listener() {
    let mut machines = Machines::new(1, &[]);
    machines.found();
    machines.wait_voters(0, 1).await;
    let mut plain = TcpStream::connect(machines.peer(0)).await.unwrap();
    plain
        .write_all(b"GET /blobs/x HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(
        !answer.starts_with(b"HTTP"),
        "{}",
        String::from_utf8_lossy(&answer)
    );

    // TLS, and nothing to show.
    let stranger = reqwest::Client::builder()
        .no_proxy()
        .tls_danger_accept_invalid_certs(true);
    let stranger = stranger.build().unwrap();
    let url = |path: &str| format!("https://{}{path}", machines.peer(0));
    for path in [
        "/blobs/x",
        "/roadstead.peer.v1.Cluster/Hello",
        "/roadstead.peer.v1.Raft/Vote",
    ] {
        let answer = stranger.post(url(path)).body("x").send().await.unwrap();
        assert_eq!(answer.status(), 421, "{path}");
        assert!(
            answer
                .text()
                .await
                .unwrap()
                .contains("without a certificate"),
            "{path}"
        );
    }
    // The one open call, without a token.
    let call = stranger.post(url("/roadstead.peer.v1.Cluster/Enroll"));
    let call = call.header("content-type", "application/grpc").body("");
    let call = call
        .header("roadstead-protocol", "1")
        .header("roadstead-boot", "1");
    let answer = call
        .header("roadstead-from", "00000000000000ab")
        .send()
        .await
        .unwrap();
    let why = answer.headers()["grpc-message"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(why.contains("issued%20for%20a%20join%20token"), "{why}");
}

/// `certs issue` for each of `regions`, from the CA in `ca`.
fn issue(machines: &Machines, ca: &Path, i: usize) -> PathBuf {
    let out = machines.dir().join(format!("certs{}", i + 1));
    let (region, ip) = (format!("r{}", i + 1), machines.ip(i));
    let (ca, to) = (ca.display().to_string(), out.display().to_string());
    machines.must(
        i,
        &[
            "certs", "issue", "--ca", &ca, "--region", &region, "--san", &ip, "--out", &to,
        ],
    );
    out
}

/// A configuration with an operator's own certificates, for nodes and for clients.
fn configure(machines: &Machines, i: usize, certs: &Path) -> Vec<String> {
    let file = machines.dir().join(format!("r{}.toml", i + 1));
    let (dir, peer) = (machines.data_dir(i), machines.peer(i));
    let entrance = match i {
        0 => "bootstrap = true".to_owned(),
        _ => format!("join = [{:?}]", machines.peer(0)),
    };
    let of = |name: &str| certs.join(name).display().to_string();
    let (ca, cert, key) = (of("ca.pem"), of("cert.pem"), of("key.pem"));
    let content = format!(
        "[node]\ndata_dir = {dir:?}\nregion = \"r{}\"\n[cluster]\n{entrance}\n\
         [registry]\nlisten = \":5000\"\ncert = {cert:?}\nkey = {key:?}\n\
         [peer]\nlisten = {peer:?}\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n\
         [raft]\nprofile = \"local\"\n",
        i + 1
    );
    std::fs::write(&file, content).unwrap();
    let file = file.display().to_string();
    ["serve", "--no-auth", "--config", &file]
        .map(str::to_owned)
        .to_vec()
}

fn init_ca(machines: &Machines, name: &str) -> PathBuf {
    let dir = machines.dir().join(name);
    machines.must(
        0,
        &["certs", "init-ca", "--out", &dir.display().to_string()],
    );
    dir
}

/// Pulls one image after the other, from one region after the other, each over a connection of its
/// own, until it is told to stop; how many, and what failed.
async fn pull_all_the_time(
    clients: impl Fn(usize) -> Client,
    images: Vec<Image>,
    mut stop: tokio::sync::oneshot::Receiver<()>,
) -> (usize, Vec<String>) {
    let (mut pulls, mut failed) = (0, Vec::new());
    while stop.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
        let (region, n) = (pulls % 3, pulls / 3 % images.len());
        let pulled = clients(region)
            .pull("on/machines", &format!("t{n}"), &images[n])
            .await;
        failed.extend(pulled.err());
        pulls += 1;
    }
    (pulls, failed)
}

fn trusting(certificates: &[PathBuf]) -> reqwest::Client {
    let read = |path: &PathBuf| {
        let pem = std::fs::read(path).unwrap();
        reqwest::Certificate::from_pem(&pem).unwrap()
    };
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only(certificates.iter().map(read));
    client.build().unwrap()
}

fn reads(machines: &Machines, i: usize, what: &str) -> usize {
    let log = machines.log(i);
    let is_it = |line: &&str| {
        line.contains("read the changed certificate files")
            && line.contains(&format!("what={what:?}"))
    };
    log.lines().filter(is_it).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_their_ca_are_replaced_while_images_are_pulled() {
    let mut machines = Machines::new(3, &[("ROADSTEAD_TEST__REPAIR", "off")]);
    let (old, new) = (init_ca(&machines, "old"), init_ca(&machines, "new"));
    let both = [old.join("ca.pem"), new.join("ca.pem")];
    for i in 0..3 {
        let certs = issue(&machines, &old, i);
        let command = configure(&machines, i, &certs);
        machines.start(i, &command);
    }
    let addresses: Vec<String> = (0..3).map(|i| machines.registry(i)).collect();
    let clients = {
        let (addresses, both) = (addresses.clone(), both.clone());
        move |i: usize| Client::over(format!("https://{}", addresses[i]), trusting(&both))
    };
    for i in 0..3 {
        eventually("all regions are up", LIMIT, || async {
            let status = clients(i).json("/api/v1/status").await?;
            let health = clients(i).get("/healthz?for=pushes").await.ok()?.status();
            (status["failure_tolerance"] == 1 && health == 200).then_some(())
        })
        .await;
    }
    let images: Vec<Image> = (0..60)
        .map(|n| Image::small(&format!("replaced {n}")))
        .collect();
    for (n, image) in images.iter().enumerate() {
        let pushed = clients(n % 3)
            .push("on/machines", &format!("t{n}"), image)
            .await;
        assert_eq!(pushed.unwrap(), 201);
    }
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let pulling = tokio::task::JoinSet::from_iter([pull_all_the_time(
        clients.clone(),
        images.clone(),
        stopped,
    )]);

    let ca = |i: usize| machines.dir().join(format!("certs{}/ca.pem", i + 1));
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
    let all_read = |what: &'static str, times: usize| {
        let machines = &machines;
        eventually("every node reads the files", LIMIT, move || async move {
            (0..3)
                .all(|i| reads(machines, i, what) >= times)
                .then_some(())
        })
    };
    let replace = |path: PathBuf, content: String| {
        std::fs::write(path.with_extension("x"), content).unwrap();
        std::fs::rename(path.with_extension("x"), path).unwrap();
    };
    // Both CAs are trusted everywhere, then each node shows the new one's, then the old one goes.
    for i in 0..3 {
        replace(ca(i), read(&both[0]) + &read(&both[1]));
    }
    all_read("peer", 1).await;
    for i in 0..3 {
        issue(&machines, &new, i);
    }
    all_read("peer", 2).await;
    all_read("registry", 1).await;
    for i in 0..3 {
        replace(ca(i), read(&both[1]));
    }
    all_read("peer", 3).await;
    stop.send(()).unwrap();
    let (pulls, failed) = pulling.join_all().await.remove(0);
    println!("{pulls} pulls, {} failed", failed.len());
    assert!(
        failed.is_empty() && pulls > 100,
        "{pulls} pulls, failed: {failed:?}"
    );

    // To whoever comes now each shows the new one, and takes nothing of the old.
    let by_new = Client::over(format!("https://{}", addresses[1]), trusting(&both[1..]));
    by_new.pull("on/machines", "t0", &images[0]).await.unwrap();
    let path = |file: &str| {
        machines
            .dir()
            .join("certs1")
            .join(file)
            .display()
            .to_string()
    };
    let peer = machines.peer(1);
    let check = [
        "certs",
        "check",
        "--ca",
        &path("ca.pem"),
        "--cert",
        &path("cert.pem"),
        "--key",
        &path("key.pem"),
        "--connect",
        &peer,
    ];
    let told = machines.must(0, &check);
    assert!(told.contains("r2.roadstead.internal"), "{told}");
    let out = machines.dir().join("of-old");
    machines.must(
        0,
        &[
            "certs",
            "issue",
            "--ca",
            &old.display().to_string(),
            "--region",
            "r1",
            "--out",
            &out.display().to_string(),
        ],
    );
    std::fs::copy(&both[1], out.join("both.pem")).unwrap();
    replace(out.join("both.pem"), read(&both[0]) + &read(&both[1]));
    let path = |file: &str| out.join(file).display().to_string();
    let check = [
        "certs",
        "check",
        "--ca",
        &path("both.pem"),
        "--cert",
        &path("cert.pem"),
        "--key",
        &path("key.pem"),
        "--connect",
        &peer,
    ];
    let refused = machines.run(0, &check);
    let told = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{told}");

    // A node of r3 that is given the certificate of r2 does not start.
    machines.stop(2);
    let wrong = configure(&machines, 2, &machines.dir().join("certs2"));
    let words: Vec<&str> = wrong.iter().map(String::as_str).collect();
    let output = machines.run(2, &words);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains("is of region r2, and this node is of region r3"),
        "{told}"
    );
    let right = configure(&machines, 2, &machines.dir().join("certs3"));
    machines.start(2, &right);
    let image = Image::small("after all");
    eventually("r3 is back", LIMIT, || async {
        let status = clients(0).json("/api/v1/status").await?;
        let health = clients(2).get("/healthz?for=pushes").await.ok()?.status();
        (status["failure_tolerance"] == 1 && health == 200).then_some(())
    })
    .await;
    assert_eq!(
        clients(2)
            .push("on/machines", "after", &image)
            .await
            .unwrap(),
        201
    );
    clients(0)
        .pull("on/machines", "after", &image)
        .await
        .unwrap();
    // This cluster signs nothing itself.
    let told = machines.run(
        0,
        &[
            "region",
            "add",
            "r4",
            "--server",
            &format!("https://{}", addresses[0]),
            "--cacert",
            &both[1].display().to_string(),
        ],
    );
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(
        told.contains("does not sign certificates itself") && told.contains("certs issue"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_renew_what_the_cluster_signed_and_one_that_was_off_for_too_long_comes_back() {
    let mut machines = Machines::new(3, &[("ROADSTEAD_TEST__CERT_SECONDS", "15")]);
    machines.found();
    machines.wait_voters(0, 1).await;
    for i in 1..3 {
        let command = machines.printed(0, i);
        machines.start(i, &command);
        machines.wait_voters(i, i + 1).await;
    }
    let images: Vec<Image> = (0..20)
        .map(|n| Image::small(&format!("renewed {n}")))
        .collect();
    for (n, image) in images.iter().enumerate() {
        let pushed = client(&machines, n % 3)
            .push("on/machines", &format!("t{n}"), image)
            .await;
        assert_eq!(pushed.unwrap(), 201);
    }
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let addresses: Vec<String> = (0..3).map(|i| machines.registry(i)).collect();
    let clients = move |i: usize| Client::new(&addresses[i]);
    let pulling = tokio::task::JoinSet::from_iter([pull_all_the_time(clients, images, stopped)]);
    let renewals = |i: usize| {
        machines
            .log(i)
            .matches("renewed the certificate of this node")
            .count()
    };
    eventually("every certificate is renewed twice", LIMIT * 2, || async {
        (0..3).all(|i| renewals(i) >= 2).then_some(())
    })
    .await;
    stop.send(()).unwrap();
    let (pulls, failed) = pulling.join_all().await.remove(0);
    println!("{pulls} pulls, {} failed", failed.len());
    assert!(
        failed.is_empty() && pulls > 100,
        "{pulls} pulls, failed: {failed:?}"
    );

    machines.stop(2);
    let expired = || async {
        let path = machines.data_dir(2).join("peer");
        let path = |file: &str| path.join(file).display().to_string();
        let check = [
            "certs",
            "check",
            "--ca",
            &path("ca.pem"),
            "--cert",
            &path("cert.pem"),
            "--key",
            &path("key.pem"),
        ];
        let told = machines.run(2, &check);
        String::from_utf8_lossy(&told.stdout)
            .contains("it has expired")
            .then_some(())
    };
    eventually("the certificate of r3 has expired", LIMIT, expired).await;
    let peer = machines.peer(0);
    let (dir, own) = (machines.data_dir(2).display().to_string(), machines.peer(2));
    let again = [
        "serve",
        "--no-auth",
        "--data-dir",
        &dir,
        "--join",
        &peer,
        "--peer-listen",
        &own,
        "--raft-profile",
        "local",
        "--registry-listen",
        "0.0.0.0:5000",
    ];
    machines.start(2, &again.map(str::to_owned));
    machines.wait_voters(2, 3).await;
}
