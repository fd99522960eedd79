//! `/volumes` of this node (Engine API, Volume).

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use http::StatusCode;
use serde::Deserialize;
use skep_proto::model::engine::{Container, Volume};

use crate::docker::error::ApiError;
use crate::docker::extract::{ApiVersion, Filters, Flag, Json, Query};
use crate::docker::spec::refuse;
use crate::docker::state::App;
use crate::docker::time::rfc3339;
use crate::docker::types::volume as json;
use crate::ports::engine::NewVolume;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    filters: Filters,
}

/// `GET /volumes` (Engine API, Volume, "List volumes").
async fn list(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<json::VolumeList>, ApiError> {
    let filters = query.filters;
    filters.only(&["dangling", "driver", "label", "name"])?;
    let volumes = app.engine().volumes().await?;
    let dangling = filters.flag("dangling")?;
    let containers = if dangling.is_some() { app.engine().containers(true).await? } else { Vec::new() };
    let names = filters.patterns("name")?;
    let matching = volumes.iter().filter(|volume| {
        names.fit(&volume.name)
            && filters.any("driver", |driver| volume.driver == driver)
            && filters.labels("label", &volume.labels)
            && dangling.is_none_or(|wanted| is_used(volume, &containers) != wanted)
    });
    Ok(axum::Json(json::VolumeList { volumes: matching.map(show).collect(), warnings: None }))
}

fn is_used(volume: &Volume, containers: &[Container]) -> bool {
    containers.iter().any(|c| c.mounts.iter().any(|m| m.kind == "volume" && m.name == volume.name))
}

/// `POST /volumes/create` (Engine API, Volume, "Create a volume").
async fn create(
    State(app): State<App>,
    Json(body): Json<json::VolumeCreate>,
) -> Result<(StatusCode, axum::Json<json::Volume>), ApiError> {
    refuse("VolumeCreate", &body.rest)?;
    let volume = app
        .engine()
        .create_volume(NewVolume {
            name: body.name,
            driver: body.driver,
            options: body.driver_opts,
            labels: body.labels,
        })
        .await?;
    Ok((StatusCode::CREATED, axum::Json(show(&volume))))
}

/// `GET /volumes/{name}` (Engine API, Volume, "Inspect a volume").
async fn inspect(State(app): State<App>, Path(name): Path<String>) -> Result<axum::Json<json::Volume>, ApiError> {
    Ok(axum::Json(show(&app.engine().volume(&name).await?)))
}

#[derive(Deserialize)]
struct RemoveQuery {
    #[serde(default)]
    force: Flag,
}

/// `DELETE /volumes/{name}` (Engine API, Volume, "Remove a volume").
async fn remove(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Result<StatusCode, ApiError> {
    app.engine().remove_volume(&name, query.force.0).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /volumes/prune` (Engine API, Volume, "Delete unused volumes"). From 1.42 on only anonymous ones, unless `all`.
async fn prune(
    State(app): State<App>,
    version: ApiVersion,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<json::VolumesPruned>, ApiError> {
    let filters = query.filters;
    filters.only(&["all", "label"])?;
    let all = filters.flag("all")?.unwrap_or(version < ApiVersion(1, 42));
    let anonymous = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let containers = app.engine().containers(true).await?;
    let mut deleted = Vec::new();
    for volume in app.engine().volumes().await? {
        let wanted = (all || anonymous(&volume.name)) && filters.labels("label", &volume.labels);
        // One that came into use meanwhile is refused by the engine, and stays.
        if wanted && !is_used(&volume, &containers) && app.engine().remove_volume(&volume.name, false).await.is_ok() {
            deleted.push(volume.name);
        }
    }
    Ok(axum::Json(json::VolumesPruned {
        volumes_deleted: (!deleted.is_empty()).then_some(deleted),
        space_reclaimed: 0,
    }))
}

/// Shows a volume.
pub(crate) fn show(volume: &Volume) -> json::Volume {
    let some = |map: &BTreeMap<String, String>| (!map.is_empty()).then(|| map.clone());
    json::Volume {
        created_at: rfc3339(volume.created_at),
        driver: volume.driver.clone(),
        labels: some(&volume.labels),
        mountpoint: volume.mountpoint.display().to_string(),
        name: volume.name.clone(),
        options: some(&volume.options),
        scope: "local",
        usage_data: None,
    }
}
