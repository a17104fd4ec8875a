//! What the state knows of who may join: reads, and the judgement of a token before it is used.

use super::View;
use super::keys;
use super::raft_types::decode;
use super::raft_types::invalid;
use super::state::joining;
use crate::proto::state::v1 as pb;
use crate::topology::NodeId;
use std::io;

impl View {
    /// What the cluster signs certificates of nodes with; None where operators bring their own.
    pub fn ca(&self) -> io::Result<Option<pb::CaRecord>> {
        self.message(keys::CA)
    }

    pub fn join_token(&self, id: &str) -> io::Result<Option<pb::JoinTokenRecord>> {
        self.message(&keys::join_token(id))
    }

    /// Ids of tokens for the region that nobody has used.
    pub fn unused_join_tokens(&self, region: &str) -> io::Result<Vec<String>> {
        let mut ids = Vec::new();
        for (key, value) in self.tree.prefix_page(keys::JOIN_TOKENS, None, usize::MAX)? {
            let record: pb::JoinTokenRecord = decode("join token", &value)?;
            if record.region == region && record.key_hash.is_empty() {
                let id = String::from_utf8(key[keys::JOIN_TOKENS.len()..].to_vec());
                ids.push(id.map_err(invalid)?);
            }
        }
        Ok(ids)
    }

    /// The token that the node joined by, as long as it is remembered.
    pub fn joined_by(&self, node: NodeId) -> io::Result<Option<pb::JoinTokenRecord>> {
        let tokens = self.tree.prefix_page(keys::JOIN_TOKENS, None, usize::MAX)?;
        for (_, value) in tokens {
            let record: pb::JoinTokenRecord = decode("join token", &value)?;
            if record.node == node.0 {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Would this use of a token be let in, by what is known here? The error says why not.
    pub fn judge_join_token(&self, used: &pb::UseJoinToken) -> io::Result<Result<(), String>> {
        Ok(joining::judge(self.join_token(&used.id)?, used).map(drop))
    }
}
