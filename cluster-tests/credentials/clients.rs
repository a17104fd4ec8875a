//! How each client logs in, and helm as one that carries images: the chart stands for them.

use crate::harness::daemons::{Containerd, Docker};
use crate::harness::layouts::Layout;
use crate::harness::tools::{Crane, Engine, Oras, Skopeo, Tool, go, go_version, patiently, said};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

pub trait Client: Tool {
    /// With the client's own command where it has one; what it keeps is the user's.
    fn login(&self, registry: &str, name: &str, secret: &str) -> Result<(), String>;

    /// Whether the registry is asked when somebody logs in. A client that only writes down what
    /// it was given is refused when it pulls.
    fn asks_at_login(&self) -> bool {
        true
    }
}

fn done(command: &mut Command) -> Result<(), String> {
    said(command).map(drop)
}

impl Client for Docker {
    fn login(&self, registry: &str, name: &str, secret: &str) -> Result<(), String> {
        Docker::login(self, registry, name, secret)
    }
}

/// podman and skopeo have the same command.
fn containers_login(program: &str, registry: &str, name: &str, secret: &str) -> Result<(), String> {
    done(patiently(program).args([
        "login",
        "--tls-verify=false",
        "-u",
        name,
        "-p",
        secret,
        registry,
    ]))
}

impl Client for Engine {
    fn login(&self, registry: &str, name: &str, secret: &str) -> Result<(), String> {
        containers_login(self.0, registry, name, secret)
    }
}

impl Client for Skopeo {
    fn login(&self, registry: &str, name: &str, secret: &str) -> Result<(), String> {
        containers_login("skopeo", registry, name, secret)
    }
}

impl Client for Containerd {
    /// `ctr` takes it with each command (`User::pair`).
    fn login(&self, _registry: &str, _name: &str, _secret: &str) -> Result<(), String> {
        Ok(())
    }

    fn asks_at_login(&self) -> bool {
        false
    }
}

impl Client for Crane {
    fn login(&self, registry: &str, name: &str, secret: &str) -> Result<(), String> {
        done(go("crane").args(["auth", "login", registry, "-u", name, "-p", secret]))
    }

    fn asks_at_login(&self) -> bool {
        false
    }
}

impl Client for Oras {
    fn login(&self, registry: &str, name: &str, secret: &str) -> Result<(), String> {
        done(go("oras").args(["login", "--plain-http", "-u", name, "-p", secret, registry]))
    }
}

/// An image is a chart with the image's digest in it.
pub struct Helm {
    charts: TempDir,
}

impl Helm {
    pub fn new() -> Helm {
        Helm {
            charts: tempfile::tempdir().expect("temp dir"),
        }
    }

    /// Packed once, since helm writes the time into it; and its registry, repository and version.
    fn chart(&self, image: &Layout, reference: &str) -> (PathBuf, [String; 3]) {
        let (repository, version) = reference.rsplit_once(':').expect("a tag");
        let (parent, name) = repository.rsplit_once('/').expect("a repository");
        let hex = image.top.digest.rsplit(':').next().expect("a digest");
        let dir = self.charts.path().join(hex);
        let packed = dir.join(format!("{name}-{version}.tgz"));
        if !packed.exists() {
            let source = dir.join(name);
            std::fs::create_dir_all(&source).expect("create chart");
            let about = format!("apiVersion: v2\nname: {name}\nversion: {version}\n");
            std::fs::write(source.join("Chart.yaml"), about).expect("write chart");
            let values = format!("image: {}\n", image.top.digest);
            std::fs::write(source.join("values.yaml"), values).expect("write chart");
            said(go("helm").arg("package").arg(&source).arg("-d").arg(&dir)).expect("package");
        }
        (packed, [parent, name, version].map(str::to_owned))
    }
}

impl Tool for Helm {
    fn name(&self) -> &'static str {
        "helm"
    }

    fn version(&self) -> String {
        go_version("helm")
    }

    fn push(&self, image: &Layout, to: &str) -> Result<(), String> {
        let (chart, [parent, ..]) = self.chart(image, to);
        let target = format!("oci://{parent}");
        let mut push = go("helm");
        done(push.arg("push").arg(chart).args([&target, "--plain-http"]))
    }

    fn pull(&self, from: &str, image: &Layout) -> Result<(), String> {
        let (chart, [parent, name, version]) = self.chart(image, from);
        let pulled = tempfile::tempdir().expect("temp dir");
        let source = format!("oci://{parent}/{name}");
        done(
            go("helm")
                .args(["pull", &source, "--plain-http", "--version", &version, "-d"])
                .arg(pulled.path()),
        )?;
        let file = pulled.path().join(chart.file_name().expect("has one"));
        match std::fs::read(&file).ok() == Some(std::fs::read(chart).expect("read chart")) {
            true => Ok(()),
            false => Err(format!("other bytes in {}", file.display())),
        }
    }
}

impl Client for Helm {
    fn login(&self, registry: &str, name: &str, secret: &str) -> Result<(), String> {
        let login = [
            "registry",
            "login",
            "--plain-http",
            "-u",
            name,
            "-p",
            secret,
        ];
        done(go("helm").args(login).arg(registry))
    }
}
