//! One pull: from a reference to an image, told in Docker's words.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, FuturesUnordered};
use skep_proto::model::container::RegistryAuth;
use skep_proto::model::engine::PullProgress;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::super::builtin::{is_builtin, local_name};
use super::super::digest::Digest;
use super::super::document::{Descriptor, Document, ImageDocument, Manifest};
use super::super::error::{ImageError, blocking};
use super::super::install::Arrived;
use super::super::lease::Lease;
use super::super::platform::{Platform, choose};
use super::super::reference::Reference;
use super::super::{Images, unpack::Limits};
use super::Session;

/// Progress of a pull, ending with its end or its error. Dropping it ends the pull; what came is kept for the next.
pub type PullStream = BoxStream<'static, Result<PullProgress, ImageError>>;

/// Lines on their way to the client.
const QUEUE: usize = 64;
/// Between two lines of one layer that only count bytes.
const COUNT_INTERVAL: Duration = Duration::from_millis(100);
/// Indexes inside indexes that are followed.
const MAX_NESTING: usize = 4;

/// What a pull has found out before anything is shown.
struct Plan {
    session: Session,
    reference: Reference,
    lease: Arc<Lease>,
    /// Digest of what the reference names: the index if there is one.
    digest: Digest,
    index: Option<Digest>,
    manifest: Manifest,
    manifest_digest: Digest,
    document: String,
    diff_ids: Vec<Digest>,
}

impl Images {
    /// Fetches an image for `platform` (`OS/ARCH[/VARIANT]`), or the node's.
    ///
    /// # Errors
    /// What is found out before anything is shown comes from the call: [`ImageError::NoManifest`],
    /// [`ImageError::AccessDenied`], [`ImageError::Unauthorized`], [`ImageError::Registry`]; a later error from the
    /// stream, as its last item.
    pub async fn pull(
        &self,
        reference: &str,
        platform: Option<&str>,
        auth: Option<&RegistryAuth>,
    ) -> Result<PullStream, ImageError> {
        let reference: Reference = reference.parse()?;
        if is_builtin(&reference) {
            return self.pull_builtin(&reference);
        }
        let platform = platform.filter(|p| !p.is_empty()).map_or_else(|| Ok(Platform::host()), str::parse)?;
        let session = self.0.registries.session(&reference, auth).await?;
        let plan = self.plan_pull(session, reference, &platform).await?;
        let (lines, receiver) = mpsc::channel(QUEUE);
        let images = self.clone();
        let work = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = images.run_pull(plan, &Reporter { lines: lines.clone() }).await {
                // Nobody may be there to hear it.
                let _ = lines.send(Err(error)).await;
            }
        }));
        let stream = futures_util::stream::unfold((receiver, work), |(mut receiver, work)| async move {
            receiver.recv().await.map(|line| (line, (receiver, work)))
        });
        Ok(stream.boxed())
    }

    /// A built-in image is here, or nowhere.
    fn pull_builtin(&self, reference: &Reference) -> Result<PullStream, ImageError> {
        let name: Reference = local_name(reference).parse()?;
        if !self.0.catalog.state().names.contains_key(&name) {
            return Err(ImageError::NoManifest(format!(
                "manifest for {} not found: no such image is built into skep",
                name.familiar()
            )));
        }
        let line = PullProgress {
            id: String::new(),
            status: format!("Status: Image is up to date for {}", name.familiar()),
            bytes: None,
        };
        Ok(futures_util::stream::iter([Ok(line)]).boxed())
    }

    /// Fetches the documents: index, manifest, configuration.
    async fn plan_pull(&self, session: Session, reference: Reference, platform: &Platform) -> Result<Plan, ImageError> {
        let lease = Arc::new(self.0.pins.lease());
        let (mut wanted, mut first, mut index) = (reference.clone(), None, None);
        for _ in 0..MAX_NESTING {
            let found = session.manifest(&wanted).await?;
            first.get_or_insert(found.digest);
            let manifest = match Document::parse(&found.bytes)? {
                Document::Manifest(manifest) => manifest,
                Document::Index(list) => {
                    let platforms = list.manifests.iter().map(|entry| (&entry.digest, entry.platform.as_ref()));
                    let chosen = choose(platforms, platform).ok_or_else(|| {
                        ImageError::NoManifest(format!(
                            "no matching manifest for {platform} in the manifest list entries of {}",
                            reference.familiar()
                        ))
                    })?;
                    self.keep_document(found.bytes.to_vec(), &lease).await?;
                    index.get_or_insert(found.digest);
                    wanted = reference.with_digest(chosen);
                    continue;
                }
            };
            self.keep_document(found.bytes.to_vec(), &lease).await?;
            let config = self.configuration(&session, &manifest.config, &lease).await?;
            let parsed = ImageDocument::parse(&config)?;
            if parsed.layers.len() != manifest.layers.len() {
                return Err(ImageError::Malformed(format!(
                    "invalid manifest, layers length mismatch: expected {}, got {}",
                    parsed.layers.len(),
                    manifest.layers.len()
                )));
            }
            check_sizes(&manifest, &self.0.limits)?;
            let document = String::from_utf8(config)
                .map_err(|_| ImageError::Malformed("malformed image configuration: not UTF-8".into()))?;
            return Ok(Plan {
                session,
                digest: first.unwrap_or(found.digest),
                reference,
                lease,
                index,
                manifest,
                manifest_digest: found.digest,
                document,
                diff_ids: parsed.layers,
            });
        }
        Err(ImageError::Malformed(format!("indexes are nested more than {MAX_NESTING} deep")))
    }

    async fn keep_document(&self, bytes: Vec<u8>, lease: &Arc<Lease>) -> Result<Digest, ImageError> {
        let (inner, lease) = (self.0.clone(), lease.clone());
        blocking(move || inner.content.put(&bytes, &lease)).await
    }

    async fn configuration(
        &self,
        session: &Session,
        config: &Descriptor,
        lease: &Arc<Lease>,
    ) -> Result<Vec<u8>, ImageError> {
        lease.hold(config.digest);
        let (inner, digest) = (self.0.clone(), config.digest);
        if inner.content.size(&digest).is_some()
            && let Ok(known) = blocking(move || inner.content.read(&digest)).await
        {
            return Ok(known);
        }
        let bytes = session.small_blob(config).await?;
        self.keep_document(bytes.clone(), lease).await?;
        Ok(bytes)
    }

    async fn run_pull(&self, plan: Plan, report: &Reporter) -> Result<(), ImageError> {
        let Plan { session, reference, lease, digest, index, manifest, manifest_digest, document, diff_ids } = plan;
        let id = manifest.config.digest;
        let shown = match reference.digest() {
            Some(digest) => digest.to_string(),
            None => reference.tag().unwrap_or("latest").to_owned(),
        };
        report.say(&shown, format!("Pulling from {}", reference.repository())).await;

        let names = names_of(&reference, digest);
        let state = self.0.catalog.state();
        let is_new = state.visible(id).is_none() || names.iter().any(|name| state.names.get(name) != Some(&id));
        let layers: Vec<(&Descriptor, Digest)> = manifest.layers.iter().zip(diff_ids).collect();
        let mut missing = Vec::new();
        // Each blob once, though empty layers may repeat it.
        for (layer, diff_id) in &layers {
            let known = self.has_layer(&lease, layer, diff_id);
            report.say(&layer.digest.short(), if known { "Already exists" } else { "Pulling fs layer" }).await;
            if !known && !missing.iter().any(|(other, _): &(&Descriptor, Digest)| other.digest == layer.digest) {
                missing.push((*layer, *diff_id));
            }
        }
        let mut work: FuturesUnordered<_> = missing
            .iter()
            .map(|(layer, diff_id)| self.fetch_layer(&session, &lease, layer, *diff_id, report))
            .collect();
        while let Some(result) = work.next().await {
            result?;
        }
        let blobs = manifest.layers.iter().map(|layer| layer.digest).collect();
        let arrived = Arrived { id, manifest: manifest_digest, index, blobs, document };
        self.install(&lease, arrived, names).await?;
        report.say("", format!("Digest: {digest}")).await;
        let outcome = if is_new { "Downloaded newer image" } else { "Image is up to date" };
        report.say("", format!("Status: {outcome} for {}", reference.familiar())).await;
        Ok(())
    }

    /// Both the layer and its blob are here: the blob is what other nodes and registries get.
    fn has_layer(&self, lease: &Lease, layer: &Descriptor, diff_id: &Digest) -> bool {
        lease.hold(layer.digest);
        lease.hold(*diff_id);
        self.0.content.size(&layer.digest).is_some() && self.0.layers.meta(diff_id).is_some()
    }

    async fn fetch_layer(
        &self,
        session: &Session,
        lease: &Arc<Lease>,
        layer: &Descriptor,
        diff_id: Digest,
        report: &Reporter,
    ) -> Result<(), ImageError> {
        let id = layer.digest.short();
        self.download(session, layer, report).await?;
        let counter = report.counter(&id, "Extracting", layer.size);
        let read = AtomicU64::new(0);
        let meter = Arc::new(move |bytes| counter(read.fetch_add(bytes, Ordering::Relaxed) + bytes));
        self.unpack(lease, diff_id, layer.digest, Some(meter)).await?;
        report.say(&id, "Pull complete").await;
        Ok(())
    }

    /// Brings the layer's blob here, unless it is, or another pull is bringing it.
    async fn download(&self, session: &Session, layer: &Descriptor, report: &Reporter) -> Result<(), ImageError> {
        let id = layer.digest.short();
        let _turn = self.0.downloading.lock(layer.digest).await;
        if self.0.content.size(&layer.digest) == Some(layer.size) {
            report.say(&id, "Download complete").await;
            return Ok(());
        }
        let _slot = match self.0.download_slots.try_acquire() {
            Ok(slot) => slot,
            Err(_) => {
                report.say(&id, "Waiting").await;
                self.0.download_slots.acquire().await.expect("the semaphore is never closed")
            }
        };
        let digest = layer.digest;
        for again in [true, false] {
            let inner = self.0.clone();
            let partial = blocking(move || inner.content.resume(digest)).await?;
            let resumed = partial.len() > 0;
            let counter = report.counter(&id, "Downloading", layer.size);
            let partial = session.blob(layer, partial, Arc::new(counter)).await?;
            report.say(&id, "Verifying Checksum").await;
            match blocking(move || partial.commit()).await {
                // What an earlier attempt left may have been damaged; it is gone now.
                Err(ImageError::WrongDigest { .. }) if resumed && again => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        report.say(&id, "Download complete").await;
        Ok(())
    }
}

/// The names that the image gets: the tag asked for, and the digest in the repository, which proves where it is from.
fn names_of(reference: &Reference, digest: Digest) -> Vec<Reference> {
    let mut names = vec![reference.with_digest(digest)];
    // With a digest in the reference the tag was not looked at, so it does not move.
    if let (Some(tag), None) = (reference.tag(), reference.digest()) {
        names.push(reference.with_tag(tag));
    }
    names
}

/// A manifest that promises more than is read is refused before the first byte is downloaded.
fn check_sizes(manifest: &Manifest, limits: &Limits) -> Result<(), ImageError> {
    match manifest.layers.iter().find(|layer| layer.size > limits.bytes) {
        Some(layer) => Err(ImageError::Malformed(format!(
            "layer {} of {} bytes is larger than the limit of {} bytes",
            layer.digest, layer.size, limits.bytes
        ))),
        None => Ok(()),
    }
}

/// Sends lines to whoever watches.
struct Reporter {
    lines: mpsc::Sender<Result<PullProgress, ImageError>>,
}

impl Reporter {
    /// A line that must arrive. The pull goes at the pace of its watcher.
    async fn say(&self, id: &str, status: impl Into<String>) {
        let line = PullProgress { id: id.to_owned(), status: status.into(), bytes: None };
        // Without a watcher the pull is being aborted.
        let _ = self.lines.send(Ok(line)).await;
    }

    /// Lines that count bytes, which are left out when they come too fast.
    fn counter(&self, id: &str, status: &'static str, total: u64) -> impl Fn(u64) + Send + Sync + use<> {
        let (lines, id, last) = (self.lines.clone(), id.to_owned(), Mutex::new(None::<Instant>));
        move |so_far| {
            let now = Instant::now();
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| now - last < COUNT_INTERVAL) {
                return;
            }
            *last = Some(now);
            let bytes = Some((so_far.min(total), total));
            let _ = lines.try_send(Ok(PullProgress { id: id.clone(), status: status.into(), bytes }));
        }
    }
}
