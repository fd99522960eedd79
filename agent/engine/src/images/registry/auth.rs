//! Credentials, and the token flow where `oci-client` has none: identity tokens and login
//! (distribution, "Token Authentication Specification" and "OAuth2 Token Authentication").

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use oci_client::secrets::RegistryAuth as OciAuth;
use reqwest::StatusCode;
use reqwest::header::WWW_AUTHENTICATE;
use serde::Deserialize;
use skep_proto::model::container::RegistryAuth;

use super::super::error::ImageError;
use super::super::reference::{DEFAULT_REGISTRY, Reference};
use super::{CONNECT_TIMEOUT, READ_TIMEOUT, Registries, host_of};

/// Clients pad, or do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
const CLIENT_ID: &str = "skep";
/// Largest answer of a token server.
const MAX_ANSWER: usize = 1 << 20;

/// What a client sent in `X-Registry-Auth` (Engine API, "Authentication").
pub enum Credentials {
    /// None.
    Anonymous,
    /// Name and password.
    Basic(String, String),
    /// A refresh token, to be exchanged for an access token.
    Identity(String),
    /// An access token.
    Bearer(String),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthConfig {
    username: Option<String>,
    password: Option<String>,
    /// `base64(username:password)`, as in the client's configuration file.
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// How a registry wants to be asked.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Nothing,
    Basic,
    Bearer { realm: String, service: String },
}

impl Credentials {
    /// Reads the value of an `X-Registry-Auth` header: base64url of JSON.
    pub fn parse(auth: Option<&RegistryAuth>) -> Result<Self, ImageError> {
        let invalid =
            || ImageError::Invalid("invalid X-Registry-Auth header: it must be base64url-encoded JSON".into());
        let Some(RegistryAuth(text)) = auth.filter(|auth| !auth.0.trim().is_empty()) else {
            return Ok(Self::Anonymous);
        };
        // Some clients use the other alphabet.
        let text = text.trim().replace('+', "-").replace('/', "_");
        let json = BASE64.decode(text).map_err(|_| invalid())?;
        let config: AuthConfig = serde_json::from_slice(&json).map_err(|_| invalid())?;
        let given = |field: Option<String>| field.filter(|value| !value.is_empty());
        if let Some(token) = given(config.identitytoken) {
            return Ok(Self::Identity(token));
        }
        if let Some(token) = given(config.registrytoken) {
            return Ok(Self::Bearer(token));
        }
        if let Some(username) = given(config.username) {
            return Ok(Self::Basic(username, config.password.unwrap_or_default()));
        }
        let Some(pair) = given(config.auth) else { return Ok(Self::Anonymous) };
        let pair = BASE64.decode(pair.replace('+', "-").replace('/', "_")).map_err(|_| invalid())?;
        let pair = String::from_utf8(pair).map_err(|_| invalid())?;
        let (username, password) = pair.split_once(':').ok_or_else(invalid)?;
        Ok(Self::Basic(username.to_owned(), password.to_owned()))
    }
}

impl Registries {
    /// Credentials as `oci-client` takes them: an identity token becomes an access token here.
    pub(super) async fn exchange(
        &self,
        reference: &Reference,
        credentials: Credentials,
    ) -> Result<OciAuth, ImageError> {
        let token = match credentials {
            Credentials::Anonymous => return Ok(OciAuth::Anonymous),
            Credentials::Basic(username, password) => return Ok(OciAuth::Basic(username, password)),
            Credentials::Bearer(token) => return Ok(OciAuth::Bearer(token)),
            Credentials::Identity(token) => token,
        };
        let http = http()?;
        match self.challenge(&http, reference.registry()).await? {
            Challenge::Nothing => Ok(OciAuth::Anonymous),
            Challenge::Basic => Err(ImageError::Unauthorized(format!(
                "unauthorized: registry {} does not take identity tokens, log in with a password",
                reference.registry()
            ))),
            Challenge::Bearer { realm, service } => {
                let scope = format!("repository:{}:pull", reference.repository());
                let form = [
                    ("grant_type", "refresh_token"),
                    ("service", &service),
                    ("client_id", CLIENT_ID),
                    ("scope", &scope),
                    ("refresh_token", &token),
                ];
                let body = serde_urlencode(&form);
                let request = http.post(&realm).header("Content-Type", "application/x-www-form-urlencoded").body(body);
                Ok(OciAuth::Bearer(token_of(request, &realm).await?))
            }
        }
    }

    /// Checks a name and password; gives Docker's status line.
    pub(in super::super) async fn login(
        &self,
        server: &str,
        username: &str,
        password: &str,
    ) -> Result<String, ImageError> {
        let registry = registry_of(server);
        let http = http()?;
        match self.challenge(&http, registry).await? {
            Challenge::Nothing => {}
            Challenge::Basic => {
                let url = self.base_url(registry);
                let request = http.get(&url).basic_auth(username, Some(password));
                let status = request.send().await.map_err(|e| unreachable(&url, &e))?.status();
                if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
                    return Err(ImageError::Unauthorized(format!(
                        "login attempt to {url} failed with status: {status}"
                    )));
                }
                if !status.is_success() {
                    return Err(ImageError::Registry(format!("login attempt to {url} failed with status: {status}")));
                }
            }
            Challenge::Bearer { realm, service } => {
                let query =
                    [("account", username), ("client_id", CLIENT_ID), ("offline_token", "true"), ("service", &service)];
                let separator = if realm.contains('?') { '&' } else { '?' };
                let url = format!("{realm}{separator}{}", serde_urlencode(&query));
                token_of(http.get(url).basic_auth(username, Some(password)), &realm).await?;
            }
        }
        Ok("Login Succeeded".into())
    }

    fn base_url(&self, registry: &str) -> String {
        let scheme = if self.is_plain(registry) { "http" } else { "https" };
        format!("{scheme}://{}/v2/", host_of(registry))
    }

    async fn challenge(&self, http: &reqwest::Client, registry: &str) -> Result<Challenge, ImageError> {
        let url = self.base_url(registry);
        let answer = http.get(&url).send().await.map_err(|e| unreachable(&url, &e))?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return match answer.status() {
                status if status.is_success() => Ok(Challenge::Nothing),
                status => Err(ImageError::Registry(format!("registry {registry} answers {url} with {status}"))),
            };
        }
        let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        challenges.filter_map(parse_challenge).next().ok_or_else(|| {
            ImageError::Registry(format!("registry {registry} asks for a login of a kind that is not supported"))
        })
    }
}

/// `Basic realm="…"` or `Bearer realm="…",service="…"` (RFC 9110, section 11.6.1).
fn parse_challenge(header: &str) -> Option<Challenge> {
    let (scheme, parameters) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut rest) = (None, String::new(), parameters);
    while let Some((key, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match key.trim().trim_start_matches(',').trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => value.clone_into(&mut service),
            _ => {}
        }
        rest = next.trim_start().trim_start_matches(',');
    }
    Some(Challenge::Bearer { realm: realm?, service })
}

async fn token_of(request: reqwest::RequestBuilder, realm: &str) -> Result<String, ImageError> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let mut answer = request.send().await.map_err(|e| unreachable(realm, &e))?;
    let status = answer.status();
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| unreachable(realm, &e))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(ImageError::Registry(format!("token server {realm} answers more than {MAX_ANSWER} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST) {
        return Err(ImageError::Unauthorized("unauthorized: incorrect username or password".into()));
    }
    if !status.is_success() {
        return Err(ImageError::Registry(format!("token server {realm} answers with {status}")));
    }
    serde_json::from_slice::<Answer>(&body)
        .ok()
        .and_then(|answer| answer.token.or(answer.access_token))
        .ok_or_else(|| ImageError::Registry(format!("token server {realm} gives no token")))
}

/// `application/x-www-form-urlencoded`.
fn serde_urlencode(pairs: &[(&str, &str)]) -> String {
    let escape = |text: &str| {
        text.bytes().fold(String::new(), |mut out, b| {
            match b {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(b)),
                _ => out.push_str(&format!("%{b:02X}")),
            }
            out
        })
    };
    pairs.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value))).collect::<Vec<_>>().join("&")
}

fn http() -> Result<reqwest::Client, ImageError> {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(concat!("skep/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| ImageError::Registry(format!("cannot speak to registries: {e}")))
}

fn unreachable(url: &str, error: &reqwest::Error) -> ImageError {
    ImageError::Registry(format!("Get {url:?}: {}", super::fault::root_cause(error)))
}

/// The registry that a client's server address means: `https://index.docker.io/v1/`, `127.0.0.1:5000`.
fn registry_of(server: &str) -> &str {
    let server = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    let host = server.split('/').next().unwrap_or_default();
    if matches!(host, "" | "index.docker.io") { DEFAULT_REGISTRY } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<String, String> {
        let header = base64::engine::general_purpose::URL_SAFE.encode(json);
        match Credentials::parse(Some(&RegistryAuth(header))) {
            Ok(Credentials::Anonymous) => Ok("anonymous".into()),
            Ok(Credentials::Basic(name, password)) => Ok(format!("basic {name} {password}")),
            Ok(Credentials::Identity(token)) => Ok(format!("identity {token}")),
            Ok(Credentials::Bearer(token)) => Ok(format!("bearer {token}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn credentials_are_read_in_every_form_that_clients_send() {
        assert_eq!(parse("{}"), Ok("anonymous".into()));
        assert_eq!(parse(r#"{"username":"u","password":"p:?~"}"#), Ok("basic u p:?~".into()));
        assert_eq!(parse(r#"{"auth":"dTpwOng="}"#), Ok("basic u p:x".into()));
        assert_eq!(parse(r#"{"username":"u","identitytoken":"t"}"#), Ok("identity t".into()));
        assert_eq!(parse(r#"{"registrytoken":"t"}"#), Ok("bearer t".into()));
        assert!(parse("[]").is_ok_and(|a| a == "anonymous") || parse("[]").is_err());
        assert!(parse("nonsense").is_err());
    }

    #[test]
    fn challenges_are_read_with_and_without_quotes() {
        assert_eq!(parse_challenge("Basic realm=\"r\""), Some(Challenge::Basic));
        assert_eq!(
            parse_challenge("Bearer realm=\"https://a/t?x=1\",service=\"reg, one\",scope=\"s\""),
            Some(Challenge::Bearer { realm: "https://a/t?x=1".into(), service: "reg, one".into() })
        );
        assert_eq!(
            parse_challenge("bearer service=s, realm=http://a/t"),
            Some(Challenge::Bearer { realm: "http://a/t".into(), service: "s".into() })
        );
        assert_eq!(parse_challenge("Negotiate"), None);
        assert_eq!(parse_challenge("Bearer service=\"s\""), None);
    }

    #[test]
    fn the_server_of_a_login_names_a_registry() {
        assert_eq!(registry_of("https://index.docker.io/v1/"), DEFAULT_REGISTRY);
        assert_eq!(registry_of(""), DEFAULT_REGISTRY);
        assert_eq!(registry_of("http://127.0.0.1:5000"), "127.0.0.1:5000");
    }
}
