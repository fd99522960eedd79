//! Credentials that go to the managers with services: those that manifests give, and those that are kept here.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Method;
use serde_json::Value;
use skep_api::credentials::Credentials;
use skep_api::manifest::Stack;
use skep_proto::model::container::RegistryAuth;

use crate::client::{Client, collect, credentials, whole};
use crate::commands::text;

/// Credentials for the images of services. They are sent, and neither printed nor kept.
#[derive(Debug, Default)]
pub struct Logins {
    /// Those of manifests, by service.
    given: BTreeMap<String, Credentials>,
    /// Those of the caller's file are sent, too.
    with_own: bool,
}

impl Logins {
    /// Those that files give, and the caller's own if they are to be sent.
    pub fn of(stack: Option<&Stack>, with_own: bool) -> Self {
        let mut given: BTreeMap<String, Credentials> = BTreeMap::new();
        for spec in stack.iter().flat_map(|stack| &stack.parts.services).map(|service| &service.spec) {
            for container in &spec.task.containers {
                if let Some(auth) = &container.registry_auth {
                    given.entry(spec.annotations.name.clone()).or_default().insert(&container.image, auth);
                }
            }
        }
        Self { given, with_own }
    }

    /// Sends the spec of a service with the credentials for its images.
    ///
    /// # Errors
    /// Credentials that cannot be read, and the daemon's words.
    pub async fn post(&self, client: &Client, path: &str, name: &str, spec: &Value) -> anyhow::Result<Bytes> {
        let mut all = self.given.get(name).cloned().unwrap_or_default();
        let images = images(spec);
        for image in images.iter().filter(|_| self.with_own) {
            if all.for_image(image).is_none()
                && let Some(header) = credentials::header_for(image)?
            {
                all.insert(image, &RegistryAuth(header));
            }
        }
        let (by_image, first) = (all.header(), images.first().and_then(|image| all.for_image(image)));
        let mut headers = Vec::new();
        if !all.is_empty() {
            headers.push(("X-Registry-Config", by_image.as_str()));
        }
        // What Docker's API knows: one for the only container.
        if let Some(RegistryAuth(first)) = &first {
            headers.push(("X-Registry-Auth", first.as_str()));
        }
        collect(client.open(Method::POST, path, &headers, whole(serde_json::to_vec(spec)?)).await?).await
    }
}

/// The images of a spec's containers.
fn images(spec: &Value) -> Vec<String> {
    let task = &spec["TaskTemplate"];
    let further = task["Pod"]["Containers"].as_array().into_iter().flatten().map(|container| text(&container["image"]));
    std::iter::once(text(&task["ContainerSpec"]["Image"])).chain(further).collect()
}
