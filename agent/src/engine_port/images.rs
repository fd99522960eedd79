//! Images, with the containers that use them.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use skep_api::ports::engine::{Distribution, EngineError};
use skep_engine::images::ImageUse;
use skep_proto::model::container::RegistryAuth;
use skep_proto::model::engine::PullProgress;

use super::connect::is_live;
use super::{NodeEngine, errors};

impl NodeEngine {
    pub(super) async fn pull_image(
        &self,
        reference: &str,
        platform: Option<String>,
        auth: Option<RegistryAuth>,
    ) -> Result<BoxStream<'static, Result<PullProgress, EngineError>>, EngineError> {
        let progress = self.inner.images.pull(reference, platform.as_deref(), auth.as_ref()).await;
        let progress = progress.map_err(errors::image)?.map(|step| step.map_err(errors::image));
        let (this, reference) = (self.clone(), reference.to_owned());
        let mut failed = false;
        // Told of when the last step was read, so that nobody hears of an image that is not there.
        let end = futures_util::stream::once(async { None });
        let steps = progress.map(Some).chain(end).filter_map(move |step| {
            match &step {
                Some(step) => failed |= step.is_err(),
                None if !failed => this.tell_of_image("pull", &reference),
                None => {}
            }
            std::future::ready(step)
        });
        Ok(steps.boxed())
    }

    pub(super) async fn delete_image(
        &self,
        reference: &str,
        force: bool,
    ) -> Result<(Vec<String>, Vec<String>), EngineError> {
        let usage: Vec<ImageUse> = self
            .inner
            .containers
            .list(true)
            .into_iter()
            .map(|c| ImageUse {
                running: is_live(c.state.status),
                container: c.config.id.to_string(),
                image: c.image_id,
            })
            .collect();
        let (untagged, deleted) = self.inner.images.remove(reference, force, &usage).await.map_err(errors::image)?;
        untagged.iter().for_each(|name| self.tell_of_image("untag", name));
        deleted.iter().for_each(|id| self.tell_of_image("delete", id));
        Ok((untagged, deleted))
    }

    pub(super) async fn ask_registry(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<Distribution, EngineError> {
        let found = self.inner.images.distribution(reference, auth.as_ref()).await.map_err(errors::image)?;
        Ok(Distribution {
            digest: found.digest,
            media_type: found.media_type,
            size: found.size,
            platforms: found.platforms,
        })
    }
}
