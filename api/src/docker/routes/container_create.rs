//! Making a container: what the engine, the image and the cluster's networks must say first.

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use skep_proto::model::engine::{NetworkMode, PortBinding};
use skep_proto::model::{ContainerId, TaskId};

use crate::docker::error::ApiError;
use crate::docker::extract::{Json, Query};
use crate::docker::names;
use crate::docker::spec::container_config;
use crate::docker::state::App;
use crate::docker::types::container as json;
use crate::ports::control::AttachRequest;
use crate::ports::{ControlPlane, EngineError};

#[derive(Deserialize)]
pub(crate) struct CreateQuery {
    #[serde(default)]
    name: String,
    #[serde(default)]
    platform: String,
}

/// `POST /containers/create` (Engine API, Container, "Create a container").
pub(crate) async fn create(
    State(app): State<App>,
    Query(query): Query<CreateQuery>,
    Json(body): Json<json::ContainerCreate>,
) -> Result<(StatusCode, axum::Json<json::ContainerCreated>), ApiError> {
    if !query.platform.is_empty() {
        check_platform(&app, &query.platform).await?;
    }
    let id = (app.host.draw_id)();
    let drawn = names::draw(id, 0);
    let name = if query.name.is_empty() { &drawn } else { &query.name };
    let mut new = container_config::read(id, name, body)?;
    if let Some(other) = &new.network_of {
        new.config.network = NetworkMode::Container(app.engine().container(other).await?.config.id);
    }
    if new.publish_all {
        publish_exposed(&app, &mut new.config.ports, &new.config.spec.image).await?;
    }
    let joined = join_networks(&app, &mut new.config.network, id, &new.config.name).await?;
    let created = match app.engine().create(new.config.clone()).await {
        // A drawn name may be taken: draw a longer one.
        Err(EngineError::Conflict(_)) if query.name.is_empty() => {
            new.config.name = names::draw(id, 1);
            app.engine().create(new.config).await
        }
        result => result,
    };
    let created = match created {
        Ok(created) => created,
        Err(error) => {
            joined.leave().await;
            return Err(error.into());
        }
    };
    new.warnings.extend(created.warnings);
    let answer = json::ContainerCreated { id: created.id.to_string(), warnings: new.warnings };
    Ok((StatusCode::CREATED, axum::Json(answer)))
}

/// Containers run on this node's own platform.
async fn check_platform(app: &App, platform: &str) -> Result<(), ApiError> {
    let own = app.engine().info().await?.architecture;
    let own = match own.as_str() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let architecture = platform.split('/').nth(1).unwrap_or(own);
    if platform.split('/').next() == Some("linux") && architecture == own {
        return Ok(());
    }
    Err(ApiError::not_supported(format!("the platform {platform} on a node of linux/{own}")))
}

/// `-P`: publishes what the image declares, each port on one that the node chooses.
async fn publish_exposed(app: &App, ports: &mut Vec<PortBinding>, image: &str) -> Result<(), ApiError> {
    for (protocol, container_port) in app.engine().image(image).await?.config.exposed {
        if !ports.iter().any(|p| p.container_port == container_port && p.protocol == protocol) {
            ports.push(PortBinding { protocol, container_port, host_ip: None, host_port: None });
        }
    }
    Ok(())
}

/// Places on the cluster's networks that a container was given before it was made.
#[derive(Default)]
struct Joined(Vec<(Arc<dyn ControlPlane>, TaskId)>);

impl Joined {
    /// Gives them back.
    async fn leave(self) {
        for (control, task) in self.0 {
            if let Err(error) = control.detach(task).await {
                tracing::warn!(%task, %error, "an attachment is left to its lease");
            }
        }
    }
}

/// Gets addresses for those of the named networks that are the cluster's; the others are this node's.
async fn join_networks(
    app: &App,
    network: &mut NetworkMode,
    container: ContainerId,
    name: &str,
) -> Result<Joined, ApiError> {
    let mut joined = Joined::default();
    let NetworkMode::Networks(wishes) = network else { return Ok(joined) };
    let local = app.engine().networks().await?;
    for wish in wishes {
        if local.iter().any(|n| n.name == wish.network || n.id == wish.network) {
            continue;
        }
        let Some(found) = super::networks::cluster(app, &wish.network).await? else { continue };
        let result = async {
            if !found.spec.attachable {
                return Err(ApiError::forbidden(format!(
                    "Could not attach to network {}: rpc error: code = PermissionDenied desc = network {} not manually \
                     attachable",
                    wish.network, wish.network
                )));
            }
            let node = app.node().ok_or_else(|| ApiError::not_found(format!("network {} not found", wish.network)))?;
            let control = app.control()?;
            let task = control
                .attach(AttachRequest {
                    node,
                    container,
                    name: name.to_owned(),
                    network: found.id,
                    aliases: wish.aliases.clone(),
                    addresses: wish.addresses.clone(),
                })
                .await?;
            Ok((control, task))
        };
        match result.await {
            Ok((control, task)) => {
                wish.network = found.id.to_string();
                wish.addresses = task
                    .attachments
                    .iter()
                    .filter(|a| a.network == found.id)
                    .flat_map(|a| a.addresses.iter().map(ipnet::IpNet::addr))
                    .collect();
                joined.0.push((control, task.id));
            }
            Err(error) => {
                joined.leave().await;
                return Err(error);
            }
        }
    }
    Ok(joined)
}
