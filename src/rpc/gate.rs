//! Who calls? Certificate and headers are checked before a body is decoded.
//!
//! What must stay true: over TLS a caller without a certificate reaches `Enroll` alone, and that only
//! with a join token that the state knows; with one it is only who the certificate says.

use crate::certs::PeerCertificate;
use crate::certs::Wire;
use crate::cluster::enrolling;
use crate::cluster::enrolling::SignError;
use crate::metadata::Metadata;
use crate::peers::ClusterIdentity;
use crate::peers::Identity;
use crate::peers::envelope;
use crate::peers::envelope::Guard;
use crate::topology::NodeId;
use crate::topology::RegionName;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use std::io;
use std::sync::Arc;
use std::time::Instant;

const OPEN: &str = "/roadstead.peer.v1.Cluster/";
const ENROLL: &str = "/roadstead.peer.v1.Cluster/Enroll";

/// Who calls, by its checked headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub NodeId);

#[derive(Clone)]
pub(super) struct Gate {
    identity: Identity,
    metadata: Metadata,
    guard: Arc<Guard>,
}

enum Refusal {
    No(String),
    /// It may be let in later.
    NotNow(String),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Io(error)
    }
}

impl Gate {
    pub fn new(identity: Identity, metadata: Metadata) -> Gate {
        Gate {
            identity,
            metadata,
            guard: Arc::default(),
        }
    }

    async fn check(&self, request: &mut Request) -> Result<NodeId, Refusal> {
        let wire = request.extensions().get::<Wire>().cloned();
        let path = request.uri().path();
        let is_enrolling = path == ENROLL;
        if matches!(wire, Some(Wire::Tls(None))) && !is_enrolling {
            return Err(Refusal::No(
                "a call without a certificate: nodes of this cluster know each other by certificates \
                 of its CA"
                    .to_owned(),
            ));
        }
        // A node that joins does not know the cluster yet.
        let is_open = path.starts_with(OPEN);
        let checked = self.guard.check(request.headers(), &self.identity, is_open);
        let node = checked.map_err(|mismatch| Refusal::No(mismatch.to_string()))?;
        let view = self.metadata.view();
        if view.is_removed(node)? {
            return Err(Refusal::No(format!(
                "node {node} was removed from this cluster for ever; join again with an empty data directory"
            )));
        }
        if is_enrolling {
            let Some(invitation) = envelope::invitation(request.headers()) else {
                return Err(Refusal::No(
                    "a certificate is issued for a join token".to_owned(),
                ));
            };
            let checked = enrolling::check(&self.metadata, &invitation).await;
            checked.map_err(|error| match error {
                SignError::Refused(why) => Refusal::No(why),
                SignError::Unavailable(why) => Refusal::NotNow(why),
                SignError::Io(error) => Refusal::Io(error),
            })?;
            request.extensions_mut().insert(invitation);
        } else if let Some(Wire::Tls(Some(certificate))) = wire {
            let known = view.node(node)?.map(|record| record.region);
            let cluster = self.identity.cluster();
            check_certificate(&certificate, node, known.as_ref(), cluster.as_ref())
                .map_err(Refusal::No)?;
        }
        Ok(node)
    }
}

/// Is this certificate the caller's? `known`: the region that it is a member as.
fn check_certificate(
    certificate: &PeerCertificate,
    node: NodeId,
    known: Option<&RegionName>,
    cluster: Option<&ClusterIdentity>,
) -> Result<(), String> {
    if let Some(region) = known.filter(|region| **region != certificate.region) {
        return Err(format!(
            "node {node} is of region {region}, and the certificate that it shows of region {}",
            certificate.region
        ));
    }
    let Some(bound) = &certificate.bound else {
        return Ok(());
    };
    if bound.node != node {
        return Err(format!(
            "the call says that it is from node {node}, and the certificate is of node {}",
            bound.node
        ));
    }
    let Some(cluster) = cluster else {
        return Ok(());
    };
    let (lineage, cluster_id) = (&cluster.lineage, &cluster.cluster_id);
    if bound.cluster_id != *cluster_id {
        return Err(format!(
            "the certificate of node {node} is of cluster {}, and this is cluster {cluster_id}",
            bound.cluster_id
        ));
    }
    if bound.lineage != *lineage {
        return Err(format!(
            "the certificate of node {node} is of lineage {}, and this cluster's lineage is {lineage}: a \
             recovery has left the node behind; join again with an empty data directory",
            bound.lineage
        ));
    }
    Ok(())
}

/// A client's request is behind this call: a line of its own.
async fn told(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = Instant::now();
    let response = next.run(request).await;
    let (status, ms) = (response.status().as_u16(), began.elapsed().as_millis());
    tracing::debug!(%method, path, status, ms, "answered a node");
    response
}

pub(super) async fn check_caller(
    State(gate): State<Gate>,
    mut request: Request,
    next: Next,
) -> Response {
    let is_grpc = request
        .headers()
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    let refusal = match gate.check(&mut request).await {
        Ok(node) => {
            request.extensions_mut().insert(Caller(node));
            return match envelope::request(request.headers()) {
                Some(id) => id.serve(&node.to_string(), told(request, next)).await,
                None => next.run(request).await,
            };
        }
        Err(Refusal::NotNow(why)) if is_grpc => {
            return tonic::Status::unavailable(why).into_http();
        }
        Err(Refusal::NotNow(why) | Refusal::No(why)) => why,
        Err(Refusal::Io(error)) => {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "read what is known of a caller");
            "this node cannot read its metadata store".to_owned()
        }
    };
    if is_grpc {
        tonic::Status::failed_precondition(refusal).into_http()
    } else {
        (StatusCode::MISDIRECTED_REQUEST, refusal).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::Bound;
    use std::time::SystemTime;

    fn certificate(region: &str, bound: Option<(&str, &str, u64)>) -> PeerCertificate {
        PeerCertificate {
            region: region.parse().unwrap(),
            bound: bound.map(|(cluster, lineage, node)| Bound {
                cluster_id: cluster.to_owned(),
                lineage: lineage.to_owned(),
                node: NodeId(node),
            }),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_certificate_that_is_not_the_callers_is_refused_with_what_was_expected_and_found() {
        let cluster = ClusterIdentity {
            cluster_id: "c".to_owned(),
            lineage: "l".to_owned(),
        };
        let r1: RegionName = "r1".parse().unwrap();
        let check = |certificate: &PeerCertificate| {
            check_certificate(certificate, NodeId(7), Some(&r1), Some(&cluster))
        };
        assert_eq!(check(&certificate("r1", None)), Ok(()));
        assert_eq!(check(&certificate("r1", Some(("c", "l", 7)))), Ok(()));
        let fresh = certificate("r9", Some(("c", "l", 7)));
        assert_eq!(check_certificate(&fresh, NodeId(7), None, None), Ok(()));
        for (certificate, expected, found) in [
            (certificate("r2", None), "region r1", "region r2"),
            (
                certificate("r1", Some(("c", "l", 8))),
                "0000000000000007",
                "0000000000000008",
            ),
            (
                certificate("r1", Some(("d", "l", 7))),
                "cluster c",
                "cluster d",
            ),
            (
                certificate("r1", Some(("c", "old", 7))),
                "lineage is l",
                "lineage old",
            ),
        ] {
            let why = check(&certificate).unwrap_err();
            assert!(why.contains(expected) && why.contains(found), "{why}");
        }
    }
}
