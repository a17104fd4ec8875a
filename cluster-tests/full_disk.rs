//! A disk that is nearly full: pushes are refused with a reason, everything else goes on, and there
//! is nothing to repair when there is room again.

use crate::harness::client::{Client, Image, random_bytes};
use crate::harness::cluster::Cluster;
use reqwest::{Method, StatusCode};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::fs::File;
use std::path::PathBuf;

pub const GIB: u64 = 1 << 30;
const REPOSITORY: &str = "full/app";

pub fn free() -> u64 {
    let stat = statvfs(std::env::temp_dir()).unwrap();
    stat.f_bavail * stat.f_frsize
}

/// Two GiB of the disk, until it is dropped.
pub struct Filler(PathBuf);

impl Filler {
    pub fn new(cluster: &Cluster) -> Filler {
        let path = cluster.dir().join("filler");
        let file = File::create(&path).unwrap();
        fallocate(file, FallocateFlags::empty(), 0, 2 * GIB).unwrap();
        Filler(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// One region that keeps so much free.
pub async fn region(reserve: u64) -> Cluster {
    let reserve = reserve.to_string();
    Cluster::start_with(1, &[("ROADSTEAD_TEST__RESERVE", &reserve)]).await
}

async fn put(client: &Client, tag: &str, image: &Image) -> StatusCode {
    let manifest = image.manifest.clone();
    let answer = client.put_manifest(REPOSITORY, tag, manifest).await;
    answer.unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_blobs_first_and_an_upload_goes_on_when_there_is_room() {
    // Blobs keep twice the reserve: with the filler that is a GiB more than there is.
    let cluster = region((free() - GIB) / 2).await;
    let client = cluster.client(0);
    let image = Image::small("full disk");
    assert_eq!(client.push(REPOSITORY, "v1", &image).await.unwrap(), 201);

    let uploads = format!("/v2/{REPOSITORY}/blobs/uploads/");
    let begun = client.request(Method::POST, &uploads).send().await.unwrap();
    let location = begun.headers()["location"].to_str().unwrap().to_owned();
    let bytes = random_bytes(1, 8 << 20);

    let filler = Filler::new(&cluster);
    let refused = client.request(Method::POST, &uploads).send().await.unwrap();
    assert_eq!(refused.status(), 507);
    let text = refused.text().await.unwrap();
    assert!(text.contains("nearly full"), "{text}");
    let patch = client.request(Method::PATCH, &location).body(bytes.clone());
    assert_eq!(patch.send().await.unwrap().status(), 507);
    assert_eq!(put(&client, "v2", &image).await, 201, "manifests go on");
    client.pull(REPOSITORY, "v2", &image).await.unwrap();

    drop(filler);
    let at = client.get(&location).await.unwrap();
    let range = at.headers()["range"].to_str().unwrap().to_owned();
    let next: usize = range.strip_prefix("0-").unwrap().parse::<usize>().unwrap() + 1;
    let digest = crate::harness::client::sha256(&bytes);
    let rest = client
        .request(Method::PUT, &location)
        .query(&[("digest", digest.to_string())])
        .body(bytes.slice(next..));
    assert_eq!(rest.send().await.unwrap().status(), 201);
    let back = client.blob(REPOSITORY, &digest).await.unwrap();
    assert!(back.bytes().await.unwrap() == bytes, "other bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_metadata_volume_refuses_pushes_and_takes_deletes() {
    let filled = region(free() - GIB).await;
    let client = filled.client(0);
    // Blobs need more than there is at all; an index of nothing needs none.
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [],
    });
    let put = |tag: &str| {
        client
            .request(Method::PUT, &format!("/v2/{REPOSITORY}/manifests/{tag}"))
            .header("content-type", "application/vnd.oci.image.index.v1+json")
            .body(index.to_string())
            .send()
    };
    assert_eq!(put("v1").await.unwrap().status(), 201);
    assert_eq!(put("v2").await.unwrap().status(), 201);

    let filler = Filler::new(&filled);
    assert_eq!(put("v3").await.unwrap().status(), 507);
    let tag = |tag: &str| format!("/v2/{REPOSITORY}/manifests/{tag}");
    let read = client.get(&tag("v1")).await.unwrap();
    assert_eq!(read.status(), 200);
    let delete = client.request(Method::DELETE, &tag("v2")).send().await;
    assert_eq!(delete.unwrap().status(), 202);

    drop(filler);
    assert_eq!(put("v3").await.unwrap().status(), 201);
}
