//! Any list of log entries on a state of three regions: applied alone or in groups they give the same
//! bytes, the hash is that of the bytes, and the invariants hold. Most commands are made from a small
//! alphabet, so that they meet each other; some are decoded from bytes as they are.

#![no_main]

#[path = "apply/accounts.rs"]
mod accounts;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use prost::bytes::Bytes;
use roadstead::metadata::kv::{Batch, Tree};
use roadstead::metadata::state::{self, Pending, StateHash};
use roadstead::metadata::{Kv, View, keys};
use roadstead::oci::{Algorithm, Digest};
use roadstead::proto::state::v1 as pb;
use roadstead::proto::state::v1::command::Body;
use roadstead::proto::state::v1::entry::Payload;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::LazyLock;

const LINEAGE: &str = "lineage";
const MOST_ENTRIES: usize = 32;

fn digest(n: u8) -> Digest {
    Digest::of(Algorithm::Sha256, &[n])
}

fn name(u: &mut Unstructured) -> Result<String> {
    u.choose(&["a", "a/b", "b", "BAD"])
        .map(|name| (*name).to_owned())
}

fn some<T>(
    u: &mut Unstructured,
    mut one: impl FnMut(&mut Unstructured) -> Result<T>,
) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=3)?).map(|_| one(u)).collect()
}

fn tag(u: &mut Unstructured) -> Result<String> {
    u.choose(&["v1", "v2", "latest", "-bad"])
        .map(|tag| (*tag).to_owned())
}

fn blob(u: &mut Unstructured) -> Result<String> {
    Ok(digest(u.int_in_range(0..=5)?).to_string())
}

fn manifest(u: &mut Unstructured) -> Result<u8> {
    u.int_in_range(100..=103)
}

fn node(u: &mut Unstructured) -> Result<u64> {
    u.int_in_range(1..=4)
}

fn receipt(u: &mut Unstructured, blob: u8) -> Result<pb::Receipt> {
    Ok(pb::Receipt {
        digest: digest(blob).to_string(),
        size: u64::from(blob),
        node: node(u)?,
        boot: u.int_in_range(1..=2)?,
        expires_at_ms: *u.choose(&[1_000_000, 0, u64::MAX])?,
        lineage: u
            .choose(&[LINEAGE, LINEAGE, LINEAGE, "another"])?
            .to_string(),
    })
}

fn precondition(u: &mut Unstructured) -> Result<pb::Precondition> {
    let named = |u: &mut Unstructured| {
        Ok(match u.arbitrary::<bool>()? {
            true => "*".to_owned(),
            false => digest(manifest(u)?).to_string(),
        })
    };
    Ok(pb::Precondition {
        if_match: some(u, named)?,
        if_none_match: some(u, named)?,
    })
}

/// A manifest always names the same blobs, as its digest makes it.
fn put(u: &mut Unstructured) -> Result<pb::PutManifest> {
    let m = manifest(u)?;
    let blobs: BTreeSet<u8> = [m - 99, (m - 98) % 4 + 1].into();
    let (mut receipts, mut absent) = (Vec::new(), Vec::new());
    for blob in &blobs {
        if u.ratio(1, 4)? {
            absent.push(digest(*blob).to_string());
        } else if u.ratio(3, 4)? {
            receipts.extend([1, 2].map(|node| pb::Receipt {
                digest: digest(*blob).to_string(),
                size: u64::from(*blob),
                node,
                boot: 1,
                expires_at_ms: u64::MAX,
                lineage: LINEAGE.into(),
            }));
        } else {
            receipts.push(receipt(u, *blob)?);
        }
    }
    let of = |n: &u8| pb::BlobRef {
        digest: digest(*n).to_string(),
        size: u64::from(*n),
    };
    Ok(pb::PutManifest {
        repository: name(u)?,
        digest: digest(m).to_string(),
        media_type: "type".into(),
        bytes: Bytes::copy_from_slice(&[m]),
        tags: some(u, tag)?,
        blobs: blobs.iter().map(of).collect(),
        children: match m {
            103 => vec![digest(100).to_string(), digest(102).to_string()],
            102 => vec![digest(101).to_string()],
            _ => Vec::new(),
        },
        subject: if m == 103 {
            digest(100).to_string()
        } else {
            String::new()
        },
        receipts,
        absent,
        again: u.ratio(1, 8)?,
        precondition: if u.ratio(1, 4)? {
            Some(precondition(u)?)
        } else {
            None
        },
        ..Default::default()
    })
}

fn policy(u: &mut Unstructured) -> Result<pb::PolicyRecord> {
    Ok(pb::PolicyRecord {
        ack: u.choose(&[None, Some(1), Some(3), Some(9)])?.to_owned(),
        copies: u.choose(&[None, Some(1), Some(7), Some(0)])?.to_owned(),
        sparse: u.arbitrary()?,
        immutable: u
            .choose(&[
                None,
                Some("true"),
                Some("false"),
                Some("v*"),
                Some("?1,l*"),
                Some("["),
            ])?
            .map(str::to_owned),
        public: u.arbitrary()?,
    })
}

fn body(u: &mut Unstructured) -> Result<Body> {
    if u.ratio(1, 4)? {
        return accounts::body(u);
    }
    Ok(match u.int_in_range(0..=30)? {
        0 => Body::DeleteManifest(pb::DeleteManifest {
            repository: name(u)?,
            digest: digest(manifest(u)?).to_string(),
            precondition: if u.ratio(1, 4)? {
                Some(precondition(u)?)
            } else {
                None
            },
            ..Default::default()
        }),
        1 => Body::DeleteTag(pb::DeleteTag {
            repository: name(u)?,
            tag: tag(u)?,
            precondition: if u.ratio(1, 4)? {
                Some(precondition(u)?)
            } else {
                None
            },
            ..Default::default()
        }),
        2 => Body::DeleteBlob(pb::DeleteBlob {
            repository: name(u)?,
            digest: blob(u)?,
            ..Default::default()
        }),
        3 => {
            let receipts = some(u, |u| u.int_in_range(0..=5).and_then(|n| receipt(u, n)))?;
            Body::Hold(pb::Hold { receipts })
        }
        4 => Body::Lost(pb::Lost {
            digests: some(u, blob)?,
        }),
        5 => Body::Cached(pb::Cached {
            digests: some(u, blob)?,
        }),
        6 => Body::Gone(pb::Gone { node: node(u)? }),
        7 => Body::Back(pb::Back { node: node(u)? }),
        8 => {
            let acknowledged = some(u, |u| {
                Ok(pb::Acknowledged {
                    node: node(u)?,
                    index: u.arbitrary()?,
                })
            })?;
            Body::Tick(pb::Tick {
                term: u.int_in_range(0..=3)?,
                elapsed_ms: u.arbitrary()?,
                acknowledged,
            })
        }
        9 => Body::Listed(pb::Listed {}),
        10 => Body::Boot(pb::Boot {
            version: "v".into(),
            last_log: u.arbitrary()?,
        }),
        11 => Body::SetPolicy(pb::SetPolicy {
            prefix: prefix(u)?,
            set: Some(policy(u)?),
        }),
        12 => {
            let key = |u: &mut Unstructured| {
                u.choose(&["ack", "copies", "sparse", "immutable", "bad"])
                    .map(|k| (*k).to_owned())
            };
            Body::UnsetPolicy(pb::UnsetPolicy {
                prefix: prefix(u)?,
                keys: some(u, key)?,
            })
        }
        13 => Body::CreateCluster(pb::CreateCluster::default()),
        14 => Body::GiveUp(pb::GiveUp {}),
        15 => Body::Probe(pb::Probe {}),
        16 => Body::CountCopies(pb::CountCopies { prefix: prefix(u)? }),
        17 => Body::PutCa(pb::PutCa {
            certificate: vec![u.int_in_range(0..=2)?].into(),
            key: "k".into(),
        }),
        18 => Body::CreateJoinToken(pb::CreateJoinToken {
            id: name(u)?,
            region: name(u)?,
            secret_hash: vec![0; u.int_in_range(31..=32)?].into(),
            expires_at_ms: u.arbitrary()?,
            now_ms: u.arbitrary()?,
            ..Default::default()
        }),
        19 => Body::UseJoinToken(pb::UseJoinToken {
            id: name(u)?,
            secret_hash: vec![0; u.int_in_range(31..=32)?].into(),
            key_hash: vec![u.int_in_range(0..=2)?].into(),
            node: node(u)?,
            region: name(u)?,
            now_ms: u.arbitrary()?,
        }),
        20 => Body::RevokeJoinToken(pb::RevokeJoinToken { id: name(u)? }),
        _ => Body::PutManifest(put(u)?),
    })
}

fn prefix(u: &mut Unstructured) -> Result<String> {
    match u.arbitrary()? {
        true => Ok("*".to_owned()),
        false => name(u),
    }
}

fn membership(u: &mut Unstructured) -> Result<pb::Membership> {
    let nodes = (1..=4).filter_map(|id| match u.int_in_range(0..=4) {
        Ok(0) => None,
        Ok(role) => Some(Ok((
            id,
            pb::Node {
                region: format!("r{}", id % 3),
                peer: String::new(),
                role,
            },
        ))),
        Err(error) => Some(Err(error)),
    });
    Ok(pb::Membership {
        configs: Vec::new(),
        nodes: nodes.collect::<Result<_>>()?,
    })
}

struct Replica {
    tree: Tree,
    /// Entries before those of the log.
    began_at: u64,
    log: Vec<pb::Entry>,
    seqs: BTreeMap<u64, u64>,
    /// All commands were of the alphabet: what manifests name is known.
    is_known: bool,
}

impl Replica {
    /// Three nodes in three regions, booted and listed.
    fn new() -> Replica {
        let tree = Kv::memory().tree("state").unwrap();
        let mut replica = Replica {
            tree,
            began_at: 0,
            log: Vec::new(),
            seqs: BTreeMap::new(),
            is_known: true,
        };
        let node = |id: u64| pb::Node {
            region: format!("r{id}"),
            peer: String::new(),
            role: pb::Role::Voter.into(),
        };
        let nodes = (1..=3).map(|id| (id, node(id))).collect();
        replica.entry(Payload::Membership(pb::Membership {
            configs: Vec::new(),
            nodes,
        }));
        for id in 1..=3 {
            replica.by(id, Body::Boot(pb::Boot::default()));
            replica.by(id, Body::Listed(pb::Listed {}));
        }
        let create = pb::CreateCluster {
            cluster_id: "c".into(),
            lineage: LINEAGE.into(),
            ack: 2,
            copies: 3,
        };
        replica.by(1, Body::CreateCluster(create));
        replica
    }

    /// The same, from its bytes.
    fn ready() -> Replica {
        static READY: LazyLock<(Pairs, u64, BTreeMap<u64, u64>)> = LazyLock::new(|| {
            let replica = Replica::new();
            (bytes(&replica.tree), replica.log.len() as u64, replica.seqs)
        });
        let (pairs, began_at, seqs) = &*READY;
        Replica {
            tree: tree_of(pairs),
            began_at: *began_at,
            log: Vec::new(),
            seqs: seqs.clone(),
            is_known: true,
        }
    }

    fn next(&mut self, node: u64, body: Body) -> pb::Command {
        let seq = self.seqs.entry(node).or_insert(0);
        *seq += 1;
        let request = Some(pb::RequestId {
            node,
            boot: 1,
            seq: *seq,
        });
        pb::Command {
            version: 4,
            request,
            settled: *seq,
            given_up: Vec::new(),
            body: Some(body),
        }
    }

    fn by(&mut self, node: u64, body: Body) {
        let command = self.next(node, body);
        self.entry(Payload::Command(command));
    }

    fn entry(&mut self, payload: Payload) {
        let id = pb::LogId {
            term: 1,
            node: 1,
            index: self.began_at + self.log.len() as u64,
        };
        let entry = pb::Entry {
            id: Some(id),
            payload: Some(payload),
        };
        // Only an entry of a newer release ends a node, and such a one is not written to this log.
        match state::apply(&Pending::new(&self.tree), &entry) {
            Ok(applied) => {
                self.tree.apply(applied.batch).unwrap();
                self.log.push(entry);
            }
            Err(state::ApplyError::Unknown { index }) => assert_eq!(index, id.index),
            Err(error) => panic!("{error:?}"),
        }
    }

    fn add(&mut self, u: &mut Unstructured) -> Result<()> {
        match u.int_in_range(0..=19)? {
            0 => self.entry(Payload::Membership(membership(u)?)),
            1 => self.entry(Payload::Blank(pb::Blank {})),
            2 => {
                let len = usize::from(u.arbitrary::<u8>()?).min(u.len());
                if let Ok(command) = pb::Command::decode(u.bytes(len)?) {
                    self.is_known = false;
                    self.entry(Payload::Command(command));
                }
            }
            3 => {
                let (from, body) = (node(u)?, body(u)?);
                let mut command = self.next(from, body);
                command.request = Some(pb::RequestId {
                    node: from,
                    boot: u.int_in_range(0..=2)?,
                    seq: u.int_in_range(0..=9)?,
                });
                command.settled = u.int_in_range(0..=9)?;
                command.given_up = some(u, |u| u.int_in_range(0..=9))?;
                command.version = u.int_in_range(0..=3)?;
                self.entry(Payload::Command(command));
            }
            _ => {
                let (from, body) = (node(u)?, body(u)?);
                self.by(from, body);
            }
        }
        Ok(())
    }
}

type Pairs = Vec<(Bytes, Bytes)>;

fn tree_of(pairs: &Pairs) -> Tree {
    let tree = Kv::memory().tree("state").unwrap();
    let mut batch = Batch::default();
    pairs
        .iter()
        .for_each(|(key, value)| batch.put(key.to_vec(), value.clone()));
    tree.apply(batch).unwrap();
    tree
}

fn bytes(tree: &Tree) -> Pairs {
    tree.page(Bound::Unbounded, Bound::Unbounded, usize::MAX)
        .unwrap()
}

/// I2: references, links and wanted copies are those of the manifests that repositories hold.
fn check_references(pairs: &[(Bytes, Bytes)], view: &View) {
    let (mut refs, mut links, mut holding) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut wanted: BTreeMap<Digest, BTreeMap<u32, u32>> = BTreeMap::new();
    let record = |manifest: &Digest| view.manifest_record(manifest).unwrap().expect("it is held");
    for (key, value) in pairs {
        let Some((name, manifest)) = keys::take_repository_manifest(key) else {
            continue;
        };
        let held = pb::RepositoryManifestRecord::decode(value.clone()).unwrap();
        *holding.entry(manifest.clone()).or_insert(0) += 1;
        for blob in record(&manifest).blobs {
            if held.absent.contains(&blob.digest) {
                continue;
            }
            let blob: Digest = blob.digest.parse().unwrap();
            *links.entry((name, blob.clone())).or_insert(0u32) += 1;
            *wanted
                .entry(blob.clone())
                .or_default()
                .entry(held.copies)
                .or_default() += 1;
            refs.entry(blob)
                .or_insert_with(BTreeSet::new)
                .insert(manifest.clone());
        }
    }
    for (manifest, count) in holding {
        assert_eq!(record(&manifest).repositories, count);
    }
    for (key, value) in pairs.iter().filter(|(key, _)| key[0] == b'k') {
        let (blob, name) = keys::take_digest(&key[1..]).unwrap();
        let name = std::str::from_utf8(name).unwrap();
        let count = links.remove(&(name, blob)).unwrap_or(0);
        assert_eq!(value.as_ref(), count.to_be_bytes());
    }
    assert!(links.is_empty());
    let mut placed = BTreeMap::new();
    for (digest, blob) in view.blobs(None, usize::MAX).unwrap() {
        let naming = refs
            .remove(&digest)
            .map_or(0, |manifests| manifests.len() as u64);
        assert_eq!(blob.refs, naming, "{digest}");
        assert!(blob.refs > 0 || blob.holders.is_empty(), "A2");
        let key = keys::blob(&digest);
        let (_, stored) = pairs.iter().find(|(found, _)| *found == key).unwrap();
        let stored = pb::BlobRecord::decode(stored.clone()).unwrap();
        let mut asked = wanted.remove(&digest).unwrap_or_default();
        let by_default = asked.remove(&0).is_some();
        let counted: BTreeMap<u32, u32> =
            stored.wanted.iter().map(|w| (w.copies, w.links)).collect();
        assert_eq!(counted, asked, "{digest}");
        assert!(!(by_default && stored.only_by_prefix), "{digest}");
        if blob.refs > 0 {
            let counted: Vec<_> = blob
                .holders
                .iter()
                .filter(|h| h.counted)
                .map(|h| h.node)
                .collect();
            *placed
                .entry(keys::placement(&counted, blob.wanted))
                .or_insert(0) += 1;
        }
    }
    assert!(refs.is_empty());
    let placements = view.placements().unwrap().into_iter();
    let recorded = placements.map(|p| (keys::placement(&p.holders, p.wanted), p.blobs));
    assert_eq!(recorded.collect::<BTreeMap<_, _>>(), placed);
}

fn check(replica: &Replica) {
    let view = View::new(replica.tree.clone());
    let pairs = bytes(&replica.tree);
    let mut hash = StateHash::default();
    pairs.iter().for_each(|(key, value)| hash.add(key, value));
    assert_eq!(
        view.state_hash().unwrap().1,
        hash.as_bytes(),
        "incremental hash"
    );
    // I5: a tag names a manifest of its repository.
    for name in view.repositories(None, usize::MAX).unwrap() {
        let name = name.parse().unwrap();
        for tag in view.tags(&name, None, usize::MAX).unwrap() {
            assert!(
                view.manifest_by_tag(&name, &tag.parse().unwrap())
                    .unwrap()
                    .is_some()
            );
        }
    }
    if replica.is_known {
        check_references(&pairs, &view);
    }
}

fn check_groups(replica: &Replica, group: usize) {
    let tree = Replica::ready().tree;
    for entries in replica.log.chunks(group) {
        let mut pending = Pending::new(&tree);
        for entry in entries {
            let applied = state::apply(&pending, entry).unwrap();
            pending.add(applied.batch);
        }
        tree.apply(pending.into_batch()).unwrap();
    }
    assert_eq!(bytes(&tree), bytes(&replica.tree));
}

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let group = u.int_in_range(1..=12).unwrap_or(1);
    let mut replica = Replica::ready();
    let mut time = 0;
    while !u.is_empty() && replica.log.len() < MOST_ENTRIES {
        // Bytes that end early are the beginning of a case, no more.
        let _ = replica.add(&mut u);
        let now = View::new(replica.tree.clone()).log_time_ms().unwrap();
        assert!(now >= time, "I8");
        time = now;
    }
    check(&replica);
    check_groups(&replica, group);
});
