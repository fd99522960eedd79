//! `skep stack`.

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use skep_api::manifest::plan::FileWanted;
use skep_api::manifest::stack::STACK_LABEL;

use super::apply::revisions::{self, Revision, Revisions};
use super::apply::{HowFlags, TOGETHER, remove_when_unused};
use super::service::print_services;
use super::{TaskFlags, filter_pairs, filters, text};
use crate::client::Client;
use crate::output::format::Format;
use crate::output::table::Table;

/// Look at and remove stacks
#[derive(Debug, Args)]
pub struct StackCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List stacks
    #[command(alias = "list")]
    Ls {
        /// json, or a text with fields such as {{.Name}}
        #[arg(long)]
        format: Option<String>,
    },
    /// List the tasks of a stack
    Ps {
        /// The stack
        stack: String,
        #[command(flatten)]
        flags: TaskFlags,
    },
    /// List the services of a stack
    Services {
        /// The stack
        stack: String,
        /// Only some, KEY=VALUE; may be repeated
        #[arg(short, long)]
        filter: Vec<String>,
        /// json, or a text with fields such as {{.Name}}
        #[arg(long)]
        format: Option<String>,
        /// Print only ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// Say what `skep apply` would change
    Diff(Box<super::apply::DiffFlags>),
    /// Write a stack as a file that applies to no changes
    Export(super::apply::export::ExportFlags),
    /// List what earlier applies of a stack wanted
    History {
        /// The stack
        stack: String,
        /// Print as JSON, with all that was wanted
        #[arg(long)]
        json: bool,
    },
    /// Return a stack to what an earlier apply wanted
    Rollback {
        /// The stack
        stack: String,
        /// The revision, as `skep stack history` lists it [default: the one before the last]
        revision: Option<u64>,
        #[command(flatten)]
        how: Box<super::apply::HowFlags>,
    },
    /// Remove stacks
    #[command(aliases = ["remove", "down"])]
    Rm {
        /// The stacks
        #[arg(required = true)]
        stacks: Vec<String>,
    },
}

/// Runs the command.
pub async fn run(command: StackCommand, client: &Client) -> anyhow::Result<()> {
    match command.action {
        Action::Ls { format } => {
            let services: Vec<Value> =
                client.get(&format!("/services?filters={}", filters(&[("label", &[STACK_LABEL.to_owned()])]))).await?;
            let mut counts = std::collections::BTreeMap::<String, usize>::new();
            for service in &services {
                *counts.entry(text(&service["Spec"]["Labels"][STACK_LABEL])).or_default() += 1;
            }
            let mut table = Table::new(&["NAME", "SERVICES"]);
            counts.into_iter().for_each(|(name, count)| table.row([name, count.to_string()]));
            table.print_as(format.as_deref().map(Format::parse).transpose()?.as_ref())?;
        }
        Action::Ps { stack, flags } => {
            let services = services_of(client, &stack, &[]).await?;
            flags.print(client, "service", services.iter().map(|s| text(&s["ID"])).collect()).await?;
        }
        Action::Services { stack, filter, format, quiet } => {
            print_services(&services_of(client, &stack, &filter).await?, format.as_deref(), quiet)?;
        }
        Action::Diff(flags) => super::apply::diff(*flags, client).await?,
        Action::Export(flags) => super::apply::export::run(flags, client).await?,
        Action::History { stack, json } => history(client, &stack, json).await?,
        Action::Rollback { stack, revision, how } => rollback(client, &stack, revision, &how).await?,
        Action::Rm { stacks } => {
            for stack in &stacks {
                remove(client, stack).await?;
            }
        }
    }
    Ok(())
}

async fn history(client: &Client, stack: &str, json: bool) -> anyhow::Result<()> {
    let revisions = revisions_of(client, stack).await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&revisions.all)?);
        return Ok(());
    }
    let mut table = Table::new(&["REVISION", "APPLIED", "SERVICES", "CHANGES", "FROM"]);
    for revision in revisions.all.iter().rev() {
        let Revision { number, at, source, summary, wanted } = revision;
        table.row([number.to_string(), at.clone(), wanted.services.len().to_string(), summary.clone(), source.clone()]);
    }
    table.print();
    Ok(())
}

/// The revisions of a stack; an error when there is none.
async fn revisions_of(client: &Client, stack: &str) -> anyhow::Result<Revisions> {
    let revisions = Revisions::read(&revisions::configs_of(client, stack).await?)?;
    if revisions.all.is_empty() {
        services_of(client, stack, &[]).await?;
        anyhow::bail!("no revision of stack {stack}: `skep apply` keeps them, `docker stack deploy` does not");
    }
    Ok(revisions)
}

async fn rollback(client: &Client, stack: &str, number: Option<u64>, how: &HowFlags) -> anyhow::Result<()> {
    let revisions = revisions_of(client, stack).await?;
    let found = match number {
        Some(number) => revisions.all.iter().find(|r| r.number == number),
        None => revisions.all.iter().rev().nth(1),
    };
    let found = found.with_context(|| {
        let known: Vec<String> = revisions.all.iter().map(|r| r.number.to_string()).collect();
        match number {
            Some(number) => format!("stack {stack} has no revision {number}; it has: {}", known.join(", ")),
            None => format!("stack {stack} has no earlier revision to return to"),
        }
    })?;
    // Its specs name secrets and configs as they are called in the cluster: nothing of them is made again.
    let mut wanted = found.wanted.clone();
    wanted.files.clear();
    let used: std::collections::BTreeSet<_> = wanted.references().collect();
    for (kind, name) in used {
        wanted.files.push(FileWanted { kind, key: name.clone(), name, is_named: true, has_content: false });
    }
    super::apply::apply(client, &wanted, None, &format!("revision {}", found.number), how).await
}

/// The services of a stack; an error when there is none.
async fn services_of(client: &Client, stack: &str, filter: &[String]) -> anyhow::Result<Vec<Value>> {
    let mut wanted = filter_pairs(filter)?;
    wanted.push(("label".to_owned(), vec![format!("{STACK_LABEL}={stack}")]));
    let services: Vec<Value> = client.get(&format!("/services?status=true&filters={}", filters(&wanted))).await?;
    anyhow::ensure!(!services.is_empty(), "nothing found in stack: {stack}");
    Ok(services)
}

async fn labelled(client: &Client, path: &str, stack: &str) -> anyhow::Result<Vec<Value>> {
    client.get(&format!("{path}filters={}", filters(&[("label", &[format!("{STACK_LABEL}={stack}")])]))).await
}

async fn remove(client: &Client, stack: &str) -> anyhow::Result<()> {
    let services = labelled(client, "/services?", stack).await?;
    let networks = labelled(client, "/networks?", stack).await?;
    let mut files = Vec::new();
    for (word, path) in [("secret", "/secrets"), ("config", "/configs")] {
        files.extend(labelled(client, &format!("{path}?"), stack).await?.into_iter().map(|file| (word, path, file)));
    }
    // One whose making was stopped may have no service yet.
    ensure!(!(services.is_empty() && networks.is_empty() && files.is_empty()), "nothing found in stack: {stack}");
    let gone = stream::iter(&services).map(|service| async move {
        let name = text(&service["Spec"]["Name"]);
        println!("Removing service {name}");
        remove_when_unused(client, "service", &name, &format!("/services/{}", text(&service["ID"]))).await
    });
    gone.buffer_unordered(TOGETHER).try_collect::<()>().await?;
    // Their tasks may be stopping still: what they use goes when they have.
    for (word, path, file) in files {
        let name = text(&file["Spec"]["Name"]);
        if file["Spec"]["Labels"][revisions::LABEL].is_null() {
            println!("Removing {word} {name}");
        }
        remove_when_unused(client, word, &name, &format!("{path}/{}", text(&file["ID"]))).await?;
    }
    for network in networks {
        let name = text(&network["Name"]);
        println!("Removing network {name}");
        remove_when_unused(client, "network", &name, &format!("/networks/{}", text(&network["Id"]))).await?;
    }
    Ok(())
}
