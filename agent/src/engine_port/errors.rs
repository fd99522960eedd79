//! Errors of the parts as the engine's. Texts are kept; they are Docker's where clients match them.

use skep_api::ports::EngineError;
use skep_engine::containers::ContainerError;
use skep_engine::images::ImageError;
use skep_engine::volumes::VolumeError;

use super::prepare::PrepareError;
use super::sandboxes::SandboxError;
use crate::chain;

/// Something broke on this side while doing `context`.
pub(super) fn internal(
    context: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> EngineError {
    EngineError::Internal { context: context.into(), source: source.into() }
}

pub(super) fn container(error: ContainerError) -> EngineError {
    match error {
        ContainerError::NotFound(reference) => EngineError::NoSuchContainer(reference),
        ContainerError::NoSuchExec(id) => EngineError::NoSuchExec(id),
        ContainerError::Conflict(text) => EngineError::Conflict(text),
        ContainerError::Invalid(text) => EngineError::Invalid(text),
        ContainerError::StartFailed(text) => EngineError::StartFailed(text),
        ContainerError::Internal { context, source } => internal(context, source),
    }
}

pub(super) fn image(error: ImageError) -> EngineError {
    match error {
        ImageError::NotFound(reference) => EngineError::NoSuchImage(reference),
        ImageError::InUse(text) => EngineError::Conflict(text),
        ImageError::InvalidReference(_)
        | ImageError::Invalid(_)
        | ImageError::AmbiguousId(_)
        | ImageError::Malformed(_)
        | ImageError::Archive { .. } => EngineError::Invalid(chain(&error).to_string()),
        ImageError::NoManifest(_)
        | ImageError::AccessDenied(_)
        | ImageError::Registry(_)
        | ImageError::WrongDigest { .. } => EngineError::Registry(error.to_string()),
        ImageError::Unauthorized(text) => EngineError::Unauthorized(text),
        ImageError::Unsupported(what) => EngineError::Unsupported(what),
        ImageError::Storage { context, source } => internal(context, source),
    }
}

pub(super) fn volume(error: VolumeError) -> EngineError {
    match error {
        VolumeError::NotFound(name) => EngineError::NoSuchVolume(name),
        VolumeError::InvalidName(_) | VolumeError::InvalidOption(_) | VolumeError::NoSuchDriver(_) => {
            EngineError::Invalid(error.to_string())
        }
        VolumeError::InUse { .. } => EngineError::Conflict(error.to_string()),
        // The client cannot do anything without the kernel's word.
        VolumeError::Mount { .. } => {
            let text = chain(&error).to_string();
            internal(text, error)
        }
        VolumeError::Storage { context, source } => internal(context, source),
    }
}

pub(super) fn prepare(error: PrepareError) -> EngineError {
    match error {
        PrepareError::Invalid(text) => EngineError::Invalid(text),
        PrepareError::Volume(error) => volume(error),
    }
}

pub(super) fn sandbox(error: SandboxError) -> EngineError {
    match error {
        SandboxError::Taken(text) | SandboxError::InUse(text) => EngineError::Conflict(text),
        SandboxError::Invalid(text) => EngineError::Invalid(text),
        SandboxError::NoSuchBridge(name) => EngineError::NoSuchNetwork(name),
        SandboxError::Failed { context, source } => internal(context, source),
    }
}

/// A sandbox that cannot be had at the start of the container `name`.
pub(super) fn connecting(name: &str, error: SandboxError) -> EngineError {
    match error {
        SandboxError::Taken(text) => EngineError::StartFailed(format!(
            "driver failed programming external connectivity on endpoint {name}: {text}"
        )),
        other => sandbox(other),
    }
}
