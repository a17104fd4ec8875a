//! Who may join: the CA that signs for new nodes, and the words that let one in. Times come in with
//! the command, from the wall clock of the region that proposes it.

use super::super::keys;
use super::super::raft_types::decode;
use super::{Apply, DONE, Decision, refuse};
use crate::proto::state::v1 as pb;
use crate::topology::RegionName;
use std::io;

/// Tokens that wait to be used: more than anyone adds regions.
const MOST: usize = 1000;
/// An expired token is kept so long, to say that it expired.
const KEPT_MS: u64 = 24 * 3600 * 1000;
const HASH: usize = 32;

impl Apply<'_> {
    /// The first one stays: what was signed with it must go on being trusted.
    pub fn put_ca(&mut self, put: &pb::PutCa) -> Decision {
        if self.tx.get(keys::CA)?.is_some() {
            return Ok(Ok(DONE));
        }
        if put.certificate.is_empty() || put.key.is_empty() {
            return Ok(Err(refuse(
                pb::Reason::Invalid,
                "a CA without certificate or key",
            )));
        }
        let record = pb::CaRecord {
            certificate: put.certificate.clone(),
            key: put.key.clone(),
        };
        self.tx.put_message(keys::CA.to_vec(), &record);
        Ok(Ok(pb::outcome::Result::Done(pb::Done { created: true })))
    }

    pub fn create_join_token(&mut self, create: &pb::CreateJoinToken) -> Decision {
        let invalid = |why: String| Ok(Err(refuse(pb::Reason::Invalid, why)));
        if self.tx.get(keys::CA)?.is_none() {
            return Ok(Err(refuse(
                pb::Reason::NoCa,
                "this cluster does not sign certificates itself, so it makes no join tokens",
            )));
        }
        if let Err(error) = create.region.parse::<RegionName>() {
            return invalid(error.to_string());
        }
        if create.id.is_empty() || create.secret_hash.len() != HASH {
            return invalid("a join token without an id or the hash of its secret".to_owned());
        }
        if create.expires_at_ms <= create.now_ms {
            return invalid("a join token that has expired already".to_owned());
        }
        for (_, value) in self.tx.scan(keys::NODES)? {
            let record: pb::NodeRecord = decode("node record", &value)?;
            if record.node.is_some_and(|node| node.region == create.region) {
                return Ok(Err(refuse(
                    pb::Reason::JoinToken,
                    format!(
                        "region {} is a member already; remove it first, or add one under another name",
                        create.region
                    ),
                )));
            }
        }
        self.clear_join_tokens(create.now_ms)?;
        if self.tx.scan(keys::JOIN_TOKENS)?.len() >= MOST {
            return invalid(format!(
                "{MOST} join tokens wait to be used; revoke some first"
            ));
        }
        let key = keys::join_token(&create.id);
        if self.tx.get(&key)?.is_some() {
            return invalid(format!("join token {} exists already", create.id));
        }
        let record = pb::JoinTokenRecord {
            region: create.region.clone(),
            role: create.role,
            secret_hash: create.secret_hash.clone(),
            expires_at_ms: create.expires_at_ms,
            actor: create.actor.clone(),
            ..pb::JoinTokenRecord::default()
        };
        self.tx.put_message(key, &record);
        Ok(Ok(DONE))
    }

    /// The first key that uses a token is the only one that may use it again.
    pub fn use_join_token(&mut self, used: &pb::UseJoinToken) -> Decision {
        self.clear_join_tokens(used.now_ms)?;
        let key = keys::join_token(&used.id);
        let record: Option<pb::JoinTokenRecord> = self.tx.message(&key)?;
        let mut record = match judge(record, used) {
            Ok(record) => record,
            Err(why) => return Ok(Err(refuse(pb::Reason::JoinToken, why))),
        };
        record.key_hash = used.key_hash.clone();
        record.node = used.node;
        self.tx.put_message(key, &record);
        Ok(Ok(DONE))
    }

    pub fn revoke_join_token(&mut self, revoke: &pb::RevokeJoinToken) -> Decision {
        let key = keys::join_token(&revoke.id);
        if self.tx.get(&key)?.is_none() {
            let why = format!("there is no join token {:?}", revoke.id);
            return Ok(Err(refuse(pb::Reason::JoinToken, why)));
        }
        self.tx.delete(key);
        Ok(Ok(DONE))
    }

    fn clear_join_tokens(&mut self, now_ms: u64) -> io::Result<()> {
        for (key, value) in self.tx.scan(keys::JOIN_TOKENS)? {
            let record: pb::JoinTokenRecord = decode("join token", &value)?;
            if record.expires_at_ms.saturating_add(KEPT_MS) <= now_ms {
                self.tx.delete(key);
            }
        }
        Ok(())
    }
}

/// May this node join by it? The same before a call is read as when it is decided: `key_hash` is
/// empty where the key is not known yet.
pub(in crate::metadata) fn judge(
    record: Option<pb::JoinTokenRecord>,
    used: &pb::UseJoinToken,
) -> Result<pb::JoinTokenRecord, String> {
    let again = "make another one with `roadstead region add`";
    let Some(record) = record else {
        return Err(format!(
            "join token {:?} is not known here: it was revoked, or expired long ago, or is of another cluster; {again}",
            used.id
        ));
    };
    if record.secret_hash != used.secret_hash {
        return Err(format!(
            "the secret of join token {:?} is not the one that was given out; copy the whole token, or {again}",
            used.id
        ));
    }
    if record.expires_at_ms <= used.now_ms {
        let ago = (used.now_ms - record.expires_at_ms) / 1000;
        return Err(format!("the join token expired {ago} s ago; {again}"));
    }
    if record.region != used.region {
        return Err(format!(
            "the join token is for region {}, and this node is of region {}; {again}",
            record.region, used.region
        ));
    }
    if !record.key_hash.is_empty() && !used.key_hash.is_empty() && record.key_hash != used.key_hash
    {
        return Err(format!(
            "the join token was used already, by node {:016x} with another key; a token lets in one node: {again}",
            record.node
        ));
    }
    Ok(record)
}
