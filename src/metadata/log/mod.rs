//! Where the entries of the log are: in files, or in memory for the simulation.
//!
//! What must stay true: entries are appended in order and read back as they were; a crash keeps all
//! that was synced, and of the rest no more than a beginning; a truncate counts before what is
//! appended after it.

mod files;
mod memory;
mod segment;

use super::StartError;
use super::kv;
use super::kv::Kv;
use super::kv::Synced;
use bytes::Bytes;
use std::io;

const DIRECTORY: &str = "log";

pub enum Log {
    Files(files::Files),
    Memory(memory::InTree),
}

impl Log {
    /// Beside the store of `kv`. `from`: index of the first entry that is still needed.
    pub fn open(kv: &Kv, from: u64) -> Result<Log, StartError> {
        let Some(dir) = kv.directory() else {
            return Ok(Log::Memory(memory::InTree::open(kv)?));
        };
        match files::Files::open(&dir.join(DIRECTORY), from) {
            Ok(files) => Ok(Log::Files(files)),
            Err(files::OpenError::Io(error)) => Err(StartError::Io(error)),
            Err(files::OpenError::Damaged { what }) => {
                let path = dir.to_owned();
                Err(StartError::Kv(kv::OpenError::Damaged { path, what }))
            }
        }
    }

    pub fn last(&self) -> io::Result<Option<Bytes>> {
        match self {
            Log::Files(files) => files.last(),
            Log::Memory(tree) => tree.last(),
        }
    }

    /// Of the entries that are needed.
    pub fn bytes(&self) -> io::Result<u64> {
        match self {
            Log::Files(files) => Ok(files.bytes()),
            Log::Memory(tree) => tree.bytes(),
        }
    }

    /// Entries of `start..end` that there are, in order, until they have `max_bytes` or a little more;
    /// at least one.
    pub fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Bytes>> {
        match self {
            Log::Files(files) => files.read(start, end, max_bytes),
            Log::Memory(tree) => tree.read(start, end, max_bytes),
        }
    }

    /// `entries` have the indexes from `first` on, which follow the last one. Not synced. Gives
    /// the bytes that they took.
    pub fn append(&self, first: u64, entries: &[Vec<u8>]) -> io::Result<u64> {
        match self {
            Log::Files(files) => files.append(first, entries),
            Log::Memory(tree) => tree.append(first, entries),
        }
    }

    /// Calls back once everything appended before is on disk.
    pub fn sync_then(&self, done: Synced) {
        match self {
            Log::Files(files) => files.sync_then(done),
            Log::Memory(tree) => tree.sync_then(done),
        }
    }

    /// Drops the entries from `from` on, before anything else is appended.
    pub fn truncate(&self, from: u64) -> io::Result<()> {
        match self {
            Log::Files(files) => {
                files.truncate(from);
                Ok(())
            }
            Log::Memory(tree) => tree.truncate(from),
        }
    }

    /// Entries before `from` are needed no more, and the caller has that on disk.
    pub fn purge(&self, from: u64) -> io::Result<()> {
        match self {
            Log::Files(files) => files.purge(from),
            Log::Memory(tree) => tree.purge(from),
        }
    }
}

#[cfg(test)]
mod tests;
