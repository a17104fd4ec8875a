//! Any commands about accounts, and what must be true of the state after them.

use super::accounts::{hash, member, put, record, remove};
use super::*;
use pb::command::Body;
use proptest::prelude::{Strategy, any, prop_oneof};

/// Secrets and the accounts that they are of; groups that users are in.
pub(super) fn check(replica: &Replica) {
    let view = replica.view();
    let mut secrets = Vec::new();
    let groups: Vec<String> = view
        .groups()
        .unwrap()
        .iter()
        .map(|g| g.name.to_string())
        .collect();
    for account in view.accounts().unwrap() {
        for secret in &account.record.secrets {
            let of = view
                .account_of_secret(&secret.hash)
                .unwrap()
                .map(|found| found.name);
            assert_eq!(of, Some(account.name.clone()));
            secrets.push(secret.hash.clone());
        }
        assert!(
            account
                .record
                .groups
                .iter()
                .all(|group| groups.contains(group))
        );
    }
    let stored = replica
        .bytes()
        .into_iter()
        .filter(|(key, _)| key.starts_with(keys::SECRETS));
    assert_eq!(
        stored.count(),
        secrets.len(),
        "no secret is known without its account"
    );
}

pub(super) fn any_body() -> impl Strategy<Value = Body> {
    let name = || proptest::sample::select(vec!["ann", "bob", "-bad"]);
    let group_name = || proptest::sample::select(vec!["g", "h", ""]);
    let patterns = || proptest::sample::subsequence(vec!["*", "a/*", "a", "BAD"], 0..3);
    let given = move || {
        (patterns(), 0u32..40).prop_map(|(patterns, rights)| {
            let grant = |pattern: &str| pb::GrantRecord {
                pattern: pattern.to_owned(),
                rights,
                expires_at_ms: 0,
            };
            patterns.into_iter().map(grant).collect::<Vec<_>>()
        })
    };
    let authority = move || {
        (name(), any::<[bool; 2]>(), patterns()).prop_map(|(actor, [everything, own], patterns)| {
            Some(pb::Authority {
                actor: actor.into(),
                everything,
                patterns: patterns.into_iter().map(str::to_owned).collect(),
                own,
            })
        })
    };
    let n = || 0u8..5;
    prop_oneof![
        3 => (name(), n(), given(), group_name(), name(), authority()).prop_map(|(name, n, given, group, owner, authority)| {
            let kinds = [pb::AccountKind::User, pb::AccountKind::Token, pb::AccountKind::Key, pb::AccountKind::Ci, pb::AccountKind::Unspecified];
            let kind = kinds[usize::from(n)];
            let mut record = record(kind, n, &[]);
            record.grants = given;
            if kind == pb::AccountKind::User && !group.is_empty() { record.groups = vec![group.into()]; }
            record.owner = owner.into();
            put(name, record, authority)
        }),
        1 => (name(), authority()).prop_map(|(name, authority)| remove(name, authority)),
        1 => (name(), n(), authority()).prop_map(|(name, n, authority)| Body::RotateSecret(pb::RotateSecret {
            name: name.into(), hash: hash(n), keep_old_until_ms: u64::from(n) * 10, expires_at_ms: 0, now_ms: u64::from(n) * 7, authority,
        })),
        1 => (name(), authority()).prop_map(|(name, authority)| Body::SetPassword(pb::SetPassword { name: name.into(), password: "p".into(), authority })),
        2 => (name(), group_name(), given(), authority()).prop_map(|(account, group, given, authority)| Body::SetGrant(pb::SetGrant {
            account: if group.is_empty() { account.into() } else { String::new() }, group: group.into(), grant: given.into_iter().next(), authority,
        })),
        1 => (group_name(), given(), authority()).prop_map(|(name, grants, authority)| Body::PutGroup(pb::PutGroup {
            name: name.into(), record: Some(pb::GroupRecord { grants, created_at_ms: 1 }), authority,
        })),
        1 => (group_name(), authority()).prop_map(|(name, authority)| Body::RemoveGroup(pb::RemoveGroup { name: name.into(), authority })),
        1 => (group_name(), name(), any::<bool>(), authority()).prop_map(|(group, account, is_in, authority)| member(group, account, is_in, authority)),
        1 => (n(), any::<bool>()).prop_map(|(n, only_first)| Body::PutSigningKey(pb::PutSigningKey {
            kid: n.to_string(), record: Some(pb::SigningKeyRecord { pkcs8: Bytes::from_static(b"k"), created_at_ms: u64::from(n), retired_at_ms: 0 }), only_first,
            drop_others: !only_first && n == 0,
        })),
        1 => (name(), n()).prop_map(|(name, n)| Body::Used(pb::Used { uses: vec![pb::Use { account: name.into(), at_ms: u64::from(n) }] })),
    ]
}
