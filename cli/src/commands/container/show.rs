//! `skep top` and `skep port`.

use anyhow::bail;
use clap::Args;
use serde_json::Value;

use crate::client::{Client, encode};
use crate::commands::text;
use crate::output::table::Table;

/// List a container's processes
#[derive(Debug, Args)]
pub struct TopFlags {
    /// The container, and options of ps
    #[arg(required = true, trailing_var_arg = true, value_names = ["CONTAINER", "OPTIONS"])]
    container_and_options: Vec<String>,
}

/// List a container's published ports
#[derive(Debug, Args)]
pub struct PortFlags {
    /// The container
    container: String,
    /// Only this port of it, PORT[/PROTOCOL]
    port: Option<String>,
}

/// Runs `top`.
pub async fn top(flags: TopFlags, client: &Client) -> anyhow::Result<()> {
    let [container, options @ ..] = flags.container_and_options.as_slice() else { bail!("a container is needed") };
    let path = format!("/containers/{}/top?ps_args={}", encode(container), encode(&options.join(" ")));
    let found: Value = client.get(&path).await?;
    let words = |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().map(text).collect() };
    let titles = words(&found["Titles"]);
    let mut table = Table::new(&titles.iter().map(String::as_str).collect::<Vec<_>>());
    for process in found["Processes"].as_array().into_iter().flatten() {
        table.row(words(process));
    }
    table.print();
    Ok(())
}

/// Runs `port`.
pub async fn port(flags: PortFlags, client: &Client) -> anyhow::Result<()> {
    let found: Value = client.get(&format!("/containers/{}/json", encode(&flags.container))).await?;
    let wanted = flags.port.as_ref().map(|p| if p.contains('/') { p.clone() } else { format!("{p}/tcp") });
    let mut shown = false;
    for (port, bindings) in found["NetworkSettings"]["Ports"].as_object().into_iter().flatten() {
        if wanted.as_ref().is_some_and(|w| w != port) {
            continue;
        }
        for binding in bindings.as_array().into_iter().flatten() {
            let ip = text(&binding["HostIp"]);
            let ip = if ip.contains(':') { format!("[{ip}]") } else { ip };
            let host = format!("{ip}:{}", text(&binding["HostPort"]));
            println!("{}", if wanted.is_some() { host } else { format!("{port} -> {host}") });
            shown = true;
        }
    }
    if let Some(port) = wanted.filter(|_| !shown) {
        bail!("no public port '{port}' published for {}", flags.container);
    }
    Ok(())
}
