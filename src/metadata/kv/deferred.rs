//! A tree whose writes reach the store later, many at once: a key that each batch writes anew goes to
//! the store once for all of them, and the store closes its write buffers, and wakes its threads, once.
//!
//! What must stay true: a reader sees every batch at once, whole; the store holds what the tree was
//! after some batch, so that a crash takes back the last batches, and whole ones only.

use super::{Batch, Pair};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

/// What is kept back at most, keys and values added up write by write. More takes fewer writes from
/// the store, but the longer it is closed to others while it takes them.
const MOST_BYTES: usize = 256 << 10;

#[derive(Default)]
struct Recent {
    writes: BTreeMap<Vec<u8>, Option<Bytes>>,
    bytes: usize,
}

pub struct Tree {
    below: super::Tree,
    /// What the store does not have yet, or is being given.
    recent: RwLock<Recent>,
    /// Held while batches are added or given to the store.
    writer: Mutex<()>,
}

impl Tree {
    pub fn over(below: super::Tree) -> Tree {
        Tree {
            below,
            recent: RwLock::default(),
            writer: Mutex::default(),
        }
    }

    fn recent(&self) -> RwLockReadGuard<'_, Recent> {
        self.recent.read().expect("no panic while held")
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().expect("no panic while held")
    }

    pub fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        let recent = self.recent();
        match recent.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.below.get(key),
        }
    }

    pub fn page(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        limit: usize,
    ) -> io::Result<Vec<Pair>> {
        let recent = self.recent();
        let mut found = Vec::new();
        let mut from = from.map(<[u8]>::to_vec);
        loop {
            let start = from.as_ref().map(Vec::as_slice);
            let page = self.below.page(start, to, limit)?;
            // What is recent behind the end of a full page belongs to the next one.
            let end = page.last().filter(|_| page.len() == limit);
            let end = end.map(|(key, _)| key.to_vec());
            let upto = end.as_deref().map_or(to, Bound::Included);
            merge(page, &recent.writes, (start, upto), &mut found);
            match end {
                Some(end) if found.len() < limit => from = Bound::Excluded(end),
                _ => break,
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    pub fn last(&self) -> io::Result<Option<Pair>> {
        self.settle()?;
        self.below.last()
    }

    pub fn apply(&self, batch: Batch) -> io::Result<()> {
        let writer = self.writer();
        let is_full = {
            let mut recent = self.recent.write().expect("no panic while held");
            for (key, value) in batch.writes {
                recent.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
                recent.writes.insert(key, value);
            }
            recent.bytes >= MOST_BYTES
        };
        match is_full {
            true => self.give(&writer),
            false => Ok(()),
        }
    }

    /// Gives the store what it does not have yet. Not synced.
    pub fn settle(&self) -> io::Result<()> {
        self.give(&self.writer())
    }

    /// Readers go on meanwhile: what is given is what they see in front of it.
    fn give(&self, _writer: &MutexGuard<'_, ()>) -> io::Result<()> {
        let writes = self.recent().writes.clone();
        self.below.apply(Batch {
            writes: writes.into_iter().collect(),
        })?;
        *self.recent.write().expect("no panic while held") = Recent::default();
        Ok(())
    }
}

/// Adds `page`, with the writes of the same range laid over it, in order.
fn merge(
    page: Vec<Pair>,
    writes: &BTreeMap<Vec<u8>, Option<Bytes>>,
    range: (Bound<&[u8]>, Bound<&[u8]>),
    found: &mut Vec<Pair>,
) {
    let mut page = page.into_iter().peekable();
    if !super::is_backwards(&range.0, &range.1) {
        for (key, value) in writes.range::<[u8], _>(range) {
            while let Some(pair) = page.next_if(|(below, _)| below.as_ref() < key.as_slice()) {
                found.push(pair);
            }
            page.next_if(|(below, _)| below.as_ref() == key.as_slice());
            if let Some(value) = value {
                found.push((Bytes::copy_from_slice(key), value.clone()));
            }
        }
    }
    found.extend(page);
}
