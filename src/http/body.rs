//! The body of a request on its way in. Bodies are streamed, never collected, save for manifests,
//! which are bounded.

use super::error::Failure;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use http::StatusCode;
use std::io;
use std::time::Duration;

/// What is read and thrown away of a body before an early answer: a connection that closes on
/// unread bytes is reset, and the client would see that instead of the reason.
const DRAINED: usize = 1 << 20;
const DRAINED_WITHIN: Duration = Duration::from_secs(2);

pub fn stream(body: Body) -> crate::registry::ByteStream {
    Box::pin(body.into_data_stream().map_err(io::Error::other))
}

/// The whole body, when it is at most `limit` long.
pub async fn collect(body: Body, limit: usize) -> Result<Bytes, Failure> {
    let mut all = BytesMut::new();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| {
            Failure::bad_request("SIZE_INVALID", format!("the body ended early: {error}"))
        })?;
        if all.len() + piece.len() > limit {
            drain(pieces).await;
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

async fn drain<E>(mut pieces: impl futures_util::Stream<Item = Result<Bytes, E>> + Unpin) {
    let mut drained = 0;
    let draining = async {
        while let Some(Ok(piece)) = pieces.next().await {
            drained += piece.len();
            if drained > DRAINED {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAINED_WITHIN, draining).await;
}
