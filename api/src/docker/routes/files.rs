//! `/secrets` and `/configs` (Engine API, Secret, Config). A secret's content is taken and never shown.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use skep_proto::model::annotations::Annotations;
use skep_proto::model::container::Driver;
use skep_proto::model::secret::{Config, ConfigSpec, Secret, SecretData, SecretSpec};

use crate::docker::error::ApiError;
use crate::docker::extract::{Filters, Json, Query, object_version};
use crate::docker::spec::{refuse, validate};
use crate::docker::state::App;
use crate::docker::types::CreatedId;
use crate::docker::types::service as json_service;
use crate::docker::types::swarm as json;
use crate::ports::control::ObjectFilter;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/secrets", get(list_secrets))
        .route("/secrets/create", post(create_secret))
        .route("/secrets/{id}", get(inspect_secret).delete(remove_secret))
        .route("/secrets/{id}/update", post(update_secret))
        .route("/configs", get(list_configs))
        .route("/configs/create", post(create_config))
        .route("/configs/{id}", get(inspect_config).delete(remove_config))
        .route("/configs/{id}/update", post(update_config))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    filters: Filters,
}

#[derive(Deserialize)]
struct UpdateQuery {
    version: Option<String>,
}

fn read_filter(filters: &Filters) -> Result<ObjectFilter, ApiError> {
    filters.only(&["id", "label", "name", "names"])?;
    let mut names = filters.get("name");
    names.extend(filters.get("names"));
    Ok(ObjectFilter { ids: filters.get("id"), names, labels: filters.get("label"), modes: Default::default() })
}

/// `GET /secrets` (Engine API, Secret, "List secrets").
async fn list_secrets(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Vec<json::File>>, ApiError> {
    let filter = read_filter(&query.filters)?;
    let secrets = app.control()?.secrets(&filter).await?;
    Ok(axum::Json(secrets.iter().map(|s| show_secret(s)).collect()))
}

/// `GET /secrets/{id}` (Engine API, Secret, "Inspect a secret").
async fn inspect_secret(State(app): State<App>, Path(id): Path<String>) -> Result<axum::Json<json::File>, ApiError> {
    let secret = app.control()?.secret(&id).await?;
    Ok(axum::Json(show_secret(&secret)))
}

/// `POST /secrets/create` (Engine API, Secret, "Create a secret").
async fn create_secret(
    State(app): State<App>,
    Json(body): Json<json::FileSpec>,
) -> Result<(StatusCode, axum::Json<CreatedId>), ApiError> {
    let control = app.control()?;
    let id = control.create_secret(read_secret(body)?).await?.to_string();
    Ok((StatusCode::CREATED, axum::Json(CreatedId { id })))
}

/// `POST /secrets/{id}/update` (Engine API, Secret, "Update a secret").
async fn update_secret(
    State(app): State<App>,
    Path(id): Path<String>,
    Query(query): Query<UpdateQuery>,
    Json(body): Json<json::FileSpec>,
) -> Result<(), ApiError> {
    let at = object_version("secret", query.version.as_deref())?;
    Ok(app.control()?.update_secret(&id, at, read_secret(body)?).await?)
}

/// `DELETE /secrets/{id}` (Engine API, Secret, "Delete a secret").
async fn remove_secret(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    app.control()?.remove_secret(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /configs` (Engine API, Config, "List configs").
async fn list_configs(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Vec<json::File>>, ApiError> {
    let filter = read_filter(&query.filters)?;
    let configs = app.control()?.configs(&filter).await?;
    Ok(axum::Json(configs.iter().map(|c| show_config(c)).collect()))
}

/// `GET /configs/{id}` (Engine API, Config, "Inspect a config").
async fn inspect_config(State(app): State<App>, Path(id): Path<String>) -> Result<axum::Json<json::File>, ApiError> {
    let config = app.control()?.config(&id).await?;
    Ok(axum::Json(show_config(&config)))
}

/// `POST /configs/create` (Engine API, Config, "Create a config").
async fn create_config(
    State(app): State<App>,
    Json(body): Json<json::FileSpec>,
) -> Result<(StatusCode, axum::Json<CreatedId>), ApiError> {
    let control = app.control()?;
    let id = control.create_config(read_config(body)?).await?.to_string();
    Ok((StatusCode::CREATED, axum::Json(CreatedId { id })))
}

/// `POST /configs/{id}/update` (Engine API, Config, "Update a config").
async fn update_config(
    State(app): State<App>,
    Path(id): Path<String>,
    Query(query): Query<UpdateQuery>,
    Json(body): Json<json::FileSpec>,
) -> Result<(), ApiError> {
    let at = object_version("config", query.version.as_deref())?;
    Ok(app.control()?.update_config(&id, at, read_config(body)?).await?)
}

/// `DELETE /configs/{id}` (Engine API, Config, "Delete a config").
async fn remove_config(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    app.control()?.remove_config(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn read_secret(body: json::FileSpec) -> Result<SecretSpec, ApiError> {
    let (annotations, data) = read_common("SecretSpec", &body)?;
    Ok(SecretSpec {
        annotations,
        data: SecretData(data),
        driver: body.driver.map(read_driver),
        templating: body.templating.map(read_driver),
    })
}

fn read_config(body: json::FileSpec) -> Result<ConfigSpec, ApiError> {
    let (annotations, data) = read_common("ConfigSpec", &body)?;
    Ok(ConfigSpec { annotations, data, templating: body.templating.map(read_driver) })
}

fn read_common(context: &str, body: &json::FileSpec) -> Result<(Annotations, Bytes), ApiError> {
    refuse(context, &body.rest)?;
    validate::file_name(&body.name)?;
    let data = BASE64_STANDARD
        .decode(&body.data)
        .map_err(|e| ApiError::bad_request(format!("{context}.Data is not base64: {e}")))?;
    Ok((Annotations { name: body.name.clone(), labels: body.labels.clone() }, data.into()))
}

fn read_driver(driver: json_service::Driver) -> Driver {
    Driver { name: driver.name, options: driver.options }
}

fn show_driver(driver: &Driver) -> json_service::Driver {
    json_service::Driver { name: driver.name.clone(), options: driver.options.clone() }
}

fn show_secret(secret: &Secret) -> json::File {
    json::File {
        id: secret.id.to_string(),
        meta: secret.meta.into(),
        spec: json::FileSpec {
            name: secret.spec.annotations.name.clone(),
            labels: secret.spec.annotations.labels.clone(),
            driver: secret.spec.driver.as_ref().map(show_driver),
            templating: secret.spec.templating.as_ref().map(show_driver),
            ..Default::default()
        },
    }
}

fn show_config(config: &Config) -> json::File {
    json::File {
        id: config.id.to_string(),
        meta: config.meta.into(),
        spec: json::FileSpec {
            name: config.spec.annotations.name.clone(),
            labels: config.spec.annotations.labels.clone(),
            data: BASE64_STANDARD.encode(&config.spec.data),
            templating: config.spec.templating.as_ref().map(show_driver),
            ..Default::default()
        },
    }
}
