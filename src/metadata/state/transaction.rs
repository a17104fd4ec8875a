//! One entry's writes, seen by its own reads, and the state hash that goes with them; and those of
//! the entries before it that go to the store together with it.

use super::super::keys;
use super::super::kv::{Batch, Pair, Tree};
use super::super::raft_types::decode;
use super::hash::StateHash;
use bytes::Bytes;
use prost::Message;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Bound;
use std::rc::Rc;

/// Ordered, so that equal entries make equal batches.
type Writes = BTreeMap<Vec<u8>, Option<Bytes>>;

/// The state as an entry finds it: a tree, and what is about to be written to it. Nobody else writes
/// to the tree meanwhile.
pub struct Pending<'a> {
    tree: &'a Tree,
    writes: Writes,
    /// What was read of the tree, since entries read the same again: their own keys to see what
    /// they replace, and blobs that they share.
    read: RefCell<HashMap<Vec<u8>, Option<Bytes>>>,
    scanned: RefCell<HashMap<Vec<u8>, Rc<[Pair]>>>,
}

impl<'a> Pending<'a> {
    pub fn new(tree: &'a Tree) -> Pending<'a> {
        Pending {
            tree,
            writes: Writes::new(),
            read: RefCell::default(),
            scanned: RefCell::default(),
        }
    }

    pub fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        match self.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.stored(key),
        }
    }

    fn stored(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        if let Some(value) = self.read.borrow().get(key) {
            return Ok(value.clone());
        }
        let value = self.tree.get(key)?;
        let mut read = self.read.borrow_mut();
        read.insert(key.to_vec(), value.clone());
        Ok(value)
    }

    /// All pairs of the tree whose keys begin with `prefix`.
    fn scan(&self, prefix: &[u8]) -> io::Result<Rc<[Pair]>> {
        if let Some(pairs) = self.scanned.borrow().get(prefix) {
            return Ok(pairs.clone());
        }
        let pairs = self.tree.prefix_page(prefix, None, usize::MAX)?;
        let pairs: Rc<[Pair]> = pairs.into();
        let mut scanned = self.scanned.borrow_mut();
        scanned.insert(prefix.to_vec(), pairs.clone());
        Ok(pairs)
    }

    /// What applying an entry to this has come to.
    pub fn add(&mut self, batch: Batch) {
        let writes = batch.writes.into_iter();
        self.writes
            .extend(writes.map(|(key, write)| (key, write.value)));
    }

    /// Everything, to be written at once.
    pub fn into_batch(self) -> Batch {
        let read = self.read.into_inner();
        let mut batch = Batch::default();
        for (key, value) in self.writes {
            let before = read.get(&key);
            let replaces = before.map(|before| before.as_ref().map_or(0, Bytes::len));
            batch.write(key, value, replaces);
        }
        batch
    }
}

pub struct Transaction<'a> {
    before: &'a Pending<'a>,
    writes: Writes,
}

/// Lays writes over what they change.
fn lay_over(found: &mut BTreeMap<Vec<u8>, Bytes>, writes: &Writes, prefix: &[u8]) {
    let from = (Bound::Included(prefix), Bound::Unbounded);
    let of_prefix = writes
        .range::<[u8], _>(from)
        .take_while(|(key, _)| key.starts_with(prefix));
    for (key, value) in of_prefix {
        match value {
            Some(value) => found.insert(key.clone(), value.clone()),
            None => found.remove(key),
        };
    }
}

impl<'a> Transaction<'a> {
    pub fn new(before: &'a Pending<'a>) -> Transaction<'a> {
        Transaction {
            before,
            writes: Writes::new(),
        }
    }

    pub fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        match self.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.before.get(key),
        }
    }

    pub fn has(&self, key: &[u8]) -> io::Result<bool> {
        Ok(self.get(key)?.is_some())
    }

    pub fn message<T: Message + Default>(&self, key: &[u8]) -> io::Result<Option<T>> {
        self.get(key)?
            .map(|bytes| decode("state record", &bytes))
            .transpose()
    }

    pub fn put(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        self.writes.insert(key, Some(value.into()));
    }

    /// As `put`, where nothing is, as the caller knows: the store is not searched for it.
    pub fn put_new(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        debug_assert!(matches!(self.get(&key), Ok(None)), "it is there");
        let mut read = self.before.read.borrow_mut();
        read.entry(key.clone()).or_insert(None);
        drop(read);
        self.put(key, value);
    }

    pub fn put_message(&mut self, key: Vec<u8>, message: &impl Message) {
        self.put(key, message.encode_to_vec());
    }

    pub fn delete(&mut self, key: Vec<u8>) {
        self.writes.insert(key, None);
    }

    /// All pairs whose keys begin with `prefix`, in order.
    pub fn scan(&self, prefix: &[u8]) -> io::Result<Vec<(Vec<u8>, Bytes)>> {
        let stored = self.before.scan(prefix)?;
        let pairs = stored.iter().cloned();
        let mut found: BTreeMap<Vec<u8>, Bytes> =
            pairs.map(|(key, value)| (key.to_vec(), value)).collect();
        lay_over(&mut found, &self.before.writes, prefix);
        lay_over(&mut found, &self.writes, prefix);
        Ok(found.into_iter().collect())
    }

    /// About `limit` pairs whose keys begin with `prefix`, after `after`, in order; none: there are
    /// no more.
    pub fn page(
        &self,
        prefix: &[u8],
        after: &[u8],
        limit: usize,
    ) -> io::Result<Vec<(Vec<u8>, Bytes)>> {
        let mut after = (after > prefix).then(|| after.to_vec());
        loop {
            let page = self
                .before
                .tree
                .prefix_page(prefix, after.as_deref(), limit)?;
            // What is written behind the end of a full page belongs to the next one.
            let end = page.last().filter(|_| page.len() == limit);
            let end = end.map(|(key, _)| key.to_vec());
            let pairs = page.into_iter().map(|(key, value)| (key.to_vec(), value));
            let mut found: BTreeMap<Vec<u8>, Bytes> = pairs.collect();
            lay_over(&mut found, &self.before.writes, prefix);
            lay_over(&mut found, &self.writes, prefix);
            found.retain(|key, _| {
                after.as_ref().is_none_or(|after| key > after)
                    && end.as_ref().is_none_or(|end| key <= end)
            });
            if !found.is_empty() || end.is_none() {
                return Ok(found.into_iter().collect());
            }
            after = end;
        }
    }

    /// Everything written, with the new hash; writes that change nothing are left out.
    pub fn finish(self) -> io::Result<Batch> {
        let mut hash = StateHash::read(self.before.get(keys::HASH)?)?;
        let mut batch = Batch::default();
        for (key, value) in self.writes {
            let before = self.before.get(&key)?;
            if before == value {
                continue;
            }
            if let Some(before) = &before {
                hash.remove(&key, before);
            }
            if let Some(value) = &value {
                hash.add(&key, value);
            }
            let replaces = Some(before.as_ref().map_or(0, Bytes::len));
            batch.write(key, value, replaces);
        }
        batch.put(keys::HASH, hash.as_bytes().to_vec());
        Ok(batch)
    }
}
