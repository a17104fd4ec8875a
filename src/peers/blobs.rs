//! Blob bytes, over HTTP on the same listener: ranges, resume and plain streaming come with it.

use super::{PeerError, Peers, envelope};
use crate::certs::{host, refusal};
use crate::oci::{Digest, RepositoryName};
use crate::proto::state::v1::Receipt;
use crate::topology::NodeId;
use prost::Message;
use std::time::Duration;

/// A transfer that moves no byte for this long is broken.
pub const NO_PROGRESS: Duration = Duration::from_secs(10);
/// A receiver that has all bytes: it hashes nothing more, but syncs. Or one that reads a whole blob.
const FINISH: Duration = Duration::from_secs(120);

/// The size of the whole blob, on an answer with some of its bytes.
pub const SIZE_HEADER: &str = "roadstead-blob-size";

impl Peers {
    /// Bytes from `offset` to the end, and the size of the whole blob.
    pub async fn read_blob(
        &self,
        from: NodeId,
        digest: &Digest,
        offset: u64,
    ) -> Result<(u64, reqwest::Response), PeerError> {
        let request = self.blob_request(from, reqwest::Method::GET, &format!("/blobs/{digest}"))?;
        let request = request.header("range", format!("bytes={offset}-"));
        let response = request.send().await.map_err(|error| broken(from, &error))?;
        match response.status().as_u16() {
            200 | 206 => {}
            404 => return Err(PeerError::NotThere(from, digest.clone())),
            _ => return Err(refused(from, response).await),
        }
        let size = response
            .headers()
            .get(SIZE_HEADER)
            .and_then(|size| size.to_str().ok()?.parse().ok());
        match size {
            Some(size) => Ok((size, response)),
            None => Err(PeerError::Refused(
                from,
                format!("an answer without {SIZE_HEADER}"),
            )),
        }
    }

    /// Has the holder read all of a blob against its digest. False: it does not have it, or not
    /// any more.
    pub async fn check_blob(&self, holder: NodeId, digest: &Digest) -> Result<bool, PeerError> {
        let path = format!("/blobs/{digest}/check");
        let request = self.blob_request(holder, reqwest::Method::POST, &path)?;
        let answer = request.timeout(FINISH).send().await;
        let answer = answer.map_err(|error| broken(holder, &error))?;
        match answer.status().as_u16() {
            204 => Ok(true),
            404 => Ok(false),
            _ => Err(refused(holder, answer).await),
        }
    }

    /// Streams bytes from `offset` on into the copy `id`; returns when the receiver has taken all.
    pub async fn send_copy(
        &self,
        to: NodeId,
        id: &str,
        offset: u64,
        body: reqwest::Body,
    ) -> Result<(), PeerError> {
        let request = self.blob_request(to, reqwest::Method::POST, &format!("/copies/{id}"))?;
        // The answer comes when the body ends: the caller watches the progress of the body.
        let request = request
            .query(&[("offset", offset)])
            .timeout(Duration::from_secs(24 * 3600));
        let response = request
            .body(body)
            .send()
            .await
            .map_err(|error| broken(to, &error))?;
        if response.status().is_success() {
            Ok(())
        } else {
            Err(refused(to, response).await)
        }
    }

    /// The receiver compares digest and size of what it has, syncs, and vouches for it. `index`: of the log, as
    /// of which the repository may read it.
    pub async fn finish_copy(
        &self,
        to: NodeId,
        id: &str,
        digest: &Digest,
        size: u64,
        repository: &RepositoryName,
        index: u64,
    ) -> Result<Receipt, PeerError> {
        let request =
            self.blob_request(to, reqwest::Method::POST, &format!("/copies/{id}/finish"))?;
        let query = [
            ("digest", digest.to_string()),
            ("size", size.to_string()),
            ("repository", repository.to_string()),
            ("index", index.to_string()),
        ];
        let response = request.query(&query).timeout(FINISH).send().await;
        let response = response.map_err(|error| broken(to, &error))?;
        if !response.status().is_success() {
            return Err(refused(to, response).await);
        }
        let bytes = response.bytes().await.map_err(|error| broken(to, &error))?;
        Receipt::decode(bytes).map_err(|error| {
            PeerError::Refused(to, format!("a receipt that cannot be read: {error}"))
        })
    }

    /// Best effort: the receiver forgets idle copies by itself.
    pub async fn cancel_copy(&self, to: NodeId, id: &str) {
        if let Ok(request) =
            self.blob_request(to, reqwest::Method::DELETE, &format!("/copies/{id}"))
        {
            let _ = request.timeout(Duration::from_secs(2)).send().await;
        }
    }

    pub(super) fn blob_request(
        &self,
        to: NodeId,
        method: reqwest::Method,
        path: &str,
    ) -> Result<reqwest::RequestBuilder, PeerError> {
        let Some((region, address)) = self.address(to) else {
            return Err(PeerError::Unreachable(
                to,
                "its address is not known".to_owned(),
            ));
        };
        let client = match method {
            reqwest::Method::GET => &self.inner.reading,
            _ => &self.inner.sending,
        };
        let url = match &self.inner.tls {
            None => format!("http://{address}{path}"),
            // A name that is never looked up: dialing.rs knows the address, and TLS whom to expect.
            Some(_) => {
                let port = address.rsplit_once(':').map_or("", |(_, port)| port);
                format!("https://{}:{port}{path}", host(to, &region))
            }
        };
        let mut request = client.request(method, url);
        for (name, value) in envelope::headers(self.identity(), Some(to)) {
            request = request.header(name, value);
        }
        Ok(request)
    }
}

pub(super) fn broken(node: NodeId, error: &reqwest::Error) -> PeerError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    if let Some(why) = refusal(error) {
        PeerError::Refused(node, why)
    } else if error.is_connect() {
        PeerError::Unreachable(node, text)
    } else {
        PeerError::Unclear(node, text)
    }
}

pub(super) async fn refused(node: NodeId, response: reqwest::Response) -> PeerError {
    let status = response.status();
    let text = response.text().await.unwrap_or_default();
    PeerError::Refused(
        node,
        format!("{status}: {}", text.chars().take(200).collect::<String>()),
    )
}
