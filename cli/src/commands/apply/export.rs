//! `skep stack export`: a stack of the cluster as a file.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, ValueEnum};
use serde_json::Value;
use skep_api::manifest::export::{Export, Exported, ExportedFile};
use skep_api::manifest::plan::Wanted;
use skep_api::manifest::stack::{Content, FileKind, STACK_LABEL};
use skep_api::manifest::{compose, kube};

use super::FILE_LABEL;
use super::observe::{observe, path};
use crate::client::Client;
use crate::commands::{filters, text};

/// What `skep stack export` takes
#[derive(Debug, Args)]
pub struct ExportFlags {
    /// The stack
    stack: String,
    /// The format
    #[arg(short, long, value_enum, default_value = "compose")]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A Compose file
    Compose,
    /// Kubernetes manifests
    Kube,
}

/// Writes the file to standard output. Applied again, it changes nothing.
///
/// # Errors
/// What the format cannot say.
pub async fn run(flags: ExportFlags, client: &Client) -> anyhow::Result<()> {
    let wanted = Wanted { name: flags.stack.clone(), ..Wanted::default() };
    let observed = observe(client, &wanted, &[]).await?.observed;
    ensure!(!observed.services.is_empty(), "nothing found in stack: {}", flags.stack);
    let from = Export {
        stack: &flags.stack,
        services: observed.services.into_iter().map(|(name, seen)| (name, seen.spec)).collect(),
        networks: observed.networks.into_iter().map(|(name, seen)| (name, seen.shown)).collect(),
        files: if flags.output == Format::Kube { files(client, &flags.stack).await? } else { BTreeMap::new() },
    };
    let exported = match flags.output {
        Format::Compose => compose::export::export(&from).map(|text| Exported { text, warnings: Vec::new() }),
        Format::Kube => kube::export::export(&from),
    };
    let exported = exported.map_err(|problems| anyhow!("the stack {} cannot be exported\n{problems}", flags.stack))?;
    exported.warnings.iter().for_each(|line| eprintln!("warning: {line}"));
    print!("{}", exported.text);
    Ok(())
}

/// Secrets and configs of the stack, configs with their content.
async fn files(client: &Client, stack: &str) -> anyhow::Result<BTreeMap<(FileKind, String), ExportedFile>> {
    let query = filters(&[("label", &[format!("{STACK_LABEL}={stack}")])]);
    let mut files = BTreeMap::new();
    for kind in [FileKind::Secret, FileKind::Config] {
        let found: Vec<Value> = client.get(&format!("{}?filters={query}", path(kind))).await?;
        for object in found {
            let spec = &object["Spec"];
            let data = spec["Data"].as_str().filter(|_| kind == FileKind::Config);
            let name = text(&spec["Name"]);
            let content = data.map(|data| BASE64_STANDARD.decode(data)).transpose();
            let content = content.with_context(|| format!("reading the config {name}"))?.map(Content);
            let key = spec["Labels"][FILE_LABEL].as_str().map(str::to_owned);
            let is_template = spec["Templating"]["Name"].as_str().is_some_and(|driver| !driver.is_empty());
            files.insert((kind, name), ExportedFile { key, content, is_template });
        }
    }
    Ok(files)
}
