//! The body of a request on its way in. Bodies are streamed, never collected, save for manifests,
//! which are bounded. What an early answer leaves unread is read and thrown away, within bounds: a
//! connection that closes on unread bytes is reset, and the client would see that, not the reason.
//! How slowly a body may come is the server's to say.

use super::error::Failure;
use crate::budget::Budget;
use crate::registry::ByteStream;
use crate::registry::Error::Unavailable;
use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

const DRAINED: usize = 64 << 20;
const DRAINED_WITHIN: Duration = Duration::from_secs(2);

/// For all of a manifest. The server gives up a client that stops; this is for one that drips.
const COLLECTED_WITHIN: Duration = Duration::from_secs(120);

/// Larger bodies are collected a few at a time, or many at once would be all of the memory.
const SMALL: usize = 64 << 10;
static LARGE: Semaphore = Semaphore::const_new(32);

/// Shared with the edge, which drains what a handler leaves.
#[derive(Clone)]
pub struct Incoming {
    body: Arc<Mutex<BodyDataStream>>,
    declared: Option<u64>,
}

/// Of a large body: to be kept for as long as its bytes are.
pub type Turn = Option<SemaphorePermit<'static>>;

impl Incoming {
    pub fn new(body: Body, declared: Option<u64>) -> Incoming {
        Incoming {
            declared,
            body: Arc::new(Mutex::new(body.into_data_stream())),
        }
    }

    async fn next(&self) -> Option<io::Result<Bytes>> {
        let mut body = self.body.lock().await;
        let piece = body.next().await?;
        Some(piece.map_err(io::Error::other))
    }

    pub fn stream(&self) -> ByteStream {
        Box::pin(stream::unfold(self.clone(), |body| async move {
            Some((body.next().await?, body))
        }))
    }

    /// The whole body, when it is at most `limit` long.
    pub async fn collect(&self, limit: usize, budget: Budget) -> Result<(Bytes, Turn), Failure> {
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
            while let Some(piece) = self.next().await {
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

    /// Not for a client that waits for `100 Continue`: reading is what asks it for the body.
    pub async fn drain(&self) {
        let mut drained = 0;
        let draining = async {
            while let Some(Ok(piece)) = self.next().await {
                drained += piece.len();
                if drained > DRAINED {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(DRAINED_WITHIN, draining).await;
    }
}

fn too_large(limit: usize) -> Failure {
    let message = format!("a manifest has at most {limit} bytes");
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
}

fn ended_early(why: &dyn std::error::Error) -> Failure {
    Failure::bad_request("SIZE_INVALID", format!("the body ended early: {why}"))
}
