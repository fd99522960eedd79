//! `/containers` (Engine API, Container).

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{delete, get, post};
use futures_util::StreamExt;
use http::StatusCode;
use serde::Deserialize;
use skep_proto::model::ContainerId;
use skep_proto::model::engine::{Container, ContainerStatus, LogQuery, NetworkMode, PortBinding};

use crate::docker::detach::Detach;
use crate::docker::error::ApiError;
use crate::docker::extract::{ApiVersion, Filters, Flag, Json, Query};
use crate::docker::spec::{container_config, container_view};
use crate::docker::state::{App, Local};
use crate::docker::stream::{self, Hijack};
use crate::docker::types::container as json;
use crate::docker::{names, signal, time};
use crate::ports::control::AttachRequest;
use crate::ports::engine::{AttachStreams, TerminalSize, WaitCondition};
use crate::ports::{ControlPlane, EngineError};

/// Routes that make containers and speak of all of this node's.
pub(crate) fn collection() -> Router<App> {
    Router::new()
        .route("/containers/create", post(create))
        .route("/containers/json", get(list))
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
struct CreateQuery {
    #[serde(default)]
    name: String,
    #[serde(default)]
    platform: String,
}

/// `POST /containers/create` (Engine API, Container, "Create a container").
async fn create(
    State(app): State<App>,
    Query(query): Query<CreateQuery>,
    Json(body): Json<json::ContainerCreate>,
) -> Result<(StatusCode, axum::Json<json::ContainerCreated>), ApiError> {
    if !query.platform.is_empty() {
        check_platform(&app, &query.platform).await?;
    }
    let id = (app.host.draw_id)();
    let drawn = names::draw(id, 0);
    let name = if query.name.is_empty() { &drawn } else { &query.name };
    let mut new = container_config::read(id, name, body)?;
    if let Some(other) = &new.network_of {
        new.config.network = NetworkMode::Container(app.engine().container(other).await?.config.id);
    }
    if new.publish_all {
        publish_exposed(&app, &mut new.config.ports, &new.config.spec.image).await?;
    }
    let joined = join_networks(&app, &mut new.config.network, id, &new.config.name).await?;
    let created = match app.engine().create(new.config.clone()).await {
        // A drawn name may be taken: draw a longer one.
        Err(EngineError::Conflict(_)) if query.name.is_empty() => {
            new.config.name = names::draw(id, 1);
            app.engine().create(new.config).await
        }
        result => result,
    };
    let created = match created {
        Ok(created) => created,
        Err(error) => {
            joined.leave().await;
            return Err(error.into());
        }
    };
    new.warnings.extend(created.warnings);
    let answer = json::ContainerCreated { id: created.id.to_string(), warnings: new.warnings };
    Ok((StatusCode::CREATED, axum::Json(answer)))
}

/// Containers run on this node's own platform.
async fn check_platform(app: &App, platform: &str) -> Result<(), ApiError> {
    let own = app.engine().info().await?.architecture;
    let own = match own.as_str() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let architecture = platform.split('/').nth(1).unwrap_or(own);
    if platform.split('/').next() == Some("linux") && architecture == own {
        return Ok(());
    }
    Err(ApiError::not_supported(format!("the platform {platform} on a node of linux/{own}")))
}

/// `-P`: publishes what the image declares, each port on one that the node chooses.
async fn publish_exposed(app: &App, ports: &mut Vec<PortBinding>, image: &str) -> Result<(), ApiError> {
    for (protocol, container_port) in app.engine().image(image).await?.config.exposed {
        if !ports.iter().any(|p| p.container_port == container_port && p.protocol == protocol) {
            ports.push(PortBinding { protocol, container_port, host_ip: None, host_port: None });
        }
    }
    Ok(())
}

/// Places on the cluster's networks that a container was given before it was made.
#[derive(Default)]
struct Joined(Vec<(std::sync::Arc<dyn ControlPlane>, skep_proto::model::TaskId)>);

impl Joined {
    /// Gives them back.
    async fn leave(self) {
        for (control, task) in self.0 {
            if let Err(error) = control.detach(task).await {
                tracing::warn!(%task, %error, "an attachment is left to its lease");
            }
        }
    }
}

/// Gets addresses for those of the named networks that are the cluster's; the others are this node's.
async fn join_networks(
    app: &App,
    network: &mut NetworkMode,
    container: ContainerId,
    name: &str,
) -> Result<Joined, ApiError> {
    let mut joined = Joined::default();
    let NetworkMode::Networks(wishes) = network else { return Ok(joined) };
    let local = app.engine().networks().await?;
    for wish in wishes {
        if local.iter().any(|n| n.name == wish.network || n.id == wish.network) {
            continue;
        }
        let Some(found) = super::networks::cluster(app, &wish.network).await? else { continue };
        let result = async {
            if !found.spec.attachable {
                return Err(ApiError::forbidden(format!(
                    "Could not attach to network {}: rpc error: code = PermissionDenied desc = network {} not manually \
                     attachable",
                    wish.network, wish.network
                )));
            }
            let node = app.node().ok_or_else(|| ApiError::not_found(format!("network {} not found", wish.network)))?;
            let control = app.control()?;
            let task = control
                .attach(AttachRequest {
                    node,
                    container,
                    name: name.to_owned(),
                    network: found.id,
                    aliases: wish.aliases.clone(),
                    addresses: wish.addresses.clone(),
                })
                .await?;
            Ok((control, task))
        };
        match result.await {
            Ok((control, task)) => {
                wish.network = found.id.to_string();
                wish.addresses = task
                    .attachments
                    .iter()
                    .filter(|a| a.network == found.id)
                    .flat_map(|a| a.addresses.iter().map(ipnet::IpNet::addr))
                    .collect();
                joined.0.push((control, task.id));
            }
            Err(error) => {
                joined.leave().await;
                return Err(error);
            }
        }
    }
    Ok(joined)
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    all: Flag,
    #[serde(default)]
    size: Flag,
    limit: Option<i64>,
    #[serde(default)]
    filters: Filters,
}

/// `GET /containers/json` (Engine API, Container, "List containers").
async fn list(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Vec<json::ContainerSummary>>, ApiError> {
    let filters = query.filters;
    filters.only(&[
        "ancestor", "before", "exited", "expose", "id", "is-task", "label", "name", "network", "publish", "since",
        "status", "volume",
    ])?;
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
    before: Option<skep_proto::model::Timestamp>,
    since: Option<skep_proto::model::Timestamp>,
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
    let holds = |list: &[_], text: &str| container_config::port(text).is_ok_and(|wanted| list.contains(&wanted));
    Ok(filters.any("id", |id| config.id.to_string().starts_with(id))
        && filters.any("name", |name| {
            format!("/{}", config.name).contains(name.trim_start_matches('^').trim_end_matches('$'))
        })
        && filters.any("status", |status| state.status.as_str() == status)
        && filters.any("exited", |code| state.status == ContainerStatus::Exited && code.parse() == Ok(state.exit_code))
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
