//! What the cluster has of a stack.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use skep_api::manifest::plan::{FileSeen, FileWanted, NetworkSeen, Observed, ServiceSeen, Wanted};
use skep_api::manifest::stack::{Content, DeclaredFile, FileKind, STACK_LABEL};

use super::FILE_LABEL;
use super::revisions::{self, Revisions};
use crate::client::{Client, is_not_found};
use crate::commands::{filters, text};

/// What there is, and the revisions.
pub struct Seen {
    /// For the plan.
    pub observed: Observed,
    /// What earlier applies wanted.
    pub revisions: Revisions,
    /// Ids of secrets and configs by kind and name, those that exist outside the stack included.
    pub ids: BTreeMap<(FileKind, String), String>,
}

/// Looks at everything that the plan needs. `contents` are those of `wanted.files`; none for a rollback.
///
/// # Errors
/// What the cluster says, and what must exist and does not.
pub async fn observe(client: &Client, wanted: &Wanted, contents: &[DeclaredFile]) -> anyhow::Result<Seen> {
    let networks: Vec<Value> = client.get("/networks?filters=%7B%22scope%22%3A%7B%22swarm%22%3Atrue%7D%7D").await?;
    let names: BTreeMap<String, String> = networks.iter().map(|n| (text(&n["Id"]), text(&n["Name"]))).collect();
    for name in &wanted.external_networks {
        let is_local = ["host", "bridge", "none"].contains(&name.as_str());
        if !is_local && !names.values().any(|n| n == name) {
            bail!(
                "network {name:?} is declared as external, but could not be found: make it with `skep network create -d overlay {name}`"
            );
        }
    }
    let stack = &wanted.name;
    let is_ours = |labels: &Value| labels[STACK_LABEL] == stack.as_str();
    let mut observed = Observed::default();
    for network in networks.into_iter().filter(|n| is_ours(&n["Labels"])) {
        observed.networks.insert(text(&network["Name"]), NetworkSeen { id: text(&network["Id"]), shown: network });
    }
    let services: Vec<Value> = client.get("/services").await?;
    for service in services {
        let (name, labels) = (text(&service["Spec"]["Name"]), &service["Spec"]["Labels"]);
        if is_ours(labels) {
            observed.services.insert(name, seen(&service, &names));
        } else if wanted.services.contains_key(&name) {
            observed.foreign.insert(name, text(&labels[STACK_LABEL]));
        }
    }
    let configs = revisions::configs_of(client, stack).await?;
    let revisions = Revisions::read(&configs)?;
    let query = filters(&[("label", &[format!("{STACK_LABEL}={stack}")])]);
    let secrets: Vec<Value> = client.get(&format!("/secrets?filters={query}")).await?;
    let configs = configs.into_iter().filter(|c| c["Spec"]["Labels"][revisions::LABEL].is_null());
    let mut ids = BTreeMap::new();
    let all = configs.map(|c| (FileKind::Config, c)).chain(secrets.into_iter().map(|s| (FileKind::Secret, s)));
    for (kind, object) in all {
        let (id, name) = (text(&object["ID"]), text(&object["Spec"]["Name"]));
        ids.insert((kind, name.clone()), id.clone());
        let mut same_as = None;
        for file in contents.iter().filter(|f| f.kind == kind && f.content.is_some() && could_be(&name, f)) {
            if is_same(client, file, &object).await? {
                same_as = Some(file.name.clone());
            }
        }
        let is_ours = !object["Spec"]["Labels"][FILE_LABEL].is_null();
        observed.files.push(FileSeen { kind, id, name, same_as, is_ours });
    }
    for file in wanted.files.iter().filter(|f| !f.has_content) {
        ids.insert((file.kind, file.name.clone()), external(client, file).await?);
    }
    observed.last = revisions.last().map(|r| r.wanted.clone());
    observed.held = revisions.all.iter().flat_map(|r| r.wanted.references()).collect();
    Ok(Seen { observed, revisions, ids })
}

fn seen(service: &Value, networks: &BTreeMap<String, String>) -> ServiceSeen {
    let mut spec = service["Spec"].clone();
    for network in spec["TaskTemplate"]["Networks"].as_array_mut().into_iter().flatten() {
        if let Some(name) = networks.get(&text(&network["Target"])) {
            network["Target"] = json!(name);
        }
    }
    ServiceSeen { id: text(&service["ID"]), version: service["Version"]["Index"].as_u64().unwrap_or(0), spec }
}

/// `NAME`, or `NAME-2`…
fn could_be(name: &str, file: &DeclaredFile) -> bool {
    name.strip_prefix(&file.name)
        .is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(|n| n.parse::<u64>().is_ok()))
}

/// Path of a kind in the API.
pub fn path(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Secret => "/secrets",
        FileKind::Config => "/configs",
    }
}

/// Whether an object has a file's content.
async fn is_same(client: &Client, file: &DeclaredFile, object: &Value) -> anyhow::Result<bool> {
    let Some(Content(content)) = &file.content else { return Ok(false) };
    let template = &object["Spec"]["Templating"]["Name"];
    if template.as_str().filter(|t| !t.is_empty()) != file.template_driver.as_deref() {
        return Ok(false);
    }
    let data = BASE64_STANDARD.encode(content);
    if file.kind == FileKind::Config {
        return Ok(object["Spec"]["Data"] == data.as_str());
    }
    // Nobody is shown a secret. An update with another content is refused for that, one with the same content and a
    // version that never was for the version: in both cases nothing changes, and the words tell which it is.
    let body = json!({"Name": object["Spec"]["Name"], "Labels": object["Spec"]["Labels"], "Data": data});
    let id = text(&object["ID"]);
    let answer = client.post(&format!("/secrets/{id}/update?version=1"), &body).await;
    let words = answer.err().map(|error| error.to_string()).unwrap_or_default();
    if words.contains("only updates to Labels are allowed") {
        return Ok(false);
    }
    if words.contains("out of sequence") {
        return Ok(true);
    }
    bail!("comparing the secret {}: the daemon answers {words:?}", text(&object["Spec"]["Name"]))
}

async fn external(client: &Client, file: &FileWanted) -> anyhow::Result<String> {
    let (word, name) = (file.kind.word(), &file.name);
    let found: anyhow::Result<Value> = client.get(&format!("{}/{name}", path(file.kind))).await;
    match found {
        Ok(found) => Ok(text(&found["ID"])),
        Err(error) if is_not_found(&error) => {
            bail!("the {word} {name} must exist, but could not be found: make it with `skep {word} create {name} FILE`")
        }
        Err(error) => Err(error).with_context(|| format!("looking for the {word} {name}")),
    }
}
