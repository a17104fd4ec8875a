//! Steps of an upload, handed over HTTP to the node that has its session.

use super::blobs::{broken, refused};
use super::{PeerError, Peers};
use crate::oci::Digest;
use crate::proto::peer::v1::UploadAnswer;
use crate::topology::NodeId;
use prost::Message;
use reqwest::Method;
use std::time::Duration;

/// What is asked of the session: GET, PATCH, PUT and DELETE, as the client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadVerb {
    Offset,
    Append,
    Finish,
    Cancel,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct UploadCall {
    #[serde(skip)]
    pub verb: UploadVerb,
    #[serde(skip)]
    pub id: String,
    pub repository: String,
    pub principal: String,
    /// With `Offset`: a body follows, and the client is not told.
    pub before_body: bool,
    pub at: Option<u64>,
    pub length: Option<u64>,
    #[serde(serialize_with = "as_text")]
    pub digest: Option<Digest>,
}

fn as_text<S: serde::Serializer>(digest: &Option<Digest>, to: S) -> Result<S::Ok, S::Error> {
    match digest {
        Some(digest) => to.collect_str(digest),
        None => to.serialize_none(),
    }
}

impl Peers {
    /// With a body the call lasts as long as that does: the caller watches it.
    pub async fn upload(
        &self,
        to: NodeId,
        call: &UploadCall,
        body: Option<reqwest::Body>,
        within: Option<Duration>,
    ) -> Result<UploadAnswer, PeerError> {
        let method = match call.verb {
            UploadVerb::Offset => Method::GET,
            UploadVerb::Append => Method::PATCH,
            UploadVerb::Finish => Method::PUT,
            UploadVerb::Cancel => Method::DELETE,
        };
        let path = format!("/uploads/{}", call.id);
        let mut request = self.blob_request(to, method, &path)?.query(call);
        request = request.timeout(within.unwrap_or(Duration::from_secs(24 * 3600)));
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await.map_err(|error| broken(to, &error))?;
        if !response.status().is_success() {
            return Err(refused(to, response).await);
        }
        let bytes = response.bytes().await.map_err(|error| broken(to, &error))?;
        UploadAnswer::decode(bytes).map_err(|error| {
            PeerError::Refused(to, format!("an answer that cannot be read: {error}"))
        })
    }
}
