//! `skep service logs`: lines of all tasks, each behind the name of its task and node.

use std::collections::BTreeMap;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use http::Method;
use http_body_util::BodyExt;
use serde_json::Value;

use crate::client::output::{Demultiplexer, own};
use crate::client::{Client, encode, is_not_found, whole};
use crate::commands::container::LogFlags;
use crate::commands::text;
use crate::output::human::short_id;

/// Where a line came from stands in its details, under these keys (swarmkit).
const ORIGIN: [&str; 3] = ["com.docker.swarm.service.id", "com.docker.swarm.task.id", "com.docker.swarm.node.id"];

/// Print the logs of a service or a task
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "Docker's flags")]
pub struct LogsFlags {
    #[command(flatten)]
    lines: LogFlags,
    /// Print ids in place of names
    #[arg(long)]
    no_resolve: bool,
    /// Leave the ids of tasks out
    #[arg(long)]
    no_task_ids: bool,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Print only what the containers wrote
    #[arg(long)]
    raw: bool,
    /// The service, or the task
    service: String,
}

/// Runs it.
pub async fn run(flags: LogsFlags, client: &Client) -> anyhow::Result<()> {
    let id = encode(&flags.service);
    let (path, object): (String, Value) = match client.get(&format!("/services/{id}")).await {
        Ok(service) => (format!("/services/{id}/logs"), service),
        Err(error) if is_not_found(&error) => match client.get(&format!("/tasks/{id}")).await {
            Ok(task) => (format!("/tasks/{id}/logs"), task),
            Err(error) if is_not_found(&error) => anyhow::bail!("no such task or service: {}", flags.service),
            Err(error) => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let is_terminal = object["Spec"]["TaskTemplate"]["ContainerSpec"]["TTY"] == true
        || object["Spec"]["ContainerSpec"]["TTY"] == true;
    let raw = flags.raw || is_terminal;
    let digits = object["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64().map_or(1, |n| n.to_string().len());
    // The details say whose line it is.
    let query = flags.lines.query("", !raw || flags.lines.details)?;
    let response = client.open(Method::GET, &format!("{path}?{query}"), &[], whole(Bytes::new())).await?;
    let mut names = Names { client, flags: &flags, digits, tasks: BTreeMap::new() };
    let mut streams = Demultiplexer::of(&response);
    let mut body = response.into_body();
    let mut sinks = own()?;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        for (stream, line) in streams.feed(&data)? {
            let line = if raw { line.to_vec() } else { names.label(&line).await? };
            sinks.write(stream, &line).await?;
        }
    }
    Ok(())
}

/// Finds out what tasks and nodes are called, each once.
struct Names<'a> {
    client: &'a Client,
    flags: &'a LogsFlags,
    /// Width of the largest slot's number.
    digits: usize,
    /// Labels by task.
    tasks: BTreeMap<String, String>,
}

impl Names<'_> {
    /// `[TIME ]DETAILS TEXT` as `[TIME ]LABEL    | [DETAILS ]TEXT`.
    async fn label(&mut self, line: &[u8]) -> anyhow::Result<Vec<u8>> {
        let (time, rest) = if self.flags.lines.timestamps { split(line)? } else { (&line[..0], line) };
        let (details, message) = split(rest)?;
        let mut details = read_details(std::str::from_utf8(details).context("the details of a line are no text")?);
        let [service, task, node] = ORIGIN.map(|key| details.remove(key).unwrap_or_default());
        let label = match self.tasks.get(&task) {
            Some(label) => label.clone(),
            None => {
                let label = self.find(&service, &task, &node).await;
                self.tasks.insert(task, label.clone());
                label
            }
        };
        let mut out = Vec::with_capacity(line.len() + label.len());
        if !time.is_empty() {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(label.as_bytes());
        out.extend_from_slice(b"    | ");
        if self.flags.lines.details {
            let shown: Vec<String> = details.iter().map(|(key, value)| format!("{key}={value}")).collect();
            out.extend_from_slice(shown.join(",").as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(message);
        Ok(out)
    }

    /// `SERVICE.SLOT.TASK@NODE`. What has been removed meanwhile is called by its id.
    async fn find(&self, service: &str, task: &str, node: &str) -> String {
        let found: Value = self.client.get(&format!("/tasks/{task}")).await.unwrap_or_default();
        let slot = found["Slot"].as_u64().unwrap_or(0).to_string();
        let mut label = format!("{}.{slot}", self.name(&format!("/services/{service}"), "Spec", "Name", service).await);
        if !self.flags.no_task_ids {
            label.push('.');
            label.push_str(&short_id(task, self.flags.no_trunc));
        }
        let node = self.name(&format!("/nodes/{node}"), "Description", "Hostname", node).await;
        let padding = " ".repeat(self.digits.saturating_sub(slot.len()));
        format!("{label}@{node}{padding}")
    }

    async fn name(&self, path: &str, part: &str, key: &str, id: &str) -> String {
        if !self.flags.no_resolve {
            let found: Value = self.client.get(path).await.unwrap_or_default();
            let name = text(&found[part][key]);
            if !name.is_empty() {
                return name;
            }
        }
        short_id(id, self.flags.no_trunc || !self.flags.no_resolve)
    }
}

/// The first word and what follows it.
fn split(line: &[u8]) -> anyhow::Result<(&[u8], &[u8])> {
    let end = line.iter().position(|b| *b == b' ').context("a line of the log does not say where it is from")?;
    Ok((&line[..end], &line[end + 1..]))
}

/// `a=b,c=d`.
fn read_details(text: &str) -> BTreeMap<String, String> {
    text.split(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}
