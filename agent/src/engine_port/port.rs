//! The port itself: each call goes to the part that does it.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use ipnet::IpNet;
use skep_api::ports::control::Reference;
use skep_api::ports::engine::{
    AttachStreams, Attached, Created, Distribution, Engine, EngineError, EngineInfo, NewVolume, TerminalSize,
    WaitCondition, WaitHandle,
};
use skep_api::ports::events::EventFeed;
use skep_engine::images::Import;
use skep_proto::model::Network;
use skep_proto::model::container::RegistryAuth;
use skep_proto::model::doctor::{Question, Report};
use skep_proto::model::engine::{
    Container, ContainerConfig, ExecConfig, ExecState, Image, LocalNetwork, LogLine, LogQuery, NetworkEndpoint,
    PullProgress, Volume,
};

use super::{NodeEngine, errors};

impl NodeEngine {
    /// Runs what must not stop halfway when the client hangs up, which drops the call's future.
    async fn to_the_end<T, F>(&self, work: impl FnOnce(Self) -> F) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        match tokio::spawn(work(self.clone())).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => Err(errors::internal("the daemon stops", error)),
        }
    }
}

#[async_trait]
impl Engine for NodeEngine {
    fn events(&self) -> EventFeed {
        self.inner.events.feed()
    }

    async fn info(&self) -> Result<EngineInfo, EngineError> {
        self.describe().await
    }

    async fn doctor(&self, question: Question) -> Result<Report, EngineError> {
        Ok(self.examine(&question).await)
    }

    async fn containers(&self, all: bool) -> Result<Vec<Container>, EngineError> {
        self.list_containers(all).await
    }

    async fn container(&self, reference: &Reference) -> Result<Container, EngineError> {
        self.show_container(self.find(reference)?).await
    }

    async fn create(&self, config: ContainerConfig) -> Result<Created, EngineError> {
        self.to_the_end(|this| async move { this.create_container(config).await }).await
    }

    async fn start(&self, reference: &Reference) -> Result<bool, EngineError> {
        let id = self.find(reference)?;
        self.to_the_end(|this| async move { this.start_container(id).await }).await
    }

    async fn stop(&self, reference: &Reference, signal: Option<i32>, grace: Option<u64>) -> Result<bool, EngineError> {
        let id = self.find(reference)?;
        self.to_the_end(|this| async move { this.stop_container(id, signal, grace).await }).await
    }

    async fn restart(&self, reference: &Reference, signal: Option<i32>, grace: Option<u64>) -> Result<(), EngineError> {
        let id = self.find(reference)?;
        self.to_the_end(|this| async move { this.restart_container(id, signal, grace).await }).await?;
        self.tell_of_container(id, "restart");
        Ok(())
    }

    async fn kill(&self, reference: &Reference, signal: i32) -> Result<(), EngineError> {
        let id = self.find(reference)?;
        self.to_the_end(|this| async move { this.kill_container(id, signal).await }).await
    }

    async fn pause(&self, reference: &Reference, paused: bool) -> Result<(), EngineError> {
        let id = self.find(reference)?;
        let pause =
            |this: Self| async move { this.inner.containers.pause(id, paused).await.map_err(errors::container) };
        self.to_the_end(pause).await
    }

    async fn rename(&self, reference: &Reference, name: &str) -> Result<(), EngineError> {
        let id = self.find(reference)?;
        let name = name.to_owned();
        self.to_the_end(|this| async move {
            this.rename_container(id, &name)?;
            this.announce_name(id).await
        })
        .await
    }

    async fn remove(&self, reference: &Reference, force: bool, volumes: bool) -> Result<(), EngineError> {
        let id = self.find(reference)?;
        self.to_the_end(|this| async move { this.remove_container(id, force, volumes).await }).await
    }

    async fn wait(&self, reference: &Reference, condition: WaitCondition) -> Result<WaitHandle, EngineError> {
        self.wait_for(self.find(reference)?, condition)
    }

    async fn attach(&self, reference: &Reference, request: AttachStreams) -> Result<Attached, EngineError> {
        let id = self.find(reference)?;
        let attached = self.attach_to(id, request).await?;
        self.tell_of_container(id, "attach");
        Ok(attached)
    }

    async fn resize(&self, reference: &Reference, size: TerminalSize) -> Result<(), EngineError> {
        let id = self.find(reference)?;
        self.inner.containers.resize(id, size.height, size.width).await.map_err(errors::container)
    }

    async fn logs(
        &self,
        reference: &Reference,
        query: LogQuery,
    ) -> Result<BoxStream<'static, std::io::Result<LogLine>>, EngineError> {
        self.inner.containers.logs(self.find(reference)?, query).map_err(errors::container)
    }

    async fn top(&self, reference: &Reference) -> Result<(Vec<String>, Vec<Vec<String>>), EngineError> {
        self.inner.containers.top(self.find(reference)?).map_err(errors::container)
    }

    async fn exec_create(&self, reference: &Reference, config: ExecConfig) -> Result<String, EngineError> {
        self.inner.containers.exec_create(self.find(reference)?, config).map_err(errors::container)
    }

    async fn exec_start(
        &self,
        id: &str,
        detach: bool,
        tty: bool,
        size: Option<TerminalSize>,
    ) -> Result<Option<Attached>, EngineError> {
        self.start_exec(id, detach, tty, size).await
    }

    async fn exec_resize(&self, id: &str, size: TerminalSize) -> Result<(), EngineError> {
        self.inner.containers.exec_resize(id, size.height, size.width).await.map_err(errors::container)
    }

    async fn exec(&self, id: &str) -> Result<ExecState, EngineError> {
        self.inner.containers.exec_inspect(id).map_err(errors::container)
    }

    async fn images(&self) -> Result<Vec<Image>, EngineError> {
        Ok(self.inner.images.list())
    }

    async fn image(&self, reference: &Reference) -> Result<Image, EngineError> {
        self.inner.images.get(reference).map_err(errors::image)
    }

    async fn pull(
        &self,
        reference: &Reference,
        platform: Option<String>,
        auth: Option<RegistryAuth>,
    ) -> Result<BoxStream<'static, Result<PullProgress, EngineError>>, EngineError> {
        self.pull_image(reference, platform, auth).await
    }

    async fn load(&self, archive: BoxStream<'static, std::io::Result<Bytes>>) -> Result<Vec<String>, EngineError> {
        let names = self.inner.images.load(archive).await.map_err(errors::image)?;
        names.iter().for_each(|name| self.tell_of_image("load", name));
        Ok(names)
    }

    async fn import(
        &self,
        archive: BoxStream<'static, std::io::Result<Bytes>>,
        reference: Option<String>,
        changes: Vec<String>,
        message: String,
    ) -> Result<String, EngineError> {
        let import = Import { reference, changes, message, platform: None };
        let id = self.inner.images.import(archive, import).await.map_err(errors::image)?;
        self.tell_of_image("import", &id);
        Ok(id)
    }

    async fn tag(&self, reference: &Reference, name: &str) -> Result<(), EngineError> {
        self.inner.images.tag(reference, name).await.map_err(errors::image)?;
        self.tell_of_image("tag", name);
        Ok(())
    }

    async fn remove_image(
        &self,
        reference: &Reference,
        force: bool,
    ) -> Result<(Vec<String>, Vec<String>), EngineError> {
        let reference = reference.to_owned();
        self.to_the_end(|this| async move { this.delete_image(&reference, force).await }).await
    }

    async fn login(&self, server: &str, username: &str, password: &str) -> Result<String, EngineError> {
        self.inner.images.login(server, username, password).await.map_err(errors::image)
    }

    async fn distribution(
        &self,
        reference: &Reference,
        auth: Option<RegistryAuth>,
    ) -> Result<Distribution, EngineError> {
        self.ask_registry(reference, auth).await
    }

    async fn volumes(&self) -> Result<Vec<Volume>, EngineError> {
        Ok(self.inner.volumes.list())
    }

    async fn volume(&self, name: &str) -> Result<Volume, EngineError> {
        self.inner.volumes.get(name).map_err(errors::volume)
    }

    async fn create_volume(&self, volume: NewVolume) -> Result<Volume, EngineError> {
        self.make_volume(volume).await
    }

    async fn remove_volume(&self, name: &str, force: bool) -> Result<(), EngineError> {
        let name = name.to_owned();
        self.to_the_end(|this| async move { this.delete_volume(&name, force).await }).await
    }

    async fn networks(&self) -> Result<Vec<LocalNetwork>, EngineError> {
        self.list_networks().await
    }

    async fn cluster_networks(&self) -> Result<Vec<Network>, EngineError> {
        self.list_cluster_networks().await
    }

    fn is_mesh_removed(&self) -> bool {
        self.inner.cluster.is_mesh_removed()
    }

    fn mesh_subnets(&self) -> Vec<IpNet> {
        self.inner.sandboxes.mesh_subnets()
    }

    async fn create_network(&self, network: LocalNetwork) -> Result<LocalNetwork, EngineError> {
        self.to_the_end(|this| async move { this.make_network(network).await }).await
    }

    async fn connect_network(&self, reference: &Reference, endpoint: NetworkEndpoint) -> Result<(), EngineError> {
        let id = self.find(reference)?;
        self.to_the_end(|this| async move { this.connect(id, endpoint).await }).await
    }

    async fn disconnect_network(
        &self,
        reference: &Reference,
        network: &Reference,
        force: bool,
    ) -> Result<(), EngineError> {
        // A container that is gone, with a network that still shows it: there is nothing to be done, as `force` says.
        let id = match self.find(reference) {
            Err(EngineError::NoSuchContainer(_)) if force => return Ok(()),
            found => found?,
        };
        let network = network.to_owned();
        self.to_the_end(|this| async move { this.disconnect(id, &network).await }).await
    }

    async fn remove_network(&self, reference: &Reference) -> Result<(), EngineError> {
        let reference = reference.to_owned();
        self.to_the_end(|this| async move { this.delete_network(&reference).await }).await
    }
}
