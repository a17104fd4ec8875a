//! A tree whose writes reach the store later, many at once, by a thread of its own: a key that each
//! batch writes anew goes to the store once for all of them, and whoever writes does not wait. What
//! is small and read all the time is held in memory besides.
//!
//! What must stay true: a reader sees every batch at once, whole; the store holds what the tree was
//! after some batch, so that a crash takes back the last batches, and whole ones only; what is held
//! in memory is what the tree has there; what the store does not have yet is bounded.

use super::{Batch, Merged, Pair, Write};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

/// The store is given so much at once, keys and values added up write by write. More takes fewer
/// writes from the store.
const GROUP_BYTES: usize = 256 << 10;
/// Kept back at most, while the store takes what was before.
const MOST_BYTES: usize = 4 * GROUP_BYTES;

#[derive(Default)]
struct Recent {
    writes: Merged,
    bytes: usize,
    /// Older, and being given to the store.
    given: Option<Arc<Merged>>,
    /// All of the tree that begins with a byte of `in_memory`.
    held: BTreeMap<Vec<u8>, Bytes>,
}

pub struct Tree {
    below: super::Tree,
    /// First bytes of keys.
    in_memory: &'static [u8],
    recent: Arc<RwLock<Recent>>,
    /// Held while batches are added or handed over.
    giver: Mutex<Giver>,
}

/// Who gives the store what it does not have yet.
enum Giver {
    /// Whoever writes: in memory there is nothing to wait for.
    Writer,
    Thread {
        groups: SyncSender<Arc<Merged>>,
        given: Receiver<io::Result<()>>,
        is_giving: bool,
    },
}

impl Giver {
    /// The thread ends with the tree. What it has not given by then is applied again from the log.
    fn start(below: &super::Tree, recent: &Arc<RwLock<Recent>>) -> io::Result<Giver> {
        if let super::Tree::Memory(_) = below {
            return Ok(Giver::Writer);
        }
        // One group is on its way at most, and so neither is ever full.
        let (groups, orders) = mpsc::sync_channel::<Arc<Merged>>(1);
        let (done, given) = mpsc::sync_channel(1);
        let (below, recent) = (below.clone(), recent.clone());
        let thread = std::thread::Builder::new().name("metadata store".to_owned());
        thread.spawn(move || {
            while let Ok(group) = orders.recv() {
                let result = give(&below, &recent, &group);
                let is_over = result.is_err();
                if done.send(result).is_err() || is_over {
                    return;
                }
            }
        })?;
        Ok(Giver::Thread {
            groups,
            given,
            is_giving: false,
        })
    }

    /// Has the store what it was given before? `wait`: until it has.
    fn is_done(&mut self, wait: bool) -> io::Result<bool> {
        let Giver::Thread {
            given, is_giving, ..
        } = self
        else {
            return Ok(true);
        };
        if *is_giving {
            let result = match wait {
                true => given.recv().map_err(io::Error::other)?,
                false => match given.try_recv() {
                    Ok(result) => result,
                    Err(mpsc::TryRecvError::Empty) => return Ok(false),
                    Err(error) => return Err(io::Error::other(error)),
                },
            };
            // After a failure the thread has ended, and every later write fails, too.
            result?;
            *is_giving = false;
        }
        Ok(true)
    }
}

/// Readers go on meanwhile: what is given is what they see in front of it.
fn give(below: &super::Tree, recent: &RwLock<Recent>, group: &Merged) -> io::Result<()> {
    below.apply_in_parts(group)?;
    recent.write().expect("no panic while held").given = None;
    Ok(())
}

impl Tree {
    pub fn over(below: super::Tree, in_memory: &'static [u8]) -> io::Result<Tree> {
        below.complete()?;
        let mut held = BTreeMap::new();
        for kind in in_memory {
            let all = below.prefix_page(&[*kind], None, usize::MAX)?;
            held.extend(all.into_iter().map(|(key, value)| (key.to_vec(), value)));
        }
        let recent = Arc::new(RwLock::new(Recent {
            held,
            ..Recent::default()
        }));
        let giver = Giver::start(&below, &recent)?;
        Ok(Tree {
            below,
            in_memory,
            recent,
            giver: Mutex::new(giver),
        })
    }

    fn is_held(&self, key: &[u8]) -> bool {
        key.first()
            .is_some_and(|kind| self.in_memory.contains(kind))
    }

    /// Does the range hold keys of one kind only, and of one that is held in memory?
    fn is_range_held(&self, from: &Bound<&[u8]>, to: &Bound<&[u8]>) -> bool {
        let (Bound::Included(from) | Bound::Excluded(from)) = from else {
            return false;
        };
        let ends_within = match (from.first(), to) {
            (Some(kind), Bound::Included(to)) => to.first() == Some(kind),
            (Some(kind), Bound::Excluded(to)) => {
                to.first() == Some(kind) || kind.checked_add(1).is_some_and(|next| *to == [next])
            }
            _ => false,
        };
        ends_within && self.is_held(from)
    }

    fn recent(&self) -> RwLockReadGuard<'_, Recent> {
        self.recent.read().expect("no panic while held")
    }

    fn giver(&self) -> MutexGuard<'_, Giver> {
        self.giver.lock().expect("no panic while held")
    }

    pub fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        let recent = self.recent();
        if self.is_held(key) {
            return Ok(recent.held.get(key).cloned());
        }
        let given = || recent.given.as_ref()?.get(key);
        match recent.writes.get(key).or_else(given) {
            Some(write) => Ok(write.value.clone()),
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
        if self.is_range_held(&from, &to) {
            if !super::is_backwards(&from, &to) {
                let pairs = recent.held.range::<[u8], _>((from, to)).take(limit);
                found
                    .extend(pairs.map(|(key, value)| (Bytes::copy_from_slice(key), value.clone())));
            }
            return Ok(found);
        }
        let mut from = from.map(<[u8]>::to_vec);
        loop {
            let start = from.as_ref().map(Vec::as_slice);
            let page = self.below.page(start, to, limit)?;
            // What is recent behind the end of a full page belongs to the next one.
            let end = page.last().filter(|_| page.len() == limit);
            let end = end.map(|(key, _)| key.to_vec());
            let upto = end.as_deref().map_or(to, Bound::Included);
            let range = (start, upto);
            if super::is_backwards(&range.0, &range.1) {
                found.extend(page);
            } else {
                merge(page, recent.range(range), &mut found);
            }
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
        let mut giver = self.giver();
        let bytes = {
            let mut recent = self.recent.write().expect("no panic while held");
            for (key, write) in batch.writes {
                recent.bytes += key.len() + write.value.as_ref().map_or(0, Bytes::len);
                if self.is_held(&key) {
                    match &write.value {
                        Some(value) => recent.held.insert(key.clone(), value.clone()),
                        None => recent.held.remove(&key),
                    };
                }
                recent.writes.add(key, write);
            }
            recent.bytes
        };
        if bytes >= GROUP_BYTES && giver.is_done(bytes >= MOST_BYTES)? {
            self.hand_over(&mut giver)?;
        }
        Ok(())
    }

    /// Gives the store what it does not have yet. Not synced.
    pub fn settle(&self) -> io::Result<()> {
        let mut giver = self.giver();
        giver.is_done(true)?;
        self.hand_over(&mut giver)?;
        giver.is_done(true).map(drop)
    }

    /// The store has what it was given before.
    fn hand_over(&self, giver: &mut Giver) -> io::Result<()> {
        let group = {
            let mut recent = self.recent.write().expect("no panic while held");
            if recent.writes.is_empty() {
                return Ok(());
            }
            recent.bytes = 0;
            let group = Arc::new(std::mem::take(&mut recent.writes));
            recent.given = Some(group.clone());
            group
        };
        match giver {
            Giver::Writer => give(&self.below, &self.recent, &group),
            Giver::Thread {
                groups, is_giving, ..
            } => {
                *is_giving = true;
                groups.send(group).map_err(io::Error::other)
            }
        }
    }
}

impl Recent {
    /// In key order, the later of two writes of a key.
    fn range<'a>(
        &'a self,
        range: (Bound<&[u8]>, Bound<&[u8]>),
    ) -> impl Iterator<Item = (&'a Vec<u8>, &'a Write)> {
        let given = self.given.iter().flat_map(|given| given.range(range));
        let mut writes: BTreeMap<_, _> = given.collect();
        writes.extend(self.writes.range(range));
        writes.into_iter()
    }
}

/// Adds `page`, with the writes of the same range laid over it, in order.
fn merge<'a>(
    page: Vec<Pair>,
    writes: impl Iterator<Item = (&'a Vec<u8>, &'a Write)>,
    found: &mut Vec<Pair>,
) {
    let mut page = page.into_iter().peekable();
    for (key, Write { value, .. }) in writes {
        while let Some(pair) = page.next_if(|(below, _)| below.as_ref() < key.as_slice()) {
            found.push(pair);
        }
        page.next_if(|(below, _)| below.as_ref() == key.as_slice());
        if let Some(value) = value {
            found.push((Bytes::copy_from_slice(key), value.clone()));
        }
    }
    found.extend(page);
}
