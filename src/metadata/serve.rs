//! What peers ask of this node's Raft: appends, votes, snapshots, leadership.
//!
//! What must stay true: what arrives is converted and checked before openraft sees it, since openraft
//! takes some errors as the end of the node.

use super::Metadata;
use super::raft_types::{
    TypeConfig, applied_from_pb, entry_from_pb, invalid, log_id_from_pb, log_id_to_pb,
    required_vote, vote_to_pb,
};
use super::snapshot::{self, Receiver, SnapshotFile};
use crate::proto::peer::v1 as pb;
use crate::proto::state::v1::Blank;
use futures_util::{Stream, StreamExt};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest,
};
use openraft::storage::Snapshot;
use std::io;
use tonic::Status;

fn bad(error: io::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

impl Metadata {
    /// The listener goes on for a while when Raft has ended, and openraft takes a call that comes
    /// then for an error of its own.
    fn still_runs(&self) -> Result<(), Status> {
        match self.inner.stop.is_cancelled() {
            true => Err(Status::unavailable("this node is stopping")),
            false => Ok(()),
        }
    }

    pub async fn serve_append(
        &self,
        request: pb::AppendRequest,
    ) -> Result<pb::AppendResponse, Status> {
        use pb::append_response::Result as Answer;
        self.still_runs()?;
        // A snapshot may be installed, and the log not purged to it yet.
        let last = self.inner.log.last().max(*self.applied().borrow());
        if last < request.acknowledged {
            let acknowledged = request.acknowledged;
            self.end_with_lost_log(&format!(
                "the log ends at entry {last}, but the leader has entry {acknowledged} as acknowledged"
            ));
        }
        let mut entries = Vec::with_capacity(request.entries.len());
        for entry in request.entries {
            entries.push(entry_from_pb(entry).map_err(bad)?);
        }
        let request = AppendEntriesRequest::<TypeConfig> {
            vote: required_vote(request.vote.as_ref()).map_err(bad)?,
            prev_log_id: request.previous.as_ref().map(log_id_from_pb),
            entries,
            leader_commit: request.committed.as_ref().map(log_id_from_pb),
        };
        let result = match self.raft.append_entries(request).await.map_err(failed)? {
            AppendEntriesResponse::Success => Answer::Success(Blank {}),
            AppendEntriesResponse::PartialSuccess(matching) => Answer::Partial(pb::Partial {
                matching: matching.as_ref().map(log_id_to_pb),
            }),
            AppendEntriesResponse::Conflict => Answer::Conflict(Blank {}),
            AppendEntriesResponse::HigherVote(vote) => Answer::HigherVote(vote_to_pb(&vote)),
        };
        Ok(pb::AppendResponse {
            result: Some(result),
        })
    }

    pub async fn serve_vote(
        &self,
        request: pb::VoteRequest,
        is_pre_vote: bool,
    ) -> Result<pb::VoteResponse, Status> {
        self.still_runs()?;
        let vote = required_vote(request.vote.as_ref()).map_err(bad)?;
        let last_log = request.last_log.as_ref().map(log_id_from_pb);
        let mut asked = VoteRequest::<TypeConfig>::new(vote, last_log);
        asked.leadership_transfer = request.leadership_transfer;
        let response = if is_pre_vote {
            self.raft.pre_vote(asked).await
        } else {
            self.raft.vote(asked).await
        };
        let response = response.map_err(failed)?;
        Ok(pb::VoteResponse {
            vote: Some(vote_to_pb(&response.vote)),
            granted: response.vote_granted,
            last_log: response.last_log_id.as_ref().map(log_id_to_pb),
        })
    }

    pub async fn serve_snapshot(
        &self,
        mut pieces: impl Stream<Item = Result<pb::SnapshotPiece, Status>> + Unpin,
    ) -> Result<pb::SnapshotResponse, Status> {
        use pb::snapshot_piece::Piece;
        let Some(Ok(pb::SnapshotPiece {
            piece: Some(Piece::Start(start)),
        })) = pieces.next().await
        else {
            return Err(bad(invalid("a snapshot without a start")));
        };
        let vote = required_vote(start.vote.as_ref()).map_err(bad)?;
        let applied = start
            .applied
            .ok_or_else(|| bad(invalid("a snapshot of nothing")))?;
        let (last_log_id, last_membership) = applied_from_pb(&applied).map_err(bad)?;
        let mut receiver = Receiver::create(&self.inner.snapshots).map_err(failed)?;
        while let Some(piece) = pieces.next().await {
            match piece?.piece {
                Some(Piece::Data(data)) => {
                    receiver = write_piece(receiver, data).await.map_err(failed)?
                }
                _ => return Err(bad(invalid("a second start of a snapshot"))),
            }
        }
        let name = snapshot::name(&applied);
        let file = blocking(move || receiver.finish(&name))
            .await
            .map_err(failed)?;
        // Openraft takes an error while it installs as the end of this node, so what the network
        // may have cut short is found out before.
        let file = blocking(move || check(file)).await.map_err(bad)?;
        let meta = super::raft_types::SnapshotMeta {
            last_log_id,
            last_membership,
        };
        let response = self
            .raft
            .install_full_snapshot(
                vote,
                Snapshot {
                    meta,
                    snapshot: file,
                },
            )
            .await;
        let response = response.map_err(failed)?;
        Ok(pb::SnapshotResponse {
            vote: Some(vote_to_pb(&response.vote)),
        })
    }

    pub async fn serve_transfer_leader(
        &self,
        request: pb::TransferLeaderRequest,
    ) -> Result<pb::TransferLeaderResponse, Status> {
        use openraft::raft::TransferLeaderError;
        use pb::transfer_leader_response::Result as Answer;
        let from = required_vote(request.from.as_ref()).map_err(bad)?;
        let last_log = request.last_log.as_ref().map(log_id_from_pb);
        let request = TransferLeaderRequest::<TypeConfig>::new(from, request.to, last_log);
        let result = match self
            .raft
            .handle_transfer_leader(request)
            .await
            .map_err(failed)?
        {
            Ok(()) => Answer::Accepted(Blank {}),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                Answer::OtherVote(vote_to_pb(&actual))
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => Answer::Behind(pb::Partial {
                matching: actual.as_ref().map(log_id_to_pb),
            }),
        };
        Ok(pb::TransferLeaderResponse {
            result: Some(result),
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

async fn write_piece(mut receiver: Receiver, data: bytes::Bytes) -> io::Result<Receiver> {
    blocking(move || receiver.write(&data).map(|()| receiver)).await
}

/// Reads the whole file once; a bad one is deleted.
fn check(file: SnapshotFile) -> io::Result<SnapshotFile> {
    match super::state_machine::verify(&file) {
        Ok(_) => Ok(file),
        Err(error) => {
            std::fs::remove_file(&file.path)?;
            Err(error)
        }
    }
}
