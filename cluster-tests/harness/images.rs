//! Real images and real clients: buildah builds from Debian's busybox-static, skopeo and podman
//! push and pull. Each builds once per test process.

use rand::{RngExt, SeedableRng};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

fn work() -> &'static Path {
    static WORK: OnceLock<PathBuf> = OnceLock::new();
    WORK.get_or_init(|| {
        let dir =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("images-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("create image directory");
        dir
    })
}

/// Runs to the end; panics with what it said when it fails.
pub fn must(command: &mut Command) -> String {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub fn run(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}; .ci/install puts it there"))
}

/// With storage of its own, so that nothing of the machine's is touched.
fn buildah() -> Command {
    let mut command = Command::new("buildah");
    command
        .arg("--root")
        .arg(work().join("storage"))
        .arg("--runroot")
        .arg(work().join("run"))
        .args(["--storage-driver", "vfs"]);
    command
}

fn build(name: &str, layers: &[Vec<u8>]) -> PathBuf {
    let image = work().join(name);
    let container = must(buildah().args(["from", "scratch"]));
    must(buildah().args(["copy", &container, "/bin/busybox", "/bin/busybox"]));
    must(buildah().args(["config", "--cmd", "/bin/busybox", &container]));
    let mut previous = container;
    for (i, layer) in layers.iter().enumerate() {
        let file = work().join(format!("{name}-{i}"));
        std::fs::write(&file, layer).expect("write layer content");
        let committed = format!("localhost/{name}:{i}");
        must(buildah().args(["commit", "--disable-compression", &previous, &committed]));
        previous = must(buildah().args(["from", &committed]));
        let target = format!("/data/{i}");
        must(buildah().args(["copy", &previous, file.to_str().expect("utf-8"), &target]));
    }
    let target = format!("dir:{}", image.display());
    must(buildah().args(["commit", "--disable-compression", &previous, &target]));
    image
}

/// A real image of about a megabyte, as a skopeo `dir:`.
pub fn busybox() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| build("busybox", &[]))
}

/// A real image of more than 200 MB: busybox and four layers that do not compress.
pub fn large() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let layers: Vec<Vec<u8>> = (0..4)
            .map(|_| {
                let mut layer = vec![0; 52 << 20];
                rng.fill(&mut layer[..]);
                layer
            })
            .collect();
        build("large", &layers)
    })
}

/// `skopeo copy` of an image directory to a registry.
pub fn skopeo_push(image: &Path, registry: &str, name: &str) -> Output {
    run(Command::new("skopeo")
        .args(["copy", "--preserve-digests", "--dest-tls-verify=false"])
        .arg(format!("dir:{}", image.display()))
        .arg(format!("docker://{registry}/{name}")))
}

/// `skopeo copy` from a registry into a new directory, which it returns with the output.
pub fn skopeo_pull(registry: &str, name: &str) -> (tempfile::TempDir, Output) {
    let target = tempfile::tempdir_in(work()).expect("temp dir");
    let output = run(Command::new("skopeo")
        .args(["copy", "--src-tls-verify=false"])
        .arg(format!("docker://{registry}/{name}"))
        .arg(format!("dir:{}", target.path().display())));
    (target, output)
}

/// The manifest of two image directories is the same, byte for byte, and so is every blob's name
/// (skopeo has checked the digests of the bytes).
pub fn same_image(a: &Path, b: &Path) -> bool {
    let manifest = |dir: &Path| std::fs::read(dir.join("manifest.json")).expect("read manifest");
    let files = |dir: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .expect("list image directory")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        names.sort();
        names
    };
    manifest(a) == manifest(b) && files(a) == files(b)
}

/// podman with storage of its own.
pub fn podman(storage: &Path) -> Command {
    let mut command = Command::new("podman");
    command
        .arg("--root")
        .arg(storage.join("root"))
        .arg("--runroot")
        .arg(storage.join("run"))
        .args(["--storage-driver", "vfs"]);
    command
}
