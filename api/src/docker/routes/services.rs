//! `/services` (Engine API, Service).

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use skep_proto::model::ContainerSpec;
use skep_proto::model::service::ServiceSpec;

use crate::credentials::{self, Credentials};
use crate::docker::error::ApiError;
use crate::docker::extract::{Filters, Flag, Json, Query, object_version, registry_auth};
use crate::docker::names;
use crate::docker::spec::{service, validate};
use crate::docker::state::App;
use crate::docker::types::service as json;
use crate::ports::ControlPlane;
use crate::ports::control::{ControlError, ObjectFilter, ServiceUpdate};

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/services", get(list))
        .route("/services/create", post(create))
        .route("/services/{id}", get(inspect).delete(remove))
        .route("/services/{id}/update", post(update))
        .route("/services/{id}/logs", get(super::logs::service))
        .route("/skep/services/{id}/rebalance", post(rebalance))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    filters: Filters,
    #[serde(default)]
    status: Flag,
}

/// `GET /services` (Engine API, Service, "List services").
async fn list(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Vec<json::Service>>, ApiError> {
    let control = app.control()?;
    let filters = query.filters;
    filters.only(&["id", "label", "mode", "name", "runtime"])?;
    if !filters.any("runtime", |runtime| runtime == "container") {
        return Ok(axum::Json(Vec::new()));
    }
    let filter = ObjectFilter {
        ids: filters.get("id"),
        names: filters.get("name"),
        labels: filters.get("label"),
        modes: filters.get("mode"),
    };
    let services = control.services(&filter).await?;
    Ok(axum::Json(services.iter().map(|s| service::show_service(s, query.status.0)).collect()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InspectQuery {
    #[serde(default)]
    insert_defaults: Flag,
}

/// `GET /services/{id}` (Engine API, Service, "Inspect a service").
async fn inspect(
    State(app): State<App>,
    Path(id): Path<String>,
    Query(query): Query<InspectQuery>,
) -> Result<axum::Json<json::Service>, ApiError> {
    let status = app.control()?.service(&id).await?;
    let mut shown = service::show_service(&status, false);
    if query.insert_defaults.0 {
        service::insert_defaults(&mut shown.spec);
    }
    Ok(axum::Json(shown))
}

/// `POST /services/create` (Engine API, Service, "Create a service").
async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    Json(mut body): Json<json::ServiceSpec>,
) -> Result<(StatusCode, axum::Json<json::ServiceCreated>), ApiError> {
    let control = app.control()?;
    if body.name.is_empty() {
        // As dockerd, which draws a name for who gives none. A service's name is a DNS label, so no underscore.
        body.name = names::draw((app.host.draw_id)(), 0).replace('_', "-");
    }
    let spec = read(&*control, body, &headers).await?;
    let id = control.create_service(spec).await?.to_string();
    Ok((StatusCode::CREATED, axum::Json(json::ServiceCreated { id, warnings: Vec::new() })))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpdateQuery {
    version: Option<String>,
    #[serde(default)]
    rollback: String,
    #[serde(default)]
    registry_auth_from: String,
}

/// `POST /services/{id}/update` (Engine API, Service, "Update a service").
async fn update(
    State(app): State<App>,
    Path(id): Path<String>,
    Query(query): Query<UpdateQuery>,
    headers: HeaderMap,
    Json(body): Json<json::ServiceSpec>,
) -> Result<axum::Json<json::ServiceUpdated>, ApiError> {
    let control = app.control()?;
    let at = object_version("service", query.version.as_deref())?;
    let rollback = match query.rollback.as_str() {
        "" => false,
        "previous" => true,
        other => return Err(ApiError::bad_request(format!("unrecognized rollback option {other}"))),
    };
    let auth_from_previous = match query.registry_auth_from.as_str() {
        "" | "spec" => false,
        "previous-spec" => true,
        _ => return Err(ApiError::bad_request("unsupported registryAuthFrom value")),
    };
    let spec = read(&*control, body, &headers).await?;
    control.update_service(&id, ServiceUpdate { at, spec, rollback, auth_from_previous }).await?;
    Ok(axum::Json(json::ServiceUpdated { warnings: None }))
}

/// `DELETE /services/{id}` (Engine API, Service, "Delete a service"): 200, not 204.
async fn remove(State(app): State<App>, Path(id): Path<String>) -> Result<(), ApiError> {
    Ok(app.control()?.remove_service(&id).await?)
}

/// `POST /skep/services/{id}/rebalance`: no call of Docker's, which never moves a task that runs.
async fn rebalance(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    app.control()?.rebalance_service(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives the containers the credentials of the request. Docker has one container and one header; for several, ours sends what is
/// for which image in the header of builds. No registry gets what is another's.
fn sign(containers: &mut [ContainerSpec], headers: &HeaderMap) {
    let by_image = headers.get("x-registry-config").and_then(|value| Credentials::of_header(value.to_str().ok()?));
    let given = registry_auth(headers);
    let first = containers.first().map(|first| credentials::split(&first.image).0.to_owned());
    for container in containers {
        let is_of_first = Some(credentials::split(&container.image).0) == first.as_deref();
        container.registry_auth = match &by_image {
            Some(by_image) => by_image.for_image(&container.image),
            None => given.clone().filter(|_| is_of_first),
        };
    }
}

/// Reads a spec, adds the credential of the request, and replaces names of networks by ids (stacks send names).
async fn read(
    control: &dyn ControlPlane,
    body: json::ServiceSpec,
    headers: &HeaderMap,
) -> Result<ServiceSpec, ApiError> {
    let mut spec = service::read(body)?;
    sign(&mut spec.task.containers, headers);
    for network in &mut spec.task.networks {
        match control.network(&network.target).await {
            Ok(found) => network.target = found.id.to_string(),
            // Networks that every node has of its own.
            Err(ControlError::NotFound { .. }) if super::networks::PREDEFINED.contains(&network.target.as_str()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    validate::service(&spec)?;
    Ok(spec)
}
