//! Credentials for registries, in the file that the docker CLI uses too: `$DOCKER_CONFIG/config.json`, else
//! `~/.docker/config.json` (docker/cli `config/configfile`). Programs that keep credentials elsewhere are not asked.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use serde_json::{Value, json};

/// The key of Docker Hub in the file.
pub const HUB: &str = "https://index.docker.io/v1/";

/// The file.
#[derive(Debug)]
pub struct Credentials {
    path: PathBuf,
    content: Value,
}

impl Credentials {
    /// Reads the file; one that is missing is empty.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read() -> anyhow::Result<Self> {
        let dir = std::env::var_os("DOCKER_CONFIG").filter(|d| !d.is_empty()).map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
        let dir = dir.or_else(home).context("neither DOCKER_CONFIG nor HOME says where credentials are kept")?;
        Self::at(dir.join("config.json"))
    }

    fn at(path: PathBuf) -> anyhow::Result<Self> {
        let content = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} is no JSON", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => json!({}),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        ensure!(Value::is_object(&content), "{} holds no JSON object", path.display());
        Ok(Self { path, content })
    }

    /// User and password for a registry.
    pub fn get(&self, server: &str) -> Option<(String, String)> {
        let entry = &self.content["auths"][server];
        if let Some(encoded) = entry["auth"].as_str().filter(|e| !e.is_empty()) {
            let plain = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
            let (user, password) = plain.split_once(':')?;
            return Some((user.to_owned(), password.trim_end_matches('\0').to_owned()));
        }
        Some((entry["username"].as_str()?.to_owned(), entry["password"].as_str()?.to_owned()))
    }

    /// Keeps user and password for a registry.
    ///
    /// # Errors
    /// When the file names a program that keeps credentials, or cannot be written.
    pub fn put(&mut self, server: &str, user: &str, password: &str) -> anyhow::Result<()> {
        let helper = self.content["credHelpers"][server].as_str().or_else(|| self.content["credsStore"].as_str());
        if let Some(helper) = helper.filter(|h| !h.is_empty()) {
            anyhow::bail!(
                "{} leaves credentials to docker-credential-{helper}, which skep does not run: log in with the docker CLI, \
                 or set DOCKER_CONFIG to a directory of its own",
                self.path.display()
            );
        }
        let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
        if !self.content["auths"].is_object() {
            self.content["auths"] = json!({});
        }
        self.content["auths"][server] = json!({"auth": encoded});
        self.write()
    }

    /// Forgets a registry; whether it was known.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget(&mut self, server: &str) -> anyhow::Result<bool> {
        let known = self.content["auths"].as_object_mut().is_some_and(|all| all.remove(server).is_some());
        if known {
            self.write()?;
        }
        Ok(known)
    }

    /// Replaces the file as a whole: only its owner may read it.
    fn write(&self) -> anyhow::Result<()> {
        let dir = self.path.parent().context("the file has a directory")?;
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let fresh = self.path.with_extension(format!("json.{}", std::process::id()));
        let written = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&serde_json::to_vec_pretty(&self.content)?)?;
            file.sync_all()?;
            fs::rename(&fresh, &self.path)
        };
        written().with_context(|| format!("writing {}", self.path.display()))
    }
}

/// The value of `X-Registry-Auth` for an image, if there are credentials for its registry.
///
/// # Errors
/// When the file cannot be read.
pub fn header_for(image: &str) -> anyhow::Result<Option<String>> {
    let server = server_of(image);
    Ok(Credentials::read()?.get(&server).map(|(user, password)| {
        let value = json!({"username": user, "password": password, "serveraddress": server});
        BASE64_URL_SAFE.encode(value.to_string())
    }))
}

/// The registry of an image, as the file calls it (distribution/reference: a first part with a dot or a port, or
/// `localhost`, is a registry).
fn server_of(image: &str) -> String {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => match host {
            "docker.io" | "index.docker.io" => HUB.to_owned(),
            host => host.to_owned(),
        },
        _ => HUB.to_owned(),
    }
}

/// The name that the file uses for a registry that a person names.
pub fn key_of(server: &str) -> String {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    match bare.split('/').next().unwrap_or_default() {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn credentials_are_read_back_as_they_were_kept_and_only_their_owner_may_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/config.json");
        let mut file = Credentials::at(path.clone()).unwrap();
        file.put("r:5000", "u", "p:w").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut again = Credentials::at(path).unwrap();
        assert_eq!(again.get("r:5000"), Some(("u".into(), "p:w".into())));
        assert!(again.forget("r:5000").unwrap() && !again.forget("r:5000").unwrap());
    }

    #[test]
    fn credentials_that_a_program_keeps_are_not_written_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, r#"{"credsStore": "pass"}"#).unwrap();
        let error = Credentials::at(path).unwrap().put("r:5000", "u", "p").unwrap_err();
        assert!(error.to_string().contains("docker-credential-pass"));
    }

    #[test]
    fn the_registry_of_an_image_is_its_first_part_if_that_is_a_host() {
        assert_eq!(server_of("nginx"), HUB);
        assert_eq!(server_of("team/app:1"), HUB);
        assert_eq!(server_of("r.example:5000/app"), "r.example:5000");
        assert_eq!((key_of(""), key_of("https://r.example/v2/")), (HUB.into(), "r.example".into()));
    }
}
