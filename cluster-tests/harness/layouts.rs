//! Made-up images as OCI layouts, which most clients read and write: any number of platforms, of
//! layers, and of bytes in a layer. A layer is a tar with one file, `data/N`.

use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MIB: usize = 1 << 20;

/// Tagged `t` in its directory.
pub struct Layout {
    pub dir: PathBuf,
    /// Of the index if there are several images, else of the image.
    pub top: Descriptor,
    pub images: Vec<PlatformImage>,
}

pub struct PlatformImage {
    pub architecture: &'static str,
    pub manifest: Descriptor,
    /// The config, then the layers.
    pub blobs: Vec<Descriptor>,
    /// SHA-256 of each `data/N`.
    files: Vec<String>,
}

#[derive(Clone)]
pub struct Descriptor {
    pub digest: String,
    pub media_type: &'static str,
    pub size: usize,
}

impl Descriptor {
    fn json(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

/// Hashes what it passes on.
struct Hashed<W> {
    to: W,
    hash: Sha256,
    len: usize,
}

impl<W: Write> Hashed<W> {
    fn new(to: W) -> Hashed<W> {
        Hashed {
            to,
            hash: Sha256::new(),
            len: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.to.write_all(bytes).expect("write to a layout");
        self.hash.update(bytes);
        self.len += bytes.len();
    }

    fn hex(self) -> String {
        hex::encode(self.hash.finalize())
    }
}

/// The head of a tar entry for a file of `size` bytes (ustar).
fn tar_head(name: &str, size: usize) -> [u8; 512] {
    let mut head = [0; 512];
    let mut put =
        |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

/// SHA-256 of a file, in hex.
fn hash_of(path: &Path) -> Result<String, String> {
    let mut file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut hash = Hashed::new(std::io::sink());
    let mut buffer = vec![0; MIB];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.hex()),
            Ok(n) => hash.put(&buffer[..n]),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        }
    }
}

impl Layout {
    /// One image per architecture, with a layer per size. The same name gives the same bytes.
    pub fn new(
        parent: &Path,
        name: &str,
        architectures: &[&'static str],
        layers: &[usize],
    ) -> Layout {
        let layers: Vec<(&str, usize)> = layers.iter().map(|size| (name, *size)).collect();
        Layout::with_layers(parent, name, architectures, &layers)
    }

    /// With layers that have names of their own, by which layouts share them.
    pub fn with_layers(
        parent: &Path,
        name: &str,
        architectures: &[&'static str],
        layers: &[(&str, usize)],
    ) -> Layout {
        let dir = parent.join(name);
        std::fs::create_dir_all(dir.join("blobs/sha256")).expect("create layout");
        let images: Vec<PlatformImage> = architectures
            .iter()
            .map(|architecture| image(&dir, name, architecture, layers))
            .collect();
        let top = match &images[..] {
            [one] => one.manifest.clone(),
            several => {
                let entries: Vec<Value> = several
                    .iter()
                    .map(|image| {
                        let mut entry = image.manifest.json();
                        entry["platform"] =
                            json!({"architecture": image.architecture, "os": "linux"});
                        entry
                    })
                    .collect();
                let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
                store(&dir, INDEX, index)
            }
        };
        let mut entry = top.json();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "t"});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        std::fs::write(dir.join("index.json"), index.to_string()).expect("write layout");
        let version = json!({"imageLayoutVersion": "1.0.0"});
        std::fs::write(dir.join("oci-layout"), version.to_string()).expect("write layout");
        Layout { dir, top, images }
    }

    pub fn is_index(&self) -> bool {
        self.images.len() > 1
    }

    /// As tools name it: `DIR:t`.
    pub fn tagged(&self) -> String {
        format!("{}:t", self.dir.display())
    }

    pub fn blob(&self, digest: &str) -> PathBuf {
        blob(&self.dir, digest)
    }

    /// Every blob and manifest of this layout is under `other` too, byte for byte.
    pub fn same_blobs_in(&self, other: &Path) -> Result<(), String> {
        for entry in std::fs::read_dir(self.dir.join("blobs/sha256")).expect("list layout") {
            let name = entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("hex");
            let copy = other.join("blobs/sha256").join(&name);
            if hash_of(&copy)? != name {
                return Err(format!("other bytes in {}", copy.display()));
            }
        }
        Ok(())
    }
}

impl PlatformImage {
    /// Every file of the image is under `root`, byte for byte.
    pub fn same_files_in(&self, root: &Path) -> Result<(), String> {
        for (i, expected) in self.files.iter().enumerate() {
            let copy = root.join(format!("data/{i}"));
            if hash_of(&copy)? != *expected {
                return Err(format!("other bytes in {}", copy.display()));
            }
        }
        Ok(())
    }
}

fn blob(dir: &Path, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").expect("sha256");
    dir.join("blobs/sha256").join(hex)
}

fn store(dir: &Path, media_type: &'static str, content: Value) -> Descriptor {
    let bytes = content.to_string();
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
    std::fs::write(blob(dir, &digest), &bytes).expect("write blob");
    Descriptor {
        digest,
        media_type,
        size: bytes.len(),
    }
}

fn image(
    dir: &Path,
    name: &str,
    architecture: &'static str,
    layers: &[(&str, usize)],
) -> PlatformImage {
    let mut files = Vec::new();
    let mut blobs = Vec::new();
    for (i, (layer, size)) in layers.iter().enumerate() {
        let seed = Sha256::digest(format!("{layer} {architecture} {i}"));
        let mut rng = rand::rngs::StdRng::from_seed(seed.into());
        let path = dir.join("layer");
        let mut tar = Hashed::new(File::create(&path).expect("create layer"));
        let mut content = Hashed::new(std::io::sink());
        tar.put(&tar_head(&format!("data/{i}"), *size));
        let mut piece = vec![0; MIB];
        while content.len < *size {
            let n = MIB.min(size - content.len);
            rng.fill(&mut piece[..n]);
            tar.put(&piece[..n]);
            content.put(&piece[..n]);
        }
        tar.put(&vec![0; size.next_multiple_of(512) - size + 1024]);
        let layer = Descriptor {
            size: tar.len,
            digest: format!("sha256:{}", tar.hex()),
            media_type: "application/vnd.oci.image.layer.v1.tar",
        };
        std::fs::rename(&path, blob(dir, &layer.digest)).expect("name layer");
        files.push(content.hex());
        blobs.push(layer);
    }
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/data/0"]},
        "rootfs": {"type": "layers", "diff_ids": blobs.iter().map(|layer| &layer.digest).collect::<Vec<_>>()},
        "history": blobs.iter().map(|_| json!({"created_by": name})).collect::<Vec<_>>(),
    });
    let config = store(dir, "application/vnd.oci.image.config.v1+json", config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.json(),
        "layers": blobs.iter().map(Descriptor::json).collect::<Vec<_>>(),
    });
    blobs.insert(0, config);
    PlatformImage {
        architecture,
        manifest: store(dir, MANIFEST, manifest),
        blobs,
        files,
    }
}
