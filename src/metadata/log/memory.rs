//! The log in the engine of the simulation, as a tree of the `Kv` in memory, which can lose what was
//! not synced.

use super::super::kv::Batch;
use super::super::kv::Kv;
use super::super::kv::Synced;
use super::super::kv::Tree;
use bytes::Bytes;
use std::io;
use std::ops::Bound;

const TREE: &str = "raft_log";

pub struct InTree {
    kv: Kv,
    tree: Tree,
}

impl InTree {
    pub fn open(kv: &Kv) -> io::Result<InTree> {
        Ok(InTree {
            kv: kv.clone(),
            tree: kv.tree(TREE)?,
        })
    }

    pub fn last(&self) -> io::Result<Option<Bytes>> {
        Ok(self.tree.last()?.map(|(_, entry)| entry))
    }

    pub fn bytes(&self) -> io::Result<u64> {
        let all = self.read(0, u64::MAX, usize::MAX)?;
        Ok(all.iter().map(|entry| entry.len() as u64).sum())
    }

    pub fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Bytes>> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let (start, end) = (start.to_be_bytes(), end.to_be_bytes());
        let range = (Bound::Included(&start[..]), Bound::Excluded(&end[..]));
        for (_, entry) in self.tree.page(range.0, range.1, usize::MAX)? {
            bytes += entry.len();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    pub fn append(&self, first: u64, entries: &[Vec<u8>]) -> io::Result<u64> {
        let mut batch = Batch::default();
        for (index, entry) in (first..).zip(entries) {
            batch.put(index.to_be_bytes(), entry.clone());
        }
        // In order is enough: what a crash cuts off was not acknowledged.
        self.tree.apply_in_order(batch)?;
        Ok(entries.iter().map(|entry| entry.len() as u64).sum())
    }

    pub fn sync_then(&self, done: Synced) {
        self.kv.sync_then(done);
    }

    pub fn truncate(&self, from: u64) -> io::Result<()> {
        self.delete((Bound::Included(from), Bound::Unbounded))
    }

    pub fn purge(&self, from: u64) -> io::Result<()> {
        self.delete((Bound::Unbounded, Bound::Excluded(from)))
    }

    fn delete(&self, (from, to): (Bound<u64>, Bound<u64>)) -> io::Result<()> {
        let (from, to) = (from.map(u64::to_be_bytes), to.map(u64::to_be_bytes));
        let range = (
            from.as_ref().map(<[u8; 8]>::as_slice),
            to.as_ref().map(<[u8; 8]>::as_slice),
        );
        let mut batch = Batch::default();
        for (key, _) in self.tree.page(range.0, range.1, usize::MAX)? {
            batch.delete(key);
        }
        self.tree.apply(batch)
    }
}
