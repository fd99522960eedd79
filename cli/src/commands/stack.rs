//! `skep stack`.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::Value;
use skep_api::manifest::stack::STACK_LABEL;

use super::service::service_table;
use super::{filter_pairs, filters, names, task_table, text};
use crate::client::Client;
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
    Ls,
    /// List the tasks of a stack
    Ps {
        /// The stack
        stack: String,
        /// Only some, KEY=VALUE; may be repeated
        #[arg(short, long)]
        filter: Vec<String>,
        /// Print whole ids and errors
        #[arg(long)]
        no_trunc: bool,
    },
    /// List the services of a stack
    Services {
        /// The stack
        stack: String,
        /// Only some, KEY=VALUE; may be repeated
        #[arg(short, long)]
        filter: Vec<String>,
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
        Action::Ls => {
            let services: Vec<Value> =
                client.get(&format!("/services?filters={}", filters(&[("label", &[STACK_LABEL.to_owned()])]))).await?;
            let mut counts = std::collections::BTreeMap::<String, usize>::new();
            for service in &services {
                *counts.entry(text(&service["Spec"]["Labels"][STACK_LABEL])).or_default() += 1;
            }
            let mut table = Table::new(&["NAME", "SERVICES"]);
            counts.into_iter().for_each(|(name, count)| table.row([name, count.to_string()]));
            table.print();
        }
        Action::Ps { stack, filter, no_trunc } => {
            let services = services_of(client, &stack, &[]).await?;
            let ids: Vec<String> = services.iter().map(|s| text(&s["ID"])).collect();
            let mut wanted = filter_pairs(&filter)?;
            wanted.push(("service".to_owned(), ids));
            let tasks: Vec<Value> = client.get(&format!("/tasks?filters={}", filters(&wanted))).await?;
            let nodes: Vec<Value> = client.get("/nodes").await?;
            task_table(&tasks, &names(&services, "Spec"), &names(&nodes, "Description"), no_trunc).print();
        }
        Action::Services { stack, filter } => service_table(&services_of(client, &stack, &filter).await?).print(),
        Action::Rm { stacks } => {
            for stack in &stacks {
                remove(client, stack).await?;
            }
        }
    }
    Ok(())
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
    let services = services_of(client, stack, &[]).await?;
    for service in &services {
        println!("Removing service {}", text(&service["Spec"]["Name"]));
        client.call(Method::DELETE, &format!("/services/{}", text(&service["ID"])), None).await?;
    }
    for network in labelled(client, "/networks?", stack).await? {
        println!("Removing network {}", text(&network["Name"]));
        client.call(Method::DELETE, &format!("/networks/{}", text(&network["Id"])), None).await?;
    }
    Ok(())
}
