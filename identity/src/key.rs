//! A node's key: ECDSA on P-256, made on the node and never sent.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls_pki_types::PrivateKeyDer;
use sha2::{Digest, Sha256};
use skep_proto::model::NodeId;

/// A private key. `Debug` prints nothing of it.
pub struct NodeKey(KeyPair);

/// A key cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system gave no randomness.
    #[error("cannot make a key")]
    Generate(#[source] rcgen::Error),
    /// The text is not a P-256 key in PKCS #8 PEM.
    #[error("not a P-256 private key in PKCS #8 PEM form")]
    Parse(#[source] rcgen::Error),
    /// The request for a certificate could not be written.
    #[error("cannot write a certificate request")]
    Request(#[source] rcgen::Error),
}

impl NodeKey {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(KeyError::Generate)
    }

    /// Reads a key in PKCS #8 PEM.
    ///
    /// # Errors
    /// When the text holds no P-256 key.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        KeyPair::from_pkcs8_pem_and_sign_algo(text, &PKCS_ECDSA_P256_SHA256).map(Self).map_err(KeyError::Parse)
    }

    /// The key in PKCS #8 PEM. Secret.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// A certificate request (PKCS #10, DER). It proves that the sender holds the key and says nothing else: names and
    /// role are the authority's to choose.
    ///
    /// # Errors
    /// When signing fails.
    pub fn request(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&self.0).map_err(KeyError::Request)?;
        Ok(csr.der().to_vec())
    }

    /// The id of the node that joins with this key.
    pub fn node(&self) -> NodeId {
        node_of(self.0.subject_public_key_info().as_slice())
    }

    pub(crate) fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.0.serialize_der().into())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({}, …)", self.node())
    }
}

/// The id of a node that joins with the public key `spki` (SubjectPublicKeyInfo, DER): the first half of its SHA-256.
/// A join that is repeated after a lost answer thus finds the node it made, and an id cannot be chosen. A renewed
/// certificate keeps the id though its key is new.
pub fn node_of(spki: &[u8]) -> NodeId {
    let digest: [u8; 32] = Sha256::digest(spki).into();
    let (half, _) = digest.split_at(16);
    NodeId(u128::from_be_bytes(half.try_into().expect("16 bytes were split off")))
}
