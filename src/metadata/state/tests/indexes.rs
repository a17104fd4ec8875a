//! What an immutable tag names through indexes stays.

use super::policies::{delete, immutable, set, unset};
use super::*;

fn index(repository: &str, m: u8, tags: &[&str], children: &[u8]) -> pb::PutManifest {
    let mut put = push(repository, m, tags, &[]);
    put.children = children.iter().map(|m| digest(*m).to_string()).collect();
    put
}

#[test]
fn what_an_immutable_tag_names_through_indexes_is_not_deleted() {
    let mut replica = Replica::new();
    let has = |replica: &Replica, m| {
        let view = replica.view();
        view.has_manifest(&name("a"), &digest(m)).unwrap()
    };
    replica.by(1, set("a", immutable("v*")));
    for m in [100, 101, 102] {
        replica.by(1, put(push("a", m, &[], &[1])));
    }
    replica.by(1, put(index("a", 110, &[], &[100, 101])));
    replica.by(1, put(index("a", 111, &["latest"], &[110, 102])));
    let top = index("a", 112, &["latest", "v1"], &[111]);
    assert!(is_done(&replica.by(1, put(top))));
    for m in [100, 101, 102, 110, 111, 112] {
        let refused = replica.by(1, delete("a", m));
        assert_eq!(reason(&refused), pb::Reason::TagImmutable, "{m}");
        let text = format!("{refused:?}");
        let top = format!("tag v1 is immutable and stays at {}", digest(112));
        assert!(text.contains(&top) && has(&replica, m), "{text}");
    }
    // What nothing immutable leads to goes, and so it is elsewhere.
    replica.by(1, put(index("a", 113, &["latest"], &[103, 104])));
    replica.by(1, put(push("a", 103, &[], &[1])));
    assert!(is_done(&replica.by(1, delete("a", 103))));
    for m in [100, 110, 111, 112] {
        replica.by(1, put(push("b", m, &[], &[1])));
    }
    assert!(is_done(&replica.by(1, delete("b", 100))));
    // Pushed after the index that names it.
    replica.by(1, put(index("a", 114, &["v2"], &[103])));
    replica.by(1, put(push("a", 103, &[], &[1])));
    assert_eq!(
        reason(&replica.by(1, delete("a", 103))),
        pb::Reason::TagImmutable
    );
    replica.by(1, unset("a", &["immutable"]));
    for m in [100, 103, 112, 111, 110] {
        assert!(is_done(&replica.by(1, delete("a", m))), "{m}");
    }
}

#[test]
fn a_delete_that_would_look_at_too_much_is_refused_and_an_index_that_goes_makes_way() {
    let mut replica = Replica::new();
    let many = |n: u32| {
        let bytes = Bytes::from(n.to_be_bytes().to_vec());
        let mut put = index("a", 0, &[], &[100]);
        put.digest = Digest::of(Algorithm::Sha256, &bytes).to_string();
        put.bytes = bytes;
        put
    };
    replica.by(1, put(push("a", 100, &[], &[1])));
    for n in 0..2000 {
        assert!(is_done(&replica.by(1, put(many(n)))));
    }
    replica.by(1, set("a", immutable("v*")));
    let refused = replica.by(1, delete("a", 100));
    assert_eq!(reason(&refused), pb::Reason::TagImmutable);
    assert!(format!("{refused:?}").contains("more than 2000"));
    let one = pb::DeleteManifest {
        repository: "a".into(),
        digest: many(7).digest,
        ..Default::default()
    };
    assert!(is_done(
        &replica.by(1, pb::command::Body::DeleteManifest(one))
    ));
    assert!(is_done(&replica.by(1, delete("a", 100))));
}

#[test]
fn a_push_of_the_release_before_notes_nothing_until_it_comes_again() {
    let mut replica = Replica::new();
    replica.by(1, set("a", immutable("v*")));
    replica.by(1, put(push("a", 100, &[], &[1])));
    let mut old = replica.next(1, put(index("a", 110, &["v1"], &[100])));
    old.version = 2;
    assert!(is_done(&replica.command(old)));
    assert!(is_done(&replica.by(1, delete("a", 100))), "as it was meant");
    replica.by(1, put(push("a", 100, &[], &[1])));
    replica.by(1, put(index("a", 110, &["v1"], &[100])));
    assert_eq!(
        reason(&replica.by(1, delete("a", 100))),
        pb::Reason::TagImmutable
    );
}
