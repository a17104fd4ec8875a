//! The body of a request on its way in. Bodies are streamed, never collected, save for manifests,
//! which are bounded. What an early answer leaves unread is read and thrown away, within bounds: a
//! connection that closes on unread bytes is reset, and the client would see that, not the reason.

use super::error::Failure;
use crate::registry::ByteStream;
use axum::body::{Body, BodyDataStream};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

const DRAINED: usize = 64 << 20;
const DRAINED_WITHIN: Duration = Duration::from_secs(2);

/// A client that sends nothing for this long has gone. An upload can go on from what came.
const NOTHING_CAME: Duration = Duration::from_secs(60);

/// Shared with the edge, which drains what a handler leaves.
#[derive(Clone)]
pub struct Incoming {
    body: Arc<Mutex<BodyDataStream>>,
}

impl Incoming {
    pub fn new(body: Body) -> Incoming {
        Incoming {
            body: Arc::new(Mutex::new(body.into_data_stream())),
        }
    }

    async fn next(&self) -> Option<io::Result<Bytes>> {
        let mut body = self.body.lock().await;
        match tokio::time::timeout(NOTHING_CAME, body.next()).await {
            Ok(piece) => piece.map(|piece| piece.map_err(io::Error::other)),
            Err(_) => Some(Err(io::ErrorKind::TimedOut.into())),
        }
    }

    pub fn stream(&self) -> ByteStream {
        Box::pin(stream::unfold(self.clone(), |body| async move {
            Some((body.next().await?, body))
        }))
    }

    /// The whole body, when it is at most `limit` long.
    pub async fn collect(&self, limit: usize) -> Result<Bytes, Failure> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.next().await {
            let piece = piece.map_err(|error| {
                Failure::bad_request("SIZE_INVALID", format!("the body ended early: {error}"))
            })?;
            if all.len() + piece.len() > limit {
                let message = format!("a manifest has at most {limit} bytes");
                return Err(Failure::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "SIZE_INVALID",
                    message,
                ));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
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
