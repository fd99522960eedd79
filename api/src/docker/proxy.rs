//! Requests about containers of other nodes: the whole exchange goes to the node that has the container.
//!
//! ```text
//! client -> middleware: does this node's engine know it? -> its own routes
//!                       else ControlPlane::locate_container -> open_engine(node) -> that node's local routes
//! ```
//!
//! Upgrades, half-closed connections and streams pass through unchanged. A request is sent once, never repeated.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::HOST;
use http::{HeaderValue, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use skep_proto::model::{ContainerId, NodeId};
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use super::extract::ApiVersion;
use super::state::App;
use crate::ports::{ControlPlane, EngineError};

/// The way to other nodes' engines.
#[derive(Clone, Default)]
pub(crate) struct Remote {
    /// Owns connections to other nodes.
    connections: TaskTracker,
}

impl Remote {
    /// Sends one request to a node's engine.
    ///
    /// # Errors
    /// 503 when the node cannot be reached, 502 when it breaks off.
    pub(crate) async fn send(
        &self,
        control: &dyn ControlPlane,
        node: NodeId,
        request: http::Request<Body>,
    ) -> Result<http::Response<Incoming>, ApiError> {
        let connection = control.open_engine(node).await?;
        let broken = |error: hyper::Error| ApiError::bad_gateway(format!("node {node} broke off: {error}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.map_err(broken)?;
        self.connections.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(node.id = %node, %error, "a connection to an engine ended");
            }
        });
        sender.send_request(request).await.map_err(broken)
    }
}

/// Where a request belongs.
enum Place {
    Here,
    Node(Arc<dyn ControlPlane>, NodeId),
}

/// Lets this node's routes answer, or the node that has the container or exec session.
pub(crate) async fn route(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let mut parts = path.splitn(4, '/').skip(1);
    let (kind, id) = (parts.next(), parts.next().map(decode));
    let place = match (kind, &id) {
        (Some("containers"), Some(id)) => find_container(&app, id).await,
        (Some("exec"), Some(id)) => find_exec(&app, id).await,
        _ => Ok(Place::Here),
    };
    match place {
        Ok(Place::Here) => next.run(request).await,
        Ok(Place::Node(control, node)) => {
            forward(&app, &*control, node, request).await.unwrap_or_else(ApiError::into_response)
        }
        Err(error) => error.into_response(),
    }
}

/// Undoes percent-encoding; what is no text afterwards names nothing.
fn decode(part: &str) -> String {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                bytes.push(value);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

async fn find_container(app: &App, id: &str) -> Result<Place, ApiError> {
    match app.engine().container(id).await {
        Err(EngineError::NoSuchContainer(_)) => elsewhere(app, id).await,
        Ok(_) | Err(_) => Ok(Place::Here),
    }
}

/// Sends a body to the node that has the container that it names, if that is another one.
///
/// # Errors
/// Those of the way there.
pub(crate) async fn to_node_of(
    app: &App,
    version: ApiVersion,
    path: &str,
    body: &serde_json::Value,
) -> Result<Option<Response>, ApiError> {
    let container = body.get("Container").and_then(serde_json::Value::as_str).unwrap_or_default();
    let Place::Node(control, node) = find_container(app, container).await? else { return Ok(None) };
    let request = http::Request::post(format!("/v{version}{path}"))
        .header(HOST, HeaderValue::from_static("engine"))
        .header(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(Body::from(body.to_string()))
        .map_err(|e| ApiError::bad_request(format!("the path is not valid: {e}")))?;
    Ok(Some(app.remote.send(&*control, node, request).await?.map(Body::new)))
}

async fn find_exec(app: &App, id: &str) -> Result<Place, ApiError> {
    match (app.engine().exec(id).await, ContainerId::prefix_of_exec(id)) {
        (Err(EngineError::NoSuchExec(_)), Some(container)) => elsewhere(app, container).await,
        _ => Ok(Place::Here),
    }
}

/// The node of a task's container. What nobody has is for this node's routes to deny.
async fn elsewhere(app: &App, container: &str) -> Result<Place, ApiError> {
    // Only managers know of other nodes.
    let Ok(control) = app.swarm.control() else { return Ok(Place::Here) };
    match control.locate_container(container).await? {
        Some(found) if app.node() != Some(found.node) => Ok(Place::Node(control, found.node)),
        _ => Ok(Place::Here),
    }
}

/// Passes the exchange to `node`: the request, the answer, and what follows an upgrade.
async fn forward(
    app: &App,
    control: &dyn ControlPlane,
    node: NodeId,
    mut request: Request,
) -> Result<Response, ApiError> {
    let client = hyper::upgrade::on(&mut request);
    if let Some(version) = request.extensions().get::<ApiVersion>() {
        let target = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let versioned = format!("/v{version}{target}");
        *request.uri_mut() =
            versioned.parse().map_err(|e| ApiError::bad_request(format!("the path is not valid: {e}")))?;
    }
    request.headers_mut().insert(HOST, HeaderValue::from_static("engine"));
    // Extensions are this server's own matters.
    let (mut parts, body) = request.into_parts();
    parts.extensions = http::Extensions::new();
    let mut response = app.remote.send(control, node, http::Request::from_parts(parts, body)).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let engine = hyper::upgrade::on(&mut response);
        app.remote.connections.spawn(async move {
            if let (Ok(client), Ok(engine)) = tokio::join!(client, engine) {
                let (mut client, mut engine) = (TokioIo::new(client), TokioIo::new(engine));
                // Ends when both ways have ended; each way is closed on its own.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut engine).await;
            }
        });
        // An answer without a body, whose reason phrase clients show.
        return Ok(response.map(|_| Body::empty()));
    }
    Ok(response.map(Body::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_paths_are_decoded_once() {
        assert_eq!(decode("web.1%2Ex"), "web.1.x");
        assert_eq!(decode("%2561"), "%61");
        assert_eq!(decode("%zz%"), "%zz%");
    }
}
