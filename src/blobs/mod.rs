//! This node's bytes: stat, open, adopt, delete, list; and staging, the only way in.
//!
//! What must stay true: bytes get a digest's name only after that digest was computed from them
//! here (F2); a blob that is here is synced, with its name; no byte is handed out whose 64 KiB block
//! does not match its checksum (P8). Layout: `ROOT/ALGORITHM/ab/HEX`, beside it `HEX.crc`,
//! `ROOT/staging`, `ROOT/quarantine`, and `ROOT/node` with the id of the node that all this is of.

mod disk;
mod pins;
mod staging;

pub use pins::Pins;
pub use staging::{FinishError, Growing, Progress, Staged, Staging, Upload};

use crate::durability;
use crate::oci::Digest;
use crate::telemetry::Metrics;
use crate::topology::NodeId;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

pub type ByteStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Locks of digests are shared by those that hash alike: rarely two, never a map that grows.
const LOCKS: usize = 256;
/// What one read of a blob takes from disk; one more is read ahead.
const READ: u64 = 512 << 10;
/// Copies that proved bad and are not reported yet. More are found by the comparison at the next
/// start.
const LOST: usize = 1024;

#[derive(Clone)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    staging: Staging,
    pins: Pins,
    locks: Vec<Arc<Mutex<()>>>,
    metrics: Metrics,
    lost: mpsc::Sender<Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub size: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("open the blob store at {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the blob store at {path} is of node {found}, the metadata of node {expected}: put the \
         volumes back together, or start with both empty"
    )]
    OtherNode {
        path: PathBuf,
        found: String,
        expected: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the blob is not here")]
    Unknown,
    #[error("read a blob")]
    Io(#[source] io::Error),
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

impl BlobStore {
    /// Checks whose bytes these are, and syncs the file system once, so that what is found here is
    /// durable (A7). With the store come the digests of copies
    /// that prove bad, whoever it is that reads them, each once it is out of the way.
    pub async fn open(
        root: &Path,
        node: NodeId,
        metrics: Metrics,
    ) -> Result<(BlobStore, mpsc::Receiver<Digest>), OpenError> {
        let io_error = |source| OpenError::Io {
            path: root.to_owned(),
            source,
        };
        let path = root.to_owned();
        let found = blocking(move || disk::prepare(&path, node))
            .await
            .map_err(io_error)?;
        if found != node.to_string() {
            let expected = node.to_string();
            return Err(OpenError::OtherNode {
                path: root.to_owned(),
                found,
                expected,
            });
        }
        let (lost, lost_seen) = mpsc::channel(LOST);
        let inner = Inner {
            root: root.to_owned(),
            staging: Staging::new(root.join("staging")),
            pins: Pins::default(),
            locks: (0..LOCKS).map(|_| Arc::default()).collect(),
            metrics,
            lost,
        };
        let store = BlobStore {
            inner: Arc::new(inner),
        };
        Ok((store, lost_seen))
    }

    pub fn staging(&self) -> &Staging {
        &self.inner.staging
    }

    pub fn pins(&self) -> &Pins {
        &self.inner.pins
    }

    /// Under it adopt, receipts and unlinks of one digest happen (A7).
    pub async fn lock(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        let slot = usize::from(digest.bytes()[0]) % LOCKS;
        self.inner.locks[slot].clone().lock_owned().await
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        disk::path(&self.inner.root, digest)
    }

    /// Its size, when the blob is here and as long as its checksums say. One that is not is opened
    /// to see what is wrong with it, and is not here when it is bad.
    pub async fn stat(&self, digest: &Digest) -> io::Result<Option<u64>> {
        // Here, and not on another thread: names and sizes are in memory nearly always, and a push
        // asks for those of all its blobs.
        match disk::look(&self.path(digest))? {
            disk::Found::Nothing => Ok(None),
            disk::Found::Whole(size) => Ok(Some(size)),
            disk::Found::Odd => match self.open_file(digest).await {
                Ok(blob) => Ok(Some(blob.size())),
                Err(ReadError::Unknown) => Ok(None),
                Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
                Err(ReadError::Io(error)) => Err(error),
            },
        }
    }

    async fn open_file(&self, digest: &Digest) -> Result<disk::Blob, ReadError> {
        let (path, whole) = (self.path(digest), digest.clone());
        let opened = blocking(move || disk::Blob::open(&path, &whole)).await;
        match opened {
            Ok(blob) => Ok(blob),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ReadError::Unknown),
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    self.bad(digest, None).await;
                }
                Err(ReadError::Io(error))
            }
        }
    }

    /// Bytes of `range`, which lies within the blob. A block that is bad ends the stream with
    /// `InvalidData` and takes the file out of the way.
    pub async fn open_blob(
        &self,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<ByteStream, ReadError> {
        let blob = Arc::new(self.open_file(digest).await?);
        let (store, digest, opened) = (self.clone(), digest.clone(), blob.clone());
        let read = move |range: Range<u64>| {
            let blob = blob.clone();
            let end = range.end.min(disk::chunk_end(range.start, READ));
            (
                end,
                tokio::task::spawn_blocking(move || blob.read(range.start..end)),
            )
        };
        let first = (!range.is_empty()).then(|| read(range.clone()));
        let bytes = stream::unfold((first, range.end), move |(reading, end)| {
            let (read, store, digest) = (read.clone(), store.clone(), digest.clone());
            let opened = opened.clone();
            async move {
                let (at, reading) = reading?;
                // The next piece is read while this one is sent.
                let ahead = (at < end).then(|| read(at..end));
                let piece = reading
                    .await
                    .map_err(io::Error::other)
                    .and_then(|piece| piece);
                match piece {
                    Ok(piece) => Some((Ok(piece), (ahead, end))),
                    Err(error) => {
                        if error.kind() == io::ErrorKind::InvalidData {
                            store.bad(&digest, Some(&opened)).await;
                        }
                        Some((Err(error), (None, end)))
                    }
                }
            }
        });
        Ok(Box::pin(bytes))
    }

    /// `opened`: the file that proved bad, which may have been replaced by a good one since.
    async fn bad(&self, digest: &Digest, opened: Option<&disk::Blob>) {
        self.inner.metrics.blob_blocks_bad.inc();
        tracing::warn!(%digest, "a copy on disk is bad; it is moved to quarantine and not served");
        match self.quarantine(digest, opened.map(disk::Blob::inode)).await {
            // Another reader was first.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => tracing::warn!(%digest, %error, "move a bad copy to quarantine"),
            Ok(()) => {}
        }
        if self.inner.lost.try_send(digest.clone()).is_err() {
            tracing::info!(%digest, "a bad copy is not reported now; the next start finds that it is missing");
        }
    }

    /// Reads a whole blob against its digest. False: it was bad, and is out of the way.
    pub async fn check(&self, digest: &Digest) -> Result<bool, ReadError> {
        let (path, whole) = (self.path(digest), digest.clone());
        match blocking(move || disk::has_digest(&path, &whole)).await {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.bad(digest, None).await;
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ReadError::Unknown),
            Err(error) => Err(ReadError::Io(error)),
        }
    }

    /// Gives staged bytes their name: file, checksums and directory synced when this returns.
    pub async fn adopt(&self, staged: Staged) -> io::Result<u64> {
        let _alone = self.lock(staged.digest()).await;
        let path = self.path(staged.digest());
        blocking(move || disk::adopt(staged, &path)).await
    }

    /// False when it was not here.
    pub async fn delete(&self, digest: &Digest) -> io::Result<bool> {
        let path = self.path(digest);
        blocking(move || disk::delete(&path)).await
    }

    async fn quarantine(&self, digest: &Digest, inode: Option<u64>) -> io::Result<()> {
        let path = self.path(digest);
        let to = self.inner.root.join("quarantine").join(digest.hex());
        blocking(move || disk::move_away(&path, &to, inode)).await
    }

    pub async fn list(&self) -> io::Result<Vec<Stored>> {
        let root = self.inner.root.clone();
        blocking(move || disk::list(&root)).await
    }

    /// Total and free bytes of the volume.
    pub fn disk(&self) -> io::Result<(u64, u64)> {
        durability::volume(&self.inner.root)
    }
}

/// What the fuzz targets reach, and nobody else may.
#[cfg(fuzzing)]
pub mod fuzzing {
    use super::{Staging, disk};
    use std::io;
    use std::path::PathBuf;

    pub fn staging(dir: PathBuf) -> Staging {
        Staging::new(dir)
    }

    /// The file of checksums that a blob gets.
    pub fn checksums(blob: &[u8]) -> Vec<u8> {
        let mut checksums = disk::Checksums::default();
        checksums.update(blob);
        checksums.encode(blob.len() as u64)
    }

    /// A blob's size and the checksum of each of its blocks, by such a file.
    pub fn read_checksums(file: &[u8]) -> io::Result<(u64, Vec<u32>)> {
        disk::decode(file)
    }
}

#[cfg(test)]
mod tests;
