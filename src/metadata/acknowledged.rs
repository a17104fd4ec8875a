//! What this node said that it has: the end of its log and the term of its vote, in a file beside
//! the store (`DATA_DIR/meta/acknowledged`).
//!
//! A store can lose its tail without a word: sled takes a damaged segment for the end of its log and
//! opens as it was before it. Such a node would vote for a leader without the entries that it
//! acknowledged, and a commit would be undone (A18). It can only find that out from a second record.
//!
//! What must stay true: the file never says more than the store held, synced, at some time, and a
//! truncate lowers it, synced, before the entries go. So it may say less than is there, which only
//! makes it see less; it never stops a node that lost nothing. It is written with each append and
//! vote, once those are synced, without a sync of its own: it outlives a crash of the process, and
//! lags after a power cut.

use crate::durability;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

const NAME: &str = "acknowledged";
/// Index of the last entry, term of the vote, CRC-32 of both; little endian.
const LEN: usize = 20;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    pub last: u64,
    pub vote_term: u64,
}

impl Acknowledged {
    pub(super) fn encode(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&self.last.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.vote_term.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..16]);
        bytes[16..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// None for what was not written by `encode`.
    pub(super) fn decode(bytes: &[u8]) -> Option<Acknowledged> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let record = Acknowledged {
            last: number(0)?,
            vote_term: number(8)?,
        };
        (record.encode() == *bytes).then_some(record)
    }
}

/// The record and its file; without a file (the store is in memory) it only remembers.
pub struct Record {
    file: Option<File>,
    now: Mutex<(Acknowledged, Epoch)>,
}

/// Rises with each truncate: a sync that began before one must not raise the record after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(u64);

impl Record {
    /// `directory`: of the store, None for one in memory. A file that does not decode says nothing.
    pub fn open(directory: Option<&Path>) -> io::Result<Record> {
        let mut found = Acknowledged::default();
        let file = match directory {
            None => None,
            Some(directory) => {
                let path = directory.join(NAME);
                let mut options = File::options();
                let file = options
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path)?;
                let mut bytes = [0; LEN];
                if file.read_exact_at(&mut bytes, 0).is_ok() {
                    found = Acknowledged::decode(&bytes).unwrap_or_else(|| {
                        tracing::warn!(path = %path.display(), "it does not decode, and says nothing about the store");
                        Acknowledged::default()
                    });
                }
                Some(file)
            }
        };
        Ok(Record {
            file,
            now: Mutex::new((found, Epoch::default())),
        })
    }

    pub fn get(&self) -> Acknowledged {
        self.now.lock().expect("no panic while held").0
    }

    pub fn epoch(&self) -> Epoch {
        self.now.lock().expect("no panic while held").1
    }

    /// The store has all of this, synced; it was written in `epoch`.
    pub fn raise(&self, epoch: Epoch, last: u64, vote_term: u64) {
        let mut now = self.now.lock().expect("no panic while held");
        if now.1 != epoch {
            return;
        }
        let raised = Acknowledged {
            last: now.0.last.max(last),
            vote_term: now.0.vote_term.max(vote_term),
        };
        if raised != now.0 {
            now.0 = raised;
            // The file then says less than it could, which is safe.
            if let Err(error) = self.write(raised) {
                tracing::warn!(%error, "note what was acknowledged");
            }
        }
    }

    /// The log is about to end at `last`.
    pub fn lower(&self, last: u64) {
        let mut now = self.now.lock().expect("no panic while held");
        now.1.0 += 1;
        if last < now.0.last {
            now.0.last = last;
            let sync = |file: &File| file.sync_data();
            let written = self.write(now.0);
            let synced = written.and_then(|()| self.file.as_ref().map_or(Ok(()), sync));
            // The file would say too much, and keep a whole node from its next start.
            if let Err(error) = synced {
                durability::sync_failed("record of what was acknowledged", &error);
            }
        }
    }

    fn write(&self, record: Acknowledged) -> io::Result<()> {
        match &self.file {
            Some(file) => file.write_all_at(&record.encode(), 0),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_remembers_the_most_that_was_said_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::open(Some(dir.path())).unwrap();
        let epoch = record.epoch();
        record.raise(epoch, 7, 2);
        record.raise(epoch, 5, 3);
        drop(record);
        let again = Record::open(Some(dir.path())).unwrap();
        let said = Acknowledged {
            last: 7,
            vote_term: 3,
        };
        assert_eq!(again.get(), said);
    }

    #[test]
    fn a_sync_from_before_a_truncate_does_not_raise_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::open(Some(dir.path())).unwrap();
        let before = record.epoch();
        record.raise(before, 9, 1);
        record.lower(4);
        record.raise(before, 12, 1);
        assert_eq!(record.get().last, 4);
        record.raise(record.epoch(), 6, 1);
        drop(record);
        assert_eq!(Record::open(Some(dir.path())).unwrap().get().last, 6);
    }

    #[test]
    fn a_file_that_was_not_written_by_it_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), [0x5a; LEN]).unwrap();
        let record = Record::open(Some(dir.path())).unwrap();
        assert_eq!(record.get(), Acknowledged::default());
    }
}
