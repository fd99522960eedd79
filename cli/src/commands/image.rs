//! `skep images` and `skep pull`.

use anyhow::bail;
use clap::Args;
use http::Method;
use jiff::Timestamp;
use serde_json::Value;

use super::text;
use crate::client::Client;
use crate::output::human::{duration, short_id, size};
use crate::output::table::Table;

/// List images of this node
#[derive(Debug, Args)]
pub struct ImagesCommand {
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
}

/// Fetch an image to this node
#[derive(Debug, Args)]
pub struct PullCommand {
    /// The image
    image: String,
}

/// Runs `images`.
pub async fn list(command: ImagesCommand, client: &Client) -> anyhow::Result<()> {
    let images: Vec<Value> = client.get("/images/json").await?;
    let now = Timestamp::now().as_second();
    let mut table = Table::new(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    for image in &images {
        let id = short_id(&text(&image["Id"]), false);
        let tags: Vec<String> = image["RepoTags"].as_array().map(|t| t.iter().map(text).collect()).unwrap_or_default();
        let tags = if tags.is_empty() { vec!["<none>:<none>".to_owned()] } else { tags };
        for tag in tags {
            if command.quiet {
                println!("{id}");
                continue;
            }
            let (repository, tag) = tag.rsplit_once(':').unwrap_or((&tag, "<none>"));
            let created = format!("{} ago", duration(now - image["Created"].as_i64().unwrap_or(now)));
            table.row([
                repository.to_owned(),
                tag.to_owned(),
                id.clone(),
                created,
                size(image["Size"].as_u64().unwrap_or(0)),
            ]);
        }
    }
    if !command.quiet {
        table.print();
    }
    Ok(())
}

/// Runs `pull`.
pub async fn pull(command: PullCommand, client: &Client) -> anyhow::Result<()> {
    // A port of the registry is no tag, and a digest holds no tag.
    let has_tag =
        command.image.contains('@') || command.image.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let reference = if has_tag { command.image.clone() } else { format!("{}:latest", command.image) };
    let answer = client.call(Method::POST, &format!("/images/create?fromImage={reference}"), None).await?;
    for line in answer.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let line: Value = serde_json::from_slice(line)?;
        if let Some(error) = line["error"].as_str() {
            bail!("{error}");
        }
        // Counts of bytes are for progress bars; a finished pull shows its milestones.
        if line["progressDetail"].as_object().is_none_or(serde_json::Map::is_empty) {
            let id = text(&line["id"]);
            println!("{}{}", if id.is_empty() { id } else { format!("{id}: ") }, text(&line["status"]));
        }
    }
    Ok(())
}
