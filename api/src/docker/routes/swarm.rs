//! `/swarm` (Engine API, Swarm).

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use serde::Deserialize;

use crate::docker::error::ApiError;
use crate::docker::extract::{Flag, Json, Query, object_version};
use crate::docker::spec::cluster;
use crate::docker::state::App;
use crate::docker::types::swarm as json;
use crate::ports::control::Rotations;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/swarm", get(inspect))
        .route("/swarm/init", post(init))
        .route("/swarm/join", post(join))
        .route("/swarm/leave", post(leave))
        .route("/swarm/update", post(update))
        .route("/swarm/unlock", post(unlock))
        .route("/swarm/unlockkey", get(unlock_key))
        .route("/skep/cluster/backup", get(backup))
}

/// `GET /swarm` (Engine API, Swarm, "Inspect swarm").
async fn inspect(State(app): State<App>) -> Result<axum::Json<json::Swarm>, ApiError> {
    let cluster = app.control()?.cluster().await?;
    Ok(axum::Json(cluster::show(&cluster, true)))
}

/// `POST /swarm/init` (Engine API, Swarm, "Initialize a new swarm"). The answer is the node's id as a JSON string.
async fn init(State(app): State<App>, Json(body): Json<json::InitRequest>) -> Result<axum::Json<String>, ApiError> {
    let request = cluster::read_init(body)?;
    Ok(axum::Json(app.swarm.init(request).await?.to_string()))
}

/// `POST /swarm/join` (Engine API, Swarm, "Join an existing swarm").
async fn join(State(app): State<App>, Json(body): Json<json::JoinRequest>) -> Result<(), ApiError> {
    let request = cluster::read_join(body)?;
    Ok(app.swarm.join(request).await?)
}

#[derive(Deserialize)]
struct LeaveQuery {
    #[serde(default)]
    force: Flag,
}

/// `POST /swarm/leave` (Engine API, Swarm, "Leave a swarm").
async fn leave(State(app): State<App>, Query(query): Query<LeaveQuery>) -> Result<(), ApiError> {
    app.swarm.leave(query.force.0).await.map_err(ApiError::leaving)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpdateQuery {
    version: Option<String>,
    #[serde(default)]
    rotate_worker_token: Flag,
    #[serde(default)]
    rotate_manager_token: Flag,
    #[serde(default)]
    rotate_manager_unlock_key: Flag,
}

/// `POST /swarm/update` (Engine API, Swarm, "Update a swarm").
async fn update(
    State(app): State<App>,
    Query(query): Query<UpdateQuery>,
    Json(body): Json<json::SwarmSpec>,
) -> Result<(), ApiError> {
    let control = app.control()?;
    let version = object_version("swarm", query.version.as_deref())?;
    let spec = cluster::read(body)?;
    let rotate = Rotations {
        worker_token: query.rotate_worker_token.0,
        manager_token: query.rotate_manager_token.0,
        unlock_key: query.rotate_manager_unlock_key.0,
    };
    Ok(control.update_cluster(version, spec, rotate).await?)
}

/// `GET /skep/cluster/backup`, skep's own: the cluster's whole state, keys included.
async fn backup(State(app): State<App>) -> Result<Vec<u8>, ApiError> {
    Ok(app.control()?.backup().await?)
}

/// `POST /swarm/unlock` (Engine API, Swarm, "Unlock a locked manager").
async fn unlock(State(app): State<App>, Json(body): Json<json::UnlockRequest>) -> Result<(), ApiError> {
    Ok(app.swarm.unlock(&body.unlock_key).await?)
}

/// `GET /swarm/unlockkey` (Engine API, Swarm, "Get the unlock key"). Empty while managers are not locked.
async fn unlock_key(State(app): State<App>) -> Result<axum::Json<json::UnlockKey>, ApiError> {
    let control = app.control()?;
    let unlock_key = if control.cluster().await?.spec.autolock { control.unlock_key().await? } else { String::new() };
    Ok(axum::Json(json::UnlockKey { unlock_key }))
}
