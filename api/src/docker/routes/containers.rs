//! `/containers` (Engine API, Container).

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{delete, get, post};
use futures_util::StreamExt;
use http::StatusCode;
use serde::Deserialize;
use skep_proto::model::engine::{ContainerStatus, LogQuery};

use crate::docker::detach::Detach;
use crate::docker::error::ApiError;
use crate::docker::extract::{ApiVersion, Filters, Flag, Query};
use crate::docker::spec::{container_config, container_view};
use crate::docker::state::{App, Local};
use crate::docker::stream::{self, Hijack};
use crate::docker::types::container as json;
use crate::docker::{signal, time};
use crate::ports::engine::{AttachStreams, TerminalSize, WaitCondition};

/// Routes that make containers and speak of all of this node's.
pub(crate) fn collection() -> Router<App> {
    Router::new()
        .route("/containers/create", post(super::container_create::create))
        .route("/containers/json", get(super::container_list::list))
        .route("/containers/prune", post(prune))
}

/// Routes about one container, which any node answers about its own.
pub(crate) fn one() -> Router<Local> {
    Router::new()
        .route("/containers/{id}", delete(remove))
        .route("/containers/{id}/json", get(inspect))
        .route("/containers/{id}/start", post(start))
        .route("/containers/{id}/stop", post(stop))
        .route("/containers/{id}/restart", post(restart))
        .route("/containers/{id}/kill", post(kill))
        .route("/containers/{id}/pause", post(pause))
        .route("/containers/{id}/unpause", post(unpause))
        .route("/containers/{id}/rename", post(rename))
        .route("/containers/{id}/wait", post(wait))
        .route("/containers/{id}/attach", post(attach))
        .route("/containers/{id}/logs", get(logs))
        .route("/containers/{id}/resize", post(resize))
        .route("/containers/{id}/top", get(top))
        .merge(super::unsupported::of_containers())
}

#[derive(Deserialize)]
struct PruneQuery {
    #[serde(default)]
    filters: Filters,
}

/// `POST /containers/prune` (Engine API, Container, "Delete stopped containers").
async fn prune(
    State(app): State<App>,
    Query(query): Query<PruneQuery>,
) -> Result<axum::Json<json::ContainersPruned>, ApiError> {
    query.filters.only(&["label"])?;
    let mut deleted = Vec::new();
    for container in app.engine().containers(true).await? {
        let ended = matches!(
            container.state.status,
            ContainerStatus::Created | ContainerStatus::Exited | ContainerStatus::Dead
        );
        let id = container.config.id.to_string();
        // One that was started meanwhile is refused by the engine, and stays.
        if ended
            && container.config.task.is_none()
            && query.filters.labels("label", &container.process.labels)
            && app.engine().remove(&id, false, false).await.is_ok()
        {
            deleted.push(id);
        }
    }
    Ok(axum::Json(json::ContainersPruned {
        containers_deleted: (!deleted.is_empty()).then_some(deleted),
        space_reclaimed: 0,
    }))
}

#[derive(Deserialize)]
struct RemoveQuery {
    #[serde(default)]
    v: Flag,
    #[serde(default)]
    force: Flag,
    #[serde(default)]
    link: Flag,
}

/// `DELETE /containers/{id}` (Engine API, Container, "Remove a container").
async fn remove(
    State(local): State<Local>,
    Path(id): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Result<StatusCode, ApiError> {
    if query.link.0 {
        return Err(ApiError::not_supported("removing a link"));
    }
    local.engine.remove(&id, query.force.0, query.v.0).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct InspectQuery {
    #[serde(default)]
    size: Flag,
}

/// `GET /containers/{id}/json` (Engine API, Container, "Inspect a container").
async fn inspect(
    State(local): State<Local>,
    Path(id): Path<String>,
    Query(query): Query<InspectQuery>,
) -> Result<axum::Json<json::ContainerInspect>, ApiError> {
    let container = local.engine.container(&id).await?;
    let size = match query.size.0 {
        true => local.engine.image(&container.image_id).await.ok().map(|image| image.size),
        false => None,
    };
    Ok(axum::Json(container_view::inspect(&container, size)))
}

/// 204, or 304 when there was nothing to do.
fn done(changed: bool) -> StatusCode {
    if changed { StatusCode::NO_CONTENT } else { StatusCode::NOT_MODIFIED }
}

/// `POST /containers/{id}/start` (Engine API, Container, "Start a container").
async fn start(State(local): State<Local>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    Ok(done(local.engine.start(&id).await?))
}

#[derive(Deserialize)]
struct StopQuery {
    t: Option<i64>,
    #[serde(default)]
    signal: String,
}

impl StopQuery {
    /// Signal and grace; a negative time waits for ever.
    fn read(&self) -> Result<(Option<i32>, Option<u64>), ApiError> {
        let signal = if self.signal.is_empty() { None } else { Some(read_signal(&self.signal)?) };
        Ok((signal, self.t.map(|t| u64::try_from(t).unwrap_or(u64::MAX))))
    }
}

fn read_signal(text: &str) -> Result<i32, ApiError> {
    signal::parse(text).ok_or_else(|| ApiError::bad_request(format!("Invalid signal: {text}")))
}

/// `POST /containers/{id}/stop` (Engine API, Container, "Stop a container").
async fn stop(
    State(local): State<Local>,
    Path(id): Path<String>,
    Query(query): Query<StopQuery>,
) -> Result<StatusCode, ApiError> {
    let (signal, grace) = query.read()?;
    Ok(done(local.engine.stop(&id, signal, grace).await?))
}

/// `POST /containers/{id}/restart` (Engine API, Container, "Restart a container").
async fn restart(
    State(local): State<Local>,
    Path(id): Path<String>,
    Query(query): Query<StopQuery>,
) -> Result<StatusCode, ApiError> {
    let (signal, grace) = query.read()?;
    local.engine.restart(&id, signal, grace).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct KillQuery {
    #[serde(default)]
    signal: String,
}

/// `POST /containers/{id}/kill` (Engine API, Container, "Kill a container").
async fn kill(
    State(local): State<Local>,
    Path(id): Path<String>,
    Query(query): Query<KillQuery>,
) -> Result<StatusCode, ApiError> {
    let signal = if query.signal.is_empty() { 9 } else { read_signal(&query.signal)? };
    local.engine.kill(&id, signal).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /containers/{id}/pause` (Engine API, Container, "Pause a container").
async fn pause(State(local): State<Local>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    local.engine.pause(&id, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /containers/{id}/unpause` (Engine API, Container, "Unpause a container").
async fn unpause(State(local): State<Local>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    local.engine.pause(&id, false).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct RenameQuery {
    #[serde(default)]
    name: String,
}

/// `POST /containers/{id}/rename` (Engine API, Container, "Rename a container").
async fn rename(
    State(local): State<Local>,
    Path(id): Path<String>,
    Query(query): Query<RenameQuery>,
) -> Result<StatusCode, ApiError> {
    container_config::container_name(&query.name)?;
    local.engine.rename(&id, query.name.trim_start_matches('/')).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct WaitQuery {
    #[serde(default)]
    condition: String,
}

/// `POST /containers/{id}/wait` (Engine API, Container, "Wait for a container"). Clients start the container once they
/// have this answer's headers, so those are sent as soon as the wait is in place.
async fn wait(
    State(local): State<Local>,
    Path(id): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Response, ApiError> {
    let condition = match query.condition.as_str() {
        "" | "not-running" => WaitCondition::NotRunning,
        "next-exit" => WaitCondition::NextExit,
        "removed" => WaitCondition::Removed,
        other => return Err(ApiError::bad_request(format!("invalid condition: \"{other}\""))),
    };
    let waiting = local.engine.wait(&id, condition).await?;
    Ok(stream::later(async move {
        let (status_code, message) = match waiting.await {
            Ok(ended) => ended,
            Err(error) => (-1, ApiError::from(error).message().to_owned()),
        };
        let error = (!message.is_empty()).then_some(json::WaitError { message });
        json::WaitResult { error, status_code }
    }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttachQuery {
    #[serde(default)]
    stdin: Flag,
    #[serde(default)]
    stdout: Flag,
    #[serde(default)]
    stderr: Flag,
    #[serde(default)]
    logs: Flag,
    #[serde(default)]
    stream: Flag,
    #[serde(default)]
    detach_keys: String,
}

/// `POST /containers/{id}/attach` (Engine API, Container, "Attach to a container").
async fn attach(
    State(local): State<Local>,
    version: ApiVersion,
    Path(id): Path<String>,
    Query(query): Query<AttachQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let detach = Detach::parse(&query.detach_keys)?;
    let streams = AttachStreams {
        stdin: query.stdin.0,
        stdout: query.stdout.0,
        stderr: query.stderr.0,
        logs: query.logs.0,
        stream: query.stream.0,
    };
    let attached = local.engine.attach(&id, streams).await?;
    Ok(stream::connect(Hijack::of(request), attached, detach, version, &local.pumps))
}

#[derive(Deserialize)]
struct ResizeQuery {
    h: u16,
    w: u16,
}

/// `POST /containers/{id}/resize` (Engine API, Container, "Resize a container TTY").
async fn resize(
    State(local): State<Local>,
    Path(id): Path<String>,
    Query(query): Query<ResizeQuery>,
) -> Result<(), ApiError> {
    Ok(local.engine.resize(&id, TerminalSize { height: query.h, width: query.w }).await?)
}

#[derive(Deserialize)]
struct TopQuery {
    #[serde(default)]
    ps_args: String,
}

/// `GET /containers/{id}/top` (Engine API, Container, "List processes running inside a container").
async fn top(
    State(local): State<Local>,
    Path(id): Path<String>,
    Query(query): Query<TopQuery>,
) -> Result<axum::Json<json::Top>, ApiError> {
    if !["", "-ef"].contains(&query.ps_args.as_str()) {
        return Err(ApiError::not_supported(format!("ps_args {}", query.ps_args)));
    }
    let (titles, processes) = local.engine.top(&id).await?;
    Ok(axum::Json(json::Top { processes, titles }))
}

/// Query of every kind of logs.
#[derive(Deserialize)]
pub(crate) struct LogsQuery {
    #[serde(default)]
    stdout: Flag,
    #[serde(default)]
    stderr: Flag,
    #[serde(default)]
    pub follow: Flag,
    #[serde(default)]
    pub timestamps: Flag,
    #[serde(default)]
    pub details: Flag,
    #[serde(default)]
    tail: String,
    #[serde(default)]
    since: String,
    #[serde(default)]
    until: String,
}

impl LogsQuery {
    /// Which lines are wanted.
    ///
    /// # Errors
    /// 400 when no stream is, or a time is none.
    pub(crate) fn read(&self) -> Result<LogQuery, ApiError> {
        if !self.stdout.0 && !self.stderr.0 {
            return Err(ApiError::bad_request("Bad parameters: you must choose at least one stream"));
        }
        let moment = |text: &str| time::parse_moment(text).map_err(ApiError::bad_request);
        Ok(LogQuery {
            stdout: self.stdout.0,
            stderr: self.stderr.0,
            follow: self.follow.0,
            // As in Docker, what is no number means all.
            tail: self.tail.parse().ok(),
            since_nanos: moment(&self.since)?,
            until_nanos: moment(&self.until)?,
        })
    }
}

/// `GET /containers/{id}/logs` (Engine API, Container, "Get container logs").
async fn logs(
    State(local): State<Local>,
    version: ApiVersion,
    Path(id): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let wanted = query.read()?;
    let tty = local.engine.container(&id).await?.config.spec.tty;
    let lines = local.engine.logs(&id, wanted).await?;
    let (stamps, details) = (query.timestamps.0, query.details.0);
    // No attributes are configured for log lines: details are an empty word.
    let frames = lines.map(move |line| line.map(|line| super::logs::encode(&line, stamps, details.then_some(""), tty)));
    Ok(stream::logs(frames.boxed(), tty, version))
}
