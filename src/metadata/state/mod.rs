//! The meaning of each command. Pure: the same tree and the same entry give the same batch, byte
//! for byte, on every replica. No clock, no randomness, nothing whose order is not fixed. A no is
//! an outcome; only a store that fails, or an entry from a newer release, is an error, and then the
//! node stops rather than skip.

mod accounts;
mod copies;
mod groups;
mod hash;
mod indexes;
pub(super) mod joining;
mod links;
mod manifests;
mod nodes;
mod policies;
mod requests;
mod transaction;

pub use hash::StateHash;
pub use transaction::Pending;
use transaction::Transaction;

use super::keys;
use super::kv::{Batch, Tree};
use super::raft_types::decode;
use crate::oci::Digest;
use crate::proto::state::v1 as pb;
use crate::topology::NodeId;
use std::collections::BTreeSet;
use std::io;

/// The newest version of commands that this release reads. It writes the lowest that says what is
/// meant (`write.rs`), so that nodes of the release before stop only at what they would misread.
pub const COMMAND_VERSION: u32 = 4;

/// What applying one entry writes, to be written to the state tree at once, alone or with that of
/// the entries before and after it: the applied record and the new state hash are in it.
pub struct Applied {
    pub batch: Batch,
    /// Of commands; None for blank and membership entries.
    pub outcome: Option<pb::Outcome>,
    /// Blobs whose references or holders changed.
    pub blobs: Vec<Digest>,
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("log entry {index} is of a kind that this release does not know; upgrade this node")]
    Unknown { index: u64 },
    #[error("metadata store")]
    Io(#[from] io::Error),
}

/// One entry being applied.
struct Apply<'a> {
    tx: Transaction<'a>,
    index: u64,
    /// Of the command.
    version: u32,
    /// The node that proposed the command.
    proposer: NodeId,
    blobs: BTreeSet<Digest>,
}

pub fn apply(before: &Pending, entry: &pb::Entry) -> Result<Applied, ApplyError> {
    use pb::entry::Payload;
    let id = entry.id.unwrap_or_default();
    let mut applied = applied_record(before.get(keys::APPLIED)?)?;
    applied.last = Some(id);
    let mut apply = Apply {
        tx: Transaction::new(before),
        index: id.index,
        version: 0,
        proposer: NodeId(0),
        blobs: BTreeSet::new(),
    };
    let outcome = match &entry.payload {
        Some(Payload::Blank(_)) => None,
        Some(Payload::Membership(membership)) => {
            apply.membership(membership)?;
            applied.membership = Some(pb::StoredMembership {
                id: entry.id,
                membership: Some(membership.clone()),
            });
            None
        }
        Some(Payload::Command(command)) => Some(apply.command(command)?),
        None => return Err(ApplyError::Unknown { index: id.index }),
    };
    apply.tx.put_message(keys::APPLIED.to_vec(), &applied);
    let batch = apply.tx.finish()?;
    Ok(Applied {
        batch,
        outcome,
        blobs: apply.blobs.into_iter().collect(),
    })
}

/// Last applied entry and membership; empty on an empty tree.
pub fn applied(tree: &Tree) -> io::Result<pb::Applied> {
    applied_record(tree.get(keys::APPLIED)?)
}

fn applied_record(bytes: Option<bytes::Bytes>) -> io::Result<pb::Applied> {
    match bytes {
        Some(bytes) => decode("applied record", &bytes),
        None => Ok(pb::Applied::default()),
    }
}

/// Index of the last applied entry, and the hash of the state there.
pub fn state_hash(tree: &Tree) -> io::Result<(u64, [u8; 32])> {
    let index = applied(tree)?.last.unwrap_or_default().index;
    Ok((index, StateHash::read(tree.get(keys::HASH)?)?.as_bytes()))
}

/// A lawful no.
struct Refusal(pb::Refused);

fn refuse(reason: pb::Reason, message: impl Into<String>) -> Refusal {
    Refusal(pb::Refused {
        reason: reason.into(),
        message: message.into(),
    })
}

/// What a command decides: done, refused, or a store that failed.
type Decision = io::Result<Result<pb::outcome::Result, Refusal>>;

const DONE: pb::outcome::Result = pb::outcome::Result::Done(pb::Done { created: false });

impl Apply<'_> {
    fn command(&mut self, command: &pb::Command) -> Result<pb::Outcome, ApplyError> {
        use pb::command::Body;
        let unknown = ApplyError::Unknown { index: self.index };
        if command.version > COMMAND_VERSION {
            return Err(unknown);
        }
        let Some(body) = &command.body else {
            return Err(unknown);
        };
        self.version = command.version;
        if let Body::Tick(tick) = body {
            self.tick(tick)?;
            return Ok(self.outcome(DONE));
        }
        if let Some(outcome) = self.answered_before(command, body)? {
            return Ok(outcome);
        }
        let decided = match body {
            Body::CreateCluster(create) => self.create_cluster(create),
            Body::Boot(boot) => self.boot(command, boot),
            Body::PutManifest(put) => self.put_manifest(put),
            Body::DeleteManifest(delete) => self.delete_manifest(delete),
            Body::DeleteTag(delete) => self.delete_tag(delete),
            Body::DeleteBlob(delete) => self.delete_blob(delete),
            Body::Hold(hold) => self.hold(hold),
            Body::Lost(lost) => self.lost(lost),
            Body::Cached(cached) => self.cached(cached),
            Body::SetPolicy(set) => self.set_policy(set),
            Body::UnsetPolicy(unset) => self.unset_policy(unset),
            Body::CountCopies(count) => self.count_copies(count),
            Body::PutAccount(put) => self.put_account(put),
            Body::RemoveAccount(remove) => self.remove_account(remove),
            Body::SetPassword(set) => self.set_password(set),
            Body::RotateSecret(rotate) => self.rotate_secret(rotate),
            Body::SetGrant(set) => self.set_grant(set),
            Body::PutGroup(put) => self.put_group(put),
            Body::RemoveGroup(remove) => self.remove_group(remove),
            Body::SetMember(set) => self.set_member(set),
            Body::PutSigningKey(put) => self.put_signing_key(put),
            Body::Used(used) => self.used(used),
            Body::PutCa(put) => self.put_ca(put),
            Body::CreateJoinToken(create) => self.create_join_token(create),
            Body::UseJoinToken(used) => self.use_join_token(used),
            Body::RevokeJoinToken(revoke) => self.revoke_join_token(revoke),
            Body::Listed(_) => self.listed(),
            Body::Gone(gone) => self.set_gone(NodeId(gone.node), true),
            Body::Back(back) => self.set_gone(NodeId(back.node), false),
            Body::GiveUp(_) | Body::Probe(_) | Body::Tick(_) => Ok(Ok(DONE)),
        }?;
        let outcome = match decided {
            Ok(result) => self.outcome(result),
            Err(Refusal(refused)) => self.outcome(pb::outcome::Result::Refused(refused)),
        };
        self.record(command, &outcome);
        Ok(outcome)
    }

    fn outcome(&self, result: pb::outcome::Result) -> pb::Outcome {
        pb::Outcome {
            index: self.index,
            result: Some(result),
        }
    }
}

#[cfg(test)]
mod tests;
