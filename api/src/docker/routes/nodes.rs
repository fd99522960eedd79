//! `/nodes` (Engine API, Node).

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use serde::Deserialize;

use crate::docker::error::ApiError;
use crate::docker::extract::{Filters, Flag, Json, Query, object_version};
use crate::docker::spec::node;
use crate::docker::state::App;
use crate::docker::types::swarm as json;
use crate::ports::control::NodeStatus;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/nodes", get(list))
        .route("/nodes/{id}", get(inspect).delete(remove))
        .route("/nodes/{id}/update", post(update))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    filters: Filters,
}

/// `GET /nodes` (Engine API, Node, "List nodes").
async fn list(State(app): State<App>, Query(query): Query<ListQuery>) -> Result<axum::Json<Vec<json::Node>>, ApiError> {
    let control = app.control()?;
    query.filters.only(&["id", "label", "membership", "name", "node.label", "role"])?;
    let nodes = control.nodes().await?;
    Ok(axum::Json(nodes.iter().filter(|n| matches(n, &query.filters)).map(node::show).collect()))
}

fn matches(status: &NodeStatus, filters: &Filters) -> bool {
    let node = &status.node;
    filters.any("id", |id| node.id.to_string().starts_with(id))
        && filters.any("name", |name| node.description.hostname.starts_with(name))
        && filters.any("role", |role| node::role_word(node.spec.role) == role)
        // Whoever has a certificate has been accepted.
        && filters.any("membership", |m| m == "accepted")
        && filters.labels("label", &node.description.engine_labels)
        && filters.labels("node.label", &node.spec.annotations.labels)
}

/// `GET /nodes/{id}` (Engine API, Node, "Inspect a node").
async fn inspect(State(app): State<App>, Path(id): Path<String>) -> Result<axum::Json<json::Node>, ApiError> {
    let control = app.control()?;
    let status = control.node(&id).await?;
    Ok(axum::Json(node::show(&status)))
}

#[derive(Deserialize)]
struct RemoveQuery {
    #[serde(default)]
    force: Flag,
}

/// `DELETE /nodes/{id}` (Engine API, Node, "Delete a node").
async fn remove(
    State(app): State<App>,
    Path(id): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Result<(), ApiError> {
    Ok(app.control()?.remove_node(&id, query.force.0).await?)
}

#[derive(Deserialize)]
struct UpdateQuery {
    version: Option<String>,
}

/// `POST /nodes/{id}/update` (Engine API, Node, "Update a node").
async fn update(
    State(app): State<App>,
    Path(id): Path<String>,
    Query(query): Query<UpdateQuery>,
    Json(body): Json<json::NodeSpec>,
) -> Result<(), ApiError> {
    let control = app.control()?;
    let version = object_version("node", query.version.as_deref())?;
    let spec = node::read(body)?;
    let node = control.node(&id).await?.node.id;
    Ok(control.update_node(node, version, spec).await?)
}
