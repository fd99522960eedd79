//! How a node joins: it recognises the cluster by the digest in its token, then shows the token and gets a certificate.
//!
//! ```text
//! node                                            manager
//!  | TLS, certificate not checked                    |
//!  | GetRootCa ------------------------------------> |
//!  | <------------------ roots, the manager's clock  |
//!  | digest(root) = digest of the token? clocks near? |
//!  | TLS, must chain to that root and be a manager   |
//!  | IssueCertificate(token, key) -----------------> |  node record through Raft
//!  | <-------------------------- certificate, roots  |
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::model::{Availability, NodeRole, Timestamp};
use skep_proto::wire::ca::certificate_authority_client::CertificateAuthorityClient;
use skep_proto::wire::ca::{GetRootCaRequest, IssueCertificateRequest, JoinAvailability};
use tonic::transport::Channel;

use crate::clock::Clock;
use crate::credentials::{Credentials, CredentialsError, root_store};
use crate::dial::{ConnectError, Dialer, connect_with};
use crate::key::{KeyError, NodeKey};
use crate::live::client_config;
use crate::pem::{self, PemError};
use crate::token::{JoinToken, RootDigest};
use crate::verify::{ClientSide, Expect, Trust};
use crate::{MAX_CLOCK_SKEW, key};

/// How long one call of a join may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a node needs to join. Keep it for a second try: the same key gives the same node.
#[derive(Debug)]
pub struct JoinRequest {
    /// The token that the operator gave.
    pub token: JoinToken,
    /// Whether the node gets tasks.
    pub availability: Availability,
    /// The node's key.
    pub key: NodeKey,
}

/// A node cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The manager cannot be reached.
    #[error("cannot reach a manager at {}", .0.address)]
    Unreachable(#[source] ConnectError),
    /// The call got no answer.
    #[error("the manager at {address} gave no answer: {message}")]
    NoAnswer {
        /// The manager.
        address: SocketAddr,
        /// What the transport says.
        message: String,
    },
    /// The roots cannot be read.
    #[error("the manager's root certificates cannot be read")]
    Roots(#[from] PemError),
    /// The cluster at that address is not the one of the token.
    #[error(
        "remote CA does not match fingerprint: the token is for {expected}, the manager at {address} has {found}; check the address and the token"
    )]
    WrongCluster {
        /// The manager.
        address: SocketAddr,
        /// Digest in the token.
        expected: RootDigest,
        /// Digest of the manager's root.
        found: RootDigest,
    },
    /// The clocks differ too much for certificates to be checked.
    #[error(
        "the clock of this node is {difference:?} {direction} the manager's (at most {MAX_CLOCK_SKEW:?} is allowed); set the clock, then join again"
    )]
    ClockSkew {
        /// By how much.
        difference: Duration,
        /// `ahead of` or `behind`.
        direction: &'static str,
    },
    /// The manager refused; its sentence says why.
    #[error("{message}")]
    Refused {
        /// The manager's sentence.
        message: String,
    },
    /// The key is unusable.
    #[error("the node's key is unusable")]
    Key(#[from] KeyError),
    /// The certificate that came back is unusable.
    #[error("the manager issued an unusable certificate")]
    Certificate(#[from] CredentialsError),
}

impl JoinError {
    /// Whether a later try with the same token may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::NoAnswer { .. })
    }
}

/// Joins the cluster of the manager at `address`. The caller saves the credentials ([`crate::Disk::save`]).
///
/// # Errors
/// See [`JoinError`]; what is temporary may be tried again with the same `request`.
///
/// # Cancel safety
/// Safe: a repeated join with the same request finds the node that an unfinished one made.
pub async fn join(
    address: SocketAddr,
    request: &JoinRequest,
    dialer: Arc<dyn Dialer>,
    clock: Arc<dyn Clock>,
) -> Result<Credentials, JoinError> {
    let roots = known_roots(address, request, &dialer, &clock).await?;
    let expect = Expect::Role(NodeRole::Manager);
    let trust = Trust::Roots(root_store(&pem::certificates(&roots)?)?);
    let mut client = client(address, ClientSide::new(trust, expect), &dialer, &clock).await?;
    let mut call = tonic::Request::new(IssueCertificateRequest {
        token: request.token.to_string(),
        csr: request.key.request()?.into(),
        availability: match request.availability {
            Availability::Active => JoinAvailability::Active,
            Availability::Pause => JoinAvailability::Pause,
            Availability::Drain => JoinAvailability::Drain,
        }
        .into(),
        now_ms: clock.now().0,
    });
    call.set_timeout(CALL_TIMEOUT);
    let issued = client.issue_certificate(call).await.map_err(|status| refusal(address, &status))?.into_inner();
    let key = key::NodeKey::from_pem(&request.key.to_pem())?;
    Ok(Credentials::new(key, &issued.certificate, &issued.roots)?)
}

/// The cluster's roots, once one of them has the digest of the token and the clocks agree.
async fn known_roots(
    address: SocketAddr,
    request: &JoinRequest,
    dialer: &Arc<dyn Dialer>,
    clock: &Arc<dyn Clock>,
) -> Result<String, JoinError> {
    let anyone = ClientSide::new(Trust::Anyone, Expect::Role(NodeRole::Manager));
    let mut client = client(address, anyone, dialer, clock).await?;
    let mut call = tonic::Request::new(GetRootCaRequest {});
    call.set_timeout(CALL_TIMEOUT);
    let answer = client.get_root_ca(call).await.map_err(|status| refusal(address, &status))?.into_inner();
    let roots = pem::certificates(&answer.roots)?;
    let matching: Vec<_> = roots.iter().filter(|root| RootDigest::of(root) == request.token.root).cloned().collect();
    if matching.is_empty() {
        let (expected, found) = (request.token.root, RootDigest::of(&roots[0]));
        return Err(JoinError::WrongCluster { address, expected, found });
    }
    check_clocks(clock.now(), Timestamp(answer.now_ms))?;
    // Only what the token vouches for is trusted; the others come with the certificate, over a verified connection.
    Ok(pem::encode_certificates(&matching))
}

fn check_clocks(own: Timestamp, theirs: Timestamp) -> Result<(), JoinError> {
    let (ahead, behind) = (own.since(theirs), theirs.since(own));
    if ahead > MAX_CLOCK_SKEW {
        return Err(JoinError::ClockSkew { difference: ahead, direction: "ahead of" });
    }
    if behind > MAX_CLOCK_SKEW {
        return Err(JoinError::ClockSkew { difference: behind, direction: "behind" });
    }
    Ok(())
}

async fn client(
    address: SocketAddr,
    verifier: Arc<ClientSide>,
    dialer: &Arc<dyn Dialer>,
    clock: &Arc<dyn Clock>,
) -> Result<CertificateAuthorityClient<Channel>, JoinError> {
    let tls = client_config(verifier, None, Arc::clone(clock));
    let channel = connect_with(address, tls, Arc::clone(dialer)).await.map_err(JoinError::Unreachable)?;
    Ok(CertificateAuthorityClient::new(channel).max_decoding_message_size(64 << 10))
}

/// Tells a manager's refusal from a transport that failed.
fn refusal(address: SocketAddr, status: &tonic::Status) -> JoinError {
    use tonic::Code;
    let message = status.message().to_owned();
    match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted
        | Code::ResourceExhausted => JoinError::NoAnswer { address, message },
        _ => JoinError::Refused { message },
    }
}
