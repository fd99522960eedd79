//! What a container is connected to, changed while it is there.

use skep_proto::model::ContainerId;
use skep_proto::model::engine::NetworkMode;

use super::{ContainerError, Containers};

impl Containers {
    /// Notes what the container is connected to from now on. The caller has its sandbox follow, or its next start will.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`].
    pub fn set_network(&self, id: ContainerId, network: NetworkMode) -> Result<(), ContainerError> {
        self.entry(id)?.update(|record| record.config.network = network);
        Ok(())
    }
}
