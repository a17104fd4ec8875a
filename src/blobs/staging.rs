//! Bytes on their way in: hashed and checksummed as they are written, off the async threads, and
//! readable by others while they grow. A file can be parked, and reopened by its name later, also
//! by another start of this node: it is then read again, so that its sums are those of its bytes.

use super::blocking;
use super::disk::{self, Checksums};
use crate::durability;
use crate::durability::Room;
use crate::oci::{Algorithm, Digest, Hasher};
use bytes::Bytes;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// Written at once; as much again may be on its way to disk.
const BATCH: usize = 1 << 20;
/// Synced while more comes, so that the end of a large upload does not wait for all of it, nor do
/// others that sync meanwhile.
const SYNC_EVERY: u64 = 16 << 20;

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

/// One file being written. Dropped before it is finished or parked, its file goes.
pub struct Upload {
    path: Option<PathBuf>,
    /// Its name in the directory is on disk.
    is_named: bool,
    reader: Arc<File>,
    pending: Vec<Bytes>,
    pending_len: usize,
    /// Accepted since the volume was asked for room; also what came in drops, and is written.
    unchecked: usize,
    state: Option<State>,
    writing: Option<JoinHandle<io::Result<State>>>,
    /// Ends by itself when the upload does.
    syncing: Option<JoinHandle<()>>,
    /// So many bytes are synced, or about to be.
    synced: u64,
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

    /// `StorageFull` when so many bytes more would bring the volume down to its reserve.
    pub fn check_room_for(&self, bytes: u64) -> io::Result<()> {
        durability::check_room_for(&self.dir, Room::Blobs, bytes)
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
        let sums = Sums {
            hasher: Hasher::new(algorithm),
            checksums: Checksums::default(),
        };
        Upload::new(path, file, 0, sums)
    }

    /// Goes on with a file that was parked, or that a crash left. `NotFound` when it is gone.
    pub async fn reopen(&self, name: &str, algorithm: Algorithm) -> io::Result<Upload> {
        let path = self.dir.join(name);
        let at = path.clone();
        let (file, len, sums) = blocking(move || {
            let mut file = File::options().read(true).write(true).open(at)?;
            let (sums, len) = sum(&file, algorithm)?;
            file.seek(SeekFrom::Start(len))?;
            Ok((file, len, sums))
        })
        .await?;
        Upload::new(path, file, len, sums)
    }

    /// The length of a parked file; None when it is gone.
    pub fn parked_len(&self, name: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.dir.join(name)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a parked file.
    pub fn discard(&self, name: &str) {
        let _ = fs::remove_file(self.dir.join(name));
    }

    /// Removes all files but those named, when nothing is being written yet.
    pub fn sweep(&self, is_kept: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(&is_kept) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn sync_data(file: &File) {
    if let Err(error) = file.sync_data() {
        durability::sync_failed("upload", &error);
    }
}

fn sum(file: &File, algorithm: Algorithm) -> io::Result<(Sums, u64)> {
    let (hasher, checksums, len) = disk::sum(file, algorithm)?;
    Ok((Sums { hasher, checksums }, len))
}

impl Upload {
    fn new(path: PathBuf, file: File, len: u64, sums: Sums) -> io::Result<Upload> {
        let reader = Arc::new(file.try_clone()?);
        let state = State {
            file,
            written: len,
            sums,
        };
        Ok(Upload {
            path: Some(path),
            is_named: false,
            reader,
            pending: Vec::new(),
            pending_len: 0,
            unchecked: 0,
            state: Some(state),
            writing: None,
            syncing: None,
            synced: len,
            accepted: len,
            progress: watch::Sender::new(Progress::Growing { len }),
        })
    }

    /// Of its file, for `reopen`.
    pub fn name(&self) -> String {
        let name = self.path.as_ref().and_then(|path| path.file_name());
        name.map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

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
        self.unchecked += bytes.len();
        self.pending.push(bytes);
        if self.unchecked >= BATCH
            && let Some(path) = &self.path
        {
            durability::check_room(path, Room::Blobs)?;
            self.unchecked = 0;
        }
        if self.pending_len >= BATCH {
            self.settle().await?;
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
            self.sync_ahead(state.written);
            self.state = Some(state);
        }
        match self.state {
            Some(_) => Ok(()),
            None => Err(io::Error::other("an earlier write of this upload failed")),
        }
    }

    fn sync_ahead(&mut self, written: u64) {
        let is_free = self.syncing.as_ref().is_none_or(JoinHandle::is_finished);
        if is_free && written - self.synced >= SYNC_EVERY {
            self.synced = written;
            let file = self.reader.clone();
            self.syncing = Some(tokio::task::spawn_blocking(move || sync_data(&file)));
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

    /// All that was accepted is on disk when this returns, under its name; the length.
    pub async fn sync(&mut self) -> io::Result<u64> {
        let len = self.flush().await?;
        let (file, path) = (self.reader.clone(), self.path.clone());
        let is_named = self.is_named;
        blocking(move || {
            let named = match path.filter(|_| !is_named) {
                Some(path) => disk::sync_parent(&path),
                None => Ok(()),
            };
            sync_data(&file);
            if let Err(error) = named {
                durability::sync_failed("upload", &error);
            }
            Ok(())
        })
        .await?;
        self.is_named = true;
        Ok(len)
    }

    /// Leaves the first `len` bytes on disk, for `reopen`. Who follows is told that it failed.
    pub async fn park(mut self, len: u64) -> io::Result<()> {
        // One that failed left bytes past `len` at most.
        let _ = self.settle().await;
        self.path = None;
        self.progress.send_replace(Progress::Failed);
        let file = self.reader.clone();
        blocking(move || file.set_len(len)).await
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
    state.sums = sum(&state.file, algorithm)?.0;
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

    /// Of the first `len` bytes of what is written.
    pub async fn sum(&self, len: u64, algorithm: Algorithm) -> io::Result<Hasher> {
        let file = self.file.clone();
        blocking(move || {
            let mut hasher = Hasher::new(algorithm);
            let mut bytes = vec![0; BATCH];
            let mut at = 0;
            while at < len {
                let most = usize::try_from(len - at).unwrap_or(BATCH).min(BATCH);
                file.read_exact_at(&mut bytes[..most], at)?;
                hasher.update(&bytes[..most]);
                at += most as u64;
            }
            Ok(hasher)
        })
        .await
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
