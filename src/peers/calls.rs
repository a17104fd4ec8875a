//! The gRPC calls: one typed method each, with its deadline. Votes, appends, snapshots and other
//! calls have a connection each, so that none waits behind a large one.

use super::{CONNECT, Io, PeerError, Peers, envelope};
use crate::certs::{JoinToken, refusal};
use crate::proto::peer::v1 as pb;
use crate::proto::peer::v1::blobs_client::BlobsClient;
use crate::proto::peer::v1::cluster_client::ClusterClient;
use crate::proto::peer::v1::metadata_client::MetadataClient;
use crate::proto::peer::v1::raft_client::RaftClient;
use crate::topology::NodeId;
use futures_util::Stream;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::transport::Endpoint;

/// A manifest, its envelope and some more; an append is cut at 2 MiB or at one entry.
pub const MAX_MESSAGE: usize = 32 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    Votes,
    Append,
    Snapshot,
    Calls,
}

macro_rules! call {
    ($name:ident, $client:ident, $channel:expr, $request:ty, $response:ty) => {
        pub async fn $name(
            &self,
            to: NodeId,
            request: $request,
            within: Duration,
        ) -> Result<$response, PeerError> {
            let channel = self.channel(to, $channel)?;
            let mut client = $client::new(channel)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE);
            let request = self.request(Some(to), request);
            finish(to, within, client.$name(request)).await
        }
    };
}

impl Peers {
    call!(
        vote,
        RaftClient,
        Channel::Votes,
        pb::VoteRequest,
        pb::VoteResponse
    );
    call!(
        pre_vote,
        RaftClient,
        Channel::Votes,
        pb::VoteRequest,
        pb::VoteResponse
    );
    call!(
        transfer_leader,
        RaftClient,
        Channel::Votes,
        pb::TransferLeaderRequest,
        pb::TransferLeaderResponse
    );
    call!(
        propose,
        MetadataClient,
        Channel::Calls,
        pb::ProposeRequest,
        pb::ProposeResponse
    );
    call!(
        commit_index,
        MetadataClient,
        Channel::Calls,
        pb::CommitIndexRequest,
        pb::CommitIndexResponse
    );
    call!(
        applied,
        MetadataClient,
        Channel::Calls,
        pb::AppliedRequest,
        pb::AppliedResponse
    );
    call!(
        node_status,
        MetadataClient,
        Channel::Calls,
        pb::NodeStatusRequest,
        pb::NodeStatusResponse
    );
    call!(
        receipts,
        BlobsClient,
        Channel::Calls,
        pb::ReceiptsRequest,
        pb::ReceiptsResponse
    );
    call!(
        stat,
        BlobsClient,
        Channel::Calls,
        pb::StatRequest,
        pb::StatResponse
    );
    call!(
        mount,
        BlobsClient,
        Channel::Calls,
        pb::MountRequest,
        pb::MountResponse
    );

    /// Entries on the append connection, heartbeats on that of the votes.
    pub async fn append(
        &self,
        to: NodeId,
        channel: Channel,
        request: pb::AppendRequest,
        within: Duration,
    ) -> Result<pb::AppendResponse, PeerError> {
        let mut client = RaftClient::new(self.channel(to, channel)?)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let request = self.request(Some(to), request);
        finish(to, within, client.append(request)).await
    }

    /// The caller bounds it: a snapshot takes as long as its pieces move.
    pub async fn snapshot(
        &self,
        to: NodeId,
        pieces: impl Stream<Item = pb::SnapshotPiece> + Send + 'static,
    ) -> Result<pb::SnapshotResponse, PeerError> {
        let mut client = RaftClient::new(self.channel(to, Channel::Snapshot)?);
        let request = self.request(Some(to), pieces);
        let response = client.snapshot(request).await;
        response
            .map(tonic::Response::into_inner)
            .map_err(|status| classify(to, &status))
    }

    pub async fn ping(&self, to: NodeId, within: Duration) -> Result<pb::HelloResponse, PeerError> {
        let mut client = ClusterClient::new(self.channel(to, Channel::Calls)?);
        let request = self.request(Some(to), pb::HelloRequest {});
        finish(to, within, client.hello(request)).await
    }

    /// By address, before the node there is known.
    pub async fn hello(
        &self,
        address: &str,
        within: Duration,
    ) -> Result<pb::HelloResponse, PeerError> {
        let mut client = ClusterClient::new(self.dial(NodeId(0), address)?);
        let request = self.request(None, pb::HelloRequest {});
        finish(NodeId(0), within, client.hello(request)).await
    }

    pub async fn join(
        &self,
        address: &str,
        join: pb::JoinRequest,
        within: Duration,
    ) -> Result<pb::JoinResponse, PeerError> {
        let mut client = ClusterClient::new(self.dial(NodeId(0), address)?);
        let request = self.request(None, join);
        finish(NodeId(0), within, client.join(request)).await
    }

    /// By address, with a token instead of a certificate: the one call for which no certificate is
    /// needed.
    pub async fn enroll(
        &self,
        address: &str,
        token: &JoinToken,
        enroll: pb::EnrollRequest,
        within: Duration,
    ) -> Result<pb::EnrollResponse, PeerError> {
        let mut client = ClusterClient::new(self.dial(NodeId(0), address)?);
        let mut request = self.request(None, enroll);
        let headers = envelope::invitation_headers(token).into_iter().collect();
        for pair in MetadataMap::from_headers(headers).iter() {
            if let KeyAndValueRef::Ascii(key, value) = pair {
                request.metadata_mut().insert(key, value.clone());
            }
        }
        finish(NodeId(0), within, client.enroll(request)).await
    }

    fn request<T>(&self, to: Option<NodeId>, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let headers = envelope::headers(self.identity(), to).into_iter().collect();
        let extra = MetadataMap::from_headers(headers);
        for pair in extra.iter() {
            if let KeyAndValueRef::Ascii(key, value) = pair {
                request.metadata_mut().insert(key, value.clone());
            }
        }
        request
    }

    fn channel(
        &self,
        to: NodeId,
        channel: Channel,
    ) -> Result<tonic::transport::Channel, PeerError> {
        let Some((_, address)) = self.address(to) else {
            return Err(PeerError::Unreachable(
                to,
                "its address is not known".to_owned(),
            ));
        };
        let mut channels = self.inner.channels.lock().expect("no panic while held");
        if let Some((known, channel)) = channels.get(&(to, channel))
            && *known == address
        {
            return Ok(channel.clone());
        }
        let dialled = self.dial(to, &address)?;
        channels.insert((to, channel), (address, dialled.clone()));
        Ok(dialled)
    }

    /// Connects when it is first used, and again when the connection is lost. Windows fit a wide
    /// link; a dead one is noticed within 15 s.
    fn dial(&self, to: NodeId, address: &str) -> Result<tonic::transport::Channel, PeerError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| PeerError::Unreachable(to, format!("{address}: {error}")))?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20);
        let connector = self.inner.connector.clone();
        let tls = self.inner.tls.clone();
        // By its address only, any node of the cluster will do.
        let target = self.address(to).map(|(region, _)| (to, region));
        Ok(
            endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: http::Uri| {
                let address = uri.authority().map(ToString::to_string).unwrap_or_default();
                let connecting = (connector.0)(address);
                let (tls, target) = (tls.clone(), target.clone());
                async move {
                    let stream = connecting.await?;
                    let stream: Box<dyn Io> = match tls {
                        None => stream,
                        Some(tls) => Box::new(tls.connect(stream, target).await?),
                    };
                    Ok::<_, std::io::Error>(TokioIo::new(stream))
                }
            })),
        )
    }
}

async fn finish<T>(
    to: NodeId,
    within: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, PeerError> {
    match tokio::time::timeout(within, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(classify(to, &status)),
        Err(_) => Err(PeerError::Unclear(
            to,
            format!("no answer within {within:?}"),
        )),
    }
}

fn classify(to: NodeId, status: &tonic::Status) -> PeerError {
    if let Some(why) = refusal(status) {
        return PeerError::Refused(to, why);
    }
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return PeerError::Unreachable(to, error.to_string());
        }
        cause = error.source();
    }
    match status.code() {
        tonic::Code::FailedPrecondition
        | tonic::Code::InvalidArgument
        | tonic::Code::PermissionDenied => PeerError::Refused(to, status.message().to_owned()),
        code => PeerError::Unclear(to, format!("{code:?}: {}", status.message())),
    }
}
