//! Verbs that change containers, each for several at once.

use clap::Args;
use http::Method;
use serde_json::Value;

use super::attach::Waiting;
use crate::client::{Client, encode, is_not_found};
use crate::commands::{confirm, each, filter_pairs, filters, text};
use crate::output::human::size;

/// Containers by name or id.
#[derive(Debug, Args)]
pub struct Names {
    /// The containers
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Flags of `stop` and `restart`.
#[derive(Debug, Args)]
pub struct StopFlags {
    /// Signal to send
    #[arg(short, long)]
    signal: Option<String>,
    /// Seconds before the container is killed; -1 waits for ever
    #[arg(short = 't', long = "timeout", visible_alias = "time", allow_hyphen_values = true)]
    timeout: Option<i64>,
    /// The containers
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Send containers a signal
#[derive(Debug, Args)]
pub struct KillFlags {
    /// Signal to send
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// The containers
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Remove containers
#[derive(Debug, Args)]
pub struct RmFlags {
    /// Also those that run
    #[arg(short, long)]
    force: bool,
    /// With their anonymous volumes
    #[arg(short, long)]
    volumes: bool,
    /// The containers
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Give a container another name
#[derive(Debug, Args)]
pub struct RenameFlags {
    /// The container
    container: String,
    /// Its new name
    name: String,
}

/// Remove all containers that do not run
#[derive(Debug, Args)]
pub struct PruneFlags {
    /// Only some, label=KEY[=VALUE]; may be repeated
    #[arg(long)]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// A verb without flags of its own.
pub async fn plain(names: Names, verb: &str, client: &Client) -> anyhow::Result<()> {
    each(&names.containers, async |name| {
        client.call(Method::POST, &format!("/containers/{}/{verb}", encode(name)), None).await?;
        println!("{name}");
        Ok(())
    })
    .await
}

/// Runs `stop` or `restart`.
pub async fn stop(flags: StopFlags, verb: &str, client: &Client) -> anyhow::Result<()> {
    let signal = flags.signal.map(|s| format!("signal={}", encode(&s)));
    let timeout = flags.timeout.map(|t| format!("t={t}"));
    let query: Vec<String> = signal.into_iter().chain(timeout).collect();
    each(&flags.containers, async |name| {
        let path = format!("/containers/{}/{verb}?{}", encode(name), query.join("&"));
        client.call(Method::POST, &path, None).await?;
        println!("{name}");
        Ok(())
    })
    .await
}

/// Runs `kill`.
pub async fn kill(flags: KillFlags, client: &Client) -> anyhow::Result<()> {
    each(&flags.containers, async |name| {
        let path = format!("/containers/{}/kill?signal={}", encode(name), encode(&flags.signal));
        client.call(Method::POST, &path, None).await?;
        println!("{name}");
        Ok(())
    })
    .await
}

/// Runs `rm`. With `-f`, what does not exist is told and is no failure, as docker has it.
pub async fn rm(flags: RmFlags, client: &Client) -> anyhow::Result<()> {
    each(&flags.containers, async |name| {
        let (force, volumes) = (u8::from(flags.force), u8::from(flags.volumes));
        let path = format!("/containers/{}?force={force}&v={volumes}", encode(name.trim_matches('/')));
        match client.call(Method::DELETE, &path, None).await {
            Ok(_) => println!("{name}"),
            Err(error) if flags.force && is_not_found(&error) => eprintln!("{error}"),
            Err(error) => return Err(error),
        }
        Ok(())
    })
    .await
}

/// Runs `wait`.
pub async fn wait(names: Names, client: &Client) -> anyhow::Result<()> {
    each(&names.containers, async |name| {
        let path = format!("/containers/{}", encode(name));
        println!("{}", Waiting::begin(client, &path, "not-running").await?.code().await?);
        Ok(())
    })
    .await
}

/// Runs `rename`.
pub async fn rename(flags: RenameFlags, client: &Client) -> anyhow::Result<()> {
    let path = format!("/containers/{}/rename?name={}", encode(&flags.container), encode(&flags.name));
    client.call(Method::POST, &path, None).await.map(drop)
}

/// Runs `prune`.
pub async fn prune(flags: PruneFlags, client: &Client) -> anyhow::Result<()> {
    if !flags.force && !confirm("WARNING! This will remove all stopped containers.")? {
        return Ok(());
    }
    let wanted = filter_pairs(&flags.filter)?;
    let path = format!("/containers/prune?filters={}", filters(&wanted));
    let pruned: Value = serde_json::from_slice(&client.call(Method::POST, &path, None).await?)?;
    let deleted = pruned["ContainersDeleted"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !deleted.is_empty() {
        println!("Deleted Containers:");
        deleted.iter().for_each(|id| println!("{}", text(id)));
        println!();
    }
    println!("Total reclaimed space: {}", size(pruned["SpaceReclaimed"].as_u64().unwrap_or(0)));
    Ok(())
}
