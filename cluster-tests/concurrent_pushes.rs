//! Ten clients push at once what is the same, or shares layers: all succeed, and each region keeps
//! one copy of what it holds.

use crate::harness::cluster::Cluster;
use crate::harness::layouts::Layout;
use crate::harness::tools::{Skopeo, Tool};
use crate::harness::wait::eventually;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CLIENTS: usize = 10;
const MIB: usize = 1 << 20;

/// All at once, each in a process of its own, to the regions in turn; then everything is pulled
/// from another region.
fn push_all(cluster: &Cluster, images: &[&Layout], name: impl Fn(usize) -> String + Sync) {
    std::thread::scope(|scope| {
        let pushes: Vec<_> = images
            .iter()
            .enumerate()
            .map(|(i, image)| {
                let to = format!("{}/{}", cluster.registry(i % 3), name(i));
                scope.spawn(move || Skopeo.push(image, &to))
            })
            .collect();
        for push in pushes {
            push.join().unwrap().unwrap();
        }
    });
    for (i, image) in images.iter().enumerate() {
        let from = format!("{}/{}", cluster.registry((i + 1) % 3), name(i));
        Skopeo.pull(&from, image).unwrap();
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

/// Under a region's `blobs/` is a file and its checksums for each of these blobs at most, and
/// nothing else: no second copy under another name, and none left over in staging.
async fn one_copy_each(cluster: &Cluster, images: &[&Layout]) {
    let blobs: HashSet<&str> = images
        .iter()
        .flat_map(|image| &image.images[0].blobs)
        .map(|blob| blob.digest.strip_prefix("sha256:").unwrap())
        .collect();
    for i in 0..cluster.len() {
        let dir = cluster.data_dir(i).join("blobs");
        let what = format!("{} has one copy of each blob", cluster.name(i));
        eventually(&what, Duration::from_secs(60), || async {
            let mut found = Vec::new();
            files(&dir, &mut found);
            let stranger = found.iter().find(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                let blob = name.strip_suffix(".crc").unwrap_or(name);
                let right = dir
                    .join("sha256")
                    .join(blob.get(..2).unwrap_or(""))
                    .join(name);
                name != "node" && (!blobs.contains(blob) || **path != right)
            });
            // Each was pulled from here or pushed to here, so all are.
            (stranger.is_none() && found.len() == 2 * blobs.len() + 1).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_pushes_of_one_image_all_succeed_and_leave_one_copy() {
    let cluster = Cluster::start(3).await;
    let dir = tempfile::tempdir().expect("temp dir");
    let image = Layout::new(dir.path(), "same", &["amd64"], &[8 * MIB, MIB, 1000]);
    let same = [&image; CLIENTS];
    push_all(&cluster, &same, |_| "many/app:v1".to_owned());
    one_copy_each(&cluster, &same).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_pushes_of_images_that_share_layers_all_succeed_and_leave_one_copy_of_each() {
    let cluster = Cluster::start(3).await;
    let dir = tempfile::tempdir().expect("temp dir");
    let images: Vec<Layout> = (0..CLIENTS)
        .map(|i| {
            let own = format!("own-{i}");
            let layers = [("base", 8 * MIB), ("base", MIB), (&own, MIB)];
            Layout::with_layers(dir.path(), &own, &["amd64"], &layers)
        })
        .collect();
    let images: Vec<&Layout> = images.iter().collect();
    push_all(&cluster, &images, |i| format!("many/app{i}:v1"));
    one_copy_each(&cluster, &images).await;
}
