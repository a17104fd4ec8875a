//! What apply decides over accounts: whoever asks, whatever they may have been allowed when they asked.

use super::*;
use crate::access::CredentialId;
use crate::access::Principal;
use crate::access::Rights;
use crate::access::Who;
use pb::command::Body;

fn all() -> Option<pb::Authority> {
    Some(pb::Authority {
        actor: "root".into(),
        everything: true,
        ..Default::default()
    })
}

/// An admin of these patterns; also over what is their own.
fn admin_of(actor: &str, patterns: &[&str]) -> Option<pb::Authority> {
    Some(pb::Authority {
        actor: actor.into(),
        everything: false,
        patterns: patterns.iter().map(|p| (*p).to_owned()).collect(),
        own: true,
    })
}

fn grant(text: &str) -> pb::GrantRecord {
    pb::GrantRecord::from(&text.parse::<crate::access::Grant>().unwrap())
}

fn grants(texts: &[&str]) -> Vec<pb::GrantRecord> {
    texts.iter().map(|text| grant(text)).collect()
}

pub(super) fn hash(n: u8) -> Bytes {
    Bytes::from(vec![n; 32])
}

pub(super) fn record(kind: pb::AccountKind, n: u8, given: &[&str]) -> pb::AccountRecord {
    let secret = pb::SecretRecord {
        hash: hash(n),
        ..Default::default()
    };
    pb::AccountRecord {
        kind: kind.into(),
        grants: grants(given),
        password: if kind == pb::AccountKind::User {
            format!("hash {n}")
        } else {
            String::new()
        },
        secrets: match kind {
            pb::AccountKind::Token | pb::AccountKind::Key => vec![secret],
            _ => Vec::new(),
        },
        ci: (kind == pb::AccountKind::Ci).then(pb::CiTrust::default),
        ..Default::default()
    }
}

pub(super) fn put(name: &str, record: pb::AccountRecord, authority: Option<pb::Authority>) -> Body {
    Body::PutAccount(pb::PutAccount {
        name: name.into(),
        record: Some(record),
        authority,
        only_first: false,
    })
}

fn user(name: &str, given: &[&str]) -> Body {
    put(name, record(pb::AccountKind::User, 1, given), all())
}

fn set_grant(account: &str, grant: pb::GrantRecord, authority: Option<pb::Authority>) -> Body {
    Body::SetGrant(pb::SetGrant {
        account: account.into(),
        group: String::new(),
        grant: Some(grant),
        authority,
    })
}

pub(super) fn remove(name: &str, authority: Option<pb::Authority>) -> Body {
    Body::RemoveAccount(pb::RemoveAccount {
        name: name.into(),
        authority,
    })
}

pub(super) fn member(
    group: &str,
    account: &str,
    member: bool,
    authority: Option<pb::Authority>,
) -> Body {
    Body::SetMember(pb::SetMember {
        group: group.into(),
        account: account.into(),
        member,
        authority,
    })
}

fn group(name: &str, given: &[&str]) -> Body {
    Body::PutGroup(pb::PutGroup {
        name: name.into(),
        record: Some(pb::GroupRecord {
            grants: grants(given),
            created_at_ms: 0,
        }),
        authority: all(),
    })
}

#[track_caller]
pub(super) fn done(outcome: &pb::Outcome) {
    assert!(
        matches!(outcome.result, Some(pb::outcome::Result::Done(_))),
        "{outcome:?}"
    );
}

#[track_caller]
pub(super) fn refused(outcome: &pb::Outcome, reason: pb::Reason) {
    match &outcome.result {
        Some(pb::outcome::Result::Refused(no)) => assert_eq!(no.reason(), reason, "{no:?}"),
        other => panic!("{other:?}"),
    }
}

/// What an account may do, by the first thing that it can log in with.
fn rights(replica: &Replica, account: &str, repository: &str) -> Rights {
    let view = replica.view();
    let name = account.parse().unwrap();
    let credential = match view.account(&name).unwrap() {
        Some(account) => account.credentials(1).into_iter().next(),
        None => None,
    };
    let credential = credential.unwrap_or(CredentialId(String::new()));
    let who = Principal::new(Who::Account { name, credential });
    view.rights(&who, &repository.parse().unwrap(), 1).unwrap()
}

#[test]
fn what_is_granted_counts_at_once_and_what_is_taken_away_does_not() {
    let mut replica = Replica::new();
    done(&replica.by(1, user("ann", &["acme/*:pull"])));
    assert_eq!(rights(&replica, "ann", "acme/app"), Rights::PULL);
    assert_eq!(rights(&replica, "ann", "other"), Rights::NONE);
    done(&replica.by(1, set_grant("ann", grant("acme/*:push"), all())));
    assert_eq!(
        rights(&replica, "ann", "acme/app"),
        Rights::PUSH,
        "in place of the one before"
    );
    let none = pb::GrantRecord {
        rights: 0,
        ..grant("acme/*:push")
    };
    done(&replica.by(1, set_grant("ann", none.clone(), all())));
    assert_eq!(rights(&replica, "ann", "acme/app"), Rights::NONE);
    refused(
        &replica.by(1, set_grant("ann", none, all())),
        pb::Reason::Invalid,
    );
    refused(&replica.by(1, user("ann", &[])), pb::Reason::NameTaken);
    done(&replica.by(1, remove("ann", all())));
    refused(
        &replica.by(1, remove("ann", all())),
        pb::Reason::NameUnknown,
    );
}

/// CVE-2025-23208 (a group that a user left went on counting).
#[test]
fn cve_2025_23208_who_leaves_a_group_loses_what_it_gave() {
    let mut replica = Replica::new();
    done(&replica.by(1, user("ann", &[])));
    done(&replica.by(1, group("devs", &["acme/*:push"])));
    done(&replica.by(1, member("devs", "ann", true, all())));
    assert_eq!(rights(&replica, "ann", "acme/app"), Rights::PUSH);
    done(&replica.by(1, member("devs", "ann", false, all())));
    assert_eq!(rights(&replica, "ann", "acme/app"), Rights::NONE);
    done(&replica.by(1, member("devs", "ann", true, all())));
    let gone = pb::RemoveGroup {
        name: "devs".into(),
        authority: all(),
    };
    done(&replica.by(1, Body::RemoveGroup(gone)));
    done(&replica.by(1, group("devs", &["*:admin"])));
    assert_eq!(
        rights(&replica, "ann", "acme/app"),
        Rights::NONE,
        "another group of that name"
    );
}

/// CVE-2022-31667, CVE-2024-22278 and their like (an admin of one project changes another's).
#[test]
fn cve_2022_31667_an_admin_of_a_prefix_reaches_nothing_beside_it() {
    let mut replica = Replica::new();
    let acme = || admin_of("ann", &["acme/*"]);
    let token = |n, given: &[&str]| record(pb::AccountKind::Token, n, given);
    done(&replica.by(1, user("ann", &["acme/*:admin"])));
    done(&replica.by(1, user("bob", &[])));
    done(&replica.by(1, put("ours", token(1, &["acme/app:push"]), acme())));
    done(&replica.by(1, put("theirs", token(2, &["evil/app:push"]), all())));
    done(&replica.by(
        1,
        put("both", token(3, &["acme/app:pull", "evil/app:pull"]), all()),
    ));
    done(&replica.by(1, group("mixed", &["acme/*:pull", "evil/*:pull"])));
    done(&replica.by(1, group("acme-devs", &["acme/*:pull"])));
    let before = replica.view().state_hash().unwrap().1;
    let rotate = |name: &str| {
        Body::RotateSecret(pb::RotateSecret {
            name: name.into(),
            hash: hash(99),
            authority: acme(),
            ..Default::default()
        })
    };
    let password = Body::SetPassword(pb::SetPassword {
        name: "bob".into(),
        password: "x".into(),
        authority: acme(),
    });
    for (body, reason) in [
        (
            put("t1", token(9, &["evil/app:pull"]), acme()),
            pb::Reason::NotAllowed,
        ),
        (
            put("t1", token(9, &["*:pull"]), acme()),
            pb::Reason::NotAllowed,
        ),
        (
            put("t1", token(9, &["acme/a:pull", "evil/a:pull"]), acme()),
            pb::Reason::NotAllowed,
        ),
        (put("t1", token(9, &[]), acme()), pb::Reason::NotAllowed),
        (
            put(
                "u1",
                record(pb::AccountKind::User, 9, &["acme/*:pull"]),
                acme(),
            ),
            pb::Reason::NotAllowed,
        ),
        (
            put(
                "c1",
                record(pb::AccountKind::Ci, 9, &["acme/*:pull"]),
                acme(),
            ),
            pb::Reason::NotAllowed,
        ),
        (
            set_grant("bob", grant("evil/*:pull"), acme()),
            pb::Reason::NotAllowed,
        ),
        (
            set_grant("bob", grant("*:admin"), acme()),
            pb::Reason::NotAllowed,
        ),
        (
            set_grant("theirs", grant("acme/app:pull"), acme()),
            pb::Reason::NameUnknown,
        ),
        (remove("theirs", acme()), pb::Reason::NameUnknown),
        (remove("both", acme()), pb::Reason::NameUnknown),
        (remove("bob", acme()), pb::Reason::NameUnknown),
        (rotate("theirs"), pb::Reason::NameUnknown),
        (rotate("both"), pb::Reason::NameUnknown),
        (password, pb::Reason::NameUnknown),
        (
            member("mixed", "bob", true, acme()),
            pb::Reason::NameUnknown,
        ),
        (remove("theirs", None), pb::Reason::NameUnknown),
        (remove("theirs", admin_of("", &[])), pb::Reason::NameUnknown),
    ] {
        refused(&replica.by(1, body), reason);
    }
    // Requests are noted; nothing of accounts has changed.
    let count = replica.view().accounts().unwrap().len();
    assert_eq!(count, 5);
    assert_ne!(replica.view().state_hash().unwrap().1, before);
    done(&replica.by(1, set_grant("bob", grant("acme/*:pull"), acme())));
    done(&replica.by(1, member("acme-devs", "bob", true, acme())));
    let mut none = grant("acme/app:pull");
    none.rights = 0;
    done(&replica.by(1, set_grant("both", none, acme())));
    done(&replica.by(1, remove("ours", acme())));
}

#[test]
fn a_user_changes_its_own_password_and_keys_and_no_others() {
    let mut replica = Replica::new();
    for name in ["ann", "bob"] {
        done(&replica.by(1, user(name, &["acme/*:pull,push"])));
    }
    let own = |actor| admin_of(actor, &[]);
    let key = |n, owner: &str, given: &[&str]| pb::AccountRecord {
        owner: owner.into(),
        ..record(pb::AccountKind::Key, n, given)
    };
    done(&replica.by(1, put("k1", key(11, "ann", &[]), own("ann"))));
    done(&replica.by(1, put("k2", key(12, "ann", &["acme/app:pull"]), own("ann"))));
    refused(
        &replica.by(1, put("k3", key(13, "bob", &[]), own("ann"))),
        pb::Reason::NotAllowed,
    );
    refused(
        &replica.by(1, remove("k1", own("bob"))),
        pb::Reason::NameUnknown,
    );
    assert_eq!(
        rights(&replica, "k1", "acme/x"),
        Rights::PULL | Rights::PUSH
    );
    assert_eq!(rights(&replica, "k2", "acme/app"), Rights::PULL);
    assert_eq!(rights(&replica, "k2", "acme/x"), Rights::NONE);
    let password = |name: &str, actor| {
        Body::SetPassword(pb::SetPassword {
            name: name.into(),
            password: "another".into(),
            authority: own(actor),
        })
    };
    done(&replica.by(1, password("ann", "ann")));
    refused(
        &replica.by(1, password("bob", "ann")),
        pb::Reason::NameUnknown,
    );
    // A wider grant on a key gives no more than its user has.
    done(&replica.by(1, set_grant("k2", grant("*:admin"), all())));
    assert_eq!(
        rights(&replica, "k2", "acme/x"),
        Rights::PULL | Rights::PUSH
    );
    done(&replica.by(1, remove("ann", all())));
    assert_eq!(
        rights(&replica, "k1", "acme/x"),
        Rights::NONE,
        "gone with its user"
    );
    assert!(
        replica
            .view()
            .account_of_secret(&hash(11))
            .unwrap()
            .is_none()
    );
}

#[test]
fn the_old_secret_is_good_until_its_time_and_then_forgotten() {
    let mut replica = Replica::new();
    done(&replica.by(
        1,
        put("ci", record(pb::AccountKind::Token, 1, &["a:pull"]), all()),
    ));
    let rotate = |n: u8, keep: u64, now_ms: u64| {
        Body::RotateSecret(pb::RotateSecret {
            name: "ci".into(),
            hash: hash(n),
            keep_old_until_ms: keep,
            expires_at_ms: 0,
            now_ms,
            authority: all(),
        })
    };
    done(&replica.by(1, rotate(2, 100, 10)));
    let account = || {
        replica
            .view()
            .account(&"ci".parse().unwrap())
            .unwrap()
            .unwrap()
    };
    assert_eq!(account().credentials(99).len(), 2);
    assert_eq!(account().credentials(100).len(), 1);
    refused(&replica.by(1, rotate(1, 100, 20)), pb::Reason::Invalid);
    let mut replica = replica;
    done(&replica.by(1, rotate(3, 300, 200)));
    assert!(
        replica
            .view()
            .account_of_secret(&hash(1))
            .unwrap()
            .is_none(),
        "its time was over"
    );
    assert!(
        replica
            .view()
            .account_of_secret(&hash(2))
            .unwrap()
            .is_some()
    );
    done(&replica.by(1, rotate(4, 0, 250)));
    assert!(
        replica
            .view()
            .account_of_secret(&hash(4))
            .unwrap()
            .is_some()
    );
    let account = replica
        .view()
        .account(&"ci".parse().unwrap())
        .unwrap()
        .unwrap();
    assert_eq!(
        account.credentials(250).len(),
        1,
        "without grace the new one is the only one"
    );
}

#[test]
fn the_first_admin_is_made_once() {
    let mut replica = Replica::new();
    let first = |name: &str| {
        Body::PutAccount(pb::PutAccount {
            name: name.into(),
            record: Some(record(pb::AccountKind::User, 1, &["*:admin"])),
            authority: all(),
            only_first: true,
        })
    };
    done(&replica.by(1, first("admin")));
    refused(&replica.by(2, first("evil")), pb::Reason::NameTaken);
    let key = |kid: &str, at, only_first| {
        Body::PutSigningKey(pb::PutSigningKey {
            kid: kid.into(),
            record: Some(pb::SigningKeyRecord {
                pkcs8: Bytes::from_static(b"k"),
                created_at_ms: at,
                retired_at_ms: 0,
            }),
            only_first,
            drop_others: false,
        })
    };
    done(&replica.by(1, key("a", 1, true)));
    done(&replica.by(2, key("b", 2, true)));
    assert_eq!(replica.view().signing_keys().unwrap().len(), 1);
    done(&replica.by(2, key("c", 3, false)));
    let signing: Vec<String> = replica
        .view()
        .signing_keys()
        .unwrap()
        .into_iter()
        .filter(|key| key.record.retired_at_ms == 0)
        .map(|key| key.kid)
        .collect();
    assert_eq!(signing, ["c"]);
}

#[test]
fn visibility_gives_anyone_pull_and_nothing_else() {
    let mut replica = Replica::new();
    let nobody = Principal::new(Who::Anonymous);
    let rights = |replica: &Replica, name: &str| {
        replica
            .view()
            .rights(&nobody, &name.parse().unwrap(), 1)
            .unwrap()
    };
    assert_eq!(rights(&replica, "a"), Rights::NONE);
    let visible = |public| pb::PolicyRecord {
        public: Some(public),
        ..Default::default()
    };
    done(&replica.by(1, super::policies::set("*", visible(true))));
    done(&replica.by(1, super::policies::set("secret", visible(false))));
    assert_eq!(rights(&replica, "a"), Rights::PULL);
    assert_eq!(rights(&replica, "secret/x"), Rights::NONE);
}
