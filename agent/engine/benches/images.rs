//! How fast an image of five layers comes in, against `tar` on the same blobs: `cargo bench -p skep-engine --bench images`.
//!
//! Needs root (owners) and Debian's `docker-registry`. Prints seconds, one round a line, interleaved, since a machine's
//! page cache and load change as it goes.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use rand::{RngCore, SeedableRng};
use serde_json::json;
use skep_engine::images::{Digest, Images, ImagesConfig};
use skep_proto::model::Timestamp;

const LAYERS: usize = 5;
const FILES: usize = 1_600;
/// Bytes of a file; half of them random, so that gzip halves them.
const FILE_BYTES: usize = 40_000;
const ROUNDS: usize = 5;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    // The client that pushes panics without.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(run());
}

async fn run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let layers: Vec<Vec<u8>> = (0..LAYERS).map(|i| layer(i as u64)).collect();
    let blobs: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(layer)).collect();
    let (plain, packed): (usize, usize) = (layers.iter().map(Vec::len).sum(), blobs.iter().map(Vec::len).sum());
    println!("{LAYERS} layers, {} files, {} MB, {} MB compressed", LAYERS * FILES, plain >> 20, packed >> 20);
    let (address, _registry) = registry(folder.path()).await;
    let reference = push(&address, &layers, &blobs).await;
    let paths: Vec<_> = blobs
        .iter()
        .enumerate()
        .map(|(i, blob)| {
            let path = folder.path().join(format!("{i}.tgz"));
            fs::write(&path, blob).expect("a file is written");
            path
        })
        .collect();
    drop((layers, blobs));
    println!("{:>8} {:>8} {:>8}", "pull", "load", "tar xzf");
    for round in 0..ROUNDS {
        let root = folder.path().join(format!("pull{round}"));
        let pull = timed(async {
            let images = open(&root).await;
            let mut lines = images.pull(&reference, None, None).await.expect("the registry answers");
            while let Some(line) = lines.next().await {
                line.expect("the pull succeeds");
            }
        })
        .await;
        clear(&root);
        let root = folder.path().join(format!("load{round}"));
        let archive = layout(&paths);
        let load = timed(async {
            open(&root).await.load(archive).await.expect("the archive is loaded");
        })
        .await;
        clear(&root);
        let root = folder.path().join(format!("tar{round}"));
        let tar = timed(async {
            let children: Vec<Child> = paths
                .iter()
                .enumerate()
                .map(|(i, path)| {
                    let target = root.join(i.to_string());
                    fs::create_dir_all(&target).expect("a folder is made");
                    Command::new("tar").arg("xzf").arg(path).arg("-C").arg(target).spawn().expect("tar starts")
                })
                .collect();
            children.into_iter().for_each(|mut child| assert!(child.wait().expect("tar ends").success()));
        })
        .await;
        clear(&root);
        println!("{:>8.2} {:>8.2} {:>8.2}", pull.as_secs_f64(), load.as_secs_f64(), tar.as_secs_f64());
    }
}

async fn open(root: &Path) -> Images {
    Images::open(ImagesConfig::new(root.into()), Arc::new(|| Timestamp(0))).await.expect("the store opens")
}

async fn timed(work: impl Future<Output = ()>) -> Duration {
    let start = Instant::now();
    work.await;
    start.elapsed()
}

/// Leaves no dirty pages to the next.
fn clear(root: &Path) {
    fs::remove_dir_all(root).expect("the folder is removed");
    rustix::fs::sync();
}

fn layer(seed: u64) -> Vec<u8> {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut archive = tar::Builder::new(Vec::new());
    let mut content = vec![b' '; FILE_BYTES];
    for i in 0..FILES {
        random.fill_bytes(&mut content[..FILE_BYTES / 2]);
        let mut header = tar::Header::new_gnu();
        header.set_size(FILE_BYTES as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        let path = format!("usr/share/layer{seed}/{:02}/{i}", i % 50);
        archive.append_data(&mut header, path, &content[..]).expect("an archive in memory");
    }
    archive.into_inner().expect("an archive in memory")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

fn documents(diff_ids: &[String], blobs: &[(String, usize)]) -> (Vec<u8>, Vec<u8>) {
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let layers: Vec<_> = blobs
        .iter()
        .map(|(digest, size)| {
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size})
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config).to_string(), "size": config.len()},
        "layers": layers});
    (config, manifest.to_string().into_bytes())
}

async fn registry(folder: &Path) -> (String, Running) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let address = format!("127.0.0.1:{port}");
    let path = folder.join("registry.yml");
    let data = folder.join("registry");
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
        data.display()
    );
    fs::write(&path, config).expect("a file is written");
    let child =
        Command::new("docker-registry").arg("serve").arg(&path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let running = Running(child.expect("needs Debian's package docker-registry"));
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(&address).is_err() {
        assert!(Instant::now() < deadline, "docker-registry does not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (address, running)
}

async fn push(address: &str, layers: &[Vec<u8>], blobs: &[Vec<u8>]) -> String {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let described: Vec<_> = blobs.iter().map(|blob| (Digest::of(blob).to_string(), blob.len())).collect();
    let (config, manifest) = documents(&diff_ids, &described);
    let client = Client::try_from(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let client = client.expect("a client");
    let name = format!("{address}/big:1");
    let reference: Reference = name.parse().expect("a reference");
    let auth = client.auth(&reference, &RegistryAuth::Anonymous, RegistryOperation::Push).await;
    auth.expect("an open registry");
    for blob in blobs.iter().chain([&config]) {
        let pushed = client.push_blob(&reference, blob.clone(), &Digest::of(blob).to_string()).await;
        pushed.expect("the registry takes a blob");
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json".parse().expect("a media type");
    client.push_manifest_raw(&reference, manifest, media_type).await.expect("the registry takes a manifest");
    name
}

/// An archive of `docker save` whose layers are compressed, as a stream that reads them as it goes.
fn layout(paths: &[std::path::PathBuf]) -> futures_util::stream::BoxStream<'static, std::io::Result<Bytes>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut diff_ids = Vec::new();
    let mut names = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        let blob = fs::read(path).expect("a file is read");
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&blob[..]), &mut plain).expect("gzip");
        diff_ids.push(Digest::of(&plain).to_string());
        names.push(format!("{i}.tgz"));
        append(&mut archive, &format!("{i}.tgz"), &blob);
    }
    let (config, _) = documents(&diff_ids, &[]);
    append(&mut archive, "config.json", &config);
    let listed = json!([{"Config": "config.json", "RepoTags": ["big:1"], "Layers": names}]);
    append(&mut archive, "manifest.json", listed.to_string().as_bytes());
    let bytes = Bytes::from(archive.into_inner().expect("an archive in memory"));
    let chunks = (0..bytes.len()).step_by(1 << 16).map(move |at| Ok(bytes.slice(at..bytes.len().min(at + (1 << 16)))));
    futures_util::stream::iter(chunks).boxed()
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    archive.append_data(&mut header, path, content).expect("an archive in memory");
}
