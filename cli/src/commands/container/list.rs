//! `skep ps`.

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::client::Client;
use crate::commands::{filter_pairs, filters, pairs_text, text};
use crate::output::format::Format;
use crate::output::human::{duration, short_id, size};
use crate::output::table::Table;

/// List containers of this node
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "Docker's flags")]
pub struct PsCommand {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only some, KEY=VALUE; may be repeated
    #[arg(short, long)]
    filter: Vec<String>,
    /// json, or a text with fields such as {{.Names}}
    #[arg(long)]
    format: Option<String>,
    /// So many that were made last; -1 for all
    #[arg(short = 'n', long, default_value_t = -1, allow_hyphen_values = true)]
    last: i64,
    /// The one that was made last
    #[arg(short, long)]
    latest: bool,
    /// Print whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Print sizes
    #[arg(short, long)]
    size: bool,
}

/// Runs it.
pub async fn list(command: PsCommand, client: &Client) -> anyhow::Result<()> {
    let format = command.format.as_deref().map(Format::parse).transpose()?;
    let wanted = filter_pairs(&command.filter)?;
    let limit = if command.latest { 1 } else { command.last.max(0) };
    let path = format!(
        "/containers/json?all={}&limit={limit}&size={}&filters={}",
        u8::from(command.all),
        u8::from(command.size),
        filters(&wanted)
    );
    let containers: Vec<Value> = client.get(&path).await?;
    let now = Timestamp::now().as_second();
    let mut headings = vec!["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
    headings.extend(command.size.then_some("SIZE"));
    let mut table = Table::new(&headings);
    for container in &containers {
        let row = Row::new(container, command.no_trunc, now);
        if command.quiet {
            println!("{}", row.id);
        } else if let Some(format) = &format {
            println!("{}", format.render(&row.fields(container))?);
        } else {
            let size = command.size.then(|| row.size.clone());
            table.row(row.cells().into_iter().chain(size));
        }
    }
    if !command.quiet && format.is_none() {
        table.print();
    }
    Ok(())
}

/// A container as a line shows it.
struct Row {
    id: String,
    image: String,
    command: String,
    running_for: String,
    status: String,
    ports: String,
    names: String,
    size: String,
}

impl Row {
    fn new(container: &Value, whole: bool, now: i64) -> Self {
        let mut line = text(&container["Command"]);
        if !whole && line.chars().count() > 20 {
            line = line.chars().take(19).chain(['…']).collect();
        }
        let names = container["Names"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names: Vec<String> = names.iter().map(|n| text(n).trim_start_matches('/').to_owned()).collect();
        let image_size = size(container["SizeRootFs"].as_u64().unwrap_or(0));
        Self {
            id: short_id(&text(&container["Id"]), whole),
            image: text(&container["Image"]),
            command: format!("\"{line}\""),
            running_for: format!("{} ago", duration(now - container["Created"].as_i64().unwrap_or(now))),
            status: text(&container["Status"]),
            ports: ports(container),
            names: names.join(","),
            size: format!("{} (virtual {image_size})", size(container["SizeRw"].as_u64().unwrap_or(0))),
        }
    }

    fn cells(&self) -> Vec<String> {
        [&self.id, &self.image, &self.command, &self.running_for, &self.status, &self.ports, &self.names]
            .map(Clone::clone)
            .to_vec()
    }

    /// Docker's names of what a format may print.
    fn fields(&self, container: &Value) -> Value {
        let created = container["Created"].as_i64().and_then(|at| Timestamp::from_second(at).ok());
        let networks = container["NetworkSettings"]["Networks"].as_object();
        let networks = networks.map(|n| n.keys().cloned().collect::<Vec<_>>().join(",")).unwrap_or_default();
        json!({
            "Command": self.command,
            "CreatedAt": created.map(|at| at.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()).unwrap_or_default(),
            "ID": self.id,
            "Image": self.image,
            "Labels": pairs_text(&container["Labels"]),
            "Names": self.names,
            "Networks": networks,
            "Ports": self.ports,
            "RunningFor": self.running_for,
            "Size": self.size,
            "State": text(&container["State"]),
            "Status": self.status,
        })
    }
}

fn ports(container: &Value) -> String {
    let ports = container["Ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shown = ports.iter().map(|p| match p["PublicPort"].as_u64() {
        Some(public) => {
            let ip = text(&p["IP"]);
            let ip = if ip.contains(':') { format!("[{ip}]") } else { ip };
            format!("{ip}:{public}->{}/{}", p["PrivatePort"], text(&p["Type"]))
        }
        None => format!("{}/{}", p["PrivatePort"], text(&p["Type"])),
    });
    shown.collect::<Vec<_>>().join(", ")
}
