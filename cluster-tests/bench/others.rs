//! What Roadstead is held against, as Debian ships it: nginx for files, docker-registry for the
//! API. Both with their usual settings, logs off.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub struct Other {
    pub address: SocketAddr,
    pub dir: TempDir,
    child: Child,
}

impl Other {
    #[allow(
        clippy::disallowed_methods,
        reason = "the pause of a loop that waits for a condition, without a runtime"
    )]
    fn start(dir: TempDir, address: SocketAddr, command: &mut Command) -> Other {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("installed by .ci/install");
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Other {
            address,
            dir,
            child,
        }
    }

    /// Serves the files under its directory `www`.
    pub fn nginx() -> Other {
        let (dir, address) = place();
        std::fs::create_dir(dir.path().join("www")).expect("make a directory");
        let at = dir.path().display();
        let config = format!(
            "daemon off; user root; worker_processes auto; pid {at}/pid; error_log /dev/null;
             events {{ worker_connections 768; }}
             http {{ sendfile on; tcp_nopush on; access_log off; keepalive_requests 1000000;
               client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
               fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
               server {{ listen {address}; root {at}/www; }} }}"
        );
        let file = write(dir.path(), "nginx.conf", &config);
        Other::start(
            dir,
            address,
            Command::new("nginx").args(["-p", "/", "-c", &file]),
        )
    }

    /// CNCF distribution 2.8 on its file system driver.
    pub fn docker_registry() -> Other {
        let (dir, address) = place();
        let at = dir.path().display();
        let config = format!(
            "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
             storage: {{ filesystem: {{ rootdirectory: {at}/data }}, cache: {{ blobdescriptor: inmemory }} }}\n\
             http: {{ addr: '{address}' }}\n"
        );
        let file = write(dir.path(), "config.yml", &config);
        Other::start(
            dir,
            address,
            Command::new("docker-registry").args(["serve", &file]),
        )
    }
}

fn place() -> (TempDir, SocketAddr) {
    let address = crate::harness::cluster::free_port(Ipv4Addr::LOCALHOST);
    (tempfile::tempdir().expect("temp dir"), address)
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("write a configuration");
    path.to_str().expect("utf-8").to_owned()
}

impl Drop for Other {
    fn drop(&mut self) {
        // nginx's workers end with their master, but only when it is asked.
        let pid = i32::try_from(self.child.id()).expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid).expect("not zero");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Requests a second of `wrk` with 32 connections, for five seconds.
pub fn wrk(address: SocketAddr, path: &str) -> f64 {
    let output = Command::new("wrk")
        .args([
            "-t",
            "1",
            "-c",
            "32",
            "-d",
            "5s",
            "-H",
            &format!("accept: {}", crate::harness::client::IMAGE),
        ])
        .arg(format!("http://{address}{path}"))
        .output()
        .expect("installed by .ci/install");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && !text.contains("Non-2xx"),
        "{text}"
    );
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"));
    line.expect(&text).trim().parse().expect(&text)
}
