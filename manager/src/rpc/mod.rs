//! The cluster's port: one listener for every gRPC service of a manager.
//!
//! [`server`] accepts, terminates TLS itself (certificates must be replaceable while it runs) and closes what misbehaves;
//! [`authorize`] lets a call through by its path and the caller's certificate, and denies by default. What a call does is
//! the services' business. To dial, use [`skep_identity::Connector`].

pub mod attachments;
pub mod authorize;
#[cfg(test)]
pub(crate) mod fake;
pub mod links;
pub mod server;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use skep_identity::Identity;

pub use attachments::AttachmentService;
pub use authorize::{Access, Authorize, CertificateRoles, RULES, Roles};
pub use links::RaftLinks;
pub use server::{Limits, Listener, Server, TcpAcceptor};

/// The other end of a connection, in every request's extensions. For calls that need a certificate the caller's
/// [`Identity`] is there too, with the role that it has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where the connection comes from.
    pub address: SocketAddr,
    /// Whom its certificate names; `None` without a client certificate.
    pub identity: Option<Identity>,
}
