//! Answers to requests that fail. The only file that picks the HTTP status of an error.
//!
//! The body is `{"message": …}` with the content type of JSON: without it the clients print the raw body.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;

use super::detach::InvalidKeys;
use crate::ports::{ControlError, EngineError};

/// What a client is told when its request fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
}

/// The body of every error (Engine API, `ErrorResponse`).
#[derive(Serialize)]
struct ErrorBody<'a> {
    message: &'a str,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The request makes no sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The request's spec makes no sense: Swarm's words for it.
    pub(crate) fn invalid_argument(message: impl std::fmt::Display) -> Self {
        Self::bad_request(format!("rpc error: code = InvalidArgument desc = {message}"))
    }

    /// No such object.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The name is taken, or the object's state forbids it.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// The object exists, but not for this use.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// Not built yet; `thing` completes the sentence.
    pub(crate) fn not_supported(thing: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{thing} is not supported by skep yet"))
    }

    /// The body is larger than the face reads.
    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the request's body is larger than {limit} bytes"))
    }

    /// Another part did not answer as it must.
    pub(crate) fn bad_gateway(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, message)
    }

    /// `POST /swarm/leave`: Docker answers 503 where other requests get 400.
    pub(crate) fn leaving(error: ControlError) -> Self {
        match error {
            ControlError::NotInSwarm => Self::new(StatusCode::SERVICE_UNAVAILABLE, "This node is not part of a swarm"),
            ControlError::FailedPrecondition(text) => Self::new(StatusCode::SERVICE_UNAVAILABLE, text),
            other => other.into(),
        }
    }

    /// `GET /images/{name}/json`: Docker names the reference twice, the second time with its tag.
    pub(crate) fn inspecting_image(name: &str, error: EngineError) -> Self {
        match error {
            EngineError::NoSuchImage(_) => {
                let last = name.rsplit('/').next().unwrap_or(name);
                let tagged = if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") };
                Self::not_found(format!("no such image: {name}: No such image: {tagged}"))
            }
            other => other.into(),
        }
    }

    /// The text that the client sees.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let status = match &error {
            ControlError::NotInSwarm
            | ControlError::NotManager
            | ControlError::AlreadyInSwarm
            | ControlError::Locked
            | ControlError::NodeUnreachable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            ControlError::NotFound { .. } => StatusCode::NOT_FOUND,
            ControlError::NameConflict(_) | ControlError::NotLocked => StatusCode::CONFLICT,
            ControlError::Ambiguous { .. }
            | ControlError::InvalidArgument(_)
            | ControlError::WrongUnlockKey
            | ControlError::FailedPrecondition(_)
            | ControlError::JoinRefused(_) => StatusCode::BAD_REQUEST,
            ControlError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            // Docker answers 500 to a stale version; clients match the text.
            ControlError::OutOfSequence
            | ControlError::NoLeader
            | ControlError::Timeout
            | ControlError::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        log_chain(&error);
        Self::new(status, error.to_string())
    }
}

impl From<InvalidKeys> for ApiError {
    fn from(error: InvalidKeys) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let status = match &error {
            EngineError::NoSuchContainer(_)
            | EngineError::NoSuchImage(_)
            | EngineError::NoSuchExec(_)
            | EngineError::NoSuchVolume(_)
            | EngineError::NoSuchNetwork(_) => StatusCode::NOT_FOUND,
            EngineError::Forbidden(_) => StatusCode::FORBIDDEN,
            EngineError::Conflict(_) => StatusCode::CONFLICT,
            EngineError::Invalid(_) | EngineError::StartFailed(_) => StatusCode::BAD_REQUEST,
            // The registry's own words tell a missing image from a registry that cannot be reached.
            EngineError::Registry(text) if text.contains("not found") || text.contains("manifest unknown") => {
                StatusCode::NOT_FOUND
            }
            EngineError::Registry(_) => StatusCode::INTERNAL_SERVER_ERROR,
            EngineError::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            EngineError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            EngineError::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        log_chain(&error);
        Self::new(status, error.to_string())
    }
}

/// Writes the whole chain of an internal error to the log; the client gets its outer message only.
fn log_chain(error: &(dyn std::error::Error + 'static)) {
    let Some(source) = error.source() else { return };
    let mut chain = source.to_string();
    let mut next = source.source();
    while let Some(cause) = next {
        chain = format!("{chain}: {cause}");
        next = cause.source();
    }
    tracing::error!(cause = %chain, "{error}");
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { message: &self.message })).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_that_dockerd_was_recorded_with() {
        let cases: [(ApiError, u16); 9] = [
            (ControlError::NotManager.into(), 503),
            (ControlError::AlreadyInSwarm.into(), 503),
            (ControlError::NameConflict("x".into()).into(), 409),
            (ControlError::InvalidArgument("x".into()).into(), 400),
            (ControlError::FailedPrecondition("x".into()).into(), 400),
            (ControlError::OutOfSequence.into(), 500),
            (ApiError::leaving(ControlError::FailedPrecondition("x".into())), 503),
            (EngineError::StartFailed("x".into()).into(), 400),
            (EngineError::Registry("manifest for x not found: manifest unknown".into()).into(), 404),
        ];
        for (error, status) in cases {
            assert_eq!(error.status.as_u16(), status, "{}", error.message);
        }
    }

    #[test]
    fn an_image_that_is_not_there_is_named_twice_the_second_time_with_its_tag() {
        let error = ApiError::inspecting_image("nosuch", EngineError::NoSuchImage("nosuch".into()));
        assert_eq!(error.message(), "no such image: nosuch: No such image: nosuch:latest");
    }
}
