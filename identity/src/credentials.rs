//! A node's key, certificate and roots as one checked value.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use skep_proto::model::Timestamp;
use skep_proto::model::node::NodeTrust;

use crate::clock::unix_time;
use crate::key::{KeyError, NodeKey};
use crate::peer::{self, Identity, PeerError};
use crate::pem::{self, PemError};
use crate::token::RootDigest;

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub not_before: Timestamp,
    /// To.
    pub not_after: Timestamp,
}

impl Validity {
    /// Half of the life that remains after back-dating is over: time to renew.
    pub fn half_life(&self) -> Timestamp {
        let life = self.not_after.since(self.not_before);
        let back = crate::BACK_DATE.min(life / 2);
        self.not_before.after(back).after((life - back) / 2)
    }
}

/// Key, certificate chain and trusted roots, proved to belong together.
pub struct Credentials {
    /// Who the certificate names.
    pub identity: Identity,
    /// When it is valid.
    pub validity: Validity,
    key: NodeKey,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) trusted: Arc<RootCertStore>,
    pub(crate) client_verifier: Arc<dyn ClientCertVerifier>,
}

/// Key, certificate and roots do not make credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The key cannot be read.
    #[error("the node's key is unusable")]
    Key(#[from] KeyError),
    /// A text holds no certificates.
    #[error("the {what} cannot be read")]
    Pem {
        /// Which text.
        what: &'static str,
        /// Why.
        source: PemError,
    },
    /// The certificate does not name a node.
    #[error("the certificate is not a node's")]
    Peer(#[from] PeerError),
    /// The certificate is for another key.
    #[error("the certificate does not belong to the key")]
    KeyMismatch,
    /// None of the roots signed the certificate.
    #[error("the certificate was not signed by any of the roots")]
    NotSignedByRoots,
    /// A root is unusable.
    #[error("a root certificate is unusable: {reason}")]
    Root {
        /// What the TLS library says.
        reason: String,
    },
}

impl Credentials {
    /// Checks that `certificate` (PEM, leaf first) names a node, belongs to `key` and chains to one of `roots` (PEM).
    /// An expired certificate is accepted here, so that the caller can say so.
    ///
    /// # Errors
    /// When any of that does not hold.
    pub fn new(key: NodeKey, certificate: &str, roots: &str) -> Result<Self, CredentialsError> {
        let chain =
            pem::certificates(certificate).map_err(|source| CredentialsError::Pem { what: "certificate", source })?;
        let roots =
            pem::certificates(roots).map_err(|source| CredentialsError::Pem { what: "root certificates", source })?;
        let parsed = peer::parse(&chain[0])?;
        let provider = provider();
        let signing =
            provider.key_provider.load_private_key(key.to_der()).map_err(|_| CredentialsError::KeyMismatch)?;
        let certified = CertifiedKey::new(chain.clone(), signing);
        certified.keys_match().map_err(|_| CredentialsError::KeyMismatch)?;
        let trusted = Arc::new(root_store(&roots)?);
        let client_verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&trusted), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|e| CredentialsError::Root { reason: e.to_string() })?;
        let valid_at = unix_time(parsed.not_before.after(Duration::from_secs(1)));
        client_verifier
            .verify_client_cert(&chain[0], &chain[1..], valid_at)
            .map_err(|_| CredentialsError::NotSignedByRoots)?;
        Ok(Self {
            identity: parsed.identity,
            validity: Validity { not_before: parsed.not_before, not_after: parsed.not_after },
            key,
            chain,
            roots,
            certified: Arc::new(certified),
            trusted,
            client_verifier,
        })
    }

    /// Key and certificate chain as one PEM text. Secret.
    pub fn node_pem(&self) -> String {
        self.key_pem() + &self.chain_pem()
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.to_pem()
    }

    pub(crate) fn chain_pem(&self) -> String {
        pem::encode_certificates(&self.chain)
    }

    /// What the certificate rests on, as the node tells its managers.
    pub fn trust(&self) -> NodeTrust {
        let signed_by = |root: &&CertificateDer<'static>| {
            let alone = root_store(std::slice::from_ref(root)).ok()?;
            let leaf = ParsedCertificate::try_from(&self.chain[0]).ok()?;
            let algorithms = provider().signature_verification_algorithms.all;
            let at = unix_time(self.validity.not_before.after(Duration::from_secs(1)));
            verify_server_cert_signed_by_trust_anchor(&leaf, &alone, &[], at, algorithms).ok()
        };
        let issuer = self.roots.iter().find(|root| signed_by(root).is_some());
        let digest = |root: &CertificateDer<'static>| RootDigest::of(root).to_string();
        NodeTrust { roots: self.roots.iter().map(digest).collect(), issuer: issuer.map(digest).unwrap_or_default() }
    }

    /// The roots as PEM.
    pub fn roots_pem(&self) -> String {
        pem::encode_certificates(&self.roots)
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.identity).field("validity", &self.validity).finish()
    }
}

/// The one crypto provider of skep.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn root_store(roots: &[CertificateDer<'_>]) -> Result<RootCertStore, CredentialsError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone().into_owned()).map_err(|e| CredentialsError::Root { reason: e.to_string() })?;
    }
    Ok(store)
}
