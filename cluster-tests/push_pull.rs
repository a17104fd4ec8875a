//! What clients push is what they pull, here and in the next region.

use crate::harness::client::{Image, sha256};
use crate::harness::cluster::Cluster;
use crate::harness::images;
use bytes::Bytes;

#[tokio::test(flavor = "multi_thread")]
async fn real_clients_push_and_pull_real_images() {
    let cluster = Cluster::start(1).await;
    let registry = cluster.registry(0);
    for image in [images::busybox(), images::large()] {
        let name = format!("real/{}:v1", image.file_name().unwrap().to_str().unwrap());
        let pushed = images::skopeo_push(image, &registry, &name);
        assert!(
            pushed.status.success(),
            "{}",
            String::from_utf8_lossy(&pushed.stderr)
        );
        let (pulled, output) = images::skopeo_pull(&registry, &name);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(images::same_image(image, pulled.path()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_to_one_region_is_read_from_the_next_at_once() {
    let cluster = Cluster::start(3).await;
    for i in 0..30 {
        let (near, far) = (i % 3, (i + 1) % 3);
        let image = Image::small(&format!("at once {i}"));
        assert_eq!(
            cluster
                .client(near)
                .push("at/once", "latest", &image)
                .await
                .unwrap(),
            201
        );
        cluster
            .client(far)
            .pull("at/once", "latest", &image)
            .await
            .unwrap();
    }
    // A blob before its manifest: any region knows of it.
    let bytes = Bytes::from_static(b"just uploaded");
    let digest = sha256(&bytes);
    assert_eq!(
        cluster
            .client(0)
            .push_blob("at/once", &digest, bytes.clone())
            .await
            .unwrap(),
        201
    );
    for i in 0..3 {
        let got = cluster.client(i).blob("at/once", &digest).await.unwrap();
        assert_eq!(got.status(), 200, "{}", cluster.name(i));
        assert!(got.bytes().await.unwrap() == bytes);
    }
}
