//! Any list of commands gives the same bytes on every replica, and keeps the invariants.

use super::*;
use crate::policy::{Prefix, Wanted};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

/// Of a manifest of the alphabet, as its digest makes it: an index of an index, and of an image.
fn children(m: u8) -> Vec<u8> {
    match m {
        103 => vec![100, 102],
        102 => vec![101],
        _ => Vec::new(),
    }
}

fn with_children(mut put: pb::PutManifest, m: u8) -> pb::PutManifest {
    let named = children(m).into_iter().map(digest);
    put.children = named.map(|child| child.to_string()).collect();
    put
}

fn any_body() -> impl Strategy<Value = pb::command::Body> {
    let repository = || proptest::sample::select(vec!["a", "a/b", "BAD"]);
    let tags = || proptest::sample::subsequence(vec!["v1", "v2", "-bad"], 0..3);
    let blobs = || proptest::sample::subsequence(vec![1u8, 2, 3, 4], 0..4);
    let manifest = || 100u8..104;
    let node = || 1u64..5;
    let prefix = || proptest::sample::select(vec!["*", "a", "a/b", "BAD"]);
    let keys =
        || proptest::sample::subsequence(vec!["ack", "copies", "sparse", "immutable", "bad"], 0..3);
    let number = || proptest::option::of(0u32..9);
    let globs = || {
        proptest::option::of(proptest::sample::select(vec![
            "true", "false", "v*", "[", "?1,x",
        ]))
    };
    let policy = move || {
        (number(), number(), any::<[Option<bool>; 2]>(), globs()).prop_map(
            |(ack, copies, [sparse, public], globs)| pb::PolicyRecord {
                ack,
                copies,
                sparse,
                immutable: globs.map(str::to_owned),
                public,
            },
        )
    };
    prop_oneof![
        4 => (repository(), manifest(), tags(), any::<bool>()).prop_map(|(r, m, t, cut)| {
            // A manifest always names the same blobs, as its digest makes it.
            let mut put = push(r, m, &t, &[m - 99, (m - 98) % 4 + 1]);
            if cut { put.receipts.pop(); }
            self::put(with_children(put, m))
        }),
        2 => (repository(), manifest(), tags(), any::<[bool; 2]>()).prop_map(|(r, m, t, is_absent)| {
            let named = [m - 99, (m - 98) % 4 + 1];
            let mut put = push(r, m, &t, &named);
            put.absent = named.iter().zip(is_absent).filter(|(_, absent)| *absent).map(|(n, _)| digest(*n).to_string()).collect();
            put.receipts.retain(|r| !put.absent.contains(&r.digest));
            self::put(with_children(put, m))
        }),
        2 => (prefix(), policy()).prop_map(|(p, set)| pb::command::Body::SetPolicy(pb::SetPolicy { prefix: p.into(), set: Some(set) })),
        1 => prefix().prop_map(|p| pb::command::Body::CountCopies(pb::CountCopies { prefix: p.into() })),
        1 => (prefix(), keys()).prop_map(|(p, keys)| pb::command::Body::UnsetPolicy(pb::UnsetPolicy { prefix: p.into(), keys: keys.iter().map(|k| (*k).to_owned()).collect() })),
        1 => (repository(), manifest()).prop_map(|(r, m)| pb::command::Body::DeleteManifest(pb::DeleteManifest { repository: r.into(), digest: digest(m).to_string(), ..Default::default() })),
        1 => (repository(), tags()).prop_map(|(r, t)| pb::command::Body::DeleteTag(pb::DeleteTag { repository: r.into(), tag: t.first().unwrap_or(&"").to_string(), ..Default::default() })),
        1 => (repository(), 0u8..6).prop_map(|(r, b)| pb::command::Body::DeleteBlob(pb::DeleteBlob { repository: r.into(), digest: digest(b).to_string(), ..Default::default() })),
        1 => (blobs(), node()).prop_map(|(b, n)| pb::command::Body::Hold(pb::Hold { receipts: b.iter().map(|b| receipt(&digest(*b), u64::from(*b), n)).collect() })),
        1 => blobs().prop_map(|b| pb::command::Body::Lost(pb::Lost { digests: b.iter().map(|b| digest(*b).to_string()).collect() })),
        1 => blobs().prop_map(|b| pb::command::Body::Cached(pb::Cached { digests: b.iter().map(|b| digest(*b).to_string()).collect() })),
        1 => node().prop_map(|n| pb::command::Body::Gone(pb::Gone { node: n })),
        1 => (0u64..3, any::<u64>()).prop_map(|(term, elapsed_ms)| pb::command::Body::Tick(pb::Tick { term, elapsed_ms: elapsed_ms % 10_000, acknowledged: vec![pb::Acknowledged { node: term, index: elapsed_ms % 9 }] })),
        1 => Just(super::joining::put_ca("k")),
        1 => (0u64..3, 0u64..9).prop_map(|(n, time)| super::joining::any_token(n, time)),
        1 => Just(pb::command::Body::Listed(pb::Listed {})),
        4 => super::any_account::any_body(),
        1 => any::<String>().prop_map(|text| pb::command::Body::PutManifest(pb::PutManifest { repository: text.clone(), digest: text.clone(), subject: text, ..Default::default() })),
    ]
}

fn check_invariants(replica: &Replica) {
    let view = replica.view();
    let mut hash = StateHash::default();
    for (key, value) in replica.bytes() {
        hash.add(&key, &value);
    }
    assert_eq!(
        view.state_hash().unwrap().1,
        hash.as_bytes(),
        "incremental hash"
    );
    super::any_account::check(replica);
    // I2: references and links recomputed from what the repositories hold.
    let mut refs: BTreeMap<Digest, u64> = BTreeMap::new();
    let mut links: BTreeMap<(&str, Digest), u32> = BTreeMap::new();
    let mut wanted: BTreeMap<Digest, BTreeMap<u32, u32>> = BTreeMap::new();
    let mut indexes = BTreeSet::new();
    for m in 100u8..104 {
        let record = view.manifest_record(&digest(m)).unwrap();
        let blobs: Vec<Digest> = record
            .iter()
            .flat_map(|r| &r.blobs)
            .map(|b| b.digest.parse().unwrap())
            .collect();
        let mut linked = BTreeSet::new();
        let mut holding = 0;
        for repository in ["a", "a/b"] {
            let key = keys::repository_manifest(repository, &digest(m));
            let Some(bytes) = replica.tree.get(&key).unwrap() else {
                continue;
            };
            holding += 1;
            let named = children(m).into_iter();
            indexes.extend(named.map(|child| keys::index(repository, &digest(child), &digest(m))));
            let held: pb::RepositoryManifestRecord = decode("record", &bytes).unwrap();
            for blob in &blobs {
                let missed = view
                    .missed_by(&name(repository), blob, None, 9)
                    .unwrap()
                    .contains(&digest(m));
                assert_eq!(missed, held.absent.contains(&blob.to_string()));
                if !missed {
                    linked.insert(blob.clone());
                    *links.entry((repository, blob.clone())).or_default() += 1;
                    *wanted
                        .entry(blob.clone())
                        .or_default()
                        .entry(held.copies)
                        .or_default() += 1;
                }
            }
        }
        assert_eq!(record.map_or(0, |record| record.repositories), holding);
        for blob in linked {
            *refs.entry(blob).or_default() += 1;
        }
    }
    let noted = replica.bytes().into_iter().map(|(key, _)| key.to_vec());
    let noted: BTreeSet<Vec<u8>> = noted.filter(|key| key.starts_with(b"e")).collect();
    assert_eq!(noted, indexes, "which indexes name a manifest");
    for repository in ["a", "a/b"] {
        for n in 1..=4 {
            let stored = replica
                .tree
                .get(&keys::link(repository, &digest(n)))
                .unwrap();
            let count = links
                .get(&(repository, digest(n)))
                .map(|n| n.to_be_bytes().to_vec());
            assert_eq!(
                stored.map(|bytes| bytes.to_vec()),
                count,
                "{repository} {n}"
            );
        }
    }
    let mut placed: BTreeMap<(Vec<NodeId>, Wanted), u64> = BTreeMap::new();
    for (digest, blob) in view.blobs(None, 100).unwrap() {
        assert_eq!(
            blob.refs,
            refs.get(&digest).copied().unwrap_or(0),
            "{digest}"
        );
        assert!(blob.refs > 0 || blob.holders.is_empty(), "A2");
        let stored = replica.tree.get(&keys::blob(&digest)).unwrap().unwrap();
        let stored: pb::BlobRecord = decode("record", &stored).unwrap();
        let mut asked = wanted.remove(&digest).unwrap_or_default();
        let by_default = asked.remove(&0).is_some();
        let counted: BTreeMap<u32, u32> =
            stored.wanted.iter().map(|w| (w.copies, w.links)).collect();
        assert_eq!(counted, asked, "{digest}");
        assert!(!(by_default && stored.only_by_prefix), "{digest}");
        if blob.refs > 0 {
            let counted = blob.holders.iter().filter(|h| h.counted).map(|h| h.node);
            *placed.entry((counted.collect(), blob.wanted)).or_default() += 1;
        }
    }
    assert!(wanted.is_empty(), "{wanted:?}");
    let placements = view.placements().unwrap();
    let recorded = placements
        .into_iter()
        .map(|p| ((p.holders, p.wanted), p.blobs));
    assert_eq!(recorded.collect::<BTreeMap<_, _>>(), placed);
    // I5: a tag names a manifest of its repository.
    for repository in view.repositories(None, 100).unwrap() {
        let repository = name(&repository);
        for tag in view.tags(&repository, None, 100).unwrap() {
            assert!(
                view.manifest_by_tag(&repository, &tag.parse().unwrap())
                    .unwrap()
                    .is_some()
            );
        }
    }
}

/// Tags that no command may move or delete as things are.
fn immutable_tags(replica: &Replica) -> BTreeMap<(&'static str, &'static str), Digest> {
    let view = replica.view();
    let mut held = BTreeMap::new();
    for repository in ["a", "a/b"] {
        let policy = view.policy(&Prefix::from(&name(repository))).unwrap();
        for text in ["v1", "v2"] {
            let tag = text.parse().unwrap();
            if let Some(digest) = view.tag(&name(repository), &tag).unwrap()
                && policy.immutable.value.holds(&tag)
            {
                held.insert((repository, text), digest);
            }
        }
    }
    held
}

/// Manifests that such a tag names, itself or through indexes that are there.
fn kept(replica: &Replica) -> BTreeSet<(&'static str, u8)> {
    let view = replica.view();
    let mut kept = BTreeSet::new();
    for ((repository, _), named) in immutable_tags(replica) {
        let mut next: Vec<u8> = (100..104).filter(|m| digest(*m) == named).collect();
        while let Some(m) = next.pop() {
            if view.has_manifest(&name(repository), &digest(m)).unwrap() {
                kept.insert((repository, m));
                next.extend(children(m));
            }
        }
    }
    kept
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(128))]

    #[test]
    fn any_commands_in_any_groups_give_the_same_bytes_and_keep_the_invariants(
        bodies in proptest::collection::vec((1u64..4, any_body()), 0..40),
        group in 1usize..12,
    ) {
        let mut replica = Replica::new();
        let mut time = 0;
        for (node, body) in bodies {
            let (held, kept) = (immutable_tags(&replica), kept(&replica));
            replica.by(node, body);
            for ((repository, tag), names) in held {
                let now = replica.view().tag(&name(repository), &tag.parse().unwrap()).unwrap();
                assert_eq!(now, Some(names), "{repository}:{tag} is immutable");
            }
            for (repository, m) in kept {
                let is_there = replica.view().has_manifest(&name(repository), &digest(m)).unwrap();
                assert!(is_there, "{m} of {repository} is part of what is immutable");
            }
            let now = replica.view().log_time_ms().unwrap();
            assert!(now >= time, "I8");
            time = now;
        }
        check_invariants(&replica);
        let again = Kv::memory().tree("state").unwrap();
        for entries in replica.log.chunks(group) {
            let mut pending = Pending::new(&again);
            for entry in entries {
                let applied = apply(&pending, entry).unwrap();
                pending.add(applied.batch);
            }
            again.apply(pending.into_batch()).unwrap();
        }
        assert_eq!(again.page(Bound::Unbounded, Bound::Unbounded, usize::MAX).unwrap(), replica.bytes());
    }
}
