//! Carrying out a plan, step by step.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::{StreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use skep_api::manifest::plan::{Plan, Step, each_reference};
use skep_api::manifest::stack::{Content, DeclaredFile, FileKind};
use tokio::time::Instant;

use super::FILE_LABEL;
use super::interrupt::Interrupt;
use super::logins::Logins;
use super::observe::path;
use crate::client::Client;
use crate::commands::text;

/// How long a network or file may be in use by tasks that are about to stop.
const IN_USE: Duration = Duration::from_secs(60);
/// Services that are under way together. Each waits until a majority of the managers has it on disk; they take many at once.
pub const TOGETHER: usize = 16;

/// Does everything that the plan says; ids of the services that were made or changed.
///
/// A signal ends it: each object is then as it was or as it is wanted, and the error says which one was waited for.
///
/// # Errors
/// What the cluster says to a step, with the name of the object; the signal.
pub async fn execute(
    client: &Client,
    plan: &Plan,
    contents: &[DeclaredFile],
    logins: &Logins,
    ids: &mut BTreeMap<(FileKind, String), String>,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Vec<String>> {
    let (mut touched, mut done, of) = (Vec::new(), 0, plan.steps.len());
    while done < of {
        // Services do not need each other to be made; all that they do need was made before them.
        let together = plan.steps[done..].iter().take_while(|step| is_of_service(step)).count().max(1);
        let batch = &plan.steps[done..done + together];
        let mut made = Vec::new();
        let mut outcomes =
            stream::iter(batch.iter().map(|step| one(client, step, contents, logins, ids))).buffered(TOGETHER);
        for step in batch {
            let others = if together > 1 { " and others" } else { "" };
            let what = doing(step);
            let said = || format!("stopped after {done} of {of} steps while {what}{others}; apply again to finish");
            made.extend(interrupt.or(async { outcomes.next().await.transpose() }, said).await?);
            done += 1;
        }
        drop(outcomes);
        for outcome in made {
            match outcome {
                Outcome::Service(id) => touched.push(id),
                Outcome::File(kind, name, id) => drop(ids.insert((kind, name), id)),
                Outcome::Nothing => {}
            }
        }
    }
    Ok(touched)
}

fn is_of_service(step: &Step) -> bool {
    matches!(step, Step::MakeService { .. } | Step::ChangeService { .. })
}

/// What a step has brought.
enum Outcome {
    /// The id of a service that was made or changed.
    Service(String),
    /// The id of a secret or config that was made.
    File(FileKind, String, String),
    Nothing,
}

/// What a step is about, for messages.
fn doing(step: &Step) -> String {
    match step {
        Step::MakeNetwork { name, .. } => format!("making the network {name}"),
        Step::MakeFile { kind, name, .. } => format!("making the {} {name}", kind.word()),
        Step::MakeService { name, .. } => format!("making the service {name}"),
        Step::ChangeService { name, .. } => format!("changing the service {name}"),
        Step::RemoveService { name, .. } => format!("removing the service {name}"),
        Step::RemoveNetwork { name, .. } => format!("removing the network {name}"),
        Step::RemoveFile { kind, name, .. } => format!("removing the {} {name}", kind.word()),
    }
}

/// Does one step.
async fn one(
    client: &Client,
    step: &Step,
    contents: &[DeclaredFile],
    logins: &Logins,
    ids: &BTreeMap<(FileKind, String), String>,
) -> anyhow::Result<Outcome> {
    match step {
        Step::MakeNetwork { body, .. } => {
            client.post("/networks/create", body).await.with_context(|| doing(step))?;
        }
        Step::MakeFile { kind, name, file } => {
            let file = contents.get(*file).with_context(|| {
                format!("the {} {name} is gone from the cluster, and its content is not known here", kind.word())
            })?;
            return Ok(Outcome::File(*kind, name.clone(), make_file(client, file, name).await?));
        }
        Step::MakeService { name, spec } => {
            let made = logins.post(client, "/services/create", name, &with_ids(spec, ids)).await;
            let made = made.with_context(|| doing(step))?;
            return Ok(Outcome::Service(text(&serde_json::from_slice::<Value>(&made)?["ID"])));
        }
        Step::ChangeService { name, id, version, spec, .. } => {
            let path = format!("/services/{id}/update?version={version}&registryAuthFrom=spec");
            logins.post(client, &path, name, &with_ids(spec, ids)).await.with_context(|| doing(step))?;
            return Ok(Outcome::Service(id.clone()));
        }
        Step::RemoveService { name, id } => {
            remove_when_unused(client, "service", name, &format!("/services/{id}")).await?
        }
        Step::RemoveNetwork { name, id } => {
            remove_when_unused(client, "network", name, &format!("/networks/{id}")).await?
        }
        Step::RemoveFile { kind, name, id } => {
            remove_when_unused(client, kind.word(), name, &format!("{}/{id}", path(*kind))).await?;
        }
    }
    Ok(Outcome::Nothing)
}

async fn make_file(client: &Client, file: &DeclaredFile, name: &str) -> anyhow::Result<String> {
    let Some(Content(content)) = &file.content else { bail!("the {} {name} has no content", file.kind.word()) };
    let mut spec = json!({
        "Name": name, "Labels": file.labels, "Data": BASE64_STANDARD.encode(content),
        "Templating": file.template_driver.as_ref().map(|driver| json!({"Name": driver})),
    });
    spec["Labels"][FILE_LABEL] = json!(file.key);
    let made = client.post(&format!("{}/create", path(file.kind)), &spec).await;
    let made = made.with_context(|| format!("making the {} {name}", file.kind.word()))?;
    Ok(text(&serde_json::from_slice::<Value>(&made)?["ID"]))
}

/// Removes an object. What tasks use that were told to stop just now is tried again for a while.
///
/// # Errors
/// What the cluster says, with the name of the object.
pub async fn remove_when_unused(client: &Client, word: &str, name: &str, path: &str) -> anyhow::Result<()> {
    let since = Instant::now();
    loop {
        match client.call(Method::DELETE, path, None).await {
            Ok(_) => return Ok(()),
            Err(error) if crate::client::is_not_found(&error) => return Ok(()),
            Err(error) if error.to_string().contains("in use") && since.elapsed() < IN_USE => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error).with_context(|| format!("removing the {word} {name}")),
        }
    }
}

/// The spec with the ids of secrets and configs, which the plan knows by name.
fn with_ids(spec: &Value, ids: &BTreeMap<(FileKind, String), String>) -> Value {
    let mut spec = spec.clone();
    each_reference(&mut spec, |kind, reference, name_key, id_key| {
        if let Some(id) = ids.get(&(kind, text(&reference[name_key]))) {
            reference[id_key] = json!(id);
        }
    });
    spec
}
