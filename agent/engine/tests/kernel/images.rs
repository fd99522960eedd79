//! Images where the kernel has a say: owners, devices, capabilities, overlay mounts, and pulls from Debian's registry.
#![allow(clippy::unwrap_used, reason = "a test ends where its ground gives way")]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth as OciAuth;
use oci_client::{Client, Reference, RegistryOperation};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::json;
use skep_engine::images::{CollectPolicy, Digest, ImageError, Images, ImagesConfig, Import, PullPolicy};
use skep_proto::model::Timestamp;
use skep_proto::model::container::RegistryAuth;
use skep_proto::model::service::Protocol;

async fn open(config: ImagesConfig) -> Images {
    Images::open(config, Arc::new(|| Timestamp(1_700_000_000_000))).await.unwrap()
}

fn header(kind: tar::EntryType, size: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(7);
    header
}

fn layer(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    fill(&mut archive);
    archive.into_inner().unwrap()
}

fn file(archive: &mut tar::Builder<Vec<u8>>, path: &str, content: &str) {
    archive.append_data(&mut header(tar::EntryType::Regular, content.len(), 0o644), path, content.as_bytes()).unwrap();
}

fn upload(bytes: Vec<u8>) -> BoxStream<'static, std::io::Result<Bytes>> {
    futures_util::stream::iter([Ok(Bytes::from(bytes))]).boxed()
}

/// Configuration and manifest of an image of `layers`, which may be compressed in the registry.
fn documents(layers: &[Vec<u8>], blobs: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let architecture = skep_engine::images::Platform::host().architecture;
    let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["run"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = serde_json::to_vec(&config).unwrap();
    let described: Vec<_> = blobs
        .iter()
        .map(|blob| {
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::of(blob).to_string(), "size": blob.len()})
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config).to_string(), "size": config.len()},
        "layers": described});
    (config, serde_json::to_vec(&manifest).unwrap())
}

fn docker_archive(layers: &[Vec<u8>], tag: &str) -> Vec<u8> {
    let (config, _) = documents(layers, layers);
    layer(|archive| {
        let mut add = |path: &str, content: &[u8]| {
            let mut header = header(tar::EntryType::Regular, content.len(), 0o644);
            archive.append_data(&mut header, path, content).unwrap();
        };
        let paths: Vec<String> = (0..layers.len()).map(|i| format!("{i}.tar")).collect();
        paths.iter().zip(layers).for_each(|(path, layer)| add(path, layer));
        add("config.json", &config);
        add(
            "manifest.json",
            json!([{"Config": "config.json", "RepoTags": [tag], "Layers": paths}]).to_string().as_bytes(),
        );
    })
}

/// A mount that goes with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn whiteouts_and_opaque_directories_hide_lower_layers_under_overlayfs() {
    let root = tempfile::tempdir().unwrap();
    let images = open(ImagesConfig::new(root.path().join("store"))).await;
    let lower = layer(|a| {
        for path in ["gone", "kept", "dir/old", "replaced/old", "removed/x", "anew/old", "again/old", "bare/old"] {
            file(a, path, "lower");
        }
    });
    let upper = layer(|a| {
        for path in [".wh.gone", ".wh.removed", "replaced/.wh..wh..opq"] {
            file(a, path, "");
        }
        file(a, "replaced/new", "upper");
        file(a, "dir/new", "upper");
        // A name and its whiteout in one layer, in either order, and without an entry of the directory itself.
        file(a, ".wh.anew", "");
        a.append_data(&mut header(tar::EntryType::Directory, 0, 0o755), "anew/", std::io::empty()).unwrap();
        a.append_data(&mut header(tar::EntryType::Directory, 0, 0o755), "again/", std::io::empty()).unwrap();
        file(a, ".wh.again", "");
        file(a, ".wh.bare", "");
        file(a, "bare/new", "upper");
    });
    images.load(upload(docker_archive(&[lower, upper], "o:1"))).await.unwrap();
    let image = images.resolve("o:1", PullPolicy::Never, None).await.unwrap();

    let merged = root.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let lowers: Vec<String> = image.layers.iter().rev().map(|path| path.display().to_string()).collect();
    let data = std::ffi::CString::new(format!("lowerdir={}", lowers.join(":"))).unwrap();
    rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), data.as_c_str()).unwrap();
    let _mounted = Mounted(merged.clone());
    let names = |path: &str| {
        let mut names: Vec<String> = fs::read_dir(merged.join(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["again", "anew", "bare", "dir", "kept", "replaced"]);
    assert_eq!((names("anew").len(), names("again").len(), names("bare")), (0, 0, vec!["new".to_owned()]));
    assert_eq!((names("dir"), names("replaced")), (vec!["new".into(), "old".into()], vec!["new".to_owned()]));
}

#[tokio::test]
#[ignore = "needs root"]
async fn owners_setuid_bits_devices_and_capabilities_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let images = open(ImagesConfig::new(root.path().into())).await;
    // cap_net_raw+ep, version 2 (linux/capability.h, `vfs_cap_data`).
    let capability = [1u8, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let rootfs = layer(|archive| {
        let mut su = header(tar::EntryType::Regular, 2, 0o6755);
        su.set_uid(1000);
        su.set_gid(50);
        archive.append_data(&mut su, "su", &b"su"[..]).unwrap();
        archive.append_pax_extensions([("SCHILY.xattr.security.capability", &capability[..])]).unwrap();
        let mut ping = header(tar::EntryType::Regular, 0, 0o755);
        ping.set_uid(1000);
        archive.append_data(&mut ping, "ping", std::io::empty()).unwrap();
        let mut null = header(tar::EntryType::Char, 0, 0o666);
        null.set_device_major(1).unwrap();
        null.set_device_minor(3).unwrap();
        archive.append_data(&mut null, "null", std::io::empty()).unwrap();
        archive.append_data(&mut header(tar::EntryType::Fifo, 0, 0o600), "fifo", std::io::empty()).unwrap();
        let mut directory = header(tar::EntryType::Directory, 0, 0o1777);
        archive.append_data(&mut directory, "tmp/", std::io::empty()).unwrap();
        file(archive, "tmp/later", "the directory's time stays");
    });
    let import = Import { reference: Some("r:1".into()), ..Import::default() };
    images.import(upload(rootfs), import).await.unwrap();
    let image = images.resolve("r:1", PullPolicy::Never, None).await.unwrap();
    let stat = |path: &str| fs::symlink_metadata(image.layers[0].join(path)).unwrap();
    let su = stat("su");
    assert_eq!((su.uid(), su.gid(), su.permissions().mode() & 0o7777), (1000, 50, 0o6755));
    let null = stat("null");
    assert!(null.file_type().is_char_device() && stat("fifo").file_type().is_fifo());
    assert_eq!((null.rdev(), null.permissions().mode() & 0o777), (rustix::fs::makedev(1, 3), 0o666));
    assert_eq!((stat("tmp").permissions().mode() & 0o7777, stat("tmp").mtime()), (0o1777, 7));
    let mut found = [0u8; 64];
    let n = rustix::fs::getxattr(image.layers[0].join("ping"), "security.capability", &mut found[..]).unwrap();
    assert_eq!(&found[..n], capability);
    let closed = fs::metadata(root.path().join("layers")).unwrap().permissions().mode();
    assert_eq!(closed & 0o777, 0o700, "others do not reach setuid programs");
}

#[tokio::test]
#[ignore = "needs root"]
async fn the_built_in_image_is_made_once_for_each_program() {
    let root = tempfile::tempdir().unwrap();
    let program = root.path().join("shim");
    fs::write(&program, "program one").unwrap();
    let config = || ImagesConfig { whoami: Some(program.clone()), ..ImagesConfig::new(root.path().join("store")) };
    let images = open(config()).await;
    let pinned = format!("skep/whoami:latest@{}", Digest::of(b"of another build"));
    let image = images.resolve(&pinned, PullPolicy::Always, None).await.unwrap();
    assert_eq!(image.config.entrypoint, ["/whoami", "whoami"]);
    assert_eq!(image.config.exposed, [(Protocol::Tcp, 80)]);
    let inside = image.layers[0].join("whoami");
    assert_eq!(fs::read_to_string(&inside).unwrap(), "program one");
    assert_eq!(fs::metadata(&inside).unwrap().permissions().mode() & 0o777, 0o755);
    let made = fs::metadata(&inside).unwrap().ino();
    let id = image.id.clone();
    drop(image);
    images.collect(CollectPolicy::Unused).await.unwrap();
    drop(images);

    let images = open(config()).await;
    let image = images.resolve("skep/whoami", PullPolicy::IfNotPresent, None).await.unwrap();
    assert_eq!((fs::metadata(image.layers[0].join("whoami")).unwrap().ino(), &image.id), (made, &id));
    assert!(matches!(images.distribution("skep/whoami", None).await, Err(ImageError::NoManifest(_))));
    assert!(images.resolve("skep/nosuch", PullPolicy::Always, None).await.is_err());
    drop((image, images));

    fs::write(&program, "program two").unwrap();
    let images = open(config()).await;
    let image = images.resolve("skep/whoami", PullPolicy::Never, None).await.unwrap();
    assert_eq!(fs::read_to_string(image.layers[0].join("whoami")).unwrap(), "program two");
    images.collect(CollectPolicy::Dangling).await.unwrap();
    assert_eq!(images.list().len(), 1);
}

/// Debian's `docker-registry`, on a port of its own, killed with the test.
struct Registry {
    address: String,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Registry {
    async fn start(password: bool) -> Self {
        // The client that pushes panics without.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        // Whoever binds a port to find a free one loses it again; another attempt is made when somebody took it.
        for _ in 0..5 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            let auth = if password {
                // `user`, `secret`.
                let line = "user:$2b$05$jfI1ZYDpQKuYt5xU1V57xeZIyv8AuJvWQTeZEEch/UWVG4gGw5Ibq\n";
                fs::write(folder.path().join("htpasswd"), line).unwrap();
                format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", folder.path().join("htpasswd").display())
            } else {
                String::new()
            };
            let config = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n{auth}http: {{addr: \
                 '{address}'}}\n",
                folder.path().join("data").display()
            );
            let path = folder.path().join("registry.yml");
            fs::write(&path, config).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&path)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("this test needs Debian's package docker-registry");
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                if std::net::TcpStream::connect(&address).is_ok() {
                    return Self { address, child, _folder: folder };
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not start");
    }

    async fn push(&self, name: &str, layers: &[Vec<u8>], auth: OciAuth) -> Vec<u8> {
        let blobs: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(layer)).collect();
        let (config, manifest) = documents(layers, &blobs);
        let client =
            Client::try_from(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() }).unwrap();
        let reference: Reference = format!("{}/{name}", self.address).parse().unwrap();
        client.auth(&reference, &auth, RegistryOperation::Push).await.unwrap();
        for blob in blobs.iter().chain([&config]) {
            client.push_blob(&reference, blob.clone(), &Digest::of(blob).to_string()).await.unwrap();
        }
        let media_type = "application/vnd.oci.image.manifest.v1+json".parse().unwrap();
        client.push_manifest_raw(&reference, manifest.clone(), media_type).await.unwrap();
        manifest
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

async fn drain(images: &Images, reference: &str, auth: Option<&RegistryAuth>) -> Result<Vec<String>, ImageError> {
    let mut stream = images.pull(reference, None, auth).await?;
    let mut lines = Vec::new();
    while let Some(line) = stream.next().await {
        lines.push(line?.status);
    }
    Ok(lines)
}

#[tokio::test]
#[ignore = "needs root"]
async fn images_are_pulled_from_debians_registry() {
    let registry = Registry::start(false).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(ImagesConfig::new(root.path().into())).await;
    let layers: Vec<Vec<u8>> =
        (0..5).map(|i| layer(|a| file(a, &format!("file{i}"), &"x".repeat(300_000 + i)))).collect();
    let manifest = registry.push("team/app:1", &layers, OciAuth::Anonymous).await;
    let reference = format!("{}/team/app:1", registry.address);
    let lines = drain(&images, &reference, None).await.unwrap();
    assert_eq!(lines.last().unwrap(), &format!("Status: Downloaded newer image for {reference}"));
    assert!(lines.contains(&format!("Digest: {}", Digest::of(&manifest))));
    let lines = drain(&images, &reference, None).await.unwrap();
    assert_eq!(lines.last().unwrap(), &format!("Status: Image is up to date for {reference}"));

    let image = images.resolve(&reference, PullPolicy::Never, None).await.unwrap();
    for (i, path) in image.layers.iter().enumerate() {
        assert_eq!(fs::metadata(path.join(format!("file{i}"))).unwrap().len(), 300_000 + i as u64);
    }
    let by_digest = format!("{}/team/app@{}", registry.address, Digest::of(&manifest));
    assert_eq!(images.resolve(&by_digest, PullPolicy::IfNotPresent, None).await.unwrap().id, image.id);
    let found = images.distribution(&reference, None).await.unwrap();
    assert_eq!((found.digest, found.platforms.len()), (Digest::of(&manifest).to_string(), 1));

    for name in ["team/app:2", "nosuch:1"] {
        let reference = format!("{}/{name}", registry.address);
        let error = drain(&images, &reference, None).await.unwrap_err().to_string();
        assert_eq!(error, format!("manifest for {reference} not found: manifest unknown: manifest unknown"));
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_registry_with_passwords_gives_to_those_who_have_one() {
    let registry = Registry::start(true).await;
    let root = tempfile::tempdir().unwrap();
    let images = open(ImagesConfig::new(root.path().into())).await;
    let layers = [layer(|a| file(a, "f", "x"))];
    registry.push("app:1", &layers, OciAuth::Basic("user".into(), "secret".into())).await;
    let auth = |json: &str| RegistryAuth(base64::engine::general_purpose::URL_SAFE.encode(json));
    let reference = format!("{}/app:1", registry.address);
    let denied = drain(&images, &reference, None).await.unwrap_err();
    assert!(matches!(denied, ImageError::AccessDenied(_)), "{denied}");
    let wrong = auth(r#"{"username":"user","password":"guess"}"#);
    let refused = drain(&images, &reference, Some(&wrong)).await.unwrap_err();
    assert!(matches!(refused, ImageError::Unauthorized(_)), "{refused}");
    let right = auth(r#"{"username":"user","password":"secret"}"#);
    drain(&images, &reference, Some(&right)).await.unwrap();
    assert_eq!(images.login(&registry.address, "user", "secret").await.unwrap(), "Login Succeeded");
    assert!(matches!(images.login(&registry.address, "user", "no").await, Err(ImageError::Unauthorized(_))));
}

#[tokio::test]
#[ignore = "needs root"]
async fn skopeo_archives_are_loaded() {
    if !Path::new("/usr/bin/skopeo").exists() {
        panic!("this test needs Debian's package skopeo");
    }
    let registry = Registry::start(false).await;
    let root = tempfile::tempdir().unwrap();
    let layers = [layer(|a| file(a, "f", "one")), layer(|a| file(a, "g", "two"))];
    registry.push("app:1", &layers, OciAuth::Anonymous).await;
    for (form, name) in [("docker-archive", "Loaded image: app:9"), ("oci-archive", "Loaded image: app:9")] {
        let archive = root.path().join(format!("{form}.tar"));
        let status = Command::new("skopeo")
            .args(["copy", "--quiet", "--src-tls-verify=false"])
            .arg(format!("docker://{}/app:1", registry.address))
            .arg(format!("{form}:{}:app:9", archive.display()))
            .status()
            .unwrap();
        assert!(status.success());
        let images = open(ImagesConfig::new(root.path().join(form))).await;
        assert_eq!(images.load(upload(fs::read(&archive).unwrap())).await.unwrap(), [name]);
        let image = images.resolve("app:9", PullPolicy::Never, None).await.unwrap();
        assert_eq!(fs::read_to_string(image.layers[1].join("g")).unwrap(), "two");
    }
}
