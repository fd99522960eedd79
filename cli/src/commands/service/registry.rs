//! What goes to the managers with the image of a service.

use bytes::Bytes;
use clap::Args;
use http::Method;
use serde_json::Value;

use crate::client::{Client, collect, credentials, whole};

/// Flags about the image's registry.
#[derive(Debug, Default, Args)]
pub struct RegistryFlags {
    /// Give the credentials that are kept for the image's registry to the nodes that pull it
    #[arg(long)]
    with_registry_auth: bool,
    /// Do not ask the registry which image the tag means now. (skep's client never does; nodes do when they pull)
    #[arg(long)]
    no_resolve_image: bool,
}

impl RegistryFlags {
    /// Sends the spec of a service, with the credentials if asked for.
    ///
    /// # Errors
    /// Credentials that cannot be read, and the daemon's words.
    pub async fn post(&self, client: &Client, path: &str, spec: &Value) -> anyhow::Result<Bytes> {
        let image = spec["TaskTemplate"]["ContainerSpec"]["Image"].as_str().unwrap_or_default();
        let auth = if self.with_registry_auth { credentials::header_for(image)? } else { None };
        let headers: Vec<(&str, &str)> = auth.iter().map(|auth| ("X-Registry-Auth", auth.as_str())).collect();
        let answer = client.open(Method::POST, path, &headers, whole(serde_json::to_vec(spec)?)).await?;
        collect(answer).await
    }
}
