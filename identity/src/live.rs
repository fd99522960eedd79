//! A node's credentials while it runs: one value that renewal replaces, and TLS configurations that read it at each
//! handshake, so that neither a new certificate nor a new root needs a restart.

use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use rustls_pki_types::CertificateDer;
use skep_proto::model::NodeId;
use tokio::sync::watch;

use crate::clock::{Clock, TlsClock};
use crate::credentials::{Credentials, provider};
use crate::peer::Identity;
use crate::revoked::Revoked;
use crate::verify::{ClientSide, Expect, Refused, ServerSide, Trust};

/// Protocol of every connection of the cluster.
const ALPN: &[u8] = b"h2";

/// The current credentials of this node. Cheap to clone; all clones are one value.
#[derive(Debug, Clone)]
pub struct LiveIdentity(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    credentials: watch::Sender<Arc<Credentials>>,
    revoked: Revoked,
    clock: Arc<dyn Clock>,
}

/// New credentials are for another node or cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the new certificate names node {found}, this is node {own}")]
pub struct OtherNode {
    /// This node.
    pub own: NodeId,
    /// The node that the certificate names.
    pub found: NodeId,
}

impl LiveIdentity {
    /// Starts from `credentials`; peers in `revoked` are refused.
    pub fn new(credentials: Credentials, revoked: Revoked, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { credentials: watch::Sender::new(Arc::new(credentials)), revoked, clock }))
    }

    /// Who this node is, by its current certificate.
    pub fn identity(&self) -> Identity {
        self.0.credentials.borrow().identity
    }

    /// The current credentials.
    pub fn current(&self) -> Arc<Credentials> {
        self.0.current()
    }

    /// The list of removed nodes that handshakes consult.
    pub fn revoked(&self) -> &Revoked {
        &self.0.revoked
    }

    /// The clock that handshakes read.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// Tells of each replacement.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Credentials>> {
        self.0.credentials.subscribe()
    }

    /// Takes new credentials for handshakes from now on. Open connections stay.
    ///
    /// # Errors
    /// When they name another node or cluster; nothing changes then.
    pub fn replace(&self, credentials: Credentials) -> Result<(), OtherNode> {
        let (own, new) = (self.identity(), credentials.identity);
        if (own.node, own.cluster) != (new.node, new.cluster) {
            return Err(OtherNode { own: own.node, found: new.node });
        }
        self.0.credentials.send_replace(Arc::new(credentials));
        Ok(())
    }

    /// TLS for a listener: TLS 1.3, client certificates welcome but not required.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        let verifier = ServerSide { live: Arc::clone(&self.0), provider: provider() };
        let mut config = ServerConfig::builder_with_details(provider(), self.tls_clock())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring implements TLS 1.3")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(OwnCertificate(Arc::clone(&self.0))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session skips the check of the peer's certificate: a removed node could come back with a ticket.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// TLS for a connection to `expect`, with this node's certificate.
    pub fn client_config(&self, expect: Expect) -> Arc<ClientConfig> {
        let verifier = ClientSide::new(Trust::Live(Arc::clone(&self.0)), expect);
        let resolver = Some(Arc::new(OwnCertificate(Arc::clone(&self.0))) as Arc<dyn ResolvesClientCert>);
        client_config(verifier, resolver, Arc::clone(&self.0.clock))
    }

    fn tls_clock(&self) -> Arc<TlsClock> {
        Arc::new(TlsClock(Arc::clone(&self.0.clock)))
    }
}

impl Inner {
    pub(crate) fn current(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.borrow())
    }

    /// Decides about a peer whose chain was verified.
    pub(crate) fn admit(&self, certificate: &CertificateDer<'_>) -> Result<Identity, Refused> {
        let peer = Identity::from_certificate(certificate).map_err(|_| Refused::NotANode)?;
        if peer.cluster != self.credentials.borrow().identity.cluster {
            return Err(Refused::OtherCluster { node: peer.node });
        }
        if self.revoked.contains(peer.node) {
            return Err(Refused::Removed { node: peer.node });
        }
        Ok(peer)
    }
}

/// TLS for a dialler: TLS 1.3, no resumption.
pub(crate) fn client_config(
    verifier: Arc<ClientSide>,
    certificate: Option<Arc<dyn ResolvesClientCert>>,
    clock: Arc<dyn Clock>,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(TlsClock(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring implements TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match certificate {
        Some(resolver) => builder.with_client_cert_resolver(resolver),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Arc::new(config)
}

/// Shows the current certificate.
#[derive(Debug)]
struct OwnCertificate(Arc<Inner>);

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current().certified))
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.current().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
