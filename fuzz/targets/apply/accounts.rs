//! Commands about accounts, from a small alphabet.

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use prost::bytes::Bytes;
use roadstead::proto::state::v1 as pb;
use roadstead::proto::state::v1::command::Body;

fn name(u: &mut Unstructured) -> Result<String> {
    u.choose(&["ann", "bob", "-"])
        .map(|name| (*name).to_owned())
}

fn group(u: &mut Unstructured) -> Result<String> {
    u.choose(&["g", "h", ""]).map(|name| (*name).to_owned())
}

fn pattern(u: &mut Unstructured) -> Result<String> {
    u.choose(&["*", "a/*", "a", "BAD"]).map(|p| (*p).to_owned())
}

fn grant(u: &mut Unstructured) -> Result<pb::GrantRecord> {
    Ok(pb::GrantRecord {
        pattern: pattern(u)?,
        rights: u.int_in_range(0..=33)?,
        expires_at_ms: u.int_in_range(0..=2)?,
    })
}

fn few<T>(u: &mut Unstructured, one: impl Fn(&mut Unstructured) -> Result<T>) -> Result<Vec<T>> {
    let n = u.int_in_range(0..=2)?;
    (0..n).map(|_| one(u)).collect()
}

fn hash(u: &mut Unstructured) -> Result<Bytes> {
    Ok(vec![u.int_in_range(0..=3)?; *u.choose(&[32, 32, 31])?].into())
}

fn authority(u: &mut Unstructured) -> Result<Option<pb::Authority>> {
    if u.ratio(1, 10)? {
        return Ok(None);
    }
    Ok(Some(pb::Authority {
        actor: name(u)?,
        everything: u.arbitrary()?,
        patterns: few(u, pattern)?,
        own: u.arbitrary()?,
    }))
}

fn record(u: &mut Unstructured) -> Result<pb::AccountRecord> {
    let kind = u.int_in_range(0..=5)?;
    let secret = |u: &mut Unstructured| {
        Ok(pb::SecretRecord {
            hash: hash(u)?,
            ..Default::default()
        })
    };
    let is_machine = [2, 3].contains(&kind);
    Ok(pb::AccountRecord {
        kind,
        grants: few(u, grant)?,
        groups: if kind == 1 {
            few(u, group)?
        } else {
            Vec::new()
        },
        password: if kind == 1 { "p".into() } else { String::new() },
        secrets: if is_machine {
            vec![secret(u)?]
        } else {
            Vec::new()
        },
        owner: name(u)?,
        ci: (kind == 4).then(pb::CiTrust::default),
        ..Default::default()
    })
}

pub fn body(u: &mut Unstructured) -> Result<Body> {
    Ok(match u.int_in_range(0..=9)? {
        0 => Body::PutAccount(pb::PutAccount {
            name: name(u)?,
            record: Some(record(u)?),
            authority: authority(u)?,
            only_first: u.arbitrary()?,
        }),
        1 => Body::RemoveAccount(pb::RemoveAccount {
            name: name(u)?,
            authority: authority(u)?,
        }),
        2 => Body::SetPassword(pb::SetPassword {
            name: name(u)?,
            password: "q".into(),
            authority: authority(u)?,
        }),
        3 => Body::RotateSecret(pb::RotateSecret {
            name: name(u)?,
            hash: hash(u)?,
            keep_old_until_ms: u.int_in_range(0..=9)?,
            expires_at_ms: u.int_in_range(0..=9)?,
            now_ms: u.int_in_range(0..=9)?,
            authority: authority(u)?,
        }),
        4 => Body::SetGrant(pb::SetGrant {
            account: if u.arbitrary()? {
                name(u)?
            } else {
                String::new()
            },
            group: group(u)?,
            grant: Some(grant(u)?),
            authority: authority(u)?,
        }),
        5 => Body::PutGroup(pb::PutGroup {
            name: group(u)?,
            record: Some(pb::GroupRecord {
                grants: few(u, grant)?,
                created_at_ms: 0,
            }),
            authority: authority(u)?,
        }),
        6 => Body::RemoveGroup(pb::RemoveGroup {
            name: group(u)?,
            authority: authority(u)?,
        }),
        7 => Body::SetMember(pb::SetMember {
            group: group(u)?,
            account: name(u)?,
            member: u.arbitrary()?,
            authority: authority(u)?,
        }),
        8 => Body::PutSigningKey(pb::PutSigningKey {
            kid: (*u.choose(&["a", "b", ""])?).to_owned(),
            record: Some(pb::SigningKeyRecord {
                pkcs8: Bytes::from_static(b"k"),
                created_at_ms: u.arbitrary()?,
                retired_at_ms: 0,
            }),
            only_first: u.arbitrary()?,
            drop_others: u.arbitrary()?,
        }),
        _ => Body::Used(pb::Used {
            uses: vec![pb::Use {
                account: name(u)?,
                at_ms: u.arbitrary()?,
            }],
        }),
    })
}
