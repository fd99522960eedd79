//! `/exec` (Engine API, Exec).

use axum::Router;
use axum::extract::{FromRequest, Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use http::StatusCode;
use hyper::upgrade::OnUpgrade;
use serde::Deserialize;
use skep_proto::model::engine::{ExecConfig, Output, OutputStream};

use crate::docker::detach::Detach;
use crate::docker::error::ApiError;
use crate::docker::extract::{ApiVersion, Json, OptionalJson, Query};
use crate::docker::spec::refuse;
use crate::docker::state::Local;
use crate::docker::stream::{self, Hijack};
use crate::docker::types::container as json;
use crate::ports::EngineError;
use crate::ports::engine::{Attached, TerminalSize};

pub(crate) fn routes() -> Router<Local> {
    Router::new()
        .route("/containers/{id}/exec", post(create))
        .route("/exec/{id}/start", post(start))
        .route("/exec/{id}/json", get(inspect))
        .route("/exec/{id}/resize", post(resize))
}

/// `POST /containers/{id}/exec` (Engine API, Exec, "Create an exec instance").
async fn create(
    State(local): State<Local>,
    Path(id): Path<String>,
    Json(body): Json<json::ExecCreate>,
) -> Result<(StatusCode, axum::Json<json::ExecCreated>), ApiError> {
    // Whether the client stays is said again at the start.
    let rest = body.rest.into_iter().filter(|(k, _)| !["Detach", "ConsoleSize", "Container"].contains(&k.as_str()));
    refuse("ExecConfig", &rest.collect())?;
    if body.cmd.0.is_empty() {
        return Err(ApiError::bad_request("No exec command specified"));
    }
    Detach::parse(&body.detach_keys)?;
    let config = ExecConfig {
        command: body.cmd.0,
        env: body.env,
        user: body.user,
        dir: body.working_dir,
        tty: body.tty,
        privileged: body.privileged,
        attach_stdin: body.attach_stdin,
        attach_stdout: body.attach_stdout,
        attach_stderr: body.attach_stderr,
        detach_keys: body.detach_keys,
    };
    let id = local.engine.exec_create(&id, config).await?;
    Ok((StatusCode::CREATED, axum::Json(json::ExecCreated { id })))
}

/// `POST /exec/{id}/start` (Engine API, Exec, "Start an exec instance"). The body is JSON; what follows is the stream.
async fn start(
    State(local): State<Local>,
    version: ApiVersion,
    Path(id): Path<String>,
    mut request: Request,
) -> Result<Response, ApiError> {
    // Taken before the body is read, which consumes the request.
    let upgrade = request.headers().contains_key(http::header::UPGRADE);
    let upgrade: Option<OnUpgrade> = upgrade.then(|| hyper::upgrade::on(&mut request));
    let OptionalJson(body) = OptionalJson::<json::ExecStart>::from_request(request, &()).await?;
    let state = local.engine.exec(&id).await?;
    let detach = Detach::parse(&state.config.detach_keys)?;
    let size = body
        .console_size
        .map(|[height, width]| TerminalSize { height, width })
        .filter(|size| *size != TerminalSize::default());
    let attached = match local.engine.exec_start(&id, body.detach, body.tty, size).await {
        Ok(Some(attached)) => attached,
        Ok(None) => return Ok(StatusCode::OK.into_response()),
        // dockerd takes the connection over before it starts: who is attached reads the reason, and asks for the code.
        Err(EngineError::StartFailed(reason)) if !body.detach => said(&reason, state.config.tty),
        Err(error) => return Err(error.into()),
    };
    let hijack = upgrade.map_or_else(|| Hijack::Body(axum::body::Body::empty()), Hijack::Upgrade);
    Ok(stream::connect(hijack, attached, detach, version, &local.pumps))
}

/// A process that said one line and ended.
fn said(line: &str, tty: bool) -> Attached {
    let bytes = bytes::Bytes::from(format!("{line}\r\n"));
    let output = Output { stream: OutputStream::Stdout, bytes };
    Attached { tty, input: None, output: futures_util::stream::iter([Ok(output)]).boxed() }
}

/// `GET /exec/{id}/json` (Engine API, Exec, "Inspect an exec instance").
async fn inspect(
    State(local): State<Local>,
    Path(id): Path<String>,
) -> Result<axum::Json<json::ExecInspect>, ApiError> {
    let state = local.engine.exec(&id).await?;
    let config = state.config;
    let mut words = config.command.into_iter();
    Ok(axum::Json(json::ExecInspect {
        id: state.id,
        running: state.running,
        exit_code: state.exit_code,
        process_config: json::ExecProcess {
            tty: config.tty,
            entrypoint: words.next().unwrap_or_default(),
            arguments: words.collect(),
            privileged: config.privileged,
            user: config.user,
        },
        open_stdin: config.attach_stdin,
        open_stderr: config.attach_stderr,
        open_stdout: config.attach_stdout,
        can_remove: false,
        container_id: state.container.to_string(),
        detach_keys: config.detach_keys,
        pid: state.pid,
    }))
}

#[derive(Deserialize)]
struct ResizeQuery {
    h: u16,
    w: u16,
}

/// `POST /exec/{id}/resize` (Engine API, Exec, "Resize an exec instance").
async fn resize(
    State(local): State<Local>,
    Path(id): Path<String>,
    Query(query): Query<ResizeQuery>,
) -> Result<(), ApiError> {
    Ok(local.engine.exec_resize(&id, TerminalSize { height: query.h, width: query.w }).await?)
}
