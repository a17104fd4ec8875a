//! The gRPC services: each method hands its message to the part that answers it.

use super::gate::Caller;
use crate::certs::PeerCertificate;
use crate::certs::Wire;
use crate::cluster::enrolling;
use crate::cluster::enrolling::SignError;
use crate::metadata::Metadata;
use crate::oci::Digest;
use crate::oci::RepositoryName;
use crate::peers::Identity;
use crate::peers::Peers;
use crate::peers::envelope::Invitation;
use crate::proto::peer::v1 as pb;
use crate::proto::peer::v1::blobs_server::Blobs;
use crate::proto::peer::v1::cluster_server::Cluster;
use crate::proto::peer::v1::metadata_server::Metadata as MetadataRpc;
use crate::proto::peer::v1::raft_server::Raft;
use crate::registry::Registry;
use crate::topology::NodeId;
use crate::topology::Role;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status, Streaming};

/// Receipts and links are asked for in one call for all blobs of a manifest: at most its descriptors.
const MOST_DIGESTS: usize = 8192;
/// A join that is passed on to the leader.
const JOIN: Duration = Duration::from_secs(55);

fn caller<T>(request: &Request<T>) -> Result<NodeId, Status> {
    let caller = request.extensions().get::<Caller>();
    caller
        .map(|caller| caller.0)
        .ok_or_else(|| Status::failed_precondition("a call without a caller"))
}

/// Of the node at the other end of the connection, over TLS.
fn certificate<T>(request: &Request<T>) -> Option<Arc<PeerCertificate>> {
    match request.extensions().get::<Wire>() {
        Some(Wire::Tls(certificate)) => certificate.clone(),
        _ => None,
    }
}

pub struct RaftService {
    pub metadata: Metadata,
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn append(
        &self,
        request: Request<pb::AppendRequest>,
    ) -> Result<Response<pb::AppendResponse>, Status> {
        self.metadata
            .serve_append(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        self.metadata
            .serve_vote(request.into_inner(), false)
            .await
            .map(Response::new)
    }

    async fn pre_vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        self.metadata
            .serve_vote(request.into_inner(), true)
            .await
            .map(Response::new)
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotPiece>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        self.metadata
            .serve_snapshot(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        self.metadata
            .serve_transfer_leader(request.into_inner())
            .await
            .map(Response::new)
    }
}

pub struct MetadataService {
    pub metadata: Metadata,
    pub registry: Option<Registry>,
}

#[tonic::async_trait]
impl MetadataRpc for MetadataService {
    async fn propose(
        &self,
        request: Request<pb::ProposeRequest>,
    ) -> Result<Response<pb::ProposeResponse>, Status> {
        let from = caller(&request)?;
        Ok(Response::new(
            self.metadata
                .serve_propose(from, request.into_inner())
                .await,
        ))
    }

    async fn commit_index(
        &self,
        request: Request<pb::CommitIndexRequest>,
    ) -> Result<Response<pb::CommitIndexResponse>, Status> {
        let from = caller(&request)?;
        Ok(Response::new(
            self.metadata
                .serve_commit_index(from, request.into_inner())
                .await,
        ))
    }

    async fn applied(
        &self,
        request: Request<pb::AppliedRequest>,
    ) -> Result<Response<pb::AppliedResponse>, Status> {
        Ok(Response::new(
            self.metadata.serve_applied(request.into_inner()).await,
        ))
    }

    async fn node_status(
        &self,
        _request: Request<pb::NodeStatusRequest>,
    ) -> Result<Response<pb::NodeStatusResponse>, Status> {
        let (index, hash) = self
            .metadata
            .view()
            .state_hash()
            .map_err(|error| Status::internal(error.to_string()))?;
        let (disk_total, disk_free) = self.registry.as_ref().map_or((0, 0), Registry::disk);
        Ok(Response::new(pb::NodeStatusResponse {
            applied: index,
            state_hash_index: index,
            state_hash: bytes::Bytes::copy_from_slice(&hash),
            disk_total,
            disk_free,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }
}

pub struct ClusterService {
    pub identity: Identity,
    pub metadata: Metadata,
    pub peers: Peers,
    pub raft_profile: String,
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn hello(
        &self,
        _request: Request<pb::HelloRequest>,
    ) -> Result<Response<pb::HelloResponse>, Status> {
        let cluster = self.identity.cluster();
        let (cluster_id, lineage) =
            cluster.map_or_else(Default::default, |c| (c.cluster_id, c.lineage));
        Ok(Response::new(pb::HelloResponse {
            cluster_id,
            lineage,
            raft_profile: self.raft_profile.clone(),
            node: self.identity.node().0,
        }))
    }

    /// Answered by the leader; any other node passes it on, once.
    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        use pb::join_response::Result as Answer;
        let passed_on = caller(&request)?;
        let certificate = certificate(&request);
        let join = request.into_inner();
        if let Some(certificate) = certificate.filter(|_| passed_on.0 == join.node) {
            let region = join.info.as_ref().map_or("", |info| info.region.as_str());
            if certificate.region.as_str() != region {
                let why = format!(
                    "its certificate is of region {}, and it asks to join as region {region:?}: give \
                     the node the certificate of its own region",
                    certificate.region
                );
                return Ok(Response::new(pb::JoinResponse {
                    result: Some(Answer::Refused(why)),
                }));
            }
        }
        if join.raft_profile != self.raft_profile {
            let why = format!(
                "the cluster runs raft profile {:?}, the joining node {:?}: set [raft] profile alike",
                self.raft_profile, join.raft_profile
            );
            return Ok(Response::new(pb::JoinResponse {
                result: Some(Answer::Refused(why)),
            }));
        }
        let invited = self.metadata.view().joined_by(NodeId(join.node));
        let invited = invited.map_err(|error| Status::internal(error.to_string()))?;
        if let (Some(invited), Some(info)) = (invited, &join.info)
            && invited.role() != info.role()
        {
            let why = format!(
                "its join token is for a {}, and it asks to be a {}",
                Role::from(invited.role()),
                Role::from(info.role())
            );
            return Ok(Response::new(pb::JoinResponse {
                result: Some(Answer::Refused(why)),
            }));
        }
        let response = self.metadata.serve_join(join.clone()).await;
        let leader = match &response.result {
            Some(Answer::NotLeader(not)) if passed_on.0 == join.node => NodeId(not.leader),
            _ => return Ok(Response::new(response)),
        };
        let Some((_, address)) = self.peers.address(leader) else {
            return Ok(Response::new(response));
        };
        match self.peers.join(&address, join, JOIN).await {
            Ok(response) => Ok(Response::new(response)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    /// Any member answers. Whoever calls has no certificate, or needs none any more: its token was
    /// looked at before (gate.rs).
    async fn enroll(
        &self,
        request: Request<pb::EnrollRequest>,
    ) -> Result<Response<pb::EnrollResponse>, Status> {
        let Some(invitation) = request.extensions().get::<Invitation>().cloned() else {
            return Err(Status::failed_precondition(
                "a certificate is issued for a join token only; an enrolled node renews its own",
            ));
        };
        let issued = enrolling::answer(&self.metadata, &invitation, request.into_inner()).await;
        issued.map(Response::new).map_err(|error| match error {
            SignError::Refused(why) => Status::failed_precondition(why),
            SignError::Unavailable(why) => Status::unavailable(why),
            SignError::Io(error) => {
                tracing::error!(%error, "read the CA of this cluster");
                Status::internal("this node cannot read its metadata store")
            }
        })
    }
}

pub struct BlobsService {
    pub registry: Registry,
}

#[tonic::async_trait]
impl Blobs for BlobsService {
    async fn receipts(
        &self,
        request: Request<pb::ReceiptsRequest>,
    ) -> Result<Response<pb::ReceiptsResponse>, Status> {
        let digests = digests(&request.into_inner().digests)?;
        let receipts = self.registry.receipts_for(&digests).await;
        Ok(Response::new(pb::ReceiptsResponse { receipts }))
    }

    async fn stat(
        &self,
        request: Request<pb::StatRequest>,
    ) -> Result<Response<pb::StatResponse>, Status> {
        let request = request.into_inner();
        let repository = match request.repository.as_str() {
            "" => None,
            name => Some(
                name.parse::<RepositoryName>()
                    .map_err(|error| Status::invalid_argument(error.to_string()))?,
            ),
        };
        let (digest, further) = (digest(&request.digest)?, digests(&request.further)?);
        let stat = |digest| self.registry.local_stat(repository.as_ref(), digest);
        let mut answer = stat(&digest).await;
        for digest in &further {
            answer.further.push(stat(digest).await);
        }
        Ok(Response::new(answer))
    }

    async fn mount(
        &self,
        request: Request<pb::MountRequest>,
    ) -> Result<Response<pb::MountResponse>, Status> {
        let pb::MountRequest {
            repository,
            digest: blob,
            from,
            principal,
        } = request.into_inner();
        let blob = digest(&blob)?;
        let of = |name: &str| {
            let name = name.parse::<RepositoryName>().ok();
            name.and_then(|name| self.registry.for_peer(&principal, &name))
                .ok_or_else(|| Status::invalid_argument("not a repository, or not a principal"))
        };
        let from = match from.as_str() {
            "" => None,
            name => Some(of(name)?),
        };
        let repository = of(&repository)?;
        let mounted = repository.mount_here(&blob, from.as_ref()).await;
        let mounted = mounted.unwrap_or_else(|error| {
            tracing::warn!(%blob, %error, "mount a blob for a peer");
            false
        });
        Ok(Response::new(pb::MountResponse { mounted }))
    }
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse()
        .map_err(|error: crate::oci::DigestInvalid| Status::invalid_argument(error.to_string()))
}

fn digests(texts: &[String]) -> Result<Vec<Digest>, Status> {
    if texts.len() > MOST_DIGESTS {
        let told = format!("at most {MOST_DIGESTS} digests at once");
        return Err(Status::invalid_argument(told));
    }
    texts.iter().map(|text| digest(text)).collect()
}
