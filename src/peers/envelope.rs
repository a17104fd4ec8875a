//! The identities that every call between nodes carries, as headers on gRPC and on blob transfers
//! alike: checked before a message is decoded, so that a stray, removed, cloned or older process
//! changes nothing.

use super::Identity;
use crate::certs::JoinToken;
use crate::request_id::RequestId;
use crate::topology::NodeId;
use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Raised when a message changes its meaning.
const PROTOCOL: &str = "1";

const PROTOCOL_HEADER: HeaderName = HeaderName::from_static("roadstead-protocol");
const CLUSTER_HEADER: HeaderName = HeaderName::from_static("roadstead-cluster");
const LINEAGE_HEADER: HeaderName = HeaderName::from_static("roadstead-lineage");
const TARGET_HEADER: HeaderName = HeaderName::from_static("roadstead-target");
const FROM_HEADER: HeaderName = HeaderName::from_static("roadstead-from");
const BOOT_HEADER: HeaderName = HeaderName::from_static("roadstead-boot");
/// The client's request that a call is made for, when there is one.
const REQUEST_HEADER: HeaderName = HeaderName::from_static("roadstead-request");
/// What a node that joins has instead of a certificate.
const TOKEN_HEADER: HeaderName = HeaderName::from_static("roadstead-join-token");
const SECRET_HEADER: HeaderName = HeaderName::from_static("roadstead-join-secret");
const REGION_HEADER: HeaderName = HeaderName::from_static("roadstead-join-region");

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Mismatch {
    #[error("protocol {found:?}; this node speaks {PROTOCOL}: upgrade the older of the two")]
    Protocol { found: String },
    #[error("cluster {found:?} is not this node's cluster, which is {me}")]
    Cluster { found: String, me: String },
    #[error(
        "lineage {found:?} is not this node's, which is {me}: a recovery has left the caller behind; rejoin it under a new id"
    )]
    Lineage { found: String, me: String },
    #[error("meant for node {found:?}; this is node {me}")]
    Target { found: String, me: NodeId },
    #[error("a call without a node id and boot number")]
    From,
    #[error("boot {boot} of node {node} is over: a later start of it is known")]
    Boot { node: NodeId, boot: u64 },
    #[error("this node does not belong to a cluster yet")]
    NotYet,
}

/// What a call to `target` carries; None before the cluster is known, when only the protocol is.
pub fn headers(identity: &Identity, target: Option<NodeId>) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = vec![(PROTOCOL_HEADER, HeaderValue::from_static(PROTOCOL))];
    let mut put = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.push((name, value));
        }
    };
    put(FROM_HEADER, identity.node().to_string());
    put(BOOT_HEADER, identity.boot().to_string());
    if let Some(cluster) = identity.cluster() {
        put(CLUSTER_HEADER, cluster.cluster_id);
        put(LINEAGE_HEADER, cluster.lineage);
    }
    if let Some(target) = target {
        put(TARGET_HEADER, target.to_string());
    }
    if let Some(request) = RequestId::current() {
        put(REQUEST_HEADER, request.to_string());
    }
    headers
}

/// A join token as a member reads it: of the secret only the hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    pub id: String,
    pub secret_hash: Vec<u8>,
    pub region: String,
}

/// What the holder of a token carries besides: also which cluster and lineage the token is of,
/// since a node that has not joined says nothing of them.
pub fn invitation_headers(token: &JoinToken) -> Vec<(HeaderName, HeaderValue)> {
    let pairs = [
        (TOKEN_HEADER, token.id.clone()),
        (SECRET_HEADER, hex::encode(token.secret.expose_secret())),
        (REGION_HEADER, token.region.to_string()),
        (CLUSTER_HEADER, token.cluster_id.clone()),
        (LINEAGE_HEADER, token.lineage.clone()),
    ];
    let pairs = pairs.into_iter().filter_map(|(name, value)| {
        let mut value = HeaderValue::try_from(value).ok()?;
        value.set_sensitive(name == SECRET_HEADER);
        Some((name, value))
    });
    pairs.collect()
}

pub fn invitation(headers: &HeaderMap) -> Option<Invitation> {
    let id = text(headers, &TOKEN_HEADER);
    let secret = hex::decode(text(headers, &SECRET_HEADER)).ok()?;
    (!id.is_empty() && !secret.is_empty()).then(|| Invitation {
        id,
        secret_hash: JoinToken::secret_hash(&secret),
        region: text(headers, &REGION_HEADER),
    })
}

/// The client's request that a call is made for.
pub fn request(headers: &HeaderMap) -> Option<RequestId> {
    text(headers, &REQUEST_HEADER).parse().ok()
}

/// The checks of one listener, which remember the latest start of each caller.
#[derive(Default)]
pub struct Guard {
    boots: Mutex<BTreeMap<NodeId, u64>>,
}

impl Guard {
    /// Who calls. `is_open`: a call from a node that may not know the cluster yet.
    pub fn check(
        &self,
        headers: &HeaderMap,
        identity: &Identity,
        is_open: bool,
    ) -> Result<NodeId, Mismatch> {
        let protocol = text(headers, &PROTOCOL_HEADER);
        if protocol != PROTOCOL {
            return Err(Mismatch::Protocol { found: protocol });
        }
        self.check_place(headers, identity, is_open)?;
        let node: NodeId = text(headers, &FROM_HEADER)
            .parse()
            .map_err(|_| Mismatch::From)?;
        let boot: u64 = text(headers, &BOOT_HEADER)
            .parse()
            .map_err(|_| Mismatch::From)?;
        if !is_open {
            let mut boots = self.boots.lock().expect("no panic while held");
            let latest = boots.entry(node).or_default();
            if boot < *latest {
                return Err(Mismatch::Boot { node, boot });
            }
            *latest = boot;
        }
        Ok(node)
    }

    /// An open call may leave out what it does not know; what it says must be right all the same.
    fn check_place(
        &self,
        headers: &HeaderMap,
        identity: &Identity,
        is_open: bool,
    ) -> Result<(), Mismatch> {
        let said = |name: &HeaderName| {
            Some(text(headers, name)).filter(|said| !(is_open && said.is_empty()))
        };
        match identity.cluster() {
            Some(cluster) => {
                if let Some(found) =
                    said(&CLUSTER_HEADER).filter(|said| *said != cluster.cluster_id)
                {
                    let me = cluster.cluster_id;
                    return Err(Mismatch::Cluster { found, me });
                }
                if let Some(found) = said(&LINEAGE_HEADER).filter(|said| *said != cluster.lineage) {
                    let me = cluster.lineage;
                    return Err(Mismatch::Lineage { found, me });
                }
            }
            None if is_open => {}
            None => return Err(Mismatch::NotYet),
        }
        let me = identity.node();
        match said(&TARGET_HEADER).filter(|said| *said != me.to_string()) {
            Some(found) => Err(Mismatch::Target { found, me }),
            None => Ok(()),
        }
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::ClusterIdentity;
    use super::*;
    use crate::topology::Role;

    fn identity(node: u64, boot: u64, lineage: &str) -> Identity {
        let cluster = ClusterIdentity {
            cluster_id: "c".to_owned(),
            lineage: lineage.to_owned(),
        };
        let region = "r1".parse().unwrap();
        Identity::new(
            NodeId(node),
            region,
            Role::Voter,
            boot,
            String::new(),
            Some(cluster),
        )
    }

    fn sent(from: &Identity, to: u64) -> HeaderMap {
        headers(from, Some(NodeId(to))).into_iter().collect()
    }

    #[test]
    fn a_call_is_taken_from_a_member_of_the_lineage_and_for_this_node_only() {
        let (me, guard) = (identity(2, 1, "l"), Guard::default());
        let peer = identity(1, 5, "l");
        assert_eq!(guard.check(&sent(&peer, 2), &me, false), Ok(NodeId(1)));
        assert!(matches!(
            guard.check(&sent(&peer, 3), &me, false),
            Err(Mismatch::Target { .. })
        ));
        let other = identity(1, 5, "another");
        assert!(matches!(
            guard.check(&sent(&other, 2), &me, false),
            Err(Mismatch::Lineage { .. })
        ));
        let mut foreign = sent(&peer, 2);
        foreign.insert(PROTOCOL_HEADER, HeaderValue::from_static("9"));
        assert!(matches!(
            guard.check(&foreign, &me, false),
            Err(Mismatch::Protocol { .. })
        ));
        assert_eq!(
            guard.check(&HeaderMap::new(), &me, true),
            Err(Mismatch::Protocol {
                found: String::new()
            })
        );
    }

    #[test]
    fn a_node_that_joins_need_not_know_the_cluster_but_may_not_name_another() {
        let guard = Guard::default();
        let (me, stranger) = (identity(2, 1, "l"), identity(1, 1, "l"));
        let joining = Identity::new(
            NodeId(1),
            "r1".parse().unwrap(),
            Role::Voter,
            1,
            String::new(),
            None,
        );
        let sent_to = |from: &Identity, to| headers(from, to).into_iter().collect::<HeaderMap>();
        assert_eq!(
            guard.check(&sent_to(&joining, None), &me, true),
            Ok(NodeId(1))
        );
        assert_eq!(
            guard.check(&sent_to(&stranger, None), &joining, true),
            Ok(NodeId(1))
        );
        assert!(matches!(
            guard.check(&sent_to(&joining, None), &me, false),
            Err(Mismatch::Cluster { .. })
        ));
        let other = identity(1, 1, "another");
        assert!(matches!(
            guard.check(&sent_to(&other, None), &me, true),
            Err(Mismatch::Lineage { .. })
        ));
        let to_another = sent_to(&stranger, Some(NodeId(9)));
        assert!(matches!(
            guard.check(&to_another, &me, true),
            Err(Mismatch::Target { .. })
        ));
    }

    #[test]
    fn an_older_start_of_a_node_is_refused_once_a_later_one_was_seen() {
        let (me, guard) = (identity(2, 1, "l"), Guard::default());
        assert!(
            guard
                .check(&sent(&identity(1, 5, "l"), 2), &me, false)
                .is_ok()
        );
        assert!(
            guard
                .check(&sent(&identity(1, 6, "l"), 2), &me, false)
                .is_ok()
        );
        assert!(matches!(
            guard.check(&sent(&identity(1, 5, "l"), 2), &me, false),
            Err(Mismatch::Boot { .. })
        ));
    }
}
