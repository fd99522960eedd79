//! `skep service`.

mod flags;
mod health;
mod lists;
mod logs;
pub mod mount;
mod pretty;
mod progress;
mod publish;
mod registry;
mod rollout;
mod security;
mod values;

use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::{TaskFlags, each, filter_pairs, filters, remove_each, text};
use crate::client::Client;
use crate::output::format::Format;
use crate::output::human::short_id;
use crate::output::table::Table;
use flags::{CreateFlags, UpdateFlags};

use progress::WaitFlags;
pub use progress::wait_until_converged;
pub use values::{bytes, nano_cpus, nanoseconds};

const POLL: Duration = Duration::from_millis(200);

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
        #[command(flatten)]
        wait: WaitFlags,
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
    /// Move tasks of services to where they have too few, each only once it runs there
    Rebalance {
        /// The services
        #[arg(required_unless_present = "all")]
        services: Vec<String>,
        /// All replicated services
        #[arg(long, conflicts_with = "services")]
        all: bool,
        /// Do not wait until they are even
        #[arg(short, long)]
        detach: bool,
    },
    /// List services
    #[command(alias = "list")]
    Ls {
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
    /// List the tasks of services
    Ps {
        /// The services
        #[arg(required = true)]
        services: Vec<String>,
        #[command(flatten)]
        flags: TaskFlags,
    },
    Logs(logs::LogsFlags),
    /// Show services in full, as JSON
    Inspect {
        /// json, or a text with fields such as {{.Spec.Name}}
        #[arg(short, long, conflicts_with = "pretty")]
        format: Option<String>,
        /// For people
        #[arg(long)]
        pretty: bool,
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
            let mut spec = flags.spec()?;
            flags.files.apply(&mut spec, client).await?;
            let path = "/services/create";
            let created = flags.registry.post(client, path, &spec).await?;
            let id = text(&serde_json::from_slice::<Value>(&created)?["ID"]);
            println!("{id}");
            flags.wait.until_converged(client, &id).await?;
        }
        Action::Update(flags) => update(client, &flags).await?,
        Action::Rollback { service, wait } => roll_back(client, &service, &wait).await?,
        Action::Scale { services, detach } => scale(client, &services, detach).await?,
        Action::Rebalance { services, all, detach } => rebalance(client, services, all, detach).await?,
        Action::Ls { filter, format, quiet } => {
            let query = filters(&filter_pairs(&filter)?);
            let services: Vec<Value> = client.get(&format!("/services?status=true&filters={query}")).await?;
            print_services(&services, format.as_deref(), quiet)?;
        }
        Action::Ps { services, flags } => {
            let mut ids = Vec::new();
            for service in &services {
                ids.push(text(&get(client, service).await?["ID"]));
            }
            flags.print(client, "service", ids).await?;
        }
        Action::Inspect { format, pretty, services } => inspect(client, format.as_deref(), pretty, &services).await?,
        Action::Logs(flags) => logs::run(flags, client).await?,
        Action::Rm { services } => remove_each(client, "/services", &services).await?,
    }
    Ok(())
}

async fn rebalance(client: &Client, mut services: Vec<String>, all: bool, detach: bool) -> anyhow::Result<()> {
    if all {
        let found: Vec<Value> = client.get("/services").await?;
        let replicated = found.iter().filter(|s| s["Spec"]["Mode"]["Replicated"].is_object());
        services = replicated.map(|s| text(&s["Spec"]["Name"])).collect();
    }
    for service in &services {
        client.call(Method::POST, &format!("/skep/services/{service}/rebalance"), None).await?;
        println!("{service}");
    }
    if detach {
        return Ok(());
    }
    for service in &services {
        while get(client, service).await?["Spec"]["Labels"]["skep.rebalance"] == "once" {
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

async fn get(client: &Client, service: &str) -> anyhow::Result<Value> {
    client.get(&format!("/services/{service}")).await
}

async fn update(client: &Client, flags: &UpdateFlags) -> anyhow::Result<()> {
    if flags.rollback {
        return roll_back(client, flags.service(), &flags.wait).await;
    }
    let found = get(client, flags.service()).await?;
    let id = text(&found["ID"]);
    let mut spec = flags.apply(found["Spec"].clone())?;
    flags.files.apply(&mut spec, client).await?;
    let path = format!("/services/{id}/update?version={}", found["Version"]["Index"]);
    flags.registry.post(client, &path, &spec).await?;
    println!("{}", flags.service());
    flags.wait.until_converged(client, &id).await
}

async fn roll_back(client: &Client, service: &str, wait: &WaitFlags) -> anyhow::Result<()> {
    let found = get(client, service).await?;
    let id = text(&found["ID"]);
    let path = format!("/services/{id}/update?version={}&rollback=previous", found["Version"]["Index"]);
    client.post(&path, &found["Spec"]).await?;
    println!("{service}");
    wait.until_converged(client, &id).await
}

async fn inspect(client: &Client, format: Option<&str>, pretty: bool, services: &[String]) -> anyhow::Result<()> {
    let format = format.map(Format::parse).transpose()?;
    let mut found = Vec::new();
    let result = each(services, async |service: &str| {
        found.push(get(client, service).await?);
        Ok(())
    });
    let result = result.await;
    if pretty {
        let networks: Vec<Value> = client.get("/networks").await?;
        let networks = networks.iter().map(|n| (text(&n["Id"]), text(&n["Name"]))).collect();
        found.iter().for_each(|service| print!("{}", pretty::text(service, &networks)));
    } else if let Some(format) = &format {
        for service in &found {
            println!("{}", format.render(service)?);
        }
    } else {
        println!("{}", serde_json::to_string_pretty(&found)?);
    }
    result
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
        let mut spec = found["Spec"].clone();
        let mode = &mut spec["Mode"];
        ensure!(
            mode["Replicated"].is_object() || mode["ReplicatedJob"].is_object(),
            "{service}: scale can only be used with replicated or replicated-job mode"
        );
        if mode["ReplicatedJob"].is_object() {
            mode["ReplicatedJob"]["TotalCompletions"] = json!(count);
        } else {
            mode["Replicated"]["Replicas"] = json!(count);
        }
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

/// Prints what `service ls` and `stack services` do.
///
/// # Errors
/// A format that cannot be.
pub fn print_services(services: &[Value], format: Option<&str>, quiet: bool) -> anyhow::Result<()> {
    let format = format.map(Format::parse).transpose()?;
    if quiet {
        services.iter().for_each(|s| println!("{}", text(&s["ID"])));
        return Ok(());
    }
    service_table(services).print_as(format.as_ref())
}

fn service_table(services: &[Value]) -> Table {
    let mut rows: Vec<&Value> = services.iter().collect();
    rows.sort_by_key(|s| text(&s["Spec"]["Name"]));
    let mut table = Table::new(&["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"]);
    for service in rows {
        let image = text(&service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]);
        table.row([
            short_id(&text(&service["ID"]), false),
            text(&service["Spec"]["Name"]),
            mode_of(service).to_owned(),
            replicas_of(service),
            image.split('@').next().unwrap_or_default().to_owned(),
            published_ports(service),
        ]);
    }
    table
}

/// The mode in Docker's words.
fn mode_of(service: &Value) -> &'static str {
    let modes = [("Global", "global"), ("ReplicatedJob", "replicated job"), ("GlobalJob", "global job")];
    let is = |(key, _): &&(&str, &'static str)| service["Spec"]["Mode"][*key].is_object();
    modes.iter().find(is).map_or("replicated", |(_, word)| word)
}

/// Tasks that run of those that are wanted; of a job also those that completed.
fn replicas_of(service: &Value) -> String {
    let status = &service["ServiceStatus"];
    let count = |key: &str| status[key].as_u64().unwrap_or_default();
    let (running, desired, completed) = (count("RunningTasks"), count("DesiredTasks"), count("CompletedTasks"));
    let mode = &service["Spec"]["Mode"];
    let mut shown = format!("{running}/{desired}");
    if let Some(total) = mode["ReplicatedJob"]["TotalCompletions"].as_u64() {
        shown += &format!(" ({completed}/{total} completed)");
    } else if mode["GlobalJob"].is_object() {
        shown += &format!(" ({completed}/{} completed)", completed + desired);
    }
    let most = service["Spec"]["TaskTemplate"]["Placement"]["MaxReplicas"].as_u64().unwrap_or_default();
    if most > 0 { format!("{shown} (max {most} per node)") } else { shown }
}

fn published_ports(service: &Value) -> String {
    let ports = service["Endpoint"]["Ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ingress = ports.iter().filter(|p| p["PublishMode"] == "ingress");
    let shown: Vec<String> =
        ingress.map(|p| format!("*:{}->{}/{}", p["PublishedPort"], p["TargetPort"], text(&p["Protocol"]))).collect();
    shown.join(", ")
}
