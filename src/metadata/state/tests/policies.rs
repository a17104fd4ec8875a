//! What policies decide: tags that stay, blobs that may be absent, how many regions a push needs.

use super::*;
use crate::policy::Prefix;

pub(super) fn set(prefix: &str, record: pb::PolicyRecord) -> pb::command::Body {
    pb::command::Body::SetPolicy(pb::SetPolicy {
        prefix: prefix.into(),
        set: Some(record),
    })
}

pub(super) fn immutable(globs: &str) -> pb::PolicyRecord {
    pb::PolicyRecord {
        immutable: Some(globs.into()),
        ..Default::default()
    }
}

fn sparse(is_allowed: bool) -> pb::PolicyRecord {
    pb::PolicyRecord {
        sparse: Some(is_allowed),
        ..Default::default()
    }
}

pub(super) fn unset(prefix: &str, keys: &[&str]) -> pb::command::Body {
    pb::command::Body::UnsetPolicy(pb::UnsetPolicy {
        prefix: prefix.into(),
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
    })
}

/// A push that names `absent` of its blobs in vain.
fn push_without(repository: &str, m: u8, blobs: &[u8], absent: &[u8]) -> pb::PutManifest {
    let mut put = push(repository, m, &[], blobs);
    put.absent = absent.iter().map(|n| digest(*n).to_string()).collect();
    put.receipts.retain(|r| !put.absent.contains(&r.digest));
    put
}

pub(super) fn delete(repository: &str, m: u8) -> pb::command::Body {
    pb::command::Body::DeleteManifest(pb::DeleteManifest {
        repository: repository.into(),
        digest: digest(m).to_string(),
        ..Default::default()
    })
}

fn tag_of(replica: &Replica, repository: &str, tag: &str) -> Option<Digest> {
    replica
        .view()
        .tag(&name(repository), &tag.parse().unwrap())
        .unwrap()
}

#[test]
fn an_immutable_tag_stays_what_it_was_first() {
    let mut replica = Replica::new();
    replica.by(1, set("team", immutable("v*")));
    assert!(is_done(
        &replica.by(1, put(push("team/app", 100, &["v1"], &[1])))
    ));
    assert!(
        is_done(&replica.by(2, put(push("team/app", 100, &["v1"], &[1])))),
        "the same again"
    );
    let refused = replica.by(2, put(push("team/app", 101, &["v1"], &[1])));
    assert_eq!(reason(&refused), pb::Reason::TagImmutable);
    let text = format!("{refused:?}");
    for told in ["tag v1", "immutable=v*", "policy unset 'team' immutable"] {
        assert!(text.contains(told), "{text}");
    }
    // One of several is enough, and then none is set and nothing is stored.
    let several = put(push("team/app", 101, &["latest", "v2", "v1"], &[1]));
    assert_eq!(reason(&replica.by(1, several)), pb::Reason::TagImmutable);
    assert_eq!(tag_of(&replica, "team/app", "latest"), None);
    assert!(
        !replica
            .view()
            .has_manifest(&name("team/app"), &digest(101))
            .unwrap()
    );
    // What the pattern does not mean moves, and so does the tag of another prefix.
    for (repository, tag) in [("team/app", "latest"), ("teams", "v1")] {
        for m in [100, 101] {
            assert!(is_done(
                &replica.by(1, put(push(repository, m, &[tag], &[1])))
            ));
        }
    }
    replica.by(1, unset("team", &["immutable"]));
    assert!(is_done(
        &replica.by(1, put(push("team/app", 101, &["v1"], &[1])))
    ));
}

#[test]
fn an_immutable_tag_is_not_deleted_and_neither_is_what_it_names() {
    let mut replica = Replica::new();
    replica.by(1, set("*", immutable("true")));
    replica.by(1, put(push("a", 100, &["v1"], &[1])));
    let tag = pb::DeleteTag {
        repository: "a".into(),
        tag: "v1".into(),
        ..Default::default()
    };
    let tag = pb::command::Body::DeleteTag(tag);
    assert_eq!(
        reason(&replica.by(1, tag.clone())),
        pb::Reason::TagImmutable
    );
    assert_eq!(
        reason(&replica.by(1, delete("a", 100))),
        pb::Reason::TagImmutable
    );
    assert_eq!(tag_of(&replica, "a", "v1"), Some(digest(100)));
    replica.by(1, put(push("a", 101, &[], &[1])));
    assert!(is_done(&replica.by(1, delete("a", 101))), "no tag names it");
    replica.by(1, set("a", immutable("false")));
    assert!(is_done(&replica.by(1, tag)));
}

#[test]
fn a_condition_is_judged_before_immutability() {
    let mut replica = Replica::new();
    replica.by(1, set("*", immutable("true")));
    replica.by(1, put(push("a", 100, &["v1"], &[1])));
    let with = |m, if_match: &str, if_none_match: &str| {
        let list = |text: &str| match text {
            "" => Vec::new(),
            text => vec![text.to_owned()],
        };
        let mut put = push("a", m, &["v1"], &[1]);
        put.precondition = Some(pb::Precondition {
            if_match: list(if_match),
            if_none_match: list(if_none_match),
        });
        self::put(put)
    };
    let now = digest(100).to_string();
    assert_eq!(
        reason(&replica.by(1, with(101, "", "*"))),
        pb::Reason::PreconditionFailed
    );
    assert_eq!(
        reason(&replica.by(1, with(101, &now, ""))),
        pb::Reason::TagImmutable
    );
    assert!(is_done(&replica.by(1, with(100, &now, ""))));
}

#[test]
fn a_repository_says_how_many_regions_a_push_needs() {
    let mut replica = Replica::new();
    let ack = |n| pb::PolicyRecord {
        ack: Some(n),
        ..Default::default()
    };
    replica.by(1, set("scratch", ack(1)));
    replica.by(1, set("prod", ack(7)));
    let held_by = |repository: &str, nodes: &[u64]| {
        let mut put = push(repository, 100, &["v"], &[1]);
        put.receipts = nodes
            .iter()
            .map(|node| receipt(&digest(1), 1, *node))
            .collect();
        self::put(put)
    };
    let needs_more =
        |outcome: pb::Outcome| matches!(outcome.result, Some(pb::outcome::Result::NeedReceipts(_)));
    assert!(needs_more(replica.by(1, held_by("other", &[1]))));
    assert!(is_done(&replica.by(1, held_by("scratch/x", &[1]))));
    assert!(needs_more(replica.by(1, held_by("prod", &[1, 2]))));
    assert!(
        is_done(&replica.by(1, held_by("prod", &[1, 2, 3]))),
        "three regions are all there are"
    );
    assert_eq!(replica.view().ack_needed(&name("prod")).unwrap(), 3);
    assert_eq!(replica.view().ack_needed(&name("scratch")).unwrap(), 1);
}

#[test]
fn a_policy_that_makes_no_sense_is_refused_and_changes_nothing() {
    let mut replica = Replica::new();
    replica.by(1, set("a", sparse(true)));
    let before = replica.view().policies().unwrap();
    let eight = pb::PolicyRecord {
        copies: Some(8),
        sparse: Some(false),
        ..Default::default()
    };
    for bad in [
        set("a", eight),
        set("a", immutable("[v]")),
        set("a", pb::PolicyRecord::default()),
        set("a/", sparse(false)),
        set("", sparse(false)),
        pb::command::Body::SetPolicy(pb::SetPolicy {
            prefix: "a".into(),
            set: None,
        }),
        unset("a", &["sparse", "acks"]),
        unset("A", &["sparse"]),
    ] {
        assert_eq!(reason(&replica.by(1, bad)), pb::Reason::Invalid);
    }
    assert_eq!(replica.view().policies().unwrap(), before);
    assert!(is_done(&replica.by(1, unset("a", &["sparse", "ack"]))));
    assert_eq!(replica.view().policies().unwrap(), []);
}

#[test]
fn a_set_key_leaves_the_others_as_they_were() {
    let mut replica = Replica::new();
    replica.by(1, set("a", sparse(true)));
    replica.by(1, set("a", immutable("v*")));
    let view = replica.view();
    let policy = view.policy(&Prefix::from(&name("a/b"))).unwrap();
    assert!(policy.sparse.value);
    assert_eq!(policy.immutable.value.as_str(), "v*");
    assert_eq!(policy.ack.value, 2);
}

#[test]
fn blobs_may_be_absent_only_where_the_policy_says_so() {
    let mut replica = Replica::new();
    let put_sparse = || put(push_without("a", 100, &[1, 2], &[2]));
    assert_eq!(
        reason(&replica.by(1, put_sparse())),
        pb::Reason::BlobsAbsent
    );
    replica.by(1, set("a", sparse(true)));
    assert!(is_done(&replica.by(1, put_sparse())));
    let view = replica.view();
    assert!(view.is_blob_linked(&name("a"), &digest(1)).unwrap());
    assert!(
        !view.is_blob_linked(&name("a"), &digest(2)).unwrap(),
        "a name gives no right"
    );
    assert!(
        view.blob(&digest(2)).unwrap().is_none(),
        "nobody is to hold it"
    );
    assert_eq!(
        view.missed_by(&name("a"), &digest(2), None, 9).unwrap(),
        [digest(100)]
    );
    let mut lie = push_without("a", 101, &[1], &[]);
    lie.absent = vec![digest(9).to_string()];
    assert_eq!(reason(&replica.by(1, put(lie))), pb::Reason::Invalid);
}

#[test]
fn a_blob_that_comes_later_is_linked_and_held_like_any_other() {
    let mut replica = Replica::new();
    replica.by(1, set("a", sparse(true)));
    replica.by(1, put(push_without("a", 100, &[1, 2], &[1, 2])));
    assert_eq!(replica.view().placements().unwrap().len(), 0);
    assert!(is_done(
        &replica.by(1, put(push_without("a", 100, &[1, 2], &[1])))
    ));
    let view = replica.view();
    assert!(view.is_blob_linked(&name("a"), &digest(2)).unwrap());
    assert_eq!(view.blob(&digest(2)).unwrap().unwrap().holders.len(), 2);
    assert_eq!(view.missed_by(&name("a"), &digest(2), None, 9).unwrap(), []);
    // Pushed again by someone who does not see it: it stays linked.
    assert!(is_done(
        &replica.by(1, put(push_without("a", 100, &[1, 2], &[1, 2])))
    ));
    assert!(
        replica
            .view()
            .is_blob_linked(&name("a"), &digest(2))
            .unwrap()
    );
    let before = replica.bytes().len();
    replica.by(1, delete("a", 100));
    let view = replica.view();
    assert!(!view.is_blob_linked(&name("a"), &digest(2)).unwrap());
    assert_eq!(view.blob(&digest(2)).unwrap().unwrap().refs, 0);
    assert!(replica.bytes().len() < before);
}

#[test]
fn what_one_repository_may_read_another_may_not_by_the_same_manifest() {
    let mut replica = Replica::new();
    replica.by(1, set("guest", sparse(true)));
    replica.by(1, put(push("owner", 100, &["v"], &[1, 2])));
    assert!(is_done(
        &replica.by(1, put(push_without("guest", 100, &[1, 2], &[1, 2])))
    ));
    let linked = |replica: &Replica, repository: &str, blob: u8| {
        replica
            .view()
            .is_blob_linked(&name(repository), &digest(blob))
            .unwrap()
    };
    assert!(linked(&replica, "owner", 1) && !linked(&replica, "guest", 1));
    // The guest deletes it: the owner's blobs stay referenced and held.
    replica.by(1, delete("guest", 100));
    assert_eq!(replica.view().blob(&digest(1)).unwrap().unwrap().refs, 1);
    replica.by(1, put(push_without("guest", 100, &[1, 2], &[1])));
    assert!(linked(&replica, "guest", 2));
    // The owner deletes it: what the guest may not read is needed by nobody any more.
    replica.by(1, delete("owner", 100));
    let refs = |replica: &Replica, blob| replica.view().blob(&digest(blob)).unwrap().unwrap().refs;
    assert_eq!((refs(&replica, 1), refs(&replica, 2)), (0, 1));
    assert_eq!(
        replica.view().blob(&digest(1)).unwrap().unwrap().holders,
        []
    );
    replica.by(1, delete("guest", 100));
    assert_eq!(refs(&replica, 2), 0);
    assert!(
        replica
            .view()
            .manifest_record(&digest(100))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_manifest_that_an_index_calls_something_else_is_not_absent() {
    let mut replica = Replica::new();
    replica.by(1, put(push("a", 100, &[], &[1])));
    let index = |repository: &str| put(push_without(repository, 101, &[100], &[100]));
    assert!(is_done(&replica.by(1, index("a"))));
    assert_eq!(reason(&replica.by(1, index("b"))), pb::Reason::BlobsAbsent);
}

fn copies(n: u32) -> pb::PolicyRecord {
    pb::PolicyRecord {
        copies: Some(n),
        ..Default::default()
    }
}

/// How many copies are wanted of a blob, with seven regions to have them in.
fn wanted(replica: &Replica, blob: u8) -> u32 {
    let view = replica.view();
    let by_default = view.policy(&Prefix::All).unwrap().copies.value;
    let blob = view.blob(&digest(blob)).unwrap().unwrap();
    blob.wanted.copies(by_default)
}

/// Runs the walk under a prefix to its end.
fn walk(replica: &mut Replica) -> usize {
    let mut steps = 0;
    while let Some(prefix) = replica.view().copies_walk().unwrap() {
        let step = pb::command::Body::CountCopies(pb::CountCopies { prefix });
        assert!(is_done(&replica.by(1, step)));
        steps += 1;
    }
    steps
}

#[test]
fn of_a_blob_as_many_copies_are_wanted_as_the_most_careful_repository_asks_for() {
    let mut replica = Replica::new();
    replica.by(1, set("scratch", copies(1)));
    replica.by(1, set("prod", copies(5)));
    walk(&mut replica);
    replica.by(1, put(push("scratch/x", 100, &["v"], &[1, 2])));
    assert_eq!(wanted(&replica, 1), 1);
    assert_eq!(
        replica.view().under_replicated().unwrap(),
        0,
        "two have it, one is enough"
    );
    replica.by(1, put(push("usual", 101, &["v"], &[2, 3])));
    assert_eq!((wanted(&replica, 2), wanted(&replica, 3)), (3, 3));
    replica.by(1, put(push("prod", 102, &["v"], &[3])));
    assert_eq!(wanted(&replica, 3), 5);
    assert_eq!(
        replica.view().under_replicated().unwrap(),
        2,
        "blobs 2 and 3"
    );
    replica.by(1, delete("prod", 102));
    assert_eq!(wanted(&replica, 3), 3);
    // The number of the whole registry counts at once, where no prefix has its own.
    replica.by(1, set("*", copies(2)));
    assert_eq!(walk(&mut replica), 0);
    assert_eq!((wanted(&replica, 1), wanted(&replica, 2)), (1, 2));
    assert_eq!(replica.view().under_replicated().unwrap(), 0);
}

#[test]
fn a_changed_number_of_copies_reaches_what_lies_there_already_step_by_step() {
    let mut replica = Replica::new();
    let is_under = |n: u32| n % 3 != 2;
    for n in 0..1500u32 {
        let bytes = Bytes::from(n.to_be_bytes().to_vec());
        let mut put = push(
            ["team", "team/app", "team-b"][n as usize % 3],
            100,
            &[],
            &[1, 2],
        );
        put.digest = Digest::of(Algorithm::Sha256, &bytes).to_string();
        put.bytes = bytes;
        put.blobs[0].digest = Digest::of(Algorithm::Sha256, &[1, (n % 250) as u8]).to_string();
        for receipt in &mut put.receipts[..2] {
            receipt.digest.clone_from(&put.blobs[0].digest);
        }
        assert!(is_done(&replica.by(1, self::put(put))));
    }
    replica.by(1, set("team", copies(5)));
    assert_eq!(wanted(&replica, 2), 3, "not in the same entry");
    let steps = walk(&mut replica);
    assert!(steps >= 2, "{steps} steps");
    assert_eq!(wanted(&replica, 2), 5);
    let raised = |replica: &Replica| {
        let blobs = replica.view().blobs(None, usize::MAX).unwrap();
        blobs
            .iter()
            .filter(|(_, blob)| blob.wanted.copies(3) == 5)
            .count()
    };
    let expected: BTreeSet<u32> = (0..1500)
        .filter(|n| is_under(*n))
        .map(|n| n % 250)
        .collect();
    assert_eq!(raised(&replica), expected.len() + 1);
    // Taken back, it is as it was; a longer prefix keeps its own.
    replica.by(1, set("team/app", copies(4)));
    walk(&mut replica);
    replica.by(1, unset("team", &["copies"]));
    walk(&mut replica);
    assert_eq!(raised(&replica), 0);
    assert_eq!(wanted(&replica, 2), 4);
}

#[test]
fn what_is_pushed_again_for_blobs_that_came_later_does_not_come_back_from_a_delete() {
    let mut replica = Replica::new();
    let again = || {
        let mut put = push("a", 100, &[], &[1]);
        put.again = true;
        self::put(put)
    };
    assert_eq!(reason(&replica.by(1, again())), pb::Reason::ManifestUnknown);
    replica.by(1, put(push("a", 100, &[], &[1])));
    assert!(is_done(&replica.by(1, again())));
    replica.by(1, delete("a", 100));
    assert_eq!(reason(&replica.by(1, again())), pb::Reason::ManifestUnknown);
}

/// CVE-2026-31801 (who may only create moved `latest`).
#[test]
fn cve_2026_31801_who_may_only_create_moves_no_tag() {
    let mut replica = Replica::new();
    let pushed = |m, may_not_create, may_not_overwrite| {
        let mut put = push("a", m, &["latest"], &[1]);
        (put.may_not_create, put.may_not_overwrite) = (may_not_create, may_not_overwrite);
        pb::command::Body::PutManifest(put)
    };
    super::accounts::refused(
        &replica.by(1, pushed(100, true, false)),
        pb::Reason::NotAllowed,
    );
    super::accounts::done(&replica.by(1, pushed(100, false, true)));
    super::accounts::done(&replica.by(1, pushed(100, true, true)));
    super::accounts::refused(
        &replica.by(1, pushed(101, false, true)),
        pb::Reason::NotAllowed,
    );
    super::accounts::done(&replica.by(1, pushed(101, true, false)));
}
