//! Images of this node: `skep image …`, and the verbs that Docker also has without the noun.

pub mod pull;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::{Args, Subcommand};
use futures_util::TryStreamExt;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use super::{confirm, each, filter_pairs, filters, inspect, text};
use crate::client::{Client, encode, is_not_found, whole};
use crate::output::format::Format;
use crate::output::human::{duration, short_id, size};
use crate::output::table::Table;

/// Fetch, look at and remove images of this node
#[derive(Debug, Args)]
pub struct ImageCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List images
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RmFlags),
    /// Fetch an image
    Pull(pull::PullFlags),
    /// Read images from an archive
    Load(LoadFlags),
    /// Give an image a further name
    Tag(TagFlags),
    /// Show images in full, as JSON
    Inspect(inspect::KindFlags),
    /// Remove images that nothing uses
    Prune(PruneFlags),
}

/// Verbs that Docker also has without the noun.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List images of this node
    Images(ListFlags),
    /// Remove images
    Rmi(RmFlags),
    /// Fetch an image to this node
    Pull(pull::PullFlags),
    /// Read images from an archive
    Load(LoadFlags),
    /// Give an image a further name
    Tag(TagFlags),
}

/// List images of this node
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "Docker's flags")]
pub struct ListFlags {
    /// Also those between layers: there are none here
    #[arg(short, long)]
    all: bool,
    /// Print digests
    #[arg(long)]
    digests: bool,
    /// Only some, KEY=VALUE; may be repeated
    #[arg(short, long)]
    filter: Vec<String>,
    /// json, or a text with fields such as {{.Repository}}
    #[arg(long)]
    format: Option<String>,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Only this repository, with :TAG if wanted
    repository: Option<String>,
}

/// Remove images
#[derive(Debug, Args)]
pub struct RmFlags {
    /// Also those that containers use
    #[arg(short, long)]
    force: bool,
    /// Keep untagged parents: there are none here
    #[arg(long)]
    no_prune: bool,
    /// The images
    #[arg(required = true)]
    images: Vec<String>,
}

/// Read images from an archive
#[derive(Debug, Args)]
pub struct LoadFlags {
    /// The archive; else it is read from standard input
    #[arg(short, long)]
    input: Option<PathBuf>,
    /// Print only what was loaded
    #[arg(short, long)]
    quiet: bool,
}

/// Give an image a further name
#[derive(Debug, Args)]
pub struct TagFlags {
    /// The image
    source: String,
    /// Its further name
    target: String,
}

/// Remove images that nothing uses
#[derive(Debug, Args)]
pub struct PruneFlags {
    /// Also those with a name
    #[arg(short, long)]
    all: bool,
    /// Only some, label=KEY[=VALUE]; may be repeated
    #[arg(long)]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Runs a command of `skep image`.
pub async fn run(command: ImageCommand, client: &Client) -> anyhow::Result<ExitCode> {
    match command.action {
        Action::Ls(flags) => list(flags, client).await?,
        Action::Rm(flags) => rm(flags, client).await?,
        Action::Pull(flags) => pull::run(flags, client).await?,
        Action::Load(flags) => load(flags, client).await?,
        Action::Tag(flags) => tag(flags, client).await?,
        Action::Inspect(flags) => return inspect::run_kind(inspect::Kind::Image, flags, client).await,
        Action::Prune(flags) => prune(flags, client).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a verb.
pub async fn run_verb(verb: Verb, client: &Client) -> anyhow::Result<()> {
    match verb {
        Verb::Images(flags) => list(flags, client).await,
        Verb::Rmi(flags) => rm(flags, client).await,
        Verb::Pull(flags) => pull::run(flags, client).await,
        Verb::Load(flags) => load(flags, client).await,
        Verb::Tag(flags) => tag(flags, client).await,
    }
}

async fn list(flags: ListFlags, client: &Client) -> anyhow::Result<()> {
    let format = flags.format.as_deref().map(Format::parse).transpose()?;
    let mut wanted = filter_pairs(&flags.filter)?;
    if let Some(repository) = &flags.repository {
        wanted.push(("reference".to_owned(), vec![repository.clone()]));
    }
    let path = format!("/images/json?all={}&filters={}", u8::from(flags.all), filters(&wanted));
    let images: Vec<Value> = client.get(&path).await?;
    let now = Timestamp::now().as_second();
    let mut headings = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    if flags.digests {
        headings.insert(2, "DIGEST");
    }
    let mut table = Table::new(&headings);
    for image in &images {
        let whole_id = text(&image["Id"]);
        let id = if flags.no_trunc { whole_id } else { short_id(&whole_id, false) };
        for (repository, tag, digest) in names_of(image) {
            let created = format!("{} ago", duration(now - image["Created"].as_i64().unwrap_or(now)));
            let size = size(image["Size"].as_u64().unwrap_or(0));
            if flags.quiet {
                println!("{id}");
            } else if let Some(format) = &format {
                let fields = json!({
                    "Repository": repository, "Tag": tag, "Digest": digest, "ID": id, "CreatedSince": created, "Size": size,
                });
                println!("{}", format.render(&fields)?);
            } else {
                let digest = flags.digests.then_some(digest);
                table.row([repository, tag].into_iter().chain(digest).chain([id.clone(), created, size]));
            }
        }
    }
    if !flags.quiet && format.is_none() {
        table.print();
    }
    Ok(())
}

/// Repository, tag and digest of each of an image's names.
fn names_of(image: &Value) -> Vec<(String, String, String)> {
    let list = |key: &str| -> Vec<String> { image[key].as_array().into_iter().flatten().map(text).collect() };
    let digests = list("RepoDigests");
    let digest_of = |repository: &str| {
        let found = digests.iter().filter_map(|d| d.split_once('@')).find(|(name, _)| *name == repository);
        found.map_or("<none>".to_owned(), |(_, digest)| digest.to_owned())
    };
    let tagged = list("RepoTags");
    let names = tagged
        .iter()
        .filter_map(|t| t.rsplit_once(':'))
        .map(|(repository, tag)| (repository.to_owned(), tag.to_owned(), digest_of(repository)));
    let names: Vec<_> = names.collect();
    if !names.is_empty() {
        return names;
    }
    let untagged = digests.iter().filter_map(|d| d.split_once('@'));
    let untagged: Vec<_> =
        untagged.map(|(name, digest)| (name.to_owned(), "<none>".to_owned(), digest.to_owned())).collect();
    let none = || "<none>".to_owned();
    if untagged.is_empty() { vec![(none(), none(), none())] } else { untagged }
}

async fn rm(flags: RmFlags, client: &Client) -> anyhow::Result<()> {
    each(&flags.images, async |name| {
        let path = format!("/images/{name}?force={}&noprune={}", u8::from(flags.force), u8::from(flags.no_prune));
        let lines = match client.call(Method::DELETE, &path, None).await {
            Err(error) if flags.force && is_not_found(&error) => {
                eprintln!("{error}");
                return Ok(());
            }
            result => result?,
        };
        let lines: Vec<Value> = serde_json::from_slice(&lines).context("the daemon's answer is no list")?;
        for line in &lines {
            match (line["Untagged"].as_str(), line["Deleted"].as_str()) {
                (Some(name), _) => println!("Untagged: {name}"),
                (None, Some(id)) => println!("Deleted: {id}"),
                (None, None) => {}
            }
        }
        Ok(())
    })
    .await
}

async fn tag(flags: TagFlags, client: &Client) -> anyhow::Result<()> {
    let full = pull::with_tag(&flags.target);
    let (repository, tag) = full.rsplit_once(':').context("a reference has a tag")?;
    let path = format!("/images/{}/tag?repo={}&tag={}", flags.source, encode(repository), encode(tag));
    client.call(Method::POST, &path, None).await.map(drop)
}

async fn load(flags: LoadFlags, client: &Client) -> anyhow::Result<()> {
    let archive = match &flags.input {
        Some(path) => File::open(path).await.with_context(|| format!("open {}", path.display()))?,
        None => {
            ensure!(
                !crate::terminal::is_input_a_terminal(),
                "requested load from stdin, but stdin is empty: name an archive with --input"
            );
            File::from_std(std::io::stdin().as_fd().try_clone_to_owned()?.into())
        }
    };
    let body = StreamBody::new(ReaderStream::new(archive).map_ok(Frame::data)).boxed_unsync();
    let headers = [("Transfer-Encoding", "chunked")];
    let path = format!("/images/load?quiet={}", u8::from(flags.quiet));
    pull::follow(client.open(Method::POST, &path, &headers, body).await?, pull::Show::StandardOutput).await
}

async fn prune(flags: PruneFlags, client: &Client) -> anyhow::Result<()> {
    let warning = match flags.all {
        true => "WARNING! This will remove all images without at least one container associated to them.",
        false => "WARNING! This will remove all dangling images.",
    };
    if !flags.force && !confirm(warning)? {
        return Ok(());
    }
    let mut wanted = filter_pairs(&flags.filter)?;
    wanted.push(("dangling".to_owned(), vec![(!flags.all).to_string()]));
    let path = format!("/images/prune?filters={}", filters(&wanted));
    let pruned = client.open(Method::POST, &path, &[], whole(Bytes::new())).await?;
    let pruned: Value = serde_json::from_slice(&crate::client::collect(pruned).await?)?;
    let deleted = pruned["ImagesDeleted"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !deleted.is_empty() {
        println!("Deleted Images:");
        for line in deleted {
            match line["Untagged"].as_str() {
                Some(name) => println!("untagged: {name}"),
                None => println!("deleted: {}", text(&line["Deleted"])),
            }
        }
        println!();
    }
    println!("Total reclaimed space: {}", size(pruned["SpaceReclaimed"].as_u64().unwrap_or(0)));
    Ok(())
}
