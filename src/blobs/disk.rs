//! Blobs as files, with a CRC-32 of each 64 KiB block beside each.

use super::{Staged, Stored};
use crate::durability;
use crate::oci::{Algorithm, Digest, Hasher};
use crate::topology::NodeId;
use bytes::Bytes;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

pub const BLOCK: usize = 64 << 10;
const MAGIC: &[u8; 8] = b"RSBLOCK1";

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub fn path(root: &Path, digest: &Digest) -> PathBuf {
    root.join(digest.algorithm().as_str())
        .join(&digest.hex()[..2])
        .join(digest.hex())
}

pub fn checksums_of(path: &Path) -> PathBuf {
    path.with_extension("crc")
}

/// Where a piece that begins at `start` ends: on a block's edge, at most `most` further.
pub fn chunk_end(start: u64, most: u64) -> u64 {
    (start + most) / BLOCK as u64 * BLOCK as u64
}

pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .ok_or_else(|| bad("a blob without a directory"))?;
    File::open(parent)?.sync_all()
}

fn create_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Makes the directories, syncs the file system; the node that the store is of.
pub fn prepare(root: &Path, node: NodeId) -> io::Result<String> {
    let marker = root.join("node");
    let is_new = !root.exists();
    for dir in ["sha256", "sha512", "staging", "quarantine"] {
        create_dir(&root.join(dir))?;
    }
    let found = match fs::read_to_string(&marker) {
        Ok(found) => found.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !is_new && !list(root)?.is_empty() {
                return Err(bad(
                    "there are blobs, and no note of the node that they are of",
                ));
            }
            let mut file = File::create(&marker)?;
            writeln!(file, "{node}")?;
            file.sync_all()?;
            node.to_string()
        }
        Err(error) => return Err(error),
    };
    rustix::fs::syncfs(File::open(root)?)?;
    Ok(found)
}

/// What a look at the names and sizes of files tells.
pub enum Found {
    Nothing,
    Whole(u64),
    /// Its checksums are missing, or are those of a blob of another size.
    Odd,
}

pub fn look(path: &Path) -> io::Result<Found> {
    let size_of = |path: &Path| match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let Some(size) = size_of(path)? else {
        return Ok(Found::Nothing);
    };
    let is_whole = size_of(&checksums_of(path))? == Some(encoded_len(size));
    Ok(if is_whole {
        Found::Whole(size)
    } else {
        Found::Odd
    })
}

pub fn delete(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let _ = fs::remove_file(checksums_of(path));
    sync_parent(path)?;
    Ok(true)
}

/// Out of the way of readers; with `inode`, only if it is still that file.
pub fn move_away(path: &Path, to: &Path, inode: Option<u64>) -> io::Result<()> {
    if inode.is_some_and(|inode| fs::metadata(path).is_ok_and(|found| found.ino() != inode)) {
        return Err(io::ErrorKind::NotFound.into());
    }
    fs::rename(path, to)?;
    let _ = fs::remove_file(checksums_of(path));
    if let Err(error) = sync_parent(path) {
        durability::sync_failed("blob directory", &error);
    }
    Ok(())
}

pub fn list(root: &Path) -> io::Result<Vec<Stored>> {
    let mut found = Vec::new();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for prefix in fs::read_dir(root.join(algorithm.as_str()))? {
            for entry in fs::read_dir(prefix?.path())? {
                let entry = entry?;
                let name = entry.file_name().into_string().unwrap_or_default();
                if let Ok(digest) = format!("{}:{name}", algorithm.as_str()).parse() {
                    found.push(Stored {
                        digest,
                        size: entry.metadata()?.len(),
                    });
                }
            }
        }
    }
    Ok(found)
}

/// The checksums of a blob's blocks, as they come.
#[derive(Default)]
pub struct Checksums {
    blocks: Vec<u32>,
    current: crc32fast::Hasher,
    in_current: usize,
}

impl Checksums {
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK - self.in_current));
            self.current.update(now);
            self.in_current += now.len();
            if self.in_current == BLOCK {
                self.close();
            }
            bytes = rest;
        }
    }

    fn close(&mut self) {
        self.blocks
            .push(std::mem::take(&mut self.current).finalize());
        self.in_current = 0;
    }

    pub(super) fn encode(mut self, size: u64) -> Vec<u8> {
        if self.in_current > 0 {
            self.close();
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&size.to_be_bytes());
        self.blocks
            .iter()
            .for_each(|crc| bytes.extend_from_slice(&crc.to_be_bytes()));
        let own = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&own.to_be_bytes());
        bytes
    }
}

/// Of the checksums of a blob of `size` bytes: magic, size, one CRC a block, their own CRC.
fn encoded_len(size: u64) -> u64 {
    8 + 8 + 4 * size.div_ceil(BLOCK as u64) + 4
}

pub(super) fn decode(bytes: &[u8]) -> io::Result<(u64, Vec<u32>)> {
    let (body, own) = bytes
        .split_last_chunk::<4>()
        .ok_or_else(|| bad("block checksums cut short"))?;
    if crc32fast::hash(body) != u32::from_be_bytes(*own) || !body.starts_with(MAGIC) {
        return Err(bad("block checksums are damaged"));
    }
    let (size, crcs) = body[MAGIC.len()..]
        .split_first_chunk::<8>()
        .ok_or_else(|| bad("block checksums cut short"))?;
    let crcs = crcs
        .chunks_exact(4)
        .map(|crc| crc.iter().fold(0, |sum, b| (sum << 8) | u32::from(*b)));
    Ok((u64::from_be_bytes(*size), crcs.collect()))
}

/// An open blob.
pub struct Blob {
    file: File,
    inode: u64,
    size: u64,
    blocks: Vec<u32>,
}

impl Blob {
    pub fn open(path: &Path, digest: &Digest) -> io::Result<Blob> {
        let file = File::open(path)?;
        let (size, blocks) = match fs::read(checksums_of(path)).and_then(|bytes| decode(&bytes)) {
            Ok(found) => found,
            // Rebuilt only from bytes that have the right digest (A7).
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidData
                ) =>
            {
                rebuild(&file, path, digest)?
            }
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if metadata.len() != size || blocks.len() as u64 != size.div_ceil(BLOCK as u64) {
            return Err(bad("a blob of another size than it had"));
        }
        Ok(Blob {
            inode: metadata.ino(),
            file,
            size,
            blocks,
        })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Every block that `range` touches is read whole and checked.
    pub fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let block = BLOCK as u64;
        let start = range.start / block * block;
        let end = range
            .end
            .div_ceil(block)
            .saturating_mul(block)
            .min(self.size);
        let len = usize::try_from(end.saturating_sub(start)).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, start)
            .map_err(|_| bad("a blob is cut short"))?;
        let first = usize::try_from(start / block).map_err(io::Error::other)?;
        for (part, crc) in bytes.chunks(BLOCK).zip(&self.blocks[first..]) {
            if crc32fast::hash(part) != *crc {
                return Err(bad("a block does not match its checksum"));
            }
        }
        let from = usize::try_from(range.start - start).map_err(io::Error::other)?;
        let to = usize::try_from(range.end.min(self.size) - start).map_err(io::Error::other)?;
        Ok(Bytes::from(bytes).slice(from..to))
    }
}

fn rebuild(file: &File, path: &Path, digest: &Digest) -> io::Result<(u64, Vec<u32>)> {
    let (hasher, checksums, size) = sum(file, digest.algorithm())?;
    if hasher.finish() != *digest {
        return Err(bad("a blob does not have its digest"));
    }
    let encoded = checksums.encode(size);
    fs::write(checksums_of(path), &encoded)?;
    decode(&encoded)
}

/// Of all bytes from where the file stands; how many they are.
pub fn sum(mut file: &File, algorithm: Algorithm) -> io::Result<(Hasher, Checksums, u64)> {
    let mut checksums = Checksums::default();
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 16 * BLOCK];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((hasher, checksums, size));
        }
        hasher.update(&buffer[..n]);
        checksums.update(&buffer[..n]);
        size += n as u64;
    }
}

pub fn has_digest(path: &Path, digest: &Digest) -> io::Result<bool> {
    let (hasher, _, _) = sum(&File::open(path)?, digest.algorithm())?;
    Ok(hasher.finish() == *digest)
}

/// Everything synced before the name is there, and the name before this returns.
pub fn adopt(staged: Staged, path: &Path) -> io::Result<u64> {
    let (file, staging, checksums, size) = staged.into_parts();
    let parent = path
        .parent()
        .ok_or_else(|| bad("a blob without a directory"))?;
    let is_new_dir = !parent.exists();
    create_dir(parent)?;
    let crc = staging.with_extension("crc");
    let mut crc_file = File::create(&crc)?;
    crc_file.write_all(&checksums.encode(size))?;
    for (what, synced) in [
        ("blob", file.sync_all()),
        ("block checksums", crc_file.sync_all()),
    ] {
        if let Err(error) = synced {
            durability::sync_failed(what, &error);
        }
    }
    fs::rename(&crc, checksums_of(path))?;
    fs::rename(&staging, path)?;
    let mut synced = sync_parent(path);
    if is_new_dir {
        synced = synced.and_then(|()| sync_parent(parent));
    }
    if let Err(error) = synced {
        durability::sync_failed("blob directory", &error);
    }
    Ok(size)
}
