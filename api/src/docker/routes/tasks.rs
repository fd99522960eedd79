//! `/tasks` (Engine API, Task).

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use serde::Deserialize;
use skep_proto::model::TaskState;

use crate::docker::error::ApiError;
use crate::docker::extract::{Filters, Query};
use crate::docker::spec::task;
use crate::docker::state::App;
use crate::docker::types::task as json;
use crate::ports::control::TaskFilter;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/tasks", get(list))
        .route("/tasks/{id}", get(inspect))
        .route("/tasks/{id}/logs", get(super::logs::task))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    filters: Filters,
}

/// `GET /tasks` (Engine API, Task, "List tasks").
async fn list(State(app): State<App>, Query(query): Query<ListQuery>) -> Result<axum::Json<Vec<json::Task>>, ApiError> {
    let control = app.control()?;
    let filter = read_filter(&query.filters)?;
    if !query.filters.any("runtime", |runtime| runtime == "container") {
        return Ok(axum::Json(Vec::new()));
    }
    Ok(axum::Json(control.tasks(&filter).await?.iter().map(task::show).collect()))
}

/// Reads filters. `_up-to-date` is what clients ask while they wait for an update.
fn read_filter(filters: &Filters) -> Result<TaskFilter, ApiError> {
    filters.only(&["_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"])?;
    let desired = filters
        .get("desired-state")
        .iter()
        .map(|word| {
            let lower = word.to_lowercase();
            TaskState::ALL
                .into_iter()
                .find(|state| state.as_str() == lower)
                .ok_or_else(|| ApiError::bad_request(format!("invalid filter 'desired-state={word}'")))
        })
        .collect::<Result<_, _>>()?;
    Ok(TaskFilter {
        ids: filters.get("id"),
        names: filters.get("name"),
        labels: filters.get("label"),
        services: filters.get("service"),
        nodes: filters.get("node"),
        desired,
        up_to_date: filters.flag("_up-to-date")?.unwrap_or(false),
    })
}

/// `GET /tasks/{id}` (Engine API, Task, "Inspect a task").
async fn inspect(State(app): State<App>, Path(id): Path<String>) -> Result<axum::Json<json::Task>, ApiError> {
    Ok(axum::Json(task::show(&app.control()?.task(&id).await?)))
}
