//! Which calls are allowed to whom.
//!
//! One table names every method; what it does not name is denied, to managers too. The role is that of the certificate,
//! lowered to worker where the store says so: a demoted manager loses its rights before its certificate ends.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use http::{Request, Response};
use skep_identity::{Identity, Revoked};
use skep_proto::model::{NodeId, NodeRole};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::Peer;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone, without a certificate. Such a method limits size and rate itself.
    Open,
    /// Every node of the cluster.
    Node,
    /// Managers that this manager knows.
    Manager,
    /// Managers, also one that this manager has not heard of, or knows as the worker that it was: a member that lags
    /// behind must still let the leader bring it up to date. For Raft alone, which knows its members.
    Member,
}

/// Every method of every service, by path.
pub const RULES: &[(&str, Access)] = &[
    ("/skep.attach.Attachments/Network", Access::Node),
    ("/skep.attach.Attachments/Attach", Access::Node),
    ("/skep.attach.Attachments/Detach", Access::Node),
    ("/skep.attach.Attachments/Keep", Access::Node),
    ("/skep.ca.CertificateAuthority/GetRootCa", Access::Open),
    ("/skep.ca.CertificateAuthority/IssueCertificate", Access::Open),
    ("/skep.ca.CertificateAuthority/RenewCertificate", Access::Node),
    ("/skep.dispatch.Relay/OpenStream", Access::Manager),
    ("/skep.dispatch.Relay/Vitals", Access::Manager),
    ("/skep.membership.Membership/Join", Access::Manager),
    ("/skep.membership.Membership/Remove", Access::Manager),
    ("/skep.membership.Membership/Members", Access::Manager),
    ("/skep.raft.Raft/Append", Access::Member),
    ("/skep.raft.Raft/Vote", Access::Member),
    ("/skep.raft.Raft/PreVote", Access::Member),
    ("/skep.raft.Raft/InstallSnapshot", Access::Member),
    ("/skep.raft.Raft/TransferLeader", Access::Member),
    ("/skep.raft.Raft/ReadIndex", Access::Manager),
    ("/skep.raft.Raft/Propose", Access::Manager),
    ("/skep.session.Dispatcher/Session", Access::Node),
    ("/skep.session.Streams/Attach", Access::Node),
];

/// The roles that nodes have now.
pub trait Roles: Send + Sync + 'static {
    /// The role of the node that `certificate` names; `None` when this manager does not know it: it has not heard of it
    /// yet, or the node was removed.
    fn role(&self, certificate: &Identity) -> Option<NodeRole>;

    /// Whether this manager hears from a leader other than `caller`, or leads: then it knows better than an older
    /// certificate. One that does not may lag behind the very change that made the caller a manager, and must take the log
    /// from it to learn of that.
    fn is_current_without(&self, caller: NodeId) -> bool;
}

/// Believes the certificates.
#[derive(Debug, Clone, Copy, Default)]
pub struct CertificateRoles;

impl Roles for CertificateRoles {
    fn role(&self, certificate: &Identity) -> Option<NodeRole> {
        Some(certificate.role)
    }

    fn is_current_without(&self, _: NodeId) -> bool {
        true
    }
}

/// Decides about one call: who the caller is, or why the call is refused.
///
/// # Errors
/// `Unauthenticated` without a certificate where one is needed, else `PermissionDenied`.
pub fn decide(
    rules: &[(&str, Access)],
    path: &str,
    caller: Option<Identity>,
    roles: &dyn Roles,
    revoked: &Revoked,
) -> Result<Option<Identity>, Status> {
    let access = rules.iter().find(|(rule, _)| *rule == path).map(|(_, access)| *access);
    if access == Some(Access::Open) {
        return Ok(caller);
    }
    let Some(caller) = caller else {
        return Err(Status::unauthenticated(format!("{path} needs the certificate of a node of this cluster")));
    };
    if revoked.contains(caller.node) {
        return Err(Status::permission_denied(format!("node {} was removed from the cluster", caller.node)));
    }
    let known = roles.role(&caller);
    let role = known.map_or(caller.role, |now| now.min(caller.role));
    let is_manager = role == NodeRole::Manager;
    match access {
        Some(Access::Open | Access::Node) => {}
        Some(Access::Manager) if is_manager && known.is_some() => {}
        Some(Access::Member) if is_manager => {}
        Some(Access::Member) if caller.role == NodeRole::Manager && !roles.is_current_without(caller.node) => {}
        Some(Access::Manager) if is_manager => {
            return Err(Status::permission_denied(format!("this manager does not know node {}", caller.node)));
        }
        Some(Access::Manager | Access::Member) => {
            return Err(Status::permission_denied(format!("{path} is for managers; node {} is a worker", caller.node)));
        }
        None => return Err(Status::permission_denied(format!("{path} is not a call of this cluster"))),
    }
    Ok(Some(Identity { role, ..caller }))
}

/// The services of a manager behind [`decide`].
#[derive(Clone)]
pub struct Authorize<S> {
    inner: S,
    peer: Peer,
    rules: Arc<Rules>,
}

/// What decisions are made from, shared by all connections.
pub(super) struct Rules {
    pub(super) rules: &'static [(&'static str, Access)],
    pub(super) roles: Arc<dyn Roles>,
    pub(super) revoked: Revoked,
}

impl<S> Authorize<S> {
    pub(super) fn new(inner: S, peer: Peer, rules: Arc<Rules>) -> Self {
        Self { inner, peer, rules }
    }
}

impl<S, B> Service<Request<B>> for Authorize<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Rules { rules, roles, revoked } = &*self.rules;
        match decide(rules, request.uri().path(), self.peer.identity, &**roles, revoked) {
            Ok(caller) => {
                request.extensions_mut().insert(self.peer);
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                Either::Left(self.inner.call(request))
            }
            Err(status) => {
                tracing::info!(peer = %self.peer.address, "refused a call: {}", status.message());
                Either::Right(ready(Ok(status.into_http())))
            }
        }
    }
}
