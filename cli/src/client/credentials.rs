//! Credentials for registries, in the file that the docker CLI uses too: `$DOCKER_CONFIG/config.json`, else
//! `~/.docker/config.json` (docker/cli `config/configfile`). Where the file names programs that keep credentials (`credsStore`,
//! `credHelpers`), those are asked (docker/docker-credential-helpers, "Development").

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
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

    /// The program that keeps the credentials of a registry, if one does.
    fn helper(&self, server: &str) -> Option<&str> {
        let own = self.content["credHelpers"][server].as_str().or_else(|| self.content["credsStore"].as_str());
        own.filter(|helper| !helper.is_empty())
    }

    /// User and password for a registry. The user `<token>` has an identity token for a password.
    ///
    /// # Errors
    /// When a program keeps them that does not answer.
    pub fn get(&self, server: &str) -> anyhow::Result<Option<(String, String)>> {
        let Some(helper) = self.helper(server) else { return Ok(self.of_file(server)) };
        match ask(helper, "get", server)? {
            Ok(answer) => {
                let answer: Value = serde_json::from_slice(&answer)
                    .with_context(|| format!("docker-credential-{helper} does not answer in JSON"))?;
                let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
                Ok(Some((text("Username"), text("Secret"))).filter(|(user, _)| !user.is_empty()))
            }
            // The word for what it does not have.
            Err(error) if error.contains("not found") => Ok(None),
            Err(error) => bail!("docker-credential-{helper} does not give the credentials of {server}: {error}"),
        }
    }

    fn of_file(&self, server: &str) -> Option<(String, String)> {
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
    /// When the program that keeps credentials does not take them, or the file cannot be written.
    pub fn put(&mut self, server: &str, user: &str, password: &str) -> anyhow::Result<()> {
        if let Some(helper) = self.helper(server) {
            let given = json!({"ServerURL": server, "Username": user, "Secret": password});
            if let Err(error) = ask(helper, "store", &given.to_string())? {
                bail!(
                    "docker-credential-{helper}, to which {} leaves credentials, does not take them: {error}",
                    self.path.display()
                );
            }
            // Clients look there to know where they are logged in.
            self.note(server, json!({}));
            return self.write();
        }
        let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
        self.note(server, json!({"auth": encoded}));
        self.write()
    }

    fn note(&mut self, server: &str, entry: Value) {
        if !self.content["auths"].is_object() {
            self.content["auths"] = json!({});
        }
        self.content["auths"][server] = entry;
    }

    /// Forgets a registry; whether it was known.
    ///
    /// # Errors
    /// When the program that keeps credentials refuses, or the file cannot be written.
    pub fn forget(&mut self, server: &str) -> anyhow::Result<bool> {
        if let Some(helper) = self.helper(server)
            && let Err(error) = ask(helper, "erase", server)?
            && !error.contains("not found")
        {
            bail!("docker-credential-{helper} does not forget {server}: {error}");
        }
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

/// Runs `docker-credential-HELPER VERB` with a line as its input; what it prints, as an error when it ends with one.
fn ask(helper: &str, verb: &str, input: &str) -> anyhow::Result<Result<Vec<u8>, String>> {
    let program = format!("docker-credential-{helper}");
    // A name, not a path: the file decides about a program on the PATH alone.
    ensure!(!helper.contains('/'), "{program} is no name of a program that keeps credentials");
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("running {program}, which the file of credentials names"))?;
    let mut stdin = child.stdin.take().with_context(|| format!("{program} has no input"))?;
    match stdin.write_all(input.as_bytes()) {
        // It may have ended without reading: its answer says why.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(error).with_context(|| format!("asking {program}"));
        }
        _ => drop(stdin),
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for {program}"))?;
    if output.status.success() {
        return Ok(Ok(output.stdout));
    }
    Ok(Err(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

/// The value of `X-Registry-Auth` for an image, if there are credentials for its registry.
///
/// # Errors
/// When the file cannot be read, or a program that it names gives none.
pub fn header_for(image: &str) -> anyhow::Result<Option<String>> {
    let server = server_of(image);
    Ok(Credentials::read()?.get(&server)?.map(|(user, secret)| {
        let value = if user == "<token>" {
            json!({"identitytoken": secret, "serveraddress": server})
        } else {
            json!({"username": user, "password": secret, "serveraddress": server})
        };
        BASE64_URL_SAFE.encode(value.to_string())
    }))
}

/// The registry of an image, as the file calls it (distribution/reference: a first part with a dot or a port, or
/// `localhost`, is a registry).
fn server_of(image: &str) -> String {
    match skep_api::credentials::split(image).0 {
        "docker.io" => HUB.to_owned(),
        host => host.to_owned(),
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
        assert_eq!(again.get("r:5000").unwrap(), Some(("u".into(), "p:w".into())));
        assert!(again.forget("r:5000").unwrap() && !again.forget("r:5000").unwrap());
    }

    #[test]
    fn credentials_that_a_program_keeps_are_asked_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let none = "skep-test-that-is-not-there";
        let content = json!({"credsStore": none, "auths": {"r:5000": {"auth": BASE64_STANDARD.encode("u:p")}}});
        fs::write(&path, content.to_string()).unwrap();
        let mut file = Credentials::at(path.clone()).unwrap();
        for error in [file.get("r:5000").unwrap_err(), file.put("r:5000", "u", "p").unwrap_err()] {
            assert!(format!("{error:#}").contains(&format!("running docker-credential-{none}")), "{error:#}");
        }
        fs::write(&path, json!({"credHelpers": {"r:5000": "../x"}}).to_string()).unwrap();
        let error = Credentials::at(path).unwrap().get("r:5000").unwrap_err();
        assert!(error.to_string().contains("no name of a program"), "{error:#}");
    }

    #[test]
    fn the_registry_of_an_image_is_its_first_part_if_that_is_a_host() {
        assert_eq!(server_of("nginx"), HUB);
        assert_eq!(server_of("team/app:1"), HUB);
        assert_eq!(server_of("r.example:5000/app"), "r.example:5000");
        assert_eq!((key_of(""), key_of("https://r.example/v2/")), (HUB.into(), "r.example".into()));
    }
}
