//! Who a node is: its key and certificate, how it gets them, and the TLS built on them.
//!
//! Used by managers, agents and the command line alike. A node is named by the key it made: its id is a digest of the
//! public key, so that a repeated join gives the same node and nobody can claim the id of another. The certificate
//! authority itself (root key, tokens, admission) is the manager's.

pub mod clock;
pub mod credentials;
pub mod dial;
pub mod disk;
#[cfg(test)]
mod fixture;
pub mod join;
pub mod key;
pub mod live;
pub mod peer;
pub mod pem;
pub mod renew;
pub mod revoked;
pub mod seal;
pub mod token;
mod verify;

pub use clock::{Clock, SystemClock};
pub use credentials::{Credentials, CredentialsError, Validity};
pub use dial::{ConnectError, Connector, Dialer, Stream, TcpDialer, Timing};
pub use disk::{Disk, DiskError};
pub use join::{JoinError, JoinRequest, join};
pub use key::NodeKey;
pub use live::LiveIdentity;
pub use peer::Identity;
pub use renew::Renewer;
pub use revoked::Revoked;
pub use seal::NodeSeal;
pub use token::{JoinToken, RootDigest};
pub use verify::Expect;

/// Clocks of two nodes may differ by this much; a node further off is not admitted, and gets no new certificate.
pub const MAX_CLOCK_SKEW: std::time::Duration = std::time::Duration::from_secs(5 * 60);

/// Certificates are valid from this long before they were made, so that a clock that is a little late accepts them.
pub const BACK_DATE: std::time::Duration = std::time::Duration::from_secs(3600);

/// Longest certificate request that is read, in bytes. A request with a P-256 key has about 200.
pub const MAX_CSR_BYTES: usize = 4096;
