//! The engine on disk. sled 0.34 needs care, all of it here:
//!
//! - its `flush` does not fsync, so a sync is flush and then `fdatasync` of its file, done by one
//!   thread that takes all waiting callers at once (group commit);
//! - a value over 4 KiB may go to a file that sled never syncs, so longer ones are split: the head
//!   under `0 key`, the pieces under `1 key n`. A key's pieces cannot meet another key's, since
//!   both end in four bytes of number;
//! - opening a damaged store may panic, so it is opened behind `catch_unwind`;
//! - a batch makes sled close its write buffer twice, each with a small write of its own to disk
//!   which the next sync has to wait for: what needs no batch gets none;
//! - a batch keeps every reader out until it is whole. A large one is noted first, under `2`, and then
//!   written key by key: what a crash cuts short is written again by the note. sled's log is recovered
//!   up to a point, so that a key is there only with the note before it, and the end of the note only
//!   with all keys.

use super::super::group_commit::GroupCommit;
use super::super::raft_types::decode;
use super::{Batch, Merged, OpenError, Pair, Synced, Write, is_backwards};
use crate::proto::state::v1 as pb;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

const PIECE: usize = 4000;
const HEAD_KEY: u8 = 0;
const PIECE_KEY: u8 = 1;
const NOTE_KEY: u8 = 2;
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

fn note_key(piece: u32) -> Vec<u8> {
    let mut key = vec![NOTE_KEY];
    key.extend_from_slice(&piece.to_be_bytes());
    key
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
        Some((&SPLIT, len)) => length(len).map(Some),
        _ => Err(corrupt("a head of unknown kind")),
    }
}

fn length(bytes: &[u8]) -> io::Result<usize> {
    let bytes = bytes.try_into();
    let bytes = bytes.map_err(|_| corrupt("a length of odd length"))?;
    usize::try_from(u64::from_be_bytes(bytes)).map_err(|_| corrupt("a value too long"))
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
        self.pieces(len, |piece| piece_key(key, piece))
    }

    fn pieces(&self, len: usize, key: impl Fn(u32) -> Vec<u8>) -> io::Result<Bytes> {
        let mut value = BytesMut::with_capacity(len.min(16 << 20));
        for piece in 0..pieces_of(len) {
            let part = self.tree.get(key(piece)).map_err(other)?;
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

    pub fn apply(&self, writes: &Merged) -> io::Result<()> {
        let mut alone = writes.iter();
        if let (Some((key, write)), None) = (alone.next(), alone.next()) {
            return self.put(key, write);
        }
        self.apply_at_once(writes)
    }

    fn apply_at_once(&self, writes: &Merged) -> io::Result<()> {
        let mut out = sled::Batch::default();
        for pb::StoredWrite { key, value } in self.stored(writes)? {
            match value {
                Some(value) => out.insert(key.as_ref(), value.as_ref()),
                None => out.remove(key.as_ref()),
            }
        }
        self.tree.apply_batch(out).map_err(other)
    }

    /// As `apply`, once `complete` has followed a crash; readers go on, and see a part of it.
    pub fn apply_in_parts(&self, writes: &Merged) -> io::Result<()> {
        let note = self.note(writes)?;
        self.write_all(note)
    }

    /// Its length is written last: a note is whole, or there is none.
    fn note(&self, writes: &Merged) -> io::Result<pb::StoredWrites> {
        let note = pb::StoredWrites {
            writes: self.stored(writes)?,
        };
        let bytes = note.encode_to_vec();
        for (piece, part) in (0..).zip(bytes.chunks(PIECE)) {
            self.tree.insert(note_key(piece), part).map_err(other)?;
        }
        let len = (bytes.len() as u64).to_be_bytes();
        self.tree.insert([NOTE_KEY], &len).map_err(other)?;
        Ok(note)
    }

    fn write_all(&self, note: pb::StoredWrites) -> io::Result<()> {
        note.writes.into_iter().try_for_each(|w| self.write(w))?;
        self.tree.remove([NOTE_KEY]).map(drop).map_err(other)
    }

    fn write(&self, pb::StoredWrite { key, value }: pb::StoredWrite) -> io::Result<()> {
        let before = match value {
            Some(value) => self.tree.insert(key, value.as_ref()),
            None => self.tree.remove(key),
        };
        before.map(drop).map_err(other)
    }

    /// Writes again what a crash may have cut short.
    pub fn complete(&self) -> io::Result<()> {
        let Some(len) = self.tree.get([NOTE_KEY]).map_err(other)? else {
            return Ok(());
        };
        let note = self.pieces(length(&len)?, note_key)?;
        self.write_all(decode("note of writes", &note)?)
    }

    /// What sled is to write, in key order, in which it works least.
    fn stored(&self, writes: &Merged) -> io::Result<Vec<pb::StoredWrite>> {
        let mut stored = Vec::new();
        for (key, write) in writes.iter() {
            let mut add = |key: Vec<u8>, value: Option<Vec<u8>>| {
                let (key, value) = (key.into(), value.map(Bytes::from));
                stored.push(pb::StoredWrite { key, value });
            };
            let value = write.value.as_deref();
            add(head_key(key), value.map(head));
            let mut now = 0;
            for part in pieces(value.unwrap_or_default()) {
                add(piece_key(key, now), Some(part.to_vec()));
                now += 1;
            }
            for piece in now..self.pieces_before(key, write)? {
                add(piece_key(key, piece), None);
            }
        }
        Ok(stored)
    }

    /// Of the value that is there.
    fn pieces_before(&self, key: &[u8], write: &Write) -> io::Result<u32> {
        let len = match write.replaces {
            Some(len) => len,
            None => match self.tree.get(head_key(key)).map_err(other)? {
                Some(head) => split_len(&head)?.unwrap_or(0),
                None => 0,
            },
        };
        Ok(if len <= PIECE { 0 } else { pieces_of(len) })
    }

    /// Each write by itself.
    pub fn apply_in_order(&self, batch: &Batch) -> io::Result<()> {
        batch
            .writes
            .iter()
            .try_for_each(|(key, write)| self.put(key, write))
    }

    /// A value in pieces is there once its head is. One that takes the place of another in pieces
    /// needs a batch.
    fn put(&self, key: &[u8], write: &Write) -> io::Result<()> {
        if self.pieces_before(key, write)? > 0 {
            let mut alone = Merged::default();
            alone.add(key.to_vec(), write.clone());
            return self.apply_at_once(&alone);
        }
        let Some(value) = &write.value else {
            return self.tree.remove(head_key(key)).map(drop).map_err(other);
        };
        for (piece, part) in (0..).zip(pieces(value)) {
            let key = piece_key(key, piece);
            self.tree.insert(key, part).map_err(other)?;
        }
        let head = head(value);
        self.tree
            .insert(head_key(key), head)
            .map(drop)
            .map_err(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::proptest;
    use proptest::test_runner::Config;
    use std::collections::BTreeMap;

    type Values = BTreeMap<Vec<u8>, Option<usize>>;

    fn merged(values: &Values) -> Merged {
        let mut batch = Batch::default();
        for (key, len) in values {
            let value = len.map(|len| Bytes::from(vec![7; len]));
            batch.write(key.clone(), value, None);
        }
        batch.into()
    }

    fn values() -> impl proptest::strategy::Strategy<Value = Values> {
        let key = proptest::collection::vec(0..3u8, 0..3);
        let len = proptest::sample::select(vec![0, 1, 4000, 4001, 20_000]);
        proptest::collection::btree_map(key, proptest::option::of(len), 0..8)
    }

    proptest! {
        #![proptest_config(Config::with_cases(48))]

        /// However far it came: nothing of it is there without its note, or all of it in the end.
        #[test]
        fn what_a_crash_cuts_short_is_written_again(before in values(), then in values(), written in 0usize..30, is_noted in proptest::bool::ANY) {
            let dir = tempfile::tempdir().unwrap();
            let tree = Store::open(dir.path(), 16).unwrap().tree("t").unwrap();
            tree.apply_in_parts(&merged(&before)).unwrap();
            let note = tree.note(&merged(&then)).unwrap();
            if is_noted {
                note.writes.into_iter().take(written).for_each(|w| tree.write(w).unwrap());
            } else {
                tree.tree.remove([NOTE_KEY]).unwrap();
            }
            tree.complete().unwrap();
            tree.complete().unwrap();
            let mut expected = before;
            if is_noted {
                expected.extend(then);
            }
            let expected: Vec<(Vec<u8>, usize)> = expected.into_iter().filter_map(|(key, len)| Some((key, len?))).collect();
            let found = tree.page(Bound::Unbounded, Bound::Unbounded, usize::MAX).unwrap();
            let found: Vec<(Vec<u8>, usize)> = found.into_iter().map(|(key, value)| (key.to_vec(), value.len())).collect();
            assert_eq!(found, expected);
            let stored = |kind: u8| tree.tree.range([kind]..[kind + 1]).count();
            let pieces: u32 = expected.iter().filter(|(_, len)| *len > PIECE).map(|(_, len)| pieces_of(*len)).sum();
            assert_eq!(stored(PIECE_KEY), pieces as usize, "no piece of a value that is gone");
        }
    }
}
