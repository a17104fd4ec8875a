//! A request for an upload may come to any node, as a load balancer sends it: the node that has the
//! session does what is asked, its bytes going through this one.
//!
//! What must stay true: a request is handed on once at most; a body is sent only once, so it is
//! asked first whether the session is there, and that question is held while its node is away.

use super::uploads::Step;
use super::{Error, Repository};
use crate::budget::Budget;
use crate::peers::{PeerError, UploadCall, UploadVerb};
use crate::proto::peer::v1 as peer;
use crate::proto::peer::v1::upload_answer::Result as Answer;
use crate::proto::peer::v1::upload_refused::Why;
use crate::topology::NodeId;
use std::time::Duration;

const ASK: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// A node that answers no ping for so long, while it is sent a body, is given up.
const LOST: Duration = Duration::from_secs(15);

impl Repository {
    /// Bytes so far; of `Finish`, of the blob.
    pub async fn upload_step(&self, id: &str, step: Step, budget: Budget) -> Result<u64, Error> {
        let inner = &self.registry.inner;
        match inner.sessions.owner(id)? {
            None => self.upload_step_here(id, step, budget).await,
            Some(owner) if self.registry.view().node(owner)?.is_some() => {
                self.hand_over(owner, id, step, budget).await
            }
            Some(_) => Err(Error::UploadUnknown),
        }
    }

    async fn hand_over(
        &self,
        owner: NodeId,
        id: &str,
        step: Step,
        budget: Budget,
    ) -> Result<u64, Error> {
        let call = |verb| UploadCall {
            verb,
            id: id.to_owned(),
            repository: self.name.to_string(),
            principal: self.principal.as_str().to_owned(),
            before_body: false,
            at: None,
            length: None,
            digest: None,
        };
        let (chunk, body, digest) = match step {
            Step::Offset | Step::Length => {
                return self.ask(owner, call(UploadVerb::Offset), budget).await;
            }
            Step::Cancel => return self.ask(owner, call(UploadVerb::Cancel), budget).await,
            Step::Append(chunk, body) => (chunk, body, None),
            Step::Finish(chunk, body, digest) => (chunk, body, Some(digest)),
        };
        let is_last = digest.is_some();
        let first = UploadCall {
            before_body: true,
            ..call(UploadVerb::Offset)
        };
        match self.ask(owner, first, budget).await {
            Ok(length) if chunk.at.is_some_and(|at| at != length) => {
                return Err(Error::UploadOffset { expected: length });
            }
            Ok(_) => {}
            // It may be one that is done, of which the client did not hear.
            Err(Error::UploadUnknown) if is_last => {}
            Err(error) => return Err(error),
        }
        let verb = match is_last {
            true => UploadVerb::Finish,
            false => UploadVerb::Append,
        };
        let call = UploadCall {
            at: chunk.at,
            length: chunk.length,
            digest,
            ..call(verb)
        };
        let peers = &self.registry.inner.peers;
        let sent = tokio::select! {
            sent = peers.upload(owner, &call, Some(reqwest::Body::wrap_stream(body)), None) => sent,
            () = self.is_lost(owner) => Err(PeerError::Unclear(owner, "it is lost".to_owned())),
        };
        answered(sent.map_err(|error| self.unreachable(owner, &error))?)
    }

    /// Held while the owner is away: it may only be starting anew.
    async fn ask(&self, owner: NodeId, call: UploadCall, budget: Budget) -> Result<u64, Error> {
        let mut held = None;
        loop {
            let peers = &self.registry.inner.peers;
            let within = ASK.min(budget.remaining());
            match peers.upload(owner, &call, None, Some(within)).await {
                Ok(answer) => return answered(answer),
                // It is there, and will say the same again.
                Err(error @ PeerError::Refused(..)) => {
                    return Err(self.unreachable(owner, &error));
                }
                Err(error) if budget.is_spent() => return Err(self.unreachable(owner, &error)),
                Err(error) => tracing::debug!(%error, "an upload's node does not answer yet"),
            }
            held.get_or_insert_with(|| self.registry.inner.metrics.hold());
            tokio::time::sleep(PAUSE.min(budget.remaining())).await;
        }
    }

    async fn is_lost(&self, owner: NodeId) {
        let peers = &self.registry.inner.peers;
        let mut unheard = Duration::ZERO;
        while unheard < LOST {
            tokio::time::sleep(Duration::from_secs(1)).await;
            unheard = match peers.is_reachable(owner) {
                true => Duration::ZERO,
                false => unheard + Duration::from_secs(1),
            };
        }
    }

    fn unreachable(&self, owner: NodeId, error: &PeerError) -> Error {
        let address = self.registry.inner.peers.address(owner);
        let region = address.map_or_else(|| owner.to_string(), |(region, _)| region.to_string());
        tracing::info!(%region, %error, "an upload could not be handed to the node that has it");
        Error::Unavailable(format!(
            "the upload is at region {region}, which does not answer from here now; ask for its \
             offset and go on, or begin it again"
        ))
    }
}

pub(super) fn answered(answer: peer::UploadAnswer) -> Result<u64, Error> {
    let refused = match answer.result {
        Some(Answer::Length(length)) => return Ok(length),
        Some(Answer::Refused(refused)) => refused,
        None => return Err(Error::internal("an answer without a result")),
    };
    let (why, message) = (refused.why(), refused.message);
    Err(match why {
        Why::Unknown => Error::UploadUnknown,
        Why::Offset => Error::UploadOffset {
            expected: refused.expected,
        },
        Why::Digest => Error::DigestMismatch(message),
        Why::Size => Error::SizeMismatch(message),
        Why::ClientGone => Error::ClientGone(std::io::Error::other(message)),
        Why::DiskFull => Error::DiskFull,
        Why::Unavailable | Why::Unspecified => Error::Unavailable(message),
    })
}

/// For a peer that handed a step over; an error that is this node's own stays here.
pub fn answer(result: Result<u64, Error>) -> Result<peer::UploadAnswer, Error> {
    let error = match result {
        Ok(length) => {
            let result = Some(Answer::Length(length));
            return Ok(peer::UploadAnswer { result });
        }
        Err(error) => error,
    };
    let mut refused = peer::UploadRefused {
        message: error.to_string(),
        ..Default::default()
    };
    let why = match error {
        Error::UploadUnknown => Why::Unknown,
        Error::UploadOffset { expected } => {
            refused.expected = expected;
            Why::Offset
        }
        Error::DigestMismatch(_) => Why::Digest,
        Error::SizeMismatch(_) => Why::Size,
        Error::ClientGone(_) => Why::ClientGone,
        Error::DiskFull => Why::DiskFull,
        Error::Unavailable(_) => Why::Unavailable,
        other => return Err(other),
    };
    refused.set_why(why);
    let result = Some(Answer::Refused(refused));
    Ok(peer::UploadAnswer { result })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_owner_says_is_what_the_client_hears() {
        for error in [
            Error::UploadUnknown,
            Error::UploadOffset { expected: 7 },
            Error::DigestMismatch("d".into()),
            Error::SizeMismatch("s".into()),
            Error::Unavailable("u".into()),
            Error::DiskFull,
        ] {
            let before = format!("{error:?}");
            let told = answered(answer(Err(error)).unwrap()).unwrap_err();
            assert_eq!(format!("{told:?}"), before);
        }
        assert_eq!(answered(answer(Ok(5)).unwrap()).unwrap(), 5);
        let own = Error::internal("a disk");
        assert!(answer(Err(own)).is_err());
    }
}
