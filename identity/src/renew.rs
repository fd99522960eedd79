//! Keeps the node's certificate fresh: at half of its life, or at once when the managers say so.

use std::net::SocketAddr;
use std::time::Duration;

use skep_proto::model::{NodeRole, Timestamp};
use skep_proto::wire::ca::RenewCertificateRequest;
use skep_proto::wire::ca::certificate_authority_client::CertificateAuthorityClient;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::credentials::{Credentials, CredentialsError};
use crate::dial::{ConnectError, Connector};
use crate::disk::{Disk, DiskError};
use crate::key::{KeyError, NodeKey};
use crate::live::OtherNode;
use crate::verify::Expect;

/// The clock is looked at this often at least, because it may be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);
/// First pause after a failure; it doubles up to [`LONGEST_SLEEP`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Renews the certificate of one node.
#[derive(Debug)]
pub struct Renewer {
    connector: Connector,
    disk: Disk,
    managers: watch::Receiver<Vec<SocketAddr>>,
    asked: Notify,
}

/// No new certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// No manager is known.
    #[error("no manager is known to renew the certificate")]
    NoManagers,
    /// A manager cannot be reached.
    #[error("cannot renew the certificate")]
    Unreachable(#[from] ConnectError),
    /// A manager refused or did not answer.
    #[error("cannot renew the certificate at {address}: {message}")]
    Refused {
        /// The manager.
        address: SocketAddr,
        /// Its sentence.
        message: String,
    },
    /// No key.
    #[error("cannot make a key for the new certificate")]
    Key(#[from] KeyError),
    /// What came back is unusable.
    #[error("the new certificate is unusable")]
    Certificate(#[from] CredentialsError),
    /// What came back is for another node.
    #[error("the new certificate is not for this node")]
    OtherNode(#[from] OtherNode),
    /// It cannot be kept.
    #[error("the new certificate cannot be saved")]
    Disk(#[from] DiskError),
}

impl Renewer {
    /// Renews through any of `managers`, tried in their order.
    pub fn new(connector: Connector, disk: Disk, managers: watch::Receiver<Vec<SocketAddr>>) -> Self {
        Self { connector, disk, managers, asked: Notify::new() }
    }

    /// Asks for a new certificate now: the node's role has changed.
    pub fn renew_now(&self) {
        self.asked.notify_one();
    }

    /// Renews until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut retry = None;
        loop {
            let wait = retry.unwrap_or_else(|| self.until_due());
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                () = self.asked.notified() => true,
                () = tokio::time::sleep(wait.min(LONGEST_SLEEP)) => false,
            };
            if !asked && retry.is_none() && !self.until_due().is_zero() {
                continue;
            }
            retry = match self.renew().await {
                Ok(role) => {
                    tracing::info!(?role, "renewed this node's certificate");
                    None
                }
                Err(error) => {
                    let pause = retry.map_or(FIRST_RETRY, |last: Duration| (last * 2).min(LONGEST_SLEEP));
                    tracing::warn!(error = &error as &dyn std::error::Error, ?pause, "certificate not renewed");
                    Some(pause)
                }
            };
        }
    }

    /// Gets a new certificate and takes it into use.
    ///
    /// # Errors
    /// The last manager's, when all were tried.
    pub async fn renew(&self) -> Result<NodeRole, RenewError> {
        let managers = self.managers.borrow().clone();
        let mut result = Err(RenewError::NoManagers);
        for address in managers {
            result = self.renew_at(address).await;
            if result.is_ok() {
                break;
            }
        }
        result
    }

    async fn renew_at(&self, address: SocketAddr) -> Result<NodeRole, RenewError> {
        let live = self.connector.live();
        let key = NodeKey::generate()?;
        let channel = self.connector.connect(address, Expect::Role(NodeRole::Manager)).await?;
        let mut call =
            tonic::Request::new(RenewCertificateRequest { csr: key.request()?.into(), now_ms: live.clock().now().0 });
        call.set_timeout(CALL_TIMEOUT);
        let issued = CertificateAuthorityClient::new(channel)
            .max_decoding_message_size(64 << 10)
            .renew_certificate(call)
            .await
            .map_err(|status| RenewError::Refused { address, message: status.message().to_owned() })?
            .into_inner();
        let new = Credentials::new(key, &issued.certificate, &issued.roots)?;
        let (own, found) = (live.identity(), new.identity);
        if (own.node, own.cluster) != (found.node, found.cluster) {
            return Err(OtherNode { own: own.node, found: found.node }.into());
        }
        // On disk first: what peers have seen must survive a crash.
        self.disk.save(&new)?;
        let role = new.identity.role;
        live.replace(new)?;
        Ok(role)
    }

    fn until_due(&self) -> Duration {
        let live = self.connector.live();
        let current = live.current();
        due(&current).since(live.clock().now())
    }
}

/// When to renew: at half-life, spread by up to a tenth of the life so that nodes that joined together do not come
/// back together.
fn due(credentials: &Credentials) -> Timestamp {
    let validity = credentials.validity;
    let tenth = validity.not_after.since(validity.half_life()) / 5;
    let share = u32::try_from(credentials.identity.node.0 % 1024).expect("a remainder of 1024 fits");
    validity.half_life().after(tenth * share / 1024)
}
