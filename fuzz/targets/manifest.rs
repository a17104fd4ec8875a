//! Manifests and indexes as they are pushed: the first line is the Content-Type, empty for none, and
//! the rest the body.

#![no_main]

use libfuzzer_sys::fuzz_target;
use roadstead::oci::{Descriptor, Manifest};
use std::collections::BTreeSet;

fn check_distinct(descriptors: &[Descriptor]) {
    let digests: BTreeSet<_> = descriptors
        .iter()
        .map(|descriptor| &descriptor.digest)
        .collect();
    assert_eq!(digests.len(), descriptors.len(), "each digest once");
    assert!(
        descriptors
            .iter()
            .all(|descriptor| i64::try_from(descriptor.size).is_ok())
    );
    assert!(descriptors.len() <= 4097);
}

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(0);
    let content_type = std::str::from_utf8(&bytes[..end])
        .ok()
        .filter(|text| !text.is_empty());
    let body = bytes.get(end + 1..).unwrap_or_default();
    let untold = Manifest::parse(None, body);
    let manifest = match Manifest::parse(content_type, body) {
        Ok(manifest) => manifest,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert_eq!(
        Manifest::parse(Some(&manifest.media_type), body).as_ref(),
        Ok(&manifest)
    );
    // No second reading (CVE-2021-41190): under no header is it of another type.
    let untold = untold.expect("what has a type has a shape");
    assert_eq!(untold.media_type, manifest.media_type);
    assert_eq!(
        (&untold.blobs, &untold.children),
        (&manifest.blobs, &manifest.children)
    );
    for other in [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        if let Ok(read) = Manifest::parse(Some(other), body) {
            assert_eq!(read.media_type, manifest.media_type, "read as {other}");
        }
    }
    check_distinct(&manifest.blobs);
    check_distinct(&manifest.children);
    if manifest.is_index {
        assert!(
            manifest
                .blobs
                .iter()
                .all(|blob| manifest.children.contains(blob))
        );
    } else {
        assert!(manifest.children.is_empty());
    }
    assert_ne!(manifest.artifact_type.as_deref(), Some(""));
});
