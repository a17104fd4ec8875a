//! What other nodes say: the first byte chooses the message, the rest is its bytes. What decodes is
//! encoded to the same, and goes through the conversions that stand before openraft.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use roadstead::certs::JoinToken;
use roadstead::metadata::fuzzing::is_append_answer;
use roadstead::metadata::raft_types::{
    applied_from_pb, applied_to_pb, entry_from_pb, entry_to_pb, log_id_from_pb, log_id_to_pb,
    node_from_pb, node_to_pb, required_vote, vote_to_pb,
};
use roadstead::metadata::snapshot;
use roadstead::oci::{Digest, RepositoryName};
use roadstead::proto::peer::v1 as pb;
use roadstead::proto::state::v1 as state;
use roadstead::registry::fuzzing::answered;
use roadstead::registry::{Error, answer};
use std::fmt::Debug;

fn decode<T: Message + Default + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let message = T::decode(bytes).ok()?;
    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    assert_eq!(T::decode(encoded.as_slice()).as_ref(), Ok(&message));
    Some(message)
}

fn vote(vote: Option<&state::Vote>) {
    if let Ok(read) = required_vote(vote) {
        assert_eq!(Some(&vote_to_pb(&read)), vote);
    }
}

fn log_id(id: Option<&state::LogId>) {
    assert_eq!(id.map(|id| log_id_to_pb(&log_id_from_pb(id))).as_ref(), id);
}

/// What openraft got of an entry is what is written to the log.
fn entry(entry: state::Entry) {
    if let Ok(read) = entry_from_pb(entry) {
        let written = entry_to_pb(&read);
        let again = entry_from_pb(written.clone()).expect("written here");
        assert_eq!(entry_to_pb(&again), written);
    }
}

fn applied(applied: &state::Applied) {
    if let Ok((last, membership)) = applied_from_pb(applied) {
        let written = applied_to_pb(last.as_ref(), &membership);
        let (last, membership) = applied_from_pb(&written).expect("written here");
        assert_eq!(applied_to_pb(last.as_ref(), &membership), written);
    }
    let name = snapshot::name(applied);
    assert!(name.len() == 41 && name.bytes().all(|b| b.is_ascii_digit() || b == b'-'));
}

fn node(node: &state::Node) {
    if let Ok(read) = node_from_pb(node) {
        let again = node_from_pb(&node_to_pb(&read)).expect("written here");
        assert_eq!(again, read);
    }
}

fn only_decode<T: Message + Default + PartialEq + Debug>(bytes: &[u8]) {
    decode::<T>(bytes);
}

/// A word that can be read is printed as it was read.
fn join_token(bytes: &[u8]) {
    only_decode::<pb::JoinTokenText>(bytes);
    if let Some(token) = std::str::from_utf8(bytes)
        .ok()
        .and_then(|word| word.parse::<JoinToken>().ok())
    {
        let again: JoinToken = token.expose().parse().expect("printed here");
        assert_eq!(again.expose(), token.expose());
    }
}

const MESSAGES: &[fn(&[u8])] = &[
    |bytes| {
        let Some(append) = decode::<pb::AppendRequest>(bytes) else {
            return;
        };
        vote(append.vote.as_ref());
        log_id(append.previous.as_ref());
        log_id(append.committed.as_ref());
        append.entries.into_iter().for_each(entry);
    },
    |bytes| {
        let Some(response) = decode::<pb::AppendResponse>(bytes) else {
            return;
        };
        assert_eq!(
            is_append_answer(response.clone()),
            response.result.is_some()
        );
    },
    only_decode::<pb::Partial>,
    only_decode::<pb::EnrollRequest>,
    only_decode::<pb::EnrollResponse>,
    join_token,
    |bytes| {
        let Some(asked) = decode::<pb::VoteRequest>(bytes) else {
            return;
        };
        vote(asked.vote.as_ref());
        log_id(asked.last_log.as_ref());
    },
    only_decode::<pb::VoteResponse>,
    |bytes| {
        use pb::snapshot_piece::Piece;
        if let Some(Piece::Start(start)) =
            decode::<pb::SnapshotPiece>(bytes).and_then(|piece| piece.piece)
        {
            vote(start.vote.as_ref());
            applied(&start.applied.unwrap_or_default());
        }
    },
    only_decode::<pb::SnapshotStart>,
    only_decode::<pb::SnapshotResponse>,
    |bytes| {
        let Some(transfer) = decode::<pb::TransferLeaderRequest>(bytes) else {
            return;
        };
        vote(transfer.from.as_ref());
        log_id(transfer.last_log.as_ref());
    },
    only_decode::<pb::TransferLeaderResponse>,
    only_decode::<pb::ProposeRequest>,
    only_decode::<pb::ProposeResponse>,
    only_decode::<pb::NotLeader>,
    only_decode::<pb::CommitIndexRequest>,
    only_decode::<pb::CommitIndexResponse>,
    only_decode::<pb::AppliedRequest>,
    only_decode::<pb::AppliedResponse>,
    only_decode::<pb::NodeStatusRequest>,
    only_decode::<pb::NodeStatusResponse>,
    only_decode::<pb::HelloRequest>,
    only_decode::<pb::HelloResponse>,
    |bytes| {
        let Some(join) = decode::<pb::JoinRequest>(bytes) else {
            return;
        };
        join.info.as_ref().into_iter().for_each(node);
    },
    only_decode::<pb::JoinResponse>,
    |bytes| {
        let Some(told) = decode::<pb::UploadAnswer>(bytes) else {
            return;
        };
        // What the owner of an upload told is told on as it is.
        match answered(told.clone()) {
            Err(Error::Internal(_)) => assert!(told.result.is_none()),
            result => {
                let length = result.as_ref().ok().copied();
                let again = answered(answer(result).expect("a peer was told it"));
                assert_eq!(again.ok(), length);
            }
        }
    },
    only_decode::<pb::UploadRefused>,
    |bytes| {
        let Some(mount) = decode::<pb::MountRequest>(bytes) else {
            return;
        };
        if let Ok(name) = mount.repository.parse::<RepositoryName>() {
            assert_eq!(name.as_str(), mount.repository);
        }
    },
    only_decode::<pb::MountResponse>,
    |bytes| {
        let Some(asked) = decode::<pb::ReceiptsRequest>(bytes) else {
            return;
        };
        for text in asked.digests {
            assert!(text.parse::<Digest>().is_err() || text.len() > 64);
        }
    },
    only_decode::<pb::ReceiptsResponse>,
    only_decode::<pb::StatRequest>,
    only_decode::<pb::StatResponse>,
];

fuzz_target!(|bytes: &[u8]| {
    if let Some((kind, bytes)) = bytes.split_first() {
        MESSAGES[usize::from(*kind) % MESSAGES.len()](bytes);
    }
});
