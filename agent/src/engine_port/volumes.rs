//! Volumes, with the containers that use them.

use skep_api::ports::engine::{EngineError, NewVolume};
use skep_engine::volumes;
use skep_proto::model::engine::Volume;

use super::{NodeEngine, errors};

impl NodeEngine {
    /// Ids of the containers that have the volume, whether they run or not.
    pub(super) fn users_of_volume(&self, name: &str) -> Vec<String> {
        let containers = self.inner.containers.list(true).into_iter();
        containers
            .filter(|c| c.mounts.iter().any(|m| m.kind == "volume" && m.name == name))
            .map(|c| c.config.id.to_string())
            .collect()
    }

    pub(super) async fn make_volume(&self, new: NewVolume) -> Result<Volume, EngineError> {
        let NewVolume { name, driver, options, labels } = new;
        let new = volumes::NewVolume { name, driver, options, labels };
        let is_known = self.inner.volumes.get(&new.name).is_ok();
        let volume = self.inner.volumes.create(new).await.map_err(errors::volume)?;
        if !is_known {
            self.tell_of_volume("create", &volume.name, &volume.driver);
        }
        Ok(volume)
    }

    pub(super) async fn delete_volume(&self, name: &str, force: bool) -> Result<(), EngineError> {
        // Not while a container is being started with it.
        let _alone = self.inner.mounting.write().await;
        let users = self.users_of_volume(name);
        let known = self.inner.volumes.get(name).ok();
        self.inner.volumes.remove(name, force, &users).await.map_err(errors::volume)?;
        known.iter().for_each(|volume| self.tell_of_volume("destroy", &volume.name, &volume.driver));
        Ok(())
    }
}
