//! openraft's log and vote: entries in the `Log`, the rest in the `Kv`. An append or a vote counts
//! only once it is synced; a store that holds less than was acknowledged is not opened (A18).
//!
//! What must stay true: log and store are two things on disk, and a crash may leave either behind
//! the other. The state may have entries that the log lost: they are committed, and openraft goes on
//! after them. It never lacks one that was purged: the store is synced before a purge deletes.

use super::StartError;
use super::acknowledged::Record;
use super::kv::{Batch, Kv, OpenError, Tree};
use super::log::Log;
use super::raft_types::{
    Entry, LogId, TypeConfig, Vote, decode, entry_from_pb, entry_to_pb, log_id_from_pb,
    log_id_to_pb, vote_from_pb, vote_to_pb,
};
use crate::proto::state::v1 as pb;
use bytes::Bytes;
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
    log: Arc<Log>,
    meta: Tree,
    extent: LogExtent,
    acknowledged: Arc<Record>,
}

/// Index of the first entry after that one.
fn after(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

fn entry_of(bytes: &Bytes) -> io::Result<Entry> {
    entry_from_pb(decode::<pb::Entry>("log entry", bytes)?)
}

impl LogStore {
    /// Refuses a store that holds less than what this node acknowledged.
    pub fn open(kv: &Kv) -> Result<LogStore, StartError> {
        let meta = kv.tree("raft_meta")?;
        let purged = log_id(&meta, PURGED)?;
        let store = LogStore {
            kv: kv.clone(),
            log: Arc::new(Log::open(kv, after(purged))?),
            meta,
            extent: LogExtent::default(),
            acknowledged: Arc::new(Record::open(kv.directory())?),
        };
        store.count_bytes()?;
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
            Some(entry) => Ok(Some(entry_of(&entry)?.log_id())),
            None => log_id(&self.meta, PURGED),
        }
    }

    fn count_bytes(&self) -> io::Result<()> {
        let bytes = self.log.bytes()?;
        self.extent.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn vote(&self) -> io::Result<Option<Vote>> {
        match self.meta.get(VOTE)? {
            Some(bytes) => Ok(Some(vote_from_pb(&decode::<pb::Vote>("vote", &bytes)?))),
            None => Ok(None),
        }
    }

    /// Entries of `start..end`, as many as fit `max_bytes`, at least one.
    fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let found = self.log.read(start, end, max_bytes)?;
        found.iter().map(entry_of).collect()
    }

    fn put_meta(&self, key: &[u8], value: &impl Message) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.put(key, value.encode_to_vec());
        self.meta.apply(batch)
    }
}

fn log_id(meta: &Tree, key: &[u8]) -> io::Result<Option<LogId>> {
    match meta.get(key)? {
        Some(bytes) => Ok(Some(log_id_from_pb(&decode::<pb::LogId>(
            "log id", &bytes,
        )?))),
        None => Ok(None),
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
            last_purged_log_id: log_id(&self.meta, PURGED)?,
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

    /// The record may be on disk before the entries are: then all that are there are committed.
    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let (committed, last) = (log_id(&self.meta, COMMITTED)?, self.last()?);
        Ok(committed.min(last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (mut first, mut encoded) = (None, Vec::new());
        for entry in entries {
            first.get_or_insert(entry.index());
            encoded.push(entry_to_pb(&entry).encode_to_vec());
        }
        if let Some(first) = first {
            let bytes = self.log.append(first, &encoded)?;
            let last = first + encoded.len() as u64 - 1;
            self.extent.last.store(last, Ordering::Release);
            self.extent.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        let last = self.extent.last();
        let record = self.acknowledged.clone();
        let epoch = record.epoch();
        self.log.sync_then(Box::new(move |result| {
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
        self.log.truncate(after(last))?;
        self.count_bytes()
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.put_meta(PURGED, &log_id_to_pb(&upto))?;
        self.kv.sync().await?;
        self.extent.last.fetch_max(upto.index, Ordering::AcqRel);
        self.log.purge(after(Some(upto)))?;
        self.count_bytes()
    }
}
