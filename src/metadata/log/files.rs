//! The log in files of its own, beside sled, whose threads and write buffers cost more than what
//! they do for a log that is only appended to (docs/decisions/0012).
//!
//! What must stay true: one file follows the other without a hole, and all but the last are synced
//! whole; who cuts or deletes has it on disk before anything is appended after it; a sync that fails
//! ends the process.

use super::super::group_commit::GroupCommit;
use super::super::group_commit::Synced;
use super::segment::Segment;
use super::segment::first_of;
use crate::durability;
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;

/// What is purged goes file by file: not too large, and not too many of them.
const SEGMENT: u64 = 16 << 20;
const WHAT: &str = "Raft log";

pub struct Files {
    dir: PathBuf,
    /// A file that has this much is not appended to.
    full: u64,
    kept: Arc<RwLock<Kept>>,
    syncs: GroupCommit,
}

struct Kept {
    /// Index of the first entry that is still needed; a file may begin before it.
    from: u64,
    /// In order, none of them empty but the last.
    segments: Vec<Segment>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{what}")]
    Damaged { what: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Files {
    /// `from`: index of the first entry that is still needed. What a crash left is tidied up.
    pub fn open(dir: &Path, from: u64) -> Result<Files, OpenError> {
        Files::open_with(dir, from, SEGMENT)
    }

    pub(super) fn open_with(dir: &Path, from: u64, full: u64) -> Result<Files, OpenError> {
        std::fs::create_dir_all(dir)?;
        // What is synced in a directory is lost with the directory's own name.
        if let Some(parent) = dir.parent() {
            File::open(parent)?.sync_all()?;
        }
        let mut firsts = Vec::new();
        for file in std::fs::read_dir(dir)? {
            firsts.extend(file?.file_name().to_str().and_then(first_of));
        }
        firsts.sort_unstable();
        let mut segments: Vec<Segment> = Vec::new();
        for (at, first) in firsts.iter().enumerate() {
            let is_last = at + 1 == firsts.len();
            let (mut segment, is_torn) = Segment::open(dir, *first)?;
            let damaged = |what: &str| OpenError::Damaged {
                what: format!("the log file {}: {what}", segment.path().display()),
            };
            if is_torn && !is_last {
                return Err(damaged("it holds a damaged entry"));
            }
            if segment.next() <= from {
                segment.remove()?;
                continue;
            }
            let expected = match segments.last() {
                Some(before) => before.next(),
                None => segment.first.min(from),
            };
            if segment.first != expected {
                return Err(damaged(&format!("entries from {expected} on are missing")));
            }
            if is_torn {
                tracing::warn!(
                    path = %segment.path().display(), next = segment.next(),
                    "the log ends in an entry that was not written whole; it is cut off there"
                );
            }
            if is_last {
                segment.cut(segment.next())?;
            }
            segments.push(segment);
        }
        File::open(dir)?.sync_all()?;
        let kept = Arc::new(RwLock::new(Kept { from, segments }));
        let synced = kept.clone();
        // A file that was full is synced by whoever begins the next.
        let syncs = GroupCommit::start(WHAT, move || {
            let last = read(&synced).segments.last().map(|last| last.file.clone());
            last.map_or(Ok(()), |file| file.sync_data())
        })?;
        Ok(Files {
            dir: dir.to_owned(),
            full,
            kept,
            syncs,
        })
    }

    fn kept(&self) -> RwLockReadGuard<'_, Kept> {
        read(&self.kept)
    }

    fn kept_mut(&self) -> RwLockWriteGuard<'_, Kept> {
        self.kept.write().expect("no panic while held")
    }

    pub fn last(&self) -> io::Result<Option<Bytes>> {
        match self
            .kept()
            .segments
            .iter()
            .rfind(|segment| !segment.is_empty())
        {
            Some(segment) => {
                let next = segment.next();
                Ok(segment.read(next - 1, next, 0)?.pop())
            }
            None => Ok(None),
        }
    }

    /// Of the entries that are needed, with their frames.
    pub fn bytes(&self) -> u64 {
        let kept = self.kept();
        let frames = kept.segments.iter().map(|s| s.bytes_from(kept.from));
        frames.sum()
    }

    /// Entries of `start..end` that there are, in order, until they have `max_bytes` or a little more.
    pub fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Bytes>> {
        let kept = self.kept();
        let segments = &kept.segments;
        let start = start.max(
            segments
                .first()
                .map_or(start, |first| first.first.max(kept.from)),
        );
        let mut at = segments.partition_point(|segment| segment.next() <= start);
        let (mut entries, mut bytes, mut next) = (Vec::new(), 0, start);
        while let Some(segment) = segments.get(at) {
            if next >= end || (bytes >= max_bytes && !entries.is_empty()) {
                break;
            }
            let found = segment.read(next, end, max_bytes.saturating_sub(bytes))?;
            next += found.len() as u64;
            bytes += found.iter().map(Bytes::len).sum::<usize>();
            entries.extend(found);
            if next < segment.next() {
                break;
            }
            at += 1;
        }
        Ok(entries)
    }

    /// `entries` follow the last one, or begin at `first` when there is none. Not synced.
    /// Gives the bytes that they took.
    pub fn append(&self, first: u64, entries: &[Vec<u8>]) -> io::Result<u64> {
        let segments = &mut self.kept_mut().segments;
        let next = segments.last().map_or(first, Segment::next);
        if first != next {
            let what = format!("entry {first} does not follow, entry {next} would");
            return Err(io::Error::other(what));
        }
        if segments.last().is_none_or(|last| last.len() >= self.full) {
            if let Some(full) = segments.last_mut() {
                full.cut(first).unwrap_or_else(|error| failed(&error));
            }
            segments.push(Segment::create(&self.dir, first)?);
            self.sync_dir();
        }
        let last = segments.last_mut().expect("there is one by now");
        last.append(entries.iter().map(Vec::as_slice))
    }

    /// Calls back once everything appended before is on disk. Concurrent calls share one sync.
    pub fn sync_then(&self, done: Synced) {
        self.syncs.then(done);
    }

    /// Drops the entries from `from` on. Synced before it returns.
    pub fn truncate(&self, from: u64) {
        let mut kept = self.kept_mut();
        cut(&mut kept.segments, from).unwrap_or_else(|error| failed(&error));
        self.sync_dir();
    }

    /// Entries before `from` are needed no more. Files go when all of theirs are; the oldest first.
    pub fn purge(&self, from: u64) -> io::Result<()> {
        let mut kept = self.kept_mut();
        kept.from = from;
        let gone = kept
            .segments
            .partition_point(|segment| segment.next() <= from);
        for segment in kept.segments.drain(..gone) {
            segment.remove()?;
        }
        Ok(())
    }

    fn sync_dir(&self) {
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.unwrap_or_else(|error| failed(&error));
    }
}

fn cut(segments: &mut Vec<Segment>, from: u64) -> io::Result<()> {
    while let Some(segment) = segments.pop_if(|segment| segment.first >= from) {
        segment.remove()?;
    }
    match segments.last_mut() {
        Some(segment) if segment.next() > from => segment.cut(from),
        _ => Ok(()),
    }
}

fn read(kept: &RwLock<Kept>) -> RwLockReadGuard<'_, Kept> {
    kept.read().expect("no panic while held")
}

fn failed(error: &io::Error) -> ! {
    durability::sync_failed(WHAT, error)
}
