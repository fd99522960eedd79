//! `skep ps`.

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::text;
use crate::client::Client;
use crate::output::human::{duration, short_id};
use crate::output::table::Table;

/// List containers of this node
#[derive(Debug, Args)]
pub struct PsCommand {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
}

/// Runs it.
pub async fn list(command: PsCommand, client: &Client) -> anyhow::Result<()> {
    let containers: Vec<Value> = client.get(&format!("/containers/json?all={}", u8::from(command.all))).await?;
    let now = Timestamp::now().as_second();
    let mut table = Table::new(&["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
    for container in &containers {
        let id = short_id(&text(&container["Id"]), false);
        if command.quiet {
            println!("{id}");
            continue;
        }
        let mut line = text(&container["Command"]);
        if line.chars().count() > 20 {
            line = line.chars().take(19).chain(['…']).collect();
        }
        let ports = container["Ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let port = |p: &Value| match p["PublicPort"].as_u64() {
            Some(public) => format!("{}:{public}->{}/{}", text(&p["IP"]), p["PrivatePort"], text(&p["Type"])),
            None => format!("{}/{}", p["PrivatePort"], text(&p["Type"])),
        };
        let names = container["Names"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names: Vec<String> = names.iter().map(|n| text(n).trim_start_matches('/').to_owned()).collect();
        table.row([
            id,
            text(&container["Image"]),
            format!("\"{line}\""),
            format!("{} ago", duration(now - container["Created"].as_i64().unwrap_or(now))),
            text(&container["Status"]),
            ports.iter().map(port).collect::<Vec<_>>().join(", "),
            names.join(","),
        ]);
    }
    if !command.quiet {
        table.print();
    }
    Ok(())
}
