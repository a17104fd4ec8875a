//! `n` regions as real processes on loopback: started, killed, paused, cut off, started again.

use super::client::Client;
use super::faults::Links;
use super::wait::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Of `admin`, where there are accounts.
pub const ADMIN_PASSWORD: &str = "the-first-password";

/// The binary under test.
pub const ROADSTEAD: &str = env!("CARGO_BIN_EXE_roadstead");

pub struct Cluster {
    pub links: Links,
    nodes: Vec<Region>,
    env: Vec<(String, String)>,
    has_accounts: bool,
    /// Log lines at ERROR that contain one of these are expected.
    allowed_errors: Vec<&'static str>,
    dir: Option<TempDir>,
}

struct Region {
    name: String,
    registry: SocketAddr,
    peer: SocketAddr,
    advertise: SocketAddr,
    ops: SocketAddr,
    child: Option<Child>,
}

/// A free port on `ip`, of 10 000 to 20 000: below those the kernel gives to outgoing connections,
/// which would take the port of a region while it is down.
pub fn free_port(ip: Ipv4Addr) -> SocketAddr {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let next = NEXT.get_or_init(|| AtomicU16::new(rand::random_range(0..10_000)));
    (0..10_000)
        .map(|_| SocketAddr::from((ip, 10_000 + next.fetch_add(1, Ordering::Relaxed) % 10_000)))
        .find(|address| std::net::TcpListener::bind(address).is_ok())
        .expect("a free port")
}

impl Cluster {
    pub async fn start(regions: usize) -> Cluster {
        Cluster::start_with(regions, &[]).await
    }

    /// With settings in the environment of every node.
    pub async fn start_with(regions: usize, env: &[(&str, &str)]) -> Cluster {
        Cluster::start_over(Links::new(), regions, env, true, false).await
    }

    /// With accounts: the first is `admin`, with `ADMIN_PASSWORD`.
    pub async fn start_with_accounts(regions: usize, env: &[(&str, &str)]) -> Cluster {
        let mut all = vec![("ROADSTEAD_ADMIN_PASSWORD", ADMIN_PASSWORD)];
        all.extend(env);
        Cluster::start_over(Links::new(), regions, &all, true, true).await
    }

    /// Regions that call each other directly: nothing can be cut or slowed.
    #[allow(dead_code, reason = "the bench uses it")]
    pub async fn start_direct(regions: usize, env: &[(&str, &str)]) -> Cluster {
        Cluster::start_over(Links::new(), regions, env, false, false).await
    }

    async fn start_over(
        links: Links,
        regions: usize,
        env: &[(&str, &str)],
        by_proxy: bool,
        has_accounts: bool,
    ) -> Cluster {
        let mut nodes = Vec::new();
        for i in 0..regions {
            let own = Ipv4Addr::new(127, 0, 0, 11 + i as u8);
            let peer = free_port(own);
            nodes.push(Region {
                name: format!("r{}", i + 1),
                registry: free_port(Ipv4Addr::LOCALHOST),
                peer,
                advertise: match by_proxy {
                    true => links.proxy_to(peer).await,
                    false => peer,
                },
                ops: free_port(Ipv4Addr::LOCALHOST),
                child: None,
            });
        }
        let env = env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let dir = Some(tempfile::tempdir().expect("temp dir"));
        let mut cluster = Cluster {
            links,
            nodes,
            env,
            has_accounts,
            allowed_errors: Vec::new(),
            dir,
        };
        for i in 0..regions {
            cluster.run(i);
        }
        cluster.wait_ready(Duration::from_secs(60)).await;
        cluster
    }

    pub fn allow_error(&mut self, containing: &'static str) {
        self.allowed_errors.push(containing);
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("kept until drop").path()
    }

    pub fn data_dir(&self, i: usize) -> PathBuf {
        self.dir().join(&self.nodes[i].name)
    }

    pub fn log_file(&self, i: usize) -> PathBuf {
        self.dir().join(format!("{}.log", self.nodes[i].name))
    }

    pub fn name(&self, i: usize) -> &str {
        &self.nodes[i].name
    }

    pub fn is_running(&self, i: usize) -> bool {
        self.nodes[i].child.is_some()
    }

    /// host:port of the registry listener.
    pub fn registry(&self, i: usize) -> String {
        self.nodes[i].registry.to_string()
    }

    pub fn ops(&self, i: usize) -> String {
        self.nodes[i].ops.to_string()
    }

    /// Who may do everything there.
    pub fn client(&self, i: usize) -> Client {
        let client = Client::new(&self.registry(i));
        match self.has_accounts {
            true => client.logged_in("admin", &self.admin_password()),
            false => client,
        }
    }

    /// As it was set, or as the first region has made it up.
    fn admin_password(&self) -> String {
        let made = std::fs::read_to_string(self.data_dir(0).join("admin-password"));
        made.map_or(ADMIN_PASSWORD.to_owned(), |made| made.trim().to_owned())
    }

    /// The arguments with which region `i` runs.
    pub fn command(&self, i: usize) -> Command {
        let node = &self.nodes[i];
        let mut command = Command::new(ROADSTEAD);
        command
            .args(["serve", "--region", &node.name])
            .arg("--data-dir")
            .arg(self.data_dir(i))
            .args(["--registry-listen", &node.registry.to_string()])
            .args(["--peer-listen", &node.peer.to_string()])
            .args(["--peer-advertise", &node.advertise.to_string()])
            .args(["--ops-listen", &node.ops.to_string()])
            .env("ROADSTEAD_RAFT__PROFILE", "local")
            .envs(self.env.iter().map(|(k, v)| (k, v)));
        if !self.has_accounts {
            command.arg("--no-auth");
        }
        if i == 0 {
            command.arg("--bootstrap");
        } else {
            command.args(["--join", &self.nodes[0].advertise.to_string()]);
        }
        command
    }

    /// Starts the process of region `i`; does not wait for it.
    pub fn run(&mut self, i: usize) {
        assert!(
            self.nodes[i].child.is_none(),
            "{} runs already",
            self.nodes[i].name
        );
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file(i))
            .expect("open log file");
        let child = self
            .command(i)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("clone log file"))
            .stderr(log)
            .spawn()
            .expect("start roadstead");
        self.nodes[i].child = Some(child);
    }

    fn signal(&self, i: usize, signal: Signal) {
        let child = self.nodes[i].child.as_ref().expect("is running");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("not zero");
        kill_process(pid, signal).expect("signal own child");
    }

    pub fn pid(&self, i: usize) -> u32 {
        self.nodes[i].child.as_ref().expect("is running").id()
    }

    /// kill -9, now.
    pub fn kill(&mut self, i: usize) {
        let mut child = self.nodes[i].child.take().expect("is running");
        child.kill().expect("kill own child");
        child.wait().expect("reap own child");
    }

    /// TERM, and waits for its end.
    pub fn stop(&mut self, i: usize) -> std::process::ExitStatus {
        self.signal(i, Signal::TERM);
        let mut child = self.nodes[i].child.take().expect("is running");
        child.wait().expect("reap own child")
    }

    pub fn pause(&self, i: usize) {
        self.signal(i, Signal::STOP);
    }

    pub fn resume(&self, i: usize) {
        self.signal(i, Signal::CONT);
    }

    fn peer_ip(&self, i: usize) -> IpAddr {
        self.nodes[i].peer.ip()
    }

    /// Cuts region `i` off from all others.
    pub fn cut_off(&self, i: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != i) {
            self.links.cut(self.peer_ip(i), self.peer_ip(other));
        }
    }

    pub fn heal(&self) {
        self.links.heal();
    }

    /// What region `i` says of the cluster; None while it does not answer.
    pub async fn status(&self, i: usize) -> Option<Value> {
        self.client(i).json("/api/v1/status").await
    }

    /// Index of the region that leads, by what the running regions say.
    pub async fn leader(&self) -> usize {
        eventually(
            "some region says who leads",
            Duration::from_secs(30),
            || async {
                for i in 0..self.nodes.len() {
                    if self.nodes[i].child.is_none() {
                        continue;
                    }
                    if let Some(status) = self.status(i).await
                        && let Some(leader) = status["leader"].as_str()
                        && let Some(at) = self.nodes.iter().position(|node| node.name == leader)
                        && self.nodes[at].child.is_some()
                    {
                        return Some(at);
                    }
                }
                None
            },
        )
        .await
    }

    /// Every running region says: all regions are members, there is a leader, and it is not behind.
    pub async fn wait_ready(&self, within: Duration) {
        let n = self.nodes.len();
        for i in 0..n {
            if self.nodes[i].child.is_none() {
                continue;
            }
            let what = format!(
                "{} is ready (log: {})",
                self.name(i),
                self.log_file(i).display()
            );
            eventually(&what, within, || async {
                let status = self.status(i).await?;
                let regions = status["regions"].as_array()?;
                let voters = regions.iter().filter(|r| r["role"] == "voter").count();
                let me = regions.iter().find(|r| r["name"] == self.name(i))?;
                let ready = status["leader"].is_string()
                    && voters == n
                    && me["lag"] == 0
                    && me["state"] == "up";
                // Its own start must be announced too, before it takes pushes.
                let health = self.client(i).get("/healthz?for=pushes").await.ok()?;
                (ready && health.status() == 200).then_some(())
            })
            .await;
        }
    }

    /// `roadstead status` calls it healthy.
    pub async fn wait_healthy(&self, within: Duration) {
        eventually("the cluster is healthy", within, || async {
            (self.status(0).await?["healthy"] == true).then_some(())
        })
        .await;
    }

    /// Value of a metric of region `i`, with its labels as Prometheus writes them; 0 when absent.
    pub async fn metric(&self, i: usize, name: &str) -> f64 {
        let url = format!("http://{}/metrics", self.nodes[i].ops);
        let text = reqwest::get(url)
            .await
            .expect("scrape")
            .text()
            .await
            .expect("metrics text");
        text.lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .strip_prefix(' ')?
                    .trim()
                    .parse()
                    .ok()
            })
            .unwrap_or(0.0)
    }

    fn unexpected_errors(&self) -> Vec<String> {
        let mut found = Vec::new();
        for i in 0..self.nodes.len() {
            let log = std::fs::read_to_string(self.log_file(i)).unwrap_or_default();
            for line in log.lines() {
                let is_error = line.contains(" ERROR ") || line.contains("panicked at");
                if is_error
                    && !self
                        .allowed_errors
                        .iter()
                        .any(|allowed| line.contains(allowed))
                {
                    found.push(format!("{}: {line}", self.nodes[i].name));
                }
            }
        }
        found
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        let errors = self.unexpected_errors();
        if std::thread::panicking() {
            let kept = self.dir.take().expect("kept until drop").keep();
            eprintln!("data and logs of the failed test: {}", kept.display());
            for line in errors.iter().take(20) {
                eprintln!("{line}");
            }
            for i in 0..self.nodes.len() {
                let log = std::fs::read_to_string(kept.join(format!("{}.log", self.nodes[i].name)))
                    .unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("the end of the log of {}:", self.nodes[i].name);
                eprintln!("{}", lines[lines.len().saturating_sub(20)..].join("\n"));
            }
        } else {
            assert!(
                errors.is_empty(),
                "unexpected errors in the logs:\n{}",
                errors.join("\n")
            );
        }
    }
}
