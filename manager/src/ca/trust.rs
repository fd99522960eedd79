//! What nodes should trust, and what they do: pure. While the root is being replaced, every node first comes to trust the
//! new root besides the old one and to hold a certificate signed by it; only when all do is the old one dropped.

use rustls_pki_types::CertificateDer;
use skep_api::ports::control::NodeTls;
use skep_identity::{RootDigest, pem};
use skep_proto::model::node::NodeTrust;
use skep_proto::model::{Cluster, Node};

/// The roots to be trusted, PEM. The first signs.
pub fn roots(cluster: &Cluster) -> String {
    let new = cluster.rotation.as_ref().map(|rotation| rotation.root.certificates.as_str());
    format!("{}{}", new.unwrap_or_default(), cluster.root_ca.certificates)
}

/// What every node should tell of itself. `None` where the cluster's roots cannot be read.
pub fn wanted(cluster: &Cluster) -> Option<NodeTrust> {
    let roots: Vec<String> = pem::certificates(&roots(cluster)).ok()?.iter().map(digest).collect();
    Some(NodeTrust { issuer: roots.first()?.clone(), roots })
}

fn digest(root: &CertificateDer<'_>) -> String {
    RootDigest::of(root).to_string()
}

/// What a node trusts, as texts.
pub fn of_node(cluster: &Cluster, node: &Node) -> NodeTls {
    let known = pem::certificates(&roots(cluster)).unwrap_or_default();
    let text = |wanted: &String| {
        let root = known.iter().find(|root| digest(root) == *wanted);
        root.map(|root| pem::encode_certificates(std::slice::from_ref(root))).unwrap_or_default()
    };
    let signing = known.last().map(digest).unwrap_or_default();
    let own = node.description.trust.clone();
    let trust = own.unwrap_or_else(|| NodeTrust { roots: vec![signing.clone()], issuer: signing.clone() });
    if trust.roots == [signing] {
        // In the very words of the cluster's own record: clients compare texts.
        return NodeTls { trust_root: cluster.root_ca.certificates.clone(), issuer: text(&trust.issuer) };
    }
    NodeTls { trust_root: trust.roots.iter().map(text).collect(), issuer: text(&trust.issuer) }
}
