//! The root key and what it signs.

use std::time::Duration;

use rand::CryptoRng;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateSigningRequestDer;
use skep_identity::credentials::CredentialsError;
use skep_identity::key::{KeyError, NodeKey, node_of};
use skep_identity::peer::unit;
use skep_identity::pem::{self, PemError};
use skep_identity::{BACK_DATE, Credentials, JoinToken, MAX_CSR_BYTES, RootDigest};
use skep_proto::model::cluster::{JoinTokens, RootCa, RootRotation};
use skep_proto::model::{Cluster, ClusterId, NodeId, NodeRole, Timestamp};

use super::ClusterCa;

/// Life of a root, as Swarm's: 20 years.
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Shortest life of a node certificate, as Swarm's: 1 h.
pub const MIN_CERT_LIFE: Duration = Duration::from_secs(3600);
/// Longest life of a node certificate; beyond it the root would end first.
pub const MAX_CERT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The authority cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The cluster's root key or certificate is unusable.
    #[error("the cluster's root key is unusable")]
    Root(#[source] rcgen::Error),
    /// The cluster's root certificates cannot be read.
    #[error("the cluster's root certificates are unusable")]
    RootPem(#[from] PemError),
    /// The request is too long to be one of ours.
    #[error("the certificate request has {len} bytes, at most {MAX_CSR_BYTES} are read")]
    TooLong {
        /// Bytes it has.
        len: usize,
    },
    /// The request cannot be read, or is not signed with the key it names.
    #[error("the certificate request is malformed or not signed by its own key")]
    Request(#[source] rcgen::Error),
    /// The request is for another kind of key.
    #[error("the certificate request must hold an ECDSA key on P-256")]
    KeyKind,
    /// Signing failed.
    #[error("cannot sign the certificate")]
    Sign(#[source] rcgen::Error),
    /// A key could not be made.
    #[error("cannot make a key")]
    Key(#[from] KeyError),
    /// What was made does not hold together.
    #[error("the new certificate is unusable")]
    Credentials(#[from] CredentialsError),
}

/// A certificate request that was checked: its sender holds the key.
pub struct Request(CertificateSigningRequestParams);

impl Request {
    /// Reads a request (PKCS #10, DER).
    ///
    /// # Errors
    /// When it is too long, malformed, not signed by its own key, or holds another key than P-256.
    pub fn read(der: &[u8]) -> Result<Self, SignerError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(SignerError::TooLong { len: der.len() });
        }
        let csr = CertificateSigningRequestDer::from(der);
        let params = CertificateSigningRequestParams::from_der(&csr).map_err(SignerError::Request)?;
        if params.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(SignerError::KeyKind);
        }
        Ok(Self(params))
    }

    /// The id of a node that joins with this key.
    pub fn node(&self) -> NodeId {
        node_of(&self.0.public_key.subject_public_key_info())
    }
}

/// Signs node certificates with the cluster's root key.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    cluster: ClusterId,
}

impl Signer {
    /// Signs with the root of `cluster`.
    ///
    /// # Errors
    /// When its key or certificate is unusable.
    pub fn new(cluster: ClusterId, root: &RootCa) -> Result<Self, SignerError> {
        let key =
            KeyPair::from_pkcs8_pem_and_sign_algo(&root.key, &PKCS_ECDSA_P256_SHA256).map_err(SignerError::Root)?;
        let certificates = pem::certificates(&root.certificates)?;
        let issuer = Issuer::from_ca_cert_der(&certificates[0], key).map_err(SignerError::Root)?;
        Ok(Self { issuer, cluster })
    }

    /// A certificate (PEM) for the key of `request`, as `node` with `role`, valid from an hour before `now` until `life`
    /// after it. Nothing but the key is taken from the request.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(
        &self,
        request: Request,
        node: NodeId,
        role: NodeRole,
        now: Timestamp,
        life: Duration,
        serial: [u8; 16],
    ) -> Result<String, SignerError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node.to_string());
        params.distinguished_name.push(DnType::OrganizationalUnitName, unit(role));
        params.distinguished_name.push(DnType::OrganizationName, self.cluster.to_string());
        let names = [node.to_string(), unit(role).to_owned()];
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.try_into().map_err(SignerError::Sign)?));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        set_validity(&mut params, now, life.clamp(MIN_CERT_LIFE, MAX_CERT_LIFE));
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.use_authority_key_identifier_extension = true;
        let request = CertificateSigningRequestParams { params, public_key: request.0.public_key };
        Ok(request.signed_by(&self.issuer).map_err(SignerError::Sign)?.pem())
    }
}

/// All that a new cluster's first manager needs.
#[derive(Debug)]
pub struct Bootstrap {
    /// For the cluster's record.
    pub root: RootCa,
    /// For the cluster's record.
    pub tokens: JoinTokens,
    /// For the first manager's disk.
    pub credentials: Credentials,
}

/// Makes a cluster's root and tokens, and the certificate of its first manager.
///
/// # Errors
/// When keys cannot be made.
pub fn bootstrap(
    cluster: ClusterId,
    now: Timestamp,
    life: Duration,
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<Bootstrap, SignerError> {
    let root = create_root(cluster, now)?;
    let tokens = new_tokens(&root, rng)?;
    let key = NodeKey::generate()?;
    let request = Request::read(&key.request()?)?;
    let node = request.node();
    let mut serial = [0; 16];
    rng.fill_bytes(&mut serial);
    let certificate = Signer::new(cluster, &root)?.issue(request, node, NodeRole::Manager, now, life, serial)?;
    let credentials = Credentials::new(key, &certificate, &root.certificates)?;
    Ok(Bootstrap { root, tokens, credentials })
}

/// A certificate for a new manager of a cluster that exists and has no other.
///
/// # Errors
/// When a key cannot be made, or the cluster's root is unusable.
pub fn first_manager(
    cluster: &Cluster,
    now: Timestamp,
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<Credentials, SignerError> {
    let ClusterCa { id, root, link, cert_expiry, .. } = ClusterCa::from(cluster);
    let key = NodeKey::generate()?;
    let request = Request::read(&key.request()?)?;
    let node = request.node();
    let mut serial = [0; 16];
    rng.fill_bytes(&mut serial);
    let leaf = Signer::new(id, &root)?.issue(request, node, NodeRole::Manager, now, cert_expiry, serial)?;
    Ok(Credentials::new(key, &(leaf + &link), &root.certificates)?)
}

/// A new root: key and self-signed certificate.
///
/// # Errors
/// When the key cannot be made.
pub fn create_root(cluster: ClusterId, now: Timestamp) -> Result<RootCa, SignerError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignerError::Sign)?;
    let certificate = root_params(cluster, now, BasicConstraints::Constrained(1)).self_signed(&key);
    Ok(RootCa { certificates: certificate.map_err(SignerError::Sign)?.pem(), key: key.serialize_pem() })
}

fn root_params(cluster: ClusterId, now: Timestamp, reach: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "swarm-ca");
    params.distinguished_name.push(DnType::OrganizationName, cluster.to_string());
    params.is_ca = IsCa::Ca(reach);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, ROOT_LIFE);
    params
}

/// A new root to take the place of `old`, with the link between them and the tokens for it.
///
/// # Errors
/// When keys cannot be made, or the old root is unusable.
pub fn begin_rotation(
    cluster: ClusterId,
    old: &RootCa,
    now: Timestamp,
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<RootRotation, SignerError> {
    let root = create_root(cluster, now)?;
    let key = KeyPair::from_pkcs8_pem_and_sign_algo(&root.key, &PKCS_ECDSA_P256_SHA256).map_err(SignerError::Root)?;
    // It signs certificates of nodes and no further authority.
    let mut params = root_params(cluster, now, BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    let link = params.signed_by(&key, &Signer::new(cluster, old)?.issuer).map_err(SignerError::Sign)?;
    let join_tokens = new_tokens(&root, rng)?;
    Ok(RootRotation { root, cross_signed: link.pem(), join_tokens })
}

/// Both join tokens for a root.
///
/// # Errors
/// When the root certificate cannot be read.
pub fn new_tokens(root: &RootCa, rng: &mut (impl CryptoRng + ?Sized)) -> Result<JoinTokens, SignerError> {
    let mut tokens = JoinTokens::default();
    rotate_token(&mut tokens, NodeRole::Worker, root, rng)?;
    rotate_token(&mut tokens, NodeRole::Manager, root, rng)?;
    Ok(tokens)
}

/// Replaces the token of one role: the old one admits nobody from then on.
///
/// # Errors
/// When the root certificate cannot be read.
pub fn rotate_token(
    tokens: &mut JoinTokens,
    role: NodeRole,
    root: &RootCa,
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<(), SignerError> {
    let digest = RootDigest::of(&pem::certificates(&root.certificates)?[0]);
    let token = JoinToken::random(digest, rng).to_string();
    match role {
        NodeRole::Worker => tokens.worker = token,
        NodeRole::Manager => tokens.manager = token,
    }
    Ok(())
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    // Far enough away that no sum of dates overflows: about the year 8300.
    let seconds = (now.0 / 1000).min(200_000_000_000);
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    params.not_before = now - BACK_DATE;
    params.not_after = now + life;
}
