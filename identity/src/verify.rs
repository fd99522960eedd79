//! What both ends of a connection check of each other.
//!
//! The chain leads to one of the cluster's roots, the certificate is valid now, it names a node of this cluster, and
//! that node was not removed. Who dials also knows whom it expects. Trust is read anew at each handshake, so a changed
//! root or a removed node needs no restart.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use skep_proto::model::{NodeId, NodeRole};

use crate::credentials::provider;
use crate::live::Inner;
use crate::peer::Identity;

/// Whom a dialler expects to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// This node.
    Node(NodeId),
    /// Any node of this role.
    Role(NodeRole),
}

/// Why a certificate that chains to the roots is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the certificate does not name a node")]
    NotANode,
    #[error("node {node} is of another cluster")]
    OtherCluster { node: NodeId },
    #[error("node {node} was removed from the cluster")]
    Removed { node: NodeId },
    #[error("expected {expected:?}, node {node} answered as {role:?}")]
    Unexpected { expected: Expect, node: NodeId, role: NodeRole },
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Removed { .. } => CertificateError::Revoked.into(),
            other => CertificateError::Other(OtherError(Arc::new(other))).into(),
        }
    }
}

/// Checks of a server's side. Without a client certificate the connection is accepted; what may be called on it is
/// decided per method.
#[derive(Debug)]
pub(crate) struct ServerSide {
    pub(crate) live: Arc<Inner>,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for ServerSide {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.live.current().client_verifier.verify_client_cert(end_entity, intermediates, now)?;
        self.live.admit(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks of a dialler.
#[derive(Debug)]
pub(crate) struct ClientSide {
    pub(crate) trust: Trust,
    pub(crate) expect: Expect,
    pub(crate) provider: Arc<CryptoProvider>,
}

/// What a dialler trusts.
#[derive(Debug)]
pub(crate) enum Trust {
    /// The roots of a joined node, read at each handshake.
    Live(Arc<Inner>),
    /// Roots that a joining node has just compared with its token.
    Roots(RootCertStore),
    /// Anyone: only to ask for the roots, which are compared with the token before they are used.
    Anyone,
}

impl ServerCertVerifier for ClientSide {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = |roots: &RootCertStore| {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
        };
        let peer = match &self.trust {
            Trust::Anyone => return Ok(ServerCertVerified::assertion()),
            Trust::Roots(roots) => {
                chain(roots)?;
                Identity::from_certificate(end_entity).map_err(|_| Refused::NotANode)?
            }
            Trust::Live(live) => {
                chain(&live.current().trusted)?;
                live.admit(end_entity)?
            }
        };
        let expected = match self.expect {
            Expect::Node(node) => node == peer.node,
            Expect::Role(role) => role == peer.role,
        };
        if !expected {
            return Err(Refused::Unexpected { expected: self.expect, node: peer.node, role: peer.role }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientSide {
    pub(crate) fn new(trust: Trust, expect: Expect) -> Arc<Self> {
        Arc::new(Self { trust, expect, provider: provider() })
    }
}
