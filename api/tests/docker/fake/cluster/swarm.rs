//! The face of the cluster that a daemon has without being in one.

use super::*;

/// The world as a daemon holds it.
pub struct Handle(pub Arc<World>);

#[async_trait]
impl Swarm for Handle {
    fn status(&self) -> SwarmStatus {
        let state = self.0.state.lock().unwrap();
        let Some(cluster) = &state.cluster else {
            return SwarmStatus {
                state: LocalState::Inactive,
                node: None,
                address: None,
                is_manager: false,
                error: String::new(),
                managers: Vec::new(),
                counts: None,
            };
        };
        SwarmStatus {
            state: LocalState::Active,
            node: Some(self.0.me),
            address: Some([10, 99, 0, 1].into()),
            is_manager: true,
            error: String::new(),
            managers: vec![(self.0.me, SocketAddr::from(([10, 99, 0, 1], 2377)))],
            counts: Some(ClusterCounts {
                cluster: Arc::new(cluster.clone()),
                nodes: state.nodes.len() as u64,
                managers: state.nodes.values().filter(|n| n.manager.is_some()).count() as u64,
            }),
        }
    }

    fn control(&self) -> Result<Arc<dyn ControlPlane>, ControlError> {
        if self.0.state.lock().unwrap().cluster.is_none() {
            return Err(ControlError::NotInSwarm);
        }
        Ok(self.0.clone())
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, ControlError> {
        if self.0.state.lock().unwrap().cluster.is_some() {
            return Err(ControlError::AlreadyInSwarm);
        }
        self.0.make(request.spec).await;
        Ok(self.0.me)
    }

    async fn join(&self, request: JoinRequest) -> Result<(), ControlError> {
        if self.0.state.lock().unwrap().cluster.is_some() {
            return Err(ControlError::AlreadyInSwarm);
        }
        Err(ControlError::JoinRefused(format!("no manager answers at {}", request.remotes.join(", "))))
    }

    async fn leave(&self, force: bool) -> Result<(), ControlError> {
        let mut state = self.0.state.lock().unwrap();
        if state.cluster.is_none() {
            return Err(ControlError::NotInSwarm);
        }
        if !force {
            return Err(ControlError::FailedPrecondition(
                "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last \
                 manager erases all current state of the swarm. Use `--force` to ignore this message. "
                    .into(),
            ));
        }
        state.cluster = None;
        state.services.clear();
        state.tasks.clear();
        state.networks.clear();
        Ok(())
    }
}
