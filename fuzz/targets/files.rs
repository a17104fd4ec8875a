//! Files of their own form. The first byte says which: a blob's checksums, the record of what was
//! acknowledged, a snapshot; an odd one says that frames and checksums are to be made right, so that
//! what lies behind them is reached.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roadstead::blobs::fuzzing::{checksums, read_checksums};
use roadstead::metadata::fuzzing::{read_acknowledged, verify_snapshot};
use roadstead::metadata::snapshot::{Reader, SnapshotFile};
use std::sync::LazyLock;

static SNAPSHOT: LazyLock<SnapshotFile> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("{}.snap", std::process::id()));
    SnapshotFile { path }
});

fn with_crc(bytes: &[u8]) -> Vec<u8> {
    [bytes, &crc32fast::hash(bytes).to_be_bytes()].concat()
}

fn blob_checksums(bytes: &[u8], is_mended: bool) {
    let file = if is_mended {
        with_crc(&[b"RSBLOCK1", bytes].concat())
    } else {
        bytes.to_vec()
    };
    if let Ok((_, blocks)) = read_checksums(&file) {
        assert_eq!(blocks.len(), (file.len() - 20) / 4);
    }
    let (size, blocks) = read_checksums(&checksums(bytes)).expect("written here");
    assert_eq!(size, bytes.len() as u64);
    let expected: Vec<u32> = bytes.chunks(64 << 10).map(crc32fast::hash).collect();
    assert_eq!(blocks, expected);
}

fn acknowledged(bytes: &[u8], is_mended: bool) {
    let mut file = bytes.to_vec();
    if let (true, Some((record, _))) = (is_mended, bytes.split_first_chunk::<16>()) {
        file = [record.as_slice(), &crc32fast::hash(record).to_le_bytes()].concat();
    }
    match read_acknowledged(&file) {
        Some(again) => assert_eq!(again, file),
        None => assert!(!is_mended || bytes.len() < 16),
    }
}

/// Frames of a length byte and as many bytes.
fn frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut file = b"RSSNAP01".to_vec();
    while let Some((len, rest)) = bytes.split_first() {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        file.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        file.extend_from_slice(&crc32fast::hash(payload).to_be_bytes());
        file.extend_from_slice(payload);
        bytes = rest;
    }
    file
}

fn snapshot(bytes: &[u8], is_mended: bool) {
    let file = if is_mended {
        frames(bytes)
    } else {
        bytes.to_vec()
    };
    std::fs::write(&SNAPSHOT.path, &file).unwrap();
    let verified = verify_snapshot(&SNAPSHOT);
    let Ok(mut reader) = Reader::open(&SNAPSHOT) else {
        return assert!(verified.is_err());
    };
    let (mut pairs, mut size) = (0, 0);
    loop {
        match reader.pairs() {
            Ok(found) => {
                pairs += found.len() as u64;
                size += found
                    .iter()
                    .map(|(key, value)| key.len() + value.len())
                    .sum::<usize>();
            }
            Err(_) => return assert!(verified.is_err()),
        }
        if reader.trailer.is_some() {
            break;
        }
    }
    assert!(size <= file.len(), "nothing comes from nowhere");
    assert!(verified.is_err() || reader.trailer.is_some_and(|trailer| trailer.keys == pairs));
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let is_mended = kind % 2 == 1;
    match kind / 2 % 3 {
        0 => blob_checksums(bytes, is_mended),
        1 => acknowledged(bytes, is_mended),
        _ => snapshot(bytes, is_mended),
    }
});
