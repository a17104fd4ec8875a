//! Several ranges of one blob in one answer (RFC 9110, 15.3.7.2). Clients that pull only what
//! changed of a layer ask so.

use super::error::Failure;
use super::headers;
use crate::budget::Budget;
use crate::oci::Digest;
use crate::registry::{BlobBody, RangeSpec, Repository};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{StatusCode, header};
use std::io;
use std::ops::Range;

/// Of one part: what comes before its bytes.
fn head(boundary: &str, range: &Range<u64>, size: u64) -> String {
    format!(
        "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {}-{}/{size}\r\n\r\n",
        range.start,
        range.end - 1
    )
}

/// `ranges` lie within the blob. Each is opened when the one before it has been sent, so that an
/// answer holds one file open and not a thousand; the first is opened now, since what is wrong with
/// it can still be told.
pub async fn answer(
    repository: Repository,
    digest: &Digest,
    ranges: Vec<Range<u64>>,
    size: u64,
) -> Result<Response, Failure> {
    let boundary = format!("{:032x}", rand::random::<u128>());
    let end = format!("\r\n--{boundary}--\r\n");
    let content_type = format!("multipart/byteranges; boundary={boundary}");
    let heads = ranges.iter().map(|range| {
        let head = head(&boundary, range, size);
        head.len() as u64 + (range.end - range.start)
    });
    let length = heads.sum::<u64>() + end.len() as u64;
    let digest = digest.clone();
    let open = move |range: Range<u64>| {
        let (repository, digest) = (repository.clone(), digest.clone());
        async move {
            let spec = RangeSpec::FromTo(range.start, range.end - 1);
            repository
                .open_blob(&digest, Some(spec), Budget::default())
                .await
        }
    };
    let mut ranges = ranges.into_iter();
    let first = match ranges.next() {
        Some(range) => Some(open(range).await?),
        None => None,
    };
    let part = move |blob: BlobBody| {
        let head = Bytes::from(head(&boundary, &blob.range, blob.size));
        stream::once(async { Ok(head) }).chain(blob.body).boxed()
    };
    let rest = stream::iter(ranges).then(open);
    let rest = rest.map(|opened| opened.map_err(io::Error::other));
    let parts = stream::iter(first.map(Ok))
        .chain(rest)
        .flat_map(move |blob| match blob {
            Ok(blob) => part(blob),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        });
    let end = stream::once(async { Ok(Bytes::from(end)) });
    let mut response = Response::new(Body::from_stream(parts.chain(end)));
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let set = response.headers_mut();
    set.insert(header::CONTENT_TYPE, headers::value(content_type));
    set.insert(header::CONTENT_LENGTH, headers::value(length.to_string()));
    Ok(response)
}
