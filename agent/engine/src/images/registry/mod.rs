//! Speaks to registries (OCI distribution-spec 1.1) through `oci-client`, at the level of manifests and blobs.
//!
//! A [`Session`] is one conversation about one repository with one set of credentials.

mod auth;
mod fault;
mod fetch;
mod pull;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::{Client, RegistryOperation};
use skep_proto::model::container::RegistryAuth;

pub use pull::PullStream;

use super::document::{DOCKER_LIST, DOCKER_MANIFEST, Document, ImageDocument, OCI_INDEX, OCI_MANIFEST};
use super::error::ImageError;
use super::reference::{DEFAULT_REGISTRY, Reference};
use auth::Credentials;

/// A registry that does not take a connection in this time is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A download that stands still for so long is cut, and resumed.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Documents that a pull can begin with.
const ACCEPTED: &[&str] = &[OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

/// What a registry says of a reference (Engine API, "Get image information from the registry").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// Digest of the manifest or index, `sha256:…`.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// Platforms as (architecture, os, variant).
    pub platforms: Vec<(String, String, String)>,
}

/// How registries are reached.
#[derive(Debug)]
pub struct Registries {
    insecure: Vec<String>,
}

/// One conversation with a registry about one repository.
#[derive(Clone)]
pub struct Session {
    client: Client,
    auth: oci_client::secrets::RegistryAuth,
    reference: Arc<Reference>,
}

impl Registries {
    /// Registries, of which `insecure` are spoken to without TLS: each `HOST[:PORT]`, or a subnet that names by address
    /// fall into.
    pub fn new(insecure: Vec<String>) -> Self {
        install_tls_provider();
        Self { insecure }
    }

    /// Opens a session: finds out how the registry wants to be asked, and gets a token where one is needed.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] for credentials that cannot be read, [`ImageError::Unauthorized`] for wrong ones,
    /// [`ImageError::Registry`] when the registry does not answer.
    pub async fn session(&self, reference: &Reference, auth: Option<&RegistryAuth>) -> Result<Session, ImageError> {
        let credentials = Credentials::parse(auth)?;
        let client = self.client(reference.registry())?;
        let auth = self.exchange(reference, credentials).await?;
        let session = Session { client, auth, reference: Arc::new(reference.clone()) };
        let image = session.image();
        fetch::retrying(fetch::DOCUMENT_ATTEMPTS, || async {
            let asked = session.client.auth(&image, &session.auth, RegistryOperation::Pull).await;
            asked.map(drop).map_err(|e| fault::of(&session, e))
        })
        .await?;
        Ok(session)
    }

    /// A client for one registry. Sessions do not share one: it would keep the first one's credentials.
    fn client(&self, registry: &str) -> Result<Client, ImageError> {
        let protocol = if self.is_plain(registry) { ClientProtocol::Http } else { ClientProtocol::Https };
        let config = ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("skep/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        Client::try_from(config).map_err(|e| ImageError::Registry(format!("cannot speak to registry {registry}: {e}")))
    }

    /// The registry is spoken to without TLS: it is on this machine, or the operator said so.
    fn is_plain(&self, registry: &str) -> bool {
        let host = match registry.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map_or(rest, |(host, _)| host),
            None => registry.rsplit_once(':').map_or(registry, |(host, _)| host),
        };
        let address = host.parse::<IpAddr>().ok();
        let named = |known: &String| {
            known == registry || address.is_some_and(|a| known.parse::<IpNet>().is_ok_and(|subnet| subnet.contains(&a)))
        };
        host == "localhost" || address.is_some_and(|a| a.is_loopback()) || self.insecure.iter().any(named)
    }
}

impl Session {
    /// What the registry has for the session's reference.
    ///
    /// # Errors
    /// As a pull.
    pub async fn distribution(&self) -> Result<Distribution, ImageError> {
        let found = self.manifest(&self.reference).await?;
        let document = Document::parse(&found.bytes)?;
        let platforms = match &document {
            Document::Index(index) => {
                let platforms = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
                platforms.map(|p| (p.architecture.clone(), p.os.clone(), p.variant.clone())).collect()
            }
            Document::Manifest(manifest) => {
                let config = self.small_blob(&manifest.config).await?;
                let platform = ImageDocument::parse(&config)?.platform;
                vec![(platform.architecture, platform.os, platform.variant)]
            }
        };
        let media_type = found.media_type.unwrap_or_else(|| match document {
            Document::Index(_) => OCI_INDEX.to_owned(),
            Document::Manifest(_) => OCI_MANIFEST.to_owned(),
        });
        Ok(Distribution { digest: found.digest.to_string(), media_type, size: found.bytes.len() as u64, platforms })
    }

    /// The session's reference as `oci-client` wants it.
    fn image(&self) -> oci_client::Reference {
        oci_reference(&self.reference)
    }
}

fn oci_reference(reference: &Reference) -> oci_client::Reference {
    let (registry, repository) = (reference.registry().to_owned(), reference.repository().to_owned());
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => oci_client::Reference::with_digest(registry, repository, digest.to_string()),
        (None, tag) => oci_client::Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
    }
}

/// The host that a registry's name stands for: the default registry's name is not its address.
fn host_of(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY { "index.docker.io" } else { registry }
}

/// Makes ring the process's TLS provider, unless the program chose one: the client panics without.
fn install_tls_provider() {
    // An error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
