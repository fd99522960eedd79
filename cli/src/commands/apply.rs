//! `skep apply`: makes the cluster match a Compose file.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;
use skep_api::docker::requests;
use skep_api::manifest::stack::STACK_LABEL;
use skep_api::manifest::{Disk, Input, Options, Stack};

use super::service::wait_until_converged;
use super::{apply_files, filters, text};
use crate::client::Client;

/// Make the cluster match a Compose file
#[derive(Debug, Args)]
pub struct ApplyCommand {
    /// The file; - for standard input
    #[arg(short, long)]
    file: PathBuf,
    /// Name of the stack [default: the file's name:, else its directory's]
    #[arg(long)]
    stack: Option<String>,
    /// Do not wait until the services have converged
    #[arg(short, long)]
    detach: bool,
}

/// Runs it.
pub async fn run(command: ApplyCommand, client: &Client) -> anyhow::Result<()> {
    let stack = read(&command)?;
    stack.warnings.iter().for_each(|line| eprintln!("{line}"));
    check_external_networks(client, &stack).await?;
    make_networks(client, &stack).await?;
    let files = apply_files::make(client, &stack).await?;
    let existing = services_by_name(client, &stack.name).await?;
    let mut changed = Vec::new();
    for service in &stack.parts.services {
        let spec = service.whole_spec();
        let mut wanted = requests::service_spec(&spec);
        apply_files::resolve(&mut wanted, &files);
        changed
            .extend(apply_service(client, &spec.annotations.name, wanted, existing.get(&spec.annotations.name)).await?);
    }
    if !command.detach {
        for id in &changed {
            wait_until_converged(client, id).await?;
        }
    }
    apply_files::remove_old(client, &stack, &files).await
}

/// The disk itself.
struct RealDisk;

impl Disk for RealDisk {
    fn read(&self, path: &Path, most: usize) -> std::io::Result<Vec<u8>> {
        let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
        let mut content = Vec::new();
        std::fs::File::open(path)?.take(limit).read_to_end(&mut content)?;
        if content.len() > most { Err(std::io::ErrorKind::FileTooLarge.into()) } else { Ok(content) }
    }
}

/// Variables of the caller, those that are text.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// The stack that the file wants.
fn read(command: &ApplyCommand) -> anyhow::Result<Stack> {
    let from_input = command.file == Path::new("-");
    let (name, content) = if from_input {
        let mut content = String::new();
        let limit = u64::try_from(skep_api::manifest::yaml::MOST_BYTES + 1)?;
        std::io::stdin().lock().take(limit).read_to_string(&mut content).context("reading standard input")?;
        ("standard input".to_owned(), content)
    } else {
        let content =
            std::fs::read_to_string(&command.file).with_context(|| format!("reading {}", command.file.display()))?;
        (command.file.display().to_string(), content)
    };
    let directory = if from_input { std::env::current_dir() } else { command.file.canonicalize() };
    let directory = directory.context("finding the name of the stack")?;
    let directory = if from_input { directory } else { directory.parent().map(Path::to_owned).unwrap_or_default() };
    let options = Options {
        stack: command.stack.clone(),
        directory: directory.clone(),
        environment: environment(),
        ..Options::default()
    };
    skep_api::manifest::read(&[Input { name, text: content, directory }], &options, &RealDisk).map_err(|problems| {
        let count = problems.count();
        anyhow::anyhow!("{count} problem{}; nothing was changed\n{problems}", if count == 1 { "" } else { "s" })
    })
}

async fn check_external_networks(client: &Client, stack: &Stack) -> anyhow::Result<()> {
    for network in &stack.parts.external_networks {
        let found: anyhow::Result<Value> = client.get(&format!("/networks/{network}?scope=swarm")).await;
        if found.is_err() {
            bail!(
                "network {network:?} is declared as external, but could not be found: make it with `skep network create -d overlay {network}`"
            );
        }
    }
    Ok(())
}

async fn make_networks(client: &Client, stack: &Stack) -> anyhow::Result<()> {
    let query = filters(&[("label", &[format!("{STACK_LABEL}={}", stack.name)])]);
    let existing: Vec<Value> = client.get(&format!("/networks?filters={query}")).await?;
    for spec in &stack.parts.networks {
        if !existing.iter().any(|n| text(&n["Name"]) == spec.annotations.name) {
            println!("network {} created", spec.annotations.name);
            client.post("/networks/create", &requests::network_create(spec)).await?;
        }
    }
    Ok(())
}

async fn services_by_name(client: &Client, stack: &str) -> anyhow::Result<BTreeMap<String, Value>> {
    let query = filters(&[("label", &[format!("{STACK_LABEL}={stack}")])]);
    let services: Vec<Value> = client.get(&format!("/services?filters={query}")).await?;
    Ok(services.into_iter().map(|s| (text(&s["Spec"]["Name"]), s)).collect())
}

/// Makes or changes one service; the id when there was something to do.
async fn apply_service(
    client: &Client,
    name: &str,
    wanted: Value,
    existing: Option<&Value>,
) -> anyhow::Result<Option<String>> {
    let Some(existing) = existing else {
        let made =
            client.post("/services/create", &wanted).await.with_context(|| format!("making the service {name}"))?;
        println!("service {name} created");
        return Ok(Some(text(&serde_json::from_slice::<Value>(&made)?["ID"])));
    };
    let id = text(&existing["ID"]);
    if same_spec(client, &existing["Spec"], &wanted).await? {
        println!("service {name} unchanged");
        return Ok(None);
    }
    let path = format!("/services/{id}/update?version={}", existing["Version"]["Index"]);
    client.post(&path, &wanted).await.with_context(|| format!("changing the service {name}"))?;
    println!("service {name} changed");
    Ok(Some(id))
}

/// Whether the cluster's spec is the file's: the cluster names networks by id.
async fn same_spec(client: &Client, existing: &Value, wanted: &Value) -> anyhow::Result<bool> {
    let mut existing = existing.clone();
    if let Some(networks) = existing["TaskTemplate"]["Networks"].as_array_mut() {
        for network in networks {
            let found: Value = client.get(&format!("/networks/{}", text(&network["Target"]))).await?;
            network["Target"] = found["Name"].clone();
        }
    }
    Ok(without_empty(&existing) == without_empty(wanted))
}

/// A value without members that say nothing: absent, null, empty and zero mean the same in a spec.
fn without_empty(value: &Value) -> Option<Value> {
    let kept = match value {
        Value::Object(map) => {
            Value::Object(map.iter().filter_map(|(k, v)| Some((k.clone(), without_empty(v)?))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(|v| without_empty(v).unwrap_or(Value::Null)).collect()),
        other => other.clone(),
    };
    let says_nothing = match &kept {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    };
    (!says_nothing).then_some(kept)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_that_say_nothing_make_no_difference() {
        let a = json!({"Name": "x", "Labels": {}, "Replicas": 2, "TTY": false, "Env": null});
        assert_eq!(without_empty(&a), without_empty(&json!({"Name": "x", "Replicas": 2})));
        assert_ne!(without_empty(&a), without_empty(&json!({"Name": "x", "Replicas": 3})));
    }
}
