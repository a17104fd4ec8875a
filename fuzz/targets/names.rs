//! Names, tags, digests, references, regions, and the ids of nodes and requests: what is taken is
//! what the grammar says, and is printed as it came.

#![no_main]

use libfuzzer_sys::fuzz_target;
use regex::Regex;
use roadstead::oci::{Algorithm, Digest, Reference, RepositoryName, Tag};
use roadstead::request_id::RequestId;
use roadstead::topology::{NodeId, RegionName};
use std::sync::LazyLock;

/// The expressions of the distribution spec and of the image spec.
static NAME: LazyLock<Regex> = LazyLock::new(|| {
    whole("[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*")
});
static TAG: LazyLock<Regex> = LazyLock::new(|| whole("[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"));
static DIGEST: LazyLock<Regex> =
    LazyLock::new(|| whole("sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}"));
static REGION: LazyLock<Regex> = LazyLock::new(|| whole("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"));
static NODE: LazyLock<Regex> = LazyLock::new(|| whole("[a-fA-F0-9]{16}"));

fn whole(expression: &str) -> Regex {
    Regex::new(&format!("^(?:{expression})$")).unwrap()
}

fuzz_target!(|text: &str| {
    let name = text.parse::<RepositoryName>();
    assert_eq!(name.is_ok(), text.len() <= 255 && NAME.is_match(text));
    match name {
        Ok(name) => assert_eq!(name.as_str(), text),
        // An error repeats the beginning of what came, however long that is.
        Err(error) => assert!(error.to_string().len() < 4096),
    }
    let tag = text.parse::<Tag>();
    assert_eq!(tag.is_ok(), TAG.is_match(text));
    let digest = text.parse::<Digest>();
    assert_eq!(digest.is_ok(), DIGEST.is_match(text));
    if let Ok(digest) = &digest {
        assert_eq!(digest.to_string(), text);
        assert_eq!(
            Digest::from_bytes(digest.algorithm(), &digest.bytes()).as_ref(),
            Some(digest)
        );
    }
    match text.parse::<Reference>() {
        Ok(Reference::Tag(found)) => assert_eq!(Ok(found), tag),
        Ok(Reference::Digest(found)) => assert_eq!(Ok(found), digest),
        Err(_) => assert!(tag.is_err() && digest.is_err()),
    }
    if let Ok(algorithm) = text.parse::<Algorithm>() {
        assert_eq!(algorithm.as_str(), text);
    }
    assert_eq!(text.parse::<RegionName>().is_ok(), REGION.is_match(text));
    let node = text.parse::<NodeId>();
    assert_eq!(node.is_ok(), NODE.is_match(text));
    if let Ok(node) = node {
        assert_eq!(node.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(id) = text.parse::<RequestId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
});
