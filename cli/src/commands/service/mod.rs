//! `skep service`.

mod flags;
mod health;
mod mount;
mod progress;
mod publish;
mod rollout;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::{filters, names, task_table, text};
use crate::client::Client;
use crate::output::human::short_id;
use crate::output::table::Table;
use flags::{CreateFlags, UpdateFlags};

pub use progress::wait_until_converged;

/// Make, change and look at services
#[derive(Debug, Args)]
pub struct ServiceCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a service
    Create(Box<CreateFlags>),
    /// Change a service
    Update(Box<UpdateFlags>),
    /// Return a service to what it was before its last change
    Rollback {
        /// The service
        service: String,
        /// Do not wait until it has converged
        #[arg(short, long)]
        detach: bool,
    },
    /// Change how many tasks services have
    Scale {
        /// SERVICE=REPLICAS
        #[arg(required = true)]
        services: Vec<String>,
        /// Do not wait until they have converged
        #[arg(short, long)]
        detach: bool,
    },
    /// List services
    #[command(alias = "list")]
    Ls {
        /// Print only ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// List the tasks of services
    Ps {
        /// The services
        #[arg(required = true)]
        services: Vec<String>,
        /// Print whole ids and errors
        #[arg(long)]
        no_trunc: bool,
        /// Print only ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show services in full, as JSON
    Inspect {
        /// The services
        #[arg(required = true)]
        services: Vec<String>,
    },
    /// Remove services
    #[command(alias = "remove")]
    Rm {
        /// The services
        #[arg(required = true)]
        services: Vec<String>,
    },
}

/// Runs the command.
pub async fn run(command: ServiceCommand, client: &Client) -> anyhow::Result<()> {
    match command.action {
        Action::Create(flags) => {
            let created: Value = serde_json::from_slice(&client.post("/services/create", &flags.spec()?).await?)?;
            let id = text(&created["ID"]);
            println!("{id}");
            if !flags.detach() {
                wait_until_converged(client, &id).await?;
            }
        }
        Action::Update(flags) => update(client, &flags).await?,
        Action::Rollback { service, detach } => {
            let found = get(client, &service).await?;
            let path = format!(
                "/services/{}/update?version={}&rollback=previous",
                text(&found["ID"]),
                found["Version"]["Index"]
            );
            client.post(&path, &found["Spec"]).await?;
            println!("{service}");
            if !detach {
                wait_until_converged(client, &text(&found["ID"])).await?;
            }
        }
        Action::Scale { services, detach } => scale(client, &services, detach).await?,
        Action::Ls { quiet } => {
            let services: Vec<Value> = client.get("/services?status=true").await?;
            if quiet {
                services.iter().for_each(|s| println!("{}", text(&s["ID"])));
            } else {
                service_table(&services).print();
            }
        }
        Action::Ps { services, no_trunc, quiet } => {
            let mut ids = Vec::new();
            for service in &services {
                ids.push(text(&get(client, service).await?["ID"]));
            }
            let tasks: Vec<Value> = client.get(&format!("/tasks?filters={}", filters(&[("service", &ids)]))).await?;
            if quiet {
                tasks.iter().for_each(|t| println!("{}", text(&t["ID"])));
                return Ok(());
            }
            let services: Vec<Value> = client.get("/services").await?;
            let nodes: Vec<Value> = client.get("/nodes").await?;
            task_table(&tasks, &names(&services, "Spec"), &names(&nodes, "Description"), no_trunc).print();
        }
        Action::Inspect { services } => {
            let mut found = Vec::new();
            for service in &services {
                found.push(get(client, service).await?);
            }
            println!("{}", serde_json::to_string_pretty(&found)?);
        }
        Action::Rm { services } => {
            for service in &services {
                client.call(Method::DELETE, &format!("/services/{service}"), None).await?;
                println!("{service}");
            }
        }
    }
    Ok(())
}

async fn get(client: &Client, service: &str) -> anyhow::Result<Value> {
    client.get(&format!("/services/{service}")).await
}

async fn update(client: &Client, flags: &UpdateFlags) -> anyhow::Result<()> {
    let found = get(client, flags.service()).await?;
    let id = text(&found["ID"]);
    let spec = flags.apply(found["Spec"].clone())?;
    client.post(&format!("/services/{id}/update?version={}", found["Version"]["Index"]), &spec).await?;
    println!("{}", flags.service());
    if !flags.detach() {
        wait_until_converged(client, &id).await?;
    }
    Ok(())
}

async fn scale(client: &Client, arguments: &[String], detach: bool) -> anyhow::Result<()> {
    let mut wanted = Vec::new();
    for argument in arguments {
        let (service, count) =
            argument.split_once('=').with_context(|| format!("{argument:?} is not SERVICE=REPLICAS"))?;
        let count: u64 = count.parse().with_context(|| format!("{count:?} is no number of replicas"))?;
        wanted.push((service, count));
    }
    let mut ids = Vec::new();
    for (service, count) in wanted {
        let found = get(client, service).await?;
        ensure!(
            found["Spec"]["Mode"]["Replicated"].is_object(),
            "{service}: scale can only be used with replicated mode"
        );
        let mut spec = found["Spec"].clone();
        spec["Mode"]["Replicated"]["Replicas"] = json!(count);
        let id = text(&found["ID"]);
        client.post(&format!("/services/{id}/update?version={}", found["Version"]["Index"]), &spec).await?;
        println!("{service} scaled to {count}");
        ids.push(id);
    }
    if !detach {
        for id in &ids {
            wait_until_converged(client, id).await?;
        }
    }
    Ok(())
}

/// The table of `service ls` and `stack services`.
pub fn service_table(services: &[Value]) -> Table {
    let mut rows: Vec<&Value> = services.iter().collect();
    rows.sort_by_key(|s| text(&s["Spec"]["Name"]));
    let mut table = Table::new(&["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"]);
    for service in rows {
        let mode = if service["Spec"]["Mode"]["Global"].is_object() { "global" } else { "replicated" };
        let status = &service["ServiceStatus"];
        let image = text(&service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]);
        table.row([
            short_id(&text(&service["ID"]), false),
            text(&service["Spec"]["Name"]),
            mode.to_owned(),
            format!("{}/{}", status["RunningTasks"], status["DesiredTasks"]),
            image.split('@').next().unwrap_or_default().to_owned(),
            published_ports(service),
        ]);
    }
    table
}

fn published_ports(service: &Value) -> String {
    let ports = service["Endpoint"]["Ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ingress = ports.iter().filter(|p| p["PublishMode"] == "ingress");
    let shown: Vec<String> =
        ingress.map(|p| format!("*:{}->{}/{}", p["PublishedPort"], p["TargetPort"], text(&p["Protocol"]))).collect();
    shown.join(", ")
}
