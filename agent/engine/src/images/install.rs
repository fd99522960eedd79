//! The last steps of every way in: unpack the layers, then write the record that makes the image exist.

use std::io::{self, Read};
use std::sync::Arc;

use super::catalog::{ImageRecord, Known};
use super::digest::Digest;
use super::document::{Descriptor, ImageDocument, Manifest, OCI_CONFIG, OCI_MANIFEST};
use super::error::{ImageError, blocking};
use super::lease::Lease;
use super::reference::Reference;
use super::{Images, layers::LayerMeta};

/// An image whose blobs are all in the content store.
#[derive(Debug)]
pub struct Arrived {
    /// Digest of the configuration.
    pub id: Digest,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// The index that the manifest was chosen from.
    pub index: Option<Digest>,
    /// Blobs of the layers, lowest first.
    pub blobs: Vec<Digest>,
    /// The configuration as JSON.
    pub document: String,
}

/// Takes note of bytes read, from a blocking thread.
pub type Meter = Arc<dyn Fn(u64) + Send + Sync>;

impl Images {
    /// Unpacks the layer of `blob`, unless it is here. `meter` hears of compressed bytes read.
    pub(super) async fn unpack(
        &self,
        lease: &Arc<Lease>,
        diff_id: Digest,
        blob: Digest,
        meter: Option<Meter>,
    ) -> Result<LayerMeta, ImageError> {
        lease.hold(diff_id);
        if let Some(meta) = self.0.layers.meta(&diff_id) {
            return Ok(meta);
        }
        let turn = self.0.unpacking.lock(diff_id).await;
        let slot = self.0.unpack_slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (inner, lease) = (self.0.clone(), lease.clone());
        blocking(move || {
            let file = inner.content.open_blob(&blob)?;
            let meta = inner.layers.unpack(diff_id, Metered { inner: file, meter })?;
            // Held to here: the work goes on when whoever asked for it does not wait any more.
            drop((turn, slot, lease));
            Ok(meta)
        })
        .await
    }

    /// Unpacks all layers at once and writes the record, with `names` taken from other images if need be.
    pub(super) async fn install(
        &self,
        lease: &Arc<Lease>,
        arrived: Arrived,
        names: Vec<Reference>,
    ) -> Result<Arc<Known>, ImageError> {
        let document = ImageDocument::parse(arrived.document.as_bytes())?;
        if document.layers.len() != arrived.blobs.len() {
            return Err(ImageError::Malformed(format!(
                "invalid manifest, layers length mismatch: expected {}, got {}",
                document.layers.len(),
                arrived.blobs.len()
            )));
        }
        let unpacks =
            document.layers.iter().zip(&arrived.blobs).map(|(diff_id, blob)| self.unpack(lease, *diff_id, *blob, None));
        let layers = futures_util::future::try_join_all(unpacks).await?;
        let record = ImageRecord {
            id: arrived.id,
            manifest: arrived.manifest,
            index: arrived.index,
            blobs: arrived.blobs,
            size: layers.iter().map(|layer| layer.size).sum(),
            document: arrived.document,
            used_at: (self.0.clock)().0,
            removed: false,
        };
        let known = Arc::new(Known::new(record)?);
        let inner = self.0.clone();
        blocking(move || {
            inner.catalog.update(|state| {
                for name in names {
                    state.names.insert(name, known.record.id);
                }
                state.images.insert(known.record.id, known.clone());
                Ok(())
            })?;
            Ok(known)
        })
        .await
    }

    /// Writes a manifest for layers that came without one. Blocks.
    pub(super) fn write_manifest(
        &self,
        lease: &Lease,
        document: &[u8],
        layers: Vec<Descriptor>,
    ) -> Result<(Digest, Digest), ImageError> {
        let id = self.0.content.put(document, lease)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            config: Descriptor::new(OCI_CONFIG, id, document.len() as u64),
            layers,
        };
        let text = serde_json::to_vec(&manifest).expect("a manifest is JSON");
        Ok((id, self.0.content.put(&text, lease)?))
    }
}

/// A reader that tells how far it is.
struct Metered<R> {
    inner: R,
    meter: Option<Meter>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if let Some(meter) = &self.meter {
            meter(n as u64);
        }
        Ok(n)
    }
}
