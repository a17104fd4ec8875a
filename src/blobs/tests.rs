//! What goes in comes out, or not at all.

use super::*;
use crate::oci::Algorithm;
use futures_util::TryStreamExt;
use std::fs::File;
use std::os::unix::fs::FileExt;

async fn store(dir: &Path) -> BlobStore {
    let opened = BlobStore::open(dir, NodeId(1), Metrics::new()).await;
    opened.unwrap().0
}

async fn put(store: &BlobStore, algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let digest = Digest::of(algorithm, bytes);
    let mut upload = store.staging().create(Algorithm::Sha256).await.unwrap();
    for piece in bytes.chunks(70_001) {
        upload.append(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    let staged = upload.finish(&digest).await.unwrap();
    store.adopt(staged).await.unwrap();
    digest
}

async fn read(store: &BlobStore, digest: &Digest, range: Range<u64>) -> io::Result<Vec<u8>> {
    match store.open_blob(digest, range).await {
        Ok(stream) => {
            stream
                .try_fold(Vec::new(), |mut all, piece| async move {
                    all.extend_from_slice(&piece);
                    Ok(all)
                })
                .await
        }
        Err(ReadError::Io(error)) => Err(error),
        Err(ReadError::Unknown) => Err(io::ErrorKind::NotFound.into()),
    }
}

fn some_bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

#[tokio::test]
async fn every_range_comes_back_as_it_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let bytes = some_bytes(1_300_000);
        let digest = put(&store, algorithm, &bytes).await;
        for (from, to) in [
            (0, 0),
            (0, 1),
            (65_535, 65_537),
            (65_536, 131_072),
            (1, 1_299_999),
            (0, 1_300_000),
            (1_299_999, 1_300_000),
        ] {
            let found = read(&store, &digest, from as u64..to as u64).await.unwrap();
            assert!(found == bytes[from..to], "{from}..{to}");
        }
    }
    let empty = put(&store, Algorithm::Sha256, b"").await;
    assert_eq!(store.stat(&empty).await.unwrap(), Some(0));
    assert!(read(&store, &empty, 0..0).await.unwrap().is_empty());
    assert_eq!(store.list().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_flipped_byte_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let bytes = some_bytes(300_000);
    let digest = put(&store, Algorithm::Sha256, &bytes).await;
    let file = File::options()
        .write(true)
        .open(store.path(&digest))
        .unwrap();
    file.write_all_at(&[bytes[200_000] ^ 1], 200_000).unwrap();
    assert!(
        read(&store, &digest, 0..100).await.is_ok(),
        "another block is good"
    );
    let error = read(&store, &digest, 0..300_000).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(
        store.stat(&digest).await.unwrap(),
        None,
        "it is in quarantine"
    );
}

#[tokio::test]
async fn a_file_cut_short_is_not_served_and_lost_checksums_are_rebuilt_from_good_bytes_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let bytes = some_bytes(100_000);
    let digest = put(&store, Algorithm::Sha256, &bytes).await;
    std::fs::remove_file(disk::checksums_of(&store.path(&digest))).unwrap();
    assert!(read(&store, &digest, 0..100_000).await.unwrap() == bytes);
    let file = File::options()
        .write(true)
        .open(store.path(&digest))
        .unwrap();
    file.set_len(99_999).unwrap();
    assert!(read(&store, &digest, 0..10).await.is_err());
}

#[tokio::test]
async fn a_copy_that_is_cut_short_is_not_here_and_is_reported_once() {
    let dir = tempfile::tempdir().unwrap();
    let opened = BlobStore::open(dir.path(), NodeId(1), Metrics::new()).await;
    let (store, mut bad) = opened.unwrap();
    let digest = put(&store, Algorithm::Sha256, &some_bytes(200_000)).await;
    let file = File::options().write(true).open(store.path(&digest));
    file.unwrap().set_len(100_000).unwrap();
    assert_eq!(store.stat(&digest).await.unwrap(), None);
    assert_eq!(store.stat(&digest).await.unwrap(), None);
    assert_eq!(bad.recv().await, Some(digest));
    assert!(bad.try_recv().is_err());
}

#[tokio::test]
async fn a_check_reads_the_bytes_and_does_not_believe_their_checksums() {
    let dir = tempfile::tempdir().unwrap();
    let opened = BlobStore::open(dir.path(), NodeId(1), Metrics::new()).await;
    let (store, mut bad) = opened.unwrap();
    let good = put(&store, Algorithm::Sha256, &some_bytes(200_000)).await;
    let other = put(&store, Algorithm::Sha512, &some_bytes(200_001)).await;
    // A whole blob with fitting checksums, under the name of another.
    let (from, to) = (store.path(&other), store.path(&good));
    std::fs::copy(disk::checksums_of(&from), disk::checksums_of(&to)).unwrap();
    std::fs::copy(from, to).unwrap();
    assert!(store.check(&other).await.unwrap());
    assert!(!store.check(&good).await.unwrap());
    assert_eq!(bad.recv().await, Some(good.clone()));
    assert!(matches!(store.check(&good).await, Err(ReadError::Unknown)));
}

#[tokio::test]
async fn a_good_copy_that_replaced_a_bad_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let bytes = some_bytes(200_000);
    let digest = put(&store, Algorithm::Sha256, &bytes).await;
    let opened = disk::Blob::open(&store.path(&digest), &digest).unwrap();
    put(&store, Algorithm::Sha256, &bytes).await;
    store.bad(&digest, Some(&opened)).await;
    assert!(read(&store, &digest, 0..200_000).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_wrong_digest_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let mut upload = store.staging().create(Algorithm::Sha256).await.unwrap();
    upload.append(Bytes::from_static(b"abc")).await.unwrap();
    let other = Digest::of(Algorithm::Sha256, b"other");
    assert!(matches!(
        upload.finish(&other).await,
        Err(FinishError::DigestMismatch { .. })
    ));
    assert_eq!(
        std::fs::read_dir(dir.path().join("staging"))
            .unwrap()
            .count(),
        0
    );
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_append_that_is_dropped_half_way_does_no_harm() {
    use futures_util::FutureExt;
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let bytes = some_bytes(9 << 20);
    let mut upload = store.staging().create(Algorithm::Sha256).await.unwrap();
    for piece in bytes.chunks(1 << 20) {
        // As when the connection of the request breaks.
        let _ = upload.append(Bytes::copy_from_slice(piece)).now_or_never();
    }
    assert_eq!(upload.flush().await.unwrap(), 9 << 20);
    let staged = upload.finish(&Digest::of(Algorithm::Sha256, &bytes)).await;
    store.adopt(staged.unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_reader_sees_what_is_written_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let mut upload = store.staging().create(Algorithm::Sha256).await.unwrap();
    let growing = upload.follow();
    upload.append(Bytes::from_static(b"hello ")).await.unwrap();
    upload.flush().await.unwrap();
    assert_eq!(*growing.progress().borrow(), Progress::Growing { len: 6 });
    assert_eq!(growing.read_at(0, 100).await.unwrap(), "hello ");
    upload.append(Bytes::from_static(b"world")).await.unwrap();
    let staged = upload
        .finish(&Digest::of(Algorithm::Sha256, b"hello world"))
        .await
        .unwrap();
    store.adopt(staged).await.unwrap();
    assert_eq!(*growing.progress().borrow(), Progress::Done { len: 11 });
    assert_eq!(growing.read_at(6, 100).await.unwrap(), "world");
}

#[tokio::test]
async fn the_bytes_of_another_node_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path()).await;
    let other = BlobStore::open(dir.path(), NodeId(2), Metrics::new()).await;
    assert!(matches!(other, Err(OpenError::OtherNode { .. })));
}

#[tokio::test]
async fn a_parked_upload_goes_on_from_what_is_left_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let staging = store.staging();
    let bytes = some_bytes(200_000);
    let mut upload = staging.create(Algorithm::Sha256).await.unwrap();
    let name = upload.name();
    let whole = Bytes::from(bytes.clone());
    upload.append(whole.slice(..150_000)).await.unwrap();
    upload.sync().await.unwrap();
    upload.append(Bytes::from_static(b"wrong")).await.unwrap();
    let followers = upload.follow();
    upload.park(150_000).await.unwrap();
    assert_eq!(*followers.progress().borrow(), Progress::Failed);
    assert_eq!(staging.parked_len(&name).unwrap(), Some(150_000));

    let mut upload = staging.reopen(&name, Algorithm::Sha256).await.unwrap();
    assert_eq!(upload.len(), 150_000);
    upload.append(whole.slice(150_000..)).await.unwrap();
    let digest = Digest::of(Algorithm::Sha512, &bytes);
    let staged = upload.finish(&digest).await.unwrap();
    store.adopt(staged).await.unwrap();
    assert_eq!(read(&store, &digest, 0..200_000).await.unwrap(), bytes);
    assert_eq!(staging.parked_len(&name).unwrap(), None);
    let gone = staging.reopen(&name, Algorithm::Sha256).await;
    assert_eq!(gone.err().unwrap().kind(), io::ErrorKind::NotFound);
}
