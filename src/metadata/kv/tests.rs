//! One meaning, two engines, and a deferred tree on each: each test runs on all.

use super::{Batch, Kv, OpenError, Tree, prefix_end};
use bytes::Bytes;
use proptest::prelude::{Strategy, any, proptest};
use proptest::test_runner::Config;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Half of all first bytes.
const LOW: [u8; 128] = {
    let mut low = [0; 128];
    let mut at = 0;
    while at < low.len() {
        low[at] = at as u8;
        at += 1;
    }
    low
};

fn sled() -> (tempfile::TempDir, Kv) {
    let dir = tempfile::tempdir().unwrap();
    let kv = Kv::open_sled(dir.path(), 16).unwrap();
    (dir, kv)
}

fn all(tree: &Tree) -> BTreeMap<Vec<u8>, Bytes> {
    let pairs = tree
        .page(Bound::Unbounded, Bound::Unbounded, usize::MAX)
        .unwrap();
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_vec(), value))
        .collect()
}

fn check_batches(kv: &Kv, tree: &Tree, batches: &[Vec<(Vec<u8>, Option<usize>)>]) {
    let other = kv.tree("u").unwrap();
    let mut model: BTreeMap<Vec<u8>, Bytes> = BTreeMap::new();
    for (number, writes) in batches.iter().enumerate() {
        let mut batch = Batch::default();
        for (key, len) in writes {
            match len {
                Some(len) => {
                    let value = Bytes::from(vec![key.len() as u8; *len]);
                    model.insert(key.clone(), value.clone());
                    batch.put(key.clone(), value);
                }
                None => {
                    model.remove(key);
                    batch.delete(key.clone());
                }
            }
        }
        match number % 2 {
            0 => tree.apply(batch).unwrap(),
            _ => tree.apply_in_order(batch).unwrap(),
        }
        assert_eq!(all(tree), model);
        let last = tree
            .last()
            .unwrap()
            .map(|(key, value)| (key.to_vec(), value));
        assert_eq!(
            last,
            model.last_key_value().map(|(k, v)| (k.clone(), v.clone()))
        );
        let written = batches.iter().flatten().map(|(key, _)| key);
        for key in written.chain(model.keys()) {
            assert_eq!(tree.get(key).unwrap().as_ref(), model.get(key));
        }
    }
    assert!(all(&other).is_empty(), "a tree of its own");
}

fn batches() -> impl Strategy<Value = Vec<Vec<(Vec<u8>, Option<usize>)>>> {
    let key = proptest::collection::vec(0..3u8, 0..3);
    let value = proptest::option::of(proptest::sample::select(vec![
        0, 1, 3999, 4000, 4001, 8000, 20_000,
    ]));
    let batch = proptest::collection::vec((key, value), 0..6);
    proptest::collection::vec(batch, 0..6)
}

proptest! {
    #![proptest_config(Config::with_cases(48))]

    #[test]
    fn both_engines_are_an_ordered_map(batches in batches()) {
        let (_dir, sled) = sled();
        for kv in [Kv::memory(), sled] {
            let tree = |name| kv.tree(name).unwrap();
            check_batches(&kv, &tree("t"), &batches);
            check_batches(&kv, &tree("deferred").deferred(&[]).unwrap(), &batches);
            check_batches(&kv, &tree("held").deferred(&[1]).unwrap(), &batches);
        }
    }

    #[test]
    fn a_crash_takes_whole_batches_from_a_deferred_tree_and_the_last_ones(
        sizes in proptest::collection::vec((1..4u8, 0..90_000usize), 0..40), settled in 0usize..40,
    ) {
        let kv = Kv::memory();
        let tree = kv.tree("t").unwrap().deferred(&[1]).unwrap();
        for (number, (keys, size)) in sizes.iter().enumerate() {
            let mut batch = Batch::default();
            batch.put(*b"last", vec![u8::try_from(number).unwrap()]);
            (0..*keys).for_each(|key| batch.put([u8::try_from(number).unwrap(), key], vec![0; *size]));
            tree.apply(batch).unwrap();
            if number == settled {
                tree.settle().unwrap();
            }
        }
        let left = all(&kv.tree("t").unwrap());
        let last = left.get(b"last".as_slice()).map(|number| usize::from(number[0]));
        assert!(settled >= sizes.len() || last >= Some(settled));
        let whole = sizes.iter().take(last.map_or(0, |last| last + 1));
        let pairs: usize = whole.map(|(keys, _)| usize::from(*keys)).sum();
        assert_eq!(left.len(), pairs + usize::from(last.is_some()));
        // What is kept back is bounded.
        let behind: usize = sizes.iter().skip(last.map_or(0, |last| last + 1)).map(|(keys, size)| usize::from(*keys) * size).sum();
        assert!(behind < 256 << 10, "{behind} bytes");
    }

    #[test]
    fn a_page_is_a_range_of_the_map(keys in proptest::collection::btree_set(proptest::collection::vec(any::<u8>(), 0..3), 0..20),
                                    prefix in proptest::collection::vec(any::<u8>(), 0..2), limit in 0usize..6) {
        let (_dir, sled) = sled();
        let trees = |kv: Kv| {
            let tree = |name| kv.tree(name).unwrap();
            [tree("t"), tree("deferred").deferred(&[]).unwrap(), tree("held").deferred(&LOW).unwrap()]
        };
        for tree in trees(Kv::memory()).into_iter().chain(trees(sled)) {
            let mut batch = Batch::default();
            keys.iter().for_each(|key| batch.put(key.clone(), Bytes::new()));
            tree.apply(batch).unwrap();
            // Some are taken away, and others come, only in what is kept back.
            let mut keys = keys.clone();
            if let Tree::Deferred(_) = &tree {
                tree.settle().unwrap();
                let mut batch = Batch::default();
                for key in keys.iter().cloned().collect::<Vec<_>>().chunks(2) {
                    batch.delete(key[0].clone());
                    keys.remove(&key[0]);
                    let longer = [key[0].as_slice(), b"+"].concat();
                    batch.put(longer.clone(), Bytes::new());
                    keys.insert(longer);
                }
                tree.apply(batch).unwrap();
            }
            let expected: Vec<_> = keys.iter().filter(|key| key.starts_with(&prefix)).take(limit).cloned().collect();
            let found: Vec<_> = tree.prefix_page(&prefix, None, limit).unwrap().into_iter().map(|(key, _)| key.to_vec()).collect();
            assert_eq!(found, expected);
            if let Some(first) = expected.first() {
                let rest = tree.prefix_page(&prefix, Some(first), limit).unwrap();
                assert!(rest.iter().all(|(key, _)| key.as_ref() > first.as_slice() && key.starts_with(&prefix)));
            }
        }
    }
}

#[tokio::test]
async fn what_was_synced_survives() {
    let (dir, kv) = sled();
    let mut batch = Batch::default();
    batch.put(*b"k", vec![7; 10_000]);
    kv.tree("t").unwrap().apply(batch).unwrap();
    kv.sync().await.unwrap();
    assert!(matches!(
        Kv::open_sled(dir.path(), 16),
        Err(OpenError::Busy { .. })
    ));
    drop(kv);
    // sled's own threads let go of the lock a moment later.
    let kv = loop {
        match Kv::open_sled(dir.path(), 16) {
            Ok(kv) => break kv,
            Err(OpenError::Busy { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(
        kv.tree("t").unwrap().get(b"k").unwrap().unwrap(),
        vec![7; 10_000]
    );
}

#[tokio::test]
async fn a_power_cut_takes_what_was_not_synced() {
    let kv = Kv::memory();
    let put = |key: &[u8]| {
        let mut batch = Batch::default();
        batch.put(key, Bytes::new());
        kv.tree("t").unwrap().apply(batch).unwrap();
    };
    put(b"a");
    kv.sync().await.unwrap();
    put(b"b");
    let after = kv.after_power_cut().unwrap().tree("t").unwrap();
    assert!(after.get(b"a").unwrap().is_some());
    assert!(after.get(b"b").unwrap().is_none());
}

#[test]
fn a_damaged_store_says_so_and_what_to_do() {
    let (dir, kv) = sled();
    drop(kv);
    std::fs::write(dir.path().join("conf"), b"not a configuration").unwrap();
    match Kv::open_sled(dir.path(), 16) {
        Err(error @ (OpenError::Damaged { .. } | OpenError::Io { .. })) => {
            assert!(error.to_string().contains("metadata store"), "{error}");
        }
        Err(OpenError::Busy { .. }) => {}
        Ok(_) => panic!("opened a damaged store"),
    }
}

#[test]
fn the_end_of_a_prefix() {
    assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
    assert_eq!(prefix_end(&[1, 0xff]), Some(vec![2]));
    assert_eq!(prefix_end(&[0xff]), None);
    assert_eq!(prefix_end(b""), None);
}
