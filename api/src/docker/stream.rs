//! Answers that are streams: hijacked connections, frames of logs, lines of JSON.

use std::io;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt};
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderValue, StatusCode};
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use skep_proto::model::engine::Output;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::task::TaskTracker;

use super::detach::Detach;
use super::extract::ApiVersion;
use super::stdcopy::{self, Kind};
use crate::ports::engine::Attached;

const RAW: HeaderValue = HeaderValue::from_static("application/vnd.docker.raw-stream");
const MULTIPLEXED: HeaderValue = HeaderValue::from_static("application/vnd.docker.multiplexed-stream");
/// From this version on, streams of frames have a content type of their own, and logs have one at all.
const FRAMES_NAMED: ApiVersion = ApiVersion(1, 42);
/// Bytes read at a time from a client.
const CHUNK: usize = 32 << 10;

/// How the client wants to talk.
pub(crate) enum Hijack {
    /// It asked for an upgrade: 101, then bytes both ways.
    Upgrade(OnUpgrade),
    /// It did not: 200, output as the answer's body, input from the request's body.
    Body(Body),
}

impl Hijack {
    /// Takes the connection of a request whose body is the client's input.
    pub(crate) fn of(mut request: Request) -> Self {
        if request.headers().contains_key(UPGRADE) {
            Self::Upgrade(hyper::upgrade::on(&mut request))
        } else {
            Self::Body(request.into_body())
        }
    }
}

/// Connects the client to a process. With a terminal the bytes go as they are, else in frames.
pub(crate) fn connect(
    hijack: Hijack,
    attached: Attached,
    detach: Detach,
    version: ApiVersion,
    pumps: &TaskTracker,
) -> Response {
    let kind = if attached.tty || version < FRAMES_NAMED { RAW } else { MULTIPLEXED };
    let Attached { tty, input, output } = attached;
    let output = encode(output, tty);
    let detach = if tty { detach } else { Detach::never() };
    match hijack {
        Hijack::Upgrade(upgrade) => {
            pumps.spawn(async move {
                match upgrade.await {
                    Ok(connection) => {
                        let (reader, writer) = tokio::io::split(TokioIo::new(connection));
                        pump(reader, writer, input, output, detach).await;
                    }
                    Err(error) => tracing::debug!(%error, "the client left before the stream began"),
                }
            });
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.extensions_mut().insert(ReasonPhrase::from_static(b"UPGRADED"));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, kind);
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
            response
        }
        Hijack::Body(body) => {
            if let Some(input) = input {
                pumps.spawn(copy_body(body, input));
            }
            let mut response = Response::new(Body::from_stream(output));
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
    }
}

/// Frames output, or passes it on as it is when it comes from a terminal.
fn encode(output: BoxStream<'static, io::Result<Output>>, tty: bool) -> BoxStream<'static, io::Result<Bytes>> {
    output
        .map(move |piece| {
            piece.map(|piece| if tty { piece.bytes } else { stdcopy::frame(Kind::Output(piece.stream), &piece.bytes) })
        })
        .boxed()
}

/// Moves bytes both ways until the output ends, the client detaches, or the connection breaks. The end of the client's
/// input closes the process's input only.
async fn pump(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    mut output: BoxStream<'static, io::Result<Bytes>>,
    mut detach: Detach,
) {
    let to_client = async {
        while let Some(piece) = output.next().await {
            let Ok(piece) = piece else { break };
            if writer.write_all(&piece).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
    };
    let from_client = async {
        let mut input = input;
        let mut buffer = BytesMut::with_capacity(CHUNK);
        loop {
            buffer.clear();
            match reader.read_buf(&mut buffer).await {
                Ok(0) => {
                    if let Some(mut input) = input.take() {
                        // The process may be gone: then nobody needs to hear of the end.
                        let _ = input.shutdown().await;
                    }
                    // Keep the other half open until the process ends.
                    std::future::pending::<()>().await;
                }
                Ok(_) => {
                    let (bytes, detached) = detach.feed(&buffer);
                    if let Some(sink) = &mut input
                        && (sink.write_all(&bytes).await.is_err() || sink.flush().await.is_err())
                    {
                        input = None;
                    }
                    if detached {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    };
    tokio::select! {
        () = to_client => {}
        () = from_client => {}
    }
    let _ = writer.shutdown().await;
}

/// Moves a request's body into a process's input.
async fn copy_body(body: Body, mut input: Box<dyn AsyncWrite + Send + Unpin>) {
    let mut chunks = body.into_data_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        if input.write_all(&chunk).await.is_err() || input.flush().await.is_err() {
            return;
        }
    }
    let _ = input.shutdown().await;
}

/// Lines of a log as the answer's body: raw for a terminal, else one frame a line.
pub(crate) fn logs(lines: BoxStream<'static, io::Result<Bytes>>, tty: bool, version: ApiVersion) -> Response {
    let mut response = Response::new(Body::from_stream(lines));
    if version >= FRAMES_NAMED {
        response.headers_mut().insert(CONTENT_TYPE, if tty { RAW } else { MULTIPLEXED });
    }
    response
}

/// Values as lines of JSON, each flushed as it comes.
pub(crate) fn ndjson<T: Serialize + 'static>(values: BoxStream<'static, T>) -> Response {
    let lines = values.map(|value| {
        serde_json::to_vec(&value).map_err(io::Error::other).map(|mut line| {
            line.extend_from_slice(b"\r\n");
            Bytes::from(line)
        })
    });
    json_body(Body::from_stream(lines))
}

/// One value that is known later: the headers are sent at once.
pub(crate) fn later<T: Serialize + Send + 'static>(value: impl Future<Output = T> + Send + 'static) -> Response {
    ndjson(futures_util::stream::once(value).boxed())
}

fn json_body(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
