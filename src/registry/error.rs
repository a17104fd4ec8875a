//! What can go wrong with a request, in the registry's own words. The edge turns each into a status
//! and a code (http/error.rs); what a peer or the disk said is already translated here.

use crate::access::Action;
use crate::metadata;
use crate::oci::Digest;
use crate::oci::RepositoryName;
use std::io;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("blob unknown to the repository")]
    BlobUnknown,
    #[error("manifest unknown to the repository")]
    ManifestUnknown,
    #[error("repository unknown")]
    RepositoryUnknown,
    #[error("upload unknown")]
    UploadUnknown,
    #[error("{0}")]
    DigestMismatch(String),
    #[error("{0}")]
    SizeMismatch(String),
    /// 416: the session lives on.
    #[error("the upload is at offset {expected}")]
    UploadOffset { expected: u64 },
    /// 416 on a blob read.
    #[error("range not satisfiable, the blob has {size} bytes")]
    RangeNotSatisfiable { size: u64 },
    #[error("{0}")]
    ManifestInvalid(String),
    #[error("blobs or manifests unknown to the repository")]
    ReferencesUnknown(Vec<Digest>),
    /// Says what is there instead.
    #[error("precondition failed: {0}")]
    PreconditionFailed(String),
    #[error("a manifest of the repository names this blob; delete that first")]
    BlobInUse,
    /// 401 or 403: who asks has no right to it, whether or not it exists.
    #[error("no right to {} {repository}", words(*.action))]
    NotAllowed {
        action: Action,
        repository: RepositoryName,
    },
    /// 403: what is not allowed, by what, and what to do.
    #[error("{0}")]
    Denied(String),
    /// 429: of one client.
    #[error("{0}")]
    TooMany(String),
    /// 503 + Retry-After: no quorum, holders unreachable, draining. Says what and what to do.
    #[error("{0}")]
    Unavailable(String),
    /// The client's body broke off.
    #[error("the request body ended early")]
    ClientGone(#[source] io::Error),
    #[error(
        "a disk of this cluster is nearly full: delete what is not needed, make its volume larger, or push to another region"
    )]
    DiskFull,
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn words(action: Action) -> &'static str {
    match action {
        Action::Pull => "pull from",
        Action::Push => "push to",
        Action::Delete => "delete from",
    }
}

impl Error {
    pub(super) fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Internal(error.into())
    }

    pub(super) fn stopping() -> Error {
        Error::Unavailable("this node is stopping; ask another region".to_owned())
    }
}

/// Of this node's own disk: a full one is an answer, anything else is a defect.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull,
            _ => Error::internal(error),
        }
    }
}

impl From<metadata::Error> for Error {
    fn from(error: metadata::Error) -> Error {
        match error {
            metadata::Error::Unavailable(_) | metadata::Error::OutcomeUnknown => {
                Error::Unavailable(error.to_string())
            }
            metadata::Error::Stopping => Error::stopping(),
            metadata::Error::Io(error) => Error::from(error),
        }
    }
}
