//! What is stored. The first byte chooses a record, the rest is its bytes: what decodes is encoded to
//! the same. Above the records it means a state tree or a log with anything in it: to read that is an
//! answer or an error.

#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use roadstead::access::{AccountName, CredentialId, Principal, Who};
use roadstead::metadata::kv::{Batch, Tree};
use roadstead::metadata::log_store::LogStore;
use roadstead::metadata::{Kv, View, keys, state};
use roadstead::oci::{Algorithm, Digest, RepositoryName, Tag};
use roadstead::policy::{Prefix, Wanted};
use roadstead::proto::state::v1 as pb;
use roadstead::topology::NodeId;
use std::fmt::Debug;

fn decode<T: Message + Default + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = T::decode(bytes) else {
        return;
    };
    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    assert_eq!(T::decode(encoded.as_slice()), Ok(message));
}

macro_rules! records {
    ($($record:ident)*) => { &[$(decode::<pb::$record>),*] };
}

const RECORDS: &[fn(&[u8])] = records! {
    LogId Vote Node VoterSet Membership StoredMembership Blank Entry RequestId Command CreateCluster
    Tick Acknowledged Boot BlobRef Receipt Precondition PutManifest DeleteManifest DeleteTag DeleteBlob
    Hold Lost Listed Gone Back GiveUp Probe Cached SetPolicy UnsetPolicy Outcome Done Refused
    NeedReceipts Abandoned Applied ClusterRecord TimeRecord ManifestRecord Absence
    RepositoryManifestRecord TagRecord BlobRecord HolderRecord NodeRecord PlacementRecord
    RepositoryRecord PolicyRecord RequestsRecord IdentityRecord LinkRecord UploadRecord SnapshotHeader
    PutCa CreateJoinToken UseJoinToken RevokeJoinToken CaRecord JoinTokenRecord
    CountCopies WantedCopies CopiesWalkRecord StoredWrites StoredWrite
    Authority PutAccount RemoveAccount SetPassword RotateSecret SetGrant PutGroup RemoveGroup SetMember
    PutSigningKey Used Use AccountRecord SecretRecord GrantRecord CiTrust GroupRecord SigningKeyRecord
    UsedRecord
};

const NAMES: [&str; 2] = ["a", "a/b"];
const TAGS: [&str; 2] = ["v1", "v2"];

fn digest(u: &mut Unstructured) -> Result<Digest> {
    let algorithm = *u.choose(&[Algorithm::Sha256, Algorithm::Sha512])?;
    Ok(Digest::of(algorithm, &[u.int_in_range(0..=2)?]))
}

fn node(u: &mut Unstructured) -> Result<NodeId> {
    u.int_in_range(0..=3).map(NodeId)
}

/// Of the grammar, or anything.
fn key(u: &mut Unstructured) -> Result<Vec<u8>> {
    let (name, tag) = (*u.choose(&NAMES)?, *u.choose(&TAGS)?);
    Ok(match u.int_in_range(0..=30)? {
        0 => keys::APPLIED.to_vec(),
        1 => keys::HASH.to_vec(),
        2 => keys::CLUSTER.to_vec(),
        3 => keys::TIME.to_vec(),
        4 => keys::repository(name),
        5 => keys::repository_manifest(name, &digest(u)?),
        6 => keys::tag(name, tag),
        7 => keys::tag_of(name, &digest(u)?, tag),
        8 => keys::referrer(name, &digest(u)?, &digest(u)?),
        9 => keys::link(name, &digest(u)?),
        10 => keys::unlinked(name, &digest(u)?),
        11 => keys::missing_in(name, &digest(u)?, &digest(u)?),
        12 => keys::policy(name),
        13 => keys::policy("*"),
        14 => keys::manifest(&digest(u)?),
        15 => keys::manifest_bytes(&digest(u)?),
        16 => keys::blob(&digest(u)?),
        17 => keys::holder(&digest(u)?, node(u)?),
        18 => keys::held(node(u)?, &digest(u)?),
        19 => keys::placement(&[node(u)?, node(u)?], Wanted::from_byte(u.arbitrary()?)),
        20 => keys::node(node(u)?),
        21 => keys::removed(node(u)?),
        22 => keys::outcome(node(u)?, 1),
        23 => keys::copies_walk(name),
        24 => keys::account(name),
        25 => keys::secret(&bytes(u)?),
        26 => keys::group(name),
        27 => keys::signing_key(tag),
        28 => keys::CA.to_vec(),
        29 => keys::join_token(name),
        _ => bytes(u)?,
    })
}

fn bytes(u: &mut Unstructured) -> Result<Vec<u8>> {
    let len = usize::from(u.arbitrary::<u8>()?).min(u.len());
    u.bytes(len).map(<[u8]>::to_vec)
}

fn check_keys(key: &[u8]) {
    if let Some((digest, rest)) = keys::take_digest(key) {
        let again = keys::blob(&digest);
        assert_eq!([&again[1..], rest].concat(), key);
    }
    if let Some((node, rest)) = keys::take_node(key) {
        let again = keys::node(node);
        assert_eq!([&again[1..], rest].concat(), key);
    }
}

/// Every read there is.
fn read(tree: &Tree) {
    let view = View::new(tree.clone());
    let _ = state::state_hash(tree);
    let _ = (
        view.applied_index(),
        view.cluster(),
        view.log_time_ms(),
        view.repositories(None, 3),
    );
    let _ = (
        view.nodes(),
        view.placements(),
        view.data_regions(),
        view.under_replicated(),
    );
    let _ = (view.accounts(), view.groups(), view.signing_keys());
    let ann: AccountName = NAMES[0].parse().unwrap();
    if let Ok(Some(account)) = view.account(&ann) {
        let credential = account.credentials(1).into_iter().next();
        let credential = credential.unwrap_or(CredentialId(String::new()));
        let who = Principal::new(Who::Account {
            name: ann,
            credential,
        });
        let _ = (view.administers(&who, 1), view.may_pull_under(&who, 1));
        let _ = view.rights(&who, &NAMES[1].parse().unwrap(), 1);
    }
    let _ = (view.ca(), view.join_token("a"));
    let _ = (
        view.policies(),
        view.policy_defaults(),
        view.copies_wanted(),
        view.policy(&Prefix::All),
    );
    for name in NAMES {
        let name: RepositoryName = name.parse().unwrap();
        let _ = (
            view.has_repository(&name),
            view.tags(&name, None, 3),
            view.tags(&name, Some("v1"), 3),
        );
        let _ = (
            view.ack_needed(&name),
            view.policy_set(&Prefix::from(&name)),
        );
        for tag in TAGS {
            let tag: Tag = tag.parse().unwrap();
            let _ = (view.tag(&name, &tag), view.manifest_by_tag(&name, &tag));
        }
        for blob in [0u8, 1].map(|n| Digest::of(Algorithm::Sha256, &[n])) {
            let _ = (
                view.manifest(&name, &blob),
                view.referrers(&name, &blob, &[], Some(&blob)),
                view.missed_by(&name, &blob, None, 3),
            );
            let _ = (
                view.is_blob_linked(&name, &blob),
                view.blob_unlinked_at(&name, &blob),
            );
            let _ = (
                view.blob(&blob),
                view.manifest_record(&blob),
                view.repositories_with(&blob, 3),
            );
            let _ = (
                view.blobs(Some(&blob), 3),
                view.held_by(NodeId(1), Some(&blob), 3),
            );
        }
    }
    let _ = (view.blobs(None, 3), view.held_by(NodeId(1), None, 3));
    let _ = (view.node(NodeId(1)), view.is_removed(NodeId(1)));
    let _ = (view.copies_walk(), view.is_any_missing());
}

fn trees(mut u: Unstructured) -> Result<()> {
    let kv = Kv::memory();
    let [state, log, meta] =
        ["state-0", "raft_log", "raft_meta"].map(|name| kv.tree(name).unwrap());
    while !u.is_empty() {
        let (tree, key) = match u.int_in_range(0..=9)? {
            0 => (&log, u.arbitrary::<u64>()?.to_be_bytes().to_vec()),
            1 => (
                &meta,
                u.choose(&["vote", "committed", "purged", "state_tree"])?
                    .as_bytes()
                    .to_vec(),
            ),
            2 => (&log, bytes(&mut u)?),
            _ => (&state, key(&mut u)?),
        };
        check_keys(&key);
        let mut batch = Batch::default();
        batch.put(key, bytes(&mut u)?);
        tree.apply(batch).unwrap();
    }
    read(&state);
    let _ = LogStore::open(&kv);
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    match RECORDS.get(usize::from(*kind)) {
        Some(record) => record(bytes),
        // Bytes that end early are the beginning of a case, no more.
        None => drop(trees(Unstructured::new(bytes))),
    }
});
