//! Upload session ids: the repository, what is random, an id as a client may send it, and the record
//! that a start of the node finds, a line each. Only an id that this node signed for the repository
//! is known.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::bytes::Bytes;
use roadstead::blobs::fuzzing::staging;
use roadstead::metadata::Kv;
use roadstead::metadata::kv::Batch;
use roadstead::oci::RepositoryName;
use roadstead::registry::fuzzing::Sessions;
use roadstead::topology::NodeId;
use std::sync::LazyLock;

const ME: NodeId = NodeId(7);
const FILE: &str = "aa";
static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.splitn(4, |b| *b == b'\n').map(Bytes::copy_from_slice);
    let mut line = || lines.next().unwrap_or_default();
    let (of, random, sent, record) = (line(), line(), line(), line());
    let of = std::str::from_utf8(&of).ok().and_then(|of| of.parse().ok());
    let of: RepositoryName = of.unwrap_or_else(|| "team/app".parse().unwrap());
    let random = String::from_utf8_lossy(&random);
    let sent = String::from_utf8_lossy(&sent);

    let notes = Kv::memory().tree("local").unwrap();
    let load = || Sessions::load(ME, notes.clone(), staging(DIR.path().to_owned()));
    let signed = format!("{ME}-{random}-{}", load().unwrap().sign(&of, &random));
    let mut batch = Batch::default();
    batch.put(format!("upload/{signed}"), record);
    notes.apply(batch).unwrap();
    std::fs::write(DIR.path().join(FILE), b"12345").unwrap();
    let Ok(sessions) = load() else { return };

    let is_kept = notes
        .get(format!("upload/{signed}").as_bytes())
        .unwrap()
        .is_some();
    // A part of an id has no dash, or there would be more parts.
    assert_eq!(
        sessions.knows(&of, &signed),
        is_kept && !random.contains('-')
    );
    assert!(
        !sessions.knows(&"another/app".parse().unwrap(), &signed) || of.as_str() == "another/app"
    );
    assert!(!sessions.knows(&of, &sent) || sent == signed, "{sent}");
    match sessions.owner(&sent) {
        Some(None) => assert!(sent.starts_with(&ME.to_string())),
        Some(Some(node)) => {
            assert!(node != ME && sent.to_ascii_lowercase().starts_with(&node.to_string()))
        }
        None => {}
    }
});
