//! Regions on machines of their own: who may join, and who gets nothing.

mod machines;
mod replacing;

use crate::harness::client::{Client, Image};
use crate::harness::cluster::ADMIN_PASSWORD;
use crate::harness::wait::eventually;
use machines::Machines;
use roadstead::certs::Authority;
use roadstead::certs::JoinToken;
use secrecy::{ExposeSecret, SecretBox};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(40);

fn client(machines: &Machines, i: usize) -> Client {
    Client::new(&machines.registry(i)).logged_in("admin", ADMIN_PASSWORD)
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
    assert_eq!(told.status.code(), Some(2));
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
    // One that was taken back; what let r2 in is not touched.
    let taken_back = machines.printed(0, 2);
    let told = machines.must(0, &["region", "cancel-add", "r3"]);
    assert!(
        told.contains("taken back: ") && !told.contains(" 0"),
        "{told}"
    );
    refused(&machines, 2, &taken_back, &["is not known here"]);
    let told = machines.must(0, &["region", "cancel-add", "r2"]);
    assert!(told.contains("taken back: 0"), "{told}");
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
