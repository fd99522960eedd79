//! The calls of `attach.proto`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use skep_api::ports::control::ControlError;
use skep_identity::Identity;
use skep_proto::model::{ContainerId, NetworkId, NodeId};
use skep_proto::wire::attach as wire;
use skep_proto::wire::attach::attachments_server::{Attachments, AttachmentsServer};
use tonic::{Request, Response, Status};

use crate::control::{AttachError, AttachRequest, Control};

/// Places that a node may have in one call.
const MAX_PLACES: usize = 10_000;
/// Names of one place, and bytes of each.
const MAX_NAMES: usize = 64;
const MAX_NAME: usize = 255;

/// Serves [`Control`]'s places of plain containers. A node speaks for itself alone: its certificate names it.
pub struct AttachmentService(Arc<Control>);

impl AttachmentService {
    /// As a gRPC service.
    pub fn server(control: Arc<Control>) -> AttachmentsServer<Self> {
        AttachmentsServer::new(Self(control))
    }
}

#[tonic::async_trait]
impl Attachments for AttachmentService {
    async fn network(&self, request: Request<wire::NetworkRequest>) -> Result<Response<wire::NetworkResponse>, Status> {
        let network = self.0.network_to_join(&request.get_ref().reference).await.map_err(|e| status(&e))?;
        Ok(Response::new(wire::NetworkResponse { network: Some((&*network).into()) }))
    }

    async fn attach(&self, request: Request<wire::AttachRequest>) -> Result<Response<wire::AttachResponse>, Status> {
        let node = caller(&request)?;
        let place = self.0.attach(&wish(node, request.into_inner())?).await.map_err(|e| refusal(&e))?;
        Ok(Response::new(wire::AttachResponse {
            network: place.network.to_string(),
            addresses: place.addresses.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn detach(&self, request: Request<wire::DetachRequest>) -> Result<Response<wire::DetachResponse>, Status> {
        let node = caller(&request)?;
        let wire::DetachRequest { container, network } = request.into_inner();
        let network = network.map(|id| id.parse::<NetworkId>()).transpose().map_err(|e| invalid("network", &e))?;
        self.0.detach(node, container_id(&container)?, network).await.map_err(|e| status(&e))?;
        Ok(Response::new(wire::DetachResponse {}))
    }

    async fn keep(&self, request: Request<wire::KeepRequest>) -> Result<Response<wire::KeepResponse>, Status> {
        let node = caller(&request)?;
        let places = request.into_inner().places;
        if places.len() > MAX_PLACES {
            return Err(Status::invalid_argument(format!("{} places, the limit is {MAX_PLACES}", places.len())));
        }
        let places = places.into_iter().map(|place| wish(node, place)).collect::<Result<Vec<_>, _>>()?;
        self.0.keep(node, &places).await.map_err(|e| refusal(&e))?;
        Ok(Response::new(wire::KeepResponse {}))
    }
}

fn caller<T>(request: &Request<T>) -> Result<NodeId, Status> {
    let caller = request.extensions().get::<Identity>();
    caller.map(|identity| identity.node).ok_or_else(|| Status::unauthenticated("a certificate is needed"))
}

fn invalid(field: &str, error: &dyn std::error::Error) -> Status {
    Status::invalid_argument(format!("{field}: {error}"))
}

fn container_id(text: &str) -> Result<ContainerId, Status> {
    text.parse().map_err(|e| invalid("container", &e))
}

fn wish(node: NodeId, request: wire::AttachRequest) -> Result<AttachRequest, Status> {
    let wire::AttachRequest { network, container, name, aliases, address, address6 } = request;
    if aliases.len() > MAX_NAMES || aliases.iter().chain([&name, &network]).any(|text| text.len() > MAX_NAME) {
        return Err(Status::invalid_argument(format!("more than {MAX_NAMES} names, or one of over {MAX_NAME} bytes")));
    }
    let address = address.map(|text| text.parse::<Ipv4Addr>()).transpose().map_err(|e| invalid("address", &e))?;
    let address6 = address6.map(|text| text.parse::<Ipv6Addr>()).transpose().map_err(|e| invalid("address6", &e))?;
    Ok(AttachRequest { node, container: container_id(&container)?, name, network, aliases, address, address6 })
}

fn refusal(error: &AttachError) -> Status {
    match error {
        AttachError::NotAttachable(_) => Status::permission_denied(error.to_string()),
        AttachError::Control(error) => status(error),
    }
}

fn status(error: &ControlError) -> Status {
    let text = error.to_string();
    match error {
        ControlError::NotFound { .. } => Status::not_found(text),
        ControlError::InvalidArgument(_) | ControlError::Ambiguous { .. } => Status::invalid_argument(text),
        ControlError::NoLeader | ControlError::NodeUnreachable { .. } => Status::unavailable(text),
        ControlError::Timeout => Status::deadline_exceeded(text),
        ControlError::NotInSwarm
        | ControlError::NotManager
        | ControlError::AlreadyInSwarm
        | ControlError::Locked
        | ControlError::NotLocked
        | ControlError::WrongUnlockKey
        | ControlError::NameConflict(_)
        | ControlError::OutOfSequence
        | ControlError::FailedPrecondition(_)
        | ControlError::Unsupported(_)
        | ControlError::JoinRefused(_) => Status::failed_precondition(text),
        ControlError::Internal { .. } => Status::internal(text),
    }
}
