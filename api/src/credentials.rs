//! Credentials for registries as clients' files and `kubernetes.io/dockerconfigjson` have them: by registry, and perhaps by the
//! beginning of an image's path. Pure.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use serde_json::{Map, Value, json};
use skep_proto::model::container::RegistryAuth;

/// The registry of images that name none.
const HUB: &str = "docker.io";

/// Credentials by registry. Their `Debug` prints none of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials(BTreeMap<String, Value>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} registries)", self.0.len())
    }
}

impl Credentials {
    /// Reads the members of `auths`: `username` and `password`, both in `auth`, or an `identitytoken`.
    pub fn of(auths: &Map<String, Value>) -> Self {
        Self(auths.iter().map(|(key, entry)| (key.clone(), entry.clone())).collect())
    }

    /// Reads the value of an `X-Registry-Config` header (Engine API, `ImageBuild`): base64url of JSON. `None` for anything else.
    pub fn of_header(text: &str) -> Option<Self> {
        let json = BASE64_URL_SAFE.decode(text).or_else(|_| BASE64_STANDARD.decode(text)).ok()?;
        match serde_json::from_slice(&json) {
            Ok(Value::Object(auths)) => Some(Self::of(&auths)),
            _ => None,
        }
    }

    /// The value of such a header.
    pub fn header(&self) -> String {
        BASE64_URL_SAFE.encode(json!(self.0).to_string())
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds those for one image.
    pub fn insert(&mut self, image: &str, auth: &RegistryAuth) {
        let decoded = BASE64_URL_SAFE.decode(&auth.0).or_else(|_| BASE64_STANDARD.decode(&auth.0)).unwrap_or_default();
        if let Ok(Value::Object(entry)) = serde_json::from_slice(&decoded) {
            let (registry, path) = split(image);
            self.0.insert(format!("{registry}/{path}"), Value::Object(entry));
        }
    }

    /// Those for an image: of the keys that fit, the one that says most (kubelet, `pkg/credentialprovider`: a host, of which
    /// parts between dots may be patterns, then the beginning of the path).
    pub fn for_image(&self, image: &str) -> Option<RegistryAuth> {
        let (registry, path) = split(image);
        let fits = |key: &str| {
            let (host, below) = parts(key);
            let in_path = below.is_empty()
                || path.strip_prefix(below).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            (in_path && host_fits(&host, registry)).then_some((below.len(), host.len()))
        };
        let found = self.0.iter().filter_map(|(key, entry)| Some((fits(key)?, entry)));
        let (_, entry) = found.max_by_key(|(rank, _)| *rank)?;
        header_of(entry, registry)
    }
}

/// The value of `X-Registry-Auth` for an entry; `None` for an empty one.
fn header_of(entry: &Value, registry: &str) -> Option<RegistryAuth> {
    let text = |key: &str| entry[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let server = if registry == HUB { "https://index.docker.io/v1/" } else { registry };
    for token in ["identitytoken", "registrytoken"] {
        if let Some(value) = text(token) {
            return Some(encoded(&json!({token: value, "serveraddress": server})));
        }
    }
    let (user, password) = match (text("username"), text("auth")) {
        (Some(user), _) => (user, text("password").unwrap_or_default()),
        (None, Some(auth)) => {
            let plain = String::from_utf8(BASE64_STANDARD.decode(auth.trim()).ok()?).ok()?;
            let (user, password) = plain.split_once(':')?;
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        }
        (None, None) => return None,
    };
    Some(encoded(&json!({"username": user, "password": password, "serveraddress": server})))
}

fn encoded(value: &Value) -> RegistryAuth {
    RegistryAuth(BASE64_URL_SAFE.encode(value.to_string()))
}

/// The registry of an image and its path there, without tag and digest (distribution/reference: a first part with a dot or a
/// port, or `localhost`, is a registry).
pub fn split(image: &str) -> (&str, &str) {
    let name = image.split('@').next().unwrap_or_default();
    let (registry, path) = match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => (HUB, name),
    };
    let registry = if registry == "index.docker.io" { HUB } else { registry };
    // What comes after the last slash may have a tag.
    let end = path.rfind(':').filter(|colon| path.rfind('/').is_none_or(|slash| *colon > slash));
    let path = &path[..end.unwrap_or(path.len())];
    (registry, path)
}

/// Host and path of a key: `https://index.docker.io/v1/`, `registry.example:5000`, `*.example/team`.
fn parts(key: &str) -> (String, &str) {
    let bare = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let host = if ["index.docker.io", "registry-1.docker.io"].contains(&host) { HUB } else { host };
    // The version of the protocol is no path of images.
    let path = if ["v1", "v2"].contains(&path) { "" } else { path };
    (host.to_owned(), path)
}

/// Whether a host is the one meant; a `*` stands for any text between two dots.
fn host_fits(pattern: &str, host: &str) -> bool {
    let (wanted, is): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    let fits = |(wanted, is): (&&str, &&str)| match wanted.split_once('*') {
        Some((head, tail)) => {
            is.len() >= head.len() + tail.len() && is.starts_with(head) && is.ends_with(tail) && !tail.contains('*')
        }
        None => wanted == is,
    };
    wanted.len() == is.len() && wanted.iter().zip(&is).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(credentials: &Credentials, image: &str) -> Option<String> {
        let RegistryAuth(header) = credentials.for_image(image)?;
        let value: Value = serde_json::from_slice(&BASE64_URL_SAFE.decode(header).unwrap()).unwrap();
        Some(value["username"].as_str().or(value["identitytoken"].as_str()).unwrap().to_owned())
    }

    fn credentials() -> Credentials {
        let auths = json!({
            "https://index.docker.io/v1/": {"auth": BASE64_STANDARD.encode("hub:p:w")},
            "r.example:5000": {"username": "r", "password": "x"},
            "r.example:5000/team": {"username": "team", "password": "x"},
            "*.dkr.example.com": {"identitytoken": "token"},
            "empty.example": {},
        });
        Credentials::of(auths.as_object().unwrap())
    }

    #[test]
    fn each_image_gets_the_credentials_that_fit_it_best_and_no_others() {
        let credentials = credentials();
        let rows = [
            ("nginx", Some("hub")),
            ("docker.io/library/nginx:1@sha256:00", Some("hub")),
            ("r.example:5000/app:1", Some("r")),
            ("r.example:5000/team/app", Some("team")),
            ("r.example:5000/teams/app", Some("r")),
            ("a.dkr.example.com/x", Some("token")),
            ("a.b.dkr.example.com/x", None),
            ("other.example/nginx", None),
            ("empty.example/nginx", None),
        ];
        for (image, expected) in rows {
            assert_eq!(user(&credentials, image).as_deref(), expected, "{image}");
        }
        assert_eq!(format!("{credentials:?}"), "Credentials(5 registries)");
    }

    #[test]
    fn a_header_carries_them_for_the_images_they_are_for() {
        let mut sent = Credentials::default();
        for image in ["r.example:5000/team/app:2", "nginx:1"] {
            sent.insert(image, &credentials().for_image(image).unwrap());
        }
        let read = Credentials::of_header(&sent.header()).unwrap();
        assert_eq!(user(&read, "r.example:5000/team/app:2").as_deref(), Some("team"));
        assert_eq!(user(&read, "nginx").as_deref(), Some("hub"));
        assert_eq!(user(&read, "r.example:5000/other"), None);
        assert_eq!((Credentials::of_header("%"), Credentials::of_header("W10=")), (None, None));
    }

    #[test]
    fn images_are_split_at_their_registry() {
        assert_eq!(split("localhost/a/b:1"), ("localhost", "a/b"));
        assert_eq!(split("team/app"), ("docker.io", "team/app"));
        assert_eq!(split("r:5000/a@sha256:1"), ("r:5000", "a"));
    }
}
