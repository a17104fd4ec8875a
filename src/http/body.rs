//! The body of a request on its way in. Bodies are streamed, never collected, save for manifests,
//! which are bounded. How slowly a body may come, and what becomes of one that an early answer leaves
//! unread, is the server's to say.

use super::error::Failure;
use crate::budget::Budget;
use crate::registry::ByteStream;
use crate::registry::Error::Unavailable;
use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::StatusCode;
use std::io;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// For all of a manifest. The server gives up a client that stops; this is for one that drips.
const COLLECTED_WITHIN: Duration = Duration::from_secs(120);

/// Larger bodies are collected a few at a time, or many at once would be all of the memory.
const SMALL: usize = 64 << 10;
static LARGE: Semaphore = Semaphore::const_new(32);

pub struct Incoming {
    body: BodyDataStream,
    declared: Option<u64>,
}

/// Of a large body: to be kept for as long as its bytes are.
pub type Turn = Option<SemaphorePermit<'static>>;

impl Incoming {
    pub fn new(body: Body, declared: Option<u64>) -> Incoming {
        Incoming {
            declared,
            body: body.into_data_stream(),
        }
    }

    pub fn stream(self) -> ByteStream {
        Box::pin(self.body.map(|piece| piece.map_err(io::Error::other)))
    }

    /// The whole body, when it is at most `limit` long; and what is left of the budget, of which the
    /// time that the client takes to send it is no part.
    pub async fn collect(
        mut self,
        limit: usize,
        budget: Budget,
    ) -> Result<(Bytes, Turn, Budget), Failure> {
        if self
            .declared
            .is_some_and(|declared| declared > limit as u64)
        {
            return Err(too_large(limit));
        }
        let turn = match self.declared {
            Some(declared) if declared <= SMALL as u64 => None,
            _ => {
                let turn = tokio::time::timeout_at(budget.deadline(), LARGE.acquire()).await;
                let busy = || Unavailable("many large manifests are being pushed".to_owned());
                Some(turn.ok().and_then(Result::ok).ok_or_else(busy)?)
            }
        };
        let left = budget.remaining();
        let mut all = BytesMut::new();
        let collecting = async {
            while let Some(piece) = self.body.next().await {
                let piece = piece.map_err(|error| ended_early(&error))?;
                if all.len() + piece.len() > limit {
                    return Err(too_large(limit));
                }
                all.extend_from_slice(&piece);
            }
            Ok(())
        };
        match tokio::time::timeout(COLLECTED_WITHIN, collecting).await {
            Ok(collected) => collected?,
            Err(late) => return Err(ended_early(&late)),
        }
        Ok((all.freeze(), turn, Budget::new(left)))
    }
}

fn too_large(limit: usize) -> Failure {
    let message = format!("a body here, such as a manifest, has at most {limit} bytes");
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
}

fn ended_early(why: &dyn std::error::Error) -> Failure {
    Failure::bad_request("SIZE_INVALID", format!("the body ended early: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_all_of_its_turns_on_one_budget() {
        let large = vec![7; SMALL + 1];
        let body = |sent: Duration| {
            let piece = Bytes::from(large.clone());
            let pieces = stream::once(async move {
                sleep(sent).await;
                Ok::<_, io::Error>(piece)
            });
            Incoming::new(Body::from_stream(pieces), Some(SMALL as u64 + 1))
        };
        let second = Duration::from_secs(1);
        let all = LARGE.acquire_many(32).await.unwrap();
        let others = async {
            sleep(second * 20).await;
            drop(all);
        };
        let collecting = body(second * 50).collect(1 << 20, Budget::new(second * 30));
        let (collected, ()) = tokio::join!(collecting, others);
        let Ok((bytes, _turn, left)) = collected else {
            panic!("a turn within the budget");
        };
        assert_eq!(bytes, large);
        let left = left.remaining();
        assert!(left > second * 9 && left <= second * 10, "{left:?}");

        let _all = LARGE.acquire_many(31).await.unwrap();
        let began = Instant::now();
        let late = body(second)
            .collect(1 << 20, Budget::new(second * 30))
            .await;
        assert!(late.is_err());
        assert_eq!(began.elapsed().as_secs(), 30);
    }
}
