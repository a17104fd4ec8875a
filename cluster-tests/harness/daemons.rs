//! Daemons of others, of the test's own: everything they keep is in one directory, and they end
//! with it. The docker engine and containerd as clients, nginx as a proxy with TLS.

use super::cluster::free_port;
use super::images::must;
use super::layouts::{Layout, PlatformImage};
use super::tools::{Tool, debian_version, patiently, said};
use super::user;
use super::wait::eventually;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpStream;

struct Daemon {
    child: Child,
    dir: TempDir,
}

impl Daemon {
    fn start(dir: TempDir, command: &mut Command) -> Daemon {
        let log = File::create(dir.path().join("log")).expect("create log");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("clone log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}; .ci/install puts it there"));
        Daemon { child, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn answers(&self, ask: impl Fn() -> Command) {
        let what = format!("it answers (log: {})", self.path("log").display());
        let answer = || async { said(&mut ask()).ok() };
        eventually(&what, Duration::from_secs(60), answer).await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("not zero");
        // It ends its own children, and unmounts.
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.child.wait();
    }
}

/// nginx that ends TLS on one port for each region, and tells the registry nothing of it: not the
/// name that the client used, nor the scheme.
pub struct TlsProxy {
    daemon: Daemon,
    /// One for each target.
    pub addresses: Vec<SocketAddr>,
}

impl TlsProxy {
    /// With a certificate for `names`.
    pub async fn start(targets: &[String], names: &[&str]) -> TlsProxy {
        let free = targets.iter().map(|_| free_port(Ipv4Addr::LOCALHOST));
        TlsProxy::start_at(free.collect(), targets, names).await
    }

    /// On these addresses, which the registry may have to know beforehand.
    pub async fn start_at(
        addresses: Vec<SocketAddr>,
        targets: &[String],
        names: &[&str],
    ) -> TlsProxy {
        let dir = tempfile::tempdir().expect("temp dir");
        let at = dir.path().display().to_string();
        let names: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
        let make = ["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test"];
        must(
            Command::new("openssl")
                .args(make)
                .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
                .args(["-addext", &format!("subjectAltName={}", names.join(","))])
                .args(["-addext", "basicConstraints=critical,CA:FALSE"])
                .args([
                    "-keyout",
                    &format!("{at}/key"),
                    "-out",
                    &format!("{at}/cert"),
                ]),
        );
        let mut servers = String::new();
        for (target, address) in targets.iter().zip(&addresses) {
            servers += &format!(
                "server {{ listen {address} ssl; location / {{ proxy_pass http://{target}; }} }}\n"
            );
        }
        let config = format!(
            "daemon off; user root; pid {at}/pid; error_log stderr;
             events {{ worker_connections 768; }}
             http {{ access_log off; client_max_body_size 0;
               proxy_request_buffering off; proxy_http_version 1.1;
               ssl_certificate {at}/cert; ssl_certificate_key {at}/key;
               client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
               fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
               {servers} }}"
        );
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, config).expect("write config");
        let mut command = Command::new("nginx");
        let daemon = Daemon::start(dir, command.args(["-p", "/", "-c"]).arg(file));
        let what = format!("nginx listens (log: {})", daemon.path("log").display());
        for address in &addresses {
            let connect = || async { TcpStream::connect(address).await.ok() };
            eventually(&what, Duration::from_secs(30), connect).await;
        }
        TlsProxy { daemon, addresses }
    }

    pub fn certificate(&self) -> PathBuf {
        self.daemon.path("cert")
    }
}

/// Debian's engine.
pub struct Docker(Daemon);

impl Docker {
    pub async fn start() -> Docker {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut command = Command::new("dockerd");
        command
            .arg("--data-root")
            .arg(dir.path().join("data"))
            .arg("--exec-root")
            .arg(dir.path().join("exec"))
            .arg("--pidfile")
            .arg(dir.path().join("pid"))
            .arg("--host")
            .arg(format!("unix://{}/sock", dir.path().display()))
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
        let docker = Docker(Daemon::start(dir, &mut command));
        let ask = || {
            let mut command = docker.command();
            command.arg("version");
            command
        };
        docker.0.answers(ask).await;
        docker
    }

    /// The command line's own, with a configuration of this test.
    pub fn cli(&self, arguments: &[&str]) -> Result<String, String> {
        self.run(arguments)
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.0.path("sock").display())
    }

    fn command(&self) -> Command {
        let mut command = patiently("/usr/bin/docker");
        if user::environment().is_empty() {
            command.env("DOCKER_CONFIG", self.0.path("config"));
        }
        command
            .env("DOCKER_CLI_EXPERIMENTAL", "enabled")
            .args(["--host", &self.socket()]);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        said(self.command().args(arguments))
    }

    pub fn login(&self, registry: &str, name: &str, secret: &str) -> Result<(), String> {
        self.run(&["login", registry, "-u", name, "-p", secret])
            .map(drop)
    }

    fn push_image(&self, image: &Layout, platform: &PlatformImage, to: &str) -> Result<(), String> {
        said(
            patiently("skopeo")
                .args(["--override-arch", platform.architecture, "copy"])
                .args(["--dest-daemon-host", &self.socket()])
                .arg(format!("oci:{}", image.tagged()))
                .arg(format!("docker-daemon:{to}")),
        )?;
        self.run(&["push", "--quiet", to]).map(drop)
    }
}

impl Tool for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn version(&self) -> String {
        debian_version("docker.io")
    }

    fn push(&self, image: &Layout, to: &str) -> Result<(), String> {
        if !image.is_index() {
            return self.push_image(image, &image.images[0], to);
        }
        let mut create = vec!["manifest", "create", "--insecure", to];
        let parts: Vec<String> = image
            .images
            .iter()
            .map(|platform| format!("{to}-{}", platform.architecture))
            .collect();
        for (platform, part) in image.images.iter().zip(&parts) {
            self.push_image(image, platform, part)?;
            create.push(part);
        }
        self.run(&create)?;
        let push = ["manifest", "push", "--insecure", "--purge", to];
        self.run(&push).map(drop)
    }

    fn pull(&self, from: &str, image: &Layout) -> Result<(), String> {
        let kept = self.run(&["image", "ls", "--quiet"])?;
        let mut ids: Vec<&str> = kept.lines().collect();
        ids.sort_unstable();
        ids.dedup();
        if !ids.is_empty() {
            self.run(&[&["image", "rm", "--force"], &ids[..]].concat())?;
        }
        for platform in &image.images {
            let architecture = format!("linux/{}", platform.architecture);
            self.run(&["pull", "--quiet", "--platform", &architecture, from])?;
            let container = self.run(&["create", "--platform", &architecture, from])?;
            let out = tempfile::tempdir().expect("temp dir");
            let target = out.path().to_str().expect("utf-8");
            self.run(&["cp", &format!("{container}:/data"), target])?;
            self.run(&["rm", &container])?;
            platform.same_files_in(out.path())?;
        }
        Ok(())
    }
}

/// containerd, through its `ctr`. Namespaces do not share content, so a pull into a new one
/// fetches everything.
pub struct Containerd {
    daemon: Daemon,
    namespaces: AtomicUsize,
}

impl Containerd {
    pub async fn start() -> Containerd {
        let dir = tempfile::tempdir().expect("temp dir");
        let at = dir.path().display();
        let config = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{at}/sock\"\n[ttrpc]\naddress = \"{at}/sock.ttrpc\"\n\
             [plugins.\"io.containerd.metadata.v1.bolt\"]\ncontent_sharing_policy = \"isolated\"\n"
        );
        let file = dir.path().join("config.toml");
        std::fs::write(&file, config).expect("write config");
        let daemon = Daemon::start(dir, Command::new("containerd").arg("--config").arg(file));
        let containerd = Containerd {
            daemon,
            namespaces: AtomicUsize::new(0),
        };
        let ask = || {
            let mut command = containerd.ctr("first");
            command.arg("version");
            command
        };
        containerd.daemon.answers(ask).await;
        containerd
    }

    fn ctr(&self, namespace: &str) -> Command {
        let mut command = patiently("ctr");
        command
            .arg("--address")
            .arg(self.daemon.path("sock"))
            .args(["--namespace", namespace]);
        command
    }

    fn namespace(&self) -> String {
        format!("n{}", self.namespaces.fetch_add(1, Ordering::Relaxed))
    }

    /// The images of a namespace go, and what only they held.
    fn empty(&self, namespace: &str) {
        let images = must(self.ctr(namespace).args(["images", "ls", "--quiet"]));
        let images = images.lines();
        must(
            self.ctr(namespace)
                .args(["images", "rm", "--sync"])
                .args(images),
        );
    }
}

impl Tool for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn version(&self) -> String {
        debian_version("containerd")
    }

    fn push(&self, image: &Layout, to: &str) -> Result<(), String> {
        let namespace = self.namespace();
        let archive = tempfile::NamedTempFile::new().expect("temp file");
        let tar = Command::new("tar")
            .arg("-C")
            .arg(&image.dir)
            .arg("-cf")
            .arg(archive.path())
            .arg(".")
            .status();
        assert!(tar.expect("run tar").success());
        let import = ["images", "import", "--no-unpack", "--all-platforms"];
        said(
            self.ctr(&namespace)
                .args(import)
                .args(["--base-name", "local/image"])
                .arg(archive.path()),
        )?;
        let mut push = self.ctr(&namespace);
        user::pair(push.args(["images", "push", "--plain-http"]));
        let pushed = said(push.args([to, "local/image:t"]));
        self.empty(&namespace);
        pushed.map(drop)
    }

    fn pull(&self, from: &str, image: &Layout) -> Result<(), String> {
        let namespace = self.namespace();
        let mut pull = self.ctr(&namespace);
        user::pair(pull.args(["images", "pull", "--plain-http", "--all-platforms"]));
        said(pull.arg(from))?;
        let content = self.daemon.path("root/io.containerd.content.v1.content");
        let same = image.same_blobs_in(&content);
        self.empty(&namespace);
        same
    }
}
