//! The log in files against a model, over restarts; and what is left of it wherever a crash or a
//! flipped byte falls.

use super::files::Files;
use super::files::OpenError;
use bytes::Bytes;
use proptest::prelude::Strategy;
use proptest::prelude::any;
use proptest::prelude::prop_assert;
use proptest::prelude::prop_assert_eq;
use proptest::prelude::proptest;
use proptest::prop_oneof;
use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;

/// Small files, so that each test has several.
const FULL: u64 = 500;

fn open(dir: &Path, from: u64) -> Files {
    Files::open_with(dir, from, FULL).unwrap()
}

fn sync(log: &Files) {
    let (done, is_done) = mpsc::channel();
    log.sync_then(Box::new(move |result| done.send(result).unwrap()));
    is_done.recv().unwrap().unwrap();
}

fn entry(index: u64, term: u8, size: usize) -> Vec<u8> {
    let mut entry = vec![term; size + 9];
    entry[..8].copy_from_slice(&index.to_le_bytes());
    entry
}

fn fill(log: &Files, count: u64) {
    for index in 0..count {
        log.append(index, &[entry(index, 1, 40)]).unwrap();
    }
    sync(log);
}

fn file_names(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap();
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Truncate(u64),
    Purge(u64),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = proptest::collection::vec(0usize..300, 1..5);
    let step = prop_oneof![
        4 => sizes.prop_map(Step::Append),
        1 => (0u64..8).prop_map(Step::Truncate),
        1 => (0u64..8).prop_map(Step::Purge),
        1 => any::<()>().prop_map(|()| Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, ..Default::default() })]

    #[test]
    fn it_is_a_list_that_grows_at_its_end_and_goes_from_both(steps in steps(), reads in proptest::collection::vec((0u64..60, 0u64..60, 0usize..900), 4)) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), 0);
        let (mut model, mut from, mut next) = (BTreeMap::<u64, Vec<u8>>::new(), 0u64, 0u64);
        for (number, step) in steps.iter().enumerate() {
            match step {
                Step::Append(sizes) => {
                    let term = u8::try_from(number).unwrap();
                    let entries: Vec<_> = (next..).zip(sizes).map(|(index, size)| entry(index, term, *size)).collect();
                    log.append(next, &entries).unwrap();
                    model.extend((next..).zip(entries));
                    next += sizes.len() as u64;
                }
                Step::Truncate(count) => {
                    next = next.saturating_sub(*count).max(from);
                    log.truncate(next);
                    model.retain(|index, _| *index < next);
                }
                Step::Purge(count) => {
                    // A snapshot of a leader reaches further than the log, too.
                    from += count;
                    next = next.max(from);
                    log.purge(from).unwrap();
                    model.retain(|index, _| *index >= from);
                }
                Step::Reopen => {
                    drop(log);
                    log = open(dir.path(), from);
                }
            }
            let kept = log.bytes();
            prop_assert_eq!(kept, model.values().map(|entry| entry.len() as u64 + 8).sum::<u64>());
            if let Some((_, last)) = model.last_key_value() {
                let found = log.last().unwrap();
                prop_assert_eq!(found.as_deref(), Some(last.as_slice()));
            }
            for (start, end, max) in &reads {
                let found = log.read(*start, *end, *max).unwrap();
                let expected: Vec<Bytes> = model.range(*start..*end.max(start)).map(|(_, entry)| Bytes::from(entry.clone())).collect();
                prop_assert!(expected.starts_with(&found), "{start}..{end}");
                prop_assert!(found.is_empty() == expected.is_empty(), "at least one");
                let most: usize = found.iter().rev().skip(1).map(Bytes::len).sum();
                prop_assert!(most <= *max, "{most} bytes and one entry more");
            }
            let all = log.read(0, u64::MAX, usize::MAX).unwrap();
            prop_assert_eq!(all.len(), model.len());
        }
    }
}

#[test]
fn a_write_that_was_cut_short_leaves_the_entries_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 0);
    fill(&log, 4);
    let before = log.bytes();
    drop(log);
    let path = file_names(dir.path()).pop().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let last_starts = usize::try_from(before / 4 * 3).unwrap();
    for cut in last_starts..usize::try_from(before).unwrap() {
        // Cut off, or full of zeros from there: what a power cut leaves of a file with its length.
        for rest in [0, 64] {
            let mut torn = whole[..cut].to_vec();
            torn.resize(cut + rest, 0);
            std::fs::write(&path, torn).unwrap();
            let log = open(dir.path(), 0);
            // A frame whose bytes end in zeros may be whole already.
            let kept = log.read(0, u64::MAX, usize::MAX).unwrap().len() as u64;
            assert_eq!(kept, 3, "cut at {cut}");
            log.append(kept, &[entry(kept, 2, 7)]).unwrap();
            sync(&log);
            drop(log);
            let again = open(dir.path(), 0).read(0, 9, usize::MAX).unwrap();
            assert_eq!(again.last().unwrap().as_ref(), entry(kept, 2, 7));
        }
    }
}

#[test]
fn a_flipped_byte_ends_the_log_or_is_an_error_and_is_never_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 0);
    fill(&log, 20);
    let sound = log.read(0, u64::MAX, usize::MAX).unwrap();
    drop(log);
    let files = file_names(dir.path());
    assert!(files.len() > 2);
    for (number, path) in files.iter().enumerate() {
        let whole = std::fs::read(path).unwrap();
        for at in 0..whole.len().min(600) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            std::fs::write(path, &flipped).unwrap();
            match Files::open_with(dir.path(), 0, FULL) {
                Ok(log) => {
                    assert_eq!(number, files.len() - 1, "a hole in the middle");
                    let found = log.read(0, u64::MAX, usize::MAX).unwrap();
                    assert!(sound.starts_with(&found));
                }
                Err(OpenError::Damaged { what }) => assert!(what.contains("log file"), "{what}"),
                Err(OpenError::Io(error)) => panic!("{error}"),
            }
            std::fs::write(path, &whole).unwrap();
        }
    }
}

#[test]
fn a_byte_that_flips_while_it_runs_is_an_error_and_not_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 0);
    fill(&log, 3);
    let path = file_names(dir.path()).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[70] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = log.read(1, 2, usize::MAX).unwrap_err();
    assert!(error.to_string().contains("entry 1"), "{error}");
    assert_eq!(log.read(0, 1, usize::MAX).unwrap().len(), 1);
}

#[test]
fn a_missing_file_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    fill(&open(dir.path(), 0), 30);
    let files = file_names(dir.path());
    std::fs::remove_file(&files[1]).unwrap();
    let opened = Files::open_with(dir.path(), 0, FULL);
    assert!(matches!(opened, Err(OpenError::Damaged { .. })));
    // Not when it would have gone anyway.
    std::fs::remove_file(&files[0]).unwrap();
    let first = open(dir.path(), 25).read(25, 26, usize::MAX).unwrap();
    assert_eq!(first, [entry(25, 1, 40)]);
}

#[test]
fn an_entry_out_of_turn_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 0);
    fill(&log, 3);
    assert!(log.append(4, &[entry(4, 1, 1)]).is_err());
    assert!(log.append(2, &[entry(2, 1, 1)]).is_err());
    log.append(3, &[entry(3, 1, 1)]).unwrap();
}
