//! `skep pull`, and how pulling and loading go.

use std::collections::BTreeMap;

use anyhow::bail;
use bytes::{Bytes, BytesMut};
use clap::Args;
use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::client::{Client, credentials, encode, whole};
use crate::commands::text;

/// Fetch an image to this node
#[derive(Debug, Args)]
pub struct PullFlags {
    /// Platform, linux/amd64
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM")]
    platform: Option<String>,
    /// Print only the image's name
    #[arg(short, long)]
    quiet: bool,
    /// The image
    image: String,
}

/// Where to show how it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Nowhere.
    Nothing,
    /// On standard output: it is what was asked for.
    StandardOutput,
    /// On standard error: the output is something else's.
    StandardError,
}

/// Runs `pull`.
pub async fn run(flags: PullFlags, client: &Client) -> anyhow::Result<()> {
    let full = with_tag(&flags.image);
    if full != flags.image && !flags.quiet {
        println!("Using default tag: latest");
    }
    let show = if flags.quiet { Show::Nothing } else { Show::StandardOutput };
    pull(client, &flags.image, flags.platform.as_deref(), show).await?;
    println!("{}", canonical(&full));
    Ok(())
}

/// Pulls an image with the credentials that are kept for its registry.
pub async fn pull(client: &Client, image: &str, platform: Option<&str>, show: Show) -> anyhow::Result<()> {
    let auth = credentials::header_for(image)?;
    let headers: Vec<(&str, &str)> = auth.iter().map(|a| ("X-Registry-Auth", a.as_str())).collect();
    let path = format!(
        "/images/create?fromImage={}&platform={}",
        encode(&with_tag(image)),
        encode(platform.unwrap_or_default())
    );
    let answer = client.open(Method::POST, &path, &headers, whole(Bytes::new())).await?;
    follow(answer, show).await
}

/// The reference with the tag that it means. A port of the registry is no tag, and a digest holds no tag.
pub fn with_tag(image: &str) -> String {
    let has_tag = image.contains('@') || image.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if has_tag { image.to_owned() } else { format!("{image}:latest") }
}

/// The reference in full, with its registry.
fn canonical(image: &str) -> String {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => image.to_owned(),
        Some(_) => format!("docker.io/{image}"),
        None => format!("docker.io/library/{image}"),
    }
}

/// Shows the lines of an answer as they come: a bar for each layer on a terminal, else its milestones.
///
/// # Errors
/// What the daemon says that went wrong.
pub async fn follow(answer: Response<Incoming>, show: Show) -> anyhow::Result<()> {
    let mut progress = Progress::new(show);
    let mut body = answer.into_body();
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line = buffer.split_to(end + 1);
            if !line.trim_ascii().is_empty() {
                progress.line(&serde_json::from_slice(&line)?)?;
            }
        }
    }
    Ok(())
}

struct Progress {
    show: Show,
    /// Bars by the id of their layer; `None` where no terminal can draw them.
    bars: Option<(MultiProgress, BTreeMap<String, ProgressBar>)>,
}

impl Progress {
    fn new(show: Show) -> Self {
        let target = match show {
            Show::StandardOutput => Some(ProgressDrawTarget::stdout()),
            Show::StandardError => Some(ProgressDrawTarget::stderr()),
            Show::Nothing => None,
        };
        let target = target.filter(|target| !target.is_hidden());
        Self { show, bars: target.map(|target| (MultiProgress::with_draw_target(target), BTreeMap::new())) }
    }

    fn line(&mut self, line: &Value) -> anyhow::Result<()> {
        if let Some(error) = line["error"].as_str() {
            bail!("{error}");
        }
        let (id, status) = (text(&line["id"]), text(&line["status"]));
        let said = match line["stream"].as_str() {
            Some(stream) => stream.trim_end().to_owned(),
            None if id.is_empty() => status.clone(),
            None => format!("{id}: {status}"),
        };
        let counts = line["progressDetail"]["current"].as_u64().zip(line["progressDetail"]["total"].as_u64());
        if let Some((all, bars)) = &mut self.bars
            && !id.is_empty()
            && !status.starts_with("Pulling from")
        {
            let bar = bars.entry(id.clone()).or_insert_with(|| all.add(ProgressBar::new(0).with_style(plain())));
            match counts.filter(|(_, total)| *total > 0) {
                Some((current, total)) => {
                    bar.set_style(counting());
                    bar.set_length(total);
                    bar.set_position(current);
                }
                None => bar.set_style(plain()),
            }
            bar.set_message(said);
            if status.ends_with("complete") || status.starts_with("Already exists") {
                bar.abandon();
            }
            return Ok(());
        }
        // Counts of bytes are for bars.
        if counts.is_some_and(|(_, total)| total > 0) {
            return Ok(());
        }
        match (&self.bars, self.show) {
            (_, Show::Nothing) => {}
            (Some((all, _)), _) => all.println(said)?,
            (None, Show::StandardOutput) => println!("{said}"),
            (None, Show::StandardError) => eprintln!("{said}"),
        }
        Ok(())
    }
}

fn plain() -> ProgressStyle {
    ProgressStyle::with_template("{msg}").expect("the template is ours")
}

fn counting() -> ProgressStyle {
    ProgressStyle::with_template("{msg} [{bar:50}] {decimal_bytes}/{decimal_total_bytes}")
        .expect("the template is ours")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_without_a_tag_means_latest_and_without_a_registry_docker_hub() {
        assert_eq!(with_tag("r:5000/a"), "r:5000/a:latest");
        assert_eq!(with_tag("a@sha256:00"), "a@sha256:00");
        assert_eq!(canonical("nginx:1"), "docker.io/library/nginx:1");
        assert_eq!(canonical("team/app:1"), "docker.io/team/app:1");
        assert_eq!(canonical("r:5000/app:1"), "r:5000/app:1");
    }
}
