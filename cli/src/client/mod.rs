//! A client of the Docker Engine API over a unix socket.

use std::path::PathBuf;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

/// Version of the Engine API that the client speaks.
pub const API_VERSION: &str = "v1.50";

/// An answer that is not a success.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// The daemon's words.
    pub message: String,
}

/// Speaks to one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon behind that socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Sends a request; the answer's body is still to be read. Dropping the guard ends the connection.
    async fn begin(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> anyhow::Result<(Response<Incoming>, AbortOnDropHandle<hyper::Result<()>>)> {
        let stream = UnixStream::connect(&self.socket).await.with_context(|| {
            format!("cannot reach the daemon at {}: is `skep daemon` running?", self.socket.display())
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.context("handshake with the daemon")?;
        let connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let request = Request::builder()
            .method(method)
            .uri(format!("/{API_VERSION}{path}"))
            .header(header::HOST, "skep")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.unwrap_or_default()))
            .context("building a request")?;
        let response = sender.send_request(request).await.context("the daemon closed the connection")?;
        Ok((response, connection))
    }

    /// Sends a request and returns the raw answer, whatever its status.
    pub async fn send(&self, method: Method, path: &str, body: Option<Bytes>) -> anyhow::Result<(StatusCode, Bytes)> {
        let (response, _connection) = self.begin(method, path, body).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await.context("reading the daemon's answer")?.to_bytes();
        Ok((status, bytes))
    }

    /// GET of a stream of JSON lines; each is given to `line` as it comes, until the daemon ends the stream.
    pub async fn follow(&self, path: &str, mut line: impl FnMut(Value)) -> anyhow::Result<()> {
        let (response, _connection) = self.begin(Method::GET, path, None).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.context("reading the daemon's answer")?.into_data() else { continue };
            rest.extend_from_slice(&data);
            while status.is_success()
                && let Some(end) = rest.iter().position(|byte| *byte == b'\n')
            {
                let value = serde_json::from_slice(&rest.split_to(end + 1)).context("the daemon's line is no JSON")?;
                line(value);
            }
        }
        if status.is_success() { Ok(()) } else { Err(refusal(status, &rest).into()) }
    }

    /// Sends a request and returns the body of a successful answer.
    pub async fn call(&self, method: Method, path: &str, body: Option<Bytes>) -> anyhow::Result<Bytes> {
        let (status, bytes) = self.send(method, path, body).await?;
        if status.is_success() {
            return Ok(bytes);
        }
        bail!(refusal(status, &bytes))
    }

    /// GET, decoded.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let bytes = self.call(Method::GET, path, None).await?;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("the daemon's answer to GET {path} is not what was expected"))
    }

    /// POST of a JSON value; the answer as bytes.
    pub async fn post(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Bytes> {
        let body = serde_json::to_vec(body).context("encoding a request")?;
        self.call(Method::POST, path, Some(body.into())).await
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> ApiError {
    let message = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|v| v.get("message").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    ApiError { status, message }
}
