//! The one table from errors to status and OCI code (registry API 1.3), and the body that the
//! spec gives them.
//!
//! An internal error shows a client nothing of its cause: the cause goes to the log, once, with
//! the line of the request. 404 is never said of what may only be out of reach: that is 503.

use super::headers;
use super::query::PageInvalid;
use super::route::Refused;
use crate::oci::AlgorithmInvalid;
use crate::oci::DigestInvalid;
use crate::oci::TagInvalid;
use crate::registry;
use crate::request_id::RequestId;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;

/// Seconds. docker, containerd and oras wait that long and come again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("10");

/// An answer that is not what was asked for.
#[derive(Debug)]
pub struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// One error of the body for each; none gives one error without detail.
    details: Vec<Value>,
    headers: Box<HeaderMap>,
    /// Of an internal error, for the log only.
    cause: Option<String>,
}

impl Failure {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Failure {
        Failure {
            status,
            code,
            message: message.into(),
            details: Vec::new(),
            headers: Box::default(),
            cause: None,
        }
    }

    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Failure {
        self.headers.insert(name, value);
        self
    }

    pub fn internal(error: &std::io::Error) -> Failure {
        let told = "internal error";
        Failure {
            cause: Some(chain(error)),
            ..Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", told)
        }
    }

    fn with_details(mut self, details: Vec<Value>) -> Failure {
        self.details = details;
        self
    }

    pub fn take_cause(&mut self) -> Option<String> {
        self.cause.take()
    }

    fn body(&self) -> Vec<u8> {
        let error = |detail: Option<&Value>| match detail {
            Some(detail) => json!({"code": self.code, "message": self.message, "detail": detail}),
            None => json!({"code": self.code, "message": self.message}),
        };
        let errors: Vec<Value> = if self.details.is_empty() {
            vec![error(None)]
        } else {
            self.details
                .iter()
                .map(|detail| error(Some(detail)))
                .collect()
        };
        json!({ "errors": errors }).to_string().into_bytes()
    }

    /// The answer to HEAD is the same; what carries it leaves out the body.
    /// `id` is for a client to quote when it is not to blame.
    pub fn into_response(mut self, id: RequestId) -> Response {
        if self.status.is_server_error() {
            self.message = format!("{} (request {id})", self.message);
        }
        let mut response = Response::new(Body::from(self.body()));
        *response.status_mut() = self.status;
        *response.headers_mut() = *self.headers;
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }
}

/// An error and its sources, outermost first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl From<registry::Error> for Failure {
    fn from(error: registry::Error) -> Failure {
        use registry::Error;
        let (status, code) = match &error {
            Error::BlobUnknown => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Error::ManifestUnknown => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Error::RepositoryUnknown => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Error::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Error::DigestMismatch(_) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Error::SizeMismatch(_) | Error::ClientGone(_) => {
                (StatusCode::BAD_REQUEST, "SIZE_INVALID")
            }
            Error::UploadOffset { .. } | Error::RangeNotSatisfiable { .. } => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID")
            }
            Error::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Error::ReferencesUnknown(_) => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Error::PreconditionFailed(_) => {
                (StatusCode::PRECONDITION_FAILED, "PRECONDITION_FAILED")
            }
            Error::BlobInUse => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Error::Denied(_) | Error::NotAllowed { .. } => (StatusCode::FORBIDDEN, "DENIED"),
            Error::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Error::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
            Error::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "UNAVAILABLE"),
            Error::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        };
        let failure = Failure::new(status, code, error.to_string());
        match &error {
            Error::UploadOffset { expected } => failure.with(
                header::RANGE,
                headers::value(super::range::uploaded(*expected)),
            ),
            Error::RangeNotSatisfiable { size } => failure.with(
                header::CONTENT_RANGE,
                headers::value(format!("bytes */{size}")),
            ),
            // For as long as it is in use.
            Error::BlobInUse => failure.with(header::ALLOW, HeaderValue::from_static("GET, HEAD")),
            Error::ReferencesUnknown(digests) => failure.with_details(
                digests
                    .iter()
                    .map(|digest| json!({"digest": digest.to_string()}))
                    .collect(),
            ),
            Error::Unavailable(_) | Error::TooMany(_) => {
                failure.with(header::RETRY_AFTER, RETRY_AFTER)
            }
            Error::Internal(_) => Failure {
                cause: Some(chain(&error)),
                ..failure
            },
            _ => failure,
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        let message = refused.to_string();
        match refused {
            Refused::NotFound => Failure::new(StatusCode::NOT_FOUND, "UNSUPPORTED", message),
            Refused::Method { allow } => {
                Failure::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
                    .with(header::ALLOW, HeaderValue::from_static(allow))
            }
            Refused::Name(_) => Failure::bad_request("NAME_INVALID", message),
            Refused::Digest(_) => Failure::bad_request("DIGEST_INVALID", message),
            Refused::Tag(_) => Failure::bad_request("TAG_INVALID", message),
            Refused::NoSuchTag(_) => {
                Failure::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message)
            }
            Refused::UploadUnknown => {
                Failure::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", message)
            }
            Refused::TooLong => Failure::new(StatusCode::URI_TOO_LONG, "UNSUPPORTED", message),
        }
    }
}

impl From<DigestInvalid> for Failure {
    fn from(error: DigestInvalid) -> Failure {
        Failure::bad_request("DIGEST_INVALID", error.to_string())
    }
}

impl From<AlgorithmInvalid> for Failure {
    fn from(error: AlgorithmInvalid) -> Failure {
        Failure::bad_request("DIGEST_INVALID", error.to_string())
    }
}

impl From<TagInvalid> for Failure {
    fn from(error: TagInvalid) -> Failure {
        Failure::bad_request("TAG_INVALID", error.to_string())
    }
}

impl From<PageInvalid> for Failure {
    fn from(error: PageInvalid) -> Failure {
        Failure::bad_request("PAGINATION_NUMBER_INVALID", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::oci::Digest;
    use http_body_util::BodyExt;
    use registry::Error;

    async fn answer(failure: Failure) -> (StatusCode, HeaderMap, Value) {
        let (head, body) = failure.into_response(RequestId::random()).into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (
            head.status,
            head.headers,
            serde_json::from_slice(&bytes).unwrap(),
        )
    }

    #[tokio::test]
    async fn every_error_has_its_status_and_code() {
        let io = || std::io::Error::other("secret");
        for (error, status, code) in [
            (Error::BlobUnknown, 404, "BLOB_UNKNOWN"),
            (Error::ManifestUnknown, 404, "MANIFEST_UNKNOWN"),
            (Error::RepositoryUnknown, 404, "NAME_UNKNOWN"),
            (Error::UploadUnknown, 404, "BLOB_UPLOAD_UNKNOWN"),
            (Error::DigestMismatch("x".into()), 400, "DIGEST_INVALID"),
            (Error::SizeMismatch("x".into()), 400, "SIZE_INVALID"),
            (Error::ClientGone(io()), 400, "SIZE_INVALID"),
            (Error::UploadOffset { expected: 5 }, 416, "RANGE_INVALID"),
            (Error::RangeNotSatisfiable { size: 5 }, 416, "RANGE_INVALID"),
            (Error::ManifestInvalid("x".into()), 400, "MANIFEST_INVALID"),
            (
                Error::ReferencesUnknown(vec![]),
                400,
                "MANIFEST_BLOB_UNKNOWN",
            ),
            (
                Error::PreconditionFailed("x".into()),
                412,
                "PRECONDITION_FAILED",
            ),
            (Error::BlobInUse, 405, "UNSUPPORTED"),
            (Error::Denied("x".into()), 403, "DENIED"),
            (
                Error::NotAllowed {
                    action: crate::access::Action::Pull,
                    repository: "a".parse().unwrap(),
                },
                403,
                "DENIED",
            ),
            (Error::TooMany("x".into()), 429, "TOOMANYREQUESTS"),
            (Error::Unavailable("x".into()), 503, "UNAVAILABLE"),
            (Error::DiskFull, 507, "UNAVAILABLE"),
            (Error::Internal(Box::new(io())), 500, "UNKNOWN"),
        ] {
            let (found, headers, body) = answer(error.into()).await;
            assert_eq!(found.as_u16(), status, "{body}");
            assert_eq!(body["errors"][0]["code"], code);
            assert!(body["errors"][0]["message"].is_string());
            assert_eq!(headers[header::CONTENT_TYPE], "application/json");
            assert!(!body.to_string().contains("secret"), "{body}");
            let is_for_later = [429, 503].contains(&status);
            assert_eq!(headers.contains_key(header::RETRY_AFTER), is_for_later);
        }
    }

    #[tokio::test]
    async fn refusals_say_where_things_stand() {
        let (_, headers, _) = answer(Error::UploadOffset { expected: 5 }.into()).await;
        assert_eq!(headers[header::RANGE], "0-4");
        let (_, headers, _) = answer(Error::RangeNotSatisfiable { size: 5 }.into()).await;
        assert_eq!(headers[header::CONTENT_RANGE], "bytes */5");
        let (_, headers, _) = answer(Error::Unavailable("no leader".into()).into()).await;
        assert_eq!(headers[header::RETRY_AFTER], "10");
        let (_, headers, _) = answer(Refused::Method { allow: "POST" }.into()).await;
        assert_eq!(headers[header::ALLOW], "POST");
        let digests = [b"a", b"b"].map(|bytes| Digest::of(Algorithm::Sha256, bytes));
        let (_, _, body) = answer(Error::ReferencesUnknown(digests.to_vec()).into()).await;
        assert_eq!(
            body["errors"][1]["detail"]["digest"],
            digests[1].to_string()
        );
    }

    #[test]
    fn the_log_gets_the_whole_chain_of_an_internal_error() {
        let source = std::io::Error::other("disk on fire");
        let mut failure = Failure::from(Error::Internal(Box::new(source)));
        assert_eq!(
            failure.take_cause().unwrap(),
            "internal error: disk on fire"
        );
        assert!(Failure::from(Error::BlobUnknown).take_cause().is_none());
    }
}
