//! The words for where things are: regions, nodes, roles. Pure types, parsed at the edge.

use crate::proto::state::v1 as pb;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

/// The place an operator names: a lower-case DNS label, so that it fits host names and headers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionName(Arc<str>);

impl RegionName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a region name: use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
)]
pub struct RegionNameInvalid(String);

impl FromStr for RegionName {
    type Err = RegionNameInvalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let fits = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
            && alphanumeric(bytes[0])
            && alphanumeric(bytes[bytes.len() - 1]);
        if fits {
            Ok(RegionName(text.into()))
        } else {
            Err(RegionNameInvalid(text.to_owned()))
        }
    }
}

/// A process with its data directory. Random, born with the directory, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a node id: 16 hexadecimal digits")]
pub struct NodeIdInvalid(String);

impl FromStr for NodeId {
    type Err = NodeIdInvalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The parser of numbers takes a sign, too: no digit.
        let is_hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number
            .map(NodeId)
            .ok_or_else(|| NodeIdInvalid(text.to_owned()))
    }
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Votes, keeps blobs, serves the registry.
    Voter,
    /// Replicates and serves, does not vote.
    Learner,
    /// Votes, keeps no blobs, serves no registry.
    Witness,
}

impl Role {
    pub fn votes(self) -> bool {
        matches!(self, Role::Voter | Role::Witness)
    }

    pub fn keeps_blobs(self) -> bool {
        matches!(self, Role::Voter | Role::Learner)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Voter => "voter",
            Role::Learner => "learner",
            Role::Witness => "witness",
        })
    }
}

impl From<Role> for pb::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Voter => pb::Role::Voter,
            Role::Learner => pb::Role::Learner,
            Role::Witness => pb::Role::Witness,
        }
    }
}

impl From<pb::Role> for Role {
    /// A role that this release does not know is read as the one that is trusted least.
    fn from(role: pb::Role) -> Self {
        match role {
            pb::Role::Voter => Role::Voter,
            pb::Role::Witness => Role::Witness,
            pb::Role::Learner | pb::Role::Unspecified => Role::Learner,
        }
    }
}

/// Whoever is at the other end of a connection; in the extensions of each of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client(pub SocketAddr);

/// In place of it when the request came over the socket in the node's data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnSocket;

/// In the extensions of each request that came over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secure;

/// A member of the cluster: where it is, and what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub region: RegionName,
    /// host:port of its peer listener.
    pub peer: String,
    pub role: Role,
}

impl Default for Node {
    /// A member whose place is not known: it does not vote, and no call reaches it.
    fn default() -> Self {
        Node {
            region: RegionName("unknown".into()),
            peer: String::new(),
            role: Role::Learner,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_names_are_dns_labels() {
        for good in ["r1", "eu-west", "a", &"x".repeat(63)] {
            assert_eq!(good.parse::<RegionName>().expect(good).as_str(), good);
        }
        for bad in ["", "-a", "a-", "EU", "a_b", "a.b", &"x".repeat(64)] {
            assert!(bad.parse::<RegionName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn node_ids_are_sixteen_hex_digits() {
        let id = NodeId(0xab);
        assert_eq!(id.to_string(), "00000000000000ab");
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        for bad in ["", "ab", "+0000000000000ab", "00000000000000é"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
        }
    }
}
