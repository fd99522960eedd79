//! A root and certificates for tests. The authority itself is the manager's.

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use skep_proto::model::{ClusterId, NodeId};

use crate::credentials::Credentials;
use crate::key::NodeKey;

pub(crate) struct Root {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Root {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn pem(&self) -> String {
        self.pem.clone()
    }

    /// A certificate with these subject fields, in their order.
    pub(crate) fn sign(&self, key: &NodeKey, subject: &[(DnType, String)]) -> String {
        let key = KeyPair::from_pem(&key.to_pem()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (field, value) in subject {
            params.distinguished_name.push(field.clone(), value.clone());
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&key, &self.issuer).unwrap().pem()
    }
}

pub(crate) fn subject(node: u128, unit: &str) -> Vec<(DnType, String)> {
    vec![
        (DnType::CommonName, NodeId(node).to_string()),
        (DnType::OrganizationalUnitName, unit.to_owned()),
        (DnType::OrganizationName, ClusterId(1).to_string()),
    ]
}

pub(crate) fn credentials(root: &Root, node: u128) -> Credentials {
    credentials_as(root, node, "swarm-worker")
}

pub(crate) fn manager_credentials(root: &Root, node: u128) -> Credentials {
    credentials_as(root, node, "swarm-manager")
}

fn credentials_as(root: &Root, node: u128, unit: &str) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let certificate = root.sign(&key, &subject(node, unit));
    Credentials::new(key, &certificate, &root.pem()).unwrap()
}
