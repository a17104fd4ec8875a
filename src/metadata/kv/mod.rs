//! The one place that stores metadata: get, page, batch, sync. Two engines with one meaning: sled
//! on disk, and memory for the simulation, which can also lose what was not synced.
//!
//! What must stay true: a batch is atomic within its tree; what was written before a sync is on
//! disk when the sync calls back; writes reach the disk in the order in which they were made, over
//! all trees. Only what a deferred tree keeps back comes later (`deferred.rs`).

mod deferred;
mod memory;
mod sled;

use bytes::Bytes;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::oneshot;

pub use super::group_commit::Synced;

/// A key and its value.
pub type Pair = (Bytes, Bytes);

#[derive(Clone)]
pub enum Kv {
    Sled(sled::Store),
    Memory(memory::Store),
}

#[derive(Clone)]
pub enum Tree {
    Sled(sled::Tree),
    Memory(memory::Tree),
    Deferred(Arc<deferred::Tree>),
}

/// Writes that happen at once, in one tree. Of two writes of a key the later counts.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub writes: Vec<(Vec<u8>, Write)>,
}

/// What a key has from now on; no value: the key goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub value: Option<Bytes>,
    /// How long the value is that it takes the place of, 0 for none; None when that is not known, and
    /// the store has to look.
    pub replaces: Option<usize>,
}

/// The writes of several batches, as one: of each key the last value, and what the first replaces.
#[derive(Default, Clone)]
pub struct Merged(BTreeMap<Vec<u8>, Write>);

impl Merged {
    pub fn add(&mut self, key: Vec<u8>, write: Write) {
        match self.0.entry(key) {
            Entry::Vacant(place) => drop(place.insert(write)),
            Entry::Occupied(mut place) => place.get_mut().value = write.value,
        }
    }

    pub fn get(&self, key: &[u8]) -> Option<&Write> {
        self.0.get(key)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, &Write)> {
        self.0.iter()
    }

    pub fn range(
        &self,
        range: (Bound<&[u8]>, Bound<&[u8]>),
    ) -> impl Iterator<Item = (&Vec<u8>, &Write)> {
        self.0.range::<[u8], _>(range)
    }
}

impl From<Batch> for Merged {
    fn from(batch: Batch) -> Merged {
        let mut merged = Merged::default();
        batch
            .writes
            .into_iter()
            .for_each(|(key, write)| merged.add(key, write));
        merged
    }
}

impl Batch {
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) {
        self.write(key.into(), Some(value.into()), None);
    }

    pub fn delete(&mut self, key: impl Into<Vec<u8>>) {
        self.write(key.into(), None, None);
    }

    pub fn write(&mut self, key: Vec<u8>, value: Option<Bytes>, replaces: Option<usize>) {
        self.writes.push((key, Write { value, replaces }));
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the metadata store at {path} is damaged ({what}); the cluster has all of it: move the \
         directory aside, remove this node's id from the cluster, and rejoin under a new id"
    )]
    Damaged { path: PathBuf, what: String },
    #[error("the metadata store at {path} is in use by another process; stop that one first")]
    Busy { path: PathBuf },
    #[error("open the metadata store at {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Kv {
    /// `cache_mib`: what sled may keep in memory; below the working set it uses more, not less.
    pub fn open_sled(dir: &Path, cache_mib: u64) -> Result<Kv, OpenError> {
        sled::Store::open(dir, cache_mib).map(Kv::Sled)
    }

    pub fn memory() -> Kv {
        Kv::Memory(memory::Store::default())
    }

    /// None in memory.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Kv::Sled(store) => Some(store.directory()),
            Kv::Memory(_) => None,
        }
    }

    /// Opens a tree, and makes it when it is not there.
    pub fn tree(&self, name: &str) -> io::Result<Tree> {
        match self {
            Kv::Sled(store) => store.tree(name).map(Tree::Sled),
            Kv::Memory(store) => Ok(Tree::Memory(store.tree(name))),
        }
    }

    pub fn tree_names(&self) -> Vec<String> {
        match self {
            Kv::Sled(store) => store.tree_names(),
            Kv::Memory(store) => store.tree_names(),
        }
    }

    pub fn drop_tree(&self, name: &str) -> io::Result<()> {
        match self {
            Kv::Sled(store) => store.drop_tree(name),
            Kv::Memory(store) => {
                store.drop_tree(name);
                Ok(())
            }
        }
    }

    /// Calls back once everything written before is on disk. Concurrent calls share one sync. A
    /// sync that fails ends the process (durability.rs).
    pub fn sync_then(&self, done: Synced) {
        match self {
            Kv::Sled(store) => store.sync_then(done),
            Kv::Memory(store) => {
                store.sync();
                done(Ok(()));
            }
        }
    }

    pub async fn sync(&self) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.sync_then(Box::new(move |result| {
            let _ = sender.send(result);
        }));
        receiver
            .await
            .map_err(|_| io::Error::other("the metadata store is closed"))?
    }

    /// Memory only: the store as a power cut would leave it, with only what was synced.
    pub fn after_power_cut(&self) -> Option<Kv> {
        match self {
            Kv::Sled(_) => None,
            Kv::Memory(store) => Some(Kv::Memory(store.after_power_cut())),
        }
    }
}

impl Tree {
    /// The same tree, whose writes reach the store later, and of which keys that begin with a byte
    /// of `in_memory` are held in memory. Others must not write to it as it was.
    pub fn deferred(self, in_memory: &'static [u8]) -> io::Result<Tree> {
        let tree = deferred::Tree::over(self, in_memory)?;
        Ok(Tree::Deferred(Arc::new(tree)))
    }

    /// Gives the store what a deferred tree keeps back. Not synced.
    pub fn settle(&self) -> io::Result<()> {
        match self {
            Tree::Sled(_) | Tree::Memory(_) => Ok(()),
            Tree::Deferred(tree) => tree.settle(),
        }
    }

    pub fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        match self {
            Tree::Sled(tree) => tree.get(key),
            Tree::Memory(tree) => Ok(tree.get(key)),
            Tree::Deferred(tree) => tree.get(key),
        }
    }

    /// In key order, at most `limit`.
    pub fn page(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        limit: usize,
    ) -> io::Result<Vec<Pair>> {
        match self {
            Tree::Sled(tree) => tree.page(from, to, limit),
            Tree::Memory(tree) => Ok(tree.page(from, to, limit)),
            Tree::Deferred(tree) => tree.page(from, to, limit),
        }
    }

    /// The pairs whose keys begin with `prefix`, strictly after `after` when given.
    pub fn prefix_page(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> io::Result<Vec<Pair>> {
        let end = prefix_end(prefix);
        let from = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let to = match &end {
            Some(end) => Bound::Excluded(end.as_slice()),
            None => Bound::Unbounded,
        };
        self.page(from, to, limit)
    }

    /// The last key of the tree and its value.
    pub fn last(&self) -> io::Result<Option<Pair>> {
        match self {
            Tree::Sled(tree) => tree.last(),
            Tree::Memory(tree) => Ok(tree.last()),
            Tree::Deferred(tree) => tree.last(),
        }
    }

    /// Each write by itself, in this order: a crash may leave the first ones only. Cheaper than
    /// `apply`.
    pub fn apply_in_order(&self, batch: Batch) -> io::Result<()> {
        match self {
            Tree::Sled(tree) => tree.apply_in_order(&batch),
            Tree::Memory(tree) => {
                for (key, write) in batch.writes {
                    let mut alone = Merged::default();
                    alone.add(key, write);
                    tree.apply(&alone);
                }
                Ok(())
            }
            Tree::Deferred(_) => self.apply(batch),
        }
    }

    pub fn apply(&self, batch: Batch) -> io::Result<()> {
        match self {
            Tree::Sled(tree) => tree.apply(&batch.into()),
            Tree::Memory(tree) => {
                tree.apply(&batch.into());
                Ok(())
            }
            Tree::Deferred(tree) => tree.apply(batch),
        }
    }

    /// As `apply`, after a crash that `complete` follows; but readers are let in meanwhile, and see a
    /// part of it.
    fn apply_in_parts(&self, writes: &Merged) -> io::Result<()> {
        match self {
            Tree::Sled(tree) => tree.apply_in_parts(writes),
            Tree::Memory(tree) => {
                tree.apply(writes);
                Ok(())
            }
            Tree::Deferred(_) => Err(io::Error::other("a deferred tree over another one")),
        }
    }

    /// Ends what a crash may have cut short.
    fn complete(&self) -> io::Result<()> {
        match self {
            Tree::Sled(tree) => tree.complete(),
            Tree::Memory(_) | Tree::Deferred(_) => Ok(()),
        }
    }
}

/// Nothing lies in such a range, and some maps panic at it.
fn is_backwards(from: &Bound<&[u8]>, to: &Bound<&[u8]>) -> bool {
    match (from, to) {
        (Bound::Included(a), Bound::Included(b)) => a > b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => {
            a >= b
        }
        _ => false,
    }
}

/// The first key after all that begin with `prefix`; None when there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < 0xff {
            *last += 1;
            return Some(end);
        }
        end.pop();
    }
    None
}

#[cfg(test)]
mod tests;
