//! Waiting until a service has converged, with something to look at meanwhile.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::time::Instant;

use crate::client::Client;
use crate::commands::{filters, text};

const POLL: Duration = Duration::from_millis(100);
/// How long a service must stay converged, as Docker's client has it.
const STABLE: Duration = Duration::from_secs(5);

/// Whether a command waits for its service, and what it shows meanwhile.
#[derive(Debug, Default, Args)]
pub struct WaitFlags {
    /// Do not wait until the service has converged
    #[arg(short, long)]
    detach: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

impl WaitFlags {
    /// Waits, if it is to.
    ///
    /// # Errors
    /// As [`wait_until_converged`].
    pub async fn until_converged(&self, client: &Client, service: &str) -> anyhow::Result<()> {
        if self.detach {
            return Ok(());
        }
        wait(client, service, !self.quiet && std::io::stderr().is_terminal()).await
    }
}

/// What a look at the service shows.
struct Look {
    name: String,
    wanted: usize,
    running: usize,
    /// The text of a task that cannot go on.
    trouble: Option<String>,
    update: Option<String>,
    is_job: bool,
}

/// Waits until as many tasks of the spec in force run as are wanted, and have run for five seconds; for a job, until as
/// many have completed.
///
/// # Errors
/// When the update was paused or rolled back: the service is then not what was asked for.
pub async fn wait_until_converged(client: &Client, service: &str) -> anyhow::Result<()> {
    wait(client, service, std::io::stderr().is_terminal()).await
}

async fn wait(client: &Client, service: &str, shown: bool) -> anyhow::Result<()> {
    let bar = if shown { ProgressBar::new(1) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg}").expect("the template is ours"));
    let mut since: Option<Instant> = None;
    let mut told = String::new();
    loop {
        let look = look(client, service).await?;
        bar.set_prefix(look.name.clone());
        bar.set_length(look.wanted as u64);
        bar.set_position(look.running as u64);
        bar.set_message(look.trouble.clone().unwrap_or_default());
        if bar.is_hidden() {
            let line = format!(
                "{}: {}/{} tasks {} {}",
                look.name,
                look.running,
                look.wanted,
                if look.is_job { "completed" } else { "running" },
                look.trouble.clone().unwrap_or_default()
            );
            if line != told {
                eprintln!("{}", line.trim_end());
                told = line;
            }
        }
        if let Some(state @ ("paused" | "rollback_paused" | "rollback_completed")) = look.update.as_deref() {
            bar.abandon();
            bail!("{}: the update is {}: {}", look.name, state.replace('_', " "), look.trouble.unwrap_or_default());
        }
        let is_converged =
            look.running >= look.wanted && !matches!(look.update.as_deref(), Some("updating" | "rollback_started"));
        since = if is_converged { since.or_else(|| Some(Instant::now())) } else { None };
        // What has completed stays so.
        let stable = if look.is_job { Duration::ZERO } else { STABLE };
        if since.is_some_and(|at| at.elapsed() >= stable) {
            bar.finish_and_clear();
            eprintln!("{}: converged", look.name);
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn look(client: &Client, service: &str) -> anyhow::Result<Look> {
    let found: Value = client.get(&format!("/services/{service}")).await?;
    let id = [text(&found["ID"])];
    let query = filters(&[("service", &id), ("_up-to-date", &["true".to_owned()])]);
    let tasks: Vec<Value> = client.get(&format!("/tasks?filters={query}")).await?;
    let mode = &found["Spec"]["Mode"];
    let is_job = mode["ReplicatedJob"].is_object() || mode["GlobalJob"].is_object();
    let goal = if is_job { "complete" } else { "running" };
    let live: Vec<&Value> = tasks.iter().filter(|t| t["DesiredState"] == goal).collect();
    let counted = mode["Replicated"]["Replicas"].as_u64().or(mode["ReplicatedJob"]["TotalCompletions"].as_u64());
    let wanted = match counted {
        Some(count) => usize::try_from(count)?,
        None => live.len().max(1),
    };
    let error_of = |t: &&Value| t["Status"]["Err"].as_str().filter(|e| !e.is_empty()).map(str::to_owned);
    Ok(Look {
        name: text(&found["Spec"]["Name"]),
        wanted,
        running: live.iter().filter(|t| t["Status"]["State"] == goal).count(),
        trouble: live.iter().find_map(error_of),
        update: found["UpdateStatus"]["State"].as_str().map(str::to_owned),
        is_job,
    })
}
