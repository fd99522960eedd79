//! Who is at the other end, read from its certificate.

use rustls_pki_types::CertificateDer;
use skep_proto::model::{ClusterId, NodeId, NodeRole, Timestamp};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Organisational unit of a manager's certificate, as Swarm names it.
pub const OU_MANAGER: &str = "swarm-manager";
/// Organisational unit of a worker's certificate, as Swarm names it.
pub const OU_WORKER: &str = "swarm-worker";

/// A node as its certificate names it: common name = node, organisational unit = role, organisation = cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// What it was when the certificate was made. The store may have changed that since.
    pub role: NodeRole,
}

/// A certificate does not name a node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Not an X.509 certificate.
    #[error("the certificate cannot be read")]
    Malformed,
    /// A field of the subject is missing, doubled, or of another form.
    #[error("the certificate's subject has no usable {field}")]
    Subject {
        /// Which one.
        field: &'static str,
    },
}

/// What is read from a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) identity: Identity,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

impl Identity {
    /// Reads the subject of a node's certificate. It does not check who signed it.
    ///
    /// # Errors
    /// When the certificate is malformed or not a node's.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, PeerError> {
        Ok(parse(certificate)?.identity)
    }
}

/// The organisational unit for a role.
pub fn unit(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => OU_WORKER,
        NodeRole::Manager => OU_MANAGER,
    }
}

pub(crate) fn parse(certificate: &CertificateDer<'_>) -> Result<Parsed, PeerError> {
    let (_, x509) = X509Certificate::from_der(certificate).map_err(|_| PeerError::Malformed)?;
    let subject = x509.subject();
    let node = one(subject.iter_common_name())
        .and_then(|text| text.parse().ok())
        .ok_or(PeerError::Subject { field: "common name (node id)" })?;
    let role = match one(subject.iter_organizational_unit()) {
        Some(OU_MANAGER) => NodeRole::Manager,
        Some(OU_WORKER) => NodeRole::Worker,
        _ => return Err(PeerError::Subject { field: "organisational unit (role)" }),
    };
    let cluster = one(subject.iter_organization())
        .and_then(|text| text.parse().ok())
        .ok_or(PeerError::Subject { field: "organisation (cluster id)" })?;
    let time = |seconds: i64| Timestamp(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
    Ok(Parsed {
        identity: Identity { node, cluster, role },
        not_before: time(x509.validity().not_before.timestamp()),
        not_after: time(x509.validity().not_after.timestamp()),
    })
}

/// The only value of an attribute. Two of one kind would let two readers see two nodes.
fn one<'a>(mut values: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>) -> Option<&'a str> {
    let first = values.next()?.as_str().ok()?;
    values.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use rcgen::DnType;

    use super::*;
    use crate::fixture::{Root, subject};
    use crate::key::NodeKey;
    use crate::pem;

    fn read(subject: &[(DnType, String)]) -> Result<Identity, PeerError> {
        let text = Root::new().sign(&NodeKey::generate().unwrap(), subject);
        Identity::from_certificate(&pem::certificates(&text).unwrap()[0])
    }

    #[test]
    fn the_subject_names_node_role_and_cluster() {
        for role in [NodeRole::Worker, NodeRole::Manager] {
            let expected = Identity { node: NodeId(9), cluster: ClusterId(1), role };
            assert_eq!(read(&subject(9, unit(role))), Ok(expected));
        }
    }

    #[test]
    fn a_subject_with_a_field_missing_or_strange_names_nobody() {
        for missing in 0..3 {
            let mut fields = subject(9, OU_WORKER);
            fields.remove(missing);
            assert!(matches!(read(&fields), Err(PeerError::Subject { .. })));
        }
        for (field, value) in [(0, "node-7"), (1, "swarm-root"), (2, "acme")] {
            let mut fields = subject(9, OU_WORKER);
            fields[field].1 = value.to_owned();
            assert!(matches!(read(&fields), Err(PeerError::Subject { .. })), "{value}");
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_name_nobody() {
        assert_eq!(Identity::from_certificate(&CertificateDer::from(vec![0x30, 3, 1])), Err(PeerError::Malformed));
    }
}
