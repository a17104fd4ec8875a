//! Bytes on their way in: hashed and checksummed as they are written, off the async threads, and
//! readable by others while they grow.

use super::blocking;
use super::disk::Checksums;
use crate::durability;
use crate::durability::Room;
use crate::oci::{Algorithm, Digest, Hasher};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// Written at once; as much again may be on its way to disk.
const BATCH: usize = 1 << 20;

#[derive(Clone)]
pub struct Staging {
    dir: PathBuf,
}

/// What readers of a growing file may know: so many bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Growing { len: u64 },
    Done { len: u64 },
    Failed,
}

/// One file being written. Dropped before it is finished, its file goes.
pub struct Upload {
    path: Option<PathBuf>,
    reader: Arc<File>,
    pending: Vec<Bytes>,
    pending_len: usize,
    state: Option<State>,
    writing: Option<JoinHandle<io::Result<State>>>,
    accepted: u64,
    progress: watch::Sender<Progress>,
}

struct State {
    file: File,
    written: u64,
    sums: Sums,
}

struct Sums {
    hasher: Hasher,
    checksums: Checksums,
}

impl State {
    /// Written here and summed on another thread: each takes a good part of the time.
    fn write(self, pieces: Vec<Bytes>) -> JoinHandle<io::Result<State>> {
        let State {
            mut file,
            mut written,
            mut sums,
        } = self;
        let (summed, all_summed) = oneshot::channel();
        let to_sum = pieces.clone();
        tokio::task::spawn_blocking(move || {
            for piece in &to_sum {
                sums.hasher.update(piece);
                sums.checksums.update(piece);
            }
            // Nobody waits when the upload was dropped.
            let _ = summed.send(sums);
        });
        tokio::task::spawn_blocking(move || {
            for piece in &pieces {
                file.write_all(piece)?;
                written += piece.len() as u64;
            }
            let sums = all_summed.blocking_recv().map_err(io::Error::other)?;
            Ok(State {
                file,
                written,
                sums,
            })
        })
    }
}

/// Reads an upload's file while it grows, and after it was adopted or dropped.
#[derive(Clone)]
pub struct Growing {
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
}

/// Bytes whose digest was checked; the only thing that can be adopted.
pub struct Staged {
    digest: Digest,
    path: Option<PathBuf>,
    file: Option<File>,
    checksums: Checksums,
    size: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    #[error("the bytes have digest {actual}, not {expected}")]
    DigestMismatch { expected: Digest, actual: Digest },
    #[error("finish a staging file")]
    Io(#[from] io::Error),
}

impl Staging {
    pub(super) fn new(dir: PathBuf) -> Staging {
        Staging { dir }
    }

    /// `StorageFull` when the volume is down to its reserve, here as later on.
    /// `algorithm` is hashed as the bytes come; for another, `finish` reads them again.
    pub async fn create(&self, algorithm: Algorithm) -> io::Result<Upload> {
        let path = self.dir.join(format!("{:032x}", rand::random::<u128>()));
        let at = path.clone();
        let file = blocking(move || {
            durability::check_room(at.parent().unwrap_or(&at), Room::Blobs)?;
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(at)
        })
        .await?;
        let reader = Arc::new(file.try_clone()?);
        let state = State {
            file,
            written: 0,
            sums: Sums {
                hasher: Hasher::new(algorithm),
                checksums: Checksums::default(),
            },
        };
        Ok(Upload {
            path: Some(path),
            reader,
            pending: Vec::new(),
            pending_len: 0,
            state: Some(state),
            writing: None,
            accepted: 0,
            progress: watch::Sender::new(Progress::Growing { len: 0 }),
        })
    }
}

impl Upload {
    /// Bytes accepted.
    pub fn len(&self) -> u64 {
        self.accepted
    }

    pub fn is_empty(&self) -> bool {
        self.accepted == 0
    }

    /// Waits only while a batch before the last is still on its way to disk. After `StorageFull` the
    /// upload can go on from where it is.
    pub async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        self.accepted += bytes.len() as u64;
        self.pending_len += bytes.len();
        self.pending.push(bytes);
        if self.pending_len >= BATCH {
            self.settle().await?;
            if let Some(path) = &self.path {
                durability::check_room(path, Room::Blobs)?;
            }
            self.start();
        }
        Ok(())
    }

    fn start(&mut self) {
        let pieces = std::mem::take(&mut self.pending);
        self.pending_len = 0;
        if let Some(state) = self.state.take() {
            self.writing = Some(state.write(pieces));
        }
    }

    async fn settle(&mut self) -> io::Result<()> {
        // Taken when it is over, not before: a request may be dropped at any await, and the next
        // one goes on with the upload.
        if let Some(writing) = &mut self.writing {
            let written = writing.await;
            self.writing = None;
            let state = written.map_err(io::Error::other)??;
            self.progress
                .send_replace(Progress::Growing { len: state.written });
            self.state = Some(state);
        }
        match self.state {
            Some(_) => Ok(()),
            None => Err(io::Error::other("an earlier write of this upload failed")),
        }
    }

    /// All that was accepted is written when this returns; the length.
    pub async fn flush(&mut self) -> io::Result<u64> {
        self.settle().await?;
        if self.pending_len > 0 {
            self.start();
            self.settle().await?;
        }
        Ok(self.accepted)
    }

    pub fn follow(&self) -> Growing {
        Growing {
            file: self.reader.clone(),
            progress: self.progress.subscribe(),
        }
    }

    /// Checks the digest of everything. On a mismatch the file is gone.
    pub async fn finish(mut self, expected: &Digest) -> Result<Staged, FinishError> {
        self.flush().await?;
        let missing = || io::Error::other("an earlier write of this upload failed");
        let mut state = self.state.take().ok_or_else(missing)?;
        if state.sums.hasher.algorithm() != expected.algorithm() {
            let algorithm = expected.algorithm();
            state = blocking(move || rehash(state, algorithm)).await?;
        }
        let actual = state.sums.hasher.finish();
        if actual != *expected {
            return Err(FinishError::DigestMismatch {
                expected: expected.clone(),
                actual,
            });
        }
        self.progress
            .send_replace(Progress::Done { len: state.written });
        Ok(Staged {
            digest: actual,
            path: self.path.take(),
            file: Some(state.file),
            checksums: state.sums.checksums,
            size: state.written,
        })
    }
}

fn rehash(mut state: State, algorithm: Algorithm) -> io::Result<State> {
    state.file.seek(SeekFrom::Start(0))?;
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; BATCH];
    loop {
        let n = state.file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    state.sums.hasher = hasher;
    Ok(state)
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            self.progress.send_replace(Progress::Failed);
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Staged {
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn into_parts(mut self) -> (File, PathBuf, Checksums, u64) {
        let file = self.file.take().expect("taken once, here");
        let path = self.path.take().expect("taken once, here");
        (file, path, std::mem::take(&mut self.checksums), self.size)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Growing {
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// At most `max` bytes at `offset` of what is written.
    pub async fn read_at(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        let file = self.file.clone();
        blocking(move || {
            let mut bytes = vec![0; max];
            let n = file.read_at(&mut bytes, offset)?;
            bytes.truncate(n);
            Ok(Bytes::from(bytes))
        })
        .await
    }
}
