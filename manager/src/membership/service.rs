//! The calls of `membership.proto`.

use std::sync::Arc;

use skep_identity::Identity;
use skep_proto::wire::membership as wire;
use skep_proto::wire::membership::membership_server::{Membership as Calls, MembershipServer};
use tonic::{Request, Response, Status};

use super::{CALL, Membership};

/// Serves [`Membership`]. Who may call what is decided in [`crate::rpc`].
pub struct MembershipService(Arc<Membership>);

impl MembershipService {
    /// As a gRPC service.
    pub fn server(membership: Arc<Membership>) -> MembershipServer<Self> {
        MembershipServer::new(Self(membership))
    }
}

#[tonic::async_trait]
impl Calls for MembershipService {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        let caller = request.extensions().get::<Identity>().copied();
        let caller = caller.ok_or_else(|| Status::unauthenticated("a certificate is needed"))?;
        let address = &request.get_ref().address;
        let address = address.parse().map_err(|_| Status::invalid_argument(format!("{address:?} is not IP:PORT")))?;
        let membership = &self.0;
        if membership.raft.is_leader() {
            let raft_id = membership.join(caller.node, address).await?;
            return Ok(Response::new(wire::JoinResponse { raft_id }));
        }
        // The leader would take this manager for the one that joins: only the certificate says who does.
        let leader = membership.raft.leader().borrow().as_ref().map(|l| l.peer.address.clone());
        let mut status = Status::failed_precondition("this manager does not lead the cluster");
        if let Some(value) = leader.and_then(|address| address.parse().ok()) {
            status.metadata_mut().insert(super::LEADER, value);
        }
        Err(status)
    }

    async fn remove(&self, request: Request<wire::RemoveRequest>) -> Result<Response<wire::RemoveResponse>, Status> {
        let node = &request.get_ref().node;
        let node = node.parse().map_err(|_| Status::invalid_argument(format!("{node:?} is no node id")))?;
        match tokio::time::timeout(CALL, self.0.remove(node)).await {
            Ok(result) => result.map(|()| Response::new(wire::RemoveResponse {})),
            Err(_) => Err(Status::deadline_exceeded("the group did not change in time")),
        }
    }

    async fn members(&self, _: Request<wire::MembersRequest>) -> Result<Response<wire::MembersResponse>, Status> {
        if !self.0.raft.is_leader() {
            return Err(Status::failed_precondition("this manager does not lead the cluster"));
        }
        Ok(Response::new(wire::MembersResponse { members: self.0.known_members() }))
    }
}
