//! What a registry's refusals mean, in Docker's words (moby, `distribution/errors.go`).

use oci_client::errors::{OciDistributionError, OciEnvelope, OciErrorCode};
use oci_client::secrets::RegistryAuth;

use super::super::error::ImageError;
use super::super::reference::Reference;
use super::Session;

const DENIED: &str = "denied: requested access to the resource is denied";

/// What `error` means for the session's reference.
pub fn of(session: &Session, error: OciDistributionError) -> ImageError {
    let reference = &session.reference;
    match error {
        OciDistributionError::RegistryError { envelope, url } => refusal(reference, &envelope, &url),
        OciDistributionError::UnauthorizedError { .. } if session.auth == RegistryAuth::Anonymous => {
            access_denied(reference, DENIED)
        }
        OciDistributionError::UnauthorizedError { .. } => {
            ImageError::Unauthorized("unauthorized: authentication required".into())
        }
        OciDistributionError::AuthenticationFailure(_) => {
            ImageError::Unauthorized("unauthorized: incorrect username or password".into())
        }
        OciDistributionError::ServerError { code: 403, .. } => access_denied(reference, DENIED),
        OciDistributionError::ServerError { code: 404, .. } | OciDistributionError::ImageManifestNotFoundError(_) => {
            no_manifest(reference, "manifest unknown: manifest unknown")
        }
        OciDistributionError::ServerError { code, url, .. } => {
            ImageError::Registry(format!("registry {} answers {url} with status {code}", reference.registry()))
        }
        OciDistributionError::RequestError(error) => {
            let url = error.url().map_or_else(|| reference.registry().to_owned(), ToString::to_string);
            ImageError::Registry(format!("Get {url:?}: {}", root_cause(&error)))
        }
        other => ImageError::Registry(format!("registry {}: {}", reference.registry(), root_cause(&other))),
    }
}

/// The registry said why.
fn refusal(reference: &Reference, envelope: &OciEnvelope, url: &str) -> ImageError {
    let Some(error) = envelope.errors.first() else {
        return ImageError::Registry(format!("registry {} refuses {url} without a reason", reference.registry()));
    };
    let cause = format!("{}: {}", words(&error.code), error.message);
    match error.code {
        OciErrorCode::ManifestUnknown | OciErrorCode::NotFound => no_manifest(reference, &cause),
        OciErrorCode::NameUnknown => {
            ImageError::NoManifest(format!("repository {} not found: {cause}", reference.familiar_name()))
        }
        OciErrorCode::Denied => access_denied(reference, &cause),
        OciErrorCode::Unauthorized => ImageError::Unauthorized(cause),
        _ => ImageError::Registry(format!("registry {}: {cause}", reference.registry())),
    }
}

fn access_denied(reference: &Reference, cause: &str) -> ImageError {
    ImageError::AccessDenied(format!(
        "pull access denied for {}, repository does not exist or may require 'docker login': {cause}",
        reference.familiar_name()
    ))
}

fn no_manifest(reference: &Reference, cause: &str) -> ImageError {
    ImageError::NoManifest(format!("manifest for {} not found: {cause}", reference.familiar()))
}

/// `MANIFEST_UNKNOWN` as `manifest unknown`.
fn words(code: &OciErrorCode) -> String {
    let text = serde_json::to_value(code).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    text.replace('_', " ").to_ascii_lowercase()
}

/// The innermost cause, which says what happened; the outer ones say who asked whom.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().map(ToString::to_string).unwrap_or_default()
}
