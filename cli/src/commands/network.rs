//! `skep network`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{filter_pairs, filters, inspect_each, pairs, remove_each, text};
use crate::client::Client;
use crate::output::format::Format;
use crate::output::human::short_id;
use crate::output::table::Table;

/// Make, look at and remove networks
#[derive(Debug, Args)]
pub struct NetworkCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a network
    Create {
        /// Its name
        name: String,
        /// overlay for the cluster, bridge for this node
        #[arg(short, long, default_value = "bridge")]
        driver: String,
        /// Plain containers may join
        #[arg(long)]
        attachable: bool,
        /// No way out
        #[arg(long)]
        internal: bool,
        /// Subnet, CIDR
        #[arg(long)]
        subnet: Option<String>,
        /// Option of the driver, KEY=VALUE; may be repeated
        #[arg(short, long)]
        opt: Vec<String>,
        /// Label, KEY=VALUE; may be repeated
        #[arg(long)]
        label: Vec<String>,
    },
    /// List networks
    #[command(alias = "list")]
    Ls {
        /// Only some, KEY=VALUE; may be repeated
        #[arg(short, long)]
        filter: Vec<String>,
        /// json, or a text with fields such as {{.Name}}
        #[arg(long)]
        format: Option<String>,
        /// Print whole ids
        #[arg(long)]
        no_trunc: bool,
        /// Print only ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show networks in full, as JSON
    Inspect {
        /// The networks
        #[arg(required = true)]
        networks: Vec<String>,
    },
    /// Have a container join a network
    Connect {
        /// The network
        network: String,
        /// The container
        container: String,
        /// Further name of the container there; may be repeated
        #[arg(long)]
        alias: Vec<String>,
        /// Address asked for
        #[arg(long)]
        ip: Option<std::net::Ipv4Addr>,
    },
    /// Have a container leave a network
    Disconnect {
        /// Also one that is not there any more
        #[arg(short, long)]
        force: bool,
        /// The network
        network: String,
        /// The container
        container: String,
    },
    /// Remove networks
    #[command(alias = "remove")]
    Rm {
        /// The networks
        #[arg(required = true)]
        networks: Vec<String>,
    },
}

/// Runs the command.
pub async fn run(command: NetworkCommand, client: &Client) -> anyhow::Result<()> {
    match command.action {
        Action::Create { name, driver, attachable, internal, subnet, opt, label } => {
            let ipam: Vec<Value> = subnet.iter().map(|s| json!({"Subnet": s})).collect();
            let request = json!({
                "Name": name, "Driver": driver, "Attachable": attachable, "Internal": internal,
                "IPAM": {"Driver": "default", "Config": ipam}, "Options": pairs(&opt), "Labels": pairs(&label),
            });
            let created: Value = serde_json::from_slice(&client.post("/networks/create", &request).await?)?;
            println!("{}", text(&created["Id"]));
        }
        Action::Ls { filter, format, no_trunc, quiet } => {
            let mut networks: Vec<Value> =
                client.get(&format!("/networks?filters={}", filters(&filter_pairs(&filter)?))).await?;
            networks.sort_by_key(|n| text(&n["Name"]));
            if quiet {
                networks.iter().for_each(|n| println!("{}", short_id(&text(&n["Id"]), no_trunc)));
                return Ok(());
            }
            let mut table = Table::new(&["NETWORK ID", "NAME", "DRIVER", "SCOPE"]);
            for n in &networks {
                table.row([
                    short_id(&text(&n["Id"]), no_trunc),
                    text(&n["Name"]),
                    text(&n["Driver"]),
                    text(&n["Scope"]),
                ]);
            }
            table.print_as(format.as_deref().map(Format::parse).transpose()?.as_ref())?;
        }
        Action::Connect { network, container, alias, ip } => {
            let address = ip.map(|ip| ip.to_string()).unwrap_or_default();
            let endpoint = json!({"Aliases": alias, "IPAMConfig": {"IPv4Address": address}});
            let request = json!({"Container": container, "EndpointConfig": endpoint});
            client.post(&format!("/networks/{network}/connect"), &request).await?;
        }
        Action::Disconnect { force, network, container } => {
            let request = json!({"Container": container, "Force": force});
            client.post(&format!("/networks/{network}/disconnect"), &request).await?;
        }
        Action::Inspect { networks } => inspect_each(client, "/networks", &networks).await?,
        Action::Rm { networks } => remove_each(client, "/networks", &networks).await?,
    }
    Ok(())
}
