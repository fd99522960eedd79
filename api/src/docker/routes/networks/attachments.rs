//! Containers that join and leave networks. Which node is concerned stands in the body: the container's.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::Value;

use crate::docker::error::ApiError;
use crate::docker::extract::{ApiVersion, Json};
use crate::docker::proxy;
use crate::docker::spec::{container_config, refuse};
use crate::docker::state::{App, Local};
use crate::docker::types::network as json;

/// `POST /networks/{id}/connect` (Engine API, Network, "Connect a container to a network").
pub(super) async fn connect(
    State(app): State<App>,
    version: ApiVersion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Result<Response, ApiError> {
    match proxy::to_node_of(&app, version, &format!("/networks/{id}/connect"), &body).await? {
        Some(answer) => Ok(answer),
        None => connect_here(State(app.local), Path(id), Json(body)).await.map(IntoResponse::into_response),
    }
}

/// `POST /networks/{id}/disconnect` (Engine API, Network, "Disconnect a container from a network").
pub(super) async fn disconnect(
    State(app): State<App>,
    version: ApiVersion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Result<Response, ApiError> {
    match proxy::to_node_of(&app, version, &format!("/networks/{id}/disconnect"), &body).await? {
        Some(answer) => Ok(answer),
        None => disconnect_here(State(app.local), Path(id), Json(body)).await.map(IntoResponse::into_response),
    }
}

/// The same for a container of this node.
pub(super) async fn connect_here(
    State(local): State<Local>,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Result<StatusCode, ApiError> {
    let body: json::NetworkConnect = read(body)?;
    refuse("NetworkConnect", &body.rest)?;
    let endpoint = container_config::wish(&id, body.endpoint_config)?;
    local.engine.connect_network(&body.container, endpoint).await?;
    Ok(StatusCode::OK)
}

/// The same for a container of this node.
pub(super) async fn disconnect_here(
    State(local): State<Local>,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Result<StatusCode, ApiError> {
    let body: json::NetworkDisconnect = read(body)?;
    refuse("NetworkDisconnect", &body.rest)?;
    local.engine.disconnect_network(&body.container, &id, body.force).await?;
    Ok(StatusCode::OK)
}

fn read<T: serde::de::DeserializeOwned>(body: Value) -> Result<T, ApiError> {
    serde_json::from_value(body).map_err(|error| ApiError::bad_request(format!("invalid JSON: {error}")))
}
