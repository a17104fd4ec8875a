//! Join tokens: each no is a refusal that says why, and changes nothing.

use super::*;
use crate::metadata::keys;
use pb::command::Body;

const HOUR: u64 = 3_600_000;

fn create(id: &str, region: &str) -> Body {
    Body::CreateJoinToken(pb::CreateJoinToken {
        id: id.to_owned(),
        region: region.to_owned(),
        role: pb::Role::Voter.into(),
        secret_hash: vec![1; 32].into(),
        expires_at_ms: HOUR,
        now_ms: 0,
        actor: String::new(),
    })
}

fn using(id: &str) -> pb::UseJoinToken {
    pb::UseJoinToken {
        id: id.to_owned(),
        secret_hash: vec![1; 32].into(),
        key_hash: vec![2; 32].into(),
        node: 9,
        region: "r9".to_owned(),
        now_ms: 1,
    }
}

pub(super) fn put_ca(key: &str) -> Body {
    Body::PutCa(pb::PutCa {
        certificate: vec![1].into(),
        key: key.to_owned(),
    })
}

/// One of the commands over tokens, small enough that they meet.
pub(super) fn any_token(n: u64, time: u64) -> Body {
    match (n, time % 3) {
        (0, _) => Body::RevokeJoinToken(pb::RevokeJoinToken {
            id: "t1".to_owned(),
        }),
        (n, 0) => Body::CreateJoinToken(pb::CreateJoinToken {
            id: format!("t{n}"),
            region: format!("r{}", n + time),
            secret_hash: vec![1; 32].into(),
            expires_at_ms: time * HOUR * 9,
            now_ms: n * HOUR,
            ..pb::CreateJoinToken::default()
        }),
        (n, _) => Body::UseJoinToken(pb::UseJoinToken {
            key_hash: vec![n as u8].into(),
            now_ms: time * HOUR * 7,
            ..using(&format!("t{n}"))
        }),
    }
}

fn refusal(outcome: pb::Outcome) -> String {
    match outcome.result {
        Some(pb::outcome::Result::Refused(no)) => no.message,
        other => panic!("{other:?}"),
    }
}

fn is_done(outcome: &pb::Outcome) -> bool {
    matches!(outcome.result, Some(pb::outcome::Result::Done(_)))
}

#[test]
fn the_first_ca_stays() {
    let mut replica = Replica::new();
    assert!(is_done(&replica.by(1, put_ca("first"))));
    assert!(is_done(&replica.by(2, put_ca("second"))));
    assert_eq!(replica.view().ca().unwrap().unwrap().key, "first");
}

#[test]
fn a_token_is_made_only_for_a_region_that_is_free_in_a_cluster_that_can_sign() {
    let mut replica = Replica::new();
    let why = refusal(replica.by(1, create("t", "r9")));
    assert!(why.contains("does not sign"), "{why}");
    replica.by(1, put_ca("k"));
    let why = refusal(replica.by(1, create("t", "r2")));
    assert!(why.contains("region r2 is a member already"), "{why}");
    let why = refusal(replica.by(1, create("t", "R9")));
    assert!(why.contains("not a region name"), "{why}");
    assert!(is_done(&replica.by(1, create("t", "r9"))));
    let why = refusal(replica.by(1, create("t", "r9")));
    assert!(why.contains("exists already"), "{why}");
}

#[test]
fn a_token_lets_in_one_key_again_and_again_and_no_other() {
    let mut replica = Replica::new();
    replica.by(1, put_ca("k"));
    replica.by(1, create("t", "r9"));
    let mut use_with = |change: &dyn Fn(&mut pb::UseJoinToken)| {
        let mut used = using("t");
        change(&mut used);
        replica.by(2, Body::UseJoinToken(used))
    };
    type Change<'a> = &'a dyn Fn(&mut pb::UseJoinToken);
    let refused: [(Change<'_>, &str); 4] = [
        (&|used| used.id = "other".to_owned(), "not known here"),
        (&|used| used.secret_hash = vec![7; 32].into(), "secret"),
        (
            &|used| used.region = "r8".to_owned(),
            "for region r9, and this node is of region r8",
        ),
        (&|used| used.now_ms = HOUR + 5000, "expired 5 s ago"),
    ];
    for (change, expected) in refused {
        let why = refusal(use_with(change));
        assert!(why.contains(expected), "{why}");
    }
    assert!(is_done(&use_with(&|_| {})));
    assert!(is_done(&use_with(&|_| {})));
    let why = refusal(use_with(&|used| used.key_hash = vec![3; 32].into()));
    assert!(
        why.contains("used already, by node 0000000000000009"),
        "{why}"
    );
    let revoke = || Body::RevokeJoinToken(pb::RevokeJoinToken { id: "t".to_owned() });
    assert!(is_done(&replica.by(1, revoke())));
    assert!(refusal(replica.by(1, revoke())).contains("no join token"));
    let why = refusal(replica.by(2, Body::UseJoinToken(using("t"))));
    assert!(why.contains("not known here"), "{why}");
}

#[test]
fn tokens_that_expired_long_ago_are_cleared_away() {
    let mut replica = Replica::new();
    replica.by(1, put_ca("k"));
    replica.by(1, create("t", "r9"));
    let later = pb::CreateJoinToken {
        id: "u".to_owned(),
        region: "r8".to_owned(),
        secret_hash: vec![1; 32].into(),
        now_ms: 26 * HOUR,
        expires_at_ms: 27 * HOUR,
        ..pb::CreateJoinToken::default()
    };
    assert!(is_done(&replica.by(1, Body::CreateJoinToken(later))));
    assert_eq!(replica.view().join_token("t").unwrap(), None);
    assert_eq!(
        replica
            .bytes()
            .iter()
            .filter(|(key, _)| key.starts_with(keys::JOIN_TOKENS))
            .count(),
        1
    );
}
