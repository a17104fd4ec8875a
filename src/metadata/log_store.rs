//! openraft's log and vote on the `Kv`. An append or a vote counts only once it is synced; the log
//! has no holes after a truncate or a purge, wherever a crash falls; a store that holds less than
//! was acknowledged is not opened (A18).

use super::StartError;
use super::acknowledged::Record;
use super::kv::{Batch, Kv, OpenError, Tree};
use super::raft_types::{
    Entry, LogId, TypeConfig, Vote, decode, entry_from_pb, entry_to_pb, invalid, log_id_from_pb,
    log_id_to_pb, vote_from_pb, vote_to_pb,
};
use crate::proto::state::v1 as pb;
use futures_util::Stream;
use futures_util::stream;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use prost::Message;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one read of the log may return, so that a batch fits a message and memory (A13).
const READ_BYTES: usize = 2 << 20;
const PAGE: usize = 64;

const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";

/// How far the log reaches and how much it keeps, as it is now.
#[derive(Clone, Default)]
pub struct LogExtent {
    bytes: Arc<AtomicU64>,
    last: Arc<AtomicU64>,
}

impl LogExtent {
    /// Of the entries that are kept, for the policy of A14.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Index of the last entry, synced or not; 0 when there never was one.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }
}

#[derive(Clone)]
pub struct LogStore {
    kv: Kv,
    log: Tree,
    meta: Tree,
    extent: LogExtent,
    acknowledged: Arc<Record>,
}

fn index_of(key: &[u8]) -> io::Result<u64> {
    let bytes = key
        .try_into()
        .map_err(|_| invalid("a log key of odd length"))?;
    Ok(u64::from_be_bytes(bytes))
}

impl LogStore {
    /// Refuses a store that holds less than what this node acknowledged.
    pub fn open(kv: &Kv) -> Result<LogStore, StartError> {
        let store = LogStore {
            kv: kv.clone(),
            log: kv.tree("raft_log")?,
            meta: kv.tree("raft_meta")?,
            extent: LogExtent::default(),
            acknowledged: Arc::new(Record::open(kv.directory())?),
        };
        let mut from = 0u64;
        loop {
            let page = store.page(from, PAGE)?;
            let Some((last, _)) = page.last() else { break };
            let next = index_of(last)?.checked_add(1);
            from = next.ok_or_else(|| invalid("a log key that no entry has"))?;
            let bytes = page.iter().map(|(_, value)| value.len() as u64).sum();
            store.extent.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        let last = store.last()?.map_or(0, |id| id.index);
        store.extent.last.store(last, Ordering::Release);
        store.check_acknowledged(last)?;
        Ok(store)
    }

    fn check_acknowledged(&self, last: u64) -> Result<(), StartError> {
        let said = self.acknowledged.get();
        let vote_term = self.vote()?.map_or(0, |vote| vote.leader_id.term);
        if last >= said.last && vote_term >= said.vote_term {
            return Ok(());
        }
        Err(StartError::Kv(OpenError::Damaged {
            path: self.kv.directory().unwrap_or(Path::new("")).to_owned(),
            what: format!(
                "it ends at entry {last} in term {vote_term}, but this node acknowledged entry {} and term {}",
                said.last, said.vote_term
            ),
        }))
    }

    pub fn extent(&self) -> LogExtent {
        self.extent.clone()
    }

    fn last(&self) -> io::Result<Option<LogId>> {
        match self.log.last()? {
            Some((_, value)) => {
                let entry = entry_from_pb(decode::<pb::Entry>("log entry", &value)?)?;
                Ok(Some(entry.log_id()))
            }
            None => self.log_id(PURGED),
        }
    }

    fn vote(&self) -> io::Result<Option<Vote>> {
        match self.meta.get(VOTE)? {
            Some(bytes) => Ok(Some(vote_from_pb(&decode::<pb::Vote>("vote", &bytes)?))),
            None => Ok(None),
        }
    }

    fn page(&self, from: u64, limit: usize) -> io::Result<Vec<super::kv::Pair>> {
        self.log.page(
            Bound::Included(&from.to_be_bytes()),
            Bound::Unbounded,
            limit,
        )
    }

    /// Entries of `start..end`, as many as fit `max_bytes`, at least one.
    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = start;
        while next < end {
            let page = self.page(next, PAGE)?;
            if page.is_empty() {
                break;
            }
            for (key, value) in page {
                let index = index_of(&key)?;
                let is_full = !entries.is_empty() && bytes + value.len() > max_bytes;
                if index >= end || is_full {
                    return Ok(entries);
                }
                bytes += value.len();
                entries.push(entry_from_pb(decode::<pb::Entry>("log entry", &value)?)?);
                next = index + 1;
            }
        }
        Ok(entries)
    }

    fn put_meta(&self, key: &[u8], value: &impl Message) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.put(key, value.encode_to_vec());
        self.meta.apply(batch)
    }

    fn log_id(&self, key: &[u8]) -> io::Result<Option<LogId>> {
        match self.meta.get(key)? {
            Some(bytes) => Ok(Some(log_id_from_pb(&decode::<pb::LogId>(
                "log id", &bytes,
            )?))),
            None => Ok(None),
        }
    }

    /// Deletes the entries of `from..=to`: from the end backwards, or from the start forwards, so
    /// that a crash between two batches leaves no hole.
    fn delete(&self, from: u64, to: u64, backwards: bool) -> io::Result<()> {
        const STEP: u64 = 256;
        let (mut from, mut to) = (from, to);
        while from <= to {
            let (a, b) = if backwards {
                (from.max(to.saturating_sub(STEP - 1)), to)
            } else {
                (from, to.min(from + STEP - 1))
            };
            let (low, high) = (a.to_be_bytes(), b.to_be_bytes());
            let pairs = self
                .log
                .page(Bound::Included(&low), Bound::Included(&high), usize::MAX)?;
            let mut batch = Batch::default();
            let mut bytes = 0;
            for (key, value) in pairs {
                bytes += value.len() as u64;
                batch.delete(key);
            }
            self.log.apply(batch)?;
            self.extent.bytes.fetch_sub(bytes, Ordering::Relaxed);
            if backwards {
                if a == from {
                    break;
                }
                to = a - 1;
            } else {
                from = b + 1;
            }
        }
        Ok(())
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(at) => *at,
        Bound::Excluded(at) => at + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(at) => at.saturating_add(1),
        Bound::Excluded(at) => *at,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES)
    }

    /// What is to be applied after a restart can be a quarter of a gigabyte: read page by page.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let store = self.clone();
        let pages = stream::unfold(Some(start), move |next| {
            let page = next
                .filter(|next| *next < end)
                .map(|next| store.read(next, end, READ_BYTES));
            async move {
                match page? {
                    Ok(entries) => {
                        let next = entries.last()?.index() + 1;
                        Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), Some(next)))
                    }
                    Err(error) => Some((vec![Err(error)], None)),
                }
            }
        });
        Box::pin(futures_util::StreamExt::flat_map(pages, stream::iter))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.vote()
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        Ok(LogState {
            last_purged_log_id: self.log_id(PURGED)?,
            last_log_id: self.last()?,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let epoch = self.acknowledged.epoch();
        self.put_meta(VOTE, &vote_to_pb(vote))?;
        self.kv.sync().await?;
        self.acknowledged.raise(epoch, 0, vote.leader_id.term);
        Ok(())
    }

    /// Not synced: it only saves applying again what a restart would find out by itself.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        match committed {
            Some(id) => self.put_meta(COMMITTED, &log_id_to_pb(&id)),
            None => {
                let mut batch = Batch::default();
                batch.delete(COMMITTED);
                self.meta.apply(batch)
            }
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.log_id(COMMITTED)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = Batch::default();
        let (mut bytes, mut last) = (0, self.extent.last());
        for entry in entries {
            let value = entry_to_pb(&entry).encode_to_vec();
            bytes += value.len() as u64;
            last = entry.index();
            batch.put(last.to_be_bytes(), value);
        }
        // In order is enough: what a crash cuts off was not acknowledged.
        self.log.apply_in_order(batch)?;
        self.extent.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.extent.last.store(last, Ordering::Release);
        let record = self.acknowledged.clone();
        let epoch = record.epoch();
        self.kv.sync_then(Box::new(move |result| {
            if result.is_ok() {
                record.raise(epoch, last, 0);
            }
            callback.io_completed(result);
        }));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let end = last.map_or(0, |id| id.index);
        self.acknowledged.lower(end);
        self.extent.last.store(end, Ordering::Release);
        let from = last.map_or(0, |id| id.index + 1);
        match self.log.last()? {
            Some((key, _)) => self.delete(from, index_of(&key)?, true),
            None => Ok(()),
        }
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.put_meta(PURGED, &log_id_to_pb(&upto))?;
        self.extent.last.fetch_max(upto.index, Ordering::AcqRel);
        match self.page(0, 1)?.first() {
            Some((key, _)) => self.delete(index_of(key)?, upto.index(), false),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_with_a_key_beyond_the_last_that_there_can_be_is_an_error() {
        let kv = Kv::memory();
        let mut batch = Batch::default();
        batch.put(u64::MAX.to_be_bytes(), Vec::new());
        kv.tree("raft_log").unwrap().apply(batch).unwrap();
        assert!(matches!(LogStore::open(&kv), Err(StartError::Io(_))));
    }
}
