//! `/networks`: the cluster's and this node's in one list (Engine API, Network).

mod attachments;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use http::StatusCode;
use serde::Deserialize;
use skep_proto::model::engine::{Container, LocalNetwork};
use skep_proto::model::{Network, Timestamp};

use crate::docker::error::ApiError;
use crate::docker::extract::{ApiVersion, Filters, Flag, Json, Query};
use crate::docker::spec::network::{self, NewNetwork};
use crate::docker::state::{App, Local};
use crate::docker::types::network as json;
use crate::ports::control::{ControlError, ObjectFilter};

/// Networks that every node has, under these names and never removed.
pub(crate) const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(attachments::connect))
        .route("/networks/{id}/disconnect", post(attachments::disconnect))
}

/// Routes about this node's containers on networks, for managers that ask another node.
pub(crate) fn of_containers() -> Router<Local> {
    Router::new()
        .route("/networks/{id}/connect", post(attachments::connect_here))
        .route("/networks/{id}/disconnect", post(attachments::disconnect_here))
}

/// The cluster's networks, as far as this node can see them: on one that is no manager, those that it uses.
async fn cluster_networks(app: &App) -> Result<Vec<Arc<Network>>, ApiError> {
    match app.swarm.control() {
        Ok(control) => Ok(control.networks(&ObjectFilter::default()).await?),
        Err(_) => Ok(app.engine().cluster_networks().await?.into_iter().map(Arc::new).collect()),
    }
}

/// The routing mesh that a cluster has from the beginning, where the node is in one, and the operator neither removed it nor made
/// another. `networks` are the cluster's.
async fn ingress(app: &App, networks: &[Arc<Network>]) -> Result<Option<json::Network>, ApiError> {
    if app.node().is_none() {
        return Ok(None);
    }
    let (removed, created) = match app.swarm.control() {
        Ok(control) => {
            let cluster = control.cluster().await?;
            (cluster.ingress_removed, cluster.meta.created_at)
        }
        Err(_) => (app.engine().is_mesh_removed(), Timestamp::default()),
    };
    if removed || networks.iter().any(|network| network.spec.ingress) {
        return Ok(None);
    }
    Ok(Some(network::show_ingress(created, &app.engine().mesh_subnets())))
}

/// A network of the cluster; the routing mesh with the subnets of its links on this node.
fn show_cluster(app: &App, network: &Network, containers: &[&Container]) -> json::Network {
    let shown = network::show_cluster(network, containers);
    match shown.ingress && network.subnets.is_empty() {
        true => network::with_mesh_subnets(shown, &app.engine().mesh_subnets()),
        false => shown,
    }
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    filters: Filters,
}

/// `GET /networks` (Engine API, Network, "List networks").
async fn list(
    State(app): State<App>,
    version: ApiVersion,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Vec<json::Network>>, ApiError> {
    let filters = query.filters;
    filters.only(&["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    let networks = cluster_networks(&app).await?;
    let mut shown: Vec<_> = networks.iter().map(|n| show_cluster(&app, n, &[])).collect();
    shown.extend(ingress(&app, &networks).await?);
    shown.extend(app.engine().networks().await?.iter().map(|n| network::show_local(n, &[])));
    if let Some(dangling) = filters.flag("dangling")? {
        let containers = app.engine().containers(true).await?;
        shown.retain(|n| {
            let used = containers.iter().any(|c| c.networks.iter().any(|e| e.network_id == n.id));
            !is_predefined(n) && used != dangling
        });
    }
    let names = filters.patterns("name")?;
    shown.retain(|n| names.fit(&n.name) && matches(n, &filters));
    Ok(axum::Json(shown.into_iter().map(|n| for_version(n, version)).collect()))
}

fn is_predefined(network: &json::Network) -> bool {
    network.ingress || PREDEFINED.contains(&network.name.as_str())
}

fn matches(network: &json::Network, filters: &Filters) -> bool {
    let empty = std::collections::BTreeMap::new();
    filters.any("id", |id| network.id.starts_with(id))
        && filters.any("driver", |driver| network.driver == driver)
        && filters.any("scope", |scope| network.scope == scope)
        && filters.labels("label", network.labels.as_ref().unwrap_or(&empty))
        && filters.any("type", |kind| match kind {
            "custom" => !is_predefined(network),
            "builtin" => is_predefined(network),
            _ => false,
        })
}

/// From 1.48 on, networks say whether they have IPv4.
fn for_version(mut network: json::Network, version: ApiVersion) -> json::Network {
    network.enable_ipv4 = (version >= ApiVersion(1, 48)).then_some(true);
    network
}

#[derive(Deserialize)]
struct InspectQuery {
    #[serde(default)]
    scope: String,
    #[serde(default)]
    verbose: Flag,
}

/// `GET /networks/{id}` (Engine API, Network, "Inspect a network"). Nodes that use a network of the cluster are known to
/// managers alone, as are its services and their tasks, which `verbose` adds.
async fn inspect(
    State(app): State<App>,
    version: ApiVersion,
    Path(id): Path<String>,
    Query(query): Query<InspectQuery>,
) -> Result<axum::Json<json::Network>, ApiError> {
    let containers = app.engine().containers(true).await?;
    let containers: Vec<&Container> = containers.iter().collect();
    let mut shown = None;
    if query.scope != "swarm" {
        shown = local(&app, &id).await?.map(|n| network::show_local(&n, &containers));
    }
    if shown.is_none() && query.scope != "local" {
        shown = cluster(&app, &id).await?.map(|n| show_cluster(&app, &n, &containers));
        // Of the scope of the cluster alone, dockerd tells only what its managers' record says.
        if query.scope != "swarm"
            && let (Some(shown), Ok(control)) = (&mut shown, app.swarm.control())
        {
            network::show_usage(shown, &control.network_usage(&shown.id).await?, query.verbose.0);
        }
    }
    if shown.is_none() && query.scope != "local" && id == network::INGRESS {
        shown = ingress(&app, &cluster_networks(&app).await?).await?;
    }
    // Services may name the networks that every node has: clients look them up in the cluster first.
    if shown.is_none() && query.scope == "swarm" && PREDEFINED.contains(&id.as_str()) {
        shown = Some(network::show_predefined(&id));
    }
    let shown = shown.ok_or_else(|| ApiError::not_found(format!("network {id} not found")))?;
    Ok(axum::Json(for_version(shown, version)))
}

/// A network of this node, by name, id or a unique prefix of one.
async fn local(app: &App, reference: &str) -> Result<Option<LocalNetwork>, ApiError> {
    let networks = app.engine().networks().await?;
    if let Some(exact) = networks.iter().find(|n| n.name == reference || n.id == reference) {
        return Ok(Some(exact.clone()));
    }
    let mut prefixed = networks.into_iter().filter(|n| n.id.starts_with(reference));
    Ok(prefixed.next().filter(|_| prefixed.next().is_none()))
}

/// A network of the cluster; `None` when there is none, or when this node is no manager and does not use it.
async fn cluster(app: &App, reference: &str) -> Result<Option<Arc<Network>>, ApiError> {
    let Ok(control) = app.swarm.control() else {
        let known = cluster_networks(app).await?;
        let is_meant = |n: &&Arc<Network>| n.spec.annotations.name == reference || n.id.to_string() == reference;
        return Ok(known.iter().find(is_meant).cloned());
    };
    match control.network(reference).await {
        Ok(network) => Ok(Some(network)),
        Err(ControlError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `POST /networks/create` (Engine API, Network, "Create a network").
async fn create(
    State(app): State<App>,
    Json(body): Json<json::NetworkCreate>,
) -> Result<(StatusCode, axum::Json<json::NetworkCreated>), ApiError> {
    let name = body.name.clone();
    let new = network::read(body)?;
    let taken = || ApiError::conflict(format!("network with name {name} already exists"));
    let local = app.engine().networks().await?;
    let cluster = cluster_networks(&app).await?;
    if local.iter().any(|n| n.name == name) || cluster.iter().any(|n| n.spec.annotations.name == name) {
        return Err(taken());
    }
    let id = match new {
        NewNetwork::Cluster(spec) => match app.control()?.create_network(spec).await {
            Err(ControlError::NameConflict(_)) => return Err(taken()),
            result => result?.to_string(),
        },
        NewNetwork::Local(network) => app.engine().create_network(network).await?.id,
    };
    Ok((StatusCode::CREATED, axum::Json(json::NetworkCreated { id, warning: String::new() })))
}

/// `DELETE /networks/{id}` (Engine API, Network, "Remove a network").
async fn remove(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    if PREDEFINED.contains(&id.as_str()) {
        return Err(ApiError::forbidden(format!("{id} is a pre-defined network and cannot be removed")));
    }
    if let Some(network) = local(&app, &id).await? {
        app.engine().remove_network(&network.id).await?;
    } else if let Some(network) = cluster(&app, &id).await? {
        app.control()?.remove_network(&network.id.to_string()).await?;
    } else if id == network::INGRESS && ingress(&app, &cluster_networks(&app).await?).await?.is_some() {
        app.control()?.remove_network(&id).await?;
    } else {
        return Err(ApiError::not_found(format!("network {id} not found")));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /networks/prune` (Engine API, Network, "Delete unused networks"). Those in use are refused below, and stay.
async fn prune(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<json::NetworksPruned>, ApiError> {
    let filters = query.filters;
    filters.only(&["label"])?;
    let containers = app.engine().containers(true).await?;
    let unused = |id: &str| !containers.iter().any(|c| c.networks.iter().any(|e| e.network_id == id));
    let mut deleted = Vec::new();
    for network in cluster_networks(&app).await? {
        let (id, spec) = (network.id.to_string(), &network.spec);
        let wanted = !spec.ingress && filters.labels("label", &spec.annotations.labels) && unused(&id);
        if wanted && app.control()?.remove_network(&id).await.is_ok() {
            deleted.push(spec.annotations.name.clone());
        }
    }
    for network in app.engine().networks().await? {
        let wanted = !PREDEFINED.contains(&network.name.as_str())
            && filters.labels("label", &network.labels)
            && unused(&network.id);
        if wanted && app.engine().remove_network(&network.id).await.is_ok() {
            deleted.push(network.name);
        }
    }
    Ok(axum::Json(json::NetworksPruned { networks_deleted: (!deleted.is_empty()).then_some(deleted) }))
}
