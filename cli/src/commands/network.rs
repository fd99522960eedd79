//! `skep network`.

use std::net::IpAddr;

use anyhow::Context;
use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{filter_pairs, filters, inspect_each_with, pairs, remove_each, text};
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
        /// The routing mesh of the cluster, in the place of one that was removed
        #[arg(long)]
        ingress: bool,
        /// No way out
        #[arg(long)]
        internal: bool,
        /// IPv6 addresses beside IPv4 ones
        #[arg(long)]
        ipv6: bool,
        /// Subnet, CIDR; one of each family
        #[arg(long)]
        subnet: Vec<String>,
        /// Part of a subnet that addresses are given from, CIDR; one of each family
        #[arg(long)]
        ip_range: Vec<String>,
        /// Address of the gateway; one of each family
        #[arg(long)]
        gateway: Vec<String>,
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
        /// Also services and tasks on networks of the cluster
        #[arg(short, long)]
        verbose: bool,
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
        /// Address asked for, IPv6
        #[arg(long)]
        ip6: Option<std::net::Ipv6Addr>,
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
        Action::Create { name, driver, attachable, ingress, internal, ipv6, subnet, ip_range, gateway, opt, label } => {
            let ipam = ipam(&subnet, &ip_range, &gateway)?;
            let request = json!({
                "Name": name, "Driver": driver, "Attachable": attachable, "Ingress": ingress, "Internal": internal, "EnableIPv6": ipv6,
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
        Action::Connect { network, container, alias, ip, ip6 } => {
            let address = ip.map(|ip| ip.to_string()).unwrap_or_default();
            let address6 = ip6.map(|ip| ip.to_string()).unwrap_or_default();
            let ipam = json!({"IPv4Address": address, "IPv6Address": address6});
            let endpoint = json!({"Aliases": alias, "IPAMConfig": ipam});
            let request = json!({"Container": container, "EndpointConfig": endpoint});
            client.post(&format!("/networks/{network}/connect"), &request).await?;
        }
        Action::Disconnect { force, network, container } => {
            let request = json!({"Container": container, "Force": force});
            client.post(&format!("/networks/{network}/disconnect"), &request).await?;
        }
        Action::Inspect { verbose, networks } => {
            let query = if verbose { "?verbose=true" } else { "" };
            inspect_each_with(client, "/networks", query, &networks).await?;
        }
        Action::Rm { networks } => remove_each(client, "/networks", &networks).await?,
    }
    Ok(())
}

/// Ranges and gateways with the subnets that they lie in.
fn ipam(subnets: &[String], ranges: &[String], gateways: &[String]) -> anyhow::Result<Vec<Value>> {
    let mut parsed: Vec<(IpNet, Value)> = Vec::new();
    for text in subnets {
        let subnet = text.parse().with_context(|| format!("--subnet {text} is not a subnet such as 10.1.0.0/24"))?;
        parsed.push((subnet, json!({"Subnet": text})));
    }
    for text in ranges {
        let range: IpNet = text.parse().with_context(|| format!("--ip-range {text} is not a subnet"))?;
        let owner = parsed.iter_mut().find(|(subnet, _)| subnet.contains(&range));
        owner.with_context(|| format!("--ip-range {text} is in no --subnet"))?.1["IPRange"] = json!(text);
    }
    for text in gateways {
        let gateway: IpAddr = text.parse().with_context(|| format!("--gateway {text} is not an address"))?;
        let owner = parsed.iter_mut().find(|(subnet, _)| subnet.contains(&gateway));
        owner.with_context(|| format!("--gateway {text} is in no --subnet"))?.1["Gateway"] = json!(text);
    }
    Ok(parsed.into_iter().map(|(_, config)| config).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_gateways_go_to_the_subnets_that_they_lie_in() {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let (subnets, gateways) = (owned(&["10.1.0.0/24", "fd01::/64"]), owned(&["fd01::9", "10.1.0.9"]));
        let made = ipam(&subnets, &owned(&["fd01::/80"]), &gateways).unwrap();
        let wanted = [
            json!({"Subnet": "10.1.0.0/24", "Gateway": "10.1.0.9"}),
            json!({"Subnet": "fd01::/64", "IPRange": "fd01::/80", "Gateway": "fd01::9"}),
        ];
        assert_eq!(made, wanted);
        assert!(ipam(&subnets, &[], &owned(&["fd02::1"])).is_err());
        assert!(ipam(&owned(&["x"]), &[], &[]).is_err());
    }
}
