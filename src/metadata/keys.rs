//! The key grammar of the replicated state. Nothing else builds keys.
//!
//! ```text
//! A                         Applied: the last entry, and the membership
//! H                         hash of all pairs but these two
//! c                         ClusterRecord
//! C                         CaRecord: what certificates of nodes are signed with
//! J ID                      JoinTokenRecord
//! t                         TimeRecord: log time
//! r REPOSITORY              RepositoryRecord
//! l REPOSITORY 0 DIGEST     RepositoryManifestRecord: the repository holds the manifest
//! g REPOSITORY 0 TAG        TagRecord
//! y REPOSITORY 0 TAG 0 INDEX   TagRecord: what a tag was, entry by entry
//! v REPOSITORY 0 DIGEST TAG    tags that name a manifest
//! f REPOSITORY 0 DIGEST DIGEST referrers: subject, then the manifest that names it
//! k DIGEST REPOSITORY       link: how many manifests of the repository name the blob
//! u REPOSITORY 0 DIGEST     index of the last DeleteBlob
//! m DIGEST                  ManifestRecord
//! b DIGEST                  the manifest's bytes
//! d DIGEST                  BlobRecord
//! n DIGEST DIGEST           blob, then a manifest that names it
//! h DIGEST NODE             HolderRecord
//! i NODE DIGEST             the same, by node
//! w NODE* WANTED?           PlacementRecord of the blobs with this set of counted holders; WANTED is a byte,
//!                           left out where no prefix asks for copies
//! e REPOSITORY 0 DIGEST DIGEST manifest, then an index of the repository that names it
//! z REPOSITORY 0 DIGEST DIGEST blob, then a manifest of the repository that names it and does not link it
//! s PREFIX                  PolicyRecord
//! j PREFIX                  CopiesWalkRecord: blobs under it are being counted anew
//! o NODE                    NodeRecord
//! x NODE                    removed, for ever
//! q NODE                    RequestsRecord
//! p NODE SEQ                Outcome of a request
//! a ACCOUNT                 AccountRecord
//! S HASH                    the account that a random secret with this SHA-256 is of
//! G GROUP                   GroupRecord
//! K KID                     SigningKeyRecord
//! U ACCOUNT                 UsedRecord
//! ```
//!
//! A DIGEST is a byte for its algorithm and its raw bytes, so each has one length; numbers are big
//! endian; names hold no zero byte.

use crate::oci::{Algorithm, Digest};
use crate::policy::Wanted;
use crate::topology::NodeId;

pub const APPLIED: &[u8] = b"A";
pub const HASH: &[u8] = b"H";
pub const CLUSTER: &[u8] = b"c";
pub const CA: &[u8] = b"C";
pub const JOIN_TOKENS: &[u8] = b"J";
pub const TIME: &[u8] = b"t";
pub const REPOSITORIES: &[u8] = b"r";
pub const BLOBS: &[u8] = b"d";
pub const PLACEMENTS: &[u8] = b"w";
pub const NODES: &[u8] = b"o";
pub const POLICIES: &[u8] = b"s";
pub const COPIES_WALKS: &[u8] = b"j";
pub const MISSING: &[u8] = b"z";
pub const ACCOUNTS: &[u8] = b"a";
pub const SECRETS: &[u8] = b"S";
pub const GROUPS: &[u8] = b"G";
pub const SIGNING_KEYS: &[u8] = b"K";
pub const USED: &[u8] = b"U";

/// Kinds of which there are few however much is stored, and which each push reads: the members,
/// their requests, policies, accounts and what they may do, and what there is once.
pub const FEW: &[u8] = b"AHctoqpsjwaSGKCJ";

fn push_digest(key: &mut Vec<u8>, digest: &Digest) {
    key.push(match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    });
    key.extend_from_slice(&digest.bytes());
}

/// Reads a digest from the start of `bytes`; the rest.
pub fn take_digest(bytes: &[u8]) -> Option<(Digest, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let algorithm = match kind {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        _ => return None,
    };
    let (raw, rest) = rest.split_at_checked(algorithm.hex_len() / 2)?;
    Some((Digest::from_bytes(algorithm, raw)?, rest))
}

pub fn take_node(bytes: &[u8]) -> Option<(NodeId, &[u8])> {
    let (raw, rest) = bytes.split_first_chunk::<8>()?;
    Some((NodeId(u64::from_be_bytes(*raw)), rest))
}

fn with_digest(kind: u8, digest: &Digest) -> Vec<u8> {
    let mut key = vec![kind];
    push_digest(&mut key, digest);
    key
}

fn with_node(kind: u8, node: NodeId) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend_from_slice(&node.0.to_be_bytes());
    key
}

/// `kind NAME 0`: the prefix of all that a repository has of a kind.
pub fn in_repository(kind: u8, name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len() + 80);
    key.push(kind);
    key.extend_from_slice(name.as_bytes());
    key.push(0);
    key
}

fn in_repository_digest(kind: u8, name: &str, digest: &Digest) -> Vec<u8> {
    let mut key = in_repository(kind, name);
    push_digest(&mut key, digest);
    key
}

pub fn repository(name: &str) -> Vec<u8> {
    let mut key = REPOSITORIES.to_vec();
    key.extend_from_slice(name.as_bytes());
    key
}

pub fn repository_manifest(name: &str, digest: &Digest) -> Vec<u8> {
    in_repository_digest(b'l', name, digest)
}

pub fn tags(name: &str) -> Vec<u8> {
    in_repository(b'g', name)
}

pub fn tag(name: &str, tag: &str) -> Vec<u8> {
    let mut key = tags(name);
    key.extend_from_slice(tag.as_bytes());
    key
}

pub fn tag_history(name: &str, tag: &str, index: u64) -> Vec<u8> {
    let mut key = in_repository(b'y', name);
    key.extend_from_slice(tag.as_bytes());
    key.push(0);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

pub fn tags_of(name: &str, digest: &Digest) -> Vec<u8> {
    in_repository_digest(b'v', name, digest)
}

pub fn tag_of(name: &str, digest: &Digest, tag: &str) -> Vec<u8> {
    let mut key = tags_of(name, digest);
    key.extend_from_slice(tag.as_bytes());
    key
}

pub fn referrers(name: &str, subject: &Digest) -> Vec<u8> {
    in_repository_digest(b'f', name, subject)
}

pub fn referrer(name: &str, subject: &Digest, manifest: &Digest) -> Vec<u8> {
    let mut key = referrers(name, subject);
    push_digest(&mut key, manifest);
    key
}

/// The prefix of the blob's links to all repositories.
pub fn links(blob: &Digest) -> Vec<u8> {
    with_digest(b'k', blob)
}

pub fn link(name: &str, blob: &Digest) -> Vec<u8> {
    let mut key = links(blob);
    key.extend_from_slice(name.as_bytes());
    key
}

pub fn unlinked(name: &str, blob: &Digest) -> Vec<u8> {
    in_repository_digest(b'u', name, blob)
}

/// Manifests of the repository that name the blob and do not link it.
pub fn missing(name: &str, blob: &Digest) -> Vec<u8> {
    in_repository_digest(b'z', name, blob)
}

pub fn missing_in(name: &str, blob: &Digest, manifest: &Digest) -> Vec<u8> {
    let mut key = missing(name, blob);
    push_digest(&mut key, manifest);
    key
}

/// Indexes of the repository that name the manifest.
pub fn indexes(name: &str, manifest: &Digest) -> Vec<u8> {
    in_repository_digest(b'e', name, manifest)
}

pub fn index(name: &str, manifest: &Digest, index: &Digest) -> Vec<u8> {
    let mut key = indexes(name, manifest);
    push_digest(&mut key, index);
    key
}

pub fn join_token(id: &str) -> Vec<u8> {
    let mut key = JOIN_TOKENS.to_vec();
    key.extend_from_slice(id.as_bytes());
    key
}

/// By the prefix as it is typed.
pub fn policy(prefix: &str) -> Vec<u8> {
    let mut key = POLICIES.to_vec();
    key.extend_from_slice(prefix.as_bytes());
    key
}

pub fn manifest(digest: &Digest) -> Vec<u8> {
    with_digest(b'm', digest)
}

pub fn manifest_bytes(digest: &Digest) -> Vec<u8> {
    with_digest(b'b', digest)
}

pub fn blob(digest: &Digest) -> Vec<u8> {
    with_digest(b'd', digest)
}

pub fn named_by(blob: &Digest, manifest: &Digest) -> Vec<u8> {
    let mut key = with_digest(b'n', blob);
    push_digest(&mut key, manifest);
    key
}

pub fn holders(blob: &Digest) -> Vec<u8> {
    with_digest(b'h', blob)
}

pub fn holder(blob: &Digest, node: NodeId) -> Vec<u8> {
    let mut key = holders(blob);
    key.extend_from_slice(&node.0.to_be_bytes());
    key
}

pub fn held_by(node: NodeId) -> Vec<u8> {
    with_node(b'i', node)
}

pub fn held(node: NodeId, blob: &Digest) -> Vec<u8> {
    let mut key = held_by(node);
    push_digest(&mut key, blob);
    key
}

pub fn copies_walk(prefix: &str) -> Vec<u8> {
    let mut key = COPIES_WALKS.to_vec();
    key.extend_from_slice(prefix.as_bytes());
    key
}

/// What the manifests of all repositories under the prefix begin with, in key order.
pub fn manifests_under(prefix: &str) -> [Vec<u8>; 2] {
    [0, b'/'].map(|end| {
        let mut key = vec![b'l'];
        key.extend_from_slice(prefix.as_bytes());
        key.push(end);
        key
    })
}

/// The repository and the digest of a `l` key.
pub fn take_repository_manifest(key: &[u8]) -> Option<(&str, Digest)> {
    let rest = key.strip_prefix(b"l")?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    let (digest, _) = take_digest(&rest[end + 1..])?;
    Some((std::str::from_utf8(&rest[..end]).ok()?, digest))
}

/// `nodes` in order.
pub fn placement(nodes: &[NodeId], wanted: Wanted) -> Vec<u8> {
    let mut key = PLACEMENTS.to_vec();
    for node in nodes {
        key.extend_from_slice(&node.0.to_be_bytes());
    }
    match wanted.to_byte() {
        0 => {}
        byte => key.push(byte),
    }
    key
}

pub fn take_placement(key: &[u8]) -> (Vec<NodeId>, Wanted) {
    let mut rest = &key[PLACEMENTS.len()..];
    let mut nodes = Vec::new();
    while let Some((node, more)) = take_node(rest) {
        nodes.push(node);
        rest = more;
    }
    (nodes, Wanted::from_byte(rest.first().copied().unwrap_or(0)))
}

pub fn node(node: NodeId) -> Vec<u8> {
    with_node(b'o', node)
}

pub fn removed(node: NodeId) -> Vec<u8> {
    with_node(b'x', node)
}

pub fn requests(node: NodeId) -> Vec<u8> {
    with_node(b'q', node)
}

pub fn outcomes(node: NodeId) -> Vec<u8> {
    with_node(b'p', node)
}

pub fn outcome(node: NodeId, seq: u64) -> Vec<u8> {
    let mut key = outcomes(node);
    key.extend_from_slice(&seq.to_be_bytes());
    key
}

fn with_name(kind: &[u8], name: &[u8]) -> Vec<u8> {
    [kind, name].concat()
}

pub fn account(name: &str) -> Vec<u8> {
    with_name(ACCOUNTS, name.as_bytes())
}

pub fn secret(hash: &[u8]) -> Vec<u8> {
    with_name(SECRETS, hash)
}

pub fn group(name: &str) -> Vec<u8> {
    with_name(GROUPS, name.as_bytes())
}

pub fn signing_key(kid: &str) -> Vec<u8> {
    with_name(SIGNING_KEYS, kid.as_bytes())
}

pub fn used(account: &str) -> Vec<u8> {
    with_name(USED, account.as_bytes())
}
