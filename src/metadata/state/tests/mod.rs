//! What a command means, and that it means the same everywhere.

use super::super::kv::{Kv, Tree};
use super::super::query::View;
use super::*;
use crate::oci::{Algorithm, RepositoryName};
use crate::topology::Role;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

mod accounts;
mod any_account;
mod indexes;
mod joining;
mod policies;
mod properties;

const LINEAGE: &str = "lineage";

fn digest(n: u8) -> Digest {
    Digest::of(Algorithm::Sha256, &[n])
}

/// A state of its own, and the log that made it.
struct Replica {
    tree: Tree,
    log: Vec<pb::Entry>,
    seqs: BTreeMap<u64, u64>,
}

impl Replica {
    /// Three data nodes in three regions, booted and listed.
    fn new() -> Replica {
        let tree = Kv::memory().tree("state").unwrap();
        let mut replica = Replica {
            tree,
            log: Vec::new(),
            seqs: BTreeMap::new(),
        };
        let node = |id: u64| pb::Node {
            region: format!("r{id}"),
            peer: String::new(),
            role: pb::Role::from(Role::Voter).into(),
        };
        let membership = pb::Membership {
            configs: vec![pb::VoterSet {
                nodes: vec![1, 2, 3],
            }],
            nodes: (1..=3).map(|id| (id, node(id))).collect(),
        };
        replica.entry(pb::entry::Payload::Membership(membership));
        for id in 1..=3 {
            replica.by(id, pb::command::Body::Boot(pb::Boot::default()));
        }
        let create = pb::CreateCluster {
            cluster_id: "c".into(),
            lineage: LINEAGE.into(),
            ack: 2,
            copies: 3,
        };
        replica.by(1, pb::command::Body::CreateCluster(create));
        for id in 1..=3 {
            replica.by(id, pb::command::Body::Listed(pb::Listed {}));
        }
        replica
    }

    fn entry(&mut self, payload: pb::entry::Payload) -> Option<pb::Outcome> {
        let id = pb::LogId {
            term: 1,
            node: 1,
            index: self.log.len() as u64,
        };
        let entry = pb::Entry {
            id: Some(id),
            payload: Some(payload),
        };
        self.log.push(entry.clone());
        let applied = apply(&Pending::new(&self.tree), &entry).unwrap();
        self.tree.apply(applied.batch).unwrap();
        applied.outcome
    }

    fn command(&mut self, command: pb::Command) -> pb::Outcome {
        self.entry(pb::entry::Payload::Command(command)).unwrap()
    }

    fn next(&mut self, node: u64, body: pb::command::Body) -> pb::Command {
        let seq = self.seqs.entry(node).or_insert(0);
        *seq += 1;
        let request = Some(pb::RequestId {
            node,
            boot: 1,
            seq: *seq,
        });
        pb::Command {
            version: COMMAND_VERSION,
            request,
            settled: *seq,
            given_up: Vec::new(),
            body: Some(body),
        }
    }

    fn by(&mut self, node: u64, body: pb::command::Body) -> pb::Outcome {
        let command = self.next(node, body);
        self.command(command)
    }

    fn view(&self) -> View {
        View::new(self.tree.clone())
    }

    fn bytes(&self) -> Vec<(Bytes, Bytes)> {
        self.tree
            .page(Bound::Unbounded, Bound::Unbounded, usize::MAX)
            .unwrap()
    }
}

fn receipt(blob: &Digest, size: u64, node: u64) -> pb::Receipt {
    pb::Receipt {
        digest: blob.to_string(),
        size,
        node,
        boot: 1,
        expires_at_ms: 1_000_000,
        lineage: LINEAGE.into(),
    }
}

/// A push of manifest `m` with blobs, held by two nodes each.
fn push(repository: &str, m: u8, tags: &[&str], blobs: &[u8]) -> pb::PutManifest {
    let blob = |n: &u8| pb::BlobRef {
        digest: digest(*n).to_string(),
        size: u64::from(*n),
    };
    pb::PutManifest {
        repository: repository.into(),
        digest: digest(m).to_string(),
        media_type: "type".into(),
        bytes: Bytes::copy_from_slice(&[m]),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        blobs: blobs.iter().map(blob).collect(),
        receipts: blobs
            .iter()
            .flat_map(|n| [1, 2].map(|node| receipt(&digest(*n), u64::from(*n), node)))
            .collect(),
        ..Default::default()
    }
}

fn put(push: pb::PutManifest) -> pb::command::Body {
    pb::command::Body::PutManifest(push)
}

fn is_done(outcome: &pb::Outcome) -> bool {
    matches!(outcome.result, Some(pb::outcome::Result::Done(_)))
}

fn reason(outcome: &pb::Outcome) -> pb::Reason {
    match &outcome.result {
        Some(pb::outcome::Result::Refused(refused)) => refused.reason(),
        other => panic!("not refused: {other:?}"),
    }
}

fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

#[test]
fn a_push_is_all_there_and_a_delete_takes_all_away() {
    let mut replica = Replica::new();
    let before = replica.bytes();
    assert!(is_done(
        &replica.by(1, put(push("a/b", 100, &["v1", "v2"], &[1, 2])))
    ));
    let view = replica.view();
    let repository = name("a/b");
    assert_eq!(
        view.tag(&repository, &"v1".parse().unwrap()).unwrap(),
        Some(digest(100))
    );
    assert_eq!(view.tags(&repository, None, 10).unwrap(), ["v1", "v2"]);
    let blob = view.blob(&digest(1)).unwrap().unwrap();
    assert_eq!((blob.refs, blob.size, blob.holders.len()), (1, 1, 2));
    assert!(view.is_blob_linked(&repository, &digest(2)).unwrap());
    assert!(!view.is_blob_linked(&name("other"), &digest(2)).unwrap());
    assert_eq!(view.under_replicated().unwrap(), 2);
    let delete = pb::DeleteManifest {
        repository: "a/b".into(),
        digest: digest(100).to_string(),
        ..Default::default()
    };
    assert!(is_done(
        &replica.by(2, pb::command::Body::DeleteManifest(delete.clone()))
    ));
    assert_eq!(
        reason(&replica.by(2, pb::command::Body::DeleteManifest(delete))),
        pb::Reason::ManifestUnknown
    );
    let view = replica.view();
    assert!(!view.has_repository(&repository).unwrap());
    assert_eq!(view.blob(&digest(1)).unwrap().unwrap().holders, []);
    assert_eq!(view.placements().unwrap().len(), 0);
    // What is left: blobs at zero references, the history of the tags, the bookkeeping of requests.
    assert!(replica.bytes().len() < before.len() + 8);
}

#[test]
fn a_push_needs_receipts_that_count_from_enough_regions() {
    let mut replica = Replica::new();
    let mut short = push("a", 100, &["v"], &[1]);
    short.receipts.truncate(1);
    let need =
        |outcome: pb::Outcome| matches!(outcome.result, Some(pb::outcome::Result::NeedReceipts(_)));
    let command = replica.next(1, put(short.clone()));
    assert!(need(replica.command(command.clone())));
    for change in [
        |r: &mut pb::Receipt| r.boot = 7,
        |r: &mut pb::Receipt| r.expires_at_ms = 0,
        |r: &mut pb::Receipt| r.lineage = "old".into(),
        |r: &mut pb::Receipt| r.node = 9,
        |r: &mut pb::Receipt| r.size = 5,
    ] {
        let mut bad = push("a", 100, &["v"], &[1]);
        change(&mut bad.receipts[0]);
        assert!(need(replica.by(1, put(bad))));
    }
    // Renewed, under the same request id.
    let renewed = pb::Command {
        body: Some(put(push("a", 100, &["v"], &[1]))),
        settled: 0,
        ..command
    };
    assert_eq!(
        reason(&replica.command(renewed)),
        pb::Reason::RequestSettled,
        "settled by the later ones"
    );
    assert!(is_done(&replica.by(1, put(push("a", 100, &["v"], &[1])))));
}

#[test]
fn a_request_is_applied_once_and_answered_the_same() {
    let mut replica = Replica::new();
    let command = replica.next(1, put(push("a", 100, &["v"], &[1])));
    let first = replica.command(command.clone());
    let delete = pb::DeleteTag {
        repository: "a".into(),
        tag: "v".into(),
        ..Default::default()
    };
    let mut later = replica.next(1, pb::command::Body::DeleteTag(delete));
    later.settled = 1;
    assert!(is_done(&replica.command(later)));
    assert_eq!(replica.command(command), first);
    assert!(
        replica
            .view()
            .tags(&name("a"), None, 10)
            .unwrap()
            .is_empty(),
        "the tag did not come back"
    );
    let mut given_up = replica.next(1, pb::command::Body::GiveUp(pb::GiveUp {}));
    given_up.settled = 1;
    given_up.given_up = vec![50];
    assert!(is_done(&replica.command(given_up)));
    let mut late = replica.next(1, put(push("a", 101, &["w"], &[1])));
    late.request.as_mut().unwrap().seq = 50;
    late.settled = 1;
    assert!(matches!(
        replica.command(late).result,
        Some(pb::outcome::Result::Abandoned(_))
    ));
}

#[test]
fn a_command_of_an_earlier_start_is_refused() {
    let mut replica = Replica::new();
    let old = replica.next(1, put(push("a", 100, &["v"], &[1])));
    let boot = pb::Command {
        request: Some(pb::RequestId {
            node: 1,
            boot: 2,
            seq: 1,
        }),
        settled: 1,
        ..replica.next(1, pb::command::Body::Boot(pb::Boot::default()))
    };
    assert!(is_done(&replica.command(boot)));
    assert_eq!(reason(&replica.command(old)), pb::Reason::RequestSettled);
    assert!(!replica.view().node(NodeId(1)).unwrap().unwrap().listed);
}

#[test]
fn conditions_are_decided_here() {
    let mut replica = Replica::new();
    let with = |if_match: &[String], if_none_match: &[&str]| {
        let mut put = push("a", 101, &["v"], &[1]);
        put.precondition = Some(pb::Precondition {
            if_match: if_match.to_vec(),
            if_none_match: if_none_match.iter().map(|s| (*s).to_owned()).collect(),
        });
        self::put(put)
    };
    assert_eq!(
        reason(&replica.by(1, with(&["*".into()], &[]))),
        pb::Reason::PreconditionFailed
    );
    assert!(is_done(&replica.by(1, put(push("a", 100, &["v"], &[1])))));
    assert_eq!(
        reason(&replica.by(1, with(&[], &["*"]))),
        pb::Reason::PreconditionFailed
    );
    assert!(is_done(
        &replica.by(1, with(&[digest(100).to_string()], &[]))
    ));
    assert!(
        is_done(&replica.by(1, with(&[digest(100).to_string()], &[]))),
        "repeated: it stands already"
    );
}

#[test]
fn log_time_follows_the_leaders_clock_and_never_goes_back() {
    let mut replica = Replica::new();
    let tick = |term, elapsed_ms| pb::Command {
        version: 1,
        body: Some(pb::command::Body::Tick(pb::Tick {
            term,
            elapsed_ms,
            ..Default::default()
        })),
        ..Default::default()
    };
    let mut at = |term, elapsed| {
        replica.command(tick(term, elapsed));
        replica.view().log_time_ms().unwrap()
    };
    assert_eq!(at(1, 1000), 1000);
    assert_eq!(at(1, 3000), 3000);
    assert_eq!(at(1, 2000), 3000);
    assert_eq!(at(3, 500), 3500);
    assert_eq!(at(2, 9000), 3500);
    assert_eq!(at(3, 10_000_000), 3500 + 120_000);
}

#[test]
fn a_removed_node_is_refused_and_holds_nothing() {
    let mut replica = Replica::new();
    assert!(is_done(&replica.by(1, put(push("a", 100, &["v"], &[1])))));
    let mut membership = applied(&replica.tree)
        .unwrap()
        .membership
        .unwrap()
        .membership
        .unwrap();
    membership.nodes.remove(&1);
    replica.entry(pb::entry::Payload::Membership(membership));
    assert!(replica.view().is_removed(NodeId(1)).unwrap());
    assert_eq!(
        replica
            .view()
            .blob(&digest(1))
            .unwrap()
            .unwrap()
            .holders
            .len(),
        1
    );
    assert_eq!(
        reason(&replica.by(1, pb::command::Body::Probe(pb::Probe {}))),
        pb::Reason::RequestSettled
    );
}

#[test]
fn an_entry_of_a_newer_release_stops_the_node() {
    let replica = Replica::new();
    let id = Some(pb::LogId {
        term: 1,
        node: 1,
        index: 99,
    });
    for payload in [
        None,
        Some(pb::entry::Payload::Command(pb::Command {
            version: COMMAND_VERSION + 1,
            body: Some(pb::command::Body::Probe(pb::Probe {})),
            ..Default::default()
        })),
        Some(pb::entry::Payload::Command(pb::Command {
            version: 1,
            ..Default::default()
        })),
    ] {
        let applied = apply(&Pending::new(&replica.tree), &pb::Entry { id, payload });
        assert!(matches!(applied, Err(ApplyError::Unknown { index: 99 })));
    }
}

#[test]
fn bytes_of_another_digest_are_refused() {
    let mut replica = Replica::new();
    let mut other = push("a", 100, &["v"], &[1]);
    other.bytes = Bytes::from_static(b"other");
    assert_eq!(reason(&replica.by(1, put(other))), pb::Reason::Invalid);
    let many = (0..5000).map(|n| format!("t{n}")).collect();
    let mut tagged = push("a", 100, &[], &[1]);
    tagged.tags = many;
    assert_eq!(reason(&replica.by(1, put(tagged))), pb::Reason::Invalid);
    assert!(replica.view().repositories(None, 10).unwrap().is_empty());
}

#[test]
fn a_node_that_lost_what_it_acknowledged_is_not_let_in_again() {
    let mut replica = Replica::new();
    let acknowledged = vec![pb::Acknowledged { node: 2, index: 9 }];
    let tick = pb::Tick {
        term: 1,
        elapsed_ms: 1,
        acknowledged,
    };
    replica.command(pb::Command {
        version: 1,
        body: Some(pb::command::Body::Tick(tick)),
        ..Default::default()
    });
    let mut boot = |boot, last_log| {
        let id = pb::RequestId {
            node: 2,
            boot,
            seq: 1,
        };
        let version = String::new();
        replica.command(pb::Command {
            version: 1,
            request: Some(id),
            body: Some(pb::command::Body::Boot(pb::Boot { version, last_log })),
            ..Default::default()
        })
    };
    assert_eq!(reason(&boot(2, 8)), pb::Reason::LogLost);
    assert!(is_done(&boot(3, 9)));
    assert_eq!(replica.view().node(NodeId(2)).unwrap().unwrap().boot, 3);
}

/// The log of a release before policies, applied by this one: nodes of both agree while they run
/// side by side.
#[test]
fn a_log_without_policies_gives_the_state_that_it_always_gave() {
    let mut replica = Replica::new();
    let delete = |repository: &str, m: u8| {
        pb::command::Body::DeleteManifest(pb::DeleteManifest {
            repository: repository.into(),
            digest: digest(m).to_string(),
            ..Default::default()
        })
    };
    let hold = pb::Hold {
        receipts: vec![receipt(&digest(2), 2, 3)],
    };
    let lost = pb::Lost {
        digests: vec![digest(1).to_string()],
    };
    let mut referrer = push("a/b", 104, &[], &[1, 4]);
    referrer.subject = digest(100).to_string();
    for body in [
        put(push("a", 100, &["v1", "v2"], &[1, 2])),
        put(push("a", 101, &["v1"], &[2, 3])),
        put(push("a", 100, &["v3"], &[1, 2])),
        put(push("a/b", 100, &["v1"], &[1, 2])),
        put(referrer),
        pb::command::Body::Hold(hold),
        pb::command::Body::Lost(lost),
        delete("a", 100),
        put(push("c", 102, &["x"], &[5])),
        delete("c", 102),
    ] {
        replica.by(2, body);
    }
    let (index, hash) = replica.view().state_hash().unwrap();
    assert_eq!(
        (index, hex::encode(hash).as_str()),
        (
            17,
            "2057499cb006f89c6aab4231c537bfe16191c1299b9eed3cf4b550a648004868"
        )
    );
}
