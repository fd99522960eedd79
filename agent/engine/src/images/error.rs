//! Why an image operation did not happen.

use std::fmt;
use std::io;
use std::path::Path;

use super::digest::Digest;
use super::unpack::ArchiveError;

/// Why an image operation did not happen. Texts are Docker's where clients match them.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference breaks Docker's rules.
    #[error("{0}")]
    InvalidReference(#[from] super::reference::ReferenceError),
    /// Another argument makes no sense: a `--change` line, a platform, credentials.
    #[error("{0}")]
    Invalid(String),
    /// No such image on this node.
    #[error("No such image: {0}")]
    NotFound(String),
    /// A prefix of an id that several images share.
    #[error("multiple IDs found with provided prefix: {0}")]
    AmbiguousId(String),
    /// A container needs the image, or several names do.
    #[error("{0}")]
    InUse(String),
    /// The registry has no such manifest, or nothing for the platform asked for.
    #[error("{0}")]
    NoManifest(String),
    /// The registry has no such repository, or hides it from this client (`pull access denied for …`).
    #[error("{0}")]
    AccessDenied(String),
    /// Credentials are missing or wrong.
    #[error("{0}")]
    Unauthorized(String),
    /// The registry cannot be reached, or does not keep to the protocol; names the registry.
    #[error("{0}")]
    Registry(String),
    /// Content is not what its digest says.
    #[error("filesystem layer verification failed for digest {expected}: the content's digest is {found}")]
    WrongDigest {
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// An archive or layer cannot be read or breaks a limit.
    #[error("{context}")]
    Archive {
        /// Which archive or layer.
        context: String,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// A manifest, index or configuration is not what the OCI image-spec says.
    #[error("{0}")]
    Malformed(String),
    /// Not built yet; named, never pretended.
    #[error("{0} is not supported by skep yet")]
    Unsupported(String),
    /// The node's own storage does not work.
    #[error("{context}")]
    Storage {
        /// What was being done.
        context: String,
        /// What broke.
        source: StorageError,
    },
}

/// What broke in the node's own storage.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The database of references.
    #[error(transparent)]
    Database(#[from] redb::Error),
    /// What the database holds cannot be read.
    #[error(transparent)]
    Record(#[from] serde_json::Error),
    /// The work was cut off by the daemon's end.
    #[error("the daemon stops")]
    Stopped,
}

impl ImageError {
    /// A failure of the file system while doing `verb` to `path`.
    pub(crate) fn io(verb: &str, path: &Path, source: io::Error) -> Self {
        Self::Storage { context: format!("{verb} {}", path.display()), source: source.into() }
    }

    /// A failure of the database while doing `context`.
    pub(crate) fn database(context: impl fmt::Display, source: impl Into<redb::Error>) -> Self {
        Self::Storage { context: context.to_string(), source: StorageError::Database(source.into()) }
    }

    /// A later attempt may succeed without anyone changing anything.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Registry(_) | Self::WrongDigest { .. } | Self::Storage { .. } => true,
            Self::InvalidReference(_)
            | Self::Invalid(_)
            | Self::NotFound(_)
            | Self::AmbiguousId(_)
            | Self::InUse(_)
            | Self::NoManifest(_)
            | Self::AccessDenied(_)
            | Self::Unauthorized(_)
            | Self::Archive { .. }
            | Self::Malformed(_)
            | Self::Unsupported(_) => false,
        }
    }
}

/// Runs blocking work on the pool for it.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T, ImageError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ImageError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ImageError::Storage { context: "image work was cut off".into(), source: StorageError::Stopped }),
    }
}
