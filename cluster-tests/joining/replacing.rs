//! Certificates and their CA are replaced while images are pulled.

use super::machines::Machines;
use super::{LIMIT, client};
use crate::harness::client::{Client, Image};
use crate::harness::cluster::ADMIN_PASSWORD;
use crate::harness::wait::eventually;
use std::path::{Path, PathBuf};

/// `certs issue` for the region of machine `i`, from the CA in `ca`.
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
    ["serve", "--config", &file].map(str::to_owned).to_vec()
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
        move |i: usize| {
            Client::over(format!("https://{}", addresses[i]), trusting(&both))
                .logged_in("admin", ADMIN_PASSWORD)
        }
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
    let by_new = Client::over(format!("https://{}", addresses[1]), trusting(&both[1..]))
        .logged_in("admin", ADMIN_PASSWORD);
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
    let clients = move |i: usize| Client::new(&addresses[i]).logged_in("admin", ADMIN_PASSWORD);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_signs_for_itself_goes_over_to_a_ca_of_its_operator() {
    let mut machines = Machines::new(2, &[]);
    machines.found();
    machines.wait_voters(0, 1).await;
    let command = machines.printed(0, 1);
    machines.start(1, &command);
    machines.wait_voters(0, 2).await;
    let ca = init_ca(&machines, "own");
    let append = |to: &Path, from: &Path| {
        let both = std::fs::read_to_string(to).unwrap() + &std::fs::read_to_string(from).unwrap();
        std::fs::write(to, both).unwrap();
    };
    for i in 0..2 {
        append(
            &machines.data_dir(i).join("peer/ca.pem"),
            &ca.join("ca.pem"),
        );
    }
    eventually("both trust both", LIMIT, || async {
        (0..2)
            .all(|i| reads(&machines, i, "peer") >= 1)
            .then_some(())
    })
    .await;
    let mut commands = Vec::new();
    for i in 0..2 {
        let certs = issue(&machines, &ca, i);
        append(
            &certs.join("ca.pem"),
            &machines.data_dir(i).join("peer/ca.pem"),
        );
        let command = configure(&machines, i, &certs);
        let file = command.last().unwrap();
        // Clients go on speaking plain.
        let content = std::fs::read_to_string(file).unwrap();
        let (before, rest) = content.split_once("[registry]").unwrap();
        let (_, after) = rest.split_once("[peer]").unwrap();
        let plain = format!("{before}[registry]\nlisten = \":5000\"\n[peer]{after}");
        std::fs::write(file, plain).unwrap();
        commands.push(command);
    }
    for (i, command) in commands.iter().enumerate() {
        machines.stop(i);
        machines.start(i, command);
        machines.wait_voters(i, 2).await;
        machines.wait_voters(1 - i, 2).await;
    }
    for i in 0..2 {
        let bundle = machines.dir().join(format!("certs{}/ca.pem", i + 1));
        std::fs::copy(ca.join("ca.pem"), bundle).unwrap();
    }
    eventually("both trust only the new one", LIMIT, || async {
        (0..2)
            .all(|i| reads(&machines, i, "peer") >= 2)
            .then_some(())
    })
    .await;
    machines.stop(1);
    machines.start(1, &commands[1]);
    machines.wait_voters(1, 2).await;
    let told = machines.run(0, &["region", "add", "r3"]);
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.contains("does not sign certificates itself"), "{told}");
}
