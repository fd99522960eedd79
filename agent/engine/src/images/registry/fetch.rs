//! Fetches manifests and blobs, again and again where that may help, and goes on where a download was cut.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use oci_client::client::BlobResponse;
use rand::Rng;
use tokio::sync::mpsc;

use super::super::content::{MAX_DOCUMENT, Partial};
use super::super::digest::Digest;
use super::super::document::Descriptor;
use super::super::error::{ImageError, blocking};
use super::super::reference::Reference;
use super::{ACCEPTED, Session, fault, oci_reference};

/// Attempts at a document: who waits for it sees nothing yet.
pub const DOCUMENT_ATTEMPTS: u32 = 3;
/// Attempts at a blob without any progress; each byte that comes counts as a new beginning.
const BLOB_ATTEMPTS: u32 = 6;
/// Wait after the first failure; doubles with each, plus up to half at random.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Chunks between the network and the disk.
const QUEUE: usize = 64;

/// A manifest or index as the registry gave it.
#[derive(Debug, Clone)]
pub struct FoundManifest {
    /// Its bytes.
    pub bytes: Bytes,
    /// Their digest.
    pub digest: Digest,
    /// What it says it is.
    pub media_type: Option<String>,
}

/// Hears how many bytes of a blob are here.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

impl Session {
    /// The manifest or index that `reference` names, verified when it has a digest.
    pub async fn manifest(&self, reference: &Reference) -> Result<FoundManifest, ImageError> {
        let image = oci_reference(reference);
        let (bytes, _) = retrying(DOCUMENT_ATTEMPTS, || async {
            self.client.pull_manifest_raw(&image, &self.auth, ACCEPTED).await.map_err(|e| fault::of(self, e))
        })
        .await?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(ImageError::Malformed(format!("the manifest is larger than {MAX_DOCUMENT} bytes")));
        }
        let digest = Digest::of(&bytes);
        if let Some(expected) = reference.digest().filter(|expected| *expected != digest) {
            return Err(ImageError::WrongDigest { expected, found: digest });
        }
        let media_type = serde_json::from_slice::<serde_json::Value>(&bytes)
            .ok()
            .and_then(|json| Some(json.get("mediaType")?.as_str()?.to_owned()));
        Ok(FoundManifest { bytes, digest, media_type })
    }

    /// A small blob, such as a configuration, in memory and verified.
    pub async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if blob.size > MAX_DOCUMENT {
            return Err(ImageError::Malformed(format!(
                "the image's configuration is larger than {MAX_DOCUMENT} bytes"
            )));
        }
        let digest = blob.digest.to_string();
        retrying(DOCUMENT_ATTEMPTS, || async {
            let mut stream = self
                .client
                .pull_blob_stream(&self.image(), digest.as_str())
                .await
                .map_err(|e| fault::of(self, e))?
                .stream;
            let mut bytes = Vec::new();
            while let Some(chunk) = stream.next().await {
                bytes.extend_from_slice(&chunk.map_err(|e| self.cut(&e))?);
                if bytes.len() as u64 > blob.size {
                    return Err(self.too_long(blob));
                }
            }
            match Digest::of(&bytes) {
                found if found == blob.digest => Ok(bytes),
                found => Err(ImageError::WrongDigest { expected: blob.digest, found }),
            }
        })
        .await
    }

    /// Downloads a blob into `partial`, going on behind what is there; gives the partial back when it is complete.
    pub async fn blob(
        &self,
        blob: &Descriptor,
        mut partial: Partial,
        progress: Progress,
    ) -> Result<Partial, ImageError> {
        let mut failures = 0;
        if partial.len() > blob.size {
            partial.restart()?;
        }
        while partial.len() < blob.size {
            let before = partial.len();
            let (back, result) = self.blob_once(blob, partial, &progress).await?;
            partial = back;
            if partial.len() > before {
                failures = 0;
            }
            match result {
                Ok(()) => {}
                Err(error) if error.is_temporary() && failures + 1 < BLOB_ATTEMPTS => {
                    tracing::debug!(blob = %blob.digest, at = partial.len(), %error, "the download was cut, going on");
                    tokio::time::sleep(wait_after(failures)).await;
                    failures += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(partial)
    }

    /// One request. The outer error is the disk's, which no repetition mends.
    async fn blob_once(
        &self,
        blob: &Descriptor,
        mut partial: Partial,
        progress: &Progress,
    ) -> Result<(Partial, Result<(), ImageError>), ImageError> {
        let digest = blob.digest.to_string();
        let response = self.client.pull_blob_stream_partial(&self.image(), digest.as_str(), partial.len(), None).await;
        let mut stream = match response {
            Ok(BlobResponse::Partial(part)) => part.stream,
            // The registry does not know ranges.
            Ok(BlobResponse::Full(whole)) => {
                partial.restart()?;
                whole.stream
            }
            Err(error) => return Ok((partial, Err(fault::of(self, error)))),
        };
        let mut expected = blob.size - partial.len();
        let (chunks, receiver) = mpsc::channel::<Bytes>(QUEUE);
        let writing = write_chunks(partial, receiver, progress.clone());
        let reading = async move {
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|e| self.cut(&e))?;
                expected = expected.checked_sub(chunk.len() as u64).ok_or_else(|| self.too_long(blob))?;
                if chunks.send(chunk).await.is_err() {
                    // The disk failed, which the writer tells.
                    break;
                }
            }
            if expected > 0 {
                return Err(ImageError::Registry(format!(
                    "registry {} ended the download of {} early",
                    self.reference.registry(),
                    blob.digest
                )));
            }
            Ok(())
        };
        let (partial, result) = tokio::join!(writing, reading);
        Ok((partial?, result))
    }

    fn cut(&self, error: &std::io::Error) -> ImageError {
        ImageError::Registry(format!("registry {}: {}", self.reference.registry(), fault::root_cause(error)))
    }

    fn too_long(&self, blob: &Descriptor) -> ImageError {
        ImageError::Malformed(format!(
            "registry {} gives more for {} than the {} bytes that the manifest says",
            self.reference.registry(),
            blob.digest,
            blob.size
        ))
    }
}

/// Digests and writes chunks on the blocking pool until their sender is gone.
async fn write_chunks(
    mut partial: Partial,
    mut chunks: mpsc::Receiver<Bytes>,
    progress: Progress,
) -> Result<Partial, ImageError> {
    blocking(move || {
        while let Some(chunk) = chunks.blocking_recv() {
            partial.write(&chunk)?;
            progress(partial.len());
        }
        Ok(partial)
    })
    .await
}

/// Runs `attempt` until it succeeds, fails for good, or was tried so often.
pub async fn retrying<T, F: Future<Output = Result<T, ImageError>>>(
    attempts: u32,
    attempt: impl Fn() -> F,
) -> Result<T, ImageError> {
    let mut failures = 0;
    loop {
        match attempt().await {
            Err(error) if error.is_temporary() && failures + 1 < attempts => {
                tracing::debug!(%error, "asking the registry again");
                tokio::time::sleep(wait_after(failures)).await;
                failures += 1;
            }
            result => return result,
        }
    }
}

/// Random, so that a cluster whose registry was away does not come back at once.
fn wait_after(failures: u32) -> Duration {
    let wait = FIRST_WAIT * 2u32.pow(failures.min(8));
    wait + wait.mul_f64(rand::rng().random_range(0.0..0.5))
}
