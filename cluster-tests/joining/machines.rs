//! Machines on one: a network namespace for each, with an address that is not loopback, on a bridge
//! that the test is on too. Needs root and `ip`.

use crate::harness::cluster::{ADMIN_PASSWORD, ROADSTEAD};
use crate::harness::images::must;
use crate::harness::wait::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

pub struct Machines {
    /// Of the namespaces and links of this test.
    id: String,
    /// The first three numbers of the addresses.
    net: String,
    count: usize,
    children: BTreeMap<usize, Child>,
    dir: Option<tempfile::TempDir>,
    env: Vec<(String, String)>,
}

impl Machines {
    pub fn new(count: usize, env: &[(&str, &str)]) -> Machines {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("rs{}{n}", std::process::id() % 100_000);
        let net = format!(
            "10.{}.{}",
            rand::random_range(64..128),
            rand::random_range(1..255)
        );
        let mut machines = Machines {
            id,
            net,
            count: 0,
            children: BTreeMap::new(),
            dir: Some(tempfile::tempdir().expect("temp dir")),
            env: env
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        };
        let bridge = machines.id.clone();
        ip(&format!("link add {bridge} type bridge"));
        ip(&format!("addr add {}.254/24 dev {bridge}", machines.net));
        ip(&format!("link set {bridge} up"));
        for i in 0..count {
            let (space, link) = (machines.space(i), format!("{bridge}l{i}"));
            ip(&format!("netns add {space}"));
            machines.count += 1;
            ip(&format!(
                "link add {link} type veth peer name eth0 netns {space}"
            ));
            ip(&format!("link set {link} master {bridge} up"));
            ip(&format!(
                "-n {space} addr add {}/24 dev eth0",
                machines.ip(i)
            ));
            ip(&format!("-n {space} link set eth0 up"));
            ip(&format!("-n {space} link set lo up"));
        }
        machines
    }

    fn space(&self, i: usize) -> String {
        format!("{}-{i}", self.id)
    }

    pub fn ip(&self, i: usize) -> String {
        format!("{}.{}", self.net, i + 1)
    }

    pub fn peer(&self, i: usize) -> String {
        format!("{}:5010", self.ip(i))
    }

    pub fn registry(&self, i: usize) -> String {
        format!("{}:5000", self.ip(i))
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("kept until drop").path()
    }

    pub fn data_dir(&self, i: usize) -> PathBuf {
        self.dir().join(format!("r{}", i + 1))
    }

    fn log_file(&self, i: usize) -> PathBuf {
        self.dir().join(format!("r{}.log", i + 1))
    }

    pub fn log(&self, i: usize) -> String {
        std::fs::read_to_string(self.log_file(i)).unwrap_or_default()
    }

    fn command(&self, i: usize, args: &[String]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(i), ROADSTEAD]);
        command.args(args);
        if args.first().is_some_and(|word| word == "region") {
            command.args(["--user", &format!("admin:{ADMIN_PASSWORD}")]);
        }
        command.env("ROADSTEAD_ADMIN_PASSWORD", ADMIN_PASSWORD);
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// A command of the operator on machine `i`, to its end.
    pub fn run(&self, i: usize, args: &[&str]) -> Output {
        let args: Vec<String> = args.iter().map(|word| (*word).to_owned()).collect();
        self.command(i, &args).output().expect("run roadstead")
    }

    pub fn must(&self, i: usize, args: &[&str]) -> String {
        let output = self.run(i, args);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {told}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Starts what `args` say on machine `i`, and leaves it running.
    pub fn start(&mut self, i: usize, args: &[String]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file(i))
            .expect("open log file");
        let child = self
            .command(i, args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("clone log file"))
            .stderr(log)
            .spawn()
            .expect("start roadstead");
        assert!(self.children.insert(i, child).is_none(), "r{} runs", i + 1);
    }

    pub fn stop(&mut self, i: usize) {
        let mut child = self.children.remove(&i).expect("is running");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("not zero");
        kill_process(pid, Signal::TERM).expect("signal own child");
        child.wait().expect("reap own child");
    }

    /// The first region, which makes the CA.
    pub fn found(&mut self) {
        let (peer, dir) = (self.peer(0), self.data_dir(0).display().to_string());
        let args = [
            "serve",
            "--bootstrap",
            "--region",
            "r1",
            "--raft-profile",
            "local",
            "--registry-listen",
            "0.0.0.0:5000",
            "--data-dir",
            &dir,
            "--peer-listen",
            &peer,
        ];
        self.start(0, &args.map(str::to_owned));
    }

    /// What `region add` on machine `at` prints for machine `i`.
    pub fn printed(&self, at: usize, i: usize) -> Vec<String> {
        let (name, peer) = (format!("r{}", i + 1), self.peer(i));
        let dir = self.data_dir(i).display().to_string();
        let told = self.must(
            at,
            &[
                "region",
                "add",
                &name,
                "--peer-advertise",
                &peer,
                "--node-data-dir",
                &dir,
            ],
        );
        let line = told.lines().last().expect("a command");
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        assert_eq!(words.remove(0), "roadstead", "{told}");
        words
    }

    pub async fn status(&self, i: usize) -> Option<Value> {
        let url = format!("http://{}/api/v1/status", self.registry(i));
        let client = reqwest::Client::builder()
            .no_proxy()
            .build()
            .expect("a client");
        let answer = client
            .get(url)
            .basic_auth("admin", Some(ADMIN_PASSWORD))
            .timeout(Duration::from_secs(5))
            .send()
            .await
            .ok()?;
        answer.json().await.ok()
    }

    /// Region `i` says that so many vote, all are up, and there is a leader.
    pub async fn wait_voters(&self, i: usize, voters: usize) {
        let what = format!("r{} sees {voters} voters; its log:\n{}", i + 1, self.log(i));
        eventually(&what, Duration::from_secs(40), || async {
            let status = self.status(i).await?;
            let up = status["regions"].as_array()?.iter();
            let up = up
                .filter(|r| r["role"] == "voter" && r["state"] == "up")
                .count();
            (status["leader"].is_string() && up == voters).then_some(())
        })
        .await;
    }
}

fn ip(args: &str) {
    must(Command::new("ip").args(args.split(' ')));
}

impl Drop for Machines {
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for i in 0..self.count {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.space(i)])
                .output();
        }
        let _ = Command::new("ip").args(["link", "del", &self.id]).output();
        let logs: Vec<String> = (0..self.count).map(|i| self.log(i)).collect();
        if std::thread::panicking() {
            let kept = self.dir.take().expect("kept until drop").keep();
            eprintln!("data and logs of the failed test: {}", kept.display());
            for (i, log) in logs.iter().enumerate() {
                let lines: Vec<&str> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(20)..].join("\n");
                eprintln!("the end of the log of r{}:\n{end}", i + 1);
            }
            return;
        }
        for log in logs {
            let bad = log
                .lines()
                .find(|line| line.contains(" ERROR ") || line.contains("panicked at"));
            assert_eq!(bad, None, "unexpected in a log");
        }
    }
}
