//! `skep version` and `skep info`.

use clap::Args;
use serde_json::{Value, json};

use super::text;
use crate::client::{API_VERSION, Client};
use crate::output::format::Format;

/// How to print.
#[derive(Debug, Args)]
pub struct FormatFlags {
    /// json, or a text with fields
    #[arg(short, long)]
    format: Option<String>,
}

/// Runs `version`.
pub async fn version(flags: FormatFlags, client: &Client) -> anyhow::Result<()> {
    let own = json!({"Version": env!("CARGO_PKG_VERSION"), "ApiVersion": API_VERSION.trim_start_matches('v')});
    if let Some(format) = flags.format {
        let format = Format::parse(&format)?;
        let server: Value = client.get("/version").await?;
        println!("{}", format.render(&json!({"Client": own, "Server": server}))?);
        return Ok(());
    }
    println!("Client:\n Version:     {}\n API version: {}", text(&own["Version"]), text(&own["ApiVersion"]));
    let server: Value = client.get("/version").await?;
    println!(
        "\nServer:\n Version:     {}\n API version: {} (minimum version {})",
        text(&server["Version"]),
        text(&server["ApiVersion"]),
        text(&server["MinAPIVersion"])
    );
    println!(
        " OS/Arch:     {}/{}\n Kernel:      {}",
        text(&server["Os"]),
        text(&server["Arch"]),
        text(&server["KernelVersion"])
    );
    Ok(())
}

/// Runs `info`.
pub async fn info(flags: FormatFlags, client: &Client) -> anyhow::Result<()> {
    let info: Value = client.get("/info").await?;
    if let Some(format) = flags.format {
        println!("{}", Format::parse(&format)?.render(&info)?);
        return Ok(());
    }
    let line = |name: &str, value: &Value| match value {
        Value::String(text) => println!(" {name}: {text}"),
        other => println!(" {name}: {other}"),
    };
    println!("Server:");
    for (name, key) in [
        ("Containers", "Containers"),
        (" Running", "ContainersRunning"),
        (" Paused", "ContainersPaused"),
        (" Stopped", "ContainersStopped"),
        ("Images", "Images"),
        ("Server Version", "ServerVersion"),
        ("Storage Driver", "Driver"),
        ("Logging Driver", "LoggingDriver"),
        ("Cgroup Driver", "CgroupDriver"),
        ("Cgroup Version", "CgroupVersion"),
    ] {
        line(name, &info[key]);
    }
    swarm(&info["Swarm"]);
    for (name, key) in [
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
    ] {
        line(name, &info[key]);
    }
    println!(" Total Memory: {}", binary_size(info["MemTotal"].as_u64().unwrap_or(0)));
    for (name, key) in [("Name", "Name"), ("ID", "ID"), ("Docker Root Dir", "DockerRootDir")] {
        line(name, &info[key]);
    }
    for warning in info["Warnings"].as_array().into_iter().flatten() {
        eprintln!("{}", text(warning));
    }
    Ok(())
}

fn swarm(swarm: &Value) {
    println!(" Swarm: {}", text(&swarm["LocalNodeState"]));
    if swarm["LocalNodeState"] == "inactive" {
        return;
    }
    println!("  NodeID: {}", text(&swarm["NodeID"]));
    if let Some(error) = swarm["Error"].as_str().filter(|e| !e.is_empty()) {
        println!("  Error: {error}");
    }
    let is_manager = swarm["ControlAvailable"] == true;
    println!("  Is Manager: {is_manager}");
    if is_manager {
        println!(
            "  ClusterID: {}\n  Managers: {}\n  Nodes: {}",
            text(&swarm["Cluster"]["ID"]),
            swarm["Managers"],
            swarm["Nodes"]
        );
    }
    println!("  Node Address: {}", text(&swarm["NodeAddr"]));
    let managers = swarm["RemoteManagers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !managers.is_empty() {
        println!("  Manager Addresses:");
        managers.iter().for_each(|m| println!("   {}", text(&m["Addr"])));
    }
}

/// A size in binary units with four digits (go-units, `BytesSize`).
fn binary_size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    let digits = if value >= 100.0 {
        1
    } else if value >= 10.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_reads_as_dockers() {
        let read = [0, 1023, 1 << 20, 16_777_216_000].map(binary_size);
        assert_eq!(read, ["0B", "1023B", "1MiB", "15.62GiB"]);
    }
}
