//! The routing mesh as a network. Every cluster has one from the beginning, of which the store says nothing; the operator
//! may remove it, and make another with options of its own, as with Docker.

use std::sync::Arc;

use skep_api::ports::control::ControlError;
use skep_proto::model::network::INGRESS_VNI;
use skep_proto::model::{Cluster, Meta, Network, NetworkId, NetworkSpec};

use super::{Control, networks};
use crate::store::{Change, Group, INGRESS, State};

impl Control {
    pub(super) async fn make_ingress(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError> {
        check(&spec)?;
        let id = NetworkId::random(&mut rand::rng());
        self.change_latest_together(|state| creation(state, id, &spec)).await?;
        Ok(id)
    }

    /// Removes the routing mesh, if that is what `reference` names; false if not.
    pub(super) async fn delete_ingress(&self, reference: &str) -> Result<bool, ControlError> {
        if removal(&*self.read().await?, reference)?.is_none() {
            return Ok(false);
        }
        let gone = || ControlError::NotFound { kind: "network", reference: reference.to_owned() };
        self.change_latest_together(|state| Ok(Some(removal(state, reference)?.ok_or_else(gone)?))).await?;
        Ok(true)
    }
}

/// The changes that make a routing mesh. The cluster's record is one of them, and others change it, too.
fn creation(state: &State, id: NetworkId, spec: &NetworkSpec) -> Result<Option<Group>, ControlError> {
    if let Some(present) = present(state) {
        return Err(ControlError::FailedPrecondition(format!(
            "the routing mesh {present} is already present: remove it first (docker network rm {present})"
        )));
    }
    let (vni, subnets) = (Some(INGRESS_VNI), Vec::new());
    let network = Network { id, meta: Meta::default(), spec: spec.clone(), vni, subnets, pending_delete: false };
    let cluster = Cluster { ingress_removed: false, ..(**cluster(state)?).clone() };
    Ok(Some(vec![Change::create(&network), Change::update(&cluster)].into()))
}

/// The changes that remove the routing mesh; `None` if `reference` does not name it.
fn removal(state: &State, reference: &str) -> Result<Option<Group>, ControlError> {
    let named = networks::find(state, reference).ok().filter(|network| network.spec.ingress);
    let is_first = reference == INGRESS && state.ingress().is_none() && present(state).is_some();
    if named.is_none() && !is_first {
        return Ok(None);
    }
    let cluster = Cluster { ingress_removed: true, ..(**cluster(state)?).clone() };
    let network = named.map(|network| Change::delete(&*network));
    let changes: Vec<Change> = network.into_iter().chain([Change::update(&cluster)]).collect();
    Ok(Some(changes.into()))
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use futures_util::FutureExt;
    use skep_proto::model::Annotations;

    use super::super::{Propose, ProposeError, latest};
    use super::*;
    use crate::store::Outcome;
    use crate::world::World;

    /// A log in which somebody else's change of the cluster's record comes before each of the first few of ours.
    struct Crowded {
        world: Mutex<World>,
        others: Mutex<usize>,
    }

    #[async_trait]
    impl Propose for Crowded {
        async fn propose(&self, group: Group) -> Result<Outcome, ProposeError> {
            let mut world = self.world.lock().unwrap();
            let mut others = self.others.lock().unwrap();
            if *others > 0 {
                *others -= 1;
                world.update_cluster(|cluster| cluster.subnet_size -= 1);
            }
            Ok(world.propose(vec![group]).remove(0))
        }
    }

    impl Crowded {
        fn new() -> Self {
            Self { world: Mutex::new(World::new()), others: Mutex::new(0) }
        }

        /// Commits a change while others change the cluster's record.
        async fn commit(
            &self,
            make: impl Fn(&State) -> Result<Option<Group>, ControlError>,
        ) -> Result<Arc<State>, ControlError> {
            *self.others.lock().unwrap() = 3;
            let view = || self.world.lock().unwrap().view();
            latest::commit(self, view(), || std::future::ready(Ok(view())).boxed(), make).await?;
            Ok(view())
        }
    }

    #[tokio::test]
    async fn the_mesh_is_made_and_removed_while_others_change_the_cluster() {
        let log = Crowded::new();
        let state = log.commit(|state| removal(state, INGRESS)).await.unwrap();
        assert_eq!((present(&state), state.cluster().unwrap().subnet_size), (None, 21));
        let annotations = Annotations { name: "front".into(), ..Annotations::default() };
        let spec = NetworkSpec { annotations, ingress: true, ..NetworkSpec::default() };
        let make = |id| creation(&log.world.lock().unwrap().view(), NetworkId(id), &spec);
        assert!(make(8).unwrap().is_some());
        let state = log.commit(|state| creation(state, NetworkId(7), &spec)).await.unwrap();
        assert_eq!((present(&state).as_deref(), state.cluster().unwrap().subnet_size), (Some("front"), 18));
        assert!(matches!(make(8), Err(ControlError::FailedPrecondition(text)) if text.contains("front")));
        assert!(removal(&state, INGRESS).unwrap().is_none(), "it has another name now");
        let state = log.commit(|state| removal(state, "front")).await.unwrap();
        assert_eq!((present(&state), state.cluster().unwrap().subnet_size), (None, 15));
    }
}
