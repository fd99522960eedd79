//! `docker load`: archives of `docker save`, old and new, and OCI image layouts.
//!
//! The archive is read once, front to back, as it is uploaded: what it says about itself may stand at its end. Large
//! files go to the content store at once, small ones are kept until it is known what they are.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;

use serde::Deserialize;

use super::Images;
use super::archive::{Upload, archive_error, with_reader};
use super::content::MAX_DOCUMENT;
use super::digest::Digest;
use super::document::{Descriptor, Document, ImageDocument, Index, OCI_LAYER};
use super::error::ImageError;
use super::install::Arrived;
use super::lease::Lease;
use super::platform::{Platform, choose};
use super::reference::Reference;
use super::unpack::{ArchiveError, Decompressed, Kind, LimitedReader, TarStream, clean};

const CONTEXT: &str = "cannot load the archive";
/// Bytes of small files kept in memory; once they are used up, small files go to the content store too.
const MAX_SMALL: u64 = 64 << 20;
/// Links from name to name that are followed.
const MAX_HOPS: usize = 8;
/// Indexes inside indexes that are followed.
const MAX_NESTING: usize = 4;

/// A file of the archive.
#[derive(Debug, Clone)]
enum Stored {
    Small(Vec<u8>),
    Blob(Digest, u64),
    /// To another path of the archive.
    Link(String),
}

/// The files of an archive by path.
#[derive(Debug, Default)]
struct Files(HashMap<String, Stored>);

/// An image found in an archive.
#[derive(Debug)]
struct Found {
    arrived: Arrived,
    names: Vec<Reference>,
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl Images {
    /// Reads an archive of `docker save` or an OCI image layout, compressed or not. Gives a line per name or image that
    /// it brought: `Loaded image: NAME` or `Loaded image ID: sha256:…`.
    ///
    /// # Errors
    /// [`ImageError::Archive`], [`ImageError::Malformed`], [`ImageError::WrongDigest`]: what the archive brought before
    /// the fault stays.
    pub async fn load(&self, upload: Upload) -> Result<Vec<String>, ImageError> {
        let lease = Arc::new(self.0.pins.lease());
        let (images, reading) = (self.clone(), lease.clone());
        let found = with_reader(upload, move |reader| {
            let mut files = images.read_archive(reader, &reading)?;
            images.find_images(&mut files, &reading)
        })
        .await?;
        let mut lines = Vec::new();
        for Found { arrived, names } in found {
            let id = arrived.id;
            self.install(&lease, arrived, names.clone()).await?;
            if names.is_empty() {
                lines.push(format!("Loaded image ID: {id}"));
            }
            lines.extend(names.iter().map(|name| format!("Loaded image: {}", name.familiar())));
        }
        drop(lease);
        // Files that no image uses, such as notes of old archives, were stored too.
        self.sweep().await?;
        Ok(lines)
    }

    fn read_archive(&self, upload: impl Read, lease: &Lease) -> Result<Files, ImageError> {
        let fail = |e| archive_error(CONTEXT, e);
        let limits = self.0.limits;
        let content = LimitedReader::new(Decompressed::new(upload).map_err(fail)?, limits.bytes);
        let mut archive = TarStream::new(content);
        let mut files = Files::default();
        let (mut entries, mut small) = (0, 0);
        while let Some(entry) = archive.next_entry().map_err(fail)? {
            entries += 1;
            if entries > limits.entries {
                return Err(fail(ArchiveError::TooManyEntries { limit: limits.entries }));
            }
            let components = clean(&entry.path).map_err(fail)?;
            let Ok(path) = String::from_utf8(components.join(&b'/')) else { continue };
            let parent = &components[..components.len().saturating_sub(1)];
            let stored = match entry.kind {
                Kind::File if entry.size <= MAX_DOCUMENT && small + entry.size <= MAX_SMALL => {
                    let mut bytes = Vec::new();
                    archive.read_to_end(&mut bytes).map_err(|e| fail(e.into()))?;
                    small += entry.size;
                    Stored::Small(bytes)
                }
                Kind::File => {
                    let mut spool = self.0.content.spool()?;
                    copy(&mut archive, &mut spool)?;
                    let (digest, size) = spool.commit(lease)?;
                    Stored::Blob(digest, size)
                }
                Kind::Symlink => {
                    let target = [parent.join(&b'/').as_slice(), b"/", &entry.link].concat();
                    Stored::Link(String::from_utf8_lossy(&clean(&target).map_err(fail)?.join(&b'/')).into_owned())
                }
                Kind::HardLink => {
                    Stored::Link(String::from_utf8_lossy(&clean(&entry.link).map_err(fail)?.join(&b'/')).into_owned())
                }
                Kind::Directory | Kind::Sparse(_) | Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => continue,
            };
            small += path.len() as u64;
            if small > 2 * MAX_SMALL {
                return Err(fail(ArchiveError::TooManyEntries { limit: entries }));
            }
            files.0.insert(path, stored);
        }
        Ok(files)
    }

    fn find_images(&self, files: &mut Files, lease: &Lease) -> Result<Vec<Found>, ImageError> {
        if let Some(text) = self.read_file(files, "manifest.json")? {
            let listed: Vec<Listed> = serde_json::from_slice(&text)
                .map_err(|e| ImageError::Malformed(format!("malformed manifest.json in the archive: {e}")))?;
            return listed.into_iter().map(|image| self.listed_image(files, image, lease)).collect();
        }
        if let Some(text) = self.read_file(files, "index.json")? {
            let index: Index = serde_json::from_slice(&text)
                .map_err(|e| ImageError::Malformed(format!("malformed index.json in the archive: {e}")))?;
            return index.manifests.iter().map(|image| self.layout_image(files, image, lease)).collect();
        }
        Err(ImageError::Malformed(
            "invalid archive: it has neither manifest.json nor index.json, so it is not from `docker save` \
             (for a root file system use `docker import`)"
                .into(),
        ))
    }

    /// An image of `manifest.json`: its parts are files of any name.
    fn listed_image(&self, files: &mut Files, listed: Listed, lease: &Lease) -> Result<Found, ImageError> {
        let missing = |path: &str| ImageError::Malformed(format!("invalid archive: {path:?} is missing"));
        let document = self.read_file(files, &listed.config)?.ok_or_else(|| missing(&listed.config))?;
        let document = utf8(document)?;
        let diff_ids = ImageDocument::parse(document.as_bytes())?.layers;
        let paths = listed.layers.unwrap_or_default();
        if diff_ids.len() != paths.len() {
            return Err(ImageError::Malformed(format!(
                "invalid manifest, layers length mismatch: expected {}, got {}",
                diff_ids.len(),
                paths.len()
            )));
        }
        let mut layers = Vec::new();
        for path in &paths {
            let (digest, size) = self.store(files, path, lease)?.ok_or_else(|| missing(path))?;
            layers.push(Descriptor::new(OCI_LAYER, digest, size));
        }
        let blobs = layers.iter().map(|layer| layer.digest).collect();
        let (id, manifest) = self.write_manifest(lease, document.as_bytes(), layers)?;
        let names = listed.repo_tags.unwrap_or_default().iter().map(|name| tagged(name)).collect::<Result<_, _>>()?;
        Ok(Found { arrived: Arrived { id, manifest, index: None, blobs, document }, names })
    }

    /// An image of an OCI layout: its parts are named by their digests (OCI image-spec, image layout).
    fn layout_image(&self, files: &mut Files, image: &Descriptor, lease: &Lease) -> Result<Found, ImageError> {
        let name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
            .iter()
            .find_map(|key| image.annotations.get(*key))
            // A bare tag names no repository.
            .filter(|name| name.contains(['/', ':']) || tagged(name).is_err());
        let names = name.map(|name| tagged(name)).transpose()?.into_iter().collect();
        let (mut digest, mut index) = (image.digest, None);
        for _ in 0..MAX_NESTING {
            let text = self.document(files, digest, lease)?;
            let manifest = match Document::parse(text.as_bytes())? {
                Document::Manifest(manifest) => manifest,
                Document::Index(list) => {
                    let platforms = list.manifests.iter().map(|entry| (&entry.digest, entry.platform.as_ref()));
                    let chosen = choose(platforms, &Platform::host()).ok_or_else(|| {
                        ImageError::NoManifest(format!(
                            "the archive has no image for {} in index {digest}",
                            Platform::host()
                        ))
                    })?;
                    index.get_or_insert(digest);
                    digest = chosen;
                    continue;
                }
            };
            let document = self.document(files, manifest.config.digest, lease)?;
            let mut blobs = Vec::new();
            for layer in &manifest.layers {
                let path = layout_path(&layer.digest);
                match self.store(files, &path, lease)? {
                    Some((found, _)) if found == layer.digest => blobs.push(found),
                    Some((found, _)) => return Err(ImageError::WrongDigest { expected: layer.digest, found }),
                    None => return Err(ImageError::Malformed(format!("invalid archive: {path:?} is missing"))),
                }
            }
            let arrived = Arrived { id: manifest.config.digest, manifest: digest, index, blobs, document };
            return Ok(Found { arrived, names });
        }
        Err(ImageError::Malformed(format!("indexes are nested more than {MAX_NESTING} deep")))
    }

    /// A manifest or configuration of a layout, kept as a blob.
    fn document(&self, files: &mut Files, digest: Digest, lease: &Lease) -> Result<String, ImageError> {
        let path = layout_path(&digest);
        let text = self
            .read_file(files, &path)?
            .ok_or_else(|| ImageError::Malformed(format!("invalid archive: {path:?} is missing")))?;
        match self.0.content.put(&text, lease)? {
            found if found == digest => utf8(text),
            found => Err(ImageError::WrongDigest { expected: digest, found }),
        }
    }

    /// The content of a document of the archive.
    fn read_file(&self, files: &Files, path: &str) -> Result<Option<Vec<u8>>, ImageError> {
        match files.follow(path)? {
            Some((_, Stored::Small(bytes))) => Ok(Some(bytes.clone())),
            Some((_, Stored::Blob(digest, _))) => self.0.content.read(digest).map(Some),
            Some((_, Stored::Link(_))) | None => Ok(None),
        }
    }

    /// Makes a file of the archive a blob.
    fn store(&self, files: &mut Files, path: &str, lease: &Lease) -> Result<Option<(Digest, u64)>, ImageError> {
        match files.follow(path)? {
            Some((_, Stored::Blob(digest, size))) => Ok(Some((*digest, *size))),
            Some((place, Stored::Small(bytes))) => {
                let (digest, size) = (self.0.content.put(bytes, lease)?, bytes.len() as u64);
                let place = place.to_owned();
                files.0.insert(place, Stored::Blob(digest, size));
                Ok(Some((digest, size)))
            }
            Some((_, Stored::Link(_))) | None => Ok(None),
        }
    }
}

impl Files {
    /// The file that `path` leads to, and its own path.
    fn follow(&self, path: &str) -> Result<Option<(&str, &Stored)>, ImageError> {
        let components = clean(path.as_bytes()).map_err(|e| archive_error(CONTEXT, e))?;
        let mut path = String::from_utf8_lossy(&components.join(&b'/')).into_owned();
        for _ in 0..MAX_HOPS {
            match self.0.get_key_value(&path) {
                Some((_, Stored::Link(target))) => path.clone_from(target),
                Some((place, stored)) => return Ok(Some((place, stored))),
                None => return Ok(None),
            }
        }
        Err(ImageError::Malformed(format!("invalid archive: {path:?} is a link that leads nowhere")))
    }
}

fn layout_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn utf8(text: Vec<u8>) -> Result<String, ImageError> {
    String::from_utf8(text).map_err(|_| ImageError::Malformed("malformed JSON in the archive: not UTF-8".into()))
}

/// The name of an image in an archive, which may not carry a digest.
fn tagged(name: &str) -> Result<Reference, ImageError> {
    let reference: Reference = name.parse()?;
    let tag = reference.tag().unwrap_or("latest").to_owned();
    Ok(reference.with_tag(&tag))
}

/// Copies an archive's file; a fault of the archive is told from one of the disk.
pub(super) fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<u64, ImageError> {
    let mut buffer = vec![0; 128 * 1024];
    let mut copied = 0;
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(archive_error(CONTEXT, e.into())),
        };
        to.write_all(&buffer[..n])
            .map_err(|e| ImageError::Storage { context: "cannot store the archive".into(), source: e.into() })?;
        copied += n as u64;
    }
}
