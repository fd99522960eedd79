//! From a reference to what a container is made of.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use skep_proto::model::container::RegistryAuth;
use skep_proto::model::engine::ImageConfig;

use super::builtin::{is_builtin, local_name};
use super::catalog::{Known, used};
use super::error::{ImageError, blocking};
use super::lease::Lease;
use super::reference::Reference;
use super::{Digest, Images};

/// When a registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Never.
    Never,
    /// When the image is not here.
    #[default]
    IfNotPresent,
    /// Each time. When the registry does not give it, what is here is used, as Swarm's agents do.
    Always,
}

/// An image as a container uses it. While it or a clone exists, nothing of the image is collected.
#[derive(Debug, Clone)]
pub struct ImageRef {
    /// Digest of the configuration, `sha256:…`.
    pub id: String,
    /// Unpacked layers in overlay form, lowest first.
    pub layers: Vec<PathBuf>,
    /// What the container inherits.
    pub config: ImageConfig,
    #[expect(dead_code, reason = "held for its drop")]
    lease: Arc<Lease>,
}

impl Images {
    /// The image that `reference` means, pulled if `policy` says so. References to `skep/…` are always local, and their
    /// digest is ignored: the built-in image differs from release to release.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] when it is not here and may not be pulled, else as [`Images::pull`].
    ///
    /// # Cancel safety
    /// A dropped call leaves what was downloaded for the next.
    pub async fn resolve(
        &self,
        reference: &str,
        policy: PullPolicy,
        auth: Option<&RegistryAuth>,
    ) -> Result<ImageRef, ImageError> {
        let parsed = reference.parse::<Reference>();
        if let Ok(parsed) = &parsed
            && is_builtin(parsed)
        {
            return self.local(&local_name(parsed)).await;
        }
        let local = self.local(reference).await;
        match (policy, local) {
            (PullPolicy::Never, local) | (PullPolicy::IfNotPresent, local @ Ok(_)) => local,
            // A digest, or an id, means the same content wherever it comes from.
            (PullPolicy::Always, Ok(image)) if parsed.as_ref().map_or(true, |p| p.digest().is_some()) => Ok(image),
            (PullPolicy::IfNotPresent, Err(ImageError::NotFound(_))) => {
                self.fetch(reference, auth).await?;
                self.local(reference).await
            }
            (PullPolicy::IfNotPresent, Err(error)) => Err(error),
            (PullPolicy::Always, local) => match (self.fetch(reference, auth).await, local) {
                (Ok(()), _) => self.local(reference).await,
                (Err(error), Ok(image)) => {
                    tracing::warn!(image = reference, %error, "using the image that is here, the registry gives none");
                    Ok(image)
                }
                (Err(error), Err(_)) => Err(error),
            },
        }
    }

    /// Holds the image of an existing container, by id, also when it was removed by force since. To be called for each
    /// container at the daemon's start, before the first collection.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] when it is gone.
    pub fn hold(&self, id: &str) -> Result<ImageRef, ImageError> {
        let digest: Digest = id.parse().map_err(|_| ImageError::NotFound(id.to_owned()))?;
        let state = self.0.catalog.state();
        let known = state.images.get(&digest).ok_or_else(|| ImageError::NotFound(id.to_owned()))?;
        self.lease_of(known).ok_or_else(|| ImageError::NotFound(id.to_owned()))
    }

    async fn fetch(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<(), ImageError> {
        let mut progress = self.pull(reference, None, auth).await?;
        while let Some(step) = progress.next().await {
            step?;
        }
        Ok(())
    }

    async fn local(&self, reference: &str) -> Result<ImageRef, ImageError> {
        let state = self.0.catalog.state();
        let known = state.find(reference)?;
        let image = self.lease_of(known).ok_or_else(|| ImageError::NotFound(reference.to_owned()))?;
        if let Some(record) = used(known, (self.0.clock)()) {
            let inner = self.0.clone();
            blocking(move || {
                inner.catalog.update(|state| {
                    if state.visible(record.id).is_some() {
                        state.images.insert(record.id, Arc::new(Known::new(record)?));
                    }
                    Ok(())
                })
            })
            .await?;
        }
        Ok(image)
    }

    /// Takes the lease, then looks whether the image is still there: see `lease`.
    fn lease_of(&self, known: &Known) -> Option<ImageRef> {
        let lease = self.0.pins.lease();
        known.content().for_each(|digest| lease.hold(digest));
        if !self.0.catalog.state().images.contains_key(&known.record.id) {
            return None;
        }
        Some(ImageRef {
            id: known.record.id.to_string(),
            layers: known.document.layers.iter().map(|layer| self.0.layers.path(layer)).collect(),
            config: known.document.config.clone(),
            lease: Arc::new(lease),
        })
    }
}
