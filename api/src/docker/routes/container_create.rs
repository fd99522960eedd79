//! Making a container: what the engine and the image must say first.

use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use skep_proto::model::engine::{NetworkMode, PortBinding};

use crate::docker::error::ApiError;
use crate::docker::extract::{Json, Query};
use crate::docker::names;
use crate::docker::spec::container_config;
use crate::docker::state::App;
use crate::docker::types::container as json;
use crate::ports::EngineError;

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
    let created = match app.engine().create(new.config.clone()).await {
        // A drawn name may be taken: draw a longer one.
        Err(EngineError::Conflict(_)) if query.name.is_empty() => {
            new.config.name = names::draw(id, 1);
            app.engine().create(new.config).await
        }
        result => result,
    };
    let created = created?;
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
            ports.push(PortBinding { protocol, container_port, host_ip: None, host_port: None, host_port_last: None });
        }
    }
    Ok(())
}
