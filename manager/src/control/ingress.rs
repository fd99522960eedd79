//! The routing mesh as a network. Every cluster has one from the beginning, of which the store says nothing; the operator
//! may remove it, and make another with options of its own, as with Docker.

use std::sync::Arc;

use skep_api::ports::control::ControlError;
use skep_proto::model::network::INGRESS_VNI;
use skep_proto::model::{Cluster, Meta, Network, NetworkId, NetworkSpec};

use super::{Control, from_proposal, networks, refusal};
use crate::store::{Change, Group, INGRESS, Outcome, State};

impl Control {
    pub(super) async fn make_ingress(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError> {
        check(&spec)?;
        let state = self.read().await?;
        if let Some(present) = present(&state) {
            return Err(ControlError::FailedPrecondition(format!(
                "the routing mesh {present} is already present: remove it first (docker network rm {present})"
            )));
        }
        let id = NetworkId::random(&mut rand::rng());
        let (vni, subnets) = (Some(INGRESS_VNI), Vec::new());
        let network = Network { id, meta: Meta::default(), spec, vni, subnets, pending_delete: false };
        let cluster = Cluster { ingress_removed: false, ..(**cluster(&state)?).clone() };
        self.change_together(vec![Change::create(&network), Change::update(&cluster)]).await?;
        Ok(id)
    }

    /// Removes the routing mesh, if that is what `reference` names; false if not.
    pub(super) async fn delete_ingress(&self, reference: &str) -> Result<bool, ControlError> {
        let state = self.read().await?;
        let named = networks::find(&state, reference).ok().filter(|network| network.spec.ingress);
        let is_first = reference == INGRESS && state.ingress().is_none() && present(&state).is_some();
        if named.is_none() && !is_first {
            return Ok(false);
        }
        let cluster = Cluster { ingress_removed: true, ..(**cluster(&state)?).clone() };
        let network = named.map(|network| Change::delete(&*network));
        self.change_together(network.into_iter().chain([Change::update(&cluster)]).collect()).await?;
        Ok(true)
    }

    async fn change_together(&self, changes: Vec<Change>) -> Result<(), ControlError> {
        match self.parts.proposer.propose(Group::from(changes)).await.map_err(from_proposal)? {
            Outcome::Applied { .. } => Ok(()),
            Outcome::Refused(refusal) => Err(refusal::to_control_error(refusal)),
        }
    }
}

/// Name of the routing mesh that the cluster has now.
fn present(state: &State) -> Option<String> {
    match state.ingress() {
        Some(network) => Some(network.spec.annotations.name.clone()),
        None => state.cluster().is_some_and(|cluster| !cluster.ingress_removed).then(|| INGRESS.to_owned()),
    }
}

fn cluster(state: &State) -> Result<&Arc<Cluster>, ControlError> {
    state.cluster().ok_or(ControlError::NotInSwarm)
}

/// What a network of its own kind cannot have is refused: nobody shall believe that it has it.
fn check(spec: &NetworkSpec) -> Result<(), ControlError> {
    let invalid = |text: &str| Err(ControlError::InvalidArgument(text.into()));
    if spec.attachable {
        return invalid("the routing mesh cannot be attachable: containers do not join it");
    }
    if spec.internal {
        return invalid("the routing mesh cannot be internal: it is what lets others in");
    }
    if !spec.ipam.is_empty() {
        return invalid(
            "the routing mesh has no subnet of its own: its links have addresses of the range that \
             swarm init --infra-subnet names; leave out --subnet, --gateway and --ip-range",
        );
    }
    Ok(())
}
