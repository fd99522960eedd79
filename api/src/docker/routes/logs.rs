//! Logs of services and tasks (Engine API, Service and Task, "Get … logs"): lines of containers on any node, merged.
//!
//! Without `follow`, lines come in the order of their times. With it, they come as they arrive, and tasks that start
//! later join in. Every task's lines arrive with their times, whatever the client asked for.

use std::collections::BTreeSet;
use std::io;
use std::pin::pin;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{BoxStream, SelectAll, StreamExt};
use http_body_util::BodyExt;
use skep_proto::model::ServiceId;
use skep_proto::model::engine::{LogLine, LogQuery, OutputStream};
use std::sync::Arc;

use super::containers::LogsQuery;
use crate::docker::error::ApiError;
use crate::docker::extract::{ApiVersion, Query};
use crate::docker::state::App;
use crate::docker::stdcopy::{self, Kind};
use crate::docker::{stream, time};
use crate::ports::ControlPlane;
use crate::ports::control::{TaskFilter, TaskView};

/// Lines that wait for a slow client.
const BACKLOG: usize = 256;

/// `GET /services/{id}/logs` (Engine API, Service, "Get service logs").
pub(crate) async fn service(
    State(app): State<App>,
    version: ApiVersion,
    Path(id): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let wanted = query.read()?;
    let control = app.control()?;
    let service = control.service(&id).await?.service;
    let tty = service.spec.task.containers.first().is_some_and(|c| c.tty);
    let gather = Gather { app: app.clone(), control, wanted };
    let lines = if gather.wanted.follow {
        gather.follow(service.id)
    } else {
        let filter = TaskFilter { services: BTreeSet::from([service.id.to_string()]), ..TaskFilter::default() };
        let tasks = gather.control.tasks(&filter).await?;
        gather.merge(tasks).await
    };
    Ok(respond(lines, &query, tty, version))
}

/// `GET /tasks/{id}/logs` (Engine API, Task, "Get task logs").
pub(crate) async fn task(
    State(app): State<App>,
    version: ApiVersion,
    Path(id): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let wanted = query.read()?;
    let control = app.control()?;
    let task = control.task(&id).await?;
    let tty = task.task.spec.containers.first().is_some_and(|c| c.tty);
    let gather = Gather { app: app.clone(), control, wanted };
    let lines = gather.merge(vec![task]).await;
    Ok(respond(lines, &query, tty, version))
}

fn respond(lines: BoxStream<'static, Item>, query: &LogsQuery, tty: bool, version: ApiVersion) -> Response {
    let (stamps, details) = (query.timestamps.0, query.details.0);
    let frames = lines.map(move |item| {
        Ok(match item {
            Item::Line(line, origin) => encode(&line, stamps, details.then_some(&*origin), tty),
            Item::Lost(reason) if tty => Bytes::from(format!("{reason}\r\n")),
            Item::Lost(reason) => stdcopy::frame(Kind::SystemError, reason.as_bytes()),
        })
    });
    stream::logs(frames.boxed(), tty, version)
}

/// One line as clients get it: `[TIME ][DETAILS ]LINE`, framed unless it came from a terminal.
pub(crate) fn encode(line: &LogLine, stamp: bool, details: Option<&str>, tty: bool) -> Bytes {
    let mut text = BytesMut::with_capacity(line.bytes.len() + 160);
    if stamp {
        text.extend_from_slice(time::log_stamp(line.at_nanos).as_bytes());
        text.extend_from_slice(b" ");
    }
    if let Some(details) = details {
        text.extend_from_slice(details.as_bytes());
        text.extend_from_slice(b" ");
    }
    text.extend_from_slice(&line.bytes);
    if tty { text.freeze() } else { stdcopy::frame(Kind::Output(line.stream), &text) }
}

/// A line with where it came from, or why some are missing.
enum Item {
    Line(LogLine, Arc<str>),
    Lost(String),
}

/// What gathers lines.
struct Gather {
    app: App,
    control: Arc<dyn ControlPlane>,
    wanted: LogQuery,
}

impl Gather {
    /// Lines of these tasks in the order of their times.
    async fn merge(self, tasks: Vec<TaskView>) -> BoxStream<'static, Item> {
        let mut sources = Vec::new();
        for task in &tasks {
            let mut source = self.lines(task).await;
            let head = source.next().await;
            sources.push((head, source));
        }
        let next = |mut sources: Vec<(Option<Item>, BoxStream<'static, Item>)>| async move {
            let earliest = sources
                .iter()
                .enumerate()
                .filter_map(|(i, (head, _))| match head {
                    Some(Item::Line(line, _)) => Some((line.at_nanos, i)),
                    // What is lost is told at once.
                    Some(Item::Lost(_)) => Some((0, i)),
                    None => None,
                })
                .min()
                .map(|(_, i)| i)?;
            let (head, source) = &mut sources[earliest];
            let item = std::mem::replace(head, source.next().await)?;
            Some((item, sources))
        };
        futures_util::stream::unfold(sources, next).boxed()
    }

    /// Lines of the service's tasks and of those that start later, as they come. Ends when the client leaves.
    fn follow(self, service: ServiceId) -> BoxStream<'static, Item> {
        let (send, receive) = tokio::sync::mpsc::channel(BACKLOG);
        let gather = Arc::new(self);
        let pumps = gather.app.local.pumps.clone();
        pumps.spawn(async move {
            let mut merged: SelectAll<BoxStream<'static, Item>> = SelectAll::new();
            let mut started = gather.control.started_tasks(service);
            loop {
                tokio::select! {
                    Some(item) = merged.next() => {
                        if send.send(item).await.is_err() {
                            return;
                        }
                    }
                    Some(task) = started.next() => {
                        let gather = Arc::clone(&gather);
                        // A node that is slow to answer does not hold up the lines of the others.
                        let lines = async move { gather.lines(&task).await };
                        merged.push(futures_util::stream::once(lines).flatten().boxed());
                    }
                    () = send.closed() => return,
                }
            }
        });
        tokio_stream::wrappers::ReceiverStream::new(receive).boxed()
    }

    /// Lines of one task, from this node's engine or from the node that has its container.
    async fn lines(&self, view: &TaskView) -> BoxStream<'static, Item> {
        let (Some(node), Some(container)) = (view.task.node, view.container) else {
            return futures_util::stream::empty().boxed();
        };
        let service = view.task.service.map(|s| s.to_string()).unwrap_or_default();
        let task = view.task.id;
        let origin: Arc<str> = format!(
            "com.docker.swarm.node.id={node},com.docker.swarm.service.id={service},com.docker.swarm.task.id={task}"
        )
        .into();
        let tty = view.task.spec.containers.first().is_some_and(|c| c.tty);
        let id = container.to_string();
        let lines = if self.app.node() == Some(node) {
            self.app.engine().logs(&id, self.wanted.clone()).await.map_err(ApiError::from)
        } else {
            self.remote_lines(node, &id, tty).await
        };
        let lost = move |reason: &dyn std::fmt::Display| {
            Item::Lost(format!(
                "warning: incomplete log stream. some logs could not be retrieved for the following reasons: task {task} \
                 on node {node}: {reason}"
            ))
        };
        match lines {
            Ok(lines) => lines
                .map(move |line| match line {
                    Ok(line) => Item::Line(line, origin.clone()),
                    Err(error) => lost(&error),
                })
                .boxed(),
            // A container that is gone took its log with it: the task is history.
            Err(error) if error.message().starts_with("No such container") => futures_util::stream::empty().boxed(),
            Err(error) => futures_util::stream::iter([lost(&error.message())]).boxed(),
        }
    }

    async fn remote_lines(
        &self,
        node: skep_proto::model::NodeId,
        container: &str,
        tty: bool,
    ) -> Result<BoxStream<'static, io::Result<LogLine>>, ApiError> {
        let wanted = &self.wanted;
        let flag = |set: bool| if set { "1" } else { "0" };
        let moment = |nanos: Option<u64>| {
            nanos.map_or_else(String::new, |n| format!("{}.{:09}", n / 1_000_000_000, n % 1_000_000_000))
        };
        let target = format!(
            "/containers/{container}/logs?timestamps=1&stdout={}&stderr={}&follow={}&tail={}&since={}&until={}",
            flag(wanted.stdout),
            flag(wanted.stderr),
            flag(wanted.follow),
            wanted.tail.map_or_else(|| "all".to_owned(), |n| n.to_string()),
            moment(wanted.since_nanos),
            moment(wanted.until_nanos),
        );
        let request = http::Request::get(target)
            .header(http::header::HOST, "engine")
            .body(Body::empty())
            .map_err(|e| ApiError::bad_gateway(e.to_string()))?;
        let response = self.app.remote.send(&*self.control, node, request).await?;
        if !response.status().is_success() {
            let body = axum::body::to_bytes(Body::new(response.into_body()), 64 << 10).await.unwrap_or_default();
            let message = serde_json::from_slice::<serde_json::Value>(&body)
                .ok()
                .and_then(|v| v.get("message")?.as_str().map(str::to_owned));
            return Err(ApiError::bad_gateway(message.unwrap_or_else(|| "its engine refused".to_owned())));
        }
        Ok(parse(response.into_body().into_data_stream().map(|c| c.map_err(io::Error::other)), tty))
    }
}

/// Reads lines back from what [`encode`] wrote with times.
fn parse(
    chunks: impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static,
    tty: bool,
) -> BoxStream<'static, io::Result<LogLine>> {
    let state = (Box::pin(chunks), BytesMut::new());
    futures_util::stream::try_unfold(state, move |(mut chunks, mut buffer)| async move {
        loop {
            let piece = if tty {
                let end = buffer.iter().position(|b| *b == b'\n');
                end.map(|end| (Kind::Output(OutputStream::Stdout), buffer.split_to(end + 1).freeze()))
            } else {
                stdcopy::take(&mut buffer).map_err(io::Error::other)?
            };
            match piece {
                Some((Kind::SystemError, text)) => {
                    return Err(io::Error::other(String::from_utf8_lossy(&text).into_owned()));
                }
                Some((Kind::Output(stream), text)) => return Ok(Some((stamped(stream, &text), (chunks, buffer)))),
                None => {}
            }
            let mut chunks_now = pin!(&mut chunks);
            match chunks_now.next().await {
                Some(chunk) => buffer.extend_from_slice(&chunk?),
                None if tty && !buffer.is_empty() => {
                    let line = stamped(OutputStream::Stdout, &buffer.split().freeze());
                    return Ok(Some((line, (chunks, buffer))));
                }
                None => return Ok(None),
            }
        }
    })
    .boxed()
}

/// Takes the time off a line; a line without one keeps its text.
fn stamped(stream: OutputStream, text: &Bytes) -> LogLine {
    let split = text.iter().position(|b| *b == b' ');
    let at = split.and_then(|end| time::parse_log_stamp(std::str::from_utf8(&text[..end]).ok()?));
    match (split, at) {
        (Some(end), Some(at_nanos)) => LogLine { stream, at_nanos, bytes: text.slice(end + 1..) },
        _ => LogLine { stream, at_nanos: 0, bytes: text.clone() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(at_nanos: u64, text: &str) -> LogLine {
        LogLine { stream: OutputStream::Stderr, at_nanos, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    #[test]
    fn a_line_carries_time_then_details_then_text() {
        let frame = encode(&line(1_000_000_000, "out\n"), true, Some("a=b"), false);
        assert_eq!(&frame[8..], b"1970-01-01T00:00:01.000000000Z a=b out\n");
        assert_eq!(encode(&line(0, "out\n"), false, None, true), "out\n");
    }

    proptest! {
        #[test]
        fn lines_arrive_from_another_node_as_they_left_it(
            lines in prop::collection::vec((0u64..2_000_000_000_000_000_000, "[ -~]{0,30}"), 0..10),
            cut in 1usize..50,
        ) {
            let sent: Vec<_> = lines.iter().map(|(at, text)| line(*at, &format!("{text}\n"))).collect();
            let wire: Vec<u8> = sent.iter().flat_map(|l| encode(l, true, None, false)).collect();
            let chunks: Vec<_> = wire.chunks(cut).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            let parsed = parse(futures_util::stream::iter(chunks), false);
            let got: Vec<_> = futures_util::FutureExt::now_or_never(parsed.map(Result::unwrap).collect()).unwrap();
            prop_assert_eq!(got, sent);
        }
    }
}
