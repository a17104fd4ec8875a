//! Answers that are not what was asked for: one shape, and what to do in each.

use super::types::ErrorBody;
use super::types::ErrorDetail;
use crate::metadata::Error as MetadataError;
use crate::proto::state::v1 as pb;
use axum::Json;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use std::io;

/// An answer that is not what was asked for.
pub struct Refused(Box<Response>);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        *self.0
    }
}

impl From<MetadataError> for Refused {
    fn from(error: MetadataError) -> Refused {
        match error {
            MetadataError::Io(error) => failed("read or write the replicated state", &error),
            error => unavailable(&error.to_string()),
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused::from(MetadataError::Io(error))
    }
}

impl Refused {
    pub fn new(status: StatusCode, code: &str, message: impl ToString, next: &str) -> Refused {
        let detail = ErrorDetail {
            code: code.to_owned(),
            message: message.to_string(),
            next: next.to_owned(),
        };
        let told = Json(ErrorBody { error: detail });
        Refused(Box::new((status, told).into_response()))
    }

    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Refused {
        self.0.headers_mut().insert(name, value);
        self
    }

    /// 400: `next` says where to read what is taken.
    pub fn invalid(message: impl ToString, next: &str) -> Refused {
        Refused::new(StatusCode::BAD_REQUEST, "INVALID", message, next)
    }

    /// 403.
    pub fn denied(message: impl ToString) -> Refused {
        let next = "`roadstead whoami` says what this account may do; ask an admin for more";
        Refused::new(StatusCode::FORBIDDEN, "DENIED", message, next)
    }

    /// What apply said no to.
    pub fn by_state(refused: &pb::Refused) -> Refused {
        let message = &refused.message;
        match refused.reason() {
            pb::Reason::NotAllowed => Refused::denied(message),
            pb::Reason::NameTaken => {
                let next = "choose another name, or remove what has it";
                Refused::new(StatusCode::CONFLICT, "NAME_TAKEN", message, next)
            }
            pb::Reason::NameUnknown => {
                let next = "`roadstead user list`, `token list` and `group list` show the names";
                Refused::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message, next)
            }
            pb::Reason::Invalid => Refused::invalid(message, "see the command's --help"),
            _ => unavailable("it is not known whether the change took effect"),
        }
    }
}

/// 503: a write without a leader or a quorum.
pub(super) fn unavailable(message: &str) -> Refused {
    let next = "try again; `roadstead status` says why there is no leader";
    Refused::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "UNAVAILABLE",
        message,
        next,
    )
    .with(header::RETRY_AFTER, HeaderValue::from_static("10"))
}

/// 500: the cause is logged here, and not shown.
pub(super) fn failed(what: &str, error: &io::Error) -> Refused {
    tracing::error!(%error, "{what}");
    Refused::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "INTERNAL",
        format!("could not {what}"),
        "look into the log of this node",
    )
}
