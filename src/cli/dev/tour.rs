//! What `dev` prints to try: every line behind a `$` works as printed, from any directory, with
//! nothing downloaded. So there is a sample image to push, as an OCI layout in the data directory.

use super::plan::Plan;
use super::plan::quoted;
use crate::login::ADMIN;
use sha2::Digest;
use std::fmt::Write;
use std::io;
use std::path::Path;

const TEXT: &[u8] = b"Hello from a roadstead.\n";

pub fn text(plan: &Plan) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = compose(plan, &mut text);
    text
}

fn compose(plan: &Plan, out: &mut String) -> std::fmt::Result {
    let regions = &plan.regions;
    let (first, last) = (&regions[0], &regions[regions.len() - 1]);
    let others = regions.len() > 1;
    let sample = quoted(&plan.dir.join("sample"));
    let executable = quoted(&plan.executable);
    match regions.len() {
        1 => writeln!(out, "One region is ready:\n")?,
        n => writeln!(
            out,
            "{n} regions are ready; each is a registry with the same content:\n"
        )?,
    }
    for region in regions {
        let ops = region.ops;
        writeln!(
            out,
            "  {}  127.0.0.1:{}  metrics http://127.0.0.1:{ops}/metrics",
            region.name, region.registry
        )?;
    }
    if let Some(admin) = &plan.admin {
        let urls: Vec<String> = regions.iter().map(|region| region.url()).collect();
        writeln!(
            out,
            "\nLog in (skopeo, podman and docker then know the password too):"
        )?;
        writeln!(
            out,
            "  $ {executable} login --server {} --user {ADMIN} --password-stdin < {}",
            urls.join(","),
            quoted(&admin.file)
        )?;
    }
    writeln!(
        out,
        "\nPush an image (this one is a sample; any other will do):"
    )?;
    writeln!(
        out,
        "  $ skopeo copy --dest-tls-verify=false oci:{sample}:hello docker://127.0.0.1:{}/hello:v1",
        first.registry
    )?;
    if others {
        writeln!(out, "Lose the region that took it, as in a power cut:")?;
        writeln!(out, "  $ {}", plan.own_command("kill r1"))?;
    }
    writeln!(out, "Pull it from {}:", last.name)?;
    writeln!(
        out,
        "  $ skopeo copy --src-tls-verify=false docker://127.0.0.1:{}/hello:v1 oci:{}:hello",
        last.registry,
        quoted(&plan.dir.join("pulled"))
    )?;
    let login = plan.admin.as_ref().map_or(String::new(), |admin| {
        format!("-u \"{ADMIN}:$(cat {})\" ", quoted(&admin.file))
    });
    writeln!(
        out,
        "  $ curl -fsS {login}http://127.0.0.1:{}/v2/hello/tags/list",
        last.registry
    )?;
    if regions.len() > 2 {
        writeln!(out, "Push to {}, while r1 is lost:", regions[1].name)?;
        writeln!(
            out,
            "  $ skopeo copy --dest-tls-verify=false oci:{sample}:hello docker://127.0.0.1:{}/hello:v2",
            regions[1].registry
        )?;
    }
    if others {
        writeln!(out, "Bring r1 back, and see it catch up:")?;
        writeln!(out, "  $ {}", plan.own_command("start r1"))?;
    }
    writeln!(out, "  $ {executable} status --server {}", first.url())?;
    writeln!(
        out,
        "\nWith podman: podman push --tls-verify=false IMAGE 127.0.0.1:{}/IMAGE",
        first.registry
    )?;
    writeln!(
        out,
        "Logs: {}/r*/log. Ctrl-C stops everything; the data is kept.",
        plan.dir.display()
    )
}

/// An image of one file, the same bytes at every call.
pub fn write_sample(dir: &Path) -> io::Result<()> {
    let layout = dir.join("sample");
    std::fs::create_dir_all(layout.join("blobs").join("sha256"))?;
    let layer = Blob::new(
        "application/vnd.oci.image.layer.v1.tar",
        tar("hello.txt", TEXT),
    );
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest()]},
    });
    let config = Blob::new(
        "application/vnd.oci.image.config.v1+json",
        config.to_string(),
    );
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor(),
        "layers": [layer.descriptor()],
    });
    let manifest = Blob::new(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string(),
    );
    for blob in [&layer, &config, &manifest] {
        std::fs::write(
            layout.join("blobs").join("sha256").join(&blob.hex),
            &blob.bytes,
        )?;
    }
    let mut named = manifest.descriptor();
    named["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "hello"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [named]});
    std::fs::write(layout.join("index.json"), index.to_string())?;
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
}

struct Blob {
    media_type: &'static str,
    hex: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: impl Into<Vec<u8>>) -> Blob {
        let bytes = bytes.into();
        Blob {
            media_type,
            hex: hex::encode(sha2::Sha256::digest(&bytes)),
            bytes,
        }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hex)
    }

    fn descriptor(&self) -> serde_json::Value {
        serde_json::json!({
            "mediaType": self.media_type,
            "digest": self.digest(),
            "size": self.bytes.len(),
        })
    }
}

/// A tar archive (ustar) of one file.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::dev::plan::Region;
    use std::process::Command;

    #[test]
    fn the_sample_is_an_archive_that_tar_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer.tar");
        std::fs::write(&path, tar("hello.txt", TEXT)).unwrap();
        let out = Command::new("tar").arg("-xOf").arg(&path).output().unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        assert_eq!(out.stdout, TEXT);
    }

    #[test]
    fn the_sample_is_the_same_at_every_start() {
        let dir = tempfile::tempdir().unwrap();
        write_sample(dir.path()).unwrap();
        let index = || std::fs::read(dir.path().join("sample/index.json")).unwrap();
        let first = index();
        write_sample(dir.path()).unwrap();
        assert_eq!(index(), first);
    }

    #[tokio::test]
    async fn what_is_printed_fits_the_number_of_regions() {
        for (regions, lines) in [(1, 4), (2, 6), (3, 7)] {
            let dir = tempfile::tempdir().unwrap();
            let plan = Plan::for_test(dir.path(), regions);
            let text = text(&plan);
            let commands = text
                .lines()
                .filter(|line| line.trim().starts_with("$ "))
                .count();
            assert_eq!(commands, lines, "{text}");
            assert!(text.ends_with("the data is kept.\n"));
            assert!(
                plan.regions
                    .iter()
                    .all(|region: &Region| text.contains(&region.name))
            );
        }
    }
}
