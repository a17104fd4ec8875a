//! The engine on disk. sled 0.34 needs care, all of it here:
//!
//! - its `flush` does not fsync, so a sync is flush and then `fdatasync` of its file, done by one
//!   thread that takes all waiting callers at once (group commit);
//! - a value over 4 KiB may go to a file that sled never syncs, so longer ones are split: the head
//!   under `0 key`, the pieces under `1 key n`. A key's pieces cannot meet another key's, since
//!   both end in four bytes of number;
//! - opening a damaged store may panic, so it is opened behind `catch_unwind`;
//! - a batch makes sled close its write buffer twice, each with a small write of its own to disk
//!   which the next sync has to wait for: what needs no batch gets none.

use super::super::group_commit::GroupCommit;
use super::{Batch, OpenError, Pair, Synced, is_backwards};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

const PIECE: usize = 4000;
const HEAD_KEY: u8 = 0;
const PIECE_KEY: u8 = 1;
/// First byte of a head: the value follows, or its length does and it lies in pieces.
const WHOLE: u8 = 0;
const SPLIT: u8 = 1;

#[derive(Clone)]
pub struct Store {
    db: sled::Db,
    dir: PathBuf,
    syncs: GroupCommit,
}

#[derive(Clone)]
pub struct Tree {
    tree: sled::Tree,
}

fn other(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

fn corrupt(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("metadata store: {what}"),
    )
}

impl Store {
    pub fn open(dir: &Path, cache_mib: u64) -> Result<Store, OpenError> {
        let io_error = |source| OpenError::Io {
            path: dir.to_owned(),
            source,
        };
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(cache_mib << 20)
            .flush_every_ms(Some(1000));
        let quiet = panic::take_hook();
        panic::set_hook(Box::new(|_| {}));
        let opened = panic::catch_unwind(AssertUnwindSafe(|| config.open()));
        panic::set_hook(quiet);
        let damaged = |what: String| OpenError::Damaged {
            path: dir.to_owned(),
            what,
        };
        let db = match opened {
            Ok(Ok(db)) => db,
            Ok(Err(sled::Error::Io(error))) if error.to_string().contains("lock") => {
                return Err(OpenError::Busy {
                    path: dir.to_owned(),
                });
            }
            Ok(Err(sled::Error::Io(error))) => return Err(io_error(error)),
            Ok(Err(error)) => return Err(damaged(error.to_string())),
            Err(_) => return Err(damaged("opening it panics".to_owned())),
        };
        let file = File::open(dir.join("db")).map_err(io_error)?;
        file.sync_all().map_err(io_error)?;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io_error)?;
        let flushed = db.clone();
        let sync = move || {
            flushed.flush().map_err(other)?;
            file.sync_data()
        };
        let syncs = GroupCommit::start("metadata store", sync).map_err(io_error)?;
        Ok(Store {
            db,
            dir: dir.to_owned(),
            syncs,
        })
    }

    pub fn directory(&self) -> &Path {
        &self.dir
    }

    pub fn tree(&self, name: &str) -> io::Result<Tree> {
        Ok(Tree {
            tree: self.db.open_tree(name).map_err(other)?,
        })
    }

    pub fn tree_names(&self) -> Vec<String> {
        let names = self.db.tree_names();
        names
            .iter()
            .filter_map(|name| std::str::from_utf8(name).ok().map(str::to_owned))
            .collect()
    }

    pub fn drop_tree(&self, name: &str) -> io::Result<()> {
        self.db.drop_tree(name).map(|_| ()).map_err(other)
    }

    pub fn sync_then(&self, done: Synced) {
        self.syncs.then(done);
    }
}

fn head_key(key: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(key.len() + 1);
    head.push(HEAD_KEY);
    head.extend_from_slice(key);
    head
}

fn piece_key(key: &[u8], piece: u32) -> Vec<u8> {
    let mut full = Vec::with_capacity(key.len() + 5);
    full.push(PIECE_KEY);
    full.extend_from_slice(key);
    full.extend_from_slice(&piece.to_be_bytes());
    full
}

fn pieces_of(len: usize) -> u32 {
    u32::try_from(len.div_ceil(PIECE)).unwrap_or(u32::MAX)
}

fn head(value: &[u8]) -> Vec<u8> {
    if value.len() <= PIECE {
        let mut head = Vec::with_capacity(value.len() + 1);
        head.push(WHOLE);
        head.extend_from_slice(value);
        return head;
    }
    let mut head = vec![SPLIT];
    head.extend_from_slice(&(value.len() as u64).to_be_bytes());
    head
}

/// None of a value that its head holds.
fn pieces(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let split = if value.len() <= PIECE { &[] } else { value };
    split.chunks(PIECE)
}

/// The length of a split value, or None for a whole one.
fn split_len(head: &[u8]) -> io::Result<Option<usize>> {
    match head.split_first() {
        Some((&WHOLE, _)) => Ok(None),
        Some((&SPLIT, len)) => {
            let len = len
                .try_into()
                .map_err(|_| corrupt("a head of odd length"))?;
            let len = usize::try_from(u64::from_be_bytes(len));
            len.map(Some).map_err(|_| corrupt("a value too long"))
        }
        _ => Err(corrupt("a head of unknown kind")),
    }
}

impl Tree {
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        match self.tree.get(head_key(key)).map_err(other)? {
            Some(head) => self.value(key, &head).map(Some),
            None => Ok(None),
        }
    }

    fn value(&self, key: &[u8], head: &[u8]) -> io::Result<Bytes> {
        let Some(len) = split_len(head)? else {
            return Ok(Bytes::copy_from_slice(&head[1..]));
        };
        let mut value = BytesMut::with_capacity(len.min(16 << 20));
        for piece in 0..pieces_of(len) {
            let part = self.tree.get(piece_key(key, piece)).map_err(other)?;
            value.put_slice(&part.ok_or_else(|| corrupt("a piece is missing"))?);
        }
        if value.len() != len {
            return Err(corrupt("pieces of another length"));
        }
        Ok(value.freeze())
    }

    pub fn page(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        limit: usize,
    ) -> io::Result<Vec<Pair>> {
        // sled panics at some of these.
        if is_backwards(&from, &to) {
            return Ok(Vec::new());
        }
        let from = match from {
            Bound::Included(key) => Bound::Included(head_key(key)),
            Bound::Excluded(key) => Bound::Excluded(head_key(key)),
            Bound::Unbounded => Bound::Included(vec![HEAD_KEY]),
        };
        let to = match to {
            Bound::Included(key) => Bound::Included(head_key(key)),
            Bound::Excluded(key) => Bound::Excluded(head_key(key)),
            Bound::Unbounded => Bound::Excluded(vec![PIECE_KEY]),
        };
        let mut pairs = Vec::new();
        for pair in self.tree.range((from, to)).take(limit) {
            pairs.push(self.pair(pair.map_err(other)?)?);
        }
        Ok(pairs)
    }

    fn pair(&self, (key, head): (sled::IVec, sled::IVec)) -> io::Result<Pair> {
        let key = Bytes::copy_from_slice(&key[1..]);
        let value = self.value(&key, &head)?;
        Ok((key, value))
    }

    pub fn last(&self) -> io::Result<Option<Pair>> {
        let heads = (
            Bound::Included(vec![HEAD_KEY]),
            Bound::Excluded(vec![PIECE_KEY]),
        );
        match self.tree.range(heads).next_back() {
            Some(pair) => self.pair(pair.map_err(other)?).map(Some),
            None => Ok(None),
        }
    }

    pub fn apply(&self, batch: Batch) -> io::Result<()> {
        if batch.writes.len() == 1 {
            return self.apply_in_order(batch);
        }
        // The last write of a key counts; and in key order sled works least.
        let writes: BTreeMap<Vec<u8>, Option<Bytes>> = batch.writes.into_iter().collect();
        let mut out = sled::Batch::default();
        for (key, value) in writes {
            self.add(&mut out, &key, value)?;
        }
        self.tree.apply_batch(out).map_err(other)
    }

    fn add(&self, out: &mut sled::Batch, key: &[u8], value: Option<Bytes>) -> io::Result<()> {
        let pieces_before = self.split_len(&head_key(key))?.map_or(0, pieces_of);
        let mut pieces_now = 0;
        match value {
            None => out.remove(head_key(key)),
            Some(value) => {
                out.insert(head_key(key), head(&value));
                for (piece, part) in (0..).zip(pieces(&value)) {
                    out.insert(piece_key(key, piece), part);
                    pieces_now = piece + 1;
                }
            }
        }
        for piece in pieces_now..pieces_before {
            out.remove(piece_key(key, piece));
        }
        Ok(())
    }

    /// Of the value that is there, if it is split.
    fn split_len(&self, head_key: &[u8]) -> io::Result<Option<usize>> {
        match self.tree.get(head_key).map_err(other)? {
            Some(head) => split_len(&head),
            None => Ok(None),
        }
    }

    /// A value in pieces is there once its head is. One that takes the place of another in pieces
    /// needs a batch.
    pub fn apply_in_order(&self, batch: Batch) -> io::Result<()> {
        for (key, value) in batch.writes {
            if self.split_len(&head_key(&key))?.is_some() {
                let mut out = sled::Batch::default();
                self.add(&mut out, &key, value)?;
                self.tree.apply_batch(out).map_err(other)?;
                continue;
            }
            let Some(value) = value else {
                self.tree.remove(head_key(&key)).map_err(other)?;
                continue;
            };
            for (piece, part) in (0..).zip(pieces(&value)) {
                let key = piece_key(&key, piece);
                self.tree.insert(key, part).map_err(other)?;
            }
            let head = head(&value);
            self.tree.insert(head_key(&key), head).map_err(other)?;
        }
        Ok(())
    }
}
