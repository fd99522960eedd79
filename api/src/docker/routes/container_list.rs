//! The list of this node's containers and its filters.

use axum::extract::State;
use serde::Deserialize;
use skep_proto::model::Timestamp;
use skep_proto::model::engine::{Container, ContainerStatus};

use crate::docker::error::ApiError;
use crate::docker::extract::{Filters, Flag, Query};
use crate::docker::spec::{container_config, container_view};
use crate::docker::state::App;
use crate::docker::types::container as json;

#[derive(Deserialize)]
pub(crate) struct ListQuery {
    #[serde(default)]
    all: Flag,
    #[serde(default)]
    size: Flag,
    limit: Option<i64>,
    #[serde(default)]
    filters: Filters,
}

/// `GET /containers/json` (Engine API, Container, "List containers").
pub(crate) async fn list(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Vec<json::ContainerSummary>>, ApiError> {
    let filters = query.filters;
    filters.only(&[
        "ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "name", "network", "publish",
        "since", "status", "volume",
    ])?;
    for word in filters.get("health") {
        if !["none", "starting", "healthy", "unhealthy"].contains(&word.as_str()) {
            return Err(ApiError::bad_request(format!("unrecognised filter value for health: {word}")));
        }
    }
    let limit = query.limit.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    // Asking for a state or a count means all containers.
    let all = query.all.0 || limit.is_some() || !filters.get("status").is_empty() || !filters.get("exited").is_empty();
    let containers = app.engine().containers(all).await?;
    let bounds = Bounds::read(&app, &filters).await?;
    let ancestors = ancestors(&app, &filters).await;
    let now = (app.local.clock)();
    let mut shown = Vec::new();
    for container in &containers {
        if matches(container, &filters, &bounds, &ancestors)? {
            let size = if query.size.0 { image_size(&app, container).await } else { None };
            shown.push(container_view::summary(container, now, size));
        }
        if limit.is_some_and(|n| shown.len() == n) {
            break;
        }
    }
    Ok(axum::Json(shown))
}

/// Bytes of the image's layers; what the container wrote itself is not counted.
async fn image_size(app: &App, container: &Container) -> Option<u64> {
    app.engine().image(&container.image_id).await.ok().map(|image| image.size)
}

/// Ids of the images that `ancestor` names. One that does not exist fits no container.
async fn ancestors(app: &App, filters: &Filters) -> Vec<(String, Option<String>)> {
    let mut ids = Vec::new();
    for name in filters.get("ancestor") {
        let id = app.engine().image(&name).await.ok().map(|image| image.id);
        ids.push((name, id));
    }
    ids
}

/// Creation times that `before` and `since` name.
struct Bounds {
    before: Option<Timestamp>,
    since: Option<Timestamp>,
}

impl Bounds {
    async fn read(app: &App, filters: &Filters) -> Result<Self, ApiError> {
        let mut bounds = Self { before: None, since: None };
        if let Some(reference) = filters.get("before").first() {
            bounds.before = Some(app.engine().container(reference).await?.created_at);
        }
        if let Some(reference) = filters.get("since").first() {
            bounds.since = Some(app.engine().container(reference).await?.created_at);
        }
        Ok(bounds)
    }
}

fn matches(
    container: &Container,
    filters: &Filters,
    bounds: &Bounds,
    ancestors: &[(String, Option<String>)],
) -> Result<bool, ApiError> {
    let (config, state) = (&container.config, &container.state);
    for key in ["publish", "expose"] {
        for value in filters.get(key) {
            container_config::port(&value)?;
        }
    }
    let published: Vec<_> = container.ports.iter().filter_map(|p| Some((p.host_port?, p.protocol))).collect();
    let exposed: Vec<_> = container.exposed.iter().map(|(protocol, port)| (*port, *protocol)).collect();
    let names = filters.patterns("name")?;
    let holds = |list: &[_], text: &str| container_config::port(text).is_ok_and(|wanted| list.contains(&wanted));
    Ok(filters.any("id", |id| config.id.to_string().starts_with(id))
        // Docker takes names with and without their slash.
        && (names.fit(&config.name) || names.fit(&format!("/{}", config.name)))
        && filters.any("status", |status| state.status.as_str() == status)
        && filters.any("exited", |code| state.status == ContainerStatus::Exited && code.parse() == Ok(state.exit_code))
        && filters.any("health", |word| container_view::health_word(container) == word)
        && filters.labels("label", &container.process.labels)
        && filters.any("network", |n| container.networks.iter().any(|e| e.network == n || e.network_id.starts_with(n)))
        && filters.any("volume", |v| container.mounts.iter().any(|m| m.name == v || m.target == v))
        && filters.any("publish", |text| holds(&published, text))
        && filters.any("expose", |text| holds(&exposed, text))
        && filters.flag("is-task")?.is_none_or(|wanted| config.task.is_some() == wanted)
        && bounds.before.is_none_or(|at| container.created_at < at)
        && bounds.since.is_none_or(|at| container.created_at > at)
        && (ancestors.is_empty()
            || ancestors
                .iter()
                .any(|(name, id)| id.as_deref() == Some(container.image_id.as_str()) || config.spec.image == *name)))
}
