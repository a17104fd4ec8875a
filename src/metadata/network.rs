//! openraft's calls over `Peers`.
//!
//! openraft gives an append the heartbeat interval as its deadline. On a wide link a batch of 2 MiB
//! never fits into it, and the log would stop for good (A13): appends have their own, which grows
//! with what is sent.
//!
//! What must stay true: an append that was not answered is repeated only after the node has answered
//! something since. An append renews the trust of its receiver in this leader; a leader that can send
//! but not hear would keep it for ever, with no quorum. Openraft lets such a leader's heartbeats pause
//! (`quorum_loss_probe_interval`), so its appends have to pause with them.

use super::raft_types::{
    LogId, TypeConfig, Vote, applied_to_pb, entry_to_pb, log_id_from_pb, log_id_to_pb,
    vote_from_pb, vote_to_pb,
};
use super::snapshot::SnapshotFile;
use crate::peers::{Channel, PeerError, Peers};
use crate::proto::peer::v1 as pb;
use crate::topology::{Node, NodeId};
use futures_util::stream;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::network::v2::RaftNetworkV2;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend, RaftNetworkFactory};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

type SnapshotOf = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;
type TransferResponse = openraft::raft::TransferLeaderResponse<TypeConfig>;

const APPEND: Duration = Duration::from_secs(5);
/// A link slower than this cannot carry a log.
const SLOWEST_BYTES_PER_SECOND: usize = 128 << 10;
const PIECE: usize = 256 << 10;
/// A snapshot of which no piece is taken for this long is given up.
const NO_PROGRESS: Duration = Duration::from_secs(20);
/// A receiver that has all pieces reads them once more and loads them; if it is gone, the
/// connection's own pings say so long before.
const INSTALL: Duration = Duration::from_secs(3600);

pub struct Network {
    peers: Peers,
    lines: BTreeMap<NodeId, Line>,
}

/// What this process knows of a node, over all links to it.
#[derive(Clone)]
struct Line(Arc<Known>);

struct Known {
    /// Set while an append to it is unanswered and nothing else was answered since.
    is_in_doubt: watch::Sender<bool>,
    /// The highest committed entry that it acknowledged. Such an entry is never truncated, so this
    /// outlives a leadership, and a node with a shorter log has lost some of it (A18).
    acknowledged: AtomicU64,
}

impl Line {
    fn new() -> Line {
        Line(Arc::new(Known {
            is_in_doubt: watch::Sender::new(false),
            acknowledged: AtomicU64::new(0),
        }))
    }

    fn acknowledged(&self, matching: Option<LogId>, committed: Option<LogId>) {
        if let (Some(matching), Some(committed)) = (matching, committed) {
            let both = matching.index.min(committed.index);
            self.0.acknowledged.fetch_max(both, Ordering::AcqRel);
        }
    }

    fn set(&self, is_in_doubt: bool) {
        self.0
            .is_in_doubt
            .send_if_modified(|now| std::mem::replace(now, is_in_doubt) != is_in_doubt);
    }

    async fn out_of_doubt(&self, within: Duration) -> bool {
        let mut changes = self.0.is_in_doubt.subscribe();
        let cleared = changes.wait_for(|is_in_doubt| !is_in_doubt);
        tokio::time::timeout(within, cleared).await.is_ok()
    }
}

impl Network {
    pub fn new(peers: Peers) -> Network {
        Network {
            peers,
            lines: BTreeMap::new(),
        }
    }

    fn link(&mut self, target: u64, node: &Node, channel: Channel) -> Link {
        let target = NodeId(target);
        self.peers.learn(target, &node.region, &node.peer);
        let line = self.lines.entry(target).or_insert_with(Line::new).clone();
        Link {
            peers: self.peers.clone(),
            target,
            channel,
            line,
        }
    }
}

/// To one node, for one use.
pub struct Link {
    peers: Peers,
    target: NodeId,
    channel: Channel,
    line: Line,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Node) -> Link {
        self.link(target, node, Channel::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Node) -> Link {
        self.link(target, node, Channel::Votes)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Node) -> Link {
        self.link(target, node, Channel::Snapshot)
    }
}

fn rpc_error(error: PeerError) -> RPCError<TypeConfig> {
    match error {
        PeerError::Unreachable(..) | PeerError::Refused(..) => {
            RPCError::Unreachable(Unreachable::new(&error))
        }
        PeerError::Unclear(..) | PeerError::NotThere(..) => {
            RPCError::Network(NetworkError::new(&error))
        }
    }
}

fn broken(what: &str) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&AnyError::error(what)))
}

impl Link {
    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        option: &RPCOption,
        is_pre_vote: bool,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = pb::VoteRequest {
            vote: Some(vote_to_pb(&request.vote)),
            last_log: request.last_log_id.as_ref().map(log_id_to_pb),
            leadership_transfer: request.leadership_transfer,
        };
        let within = option.hard_ttl();
        let response = if is_pre_vote {
            self.peers.pre_vote(self.target, request, within).await
        } else {
            self.peers.vote(self.target, request, within).await
        };
        let response = response.map_err(rpc_error)?;
        let vote = response
            .vote
            .as_ref()
            .map(vote_from_pb)
            .ok_or_else(|| broken("a vote answer without a vote"))?;
        let last_log = response.last_log.as_ref().map(log_id_from_pb);
        Ok(VoteResponse::new(vote, last_log, response.granted))
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let last = request
            .entries
            .last()
            .map(openraft::entry::RaftEntry::log_id);
        let is_heartbeat = self.channel == Channel::Votes;
        if !is_heartbeat && !self.line.out_of_doubt(APPEND).await {
            return Err(broken(
                "an append is unanswered, and no heartbeat was answered since",
            ));
        }
        let message = pb::AppendRequest {
            vote: Some(vote_to_pb(&request.vote)),
            previous: request.prev_log_id.as_ref().map(log_id_to_pb),
            entries: request.entries.iter().map(entry_to_pb).collect(),
            committed: request.leader_commit.as_ref().map(log_id_to_pb),
            acknowledged: self.line.0.acknowledged.load(Ordering::Acquire),
        };
        let within = if is_heartbeat {
            option.hard_ttl()
        } else {
            let seconds = message.encoded_len() / SLOWEST_BYTES_PER_SECOND;
            APPEND + Duration::from_secs(seconds as u64)
        };
        let response = self
            .peers
            .append(self.target, self.channel, message, within)
            .await;
        match &response {
            Ok(_) => self.line.set(false),
            Err(PeerError::Unclear(..)) if !is_heartbeat => self.line.set(true),
            Err(_) => {}
        }
        let response = append_response(response.map_err(rpc_error)?, last)?;
        match &response {
            AppendEntriesResponse::Success => {
                let matching = last.or(request.prev_log_id);
                self.line.acknowledged(matching, request.leader_commit);
            }
            AppendEntriesResponse::PartialSuccess(matching) => {
                self.line.acknowledged(*matching, request.leader_commit);
            }
            _ => {}
        }
        Ok(response)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, &option, false).await
    }

    /// openraft's default grants, which would make the pre-vote mean nothing.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, &option, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let unreachable = |error: &(dyn std::error::Error + 'static)| {
            StreamingError::Unreachable(Unreachable::new(&AnyError::error(error.to_string())))
        };
        let applied = applied_to_pb(
            snapshot.meta.last_log_id.as_ref(),
            &snapshot.meta.last_membership,
        );
        let start = pb::SnapshotStart {
            vote: Some(vote_to_pb(&vote)),
            applied: Some(applied),
        };
        let file = tokio::fs::File::open(&snapshot.snapshot.path)
            .await
            .map_err(|error| unreachable(&error))?;
        let sent = Arc::new(Sent::default());
        let sending = self
            .peers
            .snapshot(self.target, pieces(start, file, sent.clone()));
        tokio::select! {
            response = sending => {
                let response = response.map_err(|error| unreachable(&error))?;
                let vote = response.vote.as_ref().map(vote_from_pb);
                vote.map(SnapshotResponse::new).ok_or_else(|| {
                    StreamingError::Network(NetworkError::new(&AnyError::error("a snapshot answer without a vote")))
                })
            }
            closed = cancel => Err(StreamingError::Closed(closed)),
            () = stalled(&sent) => {
                let what = "the receiver makes no progress with the snapshot";
                Err(StreamingError::Unreachable(Unreachable::new(&AnyError::error(what))))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferResponse, RPCError<TypeConfig>> {
        use pb::transfer_leader_response::Result as Answer;
        let message = pb::TransferLeaderRequest {
            from: Some(vote_to_pb(request.from_leader())),
            to: *request.to_node_id(),
            last_log: request.last_log_id().map(log_id_to_pb),
        };
        let response = self
            .peers
            .transfer_leader(self.target, message, option.hard_ttl())
            .await
            .map_err(rpc_error)?;
        match response.result {
            Some(Answer::Accepted(_)) => Ok(Ok(())),
            Some(Answer::OtherVote(actual)) => {
                Ok(Err(openraft::raft::TransferLeaderError::VoteChanged {
                    expected: *request.from_leader(),
                    actual: vote_from_pb(&actual),
                }))
            }
            Some(Answer::Behind(actual)) => {
                Ok(Err(openraft::raft::TransferLeaderError::LogNotFlushed {
                    expected: request.last_log_id().copied(),
                    actual: actual.matching.as_ref().map(log_id_from_pb),
                }))
            }
            None => Err(broken("an empty answer to a leadership transfer")),
        }
    }
}

pub(super) fn append_response(
    response: pb::AppendResponse,
    last: Option<LogId>,
) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
    use pb::append_response::Result as Answer;
    match response.result {
        Some(Answer::Success(_)) => Ok(AppendEntriesResponse::Success),
        Some(Answer::Partial(partial)) => {
            let matching = partial.matching.as_ref().map(log_id_from_pb);
            if matching.is_some() && matching == last {
                return Ok(AppendEntriesResponse::Success);
            }
            Ok(AppendEntriesResponse::PartialSuccess(matching))
        }
        Some(Answer::Conflict(_)) => Ok(AppendEntriesResponse::Conflict),
        Some(Answer::HigherVote(vote)) => {
            Ok(AppendEntriesResponse::HigherVote(vote_from_pb(&vote)))
        }
        None => Err(broken("an empty answer to an append")),
    }
}

/// The header, then the file. An error of the file ends the stream early, and the receiver, which
/// finds no trailer, refuses what it got.
fn pieces(
    start: pb::SnapshotStart,
    file: tokio::fs::File,
    sent: Arc<Sent>,
) -> impl futures_util::Stream<Item = pb::SnapshotPiece> + Send + 'static {
    use pb::snapshot_piece::Piece;
    let first = pb::SnapshotPiece {
        piece: Some(Piece::Start(start)),
    };
    let rest = stream::unfold(file, move |mut file| {
        let sent = sent.clone();
        async move {
            let mut piece = bytes::BytesMut::with_capacity(PIECE);
            match file.read_buf(&mut piece).await {
                Ok(0) | Err(_) => {
                    sent.all.store(true, Ordering::Relaxed);
                    None
                }
                Ok(_) => {
                    sent.pieces.fetch_add(1, Ordering::Relaxed);
                    Some((
                        pb::SnapshotPiece {
                            piece: Some(Piece::Data(piece.freeze())),
                        },
                        file,
                    ))
                }
            }
        }
    });
    futures_util::StreamExt::chain(stream::iter([first]), rest)
}

#[derive(Default)]
struct Sent {
    pieces: AtomicU64,
    all: AtomicBool,
}

/// Returns when nothing has moved for too long.
async fn stalled(sent: &Sent) {
    let mut before = None;
    while !sent.all.load(Ordering::Relaxed) {
        let now = sent.pieces.load(Ordering::Relaxed);
        if before == Some(now) {
            return;
        }
        before = Some(now);
        tokio::time::sleep(NO_PROGRESS).await;
    }
    tokio::time::sleep(INSTALL).await;
}
