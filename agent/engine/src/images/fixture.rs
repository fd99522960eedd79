//! Small images for tests, owned by whoever runs them, so that no test needs root.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use skep_proto::model::Timestamp;

use super::archive::Upload;
use super::digest::Digest;
use super::document::{DOCKER_MANIFEST, OCI_CONFIG, OCI_LAYER};
use super::{Clock, Images, ImagesConfig};

/// A store in a folder of its own, with a clock that the test moves.
pub struct World {
    pub images: Images,
    pub folder: tempfile::TempDir,
    pub now: Arc<AtomicU64>,
}

pub async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicU64::new(1_700_000_000_000));
    let images = Images::open(ImagesConfig::new(folder.path().into()), clock(&now)).await.unwrap();
    World { images, folder, now }
}

fn clock(now: &Arc<AtomicU64>) -> Clock {
    let now = now.clone();
    Arc::new(move || Timestamp(now.load(Ordering::SeqCst)))
}

impl World {
    /// Closes the store and opens it again, as a daemon's restart does.
    pub async fn reopen(self) -> Self {
        let Self { images, folder, now } = self;
        drop(images);
        let images = Images::open(ImagesConfig::new(folder.path().into()), clock(&now)).await.unwrap();
        Self { images, folder, now }
    }

    /// Files under a folder of the store.
    pub fn count(&self, folder: &str) -> usize {
        std::fs::read_dir(self.folder.path().join(folder)).unwrap().count()
    }
}

/// An image with its parts.
pub struct Sample {
    pub layers: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl Sample {
    pub fn new(command: &str, layers: &[&[(&str, &str)]]) -> Self {
        let layers: Vec<Vec<u8>> = layers.iter().map(|files| tar_of(files)).collect();
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": super::Platform::host().architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": {"Cmd": [command], "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))
        .unwrap();
        let described: Vec<_> = layers
            .iter()
            .map(|layer| json!({"mediaType": OCI_LAYER, "digest": Digest::of(layer), "size": layer.len()}))
            .collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": Digest::of(&config), "size": config.len()},
            "layers": described,
        }))
        .unwrap();
        Self { layers, config, manifest }
    }

    pub fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    /// As `docker save` before version 25 wrote it: a folder for each layer, what it says about itself at the end.
    pub fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let mut archive = Archive::new();
        let mut paths = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            archive.file(&format!("layer{i}/VERSION"), b"1.0");
            archive.file(&format!("layer{i}/layer.tar"), layer);
            archive.symlink(&format!("again{i}/layer.tar"), &format!("../layer{i}/layer.tar"));
            paths.push(format!("again{i}/layer.tar"));
        }
        archive.file("config.json", &self.config);
        let listed = json!([{"Config": "config.json", "RepoTags": tags, "Layers": paths}]);
        archive.file("manifest.json", listed.to_string().as_bytes());
        archive.finish()
    }

    /// An OCI image layout.
    pub fn oci_layout(&self, name: &str) -> Vec<u8> {
        let mut archive = Archive::new();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": DOCKER_MANIFEST, "digest": Digest::of(&self.manifest), "size": self.manifest.len(),
            "annotations": {"io.containerd.image.name": name},
        }]});
        archive.file("index.json", index.to_string().as_bytes());
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        for blob in self.layers.iter().chain([&self.config, &self.manifest]) {
            archive.file(&format!("blobs/sha256/{}", Digest::of(blob).hex()), blob);
        }
        archive.finish()
    }
}

/// A tar archive in the making.
pub struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(0o644);
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header.set_mtime(0);
        header
    }

    pub fn file(&mut self, path: &str, content: &[u8]) {
        let mut header = Self::header(tar::EntryType::Regular, content.len());
        self.0.append_data(&mut header, path, content).unwrap();
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        let mut header = Self::header(tar::EntryType::Symlink, 0);
        self.0.append_link(&mut header, path, target).unwrap();
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = Archive::new();
    for (path, content) in files {
        archive.file(path, content.as_bytes());
    }
    archive.finish()
}

/// An upload of `bytes` in pieces that cut through headers.
pub fn upload(bytes: Vec<u8>) -> Upload {
    let chunks: Vec<_> = bytes.chunks(1000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    futures_util::stream::iter(chunks).boxed()
}
