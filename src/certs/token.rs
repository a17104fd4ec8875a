//! A join token: a word that lets one new node into one cluster, as one region. It carries the CA
//! that the node is to trust from its first call on, and a secret of which the cluster keeps only
//! the hash.

use crate::proto::peer::v1::JoinTokenText;
use crate::topology::RegionName;
use crate::topology::Role;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;
use secrecy::ExposeSecret;
use secrecy::SecretBox;
use sha2::Digest;
use sha2::Sha256;
use std::str::FromStr;

const PREFIX: &str = "rsj_";

/// Its `Debug` does not show the secret.
#[derive(Debug)]
pub struct JoinToken {
    pub id: String,
    pub secret: SecretBox<[u8; 32]>,
    pub region: RegionName,
    pub role: Role,
    /// Wall clock.
    pub expires_at_ms: u64,
    /// Certificate of the CA (DER).
    pub ca: Vec<u8>,
    pub cluster_id: String,
    pub lineage: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "this is not a join token: copy all of the word that begins with {PREFIX}, as `roadstead region add` printed it"
)]
pub struct TokenInvalid;

impl JoinToken {
    pub fn secret_hash(secret: &[u8]) -> Vec<u8> {
        Sha256::digest(secret).to_vec()
    }

    /// The word itself, which whoever has it can join with.
    pub fn expose(&self) -> String {
        let text = JoinTokenText {
            id: self.id.clone(),
            secret: self.secret.expose_secret().to_vec().into(),
            region: self.region.to_string(),
            role: crate::proto::state::v1::Role::from(self.role).into(),
            expires_at_ms: self.expires_at_ms,
            ca: self.ca.clone().into(),
            cluster_id: self.cluster_id.clone(),
            lineage: self.lineage.clone(),
        };
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(text.encode_to_vec()))
    }
}

impl FromStr for JoinToken {
    type Err = TokenInvalid;

    fn from_str(word: &str) -> Result<JoinToken, TokenInvalid> {
        let encoded = word.trim().strip_prefix(PREFIX).ok_or(TokenInvalid)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenInvalid)?;
        let text = JoinTokenText::decode(bytes.as_slice()).map_err(|_| TokenInvalid)?;
        let secret: [u8; 32] = text.secret[..].try_into().map_err(|_| TokenInvalid)?;
        if text.id.is_empty() || text.cluster_id.is_empty() || text.lineage.is_empty() {
            return Err(TokenInvalid);
        }
        Ok(JoinToken {
            secret: SecretBox::new(Box::new(secret)),
            region: text.region.parse().map_err(|_| TokenInvalid)?,
            role: text.role().into(),
            id: text.id,
            expires_at_ms: text.expires_at_ms,
            ca: text.ca.to_vec(),
            cluster_id: text.cluster_id,
            lineage: text.lineage,
        })
    }
}
