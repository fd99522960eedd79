//! A client of the Docker Engine API over a unix socket.

pub mod credentials;
mod hijack;
pub mod output;

use std::io;
use std::path::PathBuf;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

pub use hijack::Hijacked;

/// Version of the Engine API that the client speaks.
pub const API_VERSION: &str = "v1.50";

/// What a request carries.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A body that is known whole.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer that is not a success.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// The daemon's words.
    pub message: String,
}

/// Whether the daemon said that there is no such thing.
pub fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ApiError>().is_some_and(|e| e.status == StatusCode::NOT_FOUND)
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

    /// Sends a request on a connection of its own and returns the answer as soon as its headers are there, whatever its
    /// status.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> anyhow::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.with_context(|| {
            format!("cannot reach the daemon at {}: is `skep daemon` running?", self.socket.display())
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.context("handshake with the daemon")?;
        // Lives until the answer is read or dropped, or for the time of an upgrade.
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/{API_VERSION}{path}"))
            .header(header::HOST, "skep")
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).context("building a request")?;
        sender.send_request(request).await.context("the daemon closed the connection")
    }

    /// Sends a request and returns a successful answer, its body still to be read.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> anyhow::Result<Response<Incoming>> {
        checked(self.exchange(method, path, headers, body).await?).await
    }

    /// GET of a stream of JSON lines; each is given to `line` as it comes, until the daemon ends the stream.
    pub async fn follow(&self, path: &str, mut line: impl FnMut(Value)) -> anyhow::Result<()> {
        let mut body = self.open(Method::GET, path, &[], whole(Bytes::new())).await?.into_body();
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.context("reading the daemon's answer")?.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let value = serde_json::from_slice(&rest.split_to(end + 1)).context("the daemon's line is no JSON")?;
                line(value);
            }
        }
        Ok(())
    }

    /// Sends a request and returns the body of a successful answer.
    pub async fn call(&self, method: Method, path: &str, body: Option<Bytes>) -> anyhow::Result<Bytes> {
        collect(self.open(method, path, &[], whole(body.unwrap_or_default())).await?).await
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

/// Reads the whole body.
pub async fn collect(response: Response<Incoming>) -> anyhow::Result<Bytes> {
    Ok(response.into_body().collect().await.context("reading the daemon's answer")?.to_bytes())
}

/// Lets a success (or 304: there was nothing to do) pass, and turns anything else into the daemon's words.
async fn checked(response: Response<Incoming>) -> anyhow::Result<Response<Incoming>> {
    let status = response.status();
    let fine = [StatusCode::SWITCHING_PROTOCOLS, StatusCode::NOT_MODIFIED];
    if status.is_success() || fine.contains(&status) {
        return Ok(response);
    }
    let bytes = collect(response).await?;
    let message = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .and_then(|v| v.get("message").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(&bytes).trim().to_owned());
    bail!(ApiError { status, message })
}

/// A text for one part of a path or for a value of a query.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
