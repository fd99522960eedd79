//! The authority's calls on the cluster's port.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngCore, TryRngCore, rngs::OsRng};
use skep_identity::{Identity, LiveIdentity};
use skep_proto::model::{Availability, NodeId, NodeRole, Timestamp};
use skep_proto::wire::ca::certificate_authority_server::{CertificateAuthority, CertificateAuthorityServer};
use skep_proto::wire::ca::{
    CertificateResponse, GetRootCaRequest, GetRootCaResponse, IssueCertificateRequest, JoinAvailability,
    RenewCertificateRequest,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::admission::{Refusal, check_clock, role_of_token};
use super::limit::RateLimit;
use super::root::{self, Signer, SignerError};
use super::{CaStore, CaStoreError, ClusterCa, NewNode};
use crate::rpc::Peer;

/// Longest message that is read, in bytes: a request and its token, with room.
const MAX_MESSAGE: usize = 8 << 10;
/// Joins under way at a time: each costs a signature check and a write through Raft.
const MAX_JOINS: usize = 64;
/// Calls without a certificate that one address may make at once, and the pause for each more. A join takes two.
const OPEN_BURST: u32 = 40;
const OPEN_PERIOD: Duration = Duration::from_millis(100);

/// Answers `skep.ca.CertificateAuthority`.
pub struct CaService<S> {
    store: Arc<S>,
    live: LiveIdentity,
    open: RateLimit,
    joins: Semaphore,
}

impl<S: CaStore> CaService<S> {
    /// Signs with the root that `store` holds; `live` is this manager.
    pub fn new(store: Arc<S>, live: LiveIdentity) -> Self {
        Self { store, live, open: RateLimit::new(OPEN_BURST, OPEN_PERIOD), joins: Semaphore::new(MAX_JOINS) }
    }

    /// As a gRPC service, with its limit on message size.
    pub fn into_server(self) -> CertificateAuthorityServer<Self> {
        CertificateAuthorityServer::new(self).max_decoding_message_size(MAX_MESSAGE)
    }

    fn now(&self) -> Timestamp {
        self.live.clock().now()
    }

    fn take_open<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let source = request.extensions().get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.address.ip());
        self.open
            .take(source, Instant::now())
            .map_err(|wait| Status::resource_exhausted(format!("too many calls from {source}: try again in {wait:?}")))
    }

    fn sign(
        &self,
        cluster: &ClusterCa,
        request: root::Request,
        node: NodeId,
        role: NodeRole,
    ) -> Result<Response<CertificateResponse>, Status> {
        let mut serial = [0; 16];
        OsRng.unwrap_err().fill_bytes(&mut serial);
        let certificate = Signer::new(cluster.id, &cluster.root)
            .and_then(|signer| signer.issue(request, node, role, self.now(), cluster.cert_expiry, serial))
            .map_err(|error| signer_status(&error))?;
        let certificate = certificate + &cluster.link;
        tracing::info!(node.id = %node, ?role, "issued a node certificate");
        Ok(Response::new(CertificateResponse { certificate, roots: cluster.root.certificates.clone() }))
    }
}

#[tonic::async_trait]
impl<S: CaStore> CertificateAuthority for CaService<S> {
    async fn get_root_ca(&self, request: Request<GetRootCaRequest>) -> Result<Response<GetRootCaResponse>, Status> {
        self.take_open(&request)?;
        Ok(Response::new(GetRootCaResponse { roots: self.live.current().roots_pem(), now_ms: self.now().0 }))
    }

    async fn issue_certificate(
        &self,
        request: Request<IssueCertificateRequest>,
    ) -> Result<Response<CertificateResponse>, Status> {
        self.take_open(&request)?;
        let _permit =
            self.joins.try_acquire().map_err(|_| Status::resource_exhausted("too many nodes join now: try again"))?;
        let request = request.into_inner();
        let cluster = self.store.cluster().await.map_err(store_status)?;
        // The token first: nothing else is worth work before it.
        let role = role_of_token(&request.token, &cluster).map_err(refusal_status)?;
        check_clock(Timestamp(request.now_ms), self.now()).map_err(refusal_status)?;
        let availability = match request.availability() {
            JoinAvailability::Active => Availability::Active,
            JoinAvailability::Pause => Availability::Pause,
            JoinAvailability::Drain => Availability::Drain,
        };
        let csr = root::Request::read(&request.csr).map_err(|error| signer_status(&error))?;
        let node = csr.node();
        if self.live.revoked().contains(node) {
            return Err(store_status(CaStoreError::NotAMember { node }));
        }
        let role = self.store.admit(NewNode { id: node, role, availability }).await.map_err(store_status)?;
        self.sign(&cluster, csr, node, role)
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<CertificateResponse>, Status> {
        let caller = request.extensions().get::<Identity>().copied();
        let Identity { node, .. } = caller.ok_or_else(|| Status::unauthenticated("a node certificate is needed"))?;
        let request = request.into_inner();
        check_clock(Timestamp(request.now_ms), self.now()).map_err(refusal_status)?;
        let csr = root::Request::read(&request.csr).map_err(|error| signer_status(&error))?;
        let role = self.store.role(node).await.map_err(store_status)?;
        let cluster = self.store.cluster().await.map_err(store_status)?;
        self.sign(&cluster, csr, node, role)
    }
}

fn refusal_status(refusal: Refusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        Refusal::NotAToken => Status::invalid_argument(message),
        Refusal::OtherCluster | Refusal::WrongSecret => Status::permission_denied(message),
        Refusal::ClockSkew { .. } => Status::failed_precondition(message),
    }
}

fn store_status(error: CaStoreError) -> Status {
    let message = error.to_string();
    match error {
        CaStoreError::Unavailable { .. } => Status::unavailable(message),
        CaStoreError::NotAMember { .. } => Status::permission_denied(message),
    }
}

fn signer_status(error: &SignerError) -> Status {
    match error {
        SignerError::TooLong { .. } | SignerError::Request(_) | SignerError::KeyKind => {
            Status::invalid_argument(error.to_string())
        }
        SignerError::Root(_)
        | SignerError::RootPem(_)
        | SignerError::Sign(_)
        | SignerError::Key(_)
        | SignerError::Credentials(_) => {
            tracing::error!(error = error as &dyn std::error::Error, "cannot issue certificates");
            Status::internal(error.to_string())
        }
    }
}
