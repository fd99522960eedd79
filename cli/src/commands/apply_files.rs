//! Secrets and configs of `skep apply`.
//!
//! The content of a secret or config never changes in the cluster. Another content becomes another object, `NAME-2`,
//! `NAME-3`…, that services then use under the same target: their tasks are replaced as by any other change. Those that
//! no service uses any more are removed afterwards.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use serde_json::{Value, json};
use skep_api::manifest::stack::{Content, DeclaredFile, FileKind, STACK_LABEL, Stack};

use super::{filters, text};
use crate::client::{ApiError, Client};

/// The label that says which file of the stack an object holds, whatever number it has.
const FILE_LABEL: &str = "io.skep.stack.file";
/// Swarm's refusal of another content.
const OTHER_CONTENT: &str = "only updates to Labels are allowed";

/// What the cluster has for the names of a stack's specs: id and name.
pub struct InCluster(BTreeMap<(FileKind, String), (String, String)>);

fn path(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Secret => "/secrets",
        FileKind::Config => "/configs",
    }
}

/// Makes what is missing.
pub async fn make(client: &Client, stack: &Stack) -> anyhow::Result<InCluster> {
    let mut known = BTreeMap::new();
    for file in &stack.parts.files {
        let found = match &file.content {
            None => external(client, file).await?,
            Some(Content(content)) => with_content(client, file, content).await?,
        };
        known.insert((file.kind, file.name.clone()), found);
    }
    Ok(InCluster(known))
}

async fn external(client: &Client, file: &DeclaredFile) -> anyhow::Result<(String, String)> {
    let (word, name) = (file.kind.word(), &file.name);
    let found: anyhow::Result<Value> = client.get(&format!("{}/{name}", path(file.kind))).await;
    let found = found.with_context(|| {
        format!("the {word} {name} is declared as external, but could not be found: make it with `skep {word} create {name} FILE`")
    })?;
    Ok((text(&found["ID"]), text(&found["Spec"]["Name"])))
}

async fn with_content(client: &Client, file: &DeclaredFile, content: &[u8]) -> anyhow::Result<(String, String)> {
    let (root, word) = (path(file.kind), file.kind.word());
    let mut spec = json!({
        "Name": file.name, "Labels": file.labels, "Data": BASE64_STANDARD.encode(content),
        "Templating": file.template_driver.as_ref().map(|driver| json!({"Name": driver})),
    });
    spec["Labels"][FILE_LABEL] = json!(file.key);
    let last = versions(client, file).await?.into_iter().next_back();
    let number = match last {
        None => 1,
        Some((number, found)) => {
            spec["Name"] = found["Spec"]["Name"].clone();
            let version = format!("{root}/{}/update?version={}", text(&found["ID"]), found["Version"]["Index"]);
            let same_template = found["Spec"]["Templating"]["Name"] == spec["Templating"]["Name"];
            let update =
                if same_template { client.post(&version, &spec).await.map(drop) } else { Err(other_content()) };
            match update {
                Ok(()) => return Ok((text(&found["ID"]), text(&found["Spec"]["Name"]))),
                Err(error) if !error.to_string().contains(OTHER_CONTENT) => {
                    return Err(error).with_context(|| format!("changing the {word} {}", file.name));
                }
                Err(_) if file.is_named => bail!(
                    "the {word} {} has another content in the cluster, where content never changes: give it another name, or remove name:",
                    file.name
                ),
                Err(_) => number + 1,
            }
        }
    };
    let name = if number == 1 { file.name.clone() } else { format!("{}-{number}", file.name) };
    spec["Name"] = json!(name);
    let made =
        client.post(&format!("{root}/create"), &spec).await.with_context(|| format!("making the {word} {name}"))?;
    println!("{word} {name} created");
    Ok((text(&serde_json::from_slice::<Value>(&made)?["ID"]), name))
}

fn other_content() -> anyhow::Error {
    anyhow::anyhow!(OTHER_CONTENT)
}

/// What the cluster has of a file of the stack, oldest first, by number.
async fn versions(client: &Client, file: &DeclaredFile) -> anyhow::Result<BTreeMap<u64, Value>> {
    let stack = file.labels.get(STACK_LABEL).cloned().unwrap_or_default();
    let query = filters(&[("label", &[format!("{STACK_LABEL}={stack}")])]);
    let found: Vec<Value> = client.get(&format!("{}?filters={query}", path(file.kind))).await?;
    let number = |name: &str| match name.strip_prefix(&file.name)? {
        "" => Some(1),
        rest => rest.strip_prefix('-')?.parse().ok(),
    };
    let of_file = |found: &Value| {
        let label = &found["Spec"]["Labels"][FILE_LABEL];
        // One that `docker stack deploy` made has no such label.
        label.is_null() || *label == file.key
    };
    Ok(found.into_iter().filter(of_file).filter_map(|f| Some((number(&text(&f["Spec"]["Name"]))?, f))).collect())
}

/// Puts ids and names of the cluster into a service's spec.
pub fn resolve(spec: &mut Value, known: &InCluster) {
    for (kind, part, id_key, name_key) in [
        (FileKind::Secret, "Secrets", "SecretID", "SecretName"),
        (FileKind::Config, "Configs", "ConfigID", "ConfigName"),
    ] {
        let references = spec["TaskTemplate"]["ContainerSpec"][part].as_array_mut();
        for reference in references.into_iter().flatten() {
            if let Some((id, name)) = known.0.get(&(kind, text(&reference[name_key]))) {
                reference[id_key] = json!(id);
                reference[name_key] = json!(name);
            }
        }
        // Those of further containers are in the model's form.
        let part = part.to_lowercase();
        for container in spec["TaskTemplate"]["Pod"]["Containers"].as_array_mut().into_iter().flatten() {
            for reference in container[&part].as_array_mut().into_iter().flatten() {
                if let Some((id, name)) = known.0.get(&(kind, text(&reference["name"]))) {
                    reference["id"] = json!(id);
                    reference["name"] = json!(name);
                }
            }
        }
    }
}

/// Removes what earlier contents of the stack's files have left, but for what is in use still.
pub async fn remove_old(client: &Client, stack: &Stack, known: &InCluster) -> anyhow::Result<()> {
    for file in stack.parts.files.iter().filter(|file| file.content.is_some() && !file.is_named) {
        let current = known.0.get(&(file.kind, file.name.clone())).map(|(id, _)| id.clone()).unwrap_or_default();
        for (_, old) in versions(client, file).await?.into_iter().filter(|(_, old)| text(&old["ID"]) != current) {
            let removed = client.call(Method::DELETE, &format!("{}/{}", path(file.kind), text(&old["ID"])), None).await;
            match removed {
                Ok(_) => println!("{} {} removed", file.kind.word(), text(&old["Spec"]["Name"])),
                Err(error) if error.downcast_ref::<ApiError>().is_some_and(|e| e.message.contains("is in use")) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
