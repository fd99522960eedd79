//! Images of one node: where they come from, how they are kept, and what containers get of them.
//!
//! Entry: [`Images`]. A pull or load brings blobs into the content store (`content`), unpacks layers into the layer
//! store (`layers`), and last writes one record into the catalog (`catalog`), which is what makes the image exist.
//! Nothing is used before its digest was checked; whatever has its final name on disk is whole. Leases (`lease`) keep
//! what is being pulled or used from the collector (`collect`).

mod archive;
mod builtin;
mod catalog;
mod collect;
mod content;
mod digest;
mod document;
mod error;
mod import;
mod install;
mod layers;
mod lease;
mod load;
mod platform;
mod reference;
mod registry;
mod remove;
mod resolve;
mod unpack;

use std::path::PathBuf;
use std::sync::Arc;

use skep_proto::model::Timestamp;
use skep_proto::model::container::RegistryAuth;
use skep_proto::model::engine::Image;
use tokio::sync::Semaphore;

pub use collect::{CollectPolicy, Collected};
pub use digest::{Digest, DigestError};
pub use error::{ImageError, StorageError};
pub use import::Import;
pub use platform::Platform;
pub use reference::{Reference, ReferenceError};
pub use registry::{Distribution, PullStream};
pub use remove::ImageUse;
pub use resolve::{ImageRef, PullPolicy};
pub use unpack::{ArchiveError, Limits};

use catalog::Catalog;
use content::ContentStore;
use error::blocking;
use layers::LayerStore;
use lease::{KeyLocks, Pins};
use registry::Registries;

/// Gives the current time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How a node keeps images.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// The daemon's root directory; `content/` and `layers/` are made in it.
    pub root: PathBuf,
    /// Registries (`HOST[:PORT]`) that are spoken to without TLS. Loopback addresses always are.
    pub insecure_registries: Vec<String>,
    /// The static shim, which the built-in image `skep/whoami` is made of; `None` for no such image.
    pub whoami: Option<PathBuf>,
    /// Blobs downloaded at once.
    pub downloads: usize,
    /// Layers unpacked at once.
    pub unpacks: usize,
    /// How much of a layer or archive is read before it counts as an attack.
    pub limits: Limits,
}

impl ImagesConfig {
    /// Docker's defaults, in `root`: 3 downloads at once, as many unpacks as the machine has processors.
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            insecure_registries: Vec::new(),
            whoami: None,
            downloads: 3,
            unpacks: std::thread::available_parallelism().map_or(2, usize::from),
            limits: Limits::default(),
        }
    }
}

/// The images of this node. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    content: ContentStore,
    layers: LayerStore,
    catalog: Catalog,
    pins: Arc<Pins>,
    /// Held while a blob comes in, so that it comes in once.
    downloading: KeyLocks<Digest>,
    /// Held while a layer is unpacked, so that it is unpacked once.
    unpacking: KeyLocks<Digest>,
    download_slots: Semaphore,
    unpack_slots: Arc<Semaphore>,
    registries: Registries,
    limits: Limits,
    clock: Clock,
}

impl Images {
    /// Opens the stores in `config.root`, and makes the built-in image if its program is new.
    ///
    /// # Errors
    /// [`ImageError::Storage`] when the root cannot be written or holds what cannot be read.
    pub async fn open(config: ImagesConfig, clock: Clock) -> Result<Self, ImageError> {
        let root = config.root.clone();
        let limits = config.limits;
        let (content, layers, catalog) = blocking(move || {
            let content = ContentStore::open(&root.join("content"))?;
            let layers = LayerStore::open(&root.join("layers"), limits)?;
            let catalog = Catalog::open(&root.join("content/images.redb"))?;
            Ok((content, layers, catalog))
        })
        .await?;
        let images = Self(Arc::new(Inner {
            content,
            layers,
            catalog,
            pins: Arc::default(),
            downloading: KeyLocks::default(),
            unpacking: KeyLocks::default(),
            download_slots: Semaphore::new(config.downloads.max(1)),
            unpack_slots: Arc::new(Semaphore::new(config.unpacks.max(1))),
            registries: Registries::new(config.insecure_registries),
            limits,
            clock,
        }));
        if let Some(program) = config.whoami {
            images.ensure_builtin(program).await?;
        }
        Ok(images)
    }

    /// All images, newest first. Reads memory only.
    pub fn list(&self) -> Vec<Image> {
        let state = self.0.catalog.state();
        let mut images: Vec<Image> =
            state.images.values().filter(|known| !known.record.removed).map(|known| state.show(known)).collect();
        images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        images
    }

    /// One image, by reference, id or unique prefix of one. Reads memory only.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] or [`ImageError::AmbiguousId`].
    pub fn get(&self, reference: &str) -> Result<Image, ImageError> {
        let state = self.0.catalog.state();
        let known = state.find(reference)?;
        Ok(state.show(known))
    }

    /// Gives the image that `source` means the further name `name`, taken from another image if need be.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::InvalidReference`], [`ImageError::Invalid`] for a name with a digest.
    pub async fn tag(&self, source: &str, name: &str) -> Result<(), ImageError> {
        let reference: Reference = name.parse()?;
        if reference.digest().is_some() {
            return Err(ImageError::Invalid("refusing to create a tag with a digest reference".into()));
        }
        let (inner, source) = (self.0.clone(), source.to_owned());
        blocking(move || {
            inner.catalog.update(|state| {
                let id = state.find(&source)?.record.id;
                state.names.insert(reference, id);
                Ok(())
            })
        })
        .await
    }

    /// Checks credentials against a registry; gives Docker's status line, `Login Succeeded`.
    ///
    /// # Errors
    /// [`ImageError::Unauthorized`] when they are wrong, [`ImageError::Registry`] when the registry cannot be asked.
    pub async fn login(&self, server: &str, username: &str, password: &str) -> Result<String, ImageError> {
        self.0.registries.login(server, username, password).await
    }

    /// What a registry says of a reference.
    ///
    /// # Errors
    /// As [`Images::pull`], and [`ImageError::NoManifest`] for the built-in images, which no registry has.
    pub async fn distribution(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<Distribution, ImageError> {
        let reference: Reference = reference.parse()?;
        if builtin::is_builtin(&reference) {
            return Err(ImageError::NoManifest(format!(
                "{} is built into skep, no registry has it",
                reference.familiar()
            )));
        }
        self.0.registries.session(&reference, auth).await?.distribution().await
    }
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("content", &self.0.content).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
