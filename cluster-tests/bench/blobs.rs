//! Blobs of 512 MB: pulled, pushed, pulled through a peer, and copied while they arrive.

use crate::harness::client::{Image, random_bytes, sha256};
use crate::harness::cluster::Cluster;
use crate::others::Other;
use crate::wire::{Body, Wire};
use crate::{Bed, Row, in_turns, mb_per_second, median, registry, seconds};
use bytes::Bytes;
use roadstead::oci::{Algorithm, Digest, Hasher};
use std::fs::File;
use std::io::Write;
use tempfile::TempDir;

pub const SIZE: usize = 512 << 20;
const ROUNDS: usize = 5;
const REPOSITORY: &str = "bench/blobs";

/// A blob of `SIZE` bytes that differs from all others in its first eight.
pub struct Big<'a> {
    head: [u8; 8],
    rest: &'a [u8],
    pub digest: Digest,
}

impl Big<'_> {
    pub fn new(number: u64, rest: &[u8]) -> Big<'_> {
        let head = number.to_be_bytes();
        let rest = &rest[8..];
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&head);
        hasher.update(rest);
        let digest = hasher.finish();
        Big { head, rest, digest }
    }

    pub fn body(&self) -> Body<'_> {
        Body {
            pieces: [&self.head, self.rest],
            rate: None,
        }
    }

    /// An image with this blob as its one layer.
    fn manifest(&self, wire: &mut Wire) -> Bytes {
        let mut image = Image::new(&self.digest.to_string(), Vec::new());
        let (config, bytes) = &image.blobs[0];
        wire.push_blob(REPOSITORY, config, bytes.as_ref().into());
        let mut manifest: serde_json::Value =
            serde_json::from_slice(&image.manifest).expect("JSON");
        manifest["layers"] = serde_json::json!([{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": self.digest.to_string(),
            "size": self.body().len(),
        }]);
        image.manifest = Bytes::from(manifest.to_string());
        image.manifest
    }
}

pub fn pull(bed: &Bed) -> Vec<Row> {
    let (cluster, nginx, other) = (bed.cluster(1), Other::nginx(), Other::docker_registry());
    let bytes = random_bytes(1, SIZE);
    let blob = Big::new(1, &bytes);
    let mut file = File::create(nginx.dir.path().join("www/blob")).expect("make a file");
    file.write_all(&blob.head).expect("write");
    file.write_all(blob.rest).expect("write");
    let path = format!("/v2/{REPOSITORY}/blobs/{}", blob.digest);
    let ways = [
        (registry(&cluster, 0), path.clone()),
        (nginx.address, "/blob".to_owned()),
        (other.address, path),
    ];
    for (address, _) in [&ways[0], &ways[2]] {
        Wire::new(*address).push_blob(REPOSITORY, &blob.digest, blob.body());
    }
    let took = in_turns(ROUNDS, |_, which| {
        let (address, path) = &ways[which];
        let mut wire = Wire::new(*address);
        seconds(|| assert_eq!(wire.get(path).length, SIZE as u64))
    });
    let [own, nginx, other] = took.map(|took| mb_per_second(SIZE, took));
    vec![Row {
        what: "pull a 512 MB blob",
        roadstead: format!("{own:.0} MB/s"),
        beside: format!("nginx {nginx:.0} MB/s, docker-registry {other:.0} MB/s"),
        must: format!("0.9 x nginx; is {:.2}", own / nginx),
        holds: Some(own >= 0.9 * nginx),
    }]
}

/// As fast as a file can be written here.
fn write_file(dir: &TempDir, number: usize, bytes: &[u8], sync: bool) {
    let path = dir.path().join(number.to_string());
    let mut file = File::create(path).expect("make a file");
    let parts = bytes.chunks(1 << 20);
    parts.for_each(|part| file.write_all(part).expect("write"));
    if sync {
        file.sync_all().expect("sync");
    }
}

pub fn push(bed: &Bed) -> Vec<Row> {
    let (cluster, other) = (bed.cluster(1), Other::docker_registry());
    let bytes = random_bytes(2, SIZE);
    let dir = tempfile::tempdir().expect("temp dir");
    let took = in_turns(ROUNDS, |round, which| {
        let blob = Big::new(round as u64, &bytes);
        match which {
            0 | 1 => {
                let address = [registry(&cluster, 0), other.address][which];
                let mut wire = Wire::new(address);
                seconds(|| wire.push_blob(REPOSITORY, &blob.digest, blob.body()))
            }
            2 => seconds(|| assert_ne!(sha256(&bytes), blob.digest)),
            _ => seconds(|| write_file(&dir, round, &bytes, true)),
        }
    });
    let [own, other, sha, disk] = took.map(|took| mb_per_second(SIZE, took));
    let slower = sha.min(disk);
    vec![Row {
        what: "push a 512 MB blob",
        roadstead: format!("{own:.0} MB/s"),
        beside: format!("sha256 {sha:.0}, disk {disk:.0}, docker-registry {other:.0} MB/s"),
        must: format!(
            "0.8 x the slower of sha256 and disk; is {:.2}; and {:.1} x docker-registry",
            own / slower,
            own / other
        ),
        holds: Some(own >= 0.8 * slower && own > other),
    }]
}

/// Which region of three does not have a blob.
fn without(cluster: &Cluster, digest: &Digest) -> Option<usize> {
    let hex = digest.hex();
    let file = |i: &usize| {
        let blobs = cluster.data_dir(*i).join("blobs/sha256");
        blobs.join(&hex[..2]).join(hex).exists()
    };
    (0..cluster.len()).find(|i| !file(i))
}

pub fn cold(bed: &Bed) -> Vec<Row> {
    let cluster = bed.cluster(3);
    let bytes = random_bytes(3, SIZE);
    let dir = tempfile::tempdir().expect("temp dir");
    let [mut cold, mut local, mut first, mut disk] = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        let blob = Big::new(round as u64, &bytes);
        let mut wire = Wire::new(registry(&cluster, 0));
        wire.push_blob(REPOSITORY, &blob.digest, blob.body());
        let manifest = blob.manifest(&mut wire);
        wire.put_manifest(REPOSITORY, &format!("v{round}"), &manifest);
        let without = without(&cluster, &blob.digest).expect("one region does not have it");
        let path = format!("/v2/{REPOSITORY}/blobs/{}", blob.digest);
        let mut wire = Wire::new(registry(&cluster, without));
        cold.push(seconds(|| {
            first.push(wire.get(&path).first_byte.as_secs_f64() * 1e3);
        }));
        local.push(seconds(|| {
            wire.get(&path);
        }));
        disk.push(seconds(|| write_file(&dir, round, &bytes, false)));
    }
    let [cold, local, disk] = [cold, local, disk].map(|took| mb_per_second(SIZE, median(took)));
    let first = median(first);
    vec![
        Row {
            what: "cold pull through a peer",
            roadstead: format!("{cold:.0} MB/s"),
            beside: format!(
                "the same blob local {local:.0} MB/s, a file written {disk:.0} MB/s ({:.2})",
                cold / disk
            ),
            must: format!("0.8 x local; is {:.2}", cold / local),
            holds: Some(cold >= 0.8 * local),
        },
        Row {
            what: "its first byte",
            roadstead: format!("{first:.1} ms"),
            beside: "a round trip here takes 0.1 ms".to_owned(),
            must: "a round trip + 10 ms".to_owned(),
            holds: Some(first <= 10.1),
        },
    ]
}

/// A client and links of the same speed, well below what the machine can do.
const LINK: u64 = 50_000_000;
const COPIED: usize = 256 << 20;

pub fn copies(bed: &Bed) -> Vec<Row> {
    let (one, three) = (bed.cluster(1), bed.linked_cluster(3));
    three.links.limit(LINK);
    let bytes = random_bytes(4, COPIED);
    let [one, three] = in_turns(3, |round, which| {
        let blob = Big::new(round as u64, &bytes);
        let mut wire = Wire::new(registry([&one, &three][which], 0));
        let manifest = blob.manifest(&mut wire);
        let body = Body {
            rate: Some(LINK),
            ..blob.body()
        };
        seconds(|| {
            wire.push_blob(REPOSITORY, &blob.digest, body);
            wire.put_manifest(REPOSITORY, &format!("v{round}"), &manifest);
        })
    });
    vec![Row {
        what: "push with ack=2, client and link at 50 MB/s",
        roadstead: format!("{three:.2} s"),
        beside: format!("ack=1 {one:.2} s"),
        must: format!("1.1 x ack=1; is {:.2}", three / one),
        holds: Some(three <= 1.1 * one),
    }]
}
