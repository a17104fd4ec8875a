//! One file of the log: frames of entries with consecutive indexes, from the one in its name.
//!
//! A frame is the length of the entry and a CRC-32 of its index and bytes, both four bytes, little
//! endian, and then the bytes. Zeros follow the last frame: a write into a file that has its length
//! already is synced without its metadata, in two thirds of the time.
//!
//! What must stay true: what `open` keeps are the frames from the start up to the first that is not
//! whole, and nothing else is left in the file, so that no older frame can follow a newer one.

use bytes::Bytes;
use bytes::BytesMut;
use std::fs::File;
use std::io;
use std::io::BufReader;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

/// Length and CRC-32.
const HEAD: usize = 8;
/// The file grows by this much at a time.
const ROOM: u64 = 1 << 20;
/// No entry is longer; a frame that says so is none.
const LONGEST: usize = 1 << 28;
const SUFFIX: &str = ".log";

pub struct Segment {
    pub first: u64,
    pub file: Arc<File>,
    path: PathBuf,
    /// Where the frame of each entry begins.
    starts: Vec<u64>,
    /// Where the last one ends.
    end: u64,
    /// How long the file is.
    room: u64,
}

fn crc(index: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&index.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

fn parse_head(head: [u8; HEAD]) -> (usize, u32) {
    let [a, b, c, d, e, f, g, h] = head;
    let length = u32::from_le_bytes([a, b, c, d]);
    (length as usize, u32::from_le_bytes([e, f, g, h]))
}

/// The index of the first entry of the file of this name.
pub fn first_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

impl Segment {
    /// The caller syncs the directory.
    pub fn create(dir: &Path, first: u64) -> io::Result<Segment> {
        let path = dir.join(format!("{first:020}{SUFFIX}"));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true);
        Ok(Segment {
            first,
            file: Arc::new(file.open(&path)?),
            path,
            starts: Vec::new(),
            end: 0,
            room: 0,
        })
    }

    /// Reads every frame. True: there was more than frames and zeros.
    pub fn open(dir: &Path, first: u64) -> io::Result<(Segment, bool)> {
        let path = dir.join(format!("{first:020}{SUFFIX}"));
        let file = File::options().read(true).write(true).open(&path)?;
        let (mut starts, mut end) = (Vec::new(), 0);
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let mut entry = Vec::new();
        let is_torn = loop {
            let mut head = [0; HEAD];
            if !read_whole(&mut reader, &mut head)? {
                // Shorter than a head: zeros, or the begin of one.
                break head != [0; HEAD];
            }
            let (length, said) = parse_head(head);
            if length == 0 || length > LONGEST {
                break head != [0; HEAD];
            }
            entry.resize(length, 0);
            let index = first + starts.len() as u64;
            if !read_whole(&mut reader, &mut entry)? || crc(index, &entry) != said {
                break true;
            }
            starts.push(end);
            end += (HEAD + length) as u64;
        };
        drop(reader);
        let segment = Segment {
            first,
            file: Arc::new(file),
            path,
            starts,
            end,
            room: end,
        };
        Ok((segment, is_torn))
    }

    /// Index of the entry that would come next.
    pub fn next(&self) -> u64 {
        self.first + self.starts.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Of the frames from `index` on.
    pub fn bytes_from(&self, index: u64) -> u64 {
        self.end - self.start_of(index)
    }

    /// Of all frames.
    pub fn len(&self) -> u64 {
        self.end
    }

    fn start_of(&self, index: u64) -> u64 {
        let at = index.saturating_sub(self.first);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        self.starts.get(at).copied().unwrap_or(self.end)
    }

    /// Not synced. Gives the bytes that it took.
    pub fn append<'a>(&mut self, entries: impl Iterator<Item = &'a [u8]>) -> io::Result<u64> {
        let (mut frames, mut starts) = (Vec::new(), Vec::new());
        for entry in entries {
            let length = u32::try_from(entry.len())
                .ok()
                .filter(|_| !entry.is_empty());
            let length = length.filter(|length| *length as usize <= LONGEST);
            let length = length.ok_or_else(|| io::Error::other("an entry of impossible size"))?;
            starts.push(self.end + frames.len() as u64);
            let index = self.next() + starts.len() as u64 - 1;
            frames.extend_from_slice(&length.to_le_bytes());
            frames.extend_from_slice(&crc(index, entry).to_le_bytes());
            frames.extend_from_slice(entry);
        }
        let end = self.end + frames.len() as u64;
        if end > self.room {
            let room = end.next_multiple_of(ROOM);
            frames.resize(frames.len() + usize::try_from(room - end).unwrap_or(0), 0);
            self.file.write_all_at(&frames, self.end)?;
            self.room = room;
        } else {
            self.file.write_all_at(&frames, self.end)?;
        }
        let taken = end - self.end;
        self.starts.extend(starts);
        self.end = end;
        Ok(taken)
    }

    /// Entries from `from` on and before `end`: as many as fit `max_bytes`, at least one.
    pub fn read(&self, from: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Bytes>> {
        let begin = self.start_of(from);
        let mut to = from;
        while to < end.min(self.next())
            && (to == from || self.start_of(to + 1) - begin <= max_bytes as u64)
        {
            to += 1;
        }
        let length = usize::try_from(self.start_of(to) - begin).map_err(io::Error::other)?;
        let mut frames = BytesMut::zeroed(length);
        self.file.read_exact_at(&mut frames, begin)?;
        let mut frames = frames.freeze();
        let mut entries = Vec::new();
        for index in from..to {
            let damaged = || {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("entry {index} in {} is damaged", self.path.display()),
                )
            };
            let head = frames.get(..HEAD).and_then(|head| head.try_into().ok());
            let (length, said) = parse_head(head.ok_or_else(damaged)?);
            if frames.len() < HEAD + length {
                return Err(damaged());
            }
            let entry = frames.split_to(HEAD + length).slice(HEAD..);
            if crc(index, &entry) != said {
                return Err(damaged());
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Drops the entries from `from` on, and whatever else follows, for good.
    pub fn cut(&mut self, from: u64) -> io::Result<()> {
        self.end = self.start_of(from);
        let kept = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.starts.truncate(kept);
        self.file.set_len(self.end)?;
        self.room = self.end;
        self.file.sync_all()
    }

    pub fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// False at the end of the file, whatever came before it.
fn read_whole(reader: &mut impl Read, into: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
