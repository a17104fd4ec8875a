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

    /// The whole body, when it is at most `limit` long.
    pub async fn collect(mut self, limit: usize, budget: Budget) -> Result<(Bytes, Turn), Failure> {
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
        Ok((all.freeze(), turn))
    }
}

fn too_large(limit: usize) -> Failure {
    let message = format!("a manifest has at most {limit} bytes");
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
}

fn ended_early(why: &dyn std::error::Error) -> Failure {
    Failure::bad_request("SIZE_INVALID", format!("the body ended early: {why}"))
}
