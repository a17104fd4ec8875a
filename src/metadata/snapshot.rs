//! Snapshots as files: written as a stream, read as a stream, never whole in memory.
//!
//! A file is a magic word and then frames: length, CRC-32, payload. The first frame says of which
//! entry it is the state, the last how many keys there are and what their hash is; between them are
//! pairs in key order. A file gets its final name only after it is synced, so a name that ends in
//! `.snap` is whole unless the disk damaged it, and then a checksum says so.

use super::kv::Pair;
use super::raft_types::{decode, invalid};
use crate::durability;
use crate::proto::state::v1 as pb;
use bytes::{Buf, Bytes};
use prost::Message;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"RSSNAP01";
pub const FORMAT: u32 = 1;
/// Longer than any frame that is written: a value is at most a manifest of 4 MiB.
const MAX_FRAME: usize = 64 << 20;
const FRAME: usize = 256 << 10;

const HEADER: u8 = 0;
const PAIRS: u8 = 1;
const TRAILER: u8 = 2;

/// A finished snapshot on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    pub path: PathBuf,
}

pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub struct Writer {
    out: BufWriter<File>,
    temporary: PathBuf,
    frame: Vec<u8>,
}

impl Writer {
    pub fn create(dir: &Path, name: &str, header: &pb::SnapshotHeader) -> io::Result<Writer> {
        let temporary = dir.join(format!("{name}.tmp"));
        let mut out = BufWriter::new(File::create(&temporary)?);
        out.write_all(MAGIC)?;
        let mut writer = Writer {
            out,
            temporary,
            frame: vec![PAIRS],
        };
        writer.message(HEADER, header)?;
        Ok(writer)
    }

    fn message(&mut self, kind: u8, message: &impl Message) -> io::Result<()> {
        let mut payload = vec![kind];
        payload.extend_from_slice(&message.encode_to_vec());
        write_frame(&mut self.out, &payload)
    }

    pub fn pair(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        for part in [key, value] {
            let len = u32::try_from(part.len()).map_err(invalid)?;
            self.frame.extend_from_slice(&len.to_be_bytes());
            self.frame.extend_from_slice(part);
        }
        if self.frame.len() >= FRAME {
            self.flush_pairs()
        } else {
            Ok(())
        }
    }

    fn flush_pairs(&mut self) -> io::Result<()> {
        if self.frame.len() > 1 {
            write_frame(&mut self.out, &self.frame)?;
            self.frame.truncate(1);
        }
        Ok(())
    }

    /// Syncs, and gives the file its name.
    pub fn finish(mut self, trailer: &pb::SnapshotHeader, name: &str) -> io::Result<SnapshotFile> {
        self.flush_pairs()?;
        self.message(TRAILER, trailer)?;
        self.out.flush()?;
        publish(self.out.get_ref(), &self.temporary, name)
    }
}

fn write_frame(out: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let len = u32::try_from(payload.len()).map_err(invalid)?;
    out.write_all(&len.to_be_bytes())?;
    out.write_all(&crc32fast::hash(payload).to_be_bytes())?;
    out.write_all(payload)
}

fn publish(file: &File, temporary: &Path, name: &str) -> io::Result<SnapshotFile> {
    let dir = temporary
        .parent()
        .ok_or_else(|| invalid("a snapshot without a directory"))?;
    if let Err(error) = file.sync_all() {
        durability::sync_failed("snapshot", &error);
    }
    let path = dir.join(format!("{name}.snap"));
    std::fs::rename(temporary, &path)?;
    if let Err(error) = sync_dir(dir) {
        durability::sync_failed("snapshot directory", &error);
    }
    Ok(SnapshotFile { path })
}

/// A snapshot that arrives from the leader, piece by piece.
pub struct Receiver {
    out: BufWriter<File>,
    temporary: PathBuf,
}

impl Receiver {
    pub fn create(dir: &Path) -> io::Result<Receiver> {
        let temporary = dir.join(format!("received-{:016x}.tmp", rand::random::<u64>()));
        Ok(Receiver {
            out: BufWriter::new(File::create(&temporary)?),
            temporary,
        })
    }

    pub fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.out.write_all(piece)
    }

    /// Synced and whole; not checked yet, which its installation does first.
    pub fn finish(mut self, name: &str) -> io::Result<SnapshotFile> {
        self.out.flush()?;
        publish(self.out.get_ref(), &self.temporary, name)
    }
}

/// A name that sorts by index.
pub fn name(applied: &pb::Applied) -> String {
    let last = applied.last.unwrap_or_default();
    format!("{:020}-{:020}", last.index, last.term)
}

pub struct Reader {
    input: BufReader<File>,
    pub header: pb::SnapshotHeader,
    /// Known once all pairs are read.
    pub trailer: Option<pb::SnapshotHeader>,
}

impl Reader {
    pub fn open(file: &SnapshotFile) -> io::Result<Reader> {
        let mut input = BufReader::new(File::open(&file.path)?);
        let mut magic = [0; 8];
        input.read_exact(&mut magic)?;
        if &magic != MAGIC {
            return Err(invalid("not a snapshot"));
        }
        let header = match read_frame(&mut input)? {
            (HEADER, payload) => decode::<pb::SnapshotHeader>("snapshot header", &payload)?,
            _ => return Err(invalid("a snapshot without a header")),
        };
        if header.format != FORMAT {
            return Err(invalid(format!(
                "snapshot of format {}; this release reads {FORMAT}",
                header.format
            )));
        }
        Ok(Reader {
            input,
            header,
            trailer: None,
        })
    }

    /// The next pairs, in key order; empty at the end, when `trailer` is known.
    pub fn pairs(&mut self) -> io::Result<Vec<Pair>> {
        if self.trailer.is_some() {
            return Ok(Vec::new());
        }
        match read_frame(&mut self.input)? {
            (PAIRS, mut payload) => {
                let mut pairs = Vec::new();
                while payload.has_remaining() {
                    pairs.push((part(&mut payload)?, part(&mut payload)?));
                }
                Ok(pairs)
            }
            (TRAILER, payload) => {
                self.trailer = Some(decode("snapshot trailer", &payload)?);
                Ok(Vec::new())
            }
            _ => Err(invalid("a snapshot frame of unknown kind")),
        }
    }
}

fn read_frame(input: &mut impl Read) -> io::Result<(u8, Bytes)> {
    let mut head = [0; 8];
    input.read_exact(&mut head)?;
    let mut head = &head[..];
    let (len, crc) = (head.get_u32() as usize, head.get_u32());
    if len == 0 || len > MAX_FRAME {
        return Err(invalid("a snapshot frame of impossible length"));
    }
    let mut payload = vec![0; len];
    input.read_exact(&mut payload)?;
    if crc32fast::hash(&payload) != crc {
        return Err(invalid("a snapshot frame does not match its checksum"));
    }
    let mut payload = Bytes::from(payload);
    let kind = payload.get_u8();
    Ok((kind, payload))
}

fn part(payload: &mut Bytes) -> io::Result<Bytes> {
    if payload.remaining() < 4 {
        return Err(invalid("a snapshot pair is cut short"));
    }
    let len = payload.get_u32() as usize;
    if payload.remaining() < len {
        return Err(invalid("a snapshot pair is cut short"));
    }
    Ok(payload.split_to(len))
}

/// The file under its name in `dir`, wherever it came from: then it is this node's own.
pub fn adopt(dir: &Path, file: &SnapshotFile, applied: &pb::Applied) -> io::Result<()> {
    let name = name(applied);
    if file.path == dir.join(format!("{name}.snap")) {
        return Ok(());
    }
    let temporary = dir.join(format!("{name}.tmp"));
    std::fs::copy(&file.path, &temporary)?;
    publish(&File::open(&temporary)?, &temporary, &name).map(|_| ())
}

/// Finished snapshots, newest first.
pub fn list(dir: &Path) -> io::Result<Vec<SnapshotFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "snap")
        {
            files.push(SnapshotFile { path });
        }
    }
    files.sort_by(|a, b| b.path.cmp(&a.path));
    Ok(files)
}

/// Of the newest finished one; 0 when there is none.
pub fn newest_bytes(dir: &Path) -> u64 {
    let newest = list(dir).ok().and_then(|files| files.into_iter().next());
    newest
        .and_then(|file| std::fs::metadata(file.path).ok())
        .map_or(0, |file| file.len())
}

/// Deletes all but the newest, and what a crash left unfinished when `sweep`.
pub fn keep_newest(dir: &Path, sweep: bool) -> io::Result<()> {
    for old in list(dir)?.into_iter().skip(1) {
        std::fs::remove_file(old.path)?;
    }
    if sweep {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                std::fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}
