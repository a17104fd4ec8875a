//! Clients of others as one kind of thing: each pushes an image layout and pulls it back. They are
//! Debian packages, or what `go install` put in place (`.ci/install`), or a crate. Each works in
//! directories of its own, so that a pull never finds what a push left behind.

use super::images::must;
use super::layouts::Layout;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;

/// Longer than any operation takes on a busy machine.
const PATIENCE: &str = "900";

/// An error is what the client said.
pub trait Tool {
    fn name(&self) -> &'static str;
    fn version(&self) -> String;
    /// Every image of the layout, and its index if it has one, to `HOST/REPOSITORY:TAG`.
    fn push(&self, image: &Layout, to: &str) -> Result<(), String>;
    /// All of them back, compared byte for byte.
    fn pull(&self, from: &str, image: &Layout) -> Result<(), String>;
    /// None when the client has no such command.
    fn delete(&self, _name: &str) -> Option<Result<(), String>> {
        None
    }
}

/// Where `go install` puts programs.
fn go_bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        let env = |name| must(Command::new("go").args(["env", name]));
        match env("GOBIN") {
            own if !own.is_empty() => PathBuf::from(own),
            _ => PathBuf::from(env("GOPATH")).join("bin"),
        }
    })
}

/// A program that `go install` put in place.
pub fn go(program: &str) -> Command {
    patiently(go_bin().join(program))
}

/// A program that is ended when it hangs, run by whoever is running things (`User::runs`).
pub fn patiently(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", PATIENCE])
        .arg(program.as_ref())
        .envs(super::user::environment());
    command
}

/// What it printed on stdout, or that it failed and everything it said.
pub fn said(command: &mut Command) -> Result<String, String> {
    let output = super::images::run(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!(
            "{command:?}: {}: {} {}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        )),
    }
}

/// The version of a Go program, as it was built.
pub fn go_version(program: &str) -> String {
    let said = must(
        Command::new("go")
            .args(["version", "-m"])
            .arg(go_bin().join(program)),
    );
    let module = said.lines().find(|line| line.trim().starts_with("mod"));
    let version = module.and_then(|line| line.split_whitespace().nth(2));
    version.expect("a module version").to_owned()
}

/// The version of a Debian package, without Debian's own part.
pub fn debian_version(package: &str) -> String {
    let version = must(Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]));
    let end = version.find(['+', '~', '-']).unwrap_or(version.len());
    version[..end].to_owned()
}

fn temp() -> TempDir {
    tempfile::tempdir().expect("temp dir")
}

pub struct Skopeo;

impl Tool for Skopeo {
    fn name(&self) -> &'static str {
        "skopeo"
    }

    fn version(&self) -> String {
        debian_version("skopeo")
    }

    fn push(&self, image: &Layout, to: &str) -> Result<(), String> {
        let copy = [
            "copy",
            "--all",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ];
        said(
            patiently("skopeo")
                .args(copy)
                .arg(format!("oci:{}", image.tagged()))
                .arg(format!("docker://{to}")),
        )
        .map(drop)
    }

    fn pull(&self, from: &str, image: &Layout) -> Result<(), String> {
        let pulled = temp();
        let copy = [
            "copy",
            "--all",
            "--preserve-digests",
            "--src-tls-verify=false",
        ];
        said(
            patiently("skopeo")
                .args(copy)
                .arg(format!("docker://{from}"))
                .arg(format!("oci:{}:t", pulled.path().display())),
        )?;
        image.same_blobs_in(pulled.path())
    }

    fn delete(&self, name: &str) -> Option<Result<(), String>> {
        let delete = ["delete", "--tls-verify=false", &format!("docker://{name}")];
        Some(said(patiently("skopeo").args(delete)).map(drop))
    }
}

/// podman or buildah, each time with a storage of its own.
pub struct Engine(pub &'static str);

struct Storage {
    program: &'static str,
    dir: TempDir,
}

impl Storage {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = patiently(self.program);
        command
            .arg("--root")
            .arg(self.dir.path().join("root"))
            .arg("--runroot")
            .arg(self.dir.path().join("run"))
            .args(["--storage-driver", "overlay"])
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        said(&mut self.command(arguments))
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // The programs leave it mounted when they fail.
        let _ = Command::new("umount")
            .args(["--recursive", "--quiet"])
            .arg(self.dir.path().join("root/overlay"))
            .output();
    }
}

impl Engine {
    fn storage(&self) -> Storage {
        Storage {
            program: self.0,
            dir: temp(),
        }
    }
}

impl Tool for Engine {
    fn name(&self) -> &'static str {
        self.0
    }

    fn version(&self) -> String {
        debian_version(self.0)
    }

    fn push(&self, image: &Layout, to: &str) -> Result<(), String> {
        let storage = self.storage();
        let target = format!("docker://{to}");
        if image.is_index() {
            let source = format!("oci:{}", image.tagged());
            storage.run(&["manifest", "create", "list"])?;
            storage.run(&["manifest", "add", "--all", "list", &source])?;
            let push = ["manifest", "push", "--all", "--tls-verify=false", "list"];
            storage.run(&[&push[..], &[&target]].concat())?;
        } else {
            // The path becomes a name, which has no upper case.
            let name = image.dir.file_name().and_then(|name| name.to_str());
            let source = format!("oci:{}:t", name.expect("utf-8"));
            let id = said(
                storage
                    .command(&["pull", "-q", &source])
                    .current_dir(image.dir.parent().expect("has one")),
            )?;
            storage.run(&["push", "--tls-verify=false", &id, &target])?;
        }
        Ok(())
    }

    fn pull(&self, from: &str, image: &Layout) -> Result<(), String> {
        for platform in &image.images {
            let storage = self.storage();
            let pull = ["pull", "-q", "--tls-verify=false", "--arch"];
            let id = storage.run(&[&pull[..], &[platform.architecture, from]].concat())?;
            if self.0 == "podman" {
                let root = storage.run(&["image", "mount", &id])?;
                let same = platform.same_files_in(Path::new(&root));
                storage.run(&["image", "unmount", &id])?;
                same?;
            } else {
                let container = storage.run(&["from", "--pull-never", &id])?;
                let root = storage.run(&["mount", &container])?;
                let same = platform.same_files_in(Path::new(&root));
                storage.run(&["umount", &container])?;
                same?;
            }
        }
        Ok(())
    }
}

pub struct Crane;

impl Tool for Crane {
    fn name(&self) -> &'static str {
        "crane"
    }

    fn version(&self) -> String {
        go_version("crane")
    }

    fn push(&self, image: &Layout, to: &str) -> Result<(), String> {
        let mut push = go("crane");
        push.arg("push");
        if image.is_index() {
            push.arg("--index");
        }
        said(push.arg(&image.dir).arg(to)).map(drop)
    }

    fn pull(&self, from: &str, image: &Layout) -> Result<(), String> {
        let pulled = temp();
        said(
            go("crane")
                .args(["pull", "--format=oci", from])
                .arg(pulled.path()),
        )?;
        image.same_blobs_in(pulled.path())
    }

    fn delete(&self, name: &str) -> Option<Result<(), String>> {
        let delete = || {
            let digest = said(go("crane").args(["digest", "--full-ref", name]))?;
            said(go("crane").args(["delete", &digest])).map(drop)
        };
        Some(delete())
    }
}

pub struct Oras;

impl Tool for Oras {
    fn name(&self) -> &'static str {
        "oras"
    }

    fn version(&self) -> String {
        go_version("oras")
    }

    fn push(&self, image: &Layout, to: &str) -> Result<(), String> {
        let copy = [
            "cp",
            "--from-oci-layout",
            "--to-plain-http",
            &image.tagged(),
            to,
        ];
        said(go("oras").args(copy)).map(drop)
    }

    fn pull(&self, from: &str, image: &Layout) -> Result<(), String> {
        let pulled = temp();
        let target = format!("{}:t", pulled.path().display());
        let copy = ["cp", "--from-plain-http", "--to-oci-layout", from, &target];
        said(go("oras").args(copy))?;
        image.same_blobs_in(pulled.path())
    }

    fn delete(&self, name: &str) -> Option<Result<(), String>> {
        let delete = ["manifest", "delete", "--plain-http", "--force", name];
        Some(said(go("oras").args(delete)).map(drop))
    }
}

pub struct Regctl;

/// With plain HTTP for the registry of this name.
fn regctl(name: &str) -> Command {
    let mut command = go("regctl");
    let registry = name.split('/').next().expect("a part");
    command
        .arg("--host")
        .arg(format!("reg={registry},tls=disabled"));
    command
}

impl Tool for Regctl {
    fn name(&self) -> &'static str {
        "regctl"
    }

    fn version(&self) -> String {
        go_version("regctl")
    }

    fn push(&self, image: &Layout, to: &str) -> Result<(), String> {
        let source = format!("ocidir://{}", image.tagged());
        said(regctl(to).args(["image", "copy", &source, to])).map(drop)
    }

    fn pull(&self, from: &str, image: &Layout) -> Result<(), String> {
        let pulled = temp();
        let target = format!("ocidir://{}:t", pulled.path().display());
        said(regctl(from).args(["image", "copy", from, &target]))?;
        image.same_blobs_in(pulled.path())
    }

    fn delete(&self, name: &str) -> Option<Result<(), String>> {
        Some(said(regctl(name).args(["tag", "delete", name])).map(drop))
    }
}

/// The crate `oci-client`, as programs in Rust use it.
pub struct OciClient;

impl OciClient {
    fn client() -> oci_client::Client {
        oci_client::Client::new(oci_client::client::ClientConfig {
            protocol: oci_client::client::ClientProtocol::Http,
            ..Default::default()
        })
    }

    async fn push(image: &Layout, to: &oci_client::Reference) -> Result<(), String> {
        let client = OciClient::client();
        client
            .store_auth_if_needed(to.registry(), &oci_client::secrets::RegistryAuth::Anonymous)
            .await;
        for platform in &image.images {
            for blob in &platform.blobs {
                let bytes = std::fs::read(image.blob(&blob.digest)).expect("read blob");
                let pushed = client.push_blob(to, bytes, &blob.digest).await;
                pushed.map_err(|e| format!("push {}: {e}", blob.digest))?;
            }
        }
        let by_digest = image.images.iter().map(|platform| {
            let digest = platform.manifest.digest.clone();
            (to.clone_with_digest(digest), &platform.manifest)
        });
        for (to, manifest) in by_digest.chain([(to.clone(), &image.top)]) {
            let bytes = std::fs::read(image.blob(&manifest.digest)).expect("read manifest");
            let media_type = manifest.media_type.parse().expect("a header value");
            let pushed = client.push_manifest_raw(&to, bytes, media_type).await;
            pushed.map_err(|e| format!("push {to}: {e}"))?;
        }
        Ok(())
    }

    async fn pull(from: &oci_client::Reference, image: &Layout) -> Result<(), String> {
        let client = OciClient::client();
        let auth = oci_client::secrets::RegistryAuth::Anonymous;
        let by_digest = image.images.iter().map(|platform| {
            let digest = platform.manifest.digest.clone();
            (from.clone_with_digest(digest), &platform.manifest)
        });
        for (from, manifest) in by_digest.chain([(from.clone(), &image.top)]) {
            let pulled = client
                .pull_manifest_raw(&from, &auth, &[manifest.media_type])
                .await;
            let (bytes, digest) = pulled.map_err(|e| format!("pull {from}: {e}"))?;
            let expected = std::fs::read(image.blob(&manifest.digest)).expect("read manifest");
            if digest != manifest.digest || bytes != expected {
                return Err(format!("another manifest under {from}: {digest}"));
            }
        }
        for blob in image.images.iter().flat_map(|platform| &platform.blobs) {
            let mut bytes = Vec::new();
            let descriptor = oci_client::manifest::OciDescriptor {
                media_type: blob.media_type.to_owned(),
                digest: blob.digest.clone(),
                size: i64::try_from(blob.size).expect("a size"),
                ..Default::default()
            };
            let pulled = client.pull_blob(from, &descriptor, &mut bytes).await;
            pulled.map_err(|e| format!("pull {}: {e}", blob.digest))?;
            if bytes != std::fs::read(image.blob(&blob.digest)).expect("read blob") {
                return Err(format!("other bytes of {}", blob.digest));
            }
        }
        Ok(())
    }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work))
}

impl Tool for OciClient {
    fn name(&self) -> &'static str {
        "oci-client"
    }

    fn version(&self) -> String {
        let lock = include_str!("../../Cargo.lock");
        let (_, rest) = lock
            .split_once("name = \"oci-client\"\nversion = \"")
            .expect("locked");
        rest.split('"').next().expect("a version").to_owned()
    }

    fn push(&self, image: &Layout, to: &str) -> Result<(), String> {
        wait(OciClient::push(image, &to.parse().expect("a reference")))
    }

    fn pull(&self, from: &str, image: &Layout) -> Result<(), String> {
        wait(OciClient::pull(&from.parse().expect("a reference"), image))
    }
}
