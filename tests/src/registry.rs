//! A registry of the machine's own: Debian's `docker-registry`, with basic authentication, filled by the tests.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::eventually;

/// Whom the registry lets in.
pub const USER: &str = "skep";
/// The user's password.
pub const PASSWORD: &str = "secret";
/// The same, as Apache's `htpasswd -B` writes it.
const HTPASSWD: &str = "skep:$2b$04$07sgeKjO4IAGGIirAXAxO.l.gAXG/1zJA7GzCjfru3zKMRlMbd5li\n";
/// What nodes of a lab need, so that they speak to it without TLS: every lab's subnet lies in this one.
pub const LAB_SUBNETS: &str = "172.31.0.0/16";

/// A registry that ends when it is dropped. It listens on all of the host's addresses.
pub struct Registry {
    process: Child,
    port: u16,
    _dir: TempDir,
}

impl Registry {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// When the package `docker-registry` is missing or does not answer.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port = TcpListener::bind("0.0.0.0:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let (data, users) = (dir.path().join("data"), dir.path().join("htpasswd"));
        std::fs::write(&users, HTPASSWD).expect("a file");
        let config = json!({
            "version": 0.1,
            "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": data } },
            "http": { "addr": format!("0.0.0.0:{port}") },
            "auth": { "htpasswd": { "realm": "skep tests", "path": users } },
        });
        // JSON is YAML.
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config.to_string()).expect("a file");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the package docker-registry is installed");
        let registry = Self { process, port, _dir: dir };
        eventually("the registry answers", || registry.request("GET", "/v2/", "", &[]).map(drop));
        registry
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stores an image of one layer, the tar archive `layer`, as `NAME:TAG`.
    ///
    /// # Errors
    /// What the registry refuses.
    pub fn push(&self, name: &str, tag: &str, layer: &Path, command: &[&str]) -> anyhow::Result<()> {
        let layer = std::fs::read(layer).with_context(|| format!("reading {}", layer.display()))?;
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": { "Cmd": command },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let descriptor =
            |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "size": bytes.len(), "digest": digest(bytes) });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        self.push_blob(name, &layer)?;
        self.push_blob(name, &config)?;
        let kind = manifest["mediaType"].as_str().unwrap_or_default().to_owned();
        self.request("PUT", &format!("/v2/{name}/manifests/{tag}"), &kind, manifest.to_string().as_bytes())?;
        Ok(())
    }

    fn push_blob(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let head = self.request("POST", &format!("/v2/{name}/blobs/uploads/"), "", &[])?;
        let location = head.lines().find_map(|l| l.strip_prefix("Location: ")).context("no place to upload to")?;
        let path = &location[location.find("/v2/").context("a strange place to upload to")?..];
        let separator = if path.contains('?') { '&' } else { '?' };
        self.request("PUT", &format!("{path}{separator}digest={}", digest(bytes)), "application/octet-stream", bytes)?;
        Ok(())
    }

    /// One request; the answer's head.
    fn request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let login = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAuthorization: Basic {login}\r\n\
             Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        stream.write_all(body)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        ensure!(status.starts_with('2'), "{method} {path}: {answer}");
        Ok(answer.split("\r\n\r\n").next().unwrap_or_default().replace("\r\n", "\n"))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // One that ended by itself is what was wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// A layer with Debian's nginx, its libraries and a page that says `page`. `$NGINX` is the program, as `deploy/test` has
/// unpacked it from its package.
///
/// # Errors
/// When the program is missing, or one of its libraries.
pub fn nginx_layer(dir: &Path, page: &str) -> anyhow::Result<PathBuf> {
    let program = PathBuf::from(std::env::var_os("NGINX").context("NGINX names the program")?);
    let root = dir.join("root");
    for made in ["etc/nginx", "usr/sbin", "var/www", "var/log/nginx", "var/lib/nginx", "run", "tmp"] {
        std::fs::create_dir_all(root.join(made))?;
    }
    std::fs::copy(&program, root.join("usr/sbin/nginx"))?;
    let libraries = Command::new("ldd").arg(&program).output()?;
    for line in String::from_utf8_lossy(&libraries.stdout).lines() {
        if line.contains("not found") {
            bail!("this machine lacks a library of nginx: {line}");
        }
        // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the dynamic linker.
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        let target = root.join(&path[1..]);
        std::fs::create_dir_all(target.parent().context("a library lies in a directory")?)?;
        std::fs::copy(path, target)?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    std::fs::write(root.join("var/www/index.html"), page)?;
    let config = "user nobody nogroup;\nevents {}\nerror_log /dev/stderr;\nhttp { access_log /dev/stdout; \
                  server { listen 80; root /var/www; } }\n";
    std::fs::write(root.join("etc/nginx/nginx.conf"), config)?;
    let archive = dir.join("layer.tar");
    let made = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&root).arg(".").status()?;
    ensure!(made.success(), "tar fails");
    Ok(archive)
}

/// The image a service is pinned to, `NAME:TAG@sha256:…`.
///
/// # Errors
/// When the service's description has none.
pub fn image_of(inspected: &str) -> anyhow::Result<String> {
    let value: Value = serde_json::from_str(inspected)?;
    let image = value.pointer("/0/Spec/TaskTemplate/ContainerSpec/Image").and_then(Value::as_str);
    Ok(image.context("the service has no image")?.to_owned())
}
