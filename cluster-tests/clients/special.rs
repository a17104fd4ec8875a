//! Clients that do something else than to push and pull images: artifacts with referrers, charts,
//! unpacked images, signatures.

use super::table::{Column, Row};
use super::{MIB, at_once_or_again, large};
use crate::harness::client::random_bytes;
use crate::harness::cluster::Cluster;
use crate::harness::layouts::Layout;
use crate::harness::proxy::Proxy;
use crate::harness::tools::{Skopeo, Tool, debian_version, go, go_version, patiently, said};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("temp dir")
}

fn same_file(a: &Path, b: &Path) -> Result<(), String> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    match read(a)? == read(b)? {
        true => Ok(()),
        false => Err(format!("other bytes in {}", b.display())),
    }
}

/// An artifact is pushed, pulled, and given a referrer in another region, which a third one lists.
pub fn artifacts(cluster: &Cluster) -> Result<String, String> {
    let dir = temp();
    std::fs::write(dir.path().join("report.txt"), "all is well").expect("write");
    std::fs::write(dir.path().join("signature.txt"), "signed").expect("write");
    let oras = |arguments: &[&str]| {
        said(
            go("oras")
                .current_dir(dir.path())
                .args(arguments)
                .arg("--plain-http"),
        )
    };
    let at = |i: usize| format!("{}/oras/artifact:v1", cluster.registry(i));
    let kind = "application/vnd.example.report";
    oras(&[
        "push",
        &at(0),
        "--artifact-type",
        kind,
        "report.txt:text/plain",
    ])?;
    oras(&["pull", &at(1), "--output", "pulled"])?;
    same_file(
        &dir.path().join("report.txt"),
        &dir.path().join("pulled/report.txt"),
    )?;
    let kind = "application/vnd.example.signature";
    oras(&[
        "attach",
        &at(1),
        "--artifact-type",
        kind,
        "signature.txt:text/plain",
    ])?;
    for i in 0..cluster.len() {
        let found = oras(&["discover", &at(i), "--format", "json"])?;
        let found: Value = serde_json::from_str(&found).map_err(|e| format!("discover: {e}"))?;
        let referrers = found["referrers"].as_array().map_or(0, Vec::len);
        if referrers != 1 || found["referrers"][0]["artifactType"] != kind {
            return Err(format!("region {i} lists other referrers: {found}"));
        }
    }
    Ok("artifact, attach, discover".into())
}

/// A chart of about this size, packed; `text` makes it one of a kind. A file in a chart may have
/// five MiB.
fn chart(dir: &Path, text: &str, size: usize) -> PathBuf {
    let source = dir.join(text).join("chart");
    std::fs::create_dir_all(source.join("files")).expect("create chart");
    let about = format!("apiVersion: v2\nname: chart\nversion: 1.0.0+{text}\n");
    std::fs::write(source.join("Chart.yaml"), about).expect("write");
    let mut left = size;
    while left > 0 {
        let n = left.min(4 * MIB);
        let file = source.join(format!("files/{left}"));
        std::fs::write(file, random_bytes((left + text.len()) as u64, n)).expect("write");
        left -= n;
    }
    let packed = dir.join(text);
    said(
        go("helm")
            .arg("package")
            .arg(&source)
            .arg("-d")
            .arg(&packed),
    )
    .expect("helm package");
    packed.join(format!("chart-1.0.0+{text}.tgz"))
}

fn push_chart(chart: &Path, registry: &str) -> Result<(), String> {
    let target = format!("oci://{registry}/helm");
    said(
        go("helm")
            .arg("push")
            .arg(chart)
            .args([&target, "--plain-http"]),
    )
    .map(drop)
}

fn pull_chart(registry: &str, chart: &Path) -> Result<(), String> {
    let pulled = temp();
    let name = chart
        .file_name()
        .and_then(|name| name.to_str())
        .expect("utf-8");
    let version = &name["chart-".len()..name.len() - ".tgz".len()];
    said(
        go("helm")
            .args([
                "pull",
                &format!("oci://{registry}/helm/chart"),
                "--plain-http",
            ])
            .args(["--version", version, "-d"])
            .arg(pulled.path()),
    )?;
    same_file(chart, &pulled.path().join(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_works() {
    let cluster = Cluster::start(3).await;
    let dir = temp();
    let mut row = Row::new("helm", &go_version("helm"));
    let ok = |result: Result<(), String>| result.map(|()| "ok".to_owned());
    let there_and_back = |chart: &Path, to: usize, from: usize| {
        push_chart(chart, &cluster.registry(to))?;
        pull_chart(&cluster.registry(from), chart)
    };
    let small = chart(dir.path(), "small", 1000);
    row.note(Column::Image, ok(there_and_back(&small, 0, 1)));
    row.note(Column::Again, ok(there_and_back(&small, 0, 2)));
    // The same name and version with other content.
    let other = temp();
    let other = chart(other.path(), "small", 2000);
    row.note(Column::Move, ok(there_and_back(&other, 2, 1)));
    // What helm takes from a registry is at most 100 MiB once unpacked.
    let size = large(false).min(96 * MIB);
    let big = chart(dir.path(), "large", size);
    row.note(Column::Large, ok(there_and_back(&big, 1, 0)));

    let half = 8 * MIB as u64;
    let proxy = Proxy::cutting(&cluster.registry(1), half).await;
    let cut = chart(dir.path(), "cut-push", 16 * MIB);
    let pushed = at_once_or_again(|| push_chart(&cut, &proxy.registry()));
    let pulled = pull_chart(&cluster.registry(2), &cut);
    row.note(Column::CutPush, pushed.and_then(|how| pulled.map(|()| how)));
    assert!(proxy.has_cut(), "the push went on without a cut");
    let proxy = Proxy::cutting(&cluster.registry(1), half).await;
    let cut = chart(dir.path(), "cut-pull", 16 * MIB);
    let pulled = push_chart(&cut, &cluster.registry(0))
        .and_then(|()| at_once_or_again(|| pull_chart(&proxy.registry(), &cut)));
    row.note(Column::CutPull, pulled);
    assert!(proxy.has_cut(), "the pull went on without a cut");
    row.finish();
}

/// umoci has no network: it makes and unpacks what skopeo carries.
#[tokio::test(flavor = "multi_thread")]
async fn umoci_works() {
    let cluster = Cluster::start(3).await;
    let dir = temp();
    let mut row = Row::new("umoci", &debian_version("umoci"));
    let made = dir.path().join("made");
    let tagged = format!("{}:t", made.display());
    let umoci = |arguments: &[&str]| said(patiently("umoci").args(arguments));
    let make = |bundle: &str, size: usize| {
        umoci(&["unpack", "--image", &tagged, bundle])?;
        std::fs::write(Path::new(bundle).join("rootfs/file"), random_bytes(3, size))
            .expect("write");
        umoci(&["repack", "--image", &tagged, bundle])
    };
    let carry = |to: usize, from: usize, pulled: &Path| {
        let at = |i: usize| format!("docker://{}/umoci/app:v1", cluster.registry(i));
        let copy = || {
            let mut command = patiently("skopeo");
            command.args(["copy", "--preserve-digests"]);
            command.args(["--src-tls-verify=false", "--dest-tls-verify=false"]);
            command
        };
        said(copy().arg(format!("oci:{tagged}")).arg(at(to)))?;
        said(
            copy()
                .arg(at(from))
                .arg(format!("oci:{}:t", pulled.display())),
        )
    };
    let there_and_back = |size: usize, to: usize, from: usize| {
        let work = temp();
        let path = |name: &str| work.path().join(name).display().to_string();
        make(&path("bundle"), size)?;
        carry(to, from, &work.path().join("pulled"))?;
        let image = format!("{}:t", path("pulled"));
        umoci(&["unpack", "--image", &image, &path("unpacked")])?;
        let file = |bundle: &str| work.path().join(bundle).join("rootfs/file");
        same_file(&file("bundle"), &file("unpacked"))?;
        Ok("ok, carried by skopeo".to_owned())
    };
    umoci(&["init", "--layout", made.to_str().expect("utf-8")]).expect("umoci init");
    umoci(&["new", "--image", &tagged]).expect("umoci new");
    row.note(Column::Image, there_and_back(1000, 0, 1));
    row.note(Column::Move, there_and_back(2000, 1, 2));
    row.note(Column::Large, there_and_back(large(false), 2, 0));
    row.finish();
}

/// A signature that is made in one region is found and holds in the others.
#[ignore = "cosign takes minutes to build: just long clients"]
#[tokio::test(flavor = "multi_thread")]
async fn cosign_works() {
    let cluster = Cluster::start(3).await;
    let dir = temp();
    let mut row = Row::new("cosign", &go_version("cosign"));
    let image = Layout::new(dir.path(), "signed", &["amd64"], &[1000]);
    let at = |i: usize| format!("{}/cosign/app", cluster.registry(i));
    Skopeo.push(&image, &format!("{}:v1", at(0))).expect("push");
    let cosign = |arguments: &[&str]| {
        said(
            go("cosign")
                .current_dir(dir.path())
                .env("COSIGN_PASSWORD", "")
                .args(arguments),
        )
    };
    cosign(&["generate-key-pair"]).expect("make keys");
    let by_digest = |i: usize| format!("{}@{}", at(i), image.top.digest);
    // Without the public log, which is not reached from here.
    let sign = ["sign", "--yes", "--key=cosign.key", "--allow-http-registry"];
    let alone = ["--tlog-upload=false", "--use-signing-config=false"];
    let signed = cosign(&[&sign[..], &alone, &[&by_digest(0)]].concat());
    let verify = ["verify", "--key=cosign.pub", "--allow-http-registry"];
    let alone = ["--insecure-ignore-tlog"];
    let holds = signed.and_then(|_| {
        cosign(&[&verify[..], &alone, &[&by_digest(1)]].concat())?;
        cosign(&[&verify[..], &alone, &[&by_digest(2)]].concat())
    });
    row.note(Column::Also, holds.map(|_| "sign, verify".into()));
    row.finish();
}
