//! The engine of the simulation: ordered maps in memory, no threads, and a power cut on demand.

use super::{Merged, Pair, is_backwards};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

type Map = BTreeMap<Vec<u8>, Bytes>;

#[derive(Default)]
struct Inner {
    trees: BTreeMap<String, Map>,
    /// What a power cut would leave.
    durable: BTreeMap<String, Map>,
    /// Since the last sync, in the order in which it was written.
    unsynced: Vec<Change>,
}

enum Change {
    Write(String, Merged),
    Drop(String),
}

#[derive(Clone, Default)]
pub struct Store {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Clone)]
pub struct Tree {
    store: Store,
    name: String,
}

fn write(trees: &mut BTreeMap<String, Map>, name: &str, writes: &Merged) {
    let map = trees.entry(name.to_owned()).or_default();
    for (key, write) in writes.iter() {
        match &write.value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

impl Store {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while held")
    }

    pub fn tree(&self, name: &str) -> Tree {
        self.inner().trees.entry(name.to_owned()).or_default();
        Tree {
            store: self.clone(),
            name: name.to_owned(),
        }
    }

    pub fn tree_names(&self) -> Vec<String> {
        self.inner().trees.keys().cloned().collect()
    }

    pub fn drop_tree(&self, name: &str) {
        let mut inner = self.inner();
        inner.trees.remove(name);
        inner.unsynced.push(Change::Drop(name.to_owned()));
    }

    pub fn sync(&self) {
        let mut inner = self.inner();
        for change in std::mem::take(&mut inner.unsynced) {
            match change {
                Change::Write(name, writes) => write(&mut inner.durable, &name, &writes),
                Change::Drop(name) => {
                    inner.durable.remove(&name);
                }
            }
        }
    }

    pub fn after_power_cut(&self) -> Store {
        let durable = self.inner().durable.clone();
        let inner = Inner {
            trees: durable.clone(),
            durable,
            unsynced: Vec::new(),
        };
        Store {
            inner: Arc::new(Mutex::new(inner)),
        }
    }
}

impl Tree {
    fn read<T>(&self, f: impl FnOnce(&Map) -> T) -> T {
        let inner = self.store.inner();
        match inner.trees.get(&self.name) {
            Some(map) => f(map),
            None => f(&Map::new()),
        }
    }

    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.read(|map| map.get(key).cloned())
    }

    pub fn page(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> Vec<Pair> {
        if is_backwards(&from, &to) {
            return Vec::new();
        }
        let pair = |(key, value): (&Vec<u8>, &Bytes)| (Bytes::copy_from_slice(key), value.clone());
        self.read(|map| {
            map.range::<[u8], _>((from, to))
                .take(limit)
                .map(pair)
                .collect()
        })
    }

    pub fn last(&self) -> Option<Pair> {
        self.read(|map| {
            map.last_key_value()
                .map(|(k, v)| (Bytes::copy_from_slice(k), v.clone()))
        })
    }

    pub fn apply(&self, writes: &Merged) {
        let mut inner = self.store.inner();
        write(&mut inner.trees, &self.name, writes);
        let change = Change::Write(self.name.clone(), writes.clone());
        inner.unsynced.push(change);
    }
}
